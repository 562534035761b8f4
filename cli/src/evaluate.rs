//! The stage evaluate: held-out text beside compressors, and the microworld's questions.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use comfy_table::{CellAlignment, Table, presets};
use compute::tape::Workspace;
use compute::tensor::DType;
use compute::{Cpu, IGNORE};
use data::batches::LossOn;
use data::jsonl;
use data::shards::Shards;
use eval::compress;
use eval::microworld::Asked;
use eval::run::{HeldoutScore, HeldoutScores};
use eval::score::Heldout;
use eval::speaker::Greedy;
use eval::task::Results;
use model::directory::{self, Loaded};
use model::generator::{Generator, Options};
use serde_json::{Map, Value, json};
use store::Hash;

use crate::failure::Failure;
use crate::grow::base::Base;
use crate::progress::Progress;
use crate::recipe::Recipe;
use crate::stage::{Facts, Run, clear};
use crate::tokenize::{Line, end_of_text};
use crate::training;

/// Questions that are answered at a time.
const SEQUENCES: usize = 64;
/// Most tokens of an answer.
const ANSWER_TOKENS: usize = 160;

/// Writes `eval/`. What an earlier, stopped call with the same `key` has finished stays.
///
/// # Errors
/// What can't be read, scored or written.
pub fn evaluate(
    run: &Run,
    key: Hash,
    recipe: &Recipe,
    base: Option<&Base>,
    cpu: &Arc<Cpu>,
    products: DType,
) -> Result<Facts, Failure> {
    let of = run.path("eval/of.json");
    if store::read_json::<Hash>(&of).ok() != Some(key) {
        clear(&run.path("eval"))?;
        store::write_json(&of, &key)?;
    }
    let to_do = |file: &str| !run.path(file).exists();
    let mut progress = Progress::start("evaluate", 0);
    let reads = run.path("data/heldout.jsonl").exists();
    let heldout = if reads { texts(run, "data/heldout.jsonl")? } else { Vec::new() };
    if reads && to_do("eval/heldout.json") {
        held_out(run, base, cpu, products, &heldout, &mut progress)?;
    }
    if run.path("shards/heldout-conversations").exists() && to_do("eval/answers.json") {
        answers(run, recipe, base, cpu, products, &mut progress)?;
    }
    if !recipe.own_text() && to_do("eval/microworld.json") {
        microworld(run, recipe, cpu, products, &mut progress)?;
    }
    if recipe.eval.compressors && reads && to_do("eval/compressors.json") {
        progress.set(0, "xz and zstd");
        let training = texts(run, "data/documents.jsonl")?;
        let join = |t: &[String]| compress::join(t.iter().map(String::as_str));
        let sizes = compress::compare(&join(&training), &join(&heldout), cpu.pool.threads())?;
        store::write_json(&run.path("eval/compressors.json"), &sizes)?;
    }
    drop(progress);
    // Only what a stopped call left behind is taken up: what is damaged later is made anew.
    clear(&of)?;
    Ok(Facts::new())
}

/// The models of a run with their names: what it started from, and what it made.
fn models(run: &Run, base: Option<&Base>) -> Vec<(&'static str, PathBuf)> {
    let start = base.map(|base| ("start", base.path.clone()));
    let made = [("base", "base"), ("fine-tuned", "model")];
    let made = made.map(|(name, folder)| (name, run.path(folder)));
    start.into_iter().chain(made.into_iter().filter(|(_, path)| path.exists())).collect()
}

/// Bits per byte of the held-out text, of each model.
fn held_out(
    run: &Run,
    base: Option<&Base>,
    cpu: &Arc<Cpu>,
    products: DType,
    heldout: &[String],
    progress: &mut Progress,
) -> Result<(), Failure> {
    let bytes: usize = heldout.iter().map(String::len).sum();
    let mut scores =
        HeldoutScores { schema_version: eval::run::SCHEMA_VERSION, models: Vec::new() };
    for (name, path) in models(run, base) {
        progress.set(0, &format!("held-out text, {name} model"));
        let (loaded, mut ws) = load(&path, cpu, products)?;
        let documents = loaded.tokenizer.encode_batch(&cpu.pool, heldout);
        let ends = match base {
            Some(base) => base.ends,
            None => [end_of_text(&loaded.tokenizer)?; 2],
        };
        let score =
            eval::score::heldout(&loaded.transformer, &mut ws, &documents, ends, bytes as u64)?;
        scores.models.push(HeldoutScore { model: name.into(), score });
    }
    Ok(store::write_json(&run.path("eval/heldout.json"), &scores)?)
}

