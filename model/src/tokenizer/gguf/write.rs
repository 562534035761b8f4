//! A tokenizer as the keys of a GGUF file. These say less than a `tokenizer.json`: a pre-tokenizer is a
//! name, and merges of SentencePiece's models are scores. So what was written is read again, and
//! what isn't the same is refused.

use std::collections::HashMap;

use super::super::json::Texts;
use super::super::model::{Bpe, Model, Symbols};
use super::super::normalize::{SPACE, Step};
use super::super::words::{Prefix, Words};
use super::super::{Cut, Roles, Tokenizer, TokenizerError, pipeline};
use super::{family, key};
use crate::gguf::{Contents, Head, Item};

/// Names of pre-tokenizers, one for each kind that is known here.
const NAMES: [&str; 9] = [
    "gpt-2",
    "smollm",
    "llama-bpe",
    "dbrx",
    "qwen2",
    "stablelm2",
    "deepseek-v3",
    "tekken",
    "gpt-4o",
];

/// Types of tokens.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

fn unsupported<T>(what: &str) -> Result<T, TokenizerError> {
    Err(TokenizerError::Unsupported(format!("in GGUF: {what}")))
}

pub(in super::super) fn write(
    tokenizer: &Tokenizer,
    rows: usize,
    roles: &Roles,
    head: &mut Head,
) -> Result<(), TokenizerError> {
    let mut own = Head::default();
    vocabulary(tokenizer, rows, &mut own)?;
    let mut set = |name: &str, item: Item| own.set(key(name), item);
    for (name, id) in
        [("bos", roles.bos), ("eos", roles.eos), ("eot", roles.eot), ("unknown", roles.unknown)]
    {
        if let Some(id) = id {
            set(&format!("{name}_token_id"), Item::U32(id));
        }
    }
    set("add_bos_token", Item::Bool(roles.add_bos));
    set("add_eos_token", Item::Bool(roles.add_eos));
    check(tokenizer, &own)?;
    head.append(own);
    Ok(())
}

/// The tokens and what makes them of text.
fn vocabulary(tokenizer: &Tokenizer, rows: usize, head: &mut Head) -> Result<(), TokenizerError> {
    let Tokenizer { model, tokens, added, roles, .. } = tokenizer;
    let texts = Texts::new(tokenizer);
    let byte_level = !matches!(tokenizer.cut, Cut::Words(..));
    let (mut list, mut types) = (Vec::new(), Vec::new());
    for id in 0..tokens.len() as u32 {
        let text = texts.of(id);
        let (text, kind) = match added.get(id) {
            _ if roles.unknown == Some(id) && !byte_level => (text, UNKNOWN),
            Some(token) if token.special => (text, CONTROL),
            Some(_) if byte_level => (text, USER),
            Some(_) => (text.replace(SPACE, " "), USER),
            None if texts.is_byte(id) => (text, BYTE),
            None => (text, NORMAL),
        };
        list.push(text);
        types.push(kind);
    }
    // A row of the embedding that has no token gets one that nothing becomes.
    for id in list.len()..rows {
        list.push(format!("[PAD{id}]"));
        types.push(UNUSED);
    }
    let count = list.len();
    head.set(key("model"), Item::Text(String::new()));
    head.set(key("pre"), Item::Text("default".into()));
    head.set(key("tokens"), Item::Texts(list));
    head.set(key("token_type"), Item::I32s(types));
    let kind = match model {
        Model::Bpe(bpe) if matches!(bpe.symbols, Symbols::Bytes(_)) => {
            head.set(key("pre"), Item::Text(pre_tokenizer(tokenizer)?.into()));
            let merge = |(a, b): &(u32, u32)| format!("{} {}", texts.of(*a), texts.of(*b));
            head.set(key("merges"), Item::Texts(bpe.list.iter().map(merge).collect()));
            "gpt2"
        }
        Model::Bpe(bpe) => {
            prefix(tokenizer, head)?;
            head.set(key("scores"), Item::F32s(scores(bpe.merges.made(), count)));
            "llama"
        }
        Model::Unigram(unigram) => {
            prefix(tokenizer, head)?;
            let mut scores: Vec<f32> = unigram.scores.iter().map(|x| *x as f32).collect();
            scores.resize(count, 0.0);
            head.set(key("scores"), Item::F32s(scores));
            "t5"
        }
    };
    head.set(key("model"), Item::Text(kind.into()));
    Ok(())
}

