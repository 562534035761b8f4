//! Tokenized documents on disk: a set of shards, written as a stream and read through memory maps.
//!
//! A set is a folder with `00000.shard`, `00001.shard` …; all numbers are little-endian:
//!
//! | bytes | what |
//! |---|---|
//! | 0..8 | `HGSHARD\n` |
//! | 8..12 | u32 schema version, 1 |
//! | 12..16 | u32 number of this shard in its set |
//! | 16..20 | u32 flags: 1 = there is a mask, 2 = last shard of its set |
//! | 20..24 | u32 bytes a token: 2 (vocabulary up to 65,536) or 4 |
//! | 24..28 | u32 size of the vocabulary; every token is below it |
//! | 28..32 | 0 |
//! | 32..40 | u64 documents D |
//! | 40..48 | u64 tokens T |
//! | 48..56 | u64 bytes of the text that the tokens stand for |
//! | 56..88 | BLAKE3 of the tokenizer's `tokenizer.json` |
//! | 88..120 | BLAKE3 of bytes 0..88 and of all from 128 on |
//! | 120..128 | 0 |
//! | then | T tokens, padded with zeros to a multiple of 8 bytes |
//! | then | D + 1 u64: where each document starts (in tokens), and T |
//! | then | with a mask, one bit a token, lowest first, padded to a byte: whether it is to be learned |
//!
//! A document is the whole sequence that the model sees: token `i + 1` is the target of token `i`,
//! so n tokens make n - 1 rows of training. Its first token is nobody's target.

use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use store::{AtomicFile, Hash, Map, StoreError};
use thiserror::Error;

/// The version of the format.
pub const SCHEMA_VERSION: u32 = 1;

const MAGIC: &[u8; 8] = b"HGSHARD\n";
const HEADER: usize = 128;
/// Where the checksum stands in the header.
const CHECKSUM: Range<usize> = 88..120;
const MASKED: u32 = 1;
const LAST: u32 = 2;
/// Tokens after which a new shard is begun: it bounds what the writer holds in memory.
const SHARD_TOKENS: u64 = 1 << 27;

/// Why shards can't be used.
#[derive(Debug, Error)]
pub enum ShardError {
    /// A file could not be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Not a shard, or one that has changed since it was written.
    #[error("{} is not a valid token shard: {reason}; run the stage that makes it again", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// Made by a later program.
    #[error("{} has schema_version {version}, this program reads {SCHEMA_VERSION}", path.display())]
    Version {
        /// Which file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// No shards at all, or a set without its end.
    #[error("{} is not a complete set of token shards: {reason}", path.display())]
    Set {
        /// Which folder.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// Token ids mean something else.
    #[error(
        "{} was made with another tokenizer (BLAKE3 {got}, not {want}); tokenize the text again",
        path.display()
    )]
    Tokenizer {
        /// Which folder.
        path: PathBuf,
        /// The tokenizer in use.
        want: Hash,
        /// The tokenizer of the shards.
        got: Hash,
    },
    /// A document that no shard can hold.
    #[error("a document for {} can't be written: {reason}", path.display())]
    Document {
        /// The folder.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// What a set of shards holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Documents.
    pub documents: u64,
    /// Tokens stored; rows of training are `tokens - documents`.
    pub tokens: u64,
    /// Targets with loss.
    pub learned: u64,
    /// Bytes of text.
    pub text_bytes: u64,
}

/// Writes a set of shards into a folder, whose older shards are removed first.
pub struct ShardWriter {
    folder: PathBuf,
    tokenizer: Hash,
    vocab_size: u32,
    limit: u64,
    index: u32,
    totals: Totals,
    open: Option<Open>,
}

/// The shard being written.
struct Open {
    file: AtomicFile,
    offsets: Vec<u64>,
    mask: Vec<u8>,
    masked: bool,
    text_bytes: u64,
}

impl ShardWriter {
    /// A writer. `tokenizer`: hash of the `tokenizer.json` that gives ids below `vocab_size`.
    ///
    /// # Errors
    /// [`ShardError::Store`] if the folder can't be made or cleared.
    pub fn create(folder: &Path, tokenizer: Hash, vocab_size: u32) -> Result<Self, ShardError> {
        store::create_dir(folder)?;
        for old in shard_files(folder)? {
            std::fs::remove_file(&old).map_err(StoreError::io("remove", &old))?;
        }
        Ok(ShardWriter {
            folder: folder.to_path_buf(),
            tokenizer,
            vocab_size,
            limit: SHARD_TOKENS,
            index: 0,
            totals: Totals::default(),
            open: None,
        })
    }

