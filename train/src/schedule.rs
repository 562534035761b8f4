//! How the learning rate goes over a run, as a share of its peak.

use serde::{Deserialize, Serialize};

/// The shape of the learning rate over the progress of a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Schedule {
    /// Warm-up, constant, then a straight line down (Hu et al. 2024, MiniCPM).
    Wsd {
        /// Share of the run that warms up.
        warmup: f64,
        /// Share of the run, at its end, that decays.
        decay: f64,
        /// Share of the peak that is left at the end.
        end: f64,
    },
    /// Warm-up, then half a cosine down (Loshchilov and Hutter 2017).
    Cosine {
        /// Share of the run that warms up.
        warmup: f64,
        /// Share of the peak that is left at the end.
        end: f64,
    },
}

impl Schedule {
    /// The share of the peak rate at `progress` in `0..=1`.
    pub fn at(&self, progress: f64) -> f64 {
        let ramp = |warmup: f64| if warmup > 0.0 { (progress / warmup).min(1.0) } else { 1.0 };
        match *self {
            Schedule::Wsd { warmup, decay, end } => {
                let left =
                    if decay > 0.0 { ((1.0 - progress) / decay).clamp(0.0, 1.0) } else { 1.0 };
                ramp(warmup).min(end + (1.0 - end) * left)
            }
            Schedule::Cosine { warmup, end } => {
                let p = ((progress - warmup) / (1.0 - warmup).max(1e-9)).clamp(0.0, 1.0);
                let down = end + (1.0 - end) * 0.5 * (1.0 + libm::cos(std::f64::consts::PI * p));
                ramp(warmup).min(down)
            }
        }
    }

    /// What is wrong with the numbers, if anything.
    pub fn problem(&self) -> Option<String> {
        let shares = match *self {
            Schedule::Wsd { warmup, decay, end } => [warmup, decay, end],
            Schedule::Cosine { warmup, end } => [warmup, 0.0, end],
        };
        let bad = shares.into_iter().find(|s| !(0.0..=1.0).contains(s))?;
        Some(format!("schedule: {bad} is not a share from 0 to 1"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn corners() {
        let wsd = Schedule::Wsd { warmup: 0.1, decay: 0.4, end: 0.0 };
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} is not {b}");
        for (p, want) in [(0.0, 0.0), (0.05, 0.5), (0.1, 1.0), (0.6, 1.0), (0.8, 0.5), (1.0, 0.0)] {
            near(wsd.at(p), want);
        }
        let cosine = Schedule::Cosine { warmup: 0.0, end: 0.1 };
        for (p, want) in [(0.0, 1.0), (0.5, 0.55), (1.0, 0.1)] {
            near(cosine.at(p), want);
        }
        assert!(Schedule::Cosine { warmup: 2.0, end: 0.1 }.problem().is_some());
    }
}
