//! From logits to a token.
//!
//! In the order of `transformers`: repetition penalty, bias, temperature, top-k, top-p, min-p, and
//! then one draw. The draw for a position depends on the seed and the position alone, so a request
//! gives the same tokens whatever else is in the batch. All ties go to the lowest id.

use std::collections::{BTreeMap, BTreeSet};

use compute::Isa;
use compute::cpu::softmax;
use compute::rng::Rng;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::constraint::Constraint;

/// How to choose a token. The default is greedy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    /// Divides the logits; 0 takes the likeliest token.
    pub temperature: f32,
    /// Only the `top_k` likeliest; 0 is all.
    pub top_k: usize,
    /// Only the fewest likeliest whose probabilities reach `top_p`; 1 is all (nucleus sampling,
    /// Holtzman et al. 2019).
    pub top_p: f32,
    /// Only those at least `min_p` times as likely as the likeliest; 0 is all (Nguyen et al. 2024).
    pub min_p: f32,
    /// Divides positive logits of tokens that occurred, multiplies negative ones; 1 is none
    /// (Keskar et al. 2019).
    pub repetition_penalty: f32,
    /// Taken from the logits of tokens of the answer so far (OpenAI's API reference).
    pub presence_penalty: f32,
    /// The same as often as each occurred.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// Start of the random numbers.
    pub seed: u64,
    /// Report log-probabilities of the chosen token and of this many likeliest ones.
    pub logprobs: Option<usize>,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
            logprobs: None,
        }
    }
}

/// A setting that makes no sense, or logits that don't.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum SamplingError {
    /// A setting is out of its range.
    #[error("{name} is {value}; it must be {range}")]
    Range {
        /// The setting.
        name: &'static str,
        /// Its value.
        value: f32,
        /// What it may be.
        range: &'static str,
    },
    /// A biased token doesn't exist.
    #[error("logit_bias names token {0}, which the model doesn't have")]
    Bias(u32),
    /// The answer's form can't be kept to.
    #[error("the answer's form: {0}")]
    Constraint(String),
    /// The model gave NaN, or no token with a chance.
    #[error("the model's logits are not numbers; its weights are broken")]
    NotANumber,
}

/// A chosen token.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampled {
    /// Its id.
    pub id: u32,
    /// Log-probabilities, if asked for.
    pub logprobs: Option<Logprobs>,
}

/// Natural logarithms of the model's own probabilities: before penalty, bias and temperature.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Logprobs {
    /// Of the chosen token.
    pub chosen: f32,
    /// Of the likeliest tokens, in falling order.
    pub top: Vec<(u32, f32)>,
}

impl Sampling {
    /// Checks the settings for a vocabulary of `vocab` tokens.
    ///
    /// # Errors
    /// Names the first that is out of range.
    pub fn check(&self, vocab: usize) -> Result<(), SamplingError> {
        let checks = [
            ("temperature", self.temperature, 0.0..=1e4, "from 0 to 10,000"),
            ("top_p", self.top_p, f32::MIN_POSITIVE..=1.0, "above 0 and at most 1"),
            ("min_p", self.min_p, 0.0..=1.0, "from 0 to 1"),
            ("repetition_penalty", self.repetition_penalty, 0.01..=100.0, "from 0.01 to 100"),
            ("presence_penalty", self.presence_penalty, -2.0..=2.0, "from -2 to 2"),
            ("frequency_penalty", self.frequency_penalty, -2.0..=2.0, "from -2 to 2"),
        ];
        for (name, value, allowed, range) in checks {
            if !allowed.contains(&value) {
                return Err(SamplingError::Range { name, value, range });
            }
        }
        for &(id, value) in &self.logit_bias {
            if id as usize >= vocab {
                return Err(SamplingError::Bias(id));
            }
            if !value.is_finite() {
                let (name, range) = ("logit_bias", "a finite number");
                return Err(SamplingError::Range { name, value, range });
            }
        }
        Ok(())
    }
}

/// Chooses the tokens of one sequence.
#[derive(Debug)]
pub struct Sampler {
    sampling: Sampling,
    constraint: Option<Box<dyn Constraint>>,
    /// Distinct tokens so far, for the repetition penalty.
    seen: BTreeSet<u32>,
    /// How often each token was chosen, for the other two.
    chosen: BTreeMap<u32, u32>,
    isa: Isa,
    /// What tokens weigh, kept for the next time.
    weights: Vec<f32>,
}

