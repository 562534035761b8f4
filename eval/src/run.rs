//! The files of a run directory that the report reads, and the order they are read in.
//!
//! | file | form | written by |
//! |---|---|---|
//! | `run.json` | [`Run`] | `grow`, at the start |
//! | `machine.json` | [`Machine`] | `grow`, at the start |
//! | `stages/NAME.json` | [`store::Record`], of which [`Stage`] is read | each stage, at its end |
//! | `data/corpus.json` | [`Corpus`] | prepare |
//! | `shards/tokens.json` | [`Tokens`] | tokenize |
//! | `pretrain/metrics.jsonl`, `finetune/metrics.jsonl` | [`Metric`] a line | training |
//! | `pretrain/timing.jsonl` | [`Speed`] a line | training |
//! | `eval/heldout.json` | [`HeldoutScores`] | evaluate |
//! | `eval/answers.json` | [`HeldoutScores`], of answers | evaluate |
//! | `eval/compressors.json` | [`Compressors`] | evaluate |
//! | `eval/microworld.json` | [`Results`] | evaluate |
//!
//! What depends on the clock or the machine (`machine.json`, `timing.jsonl`, seconds in stages) is
//! apart from all else: only the page of costs shows it, and the report of a run that was stopped
//! and went on, with other threads or elsewhere, is the same bytes.
//!
//! A file that is not there, or not what it should be, is a line in [`RunDirectory::missing`]: a run
//! that was stopped has a report, too, and the report says what it does not know.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Error;
use crate::compress::Compressors;
use crate::score::Heldout;
use crate::task::Results;

/// The version of the forms in this file.
pub const SCHEMA_VERSION: u32 = 1;

/// What was asked for, `run.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Run {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The command that makes this run again.
    pub command: String,
    /// Version of the program.
    pub version: String,
    /// Seed of everything random.
    pub seed: Option<u64>,
    /// Type of the operands of products.
    pub products: String,
    /// One sentence about the data: "the microworld of seed 0", or the paths given.
    pub source: String,
    /// The stages that this run has; empty for all of them. (Text of one's own without
    /// conversations has no `finetune`.)
    pub stages: Vec<String>,
    /// Whether there are questions to score: `false` for text of one's own.
    pub microworld: Option<bool>,
    /// The model.
    pub model: Option<Model>,
    /// The recipe, as text.
    pub recipe: String,
}

/// Where a run was last worked on, `machine.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Machine {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The command as it was given.
    pub command: String,
    /// The processor, as it names itself.
    pub cpu: String,
    /// Instruction set the kernels used.
    pub isa: String,
    /// Threads.
    pub threads: u64,
    /// Peak of the products, measured, FLOP/s: what shares of the peak refer to.
    pub peak_flops_per_s: f64,
}

/// The model's shape.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Model {
    /// Architecture as in `config.json` (`qwen3`).
    pub architecture: String,
    /// All parameters, each counted once.
    pub parameters: u64,
    /// Layers.
    pub layers: u64,
    /// Width of the residual stream.
    pub width: u64,
    /// Query heads.
    pub heads: u64,
    /// Key and value heads.
    pub kv_heads: u64,
    /// Width of a head.
    pub head_width: u64,
    /// Inner width of the MLP.
    pub ffn: u64,
    /// Size of the vocabulary.
    pub vocabulary: u64,
    /// Longest context, tokens.
    pub context: u64,
}

/// One finished stage: what the report reads of a [`store::Record`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stage {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// `prepare`, `tokenize`, `pretrain`, `finetune`, `evaluate`, `report`.
    pub stage: String,
    /// Wall-clock time.
    pub seconds: f64,
    /// Tokens that went through, where tokens went through.
    pub tokens: Option<u64>,
    /// Steps of training.
    pub steps: Option<u64>,
    /// Floating-point operations of training.
    pub flops: Option<f64>,
    /// Steps that were not learned from.
    pub skipped_steps: u64,
    /// Times that training went back to an earlier checkpoint.
    pub rollbacks: u64,
    /// Share of the measured peak of the products, 0..=1.
    pub share_of_peak: Option<f64>,
    /// Highest resident memory of the program so far.
    pub peak_rss_bytes: Option<u64>,
    /// BLAKE3 of what went in, by name.
    pub inputs: BTreeMap<String, String>,
    /// BLAKE3 of what came out, by name.
    pub outputs: BTreeMap<String, String>,
}

