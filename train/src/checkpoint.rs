//! Everything that a run needs to go on as if it had not stopped, in one safetensors file: weights,
//! the optimizer's moments, and where the run is in its data.
//!
//! Tensors are `weight.NAME`, and `momentum.NAME` (Muon) or `first.NAME` and `second.NAME` (AdamW),
//! all F32; the metadata's `state` is [`State`] as JSON.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use compute::parameters::Parameters;
use data::batches::LoaderState;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use store::{Hash, StoreError};
use thiserror::Error;

use crate::optimizer::{Moments, Optimizer};

/// The version of the format.
pub const SCHEMA_VERSION: u32 = 1;

/// Why a checkpoint can't be used.
#[derive(Debug, Error)]
pub enum CheckpointError {
    /// It could not be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It is damaged, or of another model.
    #[error("{} is not a checkpoint of this run: {reason}; remove it to start this stage anew", path.display())]
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
    /// Steps so far.
    pub steps: u64,
    /// Seconds of training so far.
    pub seconds: f64,
    /// Place in the data.
    pub loader: LoaderState,
}

/// Writes a checkpoint, atomically.
///
/// # Errors
/// [`CheckpointError::Store`].
pub fn save(
    path: &Path,
    state: &State,
    parameters: &Parameters,
    optimizer: &Optimizer,
) -> Result<(), CheckpointError> {
    let bytes = |x: &[f32]| x.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let mut tensors = Vec::new();
    for (p, moments) in parameters.iter().zip(&optimizer.moments) {
        let mut add =
            |kind: &str, x: &[f32]| tensors.push((format!("{kind}.{}", p.name), bytes(x)));
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
    let failed = |why: String| StoreError::io("write", path)(std::io::Error::other(why));
    let views: Result<Vec<_>, _> = tensors
        .iter()
        .map(|(name, data)| {
            TensorView::new(Dtype::F32, vec![data.len() / 4], data).map(|view| (name, view))
        })
        .collect();
    let state = serde_json::to_string(state).map_err(|e| failed(e.to_string()))?;
    let metadata = HashMap::from([("state".to_string(), state)]);
    let file = views.and_then(|views| safetensors::serialize(views, Some(metadata)));
    Ok(store::write_atomic(path, &file.map_err(|e| failed(e.to_string()))?)?)
}

/// Reads a checkpoint into a model and its optimizer. `None`, and nothing changed, if there is
/// none, or one of a run with another `key`.
///
/// # Errors
/// [`CheckpointError::Damaged`] if it does not fit the model; then nothing was changed.
pub fn load(
    path: &Path,
    key: Hash,
    parameters: &mut Parameters,
    optimizer: &mut Optimizer,
) -> Result<Option<State>, CheckpointError> {
    if !path.exists() {
        return Ok(None);
    }
    let bytes = store::read(path)?;
    let damaged = |reason: String| CheckpointError::Damaged { path: path.to_path_buf(), reason };
    let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(|e| damaged(e.to_string()))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| damaged(e.to_string()))?;
    let state = metadata.metadata().as_ref().and_then(|m| m.get("state"));
    let state: State = serde_json::from_str(state.map_or("", |s| s))
        .map_err(|e| damaged(format!("its state: {e}")))?;
    if state.schema_version != SCHEMA_VERSION || state.key != key {
        return Ok(None);
    }
    let floats = |kind: &str, name: &str, count: usize| {
        let view = file.tensor(&format!("{kind}.{name}")).map_err(|e| damaged(e.to_string()))?;
        if view.dtype() != Dtype::F32 || view.shape() != [count] {
            return Err(damaged(format!("{kind}.{name} is {:?} {:?}", view.dtype(), view.shape())));
        }
        Ok(view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect::<Vec<f32>>())
    };
    let mut loaded = Vec::new();
    for (p, moments) in parameters.iter().zip(&optimizer.moments) {
        let get = |kind: &str| floats(kind, &p.name, p.value.len());
        let weight = get("weight")?;
        let moments = match moments {
            Moments::Frozen => Moments::Frozen,
            Moments::Muon(_) => Moments::Muon(get("momentum")?),
            Moments::AdamW(..) => Moments::AdamW(get("first")?, get("second")?),
        };
        loaded.push((weight, moments));
    }
    for ((p, moments), (weight, loaded)) in
        parameters.iter_mut().zip(&mut optimizer.moments).zip(loaded)
    {
        p.value.f32_mut().copy_from_slice(&weight);
        *moments = loaded;
    }
    optimizer.steps = state.steps;
    Ok(Some(state))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use compute::parameters::Parameter;
    use compute::tensor::Tensor;

    use super::*;
    use crate::optimizer::OptimizerConfig;

    fn model(x: f32, cols: usize) -> (Parameters, Optimizer) {
        let mut parameters = Parameters::default();
        for (name, vector) in [("a.norm", true), ("a.q_proj", false), ("embed", false)] {
            let rows = if vector { 1 } else { 2 };
            let value = Tensor::new(rows, cols, vec![x; rows * cols]);
            parameters.add(Parameter { name: name.into(), value, vector, trainable: true });
        }
        let mut optimizer = Optimizer::new(OptimizerConfig::default(), &parameters);
        for m in &mut optimizer.moments {
            match m {
                Moments::Frozen => {}
                Moments::Muon(m) => m.fill(x + 1.0),
                Moments::AdamW(m, v) => {
                    m.fill(x + 2.0);
                    v.fill(x + 3.0);
                }
            }
        }
        (parameters, optimizer)
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("checkpoint.safetensors");
        let key = store::hash_bytes(b"key");
        let (mut parameters, mut optimizer) = model(1.0, 3);
        assert!(load(&path, key, &mut parameters, &mut optimizer).unwrap().is_none());
        let state = State {
            schema_version: SCHEMA_VERSION,
            key,
            tokens: 1000,
            steps: 7,
            seconds: 0.1,
            loader: LoaderState::default(),
        };
        save(&path, &state, &parameters, &optimizer).unwrap();

        let (mut p, mut o) = model(9.0, 3);
        let other = store::hash_bytes(b"other");
        assert!(load(&path, other, &mut p, &mut o).unwrap().is_none());
        assert_eq!(load(&path, key, &mut p, &mut o).unwrap(), Some(state));
        assert_eq!((o.steps, &o.moments), (7, &optimizer.moments));
        for (a, b) in p.iter().zip(parameters.iter()) {
            assert_eq!(a.value.f32(), b.value.f32());
        }

        let (mut p, mut o) = model(9.0, 4);
        let error = load(&path, key, &mut p, &mut o).unwrap_err().to_string();
        assert!(error.contains("weight.a.norm"), "{error}");
        assert!(p.iter().all(|p| p.value.f32()[0] == 9.0));
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.truncate(bytes.len() - 1);
        std::fs::write(&path, &bytes).unwrap();
        assert!(load(&path, key, &mut p, &mut o).is_err());
    }
}
