//! The tokenizer against the `tokenizers` package (fixtures by `tokenizer.py`), a general regex
//! engine, and plain definitions.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, HashMap};

use compute::Pool;
use fancy_regex::Regex;
use model::tokenizer::pretokenize::PreTokenizer;
use model::tokenizer::{DecodeStream, Tokenizer, TokenizerError, TrainOptions};
use proptest::prelude::*;
use serde_json::{Value, json};
use unicode_normalization::UnicodeNormalization;

const FILE: &str = include_str!("fixtures/tokenizer.json");
const SPECIAL: [&str; 7] = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
];

#[derive(serde::Deserialize)]
struct Fixture {
    texts: Vec<String>,
    cases: Vec<Case>,
}

#[derive(serde::Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
    with_special: Vec<u32>,
    decoded: String,
}

fn fixture() -> Fixture {
    serde_json::from_str(include_str!("fixtures/tokenizer_cases.json")).unwrap()
}

fn tokenizer() -> Tokenizer {
    Tokenizer::from_json(FILE).unwrap()
}

fn options(vocab_size: usize, min_frequency: u64, threads: usize) -> TrainOptions {
    let special_tokens = SPECIAL.map(String::from).to_vec();
    TrainOptions { vocab_size, special_tokens, threads, min_frequency }
}

fn train(texts: &[String], options: &TrainOptions) -> Tokenizer {
    Tokenizer::train(texts, options, &mut |_| {}).unwrap()
}

/// Characters that the parts of the tokenizer care about, and any others.
fn any_text() -> impl Strategy<Value = String> {
    let special = "aeisStTdDmrRlLvVEſK'’  \t\r\n\u{a0}\u{85}\u{2028}\u{3000}01²٣Ⅷ!-<|>._é\u{301}\u{308}\u{323}ᄀ\
                   ᅡᆨ가中の한ñя😀\u{200d}\u{fe0f}\0\u{7f}\u{1c}";
    let special: Vec<char> = special.chars().collect();
    let one = prop_oneof![
        6 => prop::sample::select(special).prop_map(String::from),
        1 => any::<char>().prop_map(String::from),
        1 => prop::sample::select(SPECIAL.to_vec()).prop_map(String::from),
        1 => "[ \n]{0,12}",
        1 => "[a-z]{0,12}",
    ];
    prop::collection::vec(one, 0..40).prop_map(|parts| parts.concat())
}

#[test]
fn ids_are_those_of_tokenizers() {
    let tokenizer = tokenizer();
    for case in fixture().cases {
        assert_eq!(tokenizer.encode(&case.text), case.ids, "{:?}", case.text);
        let ids = tokenizer.encode_with_special(&case.text);
        assert_eq!(ids, case.with_special, "{:?}", case.text);
        assert_eq!(tokenizer.decode(&ids), case.decoded);
        assert!(case.ids.iter().all(|&id| !tokenizer.is_special(id)));
    }
}

#[test]
fn a_file_is_written_as_it_was_read() {
    assert!(tokenizer().to_json() == FILE);
}

#[test]
fn training_learns_what_tokenizers_learns() {
    let texts = fixture().texts;
    for threads in [1, 2, 3] {
        let learnt = train(&texts, &options(1536, 1, threads));
        assert!(learnt.to_json() == FILE, "{threads} threads");
    }
    let mut backwards = texts;
    backwards.reverse();
    assert!(train(&backwards, &options(1536, 1, 2)).to_json() == FILE);
}

#[test]
fn special_tokens_follow_the_vocabulary() {
    let tokenizer = tokenizer();
    assert_eq!(tokenizer.vocab_size(), 1536);
    for (i, name) in SPECIAL.iter().enumerate() {
        let id = 1529 + i as u32;
        assert_eq!(tokenizer.special_id(name), Some(id));
        assert!(tokenizer.is_special(id));
        assert_eq!(tokenizer.token_bytes(id), Some(name.as_bytes()));
        assert_eq!(tokenizer.encode_with_special(name), [id]);
        assert!(tokenizer.encode(name).len() > 1);
    }
    assert_eq!(tokenizer.special_id("the"), None);
    assert!(!tokenizer.is_special(1528));
    assert_eq!(tokenizer.token_bytes(1536), None);
    assert_eq!(tokenizer.decode(&[1536, 64, u32::MAX]), "a");
}

#[test]
fn a_batch_is_its_texts() {
    let tokenizer = tokenizer();
    let fixture = fixture();
    let texts: Vec<&str> = fixture.cases.iter().map(|case| case.text.as_str()).collect();
    for threads in [1, 2, 3] {
        let ids = tokenizer.encode_batch(&Pool::new(threads), &texts);
        assert!(ids.iter().eq(fixture.cases.iter().map(|case| &case.ids)));
    }
    assert!(tokenizer.encode_batch(&Pool::new(2), &[""; 0]).is_empty());
}

