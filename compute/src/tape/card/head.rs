//! From the last layer's output to logits and to the loss.

use super::*;
use crate::IGNORE;
use crate::tape::head::{Head, LOGIT_ROWS, Loss};

fn uploaded(gpu: &Gpu, rows: &[usize]) -> Result<Buffer<u32>, Error> {
    let rows: Vec<u32> = rows.iter().map(|r| *r as u32).collect();
    gpu.upload(&rows, "rows")
}

/// Some rows of a value.
fn gather(tape: &mut Tape<'_>, h: Var, rows: &Buffer<u32>) -> Result<Node<'static>, Error> {
    let gpu = forward::card(tape).gpu.clone();
    let node = &tape.on_card[h.0];
    let mut y = gpu.buffer(rows.len() * node.cols, "rows")?;
    ops::rows::gather(&gpu, node.value(), rows.slice(), node.cols, Output::f32(y.slice_mut()))?;
    let (rows, cols) = (rows.len(), node.cols);
    Ok(Node { value: Some(y), half: None, rows, cols, gradient: None, op: Op::Input })
}

/// The head's outputs of such rows, not capped.
fn products(
    tape: &mut Tape<'_>,
    x: &mut Node<'_>,
    w: ParamId,
    y: SliceMut<'_, f32>,
) -> Result<(), Error> {
    let (parameters, precision) = (tape.parameters, tape.precision());
    let weight = &parameters.get(w).value;
    let card = forward::card(tape);
    if precision.halves(weight.strips()) {
        x.halve(&card.gpu)?;
    }
    card.product(precision, parameters, w, x, y, false)
}

/// Logits of some rows of a value, `[rows, vocab]`.
pub(super) fn logits_to(
    tape: &mut Tape<'_>,
    h: Var,
    rows: &Buffer<u32>,
    head: Head,
    mut y: SliceMut<'_, f32>,
) -> Result<(), Error> {
    let mut x = gather(tape, h, rows)?;
    products(tape, &mut x, head.weight, y.reborrow())?;
    match head.cap {
        Some(cap) => ops::cap::cap(&forward::card(tape).gpu, cap, y),
        None => Ok(()),
    }
}

/// As [`Tape::logits`].
pub(in crate::tape) fn logits(
    tape: &mut Tape<'_>,
    h: Var,
    rows: &[usize],
    head: Head,
) -> Result<Vec<f32>, Error> {
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let gpu = forward::card(tape).gpu.clone();
    let vocab = tape.parameters.get(head.weight).value.rows();
    let mut y = gpu.buffer(rows.len() * vocab, "logits")?;
    logits_to(tape, h, &uploaded(&gpu, rows)?, head, y.slice_mut())?;
    y.read()
}

/// As [`Tape::cross_entropy`].
pub(in crate::tape) fn cross_entropy(
    tape: &mut Tape<'_>,
    h: Var,
    head: Head,
    targets: &[u32],
    weights: &[f32],
) -> Result<Loss, Error> {
    let w = head.weight;
    let gpu = forward::card(tape).gpu.clone();
    let (parameters, precision) = (tape.parameters, tape.precision());
    let (rows, cols) = tape.on_card[h.0].shape();
    let recording = tape.recording();
    assert!(targets.len() == rows && (weights.len() == rows || !recording));
    let chosen: Vec<usize> = (0..rows).filter(|r| targets[*r] != IGNORE).collect();
    let mut loss = Loss { rows: vec![0.0; rows], targets: chosen.len() };
    let mut dh = match recording {
        true => Some(gpu.zeros::<f32>(rows * cols, "a gradient of values")?),
        false => None,
    };
    for piece in chosen.chunks(LOGIT_ROWS) {
        let ids = uploaded(&gpu, piece)?;
        let mut x = gather(tape, h, &ids)?;
        let vocab = parameters.get(w).value.rows();
        let mut logits = gpu.buffer(piece.len() * vocab, "logits")?;
        products(tape, &mut x, w, logits.slice_mut())?;
        let t: Vec<u32> = piece.iter().map(|r| targets[*r]).collect();
        let t = gpu.upload(&t, "targets")?;
        let s = match recording {
            true => {
                let s: Vec<f32> = piece.iter().map(|r| weights[*r]).collect();
                Some(gpu.upload(&s, "weights of rows")?)
            }
            false => None,
        };
        let mut nats = gpu.buffer(piece.len(), "losses")?;
        let (s, to) = (s.as_ref().map(Buffer::slice), nats.slice_mut());
        ops::softmax::cross_entropy(&gpu, logits.slice_mut(), t.slice(), s, head.cap, to, None)?;
        piece.iter().zip(nats.read()?).for_each(|(r, n)| loss.rows[*r] = n);

        let Some(dh) = &mut dh else { continue };
        let plain = parameters.get(w).value.strips().is_none();
        let half = match plain && precision.products == DType::Bf16 {
            true => Some(halved(&gpu, logits.slice())?),
            false => None,
        };
        let d_half = half.as_ref().map(Buffer::slice);
        let Tape { ws, gradients, .. } = &mut *tape;
        let card = there(&mut ws.card);
        if let Some(gradients) = gradients.as_mut().filter(|_| parameters.get(w).trainable) {
            let sums = gradients.on_card();
            let dw = sums.of(&gpu, parameters, w)?.slice_mut();
            backward::weight_gradient(&gpu, piece.len(), vocab, logits.slice(), d_half, &x, dw)?;
        }
        let mut dx = gpu.buffer(piece.len() * cols, "a gradient of values")?;
        card.product_back(
            precision,
            parameters,
            w,
            piece.len(),
            logits.slice(),
            d_half,
            dx.slice_mut(),
            false,
        )?;
        ops::rows::scatter(&gpu, dx.slice(), ids.slice(), cols, dh.slice_mut())?;
    }
    if let Some(dh) = dh {
        backward::add_gradient(tape, h, dh)?;
    }
    Ok(loss)
}