/// What went in, `data/corpus.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Corpus {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// Training text by kind of document, conversations included.
    pub kinds: Vec<Kind>,
    /// The held-out text (never trained on).
    pub heldout: Option<Kind>,
    /// Overlap of the evaluation's questions with the training text.
    pub overlap: Vec<Overlap>,
    /// What was read, dropped and skipped, a line each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// Documents of one kind.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Kind {
    /// Its name ("biographies", "conversations").
    pub kind: String,
    /// How many documents.
    pub documents: u64,
    /// Size of the text.
    pub bytes: u64,
    /// Size in tokens, once tokenized: from [`Tokens`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    /// The beginning of one of them.
    pub sample: String,
}

/// How many tokens the text came to, `shards/tokens.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tokens {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// Of the training text, by [`Kind::kind`].
    pub kinds: BTreeMap<String, u64>,
    /// Of the held-out text.
    pub heldout: u64,
}

/// How much of the questions' text stands in the training text.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Overlap {
    /// Which questions (a task's name, or "all").
    pub task: String,
    /// Length of the n-grams, words.
    pub n: u64,
    /// Share of the questions' n-grams that occur in the training text, 0..=1.
    pub share: f64,
}

/// A line of `metrics.jsonl`: a step, one that was skipped, an evaluation or a sample. Absent keys are `None`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Metric {
    /// Steps done.
    pub step: u64,
    /// Tokens trained on so far.
    pub tokens: u64,
    /// Training loss of the step, nats per token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// Learning rate of the step (Muon's, where both are in use).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    /// Norm of the gradient before clipping.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grad_norm: Option<f64>,
    /// Why the step was not learned from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
    /// The step whose weights the run took again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rolled_back_to: Option<u64>,
    /// Bits per byte of the step's text, where training knows its bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bits_per_byte: Option<f64>,
    /// Bits per byte of the held-out text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heldout_bits_per_byte: Option<f64>,
    /// What the model writes at this step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample: Option<Sample>,
}

/// A line of `timing.jsonl`: how fast a step was.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Speed {
    /// Tokens trained on so far.
    pub tokens: u64,
    /// Tokens a second.
    pub tokens_per_s: f64,
}

/// A prompt and what the model wrote after it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sample {
    /// What it was given.
    pub prompt: String,
    /// What it wrote.
    pub text: String,
}

/// Held-out scores of the models of a run, `eval/heldout.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HeldoutScores {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// One a model, the base model first.
    pub models: Vec<HeldoutScore>,
}

/// A model on the held-out text.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HeldoutScore {
    /// `base` or `fine-tuned`; `start`: what the run went on from.
    pub model: String,
    /// What it scored.
    #[serde(flatten)]
    pub score: Heldout,
}

/// All that is known of a run.
#[derive(Clone, Debug, Default)]
pub struct RunDirectory {
    /// `run.json`.
    pub run: Run,
    /// `machine.json`.
    pub machine: Option<Machine>,
    /// The stages that have finished, in the order of the life cycle.
    pub stages: Vec<Stage>,
    /// What went in.
    pub corpus: Option<Corpus>,
    /// Pretraining, by step.
    pub pretrain: Vec<Metric>,
    /// Fine-tuning, by step.
    pub finetune: Vec<Metric>,
    /// How fast pretraining was, by step.
    pub speed: Vec<Speed>,
    /// Held-out scores.
    pub heldout: Option<HeldoutScores>,
    /// The same of answers in held-out conversations, where there are any.
    pub answers: Option<HeldoutScores>,
    /// xz and zstd.
    pub compressors: Option<Compressors>,
    /// Scores on the microworld's questions.
    pub tasks: Option<Results>,
    /// What could not be read and why, in words.
    pub missing: Vec<String>,
}

/// The order of stages in a report; others follow by name.
const ORDER: [&str; 6] = ["prepare", "tokenize", "pretrain", "finetune", "evaluate", "report"];