const SCANNERS: [PreTokenizer; 4] =
    [PreTokenizer::Qwen2, PreTokenizer::Llama3, PreTokenizer::Gpt2, PreTokenizer::SmolLm];

thread_local! {
    // Kept from case to case, so that its cache fills.
    static WARM: Tokenizer = tokenizer();
    static EXPRESSIONS: [Regex; 4] = SCANNERS.map(|scanner| Regex::new(scanner.pattern()).unwrap());
}

/// Each scanner gives the pieces of its expression.
fn check_pieces(text: &str) {
    EXPRESSIONS.with(|expressions| {
        for (scanner, expression) in SCANNERS.into_iter().zip(expressions) {
            let ours: Vec<&str> = scanner.pieces(text).collect();
            assert_eq!(ours, pieces_by_regex(expression, text), "{scanner:?}");
        }
    });
}

/// The pieces a general engine finds.
fn pieces_by_regex<'a>(regex: &Regex, text: &'a str) -> Vec<&'a str> {
    regex.find_iter(text).map(|found| found.unwrap().as_str()).collect()
}

/// The two engines know different versions of Unicode.
fn assigned(c: char) -> bool {
    use unicode_general_category::{GeneralCategory, get_general_category};
    get_general_category(c) != GeneralCategory::Unassigned
}

#[test]
fn every_character_has_the_class_of_the_regex() {
    let all: Vec<char> = ('\0'..=char::MAX).filter(|&c| assigned(c)).collect();
    for some in all.chunks(1000) {
        // A letter, number, space, newline or other shows beside these.
        let text: String = some.iter().flat_map(|&c| [c, 'a', '!', c, '0', ' ', c, '!']).collect();
        check_pieces(&text);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn pieces_are_those_of_the_regex(text in any_text()) {
        let text: String = text.chars().filter(|&c| assigned(c)).collect();
        check_pieces(&text);
    }

    #[test]
    fn decoding_gives_the_normalised_text(text in any_text()) {
        WARM.with(|tokenizer| {
            let ids = tokenizer.encode(&text);
            assert_eq!(tokenizer.decode(&ids), text.nfc().collect::<String>());
            assert!(ids.iter().all(|&id| !tokenizer.is_special(id)));
            let ids = tokenizer.encode_with_special(&text);
            let mut stream = DecodeStream::new();
            let mut streamed: String = ids.iter().map(|&id| stream.push(tokenizer, id)).collect();
            streamed += &stream.finish();
            assert_eq!(tokenizer.decode(&ids), streamed);
        });
    }

    #[test]
    fn ids_of_any_kind_decode(ids in prop::collection::vec(0u32..1600, 0..30)) {
        WARM.with(|tokenizer| {
            let mut stream = DecodeStream::new();
            let mut streamed: String = ids.iter().map(|&id| stream.push(tokenizer, id)).collect();
            streamed += &stream.finish();
            assert_eq!(tokenizer.decode(&ids), streamed);
        });
    }
}

/// BPE by its definition, on a piece's bytes.
fn encode_plainly(merges: &[(Vec<u8>, Vec<u8>)], piece: &str) -> Vec<Vec<u8>> {
    let mut tokens: Vec<Vec<u8>> = piece.bytes().map(|byte| vec![byte]).collect();
    'merging: loop {
        for (left, right) in merges {
            let at = tokens.windows(2).position(|pair| pair[0] == *left && pair[1] == *right);
            if let Some(at) = at {
                let gone = tokens.remove(at + 1);
                tokens[at].extend(gone);
                continue 'merging;
            }
        }
        return tokens;
    }
}

/// Training by its definition: encode everything, count, take the best pair, start again.
/// `order` says which of equally frequent pairs comes first: the one whose tokens came first.
fn train_plainly(texts: &[String], vocab: usize, min: u64) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut pieces: BTreeMap<String, u64> = BTreeMap::new();
    for text in texts {
        let text: String = text.nfc().collect();
        for piece in PreTokenizer::Qwen2.pieces(&text) {
            *pieces.entry(piece.into()).or_default() += 1;
        }
    }
    // Bytes are numbered in GPT-2's order: the printable ones first.
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut bytes: Vec<u8> = (0..=255).collect();
    bytes.sort_by_key(|&b| (!printable(b), b));
    let mut ids: HashMap<Vec<u8>, usize> =
        bytes.iter().enumerate().map(|(id, &byte)| (vec![byte], id)).collect();
    let mut merges = vec![];
    while ids.len() < vocab {
        let mut counts: HashMap<(Vec<u8>, Vec<u8>), u64> = HashMap::new();
        for (piece, count) in &pieces {
            for pair in encode_plainly(&merges, piece).windows(2) {
                *counts.entry((pair[0].clone(), pair[1].clone())).or_default() += count;
            }
        }
        let best = counts
            .into_iter()
            .filter(|&(_, count)| count >= min)
            .max_by_key(|(pair, count)| (*count, std::cmp::Reverse((ids[&pair.0], ids[&pair.1]))));
        let Some((pair, _)) = best else { break };
        let next = ids.len();
        ids.entry([&pair.0[..], &pair.1].concat()).or_insert(next);
        merges.push(pair);
    }
    merges
}

