//! `homegrown grow`: from text to an assistant, stage by stage, in a run directory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use clap::{Args, Subcommand, ValueEnum};
use compute::Cpu;
use compute::tensor::DType;
use data::batches::{Loader, LossOn};
use data::encode::{END_OF_TEXT, END_OF_TURN};
use data::shards::Shards;
use eval::run as shown;
use model::config::Config;
use model::directory;
use model::init::initialise;
use model::template::{CHATML, ChatTemplate};
use model::tokenizer::Tokenizer;
use model::transformer::Transformer;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use train::Precision;

use crate::common::{Common, products};
use crate::evaluate;
use crate::failure::Failure;
use crate::prepare::{self, Source};
use crate::progress::{Progress, count, peak_rss_bytes};
use crate::recipe::{DOCS, Recipe};
use crate::samples::Samples;
use crate::stage::{Facts, Run, Stage, clear};
use crate::tokenize;
use crate::training::{self, Job};

/// Arguments of `grow`.
#[derive(Args, Debug)]
pub struct GrowArgs {
    /// A recipe: what it changes of the default.
    pub recipe: Option<PathBuf>,
    /// Text of your own: files and folders of documents, instead of the microworld.
    #[arg(long, value_name = "PATH")]
    pub docs: Vec<PathBuf>,
    /// A model to start from, instead of random weights.
    #[arg(long, value_name = "MODEL")]
    pub base: Option<String>,
    /// Conversations to fine-tune on, for text of your own (JSONL with `messages`).
    #[arg(long, value_name = "FILE")]
    pub chats: Vec<PathBuf>,
    /// The run directory [default: runs/NAME of the recipe].
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// A setting, as in a recipe: pretrain.tokens=1000000.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
    /// The last stage to do.
    #[arg(long, value_name = "STAGE")]
    pub until: Option<StageName>,
    /// Minutes of training: the machine's speed is measured, and the recipe's token counts are
    /// scaled to it and recorded.
    #[arg(long, value_name = "M")]
    pub minutes: Option<f64>,
}

/// `train pretrain`, `train sft`.
#[derive(Subcommand, Debug)]
pub enum TrainCommand {
    /// A base model: all stages up to pretraining.
    Pretrain(TrainArgs),
    /// An assistant: all stages up to fine-tuning.
    Sft(TrainArgs),
}

/// Arguments of `train`.
#[derive(Args, Debug)]
pub struct TrainArgs {
    /// A recipe: what it changes of the default.
    pub recipe: PathBuf,
    /// The run directory [default: runs/NAME of the recipe].
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// A setting, as in a recipe: pretrain.tokens=1000000.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
}

/// The stages, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum StageName {
    /// Text to documents and conversations.
    Prepare,
    /// Documents to tokens.
    Tokenize,
    /// Tokens to a base model.
    Pretrain,
    /// The base model to an assistant.
    Finetune,
    /// Scores.
    Evaluate,
    /// The report.
    Report,
}

/// `homegrown train`: `grow` up to a stage of training.
///
/// # Errors
/// See [`grow`].
pub fn train(command: &TrainCommand, common: &Common) -> Result<Value, Failure> {
    let (args, until) = match command {
        TrainCommand::Pretrain(args) => (args, StageName::Pretrain),
        TrainCommand::Sft(args) => (args, StageName::Finetune),
    };
    let args = GrowArgs {
        recipe: Some(args.recipe.clone()),
        docs: Vec::new(),
        base: None,
        chats: Vec::new(),
        out: args.out.clone(),
        sets: args.sets.clone(),
        until: Some(until),
        minutes: None,
    };
    grow(&args, common)
}

