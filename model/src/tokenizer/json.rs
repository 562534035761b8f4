//! `tokenizer.json`, in the layout of Qwen2 and Qwen3.

use std::collections::HashMap;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::{Value, json};

use super::added::{Added, AddedToken};
use super::pretokenize::PreTokenizer;
use super::{Tokenizer, TokenizerError, bytes, normalize};

/// As in the file; the parts that come in kinds stay values until [`read`] looks at them.
#[derive(serde::Serialize, serde::Deserialize)]
struct File {
    version: String,
    #[serde(default)]
    truncation: Value,
    #[serde(default)]
    padding: Value,
    #[serde(default)]
    added_tokens: Vec<FileToken>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
    model: Model,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct FileToken {
    id: u32,
    content: String,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
    normalized: bool,
    special: bool,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Model {
    r#type: Option<String>,
    dropout: Option<f32>,
    unk_token: Option<String>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    fuse_unk: bool,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
    vocab: Vocab,
    merges: Vec<Merge>,
}

/// Token and id, in the file's order, double ones included.
struct Vocab(Vec<(String, u32)>);

impl Serialize for Vocab {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (token, id) in &self.0 {
            map.serialize_entry(token, id)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Vocab {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Vocab, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Vocab;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of token to id")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vocab, A::Error> {
                let mut entries = vec![];
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Vocab(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// Left and right: `["a", "b"]`, or `"a b"` as older files have it.
struct Merge(String, String);

impl Serialize for Merge {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        [&self.0, &self.1].serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Merge, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Merge;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a merge, [\"left\", \"right\"] or \"left right\"")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Merge, E> {
                match text.split_once(' ') {
                    Some((left, right)) if !right.contains(' ') => {
                        Ok(Merge(left.into(), right.into()))
                    }
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Merge, A::Error> {
                let wrong = |n| de::Error::invalid_length(n, &"two tokens");
                let left = seq.next_element()?.ok_or_else(|| wrong(0))?;
                let right = seq.next_element()?.ok_or_else(|| wrong(1))?;
                match seq.next_element::<de::IgnoredAny>()? {
                    None => Ok(Merge(left, right)),
                    Some(_) => Err(wrong(3)),
                }
            }
        }
        deserializer.deserialize_any(Either)
    }
}

fn byte_level() -> Value {
    json!({
        "type": "ByteLevel",
        "add_prefix_space": false,
        "trim_offsets": false,
        "use_regex": false,
    })
}

pub(super) fn write(tokenizer: &Tokenizer) -> String {
    let added = &tokenizer.added.tokens;
    let text = |id: u32| {
        let bytes = tokenizer.token_bytes(id).unwrap_or_default();
        match added.binary_search_by_key(&id, |token| token.id) {
            Ok(at) => added[at].content.clone(),
            Err(_) => bytes::to_text(bytes),
        }
    };
    let file = File {
        version: "1.0".into(),
        truncation: Value::Null,
        padding: Value::Null,
        added_tokens: added
            .iter()
            .map(|token| FileToken {
                id: token.id,
                content: token.content.clone(),
                single_word: false,
                lstrip: false,
                rstrip: false,
                normalized: token.normalized,
                special: token.special,
            })
            .collect(),
        normalizer: json!({"type": "NFC"}),
        pre_tokenizer: json!({
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": tokenizer.pre_tokenizer.pattern()},
                    "behavior": "Isolated",
                    "invert": false,
                },
                byte_level(),
            ],
        }),
        post_processor: byte_level(),
        decoder: byte_level(),
        model: Model {
            r#type: Some("BPE".into()),
            dropout: None,
            unk_token: None,
            continuing_subword_prefix: Some(String::new()),
            end_of_word_suffix: Some(String::new()),
            fuse_unk: false,
            byte_fallback: false,
            ignore_merges: false,
            vocab: Vocab((0..tokenizer.model_tokens as u32).map(|id| (text(id), id)).collect()),
            merges: tokenizer.merge_list.iter().map(|&(l, r)| Merge(text(l), text(r))).collect(),
        },
    };
    // Strings and numbers always serialise.
    serde_json::to_string_pretty(&file).unwrap_or_default()
}

pub(super) fn read(text: &str) -> Result<Tokenizer, TokenizerError> {
    let file: File = serde_json::from_str(text)?;
    let pre_tokenizer = check_kind(&file)?;
    let invalid = |what: String| Err(TokenizerError::Invalid(what));

    let model_tokens = file.model.vocab.0.len();
    let mut ids: HashMap<&str, u32> = HashMap::with_capacity(model_tokens);
    for (token, id) in &file.model.vocab.0 {
        if ids.insert(token, *id).is_some() {
            return invalid(format!("token {token:?} is there twice in the vocabulary"));
        }
    }
    let mut texts: Vec<Option<&str>> = vec![None; model_tokens];
    for (token, id) in &file.model.vocab.0 {
        match texts.get_mut(*id as usize) {
            None => {
                return invalid(format!(
                    "token {token:?} has id {id}, but the vocabulary has {model_tokens} tokens and \
                     ids must have no gaps"
                ));
            }
            Some(Some(other)) => {
                return invalid(format!("tokens {token:?} and {other:?} share id {id}"));
            }
            Some(free) => *free = Some(token),
        }
    }

    let added = added_tokens(&file, &ids)?;
    let mut model = Vec::with_capacity(model_tokens);
    let mut bytes_seen = [false; 256];
    for (id, text) in texts.iter().enumerate() {
        let text = text.unwrap_or_default();
        let literal = added.has(id as u32);
        let bytes = if literal { Some(text.into()) } else { bytes::from_text(text) };
        let Some(bytes) = bytes.filter(|bytes| !bytes.is_empty()) else {
            return invalid(format!("token {text:?} (id {id}) is not in the byte-level alphabet"));
        };
        if let (&[byte], false) = (&bytes[..], literal) {
            bytes_seen[byte as usize] = true;
        }
        model.push(bytes);
    }
    if let Some(byte) = bytes_seen.iter().position(|seen| !seen) {
        return invalid(format!("the vocabulary lacks the byte 0x{byte:02x}"));
    }

    let mut merges = Vec::with_capacity(file.model.merges.len());
    for Merge(left, right) in &file.model.merges {
        let made = format!("{left}{right}");
        let id = |token: &str| {
            ids.get(token).copied().ok_or_else(|| {
                TokenizerError::Invalid(format!(
                    "the merge of {left:?} and {right:?} needs the token {token:?}, which is not \
                     in the vocabulary"
                ))
            })
        };
        let made = id(&made)?;
        if added.has(made) {
            return Err(TokenizerError::Unsupported(format!(
                "added token {:?} that text can merge into",
                texts[made as usize].unwrap_or_default()
            )));
        }
        merges.push((id(left)?, id(right)?, made));
    }
    Ok(Tokenizer::new(pre_tokenizer, &model, &merges, added))
}

/// The added tokens, whose ids go on where the model's end, or are the model's for the same text.
fn added_tokens(file: &File, ids: &HashMap<&str, u32>) -> Result<Added, TokenizerError> {
    let invalid = |what: String| Err(TokenizerError::Invalid(what));
    let mut tokens = vec![];
    let mut names = HashMap::new();
    for token in &file.added_tokens {
        let FileToken { id, content, .. } = token;
        if token.single_word || token.lstrip || token.rstrip {
            return Err(TokenizerError::Unsupported(format!(
                "added token {content:?} with single_word, lstrip or rstrip"
            )));
        }
        if content.is_empty() {
            return invalid(format!("added token {id} is empty"));
        }
        if names.insert(content.as_str(), ()).is_some() {
            return invalid(format!("added token {content:?} is there twice"));
        }
        match ids.get(content.as_str()) {
            Some(known) if known != id => {
                return invalid(format!(
                    "added token {content:?} has id {id}, but {known} in the vocabulary"
                ));
            }
            None if (*id as usize) < ids.len() => {
                return invalid(format!("added token {content:?} has id {id} of another token"));
            }
            _ => {}
        }
        tokens.push(AddedToken {
            id: *id,
            content: content.clone(),
            normalized: token.normalized,
            special: token.special,
        });
    }
    tokens.sort_by_key(|token| token.id);
    let beyond = tokens.iter().filter(|token| token.id as usize >= ids.len());
    for (expected, token) in (ids.len()..).zip(beyond) {
        if token.id as usize != expected {
            return invalid(format!(
                "added token {:?} has id {}, expected {expected}: ids must have no gaps and none twice",
                token.content, token.id
            ));
        }
    }
    Added::new(tokens, normalize)
}

/// Whether all parts are of the kinds known here.
fn check_kind(file: &File) -> Result<PreTokenizer, TokenizerError> {
    let unsupported = |what: String| Err(TokenizerError::Unsupported(what));
    let is = |value: &Value, kind: &str| value["type"] == kind;
    let model = &file.model;
    let empty = |text: &Option<String>| text.as_deref().is_none_or(str::is_empty);
    if model.r#type.as_deref().is_some_and(|kind| kind != "BPE") {
        return unsupported(format!("model type {:?}, not BPE", model.r#type));
    }
    if model.dropout.is_some_and(|p| p != 0.0)
        || model.unk_token.is_some()
        || model.byte_fallback
        || model.ignore_merges
        || !empty(&model.continuing_subword_prefix)
        || !empty(&model.end_of_word_suffix)
    {
        return unsupported(
            "BPE with dropout, unk_token, byte_fallback, ignore_merges, prefix or suffix".into(),
        );
    }
    for (name, value) in [("truncation", &file.truncation), ("padding", &file.padding)] {
        if !value.is_null() {
            return unsupported(format!("{name} set in the file"));
        }
    }
    if !is(&file.normalizer, "NFC") {
        return unsupported(format!("normalizer {}, not NFC", file.normalizer));
    }
    if !is(&file.decoder, "ByteLevel") {
        return unsupported(format!("decoder {}, not ByteLevel", file.decoder));
    }
    if !file.post_processor.is_null() && !is(&file.post_processor, "ByteLevel") {
        return unsupported(format!("post-processor {}, not ByteLevel", file.post_processor));
    }
    let parts = file.pre_tokenizer["pretokenizers"].as_array();
    let known = match parts.map(Vec::as_slice) {
        Some([split, level])
            if is(&file.pre_tokenizer, "Sequence")
                && is(split, "Split")
                && split["behavior"] == "Isolated"
                && split["invert"] == false
                && is(level, "ByteLevel")
                && level["add_prefix_space"] == false
                && level["use_regex"] == false =>
        {
            split["pattern"]["Regex"].as_str().and_then(PreTokenizer::from_pattern)
        }
        _ => None,
    };
    match known {
        Some(kind) => Ok(kind),
        None => unsupported(format!("pre-tokenizer {}", file.pre_tokenizer)),
    }
}
