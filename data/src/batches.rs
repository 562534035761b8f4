//! From shards to batches: an endless stream that mixes several sets of documents by weight,
//! shuffles each epoch from a seed, and packs whole documents into batches. What comes next is a
//! function of the seed and a small [`LoaderState`], so a run that goes on gets what it would have
//! got.

use std::ops::Range;
use std::sync::Arc;

use compute::rng::Rng;
use compute::{IGNORE, Span};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::shards::Shards;

/// Rows of text for a model: `targets[i]` is what follows `tokens[i]`, or [`IGNORE`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Token ids, `[rows]`.
    pub tokens: Vec<u32>,
    /// `[rows]`
    pub targets: Vec<u32>,
    /// Sequences, in order, covering all rows.
    pub spans: Vec<Span>,
}

/// Which tokens count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LossOn {
    /// All of them.
    All,
    /// Those that the shard marks: what an assistant says.
    Learned,
}

/// A set of shards in a mixture.
#[derive(Clone, Debug)]
pub struct Part {
    /// The documents.
    pub shards: Arc<Shards>,
    /// Its share of the rows, in proportion to the other weights.
    pub weight: f64,
    /// Which of its tokens are targets.
    pub loss: LossOn,
}

/// Why batches can't be made.
#[derive(Debug, Error, PartialEq)]
pub enum LoaderError {
    /// Nothing to draw from, or a weight that is no weight.
    #[error("a mixture needs a positive weight; these are {0:?}")]
    Weights(Vec<f64>),
    /// No room for even one row.
    #[error("the context is 0 tokens long")]
    Context,
    /// The state is not one of this mixture.
    #[error("the position in the data was saved for other data: {0}")]
    State(String),
}

/// Where a loader is in its data: saved with checkpoints.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LoaderState {
    /// One a part.
    pub parts: Vec<PartState>,
    /// Pieces that were drawn and wait for a batch that they fit into.
    pub ahead: Vec<Piece>,
}

/// Where a loader is in one part.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PartState {
    /// Times that all of it was drawn.
    pub epoch: u64,
    /// Windows drawn in this epoch.
    pub cursor: u64,
    /// Rows drawn since weights were last set.
    pub rows: u64,
    /// Windows that held nothing to learn and were passed over.
    pub skipped: u64,
}

/// Rows of one document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// Which part.
    pub part: usize,
    /// Which document.
    pub document: u64,
    /// First row.
    pub start: usize,
    /// The row after the last one.
    pub end: usize,
}

impl Piece {
    fn rows(&self) -> usize {
        self.end - self.start
    }
}

/// Pieces that the loader chooses from to fill a batch. With 64 of them, batches of documents
/// that are short against the batch come out more than 98 % full.
const AHEAD: usize = 64;

/// An endless stream of batches.
pub struct Loader {
    parts: Vec<(Part, Windows)>,
    seed: u64,
    state: LoaderState,
}

impl Loader {
    /// A loader at its start. Documents of more than `context` rows are cut into windows of that
    /// length, at other places in each epoch.
    ///
    /// # Errors
    /// [`LoaderError::Weights`], [`LoaderError::Context`].
    pub fn new(parts: Vec<Part>, context: usize, seed: u64) -> Result<Loader, LoaderError> {
        if context == 0 {
            return Err(LoaderError::Context);
        }
        check_weights(&parts.iter().map(|p| p.weight).collect::<Vec<_>>())?;
        let states = vec![PartState::default(); parts.len()];
        let windows = |p: Part| {
            let windows = Windows::new(&p.shards, context);
            (p, windows)
        };
        let parts = parts.into_iter().map(windows).collect();
        Ok(Loader { parts, seed, state: LoaderState { parts: states, ahead: Vec::new() } })
    }

    /// Where it is.
    pub fn state(&self) -> &LoaderState {
        &self.state
    }

    /// The folder of each part's shards, and how often it went through them so far.
    pub fn passes(&self) -> Vec<(String, f64)> {
        let part = |(i, (state, (part, windows))): (usize, (&PartState, &(Part, Windows)))| {
            let name = part.shards.folder().file_name().unwrap_or_default();
            let count = windows.count().max(1) as f64;
            // Those that wait have been drawn, not gone through.
            let wait = self.state.ahead.iter().filter(|p| p.part == i).count();
            let passes = state.epoch as f64 + (state.cursor as f64 - wait as f64) / count;
            (name.to_string_lossy().into_owned(), passes)
        };
        self.state.parts.iter().zip(&self.parts).enumerate().map(part).collect()
    }

