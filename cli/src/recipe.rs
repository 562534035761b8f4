//! Recipes: `recipes/default.toml` with a recipe's changes, then those of `--set` and flags.
//!
//! The default has every setting there is, so what it doesn't have is a mistake: it is named, with
//! its line and the nearest setting that exists.

use std::collections::BTreeMap;
use std::ops::Range;

use data::microworld::WorldConfig;
use model::config::{Config, Sizes};
use model::init::Init;
use serde::{Deserialize, Serialize};
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};
use train::TrainConfig;

use crate::failure::Failure;

/// The recipe of `homegrown grow`.
pub const DEFAULT: &str = include_str!("../../recipes/default.toml");
/// What is different for one's own text.
pub const DOCS: &str = include_str!("../../recipes/docs.toml");
/// What is different for a model that is gone on from.
pub const TUNE: &str = include_str!("../../recipes/tune.toml");

/// The version of the form of recipes.
const SCHEMA_VERSION: u32 = 1;

/// What `config.json` calls the settings of a model.
const CONFIG_NAMES: [(&str, &str); 8] = [
    ("num_hidden_layers", "model.layers"),
    ("hidden_size", "model.dim"),
    ("num_attention_heads", "model.heads"),
    ("num_key_value_heads", "model.kv_heads"),
    ("intermediate_size", "model.ffn"),
    ("max_position_embeddings", "model.context"),
    ("rope_theta", "model.rope_base"),
    ("vocab_size", "tokenizer.vocab_size"),
];

/// All settings of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The version of this form.
    pub schema_version: u32,
    /// Seed of everything random.
    pub seed: u64,
    /// A model to go on from: a path or a name; empty: random weights.
    pub base: String,
    /// Whether layers are computed once more on the way back, instead of kept.
    pub recompute: bool,
    /// Minutes of training that the token counts shall be scaled to; 0: they are as written.
    pub minutes: f64,
    /// Text of one's own.
    pub data: DataSettings,
    /// The microworld, where there is no text of one's own.
    pub world: WorldConfig,
    /// How much is written of it.
    pub corpus: CorpusSettings,
    /// The tokenizer.
    pub tokenizer: TokenizerSettings,
    /// The model's shape.
    pub model: ModelSettings,
    /// Adapters.
    pub lora: LoraSettings,
    /// What is mixed with what.
    pub mixture: Mixture,
    /// Pretraining.
    pub pretrain: TrainConfig,
    /// Fine-tuning.
    pub finetune: TrainConfig,
    /// Evaluation.
    pub eval: EvalSettings,
    /// Scores that a run must reach, or it fails; for bits per byte, the most it may need. 0: none.
    pub floors: BTreeMap<String, f64>,
}

/// Text of one's own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSettings {
    /// Files and folders of documents.
    pub docs: Vec<String>,
    /// How they are cleaned: "plain", "web", or a file of settings.
    pub clean: String,
    /// JSONL files of conversations.
    pub chats: Vec<String>,
    /// A file of a chat template, or "chatml", in place of the base's.
    pub template: String,
    /// Share of the text that is held out.
    pub heldout: f64,
}

/// How many texts of the microworld are written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CorpusSettings {
    /// Documents to learn from.
    pub documents: u64,
    /// Conversations that are mixed into pretraining.
    pub conversations: u64,
    /// Conversations for fine-tuning.
    pub finetune: u64,
    /// Held-out documents.
    pub heldout: u64,
}

/// The tokenizer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenizerSettings {
    /// Tokens, bytes and special tokens included.
    pub vocab_size: usize,
}

/// The model's shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSettings {
    /// Layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub dim: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width inside the MLP.
    pub ffn: usize,
    /// Longest context, tokens.
    pub context: usize,
    /// Base of the rotary angles.
    pub rope_base: f64,
    /// Whether the head is the embedding.
    pub tied: bool,
    /// How weights start.
    pub init: Init,
}

