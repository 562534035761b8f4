//! `data prepare` killed and gone on with; `data collect` from a server in this process.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

fn homegrown(args: &[&str], crash: Option<u32>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_homegrown"));
    command.args(args);
    if let Some(crash) = crash {
        command.env("HOMEGROWN_CRASH", crash.to_string());
    }
    command.output().unwrap()
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Killed after the first of two parts: that one is not made again, and all comes to the same.
#[test]
fn a_killed_prepare_goes_on() {
    let files = tempfile::tempdir().unwrap();
    // A part is 4096 files at most.
    for i in 0..4200 {
        let text = format!("File number {i} of some words, {} in all.", i * 7);
        std::fs::write(files.path().join(format!("{i:04}.txt")), text).unwrap();
    }
    let prepare = |out: &Path, crash| {
        let args = ["data", "prepare", path(files.path()), "--out", path(out), "--clean", "plain"];
        homegrown(&args, crash)
    };
    let whole = tempfile::tempdir().unwrap();
    assert!(prepare(whole.path(), None).status.success());
    let (first, second) = ("parts/00000.json", "parts/00001.json");
    let made = |out: &Path, name: &str| out.join(name).metadata().ok()?.modified().ok();
    let killed = (1..).map(|n| {
        let out = tempfile::tempdir().unwrap();
        assert!(!prepare(out.path(), Some(n * 4)).status.success(), "it went past {n}");
        out
    });
    let between = |out: &tempfile::TempDir| made(out.path(), first).is_some();
    let out = killed.into_iter().find(between).unwrap();
    assert!(made(out.path(), second).is_none());
    let before = made(out.path(), first);
    assert!(prepare(out.path(), None).status.success());
    assert_eq!(made(out.path(), first), before);
    for name in
        ["documents.jsonl", "heldout.jsonl", "stats.json", "stats.html", "parts/00001.jsonl"]
    {
        let read = |out: &Path| std::fs::read(out.join(name)).unwrap();
        assert!(read(out.path()) == read(whole.path()), "{name}");
    }
}

#[cfg(feature = "collect")]
mod collect {
    use std::io::{BufRead, BufReader, Write};
    use std::net::{TcpListener, TcpStream};

    use serde_json::Value;

    use super::*;

    /// A site of three pages, one of which fails at first. Returns its address.
    fn site() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            let mut failed = false;
            for stream in listener.incoming() {
                serve(stream.unwrap(), &mut failed);
            }
        });
        address
    }

    fn serve(mut stream: TcpStream, failed: &mut bool) {
        let lines = BufReader::new(stream.try_clone().unwrap()).lines();
        let head: Vec<_> = lines.map_while(Result::ok).take_while(|l| !l.is_empty()).collect();
        let path = head.first().and_then(|l| l.split(' ').nth(1)).unwrap_or_default();
        let (status, body) = match path {
            "/" => {
                ("200 OK", "<title>Home</title><p>Welcome to three pages.</p><a href='/a'>a</a>")
            }
            "/a" => ("200 OK", "<p>The second of them.</p><a href='/b'>b</a>"),
            "/b" if !std::mem::replace(failed, true) => ("500 Not now", ""),
            "/b" => ("200 OK", "<p>The third, after a while.</p>"),
            _ => ("404 Not Found", ""),
        };
        let n = body.len();
        let head = format!("HTTP/1.1 {status}\r\nContent-Type: text/html\r\nContent-Length: {n}");
        let _ = write!(stream, "{head}\r\nConnection: close\r\n\r\n{body}");
    }

    fn run(args: &[&str]) -> Value {
        let output = homegrown(args, None);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    #[test]
    fn pages_become_documents() {
        let (url, dir) = (site(), tempfile::tempdir().unwrap());
        let (raw, clean) = (dir.path().join("raw"), dir.path().join("clean"));
        std::fs::write(dir.path().join("here.txt"), "A file that was here before.").unwrap();
        let here = dir.path().join("here.txt");
        let collect = |more: &[&str]| {
            let all = ["data", "collect", &url, path(&here), "--out", path(&raw), "--json"];
            run(&[&all[..], &["--allow-private", "--pause", "0", "--retries", "0"], more].concat())
        };
        let counts = |value: &Value| {
            let of = |name: &str| value["outcomes"][name].as_u64().unwrap_or(0);
            (value["pages"].as_u64(), value["files"].as_u64(), of("failed"))
        };
        assert_eq!(counts(&collect(&[])), (Some(1), Some(1), 0));
        // Deeper, from the page that is there; then what failed once more.
        assert_eq!(counts(&collect(&["--depth", "2"])), (Some(2), Some(1), 1));
        assert_eq!(counts(&collect(&["--depth", "2", "--retry-failed"])), (Some(3), Some(1), 0));
        let stats = run(&[
            "data",
            "prepare",
            path(&raw),
            "--out",
            path(&clean),
            "--clean",
            "plain",
            "--json",
            "--set",
            "heldout=0.0",
        ]);
        assert_eq!(stats["train"]["documents"], 4);
        let lines = std::fs::read_to_string(clean.join("documents.jsonl")).unwrap();
        let page = lines.lines().find(|l| l.contains("Welcome")).unwrap();
        let page: Value = serde_json::from_str(page).unwrap();
        assert_eq!((page["title"].as_str(), page["url"].as_str().is_some()), (Some("Home"), true));
        // Without leave nothing here is asked, and a foreign folder is not written to.
        let private =
            run(&["data", "collect", &url, "--out", path(&dir.path().join("no")), "--json"]);
        assert_eq!(private["outcomes"]["refused"], 1);
        let foreign = homegrown(&["data", "collect", &url, "--out", path(dir.path())], None);
        assert_eq!(foreign.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&foreign.stderr).contains("holds something else"));
    }
}
