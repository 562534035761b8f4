//! `/v1/embeddings`: texts as vectors of length 1. They are means of what the last layer of a decoder makes of the tokens:
//! good enough to find texts that are about the same, behind models that were trained for that.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use model::generator::{Event, Request};
use serde_json::{Value, json};
use tokio::task::block_in_place;
use tools::assistant::Settings;

use crate::App;
use crate::completions::Prompt;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::rates::Caller;

/// Most texts of a request.
const TEXTS: usize = 2048;

/// What a request asks for.
pub struct Asked {
    model: usize,
    requests: Vec<Request>,
    /// Whether numbers are told as base64 of their bytes, f32, little end first.
    base64: bool,
}

/// Reads a request.
///
/// # Errors
/// What is wrong with it.
pub fn read(app: &App, caller: &Caller, body: &[u8]) -> Result<Asked, ApiError> {
    let mut f = Fields::read(body)?;
    let model = app.find(f.take("model")?)?;
    let assistant = &app.models[model].assistant;
    let input = Prompt::read("input", f.need("input")?)?;
    f.refuse(&[("dimensions", Value::Null)])?;
    let base64 = match f.take::<String>("encoding_format")?.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(_) => return Err(ApiError::field("encoding_format", "it is float or base64")),
    };
    let mut requests = input.requests(assistant, &Settings::default());
    if !(1..=TEXTS).contains(&requests.len()) {
        let why = format!("{} texts are not from 1 to {TEXTS}", requests.len());
        return Err(ApiError::field("input", why));
    }
    for (i, request) in requests.iter_mut().enumerate() {
        if request.prompt.is_empty() {
            return Err(ApiError::field(&format!("input[{i}]"), "it is empty"));
        }
        (request.owner, request.embedding) = (caller.owner, true);
    }
    Ok(Asked { model, requests, base64 })
}

/// Embeds texts.
///
/// # Errors
/// What is wrong with the request; no place.
pub async fn embeddings(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    body: Bytes,
) -> Result<Response, ApiError> {
    let Asked { model, requests, base64 } = block_in_place(|| read(&app, &caller, &body))?;
    let place = app.place()?;
    // A place is for one at a time: others have theirs. Nobody waits for those behind one that can't be.
    let answer = {
        let app = app.clone();
        tokio::task::spawn_blocking(move || {
            let mut rows = Vec::new();
            let mut tokens = 0;
            for (i, request) in requests.into_iter().enumerate() {
                let length = request.prompt.len();
                let submitted = app.models[model].assistant.submit(request);
                let mut events = submitted.map_err(|e| {
                    ApiError::from(e).renamed(&[("messages", "input"), ("prompt", "input")])
                })?;
                match events.next() {
                    Some(Event::Embedding(row)) => rows.push(row),
                    Some(Event::Error(error)) => return Err(error.into()),
                    _ => return Err(ApiError::internal(format!("text {i} has no embedding"))),
                }
                caller.spend(length, std::time::Instant::now());
                tokens += length;
            }
            drop(place);
            Ok((rows, tokens))
        })
    };
    let broken = |_| ApiError::internal("the embedding broke off");
    let (rows, tokens) = answer.await.map_err(broken)??;
    let told = |(index, row): (usize, Vec<f32>)| {
        let embedding = match base64 {
            false => json!(row),
            true => {
                let bytes: Vec<u8> = row.iter().flat_map(|x| x.to_le_bytes()).collect();
                STANDARD.encode(bytes).into()
            }
        };
        json!({"object": "embedding", "index": index, "embedding": embedding})
    };
    let data: Vec<Value> = rows.into_iter().enumerate().map(told).collect();
    Ok(Json(json!({
        "object": "list", "data": data, "model": app.models[model].name,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }))
    .into_response())
}
