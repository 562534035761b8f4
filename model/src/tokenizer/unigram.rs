//! The unigram model: of all ways to cut a piece into tokens, the one whose scores (logarithms of
//! probabilities) have the largest sum.
//!
//! Kudo, "Subword Regularization: Improving Neural Network Translation Models with Multiple Subword
//! Candidates" (2018).

use super::model::ByByte;
use super::tokens::{Lookup, Tokens};

/// An unknown character is this much worse than the worst token.
const PENALTY: f64 = 10.0;

/// Scores of a vocabulary.
#[derive(Debug)]
pub(super) struct Unigram {
    /// By id.
    pub(super) scores: Vec<f64>,
    /// The tokens that text can become.
    pub(super) lookup: Lookup,
    pub(super) unknown: Option<u32>,
    /// The tokens of single bytes, which stand for what is unknown.
    pub(super) bytes: Option<ByByte>,
    worst: f64,
}

/// The best way to a place in the piece: its score, its last token (`None`: an unknown character)
/// and where that starts.
#[derive(Clone, Copy)]
struct Way {
    score: f64,
    token: Option<u32>,
    start: usize,
}

/// Memory of [`Unigram::encode`].
#[derive(Default)]
pub(super) struct Ways(Vec<Option<Way>>);

impl Unigram {
    /// `scores` by id, none of them NaN.
    pub(super) fn new(
        scores: Vec<f64>,
        lookup: Lookup,
        unknown: Option<u32>,
        bytes: Option<ByByte>,
    ) -> Unigram {
        let worst = scores.iter().copied().fold(f64::INFINITY, f64::min);
        Unigram { scores, lookup, unknown, bytes, worst }
    }

    /// Appends the tokens of a piece. Takes time with its length times the longest token's.
    pub(super) fn encode(&self, tokens: &Tokens, piece: &str, ways: &mut Ways, ids: &mut Vec<u32>) {
        let ways = &mut ways.0;
        ways.clear();
        ways.resize(piece.len() + 1, None);
        for (start, c) in piece.char_indices() {
            // There is a way to every character: over unknown ones.
            let so_far = ways[start].map_or(0.0, |way| way.score);
            let mut better = |len: usize, score: f64, token| {
                let way = &mut ways[start + len];
                let score = so_far + score;
                if way.is_none_or(|way| score > way.score) {
                    *way = Some(Way { score, token, start });
                }
            };
            let mut known = false;
            self.lookup.prefixes(tokens, &piece.as_bytes()[start..], |id, len| {
                known |= len == c.len_utf8();
                better(len, self.scores[id as usize], Some(id));
            });
            if !known {
                better(c.len_utf8(), self.worst - PENALTY, None);
            }
        }
        let first = ids.len();
        let mut end = piece.len();
        let mut unknown_before = false;
        while let Some(Way { token, start, .. }) = ways[end] {
            match (token, &self.bytes, self.unknown) {
                (Some(id), ..) => ids.push(id),
                (None, Some(bytes), _) => {
                    let unknown = piece[start..end].bytes().rev();
                    ids.extend(unknown.map(|byte| bytes[byte as usize]));
                }
                // Unknown characters side by side are one.
                (None, None, Some(id)) if !unknown_before => ids.push(id),
                (None, None, _) => {}
            }
            unknown_before = token.is_none();
            end = start;
        }
        ids[first..].reverse();
    }
}
