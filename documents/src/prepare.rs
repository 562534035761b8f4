//! Files to clean, distinct documents: `documents.jsonl` and `heldout.jsonl` (or `.parquet`), and why
//! the others are not among them.
//!
//! 1. Files become parts ([`crate::parts`]): read, cleaned, signed. Parts that are there stay.
//! 2. What is known of each document decides which stay.
//! 3. Parts are copied in order; lines and passages that are everywhere are cut.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use store::{AtomicFile, StoreError};

use crate::files::Files;
use crate::output::Sink;
use crate::parts::{Cost, Count, Dropped, Part, Paths, Verdict, Work, groups};
use crate::repeated::Repeated;
use crate::select::{Fate, Selection};
use crate::settings::Settings;
use crate::words::{hash, mix, tokens};
use crate::{Document, PrepareError, Skip};

/// The version of the form of [`Stats`].
pub const SCHEMA_VERSION: u32 = 1;
/// Counters of lines, and the longest line that is counted.
const LINE_COUNTERS: usize = 1 << 22;
const LINE_BYTES: usize = 300;
/// A document of which something was cut is dropped if fewer words are left.
const LEFT_WORDS: usize = 20;
/// Samples of what stays.
const SAMPLES: u64 = 5;

/// What went in and came out: `stats.json`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Stats {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// Files, and their bytes on disk.
    pub files: Count,
    /// Documents that were read.
    pub read: Count,
    /// Documents that are trained on.
    pub train: Count,
    /// Documents that are held out.
    pub heldout: Count,
    /// How they were chosen, in words.
    pub heldout_how: String,
    /// By format, of those that were read.
    pub formats: BTreeMap<String, Count>,
    /// By language, of those that passed the rules.
    pub languages: BTreeMap<String, Count>,
    /// By the file's folder or the page's host, of those that stay.
    pub sources: BTreeMap<String, Count>,
    /// By bytes, of those that stay: up to 2^key.
    pub lengths: BTreeMap<u32, Count>,
    /// By rule.
    pub dropped: BTreeMap<String, Dropped>,
    /// Bytes of boilerplate lines and repeated passages that were cut.
    pub cut: BTreeMap<String, u64>,
    /// Bytes that readers of pages don't see; they were left out.
    pub hidden_bytes: u64,
    /// Files and parts of files that could not be read, by reason.
    pub skipped: BTreeMap<String, u64>,
    /// The beginnings of some documents that stay.
    pub samples: Vec<Document>,
    /// All settings.
    pub settings: Settings,
    /// What it cost. Not in the file, which is the same each time.
    #[serde(skip)]
    pub cost: Costs,
    /// All that could not be read; in the file `skipped.jsonl`.
    #[serde(skip)]
    pub skips: Vec<Skip>,
}

/// What it took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Costs {
    /// Seconds of threads, in the first pass.
    pub threads: Cost,
    /// The first pass.
    pub parts: Span,
    /// The second.
    pub select: Span,
    /// The third.
    pub write: Span,
}

/// What a pass took, seconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Span {
    /// By the clock.
    pub clock: f64,
    /// Of all cores: user and system time of the process.
    pub cpu: f64,
}

/// A span that has begun.
struct Watch(Instant, f64);

impl Watch {
    fn start() -> Watch {
        Watch(Instant::now(), Watch::cpu())
    }

    fn stop(self) -> Span {
        Span { clock: self.0.elapsed().as_secs_f64(), cpu: Watch::cpu() - self.1 }
    }

    fn cpu() -> f64 {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
    }
}

/// Where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Bytes of files that were read.
    Read,
    /// Documents that were compared.
    Compare,
    /// Bytes of text that were written.
    Write,
}

/// Folders and files of sources that are told apart.
const SOURCES: usize = 1000;