impl Sampler {
    /// A sampler that has seen the `prompt`. `sampling` must have passed [`Sampling::check`].
    pub fn new(
        sampling: Sampling,
        prompt: &[u32],
        constraint: Option<Box<dyn Constraint>>,
    ) -> Self {
        let penalises = sampling.repetition_penalty != 1.0;
        let seen = prompt.iter().copied().filter(|_| penalises).collect();
        Sampler {
            sampling,
            constraint,
            seen,
            chosen: BTreeMap::new(),
            isa: Isa::detect(),
            weights: Vec::new(),
        }
    }

    /// Chooses the token at `position` (tokens before it) by `logits` `[vocab]`, which it changes.
    ///
    /// # Errors
    /// [`SamplingError::NotANumber`].
    pub fn sample(
        &mut self,
        logits: &mut [f32],
        position: usize,
    ) -> Result<Sampled, SamplingError> {
        // Of all, without a branch for each: NaN is not less than anything.
        if !logits.iter().fold(true, |good, x| good & (*x < f32::INFINITY)) {
            return Err(SamplingError::NotANumber);
        }
        let before = self.sampling.logprobs.map(|n| (n, logits.to_vec()));
        for &id in &self.seen {
            if let Some(x) = logits.get_mut(id as usize) {
                let penalty = self.sampling.repetition_penalty;
                *x = if *x > 0.0 { *x / penalty } else { *x * penalty };
            }
        }
        for (&id, &times) in &self.chosen {
            if let Some(x) = logits.get_mut(id as usize) {
                let Sampling { presence_penalty, frequency_penalty, .. } = self.sampling;
                *x -= presence_penalty + frequency_penalty * times as f32;
            }
        }
        for &(id, bias) in &self.sampling.logit_bias {
            if let Some(x) = logits.get_mut(id as usize) {
                *x += bias;
            }
        }
        if let Some(constraint) = &mut self.constraint {
            constraint.mask(logits).map_err(SamplingError::Constraint)?;
        }
        let id = if self.sampling.temperature == 0.0 {
            greedy(logits)
        } else {
            self.draw(logits, position)
        };
        let id = id.ok_or(SamplingError::NotANumber)?;
        if self.sampling.repetition_penalty != 1.0 {
            self.seen.insert(id);
        }
        if self.sampling.presence_penalty != 0.0 || self.sampling.frequency_penalty != 0.0 {
            *self.chosen.entry(id).or_default() += 1;
        }
        if let Some(constraint) = &mut self.constraint {
            constraint.take(id).map_err(SamplingError::Constraint)?;
        }
        let logprobs = before.map(|(n, logits)| logprobs(&logits, id, n));
        Ok(Sampled { id, logprobs })
    }

    fn draw(&mut self, logits: &[f32], position: usize) -> Option<u32> {
        let s = &self.sampling;
        softmax::weights(self.isa, logits, s.temperature, &mut self.weights);
        let weights = &self.weights[..];
        let share = Rng::new(s.seed).numbered(position as u64).f64();
        if s.top_k == 0 && s.top_p >= 1.0 {
            return pick(weights, s.min_p, share);
        }
        let mut kept = match s.top_k {
            0 => nucleus(logits, weights, s.top_p),
            k => likeliest(numbered(logits), k),
        };
        let weight = |k: &(u32, f32)| f64::from(weights[k.0 as usize]);
        if s.top_k > 0 && s.top_p < 1.0 {
            let target = f64::from(s.top_p) * kept.iter().map(weight).sum::<f64>();
            shorten(&mut kept, weights, target);
        }
        // The likeliest has weight 1.
        kept.retain(|k| weight(k) > 0.0 && weight(k) >= f64::from(s.min_p));
        let mut left = share * kept.iter().map(weight).sum::<f64>();
        let chosen = kept.iter().find(|k| {
            left -= weight(k);
            left < 0.0
        });
        chosen.or(kept.last()).map(|k| k.0) // rounding may leave a crumb
    }
}