    /// Begins a new shard after this many tokens, instead of 134 million.
    pub fn shard_tokens(mut self, limit: u64) -> Self {
        self.limit = limit.max(1);
        self
    }

    /// Adds a document. `learned`: whether each token is to be learned, one a token; `None` for
    /// all. `text_bytes`: bytes of the text that the tokens stand for.
    ///
    /// # Errors
    /// [`ShardError::Document`] if it has fewer than two tokens, no target to learn, a token
    /// outside the vocabulary, or a mask of another length; [`ShardError::Store`].
    pub fn push(
        &mut self,
        tokens: &[u32],
        learned: Option<&[bool]>,
        text_bytes: u64,
    ) -> Result<(), ShardError> {
        let fail = |reason: String| Err(ShardError::Document { path: self.folder.clone(), reason });
        if tokens.len() < 2 {
            return fail(format!("it has {} tokens, which leaves nothing to learn", tokens.len()));
        }
        if let Some(id) = tokens.iter().find(|t| **t >= self.vocab_size) {
            return fail(format!("token {id} is outside the vocabulary of {}", self.vocab_size));
        }
        let targets = match learned {
            None => tokens.len() - 1,
            Some(m) if m.len() != tokens.len() => {
                return fail(format!("{} tokens have a mask of {}", tokens.len(), m.len()));
            }
            Some(m) => m[1..].iter().filter(|l| **l).count(),
        };
        if targets == 0 {
            return fail("none of its tokens is to be learned".into());
        }
        if self.open.as_ref().is_some_and(|o| o.tokens() >= self.limit) {
            self.close(0)?;
        }
        let wide = self.vocab_size > 1 << 16;
        let path = self.folder.join(format!("{:05}.shard", self.index));
        let open = match &mut self.open {
            Some(open) => open,
            none => none.insert(Open::create(&path)?),
        };
        open.push(tokens, learned, wide).map_err(StoreError::io("write", &path))?;
        open.text_bytes += text_bytes;
        self.totals.documents += 1;
        self.totals.tokens += tokens.len() as u64;
        self.totals.learned += targets as u64;
        self.totals.text_bytes += text_bytes;
        Ok(())
    }

    /// Ends the set. Without a call of this, no reader takes it for whole.
    ///
    /// # Errors
    /// [`ShardError::Store`]; [`ShardError::Set`] if nothing was pushed.
    pub fn finish(mut self) -> Result<Totals, ShardError> {
        if self.open.is_none() {
            let reason = "not one document was written".into();
            return Err(ShardError::Set { path: self.folder, reason });
        }
        self.close(LAST)?;
        Ok(self.totals)
    }

    /// Whether nothing was written yet.
    pub fn is_empty(&self) -> bool {
        self.totals.documents == 0
    }