/// Does it. `told` hears the step, how much is done and of how much; `false` stops it.
///
/// # Errors
/// Paths that can't be read or hold no text; what can't be written; being stopped.
pub fn prepare(
    paths: &[PathBuf],
    settings: &Settings,
    out: &Path,
    threads: usize,
    told: &mut dyn FnMut(Step, u64, u64) -> bool,
) -> Result<Stats, PrepareError> {
    let work = Work::new(settings)?;
    let files = Files::below(paths)?;
    let (total, parts) = (files.bytes(), Paths::new(out));
    let groups = groups(&files.files);
    let mut stats = Stats { schema_version: SCHEMA_VERSION, ..Stats::default() };
    stats.settings = settings.clone();
    stats.files = Count { documents: files.files.len() as u64, bytes: total };
    let watch = Watch::start();
    let (mut all, mut done) = (Part::default(), 0);
    all.skipped = files.skipped;
    for (number, files) in groups.iter().enumerate() {
        let mut told = |bytes: u64| {
            done += bytes;
            told(Step::Read, done, total)
        };
        all.merge(&work.part(&parts, number, files, threads, &mut told)?);
    }
    parts.clear_from(groups.len())?;
    stats.cost.parts = watch.stop();
    stats.cost.threads = all.cost;
    if all.kept.documents == 0 {
        return Err(empty(paths, &all));
    }

    let watch = Watch::start();
    told(Step::Compare, 0, all.kept.documents);
    let selection = Selection::new(&parts, groups.len(), settings)?;
    stats.cost.select = watch.stop();

    let watch = Watch::start();
    let lines = match settings.boilerplate_documents {
        0 => None,
        least => Some(Boilerplate::count(&parts, groups.len(), &selection, least)?),
    };
    let repeated = (settings.repeated_words > 0)
        .then(|| Repeated::new(settings.repeated_words, settings.repeated_bytes));
    stats.formats = std::mem::take(&mut all.formats);
    stats.languages = std::mem::take(&mut all.languages);
    stats.dropped = std::mem::take(&mut all.dropped);
    stats.read = all.read;
    stats.hidden_bytes = all.hidden_bytes;
    stats.heldout_how = selection.heldout.clone();
    let mut writer = Writer::create(out, selection, lines, repeated, stats)?;
    let mut written = 0;
    for part in 0..groups.len() {
        writer.verdicts(&parts.of(part, "dropped.jsonl"))?;
        each_line(&parts.of(part, "jsonl"), |line| {
            written += line.len() as u64;
            if writer.seen.is_multiple_of(1024) && !told(Step::Write, written, all.kept.bytes) {
                return Err(PrepareError::Stopped);
            }
            writer.line(line)
        })?;
    }
    let mut skips = AtomicFile::create(&out.join("skipped.jsonl"))?;
    for skip in &all.skipped {
        *writer.stats.skipped.entry(reason_kind(&skip.reason)).or_default() += 1;
        write_line(&mut skips, skip)?;
    }
    skips.commit()?;
    let mut stats = writer.finish()?;
    stats.skips = all.skipped;
    stats.cost.write = watch.stop();
    store::write_json(&out.join("stats.json"), &stats)?;
    Ok(stats)
}

/// Removes what only a later run with more files would need.
///
/// # Errors
/// [`StoreError`].
pub fn remove_parts(out: &Path) -> Result<(), StoreError> {
    Paths::new(out).clear_from(0)?;
    let _ = std::fs::remove_dir(out.join("parts"));
    Ok(())
}

fn empty(paths: &[PathBuf], all: &Part) -> PrepareError {
    let list: Vec<_> = paths.iter().map(|p| p.display().to_string()).collect();
    let dropped: u64 = all.dropped.values().map(|d| d.count.documents).sum();
    let found = match (all.skipped.first(), dropped) {
        (_, 1..) => format!("rules dropped all {dropped} documents"),
        (None, _) => "there are no files (names that begin with a dot don't count)".to_string(),
        (Some(s), _) => {
            let n = all.skipped.len();
            match n {
                1 => format!("its one file was skipped: {}: {}", s.source, s.reason),
                n => format!("{n} files were skipped, the first {}: {}", s.source, s.reason),
            }
        }
    };
    PrepareError::Empty { paths: list.join(", "), found }
}

/// A reason without the numbers that differ each time.
fn reason_kind(reason: &str) -> String {
    let digits = |c: char| c.is_ascii_digit();
    let kind: Vec<_> = reason.split(digits).filter(|p| !p.is_empty()).collect();
    let kind = kind.join("N");
    kind[..kind.floor_char_boundary(80)].to_string()
}

