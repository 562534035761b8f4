//! A mixture of experts (Shazeer et al. 2017; Qwen3): of many gated MLPs a row goes through a few.

use super::{Op, Tape, Var};
use crate::cpu::gated::{Activation, gated};
use crate::parameters::ParamId;

/// The parameters of such a layer.
#[derive(Clone, Debug)]
pub struct Experts {
    /// Scores of the experts, `[experts, width]`.
    pub router: ParamId,
    /// Gate, up and down of each.
    pub experts: Vec<[ParamId; 3]>,
    /// Experts that a row goes through.
    pub chosen: usize,
    /// Whether the weights of the chosen ones are made to sum to 1.
    pub normalised: bool,
}

/// Rows that an expert takes, and its weight in each.
type Share = Vec<(usize, f32)>;

impl Tape<'_> {
    /// `y = sum of weight * expert(x)` over the experts that each row chooses, in their order: a
    /// row's result doesn't depend on which others go with it. Not differentiable.
    ///
    /// # Panics
    /// On a tape that records.
    pub fn experts(&mut self, x: Var, layer: &Experts, f: Activation) -> Var {
        assert!(!self.recording(), "a mixture of experts has no backward pass");
        assert!(
            self.ws.card.is_none(),
            "a mixture of experts is computed on the CPU alone: --device cpu"
        );
        let (rows, cols) = self.shape(x);
        let shares = self.shares(x, layer);
        let mut y = self.ws.floats.zeros(rows * cols);
        for (share, [gate, up, down]) in shares.iter().zip(&layer.experts) {
            if share.is_empty() {
                continue;
            }
            let chosen: Vec<usize> = share.iter().map(|(row, _)| *row).collect();
            let input = self.gather(x, &chosen);
            let gate = self.through(&input, chosen.len(), *gate);
            let up = self.through(&input, chosen.len(), *up);
            let mut middle = self.ws.floats.take(gate.len());
            gated(&self.ws.cpu, f, &gate, Some(&up), &mut middle);
            let output = self.through(&middle, chosen.len(), *down);
            for (output, (row, weight)) in output.chunks_exact(cols).zip(share) {
                let y = &mut y[row * cols..(row + 1) * cols];
                y.iter_mut().zip(output).for_each(|(y, x)| *y += weight * x);
            }
            [input, gate, up, middle, output].into_iter().for_each(|b| self.ws.floats.give(b));
        }
        self.push(y, rows, Op::Input)
    }

    /// For each expert its rows. Of equal scores the first expert's counts more.
    fn shares(&mut self, x: Var, layer: &Experts) -> Vec<Share> {
        let rows = self.nodes[x.0].rows;
        let input = self.gather(x, &(0..rows).collect::<Vec<_>>());
        let scores = self.through(&input, rows, layer.router);
        let mut shares = vec![Share::new(); layer.experts.len()];
        for (row, scores) in scores.chunks_exact(layer.experts.len()).enumerate() {
            let mut order: Vec<usize> = (0..scores.len()).collect();
            order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
            let weight = |expert: &usize| libm::expf(scores[*expert] - scores[order[0]]);
            let chosen = &order[..layer.chosen];
            let counted = if layer.normalised { chosen } else { &order };
            let total: f32 = counted.iter().map(weight).sum();
            for expert in chosen {
                shares[*expert].push((row, weight(expert) / total));
            }
        }
        [input, scores].into_iter().for_each(|b| self.ws.floats.give(b));
        shares
    }

    /// As [`Tape::product_of`], into memory of the step.
    fn through(&mut self, x: &[f32], rows: usize, w: ParamId) -> Vec<f32> {
        let mut y = self.ws.floats.take(rows * self.parameters.get(w).value.rows());
        self.product_of(x, rows, w, &mut y);
        y
    }
}
