//! Training on a card, which is emulated here: weights, gradients and moments stay on it, a run learns what it learns
//! on the CPU, and checkpoints are of both.

#![allow(clippy::unwrap_used)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use compute::rng::Rng;
use compute::tensor::{DType, Device};
use compute::{Cpu, IGNORE, Span};
use data::batches::{Batch, LoaderError, LoaderState, PartState};
use model::config::{Config, Sizes};
use model::init::{Init, initialise};
use model::transformer::Transformer;
use train::checkpoint::Checkpoints;
use train::optimizer::Moments;
use train::{Metric, Observer, Sample, Source, Summary, TrainConfig, Trainer, Validation};

const LEN: usize = 16;
const VOCAB: u64 = 23;
const STEPS: u64 = 10;
const ROWS: usize = 64;

/// Batches of counting: each token is one more than that before it. Some batches have no target.
#[derive(Default)]
struct Counting {
    next: u64,
    masked: std::ops::Range<u64>,
}

impl Source for Counting {
    fn next(&mut self, rows: usize) -> Batch {
        let mut rng = Rng::new(3).numbered(self.next);
        let mut batch = Batch::default();
        let masked = self.masked.contains(&self.next);
        for i in 0..rows / LEN {
            batch.spans.push(Span { start: i * LEN, len: LEN });
            let first = rng.below(VOCAB);
            for j in 0..LEN as u64 {
                batch.tokens.push(((first + j) % VOCAB) as u32);
                let target = ((first + j + 1) % VOCAB) as u32;
                batch.targets.push(if masked { IGNORE } else { target });
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

/// Keeps losses and lengths of gradients; reads the weights where samples are due; stops after some steps.
#[derive(Default)]
struct Watch {
    losses: Vec<[f64; 2]>,
    heldout: Vec<f64>,
    back: Vec<u64>,
    samples: Vec<f32>,
    stop_at: Option<u64>,
    steps: u64,
}

impl Observer for Watch {
    fn metric(&mut self, metric: &Metric) {
        match metric {
            Metric::Step(m) => self.losses.push([m.loss, m.grad_norm]),
            Metric::HeldOut { heldout_bits_per_byte: bits, .. } => self.heldout.push(*bits),
            Metric::RolledBack { rolled_back_to, .. } => self.back.push(*rolled_back_to),
            _ => {}
        }
    }

    fn timing(&mut self, timing: &train::Timing) {
        self.steps = timing.step;
    }

    fn samples(&mut self, model: &Transformer, _: &mut compute::tape::Workspace) -> Vec<Sample> {
        self.samples = weights(model);
        Vec::new()
    }

    fn stop(&mut self) -> bool {
        self.stop_at == Some(self.steps)
    }
}

fn weights(model: &Transformer) -> Vec<f32> {
    model.parameters.iter().flat_map(|p| p.value.f32().to_vec()).collect()
}

fn start() -> Transformer {
    let sizes = Sizes {
        vocab: VOCAB as usize,
        width: 16,
        ffn: 24,
        layers: 1,
        heads: 2,
        kv_heads: 1,
        head_dim: 8,
        context: LEN,
    };
    let config = Config { rope_theta: 1e4, tie_word_embeddings: true, ..Config::qwen3(sizes) };
    let parameters = initialise(&config, &Init::default(), 5);
    Transformer::new(config, parameters)
}

/// Two passes a step.
fn settings(muon: bool) -> TrainConfig {
    let rows = 2 * ROWS;
    let mut settings = TrainConfig {
        tokens: STEPS * rows as u64,
        batch_tokens: rows,
        micro_tokens: ROWS,
        validate_tokens: 5 * rows as u64,
        sample_tokens: 0,
        ..TrainConfig::default()
    };
    settings.optimizer.muon = muon;
    settings.optimizer.weight_decay = 0.1;
    settings
}

fn cpu() -> Arc<Cpu> {
    Arc::new(Cpu::new(1))
}

fn card() -> Arc<Cpu> {
    Arc::new(Cpu { card: Some(cuda::Gpu::emulated()), ..Cpu::new(1) })
}

fn validation() -> Validation {
    let batch = Counting { next: 1000, ..Counting::default() }.next(ROWS);
    Validation { batches: vec![batch], bytes: ROWS as u64 }
}

/// What a run came to: its summary, the weights, and what was watched.
type Run = (Summary, Vec<f32>, Watch);

/// Trains, going on from whatever is in the folder.
fn run(
    on: Arc<Cpu>,
    folder: &Path,
    settings: &TrainConfig,
    mut source: Counting,
    stop_at: Option<u64>,
) -> Run {
    let mut model = start();
    let mut trainer = Trainer::new(on, &mut model, settings.clone(), DType::Bf16, 1e9);
    let mut checkpoints = Checkpoints::open(folder, store::hash_bytes(b"run"), 2).unwrap();
    trainer.resume(&mut source, &mut checkpoints).unwrap();
    let mut watch = Watch { stop_at, ..Watch::default() };
    let summary = trainer.run(&mut source, &validation(), &mut watch, &mut checkpoints).unwrap();
    let weights = weights(&model);
    (summary, weights, watch)
}

/// A whole run in a folder of its own, stopped after some steps; the last checkpoint's file, too.
fn whole(settings: &TrainConfig, stops: &[(Arc<Cpu>, Option<u64>)]) -> (Run, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let mut last = None;
    let mut losses = Vec::new();
    for (on, stop_at) in stops {
        let mut part = run(on.clone(), dir.path(), settings, Counting::default(), *stop_at);
        losses.append(&mut part.2.losses);
        last = Some(part);
    }
    let mut last = last.unwrap();
    last.2.losses = losses;
    let file = format!("step-{STEPS:08}.safetensors");
    (last, std::fs::read(dir.path().join(file)).unwrap())
}

#[test]
fn a_run_learns_what_it_learns_on_the_cpu() {
    for muon in [false, true] {
        let settings = settings(muon);
        let ((_, _, here), _) = whole(&settings, &[(cpu(), None)]);
        let ((summary, _, there), _) = whole(&settings, &[(card(), None)]);
        assert_eq!((summary.steps, here.losses.len(), there.losses.len()), (STEPS, 10, 10));
        let mut apart = [0.0f64; 2];
        for ([loss, norm], [loss2, norm2]) in here.losses.iter().zip(&there.losses) {
            apart[0] = apart[0].max((loss - loss2).abs());
            apart[1] = apart[1].max((norm - norm2).abs() / norm);
        }
        let learned = here.losses[0][0] - here.losses[9][0];
        println!("muon {muon}: apart {apart:?}, learned {learned}");
        assert!(apart[0] < 2e-2 && apart[1] < 0.1, "muon {muon}: {apart:?}");
        assert!(learned > 0.3, "muon {muon}: {:?}", here.losses);
        let off = here.heldout.iter().zip(&there.heldout).map(|(a, b)| (a - b).abs());
        assert!(off.fold(0.0, f64::max) < 3e-2, "{:?} {:?}", here.heldout, there.heldout);
    }
}

#[test]
fn a_run_is_the_same_however_often_it_stops() {
    for muon in [false, true] {
        let settings = settings(muon);
        let ((_, weights, watch), file) = whole(&settings, &[(card(), None)]);
        let again = whole(&settings, &[(card(), None)]);
        assert!(again.0.1 == weights && again.0.2.losses == watch.losses && again.1 == file);
        let stops = [(card(), Some(3)), (card(), Some(7)), (card(), None)];
        let stopped = whole(&settings, &stops);
        assert!(stopped.0.1 == weights && stopped.0.2.losses == watch.losses, "muon {muon}");
        assert!(stopped.1 == file, "muon {muon}: other bytes of a checkpoint");
    }
}

#[test]
fn a_checkpoint_of_the_card_goes_on_on_the_cpu_and_back() {
    for muon in [false, true] {
        let settings = settings(muon);
        let ((_, _, here), _) = whole(&settings, &[(cpu(), None)]);
        let stops = [(card(), Some(4)), (cpu(), Some(7)), (card(), None)];
        let ((summary, _, watch), _) = whole(&settings, &stops);
        assert_eq!(summary.steps, STEPS);
        let apart = here.losses.iter().zip(&watch.losses).map(|(a, b)| (a[0] - b[0]).abs());
        let apart = apart.fold(0.0, f64::max);
        assert!(watch.losses.len() == 10 && apart < 2e-2, "muon {muon}: {apart}");
    }
}

#[test]
fn what_is_out_of_date_is_not_read() {
    let mut model = start();
    let before = weights(&model);
    let mut trainer = Trainer::new(card(), &mut model, settings(true), DType::Bf16, 1e9);
    // In the first steps some gradients are nothing: layers start by adding nothing.
    let mut source = Counting::default();
    (0..3).for_each(|_| drop(trainer.step(&mut source)));
    let away = |trainer: &Trainer<'_>| {
        trainer.model.parameters.iter().all(|p| p.value.device() == Device::Card)
    };
    assert!(away(&trainer));
    let stale = |f: &dyn Fn()| {
        let message = catch_unwind(AssertUnwindSafe(f)).unwrap_err();
        let text = message.downcast_ref::<&str>().map(ToString::to_string);
        text.or_else(|| message.downcast_ref::<String>().cloned()).unwrap()
    };
    assert!(stale(&|| drop(weights(trainer.model))).contains("Workspace::fetch"));
    assert!(stale(&|| _ = trainer.optimizer.moments()).contains("Optimizer::fetch"));
    // Measurements are on the card's own.
    let bits = trainer.validate(&validation());
    assert!(away(&trainer));
    trainer.fetch();
    let after = weights(trainer.model);
    assert!(after != before);
    assert_eq!(trainer.validate(&validation()), bits);
    for (p, moments) in trainer.model.parameters.iter().zip(trainer.optimizer.moments()) {
        let some = match moments {
            Moments::Frozen => false,
            Moments::Muon(m) => m.iter().any(|x| *x != 0.0),
            Moments::AdamW(m, v) => [m, v].iter().all(|m| m.iter().any(|x| *x != 0.0)),
        };
        assert!(some, "moments of {}", p.name);
    }
    // Another workspace has what was fetched.
    let mut fresh = Trainer::new(card(), &mut *trainer.model, settings(true), DType::Bf16, 1e9);
    assert_eq!(fresh.validate(&validation()), bits);
}

#[test]
fn what_goes_wrong_goes_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = settings(true);
    settings.guards.skips = 2;
    settings.sample_tokens = settings.validate_tokens;
    // Two batches a step: those of steps 7 and 8, after the measurement at 5.
    let source = Counting { next: 0, masked: 12..16 };
    let (summary, weights, watch) = run(card(), dir.path(), &settings, source, None);
    assert_eq!((summary.steps, summary.skipped, summary.rollbacks), (STEPS, 2, 1));
    assert_eq!(watch.back, [5]);
    assert!(watch.samples == weights, "samples of the last step");
    // Eight steps that were learned from, of which one was forgotten: as on the CPU.
    let dir = tempfile::tempdir().unwrap();
    let source = Counting { next: 0, masked: 12..16 };
    let (_, _, here) = run(cpu(), dir.path(), &settings, source, None);
    let apart = here.losses.iter().zip(&watch.losses).map(|(a, b)| (a[0] - b[0]).abs());
    assert!(here.losses.len() == 8 && apart.fold(0.0, f64::max) < 2e-2);
}
