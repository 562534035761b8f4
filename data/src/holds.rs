//! Which documents hold these words? A pass over JSONL files for many phrases at once: an
//! automaton over the words of each text (see [`crate::words`]), blocks of lines on all threads.
//! Memory is that of a few blocks, however large the files are.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use aho_corasick::AhoCorasick;
use compute::Pool;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use store::StoreError;
use thiserror::Error;

use crate::jsonl::{JsonlError, LINE_BYTES, without_line};
use crate::words;

/// Text that is looked through at a time by one thread.
const BLOCK_BYTES: usize = 4 << 20;
/// Most text of all phrases together: their automaton takes some hundred times that.
const PHRASE_BYTES: usize = 1 << 20;
/// Text that is shown on each side of what was found.
const AROUND_BYTES: usize = 80;

/// Why phrases can't be looked for.
#[derive(Debug, Error)]
pub enum PhraseError {
    /// Nothing is left of it.
    #[error("{0:?} has no words (runs of letters and digits)")]
    NoWords(String),
    /// More than the automaton has room for.
    #[error("the phrases have {0} bytes in all; up to {PHRASE_BYTES} can be looked for at once")]
    Many(usize),
    /// What the automaton's builder says.
    #[error("the phrases can't be looked for at once: {0}")]
    Automaton(#[from] aho_corasick::BuildError),
}

/// Phrases to look for.
pub struct Phrases {
    /// Each with a space or the start of a text before it and a space after it.
    automaton: AhoCorasick,
    /// Words of each.
    lengths: Vec<usize>,
}

/// How often one phrase was found in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Count {
    /// Documents that hold it.
    pub documents: u64,
    /// How often they do.
    pub times: u64,
}

/// A document that holds a phrase, shown where it first does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Hit {
    /// Which phrase, counted from 0.
    pub phrase: usize,
    /// The line of the file, counted from 1.
    pub line: u64,
    /// What kind of document it is, if that is told.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// Where it is from, if that is told.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub source: String,
    /// Text before it.
    pub before: String,
    /// The words as they stand there.
    pub found: String,
    /// Text after it.
    pub after: String,
}

/// What was found in a file.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Found {
    /// Lines that were looked through.
    pub documents: u64,
    /// Size of the file.
    pub bytes: u64,
    /// By phrase; those that were not found are not there.
    pub counts: BTreeMap<usize, Count>,
    /// The first documents that hold one.
    pub hits: Vec<Hit>,
}

/// What was found in a block, or the line of it that is none, and why.
type InBlock = Result<Found, (u64, String)>;

/// A document, a conversation or a question: whatever of these a line has.
#[derive(Deserialize)]
struct Line<'a> {
    #[serde(default, borrow)]
    text: Cow<'a, str>,
    #[serde(default, borrow)]
    kind: Cow<'a, str>,
    #[serde(default, borrow)]
    source: Cow<'a, str>,
    #[serde(default, borrow)]
    task: Cow<'a, str>,
    #[serde(default)]
    messages: Vec<Said>,
    tools: Option<Value>,
    #[serde(default, borrow)]
    few_shot: Cow<'a, str>,
    expected: Option<Value>,
}

#[derive(Deserialize)]
struct Said {
    content: Option<Value>,
    tool_calls: Option<Value>,
}

impl Line<'_> {
    /// All its texts. No phrase goes from one into the next.
    fn texts(&self) -> impl Iterator<Item = Cow<'_, str>> {
        let plain = [&self.text, &self.few_shot].map(|t| Cow::Borrowed(t.as_ref()));
        let said = self.messages.iter().flat_map(|m| [&m.content, &m.tool_calls]);
        let values = said.chain([&self.tools, &self.expected]).flatten().map(|value| match value {
            Value::String(text) => Cow::Borrowed(text.as_str()),
            other => Cow::Owned(other.to_string()),
        });
        plain.into_iter().chain(values).filter(|text| !text.is_empty())
    }
}

