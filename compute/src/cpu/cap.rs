//! A soft limit on logits: `x = cap * tanh(x / cap)`.
#![allow(unsafe_code)]

use super::Cpu;
use super::rows::Parts;
use crate::math::tanh;
use crate::simd::{Simd, at, put};

/// Caps every element where it lies.
pub fn cap(cpu: &Cpu, cap: f32, x: &mut [f32]) {
    let len = x.len();
    let x = Parts::new(x);
    cpu.pool.split(len, 4096, |r| {
        // SAFETY: ranges are disjoint.
        let x = unsafe { x.part(r) };
        crate::dispatch!(cpu.isa, kernel(cap: f32 = cap, x: &mut [f32] = x));
    });
}

#[inline(always)]
unsafe fn kernel<S: Simd>(cap: f32, x: &mut [f32]) {
    let n = x.len();
    // SAFETY: x holds n elements.
    unsafe {
        let inverse = S::splat(1.0 / cap);
        for i in (0..n).step_by(16) {
            let y = tanh::<S>(S::mul(at::<S>(x.as_ptr(), i, n), inverse));
            put::<S>(x.as_mut_ptr(), i, n, S::mul(S::splat(cap), y));
        }
    }
}
