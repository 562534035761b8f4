//! Tokenizers: text → ids, ids → text, training, and the files of the ecosystem: `tokenizer.json`
//! as Hugging Face's `tokenizers` reads and writes it, and the metadata of GGUF.
//!
//! Text is normalised ([`normalize`]), cut into pieces ([`pretokenize`], [`splits`] or [`words`]), and
//! each piece becomes ids by merges ([`bpe`]) or by likelihood ([`unigram`]). Models start with bytes
//! (byte-level BPE: GPT-2, Llama 3, Qwen …) or with characters and `▁` for a space (SentencePiece:
//! Llama 2, Mistral, Gemma, T5 …). The ids equal those of `tokenizers` on the same file, but for
//! characters that came to Unicode in the last years: its tables are older.

mod added;
mod bpe;
mod build;
mod bytes;
mod cache;
mod count;
mod gguf;
mod json;
mod model;
mod normalize;
mod pipeline;
pub mod pretokenize;
mod splits;
mod stream;
mod tokens;
mod train;
mod unigram;
mod words;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};

use compute::Pool;

use added::{Added, Segment};
use cache::Scratch;
use model::Model;
use normalize::Normalizer;
use pretokenize::PreTokenizer;
use splits::Splits;
pub use stream::DecodeStream;
use tokens::Tokens;
pub use train::{Progress, TrainOptions};
use words::{Prefix, Words};

use crate::gguf::{Contents, Head};

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
    #[error("this tokenizer needs what is not supported: {0}")]
    Unsupported(String),
    /// Contradictory contents.
    #[error("broken tokenizer: {0}")]
    Invalid(String),
    /// Metadata of a GGUF file that is missing or of another type.
    #[error(transparent)]
    Gguf(#[from] crate::gguf::GgufError),
    /// Training cannot do what was asked.
    #[error("cannot train a tokenizer: {0}")]
    Train(String),
}

/// A tokenizer. Ids are `0..vocab_size()`; every id has its bytes.
pub struct Tokenizer {
    normalizer: Normalizer,
    cut: Cut,
    model: Model,
    tokens: Tokens,
    added: Added,
    roles: Roles,
    /// Whether a space at the start of what is decoded is left out.
    strip: bool,
    /// Caches and buffers that are not in use.
    scratch: Mutex<Vec<Scratch>>,
}

/// How text is cut into pieces.
#[derive(Clone, Debug)]
enum Cut {
    /// By one known expression.
    Scan(PreTokenizer),
    /// By several in turn, or by one that is not known.
    Splits(Splits),
    /// At spaces.
    Words(Words, Prefix),
}

/// The tokens that have a part to play, as far as the file tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Roles {
    /// Begins a text.
    pub bos: Option<u32>,
    /// Ends a text.
    pub eos: Option<u32>,
    /// Ends a turn of a conversation.
    pub eot: Option<u32>,
    /// Stands for what has no token.
    pub unknown: Option<u32>,
    /// Whether [`Roles::bos`] goes before text that no template made.
    pub add_bos: bool,
    /// Whether [`Roles::eos`] goes after it.
    pub add_eos: bool,
}

impl Roles {
    /// The tokens with which a model says that it is done.
    pub fn ends(&self) -> impl Iterator<Item = u32> {
        let eot = self.eot.filter(|_| self.eot != self.eos);
        self.eos.into_iter().chain(eot)
    }
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

    /// The tokenizer of a GGUF file: the keys `tokenizer.ggml.*`. `bytes` is the whole file.
    ///
    /// # Errors
    /// Keys that are missing, a kind of tokenizer or a pre-tokenizer that is not known here, and
    /// what contradicts itself.
    pub fn from_gguf(contents: &Contents, bytes: &[u8]) -> Result<Tokenizer, TokenizerError> {
        gguf::read(contents, bytes)
    }

    /// The text of a `tokenizer.json` that `tokenizers` reads. Of those that are trained here, and of
    /// those with the same parts, byte for byte as it would write it.
    pub fn to_json(&self) -> String {
        json::write(self)
    }

    /// Writes the keys `tokenizer.ggml.*`, for a model whose embedding has `rows`. `roles` say which
    /// tokens have a part to play.
    ///
    /// # Errors
    /// What the keys of GGUF can't say: they name a pre-tokenizer where `tokenizer.json` has an
    /// expression.
    pub fn to_gguf(
        &self,
        rows: usize,
        roles: &Roles,
        head: &mut Head,
    ) -> Result<(), TokenizerError> {
        gguf::write(self, rows, roles, head)
    }

