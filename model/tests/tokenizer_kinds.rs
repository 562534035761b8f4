//! Tokenizers of other kinds than ours against the `tokenizers` package (fixtures by
//! `tokenizer_kinds.py`).
#![allow(clippy::unwrap_used)]

use std::path::Path;

use model::gguf::Contents;
use model::tokenizer::{DecodeStream, Tokenizer};
use proptest::prelude::*;
use serde_json::{Value, json};

#[derive(serde::Deserialize)]
struct Fixture {
    file: Value,
    cases: Vec<Case>,
}

#[derive(serde::Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
    decoded: String,
}

const KINDS: [&str; 10] = [
    "gpt2",
    "llama3",
    "smollm",
    "deepseek",
    "tekken",
    "llama",
    "llama_prepend",
    "gemma",
    "t5",
    "unigram",
];

fn folder() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/kinds")
}

fn fixture(kind: &str) -> Fixture {
    let text = std::fs::read(folder().join(format!("{kind}.json"))).unwrap();
    serde_json::from_slice(&text).unwrap()
}

fn from_json(file: &Value) -> Tokenizer {
    Tokenizer::from_json(&file.to_string()).unwrap()
}

fn from_gguf(kind: &str) -> Tokenizer {
    let bytes = std::fs::read(folder().join(format!("{kind}.gguf"))).unwrap();
    Tokenizer::from_gguf(&Contents::read(&bytes).unwrap(), &bytes).unwrap()
}

fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let mut stream = DecodeStream::new();
    let text: String = ids.iter().map(|&id| stream.push(tokenizer, id)).collect();
    text + &stream.finish()
}

fn check(tokenizer: &Tokenizer, cases: &[Case], what: &str) {
    for case in cases {
        let ids = tokenizer.encode_with_special(&case.text);
        assert_eq!(ids, case.ids, "{what}: {:?}", case.text);
        assert_eq!(tokenizer.decode(&ids), case.decoded, "{what}: {:?}", case.text);
        assert_eq!(streamed(tokenizer, &ids), case.decoded, "{what}: {:?}", case.text);
        let unknown = tokenizer.roles().unknown;
        let plain = tokenizer.encode(&case.text);
        assert!(plain.iter().all(|&id| !tokenizer.is_special(id) || Some(id) == unknown));
    }
}

#[test]
fn ids_are_those_of_tokenizers() {
    for kind in KINDS {
        let fixture = fixture(kind);
        let tokenizer = from_json(&fixture.file);
        check(&tokenizer, &fixture.cases, kind);
        // What is written is the same tokenizer.
        let written = tokenizer.to_json();
        let again = Tokenizer::from_json(&written).unwrap();
        check(&again, &fixture.cases, kind);
        assert_eq!(again.to_json(), written);
        assert_eq!(again.roles(), tokenizer.roles());
    }
}

#[test]
fn gguf_has_the_same_tokenizer() {
    for kind in ["smollm", "llama", "gemma", "t5"] {
        let tokenizer = from_gguf(kind);
        let mut fixture = fixture(kind);
        if kind == "smollm" {
            // GGUF does not tell of white space beside tokens, or of words.
            fixture
                .cases
                .retain(|case| !case.text.contains("one") && !case.text.contains("<mask>"));
        }
        check(&tokenizer, &fixture.cases, kind);
    }
    let roles = |kind| *from_gguf(kind).roles();
    let llama = roles("llama");
    assert_eq!((llama.bos, llama.eos, llama.add_bos), (Some(1), Some(2), true));
    assert_eq!((roles("t5").add_eos, roles("t5").eos), (true, Some(1)));
    assert_eq!(roles("smollm").ends().collect::<Vec<_>>(), [0]);
}

