//! Activations, and the gate of a gated MLP (Shazeer 2020): `y = f(gate) * up`.
#![allow(unsafe_code)]

use super::Output;
use crate::gpu::args;
use crate::{Error, Gpu, Shape, Slice};

/// A function of one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))`, the GELU of GPT-2 and Gemma
    /// (Hendrycks and Gimpel 2016).
    Gelu,
}

impl Activation {
    /// As kernels number it.
    fn number(self) -> i32 {
        match self {
            Activation::Silu => 0,
            Activation::Gelu => 1,
        }
    }
}

/// `y = f(gate) * up`, element by element; without `up` `y = f(gate)`.
pub fn gated(
    gpu: &Gpu,
    f: Activation,
    gate: Slice<'_, f32>,
    up: Option<Slice<'_, f32>>,
    y: Output<'_>,
) -> Result<(), Error> {
    let n = y.len();
    assert!(gate.len() == n && up.is_none_or(|up| up.len() == n), "elements of a gate");
    let args = args![f.number(), gate, up, n, y.f32, y.bf16];
    // SAFETY: elements below n.
    unsafe { gpu.launch("gated", Shape::over(n), args) }
}

/// Writes `dgate = dy * up * f'(gate)` and `dup = dy * f(gate)`; without `up` the first only.
pub fn gated_backward(
    gpu: &Gpu,
    f: Activation,
    gate: Slice<'_, f32>,
    up: Option<(Slice<'_, f32>, Output<'_>)>,
    dy: Slice<'_, f32>,
    dgate: Output<'_>,
) -> Result<(), Error> {
    let n = dy.len();
    assert!(gate.len() == n && dgate.len() == n, "elements of a gate");
    let (up, dup) = up.map_or((None, None), |(up, dup)| (Some(up), Some(dup)));
    assert!(up.is_none_or(|up| up.len() == n), "elements of a gate");
    assert!(dup.as_ref().is_none_or(|dup| dup.len() == n), "elements of a gate");
    let (dup_f32, dup_bf16) = dup.map_or((None, None), |dup| (dup.f32, dup.bf16));
    let args = args![f.number(), gate, up, dy, n, dgate.f32, dgate.bf16, dup_f32, dup_bf16];
    // SAFETY: elements below n.
    unsafe { gpu.launch("gated_backward", Shape::over(n), args) }
}
