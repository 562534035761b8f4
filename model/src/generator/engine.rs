//! The engine: one thread, one step after the other.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError};
use std::sync::{Arc, Mutex};

use compute::Cpu;
use compute::kv::{KvPages, KvSequence};
use compute::tape::Workspace;

use super::draft::{Ask, Draft, Drafted};
use super::lookup;
use super::pace::Pace;
use super::prefix::{self, Prefixes, Salt};
use super::queue::Queue;
use super::stop::StopStream;
use super::{Done, Event, GenerateError, Job, Options, Reason, Token, Usage};
use crate::sampler::{self, Logprobs, Sampler, SamplingError};
use crate::tokenizer::{DecodeStream, Tokenizer};
use crate::transformer::{Step, Transformer};

/// Most tokens of a step of a prompt whose log-probabilities are wanted: each has a row of logits.
const TOLD: usize = 64;

/// What the thread owns.
pub(super) struct Engine {
    /// The model, and the same with each adapter.
    models: Vec<(Arc<Transformer>, Workspace)>,
    tokenizer: Arc<Tokenizer>,
    options: Options,
    pages: KvPages,
    prefixes: Prefixes,
    draft: Option<Draft>,
    jobs: Receiver<Job>,
    waiting: Queue,
    running: Vec<Sequence>,
    stop: Arc<AtomicBool>,
}

/// A request that is being answered.
struct Sequence {
    /// Prompt and answer; the first `kv.len` are computed.
    tokens: Vec<u32>,
    adapter: usize,
    owner: u64,
    kv: KvSequence,
    /// Tokens of the prompt.
    prompt: usize,
    remembered: usize,
    max_tokens: usize,
    stop_ids: Vec<u32>,
    sampler: Sampler,
    /// Likeliest tokens to tell of beside the prompt's, and what is known of them.
    told: Option<(usize, Vec<Logprobs>)>,
    /// The sum of what the last layer made of the tokens so far, if their embedding is wanted.
    sum: Option<Vec<f64>>,
    decode: DecodeStream,
    text: StopStream,
    events: SyncSender<Event>,
    cancelled: Arc<AtomicBool>,
    /// Of guesses from the text so far.
    pace: Pace,
    drafted: Option<Drafted>,
    /// Tokens of the current step; the last `guesses` of them, and of `tokens`, are guesses.
    next: usize,
    guesses: usize,
    /// Whether the draft made them.
    by_draft: bool,
    /// Tokens of the answer that took no step of their own.
    guessed: usize,
    ended: bool,
}

impl Engine {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn new(
        model: Arc<Transformer>,
        tokenizer: Arc<Tokenizer>,
        cpu: Arc<Cpu>,
        options: Options,
        pages: KvPages,
        draft: Option<Draft>,
        jobs: Receiver<Job>,
        stop: Arc<AtomicBool>,
    ) -> Self {
        let with_workspace = |model: Arc<Transformer>| {
            let mut workspace = Workspace::new(cpu.clone(), options.products);
            workspace.set_exact(options.exact);
            (model, workspace)
        };
        let models = std::iter::once(model).chain(options.adapters.iter().cloned());
        Engine {
            models: models.map(with_workspace).collect(),
            tokenizer,
            options,
            pages,
            prefixes: Prefixes::default(),
            draft,
            jobs,
            waiting: Queue::default(),
            running: Vec::new(),
            stop,
        }
    }

    /// Until nobody can submit any more and all is answered, or until told to stop.
    pub(super) fn run(mut self) {
        while self.admit() && !self.stop.load(Ordering::Relaxed) {
            if let Err(error) = compute::tape::caught(|| self.step()) {
                let told = || Event::Error(GenerateError::Card(error.to_string()));
                return self.running.iter_mut().for_each(|s| s.end(told()));
            }
        }
    }

