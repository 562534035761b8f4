//! The second file: what `export --run` writes is built by `rustc` alone, and gives the engine's tokens.
//!
//! With `HOMEGROWN_MODELS` (see `.ci/models`) also for a model from elsewhere.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// It is a program of its own: here it is only formatted and linted with the others.
#[allow(dead_code, clippy::type_complexity)]
#[path = "../../run/run.rs"]
mod run;

const RECIPE: &str = r#"
[tokenizer]
vocab_size = 320

[model]
context = 128
layers = 2
dim = 64
heads = 4
kv_heads = 2
head_dim = 24
ffn = 96

[pretrain]
tokens = 20000
batch_tokens = 512
micro_tokens = 256
dtype = "f32"
validate_tokens = 2000
sample_tokens = 0

[finetune]
tokens = 4000
batch_tokens = 512
micro_tokens = 256
dtype = "f32"
validate_tokens = 1000
sample_tokens = 0

[eval]
validation_bytes = 1000
compressors = false
"#;

const PROMPTS: [&str; 4] = [
    "Where is cat 12?",
    "  I'll, WE'VE\n\n\tgo 2024 <|im_end|> x ",
    "fn main() { let été = \"नमस्ते\"; }",
    "你好 👩\u{200d}🚀 ไทย",
];

const SAMPLING: [&str; 3] = [
    "--temperature 0",
    "--temperature 1 --seed 7",
    "--temperature 1.3 --top-k 40 --top-p 0.9 --min-p 0.01 --seed 3",
];

fn homegrown(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_homegrown")).current_dir(dir).args(args).output().unwrap()
}

fn done(output: Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A run of two seconds.
fn grown() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let line = |n: usize| format!("The cat number {n} sleeps in house {}. Ça va, 你好! 😀 ", n * 3);
    std::fs::write(dir.path().join("a.txt"), (1..400).map(line).collect::<String>()).unwrap();
    let chat = |n: usize| {
        let (question, answer) = (format!("Where is cat {n}?"), format!("In house {}.", n * 3));
        let turn = |role: &str, text: &str| serde_json::json!({"role": role, "content": text});
        let turns = [turn("user", &question), turn("assistant", &answer)];
        format!("{}\n", serde_json::json!({"messages": turns}))
    };
    std::fs::write(dir.path().join("c.jsonl"), (1..30).map(chat).collect::<String>()).unwrap();
    std::fs::write(dir.path().join("tiny.toml"), RECIPE).unwrap();
    let grow = ["grow", "tiny.toml", "--docs", "a.txt", "--chats", "c.jsonl", "--out", "run"];
    done(homegrown(dir.path(), &grow));
    dir
}

/// Builds the program of an exported directory.
fn built(dir: &Path) -> PathBuf {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let built = Command::new(rustc).args(["-O", "run.rs"]).current_dir(dir).output().unwrap();
    assert_eq!((done(built).as_str(), dir.join("run").is_file()), ("", true));
    dir.join("run")
}

/// Both answer all prompts, as messages and as texts, in all ways.
fn same_tokens(dir: &Path, prompts: &[&str], tokens: &str) {
    let program = built(dir);
    for (prompt, sampling) in prompts.iter().flat_map(|p| SAMPLING.map(|s| (p, s))) {
        for raw in [&[][..], &["--raw"]] {
            let sampling: Vec<&str> = sampling.split(' ').chain(raw.iter().copied()).collect();
            let engine = ["generate", "model.gguf", "--exact", "--kv", "f32", "--json", "--prompt"];
            let args = [&engine[..], &[*prompt, "--max-tokens", tokens], &sampling].concat();
            let value: Value = serde_json::from_str(&done(homegrown(dir, &args))).unwrap();
            let args = [&["model.gguf", *prompt, "--tokens", tokens][..], &sampling].concat();
            let text = done(Command::new(&program).args(args).current_dir(dir).output().unwrap());
            let engine = value["text"].as_str().unwrap();
            assert_eq!(text.strip_suffix('\n'), Some(engine), "{prompt:?}, {sampling:?}");
        }
    }
}

#[test]
fn two_files_give_the_engines_tokens() {
    let home = grown();
    for (quant, prompts) in [
        ("F32", &PROMPTS[..]),
        ("F16", &PROMPTS[..1]),
        ("BF16", &PROMPTS[1..2]),
        ("Q8_0", &PROMPTS[2..]),
    ] {
        let out = format!("two-{quant}");
        done(homegrown(home.path(), &["export", "run", "--run", &out, "--quant", quant]));
        same_tokens(&home.path().join(out), prompts, "24");
    }

    // What is wrong is told, by both.
    let dir = home.path().join("two-F32");
    let bytes = std::fs::read(dir.join("model.gguf")).unwrap();
    let mut cuts: Vec<usize> = (0..bytes.len()).step_by(1 + bytes.len() / 40).collect();
    cuts.extend([3, 24, bytes.len() - 1]);
    for cut in cuts {
        std::fs::write(dir.join("cut.gguf"), &bytes[..cut]).unwrap();
        let output = Command::new(dir.join("run")).arg(dir.join("cut.gguf")).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{cut} bytes: {said}");
        assert!(said.starts_with("error: ") && said.contains("cut.gguf: "), "{cut} bytes: {said}");
    }
    for (args, what) in [
        ("export run --run two-F32", "is there already"),
        ("export run --run new --quant Q4_K_M", "run.rs doesn't read Q4_K_M"),
        ("export run --run new --out other", "cannot be used with"),
        ("export run --to gguf", "--out"),
        ("export run", "--to"),
    ] {
        let output = homegrown(home.path(), &args.split(' ').collect::<Vec<_>>());
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args}: {said}");
        assert!(said.contains(what), "{args}: {said}");
        assert!(!home.path().join("new").exists(), "{args}");
    }
}

#[test]
fn open_models_run_too() {
    let Some(folder) = std::env::var_os("HOMEGROWN_MODELS").map(PathBuf::from) else {
        println!("SKIPPED: open models; HOMEGROWN_MODELS names no folder (see .ci/models)");
        return;
    };
    let home = tempfile::tempdir().unwrap();
    let model = folder.join("smollm2.gguf");
    let export = ["export", model.to_str().unwrap(), "--run", "two", "--quant", "Q8_0"];
    done(homegrown(home.path(), &export));
    let (dir, engine) = (home.path().join("two"), ["generate", "model.gguf", "--exact", "--kv"]);
    let program = built(&dir);
    for prompt in PROMPTS {
        let args = [&engine[..], &["f32", "--json", "--max-tokens", "12", "--prompt", prompt]];
        let value: Value = serde_json::from_str(&done(homegrown(&dir, &args.concat()))).unwrap();
        let args = ["model.gguf", prompt, "--tokens", "12"];
        let text = done(Command::new(&program).args(args).current_dir(&dir).output().unwrap());
        assert_eq!(text.strip_suffix('\n'), value["text"].as_str(), "{prompt:?}");
    }
    let model = folder.join("gemma3.gguf");
    let refused = homegrown(home.path(), &["export", model.to_str().unwrap(), "--run", "no"]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("doesn't run the family gemma3_text"), "{said}");
}
