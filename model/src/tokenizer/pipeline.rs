//! The parts of a `tokenizer.json` around its model: what they are called there, and what they
//! are here.

use serde_json::{Value, json};

use super::normalize::{self, Normalizer, SPACE};
use super::pretokenize::PreTokenizer;
use super::splits::{Expression, Splits, Step};
use super::words::{Prefix, Words};
use super::{Cut, Roles, TokenizerError};

fn unsupported<T>(what: String) -> Result<T, TokenizerError> {
    Err(TokenizerError::Unsupported(what))
}

fn is(value: &Value, kind: &str) -> bool {
    value["type"] == kind
}

/// The parts of a value, which is one or a `Sequence` of them (under that key).
fn parts<'a>(value: &'a Value, key: &str) -> Vec<&'a Value> {
    match value[key].as_array() {
        Some(list) if is(value, "Sequence") => list.iter().flat_map(|v| parts(v, key)).collect(),
        _ if value.is_null() => vec![],
        _ => vec![value],
    }
}

/// Whether a pre-tokenizer is for a byte-level model.
pub(super) fn is_byte_level(pre_tokenizer: &Value) -> bool {
    parts(pre_tokenizer, "pretokenizers").iter().any(|part| is(part, "ByteLevel"))
}

/// The normaliser.
pub(super) fn normalizer(value: &Value) -> Result<Normalizer, TokenizerError> {
    use normalize::Step;
    let mut normalizer = Normalizer::default();
    for part in parts(value, "normalizers") {
        let content = part["content"].as_str();
        let step = match part["type"].as_str() {
            Some("NFC") => Step::Nfc,
            Some("NFD") => Step::Nfd,
            Some("NFKC") => Step::Nfkc,
            Some("NFKD") => Step::Nfkd,
            Some("Lowercase") => Step::Lowercase,
            Some("Prepend") if part["prepend"] == "▁" => Step::Prepend(" ".into()),
            Some("Replace") => match (part["pattern"]["String"].as_str(), content) {
                (Some(" "), Some("▁")) => {
                    normalizer.spaces = true;
                    continue;
                }
                (Some(from), Some(to)) if !from.is_empty() => Step::Replace(from.into(), to.into()),
                (None, Some(" " | "▁")) if part["pattern"]["Regex"] == " {2,}" => Step::OneSpace,
                _ => return unsupported(format!("normalizer {part}")),
            },
            Some("Precompiled") if part["precompiled_charsmap"].is_null() => continue,
            Some("Precompiled") => {
                return unsupported("normalizer Precompiled: a table of characters".into());
            }
            _ => return unsupported(format!("normalizer {part}")),
        };
        normalizer.steps.push(step);
    }
    Ok(normalizer)
}

/// A byte-level model's pre-tokenizer.
pub(super) fn splits(value: &Value) -> Result<Cut, TokenizerError> {
    let mut steps = vec![];
    let list = parts(value, "pretokenizers");
    for (at, part) in list.iter().enumerate() {
        let last = at + 1 == list.len();
        match part["type"].as_str() {
            Some("Digits") => {
                steps.push(Step::Digits { each: part["individual_digits"] == true });
            }
            Some("ByteLevel") if last && part["add_prefix_space"] == false => {
                if part["use_regex"] != false {
                    steps.push(Step::Scan(PreTokenizer::Gpt2));
                }
            }
            Some("Split") if part["behavior"] == "Isolated" && part["invert"] == false => {
                steps.push(split(&part["pattern"], false)?);
            }
            Some("Split") if part["behavior"] == "Removed" && part["invert"] == true => {
                steps.push(split(&part["pattern"], true)?);
            }
            _ => return unsupported(format!("pre-tokenizer {value}")),
        }
    }
    Ok(cut(steps))
}

/// One expression, or a text as it stands.
fn split(pattern: &Value, matches_only: bool) -> Result<Step, TokenizerError> {
    match (pattern["Regex"].as_str(), pattern["String"].as_str()) {
        (Some(source), _) => match PreTokenizer::from_pattern(source) {
            Some(known) => Ok(Step::Scan(known)),
            None => Ok(Step::Expression(Box::new(Expression::new(source, matches_only)?))),
        },
        _ => unsupported(format!("a split at {pattern}")),
    }
}

/// Steps, or the scanner that does the same.
pub(super) fn cut(steps: Vec<Step>) -> Cut {
    match &steps[..] {
        [Step::Scan(known)] => Cut::Scan(*known),
        [Step::Digits { each: true }, Step::Scan(PreTokenizer::Gpt2)] => {
            Cut::Scan(PreTokenizer::SmolLm)
        }
        _ => Cut::Splits(Splits(steps)),
    }
}