fn write_line<T: Serialize>(file: &mut AtomicFile, value: &T) -> Result<(), StoreError> {
    let mut line = || -> std::io::Result<()> {
        serde_json::to_writer(&mut *file, value)?;
        file.write_all(b"\n")
    };
    line().map_err(|e| StoreError::io("write", file.path())(e))
}

fn each_line(
    path: &Path,
    mut see: impl FnMut(&[u8]) -> Result<(), PrepareError>,
) -> Result<(), PrepareError> {
    let file = File::open(path).map_err(StoreError::io("read", path))?;
    let (mut file, mut line) = (BufReader::with_capacity(1 << 20, file), Vec::new());
    loop {
        line.clear();
        if file.read_until(b'\n', &mut line).map_err(StoreError::io("read", path))? == 0 {
            return Ok(());
        }
        see(&line)?;
    }
}

/// Lines that are in many documents, by a sketch of counts of a fixed size (count-min).
struct Boilerplate {
    counters: Vec<u8>,
    least: u8,
}

impl Boilerplate {
    /// # Errors
    /// Parts that can't be read.
    fn count(
        paths: &Paths,
        parts: usize,
        chosen: &Selection,
        least: u32,
    ) -> Result<Boilerplate, PrepareError> {
        let least = least.min(255) as u8;
        let mut counts = Boilerplate { counters: vec![0; LINE_COUNTERS * 2], least };
        let (mut number, mut lines) = (0, HashSet::new());
        for part in 0..parts {
            each_line(&paths.of(part, "jsonl"), |line| {
                number += 1;
                if matches!(chosen.fate(number - 1).0, Fate::Same | Fate::Near) {
                    return Ok(());
                }
                lines.clear();
                let document = document(line, paths, part)?;
                lines.extend(document.text.lines().filter_map(Boilerplate::key));
                for key in &lines {
                    for at in Boilerplate::places(*key) {
                        counts.counters[at] = counts.counters[at].saturating_add(1);
                    }
                }
                Ok(())
            })?;
        }
        Ok(counts)
    }

    /// What a line is counted as, if it is.
    fn key(line: &str) -> Option<u64> {
        let line = line.trim();
        // Brackets and the like are no boilerplate.
        let words = line.bytes().filter(u8::is_ascii_alphanumeric).count() >= 3 || !line.is_ascii();
        (words && line.len() <= LINE_BYTES).then(|| hash(line.as_bytes()))
    }

    fn places(key: u64) -> [usize; 2] {
        [mix(key, 1) as usize % LINE_COUNTERS, LINE_COUNTERS + mix(key, 2) as usize % LINE_COUNTERS]
    }

    /// Cuts them from a text; returns the bytes cut.
    fn cut(&self, text: &mut String) -> usize {
        let many = |line: &str| {
            let count = |key| Boilerplate::places(key).map(|at| self.counters[at]);
            Boilerplate::key(line).is_some_and(|key| count(key).iter().all(|n| *n >= self.least))
        };
        if !text.lines().any(many) {
            return 0;
        }
        let kept: String = text.split_inclusive('\n').filter(|line| !many(line)).collect();
        let cut = text.len() - kept.len();
        *text = kept;
        cut
    }
}

fn document(line: &[u8], paths: &Paths, part: usize) -> Result<Document, PrepareError> {
    serde_json::from_slice(line).map_err(|e| {
        let (path, reason) = (paths.of(part, "jsonl"), format!("a line is no document: {e}"));
        StoreError::Damaged { path, reason }.into()
    })
}

/// The output in the making.
struct Writer {
    train: Sink,
    heldout: Sink,
    dropped: AtomicFile,
    chosen: Selection,
    lines: Option<Boilerplate>,
    repeated: Option<Repeated>,
    stats: Stats,
    /// Documents so far.
    seen: usize,
}

impl Writer {
    fn create(
        out: &Path,
        chosen: Selection,
        lines: Option<Boilerplate>,
        repeated: Option<Repeated>,
        stats: Stats,
    ) -> Result<Writer, StoreError> {
        let file = |name: &str| Sink::create(out, name, stats.settings.output);
        let (train, heldout) = (file("documents")?, file("heldout")?);
        let dropped = AtomicFile::create(&out.join("dropped.jsonl"))?;
        Ok(Writer { train, heldout, dropped, chosen, lines, repeated, stats, seen: 0 })
    }

