//! The operations, one module a subject, named as those of `compute::cpu`. Values are f32 and
//! `[rows, cols]` row by row; what products read next can be written as bf16 (its bits as u16) in the
//! same pass. Work is put on the stream of the [`Gpu`](crate::Gpu): when a function returns, it has
//! not been done yet.
//!
//! All of them fail with [`Error`](crate::Error) if a kernel can't be compiled or launched, and panic
//! if lengths don't fit each other.

pub mod attention;
pub mod bias;
pub mod cap;
pub mod dropout;
pub mod embedding;
pub mod gated;
pub mod heads;
pub mod kv;
pub mod layer_norm;
pub mod norm;
pub mod optimizer;
pub mod quantised;
pub mod rows;
pub mod softmax;
pub mod update;

use crate::SliceMut;

/// Where a result goes: to f32, to bf16 (what products read), or both, of one length.
#[derive(Debug)]
pub struct Output<'a> {
    f32: Option<SliceMut<'a, f32>>,
    bf16: Option<SliceMut<'a, u16>>,
}

impl<'a> Output<'a> {
    /// f32 only.
    pub fn f32(y: SliceMut<'a, f32>) -> Output<'a> {
        Output { f32: Some(y), bf16: None }
    }

    /// bf16 only.
    pub fn bf16(y: SliceMut<'a, u16>) -> Output<'a> {
        Output { f32: None, bf16: Some(y) }
    }

    /// f32, and the same rounded to bf16.
    ///
    /// # Panics
    /// If their lengths differ.
    pub fn both(y: SliceMut<'a, f32>, rounded: SliceMut<'a, u16>) -> Output<'a> {
        assert_eq!(y.len(), rounded.len(), "elements of both outputs");
        Output { f32: Some(y), bf16: Some(rounded) }
    }

    /// Number of elements.
    pub(crate) fn len(&self) -> usize {
        let f32 = self.f32.as_ref().map(SliceMut::len);
        f32.or(self.bf16.as_ref().map(SliceMut::len)).unwrap_or_default()
    }
}

/// Sums over rows: what they are added to, and scratch of [`bias::parts`] of the rows times as many.
#[derive(Debug)]
pub struct Sums<'a> {
    /// `[width]`, added to.
    pub sums: SliceMut<'a, f32>,
    /// Of any content before and after.
    pub scratch: SliceMut<'a, f32>,
}

/// Threads of a block that goes through a row of so many elements, four at a time.
pub(crate) fn threads(width: usize) -> usize {
    width.div_ceil(4).next_multiple_of(32).clamp(32, 256)
}
