//! Causal attention without a matrix of all scores (Rabe and Staats 2021; Dao et al. 2022).
//!
//! Keys are taken in blocks of 64 positions, anchored at multiples of 64, with a softmax that is
//! rescaled block by block. A query row's result depends on its own query and the keys up to its
//! position and nothing else, so whole sequences, pieces and single tokens give the same bits:
//! scores are one chain over the head, a weighted sum one chain over the visible keys in order,
//! a softmax sum 16 virtual lanes (key `j` in lane `j % 16`).
#![allow(unsafe_code)]

mod backward;
mod forward;

pub use backward::backward;
pub use forward::{forward, forward_cached};

use crate::Span;
use crate::kv::{PAGE, PageId};
use crate::simd::LANES;

/// Heads and their width.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; each serves `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Scores are multiplied by it.
    pub scale: f32,
    /// A row sees only so many positions back, its own included; `None`: all.
    pub window: Option<usize>,
}

/// New rows of a sequence whose earlier positions lie in pages.
#[derive(Clone, Copy, Debug)]
pub struct CachedSpan<'a> {
    /// Their rows in the batch.
    pub rows: Span,
    /// Positions before them.
    pub past: usize,
    /// Pages of all positions, the new ones' included.
    pub pages: &'a [PageId],
}

/// Keys of a block.
const BLOCK: usize = PAGE;
/// Query rows that are worked on together.
const ROWS: usize = 24;

impl AttentionShape {
    fn padded(&self) -> usize {
        self.head_dim.next_multiple_of(LANES)
    }

    /// Positions that the row at `position` sees.
    fn visible(&self, position: usize) -> std::ops::Range<usize> {
        let first = self.window.map_or(0, |w| (position + 1).saturating_sub(w));
        first..position + 1
    }
}

/// Columns `from..from + width` of `rows` rows of `x`, each row filled up with zeros to `padded`,
/// times `scale`.
#[allow(clippy::too_many_arguments)]
fn gather(
    x: &[f32],
    stride: usize,
    rows: std::ops::Range<usize>,
    from: usize,
    width: usize,
    padded: usize,
    scale: f32,
    out: &mut Vec<f32>,
) {
    out.clear();
    for r in rows {
        out.extend(x[r * stride + from..][..width].iter().map(|x| x * scale));
        out.resize(out.len() + padded - width, 0.0);
    }
}

/// Rows of `x` (`padded` apart) as blocks `[blocks][width][64]`, filled up with zeros.
fn transpose_blocks(x: &[f32], padded: usize, width: usize, out: &mut Vec<f32>) {
    let rows = x.len() / padded;
    out.clear();
    out.resize(rows.div_ceil(BLOCK) * BLOCK * width, 0.0);
    for (r, row) in x.chunks_exact(padded).enumerate() {
        let block = &mut out[r / BLOCK * BLOCK * width..][..BLOCK * width];
        for (e, x) in row[..width].iter().enumerate() {
            block[e * BLOCK + r % BLOCK] = *x;
        }
    }
}

#[cfg(test)]
mod tests;
