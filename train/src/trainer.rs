//! The training loop: batches to steps, with measurements and checkpoints on the way, and guards
//! against steps that would spoil it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use compute::parameters::Gradients;
use compute::profile::Profile;
use compute::rng::Rng;
use compute::tape::{Dropout, Workspace};
use compute::tensor::DType;
use compute::{Cpu, IGNORE};
use data::batches::{Batch, Loader, LoaderError, LoaderState};
use model::account;
use model::transformer::Transformer;
use serde::{Deserialize, Serialize};
use store::{Hash, StoreError};
use thiserror::Error;

use crate::checkpoint::{self, CheckpointError, Checkpoints, State};
use crate::guard::{GuardConfig, GuardState};
use crate::optimizer::{Optimizer, OptimizerConfig};
use crate::schedule::Schedule;

/// Most time between checkpoints; there is one after each measurement on held-out text, too.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(60);

/// Where batches come from.
pub trait Source {
    /// The next sequences, at most `rows` rows of them. Never empty.
    fn next(&mut self, rows: usize) -> Batch;

    /// Where it is.
    fn state(&self) -> LoaderState {
        LoaderState::default()
    }

    /// Goes to where it was.
    ///
    /// # Errors
    /// If there is no such place in it.
    fn restore(&mut self, state: LoaderState) -> Result<(), LoaderError> {
        let _ = state;
        Ok(())
    }
}

impl Source for Loader {
    fn next(&mut self, rows: usize) -> Batch {
        Loader::next(self, rows)
    }

    fn state(&self) -> LoaderState {
        Loader::state(self).clone()
    }

    fn restore(&mut self, state: LoaderState) -> Result<(), LoaderError> {
        Loader::restore(self, state)
    }
}

/// Why a run ended before its end.
#[derive(Debug, Error)]
pub enum TrainError {
    /// A checkpoint can't be read or written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Metrics can't be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The place in the data is none of this data.
    #[error(transparent)]
    Loader(#[from] LoaderError),
    /// It went wrong, again after going back.
    #[error("training went wrong at step {step}: {reason}; {tried}")]
    Diverged {
        /// Where.
        step: u64,
        /// What was wrong with the last step.
        reason: String,
        /// What had been tried.
        tried: String,
    },
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
    /// Checkpoints that are kept besides the newest and the best: the last so many that were made
    /// right after a measurement.
    pub keep_checkpoints: usize,
    /// Whether the run ends with the weights that were best on held-out text, instead of its last.
    pub take_best: bool,
    /// What steps are not learned from.
    pub guards: GuardConfig,
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
            keep_checkpoints: 2,
            take_best: false,
            guards: GuardConfig::default(),
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

/// One line of `metrics.jsonl`: the same whatever machine it was measured on.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Metric {
    /// After a step.
    Step(StepMetric),
    /// After a step that was not learned from.
    Skipped {
        /// Steps so far.
        step: u64,
        /// Tokens so far.
        tokens: u64,
        /// Why.
        skipped: String,
    },
    /// After going back to an earlier checkpoint, because of too many such steps.
    RolledBack {
        /// Steps so far.
        step: u64,
        /// Tokens so far.
        tokens: u64,
        /// Step of the checkpoint whose weights the run has again. It goes on with new data.
        rolled_back_to: u64,
    },
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
    /// Mean nats of the step's targets.
    pub loss: f64,
    /// Learning rate of inner matrices.
    pub lr: f64,
    /// Length of the gradient before it was shortened.
    pub grad_norm: f64,
}

/// How long a step took: a line of `timing.jsonl`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Timing {
    /// Steps so far.
    pub step: u64,
    /// Tokens so far.
    pub tokens: u64,
    /// Seconds of this step.
    pub seconds: f64,
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
    /// Takes how long a step took.
    fn timing(&mut self, timing: &Timing) {
        let _ = timing;
    }
    /// Samples of the model as it is.
    fn samples(&mut self, model: &Transformer, ws: &mut Workspace) -> Vec<Sample> {
        let _ = (model, ws);
        Vec::new()
    }
    /// A checkpoint is about to be written: what was measured so far has to last, too. Returns its
    /// hash, which the checkpoint keeps.
    ///
    /// # Errors
    /// What can't be written.
    fn saving(&mut self) -> Result<Hash, StoreError> {
        Ok(store::hash_bytes(&[]))
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
    /// Floating-point operations.
    pub flops: f64,
    /// Loss of the last step, nats.
    pub loss: f64,
    /// Held-out bits a byte at the end, if there was held-out text.
    pub heldout_bits_per_byte: Option<f64>,
    /// Steps that were not learned from.
    pub skipped: u64,
    /// Times that the run went back to an earlier checkpoint.
    pub rollbacks: u64,
    /// Tokens at which the model was as it is now: all of them, or those of the best checkpoint.
    pub taken_from: u64,
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
    /// FLOP/s that the machine can do at best.
    peak: f64,
    /// Tokens so far.
    pub tokens: u64,
    steps: u64,
    flops: f64,
    loss: f64,
    heldout: Option<f64>,
    guard: GuardState,
    /// Of dropout.
    seed: u64,
    /// Share of the weights that training changes.
    trained: f64,
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
        let ws = Workspace::new(cpu, products);
        let gradients = ws.gradients(&model.parameters);
        let (tokens, steps, flops, loss, heldout) = (0, 0, 0.0, f64::MAX, None);
        let guard = GuardState::default();
        let trainable = model.parameters.iter().filter(|p| p.trainable);
        let trained = trainable.map(|p| p.value.len()).sum::<usize>() as f64
            / model.parameters.count().max(1) as f64;
        Trainer {
            model,
            optimizer,
            config,
            ws,
            gradients,
            peak,
            tokens,
            steps,
            flops,
            loss,
            heldout,
            guard,
            seed: 0,
            trained,
        }
    }

