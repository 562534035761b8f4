//! What is done to values and whole parameters, element by element.
#![allow(unsafe_code)]

use crate::gpu::{args, count};
use crate::{Error, Gpu, Shape, Slice, SliceMut};

/// Elements of a partial sum of [`squared_norm`].
const PART: usize = 1 << 16;

/// `y = value`.
pub fn fill(gpu: &Gpu, value: f32, y: SliceMut<'_, f32>) -> Result<(), Error> {
    let n = y.len();
    // SAFETY: elements below n.
    unsafe { gpu.launch("fill", Shape::over(n), args![value, y, n]) }
}

/// `y = x`, of one length.
pub fn copy(_: &Gpu, x: Slice<'_, f32>, mut y: SliceMut<'_, f32>) -> Result<(), Error> {
    y.copy(x)
}

/// `y = a x + b y`, of one length. If `b` is 0, whatever `y` held is forgotten.
pub fn axpby(
    gpu: &Gpu,
    a: f32,
    x: Slice<'_, f32>,
    b: f32,
    y: SliceMut<'_, f32>,
) -> Result<(), Error> {
    let n = y.len();
    assert_eq!(x.len(), n, "elements to add");
    // SAFETY: elements below n.
    unsafe { gpu.launch("axpby", Shape::over(n), args![a, x, b, y, n]) }
}

/// `y = a y`.
pub fn scale(gpu: &Gpu, a: f32, y: SliceMut<'_, f32>) -> Result<(), Error> {
    let n = y.len();
    // SAFETY: elements below n.
    unsafe { gpu.launch("scale", Shape::over(n), args![a, y, n]) }
}

/// `y = x` to the nearest bf16, ties to even. Of one length.
pub fn round_bf16(gpu: &Gpu, x: Slice<'_, f32>, y: SliceMut<'_, u16>) -> Result<(), Error> {
    let n = y.len();
    assert_eq!(x.len(), n, "elements to round");
    // SAFETY: elements below n.
    unsafe { gpu.launch("round_bf16", Shape::over(n), args![x, y, n]) }
}

/// `y = x` of bf16. Of one length.
pub fn widen_bf16(gpu: &Gpu, x: Slice<'_, u16>, y: SliceMut<'_, f32>) -> Result<(), Error> {
    let n = y.len();
    assert_eq!(x.len(), n, "elements to widen");
    // SAFETY: elements below n.
    unsafe { gpu.launch("widen_bf16", Shape::over(n), args![x, y, n]) }
}

/// Number of partial sums of [`squared_norm`].
pub fn parts(len: usize) -> usize {
    len.div_ceil(PART)
}

/// Sums of squares of the parts of `x`, into [`parts`] many `sums`. Their sum, in order and in f64, is
/// the squared norm; so the norms of many parameters are read back at once.
pub fn squared_norm(gpu: &Gpu, x: Slice<'_, f32>, sums: SliceMut<'_, f32>) -> Result<(), Error> {
    let (n, part) = (x.len(), count(PART));
    assert_eq!(sums.len(), parts(n), "partial sums");
    let shape = Shape::new(sums.len(), 256);
    // SAFETY: block i reads the elements of part i below n and writes sum i.
    unsafe { gpu.launch("squares_of_parts", shape, args![x, n, part, sums]) }
}
