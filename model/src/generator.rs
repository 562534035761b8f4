//! The generator: requests in, events out.
//!
//! One engine thread owns the model's keys and values; anybody submits requests and receives the
//! tokens as they come. The engine batches whatever is there. What a request gives depends on the
//! request alone: not on the batch, the chunks of its prompt, or what was remembered of others.

mod draft;
mod engine;
mod lookup;
mod pace;
mod prefix;
mod queue;
mod stop;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use compute::Cpu;
use compute::kv::{KvError, KvType, PAGE};
use compute::tensor::DType;
use serde::Serialize;
use thiserror::Error;

use crate::config::Config;
use crate::constraint::Constraint;
use crate::sampler::{Logprobs, Sampling, SamplingError};
use crate::tokenizer::Tokenizer;
use crate::transformer::Transformer;
use draft::Draft;
use engine::Engine;

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum GenerateError {
    /// A prompt without tokens.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// Nothing was asked for.
    #[error("max_tokens is 0")]
    NoTokens,
    /// An id that the model doesn't have.
    #[error("the prompt has token {0}, which the model doesn't have")]
    UnknownToken(u32),
    /// The answer wouldn't fit into the model's context.
    #[error(
        "the prompt has {prompt} tokens and up to {max_tokens} were asked for; \
         the model's context holds {context}"
    )]
    TooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens asked for, at least 1.
        max_tokens: usize,
        /// The model's longest context.
        context: usize,
    },
    /// It fits into the context, but not into the memory set aside for keys and values.
    #[error("{needed} tokens were asked for; the generator has memory for {room}")]
    NoRoom {
        /// Tokens of prompt and answer.
        needed: usize,
        /// [`Options::tokens`], in whole pages.
        room: usize,
    },
    /// A draft that knows other tokens.
    #[error("the draft has a vocabulary of {draft} tokens, the model one of {model}")]
    OtherVocabulary {
        /// The draft's.
        draft: usize,
        /// The model's.
        model: usize,
    },
    /// The card that computes has failed; the generator has stopped.
    #[error("{0}")]
    Card(String),
    /// An adapter that isn't there.
    #[error("there is no adapter {0}")]
    UnknownAdapter(usize),
    /// An adapter for another model.
    #[error("adapter {0} is not of the same shape as the model")]
    OtherAdapter(usize),
    /// A stop string that would always be found.
    #[error("a stop string is empty")]
    EmptyStop,
    /// Settings that make no sense, or broken weights.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// Too much memory was asked for.
    #[error(transparent)]
    Memory(#[from] KvError),
    /// The engine's thread could not be started.
    #[error("the generator's thread could not be started: {0}")]
    Thread(#[from] std::io::Error),
    /// Whoever watched had enough.
    #[error("cancelled")]
    Cancelled,
    /// The engine ended before the answer did.
    #[error("the generator has stopped")]
    Stopped,
}

/// How much a generator may use. Memory is taken at the start.
#[derive(Debug, Clone)]
pub struct Options {
    /// Most sequences in a batch.
    pub sequences: usize,
    /// Tokens of all sequences together for which there is memory.
    pub tokens: usize,
    /// Most tokens of prompts in a step, so that long prompts don't hold up the others.
    pub chunk: usize,
    /// Requests that the engine chooses the next one from, and as many again that may wait for that; who submits one more waits
    /// too.
    pub queue: usize,
    /// Type of the operands of matrix products.
    pub products: DType,
    /// Whether products with quantised weights are computed in f32, where activations are rounded to 8 bits
    /// otherwise: exact, slower.
    pub exact: bool,
    /// What keys and values are stored as.
    pub kv: KvType,
    /// Most tokens a step that are guessed from the text so far; answers don't depend on it.
    pub lookup: usize,
    /// A smaller model with the same vocabulary that guesses where the text so far says nothing;
    /// answers don't depend on it. It takes memory for as many tokens.
    pub draft: Option<Arc<Transformer>>,
    /// The model with adapters, which requests may name; they share its weights where those are kept as they are stored.
    pub adapters: Vec<Arc<Transformer>>,
}

impl Options {
    /// Up to `sequences` sequences of a model's full context, or of 32,768 tokens together if
    /// that is less and one full context fits.
    pub fn new(config: &Config, sequences: usize) -> Self {
        let context = config.max_position_embeddings;
        let tokens = sequences.saturating_mul(context.next_multiple_of(PAGE));
        let tokens = tokens.min(context.max(32_768));
        Options {
            sequences,
            tokens,
            chunk: 512,
            queue: 64,
            products: DType::F32,
            exact: false,
            kv: KvType::F32,
            lookup: 8,
            draft: None,
            adapters: Vec::new(),
        }
    }
}

/// What to generate.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// The prompt.
    pub prompt: Vec<u32>,
    /// Most tokens of the answer; `None` for as many as the context holds.
    pub max_tokens: Option<usize>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Strings that end the answer and aren't part of it.
    pub stop: Vec<String>,
    /// Tokens that end the answer and aren't part of it.
    pub stop_ids: Vec<u32>,
    /// What the answer may be.
    pub constraint: Option<Box<dyn Constraint>>,
    /// Report log-probabilities of the prompt's tokens, each with this many likeliest ones. Then all of the prompt is computed,
    /// and the answer may be of no tokens.
    pub prompt_logprobs: Option<usize>,
    /// Answer with [`Event::Embedding`] in place of tokens; how to choose and to end them says nothing then.
    pub embedding: bool,
    /// Which of [`Options::adapters`], counted from 1; 0 is the model alone.
    pub adapter: usize,
    /// Whose it is. Owners take turns, and what is remembered of one serves no other, so that the time of an answer
    /// tells nobody what others have asked.
    pub owner: u64,
    /// Higher ones come first.
    pub priority: i32,
}

