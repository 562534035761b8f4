//! The transformer, its weights, tokenizer, chat template, KV cache, sampler and generator.

pub mod message;
pub mod sampler;
pub mod template;
