//! Reverse-mode differentiation over the operations that a language model is made of.
//!
//! A [`Workspace`] lives as long as its model: it owns the step memory and the packed weights. A
//! [`Tape`] is one pass: operations compute at once and, if gradients are wanted, are remembered;
//! [`Tape::backward`] goes through them in reverse. Parameter gradients are added to, so several
//! passes make one step.

use std::rc::Rc;
use std::sync::Arc;

use crate::arena::Arena;
use crate::cpu::attention::{self, AttentionShape, CachedSpan};
use crate::cpu::heads::{Rope, norm_rotate, norm_rotate_backward};
use crate::cpu::matmul::{Mat, Packed, Rows, gemm, gemm_bf16, gemm_packed, to_bf16};
use crate::cpu::{embedding, gated, norm, softmax, update};
use crate::kv::KvPages;
use crate::parameters::{Gradients, ParamId, Parameters};
use crate::profile::Profile;
use crate::tensor::{DType, Tensor};
use crate::{Cpu, IGNORE, Span};

/// Rows of logits that exist at a time (times the vocabulary).
const LOGIT_ROWS: usize = 256;

/// What passes over one model share: step memory and packed weights.
pub struct Workspace {
    cpu: Arc<Cpu>,
    /// Type of the operands of products; sums and everything else are f32.
    products: DType,
    floats: Arena<f32>,
    halves: Arena<u16>,
    packs: Vec<Packs>,
    /// Where the time goes.
    pub profile: Profile,
}

/// A weight `[out, in]` packed as the right operand of both products it takes part in.
#[derive(Default)]
struct Packs {
    /// For `y = x wᵀ`.
    forward: Option<Packed>,
    /// For `dx = dy w`.
    backward: Option<Packed>,
    stale: bool,
}

impl Workspace {
    /// An empty workspace. `products` is the type of the operands of matrix products.
    pub fn new(cpu: Arc<Cpu>, products: DType) -> Workspace {
        let (floats, halves) = (Arena::default(), Arena::default());
        Workspace { cpu, products, floats, halves, packs: Vec::new(), profile: Profile::default() }
    }

    /// The device.
    pub fn cpu(&self) -> &Arc<Cpu> {
        &self.cpu
    }

    /// Type of the operands of matrix products.
    pub fn products(&self) -> DType {
        self.products
    }

    /// Bytes of step memory taken from the system so far.
    pub fn bytes(&self) -> usize {
        self.floats.allocated() * 4 + self.halves.allocated() * 2
    }

    /// To be called after parameters were changed: packed copies are made anew on use.
    pub fn weights_changed(&mut self) {
        self.packs.iter_mut().for_each(|p| p.stale = true);
    }

    /// A pass that only computes.
    pub fn compute<'a>(&'a mut self, parameters: &'a Parameters) -> Tape<'a> {
        Tape { ws: self, parameters, gradients: None, nodes: Vec::new() }
    }

