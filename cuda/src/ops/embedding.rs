//! Rows of a table by id, and the gradient back into the table.
#![allow(unsafe_code)]

use super::{Output, rows};
use crate::gpu::{args, count};
use crate::{Error, Gpu, Shape, Slice, SliceMut};

/// `y[r] = table[ids[r]]`, and NaN where an id is outside of the table. `table`: `[vocab, width]`, `y`:
/// `[rows, width]`.
pub fn embedding(
    gpu: &Gpu,
    table: Slice<'_, f32>,
    ids: Slice<'_, u32>,
    width: usize,
    y: Output<'_>,
) -> Result<(), Error> {
    rows::gather(gpu, table, ids, width, y)
}

/// As [`embedding`], of a table of bf16.
pub fn embedding_bf16(
    gpu: &Gpu,
    table: Slice<'_, u16>,
    ids: Slice<'_, u32>,
    width: usize,
    y: Output<'_>,
) -> Result<(), Error> {
    rows::gather_bf16(gpu, table, ids, width, y)
}

/// `dtable[ids[r]] += dy[r]`, rows in order; ids outside of the table are left out.
pub fn embedding_backward(
    gpu: &Gpu,
    dy: Slice<'_, f32>,
    ids: Slice<'_, u32>,
    width: usize,
    dtable: SliceMut<'_, f32>,
) -> Result<(), Error> {
    let vocab = dtable.len() / width.max(1);
    assert!(dy.len() == ids.len() * width && dtable.len() == vocab * width, "rows of {width}");
    let shape = Shape::new(ids.len(), 256);
    let args = args![dy, ids, count(ids.len()), count(width), count(vocab), dtable];
    // SAFETY: rows as asserted; each row of the table is one block's, that of its first id.
    unsafe { gpu.launch("embedding_backward", shape, args) }
}
