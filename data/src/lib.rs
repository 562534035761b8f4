//! Documents to clean text to token shards; conversations; the microworld.

pub mod batches;
pub mod encode;
pub mod holds;
pub mod jsonl;
pub mod microworld;
pub mod shards;
pub mod words;
