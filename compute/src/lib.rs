//! Tensors, kernels and the tape: the arithmetic of language models, forward and backward.

mod aligned;
pub mod arena;
pub mod blocks;
pub mod bytes;
pub mod card_peak;
pub mod cpu;
pub mod kv;
pub mod math;
pub mod parameters;
pub mod pool;
pub mod profile;
pub mod rng;
pub mod simd;
pub mod strips;
pub mod tape;
pub mod tensor;

pub use cpu::Cpu;
pub use cuda::{Error as CardError, Gpu};
pub use pool::Pool;
pub use simd::Isa;

/// The target of a row that has none: it adds nothing to a loss.
pub const IGNORE: u32 = u32::MAX;

/// Consecutive rows of a batch that belong to one sequence (positions `0..len`); rows of
/// different spans never see each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First row.
    pub start: usize,
    /// Number of rows.
    pub len: usize,
}
