//! What a model directory or a GGUF file holds, told without loading the weights; of any family.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use compute::strips::Strips;
use safetensors::SafeTensors;
use serde::Serialize;
use serde_json::Value as Json;

use crate::config::Config;
use crate::directory::ModelError;
use crate::template::ChatTemplate;
use crate::tokenizer::Tokenizer;
use crate::weights::{GgufFiles, WeightsError};

/// Facts about a model. Numbers that its `config.json` or metadata don't tell are `None`.
#[derive(Clone, Debug, Serialize)]
pub struct About {
    /// The family: `model_type` of `config.json`, `general.architecture` of a GGUF file.
    pub family: String,
    /// The class that loads it elsewhere; a GGUF file's own name.
    pub architecture: Option<String>,
    /// All parameters, each counted once.
    pub parameters: u64,
    /// Parameters by the type they are stored in.
    pub dtypes: BTreeMap<String, u64>,
    /// Layers.
    pub layers: Option<u64>,
    /// Width of the residual stream.
    pub width: Option<u64>,
    /// Query heads.
    pub heads: Option<u64>,
    /// Key and value heads.
    pub kv_heads: Option<u64>,
    /// Rows of the embedding.
    pub vocabulary: Option<u64>,
    /// Longest context, tokens.
    pub context: Option<u64>,
    /// Tokens of the tokenizer, if it can be read here.
    pub tokens: Option<u64>,
    /// Whether it has a chat template.
    pub chat_template: bool,
    /// Size of the files of weights.
    pub weights_bytes: u64,
    /// Memory of the weights when they are computed with here: those of fewer than 32 bits as they
    /// are, others in f32 and packed for products.
    pub memory_bytes: u64,
    /// Memory of keys and values of a full context here, in f32.
    pub context_bytes: Option<u64>,
    /// What can't be read here, and why.
    pub problems: Vec<String>,
}

/// Looks at a model directory.
///
/// # Errors
/// A `config.json` that is no JSON object, files of weights that are none, or none at all.
pub fn about(dir: &Path) -> Result<About, ModelError> {
    let text = store::read_text(&dir.join("config.json"))?;
    let config: Json = store::read_json(&dir.join("config.json"))?;
    let known = Config::from_json(&text);
    let number = |key: &str| config[key].as_u64();
    let text = |value: &Json| value.as_str().map(String::from);
    let heads = number("num_attention_heads");
    let kv_heads = number("num_key_value_heads").or(heads);
    let width = number("hidden_size");
    let head_width = number("head_dim").or_else(|| width?.checked_div(heads?));
    let (layers, context) = (number("num_hidden_layers"), number("max_position_embeddings"));
    let weights = Weights::of(dir, config["tie_word_embeddings"] == true)?;
    let mut problems = Vec::new();
    problems.extend(known.err().map(|e| format!("it can't be run here: {e}")));
    let tokenizer = Tokenizer::load(dir.join("tokenizer.json"));
    let template = ChatTemplate::load(dir, Vec::new());
    problems.extend(tokenizer.as_ref().err().map(|e| format!("its tokenizer: {e}")));
    problems.extend(template.as_ref().err().map(|e| format!("its chat template: {e}")));
    let parameters = weights.dtypes.values().sum();
    let memory =
        |(dtype, n): (&String, &u64)| n.saturating_mul(if dtype.ends_with("16") { 2 } else { 8 });
    let memory_bytes = weights.dtypes.iter().map(memory).fold(0, u64::saturating_add);
    let keys_and_values = || {
        let position = 8u64.checked_mul(layers?)?.checked_mul(kv_heads?)?;
        position.checked_mul(head_width?)?.checked_mul(context?)
    };
    Ok(About {
        family: text(&config["model_type"]).unwrap_or_else(|| "unknown".into()),
        architecture: text(&config["architectures"][0]),
        parameters,
        dtypes: weights.dtypes,
        layers,
        width,
        heads,
        kv_heads,
        vocabulary: number("vocab_size"),
        context,
        tokens: tokenizer.ok().map(|t| t.vocab_size() as u64),
        // One that can't be read is there nevertheless.
        chat_template: template.map_or(true, |t| t.is_some()),
        weights_bytes: weights.bytes,
        memory_bytes,
        context_bytes: keys_and_values(),
        problems,
    })
}

