//! How well a model predicts a text: nats per token, perplexity, bits per byte.
//!
//! Bits per byte compare models with different tokenizers, and models with compressors: nats of
//! all scored tokens, divided by ln 2 and by the bytes that these tokens stand for.

use std::ops::Range;

use compute::tape::Workspace;
use compute::{IGNORE, Span};
use model::transformer::Transformer;
use serde::{Deserialize, Serialize};

use crate::Error;

/// Rows that go through the model at a time (or one window, where that is longer).
const ROWS: usize = 4096;

/// How a text longer than the context is cut into windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Windows {
    /// Windows of `context` tokens, each `stride` after the one before. A token is scored in the
    /// first window it stands in: there it has the longest context to its left.
    Sliding {
        /// Tokens in a window.
        context: usize,
        /// Tokens from one window's start to the next; fewer than `context`.
        stride: usize,
    },
    /// As `llama-perplexity`: windows side by side, each with the tokenizer's BOS in place of its
    /// first token (if the tokenizer has it), of which the second half is scored; what is left at
    /// the end is not.
    LlamaCpp {
        /// Tokens in a window.
        context: usize,
    },
}

/// What `homegrown score` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// Bits for a byte of text.
    pub bits_per_byte: f64,
    /// Nats for a token.
    pub nats_per_token: f64,
    /// `exp(nats_per_token)`.
    pub perplexity: f64,
    /// Tokens scored.
    pub tokens: u64,
    /// Bytes that the scored tokens stand for.
    pub bytes: u64,
}

/// One window: its tokens, of which those from `first` on are scored.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Window {
    tokens: Range<usize>,
    first: usize,
}

impl Windows {
    /// The windows over `n` tokens.
    fn cut(self, n: usize) -> Vec<Window> {
        match self {
            Windows::Sliding { context, stride } => {
                let mut windows = Vec::new();
                let (mut start, mut scored) = (0, 1); // nothing stands before the first token
                while scored < n {
                    let end = (start + context).min(n);
                    windows.push(Window { tokens: start..end, first: scored });
                    (start, scored) = (start + stride, end);
                }
                windows
            }
            Windows::LlamaCpp { context } => (0..n / context)
                .map(|i| i * context)
                .map(|start| Window {
                    tokens: start..start + context,
                    first: start + context / 2 + 1,
                })
                .collect(),
        }
    }

    fn check(self, longest: usize) -> Result<(), Error> {
        let context = match self {
            Windows::Sliding { context, .. } | Windows::LlamaCpp { context } => context,
        };
        if !(2..=longest).contains(&context) {
            return Err(Error::Setting(format!(
                "a context of {context} tokens: this model takes 2 to {longest}"
            )));
        }
        match self {
            Windows::Sliding { stride, .. } if !(1..context).contains(&stride) => {
                Err(Error::Setting(format!(
                    "a stride of {stride}: with a context of {context} tokens it is 1 to {}, so \
                     that each token has some context",
                    context - 1
                )))
            }
            _ => Ok(()),
        }
    }
}

