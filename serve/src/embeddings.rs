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

use crate::answer::Ask;
use crate::completions::Prompt;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::rates::Caller;
use crate::receipt::Receipt;
use crate::{App, Served};

/// Where it is.
pub const PATH: &str = "/v1/embeddings";
/// Most texts of a request.
const TEXTS: usize = 2048;

/// What a request asks for.
pub struct Asked {
    /// The texts.
    pub asks: Vec<Ask>,
    /// Which model is asked.
    pub model: Arc<Served>,
    /// Whether the receipt is to have the request.
    full: bool,
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
    let input = Prompt::read("input", f.need("input")?)?;
    f.refuse(&[("dimensions", Value::Null)])?;
    let base64 = match f.take::<String>("encoding_format")?.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(_) => return Err(ApiError::field("encoding_format", "it is float or base64")),
    };
    let full = f.full_receipt()?;
    let requests = input.requests(&model.assistant, &Settings::default());
    if !(1..=TEXTS).contains(&requests.len()) {
        let why = format!("{} texts are not from 1 to {TEXTS}", requests.len());
        return Err(ApiError::field("input", why));
    }
    let ask = |(i, mut request): (usize, Request)| {
        if request.prompt.is_empty() {
            return Err(ApiError::field(&format!("input[{i}]"), "it is empty"));
        }
        (request.owner, request.embedding) = (caller.owner, true);
        Ok(Ask { request, calls: false, tools: None })
    };
    let asks = requests.into_iter().enumerate().map(ask).collect::<Result<_, _>>()?;
    Ok(Asked { asks, model, full, base64 })
}

/// Waits for the embedding of a text.
///
/// # Errors
/// What the engine objects to.
pub fn embed(model: &Served, request: Request) -> Result<Vec<f32>, ApiError> {
    let submitted = model.assistant.submit(request);
    let renamed = |e| ApiError::from(e).renamed(&[("messages", "input"), ("prompt", "input")]);
    match submitted.map_err(renamed)?.next() {
        Some(Event::Embedding(row)) => Ok(row),
        Some(Event::Error(error)) => Err(error.into()),
        _ => Err(ApiError::internal("a text has no embedding")),
    }
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
    let Asked { asks, model, full, base64 } = block_in_place(|| read(&app, &caller, &body))?;
    let mut receipt = Receipt::new(PATH, &model, &asks, &body, full);
    let place = app.place()?;
    // A place is for one at a time: others have theirs. Nobody waits for those behind one that can't be.
    let answer = {
        let model = model.clone();
        tokio::task::spawn_blocking(move || {
            let mut rows = Vec::new();
            let mut tokens = 0;
            for Ask { request, .. } in asks {
                let length = request.prompt.len();
                rows.push(embed(&model, request)?);
                caller.spend(length, std::time::Instant::now());
                tokens += length;
            }
            drop(place);
            Ok::<_, ApiError>((rows, tokens))
        })
    };
    let broken = |_| ApiError::internal("the embedding broke off");
    let (rows, tokens) = answer.await.map_err(broken)??;
    let mut data = Vec::new();
    for (index, row) in rows.into_iter().enumerate() {
        receipt.add_embedding(index, &row);
        let embedding = match base64 {
            false => json!(row),
            true => {
                let bytes: Vec<u8> = row.iter().flat_map(|x| x.to_le_bytes()).collect();
                STANDARD.encode(bytes).into()
            }
        };
        data.push(json!({"object": "embedding", "index": index, "embedding": embedding}));
    }
    Ok(Json(json!({
        "object": "list", "data": data, "model": model.name, "receipt": receipt,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }))
    .into_response())
}
