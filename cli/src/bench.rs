//! `homegrown bench train`: what a training step does on this machine.

pub mod infer;

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use compute::cpu::peak;
use compute::profile::Entry;
use compute::rng::Rng;
use compute::tensor::DType;
use compute::{Cpu, Span};
use data::batches::Batch;
use model::adapter::{self, Shape};
use model::config::{Config, Sizes};
use model::directory;
use model::init::{Init, initialise};
use model::transformer::Transformer;
use serde::Serialize;
use train::{Precision, Source, Timing, TrainConfig, Trainer};

use crate::common::Common;
use crate::failure::Failure;
use crate::fetched::local;

/// Measures training steps of a model of a given shape on random tokens.
#[derive(Args, Debug)]
pub struct BenchTrainArgs {
    /// Layers.
    #[arg(long, default_value_t = 6)]
    layers: usize,
    /// Width of the residual stream.
    #[arg(long, default_value_t = 128)]
    dim: usize,
    /// Heads (queries, keys and values alike).
    #[arg(long, default_value_t = 4)]
    heads: usize,
    /// Width inside the MLP.
    #[arg(long, default_value_t = 352)]
    ffn: usize,
    /// Vocabulary.
    #[arg(long, default_value_t = 2048)]
    vocab: usize,
    /// Tokens of a sequence.
    #[arg(long, default_value_t = 256)]
    context: usize,
    /// Tokens of a step.
    #[arg(long, default_value_t = 8192)]
    batch_tokens: usize,
    /// Tokens that go through the model at a time.
    #[arg(long, default_value_t = 2048)]
    micro_tokens: usize,
    /// Type of the operands of products: auto, f32 or bf16.
    #[arg(long, default_value = "auto")]
    dtype: String,
    /// Steps that are timed (two more warm up); the median counts.
    #[arg(long, default_value_t = 10)]
    steps: usize,
    /// Shows where the time of a step goes, by operation (on the CPU only).
    #[arg(long)]
    profile: bool,
    /// AdamW for all parameters, instead of Muon for the inner matrices.
    #[arg(long)]
    adamw: bool,
    /// A model from elsewhere, in place of a shape: adapters of --rank over it as it is stored, or all of it.
    #[arg(long, value_name = "MODEL", conflicts_with_all = ["layers", "dim", "heads", "ffn", "vocab"])]
    base: Option<PathBuf>,
    /// Rank of the adapters of a --base; 0: all weights are trained.
    #[arg(long, default_value_t = 16, requires = "base")]
    rank: usize,
    /// Products with quantised weights of a --base in f32, instead of rounding activations.
    #[arg(long, requires = "base")]
    exact: bool,
    /// Layers are computed once more on the way back: less memory.
    #[arg(long)]
    recompute: bool,
}

/// What `bench train` found.
#[derive(Debug, Serialize)]
pub struct BenchTrain {
    /// Parameters of the model.
    pub parameters: usize,
    /// Type of the operands of products.
    pub dtype: &'static str,
    /// What computed: the card's name, or `cpu`.
    pub device: String,
    /// Instruction set of the CPU.
    pub isa: &'static str,
    /// Threads.
    pub threads: usize,
    /// Median.
    pub tokens_per_s: f64,
    /// Median.
    pub flops_per_s: f64,
    /// What the device can do in this type, measured in the same run.
    pub peak_flops_per_s: f64,
    /// Most memory that the process held.
    pub peak_rss_bytes: u64,
    /// Where the time of a step goes, by operation.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub profile: Vec<Operation>,
}

/// What an operation takes of a step.
#[derive(Debug, Serialize)]
pub struct Operation {
    /// Its name.
    pub operation: &'static str,
    /// Calls in a step.
    pub calls: f64,
    /// Of a step.
    pub seconds: f64,
    /// Share of the step's time.
    pub share_of_step: f64,
    /// Arithmetic of its products.
    pub flops_per_s: f64,
    /// What it has to read and write, whether from memory or a cache.
    pub bytes_per_s: f64,
    /// The larger of FLOP/s against the peak and bytes/s against memory's; above 1 where caches
    /// serve it.
    pub share_of_limit: f64,
}