/// Draws among all tokens of at least the weight `min`: the one at `share` of their sum.
fn pick(weights: &[f32], min: f32, share: f64) -> Option<u32> {
    const BLOCK: usize = 1024;
    let of = |w: &f32| if *w >= min { f64::from(*w) } else { 0.0 };
    // Eight sums at a time, which don't wait for each other.
    let sum = |block: &[f32]| {
        let mut lanes = [0f64; 8];
        for eight in block.chunks(8) {
            lanes.iter_mut().zip(eight).for_each(|(lane, w)| *lane += of(w));
        }
        lanes.iter().sum::<f64>()
    };
    let sums: Vec<f64> = weights.chunks(BLOCK).map(sum).collect();
    let mut left = share * sums.iter().sum::<f64>();
    let mut last = None;
    for (i, (block, sum)) in weights.chunks(BLOCK).zip(&sums).enumerate() {
        if left >= *sum {
            left -= sum;
            continue;
        }
        for (j, w) in block.iter().enumerate().filter(|(_, w)| of(w) > 0.0) {
            left -= of(w);
            last = Some((i * BLOCK + j) as u32);
            if left < 0.0 {
                return last;
            }
        }
    }
    // Rounding left a crumb.
    last.or_else(|| weights.iter().rposition(|w| of(w) > 0.0).map(|i| i as u32))
}

/// The fewest likeliest tokens whose weights reach `top_p` of all, in falling order.
fn nucleus(logits: &[f32], weights: &[f32], top_p: f32) -> Vec<(u32, f32)> {
    let target = f64::from(top_p) * weights.iter().map(|w| f64::from(*w)).sum::<f64>();
    // Few tokens weigh much, and sorting all is rarely needed.
    let mut least = 1e-2;
    loop {
        let heavy = (0..).zip(logits).filter(|(i, _)| weights[*i as usize] >= least);
        let heavy: Vec<(u32, f32)> = heavy.map(|(id, &x)| (id, x + 0.0)).collect();
        let n = heavy.len();
        let mut heavy = likeliest(heavy, n);
        if shorten(&mut heavy, weights, target) || least == 0.0 {
            return heavy;
        }
        least = if least < 1e-9 { 0.0 } else { least / 16.0 };
    }
}

/// Leaves as many of the first as reach `target` together; `false` if all don't.
fn shorten(kept: &mut Vec<(u32, f32)>, weights: &[f32], target: f64) -> bool {
    let mut sum = 0.0;
    let last = kept.iter().position(|k| {
        sum += f64::from(weights[k.0 as usize]);
        sum >= target
    });
    kept.truncate(last.map_or(kept.len(), |last| last + 1));
    last.is_some()
}

/// What the model thinks of a token by `logits` `[vocab]`, and of the `n` likeliest.
pub(crate) fn logprobs(logits: &[f32], id: u32, n: usize) -> Logprobs {
    let total = log_sum_exp(logits);
    let of = |x: f32| (f64::from(x) - total) as f32;
    let top = likeliest(numbered(logits), n).into_iter().map(|(id, x)| (id, of(x))).collect();
    Logprobs { chosen: of(logits[id as usize]), top }
}

/// The first of the largest; `None` if nothing has a chance.
fn greedy(logits: &[f32]) -> Option<u32> {
    let mut best = None;
    let mut max = f32::NEG_INFINITY;
    for (id, &x) in logits.iter().enumerate() {
        if x > max {
            (best, max) = (Some(id as u32), x);
        }
    }
    best
}

/// Ids with their logits, -0 as 0.
fn numbered(logits: &[f32]) -> Vec<(u32, f32)> {
    logits.iter().enumerate().map(|(id, &x)| (id as u32, x + 0.0)).collect()
}

/// The `n` likeliest in falling order, lower ids first among equals.
fn likeliest(mut all: Vec<(u32, f32)>, n: usize) -> Vec<(u32, f32)> {
    let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if 0 < n && n < all.len() {
        all.select_nth_unstable_by(n - 1, order);
    }
    all.truncate(n);
    all.sort_unstable_by(order);
    all
}

fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut weights = Vec::new();
    softmax::weights(Isa::detect(), logits, 1.0, &mut weights);
    f64::from(max) + libm::log(weights.iter().map(|w| f64::from(*w)).sum())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LOGITS: [f32; 6] = [1.0, 3.0, -2.0, 3.0, 0.5, -40.0];

    fn one(sampling: Sampling, prompt: &[u32], logits: &[f32]) -> u32 {
        Sampler::new(sampling, prompt, None).sample(&mut logits.to_vec(), 0).unwrap().id
    }

    /// Shares of the tokens in 40,000 draws.
    fn shares(sampling: &Sampling) -> Vec<f64> {
        let mut sampler = Sampler::new(sampling.clone(), &[], None);
        let mut counts = vec![0.0; LOGITS.len()];
        for position in 0..40_000 {
            counts[sampler.sample(&mut LOGITS.to_vec(), position).unwrap().id as usize] += 1.0;
        }
        counts.iter().map(|n| n / 40_000.0).collect()
    }

    /// Probabilities worked out the long way: a mask over tokens, then a softmax of what is left.
    fn reference(keep: &[usize], temperature: f64) -> Vec<f64> {
        let weight = |i: usize| {
            if keep.contains(&i) { (f64::from(LOGITS[i]) / temperature).exp() } else { 0.0 }
        };
        let total: f64 = (0..LOGITS.len()).map(weight).sum();
        (0..LOGITS.len()).map(|i| weight(i) / total).collect()
    }

    #[test]
    fn greedy_takes_the_first_of_the_likeliest() {
        assert_eq!(one(Sampling::default(), &[], &LOGITS), 1);
        assert_eq!(one(Sampling { top_k: 3, ..Sampling::default() }, &[], &[0.0, -0.0, 0.0]), 0);
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let all: Vec<usize> = (0..6).collect();
        // softmax at T = 1: 1 and 3 have 0.4496 each, 0 has 0.061, 4 has 0.037, 2 has 0.003.
        for (sampling, keep, temperature) in [
            (Sampling { temperature: 1.0, ..Sampling::default() }, &all[..], 1.0),
            (Sampling { temperature: 2.5, ..Sampling::default() }, &all, 2.5),
            (Sampling { temperature: 1.0, top_k: 1, ..Sampling::default() }, &[1], 1.0),
            (Sampling { temperature: 1.0, top_k: 3, ..Sampling::default() }, &[0, 1, 3], 1.0),
            (Sampling { temperature: 1.0, top_p: 0.44, ..Sampling::default() }, &[1], 1.0),
            (Sampling { temperature: 1.0, top_p: 0.46, ..Sampling::default() }, &[1, 3], 1.0),
            (Sampling { temperature: 1.0, top_p: 0.9, ..Sampling::default() }, &[0, 1, 3], 1.0),
            // Among the two likeliest alone each has half.
            (
                Sampling { temperature: 1.0, top_k: 2, top_p: 0.49, ..Sampling::default() },
                &[1],
                1.0,
            ),
            // e^-2 = 0.135, e^-2.5 = 0.082
            (Sampling { temperature: 1.0, min_p: 0.1, ..Sampling::default() }, &[0, 1, 3], 1.0),
            (Sampling { temperature: 1.0, min_p: 0.08, ..Sampling::default() }, &[0, 1, 3, 4], 1.0),
            (Sampling { temperature: 0.5, min_p: 0.1, ..Sampling::default() }, &[1, 3], 0.5),
        ] {
            for (share, p) in shares(&sampling).iter().zip(reference(keep, temperature)) {
                // Five standard deviations.
                let allowed = 5.0 * (p * (1.0 - p) / 40_000.0).sqrt();
                assert!((share - p).abs() <= allowed, "{sampling:?}: {share} for {p}");
            }
        }
    }

    #[test]
    fn penalty_and_bias() {
        let penalty = Sampling { repetition_penalty: 2.0, ..Sampling::default() };
        assert_eq!(one(penalty.clone(), &[1], &LOGITS), 3);
        assert_eq!(one(penalty.clone(), &[0], &[-1.0, -1.5]), 1);
        // What was chosen counts too, once.
        let mut sampler = Sampler::new(penalty, &[], None);
        let ids: Vec<u32> =
            (0..5).map(|i| sampler.sample(&mut LOGITS.to_vec(), i).unwrap().id).collect();
        assert_eq!(ids, [1, 3, 1, 1, 1]);
        // The first choice takes 1.6 from its token, each other one 1.
        let often =
            Sampling { presence_penalty: 0.6, frequency_penalty: 1.0, ..Sampling::default() };
        let mut sampler = Sampler::new(often, &[1, 1], None);
        let ids: Vec<u32> =
            (0..5).map(|i| sampler.sample(&mut LOGITS.to_vec(), i).unwrap().id).collect();
        assert_eq!(ids, [1, 3, 1, 3, 0]);
        let bias = Sampling { logit_bias: vec![(5, 43.5)], ..Sampling::default() };
        assert_eq!(one(bias, &[], &LOGITS), 5);
    }

    #[test]
    fn log_probabilities_are_the_models_own() {
        let sampling = Sampling {
            temperature: 3.0,
            top_k: 1,
            logit_bias: vec![(2, 99.0)],
            logprobs: Some(3),
            ..Sampling::default()
        };
        let sampled = Sampler::new(sampling, &[], None).sample(&mut LOGITS.to_vec(), 0).unwrap();
        let p = reference(&[0, 1, 2, 3, 4, 5], 1.0);
        let logprobs = sampled.logprobs.unwrap();
        assert_eq!(sampled.id, 2);
        assert!((f64::from(logprobs.chosen) - p[2].ln()).abs() < 1e-6);
        assert_eq!(logprobs.top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 3, 0]);
        for (id, x) in logprobs.top {
            assert!((f64::from(x) - p[id as usize].ln()).abs() < 1e-6);
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let ok = Sampling::default();
        for (wrong, name) in [
            (Sampling { temperature: -1.0, ..ok.clone() }, "temperature"),
            (Sampling { temperature: f32::NAN, ..ok.clone() }, "temperature"),
            (Sampling { top_p: 0.0, ..ok.clone() }, "top_p"),
            (Sampling { min_p: 1.5, ..ok.clone() }, "min_p"),
            (Sampling { repetition_penalty: 0.0, ..ok.clone() }, "repetition_penalty"),
            (Sampling { logit_bias: vec![(0, f32::INFINITY)], ..ok.clone() }, "logit_bias"),
            (Sampling { logit_bias: vec![(9, 0.0)], ..ok.clone() }, "logit_bias"),
        ] {
            assert!(wrong.check(9).unwrap_err().to_string().contains(name));
        }
        assert_eq!(ok.check(9), Ok(()));
        for logits in [&mut [f32::NAN, 1.0][..], &mut [f32::NEG_INFINITY; 2], &mut []] {
            for temperature in [0.0, 1.0] {
                let sampling = Sampling { temperature, ..ok.clone() };
                let sampled = Sampler::new(sampling, &[], None).sample(logits, 0);
                assert_eq!(sampled, Err(SamplingError::NotANumber));
            }
        }
    }

    proptest! {
        /// The same draw whatever the filters' order of work: those that keep all change nothing.
        #[test]
        fn filters_that_keep_all_change_nothing(logits in prop::collection::vec(-9.0f32..9.0, 1..300), seed: u64, position in 0usize..1000) {
            let open = Sampling { temperature: 1.0, seed, ..Sampling::default() };
            let id = Sampler::new(open.clone(), &[], None).sample(&mut logits.clone(), position).unwrap().id;
            prop_assert!((id as usize) < logits.len());
            let narrow = Sampling { top_k: 1, ..open };
            let best = Sampler::new(narrow, &[], None).sample(&mut logits.clone(), position).unwrap().id;
            prop_assert_eq!(Some(best), greedy(&logits));
        }

        #[test]
        fn likeliest_is_a_sort(logits in prop::collection::vec(-3i8..3, 0..50), n in 0usize..60) {
            let logits: Vec<f32> = logits.into_iter().map(f32::from).collect();
            let mut sorted: Vec<(u32, f32)> = logits.iter().enumerate().map(|(i, &x)| (i as u32, x)).collect();
            sorted.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap());
            sorted.truncate(n);
            prop_assert_eq!(likeliest(numbered(&logits), n), sorted);
        }
    }
}
