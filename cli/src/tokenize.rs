//! The stage tokenize: a tokenizer learned from the training text, and the text as token shards.

use std::collections::BTreeMap;
use std::path::Path;

use compute::Pool;
use data::encode::{self, END_OF_TEXT, END_OF_TURN, SPECIAL};
use data::jsonl::{self, Conversation, JsonlError};
use data::shards::{ShardWriter, Totals};
use eval::run::Tokens;
use model::directory::TokenizerConfig;
use model::template::{CHATML, ChatTemplate};
use model::tokenizer::{Tokenizer, TrainOptions};
use serde::Deserialize;
use serde_json::json;

use crate::failure::Failure;
use crate::grow::base::Base;
use crate::progress::{Progress, count};
use crate::recipe::Recipe;
use crate::stage::{Facts, Run, clear};

/// Text that is encoded at a time.
const CHUNK_BYTES: usize = 8 << 20;
/// Skipped conversations that are listed.
const LISTED: u64 = 20;

/// A line of a file of documents.
#[derive(Debug, Deserialize)]
pub struct Line {
    /// The text.
    pub text: String,
    /// What kind of document it is, in a microworld.
    #[serde(default)]
    pub kind: String,
    /// The file it is from, where it is one's own.
    #[serde(default)]
    pub source: String,
}

/// A line of a file of conversations.
#[derive(Debug, Deserialize)]
struct TalkLine {
    #[serde(default)]
    kind: String,
    #[serde(flatten)]
    talk: Conversation,
}

/// The kind of conversations in `corpus.json`.
pub fn corpus_kind(kind: &str) -> String {
    if kind.is_empty() { "conversations".into() } else { format!("conversations: {kind}") }
}

