//! `tokenizer.json`, the file of Hugging Face's `tokenizers`.

mod layout;

use std::borrow::Cow;
use std::collections::HashMap;

use super::added::{Added, AddedToken};
use super::build::{self, Entry, Kind, Unknown};
use super::model::{Model, Symbols};
use super::normalize::SPACE;
use super::{Cut, Tokenizer, TokenizerError, bytes, pipeline};
pub(super) use layout::halves;
use layout::{AnyModel, BpeModel, File, FileToken, Merge, Text, UnigramModel, Vocab, WrittenModel};

fn invalid<T>(what: String) -> Result<T, TokenizerError> {
    Err(TokenizerError::Invalid(what))
}

fn unsupported<T>(what: String) -> Result<T, TokenizerError> {
    Err(TokenizerError::Unsupported(what))
}

pub(super) fn read(text: &str) -> Result<Tokenizer, TokenizerError> {
    let mut file: File<AnyModel<'_>> = serde_json::from_str(text)?;
    check(&file)?;
    let byte_level = pipeline::is_byte_level(&file.pre_tokenizer);
    let vocabulary = std::mem::replace(&mut file.model.vocab, Vocab::Ids(vec![]));
    let scored = matches!(vocabulary, Vocab::Scores(_));
    let (mut entries, added) = entries(vocabulary, &file.added_tokens, byte_level)?;
    let model = &file.model;
    for entry in entries.iter_mut().filter(|entry| entry.kind == Kind::Normal) {
        if let Some(byte) = build::byte_of(&entry.text)
            && model.byte_fallback
        {
            entry.kind = Kind::Byte(byte);
        }
    }
    let ids = build::ids(&entries)?;
    let token = match &model.unk_token {
        None => model.unk_id,
        Some(name) => match ids.get(name.as_str()) {
            Some(&id) => Some(id),
            None => return invalid(format!("the unknown token {name:?} is not in the vocabulary")),
        },
    };
    if token.is_some_and(|id| id as usize >= entries.len()) {
        return invalid(format!("the unknown token {token:?} is beyond the vocabulary"));
    }
    let unknown = Unknown { token, fuse: model.fuse_unk, bytes: model.byte_fallback };
    let merges = match scored {
        true => vec![],
        false => {
            let pairs = model.merges.iter().map(|Merge(left, right)| (&*left.0, &*right.0));
            build::merges(&entries, &ids, pairs)?
        }
    };
    drop(ids);

    let mut normalizer = pipeline::normalizer(&file.normalizer)?;
    let (tokens, model, cut, strip) = if byte_level {
        pipeline::check_byte_decoder(&file.decoder)?;
        let cut = pipeline::splits(&file.pre_tokenizer)?;
        let (tokens, model) = build::byte_level(&entries, merges, model.ignore_merges)?;
        if token.is_some() && model.lacks_bytes() {
            return unsupported("unk_token for missing bytes".into());
        }
        (tokens, model, cut, false)
    } else {
        let strip = pipeline::strips(&file.decoder)?;
        let (tokens, model, words) = match scored {
            true => build::unigram(&entries, unknown)?,
            false => build::sentence_piece(&entries, merges, unknown)?,
        };
        let cut = pipeline::words(&file.pre_tokenizer, &mut normalizer, words)?;
        (tokens, model, cut, strip)
    };
    let mut roles = pipeline::roles(&file.post_processor)?;
    roles.unknown = token;
    if [roles.bos, roles.eos].into_iter().flatten().any(|id| id as usize >= tokens.len()) {
        return invalid("the post-processor adds tokens beyond the vocabulary".into());
    }
    let added = Added::new(added, |text| normalizer.apply(text))?;
    let scratch = Default::default();
    Ok(Tokenizer { normalizer, cut, model, tokens, added, roles, strip, scratch })
}

/// Whether all parts are of the kinds known here.
fn check(file: &File<AnyModel<'_>>) -> Result<(), TokenizerError> {
    let model = &file.model;
    let empty = |text: &Option<String>| text.as_deref().is_none_or(str::is_empty);
    let byte_level = pipeline::is_byte_level(&file.pre_tokenizer);
    match (model.r#type.as_deref(), &model.vocab) {
        (None | Some("BPE"), Vocab::Ids(_)) => {}
        (None | Some("Unigram"), Vocab::Scores(_)) if !byte_level => {}
        (kind, _) => return unsupported(format!("model type {kind:?} with such a vocabulary")),
    }
    if model.dropout.is_some_and(|p| p != 0.0)
        || !empty(&model.continuing_subword_prefix)
        || !empty(&model.end_of_word_suffix)
    {
        return unsupported("BPE with dropout, prefix or suffix".into());
    }
    if byte_level && model.byte_fallback {
        return unsupported("byte-level BPE with byte_fallback".into());
    }
    if !byte_level && model.ignore_merges {
        return unsupported("ignore_merges without bytes".into());
    }
    for (name, value) in [("truncation", &file.truncation), ("padding", &file.padding)] {
        if !value.is_null() {
            return unsupported(format!("{name} set in the file"));
        }
    }
    Ok(())
}

