//! A changed input does again exactly the stages that depend on it; damage is named and mended; and
//! everything can be traced to the text that it came from. On text of one's own, in seconds.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

/// Half a second of all stages.
const RECIPE: &str = r#"
[tokenizer]
vocab_size = 300

[model]
context = 64
layers = 1
dim = 32
heads = 2
kv_heads = 1
head_dim = 16
ffn = 48

[pretrain]
tokens = 4000
batch_tokens = 512
micro_tokens = 256
dtype = "f32"
validate_tokens = 2000
sample_tokens = 2000

[finetune]
tokens = 2000
batch_tokens = 512
micro_tokens = 256
dtype = "f32"
validate_tokens = 1000
sample_tokens = 1000

[eval]
validation_bytes = 1000
compressors = false
"#;

const GROW: [&str; 8] =
    ["grow", "tiny.toml", "--docs", "docs", "--chats", "chats.jsonl", "--out", "run"];
const ALL: [&str; 6] = ["prepare", "tokenize", "pretrain", "finetune", "evaluate", "report"];

/// A folder with text, conversations and a recipe, and a run in it.
struct Home(TempDir);

impl Home {
    fn new() -> Home {
        let home = Home(tempfile::tempdir().unwrap());
        std::fs::create_dir(home.path("docs")).unwrap();
        for (i, animal) in ["cat", "dog", "hen", "fox", "owl"].into_iter().enumerate() {
            let line =
                |n: usize| format!("The {animal} number {n} sleeps in house {}. ", n * (i + 3));
            home.write(&format!("docs/{animal}.txt"), &(1..60).map(line).collect::<String>());
        }
        let chat = |n: usize| {
            format!(
                "{{\"messages\": [{{\"role\": \"user\", \"content\": \"Where is cat {n}?\"}}, \
                 {{\"role\": \"assistant\", \"content\": \"Cat {n} is in house {}.\"}}]}}\n",
                n * 3
            )
        };
        home.write("chats.jsonl", &(1..12).map(chat).collect::<String>());
        home.write("tiny.toml", RECIPE);
        home
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    fn homegrown(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_homegrown"));
        command.current_dir(self.0.path()).args(args).output().unwrap()
    }

    /// Grows the run. The stages that were done, and all that was said.
    fn grow(&self, sets: &[&str]) -> (Vec<String>, String) {
        let mut args = GROW.to_vec();
        args.extend(sets.iter().flat_map(|set| ["--set", set]));
        let output = self.homegrown(&args);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{said}");
        let done = said.lines().filter(|l| l.contains(" done in "));
        (done.filter_map(|l| l.split_whitespace().next()).map(String::from).collect(), said)
    }

    /// `show --json`: its exit code and what it printed.
    fn show(&self, args: &[&str]) -> (i32, Value) {
        let output = self.homegrown(&[&["show", "--json"], args].concat());
        let value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| {
            panic!("{args:?}: {e}: {}", String::from_utf8_lossy(&output.stderr));
        });
        (output.status.code().unwrap(), value)
    }
}

