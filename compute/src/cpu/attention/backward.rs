//! The backward pass: weights are computed again from the kept logarithms of the sums.

use std::cell::RefCell;

use super::{AttentionShape, BLOCK, gather, transpose_blocks};
use crate::Span;
use crate::cpu::Cpu;
use crate::cpu::rows::Parts;
use crate::cpu::tile::product;
use crate::math::{dot, exp};
use crate::simd::{LANES, Simd};

/// Query rows that are worked on together: as many as the sums over rows like, for their outputs
/// are read and written once for so many.
const ROWS: usize = 48;

#[derive(Default)]
struct Scratch {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    dout: Vec<f32>,
    out: Vec<f32>,
    weights: Vec<f32>,
    dscores: Vec<f32>,
    dq: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Writes the gradients `dq` (`[rows, heads * head_dim]`), `dk` and `dv`
/// (`[rows, kv_heads * head_dim]`) from that of the output, `dout`, and what
/// [`forward`](super::forward()) had and gave.
///
/// With weights `p` and `D_i = out_i · dout_i`: `dv_j = Σ p_ij dout_i`,
/// `ds_ij = p_ij (dout_i · v_j - D_i)`, `dq_i = scale Σ ds_ij k_j`, `dk_j = scale Σ ds_ij q_i`.
/// Chains over rows go head by head of a group, rows in order; those over keys in order.
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
    let (hd, padded) = (s.head_dim, s.padded());
    let (wide, narrow) = (s.heads * hd, s.kv_heads * hd);
    assert!(dq.len() == q.len() && dk.len() == k.len() && dv.len() == v.len());
    let (dq, dk, dv) = (Parts::new(dq), Parts::new(dk), Parts::new(dv));
    cpu.pool.run(spans.len() * s.kv_heads, |task| {
        let (span, head) = (spans[task / s.kv_heads], task % s.kv_heads);
        let all = span.start..span.start + span.len;
        let mut t = SCRATCH.take();
        gather(k, narrow, all.clone(), head * hd, hd, padded, 1.0, &mut t.k);
        gather(v, narrow, all.clone(), head * hd, hd, padded, 1.0, &mut t.v);
        transpose_blocks(&t.k, padded, hd, &mut t.keys);
        transpose_blocks(&t.v, padded, hd, &mut t.values);
        let whole = span.len.next_multiple_of(BLOCK) * padded;
        t.k.resize(whole, 0.0);
        for d in [&mut t.dk, &mut t.dv] {
            d.clear();
            d.resize(whole, 0.0);
        }
        t.weights.resize(ROWS * BLOCK, 0.0);
        t.dscores.resize(ROWS * BLOCK, 0.0);
        let group = s.heads / s.kv_heads;
        for h in head * group..(head + 1) * group {
            for start in (0..span.len).step_by(ROWS) {
                let n = ROWS.min(span.len - start);
                let rows = span.start + start..span.start + start + n;
                gather(q, wide, rows.clone(), h * hd, hd, padded, s.scale, &mut t.q);
                gather(dout, wide, rows.clone(), h * hd, hd, padded, 1.0, &mut t.dout);
                gather(out, wide, rows.clone(), h * hd, hd, padded, 1.0, &mut t.out);
                t.dq.clear();
                t.dq.resize(ROWS * padded, 0.0);
                let mut sums = [0.0; ROWS];
                for (r, sum) in rows.clone().zip(&mut sums) {
                    *sum = lse[r * s.heads + h];
                }
                let work = Work { s, position: start, rows: n, lse: &sums };
                let t = &mut t;
                crate::dispatch!(cpu.isa, rows_kernel(work: &Work<'_> = &work, t: &mut Scratch = t));
                for (r, d) in rows.zip(t.dq.chunks_exact(padded)) {
                    // SAFETY: tasks have spans or heads of their own.
                    let to = unsafe { dq.part(r * wide + h * hd..r * wide + (h + 1) * hd) };
                    to.iter_mut().zip(d).for_each(|(to, d)| *to = d * s.scale);
                }
            }
        }
        for (i, r) in all.enumerate() {
            for (to, from) in [(&dk, &t.dk), (&dv, &t.dv)] {
                // SAFETY: as above.
                let to = unsafe { to.part(r * narrow + head * hd..r * narrow + (head + 1) * hd) };
                to.copy_from_slice(&from[i * padded..i * padded + hd]);
            }
        }
        SCRATCH.set(t);
    });
}

/// Some query rows of one head at consecutive positions.
struct Work<'a> {
    s: &'a AttentionShape,
    position: usize,
    rows: usize,
    lse: &'a [f32; ROWS],
}

#[inline(always)]
unsafe fn rows_kernel<S: Simd>(work: &Work<'_>, t: &mut Scratch) {
    let s = work.s;
    let (hd, padded, rows) = (s.head_dim, s.padded(), work.rows);
    let (weights, dscores) = (t.weights.as_mut_ptr(), t.dscores.as_mut_ptr());
    let mut inner = [0.0; ROWS];
    for (r, inner) in inner.iter_mut().enumerate().take(rows) {
        // SAFETY: both hold [rows, padded].
        *inner = unsafe {
            dot::<S>(t.out.as_ptr().add(r * padded), t.dout.as_ptr().add(r * padded), padded)
        };
    }
    let first = s.visible(work.position).start / BLOCK;
    let last = (work.position + rows - 1) / BLOCK;
    for b in first..=last {
        let columns = (work.position + rows - b * BLOCK).min(BLOCK).next_multiple_of(LANES);
        let from = b * BLOCK * padded;
        // SAFETY: q, dout, dq are [rows, padded]; keys and values [blocks][hd][64]; k, dk, dv
        // [blocks * 64, padded]; weights and dscores [ROWS][64].
        unsafe {
            let shape = (rows, columns, hd);
            let keys = t.keys.as_ptr().add(b * BLOCK * hd);
            let values = t.values.as_ptr().add(b * BLOCK * hd);
            let (q, dout) = (t.q.as_ptr(), t.dout.as_ptr());
            product::<S>(shape, (q, padded, 1), (keys, BLOCK), (weights, BLOCK), false);
            product::<S>(shape, (dout, padded, 1), (values, BLOCK), (dscores, BLOCK), false);
            for r in 0..rows {
                let seen = s.visible(work.position + r);
                let clip = |x: usize| x.saturating_sub(b * BLOCK).min(BLOCK);
                let (start, end) = (clip(seen.start), clip(seen.end));
                let (p, d) = (weights.add(r * BLOCK), dscores.add(r * BLOCK));
                let (lse, inner) = (S::splat(work.lse[r]), S::splat(inner[r]));
                for i in (0..columns).step_by(LANES) {
                    let e = exp::<S>(S::sub(S::load(p.add(i)), lse));
                    S::store(p.add(i), e);
                    S::store(d.add(i), S::mul(e, S::sub(S::load(d.add(i)), inner)));
                }
                for i in (0..start).chain(end..columns) {
                    *p.add(i) = 0.0;
                    *d.add(i) = 0.0;
                }
            }
            let (k, dq) = (t.k.as_ptr().add(from), t.dq.as_mut_ptr());
            let keys = columns.min(BLOCK);
            product::<S>(
                (rows, padded, keys),
                (dscores, BLOCK, 1),
                (k, padded),
                (dq, padded),
                true,
            );
            let (dk, dv) = (t.dk.as_mut_ptr().add(from), t.dv.as_mut_ptr().add(from));
            let sums = (keys, padded, rows);
            product::<S>(sums, (dscores, 1, BLOCK), (q, padded), (dk, padded), true);
            product::<S>(sums, (weights, 1, BLOCK), (dout, padded), (dv, padded), true);
        }
    }
}
