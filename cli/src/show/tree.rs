//! The tree of an origin on the terminal: what there is, the stage that made it, and what that
//! stage was given.

use std::collections::BTreeSet;

use serde_json::Value;
use store::lineage::Step;

use crate::common::{self, harmless};
use crate::failure::Failure;
use crate::progress::count;
use crate::show::origin::{Origin, size};
use crate::show::settings;
use crate::show::verify::Checks;

/// Digits of a hash that are shown; `--json` has all.
const DIGITS: usize = 16;
/// Columns that lists of settings are broken at.
const WIDTH: usize = 100;

/// Prints a line of what others may have written.
fn say(line: &str) {
    common::say(&harmless(line));
}

/// Prints it. An artefact or stage that was shown before is only named.
///
/// # Errors
/// See [`settings::changes`].
pub fn print(origin: &Origin, checks: Option<&Checks>) -> Result<(), Failure> {
    let mut tree = Tree { origin, checks, shown: BTreeSet::new() };
    say(&match &origin.note {
        Some(note) => format!("{}\n{note}", origin.root.display()),
        None => origin.path.display().to_string(),
    });
    // What is asked for but stands behind something else that is asked for comes there.
    let read: BTreeSet<&str> = origin
        .names()
        .into_iter()
        .filter_map(|n| origin.lineage.maker(n))
        .flat_map(|s| s.inputs.keys().map(String::as_str))
        .collect();
    let mut tops: Vec<&str> = origin.targets.iter().map(String::as_str).collect();
    tops.retain(|t| !read.contains(t));
    let order = origin.names();
    tops.sort_by_key(|t| order.iter().position(|n| n == t));
    let mut by_stage: Vec<(Option<&Step>, Vec<&str>)> = Vec::new();
    for top in tops {
        let maker = origin.lineage.maker(top);
        let same = |m: &Option<&Step>| m.map(|s| &s.stage) == maker.map(|s| &s.stage);
        match by_stage.last_mut() {
            Some((stage, names)) if same(stage) => names.push(top),
            _ => by_stage.push((maker, vec![top])),
        }
    }
    for (maker, names) in by_stage {
        names.iter().for_each(|name| tree.line(name, ""));
        if let Some(step) = maker {
            tree.stage(step, "")?;
        }
    }
    for broken in &origin.broken {
        say(&format!("{broken}"));
    }
    Ok(())
}

struct Tree<'a> {
    origin: &'a Origin,
    checks: Option<&'a Checks>,
    /// Stages that were shown.
    shown: BTreeSet<&'a str>,
}

impl<'a> Tree<'a> {
    /// An artefact or source: name, hash, size, state.
    fn line(&self, name: &str, before: &str) {
        let place = self.origin.place(name);
        let folder = place.as_deref().is_some_and(|p| p.is_dir());
        let mut parts = vec![format!("{name}{}", if folder { "/" } else { "" })];
        parts.extend(self.origin.recorded(name).map(|h| h.to_string()[..DIGITS].to_string()));
        parts.extend(place.and_then(|p| size(&p)).map(|n| format!("{}B", count(n))));
        parts.extend(self.checks.and_then(|c| c.state(name)).map(ToString::to_string));
        say(&format!("{before}{}", parts.join("  ")));
    }

    /// The stage that made what stands above, and what it read.
    fn stage(&mut self, step: &'a Step, indent: &str) -> Result<(), Failure> {
        let mut title = vec![step.stage.clone()];
        if !self.shown.insert(&step.stage) {
            say(&format!("{indent}└─ {} (see above)", step.stage));
            return Ok(());
        }
        title.push(format!("homegrown {}", step.code));
        title.extend(settings::seed(step).map(|seed| format!("seed {seed}")));
        let plain = |v: &Value| v.as_str().map_or_else(|| v.to_string(), String::from);
        let choice = |(name, value): (String, Value)| format!("{name} {}", plain(&value));
        title.extend(settings::choices(step).into_iter().map(choice));
        say(&format!("{indent}└─ {}", title.join(", ")));

        let indent = format!("{indent}   ");
        let bar = if step.inputs.is_empty() { " " } else { "│" };
        let mut changes = settings::changes(&self.origin.lineage, step)?;
        // Paths of texts stand below, as what was read.
        changes.retain(|c| c.key != "data.docs" && c.key != "data.chats");
        let change = |c: &settings::Change| {
            let default = plain(&c.default);
            format!("{} = {} (not {default})", c.key, plain(&c.value))
        };
        let mut notes = facts(step);
        if changes.is_empty() && step.settings != serde_json::json!({}) {
            notes.push("settings of the default recipe".into());
        } else {
            notes.extend(wrap(changes.iter().map(change)));
        }
        notes.iter().for_each(|note| say(&format!("{indent}{bar}  {note}")));
        if step.stage == "prepare" && step.inputs.is_empty() {
            let seed = settings::seed(step).unwrap_or(0);
            let people = step.settings["world"]["people"].as_u64().unwrap_or(0);
            say(&format!("{indent}└─ the microworld of seed {seed}: {people} people, made up"));
        }
        // What later stages made comes first: behind it stands most of the rest.
        let names = self.origin.names();
        let mut inputs: Vec<&str> = step.inputs.keys().map(String::as_str).collect();
        inputs.sort_by_key(|i| names.iter().position(|n| n == i));
        for (i, input) in inputs.iter().enumerate() {
            let last = i + 1 == inputs.len();
            self.line(input, &format!("{indent}{} ", if last { "└─" } else { "├─" }));
            if let Some(maker) = self.origin.lineage.maker(input)
                && !self.shown.contains(maker.stage.as_str())
            {
                self.stage(maker, &format!("{indent}{}  ", if last { " " } else { "│" }))?;
            }
        }
        Ok(())
    }
}

/// What a stage tells of its texts.
fn facts(step: &Step) -> Vec<String> {
    let number = |value: &Value| value.as_u64().map(count);
    let mut lines = Vec::new();
    if let Some(kinds) = step.facts.get("kinds").and_then(Value::as_object) {
        let sum = |key: &str| kinds.values().filter_map(|k| k[key].as_u64()).sum::<u64>();
        lines.push(format!("{} texts, {}B:", count(sum("documents")), count(sum("bytes"))));
        let kind = |(name, k): (&String, &Value)| {
            Some(format!("{} {name} ({}B)", number(&k["documents"])?, number(&k["bytes"])?))
        };
        lines.extend(wrap(kinds.iter().filter_map(kind)));
    }
    if let Some(held) = step.facts.get("heldout").and_then(Value::as_str) {
        lines.push(format!("held out: {held}"));
    }
    if let Some(tokens) = step.facts.get("tokens").and_then(number) {
        let steps = step.facts.get("steps").and_then(number);
        let steps = steps.map(|s| format!(" in {s} steps")).unwrap_or_default();
        lines.push(format!("{tokens} tokens{steps}"));
    }
    lines
}

/// Items in lines of about [`WIDTH`].
fn wrap(items: impl Iterator<Item = String>) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for item in items {
        match lines.last_mut() {
            Some(line) if line.chars().count() + item.chars().count() + 2 <= WIDTH => {
                line.push_str(", ");
                line.push_str(&item);
            }
            _ => lines.push(item),
        }
    }
    lines
}
