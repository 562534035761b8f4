//! Everything that a run needs to go on as if it had not stopped: a folder of checkpoints.
//!
//! ```text
//! manifest.json              what there is: steps, tokens, score, BLAKE3 (Manifest)
//! step-00000123.safetensors  weights, the optimizer's moments, and where the run is
//! ```
//!
//! A checkpoint's tensors are `weight.NAME`, and `momentum.NAME` (Muon) or `first.NAME` and
//! `second.NAME` (AdamW), all F32, of the weights that are trained; its metadata's `state` is [`State`] as JSON. The file is whole
//! before the manifest names it, and is removed after the manifest no longer does, so a kill at
//! any moment leaves checkpoints that are what the manifest says.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use compute::parameters::Parameters;
use compute::tensor::Tensor;
use data::batches::LoaderState;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use store::{Hash, StoreError};
use thiserror::Error;

use crate::guard::GuardState;
use crate::optimizer::{Moments, Optimizer};

/// The version of the formats.
pub const SCHEMA_VERSION: u32 = 3;

/// Why a checkpoint can't be used.
#[derive(Debug, Error)]
pub enum CheckpointError {
    /// It could not be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It is damaged, or of another model.
    #[error("{} is not a checkpoint of this run: {reason}", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
}

/// Where a run is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// What the run is made of: settings and inputs.
    pub key: Hash,
    /// Tokens so far.
    pub tokens: u64,
    /// Steps so far, skipped ones included.
    pub steps: u64,
    /// Steps that changed the weights: what AdamW's bias correction counts.
    pub updates: u64,
    /// Floating-point operations so far.
    pub flops: f64,
    /// Loss of the last step, nats.
    pub loss: f64,
    /// The last score on held-out text, bits a byte.
    pub heldout_bits_per_byte: Option<f64>,
    /// What the guards remember.
    pub guard: GuardState,
    /// Place in the data.
    pub loader: LoaderState,
    /// Of the metrics so far, as [`crate::Observer::saving`] told.
    pub metrics: Hash,
}

/// What a folder of checkpoints holds, `manifest.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// Of which run.
    pub key: Hash,
    /// By steps.
    pub checkpoints: Vec<Entry>,
}

/// One checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Its file, beside the manifest.
    pub file: String,
    /// Of the file's contents.
    pub hash: Hash,
    /// Steps so far.
    pub steps: u64,
    /// Tokens so far.
    pub tokens: u64,
    /// Its score on held-out text, bits a byte, if it was made right after that was measured.
    pub heldout_bits_per_byte: Option<f64>,
}

/// The checkpoints of a run.
pub struct Checkpoints {
    folder: PathBuf,
    key: Hash,
    keep: usize,
    entries: Vec<Entry>,
    /// What was wrong with checkpoints that were passed over, for people.
    pub notes: Vec<String>,
}

impl Checkpoints {
    /// Opens a folder, which need not be there. Of the checkpoints that were made right after a
    /// measurement, the last `keep` (at least one) and the best stay; those of another `key` go.
    ///
    /// # Errors
    /// [`CheckpointError`] if the manifest can't be read.
    pub fn open(folder: &Path, key: Hash, keep: usize) -> Result<Checkpoints, CheckpointError> {
        let path = folder.join("manifest.json");
        let mut entries = Vec::new();
        if path.exists() {
            let manifest = (store::sealed::unseal(&store::read(&path)?).and_then(check))
                .map_err(|reason| CheckpointError::Damaged { path, reason })?;
            if manifest.key == key && manifest.schema_version == SCHEMA_VERSION {
                entries = manifest.checkpoints;
            }
        }
        let (folder, keep) = (folder.to_path_buf(), keep.max(1));
        Ok(Checkpoints { folder, key, keep, entries, notes: Vec::new() })
    }

    /// Of which run they are.
    pub fn key(&self) -> Hash {
        self.key
    }

