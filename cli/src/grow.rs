//! `homegrown grow`: from text to an assistant, stage by stage, in a run directory.

mod begin;
mod choices;
mod settle;

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
use model::config::Config;
use model::directory;
use model::init::initialise;
use model::template::{CHATML, ChatTemplate};
use model::tokenizer::Tokenizer;
use model::transformer::Transformer;
use serde_json::{Value, json};

use crate::common::Common;
use crate::evaluate;
use crate::failure::Failure;
use crate::prepare::{self, Source};
use crate::progress::peak_rss_bytes;
use crate::recipe::Recipe;
use crate::samples::Samples;
use crate::stage::{Facts, Run, Stage, clear};
use crate::tokenize;
use crate::training::{self, Job};
use choices::Choices;
use settle::{check_memory, settle};

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
    let choices = if path.exists() { Choices::read(&path)? } else { Choices::default() };
    let mut grow = Grow { products: Default::default(), recipe, run, cpu, source, choices };
    grow.choose()?;
    grow.begin(common)?;

    let until = args.until.unwrap_or(StageName::Report);
    let done = grow.stages(until)?;
    let value = grow.result(start.elapsed().as_secs_f64())?;
    grow.close(done, common, &value)?;
    Ok(value)
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
    /// Whether there are, or will be, conversations.
    fn talks(&self) -> bool {
        !self.recipe.own_text() || !self.recipe.data.chats.is_empty()
    }

    fn config(&self, vocab_size: usize, tokenizer: Option<&Tokenizer>, chat: bool) -> Config {
        let id = |name: &str| tokenizer.and_then(|t| t.special_id(name));
        let eos = id(if chat { END_OF_TURN } else { END_OF_TEXT });
        self.recipe.config(vocab_size, id(END_OF_TEXT), eos)
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
                "sets": recipe.document_sets().into_iter().map(|s| s.0).collect::<Vec<_>>(),
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
                "documents": recipe.document_sets(),
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
            let mut parts = Vec::new();
            for (set, weight) in recipe.document_sets() {
                parts.push(training::part(&open(&set)?, weight * (1.0 - share), LossOn::All));
            }
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
                "documents": recipe.document_sets(),
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
            let talks = open(talks.unwrap_or("finetune"))?;
            let mut parts = vec![training::part(&talks, 1.0 - replay, LossOn::Learned)];
            for (set, weight) in recipe.document_sets() {
                parts.push(training::part(&open(&set)?, weight * replay, LossOn::All));
            }
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
                     Let it write: homegrown generate {root} --raw --prompt TEXT"
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