/// Adapters (LoRA).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraSettings {
    /// Rank of their products; 0: all weights are trained.
    pub rank: usize,
    /// Their factor, times the rank.
    pub alpha: f32,
    /// Share of their inputs that is dropped.
    pub dropout: f32,
    /// Whether products with quantised weights are in f32; else activations are rounded as in use.
    pub exact: bool,
    /// Matrices that have one.
    pub modules: Vec<String>,
}

/// What is mixed with what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mixture {
    /// Weights of `data.docs` in their order, by tokens drawn; empty: each by its size.
    pub documents: Vec<f64>,
    /// Share of the tokens of pretraining that are conversations.
    pub conversations: f64,
    /// Share of the tokens of fine-tuning that are pretraining text.
    pub replay: f64,
    /// Times through texts and conversations, in place of the stages' tokens; 0: as those say.
    pub passes: f64,
}

/// Evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalSettings {
    /// Most questions of a task.
    pub questions: usize,
    /// Bytes of held-out text that are measured during training.
    pub validation_bytes: u64,
    /// Whether to compress the held-out text with xz and zstd.
    pub compressors: bool,
}

impl Recipe {
    /// The default, changed by recipes (paths and texts), then by `sets`: flag and `KEY=VALUE`.
    ///
    /// # Errors
    /// A key that isn't there, a value that can't be, with where it was set.
    pub fn resolve(recipes: &[(&str, &str)], sets: &[(String, String)]) -> Result<Recipe, Failure> {
        let broken = |e: String| Failure::failed(format!("recipes/default.toml: {e}"));
        let plain: Recipe = toml::from_str(DEFAULT).map_err(|e| broken(e.to_string()))?;
        let default = Table::try_from(&plain).map_err(|e| broken(e.to_string()))?;
        let mut table = default.clone();
        let mut origins = Origins::default();
        for (name, text) in recipes {
            merge(&mut table, Source { name, text }.read(&default, &mut origins)?);
        }
        for (flag, set) in sets {
            merge(&mut table, Source { name: flag, text: set }.read_set(&default, &mut origins)?);
        }
        let recipe = Recipe::deserialize(Value::Table(table)).map_err(|e| {
            // "what\nin `key`"
            let text = e.to_string();
            let (why, key) = text.trim_end().rsplit_once("\nin `").unwrap_or((&text, ""));
            origins.wrong(key.trim_end_matches('`'), why.trim_end())
        })?;
        recipe.check(&plain, &origins)?;
        Ok(recipe)
    }

