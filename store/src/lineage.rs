//! Where something is from: the stages behind it, back to its sources. Read from the records of a
//! run directory, or from the `lineage.json` that a model carries with it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::hash::{Hash, hash_file};
use crate::{Record, StoreError, record};

/// The file that a model directory carries. It tells of the directory and is no part of its
/// contents: [`hash_dir`](crate::hash_dir) passes it over, so a model that was made again, of the
/// same bytes on another way, is the same input to what follows.
pub const FILE: &str = "lineage.json";

/// The version of the form of [`Lineage`].
pub const SCHEMA_VERSION: u32 = 1;

/// Most stages that a file may tell of.
const STAGES: usize = 256;

/// Stages and what they made from what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lineage {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// Content hashes of the files that it lies beside, by name; empty for a run.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, Hash>,
    /// The stages, those before which others depend on. In a model's file the last one made it.
    pub stages: Vec<Step>,
}

/// A stage, without what differs from one time to the next.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// The stage's name.
    pub stage: String,
    /// Version of the program that did it.
    pub code: String,
    /// All that it depends on besides its inputs.
    pub settings: Value,
    /// Content hashes of what it read, by path.
    pub inputs: BTreeMap<String, Hash>,
    /// Content hashes of what it wrote, by path in the run directory.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub outputs: BTreeMap<String, Hash>,
    /// What else is worth telling.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub facts: Map<String, Value>,
}

impl From<Record> for Step {
    fn from(record: Record) -> Step {
        let Record { stage, settings, inputs, outputs, code, facts, .. } = record;
        Step { stage, code, settings, inputs, outputs, facts }
    }
}

impl Lineage {
    /// What a run's records tell, and why some of them don't.
    ///
    /// # Errors
    /// [`StoreError::Io`] if there are no records to list.
    pub fn of_run(root: &Path) -> Result<(Lineage, Vec<StoreError>), StoreError> {
        let folder = root.join("stages");
        let list = || StoreError::io("list the folder", &folder);
        let mut paths = Vec::new();
        for entry in std::fs::read_dir(&folder).map_err(list())? {
            paths.push(entry.map_err(list())?.path());
        }
        paths.retain(|p| p.extension().is_some_and(|e| e == "json"));
        paths.sort();
        let (mut stages, mut broken) = (Vec::new(), Vec::new());
        for path in paths {
            match record(&path) {
                Ok(record) => stages.push(Step::from(record)),
                Err(e) => broken.push(e),
            }
        }
        let lineage = Lineage { schema_version: SCHEMA_VERSION, files: BTreeMap::new(), stages };
        Ok((lineage.in_order(), broken))
    }

    /// The file beside a model.
    ///
    /// # Errors
    /// [`StoreError::Io`]; one of another form or version is [`StoreError::Damaged`].
    pub fn read(path: &Path) -> Result<Lineage, StoreError> {
        let lineage: Lineage = crate::read_sealed(path)?;
        known(path, lineage.schema_version, SCHEMA_VERSION)?;
        let damaged = |reason: String| StoreError::Damaged { path: path.to_path_buf(), reason };
        if lineage.stages.len() > STAGES {
            let reason = format!("it has {} stages, at most {STAGES}", lineage.stages.len());
            return Err(damaged(reason));
        }
        // It may be from anywhere, and its files are going to be read.
        let plain = |name: &str| {
            let mut parts = Path::new(name).components();
            matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None))
        };
        match lineage.files.keys().find(|name| !plain(name)) {
            Some(name) => Err(damaged(format!("{name:?} is not the name of a file beside it"))),
            None => Ok(lineage),
        }
    }

    /// Writes the file beside a model in `folder`, whose other files are whole.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn write(stages: Vec<Step>, folder: &Path) -> Result<(), StoreError> {
        let mut files = BTreeMap::new();
        let list = || StoreError::io("list the folder", folder);
        for entry in std::fs::read_dir(folder).map_err(list())? {
            let entry = entry.map_err(list())?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let plain = entry.file_type().map_err(list())?.is_file();
            if plain && name != FILE && !crate::atomic::half_written(&entry) {
                files.insert(name, hash_file(&entry.path())?);
            }
        }
        let lineage = Lineage { schema_version: SCHEMA_VERSION, files, stages };
        crate::write_sealed(&folder.join(FILE), &lineage)
    }

    /// The stage that made something: the one with this output, or with a folder that holds it.
    pub fn maker(&self, name: &str) -> Option<&Step> {
        self.output(name).map(|(step, _)| step)
    }

    /// The output that something is or lies in, and its stage.
    pub fn output(&self, name: &str) -> Option<(&Step, &str)> {
        let outputs = self.stages.iter().flat_map(|s| s.outputs.keys().map(move |o| (s, &**o)));
        outputs.filter(|(_, o)| below(name, o)).max_by_key(|(_, o)| o.len())
    }

    /// All outputs, by stage.
    pub fn outputs(&self) -> Vec<&str> {
        self.stages.iter().flat_map(|s| s.outputs.keys().map(String::as_str)).collect()
    }

    /// The stages in an order in which each comes after those whose outputs it read.
    fn in_order(mut self) -> Lineage {
        let mut left = std::mem::take(&mut self.stages);
        while !left.is_empty() {
            let waits = |step: &Step| {
                let others = left.iter().filter(|o| o.stage != step.stage);
                let mut outputs = others.flat_map(|o| o.outputs.keys());
                outputs.any(|o| step.inputs.keys().any(|i| below(i, o)))
            };
            // Records of a circle are no records of ours; they stay as they are.
            let next = left.iter().position(|step| !waits(step)).unwrap_or(0);
            self.stages.push(left.remove(next));
        }
        self
    }

    /// Names of all that some outputs were made from, themselves included, sources too.
    pub fn behind<'a>(&'a self, names: &[&'a str]) -> BTreeSet<&'a str> {
        let mut found = BTreeSet::new();
        let mut left = names.to_vec();
        while let Some(name) = left.pop() {
            if found.insert(name) {
                left.extend(self.maker(name).iter().flat_map(|s| s.inputs.keys().map(|i| &**i)));
            }
        }
        found
    }
}