    /// Completes the open shard: offsets, mask, header.
    fn close(&mut self, flags: u32) -> Result<(), ShardError> {
        let Some(open) = self.open.take() else { return Ok(()) };
        let path = open.file.path().to_path_buf();
        let tokens = open.tokens();
        let mut header = [0; HEADER];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        let flags = flags | if open.masked { MASKED } else { 0 };
        let width: u32 = if self.vocab_size > 1 << 16 { 4 } else { 2 };
        put(0, MAGIC);
        put(8, &SCHEMA_VERSION.to_le_bytes());
        put(12, &self.index.to_le_bytes());
        put(16, &flags.to_le_bytes());
        put(20, &width.to_le_bytes());
        put(24, &self.vocab_size.to_le_bytes());
        put(32, &(open.offsets.len() as u64 - 1).to_le_bytes());
        put(40, &tokens.to_le_bytes());
        put(48, &open.text_bytes.to_le_bytes());
        put(56, &self.tokenizer.0);
        let write = || -> io::Result<AtomicFile> {
            let mut file = open.file;
            file.write_all(&[0; 8][..padding(tokens * u64::from(width)) as usize])?;
            for offset in &open.offsets {
                file.write_all(&offset.to_le_bytes())?;
            }
            if open.masked {
                file.write_all(&open.mask)?;
            }
            file.rewrite_start(&header)?;
            // The checksum is of what the file holds, not of what was meant to be written.
            let checksum = checksum(&header, file.reread(HEADER as u64)?)?;
            header[CHECKSUM].copy_from_slice(&checksum.0);
            file.rewrite_start(&header)?;
            Ok(file)
        };
        let file = write().map_err(StoreError::io("write", &path))?;
        file.commit()?;
        self.index += 1;
        Ok(())
    }
}

impl Open {
    fn create(path: &Path) -> Result<Open, ShardError> {
        let mut file = AtomicFile::create(path)?;
        file.write_all(&[0; HEADER]).map_err(StoreError::io("write", path))?;
        Ok(Open { file, offsets: vec![0], mask: Vec::new(), masked: false, text_bytes: 0 })
    }

    fn tokens(&self) -> u64 {
        self.offsets.last().copied().unwrap_or(0)
    }

