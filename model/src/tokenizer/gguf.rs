//! The tokenizer in a GGUF file's metadata: vocabulary, types of tokens, scores or merges, and names
//! of all else.

mod write;

use std::borrow::Cow;

use super::added::{Added, AddedToken};
use super::build::{self, Entry, Kind, Unknown};
use super::normalize::{Normalizer, Step};
use super::pretokenize::PreTokenizer;
use super::splits::{self, Expression};
use super::words::{Prefix, Words};
use super::{Cut, Roles, Tokenizer, TokenizerError, json, pipeline};
use crate::gguf::{Contents, Value};

pub(super) use write::write;

/// Tokens that end a turn, where no key tells.
const ENDS_OF_TURN: [&str; 6] =
    ["<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|end|>", "<|end_of_text|>", "<|endoftext|>"];

fn key(name: &str) -> String {
    format!("tokenizer.ggml.{name}")
}

/// Metadata of one file.
struct Source<'a> {
    contents: &'a Contents,
    bytes: &'a [u8],
}

impl<'a> Source<'a> {
    fn get(&self, name: &str) -> Option<&'a Value> {
        self.contents.metadata.get(&key(name))
    }

    /// # Errors
    /// Another type than it has to be of.
    fn typed<T>(
        &self,
        name: &str,
        as_type: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, TokenizerError> {
        let wrong = |value| TokenizerError::Invalid(format!("{} is {value:?}", key(name)));
        self.get(name).map(|value| as_type(value).ok_or_else(|| wrong(value))).transpose()
    }

    fn flag(&self, name: &str, default: bool) -> Result<bool, TokenizerError> {
        Ok(self.typed(name, Value::as_bool)?.unwrap_or(default))
    }

    /// The id of a token. Some files write -1 or the like for none.
    fn id(&self, name: &str, tokens: usize) -> Result<Option<u32>, TokenizerError> {
        let id = self.typed(&format!("{name}_token_id"), Value::as_f64)?;
        Ok(id.filter(|id| (0.0..tokens as f64).contains(id)).map(|id| id as u32))
    }

    fn architecture(&self) -> Option<&'a str> {
        self.contents.metadata.get("general.architecture")?.as_str()
    }

    fn strings(&self, name: &str) -> Result<Vec<&'a str>, TokenizerError> {
        Ok(self.contents.strings(self.bytes, &key(name))?)
    }

    /// Numbers of which there is one a token, if there are any.
    fn numbers(&self, name: &str, tokens: usize) -> Result<Option<Vec<f64>>, TokenizerError> {
        if self.get(name).is_none() {
            return Ok(None);
        }
        let numbers = self.contents.numbers(self.bytes, &key(name))?;
        match numbers.len() == tokens {
            true => Ok(Some(numbers)),
            false => Err(TokenizerError::Invalid(format!(
                "{} has {} entries for {tokens} tokens",
                key(name),
                numbers.len()
            ))),
        }
    }
}

pub(super) fn read(contents: &Contents, bytes: &[u8]) -> Result<Tokenizer, TokenizerError> {
    let source = Source { contents, bytes };
    let unsupported = |what: String| Err(TokenizerError::Unsupported(what));
    let kind = source.typed("model", Value::as_str)?.unwrap_or("none");
    let pre = source.typed("pre", Value::as_str)?;
    match kind {
        "gpt2" => byte_level(&source, pre),
        "llama" => sentence_piece(&source),
        "t5" => unigram(&source),
        _ => unsupported(format!("the tokenizer {kind:?}; gpt2, llama and t5 are read")),
    }
}

/// GPT-2's kind: bytes, merges, and a pre-tokenizer by name.
fn byte_level(source: &Source<'_>, pre: Option<&str>) -> Result<Tokenizer, TokenizerError> {
    let (entries, added) = entries(source, true)?;
    let ids = build::ids(&entries)?;
    let mut pairs = vec![];
    for merge in source.strings("merges")? {
        match json::halves(merge) {
            Some(pair) => pairs.push(pair),
            None => {
                let what = format!("the merge {merge:?} is not two tokens with a space between");
                return Err(TokenizerError::Invalid(what));
            }
        }
    }
    let merges = build::merges(&entries, &ids, pairs.into_iter())?;
    drop(ids);
    // Files of GPT-2 itself are older than names of pre-tokenizers.
    let pre = match pre.unwrap_or("default") {
        "default" if source.architecture() == Some("gpt2") => "gpt-2",
        name => name,
    };
    let family = family(pre)?;
    let (tokens, model) = build::byte_level(&entries, merges, family.whole)?;
    let steps = if family.composed { vec![Step::Nfc] } else { vec![] };
    let normalizer = Normalizer { steps, spaces: false };
    let roles = roles(source, &entries, &added, family.bos, false)?;
    let added = Added::new(added, |text| normalizer.apply(text))?;
    let scratch = Default::default();
    let cut = family.cut;
    Ok(Tokenizer { normalizer, cut, model, tokens, added, roles, strip: false, scratch })
}