impl Phrases {
    /// Prepares to look for phrases.
    ///
    /// # Errors
    /// One without words; too many.
    pub fn new<T: AsRef<str>>(phrases: &[T]) -> Result<Phrases, PhraseError> {
        let bytes = phrases.iter().map(|p| p.as_ref().len()).sum();
        if bytes > PHRASE_BYTES {
            return Err(PhraseError::Many(bytes));
        }
        let mut patterns = Vec::new();
        for phrase in phrases {
            let words = words::words(phrase.as_ref());
            if words.is_empty() {
                return Err(PhraseError::NoWords(phrase.as_ref().to_string()));
            }
            patterns.push(format!(" {words}"));
        }
        let lengths = patterns.iter().map(|p| p.matches(' ').count() - 1).collect();
        Ok(Phrases { automaton: AhoCorasick::new(&patterns)?, lengths })
    }

    /// Words of each phrase.
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// Looks through a JSONL file. At most `limit` hits are kept, the first ones.
    ///
    /// # Errors
    /// What can't be read, with its line.
    pub fn search(&self, path: &Path, pool: &Pool, limit: usize) -> Result<Found, JsonlError> {
        let mut blocks = Blocks::open(path)?;
        let mut found = Found::default();
        loop {
            let mut round = Vec::new();
            while round.len() < pool.threads()
                && let Some(block) = blocks.next(found.documents)?
            {
                found.bytes += block.len() as u64;
                round.push(block);
            }
            if round.is_empty() {
                return Ok(found);
            }
            let results: Vec<Mutex<Option<InBlock>>> =
                round.iter().map(|_| Mutex::new(None)).collect();
            pool.run(round.len(), |i| {
                let result = self.block(&round[i], limit);
                *results[i].lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
            });
            for result in results {
                let result = result.into_inner().unwrap_or_else(PoisonError::into_inner);
                let Some(result) = result else { continue };
                let part = result.map_err(|(line, reason)| JsonlError::Line {
                    path: path.to_path_buf(),
                    line: found.documents + line,
                    reason,
                })?;
                let hits = part.hits.into_iter().take(limit - found.hits.len());
                let first = found.documents;
                found.hits.extend(hits.map(|hit| Hit { line: first + hit.line, ..hit }));
                found.documents += part.documents;
                for (phrase, count) in part.counts {
                    let sum = found.counts.entry(phrase).or_default();
                    sum.documents += count.documents;
                    sum.times += count.times;
                }
            }
        }
    }

    /// Looks through whole lines, counted from 1.
    fn block(&self, block: &[u8], limit: usize) -> InBlock {
        let mut found = Found::default();
        let mut folded = String::new();
        for bytes in block.split_inclusive(|b| *b == b'\n') {
            found.documents += 1;
            if bytes.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let number = found.documents;
            let line: Line<'_> =
                serde_json::from_slice(bytes).map_err(|e| (number, without_line(&e)))?;
            let mut here = BTreeMap::<usize, u64>::new();
            for text in line.texts() {
                let text = words::compose(&text);
                folded.clear();
                folded.push(' ');
                words::fold(&text, &mut folded, |_| {});
                for hit in self.automaton.find_overlapping_iter(&folded) {
                    let phrase = hit.pattern().as_usize();
                    let times = here.entry(phrase).or_default();
                    *times += 1;
                    if *times == 1 && found.hits.len() < limit {
                        let place = self.place(&text, &folded[..hit.start()], phrase);
                        let kind = if line.kind.is_empty() { &line.task } else { &line.kind };
                        let (before, inside, after) = around(&text, place);
                        found.hits.push(Hit {
                            phrase,
                            line: number,
                            kind: kind.to_string(),
                            source: line.source.to_string(),
                            before,
                            found: inside,
                            after,
                        });
                    }
                }
            }
            for (phrase, times) in here {
                let count = found.counts.entry(phrase).or_default();
                count.documents += 1;
                count.times += times;
            }
        }
        Ok(found)
    }

