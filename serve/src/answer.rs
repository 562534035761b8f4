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
use tools::hermes;

use crate::App;
use crate::error::ApiError;

/// How long somebody may read nothing of an answer that is there.
const PATIENCE: Duration = Duration::from_secs(60);

/// A part of an answer.
#[derive(Debug)]
pub enum Part {
    /// Text that is certain, with the tokens whose log-probabilities were asked for.
    Text(String, Vec<Told>),
    /// The end: text and calls, why, and what it cost.
    End(Box<End>),
    /// There is no answer.
    Failed(ApiError),
}

/// The end of an answer.
#[derive(Debug)]
pub struct End {
    /// All that was said.
    pub message: Message,
    /// `stop`, `length` or `tool_calls`.
    pub reason: &'static str,
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

impl App {
    /// Starts an answer. Nobody who listens any more ends it.
    ///
    /// # Errors
    /// What the engine objects to.
    pub fn start(
        self: &Arc<App>,
        request: Request,
        calls: bool,
        place: OwnedSemaphorePermit,
    ) -> Result<Receiver<Part>, ApiError> {
        let events = self.assistant.submit(request)?;
        let (sender, receiver) = channel(64);
        let app = Arc::clone(self);
        let began = Instant::now();
        app.metrics.running.fetch_add(1, Ordering::Relaxed);
        tokio::task::spawn_blocking(move || {
            let mut answer = Answer { app: &app, calls, ..Answer::new(&app) };
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

    /// Log-probabilities in the form of chat completions.
    pub fn told(&self, told: &[Told]) -> Vec<Value> {
        let token = |id: u32, logprob: f32| {
            let bytes = self.assistant.tokenizer().token_bytes(id).unwrap_or_default();
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

/// Waits for a whole answer, with the tokens that were told of.
///
/// # Errors
/// Why there is none.
pub async fn whole(mut parts: Receiver<Part>) -> Result<(End, Vec<Told>), ApiError> {
    let mut all = Vec::new();
    while let Some(part) = parts.recv().await {
        match part {
            Part::Text(_, told) => all.extend(told),
            Part::End(end) => return Ok((*end, all)),
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
    /// Whether calls of tools are looked for.
    calls: bool,
    tokens: Vec<u32>,
    written: String,
    /// Bytes of `written` that were told.
    shown: usize,
    calling: bool,
    last: Option<Instant>,
}

impl<'a> Answer<'a> {
    fn new(app: &'a App) -> Answer<'a> {
        Answer {
            app,
            calls: false,
            tokens: Vec::new(),
            written: String::new(),
            shown: 0,
            calling: false,
            last: None,
        }
    }

    fn take(&mut self, event: Event, began: Instant) -> Option<Part> {
        let metrics = &self.app.metrics;
        match event {
            Event::Token(token) => {
                let now = Instant::now();
                match self.last.replace(now) {
                    None => metrics.first_token.add(now - began),
                    Some(last) => metrics.next_token.add(now - last),
                }
                self.tokens.push(token.id);
                self.written.push_str(&token.text);
                self.calling |= self.calls && self.app.call == Some(token.id);
                let told = token.logprobs.map(|logprobs| Told { id: token.id, logprobs });
                let text = self.certain();
                let some = !text.is_empty() || told.is_some();
                some.then(|| Part::Text(text, told.into_iter().collect()))
            }
            Event::Done(done) => {
                self.written.push_str(&done.text);
                let whole = matches!(done.reason, Reason::StopString(_));
                let message = match self.calls && !whole {
                    true => self.app.assistant.message(&self.tokens),
                    false => Message::assistant(self.written.clone()),
                };
                let (reason, count) = match done.reason {
                    _ if !message.tool_calls.is_empty() => ("tool_calls", &metrics.stopped),
                    Reason::Length => ("length", &metrics.cut),
                    _ => ("stop", &metrics.stopped),
                };
                count.fetch_add(1, Ordering::Relaxed);
                metrics.prompt_tokens.fetch_add(done.usage.prompt as u64, Ordering::Relaxed);
                metrics.cached_tokens.fetch_add(done.usage.remembered as u64, Ordering::Relaxed);
                metrics.generated_tokens.fetch_add(done.usage.generated as u64, Ordering::Relaxed);
                metrics.whole.add(began.elapsed());
                Some(Part::End(Box::new(End { message, reason, usage: done.usage })))
            }
            Event::Error(error) => Some(Part::Failed(error.into())),
        }
    }

    /// Text that is no call, and not the beginning of one.
    fn certain(&mut self) -> String {
        if self.calling {
            return String::new();
        }
        let mut end = self.written.len();
        if self.calls && self.app.call.is_none() {
            end = hermes::before_call(&self.written);
            self.calling = self.written[end..].starts_with(hermes::OPEN);
        }
        let text = self.written[self.shown.min(end)..end].to_string();
        self.shown = self.shown.max(end);
        text
    }
}
