//! Cores that other processes want, too.
//!
//! The system takes a thread off its core at a tick of its clock, whatever the thread holds, and then everybody waits for
//! that task until the other process has had its turn. A worker that finds it was taken away gives its core up by itself
//! from then on, between two tasks and before the tick: it gets a little less time, and nobody waits.

use std::time::{Duration, Instant};

/// Between two tasks more than this: the thread may have been taken away. (Or the task was a long one. Then the core is
/// offered, and nobody takes it.)
const GAP: Duration = Duration::from_millis(1);

/// How long a turn may be. Linux looks every 4 ms as most distributions build it, or at the first tick after 2.8.
const LENGTH: Duration = Duration::from_micros(3000);

/// An offer of the core that nobody took is over by then.
const REFUSED: Duration = Duration::from_micros(100);

/// A worker's turn on its core.
pub(super) struct Turn {
    began: Instant,
    /// When the thread last looked at the clock.
    seen: Instant,
    /// Whether others seem to want the core.
    shared: bool,
}

impl Turn {
    pub(super) fn new() -> Turn {
        let now = Instant::now();
        Turn { began: now, seen: now, shared: false }
    }

    /// Looks at the clock, as often as the thread holds no task. Whether to give the core up.
    pub(super) fn over(&mut self) -> bool {
        let now = Instant::now();
        if now - self.seen > GAP {
            self.began = now;
            self.shared = true;
        }
        self.seen = now;
        self.shared && now - self.began > LENGTH
    }

    /// Lets others have the core for their turn.
    pub(super) fn give_up(&mut self) {
        let offered = Instant::now();
        std::thread::yield_now();
        let now = Instant::now();
        *self = Turn { began: now, seen: now, shared: now - offered > REFUSED };
    }
}