/// Scores a text.
///
/// `tokens`: the text's ids, beginning with `bos` if the tokenizer adds one. `length`: bytes that
/// a token stands for (0 for BOS). The first token is not scored, for nothing stands before it.
///
/// # Errors
/// [`Error::Setting`] if the windows don't fit the model; [`Error::Nothing`] if no token would be
/// scored; [`Error::NotFinite`].
pub fn score(
    model: &Transformer,
    ws: &mut Workspace,
    tokens: &[u32],
    bos: Option<u32>,
    length: impl Fn(u32) -> usize,
    windows: Windows,
) -> Result<Score, Error> {
    windows.check(model.config().max_position_embeddings)?;
    let cut = windows.cut(tokens.len());
    let first = match windows {
        Windows::Sliding { .. } => None,
        Windows::LlamaCpp { context } if tokens.len() < 2 * context => {
            return Err(Error::Nothing(format!(
                "the text has {} tokens; with windows as in llama.cpp it takes two contexts, \
                 {} tokens",
                tokens.len(),
                2 * context
            )));
        }
        Windows::LlamaCpp { .. } => bos,
    };
    if cut.is_empty() {
        return Err(Error::Nothing("the text has fewer than two tokens".into()));
    }
    let (mut nats, mut count, mut bytes) = (0.0, 0, 0);
    nats_of(model, ws, tokens, &cut, first, |at, value| {
        nats += value;
        count += 1;
        bytes += length(tokens[at]) as u64;
    })?;
    let nats_per_token = nats / count as f64;
    Ok(Score {
        bits_per_byte: nats / std::f64::consts::LN_2 / bytes as f64,
        nats_per_token,
        perplexity: nats_per_token.exp(),
        tokens: count,
        bytes,
    })
}

/// How well a model predicts documents it has not seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Heldout {
    /// Bits for a byte of the documents joined with newlines, ends of documents included: the
    /// same bytes that compressors get, where the newline tells the end.
    pub bits_per_byte: f64,
    /// The part of `bits_per_byte` that the ends of documents cost.
    pub ends_bits_per_byte: f64,
    /// Nats for a token, ends included.
    pub nats_per_token: f64,
    /// Documents.
    pub documents: u64,
    /// Tokens scored: those of the text and one end a document.
    pub tokens: u64,
    /// Bytes of the text and of the newlines between documents.
    pub bytes: u64,
}

/// Scores documents, each by itself: `START t0 … tn` predicts `t0 … tn END`.
/// A document longer than the model's context is read in windows that overlap by half.
///
/// `documents`: the ids of each; `ends`: what stands before and after a text; `bytes`: size of all their text.
///
/// # Errors
/// [`Error::Nothing`] without documents; [`Error::NotFinite`].
pub fn heldout(
    model: &Transformer,
    ws: &mut Workspace,
    documents: &[Vec<u32>],
    [before, after]: [u32; 2],
    bytes: u64,
) -> Result<Heldout, Error> {
    if documents.is_empty() || bytes == 0 {
        return Err(Error::Nothing("there are no held-out documents".into()));
    }
    let context = model.config().max_position_embeddings;
    let windows = Windows::Sliding { context, stride: (context / 2).max(1) };
    let (mut tokens, mut cut, mut last) = (Vec::new(), Vec::new(), Vec::new());
    for document in documents {
        let start = tokens.len();
        tokens.push(before);
        tokens.extend_from_slice(document);
        tokens.push(after);
        cut.extend(windows.cut(document.len() + 2).into_iter().map(|w| Window {
            tokens: start + w.tokens.start..start + w.tokens.end,
            first: start + w.first,
        }));
        last.push(tokens.len() - 1);
    }
    let (mut nats, mut ends, mut next) = (0.0, 0.0, 0);
    nats_of(model, ws, &tokens, &cut, None, |at, value| {
        nats += value;
        if last.get(next) == Some(&at) {
            ends += value;
            next += 1;
        }
    })?;
    let scored = tokens.len() - documents.len();
    let bytes = bytes + documents.len() as u64 - 1;
    let bits = |nats: f64| nats / std::f64::consts::LN_2 / bytes as f64;
    Ok(Heldout {
        bits_per_byte: bits(nats),
        ends_bits_per_byte: bits(ends),
        nats_per_token: nats / scored as f64,
        documents: documents.len() as u64,
        tokens: scored as u64,
        bytes,
    })
}