    /// Where a phrase stands in a text, whose words up to it are given.
    fn place(&self, text: &str, before: &str, phrase: usize) -> Range<usize> {
        // The space before the first word ends none.
        let first = before.matches(' ').count();
        let mut starts = Vec::new();
        words::fold(text, &mut String::new(), |at| starts.push(at));
        let start = starts.get(first).copied().unwrap_or(0);
        let end = starts.get(first + self.lengths[phrase]).copied().unwrap_or(text.len());
        let inside = &text[start..end];
        start..start + inside.trim_end_matches(|c: char| !c.is_alphanumeric()).len()
    }
}

/// What stands before, in and after a place, on one line.
fn around(text: &str, place: Range<usize>) -> (String, String, String) {
    let from = text.ceil_char_boundary(place.start.saturating_sub(AROUND_BYTES));
    let to = text.floor_char_boundary((place.end + AROUND_BYTES).min(text.len()));
    let plain = |text: &str| -> String {
        let visible = |c: char| if c.is_control() || c.is_whitespace() { ' ' } else { c };
        text.chars().map(visible).collect()
    };
    let cut = |cut: bool| if cut { "…" } else { "" };
    let before = format!("{}{}", cut(from > 0), plain(&text[from..place.start]));
    let after = format!("{}{}", plain(&text[place.end..to]), cut(to < text.len()));
    (before, plain(&text[place.clone()]), after)
}

/// A file as blocks of whole lines.
struct Blocks<'a> {
    path: &'a Path,
    file: File,
    /// The start of a line whose end is not read yet.
    rest: Vec<u8>,
    ended: bool,
}

