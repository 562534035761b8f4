//! The way back. Gradients of parameters are summed on the card, and added to those in main memory, if the tape's are
//! there, when the way back ends.

use super::forward::{function, on_card};
use super::*;

/// As [`Tape::seed`].
pub(in crate::tape) fn seed(tape: &mut Tape<'_>, x: Var, gradient: &[f32]) -> Result<(), Error> {
    assert_eq!(gradient.len(), tape.on_card[x.0].value().len(), "elements of a gradient");
    let dx = forward::card(tape).gpu.upload(gradient, "a gradient")?;
    add_gradient(tape, x, dx)
}

/// Adds to the gradient of a value.
pub(in crate::tape) fn add_gradient(
    tape: &mut Tape<'_>,
    x: Var,
    dx: Buffer<f32>,
) -> Result<(), Error> {
    match &mut tape.on_card[x.0].gradient {
        Some(sum) => ops::update::axpby(dx.gpu(), 1.0, dx.slice(), 1.0, sum.slice_mut()),
        slot => {
            *slot = Some(dx);
            Ok(())
        }
    }
}

/// As far as the value `first`; from the first of all, parameters' gradients are handed on.
pub(in crate::tape) fn back_to(tape: &mut Tape<'_>, first: usize) -> Result<(), Error> {
    for i in (first..tape.on_card.len()).rev() {
        let op = std::mem::replace(&mut tape.on_card[i].op, Op::Input);
        if matches!(op, Op::Input) {
            continue;
        }
        if let Some(dy) = tape.on_card[i].gradient.take() {
            step_back(tape, op, i, dy)?;
        }
        tape.on_card[i].give_up();
    }
    match &mut tape.gradients {
        Some(gradients) if first == 0 => gradients.hand_on(),
        _ => Ok(()),
    }
}

fn again_back<'a>(
    tape: &mut Tape<'a>,
    x: Var,
    made: &again::Made<'a>,
    dy: Buffer<f32>,
) -> Result<(), Error> {
    let from = tape.on_card.len();
    let y = made(tape, x);
    tape.on_card[y.0].gradient = Some(dy);
    back_to(tape, from)?;
    tape.on_card.truncate(from);
    Ok(())
}

