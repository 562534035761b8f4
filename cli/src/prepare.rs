//! The stage prepare: text of one's own, or a microworld, to documents, held-out documents and
//! conversations in the run directory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use compute::Pool;
use compute::rng::Rng;
use data::jsonl::{self, Conversation, Writer};
use documents::files::Files;
use documents::{Document, Skip};
use eval::run::{Corpus, Kind};
use model::message::Role;
use serde_json::json;
use store::Hash;

use crate::failure::Failure;
use crate::recipe::Recipe;
use crate::stage::{Facts, Run, clear};

/// What names of inputs begin with that lie outside of the run: no output of a stage is named so.
pub const DOCS: &str = "--docs ";
/// The same, of the model that is gone on from.
pub const BASE: &str = "--base ";
/// The same, of conversations.
pub const CHATS: &str = "--chats ";
/// The same, of the settings of cleaning.
pub const CLEAN: &str = "data.clean ";
/// Bytes of a kind's sample in the report.
const SAMPLE_BYTES: usize = 600;
/// What a file of conversations looks like.
const FORM: &str = r#"Each line is one: {"messages": [{"role": "user", "content": "…"}, …]}"#;
/// Skipped files that are listed on the screen; all of them are in `data/skipped.jsonl`.
const LISTED: usize = 10;

/// Where the text comes from.
pub enum Source {
    /// Files of one's own.
    Own(Files),
    /// The microworld of the recipe.
    World,
}

impl Source {
    /// Looks for files of one's own, if there shall be any, or takes the microworld.
    ///
    /// # Errors
    /// Paths that can't be read.
    pub fn of(recipe: &Recipe) -> Result<Source, Failure> {
        if !recipe.own_text() {
            return Ok(Source::World);
        }
        match paths(recipe) {
            none if none.is_empty() => Ok(Source::Own(Files::default())),
            paths => Ok(Source::Own(Files::below(&paths)?)),
        }
    }

    /// What the stage depends on outside the run directory.
    ///
    /// # Errors
    /// Files that can't be read.
    pub fn inputs(&self, recipe: &Recipe) -> Result<BTreeMap<String, Hash>, Failure> {
        let mut inputs = BTreeMap::new();
        if let Source::Own(files) = self {
            let mut all = store::hash::Hasher::default();
            for (path, _) in &files.files {
                // One that can't be read is skipped, and listed, when its turn comes.
                let hash = store::hash_file(path).map_or("unreadable".into(), |h| h.to_string());
                all.update(format!("{hash}  {}\n", path.display()).as_bytes());
            }
            if !files.files.is_empty() {
                inputs.insert(format!("{DOCS}{}", recipe.data.docs.join(", ")), all.finish());
            }
            if Path::new(&recipe.data.clean).is_file() {
                let clean = &recipe.data.clean;
                inputs.insert(format!("{CLEAN}{clean}"), store::hash_file(Path::new(clean))?);
            }
        }
        for chats in &recipe.data.chats {
            inputs.insert(format!("{CHATS}{chats}"), store::hash_file(Path::new(chats))?);
        }
        Ok(inputs)
    }
}

/// Writes `data/`.
///
/// # Errors
/// What can't be read or written; conversations that aren't any.
pub fn prepare(run: &Run, recipe: &Recipe, source: &Source, pool: &Pool) -> Result<Facts, Failure> {
    let mut facts = match source {
        Source::Own(_) => {
            let before = source.inputs(recipe)?;
            let facts = own_text(run, recipe, pool.threads())?;
            let after = Source::of(recipe)?.inputs(recipe)?;
            if let Some(name) = before.keys().find(|name| before.get(*name) != after.get(*name)) {
                return Err(Failure::invalid(format!("{name} changed while it was read"))
                    .hint("Run it again when nobody writes there."));
            }
            facts
        }
        Source::World => {
            clear(&run.path("data"))?;
            crate::world::prepare(run, recipe, pool)?
        }
    };
    let corpus: Corpus = store::read_json(&run.path("data/corpus.json"))?;
    let size = |k: &Kind| json!({"documents": k.documents, "bytes": k.bytes});
    facts.insert("kinds".into(), corpus.kinds.iter().map(|k| (&k.kind, size(k))).collect());
    Ok(facts)
}

