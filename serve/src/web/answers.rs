//! Answers that are kept while they are streamed: a piece is in the store before it is shown.

use std::sync::Arc;

use axum::body::{Body, BodyDataStream, Bytes};
use axum::extract::{Extension, Path, State};
use axum::http::HeaderValue;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use store::conversations::{Asked as Kept, Conversations, End, Piece};
use tokio::sync::mpsc::{Sender, channel};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;

use super::{Asked, blocking};
use crate::App;
use crate::chat::chat;
use crate::error::ApiError;
use crate::rates::Caller;

/// The header that tells which message an answer is kept as.
const MESSAGE: &str = "x-homegrown-message";

/// Where an answer belongs.
#[derive(Deserialize)]
pub struct Place {
    /// The message that it answers.
    parent: Option<String>,
}

/// Answers as `/v1/chat/completions` does, always as a stream, and keeps it as a message.
///
/// # Errors
/// What is wrong with the request; no such conversation. Nothing is kept then.
pub async fn answer(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    Asked(place): Asked<Place>,
    body: Bytes,
) -> Result<Response, ApiError> {
    let mut body: Map<String, Value> = serde_json::from_slice(&body)
        .map_err(|e| ApiError::invalid(format!("the request is not a JSON object: {e}")))?;
    let asked = about(&body);
    let begun = asked["begun"].as_str().unwrap_or_default().to_string();
    body.insert("stream".into(), true.into());
    body.insert("stream_options".into(), json!({"include_usage": true}));
    if body.get("n").is_some_and(|n| *n != 1) {
        return Err(ApiError::field("n", "one answer is kept at a time"));
    }
    let body = Bytes::from(Value::Object(body).to_string());
    let response = chat(State(app.clone()), Extension(caller.clone()), body).await?;
    let begin = move |store: &Conversations| {
        store.begin(caller.name.as_deref(), &id, place.parent.as_deref(), &asked)
    };
    let message = app.keep(begin).await?;
    if !begun.is_empty() {
        let (message, begun) = (message.clone(), Piece { content: begun, ..Piece::default() });
        app.keep(move |store| store.piece(&message, &begun)).await?;
    }
    let (mut parts, body) = response.into_parts();
    if let Ok(id) = HeaderValue::from_str(&message.id) {
        parts.headers.insert(MESSAGE, id);
    }
    let (sender, receiver) = channel(16);
    let store = Arc::clone(&app.web()?.store);
    tokio::spawn(record(store, message, body.into_data_stream(), sender));
    Ok((parts, Body::from_stream(ReceiverStream::new(receiver))).into_response())
}

/// What is kept of a request: all but the messages, of which the system prompt alone.
fn about(body: &Map<String, Value>) -> Value {
    let mut asked = body.clone();
    for key in ["messages", "stream", "stream_options", "logprobs", "top_logprobs"] {
        asked.remove(key);
    }
    let first = &body.get("messages").unwrap_or(&Value::Null)[0];
    if first["role"] == "system" {
        asked.insert("system".into(), first["content"].clone());
    }
    // How the answer has to begin is part of it.
    if asked.remove("continue_final_message") == Some(true.into()) {
        let last = body.get("messages").and_then(Value::as_array).and_then(|m| m.last());
        asked.insert("begun".into(), last.map_or(Value::Null, |m| m["content"].clone()));
    }
    Value::Object(asked)
}

/// Hands the stream on, each piece after it is kept. Who goes away ends the answer; what there is stays.
async fn record(
    store: Arc<Conversations>,
    message: Kept,
    mut body: BodyDataStream,
    sender: Sender<Result<Bytes, axum::Error>>,
) {
    let mut answer = Answer::default();
    let mut end = loop {
        let bytes = tokio::select! {
            bytes = body.next() => bytes,
            () = sender.closed() => break answer.end(Some("stopped")),
        };
        let bytes = match bytes {
            None => break answer.end(None),
            Some(Err(error)) => break answer.failed(error.to_string()),
            Some(Ok(bytes)) => bytes,
        };
        let piece = answer.take(&bytes);
        if piece != Piece::default() {
            let (store, message) = (Arc::clone(&store), message.clone());
            let kept = blocking(move || store.piece(&message, &piece)).await;
            if let Err(error) = kept.and_then(|kept| kept.map_err(ApiError::from)) {
                let _ = sender.send(Ok(event(&error))).await;
                break answer.failed("it could not be kept".into());
            }
        }
        if sender.send(Ok(bytes)).await.is_err() {
            break answer.end(Some("stopped"));
        }
    };
    // Whoever computes it may stop.
    drop(body);
    if end.error.is_some() {
        end.state = "failed".into();
    }
    let kept = blocking(move || store.end(&message, &end)).await;
    if let Err(error) = kept.and_then(|kept| kept.map_err(ApiError::from)) {
        let _ = sender.send(Ok(event(&error))).await;
    }
}

/// An error in a stream.
fn event(error: &ApiError) -> Bytes {
    Bytes::from(format!("data: {}\n\n", error.body()))
}

/// What is known of an answer from its events.
#[derive(Default)]
struct Answer {
    /// Bytes after the last whole line.
    rest: Vec<u8>,
    end: End,
    /// In their order, arguments as they grow.
    calls: Vec<Value>,
}

