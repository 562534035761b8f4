//! The stage evaluate: held-out text beside compressors, and the microworld's questions.

use std::collections::BTreeMap;
use std::sync::Arc;

use comfy_table::{CellAlignment, Table, presets};
use compute::Cpu;
use compute::tape::Workspace;
use compute::tensor::DType;
use data::jsonl;
use eval::compress;
use eval::microworld::Asked;
use eval::run::{HeldoutScore, HeldoutScores};
use eval::speaker::Greedy;
use eval::task::Results;
use model::directory::{self, Loaded};
use model::generator::{Generator, Options};
use serde_json::{Map, Value, json};
use store::Hash;

use crate::failure::Failure;
use crate::progress::Progress;
use crate::recipe::Recipe;
use crate::stage::{Facts, Run, clear};
use crate::tokenize::{Line, end_of_text};

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
    let heldout = texts(run, "data/heldout.jsonl")?;
    if to_do("eval/heldout.json") {
        held_out(run, cpu, products, &heldout, &mut progress)?;
    }
    if !recipe.own_text() && to_do("eval/microworld.json") {
        microworld(run, recipe, cpu, products, &mut progress)?;
    }
    if recipe.eval.compressors && to_do("eval/compressors.json") {
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

/// Bits per byte of the held-out text, of each model.
fn held_out(
    run: &Run,
    cpu: &Arc<Cpu>,
    products: DType,
    heldout: &[String],
    progress: &mut Progress,
) -> Result<(), Failure> {
    let bytes: usize = heldout.iter().map(String::len).sum();
    let mut models = Vec::new();
    for (name, folder) in [("base", "base"), ("fine-tuned", "model")] {
        if !run.path(folder).exists() {
            continue;
        }
        progress.set(0, &format!("held-out text, {name} model"));
        let loaded = directory::load(&run.path(folder))?;
        let mut ws = Workspace::new(cpu.clone(), products);
        let documents = loaded.tokenizer.encode_batch(&cpu.pool, heldout);
        let end = end_of_text(&loaded.tokenizer)?;
        let score =
            eval::score::heldout(&loaded.transformer, &mut ws, &documents, end, bytes as u64)?;
        models.push(HeldoutScore { model: name.into(), score });
    }
    let scores = HeldoutScores { schema_version: eval::run::SCHEMA_VERSION, models };
    Ok(store::write_json(&run.path("eval/heldout.json"), &scores)?)
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
    let heldout: HeldoutScores = store::read_json(&run.path("eval/heldout.json"))?;
    for model in &heldout.models {
        let name = if model.model == "base" { "base" } else { "model" };
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
    Ok(json!({"bits_per_byte": bits, "scores": scores}))
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
    let bits = scores(run)?["bits_per_byte"].clone();
    for (name, bits) in bits.as_object().into_iter().flatten() {
        let bits = bits.as_f64().unwrap_or(f64::NAN);
        table.add_row([format!("Held-out bits per byte, {name}"), format!("{bits:.3}")]);
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
