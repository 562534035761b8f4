//! What happens to queries and keys before attention: an optional RMS norm of each head (Henry et
//! al. 2020; Qwen3), then rotary positions (Su et al. 2021), the halves of what is rotated as pairs.
#![allow(unsafe_code)]

use super::{Output, Sums, bias};
use crate::gpu::{args, count};
use crate::{Buffer, Error, Gpu, Shape, Slice, SliceMut};

/// Heads of a block, a warp each.
const HEADS: usize = 8;

/// Cosines and sines of positions on a card. The first `2 * frequencies` elements of a head are
/// rotated, its others stay.
#[derive(Debug)]
pub struct Rope {
    head_dim: usize,
    frequencies: usize,
    positions: usize,
    /// `[positions, 2, frequencies]`.
    table: Buffer<f32>,
}

impl Rope {
    /// From a table `[positions, 2, frequencies]`: of each position the cosines, then the sines.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; [`Error::Driver`].
    ///
    /// # Panics
    /// If there are more frequencies than pairs in a head, or parts of a position.
    pub fn new(
        gpu: &Gpu,
        head_dim: usize,
        frequencies: usize,
        table: &[f32],
    ) -> Result<Rope, Error> {
        assert!(2 * frequencies <= head_dim, "frequencies of a head of {head_dim}");
        let positions = table.len() / (2 * frequencies).max(1);
        assert_eq!(table.len(), positions * 2 * frequencies, "angles of whole positions");
        let table = gpu.upload(table, "angles of positions")?;
        Ok(Rope { head_dim, frequencies, positions, table })
    }

    /// Number of positions.
    pub fn positions(&self) -> usize {
        self.positions
    }
}

/// Blocks for so many heads.
fn shape(heads: usize) -> Shape {
    Shape::new(heads.div_ceil(HEADS), 32 * HEADS)
}

/// `y = rotate(norm(x))`, head by head. `x`, `y`: `[rows, heads * head_dim]`; `positions`: `[rows]`;
/// with a norm: `w`: `[head_dim]`, and `inv`: `[rows * heads]` if it is kept for the way back.
///
/// A position that the table doesn't have gives NaN.
#[allow(clippy::too_many_arguments)]
pub fn norm_rotate(
    gpu: &Gpu,
    x: Slice<'_, f32>,
    w: Option<Slice<'_, f32>>,
    eps: f32,
    rope: &Rope,
    positions: Slice<'_, u32>,
    y: Output<'_>,
    inv: Option<SliceMut<'_, f32>>,
) -> Result<(), Error> {
    let (rows, dim, n) = (positions.len(), rope.head_dim, rope.frequencies);
    let heads = x.len() / (rows * dim).max(1);
    assert!(x.len() == rows * heads * dim && y.len() == x.len(), "heads of {dim}");
    assert!(w.is_none_or(|w| w.len() == dim), "weights of a head of {dim}");
    assert!(inv.as_ref().is_none_or(|inv| inv.len() == rows * heads), "one factor a head");
    let (table, known) = (rope.table.slice(), count(rope.positions));
    let args = args![
        x,
        w,
        eps,
        table,
        known,
        positions,
        count(rows),
        count(heads),
        count(dim),
        count(n),
        y.f32,
        y.bf16,
        inv
    ];
    // SAFETY: a warp goes through one of the heads.
    unsafe { gpu.launch("norm_rotate", shape(rows * heads), args) }
}

/// What [`norm_rotate`] normalised with: `w`, `inv`, and where the gradient of `w` is added, if anywhere.
#[derive(Debug)]
pub struct Norm<'a> {
    /// `[head_dim]`.
    pub w: Slice<'a, f32>,
    /// `[rows * heads]`.
    pub inv: Slice<'a, f32>,
    /// Sums over `rows * heads` rows.
    pub dw: Option<Sums<'a>>,
}

/// Writes `dx` and adds to the gradient of the norm's weight, from `dy` and what forward had.
#[allow(clippy::too_many_arguments)]
pub fn norm_rotate_backward(
    gpu: &Gpu,
    x: Slice<'_, f32>,
    norm: Option<Norm<'_>>,
    rope: &Rope,
    positions: Slice<'_, u32>,
    dy: Slice<'_, f32>,
    dx: Output<'_>,
) -> Result<(), Error> {
    let (rows, dim) = (positions.len(), rope.head_dim);
    let heads = x.len() / (rows * dim).max(1);
    assert!(x.len() == rows * heads * dim && dy.len() == x.len() && dx.len() == x.len());
    let (w, inv) = (norm.as_ref().map(|norm| norm.w), norm.as_ref().map(|norm| norm.inv));
    assert!(w.is_none_or(|w| w.len() == dim), "weights of a head of {dim}");
    assert!(inv.is_none_or(|inv| inv.len() == rows * heads), "one factor a head");
    let (table, known) = (rope.table.slice(), count(rope.positions));
    let (all, of_row, dim, n) = (count(rows), count(heads), count(dim), count(rope.frequencies));
    let args = args![x, w, inv, table, known, positions, dy, all, of_row, dim, n, dx.f32, dx.bf16];
    // SAFETY: a warp goes through one of the heads.
    unsafe { gpu.launch("norm_rotate_backward", shape(rows * heads), args)? };
    let Some((dw, inv)) = norm.and_then(|norm| Some((norm.dw?, norm.inv))) else { return Ok(()) };
    assert_eq!(dw.sums.len(), rope.head_dim, "gradient of the weight");
    bias::add_parts(gpu, rows * heads, dw, |shape, scratch| {
        let args = args![x, inv, table, known, positions, dy, all, of_row, dim, n, *scratch];
        // SAFETY: rows and columns as asserted.
        unsafe { gpu.launch("norm_rotate_weight", shape, args) }
    })
}
