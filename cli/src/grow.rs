//! `homegrown grow`: from text to an assistant, stage by stage, in a run directory.

pub mod base;
mod begin;
mod choices;
mod learn;
mod settle;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use clap::{Args, Subcommand, ValueEnum};
use compute::Cpu;
use compute::tensor::DType;
use data::encode::{END_OF_TEXT, END_OF_TURN};
use model::config::Config;
use model::template::CHATML;
use model::tokenizer::Tokenizer;
use serde_json::{Value, json};

use crate::common::Common;
use crate::evaluate;
use crate::failure::Failure;
use crate::prepare::{self, Source};
use crate::progress::peak_rss_bytes;
use crate::recipe::Recipe;
use crate::stage::{Facts, Run, Stage};
use crate::tokenize;
use base::Base;
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
    /// A model to go on from, instead of random weights: a path or a name. It learns --docs, --chats, or both.
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
    #[arg(required_unless_present = "base")]
    pub recipe: Option<PathBuf>,
    /// A model to go on from: a path or a name.
    #[arg(long, value_name = "MODEL")]
    pub base: Option<String>,
    /// Text of your own: files and folders of documents.
    #[arg(long, value_name = "PATH")]
    pub docs: Vec<PathBuf>,
    /// Conversations to fine-tune on (JSONL with `messages`).
    #[arg(long, value_name = "FILE")]
    pub chats: Vec<PathBuf>,
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
        recipe: args.recipe.clone(),
        docs: args.docs.clone(),
        base: args.base.clone(),
        chats: args.chats.clone(),
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
    let (name, recipe) = settle(args, common)?;
    let cpu = common.cpu()?;
    let base = Base::of(&recipe, &cpu)?;
    let recompute = match &base {
        Some(base) => base.recompute,
        None => check_memory(&recipe)?,
    };
    let source = Source::of(&recipe)?;
    let root = args.out.clone().unwrap_or_else(|| Path::new("runs").join(&name));
    let run = Run::open(&root)?;
    let path = run.path("choices.json");
    let choices = if path.exists() { Choices::read(&path)? } else { Choices::default() };
    let products = Default::default();
    let mut grow = Grow { products, recipe, base, recompute, run, cpu, source, choices };
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
    /// The model that it goes on from.
    base: Option<Base>,
    /// Whether layers are computed once more on the way back.
    recompute: bool,
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

    /// Whether there are, or will be, documents.
    fn reads(&self) -> bool {
        self.base.is_none() || !self.recipe.data.docs.is_empty()
    }

    /// What stages depend on beside their settings and what was made in this run.
    fn inputs(&self) -> BTreeMap<String, store::Hash> {
        let base = self.base.iter();
        base.map(|b| (format!("{}{}", prepare::BASE, self.recipe.base), b.hash)).collect()
    }

    fn config(&self, vocab_size: usize, tokenizer: Option<&Tokenizer>, chat: bool) -> Config {
        if let Some(base) = &self.base {
            return base.config.clone();
        }
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
                StageName::Pretrain if !self.reads() => continue,
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
        let Grow { recipe, run, cpu, source, base, .. } = self;
        let settings = match source {
            Source::World => json!({
                "world": recipe.world,
                "corpus": recipe.corpus,
                "questions": recipe.eval.questions,
                "seed": recipe.seed,
            }),
            Source::Own(_) if base.is_some() => {
                json!({"data": recipe.data, "seed": recipe.seed, "base": true})
            }
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
                "data/heldout-conversations.jsonl",
                "data/corpus.json",
                "data/dropped.jsonl",
                "data/skipped.jsonl",
                "data/stats.json",
            ],
        };
        run.stage(stage, |run, _| prepare::prepare(run, recipe, source, &cpu.pool)).map(drop)
    }

    fn tokenize(&mut self) -> Result<(), Failure> {
        let inputs = self.inputs();
        let Grow { recipe, run, cpu, base, .. } = self;
        let chatml = || CHATML.to_string();
        let template = base.as_ref().map_or_else(|| Some(chatml()), |base| base.template.clone());
        let stage = Stage {
            name: "tokenize",
            settings: json!({
                "tokenizer": recipe.tokenizer,
                "sets": recipe.document_sets().into_iter().map(|s| s.0).collect::<Vec<_>>(),
                "context": recipe.model.context,
                "validation_bytes": recipe.eval.validation_bytes,
                "special": tokenize::special(),
                "chat_template": store::hash_bytes(template.unwrap_or_default().as_bytes()),
            }),
            reads: &[
                "data/documents.jsonl",
                "data/heldout.jsonl",
                "data/conversations.jsonl",
                "data/finetune.jsonl",
                "data/heldout-conversations.jsonl",
            ],
            inputs,
            writes: &["tokenizer", "shards"],
        };
        run.stage(stage, |run, _| tokenize::tokenize(run, recipe, base.as_ref(), &cpu.pool))
            .map(drop)
    }

    fn evaluate(&mut self) -> Result<(), Failure> {
        let products = self.products(self.recipe.pretrain.dtype);
        let inputs = self.inputs();
        let Grow { recipe, run, cpu, base, .. } = self;
        let base = base.as_ref();
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
                "data/heldout-conversations.jsonl",
            ],
            inputs,
            writes: &["eval"],
        };
        let work = |run: &Run, key| evaluate::evaluate(run, key, recipe, base, cpu, products.0);
        run.stage(stage, work).map(drop)
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
            if !scores["answers"].is_null() {
                value["answers"] = scores["answers"].clone();
            }
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
                None if self.base.as_ref().is_some_and(|b| b.template.is_some()) => {
                    crate::common::say(&format!("Talk to it: homegrown chat {root}"));
                }
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