/// Learns the tokenizer, or takes that of the base, and writes `tokenizer/` and `shards/`.
///
/// # Errors
/// What can't be read, learned or written.
pub fn tokenize(
    run: &Run,
    recipe: &Recipe,
    base: Option<&Base>,
    pool: &Pool,
) -> Result<Facts, Failure> {
    let (documents, heldout) = (run.path("data/documents.jsonl"), run.path("data/heldout.jsonl"));
    let talks: Vec<&str> = ["conversations", "finetune", "heldout-conversations"]
        .into_iter()
        .filter(|name| run.path(&format!("data/{name}.jsonl")).exists())
        .collect();
    clear(&run.path("tokenizer"))?;
    clear(&run.path("shards"))?;
    let tokenizer = match base {
        Some(base) => Tokenizer::from_json(&base.tokenizer)?,
        None => learn(run, recipe, pool)?,
    };
    let json = tokenizer.to_json();
    store::write_atomic(&run.path("tokenizer/tokenizer.json"), json.as_bytes())?;
    if base.is_none() {
        let settings = settings(recipe, !talks.is_empty());
        store::write_json(&run.path("tokenizer/tokenizer_config.json"), &settings)?;
    }
    let hash = store::hash_bytes(json.as_bytes());
    let (ends, template) = match base {
        Some(base) => (base.ends, base.chat_template(&tokenizer)?),
        None => {
            let end = end_of_text(&tokenizer)?;
            let template = ChatTemplate::new(CHATML, encode::special_tokens(&tokenizer))?;
            ([end; 2], Some(template))
        }
    };

    let writer = |name: &str| {
        let path = run.path(&format!("shards/{name}"));
        ShardWriter::create(&path, hash, tokenizer.vocab_size() as u32)
    };
    let encoder = Encoder { tokenizer: &tokenizer, pool, ends };
    let mut kinds = BTreeMap::new();
    let mut facts = json!({});
    let mut held = Totals::default();
    if documents.exists() {
        let sets = recipe.document_sets();
        let mut writers = sets.iter().map(|s| writer(&s.0)).collect::<Result<Vec<_>, _>>()?;
        let set = |line: &Line| match &sets[..] {
            [_] => 0,
            _ => root(&recipe.data.docs, &line.source),
        };
        encoder.documents(&documents, Most::default(), &mut writers, &mut kinds, &set)?;
        for (i, (writer, (name, _))) in writers.into_iter().zip(&sets).enumerate() {
            let nothing = || {
                Failure::invalid(format!("no document of {} is left to learn", recipe.data.docs[i]))
                    .hint("Take it out of data.docs and its weight out of mixture.documents.")
            };
            let empty = sets.len() > 1 && writer.is_empty();
            facts[name] = of(if empty { return Err(nothing()) } else { writer.finish()? });
        }
        let only = |name: &str, most: Most| -> Result<Totals, Failure> {
            let mut writers = [writer(name)?];
            encoder.documents(&heldout, most, &mut writers, &mut BTreeMap::new(), &|_| 0)?;
            let [writer] = writers;
            Ok(writer.finish()?)
        };
        held = only("heldout", Most::default())?;
        // Of many documents, lest a long one be all that is measured.
        let all = recipe.eval.validation_bytes;
        only("validation", Most { all, each: all / held.documents.clamp(1, 32) })?;
        facts["heldout"] = of(held);
    }
    for name in talks {
        let no_template = || {
            Failure::invalid("the base has no chat template, so it can't learn conversations")
                .hint("Take one that has, or give it one: --set data.template=chatml, or a file.")
        };
        let template = template.as_ref().ok_or_else(no_template)?;
        let (path, set) = (run.path(&format!("data/{name}.jsonl")), writer(name)?);
        let context = recipe.model.context;
        let list = run.path(&format!("shards/{name}-skipped.jsonl"));
        // What is held out is not learned from.
        let mut apart = BTreeMap::new();
        let kinds = if name == "heldout-conversations" { &mut apart } else { &mut kinds };
        let (totals, skipped) =
            encoder.conversations(&path, template, set, context, &list, kinds)?;
        facts[name] = of(totals);
        facts[name]["skipped"] = skipped.into();
    }
    facts["tokens"] = kinds.values().sum::<u64>().into();
    let schema_version = eval::run::SCHEMA_VERSION;
    let tokens = Tokens { schema_version, kinds, heldout: held.tokens };
    store::write_json(&run.path("shards/tokens.json"), &tokens)?;
    facts["vocab_size"] = tokenizer.vocab_size().into();
    Ok(facts.as_object().cloned().unwrap_or_default())
}

/// Which of the paths that were given a document is from: the longest that its source begins with.
fn root(paths: &[String], source: &str) -> usize {
    let inside = |path: &str| {
        let rest = source.strip_prefix(path.trim_end_matches('/'));
        rest.is_some_and(|r| r.is_empty() || r.starts_with(['/', '!', '#']))
    };
    let found = (0..paths.len()).filter(|i| inside(&paths[*i])).max_by_key(|i| paths[*i].len());
    found.unwrap_or(0)
}

/// Totals as facts.
fn of(totals: Totals) -> serde_json::Value {
    json!({
        "documents": totals.documents,
        "tokens": totals.tokens,
        "learned": totals.learned,
        "text_bytes": totals.text_bytes,
    })
}

/// `tokenizer_config.json`. Without conversations it is that of a base model.
pub fn settings(recipe: &Recipe, chat: bool) -> TokenizerConfig {
    TokenizerConfig {
        tokenizer_class: Some("Qwen2Tokenizer".into()),
        chat_template: chat.then(|| CHATML.to_string()),
        bos_token: Some(END_OF_TEXT.into()),
        eos_token: Some(if chat { END_OF_TURN } else { END_OF_TEXT }.to_string()),
        add_bos_token: true,
        model_max_length: Some(recipe.model.context as u64),
    }
}

/// The id of the token that ends a text.
///
/// # Errors
/// If the tokenizer has none.
pub fn end_of_text(tokenizer: &Tokenizer) -> Result<u32, Failure> {
    let missing = || Failure::invalid(format!("the tokenizer has no token {END_OF_TEXT}"));
    tokenizer.special_id(END_OF_TEXT).ok_or_else(missing)
}

