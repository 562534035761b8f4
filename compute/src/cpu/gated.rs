//! Activations, and the gate of a gated MLP (Shazeer 2020): `y = f(gate) * up`.
#![allow(unsafe_code)]

use super::Cpu;
use super::rows::Parts;
use crate::math::sigmoid;
use crate::simd::{Simd, at, put};

/// Elements of one grain of work.
const GRAIN: usize = 4096;

/// A function of one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))`, the GELU of GPT-2 and Gemma
    /// (Hendrycks and Gimpel 2016).
    Gelu,
}

/// `(1 + tanh(u)) / 2 = sigmoid(2 u)`, so the GELU is `x * sigmoid(A x + B x^3)`.
const A: f32 = 1.595_769;
const B: f32 = A * 0.044_715;

impl Activation {
    /// Where the sigmoid is taken, and the slope of that.
    #[inline(always)]
    unsafe fn inner<S: Simd>(self, x: S::F) -> (S::F, S::F) {
        // SAFETY: the instruction set is the caller's promise, as in all of these.
        unsafe {
            match self {
                Activation::Silu => (x, S::splat(1.0)),
                Activation::Gelu => {
                    let square = S::mul(x, x);
                    let inner = S::mul(x, S::fma(square, S::splat(B), S::splat(A)));
                    (inner, S::fma(square, S::splat(3.0 * B), S::splat(A)))
                }
            }
        }
    }

    /// `f(x)`.
    #[inline(always)]
    unsafe fn value<S: Simd>(self, x: S::F) -> S::F {
        // SAFETY: see above.
        unsafe { S::mul(x, sigmoid::<S>(self.inner::<S>(x).0)) }
    }

    /// `f(x)` and `f'(x) = s * (1 + x * (1 - s) * inner')`, where s is the sigmoid.
    #[inline(always)]
    unsafe fn slope<S: Simd>(self, x: S::F) -> (S::F, S::F) {
        // SAFETY: see above.
        unsafe {
            let one = S::splat(1.0);
            let (inner, slope) = self.inner::<S>(x);
            let s = sigmoid::<S>(inner);
            let rest = match self {
                Activation::Silu => S::sub(one, s),
                Activation::Gelu => S::mul(S::sub(one, s), slope),
            };
            (S::mul(x, s), S::mul(s, S::fma(x, rest, one)))
        }
    }
}

/// `y = f(gate) * up`, element by element; without `up` `y = f(gate)`.
pub fn gated(cpu: &Cpu, f: Activation, gate: &[f32], up: Option<&[f32]>, y: &mut [f32]) {
    assert!(gate.len() == y.len() && up.is_none_or(|up| up.len() == y.len()));
    let len = y.len();
    let y = Parts::new(y);
    cpu.pool.split(len, GRAIN, |r| {
        // SAFETY: ranges are disjoint.
        let y = unsafe { y.part(r.clone()) };
        let (g, u) = (&gate[r.clone()], up.map(|up| &up[r]));
        crate::dispatch!(cpu.isa, forward(f: Activation = f, g: &[f32] = g, u: Option<&[f32]> = u, y: &mut [f32] = y));
    });
}

#[inline(always)]
unsafe fn forward<S: Simd>(f: Activation, g: &[f32], u: Option<&[f32]>, y: &mut [f32]) {
    let n = y.len();
    // SAFETY: all hold n elements.
    unsafe {
        for i in (0..n).step_by(16) {
            let value = f.value::<S>(at::<S>(g.as_ptr(), i, n));
            let value = match u {
                Some(u) => S::mul(value, at::<S>(u.as_ptr(), i, n)),
                None => value,
            };
            put::<S>(y.as_mut_ptr(), i, n, value);
        }
    }
}

/// Writes `dgate = dy * up * f'(gate)` and `dup = dy * f(gate)`; without `up` the first only.
pub fn gated_backward(
    cpu: &Cpu,
    f: Activation,
    gate: &[f32],
    up: Option<(&[f32], &mut [f32])>,
    dy: &[f32],
    dgate: &mut [f32],
) {
    let len = dy.len();
    assert!(gate.len() == len && dgate.len() == len);
    assert!(up.as_ref().is_none_or(|(up, dup)| up.len() == len && dup.len() == len));
    let dgate = Parts::new(dgate);
    let up = up.map(|(up, dup)| (up, Parts::new(dup)));
    cpu.pool.split(len, GRAIN, |r| {
        // SAFETY: ranges are disjoint.
        let dg = unsafe { dgate.part(r.clone()) };
        // SAFETY: see above.
        let u = up.as_ref().map(|(up, dup)| (&up[r.clone()], unsafe { dup.part(r.clone()) }));
        let (g, dy) = (&gate[r.clone()], &dy[r]);
        crate::dispatch!(cpu.isa, backward(f: Activation = f, g: &[f32] = g, u: Option<(&[f32], &mut [f32])> = u, dy: &[f32] = dy, dg: &mut [f32] = dg));
    });
}

#[inline(always)]
unsafe fn backward<S: Simd>(
    f: Activation,
    g: &[f32],
    mut u: Option<(&[f32], &mut [f32])>,
    dy: &[f32],
    dg: &mut [f32],
) {
    let n = dy.len();
    // SAFETY: all hold n elements.
    unsafe {
        for i in (0..n).step_by(16) {
            let d = at::<S>(dy.as_ptr(), i, n);
            let (value, slope) = f.slope::<S>(at::<S>(g.as_ptr(), i, n));
            let d = match &mut u {
                Some((u, du)) => {
                    put::<S>(du.as_mut_ptr(), i, n, S::mul(d, value));
                    S::mul(d, at::<S>(u.as_ptr(), i, n))
                }
                None => d,
            };
            put::<S>(dg.as_mut_ptr(), i, n, S::mul(d, slope));
        }
    }
}
