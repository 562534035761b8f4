//! The way forward.

use super::*;

impl<'a> Tape<'a> {
    pub(super) fn precision(&self) -> Precision {
        Precision { products: self.ws.products(), exact: self.ws.is_exact() }
    }
}

/// The card of a tape that is on one.
pub(super) fn card<'t>(tape: &'t mut Tape<'_>) -> &'t mut Card {
    there(&mut tape.ws.card)
}

pub(super) fn push<'a>(tape: &mut Tape<'a>, value: Buffer<f32>, rows: usize, op: Op<'a>) -> Var {
    let cols = value.len() / rows.max(1);
    let (value, half, gradient) = (Some(value), None, None);
    tape.on_card.push(Node { value, half, rows, cols, gradient, op });
    Var(tape.on_card.len() - 1)
}

/// As [`Tape::embedding`].
pub(in crate::tape) fn embedding(
    tape: &mut Tape<'_>,
    table: ParamId,
    ids: &Rc<[u32]>,
) -> Result<Var, Error> {
    let parameters = tape.parameters;
    let value = &parameters.get(table).value;
    let width = value.cols();
    let Tape { ws, pass, .. } = &mut *tape;
    let card = there(&mut ws.card);
    let gpu = card.gpu.clone();
    let ids = pass.numbers(&gpu, ids)?;
    let mut y = card.buffer(ids.len() * width, "embeddings")?;
    match value.strips() {
        Some(strips) => {
            let w = card.stored(parameters, strips, table)?;
            quantised::rows(&gpu, w, ids.slice(), Output::f32(y.slice_mut()))?;
        }
        None => {
            let w = card.plain(parameters, table)?.slice();
            let y = Output::f32(y.slice_mut());
            ops::embedding::embedding(&gpu, w, ids.slice(), width, y)?;
        }
    }
    Ok(push(tape, y, ids.len(), Op::Embedding { table, ids }))
}

/// As [`Tape::input`].
pub(in crate::tape) fn input(tape: &mut Tape<'_>, x: &[f32], rows: usize) -> Result<Var, Error> {
    let value = card(tape).gpu.upload(x, "an input")?;
    Ok(push(tape, value, rows, Op::Input))
}

fn copied(tape: &mut Tape<'_>, x: Var) -> Result<Buffer<f32>, Error> {
    let len = tape.on_card[x.0].value().len();
    let mut y = card(tape).buffer(len, "a copy of a value")?;
    y.slice_mut().copy(tape.on_card[x.0].value())?;
    Ok(y)
}

/// As [`Tape::add`].
pub(in crate::tape) fn add(tape: &mut Tape<'_>, a: Var, b: Var) -> Result<Var, Error> {
    let mut y = copied(tape, a)?;
    let gpu = card(tape).gpu.clone();
    ops::update::axpby(&gpu, 1.0, tape.on_card[b.0].value(), 1.0, y.slice_mut())?;
    let rows = tape.on_card[a.0].rows;
    Ok(push(tape, y, rows, Op::Add { a, b }))
}

/// As [`Tape::scale`].
pub(in crate::tape) fn scale(tape: &mut Tape<'_>, x: Var, factor: f32) -> Result<Var, Error> {
    let mut y = copied(tape, x)?;
    ops::update::scale(&card(tape).gpu, factor, y.slice_mut())?;
    let rows = tape.on_card[x.0].rows;
    Ok(push(tape, y, rows, Op::Scale { x, factor }))
}

/// As [`Tape::linear`].
pub(in crate::tape) fn linear(tape: &mut Tape<'_>, x: Var, layer: Linear) -> Result<Var, Error> {
    let outputs = tape.parameters.get(layer.weight).value.rows();
    let rows = tape.on_card[x.0].rows;
    let mut y = card(tape).buffer(rows * outputs, "outputs of a layer")?;
    if let Some(b) = layer.bias {
        bias(tape, b, y.slice_mut(), false)?;
    }
    onto(tape, y, x, layer, None)
}

/// As [`Tape::linear_add`].
pub(in crate::tape) fn linear_add(
    tape: &mut Tape<'_>,
    x: Var,
    layer: Linear,
    residual: Var,
) -> Result<Var, Error> {
    let mut y = copied(tape, residual)?;
    if let Some(b) = layer.bias {
        bias(tape, b, y.slice_mut(), true)?;
    }
    onto(tape, y, x, layer, Some(residual))
}

