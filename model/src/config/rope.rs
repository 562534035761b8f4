//! Rotary angles that are stretched for contexts longer than those that were trained on.

use std::f64::consts::PI;

use compute::cpu::heads::Rope;

use super::{Config, ConfigError};

/// How.
#[derive(Clone, Debug, PartialEq)]
pub enum Scaling {
    /// Not at all.
    None,
    /// All alike (Chen et al. 2023).
    Linear {
        /// Frequencies are divided by it.
        factor: f64,
    },
    /// Low frequencies only, as in Llama 3.1.
    Llama3 {
        /// What low frequencies are divided by.
        factor: f64,
        /// Wavelengths to a context, below which a frequency is low …
        low: f64,
        /// … and above which it is high.
        high: f64,
        /// The context that was trained on before.
        original: f64,
    },
    /// YaRN (Peng et al. 2023).
    Yarn {
        /// What low frequencies are divided by.
        factor: f64,
        /// Turns in the original context above which a frequency stays.
        fast: f64,
        /// Turns below which it is divided.
        slow: f64,
        /// The context that was trained on before.
        original: f64,
        /// Factor of cosines and sines.
        scale: f64,
    },
    /// A divisor for each frequency (LongRoPE, Ding et al. 2024; GGUF's `rope_freqs`).
    Each {
        /// One for each pair of elements.
        factors: Vec<f64>,
        /// Factor of cosines and sines.
        scale: f64,
    },
}

impl Scaling {
    pub(super) fn check(&self, c: &Config) -> Result<(), ConfigError> {
        let numbers = match self {
            Scaling::None => vec![],
            Scaling::Linear { factor } => vec![*factor],
            Scaling::Llama3 { factor, low, high, original } => {
                vec![*factor, *low, *high, *original, high - low]
            }
            Scaling::Yarn { factor, fast, slow, original, scale } => {
                vec![*factor, *fast, *slow, *original, *scale]
            }
            Scaling::Each { factors, scale } => {
                if factors.len() != c.rotary_dim / 2 {
                    return Err(ConfigError::Value(format!(
                        "{} factors for {} rotary frequencies",
                        factors.len(),
                        c.rotary_dim / 2
                    )));
                }
                factors.iter().chain([scale]).copied().collect()
            }
        };
        match numbers.iter().find(|x| !(x.is_finite() && **x > 0.0)) {
            Some(x) => Err(ConfigError::Value(format!(
                "a number of rope_scaling is {x}; all must be positive"
            ))),
            None => Ok(()),
        }
    }

    /// What frequency `i` of `n` is divided by, and the factor of cosines and sines.
    fn divisor(&self, i: usize, n: usize, frequency: f64, base: f64) -> f64 {
        match self {
            Scaling::None => 1.0,
            Scaling::Linear { factor } => *factor,
            Scaling::Llama3 { factor, low, high, original } => {
                let turns = original * frequency / (2.0 * PI);
                let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                1.0 / (kept + (1.0 - kept) / factor)
            }
            Scaling::Yarn { factor, fast, slow, original, .. } => {
                // The pair that makes so many turns in the original context.
                let last = (2 * n - 1) as f64;
                let pair = |turns: f64| {
                    n as f64 * libm::log(original / (turns * 2.0 * PI)) / libm::log(base)
                };
                let from = pair(*fast).floor().max(0.0);
                let to = pair(*slow).ceil().min(last);
                let to = if from == to { to + 0.001 } else { to };
                let divided = ((i as f64 - from) / (to - from)).clamp(0.0, 1.0);
                1.0 / ((1.0 - divided) + divided / factor)
            }
            Scaling::Each { factors, .. } => factors[i],
        }
    }
}

impl Config {
    /// What each frequency is divided by.
    pub(super) fn divisors(&self) -> Vec<f64> {
        let n = self.rotary_dim / 2;
        let frequency =
            |i: usize| libm::pow(self.rope_theta, -2.0 * i as f64 / self.rotary_dim as f64);
        (0..n).map(|i| self.rope_scaling.divisor(i, n, frequency(i), self.rope_theta)).collect()
    }

    /// The angles of all layers, or of the local ones.
    pub(crate) fn rope(&self, local: bool) -> Rope {
        let (base, scaling) = match self.local_rope_theta.filter(|_| local) {
            Some(base) => (base, &Scaling::None),
            None => (self.rope_theta, &self.rope_scaling),
        };
        let n = self.rotary_dim / 2;
        let frequency = |i: usize| {
            let frequency = libm::pow(base, -2.0 * i as f64 / self.rotary_dim as f64);
            frequency / scaling.divisor(i, n, frequency, base)
        };
        let scale = match scaling {
            Scaling::Yarn { scale, .. } | Scaling::Each { scale, .. } => *scale,
            _ => 1.0,
        };
        let frequencies = (0..n).map(frequency).collect();
        Rope::with(self.max_position_embeddings, self.head_dim, frequencies, scale)
    }
}
