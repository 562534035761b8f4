//! Answers as they come: a thread for each waits for the engine and tells what is certain.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use model::generator::{Event, Reason, Request, Usage};
use model::message::Message;
use model::sampler::Logprobs;
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tools::reader::{Reader, Said};

use crate::error::ApiError;
use crate::rates::Caller;
use crate::{App, Served};

/// How long somebody may read nothing of an answer that is there.
const PATIENCE: Duration = Duration::from_secs(60);

/// A part of an answer.
#[derive(Debug)]
pub enum Part {
    /// Log-probabilities of the prompt's tokens from its second one on.
    Prompt(Vec<Logprobs>),
    /// What is certain now.
    Said(Piece),
    /// The end: all of it, why, and what it cost.
    End(Box<End>),
    /// There is no answer.
    Failed(ApiError),
}

/// What became certain with a token.
#[derive(Debug, Default)]
pub struct Piece {
    /// Reasoning, text and calls, in the order in which they came.
    pub said: Vec<Said>,
    /// The tokens whose log-probabilities were asked for.
    pub told: Vec<Told>,
}

/// The end of an answer.
#[derive(Debug)]
pub struct End {
    /// All that was said.
    pub message: Message,
    /// The tokens of it.
    pub tokens: Vec<u32>,
    /// `stop`, `length` or `tool_calls`.
    pub reason: &'static str,
    /// The string that ended it.
    pub stop: Option<String>,
    /// What it cost.
    pub usage: Usage,
}

/// A token with its log-probabilities.
#[derive(Debug)]
pub struct Told {
    /// Its id.
    pub id: u32,
    /// Its own, and those of the likeliest.
    pub logprobs: Logprobs,
}

/// What is asked of the engine.
#[derive(Clone, Debug)]
pub struct Ask {
    /// The tokens, and how to go on.
    pub request: Request,
    /// Whether the answer may call tools.
    pub calls: bool,
    /// Their definitions.
    pub tools: Option<Value>,
}

impl Ask {
    /// The same `n` times, each with a seed of its own.
    pub fn times(self, n: usize) -> Vec<Ask> {
        let numbered = |i: u64| {
            let mut ask = self.clone();
            ask.request.sampling.seed = ask.request.sampling.seed.wrapping_add(i);
            ask
        };
        (0..n as u64).map(numbered).collect()
    }
}

impl App {
    /// Starts an answer. Nobody who listens any more ends it.
    ///
    /// # Errors
    /// What the engine objects to.
    pub fn start(
        self: &Arc<App>,
        caller: Caller,
        model: &Arc<Served>,
        asked: Ask,
        place: OwnedSemaphorePermit,
    ) -> Result<Receiver<Part>, ApiError> {
        let Ask { request, calls, tools } = asked;
        let (model, assistant) = (Arc::clone(model), &model.assistant);
        let reader = assistant.reader(&request.prompt, calls, tools.as_ref());
        let events = assistant.submit(request)?;
        let (sender, receiver) = channel(64);
        let app = Arc::clone(self);
        let began = Instant::now();
        app.metrics.running.fetch_add(1, Ordering::Relaxed);
        tokio::task::spawn_blocking(move || {
            let mut answer = Answer::new(&app, &model, caller, reader);
            let mut told = true;
            for event in events {
                told = answer.take(event, began).into_iter().all(|part| tell(&sender, part));
                if !told {
                    break;
                }
            }
            if !told {
                app.metrics.aborted.fetch_add(1, Ordering::Relaxed);
            }
            app.metrics.running.fetch_sub(1, Ordering::Relaxed);
            drop(place);
        });
        Ok(receiver)
    }
}

impl Served {
    /// Log-probabilities in the form of chat completions.
    pub fn told(&self, told: &[Told]) -> Vec<Value> {
        let token = |id: u32, logprob: f32| {
            let bytes = self.tokenizer().token_bytes(id).unwrap_or_default();
            json!({"token": String::from_utf8_lossy(bytes), "logprob": logprob, "bytes": bytes})
        };
        let one = |t: &Told| {
            let mut value = token(t.id, t.logprobs.chosen);
            let top = t.logprobs.top.iter().map(|(id, logprob)| token(*id, *logprob));
            value["top_logprobs"] = top.collect();
            value
        };
        told.iter().map(one).collect()
    }
}

