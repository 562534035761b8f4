//! Settings of stages beside those of the default recipe.

use serde_json::{Map, Value};
use store::Lineage;
use store::lineage::Step;

use crate::failure::Failure;
use crate::recipe::{DOCS, Recipe, TUNE};

/// Where stages have settings under another name than recipes.
const NAMES: [(&str, &str); 5] = [
    ("mixture", "mixture.conversations"),
    ("replay", "mixture.replay"),
    ("questions", "eval.questions"),
    ("context", "model.context"),
    ("validation_bytes", "eval.validation_bytes"),
];

/// A setting that is not the default.
pub struct Change {
    /// Its dotted name in a recipe.
    pub key: String,
    /// What it was.
    pub value: Value,
    /// What it is by default; null if that has no such setting.
    pub default: Value,
}

/// The settings of a stage that are not those of the default recipe, of `grow` or `grow --docs`.
///
/// # Errors
/// If the default recipe is broken.
pub fn changes(lineage: &Lineage, step: &Step) -> Result<Vec<Change>, Failure> {
    let own = lineage.stages.iter().any(|s| !s.settings["data"].is_null());
    let tuned = lineage.stages.iter().any(|s| !s.settings["lora"].is_null());
    let set = |key: &str| ("--set".to_string(), key.to_string());
    let default = match (tuned, own) {
        // What they are matters to no setting.
        (true, _) => {
            let sets = [set("base=a model"), set("data.chats=[\"conversations\"]")];
            Recipe::resolve(&[("recipes/tune.toml", TUNE)], &sets)?
        }
        (false, true) => Recipe::resolve(&[("recipes/docs.toml", DOCS)], &[])?,
        (false, false) => Recipe::resolve(&[], &[])?,
    };
    let default = serde_json::to_value(default).map_err(Failure::failed)?;
    let mut changes = Vec::new();
    for (name, value) in step.settings.as_object().into_iter().flatten() {
        let known = NAMES.iter().find(|(n, _)| n == name && !value.is_object());
        let key = known.map_or(name.as_str(), |(_, key)| key);
        let default = default.pointer(&format!("/{}", key.replace('.', "/")));
        // Choices of the machine and of the program are no settings; see `choices`.
        if let Some(default) = default {
            compare(key, value, default, &mut changes);
        }
    }
    Ok(changes)
}

/// What a stage depends on that no recipe sets, such as the type of operands; the short ones.
pub fn choices(step: &Step) -> Map<String, Value> {
    let choice = |name: &str| Some((name.to_string(), step.settings.get(name)?.clone()));
    ["products"].into_iter().filter_map(choice).collect()
}

/// The seed of a stage that has one.
pub fn seed(step: &Step) -> Option<u64> {
    step.settings["seed"].as_u64()
}

fn compare(key: &str, value: &Value, default: &Value, changes: &mut Vec<Change>) {
    match (value, default) {
        // A table of another kind has other keys.
        (Value::Object(a), Value::Object(b)) if a.get("kind") == b.get("kind") => {
            for name in a.keys().chain(b.keys().filter(|k| !a.contains_key(*k))) {
                let of = |table: &Map<String, Value>| table.get(name).cloned().unwrap_or_default();
                compare(&format!("{key}.{name}"), &of(a), &of(b), changes);
            }
        }
        // It is told beside the stage's name.
        _ if value != default && key != "seed" => changes.push(Change {
            key: key.to_string(),
            value: value.clone(),
            default: default.clone(),
        }),
        _ => {}
    }
}
