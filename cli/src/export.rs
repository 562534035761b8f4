//! `homegrown export`: a model for other programs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use comfy_table::{CellAlignment, Table, presets};
use compute::Cpu;
use model::Loaded;
use model::adapter;
use model::config::{Family, Scaling};
use model::directory::{is_gguf, load_keeping};
use model::export::{self, ExportError, Exported, Importance, Options, Quant};
use model::gguf::{Head, Item};
use model::weights::GgufFiles;
use serde_json::{Value, json};
use std::sync::Arc;
use store::lineage::{self, Step};
use store::{Hash, Lineage};

use crate::common::{Common, code, say};
use crate::failure::Failure;
use crate::fetched::{adapt, local};
use crate::progress::{Progress, count};

/// The program that runs an exported model: one file, which a person can read.
const PROGRAM: &str = include_str!("../../run/run.rs");
/// What it reads: families, pre-tokenizers by their names in GGUF, types.
const RUN_FAMILIES: [Family; 4] = [Family::Llama, Family::Mistral, Family::Qwen2, Family::Qwen3];
const RUN_CUTS: [&str; 6] = ["gpt-2", "smollm", "llama-bpe", "dbrx", "qwen2", "stablelm2"];
const RUN_TYPES: [Quant; 4] = [Quant::F32, Quant::F16, Quant::BF16, Quant::Q8_0];

/// Metadata of a GGUF file that tells where the model is from.
const LINEAGE: &str = "homegrown.lineage";

/// Arguments of `export`.
#[derive(Args, Debug)]
pub struct ExportArgs {
    /// A run or model directory, a GGUF file, or hf:ORG/NAME[:FILE].
    model: PathBuf,
    /// A directory for transformers and vLLM, or a file for llama.cpp.
    #[arg(long, value_enum, required_unless_present = "run", requires = "out")]
    to: Option<Format>,
    /// Types of the weights: F32, F16, BF16; for GGUF also Q8_0, Q6_K, Q4_K_M, Q4_0 [default: as they are, F32
    /// if they are quantised].
    #[arg(long, value_name = "TYPE")]
    quant: Option<Quant>,
    /// A text like those that the model is going to read: what matters there is kept best.
    #[arg(long, value_name = "TEXT")]
    calibrate: Option<PathBuf>,
    /// A folder of an adapter (LoRA, in PEFT's files) that is added to the weights; several add up.
    #[arg(long = "adapter", value_name = "DIR")]
    adapters: Vec<PathBuf>,
    /// Where to write it; a new directory, or a new file.
    #[arg(long, value_name = "PATH", requires = "to")]
    out: Option<PathBuf>,
    /// In place of --to and --out: a new directory of two files, model.gguf and run.rs, the program that
    /// runs it, in 600 lines without dependencies.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["to", "out"])]
    run: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Format {
    Safetensors,
    Gguf,
}

impl Format {
    fn name(self) -> &'static str {
        match self {
            Format::Safetensors => "safetensors",
            Format::Gguf => "gguf",
        }
    }
}

