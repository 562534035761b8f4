//! Weights as GGUF files hold them: products with few rows, as in generation, and their elements.
//!
//! Memory sets the pace of a product with few rows, so weights stay as large as they are in the
//! file. They are laid out anew ([`pack`]) and multiplied as they are, on tensor cores: codes of
//! blocks are integers that bf16 holds exactly, and F16 and F32 are sums of two and three bf16.
//! Activations are bf16, as in all products on a card, for every type and any number of rows.
//!
//! [`product`] is one chain of sums for each output, whatever the other rows are and however many.
//! So a token that is computed alone has the bits that it has in a batch of 16, or 1,000. A prompt
//! computed by [`product`] has them too; where it is long, weights widened to bf16 ([`widen`]) and
//! a [`matmul`](crate::matmul::matmul) are faster, but round weights, and sum in an order of
//! cuBLASLt's choice: **that gives other bits than decoding does.**
#![allow(unsafe_code)]

mod layout;

pub use layout::{BlockType, pack, packed_bytes};

use super::Output;
use crate::gpu::{args, count};
use crate::{Buffer, Error, Gpu, Shape, Slice, SliceMut};

/// Bytes that are packed at a time on the way to the card.
const AT_ONCE: usize = 32 << 20;
const WARPS: usize = 8;

/// A matrix `[rows, cols]` on a card, as it was stored.
#[derive(Debug)]
pub struct Weights {
    kind: BlockType,
    rows: usize,
    cols: usize,
    units: Buffer<u8>,
}

impl Weights {
    /// From the blocks of a file, row by row. `what` is it, should there be too little memory?
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; [`Error::Driver`]; [`Error::Recording`].
    ///
    /// # Panics
    /// If `cols` are no whole blocks or no multiple of 4, or `blocks` is not of that many elements.
    pub fn upload(
        gpu: &Gpu,
        kind: BlockType,
        rows: usize,
        cols: usize,
        blocks: &[u8],
        what: &str,
    ) -> Result<Weights, Error> {
        let row = kind.row_bytes(cols);
        assert_eq!(blocks.len(), rows * row, "bytes of [{rows}, {cols}] {}", kind.name());
        let mut units = gpu.buffer(packed_bytes(kind, rows, cols), what)?;
        // Whole tiles of 16 rows.
        let rows_at_once = (AT_ONCE / row.max(1)).next_multiple_of(16);
        let mut start = 0;
        for some in blocks.chunks((rows_at_once * row).max(1)) {
            let packed = pack(kind, some.len() / row, cols, some);
            units.part_mut(start..start + packed.len()).write(&packed)?;
            start += packed.len();
        }
        Ok(Weights { kind, rows, cols, units })
    }

    /// How elements are stored.
    pub fn kind(&self) -> BlockType {
        self.kind
    }

    /// Rows: outputs of a linear layer.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns: inputs of a linear layer.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes on the card: as many as in the file, if rows and columns fill up the last unit.
    pub fn bytes(&self) -> usize {
        self.units.len()
    }

    /// A kernel's name for this type.
    fn kernel(&self, name: &str) -> String {
        format!("{name}_{}", self.kind.name().to_ascii_lowercase())
    }
}

/// `y = x wᵀ`, or `y += x wᵀ` with `more`: `x` `[rows, k]` of bf16, `w` `[n, k]`, `y` `[rows, n]`.
///
/// Products are of the weights' codes, exactly, and `x`; sums and scales are f32. A row of `y` has
/// the same bits for any number of rows. Up to 16 rows cost little more than one: the weights are
/// read once for each 16 (8, on cards with little shared memory), and once for each 32 where there
/// are more.
///
/// # Panics
/// If lengths don't fit, or `x` doesn't begin at a multiple of 8 bytes.
pub fn product(
    gpu: &Gpu,
    x: Slice<'_, u16>,
    w: &Weights,
    y: SliceMut<'_, f32>,
    more: bool,
) -> Result<(), Error> {
    let (n, k) = (w.rows, w.cols);
    let rows = y.len() / n.max(1);
    assert!(y.len() == rows * n && x.len() == rows * k, "{rows} rows by [{n}, {k}]");
    assert!(x.address().is_multiple_of(8), "activations begin at a multiple of 8 bytes");
    if y.is_empty() {
        return Ok(());
    }
    // Rows and tiles of a block.
    let (mut name, mut of, mut tiles) = match rows {
        0..=8 => ("quantised_product_8", 8, 1),
        9..=16 => ("quantised_product_16", 16, 2),
        17.. => ("quantised_product_32", 32, 2),
    };
    if shared(w.kind, tiles) > gpu.shared_memory() {
        (name, of, tiles) = ("quantised_product_8", 8, 1);
    }
    let grid = [n.div_ceil(16 * tiles), rows.div_ceil(of), 1];
    let shape = Shape::grid(grid, 32 * WARPS).shared(shared(w.kind, tiles));
    let units = w.units.slice();
    let args = args![units, x, y, count(n), count(k), count(rows), u32::from(more)];
    // SAFETY: operands of these shapes, and shared memory as the kernel divides it.
    unsafe { gpu.launch(&w.kernel(name), shape, args) }
}

/// Bytes of the rings of a product's block: room for three steps a warp, or two where they are large.
fn shared(kind: BlockType, tiles: usize) -> usize {
    let units = tiles * kind.unit_bytes();
    let depth = if units > 8000 { 2 } else { 3 };
    WARPS * depth * kind.step() * units
}

/// Rows of `w`, such as tokens' embeddings: row `chosen[i]` becomes row `i` of `y`, `[chosen,
/// cols]`. Elements are ggml's f32, rounded once in bf16; what is no row of `w` becomes NaN.
pub fn rows(gpu: &Gpu, w: &Weights, chosen: Slice<'_, u32>, y: Output<'_>) -> Result<(), Error> {
    let rows = chosen.len();
    elements(gpu, w, Some(chosen), 0, rows, y)
}

/// Rows `start` on of `w`, as many as `y` has room for; for a product with many rows.
///
/// # Panics
/// If these aren't whole rows of `w`.
pub fn widen(gpu: &Gpu, w: &Weights, start: usize, y: Output<'_>) -> Result<(), Error> {
    let rows = y.len() / w.cols.max(1);
    assert!(start + rows <= w.rows, "rows {start} to {} of {}", start + rows, w.rows);
    elements(gpu, w, None, start, rows, y)
}

fn elements(
    gpu: &Gpu,
    w: &Weights,
    chosen: Option<Slice<'_, u32>>,
    start: usize,
    rows: usize,
    y: Output<'_>,
) -> Result<(), Error> {
    assert_eq!(y.len(), rows * w.cols, "{rows} rows of {}", w.cols);
    let (shape, units) = (Shape::over(y.len()), w.units.slice());
    let (n, k) = (count(w.rows), count(w.cols));
    let args = args![units, chosen, count(start), y.f32, y.bf16, n, k, count(rows)];
    // SAFETY: as many rows as there are places for, and the kernel looks which of them `w` has.
    unsafe { gpu.launch(&w.kernel("quantised_rows"), shape, args) }
}
