//! Softmax cross-entropy of rows of logits.
#![allow(unsafe_code)]

use super::Cpu;
use super::rows::Parts;
use crate::math::exp;
use crate::simd::{Simd, at, put};

/// `nll[r] = -ln softmax(logits[r])[targets[r]]` in nats. With `weights` (one a row), `logits`
/// becomes the gradient of `sum(weights * nll)`.
///
/// `logits`: `[rows, vocab]`; `targets`, `nll`: `[rows]`; `weights`: `[rows]` or empty.
///
/// # Panics
/// If a target is outside of the vocabulary.
pub fn cross_entropy(
    cpu: &Cpu,
    logits: &mut [f32],
    targets: &[u32],
    weights: &[f32],
    nll: &mut [f32],
) {
    let rows = targets.len();
    let vocab = logits.len() / rows.max(1);
    assert!(logits.len() == rows * vocab && nll.len() == rows);
    assert!(weights.is_empty() || weights.len() == rows);
    let (logits, nll) = (Parts::new(logits), Parts::new(nll));
    cpu.pool.split(rows, 4, |r| {
        // SAFETY: ranges of rows are disjoint.
        let (l, nll) = unsafe { (logits.part(r.start * vocab..r.end * vocab), nll.part(r.clone())) };
        let w = if weights.is_empty() { weights } else { &weights[r.clone()] };
        let t = &targets[r];
        crate::dispatch!(cpu.isa, rows_kernel(l: &mut [f32] = l, t: &[u32] = t, w: &[f32] = w, nll: &mut [f32] = nll));
    });
}

#[inline(always)]
unsafe fn rows_kernel<S: Simd>(
    logits: &mut [f32],
    targets: &[u32],
    weights: &[f32],
    nll: &mut [f32],
) {
    let n = logits.len() / targets.len();
    for (r, row) in logits.chunks_exact_mut(n).enumerate() {
        let target = targets[r] as usize;
        let chosen = row[target];
        let p = row.as_mut_ptr();
        // SAFETY: the row holds n elements.
        unsafe {
            let mut top = S::splat(f32::NEG_INFINITY);
            let mut i = 0;
            while i + 16 <= n {
                top = S::max(S::load(p.add(i)), top);
                i += 16;
            }
            let mut max = S::max_lane(top);
            row[i..].iter().for_each(|x| max = max.max(*x));

            let shift = S::splat(max);
            let mut sum = S::splat(0.0);
            for i in (0..n).step_by(16) {
                let mut e = exp::<S>(S::sub(at::<S>(p, i, n), shift));
                if n - i < 16 {
                    // Lanes past the end weigh nothing.
                    let mut lanes = S::to_array(e);
                    lanes[n - i..].fill(0.0);
                    e = S::load(lanes.as_ptr());
                }
                sum = S::add(sum, e);
                if !weights.is_empty() {
                    put::<S>(p, i, n, e);
                }
            }
            let sum = S::sum(sum);
            nll[r] = max - chosen + libm::logf(sum);
            if !weights.is_empty() {
                let scale = S::splat(weights[r] / sum);
                for i in (0..n).step_by(16) {
                    put::<S>(p, i, n, S::mul(at::<S>(p, i, n), scale));
                }
                row[target] -= weights[r];
            }
        }
    }
}
