//! `homegrown bench infer`: how fast a model reads prompts and writes answers on this machine.
//!
//! A test is called as llama-bench calls it: `pp512` reads a prompt of 512 tokens, `tg128` writes 128
//! tokens one by one; ` @ d4096` after 4,096 others, ` x 16` in 16 sequences at once.

use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use compute::cpu::peak;
use compute::kv::{KvPages, KvSequence, KvType, PAGE};
use compute::parameters::Parameter;
use compute::rng::Rng;
use compute::tape::Workspace;
use compute::tensor::{DType, Tensor};
use compute::{Cpu, Isa};
use model::transformer::{Step, Transformer};
use serde::Serialize;
use serde_json::Value;

use crate::common::{self, Common};
use crate::failure::Failure;
use crate::fetched::ModelArgs;

/// Tokens of a prompt that go through the model at a time, as in the generator.
const CHUNK: usize = 512;

/// Measures prompts and answers of random tokens.
#[derive(Args, Debug)]
pub struct BenchInferArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Tokens of prompts.
    #[arg(long, value_delimiter = ',', default_value = "512", value_name = "N,N")]
    prompt: Vec<usize>,
    /// Tokens of answers.
    #[arg(long, value_delimiter = ',', default_value = "128", value_name = "N,N")]
    generate: Vec<usize>,
    /// Tokens that are there before.
    #[arg(long, value_delimiter = ',', default_value = "0", value_name = "N,N")]
    depth: Vec<usize>,
    /// Sequences at once (answers only).
    #[arg(long, value_delimiter = ',', default_value = "1", value_name = "N,N")]
    batch: Vec<usize>,
    /// What keys and values are stored as: f32, f16, bf16, q16, q8 [default: q16; f16 with --exact; f32 if weights are].
    #[arg(long, value_name = "TYPE")]
    kv: Option<KvType>,
    /// Times that each test is run; the median counts.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Shows where the time of each test goes, by operation (on the CPU only).
    #[arg(long)]
    profile: bool,
}

/// What a test found.
#[derive(Debug, Serialize)]
struct Test {
    test: String,
    threads: usize,
    /// Median.
    tokens_per_s: f64,
    /// Weights and keys and values that steps read.
    bytes_per_s: f64,
    /// Arithmetic of products with weights.
    flops_per_s: f64,
    /// The larger of both shares of what the machine can do.
    share_of_limit: f64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    profile: Vec<super::Operation>,
}

/// What the device can do on so many threads.
#[derive(Clone, Copy, Debug, Serialize)]
struct Limits {
    threads: usize,
    /// Of the CPU: cards multiply none.
    #[serde(skip_serializing_if = "Option::is_none")]
    byte_ops_per_s: Option<f64>,
    f32_flops_per_s: f64,
    bf16_flops_per_s: f64,
    bytes_per_s: f64,
}

/// Measures.
///
/// # Errors
/// A model that can't be read, or that the tests don't fit into.
pub fn infer(args: &BenchInferArgs, common: &Common) -> Result<Value, Failure> {
    let counts: Vec<usize> = match &common.threads[..] {
        [] => vec![common.threads()],
        some => some.iter().map(|n| usize::from(*n)).collect(),
    };
    super::check_profile(args.profile, common)?;
    let device = common.cpu()?;
    let start = Instant::now();
    let loaded = args.model.load(&device)?;
    let load_seconds = start.elapsed().as_secs_f64();
    let model = loaded.transformer;
    let context = model.config().max_position_embeddings;
    let most = args.prompt.iter().chain(&args.generate).max().unwrap_or(&0);
    let longest = most.saturating_add(*args.depth.iter().max().unwrap_or(&0));
    if longest > context {
        return Err(Failure::invalid(format!(
            "{longest} tokens with those before them; the model's context holds {context}"
        )));
    }
    if args.rounds == 0 || args.batch.contains(&0) {
        return Err(Failure::invalid("--rounds and --batch: at least 1"));
    }
    let with = |n| Arc::new(Cpu { card: device.card.clone(), ..Cpu::new(n) });
    let cpus: Vec<Arc<Cpu>> = counts.into_iter().map(with).collect();
    let mut tests = Vec::new();
    for cpu in &cpus {
        let mut ws = Workspace::new(cpu.clone(), DType::F32);
        ws.set_exact(args.model.exact);
        let mut bench = Bench { model: &model, cpu: cpu.clone(), ws, args };
        for &depth in &args.depth {
            for &n in args.prompt.iter().filter(|n| **n > 0) {
                tests.push(bench.test(depth, n, true, 1)?);
            }
            for &batch in &args.batch {
                for &n in args.generate.iter().filter(|n| **n > 0) {
                    tests.push(bench.test(depth, n, false, batch)?);
                }
            }
        }
    }
    // Memory is read before the limits are measured, which takes a gigabyte.
    let peak_rss_bytes = crate::progress::peak_rss_bytes();
    let limits: Vec<Limits> = cpus.iter().map(|cpu| Limits::of(cpu)).collect();
    let operands = operands(&model, args.model.exact, device.card.is_some());
    for test in &mut tests {
        let limit = limits.iter().find(|l| l.threads == test.threads);
        limit.into_iter().for_each(|limit| test.compare(limit, operands));
    }
    if !common.json {
        show(&tests, &limits, device.device());
        common::say(&format!(
            "Loaded in {load_seconds:.2} s; {:.0} MB of memory at most.",
            peak_rss_bytes as f64 / 1e6
        ));
    }
    Ok(serde_json::json!({
        "device": device.device(),
        "tests": tests,
        "limits": limits,
        "load_seconds": load_seconds,
        "peak_rss_bytes": peak_rss_bytes,
    }))
}

