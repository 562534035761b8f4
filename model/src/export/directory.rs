//! A Hugging Face directory that transformers reads.

use std::collections::BTreeMap;
use std::path::Path;

use compute::Pool;
use compute::blocks::BlockType;
use serde_json::{Map, json};
use store::AtomicFile;

use super::tensors::{FileTensor, tensors};
use super::{ExportError, Exported, Options, Progress, Quant, put, room, write_all};
use crate::config::Config;
use crate::directory::{Loaded, ModelError, TEMPLATE, TokenizerConfig, is_gguf};
use crate::template::ChatTemplate;
use crate::weights::places::Layout;

/// Bytes of the tensors of one file.
const SHARD: u64 = 4 << 30;
/// What belongs to a tokenizer, and to generation.
const CARRIED: [&str; 10] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
];

/// Writes a model as a directory, `config.json` last: one that has it is whole.
///
/// # Errors
/// What `config.json` can't say of it, what a type can't hold, what the system says.
pub fn safetensors(
    loaded: &Loaded,
    pool: &Pool,
    options: &Options<'_>,
    dir: &Path,
    progress: Progress<'_>,
) -> Result<Exported, ExportError> {
    let (torch, label) = match options.quant {
        Quant::F32 => ("float32", "F32"),
        Quant::F16 => ("float16", "F16"),
        Quant::BF16 => ("bfloat16", "BF16"),
        other => return Err(ExportError::Type(other)),
    };
    let kind = options.quant.kind();
    if dir.is_file() || std::fs::read_dir(dir).is_ok_and(|mut list| list.next().is_some()) {
        return Err(ExportError::Exists(dir.to_path_buf()));
    }
    let config = loaded.transformer.config();
    let text = config.to_json(torch);
    check(config, &text)?;

    let mut exported = Exported::default();
    let mut shards: Vec<(u64, Vec<(FileTensor<'_>, BlockType)>)> = Vec::new();
    for tensor in tensors(config, Layout::HuggingFace, &loaded.transformer.parameters) {
        let bytes = exported.count(&tensor, kind);
        match shards.last_mut() {
            Some((size, list)) if *size + bytes <= SHARD => {
                *size += bytes;
                list.push((tensor, kind));
            }
            _ => shards.push((bytes, vec![(tensor, kind)])),
        }
    }
    room(dir, exported.bytes)?;
    let (mut done, total) = (0, exported.parameters);
    let mut tell = |elements| {
        done += elements;
        progress(done, total);
    };
    let count = shards.len();
    let mut map = Map::new();
    for (i, (_, shard)) in shards.iter().enumerate() {
        let name = match count {
            1 => "model.safetensors".to_string(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
        };
        shard.iter().for_each(|(t, _)| drop(map.insert(t.name.clone(), json!(name))));
        let mut file = AtomicFile::create(&dir.join(&name))?;
        put(&mut file, &header(shard, label))?;
        write_all(pool, shard, options.importance, &mut file, |_| 0, &mut tell)?;
        file.commit()?;
    }
    if count > 1 {
        let index = json!({"metadata": {"total_size": exported.bytes}, "weight_map": map});
        store::write_json(&dir.join("model.safetensors.index.json"), &index)?;
    }
    for (name, bytes) in beside(loaded)? {
        store::write_atomic(&dir.join(name), &bytes)?;
    }
    store::write_atomic(&dir.join("config.json"), text.as_bytes())?;
    let list = || store::StoreError::io("list the folder", dir);
    for entry in std::fs::read_dir(dir).map_err(list())? {
        let entry = entry.map_err(list())?;
        let size = entry.metadata().map_err(list())?.len();
        exported.files.push((entry.path(), size));
    }
    exported.files.sort();
    Ok(exported)
}

/// Length and text of what stands before the tensors of a safetensors file: types, shapes, places.
fn header(tensors: &[(FileTensor<'_>, BlockType)], label: &str) -> Vec<u8> {
    let mut fields = Map::new();
    fields.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut from = 0;
    for (tensor, kind) in tensors {
        let to = from + kind.bytes_of(tensor.len() as u64).unwrap_or_default();
        let field = json!({"dtype": label, "shape": tensor.shape, "data_offsets": [from, to]});
        fields.insert(tensor.name.clone(), field);
        from = to;
    }
    let mut text = serde_json::Value::Object(fields).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    [&(text.len() as u64).to_le_bytes()[..], &text].concat()
}

/// Whether `config.json` is read as the same model.
fn check(config: &Config, text: &str) -> Result<(), ExportError> {
    let unsaid = |what: String| ExportError::Unsaid {
        format: "config.json",
        family: config.family.model_type(),
        what,
    };
    let again = Config::from_json(text).map_err(|e| unsaid(e.to_string()))?;
    // A window that no layer has is none.
    let plain = |config: &Config| match config.local.contains(&true) {
        true => config.clone(),
        false => Config { window: None, local: Vec::new(), ..config.clone() },
    };
    plain(config).difference(&plain(&again)).map_or(Ok(()), |what| Err(unsaid(what)))
}

/// The tokenizer and what else lies beside the weights.
fn beside(loaded: &Loaded) -> Result<BTreeMap<&'static str, Vec<u8>>, ExportError> {
    let mut files = BTreeMap::new();
    if !is_gguf(&loaded.path) {
        for name in CARRIED {
            let path = loaded.path.join(name);
            if path.is_file() {
                files.insert(name, store::read(&path)?);
            }
        }
        // An adapter may have brought another template than the directory's.
        let wrong = |e| ModelError::Template(loaded.path.clone(), e);
        let own = ChatTemplate::load(&loaded.path, Vec::new()).map_err(wrong)?;
        let source = |t: &ChatTemplate| t.source().to_string();
        let (own, now) = (own.as_ref().map(source), loaded.template.as_ref().map(source));
        if let Some(now) = now.filter(|now| own.as_ref() != Some(now)) {
            files.insert(TEMPLATE, now.into_bytes());
        }
        return Ok(files);
    }
    let (config, tokenizer) = (loaded.transformer.config(), &loaded.tokenizer);
    let roles = tokenizer.roles();
    let text = |id: Option<u32>| {
        let bytes = tokenizer.token_bytes(id?)?;
        Some(String::from_utf8_lossy(bytes).into_owned())
    };
    let settings = TokenizerConfig {
        tokenizer_class: Some("PreTrainedTokenizerFast".into()),
        chat_template: loaded.template.as_ref().map(|t| t.source().to_string()),
        bos_token: text(roles.bos),
        eos_token: text(roles.eos),
        add_bos_token: loaded.bos.is_some(),
        model_max_length: Some(config.max_position_embeddings as u64),
    };
    let generation = json!({"bos_token_id": roles.bos, "eos_token_id": loaded.ends});
    let pretty = |value: serde_json::Value| format!("{value:#}\n").into_bytes();
    files.insert("tokenizer.json", tokenizer.to_json().into_bytes());
    files.insert("tokenizer_config.json", pretty(json!(settings)));
    files.insert("generation_config.json", pretty(generation));
    Ok(files)
}
