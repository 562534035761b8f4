//! What is wrong with what a command is given is told in a few lines: what, where, what to do. One
//! table of cases against the built program.

#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

/// A run of a second, of text of one's own and of conversations, that cases copy and damage.
const RECIPE: &str = r#"
[tokenizer]
vocab_size = 300

[model]
context = 64
layers = 1
dim = 16
heads = 2
kv_heads = 1
head_dim = 8
ffn = 16

[pretrain]
tokens = 4_000
dtype = "f32"
batch_tokens = 512
micro_tokens = 256
validate_tokens = 1_000
sample_tokens = 0

[finetune]
tokens = 1_000
dtype = "f32"
batch_tokens = 512
micro_tokens = 256
validate_tokens = 1_000
sample_tokens = 0

[eval]
validation_bytes = 512
compressors = false
"#;

const CHATS: &str = r#"{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}
"#;

/// A folder with text, conversations, a recipe and (once made) a run.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        let place = Place(tempfile::tempdir().unwrap());
        for i in 0..6 {
            let text = format!("Text number {i} of a few words. {}", "It goes on. ".repeat(20 + i));
            place.write(&format!("docs/{i}.txt"), text.as_bytes());
        }
        place.write("chats.jsonl", CHATS.repeat(20).as_bytes());
        place.write("small.toml", RECIPE.as_bytes());
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    fn run(&self, args: &str) -> Output {
        self.command(args).output().unwrap()
    }

    fn command(&self, args: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_homegrown"));
        command.args(args.split_whitespace()).current_dir(self.0.path());
        command
    }

    /// Changes a file.
    fn change(&self, name: &str, change: impl Fn(&mut Vec<u8>)) {
        let mut bytes = std::fs::read(self.path(name)).unwrap();
        change(&mut bytes);
        self.write(name, &bytes);
    }
}

const GROW: &str = "grow small.toml --docs docs --chats chats.jsonl --out run";

/// A copy of a place where a run has been made.
fn grown() -> Place {
    static MADE: OnceLock<Place> = OnceLock::new();
    let made = MADE.get_or_init(|| {
        let place = Place::new();
        let output = place.run(GROW);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        place
    });
    let copy = Place(tempfile::tempdir().unwrap());
    let from = made.0.path().join(".");
    let copied = Command::new("cp").arg("-a").arg(from).arg(copy.0.path()).status().unwrap();
    assert!(copied.success());
    copy
}

#[allow(clippy::ptr_arg)] // as `cut`, which cuts it
fn flip(bytes: &mut Vec<u8>) {
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
}

fn cut(bytes: &mut Vec<u8>) {
    bytes.truncate(bytes.len() * 2 / 3);
}

/// A case: what is done to a place, the command, the exit code, what is told.
type Case = (&'static str, fn(&Place), &'static str, i32, &'static [&'static str]);

