//! A small learned judge of quality: logistic regression on hashed words and pairs of words,
//! as fastText's classifier is, learned in a moment from examples.

use super::hashes;
use crate::words::mix;

/// Weights; words share them by their hashes.
const WEIGHTS: usize = 1 << 18;
/// Passes over the examples.
const PASSES: usize = 10;
/// Length of a step, falling to 0.
const STEP: f64 = 0.5;
/// Words of a text that are looked at.
const WORDS: usize = 2000;

/// Learned weights.
pub struct Classifier {
    weights: Vec<f32>,
    bias: f64,
}

/// Places of the words and pairs of words of a text.
fn features(text: &str) -> Vec<usize> {
    let mut words = hashes(text);
    words.truncate(WORDS);
    let pairs = words.windows(2).map(|w| mix(w[0], w[1]));
    words.iter().copied().chain(pairs).map(|h| h as usize % WEIGHTS).collect()
}

impl Classifier {
    /// Learns from texts that are good and bad; both count the same, however many there are.
    pub fn learn(good: &[String], bad: &[String]) -> Classifier {
        let mut all: Vec<(u64, Vec<usize>, f64, f64)> = Vec::new();
        let most = good.len().max(bad.len()) as f64;
        for (texts, label) in [(good, 1.0), (bad, 0.0)] {
            for (i, text) in texts.iter().enumerate() {
                let weight = most / texts.len() as f64;
                all.push((mix(i as u64, label as u64), features(text), label, weight));
            }
        }
        // Mixed, and always the same way.
        all.sort_by_key(|example| example.0);
        let mut learned = Classifier { weights: vec![0.0; WEIGHTS], bias: 0.0 };
        let steps = (PASSES * all.len()) as f64;
        for pass in 0..PASSES {
            for (i, (_, features, label, weight)) in all.iter().enumerate() {
                let left = 1.0 - (pass * all.len() + i) as f64 / steps;
                let error = label - learned.of(features);
                let step = STEP * left * error * weight.min(10.0);
                learned.bias += step;
                let each = (step / (features.len().max(1) as f64).sqrt()) as f32;
                features.iter().for_each(|f| learned.weights[*f] += each);
            }
        }
        learned
    }

    /// The probability that a text is good.
    pub fn probability(&self, text: &str) -> f64 {
        self.of(&features(text))
    }

    fn of(&self, features: &[usize]) -> f64 {
        let sum: f64 = features.iter().map(|f| f64::from(self.weights[*f])).sum();
        let x = self.bias + sum / (features.len().max(1) as f64).sqrt();
        1.0 / (1.0 + libm::exp(-x))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_learns_what_examples_show() {
        let good: Vec<String> = (0..40)
            .map(|i| {
                format!(
                    "The river {i} flows through the valley to the sea, and people live beside it."
                )
            })
            .collect();
        let bad: Vec<String> = (0..10)
            .map(|i| format!("BUY NOW!!! cheap pills {i} click here best price order today"))
            .collect();
        let learned = Classifier::learn(&good, &bad);
        assert!(learned.probability("People in the valley live beside the river.") > 0.7);
        assert!(learned.probability("click here to order cheap pills now") < 0.3);
    }
}
