//! How a run begins: it tells what it is, where, and what it will take.

use clap::ValueEnum;
use eval::run as shown;

use super::{Grow, StageName};
use crate::common::Common;
use crate::failure::Failure;
use crate::prepare::Source;
use crate::progress::count;

impl Grow {
    /// Writes what the run is and where: `run.json`, `machine.json`.
    pub(super) fn begin(&mut self, common: &Common) -> Result<(), Failure> {
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
                true => [&self.recipe.data.docs[..], &self.recipe.data.chats].concat().join(", "),
                false => format!("the microworld of seed {}", self.recipe.seed),
            },
            stages: StageName::value_variants()
                .iter()
                .filter(|s| **s != StageName::Finetune || self.talks())
                .filter(|s| **s != StageName::Pretrain || self.reads())
                .map(|s| format!("{s:?}").to_lowercase())
                .collect(),
            microworld: Some(!self.recipe.own_text()),
            model: Some(shown::Model {
                architecture: config.family.model_type().into(),
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
        let trained = self.base.as_ref().map_or(parameters as u64, |base| base.trained);
        let need = self.disk_bytes(trained);
        let free = store::free_bytes(&self.run.root);
        let left = free.map_or(String::new(), |f| format!(", {}B are free", count(f)));
        eprintln!("{:>10} up to {}B of disk{left}", "", count(need));
        if free.is_some_and(|free| free < need) {
            eprintln!("   note: the disk may fill up; nothing that was saved would be lost");
        }
        eprintln!(
            "{:>10} {}: {} parameters, {}, {} threads of {}",
            "grow",
            self.run.root.display(),
            match trained == parameters as u64 {
                true => count(trained),
                false => format!("{} beside {}", count(trained), count(parameters as u64)),
            },
            match self.recipe.mixture.passes {
                0.0 => format!("{} tokens", count(self.recipe.pretrain.tokens)),
                passes => format!("{passes} times through the text"),
            },
            common.threads(),
            self.cpu.isa.name()
        );
        Ok(store::write_json(&self.run.path("run.json"), &about)?)
    }

    /// The most that the run directory will take: texts and their tokens, models, checkpoints of so many trained
    /// parameters.
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
}

/// The processor, as it names itself.
fn cpu_name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |key: &str| {
        let (_, value) = info.lines().find_map(|line| line.strip_prefix(key)?.split_once(':'))?;
        Some(value.trim())
    };
    match (field("model name"), field("CPU implementer"), field("CPU part")) {
        (Some(name), ..) => name.into(),
        // AArch64 has numbers instead of a name.
        (_, Some(maker), Some(part)) => format!("implementer {maker}, part {part}"),
        _ => std::env::consts::ARCH.into(),
    }
}
