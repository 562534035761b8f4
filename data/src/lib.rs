//! Documents to clean text to token shards; conversations; the microworld.

pub mod batches;
pub mod shards;
pub mod jsonl;
pub mod text;
