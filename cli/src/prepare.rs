//! The stage prepare: text of one's own, or a microworld, to documents, held-out documents and
//! conversations in the run directory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use compute::Pool;
use data::jsonl::{self, Conversation, Writer};
use data::text::{self, Skip};
use eval::run::{Corpus, Kind};
use serde_json::json;
use store::Hash;

use crate::failure::Failure;
use crate::progress::{Progress, count};
use crate::recipe::Recipe;
use crate::stage::{Facts, Run, clear};

/// What names of inputs begin with that lie outside of the run: no output of a stage is named so.
pub const DOCS: &str = "--docs ";
/// The same, of conversations.
pub const CHATS: &str = "--chats ";
/// Bytes of a kind's sample in the report.
const SAMPLE_BYTES: usize = 600;
/// Skipped files that are listed on the screen; all of them are in `data/skipped.json`.
const LISTED: usize = 10;

/// Where the text comes from.
pub enum Source {
    /// Files of one's own.
    Own(Box<text::Corpus>),
    /// The microworld of the recipe.
    World,
}

impl Source {
    /// Looks at the text of one's own, if there is any, or takes the microworld.
    ///
    /// # Errors
    /// Paths that can't be read or hold no text.
    pub fn of(recipe: &Recipe) -> Result<Source, Failure> {
        if !recipe.own_text() {
            return Ok(Source::World);
        }
        let paths: Vec<PathBuf> = recipe.data.docs.iter().map(PathBuf::from).collect();
        Ok(Source::Own(Box::new(text::Corpus::survey(&paths, recipe.data.heldout)?)))
    }

    /// What the stage depends on outside the run directory.
    ///
    /// # Errors
    /// Files that can't be read.
    pub fn inputs(&self, recipe: &Recipe) -> Result<BTreeMap<String, Hash>, Failure> {
        let mut inputs = BTreeMap::new();
        if let Source::Own(corpus) = self {
            inputs.insert(format!("{DOCS}{}", recipe.data.docs.join(", ")), corpus.hash());
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
    clear(&run.path("data"))?;
    let mut facts = match source {
        Source::Own(corpus) => own_text(run, recipe, corpus)?,
        Source::World => crate::world::prepare(run, recipe, pool)?,
    };
    let corpus: Corpus = store::read_json(&run.path("data/corpus.json"))?;
    let size = |k: &Kind| json!({"documents": k.documents, "bytes": k.bytes});
    facts.insert("kinds".into(), corpus.kinds.iter().map(|k| (&k.kind, size(k))).collect());
    Ok(facts)
}

/// Documents of a corpus, some of them held out, and conversations.
fn own_text(run: &Run, recipe: &Recipe, corpus: &text::Corpus) -> Result<Facts, Failure> {
    let mut progress = Progress::start("prepare", 0);
    let mut train = Documents::create(&run.path("data/documents.jsonl"), "documents")?;
    let mut heldout = Documents::create(&run.path("data/heldout.jsonl"), "held-out documents")?;
    corpus.documents(|document, held| -> Result<(), Failure> {
        let to = if held { &mut heldout } else { &mut train };
        to.push(&document, &document.text)?;
        progress.set(0, &format!("{} bytes of text", count(train.kind.bytes + heldout.kind.bytes)));
        Ok(())
    })?;
    let mut kinds = vec![train.finish()?];
    let held = heldout.finish()?;
    skips(run, &corpus.skipped, &progress)?;
    if !recipe.data.chats.is_empty() {
        kinds.push(conversations(run, &recipe.data.chats)?);
    }
    let facts = json!({
        "documents": kinds[0].documents,
        "bytes": kinds[0].bytes,
        "heldout": corpus.heldout,
        "heldout_bytes": held.bytes,
        "skipped_files": corpus.skipped.len(),
    });
    progress.finish(&format!(
        "{} documents, {} bytes; held out: {}",
        kinds[0].documents,
        count(kinds[0].bytes),
        corpus.heldout
    ));
    write_corpus(run, kinds, held, Vec::new())?;
    Ok(facts.as_object().cloned().unwrap_or_default())
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
) -> Result<(), Failure> {
    let schema_version = eval::run::SCHEMA_VERSION;
    let corpus = Corpus { schema_version, kinds, heldout: Some(heldout), overlap };
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

/// Copies conversations into the run directory, each checked.
fn conversations(run: &Run, chats: &[String]) -> Result<Kind, Failure> {
    let mut out = Documents::create(&run.path("data/conversations.jsonl"), "conversations")?;
    for path in chats {
        for talk in jsonl::read::<Conversation>(Path::new(path))? {
            let talk = talk?;
            out.push(&talk, &shown(&talk))?;
        }
    }
    let kind = out.finish()?;
    if kind.documents == 0 {
        return Err(Failure::invalid(format!(
            "there are no conversations in {}",
            chats.join(", ")
        ))
        .hint(r#"Each line is one: {"messages": [{"role": "user", "content": "…"}, …]}"#));
    }
    Ok(kind)
}

/// Tells which files were skipped.
fn skips(run: &Run, skipped: &[Skip], progress: &Progress) -> Result<(), Failure> {
    for Skip { path, reason } in skipped.iter().take(LISTED) {
        progress.line(&format!("   skipped {}: {reason}", path.display()));
    }
    if skipped.len() > LISTED {
        let file = run.path("data/skipped.json");
        let n = skipped.len();
        progress.line(&format!("   skipped {n} files in all, listed in {}", file.display()));
    }
    Ok(store::write_json(&run.path("data/skipped.json"), &skipped)?)
}