    /// A pass that remembers its operations and adds to `gradients`.
    pub fn record<'a>(
        &'a mut self,
        parameters: &'a Parameters,
        gradients: &'a mut Gradients,
    ) -> Tape<'a> {
        Tape { ws: self, parameters, gradients: Some(gradients), nodes: Vec::new() }
    }

    /// Packs a weight for the products that are to come.
    fn pack(&mut self, parameters: &Parameters, id: ParamId, backward: bool) {
        if self.packs.len() <= id.0 {
            self.packs.resize_with(id.0 + 1, Packs::default);
        }
        let packs = &mut self.packs[id.0];
        if std::mem::take(&mut packs.stale) {
            // Keep the memory, drop the contents.
            packs.forward.iter_mut().for_each(Packed::invalidate);
            packs.backward.iter_mut().for_each(Packed::invalidate);
        }
        let value = &parameters.get(id).value;
        let (outputs, inputs) = (value.rows(), value.cols());
        let (slot, k, n) = if backward {
            (&mut packs.backward, outputs, inputs)
        } else {
            (&mut packs.forward, inputs, outputs)
        };
        let source = Mat { data: value.f32(), stride: inputs, transposed: !backward };
        let bf16 = self.products == DType::Bf16;
        let clock = self.profile.start();
        match slot {
            Some(packed) if packed.is_valid() => return,
            Some(packed) => packed.pack(&self.cpu, k, n, source, bf16),
            None => *slot = Some(Packed::new(&self.cpu, k, n, source, bf16)),
        }
        self.profile.stop(clock, "pack weights", 0.0, 2 * k * n);
    }

    /// `c = a · (wᵀ or w)`, or `c += …`. `a`: `[rows, k]`.
    #[allow(clippy::too_many_arguments)]
    fn product(
        &mut self,
        parameters: &Parameters,
        id: ParamId,
        backward: bool,
        a: Rows<'_>,
        rows: usize,
        c: &mut [f32],
        accumulate: bool,
    ) {
        self.pack(parameters, id, backward);
        let clock = self.profile.start();
        let packs = &self.packs[id.0];
        if let Some(b) = if backward { &packs.backward } else { &packs.forward } {
            let (n, k) = (b.n(), b.k());
            gemm_packed(&self.cpu, rows, n, k, a, b, c, n, accumulate);
            let name = if backward { "product, to input" } else { "product" };
            let moved = rows * k + k * n + rows * n * if accumulate { 2 } else { 1 };
            self.profile.stop(clock, name, 2.0 * (rows * n * k) as f64, moved);
        }
    }

    /// `dw += dyᵀ x`. `dy`: `[rows, out]`, `x`: `[rows, in]`.
    fn weight_gradient(&mut self, dy: Operand<'_>, x: Operand<'_>, rows: usize, dw: &mut [f32]) {
        let (m, n) = (dy.cols, x.cols);
        let clock = self.profile.start();
        match (dy.half, x.half) {
            (Some(dy), Some(x)) => {
                let a = Mat { data: dy, stride: m, transposed: true };
                let b = Mat { data: x, stride: n, transposed: false };
                gemm_bf16(&self.cpu, m, n, rows, a, b, dw, n, true);
            }
            _ => {
                let a = Mat { data: dy.value, stride: m, transposed: true };
                let b = Mat { data: x.value, stride: n, transposed: false };
                gemm(&self.cpu, m, n, rows, a, b, dw, n, true);
            }
        }
        let moved = rows * (m + n) + 2 * m * n;
        self.profile.stop(clock, "product, to weight", 2.0 * (rows * m * n) as f64, moved);
    }

    /// A bf16 copy, if products want one.
    fn halve(&mut self, x: &[f32]) -> Option<Vec<u16>> {
        (self.products == DType::Bf16).then(|| {
            let clock = self.profile.start();
            let mut half = self.halves.take(x.len());
            to_bf16(&self.cpu, x, &mut half);
            self.profile.stop(clock, "round to bf16", 0.0, x.len() * 3 / 2);
            half
        })
    }
}

/// A left or right operand: f32, and bf16 where products want that.
#[derive(Clone, Copy)]
struct Operand<'a> {
    value: &'a [f32],
    half: Option<&'a [u16]>,
    cols: usize,
}

impl<'a> Operand<'a> {
    fn rows(&self) -> Rows<'a> {
        match self.half {
            Some(half) => Rows::Bf16 { data: half, stride: self.cols },
            None => Rows::F32 { data: self.value, stride: self.cols },
        }
    }
}

/// A value on a tape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Var(usize);

struct Node {
    /// `[rows, cols]`
    value: Vec<f32>,
    rows: usize,
    cols: usize,
    half: Option<Vec<u16>>,
    gradient: Option<Vec<f32>>,
    op: Op,
}

impl Node {
    fn operand(&self) -> Operand<'_> {
        Operand { value: &self.value, half: self.half.as_deref(), cols: self.cols }
    }
}

/// An operation with its inputs and what its backward pass needs.
enum Op {
    Input,
    Embedding { table: ParamId, ids: Rc<[u32]> },
    Linear { x: Var, w: ParamId, residual: Option<Var> },
    RmsNorm { x: Var, w: ParamId, inv: Vec<f32> },
    Heads { x: Var, w: Option<ParamId>, inv: Vec<f32>, rope: Arc<Rope>, positions: Rc<[u32]> },
    Attention { q: Var, k: Var, v: Var, shape: AttentionShape, spans: Rc<[Span]>, lse: Vec<f32> },
    SwiGlu { gate: Var, up: Var },
}

/// One pass.
pub struct Tape<'a> {
    ws: &'a mut Workspace,
    parameters: &'a Parameters,
    gradients: Option<&'a mut Gradients>,
    nodes: Vec<Node>,
}

