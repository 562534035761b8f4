//! The gate of a gated MLP (Shazeer 2020): `y = silu(gate) * up`.
#![allow(unsafe_code)]

use super::Cpu;
use super::rows::Parts;
use crate::math::sigmoid;
use crate::simd::{Simd, at, put};

/// Elements of one grain of work.
const GRAIN: usize = 4096;

/// `y = gate * sigmoid(gate) * up`, element by element.
pub fn swiglu(cpu: &Cpu, gate: &[f32], up: &[f32], y: &mut [f32]) {
    assert!(gate.len() == y.len() && up.len() == y.len());
    let len = y.len();
    let y = Parts::new(y);
    cpu.pool.split(len, GRAIN, |r| {
        // SAFETY: ranges are disjoint.
        let y = unsafe { y.part(r.clone()) };
        let (g, u) = (&gate[r.clone()], &up[r]);
        crate::dispatch!(cpu.isa, forward(g: &[f32] = g, u: &[f32] = u, y: &mut [f32] = y));
    });
}

#[inline(always)]
unsafe fn forward<S: Simd>(g: &[f32], u: &[f32], y: &mut [f32]) {
    let n = y.len();
    // SAFETY: all hold n elements.
    unsafe {
        for i in (0..n).step_by(16) {
            let gate = at::<S>(g.as_ptr(), i, n);
            let silu = S::mul(gate, sigmoid::<S>(gate));
            put::<S>(y.as_mut_ptr(), i, n, S::mul(silu, at::<S>(u.as_ptr(), i, n)));
        }
    }
}

/// Writes `dgate` and `dup`. With `s = sigmoid(gate)`: `dup = dy * gate * s`,
/// `dgate = dy * up * s * (1 + gate * (1 - s))`.
pub fn swiglu_backward(
    cpu: &Cpu,
    gate: &[f32],
    up: &[f32],
    dy: &[f32],
    dgate: &mut [f32],
    dup: &mut [f32],
) {
    let len = dy.len();
    assert!([gate.len(), up.len(), dgate.len(), dup.len()].into_iter().all(|l| l == len));
    let (dgate, dup) = (Parts::new(dgate), Parts::new(dup));
    cpu.pool.split(len, GRAIN, |r| {
        // SAFETY: ranges are disjoint.
        let (dg, du) = unsafe { (dgate.part(r.clone()), dup.part(r.clone())) };
        let (g, u, dy) = (&gate[r.clone()], &up[r.clone()], &dy[r]);
        crate::dispatch!(cpu.isa, backward(g: &[f32] = g, u: &[f32] = u, dy: &[f32] = dy, dg: &mut [f32] = dg, du: &mut [f32] = du));
    });
}

#[inline(always)]
unsafe fn backward<S: Simd>(g: &[f32], u: &[f32], dy: &[f32], dg: &mut [f32], du: &mut [f32]) {
    let n = dy.len();
    // SAFETY: all hold n elements.
    unsafe {
        let one = S::splat(1.0);
        for i in (0..n).step_by(16) {
            let (gate, d) = (at::<S>(g.as_ptr(), i, n), at::<S>(dy.as_ptr(), i, n));
            let s = sigmoid::<S>(gate);
            put::<S>(du.as_mut_ptr(), i, n, S::mul(d, S::mul(gate, s)));
            let slope = S::mul(s, S::fma(gate, S::sub(one, s), one));
            let du = S::mul(d, at::<S>(u.as_ptr(), i, n));
            put::<S>(dg.as_mut_ptr(), i, n, S::mul(du, slope));
        }
    }
}