/// The matrices that have adapters.
const LORA_MODULES: [&str; 7] =
    ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// Sequences of random tokens.
struct Random {
    rng: Rng,
    context: usize,
    vocab: u32,
}

impl Source for Random {
    fn next(&mut self, rows: usize) -> Batch {
        let sequences = (rows / self.context).max(1);
        let n = sequences * self.context;
        let mut ids = || (0..n).map(|_| self.rng.below(u64::from(self.vocab)) as u32).collect();
        let (tokens, targets) = (ids(), ids());
        let span = |i| Span { start: i * self.context, len: self.context };
        Batch { tokens, targets, spans: (0..sequences).map(span).collect() }
    }
}

/// A new model of the shape that was asked for.
fn shaped(args: &BenchTrainArgs) -> Result<Transformer, String> {
    if args.heads == 0 || !args.dim.is_multiple_of(args.heads) {
        return Err(format!("--heads {} does not divide --dim {}", args.heads, args.dim));
    }
    let config = Config {
        rope_theta: 1e4,
        tie_word_embeddings: true,
        ..Config::qwen3(Sizes {
            vocab: args.vocab,
            width: args.dim,
            ffn: args.ffn,
            layers: args.layers,
            heads: args.heads,
            kv_heads: args.heads,
            head_dim: args.dim / args.heads,
            context: args.context,
        })
    };
    config.check().map_err(|e| e.to_string())?;
    // As in the middle of a run: nothing is 0.
    let parameters = initialise(&config, &Init { output_gain: 1.0, ..Init::default() }, 0);
    Ok(Transformer::new(config, parameters))
}

/// A model from elsewhere, ready to be trained.
fn tuned(base: &Path, rank: usize, cpu: &Cpu) -> Result<Transformer, Failure> {
    let keep = (rank > 0).then_some(cpu);
    let mut model = directory::load_keeping(&local(base)?, keep)?.transformer;
    if rank > 0 {
        let modules: Vec<String> = LORA_MODULES.map(String::from).to_vec();
        adapter::begin(&mut model, Shape { rank, alpha: 32.0, modules: &modules }, 0)?;
    }
    Ok(model)
}

/// Whether a profile can be had: operations on a card end after the calls that ask for them.
fn check_profile(profile: bool, common: &Common) -> Result<(), Failure> {
    if profile && common.device.starts_with("cuda") {
        return Err(Failure::invalid("--profile: operations are timed on the CPU only")
            .hint("Leave --profile out, or say --device cpu."));
    }
    Ok(())
}

/// A step, and how long it took until the device had done all of it.
fn timed_step(trainer: &mut Trainer<'_>, source: &mut dyn Source, cpu: &Cpu) -> Timing {
    cpu.wait();
    let start = Instant::now();
    let timing = trainer.step(source).1;
    cpu.wait();
    let seconds = start.elapsed().as_secs_f64();
    let share = timing.seconds / seconds;
    Timing {
        seconds,
        tokens_per_s: timing.tokens_per_s * share,
        share_of_peak: timing.share_of_peak * share,
        ..timing
    }
}

