//! Pretraining and fine-tuning as stages: batches in, a model out; with metrics, checkpoints and
//! an end by Ctrl-C that loses nothing.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use compute::Cpu;
use compute::rng::Rng;
use compute::tape::Workspace;
use compute::tensor::DType;
use data::batches::{Batch, Loader, LossOn, Part};
use data::shards::Shards;
use model::config::Config;
use model::init::{Init, initialise};
use model::transformer::Transformer;
use serde_json::{Value, json};
use store::{Hash, StoreError};
use train::checkpoint::{self, State};
use train::{Metric, Observer, Sample, Source, Summary, TrainConfig, Trainer, Validation};

use crate::failure::Failure;
use crate::interrupt;
use crate::progress::{Progress, count};
use crate::samples::Samples;
use crate::stage::{Facts, Run, clear};

/// Time between checkpoints.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(60);

/// Training of one stage.
pub struct Job<'a> {
    /// `pretrain` or `finetune`: the stage, and the folder of its metrics.
    pub name: &'a str,
    /// Its settings.
    pub config: &'a TrainConfig,
    /// Type of the operands of products, and the machine's FLOP/s in it.
    pub products: (DType, f64),
    /// Where batches come from.
    pub loader: Loader,
    /// Held-out text to measure on.
    pub validation: Validation,
    /// What the model writes as it is.
    pub samples: &'a Samples,
}

/// Trains a model; returns the facts of the stage. A checkpoint that an earlier, interrupted call
/// with the same `key` left behind is where it starts.
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
    let Job { name, config, products, mut loader, validation, samples } = job;
    let folder = run.path(name);
    let saved = folder.join("checkpoint.safetensors");
    let mut trainer = Trainer::new(cpu.clone(), model, config.clone(), products.0, products.1);
    let state =
        checkpoint::load(&saved, key, &mut trainer.model.parameters, &mut trainer.optimizer)?;
    let mut watch = Watch::new(name, config.tokens, &folder, samples)?;
    if let Some(state) = state {
        watch.resume(&state)?;
        trainer.tokens = state.tokens;
        loader.restore(state.loader)?;
    } else {
        watch.metrics = Some(metrics_file(&watch.path, 0)?);
    }
    let mut share_seconds = 0.0;
    let start = watch.seconds;
    let summary = loop {
        watch.begin_part();
        let summary = trainer.run(&mut loader, &validation, &mut watch);
        share_seconds += summary.share_of_peak * summary.seconds;
        watch.finish_part(&summary)?;
        let state = State {
            schema_version: checkpoint::SCHEMA_VERSION,
            key,
            tokens: trainer.tokens,
            steps: summary.steps,
            seconds: watch.seconds,
            loader: loader.state().clone(),
        };
        if !summary.stopped {
            break summary;
        }
        checkpoint::save(&saved, &state, &trainer.model.parameters, &trainer.optimizer)?;
        if interrupt::requested() {
            let (done, all) = (count(state.tokens), count(config.tokens));
            return Err(Failure::interrupted(format!(
                "stopped in {name} at {done} of {all} tokens"
            ))
            .hint("Nothing is lost: the same command goes on from here."));
        }
    };
    if !summary.loss.is_finite() {
        let lr = config.optimizer.matrix_lr;
        return Err(Failure::failed(format!("{name} ended with a loss of {}", summary.loss))
            .hint(format!("Lower the learning rates ({name}.optimizer.matrix_lr is {lr}).")));
    }
    let seconds = watch.seconds;
    let speed = config.tokens as f64 / seconds.max(1e-9);
    let share = share_seconds / (seconds - start).max(1e-9);
    watch.close(&summary, speed);
    clear(&saved)?;
    let passes: Vec<Value> = (loader.state().parts.iter())
        .map(|p| json!({"epochs": p.epoch, "windows": p.cursor, "skipped": p.skipped}))
        .collect();
    let facts = json!({
        "tokens": trainer.tokens,
        "steps": summary.steps,
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

/// Watches a run: metrics to a file, progress to a person, and when to save.
struct Watch<'a> {
    path: PathBuf,
    metrics: Option<BufWriter<File>>,
    /// The first error of writing metrics.
    error: Option<std::io::Error>,
    progress: Progress,
    samples: &'a Samples,
    /// Seconds of training before this part of the run.
    seconds: f64,
    part: Instant,
    heldout: Option<f64>,
}

impl<'a> Watch<'a> {
    fn new(
        name: &str,
        tokens: u64,
        folder: &Path,
        samples: &'a Samples,
    ) -> Result<Watch<'a>, Failure> {
        store::create_dir(folder)?;
        Ok(Watch {
            path: folder.join("metrics.jsonl"),
            metrics: None,
            error: None,
            progress: Progress::start(name, tokens),
            samples,
            seconds: 0.0,
            part: Instant::now(),
            heldout: None,
        })
    }

    /// Goes on where a checkpoint was made: what was measured after it will be measured again.
    fn resume(&mut self, state: &State) -> Result<(), Failure> {
        let text = store::read(&self.path).unwrap_or_default();
        let mut keep = 0;
        for line in text.split_inclusive(|b| *b == b'\n') {
            let value: Value = serde_json::from_slice(line).unwrap_or_default();
            if !(line.ends_with(b"\n")
                && value["tokens"].as_u64().is_some_and(|t| t <= state.tokens))
            {
                break;
            }
            keep += line.len();
        }
        self.metrics = Some(metrics_file(&self.path, keep as u64)?);
        self.seconds = state.seconds;
        self.progress.resume_at(state.tokens);
        let done = count(state.tokens);
        self.progress.line(&format!("{:>10} goes on at {done} tokens", "",));
        Ok(())
    }

    fn begin_part(&mut self) {
        self.part = Instant::now();
    }

    fn finish_part(&mut self, summary: &Summary) -> Result<(), Failure> {
        self.seconds += summary.seconds;
        let flushed = match (self.error.take(), &mut self.metrics) {
            (Some(e), _) => Err(e),
            (None, Some(file)) => file.flush().and_then(|()| file.get_ref().sync_all()),
            (None, None) => Ok(()),
        };
        Ok(flushed.map_err(StoreError::io("write", &self.path))?)
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
        let mut metric = metric.clone();
        if let Metric::Step(m) = &mut metric {
            m.seconds += self.seconds;
            let heldout = self.heldout.map(|b| format!(", held-out {b:.3}")).unwrap_or_default();
            let note = format!("loss {:.3}{heldout}, {:.0} tokens/s", m.loss, m.tokens_per_s);
            self.progress.set(m.tokens, &note);
        }
        if let Metric::HeldOut { heldout_bits_per_byte, .. } = &metric {
            self.heldout = Some(*heldout_bits_per_byte);
        }
        if let (Some(file), None) = (&mut self.metrics, &self.error) {
            let mut write = || -> std::io::Result<()> {
                serde_json::to_writer(&mut *file, &metric)?;
                file.write_all(b"\n")
            };
            self.error = write().err();
        }
    }

    fn samples(&mut self, model: &Transformer, ws: &mut Workspace) -> Vec<Sample> {
        self.samples.write(model, ws)
    }

    fn stop(&mut self) -> bool {
        interrupt::requested() || self.error.is_some() || self.part.elapsed() > CHECKPOINT_EVERY
    }
}

