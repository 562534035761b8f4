//! Published rules of quality, by name. Each is a number of the text and a bound.
//!
//! gopher: Rae et al. 2021, table A1; c4: Raffel et al. 2019; fineweb: Penedo et al. 2024;
//! code: Chen et al. 2021 and Kocetkov et al. 2022. Bounds can be set by name.

use std::collections::BTreeMap;

use serde::Serialize;

use super::measure::Measures;
use crate::Format;

/// Which side of its bound a text must be on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// At least it.
    Least,
    /// At most it.
    Most,
}

/// A rule.
pub struct Rule {
    /// `group.name`.
    pub name: &'static str,
    /// Its side.
    pub bound: Bound,
    /// Its bound, unless set otherwise.
    pub default: f64,
    measure: fn(&Measures) -> f64,
}

const fn least(name: &'static str, default: f64, measure: fn(&Measures) -> f64) -> Rule {
    Rule { name, bound: Bound::Least, default, measure }
}

const fn most(name: &'static str, default: f64, measure: fn(&Measures) -> f64) -> Rule {
    Rule { name, bound: Bound::Most, default, measure }
}

/// All rules there are, in the order in which they are asked.
pub const RULES: &[Rule] = &[
    least("gopher.words", 50.0, |m| m.words),
    most("gopher.words_most", 100_000.0, |m| m.words),
    least("gopher.word_length", 3.0, |m| m.word_length),
    most("gopher.word_length_most", 10.0, |m| m.word_length),
    most("gopher.hashes", 0.1, |m| m.hashes),
    most("gopher.ellipses", 0.1, |m| m.ellipses),
    most("gopher.bullet_lines", 0.9, |m| m.bullet_lines),
    most("gopher.ellipsis_lines", 0.3, |m| m.ellipsis_lines),
    least("gopher.letters", 0.8, |m| m.letters),
    least("gopher.stop_words", 2.0, |m| m.stop_words),
    most("repetition.lines", 0.3, |m| m.repeated_lines),
    most("repetition.line_bytes", 0.2, |m| m.repeated_line_bytes),
    most("repetition.paragraphs", 0.3, |m| m.repeated_paragraphs),
    most("repetition.paragraph_bytes", 0.2, |m| m.repeated_paragraph_bytes),
    most("repetition.top_2_words", 0.2, |m| m.top_runs[0]),
    most("repetition.top_3_words", 0.18, |m| m.top_runs[1]),
    most("repetition.top_4_words", 0.16, |m| m.top_runs[2]),
    most("repetition.runs_of_5", 0.15, |m| m.repeated_runs[0]),
    most("repetition.runs_of_6", 0.14, |m| m.repeated_runs[1]),
    most("repetition.runs_of_7", 0.13, |m| m.repeated_runs[2]),
    most("repetition.runs_of_8", 0.12, |m| m.repeated_runs[3]),
    most("repetition.runs_of_9", 0.11, |m| m.repeated_runs[4]),
    most("repetition.runs_of_10", 0.10, |m| m.repeated_runs[5]),
    least("c4.sentences", 5.0, |m| m.sentences),
    most("c4.lorem_ipsum", 0.0, |m| m.lorem_ipsum),
    most("c4.curly_brackets", 0.0, |m| m.curly_brackets),
    least("fineweb.punctuated_lines", 0.12, |m| m.punctuated_lines),
    most("fineweb.short_lines", 0.67, |m| m.short_lines),
    most("fineweb.repeated_line_bytes", 0.1, |m| m.repeated_line_bytes),
    most("fineweb.line_ends", 0.3, |m| m.line_ends),
    most("code.line_length", 100.0, |m| m.line_length),
    most("code.longest_line", 1000.0, |m| m.longest_line),
    least("code.alphanumeric", 0.25, |m| m.alphanumeric),
    most("code.generated", 0.0, |m| m.generated),
];

/// What a rule said of a text.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Check {
    /// The rule's name.
    pub rule: &'static str,
    /// The text's number.
    pub value: f64,
    /// What it was held against.
    pub bound: f64,
    /// "least" or "most".
    pub side: &'static str,
    /// Whether the text passed.
    pub passed: bool,
}

/// The rules that are asked, with their bounds.
#[derive(Default)]
pub struct Rules(Vec<(&'static Rule, f64)>);

impl Rules {
    /// Takes groups and names of rules, and bounds that differ from the published ones.
    ///
    /// # Errors
    /// A name that isn't one, with those that are.
    pub fn new(names: &[String], bounds: &BTreeMap<String, f64>) -> Result<Rules, String> {
        let group = |rule: &Rule| rule.name.split('.').next().unwrap_or_default();
        let is = |rule: &Rule, name: &str| rule.name == name || group(rule) == name;
        let unknown = |name: &&String| !RULES.iter().any(|r| is(r, name));
        if let Some(name) = names.iter().find(unknown) {
            let mut groups: Vec<_> = RULES.iter().map(group).collect();
            groups.dedup();
            let groups = groups.join(", ");
            return Err(format!("there is no rule {name}; there are {groups}, and rules of each"));
        }
        if let Some(name) = bounds.keys().find(|b| !RULES.iter().any(|r| r.name == **b)) {
            let all: Vec<_> = RULES.iter().map(|r| r.name).collect();
            return Err(format!("there is no rule {name} to set; there are {}", all.join(", ")));
        }
        let asked = RULES.iter().filter(|r| names.iter().any(|n| is(r, n)));
        let bound = |r: &Rule| bounds.get(r.name).copied().unwrap_or(r.default);
        Ok(Rules(asked.map(|r| (r, bound(r))).collect()))
    }

    /// Whether there is anything to measure.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What each rule that is about such a document says: those about runs of words, or all
    /// others.
    pub fn checks(
        &self,
        format: Format,
        measures: &Measures,
        runs: bool,
    ) -> impl Iterator<Item = Check> {
        let about = move |rule: &Rule| match format {
            Format::Code => rule.name.starts_with("code."),
            // Tables are no prose.
            Format::Csv | Format::Xlsx | Format::Ods => false,
            _ => !rule.name.starts_with("code."),
        };
        let of_runs = |rule: &Rule| rule.name.contains(".top_") || rule.name.contains(".runs_of_");
        let asked = move |rule: &Rule| about(rule) && of_runs(rule) == runs;
        self.0.iter().filter(move |(rule, _)| asked(rule)).map(|(rule, bound)| {
            let (value, bound) = ((rule.measure)(measures), *bound);
            let (side, passed) = match rule.bound {
                Bound::Least => ("least", value >= bound),
                Bound::Most => ("most", value <= bound),
            };
            Check { rule: rule.name, value, bound, side, passed }
        })
    }
}
