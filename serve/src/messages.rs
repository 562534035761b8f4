//! `/v1/messages`: Anthropic's API. Requests become those of chat completions and are read as such.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use model::message::ToolCall;
use serde_json::{Map, Value, json};
use tokio::task::block_in_place;
use tools::reader::Said;

use crate::App;
use crate::answer::{End, Piece};
use crate::chat::{self, Asked};
use crate::error::ApiError;
use crate::fields::Fields;
use crate::rates::Caller;
use crate::receipt::Receipt;
use crate::stream::{Named, ended, named};

/// Where it is.
pub const PATH: &str = "/v1/messages";

/// Fields that are what they are in chat completions, beside those of [`read`].
const SAME: [&str; 9] =
    ["model", "max_tokens", "temperature", "top_p", "top_k", "min_p", "stream", "seed", "receipt"];
/// Chat completions' names of fields that are called otherwise here.
const NAMES: [(&str, &str); 3] = [
    ("max_completion_tokens", "max_tokens"),
    ("stop", "stop_sequences"),
    ("continue_final_message", "messages"),
];

/// Reads a request. `counting`: it is not to be answered, so nobody has to say how far.
pub fn read(app: &App, caller: &Caller, body: &[u8], counting: bool) -> Result<Asked, ApiError> {
    let mut f = Fields::read(body)?;
    match f.peek("max_tokens") {
        None | Some(Value::Null) if !counting => {
            return Err(ApiError::field("max_tokens", "it is needed"));
        }
        _ => {}
    }
    f.refuse(&[
        ("thinking", json!({"type": "disabled"})),
        ("mcp_servers", json!([])),
        ("container", Value::Null),
    ])?;
    let mut chat = Map::new();
    for name in SAME {
        if let Some(value) = f.take::<Value>(name)? {
            chat.insert(name.into(), value);
        }
    }
    if let Some(stop) = f.take::<Vec<String>>("stop_sequences")? {
        chat.insert("stop".into(), stop.into());
    }
    let mut messages = Vec::new();
    if let Some(system) = f.take::<Value>("system")? {
        messages.push(json!({"role": "system", "content": text("system", &system)?}));
    }
    let turns: Vec<Value> = f.need("messages")?;
    for (i, turn) in turns.iter().enumerate() {
        add_turn(&mut messages, &format!("messages[{i}]"), turn)?;
    }
    if turns.last().is_some_and(|turn| turn["role"] == "assistant") {
        // How the answer has to begin.
        chat.insert("continue_final_message".into(), true.into());
    }
    chat.insert("messages".into(), messages.into());
    let tools: Vec<Value> = f.take("tools")?.unwrap_or_default();
    if !tools.is_empty() {
        let tools = tools.iter().enumerate().map(|(i, tool)| function(i, tool));
        chat.insert("tools".into(), tools.collect::<Result<Vec<_>, _>>()?.into());
    }
    if let Some(choice) = f.take::<Value>("tool_choice")? {
        if choice["disable_parallel_tool_use"] == true {
            chat.insert("parallel_tool_calls".into(), false.into());
        }
        let choice = match choice["type"].as_str() {
            Some("auto") => json!("auto"),
            Some("none") => json!("none"),
            Some("any") => json!("required"),
            Some("tool") => json!({"type": "function", "function": {"name": choice["name"]}}),
            _ => return Err(ApiError::field("tool_choice", "its type is auto, any, tool or none")),
        };
        chat.insert("tool_choice".into(), choice);
    }
    chat::read(app, caller, Fields::new(chat)).map_err(|error| error.renamed(&NAMES))
}

/// A text, or a list of blocks of text.
fn text(at: &str, value: &Value) -> Result<String, ApiError> {
    match value {
        Value::Null => Ok(String::new()),
        Value::String(text) => Ok(text.clone()),
        Value::Array(blocks) => {
            blocks.iter().enumerate().map(|(i, b)| block_text(at, i, b)).collect()
        }
        _ => Err(ApiError::field(at, "it is a text or a list of blocks")),
    }
}

fn block_text(at: &str, i: usize, block: &Value) -> Result<String, ApiError> {
    match (block["type"].as_str(), block["text"].as_str()) {
        (Some("text"), Some(text)) => Ok(text.to_string()),
        (kind, _) => {
            let kind = kind.unwrap_or("none");
            Err(ApiError::field(
                &format!("{at}[{i}]"),
                format!("a block of type {kind:?}; only text can be read"),
            ))
        }
    }
}

