//! Pretraining and fine-tuning as stages: batches in, a model out; with metrics, checkpoints and
//! an end by Ctrl-C that loses nothing.

use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use compute::Cpu;
use compute::rng::Rng;
use compute::tape::Workspace;
use compute::tensor::DType;
use data::batches::{Batch, Loader, LossOn, Part};
use data::shards::Shards;
use model::transformer::Transformer;
use serde::Serialize;
use serde_json::{Value, json};
use store::hash::Hasher;
use store::{Hash, StoreError};
use train::checkpoint::Checkpoints;
use train::{
    Metric, Observer, Sample, Source, Summary, Timing, TrainConfig, TrainError, Trainer, Validation,
};

use crate::failure::Failure;
use crate::interrupt;
use crate::progress::{Progress, count};
use crate::samples::Samples;
use crate::stage::{Facts, Run};

/// Training of one stage.
pub struct Job<'a> {
    /// `pretrain` or `finetune`: the stage, and the folder of its metrics.
    pub name: &'a str,
    /// Its settings.
    pub config: &'a TrainConfig,
    /// Type of the operands of products, and the machine's FLOP/s in it.
    pub products: (DType, f64),
    /// Whether layers are computed once more on the way back.
    pub recompute: bool,
    /// Share of the inputs of adapters that is dropped, and its seed.
    pub dropout: (f32, u64),
    /// Whether products with quantised weights are in f32.
    pub exact: bool,
    /// Where batches come from.
    pub loader: Loader,
    /// Held-out text to measure on.
    pub validation: Validation,
    /// What the model writes as it is.
    pub samples: &'a Samples,
}

/// Trains a model; returns the facts of the stage. Checkpoints that an earlier call with the same
/// `key` left behind are where it starts.
///
/// # Errors
/// [`Failure::interrupted`] after Ctrl-C, with a checkpoint; what can't be written.
pub fn train(
    run: &Run,
    key: Hash,
    cpu: &Arc<Cpu>,
    model: &mut Transformer,
    job: Job<'_>,
) -> Result<Facts, Failure> {
    crate::fetched::fits(cpu, model.config())?;
    let Job { name, config, products, mut loader, validation, samples, .. } = job;
    let _graceful = interrupt::graceful();
    let folder = run.path(name);
    store::create_dir(&folder)?;
    let mut trainer = Trainer::new(cpu.clone(), model, config.clone(), products.0, products.1);
    trainer.set_recompute(job.recompute);
    trainer.set_learn_rounded(!job.exact);
    trainer.set_dropout(job.dropout.0, job.dropout.1);
    let saved = folder.join("checkpoints");
    let mut checkpoints = Checkpoints::open(&saved, key, config.keep_checkpoints)
        .map_err(|e| unusable(e.into(), &saved))?;
    let resumed = trainer.resume(&mut loader, &mut checkpoints).map_err(|e| unusable(e, &saved))?;
    let mut watch = Watch::new(name, config.tokens, &folder, samples, trainer.tokens, resumed)?;
    for note in &checkpoints.notes {
        watch.progress.line(&format!("   note: {note}"));
    }
    if resumed.is_some() {
        watch.progress.line(&format!("{:>10} goes on at {} tokens", "", count(trainer.tokens)));
    }
    let summary = trainer.run(&mut loader, &validation, &mut watch, &mut checkpoints);
    let summary = summary.map_err(|e| match e {
        TrainError::Diverged { .. } => Failure::failed(format!("{name}: {e}")).hint(format!(
            "Lower the learning rates ({name}.optimizer.{} is {}).",
            if config.optimizer.muon { "matrix_lr" } else { "lr" },
            config.optimizer.inner_lr()
        )),
        e => e.into(),
    })?;
    watch.saving()?;
    if summary.stopped {
        let (done, all) = (count(summary.tokens), count(config.tokens));
        return Err(Failure::interrupted(format!("stopped in {name} at {done} of {all} tokens"))
            .hint("Nothing is lost: the same command goes on from here."));
    }
    if summary.taken_from < summary.tokens {
        watch.progress.line(&format!(
            "   the model is that of {} tokens, the best on held-out text",
            count(summary.taken_from)
        ));
    }
    let [seconds, share] = watch.timing.totals()?;
    let speed = summary.tokens as f64 / seconds.max(1e-9);
    watch.close(&summary, speed);
    let passes: Vec<Value> = (loader.passes().iter().zip(&loader.state().parts))
        .map(|((name, passes), p)| json!({"of": name, "passes": passes, "skipped": p.skipped}))
        .collect();
    for (name, passes) in loader.passes() {
        // Muennighoff et al. (2023): up to four passes are nearly as good as new text.
        let much = if passes > 4.0 { ": more text would teach more" } else { "" };
        eprintln!("{:>10} {passes:.2} times through {name}{much}", "");
    }
    let facts = json!({
        "tokens": summary.tokens,
        "steps": summary.steps,
        "skipped_steps": summary.skipped,
        "rollbacks": summary.rollbacks,
        "flops": summary.flops,
        "model_of_tokens": summary.taken_from,
        "training_seconds": seconds,
        "tokens_per_s": speed,
        "share_of_peak": share,
        "loss": summary.loss,
        "heldout_bits_per_byte": summary.heldout_bits_per_byte,
        "step_memory_bytes": summary.step_memory,
        "data": passes,
    });
    Ok(facts.as_object().cloned().unwrap_or_default())
}

