//! `/v1/completions`: texts that go on.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use model::generator::{Request, Usage};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tools::assistant::Settings;

use crate::App;
use crate::answer::{End, Told, whole};
use crate::chat::{add, cost};
use crate::error::ApiError;
use crate::fields::Fields;
use crate::stream::{Streamed, stream};

/// Most prompts of a request.
const PROMPTS: usize = 64;

/// Texts or tokens, one or several.
#[derive(Deserialize)]
#[serde(untagged)]
enum Prompt {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<u32>),
    ManyTokens(Vec<Vec<u32>>),
}

struct Asked {
    requests: Vec<Request>,
    /// Answers to each prompt.
    n: usize,
    stream: bool,
    usage: bool,
    logprobs: Option<usize>,
}

fn read(app: &App, body: &Bytes) -> Result<Asked, ApiError> {
    let mut f = Fields::read(body)?;
    app.check_model(f.take("model")?)?;
    let prompt: Value = f.need("prompt")?;
    let prompt: Prompt = serde_json::from_value(prompt).map_err(|_| {
        ApiError::field("prompt", "it is a text, a list of tokens, or a list of either")
    })?;
    f.refuse(&[("echo", json!(false)), ("suffix", json!("")), ("best_of", json!(1))])?;
    let stream = f.take("stream")?.unwrap_or(false);
    let options: Value = f.take("stream_options")?.unwrap_or_default();
    let logprobs = f.likeliest("logprobs")?;
    let n = f.answers(app.limits.answers.min(app.limits.places))?;
    // As OpenAI's.
    let most = f.take("max_tokens")?.or(Some(16));
    let mut sampling = f.sampling(app.vocab, app.fresh())?;
    sampling.logprobs = logprobs;
    let settings = Settings { sampling, max_tokens: most, stop: f.stop()? };
    let ignore_eos = f.take("ignore_eos")?.unwrap_or(false);
    let text = |text: &String| app.assistant.continuation(text, &settings);
    let tokens = |prompt: &Vec<u32>| Request {
        prompt: prompt.clone(),
        ..app.assistant.continuation("", &settings)
    };
    let prompts: Vec<Request> = match &prompt {
        Prompt::Text(one) => vec![text(one)],
        Prompt::Texts(many) => many.iter().map(text).collect(),
        Prompt::Tokens(one) => vec![tokens(one)],
        Prompt::ManyTokens(many) => many.iter().map(tokens).collect(),
    };
    if !(1..=PROMPTS).contains(&prompts.len()) {
        return Err(ApiError::field(
            "prompt",
            format!("{} prompts are not from 1 to {PROMPTS}", prompts.len()),
        ));
    }
    let numbered = |request: Request| {
        (0..n as u64).map(move |i| {
            let mut request = request.clone();
            request.sampling.seed = request.sampling.seed.wrapping_add(i);
            if ignore_eos {
                request.stop_ids.clear();
            }
            request
        })
    };
    let requests = prompts.into_iter().flat_map(numbered).collect();
    Ok(Asked { requests, n, stream, usage: options["include_usage"] == true, logprobs })
}

/// Continues texts.
///
/// # Errors
/// What is wrong with the request; no place.
pub async fn completions(State(app): State<Arc<App>>, body: Bytes) -> Result<Response, ApiError> {
    let asked = read(&app, &body)?;
    let seed = asked.requests.first().map_or(0, |r| r.sampling.seed);
    let answers = app.start_all(asked.requests, false)?;
    let mut about = app.about("cmpl", seed);
    about["object"] = "text_completion".into();
    if asked.stream {
        let form = Chunks {
            about,
            usage: asked.usage,
            logprobs: asked.logprobs.is_some(),
            app: app.clone(),
        };
        return Ok(stream(answers, form));
    }
    let (mut choices, mut usage) = (Vec::new(), Usage::default());
    for (index, answer) in answers.into_iter().enumerate() {
        let (end, told) = whole(answer).await?;
        let logprobs = asked.logprobs.map(|_| told_of(&app, &told));
        choices.push(json!({
            "index": index, "text": end.message.content, "logprobs": logprobs, "finish_reason": end.reason
        }));
        // Each prompt counts once.
        let mut of = Usage::default();
        add(&mut of, &end.usage, index % asked.n);
        usage.prompt += of.prompt;
        usage.remembered += of.remembered;
        usage.generated += of.generated;
    }
    about["choices"] = choices.into();
    about["usage"] = cost(&usage);
    Ok(Json(about).into_response())
}

/// Log-probabilities in the form of completions.
fn told_of(app: &App, told: &[Told]) -> Value {
    let text = |id: u32| {
        let bytes = app.assistant.tokenizer().token_bytes(id).unwrap_or_default();
        String::from_utf8_lossy(bytes).into_owned()
    };
    let (mut offsets, mut at) = (Vec::new(), 0);
    for t in told {
        offsets.push(at);
        at += text(t.id).len();
    }
    let top = |t: &Told| -> Map<String, Value> {
        t.logprobs.top.iter().map(|(id, p)| (text(*id), json!(p))).collect()
    };
    json!({
        "tokens": told.iter().map(|t| text(t.id)).collect::<Vec<_>>(),
        "token_logprobs": told.iter().map(|t| t.logprobs.chosen).collect::<Vec<_>>(),
        "top_logprobs": told.iter().map(top).collect::<Vec<_>>(),
        "text_offset": offsets,
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
    fn chunk(&self, index: usize, text: &str, told: &[Told], reason: Value) -> Value {
        let mut value = self.about.clone();
        let logprobs = self.logprobs.then(|| told_of(&self.app, told));
        value["choices"] =
            json!([{"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}]);
        value
    }
}

impl Streamed for Chunks {
    fn first(&self, _: usize) -> Option<Value> {
        None
    }

    fn text(&self, index: usize, text: &str, told: &[Told]) -> Value {
        self.chunk(index, text, told, Value::Null)
    }

    fn end(&self, index: usize, end: &End, shown: &str) -> Vec<Value> {
        let rest = end.message.content.strip_prefix(shown).unwrap_or_default();
        vec![self.chunk(index, rest, &[], end.reason.into())]
    }

    fn usage(&self, usage: &Usage) -> Option<Value> {
        let mut value = self.about.clone();
        value["choices"] = json!([]);
        value["usage"] = cost(usage);
        self.usage.then_some(value)
    }
}
