//! What optimizers do to whole parameters, element by element.
#![allow(unsafe_code)]

use super::Cpu;
use super::rows::Parts;
use crate::math::sum_of_squares;
use crate::simd::{Simd, at, put};

const GRAIN: usize = 4096;

/// Settings of one AdamW step.
#[derive(Clone, Copy, Debug)]
pub struct AdamW {
    /// Learning rate.
    pub lr: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the denominator.
    pub eps: f32,
    /// Decoupled weight decay, times the learning rate.
    pub weight_decay: f32,
    /// Number of this step, from 1.
    pub step: u64,
}

/// AdamW (Loshchilov and Hutter 2019): moments with bias correction, decay apart from the
/// gradient. All slices have one length.
pub fn adamw(cpu: &Cpu, s: AdamW, x: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
    let len = x.len();
    assert!(g.len() == len && m.len() == len && v.len() == len);
    let (x, m, v) = (Parts::new(x), Parts::new(m), Parts::new(v));
    cpu.pool.split(len, GRAIN, |r| {
        // SAFETY: ranges are disjoint.
        let (x, m, v) = unsafe { (x.part(r.clone()), m.part(r.clone()), v.part(r.clone())) };
        let g = &g[r];
        crate::dispatch!(cpu.isa, adamw_kernel(s: AdamW = s, x: &mut [f32] = x, g: &[f32] = g, m: &mut [f32] = m, v: &mut [f32] = v));
    });
}

#[inline(always)]
unsafe fn adamw_kernel<S: Simd>(s: AdamW, x: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
    let n = x.len();
    let correct1 = 1.0 - libm::pow(f64::from(s.beta1), s.step as f64);
    let correct2 = 1.0 - libm::pow(f64::from(s.beta2), s.step as f64);
    // SAFETY: all hold n elements.
    unsafe {
        let (b1, b2) = (S::splat(s.beta1), S::splat(s.beta2));
        let (c1, c2) = (S::splat(1.0 - s.beta1), S::splat(1.0 - s.beta2));
        let rate = S::splat(-(f64::from(s.lr) / correct1) as f32);
        let root = S::splat((1.0 / correct2) as f32);
        let (eps, keep) = (S::splat(s.eps), S::splat(1.0 - s.lr * s.weight_decay));
        for i in (0..n).step_by(16) {
            let g = at::<S>(g.as_ptr(), i, n);
            let m1 = S::fma(b1, at::<S>(m.as_ptr(), i, n), S::mul(c1, g));
            let v1 = S::fma(b2, at::<S>(v.as_ptr(), i, n), S::mul(c2, S::mul(g, g)));
            put::<S>(m.as_mut_ptr(), i, n, m1);
            put::<S>(v.as_mut_ptr(), i, n, v1);
            let step = S::div(m1, S::add(S::sqrt(S::mul(v1, root)), eps));
            let x1 = S::fma(rate, step, S::mul(keep, at::<S>(x.as_ptr(), i, n)));
            put::<S>(x.as_mut_ptr(), i, n, x1);
        }
    }
}

/// `y = a * x + b * y`.
pub fn axpby(cpu: &Cpu, a: f32, x: &[f32], b: f32, y: &mut [f32]) {
    let len = y.len();
    assert_eq!(x.len(), len);
    let y = Parts::new(y);
    cpu.pool.split(len, GRAIN, |r| {
        // SAFETY: ranges are disjoint.
        let y = unsafe { y.part(r.clone()) };
        let x = &x[r];
        crate::dispatch!(cpu.isa, axpby_kernel(a: f32 = a, x: &[f32] = x, b: f32 = b, y: &mut [f32] = y));
    });
}

#[inline(always)]
unsafe fn axpby_kernel<S: Simd>(a: f32, x: &[f32], b: f32, y: &mut [f32]) {
    let n = y.len();
    // SAFETY: both hold n elements.
    unsafe {
        let (a, b) = (S::splat(a), S::splat(b));
        for i in (0..n).step_by(16) {
            let v = S::fma(a, at::<S>(x.as_ptr(), i, n), S::mul(b, at::<S>(y.as_ptr(), i, n)));
            put::<S>(y.as_mut_ptr(), i, n, v);
        }
    }
}

/// `y = x`.
pub fn copy(cpu: &Cpu, x: &[f32], y: &mut [f32]) {
    let len = y.len();
    assert_eq!(x.len(), len);
    let y = Parts::new(y);
    cpu.pool.split(len, GRAIN, |r| {
        // SAFETY: ranges are disjoint.
        unsafe { y.part(r.clone()) }.copy_from_slice(&x[r]);
    });
}

/// The sum of squares in f64, over parts of 4,096 elements in order.
pub fn squared_norm(cpu: &Cpu, x: &[f32]) -> f64 {
    x.chunks(GRAIN)
        .map(|part| {
            let (p, n) = (part.as_ptr(), part.len());
            f64::from(
                crate::dispatch!(cpu.isa, sum_of_squares(p: *const f32 = p, n: usize = n) -> f32),
            )
        })
        .sum()
}