/// Checkpoints that can't be used: what to do.
fn unusable(error: TrainError, folder: &Path) -> Failure {
    let remedy = format!("Remove {} to do this stage from its start.", folder.display());
    match error {
        e @ TrainError::Store(_) => e.into(),
        e => Failure::from(e).hint(remedy),
    }
}

/// Watches a run: metrics and times to files, progress to a person, and when to save.
struct Watch<'a> {
    metrics: Lines,
    timing: Lines,
    progress: Progress,
    samples: &'a Samples,
    /// The last score on held-out text.
    heldout: Option<f64>,
    /// Loss of the last step.
    loss: f64,
}

impl<'a> Watch<'a> {
    fn new(
        name: &str,
        tokens: u64,
        folder: &Path,
        samples: &'a Samples,
        done: u64,
        measured: Option<Hash>,
    ) -> Result<Watch<'a>, Failure> {
        let mut progress = Progress::start(name, tokens);
        progress.resume_at(done);
        Ok(Watch {
            metrics: Lines::open(&folder.join("metrics.jsonl"), done, measured)?,
            timing: Lines::open(&folder.join("timing.jsonl"), done, None)?,
            progress,
            samples,
            heldout: None,
            loss: f64::NAN,
        })
    }

    fn close(self, summary: &Summary, speed: f64) {
        let heldout =
            summary.heldout_bits_per_byte.map(|b| format!(", held-out {b:.3} bits per byte"));
        self.progress.finish(&format!(
            "{} tokens, {speed:.0} tokens/s, loss {:.3}{}",
            count(summary.tokens),
            summary.loss,
            heldout.unwrap_or_default()
        ));
    }
}

impl Observer for Watch<'_> {
    fn metric(&mut self, metric: &Metric) {
        match metric {
            Metric::Step(m) => self.loss = m.loss,
            Metric::HeldOut { heldout_bits_per_byte, .. } => {
                self.heldout = Some(*heldout_bits_per_byte);
            }
            Metric::Skipped { step, skipped, .. } => {
                self.progress.line(&format!("   step {step} is not learned from: {skipped}"));
            }
            Metric::RolledBack { step, rolled_back_to, .. } => self.progress.line(&format!(
                "   step {step}: back to the weights of step {rolled_back_to}, on with new data"
            )),
            Metric::Sample { .. } => {}
        }
        self.metrics.push(metric);
    }

    fn timing(&mut self, timing: &Timing) {
        let heldout = self.heldout.map(|b| format!(", held-out {b:.3}")).unwrap_or_default();
        let note = format!("loss {:.3}{heldout}, {:.0} tokens/s", self.loss, timing.tokens_per_s);
        self.progress.set(timing.tokens, &note);
        self.timing.push(timing);
    }

    fn samples(&mut self, model: &Transformer, ws: &mut Workspace) -> Vec<Sample> {
        self.samples.write(model, ws)
    }

    fn saving(&mut self) -> Result<Hash, StoreError> {
        self.timing.sync()?;
        self.metrics.sync()
    }

    fn stop(&mut self) -> bool {
        interrupt::requested()
    }
}

/// A file of JSON lines, each of some number of `tokens`, that grows with a run.
struct Lines {
    path: PathBuf,
    file: BufWriter<File>,
    /// Of all lines.
    hasher: Hasher,
    /// The first error of writing.
    error: Option<std::io::Error>,
}