/// What happens to a request: tokens, then one `Done` or `Error`.
#[derive(Debug)]
pub enum Event {
    /// Log-probabilities of the prompt's tokens from its second one on, if asked for.
    Prompt(Vec<Logprobs>),
    /// The mean over the prompt's tokens of what the last layer made of them, after its norm, of length 1. It is the end, too.
    Embedding(Vec<f32>),
    /// A token of the answer.
    Token(Token),
    /// The end.
    Done(Done),
    /// It can't go on.
    Error(GenerateError),
}

/// A token of the answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// The text that became certain with it; the text of a token may come with a later one, or
    /// with the end. Special tokens have none of their own.
    pub text: String,
    /// Log-probabilities, if asked for.
    pub logprobs: Option<Logprobs>,
}

/// The end of an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Done {
    /// The last of the text.
    pub text: String,
    /// Why it ended.
    pub reason: Reason,
    /// What it cost.
    pub usage: Usage,
}

/// Why an answer ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// One of the stop tokens came.
    StopToken(u32),
    /// One of the stop strings came.
    StopString(String),
    /// There are as many tokens as were asked for, or as the context holds.
    Length,
}

/// What an answer cost, in tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Those of them that had been computed before.
    pub remembered: usize,
    /// Tokens generated, with a stop token.
    pub generated: usize,
    /// Those of them that had been guessed, so that they took no step of their own.
    pub guessed: usize,
}

/// A whole answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Completion {
    /// Its tokens, without a stop token. After a stop string, they go up to its last token.
    pub tokens: Vec<u32>,
    /// Its text, without special tokens and without the stop string.
    pub text: String,
    /// Log-probabilities of the tokens, if asked for.
    pub logprobs: Vec<Logprobs>,
    /// Why it ended.
    pub reason: Reason,
    /// What it cost.
    pub usage: Usage,
}

/// A request on its way to the engine.
struct Job {
    request: Request,
    max_tokens: usize,
    events: SyncSender<Event>,
    cancelled: Arc<AtomicBool>,
}

/// A running generator. Threads may share it by reference; dropping it ends what is running.
pub struct Generator {
    jobs: Option<SyncSender<Job>>,
    engine: Option<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    context: usize,
    vocab: usize,
    room: usize,
    adapters: usize,
}

impl Generator {
    /// Starts an engine for a model.
    ///
    /// # Errors
    /// If there is no memory for [`Options::tokens`], no thread, or a draft of another vocabulary.
    pub fn start(
        model: Arc<Transformer>,
        tokenizer: Arc<Tokenizer>,
        cpu: Arc<Cpu>,
        options: Options,
    ) -> Result<Self, GenerateError> {
        let config = model.config();
        let (context, vocab) = (config.max_position_embeddings, config.vocab_size);
        let pages = model.pages(options.kv, options.tokens.div_ceil(PAGE))?;
        let room = pages.total_pages() * PAGE;
        for (i, adapter) in options.adapters.iter().enumerate() {
            if *adapter.config() != *config {
                return Err(GenerateError::OtherAdapter(i + 1));
            }
        }
        let adapters = options.adapters.len();
        let draft = match options.draft.clone() {
            Some(draft) if draft.config().vocab_size != vocab => {
                let draft = draft.config().vocab_size;
                return Err(GenerateError::OtherVocabulary { draft, model: vocab });
            }
            Some(draft) => Some(Draft::new(draft, cpu.clone(), &options)?),
            None => None,
        };
        let (jobs, queue) = sync_channel(options.queue);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let engine = std::thread::Builder::new().name("generator".into()).spawn(move || {
            Engine::new(model, tokenizer, cpu, options, pages, draft, queue, stopped).run();
        })?;
        Ok(Generator {
            jobs: Some(jobs),
            engine: Some(engine),
            stop,
            context,
            vocab,
            room,
            adapters,
        })
    }

