//! Softmax cross-entropy of rows of logits, and what tokens weigh in a draw.
#![allow(unsafe_code)]

use super::Cpu;
use super::rows::Parts;
use crate::math::{exp, exp_masked};
use crate::simd::{Isa, Simd, at, put};

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

/// `weights[i] = e^((logits[i] - max) / temperature)`: 1 for the likeliest, 0 for -inf, the same bits on every
/// instruction set.
pub fn weights(isa: Isa, logits: &[f32], temperature: f32, weights: &mut Vec<f32>) {
    assert!(isa.available());
    weights.resize(logits.len(), 0.0);
    let out = &mut weights[..];
    crate::dispatch!(isa, weigh(logits: &[f32] = logits, temperature: f32 = temperature, out: &mut [f32] = out));
}

#[inline(always)]
unsafe fn weigh<S: Simd>(logits: &[f32], temperature: f32, out: &mut [f32]) {
    let n = logits.len();
    let (from, to) = (logits.as_ptr(), out.as_mut_ptr());
    // SAFETY: both hold n elements.
    unsafe {
        let mut top = S::splat(f32::NEG_INFINITY);
        let mut i = 0;
        while i + 16 <= n {
            top = S::max(S::load(from.add(i)), top);
            i += 16;
        }
        let max = logits[i..].iter().copied().fold(S::max_lane(top), f32::max);
        let (shift, scale) = (S::splat(max), S::splat(temperature));
        for i in (0..n).step_by(16) {
            let x = S::div(S::sub(at::<S>(from, i, n), shift), scale);
            put::<S>(to, i, n, exp_masked::<S>(x));
        }
    }
}