/// Spaces, newlines, control and what the vocabularies hold, in any order.
fn any_text() -> impl Strategy<Value = String> {
    let parts = [
        " ",
        "  ",
        "\n",
        "\n\n",
        "▁",
        "the",
        " mill",
        "a",
        "é",
        "e\u{301}",
        "中",
        "磨坊主",
        "😀",
        "\0",
        "\u{4}",
        "12",
        "3",
        "'s",
        "!",
        ",",
        "<b>",
        "</b>",
        "<s>",
        "</s>",
        "<unk>",
        "<mask>",
        "one",
        "<|end|>",
        "<0x0A>",
        "\u{a0}",
        "\t",
        "K",
        "ﬁ",
        "العربية",
        "-->",
    ];
    prop::collection::vec(prop::sample::select(parts.to_vec()), 0..30)
        .prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Text never becomes control; a stream gives what decoding gives; SentencePiece's models lose
    /// nothing but their prefix.
    #[test]
    fn text_is_never_control(text in any_text()) {
        for (kind, tokenizer) in all() {
            let unknown = tokenizer.roles().unknown;
            let ids = tokenizer.encode(&text);
            prop_assert!(ids.iter().all(|&id| !tokenizer.is_special(id) || Some(id) == unknown));
            prop_assert_eq!(streamed(tokenizer, &ids), tokenizer.decode(&ids));
            let special = tokenizer.encode_with_special(&text);
            prop_assert_eq!(streamed(tokenizer, &special), tokenizer.decode(&special));
            let plain = text.replace('▁', " ");
            match *kind {
                "gpt2" | "llama3" | "deepseek" | "tekken" => {
                    prop_assert_eq!(tokenizer.decode(&ids), text.as_str());
                }
                "gemma" | "llama_prepend" => prop_assert_eq!(tokenizer.decode(&ids), plain),
                "llama" => {
                    prop_assert_eq!(tokenizer.decode(&ids), plain.strip_prefix(' ').unwrap_or(&plain));
                }
                _ => {}
            }
        }
    }
}