/// Learns merges from all training text: documents, and what is said in conversations.
fn learn(run: &Run, recipe: &Recipe, pool: &Pool) -> Result<Tokenizer, Failure> {
    let documents = run.path("data/documents.jsonl");
    let mut failure = None;
    let mut texts: Box<dyn Iterator<Item = Result<String, JsonlError>>> =
        Box::new(jsonl::read::<Line>(&documents)?.map(|line| Ok(line?.text)));
    for name in ["conversations", "finetune"] {
        let conversations = run.path(&format!("data/{name}.jsonl"));
        if !conversations.exists() {
            continue;
        }
        // What is rendered around the messages is the same everywhere: its words get tokens as well.
        let options = TrainOptions { special_tokens: special(), ..TrainOptions::default() };
        let bare = Tokenizer::train(
            [""; 0],
            &TrainOptions { vocab_size: 256 + SPECIAL.len(), ..options },
            &mut |_| {},
        )?;
        let template = ChatTemplate::new(CHATML, encode::special_tokens(&bare))?;
        let rendered = jsonl::read::<Conversation>(&conversations)?.flat_map(move |talk| {
            let talk = match talk {
                Ok(talk) => talk,
                Err(e) => return vec![Err(e)],
            };
            // One that can't be rendered is skipped, and listed, when it is encoded.
            let rendered = template.render(&talk.messages, talk.tools.as_ref(), false);
            let pieces = rendered.map(|r| r.pieces).unwrap_or_default();
            let text = |(piece, _)| match piece {
                model::template::Piece::Text(text) => Some(Ok(text)),
                model::template::Piece::Special(..) => None,
            };
            pieces.into_iter().filter_map(text).collect()
        });
        texts = Box::new(texts.chain(rendered));
    }
    let texts = texts.map_while(|text| match text {
        Ok(text) => Some(text),
        Err(e) => {
            failure = Some(e);
            None
        }
    });
    let options = TrainOptions {
        vocab_size: recipe.tokenizer.vocab_size,
        special_tokens: special(),
        threads: pool.threads(),
        ..TrainOptions::default()
    };
    let tokenizer = train_shown(texts, &options);
    match failure {
        Some(e) => Err(e.into()),
        None => tokenizer,
    }
}

/// The special tokens of tokenizers that are trained here.
pub fn special() -> Vec<String> {
    SPECIAL.map(String::from).to_vec()
}

/// Trains a tokenizer and shows how far it is.
///
/// # Errors
/// See [`Tokenizer::train`].
pub fn train_shown<T: AsRef<str>>(
    texts: impl IntoIterator<Item = T>,
    options: &TrainOptions,
) -> Result<Tokenizer, Failure> {
    use model::tokenizer::Progress as Step;
    let mut progress = Progress::start("tokenizer", options.vocab_size as u64);
    let tokenizer = Tokenizer::train(texts, options, &mut |step| match step {
        Step::Counting { bytes, .. } => progress.set(0, &format!("{} bytes read", count(bytes))),
        Step::Merging { tokens, .. } => progress.set(tokens as u64, &format!("{tokens} tokens")),
    })?;
    progress.finish(&format!("{} tokens", tokenizer.vocab_size()));
    Ok(tokenizer)
}

/// The most bytes of text that are taken.
#[derive(Clone, Copy)]
struct Most {
    all: u64,
    /// Of a document.
    each: u64,
}

impl Default for Most {
    fn default() -> Most {
        Most { all: u64::MAX, each: u64::MAX }
    }
}

/// Text to shards.
struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    pool: &'a Pool,
    /// Before and after a document.
    ends: [u32; 2],
}