/// Before there is a run.
const FRESH: &[Case] = &[
    (
        "an empty folder",
        |p| std::fs::create_dir(p.path("none")).unwrap(),
        "grow small.toml --docs none --out run",
        2,
        &["no text in none", "there are no files"],
    ),
    (
        "a folder that isn't there",
        |_| {},
        "grow small.toml --docs nowhere --out run",
        2,
        &["cannot read nowhere", "No such file"],
    ),
    (
        "junk named .txt",
        |p| p.write("junk/a.txt", &[0xff, 0, 0x80, 7]),
        "grow small.toml --docs junk --out run",
        2,
        &["no text in junk", "junk/a.txt", "not"],
    ),
    (
        "an unknown setting",
        |p| p.write("wrong.toml", b"[pretrain]\ntokns = 5\n"),
        "grow wrong.toml --out run",
        2,
        &["wrong.toml, line 2", "tokns = 5", "Did you mean \"tokens\"?"],
    ),
    (
        "an impossible value",
        |p| p.write("wrong.toml", b"[model]\nlayers = 0\n"),
        "grow wrong.toml --out run",
        2,
        &["the setting model.layers", "from 1 to 4096", "wrong.toml, line 2"],
    ),
    (
        "a recipe that is no TOML",
        |p| p.write("wrong.toml", b"[model\n"),
        "grow wrong.toml --out run",
        2,
        &["wrong.toml, line 1"],
    ),
    (
        "a recipe that is no text",
        |p| p.write("wrong.toml", &[0xff; 9]),
        "grow wrong.toml --out run",
        2,
        &["wrong.toml", "not UTF-8"],
    ),
    (
        "a setting without =",
        |_| {},
        "grow small.toml --set seed --out run",
        2,
        &["--set seed", "KEY=VALUE"],
    ),
    (
        "an --out that holds something else",
        |p| p.write("run/thesis.tex", b"x"),
        "grow small.toml --docs docs --out run",
        2,
        &["run holds something that is not a run", "--out"],
    ),
    (
        "an --out that is a file",
        |p| p.write("run", b"x"),
        "grow small.toml --docs docs --out run",
        2,
        &["run is not a folder", "--out"],
    ),
    (
        "conversations that are none",
        |p| p.write("chats.jsonl", b"{\"messages\": 5}\n"),
        GROW,
        2,
        &["chats.jsonl, line 1"],
    ),
    (
        "an unknown role",
        |p| {
            p.write(
                "chats.jsonl",
                format!("{CHATS}{{\"messages\": [{{\"role\": \"robot\", \"content\": \"\"}}]}}\n")
                    .as_bytes(),
            )
        },
        GROW,
        2,
        &["chats.jsonl, line 2", "robot"],
    ),
    (
        "no conversation at all",
        |p| p.write("chats.jsonl", b"\n"),
        GROW,
        2,
        &["no conversations in chats.jsonl", "Each line is one"],
    ),
    (
        "conversations that are all too long",
        |p| {
            let long = CHATS.replace("Hello.", &"word ".repeat(400));
            p.write("chats.jsonl", long.as_bytes());
        },
        GROW,
        2,
        &["conversation 1", "don't fit the context of 64", "model.context"],
    ),
    (
        "a model larger than memory",
        |_| {},
        "grow small.toml --docs docs --out run --set model.dim=65536 --set model.ffn=262144 --set model.layers=100",
        2,
        &["needs", "of memory", "model.layers"],
    ),
    (
        "a model that isn't there",
        |_| {},
        "chat nowhere --message Hi",
        2,
        &["nowhere", "config.json"],
    ),
    ("a run that isn't there", |_| {}, "show nowhere", 2, &["nowhere"]),
    (
        "an unknown device",
        |_| {},
        "grow small.toml --device tpu",
        2,
        &["--device tpu", "auto, cpu, cuda"],
    ),
    (
        "a card's number that is none",
        |_| {},
        "grow small.toml --device cuda:x",
        2,
        &["cuda:x", "cuda:N"],
    ),
    (
        "a profile of a card",
        |_| {},
        "bench train --profile --device cuda",
        2,
        &["--profile", "on the CPU only", "--device cpu"],
    ),
    ("an unknown command", |_| {}, "grwo", 2, &["unrecognized subcommand", "grow"]),
];

