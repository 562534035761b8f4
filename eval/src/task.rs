//! Results of tasks: a score with its interval, the chance level beside it, and examples.

use serde::{Deserialize, Serialize};

use crate::interval::Proportion;

/// The version of the form of [`Results`].
pub const SCHEMA_VERSION: u32 = 1;

/// What models scored on tasks.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// One a model.
    pub models: Vec<ModelResults>,
}

/// What one model scored.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ModelResults {
    /// `fine-tuned` or `base`.
    pub model: String,
    /// How it was asked: `chat` or `few-shot`.
    pub asked: String,
    /// Seconds for all tasks.
    pub seconds: f64,
    /// Tokens it wrote.
    pub tokens: u64,
    /// Scores in the order of the report.
    pub scores: Vec<Score>,
    /// Some right and some wrong answers of each task.
    #[serde(default)]
    pub transcripts: Vec<Transcript>,
}

/// One score.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// Its name in contracts (`known`, `in_context` …).
    pub task: String,
    /// What it says, in plain words.
    pub title: String,
    /// Whether a lower value is better (a share of errors).
    #[serde(default)]
    pub lower_is_better: bool,
    /// The share, its interval, its number of questions.
    #[serde(flatten)]
    pub share: Proportion,
    /// What guessing scores, 0..=1, where that is known.
    pub chance: Option<f64>,
}

/// A question as it was asked and the answer that came.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Transcript {
    /// The task.
    pub task: String,
    /// The turns, the model's last.
    pub turns: Vec<Turn>,
    /// What would have been right.
    pub expected: String,
    /// Whether it was.
    pub right: bool,
}

/// One turn of a transcript.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Turn {
    /// `user`, `assistant`, `tool`, `system`, or `text` for plain text.
    pub role: String,
    /// What was said.
    pub text: String,
}

impl ModelResults {
    /// The score of a task.
    pub fn score(&self, task: &str) -> Option<&Score> {
        self.scores.iter().find(|score| score.task == task)
    }
}