/// Whether a path is another one or lies below it.
pub fn below(path: &str, folder: &str) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn record(path: &Path) -> Result<Record, StoreError> {
    let record: Record = crate::read_sealed(path)?;
    known(path, record.schema_version, record::SCHEMA_VERSION)?;
    Ok(record)
}

fn known(path: &Path, version: u32, ours: u32) -> Result<(), StoreError> {
    let reason = format!("it has schema_version {version}, this program reads {ours}");
    let damaged = StoreError::Damaged { path: path.to_path_buf(), reason };
    if version == ours { Ok(()) } else { Err(damaged) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn step(stage: &str, inputs: &[&str], outputs: &[&str]) -> Step {
        let hashes = |names: &[&str]| {
            names.iter().map(|n| (n.to_string(), crate::hash_bytes(n.as_bytes()))).collect()
        };
        let (inputs, outputs) = (hashes(inputs), hashes(outputs));
        let (code, settings) = ("0.1.0".into(), Value::Null);
        Step { stage: stage.into(), code, settings, inputs, outputs, facts: Map::new() }
    }

    #[test]
    fn ways_back() {
        let stages = vec![
            step("eval", &["model", "text"], &["scores"]),
            step("prepare", &["docs"], &["text", "more"]),
            step("train", &["text"], &["model", "train/log"]),
        ];
        let lineage = Lineage { schema_version: 1, files: BTreeMap::new(), stages }.in_order();
        let names: Vec<_> = lineage.stages.iter().map(|s| s.stage.as_str()).collect();
        assert_eq!(names, ["prepare", "train", "eval"]);
        assert_eq!(lineage.maker("model/weights").unwrap().stage, "train");
        assert_eq!(lineage.output("train/log").unwrap().1, "train/log");
        assert!(lineage.maker("modelling").is_none() && lineage.maker("train").is_none());
        let behind = lineage.behind(&["model"]);
        assert_eq!(behind.into_iter().collect::<Vec<_>>(), ["docs", "model", "text"]);
    }

    #[test]
    fn a_model_carries_its_lineage_outside_its_contents() {
        let dir = tempfile::tempdir().unwrap();
        crate::write_atomic(&dir.path().join("weights"), b"1").unwrap();
        let before = crate::hash_dir(dir.path()).unwrap();
        let steps = vec![step("train", &["text"], &[])];
        Lineage::write(steps.clone(), dir.path()).unwrap();
        assert_eq!(crate::hash_dir(dir.path()).unwrap(), before);
        let path = dir.path().join(FILE);
        let lineage = Lineage::read(&path).unwrap();
        let files = BTreeMap::from([("weights".to_string(), crate::hash_bytes(b"1"))]);
        assert_eq!((lineage.stages, lineage.files), (steps, files));
        let why = |version: u32, name: &str| {
            let files = BTreeMap::from([(name.to_string(), crate::hash_bytes(b"1"))]);
            let stages = Vec::new();
            let lineage = Lineage { schema_version: version, files, stages };
            crate::write_sealed(&path, &lineage).unwrap();
            Lineage::read(&path).unwrap_err().to_string()
        };
        assert!(why(9, "weights").contains("schema_version 9"));
        for name in ["../weights", "/dev/zero", "..", "a/b"] {
            assert!(why(SCHEMA_VERSION, name).contains("is not the name of a file"), "{name}");
        }
    }
}
