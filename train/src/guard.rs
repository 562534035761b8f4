//! What keeps a bad step from spoiling a run: a loss or gradient that is no number, or far above
//! the usual, is not learned from; if that goes on, the run goes back to an earlier checkpoint.
//!
//! The usual is the median of the last good steps, and far is so many robust standard deviations,
//! 1.4826 times the median absolute deviation (Leys et al. 2013). The verdicts are a function of
//! the steps, so a run that goes on judges as it would have.

use serde::{Deserialize, Serialize};

/// Good steps that the usual is taken from.
const WINDOW: usize = 64;
/// Good steps before anything can be unusual.
const ENOUGH: usize = 32;
/// The least deviation, as a share of the usual.
const LEAST_LOSS: f64 = 0.05;
const LEAST_NORM: f64 = 0.5;

/// Settings of the guards.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GuardConfig {
    /// Deviations above the usual from which on a step is skipped. 0: only what is no number is.
    pub spike: f64,
    /// So many skipped steps in a row are one too many: back to the last measured checkpoint.
    pub skips: u64,
    /// Times that a run goes back before it gives up.
    pub rollbacks: u64,
}

impl Default for GuardConfig {
    fn default() -> Self {
        GuardConfig { spike: 20.0, skips: 8, rollbacks: 3 }
    }
}

/// What the guards remember; saved with checkpoints.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GuardState {
    /// Losses of the last good steps.
    losses: Vec<f64>,
    /// Gradient norms of the last good steps.
    norms: Vec<f64>,
    /// Skipped steps since the last good one.
    pub in_a_row: u64,
    /// All skipped steps.
    pub skipped: u64,
    /// Times that the run went back.
    pub rollbacks: u64,
}

impl GuardState {
    /// What is wrong with a step of this loss and gradient norm, if anything is.
    pub fn judge(&mut self, config: &GuardConfig, loss: f64, norm: f64) -> Option<String> {
        let wrong = |name: &str, value: f64, usual: &[f64], least: f64| {
            if !value.is_finite() {
                return Some(format!("the {name} is {value}"));
            }
            if config.spike <= 0.0 || usual.len() < ENOUGH {
                return None;
            }
            let middle = median(usual.to_vec());
            let deviation = 1.4826 * median(usual.iter().map(|x| (x - middle).abs()).collect());
            // Steps that hardly differ make no other one unusual.
            let far = middle + config.spike * deviation.max(least * middle.abs());
            (value > far).then(|| {
                format!("the {name} is {value:.4}, usual is {middle:.4} and {far:.4} the limit")
            })
        };
        // Gradients of sound steps are long now and then; they are shortened anyway.
        let why = wrong("loss", loss, &self.losses, LEAST_LOSS)
            .or_else(|| wrong("length of the gradient", norm, &self.norms, LEAST_NORM));
        if why.is_some() {
            self.skip();
        } else {
            for (list, value) in [(&mut self.losses, loss), (&mut self.norms, norm)] {
                list.push(value);
                if list.len() > WINDOW {
                    list.remove(0);
                }
            }
            self.in_a_row = 0;
        }
        why
    }

    /// Counts a skipped step.
    pub fn skip(&mut self) {
        self.in_a_row += 1;
        self.skipped += 1;
    }

    /// Goes back to what was remembered at a checkpoint; what was counted since stays counted.
    pub fn roll_back_to(&mut self, earlier: &GuardState) {
        let (skipped, rollbacks) = (self.skipped, self.rollbacks + 1);
        *self = GuardState { in_a_row: 0, skipped, rollbacks, ..earlier.clone() };
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    let middle = values.len() / 2;
    *values.select_nth_unstable_by(middle, f64::total_cmp).1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_far_from_usual_is_skipped() {
        let config = GuardConfig::default();
        let mut guard = GuardState::default();
        // A fall like that at the start of a run, with noise: nothing unusual.
        for i in 0..200 {
            let noise = f64::from(i * 37 % 11) / 11.0 - 0.5;
            let loss = 2.0 + 5.0 / (1.0 + f64::from(i) / 5.0) + 0.2 * noise;
            assert_eq!(guard.judge(&config, loss, 0.5 + 0.2 * noise), None);
        }
        assert!(guard.judge(&config, 2.2, 0.7).is_none());
        assert!(guard.judge(&config, 7.0, 0.5).is_some_and(|w| w.contains("loss is 7")));
        assert!(guard.judge(&config, 2.2, 6.0).is_some_and(|w| w.contains("gradient")));
        assert!(guard.judge(&config, 2.2, 9.0).is_some_and(|w| w.contains("gradient")));
        assert!(guard.judge(&config, f64::NAN, 0.5).is_some_and(|w| w.contains("NaN")));
        assert!(guard.judge(&config, 2.0, f64::INFINITY).is_some());
        assert_eq!((guard.in_a_row, guard.skipped), (5, 5));
        assert!(guard.judge(&config, 2.2, 0.5).is_none());
        assert_eq!((guard.in_a_row, guard.skipped), (0, 5));
        // Without a limit only what is no number is skipped.
        let free = GuardConfig { spike: 0.0, ..config };
        assert!(guard.judge(&free, 70.0, 90.0).is_none());
        assert!(guard.judge(&free, f64::NAN, 90.0).is_some());
    }
}