/// Writes a model.
///
/// # Errors
/// A model that can't be read, or not be written so.
pub fn export(args: &ExportArgs, common: &Common) -> Result<Value, Failure> {
    let (to, out) = match (&args.run, args.to, &args.out) {
        (Some(dir), ..) => (Format::Gguf, dir.join("model.gguf")),
        (None, Some(to), Some(out)) => (to, out.clone()),
        _ => return Err(Failure::invalid("--to and --out, or --run")), // the parser sees to it
    };
    let program = args.run.as_ref().map(|dir| dir.join("run.rs"));
    let files = [Some(&out), program.as_ref(), args.run.as_ref().filter(|dir| dir.is_file())];
    let there = |path: &&PathBuf| path.exists() && (to == Format::Gguf || path.is_file());
    if let Some(path) = files.into_iter().flatten().find(there) {
        return Err(ExportError::Exists(path.clone()).into());
    }
    let cpu = common.cpu()?;
    // Kept as they are: nothing is lost, and they take no more memory than their file.
    let mut loaded = load_keeping(&local(&args.model)?, Some(&cpu))?;
    adapt(&mut loaded.transformer, &args.adapters)?;
    adapter::merge(&mut loaded.transformer, &cpu);
    let quant = args.quant.unwrap_or_else(|| as_it_is(&loaded));
    let plain = matches!(quant, Quant::F32 | Quant::F16 | Quant::BF16);
    if to == Format::Safetensors && !plain {
        return Err(ExportError::Type(quant).into());
    }
    if args.run.is_some() {
        runs(&loaded, quant)?;
    }
    if args.calibrate.is_some() && (plain || quant == Quant::Q8_0) {
        return Err(Failure::invalid(format!("--calibrate: nothing in {quant} depends on it"))
            .hint("It is for --quant Q6_K, Q4_K_M and Q4_0."));
    }
    let stages = lineage(&loaded, args, to, quant)?;
    let importance = args.calibrate.as_deref().map(|text| calibrated(&loaded, &cpu, text));
    let importance = importance.transpose()?;
    let told = serde_json::to_string(&stages).map_err(Failure::failed)?;
    let metadata = vec![(LINEAGE.to_string(), Item::Text(told))];
    let options = Options { quant, importance: importance.as_ref(), metadata };

    let mut bar = Progress::start("export", loaded.transformer.parameters.count() as u64);
    let mut tell = |done, total| bar.set(done, &format!("{} of {}", count(done), count(total)));
    let mut exported = match to {
        Format::Gguf => export::gguf(&loaded, &cpu.pool, &options, &out, &mut tell)?,
        Format::Safetensors => {
            let exported = export::safetensors(&loaded, &cpu.pool, &options, &out, &mut tell)?;
            Lineage::write(stages, &out)?;
            exported
        }
    };
    if let Some(path) = program {
        store::write_atomic(&path, PROGRAM.as_bytes())?;
        exported.files.push((path, PROGRAM.len() as u64));
    }
    let new = args.run.as_ref().unwrap_or(&out);
    bar.finish(&new.display().to_string());
    exported.notes.iter().for_each(|note| eprintln!("   note: {note}"));
    if !common.json {
        table(&exported);
    }
    if let Some(dir) = args.run.as_ref().filter(|_| !common.json) {
        let dir = dir.display();
        say(&format!("Build and run it: cd {dir} && rustc -O run.rs && ./run model.gguf"));
    }
    Ok(report(&exported, (to.name(), new), quant, importance.as_ref()))
}

/// Whether the program of one file runs a model.
fn runs(loaded: &Loaded, quant: Quant) -> Result<(), Failure> {
    let refuse = |what: String| Err(Failure::invalid(format!("--run: run.rs {what}")));
    let config = loaded.transformer.config();
    let families = RUN_FAMILIES.map(Family::model_type).join(", ");
    if !RUN_FAMILIES.contains(&config.family) {
        let family = config.family.model_type();
        return refuse(format!("doesn't run the family {family}; it runs {families}"));
    }
    if matches!(config.rope_scaling, Scaling::Yarn { .. } | Scaling::Linear { .. }) {
        return refuse("knows no rope scaling of type linear or yarn".into());
    }
    if !RUN_TYPES.contains(&quant) {
        let types = RUN_TYPES.map(Quant::name).join(", ");
        return refuse(format!("doesn't read {quant}; it reads {types}"));
    }
    // A file's own keys are carried over.
    let contents = if is_gguf(&loaded.path) {
        GgufFiles::open(&loaded.path)?.contents().clone()
    } else {
        let mut head = Head::default();
        loaded.tokenizer.to_gguf(config.vocab_size, loaded.tokenizer.roles(), &mut head)?;
        head.contents()
    };
    let key = |name: &str| contents.metadata.get(&format!("tokenizer.ggml.{name}"));
    let cut = key("pre").and_then(|v| v.as_str()).unwrap_or("none");
    if key("model").and_then(|v| v.as_str()) != Some("gpt2") || !RUN_CUTS.contains(&cut) {
        let cuts = RUN_CUTS.join(", ");
        return refuse(format!(
            "doesn't read its tokenizer; it reads byte-level ones cut as {cuts}"
        ));
    }
    Ok(())
}