/// After a run was made.
const GROWN: &[Case] = &[
    (
        "an export over what is there",
        |_| {},
        "export run --to safetensors --out run/model",
        2,
        &["run/model is there already", "nothing is overwritten"],
    ),
    (
        "a type that safetensors lack",
        |_| {},
        "export run --to safetensors --quant q8_0 --out new",
        2,
        &["Q8_0 is no type of safetensors files here", "--to gguf"],
    ),
    (
        "calibration where nothing depends on it",
        |_| {},
        "export run --to gguf --quant F16 --calibrate docs/1.txt --out new.gguf",
        2,
        &["--calibrate: nothing in F16 depends on it"],
    ),
    (
        "a short text for calibration",
        |p| p.write("short.txt", b"Text"),
        "export run --to gguf --quant Q4_0 --calibrate short.txt --out new.gguf",
        2,
        &["short.txt: the text for calibration has", "at least 64"],
    ),
    (
        "an unknown type",
        |_| {},
        "export run --to gguf --quant Q9 --out new.gguf",
        2,
        &["Q9", "one of F32, F16, BF16, Q8_0, Q6_K, Q4_K_M, Q4_0"],
    ),
    (
        "a flipped tokenizer",
        |p| p.change("run/model/tokenizer.json", |b| b.truncate(100)),
        "generate run --prompt Hi",
        2,
        &["run/model/tokenizer.json"],
    ),
    (
        "cut weights",
        |p| p.change("run/model/model.safetensors", cut),
        "generate run --prompt Hi",
        2,
        &["run/model/model.safetensors", "not a valid safetensors file"],
    ),
    (
        "a broken configuration",
        |p| p.write("run/model/config.json", b"{\"model_type\": \"qwen3\"}"),
        "generate run --prompt Hi",
        2,
        &["run/model/config.json"],
    ),
    (
        "a prompt longer than the context",
        |p| p.write("long.txt", b"x"),
        "generate run --prompt a,b,c,d,e,f,g,h,i,j,k,l,m,n,o,p,q,r,s,t,u,v,w,x,y,z,0,1,2,3,4,5,6,7,8,9,a,b,c,d,e,f,g,h",
        2,
        &["tokens", "context", "Shorten the prompt"],
    ),
    (
        "an empty text to score",
        |p| p.write("empty.txt", b""),
        "score run empty.txt",
        2,
        &["empty.txt"],
    ),
    ("a second writer", |_| {}, "LOCKED", 2, &["lock is in use", "process", "--out"]),
    (
        "a damaged manifest of checkpoints",
        |p| {
            p.write("run/pretrain/checkpoints/manifest.json", b"{");
            std::fs::remove_file(p.path("run/stages/pretrain.json")).unwrap();
        },
        GROW,
        2,
        &["manifest.json is not a checkpoint of this run", "Remove run/pretrain/checkpoints"],
    ),
    (
        "a flipped checkpoint",
        |p| {
            for file in std::fs::read_dir(p.path("run/pretrain/checkpoints")).unwrap() {
                let name = file.unwrap().file_name().into_string().unwrap();
                if name.starts_with("step") {
                    p.change(&format!("run/pretrain/checkpoints/{name}"), flip);
                }
            }
            std::fs::remove_file(p.path("run/stages/pretrain.json")).unwrap();
        },
        GROW,
        2,
        &["its contents have changed since it was written", "Remove run/pretrain/checkpoints"],
    ),
    (
        "metrics that are not those of the checkpoint",
        |p| {
            p.change("run/pretrain/metrics.jsonl", |m| m[20] ^= 1);
            std::fs::remove_file(p.path("run/stages/pretrain.json")).unwrap();
        },
        GROW,
        2,
        &["run/pretrain/metrics.jsonl does not hold", "Put it back", "remove run/pretrain"],
    ),
    (
        "damaged choices",
        |p| p.change("run/choices.json", flip),
        GROW,
        2,
        &["run/choices.json is damaged", "Remove it"],
    ),
];

fn check(place: &Place, (name, _, args, exit, told): &Case) {
    let mut lock = None;
    let args = if *args == "LOCKED" {
        lock = Some(store::Lock::take(&place.path("run/lock")).unwrap());
        GROW
    } else {
        args
    };
    let output = place.run(args);
    drop(lock);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    // To look at them all: HOMEGROWN_SHOW_ERRORS=1 cargo test --test errors -- --nocapture
    if std::env::var_os("HOMEGROWN_SHOW_ERRORS").is_some() {
        println!("--- {name}\n$ homegrown {args}\n{text}");
    }
    assert_eq!(output.status.code(), Some(*exit), "{name}: {text}");
    for part in *told {
        assert!(text.contains(part), "{name}: {part:?} is not in:\n{text}");
    }
    assert!(!text.contains('\u{1b}'), "{name}: colours where there is no terminal");
    let error = text.split("error: ").nth(1).unwrap_or_default();
    assert!(error.lines().count() <= 8, "{name}: too long:\n{text}");
    assert!(!text.contains("panicked"), "{name}:\n{text}");
}

#[test]
fn errors_tell_what_where_and_what_to_do() {
    for case in FRESH {
        let place = Place::new();
        (case.1)(&place);
        check(&place, case);
    }
    for case in GROWN {
        let place = grown();
        (case.1)(&place);
        check(&place, case);
    }
}

#[test]
fn what_is_damaged_in_a_run_is_made_again() {
    for (file, change) in [
        ("shards/documents/00000.shard", flip as fn(&mut Vec<u8>)),
        ("shards/conversations/00000.shard", cut),
        ("tokenizer/tokenizer.json", cut),
        ("data/documents.jsonl", cut),
        ("base/model.safetensors", flip),
        ("stages/tokenize.json", cut),
        ("stages/pretrain.json", flip),
    ] {
        let place = grown();
        let weights = std::fs::read(place.path("run/model/model.safetensors")).unwrap();
        place.change(&format!("run/{file}"), change);
        let output = place.run(GROW);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{file}: {text}");
        assert!(text.contains(" again: "), "{file}: {text}");
        assert!(std::fs::read(place.path("run/model/model.safetensors")).unwrap() == weights);
    }
}

