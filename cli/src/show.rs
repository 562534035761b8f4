//! `homegrown show`: where something is from, whether it is still what it was, and which texts
//! hold given words.

mod holds;
mod origin;
mod settings;
mod tree;
mod verify;

use std::path::{Path, PathBuf};

use clap::Args;
use model::about::{About, about, about_gguf};
use serde_json::{Value, json};
use store::{Lineage, lineage};

use crate::common::{Common, say};
use crate::failure::Failure;
use crate::fetched::local;
use crate::progress::count;
use origin::Origin;

/// Arguments of `show`.
#[derive(Args, Debug)]
pub struct ShowArgs {
    /// A run directory, anything in it, a model directory, a GGUF file, or hf:ORG/NAME[:FILE].
    pub path: PathBuf,
    /// Compute all content hashes again and compare them with the records.
    #[arg(long)]
    pub verify: bool,
    /// Which texts of the run hold these words? Case, punctuation and white space make no
    /// difference. @FILE: each line of a file is a phrase.
    #[arg(long, value_name = "WORDS|@FILE", conflicts_with = "verify", allow_hyphen_values = true)]
    pub holds: Option<String>,
    /// Texts that --holds shows.
    #[arg(long, value_name = "N", default_value_t = 20, requires = "holds")]
    pub limit: usize,
}

/// Runs the command.
///
/// # Errors
/// A path that is neither of a run nor a model; with `--verify`, what is not as it was.
pub fn show(args: &ShowArgs, common: &Common) -> Result<Value, Failure> {
    let path = std::fs::canonicalize(local(&args.path)?)
        .map_err(store::StoreError::io("read", args.path.as_path()))?;
    if let Some(words) = &args.holds {
        let run = run_of(&path).ok_or_else(|| {
            Failure::invalid(format!("{} is not in a run directory", args.path.display()))
                .hint("--holds looks through the texts that a run has in its data/.")
        })?;
        return holds::holds(run, words, args.limit, common);
    }
    if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) {
        return model_alone(&path, args.verify, common);
    }
    let origin = match run_of(&path) {
        Some(run) => Origin::in_run(run, &path)?,
        None => {
            let folder =
                if path.is_dir() { path.as_path() } else { path.parent().unwrap_or(&path) };
            if !folder.join("config.json").is_file() {
                let what = args.path.display();
                return Err(Failure::invalid(format!(
                    "{what} is neither in a run directory nor in a model directory"
                ))
                .hint(
                    "A run directory has recipe.toml and stages/; a model directory, config.json.",
                ));
            }
            let carried = folder.join(lineage::FILE);
            if !carried.is_file() {
                return model_alone(folder, args.verify, common);
            }
            Origin::carried(folder, Lineage::read(&carried)?)
        }
    };
    let checks = args.verify.then(|| verify::verify(&origin)).transpose()?;
    let model = origin.model().and_then(|folder| about(&folder).ok());
    if !common.json {
        tree::print(&origin, checks.as_ref())?;
        if let Some(model) = &model {
            say("");
            table(model);
        }
    }
    let mut value = origin.json(checks.as_ref())?;
    if let Some(model) = &model {
        value["model"] = serde_json::to_value(model).map_err(Failure::failed)?;
    }
    match checks {
        Some(checks) => checks.conclude(&origin, value, common),
        None => Ok(value),
    }
}

/// A model that doesn't say where it is from.
fn model_alone(folder: &Path, verify: bool, common: &Common) -> Result<Value, Failure> {
    if verify {
        let why = format!("{} has no {}", folder.display(), lineage::FILE);
        return Err(Failure::invalid(format!("{why}: there is nothing to verify it by")));
    }
    let model = if folder.is_file() { about_gguf(folder)? } else { about(folder)? };
    if !common.json {
        say(&format!("{}: a model without a lineage", folder.display()));
        table(&model);
    }
    Ok(json!({"path": folder, "model": model}))
}

/// Prints facts about a model.
fn table(model: &About) {
    let number = |n: Option<u64>| n.map_or("?".to_string(), |n| n.to_string());
    let types: Vec<String> =
        model.dtypes.iter().map(|(dtype, n)| format!("{} {dtype}", count(*n))).collect();
    let family = match &model.architecture {
        Some(class) => format!("{} ({class})", model.family),
        None => model.family.clone(),
    };
    let memory = match model.context_bytes {
        Some(context) => format!(
            "{}B of weights and {}B for a full context",
            count(model.memory_bytes),
            count(context)
        ),
        None => format!("{}B of weights", count(model.memory_bytes)),
    };
    for (name, value) in [
        ("family", family),
        ("parameters", format!("{} ({})", count(model.parameters), types.join(", "))),
        (
            "shape",
            format!(
                "{} layers of width {}, {} heads over {} of keys and values",
                number(model.layers),
                number(model.width),
                number(model.heads),
                number(model.kv_heads)
            ),
        ),
        (
            "vocabulary",
            format!("{}; the tokenizer has {}", number(model.vocabulary), number(model.tokens)),
        ),
        ("context", format!("{} tokens", number(model.context))),
        ("chat template", if model.chat_template { "yes" } else { "no" }.to_string()),
        ("memory", memory),
    ] {
        say(&format!("{name:>14}  {value}"));
    }
    model.problems.iter().for_each(|p| eprintln!("   note: {p}"));
}

/// The run directory that a path is or lies in.
fn run_of(path: &Path) -> Option<&Path> {
    path.ancestors().find(|p| p.join("recipe.toml").is_file() && p.join("stages").is_dir())
}