    /// Whether there is one to go on from.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Loads the newest checkpoint that is whole. `None`, and nothing changed, if there is none.
    ///
    /// # Errors
    /// [`CheckpointError::Damaged`] if none of those that there are is whole, or they don't fit
    /// the model; then nothing was changed.
    pub fn load(
        &mut self,
        parameters: &mut Parameters,
        optimizer: &mut Optimizer,
    ) -> Result<Option<State>, CheckpointError> {
        while let Some(last) = self.entries.last() {
            match self.read(last, parameters, optimizer) {
                Ok(state) => return Ok(Some(state)),
                Err(e) if self.entries.len() == 1 => return Err(e),
                Err(e) => self.notes.push(format!("{e}; the one before it is taken")),
            }
            self.entries.pop();
        }
        Ok(None)
    }

    /// Loads the newest checkpoint that was made right after a measurement: where a run that went
    /// wrong goes back to. It is the same whatever else was saved, so runs that were stopped on
    /// the way go back to the same place.
    ///
    /// # Errors
    /// [`CheckpointError`].
    pub fn load_measured(
        &self,
        parameters: &mut Parameters,
        optimizer: &mut Optimizer,
    ) -> Result<Option<State>, CheckpointError> {
        let measured = self.entries.iter().rev().find(|e| e.heldout_bits_per_byte.is_some());
        measured.map(|entry| self.read(entry, parameters, optimizer)).transpose()
    }

    /// Loads the checkpoint with the best score on held-out text, if that isn't the newest.
    ///
    /// # Errors
    /// [`CheckpointError`].
    pub fn load_best(
        &self,
        parameters: &mut Parameters,
        optimizer: &mut Optimizer,
    ) -> Result<Option<State>, CheckpointError> {
        let best = self.best().filter(|i| i + 1 < self.entries.len());
        best.map(|i| self.read(&self.entries[i], parameters, optimizer)).transpose()
    }

    fn read(
        &self,
        entry: &Entry,
        parameters: &mut Parameters,
        optimizer: &mut Optimizer,
    ) -> Result<State, CheckpointError> {
        let path = self.folder.join(&entry.file);
        let damaged = |reason| CheckpointError::Damaged { path: path.clone(), reason };
        let bytes = store::read(&path)?;
        if store::hash_bytes(&bytes) != entry.hash {
            return Err(damaged("its contents have changed since it was written".into()));
        }
        let state = decode(&bytes, parameters, optimizer).map_err(damaged)?;
        if state.key != self.key {
            return Err(damaged("it is of a run with other settings".into()));
        }
        Ok(state)
    }

    /// Saves where a run is. `measured`: right after a measurement on held-out text.
    ///
    /// # Errors
    /// [`CheckpointError::Store`]; then the earlier ones are still there.
    pub fn save(
        &mut self,
        state: &State,
        measured: bool,
        parameters: &Parameters,
        optimizer: &Optimizer,
    ) -> Result<(), CheckpointError> {
        let file = format!("step-{:08}.safetensors", state.steps);
        let path = self.folder.join(&file);
        let bytes = encode(state, parameters, optimizer)
            .map_err(|e| StoreError::io("write", &path)(std::io::Error::other(e)))?;
        let again = self.entries.iter().position(|e| e.file == file);
        let again = again.map(|i| self.entries.remove(i));
        let measured = measured || again.is_some_and(|e| e.heldout_bits_per_byte.is_some());
        let heldout_bits_per_byte = if measured { state.heldout_bits_per_byte } else { None };
        let (hash, steps, tokens) = (store::hash_bytes(&bytes), state.steps, state.tokens);
        let entry = Entry { file, hash, steps, tokens, heldout_bits_per_byte };
        store::write_atomic(&path, &bytes)?;
        self.entries.push(entry);
        let last = self.entries.len() - 1;
        let best = self.best();
        let recent: Vec<usize> = (0..=last).rev().filter(|i| self.measured(*i)).collect();
        let recent = &recent[..recent.len().min(self.keep)];
        self.keep(|i| i == last || Some(i) == best || recent.contains(&i))
    }

