//! The CPU as a device: its threads, its instruction set, and the kernels.

pub mod attention;
pub mod bias;
pub mod cap;
pub mod embedding;
pub mod gated;
pub mod heads;
pub mod layer_norm;
pub mod matmul;
mod next;
pub mod norm;
pub mod peak;
pub mod quantised;
pub(crate) mod rows;
pub mod softmax;
pub mod update;

use crate::tape::ended;
use crate::{Isa, Pool};

/// What to compute on: a thread pool, an instruction set, and maybe a card beside them.
pub struct Cpu {
    /// The threads.
    pub pool: Pool,
    /// The instruction set that kernels are dispatched to.
    pub isa: Isa,
    /// Where a workspace's passes are computed, if not here.
    pub card: Option<cuda::Gpu>,
}

impl Cpu {
    /// `threads` threads and the best instruction set of this machine (or `HOMEGROWN_ISA`).
    pub fn new(threads: usize) -> Cpu {
        Cpu::with(threads, Isa::detect())
    }

    /// `threads` threads of this instruction set, which the machine has.
    pub fn with(threads: usize, isa: Isa) -> Cpu {
        Cpu { pool: Pool::new(threads), isa, card: None }
    }

    /// The card's name, or `cpu`.
    pub fn device(&self) -> &str {
        self.card.as_ref().map_or("cpu", cuda::Gpu::name)
    }

    /// Waits until the card, if there is one, has done all that it was given. One that has failed ends this as it
    /// ends a pass: see [`caught`](crate::tape::caught).
    pub fn wait(&self) {
        if let Some(card) = &self.card {
            ended(card.synchronise());
        }
    }
}

#[cfg(test)]
mod tests;
