//! The forward pass, for keys of this batch and for keys in pages alike.

use super::band::{self, Band, Product, Start};
use super::transpose::{Transpose, pad, reduce, transpose, unpad};
use super::{AttentionShape, BLOCK, CachedSpan, cap_scores, check_spans, with_scratch, with_units};
use crate::Span;
use crate::cpu::Cpu;
use crate::kv::{KvPages, PageId, padded};
use crate::math::exp_masked;
use crate::simd::{LANES, Simd};

/// Rows of a task at most: enough to make packing a block of keys cheap.
const CHUNK: usize = 256;

/// `out = softmax(scale q kᵀ) v`, causal within each span.
///
/// `q`, `out`: `[T, heads * head_dim]`; `k`, `v`: `[T, kv_heads * head_dim]`; `lse`: `[T, heads]`,
/// the logarithm of each row's softmax sum, which [`backward`](super::backward) needs. Rows of no
/// span become 0.
///
/// # Panics
/// If sizes do not agree, or spans overlap or are out of order.
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
    s.check();
    let (width, kv_width) = s.widths();
    let rows = lse.len() / s.heads;
    assert!(lse.len() == rows * s.heads && q.len() == rows * width && out.len() == q.len());
    assert!(k.len() == rows * kv_width && v.len() == k.len());
    check_spans(spans.iter().copied(), rows, |r| {
        out[r.start * width..r.end * width].fill(0.0);
        lse[r.start * s.heads..r.end * s.heads].fill(0.0);
    });
    let (out, lse) = (Out(out.as_mut_ptr()), Out(lse.as_mut_ptr()));
    with_units(s, spans.iter().map(|span| (0, span.len)), CHUNK, |units| {
        cpu.pool.run(units.len(), |i| {
            let unit = units[i];
            let start = spans[unit.span].start;
            let keys = Keys::Rows { k: &k[start * kv_width..], v: &v[start * kv_width..] };
            let row = start + unit.from;
            let task = Task {
                shape: s,
                keys,
                kv_head: unit.kv_head,
                from: unit.from,
                to: unit.to,
                q: &q[row * width..(row + unit.to - unit.from) * width],
                out: out.at(row * width),
                lse: Some(lse.at(row * s.heads)),
            };
            task.start(cpu);
        });
    });
}

/// The same for rows whose keys, their own included, are in pages: row `i` of a span has position
/// `past + i` and sees positions `0..=past + i`.
///
/// `q`, `out`: `[T, heads * head_dim]`. Rows of no span become 0.
///
/// # Panics
/// If sizes do not agree, spans overlap or are out of order, or pages are missing.
pub fn forward_cached(
    cpu: &Cpu,
    s: &AttentionShape,
    layer: usize,
    pages: &KvPages,
    spans: &[CachedSpan<'_>],
    q: &[f32],
    out: &mut [f32],
) {
    s.check();
    let (width, _) = s.widths();
    let (layers, kv_heads, head_dim) = pages.shape();
    assert!(layer < layers && kv_heads == s.kv_heads && head_dim == s.head_dim);
    assert!(q.len() == out.len() && q.len().is_multiple_of(width));
    for span in spans {
        assert!(span.pages.len() * BLOCK >= span.past + span.rows.len, "a page is missing");
    }
    check_spans(spans.iter().map(|s| s.rows), q.len() / width, |r| {
        out[r.start * width..r.end * width].fill(0.0);
    });
    let out = Out(out.as_mut_ptr());
    with_units(s, spans.iter().map(|span| (span.past, span.rows.len)), CHUNK, |units| {
        cpu.pool.run(units.len(), |i| {
            let unit = units[i];
            let span = &spans[unit.span];
            let row = span.rows.start + unit.from - span.past;
            let task = Task {
                shape: s,
                keys: Keys::Pages { pages, layer, ids: span.pages },
                kv_head: unit.kv_head,
                from: unit.from,
                to: unit.to,
                q: &q[row * width..(row + unit.to - unit.from) * width],
                out: out.at(row * width),
                lse: None,
            };
            task.start(cpu);
        });
    });
}

/// Output that tasks write disjoint parts of.
struct Out(*mut f32);
// SAFETY: units differ in rows or in head, and write those only.
unsafe impl Sync for Out {}

impl Out {
    fn at(&self, i: usize) -> *mut f32 {
        self.0.wrapping_add(i)
    }
}

/// Where keys and values come from.
#[derive(Clone, Copy)]
enum Keys<'a> {
    /// Rows of this batch, from the span's first.
    Rows { k: &'a [f32], v: &'a [f32] },
    /// A sequence's pages.
    Pages { pages: &'a KvPages, layer: usize, ids: &'a [PageId] },
}

