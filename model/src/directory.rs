//! A model as a GGUF file or as a Hugging Face directory: `config.json`, `model.safetensors`,
//! `tokenizer.json`, `tokenizer_config.json` (with the chat template), `generation_config.json`.

use std::path::{Path, PathBuf};

use compute::Cpu;
use serde::Serialize;
use serde_json::Value;
use thiserror::Error;

use crate::adapter::{self, Adapter, AdapterError};
use crate::config::{Config, ConfigError};
use crate::gguf::GgufError;
use crate::template::{ChatTemplate, SpecialTokens, TemplateError};
use crate::tokenizer::{Tokenizer, TokenizerError};
use crate::transformer::Transformer;
use crate::weights::{self, GgufFiles, SafeFiles, WeightsError};

/// A chat template in a file of its own.
pub const TEMPLATE: &str = "chat_template.jinja";

/// Why a model can't be read or written.
#[derive(Debug, Error)]
pub enum ModelError {
    /// A file could not be read or written.
    #[error(transparent)]
    Store(#[from] store::StoreError),
    /// Neither a model directory nor a run directory.
    #[error(
        "{0} is not a model: no GGUF file, and neither it nor its model/ or base/ has a config.json"
    )]
    NotAModel(PathBuf),
    /// A broken configuration.
    #[error("{0}: {1}")]
    Config(PathBuf, ConfigError),
    /// Broken weights.
    #[error("{0}: {1}")]
    Weights(PathBuf, WeightsError),
    /// A broken GGUF file.
    #[error("{0}: {1}")]
    Gguf(PathBuf, GgufError),
    /// An adapter that can't be used.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// The model that an adapter is for is not where its files say.
    #[error("{dir} is an adapter for the model {base:?}, which is not here")]
    Base {
        /// The adapter.
        dir: PathBuf,
        /// What it names.
        base: String,
    },
    /// A broken tokenizer.
    #[error("{0}: {1}")]
    Tokenizer(PathBuf, TokenizerError),
    /// A broken template, or `tokenizer_config.json`.
    #[error("{0}: {1}")]
    Template(PathBuf, TemplateError),
    /// There is no room for it.
    #[error("{path}: the model needs about {} MB of memory, and {} MB are available", need >> 20, available >> 20)]
    Memory {
        /// Its weights.
        path: PathBuf,
        /// Bytes.
        need: u64,
        /// Bytes.
        available: u64,
    },
    /// The tokenizer has ids that the embedding lacks.
    #[error("{path}: the tokenizer has {tokens} tokens, the model only {rows}")]
    Vocabulary {
        /// The directory.
        path: PathBuf,
        /// Of the tokenizer.
        tokens: usize,
        /// Of the embedding.
        rows: usize,
    },
}

/// `tokenizer_config.json`, as it is written here.
#[derive(Clone, Debug, Default, Serialize)]
pub struct TokenizerConfig {
    /// Class that loads it elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokenizer_class: Option<String>,
    /// The chat template (Jinja); a base model has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chat_template: Option<String>,
    /// Token that starts a document.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bos_token: Option<String>,
    /// Token that ends an answer (or a document, for a base model).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eos_token: Option<String>,
    /// Whether raw text is to start with `bos_token`.
    pub add_bos_token: bool,
    /// Longest context.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model_max_length: Option<u64>,
}

/// A model with all that belongs to it.
pub struct Loaded {
    /// The weights.
    pub transformer: Transformer,
    /// Text to ids.
    pub tokenizer: Tokenizer,
    /// How conversations are written; a base model has none.
    pub template: Option<ChatTemplate>,
    /// Token that raw text starts with, if the tokenizer says so.
    pub bos: Option<u32>,
    /// Tokens that end an answer, as the files say; the template may know more.
    pub ends: Vec<u32>,
    /// Where it was read from: a directory or a GGUF file.
    pub path: PathBuf,
}

impl Loaded {
    /// The model with the adapter in `dir`, sharing weights that are kept as they are stored, and the chat template
    /// that lies beside it.
    ///
    /// # Errors
    /// An adapter that can't be read, or is for another model.
    pub fn adapted(&self, dir: &Path) -> Result<(Transformer, Option<ChatTemplate>), ModelError> {
        let mut transformer = self.transformer.clone();
        Adapter::read(dir, transformer.config())?.apply(&mut transformer);
        let path = dir.join(TEMPLATE);
        if !path.is_file() {
            return Ok((transformer, None));
        }
        let special = special_tokens(&self.tokenizer, transformer.config());
        let template = ChatTemplate::new(&store::read_text(&path)?, special)
            .map_err(|e| ModelError::Template(dir.into(), e))?;
        Ok((transformer, Some(template)))
    }

