//! `/v1/completions`: texts that go on.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use model::generator::{Request, Usage};
use model::sampler::Logprobs;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::task::block_in_place;
use tools::assistant::{Assistant, Settings};
use tools::reader::Said;

use crate::answer::{Ask, End, Piece, Told, Whole, whole};
use crate::chat::{add, cost};
use crate::error::ApiError;
use crate::fields::Fields;
use crate::rates::Caller;
use crate::receipt::Receipt;
use crate::stream::{Streamed, stream};
use crate::{App, Served};

/// Where it is.
pub const PATH: &str = "/v1/completions";
/// Most prompts of a request.
const PROMPTS: usize = 64;

/// Texts or tokens, one or several.
#[derive(Deserialize)]
#[serde(untagged)]
pub enum Prompt {
    /// A text.
    Text(String),
    /// Several.
    Texts(Vec<String>),
    /// A text's tokens.
    Tokens(Vec<u32>),
    /// Those of several.
    ManyTokens(Vec<Vec<u32>>),
}

impl Prompt {
    /// Reads the field of that name.
    ///
    /// # Errors
    /// If it is something else.
    pub fn read(name: &str, value: Value) -> Result<Prompt, ApiError> {
        serde_json::from_value(value).map_err(|_| {
            ApiError::field(name, "it is a text, a list of tokens, or a list of either")
        })
    }

    /// A request for each.
    pub fn requests(self, assistant: &Assistant, settings: &Settings) -> Vec<Request> {
        let text = |text: String| assistant.continuation(&text, settings);
        let tokens = |prompt: Vec<u32>| Request { prompt, ..assistant.continuation("", settings) };
        match self {
            Prompt::Text(one) => vec![text(one)],
            Prompt::Texts(many) => many.into_iter().map(text).collect(),
            Prompt::Tokens(one) => vec![tokens(one)],
            Prompt::ManyTokens(many) => many.into_iter().map(tokens).collect(),
        }
    }
}

/// What a request for continuations asks for.
pub struct Asked {
    /// The answers, those to a prompt side by side.
    pub asks: Vec<Ask>,
    /// Which model is asked.
    pub model: Arc<Served>,
    /// Whether the receipt is to have the request.
    full: bool,
    /// Answers to each prompt.
    n: usize,
    stream: bool,
    usage: bool,
    logprobs: bool,
    /// The prompts, if they are to be told too.
    echo: Option<Vec<Vec<u32>>>,
}

/// Reads a request.
///
/// # Errors
/// What is wrong with it.
pub fn read(app: &App, caller: &Caller, body: &[u8]) -> Result<Asked, ApiError> {
    let mut f = Fields::read(body)?;
    let model = app.find(f.take("model")?)?;
    let assistant = &model.assistant;
    let prompt = Prompt::read("prompt", f.need("prompt")?)?;
    f.refuse(&[("suffix", json!("")), ("best_of", json!(1))])?;
    let echo = f.take("echo")?.unwrap_or(false);
    let stream = f.take("stream")?.unwrap_or(false);
    let usage = f.usage_wanted()?;
    let logprobs = f.likeliest("logprobs")?;
    let n = f.answers(app.limits.answers.min(app.limits.places))?;
    // As OpenAI's.
    let most = f.take("max_tokens")?.or(Some(16));
    let mut sampling = f.sampling(assistant.vocab(), app.fresh())?;
    sampling.logprobs = logprobs;
    let settings = Settings { sampling, max_tokens: most, stop: f.stop()? };
    let form = f.form()?;
    let (priority, full) = (f.priority()?, f.full_receipt()?);
    let ignore_eos = f.take("ignore_eos")?.unwrap_or(false);
    let prompts = prompt.requests(assistant, &settings);
    if !(1..=PROMPTS).contains(&prompts.len()) {
        return Err(ApiError::field(
            "prompt",
            format!("{} prompts are not from 1 to {PROMPTS}", prompts.len()),
        ));
    }
    let ask = |mut request: Request| -> Result<Vec<Ask>, ApiError> {
        (request.owner, request.priority) = (caller.owner, priority);
        request.prompt_logprobs = logprobs.filter(|_| echo);
        if ignore_eos {
            request.stop_ids.clear();
        }
        if let Some(form) = &form {
            assistant.keep_to(&mut request, form)?;
        }
        Ok(Ask { request, calls: false, tools: None }.times(n))
    };
    let asks: Vec<Vec<Ask>> = prompts.into_iter().map(ask).collect::<Result<_, _>>()?;
    let asks = asks.concat();
    let prompts = || asks.iter().map(|ask| ask.request.prompt.clone()).collect();
    Ok(Asked {
        echo: echo.then(prompts),
        asks,
        model,
        full,
        n,
        stream,
        usage,
        logprobs: logprobs.is_some(),
    })
}

