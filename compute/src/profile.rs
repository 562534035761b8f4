//! Where the time of passes goes, by operation: seconds, arithmetic, bytes.
//!
//! Bytes are those that an operation has to read and write once, in memory's own types; what the
//! caches save or cost shows in the time.

use std::collections::BTreeMap;
use std::time::Instant;

/// Sums of one kind of operation.
#[derive(Clone, Copy, Debug, Default)]
pub struct Entry {
    /// How often it was done.
    pub calls: u64,
    /// Time it took.
    pub seconds: f64,
    /// Floating-point operations of products (0 where there are none to speak of).
    pub flops: f64,
    /// Bytes read and written.
    pub bytes: f64,
}

/// Entries by operation; nothing is measured until it is switched on.
#[derive(Debug, Default)]
pub struct Profile {
    entries: Option<BTreeMap<&'static str, Entry>>,
}

impl Profile {
    /// Starts to measure, from nothing.
    pub fn begin(&mut self) {
        self.entries = Some(BTreeMap::new());
    }

    /// Ends it and gives what was measured.
    pub fn finish(&mut self) -> BTreeMap<&'static str, Entry> {
        self.entries.take().unwrap_or_default()
    }

    /// The time, if it matters.
    pub fn start(&self) -> Option<Instant> {
        self.entries.as_ref().map(|_| Instant::now())
    }

    /// An operation has ended that began at `start`: `flops`, and `words` of four bytes.
    pub fn stop(&mut self, start: Option<Instant>, name: &'static str, flops: f64, words: usize) {
        if let (Some(start), Some(entries)) = (start, &mut self.entries) {
            let entry = entries.entry(name).or_default();
            entry.calls += 1;
            entry.seconds += start.elapsed().as_secs_f64();
            entry.flops += flops;
            entry.bytes += 4.0 * words as f64;
        }
    }
}