/// `homegrown grow`.
///
/// # Errors
/// Wrong settings or text; what can't be written; Ctrl-C.
pub fn grow(args: &GrowArgs, common: &Common) -> Result<Value, Failure> {
    let start = Instant::now();
    if args.base.is_some() {
        return Err(Failure::invalid("--base: growing from an existing model is not there yet")
            .hint("Leave --base out to start from random weights."));
    }
    let (name, recipe) = settle(args, common)?;
    check_memory(&recipe)?;
    let source = Source::of(&recipe)?;
    let root = args.out.clone().unwrap_or_else(|| Path::new("runs").join(&name));
    let run = Run::open(&root)?;
    let cpu = common.cpu();
    let path = run.path("choices.json");
    let choices = if path.exists() { store::read_json(&path)? } else { Choices::default() };
    let mut grow = Grow { products: Default::default(), recipe, run, cpu, source, choices };
    grow.choose()?;
    grow.begin(common)?;

    let until = args.until.unwrap_or(StageName::Report);
    let done = grow.stages(until)?;
    let value = grow.result(start.elapsed().as_secs_f64())?;
    grow.close(done, common, &value)?;
    Ok(value)
}

/// Whether a model can be trained in the memory that there is, before any of it is taken.
fn check_memory(recipe: &Recipe) -> Result<(), Failure> {
    let config = recipe.config(recipe.tokenizer.vocab_size, None, None);
    let [c, f] = [config.hidden_size, config.intermediate_size].map(|n| n as u64);
    let elements = |shape: &[usize]| shape.iter().map(|n| *n as u64).product::<u64>();
    let parameters: u64 = model::transformer::shapes(&config).iter().map(|s| elements(&s.1)).sum();
    // Weights, packed twice; gradients; two moments.
    let weights = 24 * parameters;
    // What a layer keeps of a row for the backward pass, and its gradients.
    let rows = recipe.pretrain.micro_tokens.max(recipe.finetune.micro_tokens) as u64;
    let heads = (config.query_width() + 2 * config.key_width()) as u64;
    let row = (config.num_hidden_layers as u64 + 1) * (6 * c + 3 * heads + 4 * f);
    let logits = 3 * 256 * config.vocab_size as u64;
    let need = weights + 4 * (rows * row + logits);
    match store::available_memory() {
        Some(available) if need > available => Err(Failure::invalid(format!(
            "a model of {} parameters needs about {}B of memory to train, and {}B are available",
            count(parameters),
            count(need),
            count(available)
        ))
        .hint(
            "Make it smaller (model.layers, model.dim, model.ffn), or lower pretrain.micro_tokens.",
        )),
        _ => Ok(()),
    }
}

/// The run's name and its settings: flags over `--set` over the recipe over the default.
fn settle(args: &GrowArgs, common: &Common) -> Result<(String, Recipe), Failure> {
    let stem = |p: &Path| p.file_stem().map(|s| s.to_string_lossy().into_owned());
    let read = |path: &PathBuf| -> Result<(String, String), Failure> {
        Ok((path.display().to_string(), store::read_text(path)?))
    };
    let file = match &args.recipe {
        Some(path) => Some(read(path)?),
        None if !args.docs.is_empty() => Some(("recipes/docs.toml".into(), DOCS.to_string())),
        None => None,
    };
    let name = args.recipe.as_deref().or(args.docs.first().map(PathBuf::as_path));
    let name = name.and_then(stem).unwrap_or_else(|| "default".to_string());
    let mut sets: Vec<(String, String)> =
        args.sets.iter().map(|s| ("--set".to_string(), s.clone())).collect();
    let mut set = |flag: &str, key: &str, value: String| {
        sets.push((flag.to_string(), format!("{key}={value}")));
    };
    let list = |paths: &[PathBuf]| {
        let paths = paths.iter().map(|p| toml::Value::String(p.display().to_string()));
        toml::Value::Array(paths.collect()).to_string()
    };
    if !args.docs.is_empty() {
        set("--docs", "data.docs", list(&args.docs));
    }
    if !args.chats.is_empty() {
        set("--chats", "data.chats", list(&args.chats));
    }
    if let Some(seed) = common.seed {
        set("--seed", "seed", seed.to_string());
    }
    if let Some(minutes) = args.minutes {
        set("--minutes", "minutes", minutes.to_string());
    }
    let recipe = Recipe::resolve(file.as_ref().map(|(n, t)| (n.as_str(), t.as_str())), &sets)?;
    if !recipe.data.chats.is_empty() && !recipe.own_text() {
        return Err(Failure::invalid(
            "--chats goes with --docs: the microworld has its own conversations",
        )
        .hint("Give the text of your own with --docs PATH."));
    }
    Ok((name, recipe))
}