    /// Goes to where another loader of the same parts, context and seed was.
    ///
    /// # Errors
    /// [`LoaderError::State`] if it can't be a state of these parts.
    pub fn restore(&mut self, state: LoaderState) -> Result<(), LoaderError> {
        let fail = |why: String| Err(LoaderError::State(why));
        if state.parts.len() != self.parts.len() {
            return fail(format!("{} parts, not {}", state.parts.len(), self.parts.len()));
        }
        for (i, (s, (_, w))) in state.parts.iter().zip(&self.parts).enumerate() {
            if s.cursor > w.count() {
                return fail(format!("window {} of {} in part {i}", s.cursor, w.count()));
            }
        }
        for p in &state.ahead {
            let rows = self.parts.get(p.part).and_then(|(part, _)| {
                (p.document < part.shards.totals().documents)
                    .then(|| part.shards.document_tokens(p.document) - 1)
            });
            if !(p.start < p.end && rows.is_some_and(|rows| p.end <= rows)) {
                return fail(format!("there is no such piece: {p:?}"));
            }
        }
        self.state = state;
        Ok(())
    }

    /// Sets other weights; shares of rows count from here.
    ///
    /// # Errors
    /// [`LoaderError::Weights`] if they aren't one a part, or not weights.
    pub fn set_weights(&mut self, weights: &[f64]) -> Result<(), LoaderError> {
        check_weights(weights)?;
        if weights.len() != self.parts.len() {
            return Err(LoaderError::Weights(weights.to_vec()));
        }
        for (((part, _), state), weight) in
            self.parts.iter_mut().zip(&mut self.state.parts).zip(weights)
        {
            part.weight = *weight;
            state.rows = 0;
        }
        Ok(())
    }

    /// The next batch: at least one row, at most `rows`. Whole pieces, the oldest first; then the
    /// oldest that still fits.
    ///
    /// # Panics
    /// If `rows` is less than the context.
    pub fn next(&mut self, rows: usize) -> Batch {
        let mut batch = Batch::default();
        loop {
            while self.state.ahead.len() < AHEAD {
                let piece = self.draw();
                self.state.ahead.push(piece);
            }
            let left = rows - batch.tokens.len();
            let Some(i) = self.state.ahead.iter().position(|p| p.rows() <= left) else { break };
            let piece = self.state.ahead.remove(i);
            let part = &self.parts[piece.part].0;
            batch.push(&part.shards, piece.document, piece.start..piece.end, part.loss);
        }
        assert!(!batch.tokens.is_empty(), "a batch of {rows} rows is shorter than the context");
        batch
    }

    /// The next piece: of the part that is most behind its share.
    fn draw(&mut self) -> Piece {
        loop {
            let total: u64 = self.state.parts.iter().map(|s| s.rows).sum();
            let weights: f64 = self.parts.iter().map(|(p, _)| p.weight).sum();
            let behind = |i: usize| {
                let share = self.parts[i].0.weight / weights;
                // A part without weight is never drawn.
                if share == 0.0 {
                    f64::NEG_INFINITY
                } else {
                    share * (total + 1) as f64 - self.state.parts[i].rows as f64
                }
            };
            let first_most = |best, i| if behind(i) > behind(best) { i } else { best };
            let i = (0..self.parts.len()).fold(0, first_most);
            let (part, windows) = &self.parts[i];
            let state = &mut self.state.parts[i];
            if state.cursor == windows.count() {
                (state.epoch, state.cursor) = (state.epoch + 1, 0);
            }
            let rng = Rng::new(self.seed).stream("epoch").numbered(i as u64).numbered(state.epoch);
            let index = permute(state.cursor, windows.count(), &rng);
            state.cursor += 1;
            let Some((document, rows)) = windows.at(index, &part.shards, &rng) else { continue };
            // A window without a target would train nothing.
            let learned = || part.shards.read(document, rows.start + 1..rows.end + 1);
            if part.loss == LossOn::Learned && !learned().any(|(_, learn)| learn) {
                state.skipped += 1;
                continue;
            }
            state.rows += rows.len() as u64;
            return Piece { part: i, document, start: rows.start, end: rows.end };
        }
    }
}

