//! Receipts: what an answer was made from, so that it can be made again.
//!
//! ```json
//! {"schema_version": 1, "program": "homegrown 0.1.0", "path": "/v1/chat/completions",
//!  "model": "m", "model_blake3": "…", "template_blake3": "…", "settings": {"kv": "f16", "exact": false},
//!  "request_blake3": "…", "request": {…},
//!  "answers": [{"index": 0, "seed": 7, "prompt_tokens": 31, "prompt_blake3": "…", "tokens": 12, "blake3": "…"}]}
//! ```
//!
//! Hashes of tokens are of their ids, those of embeddings of their numbers, 4 bytes each, little end first. `request` is there if it was asked for
//! (`"receipt": "full"`); whoever kept it can do without. Replaying takes the way that the request took.

use std::sync::Arc;

use axum::body::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;

use crate::answer::{Ask, End, whole};
use crate::error::ApiError;
use crate::fields::Fields;
use crate::rates::{Caller, PerMinute};
use crate::{App, Served, chat, completions, embeddings, messages, responses};

/// The version of the layout.
const SCHEMA: u32 = 1;

/// What an answer was made from.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Receipt {
    schema_version: u32,
    program: String,
    path: String,
    /// The model's name in the API; one with an adapter has another hash, too.
    model: String,
    model_blake3: String,
    template_blake3: Option<String>,
    /// How the engine was set where that changes answers.
    pub settings: Value,
    request_blake3: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    request: Option<Value>,
    answers: Vec<Answered>,
}

/// One of the answers to a request.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
struct Answered {
    index: usize,
    seed: u64,
    prompt_tokens: usize,
    prompt_blake3: String,
    tokens: usize,
    /// Empty as long as there is no answer.
    blake3: String,
}

fn hash(tokens: &[u32]) -> String {
    let mut hasher = blake3::Hasher::new();
    tokens.iter().for_each(|id| {
        hasher.update(&id.to_le_bytes());
    });
    hasher.finalize().to_string()
}

/// Of an embedding.
fn hash_row(row: &[f32]) -> String {
    let mut hasher = blake3::Hasher::new();
    row.iter().for_each(|x| {
        hasher.update(&x.to_le_bytes());
    });
    hasher.finalize().to_string()
}

impl Receipt {
    /// For a request that is about to be answered. `full`: with the request.
    pub(crate) fn new(
        path: &str,
        served: &Served,
        asks: &[Ask],
        body: &Bytes,
        full: bool,
    ) -> Receipt {
        let answered = |(index, ask): (usize, &Ask)| Answered {
            index,
            seed: ask.request.sampling.seed,
            prompt_tokens: ask.request.prompt.len(),
            prompt_blake3: hash(&ask.request.prompt),
            tokens: 0,
            blake3: String::new(),
        };
        let template = served.assistant.template();
        Receipt {
            schema_version: SCHEMA,
            program: concat!("homegrown ", env!("CARGO_PKG_VERSION")).into(),
            path: path.into(),
            model: served.name.clone(),
            model_blake3: served.hash.clone(),
            template_blake3: template.map(|t| blake3::hash(t.as_bytes()).to_string()),
            settings: served.engine.clone(),
            request_blake3: blake3::hash(body).to_string(),
            request: if full { serde_json::from_slice(body).ok() } else { None },
            answers: asks.iter().enumerate().map(answered).collect(),
        }
    }

    /// With an answer that has ended.
    pub(crate) fn add(&mut self, index: usize, end: &End) {
        if let Some(answer) = self.answers.get_mut(index) {
            (answer.tokens, answer.blake3) = (end.tokens.len(), hash(&end.tokens));
        }
    }

    /// With an embedding.
    pub(crate) fn add_embedding(&mut self, index: usize, row: &[f32]) {
        if let Some(answer) = self.answers.get_mut(index) {
            answer.blake3 = hash_row(row);
        }
    }

    /// Of one answer alone.
    pub(crate) fn of(&self, index: usize, end: &End) -> Receipt {
        let mut one = self.clone();
        one.add(index, end);
        one.answers.retain(|answer| answer.index == index);
        one
    }