/// Continues texts.
///
/// # Errors
/// What is wrong with the request; no place.
pub async fn completions(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    body: Bytes,
) -> Result<Response, ApiError> {
    let Asked { asks, model, full, n, stream: streamed, usage, logprobs, echo } =
        block_in_place(|| read(&app, &caller, &body))?;
    let seed = asks.first().map_or(0, |ask| ask.request.sampling.seed);
    let receipt = Receipt::new(PATH, &model, &asks, &body, full);
    let answers = app.start_all(&caller, &model, asks)?;
    let mut about = app.about("cmpl", &model, seed);
    about["object"] = "text_completion".into();
    let mut form = Chunks { about, usage, logprobs, echo, receipt, model };
    if streamed {
        return Ok(stream(answers, form));
    }
    let (mut choices, mut usage) = (Vec::new(), Usage::default());
    for (index, answer) in answers.into_iter().enumerate() {
        let Whole { end, told, prompt } = whole(answer).await?;
        let Echoed { text, told: before } = form.echoed(index, &prompt);
        let text = text + &end.message.content;
        let logprobs =
            logprobs.then(|| told_of(&form.model, before.into_iter().chain(told.iter().map(some))));
        choices.push(json!({
            "index": index, "text": text, "logprobs": logprobs, "finish_reason": end.reason
        }));
        form.receipt.add(index, &end);
        // Each prompt counts once.
        let mut of = Usage::default();
        add(&mut of, &end.usage, index % n);
        usage.prompt += of.prompt;
        usage.remembered += of.remembered;
        usage.generated += of.generated;
    }
    let mut about = form.about;
    about["choices"] = choices.into();
    about["usage"] = cost(&usage);
    about["receipt"] = json!(form.receipt);
    Ok(Json(about).into_response())
}

/// A token, and what the model thought of it: nothing of a text's first one.
type Thought<'a> = (u32, Option<&'a Logprobs>);

fn some(told: &Told) -> Thought<'_> {
    (told.id, Some(&told.logprobs))
}

/// Log-probabilities in the form of completions.
fn told_of<'a>(model: &Served, told: impl Iterator<Item = Thought<'a>>) -> Value {
    let text = |id: u32| {
        let bytes = model.tokenizer().token_bytes(id).unwrap_or_default();
        String::from_utf8_lossy(bytes).into_owned()
    };
    let top = |logprobs: &Logprobs| -> Map<String, Value> {
        logprobs.top.iter().map(|(id, p)| (text(*id), json!(p))).collect()
    };
    let (mut tokens, mut own, mut likeliest, mut offsets) = (vec![], vec![], vec![], vec![]);
    let mut at = 0;
    for (id, logprobs) in told {
        let text = text(id);
        offsets.push(at);
        at += text.len();
        tokens.push(text);
        own.push(logprobs.map(|l| l.chosen));
        likeliest.push(logprobs.map(top));
    }
    json!({
        "tokens": tokens, "token_logprobs": own, "top_logprobs": likeliest, "text_offset": offsets
    })
}

/// The form of a stream's chunks.
struct Chunks {
    about: Value,
    usage: bool,
    logprobs: bool,
    echo: Option<Vec<Vec<u32>>>,
    receipt: Receipt,
    model: Arc<Served>,
}

/// A prompt that is told too.
#[derive(Default)]
struct Echoed<'a> {
    text: String,
    told: Vec<Thought<'a>>,
}

impl Chunks {
    fn chunk(&self, index: usize, text: &str, told: Vec<Thought<'_>>, reason: Value) -> Value {
        let mut value = self.about.clone();
        let logprobs = self.logprobs.then(|| told_of(&self.model, told.into_iter()));
        value["choices"] =
            json!([{"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}]);
        value
    }

    fn echoed<'a>(&self, index: usize, all: &'a [Logprobs]) -> Echoed<'a> {
        let Some(prompt) = self.echo.as_ref().and_then(|prompts| prompts.get(index)) else {
            return Echoed::default();
        };
        let text = self.model.tokenizer().decode(prompt);
        let told = prompt.iter().copied().zip(std::iter::once(None).chain(all.iter().map(Some)));
        Echoed { text, told: told.collect() }
    }
}

impl Streamed for Chunks {
    fn first(&self, index: usize) -> Option<Value> {
        // Otherwise it comes with its log-probabilities.
        let echoed = self.echo.is_some() && !self.logprobs;
        echoed.then(|| self.chunk(index, &self.echoed(index, &[]).text, vec![], Value::Null))
    }

    fn prompt(&self, index: usize, all: &[Logprobs]) -> Option<Value> {
        let Echoed { text, told } = self.echoed(index, all);
        Some(self.chunk(index, &text, told, Value::Null))
    }

    fn said(&self, index: usize, piece: &Piece, _: usize) -> Value {
        let texts = piece.said.iter().filter_map(|said| match said {
            Said::Text(text) => Some(text.as_str()),
            _ => None,
        });
        let text: String = texts.collect();
        self.chunk(index, &text, piece.told.iter().map(some).collect(), Value::Null)
    }

    fn end(&self, index: usize, end: &End) -> Value {
        let mut value = self.chunk(index, "", vec![], end.reason.into());
        value["receipt"] = json!(self.receipt.of(index, end));
        value
    }

    fn usage(&self, usage: &Usage) -> Option<Value> {
        let mut value = self.about.clone();
        value["choices"] = json!([]);
        value["usage"] = cost(usage);
        self.usage.then_some(value)
    }
}
