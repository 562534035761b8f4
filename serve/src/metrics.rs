//! What the server counts, for Prometheus, by vLLM's names.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

/// Upper ends of the bins, in seconds.
const BINS: [f64; 14] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

/// Times in bins.
#[derive(Debug, Default)]
pub struct Histogram {
    bins: [AtomicU64; BINS.len() + 1],
    /// Microseconds of all.
    sum: AtomicU64,
}

impl Histogram {
    /// Counts a time.
    pub fn add(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        let bin = BINS.partition_point(|end| *end < seconds);
        self.bins[bin].fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.sum.fetch_add(micros, Ordering::Relaxed);
    }

    fn write(&self, out: &mut String, name: &str, help: &str) {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram");
        let mut all = 0;
        for (i, bin) in self.bins.iter().enumerate() {
            all += bin.load(Ordering::Relaxed);
            let end = BINS.get(i).map_or("+Inf".to_string(), f64::to_string);
            let _ = writeln!(out, "{name}_bucket{{le=\"{end}\"}} {all}");
        }
        let sum = self.sum.load(Ordering::Relaxed) as f64 / 1e6;
        let _ = writeln!(out, "{name}_sum {sum}\n{name}_count {all}");
    }
}

/// All that is counted.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Requests that are being answered, those that wait for a place included.
    pub running: AtomicI64,
    /// Tokens of prompts.
    pub prompt_tokens: AtomicU64,
    /// Those of them that had been computed before.
    pub cached_tokens: AtomicU64,
    /// Tokens of answers.
    pub generated_tokens: AtomicU64,
    /// Answers that came to an end of their own, to the longest length, were broken off, or refused.
    pub stopped: AtomicU64,
    /// See `stopped`.
    pub cut: AtomicU64,
    /// See `stopped`.
    pub aborted: AtomicU64,
    /// See `stopped`.
    pub refused: AtomicU64,
    /// To the first token.
    pub first_token: Histogram,
    /// Between tokens.
    pub next_token: Histogram,
    /// Of whole answers.
    pub whole: Histogram,
}

impl Metrics {
    /// In Prometheus' text form.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let running = self.running.load(Ordering::Relaxed);
        let name = "vllm:num_requests_running";
        let _ = writeln!(out, "# TYPE {name} gauge\n{name} {running}");
        for (name, n) in [
            ("vllm:prompt_tokens_total", &self.prompt_tokens),
            ("vllm:prefix_cache_hits_total", &self.cached_tokens),
            ("vllm:generation_tokens_total", &self.generated_tokens),
        ] {
            let _ = writeln!(out, "# TYPE {name} counter\n{name} {}", get(n));
        }
        let name = "vllm:request_success_total";
        let _ = writeln!(out, "# TYPE {name} counter");
        for (reason, n) in
            [("stop", &self.stopped), ("length", &self.cut), ("abort", &self.aborted)]
        {
            let _ = writeln!(out, "{name}{{finished_reason=\"{reason}\"}} {}", get(n));
        }
        let name = "homegrown:requests_refused_total";
        let _ = writeln!(out, "# TYPE {name} counter\n{name} {}", get(&self.refused));
        self.first_token.write(
            &mut out,
            "vllm:time_to_first_token_seconds",
            "From request to first token.",
        );
        self.next_token.write(&mut out, "vllm:inter_token_latency_seconds", "Between tokens.");
        self.whole.write(&mut out, "vllm:e2e_request_latency_seconds", "Of whole answers.");
        out
    }
}
