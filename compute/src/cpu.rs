//! The CPU as a device: its threads, its instruction set, and the kernels.

pub mod attention;
pub mod bias;
pub mod cap;
pub mod embedding;
pub mod gated;
pub mod heads;
pub mod layer_norm;
pub mod matmul;
pub mod norm;
pub mod peak;
pub mod quantised;
pub(crate) mod rows;
pub mod softmax;
pub mod update;

use crate::{Isa, Pool};

/// A CPU to compute on: a thread pool and an instruction set.
pub struct Cpu {
    /// The threads.
    pub pool: Pool,
    /// The instruction set that kernels are dispatched to.
    pub isa: Isa,
}

impl Cpu {
    /// `threads` threads and the best instruction set of this machine (or `HOMEGROWN_ISA`).
    pub fn new(threads: usize) -> Cpu {
        Cpu { pool: Pool::new(threads), isa: Isa::detect() }
    }
}

#[cfg(test)]
mod tests;
