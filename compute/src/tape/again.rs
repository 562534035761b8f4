//! Values that are made twice: what lies between is not kept for the way back, but computed again there. Less
//! memory for a third more time, and the same bits (gradient checkpointing, Chen et al. 2016,
//! <https://arxiv.org/abs/1604.06174>).

use std::rc::Rc;

use super::{Op, Tape, Var, card};

/// How a value is made from another.
pub(super) type Made<'a> = Rc<dyn Fn(&mut Tape<'a>, Var) -> Var + 'a>;

impl<'a> Tape<'a> {
    /// What `made` makes of `x`. On a tape that records, with a workspace that is told to
    /// ([`Workspace::set_recompute`](super::Workspace::set_recompute)), all on the way is forgotten and made
    /// again on the way back. `made` uses no other value of the tape, and makes a new one.
    pub fn again(&mut self, x: Var, made: impl Fn(&mut Tape<'a>, Var) -> Var + 'a) -> Var {
        if !(self.recording() && self.ws.recompute) {
            return made(self, x);
        }
        if self.ws.card.is_some() {
            return card::again(self, x, Rc::new(made));
        }
        let (gradients, from) = (self.gradients.take(), self.nodes.len());
        let y = made(self, x);
        let rows = self.nodes[y.0].rows;
        let value = std::mem::take(&mut self.nodes[y.0].value);
        self.forget(from);
        self.gradients = gradients;
        self.push(value, rows, Op::Again { x, made: Rc::new(made) })
    }

    pub(super) fn again_back(&mut self, x: Var, made: &Made<'a>, dy: Vec<f32>) {
        let from = self.nodes.len();
        let y = made(self, x);
        self.nodes[y.0].gradient = Some(dy);
        self.back_to(from);
        self.forget(from);
    }
}