/// A turn's blocks as messages: results of tools are messages of their own.
fn add_turn(messages: &mut Vec<Value>, at: &str, turn: &Value) -> Result<(), ApiError> {
    let role = match turn["role"].as_str() {
        Some(role @ ("user" | "assistant")) => role,
        _ => return Err(ApiError::field(at, "its role is user or assistant")),
    };
    let at = format!("{at}.content");
    let blocks = match &turn["content"] {
        Value::Array(blocks) => blocks,
        Value::String(text) => {
            messages.push(json!({"role": role, "content": text}));
            return Ok(());
        }
        _ => return Err(ApiError::field(&at, "it is a text or a list of blocks")),
    };
    let (mut said, mut thought, mut calls) = (None::<String>, String::new(), Vec::new());
    for (i, block) in blocks.iter().enumerate() {
        match (role, block["type"].as_str()) {
            ("user", Some("tool_result")) => {
                let content = text(&format!("{at}[{i}].content"), &block["content"])?;
                let id = &block["tool_use_id"];
                messages.push(json!({"role": "tool", "tool_call_id": id, "content": content}));
            }
            ("assistant", Some("tool_use")) => {
                let function = json!({"name": block["name"], "arguments": block["input"]});
                calls.push(json!({"id": block["id"], "type": "function", "function": function}));
            }
            ("assistant", Some("thinking")) => {
                thought.push_str(block["thinking"].as_str().unwrap_or_default());
            }
            _ => said.get_or_insert_default().push_str(&block_text(&at, i, block)?),
        }
    }
    if role == "assistant" {
        let mut message = json!({"role": role, "content": said.unwrap_or_default()});
        if !thought.is_empty() {
            message["reasoning_content"] = thought.into();
        }
        if !calls.is_empty() {
            message["tool_calls"] = calls.into();
        }
        messages.push(message);
    } else if said.is_some() || blocks.is_empty() {
        messages.push(json!({"role": role, "content": said.unwrap_or_default()}));
    }
    Ok(())
}

/// A tool in OpenAI's form.
fn function(i: usize, tool: &Value) -> Result<Value, ApiError> {
    let at = format!("tools[{i}]");
    if !matches!(tool["type"].as_str(), None | Some("custom")) {
        let why = format!("tools of type {} aren't here; those of the client are", tool["type"]);
        return Err(ApiError::field(&at, why));
    }
    if !tool["name"].is_string() || !tool["input_schema"].is_object() {
        return Err(ApiError::field(&at, "it has a name and an input_schema"));
    }
    let mut function = json!({"name": tool["name"]});
    if tool["description"].is_string() {
        function["description"] = tool["description"].clone();
    }
    function["parameters"] = tool["input_schema"].clone();
    Ok(json!({"type": "function", "function": function}))
}

/// Answers messages.
///
/// # Errors
/// What is wrong with the request; no place.
pub async fn messages(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    body: Bytes,
) -> Result<Response, ApiError> {
    let asked = block_in_place(|| read(&app, &caller, &body, false))?;
    let prompt = asked.asks.first().map_or(0, |ask| ask.request.prompt.len());
    let receipt = Receipt::new(PATH, &asked.model, &asked.asks, &body, asked.full);
    let mut answers = app.start_all(&caller, &asked.model, asked.asks)?;
    let answer = answers.pop().ok_or_else(|| ApiError::internal("no answer was started"))?;
    let about = app.about("msg", &asked.model, 0);
    let message = json!({
        "id": about["id"], "type": "message", "role": "assistant", "model": about["model"],
        "content": [], "stop_reason": null, "stop_sequence": null,
        "usage": {"input_tokens": prompt, "output_tokens": 0},
    });
    let form = Events { message, blocks: Vec::new(), open: false, receipt };
    if asked.stream {
        return Ok(named(answer, form));
    }
    let Events { mut message, blocks, .. } = ended(answer, form).await?;
    message["content"] = blocks.into();
    Ok(Json(message).into_response())
}

/// Counts the tokens of a prompt.
///
/// # Errors
/// What is wrong with the request.
pub async fn count(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    body: Bytes,
) -> Result<Json<Value>, ApiError> {
    let asked = block_in_place(|| read(&app, &caller, &body, true))?;
    let prompt = asked.asks.first().map_or(0, |ask| ask.request.prompt.len());
    Ok(Json(json!({"input_tokens": prompt})))
}

