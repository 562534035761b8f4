//! Politeness: one request at a time a host, and a pause after each.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Turns at hosts.
#[derive(Default)]
pub struct Hosts(Mutex<HashMap<String, Arc<Mutex<Instant>>>>);

impl Hosts {
    /// Waits for its turn at a host, then does `ask`, which also says how long the host shall be
    /// left alone afterwards.
    pub fn turn<T>(&self, host: &str, ask: impl FnOnce() -> (T, Duration)) -> T {
        let gate = lock(&self.0)
            .entry(host.to_string())
            .or_insert_with(|| Arc::new(Mutex::new(Instant::now())))
            .clone();
        let mut free_from = lock(&gate);
        std::thread::sleep(free_from.saturating_duration_since(Instant::now()));
        let (result, pause) = ask();
        *free_from = Instant::now() + pause;
        result
    }
}

/// Takes a lock. Whoever panicked with it left whole values behind.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