    /// Ends the run: the last checkpoint stays, and the best.
    ///
    /// # Errors
    /// [`CheckpointError::Store`].
    pub fn finish(&mut self) -> Result<(), CheckpointError> {
        let (last, best) = (self.entries.len().wrapping_sub(1), self.best());
        self.keep(|i| i == last || Some(i) == best)
    }

    fn measured(&self, i: usize) -> bool {
        self.entries[i].heldout_bits_per_byte.is_some()
    }

    /// The one with the lowest score; the last of equals.
    fn best(&self) -> Option<usize> {
        let score = |i: &usize| self.entries[*i].heldout_bits_per_byte.unwrap_or(f64::INFINITY);
        let measured = (0..self.entries.len()).filter(|i| self.measured(*i)).rev();
        measured.min_by(|a, b| score(a).total_cmp(&score(b)))
    }

    /// Keeps some of the entries, and removes all files that are no entry's.
    fn keep(&mut self, stays: impl Fn(usize) -> bool) -> Result<(), CheckpointError> {
        let mut i = 0..;
        self.entries.retain(|_| i.next().is_some_and(&stays));
        self.write_manifest()?;
        let list = || StoreError::io("list the folder", &self.folder);
        for file in std::fs::read_dir(&self.folder).map_err(list())? {
            let name = file.map_err(list())?.file_name();
            let ours = name.to_str().is_some_and(|n| n.starts_with("step-"));
            if ours && !self.entries.iter().any(|e| *e.file == *name) {
                let path = self.folder.join(&name);
                std::fs::remove_file(&path).map_err(StoreError::io("remove", &path))?;
            }
        }
        Ok(())
    }

    fn write_manifest(&self) -> Result<(), CheckpointError> {
        let (key, checkpoints) = (self.key, self.entries.clone());
        let manifest = Manifest { schema_version: SCHEMA_VERSION, key, checkpoints };
        Ok(store::write_sealed(&self.folder.join("manifest.json"), &manifest)?)
    }
}

/// Reads a manifest whose seal, if it has one, was looked at: for fuzzing.
///
/// # Errors
/// What is wrong with it, in words.
pub fn read_manifest(bytes: &[u8]) -> Result<Manifest, String> {
    serde_json::from_slice(bytes).map_err(|e| e.to_string()).and_then(check)
}

/// File names have to stay in the folder.
fn check(manifest: Manifest) -> Result<Manifest, String> {
    match manifest.checkpoints.iter().find(|e| e.file != format!("step-{:08}.safetensors", e.steps))
    {
        Some(entry) => Err(format!("{:?} is not the file of step {}", entry.file, entry.steps)),
        None => Ok(manifest),
    }
}

/// The bytes of a checkpoint.
fn encode(
    state: &State,
    parameters: &Parameters,
    optimizer: &Optimizer,
) -> Result<Vec<u8>, String> {
    let bytes = |x: &[f32]| x.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let mut tensors = Vec::new();
    for (p, moments) in parameters.iter().zip(optimizer.moments()) {
        let mut add =
            |kind: &str, x: &[f32]| tensors.push((format!("{kind}.{}", p.name), bytes(x)));
        if *moments == Moments::Frozen {
            continue;
        }
        add("weight", p.value.f32());
        match moments {
            Moments::Frozen => {}
            Moments::Muon(m) => add("momentum", m),
            Moments::AdamW(m, v) => {
                add("first", m);
                add("second", v);
            }
        }
    }
    let view = |(name, data)| {
        let data: &Vec<u8> = data;
        TensorView::new(Dtype::F32, vec![data.len() / 4], data).map(|view| (name, view))
    };
    let views =
        tensors.iter().map(|(name, data)| view((name, data))).collect::<Result<Vec<_>, _>>();
    let state = serde_json::to_string(state).map_err(|e| e.to_string())?;
    let metadata = HashMap::from([("state".to_string(), state)]);
    let file = views.and_then(|views| safetensors::serialize(views, Some(metadata)));
    file.map_err(|e| e.to_string())
}