/// The metrics file, cut to its first `keep` bytes.
fn metrics_file(path: &Path, keep: u64) -> Result<BufWriter<File>, Failure> {
    let open = || -> std::io::Result<File> {
        use std::io::Seek;
        let mut file = File::options().create(true).write(true).truncate(false).open(path)?;
        file.set_len(keep)?;
        file.seek(std::io::SeekFrom::End(0))?;
        Ok(file)
    };
    Ok(BufWriter::new(open().map_err(StoreError::io("write", path))?))
}

/// A part of a mixture.
pub fn part(shards: &Arc<Shards>, weight: f64, loss: LossOn) -> Part {
    Part { shards: Arc::clone(shards), weight, loss }
}

/// Held-out text in batches.
pub fn validation(shards: &Shards, context: usize, rows: usize) -> Validation {
    let totals = shards.totals();
    // The end of each document but the last counts as a newline.
    let bytes = totals.text_bytes + totals.documents - 1;
    Validation { batches: data::batches::once(shards, context, rows, LossOn::All), bytes }
}

/// Tokens a second that training does here, measured on a few steps of random tokens.
pub fn measure_speed(
    cpu: &Arc<Cpu>,
    config: &Config,
    init: &Init,
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
    let mut model = Transformer::new(config.clone(), initialise(config, init, 0));
    let length = config.max_position_embeddings.min(128);
    let mut source = Random(Rng::new(0), length, config.vocab_size as u64);
    let (dtype, peak) = products;
    let mut trainer = Trainer::new(cpu.clone(), &mut model, settings.clone(), dtype, peak);
    let mut speeds: Vec<f64> = (0..5).map(|_| trainer.step(&mut source).tokens_per_s).collect();
    speeds.remove(0);
    speeds.sort_by(f64::total_cmp);
    speeds[speeds.len() / 2]
}