impl Limits {
    fn of(cpu: &Cpu) -> Limits {
        Limits {
            threads: cpu.pool.threads(),
            byte_ops_per_s: cpu.card.is_none().then(|| peak::byte_ops(cpu)),
            f32_flops_per_s: peak::f32_flops(cpu),
            bf16_flops_per_s: peak::bf16_flops(cpu),
            bytes_per_s: peak::read_bandwidth(cpu),
        }
    }
}

impl Test {
    /// Fills in the shares.
    fn compare(&mut self, l: &Limits, operands: Operands) {
        let most = match operands {
            Operands::Bytes => l.byte_ops_per_s.unwrap_or(l.bf16_flops_per_s),
            Operands::Bf16 => l.bf16_flops_per_s,
            Operands::F32 => l.f32_flops_per_s,
        };
        let share = |flops: f64, bytes: f64| (flops / most).max(bytes / l.bytes_per_s);
        self.share_of_limit = share(self.flops_per_s, self.bytes_per_s);
        for o in &mut self.profile {
            o.share_of_limit = share(o.flops_per_s, o.bytes_per_s);
        }
    }
}

struct Bench<'a> {
    model: &'a Transformer,
    cpu: Arc<Cpu>,
    /// For all tests: a card keeps the weights.
    ws: Workspace,
    args: &'a BenchInferArgs,
}

impl Bench<'_> {
    /// Reads a prompt of `n` tokens, or writes `n` tokens one by one, in `batch` sequences that have
    /// `depth` tokens already.
    fn test(
        &mut self,
        depth: usize,
        n: usize,
        prompt: bool,
        batch: usize,
    ) -> Result<Test, Failure> {
        let c = self.model.config();
        let each = (depth + n).div_ceil(PAGE);
        let exact = self.args.model.exact;
        let kv = match self.args.kv.unwrap_or_else(|| self.model.kv_type(exact)) {
            // As a card stores them.
            KvType::F32 if self.cpu.card.is_some() => KvType::Bf16,
            KvType::Q16 if self.cpu.card.is_some() => KvType::F16,
            kv => kv,
        };
        let mut pages =
            self.model.pages(kv, each.saturating_mul(batch)).map_err(Failure::failed)?;
        let mut sequences: Vec<KvSequence> = (0..batch)
            .map(|_| KvSequence {
                pages: (0..each).filter_map(|_| pages.allocate()).collect(),
                len: 0,
            })
            .collect();
        let mut rng = Rng::new(1);
        let vocab = c.vocab_size as u64;
        let tokens: Vec<u32> = (0..(depth + n)).map(|_| rng.below(vocab) as u32).collect();
        for sequence in &mut sequences {
            self.read(&mut pages, sequence, &tokens[..depth]);
        }
        let mut seconds = Vec::new();
        for round in 0..=self.args.rounds {
            sequences.iter_mut().for_each(|s| s.len = depth);
            // The first round warms up.
            if round == 1 && self.args.profile {
                self.ws.profile.begin();
            }
            self.cpu.wait();
            let start = Instant::now();
            if prompt {
                for sequence in &mut sequences {
                    self.read(&mut pages, sequence, &tokens[depth..]);
                }
            } else {
                for token in tokens[depth..].chunks(1) {
                    let mut steps: Vec<Step<'_>> = sequences
                        .iter_mut()
                        .map(|kv| Step { tokens: token, logits: 1, kv })
                        .collect();
                    self.model.forward_cached(&mut self.ws, &mut pages, &mut steps);
                }
            }
            self.cpu.wait();
            seconds.push(start.elapsed().as_secs_f64());
        }
        let entries = self.ws.profile.finish();
        seconds.remove(0);
        let total: f64 = seconds.iter().sum();
        seconds.sort_by(f64::total_cmp);
        let median = seconds[seconds.len() / 2];

        let (body, head, weights) = work(self.model);
        // Of a prompt the last token alone has logits.
        let flops = if prompt { body + head / n as f64 } else { body + head };
        let steps = if prompt { n.div_ceil(CHUNK) } else { n } as f64;
        let position = pages.bytes() as f64 / (pages.total_pages() * PAGE) as f64;
        let layers = c.num_hidden_layers;
        let seen = |layer| (depth + n / 2).min(c.window_of(layer).unwrap_or(usize::MAX));
        let seen = (0..layers).map(seen).sum::<usize>() as f64 / layers as f64;
        let kept = batch as f64 * seen * position;
        let rounds = self.args.rounds as f64;
        let mut profile: Vec<super::Operation> = (entries.into_iter())
            .map(|(operation, e)| super::operation(operation, &e, rounds, total, (1.0, 1.0)))
            .collect();
        profile.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        let name = if prompt { format!("pp{n}") } else { format!("tg{n}") };
        let at = if depth > 0 { format!(" @ d{depth}") } else { String::new() };
        let times = if batch > 1 { format!(" x {batch}") } else { String::new() };
        Ok(Test {
            test: format!("{name}{at}{times}"),
            threads: self.cpu.pool.threads(),
            tokens_per_s: (n * batch) as f64 / median,
            bytes_per_s: steps * (weights + kept) / median,
            flops_per_s: flops * (n * batch) as f64 / median,
            share_of_limit: 0.0,
            profile,
        })
    }

    fn read(&mut self, pages: &mut KvPages, kv: &mut KvSequence, tokens: &[u32]) {
        let mut left = tokens.len();
        for tokens in tokens.chunks(CHUNK) {
            left -= tokens.len();
            let logits = usize::from(left == 0);
            self.model.forward_cached(&mut self.ws, pages, &mut [Step { tokens, logits, kv }]);
        }
    }
}