/// Passes `dy`, the gradient of node `i`, on to what the node was made from.
fn step_back<'a>(tape: &mut Tape<'a>, op: Op<'a>, i: usize, dy: Buffer<f32>) -> Result<(), Error> {
    let (parameters, precision) = (tape.parameters, tape.precision());
    let trainable = |w: ParamId| parameters.get(w).trainable;
    let Tape { ws, on_card: nodes, gradients, .. } = tape;
    let (card, Some(gradients)) = (there(&mut ws.card), gradients) else { return Ok(()) };
    let (gpu, sums) = (card.gpu.clone(), gradients.on_card());
    let (rows, cols) = (nodes[i].rows, nodes[i].cols);
    let new = |len: usize| gpu.buffer::<f32>(len, "a gradient of values");
    match op {
        Op::Input => {}
        Op::Again { x, made } => again_back(tape, x, &made, dy)?,
        Op::Dropout { x, mask } => {
            let mut dx = new(dy.len())?;
            ops::dropout::dropout(&gpu, mask.key, mask.rate, dy.slice(), dx.slice_mut())?;
            add_gradient(tape, x, dx)?;
        }
        Op::Add { a, b } => {
            let mut da = new(dy.len())?;
            da.slice_mut().copy(dy.slice())?;
            add_gradient(tape, a, da)?;
            add_gradient(tape, b, dy)?;
        }
        Op::Scale { x, factor } => {
            let mut dx = dy;
            ops::update::scale(&gpu, factor, dx.slice_mut())?;
            add_gradient(tape, x, dx)?;
        }
        Op::Embedding { table, ids } => {
            if trainable(table) {
                let to = sums.of(&gpu, parameters, table)?.slice_mut();
                ops::embedding::embedding_backward(&gpu, dy.slice(), ids.slice(), cols, to)?;
            }
        }
        Op::Linear { x, layer: Linear { weight: w, bias, .. }, residual } => {
            let plain = parameters.get(w).value.strips().is_none();
            let dy_half = match plain && precision.products == DType::Bf16 {
                true => Some(halved(&gpu, dy.slice())?),
                false => None,
            };
            let half = dy_half.as_ref().map(Buffer::slice);
            if trainable(w) {
                let dw = sums.of(&gpu, parameters, w)?.slice_mut();
                weight_gradient(&gpu, rows, cols, dy.slice(), half, &nodes[x.0], dw)?;
            }
            if let Some(b) = bias.filter(|b| trainable(*b)) {
                let mut scratch = scratch(&gpu, rows, cols)?;
                let sums = sums.of(&gpu, parameters, b)?.slice_mut();
                let to = ops::Sums { sums, scratch: scratch.slice_mut() };
                ops::bias::column_sums(&gpu, dy.slice(), to)?;
            }
            let (mut dx, more) = match nodes[x.0].gradient.take() {
                Some(dx) => (dx, true),
                None => (new(rows * nodes[x.0].cols)?, false),
            };
            card.product_back(
                precision,
                parameters,
                w,
                rows,
                dy.slice(),
                half,
                dx.slice_mut(),
                more,
            )?;
            nodes[x.0].gradient = Some(dx);
            if let Some(residual) = residual {
                add_gradient(tape, residual, dy)?;
            }
        }
        Op::RmsNorm { x, w, inv } => {
            let mut dx = new(rows * cols)?;
            let mut scratch = scratch(&gpu, rows, cols)?;
            card.plain(parameters, w)?;
            let mut dw = sums.take(&gpu, parameters, w)?;
            let to = dw
                .as_mut()
                .map(|dw| ops::Sums { sums: dw.slice_mut(), scratch: scratch.slice_mut() });
            let (value, weight) = (nodes[x.0].value(), card.known(w));
            ops::norm::rms_norm_backward(
                &gpu,
                value,
                weight,
                inv.slice(),
                dy.slice(),
                dx.slice_mut(),
                false,
                to,
            )?;
            sums.put(w, dw);
            add_gradient(tape, x, dx)?;
        }
        Op::LayerNorm { x, w, b, stats } => {
            let mut dx = new(rows * cols)?;
            let (mut sw, mut sb) = (scratch(&gpu, rows, cols)?, scratch(&gpu, rows, cols)?);
            card.plain(parameters, w)?;
            let mut dw = sums.take(&gpu, parameters, w)?;
            let mut db = sums.take(&gpu, parameters, b)?;
            let w_to =
                dw.as_mut().map(|dw| ops::Sums { sums: dw.slice_mut(), scratch: sw.slice_mut() });
            let b_to =
                db.as_mut().map(|db| ops::Sums { sums: db.slice_mut(), scratch: sb.slice_mut() });
            let (value, weight) = (nodes[x.0].value(), card.known(w));
            ops::layer_norm::layer_norm_backward(
                &gpu,
                value,
                weight,
                stats.slice(),
                dy.slice(),
                dx.slice_mut(),
                false,
                w_to,
                b_to,
            )?;
            sums.put(w, dw);
            sums.put(b, db);
            add_gradient(tape, x, dx)?;
        }
        Op::Heads { x, w, inv, rope, positions } => {
            let mut dx = new(rows * cols)?;
            let dim = w.map_or(1, |w| parameters.get(w).value.len());
            let mut scratch = scratch(&gpu, rows * cols / dim, dim)?;
            let mut dw = match w {
                Some(w) => {
                    card.plain(parameters, w)?;
                    sums.take(&gpu, parameters, w)?
                }
                None => None,
            };
            let to = dw
                .as_mut()
                .map(|dw| ops::Sums { sums: dw.slice_mut(), scratch: scratch.slice_mut() });
            let norm = w.zip(inv.as_ref()).map(|(w, inv)| ops::heads::Norm {
                w: card.known(w),
                inv: inv.slice(),
                dw: to,
            });
            let (value, p) = (nodes[x.0].value(), positions.slice());
            let to = Output::f32(dx.slice_mut());
            ops::heads::norm_rotate_backward(&gpu, value, norm, &rope, p, dy.slice(), to)?;
            if let Some(w) = w {
                sums.put(w, dw);
            }
            add_gradient(tape, x, dx)?;
        }
        Op::Attention { q, k, v, shape, spans, lse } => {
            let [mut dq, mut dk, mut dv] = [
                new(nodes[q.0].value().len())?,
                new(nodes[k.0].value().len())?,
                new(nodes[v.0].value().len())?,
            ];
            let mut delta = new(lse.len())?;
            let mut half = gpu.buffer(dy.len(), "a gradient in bf16")?;
            let [qh, kh, vh] = [q, k, v].map(|x| nodes[x.0].half());
            let out = nodes[i].value();
            ops::attention::backward(
                &gpu,
                &on_card(&shape),
                &spans,
                qh,
                kh,
                vh,
                out,
                lse.slice(),
                dy.slice(),
                delta.slice_mut(),
                half.slice_mut(),
                dq.slice_mut(),
                dk.slice_mut(),
                dv.slice_mut(),
            )?;
            for (x, d) in [(q, dq), (k, dk), (v, dv)] {
                add_gradient(tape, x, d)?;
            }
        }
        Op::Gated { f, gate, up } => {
            let mut dgate = new(dy.len())?;
            let mut dup = match up {
                Some(_) => Some(new(dy.len())?),
                None => None,
            };
            let u = up
                .zip(dup.as_mut())
                .map(|(up, dup)| (nodes[up.0].value(), Output::f32(dup.slice_mut())));
            let to = Output::f32(dgate.slice_mut());
            ops::gated::gated_backward(
                &gpu,
                function(f),
                nodes[gate.0].value(),
                u,
                dy.slice(),
                to,
            )?;
            add_gradient(tape, gate, dgate)?;
            if let Some((up, dup)) = up.zip(dup) {
                add_gradient(tape, up, dup)?;
            }
        }
    }
    Ok(())
}

/// `dw += dyᵀ x`. `dy`: `[rows, cols]`, `x`: `[rows, in]`.
pub(super) fn weight_gradient(
    gpu: &Gpu,
    rows: usize,
    cols: usize,
    dy: Slice<'_, f32>,
    dy_half: Option<Slice<'_, u16>>,
    x: &Node<'_>,
    dw: SliceMut<'_, f32>,
) -> Result<(), Error> {
    match dy_half {
        Some(dy) => {
            let x = Matrix::bf16(x.half(), rows, x.cols);
            matmul(gpu, Matrix::bf16(dy, rows, cols).t(), x, dw, true)
        }
        None => {
            let x = Matrix::f32(x.value(), rows, x.cols);
            matmul(gpu, Matrix::f32(dy, rows, cols).t(), x, dw, true)
        }
    }
}
