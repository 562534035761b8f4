//! Whether everything is still what the records say.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde_json::{Value, json};
use store::Hash;

use crate::common::{Common, harmless, say};
use crate::failure::Failure;
use crate::prepare::{BASE, CHATS, Source};
use crate::recipe::{DataSettings, Recipe};
use crate::show::origin::Origin;

/// How something is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// As it was.
    Ok,
    /// Other contents. Of a folder that knows its files, which of them.
    Changed(Vec<String>),
    /// Not there.
    Missing,
    /// It can't be read, and why.
    Unreadable(String),
    /// A stage read other contents than the stage before it has made since.
    Outdated(String),
    /// A source as it was.
    Unchanged,
    /// A source that is no longer where it was. Told, but no fault: the run has its text.
    Gone,
    /// A source with other contents now. Told, but no fault either.
    Newer,
    /// Not here to look at: a model that was copied out of its run has its own files only.
    Elsewhere,
}

impl State {
    /// Whether it is a fault.
    pub fn wrong(&self) -> bool {
        matches!(
            self,
            State::Changed(_) | State::Missing | State::Unreadable(_) | State::Outdated(_)
        )
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            State::Ok => write!(f, "ok"),
            State::Changed(files) if files.is_empty() => write!(f, "changed"),
            State::Changed(files) => write!(f, "changed: {}", files.join(", ")),
            State::Missing => write!(f, "missing"),
            State::Unreadable(why) => write!(f, "unreadable: {why}"),
            State::Outdated(stage) => write!(f, "made again since the stage {stage} read it"),
            State::Unchanged => write!(f, "unchanged"),
            State::Gone => write!(f, "gone"),
            State::Newer => write!(f, "has changed since"),
            State::Elsewhere => write!(f, "not here"),
        }
    }
}

/// The state of each artefact and source, by name.
pub struct Checks {
    states: BTreeMap<String, State>,
    /// Records that can't be read.
    broken: Vec<String>,
}

/// Computes the hashes of all that an origin is made of.
///
/// # Errors
/// Settings of the record of a stage that are none.
pub fn verify(origin: &Origin) -> Result<Checks, Failure> {
    let mut states = BTreeMap::new();
    for name in origin.names() {
        if origin.is_source(name) {
            continue;
        }
        let Some(recorded) = origin.recorded(name) else { continue };
        let state = match origin.place(name) {
            None => State::Elsewhere,
            Some(path) => match compare(&path, recorded) {
                State::Ok => outdated(origin, name, recorded).unwrap_or(State::Ok),
                other => other,
            },
        };
        states.insert(name.to_string(), state);
    }
    states.extend(sources(origin)?);
    let broken = origin.broken.iter().map(ToString::to_string).collect();
    Ok(Checks { states, broken })
}

/// Whether a file or folder has the contents that were recorded.
fn compare(path: &Path, recorded: Hash) -> State {
    // Of devices and pipes there is nothing to hash.
    if !(path.is_file() || path.is_dir()) {
        return State::Missing;
    }
    match store::hash_path(path) {
        Ok(now) if now == recorded => State::Ok,
        Ok(_) => State::Changed(files(path)),
        Err(e) => State::Unreadable(e.to_string()),
    }
}

/// The files of a model directory that are not those of its lineage.
fn files(folder: &Path) -> Vec<String> {
    let lineage = store::Lineage::read(&folder.join(store::lineage::FILE));
    let files = lineage.map(|l| l.files).unwrap_or_default();
    let same = |name: &str, hash: &Hash| {
        store::hash_file(&folder.join(name)).is_ok_and(|now| now == *hash)
    };
    files.into_iter().filter(|(name, hash)| !same(name, hash)).map(|(name, _)| name).collect()
}

/// The stage, of those behind the targets, that read something else under this name.
fn outdated(origin: &Origin, name: &str, recorded: Hash) -> Option<State> {
    let names = origin.names();
    let mut steps = origin.steps(&names);
    let reader = steps.find(|s| s.inputs.get(name).is_some_and(|read| *read != recorded));
    reader.map(|s| State::Outdated(s.stage.clone()))
}

/// The sources, where they still are: text of one's own, files of conversations. Their paths are
/// those that were given, so relative ones count from where the program is run.
fn sources(origin: &Origin) -> Result<BTreeMap<String, State>, Failure> {
    let Some(step) = origin.lineage.stages.iter().find(|s| s.stage == "prepare") else {
        return Ok(BTreeMap::new());
    };
    let mut states = BTreeMap::new();
    if step.inputs.is_empty() {
        return Ok(states);
    }
    let data: DataSettings = serde_json::from_value(step.settings["data"].clone())
        .map_err(|e| Failure::invalid(format!("the record of the stage prepare: {e}")))?;
    let recipe =
        Recipe { data: DataSettings { chats: Vec::new(), ..data }, ..Recipe::resolve(&[], &[])? };
    let bases = origin.lineage.stages.iter().flat_map(|s| &s.inputs);
    let bases = bases.filter(|(name, _)| name.starts_with(BASE));
    for (name, then) in step.inputs.iter().chain(bases) {
        let now = match name.strip_prefix(CHATS).or(name.strip_prefix(BASE)) {
            Some(path) => Path::new(path).exists().then(|| store::hash_path(Path::new(path)).ok()),
            None => recipe.data.docs.iter().all(|p| Path::new(p).exists()).then(|| {
                let now = Source::of(&recipe).and_then(|s| s.inputs(&recipe));
                now.ok()?.get(name).copied()
            }),
        };
        let state = match now {
            None => State::Gone,
            Some(now) if now == Some(*then) => State::Unchanged,
            // Also where no text is left, or none that can be read.
            Some(_) => State::Newer,
        };
        states.insert(name.clone(), state);
    }
    Ok(states)
}

impl Checks {
    /// The state of an artefact.
    pub fn state(&self, name: &str) -> Option<&State> {
        self.states.get(name)
    }

    /// Says how it came out, and adds it to what `--json` prints.
    ///
    /// # Errors
    /// A list of what is not as it was.
    pub fn conclude(
        &self,
        origin: &Origin,
        mut value: Value,
        common: &Common,
    ) -> Result<Value, Failure> {
        let wrong: Vec<String> = (self.states.iter())
            .filter(|(_, state)| state.wrong())
            .map(|(name, state)| harmless(&format!("{name}: {state}")))
            .chain(self.broken.iter().cloned())
            .collect();
        let looked = self.states.values().filter(|s| **s == State::Ok || s.wrong()).count();
        value["verified"] = json!({"ok": wrong.is_empty(), "artefacts": looked, "wrong": wrong});
        if wrong.is_empty() {
            if !common.json {
                say(&format!("\nAll {looked} artefacts are what the records say."));
            }
            return Ok(value);
        }
        let list: String = wrong.iter().map(|line| format!("\n  {line}")).collect();
        let n = wrong.len();
        let mut failure =
            Failure::failed(format!("{n} of {looked} are not what the records say:{list}"));
        if let Value::Object(details) = value {
            *failure.details = details;
        }
        Err(failure.hint(match origin.run {
            true => "The command that made the run makes again what must be.",
            false => "Copy it again from the run that made it.",
        }))
    }
}
