//! The stages pretrain and finetune: a model that starts somewhere, what it learns from, and what became of it.

use std::path::PathBuf;
use std::sync::Arc;

use compute::tensor::DType;
use data::batches::{Loader, LossOn};
use data::shards::Shards;
use model::config::Config;
use model::directory;
use model::init::initialise;
use model::template::{CHATML, ChatTemplate};
use model::tokenizer::Tokenizer;
use model::transformer::Transformer;
use serde_json::{Value, json};
use train::{TrainConfig, Validation};

use super::Grow;
use crate::failure::Failure;
use crate::recipe::Recipe;
use crate::samples::Samples;
use crate::stage::{Run, Stage, clear};
use crate::tokenize;
use crate::training::{self, Job};

/// A stage of training.
struct Lesson<'a> {
    name: &'a str,
    settings: &'a TrainConfig,
    products: (DType, f64),
    /// All that its result depends on beside `settings`.
    others: Value,
    /// Sets of texts with their weights.
    parts: Vec<(String, f64, LossOn)>,
    /// Seed of their order.
    seed: u64,
    /// The folder of the model that it makes.
    makes: &'a str,
}

impl Grow {
    pub(super) fn pretrain(&mut self) -> Result<(), Failure> {
        let recipe = &self.recipe.clone();
        let mixed = self.talks() && self.run.path("shards/conversations").exists();
        let share = if mixed { recipe.mixture.conversations } else { 0.0 };
        let mut parts: Vec<_> = (recipe.document_sets().into_iter())
            .map(|(set, weight)| (set, weight * (1.0 - share), LossOn::All))
            .collect();
        if share > 0.0 {
            parts.push(("conversations".to_string(), share, LossOn::All));
        }
        let products = self.products(recipe.pretrain.dtype);
        self.learn(Lesson {
            name: "pretrain",
            settings: &recipe.pretrain,
            products,
            others: json!({
                "model": recipe.model,
                "mixture": recipe.mixture.conversations,
                "documents": recipe.document_sets(),
            }),
            parts,
            seed: recipe.seed,
            makes: "base",
        })
    }

    pub(super) fn finetune(&mut self) -> Result<(), Failure> {
        let recipe = &self.recipe.clone();
        let replay = if self.reads() { recipe.mixture.replay } else { 0.0 };
        // Text of one's own has the same conversations before and now.
        let own = !self.run.path("shards/finetune").exists();
        let talks = if own { "conversations" } else { "finetune" };
        let mut parts = vec![(talks.to_string(), 1.0 - replay, LossOn::Learned)];
        if replay > 0.0 {
            let sets = recipe.document_sets().into_iter();
            parts.extend(sets.map(|(set, weight)| (set, weight * replay, LossOn::All)));
        }
        let products = self.products(recipe.finetune.dtype);
        self.learn(Lesson {
            name: "finetune",
            settings: &recipe.finetune,
            products,
            others: json!({
                "replay": recipe.mixture.replay,
                "documents": recipe.document_sets(),
                "context": recipe.model.context,
            }),
            parts,
            // Not the order of pretraining again.
            seed: recipe.seed ^ 1,
            makes: "model",
        })
    }

    fn learn(&mut self, lesson: Lesson<'_>) -> Result<(), Failure> {
        let Lesson { name, settings, products, mut others, parts, seed, makes } = lesson;
        let (tokenizer, hash) = self.tokenizer()?;
        let (inputs, chats) = (self.inputs(), makes == "model" || self.talks());
        let config = self.config(tokenizer.vocab_size(), Some(&tokenizer), makes == "model");
        let read = self.reads() && makes == "model";
        let Grow { recipe, run, cpu, base, recompute, .. } = self;
        others[name] = json!(settings);
        others["seed"] = recipe.seed.into();
        others["products"] = format!("{:?}", products.0).into();
        if base.is_some() {
            others["lora"] = json!(recipe.lora);
        }
        let passes = recipe.mixture.passes;
        if passes > 0.0 {
            others["passes"] = passes.into();
        }
        let metrics = format!("{name}/metrics.jsonl");
        let lineage = format!("{makes}/lineage.json");
        let checkpoints = format!("{name}/checkpoints");
        let stage = Stage {
            name,
            settings: others,
            reads: if read { &["tokenizer", "shards", "base"] } else { &["tokenizer", "shards"] },
            inputs,
            writes: &[makes, &lineage, &metrics, &checkpoints],
        };
        run.stage(stage, |run, key| {
            let made = read.then(|| run.path("base"));
            let mut model = match base {
                Some(base) => base.start(recipe, cpu, made.as_deref())?,
                None => new(config, recipe, made)?,
            };
            let context = recipe.model.context;
            let open = |name: &str| {
                let path = run.path(&format!("shards/{name}"));
                Shards::open(&path, Some(hash)).map(Arc::new).map_err(Failure::from)
            };
            let mut settings = settings.clone();
            let (mut mixture, mut rows) = (Vec::new(), Vec::new());
            for (set, weight, loss) in &parts {
                let shards = open(set)?;
                let totals = shards.totals();
                rows.push((totals.tokens - totals.documents) as f64 / weight);
                mixture.push(training::part(&shards, *weight, *loss));
            }
            if passes > 0.0 {
                // Of the set that the stage is about, which is the first.
                settings.tokens = (passes * rows[0]).ceil() as u64;
            }
            let loader = Loader::new(mixture, context, seed)?;
            // What is learned is what is measured: answers, where some are held out; else texts.
            let answers = makes == "model" && base.is_some();
            let answers = answers && run.path("shards/heldout-conversations").exists();
            let held = match answers {
                true => Some(("heldout-conversations", LossOn::Learned)),
                false => {
                    run.path("shards/validation").exists().then_some(("validation", LossOn::All))
                }
            };
            let validation = match held {
                Some((set, loss)) => {
                    training::validation(&*open(set)?, context, settings.micro_tokens, loss)
                }
                None => Validation::default(),
            };
            let template = match base {
                Some(base) => base.chat_template(&tokenizer)?,
                None => Some(template(&tokenizer)?).filter(|_| chats),
            };
            let samples = Samples::new(run, &tokenizer, template.as_ref())?;
            let job = Job {
                name,
                config: &settings,
                products,
                recompute: *recompute,
                dropout: (recipe.lora.dropout, recipe.seed),
                exact: recipe.lora.exact,
                loader,
                validation,
                samples: &samples,
            };
            let facts = training::train(run, key, cpu, &mut model, job)?;
            match base {
                Some(base) => base.save(model, recipe, cpu, &run.path(makes))?,
                None => save(run, makes, &model, &tokenizer, recipe)?,
            }
            Ok(facts)
        })
        .map(drop)
    }
}

/// A model from random weights, or with those that `made` has.
fn new(config: Config, recipe: &Recipe, made: Option<PathBuf>) -> Result<Transformer, Failure> {
    let parameters = match made {
        Some(made) => directory::load(&made)?.transformer.parameters,
        None => initialise(&config, &recipe.model.init, recipe.seed),
    };
    Ok(Transformer::new(config, parameters))
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
) -> Result<(), Failure> {
    let path = run.path(name);
    clear(&path)?;
    let settings = tokenize::settings(recipe, name == "model");
    directory::save(&path, model, &tokenizer.to_json(), &settings)?;
    Ok(())
}