/// What [`Tape::cross_entropy`] found.
#[derive(Clone, Debug)]
pub struct Loss {
    /// Nats of each row; 0 where there is no target.
    pub rows: Vec<f32>,
    /// Rows with a target.
    pub targets: usize,
}

impl Loss {
    /// Nats of all rows together.
    pub fn sum(&self) -> f64 {
        self.rows.iter().map(|x| f64::from(*x)).sum()
    }
}

impl Tape<'_> {
    /// Whether operations are remembered.
    pub fn recording(&self) -> bool {
        self.gradients.is_some()
    }

    /// The elements of a value, `[rows, cols]`.
    pub fn value(&self, x: Var) -> &[f32] {
        &self.nodes[x.0].value
    }

    /// Rows and columns of a value.
    pub fn shape(&self, x: Var) -> (usize, usize) {
        (self.nodes[x.0].rows, self.nodes[x.0].cols)
    }

    /// The gradient of an input after [`Tape::backward`]; `None` if nothing depends on it.
    pub fn gradient(&self, x: Var) -> Option<&[f32]> {
        self.nodes[x.0].gradient.as_deref()
    }

    fn push(&mut self, value: Vec<f32>, rows: usize, op: Op) -> Var {
        let cols = value.len() / rows.max(1);
        self.nodes.push(Node { value, rows, cols, half: None, gradient: None, op });
        Var(self.nodes.len() - 1)
    }

    /// A value from outside.
    pub fn input(&mut self, x: &Tensor) -> Var {
        let mut value = self.ws.floats.take(x.len());
        value.copy_from_slice(x.f32());
        self.push(value, x.rows(), Op::Input)
    }

    /// Rows of `table` (`[vocab, width]`) by id: `[ids, width]`.
    pub fn embedding(&mut self, table: ParamId, ids: &Rc<[u32]>) -> Var {
        let width = self.parameters.get(table).value.cols();
        let clock = self.ws.profile.start();
        let mut y = self.ws.floats.take(ids.len() * width);
        embedding::embedding(&self.ws.cpu, self.parameters.f32(table), ids, width, &mut y);
        self.ws.profile.stop(clock, "embedding", 0.0, 2 * y.len());
        self.push(y, ids.len(), Op::Embedding { table, ids: ids.clone() })
    }

    /// `y = x wᵀ`: `[rows, in]` to `[rows, out]`.
    pub fn linear(&mut self, x: Var, w: ParamId) -> Var {
        let y = self.ws.floats.take(self.nodes[x.0].rows * self.parameters.get(w).value.rows());
        self.linear_onto(y, x, w, None)
    }

    /// `y = residual + x wᵀ`: each output's chain starts from the residual.
    pub fn linear_add(&mut self, x: Var, w: ParamId, residual: Var) -> Var {
        let clock = self.ws.profile.start();
        let mut y = self.ws.floats.take(self.nodes[residual.0].value.len());
        update::copy(&self.ws.cpu, self.value(residual), &mut y);
        self.ws.profile.stop(clock, "copy, add", 0.0, 2 * y.len());
        self.linear_onto(y, x, w, Some(residual))
    }

    fn linear_onto(&mut self, mut y: Vec<f32>, x: Var, w: ParamId, residual: Option<Var>) -> Var {
        if self.nodes[x.0].half.is_none() {
            self.nodes[x.0].half = self.ws.halve(&self.nodes[x.0].value);
        }
        let (rows, input) = (self.nodes[x.0].rows, self.nodes[x.0].operand());
        let weight = &self.parameters.get(w).value;
        assert_eq!(input.cols, weight.cols(), "inputs of a linear layer");
        assert_eq!(y.len(), rows * weight.rows(), "outputs of a linear layer");
        let more = residual.is_some();
        self.ws.product(self.parameters, w, false, input.rows(), rows, &mut y, more);
        self.push(y, rows, Op::Linear { x, w, residual })
    }

    /// RMS norm of each row, times `w`.
    pub fn rms_norm(&mut self, x: Var, w: ParamId, eps: f32) -> Var {
        let (rows, cols) = self.shape(x);
        let clock = self.ws.profile.start();
        let mut y = self.ws.floats.take(rows * cols);
        let mut inv = self.ws.floats.take(rows);
        let weight = self.parameters.f32(w);
        norm::rms_norm(&self.ws.cpu, self.value(x), weight, eps, &mut y, &mut inv);
        self.ws.profile.stop(clock, "norm", 0.0, 2 * y.len());
        self.push(y, rows, Op::RmsNorm { x, w, inv })
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
        let (rows, cols) = self.shape(q);
        let clock = self.ws.profile.start();
        let mut out = self.ws.floats.take(rows * cols);
        let mut lse = self.ws.floats.take(rows * shape.heads);
        let (qv, kv, vv) = (self.value(q), self.value(k), self.value(v));
        attention::forward(&self.ws.cpu, &shape, spans, qv, kv, vv, &mut out, &mut lse);
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
        let (rows, cols) = self.shape(q);
        let width = shape.kv_heads * shape.head_dim;
        for span in spans {
            let r = span.rows.start * width..(span.rows.start + span.rows.len) * width;
            let (k, v) = (&self.value(k)[r.clone()], &self.value(v)[r]);
            pages.append(layer, span.pages, span.past, k, v);
        }
        let mut out = self.ws.floats.take(rows * cols);
        let q = &self.nodes[q.0].value;
        attention::forward_cached(&self.ws.cpu, shape, layer, pages, spans, q, &mut out);
        self.push(out, rows, Op::Input)
    }

    /// `silu(gate) * up`.
    pub fn swiglu(&mut self, gate: Var, up: Var) -> Var {
        let (rows, cols) = self.shape(gate);
        let clock = self.ws.profile.start();
        let mut y = self.ws.floats.take(rows * cols);
        gated::swiglu(&self.ws.cpu, self.value(gate), self.value(up), &mut y);
        self.ws.profile.stop(clock, "gate", 0.0, 3 * y.len());
        self.push(y, rows, Op::SwiGlu { gate, up })
    }

    /// Logits `h wᵀ` of chosen rows: `[rows.len(), vocab]`.
    pub fn logits(&mut self, h: Var, rows: &[usize], w: ParamId) -> Vec<f32> {
        let vocab = self.parameters.get(w).value.rows();
        let x = self.gather(h, rows);
        let half = self.ws.halve(&x);
        let cols = self.nodes[h.0].cols;
        let mut y = vec![0.0; rows.len() * vocab];
        let operand = Operand { value: &x, half: half.as_deref(), cols };
        self.ws.product(self.parameters, w, false, operand.rows(), rows.len(), &mut y, false);
        self.ws.floats.give(x);
        half.into_iter().for_each(|h| self.ws.halves.give(h));
        y
    }

    fn gather(&mut self, h: Var, rows: &[usize]) -> Vec<f32> {
        let cols = self.nodes[h.0].cols;
        let mut x = self.ws.floats.take(rows.len() * cols);
        for (x, &r) in x.chunks_exact_mut(cols).zip(rows) {
            x.copy_from_slice(&self.nodes[h.0].value[r * cols..(r + 1) * cols]);
        }
        x
    }

    /// Cross-entropy of `softmax(h wᵀ)` against `targets` (one a row, or [`IGNORE`]), the logits
    /// in pieces of 256 rows. When recording, gradients of `sum(weights * nats)` go to `h` and
    /// `w`; `weights` has one number a row.
    pub fn cross_entropy(&mut self, h: Var, w: ParamId, targets: &[u32], weights: &[f32]) -> Loss {
        let (rows, cols) = self.shape(h);
        assert!(targets.len() == rows && (weights.len() == rows || !self.recording()));
        let chosen: Vec<usize> = (0..rows).filter(|r| targets[*r] != IGNORE).collect();
        let vocab = self.parameters.get(w).value.rows();
        let mut loss = Loss { rows: vec![0.0; rows], targets: chosen.len() };
        let mut dh = self.recording().then(|| self.ws.floats.zeros(rows * cols));
        for piece in chosen.chunks(LOGIT_ROWS) {
            let gathered = self.gather(h, piece);
            let half = self.ws.halve(&gathered);
            let x = Operand { value: &gathered, half: half.as_deref(), cols };
            let mut logits = self.ws.floats.take(piece.len() * vocab);
            let parameters = self.parameters;
            self.ws.product(parameters, w, false, x.rows(), piece.len(), &mut logits, false);

            let t: Vec<u32> = piece.iter().map(|r| targets[*r]).collect();
            let weight = |r: &usize| weights[*r];
            let s: Vec<f32> = dh.iter().flat_map(|_| piece.iter().map(weight)).collect();
            let mut nats = vec![0.0; piece.len()];
            let clock = self.ws.profile.start();
            softmax::cross_entropy(&self.ws.cpu, &mut logits, &t, &s, &mut nats);
            self.ws.profile.stop(clock, "cross-entropy", 0.0, 2 * logits.len());
            piece.iter().zip(&nats).for_each(|(r, n)| loss.rows[*r] = *n);

            if let (Some(dh), Some(gradients)) = (&mut dh, &mut self.gradients) {
                let dhalf = self.ws.halve(&logits);
                let dlogits = Operand { value: &logits, half: dhalf.as_deref(), cols: vocab };
                if parameters.get(w).trainable {
                    self.ws.weight_gradient(dlogits, x, piece.len(), gradients.get_mut(w));
                }
                let mut dx = self.ws.floats.take(piece.len() * cols);
                self.ws.product(parameters, w, true, dlogits.rows(), piece.len(), &mut dx, false);
                for (dx, &r) in dx.chunks_exact(cols).zip(piece) {
                    dh[r * cols..(r + 1) * cols].copy_from_slice(dx);
                }
                self.ws.floats.give(dx);
                dhalf.into_iter().for_each(|h| self.ws.halves.give(h));
            }
            self.ws.floats.give(gathered);
            self.ws.floats.give(logits);
            half.into_iter().for_each(|h| self.ws.halves.give(h));
        }
        if let Some(dh) = dh {
            self.add_gradient(h, dh);
        }
        loss
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

    /// Adds a gradient to a value from outside, `[rows, cols]`, for [`Tape::backward`] to start
    /// from.
    pub fn seed(&mut self, x: Var, gradient: &[f32]) {
        assert_eq!(gradient.len(), self.nodes[x.0].value.len(), "elements of a gradient");
        let mut dx = self.ws.floats.take(gradient.len());
        dx.copy_from_slice(gradient);
        self.add_gradient(x, dx);
    }

    /// Goes through the operations in reverse, from the gradients that losses left
    /// ([`Tape::cross_entropy`], [`Tape::seed`]), and adds to the parameters' gradients. Values
    /// are given up on the way; gradients of inputs stay.
    pub fn backward(&mut self) {
        for i in (0..self.nodes.len()).rev() {
            let op = std::mem::replace(&mut self.nodes[i].op, Op::Input);
            if matches!(op, Op::Input) {
                continue;
            }
            if let Some(dy) = self.nodes[i].gradient.take() {
                self.step_back(op, i, dy);
            }
            // Everything that used this value came later, and is done.
            let value = std::mem::take(&mut self.nodes[i].value);
            self.ws.floats.give(value);
            if let Some(half) = self.nodes[i].half.take() {
                self.ws.halves.give(half);
            }
        }
    }

    /// Passes `dy`, the gradient of node `i`, on to what the node was made from.
    fn step_back(&mut self, op: Op, i: usize, dy: Vec<f32>) {
        let Tape { ws, parameters, gradients, nodes } = self;
        let Some(gradients) = gradients.as_mut() else { return };
        let cpu = ws.cpu.clone();
        let (rows, cols) = (nodes[i].rows, nodes[i].cols);
        let trainable = |w: ParamId| parameters.get(w).trainable;
        match op {
            Op::Input => ws.floats.give(dy),
            Op::Embedding { table, ids } => {
                if trainable(table) {
                    let clock = ws.profile.start();
                    embedding::embedding_backward(&cpu, &dy, &ids, cols, gradients.get_mut(table));
                    ws.profile.stop(clock, "embedding, backward", 0.0, 3 * dy.len());
                }
                ws.floats.give(dy);
            }
            Op::Linear { x, w, residual } => {
                let half = ws.halve(&dy);
                let d = Operand { value: &dy, half: half.as_deref(), cols };
                if trainable(w) {
                    ws.weight_gradient(d, nodes[x.0].operand(), rows, gradients.get_mut(w));
                }
                // Straight onto the gradient that is there already: its chains go on.
                let (mut dx, more) = match nodes[x.0].gradient.take() {
                    Some(dx) => (dx, true),
                    None => (ws.floats.take(rows * nodes[x.0].cols), false),
                };
                ws.product(parameters, w, true, d.rows(), rows, &mut dx, more);
                nodes[x.0].gradient = Some(dx);
                half.into_iter().for_each(|h| ws.halves.give(h));
                match residual {
                    Some(residual) => self.add_gradient(residual, dy),
                    None => ws.floats.give(dy),
                }
            }
            Op::RmsNorm { x, w, inv } => {
                let clock = ws.profile.start();
                let weight = parameters.f32(w);
                let mut partial = ws.floats.take(rows.div_ceil(norm::BLOCK) * weight.len());
                let mut dx = ws.floats.take(rows * cols);
                let mut unused = vec![0.0; if trainable(w) { 0 } else { weight.len() }];
                let dw = if trainable(w) { gradients.get_mut(w) } else { &mut unused };
                let xv = &nodes[x.0].value;
                norm::rms_norm_backward(&cpu, xv, weight, &inv, &dy, &mut dx, dw, &mut partial);
                ws.profile.stop(clock, "norm, backward", 0.0, 3 * dx.len());
                [partial, inv, dy].into_iter().for_each(|b| ws.floats.give(b));
                self.add_gradient(x, dx);
            }
            Op::Heads { x, w, inv, rope, positions } => {
                let clock = ws.profile.start();
                let weight = w.map_or(&[][..], |w| parameters.f32(w));
                let mut partial = ws.floats.take(rows.div_ceil(norm::BLOCK) * weight.len());
                let mut dx = ws.floats.take(rows * cols);
                let mut unused = vec![0.0; weight.len()];
                let dw = match w {
                    Some(w) if trainable(w) => gradients.get_mut(w),
                    _ => &mut unused,
                };
                let xv = &nodes[x.0].value;
                norm_rotate_backward(
                    &cpu,
                    xv,
                    weight,
                    &inv,
                    &rope,
                    &positions,
                    &dy,
                    &mut dx,
                    dw,
                    &mut partial,
                );
                ws.profile.stop(clock, "norm and rotate heads, backward", 0.0, 3 * dx.len());
                [partial, inv, dy].into_iter().for_each(|b| ws.floats.give(b));
                self.add_gradient(x, dx);
            }
            Op::Attention { q, k, v, shape, spans, lse } => {
                let clock = ws.profile.start();
                let [mut dq, mut dk, mut dv] =
                    [q, k, v].map(|x| ws.floats.take(nodes[x.0].value.len()));
                let [qv, kv, vv, out] = [q, k, v, Var(i)].map(|x| &nodes[x.0].value[..]);
                attention::backward(
                    &cpu, &shape, &spans, qv, kv, vv, out, &lse, &dy, &mut dq, &mut dk, &mut dv,
                );
                let (flops, moved) = attention_work(&shape, &spans, dq.len() + dk.len());
                ws.profile.stop(clock, "attention, backward", 2.5 * flops, 2 * moved);
                [lse, dy].into_iter().for_each(|b| ws.floats.give(b));
                [(q, dq), (k, dk), (v, dv)].into_iter().for_each(|(x, d)| self.add_gradient(x, d));
            }
            Op::SwiGlu { gate, up } => {
                let clock = ws.profile.start();
                let mut dgate = ws.floats.take(dy.len());
                let mut dup = ws.floats.take(dy.len());
                let (g, u) = (&nodes[gate.0].value, &nodes[up.0].value);
                gated::swiglu_backward(&cpu, g, u, &dy, &mut dgate, &mut dup);
                ws.profile.stop(clock, "gate, backward", 0.0, 5 * dy.len());
                ws.floats.give(dy);
                self.add_gradient(gate, dgate);
                self.add_gradient(up, dup);
            }
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
        for node in self.nodes.drain(..) {
            self.ws.floats.give(node.value);
            node.gradient.into_iter().for_each(|g| self.ws.floats.give(g));
            node.half.into_iter().for_each(|h| self.ws.halves.give(h));
            match node.op {
                Op::RmsNorm { inv: kept, .. }
                | Op::Heads { inv: kept, .. }
                | Op::Attention { lse: kept, .. } => self.ws.floats.give(kept),
                _ => {}
            }
        }
    }
}