fn paths(recipe: &Recipe) -> Vec<PathBuf> {
    recipe.data.docs.iter().map(PathBuf::from).collect()
}

/// Documents of one's own, some of them held out, and conversations.
fn own_text(run: &Run, recipe: &Recipe, threads: usize) -> Result<Facts, Failure> {
    if recipe.data.docs.is_empty() {
        return only_conversations(run, recipe);
    }
    let mut settings = crate::corpus::settings(&recipe.data.clean, &[])?;
    settings.heldout = recipe.data.heldout;
    settings.output = documents::output::Output::Jsonl;
    let out = run.path("data");
    // Parts that a killed run has made are used.
    for name in ["documents", "heldout", "conversations", "heldout-conversations"] {
        clear(&out.join(format!("{name}.jsonl")))?;
    }
    let stats = crate::corpus::run("prepare", &paths(recipe), &settings, &out, threads)?;
    documents::prepare::remove_parts(&out)?;
    skips(&stats.skips, &out.join("skipped.jsonl"));
    let kind = |name: &str, file: &str, n: documents::parts::Count| -> Result<Kind, Failure> {
        let first = jsonl::read::<Document>(&out.join(file))?.next().transpose()?;
        let mut kind = Kind { kind: name.to_string(), ..Kind::default() };
        first.iter().for_each(|d| add(&mut kind, &d.text));
        (kind.documents, kind.bytes) = (n.documents, n.bytes);
        Ok(kind)
    };
    let mut kinds = vec![kind("documents", "documents.jsonl", stats.train)?];
    let held = kind("held-out documents", "heldout.jsonl", stats.heldout)?;
    if !recipe.data.chats.is_empty() {
        kinds.push(conversations(run, recipe)?.0);
    }
    let dropped: u64 = stats.dropped.values().map(|d| d.count.documents).sum();
    let facts = json!({
        "documents": kinds[0].documents,
        "bytes": kinds[0].bytes,
        "heldout": stats.heldout_how,
        "heldout_bytes": held.bytes,
        "dropped_documents": dropped,
        "skipped_files": stats.skips.len(),
    });
    write_corpus(run, kinds, held, Vec::new(), notes(&stats))?;
    Ok(facts.as_object().cloned().unwrap_or_default())
}

/// Conversations without documents, some of them held out.
fn only_conversations(run: &Run, recipe: &Recipe) -> Result<Facts, Failure> {
    clear(&run.path("data"))?;
    let (kind, held) = conversations(run, recipe)?;
    let facts =
        json!({"conversations": kind.documents, "bytes": kind.bytes, "heldout_bytes": held.bytes});
    write_corpus(run, vec![kind], held, Vec::new(), Vec::new())?;
    Ok(facts.as_object().cloned().unwrap_or_default())
}

/// What was read, dropped and skipped, for the report.
fn notes(stats: &documents::prepare::Stats) -> Vec<String> {
    let list = |all: Vec<String>| if all.is_empty() { "nothing".into() } else { all.join(", ") };
    let formats = stats.formats.iter().map(|(name, n)| format!("{} {name}", n.documents));
    let dropped = stats.dropped.iter().map(|(rule, d)| format!("{} by {rule}", d.count.documents));
    let mut notes = vec![
        format!("read: {}", list(formats.collect())),
        format!("dropped: {}", list(dropped.collect())),
        format!("skipped: {}", stats.skips.len()),
    ];
    let first = stats.skips.iter().take(LISTED);
    notes.extend(first.map(|skip| format!("  {}: {}", skip.source, skip.reason)));
    if stats.skips.len() > LISTED {
        notes.push("  … all of them are in data/skipped.jsonl".into());
    }
    notes
}

