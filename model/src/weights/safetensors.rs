//! Safetensors: `model.safetensors`, or the files that `model.safetensors.index.json` lists.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use ::safetensors::tensor::{Metadata, TensorInfo, TensorView};
use ::safetensors::{Dtype, SafeTensors};
use compute::blocks::BlockType;
use compute::parameters::Parameters;
use serde::Deserialize;

use super::places::Layout;
use super::{Tensors, WeightsError};
use crate::directory::ModelError;

/// Files whose heads are read and checked.
pub struct SafeFiles<B> {
    files: Vec<File<B>>,
}

struct File<B> {
    bytes: B,
    /// Where the tensors' bytes begin.
    start: usize,
    metadata: Metadata,
    names: Vec<String>,
}

/// The list of files.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The files of weights of a directory.
///
/// # Errors
/// A broken list, or one that leads out of the directory.
pub fn files(dir: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let index = dir.join("model.safetensors.index.json");
    if dir.join("model.safetensors").is_file() || !index.is_file() {
        return Ok(vec![dir.join("model.safetensors")]);
    }
    let list: Index = store::read_json(&index)?;
    let names: BTreeSet<&str> = list.weight_map.values().map(|name| &name[..]).collect();
    if let Some(name) =
        names.iter().find(|name| name.contains(['/', '\\']) || name.starts_with('.'))
    {
        let unknown = WeightsError::Unknown(format!("in {name:?}, which is no name of a file"));
        return Err(ModelError::Weights(index, unknown));
    }
    Ok(names.into_iter().map(|name| dir.join(name)).collect())
}

impl SafeFiles<store::Map> {
    /// Maps the files of a directory.
    ///
    /// # Errors
    /// One that is missing or broken.
    pub fn open(dir: &Path) -> Result<Self, ModelError> {
        let mut all = SafeFiles { files: Vec::new() };
        for path in files(dir)? {
            let map = store::Map::open(&path)?;
            all.add(map).map_err(|e| ModelError::Weights(path, e))?;
        }
        Ok(all)
    }
}

impl<B: AsRef<[u8]>> SafeFiles<B> {
    /// One file that is in memory.
    ///
    /// # Errors
    /// If it is broken.
    pub fn one(bytes: B) -> Result<Self, WeightsError> {
        let mut all = SafeFiles { files: Vec::new() };
        all.add(bytes)?;
        Ok(all)
    }

    fn add(&mut self, bytes: B) -> Result<(), WeightsError> {
        // Checks offsets and sizes against the file.
        SafeTensors::deserialize(bytes.as_ref())?;
        let (head, metadata) = SafeTensors::read_metadata(bytes.as_ref())?;
        let names = metadata.offset_keys();
        self.files.push(File { bytes, start: head + 8, metadata, names });
        Ok(())
    }

    fn tensor(&self, name: &str) -> Option<(&TensorInfo, &[u8])> {
        self.files.iter().find_map(|file| {
            let info = file.metadata.info(name)?;
            let (from, to) = info.data_offsets;
            Some((info, file.bytes.as_ref().get(file.start + from..file.start + to)?))
        })
    }
}

impl<B: AsRef<[u8]>> Tensors for SafeFiles<B> {
    const LAYOUT: Layout = Layout::HuggingFace;

    fn names(&self) -> Vec<&str> {
        // Each once from each file, so that one that is there twice is found.
        self.files.iter().flat_map(|file| file.names.iter().map(|name| &name[..])).collect()
    }

    fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensor(name).map(|(info, _)| &info.shape[..])
    }

    fn rows(&self, name: &str, rows: Range<usize>, len: usize) -> Result<Vec<f32>, WeightsError> {
        let (info, bytes) =
            self.tensor(name).ok_or_else(|| WeightsError::Missing(name.to_string()))?;
        let part = |size: usize| &bytes[rows.start * len * size..rows.end * len * size];
        Ok(match info.dtype {
            Dtype::F32 => part(4).as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Dtype::F16 => {
                let halves = part(2).as_chunks().0.iter();
                halves.map(|b| half::f16::from_le_bytes(*b).to_f32()).collect()
            }
            Dtype::BF16 => {
                let halves = part(2).as_chunks().0.iter();
                halves.map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect()
            }
            other => {
                return Err(WeightsError::Type {
                    name: name.to_string(),
                    dtype: format!("{other:?}"),
                });
            }
        })
    }

    fn blocks(&self, name: &str) -> Option<(BlockType, &[u8])> {
        let (info, bytes) = self.tensor(name)?;
        match info.dtype {
            Dtype::F16 => Some((BlockType::F16, bytes)),
            Dtype::BF16 => Some((BlockType::BF16, bytes)),
            _ => None,
        }
    }
}

/// The bytes of a safetensors file with these parameters in F32, in order of their names.
///
/// # Errors
/// What the format can't hold (it holds everything that a model has).
pub fn write(parameters: &Parameters) -> Result<Vec<u8>, WeightsError> {
    let bytes: Vec<(String, Vec<usize>, Vec<u8>)> = parameters
        .iter()
        .map(|p| {
            let shape =
                if p.vector { vec![p.value.cols()] } else { vec![p.value.rows(), p.value.cols()] };
            (p.name.clone(), shape, p.value.f32().iter().flat_map(|x| x.to_le_bytes()).collect())
        })
        .collect();
    let views: Vec<(&str, TensorView<'_>)> = bytes
        .iter()
        .map(|(name, shape, data)| {
            Ok((name.as_str(), TensorView::new(Dtype::F32, shape.clone(), data)?))
        })
        .collect::<Result<_, ::safetensors::SafeTensorError>>()?;
    let metadata = std::collections::HashMap::from([("format".to_string(), "pt".to_string())]);
    Ok(::safetensors::serialize(views, Some(metadata))?)
}
