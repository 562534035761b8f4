//! A soft limit on logits: `x = cap * tanh(x / cap)`.
#![allow(unsafe_code)]

use crate::gpu::args;
use crate::{Error, Gpu, Shape, Slice, SliceMut};

/// Caps every element where it lies.
pub fn cap(gpu: &Gpu, cap: f32, x: SliceMut<'_, f32>) -> Result<(), Error> {
    let n = x.len();
    // SAFETY: elements below n.
    unsafe { gpu.launch("cap", Shape::over(n), args![cap, x, n]) }
}

/// `dy *= 1 - (y / cap)^2`, where `y` was capped: the slope of tanh. Of one length.
pub fn cap_backward(
    gpu: &Gpu,
    cap: f32,
    y: Slice<'_, f32>,
    dy: SliceMut<'_, f32>,
) -> Result<(), Error> {
    let n = y.len();
    assert_eq!(dy.len(), n, "gradients of capped elements");
    // SAFETY: elements below n.
    unsafe { gpu.launch("cap_backward", Shape::over(n), args![cap, y, dy, n]) }
}
