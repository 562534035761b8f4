//! `/v1/responses`: OpenAI's other API. Requests become those of chat completions and are read as such. Nothing is
//! stored: a conversation is what its client sends.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use model::message::ToolCall;
use serde_json::{Map, Value, json};
use tokio::task::block_in_place;
use tools::reader::Said;

use crate::answer::{End, Piece, Told};
use crate::chat::{self, Asked};
use crate::error::ApiError;
use crate::fields::Fields;
use crate::rates::Caller;
use crate::receipt::Receipt;
use crate::stream::{Named, ended, named};
use crate::{App, Served};

/// Where it is.
pub const PATH: &str = "/v1/responses";

/// Fields that are what they are in chat completions, beside those of [`read`].
const SAME: [&str; 10] = [
    "model",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "stream",
    "seed",
    "receipt",
    "top_logprobs",
    "parallel_tool_calls",
];
/// Chat completions' names of fields that are called otherwise here.
const NAMES: [(&str, &str); 4] = [
    ("max_completion_tokens", "max_output_tokens"),
    ("max_tokens", "max_output_tokens"),
    ("response_format", "text.format"),
    ("messages", "input"),
];
/// What of a request its answer repeats, and what it is where nobody says.
fn repeated() -> [(&'static str, Value); 10] {
    [
        ("instructions", Value::Null),
        ("max_output_tokens", Value::Null),
        ("metadata", json!({})),
        ("parallel_tool_calls", json!(true)),
        ("temperature", json!(1.0)),
        ("text", json!({"format": {"type": "text"}})),
        ("tool_choice", json!("auto")),
        ("tools", json!([])),
        ("top_p", json!(1.0)),
        ("truncation", json!("disabled")),
    ]
}

/// Reads a request; with what its answer repeats.
pub fn read(app: &App, caller: &Caller, body: &[u8]) -> Result<(Asked, Value), ApiError> {
    let mut f = Fields::read(body)?;
    let mut about = json!({});
    for (name, plain) in repeated() {
        about[name] = f.peek(name).cloned().unwrap_or(plain);
    }
    f.refuse(&[
        ("previous_response_id", Value::Null),
        ("conversation", Value::Null),
        ("prompt", Value::Null),
        ("store", json!(false)),
        ("background", json!(false)),
        ("truncation", json!("disabled")),
        ("max_tool_calls", Value::Null),
    ])?;
    let mut chat = Map::new();
    for name in SAME {
        if let Some(value) = f.take::<Value>(name)? {
            chat.insert(name.into(), value);
        }
    }
    if let Some(most) = f.take::<Value>("max_output_tokens")? {
        chat.insert("max_completion_tokens".into(), most);
    }
    for included in f.take::<Vec<String>>("include")?.unwrap_or_default() {
        match included.as_str() {
            "message.output_text.logprobs" => drop(chat.insert("logprobs".into(), true.into())),
            // There is none.
            "reasoning.encrypted_content" => {}
            _ => return Err(ApiError::field("include", format!("there is no {included:?} here"))),
        }
    }
    if chat.contains_key("top_logprobs") {
        chat.insert("logprobs".into(), true.into());
    }
    let mut messages = Vec::new();
    if let Some(instructions) = f.take::<String>("instructions")? {
        messages.push(json!({"role": "system", "content": instructions}));
    }
    match f.need::<Value>("input")? {
        Value::String(text) => messages.push(json!({"role": "user", "content": text})),
        Value::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                add_item(&mut messages, &format!("input[{i}]"), item)?;
            }
        }
        _ => return Err(ApiError::field("input", "it is a text or a list of items")),
    }
    chat.insert("messages".into(), messages.into());
    let tools: Vec<Value> = f.take("tools")?.unwrap_or_default();
    let tools = tools.into_iter().enumerate().map(function).collect::<Result<Vec<_>, _>>()?;
    chat.insert("tools".into(), tools.into());
    match f.take::<Value>("tool_choice")? {
        Some(choice) if choice["type"] == "function" => {
            let named = json!({"type": "function", "function": {"name": choice["name"]}});
            chat.insert("tool_choice".into(), named);
        }
        Some(choice) => drop(chat.insert("tool_choice".into(), choice)),
        None => {}
    }
    let format = f.take::<Map<String, Value>>("text")?.and_then(|mut text| text.remove("format"));
    if let Some(format) = format.filter(|f| !f.is_null()) {
        chat.insert("response_format".into(), response_format(format)?);
    }
    let asked =
        chat::read(app, caller, Fields::new(chat)).map_err(|error| error.renamed(&NAMES))?;
    Ok((asked, about))
}

