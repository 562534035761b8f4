//! A run directory and its stages: each is done once, and again only if something it depends on
//! has changed.
//!
//! ```text
//! recipe.toml            all settings, resolved
//! run.json               version, seed, model
//! machine.json           command, processor, threads: where it was last worked on
//! choices.json           what was measured once and stays: type of operands, minutes as tokens
//! lock                   who writes in it
//! stages/NAME.json       what a stage was made from and what it made (store::Record)
//! data/                  documents.jsonl, heldout.jsonl, conversations.jsonl … (prepare)
//! tokenizer/             tokenizer.json, tokenizer_config.json                 (tokenize)
//! shards/                documents/, conversations/, heldout/                  (tokenize)
//! pretrain/, base/       metrics.jsonl, timing.jsonl, checkpoints/; the model  (pretrain)
//! finetune/, model/      the same                                              (finetune)
//!                        base/ and model/ carry a lineage.json: the stages behind them
//! eval/                  heldout.json, compressors.json, microworld.json       (evaluate)
//! report.html, report.md                                                       (report)
//! costs.html, costs.md   time and memory                                       (at the end)
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{Map, Value, json};
use store::lineage::{self, Step};
use store::{Hash, Lineage, Lock, Record, Stale};

use crate::common::code;
use crate::failure::Failure;
use crate::interrupt;
use crate::progress::{duration, peak_rss_bytes};

/// Facts that a stage tells beside its inputs and outputs: tokens, counts …
pub type Facts = Map<String, Value>;

/// Facts that are the same whenever and wherever a stage is done: what a model's lineage tells.
const LASTING: [&str; 14] = [
    "documents",
    "texts",
    "kinds",
    "bytes",
    "heldout",
    "heldout_bytes",
    "skipped_files",
    "people",
    "questions",
    "tokens",
    "steps",
    "vocab_size",
    "loss",
    "heldout_bits_per_byte",
];

/// A run directory.
pub struct Run {
    /// Where it lies.
    pub root: PathBuf,
    /// Nobody else writes in it.
    _lock: Lock,
    /// Stages that are done, in order.
    records: Vec<Record>,
}

/// What a stage depends on and what it makes.
pub struct Stage<'a> {
    /// Its name.
    pub name: &'a str,
    /// All settings that it uses.
    pub settings: Value,
    /// What it reads in the run directory: outputs of earlier stages.
    pub reads: &'a [&'a str],
    /// What it reads elsewhere, by hash.
    pub inputs: BTreeMap<String, Hash>,
    /// Files and folders that it writes.
    pub writes: &'a [&'a str],
}

impl Run {
    /// Opens a run directory, new or old, for writing. What a killed program left half-written in
    /// it is removed.
    ///
    /// # Errors
    /// If it can't be made, holds something that is no run, or another program writes in it.
    pub fn open(root: &Path) -> Result<Run, Failure> {
        let strange = |why: &str| {
            Failure::invalid(format!("{} {why}", root.display()))
                .hint("Name a new folder, or that of an earlier run, with --out.")
        };
        if root.exists() && !root.is_dir() {
            return Err(strange("is not a folder"));
        }
        store::create_dir(root)?;
        let mut entries =
            std::fs::read_dir(root).map_err(store::StoreError::io("list the folder", root))?;
        // A run that was killed as it began has only its lock.
        let begun =
            |e: &std::fs::DirEntry| e.file_name() != "lock" && !store::atomic::half_written(e);
        let listed = |e: std::io::Result<std::fs::DirEntry>| e.is_ok_and(|e| begun(&e));
        if entries.any(listed) && !root.join("recipe.toml").is_file() {
            return Err(strange("holds something that is not a run: it has no recipe.toml"));
        }
        let lock = Lock::take(&root.join("lock"))?;
        store::atomic::remove_half_written(root)?;
        Ok(Run { root: root.to_path_buf(), _lock: lock, records: Vec::new() })
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The record of a stage that was done or found done in this program.
    pub fn record(&self, stage: &str) -> Option<&Record> {
        self.records.iter().find(|r| r.stage == stage)
    }

    /// All of these records.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.records.iter()
    }

    /// Hash of an output of an earlier stage.
    pub fn output(&self, name: &str) -> Option<Hash> {
        self.records.iter().rev().find_map(|r| r.outputs.get(name).copied())
    }

    /// Training that was stopped goes on from a checkpoint and adds to its metrics. Where those of a
    /// finished one are damaged there is nothing to add to: without checkpoints it starts anew.
    fn start_anew(&self, record: &Path) -> Result<(), Failure> {
        let record: Record = store::read_sealed(record)?;
        let folders = record.damaged(&self.root).filter_map(|o| o.strip_suffix("/metrics.jsonl"));
        folders.into_iter().try_for_each(|f| clear(&self.path(&format!("{f}/checkpoints"))))
    }