fn all() -> &'static [(&'static str, Tokenizer)] {
    static ALL: std::sync::OnceLock<Vec<(&'static str, Tokenizer)>> = std::sync::OnceLock::new();
    ALL.get_or_init(|| KINDS.iter().map(|kind| (*kind, from_json(&fixture(kind).file))).collect())
}

/// A million bytes in one piece end in reasonable time.
#[test]
fn long_pieces_do_not_hang() {
    for (_, tokenizer) in all() {
        for piece in ["a", "na", " ", "\n", "!", "é", "의", "▁", "<b>", "x "] {
            let text = piece.repeat(1_000_000 / piece.len());
            let start = std::time::Instant::now();
            assert!(!tokenizer.encode(&text).is_empty() || piece.trim().is_empty());
            assert!(start.elapsed().as_secs() < 20, "{piece:?} with {tokenizer:?}");
        }
    }
}

#[test]
fn contradictions_are_refused() {
    let error = |kind: &str, change: &dyn Fn(&mut Value)| {
        let mut file = fixture(kind).file;
        change(&mut file);
        Tokenizer::from_json(&file.to_string()).unwrap_err().to_string()
    };
    let told = |error: String, what: &str| assert!(error.contains(what), "{error}");
    told(error("llama", &|f| f["model"]["merges"][0] = json!(["<0x41>", "e"])), "needs the token");
    told(error("llama", &|f| f["model"]["unk_token"] = json!("nothing")), "unknown token");
    told(error("llama", &|f| f["model"]["vocab"]["a b"] = json!(900)), "no gaps");
    told(error("llama", &|f| f["decoder"] = json!(null)), "no decoder");
    told(error("llama", &|f| f["pre_tokenizer"] = json!(null)), "pre-tokenizer null");
    told(error("llama", &|f| f["model"]["ignore_merges"] = json!(true)), "ignore_merges");
    told(error("t5", &|f| f["model"]["vocab"][9][1] = json!("high")), "expected f64");
    told(error("t5", &|f| f["model"]["vocab"][9][0] = f["model"]["vocab"][8][0].clone()), "twice");
    told(error("t5", &|f| f["model"]["vocab"][9][0] = json!("a b")), "has a space");
    told(error("t5", &|f| f["model"]["vocab"][9][0] = json!("x".repeat(600))), "600 bytes");
    told(error("t5", &|f| f["model"]["unk_id"] = json!(100_000)), "beyond the vocabulary");
    let charsmap = json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"});
    told(error("t5", &|f| f["normalizer"] = charsmap.clone()), "Precompiled");
    told(
        error("tekken", &|f| {
            f["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = json!("a(?=b)")
        }),
        "expression",
    );
    told(error("gpt2", &|f| f["pre_tokenizer"]["add_prefix_space"] = json!(true)), "pre-tokenizer");
}

#[test]
fn damaged_metadata_is_refused_and_nothing_else() {
    for kind in ["smollm", "llama", "gemma", "t5"] {
        let bytes = std::fs::read(folder().join(format!("{kind}.gguf"))).unwrap();
        for bit in (0..8 * bytes.len()).step_by(29) {
            let mut file = bytes.clone();
            file[bit / 8] ^= 1 << (bit % 8);
            let Ok(contents) = Contents::read(&file) else { continue };
            if let Ok(tokenizer) = Tokenizer::from_gguf(&contents, &file) {
                let ids = tokenizer.encode("The miller's cats, 12.\n\n  été");
                let _ = (tokenizer.decode(&ids), tokenizer.to_json());
            }
        }
    }
    let bytes = std::fs::read(folder().join("llama.gguf")).unwrap();
    let contents = Contents::read(&bytes).unwrap();
    let error = |change: &dyn Fn(&mut Contents)| {
        let mut contents = contents.clone();
        change(&mut contents);
        Tokenizer::from_gguf(&contents, &bytes).unwrap_err().to_string()
    };
    let told = |error: String, what: &str| assert!(error.contains(what), "{error}");
    let set = |key: &'static str, value: model::gguf::Value| {
        move |contents: &mut Contents| {
            contents.metadata.insert(format!("tokenizer.ggml.{key}"), value.clone());
        }
    };
    use model::gguf::Value as Meta;
    told(error(&set("model", Meta::String("wordpiece".into()))), "wordpiece");
    told(error(&set("model", Meta::Bool(true))), "model is Bool");
    told(error(&set("add_space_prefix", Meta::Unsigned(1))), "add_space_prefix is Unsigned");
    told(error(&|contents| _ = contents.metadata.remove("tokenizer.ggml.scores")), "no scores");
    told(
        error(&|contents| _ = contents.metadata.remove("tokenizer.ggml.tokens")),
        "no tokenizer.ggml.tokens",
    );
    let gpt2 = |contents: &mut Contents| {
        set("model", Meta::String("gpt2".into()))(contents);
    };
    told(error(&gpt2), "merges");
}

/// The vocabularies of real models, if `HOMEGROWN_TOKENIZERS` names a folder that
/// `tests/tokenizer_real.py` has filled: NAME.gguf and NAME.cases.json.
#[test]
fn real_vocabularies() {
    let Some(folder) = std::env::var_os("HOMEGROWN_TOKENIZERS") else {
        eprintln!(
            "SKIPPED: real_vocabularies; HOMEGROWN_TOKENIZERS names no folder (see tokenizer_real.py)"
        );
        return;
    };
    let mut checked = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_string();
        let Some(name) = name.strip_suffix(".cases.json") else { continue };
        let cases: Vec<Case> = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let bytes = std::fs::read(path.with_file_name(format!("{name}.gguf"))).unwrap();
        let tokenizer = Tokenizer::from_gguf(&Contents::read(&bytes).unwrap(), &bytes).unwrap();
        check(&tokenizer, &cases, name);
        checked += 1;
    }
    assert!(checked > 0, "no NAME.cases.json in {folder:?}");
}