/// All documents once, in order, in windows of `context` rows and batches of at most `rows`: for
/// measuring on held-out text, where every target is to be counted once.
pub fn once(shards: &Shards, context: usize, rows: usize, loss: LossOn) -> Vec<Batch> {
    let context = context.min(rows).max(1);
    let mut batches = vec![Batch::default()];
    for document in 0..shards.totals().documents {
        let end = shards.document_tokens(document) - 1;
        for start in (0..end).step_by(context) {
            let window = start..end.min(start + context);
            if batches.last().is_some_and(|b| b.tokens.len() + window.len() > rows) {
                batches.push(Batch::default());
            }
            if let Some(batch) = batches.last_mut() {
                batch.push(shards, document, window, loss);
            }
        }
    }
    batches
}

impl Batch {
    /// Adds rows of a document as a span of their own.
    fn push(&mut self, shards: &Shards, document: u64, rows: Range<usize>, loss: LossOn) {
        self.spans.push(Span { start: self.tokens.len(), len: rows.len() });
        // Row i reads token i and is to say token i + 1.
        for (i, (id, learn)) in shards.read(document, rows.start..rows.end + 1).enumerate() {
            if i < rows.len() {
                self.tokens.push(id);
            }
            if i > 0 {
                self.targets.push(if learn || loss == LossOn::All { id } else { IGNORE });
            }
        }
    }
}

fn check_weights(weights: &[f64]) -> Result<(), LoaderError> {
    let good = weights.iter().all(|w| w.is_finite() && *w >= 0.0);
    if good && weights.iter().sum::<f64>() > 0.0 {
        return Ok(());
    }
    Err(LoaderError::Weights(weights.to_vec()))
}

/// The windows of a set's documents, numbered: first one of each document, then what long
/// documents have more.
#[derive(Debug)]
struct Windows {
    context: usize,
    documents: u64,
    /// Documents longer than the context, each with the number of its first further window.
    long: Vec<(u64, u64)>,
    further: u64,
}

impl Windows {
    fn new(shards: &Shards, context: usize) -> Windows {
        let documents = shards.totals().documents;
        let (mut long, mut further) = (Vec::new(), 0);
        for document in 0..documents {
            let rows = shards.document_tokens(document) - 1;
            if rows > context {
                long.push((document, further));
                further += rows.div_ceil(context) as u64;
            }
        }
        Windows { context, documents, long, further }
    }

    fn count(&self) -> u64 {
        self.documents + self.further
    }

    /// Document and rows of a window. The windows of a long document are moved to the left by a
    /// random number of rows, so that the first is shorter, and the last may hold nothing.
    fn at(&self, index: u64, shards: &Shards, epoch: &Rng) -> Option<(u64, Range<usize>)> {
        let (document, window) = if index < self.documents {
            (index, 0)
        } else {
            let further = index - self.documents;
            let i = self.long.partition_point(|(_, first)| *first <= further) - 1;
            (self.long[i].0, 1 + (further - self.long[i].1) as usize)
        };
        let rows = shards.document_tokens(document) - 1;
        if rows <= self.context {
            return Some((document, 0..rows));
        }
        let shift = epoch.stream("shift").numbered(document).index(self.context);
        let start = (window * self.context).saturating_sub(shift);
        let end = ((window + 1) * self.context - shift).min(rows);
        (start < end).then_some((document, start..end))
    }
}

/// A pseudorandom permutation of `0..n`: a Feistel network over the next power of four, walked
/// until it is back in range (Black and Rogaway 2002). Needs no memory, whatever n.
fn permute(index: u64, n: u64, rng: &Rng) -> u64 {
    let bits = (u64::BITS - (n - 1).leading_zeros()).max(2).div_ceil(2);
    let mask = (1 << bits) - 1;
    let mut x = index;
    loop {
        let (mut left, mut right) = (x >> bits, x & mask);
        for round in 0..6 {
            let f = rng.numbered(round << 32 | right).next_u64() & mask;
            (left, right) = (right, left ^ f);
        }
        x = left << bits | right;
        if x < n {
            return x;
        }
    }
}

#[cfg(test)]
#[path = "batches/tests.rs"]
mod tests;
