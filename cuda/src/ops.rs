//! The operations, one module a subject, named as those of `compute::cpu`. Values are f32 and
//! `[rows, cols]` row by row; what products read next can be written as bf16 (its bits as u16) in the
//! same pass. Work is put on the stream of the [`Gpu`](crate::Gpu): when a function returns, it has
//! not been done yet.
//!
//! All of them fail with [`Error`](crate::Error) if a kernel can't be compiled or launched, and panic
//! if lengths don't fit each other.

pub mod update;
