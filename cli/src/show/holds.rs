//! `homegrown show RUN --holds WORDS`: which texts hold a phrase, and whether texts that should be
//! new to the model do as well.

use std::collections::BTreeMap;
use std::path::Path;

use compute::Pool;
use data::holds::{Count, Found, Phrases};
use serde_json::{Value, json};

use crate::common::{Common, harmless, say};
use crate::failure::Failure;

/// The files of texts, and what they are to the model.
const FILES: [(&str, Role); 5] = [
    ("data/documents.jsonl", Role::Training),
    ("data/conversations.jsonl", Role::Training),
    ("data/finetune.jsonl", Role::Training),
    ("data/heldout.jsonl", Role::HeldOut),
    ("data/questions.jsonl", Role::Questions),
];
/// How phrases and texts are compared.
const RULE: &str = "words in order, whole; case, punctuation and white space make no difference";

/// What a text is to the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Role {
    Training,
    HeldOut,
    Questions,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Role::Training => "training texts",
            Role::HeldOut => "held-out texts",
            Role::Questions => "evaluation questions",
        }
    }

    fn key(self) -> &'static str {
        match self {
            Role::Training => "training",
            Role::HeldOut => "heldout",
            Role::Questions => "questions",
        }
    }
}

/// Looks for a phrase, or for those in a file, and prints where they are.
///
/// # Errors
/// Phrases without words; texts that can't be read; a run that has none.
pub fn holds(run: &Path, words: &str, limit: usize, common: &Common) -> Result<Value, Failure> {
    let asked = match words.strip_prefix('@') {
        Some(file) => {
            let text = store::read_text(Path::new(file))?;
            let lines = text.lines().filter(|l| !l.trim().is_empty());
            let lines: Vec<String> = lines.map(String::from).collect();
            if lines.is_empty() {
                return Err(Failure::invalid(format!(
                    "{file} has no phrases: all lines are empty"
                )));
            }
            lines
        }
        None => vec![words.to_string()],
    };
    let phrases = Phrases::new(&asked)
        .map_err(|e| Failure::invalid(format!("--holds: {e}")).hint("Look for some words."))?;
    let pool = Pool::new(common.threads());
    let mut searched: Vec<(&str, Role, Found)> = Vec::new();
    let mut left = limit;
    for (name, role) in FILES {
        let path = run.join(name);
        if path.exists() {
            let found = phrases.search(&path, &pool, left)?;
            left -= found.hits.len();
            searched.push((name, role, found));
        }
    }
    if searched.is_empty() {
        return Err(Failure::invalid(format!("{} has no texts in data/", run.display()))
            .hint("The stage prepare writes them."));
    }
    let results: Vec<BTreeMap<Role, Count>> =
        (0..asked.len()).map(|phrase| counts(&searched, phrase)).collect();
    if !common.json {
        print(&asked, &searched, &results, limit);
    }
    Ok(report(run, &asked, phrases.lengths(), &searched, &results, limit))
}

/// How often a phrase was found in texts of each role.
fn counts(searched: &[(&str, Role, Found)], phrase: usize) -> BTreeMap<Role, Count> {
    let mut counts = BTreeMap::<Role, Count>::new();
    for (_, role, found) in searched {
        let sum = counts.entry(*role).or_default();
        let count = found.counts.get(&phrase).copied().unwrap_or_default();
        sum.documents += count.documents;
        sum.times += count.times;
    }
    counts
}

/// Whether a phrase of the training text stands in a text that should be new to the model.
fn contaminated(counts: &BTreeMap<Role, Count>) -> bool {
    let holds = |role| counts.get(&role).is_some_and(|c| c.documents > 0);
    holds(Role::Training) && (holds(Role::HeldOut) || holds(Role::Questions))
}

fn print(
    asked: &[String],
    searched: &[(&str, Role, Found)],
    results: &[BTreeMap<Role, Count>],
    limit: usize,
) {
    let files: Vec<String> =
        searched.iter().map(|(name, _, f)| format!("{name} ({})", f.documents)).collect();
    say(&format!("searched {}\ncompared {RULE}", files.join(", ")));
    let all = |role| {
        let of = searched.iter().filter(|(_, r, _)| *r == role);
        of.map(|(_, _, f)| f.documents).sum::<u64>()
    };
    for (phrase, counts) in asked.iter().zip(results) {
        let count = |(role, c): (&Role, &Count)| {
            let times =
                if c.times > c.documents { format!(", {} times", c.times) } else { String::new() };
            format!("{} of {} {}{times}", c.documents, all(*role), role.name())
        };
        let counts: Vec<String> = counts.iter().map(count).collect();
        say(&format!("\n{phrase:?}\n  {}", counts.join("; ")));
    }
    let dirty = results.iter().filter(|r| contaminated(r)).count();
    if dirty > 0 {
        let which = if asked.len() == 1 { "it".into() } else { format!("{dirty} of them") };
        say(&format!(
            "\nContamination: {which} stands in training text and in text that scores are taken on."
        ));
    }
    let mut shown = 0;
    for (name, _, found) in searched {
        for hit in &found.hits {
            let from: Vec<&str> =
                [hit.kind.as_str(), &hit.source].into_iter().filter(|t| !t.is_empty()).collect();
            let from =
                if from.is_empty() { String::new() } else { format!("  ({})", from.join(", ")) };
            say(&harmless(&format!("\n{name}:{}{from}", hit.line)));
            say(&format!("  {}»{}«{}", hit.before, hit.found, hit.after));
            shown += 1;
        }
    }
    let found: u64 = results.iter().flat_map(|r| r.values()).map(|c| c.documents).sum();
    if found > shown {
        say(&format!("\nThese are the first {limit} of {found}; --limit shows more."));
    }
}

fn report(
    run: &Path,
    asked: &[String],
    lengths: &[usize],
    searched: &[(&str, Role, Found)],
    results: &[BTreeMap<Role, Count>],
    limit: usize,
) -> Value {
    let files: Vec<Value> = (searched.iter())
        .map(|(name, role, f)| {
            json!({"file": name, "role": role.key(), "documents": f.documents, "bytes": f.bytes})
        })
        .collect();
    let phrases: Vec<Value> = (asked.iter().zip(lengths).zip(results))
        .map(|((phrase, words), counts)| {
            let mut value =
                json!({"phrase": phrase, "words": words, "contaminated": contaminated(counts)});
            for (role, count) in counts {
                value[role.key()] = json!(count);
            }
            value
        })
        .collect();
    let mut hits = Vec::new();
    for (name, _, found) in searched {
        for hit in &found.hits {
            let mut value = json!(hit);
            value["file"] = json!(name);
            value["phrase"] = json!(asked[hit.phrase]);
            hits.push(value);
        }
    }
    json!({
        "run": run,
        "compared": RULE,
        "searched": files,
        "phrases": phrases,
        "hits": hits,
        "limit": limit,
    })
}
