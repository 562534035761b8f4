//! Byte-level BPE: training, text → ids, ids → text, and `tokenizer.json` as Hugging Face's
//! `tokenizers` reads and writes it.
//!
//! Text is normalised (NFC), cut into pieces by a pre-tokenizer ([`pretokenize`]), and the bytes of
//! each piece are merged by rank ([`bpe`]). The ids equal those of `tokenizers` on the same file, but
//! for accents that came to Unicode in the last years: its tables for NFC are older.

mod added;
mod bpe;
mod bytes;
mod cache;
mod count;
mod json;
pub mod pretokenize;
mod stream;
mod train;

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};

use compute::Pool;
use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};

use added::{Added, Segment};
use bpe::Merges;
use cache::Scratch;
use pretokenize::PreTokenizer;
pub use stream::DecodeStream;
pub use train::{Progress, TrainOptions};

/// What can be wrong with a tokenizer.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The file cannot be read.
    #[error("cannot read the tokenizer {0}: {1}")]
    Read(PathBuf, std::io::Error),
    /// Not JSON, or not with the fields of a `tokenizer.json`.
    #[error("not a tokenizer.json: {0}")]
    Json(#[from] serde_json::Error),
    /// A valid file that asks for what is not implemented here.
    #[error("this tokenizer.json needs what is not supported: {0}")]
    Unsupported(String),
    /// Contradictory contents.
    #[error("broken tokenizer.json: {0}")]
    Invalid(String),
    /// Training cannot do what was asked.
    #[error("cannot train a tokenizer: {0}")]
    Train(String),
}

/// A tokenizer. Ids are `0..vocab_size()`; every id has its bytes.
pub struct Tokenizer {
    pre_tokenizer: PreTokenizer,
    /// Pairs in order of rank, and what they become.
    merge_list: Vec<(u32, u32)>,
    merges: Merges,
    /// Byte → id.
    byte_ids: [u32; 256],
    /// The bytes of token `i` are `text[ends[i - 1]..ends[i]]`.
    text: Vec<u8>,
    ends: Vec<usize>,
    /// Tokens of the model; ids from here on are added tokens only.
    model_tokens: usize,
    added: Added,
    /// Caches and buffers that are not in use.
    scratch: Mutex<Vec<Scratch>>,
}

