//! The microworld as text in a run directory.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use compute::Pool;
use data::jsonl::Conversation;
use data::microworld::{Question, Stream, Talk, World};
use eval::overlap::Finder;
use eval::run::{Kind, Overlap};
use serde_json::json;

use crate::failure::Failure;
use crate::prepare::{Documents, add, shown, write_corpus};
use crate::progress::{Progress, count};
use crate::recipe::Recipe;
use crate::stage::{Facts, Run};
use crate::tokenize::corpus_kind;

/// Texts that are made at a time.
const CHUNK: u64 = 4096;
/// Words of the n-grams that questions and training text are compared by.
const OVERLAP_WORDS: usize = 6;

/// The world of a recipe.
///
/// # Errors
/// Sizes that don't fit together.
pub fn world(recipe: &Recipe) -> Result<World, Failure> {
    Ok(World::new(&recipe.world, recipe.seed)?)
}

/// Writes `data/` from the microworld of the recipe.
///
/// # Errors
/// What can't be written.
pub fn prepare(run: &Run, recipe: &Recipe, pool: &Pool) -> Result<Facts, Failure> {
    let world = world(recipe)?;
    let questions = world.questions(recipe.eval.questions);
    let c = &recipe.corpus;
    let all = c.documents + c.heldout + c.conversations + c.finetune;
    let mut maker = Maker {
        run,
        pool,
        finders: finders(&questions),
        progress: Progress::start("prepare", all),
        done: 0,
    };
    let mut kinds = BTreeMap::<String, Kind>::new();
    let document = |stream| {
        let world = &world;
        move |i| {
            let document = world.document(stream, i);
            (document.kind.clone(), document.text.clone(), document)
        }
    };
    let talk = |stream| {
        let world = &world;
        move |i| {
            let talk = world.talk(stream, i);
            (corpus_kind(&talk.kind), text_of(&talk), talk)
        }
    };
    maker.write(
        "data/documents.jsonl",
        c.documents,
        true,
        document(Stream::Pretrain),
        &mut kinds,
    )?;
    maker.write(
        "data/conversations.jsonl",
        c.conversations,
        true,
        talk(Stream::Pretrain),
        &mut kinds,
    )?;
    maker.write("data/finetune.jsonl", c.finetune, true, talk(Stream::FineTune), &mut kinds)?;
    let mut held = BTreeMap::new();
    maker.write("data/heldout.jsonl", c.heldout, false, document(Stream::Heldout), &mut held)?;
    write_questions(run, &questions)?;

    let heldout = Kind {
        kind: "held-out documents".into(),
        documents: held.values().map(|k| k.documents).sum(),
        bytes: held.values().map(|k| k.bytes).sum(),
        sample: held.values().next().map(|k| k.sample.clone()).unwrap_or_default(),
        ..Kind::default()
    };
    let overlap: Vec<Overlap> = maker.finders.iter().map(|(task, f)| f.result(task)).collect();
    let bytes: u64 = kinds.values().map(|k| k.bytes).sum();
    let texts: u64 = kinds.values().map(|k| k.documents).sum();
    let facts = json!({
        "texts": texts,
        "bytes": bytes,
        "heldout_bytes": heldout.bytes,
        "questions": questions.len(),
        "people": world.people().len(),
    });
    let people = world.people().len();
    maker.progress.finish(&format!(
        "{} texts of {people} people, {} bytes; {} questions",
        count(texts),
        count(bytes),
        questions.len()
    ));
    write_corpus(run, kinds.into_values().collect(), heldout, overlap, Vec::new())?;
    Ok(facts.as_object().cloned().unwrap_or_default())
}

/// Makes texts in parallel and writes them in order.
struct Maker<'a> {
    run: &'a Run,
    pool: &'a Pool,
    finders: Vec<(String, Finder)>,
    progress: Progress,
    done: u64,
}

impl Maker<'_> {
    /// Writes texts `0..n` of `make`, which gives kind, text and line. `search`: whether
    /// questions are looked for in them.
    fn write<T: serde::Serialize + Send + Sync>(
        &mut self,
        name: &str,
        n: u64,
        search: bool,
        make: impl Fn(u64) -> (String, String, T) + Sync,
        kinds: &mut BTreeMap<String, Kind>,
    ) -> Result<(), Failure> {
        if n == 0 {
            return Ok(());
        }
        let mut file = Documents::create(&self.run.path(name), name)?;
        for start in (0..n).step_by(CHUNK as usize) {
            let count = CHUNK.min(n - start) as usize;
            let made: Vec<Mutex<Option<(String, String, T)>>> =
                (0..count).map(|_| Mutex::new(None)).collect();
            self.pool.run(count, |i| {
                let text = make(start + i as u64);
                *made[i].lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
            });
            let made: Vec<(String, String, T)> = made
                .into_iter()
                .filter_map(|m| m.into_inner().unwrap_or_else(PoisonError::into_inner))
                .collect();
            if search {
                let finders: Vec<Mutex<&mut Finder>> =
                    self.finders.iter_mut().map(|(_, f)| Mutex::new(f)).collect();
                self.pool.run(finders.len(), |i| {
                    let mut finder = finders[i].lock().unwrap_or_else(PoisonError::into_inner);
                    made.iter().for_each(|(_, text, _)| finder.read(text));
                });
            }
            for (kind, text, line) in &made {
                file.push(line, text)?;
                let entry = kinds
                    .entry(kind.clone())
                    .or_insert_with(|| Kind { kind: kind.clone(), ..Kind::default() });
                add(entry, text);
            }
            self.done += count as u64;
            self.progress.set(self.done, name);
        }
        file.finish().map(drop)
    }
}

/// A conversation for people to read.
fn text_of(talk: &Talk) -> String {
    shown(&Conversation { messages: talk.messages.clone(), tools: None })
}

/// What looks for the questions of each task in training text.
fn finders(questions: &[Question]) -> Vec<(String, Finder)> {
    let mut tasks: Vec<_> = questions.iter().map(|q| q.task).collect();
    tasks.dedup();
    let finder = |task| {
        let of = questions.iter().filter(|q| q.task == task);
        let texts = of.filter_map(|q| q.messages.last()).map(|m| m.content.as_str());
        Finder::new(texts, OVERLAP_WORDS)
    };
    tasks.into_iter().map(|task| (task.name().to_string(), finder(task))).collect()
}

/// Writes the questions, for people to read: evaluation makes them anew.
fn write_questions(run: &Run, questions: &[Question]) -> Result<(), Failure> {
    let mut writer = data::jsonl::Writer::create(&run.path("data/questions.jsonl"))?;
    for q in questions {
        writer.push(&json!({
            "task": q.task.name(),
            "messages": q.messages,
            "few_shot": q.few_shot,
            "expected": q.expected,
            "chance": q.chance,
        }))?;
    }
    Ok(writer.finish()?)
}