/// What was measured once and stays as it was, so that the run is the same when it goes on:
/// `choices.json`.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Choices {
    schema_version: u32,
    /// The type of operands that `dtype = "auto"` came to.
    auto: Option<Precision>,
    budget: Option<Budget>,
}

/// Token counts that minutes came to.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Budget {
    minutes: f64,
    /// Tokens in the recipe, of pretraining and fine-tuning.
    recipe_tokens: [u64; 2],
    tokens_per_s: f64,
    /// Tokens they were scaled to.
    tokens: [u64; 2],
}

/// A run that grows.
struct Grow {
    recipe: Recipe,
    run: Run,
    cpu: Arc<Cpu>,
    source: Source,
    choices: Choices,
    /// By precision: measured once.
    products: BTreeMap<String, (DType, f64)>,
}

impl Grow {
    /// The type of the operands of products and the peak in it.
    fn products(&mut self, precision: Precision) -> (DType, f64) {
        let chosen = match (precision, self.choices.auto) {
            (Precision::Auto, Some(chosen)) => chosen,
            (precision, _) => precision,
        };
        let cpu = &self.cpu;
        let found = self.products.entry(format!("{chosen:?}"));
        *found.or_insert_with(|| products(cpu, chosen))
    }

    /// Whether there are, or will be, conversations.
    fn talks(&self) -> bool {
        !self.recipe.own_text() || !self.recipe.data.chats.is_empty()
    }

    fn config(&self, vocab_size: usize, tokenizer: Option<&Tokenizer>, chat: bool) -> Config {
        let id = |name: &str| tokenizer.and_then(|t| t.special_id(name));
        let eos = id(if chat { END_OF_TURN } else { END_OF_TEXT });
        self.recipe.config(vocab_size, id(END_OF_TEXT), eos)
    }

    /// Measures what the recipe leaves to the machine, once.
    fn choose(&mut self) -> Result<(), Failure> {
        if self.choices.auto.is_none() {
            self.choices.auto = Some(match self.products(Precision::Auto).0 {
                DType::Bf16 => Precision::Bf16,
                DType::F32 => Precision::F32,
            });
        }
        self.budget();
        self.choices.schema_version = 1;
        // Without a recipe this is no run directory yet.
        store::write_atomic(&self.run.path("recipe.toml"), self.recipe.to_toml().as_bytes())?;
        Ok(store::write_json(&self.run.path("choices.json"), &self.choices)?)
    }

    /// Turns minutes into token counts.
    fn budget(&mut self) {
        let minutes = std::mem::take(&mut self.recipe.minutes);
        if minutes == 0.0 {
            return;
        }
        let recipe_tokens = [self.recipe.pretrain.tokens, self.recipe.finetune.tokens];
        let known = self
            .choices
            .budget
            .clone()
            .filter(|b| b.minutes == minutes && b.recipe_tokens == recipe_tokens);
        let budget = match known {
            Some(budget) => budget,
            None => {
                let progress = Progress::start("speed", 0);
                let products = self.products(self.recipe.pretrain.dtype);
                let config = self.config(self.recipe.tokenizer.vocab_size, None, false);
                let (init, settings) = (&self.recipe.model.init, &self.recipe.pretrain);
                let speed = training::measure_speed(&self.cpu, &config, init, settings, products);
                let tokens = speed * minutes * 60.0;
                let all = if self.talks() { recipe_tokens.iter().sum() } else { recipe_tokens[0] };
                let scaled = |n: u64| (tokens * n as f64 / all as f64).round() as u64;
                let tokens = recipe_tokens.map(scaled);
                progress.finish(&format!(
                    "{speed:.0} tokens/s: {minutes} minutes are {} tokens of pretraining",
                    count(tokens[0])
                ));
                Budget { minutes, recipe_tokens, tokens_per_s: speed, tokens }
            }
        };
        [self.recipe.pretrain.tokens, self.recipe.finetune.tokens] = budget.tokens;
        self.choices.budget = Some(budget);
    }