/// Bits per byte of the answers in held-out conversations, given what comes before them, of each model.
fn answers(
    run: &Run,
    recipe: &Recipe,
    base: Option<&Base>,
    cpu: &Arc<Cpu>,
    products: DType,
    progress: &mut Progress,
) -> Result<(), Failure> {
    let shards = Shards::open(&run.path("shards/heldout-conversations"), None)?;
    let (context, rows) = (recipe.model.context, recipe.finetune.micro_tokens);
    let held = training::validation(&shards, context, rows, LossOn::Learned);
    let mut scores =
        HeldoutScores { schema_version: eval::run::SCHEMA_VERSION, models: Vec::new() };
    for (name, path) in models(run, base) {
        progress.set(0, &format!("held-out answers, {name} model"));
        let (loaded, mut ws) = load(&path, cpu, products)?;
        let (mut nats, mut tokens) = (0.0, 0);
        for b in &held.batches {
            let each = loaded.transformer.loss_rows(&mut ws, &b.tokens, &b.targets, &b.spans);
            nats += each.iter().map(|x| f64::from(*x)).sum::<f64>();
            tokens += b.targets.iter().filter(|t| **t != IGNORE).count() as u64;
        }
        let score = Heldout {
            bits_per_byte: nats / std::f64::consts::LN_2 / held.bytes.max(1) as f64,
            nats_per_token: nats / tokens.max(1) as f64,
            documents: shards.totals().documents,
            tokens,
            bytes: held.bytes,
            ..Heldout::default()
        };
        scores.models.push(HeldoutScore { model: name.into(), score });
    }
    Ok(store::write_json(&run.path("eval/answers.json"), &scores)?)
}

/// A model to be measured: its weights as they are stored, all products exact.
fn load(path: &Path, cpu: &Arc<Cpu>, products: DType) -> Result<(Loaded, Workspace), Failure> {
    let loaded = directory::load_keeping(path, Some(cpu))?;
    let mut ws = Workspace::new(cpu.clone(), products);
    ws.set_exact(true);
    Ok((loaded, ws))
}

/// Puts the microworld's questions to the assistant, and to the base model with examples.
fn microworld(
    run: &Run,
    recipe: &Recipe,
    cpu: &Arc<Cpu>,
    products: DType,
    progress: &mut Progress,
) -> Result<(), Failure> {
    let questions = crate::world::world(recipe)?.questions(recipe.eval.questions);
    let mut results = Results { schema_version: eval::task::SCHEMA_VERSION, models: Vec::new() };
    for (name, folder, asked) in
        [("fine-tuned", "model", Asked::Chat), ("base", "base", Asked::FewShot)]
    {
        progress.set(0, &format!("{} questions to the {name} model", questions.len()));
        let Loaded { transformer, tokenizer, template, .. } = directory::load(&run.path(folder))?;
        let context = transformer.config().max_position_embeddings;
        let options = Options { products, ..Options::new(transformer.config(), SEQUENCES) };
        let tokenizer = Arc::new(tokenizer);
        let generator =
            Generator::start(Arc::new(transformer), tokenizer.clone(), cpu.clone(), options)?;
        let template = template.as_ref();
        let mut speaker = Greedy::new(&generator, &tokenizer, template, context, ANSWER_TOKENS);
        results.models.push(eval::microworld::evaluate(&mut speaker, &questions, name, asked)?);
    }
    Ok(store::write_json(&run.path("eval/microworld.json"), &results)?)
}

/// The texts of a file of documents.
fn texts(run: &Run, name: &str) -> Result<Vec<String>, Failure> {
    let lines = jsonl::read::<Line>(&run.path(name))?;
    Ok(lines.map(|line| line.map(|l| l.text)).collect::<Result<_, _>>()?)
}

