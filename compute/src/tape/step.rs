//! A step of generation: new rows of several sequences, whose keys and values are kept, to logits.

use std::rc::Rc;

use super::{Head, Tape, Var};
use crate::cpu::attention::CachedSpan;
use crate::kv::KvPages;

/// New rows of several sequences, and what is wanted of them.
#[derive(Clone, Copy)]
pub struct NewRows<'a> {
    /// `[rows]`.
    pub tokens: &'a Rc<[u32]>,
    /// `[rows]`: in their sequences.
    pub positions: &'a Rc<[u32]>,
    /// The sequences, in order.
    pub spans: &'a [CachedSpan<'a>],
    /// Rows whose logits are wanted.
    pub wanted: &'a [usize],
}

impl<'a> Tape<'a> {
    /// Logits `[new.wanted.len(), vocab]` of the last layer's output, which `layers` makes of `new`. The pass is over then.
    ///
    /// On a card, short steps become graphs: `layers` is run twice for a kind of step, and what it did the second time is done
    /// again for all later ones. So nothing but `new` may differ from step to step, until
    /// [`Workspace::weights_changed`](super::Workspace::weights_changed), and operations are given the `Rc`s of `new`, not copies.
    ///
    /// # Panics
    /// As the operations do.
    pub fn step(
        mut self,
        new: &NewRows<'_>,
        pages: &mut KvPages,
        head: Head,
        layers: impl FnOnce(&mut Tape<'a>, &mut KvPages) -> Var,
    ) -> Vec<f32> {
        on_card!(self, step(self, new, pages, head, layers));
        let h = layers(&mut self, pages);
        self.logits(h, new.wanted, head)
    }
}
