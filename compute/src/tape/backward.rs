//! The way back over a tape.

use super::{Linear, Op, Operand, Tape, Var, attention_work};
use crate::cpu::bias::column_sums;
use crate::cpu::gated::gated_backward;
use crate::cpu::heads::norm_rotate_backward;
use crate::cpu::{attention, embedding, layer_norm, norm, update};
use crate::parameters::ParamId;

impl<'a> Tape<'a> {
    /// Adds a gradient to a value from outside, `[rows, cols]`, for [`Tape::backward`] to start
    /// from.
    pub fn seed(&mut self, x: Var, gradient: &[f32]) {
        on_card!(self, seed(self, x, gradient));
        assert_eq!(gradient.len(), self.nodes[x.0].value.len(), "elements of a gradient");
        let mut dx = self.ws.floats.take(gradient.len());
        dx.copy_from_slice(gradient);
        self.add_gradient(x, dx);
    }

    /// Goes through the operations in reverse, from the gradients that losses left
    /// ([`Tape::cross_entropy`], [`Tape::seed`]), and adds to the parameters' gradients. Values
    /// are given up on the way; gradients of inputs stay.
    pub fn backward(&mut self) {
        on_card!(self, back_to(self, 0));
        self.back_to(0);
    }

    /// As far as the value `first`.
    pub(super) fn back_to(&mut self, first: usize) {
        for i in (first..self.nodes.len()).rev() {
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
            let copies = std::mem::take(&mut self.nodes[i].copies);
            self.ws.give(copies);
        }
    }

    /// Passes `dy`, the gradient of node `i`, on to what the node was made from.
    fn step_back(&mut self, op: Op<'a>, i: usize, dy: Vec<f32>) {
        let op = match op {
            Op::Again { x, made } => return self.again_back(x, &made, dy),
            Op::Dropout { x, mask } => return self.dropout_back(x, mask, dy),
            op => op,
        };
        let Tape { ws, parameters, gradients, nodes, .. } = self;
        let Some(gradients) = gradients.as_mut() else { return };
        let cpu = ws.cpu.clone();
        let (rows, cols) = (nodes[i].rows, nodes[i].cols);
        let trainable = |w: ParamId| parameters.get(w).trainable;
        match op {
            Op::Input | Op::Again { .. } | Op::Dropout { .. } => ws.floats.give(dy),
            Op::Add { a, b } => {
                let mut da = ws.floats.take(dy.len());
                update::copy(&cpu, &dy, &mut da);
                self.add_gradient(a, da);
                self.add_gradient(b, dy);
            }
            Op::Scale { x, factor } => {
                let mut dx = ws.floats.zeros(dy.len());
                update::axpby(&cpu, factor, &dy, 0.0, &mut dx);
                ws.floats.give(dy);
                self.add_gradient(x, dx);
            }
            Op::Embedding { table, ids } => {
                if trainable(table) {
                    let clock = ws.profile.start();
                    embedding::embedding_backward(&cpu, &dy, &ids, cols, gradients.get_mut(table));
                    ws.profile.stop(clock, "embedding, backward", 0.0, 3 * dy.len());
                }
                ws.floats.give(dy);
            }
            Op::Linear { x, layer: Linear { weight: w, bias, .. }, residual } => {
                let copies = ws.copy_of_gradient(&parameters.get(w).value, &dy);
                let d = Operand { value: &dy, copies: &copies, cols };
                if trainable(w) {
                    ws.weight_gradient(d, nodes[x.0].operand(), rows, gradients.get_mut(w));
                }
                if let Some(b) = bias.filter(|b| trainable(*b)) {
                    column_sums(&cpu, &dy, gradients.get_mut(b));
                }
                // Straight onto the gradient that is there already: its chains go on.
                let (mut dx, more) = match nodes[x.0].gradient.take() {
                    Some(dx) => (dx, true),
                    None => (ws.floats.take(rows * nodes[x.0].cols), false),
                };
                ws.product(parameters, w, true, d, rows, &mut dx, more);
                nodes[x.0].gradient = Some(dx);
                ws.give(copies);
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
            Op::LayerNorm { x, w, b, stats } => {
                let clock = ws.profile.start();
                let weight = parameters.f32(w);
                let mut partial = ws.floats.take(rows.div_ceil(norm::BLOCK) * 2 * weight.len());
                let mut dx = ws.floats.take(rows * cols);
                let (mut dw, mut db) = (vec![0.0; cols], vec![0.0; cols]);
                let xv = &nodes[x.0].value;
                layer_norm::layer_norm_backward(
                    &cpu,
                    xv,
                    weight,
                    &stats,
                    &dy,
                    &mut dx,
                    &mut dw,
                    &mut db,
                    &mut partial,
                );
                for (id, d) in [(w, dw), (b, db)] {
                    if trainable(id) {
                        update::axpby(&cpu, 1.0, &d, 1.0, gradients.get_mut(id));
                    }
                }
                ws.profile.stop(clock, "norm, backward", 0.0, 3 * dx.len());
                [partial, stats, dy].into_iter().for_each(|b| ws.floats.give(b));
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
                let bf16 = ws.learns_in_bf16();
                attention::backward(
                    &cpu, &shape, &spans, bf16, qv, kv, vv, out, &lse, &dy, &mut dq, &mut dk,
                    &mut dv,
                );
                let (flops, moved) = attention_work(&shape, &spans, dq.len() + dk.len());
                ws.profile.stop(clock, "attention, backward", 2.5 * flops, 2 * moved);
                [lse, dy].into_iter().for_each(|b| ws.floats.give(b));
                [(q, dq), (k, dk), (v, dv)].into_iter().for_each(|(x, d)| self.add_gradient(x, d));
            }
            Op::Gated { f, gate, up } => {
                let clock = ws.profile.start();
                let mut dgate = ws.floats.take(dy.len());
                let mut dup = up.map(|_| ws.floats.take(dy.len()));
                let u = up.zip(dup.as_mut()).map(|(u, du)| (&nodes[u.0].value[..], &mut du[..]));
                gated_backward(&cpu, f, &nodes[gate.0].value, u, &dy, &mut dgate);
                ws.profile.stop(clock, "gate, backward", 0.0, 5 * dy.len());
                ws.floats.give(dy);
                self.add_gradient(gate, dgate);
                up.zip(dup).into_iter().for_each(|(up, dup)| self.add_gradient(up, dup));
            }
        }
    }
}
