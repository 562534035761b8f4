//! The settings of a run: flags over `--set` over the recipe over the default; and whether what they
//! ask for fits the memory.

use std::path::{Path, PathBuf};

use model::config::Config;

use super::GrowArgs;
use crate::common::Common;
use crate::failure::Failure;
use crate::progress::count;
use crate::recipe::{DOCS, Recipe, TUNE};

/// The run's name and its settings: flags over `--set` over the recipe over the default.
pub fn settle(args: &GrowArgs, common: &Common) -> Result<(String, Recipe), Failure> {
    let stem = |p: &Path| p.file_stem().map(|s| s.to_string_lossy().into_owned());
    let file = match &args.recipe {
        Some(path) => Some((path.display().to_string(), store::read_text(path)?)),
        None => None,
    };
    let names = [args.recipe.as_ref(), args.docs.first(), args.chats.first()];
    let name = names.into_iter().flatten().next().and_then(|p| stem(p));
    let name = name.unwrap_or_else(|| "default".to_string());
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
    if let Some(base) = &args.base {
        set("--base", "base", toml::Value::String(base.clone()).to_string());
    }
    let based = |text: &str| {
        let table = text.parse::<toml::Table>().ok();
        table.and_then(|t| Some(!t.get("base")?.as_str()?.is_empty()))
    };
    let last = sets.iter().rev().find_map(|(_, set)| set.strip_prefix("base="));
    let tuned = match (last, &file) {
        (Some(base), _) => !base.trim_matches('"').is_empty(),
        (None, Some((_, text))) => based(text).unwrap_or(false),
        (None, None) => false,
    };
    let mut recipes = Vec::new();
    if tuned {
        recipes.push(("recipes/tune.toml", TUNE));
    } else if file.is_none() && !args.docs.is_empty() {
        recipes.push(("recipes/docs.toml", DOCS));
    }
    recipes.extend(file.as_ref().map(|(name, text)| (name.as_str(), text.as_str())));
    let recipe = Recipe::resolve(&recipes, &sets)?;
    if !recipe.data.chats.is_empty() && !recipe.own_text() {
        return Err(Failure::invalid(
            "--chats goes with --docs: the microworld has its own conversations",
        )
        .hint("Give the text of your own with --docs PATH."));
    }
    Ok((name, recipe))
}

/// Bytes that training takes beside the weights: what a layer keeps of a row for the way back, with gradients.
/// `recompute`: it is kept of one layer, and of the others only what goes in.
pub fn step_bytes(config: &Config, recipe: &Recipe, recompute: bool) -> u64 {
    let [c, f] = [config.hidden_size, config.intermediate_size].map(|n| n as u64);
    let rows = recipe.pretrain.micro_tokens.max(recipe.finetune.micro_tokens) as u64;
    let heads = (config.query_width() + 2 * config.key_width()) as u64;
    let (layers, layer) = (config.num_hidden_layers as u64 + 1, 6 * c + 3 * heads + 4 * f);
    let row = if recompute { layers * c + 2 * layer } else { layers * layer };
    let logits = 3 * 256 * config.vocab_size as u64;
    4 * (rows * row + logits)
}

/// Whether a model of `parameters`, whose weights and what training keeps of them take `weights` bytes, can be
/// trained in the memory that there is, before any of it is taken. Says whether layers have to be computed twice
/// for that.
pub fn fit_memory(
    config: &Config,
    recipe: &Recipe,
    parameters: u64,
    weights: u64,
) -> Result<bool, Failure> {
    let need = |recompute| weights + step_bytes(config, recipe, recompute);
    let available = store::available_memory().unwrap_or(u64::MAX);
    let (all, least) = (need(recipe.recompute), need(true));
    if least > available {
        let failure = Failure::invalid(format!(
            "a model of {} parameters needs about {}B of memory to train, and {}B are available",
            count(parameters),
            count(least),
            count(available)
        ));
        return Err(failure.hint(match recipe.base.is_empty() {
            true => {
                "Make it smaller (model.layers, model.dim, model.ffn), or lower pretrain.micro_tokens."
            }
            false => {
                "Train adapters (lora.rank) over a quantised base, or lower model.context and the stages' micro_tokens."
            }
        }));
    }
    let (all, least, there) = (count(all), count(least), count(available));
    let again = need(recipe.recompute) > available;
    match again {
        true => eprintln!(
            "   note: training would take {all}B of memory, and {there}B are available: layers are computed \
             once more on the way back, in {least}B"
        ),
        false => eprintln!("{:>10} about {all}B of memory, {there}B are available", ""),
    }
    Ok(again || recipe.recompute)
}

/// The same for a new model of a recipe: f32 weights, packed twice; gradients; two moments.
pub fn check_memory(recipe: &Recipe) -> Result<bool, Failure> {
    let config = recipe.config(recipe.tokenizer.vocab_size, None, None);
    let elements = |shape: &[usize]| shape.iter().map(|n| *n as u64).product::<u64>();
    let parameters: u64 = model::transformer::shapes(&config).iter().map(|s| elements(&s.1)).sum();
    fit_memory(&config, recipe, parameters, 24 * parameters)
}
