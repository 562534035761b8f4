//! NVIDIA's cards: memory, kernels and products, by libraries that are looked for at run time. The
//! same binary, built without CUDA, finds a card or says what is missing.
//!
//! [`Gpu`] is one card with one stream of work, [`Buffer`] its memory, [`matmul`] products by
//! cuBLASLt, and [`ops`] the operations of language models by kernels of ours. Their sources are in the
//! binary; NVRTC compiles them for the card that is found, once ([`compile`]). All reductions run in
//! a fixed order and nothing is added atomically: a card gives the same bits in every run.
//!
//! With the feature `emulator` (for tests), `Gpu::emulated` runs the same sources on the CPU.

mod buffer;
mod card;
pub mod compile;
#[cfg(feature = "emulator")]
mod emulator;
mod error;
mod gpu;
mod graph;
mod kernels;
mod libraries;
pub mod matmul;
pub mod ops;

pub use buffer::{Buffer, Element, Slice, SliceMut};
pub use error::Error;
pub use gpu::{Arg, Gpu, MemoryInfo, Shape};
pub use graph::Graph;
pub use libraries::Library;