/// The form of chat completions has the schema a level deeper.
fn response_format(format: Value) -> Result<Value, ApiError> {
    match format {
        Value::Object(mut format) if format.get("type") == Some(&json!("json_schema")) => {
            format.remove("type");
            Ok(json!({"type": "json_schema", "json_schema": format}))
        }
        Value::Object(format) => Ok(format.into()),
        _ => Err(ApiError::field("text.format", "it is an object")),
    }
}

/// A text, or a list of parts that are text.
fn text(at: &str, value: &Value) -> Result<String, ApiError> {
    let part = |(i, part): (usize, &Value)| match (part["type"].as_str(), part["text"].as_str()) {
        (Some("input_text" | "output_text" | "text" | "reasoning_text"), Some(text)) => {
            Ok(text.to_string())
        }
        (kind, _) => {
            let why = format!("a part of type {:?}; only text can be read", kind.unwrap_or("none"));
            Err(ApiError::field(&format!("{at}[{i}]"), why))
        }
    };
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Array(parts) => parts.iter().enumerate().map(part).collect(),
        _ => Err(ApiError::field(at, "it is a text or a list of parts")),
    }
}

/// An item as a message, or as a part of the assistant's last one: its reasoning, its text and its calls are one.
fn add_item(messages: &mut Vec<Value>, at: &str, item: &Value) -> Result<(), ApiError> {
    let kind = item["type"].as_str().unwrap_or("message");
    match kind {
        "message" => {
            let content = text(&format!("{at}.content"), &item["content"])?;
            if item["role"] == "assistant" {
                let message = assistant(messages, |last| {
                    last["content"] == "" && last["tool_calls"].is_null()
                });
                message["content"] = content.into();
            } else {
                messages.push(json!({"role": item["role"], "content": content}));
            }
        }
        "reasoning" => {
            if item["content"].is_array() {
                let thought = text(&format!("{at}.content"), &item["content"])?;
                assistant(messages, |_| false)["reasoning_content"] = thought.into();
            }
        }
        "function_call" => {
            let function = json!({"name": item["name"], "arguments": item["arguments"]});
            let call = json!({"id": item["call_id"], "type": "function", "function": function});
            match &mut assistant(messages, |_| true)["tool_calls"] {
                Value::Array(calls) => calls.push(call),
                none => *none = json!([call]),
            }
        }
        "function_call_output" => {
            let content = text(&format!("{at}.output"), &item["output"])?;
            messages
                .push(json!({"role": "tool", "tool_call_id": item["call_id"], "content": content}));
        }
        _ => return Err(ApiError::field(at, format!("items of type {kind:?} can't be read"))),
    }
    Ok(())
}

/// The assistant's message at the end if `goes_on` says that what comes is part of it, or a new one.
fn assistant(messages: &mut Vec<Value>, goes_on: impl Fn(&Value) -> bool) -> &mut Value {
    if !messages.last().is_some_and(|last| last["role"] == "assistant" && goes_on(last)) {
        messages.push(json!({"role": "assistant", "content": ""}));
    }
    let last = messages.len() - 1;
    &mut messages[last]
}

/// A tool in the form of chat completions.
fn function((i, tool): (usize, Value)) -> Result<Value, ApiError> {
    let at = format!("tools[{i}]");
    match tool {
        Value::Object(mut tool) if tool.get("type") == Some(&json!("function")) => {
            tool.remove("type");
            Ok(json!({"type": "function", "function": tool}))
        }
        other => Err(ApiError::field(
            &at,
            format!("a tool of type {}; functions can be called", other["type"]),
        )),
    }
}

