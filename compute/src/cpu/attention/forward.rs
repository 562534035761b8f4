//! The forward pass, over whole sequences and over pages.

use std::cell::RefCell;
use std::ops::Range;

use super::{AttentionShape, BLOCK, CachedSpan, ROWS, gather, transpose_blocks};
use crate::Span;
use crate::cpu::Cpu;
use crate::cpu::rows::Parts;
use crate::cpu::tile::product;
use crate::kv::KvPages;
use crate::math::exp;
use crate::simd::{LANES, Simd};

#[derive(Default)]
struct Scratch {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    keys: Vec<f32>,
    scores: Vec<f32>,
    out: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// A block of 64 keys: transposed `[head_dim][64]`, and values `[64][head_dim rounded up]`.
#[derive(Clone, Copy)]
struct Block<'a> {
    keys: &'a [f32],
    values: &'a [f32],
}

/// Attention within each span. `q`, `out`: `[rows, heads * head_dim]`; `k`, `v`:
/// `[rows, kv_heads * head_dim]`; `lse`: `[rows, heads]`, the logarithm of each softmax sum, for
/// the backward pass.
#[allow(clippy::too_many_arguments)]
pub fn forward(
    cpu: &Cpu,
    s: &AttentionShape,
    spans: &[Span],
    q: &[f32],
    k: &[f32],
    v: &[f32],
    out: &mut [f32],
    lse: &mut [f32],
) {
    let (wide, narrow) = (s.heads * s.head_dim, s.kv_heads * s.head_dim);
    let rows = spans.last().map_or(0, |s| s.start + s.len);
    assert!(q.len() >= rows * wide && out.len() == q.len());
    assert!(k.len() >= rows * narrow && v.len() == k.len() && lse.len() >= rows * s.heads);
    let (out, lse) = (Parts::new(out), Parts::new(lse));
    cpu.pool.run(spans.len() * s.kv_heads, |task| {
        let (span, head) = (spans[task / s.kv_heads], task % s.kv_heads);
        let mut scratch = SCRATCH.take();
        let (padded, hd) = (s.padded(), s.head_dim);
        let all = span.start..span.start + span.len;
        gather(k, narrow, all.clone(), head * hd, hd, padded, 1.0, &mut scratch.k);
        transpose_blocks(&scratch.k, padded, hd, &mut scratch.keys);
        gather(v, narrow, all.clone(), head * hd, hd, padded, 1.0, &mut scratch.v);
        scratch.v.resize(span.len.next_multiple_of(BLOCK) * padded, 0.0);
        let blocks: Vec<Block<'_>> = scratch
            .keys
            .chunks_exact(BLOCK * hd)
            .zip(scratch.v.chunks_exact(BLOCK * padded))
            .map(|(keys, values)| Block { keys, values })
            .collect();
        let group = s.heads / s.kv_heads;
        for h in head * group..(head + 1) * group {
            for start in (0..span.len).step_by(ROWS) {
                let n = ROWS.min(span.len - start);
                let first = span.start + start;
                gather(q, wide, first..first + n, h * hd, hd, padded, s.scale, &mut scratch.q);
                let work = Tile { s, blocks: &blocks, position: start, rows: n };
                work.run(cpu, &scratch.q, &mut scratch.scores, &mut scratch.out, |r, o, sum| {
                    let row = first + r;
                    // SAFETY: tasks have spans or heads of their own.
                    unsafe {
                        out.part(row * wide + h * hd..row * wide + (h + 1) * hd).copy_from_slice(o);
                        lse.part(row * s.heads + h..row * s.heads + h + 1)[0] = sum;
                    }
                });
            }
        }
        drop(blocks);
        SCRATCH.set(scratch);
    });
}

/// Attention of new rows to all positions of their sequences, whose keys and values are in `pages`
/// already. `q`, `out`: `[rows, heads * head_dim]`.
pub fn forward_cached(
    cpu: &Cpu,
    s: &AttentionShape,
    layer: usize,
    pages: &KvPages,
    spans: &[CachedSpan<'_>],
    q: &[f32],
    out: &mut [f32],
) {
    let (hd, wide, padded) = (s.head_dim, s.heads * s.head_dim, s.padded());
    let out = Parts::new(out);
    cpu.pool.run(spans.len() * s.kv_heads, |task| {
        let (span, head) = (&spans[task / s.kv_heads], task % s.kv_heads);
        let mut scratch = SCRATCH.take();
        let blocks: Vec<Block<'_>> = span.pages[..(span.past + span.rows.len).div_ceil(BLOCK)]
            .iter()
            .map(|page| Block {
                keys: pages.keys(layer, head, *page),
                values: pages.values(layer, head, *page),
            })
            .collect();
        let group = s.heads / s.kv_heads;
        for h in head * group..(head + 1) * group {
            for start in (0..span.rows.len).step_by(ROWS) {
                let n = ROWS.min(span.rows.len - start);
                let first = span.rows.start + start;
                gather(q, wide, first..first + n, h * hd, hd, padded, s.scale, &mut scratch.q);
                let work = Tile { s, blocks: &blocks, position: span.past + start, rows: n };
                work.run(cpu, &scratch.q, &mut scratch.scores, &mut scratch.out, |r, o, _| {
                    let row = first + r;
                    // SAFETY: tasks have spans or heads of their own.
                    unsafe { out.part(row * wide + h * hd..row * wide + (h + 1) * hd) }
                        .copy_from_slice(o);
                });
            }
        }
        SCRATCH.set(scratch);
    });
}

/// Some query rows of one head at consecutive positions.
struct Tile<'a> {
    s: &'a AttentionShape,
    blocks: &'a [Block<'a>],
    position: usize,
    rows: usize,
}