/// The type of the matrices, if all have one that both formats know.
fn as_it_is(loaded: &Loaded) -> Quant {
    use compute::blocks::BlockType::{BF16, F16};
    let matrices = loaded.transformer.parameters.iter().filter(|p| !p.vector);
    let mut kinds: Vec<_> = matrices.map(|p| p.value.strips().map(|s| s.kind())).collect();
    kinds.dedup();
    match kinds[..] {
        [Some(F16)] => Quant::F16,
        [Some(BF16)] => Quant::BF16,
        _ => Quant::F32,
    }
}

/// What a model read over a text tells of the importance of its inputs.
fn calibrated(loaded: &Loaded, cpu: &Arc<Cpu>, path: &Path) -> Result<Importance, Failure> {
    let text = store::read_text(path)?;
    let mut bar = Progress::start("calibrate", 0);
    let mut tell =
        |done, total| bar.set(done, &format!("{} of {} tokens", count(done), count(total)));
    let importance = export::calibrate(loaded, cpu, &text, &mut tell)
        .map_err(|e| Failure::invalid(format!("{}: {e}", path.display())))?;
    bar.finish(&format!("{} tokens of {}", importance.tokens, path.display()));
    Ok(importance)
}

/// The stages behind the model, and this one.
fn lineage(
    loaded: &Loaded,
    args: &ExportArgs,
    to: Format,
    quant: Quant,
) -> Result<Vec<Step>, Failure> {
    let carried = loaded.path.join(lineage::FILE);
    let mut stages = match carried.is_file() {
        true => Lineage::read(&carried)?.stages,
        false => Vec::new(),
    };
    let mut inputs: BTreeMap<String, Hash> = BTreeMap::new();
    for path in [&loaded.path].into_iter().chain(&args.calibrate).chain(&args.adapters) {
        inputs.insert(path.display().to_string(), store::hash_path(path)?);
    }
    stages.push(Step {
        stage: "export".into(),
        code: code(),
        settings: json!({"to": to.name(), "quant": quant.name()}),
        inputs,
        outputs: BTreeMap::new(),
        facts: Default::default(),
    });
    Ok(stages)
}

fn table(exported: &Exported) {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["", "tensors", "weights", "MB", "bits a weight"]);
    let row = |name: &str, tensors: u64, elements: u64, bytes: u64| {
        [
            name.to_string(),
            tensors.to_string(),
            count(elements),
            format!("{:.1}", bytes as f64 / 1e6),
            format!("{:.2}", bytes as f64 * 8.0 / elements as f64),
        ]
    };
    for (kind, (tensors, elements, bytes)) in &exported.types {
        table.add_row(row(kind.name(), *tensors, *elements, *bytes));
    }
    let tensors = exported.types.values().map(|(tensors, ..)| tensors).sum();
    table.add_row(row("all", tensors, exported.parameters, exported.bytes));
    for i in 1..table.column_count() {
        if let Some(column) = table.column_mut(i) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for (path, bytes) in &exported.files {
        say(&format!("{:>12} bytes  {}", bytes, path.display()));
    }
    say(&table.trim_fmt());
}

fn report(
    exported: &Exported,
    (to, out): (&str, &Path),
    quant: Quant,
    importance: Option<&Importance>,
) -> Value {
    let files = exported.files.iter();
    let types = exported.types.iter().map(|(kind, (tensors, elements, bytes))| {
        let of = json!({"tensors": tensors, "weights": elements, "bytes": bytes});
        (kind.name().to_string(), of)
    });
    json!({
        "out": out,
        "to": to,
        "quant": quant.name(),
        "files": files.map(|(path, bytes)| json!({"path": path, "bytes": bytes})).collect::<Vec<_>>(),
        "bytes": exported.files.iter().map(|(_, bytes)| bytes).sum::<u64>(),
        "parameters": exported.parameters,
        "bits_per_weight": exported.bits_per_weight(),
        "types": types.collect::<serde_json::Map<_, _>>(),
        "calibration_tokens": importance.map(|i| i.tokens),
        "notes": exported.notes,
    })
}