fn bias(tape: &mut Tape<'_>, b: ParamId, y: SliceMut<'_, f32>, more: bool) -> Result<(), Error> {
    let parameters = tape.parameters;
    let card = card(tape);
    let gpu = card.gpu.clone();
    ops::bias::add_bias(&gpu, card.plain(parameters, b)?.slice(), y, more)
}

fn onto(
    tape: &mut Tape<'_>,
    mut y: Buffer<f32>,
    x: Var,
    layer: Linear,
    residual: Option<Var>,
) -> Result<Var, Error> {
    let (parameters, precision) = (tape.parameters, tape.precision());
    let more = residual.is_some() || layer.bias.is_some();
    let strips = parameters.get(layer.weight).value.strips();
    let Tape { ws, on_card: nodes, .. } = tape;
    let card = there(&mut ws.card);
    if precision.halves(strips) {
        nodes[x.0].halve(&card.gpu)?;
    }
    card.product(precision, parameters, layer.weight, &nodes[x.0], y.slice_mut(), more)?;
    let rows = nodes[x.0].rows;
    let y = push(tape, y, rows, Op::Linear { x, layer, residual });
    let Some(adapter) = layer.adapter else { return Ok(y) };
    // As Tape::low_rank: the chains of y go on in its memory.
    let x = dropout(tape, x, adapter.a)?;
    let h = linear(tape, x, Linear::plain(adapter.a))?;
    let h = scale(tape, h, adapter.scale)?;
    let Some(sums) = tape.on_card[y.0].value.take() else { unreachable!("it was just made") };
    onto(tape, sums, h, Linear::plain(adapter.b), Some(y))
}

fn dropout(tape: &mut Tape<'_>, x: Var, a: ParamId) -> Result<Var, Error> {
    let dropped = tape.ws.dropout.filter(|d| tape.ws.learns && d.rate > 0.0);
    let Some(Dropout { rate, seed }) = dropped else { return Ok(x) };
    let mask = dropout::Mask::new(seed, rate, a);
    let len = tape.on_card[x.0].value().len();
    let mut y = card(tape).buffer(len, "what dropout leaves")?;
    let gpu = card(tape).gpu.clone();
    ops::dropout::dropout(&gpu, mask.key, mask.rate, tape.on_card[x.0].value(), y.slice_mut())?;
    let rows = tape.on_card[x.0].rows;
    Ok(push(tape, y, rows, Op::Dropout { x, mask }))
}

/// As [`Tape::rms_norm`].
pub(in crate::tape) fn rms_norm(
    tape: &mut Tape<'_>,
    x: Var,
    w: ParamId,
    eps: f32,
) -> Result<Var, Error> {
    let parameters = tape.parameters;
    let Tape { ws, on_card: nodes, .. } = tape;
    let card = there(&mut ws.card);
    let (gpu, x_node) = (card.gpu.clone(), &nodes[x.0]);
    let rows = x_node.rows;
    let mut y = card.buffer(x_node.value().len(), "a normalised value")?;
    let mut inv = card.buffer(rows, "factors of a norm")?;
    let w_buffer = card.plain(parameters, w)?.slice();
    let (y_out, inv_out) = (Output::f32(y.slice_mut()), Some(inv.slice_mut()));
    ops::norm::rms_norm(&gpu, x_node.value(), w_buffer, eps, y_out, inv_out)?;
    Ok(push(tape, y, rows, Op::RmsNorm { x, w, inv }))
}

/// As [`Tape::layer_norm`].
pub(in crate::tape) fn layer_norm(
    tape: &mut Tape<'_>,
    x: Var,
    w: ParamId,
    b: ParamId,
    eps: f32,
) -> Result<Var, Error> {
    let parameters = tape.parameters;
    let Tape { ws, on_card: nodes, .. } = tape;
    let card = there(&mut ws.card);
    let (gpu, x_node) = (card.gpu.clone(), &nodes[x.0]);
    let rows = x_node.rows;
    let mut y = card.buffer(x_node.value().len(), "a normalised value")?;
    let mut stats = card.buffer(2 * rows, "numbers of a norm")?;
    card.plain(parameters, w)?;
    card.plain(parameters, b)?;
    let both = (card.known(w), card.known(b));
    let (y_out, stats_out) = (Output::f32(y.slice_mut()), Some(stats.slice_mut()));
    ops::layer_norm::layer_norm(&gpu, x_node.value(), both, eps, y_out, stats_out)?;
    Ok(push(tape, y, rows, Op::LayerNorm { x, w, b, stats }))
}

