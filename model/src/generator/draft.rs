//! Guesses by a smaller model with the same vocabulary (speculative decoding, Leviathan et al. 2023):
//! its likeliest tokens, computed for all sequences together. A guess is kept only if it is the token
//! that is chosen anyway, so that the draft decides how fast an answer comes and nothing else.

use std::sync::Arc;

use compute::kv::{KvError, KvPages, KvSequence, PAGE};
use compute::tape::Workspace;

use super::pace::Pace;
use super::{Options, prefix};
use crate::transformer::{Step, Transformer};

/// Most guesses of a step.
const MOST: usize = 8;

/// A model that guesses, with keys and values of its own.
pub(super) struct Draft {
    model: Arc<Transformer>,
    workspace: Workspace,
    pages: KvPages,
    /// Most tokens of a step.
    chunk: usize,
}

/// A sequence that wants guesses.
pub(super) struct Ask<'a> {
    pub(super) drafted: &'a mut Drafted,
    pub(super) tokens: &'a mut Vec<u32>,
    pub(super) wanted: usize,
}

/// What it has of a sequence.
pub(super) struct Drafted {
    kv: KvSequence,
    pub(super) pace: Pace,
}

impl Draft {
    /// With memory for as many tokens as `options` has.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub(super) fn new(
        model: Arc<Transformer>,
        cpu: Arc<compute::Cpu>,
        options: &Options,
    ) -> Result<Draft, KvError> {
        let pages = model.pages(options.kv, options.tokens.div_ceil(PAGE))?;
        let workspace = Workspace::new(cpu, options.products);
        Ok(Draft { model, workspace, pages, chunk: options.chunk.max(1) })
    }

    /// Room for a sequence of `capacity` tokens; `None` if there isn't any, or its context is shorter.
    pub(super) fn open(&mut self, capacity: usize) -> Option<Drafted> {
        let wanted = capacity.div_ceil(PAGE);
        let fits = capacity <= self.model.config().max_position_embeddings;
        if !fits || self.pages.free_pages() < wanted {
            return None;
        }
        let pages = (0..wanted).filter_map(|_| self.pages.allocate()).collect();
        Some(Drafted { kv: KvSequence { pages, len: 0 }, pace: Pace::new(MOST) })
    }

    /// Gives the room back.
    pub(super) fn close(&mut self, drafted: &Drafted) {
        prefix::release(&mut self.pages, &drafted.kv);
    }

    /// Puts guesses behind tokens, as many as are wanted of each.
    pub(super) fn guess(&mut self, mut asks: Vec<Ask<'_>>) {
        loop {
            asks.retain(|ask| ask.wanted > 0);
            if asks.is_empty() {
                return;
            }
            // First what it doesn't know yet of prompts and answers, in chunks.
            let mut chunk = self.chunk;
            let mut steps = Vec::with_capacity(asks.len());
            let mut whole = Vec::with_capacity(asks.len());
            for Ask { drafted, tokens, .. } in &mut asks {
                let unknown = &tokens[drafted.kv.len..];
                let next = unknown.len().min(chunk);
                chunk -= next;
                whole.push(next > 0 && next == unknown.len());
                if next > 0 {
                    let logits = usize::from(next == unknown.len());
                    steps.push(Step { tokens: &unknown[..next], logits, kv: &mut drafted.kv });
                }
            }
            let logits =
                self.model.forward_cached(&mut self.workspace, &mut self.pages, &mut steps);
            let rows = logits.chunks_exact(self.model.config().vocab_size);
            let whole = asks.iter_mut().zip(whole).filter_map(|(ask, whole)| whole.then_some(ask));
            for (ask, row) in whole.zip(rows) {
                ask.tokens.push(likeliest(row));
                ask.wanted -= 1;
            }
        }
    }
}

impl Drafted {
    /// What lies behind `len` tokens was guessed wrong.
    pub(super) fn keep(&mut self, len: usize) {
        self.kv.len = self.kv.len.min(len);
    }
}

fn likeliest(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (i, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = i;
        }
    }
    best as u32
}
