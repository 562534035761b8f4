//! The backward pass (Dao et al. 2022): weights are computed again from the kept logarithm of
//! their sum, 64 keys by 64 rows at a time.

use super::band::{self, Band, Product, Start};
use super::transpose::{Transpose, pad, reduce, transpose, unpad};
use super::{AttentionShape, BLOCK, cap_scores, check_spans, with_scratch, with_units};
use crate::Span;
use crate::cpu::Cpu;
use crate::kv::padded;
use crate::math::exp_masked;
use crate::simd::{LANES, Simd, at};

/// Gradients of [`forward`](super::forward): writes `dq`, `dk` and `dv` given `dout` and what
/// forward took and gave. Rows of no span get 0.
///
/// # Panics
/// If sizes do not agree, or spans overlap or are out of order.
#[allow(clippy::too_many_arguments)]
pub fn backward(
    cpu: &Cpu,
    s: &AttentionShape,
    spans: &[Span],
    q: &[f32],
    k: &[f32],
    v: &[f32],
    out: &[f32],
    lse: &[f32],
    dout: &[f32],
    dq: &mut [f32],
    dk: &mut [f32],
    dv: &mut [f32],
) {
    s.check();
    let (width, kv_width) = s.widths();
    let rows = lse.len() / s.heads;
    assert!(lse.len() == rows * s.heads);
    assert!([q, out, dout, dq].into_iter().all(|x| x.len() == rows * width));
    assert!([k, v, dk, dv].into_iter().all(|x| x.len() == rows * kv_width));
    check_spans(spans.iter().copied(), rows, |r| {
        dq[r.start * width..r.end * width].fill(0.0);
        dk[r.start * kv_width..r.end * kv_width].fill(0.0);
        dv[r.start * kv_width..r.end * kv_width].fill(0.0);
    });
    let all = Rows {
        q: q.as_ptr(),
        k: k.as_ptr(),
        v: v.as_ptr(),
        out: out.as_ptr(),
        lse: lse.as_ptr(),
        dout: dout.as_ptr(),
        dq: dq.as_mut_ptr(),
        dk: dk.as_mut_ptr(),
        dv: dv.as_mut_ptr(),
    };
    let all = &all;
    with_units(s, spans.iter().map(|span| (0, span.len)), usize::MAX, |units| {
        cpu.pool.run(units.len(), |i| {
            let unit = units[i];
            let hdp = padded(s.head_dim);
            let (n, lines) = (unit.to, s.group() * unit.to);
            let (line, block) = (lines * hdp, BLOCK * hdp);
            let square = BLOCK * BLOCK;
            with_scratch(
                [line, line, line, lines, block, block, block, block, block, square, square],
                |[q, dout, dq, delta, kt, vt, k, dk, dv, p, ds]| {
                    let scratch = Scratch { q, dout, dq, delta, kt, vt, k, dk, dv, p, ds };
                    let (row, head) = (spans[unit.span].start, unit.kv_head);
                    let task = Task { shape: s, rows: all.from(s, row, head), n, scratch };
                    crate::dispatch!(cpu.isa, kernel(task: Task<'_> = task));
                },
            );
        });
    });
}

/// The operands; as part of a [`Task`] from its first row and head.
#[derive(Clone, Copy)]
struct Rows {
    q: *const f32,
    k: *const f32,
    v: *const f32,
    out: *const f32,
    lse: *const f32,
    dout: *const f32,
    dq: *mut f32,
    dk: *mut f32,
    dv: *mut f32,
}
// SAFETY: units differ in rows or in head, and write those only.
unsafe impl Sync for Rows {}

impl Rows {
    fn from(&self, s: &AttentionShape, row: usize, kv_head: usize) -> Rows {
        let (width, kv_width) = s.widths();
        let head = kv_head * s.group();
        let (q, k) = (row * width + head * s.head_dim, row * kv_width + kv_head * s.head_dim);
        Rows {
            q: self.q.wrapping_add(q),
            k: self.k.wrapping_add(k),
            v: self.v.wrapping_add(k),
            out: self.out.wrapping_add(q),
            lse: self.lse.wrapping_add(row * s.heads + head),
            dout: self.dout.wrapping_add(q),
            dq: self.dq.wrapping_add(q),
            dk: self.dk.wrapping_add(k),
            dv: self.dv.wrapping_add(k),
        }
    }
}

/// Working memory. Lines are `(head of the group, row)`; rows of `hdp` elements are padded heads.
#[derive(Clone, Copy)]
struct Scratch {
    /// Scaled queries and gradients of the result, `[lines, hdp]`.
    q: *mut f32,
    dout: *mut f32,
    /// `[lines, hdp]`, without the scale.
    dq: *mut f32,
    /// `dout · out`, `[lines]`.
    delta: *mut f32,
    /// A block's keys and values, transposed, `[hd, 64]`.
    kt: *mut f32,
    vt: *mut f32,
    /// A block's keys and gradients, `[64, hdp]`.
    k: *mut f32,
    dk: *mut f32,
    dv: *mut f32,
    /// Weights and gradients of the scores, `[64 rows, 64 keys]`.
    p: *mut f32,
    ds: *mut f32,
}

/// A span of `n` rows, the query heads of one key head.
#[derive(Clone, Copy)]
struct Task<'a> {
    shape: &'a AttentionShape,
    rows: Rows,
    n: usize,
    scratch: Scratch,
}

#[inline(always)]
unsafe fn kernel<S: Transpose>(task: Task<'_>) {
    let Task { shape: s, rows, n, scratch: x } = task;
    let (hd, hdp, group) = (s.head_dim, padded(s.head_dim), s.group());
    let (width, kv_width) = s.widths();
    // SAFETY: `rows` holds n rows of each operand, the scratch what its fields say; the
    // instruction set is the caller's promise.
    unsafe {
        for h in 0..group {
            let line = h * n;
            pad::<S>(rows.q.add(h * hd), width, n, hd, s.scale, x.q.add(line * hdp));
            pad::<S>(rows.dout.add(h * hd), width, n, hd, 1.0, x.dout.add(line * hdp));
            for i in (0..n).step_by(LANES) {
                // As math::dot, 16 rows at once.
                let mut sums = [S::splat(0.0); LANES];
                let count = LANES.min(n - i);
                for (r, sum) in sums.iter_mut().enumerate().take(count) {
                    let out = rows.out.add((i + r) * width + h * hd);
                    let mut d = 0;
                    while d < hd {
                        let dout = S::load(x.dout.add((line + i + r) * hdp + d));
                        *sum = S::fma(dout, at::<S>(out, d, hd), *sum);
                        d += LANES;
                    }
                }
                S::store_n(x.delta.add(line + i), reduce::<S, true>(sums), count);
            }
        }
        zero::<S>(x.dq, group * n * hdp);
        for start in (0..n).step_by(BLOCK) {
            let keys = BLOCK.min(n - start);
            let (k, v) = (rows.k.add(start * kv_width), rows.v.add(start * kv_width));
            transpose::<S>(k, kv_width, keys, hd, x.kt);
            transpose::<S>(v, kv_width, keys, hd, x.vt);
            pad::<S>(k, kv_width, keys, hd, 1.0, x.k);
            zero::<S>(x.dk, keys * hdp);
            zero::<S>(x.dv, keys * hdp);
            for h in 0..group {
                let mut row = start;
                while row < n && s.first_key(row) < start + keys {
                    task.square::<S>(h, row, start, keys);
                    row += BLOCK;
                }
            }
            unpad::<S>(x.dk, keys, hd, 1.0, rows.dk.add(start * kv_width), kv_width);
            unpad::<S>(x.dv, keys, hd, 1.0, rows.dv.add(start * kv_width), kv_width);
        }
        for h in 0..group {
            unpad::<S>(x.dq.add(h * n * hdp), n, hd, s.scale, rows.dq.add(h * hd), width);
        }
    }
}

#[inline(always)]
unsafe fn zero<S: Simd>(x: *mut f32, n: usize) {
    for i in (0..n).step_by(LANES) {
        // SAFETY: n is a multiple of 16 within x.
        unsafe { S::store(x.add(i), S::splat(0.0)) }
    }
}

impl Task<'_> {
    /// Up to 64 rows from `row` of head `h`, with the block of keys at `start`.
    #[inline(always)]
    unsafe fn square<S: Transpose>(&self, h: usize, row: usize, start: usize, keys: usize) {
        let Task { shape: s, rows: operands, n, scratch: x } = *self;
        let (hd, hdp) = (s.head_dim, padded(s.head_dim));
        let rows = BLOCK.min(n - row);
        let line = h * n + row;
        let offset = row as isize - start as isize;
        // SAFETY: as for the kernel.
        unsafe {
            for r in (0..rows).step_by(band::rows::<S>()) {
                let tile = band::rows::<S>().min(rows - r);
                let visible = Band {
                    from: offset + r as isize + 1 - s.reach(),
                    to: offset + r as isize + 1,
                    slope: 1,
                    depth: keys,
                };
                let vectors = visible.row(tile - 1).end.div_ceil(LANES);
                let scores = Product {
                    a: x.q.add((line + r) * hdp),
                    a_row: hdp,
                    a_k: 1,
                    b: x.kt,
                    b_row: BLOCK,
                    c: x.p.add(r * BLOCK),
                    c_row: BLOCK,
                    vectors,
                    band: Band::all(hd),
                    start: Start::Zero,
                };
                scores.run::<S>(tile);
                let (a, c) = (x.dout.add((line + r) * hdp), x.ds.add(r * BLOCK));
                Product { a, b: x.vt, c, ..scores }.run::<S>(tile);
                for r in r..r + tile {
                    let lse = *operands.lse.add((row + r) * s.heads + h);
                    let (lse, delta) = (S::splat(lse), S::splat(*x.delta.add(line + r)));
                    if let Some(cap) = s.cap {
                        cap_scores::<S>(x.p.add(r * BLOCK), vectors, cap);
                    }
                    for v in 0..vectors {
                        let (p, ds) =
                            (x.p.add(r * BLOCK + v * LANES), x.ds.add(r * BLOCK + v * LANES));
                        let score = S::load(p);
                        let weight = exp_masked::<S>(S::sub(score, lse));
                        S::store(p, weight);
                        let mut slope = S::mul(weight, S::sub(S::load(ds), delta));
                        if let Some(cap) = s.cap {
                            // tanh' = 1 - tanh^2
                            let tanh = S::mul(score, S::splat(-1.0 / cap));
                            slope = S::mul(
                                slope,
                                S::fma(tanh, S::mul(score, S::splat(1.0 / cap)), S::splat(1.0)),
                            );
                        }
                        S::store(ds, slope);
                    }
                }
                let queries = Product {
                    a: x.ds.add(r * BLOCK),
                    a_row: BLOCK,
                    a_k: 1,
                    b: x.k,
                    b_row: hdp,
                    c: x.dq.add((line + r) * hdp),
                    c_row: hdp,
                    vectors: hdp / LANES,
                    band: visible,
                    start: Start::Go,
                };
                queries.run::<S>(tile);
            }
            // Key j is seen by the rows of positions j .. j + window.
            let seen = Product {
                a: x.ds,
                a_row: 1,
                a_k: BLOCK,
                b: x.q.add(line * hdp),
                b_row: hdp,
                c: x.dk,
                c_row: hdp,
                vectors: hdp / LANES,
                band: Band { from: -offset, to: s.reach() - offset, slope: 1, depth: rows },
                start: Start::Go,
            };
            seen.run::<S>(keys);
            Product { a: x.p, b: x.dout.add(line * hdp), c: x.dv, ..seen }.run::<S>(keys);
        }
    }
}
