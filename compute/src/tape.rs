//! Reverse-mode differentiation over the operations that a language model is made of.
//!
//! A [`Workspace`] lives as long as its model: it owns the step memory and the packed weights. A
//! [`Tape`] is one pass: operations compute at once and, if gradients are wanted, are remembered;
//! [`Tape::backward`] goes through them in reverse. Parameter gradients are added to, so several
//! passes make one step.

use std::rc::Rc;
use std::sync::Arc;

/// Where a tape is on a card, the card's own way of an operation.
macro_rules! on_card {
    ($self:expr, $f:ident($($x:expr),*)) => {
        if $self.ws.card.is_some() {
            return crate::tape::card::ended(crate::tape::card::$f($($x),*));
        }
    };
}

mod again;
mod backward;
mod card;
mod dropout;
mod experts;
mod head;
mod inputs;
mod step;
mod workspace;

use crate::Span;
use crate::cpu::attention::{self, AttentionShape, CachedSpan};
use crate::cpu::bias::add_bias;
use crate::cpu::gated::{Activation, gated};
use crate::cpu::heads::{Rope, norm_rotate};
use crate::cpu::{embedding, layer_norm, norm, update};
use crate::kv::KvPages;
use crate::parameters::{Gradients, ParamId, Parameters};
use crate::tensor::Tensor;

pub use card::{CardMoments, Muon, Rule, caught};
pub(crate) use card::{Sums, ended};
pub use dropout::Dropout;
pub use experts::Experts;
pub use head::{Head, Loss};
pub use inputs::InputSquares;
pub use step::NewRows;
pub use workspace::Workspace;
use workspace::{Copies, Operand};

/// A value on a tape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Var(usize);

struct Node<'a> {
    /// `[rows, cols]`
    value: Vec<f32>,
    rows: usize,
    cols: usize,
    copies: Copies,
    gradient: Option<Vec<f32>>,
    op: Op<'a>,
}

impl Node<'_> {
    fn operand(&self) -> Operand<'_> {
        Operand { value: &self.value, copies: &self.copies, cols: self.cols }
    }
}

/// An operation with its inputs and what its backward pass needs.
enum Op<'a> {
    Input,
    Again { x: Var, made: again::Made<'a> },
    Dropout { x: Var, mask: dropout::Mask },
    Add { a: Var, b: Var },
    Scale { x: Var, factor: f32 },
    Embedding { table: ParamId, ids: Rc<[u32]> },
    Linear { x: Var, layer: Linear, residual: Option<Var> },
    RmsNorm { x: Var, w: ParamId, inv: Vec<f32> },
    LayerNorm { x: Var, w: ParamId, b: ParamId, stats: Vec<f32> },
    Heads { x: Var, w: Option<ParamId>, inv: Vec<f32>, rope: Arc<Rope>, positions: Rc<[u32]> },
    Attention { q: Var, k: Var, v: Var, shape: AttentionShape, spans: Rc<[Span]>, lse: Vec<f32> },
    Gated { f: Activation, gate: Var, up: Option<Var> },
}

impl Op<'_> {
    /// The memory that it keeps for its backward pass.
    fn kept(self) -> Option<Vec<f32>> {
        match self {
            Op::RmsNorm { inv: kept, .. }
            | Op::LayerNorm { stats: kept, .. }
            | Op::Heads { inv: kept, .. }
            | Op::Attention { lse: kept, .. } => Some(kept),
            _ => None,
        }
    }
}

/// A linear layer: `y = x wᵀ + b`, and what an adapter adds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Linear {
    /// `[out, in]`.
    pub weight: ParamId,
    /// `[out]`.
    pub bias: Option<ParamId>,
    /// If there is one.
    pub adapter: Option<LowRank>,
}

impl Linear {
    /// With a weight alone.
    fn plain(weight: ParamId) -> Linear {
        Linear { weight, bias: None, adapter: None }
    }
}

