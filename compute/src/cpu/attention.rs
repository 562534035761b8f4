//! Causal attention with an online softmax (Milakov & Gimelshein 2018; Dao et al. 2022): scores
//! exist for 64 keys at a time.
//!
//! A query takes its keys in blocks anchored at multiples of 64 positions, in order; within a block
//! each score is one chain over the head's elements, each element of the result one chain over
//! the visible keys of a segment of eight blocks, and segments are added in order. So a row's bits depend on its query and the keys it sees, and on nothing else:
//! not on its neighbours, on threads, or on whether the keys came from this batch or from a cache. Passes for
//! gradients may have their products in bf16 ([`band::Pairs`]): a step of a chain is a pair then, hidden keys
//! weigh 0, and the bits are the CPU's own. Keys and values that are codes are multiplied in integers ([`codes`]), whose
//! sums are exact in any order.
#![allow(unsafe_code)]

mod backward;
mod band;
mod codes;
mod forward;
#[cfg(test)]
mod tests;
mod tiles;
mod transpose;

use std::cell::{Cell, RefCell};

pub use backward::backward;
pub use forward::{forward, forward_cached};

use crate::Span;
use crate::aligned::Aligned;
use crate::kv::{PAGE, PageId};
use crate::math::tanh;
use crate::simd::{LANES, Simd};

/// Keys in a block: a page of the cache.
const BLOCK: usize = PAGE;

/// What attention is like in a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Query heads; a multiple of `kv_heads`.
    pub heads: usize,
    /// Key/value heads, each shared by `heads / kv_heads` consecutive query heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Factor of the scores, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// Row `i` sees keys `j <= i` with `i - j < window`; `None`: all of them.
    pub window: Option<usize>,
    /// Scores become `cap * tanh(score / cap)` (Gemma 2); `None`: they stay.
    pub cap: Option<f32>,
}

/// The newest rows of a sequence whose keys and values are in pages.
pub struct CachedSpan<'a> {
    /// Rows of the batch.
    pub rows: Span,
    /// Position of the first of them in the sequence.
    pub past: usize,
    /// The sequence's pages, of positions `0..past + rows.len` at least.
    pub pages: &'a [PageId],
}

impl AttentionShape {
    /// Query heads to a key/value head.
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Keys that a row sees at most, its own included.
    fn reach(&self) -> isize {
        let most = isize::MAX / 2;
        self.window.map_or(most, |w| w.clamp(1, most as usize) as isize)
    }

    /// First key that position `p` sees.
    fn first_key(&self, p: usize) -> usize {
        (p + 1).saturating_sub(self.reach() as usize)
    }

    /// Row lengths of queries and of keys.
    fn widths(&self) -> (usize, usize) {
        (self.heads * self.head_dim, self.kv_heads * self.head_dim)
    }

    fn check(&self) {
        assert!(
            self.head_dim > 0 && self.kv_heads > 0 && self.heads.is_multiple_of(self.kv_heads),
            "{} query heads for {} key heads of {} elements",
            self.heads,
            self.kv_heads,
            self.head_dim
        );
    }
}

/// Caps `vectors` of 16 scores where they lie.
#[inline(always)]
unsafe fn cap_scores<S: Simd>(x: *mut f32, vectors: usize, cap: f32) {
    // SAFETY: the caller gives that many vectors.
    unsafe {
        let (cap, inverse) = (S::splat(cap), S::splat(1.0 / cap));
        for v in 0..vectors {
            let x = x.add(v * LANES);
            S::store(x, S::mul(cap, tanh::<S>(S::mul(S::load(x), inverse))));
        }
    }
}

/// Checks that spans come in order, apart from each other and within `rows`, and calls `gap` with
/// the rows between them.
fn check_spans(
    spans: impl Iterator<Item = Span>,
    rows: usize,
    mut gap: impl FnMut(std::ops::Range<usize>),
) {
    let mut end = 0;
    for span in spans {
        let next = span.start.checked_add(span.len).filter(|next| *next <= rows);
        assert!(span.start >= end && next.is_some(), "spans have to be in order, within the rows");
        gap(end..span.start);
        end = next.unwrap_or(end);
    }
    gap(end..rows);
}

/// What one task computes: positions `from..to` of a span, all query heads of one key head.
#[derive(Clone, Copy)]
struct Unit {
    span: usize,
    kv_head: usize,
    from: usize,
    to: usize,
}

/// Calls `f` with the units of spans of `(past, len)` rows, the largest first; units are cut where
/// the position is a multiple of `chunk`.
fn with_units(
    s: &AttentionShape,
    spans: impl Iterator<Item = (usize, usize)>,
    chunk: usize,
    f: impl FnOnce(&[Unit]),
) {
    thread_local!(static UNITS: Cell<Vec<Unit>> = const { Cell::new(Vec::new()) });
    let mut units = UNITS.take();
    units.clear();
    for (span, (past, len)) in spans.enumerate() {
        let mut from = past;
        while from < past + len {
            let to = (past + len).min((from / chunk + 1).saturating_mul(chunk));
            units.extend((0..s.kv_heads).map(|kv_head| Unit { span, kv_head, from, to }));
            from = to;
        }
    }
    let cost = |u: &Unit| (u.to - u.from) * (u.to - s.first_key(u.from));
    units.sort_unstable_by_key(|u| (std::cmp::Reverse(cost(u)), u.span, u.from, u.kv_head));
    f(&units);
    UNITS.set(units);
}

/// Memory of the calling thread for parts of `lens` elements, each on a cache line, with whatever
/// was in them. It grows to the most that was asked for and stays.
fn with_scratch<const N: usize>(lens: [usize; N], f: impl FnOnce([*mut f32; N])) {
    thread_local!(static SCRATCH: RefCell<Aligned> = const { RefCell::new(Aligned::empty()) });
    SCRATCH.with_borrow_mut(|scratch| {
        let lens = lens.map(|n| n.next_multiple_of(LANES));
        let total: usize = lens.iter().sum();
        if scratch.len() < total {
            *scratch = Aligned::empty();
            match Aligned::zeros(total) {
                Some(more) => *scratch = more,
                None => panic!("no memory for {total} numbers of attention"),
            }
        }
        let mut rest = &mut scratch[..];
        f(lens.map(|n| {
            let (part, after) = std::mem::take(&mut rest).split_at_mut(n);
            rest = after;
            part.as_mut_ptr()
        }))
    })
}