    /// Takes another chat template.
    ///
    /// # Errors
    /// [`TemplateError::Syntax`].
    pub fn set_template(&mut self, source: &str) -> Result<(), TemplateError> {
        let special = special_tokens(&self.tokenizer, self.transformer.config());
        self.template = Some(ChatTemplate::new(source, special)?);
        Ok(())
    }
}

/// What a chat template has to know of a model's tokenizer.
pub fn special_tokens(tokenizer: &Tokenizer, config: &Config) -> SpecialTokens {
    let text = |id: Option<u32>| {
        let bytes = id.and_then(|id| tokenizer.token_bytes(id)).unwrap_or_default();
        String::from_utf8_lossy(bytes).into_owned()
    };
    let roles = tokenizer.roles();
    SpecialTokens {
        tokens: tokenizer.special_tokens().map(|(id, text)| (text.to_string(), id)).collect(),
        bos: text(roles.bos.or(config.bos_token_id)),
        eos: text(roles.eos.or(config.eos_token_id)),
    }
}

/// Where the model of `path` lies: a GGUF file, the directory of a model or of an adapter, or a run's `model/`.
///
/// # Errors
/// If neither is there.
pub fn resolve(path: &Path) -> Result<PathBuf, ModelError> {
    if is_gguf(path) {
        return Ok(path.to_path_buf());
    }
    [path.to_path_buf(), path.join("model"), path.join("base")]
        .into_iter()
        .find(|p| p.join("config.json").is_file() || adapter::is_adapter(p))
        .ok_or_else(|| ModelError::NotAModel(path.to_path_buf()))
}

/// Whether a path is a file that is called GGUF.
pub fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) && path.is_file()
}

/// Reads a model: a GGUF file, a model directory, the directory of an adapter (with the model that it names), or
/// the model of a run directory. All weights are
/// widened to f32: products are exact, and they can be trained.
///
/// # Errors
/// Which file is missing or wrong, and how.
pub fn load(path: &Path) -> Result<Loaded, ModelError> {
    load_keeping(path, None)
}

/// As [`load`]; with threads to lay them out, weights of fewer than 32 bits stay so: faster, in a
/// fraction of the memory. Before products with quantised ones, activations are rounded to 8 bits.
///
/// # Errors
/// As [`load`].
pub fn load_keeping(path: &Path, keep: Option<&Cpu>) -> Result<Loaded, ModelError> {
    let path = resolve(path)?;
    if is_gguf(&path) {
        load_gguf(path, keep)
    } else if adapter::is_adapter(&path) {
        load_adapted(path, keep)
    } else {
        load_directory(path, keep)
    }
}

/// The model that an adapter names, with it, and with the chat template that lies beside it.
fn load_adapted(dir: PathBuf, keep: Option<&Cpu>) -> Result<Loaded, ModelError> {
    let base = adapter::base(&dir)?;
    let path = PathBuf::from(&base);
    // One adapter over another would go round in circles.
    if base.is_empty() || !path.exists() || adapter::is_adapter(&path) {
        return Err(ModelError::Base { dir, base });
    }
    let mut loaded = load_keeping(&path, keep)?;
    let (transformer, template) = loaded.adapted(&dir)?;
    loaded.transformer = transformer;
    loaded.template = template.or(loaded.template);
    Ok(loaded)
}

fn load_gguf(path: PathBuf, keep: Option<&Cpu>) -> Result<Loaded, ModelError> {
    let files = GgufFiles::open(&path)?;
    let (contents, bytes) = (files.contents(), files.bytes());
    let config = Config::from_gguf(&files).map_err(|e| ModelError::Config(path.clone(), e))?;
    let tokenizer = Tokenizer::from_gguf(contents, bytes)
        .map_err(|e| ModelError::Tokenizer(path.clone(), e))?;
    check_vocabulary(&config, &tokenizer, &path)?;
    let roles = *tokenizer.roles();
    let source = contents.metadata.get("tokenizer.chat_template").and_then(|v| v.as_str());
    let special = || special_tokens(&tokenizer, &config);
    let template = source.map(|source| ChatTemplate::new(source, special())).transpose();
    let template = template.map_err(|e| ModelError::Template(path.clone(), e))?;
    let wrong = |e| ModelError::Weights(path.clone(), e);
    enough_memory(weights::memory(&config, &files, keep.is_some()).map_err(wrong)?, &path)?;
    let parameters = weights::read(&config, &files, keep).map_err(wrong)?;
    Ok(Loaded {
        transformer: Transformer::new(config, parameters),
        template,
        bos: roles.bos.filter(|_| roles.add_bos),
        ends: roles.ends().collect(),
        tokenizer,
        path,
    })
}