/// A product of low rank that is added to a linear layer: `y + scale · (x aᵀ) bᵀ` (LoRA, Hu et al. 2021,
/// <https://arxiv.org/abs/2106.09685>).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LowRank {
    /// `[rank, in]`.
    pub a: ParamId,
    /// `[out, rank]`.
    pub b: ParamId,
    /// Usually alpha over the rank.
    pub scale: f32,
}

/// One pass.
pub struct Tape<'a> {
    ws: &'a mut Workspace,
    parameters: &'a Parameters,
    gradients: Option<&'a mut Gradients>,
    nodes: Vec<Node<'a>>,
    /// The values of a tape that is on a card, and what its layers share.
    on_card: Vec<card::Node<'a>>,
    pass: card::Pass,
}

impl<'a> Tape<'a> {
    fn new(
        ws: &'a mut Workspace,
        parameters: &'a Parameters,
        gradients: Option<&'a mut Gradients>,
    ) -> Tape<'a> {
        let (nodes, on_card) = (Vec::new(), Vec::new());
        Tape { ws, parameters, gradients, nodes, on_card, pass: card::Pass::default() }
    }

    /// Whether operations are remembered.
    pub fn recording(&self) -> bool {
        self.gradients.is_some()
    }

    /// The elements of a value, `[rows, cols]`, wherever it is.
    pub fn read(&self, x: Var) -> Vec<f32> {
        match self.on_card.get(x.0) {
            Some(node) => node.read(),
            None => self.value(x).to_vec(),
        }
    }

    /// The elements of a value in main memory, `[rows, cols]`.
    pub fn value(&self, x: Var) -> &[f32] {
        &self.nodes[x.0].value
    }

    /// Rows and columns of a value.
    pub fn shape(&self, x: Var) -> (usize, usize) {
        if let Some(node) = self.on_card.get(x.0) {
            return node.shape();
        }
        (self.nodes[x.0].rows, self.nodes[x.0].cols)
    }

    /// The gradient of an input after [`Tape::backward`]; `None` if nothing depends on it.
    ///
    /// On a card: [`Tape::read_gradient`].
    pub fn gradient(&self, x: Var) -> Option<&[f32]> {
        self.nodes[x.0].gradient.as_deref()
    }

    /// The same, wherever it is.
    pub fn read_gradient(&self, x: Var) -> Option<Vec<f32>> {
        match self.on_card.get(x.0) {
            Some(node) => node.read_gradient(),
            None => self.gradient(x).map(<[f32]>::to_vec),
        }
    }

    fn push(&mut self, value: Vec<f32>, rows: usize, op: Op<'a>) -> Var {
        let cols = value.len() / rows.max(1);
        self.nodes.push(Node { value, rows, cols, copies: Copies::default(), gradient: None, op });
        Var(self.nodes.len() - 1)
    }

    /// Gives back the memory of all values but `x`, which must not be used any more. On a tape that
    /// records, where the way back needs them, nothing.
    pub fn keep_only(&mut self, x: Var) {
        if self.recording() {
            return;
        }
        for (i, node) in self.on_card.iter_mut().enumerate() {
            if i != x.0 {
                node.give_up();
            }
        }
        for (i, node) in self.nodes.iter_mut().enumerate() {
            if i != x.0 {
                self.ws.floats.give(std::mem::take(&mut node.value));
                self.ws.give(std::mem::take(&mut node.copies));
                let op = std::mem::replace(&mut node.op, Op::Input);
                op.kept().into_iter().for_each(|kept| self.ws.floats.give(kept));
            }
        }
    }

    /// A value from outside.
    pub fn input(&mut self, x: &Tensor) -> Var {
        on_card!(self, input(self, x.f32(), x.rows()));
        let mut value = self.ws.floats.take(x.len());
        value.copy_from_slice(x.f32());
        self.push(value, x.rows(), Op::Input)
    }

    /// Rows of `table` (`[vocab, width]`) by id: `[ids, width]`.
    pub fn embedding(&mut self, table: ParamId, ids: &Rc<[u32]>) -> Var {
        on_card!(self, embedding(self, table, ids));
        let width = self.parameters.get(table).value.cols();
        let clock = self.ws.profile.start();
        let mut y = self.ws.floats.take(ids.len() * width);
        match self.parameters.get(table).value.strips() {
            Some(table) => embedding::quantised(&self.ws.cpu, table, ids, &mut y),
            None => {
                embedding::embedding(&self.ws.cpu, self.parameters.f32(table), ids, width, &mut y)
            }
        }
        self.ws.profile.stop(clock, "embedding", 0.0, 2 * y.len());
        self.push(y, ids.len(), Op::Embedding { table, ids: ids.clone() })
    }

    /// `a + b`, of one shape.
    pub fn add(&mut self, a: Var, b: Var) -> Var {
        on_card!(self, add(self, a, b));
        let mut y = self.copied(a);
        let clock = self.ws.profile.start();
        update::axpby(&self.ws.cpu, 1.0, self.value(b), 1.0, &mut y);
        self.ws.profile.stop(clock, "copy, add", 0.0, 3 * y.len());
        self.push(y, self.nodes[a.0].rows, Op::Add { a, b })
    }

    /// `factor * x`.
    pub fn scale(&mut self, x: Var, factor: f32) -> Var {
        on_card!(self, scale(self, x, factor));
        let mut y = self.ws.floats.zeros(self.nodes[x.0].value.len());
        update::axpby(&self.ws.cpu, factor, self.value(x), 0.0, &mut y);
        self.push(y, self.nodes[x.0].rows, Op::Scale { x, factor })
    }

    fn copied(&mut self, x: Var) -> Vec<f32> {
        let clock = self.ws.profile.start();
        let mut y = self.ws.floats.take(self.nodes[x.0].value.len());
        update::copy(&self.ws.cpu, self.value(x), &mut y);
        self.ws.profile.stop(clock, "copy, add", 0.0, 2 * y.len());
        y
    }

    /// `y = x wᵀ + b`: `[rows, in]` to `[rows, out]`. Each output's chain starts from the bias.
    pub fn linear(&mut self, x: Var, layer: Linear) -> Var {
        on_card!(self, linear(self, x, layer));
        let outputs = self.parameters.get(layer.weight).value.rows();
        let mut y = self.ws.floats.take(self.nodes[x.0].rows * outputs);
        if let Some(b) = layer.bias {
            add_bias(&self.ws.cpu, self.parameters.f32(b), &mut y, false);
        }
        self.linear_onto(y, x, layer, None)
    }

    /// `y = residual + x wᵀ + b`: each output's chain starts from the residual.
    pub fn linear_add(&mut self, x: Var, layer: Linear, residual: Var) -> Var {
        on_card!(self, linear_add(self, x, layer, residual));
        let mut y = self.copied(residual);
        if let Some(b) = layer.bias {
            add_bias(&self.ws.cpu, self.parameters.f32(b), &mut y, true);
        }
        self.linear_onto(y, x, layer, Some(residual))
    }

    fn linear_onto(
        &mut self,
        mut y: Vec<f32>,
        x: Var,
        layer: Linear,
        residual: Option<Var>,
    ) -> Var {
        let w = layer.weight;
        let weight = &self.parameters.get(w).value;
        let node = &mut self.nodes[x.0];
        self.ws.copy_for(weight, &node.value, &mut node.copies);
        let (rows, input) = (node.rows, node.operand());
        assert_eq!(input.cols, weight.cols(), "inputs of a linear layer");
        assert_eq!(y.len(), rows * weight.rows(), "outputs of a linear layer");
        let more = residual.is_some() || layer.bias.is_some();
        self.ws.product(self.parameters, w, false, input, rows, &mut y, more);
        let y = self.push(y, rows, Op::Linear { x, layer, residual });
        layer.adapter.map_or(y, |adapter| self.low_rank(y, x, adapter))
    }

    /// Goes on with the chains of `y`, in its memory: nobody else has seen it.
    fn low_rank(&mut self, y: Var, x: Var, adapter: LowRank) -> Var {
        let x = self.dropout(x, adapter.a);
        let h = self.linear(x, Linear::plain(adapter.a));
        let h = self.scale(h, adapter.scale);
        let sums = std::mem::take(&mut self.nodes[y.0].value);
        self.linear_onto(sums, h, Linear::plain(adapter.b), Some(y))
    }

    /// RMS norm of each row, times `w`.
    pub fn rms_norm(&mut self, x: Var, w: ParamId, eps: f32) -> Var {
        on_card!(self, rms_norm(self, x, w, eps));
        let (rows, cols) = self.shape(x);
        let clock = self.ws.profile.start();
        let mut y = self.ws.floats.take(rows * cols);
        let mut inv = self.ws.floats.take(rows);
        let weight = self.parameters.f32(w);
        norm::rms_norm(&self.ws.cpu, self.value(x), weight, eps, &mut y, &mut inv);
        self.ws.profile.stop(clock, "norm", 0.0, 2 * y.len());
        self.push(y, rows, Op::RmsNorm { x, w, inv })
    }

    /// Layer norm of each row, times `w`, plus `b`.
    pub fn layer_norm(&mut self, x: Var, w: ParamId, b: ParamId, eps: f32) -> Var {
        on_card!(self, layer_norm(self, x, w, b, eps));
        let (rows, cols) = self.shape(x);
        let clock = self.ws.profile.start();
        let mut y = self.ws.floats.take(rows * cols);
        let mut stats = self.ws.floats.take(2 * rows);
        let weights = (self.parameters.f32(w), self.parameters.f32(b));
        layer_norm::layer_norm(&self.ws.cpu, self.value(x), weights, eps, &mut y, &mut stats);
        self.ws.profile.stop(clock, "norm", 0.0, 2 * y.len());
        self.push(y, rows, Op::LayerNorm { x, w, b, stats })
    }

    /// Queries or keys made ready: each head normalised (with `w`), then rotated by its row's
    /// position. `x`: `[rows, heads * head_dim]`.
    pub fn heads(
        &mut self,
        x: Var,
        w: Option<ParamId>,
        eps: f32,
        rope: &Arc<Rope>,
        positions: &Rc<[u32]>,
    ) -> Var {
        on_card!(self, heads(self, x, w, eps, rope, positions));
        let (rows, cols) = self.shape(x);
        let weight = w.map_or(&[][..], |w| self.parameters.f32(w));
        let clock = self.ws.profile.start();
        let mut y = self.ws.floats.take(rows * cols);
        let heads = if weight.is_empty() { 0 } else { cols / weight.len() };
        let mut inv = self.ws.floats.take(rows * heads);
        let x_value = &self.nodes[x.0].value;
        norm_rotate(&self.ws.cpu, x_value, weight, eps, rope, positions, &mut y, &mut inv);
        self.ws.profile.stop(clock, "norm and rotate heads", 0.0, 2 * y.len());
        let (rope, positions) = (rope.clone(), positions.clone());
        self.push(y, rows, Op::Heads { x, w, inv, rope, positions })
    }

    /// Causal attention within each span. `q`: `[rows, heads * head_dim]`; `k`, `v`:
    /// `[rows, kv_heads * head_dim]`.
    pub fn attention(
        &mut self,
        q: Var,
        k: Var,
        v: Var,
        shape: AttentionShape,
        spans: &Rc<[Span]>,
    ) -> Var {
        on_card!(self, attention(self, [q, k, v], shape, spans));
        let (rows, cols) = self.shape(q);
        let clock = self.ws.profile.start();
        let mut out = self.ws.floats.take(rows * cols);
        let mut lse = self.ws.floats.take(rows * shape.heads);
        let (qv, kv, vv) = (self.value(q), self.value(k), self.value(v));
        let bf16 = self.ws.learns_in_bf16();
        attention::forward(&self.ws.cpu, &shape, spans, bf16, qv, kv, vv, &mut out, &mut lse);
        let (flops, moved) = attention_work(&shape, spans, out.len() + kv.len());
        self.ws.profile.stop(clock, "attention", flops, moved);
        let spans = spans.clone();
        self.push(out, rows, Op::Attention { q, k, v, shape, spans, lse })
    }

    /// Attention of new rows to what `pages` hold of their sequences, the new rows' keys and
    /// values being appended first. Not differentiable.
    ///
    /// # Panics
    /// On a tape that records.
    #[allow(clippy::too_many_arguments)]
    pub fn attention_cached(
        &mut self,
        q: Var,
        k: Var,
        v: Var,
        shape: &AttentionShape,
        layer: usize,
        spans: &[CachedSpan<'_>],
        pages: &mut KvPages,
    ) -> Var {
        assert!(!self.recording(), "attention to cached keys has no backward pass");
        on_card!(self, attention_cached(self, [q, k, v], shape, layer, spans, pages));
        let (rows, cols) = self.shape(q);
        let width = shape.kv_heads * shape.head_dim;
        let clock = self.ws.profile.start();
        pages.append(&self.ws.cpu, layer, spans, self.value(k), self.value(v));
        let mut out = self.ws.floats.take(rows * cols);
        let q = &self.nodes[q.0].value;
        attention::forward_cached(&self.ws.cpu, shape, layer, pages, spans, q, &mut out);
        let seen = |s: &CachedSpan<'_>| (s.rows.len * (2 * s.past + s.rows.len + 1)) as f64 / 2.0;
        let flops =
            4.0 * (shape.heads * shape.head_dim) as f64 * spans.iter().map(seen).sum::<f64>();
        let kept = spans.iter().map(|s| 2 * (s.past + s.rows.len) * width).sum::<usize>();
        self.ws.profile.stop(clock, "attention", flops, 2 * out.len() + kept);
        self.push(out, rows, Op::Input)
    }

    /// `f(gate) * up`, or `f(gate)`.
    pub fn gated(&mut self, f: Activation, gate: Var, up: Option<Var>) -> Var {
        on_card!(self, gated(self, f, gate, up));
        let (rows, cols) = self.shape(gate);
        let clock = self.ws.profile.start();
        let mut y = self.ws.floats.take(rows * cols);
        gated(&self.ws.cpu, f, self.value(gate), up.map(|up| self.value(up)), &mut y);
        self.ws.profile.stop(clock, "gate", 0.0, 3 * y.len());
        self.push(y, rows, Op::Gated { f, gate, up })
    }

    /// Adds to the gradient of a value, taking the buffer.
    fn add_gradient(&mut self, x: Var, dx: Vec<f32>) {
        match &mut self.nodes[x.0].gradient {
            slot @ None => *slot = Some(dx),
            Some(sum) => {
                let clock = self.ws.profile.start();
                update::axpby(&self.ws.cpu, 1.0, &dx, 1.0, sum);
                self.ws.profile.stop(clock, "copy, add", 0.0, 3 * dx.len());
                self.ws.floats.give(dx);
            }
        }
    }

    /// Removes the values from `from` on.
    fn forget(&mut self, from: usize) {
        for node in self.nodes.drain(from..) {
            self.ws.floats.give(node.value);
            node.gradient.into_iter().for_each(|g| self.ws.floats.give(g));
            self.ws.give(node.copies);
            node.op.kept().into_iter().for_each(|kept| self.ws.floats.give(kept));
        }
    }
}

/// FLOPs of attention, two products over what each row sees, and words that it moves: inputs and
/// outputs, where `width` is the words of queries and keys.
fn attention_work(shape: &AttentionShape, spans: &[Span], width: usize) -> (f64, usize) {
    let seen: f64 = spans.iter().map(|s| (s.len * (s.len + 1)) as f64 / 2.0).sum();
    (4.0 * seen * (shape.heads * shape.head_dim) as f64, 2 * width)
}

impl Drop for Tape<'_> {
    fn drop(&mut self) {
        self.forget(0);
    }
}