    /// Takes in what there is room for, and waits for something to do. `false` at the end.
    fn admit(&mut self) -> bool {
        let mut over = false;
        while self.waiting.len() < self.options.queue.max(1) {
            let idle = self.running.is_empty() && self.waiting.len() == 0;
            let job = match idle {
                true => self.jobs.recv().map_err(|_| TryRecvError::Disconnected),
                false => self.jobs.try_recv(),
            };
            match job {
                Ok(job) => self.waiting.push(job),
                Err(error) => {
                    over = idle && error == TryRecvError::Disconnected;
                    break;
                }
            }
        }
        self.waiting.retain(|job| !job.cancelled.load(Ordering::Relaxed));
        while self.running.len() < self.options.sequences.max(1) {
            let Some(job) = self.waiting.next() else { break };
            let capacity = job.request.prompt.len() + job.max_tokens;
            let salt = Salt { owner: job.request.owner, adapter: job.request.adapter };
            let wanted = job.request.prompt_logprobs.is_none() && !job.request.embedding;
            let prompt = if wanted { &job.request.prompt[..] } else { &[] };
            let running = self.running.iter().filter(|s| s.salt() == salt);
            let running =
                running.map(|s| prefix::Running { tokens: &s.tokens[..s.prompt], kv: &s.kv });
            // A job that fits into all pages fits once the running ones have ended.
            let opened = self.prefixes.open(&mut self.pages, salt, prompt, capacity, running);
            let Some(kv) = opened else { break };
            let Some(job) = self.waiting.pop() else { break };
            self.waiting.count(salt.owner, job.request.prompt.len() - kv.len);
            let drafted = self.draft.as_mut().and_then(|draft| draft.open(capacity));
            self.running.push(Sequence::new(job, kv, self.options.lookup, drafted));
        }
        !over
    }

    /// A forward pass with each adapter that is used: a token, and guesses of the next ones, for each sequence
    /// that is being answered, and a chunk of prompts.
    fn step(&mut self) {
        for sequence in &mut self.running {
            sequence.ended |= sequence.cancelled.load(Ordering::Relaxed);
        }
        self.retire();
        let mut chunk = self.options.chunk.max(1);
        for sequence in &mut self.running {
            let left = sequence.tokens.len() - sequence.kv.len;
            if left == 1 && sequence.told.is_none() && sequence.sum.is_none() {
                sequence.guess();
            } else {
                let most = if sequence.told.is_some() { TOLD } else { left };
                sequence.next = left.min(chunk).min(most);
                chunk -= sequence.next;
            }
        }
        self.draft();
        for adapter in 0..self.models.len() {
            self.forward(adapter);
            self.embed(adapter);
        }
        self.retire();
    }

    /// The pass of the sequences of one adapter.
    fn forward(&mut self, adapter: usize) {
        let (model, workspace) = &mut self.models[adapter];
        let mut steps: Vec<Step<'_>> = (self.running.iter_mut())
            .filter(|s| s.next > 0 && s.adapter == adapter && s.sum.is_none())
            .map(|s| Step {
                logits: s.logits(),
                tokens: &s.tokens[s.kv.len..][..s.next],
                kv: &mut s.kv,
            })
            .collect();
        if steps.is_empty() {
            return;
        }
        let wanted: Vec<usize> = steps.iter().map(|s| s.logits).collect();
        let mut logits = model.forward_cached(workspace, &mut self.pages, &mut steps);
        let vocab = model.config().vocab_size;
        let mut rest = &mut logits[..];
        let sequences = (self.running.iter_mut())
            .filter(|s| s.next > 0 && s.adapter == adapter && s.sum.is_none());
        let sequences: Vec<Mutex<(&mut Sequence, &mut [f32], usize)>> = (sequences.zip(wanted))
            .map(|(sequence, wanted)| {
                let own;
                (own, rest) = std::mem::take(&mut rest).split_at_mut(wanted * vocab);
                let before = sequence.tokens.len() - sequence.guesses;
                Mutex::new((sequence, own, before))
            })
            .collect();
        // Each chooses by its own logits, so they do it side by side.
        workspace.cpu().pool.run(sequences.len(), |i| {
            let mut own = sequences[i].lock().unwrap_or_else(|e| e.into_inner());
            let (sequence, logits, _) = &mut *own;
            let mut logits = logits.chunks_exact_mut(vocab);
            sequence.tell(&mut logits);
            if sequence.kv.len == sequence.tokens.len() {
                sequence.check(logits, &self.tokenizer); // rows after a wrong guess are left
            }
        });
        for sequence in sequences {
            let (sequence, _, before) = sequence.into_inner().unwrap_or_else(|e| e.into_inner());
            self.waiting.count(sequence.owner, 2 * (sequence.tokens.len() - before));
        }
    }

