//! From a checked vocabulary, wherever it was read, to what encodes with it.

use std::borrow::Cow;
use std::cmp::{Ordering, Reverse};
use std::collections::HashMap;

use foldhash::fast::RandomState;

use super::bpe::Merges;
use super::model::{Bpe, ByByte, Model, NONE, Symbols};
use super::normalize::SPACE;
use super::tokens::{Lookup, Tokens};
use super::unigram::Unigram;
use super::words::Words;
use super::{TokenizerError, bytes};

/// Longest token, in bytes, of models whose work goes with it.
const LONGEST: usize = 512;
/// Ways to make a token, on average; those of real vocabularies have two or three.
const WAYS: usize = 8;

/// A token as a file has it.
pub(super) struct Entry<'a> {
    pub(super) text: Cow<'a, str>,
    pub(super) score: f64,
    pub(super) kind: Kind,
}

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
    /// A part of texts.
    Normal,
    /// A part of texts that comes before all others.
    User,
    /// A byte of an unknown character.
    Byte(u8),
    /// Control, or not used: nothing in a text becomes it.
    Literal,
}

impl Kind {
    fn is_text(self) -> bool {
        matches!(self, Kind::Normal | Kind::User)
    }
}

/// A merge: left, right, what they become.
pub(super) type Merge = (u32, u32, u32);

type Ids<'a> = HashMap<&'a str, u32, RandomState>;

fn invalid<T>(what: String) -> Result<T, TokenizerError> {
    Err(TokenizerError::Invalid(what))
}