    /// The text of a recipe file with all settings.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).unwrap_or_default()
    }

    /// `config.json` of the model, for a tokenizer of `vocab_size` tokens.
    pub fn config(&self, vocab_size: usize, bos: Option<u32>, eos: Option<u32>) -> Config {
        let m = &self.model;
        Config {
            rope_theta: m.rope_base,
            tie_word_embeddings: m.tied,
            bos_token_id: bos,
            eos_token_id: eos,
            ..Config::qwen3(Sizes {
                vocab: vocab_size,
                width: m.dim,
                ffn: m.ffn,
                layers: m.layers,
                heads: m.heads,
                kv_heads: m.kv_heads,
                head_dim: m.head_dim,
                context: m.context,
            })
        }
    }

    /// The sets of documents that are drawn from by weight: shards' name and weight.
    pub fn document_sets(&self) -> Vec<(String, f64)> {
        let weights = &self.mixture.documents;
        if weights.is_empty() {
            return vec![("documents".into(), 1.0)];
        }
        let all: f64 = weights.iter().sum();
        weights.iter().enumerate().map(|(i, w)| (format!("documents-{i}"), w / all)).collect()
    }

    /// Whether the text is one's own.
    pub fn own_text(&self) -> bool {
        !self.data.docs.is_empty() || !self.base.is_empty()
    }

    /// Checks what has to do with the model that is gone on from.
    fn check_base(&self, plain: &Recipe, origins: &Origins) -> Result<(), Failure> {
        let wrong = |key: &str, why: &str| Err(origins.wrong(key, why));
        let l = &self.lora;
        if self.base.is_empty() {
            if l.rank > 0 {
                return wrong("lora.rank", "adapters need a base, with --base MODEL");
            }
            if !self.data.template.is_empty() {
                return wrong("data.template", "it is for a base, with --base MODEL");
            }
            return Ok(());
        }
        if self.data.docs.is_empty() && self.data.chats.is_empty() {
            return wrong("base", "there is nothing that it is to learn: give --docs or --chats");
        }
        let ours = ModelSettings { context: plain.model.context, ..self.model.clone() };
        if ours != plain.model || self.tokenizer != plain.tokenizer {
            let key = if ours == plain.model { "tokenizer" } else { "model" };
            return wrong(
                key,
                "with a base, only model.context can be set: the shape is the base's",
            );
        }
        if l.rank > 1 << 12 {
            return wrong("lora.rank", &format!("{} is not from 0 to 4096", l.rank));
        }
        if !(l.alpha.is_finite() && l.alpha > 0.0) {
            return wrong("lora.alpha", &format!("{} is not a positive number", l.alpha));
        }
        if !(0.0..1.0).contains(&l.dropout) {
            return wrong("lora.dropout", &format!("{} is not a share from 0 to 1", l.dropout));
        }
        if l.rank > 0 && l.modules.is_empty() {
            return wrong("lora.modules", "there is none");
        }
        Ok(())
    }

    /// Checks what types don't.
    fn check(&self, plain: &Recipe, origins: &Origins) -> Result<(), Failure> {
        let wrong = |key: &str, why: String| Err(origins.wrong(key, &why));
        if self.schema_version != SCHEMA_VERSION {
            let why = format!(
                "{} is not {SCHEMA_VERSION}, the version this program reads",
                self.schema_version
            );
            return wrong("schema_version", why);
        }
        if !(self.minutes.is_finite() && (0.0..=1e6).contains(&self.minutes)) {
            return wrong("minutes", format!("{} is not a number of minutes", self.minutes));
        }
        for (key, share) in [
            ("data.heldout", self.data.heldout),
            ("mixture.conversations", self.mixture.conversations),
            ("mixture.replay", self.mixture.replay),
        ] {
            if !(0.0..1.0).contains(&share) {
                return wrong(key, format!("{share} is not a share from 0 to 1"));
            }
        }
        self.check_base(plain, origins)?;
        let passes = self.mixture.passes;
        if !(passes.is_finite() && (0.0..=1e6).contains(&passes)) {
            return wrong("mixture.passes", format!("{passes} is not a number of passes"));
        }
        let (weights, docs) = (&self.mixture.documents, self.data.docs.len());
        if !weights.is_empty() && weights.len() != docs {
            let why = format!("{} weights for {docs} paths in data.docs", weights.len());
            return wrong("mixture.documents", why);
        }
        if let Some(weight) = weights.iter().find(|w| !(w.is_finite() && **w > 0.0)) {
            return wrong("mixture.documents", format!("{weight} is not a positive weight"));
        }
        let c = &self.corpus;
        let texts = [("documents", c.documents), ("finetune", c.finetune), ("heldout", c.heldout)];
        for (key, n) in texts {
            if n == 0 && !self.own_text() {
                return wrong(&format!("corpus.{key}"), "there must be at least one".into());
            }
        }
        let m = &self.model;
        let least = 256 + data::encode::SPECIAL.len();
        if !(least..=1 << 22).contains(&self.tokenizer.vocab_size) {
            let why = format!(
                "{} is not from {least} (bytes and special tokens) to {}",
                self.tokenizer.vocab_size,
                1 << 22
            );
            return wrong("tokenizer.vocab_size", why);
        }
        if m.context < 8 {
            return wrong(
                "model.context",
                format!("{} tokens are too few for a document", m.context),
            );
        }
        if let Err(e) = self.config(self.tokenizer.vocab_size, None, None).check() {
            let mut why = e.to_string().replacen("config.json: ", "", 1);
            for (theirs, ours) in CONFIG_NAMES {
                why = why.replace(theirs, ours);
            }
            let key = CONFIG_NAMES.iter().find(|(_, ours)| why.starts_with(ours));
            return wrong(key.map_or("model", |(_, ours)| ours), why);
        }
        for (stage, t) in [("pretrain", &self.pretrain), ("finetune", &self.finetune)] {
            if let Some(why) = t.schedule.problem() {
                return wrong(&format!("{stage}.schedule"), why);
            }
            let key = format!("{stage}.micro_tokens");
            if t.micro_tokens < m.context {
                return wrong(
                    &key,
                    format!(
                        "{} tokens have no room for a context of {}",
                        t.micro_tokens, m.context
                    ),
                );
            }
            if t.batch_tokens < t.micro_tokens {
                let why =
                    format!("{} is less than micro_tokens, {}", t.batch_tokens, t.micro_tokens);
                return wrong(&format!("{stage}.batch_tokens"), why);
            }
        }
        Ok(())
    }
}