    /// Drops elements before adapters from now on.
    pub fn set_dropout(&mut self, rate: f32, seed: u64) {
        self.ws.dropout = Some(Dropout { rate, seed });
        self.seed = seed;
    }

    /// Goes forward as generation does from now on: see [`Workspace::set_learn_rounded`].
    pub fn set_learn_rounded(&mut self, rounded: bool) {
        self.ws.set_learn_rounded(rounded);
    }

    /// Keeps less of each layer from now on, and computes it again on the way back: the same bits, slower.
    pub fn set_recompute(&mut self, recompute: bool) {
        self.ws.set_recompute(recompute);
    }

    /// Goes to the newest checkpoint, and the source with it. Returns the hash of what had been
    /// measured up to there; `None` if there is no checkpoint.
    ///
    /// # Errors
    /// Checkpoints of which none is whole, or that don't fit.
    pub fn resume(
        &mut self,
        source: &mut dyn Source,
        checkpoints: &mut Checkpoints,
    ) -> Result<Option<Hash>, TrainError> {
        let parameters = &mut self.model.parameters;
        let Some(state) = checkpoints.load(parameters, &mut self.optimizer)? else {
            return Ok(None);
        };
        source.restore(state.loader)?;
        self.ws.weights_changed();
        (self.tokens, self.steps, self.flops) = (state.tokens, state.steps, state.flops);
        (self.loss, self.heldout) = (state.loss, state.heldout_bits_per_byte);
        self.guard = state.guard;
        Ok(Some(state.metrics))
    }

    /// Starts to measure where the time goes.
    pub fn profile(&mut self) -> &mut Profile {
        &mut self.ws.profile
    }

    /// One step on the next batches of a source: what was measured, and how long it took.
    pub fn step(&mut self, source: &mut dyn Source) -> (Metric, Timing) {
        let start = Instant::now();
        let parts = self.config.batch_tokens.div_ceil(self.config.micro_tokens);
        let clock = self.ws.profile.start();
        let batches: Vec<Batch> =
            (0..parts).map(|_| source.next(self.config.micro_tokens)).collect();
        self.ws.profile.stop(clock, "batches", 0.0, 0);
        let count = |b: &Batch| b.targets.iter().filter(|t| **t != IGNORE).count();
        let targets: usize = batches.iter().map(count).sum();
        let (loss, rows, visible) = self.gradients(&batches, targets);
        let elements = self.model.parameters.count();
        let clock = self.ws.profile.start();
        let norm = self.gradients.norm(self.ws.cpu());
        self.ws.profile.stop(clock, "length of the gradient", 0.0, elements);

        let wrong = if targets == 0 {
            self.guard.skip();
            Some("no token of the batch is a target".to_string())
        } else {
            self.guard.judge(&self.config.guards, loss, norm)
        };
        let progress = self.tokens as f64 / self.config.tokens as f64;
        // The rate of a step is that of its middle.
        let half = rows as f64 / 2.0 / self.config.tokens as f64;
        let share = self.config.schedule.at((progress + half).min(1.0));
        if wrong.is_none() {
            let clock = self.ws.profile.start();
            let parameters = &mut self.model.parameters;
            self.optimizer.step(&mut self.ws, parameters, &mut self.gradients, norm, share);
            let flops = self.optimizer.flops(parameters);
            self.ws.profile.stop(clock, "optimizer", flops, 6 * elements);
            self.loss = loss;
        }
        self.steps += 1;
        self.tokens += rows as u64;
        let each = account::training_flops(self.model.config(), visible, self.trained);
        let flops = each * rows as f64;
        self.flops += flops;

        let (step, tokens) = (self.steps, self.tokens);
        let lr = self.config.optimizer.inner_lr() * share;
        let metric = match wrong {
            None => Metric::Step(StepMetric { step, tokens, loss, lr, grad_norm: norm }),
            Some(skipped) => Metric::Skipped { step, tokens, skipped },
        };
        let seconds = start.elapsed().as_secs_f64();
        let (tokens_per_s, share_of_peak) = (rows as f64 / seconds, flops / seconds / self.peak);
        (metric, Timing { step, tokens, seconds, tokens_per_s, share_of_peak })
    }

