//! Weights from files: safetensors, one or several, and GGUF.

mod gguf;
pub mod places;
mod safetensors;

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use compute::Cpu;
use compute::blocks::BlockType;
use compute::parameters::{Parameter, Parameters};
use compute::strips::Strips;
use compute::tensor::Tensor;
use thiserror::Error;

use crate::config::{Config, Family};
pub use gguf::GgufFiles;
use places::{Layout, Place, places};
pub use safetensors::{SafeFiles, write};

/// Why weights can't be used.
#[derive(Debug, Error)]
pub enum WeightsError {
    /// Not a safetensors file, or a broken one.
    #[error("not a valid safetensors file: {0}")]
    Format(#[from] ::safetensors::SafeTensorError),
    /// The configuration asks for a tensor that isn't there.
    #[error("tensor {0} is missing")]
    Missing(String),
    /// A tensor that the configuration doesn't ask for.
    #[error("tensor {0} belongs to no part of the configured model")]
    Unknown(String),
    /// A tensor of another shape than the configuration says.
    #[error("tensor {name} has shape {got:?}, but the configuration makes it {want:?}")]
    Shape {
        /// Its name.
        name: String,
        /// In the file.
        got: Vec<usize>,
        /// By the configuration.
        want: Vec<usize>,
    },
    /// An element type that isn't read.
    #[error("tensor {name} is {dtype}; F32, F16 and BF16 are read")]
    Type {
        /// Its name.
        name: String,
        /// In the file.
        dtype: String,
    },
    /// There is no room for it.
    #[error("tensor {0}: there is no memory for it")]
    Memory(String),
    /// A tensor that two files have.
    #[error("tensor {0} is there twice")]
    Twice(String),
}

/// Tensors of files, widened to f32 when they are asked for rows.
pub trait Tensors {
    /// How the files name things.
    const LAYOUT: Layout;

    /// The names of all.
    fn names(&self) -> Vec<&str>;

    /// The shape of one.
    fn shape(&self, name: &str) -> Option<&[usize]>;

    /// Rows of `len` elements of one, whose shape was asked for.
    ///
    /// # Errors
    /// [`WeightsError::Type`].
    fn rows(&self, name: &str, rows: Range<usize>, len: usize) -> Result<Vec<f32>, WeightsError>;

    /// The elements of one of fewer than 32 bits each, in blocks.
    fn blocks(&self, name: &str) -> Option<(BlockType, &[u8])>;

    /// Bytes of one's blocks were read, and their memory may go.
    fn done(&self, name: &str, bytes: Range<usize>) {
        let _ = (name, bytes);
    }
}

/// The parameters of `config` from files. Matrices of fewer than 32 bits an element stay so, laid
/// out for products by the threads of `keep`; without it, they are widened to f32.
///
/// # Errors
/// A tensor missing, unknown, or of the wrong shape or type; no memory.
pub fn read<T: Tensors>(
    config: &Config,
    files: &T,
    keep: Option<&Cpu>,
) -> Result<Parameters, WeightsError> {
    let places = places(config, T::LAYOUT);
    let names = names(config, files)?;
    let wanted: HashSet<&str> = places.iter().map(|p| &p.tensor[..]).collect();
    if let Some((_, name)) = names.iter().find(|(usual, _)| !wanted.contains(&usual[..])) {
        return Err(WeightsError::Unknown(name.to_string()));
    }
    let mut parameters = Parameters::default();
    for place in places {
        let missing = || WeightsError::Missing(place.tensor.clone());
        let name = names.get(&place.tensor).ok_or_else(missing)?;
        let got = files.shape(name).ok_or_else(missing)?;
        if got != place.whole {
            let (got, want) = (got.to_vec(), place.whole);
            return Err(WeightsError::Shape { name: name.to_string(), got, want });
        }
        let narrow = keep.zip(files.blocks(name)).filter(|_| place.stays_quantised());
        if let Some((cpu, (kind, blocks))) = narrow {
            let strips = lay_out(cpu, kind, blocks, &place, |bytes| files.done(name, bytes))
                .ok_or_else(|| WeightsError::Memory(name.to_string()))?;
            let value = Tensor::quantised(strips);
            parameters.add(Parameter { name: place.name, value, vector: false, trainable: false });
        } else {
            let data = take(files, name, &place)?;
            parameters.add(parameter(place.name, &place.shape, data));
        }
        files.done(name, 0..usize::MAX);
    }
    Ok(parameters)
}

/// The file's own names by those that [`places`] know.
fn names<'a, T: Tensors>(
    config: &Config,
    files: &'a T,
) -> Result<HashMap<String, &'a str>, WeightsError> {
    let mut names = HashMap::new();
    for name in files.names() {
        if let Some(usual) = usual_name(config, T::LAYOUT, name)
            && names.insert(usual, name).is_some()
        {
            return Err(WeightsError::Twice(name.to_string()));
        }
    }
    Ok(names)
}