    /// The stages so far and the one that is being done, as a model tells of them.
    fn lineage(&self, last: &Record) -> Vec<Step> {
        let step = |record: &Record| {
            let mut step = Step::from(record.clone());
            step.facts.retain(|name, _| LASTING.contains(&name.as_str()));
            step
        };
        self.records.iter().chain([last]).map(step).collect()
    }

    /// Does a stage, unless nothing has changed since it was done. `work` is told where it was
    /// and returns its facts; it writes all of the stage's outputs.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn stage(
        &mut self,
        stage: Stage<'_>,
        work: impl FnOnce(&Run, Hash) -> Result<Facts, Failure>,
    ) -> Result<&Record, Failure> {
        let Stage { name, settings, reads, mut inputs, writes } = stage;
        for read in reads {
            // An output that this run doesn't have (such as conversations) is no input.
            inputs.extend(self.output(read).map(|hash| (read.to_string(), hash)));
        }
        let file = self.path(&format!("stages/{name}.json"));
        let record = match Record::check(&file, &self.root, &settings, &inputs) {
            Ok(record) => {
                eprintln!("{name:>10} unchanged");
                record
            }
            Err(why) => {
                interrupt::doing(name);
                if why != Stale::New {
                    eprintln!("{name:>10} again: {why}");
                }
                if let Stale::Output(_) = why {
                    self.start_anew(&file)?;
                }
                let key = store::hash_bytes(json!([name, settings, inputs]).to_string().as_bytes());
                let start = Instant::now();
                let mut facts = work(self, key)?;
                facts.insert("peak_rss_bytes".into(), peak_rss_bytes().into());
                let record = Record {
                    schema_version: store::record::SCHEMA_VERSION,
                    stage: name.to_string(),
                    settings,
                    inputs,
                    outputs: BTreeMap::new(),
                    code: code(),
                    seconds: start.elapsed().as_secs_f64(),
                    facts,
                };
                for folder in writes.iter().filter_map(|w| folder_of_lineage(w)) {
                    Lineage::write(self.lineage(&record), &self.path(folder))?;
                }
                let there: Vec<&str> =
                    writes.iter().copied().filter(|w| self.path(w).exists()).collect();
                let record = record.finish(&file, &self.root, &there)?;
                eprintln!("{name:>10} done in {}", duration(record.seconds));
                record
            }
        };
        self.records.push(record);
        Ok(&self.records[self.records.len() - 1])
    }
}

/// The folder of a model, if an output is its lineage.
fn folder_of_lineage(output: &str) -> Option<&str> {
    output.strip_suffix(lineage::FILE)?.strip_suffix('/')
}

/// Removes what an earlier run of a stage left behind.
pub fn clear(path: &Path) -> Result<(), Failure> {
    let result =
        if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    match result {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(store::StoreError::io("remove", path)(e).into())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn stage<'a>(name: &'a str, n: u64, reads: &'a [&'a str], writes: &'a [&'a str]) -> Stage<'a> {
        Stage { name, settings: json!({"n": n}), reads, inputs: BTreeMap::new(), writes }
    }

    #[test]
    fn a_change_runs_exactly_what_depends_on_it() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("run");
        // Stages a → b, and c that depends on neither.
        let go = |a: u64, b: u64, c: u64| -> String {
            let mut run = Run::open(&root).unwrap();
            store::write_atomic(&run.path("recipe.toml"), b"").unwrap();
            let done = std::cell::RefCell::new(String::new());
            let work = |name: &'static str, text: String| {
                let done = &done;
                move |run: &Run, _| {
                    done.borrow_mut().push_str(name);
                    store::write_atomic(&run.path(name), text.as_bytes())?;
                    Ok(Facts::new())
                }
            };
            run.stage(stage("1", a, &[], &["a"]), work("a", (a / 2).to_string())).unwrap();
            run.stage(stage("2", b, &["a"], &["b"]), work("b", b.to_string())).unwrap();
            run.stage(stage("3", c, &[], &["c"]), work("c", c.to_string())).unwrap();
            done.into_inner()
        };
        assert_eq!(go(0, 0, 0), "abc");
        assert_eq!(go(0, 0, 0), "");
        assert_eq!(go(0, 1, 0), "b");
        assert_eq!(go(2, 1, 0), "ab");
        // Done again with the same result: what follows stays.
        assert_eq!(go(3, 1, 0), "a");
        std::fs::write(root.join("b"), "damaged").unwrap();
        assert_eq!(go(3, 1, 0), "b");
    }

    #[test]
    fn a_folder_of_something_else_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("thesis.tex"), "").unwrap();
        let why = |p: &Path| Run::open(p).map(drop).unwrap_err().to_string();
        assert!(why(dir.path()).contains("not a run"));
        assert!(why(&dir.path().join("thesis.tex")).contains("not a folder"));
    }
}
