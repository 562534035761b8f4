//! Results of tasks: a score with its interval, the chance level beside it, and examples.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::interval::Proportion;

/// The version of the form of [`Results`].
pub const SCHEMA_VERSION: u32 = 1;

/// The scores that come first in reports, as the contract of `grow` names them.
pub const HEADLINE: [&str; 5] =
    ["known", "in_context", "unknown_admitted", "known_refused", "calculator"];

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

    /// The `scores` of `grow --json`: each headline score's share, null where there is none.
    pub fn headline(&self) -> Value {
        let value = |task| self.score(task).map(|score| score.share.value);
        HEADLINE.iter().map(|task| (task.to_string(), json!(value(task)))).collect()
    }

    /// The `results` of `eval --json`: `{task: {metric, value, stderr, n …}}`.
    pub fn results(&self) -> Value {
        let entry = |s: &Score| {
            json!({
                "metric": "share", "value": s.share.value, "stderr": s.share.stderr,
                "n": s.share.n, "low": s.share.low, "high": s.share.high, "chance": s.chance,
                "lower_is_better": s.lower_is_better,
            })
        };
        self.scores.iter().map(|s| (s.task.clone(), entry(s))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contracts_have_their_keys() {
        let score = |task: &str, right| Score {
            task: task.into(),
            title: "Known facts".into(),
            lower_is_better: false,
            share: Proportion::of(right, 4),
            chance: Some(0.02),
        };
        let scores = vec![score("known", 3), score("games", 1)];
        let results = ModelResults { scores, ..ModelResults::default() };
        assert_eq!(
            results.headline().to_string(),
            r#"{"known":0.75,"in_context":null,"unknown_admitted":null,"known_refused":null,"#
                .to_owned()
                + r#""calculator":null}"#
        );
        let games = &results.results()["games"];
        assert_eq!(
            (&games["metric"], &games["value"], &games["n"]),
            (&json!("share"), &json!(0.25), &json!(4))
        );
        assert!((games["stderr"].as_f64().unwrap_or(0.0) - 0.216_506).abs() < 1e-6);
    }
}
