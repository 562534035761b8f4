//! The first pass: files to parts of clean documents, each a function of its files.
//!
//! One thread reads, others parse and clean, the caller's writes in the files' order; so the
//! bytes are the same on any number of threads. A part that is there already, of the same files
//! and settings, is not done again.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Condvar, Mutex};

use std::time::Instant;

use serde::{Deserialize, Serialize};
use store::{AtomicFile, Hash, StoreError};

use crate::clean::measure::Scratch;
use crate::clean::{Cleaner, hashes};
use crate::near::MinHash;
use crate::output::Output;
use crate::read::{Item, Piece, read_file};
use crate::settings::Settings;
use crate::{PrepareError, Skip, parse};

/// Bytes and number of files that make a part.
const PART_BYTES: u64 = 64 << 20;
const PART_FILES: usize = 4096;
/// Bytes and number of pieces that are between the reader and the writer.
const FLIGHT_BYTES: usize = 12 << 20;
const FLIGHT: usize = 1024;
/// Bytes of a dropped document that are kept as a sample, and samples of a rule.
const SAMPLE_BYTES: usize = 400;
const SAMPLES: usize = 3;
/// The version of the form of parts.
const VERSION: u32 = 1;

/// Documents and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Count {
    /// How many documents.
    pub documents: u64,
    /// Bytes of their text.
    pub bytes: u64,
}

impl Count {
    /// Counts a document.
    pub fn add(&mut self, bytes: usize) {
        self.documents += 1;
        self.bytes += bytes as u64;
    }

    /// Counts others.
    pub fn merge(&mut self, other: &Count) {
        self.documents += other.documents;
        self.bytes += other.bytes;
    }
}

/// What a rule dropped.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Dropped {
    /// How much.
    #[serde(flatten)]
    pub count: Count,
    /// The first of them.
    pub samples: Vec<Sample>,
}

/// The beginning of a document that was dropped.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Where it is from.
    pub source: String,
    /// What the rule saw.
    pub detail: String,
    /// Its beginning.
    pub text: String,
}

impl Dropped {
    /// Counts a document and keeps it as a sample if there are few.
    pub fn add(&mut self, source: &str, detail: &str, text: &str) {
        self.count.add(text.len());
        if self.samples.len() < SAMPLES {
            let text = text[..text.floor_char_boundary(SAMPLE_BYTES)].to_string();
            self.samples.push(Sample { source: source.into(), detail: detail.into(), text });
        }
    }

    /// Counts others.
    pub fn merge(&mut self, other: &Dropped) {
        self.count.merge(&other.count);
        let room = SAMPLES.saturating_sub(self.samples.len());
        self.samples.extend(other.samples.iter().take(room).cloned());
    }
}

/// What was done with the files of a part: `parts/NNNNN.json`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Part {
    version: u32,
    /// Of settings and files.
    key: String,
    /// Documents that were read.
    pub read: Count,
    /// Documents that are in the part.
    pub kept: Count,
    /// By format, of those that were read.
    pub formats: BTreeMap<String, Count>,
    /// By language, of those that are in the part.
    pub languages: BTreeMap<String, Count>,
    /// By rule.
    pub dropped: BTreeMap<String, Dropped>,
    /// Bytes that were hidden from readers of pages.
    pub hidden_bytes: u64,
    /// What could not be read.
    pub skipped: Vec<Skip>,
    /// What it cost.
    #[serde(skip)]
    pub cost: Cost,
}

/// Seconds of threads.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Formats to text.
    pub parse: f64,
    /// Normalisation, rules, personal data.
    pub clean: f64,
    /// Hashes and signatures.
    pub sign: f64,
}

/// A document that was dropped, as a line of a list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// Where it is from.
    pub source: String,
    /// The rule.
    pub rule: String,
    /// What the rule saw.
    pub detail: String,
}

/// The files of parts.
#[derive(Clone, Debug)]
pub struct Paths {
    folder: PathBuf,
}

impl Paths {
    /// Below the folder of the output.
    pub fn new(out: &Path) -> Paths {
        Paths { folder: out.join("parts") }
    }