    fn push(&mut self, tokens: &[u32], learned: Option<&[bool]>, wide: bool) -> io::Result<()> {
        let start = self.tokens();
        for (i, token) in tokens.iter().enumerate() {
            let bytes = token.to_le_bytes();
            self.file.write_all(if wide { &bytes } else { &bytes[..2] })?;
            let at = start + i as u64;
            if at.is_multiple_of(8) {
                self.mask.push(0);
            }
            let learn = learned.is_none_or(|l| l[i]);
            self.mask[(at / 8) as usize] |= u8::from(learn) << (at % 8);
            self.masked |= !learn && i > 0;
        }
        self.offsets.push(start + tokens.len() as u64);
        Ok(())
    }
}

/// Zeros after `bytes` bytes up to a multiple of 8.
fn padding(bytes: u64) -> u64 {
    bytes.next_multiple_of(8) - bytes
}

/// Of a header (up to where the checksum stands) and of all that follows it.
fn checksum(header: &[u8], body: impl io::Read) -> io::Result<Hash> {
    let mut hasher = store::hash::Hasher::default();
    hasher.update(&header[..CHECKSUM.start]);
    hasher.update_reader(body)?;
    Ok(hasher.finish())
}

/// The `*.shard` files of a folder, by name.
fn shard_files(folder: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(StoreError::io("list the folder", folder))? {
        let path = entry.map_err(StoreError::io("list the folder", folder))?.path();
        if path.extension().is_some_and(|e| e == "shard") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// One shard, mapped and checked.
#[derive(Debug)]
struct Shard {
    map: Map,
    wide: bool,
    documents: u64,
    tokens: u64,
    /// Where the offsets start in the file.
    offsets: usize,
    /// Where the mask starts, if there is one.
    mask: Option<usize>,
}

/// What a header says of the set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct About {
    vocab_size: u32,
    tokenizer: Hash,
    last: bool,
    text_bytes: u64,
}

impl Shard {
    /// Maps a shard and checks all of it: sizes, checksum, order of the offsets, every token.
    fn open(path: &Path, index: usize) -> Result<(Shard, About), ShardError> {
        let map = Map::open(path)?;
        let fail = |reason: String| Err(ShardError::Damaged { path: path.to_path_buf(), reason });
        if map.len() < HEADER || &map[..8] != MAGIC {
            return fail("it does not start as one".into());
        }
        let u32_at = |at| u32::from_le_bytes(array(&map[at..]));
        let u64_at = |at| u64::from_le_bytes(array(&map[at..]));
        let version = u32_at(8);
        if version != SCHEMA_VERSION {
            return Err(ShardError::Version { path: path.to_path_buf(), version });
        }
        let (number, flags, width, vocab_size) = (u32_at(12), u32_at(16), u32_at(20), u32_at(24));
        let (documents, tokens) = (u64_at(32), u64_at(40));
        if number as usize != index {
            return fail(format!("it is number {number} of its set, by its name {index}"));
        }
        if width != if vocab_size > 1 << 16 { 4 } else { 2 } || flags & !(MASKED | LAST) != 0 {
            return fail(format!("{width} bytes a token, vocabulary {vocab_size}, flags {flags}"));
        }
        // Sizes by checked arithmetic: a damaged count must not wrap around to a plausible one.
        let sizes = || {
            let bytes = tokens.checked_mul(u64::from(width))?.checked_next_multiple_of(8)?;
            let offsets = bytes.checked_add(HEADER as u64)?;
            let mask = documents.checked_add(1)?.checked_mul(8)?.checked_add(offsets)?;
            let bits = if flags & MASKED != 0 { tokens.div_ceil(8) } else { 0 };
            Some((offsets, mask, mask.checked_add(bits)?))
        };
        let Some((offsets, mask, _)) = sizes().filter(|s| s.2 == map.len() as u64) else {
            return fail(format!(
                "{documents} documents of {tokens} tokens don't make {} bytes",
                map.len()
            ));
        };
        let checksum = checksum(&map, &map[HEADER..]);
        if !checksum.is_ok_and(|c| c.0 == map[CHECKSUM]) {
            return fail("its checksum differs".into());
        }
        let shard = Shard {
            wide: width == 4,
            documents,
            tokens,
            offsets: offsets as usize,
            mask: (flags & MASKED != 0).then_some(mask as usize),
            map,
        };
        let mut at = 0;
        for i in 0..=documents {
            let offset = shard.offset(i);
            let wanted = if i == 0 { 0..=0 } else { at + 2..=tokens };
            if !wanted.contains(&offset) {
                return fail(format!("document {i} starts at token {offset}"));
            }
            at = offset;
        }
        if documents == 0 || at != tokens {
            return fail(format!("its {documents} documents end at token {at} of {tokens}"));
        }
        if let Some(id) = shard.ids(0..tokens).find(|id| *id >= vocab_size) {
            return fail(format!("token {id} is outside the vocabulary of {vocab_size}"));
        }
        let about = About {
            vocab_size,
            tokenizer: Hash(array(&shard.map[56..])),
            last: flags & LAST != 0,
            text_bytes: u64::from_le_bytes(array(&shard.map[48..])),
        };
        Ok((shard, about))
    }

    /// Where document `i` starts; where the last one ends.
    fn offset(&self, i: u64) -> u64 {
        u64::from_le_bytes(array(&self.map[self.offsets + 8 * i as usize..]))
    }

    /// Tokens of the shard.
    fn ids(&self, range: Range<u64>) -> Box<dyn Iterator<Item = u32> + '_> {
        let width = if self.wide { 4 } else { 2 };
        let bytes = &self.map[HEADER..][width * range.start as usize..width * range.end as usize];
        if self.wide {
            Box::new(bytes.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)))
        } else {
            Box::new(bytes.as_chunks().0.iter().map(|b| u32::from(u16::from_le_bytes(*b))))
        }
    }

    fn learned(&self, token: u64) -> bool {
        self.mask.is_none_or(|mask| self.map[mask + (token / 8) as usize] >> (token % 8) & 1 == 1)
    }
}

/// The first `N` bytes.
fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[..N]);
    array
}