    /// Writes what the run is and where: `run.json`, `machine.json`.
    fn begin(&mut self, common: &Common) -> Result<(), Failure> {
        let (dtype, peak) = self.products(self.recipe.pretrain.dtype);
        let config = self.config(self.recipe.tokenizer.vocab_size, None, false);
        let parameters: usize =
            model::transformer::shapes(&config).iter().map(|s| s.1.iter().product::<usize>()).sum();
        let quote =
            |a: String| match a.contains(|c: char| c.is_whitespace() || "'\"$`\\".contains(c)) {
                true => format!("'{}'", a.replace('\'', r"'\''")),
                false => a,
            };
        let mut command = std::env::args();
        let _ = command.next();
        let command: Vec<String> = command.map(quote).collect();
        let about = shown::Run {
            schema_version: shown::SCHEMA_VERSION,
            // The recipe beside the report has every setting of this run.
            command: "homegrown grow recipe.toml --out again".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            seed: Some(self.recipe.seed),
            products: format!("{dtype:?}").to_lowercase(),
            source: match self.recipe.own_text() {
                true => self.recipe.data.docs.join(", "),
                false => format!("the microworld of seed {}", self.recipe.seed),
            },
            stages: StageName::value_variants()
                .iter()
                .filter(|s| **s != StageName::Finetune || self.talks())
                .map(|s| format!("{s:?}").to_lowercase())
                .collect(),
            microworld: Some(!self.recipe.own_text()),
            model: Some(shown::Model {
                architecture: "qwen3".into(),
                parameters: parameters as u64,
                layers: config.num_hidden_layers as u64,
                width: config.hidden_size as u64,
                heads: config.num_attention_heads as u64,
                kv_heads: config.num_key_value_heads as u64,
                head_width: config.head_dim as u64,
                ffn: config.intermediate_size as u64,
                vocabulary: config.vocab_size as u64,
                context: config.max_position_embeddings as u64,
            }),
            recipe: self.recipe.to_toml(),
        };
        let machine = shown::Machine {
            schema_version: shown::SCHEMA_VERSION,
            command: format!("homegrown {}", command.join(" ")),
            cpu: cpu_name(),
            isa: self.cpu.isa.name().into(),
            threads: common.threads() as u64,
            peak_flops_per_s: peak,
        };
        store::write_json(&self.run.path("machine.json"), &machine)?;
        let need = self.disk_bytes(parameters as u64);
        let free = store::free_bytes(&self.run.root);
        let left = free.map_or(String::new(), |f| format!(", {}B are free", count(f)));
        eprintln!("{:>10} up to {}B of disk{left}", "", count(need));
        if free.is_some_and(|free| free < need) {
            eprintln!("   note: the disk may fill up; nothing that was saved would be lost");
        }
        eprintln!(
            "{:>10} {}: {} parameters, {} tokens, {} threads of {}",
            "grow",
            self.run.root.display(),
            count(parameters as u64),
            count(self.recipe.pretrain.tokens),
            common.threads(),
            self.cpu.isa.name()
        );
        Ok(store::write_json(&self.run.path("run.json"), &about)?)
    }