    /// A file of a part.
    pub fn of(&self, part: usize, what: &str) -> PathBuf {
        self.folder.join(format!("{part:05}.{what}"))
    }

    /// Removes parts from `first` on: those of an earlier run with more files.
    pub fn clear_from(&self, first: usize) -> Result<(), StoreError> {
        for part in first.. {
            let json = self.of(part, "json");
            if !json.exists() {
                break;
            }
            for what in ["json", "jsonl", "facts", "dropped.jsonl"] {
                match std::fs::remove_file(self.of(part, what)) {
                    Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                        return Err(StoreError::io("remove", self.of(part, what))(e));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

/// Files in groups, in their order.
pub fn groups(files: &[(PathBuf, u64)]) -> Vec<&[(PathBuf, u64)]> {
    let (mut groups, mut first, mut bytes) = (Vec::new(), 0, 0);
    for (i, (_, size)) in files.iter().enumerate() {
        bytes += size;
        if bytes >= PART_BYTES || i + 1 - first >= PART_FILES || i + 1 == files.len() {
            groups.push(&files[first..=i]);
            (first, bytes) = (i + 1, 0);
        }
    }
    groups
}

/// What a part depends on: settings that look at one document, and files by size and time.
fn key(settings: &Settings, lists: &[Hash], stamps: &[String]) -> String {
    let single = Settings {
        boilerplate_documents: 0,
        exact: true,
        repeated_words: 0,
        repeated_bytes: 0,
        heldout: 0.0,
        output: Output::Jsonl,
        ..settings.clone()
    };
    let json = serde_json::to_string(&single).unwrap_or_default();
    let version = env!("CARGO_PKG_VERSION");
    let all = format!("{VERSION} {version} {json} {lists:?}\n{}", stamps.join("\n"));
    store::hash_bytes(all.as_bytes()).to_string()
}

/// Path, size and time of each file; one that is gone, or can't be asked, is skipped when it is read.
fn stamps(files: &[(PathBuf, u64)]) -> Vec<String> {
    let stamp = |(path, _): &(PathBuf, u64)| {
        let Ok(facts) = std::fs::metadata(path) else { return format!("{} -", path.display()) };
        let time = facts.modified().ok().and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
        format!("{} {} {time:?}", path.display(), facts.len())
    };
    files.iter().map(stamp).collect()
}

/// A piece's documents, ready to be written.
#[derive(Default)]
struct Done {
    part: Part,
    lines: Vec<u8>,
    facts: Vec<u8>,
    verdicts: Vec<u8>,
}

/// All that workers need.
pub struct Work {
    settings: Settings,
    cleaner: Cleaner,
    minhash: MinHash,
    lists: Vec<Hash>,
}

impl Work {
    /// Reads the lists that settings name.
    ///
    /// # Errors
    /// See [`Cleaner::new`].
    pub fn new(settings: &Settings) -> Result<Work, PrepareError> {
        let lists = [&settings.blocked_hosts, &settings.blocked_words].into_iter().flatten();
        let lists = lists.chain(&settings.evaluation).chain(&settings.examples);
        Ok(Work {
            cleaner: Cleaner::new(settings)?,
            minhash: MinHash::new(&settings.near),
            lists: lists.map(|p| store::hash_file(p)).collect::<Result<_, _>>()?,
            settings: settings.clone(),
        })
    }

    fn piece(&self, item: Item, scratch: &mut Scratch) -> Done {
        let mut done = Done::default();
        let mut clock = Instant::now();
        let mut lap = || {
            let now = Instant::now();
            (now - std::mem::replace(&mut clock, now)).as_secs_f64()
        };
        let parsed = match item {
            Item::Skip(skip) => vec![Err(skip)],
            Item::Piece(piece) => parse::parse(piece, &self.settings),
        };
        done.part.cost.parse += lap();
        for document in parsed {
            let mut document = match document {
                Ok(document) => document,
                Err(skip) => {
                    done.part.skipped.push(skip);
                    continue;
                }
            };
            let part = &mut done.part;
            part.read.add(document.text.len());
            part.formats.entry(document.format.name().into()).or_default().add(document.text.len());
            part.hidden_bytes += document.about.hidden_bytes;
            let drop = self.cleaner.clean(&mut document, scratch);
            part.cost.clean += lap();
            if let Some(drop) = drop {
                let (source, detail) = (&document.source, &drop.detail);
                part.dropped.entry(drop.rule.clone()).or_default().add(
                    source,
                    detail,
                    &document.text,
                );
                let verdict =
                    Verdict { source: document.source, rule: drop.rule, detail: drop.detail };
                line(&mut done.verdicts, &verdict);
                continue;
            }
            let bytes = document.text.len();
            part.kept.add(bytes);
            let language = document.about.language.clone().unwrap_or_else(|| "unknown".into());
            part.languages.entry(language).or_default().add(bytes);
            let hash = store::hash_bytes(document.text.as_bytes()).0;
            done.facts.extend(&hash[..16]);
            done.facts.extend((bytes as u32).to_le_bytes());
            if self.settings.near.bands > 0 {
                let bands = self.minhash.bands(&hashes(&document.text));
                done.facts.push(u8::from(bands.is_some()));
                let bands = bands.unwrap_or_else(|| vec![0; self.settings.near.bands]);
                bands.iter().for_each(|b| done.facts.extend(b.to_le_bytes()));
            }
            line(&mut done.lines, &document);
            done.part.cost.sign += lap();
        }
        done
    }

    /// Makes a part, or finds it made. `told` hears how many bytes of files were read.
    ///
    /// # Errors
    /// What can't be written; [`PrepareError::Stopped`].
    pub fn part(
        &self,
        paths: &Paths,
        number: usize,
        files: &[(PathBuf, u64)],
        threads: usize,
        told: &mut dyn FnMut(u64) -> bool,
    ) -> Result<Part, PrepareError> {
        let (json, before) = (paths.of(number, "json"), stamps(files));
        let key = key(&self.settings, &self.lists, &before);
        if let Ok(part) = store::read_json::<Part>(&json)
            && part.key == key
            && ["jsonl", "facts", "dropped.jsonl"].iter().all(|w| paths.of(number, w).exists())
        {
            told(files.iter().map(|f| f.1).sum());
            return Ok(part);
        }
        // Until all is written it is not there.
        if json.exists() {
            std::fs::remove_file(&json).map_err(StoreError::io("remove", &json))?;
        }
        let mut writer = PartWriter::create(paths, number)?;
        let flight = Flight::default();
        let (work_to, work) = channel::<(u64, Vec<Item>)>();
        let work = Mutex::new(work);
        let (done_to, done) = channel::<(u64, Result<Done, u64>)>();
        std::thread::scope(|scope| {
            let reader_done = done_to.clone();
            let (flight, work) = (&flight, &work);
            scope.spawn(move || read_all(files, &self.settings, flight, &work_to, &reader_done));
            for _ in 0..threads.max(1) {
                let done_to = done_to.clone();
                let run = move || self.worker(work, &done_to, flight);
                // Documents may be nested deep.
                let thread = std::thread::Builder::new().stack_size(16 << 20);
                if let Err(e) = thread.spawn_scoped(scope, run) {
                    flight.stop();
                    return Err(StoreError::io("start a thread for", &json)(e).into());
                }
            }
            drop(done_to);
            let result = writer.all(&done, flight, told);
            flight.stop();
            result
        })?;
        let after = stamps(files);
        if let Some(i) = (0..files.len()).find(|i| before[*i] != after[*i]) {
            return Err(PrepareError::Changed(files[i].0.clone()));
        }
        Ok(writer.finish(&json, key)?)
    }

    fn worker(
        &self,
        work: &Mutex<Receiver<(u64, Vec<Item>)>>,
        done: &Sender<(u64, Result<Done, u64>)>,
        flight: &Flight,
    ) {
        let mut scratch = Scratch::default();
        loop {
            let next = match work.lock() {
                Ok(work) => work.recv(),
                Err(_) => return,
            };
            let Ok((number, items)) = next else { return };
            let all = catch_unwind(AssertUnwindSafe(|| {
                let mut all = Done::default();
                for item in items {
                    all.merge(self.piece(item, &mut scratch));
                }
                all
            }));
            // The reader and the writer would wait for it forever.
            let Ok(all) = all else { return flight.stop() };
            if done.send((number, Ok(all))).is_err() {
                return;
            }
        }
    }
}

/// Pieces that are small go together.
const BATCH_BYTES: usize = 256 << 10;

fn read_all(
    files: &[(PathBuf, u64)],
    settings: &Settings,
    flight: &Flight,
    work: &Sender<(u64, Vec<Item>)>,
    done: &Sender<(u64, Result<Done, u64>)>,
) {
    let (mut number, mut batch, mut bytes) = (0, Vec::new(), 0);
    let mut files = files.iter().peekable();
    while let Some((path, size)) = files.next() {
        let mut open = true;
        let mut send = |number: &mut u64, batch: &mut Vec<Item>, bytes: &mut usize| {
            if !batch.is_empty() {
                let items = std::mem::take(batch);
                open = flight.enter(*bytes) && work.send((*number, items)).is_ok();
                *number += 1;
                *bytes = 0;
            }
            open
        };
        read_file(path, settings, &mut |item| {
            bytes += match &item {
                Item::Piece(Piece { bytes, .. }) => bytes.len(),
                Item::Skip(_) => 256,
            };
            batch.push(item);
            bytes < BATCH_BYTES || send(&mut number, &mut batch, &mut bytes)
        });
        let end = files.peek().is_none();
        if end {
            send(&mut number, &mut batch, &mut bytes);
        }
        if !open {
            return;
        }
        // What was read, for who watches.
        if done.send((u64::MAX, Err(*size))).is_err() {
            return;
        }
    }
}

/// What is between the reader and the writer.
#[derive(Default)]
struct Flight {
    /// Bytes of each batch, the oldest first; none if all is over.
    state: Mutex<(VecDeque<usize>, usize, bool)>,
    moved: Condvar,
}

impl Flight {
    /// Waits until there is room; `false` if nobody wants more.
    fn enter(&self, bytes: usize) -> bool {
        let Ok(mut state) = self.state.lock() else { return false };
        while !state.2 && (state.0.len() >= FLIGHT || state.1 + bytes > FLIGHT_BYTES && state.1 > 0)
        {
            state = match self.moved.wait(state) {
                Ok(state) => state,
                Err(_) => return false,
            };
        }
        state.0.push_back(bytes);
        state.1 += bytes;
        !state.2
    }

    /// The oldest batch was written.
    fn leave(&self) {
        if let Ok(mut state) = self.state.lock() {
            let bytes = state.0.pop_front().unwrap_or(0);
            state.1 = state.1.saturating_sub(bytes);
        }
        self.moved.notify_all();
    }

    fn stop(&self) {
        if let Ok(mut state) = self.state.lock() {
            state.2 = true;
        }
        self.moved.notify_all();
    }
}

impl Done {
    fn merge(&mut self, other: Done) {
        self.part.merge(&other.part);
        self.lines.extend(other.lines);
        self.facts.extend(other.facts);
        self.verdicts.extend(other.verdicts);
    }
}

impl Part {
    /// Adds what another says.
    pub fn merge(&mut self, other: &Part) {
        self.read.merge(&other.read);
        self.kept.merge(&other.kept);
        for (name, count) in &other.formats {
            self.formats.entry(name.clone()).or_default().merge(count);
        }
        for (name, count) in &other.languages {
            self.languages.entry(name.clone()).or_default().merge(count);
        }
        for (name, dropped) in &other.dropped {
            self.dropped.entry(name.clone()).or_default().merge(dropped);
        }
        self.hidden_bytes += other.hidden_bytes;
        self.cost.parse += other.cost.parse;
        self.cost.clean += other.cost.clean;
        self.cost.sign += other.cost.sign;
        self.skipped.extend(other.skipped.iter().cloned());
    }
}

/// The files of a part in the making.
struct PartWriter {
    part: Part,
    lines: AtomicFile,
    facts: AtomicFile,
    verdicts: AtomicFile,
}

impl PartWriter {
    fn create(paths: &Paths, number: usize) -> Result<PartWriter, StoreError> {
        let file = |what: &str| AtomicFile::create(&paths.of(number, what));
        let (lines, facts) = (file("jsonl")?, file("facts")?);
        Ok(PartWriter { part: Part::default(), lines, facts, verdicts: file("dropped.jsonl")? })
    }

    /// Writes all that comes, in order.
    fn all(
        &mut self,
        done: &Receiver<(u64, Result<Done, u64>)>,
        flight: &Flight,
        told: &mut dyn FnMut(u64) -> bool,
    ) -> Result<(), PrepareError> {
        let (mut next, mut waiting) = (0, BTreeMap::new());
        while let Ok((number, what)) = done.recv() {
            match what {
                Ok(done) => {
                    waiting.insert(number, done);
                }
                Err(bytes) => {
                    if !told(bytes) {
                        return Err(PrepareError::Stopped);
                    }
                }
            }
            while let Some(done) = waiting.remove(&next) {
                self.write(&done)?;
                flight.leave();
                next += 1;
            }
        }
        // A thread that died would leave a hole.
        match waiting.is_empty() {
            true => Ok(()),
            false => Err(PrepareError::Setting("a thread died while it read documents".into())),
        }
    }

    fn write(&mut self, done: &Done) -> Result<(), StoreError> {
        self.part.merge(&done.part);
        let files = [&mut self.lines, &mut self.facts, &mut self.verdicts];
        for (file, bytes) in files.into_iter().zip([&done.lines, &done.facts, &done.verdicts]) {
            file.write_all(bytes).map_err(|e| StoreError::io("write", file.path())(e))?;
        }
        Ok(())
    }

    fn finish(self, json: &Path, key: String) -> Result<Part, StoreError> {
        self.lines.commit()?;
        self.facts.commit()?;
        self.verdicts.commit()?;
        let part = Part { key, version: VERSION, ..self.part };
        store::write_json(json, &part)?;
        Ok(part)
    }
}

fn line<T: Serialize>(into: &mut Vec<u8>, value: &T) {
    // Strings and numbers can always be written into memory.
    if serde_json::to_writer(&mut *into, value).is_ok() {
        into.push(b'\n');
    }
}

/// What is known of a document of a part.
pub struct Fact<'a> {
    record: &'a [u8],
}

impl Fact<'_> {
    /// Hash of its clean text.
    pub fn hash(&self) -> u128 {
        self.record[..16].iter().fold(0, |n, b| n << 8 | u128::from(*b))
    }

    /// Bytes of its text.
    pub fn bytes(&self) -> u32 {
        self.record[16..20].iter().rev().fold(0, |n, b| n << 8 | u32::from(*b))
    }

    /// One of [`MinHash::bands`]; none if it is too short for any.
    pub fn band(&self, band: usize) -> Option<u64> {
        let bytes = self.record.get(21 + band * 8..29 + band * 8)?;
        (self.record[20] == 1).then(|| bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)))
    }
}

/// The facts of all documents of a part, in their order.
///
/// # Errors
/// A file that can't be read or is damaged.
pub fn facts(path: &Path, bands: usize, mut see: impl FnMut(Fact<'_>)) -> Result<(), StoreError> {
    let size = 20 + if bands > 0 { 1 + bands * 8 } else { 0 };
    let failed = || StoreError::io("read", path);
    let file = File::open(path).map_err(failed())?;
    let length = file.metadata().map_err(failed())?.len();
    if !length.is_multiple_of(size as u64) {
        let reason = format!("{length} bytes are no multiple of {size}");
        return Err(StoreError::Damaged { path: path.to_path_buf(), reason });
    }
    let (mut file, mut record) = (BufReader::with_capacity(1 << 18, file), vec![0; size]);
    for _ in 0..length / size as u64 {
        file.read_exact(&mut record).map_err(failed())?;
        see(Fact { record: &record });
    }
    Ok(())
}