    /// The ids of a text, in which nothing is control: what looks like a special token is cut into
    /// ordinary ones.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        self.encode_as(text, false)
    }

    /// The ids of a rendered template, in which the added tokens are recognised wherever they
    /// stand. Never for text from outside.
    pub fn encode_with_special(&self, text: &str) -> Vec<u32> {
        self.encode_as(text, true)
    }

    /// [`Tokenizer::encode`] of many texts, on the pool's threads.
    pub fn encode_batch<T: AsRef<str> + Sync>(&self, pool: &Pool, texts: &[T]) -> Vec<Vec<u32>> {
        let results: Vec<OnceLock<Vec<u32>>> = texts.iter().map(|_| OnceLock::new()).collect();
        pool.run(texts.len(), |i| {
            let _ = results[i].set(self.encode(texts[i].as_ref()));
        });
        results.into_iter().map(|result| result.into_inner().unwrap_or_default()).collect()
    }

    fn encode_as(&self, text: &str, control: bool) -> Vec<u32> {
        let mut ids = vec![];
        let mut start = true;
        self.with_scratch(|scratch| {
            let each = |segment: Segment<'_>| {
                match segment {
                    Segment::Token(id) => ids.push(id),
                    Segment::Text(text) => self.encode_normalized(text, start, scratch, &mut ids),
                }
                start = false;
            };
            self.added.split(text, control, |text| self.normalizer.apply(text), each);
        });
        ids
    }

    /// The ids of normalised text; `first` at the start of all.
    fn encode_normalized(
        &self,
        text: &str,
        first: bool,
        scratch: &mut Scratch,
        ids: &mut Vec<u32>,
    ) {
        let mut start = 0;
        match &self.cut {
            Cut::Scan(pre_tokenizer) => {
                pre_tokenizer.each(text, |start, end| scratch.encode(self, text, start, end, ids));
            }
            Cut::Splits(splits) => splits.pieces(text, &mut |piece| {
                scratch.encode(self, piece, 0, piece.len(), ids);
            }),
            Cut::Words(words, prefix) => {
                let wanted = *prefix == Prefix::Always || (*prefix == Prefix::First && first);
                if wanted && !text.is_empty() && !text.starts_with(' ') {
                    start = words.piece_end(text, 0);
                    let piece = format!(" {}", &text[..start]);
                    scratch.encode(self, &piece, 0, piece.len(), ids);
                }
                while start < text.len() {
                    let end = words.piece_end(text, start);
                    scratch.encode(self, text, start, end, ids);
                    start = end;
                }
            }
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
        let bytes: Vec<u8> =
            ids.iter().filter_map(|&id| self.token_bytes(id)).flatten().copied().collect();
        match self.without_prefix(&bytes) {
            rest if rest.len() < bytes.len() => rest.to_vec(),
            _ => bytes,
        }
    }

    /// The first bytes, without the space that was put before the text.
    fn without_prefix<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        bytes.strip_prefix(b" ").filter(|_| self.strip).unwrap_or(bytes)
    }

    /// The bytes of one token; `None` beyond the vocabulary.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.tokens.get(id)
    }

    /// The id of a control token by its text, such as `<|im_end|>`.
    pub fn special_id(&self, name: &str) -> Option<u32> {
        self.special_tokens().find(|(_, content)| *content == name).map(|(id, _)| id)
    }

    /// The text of a control token, such as `<|im_end|>`; `None` for any other.
    pub fn special_name(&self, id: u32) -> Option<&str> {
        self.added.get(id).filter(|token| !token.text).map(|token| token.content.as_str())
    }

    /// Whether an id is a control token: one that [`Tokenizer::encode`] never gives (but for
    /// [`Roles::unknown`], which stands for what it cannot say).
    pub fn is_special(&self, id: u32) -> bool {
        self.added.get(id).is_some_and(|token| !token.text)
    }

    /// The texts of the control tokens, by id. Added tokens that are just a way to write text, such
    /// as Gemma's runs of newlines, are not among them.
    pub fn special_tokens(&self) -> impl Iterator<Item = (u32, &str)> {
        let control = self.added.tokens.iter().filter(|token| !token.text);
        control.map(|token| (token.id, token.content.as_str()))
    }

    /// The tokens that begin and end texts, as far as the file tells.
    pub fn roles(&self) -> &Roles {
        &self.roles
    }

    /// Number of tokens, the added ones included.
    pub fn vocab_size(&self) -> usize {
        self.tokens.len()
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer({:?}, {} tokens)", self.cut, self.vocab_size())
    }
}
