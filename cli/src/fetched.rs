//! MODEL arguments: a path, or the name of a model that is fetched first.

use std::path::{Path, PathBuf};

use clap::Args;
use compute::Cpu;
use model::adapter::Adapter;
use model::config::Config;
use model::transformer::Transformer;
use model::{Loaded, directory};

use crate::failure::Failure;

/// A model to compute with.
#[derive(Args, Clone, Debug)]
pub struct ModelArgs {
    /// A run or model directory, a GGUF file, or hf:ORG/NAME[:FILE].
    pub model: PathBuf,
    /// Compute products with weights of fewer bits in f32: exact, slower.
    #[arg(long)]
    pub exact: bool,
    /// A folder of an adapter (LoRA, in PEFT's files) that is put to the model; several add up.
    #[arg(long = "adapter", value_name = "DIR")]
    pub adapters: Vec<PathBuf>,
}

impl ModelArgs {
    /// The model, its weights of fewer than 32 bits as they are, laid out by the threads of `cpu`.
    ///
    /// # Errors
    /// A model that can't be had, or read.
    pub fn load(&self, cpu: &Cpu) -> Result<Loaded, Failure> {
        let mut loaded = directory::load_keeping(&local(&self.model)?, Some(cpu))?;
        fits(cpu, loaded.transformer.config())?;
        adapt(&mut loaded.transformer, &self.adapters)?;
        Ok(loaded)
    }
}

/// Whether a model can be computed where `cpu` says.
///
/// # Errors
/// One that a card has no kernels for.
pub fn fits(cpu: &Cpu, config: &Config) -> Result<(), Failure> {
    let head = config.head_dim;
    let lacks = match &config.mixture {
        _ if cpu.card.is_none() => return Ok(()),
        Some(_) => "mixtures of experts".to_string(),
        None if !head.is_multiple_of(8) || head > 256 => format!("heads of {head} elements"),
        None => return Ok(()),
    };
    Err(Failure::invalid(format!("--device cuda: {lacks} are computed on the CPU only"))
        .hint("Say --device cpu."))
}

/// Puts adapters to a model.
///
/// # Errors
/// One that can't be read, or is for another model.
pub fn adapt(model: &mut Transformer, adapters: &[PathBuf]) -> Result<(), Failure> {
    for dir in adapters {
        Adapter::read(dir, model.config())?.apply(model);
    }
    Ok(())
}

/// Where a model lies: `path` itself or, of `hf:org/name[:file]`, what was fetched of that.
///
/// # Errors
/// A model that can't be had.
#[cfg(feature = "hub")]
pub fn local(path: &Path) -> Result<PathBuf, Failure> {
    use crate::progress::{Progress, count};
    use hub::{Hub, Name};

    let Some(name) = path.to_str().map(Name::parse).transpose()?.flatten() else {
        return Ok(path.to_path_buf());
    };
    let mut bar: Option<(String, Progress)> = None;
    let fetched = Hub::from_environment()?.fetch(
        &name,
        &mut |p| {
            if bar.as_ref().is_none_or(|(file, _)| file != p.file) {
                if let Some((_, bar)) = bar.take() {
                    bar.finish("fetched");
                }
                let mut new = Progress::start(p.file, p.total);
                new.resume_at(p.done);
                bar = Some((p.file.to_string(), new));
            }
            if let Some((_, bar)) = &mut bar {
                bar.set(p.done, &format!("{}B of {}B", count(p.done), count(p.total)));
            }
        },
        &mut |text| eprintln!("   note: {text}"),
    );
    if let Some((_, bar)) = bar {
        bar.finish(if fetched.is_ok() { "fetched" } else { "stopped" });
    }
    Ok(fetched?)
}

/// As it is: this program was built without downloads.
///
/// # Errors
/// A name that would have to be fetched.
#[cfg(not(feature = "hub"))]
pub fn local(path: &Path) -> Result<PathBuf, Failure> {
    if path.to_str().is_some_and(|text| text.starts_with("hf:")) {
        return Err(Failure::invalid(format!(
            "{}: this program was built without the feature hub, which fetches models",
            path.display()
        ))
        .hint("Build it with the feature, or name a file that is here."));
    }
    Ok(path.to_path_buf())
}
