//! What a person sees of work that takes a while: bars on a terminal, a line now and then
//! elsewhere. All of it on stderr.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Seconds between lines where there is no terminal.
const LINES_EVERY: Duration = Duration::from_secs(15);

/// One piece of work of a known size.
pub struct Progress {
    bar: ProgressBar,
    terminal: bool,
    name: String,
    total: u64,
    start: Instant,
    /// Where it was when it began, for the time that is left.
    first: u64,
    last_line: Instant,
}

impl Progress {
    /// Work of `total` steps of whatever it is; 0 if that isn't known.
    pub fn start(name: &str, total: u64) -> Progress {
        let terminal = std::io::stderr().is_terminal();
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        if terminal {
            let style = if total == 0 {
                ProgressStyle::with_template("{prefix:>10} {spinner} {msg} {elapsed}")
            } else {
                ProgressStyle::with_template("{prefix:>10} [{bar:28}] {percent:>3} % {msg}")
            };
            bar.set_style(
                style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "),
            );
            bar.set_length(total.max(1));
            bar.set_prefix(name.to_string());
            bar.set_draw_target(ProgressDrawTarget::stderr());
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        let now = Instant::now();
        let name = name.to_string();
        Progress { bar, terminal, name, total, start: now, first: 0, last_line: now }
    }

    /// Starts in the middle: what was done by an earlier run.
    pub fn resume_at(&mut self, done: u64) {
        self.first = done;
        self.bar.set_position(done);
    }

    /// So much of it is done. `note`: what else to tell, such as a speed.
    pub fn set(&mut self, done: u64, note: &str) {
        let left = match self.left(done) {
            Some(left) => format!("{note}, {} left", duration(left)),
            None => note.to_string(),
        };
        if self.terminal {
            self.bar.set_position(done);
            self.bar.set_message(left);
        } else if self.last_line.elapsed() >= LINES_EVERY {
            self.last_line = Instant::now();
            let percent = (done * 100).checked_div(self.total);
            let percent = percent.map(|p| format!("{p:>3} % ")).unwrap_or_default();
            eprintln!("{:>10} {percent}{left}", self.name);
        }
    }

    /// Time until the end, at the speed so far.
    fn left(&self, done: u64) -> Option<f64> {
        let (here, elapsed) = (done.checked_sub(self.first)?, self.start.elapsed().as_secs_f64());
        let ahead = self.total.saturating_sub(done);
        (here > 0 && ahead > 0 && elapsed > 1.0).then(|| elapsed * ahead as f64 / here as f64)
    }

    /// Prints a line above the bar.
    pub fn line(&self, text: &str) {
        if self.terminal { self.bar.suspend(|| eprintln!("{text}")) } else { eprintln!("{text}") }
    }

    /// Ends it; `summary` stays on the screen.
    pub fn finish(self, summary: &str) {
        self.bar.finish_and_clear();
        eprintln!("{:>10} {summary}", self.name);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        // An error is about to be printed.
        self.bar.finish_and_clear();
    }
}

/// Seconds for a person: "42 s", "3 min 5 s", "2 h 10 min".
pub fn duration(seconds: f64) -> String {
    let s = seconds.max(0.0).round() as u64;
    match (s / 3600, s / 60 % 60, s % 60) {
        (0, 0, _) if seconds < 9.95 => format!("{:.1} s", seconds.max(0.0)),
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s} s"),
        (h, m, _) => format!("{h} h {m} min"),
    }
}

/// A count for a person: "950", "12.3 k", "4.56 M", "7.89 T".
pub fn count(n: u64) -> String {
    match n as f64 {
        x if x < 10_000.0 => format!("{n}"),
        x if x < 1e6 => format!("{:.1} k", x / 1e3),
        x if x < 1e9 => format!("{:.2} M", x / 1e6),
        x if x < 1e12 => format!("{:.2} G", x / 1e9),
        x => format!("{:.2} T", x / 1e12),
    }
}

/// Most memory that this process has held so far; 0 where that can't be told.
pub fn peak_rss_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    let kib = line.and_then(|l| l.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        assert_eq!(duration(3.21), "3.2 s");
        assert_eq!(duration(59.6), "1 min 0 s");
        assert_eq!(duration(185.0), "3 min 5 s");
        assert_eq!(duration(7800.0), "2 h 10 min");
        assert_eq!(count(9_999), "9999");
        assert_eq!(count(12_345), "12.3 k");
        assert_eq!(count(4_560_000), "4.56 M");
        assert_eq!(count(7_890_000_000_000), "7.89 T");
        assert!(peak_rss_bytes() > 1 << 20 || !cfg!(target_os = "linux"));
    }
}
