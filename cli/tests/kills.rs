//! A run that is killed again and again, moved and gone on with comes to the same bytes as one
//! that nobody touched.
//!
//! Kills come at random moments of its time, and at chosen points around what it does to files
//! (`store::crash`). `HOMEGROWN_KILLS=100 cargo test --release --test kills` kills oftener.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use compute::rng::Rng;

/// A recipe of a second or two, with all stages.
const RECIPE: &str = r#"
[world]
people = 32
first_names = 24
last_names = 24
values = 16

[corpus]
documents = 400
conversations = 200
finetune = 60
heldout = 20

[tokenizer]
vocab_size = 512

[model]
context = 512
layers = 2
dim = 32
heads = 2
kv_heads = 1
head_dim = 16
ffn = 48

[pretrain]
tokens = 150_000
batch_tokens = 2048
micro_tokens = 1024
validate_tokens = 25_000
sample_tokens = 60_000

[finetune]
tokens = 16_000
batch_tokens = 2048
micro_tokens = 1024
validate_tokens = 8_000
sample_tokens = 8_000

[eval]
questions = 2
validation_bytes = 4096
"#;

/// What may differ: times, the machine, and who holds the lock.
const OF_THE_CLOCK: [&str; 8] = [
    "lock",
    "machine.json",
    "choices.json",
    "costs.html",
    "costs.md",
    "stages",
    "pretrain/timing.jsonl",
    "finetune/timing.jsonl",
];

fn grow(recipe: &Path, out: &Path, threads: usize) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_homegrown"));
    command.arg("grow").arg(recipe).arg("--out").arg(out);
    // Which type operands have is measured, once a run; here it is to be the same in all of them.
    command.args(["--set", "pretrain.dtype=f32", "--set", "finetune.dtype=f32"]);
    command.args(["--threads", &threads.to_string()]);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// All files of a run that are to be the same, by name.
fn contents(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let (mut files, mut folders) = (BTreeMap::new(), vec![root.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_string();
            if OF_THE_CLOCK.contains(&name.as_str()) {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else {
                files.insert(name, std::fs::read(path).unwrap());
            }
        }
    }
    files
}

/// Waits for the end, or kills at a time. Whether it was killed.
fn wait(mut child: Child, kill_after: Duration) -> bool {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            // By a signal: it killed itself.
            if status.code().is_none() {
                return true;
            }
            let output = child.wait_with_output().unwrap();
            assert!(status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            return false;
        }
        if start.elapsed() > kill_after {
            child.kill().unwrap();
            child.wait().unwrap();
            return true;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn killed_moved_and_gone_on_with_it_is_the_same_run() {
    let kills = std::env::var("HOMEGROWN_KILLS").ok().and_then(|k| k.parse().ok()).unwrap_or(10);
    let dir = tempfile::tempdir().unwrap();
    let recipe = dir.path().join("small.toml");
    std::fs::write(&recipe, RECIPE).unwrap();
    let whole = dir.path().join("whole");
    let start = Instant::now();
    let output = grow(&recipe, &whole, 2).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let time = start.elapsed();
    let expected = contents(&whole);
    for file in ["model/model.safetensors", "pretrain/metrics.jsonl", "report.html", "report.md"] {
        assert!(expected.contains_key(file), "{file}");
    }

    let mut rng = Rng::new(0).stream("kills");
    let (mut killed, mut runs, mut moved) = (0, 0, 0);
    while killed < kills {
        let mut out: PathBuf = dir.path().join(format!("run-{runs}"));
        runs += 1;
        loop {
            let mut command = grow(&recipe, &out, 1 + rng.index(2));
            let mut after = time.mul_f64(rng.f64() * 1.2);
            if killed >= kills {
                after = Duration::MAX;
            } else if rng.chance(0.5) {
                // Points lie close together where much is written: all scales alike.
                let point = (rng.f64() * 12.0).exp2() as u64;
                command.env("HOMEGROWN_CRASH", point.to_string());
                after = Duration::MAX;
            }
            if !wait(command.spawn().unwrap(), after) {
                break;
            }
            killed += 1;
            if rng.chance(0.3) && out.exists() {
                let elsewhere = dir.path().join(format!("moved-{moved}"));
                std::fs::rename(&out, &elsewhere).unwrap();
                out = elsewhere;
                moved += 1;
            }
        }
        let got = contents(&out);
        let names = |c: &BTreeMap<String, Vec<u8>>| c.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&got), names(&expected));
        for (name, bytes) in &expected {
            assert!(got[name] == *bytes, "{name} differs after {killed} kills of {runs} runs");
        }
        std::fs::remove_dir_all(out).unwrap();
    }
    println!("{killed} kills, {runs} runs, moved {moved} times: the same {} files", expected.len());
}