/// SentencePiece's BPE: merges by score, or as the file has them.
fn sentence_piece(source: &Source<'_>) -> Result<Tokenizer, TokenizerError> {
    let (entries, added) = entries(source, false)?;
    let ids = build::ids(&entries)?;
    let merges = match source.get("merges") {
        None => build::merges_by_score(&entries, &ids)?,
        Some(_) => {
            let list = source.strings("merges")?;
            let pairs: Option<Vec<_>> = list.into_iter().map(json::halves).collect();
            let Some(pairs) = pairs else {
                return Err(TokenizerError::Invalid("a merge is not two tokens".into()));
            };
            build::merges(&entries, &ids, pairs.into_iter())?
        }
    };
    drop(ids);
    let roles = roles(source, &entries, &added, true, false)?;
    let unknown = Unknown { token: roles.unknown, fuse: true, bytes: true };
    let (tokens, model, words) = build::sentence_piece(&entries, merges, unknown)?;
    let prefixed = source.flag("add_space_prefix", true)?;
    let mut normalizer = Normalizer { steps: vec![], spaces: true };
    // Phi 3 puts a space before each part of a text, also before one that begins with a space.
    let always = source.architecture() == Some("phi3");
    if prefixed && always {
        normalizer.steps.push(Step::Prepend(" ".into()));
    }
    let prefix = if prefixed && !always { Prefix::First } else { Prefix::Never };
    let added = Added::new(added, |text| normalizer.apply(text))?;
    let (cut, scratch) = (Cut::Words(words, prefix), Default::default());
    Ok(Tokenizer { normalizer, cut, model, tokens, added, roles, strip: prefixed, scratch })
}

/// SentencePiece's unigram model.
fn unigram(source: &Source<'_>) -> Result<Tokenizer, TokenizerError> {
    if let Some(Value::Array { count, .. }) = source.get("precompiled_charsmap")
        && *count > 0
    {
        let what = "tokenizer.ggml.precompiled_charsmap: a table of characters".into();
        return Err(TokenizerError::Unsupported(what));
    }
    let (entries, added) = entries(source, false)?;
    build::ids(&entries)?;
    let roles = roles(source, &entries, &added, false, true)?;
    let bytes = entries.iter().any(|entry| matches!(entry.kind, Kind::Byte(_)));
    let unknown = Unknown { token: roles.unknown, fuse: true, bytes };
    let (tokens, model, harmless) = build::unigram(&entries, unknown)?;
    let prefixed = source.flag("add_space_prefix", true)?;
    let mut normalizer = Normalizer { steps: vec![], spaces: true };
    // Words with one space between; without that, spaces as they are.
    let words = source.flag("remove_extra_whitespaces", false)?;
    let cut = match (words, prefixed) {
        (true, true) => {
            normalizer.steps.push(Step::Words);
            Cut::Words(Words::Each, Prefix::Never)
        }
        (true, false) => {
            normalizer.steps.push(Step::OneSpace);
            Cut::Words(harmless, Prefix::Never)
        }
        (false, true) => Cut::Words(harmless, Prefix::Always),
        (false, false) => Cut::Words(harmless, Prefix::Never),
    };
    let added = Added::new(added, |text| normalizer.apply(text))?;
    let scratch = Default::default();
    Ok(Tokenizer { normalizer, cut, model, tokens, added, roles, strip: prefixed, scratch })
}