    /// The most that the run directory will take: texts and their tokens, models, checkpoints.
    fn disk_bytes(&self, parameters: u64) -> u64 {
        // The microworld's texts are about 250 bytes long; one's own are there already. Each is
        // written as JSON and as tokens.
        let corpus = &self.recipe.corpus;
        let text = match &self.source {
            Source::Own(files) => files.bytes(),
            Source::World => {
                250 * (corpus.documents + corpus.conversations + corpus.finetune + corpus.heldout)
            }
        };
        // Weights and two moments, and one more while it is written.
        let checkpoints =
            |t: &train::TrainConfig| (t.keep_checkpoints as u64 + 3) * 12 * parameters;
        let [first, second] = [&self.recipe.pretrain, &self.recipe.finetune].map(checkpoints);
        // Pretraining keeps two when fine-tuning begins.
        3 * text + 8 * parameters + first.max(24 * parameters + second)
    }

    /// Does all stages up to one; returns the last.
    fn stages(&mut self, until: StageName) -> Result<StageName, Failure> {
        let mut done = StageName::Prepare;
        for stage in StageName::value_variants().iter().filter(|s| **s <= until) {
            match stage {
                StageName::Prepare => self.prepare()?,
                StageName::Tokenize => self.tokenize()?,
                StageName::Pretrain => self.pretrain()?,
                StageName::Finetune if !self.talks() => continue,
                StageName::Finetune => self.finetune()?,
                StageName::Evaluate => self.evaluate()?,
                StageName::Report => self.report()?,
            }
            done = *stage;
        }
        Ok(done)
    }

    fn prepare(&mut self) -> Result<(), Failure> {
        let Grow { recipe, run, cpu, source, .. } = self;
        let settings = match source {
            Source::World => json!({
                "world": recipe.world,
                "corpus": recipe.corpus,
                "questions": recipe.eval.questions,
                "seed": recipe.seed,
            }),
            Source::Own(_) => json!({"data": recipe.data}),
        };
        let stage = Stage {
            name: "prepare",
            settings,
            reads: &[],
            inputs: source.inputs(recipe)?,
            writes: &[
                "data/documents.jsonl",
                "data/heldout.jsonl",
                "data/conversations.jsonl",
                "data/finetune.jsonl",
                "data/questions.jsonl",
                "data/corpus.json",
                "data/dropped.jsonl",
                "data/skipped.jsonl",
                "data/stats.json",
            ],
        };
        run.stage(stage, |run, _| prepare::prepare(run, recipe, source, &cpu.pool)).map(drop)
    }

    fn tokenize(&mut self) -> Result<(), Failure> {
        let Grow { recipe, run, cpu, .. } = self;
        let stage = Stage {
            name: "tokenize",
            settings: json!({
                "tokenizer": recipe.tokenizer,
                "context": recipe.model.context,
                "validation_bytes": recipe.eval.validation_bytes,
                "special": tokenize::special(),
                "chat_template": store::hash_bytes(CHATML.as_bytes()),
            }),
            reads: &[
                "data/documents.jsonl",
                "data/heldout.jsonl",
                "data/conversations.jsonl",
                "data/finetune.jsonl",
            ],
            inputs: BTreeMap::new(),
            writes: &["tokenizer", "shards"],
        };
        run.stage(stage, |run, _| tokenize::tokenize(run, recipe, &cpu.pool)).map(drop)
    }

