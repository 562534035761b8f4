//! The layout of a `tokenizer.json`. Texts are borrowed from the file where they are written without
//! escapes, as nearly all are.

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::Value;

/// As in the file; the parts that come in kinds stay values until they are looked at.
#[derive(serde::Serialize, serde::Deserialize)]
pub(super) struct File<M> {
    pub(super) version: String,
    #[serde(default)]
    pub(super) truncation: Value,
    #[serde(default)]
    pub(super) padding: Value,
    #[serde(default)]
    pub(super) added_tokens: Vec<FileToken>,
    #[serde(default)]
    pub(super) normalizer: Value,
    #[serde(default)]
    pub(super) pre_tokenizer: Value,
    #[serde(default)]
    pub(super) post_processor: Value,
    #[serde(default)]
    pub(super) decoder: Value,
    pub(super) model: M,
}

#[derive(serde::Serialize, serde::Deserialize)]
pub(super) struct FileToken {
    pub(super) id: u32,
    pub(super) content: String,
    pub(super) single_word: bool,
    pub(super) lstrip: bool,
    pub(super) rstrip: bool,
    pub(super) normalized: bool,
    pub(super) special: bool,
}

/// A model of either kind, as it is read.
#[derive(serde::Deserialize)]
pub(super) struct AnyModel<'a> {
    pub(super) r#type: Option<String>,
    pub(super) dropout: Option<f32>,
    pub(super) unk_token: Option<String>,
    pub(super) unk_id: Option<u32>,
    pub(super) continuing_subword_prefix: Option<String>,
    pub(super) end_of_word_suffix: Option<String>,
    #[serde(default)]
    pub(super) fuse_unk: bool,
    #[serde(default)]
    pub(super) byte_fallback: bool,
    #[serde(default)]
    pub(super) ignore_merges: bool,
    #[serde(borrow)]
    pub(super) vocab: Vocab<'a>,
    #[serde(default, borrow)]
    pub(super) merges: Vec<Merge<'a>>,
}

/// BPE, as it is written.
#[derive(serde::Serialize)]
pub(super) struct BpeModel<'a> {
    pub(super) r#type: &'static str,
    pub(super) dropout: Option<f32>,
    pub(super) unk_token: Option<String>,
    pub(super) continuing_subword_prefix: Option<&'static str>,
    pub(super) end_of_word_suffix: Option<&'static str>,
    pub(super) fuse_unk: bool,
    pub(super) byte_fallback: bool,
    pub(super) ignore_merges: bool,
    pub(super) vocab: Vocab<'a>,
    pub(super) merges: Vec<Merge<'a>>,
}

/// The unigram model, as it is written.
#[derive(serde::Serialize)]
pub(super) struct UnigramModel<'a> {
    pub(super) r#type: &'static str,
    pub(super) unk_id: Option<u32>,
    pub(super) vocab: Vocab<'a>,
    pub(super) byte_fallback: bool,
}

/// Either of them.
#[derive(serde::Serialize)]
#[serde(untagged)]
pub(super) enum WrittenModel<'a> {
    Bpe(BpeModel<'a>),
    Unigram(UnigramModel<'a>),
}

/// Tokens in the file's order, double ones included.
pub(super) enum Vocab<'a> {
    /// With ids.
    Ids(Vec<(Text<'a>, u32)>),
    /// With scores, one id after another.
    Scores(Vec<(Text<'a>, f64)>),
}

impl Serialize for Vocab<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Vocab::Scores(list) => list.serialize(serializer),
            Vocab::Ids(list) => {
                let mut map = serializer.serialize_map(Some(list.len()))?;
                for (token, id) in list {
                    map.serialize_entry(token, id)?;
                }
                map.end()
            }
        }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Vocab<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Vocab<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of token to id, or a list of tokens and scores")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vocab<'de>, A::Error> {
                let mut entries = vec![];
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Vocab::Ids(entries))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vocab<'de>, A::Error> {
                let mut entries = vec![];
                while let Some(entry) = seq.next_element()? {
                    entries.push(entry);
                }
                Ok(Vocab::Scores(entries))
            }
        }
        deserializer.deserialize_any(Entries)
    }
}

/// A text of the file.
#[derive(Clone)]
pub(super) struct Text<'a>(pub(super) Cow<'a, str>);

impl Serialize for Text<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }
            fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.into())))
            }
        }
        deserializer.deserialize_str(Any)
    }
}

/// Left and right: `["a", "b"]`, or `"a b"` as older files have it.
pub(super) struct Merge<'a>(pub(super) Text<'a>, pub(super) Text<'a>);

impl Serialize for Merge<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        [&self.0, &self.1].serialize(serializer)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Merge<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Merge<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a merge, [\"left\", \"right\"] or \"left right\"")
            }
            fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Merge<'de>, E> {
                let (left, right) = halves(text)
                    .ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))?;
                Ok(Merge(Text(left.into()), Text(right.into())))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Merge<'de>, E> {
                let (left, right) = halves(text)
                    .ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))?;
                Ok(Merge(Text(Cow::Owned(left.into())), Text(Cow::Owned(right.into()))))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Merge<'de>, A::Error> {
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

/// What is left and right of the only space.
pub(in super::super) fn halves(merge: &str) -> Option<(&str, &str)> {
    merge.split_once(' ').filter(|(_, right)| !right.contains(' '))
}