/// Runs the benchmark.
///
/// # Errors
/// Arguments that can't be.
pub fn train(args: &BenchTrainArgs, common: &Common) -> Result<BenchTrain, Failure> {
    check_profile(args.profile, common)?;
    let cpu = common.cpu()?;
    let (products, peak) = match args.dtype.as_str() {
        "auto" => peak::best_products(&cpu),
        "f32" => (DType::F32, peak::f32_flops(&cpu)),
        "bf16" => (DType::Bf16, peak::bf16_flops(&cpu)),
        other => {
            return Err(Failure::invalid(format!("--dtype {other}: one of auto, f32, bf16")));
        }
    };
    let mut model = match &args.base {
        Some(base) => tuned(base, args.rank, &cpu)?,
        None => shaped(args).map_err(Failure::invalid)?,
    };
    let vocab = model.config().vocab_size as u32;
    let mut settings = TrainConfig {
        tokens: (args.batch_tokens * (args.steps + 2)) as u64,
        batch_tokens: args.batch_tokens,
        micro_tokens: args.micro_tokens.max(args.context),
        dtype: Precision::Auto,
        ..TrainConfig::default()
    };
    settings.optimizer.muon = !args.adamw && args.base.is_none();
    let count = model.parameters.count();
    let mut source = Random { rng: Rng::new(1), context: args.context, vocab };
    let mut trainer = Trainer::new(cpu.clone(), &mut model, settings, products, peak);
    trainer.set_recompute(args.recompute);
    trainer.set_learn_rounded(!args.exact);
    for _ in 0..2 {
        timed_step(&mut trainer, &mut source, &cpu);
    }
    if args.profile {
        trainer.profile().begin();
    }
    let mut steps: Vec<_> =
        (0..args.steps).map(|_| timed_step(&mut trainer, &mut source, &cpu)).collect();
    let entries = trainer.profile().finish();
    let total: f64 = steps.iter().map(|s| s.seconds).sum();
    steps.sort_by(|a, b| a.tokens_per_s.total_cmp(&b.tokens_per_s));
    let Some(median) = steps.get(steps.len() / 2) else {
        return Err(Failure::invalid("--steps 0: at least one step is timed"));
    };
    let bandwidth = if args.profile { peak::read_bandwidth(&cpu) } else { 0.0 };
    let n = args.steps as f64;
    let mut profile: Vec<Operation> = (entries.into_iter())
        .map(|(name, e)| operation(name, &e, n, total, (peak, bandwidth)))
        .collect();
    profile.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    Ok(BenchTrain {
        parameters: count,
        dtype: if products == DType::F32 { "f32" } else { "bf16" },
        device: cpu.device().to_string(),
        isa: cpu.isa.name(),
        threads: cpu.pool.threads(),
        tokens_per_s: median.tokens_per_s,
        flops_per_s: median.share_of_peak * peak,
        peak_flops_per_s: peak,
        peak_rss_bytes: crate::progress::peak_rss_bytes(),
        profile,
    })
}

/// What an operation took in `n` runs of `total` seconds; limits in FLOP/s and bytes/s.
fn operation(
    operation: &'static str,
    e: &Entry,
    n: f64,
    total: f64,
    (peak, bandwidth): (f64, f64),
) -> Operation {
    let (flops_per_s, bytes_per_s) = (e.flops / e.seconds, e.bytes / e.seconds);
    Operation {
        operation,
        calls: e.calls as f64 / n,
        seconds: e.seconds / n,
        share_of_step: e.seconds / total,
        flops_per_s,
        bytes_per_s,
        share_of_limit: (flops_per_s / peak).max(bytes_per_s / bandwidth),
    }
}

/// The profile as a table.
pub fn table(profile: &[Operation]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        "operation",
        "calls",
        "ms",
        "of the step",
        "GFLOP/s",
        "GB/s",
        "of the limit",
    ]);
    for o in profile {
        let flops =
            if o.flops_per_s > 0.0 { format!("{:.0}", o.flops_per_s / 1e9) } else { String::new() };
        table.add_row([
            o.operation.to_string(),
            format!("{:.0}", o.calls),
            format!("{:.2}", o.seconds * 1e3),
            format!("{:.1} %", o.share_of_step * 100.0),
            flops,
            format!("{:.1}", o.bytes_per_s / 1e9),
            format!("{:.0} %", o.share_of_limit * 100.0),
        ]);
    }
    for i in 1..table.column_count() {
        if let Some(column) = table.column_mut(i) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}
