//! What a recipe leaves to the machine: the type of operands (`auto`) and token counts from minutes.

use std::path::Path;

use compute::tensor::DType;
use model::init::initialise;
use model::transformer::Transformer;
use serde::{Deserialize, Serialize};
use store::StoreError;
use train::Precision;

use super::Grow;
use crate::common::products;
use crate::failure::Failure;
use crate::progress::{Progress, count};
use crate::training;

/// What was measured once and stays as it was, so that the run is the same when it goes on:
/// `choices.json`.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Choices {
    schema_version: u32,
    /// The type of operands that `dtype = "auto"` came to.
    auto: Option<Precision>,
    budget: Option<Budget>,
}

impl Choices {
    /// Reads what was chosen.
    ///
    /// # Errors
    /// A file that can't be read, or is damaged.
    pub fn read(path: &Path) -> Result<Choices, Failure> {
        store::read_sealed(path).map_err(|e| match e {
            e @ StoreError::Damaged { .. } => Failure::from(e).hint(
                "Remove it: the machine is measured anew, and what depends on it made again.",
            ),
            e => e.into(),
        })
    }
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

impl Grow {
    /// The type of the operands of products and the peak in it.
    pub(super) fn products(&mut self, precision: Precision) -> (DType, f64) {
        let chosen = match (precision, self.choices.auto) {
            (Precision::Auto, Some(chosen)) => chosen,
            (precision, _) => precision,
        };
        let cpu = &self.cpu;
        let found = self.products.entry(format!("{chosen:?}"));
        *found.or_insert_with(|| products(cpu, chosen))
    }

    /// Measures what the recipe leaves to the machine, once.
    pub(super) fn choose(&mut self) -> Result<(), Failure> {
        if self.choices.auto.is_none() {
            self.choices.auto = Some(match self.products(Precision::Auto).0 {
                DType::Bf16 => Precision::Bf16,
                DType::F32 => Precision::F32,
            });
        }
        self.budget()?;
        self.choices.schema_version = 1;
        // Without a recipe this is no run directory yet.
        store::write_atomic(&self.run.path("recipe.toml"), self.recipe.to_toml().as_bytes())?;
        Ok(store::write_sealed(&self.run.path("choices.json"), &self.choices)?)
    }

    /// Turns minutes into token counts.
    fn budget(&mut self) -> Result<(), Failure> {
        let minutes = std::mem::take(&mut self.recipe.minutes);
        if minutes == 0.0 {
            return Ok(());
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
                let (recipe, settings) = (&self.recipe, &self.recipe.pretrain);
                let mut model = match &self.base {
                    Some(base) => base.start(recipe, &self.cpu, None)?,
                    None => {
                        let parameters = initialise(&config, &recipe.model.init, 0);
                        Transformer::new(config, parameters)
                    }
                };
                let speed = training::measure_speed(&self.cpu, &mut model, settings, products);
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
        // Minutes say how long, not passes.
        self.recipe.mixture.passes = 0.0;
        [self.recipe.pretrain.tokens, self.recipe.finetune.tokens] = budget.tokens;
        self.choices.budget = Some(budget);
        Ok(())
    }
}