/// Bits per byte and scores of a run, as `--json` tells them.
///
/// # Errors
/// What can't be read.
pub fn scores(run: &Run) -> Result<Value, Failure> {
    let read = |name: &str| store::read_json::<Value>(&run.path(name)).ok();
    let mut bits = Map::new();
    let held = |name: &str| -> Result<Vec<HeldoutScore>, Failure> {
        let path = run.path(name);
        let scores = path.exists().then(|| store::read_json::<HeldoutScores>(&path)).transpose()?;
        Ok(scores.unwrap_or_default().models)
    };
    for model in held("eval/heldout.json")? {
        let name = if model.model == "fine-tuned" { "model" } else { &model.model };
        bits.insert(name.into(), model.score.bits_per_byte.into());
    }
    if !bits.contains_key("model")
        && let Some(base) = bits.get("base").cloned()
    {
        bits.insert("model".into(), base);
    }
    if let Some(sizes) = read("eval/compressors.json") {
        bits.insert("xz".into(), sizes["xz"]["bits_per_byte"].clone());
        bits.insert("zstd".into(), sizes["zstd"]["bits_per_byte"].clone());
    }
    let results: Option<Results> = store::read_json(&run.path("eval/microworld.json")).ok();
    let first = results.as_ref().and_then(|r| r.models.first());
    let scores = first.map(|first| first.headline());
    let mut value = json!({"bits_per_byte": bits, "scores": scores});
    let answers = held("eval/answers.json")?.into_iter();
    let answers: Map<String, Value> =
        answers.map(|m| (m.model, m.score.nats_per_token.into())).collect();
    if !answers.is_empty() {
        value["answers"] = answers.into();
    }
    Ok(value)
}

/// Prints the scores of a run: a line a score, a column a model.
///
/// # Errors
/// What can't be read.
pub fn table(run: &Run) -> Result<(), Failure> {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    let results: Option<Results> = store::read_json(&run.path("eval/microworld.json")).ok();
    let models = results.map(|r| r.models).unwrap_or_default();
    let percent = |x: f64| format!("{:.1} %", x * 100.0);
    if let Some(first) = models.first() {
        let columns = models.iter().map(|m| format!("{} ({})", m.model, m.asked));
        let mut header = vec!["score".to_string()];
        header.extend(columns);
        header.push("chance".into());
        table.set_header(header);
        for score in &first.scores {
            let mut row = vec![score.title.clone()];
            row.extend(models.iter().map(|m| match m.score(&score.task) {
                Some(s) => {
                    let (low, high) = (s.share.low * 100.0, s.share.high * 100.0);
                    format!("{} ({low:.0}–{high:.0})", percent(s.share.value))
                }
                None => String::new(),
            }));
            row.push(score.chance.map(percent).unwrap_or_default());
            table.add_row(row);
        }
    }
    let all = scores(run)?;
    let kinds = [
        ("bits_per_byte", "Held-out bits per byte"),
        ("answers", "Held-out answers, nats per token"),
    ];
    for (key, title) in kinds {
        for (name, value) in all[key].as_object().into_iter().flatten() {
            let value = value.as_f64().unwrap_or(f64::NAN);
            table.add_row([format!("{title}, {name}"), format!("{value:.3}")]);
        }
    }
    for i in 1..table.column_count() {
        if let Some(column) = table.column_mut(i) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    crate::common::say(&table.trim_fmt());
    Ok(())
}

/// Whether a run reached what its recipe says it must.
///
/// # Errors
/// What it did not reach.
pub fn floors(floors: &BTreeMap<String, f64>, value: &Value) -> Result<(), Failure> {
    let mut missed = Vec::new();
    for (name, floor) in floors.iter().filter(|(_, f)| **f > 0.0) {
        let most = matches!(name.as_str(), "bits_per_byte" | "known_refused");
        let got = match name.as_str() {
            "bits_per_byte" => value["bits_per_byte"]["model"].as_f64(),
            name => value["scores"][name].as_f64(),
        };
        // A stage that was not asked for has no floor.
        let Some(got) = got else { continue };
        if if most { got > *floor } else { got < *floor } {
            let wanted = if most { "at most" } else { "at least" };
            missed.push(format!("{name} is {got:.3}, {wanted} {floor} was wanted"));
        }
    }
    if missed.is_empty() {
        Ok(())
    } else {
        Err(Failure::failed(format!(
            "the recipe's [floors] were not reached: {}",
            missed.join("; ")
        )))
    }
}
