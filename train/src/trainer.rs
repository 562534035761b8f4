//! The training loop: batches to steps, with measurements on the way.

use std::sync::Arc;
use std::time::Instant;

use compute::parameters::Gradients;
use compute::tape::Workspace;
use compute::tensor::DType;
use compute::{Cpu, IGNORE};
use data::batches::{Batch, Loader};
use model::account;
use model::transformer::Transformer;
use serde::{Deserialize, Serialize};

use crate::optimizer::{Optimizer, OptimizerConfig};
use crate::schedule::Schedule;

/// Where batches come from.
pub trait Source {
    /// The next sequences, at most `rows` rows of them. Never empty.
    fn next(&mut self, rows: usize) -> Batch;
}

impl Source for Loader {
    fn next(&mut self, rows: usize) -> Batch {
        Loader::next(self, rows)
    }
}

/// Settings of a training run. Budgets are tokens (rows of batches).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Tokens to train on.
    pub tokens: u64,
    /// Tokens a step: so many parts of `micro_tokens`, none of them filled quite.
    pub batch_tokens: usize,
    /// Tokens that go through the model at a time; gradients of a step's parts add up.
    pub micro_tokens: usize,
    /// Type of the operands of products.
    pub dtype: Precision,
    /// The optimizer.
    pub optimizer: OptimizerConfig,
    /// The learning rate over the run.
    pub schedule: Schedule,
    /// Tokens between measurements on held-out text.
    pub validate_tokens: u64,
    /// Tokens between samples.
    pub sample_tokens: u64,
}

impl Default for TrainConfig {
    fn default() -> Self {
        TrainConfig {
            tokens: 10_000_000,
            batch_tokens: 8192,
            micro_tokens: 2048,
            dtype: Precision::Auto,
            optimizer: OptimizerConfig::default(),
            schedule: Schedule::Wsd { warmup: 0.01, decay: 0.4, end: 0.0 },
            validate_tokens: 500_000,
            sample_tokens: 2_000_000,
        }
    }
}

/// Type of the operands of products; what is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// bf16 where the CPU multiplies it faster than f32 (measured), else f32.
    Auto,
    /// f32.
    F32,
    /// bf16 operands, f32 sums.
    Bf16,
}

/// Held-out text.
#[derive(Clone, Debug, Default)]
pub struct Validation {
    /// All of it.
    pub batches: Vec<Batch>,
    /// Bytes of text that its targets stand for.
    pub bytes: u64,
}

/// One line of `metrics.jsonl`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Metric {
    /// After a step.
    Step(StepMetric),
    /// After a measurement on held-out text.
    HeldOut {
        /// Steps so far.
        step: u64,
        /// Tokens so far.
        tokens: u64,
        /// Bits that the model needs for a byte of held-out text.
        heldout_bits_per_byte: f64,
    },
    /// What the model writes at this point.
    Sample {
        /// Steps so far.
        step: u64,
        /// Tokens so far.
        tokens: u64,
        /// The sample.
        sample: Sample,
    },
}

/// Measurements of a step.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StepMetric {
    /// Steps so far.
    pub step: u64,
    /// Tokens so far.
    pub tokens: u64,
    /// Seconds since the start.
    pub seconds: f64,
    /// Mean nats of the step's targets.
    pub loss: f64,
    /// Learning rate of inner matrices.
    pub lr: f64,
    /// Length of the gradient before it was shortened.
    pub grad_norm: f64,
    /// Tokens a second in this step.
    pub tokens_per_s: f64,
    /// Floating-point operations a second, as a share of the machine's measured peak.
    pub share_of_peak: f64,
}

/// A prompt and what the model made of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sample {
    /// What it was given.
    pub prompt: String,
    /// What it wrote.
    pub text: String,
}

/// Who watches a run.
pub trait Observer {
    /// Takes a measurement.
    fn metric(&mut self, metric: &Metric);
    /// Samples of the model as it is.
    fn samples(&mut self, model: &Transformer, ws: &mut Workspace) -> Vec<Sample> {
        let _ = (model, ws);
        Vec::new()
    }
    /// Whether to end after this step.
    fn stop(&mut self) -> bool {
        false
    }
}

/// What a run came to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Summary {
    /// Steps done.
    pub steps: u64,
    /// Tokens seen.
    pub tokens: u64,
    /// Seconds in steps (not in measurements).
    pub seconds: f64,
    /// Mean tokens a second.
    pub tokens_per_s: f64,
    /// Mean share of the measured peak.
    pub share_of_peak: f64,
    /// Loss of the last step, nats.
    pub loss: f64,
    /// Held-out bits a byte at the end, if there was held-out text.
    pub heldout_bits_per_byte: Option<f64>,
    /// Bytes of step memory.
    pub step_memory: usize,
    /// Whether it was stopped before its end.
    pub stopped: bool,
}

/// A model in training.
pub struct Trainer<'a> {
    /// The model.
    pub model: &'a mut Transformer,
    /// Its optimizer.
    pub optimizer: Optimizer,
    config: TrainConfig,
    ws: Workspace,
    gradients: Gradients,
    /// Tokens so far.
    pub tokens: u64,
    /// FLOP/s that the machine can do at best.
    peak: f64,
}

