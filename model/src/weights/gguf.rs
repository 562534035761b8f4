//! GGUF files, one or the parts of one, mapped into memory.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use compute::blocks::BlockType;
use compute::strips::Strips;

use super::places::Layout;
use super::{Tensors, WeightsError};
use crate::directory::ModelError;
use crate::gguf::{Contents, GgufError, TensorInfo};

/// The file with the metadata, and those with the rest of the tensors.
pub struct GgufFiles<B = store::Map> {
    files: Vec<(B, Contents)>,
    /// Which file has a tensor.
    places: HashMap<String, usize>,
    /// Lets go of the memory of bytes that were read.
    forget: fn(&B, Range<usize>),
}

/// Most parts of a model.
const PARTS: u64 = 1024;

impl GgufFiles<store::Map> {
    /// Opens a file, and if it is the first part of several (`NAME-00001-of-00003.gguf`) the others.
    ///
    /// # Errors
    /// A part that is missing or broken, or another than the first.
    pub fn open(path: &Path) -> Result<GgufFiles, ModelError> {
        let mut all =
            GgufFiles { files: Vec::new(), places: HashMap::new(), forget: store::Map::forget };
        all.add_file(path)?;
        let number = |key: &str| all.contents().metadata.get(key).and_then(|v| v.as_u64());
        let (parts, this) = (number("split.count").unwrap_or(1), number("split.no").unwrap_or(0));
        let wrong =
            |what: String| Err(ModelError::Gguf(path.to_path_buf(), GgufError { at: 0, what }));
        if parts > PARTS {
            return wrong(format!("split.count is {parts}; at most {PARTS} parts are read"));
        }
        if parts > 1 {
            let ending = |part: u64| format!("-{part:05}-of-{parts:05}.gguf");
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            let Some(stem) = name.strip_suffix(&ending(1)).filter(|_| this == 0) else {
                return wrong(format!(
                    "it is part {} of {parts}: give the first, named like MODEL{}",
                    this + 1,
                    ending(1)
                ));
            };
            for part in 2..=parts {
                all.add_file(&path.with_file_name(format!("{stem}{}", ending(part))))?;
            }
        }
        Ok(all)
    }

    fn add_file(&mut self, path: &Path) -> Result<(), ModelError> {
        let map = store::Map::open(path)?;
        let contents = Contents::read(&map).map_err(|e| ModelError::Gguf(path.to_path_buf(), e))?;
        self.add(map, contents).map_err(|e| ModelError::Weights(path.to_path_buf(), e))
    }
}

impl<B: AsRef<[u8]>> GgufFiles<B> {
    /// One file that is in memory.
    ///
    /// # Errors
    /// If it is broken.
    pub fn one(bytes: B) -> Result<Self, GgufError> {
        let contents = Contents::read(bytes.as_ref())?;
        let places = contents.tensors.keys().map(|name| (name.clone(), 0)).collect();
        Ok(GgufFiles { files: vec![(bytes, contents)], places, forget: |_, _| () })
    }

    fn add(&mut self, bytes: B, contents: Contents) -> Result<(), WeightsError> {
        for name in contents.tensors.keys() {
            if self.places.insert(name.clone(), self.files.len()).is_some() {
                return Err(WeightsError::Twice(name.clone()));
            }
        }
        self.files.push((bytes, contents));
        Ok(())
    }

    /// What stands in the first file, and its bytes.
    pub fn contents(&self) -> &Contents {
        &self.files[0].1
    }

    /// The bytes of the first file.
    pub fn bytes(&self) -> &[u8] {
        self.files[0].0.as_ref()
    }

    /// Bytes of all files.
    pub fn len(&self) -> u64 {
        self.files.iter().map(|(bytes, _)| bytes.as_ref().len() as u64).sum()
    }

    /// Whether they hold nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The tensors of all files.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &TensorInfo)> {
        self.files.iter().flat_map(|(_, c)| c.tensors.iter().map(|(n, info)| (&n[..], info)))
    }

    fn tensor(&self, name: &str) -> Option<(&TensorInfo, &[u8])> {
        let (bytes, contents) = self.files.get(*self.places.get(name)?)?;
        let info = contents.tensors.get(name)?;
        Some((info, &bytes.as_ref()[info.bytes.clone()]))
    }
}

impl<B: AsRef<[u8]>> Tensors for GgufFiles<B> {
    const LAYOUT: Layout = Layout::Gguf;

    fn names(&self) -> Vec<&str> {
        self.places.keys().map(|name| &name[..]).collect()
    }

    fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensor(name).map(|(info, _)| &info.shape[..])
    }

    fn rows(&self, name: &str, rows: Range<usize>, len: usize) -> Result<Vec<f32>, WeightsError> {
        let (info, bytes) =
            self.tensor(name).ok_or_else(|| WeightsError::Missing(name.to_string()))?;
        // A row is whole blocks: that was checked when the file was read.
        let row = len / info.kind.elements() * info.kind.bytes();
        let mut data = vec![0.0; rows.len() * len];
        info.kind.widen(&bytes[rows.start * row..rows.end * row], &mut data);
        Ok(data)
    }

    fn blocks(&self, name: &str) -> Option<(BlockType, &[u8])> {
        let (info, bytes) = self.tensor(name)?;
        Strips::holds(info.kind).then_some((info.kind, bytes))
    }

    fn done(&self, name: &str, bytes: Range<usize>) {
        let file = self.places.get(name).and_then(|i| self.files.get(*i));
        if let Some((file, contents)) = file
            && let Some(info) = contents.tensors.get(name)
        {
            let at = |i: usize| info.bytes.start + i.min(info.bytes.len());
            (self.forget)(file, at(bytes.start)..at(bytes.end));
        }
    }
}
