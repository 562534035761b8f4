//! Low-rank adapters (LoRA, Hu et al. 2021, <https://arxiv.org/abs/2106.09685>): what was learned beside a base
//! model that stays as it is, in the files of PEFT: `adapter_config.json` and `adapter_model.safetensors`.

mod new;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use compute::Cpu;
use compute::cpu::matmul::{Mat, gemm};
use compute::parameters::{ParamId, Parameter};
use compute::tape::LowRank;
use compute::tensor::Tensor;
use regex_automata::meta::Regex;
use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;

use crate::config::Config;
use crate::transformer::{Transformer, shapes};
use crate::weights::places::{Layout, places};
use crate::weights::{SafeFiles, Tensors, WeightsError};
pub use new::{Shape, begin, write};

/// The files of an adapter.
const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
/// What the names of its tensors begin with.
const PREFIX: &str = "base_model.model.";

/// Why an adapter can't be read or put to a model.
#[derive(Debug, Error)]
pub enum AdapterError {
    /// A file could not be read.
    #[error(transparent)]
    Store(#[from] store::StoreError),
    /// A kind of adapter that is not computed here.
    #[error("{0}: {1}")]
    Unsupported(PathBuf, String),
    /// Broken weights.
    #[error("{0}: {1}")]
    Weights(PathBuf, WeightsError),
    /// It was made for another model.
    #[error(
        "{path}: the adapter is for another base model: {tensor} is {got:?}, here it would be {want}"
    )]
    Base {
        /// Its weights.
        path: PathBuf,
        /// A tensor of it.
        tensor: String,
        /// The tensor's shape.
        got: Vec<usize>,
        /// A shape that fits.
        want: String,
    },
    /// A tensor that belongs to no linear layer of the model.
    #[error(
        "{0}: {1} belongs to no layer of this model that can be adapted (those of attention and of dense MLPs)"
    )]
    Unknown(PathBuf, String),
    /// No layer has a matrix of this name.
    #[error("no layer of this model has a matrix {module}; there are {there}")]
    Module {
        /// What was asked for.
        module: String,
        /// What there is.
        there: String,
    },
}

/// Whether a directory is that of an adapter.
pub fn is_adapter(dir: &Path) -> bool {
    dir.join(CONFIG).is_file()
}

/// The model that an adapter was made for, as its files name it.
///
/// # Errors
/// A file that can't be read.
pub fn base(dir: &Path) -> Result<String, AdapterError> {
    #[derive(Deserialize)]
    struct Base {
        base_model_name_or_path: Option<String>,
    }
    let about: Base = store::read_json(&dir.join(CONFIG))?;
    Ok(about.base_model_name_or_path.unwrap_or_default())
}

/// `adapter_config.json`, as far as results depend on it.
#[derive(Deserialize)]
struct AdapterConfig {
    peft_type: String,
    r: f32,
    lora_alpha: f32,
    #[serde(default)]
    use_rslora: bool,
    /// By expressions of modules' names.
    #[serde(default)]
    rank_pattern: BTreeMap<String, f32>,
    #[serde(default)]
    alpha_pattern: BTreeMap<String, f32>,
    bias: Option<String>,
    #[serde(flatten)]
    rest: BTreeMap<String, Value>,
}

/// Settings that make another kind of adapter, if they are anything.
const OTHERS: [&str; 10] = [
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "layer_replication",
    "modules_to_save",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "monteclora_config",
];

impl AdapterConfig {
    /// What of it is not computed here.
    fn unsupported(&self) -> Option<String> {
        if self.peft_type != "LORA" {
            return Some(format!("peft_type is {:?}; LORA is read", self.peft_type));
        }
        if let Some(bias) = self.bias.as_ref().filter(|bias| *bias != "none") {
            return Some(format!("bias is {bias:?}; none is read"));
        }
        let is_set = |value: &&Value| match value {
            Value::Null | Value::Bool(false) => false,
            Value::Array(list) => !list.is_empty(),
            Value::Object(map) => !map.is_empty(),
            _ => true,
        };
        OTHERS.into_iter().find_map(|key| {
            let value = self.rest.get(key).filter(is_set)?;
            Some(format!("{key} is {value}, which is not read"))
        })
    }

    /// The factor of a module's product.
    fn scale(&self, module: &str) -> Result<f32, String> {
        let alpha = pattern(&self.alpha_pattern, module)?.unwrap_or(self.lora_alpha);
        let rank = pattern(&self.rank_pattern, module)?.unwrap_or(self.r);
        Ok(alpha / if self.use_rslora { rank.sqrt() } else { rank })
    }
}

/// The value of the first expression that a name, or an end of it after a dot, matches.
fn pattern(patterns: &BTreeMap<String, f32>, module: &str) -> Result<Option<f32>, String> {
    for (source, value) in patterns {
        let regex = Regex::new(&format!(r"^(?:.*\.)?(?:{source})$"))
            .map_err(|error| format!("the pattern {source:?}: {error}"))?;
        if regex.is_match(module) {
            return Ok(Some(*value));
        }
    }
    Ok(None)
}

/// An adapter: for linear layers, a product of low rank.
#[derive(Clone, Debug)]
pub struct Adapter {
    parts: Vec<Part>,
}

/// What it adds to one layer.
#[derive(Clone, Debug)]
struct Part {
    /// The layer's weight.
    weight: String,
    /// `[rank, in]`.
    a: Tensor,
    /// `[out, rank]`.
    b: Tensor,
    scale: f32,
}