    /// The name of the model that answered.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// Reads a receipt, or an answer that holds one.
    ///
    /// # Errors
    /// [`ReplayError::Unreadable`].
    pub fn read(text: &str) -> Result<Receipt, ReplayError> {
        let unreadable = |e: serde_json::Error| ReplayError::Unreadable(e.to_string());
        let mut value: Value = serde_json::from_str(text).map_err(unreadable)?;
        if let Some(inner) = value.get_mut("receipt") {
            value = inner.take();
        }
        let receipt: Receipt = serde_json::from_value(value).map_err(unreadable)?;
        match receipt.schema_version {
            SCHEMA => Ok(receipt),
            other => {
                Err(ReplayError::Unreadable(format!("schema_version {other} is not {SCHEMA}")))
            }
        }
    }
}

/// Why an answer could not be made again.
#[derive(Debug, Error)]
pub enum ReplayError {
    /// It is no receipt.
    #[error("no receipt: {0}")]
    Unreadable(String),
    /// A receipt without the request, and nobody has it.
    #[error("the receipt is without its request")]
    NoRequest,
    /// The request can't be answered here.
    #[error("the request: {0}")]
    Refused(String),
    /// The server's runtime could not be started.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// What came of it.
#[derive(Debug, Serialize)]
pub struct Replayed {
    /// What isn't as it was, in words; nothing if all is.
    pub differences: Vec<String>,
    /// The texts.
    pub answers: Vec<String>,
}

/// Answers the request of a receipt again, with `app`, and compares. `request`: its body, if the receipt is without.
///
/// # Errors
/// If it can't be answered.
pub fn replay(
    app: &Arc<App>,
    receipt: &Receipt,
    request: Option<Vec<u8>>,
) -> Result<Replayed, ReplayError> {
    let refused = |e: ApiError| ReplayError::Refused(e.body()["error"]["message"].to_string());
    let mut differences = Vec::new();
    let mut differ = |what: &str, was: &str, is: &str| {
        if was != is {
            differences.push(format!("{what}: {was} then, {is} now"));
        }
    };
    let body = match (request, &receipt.request) {
        (Some(body), _) => {
            let hash = blake3::hash(&body).to_string();
            differ("the request's hash", &receipt.request_blake3, &hash);
            body
        }
        (None, Some(request)) => request.to_string().into_bytes(),
        (None, None) => return Err(ReplayError::NoRequest),
    };
    let body = Bytes::from(body);
    let caller = Caller::new(0, None, PerMinute::default());
    let (model, mut asks) = match &receipt.path[..] {
        chat::PATH => Fields::read(&body)
            .and_then(|f| chat::read(app, &caller, f))
            .map(|asked| (asked.model, asked.asks)),
        completions::PATH => completions::read(app, &caller, &body).map(|a| (a.model, a.asks)),
        responses::PATH => {
            responses::read(app, &caller, &body).map(|(asked, _)| (asked.model, asked.asks))
        }
        messages::PATH => {
            messages::read(app, &caller, &body, false).map(|asked| (asked.model, asked.asks))
        }
        embeddings::PATH => embeddings::read(app, &caller, &body).map(|a| (a.model, a.asks)),
        other => Err(ApiError::no_route(other)),
    }
    .map_err(refused)?;
    // Where the request left the seed open, the receipt tells it.
    for answer in &receipt.answers {
        if let Some(ask) = asks.get_mut(answer.index) {
            ask.request.sampling.seed = answer.seed;
        }
    }
    let now = Receipt::new(&receipt.path, &model, &asks, &body, false);
    differ("the model's hash", &receipt.model_blake3, &now.model_blake3);
    let text = |hash: &Option<String>| hash.clone().unwrap_or_else(|| "none".into());
    differ("the template's hash", &text(&receipt.template_blake3), &text(&now.template_blake3));
    differ("the engine's settings", &receipt.settings.to_string(), &now.settings.to_string());
    let mut answers = Vec::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let _inside = runtime.enter();
    for was in &receipt.answers {
        let (Some(ask), Some(planned)) = (asks.get(was.index), now.answers.get(was.index)) else {
            return Err(ReplayError::Refused(format!("it has no answer {}", was.index)));
        };
        differ("the prompt's hash", &was.prompt_blake3, &planned.prompt_blake3);
        let what = format!("the hash of answer {}", was.index);
        if receipt.path == embeddings::PATH {
            let row = embeddings::embed(&model, ask.request.clone()).map_err(refused)?;
            differ(&what, &was.blake3, &hash_row(&row));
            continue;
        }
        let started = app.start_all(&caller, &model, vec![ask.clone()]).map_err(refused)?;
        for parts in started {
            let end = runtime.block_on(whole(parts)).map_err(refused)?.end;
            differ(&what, &was.blake3, &hash(&end.tokens));
            answers.push(end.message.content);
        }
    }
    Ok(Replayed { differences, answers })
}