/// What most products multiply.
#[derive(Clone, Copy, PartialEq)]
enum Operands {
    Bytes,
    Bf16,
    F32,
}

fn operands(model: &Transformer, exact: bool, card: bool) -> Operands {
    let pairs = !card && peak::multiplies_bf16(Isa::detect());
    let of = |p: &Parameter| match p.value.strips() {
        _ if exact => Operands::F32,
        Some(_) if card => Operands::Bf16,
        Some(w) if w.rounds() => Operands::Bytes,
        Some(w) if w.has_pairs() && pairs => Operands::Bf16,
        _ => Operands::F32,
    };
    let count =
        |kind| multiplied(model).filter(|p| of(p) == kind).map(|p| p.value.len()).sum::<usize>();
    let kinds = [Operands::F32, Operands::Bf16, Operands::Bytes];
    kinds.into_iter().max_by_key(|kind| count(*kind)).unwrap_or(Operands::F32)
}

/// The weights that every token is multiplied with.
fn multiplied(model: &Transformer) -> impl Iterator<Item = &Parameter> {
    let embeds = !model.config().tie_word_embeddings;
    (model.parameters.iter())
        .filter(move |p| !(p.vector || embeds && p.name.ends_with("embed_tokens.weight")))
}

/// Of a token: operations of products with weights, those for its logits apart, and, of one step, bytes of weights.
fn work(model: &Transformer) -> (f64, f64, f64) {
    let sum = |of: fn(&Tensor) -> usize| multiplied(model).map(|p| of(&p.value)).sum::<usize>();
    let c = model.config();
    let head = c.vocab_size * c.hidden_size;
    let body = sum(Tensor::len).saturating_sub(head);
    (2.0 * body as f64, 2.0 * head as f64, sum(Tensor::bytes) as f64)
}

fn show(tests: &[Test], limits: &[Limits], device: &str) {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["test", "threads", "tokens/s", "GB/s", "GFLOP/s", "of the limit"]);
    for t in tests {
        table.add_row([
            t.test.clone(),
            t.threads.to_string(),
            format!("{:.1}", t.tokens_per_s),
            format!("{:.1}", t.bytes_per_s / 1e9),
            format!("{:.0}", t.flops_per_s / 1e9),
            format!("{:.0} %", t.share_of_limit * 100.0),
        ]);
    }
    for i in 1..table.column_count() {
        if let Some(column) = table.column_mut(i) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    common::say(&table.trim_fmt());
    for l in limits {
        let bytes = l
            .byte_ops_per_s
            .map_or(String::new(), |ops| format!("{:.0} GOP/s of bytes, ", ops / 1e9));
        let (threads, half, single) =
            (l.threads, l.bf16_flops_per_s / 1e9, l.f32_flops_per_s / 1e9);
        common::say(&format!(
            "{device}, {threads} threads: {bytes}{half:.0} GFLOP/s in bf16, {single:.0} in f32, {:.1} GB/s at best.",
            l.bytes_per_s / 1e9
        ));
    }
    for t in tests.iter().filter(|t| !t.profile.is_empty()) {
        common::say(&format!("\n{}, {} threads", t.test, t.threads));
        common::say(&super::table(&t.profile).trim_fmt());
    }
}