/// The name of a pre-tokenizer.
fn pre_tokenizer(tokenizer: &Tokenizer) -> Result<&'static str, TokenizerError> {
    let composed = match &tokenizer.normalizer.steps[..] {
        [] => false,
        [Step::Nfc] => true,
        _ => return unsupported("a normaliser before a byte-level model, other than NFC"),
    };
    let written = |cut: &Cut| {
        let none = Default::default();
        pipeline::write(&none, cut, false, &Roles::default(), |_| String::new()).pre_tokenizer
    };
    let mine = written(&tokenizer.cut);
    let Model::Bpe(Bpe { merges, whole, symbols: Symbols::Bytes(bytes), .. }) = &tokenizer.model
    else {
        return unsupported("a byte-level model without bytes");
    };
    // Whether pieces that are tokens are merged makes no difference where merging gives the token.
    let mut work = Default::default();
    let mut reached = |id: u32| {
        let text = tokenizer.tokens.get(id).unwrap_or_default();
        let mut ids: Vec<u32> = text.iter().map(|b| bytes[usize::from(*b)]).collect();
        merges.apply(&mut ids, &mut work);
        tokenizer.added.get(id).is_some() || ids == [id]
    };
    let mut all_reached = None;
    for name in NAMES {
        let known = family(name)?;
        if known.composed != composed || written(&known.cut) != mine {
            continue;
        }
        let mut all = || (0..tokenizer.tokens.len() as u32).all(&mut reached);
        if known.whole == whole.is_some() || *all_reached.get_or_insert_with(&mut all) {
            return Ok(name);
        }
    }
    unsupported(&format!("the pre-tokenizer {mine} has no name there"))
}

/// What is done to spaces.
fn prefix(tokenizer: &Tokenizer, head: &mut Head) -> Result<(), TokenizerError> {
    let Cut::Words(words, prefix) = &tokenizer.cut else {
        return unsupported("a model of characters that are cut by an expression");
    };
    let unigram = matches!(tokenizer.model, Model::Unigram(_));
    let (before, each) = match &tokenizer.normalizer.steps[..] {
        [] => (*prefix != Prefix::Never, false),
        [Step::Prepend(text)] if text == " " => (true, false),
        [Step::Words] if unigram && *words == Words::Each => (true, true),
        [Step::OneSpace] if unigram => (*prefix != Prefix::Never, true),
        _ => return unsupported("a normaliser of more than spaces"),
    };
    head.set(key("add_space_prefix"), Item::Bool(before));
    if unigram {
        head.set(key("remove_extra_whitespaces"), Item::Bool(each));
    }
    Ok(())
}

/// Scores whose order is that of the merges: a token's is the lower the later it is made. Tokens whose
/// merges stand among each other have the same.
fn scores(made: &[u32], tokens: usize) -> Vec<f32> {
    let mut last = HashMap::new();
    for (at, id) in made.iter().enumerate() {
        last.insert(*id, at);
    }
    let mut scores = vec![0.0; tokens];
    let (mut group, mut end) = (0, 0);
    for (at, id) in made.iter().enumerate() {
        if at > end {
            group += 1;
        }
        end = end.max(last[id]);
        scores[*id as usize] = -(group as f32);
    }
    // Nothing is merged into these.
    let least = -(group as f32) - 1.0;
    (0..).zip(&mut scores).filter(|(id, _)| !last.contains_key(id)).for_each(|(_, s)| *s = least);
    scores
}

/// Whether the keys give back the tokenizer.
fn check(tokenizer: &Tokenizer, head: &Head) -> Result<(), TokenizerError> {
    let bytes = head.bytes();
    let again = super::read(&Contents::read(&bytes)?, &bytes)?;
    let merges = |t: &Tokenizer| match &t.model {
        Model::Bpe(bpe) => bpe.list.clone(),
        Model::Unigram(_) => Vec::new(),
    };
    let control = |t: &Tokenizer| t.special_tokens().map(|(id, _)| id).collect::<Vec<_>>();
    if let Some(id) = (0..tokenizer.tokens.len() as u32)
        .find(|id| tokenizer.tokens.get(*id) != again.tokens.get(*id))
    {
        return unsupported(&format!("token {id} would be read as another"));
    }
    if merges(tokenizer) != merges(&again) {
        return unsupported("the order of its merges follows from no scores");
    }
    if control(tokenizer) != control(&again) {
        return unsupported("which tokens are control can't be told");
    }
    if tokenizer.strip != again.strip {
        return unsupported("the first space can't be told");
    }
    Ok(())
}