/// Writes `data/corpus.json`, which the report shows.
///
/// # Errors
/// What can't be written.
pub fn write_corpus(
    run: &Run,
    kinds: Vec<Kind>,
    heldout: Kind,
    overlap: Vec<eval::run::Overlap>,
    notes: Vec<String>,
) -> Result<(), Failure> {
    let schema_version = eval::run::SCHEMA_VERSION;
    let corpus = Corpus { schema_version, kinds, heldout: Some(heldout), overlap, notes };
    Ok(store::write_json(&run.path("data/corpus.json"), &corpus)?)
}

/// A file of documents of one kind, in the making.
pub struct Documents {
    writer: Writer,
    kind: Kind,
}

impl Documents {
    /// Starts a file.
    ///
    /// # Errors
    /// What can't be written.
    pub fn create(path: &Path, kind: &str) -> Result<Documents, Failure> {
        let kind = Kind { kind: kind.to_string(), ..Kind::default() };
        Ok(Documents { writer: Writer::create(path)?, kind })
    }

    /// Adds a line, of this text.
    ///
    /// # Errors
    /// What can't be written.
    pub fn push<T: serde::Serialize>(&mut self, line: &T, text: &str) -> Result<(), Failure> {
        self.writer.push(line)?;
        add(&mut self.kind, text);
        Ok(())
    }

    /// Ends the file.
    ///
    /// # Errors
    /// What can't be written.
    pub fn finish(self) -> Result<Kind, Failure> {
        self.writer.finish()?;
        Ok(self.kind)
    }
}

/// Counts a text to a kind; the first is its sample.
pub fn add(kind: &mut Kind, text: &str) {
    kind.documents += 1;
    kind.bytes += text.len() as u64;
    if kind.sample.is_empty() {
        kind.sample = text[..text.floor_char_boundary(SAMPLE_BYTES)].to_string();
    }
}

/// A conversation for people to read.
pub fn shown(talk: &Conversation) -> String {
    let line = |m: &model::message::Message| {
        let calls: Vec<String> =
            m.tool_calls.iter().map(|c| format!("{}({})", c.name, c.arguments)).collect();
        format!("{}: {}{}", m.role.as_str(), m.content, calls.join(" "))
    };
    talk.messages.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Copies conversations into the run directory, each checked. With a base, some are held out: which, follows from
/// what is said in them.
fn conversations(run: &Run, recipe: &Recipe) -> Result<(Kind, Kind), Failure> {
    let chats = &recipe.data.chats;
    let mut out = Documents::create(&run.path("data/conversations.jsonl"), "conversations")?;
    let path = run.path("data/heldout-conversations.jsonl");
    let mut held = Documents::create(&path, "held-out conversations")?;
    let share = if recipe.base.is_empty() { 0.0 } else { recipe.data.heldout };
    for path in chats {
        for talk in jsonl::read::<Conversation>(Path::new(path))? {
            let talk = talk.map_err(|e| Failure { hint: Some(FORM.into()), ..e.into() })?;
            let text = shown(&talk);
            // By what is asked, so that one question with two answers is on one side.
            let first = talk.messages.iter().find(|m| m.role == Role::User);
            let key = first.map_or(text.as_bytes(), |m| m.content.as_bytes());
            let at = Rng::new(recipe.seed).stream(&store::hash_bytes(key).to_string()).f64();
            let out = if at < share { &mut held } else { &mut out };
            out.push(&talk, &text)?;
        }
    }
    let (kind, held) = (out.finish()?, held.finish()?);
    if held.documents == 0 {
        clear(&path)?;
    }
    if kind.documents == 0 {
        return Err(Failure::invalid(format!(
            "there are no conversations in {}",
            chats.join(", ")
        ))
        .hint(FORM));
    }
    Ok((kind, held))
}

/// Tells which files were skipped; `list` has all of them.
pub fn skips(skipped: &[Skip], list: &Path) {
    for Skip { source, reason } in skipped.iter().take(LISTED) {
        eprintln!("   skipped {source}: {reason}");
    }
    if skipped.len() > LISTED {
        eprintln!("   skipped {} in all, listed in {}", skipped.len(), list.display());
    }
}