/// Runs windows through the model, many at a time, and hands on the nats of each scored token by
/// its place in `tokens`, in order. `first` stands in place of each window's first token.
fn nats_of(
    model: &Transformer,
    ws: &mut Workspace,
    tokens: &[u32],
    windows: &[Window],
    first: Option<u32>,
    mut take: impl FnMut(usize, f64),
) -> Result<(), Error> {
    let mut left = windows;
    while !left.is_empty() {
        let mut rows = 0;
        let fits = |w: &&Window| {
            rows += w.tokens.len() - 1;
            rows <= ROWS
        };
        let (now, rest) = left.split_at(left.iter().take_while(fits).count().max(1));
        left = rest;
        let (mut inputs, mut targets, mut spans) = (Vec::new(), Vec::new(), Vec::new());
        for window in now {
            let read = window.tokens.start..window.tokens.end - 1;
            let start = inputs.len();
            spans.push(Span { start, len: read.len() });
            inputs.extend_from_slice(&tokens[read.clone()]);
            if let Some(first) = first {
                inputs[start] = first;
            }
            let target = |i: usize| if i + 1 < window.first { IGNORE } else { tokens[i + 1] };
            targets.extend(read.map(target));
        }
        let nats = model.loss_rows(ws, &inputs, &targets, &spans);
        for (window, span) in now.iter().zip(&spans) {
            for at in window.first..window.tokens.end {
                let value = f64::from(nats[span.start + at - 1 - window.tokens.start]);
                if !value.is_finite() {
                    return Err(Error::NotFinite(at));
                }
                take(at, value);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(windows: Windows, n: usize) -> Vec<(usize, usize, usize)> {
        windows.cut(n).into_iter().map(|w| (w.tokens.start, w.first, w.tokens.end)).collect()
    }

    /// The windows of Hugging Face's guide to the perplexity of fixed-length models
    /// (`range(0, len, stride)`, `trg_len = end - prev_end`), worked out by hand.
    #[test]
    fn sliding_windows_are_those_of_the_guide() {
        let windows = Windows::Sliding { context: 4, stride: 2 };
        assert_eq!(cut(windows, 9), [(0, 1, 4), (2, 4, 6), (4, 6, 8), (6, 8, 9)]);
        assert_eq!(cut(windows, 8), [(0, 1, 4), (2, 4, 6), (4, 6, 8)]);
        assert_eq!(cut(windows, 3), [(0, 1, 3)]);
        assert_eq!(cut(windows, 1), []);
    }

    #[test]
    fn every_token_but_the_first_is_scored_once_with_context() {
        for n in 2..40 {
            for context in 2..12 {
                for stride in 1..context {
                    let mut scored = Vec::new();
                    for w in (Windows::Sliding { context, stride }).cut(n) {
                        assert!(w.tokens.len() <= context && w.first > w.tokens.start);
                        assert!(w.tokens.start % stride == 0);
                        scored.extend(w.first..w.tokens.end);
                    }
                    assert_eq!(scored, (1..n).collect::<Vec<_>>(), "{n} {context} {stride}");
                }
            }
        }
    }

    /// llama-perplexity scores `n_ctx - n_ctx/2 - 1` tokens of each of `n / n_ctx` windows.
    #[test]
    fn windows_of_llama_cpp() {
        let windows = Windows::LlamaCpp { context: 8 };
        assert_eq!(cut(windows, 20), [(0, 5, 8), (8, 13, 16)]);
        let count: usize = (Windows::LlamaCpp { context: 512 })
            .cut(5_000)
            .iter()
            .map(|w| w.tokens.end - w.first)
            .sum();
        assert_eq!(count, 9 * 255);
    }

    #[test]
    fn windows_that_do_not_fit_are_refused() {
        for (windows, fits) in [
            (Windows::Sliding { context: 16, stride: 8 }, true),
            (Windows::Sliding { context: 17, stride: 8 }, false),
            (Windows::Sliding { context: 16, stride: 16 }, false),
            (Windows::Sliding { context: 16, stride: 0 }, false),
            (Windows::LlamaCpp { context: 1 }, false),
            (Windows::LlamaCpp { context: 16 }, true),
        ] {
            assert_eq!(windows.check(16).is_ok(), fits, "{windows:?}");
        }
    }
}
