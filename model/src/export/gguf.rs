//! A GGUF file that llama.cpp reads.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use compute::Pool;
use compute::blocks::BlockType;
use store::AtomicFile;

use super::mix::kinds;
use super::tensors::{FileTensor, tensors};
use super::{ExportError, Exported, Options, Progress, Quant, put, room, write_all};
use crate::config::Config;
use crate::directory::{Loaded, is_gguf};
use crate::gguf::{Head, Item, padding};
use crate::tokenizer::Roles;
use crate::weights::places::Layout;
use crate::weights::{GgufFiles, Tensors, WeightsError};

/// General metadata that tells how a file is, not what the model is.
const OF_THE_FILE: [&str; 4] = [
    "general.architecture",
    "general.alignment",
    "general.file_type",
    "general.quantization_version",
];

/// Writes a model as a GGUF file.
///
/// # Errors
/// What GGUF can't say of it, what a type can't hold, what the system says.
pub fn gguf(
    loaded: &Loaded,
    pool: &Pool,
    options: &Options<'_>,
    path: &Path,
    progress: Progress<'_>,
) -> Result<Exported, ExportError> {
    if path.exists() {
        return Err(ExportError::Exists(path.to_path_buf()));
    }
    let (config, note) = loaded.transformer.config().for_gguf();
    let list = tensors(&config, Layout::Gguf, &loaded.transformer.parameters);
    let (types, notes) = kinds(&config, options.quant, &list);
    let (extra, factors) = config.rope_tensors();

    let mut head = Head::default();
    config.write_gguf(&mut head);
    describe(loaded, options, &mut head)?;
    check(loaded, &config, &head, &list, extra, &factors)?;
    for name in extra {
        head.tensor(*name, vec![factors.len()], BlockType::F32);
    }
    let mut exported = Exported { notes, ..Exported::default() };
    exported.notes.extend(note);
    let mut all = Vec::new();
    for (tensor, kind) in list.into_iter().zip(types) {
        exported.count(&tensor, kind);
        head.tensor(&tensor.name, tensor.shape.clone(), kind);
        all.push((tensor, kind));
    }
    let head = head.bytes();
    room(path, head.len() as u64 + exported.bytes)?;
    let mut file = AtomicFile::create(path)?;
    put(&mut file, &head)?;
    for _ in extra {
        let bytes: Vec<u8> = factors.iter().flat_map(|x| x.to_le_bytes()).collect();
        put(&mut file, &bytes)?;
        put(&mut file, &vec![0; padding(bytes.len() as u64) as usize])?;
    }
    let (mut done, total) = (0, exported.parameters);
    let mut tell = |elements| {
        done += elements;
        progress(done, total);
    };
    write_all(pool, &all, options.importance, &mut file, padding, &mut tell)?;
    file.commit()?;
    let size = std::fs::metadata(path).map_err(store::StoreError::io("read", path))?.len();
    exported.files.push((path.to_path_buf(), size));
    Ok(exported)
}

/// llama.cpp's number of a mixture of types.
fn file_type(quant: Quant) -> u32 {
    match quant {
        Quant::F32 => 0,
        Quant::F16 => 1,
        Quant::Q4_0 => 2,
        Quant::Q8_0 => 7,
        Quant::Q4_K_M => 15,
        Quant::Q6_K => 18,
        Quant::BF16 => 32,
    }
}

/// Everything but the configuration: names, tokenizer, template.
fn describe(loaded: &Loaded, options: &Options<'_>, head: &mut Head) -> Result<(), ExportError> {
    head.set("general.type", Item::Text("model".into()));
    let source = is_gguf(&loaded.path).then(|| GgufFiles::open(&loaded.path)).transpose()?;
    if let Some(files) = &source {
        for (key, value) in &files.contents().metadata {
            let general = key.starts_with("general.") && !OF_THE_FILE.contains(&key.as_str());
            if general || key.starts_with("tokenizer.") {
                head.set(key.as_str(), Item::of(value, files.bytes()));
            }
        }
    } else {
        head.set("general.name", Item::Text(name(&loaded.path)));
        let rows = loaded.transformer.config().vocab_size;
        loaded.tokenizer.to_gguf(rows, &roles(loaded), head)?;
    }
    // An adapter may have brought another than the file's.
    if let Some(template) = &loaded.template {
        head.set("tokenizer.chat_template", Item::Text(template.source().into()));
    }
    head.set("general.file_type", Item::U32(file_type(options.quant)));
    head.set("general.quantization_version", Item::U32(2));
    for (key, item) in &options.metadata {
        head.set(key.as_str(), item.clone());
    }
    Ok(())
}

/// What a model is called: its folder, or that of its run.
fn name(path: &Path) -> String {
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let mut names = path.ancestors().filter_map(Path::file_name).map(|n| n.to_string_lossy());
    let name = names.find(|name| name != "model" && name != "base");
    name.map_or_else(|| "model".into(), |name| name.into_owned())
}

/// The tokens that begin and end texts, as the directory of a model tells.
fn roles(loaded: &Loaded) -> Roles {
    let (config, tokenizer) = (loaded.transformer.config(), &loaded.tokenizer);
    let known = |id: &u32| (*id as usize) < tokenizer.vocab_size();
    let eos = config.eos_token_id.filter(|id| loaded.ends.contains(id));
    let eos = eos.or(loaded.ends.first().copied()).or(config.eos_token_id).filter(known);
    Roles {
        bos: loaded.bos.or(config.bos_token_id).filter(known),
        eos,
        eot: loaded.ends.iter().copied().filter(known).find(|id| Some(*id) != eos),
        unknown: tokenizer.roles().unknown,
        add_bos: loaded.bos.is_some(),
        add_eos: tokenizer.roles().add_eos,
    }
}

/// Whether the metadata are read as the same model.
fn check(
    loaded: &Loaded,
    config: &Config,
    head: &Head,
    list: &[FileTensor<'_>],
    extra: &[&str],
    factors: &[f32],
) -> Result<(), ExportError> {
    let unsaid = |what: String| ExportError::Unsaid {
        format: "GGUF",
        family: loaded.transformer.config().family.model_type(),
        what,
    };
    let mut shapes: BTreeMap<&str, Vec<usize>> =
        list.iter().map(|t| (t.name.as_str(), t.shape.clone())).collect();
    shapes.extend(extra.iter().map(|name| (*name, vec![factors.len()])));
    let again = Config::from_metadata(&head.contents(), &Shapes { shapes, factors })
        .map_err(|e| unsaid(e.to_string()))?;
    let again = Config { bos_token_id: None, eos_token_id: None, ..again };
    config.difference(&again).map_or(Ok(()), |what| Err(unsaid(what)))
}

/// The tensors of a file that isn't there yet, as far as the configuration looks at them.
struct Shapes<'a> {
    shapes: BTreeMap<&'a str, Vec<usize>>,
    factors: &'a [f32],
}

impl Tensors for Shapes<'_> {
    const LAYOUT: Layout = Layout::Gguf;

    fn names(&self) -> Vec<&str> {
        self.shapes.keys().copied().collect()
    }

    fn shape(&self, name: &str) -> Option<&[usize]> {
        self.shapes.get(name).map(|shape| &shape[..])
    }

    fn rows(&self, _: &str, _: Range<usize>, _: usize) -> Result<Vec<f32>, WeightsError> {
        Ok(self.factors.to_vec())
    }

    fn blocks(&self, _: &str) -> Option<(BlockType, &[u8])> {
        None
    }
}