#[test]
fn files_that_are_no_text_are_listed_and_passed_over() {
    let place = Place::new();
    place.write("docs/junk.txt", &[0xff; 64]);
    place.write("docs/zero.txt", b"a\0b");
    place.write("docs/empty.txt", b"");
    std::os::unix::fs::symlink(".", place.path("docs/loop")).unwrap();
    std::os::unix::fs::symlink("nowhere", place.path("docs/dangling")).unwrap();
    let output = place.run("grow small.toml --docs docs --out run --until tokenize");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}");
    let skipped = std::fs::read_to_string(place.path("run/data/skipped.jsonl")).unwrap();
    for name in ["junk.txt", "zero.txt", "empty.txt", "dangling"] {
        assert!(text.contains(name), "{name} is not in:\n{text}");
        assert!(skipped.contains(name), "{name} is not in:\n{skipped}");
    }
}

#[test]
fn files_that_come_and_go_while_they_are_read_are_told() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let place = Place::new();
    let (changing, gone) = (place.path("docs/3.txt"), place.path("docs/4.txt"));
    let stop = AtomicBool::new(false);
    let ends: Vec<_> = std::thread::scope(|s| {
        s.spawn(|| {
            for i in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let _ = std::fs::remove_file(&gone);
                std::fs::write(&changing, format!("Other text, {i}. ").repeat(500)).unwrap();
                std::fs::write(&gone, format!("It is back, {i}. ").repeat(50)).unwrap();
            }
        });
        let grow = "grow small.toml --docs docs --out run --until tokenize";
        let ends = (0..10).map(|_| place.run(grow)).collect();
        stop.store(true, Ordering::Relaxed);
        ends
    });
    for output in ends {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let told = text.contains("changed while it was read");
        assert!(output.status.success() || output.status.code() == Some(2) && told, "{text}");
    }
    let output = place.run("grow small.toml --docs docs --out run --until tokenize");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let documents = std::fs::read_to_string(place.path("run/data/documents.jsonl")).unwrap();
    assert!(documents.contains("It is back") || documents.contains("Other text"));
}

#[test]
fn a_full_disk_loses_nothing() {
    // A file system of 300 kB where that can be had, or else files of at most 20 kB.
    let place = Place::new();
    let disk = place.path("disk");
    std::fs::create_dir(&disk).unwrap();
    let mount = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=300k", "none"])
        .arg(&disk)
        .stderr(Stdio::null())
        .status();
    let mounted = mount.is_ok_and(|m| m.success());
    let grow = "grow small.toml --docs docs --out disk/run --set model.dim=64 --set model.layers=2";
    let output = if mounted {
        place.run(grow)
    } else {
        eprintln!("no tmpfs can be mounted here: trying with a limit on the size of files");
        let binary = env!("CARGO_BIN_EXE_homegrown");
        let line = format!("trap '' XFSZ; ulimit -f 40; exec {binary} {grow}");
        Command::new("bash").args(["-c", &line]).current_dir(place.0.path()).output().unwrap()
    };
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let code = output.status.code();
    // Room is made, and the same command goes on.
    let again = if mounted {
        let grown = Command::new("mount").args(["-o", "remount,size=64m"]).arg(&disk).status();
        assert!(grown.unwrap().success());
        let again = place.run(grow);
        assert!(Command::new("umount").arg(&disk).status().unwrap().success());
        again
    } else {
        place.run(grow)
    };
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("error: cannot write"), "{text}");
    assert!(!mounted || text.contains("The disk is full: make room"), "{text}");
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
}

#[test]
fn a_file_that_may_not_be_read_is_told() {
    let place = Place::new();
    std::fs::set_permissions(place.path("docs/1.txt"), std::fs::Permissions::from_mode(0o000))
        .unwrap();
    if std::fs::read(place.path("docs/1.txt")).is_ok() {
        eprintln!("this user may read everything: a file without permissions can't be tried");
        return;
    }
    let output = place.run("grow small.toml --docs docs --out run --until prepare");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && text.contains("1.txt"), "{text}");
}

#[test]
fn nobody_has_to_read_what_is_said() {
    let place = grown();
    // A reader that goes away, and a terminal that is none.
    for args in ["show run", GROW, "generate run --prompt Hi"] {
        let mut command = place.command(args);
        command.env("TERM", "dumb").env("COLUMNS", "1").stdout(Stdio::piped());
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!text.contains("panicked"), "{args}: {text}");
        assert!(output.status.code() == Some(0), "{args}: {:?} {text}", output.status);
    }
}

#[test]
fn json_is_one_object_also_for_errors() {
    let place = Place::new();
    let output = place.run("--json grow small.toml --docs nowhere --out run");
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value["exit"], 2);
    assert!(value["error"].as_str().is_some_and(|e| e.contains("nowhere")), "{value}");
}
