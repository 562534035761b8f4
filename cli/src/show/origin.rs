//! What is asked about, and the lineage that it stands in.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use store::lineage::{Step, below};
use store::{Hash, Lineage, StoreError, lineage};

use crate::failure::Failure;
use crate::prepare::{BASE, CHATS, CLEAN, DOCS};
use crate::show::settings;
use crate::show::verify::Checks;

/// Something with a past.
pub struct Origin {
    /// As it was asked for.
    pub path: PathBuf,
    /// The run directory, or a model's own.
    pub root: PathBuf,
    /// Whether `root` is a run directory.
    pub run: bool,
    /// The stages that are known of.
    pub lineage: Lineage,
    /// The outputs that were asked for.
    pub targets: Vec<String>,
    /// Records that can't be read.
    pub broken: Vec<StoreError>,
    /// What else is to be said of the path.
    pub note: Option<String>,
}

impl Origin {
    /// Something in a run directory, or the whole of it.
    ///
    /// # Errors
    /// Records that can't be listed; a run that has none yet.
    pub fn in_run(root: &Path, path: &Path) -> Result<Origin, Failure> {
        let (lineage, broken) = Lineage::of_run(root)?;
        let name = path.strip_prefix(root).unwrap_or(path).to_string_lossy().into_owned();
        let all = || lineage.outputs().into_iter().map(String::from);
        let inside: Vec<String> = all().filter(|o| name.is_empty() || below(o, &name)).collect();
        let (mut targets, mut note) = (inside, None);
        if targets.is_empty() {
            let holder = lineage.output(&name).map(|(_, output)| output.to_string());
            note = Some(match &holder {
                Some(folder) => format!("{name}, hash {}, in {folder}:", store::hash_path(path)?),
                None => about_run(&lineage, &name),
            });
            targets = holder.map_or_else(|| all().collect(), |folder| vec![folder]);
        }
        let origin = Origin {
            path: path.to_path_buf(),
            root: root.to_path_buf(),
            run: true,
            lineage,
            targets,
            broken,
            note,
        };
        if origin.lineage.stages.is_empty() && origin.broken.is_empty() {
            return Err(Failure::invalid(format!("{} has no finished stage yet", root.display()))
                .hint("Its recipe.toml says what it is going to be."));
        }
        Ok(origin)
    }

    /// A model outside its run, that tells where it is from.
    pub fn carried(folder: &Path, mut lineage: Lineage) -> Origin {
        // Its last stage made what lies here; elsewhere the file can't know the folder's own name.
        if let Some(last) = lineage.stages.last_mut() {
            last.outputs.extend(lineage.files.clone());
        }
        Origin {
            path: folder.to_path_buf(),
            root: folder.to_path_buf(),
            run: false,
            targets: lineage.files.keys().cloned().collect(),
            lineage,
            broken: Vec::new(),
            note: None,
        }
    }

    /// All that the targets were made from, themselves included, the latest first.
    pub fn names(&self) -> Vec<&str> {
        let targets: Vec<&str> = self.targets.iter().map(String::as_str).collect();
        let place = |name: &str| {
            let stages = &self.lineage.stages;
            stages.iter().position(|s| s.outputs.contains_key(name)).map_or(0, |p| p + 1)
        };
        let mut names: Vec<&str> = self.lineage.behind(&targets).into_iter().collect();
        names.sort_by_key(|name| std::cmp::Reverse(place(name)));
        names
    }

    /// The hash that is recorded of something: by the stage that made it, or one that read it.
    pub fn recorded(&self, name: &str) -> Option<Hash> {
        let stages = &self.lineage.stages;
        let made = stages.iter().rev().find_map(|s| s.outputs.get(name));
        made.or_else(|| stages.iter().rev().find_map(|s| s.inputs.get(name))).copied()
    }

    /// Whether a name is that of a source, outside of the run.
    pub fn is_source(&self, name: &str) -> bool {
        [DOCS, CHATS, CLEAN, BASE].iter().any(|kind| name.starts_with(kind))
    }

    /// Where something lies, if it can lie here: what a model outside its run tells of is elsewhere.
    pub fn place(&self, name: &str) -> Option<PathBuf> {
        let here = self.run || self.lineage.files.contains_key(name);
        (here && !self.is_source(name)).then(|| self.root.join(name))
    }

    /// The model directory that was asked for, if it was one.
    pub fn model(&self) -> Option<PathBuf> {
        let mut folders = self.path.ancestors().take_while(|p| p.starts_with(&self.root));
        let inside = folders.find(|p| p.join("config.json").is_file());
        inside.map(Path::to_path_buf)
    }

    /// What `--json` prints.
    ///
    /// # Errors
    /// Sizes that can't be read.
    pub fn json(&self, checks: Option<&Checks>) -> Result<Value, Failure> {
        let names = self.names();
        let mut artefacts = Map::new();
        for name in &names {
            let bytes = self.place(name).and_then(|p| size(&p));
            let maker = self.lineage.maker(name).map(|s| &s.stage);
            let mut artefact =
                json!({"hash": self.recorded(name), "bytes": bytes, "made_by": maker});
            if let Some(state) = checks.and_then(|c| c.state(name)) {
                artefact["state"] = state.to_string().into();
            }
            artefacts.insert(name.to_string(), artefact);
        }
        let mut stages = Vec::new();
        for step in self.steps(&names) {
            let mut value = serde_json::to_value(step).map_err(Failure::failed)?;
            let changes = settings::changes(&self.lineage, step)?.into_iter();
            let change =
                |c: settings::Change| (c.key, json!({"value": c.value, "default": c.default}));
            value["changed_from_default"] = changes.map(change).collect();
            stages.push(value);
        }
        let broken: Vec<String> = self.broken.iter().map(ToString::to_string).collect();
        Ok(json!({
            "path": self.path,
            "run": self.run.then_some(&self.root),
            "targets": self.targets,
            "artefacts": artefacts,
            "stages": stages,
            "unreadable": broken,
            "note": self.note,
        }))
    }

    /// The stages that made something of these.
    pub fn steps(&self, names: &[&str]) -> impl Iterator<Item = &Step> {
        let made = |s: &&Step| s.outputs.keys().any(|o| names.iter().any(|n| below(n, o)));
        self.lineage.stages.iter().filter(made)
    }
}

/// What a path in a run directory is that no finished stage made.
fn about_run(lineage: &Lineage, name: &str) -> String {
    let stage = name.split('/').next().unwrap_or_default();
    let unfinished = ["pretrain", "finetune", "eval", "base", "model"].contains(&stage)
        && lineage.output(stage).is_none();
    if unfinished {
        format!("{name} is of a stage that has not finished; the run so far:")
    } else {
        format!("{name} is no stage's output, it tells of the run:")
    }
}

/// Bytes of a file, or of all files below a folder but its lineage.
pub fn size(path: &Path) -> Option<u64> {
    let meta = std::fs::symlink_metadata(path).ok()?;
    if !meta.is_dir() {
        return Some(meta.len());
    }
    let entries = std::fs::read_dir(path).ok()?.filter_map(Result::ok);
    Some(entries.filter(|e| e.file_name() != lineage::FILE).filter_map(|e| size(&e.path())).sum())
}