/// Where settings come from, by dotted key.
#[derive(Default)]
struct Origins(BTreeMap<String, String>);

impl Origins {
    /// The setting `key` (or one above or below it) is wrong.
    fn wrong(&self, key: &str, why: &str) -> Failure {
        let related = |k: &str| {
            k == key || k.starts_with(&format!("{key}.")) || key.starts_with(&format!("{k}."))
        };
        let places: Vec<&str> =
            self.0.iter().filter(|(k, _)| related(k)).map(|(_, o)| o.as_str()).collect();
        let why = why.strip_prefix(key).unwrap_or(why).trim_start();
        let failure = Failure::invalid(format!("the setting {key}: {why}"));
        if places.is_empty() {
            failure
        } else {
            failure.hint(format!("set by {}", places.join("; ")))
        }
    }
}

/// A recipe's text, or `KEY=VALUE` of a flag.
struct Source<'a> {
    name: &'a str,
    text: &'a str,
}

impl Source<'_> {
    /// The changes that a recipe file makes.
    fn read(&self, default: &Table, origins: &mut Origins) -> Result<Table, Failure> {
        let parsed = DeTable::parse(self.text)
            .map_err(|e| self.wrong(e.span().unwrap_or_default(), e.message(), None))?;
        self.check(parsed.get_ref(), default, "", origins)?;
        // The same text again, now as plain values.
        self.text.parse().map_err(|e: toml::de::Error| {
            self.wrong(e.span().unwrap_or_default(), e.message(), None)
        })
    }

    /// The change that `KEY=VALUE` makes; a value that is no TOML is a text.
    fn read_set(&self, default: &Table, origins: &mut Origins) -> Result<Table, Failure> {
        let Some((key, value)) = self.text.split_once('=') else {
            let wrong = Failure::invalid(format!("{} {}: it has no =", self.name, self.text));
            return Err(wrong.hint("Write it as KEY=VALUE, such as --set pretrain.tokens=1000000."));
        };
        let (key, value) = (key.trim(), value.trim());
        let plain = |text: &str| format!("{key} = {text}").parse::<Table>();
        let quoted = Value::String(value.to_string()).to_string();
        let text = if plain(value).is_ok() {
            format!("{key} = {value}")
        } else {
            format!("{key} = {quoted}")
        };
        let flag = format!("{} {}", self.name, self.text);
        let mut inner = Origins::default();
        let changes =
            Source { name: &flag, text: &text }.read(default, &mut inner).map_err(|e| {
                // There is no file whose line could be shown.
                let message = e.message.replacen(", line 1", "", 1);
                Failure { message, ..e }
            })?;
        origins.0.extend(inner.0.into_keys().map(|key| (key, flag.clone())));
        Ok(changes)
    }

    /// Compares keys and types with those of the default.
    fn check(
        &self,
        table: &DeTable<'_>,
        default: &Table,
        above: &str,
        origins: &mut Origins,
    ) -> Result<(), Failure> {
        for (key, value) in table {
            let name = key.get_ref().as_ref();
            let dotted =
                if above.is_empty() { name.to_string() } else { format!("{above}.{name}") };
            let line = self.line(key.span().start);
            let Some(wanted) = default.get(name) else {
                // The keys of a table with a kind depend on the kind.
                if default.contains_key("kind") {
                    origins.0.insert(dotted, format!("{}, line {line}", self.name));
                    continue;
                }
                let hint = match nearest(name, default.keys().map(String::as_str)) {
                    Some(other) => format!("Did you mean {other:?}?"),
                    None => {
                        let keys: Vec<_> = default.keys().map(String::as_str).collect();
                        format!("There are {}.", keys.join(", "))
                    }
                };
                let why = format!("there is no setting {dotted}");
                return Err(self.wrong(key.span(), &why, Some(hint)));
            };
            match (value.get_ref(), wanted) {
                (DeValue::Table(inner), Value::Table(default)) => {
                    self.check(inner, default, &dotted, origins)?;
                    continue;
                }
                (DeValue::Integer(_), Value::Float(_)) => {}
                (value, wanted) if value.type_str() == wanted.type_str() => {}
                (other, wanted) => {
                    let (got, want) = (other.type_str(), wanted.type_str());
                    let why = format!("{dotted} wants {}, not {}", a(want), a(got));
                    return Err(self.wrong(value.span(), &why, None));
                }
            }
            origins.0.insert(dotted, format!("{}, line {line}", self.name));
        }
        Ok(())
    }

    fn line(&self, at: usize) -> usize {
        1 + self.text.as_bytes()[..at.min(self.text.len())].iter().filter(|b| **b == b'\n').count()
    }

    /// An error with its line.
    fn wrong(&self, span: Range<usize>, why: &str, hint: Option<String>) -> Failure {
        let line = self.line(span.start);
        let text = self.text.lines().nth(line - 1).unwrap_or_default().trim();
        let shown: String = text.chars().take(100).collect();
        let why = why.trim_end();
        let failure =
            Failure::invalid(format!("{}, line {line}: {why}\n  {line} | {shown}", self.name));
        Failure { hint, ..failure }
    }
}