impl Adapter {
    /// Reads PEFT's files of a directory, for a model of this configuration.
    ///
    /// # Errors
    /// Files that are missing or broken, another kind of adapter, or one for another model.
    pub fn read(dir: &Path, config: &Config) -> Result<Adapter, AdapterError> {
        let about: AdapterConfig = store::read_json(&dir.join(CONFIG))?;
        let unsupported = |why| AdapterError::Unsupported(dir.join(CONFIG), why);
        if let Some(why) = about.unsupported() {
            return Err(unsupported(why));
        }
        let path = dir.join(WEIGHTS);
        let wrong = |e| AdapterError::Weights(path.clone(), e);
        let files = SafeFiles::one(store::Map::open(&path)?).map_err(wrong)?;
        let mut left: BTreeSet<&str> = files.names().into_iter().collect();
        let mut parts = Vec::new();
        for place in places(config, Layout::HuggingFace) {
            let Some(module) = place.tensor.strip_suffix(".weight") else { continue };
            let name = |factor: &str| {
                let names = ["", "transformer."]
                    .map(|outer| format!("{PREFIX}{outer}{module}.{factor}.weight"));
                names.into_iter().find(|name| files.shape(name).is_some())
            };
            let (Some(a), Some(b)) = (name("lora_A"), name("lora_B")) else { continue };
            let shape = |name: &str| files.shape(name).unwrap_or_default().to_vec();
            let (of_a, of_b) = (shape(&a), shape(&b));
            let [out, input] = match place.whole[..] {
                [out, input] if !place.turned => [out, input],
                [input, out] => [out, input],
                _ => continue,
            };
            let base = |tensor: &str, got: &[usize], want: String| AdapterError::Base {
                path: path.clone(),
                tensor: tensor.into(),
                got: got.to_vec(),
                want,
            };
            if of_a.len() != 2 || of_a[1] != input {
                return Err(base(&a, &of_a, format!("[rank, {input}]")));
            }
            let rank = of_a[0];
            if of_b != [out, rank] {
                return Err(base(&b, &of_b, format!("[{out}, {rank}]")));
            }
            let scale = about.scale(module).map_err(unsupported)?;
            let data_a = files.rows(&a, 0..rank, input).map_err(wrong)?;
            let data_b = files.rows(&b, place.rows.clone(), rank).map_err(wrong)?;
            parts.push(Part {
                weight: place.name.clone(),
                a: Tensor::new(rank, input, data_a),
                b: Tensor::new(place.rows.len(), rank, data_b),
                scale,
            });
            left.retain(|name| *name != a && *name != b);
        }
        match left.first() {
            Some(name) => Err(AdapterError::Unknown(path.clone(), name.to_string())),
            None => Ok(Adapter { parts }),
        }
    }

    /// Puts it to the model it was read for, whose own weights stay. A layer that has one already has the
    /// sum of both.
    pub fn apply(self, model: &mut Transformer) {
        let (linears, parameters) = model.linears();
        let mut parts: BTreeMap<String, Part> =
            self.parts.into_iter().map(|part| (part.weight.clone(), part)).collect();
        for layer in linears {
            let Some(part) = parts.remove(&parameters.get(layer.weight).name) else { continue };
            let Part { weight, a, b, scale } = part;
            if let Some(LowRank { a: old_a, b: old_b, scale: old }) = layer.adapter {
                let (a, b) = (
                    stacked(&parameters.get(old_a).value, &a),
                    beside((&parameters.get(old_b).value, old), (&b, scale)),
                );
                parameters.get_mut(old_a).value = a;
                parameters.get_mut(old_b).value = b;
                layer.adapter = Some(LowRank { a: old_a, b: old_b, scale: 1.0 });
                continue;
            }
            let module = weight.trim_end_matches(".weight");
            let mut add = |factor: &str, value: Tensor| -> ParamId {
                let name = format!("{module}.{factor}.weight");
                parameters.add(Parameter { name, value, vector: false, trainable: true })
            };
            layer.adapter = Some(LowRank { a: add("lora_A", a), b: add("lora_B", b), scale });
        }
    }
}

/// Rows of `a`, then those of `b`.
fn stacked(a: &Tensor, b: &Tensor) -> Tensor {
    Tensor::new(a.rows() + b.rows(), a.cols(), [a.f32(), b.f32()].concat())
}

/// Columns of both side by side, each times its factor.
fn beside(a: (&Tensor, f32), b: (&Tensor, f32)) -> Tensor {
    let row = |(x, scale): (&Tensor, f32), r: usize| -> Vec<f32> {
        x.f32()[r * x.cols()..(r + 1) * x.cols()].iter().map(|x| x * scale).collect()
    };
    let data = (0..a.0.rows()).flat_map(|r| [row(a, r), row(b, r)].concat()).collect();
    Tensor::new(a.0.rows(), a.0.cols() + b.0.cols(), data)
}

/// Adds what adapters add to the weights themselves, `w + scale · b a`, which are f32 then, and lets go of them.
pub fn merge(model: &mut Transformer, cpu: &Cpu) {
    let own = shapes(model.config()).len();
    let (linears, parameters) = model.linears();
    for layer in linears {
        let Some(LowRank { a, b, scale }) = layer.adapter.take() else { continue };
        let (a, b) = (&parameters.get(a).value, &parameters.get(b).value);
        let w = &parameters.get(layer.weight).value;
        let (out, input, rank) = (w.rows(), w.cols(), a.rows());
        let mut sum = vec![0.0; out * input];
        for (r, row) in sum.chunks_mut(input.max(1)).enumerate() {
            w.row(r, row);
        }
        let b: Vec<f32> = b.f32().iter().map(|x| x * scale).collect();
        let left = Mat { data: &b[..], stride: rank, transposed: false };
        let right = Mat { data: a.f32(), stride: input, transposed: false };
        gemm(cpu, out, input, rank, left, right, &mut sum, input, true);
        parameters.get_mut(layer.weight).value = Tensor::new(out, input, sum);
    }
    parameters.truncate(own);
}