/// Looks at a GGUF file.
///
/// # Errors
/// A file that can't be read, or is none.
pub fn about_gguf(path: &Path) -> Result<About, ModelError> {
    let files = GgufFiles::open(path)?;
    let contents = files.contents();
    let get = |key: &str| contents.metadata.get(key);
    let family = get("general.architecture").and_then(|v| v.as_str()).unwrap_or("unknown");
    // Some families have a number a layer: then there is no one number to tell.
    let number = |key: &str| get(&format!("{family}.{key}"))?.as_u64();
    let (heads, width) = (number("attention.head_count"), number("embedding_length"));
    let kv_heads = number("attention.head_count_kv").or(heads);
    let key_width = number("attention.key_length").or_else(|| width?.checked_div(heads?));
    let value_width = number("attention.value_length").or(key_width);
    let (layers, context) = (number("block_count"), number("context_length"));
    let keys_and_values = || {
        let position = 4u64.checked_mul(layers?)?.checked_mul(kv_heads?)?;
        position.checked_mul(key_width?.checked_add(value_width?)?)?.checked_mul(context?)
    };
    let mut dtypes: BTreeMap<String, u64> = BTreeMap::new();
    for (_, info) in files.tensors() {
        let size: usize = info.shape.iter().product();
        *dtypes.entry(info.kind.name().into()).or_default() += size as u64;
    }
    let embedding = contents.tensors.get("token_embd.weight");
    let config = Config::from_gguf(&files);
    let tokenizer = Tokenizer::from_gguf(contents, files.bytes());
    let mut problems = Vec::new();
    problems.extend(config.err().map(|e| format!("it can't be run here: {e}")));
    problems.extend(tokenizer.as_ref().err().map(|e| format!("its tokenizer: {e}")));
    let parameters = dtypes.values().sum();
    let memory_bytes = (files.tensors())
        .map(|(_, t)| match Strips::holds(t.kind) && t.shape.len() > 1 {
            true => t.bytes.len() as u64,
            false => t.shape.iter().map(|n| *n as u64).product::<u64>().saturating_mul(8),
        })
        .fold(0, u64::saturating_add);
    Ok(About {
        family: family.into(),
        architecture: get("general.name").and_then(|v| v.as_str()).map(String::from),
        parameters,
        dtypes,
        layers,
        width,
        heads,
        kv_heads,
        vocabulary: embedding.map(|e| e.shape[0] as u64),
        context,
        tokens: tokenizer.ok().map(|t| t.vocab_size() as u64),
        chat_template: get("tokenizer.chat_template").is_some(),
        weights_bytes: files.len(),
        memory_bytes,
        context_bytes: keys_and_values(),
        problems,
    })
}

/// The headers of all `.safetensors` files of a directory.
struct Weights {
    dtypes: BTreeMap<String, u64>,
    bytes: u64,
}

impl Weights {
    fn of(dir: &Path, tied: bool) -> Result<Weights, ModelError> {
        let list = || store::StoreError::io("list the folder", dir);
        let mut files: Vec<PathBuf> = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(list())? {
            files.push(entry.map_err(list())?.path());
        }
        files.retain(|p| p.extension().is_some_and(|e| e == "safetensors"));
        if files.is_empty() {
            // The usual error for the usual file.
            files.push(dir.join("model.safetensors"));
        }
        files.sort();
        let mut weights = Weights { dtypes: BTreeMap::new(), bytes: 0 };
        for path in files {
            let map = store::Map::open(&path)?;
            let (_, header) = SafeTensors::read_metadata(&map)
                .map_err(|e| ModelError::Weights(path.clone(), WeightsError::Format(e)))?;
            weights.bytes += map.len() as u64;
            for (name, tensor) in header.tensors() {
                // A tied head may be stored twice.
                if !(tied && name == "lm_head.weight") {
                    let size: usize = tensor.shape.iter().product();
                    *weights.dtypes.entry(format!("{:?}", tensor.dtype)).or_default() +=
                        size as u64;
                }
            }
        }
        Ok(weights)
    }
}
