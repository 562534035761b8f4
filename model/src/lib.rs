//! The transformer, its weights, tokenizer, chat template, KV cache, sampler and generator.

pub mod about;
pub mod account;
pub mod adapter;
pub mod config;
pub mod constraint;
pub mod directory;
pub mod export;
pub mod generator;
pub mod gguf;
mod induction;
pub mod init;
pub mod message;
pub mod sampler;
pub mod template;
pub mod tokenizer;
pub mod transformer;
pub mod weights;

pub use directory::{Loaded, ModelError, load};
