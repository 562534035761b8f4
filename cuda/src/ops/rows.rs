//! Rows by number: out of a batch, and back.
#![allow(unsafe_code)]

use super::{Output, threads};
use crate::gpu::{args, count};
use crate::{Element, Error, Gpu, Shape, Slice, SliceMut};

/// `y[r] = x[ids[r]]`, and NaN where there is no such row. `x`: `[any, width]`, `y`: `[ids, width]`.
pub fn gather(
    gpu: &Gpu,
    x: Slice<'_, f32>,
    ids: Slice<'_, u32>,
    width: usize,
    y: Output<'_>,
) -> Result<(), Error> {
    gather_as(gpu, "gather_f32", x, ids, width, y)
}

/// As [`gather`], of bf16.
pub fn gather_bf16(
    gpu: &Gpu,
    x: Slice<'_, u16>,
    ids: Slice<'_, u32>,
    width: usize,
    y: Output<'_>,
) -> Result<(), Error> {
    gather_as(gpu, "gather_bf16", x, ids, width, y)
}

fn gather_as<T: Element>(
    gpu: &Gpu,
    kernel: &'static str,
    x: Slice<'_, T>,
    ids: Slice<'_, u32>,
    width: usize,
    y: Output<'_>,
) -> Result<(), Error> {
    let rows = x.len() / width.max(1);
    assert!(x.len() == rows * width && y.len() == ids.len() * width, "rows of {width}");
    let shape = Shape::new(ids.len(), threads(width));
    // SAFETY: a block writes one row, and reads one that is there.
    unsafe { gpu.launch(kernel, shape, args![x, count(rows), ids, count(width), y.f32, y.bf16]) }
}

/// `y[ids[r]] = x[r]`; ids must be different (else one of their rows is written, any), and those that `y`
/// doesn't have are left out. `x`: `[ids, width]`, `y`: `[any, width]`.
pub fn scatter(
    gpu: &Gpu,
    x: Slice<'_, f32>,
    ids: Slice<'_, u32>,
    width: usize,
    y: SliceMut<'_, f32>,
) -> Result<(), Error> {
    scatter_as(gpu, x, ids, None, width, y)
}

/// As [`scatter`], but `y[ids[r]] += weights[r] * x[r]`.
pub fn scatter_add(
    gpu: &Gpu,
    x: Slice<'_, f32>,
    ids: Slice<'_, u32>,
    weights: Slice<'_, f32>,
    width: usize,
    y: SliceMut<'_, f32>,
) -> Result<(), Error> {
    assert_eq!(weights.len(), ids.len(), "one weight a row");
    scatter_as(gpu, x, ids, Some(weights), width, y)
}

fn scatter_as(
    gpu: &Gpu,
    x: Slice<'_, f32>,
    ids: Slice<'_, u32>,
    weights: Option<Slice<'_, f32>>,
    width: usize,
    y: SliceMut<'_, f32>,
) -> Result<(), Error> {
    let rows = y.len() / width.max(1);
    assert!(x.len() == ids.len() * width && y.len() == rows * width, "rows of {width}");
    let shape = Shape::new(ids.len(), threads(width));
    // SAFETY: a block reads one row and writes one that is there.
    unsafe { gpu.launch("scatter", shape, args![x, ids, weights, count(width), count(rows), y]) }
}
