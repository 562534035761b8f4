//! What passes over one model share: step memory, packed weights, and the products that use them.

use std::sync::Arc;

use super::card::Card;
use super::inputs::InputSquares;
use super::{Dropout, Tape};
use crate::Cpu;
use crate::arena::Arena;
use crate::cpu::matmul::{Mat, Packed, Rows, gemm, gemm_bf16, gemm_packed, gemm_strips};
use crate::cpu::matmul::{gemm_strips_turned, to_bf16};
use crate::cpu::{peak, quantised};
use crate::parameters::{Gradients, ParamId, Parameters};
use crate::profile::Profile;
use crate::strips::Strips;
use crate::tensor::{DType, Tensor};

/// Most rows of a quantised weight that are widened at a time on the way back.
const WIDENED: usize = 1024;

/// Parts of equal size that `n` is cut into, none larger than `most`.
fn even(n: usize, most: usize) -> usize {
    n.div_ceil(n.div_ceil(most).max(1))
}

/// What passes over one model share: step memory and packed weights.
pub struct Workspace {
    pub(super) cpu: Arc<Cpu>,
    /// Where passes are computed, if not on the CPU.
    pub(super) card: Option<Card>,
    /// Type of the operands of products; sums and everything else are f32.
    products: DType,
    /// Whether products with quantised weights never round activations.
    exact: bool,
    /// Whether passes for gradients round activations, too, on their way forward.
    learn_rounded: bool,
    /// Whether this pass, or the one it is a part of, is for gradients.
    pub(super) learns: bool,
    /// Whether layers' values are made again on the way back.
    pub(super) recompute: bool,
    /// What is dropped before adapters in passes for gradients.
    pub dropout: Option<Dropout>,
    pub(super) floats: Arena<f32>,
    halves: Arena<u16>,
    codes: Arena<u8>,
    packs: Vec<Packs>,
    /// Where the time goes.
    pub profile: Profile,
    /// What goes into products with weights, if that is asked for.
    pub inputs: Option<InputSquares>,
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
        Workspace {
            card: cpu.card.clone().map(Card::new),
            cpu,
            products,
            exact: false,
            learn_rounded: false,
            learns: false,
            recompute: false,
            dropout: None,
            floats: Arena::default(),
            halves: Arena::default(),
            codes: Arena::default(),
            packs: Vec::new(),
            profile: Profile::default(),
            inputs: None,
        }
    }

    /// Products with weights of fewer bits are computed in f32 from now on, where passes that don't record round
    /// activations to 8 bits, or with BF16 to those where the CPU multiplies them: exact, slower.
    pub fn set_exact(&mut self, exact: bool) {
        self.exact = exact;
    }

    pub(super) fn is_exact(&self) -> bool {
        self.exact || self.learns && !self.learn_rounded
    }

    /// Passes that record go forward as others do from now on: activations are rounded before products with quantised
    /// weights, so what is learned is learned for the model as it will be run. The way back is that of the exact
    /// products (straight through, Bengio et al. 2013, <https://arxiv.org/abs/1308.3432>).
    pub fn set_learn_rounded(&mut self, rounded: bool) {
        self.learn_rounded = rounded;
    }

    /// Passes that record keep less from now on, and compute some of it twice: see [`Tape::again`].
    pub fn set_recompute(&mut self, recompute: bool) {
        self.recompute = recompute;
    }

    /// The device.
    pub fn cpu(&self) -> &Arc<Cpu> {
        &self.cpu
    }

    /// Type of the operands of matrix products.
    pub fn products(&self) -> DType {
        self.products
    }

    /// Whether attention's products are in bf16: in passes for gradients, where others are. Elsewhere keys may come
    /// from a cache, to the same bits.
    pub(super) fn learns_in_bf16(&self) -> bool {
        self.learns && self.products == DType::Bf16
    }

    /// Bytes of step memory taken from the system so far.
    pub fn bytes(&self) -> usize {
        self.floats.allocated() * 4 + self.halves.allocated() * 2 + self.codes.allocated()
    }

    /// To be called after parameters were changed: packed copies are made anew on use, and graphs.
    pub fn weights_changed(&mut self) {
        self.packs.iter_mut().for_each(|p| p.stale = true);
        self.card.iter_mut().for_each(Card::weights_changed);
    }

    /// Steps of generation that a card was given as graphs ([`Tape::step`]).
    pub fn graph_launches(&self) -> usize {
        self.card.as_ref().map_or(0, |card| card.steps.launches)
    }

    /// A pass that only computes.
    pub fn compute<'a>(&'a mut self, parameters: &'a Parameters) -> Tape<'a> {
        self.learns = false;
        Tape::new(self, parameters, None)
    }

    /// A pass that remembers its operations and adds to `gradients`.
    pub fn record<'a>(
        &'a mut self,
        parameters: &'a Parameters,
        gradients: &'a mut Gradients,
    ) -> Tape<'a> {
        self.learns = true;
        Tape::new(self, parameters, Some(gradients))
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

    /// `c = a · (wᵀ or w)`, or `c += …`. `a`: `[rows, k]`, with the copies that the weight wants.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn product(
        &mut self,
        parameters: &Parameters,
        id: ParamId,
        backward: bool,
        a: Operand<'_>,
        rows: usize,
        c: &mut [f32],
        accumulate: bool,
    ) {
        if let (Some(inputs), false) = (&mut self.inputs, backward) {
            inputs.add(id, &a.value[..rows * a.cols], a.cols);
        }
        if let (Some(w), true) = (parameters.get(id).value.strips(), backward) {
            let clock = self.profile.start();
            let mut scratch =
                self.floats.take(even(w.rows(), WIDENED).next_multiple_of(16) * w.cols());
            gemm_strips_turned(&self.cpu, rows, a.value, w, &mut scratch, c, accumulate);
            let (flops, moved) = (2.0 * (rows * w.rows() * w.cols()) as f64, w.bytes() / 4);
            self.profile.stop(clock, "product, to input", flops, moved + a.value.len() + c.len());
            return self.floats.give(scratch);
        }
        if let Some(w) = parameters.get(id).value.strips() {
            let clock = self.profile.start();
            let flops = 2.0 * (rows * w.rows() * w.cols()) as f64;
            let moved = w.bytes() / 4 + c.len() * if accumulate { 2 } else { 1 };
            if let Some(a) = &a.copies.rounded {
                quantised::product(&self.cpu, rows, &a.codes, &a.numbers, w, c, accumulate);
                self.profile.stop(clock, "product, quantised", flops, moved + a.codes.len() / 4);
            } else {
                let a = match self.narrowed(w) {
                    Some(Narrow::Halves) => a.rows(),
                    _ => Rows::F32 { data: a.value, stride: a.cols },
                };
                gemm_strips(&self.cpu, rows, a, w, c, accumulate);
                self.profile.stop(clock, "product", flops, moved + rows * w.cols());
            }
            return;
        }
        self.pack(parameters, id, backward);
        let clock = self.profile.start();
        let a = a.rows();
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
    pub(super) fn weight_gradient(
        &mut self,
        dy: Operand<'_>,
        x: Operand<'_>,
        rows: usize,
        dw: &mut [f32],
    ) {
        let (m, n) = (dy.cols, x.cols);
        let clock = self.profile.start();
        match (&dy.copies.half, &x.copies.half) {
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

    /// The copy of a gradient that the way back through `weight` reads.
    pub(super) fn copy_of_gradient(&mut self, weight: &Tensor, d: &[f32]) -> Copies {
        let mut copies = Copies::default();
        // Quantised weights are widened there.
        if weight.strips().is_none() {
            self.copy_for(weight, d, &mut copies);
        }
        copies
    }

    /// What activations are narrowed to before products with a weight that stays as it was stored.
    fn narrowed(&self, w: &Strips) -> Option<Narrow> {
        let halves = w.has_pairs() && peak::multiplies_bf16(self.cpu.isa);
        match (w.rounds(), halves) {
            _ if self.is_exact() => None,
            (true, _) => Some(Narrow::Bytes),
            (_, true) => Some(Narrow::Halves),
            _ => None,
        }
    }

    /// Makes the copy of `x`, `[rows, cols]`, that a product with `weight` reads, if there is none:
    /// of 8 bits where that is quantised, of bf16 where it is, or where products want those and it is f32.
    pub(super) fn copy_for(&mut self, weight: &Tensor, x: &[f32], copies: &mut Copies) {
        let narrow = match weight.strips() {
            Some(w) => self.narrowed(w),
            None => (self.products == DType::Bf16).then_some(Narrow::Halves),
        };
        match narrow {
            None => {}
            Some(Narrow::Bytes) => {
                let cols = weight.cols();
                copies.rounded.get_or_insert_with(|| {
                    let clock = self.profile.start();
                    let (rows, layout) = (x.len() / cols.max(1), quantised::Layout::new(cols));
                    let mut codes = self.codes.take(rows * layout.codes());
                    let mut numbers = self.floats.take(rows * layout.numbers());
                    quantised::quantise(&self.cpu, x, cols, &mut codes, &mut numbers);
                    self.profile.stop(clock, "round to 8 bits", 0.0, x.len() * 3 / 2);
                    Rounded { codes, numbers }
                });
            }
            Some(Narrow::Halves) => {
                copies.half.get_or_insert_with(|| {
                    let clock = self.profile.start();
                    let mut half = self.halves.take(x.len());
                    to_bf16(&self.cpu, x, &mut half);
                    self.profile.stop(clock, "round to bf16", 0.0, x.len() * 3 / 2);
                    half
                });
            }
        }
    }

    /// Takes the memory of copies back.
    pub(super) fn give(&mut self, copies: Copies) {
        copies.half.into_iter().for_each(|h| self.halves.give(h));
        if let Some(Rounded { codes, numbers }) = copies.rounded {
            self.codes.give(codes);
            self.floats.give(numbers);
        }
    }
}

/// What activations are narrowed to before a product.
enum Narrow {
    /// 8 bits ([`quantised::quantise`]).
    Bytes,
    /// bf16.
    Halves,
}

/// A value in the forms that products read.
#[derive(Default)]
pub(super) struct Copies {
    half: Option<Vec<u16>>,
    rounded: Option<Rounded>,
}

/// See [`quantised::quantise`].
struct Rounded {
    codes: Vec<u8>,
    numbers: Vec<f32>,
}

/// A left or right operand: f32, and the copies that products want.
#[derive(Clone, Copy)]
pub(super) struct Operand<'a> {
    pub(super) value: &'a [f32],
    pub(super) copies: &'a Copies,
    pub(super) cols: usize,
}

impl<'a> Operand<'a> {
    fn rows(&self) -> Rows<'a> {
        match &self.copies.half {
            Some(half) => Rows::Bf16 { data: half, stride: self.cols },
            None => Rows::F32 { data: self.value, stride: self.cols },
        }
    }
}