/// All tokens, and the added ones among them.
fn entries<'a>(
    source: &Source<'a>,
    byte_level: bool,
) -> Result<(Vec<Entry<'a>>, Vec<AddedToken>), TokenizerError> {
    let texts = source.strings("tokens")?;
    let types = source.numbers("token_type", texts.len())?;
    let scores = match byte_level {
        true => None,
        false => match source.numbers("scores", texts.len())? {
            None => return Err(TokenizerError::Invalid("there are no scores".into())),
            scores => scores,
        },
    };
    let kind = |id: usize| types.as_ref().map_or(1.0, |types| types[id]);
    let last_normal = (0..texts.len()).rev().find(|&id| kind(id) == 1.0).unwrap_or_default();
    let mut entries = Vec::with_capacity(texts.len());
    let mut added = vec![];
    for (id, text) in texts.into_iter().enumerate() {
        let score = scores.as_ref().map_or(0.0, |scores| scores[id]);
        let mut entry = Entry { text: Cow::Borrowed(text), score, kind: Kind::Literal };
        let token = |special| AddedToken::new(id as u32, text.to_string(), special);
        match (kind(id) as i64, build::byte_of(text)) {
            (1, _) => entry.kind = Kind::Normal,
            // Unknown, control.
            (2 | 3, _) => added.push(token(true)),
            // User-defined.
            (4, _) if !byte_level && text.bytes().all(|byte| byte == b' ') => {
                // Spaces are merged: nothing else looks at how many there are.
                entry.text = Cow::Owned(text.replace(' ', "▁"));
                entry.kind = Kind::User;
            }
            (4, _) => {
                let mut token = token(false);
                token.text = json::is_text(&token, !byte_level && id < last_normal);
                if token.text && !byte_level && !text.contains(' ') {
                    entry.kind = Kind::User;
                }
                added.push(token);
            }
            (5, _) => {}
            (6, _) if byte_level => entry.kind = Kind::Normal,
            (6, Some(byte)) => entry.kind = Kind::Byte(byte),
            (other, _) => {
                let what = format!("token {text:?} (id {id}) is of type {other}");
                return Err(TokenizerError::Invalid(what));
            }
        }
        if text.is_empty() && entry.kind != Kind::Literal {
            return Err(TokenizerError::Invalid(format!("token {id} is empty")));
        }
        entries.push(entry);
    }
    added.retain(|token| !token.content.is_empty());
    Ok((entries, added))
}

/// The tokens with a part to play, and whether they go around a text where no key tells.
fn roles(
    source: &Source<'_>,
    entries: &[Entry<'_>],
    added: &[AddedToken],
    add_bos: bool,
    add_eos: bool,
) -> Result<Roles, TokenizerError> {
    let id = |name| source.id(name, entries.len());
    let named = |name: &&'static str| {
        let found = added.iter().find(|token| token.content == **name && !token.text);
        found.map(|token| token.id)
    };
    let (bos, eos) = (id("bos")?, id("eos")?);
    Ok(Roles {
        bos,
        eos,
        eot: id("eot")?.or_else(|| ENDS_OF_TURN.iter().find_map(named)),
        unknown: id("unknown")?,
        add_bos: source.flag("add_bos_token", add_bos)? && bos.is_some(),
        add_eos: source.flag("add_eos_token", add_eos)? && eos.is_some(),
    })
}

/// What a name of a pre-tokenizer stands for.
struct Family {
    cut: Cut,
    /// Text is composed (NFC) before it is cut.
    composed: bool,
    /// Pieces that are tokens are not merged.
    whole: bool,
    /// Whether a text begins with BOS where no key tells.
    bos: bool,
}

const DEEPSEEK_V3: [&str; 3] = [
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
];

const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

fn family(name: &str) -> Result<Family, TokenizerError> {
    use PreTokenizer::*;
    let by = |cut| Family { cut, composed: false, whole: false, bos: false };
    let scan = |pre_tokenizer| by(Cut::Scan(pre_tokenizer));
    let expressions = |sources: &[&str]| {
        let step = |source: &&str| {
            Expression::new(source, false).map(|e| splits::Step::Expression(Box::new(e)))
        };
        let steps: Result<Vec<_>, TokenizerError> = sources.iter().map(step).collect();
        steps.map(|steps| by(pipeline::cut(steps)))
    };
    Ok(match name {
        "gpt-2" | "gpt2" | "phi-2" | "mpt" | "olmo" | "jais" | "trillion" | "jina-es"
        | "jina-de" | "jina-v1-en" | "jina-v2-es" | "jina-v2-de" | "jina-v2-code"
        | "roberta-bpe" | "gigachat" | "a.x-4.0" | "mellum" | "granite-docling" => scan(Gpt2),
        "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" | "minerva-7b" => {
            scan(SmolLm)
        }
        "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "falcon-h1" | "pixtral" | "midm-2.0"
        | "lfm2" => Family { whole: true, bos: true, ..scan(Llama3) },
        "dbrx" | "smaug-bpe" | "glm4" | "chatglm-bpe" => scan(Llama3),
        "qwen2" | "deepseek-r1-qwen" | "kormo" | "megrez" => {
            Family { composed: true, ..scan(Qwen2) }
        }
        "stablelm2" => scan(Qwen2),
        "deepseek-v3" => expressions(&DEEPSEEK_V3)?,
        "tekken" => Family { whole: true, bos: true, ..expressions(&[TEKKEN])? },
        "gpt-4o" | "llama4" | "kanana2" => expressions(&[GPT4O])?,
        _ => {
            return Err(TokenizerError::Unsupported(format!("the pre-tokenizer {name:?} of GGUF")));
        }
    })
}
