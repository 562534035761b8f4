//! `/v1/chat/completions`.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use model::generator::Usage;
use model::message::{Message, Role, ToolCall};
use serde_json::{Value, json};
use tokio::task::block_in_place;
use tools::assistant::{Assistant, Settings};
use tools::grammar::Form;
use tools::reader::Said;

use crate::answer::{Ask, End, Piece, Whole, whole};
use crate::error::ApiError;
use crate::fields::Fields;
use crate::rates::Caller;
use crate::receipt::Receipt;
use crate::stream::{Streamed, stream};
use crate::{App, Served};

/// Where it is.
pub const PATH: &str = "/v1/chat/completions";
/// Most messages of a conversation.
const MESSAGES: usize = 4096;
/// Most tools.
const TOOLS: usize = 128;

/// What a request for an answer asks for.
pub struct Asked {
    /// The answers.
    pub asks: Vec<Ask>,
    /// Which model is asked.
    pub model: Arc<Served>,
    /// Whether the receipt is to have the request.
    pub full: bool,
    /// Whether it is streamed.
    pub stream: bool,
    /// Whether a stream ends with what it cost.
    usage: bool,
    /// Whether log-probabilities are told.
    pub logprobs: bool,
}

/// Reads a request.
///
/// # Errors
/// What is wrong with it.
pub fn read(app: &App, caller: &Caller, mut f: Fields) -> Result<Asked, ApiError> {
    let model = app.find(f.take("model")?)?;
    let assistant = &model.assistant;
    let mut messages: Vec<Value> = f.few("messages", MESSAGES)?.unwrap_or_default();
    if messages.is_empty() {
        return Err(ApiError::field("messages", "there has to be one"));
    }
    for message in &mut messages {
        // The newer name of the same.
        if message["role"] == "developer" {
            message["role"] = "system".into();
        }
    }
    let read = |(i, m): (usize, Value)| {
        serde_json::from_value(m).map_err(|e| ApiError::field(&format!("messages[{i}]"), e))
    };
    let mut messages: Vec<Message> =
        messages.into_iter().enumerate().map(read).collect::<Result<_, _>>()?;
    let tools: Option<Vec<Value>> = f.few("tools", TOOLS)?;
    let mut tools = tools.filter(|tools| !tools.is_empty()).map(Value::Array);
    let choice: Value = f.take("tool_choice")?.unwrap_or_default();
    if choice == "none" {
        tools = None;
    }
    let mut form = f.form()?;
    let call = must_call(&choice, tools.as_ref(), assistant)?;
    let demanded = call.is_some();
    if demanded && form.is_some() {
        return Err(ApiError::field("tool_choice", "a call has no response_format"));
    }
    form = form.or(call);
    f.refuse(&[
        ("functions", json!([])),
        ("function_call", json!("auto")),
        ("audio", Value::Null),
    ])?;
    let stream = f.take("stream")?.unwrap_or(false);
    let usage = f.usage_wanted()?;
    let logprobs = f.take("logprobs")?.unwrap_or(false);
    let likeliest = f.likeliest("top_logprobs")?;
    if likeliest.is_some() && !logprobs {
        return Err(ApiError::field("top_logprobs", "it goes with logprobs: true"));
    }
    let most = f.take("max_completion_tokens")?.or(f.take("max_tokens")?);
    let n = f.answers(app.limits.answers.min(app.limits.places))?;
    let mut sampling = f.sampling(assistant.vocab(), app.fresh())?;
    sampling.logprobs = logprobs.then_some(likeliest.unwrap_or(0));
    let (priority, full) = (f.priority()?, f.full_receipt()?);
    let settings = Settings { sampling, max_tokens: most, stop: f.stop()? };
    let ignore_eos = f.take("ignore_eos")?.unwrap_or(false);
    let begun = match f.take("continue_final_message")?.unwrap_or(false) {
        true => Some(beginning(&mut messages, form.as_ref())?),
        false => None,
    };
    let mut request = assistant.next_message(&messages, tools.as_ref(), &settings)?;
    if let Some(begun) = begun {
        request.prompt.extend(assistant.tokenizer().encode(&begun));
    }
    if ignore_eos {
        request.stop_ids.clear();
    }
    if let Some(form) = &form {
        if ignore_eos {
            return Err(ApiError::field(
                "ignore_eos",
                "an answer of a form ends where it is whole",
            ));
        }
        assistant.keep_to(&mut request, form).map_err(|error| match demanded {
            true => ApiError::from(error).renamed(&[("response_format", "tool_choice")]),
            false => error.into(),
        })?;
    }
    (request.owner, request.priority) = (caller.owner, priority);
    let ask = Ask { request, calls: tools.is_some(), tools };
    Ok(Asked { asks: ask.times(n), model, full, stream, usage, logprobs })
}

