//! `homegrown serve`: a model behind OpenAI's API.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use compute::Cpu;
use compute::kv::KvType;
use model::adapter::is_adapter;
use model::generator::Options;
use serde_json::{Value, json};
use serve::Web;
use serve::{App, Keys, Limits, PerMinute, Served, Settings, Tls};
use store::conversations::Conversations;
use tools::assistant::Assistant;

use crate::common::Common;
use crate::failure::Failure;
use crate::fetched::ModelArgs;
use crate::generate::failure;
use crate::interrupt;
use crate::progress::count;

/// What is served.
#[derive(Args, Clone, Debug)]
pub struct ServedArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// The model's name in the API [default: the last part of its path].
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Another model of the API, by the name that requests give it: any model, or the folder of an adapter, which is
    /// put to this one and shares its weights.
    #[arg(long, value_name = "NAME=MODEL", value_parser = also)]
    pub also: Vec<(String, PathBuf)>,
    /// Longest conversation, tokens; not more than the model's own.
    #[arg(long, default_value_t = 8192, value_name = "N")]
    context: usize,
    /// What keys and values are stored as: f32, f16, bf16, q16, q8 [default: q16; f16 with --exact; f32 if weights are].
    #[arg(long, value_name = "TYPE")]
    pub kv: Option<KvType>,
}

/// Arguments of `serve`.
#[derive(Args, Debug)]
pub struct ServeArgs {
    #[command(flatten)]
    served: ServedArgs,
    /// Address to listen on. Where others can reach it, give --keys.
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDRESS:PORT")]
    listen: SocketAddr,
    /// Answers that are computed at a time, of each model that has weights of its own.
    #[arg(long, default_value_t = 16, value_name = "N")]
    sequences: usize,
    /// Answers that may wait for their turn; who asks then is told to come again (503).
    #[arg(long, default_value_t = 64, value_name = "N")]
    queue: usize,
    /// Tokens of all conversations with a model together for which memory is taken [default: full contexts, up to
    /// 32,768 in all].
    #[arg(long, value_name = "N")]
    tokens: Option<usize>,
    /// A file of API keys: who has none is refused.
    #[arg(long, value_name = "FILE")]
    keys: Option<PathBuf>,
    /// Makes a key for somebody, adds its hash to --keys, prints it once, and ends.
    #[arg(long, value_name = "NAME", requires = "keys")]
    new_key: Option<String>,
    /// Requests of a key in a minute, or of everybody together where there are no keys; who asks for more is told to
    /// come again (429). `requests-per-minute=N` behind a name in --keys is for that key instead.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    requests_per_minute: Option<u32>,
    /// Tokens of prompts and answers in a minute, likewise (`tokens-per-minute=N`).
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    tokens_per_minute: Option<u32>,
    /// The server's certificate and those it leads to (PEM): TLS alone is spoken then.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The certificate's key (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Another name that this machine is reached by, such as the proxy's before it.
    #[arg(long = "host", value_name = "NAME")]
    hosts: Vec<String>,
    #[command(flatten)]
    page: PageArgs,
}

/// Arguments of the page.
#[derive(Args, Debug)]
struct PageArgs {
    /// Serve the API alone: no page, and nothing is kept.
    #[arg(long, conflicts_with_all = ["store", "runs"])]
    no_web: bool,
    /// The database that the page's conversations are kept in [default: homegrown/chat.db where this person's data is].
    #[arg(long, value_name = "FILE")]
    store: Option<PathBuf>,
    /// The folder whose runs the page shows.
    #[arg(long, value_name = "DIR", default_value = "runs")]
    runs: PathBuf,
}