    /// Passes of the sequences of one adapter whose embeddings are wanted. Rows are added one by one in their order:
    /// chunks change nothing.
    fn embed(&mut self, adapter: usize) {
        let (model, workspace) = &mut self.models[adapter];
        for sequence in self.running.iter_mut().filter(|s| s.next > 0 && s.adapter == adapter) {
            let Some(sum) = &mut sequence.sum else { continue };
            let (kv, next) = (&mut sequence.kv, sequence.next);
            let tokens = &sequence.tokens[kv.len..][..next];
            let mut steps = [Step { tokens, logits: 0, kv }];
            let rows = model.hidden_cached(workspace, &mut self.pages, &mut steps);
            for row in rows.chunks_exact(model.config().hidden_size) {
                sum.resize(row.len(), 0.0);
                sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
            }
            self.waiting.count(sequence.owner, next);
            if sequence.kv.len == sequence.tokens.len() {
                let length = sum.iter().map(|x| x * x).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
                let embedding: Vec<f32> = sum.iter().map(|x| (x / length) as f32).collect();
                sequence.end(match length.is_finite() {
                    true => Event::Embedding(embedding),
                    false => Event::Error(SamplingError::NotANumber.into()),
                });
            }
        }
    }

    /// Lets the draft guess where the text so far says nothing.
    fn draft(&mut self) {
        let Some(draft) = &mut self.draft else { return };
        let mut asks = Vec::new();
        for sequence in &mut self.running {
            let computed = sequence.tokens.len() - sequence.kv.len == 1;
            sequence.by_draft = computed && sequence.guesses == 0;
            let room = sequence.room();
            if let Some(drafted) = sequence.drafted.as_mut().filter(|_| sequence.by_draft) {
                let wanted = drafted.pace.next().min(room);
                asks.push(Ask { drafted, tokens: &mut sequence.tokens, wanted });
            }
        }
        draft.guess(asks);
        for sequence in self.running.iter_mut().filter(|s| s.by_draft) {
            sequence.next = sequence.tokens.len() - sequence.kv.len;
            sequence.guesses = sequence.next - 1;
        }
    }

    /// Takes out what has ended, and remembers its keys and values.
    fn retire(&mut self) {
        let mut i = 0;
        while i < self.running.len() {
            if self.running[i].ended {
                let sequence = self.running.remove(i);
                let salt = sequence.salt();
                self.waiting.ended(salt.owner);
                let Sequence { tokens, kv, drafted, .. } = sequence;
                if let (Some(draft), Some(drafted)) = (&mut self.draft, drafted) {
                    draft.close(&drafted);
                }
                if kv.len == 0 {
                    prefix::release(&mut self.pages, &kv);
                } else {
                    self.prefixes.keep(&mut self.pages, salt, tokens, kv);
                }
            } else {
                i += 1;
            }
        }
    }
}

impl Sequence {
    fn new(job: Job, kv: KvSequence, lookup: usize, drafted: Option<Drafted>) -> Self {
        let Job { request, max_tokens, events, cancelled } = job;
        Sequence {
            prompt: request.prompt.len(),
            remembered: kv.len,
            sampler: Sampler::new(request.sampling, &request.prompt, request.constraint),
            adapter: request.adapter,
            owner: request.owner,
            told: request.prompt_logprobs.filter(|_| !request.embedding).map(|n| (n, Vec::new())),
            sum: request.embedding.then(Vec::new),
            tokens: request.prompt,
            kv,
            max_tokens,
            stop_ids: request.stop_ids,
            decode: DecodeStream::new(),
            text: StopStream::new(request.stop),
            events,
            cancelled,
            pace: Pace::new(lookup),
            drafted,
            next: 0,
            guesses: 0,
            by_draft: false,
            guessed: 0,
            ended: false,
        }
    }

    fn salt(&self) -> Salt {
        Salt { owner: self.owner, adapter: self.adapter }
    }

    /// Rows of logits that its next tokens have.
    fn logits(&self) -> usize {
        match &self.told {
            Some(_) => self.next,
            None if self.kv.len + self.next == self.tokens.len() => 1 + self.guesses,
            None => 0,
        }
    }