/// All tokens by id, and the added ones, whose ids go on where the model's end, fill its gaps, or
/// are the model's for the same text.
fn entries<'a>(
    vocabulary: Vocab<'a>,
    added: &[FileToken],
    byte_level: bool,
) -> Result<(Vec<Entry<'a>>, Vec<AddedToken>), TokenizerError> {
    let list: Vec<(Cow<'a, str>, u32, f64)> = match vocabulary {
        Vocab::Ids(list) => list.into_iter().map(|(text, id)| (text.0, id, 0.0)).collect(),
        Vocab::Scores(list) => {
            list.into_iter().zip(0..).map(|((text, score), id)| (text.0, id, score)).collect()
        }
    };
    let model_tokens = list.len();
    let most = model_tokens + added.len();
    let mut slots: Vec<Option<Entry<'a>>> = Vec::new();
    slots.resize_with(most, || None);
    for (text, id, score) in list {
        match slots.get_mut(id as usize) {
            None => {
                return invalid(format!(
                    "token {text:?} has id {id}, but there are {most} tokens and ids must have no \
                     gaps"
                ));
            }
            Some(Some(other)) => {
                return invalid(format!("tokens {text:?} and {:?} share id {id}", other.text));
            }
            Some(free) => *free = Some(Entry { text, score, kind: Kind::Normal }),
        }
    }
    let mut names = HashMap::new();
    let mut tokens = vec![];
    // What only the model has is text for sure.
    let named: HashMap<u32, &FileToken> = added.iter().map(|token| (token.id, token)).collect();
    let ordinary = |id: &usize| slots[*id].is_some() && !named.contains_key(&(*id as u32));
    let last_ordinary = (0..most).rev().find(ordinary).unwrap_or_default();
    for token in added {
        let FileToken { id, content, .. } = token;
        if content.is_empty() {
            return invalid(format!("added token {id} is empty"));
        }
        if names.insert(content.as_str(), ()).is_some() {
            return invalid(format!("added token {content:?} is there twice"));
        }
        let slot = match slots.get_mut(*id as usize) {
            Some(slot) => slot,
            None => {
                return invalid(format!(
                    "added token {content:?} has id {id}: ids must have no gaps"
                ));
            }
        };
        let in_model = slot.is_some();
        match slot {
            Some(known) if known.text != *content => {
                return invalid(format!(
                    "added token {content:?} has id {id} of another token, {:?}: ids must have no \
                     gaps and none twice",
                    known.text
                ));
            }
            _ => {}
        }
        let mut token = AddedToken {
            normalized: token.normalized,
            lstrip: token.lstrip,
            rstrip: token.rstrip,
            single_word: token.single_word,
            ..AddedToken::new(*id, content.clone(), token.special)
        };
        let early = in_model && (*id as usize) < last_ordinary;
        token.text = is_text(&token, early && !byte_level);
        // A way to write text can be merged, too, if the model knows it.
        let kind = match token.text && in_model && !content.contains(' ') {
            true => Kind::Normal,
            false => Kind::Literal,
        };
        let score = slot.as_ref().map_or(0.0, |entry| entry.score);
        *slot = Some(Entry { text: Cow::Owned(content.clone()), score, kind });
        tokens.push(token);
    }
    while matches!(slots.last(), Some(None)) {
        slots.pop();
    }
    match slots.iter().position(Option::is_none) {
        Some(id) => invalid(format!("no token has id {id}: ids must have no gaps")),
        None => Ok((slots.into_iter().flatten().collect(), tokens)),
    }
}

/// Whether an added token is a way to write text rather than control: it is white space, or it is
/// `early`, that is, one of the tokens that SentencePiece was told of before it learnt the others.
pub(super) fn is_text(token: &AddedToken, early: bool) -> bool {
    let blank = token.content.chars().all(|c| c.is_whitespace() || c == SPACE);
    !token.special && (blank || early)
}

