//! Layer normalisation (Ba et al. 2016): `y = (x - mean(x)) / std(x) * w + b`.
#![allow(unsafe_code)]

use super::{Output, Sums, bias, threads};
use crate::gpu::{args, count};
use crate::{Error, Gpu, Shape, Slice, SliceMut};

/// `y[r] = (x[r] - mean) * inv * w + b` with `inv = 1 / sqrt(variance + eps)`; `stats` keeps mean and
/// inv of each row for the way back.
///
/// `x`, `y`: `[rows, width]`; `w`, `b`: `[width]`; `stats`: `[rows, 2]`.
pub fn layer_norm(
    gpu: &Gpu,
    x: Slice<'_, f32>,
    (w, b): (Slice<'_, f32>, Slice<'_, f32>),
    eps: f32,
    y: Output<'_>,
    stats: Option<SliceMut<'_, f32>>,
) -> Result<(), Error> {
    let (width, rows) = (w.len(), x.len() / w.len().max(1));
    assert!(x.len() == rows * width && y.len() == x.len() && b.len() == width, "rows of {width}");
    assert!(stats.as_ref().is_none_or(|stats| stats.len() == 2 * rows), "two numbers a row");
    let shape = Shape::new(rows, threads(width));
    let args = args![x, w, b, eps, count(width), y.f32, y.bf16, stats];
    // SAFETY: a block goes through one of the rows.
    unsafe { gpu.launch("layer_norm", shape, args) }
}

/// Writes `dx` (`[rows, width]`), or adds to it with `more`, and adds to the gradients of `w` and `b`,
/// from `dy` and what forward had.
#[allow(clippy::too_many_arguments)]
pub fn layer_norm_backward(
    gpu: &Gpu,
    x: Slice<'_, f32>,
    w: Slice<'_, f32>,
    stats: Slice<'_, f32>,
    dy: Slice<'_, f32>,
    dx: SliceMut<'_, f32>,
    more: bool,
    dw: Option<Sums<'_>>,
    db: Option<Sums<'_>>,
) -> Result<(), Error> {
    let (width, rows) = (w.len(), stats.len() / 2);
    assert!(x.len() == rows * width && dy.len() == x.len() && dx.len() == x.len());
    assert_eq!(stats.len(), 2 * rows, "two numbers a row");
    let shape = Shape::new(rows, threads(width));
    let args = args![x, w, stats, dy, count(width), dx, i32::from(more)];
    // SAFETY: a block goes through one of the rows.
    unsafe { gpu.launch("layer_norm_backward", shape, args)? };
    if let Some(dw) = dw {
        assert_eq!(dw.sums.len(), width, "gradient of the weight");
        bias::add_parts(gpu, rows, dw, |shape, scratch| {
            let args = args![x, stats, dy, count(rows), count(width), *scratch];
            // SAFETY: rows and columns as asserted.
            unsafe { gpu.launch("layer_norm_weight", shape, args) }
        })?;
    }
    if let Some(db) = db {
        assert_eq!(db.sums.len(), width, "gradient of the bias");
        bias::column_sums(gpu, dy, db)?;
    }
    Ok(())
}