/// A SentencePiece model's pre-tokenizer, of which the normaliser may have done a part; `harmless`
/// are the cuts that a model allows.
pub(super) fn words(
    value: &Value,
    normalizer: &mut Normalizer,
    harmless: Words,
) -> Result<Cut, TokenizerError> {
    let wrong = || unsupported(format!("pre-tokenizer {value}"));
    let mut list = parts(value, "pretokenizers");
    let apart = list.len() == 2 && is(list[0], "WhitespaceSplit");
    if apart {
        list.remove(0);
        normalizer.steps.push(normalize::Step::Words);
    }
    let (words, prefix) = match list[..] {
        [] => (harmless, Prefix::Never),
        // After the normaliser there is no space to split at.
        [part] if is(part, "Split") && part["pattern"]["String"] == " " && normalizer.spaces => {
            (harmless, Prefix::Never)
        }
        [part] if is(part, "Metaspace") && part["replacement"] == "▁" => {
            normalizer.spaces = true;
            let prefix = match metaspace(part) {
                Some(prefix) => prefix,
                None => return wrong(),
            };
            let each = part["split"] != false;
            (if each { Words::Each } else { harmless }, prefix)
        }
        _ => return wrong(),
    };
    match (normalizer.spaces, apart, prefix) {
        // Its words have their spaces already.
        (true, true, Prefix::Always) => Ok(Cut::Words(words, Prefix::Never)),
        (true, false, _) => Ok(Cut::Words(words, prefix)),
        _ => wrong(),
    }
}

fn metaspace(value: &Value) -> Option<Prefix> {
    match (value["prepend_scheme"].as_str(), value["add_prefix_space"].as_bool()) {
        (Some("always"), _) | (None, Some(true) | None) => Some(Prefix::Always),
        (Some("first"), _) => Some(Prefix::First),
        (Some("never"), _) | (None, Some(false)) => Some(Prefix::Never),
        _ => None,
    }
}

/// The decoder of a SentencePiece model: whether it leaves out the first space.
pub(super) fn strips(value: &Value) -> Result<bool, TokenizerError> {
    let mut strips = false;
    let list = parts(value, "decoders");
    for part in &list {
        match part["type"].as_str() {
            Some("Metaspace") if part["replacement"] == "▁" => {
                strips |= metaspace(part) != Some(Prefix::Never);
            }
            Some("Replace") if part["pattern"]["String"] == "▁" && part["content"] == " " => {}
            Some("ByteFallback" | "Fuse") => {}
            Some("Strip") if part["content"] == " " && part["start"] == 1 && part["stop"] == 0 => {
                strips = true;
            }
            _ => return unsupported(format!("decoder {part}")),
        }
    }
    match list.is_empty() {
        true => unsupported("no decoder".into()),
        false => Ok(strips),
    }
}

/// A byte-level model's decoder.
pub(super) fn check_byte_decoder(value: &Value) -> Result<(), TokenizerError> {
    match parts(value, "decoders")[..] {
        [part] if is(part, "ByteLevel") => Ok(()),
        _ => unsupported(format!("decoder {value}, not ByteLevel")),
    }
}

/// What the post-processor adds at the start and at the end of a text.
pub(super) fn roles(value: &Value) -> Result<Roles, TokenizerError> {
    let mut roles = Roles::default();
    for part in parts(value, "processors") {
        match part["type"].as_str() {
            Some("ByteLevel") => {}
            Some("TemplateProcessing") => {
                let id = |item: &Value| {
                    let name = item["SpecialToken"]["id"].as_str()?;
                    let ids = part["special_tokens"][name]["ids"].as_array()?;
                    let [id] = &ids[..] else { return None };
                    u32::try_from(id.as_u64()?).ok()
                };
                let single = part["single"].as_array().map(Vec::as_slice).unwrap_or_default();
                let text = |item: &Value| item["Sequence"]["id"] == "A";
                let ids: Option<(Option<u32>, Option<u32>)> = match single {
                    [a] if text(a) => Some((None, None)),
                    [first, a] if text(a) => id(first).map(|id| (Some(id), None)),
                    [a, last] if text(a) => id(last).map(|id| (None, Some(id))),
                    [first, a, last] if text(a) => {
                        id(first).zip(id(last)).map(|(first, last)| (Some(first), Some(last)))
                    }
                    _ => None,
                };
                let Some((bos, eos)) = ids else {
                    return unsupported(format!("post-processor {part}"));
                };
                roles = Roles { bos, eos, ..roles };
                (roles.add_bos, roles.add_eos) = (bos.is_some(), eos.is_some());
            }
            _ => return unsupported(format!("post-processor {part}")),
        }
    }
    Ok(roles)
}

/// All of these as `tokenizer.json` has them.
pub(super) struct Written {
    pub(super) normalizer: Value,
    pub(super) pre_tokenizer: Value,
    pub(super) post_processor: Value,
    pub(super) decoder: Value,
}

fn byte_level() -> Value {
    json!({
        "type": "ByteLevel",
        "add_prefix_space": false,
        "trim_offsets": false,
        "use_regex": false,
    })
}

