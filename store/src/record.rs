//! What a stage was made from and what it made: `stages/NAME.json` of a run directory.
//!
//! A stage is a function of its settings and its inputs. If both are what they were, and the
//! outputs are still those that were written then, there is nothing to do.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::StoreError;
use crate::hash::{Hash, hash_path};

/// The version of the form of [`Record`].
pub const SCHEMA_VERSION: u32 = 1;

/// One stage that was done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The stage's name.
    pub stage: String,
    /// All that it depends on besides its inputs.
    pub settings: Value,
    /// Content hashes of what it read, by path: relative to the run directory where it lies there.
    pub inputs: BTreeMap<String, Hash>,
    /// Content hashes of what it wrote (files and folders), by path in the run directory.
    pub outputs: BTreeMap<String, Hash>,
    /// Version of the program that did it. It is told, but does not make a stage stale.
    pub code: String,
    /// Wall-clock time it took.
    pub seconds: f64,
    /// Whatever else is worth telling: tokens, peak memory …
    #[serde(flatten)]
    pub facts: Map<String, Value>,
}

/// Why a stage has to be done (again).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stale {
    /// It never was, or not to its end.
    New,
    /// The record can't be read, or is of another version.
    Record(String),
    /// A setting differs.
    Setting(String),
    /// An input is new, gone, or has other contents.
    Input(String),
    /// An output is gone or has other contents.
    Output(String),
}

impl fmt::Display for Stale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stale::New => write!(f, "not done yet"),
            Stale::Record(why) => write!(f, "its record is not readable: {why}"),
            Stale::Setting(key) => write!(f, "the setting {key} has changed"),
            Stale::Input(path) => write!(f, "its input {path} has changed"),
            Stale::Output(path) => write!(f, "its output {path} is gone or has changed"),
        }
    }
}

impl Record {
    /// The record in `file`, if the stage need not be done again; else why it must.
    /// `root`: the run directory, which the paths of outputs start from.
    pub fn check(
        file: &Path,
        root: &Path,
        settings: &Value,
        inputs: &BTreeMap<String, Hash>,
    ) -> Result<Record, Stale> {
        if !file.exists() {
            return Err(Stale::New);
        }
        let unreadable = |e: StoreError| Stale::Record(e.to_string());
        let record: Record = crate::read_sealed(file).map_err(unreadable)?;
        if record.schema_version != SCHEMA_VERSION {
            let version = record.schema_version;
            return Err(Stale::Record(format!("schema_version {version}, not {SCHEMA_VERSION}")));
        }
        if let Some(key) = first_difference(&record.settings, settings, "") {
            return Err(Stale::Setting(key));
        }
        let names = record.inputs.keys().chain(inputs.keys());
        if let Some(name) = names.into_iter().find(|n| record.inputs.get(*n) != inputs.get(*n)) {
            return Err(Stale::Input(name.clone()));
        }
        let damaged = record.damaged(root).next().map(String::from);
        damaged.map_or(Ok(record), |name| Err(Stale::Output(name)))
    }

    /// The outputs that are not what they were.
    pub fn damaged(&self, root: &Path) -> impl Iterator<Item = &str> {
        let same = |name: &str, hash| hash_path(&root.join(name)).is_ok_and(|now| now == hash);
        self.outputs.iter().filter(move |(name, hash)| !same(name, **hash)).map(|(n, _)| n.as_str())
    }

    /// Hashes the outputs of a stage that has just been done, and writes its record.
    ///
    /// # Errors
    /// [`StoreError::Io`] if an output or the record's file can't be used.
    pub fn finish(
        mut self,
        file: &Path,
        root: &Path,
        outputs: &[&str],
    ) -> Result<Record, StoreError> {
        for name in outputs {
            self.outputs.insert((*name).to_string(), hash_path(&root.join(name))?);
        }
        crate::write_sealed(file, &self)?;
        Ok(self)
    }
}

/// The dotted name of the first setting in which two values differ.
fn first_difference(a: &Value, b: &Value, at: &str) -> Option<String> {
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            let keys = x.keys().chain(y.keys().filter(|k| !x.contains_key(*k)));
            keys.into_iter().find_map(|key| {
                let name = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
                let null = &Value::Null;
                first_difference(x.get(key).unwrap_or(null), y.get(key).unwrap_or(null), &name)
            })
        }
        _ => (a != b).then(|| at.to_string()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_stage_is_stale_for_a_reason() {
        let dir = tempfile::tempdir().unwrap();
        let (root, file) = (dir.path(), dir.path().join("stages/tokenize.json"));
        let settings = json!({"seed": 1, "tokenizer": {"vocab_size": 2048}});
        let inputs = BTreeMap::from([("data".to_string(), crate::hash_bytes(b"1"))]);
        let check = |s: &Value, i: &_| Record::check(&file, root, s, i);
        assert_eq!(check(&settings, &inputs), Err(Stale::New));

        crate::write_atomic(&root.join("shards/train"), b"tokens").unwrap();
        let record = Record {
            schema_version: SCHEMA_VERSION,
            stage: "tokenize".into(),
            settings: settings.clone(),
            inputs: inputs.clone(),
            outputs: BTreeMap::new(),
            code: "0.1.0".into(),
            seconds: 0.25,
            facts: Map::from_iter([("tokens".to_string(), json!(5))]),
        };
        let record = record.finish(&file, root, &["shards"]).unwrap();
        assert_eq!(check(&settings, &inputs), Ok(record));

        let other = json!({"seed": 1, "tokenizer": {"vocab_size": 512}});
        let reason = check(&other, &inputs).unwrap_err();
        assert_eq!(reason, Stale::Setting("tokenizer.vocab_size".into()));
        let other = json!({"seed": 1, "tokenizer": {"vocab_size": 2048}, "new": true});
        assert_eq!(check(&other, &inputs), Err(Stale::Setting("new".into())));
        let changed = BTreeMap::from([("data".to_string(), crate::hash_bytes(b"2"))]);
        assert_eq!(check(&settings, &changed), Err(Stale::Input("data".into())));
        assert_eq!(check(&settings, &BTreeMap::new()), Err(Stale::Input("data".into())));

        crate::write_atomic(&root.join("shards/train"), b"tokenz").unwrap();
        assert_eq!(check(&settings, &inputs), Err(Stale::Output("shards".into())));
        std::fs::write(&file, "{").unwrap();
        assert!(matches!(check(&settings, &inputs), Err(Stale::Record(_))));
    }
}
