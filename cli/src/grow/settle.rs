//! The settings of a run: flags over `--set` over the recipe over the default; and whether what they
//! ask for fits the memory.

use std::path::{Path, PathBuf};

use super::GrowArgs;
use crate::common::Common;
use crate::failure::Failure;
use crate::progress::count;
use crate::recipe::{DOCS, Recipe};

/// The run's name and its settings: flags over `--set` over the recipe over the default.
pub fn settle(args: &GrowArgs, common: &Common) -> Result<(String, Recipe), Failure> {
    let stem = |p: &Path| p.file_stem().map(|s| s.to_string_lossy().into_owned());
    let read = |path: &PathBuf| -> Result<(String, String), Failure> {
        Ok((path.display().to_string(), store::read_text(path)?))
    };
    let file = match &args.recipe {
        Some(path) => Some(read(path)?),
        None if !args.docs.is_empty() => Some(("recipes/docs.toml".into(), DOCS.to_string())),
        None => None,
    };
    let name = args.recipe.as_deref().or(args.docs.first().map(PathBuf::as_path));
    let name = name.and_then(stem).unwrap_or_else(|| "default".to_string());
    let mut sets: Vec<(String, String)> =
        args.sets.iter().map(|s| ("--set".to_string(), s.clone())).collect();
    let mut set = |flag: &str, key: &str, value: String| {
        sets.push((flag.to_string(), format!("{key}={value}")));
    };
    let list = |paths: &[PathBuf]| {
        let paths = paths.iter().map(|p| toml::Value::String(p.display().to_string()));
        toml::Value::Array(paths.collect()).to_string()
    };
    if !args.docs.is_empty() {
        set("--docs", "data.docs", list(&args.docs));
    }
    if !args.chats.is_empty() {
        set("--chats", "data.chats", list(&args.chats));
    }
    if let Some(seed) = common.seed {
        set("--seed", "seed", seed.to_string());
    }
    if let Some(minutes) = args.minutes {
        set("--minutes", "minutes", minutes.to_string());
    }
    let recipe = Recipe::resolve(file.as_ref().map(|(n, t)| (n.as_str(), t.as_str())), &sets)?;
    if !recipe.data.chats.is_empty() && !recipe.own_text() {
        return Err(Failure::invalid(
            "--chats goes with --docs: the microworld has its own conversations",
        )
        .hint("Give the text of your own with --docs PATH."));
    }
    Ok((name, recipe))
}

/// Whether a model can be trained in the memory that there is, before any of it is taken.
pub fn check_memory(recipe: &Recipe) -> Result<(), Failure> {
    let config = recipe.config(recipe.tokenizer.vocab_size, None, None);
    let [c, f] = [config.hidden_size, config.intermediate_size].map(|n| n as u64);
    let elements = |shape: &[usize]| shape.iter().map(|n| *n as u64).product::<u64>();
    let parameters: u64 = model::transformer::shapes(&config).iter().map(|s| elements(&s.1)).sum();
    // Weights, packed twice; gradients; two moments.
    let weights = 24 * parameters;
    // What a layer keeps of a row for the backward pass, and its gradients.
    let rows = recipe.pretrain.micro_tokens.max(recipe.finetune.micro_tokens) as u64;
    let heads = (config.query_width() + 2 * config.key_width()) as u64;
    let row = (config.num_hidden_layers as u64 + 1) * (6 * c + 3 * heads + 4 * f);
    let logits = 3 * 256 * config.vocab_size as u64;
    let need = weights + 4 * (rows * row + logits);
    match store::available_memory() {
        Some(available) if need > available => Err(Failure::invalid(format!(
            "a model of {} parameters needs about {}B of memory to train, and {}B are available",
            count(parameters),
            count(need),
            count(available)
        ))
        .hint(
            "Make it smaller (model.layers, model.dim, model.ffn), or lower pretrain.micro_tokens.",
        )),
        _ => Ok(()),
    }
}
