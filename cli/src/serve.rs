//! `homegrown serve`: a model behind OpenAI's API.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use compute::kv::KvType;
use model::generator::Options;
use serde_json::{Value, json};
use serve::{App, Keys, Limits, Served, Settings};
use tools::assistant::Assistant;

use crate::common::Common;
use crate::failure::Failure;
use crate::fetched::ModelArgs;
use crate::generate::failure;
use crate::interrupt;
use crate::progress::count;

/// Arguments of `serve`.
#[derive(Args, Debug)]
pub struct ServeArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Address to listen on. Where others can reach it, give --keys.
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDRESS:PORT")]
    listen: SocketAddr,
    /// The model's name in the API [default: the last part of its path].
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Another model of the API: this one with the adapter in a folder.
    #[arg(long, value_name = "NAME=DIR", value_parser = also)]
    also: Vec<(String, PathBuf)>,
    /// Answers that are computed at a time.
    #[arg(long, default_value_t = 16, value_name = "N")]
    sequences: usize,
    /// Answers that may wait for their turn; who asks then is told to come again (503).
    #[arg(long, default_value_t = 64, value_name = "N")]
    queue: usize,
    /// Longest conversation, tokens; not more than the model's own.
    #[arg(long, default_value_t = 8192, value_name = "N")]
    context: usize,
    /// Tokens of all conversations together for which memory is taken [default: full contexts, up to 32,768 in all].
    #[arg(long, value_name = "N")]
    tokens: Option<usize>,
    /// What keys and values are stored as: f32, f16, bf16, q8 [default: f16, or f32 if weights are].
    #[arg(long, value_name = "TYPE")]
    kv: Option<KvType>,
    /// A file of API keys: who has none is refused.
    #[arg(long, value_name = "FILE")]
    keys: Option<PathBuf>,
    /// Makes a key for somebody, adds its hash to --keys, prints it once, and ends.
    #[arg(long, value_name = "NAME", requires = "keys")]
    new_key: Option<String>,
    /// Another name that this machine is reached by, such as the proxy's before it.
    #[arg(long = "host", value_name = "NAME")]
    hosts: Vec<String>,
}

/// `NAME=DIR`.
fn also(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, dir)) if !name.is_empty() && !dir.is_empty() => Ok((name.into(), dir.into())),
        _ => Err("a name, =, and the folder of an adapter".into()),
    }
}

/// Serves a model.
///
/// # Errors
/// What can't be read, or listened on.
pub fn serve(args: &ServeArgs, common: &Common) -> Result<Value, Failure> {
    if let (Some(name), Some(path)) = (&args.new_key, &args.keys) {
        let key = Keys::add(path, name).map_err(Failure::invalid)?;
        if !common.json {
            crate::common::say(&key);
        }
        return Ok(json!({"name": name, "key": key}));
    }
    let keys = args.keys.as_deref().map(Keys::read).transpose().map_err(Failure::invalid)?;
    let (open, public) = (keys.is_none(), !args.listen.ip().is_loopback());
    let cpu = common.cpu();
    let mut loaded = args.model.load(&cpu)?;
    loaded.transformer.limit_context(args.context);
    let kv = args.kv.unwrap_or_else(|| loaded.transformer.kv_type());
    let places = args.sequences.max(1) + args.queue;
    let mut options = Options::new(loaded.transformer.config(), args.sequences.max(1));
    options = Options { exact: args.model.exact, kv, queue: places, ..options };
    options.tokens = args.tokens.unwrap_or(options.tokens);
    let hash = store::hash_path(&loaded.path)?.to_string();
    let name = args.name.clone().unwrap_or_else(|| {
        let stem = args.model.model.file_stem().map(|s| s.to_string_lossy().into_owned());
        stem.unwrap_or_else(|| "model".into())
    });
    let (tokens, sequences) = (options.tokens, options.sequences);
    let mut templates = Vec::new();
    for (_, dir) in &args.also {
        let (transformer, template) = loaded.adapted(dir).map_err(Failure::invalid)?;
        options.adapters.push(Arc::new(transformer));
        templates.push(template);
    }
    let assistant = Assistant::start(loaded, cpu, options).map_err(failure)?;
    let mut others = Vec::new();
    for (i, ((name, dir), template)) in args.also.iter().zip(templates).enumerate() {
        let with = store::hash_bytes(format!("{hash} {}", store::hash_path(dir)?).as_bytes());
        others.push(Served {
            name: name.clone(),
            fingerprint: with.to_string()[..16].to_string(),
            assistant: assistant.with_adapter(i + 1, template),
        });
    }
    let model = Served { name: name.clone(), fingerprint: hash[..16].to_string(), assistant };
    let limits = Limits { places, ..Limits::default() };
    let settings = Settings { keys, hosts: args.hosts.clone(), limits };
    let app = App::new(model, others, settings);
    let _graceful = interrupt::graceful();
    let listening = |at: SocketAddr| {
        eprintln!(
            "{name}: {sequences} answers at a time, {} tokens of context in all",
            count(tokens as u64)
        );
        if open && public {
            eprintln!(
                "   note: everybody who can reach this machine can ask; --keys FILE and --new-key NAME change that"
            );
        }
        eprintln!("http://{at}/v1 is OpenAI's API; Ctrl-C ends it when all answers are given");
    };
    let served = serve::serve(app, args.listen, listening, interrupt::requested);
    served.map_err(|e| Failure::failed(format!("{}: {e}", args.listen)))?;
    Ok(json!({"stopped": true}))
}
