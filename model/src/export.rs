//! A model for other programs: a GGUF file, or a Hugging Face directory.
//!
//! What a format can't say about a model is found by reading the metadata back: if that isn't the
//! same model, nothing is written. Tokenizers and templates that come from the same format are
//! carried over as they are.

mod calibrate;
mod directory;
mod gguf;
mod mix;
mod tensors;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use compute::Pool;
use compute::blocks::{BlockType, Unfit};
use store::{AtomicFile, StoreError};
use thiserror::Error;

use crate::directory::ModelError;
use crate::gguf::Item;
use crate::tokenizer::TokenizerError;
pub use calibrate::{Importance, calibrate};
pub use directory::safetensors;
pub use gguf::gguf;
use tensors::FileTensor;

/// Why a model can't be written.
#[derive(Debug, Error)]
pub enum ExportError {
    /// A type that the format doesn't have.
    #[error("{0} is no type of safetensors files here; they are F32, F16 or BF16")]
    Type(Quant),
    /// Something of the model that the format has no words for.
    #[error("{format} can't say this model of the family {family}: {what}")]
    Unsaid {
        /// The format.
        format: &'static str,
        /// The model's family.
        family: &'static str,
        /// What it can't say.
        what: String,
    },
    /// The same of its tokenizer.
    #[error("the tokenizer: {0}")]
    Tokenizer(#[from] TokenizerError),
    /// An element that the type can't hold.
    #[error("tensor {0}: {1}")]
    Unfit(String, Unfit),
    /// Something is there already.
    #[error("{0} is there already")]
    Exists(PathBuf),
    /// The disk is too small.
    #[error("the disk has no room: {need} bytes are needed, {free} are free")]
    Disk {
        /// Bytes.
        need: u64,
        /// Bytes.
        free: u64,
    },
    /// Calibration needs some text.
    #[error("the text for calibration has {0} tokens; it takes at least {1}")]
    Text(usize, usize),
    /// The model's own files can't be read again.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A file could not be written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// How weights are stored: one type, or a mixture of them by the part that a matrix has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, non_camel_case_types)] // the names of llama.cpp
pub enum Quant {
    F32,
    F16,
    BF16,
    Q8_0,
    Q6_K,
    Q4_K_M,
    Q4_0,
}

impl Quant {
    /// All of them, the largest first.
    pub const ALL: [Quant; 7] =
        [Quant::F32, Quant::F16, Quant::BF16, Quant::Q8_0, Quant::Q6_K, Quant::Q4_K_M, Quant::Q4_0];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Quant::F32 => "F32",
            Quant::F16 => "F16",
            Quant::BF16 => "BF16",
            Quant::Q8_0 => "Q8_0",
            Quant::Q6_K => "Q6_K",
            Quant::Q4_K_M => "Q4_K_M",
            Quant::Q4_0 => "Q4_0",
        }
    }

    /// The type of most matrices.
    fn kind(self) -> BlockType {
        match self {
            Quant::F32 => BlockType::F32,
            Quant::F16 => BlockType::F16,
            Quant::BF16 => BlockType::BF16,
            Quant::Q8_0 => BlockType::Q8_0,
            Quant::Q6_K => BlockType::Q6_K,
            Quant::Q4_K_M => BlockType::Q4_K,
            Quant::Q4_0 => BlockType::Q4_0,
        }
    }
}

impl std::fmt::Display for Quant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Quant {
    type Err = String;

    fn from_str(text: &str) -> Result<Quant, String> {
        let known = Quant::ALL.into_iter().find(|q| q.name().eq_ignore_ascii_case(text));
        known.ok_or_else(|| format!("one of {}", Quant::ALL.map(Quant::name).join(", ")))
    }
}

/// How a model is written.
#[derive(Clone, Debug)]
pub struct Options<'a> {
    /// Types of the weights.
    pub quant: Quant,
    /// How much the inputs of each matrix count.
    pub importance: Option<&'a Importance>,
    /// Metadata beside that of the model, in GGUF.
    pub metadata: Vec<(String, Item)>,
}

/// What was written.
#[derive(Clone, Debug, Default)]
pub struct Exported {
    /// Files with their bytes.
    pub files: Vec<(PathBuf, u64)>,
    /// Elements of all tensors.
    pub parameters: u64,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// By type: tensors, elements, bytes.
    pub types: BTreeMap<BlockType, (u64, u64, u64)>,
    /// What is to be told of it.
    pub notes: Vec<String>,
}

impl Exported {
    fn count(&mut self, tensor: &FileTensor<'_>, kind: BlockType) -> u64 {
        let elements = tensor.len() as u64;
        // Rows are whole blocks of the type that was chosen for them.
        let bytes = kind.bytes_of(elements).unwrap_or_default();
        let of = self.types.entry(kind).or_default();
        *of = (of.0 + 1, of.1 + elements, of.2 + bytes);
        self.parameters += elements;
        self.bytes += bytes;
        bytes
    }

    /// Bits of an element, on average.
    pub fn bits_per_weight(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.parameters as f64
    }
}

/// Told of the elements that are done, of how many.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// Writes tensors one after another. `behind(len)`: zeros after a tensor of so many bytes.
fn write_all(
    pool: &Pool,
    tensors: &[(FileTensor<'_>, BlockType)],
    importance: Option<&Importance>,
    file: &mut AtomicFile,
    behind: fn(u64) -> u64,
    done: &mut dyn FnMut(u64),
) -> Result<(), ExportError> {
    for (tensor, kind) in tensors {
        tensor.write(pool, *kind, importance, file, done)?;
        let len = kind.bytes_of(tensor.len() as u64).unwrap_or_default();
        put(file, &vec![0; behind(len) as usize])?;
    }
    Ok(())
}

fn put(file: &mut AtomicFile, bytes: &[u8]) -> Result<(), StoreError> {
    use std::io::Write as _;
    let written = file.write_all(bytes);
    written.map_err(|e| StoreError::io("write", file.path())(e))
}

/// Whether there is room for so many bytes in the folder of `path`, or the next one above that is
/// there.
fn room(path: &Path, need: u64) -> Result<(), ExportError> {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let free = absolute.ancestors().find(|p| p.is_dir()).and_then(store::free_bytes);
    match free {
        Some(free) if free < need => Err(ExportError::Disk { need, free }),
        _ => Ok(()),
    }
}