    /// Takes note of what the model thought of the prompt's tokens, as far as it is computed. The logits behind its
    /// last token are left.
    fn tell<'a>(&mut self, logits: &mut impl Iterator<Item = &'a mut [f32]>) {
        let Some((n, all)) = &mut self.told else { return };
        let computed = self.kv.len.min(self.prompt - 1);
        for &id in &self.tokens[all.len() + 1..=computed] {
            let Some(logits) = logits.next() else { return };
            all.push(sampler::logprobs(logits, id, *n));
        }
        if self.kv.len >= self.prompt {
            let all = std::mem::take(all);
            self.told = None;
            let _ = self.events.try_send(Event::Prompt(all)); // there is room for it
        }
    }

    /// Guesses that could be of use: the last token of an answer isn't computed.
    fn room(&self) -> usize {
        (self.prompt + self.max_tokens).saturating_sub(self.tokens.len() + 1)
    }

    /// Puts guesses from the text so far behind the newest token.
    fn guess(&mut self) {
        let guesses = lookup::guess(&self.tokens, self.pace.next().min(self.room()));
        self.guesses = guesses.len();
        self.next = 1 + self.guesses;
        self.tokens.extend(guesses);
    }

    /// Chooses tokens by the logits that follow the newest token and each guess, as long as guesses
    /// are right.
    fn check<'a>(&mut self, logits: impl Iterator<Item = &'a mut [f32]>, tokenizer: &Tokenizer) {
        let known = self.tokens.len() - self.guesses;
        let guesses = self.tokens.split_off(known);
        let mut right = 0;
        for (i, logits) in logits.enumerate() {
            self.guessed += usize::from(i > 0);
            self.advance(logits, tokenizer);
            if self.tokens.get(known + i) != guesses.get(i) {
                break;
            }
            right = (i + 1).min(guesses.len());
            if self.ended {
                break;
            }
        }
        let drafted = self.drafted.as_mut();
        match drafted.filter(|_| self.by_draft) {
            Some(drafted) => drafted.pace.learn(guesses.len(), right),
            None => self.pace.learn(guesses.len(), right),
        }
        if let Some(drafted) = &mut self.drafted {
            drafted.keep(known + right);
        }
        self.guesses = 0;
        // What was computed of wrong guesses is written over.
        self.kv.len = known + right;
    }

    /// Chooses the next token by `logits` `[vocab]` and tells of it.
    fn advance(&mut self, logits: &mut [f32], tokenizer: &Tokenizer) {
        if self.max_tokens == 0 {
            return self.done(String::new(), Reason::Length, 0);
        }
        let sampled = match self.sampler.sample(logits, self.tokens.len()) {
            Ok(sampled) => sampled,
            Err(error) => return self.end(Event::Error(GenerateError::Sampling(error))),
        };
        if self.stop_ids.contains(&sampled.id) {
            let text = self.rest();
            return self.done(text, Reason::StopToken(sampled.id), 1);
        }
        self.tokens.push(sampled.id);
        let (text, stop) = if tokenizer.is_special(sampled.id) {
            (self.rest(), None) // nothing goes on over a special token
        } else {
            let whole = self.decode.push(tokenizer, sampled.id);
            self.text.push(&whole)
        };
        let event = Event::Token(Token { id: sampled.id, text, logprobs: sampled.logprobs });
        if self.events.try_send(event).is_err() {
            self.ended = true; // nobody listens any more
        } else if let Some(stop) = stop {
            self.done(String::new(), Reason::StopString(stop), 0);
        } else if self.tokens.len() - self.prompt == self.max_tokens {
            let text = self.rest();
            self.done(text, Reason::Length, 0);
        }
    }

    /// All text that was held back. A stop string isn't among it: whole ones are found at once.
    fn rest(&mut self) -> String {
        let (mut text, stop) = self.text.push(&self.decode.finish());
        if stop.is_none() {
            text += &self.text.finish();
        }
        text
    }

    fn done(&mut self, text: String, reason: Reason, unseen: usize) {
        let (prompt, remembered) = (self.prompt, self.remembered);
        let generated = self.tokens.len() - prompt + unseen;
        let usage = Usage { prompt, remembered, generated, guessed: self.guessed };
        self.end(Event::Done(Done { text, reason, usage }));
    }

    fn end(&mut self, event: Event) {
        let _ = self.events.try_send(event); // there is room for it, unless nobody listens
        self.ended = true;
    }
}