/// A whole answer.
#[derive(Debug)]
pub struct Whole {
    /// How it ended.
    pub end: End,
    /// The tokens that were told of.
    pub told: Vec<Told>,
    /// Those of the prompt, from its second one on.
    pub prompt: Vec<Logprobs>,
}

/// Waits for a whole answer.
///
/// # Errors
/// Why there is none.
pub async fn whole(mut parts: Receiver<Part>) -> Result<Whole, ApiError> {
    let (mut told, mut prompt) = (Vec::new(), Vec::new());
    while let Some(part) = parts.recv().await {
        match part {
            Part::Prompt(all) => prompt = all,
            Part::Said(piece) => told.extend(piece.told),
            Part::End(end) => return Ok(Whole { end: *end, told, prompt }),
            Part::Failed(error) => return Err(error),
        }
    }
    Err(ApiError::internal("the answer broke off"))
}

/// Hands a part on; not to who is gone, or reads nothing for too long: the place is others'.
fn tell(sender: &Sender<Part>, mut part: Part) -> bool {
    let until = Instant::now() + PATIENCE;
    loop {
        match sender.try_send(part) {
            Ok(()) => return true,
            Err(TrySendError::Full(back)) if Instant::now() < until => part = back,
            Err(_) => return false,
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What is known of an answer so far.
struct Answer<'a> {
    app: &'a App,
    model: &'a Served,
    caller: Caller,
    /// Taken at the end.
    reader: Option<Reader>,
    message: Message,
    tokens: Vec<u32>,
    last: Option<Instant>,
}

impl<'a> Answer<'a> {
    fn new(app: &'a App, model: &'a Served, caller: Caller, reader: Reader) -> Answer<'a> {
        let (reader, message) = (Some(reader), Message::assistant(""));
        Answer { app, model, caller, reader, message, tokens: Vec::new(), last: None }
    }

    fn take(&mut self, event: Event, began: Instant) -> Vec<Part> {
        let metrics = &self.app.metrics;
        match event {
            Event::Prompt(all) => vec![Part::Prompt(all)],
            Event::Embedding(_) => Vec::new(),
            Event::Token(token) => {
                let now = Instant::now();
                match self.last.replace(now) {
                    None => metrics.first_token.add(now - began),
                    Some(last) => metrics.next_token.add(now - last),
                }
                self.caller.spend(1, now);
                self.tokens.push(token.id);
                let mut said = Vec::new();
                if let Some(reader) = &mut self.reader {
                    said = reader.text(&token.text);
                    if let Some(name) = self.model.tokenizer().special_name(token.id) {
                        said.extend(reader.special(name));
                    }
                }
                let told = token.logprobs.map(|logprobs| Told { id: token.id, logprobs });
                self.part(said, told)
            }
            Event::Done(done) => {
                let mut said = Vec::new();
                if let Some(mut reader) = self.reader.take() {
                    said = reader.text(&done.text);
                    said.extend(reader.finish());
                }
                let mut parts = self.part(said, None);
                let message = std::mem::replace(&mut self.message, Message::assistant(""));
                let (reason, count) = match done.reason {
                    _ if !message.tool_calls.is_empty() => ("tool_calls", &metrics.stopped),
                    Reason::Length => ("length", &metrics.cut),
                    _ => ("stop", &metrics.stopped),
                };
                let stop = match done.reason {
                    Reason::StopString(text) => Some(text),
                    _ => None,
                };
                count.fetch_add(1, Ordering::Relaxed);
                metrics.prompt_tokens.fetch_add(done.usage.prompt as u64, Ordering::Relaxed);
                metrics.cached_tokens.fetch_add(done.usage.remembered as u64, Ordering::Relaxed);
                metrics.generated_tokens.fetch_add(done.usage.generated as u64, Ordering::Relaxed);
                metrics.whole.add(began.elapsed());
                let tokens = std::mem::take(&mut self.tokens);
                let usage = done.usage;
                parts.push(Part::End(Box::new(End { message, tokens, reason, stop, usage })));
                parts
            }
            Event::Error(error) => vec![Part::Failed(error.into())],
        }
    }

    /// What is told of, if it is anything.
    fn part(&mut self, said: Vec<Said>, told: Option<Told>) -> Vec<Part> {
        said.iter().for_each(|said| said.clone().add_to(&mut self.message));
        let piece = Piece { said, told: told.into_iter().collect() };
        let some = !piece.said.is_empty() || !piece.told.is_empty();
        some.then_some(Part::Said(piece)).into_iter().collect()
    }
}
