//! The model that a run goes on from, with `--base`.

use std::path::{Path, PathBuf};

use compute::Cpu;
use data::encode::END_OF_TEXT;
use model::adapter::{self, Shape};
use model::config::Config;
use model::directory::{self, TEMPLATE};
use model::export::{self, Options, Quant};
use model::template::{CHATML, ChatTemplate};
use model::tokenizer::Tokenizer;
use model::transformer::Transformer;
use model::{Loaded, ModelError};
use store::Hash;

use super::settle::fit_memory;
use crate::failure::Failure;
use crate::fetched::local;
use crate::recipe::Recipe;
use crate::stage::clear;

/// What ends a text, in the tokenizers of open models.
const ENDS: [&str; 4] = [END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>"];

/// A model from elsewhere, and how it is trained.
pub struct Base {
    /// A model directory or a GGUF file.
    pub path: PathBuf,
    /// Of that.
    pub hash: Hash,
    /// Its shape.
    pub config: Config,
    /// Elements that training changes: adapters, or all.
    pub trained: u64,
    /// The tokenizer as `tokenizer.json`.
    pub tokenizer: String,
    /// How conversations are written, if it knows.
    pub template: Option<String>,
    /// Before and after each document.
    pub ends: [u32; 2],
    /// Whether layers have to be computed twice for want of memory.
    pub recompute: bool,
}

impl Base {
    /// Looks at the recipe's base, if it has one.
    ///
    /// # Errors
    /// A model that can't be had or read, or not be trained as the recipe says.
    pub fn of(recipe: &Recipe, cpu: &Cpu) -> Result<Option<Base>, Failure> {
        if recipe.base.is_empty() {
            return Ok(None);
        }
        let path = directory::resolve(&local(Path::new(&recipe.base))?)?;
        if adapter::is_adapter(&path) {
            let why = format!("{}: it is an adapter, not a model", path.display());
            return Err(Failure::invalid(why).hint(
                "Make it part of its model first: homegrown export MODEL --adapter DIR --to safetensors --out DIR.",
            ));
        }
        let mut loaded = directory::load_keeping(&path, Some(cpu))?;
        set_template(recipe, &mut loaded)?;
        let config = loaded.transformer.config().clone();
        if recipe.model.context > config.max_position_embeddings {
            return Err(Failure::invalid(format!(
                "the setting model.context: {} tokens are more than the base's {}",
                recipe.model.context, config.max_position_embeddings
            )));
        }
        if recipe.lora.rank > 0 {
            begin(recipe, &mut loaded.transformer)?;
        }
        let list = || loaded.transformer.parameters.iter();
        let bytes = |p: &compute::parameters::Parameter| match (p.value.strips(), p.trainable) {
            (Some(strips), _) => strips.bytes() as u64,
            // Trained: gradients and two moments; packed both ways.
            (None, trained) => p.value.len() as u64 * if trained { 24 } else { 12 },
        };
        let parameters: u64 = list().map(|p| p.value.len() as u64).sum();
        let weights = if recipe.lora.rank > 0 { list().map(bytes).sum() } else { 24 * parameters };
        let trained = match recipe.lora.rank {
            0 => parameters,
            _ => list().filter(|p| p.trainable).map(|p| p.value.len() as u64).sum(),
        };
        let recompute = fit_memory(&config, recipe, parameters, weights)?;
        let tokenizer = &loaded.tokenizer;
        let named = ENDS.into_iter().find_map(|name| tokenizer.special_id(name));
        let roles = tokenizer.roles();
        let end = named.or(roles.eos).or(config.eos_token_id);
        let start = loaded.bos.or(end).or(config.bos_token_id);
        let (Some(start), Some(end)) = (start, end.or(start)) else {
            let why = format!("{}: its tokenizer has no token that ends a text", path.display());
            return Err(Failure::invalid(why));
        };
        Ok(Some(Base {
            hash: store::hash_path(&path)?,
            config,
            trained,
            tokenizer: tokenizer.to_json(),
            template: loaded.template.as_ref().map(|t| t.source().to_string()),
            ends: [start, end],
            recompute,
            path,
        }))
    }

    /// How conversations are written, with the ids of this tokenizer.
    ///
    /// # Errors
    /// A template that is none.
    pub fn chat_template(&self, tokenizer: &Tokenizer) -> Result<Option<ChatTemplate>, Failure> {
        let special = directory::special_tokens(tokenizer, &self.config);
        let template = self.template.as_ref().map(|source| ChatTemplate::new(source, special));
        Ok(template.transpose()?)
    }

    /// The model as it is, or what an earlier stage left in `made`, ready to be trained: adapters over weights as
    /// they are stored, or all of it in f32.
    ///
    /// # Errors
    /// What can't be read.
    pub fn start(
        &self,
        recipe: &Recipe,
        cpu: &Cpu,
        made: Option<&Path>,
    ) -> Result<Transformer, Failure> {
        let keep = (recipe.lora.rank > 0).then_some(cpu);
        let loaded = directory::load_keeping(made.unwrap_or(&self.path), keep)?;
        let mut model = loaded.transformer;
        if recipe.lora.rank > 0 {
            begin(recipe, &mut model)?;
        }
        Ok(model)
    }

    /// Writes what training made: an adapter in PEFT's files, or a model directory.
    ///
    /// # Errors
    /// What can't be read or written.
    pub fn save(
        &self,
        mut model: Transformer,
        recipe: &Recipe,
        cpu: &Cpu,
        dir: &Path,
    ) -> Result<(), Failure> {
        clear(dir)?;
        if recipe.lora.rank > 0 {
            let base = self.path.display().to_string();
            adapter::write(&mut model, &base, dir)?;
        } else {
            let mut loaded = directory::load_keeping(&self.path, Some(cpu))?;
            loaded.transformer = model;
            let options = Options { quant: Quant::F32, importance: None, metadata: Vec::new() };
            export::safetensors(&loaded, &cpu.pool, &options, dir, &mut |_, _| {})?;
        }
        if let (false, Some(template)) = (recipe.data.template.is_empty(), &self.template) {
            store::write_atomic(&dir.join(TEMPLATE), template.as_bytes())?;
        }
        Ok(())
    }
}

fn begin(recipe: &Recipe, model: &mut Transformer) -> Result<(), Failure> {
    let lora = &recipe.lora;
    let shape = Shape { rank: lora.rank, alpha: lora.alpha, modules: &lora.modules };
    Ok(adapter::begin(model, shape, recipe.seed)?)
}

/// Takes the recipe's chat template, if it has one.
fn set_template(recipe: &Recipe, loaded: &mut Loaded) -> Result<(), Failure> {
    let template = &recipe.data.template;
    let source = match &template[..] {
        "" => return Ok(()),
        "chatml" => CHATML.to_string(),
        path => store::read_text(Path::new(path))?,
    };
    let wrong = |e| ModelError::Template(PathBuf::from(template), e);
    Ok(loaded.set_template(&source).map_err(wrong)?)
}