/// The form of an answer.
struct Events {
    /// The message without its blocks.
    message: Value,
    blocks: Vec<Value>,
    /// Whether the last of them goes on.
    open: bool,
    receipt: Receipt,
}

impl Events {
    /// An event of the last block.
    fn event(&self, kind: &str, key: &str, value: Value) -> Value {
        let mut event = json!({"type": kind, "index": self.blocks.len().saturating_sub(1)});
        event[key] = value;
        event
    }

    /// Ends the block that goes on.
    fn close(&mut self) -> Option<Value> {
        std::mem::take(&mut self.open).then(
            || json!({"type": "content_block_stop", "index": self.blocks.len().saturating_sub(1)}),
        )
    }

    /// Text of a kind: it goes on with a block, or begins one.
    fn text(&mut self, kind: &str, text: &str) -> Vec<Value> {
        let mut events = Vec::new();
        let last = self.blocks.last().filter(|last| self.open && last["type"] == kind);
        if last.is_none() {
            events.extend(self.close());
            let mut block = json!({"type": kind});
            block[if kind == "text" { "text" } else { "thinking" }] = "".into();
            if kind == "thinking" {
                // There is nobody who could check one.
                block["signature"] = "".into();
            }
            self.blocks.push(block.clone());
            self.open = true;
            events.push(self.event("content_block_start", "content_block", block));
        }
        if let Some(Value::String(all)) = self.blocks.last_mut().and_then(|b| b.get_mut(kind)) {
            all.push_str(text);
        }
        let mut delta = json!({"type": format!("{kind}_delta")});
        delta[kind] = text.into();
        events.push(self.event("content_block_delta", "delta", delta));
        events
    }

    fn call(&mut self, call: &ToolCall) -> Vec<Value> {
        let mut events: Vec<Value> = self.close().into_iter().collect();
        let id = self.message["id"].as_str().unwrap_or_default();
        let id = format!("{}-{}", id.replacen("msg", "toolu", 1), self.blocks.len());
        let mut block = json!({"type": "tool_use", "id": id, "name": call.name, "input": {}});
        let begun = block.clone();
        block["input"] = call.arguments.clone();
        self.blocks.push(block);
        self.open = true;
        events.push(self.event("content_block_start", "content_block", begun));
        let delta = json!({"type": "input_json_delta", "partial_json": call.arguments.to_string()});
        events.push(self.event("content_block_delta", "delta", delta));
        events.extend(self.close());
        events
    }
}

impl Named for Events {
    fn first(&mut self) -> Vec<Value> {
        vec![json!({"type": "message_start", "message": self.message}), json!({"type": "ping"})]
    }

    fn said(&mut self, piece: Piece) -> Vec<Value> {
        let said = piece.said.iter().map(|said| match said {
            Said::Reasoning(text) => self.text("thinking", text),
            Said::Text(text) => self.text("text", text),
            Said::Call(call) => self.call(call),
        });
        said.collect::<Vec<_>>().concat()
    }

    fn end(&mut self, end: End) -> Vec<Value> {
        let mut events: Vec<Value> = self.close().into_iter().collect();
        let (reason, stop) = match (end.reason, &end.stop) {
            ("length", _) => ("max_tokens", Value::Null),
            ("tool_calls", _) => ("tool_use", Value::Null),
            (_, Some(stop)) => ("stop_sequence", stop.as_str().into()),
            _ => ("end_turn", Value::Null),
        };
        // Tokens that had been computed before are told apart.
        let usage = json!({
            "input_tokens": end.usage.prompt.saturating_sub(end.usage.remembered),
            "cache_read_input_tokens": end.usage.remembered,
            "cache_creation_input_tokens": 0,
            "output_tokens": end.usage.generated,
        });
        let delta = json!({"stop_reason": reason, "stop_sequence": stop});
        self.message["stop_reason"] = reason.into();
        self.message["stop_sequence"] = stop;
        let receipt = json!(self.receipt.of(0, &end));
        self.message["usage"] = usage.clone();
        self.message["receipt"] = receipt.clone();
        events.push(json!({
            "type": "message_delta", "delta": delta, "usage": usage, "receipt": receipt
        }));
        events.push(json!({"type": "message_stop"}));
        events
    }

    fn failed(&mut self, error: &ApiError) -> Vec<Value> {
        vec![error.anthropic()]
    }
}