/// Flips the lowest bit in the middle of a file; for text, that is another text. An empty one
/// gets a byte.
fn flip(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    match bytes.get_mut(middle) {
        Some(byte) => *byte ^= 1,
        None => bytes.push(b'\n'),
    }
    std::fs::write(path, bytes).unwrap();
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

#[test]
fn a_change_runs_exactly_the_stages_that_depend_on_it() {
    let home = Home::new();
    let grow = |sets: &[&str]| home.grow(sets);
    assert_eq!(grow(&[]).0, ALL);
    assert_eq!(grow(&[]).0, [""; 0]);

    // A file that was written again with the same text; chats with other white space.
    let text = std::fs::read_to_string(home.path("docs/cat.txt")).unwrap();
    home.write("docs/cat.txt", &text);
    assert_eq!(grow(&[]).0, [""; 0]);
    let chats = std::fs::read_to_string(home.path("chats.jsonl")).unwrap();
    home.write("chats.jsonl", &format!("{chats}\n\n"));
    let (done, said) = grow(&[]);
    assert_eq!(done, ["prepare"]);
    assert!(said.contains("prepare again: its input --chats chats.jsonl has changed"), "{said}");

    home.write("docs/cat.txt", &text.replace("number 7 sleeps", "number 7 eats"));
    let (done, said) = grow(&[]);
    assert_eq!(done, ALL);
    assert!(said.contains("prepare again: its input --docs docs has changed"), "{said}");
    assert!(said.contains("tokenize again: its input data/documents.jsonl has changed"), "{said}");
    home.write("chats.jsonl", &chats.replace("in house", "at house"));
    assert_eq!(grow(&[]).0, ALL);

    let (done, said) = grow(&["finetune.tokens=3000"]);
    assert_eq!(done, ["finetune", "evaluate", "report"]);
    assert!(said.contains("finetune again: the setting finetune.tokens has changed"), "{said}");
    // From here on the settings add up.
    let sets = ["finetune.tokens=3000", "eval.compressors=true"];
    assert_eq!(grow(&sets).0, ["evaluate", "report"]);
    // Measured elsewhere on the way, the model is the same: what is made from it stays.
    let sets = [&sets[..], &["pretrain.validate_tokens=1000"]].concat();
    assert_eq!(grow(&sets).0, ["pretrain", "report"]);
    let sets = [&sets[..], &["seed=1"]].concat();
    assert_eq!(grow(&sets).0, ALL[2..]);
    assert_eq!(grow(&sets).0, [""; 0]);
    assert_eq!(home.show(&["run", "--verify"]).0, 0);
}

#[test]
fn every_flipped_bit_is_named_and_only_its_stage_is_done_again() {
    let home = Home::new();
    home.grow(&[]);
    let (exit, value) = home.show(&["run", "--verify"]);
    assert_eq!((exit, &value["verified"]["wrong"]), (0, &serde_json::json!([])));
    let artefacts = value["artefacts"].as_object().unwrap();
    let run = std::fs::canonicalize(home.path("run")).unwrap();
    let mut seen = BTreeSet::new();
    for path in files(&run) {
        let name = path.strip_prefix(&run).unwrap().to_str().unwrap().to_string();
        let holds = |artefact: &str| store::lineage::below(&name, artefact);
        let Some((_, artefact)) =
            artefacts.iter().find(|(a, v)| holds(a) && v["made_by"] != Value::Null)
        else {
            continue;
        };
        let stage = artefact["made_by"].as_str().unwrap();
        let before = std::fs::read(&path).unwrap();
        flip(&path);
        let (exit, value) = home.show(&["run", "--verify"]);
        let wrong: Vec<&str> = value["verified"]["wrong"]
            .as_array()
            .unwrap()
            .iter()
            .map(|w| w.as_str().unwrap().split_once(": changed").unwrap().0)
            .collect();
        assert!(exit == 1 && !wrong.is_empty(), "{name}: {value}");
        assert!(wrong.iter().all(|w| holds(w)), "{name}: {wrong:?}");
        seen.extend(wrong.iter().map(ToString::to_string));

        if name.contains("/checkpoints/") {
            // To throw checkpoints away is for a person to decide; what to do is said.
            let output = home.homegrown(&GROW);
            let said = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{said}");
            assert!(said.contains(&name) && said.contains("Remove run/"), "{said}");
            std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
        }
        let (done, said) = home.grow(&[]);
        assert_eq!(done, [stage], "{name}: {said}");
        assert!(said.contains(&format!("{stage} again: its output")), "{said}");
        assert!(std::fs::read(&path).unwrap() == before, "{name} came out different");
    }
    assert_eq!(home.grow(&[]).0, [""; 0]);
    let made = |v: &&Value| v["made_by"] != Value::Null;
    assert_eq!(seen.len(), artefacts.values().filter(made).count(), "{seen:?}");
    std::fs::remove_file(run.join("model/config.json")).unwrap();
    std::fs::remove_dir_all(run.join("eval")).unwrap();
    let value = home.show(&["run", "--verify"]).1;
    let wrong = &value["verified"]["wrong"];
    assert_eq!(wrong, &serde_json::json!(["eval: missing", "model: changed: config.json"]));
}

#[test]
fn a_model_tells_its_past_anywhere() {
    let home = Home::new();
    home.grow(&[]);
    let value = home.show(&["run/model/model.safetensors"]).1;
    assert_eq!(value["targets"], serde_json::json!(["model"]));
    let names = |value: &Value, key: &str| -> Vec<String> {
        let stages = value["stages"].as_array().unwrap();
        stages.iter().map(|s| s[key].as_str().unwrap().to_string()).collect()
    };
    assert_eq!(names(&value, "stage"), ALL[..4]);
    assert_eq!(value["stages"][3]["changed_from_default"]["finetune.tokens"]["value"], 2000);
    assert_eq!(value["stages"][3]["settings"]["seed"], 0);
    assert_eq!(value["stages"][0]["facts"]["kinds"]["conversations"]["documents"], 11);

    // A model alone, with a file that somebody put beside it.
    std::fs::create_dir(home.path("copy")).unwrap();
    for file in files(&home.path("run/model")) {
        std::fs::copy(&file, home.path("copy").join(file.file_name().unwrap())).unwrap();
    }
    home.write("copy/README.md", "Our model.");
    let (exit, alone) = home.show(&["copy", "--verify"]);
    assert_eq!((exit, names(&alone, "stage")), (0, names(&value, "stage")));
    assert_eq!(alone["artefacts"]["base"]["hash"], value["artefacts"]["base"]["hash"]);
    let states = |value: &Value, name: &str| value["artefacts"][name]["state"].clone();
    assert_eq!(states(&alone, "base"), "not here");
    assert_eq!(
        (states(&alone, "--docs docs"), states(&alone, "--chats chats.jsonl")),
        ("unchanged".into(), "unchanged".into())
    );

    // Sources may change and go; that is told.
    home.write("docs/cat.txt", "No cats any more, and nothing else either.");
    std::fs::remove_file(home.path("chats.jsonl")).unwrap();
    let (exit, alone) = home.show(&["copy", "--verify"]);
    assert_eq!((exit, states(&alone, "--docs docs")), (0, "has changed since".into()));
    assert_eq!(states(&alone, "--chats chats.jsonl"), "gone");
    flip(&home.path("copy/model.safetensors"));
    let (exit, alone) = home.show(&["copy", "--verify"]);
    assert_eq!((exit, states(&alone, "model.safetensors")), (1, "changed".into()));
    std::fs::remove_file(home.path("copy/lineage.json")).unwrap();
    let (exit, alone) = home.show(&["copy"]);
    assert_eq!((exit, alone["model"]["family"].as_str()), (0, Some("qwen3")));
    assert_eq!(alone["model"]["parameters"], value["model"]["parameters"]);
    assert_eq!(home.show(&["copy", "--verify"]).0, 2);
    assert_eq!(home.show(&["docs"]).0, 2);

    // The same run elsewhere has the same lineage, byte for byte.
    let first = std::fs::read(home.path("run/model/lineage.json")).unwrap();
    let again = Home::new();
    again.grow(&[]);
    assert!(std::fs::read(again.path("run/model/lineage.json")).unwrap() == first);
    let text = String::from_utf8(first).unwrap();
    assert!(!text.contains(home.0.path().to_str().unwrap()), "{text}");
}

#[test]
fn texts_that_hold_words() {
    let home = Home::new();
    home.grow(&[]);
    home.write("phrases.txt", "HOUSE -- 33!\n\ncat 3\nno such words\n");
    let (exit, value) = home.show(&["run", "--holds", "@phrases.txt", "--limit", "2"]);
    assert_eq!(exit, 0, "{value}");
    // The plain way: texts as words, one by one.
    let plain = |text: &str| {
        let text = text.to_lowercase();
        let words: Vec<&str> =
            text.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()).collect();
        format!(" {} ", words.join(" "))
    };
    let count = |files: &[&str], phrase: &str| {
        let texts = files.iter().map(|f| std::fs::read_to_string(home.path("run/data").join(f)));
        let lines: Vec<String> =
            texts.flat_map(|t| t.unwrap().lines().map(String::from).collect::<Vec<_>>()).collect();
        lines.iter().filter(|line| plain(line).contains(&plain(phrase))).count()
    };
    for (i, phrase) in ["house 33", "cat 3", "no such words"].into_iter().enumerate() {
        let found = &value["phrases"][i];
        let training = count(&["documents.jsonl", "conversations.jsonl"], phrase);
        assert_eq!(found["training"]["documents"], training, "{found}");
        assert_eq!(found["heldout"]["documents"], count(&["heldout.jsonl"], phrase), "{found}");
    }
    assert!(value["phrases"][0]["training"]["documents"].as_u64().unwrap() > 1);
    assert_eq!(value["hits"].as_array().unwrap().len(), 2);
    let hit = &value["hits"][0];
    assert_eq!((&hit["file"], &hit["found"]), (&"data/documents.jsonl".into(), &"house 33".into()));
    assert!(hit["source"].as_str().unwrap().starts_with("docs/"), "{hit}");

    // What is held out stands in no training text, unless somebody said it twice.
    let heldout = std::fs::read_to_string(home.path("run/data/heldout.jsonl")).unwrap();
    let line: Value = serde_json::from_str(heldout.lines().next().unwrap()).unwrap();
    let text: Vec<&str> = line["text"].as_str().unwrap().split_whitespace().collect();
    let phrase = text[text.len() - 8..].join(" ");
    let found = home.show(&["run", "--holds", &phrase]).1["phrases"][0].clone();
    assert_eq!(
        (&found["heldout"]["documents"], &found["contaminated"]),
        (&1.into(), &false.into())
    );
    home.write("docs/copy.txt", &format!("Somebody wrote: {}", phrase.to_uppercase()));
    home.grow(&["data.heldout=0.3"]);
    let found = home.show(&["run", "--holds", &phrase]).1["phrases"][0].clone();
    let all = |key: &str| found[key]["documents"].as_u64().unwrap();
    assert_eq!(all("training") + all("heldout"), 2, "{found}");
    assert_eq!(found["contaminated"], all("training") == 1, "{found}");
    assert_eq!(home.show(&["run", "--holds", "--"]).0, 2);
    assert_eq!(home.show(&["docs", "--holds", "cat"]).0, 2);
}
