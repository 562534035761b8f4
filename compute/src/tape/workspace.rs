//! What passes over one model share: step memory, packed weights, and the products that use them.

use std::sync::Arc;

use super::Tape;
use crate::Cpu;
use crate::arena::Arena;
use crate::cpu::matmul::{Mat, Packed, Rows, gemm, gemm_bf16, gemm_packed, to_bf16};
use crate::parameters::{Gradients, ParamId, Parameters};
use crate::profile::Profile;
use crate::tensor::DType;

/// What passes over one model share: step memory and packed weights.
pub struct Workspace {
    pub(super) cpu: Arc<Cpu>,
    /// Type of the operands of products; sums and everything else are f32.
    products: DType,
    pub(super) floats: Arena<f32>,
    pub(super) halves: Arena<u16>,
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
    pub(super) fn product(
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
    pub(super) fn weight_gradient(
        &mut self,
        dy: Operand<'_>,
        x: Operand<'_>,
        rows: usize,
        dw: &mut [f32],
    ) {
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
    pub(super) fn halve(&mut self, x: &[f32]) -> Option<Vec<u16>> {
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
pub(super) struct Operand<'a> {
    pub(super) value: &'a [f32],
    pub(super) half: Option<&'a [u16]>,
    pub(super) cols: usize,
}

impl<'a> Operand<'a> {
    pub(super) fn rows(&self) -> Rows<'a> {
        match self.half {
            Some(half) => Rows::Bf16 { data: half, stride: self.cols },
            None => Rows::F32 { data: self.value, stride: self.cols },
        }
    }
}
