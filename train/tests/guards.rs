//! Runs that go wrong: steps that are not learned from, going back, giving up; and going on from a
//! checkpoint in the middle of it all, to the same bytes.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;

use compute::rng::Rng;
use compute::tensor::DType;
use compute::{Cpu, IGNORE, Span};
use data::batches::{Batch, LoaderError, LoaderState, PartState};
use model::config::{Config, Sizes};
use model::init::{Init, initialise};
use model::transformer::Transformer;
use train::checkpoint::Checkpoints;
use train::{Metric, Observer, Source, Summary, TrainConfig, TrainError, Trainer, Validation};

const LEN: usize = 16;
const VOCAB: u64 = 23;

/// Batches of counting: each token is one more than that before it. Some batches are different.
struct Counting {
    next: u64,
    /// Batches without a target.
    masked: Vec<u64>,
    /// Batches of noise.
    noise: std::ops::Range<u64>,
}

impl Source for Counting {
    fn next(&mut self, rows: usize) -> Batch {
        let mut rng = Rng::new(3).numbered(self.next);
        let mut batch = Batch::default();
        for i in 0..rows / LEN {
            batch.spans.push(Span { start: i * LEN, len: LEN });
            let first = rng.below(VOCAB);
            for j in 0..LEN as u64 {
                batch.tokens.push(((first + j) % VOCAB) as u32);
                let target =
                    match (self.masked.contains(&self.next), self.noise.contains(&self.next)) {
                        (true, _) => IGNORE,
                        // The token that the model is surest not to follow.
                        (_, true) => ((first + j + 11) % VOCAB) as u32,
                        _ => ((first + j + 1) % VOCAB) as u32,
                    };
                batch.targets.push(target);
            }
        }
        self.next += 1;
        batch
    }

    fn state(&self) -> LoaderState {
        let part = PartState { cursor: self.next, ..PartState::default() };
        LoaderState { parts: vec![part], ahead: Vec::new() }
    }

    fn restore(&mut self, state: LoaderState) -> Result<(), LoaderError> {
        self.next = state.parts[0].cursor;
        Ok(())
    }
}

/// Keeps all metrics as lines; stops after some steps.
#[derive(Default)]
struct Watch {
    lines: Vec<String>,
    stop_at: Option<u64>,
    steps: u64,
}

impl Observer for Watch {
    fn metric(&mut self, metric: &Metric) {
        self.lines.push(serde_json::to_string(metric).unwrap());
    }

    fn timing(&mut self, timing: &train::Timing) {
        self.steps = timing.step;
    }

    fn stop(&mut self) -> bool {
        self.stop_at == Some(self.steps)
    }
}

fn config() -> Config {
    Config {
        rope_theta: 1e4,
        tie_word_embeddings: true,
        ..Config::qwen3(Sizes {
            vocab: VOCAB as usize,
            width: 16,
            ffn: 24,
            layers: 1,
            heads: 2,
            kv_heads: 1,
            head_dim: 8,
            context: LEN,
        })
    }
}

fn settings() -> TrainConfig {
    TrainConfig {
        tokens: 100 * 128,
        batch_tokens: 128,
        micro_tokens: 64,
        validate_tokens: 20 * 128,
        sample_tokens: 0,
        ..TrainConfig::default()
    }
}

/// Trains, going on from whatever is in the folder.
fn run(
    folder: &Path,
    settings: &TrainConfig,
    source: &mut Counting,
    watch: &mut Watch,
    threads: usize,
) -> Result<(Summary, Vec<f32>), TrainError> {
    let config = config();
    let mut model = Transformer::new(config.clone(), initialise(&config, &Init::default(), 5));
    let cpu = Arc::new(Cpu::new(threads));
    let mut trainer = Trainer::new(cpu, &mut model, settings.clone(), DType::F32, 1e9);
    let mut checkpoints = Checkpoints::open(folder, store::hash_bytes(b"run"), 2).unwrap();
    trainer.resume(source, &mut checkpoints)?;
    let batch = Counting { next: 1000, masked: vec![], noise: 0..0 }.next(64);
    let validation = Validation { batches: vec![batch], bytes: 64 };
    let summary = trainer.run(source, &validation, watch, &mut checkpoints)?;
    let weights = model.parameters.iter().flat_map(|p| p.value.f32().to_vec()).collect();
    Ok((summary, weights))
}

fn source(masked: Vec<u64>, noise: std::ops::Range<u64>) -> Counting {
    Counting { next: 0, masked, noise }
}

#[test]
fn a_step_without_a_target_is_skipped_and_told() {
    let dir = tempfile::tempdir().unwrap();
    let mut watch = Watch::default();
    // Two batches a step: those of step 4.
    let mut source = source(vec![6, 7, 9], 0..0);
    let (summary, _) = run(dir.path(), &settings(), &mut source, &mut watch, 1).unwrap();
    assert_eq!((summary.steps, summary.skipped, summary.rollbacks), (100, 1, 0));
    let told: Vec<&String> = watch.lines.iter().filter(|l| l.contains("skipped")).collect();
    assert_eq!(told, [r#"{"step":4,"tokens":512,"skipped":"no token of the batch is a target"}"#]);
    assert!(summary.heldout_bits_per_byte.unwrap() < 3.0, "it learned: {summary:?}");
}

#[test]
fn what_goes_wrong_for_long_goes_back_and_is_the_same_after_a_stop() {
    let mut settings = settings();
    // So early in a run the usual is still wide.
    settings.guards.spike = 4.0;
    let noise = 2 * 64..2 * 74;
    let once = |stops: &[u64], threads: usize| {
        let dir = tempfile::tempdir().unwrap();
        let mut lines = Vec::new();
        for stop_at in stops.iter().copied().map(Some).chain([None]) {
            let mut watch = Watch { stop_at, ..Watch::default() };
            let mut source = source(vec![], noise.clone());
            let (summary, weights) =
                run(dir.path(), &settings, &mut source, &mut watch, threads).unwrap();
            assert_eq!(summary.stopped, stop_at.is_some());
            lines.extend(watch.lines);
            if !summary.stopped {
                let manifest = std::fs::read(dir.path().join("manifest.json")).unwrap();
                return (lines, weights, manifest, summary);
            }
        }
        unreachable!()
    };
    let (lines, weights, manifest, summary) = once(&[], 1);
    assert_eq!((summary.skipped, summary.rollbacks), (10, 1), "{lines:#?}");
    let back: Vec<&String> = lines.iter().filter(|l| l.contains("rolled_back_to")).collect();
    assert_eq!(back, [r#"{"step":72,"tokens":9216,"rolled_back_to":60}"#]);
    for stops in [&[10, 65][..], &[72], &[71, 73, 90]] {
        let (l, w, m, _) = once(stops, 2);
        assert!((&lines, &weights, &manifest) == (&l, &w, &m), "stops at {stops:?}");
    }
}

#[test]
fn a_run_that_goes_wrong_again_and_again_ends() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = settings();
    settings.guards.spike = 0.0;
    // Nothing that follows can be a number.
    settings.optimizer.matrix_lr = f64::from(f32::MAX);
    let mut watch = Watch::default();
    let error = run(dir.path(), &settings, &mut source(vec![], 0..0), &mut watch, 1).unwrap_err();
    let TrainError::Diverged { reason, .. } = &error else { panic!("{error}") };
    assert!(reason.contains("NaN") || reason.contains("inf"), "{error}");
    assert!(error.to_string().contains("no earlier checkpoint"), "{error}");
}
