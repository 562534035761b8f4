//! Root-mean-square normalisation (Zhang and Sennrich 2019): `y = x / rms(x) * w`.
#![allow(unsafe_code)]

use super::{Output, Sums, bias, threads};
use crate::gpu::{args, count};
use crate::{Error, Gpu, Shape, Slice, SliceMut};

/// `y[r] = x[r] * inv[r] * w` with `inv[r] = 1 / sqrt(mean(x[r]^2) + eps)`, which is kept for the way
/// back if wanted.
///
/// `x`, `y`: `[rows, width]`; `w`: `[width]`; `inv`: `[rows]`.
pub fn rms_norm(
    gpu: &Gpu,
    x: Slice<'_, f32>,
    w: Slice<'_, f32>,
    eps: f32,
    y: Output<'_>,
    inv: Option<SliceMut<'_, f32>>,
) -> Result<(), Error> {
    let (width, rows) = (w.len(), x.len() / w.len().max(1));
    assert!(x.len() == rows * width && y.len() == x.len(), "rows of {width}");
    assert!(inv.as_ref().is_none_or(|inv| inv.len() == rows), "one factor a row");
    let shape = Shape::new(rows, threads(width));
    // SAFETY: a block goes through one of the rows.
    unsafe { gpu.launch("rms_norm", shape, args![x, w, eps, count(width), y.f32, y.bf16, inv]) }
}

/// Writes `dx` (`[rows, width]`), or adds to it with `more`, and adds to the gradient of `w`, from `dy`
/// and what forward had.
#[allow(clippy::too_many_arguments)]
pub fn rms_norm_backward(
    gpu: &Gpu,
    x: Slice<'_, f32>,
    w: Slice<'_, f32>,
    inv: Slice<'_, f32>,
    dy: Slice<'_, f32>,
    dx: SliceMut<'_, f32>,
    more: bool,
    dw: Option<Sums<'_>>,
) -> Result<(), Error> {
    let (width, rows) = (w.len(), inv.len());
    assert!(x.len() == rows * width && dy.len() == x.len() && dx.len() == x.len());
    let shape = Shape::new(rows, threads(width));
    let args = args![x, w, inv, dy, count(width), dx, i32::from(more)];
    // SAFETY: a block goes through one of the rows.
    unsafe { gpu.launch("rms_norm_backward", shape, args)? };
    let Some(dw) = dw else { return Ok(()) };
    assert_eq!(dw.sums.len(), width, "gradient of the weight");
    bias::add_parts(gpu, rows, dw, |shape, scratch| {
        let args = args![x, inv, dy, count(rows), count(width), *scratch];
        // SAFETY: rows and columns as asserted.
        unsafe { gpu.launch("rms_norm_weight", shape, args) }
    })
}