fn load_directory(dir: PathBuf, keep: Option<&Cpu>) -> Result<Loaded, ModelError> {
    let file = |name: &str| dir.join(name);
    let config = Config::from_json(&store::read_text(&file("config.json"))?)
        .map_err(|e| ModelError::Config(file("config.json"), e))?;
    let tokenizer = Tokenizer::from_json(&store::read_text(&file("tokenizer.json"))?)
        .map_err(|e| ModelError::Tokenizer(file("tokenizer.json"), e))?;
    check_vocabulary(&config, &tokenizer, &dir)?;
    let special = tokenizer.special_tokens().map(|(id, text)| (text.to_string(), id)).collect();
    let template =
        ChatTemplate::load(&dir, special).map_err(|e| ModelError::Template(dir.clone(), e))?;
    let optional = |name: &str| -> Result<Value, ModelError> {
        let path = file(name);
        Ok(if path.is_file() { store::read_json(&path)? } else { Value::Null })
    };
    let settings = optional("tokenizer_config.json")?;
    // A token is its text, or an object with its text as `content`.
    let bos = &settings["bos_token"];
    let bos = bos.as_str().or(bos["content"].as_str()).and_then(|name| tokenizer.special_id(name));
    let roles = tokenizer.roles();
    let bos = match settings["add_bos_token"].as_bool() {
        Some(wanted) => bos.filter(|_| wanted),
        None => roles.bos.filter(|_| roles.add_bos),
    };
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    // A number or several.
    let ends = match &optional("generation_config.json")?["eos_token_id"] {
        Value::Array(ids) => ids.iter().filter_map(id).collect(),
        one => id(one).or(config.eos_token_id).into_iter().collect(),
    };
    let files = SafeFiles::open(&dir)?;
    let wrong = |e| ModelError::Weights(dir.clone(), e);
    enough_memory(weights::memory(&config, &files, keep.is_some()).map_err(wrong)?, &dir)?;
    let parameters = weights::read(&config, &files, keep).map_err(wrong)?;
    Ok(Loaded {
        transformer: Transformer::new(config, parameters),
        tokenizer,
        template,
        bos,
        ends,
        path: dir,
    })
}

fn check_vocabulary(config: &Config, tokenizer: &Tokenizer, path: &Path) -> Result<(), ModelError> {
    let (tokens, rows) = (tokenizer.vocab_size(), config.vocab_size);
    if tokens > rows {
        return Err(ModelError::Vocabulary { path: path.to_path_buf(), tokens, rows });
    }
    Ok(())
}

/// Whether so much fits into memory.
fn enough_memory(need: u64, path: &Path) -> Result<(), ModelError> {
    match store::available_memory() {
        Some(available) if need > available => {
            Err(ModelError::Memory { path: path.to_path_buf(), need, available })
        }
        _ => Ok(()),
    }
}

/// Writes a model directory, file by file, each of them atomically; `config.json` last, so that a
/// directory that has one is whole.
///
/// # Errors
/// What could not be written.
pub fn save(
    dir: &Path,
    transformer: &Transformer,
    tokenizer_json: &str,
    settings: &TokenizerConfig,
) -> Result<(), ModelError> {
    store::create_dir(dir)?;
    let weights = weights::write(&transformer.parameters)
        .map_err(|e| ModelError::Weights(dir.join("model.safetensors"), e))?;
    let config = transformer.config();
    let generation = serde_json::json!({
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "do_sample": false,
    });
    let pretty = |v: serde_json::Value| format!("{v:#}\n").into_bytes();
    let settings = serde_json::to_value(settings).unwrap_or_default();
    for (name, bytes) in [
        ("model.safetensors", weights),
        ("tokenizer.json", tokenizer_json.as_bytes().to_vec()),
        ("tokenizer_config.json", pretty(settings)),
        ("generation_config.json", pretty(generation)),
        ("config.json", config.to_json("float32").into_bytes()),
    ] {
        store::write_atomic(&dir.join(name), &bytes)?;
    }
    Ok(())
}
