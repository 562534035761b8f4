//! The backward pass (Dao et al. 2022): weights are computed again from the kept logarithm of
//! their sum, 64 keys by 64 rows at a time.

use super::band::{self, Band, Element, Pairs, Product, Start};
use super::forward::mask;
use super::tiles::Tiles;
use super::transpose::{halves, pad, pair_rows, transpose, transpose_pairs, unpad};
use super::{AttentionShape, BLOCK, cap_scores, check_spans, with_scratch, with_units};
use crate::Span;
use crate::bytes::Bytes;
use crate::cpu::Cpu;
use crate::kv::padded;
use crate::math::exp_masked;
use crate::simd::reduce::reduce;
use crate::simd::{LANES, Simd, at};

/// Gradients of [`forward`](super::forward): writes `dq`, `dk` and `dv` given `dout` and what
/// forward took and gave. Rows of no span get 0. With `bf16` the operands of all products are rounded to it.
///
/// # Panics
/// If sizes do not agree, or spans overlap or are out of order.
#[allow(clippy::too_many_arguments)]
pub fn backward(
    cpu: &Cpu,
    s: &AttentionShape,
    spans: &[Span],
    bf16: bool,
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
            // Only pairs have an order of their own on the right, and so have slopes.
            let (right, slopes) =
                if bf16 { (s.group() * n.div_ceil(2) * hdp, square / 2) } else { (0, 0) };
            with_scratch(
                [
                    line, line, right, right, line, lines, block, block, block, block, block,
                    square, square, slopes,
                ],
                |[q, dout, q_right, dout_right, dq, delta, kt, vt, k, dk, dv, p, ds, slopes]| {
                    let (q_right, dout_right) =
                        if bf16 { (q_right, dout_right) } else { (q, dout) };
                    #[rustfmt::skip]
                    let scratch = Scratch {
                        q, dout, q_right, dout_right, dq, delta, kt, vt, k, dk, dv, p, ds, slopes,
                    };
                    let (row, head) = (spans[unit.span].start, unit.kv_head);
                    let task = Task { shape: s, rows: all.from(s, row, head), n, scratch };
                    if bf16 {
                        crate::dispatch!(cpu.isa, kernel_bf16(task: Task<'_> = task));
                    } else {
                        crate::dispatch!(cpu.isa, kernel_f32(task: Task<'_> = task));
                    }
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

/// Working memory. Lines are `(head of the group, row)`; rows of `hdp` elements are padded heads. For products in
/// bf16 operands are that: on the left with pairs along their rows, on the right with pairs of rows.
#[derive(Clone, Copy)]
struct Scratch {
    /// Scaled queries and gradients of the result, `[lines, hdp]`.
    q: *mut f32,
    dout: *mut f32,
    /// The same as right operands.
    q_right: *mut f32,
    dout_right: *mut f32,
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
    /// The latter with pairs along the rows.
    slopes: *mut f32,
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
unsafe fn kernel_f32<S: Bytes>(task: Task<'_>) {
    // SAFETY: the caller's promise.
    unsafe { kernel::<S, f32>(task) }
}

#[inline(always)]
unsafe fn kernel_bf16<S: Bytes>(task: Task<'_>) {
    // SAFETY: the caller's promise.
    unsafe { kernel::<S, Pairs>(task) }
}

#[inline(always)]
unsafe fn kernel<S: Bytes, E: Element>(task: Task<'_>) {
    let Task { shape: s, rows, n, scratch: x } = task;
    let (hd, hdp, group) = (s.head_dim, padded(s.head_dim), s.group());
    let (width, kv_width) = s.widths();
    // SAFETY: `rows` holds n rows of each operand, the scratch what its fields say; the
    // instruction set is the caller's promise.
    unsafe {
        for h in 0..group {
            let line = h * n;
            let (q, dout) = (rows.q.add(h * hd), rows.dout.add(h * hd));
            if E::PAIRS {
                halves::<S>(q, width, n, hd, s.scale, x.q.cast::<u16>().add(line * hdp));
                halves::<S>(dout, width, n, hd, 1.0, x.dout.cast::<u16>().add(line * hdp));
                let pairs = h * n.div_ceil(2);
                pair_rows::<S>(q, width, n, hd, s.scale, x.q_right.add(pairs * hdp));
                pair_rows::<S>(dout, width, n, hd, 1.0, x.dout_right.add(pairs * hdp));
            } else {
                pad::<S>(q, width, n, hd, s.scale, x.q.add(line * hdp));
                pad::<S>(dout, width, n, hd, 1.0, x.dout.add(line * hdp));
            }
            for i in (0..n).step_by(LANES) {
                // As math::dot, 16 rows at once.
                let mut sums = [S::splat(0.0); LANES];
                let count = LANES.min(n - i);
                for (r, sum) in sums.iter_mut().enumerate().take(count) {
                    let out = rows.out.add((i + r) * width + h * hd);
                    let mut d = 0;
                    let dout = dout.add((i + r) * width);
                    while d < hd {
                        *sum = S::fma(at::<S>(dout, d, hd), at::<S>(out, d, hd), *sum);
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
            if E::PAIRS {
                transpose_pairs::<S>(k, kv_width, keys, hd, x.kt);
                transpose_pairs::<S>(v, kv_width, keys, hd, x.vt);
                pair_rows::<S>(k, kv_width, keys, hd, 1.0, x.k);
            } else {
                transpose::<S>(k, kv_width, keys, hd, x.kt);
                transpose::<S>(v, kv_width, keys, hd, x.vt);
                pad::<S>(k, kv_width, keys, hd, 1.0, x.k);
            }
            zero::<S>(x.dk, keys * hdp);
            zero::<S>(x.dv, keys * hdp);
            for h in 0..group {
                let mut row = start;
                while row < n && s.first_key(row) < start + keys {
                    task.square::<S, E>(h, row, start, keys);
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
    unsafe fn square<S: Bytes, E: Element>(&self, h: usize, row: usize, start: usize, keys: usize) {
        let Task { shape: s, rows: operands, n, scratch: x } = *self;
        let (hd, hdp) = (s.head_dim, padded(s.head_dim));
        let rows = BLOCK.min(n - row);
        let line = h * n + row;
        let offset = row as isize - start as isize;
        // Words of a line and of a row of scores on the left, and where this head's rows are on the right.
        let (words, width, right) = match E::PAIRS {
            true => (hdp / 2, BLOCK / 2, h * n.div_ceil(2) + row / 2),
            false => (hdp, BLOCK, line),
        };
        let slopes = if E::PAIRS { x.slopes } else { x.ds };
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
                    a: x.q.add((line + r) * words),
                    a_row: words,
                    a_k: 1,
                    b: x.kt.cast::<E>(),
                    b_row: BLOCK,
                    c: x.p.add(r * BLOCK),
                    c_row: BLOCK,
                    vectors,
                    band: Band::all(hd).of::<E>(tile),
                    start: Start::Zero,
                };
                scores.run::<S>(tile);
                let (a, c) = (x.dout.add((line + r) * words), x.ds.add(r * BLOCK));
                Product { a, b: x.vt.cast(), c, ..scores }.run::<S>(tile);
                for i in 0..tile {
                    let r = r + i;
                    let lse = *operands.lse.add((row + r) * s.heads + h);
                    let (lse, delta) = (S::splat(lse), S::splat(*x.delta.add(line + r)));
                    let (p, ds) = (x.p.add(r * BLOCK), x.ds.add(r * BLOCK));
                    if let Some(cap) = s.cap {
                        cap_scores::<S>(p, vectors, cap);
                    }
                    for v in 0..vectors {
                        let (p, ds) = (p.add(v * LANES), ds.add(v * LANES));
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
                    if E::PAIRS {
                        // Products go over what is hidden.
                        for x in [p, ds] {
                            mask::<S>(x, vectors, visible.row(i), 0.0);
                            let rest = x.add(vectors * LANES);
                            zero::<S>(rest, BLOCK - vectors * LANES);
                        }
                        halves::<S>(ds, 0, 1, BLOCK, 1.0, slopes.add(r * width).cast());
                    }
                }
                let queries = Product {
                    a: slopes.add(r * width),
                    a_row: width,
                    a_k: 1,
                    b: x.k.cast::<E>(),
                    b_row: hdp,
                    c: x.dq.add((line + r) * hdp),
                    c_row: hdp,
                    vectors: hdp / LANES,
                    band: visible.of::<E>(tile),
                    start: Start::Go,
                };
                queries.run::<S>(tile);
            }
            if E::PAIRS {
                // Where they lie: a pair's place is before what is still to be read.
                pair_rows::<S>(x.p, BLOCK, rows, BLOCK, 1.0, x.p);
                pair_rows::<S>(x.ds, BLOCK, rows, BLOCK, 1.0, x.ds);
            }
            for j in (0..keys).step_by(band::rows::<S>()) {
                let tile = band::rows::<S>().min(keys - j);
                // Key j is seen by the rows of positions j .. j + window.
                let from = j as isize - offset;
                let seen_by = Band { from, to: from + s.reach(), slope: 1, depth: rows };
                let seen = Product {
                    a: x.ds.add(j),
                    a_row: 1,
                    a_k: BLOCK,
                    b: x.q_right.add(right * hdp).cast::<E>(),
                    b_row: hdp,
                    c: x.dk.add(j * hdp),
                    c_row: hdp,
                    vectors: hdp / LANES,
                    band: seen_by.of::<E>(tile),
                    start: Start::Go,
                };
                seen.run::<S>(tile);
                let (a, b) = (x.p.add(j), x.dout_right.add(right * hdp).cast());
                Product { a, b, c: x.dv.add(j * hdp), ..seen }.run::<S>(tile);
            }
        }
    }
}