    fn pretrain(&mut self) -> Result<(), Failure> {
        let products = self.products(self.recipe.pretrain.dtype);
        let (tokenizer, hash) = self.tokenizer()?;
        let config = self.config(tokenizer.vocab_size(), Some(&tokenizer), false);
        let talks = self.talks();
        let Grow { recipe, run, cpu, .. } = self;
        let stage = Stage {
            name: "pretrain",
            settings: json!({
                "model": recipe.model,
                "mixture": recipe.mixture.conversations,
                "pretrain": recipe.pretrain,
                "seed": recipe.seed,
                "products": format!("{:?}", products.0),
            }),
            reads: &["tokenizer", "shards"],
            inputs: BTreeMap::new(),
            writes: &[
                "base",
                "base/lineage.json",
                "pretrain/metrics.jsonl",
                "pretrain/checkpoints",
            ],
        };
        run.stage(stage, |run, key| {
            let seed = recipe.seed;
            let mut model =
                Transformer::new(config.clone(), initialise(&config, &recipe.model.init, seed));
            let open = |name: &str| {
                let path = run.path(&format!("shards/{name}"));
                Shards::open(&path, Some(hash)).map(Arc::new).map_err(Failure::from)
            };
            let share = if talks { recipe.mixture.conversations } else { 0.0 };
            let mut parts = vec![training::part(&open("documents")?, 1.0 - share, LossOn::All)];
            if share > 0.0 && run.path("shards/conversations").exists() {
                parts.push(training::part(&open("conversations")?, share, LossOn::All));
            }
            let loader = Loader::new(parts, recipe.model.context, seed)?;
            let rows = recipe.pretrain.micro_tokens;
            let validation =
                training::validation(&*open("validation")?, recipe.model.context, rows);
            let template = template(&tokenizer)?;
            let samples = Samples::new(run, &tokenizer, talks.then_some(&template))?;
            let config = &recipe.pretrain;
            let job =
                Job { name: "pretrain", config, products, loader, validation, samples: &samples };
            let facts = training::train(run, key, cpu, &mut model, job)?;
            save(run, "base", &model, &tokenizer, recipe, false)?;
            Ok(facts)
        })
        .map(drop)
    }

    fn finetune(&mut self) -> Result<(), Failure> {
        let products = self.products(self.recipe.finetune.dtype);
        let (tokenizer, hash) = self.tokenizer()?;
        let config = self.config(tokenizer.vocab_size(), Some(&tokenizer), true);
        let Grow { recipe, run, cpu, .. } = self;
        let stage = Stage {
            name: "finetune",
            settings: json!({
                "replay": recipe.mixture.replay,
                "finetune": recipe.finetune,
                "context": recipe.model.context,
                "seed": recipe.seed,
                "products": format!("{:?}", products.0),
            }),
            reads: &["tokenizer", "shards", "base"],
            inputs: BTreeMap::new(),
            writes: &[
                "model",
                "model/lineage.json",
                "finetune/metrics.jsonl",
                "finetune/checkpoints",
            ],
        };
        run.stage(stage, |run, key| {
            let base = directory::load(&run.path("base"))?;
            let mut model = Transformer::new(config.clone(), base.transformer.parameters);
            let open = |name: &str| {
                let path = run.path(&format!("shards/{name}"));
                Shards::open(&path, Some(hash)).map(Arc::new).map_err(Failure::from)
            };
            let replay = recipe.mixture.replay;
            // Text of one's own has the same conversations before and now.
            let talks = ["finetune", "conversations"];
            let talks = talks.into_iter().find(|t| run.path(&format!("shards/{t}")).exists());
            let parts = vec![
                training::part(&open(talks.unwrap_or("finetune"))?, 1.0 - replay, LossOn::Learned),
                training::part(&open("documents")?, replay, LossOn::All),
            ];
            // Not the order of pretraining again.
            let loader = Loader::new(parts, recipe.model.context, recipe.seed ^ 1)?;
            let rows = recipe.finetune.micro_tokens;
            let validation =
                training::validation(&*open("validation")?, recipe.model.context, rows);
            let samples = Samples::new(run, &tokenizer, Some(&template(&tokenizer)?))?;
            let config = &recipe.finetune;
            let job =
                Job { name: "finetune", config, products, loader, validation, samples: &samples };
            let facts = training::train(run, key, cpu, &mut model, job)?;
            save(run, "model", &model, &tokenizer, recipe, true)?;
            Ok(facts)
        })
        .map(drop)
    }

    fn evaluate(&mut self) -> Result<(), Failure> {
        let products = self.products(self.recipe.pretrain.dtype);
        let Grow { recipe, run, cpu, .. } = self;
        let stage = Stage {
            name: "evaluate",
            settings: json!({"eval": recipe.eval, "seed": recipe.seed, "products": format!("{:?}", products.0)}),
            reads: &[
                "base",
                "model",
                "data/documents.jsonl",
                "data/conversations.jsonl",
                "data/heldout.jsonl",
                "data/questions.jsonl",
            ],
            inputs: BTreeMap::new(),
            writes: &["eval"],
        };
        run.stage(stage, |run, key| evaluate::evaluate(run, key, recipe, cpu, products.0)).map(drop)
    }

