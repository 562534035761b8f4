//! One document through all steps that look at it alone, with the reason if it is dropped.

mod classifier;
pub mod measure;
pub mod personal;
pub mod rules;

use std::collections::HashSet;
use std::path::Path;

use serde::Serialize;
use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};

use crate::clean::measure::{Measures, Scratch};
use crate::clean::personal::Personal;
use crate::clean::rules::{Check, Rules};
use crate::settings::Settings;
use crate::words::{self, hash_small, runs, tokens};
use crate::{Document, Format, PrepareError};

/// Text that the language is told from, bytes.
const LANGUAGE_BYTES: usize = 512;

/// Why a document was dropped.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Drop {
    /// The rule's name.
    pub rule: String,
    /// What it saw.
    pub detail: String,
}

/// What each step said of a document.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The language of its text and how sure that is, of 1.
    pub language: Option<(String, f64)>,
    /// All rules that were asked.
    pub checks: Vec<Check>,
    /// Kinds of personal data and how often.
    pub personal: Vec<(String, usize)>,
    /// The probability that the classifier gives it.
    pub probability: Option<f64>,
}

/// The steps, with all that they need in memory.
pub struct Cleaner {
    settings: Settings,
    rules: Rules,
    hosts: HashSet<String>,
    words: HashSet<u64>,
    /// Runs of words of evaluations.
    evaluation: HashSet<u64>,
    classifier: Option<classifier::Classifier>,
}

impl Cleaner {
    /// Reads the lists that settings name.
    ///
    /// # Errors
    /// [`PrepareError`] for settings that make no sense and files that can't be read.
    pub fn new(settings: &Settings) -> Result<Cleaner, PrepareError> {
        settings.check().map_err(PrepareError::Setting)?;
        let rules = Rules::new(&settings.rules, &settings.bounds).map_err(PrepareError::Setting)?;
        let list = |path: &Option<std::path::PathBuf>| -> Result<Vec<String>, PrepareError> {
            let Some(path) = path else { return Ok(Vec::new()) };
            let lines = store::read_text(path)?;
            let lines =
                lines.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
            Ok(lines.map(str::to_lowercase).collect())
        };
        let mut evaluation = HashSet::new();
        for path in &settings.evaluation {
            for text in texts(path, settings)? {
                let words: Vec<u64> = hashes(&text);
                // A short one counts whole, if it is more than a phrase.
                let n = settings.evaluation_words.min(words.len());
                if n * 2 >= settings.evaluation_words {
                    evaluation.extend(runs(&words, n));
                }
            }
        }
        let classifier = match settings.examples.as_slice() {
            [good, bad] => {
                Some(classifier::Classifier::learn(&texts(good, settings)?, &texts(bad, settings)?))
            }
            _ => None,
        };
        Ok(Cleaner {
            rules,
            hosts: list(&settings.blocked_hosts)?.into_iter().collect(),
            words: list(&settings.blocked_words)?
                .iter()
                .map(|w| words::hash(w.as_bytes()))
                .collect(),
            evaluation,
            classifier,
            settings: settings.clone(),
        })
    }

    /// Cleans a document, or says why it is dropped.
    pub fn clean(&self, document: &mut Document, scratch: &mut Scratch) -> Option<Drop> {
        self.run(document, scratch, None)
    }

    /// Cleans a document and tells what each step says, also after one has dropped it.
    pub fn report(&self, document: &mut Document) -> (Report, Option<Drop>) {
        let mut report =
            Report { language: None, checks: Vec::new(), personal: Vec::new(), probability: None };
        let drop = self.run(document, &mut Scratch::default(), Some(&mut report));
        (report, drop)
    }

