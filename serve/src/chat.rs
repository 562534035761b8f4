//! `/v1/chat/completions`.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use model::generator::{Request, Usage};
use model::message::{Message, ToolCall};
use serde_json::{Value, json};
use tools::assistant::Settings;

use crate::App;
use crate::answer::{End, Told, whole};
use crate::error::ApiError;
use crate::fields::Fields;
use crate::stream::{Streamed, stream};

/// What a request for an answer asks for.
struct Asked {
    requests: Vec<Request>,
    /// Whether the answer may call tools.
    calls: bool,
    stream: bool,
    /// Whether a stream ends with what it cost.
    usage: bool,
    logprobs: bool,
}

fn read(app: &App, body: &Bytes) -> Result<Asked, ApiError> {
    let mut f = Fields::read(body)?;
    app.check_model(f.take("model")?)?;
    let mut messages: Vec<Value> = f.need("messages")?;
    for message in &mut messages {
        // The newer name of the same.
        if message["role"] == "developer" {
            message["role"] = "system".into();
        }
    }
    let read = |(i, m): (usize, Value)| {
        serde_json::from_value(m).map_err(|e| ApiError::field(&format!("messages[{i}]"), e))
    };
    let messages: Vec<Message> =
        messages.into_iter().enumerate().map(read).collect::<Result<_, _>>()?;
    let tools: Option<Vec<Value>> = f.take("tools")?;
    let mut tools = tools.filter(|tools| !tools.is_empty()).map(Value::Array);
    match f.take::<Value>("tool_choice")? {
        None => {}
        Some(Value::String(choice)) if choice == "auto" => {}
        Some(Value::String(choice)) if choice == "none" => tools = None,
        Some(other) => {
            return Err(ApiError::field(
                "tool_choice",
                format!("{other} is not supported; \"auto\" and \"none\" are"),
            ));
        }
    }
    let format = json!({"type": "text"});
    f.refuse(&[
        ("response_format", format),
        ("functions", json!([])),
        ("function_call", json!("auto")),
        ("audio", Value::Null),
    ])?;
    let stream = f.take("stream")?.unwrap_or(false);
    let options: Value = f.take("stream_options")?.unwrap_or_default();
    let logprobs = f.take("logprobs")?.unwrap_or(false);
    let likeliest = f.likeliest("top_logprobs")?;
    if likeliest.is_some() && !logprobs {
        return Err(ApiError::field("top_logprobs", "it goes with logprobs: true"));
    }
    let most = f.take("max_completion_tokens")?.or(f.take("max_tokens")?);
    let n = f.answers(app.limits.answers.min(app.limits.places))?;
    let mut sampling = f.sampling(app.vocab, app.fresh())?;
    sampling.logprobs = logprobs.then_some(likeliest.unwrap_or(0));
    let settings = Settings { sampling, max_tokens: most, stop: f.stop()? };
    let ignore_eos = f.take("ignore_eos")?.unwrap_or(false);
    let mut request = app.assistant.next_message(&messages, tools.as_ref(), &settings)?;
    if ignore_eos {
        request.stop_ids.clear();
    }
    let numbered = |i: usize| {
        let mut request = request.clone();
        request.sampling.seed = request.sampling.seed.wrapping_add(i as u64);
        request
    };
    let requests = (0..n).map(numbered).collect();
    Ok(Asked {
        requests,
        calls: tools.is_some(),
        stream,
        usage: options["include_usage"] == true,
        logprobs,
    })
}

/// Answers messages.
///
/// # Errors
/// What is wrong with the request; no place.
pub async fn chat(State(app): State<Arc<App>>, body: Bytes) -> Result<Response, ApiError> {
    let asked = read(&app, &body)?;
    let seed = asked.requests.first().map_or(0, |r| r.sampling.seed);
    let answers = app.start_all(asked.requests, asked.calls)?;
    let about = app.about("chatcmpl", seed);
    if asked.stream {
        let form = Chunks { about, usage: asked.usage, logprobs: asked.logprobs, app: app.clone() };
        return Ok(stream(answers, form));
    }
    let (mut choices, mut usage) = (Vec::new(), Usage::default());
    for (index, answer) in answers.into_iter().enumerate() {
        let (end, told) = whole(answer).await?;
        let mut message =
            json!({"role": "assistant", "content": end.message.content, "refusal": null});
        if !end.message.tool_calls.is_empty() {
            message["tool_calls"] = calls(&end.message.tool_calls, index, false).into();
            if end.message.content.is_empty() {
                message["content"] = Value::Null;
            }
        }
        let logprobs = asked.logprobs.then(|| json!({"content": app.told(&told), "refusal": null}));
        choices.push(json!({
            "index": index, "message": message, "logprobs": logprobs, "finish_reason": end.reason
        }));
        add(&mut usage, &end.usage, index);
    }
    let mut value = about;
    value["object"] = "chat.completion".into();
    value["choices"] = choices.into();
    value["usage"] = cost(&usage);
    Ok(Json(value).into_response())
}

/// Calls in OpenAI's form; in a stream they have an index.
fn calls(calls: &[ToolCall], choice: usize, indexed: bool) -> Vec<Value> {
    let call = |(i, call): (usize, &ToolCall)| {
        let function = json!({"name": call.name, "arguments": call.arguments.to_string()});
        let mut value =
            json!({"id": format!("call_{choice}_{i}"), "type": "function", "function": function});
        if indexed {
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
    app: Arc<App>,
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

    fn text(&self, index: usize, text: &str, told: &[Told]) -> Value {
        self.chunk(index, json!({"content": text}), self.app.told(told).into(), Value::Null)
    }

    fn end(&self, index: usize, end: &End, shown: &str) -> Vec<Value> {
        let mut chunks = Vec::new();
        // A call that could not be read.
        if let Some(rest) = end.message.content.strip_prefix(shown).filter(|r| !r.is_empty()) {
            chunks.push(self.chunk(index, json!({"content": rest}), json!([]), Value::Null));
        }
        if !end.message.tool_calls.is_empty() {
            let delta = json!({"tool_calls": calls(&end.message.tool_calls, index, true)});
            chunks.push(self.chunk(index, delta, json!([]), Value::Null));
        }
        chunks.push(self.chunk(index, json!({}), json!([]), end.reason.into()));
        chunks
    }

    fn usage(&self, usage: &Usage) -> Option<Value> {
        let mut value = self.about.clone();
        value["object"] = "chat.completion.chunk".into();
        value["choices"] = json!([]);
        value["usage"] = cost(usage);
        self.usage.then_some(value)
    }
}