/// As [`Tape::heads`].
pub(in crate::tape) fn heads(
    tape: &mut Tape<'_>,
    x: Var,
    w: Option<ParamId>,
    eps: f32,
    rope: &Arc<Rope>,
    positions: &Rc<[u32]>,
) -> Result<Var, Error> {
    let parameters = tape.parameters;
    let Tape { ws, on_card: nodes, pass, .. } = tape;
    let card = there(&mut ws.card);
    let (gpu, x_node) = (card.gpu.clone(), &nodes[x.0]);
    let rows = x_node.rows;
    let most = positions.iter().max().map_or(1, |p| *p as usize + 1).max(pass.positions);
    let (rope, positions) = (card.rope(rope, most)?, pass.numbers(&gpu, positions)?);
    let mut y = card.buffer(x_node.value().len(), "heads")?;
    let mut inv = match w {
        Some(w) => Some(
            card.buffer(x_node.value().len() / parameters.get(w).value.len(), "factors of norms")?,
        ),
        None => None,
    };
    if let Some(w) = w {
        card.plain(parameters, w)?;
    }
    let weight = w.map(|w| card.known(w));
    let (y_out, inv_out) = (Output::f32(y.slice_mut()), inv.as_mut().map(Buffer::slice_mut));
    let p = positions.slice();
    ops::heads::norm_rotate(&gpu, x_node.value(), weight, eps, &rope, p, y_out, inv_out)?;
    Ok(push(tape, y, rows, Op::Heads { x, w, inv, rope, positions }))
}

/// As [`Tape::attention`].
pub(in crate::tape) fn attention(
    tape: &mut Tape<'_>,
    [q, k, v]: [Var; 3],
    shape: AttentionShape,
    spans: &Rc<[Span]>,
) -> Result<Var, Error> {
    let Tape { ws, on_card: nodes, pass, .. } = tape;
    let card = there(&mut ws.card);
    let gpu = card.gpu.clone();
    for x in [q, k, v] {
        nodes[x.0].halve(&gpu)?;
    }
    let rows = nodes[q.0].rows;
    let spans = pass.spans(&gpu, rows, spans)?;
    let mut out = card.buffer(nodes[q.0].value().len(), "what attention gives")?;
    let mut lse = card.buffer(rows * shape.heads, "sums of attention")?;
    let [qh, kh, vh] = [q, k, v].map(|x| nodes[x.0].half());
    let (y, sums) = (Output::f32(out.slice_mut()), lse.slice_mut());
    ops::attention::forward(&gpu, &on_card(&shape), &spans, qh, kh, vh, y, sums)?;
    Ok(push(tape, out, rows, Op::Attention { q, k, v, shape, spans, lse }))
}

/// The card's words for a shape.
pub(super) fn on_card(s: &AttentionShape) -> ops::attention::AttentionShape {
    let AttentionShape { heads, kv_heads, head_dim, scale, window, cap } = *s;
    ops::attention::AttentionShape { heads, kv_heads, head_dim, scale, window, cap }
}

/// As [`Tape::gated`].
pub(in crate::tape) fn gated(
    tape: &mut Tape<'_>,
    f: Activation,
    gate: Var,
    up: Option<Var>,
) -> Result<Var, Error> {
    let gpu = card(tape).gpu.clone();
    let nodes = &tape.on_card;
    let rows = nodes[gate.0].rows;
    let mut y = gpu.buffer(nodes[gate.0].value().len(), "what gates let through")?;
    let u = up.map(|up| nodes[up.0].value());
    ops::gated::gated(&gpu, function(f), nodes[gate.0].value(), u, Output::f32(y.slice_mut()))?;
    Ok(push(tape, y, rows, Op::Gated { f, gate, up }))
}

pub(super) fn function(f: Activation) -> ops::gated::Activation {
    match f {
        Activation::Silu => ops::gated::Activation::Silu,
        Activation::Gelu => ops::gated::Activation::Gelu,
    }
}

/// As [`Tape::again`], on a tape that forgets.
pub(in crate::tape) fn again<'a>(tape: &mut Tape<'a>, x: Var, made: again::Made<'a>) -> Var {
    let (gradients, from) = (tape.gradients.take(), tape.on_card.len());
    let y = made(tape, x);
    let rows = tape.on_card[y.0].rows;
    let Some(value) = tape.on_card[y.0].value.take() else { unreachable!("it was just made") };
    tape.on_card.truncate(from);
    tape.gradients = gradients;
    push(tape, value, rows, Op::Again { x, made })
}