/// A unit of work: positions `from..to`, the query heads of one key head.
#[derive(Clone, Copy)]
struct Task<'a> {
    shape: &'a AttentionShape,
    keys: Keys<'a>,
    kv_head: usize,
    from: usize,
    to: usize,
    /// The rows.
    q: &'a [f32],
    out: *mut f32,
    lse: Option<*mut f32>,
}

/// Rows that the kernel goes through together, `(head of the group, position)` in this order, and
/// what it keeps of each until its last block.
#[derive(Clone, Copy)]
struct Lines {
    /// Queries, scaled, `[lines, hdp]`.
    q: *const f32,
    /// Weighted sums of values, `[lines, hdp]`.
    acc: *mut f32,
    /// Largest score, `[lines]`.
    max: *mut f32,
    /// Sums of weights in 16 virtual lanes, `[lines, 16]`.
    sum: *mut f32,
    /// Weights of a tile, `[rows, 64]`.
    p: *mut f32,
    /// A block of keys, `[hd, 64]`, and of values, `[64, hdp]`.
    k: *mut f32,
    v: *mut f32,
}

impl Task<'_> {
    fn start(self, cpu: &Cpu) {
        let s = self.shape;
        let hdp = padded(s.head_dim);
        let lines = s.group() * (self.to - self.from);
        let block = BLOCK * hdp;
        let lens = [lines * hdp, lines * hdp, lines, lines * LANES, 8 * BLOCK, block, block];
        with_scratch(lens, |[q, acc, max, sum, p, k, v]| {
            let lines = Lines { q, acc, max, sum, p, k, v };
            crate::dispatch!(cpu.isa, kernel(task: Task<'_> = self, lines: Lines = lines));
        });
    }

    /// Keys and values of block `b`; packed or widened into `lines`, if need be.
    #[inline(always)]
    unsafe fn block<S: Transpose>(&self, b: usize, lines: &Lines) -> (*const f32, *const f32) {
        let hd = self.shape.head_dim;
        match self.keys {
            Keys::Rows { k, v } => {
                let stride = self.shape.widths().1;
                let rows = BLOCK.min(self.to - b * BLOCK);
                let at = b * BLOCK * stride + self.kv_head * hd;
                assert!(at + (rows - 1) * stride + hd <= k.len().min(v.len()));
                // SAFETY: within k and v (asserted); the scratch holds a block of each.
                unsafe {
                    transpose::<S>(k.as_ptr().add(at), stride, rows, hd, lines.k);
                    pad::<S>(v.as_ptr().add(at), stride, rows, hd, 1.0, lines.v);
                }
                (lines.k, lines.v)
            }
            Keys::Pages { pages, layer, ids } => {
                let next = (b < (self.to - 1) / BLOCK).then(|| ids[b + 1]);
                let block = pages.block(layer, ids[b], self.kv_head, next);
                if let Some(plain) = block.plain() {
                    return plain;
                }
                // SAFETY: the scratch holds a block of each.
                unsafe { block.widen::<S>(lines.k, lines.v) };
                (lines.k, lines.v)
            }
        }
    }
}

#[inline(always)]
unsafe fn kernel<S: Transpose>(task: Task<'_>, lines: Lines) {
    let s = task.shape;
    let (hd, hdp, group) = (s.head_dim, padded(s.head_dim), s.group());
    let n = task.to - task.from;
    let first_head = task.kv_head * group;
    // SAFETY: `lines` holds group * n lines, `q`, `out` and `lse` n rows; the instruction set is
    // the caller's promise.
    unsafe {
        for h in 0..group {
            let q = task.q.as_ptr().add((first_head + h) * hd);
            let to = lines.q.cast_mut().add(h * n * hdp);
            pad::<S>(q, s.heads * hd, n, hd, s.scale, to);
        }
        for line in 0..group * n {
            *lines.max.add(line) = f32::NEG_INFINITY;
            S::store(lines.sum.add(line * LANES), S::splat(0.0));
            for d in (0..hdp).step_by(LANES) {
                S::store(lines.acc.add(line * hdp + d), S::splat(0.0));
            }
        }
        for b in s.first_key(task.from) / BLOCK..=(task.to - 1) / BLOCK {
            let (k, v) = task.block::<S>(b, &lines);
            // Rows of a head go together, or, if there is but one row, the heads of the group.
            let (runs, slope) = if n == 1 { (1, 0) } else { (group, 1) };
            for run in 0..runs {
                let mut i = (b * BLOCK).saturating_sub(task.from) * slope;
                while i < group * n / runs {
                    let p = task.from + i * slope;
                    if s.first_key(p) >= (b + 1) * BLOCK {
                        break;
                    }
                    // Not over the end of a block, so that all rows see something of each.
                    let most = band::rows::<S>() - p % band::rows::<S>() * slope;
                    let rows = most.min(group * n / runs - i);
                    tile::<S>(s, &lines, (k, v), b, run * n + i, rows, p, slope);
                    i += rows;
                }
            }
        }
        for h in 0..group {
            for i in (0..n).step_by(LANES) {
                let (line, rows) = (h * n + i, LANES.min(n - i));
                let mut sums = [S::splat(1.0); LANES];
                for (r, sum) in sums.iter_mut().enumerate().take(rows) {
                    *sum = S::load(lines.sum.add((line + r) * LANES));
                }
                let sums = S::to_array(reduce::<S, true>(sums));
                for (r, sum) in sums.iter().enumerate().take(rows) {
                    let at = (i + r) * s.heads + first_head + h;
                    let (acc, out) = (lines.acc.add((line + r) * hdp), task.out.add(at * hd));
                    unpad::<S>(acc, 1, hd, 1.0 / sum, out, 0);
                    if let Some(lse) = task.lse {
                        *lse.add(at) = *lines.max.add(line + r) + libm::logf(*sum);
                    }
                }
            }
        }
    }
}

/// Block `b` for a tile of lines, `line..line + rows`, of positions `p + r * slope`.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn tile<S: Transpose>(
    s: &AttentionShape,
    lines: &Lines,
    (k, v): (*const f32, *const f32),
    b: usize,
    line: usize,
    rows: usize,
    p: usize,
    slope: usize,
) {
    let hdp = padded(s.head_dim);
    let start = (b * BLOCK) as isize;
    let visible = Band {
        from: p as isize + 1 - s.reach() - start,
        to: p as isize + 1 - start,
        slope: slope as isize,
        depth: BLOCK,
    };
    let vectors = visible.row(rows - 1).end.div_ceil(LANES);
    // SAFETY: lines and blocks hold what they say.
    unsafe {
        let scores = Product {
            a: lines.q.add(line * hdp),
            a_row: hdp,
            a_k: 1,
            b: k,
            b_row: BLOCK,
            c: lines.p,
            c_row: BLOCK,
            vectors,
            band: Band::all(s.head_dim),
            start: Start::Zero,
        };
        scores.run::<S>(rows);
        let mut top = [S::splat(f32::NEG_INFINITY); LANES];
        for (r, top) in top.iter_mut().enumerate().take(rows) {
            let x = lines.p.add(r * BLOCK);
            if let Some(cap) = s.cap {
                cap_scores::<S>(x, vectors, cap);
            }
            mask::<S>(x, vectors, visible.row(r));
            for v in 0..vectors {
                *top = S::max(S::load(x.add(v * LANES)), *top);
            }
        }
        // Lane r for row r; NaN scores have not come through.
        let before = S::load_n(lines.max.add(line), rows);
        let max = S::max(before, reduce::<S, false>(top));
        S::store_n(lines.max.add(line), max, rows);
        let mut rescale = [0.0f32; LANES];
        S::store(rescale.as_mut_ptr(), exp_masked::<S>(S::sub(before, max)));
        for (r, rescale) in rescale.iter().enumerate().take(rows) {
            let x = lines.p.add(r * BLOCK);
            let sum = lines.sum.add((line + r) * LANES);
            let max = S::splat(*lines.max.add(line + r));
            let mut total = S::mul(S::load(sum), S::splat(*rescale));
            for v in 0..vectors {
                let weight = exp_masked::<S>(S::sub(S::load(x.add(v * LANES)), max));
                S::store(x.add(v * LANES), weight);
                total = S::add(total, weight);
            }
            S::store(sum, total);
        }
        let values = Product {
            a: lines.p,
            a_row: BLOCK,
            a_k: 1,
            b: v,
            b_row: hdp,
            c: lines.acc.add(line * hdp),
            c_row: hdp,
            vectors: hdp / LANES,
            band: visible,
            start: Start::Scaled(rescale.as_ptr()),
        };
        values.run::<S>(rows);
    }
}

/// Scores outside of `visible` become -inf.
#[inline(always)]
unsafe fn mask<S: Simd>(x: *mut f32, vectors: usize, visible: std::ops::Range<usize>) {
    const LANE: [f32; LANES] = {
        let mut lane = [0.0; LANES];
        let mut i = 0;
        while i < LANES {
            lane[i] = i as f32;
            i += 1;
        }
        lane
    };
    // SAFETY: x holds that many vectors.
    unsafe {
        let hidden = S::splat(f32::NEG_INFINITY);
        let (from, to) = (S::splat(visible.start as f32), S::splat(visible.end as f32));
        for v in 0..vectors {
            if visible.start <= v * LANES && (v + 1) * LANES <= visible.end {
                continue;
            }
            let lane = S::add(S::load(LANE.as_ptr()), S::splat((v * LANES) as f32));
            let score = S::load(x.add(v * LANES));
            let score = S::select(S::lt(lane, to), score, hidden);
            S::store(x.add(v * LANES), S::select(S::lt(lane, from), hidden, score));
        }
    }
}