impl Tile<'_> {
    /// Calls `done(row, output, log of the softmax sum)` for each row. `q`: `[rows, padded]`, scaled.
    fn run(
        &self,
        cpu: &Cpu,
        q: &[f32],
        scores: &mut Vec<f32>,
        out: &mut Vec<f32>,
        mut done: impl FnMut(usize, &[f32], f32),
    ) {
        let padded = self.s.padded();
        scores.resize(ROWS * BLOCK, 0.0);
        out.clear();
        out.resize(ROWS * padded, 0.0);
        let mut max = [f32::NEG_INFINITY; ROWS];
        let mut sums = [[0.0f32; LANES]; ROWS];
        let state = State { max: &mut max, sums: &mut sums, scores, out };
        crate::dispatch!(cpu.isa, all_blocks(tile: &Tile<'_> = self, q: &[f32] = q, state: State<'_> = state));
        for r in 0..self.rows {
            let mut lanes = sums[r];
            // The tree of Simd::sum.
            let mut n = LANES / 2;
            while n > 0 {
                for i in 0..n {
                    lanes[i] += lanes[i + n];
                }
                n /= 2;
            }
            let row = &mut out[r * padded..r * padded + self.s.head_dim];
            row.iter_mut().for_each(|x| *x /= lanes[0]);
            done(r, row, max[r] + libm::logf(lanes[0]));
        }
    }
}

struct State<'a> {
    max: &'a mut [f32; ROWS],
    sums: &'a mut [[f32; LANES]; ROWS],
    scores: &'a mut [f32],
    out: &'a mut [f32],
}

#[inline(always)]
unsafe fn all_blocks<S: Simd>(tile: &Tile<'_>, q: &[f32], state: State<'_>) {
    let s = tile.s;
    let (hd, padded) = (s.head_dim, s.padded());
    let first = s.visible(tile.position).start / BLOCK;
    let last = (tile.position + tile.rows - 1) / BLOCK;
    for b in first..=last {
        let block = &tile.blocks[b];
        // What each row sees of this block.
        let seen = |r: usize| -> Range<usize> {
            let v = s.visible(tile.position + r);
            let clip = |x: usize| x.saturating_sub(b * BLOCK).min(BLOCK);
            clip(v.start)..clip(v.end)
        };
        let columns = seen(tile.rows - 1).end;
        let scores = state.scores.as_mut_ptr();
        // SAFETY: q is [rows, padded], scores [ROWS][64], out [ROWS][padded], a block's keys
        // [hd][64] and values [64][padded].
        unsafe {
            product::<S>(
                (tile.rows, columns.next_multiple_of(LANES), hd),
                (q.as_ptr(), padded, 1),
                (block.keys.as_ptr(), BLOCK),
                (scores, BLOCK),
                false,
            );
            for r in 0..tile.rows {
                let row = scores.add(r * BLOCK);
                let seen = seen(r);
                if seen.is_empty() {
                    continue;
                }
                let rescale = softmax_block::<S>(row, seen, &mut state.max[r], &mut state.sums[r]);
                if rescale != 1.0 {
                    let factor = S::splat(rescale);
                    for i in (0..padded).step_by(LANES) {
                        let o = state.out.as_mut_ptr().add(r * padded + i);
                        S::store(o, S::mul(S::load(o), factor));
                    }
                }
            }
            // Rows together over the keys that all see, then each over the rest of its own.
            let shared = seen(0);
            let together = (0..tile.rows).all(|r| seen(r).start == shared.start);
            let values = block.values.as_ptr();
            let out = state.out.as_mut_ptr();
            let weigh = |row: usize, rows: usize, keys: Range<usize>| {
                if !keys.is_empty() {
                    product::<S>(
                        (rows, padded, keys.len()),
                        (scores.add(row * BLOCK + keys.start), BLOCK, 1),
                        (values.add(keys.start * padded), padded),
                        (out.add(row * padded), padded),
                        true,
                    );
                }
            };
            if together {
                weigh(0, tile.rows, shared.clone());
            }
            for r in 0..tile.rows {
                let seen = seen(r);
                weigh(r, 1, if together { shared.end.min(seen.end)..seen.end } else { seen });
            }
        }
    }
}

/// Scores of a row's block to weights, keys outside of `seen` to 0; the sum's lanes and the maximum
/// go on. Returns what earlier weights are to be multiplied by.
#[inline(always)]
unsafe fn softmax_block<S: Simd>(
    row: *mut f32,
    seen: Range<usize>,
    max: &mut f32,
    sums: &mut [f32; LANES],
) -> f32 {
    // SAFETY: the row holds 64 elements.
    unsafe {
        for i in 0..seen.start {
            *row.add(i) = f32::NEG_INFINITY;
        }
        let end = seen.end.next_multiple_of(LANES);
        for i in seen.end..end {
            *row.add(i) = f32::NEG_INFINITY;
        }
        let mut top = S::load(row);
        for i in (LANES..end).step_by(LANES) {
            top = S::max(S::load(row.add(i)), top);
        }
        let new = max.max(S::max_lane(top));
        let rescale = if *max == new { 1.0 } else { exp_one::<S>(*max - new) };
        *max = new;
        let shift = S::splat(new);
        let mut sum = S::mul(S::load(sums.as_ptr()), S::splat(rescale));
        for i in (0..end).step_by(LANES) {
            let p = exp::<S>(S::sub(S::load(row.add(i)), shift));
            sum = S::add(sum, p);
            S::store(row.add(i), p);
        }
        S::store(sums.as_mut_ptr(), sum);
        rescale
    }
}

#[inline(always)]
unsafe fn exp_one<S: Simd>(x: f32) -> f32 {
    // SAFETY: the instruction set is the caller's promise.
    unsafe { S::to_array(exp::<S>(S::splat(x)))[0] }
}