impl RunDirectory {
    /// Reads what a run directory holds.
    ///
    /// # Errors
    /// [`Error::Io`] if `folder` cannot be listed. Missing and broken files in it are no errors:
    /// see [`RunDirectory::missing`].
    pub fn read(folder: &Path) -> Result<RunDirectory, Error> {
        fs::read_dir(folder).map_err(Error::io(folder))?;
        let mut reader = Reader { folder, missing: Vec::new() };
        let run: Run =
            reader.json("run.json", "the command, the seed and the model").unwrap_or_default();
        let planned = |stage: &str| run.stages.is_empty() || run.stages.iter().any(|s| s == stage);
        let mut record = RunDirectory {
            stages: reader.stages(planned),
            corpus: reader.json("data/corpus.json", "what went in"),
            ..RunDirectory::default()
        };
        if planned("pretrain") {
            record.pretrain = reader.lines("pretrain/metrics.jsonl", "the curves of pretraining");
            let (heldout, compressors) = ("eval/heldout.json", "eval/compressors.json");
            record.heldout = reader.json(heldout, "bits per byte of the held-out text");
            record.compressors = reader.json(compressors, "xz and zstd on the held-out text");
        }
        if planned("finetune") {
            let name = "finetune/metrics.jsonl";
            record.finetune = reader.lines(name, "the curves of fine-tuning");
        }
        if run.microworld != Some(false) {
            let name = "eval/microworld.json";
            record.tasks = reader.json(name, "scores on the microworld's questions");
        }
        if let Some(corpus) = &mut record.corpus
            && let Some(tokens) = reader.json::<Tokens>("shards/tokens.json", "tokens of each kind")
        {
            for kind in &mut corpus.kinds {
                kind.tokens = tokens.kinds.get(&kind.kind).copied();
            }
            corpus.heldout.iter_mut().for_each(|held| held.tokens = Some(tokens.heldout));
        }
        record.run = run;
        record.missing = std::mem::take(&mut reader.missing);
        record.answers = reader.json("eval/answers.json", "");
        // The report does without these; the page of costs says nothing of what is not there.
        record.machine = reader.json("machine.json", "");
        let speeds = reader.text("pretrain/timing.jsonl", "").unwrap_or_default();
        record.speed = speeds.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        Ok(record)
    }
}

struct Reader<'a> {
    folder: &'a Path,
    missing: Vec<String>,
}

impl Reader<'_> {
    /// The file's text; a missing file is noted with what the report lacks without it.
    fn text(&mut self, name: &str, holds: &str) -> Option<String> {
        match fs::read(self.folder.join(name)) {
            Ok(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                self.missing.push(format!("{holds}: there is no {name}"));
                None
            }
            Err(error) => {
                self.missing.push(format!("{holds}: {name} cannot be read: {error}"));
                None
            }
        }
    }

    fn json<T: DeserializeOwned>(&mut self, name: &str, holds: &str) -> Option<T> {
        let text = self.text(name, holds)?;
        // The version is looked at before the form, so that a newer form is named as such.
        let parsed = serde_json::from_str::<Value>(&text).map_err(|e| e.to_string());
        let parsed = parsed.and_then(|value| match value["schema_version"].as_u64() {
            Some(v) if v > u64::from(SCHEMA_VERSION) => {
                Err(format!("it has schema_version {v}, this program reads up to {SCHEMA_VERSION}"))
            }
            _ => serde_json::from_value(value).map_err(|e| e.to_string()),
        });
        match parsed {
            Ok(value) => Some(value),
            Err(reason) => {
                self.missing.push(format!("{holds}: {name} is not readable: {reason}"));
                None
            }
        }
    }

    /// Metrics by step. A step that was done again after a kill counts as done the second time.
    fn lines(&mut self, name: &str, holds: &str) -> Vec<Metric> {
        let Some(text) = self.text(name, holds) else { return Vec::new() };
        let mut metrics: Vec<Metric> = Vec::new();
        let mut bad = 0;
        let count = text.lines().count();
        for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            match serde_json::from_str::<Metric>(line) {
                Ok(metric) => {
                    // Several lines may share a step; a smaller one means that a killed run
                    // went on from a checkpoint before it.
                    if metrics.last().is_some_and(|last| last.step > metric.step) {
                        metrics.retain(|earlier| earlier.step < metric.step);
                    }
                    metrics.push(metric);
                }
                // The last line of a run that is being written, or was killed, may be cut.
                Err(_) if i + 1 == count => {}
                Err(_) => bad += 1,
            }
        }
        if bad > 0 {
            self.missing.push(format!("{holds}: {bad} lines of {name} are not readable"));
        }
        metrics
    }

    fn stages(&mut self, planned: impl Fn(&str) -> bool) -> Vec<Stage> {
        let mut names: Vec<String> = fs::read_dir(self.folder.join("stages"))
            .map(|entries| {
                entries
                    .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
                    .filter(|name| name.ends_with(".json"))
                    .collect()
            })
            .unwrap_or_default();
        names.sort();
        let mut stages: Vec<Stage> = names
            .iter()
            .filter_map(|name| {
                let mut stage: Stage = self.json(&format!("stages/{name}"), "a stage")?;
                if stage.stage.is_empty() {
                    stage.stage = name.trim_end_matches(".json").to_string();
                }
                Some(stage)
            })
            .collect();
        let place = |s: &Stage| ORDER.iter().position(|o| *o == s.stage).unwrap_or(ORDER.len());
        stages.sort_by_key(place);
        for stage in &ORDER[..5] {
            if planned(stage) && !stages.iter().any(|s| s.stage == *stage) {
                self.missing.push(format!("the stage {stage}: it has not finished"));
            }
        }
        stages
    }
}
