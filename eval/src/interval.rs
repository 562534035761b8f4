//! How sure a share is: the Wilson score interval for proportions.
//!
//! Wilson, E. B. (1927). Probable inference, the law of succession, and statistical inference.
//! It stays inside 0..1 and keeps its width at 0 % and 100 %, where the plain normal interval
//! shrinks to nothing.

use serde::{Deserialize, Serialize};

/// The 0.975 quantile of the normal distribution: two-sided 95 %.
const Z: f64 = 1.959_963_984_540_054;

/// A share of successes with its 95 % interval, all in 0..=1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Proportion {
    /// Successes divided by trials; 0 where there were no trials.
    pub value: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
    /// Standard error of `value`, √(p(1−p)/n).
    pub stderr: f64,
    /// Number of trials.
    pub n: u64,
}

impl Proportion {
    /// `successes` out of `n`. With `n = 0` nothing is known: the interval is 0..=1.
    pub fn of(successes: u64, n: u64) -> Proportion {
        if n == 0 {
            return Proportion { value: 0.0, low: 0.0, high: 1.0, stderr: 0.0, n };
        }
        let trials = n as f64;
        let p = successes.min(n) as f64 / trials;
        let z2 = Z * Z / trials;
        let centre = (p + z2 / 2.0) / (1.0 + z2);
        let half = Z * (p * (1.0 - p) / trials + z2 / (4.0 * trials)).sqrt() / (1.0 + z2);
        Proportion {
            value: p,
            // At the ends the formula gives 0 and 1 up to rounding; say so exactly.
            low: if successes == 0 { 0.0 } else { (centre - half).max(0.0) },
            high: if successes >= n { 1.0 } else { (centre + half).min(1.0) },
            stderr: (p * (1.0 - p) / trials).sqrt(),
            n,
        }
    }

    /// The share of `true` in `outcomes`.
    pub fn of_outcomes(outcomes: impl IntoIterator<Item = bool>) -> Proportion {
        let (mut successes, mut n) = (0, 0);
        for outcome in outcomes {
            successes += u64::from(outcome);
            n += 1;
        }
        Proportion::of(successes, n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Intervals printed in the literature, to the digits printed there.
    ///
    /// - Newcombe (1998), Statistics in Medicine 17:857, table I, method 3 (score without
    ///   continuity correction): 81/263, 15/148, 0/20, 1/29.
    #[test]
    fn equals_published_intervals() {
        for (successes, n, low, high) in [
            (81, 263, 0.2553, 0.3662),
            (15, 148, 0.0624, 0.1605),
            (0, 20, 0.0000, 0.1611),
            (1, 29, 0.0061, 0.1718),
        ] {
            let interval = Proportion::of(successes, n);
            assert!((interval.low - low).abs() < 5.1e-5, "{successes}/{n}: {interval:?}");
            assert!((interval.high - high).abs() < 5.1e-5, "{successes}/{n}: {interval:?}");
        }
    }

    #[test]
    fn holds_the_share_and_mirrors() {
        for n in 1..60 {
            for successes in 0..=n {
                let a = Proportion::of(successes, n);
                assert!(0.0 <= a.low && a.low <= a.value && a.value <= a.high && a.high <= 1.0);
                let b = Proportion::of(n - successes, n);
                assert!((a.low - (1.0 - b.high)).abs() < 1e-12);
            }
        }
        assert_eq!(Proportion::of(0, 0).high, 1.0);
        assert_eq!(Proportion::of_outcomes([true, false, true, true]), Proportion::of(3, 4));
    }
}