    fn report(&mut self) -> Result<(), Failure> {
        let mut inputs = BTreeMap::new();
        for file in [
            "run.json",
            "data/corpus.json",
            "shards/tokens.json",
            "pretrain/metrics.jsonl",
            "finetune/metrics.jsonl",
        ] {
            let path = self.run.path(file);
            if path.exists() {
                inputs.insert(file.to_string(), store::hash_file(&path)?);
            }
        }
        let stage = Stage {
            name: "report",
            settings: json!({}),
            reads: &["base", "model", "eval"],
            inputs,
            writes: &["report.html", "report.md"],
        };
        let work = |run: &Run, _| {
            eval::report::write(&run.root)?;
            Ok(Facts::new())
        };
        self.run.stage(stage, work)?;
        Ok(eval::report::write_costs(&self.run.root)?)
    }

    /// The run's tokenizer and its hash.
    fn tokenizer(&self) -> Result<(Arc<Tokenizer>, store::Hash), Failure> {
        let json = store::read_text(&self.run.path("tokenizer/tokenizer.json"))?;
        Ok((Arc::new(Tokenizer::from_json(&json)?), store::hash_bytes(json.as_bytes())))
    }

    /// What `--json` prints.
    fn result(&self, seconds: f64) -> Result<Value, Failure> {
        let run = &self.run;
        let stages: serde_json::Map<String, Value> =
            run.records().map(|r| (r.stage.clone(), r.seconds.into())).collect();
        let model = ["model", "base"].into_iter().map(|m| run.path(m)).find(|p| p.exists());
        let mut value = json!({
            "seconds": seconds,
            "peak_rss_bytes": peak_rss_bytes(),
            "run": run.root,
            "model": model,
            "stages": stages,
        });
        if run.record("evaluate").is_some() {
            let scores = evaluate::scores(run)?;
            value["bits_per_byte"] = scores["bits_per_byte"].clone();
            value["scores"] = scores["scores"].clone();
        }
        Ok(value)
    }

    /// Says how it ended: the scores, and what to do with the model. Checks the floors.
    fn close(&self, done: StageName, common: &Common, value: &Value) -> Result<(), Failure> {
        if done >= StageName::Evaluate && !common.json {
            evaluate::table(&self.run)?;
        }
        let root = self.run.root.display();
        if !common.json && done >= StageName::Pretrain {
            match self.run.record("finetune") {
                Some(_) => crate::common::say(&format!("Talk to it: homegrown chat {root}")),
                None => crate::common::say(&format!(
                    "This is a base model: it continues text, it does not chat.\n\
                     Let it write: homegrown generate {root} --prompt TEXT"
                )),
            }
            if done == StageName::Report {
                crate::common::say(&format!("How it came to be: {root}/report.html"));
            }
        }
        evaluate::floors(&self.recipe.floors, value)
    }
}

/// The chat template of models that are grown here.
fn template(tokenizer: &Tokenizer) -> Result<ChatTemplate, Failure> {
    Ok(ChatTemplate::new(CHATML, data::encode::special_tokens(tokenizer))?)
}

/// Writes a model directory anew.
fn save(
    run: &Run,
    name: &str,
    model: &Transformer,
    tokenizer: &Tokenizer,
    recipe: &Recipe,
    chat: bool,
) -> Result<(), Failure> {
    let path = run.path(name);
    clear(&path)?;
    directory::save(&path, model, &tokenizer.to_json(), &tokenize::settings(recipe, chat))?;
    Ok(())
}

/// The processor, as it names itself.
fn cpu_name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|l| l.strip_prefix("model name")?.split_once(':'));
    name.map(|(_, name)| name.trim().to_string()).unwrap_or_default()
}