/// Bytes of memory that the parameters take when they are computed with: those of
/// fewer bits as they are if they are kept, all others as f32 and packed for products.
///
/// # Errors
/// A tensor that is there twice.
pub fn memory<T: Tensors>(config: &Config, files: &T, keep: bool) -> Result<u64, WeightsError> {
    let names = names(config, files)?;
    let bytes = |place: &Place| {
        let elements = place.shape.iter().map(|n| *n as u64).product::<u64>();
        let blocks = names.get(&place.tensor).and_then(|name| files.blocks(name));
        match blocks.filter(|_| keep && place.stays_quantised()) {
            Some((kind, _)) => kind.bytes_of(elements).unwrap_or(elements),
            None => elements.saturating_mul(8),
        }
    };
    Ok(places(config, T::LAYOUT).iter().map(bytes).fold(0, u64::saturating_add))
}

/// A matrix laid out for products; `None` if there is no memory for it.
fn lay_out(
    cpu: &Cpu,
    kind: BlockType,
    blocks: &[u8],
    place: &Place,
    read: impl Fn(Range<usize>),
) -> Option<Strips> {
    let (rows, cols) = (place.shape[0], place.shape[1]);
    let row = cols / kind.elements() * kind.bytes();
    let first = place.rows.start;
    let blocks_of = |r| {
        let from = first + place.interleaved.map_or(r, |heads| source(r, rows / heads));
        &blocks[from * row..(from + 1) * row]
    };
    Strips::new_part_by_part(cpu, rows, cols, kind, blocks_of, |rows| {
        if place.interleaved.is_none() {
            read((first + rows.start) * row..(first + rows.end) * row);
        }
    })
}

/// Where row `r` of heads of `head` rows lies in a file whose halves are interleaved: row `i` of
/// half `j` of a head is there row `2 i + j`.
pub(crate) fn source(r: usize, head: usize) -> usize {
    let (start, within, half) = (r / head * head, r % head, (head / 2).max(1));
    start + 2 * (within % half) + within / half
}

/// How [`places`] know a tensor; `None` for one that isn't needed.
fn usual_name(c: &Config, layout: Layout, name: &str) -> Option<String> {
    if layout == Layout::Gguf {
        let derived = name.starts_with("rope_freqs.") || name.starts_with("rope_factors_");
        return (!derived).then(|| name.to_string());
    }
    // A tied head may be stored twice, and what follows from the configuration too.
    let tied = c.tie_word_embeddings && name.ends_with("lm_head.weight");
    if tied || name.ends_with("rotary_emb.inv_freq") {
        return None;
    }
    match c.family {
        Family::Gpt2 if name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias") => None,
        Family::Gpt2 if !name.starts_with("transformer.") => Some(format!("transformer.{name}")),
        Family::Gemma3 => {
            if name.contains("vision_tower.") || name.contains("multi_modal_projector.") {
                return None;
            }
            let text = name.strip_prefix("language_model.").unwrap_or(name);
            Some(match text.strip_prefix("model.language_model.") {
                Some(rest) => format!("model.{rest}"),
                None => text.to_string(),
            })
        }
        _ => Some(name.to_string()),
    }
}

fn take<T: Tensors>(files: &T, name: &str, place: &Place) -> Result<Vec<f32>, WeightsError> {
    let vector = place.whole.len() == 1;
    let len = if vector { place.whole[0] } else { place.whole[place.whole.len() - 1] };
    let mut data = if vector {
        files.rows(name, 0..1, len)?[place.rows.clone()].to_vec()
    } else if place.turned {
        let whole = files.rows(name, 0..place.whole[0], len)?;
        let column = |c| (0..place.whole[0]).map(move |r| (r, c));
        place.rows.clone().flat_map(column).map(|(r, c)| whole[r * len + c]).collect()
    } else {
        files.rows(name, place.rows.clone(), len)?
    };
    if let Some(heads) = place.interleaved {
        let len = if vector { 1 } else { len };
        let head = data.len() / len / heads;
        let from = data.clone();
        for (r, row) in data.chunks_exact_mut(len).enumerate() {
            row.copy_from_slice(&from[source(r, head) * len..][..len]);
        }
    }
    if place.plus != 0.0 {
        data.iter_mut().for_each(|x| *x += place.plus);
    }
    Ok(data)
}

/// A trainable parameter of this name and shape.
pub(crate) fn parameter(name: String, shape: &[usize], data: Vec<f32>) -> Parameter {
    let vector = shape.len() == 1;
    let (rows, cols) = if vector { (1, shape[0]) } else { (shape[0], shape[1]) };
    Parameter { name, value: Tensor::new(rows, cols, data), vector, trainable: true }
}