    /// All steps, the cheap ones first; without a report, up to the first that drops.
    fn run(
        &self,
        document: &mut Document,
        scratch: &mut Scratch,
        mut report: Option<&mut Report>,
    ) -> Option<Drop> {
        let told = report.is_some();
        let mut drop: Option<Drop> = None;
        let mut dropped = |rule: &str, detail: String| {
            drop.get_or_insert_with(|| Drop { rule: rule.to_string(), detail });
            // Whether to stop here.
            !told
        };
        if self.settings.normalise {
            normalise(&mut document.text);
        }
        if let Some(host) = self.blocked_host(document)
            && dropped("blocked_hosts", host)
        {
            return drop;
        }
        if !self.rules.is_empty() {
            let mut measures = Measures::of(&document.text, scratch);
            for runs in [false, true] {
                if runs {
                    measures.runs(scratch);
                }
                for check in self.rules.checks(document.format, &measures, runs) {
                    let detail = || format!("{:.4}, {} {}", check.value, check.side, check.bound);
                    if !check.passed && dropped(check.rule, detail()) {
                        return drop;
                    }
                    if let Some(report) = &mut report {
                        report.checks.push(check);
                    }
                }
            }
        }
        if document.format != Format::Code {
            let language = language(&document.text);
            if let Some((language, _)) = &language
                && document.about.language.is_none()
            {
                document.about.language = Some(language.clone());
            }
            let wanted = &self.settings.languages;
            let (name, sure) = language.clone().unwrap_or(("unknown".into(), 0.0));
            let kept = wanted.is_empty()
                || wanted.contains(&name) && sure >= self.settings.language_confidence;
            if !kept && dropped("language", format!("{name}, {sure:.2} sure")) {
                return drop;
            }
            if let Some(report) = &mut report {
                report.language = language;
            }
        }
        if !self.words.is_empty() || !self.evaluation.is_empty() {
            if let Some(word) = self.blocked_word(&document.text)
                && dropped("blocked_words", word)
            {
                return drop;
            }
            if self.quotes_evaluation(&document.text)
                && dropped("evaluation", "it quotes an evaluation text".into())
            {
                return drop;
            }
        }
        if let Some(classifier) = &self.classifier {
            let probability = classifier.probability(&document.text);
            let detail = format!("{probability:.4}, least {}", self.settings.classifier_least);
            if probability < self.settings.classifier_least && dropped("classifier", detail) {
                return drop;
            }
            if let Some(report) = &mut report {
                report.probability = Some(probability);
            }
        }
        if self.settings.personal != Personal::Keep || told {
            let finds = personal::find(&document.text);
            if let Some(report) = &mut report {
                for (_, what) in &finds {
                    match report.personal.iter_mut().find(|(w, _)| w == what) {
                        Some((_, n)) => *n += 1,
                        None => report.personal.push((what.to_string(), 1)),
                    }
                }
            }
            match (finds.first(), self.settings.personal) {
                (Some((_, what)), Personal::Drop) => {
                    dropped("personal", format!("{what}, {} in all", finds.len()));
                }
                (Some(_), Personal::Mask) => {
                    document.text = personal::mask(&document.text, &finds);
                }
                _ => {}
            }
        }
        drop
    }

    /// The blocked host that a document is from.
    fn blocked_host(&self, document: &Document) -> Option<String> {
        if self.hosts.is_empty() {
            return None;
        }
        let url = document.about.url.as_deref()?;
        let host = url.split("://").nth(1)?.split(['/', '?', '#']).next()?;
        let host = host.rsplit('@').next()?.split(':').next()?.to_lowercase();
        // Of a.b.c also b.c and c.
        let ends = host.match_indices('.').map(|(i, _)| &host[i + 1..]);
        let blocked = std::iter::once(host.as_str()).chain(ends).find(|h| self.hosts.contains(*h));
        blocked.map(str::to_string)
    }

    fn blocked_word(&self, text: &str) -> Option<String> {
        if self.words.is_empty() {
            return None;
        }
        let mut words = tokens(text).filter(|t| t.word);
        words.find(|t| self.words.contains(&hash_small(t.text))).map(|t| t.text.to_string())
    }

    fn quotes_evaluation(&self, text: &str) -> bool {
        if self.evaluation.is_empty() {
            return false;
        }
        let words = hashes(text);
        let n = self.settings.evaluation_words;
        (n.div_ceil(2)..=n).any(|n| runs(&words, n).any(|run| self.evaluation.contains(&run)))
    }
}

/// Hashes of the words of a text, in small letters and without signs.
pub fn hashes(text: &str) -> Vec<u64> {
    tokens(text).filter(|t| t.word).map(|t| hash_small(t.text)).collect()
}

/// The texts of a file of any format.
fn texts(path: &Path, settings: &Settings) -> Result<Vec<String>, PrepareError> {
    std::fs::metadata(path).map_err(store::StoreError::io("read", path))?;
    let (mut texts, mut why) = (Vec::new(), None);
    crate::read::read_file(path, settings, &mut |item| {
        let parsed = match item {
            crate::read::Item::Skip(skip) => vec![Err(skip)],
            crate::read::Item::Piece(piece) => crate::parse::parse(piece, settings),
        };
        for one in parsed {
            match one {
                Ok(document) => texts.push(document.text),
                Err(skip) => why = Some(skip.reason),
            }
        }
        true
    });
    match (texts.is_empty(), why) {
        (true, why) => Err(PrepareError::Setting(format!(
            "there are no texts in {}: {}",
            path.display(),
            why.unwrap_or_default()
        ))),
        _ => Ok(texts),
    }
}

/// Unicode to its composed form (NFC), line ends to `\n`, other control characters away.
pub fn normalise(text: &mut String) {
    if text.bytes().any(|b| matches!(b, 0..=8 | 11..=31 | 127)) {
        let unix = text.replace("\r\n", "\n").replace(['\r', '\u{c}'], "\n");
        *text = unix.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect();
    }
    if text.is_ascii() {
        return;
    }
    if text.contains(['\u{85}', '\u{2028}', '\u{feff}', '\u{200b}']) {
        *text = text.replace(['\u{85}', '\u{2028}'], "\n").replace(['\u{feff}', '\u{200b}'], "");
    }
    if is_nfc_quick(text.chars()) != IsNormalized::Yes {
        *text = text.nfc().collect();
    }
}

/// The language of a text, by the trigrams of its middle.
fn language(text: &str) -> Option<(String, f64)> {
    let from = text.floor_char_boundary(text.len().saturating_sub(LANGUAGE_BYTES) / 2);
    let to = text.floor_char_boundary(from + LANGUAGE_BYTES);
    let found = whatlang::detect(&text[from..to.max(from)])?;
    Some((found.lang().code().to_string(), found.confidence()))
}