/// A set of shards, opened for reading. Everything was checked when it was opened.
#[derive(Debug)]
pub struct Shards {
    folder: PathBuf,
    /// Each with the number of its first document.
    shards: Vec<(u64, Shard)>,
    vocab_size: u32,
    tokenizer: Hash,
    totals: Totals,
}

impl Shards {
    /// Opens a set. `tokenizer`: the tokenizer that its ids must be of, if that matters.
    ///
    /// # Errors
    /// [`ShardError`]: what is missing, damaged or of another tokenizer.
    pub fn open(folder: &Path, tokenizer: Option<Hash>) -> Result<Shards, ShardError> {
        let files = shard_files(folder)?;
        let set = |reason: String| ShardError::Set { path: folder.to_path_buf(), reason };
        let mut set_about: Option<About> = None;
        let (mut shards, mut totals) = (Vec::new(), Totals::default());
        for (i, path) in files.iter().enumerate() {
            if *path != folder.join(format!("{i:05}.shard")) {
                return Err(set(format!("{i:05}.shard is not there")));
            }
            let (shard, about) = Shard::open(path, i)?;
            if let Some(first) = set_about {
                let same =
                    first.vocab_size == about.vocab_size && first.tokenizer == about.tokenizer;
                if !same || first.last {
                    return Err(set(format!("{i:05}.shard does not belong to those before it")));
                }
            }
            let learned = (0..shard.documents).map(|d| {
                let targets = shard.offset(d) + 1..shard.offset(d + 1);
                match shard.mask {
                    None => targets.end - targets.start,
                    Some(_) => targets.filter(|t| shard.learned(*t)).count() as u64,
                }
            });
            totals.learned += learned.sum::<u64>();
            totals.text_bytes = totals.text_bytes.saturating_add(about.text_bytes);
            let first_document = totals.documents;
            totals.documents += shard.documents;
            totals.tokens += shard.tokens;
            shards.push((first_document, shard));
            set_about = Some(about);
        }
        let about = set_about.ok_or_else(|| set("it has no *.shard files".into()))?;
        if !about.last {
            return Err(set(format!("it goes on after {:05}.shard", shards.len() - 1)));
        }
        if let Some(want) = tokenizer.filter(|t| *t != about.tokenizer) {
            let (path, got) = (folder.to_path_buf(), about.tokenizer);
            return Err(ShardError::Tokenizer { path, want, got });
        }
        let (vocab_size, tokenizer) = (about.vocab_size, about.tokenizer);
        Ok(Shards { folder: folder.to_path_buf(), shards, vocab_size, tokenizer, totals })
    }

    /// What it holds.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Size of the vocabulary.
    pub fn vocab_size(&self) -> u32 {
        self.vocab_size
    }

    /// Hash of the `tokenizer.json` that its ids are of.
    pub fn tokenizer(&self) -> Hash {
        self.tokenizer
    }

    /// Where it lies.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The shard of a document, and the tokens it takes there.
    fn find(&self, document: u64) -> (&Shard, Range<u64>) {
        let i = self.shards.partition_point(|(first, _)| *first <= document) - 1;
        let (first, shard) = &self.shards[i];
        let d = document - first;
        (shard, shard.offset(d)..shard.offset(d + 1))
    }

    /// Number of tokens of a document, at least 2.
    ///
    /// # Panics
    /// If there is no such document.
    pub fn document_tokens(&self, document: u64) -> usize {
        let range = self.find(document).1;
        (range.end - range.start) as usize
    }

    /// Tokens of a document, each with whether it is to be learned. `range`: which, within it.
    ///
    /// # Panics
    /// If there is no such document or range.
    pub fn read(&self, document: u64, range: Range<usize>) -> impl Iterator<Item = (u32, bool)> {
        let (shard, all) = self.find(document);
        let range = all.start + range.start as u64..all.start + range.end as u64;
        assert!(range.end <= all.end, "document {document} has {} tokens", all.end - all.start);
        shard.ids(range.clone()).zip(range.map(|t| shard.learned(t)))
    }
}

#[cfg(test)]
#[path = "shards/tests.rs"]
mod tests;