/// How the answer has to begin: the last message, which is the assistant's. What follows is told, not it.
fn beginning(messages: &mut Vec<Message>, form: Option<&Form>) -> Result<String, ApiError> {
    let wrong = |why: &str| Err(ApiError::field("continue_final_message", why));
    match messages.pop() {
        _ if form.is_some() => wrong("an answer of a form has no other beginning"),
        Some(m) if m.role == Role::Assistant && m.tool_calls.is_empty() => Ok(m.content),
        _ => wrong("the last message has to be the assistant's, without calls"),
    }
}

/// The form of a call, if `tool_choice` demands one.
fn must_call(
    choice: &Value,
    tools: Option<&Value>,
    assistant: &Assistant,
) -> Result<Option<Form>, ApiError> {
    let wrong = |why: String| Err(ApiError::field("tool_choice", why));
    let wanted = match choice {
        Value::Null => return Ok(None),
        Value::String(word) if word == "auto" || word == "none" => return Ok(None),
        Value::String(word) if word == "required" => None,
        other => match other["function"]["name"].as_str() {
            Some(name) => Some(name),
            None => {
                return wrong(format!("{other} is not auto, none, required, or a function's name"));
            }
        },
    };
    let functions = tools.and_then(Value::as_array).into_iter().flatten().map(|t| &t["function"]);
    let any = || json!({"type": "object"});
    let schema =
        |f: &Value| if f["parameters"].is_object() { f["parameters"].clone() } else { any() };
    let all = functions.filter_map(|f| Some((f["name"].as_str()?, schema(f))));
    let chosen: Vec<(&str, Value)> =
        all.filter(|(name, _)| wanted.is_none_or(|w| w == *name)).collect();
    if chosen.is_empty() {
        return wrong(match wanted {
            Some(name) => format!("no tool is named {name:?}"),
            None => "there are no tools".into(),
        });
    }
    Ok(Some(assistant.speech().call(assistant.tokenizer(), &chosen)))
}

/// Answers messages.
///
/// # Errors
/// What is wrong with the request; no place.
pub async fn chat(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    body: Bytes,
) -> Result<Response, ApiError> {
    // Long conversations take a while.
    let asked = block_in_place(|| read(&app, &caller, Fields::read(&body)?))?;
    let seed = asked.asks.first().map_or(0, |ask| ask.request.sampling.seed);
    let mut receipt = Receipt::new(PATH, &asked.model, &asked.asks, &body, asked.full);
    let answers = app.start_all(&caller, &asked.model, asked.asks)?;
    let about = app.about("chatcmpl", &asked.model, seed);
    if asked.stream {
        let (usage, logprobs) = (asked.usage, asked.logprobs);
        let form = Chunks { about, usage, logprobs, receipt, model: asked.model };
        return Ok(stream(answers, form));
    }
    let (mut choices, mut usage) = (Vec::new(), Usage::default());
    for (index, answer) in answers.into_iter().enumerate() {
        let Whole { end, told, .. } = whole(answer).await?;
        let mut message =
            json!({"role": "assistant", "content": end.message.content, "refusal": null});
        if !end.message.reasoning.is_empty() {
            message["reasoning_content"] = end.message.reasoning.as_str().into();
        }
        if !end.message.tool_calls.is_empty() {
            message["tool_calls"] = calls(&end.message.tool_calls, index, None).into();
            if end.message.content.is_empty() {
                message["content"] = Value::Null;
            }
        }
        let logprobs =
            asked.logprobs.then(|| json!({"content": asked.model.told(&told), "refusal": null}));
        choices.push(json!({
            "index": index, "message": message, "logprobs": logprobs, "finish_reason": end.reason
        }));
        receipt.add(index, &end);
        add(&mut usage, &end.usage, index);
    }
    let mut value = about;
    value["object"] = "chat.completion".into();
    value["choices"] = choices.into();
    value["usage"] = cost(&usage);
    value["receipt"] = json!(receipt);
    Ok(Json(value).into_response())
}

