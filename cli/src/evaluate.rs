//! The stage evaluate: held-out text beside compressors, and the microworld's questions.

use std::collections::BTreeMap;
use std::sync::Arc;

use comfy_table::{CellAlignment, Table, presets};
use compute::Cpu;
use compute::tape::Workspace;
use compute::tensor::DType;
use data::jsonl;
use eval::compress::{self, Compressors};
use eval::run::{HeldoutScore, HeldoutScores};
use eval::task::Results;
use model::directory;
use model::template::ChatTemplate;
use model::tokenizer::Tokenizer;
use model::transformer::Transformer;
use serde_json::{Map, Value, json};
use train::Sample;

use crate::failure::Failure;
use crate::progress::Progress;
use crate::recipe::Recipe;
use crate::stage::{Facts, Run, clear};
use crate::tokenize::{Line, end_of_text};

/// What a model writes while it is trained.
type Sampler<'a> = Box<dyn FnMut(&Transformer, &mut Workspace) -> Vec<Sample> + 'a>;

/// Samples of a model in training: beginnings of held-out documents, continued; or, with a
/// template, questions.
///
/// # Errors
/// What can't be read.
pub fn sampler<'a>(
    _run: &Run,
    _tokenizer: &'a Tokenizer,
    _template: Option<&'a ChatTemplate>,
) -> Result<Sampler<'a>, Failure> {
    Ok(Box::new(|_, _| Vec::new()))
}

/// Writes `eval/`.
///
/// # Errors
/// What can't be read, scored or written.
pub fn evaluate(
    run: &Run,
    recipe: &Recipe,
    cpu: &Arc<Cpu>,
    products: DType,
) -> Result<Facts, Failure> {
    clear(&run.path("eval"))?;
    let mut progress = Progress::start("evaluate", 0);
    let heldout = texts(run, "data/heldout.jsonl")?;
    let bytes: usize = heldout.iter().map(String::len).sum();
    let mut models = Vec::new();
    for (name, folder) in [("base", "base"), ("fine-tuned", "model")] {
        if !run.path(folder).exists() {
            continue;
        }
        progress.set(0, &format!("held-out text, {name} model"));
        let loaded = directory::load(&run.path(folder))?;
        let mut ws = Workspace::new(cpu.clone(), products);
        let documents = loaded.tokenizer.encode_batch(&cpu.pool, &heldout);
        let end = end_of_text(&loaded.tokenizer)?;
        let score =
            eval::score::heldout(&loaded.transformer, &mut ws, &documents, end, bytes as u64)?;
        models.push(HeldoutScore { model: name.into(), score });
    }
    let scores = HeldoutScores { schema_version: eval::run::SCHEMA_VERSION, models };
    store::write_json(&run.path("eval/heldout.json"), &scores)?;
    if recipe.eval.compressors {
        progress.set(0, "xz and zstd");
        let training = texts(run, "data/documents.jsonl")?;
        let join = |t: &[String]| compress::join(t.iter().map(String::as_str));
        let sizes = compress::compare(&join(&training), &join(&heldout), cpu.pool.threads())?;
        store::write_json(&run.path("eval/compressors.json"), &sizes)?;
    }
    drop(progress);
    Ok(Facts::new())
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
    let mut scores = Map::new();
    let results: Option<Results> = store::read_json(&run.path("eval/microworld.json")).ok();
    if let Some(last) = results.as_ref().and_then(|r| r.models.last()) {
        for score in &last.scores {
            scores.insert(score.task.clone(), score.share.value.into());
        }
    }
    Ok(json!({"bits_per_byte": bits, "scores": scores}))
}

/// Prints the scores of a run.
///
/// # Errors
/// What can't be read.
pub fn table(run: &Run) -> Result<(), Failure> {
    let value = scores(run)?;
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY).set_header(["score", "value"]);
    for (name, bits) in value["bits_per_byte"].as_object().into_iter().flatten() {
        let bits = bits.as_f64().unwrap_or(f64::NAN);
        table.add_row([format!("bits per byte, {name}"), format!("{bits:.3}")]);
    }
    for (name, share) in value["scores"].as_object().into_iter().flatten() {
        let share = share.as_f64().unwrap_or(f64::NAN);
        table.add_row([name.clone(), format!("{:.1} %", share * 100.0)]);
    }
    if let Some(column) = table.column_mut(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    crate::common::say(&table.to_string());
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