/// Tokens as files write them.
pub(super) struct Texts<'a> {
    tokenizer: &'a Tokenizer,
    byte_level: bool,
    /// Tokens that stand for a byte of an unknown character.
    bytes_by_id: HashMap<u32, u8>,
}

impl<'a> Texts<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer) -> Texts<'a> {
        let byte_ids = match &tokenizer.model {
            Model::Bpe(bpe) => match &bpe.symbols {
                Symbols::Chars { bytes, .. } => bytes.as_deref(),
                Symbols::Bytes(_) => None,
            },
            Model::Unigram(unigram) => unigram.bytes.as_deref(),
        };
        let bytes_by_id: HashMap<u32, u8> =
            byte_ids.into_iter().flat_map(|ids| ids.iter().copied().zip(0..=255)).collect();
        let byte_level = !matches!(tokenizer.cut, Cut::Words(..));
        Texts { tokenizer, byte_level, bytes_by_id }
    }

    /// Whether a token is written as the byte that it stands for.
    pub(super) fn is_byte(&self, id: u32) -> bool {
        self.bytes_by_id.contains_key(&id)
    }

    pub(super) fn of(&self, id: u32) -> String {
        let bytes = self.tokenizer.tokens.get(id).unwrap_or_default();
        if let Some(token) = self.tokenizer.added.get(id) {
            token.content.clone()
        } else if let Some(byte) = self.bytes_by_id.get(&id) {
            format!("<0x{byte:02X}>")
        } else if self.byte_level {
            bytes::to_text(bytes)
        } else {
            String::from_utf8_lossy(bytes).replace(' ', "▁")
        }
    }
}

pub(super) fn write(tokenizer: &Tokenizer) -> String {
    let Tokenizer { normalizer, cut, model, tokens, added, roles, strip, .. } = tokenizer;
    let texts = Texts::new(tokenizer);
    let byte_level = texts.byte_level;
    let has_bytes = match model {
        Model::Bpe(bpe) => matches!(&bpe.symbols, Symbols::Chars { bytes: Some(_), .. }),
        Model::Unigram(unigram) => unigram.bytes.is_some(),
    };
    let text = |id: u32| texts.of(id);
    let written = |id: u32| Text(Cow::Owned(text(id)));
    // Added tokens at the end are written there only, as `tokenizers` does.
    let mut model_tokens = tokens.len() as u32;
    while byte_level && model_tokens > 0 && added.get(model_tokens - 1).is_some() {
        model_tokens -= 1;
    }
    let model = match model {
        Model::Bpe(bpe) => {
            let (unknown, fuse) = match &bpe.symbols {
                Symbols::Chars { unknown, fuse, .. } => (*unknown, *fuse),
                Symbols::Bytes(_) => (None, false),
            };
            let list = bpe.list.iter();
            WrittenModel::Bpe(BpeModel {
                r#type: "BPE",
                dropout: None,
                unk_token: unknown.map(text),
                continuing_subword_prefix: byte_level.then_some(""),
                end_of_word_suffix: byte_level.then_some(""),
                fuse_unk: fuse,
                byte_fallback: has_bytes,
                ignore_merges: bpe.whole.is_some(),
                vocab: Vocab::Ids((0..model_tokens).map(|id| (written(id), id)).collect()),
                merges: list.map(|&(left, right)| Merge(written(left), written(right))).collect(),
            })
        }
        Model::Unigram(unigram) => WrittenModel::Unigram(UnigramModel {
            r#type: "Unigram",
            unk_id: unigram.unknown,
            vocab: Vocab::Scores(
                (0..model_tokens).map(|id| (written(id), unigram.scores[id as usize])).collect(),
            ),
            byte_fallback: has_bytes,
        }),
    };
    let parts = pipeline::write(normalizer, cut, *strip, roles, text);
    let file = File {
        version: "1.0".into(),
        truncation: serde_json::Value::Null,
        padding: serde_json::Value::Null,
        added_tokens: added
            .tokens
            .iter()
            .map(|token| FileToken {
                id: token.id,
                content: token.content.clone(),
                single_word: token.single_word,
                lstrip: token.lstrip,
                rstrip: token.rstrip,
                normalized: token.normalized,
                special: token.special,
            })
            .collect(),
        normalizer: parts.normalizer,
        pre_tokenizer: parts.pre_tokenizer,
        post_processor: parts.post_processor,
        decoder: parts.decoder,
        model,
    };
    // Strings and numbers always serialise.
    serde_json::to_string_pretty(&file).unwrap_or_default()
}