/// Calls in OpenAI's form; in a stream they have an index, from `first` on.
fn calls(calls: &[ToolCall], choice: usize, first: Option<usize>) -> Vec<Value> {
    let call = |(i, call): (usize, &ToolCall)| {
        let function = json!({"name": call.name, "arguments": call.arguments.to_string()});
        let i = first.unwrap_or(0) + i;
        let mut value =
            json!({"id": format!("call_{choice}_{i}"), "type": "function", "function": function});
        if first.is_some() {
            value["index"] = i.into();
        }
        value
    };
    calls.iter().enumerate().map(call).collect()
}

/// Adds what an answer cost; prompts of several answers are one.
pub fn add(sum: &mut Usage, of: &Usage, index: usize) {
    if index == 0 {
        (sum.prompt, sum.remembered) = (of.prompt, of.remembered);
    }
    sum.generated += of.generated;
    sum.guessed += of.guessed;
}

/// What answers cost.
pub fn cost(usage: &Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.generated,
        "total_tokens": usage.prompt + usage.generated,
        "prompt_tokens_details": {"cached_tokens": usage.remembered},
    })
}

/// The form of a stream's chunks.
struct Chunks {
    about: Value,
    usage: bool,
    logprobs: bool,
    receipt: Receipt,
    model: Arc<Served>,
}

impl Chunks {
    fn chunk(&self, index: usize, delta: Value, logprobs: Value, reason: Value) -> Value {
        let mut value = self.about.clone();
        value["object"] = "chat.completion.chunk".into();
        let logprobs = if self.logprobs { json!({"content": logprobs}) } else { Value::Null };
        value["choices"] = json!([{
            "index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason
        }]);
        value
    }
}

impl Streamed for Chunks {
    fn first(&self, index: usize) -> Option<Value> {
        let delta = json!({"role": "assistant", "content": ""});
        Some(self.chunk(index, delta, json!([]), Value::Null))
    }

    fn said(&self, index: usize, piece: &Piece, before: usize) -> Value {
        let (mut text, mut reasoning, mut called) = (String::new(), String::new(), Vec::new());
        for said in &piece.said {
            match said {
                Said::Reasoning(part) => reasoning.push_str(part),
                Said::Text(part) => text.push_str(part),
                Said::Call(call) => called.push(call.clone()),
            }
        }
        let mut delta = json!({});
        if !reasoning.is_empty() {
            delta["reasoning_content"] = reasoning.into();
        }
        if !text.is_empty() || piece.said.is_empty() {
            delta["content"] = text.into();
        }
        if !called.is_empty() {
            delta["tool_calls"] = calls(&called, index, Some(before)).into();
        }
        self.chunk(index, delta, self.model.told(&piece.told).into(), Value::Null)
    }

    fn end(&self, index: usize, end: &End) -> Value {
        let mut value = self.chunk(index, json!({}), json!([]), end.reason.into());
        value["receipt"] = json!(self.receipt.of(index, end));
        value
    }

    fn usage(&self, usage: &Usage) -> Option<Value> {
        let mut value = self.about.clone();
        value["object"] = "chat.completion.chunk".into();
        value["choices"] = json!([]);
        value["usage"] = cost(usage);
        self.usage.then_some(value)
    }
}
