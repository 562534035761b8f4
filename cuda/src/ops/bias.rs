//! A vector on every row, and sums over rows.
#![allow(unsafe_code)]

use super::{Sums, threads};
use crate::gpu::{args, count};
use crate::{Error, Gpu, Shape, Slice, SliceMut};

/// Rows that are summed in one go, and columns of a block.
const PART_ROWS: usize = 256;
const PART_COLS: usize = 128;

/// Parts of a sum over `rows` rows.
pub fn parts(rows: usize) -> usize {
    rows.div_ceil(PART_ROWS)
}

/// The shape of launches that write parts; see `columns.h`.
pub(crate) fn shape_of_parts(rows: usize, width: usize) -> Shape {
    Shape::grid([width.div_ceil(PART_COLS), parts(rows), 1], 256)
}

/// Adds the parts, in order, once `launch` has put them into the scratch.
pub(crate) fn add_parts(
    gpu: &Gpu,
    rows: usize,
    to: Sums<'_>,
    launch: impl FnOnce(Shape, &SliceMut<'_, f32>) -> Result<(), Error>,
) -> Result<(), Error> {
    let Sums { sums, scratch } = to;
    let width = sums.len();
    assert_eq!(scratch.len(), parts(rows) * width, "scratch of sums over {rows} rows");
    launch(shape_of_parts(rows, width), &scratch)?;
    let shape = Shape::new(width.div_ceil(32), 1024);
    // SAFETY: lengths as asserted; columns below the width.
    unsafe {
        gpu.launch("add_parts", shape, args![scratch, count(parts(rows)), count(width), sums])
    }
}

/// `y[r] = b`, or with `more` `y[r] += b`. `y`: `[rows, b.len()]`.
pub fn add_bias(
    gpu: &Gpu,
    b: Slice<'_, f32>,
    y: SliceMut<'_, f32>,
    more: bool,
) -> Result<(), Error> {
    let width = b.len();
    let rows = y.len() / width.max(1);
    assert_eq!(y.len(), rows * width, "rows of {width}");
    let shape = Shape::new(rows, threads(width));
    // SAFETY: a block goes through one of the rows.
    unsafe { gpu.launch("add_bias", shape, args![b, y, count(width), i32::from(more)]) }
}

/// `sums[c] += dy[r][c]`. `dy`: `[rows, width]`.
pub fn column_sums(gpu: &Gpu, dy: Slice<'_, f32>, to: Sums<'_>) -> Result<(), Error> {
    let width = to.sums.len();
    let rows = dy.len() / width.max(1);
    assert_eq!(dy.len(), rows * width, "rows of {width}");
    add_parts(gpu, rows, to, |shape, scratch| {
        let args = args![dy, count(rows), count(width), *scratch];
        // SAFETY: rows and columns as asserted.
        unsafe { gpu.launch("column_sums", shape, args) }
    })
}