/// The merges of a tokenizer, from its file.
fn merges(tokenizer: &Tokenizer) -> Vec<(Vec<u8>, Vec<u8>)> {
    let file: Value = serde_json::from_str(&tokenizer.to_json()).unwrap();
    let vocab = &file["model"]["vocab"];
    let bytes = |token: &Value| {
        let id = vocab[token.as_str().unwrap()].as_u64().unwrap();
        tokenizer.token_bytes(id as u32).unwrap().to_vec()
    };
    let list = file["model"]["merges"].as_array().unwrap();
    list.iter().map(|merge| (bytes(&merge[0]), bytes(&merge[1]))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Few letters, so that ties, overlaps (`aaaa`) and second ways to a token come up.
    #[test]
    fn training_is_its_definition(
        texts in prop::collection::vec("[ab]{1,9}|[abc ]{0,20}|a{1,12}|[aé\n ']{0,8}", 1..12),
        size in 0usize..60, min in 1u64..4, threads in 1usize..3,
    ) {
        let options =
            TrainOptions { vocab_size: 256 + size, special_tokens: vec![], threads, min_frequency: min };
        let learnt = train(&texts, &options);
        let plain = train_plainly(&texts, 256 + size, min);
        prop_assert_eq!(merges(&learnt), plain.clone());
        for text in &texts {
            let normal: String = text.nfc().collect();
            let expected: Vec<Vec<u8>> =
                PreTokenizer::Qwen2.pieces(&normal).flat_map(|p| encode_plainly(&plain, p)).collect();
            let ids = learnt.encode(text);
            let tokens: Vec<&[u8]> = ids.iter().map(|&id| learnt.token_bytes(id).unwrap()).collect();
            prop_assert_eq!(tokens, expected);
        }
    }

    #[test]
    fn broken_files_are_errors(cuts in prop::collection::vec((0usize..FILE.len(), any::<u8>()), 1..4),
                               len in 0..=FILE.len()) {
        let mut bytes = FILE.as_bytes().to_vec();
        for (at, byte) in cuts {
            bytes[at] = byte;
        }
        for bytes in [&bytes[..], &bytes[..len]] {
            // Either an error, or a tokenizer that works.
            if let Ok(text) = std::str::from_utf8(bytes)
                && let Ok(tokenizer) = Tokenizer::from_json(text)
            {
                let ids = tokenizer.encode("The miller's cats. <|im_end|> été\n");
                prop_assert_eq!(tokenizer.decode(&ids), "The miller's cats. <|im_end|> été\n");
                prop_assert!(Tokenizer::from_json(&tokenizer.to_json()).is_ok());
            }
        }
    }
}

/// The error of the file with a change.
fn error_of(change: impl FnOnce(&mut Value)) -> String {
    let mut file: Value = serde_json::from_str(FILE).unwrap();
    change(&mut file);
    Tokenizer::from_json(&file.to_string()).unwrap_err().to_string()
}

#[test]
fn contradictions_are_refused() {
    let told = |error: String, what: &str| assert!(error.contains(what), "{error}");
    told(error_of(|f| f["model"]["vocab"]["!"] = json!(1)), "share id 1");
    told(error_of(|f| f["model"]["vocab"]["!"] = json!(1529)), "has id 1529");
    told(error_of(|f| f["model"]["vocab"]["!"] = json!(-1)), "invalid value");
    told(
        error_of(|f| {
            f["added_tokens"] = json!([]);
            f["model"]["vocab"]["the mill"] = json!(1529);
        }),
        "byte-level alphabet",
    );
    told(
        error_of(|f| {
            f["model"]["vocab"].as_object_mut().unwrap().shift_remove("!");
        }),
        "no gaps",
    );
    told(error_of(|f| f["model"]["merges"][0] = json!(["never", "seen"])), "needs the token");
    told(error_of(|f| f["model"]["merges"][0] = json!("a b c")), "expected a merge");
    told(error_of(|f| f["model"]["merges"][0] = json!(["a"])), "two tokens");
    told(error_of(|f| f["added_tokens"][1]["id"] = json!(1529)), "none twice");
    told(error_of(|f| f["added_tokens"][1]["id"] = json!(4_000_000_000u32)), "no gaps");
    told(error_of(|f| f["added_tokens"][1]["id"] = json!(7)), "of another token");
    told(error_of(|f| f["added_tokens"][1]["content"] = json!("")), "empty");
    told(error_of(|f| f["added_tokens"][1]["content"] = json!("<|im_end|>")), "twice");
    told(error_of(|f| f["normalizer"] = json!({"type": "Nmt"})), "normalizer");
    told(error_of(|f| f["pre_tokenizer"] = json!({"type": "BertPreTokenizer"})), "decoder");
    told(error_of(|f| f["model"]["unk_token"] = json!("never")), "unknown token");
    told(error_of(|f| f["post_processor"] = json!({"type": "BertProcessing"})), "post-processor");
    told(error_of(|f| f["pre_tokenizer"]["pretokenizers"][0]["invert"] = json!(true)), "pre-tok");
    told(error_of(|f| f["decoder"] = json!({"type": "Metaspace"})), "decoder");
    told(error_of(|f| f["model"]["type"] = json!("Unigram")), "Unigram");
    told(error_of(|f| f["model"]["byte_fallback"] = json!(true)), "byte_fallback");
    told(error_of(|f| *f = json!([])), "not a tokenizer.json");
    let twice = FILE.replacen("\"\\\"\": 1,", "\"\\\"\": 1,\n\"!\": 1536,", 1);
    assert_ne!(twice, FILE);
    told(Tokenizer::from_json(&twice).unwrap_err().to_string(), "\"!\" is there twice");
    assert!(matches!(Tokenizer::load("/nowhere/at/all"), Err(TokenizerError::Read(..))));
}

#[test]
fn text_does_not_merge_into_control() {
    let mut file: Value = serde_json::from_str(FILE).unwrap();
    file["model"]["merges"].as_array_mut().unwrap().push(json!(["!", "\""]));
    file["model"]["vocab"]["!\""] = json!(1529);
    file["added_tokens"] = json!([file["added_tokens"][0].clone()]);
    file["added_tokens"][0]["content"] = json!("!\"");
    let tokenizer = Tokenizer::from_json(&file.to_string()).unwrap();
    assert_eq!(tokenizer.encode("!\"").len(), 2);
    assert_eq!(tokenizer.encode_with_special("!\""), [1529]);
}

#[test]
fn older_ways_of_writing_are_read() {
    let mut file: Value = serde_json::from_str(FILE).unwrap();
    for merge in file["model"]["merges"].as_array_mut().unwrap() {
        *merge = json!(format!("{} {}", merge[0].as_str().unwrap(), merge[1].as_str().unwrap()));
    }
    file["model"].as_object_mut().unwrap().shift_remove("ignore_merges");
    assert!(Tokenizer::from_json(&file.to_string()).unwrap().to_json() == FILE);
}

#[test]
fn what_cannot_be_learnt_is_said() {
    let error = |options: &TrainOptions| {
        Tokenizer::train([""], options, &mut |_| {}).unwrap_err().to_string()
    };
    assert!(error(&options(262, 1, 1)).contains("ask for 263"));
    let special = |names: &[&str]| TrainOptions {
        special_tokens: names.iter().map(|name| name.to_string()).collect(),
        ..options(1000, 1, 1)
    };
    assert!(error(&special(&["<x>", "<x>"])).contains("twice"));
    assert!(error(&special(&[""])).contains("empty"));
    assert!(error(&special(&["a"])).contains("token already"));
    // A special token that looks like a word is not learnt as one.
    let tokenizer = Tokenizer::train(["end end end"], &special(&["end"]), &mut |_| {}).unwrap();
    assert_eq!(tokenizer.encode("end").len(), 2);
    assert_eq!(tokenizer.encode_with_special("end").len(), 1);
    assert!(Tokenizer::from_json(&tokenizer.to_json()).is_ok());
    // Nothing to learn from.
    let tokenizer = Tokenizer::train([""; 0], &options(1000, 1, 2), &mut |_| {}).unwrap();
    assert_eq!(tokenizer.vocab_size(), 263);
    assert_eq!(tokenizer.decode(&tokenizer.encode("é")), "é");
}

/// Pieces of a million bytes end in reasonable time.
#[test]
fn long_pieces_do_not_hang() {
    let tokenizer = tokenizer();
    for piece in ["a", "na", " ", "\n", "!", "é", "의"] {
        let text = piece.repeat(1_000_000 / piece.len());
        assert_eq!(tokenizer.decode(&tokenizer.encode(&text)), text);
    }
}