impl Encoder<'_> {
    /// Encodes a file of documents, of each and of all at most so much.
    /// Adds up tokens by kind. `set`: which writer a line is for.
    fn documents(
        &self,
        path: &Path,
        most: Most,
        writers: &mut [ShardWriter],
        kinds: &mut BTreeMap<String, u64>,
        set: &dyn Fn(&Line) -> usize,
    ) -> Result<(), Failure> {
        let mut lines = jsonl::read::<Line>(path)?;
        let mut left = most.all;
        let mut chunk: Vec<Line> = Vec::new();
        loop {
            let (mut bytes, mut done) = (0, false);
            while bytes < CHUNK_BYTES && !done {
                match lines.next().transpose()? {
                    Some(mut line) if left > 0 => {
                        let most = left.min(most.each).min(usize::MAX as u64) as usize;
                        let end = line.text.floor_char_boundary(most);
                        line.text.truncate(end);
                        bytes += end;
                        left -= end as u64;
                        // Not even one character had room.
                        done = end == 0;
                        if !done {
                            chunk.push(line);
                        }
                    }
                    _ => done = true,
                }
            }
            let texts: Vec<&str> = chunk.iter().map(|line| line.text.as_str()).collect();
            let ids = self.tokenizer.encode_batch(self.pool, &texts);
            for (line, ids) in chunk.iter().zip(ids) {
                let [start, end] = self.ends;
                let mut tokens = vec![start];
                tokens.extend(ids);
                tokens.push(end);
                let kind = if line.kind.is_empty() { "documents" } else { &line.kind };
                *kinds.entry(kind.to_string()).or_default() += tokens.len() as u64;
                writers[set(line)].push(&tokens, None, line.text.len() as u64)?;
            }
            chunk.clear();
            if done {
                return Ok(());
            }
        }
    }

    /// Bytes of text that a token stands for.
    fn bytes(&self, id: u32) -> usize {
        let text =
            if self.tokenizer.is_special(id) { None } else { self.tokenizer.token_bytes(id) };
        text.map_or(0, <[u8]>::len)
    }

    /// Encodes conversations; those that don't fit the context or can't be rendered are skipped,
    /// and listed in `list`. Returns also how many were.
    fn conversations(
        &self,
        path: &Path,
        template: &ChatTemplate,
        mut writer: ShardWriter,
        context: usize,
        list: &Path,
        kinds: &mut BTreeMap<String, u64>,
    ) -> Result<(Totals, u64), Failure> {
        let mut listed = jsonl::Writer::create(list)?;
        let (mut skipped, mut kept) = (0u64, 0);
        for (i, talk) in jsonl::read::<TalkLine>(path)?.enumerate() {
            let TalkLine { kind, talk } = talk?;
            let reason = match encode::conversation(self.tokenizer, template, &talk) {
                Err(e) => e.to_string(),
                Ok((tokens, _)) if tokens.len() > context + 1 => {
                    format!("{} tokens don't fit the context of {context}", tokens.len())
                }
                Ok((_, learned)) if !learned.iter().skip(1).any(|l| *l) => {
                    "the assistant says nothing in it".to_string()
                }
                Ok((tokens, learned)) => {
                    let said = tokens.iter().zip(&learned).filter(|(_, learned)| **learned);
                    let bytes: usize = said.map(|(id, _)| self.bytes(*id)).sum();
                    writer.push(&tokens, Some(&learned), bytes as u64)?;
                    *kinds.entry(corpus_kind(&kind)).or_default() += tokens.len() as u64;
                    kept += 1;
                    continue;
                }
            };
            skipped += 1;
            listed.push(&json!({"conversation": i + 1, "reason": reason}))?;
            if skipped <= LISTED {
                eprintln!("   skipped conversation {}: {reason}", i + 1);
            }
        }
        listed.finish()?;
        if skipped > LISTED {
            eprintln!("   skipped {skipped} conversations in all, listed in {}", list.display());
        }
        if kept == 0 {
            let why =
                format!("none of the conversations in {} can be learned from", path.display());
            return Err(Failure::invalid(why)
                .hint("The reasons stand above. Longer ones need a larger model.context."));
        }
        Ok((writer.finish()?, skipped))
    }
}