/// Ids by text.
///
/// # Errors
/// A text that is there twice.
pub(super) fn ids<'a>(entries: &'a [Entry<'_>]) -> Result<Ids<'a>, TokenizerError> {
    let mut ids = Ids::with_capacity_and_hasher(entries.len(), RandomState::default());
    for (id, entry) in (0..).zip(entries) {
        if ids.insert(&*entry.text, id).is_some() {
            return invalid(format!("token {:?} is there twice in the vocabulary", entry.text));
        }
    }
    Ok(ids)
}

/// The merges of a file, by their texts. What would merge into control is left out: text never
/// becomes it.
///
/// # Errors
/// Merges of unknown tokens.
pub(super) fn merges<'a>(
    entries: &[Entry<'_>],
    ids: &Ids<'_>,
    pairs: impl Iterator<Item = (&'a str, &'a str)>,
) -> Result<Vec<Merge>, TokenizerError> {
    let mut merges = vec![];
    let mut made = String::new();
    for (left, right) in pairs {
        made.clear();
        made.push_str(left);
        made.push_str(right);
        let id = |token: &str| {
            ids.get(token).copied().ok_or_else(|| {
                TokenizerError::Invalid(format!(
                    "the merge of {left:?} and {right:?} needs the token {token:?}, which is not \
                     in the vocabulary"
                ))
            })
        };
        let merge = (id(left)?, id(right)?, id(&made)?);
        let kind = |id: u32| entries[id as usize].kind;
        if [merge.0, merge.1, merge.2].iter().any(|&id| matches!(kind(id), Kind::Byte(_))) {
            return Err(TokenizerError::Unsupported(format!(
                "the merge of {left:?} and {right:?}, a byte"
            )));
        }
        if kind(merge.2).is_text() {
            merges.push(merge);
        }
    }
    Ok(merges)
}

/// The merges that scores stand for: every way to make a token of two, the best token first.
///
/// # Errors
/// Scores that are no numbers, and vocabularies that would take more memory or time than sound
/// ones.
pub(super) fn merges_by_score(
    entries: &[Entry<'_>],
    ids: &Ids<'_>,
) -> Result<Vec<Merge>, TokenizerError> {
    check_scored(entries)?;
    let mut found = vec![];
    for (made, entry) in (0..).zip(entries).filter(|(_, entry)| entry.kind.is_text()) {
        let text = &*entry.text;
        let known =
            |text: &str| ids.get(text).copied().filter(|&id| entries[id as usize].kind.is_text());
        let chars = text.chars().count();
        for (left_chars, (at, _)) in text.char_indices().enumerate().skip(1) {
            if let Some(left) = known(&text[..at])
                && let Some(right) = known(&text[at..])
            {
                found.push((Reverse((left_chars as u16, chars as u16)), (left, right, made)));
            }
        }
        if found.len() > WAYS * entries.len() {
            return invalid(format!("more than {WAYS} ways to make a token, on average"));
        }
    }
    // Of equal ones, the longest left part first, then the longest right one: as converters of SentencePiece's files do.
    found.sort_unstable_by(|(x_chars, x), (y_chars, y)| {
        let (a, b) = (&entries[x.2 as usize], &entries[y.2 as usize]);
        match (a.kind, b.kind) {
            (Kind::User, Kind::User) => x.2.cmp(&y.2),
            (Kind::User, _) => Ordering::Less,
            (_, Kind::User) => Ordering::Greater,
            _ => b.score.total_cmp(&a.score),
        }
        .then_with(|| (x_chars, x.2, x.0, x.1).cmp(&(y_chars, y.2, y.0, y.1)))
    });
    Ok(found.into_iter().map(|(_, merge)| merge).collect())
}

fn check_scored(entries: &[Entry<'_>]) -> Result<(), TokenizerError> {
    for (id, entry) in entries.iter().enumerate() {
        if !entry.score.is_finite() {
            return invalid(format!("token {:?} (id {id}) has score {}", entry.text, entry.score));
        }
        if entry.text.len() > LONGEST && entry.kind.is_text() {
            return Err(TokenizerError::Unsupported(format!(
                "token {id} has {} bytes; at most {LONGEST} are read",
                entry.text.len()
            )));
        }
    }
    Ok(())
}

/// Byte-level BPE. `whole`: a piece that is a token is not merged.
///
/// # Errors
/// Tokens that are not in the byte-level alphabet; bytes of usual text that are missing.
pub(super) fn byte_level(
    entries: &[Entry<'_>],
    merges: Vec<Merge>,
    whole: bool,
) -> Result<(Tokens, Model), TokenizerError> {
    let mut tokens = Tokens::default();
    let mut symbols = Box::new([NONE; 256]);
    for (id, entry) in (0..).zip(entries) {
        let bytes = match entry.kind {
            Kind::Literal => Some(entry.text.as_bytes().to_vec()),
            _ => bytes::from_text(&entry.text),
        };
        let Some(bytes) = bytes.filter(|bytes| !bytes.is_empty()) else {
            let text = &entry.text;
            return invalid(format!("token {text:?} (id {id}) is not in the byte-level alphabet"));
        };
        if let (&[byte], true) = (&bytes[..], entry.kind.is_text()) {
            symbols[byte as usize] = id;
        }
        tokens.push(&bytes);
    }
    // Some vocabularies lack bytes of rare characters; then they are left out, as elsewhere.
    let usual = |byte: &u8| matches!(byte, b'\t' | b'\n' | b' '..=b'~');
    if let Some(byte) = (0..=255).filter(usual).find(|&byte| symbols[byte as usize] == NONE) {
        return invalid(format!("the vocabulary lacks the byte 0x{byte:02x}"));
    }
    let whole = whole.then(|| lookup(&tokens, entries));
    let (merges, list) = ranked(merges);
    Ok((tokens, Model::Bpe(Bpe { symbols: Symbols::Bytes(symbols), merges, list, whole })))
}

/// What stands for characters that have no token.
#[derive(Clone, Copy, Default)]
pub(super) struct Unknown {
    pub(super) token: Option<u32>,
    /// Several side by side are one.
    pub(super) fuse: bool,
    /// Tokens of bytes come first.
    pub(super) bytes: bool,
}

/// BPE of characters with spaces, and where text can be cut for it.
///
/// # Errors
/// Tokens that are empty or have a space not written as `▁`.
pub(super) fn sentence_piece(
    entries: &[Entry<'_>],
    merges: Vec<Merge>,
    unknown: Unknown,
) -> Result<(Tokens, Model, Words), TokenizerError> {
    let (tokens, bytes) = spaced(entries, unknown)?;
    let mut ids: HashMap<char, u32, RandomState> = HashMap::default();
    for (id, text) in texts(&tokens, entries) {
        let mut chars = text.chars();
        if let (Some(c), None) = (chars.next(), chars.next()) {
            ids.insert(c, id);
        }
    }
    let words = harmless(&tokens, entries, unknown);
    let symbols = Symbols::Chars { ids, bytes, unknown: unknown.token, fuse: unknown.fuse };
    let (merges, list) = ranked(merges);
    Ok((tokens, Model::Bpe(Bpe { symbols, merges, list, whole: None }), words))
}

/// The unigram model, and where text can be cut for it.
///
/// # Errors
/// Scores that are no numbers; tokens that are too long, empty, or have a space.
pub(super) fn unigram(
    entries: &[Entry<'_>],
    unknown: Unknown,
) -> Result<(Tokens, Model, Words), TokenizerError> {
    check_scored(entries)?;
    let (tokens, bytes) = spaced(entries, unknown)?;
    let bytes = bytes.filter(|ids| ids.iter().all(|&id| id != NONE));
    let scores = entries.iter().map(|entry| entry.score).collect();
    let words = harmless(&tokens, entries, unknown);
    let lookup = lookup(&tokens, entries);
    Ok((tokens, Model::Unigram(Unigram::new(scores, lookup, unknown.token, bytes)), words))
}

/// Tokens with spaces for `▁`, and the ids of bytes.
fn spaced(
    entries: &[Entry<'_>],
    unknown: Unknown,
) -> Result<(Tokens, Option<ByByte>), TokenizerError> {
    let mut tokens = Tokens::default();
    let mut bytes = Box::new([NONE; 256]);
    for (id, entry) in (0..).zip(entries) {
        let text = &*entry.text;
        if text.is_empty() {
            return invalid(format!("token {id} is empty"));
        }
        match entry.kind {
            Kind::Byte(byte) => {
                if bytes[byte as usize] != NONE {
                    return invalid(format!("byte token {text:?} is there twice"));
                }
                bytes[byte as usize] = id;
                tokens.push(&[byte]);
            }
            Kind::Literal => tokens.push(text.as_bytes()),
            _ if text.contains(' ') => {
                return invalid(format!("token {text:?} (id {id}) has a space"));
            }
            _ => tokens.push(text.replace(SPACE, " ").as_bytes()),
        }
    }
    Ok((tokens, unknown.bytes.then_some(bytes)))
}

/// The tokens that text becomes, and their ids.
fn texts<'a>(tokens: &'a Tokens, entries: &'a [Entry<'_>]) -> impl Iterator<Item = (u32, &'a str)> {
    let text = |id| std::str::from_utf8(tokens.get(id).unwrap_or_default()).unwrap_or_default();
    let text_entries = (0..).zip(entries).filter(|(_, entry)| entry.kind.is_text());
    text_entries.map(move |(id, _)| (id, text(id)))
}

fn lookup(tokens: &Tokens, entries: &[Entry<'_>]) -> Lookup {
    let ids = (0..).zip(entries).filter(|(_, entry)| entry.kind.is_text());
    Lookup::new(tokens, ids.map(|(id, _)| id))
}

fn harmless(tokens: &Tokens, entries: &[Entry<'_>], unknown: Unknown) -> Words {
    let mut space = texts(tokens, entries).any(|(_, text)| text == " ");
    // A token of unknown characters that is text could be merged with a space.
    space &= unknown.token.is_none_or(|id| entries[id as usize].kind == Kind::Literal);
    Words::harmless(texts(tokens, entries).map(|(_, text)| text), space)
}

fn ranked(merges: Vec<Merge>) -> (Merges, Vec<(u32, u32)>) {
    let mut ranks = Merges::default();
    for &(left, right, made) in &merges {
        ranks.push(left, right, made);
    }
    (ranks, merges.into_iter().map(|(left, right, _)| (left, right)).collect())
}

/// The byte that a text such as `<0x0A>` stands for.
pub(super) fn byte_of(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2 && !digits.starts_with('+')).then(|| u8::from_str_radix(digits, 16).ok())?
}