impl Tokenizer {
    /// Learns a vocabulary from texts; see [`TrainOptions`]. The result depends on nothing but the
    /// texts (in any order) and the vocabulary asked for: not on the number of threads.
    ///
    /// Texts are read once and not kept: memory goes with the number of distinct pieces.
    ///
    /// # Errors
    /// A vocabulary too small for 256 bytes and the special tokens; special tokens that are empty,
    /// double or a single byte; more than 1 GiB of distinct pieces.
    pub fn train<T: AsRef<str>>(
        texts: impl IntoIterator<Item = T>,
        options: &TrainOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Tokenizer, TokenizerError> {
        train::train(texts.into_iter(), options, progress)
    }

    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// See [`Tokenizer::from_json`].
    pub fn load(path: impl AsRef<Path>) -> Result<Tokenizer, TokenizerError> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path)
            .map_err(|error| TokenizerError::Read(path.to_owned(), error))?;
        Tokenizer::from_json(&text)
    }

    /// Parses the text of a `tokenizer.json`.
    ///
    /// # Errors
    /// What is not JSON of that layout, what asks for a kind of tokenizer that is not known here,
    /// and what contradicts itself: ids that are missing or double, merges of unknown tokens.
    pub fn from_json(json: &str) -> Result<Tokenizer, TokenizerError> {
        json::read(json)
    }

    /// The text of `tokenizer.json`, byte for byte as `tokenizers` would write it.
    pub fn to_json(&self) -> String {
        json::write(self)
    }

    /// A tokenizer of checked parts: `model` the bytes of the model's tokens by id, which contain
    /// all single bytes; `merges` left, right, result; `added` sorted by id.
    fn new(
        pre_tokenizer: PreTokenizer,
        model: &[Vec<u8>],
        merges: &[(u32, u32, u32)],
        added: Added,
    ) -> Tokenizer {
        let mut byte_ids = [0; 256];
        let (mut text, mut ends) = (vec![], vec![]);
        for (id, bytes) in model.iter().enumerate() {
            if let &[byte] = &bytes[..] {
                byte_ids[byte as usize] = id as u32;
            }
            text.extend(bytes);
            ends.push(text.len());
        }
        for token in added.tokens.iter().filter(|token| token.id as usize >= model.len()) {
            text.extend(token.content.as_bytes());
            ends.push(text.len());
        }
        let mut ranks = Merges::default();
        for &(left, right, made) in merges {
            ranks.push(left, right, made);
        }
        Tokenizer {
            pre_tokenizer,
            merge_list: merges.iter().map(|&(left, right, _)| (left, right)).collect(),
            merges: ranks,
            byte_ids,
            text,
            ends,
            model_tokens: model.len(),
            added,
            scratch: Mutex::default(),
        }
    }

    /// The ids of a text, in which nothing is control: what looks like a special token is cut into
    /// ordinary ones.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let mut ids = vec![];
        self.with_scratch(|scratch| self.encode_plain(text, scratch, &mut ids));
        ids
    }

    /// The ids of a rendered template, in which the added tokens are recognised wherever they
    /// stand. Never for text from outside.
    pub fn encode_with_special(&self, text: &str) -> Vec<u32> {
        let mut ids = vec![];
        self.with_scratch(|scratch| {
            self.added.split(text, normalize, |segment| match segment {
                Segment::Token(id) => ids.push(id),
                Segment::Text(text) => self.encode_normalized(text, scratch, &mut ids),
            })
        });
        ids
    }

    /// [`Tokenizer::encode`] of many texts, on the pool's threads.
    pub fn encode_batch<T: AsRef<str> + Sync>(&self, pool: &Pool, texts: &[T]) -> Vec<Vec<u32>> {
        let results: Vec<OnceLock<Vec<u32>>> = texts.iter().map(|_| OnceLock::new()).collect();
        pool.run(texts.len(), |i| {
            let _ = results[i].set(self.encode(texts[i].as_ref()));
        });
        results.into_iter().map(|result| result.into_inner().unwrap_or_default()).collect()
    }

    fn encode_plain(&self, text: &str, scratch: &mut Scratch, ids: &mut Vec<u32>) {
        self.encode_normalized(&normalize(text), scratch, ids)
    }

    fn encode_normalized(&self, text: &str, scratch: &mut Scratch, ids: &mut Vec<u32>) {
        let mut start = 0;
        while start < text.len() {
            let end = self.pre_tokenizer.piece_end(text, start);
            scratch.encode(self, text.as_bytes(), start, end, ids);
            start = end;
        }
    }

    /// Caches warm up, so they are kept; a thread takes one for as long as it encodes a text.
    fn with_scratch(&self, work: impl FnOnce(&mut Scratch)) {
        let pool = || self.scratch.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let kept = pool().pop();
        let mut scratch = kept.unwrap_or_default();
        work(&mut scratch);
        pool().push(scratch);
    }

    /// The text of ids, special tokens as they are written. What is not UTF-8 becomes U+FFFD, and
    /// ids beyond the vocabulary (a model's embedding may have more rows) nothing.
    pub fn decode(&self, ids: &[u32]) -> String {
        String::from_utf8_lossy(&self.decode_bytes(ids)).into_owned()
    }

    /// The bytes of ids, which need not be UTF-8.
    pub fn decode_bytes(&self, ids: &[u32]) -> Vec<u8> {
        ids.iter().filter_map(|&id| self.token_bytes(id)).flatten().copied().collect()
    }

    /// The bytes of one token; `None` beyond the vocabulary.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        let id = id as usize;
        let end = *self.ends.get(id)?;
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        Some(&self.text[start..end])
    }

    /// The id of an added token by its text, such as `<|im_end|>`.
    pub fn special_id(&self, name: &str) -> Option<u32> {
        self.added.tokens.iter().find(|token| token.content == name).map(|token| token.id)
    }

    /// Whether an id is an added token: one that [`Tokenizer::encode`] never gives.
    pub fn is_special(&self, id: u32) -> bool {
        self.added.has(id)
    }

    /// The texts of the added tokens, by id.
    pub fn special_tokens(&self) -> impl Iterator<Item = (u32, &str)> {
        self.added.tokens.iter().map(|token| (token.id, token.content.as_str()))
    }

    /// Number of tokens, the added ones included.
    pub fn vocab_size(&self) -> usize {
        self.ends.len()
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer({:?}, {} tokens)", self.pre_tokenizer, self.vocab_size())
    }
}

/// Unicode's canonical composition (NFC).
fn normalize(text: &str) -> Cow<'_, str> {
    // Below U+0300, of which 0xcc is the first byte, every text is composed.
    if text.bytes().all(|byte| byte < 0xcc) || is_nfc_quick(text.chars()) == IsNormalized::Yes {
        Cow::Borrowed(text)
    } else {
        Cow::Owned(text.nfc().collect())
    }
}