/// A type with its article.
fn a(kind: &str) -> String {
    let vowel = kind.starts_with(['a', 'e', 'i', 'o', 'u']);
    format!("{} {kind}", if vowel { "an" } else { "a" })
}

/// The key that is most like `name`, if one is like it at all.
fn nearest<'a>(name: &str, keys: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let like = |key: &str| strsim::jaro_winkler(name, key);
    keys.filter(|k| like(k) > 0.75).max_by(|a, b| like(a).total_cmp(&like(b)))
}

/// Puts changes into a table. A table of another `kind` is another table.
fn merge(table: &mut Table, changes: Table) {
    if changes.get("kind").is_some_and(|kind| table.get("kind").is_some_and(|k| k != kind)) {
        *table = changes;
        return;
    }
    for (key, value) in changes {
        match (table.get_mut(&key), value) {
            (Some(Value::Table(inner)), Value::Table(changes)) => merge(inner, changes),
            (Some(Value::Float(old)), Value::Integer(new)) => *old = new as f64,
            (_, value) => drop(table.insert(key, value)),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn resolve(text: &str, sets: &[&str]) -> Result<Recipe, Failure> {
        let sets: Vec<_> = sets.iter().map(|s| ("--set".to_string(), s.to_string())).collect();
        Recipe::resolve(&[("my.toml", text)], &sets)
    }

    /// The dotted keys of all settings.
    fn keys(value: &Value, at: &str) -> std::collections::BTreeSet<String> {
        match value {
            Value::Table(table) => {
                table.iter().flat_map(|(key, value)| keys(value, &format!("{at}.{key}"))).collect()
            }
            _ => [at.to_string()].into(),
        }
    }

    #[test]
    fn the_recipes_of_the_repository_are_valid() {
        // "Every setting there is stands here."
        let keys = |table: Table| keys(&Value::Table(table), "");
        let all = Table::try_from(resolve("", &[]).unwrap()).unwrap();
        assert_eq!(keys(DEFAULT.parse().unwrap()), keys(all));
        resolve(DOCS, &[]).unwrap();
        resolve(TUNE, &["base=model", "data.chats=[\"a\"]"]).unwrap();
        resolve(include_str!("../../recipes/smoke.toml"), &[]).unwrap();
    }

    #[test]
    fn set_is_over_recipe_is_over_default() {
        let text = "seed = 3\n[pretrain]\ntokens = 5_000\n[model]\nrope_base = 500000\n";
        let recipe =
            resolve(text, &["seed=4", "data.docs=[\"a b\"]", "pretrain.dtype=f32"]).unwrap();
        assert_eq!((recipe.seed, recipe.pretrain.tokens), (4, 5_000));
        assert_eq!((recipe.model.rope_base, recipe.model.layers), (500_000.0, 6));
        assert_eq!(recipe.data.docs, ["a b"]);
        assert_eq!(recipe.pretrain.dtype, train::Precision::F32);
        // A schedule of another kind is another table.
        let text = "[pretrain.schedule]\nkind = \"cosine\"\nwarmup = 0.1\nend = 0.1\n";
        let cosine = resolve(text, &["pretrain.schedule.end=0.2"]).unwrap().pretrain.schedule;
        assert_eq!(cosine, train::schedule::Schedule::Cosine { warmup: 0.1, end: 0.2 });
        // What is resolved is a recipe.
        assert_eq!(resolve(&recipe.to_toml(), &[]).unwrap(), recipe);
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        for (text, parts) in [
            (
                "[pretrain]\n\ntokns = 5\n",
                &["my.toml, line 3", "pretrain.tokns", "tokns = 5", "\"tokens\""][..],
            ),
            ("[pretraining]\ntokens = 5\n", &["line 1", "pretraining", "\"pretrain\""]),
            (
                "[pretrain]\ntokens = \"many\"\n",
                &["line 2", "pretrain.tokens wants an integer, not a string"],
            ),
            ("[pretrain]\ntokens = -5\n", &["pretrain.tokens", "set by my.toml, line 2"]),
            ("seed = 1\nseed = 2\n", &["my.toml, line 2", "duplicate key"]),
            ("a = [\n", &["my.toml, line"]),
            ("[pretrain]\ndtype = \"f31\"\n", &["pretrain.dtype", "f31", "my.toml, line 2"]),
            (
                "[pretrain.schedule]\nkind = \"wsd\"\ndecays = 1.0\n",
                &["pretrain.schedule", "decays"],
            ),
            ("[pretrain.schedule]\nwarmup = 2.0\n", &["pretrain.schedule", "2", "line 2"]),
            ("[mixture]\nreplay = 1.5\n", &["mixture.replay", "1.5", "line 2"]),
            ("[model]\nkv_heads = 3\n", &["model.kv_heads", "line 2"]),
            ("[model]\ncontext = 4096\n", &["pretrain.micro_tokens"]),
            ("[tokenizer]\nvocab_size = 100\n", &["tokenizer.vocab_size", "263"]),
            ("schema_version = 2\n", &["schema_version", "line 1"]),
            ("[mixture]\ndocuments = [1, 2]\n", &["mixture.documents", "0 paths", "line 2"]),
            (
                "[data]\ndocs = [\"a\"]\n[mixture]\ndocuments = [-1.0]\n",
                &["mixture.documents", "-1 is not a positive weight", "line 4"],
            ),
        ] {
            let failure = resolve(text, &[]).unwrap_err();
            assert_eq!(failure.exit, 2);
            let message = failure.to_string();
            for part in parts {
                assert!(message.contains(part), "{part:?} is not in:\n{message}\nfor:\n{text}");
            }
        }
        for (set, parts) in [
            (
                "pretrain.tokns=5",
                &["--set pretrain.tokns=5: there is no setting", "\"tokens\""][..],
            ),
            ("seed", &["--set seed", "no ="]),
            ("seed=x", &["--set seed=x", "seed wants an integer, not a string"]),
            ("mixture.replay=2.0", &["mixture.replay", "set by --set mixture.replay=2.0"]),
        ] {
            let message = resolve("", &[set]).unwrap_err().to_string();
            for part in parts {
                assert!(message.contains(part), "{part:?} is not in:\n{message}");
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "[a-z.=\\[\\]\"0-9\\n ]{0,80}", set in "[a-z.=\\[\\]\"0-9 ]{0,30}") {
            let _ = resolve(&text, &[]);
            let _ = resolve("", &[&set]);
        }
    }
}
