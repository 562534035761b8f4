//! Ctrl-C: once asks for an end at the next good place, twice ends at once.

use std::sync::atomic::{AtomicBool, Ordering};

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// Starts to listen.
pub fn listen() {
    // Where handlers can't be set, Ctrl-C does what it always did.
    let _ = ctrlc::set_handler(|| {
        if REQUESTED.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        eprintln!("\nStopping at the next good place; Ctrl-C again stops at once.");
    });
}

/// Whether an end was asked for.
pub fn requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}

/// Takes the request back: what was running has stopped, and the program goes on.
pub fn clear() {
    REQUESTED.store(false, Ordering::Relaxed);
}