    /// Tokens that the model knows.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// Submits a request; waits if the queue is full.
    ///
    /// # Errors
    /// If the request makes no sense or can never fit.
    pub fn submit(&self, request: Request) -> Result<Events, GenerateError> {
        let prompt = request.prompt.len();
        if prompt == 0 {
            return Err(GenerateError::EmptyPrompt);
        }
        if let Some(&id) = request.prompt.iter().find(|id| **id as usize >= self.vocab) {
            return Err(GenerateError::UnknownToken(id));
        }
        let most = request.max_tokens.unwrap_or(self.context.saturating_sub(prompt).max(1));
        let max_tokens = if request.embedding { 0 } else { most };
        if max_tokens == 0 && request.prompt_logprobs.is_none() && !request.embedding {
            return Err(GenerateError::NoTokens);
        }
        let needed = prompt.saturating_add(max_tokens);
        if needed > self.context {
            return Err(GenerateError::TooLong { prompt, max_tokens, context: self.context });
        }
        if needed > self.room {
            return Err(GenerateError::NoRoom { needed, room: self.room });
        }
        if request.stop.iter().any(String::is_empty) {
            return Err(GenerateError::EmptyStop);
        }
        if request.adapter > self.adapters {
            return Err(GenerateError::UnknownAdapter(request.adapter));
        }
        request.sampling.check(self.vocab)?;
        // Room for all events, so that nobody who reads slowly holds up the engine.
        let (sender, receiver) = sync_channel(max_tokens + 2);
        let cancelled = Arc::new(AtomicBool::new(false));
        let job = Job { request, max_tokens, events: sender, cancelled: cancelled.clone() };
        let jobs = self.jobs.as_ref().ok_or(GenerateError::Stopped)?;
        jobs.send(job).map_err(|_| GenerateError::Stopped)?;
        Ok(Events { receiver, cancelled, ended: false })
    }

    /// Answers all requests, in their order.
    ///
    /// # Errors
    /// The first that there is.
    pub fn complete(
        &self,
        requests: impl IntoIterator<Item = Request>,
    ) -> Result<Vec<Completion>, GenerateError> {
        let events: Vec<Events> =
            requests.into_iter().map(|request| self.submit(request)).collect::<Result<_, _>>()?;
        events.into_iter().map(Events::wait).collect()
    }
}

impl Drop for Generator {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.jobs = None;
        if let Some(engine) = self.engine.take() {
            let _ = engine.join(); // a panic has shown itself already
        }
    }
}

/// The events of one request. Dropping it cancels the request.
#[derive(Debug)]
pub struct Events {
    receiver: Receiver<Event>,
    cancelled: Arc<AtomicBool>,
    ended: bool,
}

impl Events {
    /// Waits for the whole answer.
    ///
    /// # Errors
    /// Why there is none.
    pub fn wait(self) -> Result<Completion, GenerateError> {
        self.watch(&mut |_, _| ControlFlow::Continue(()))
    }

    /// Waits for the whole answer; `watch` sees each token's id (none with the last text) and the
    /// text that comes with it, and can cancel.
    ///
    /// # Errors
    /// Why there is none; [`GenerateError::Cancelled`].
    pub fn watch(
        self,
        watch: &mut dyn FnMut(Option<u32>, &str) -> ControlFlow<()>,
    ) -> Result<Completion, GenerateError> {
        let (mut tokens, mut text, mut logprobs) = (Vec::new(), String::new(), Vec::new());
        for event in self {
            match event {
                Event::Prompt(_) | Event::Embedding(_) => {}
                Event::Token(token) => {
                    if watch(Some(token.id), &token.text).is_break() {
                        return Err(GenerateError::Cancelled);
                    }
                    tokens.push(token.id);
                    text.push_str(&token.text);
                    logprobs.extend(token.logprobs);
                }
                Event::Done(Done { text: rest, reason, usage }) => {
                    let _ = watch(None, &rest); // too late to cancel
                    text.push_str(&rest);
                    return Ok(Completion { tokens, text, logprobs, reason, usage });
                }
                Event::Error(error) => return Err(error),
            }
        }
        Err(GenerateError::Stopped)
    }
}

impl Iterator for Events {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        if self.ended {
            return None;
        }
        let event = self.receiver.recv().unwrap_or(Event::Error(GenerateError::Stopped));
        self.ended = !matches!(event, Event::Token(_) | Event::Prompt(_));
        Some(event)
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