    /// Copies what the rules dropped.
    fn verdicts(&mut self, path: &Path) -> Result<(), StoreError> {
        let mut file = File::open(path).map_err(StoreError::io("read", path))?;
        std::io::copy(&mut file, &mut self.dropped)
            .map(drop)
            .map_err(|e| StoreError::io("write", self.dropped.path())(e))
    }

    /// A document's line.
    fn line(&mut self, line: &[u8]) -> Result<(), PrepareError> {
        let number = self.seen;
        self.seen += 1;
        let (fate, like) = self.chosen.fate(number);
        let mut document: Document = serde_json::from_slice(line).map_err(|e| {
            let path = self.train.path().to_path_buf();
            PrepareError::from(StoreError::Damaged { path, reason: format!("a part: {e}") })
        })?;
        let detail = || format!("like document {like} of those that passed the rules");
        match fate {
            Fate::Same => return self.drop(document, "exact_duplicate", detail()),
            Fate::Near => return self.drop(document, "near_duplicate", detail()),
            Fate::Train | Fate::HeldOut => {}
        }
        for rule in ["boilerplate_documents", "repeated_words"] {
            let cut = match (rule, &self.lines, &mut self.repeated) {
                ("boilerplate_documents", Some(lines), _) => lines.cut(&mut document.text),
                ("repeated_words", _, Some(repeated)) => repeated.cut(&mut document.text),
                _ => 0,
            };
            if cut > 0 {
                *self.stats.cut.entry(rule.to_string()).or_default() += cut as u64;
                if tokens(&document.text).filter(|t| t.word).nth(LEFT_WORDS).is_none() {
                    return self.drop(document, rule, format!("{cut} bytes were cut"));
                }
            }
        }
        if let Some((head, tail)) = self.chosen.cut(number, &document.text) {
            let part = |text: &str| Document { text: text.to_string(), ..document.clone() };
            let (head, tail) = (part(head), part(tail));
            for (document, held) in [(head, false), (tail, true)] {
                if !document.text.is_empty() {
                    self.keep(&document, held)?;
                }
            }
            return Ok(());
        }
        self.keep(&document, fate == Fate::HeldOut)
    }

    fn keep(&mut self, document: &Document, held: bool) -> Result<(), PrepareError> {
        let bytes = document.text.len();
        let (count, file) = match held {
            true => (&mut self.stats.heldout, &mut self.heldout),
            false => (&mut self.stats.train, &mut self.train),
        };
        count.add(bytes);
        file.push(document)?;
        let stats = &mut self.stats;
        stats.lengths.entry(bytes.next_power_of_two().ilog2()).or_default().add(bytes);
        let place = place(document);
        let place = match stats.sources.len() < SOURCES || stats.sources.contains_key(place) {
            true => place,
            false => "others",
        };
        stats.sources.entry(place.to_string()).or_default().add(bytes);
        // Some from the beginning, and then ever more seldom.
        if !held
            && stats.train.documents.is_power_of_two()
            && stats.train.documents < 1 << (2 * SAMPLES)
        {
            let text = document.text[..document.text.floor_char_boundary(400)].to_string();
            stats.samples.push(Document { text, ..document.clone() });
        }
        Ok(())
    }

    fn drop(&mut self, document: Document, rule: &str, detail: String) -> Result<(), PrepareError> {
        let dropped = self.stats.dropped.entry(rule.to_string()).or_default();
        dropped.add(&document.source, &detail, &document.text);
        let verdict = Verdict { source: document.source, rule: rule.to_string(), detail };
        Ok(write_line(&mut self.dropped, &verdict)?)
    }

    fn finish(self) -> Result<Stats, StoreError> {
        self.train.commit()?;
        self.heldout.commit()?;
        self.dropped.commit()?;
        Ok(self.stats)
    }
}

/// The host of a page, or the folder of a file.
fn place(document: &Document) -> &str {
    if let Some(host) = document.about.url.as_deref().and_then(|u| u.split("://").nth(1)) {
        return host.split('/').next().unwrap_or(host);
    }
    let file = document.source.split(['!', '#']).next().unwrap_or_default();
    file.rsplit_once('/').map_or("", |(folder, _)| folder)
}