/// Answers a text or items.
///
/// # Errors
/// What is wrong with the request; no place.
pub async fn responses(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    body: Bytes,
) -> Result<Response, ApiError> {
    let (asked, repeated) = block_in_place(|| read(&app, &caller, &body))?;
    let seed = asked.asks.first().map_or(0, |ask| ask.request.sampling.seed);
    let receipt = Receipt::new(PATH, &asked.model, &asked.asks, &body, asked.full);
    let started = app.start_all(&caller, &asked.model, asked.asks);
    let mut answers = started.map_err(|error| error.renamed(&NAMES))?;
    let answer = answers.pop().ok_or_else(|| ApiError::internal("no answer was started"))?;
    let about = app.about("resp", &asked.model, seed);
    let mut response = json!({
        "id": about["id"], "object": "response", "created_at": about["created"], "model": about["model"],
        "status": "in_progress", "error": null, "incomplete_details": null, "output": [], "usage": null,
        "previous_response_id": null, "store": false, "background": false, "seed": seed,
        "reasoning": {"effort": null, "summary": null},
    });
    if let (Value::Object(response), Value::Object(repeated)) = (&mut response, repeated) {
        response.extend(repeated);
    }
    let logprobs = asked.logprobs;
    let form = Events {
        model: asked.model,
        response,
        receipt,
        logprobs,
        number: 0,
        items: Vec::new(),
        open: None,
        told: Vec::new(),
    };
    if asked.stream {
        return Ok(named(answer, form));
    }
    Ok(Json(ended(answer, form).await?.response).into_response())
}

/// A text that is being said.
struct Open {
    /// `reasoning` or `message`.
    kind: &'static str,
    text: String,
    /// Log-probabilities of its tokens.
    told: Vec<Value>,
}

/// The form of an answer.
struct Events {
    model: Arc<Served>,
    /// The whole of it at the end.
    response: Value,
    receipt: Receipt,
    logprobs: bool,
    /// Events so far.
    number: u64,
    /// What is said to its end.
    items: Vec<Value>,
    open: Option<Open>,
    /// Tokens whose text is not certain yet.
    told: Vec<Told>,
}

impl Events {
    fn event(&mut self, kind: &str, mut value: Value) -> Value {
        value["type"] = kind.into();
        value["sequence_number"] = self.number.into();
        self.number += 1;
        value
    }

    /// The name of the item that comes next.
    fn id(&self, kind: &str) -> String {
        let id = self.response["id"].as_str().unwrap_or_default();
        format!("{}-{}", id.replacen("resp", kind, 1), self.items.len())
    }

    /// An event of an item.
    fn of_item(&mut self, kind: &str, item: &Value) -> Value {
        let index = self.items.len();
        self.event(kind, json!({"output_index": index, "item": item}))
    }

    /// An event within the item that is open, or a call.
    fn within(&mut self, kind: &str, id: &Value, mut value: Value) -> Value {
        value["item_id"] = id.clone();
        value["output_index"] = self.items.len().into();
        self.event(kind, value)
    }

    /// The item of a text.
    fn item(&self, kind: &str, status: &str, content: Vec<Value>) -> Value {
        match kind {
            "reasoning" => {
                json!({"type": kind, "id": self.id("rs"), "status": status, "summary": [], "content": content})
            }
            _ => {
                json!({"type": kind, "id": self.id("msg"), "status": status, "role": "assistant", "content": content})
            }
        }
    }

    /// A piece of text: it goes on with an item, or begins one.
    fn text(&mut self, kind: &'static str, text: &str, told: Vec<Told>) -> Vec<Value> {
        let mut events = Vec::new();
        if self.open.as_ref().is_none_or(|open| open.kind != kind) {
            events.extend(self.close("completed"));
            self.open = Some(Open { kind, text: String::new(), told: Vec::new() });
            let item = self.item(kind, "in_progress", Vec::new());
            events.push(self.of_item("response.output_item.added", &item));
            if kind == "message" {
                let part = json!({"content_index": 0, "part": part("", &[])});
                events.push(self.within("response.content_part.added", &item["id"], part));
            }
        }
        let told = if self.logprobs { self.model.told(&told) } else { Vec::new() };
        let id = self.item(kind, "", Vec::new())["id"].take();
        let mut delta = json!({"content_index": 0, "delta": text});
        let name = match kind {
            "message" => {
                delta["logprobs"] = told.clone().into();
                "response.output_text.delta"
            }
            _ => "response.reasoning_text.delta",
        };
        if let Some(open) = &mut self.open {
            open.text.push_str(text);
            open.told.extend(told);
        }
        events.push(self.within(name, &id, delta));
        events
    }