impl PageArgs {
    /// Opens what the page needs. Where nobody says which file, and the usual one can't be had, there is no page, and it
    /// is told why.
    fn open(&self) -> Result<Option<(Web, PathBuf)>, Failure> {
        if self.no_web {
            return Ok(None);
        }
        let Some(path) = self.store.clone().or_else(usual_store) else {
            eprintln!(
                "   note: no page: there is no HOME for its conversations; --store FILE names a place"
            );
            return Ok(None);
        };
        match Conversations::open(&path) {
            Ok(store) => Ok(Some((Web::new(store, self.runs.clone()), path))),
            Err(error) if self.store.is_none() => {
                eprintln!("   note: no page: {error}; --store FILE names another place");
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Where the system wants a person's data.
fn usual_store() -> Option<PathBuf> {
    let named = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let data = named("XDG_DATA_HOME").filter(|path| path.is_absolute());
    let data = data.or_else(|| Some(named("HOME")?.join(".local/share")))?;
    Some(data.join("homegrown/chat.db"))
}

/// `NAME=MODEL`.
fn also(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, dir)) if !name.is_empty() && !dir.is_empty() => Ok((name.into(), dir.into())),
        _ => Err("a name, =, and a model or the folder of an adapter".into()),
    }
}

impl ServedArgs {
    /// The models, loaded, and the tokens that there is memory for. `change` sets the engines' options.
    ///
    /// # Errors
    /// What can't be read.
    pub fn start(
        &self,
        settings: Settings,
        common: &Common,
        change: impl Fn(&mut Options),
    ) -> Result<(Arc<App>, usize), Failure> {
        let cpu = common.cpu()?;
        let (adapters, models): (Vec<_>, Vec<_>) =
            self.also.iter().partition(|(_, path)| is_adapter(path));
        let name = self.name.clone().unwrap_or_else(|| {
            let stem = self.model.model.file_stem().map(|s| s.to_string_lossy().into_owned());
            stem.unwrap_or_else(|| "model".into())
        });
        let (mut served, mut tokens) =
            self.engine(name, &self.model, &adapters, cpu.clone(), &change)?;
        for (name, path) in models {
            let model =
                ModelArgs { model: path.clone(), adapters: Vec::new(), ..self.model.clone() };
            let (more, room) = self.engine(name.clone(), &model, &[], cpu.clone(), &change)?;
            served.extend(more);
            tokens += room;
        }
        let mut names: Vec<&str> = served.iter().map(|m| m.name.as_str()).collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Failure::invalid(format!("two models are named {:?}", twice[0]))
                .hint("--name and --also name them."));
        }
        let model = served.remove(0);
        Ok((App::new(model, served, settings), tokens))
    }

    /// A model with an engine of its own, and the same with each of these adapters; with the engine's tokens.
    fn engine(
        &self,
        name: String,
        model: &ModelArgs,
        adapters: &[&(String, PathBuf)],
        cpu: Arc<Cpu>,
        change: &impl Fn(&mut Options),
    ) -> Result<(Vec<Served>, usize), Failure> {
        let mut loaded = model.load(&cpu)?;
        loaded.transformer.limit_context(self.context);
        let kv = self.kv.unwrap_or_else(|| loaded.transformer.kv_type(model.exact));
        let mut options = Options::new(loaded.transformer.config(), 1);
        options = Options { exact: model.exact, kv, ..options };
        let mut templates = Vec::new();
        for (_, dir) in adapters {
            let (transformer, template) = loaded.adapted(dir).map_err(Failure::invalid)?;
            options.adapters.push(Arc::new(transformer));
            templates.push(template);
        }
        change(&mut options);
        let tokens = options.tokens;
        let mut hashes = vec![store::hash_path(&loaded.path)?.to_string()];
        for dir in &model.adapters {
            hashes.push(store::hash_path(dir)?.to_string());
        }
        // Of the model alone, or of it and what is put to it.
        let hash = |hashes: &[String]| match hashes {
            [one] => one.clone(),
            several => store::hash_bytes(several.join(" ").as_bytes()).to_string(),
        };
        let engine = json!({"kv": kv.name(), "exact": model.exact});
        let assistant = Assistant::start(loaded, cpu, options).map_err(failure)?;
        let mut adapted = Vec::new();
        for (i, ((name, dir), template)) in adapters.iter().zip(templates).enumerate() {
            let with = [&hashes[..], &[store::hash_path(dir)?.to_string()]].concat();
            let assistant = assistant.with_adapter(i + 1, template);
            let (name, engine) = (name.clone(), engine.clone());
            adapted.push(Served { name, hash: hash(&with), assistant, engine });
        }
        let mut served = vec![Served { name, hash: hash(&hashes), assistant, engine }];
        served.extend(adapted);
        Ok((served, tokens))
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
    let rates = PerMinute { requests: args.requests_per_minute, tokens: args.tokens_per_minute };
    let keys = args.keys.as_deref().map(|path| Keys::read(path, rates));
    let keys = keys.transpose().map_err(Failure::invalid)?;
    let pair = args.tls_cert.as_deref().zip(args.tls_key.as_deref());
    let tls = pair.map(|(certificate, key)| Tls::read(certificate, key));
    let tls = tls.transpose().map_err(Failure::invalid)?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    let (open, public) = (keys.is_none(), !args.listen.ip().is_loopback());
    let page = args.page.open()?;
    let (web, kept) = page.unzip();
    let sequences = args.sequences.max(1);
    let places = sequences + args.queue;
    let limits = Limits { places, ..Limits::default() };
    let settings = Settings { keys, rates, hosts: args.hosts.clone(), limits, web };
    let (app, tokens) = args.served.start(settings, common, |options| {
        let full = options.tokens.saturating_mul(sequences);
        options.tokens = args.tokens.unwrap_or(full.min(options.tokens.max(32_768)));
        (options.sequences, options.queue) = (sequences, places);
    })?;
    let _graceful = interrupt::graceful();
    let listening = |at: SocketAddr| {
        eprintln!(
            "{}: {sequences} answers at a time, {} tokens of context in all",
            app.names().join(", "),
            count(tokens as u64)
        );
        if open && public {
            eprintln!(
                "   note: everybody who can reach this machine can ask; --keys FILE and --new-key NAME change that"
            );
        }
        if let Some(kept) = &kept {
            eprintln!(
                "{scheme}://{at}/ is for people; their conversations are kept in {}",
                kept.display()
            );
        }
        eprintln!("{scheme}://{at}/v1 is OpenAI's API; Ctrl-C ends it when all answers are given");
    };
    let served = serve::serve(app.clone(), args.listen, tls, listening, interrupt::requested);
    served.map_err(|e| Failure::failed(format!("{}: {e}", args.listen)))?;
    Ok(json!({"stopped": true}))
}
