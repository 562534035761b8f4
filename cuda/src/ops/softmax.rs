//! Softmax cross-entropy of rows of logits, and their likeliest tokens.
#![allow(unsafe_code)]

use crate::gpu::{args, count};
use crate::{Error, Gpu, Shape, Slice, SliceMut};

/// The target of a row that has none.
pub const IGNORE: u32 = u32::MAX;

/// `nats[r] = -ln softmax(logits[r])[targets[r]]`; 0 where the target is [`IGNORE`], NaN where it is
/// another number outside of the vocabulary. With `cap` logits count as `cap * tanh(logit / cap)`
/// (Gemma 2).
///
/// With `weights` (one a row) the gradient of `sum(weights * nats)` goes to `gradient`, in bf16, or if
/// there is none in the place of the logits; of rows without a target it is 0. `logits`, `gradient`:
/// `[rows, vocab]`; `targets`, `nats`: `[rows]`.
///
/// # Errors
/// Of launches.
///
/// # Panics
/// If sizes do not agree, or there is a `gradient` without weights.
#[allow(clippy::too_many_arguments)]
pub fn cross_entropy(
    gpu: &Gpu,
    logits: SliceMut<'_, f32>,
    targets: Slice<'_, u32>,
    weights: Option<Slice<'_, f32>>,
    cap: Option<f32>,
    nats: SliceMut<'_, f32>,
    gradient: Option<SliceMut<'_, u16>>,
) -> Result<(), Error> {
    let rows = targets.len();
    let vocab = logits.len() / rows.max(1);
    assert!(logits.len() == rows * vocab && nats.len() == rows, "{rows} rows of logits");
    assert!(weights.is_none_or(|weights| weights.len() == rows), "weights of {rows} rows");
    assert!(weights.is_some() || gradient.is_none(), "a gradient needs weights");
    assert!(gradient.as_ref().is_none_or(|x| x.len() == logits.len()), "elements of the gradient");
    let (vocab, cap) = (count(vocab), cap.unwrap_or(0.0));
    let args = args![logits, targets, weights, vocab, IGNORE, cap, nats, gradient];
    // SAFETY: a block for each row, of which there are as many logits, targets and so on; targets are
    // compared to the vocabulary.
    unsafe { gpu.launch("cross_entropy", Shape::new(rows, 512), args) }
}

/// `ids[r]`: where the largest of row `r` is, the first one if there are several; `tops[r]`: the largest.
/// If a row has NaN, it is the first of those.
///
/// `x`: `[rows, width]`; `ids`, `tops`: `[rows]`.
///
/// # Errors
/// Of launches.
///
/// # Panics
/// If sizes do not agree, or rows are empty.
pub fn argmax(
    gpu: &Gpu,
    x: Slice<'_, f32>,
    ids: SliceMut<'_, u32>,
    tops: SliceMut<'_, f32>,
) -> Result<(), Error> {
    let rows = ids.len();
    let width = x.len() / rows.max(1);
    assert!(x.len() == rows * width && tops.len() == rows, "{rows} rows");
    assert!(rows == 0 || width > 0, "empty rows");
    let width = count(width);
    // SAFETY: a block for each row.
    unsafe { gpu.launch("argmax", Shape::new(rows, 1024), args![x, width, ids, tops]) }
}
