//! From the last layer's output to logits and to the loss.

use super::workspace::{Copies, Operand};
use super::{Tape, Var};
use crate::cpu::{self, softmax};
use crate::parameters::ParamId;
use crate::{Cpu, IGNORE};

/// Rows of logits that exist at a time (times the vocabulary).
pub(super) const LOGIT_ROWS: usize = 256;

/// What makes logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Head {
    /// `[vocab, width]`.
    pub weight: ParamId,
    /// Logits become `cap * tanh(logit / cap)` (Gemma 2).
    pub cap: Option<f32>,
}

impl Head {
    fn cap(&self, cpu: &Cpu, logits: &mut [f32]) {
        if let Some(cap) = self.cap {
            cpu::cap::cap(cpu, cap, logits);
        }
    }

    /// `d *= 1 - tanh^2`, from what came of the logits.
    fn cap_backward(&self, capped: &[f32], d: &mut [f32]) {
        for (d, y) in d.iter_mut().zip(capped) {
            let tanh = y / self.cap.unwrap_or(f32::INFINITY);
            *d *= 1.0 - tanh * tanh;
        }
    }
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
    /// Logits `h wᵀ` of chosen rows: `[rows.len(), vocab]`.
    pub fn logits(&mut self, h: Var, rows: &[usize], head: Head) -> Vec<f32> {
        on_card!(self, logits(self, h, rows, head));
        let x = self.gather(h, rows);
        let mut y = vec![0.0; rows.len() * self.parameters.get(head.weight).value.rows()];
        self.product_of(&x, rows.len(), head.weight, &mut y);
        self.ws.floats.give(x);
        head.cap(&self.ws.cpu, &mut y);
        y
    }

    /// `y = x wᵀ` of rows that are no value on the tape.
    pub(super) fn product_of(&mut self, x: &[f32], rows: usize, w: ParamId, y: &mut [f32]) {
        let weight = &self.parameters.get(w).value;
        let mut copies = Copies::default();
        self.ws.copy_for(weight, x, &mut copies);
        let x = Operand { value: x, copies: &copies, cols: weight.cols() };
        self.ws.product(self.parameters, w, false, x, rows, y, false);
        self.ws.give(copies);
    }

    pub(super) fn gather(&mut self, h: Var, rows: &[usize]) -> Vec<f32> {
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
    pub fn cross_entropy(&mut self, h: Var, head: Head, targets: &[u32], weights: &[f32]) -> Loss {
        on_card!(self, cross_entropy(self, h, head, targets, weights));
        let w = head.weight;
        let (rows, cols) = self.shape(h);
        assert!(targets.len() == rows && (weights.len() == rows || !self.recording()));
        let chosen: Vec<usize> = (0..rows).filter(|r| targets[*r] != IGNORE).collect();
        let vocab = self.parameters.get(w).value.rows();
        let mut loss = Loss { rows: vec![0.0; rows], targets: chosen.len() };
        let mut dh = self.recording().then(|| self.ws.floats.zeros(rows * cols));
        for piece in chosen.chunks(LOGIT_ROWS) {
            let gathered = self.gather(h, piece);
            let parameters = self.parameters;
            let table = &parameters.get(w).value;
            let mut copies = Copies::default();
            self.ws.copy_for(table, &gathered, &mut copies);
            let x = Operand { value: &gathered, copies: &copies, cols };
            let mut logits = self.ws.floats.take(piece.len() * vocab);
            self.ws.product(parameters, w, false, x, piece.len(), &mut logits, false);
            head.cap(&self.ws.cpu, &mut logits);
            let capped = (head.cap.is_some() && self.recording()).then(|| logits.clone());

            let t: Vec<u32> = piece.iter().map(|r| targets[*r]).collect();
            let weight = |r: &usize| weights[*r];
            let s: Vec<f32> = dh.iter().flat_map(|_| piece.iter().map(weight)).collect();
            let mut nats = vec![0.0; piece.len()];
            let clock = self.ws.profile.start();
            softmax::cross_entropy(&self.ws.cpu, &mut logits, &t, &s, &mut nats);
            self.ws.profile.stop(clock, "cross-entropy", 0.0, 2 * logits.len());
            piece.iter().zip(&nats).for_each(|(r, n)| loss.rows[*r] = *n);

            if let (Some(dh), Some(gradients)) = (&mut dh, &mut self.gradients) {
                if let Some(capped) = capped {
                    head.cap_backward(&capped, &mut logits);
                }
                let copies = self.ws.copy_of_gradient(table, &logits);
                let dlogits = Operand { value: &logits, copies: &copies, cols: vocab };
                if parameters.get(w).trainable {
                    self.ws.weight_gradient(dlogits, x, piece.len(), gradients.get_mut(w));
                }
                let mut dx = self.ws.floats.take(piece.len() * cols);
                self.ws.product(parameters, w, true, dlogits, piece.len(), &mut dx, false);
                for (dx, &r) in dx.chunks_exact(cols).zip(piece) {
                    dh[r * cols..(r + 1) * cols].copy_from_slice(dx);
                }
                self.ws.floats.give(dx);
                self.ws.give(copies);
            }
            self.ws.floats.give(gathered);
            self.ws.floats.give(logits);
            self.ws.give(copies);
        }
        if let Some(dh) = dh {
            self.add_gradient(h, dh);
        }
        loss
    }
}
