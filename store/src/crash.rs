//! Death at a chosen moment, for tests: with `HOMEGROWN_CRASH=N` in the environment the program
//! ends itself, as `kill -9` would, at the N-th point on its way, where points lie around all that
//! is done to files.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

static PASSED: AtomicU64 = AtomicU64::new(0);
static LAST: OnceLock<Option<u64>> = OnceLock::new();

/// A point where the program may be told to die.
pub fn point() {
    let last = LAST.get_or_init(|| std::env::var("HOMEGROWN_CRASH").ok()?.parse().ok());
    if let Some(last) = last
        && PASSED.fetch_add(1, Ordering::Relaxed) + 1 == *last
    {
        // Nothing is flushed, dropped or told to anybody.
        std::process::abort();
    }
}
