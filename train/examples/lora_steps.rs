//! Steps of training adapters on given rows of tokens, for `bench/tune/bench.py`: `lora_steps JOB.json`. Prints the
//! loss of each step, the tokens a second and the peak of memory, as JSON.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use compute::tensor::DType;
use compute::{Cpu, Span};
use data::batches::Batch;
use model::adapter::{Adapter, Shape, begin};
use model::directory::load_keeping;
use serde::Deserialize;
use train::optimizer::OptimizerConfig;
use train::schedule::Schedule;
use train::{Metric, Source, TrainConfig, Trainer};

#[derive(Deserialize)]
struct Job {
    model: PathBuf,
    /// An adapter to start from; its file of weights is told.
    start: PathBuf,
    threads: usize,
    rank: usize,
    alpha: f32,
    modules: Vec<String>,
    lr: f64,
    betas: [f64; 2],
    eps: f64,
    steps: usize,
    /// Batches of sequences of one length.
    rows: Vec<Vec<Vec<u32>>>,
    micro_tokens: usize,
    recompute: bool,
    exact: bool,
}

/// All batches in order, then again; a batch in pieces of `micro_tokens`.
struct Rows {
    sequences: Vec<Vec<u32>>,
    next: usize,
}

impl Source for Rows {
    fn next(&mut self, rows: usize) -> Batch {
        let mut batch = Batch::default();
        while batch.tokens.len() < rows {
            let tokens = &self.sequences[self.next % self.sequences.len()];
            // The last token is read by nobody, as it is there where nothing is to follow it.
            let len = tokens.len() - 1;
            batch.spans.push(Span { start: batch.tokens.len(), len });
            batch.tokens.extend(&tokens[..len]);
            batch.targets.extend(&tokens[1..]);
            self.next += 1;
            if batch.tokens.len() + len > rows {
                break;
            }
        }
        batch
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("usage: lora_steps JOB.json")?;
    let job: Job = serde_json::from_slice(&std::fs::read(path)?)?;
    let cpu = Arc::new(Cpu::new(job.threads));
    let mut model = load_keeping(&job.model, Some(&cpu))?.transformer;
    let start = job.start.parent().ok_or("start: a file in a folder")?;
    Adapter::read(start, model.config())?.apply(&mut model);
    begin(&mut model, Shape { rank: job.rank, alpha: job.alpha, modules: &job.modules }, 0)?;
    let batch: usize = job.rows[0].iter().map(Vec::len).sum();
    let config = TrainConfig {
        tokens: u64::MAX,
        batch_tokens: batch,
        micro_tokens: job.micro_tokens,
        optimizer: OptimizerConfig {
            muon: false,
            lr: job.lr,
            betas: job.betas,
            eps: job.eps,
            weight_decay: 0.0,
            clip: 1.0,
            ..OptimizerConfig::default()
        },
        schedule: Schedule::Wsd { warmup: 0.0, decay: 0.0, end: 1.0 },
        ..TrainConfig::default()
    };
    let mut source = Rows { sequences: job.rows.concat(), next: 0 };
    let mut trainer = Trainer::new(cpu, &mut model, config, DType::F32, 1.0);
    trainer.set_recompute(job.recompute);
    trainer.set_learn_rounded(!job.exact);
    let (mut losses, mut seconds) = (Vec::new(), Vec::new());
    for _ in 0..job.steps {
        let began = Instant::now();
        match trainer.step(&mut source).0 {
            Metric::Step(step) => losses.push(step.loss),
            other => return Err(format!("{other:?}").into()),
        }
        seconds.push(began.elapsed().as_secs_f64());
    }
    let mut timed = if seconds.len() > 1 { seconds.split_off(1) } else { seconds };
    timed.sort_by(f64::total_cmp);
    let rate = batch as f64 / timed[timed.len() / 2];
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
    let peak: u64 = peak.unwrap_or("0").trim().parse()?;
    let told =
        serde_json::json!({"losses": losses, "tokens_per_s": rate, "peak_rss_bytes": peak * 1024});
    println!("{told}");
    Ok(())
}