impl Blocks<'_> {
    fn open(path: &Path) -> Result<Blocks<'_>, StoreError> {
        let file = File::open(path).map_err(StoreError::io("read", path))?;
        Ok(Blocks { path, file, rest: Vec::new(), ended: false })
    }

    /// The next lines, of about [`BLOCK_BYTES`]. `lines`: how many were read before, about.
    fn next(&mut self, lines: u64) -> Result<Option<Vec<u8>>, JsonlError> {
        let mut block = std::mem::take(&mut self.rest);
        while !self.ended {
            let old = block.len();
            let read = self.file.by_ref().take(BLOCK_BYTES as u64).read_to_end(&mut block);
            self.ended = read.map_err(StoreError::io("read", self.path))? == 0;
            if let Some(end) = block[old..].iter().rposition(|b| *b == b'\n') {
                self.rest = block.split_off(old + end + 1);
                break;
            }
            if block.len() as u64 > LINE_BYTES {
                return Err(JsonlError::Line {
                    path: self.path.to_path_buf(),
                    line: lines + 1,
                    reason: format!("there is a line of more than {LINE_BYTES} bytes from here on"),
                });
            }
        }
        Ok(if block.is_empty() { None } else { Some(block) })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn search(lines: &[Value], phrases: &[&str], limit: usize) -> Found {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lines.jsonl");
        let text: String = lines.iter().map(|l| format!("{l}\n")).collect();
        std::fs::write(&path, text).unwrap();
        Phrases::new(phrases).unwrap().search(&path, &Pool::new(2), limit).unwrap()
    }

    #[test]
    fn texts_of_all_kinds_of_lines() {
        let lines = [
            json!({"kind": "notes", "text": "The cat, the\nCAT!", "source": "a/b.txt"}),
            json!({"messages": [{"role": "user", "content": "See the"},
                {"role": "assistant", "content": null, "tool_calls": [
                    {"function": {"name": "find", "arguments": {"what": "Cat"}}}]}]}),
            json!({"task": "known", "messages": [], "expected": "It's the  cat"}),
        ];
        let found = search(&lines, &["the cat", "Find!", "its the", "dog"], 9);
        assert_eq!((found.documents, found.counts.len()), (3, 3));
        let count = |p| found.counts[&p];
        assert_eq!(count(0), Count { documents: 2, times: 3 });
        assert_eq!(count(1), Count { documents: 1, times: 1 });
        let hit = &found.hits[0];
        assert_eq!((hit.line, &*hit.kind, &*hit.source), (1, "notes", "a/b.txt"));
        assert_eq!((&*hit.before, &*hit.found, &*hit.after), ("", "The cat", ", the CAT!"));
        assert_eq!((&*found.hits[2].kind, &*found.hits[2].found), ("known", "It's the"));
        assert_eq!(search(&lines, &["the cat"], 1).hits, found.hits[..1]);
    }

    #[test]
    fn what_can_not_be_looked_for() {
        let why = |p: &[&str]| Phrases::new(p).err().unwrap().to_string();
        assert!(why(&["a", "-- !"]).contains("has no words"));
        assert!(why(&[&"word ".repeat(1 << 20)]).contains("bytes in all"));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("broken.jsonl");
        std::fs::write(&path, "{\"text\": \"a\"}\n\n{\"text\": 5}\n").unwrap();
        let error = Phrases::new(&["a"]).unwrap().search(&path, &Pool::new(1), 5).unwrap_err();
        assert!(error.to_string().contains("broken.jsonl, line 3: invalid type"), "{error}");
    }

    #[test]
    fn lines_are_counted_across_blocks() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("large.jsonl");
        let filler = "a b c ".repeat(1000);
        let line = |i: u64| format!("{}\n", json!({"text": format!("{filler} number {i}.")}));
        let text: String = (1..=3000).map(line).collect();
        assert!(text.len() > 4 * BLOCK_BYTES);
        std::fs::write(&path, text.trim_end()).unwrap();
        let phrases = Phrases::new(&["c number 1", "number 3000", "number 2500"]).unwrap();
        let found = phrases.search(&path, &Pool::new(2), 10).unwrap();
        let lines: Vec<u64> = found.hits.iter().map(|h| h.line).collect();
        assert_eq!((lines, found.documents), (vec![1, 2500, 3000], 3000));
        assert!(found.hits[2].before.starts_with('…') && found.hits[2].after == ".");
    }

    proptest! {
        /// The same as to compare the words of each text at each place.
        #[test]
        fn as_a_plain_search(
            texts in prop::collection::vec("[abAB][abAB ,.'é]{0,30}", 1..8),
            phrases in prop::collection::vec("[abAB]{1,2}( [ab]{1,2}){0,3}", 1..6),
        ) {
            let lines: Vec<Value> = texts.iter().map(|t| json!({"text": t})).collect();
            let phrases: Vec<&str> = phrases.iter().map(String::as_str).collect();
            let found = search(&lines, &phrases, usize::MAX);
            let plain = |text: &str| -> Vec<String> {
                let text = text.replace('\'', "").to_lowercase();
                let words = text.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty());
                words.map(String::from).collect()
            };
            let mut hits = 0;
            for (i, phrase) in phrases.iter().enumerate() {
                let (wanted, mut count) = (plain(phrase), Count::default());
                for text in &texts {
                    let words = plain(text);
                    let times = words.windows(wanted.len()).filter(|w| *w == wanted).count() as u64;
                    count.times += times;
                    count.documents += u64::from(times > 0);
                }
                hits += count.documents;
                prop_assert_eq!(found.counts.get(&i).copied().unwrap_or_default(), count);
            }
            prop_assert_eq!(found.hits.len() as u64, hits);
            for hit in &found.hits {
                prop_assert_eq!(plain(&hit.found), plain(phrases[hit.phrase]));
                let whole = format!("{}{}{}", hit.before, hit.found, hit.after);
                prop_assert_eq!(&whole, &texts[hit.line as usize - 1]);
            }
        }
    }
}