/// Reads the bytes of a checkpoint into a model and its optimizer; nothing is changed if they
/// don't fit.
///
/// # Errors
/// What does not fit, in words.
pub fn decode(
    bytes: &[u8],
    parameters: &mut Parameters,
    optimizer: &mut Optimizer,
) -> Result<State, String> {
    let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|e| e.to_string())?;
    let file = SafeTensors::deserialize(bytes).map_err(|e| e.to_string())?;
    let state = metadata.metadata().as_ref().and_then(|m| m.get("state"));
    let state: State =
        serde_json::from_str(state.map_or("", |s| s)).map_err(|e| format!("its state: {e}"))?;
    if state.schema_version != SCHEMA_VERSION {
        return Err(format!("schema_version {}, not {SCHEMA_VERSION}", state.schema_version));
    }
    let floats = |kind: &str, name: &str, count: usize| {
        let view = file.tensor(&format!("{kind}.{name}")).map_err(|e| e.to_string())?;
        if view.dtype() != Dtype::F32 || view.shape() != [count] {
            return Err(format!("{kind}.{name} is {:?} {:?}", view.dtype(), view.shape()));
        }
        Ok(view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect::<Vec<f32>>())
    };
    let mut loaded = Vec::new();
    for (p, moments) in parameters.iter().zip(optimizer.kinds()) {
        let get = |kind: &str| floats(kind, &p.name, p.value.len());
        loaded.push(match moments {
            Moments::Frozen => (None, Moments::Frozen),
            Moments::Muon(_) => (Some(get("weight")?), Moments::Muon(get("momentum")?)),
            Moments::AdamW(..) => {
                (Some(get("weight")?), Moments::AdamW(get("first")?, get("second")?))
            }
        });
    }
    let (weights, moments): (Vec<_>, Vec<_>) = loaded.into_iter().unzip();
    for (p, weight) in parameters.iter_mut().zip(weights) {
        if let Some(weight) = weight {
            p.value = Tensor::new(p.value.rows(), p.value.cols(), weight);
        }
    }
    optimizer.restore(state.updates, moments);
    Ok(state)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::optimizer::OptimizerConfig;
    use compute::parameters::Parameter;

    fn model(x: f32, cols: usize) -> (Parameters, Optimizer) {
        let mut parameters = Parameters::default();
        for (name, vector) in [("a.norm", true), ("a.q_proj", false), ("embed", false)] {
            let rows = if vector { 1 } else { 2 };
            let value = Tensor::new(rows, cols, vec![x; rows * cols]);
            parameters.add(Parameter { name: name.into(), value, vector, trainable: true });
        }
        let mut optimizer = Optimizer::new(OptimizerConfig::default(), &parameters);
        let mut moments = optimizer.moments().to_vec();
        for m in &mut moments {
            match m {
                Moments::Frozen => {}
                Moments::Muon(m) => m.fill(x + 1.0),
                Moments::AdamW(m, v) => {
                    m.fill(x + 2.0);
                    v.fill(x + 3.0);
                }
            }
        }
        optimizer.restore(0, moments);
        (parameters, optimizer)
    }

    fn state(steps: u64, heldout: Option<f64>) -> State {
        State {
            schema_version: SCHEMA_VERSION,
            key: store::hash_bytes(b"key"),
            tokens: steps * 100,
            steps,
            updates: steps,
            flops: 1.0 / 3.0,
            loss: 2.0,
            heldout_bits_per_byte: heldout,
            guard: GuardState::default(),
            loader: LoaderState::default(),
            metrics: store::hash_bytes(b"metrics"),
        }
    }

    fn files(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = (std::fs::read_dir(folder).unwrap())
            .map(|f| f.unwrap().file_name().into_string().unwrap())
            .filter(|n| n.starts_with("step-"))
            .collect();
        names.sort();
        names
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let (key, other) = (store::hash_bytes(b"key"), store::hash_bytes(b"other"));
        let open = |key| Checkpoints::open(dir.path(), key, 2).unwrap();
        let (mut parameters, mut optimizer) = model(1.0, 3);
        assert!(open(key).load(&mut parameters, &mut optimizer).unwrap().is_none());
        open(key).save(&state(7, None), false, &parameters, &optimizer).unwrap();

        let (mut p, mut o) = model(9.0, 3);
        assert!(open(other).load(&mut p, &mut o).unwrap().is_none());
        assert_eq!(open(key).load(&mut p, &mut o).unwrap(), Some(state(7, None)));
        assert_eq!((o.steps, o.moments()), (7, optimizer.moments()));
        for (a, b) in p.iter().zip(parameters.iter()) {
            assert_eq!(a.value.f32(), b.value.f32());
        }

        let (mut p, mut o) = model(9.0, 4);
        let error = open(key).load(&mut p, &mut o).unwrap_err().to_string();
        assert!(error.contains("weight.a.norm"), "{error}");
        assert!(p.iter().all(|p| p.value.f32()[0] == 9.0));
    }

    #[test]
    fn a_damaged_one_is_passed_over_for_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let key = store::hash_bytes(b"key");
        let open = || Checkpoints::open(dir.path(), key, 2).unwrap();
        let (mut p, mut o) = model(1.0, 3);
        let mut checkpoints = open();
        checkpoints.save(&state(1, Some(3.0)), true, &p, &o).unwrap();
        checkpoints.save(&state(2, Some(2.0)), true, &p, &o).unwrap();
        let damage = |file: &str| {
            let path = dir.path().join(file);
            let mut bytes = std::fs::read(&path).unwrap();
            let middle = bytes.len() - 5;
            bytes[middle] ^= 1;
            std::fs::write(&path, &bytes).unwrap();
        };
        damage("step-00000002.safetensors");
        let mut checkpoints = open();
        assert_eq!(checkpoints.load(&mut p, &mut o).unwrap(), Some(state(1, Some(3.0))));
        assert!(checkpoints.notes[0].contains("step-00000002"), "{:?}", checkpoints.notes);
        damage("step-00000001.safetensors");
        let error = open().load(&mut p, &mut o).unwrap_err().to_string();
        assert!(error.contains("step-00000001") && error.contains("changed"), "{error}");
        std::fs::write(dir.path().join("manifest.json"), "{}").unwrap();
        assert!(Checkpoints::open(dir.path(), key, 2).is_err());
    }

    #[test]
    fn the_last_and_the_best_stay() {
        let dir = tempfile::tempdir().unwrap();
        let (p, o) = model(1.0, 3);
        let mut checkpoints = Checkpoints::open(dir.path(), store::hash_bytes(b"key"), 2).unwrap();
        let scores = [Some(9.0), Some(1.0), None, Some(3.0), Some(4.0), Some(5.0), None, None];
        for (i, score) in scores.into_iter().enumerate() {
            checkpoints.save(&state(i as u64 + 1, score), score.is_some(), &p, &o).unwrap();
        }
        let name = |i: u32| format!("step-{i:08}.safetensors");
        assert_eq!(files(dir.path()), [2, 5, 6, 8].map(name));
        let (mut p, mut o) = model(2.0, 3);
        let back = checkpoints.load_measured(&mut p, &mut o).unwrap();
        assert_eq!(back.map(|s| s.steps), Some(6));
        // What a kill between writing and naming left behind goes.
        std::fs::write(dir.path().join(name(7)), "left behind").unwrap();
        checkpoints.finish().unwrap();
        assert_eq!(files(dir.path()), [2, 8].map(name));
    }
}