impl Lines {
    /// Opens the file, or makes it, and cuts off what came after `tokens`: what a run measured
    /// after the checkpoint that it goes on from will be measured again. `hash`: what the lines up
    /// to there have to be.
    fn open(path: &Path, tokens: u64, hash: Option<Hash>) -> Result<Lines, Failure> {
        let text = if path.exists() { store::read(path)? } else { Vec::new() };
        let mut keep = 0;
        for line in text.split_inclusive(|b| *b == b'\n').take_while(|_| tokens > 0) {
            let value: Value = serde_json::from_slice(line).unwrap_or_default();
            let earlier = value["tokens"].as_u64().is_some_and(|t| t <= tokens);
            if !(line.ends_with(b"\n") && earlier) {
                break;
            }
            keep += line.len();
        }
        let mut hasher = Hasher::default();
        hasher.update(&text[..keep]);
        if hash.is_some_and(|hash| hash != hasher.finish()) {
            let (file, folder) = (path.display(), path.parent().unwrap_or(path).display());
            let why = format!("{file} does not hold what was measured up to the last checkpoint");
            return Err(Failure::invalid(why).hint(format!(
                "Put it back as it was, or remove {folder} to do this stage from its start."
            )));
        }
        let open = || -> std::io::Result<File> {
            let mut file = File::options().create(true).write(true).truncate(false).open(path)?;
            file.set_len(keep as u64)?;
            file.seek(SeekFrom::End(0))?;
            Ok(file)
        };
        let file = BufWriter::new(open().map_err(StoreError::io("write", path))?);
        Ok(Lines { path: path.to_path_buf(), file, hasher, error: None })
    }

    /// Adds a line. What can't be written is told by the next [`Lines::sync`].
    fn push(&mut self, line: &impl Serialize) {
        let mut write = || -> std::io::Result<()> {
            let mut line = serde_json::to_vec(line)?;
            line.push(b'\n');
            self.hasher.update(&line);
            self.file.write_all(&line)
        };
        let result = write();
        self.error = self.error.take().or(result.err());
        store::crash::point();
    }

    /// Makes all lines last; returns their hash.
    fn sync(&mut self) -> Result<Hash, StoreError> {
        store::crash::point();
        let synced = match self.error.take() {
            Some(e) => Err(e),
            None => self.file.flush().and_then(|()| self.file.get_ref().sync_all()),
        };
        synced.map_err(StoreError::io("write", &self.path))?;
        Ok(self.hasher.finish())
    }

    /// Of a file of times: seconds in steps, and their mean share of the peak.
    fn totals(&self) -> Result<[f64; 2], StoreError> {
        let (mut seconds, mut shares) = (0.0, 0.0);
        for line in store::read(&self.path)?.split(|b| *b == b'\n') {
            let Ok(t) = serde_json::from_slice::<Timing>(line) else { continue };
            seconds += t.seconds;
            shares += t.seconds * t.share_of_peak;
        }
        Ok([seconds, shares / seconds.max(1e-9)])
    }
}

/// A part of a mixture.
pub fn part(shards: &Arc<Shards>, weight: f64, loss: LossOn) -> Part {
    Part { shards: Arc::clone(shards), weight, loss }
}

/// Held-out text in batches.
pub fn validation(shards: &Shards, context: usize, rows: usize, loss: LossOn) -> Validation {
    let totals = shards.totals();
    // The end of each document but the last counts as a newline.
    let ends = if loss == LossOn::All { totals.documents - 1 } else { 0 };
    let bytes = totals.text_bytes + ends;
    Validation { batches: data::batches::once(shards, context, rows, loss), bytes }
}

/// Tokens a second that training does here, measured on a few steps of random tokens.
pub fn measure_speed(
    cpu: &Arc<Cpu>,
    model: &mut Transformer,
    settings: &TrainConfig,
    products: (DType, f64),
) -> f64 {
    /// Sequences of a typical length.
    struct Random(Rng, usize, u64);
    impl Source for Random {
        fn next(&mut self, rows: usize) -> Batch {
            let (len, vocab) = (self.1, self.2);
            let mut ids = || (0..rows / len * len).map(|_| self.0.below(vocab) as u32).collect();
            let (tokens, targets) = (ids(), ids());
            let span = |i| compute::Span { start: i * len, len };
            Batch { tokens, targets, spans: (0..rows / len).map(span).collect() }
        }
    }
    let config = model.config();
    let length = config.max_position_embeddings.min(128);
    let mut source = Random(Rng::new(0), length, config.vocab_size as u64);
    let (dtype, peak) = products;
    let mut trainer = Trainer::new(cpu.clone(), model, settings.clone(), dtype, peak);
    let mut speeds: Vec<f64> = (0..5).map(|_| trainer.step(&mut source).1.tokens_per_s).collect();
    speeds.remove(0);
    speeds.sort_by(f64::total_cmp);
    speeds[speeds.len() / 2]
}
