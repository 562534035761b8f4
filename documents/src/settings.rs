//! Everything that can be chosen about documents, as a table of a TOML file.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::Limits;
use crate::clean::personal::Personal;
use crate::output::Output;

/// Settings; the default reads everything and drops only what is there twice.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Sizes.
    pub limits: Limits,
    /// The field of records, or column of tables, that is the text; empty: the first of `text`,
    /// `content` and the like.
    pub text_field: String,
    /// Unicode to its composed form, line ends to `\n`, control characters away.
    pub normalise: bool,
    /// Human languages that are kept (ISO 639-3); empty: all.
    pub languages: Vec<String>,
    /// How sure the language must be, of 1.
    pub language_confidence: f64,
    /// Groups and names of rules that are asked; see [`crate::clean::rules::RULES`].
    pub rules: Vec<String>,
    /// Bounds that differ from the published ones, by the rule's name.
    pub bounds: BTreeMap<String, f64>,
    /// Personal data.
    pub personal: Personal,
    /// A file of host names, one a line: documents from there and below are dropped.
    pub blocked_hosts: Option<PathBuf>,
    /// A file of words, one a line: documents with one of them are dropped.
    pub blocked_words: Option<PathBuf>,
    /// Texts of evaluations: documents that quote them are dropped.
    pub evaluation: Vec<PathBuf>,
    /// Words in a row that make a quote of an evaluation.
    pub evaluation_words: usize,
    /// Examples to keep and to drop, in the order of "good", "bad": a classifier learns them.
    pub examples: Vec<PathBuf>,
    /// The least probability of "good" that is kept.
    pub classifier_least: f64,
    /// Lines that are in so many documents are cut from all; 0: none.
    pub boilerplate_documents: u32,
    /// Drop documents of the same text.
    pub exact: bool,
    /// Drop documents of nearly the same text.
    pub near: Near,
    /// Cut runs of so many words that were there before; 0: none.
    pub repeated_words: usize,
    /// Memory of that, bytes.
    pub repeated_bytes: usize,
    /// Share of the text that is held out.
    pub heldout: f64,
    /// How documents are written.
    pub output: Output,
}

/// MinHash with locality-sensitive hashing: documents that agree in all rows of a band are near.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Near {
    /// Bands; 0: near duplicates stay.
    pub bands: usize,
    /// Rows of a band. Bands times rows is the number of permutations.
    pub rows: usize,
    /// Words of a shingle.
    pub words: usize,
}

impl Default for Near {
    fn default() -> Near {
        Near { bands: 0, rows: 8, words: 5 }
    }
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            limits: Limits::default(),
            text_field: String::new(),
            normalise: true,
            languages: Vec::new(),
            language_confidence: 0.5,
            rules: Vec::new(),
            bounds: BTreeMap::new(),
            personal: Personal::Keep,
            blocked_hosts: None,
            blocked_words: None,
            evaluation: Vec::new(),
            evaluation_words: 13,
            examples: Vec::new(),
            classifier_least: 0.5,
            boilerplate_documents: 0,
            exact: true,
            near: Near::default(),
            repeated_words: 0,
            repeated_bytes: 256 << 20,
            heldout: 0.05,
            output: Output::Jsonl,
        }
    }
}

impl Settings {
    /// What is done with pages of the web: rules of quality, near duplicates, mail addresses
    /// and the like masked.
    pub fn web() -> Settings {
        let rules = ["gopher", "repetition", "fineweb", "code"];
        Settings {
            rules: rules.map(String::from).to_vec(),
            personal: Personal::Mask,
            near: Near { bands: 16, ..Near::default() },
            boilerplate_documents: 20,
            ..Settings::default()
        }
    }

    /// What is wrong with them, if anything.
    ///
    /// # Errors
    /// The name of the setting and what it may be.
    pub fn check(&self) -> Result<(), String> {
        let near = &self.near;
        let share = |name: &str, x: f64| match (0.0..=1.0).contains(&x) {
            true => Ok(()),
            false => Err(format!("{name} = {x}: a share from 0 to 1")),
        };
        share("heldout", self.heldout)?;
        share("language_confidence", self.language_confidence)?;
        share("classifier_least", self.classifier_least)?;
        if near.bands > 0 && (near.rows == 0 || near.bands * near.rows > 1024 || near.words == 0) {
            return Err("near: bands × rows from 1 to 1024, words from 1".into());
        }
        if !matches!(self.examples.len(), 0 | 2) {
            return Err("examples: two files, of what is good and of what is bad".into());
        }
        if self.limits.document_bytes < 1 << 10 {
            return Err("limits.document_bytes: at least 1024".into());
        }
        #[cfg(not(feature = "parquet"))]
        if self.output == Output::Parquet {
            return Err(crate::NO_PARQUET.into());
        }
        if self.evaluation_words == 0 {
            return Err("evaluation_words: at least 1".into());
        }
        if self.repeated_words > 0 && self.repeated_bytes < 1 << 16 {
            return Err("repeated_bytes: at least 65536".into());
        }
        Ok(())
    }
}