    /// Ends the item that is open.
    fn close(&mut self, status: &str) -> Vec<Value> {
        let Some(Open { kind, text, told }) = self.open.take() else { return Vec::new() };
        let mut events = Vec::new();
        let part = match kind {
            "message" => part(&text, &told),
            _ => json!({"type": "reasoning_text", "text": text}),
        };
        let item = self.item(kind, status, vec![part.clone()]);
        if kind == "message" {
            let done = json!({"content_index": 0, "text": text, "logprobs": told});
            events.push(self.within("response.output_text.done", &item["id"], done));
            let done = json!({"content_index": 0, "part": part});
            events.push(self.within("response.content_part.done", &item["id"], done));
        } else {
            let done = json!({"content_index": 0, "text": text});
            events.push(self.within("response.reasoning_text.done", &item["id"], done));
        }
        events.push(self.of_item("response.output_item.done", &item));
        self.items.push(item);
        events
    }

    fn call(&mut self, call: &ToolCall) -> Vec<Value> {
        let mut events = self.close("completed");
        let mut item = json!({
            "type": "function_call", "id": self.id("fc"), "call_id": self.id("call"),
            "status": "in_progress", "name": call.name, "arguments": "",
        });
        events.push(self.of_item("response.output_item.added", &item));
        let arguments = call.arguments.to_string();
        for (kind, key) in [("delta", "delta"), ("done", "arguments")] {
            let mut value = json!({});
            value[key] = arguments.as_str().into();
            let kind = format!("response.function_call_arguments.{kind}");
            events.push(self.within(&kind, &item["id"], value));
        }
        item["arguments"] = arguments.into();
        item["status"] = "completed".into();
        events.push(self.of_item("response.output_item.done", &item));
        self.items.push(item);
        events
    }
}

/// The text of a message.
fn part(text: &str, told: &[Value]) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": told})
}

impl Named for Events {
    fn first(&mut self) -> Vec<Value> {
        let response = self.response.clone();
        ["response.created", "response.in_progress"]
            .map(|kind| self.event(kind, json!({"response": response})))
            .into()
    }

    fn said(&mut self, piece: Piece) -> Vec<Value> {
        self.told.extend(piece.told);
        let mut events = Vec::new();
        for said in &piece.said {
            let told = std::mem::take(&mut self.told);
            events.extend(match said {
                Said::Reasoning(text) => self.text("reasoning", text, told),
                Said::Text(text) => self.text("message", text, told),
                Said::Call(call) => self.call(call),
            });
        }
        events
    }

    fn end(&mut self, end: End) -> Vec<Value> {
        let cut = end.reason == "length";
        let status = if cut { "incomplete" } else { "completed" };
        let mut events = Vec::new();
        // An answer of nothing is one, too.
        if self.items.is_empty() && self.open.is_none() {
            events.extend(self.text("message", "", Vec::new()));
        }
        events.extend(self.close(status));
        let thought = self.model.tokenizer().encode(&end.message.reasoning).len();
        let usage = &end.usage;
        self.response["usage"] = json!({
            "input_tokens": usage.prompt,
            "input_tokens_details": {"cached_tokens": usage.remembered},
            "output_tokens": usage.generated,
            "output_tokens_details": {"reasoning_tokens": thought},
            "total_tokens": usage.prompt + usage.generated,
        });
        self.response["output"] = std::mem::take(&mut self.items).into();
        self.response["status"] = status.into();
        self.response["receipt"] = json!(self.receipt.of(0, &end));
        if cut {
            self.response["incomplete_details"] = json!({"reason": "max_output_tokens"});
        }
        let response = json!({"response": self.response});
        events.push(self.event(&format!("response.{status}"), response));
        events
    }

    fn failed(&mut self, error: &ApiError) -> Vec<Value> {
        self.response["status"] = "failed".into();
        let message = error.body()["error"]["message"].take();
        self.response["error"] = json!({"code": "server_error", "message": message});
        let response = json!({"response": self.response});
        vec![self.event("response.failed", response)]
    }
}
