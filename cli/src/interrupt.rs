//! Ctrl-C. Most work can end at any moment and loses nothing, since files are whole or not there:
//! it ends at once. Work that has something to save first says so with [`graceful`]: it is asked
//! to end at its next good place, and a second Ctrl-C ends it at once.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

static REQUESTED: AtomicBool = AtomicBool::new(false);
static GRACEFUL: AtomicUsize = AtomicUsize::new(0);
/// What is being done, for the last words.
static DOING: Mutex<Option<String>> = Mutex::new(None);

/// Starts to listen. `json`: the last words are a JSON object on stdout, too.
pub fn listen(json: bool) {
    // Where handlers can't be set, Ctrl-C does what it always did.
    let _ = ctrlc::set_handler(move || {
        if GRACEFUL.load(Ordering::Relaxed) > 0 && !REQUESTED.swap(true, Ordering::Relaxed) {
            eprintln!("\nStopping at the next good place; Ctrl-C again stops at once.");
            return;
        }
        let doing = DOING.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (message, hint) = match doing {
            Some(stage) => (
                format!("stopped in {stage}"),
                Some("Nothing that was finished is lost: the same command goes on."),
            ),
            None => ("stopped".to_string(), None),
        };
        eprintln!("\n{message}");
        hint.iter().for_each(|hint| eprintln!("  {hint}"));
        if json {
            let words = serde_json::json!({"error": message, "hint": hint, "exit": 130});
            crate::common::say(&words.to_string());
        }
        std::process::exit(130);
    });
}

/// What is being done from here on: a stage whose command can be given again.
pub fn doing(stage: &str) {
    *DOING.lock().unwrap_or_else(PoisonError::into_inner) = Some(stage.to_string());
}

/// While it lives, Ctrl-C is a request.
pub struct Graceful(());

/// From here on, Ctrl-C is a request that [`requested`] tells of.
pub fn graceful() -> Graceful {
    GRACEFUL.fetch_add(1, Ordering::Relaxed);
    Graceful(())
}

impl Drop for Graceful {
    fn drop(&mut self) {
        GRACEFUL.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether an end was asked for.
pub fn requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}

/// Takes the request back: what was running has stopped, and the program goes on.
pub fn clear() {
    REQUESTED.store(false, Ordering::Relaxed);
}