/// None, one, or a `Sequence` under that key.
fn together(mut list: Vec<Value>, key: &str) -> Value {
    match list.len() {
        0 => Value::Null,
        1 => list.remove(0),
        _ => json!({"type": "Sequence", key: list}),
    }
}

/// `name` gives the text of a control token.
pub(super) fn write(
    normalizer: &Normalizer,
    cut: &Cut,
    strip: bool,
    roles: &Roles,
    name: impl Fn(u32) -> String,
) -> Written {
    let replace =
        |from: Value, to: &str| json!({"type": "Replace", "pattern": from, "content": to});
    let metaspace = |prefix: Prefix, each: bool| {
        let scheme = match prefix {
            Prefix::Never => "never",
            Prefix::First => "first",
            Prefix::Always => "always",
        };
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": each})
    };
    let mut pieces = vec![];
    let mut steps = vec![];
    for step in &normalizer.steps {
        use normalize::Step;
        steps.push(match step {
            Step::Nfc => json!({"type": "NFC"}),
            Step::Nfd => json!({"type": "NFD"}),
            Step::Nfkc => json!({"type": "NFKC"}),
            Step::Nfkd => json!({"type": "NFKD"}),
            Step::Lowercase => json!({"type": "Lowercase"}),
            Step::Prepend(text) => {
                json!({"type": "Prepend", "prepend": text.replace(' ', "▁")})
            }
            Step::Replace(from, to) => replace(json!({"String": from}), to),
            Step::OneSpace => replace(json!({"Regex": " {2,}"}), " "),
            Step::Words => {
                pieces.push(json!({"type": "WhitespaceSplit"}));
                continue;
            }
        });
    }
    let mut decoder = vec![byte_level()];
    let mut post = vec![byte_level()];
    match cut {
        Cut::Scan(PreTokenizer::Gpt2) => pieces.push(with_regex()),
        Cut::Scan(PreTokenizer::SmolLm) => {
            pieces.push(json!({"type": "Digits", "individual_digits": true}));
            pieces.push(with_regex());
        }
        Cut::Scan(known) => pieces.extend([isolated(known.pattern(), false), byte_level()]),
        Cut::Splits(Splits(list)) => {
            pieces.extend(list.iter().map(|step| match step {
                Step::Scan(known) => isolated(known.pattern(), false),
                Step::Digits { each } => json!({"type": "Digits", "individual_digits": each}),
                Step::Expression(e) => isolated(&e.source, e.matches_only),
            }));
            pieces.push(byte_level());
        }
        Cut::Words(words, prefix) => {
            let each = *words == Words::Each;
            match (pieces.is_empty(), prefix) {
                (true, Prefix::Never) if !each => {
                    steps.push(replace(json!({"String": " "}), "▁"));
                }
                (true, _) => pieces.push(metaspace(*prefix, each)),
                (false, _) => pieces.push(metaspace(Prefix::Always, each)),
            }
            post.clear();
            decoder = vec![
                replace(json!({"String": SPACE}), " "),
                json!({"type": "ByteFallback"}),
                json!({"type": "Fuse"}),
            ];
            if strip {
                decoder.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
            }
        }
    }
    post.extend(template(roles, name));
    Written {
        normalizer: together(steps, "normalizers"),
        pre_tokenizer: together(pieces, "pretokenizers"),
        post_processor: together(post, "processors"),
        decoder: together(decoder, "decoders"),
    }
}

fn with_regex() -> Value {
    json!({
        "type": "ByteLevel",
        "add_prefix_space": false,
        "trim_offsets": true,
        "use_regex": true,
    })
}

fn isolated(source: &str, matches_only: bool) -> Value {
    json!({
        "type": "Split",
        "pattern": {"Regex": source},
        "behavior": if matches_only { "Removed" } else { "Isolated" },
        "invert": matches_only,
    })
}

/// The post-processor that adds what goes before and after a text.
fn template(roles: &Roles, name: impl Fn(u32) -> String) -> Option<Value> {
    let bos = roles.bos.filter(|_| roles.add_bos);
    let eos = roles.eos.filter(|_| roles.add_eos);
    let mut special = serde_json::Map::new();
    for id in bos.into_iter().chain(eos) {
        let name = name(id);
        special.insert(name.clone(), json!({"id": name, "ids": [id], "tokens": [name]}));
    }
    let token = |id: u32| json!({"SpecialToken": {"id": name(id), "type_id": 0}});
    let texts = |names: &[&str]| {
        let mut list: Vec<Value> = vec![];
        for (text, text_id) in names.iter().zip(0..) {
            list.extend(bos.map(token));
            list.push(json!({"Sequence": {"id": text, "type_id": text_id}}));
            list.extend(eos.map(token));
        }
        list
    };
    (!special.is_empty()).then(|| {
        json!({
            "type": "TemplateProcessing",
            "single": texts(&["A"]),
            "pair": texts(&["A", "B"]),
            "special_tokens": special,
        })
    })
}
