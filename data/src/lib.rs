//! Documents to clean text to token shards; conversations; the microworld.