impl Answer {
    /// Reads what came.
    fn take(&mut self, bytes: &[u8]) -> Piece {
        self.rest.extend_from_slice(bytes);
        let mut piece = Piece::default();
        while let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            let data = line.strip_prefix(b"data:").and_then(|d| serde_json::from_slice(d).ok());
            if let Some(data) = data {
                self.event(&data, &mut piece);
            }
        }
        piece
    }

    fn event(&mut self, event: &Value, piece: &mut Piece) {
        let text = |value: &Value| value.as_str().map(String::from);
        if let Some(error) = event["error"]["message"].as_str() {
            self.end.error = Some(error.into());
            return;
        }
        self.end.model = text(&event["model"]).or(self.end.model.take());
        self.end.fingerprint = text(&event["system_fingerprint"]).or(self.end.fingerprint.take());
        self.end.seed = event["seed"].as_i64().or(self.end.seed);
        for (key, to) in [("usage", &mut self.end.usage), ("receipt", &mut self.end.receipt)] {
            if !event[key].is_null() {
                *to = event[key].clone();
            }
        }
        let choice = &event["choices"][0];
        if let Some(reason) = choice["finish_reason"].as_str() {
            self.end.state = reason.into();
        }
        let delta = &choice["delta"];
        piece.content.push_str(delta["content"].as_str().unwrap_or_default());
        piece.reasoning.push_str(delta["reasoning_content"].as_str().unwrap_or_default());
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            self.call(call);
        }
        let tokens = choice["logprobs"]["content"].as_array().into_iter().flatten();
        piece.tokens.extend(tokens.map(token));
    }

    /// A call, or more of its arguments.
    fn call(&mut self, call: &Value) {
        let index = call["index"].as_u64().map_or(self.calls.len(), |i| i as usize);
        match self.calls.get_mut(index) {
            Some(known) => {
                let more = call["function"]["arguments"].as_str().unwrap_or_default();
                let all = known["function"]["arguments"].as_str().unwrap_or_default();
                known["function"]["arguments"] = format!("{all}{more}").into();
            }
            None => {
                let mut call = call.clone();
                call.as_object_mut().map(|c| c.remove("index"));
                self.calls.push(call);
            }
        }
    }

    /// The end; `state` where it isn't the answer's own.
    fn end(&mut self, state: Option<&str>) -> End {
        let mut end = std::mem::take(&mut self.end);
        if let Some(state) = state.filter(|_| end.state.is_empty()) {
            end.state = state.into();
        }
        if end.state.is_empty() {
            end.error.get_or_insert_with(|| "the answer broke off".into());
        }
        if !self.calls.is_empty() {
            end.tool_calls = std::mem::take(&mut self.calls).into();
        }
        end
    }

    fn failed(&mut self, why: String) -> End {
        End { error: Some(why), ..self.end(Some("failed")) }
    }
}

/// A token as it is kept: `[token, log-probability, [[alternative, log-probability], …]]`.
fn token(told: &Value) -> Value {
    let top = told["top_logprobs"].as_array().into_iter().flatten();
    let top: Vec<Value> = top.map(|t| json!([written(t), logprob(t)])).collect();
    json!([written(told), logprob(told), top])
}

/// A token's text; where its bytes are only a part of a character, the bytes.
fn written(told: &Value) -> String {
    let text = told["token"].as_str().unwrap_or_default();
    if !text.contains('\u{fffd}') {
        return text.to_string();
    }
    let bytes = told["bytes"].as_array().into_iter().flatten();
    bytes.filter_map(Value::as_u64).map(|byte| format!("\\x{byte:02X}")).collect()
}

/// To four digits: it is looked at.
fn logprob(told: &Value) -> f64 {
    (told["logprob"].as_f64().unwrap_or(f64::MIN) * 1e4).round() / 1e4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_become_a_message() {
        let events = [
            json!({"model": "m", "seed": 7, "choices": [{"delta": {"role": "assistant", "content": ""}}]}),
            json!({"choices": [{"delta": {"reasoning_content": "Hm."}}]}),
            json!({"choices": [{"delta": {"content": "Sé"}, "logprobs": {"content": [
                {"token": "S\u{fffd}", "bytes": [83, 195], "logprob": -0.123_456, "top_logprobs": [{"token": "T", "bytes": [84], "logprob": -2}]}
            ]}}]}),
            json!({"choices": [{"delta": {"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": "{\"a\""}}]}}]}),
            json!({"choices": [{"delta": {"tool_calls": [{"index": 0, "function": {"arguments": ":1}"}}]}}]}),
            json!({"choices": [{"delta": {}, "finish_reason": "tool_calls"}]}),
            json!({"choices": [], "usage": {"total_tokens": 3}, "receipt": "r"}),
        ];
        let bytes: String = events.iter().map(|e| format!("data: {e}\n\n")).collect();
        let mut answer = Answer::default();
        let mut piece = Piece::default();
        // However the bytes come.
        for bytes in (": ping\n\n".to_string() + &bytes + "data: [DONE]\n\n").as_bytes().chunks(7) {
            let more = answer.take(bytes);
            piece.content += &more.content;
            piece.reasoning += &more.reasoning;
            piece.tokens.extend(more.tokens);
        }
        assert_eq!((piece.content.as_str(), piece.reasoning.as_str()), ("Sé", "Hm."));
        assert_eq!(piece.tokens, [json!(["\\x53\\xC3", -0.1235, [["T", -2.0]]])]);
        let end = answer.end(None);
        assert_eq!(end.tool_calls[0]["function"]["arguments"], "{\"a\":1}");
        assert_eq!(
            (end.state.as_str(), end.seed, &end.receipt),
            ("tool_calls", Some(7), &json!("r"))
        );
        assert_eq!((end.model.as_deref(), &end.usage["total_tokens"]), (Some("m"), &json!(3)));
        let error = json!({"error": {"message": "no memory"}});
        let mut answer = Answer::default();
        answer.take(format!("data: {error}\n\n").as_bytes());
        assert_eq!(answer.end(None).error.as_deref(), Some("no memory"));
        assert_eq!(Answer::default().end(None).error.as_deref(), Some("the answer broke off"));
    }
}