    /// Gradients of the mean nats over all `targets` of `batches`: mean loss, rows, mean number of
    /// visible positions.
    fn gradients(&mut self, batches: &[Batch], targets: usize) -> (f64, usize, f64) {
        let weight = 1.0 / targets.max(1) as f32;
        self.gradients.clear();
        let mut sum = 0.0;
        for (part, b) in batches.iter().enumerate() {
            if let Some(dropout) = &mut self.ws.dropout {
                let mut rng = Rng::new(self.seed).numbered(self.steps).numbered(part as u64);
                dropout.seed = rng.next_u64();
            }
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

    /// Brings weights and moments to main memory, if steps were taken on a card. Until then, reading them panics.
    pub fn fetch(&mut self) {
        self.ws.fetch(&mut self.model.parameters);
        self.optimizer.fetch();
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

    /// Trains to the end of the budget, or until the observer stops it; either way with a
    /// checkpoint of where it is.
    ///
    /// # Errors
    /// What can't be written; a run that goes wrong again and again.
    pub fn run(
        &mut self,
        source: &mut dyn Source,
        validation: &Validation,
        observer: &mut dyn Observer,
        checkpoints: &mut Checkpoints,
    ) -> Result<Summary, TrainError> {
        let mut saved = Instant::now();
        let (mut stopped, mut taken) = (false, None);
        while self.tokens < self.config.tokens && !stopped {
            let before = self.tokens;
            let (metric, timing) = self.step(source);
            observer.metric(&metric);
            observer.timing(&timing);
            let (step, tokens) = (self.steps, self.tokens);
            if let Metric::Skipped { skipped, .. } = metric
                && self.guard.in_a_row >= self.config.guards.skips.max(1)
            {
                let rolled_back_to = self.roll_back(checkpoints, skipped)?;
                observer.metric(&Metric::RolledBack { step, tokens, rolled_back_to });
            }
            let done = tokens >= self.config.tokens;
            let due = |every: u64| every > 0 && (done || before / every != tokens / every);
            let measured = due(self.config.validate_tokens) && !validation.batches.is_empty();
            if measured {
                let bits = self.validate(validation);
                self.heldout = Some(bits);
                observer.metric(&Metric::HeldOut { step, tokens, heldout_bits_per_byte: bits });
            }
            if due(self.config.sample_tokens) {
                self.ws.fetch(&mut self.model.parameters);
                for sample in observer.samples(self.model, &mut self.ws) {
                    observer.metric(&Metric::Sample { step, tokens, sample });
                }
            }
            stopped = observer.stop() && !done;
            if measured || done || stopped || saved.elapsed() > CHECKPOINT_EVERY {
                let metrics = observer.saving()?;
                self.fetch();
                let state = self.state(source, checkpoints, metrics);
                let (parameters, optimizer) = (&self.model.parameters, &self.optimizer);
                checkpoints.save(&state, measured, parameters, optimizer)?;
                saved = Instant::now();
            }
        }
        if !stopped {
            checkpoints.finish()?;
            if self.config.take_best {
                let parameters = &mut self.model.parameters;
                let best = checkpoints.load_best(parameters, &mut self.optimizer)?;
                if let Some(best) = best {
                    self.ws.weights_changed();
                    (self.loss, self.heldout) = (best.loss, best.heldout_bits_per_byte);
                    taken = Some(best.tokens);
                }
            }
        }
        Ok(Summary {
            steps: self.steps,
            tokens: self.tokens,
            flops: self.flops,
            loss: self.loss,
            heldout_bits_per_byte: self.heldout,
            skipped: self.guard.skipped,
            rollbacks: self.guard.rollbacks,
            taken_from: taken.unwrap_or(self.tokens),
            step_memory: self.ws.bytes(),
            stopped,
        })
    }

    /// Where the run is.
    fn state(&self, source: &dyn Source, checkpoints: &Checkpoints, metrics: Hash) -> State {
        State {
            schema_version: checkpoint::SCHEMA_VERSION,
            key: checkpoints.key(),
            tokens: self.tokens,
            steps: self.steps,
            updates: self.optimizer.steps,
            flops: self.flops,
            loss: self.loss,
            heldout_bits_per_byte: self.heldout,
            guard: self.guard.clone(),
            loader: source.state(),
            metrics,
        }
    }

    /// Takes weights and moments of the last measured checkpoint; the data goes on from where it
    /// is, past what went wrong. Returns the checkpoint's step.
    fn roll_back(&mut self, checkpoints: &Checkpoints, reason: String) -> Result<u64, TrainError> {
        let (step, times) = (self.steps, self.guard.rollbacks);
        let failed = |tried: String| Err(TrainError::Diverged { step, reason, tried });
        if times >= self.config.guards.rollbacks {
            return failed(format!("the run has gone back to an earlier checkpoint {times} times"));
        }
        let parameters = &mut self.model.parameters;
        match checkpoints.load_measured(parameters, &mut self.optimizer)? {
            None => failed("there is no earlier checkpoint to go back to".into()),
            Some(state) => {
                self.guard.roll_back_to(&state.guard);
                self.ws.weights_changed();
                (self.loss, self.heldout) = (state.loss, state.heldout_bits_per_byte);
                Ok(state.steps)
            }
        }
    }
}