impl<'a> Trainer<'a> {
    /// A trainer at its start. `peak` is the machine's measured FLOP/s in the chosen precision.
    pub fn new(
        cpu: Arc<Cpu>,
        model: &'a mut Transformer,
        config: TrainConfig,
        products: DType,
        peak: f64,
    ) -> Trainer<'a> {
        let optimizer = Optimizer::new(config.optimizer.clone(), &model.parameters);
        let gradients = Gradients::zeros(&model.parameters);
        let ws = Workspace::new(cpu, products);
        Trainer { model, optimizer, config, ws, gradients, tokens: 0, peak }
    }

    /// One step on the next batches of a source. Returns its measurements.
    pub fn step(&mut self, source: &mut dyn Source) -> StepMetric {
        let start = Instant::now();
        let parts = self.config.batch_tokens.div_ceil(self.config.micro_tokens);
        let batches: Vec<Batch> =
            (0..parts).map(|_| source.next(self.config.micro_tokens)).collect();
        let (loss, rows, visible) = self.gradients(&batches);
        let progress = self.tokens as f64 / self.config.tokens as f64;
        // The rate of a step is that of its middle.
        let half = rows as f64 / 2.0 / self.config.tokens as f64;
        let share = self.config.schedule.at((progress + half).min(1.0));
        let cpu = self.ws.cpu().clone();
        let parameters = &mut self.model.parameters;
        let grad_norm = self.optimizer.step(&cpu, parameters, &mut self.gradients, share);
        self.ws.weights_changed();
        self.tokens += rows as u64;
        let seconds = start.elapsed().as_secs_f64();
        let flops = account::training_flops(self.model.config(), visible) * rows as f64;
        StepMetric {
            step: self.optimizer.steps,
            tokens: self.tokens,
            seconds,
            loss,
            lr: self.config.optimizer.matrix_lr * share,
            grad_norm,
            tokens_per_s: rows as f64 / seconds,
            share_of_peak: flops / seconds / self.peak,
        }
    }

    /// Gradients of the mean nats over all targets of `batches`: mean loss, rows, mean number of
    /// visible positions.
    fn gradients(&mut self, batches: &[Batch]) -> (f64, usize, f64) {
        let count = |b: &Batch| b.targets.iter().filter(|t| **t != IGNORE).count();
        let targets: usize = batches.iter().map(count).sum();
        let weight = 1.0 / targets.max(1) as f32;
        self.gradients.clear();
        let mut sum = 0.0;
        for b in batches {
            let weights = vec![weight; b.tokens.len()];
            let model = &*self.model;
            let mut tape = self.ws.record(&model.parameters, &mut self.gradients);
            sum += model.loss(&mut tape, &b.tokens, &b.targets, &b.spans, &weights).sum();
            tape.backward();
        }
        let rows = batches.iter().map(|b| b.tokens.len()).sum();
        let lengths = batches.iter().flat_map(|b| b.spans.iter().map(|s| s.len));
        (sum / targets.max(1) as f64, rows, account::mean_visible(lengths))
    }

    /// Bits that the model needs for a byte of held-out text.
    pub fn validate(&mut self, validation: &Validation) -> f64 {
        let mut nats = 0.0;
        for b in &validation.batches {
            let rows = self.model.loss_rows(&mut self.ws, &b.tokens, &b.targets, &b.spans);
            nats += rows.iter().map(|x| f64::from(*x)).sum::<f64>();
        }
        nats / std::f64::consts::LN_2 / validation.bytes.max(1) as f64
    }

    /// Trains to the end of the budget, or until the observer stops it.
    pub fn run(
        &mut self,
        source: &mut dyn Source,
        validation: &Validation,
        observer: &mut dyn Observer,
    ) -> Summary {
        let mut seconds = 0.0;
        let (mut share_seconds, mut loss, mut heldout) = (0.0, f64::NAN, None);
        let first_token = self.tokens;
        let mut stopped = false;
        while self.tokens < self.config.tokens && !stopped {
            let before = self.tokens;
            let mut metric = self.step(source);
            seconds += metric.seconds;
            share_seconds += metric.seconds * metric.share_of_peak;
            loss = metric.loss;
            metric.seconds = seconds;
            let (step, tokens) = (metric.step, metric.tokens);
            observer.metric(&Metric::Step(metric));
            let done = tokens >= self.config.tokens;
            let due = |every: u64| every > 0 && (done || before / every != tokens / every);
            if due(self.config.validate_tokens) && !validation.batches.is_empty() {
                let bits = self.validate(validation);
                heldout = Some(bits);
                observer.metric(&Metric::HeldOut { step, tokens, heldout_bits_per_byte: bits });
            }
            if due(self.config.sample_tokens) {
                for sample in observer.samples(self.model, &mut self.ws) {
                    observer.metric(&Metric::Sample { step, tokens, sample });
                }
            }
            stopped = observer.stop() && !done;
        }
        Summary {
            steps: self.optimizer.steps,
            tokens: self.tokens,
            seconds,
            tokens_per_s: (self.tokens - first_token) as f64 / seconds.max(1e-9),
            share_of_peak: share_seconds / seconds.max(1e-9),
            loss,
            heldout_bits_per_byte: heldout,
            step_memory: self.ws.bytes(),
            stopped,
        }
    }
}
