//! Folders to documents, as a whole.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use documents::prepare::{Stats, prepare};
use documents::settings::Near;
use documents::{Document, PrepareError, Settings};
use proptest::prelude::*;

fn lines(path: &Path) -> Vec<Document> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn run(
    from: &Path,
    out: &Path,
    settings: &Settings,
    threads: usize,
) -> Result<Stats, PrepareError> {
    prepare(&[from.to_path_buf()], settings, out, threads, &mut |_, _, _| true)
}

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::create_dir_all(dir.path().join(name).parent().unwrap()).unwrap();
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

/// Words that differ from each other.
fn words(from: usize, n: usize) -> String {
    (from..from + n).map(|i| format!("the word{i} of ")).collect::<String>() + "it all.\n"
}

/// All files of a folder and what is in them.
fn contents(path: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            all.insert(path.file_name().unwrap().into(), std::fs::read(&path).unwrap());
        }
    }
    all
}

#[test]
fn duplicates_rules_and_lists() {
    let files = folder(&[
        ("a.txt", &words(0, 200)),
        ("b.txt", &words(1000, 200)),
        ("c.txt", &words(0, 200)),
        ("d.txt", &(words(0, 198) + "but not quite.")),
        ("short.txt", "Too short."),
        ("e.txt", &(words(2000, 100) + &words(1000, 150))),
        (
            "eval.txt",
            &format!(
                "{} quoted here {}",
                words(3000, 60),
                "what is the name of the seventh of the twelve small islands in the bay"
            ),
        ),
        ("image.png", "\0PNG"),
        (
            "page.html",
            &format!("<html><p>{}</p><p>Mail ann@example.org now.</p>", words(4000, 100)),
        ),
    ]);
    let list = folder(&[(
        "questions.jsonl",
        "{\"question\": \"What is the name of the seventh of the twelve small islands in the bay?\"}\n",
    )]);
    let settings = Settings {
        rules: vec!["gopher.words".into()],
        personal: documents::clean::personal::Personal::Mask,
        near: Near { bands: 16, rows: 8, words: 5 },
        repeated_words: 50,
        evaluation: vec![list.path().join("questions.jsonl")],
        evaluation_words: 10,
        heldout: 0.0,
        ..Settings::default()
    };
    let out = tempfile::tempdir().unwrap();
    let stats = run(files.path(), out.path(), &settings, 2).unwrap();
    let kept = lines(&out.path().join("documents.jsonl"));
    let names: Vec<_> = kept.iter().map(|d| d.source.rsplit('/').next().unwrap()).collect();
    assert_eq!(names, ["a.txt", "b.txt", "e.txt", "page.html"]);
    assert!(kept[3].text.contains("[mail]"), "{}", kept[3].text);
    assert!(
        kept[2].text.contains("word2050") && !kept[2].text.contains("word1050"),
        "{}",
        kept[2].text
    );
    let rules: Vec<_> =
        stats.dropped.iter().map(|(r, d)| (r.as_str(), d.count.documents)).collect();
    let want =
        [("evaluation", 1), ("exact_duplicate", 1), ("gopher.words", 1), ("near_duplicate", 1)];
    assert_eq!(rules, want);
    assert_eq!(stats.skips.len(), 1);
    assert!(stats.cut["repeated_words"] > 0);
    let dropped = std::fs::read_to_string(out.path().join("dropped.jsonl")).unwrap();
    assert_eq!(dropped.lines().count(), 4);
    assert!(matches!(
        run(files.path(), out.path(), &Settings { rules: vec!["gofer".into()], ..settings }, 1),
        Err(PrepareError::Setting(why)) if why.contains("gofer")
    ));
}

#[test]
fn threads_and_stops_change_no_byte() {
    let all: Vec<(String, String)> =
        (0..300).map(|i| (format!("{:03}.txt", i), words(i * 37 % 2000, 50 + i % 90))).collect();
    let all: Vec<(&str, &str)> = all.iter().map(|(n, t)| (n.as_str(), t.as_str())).collect();
    let files = folder(&all);
    let mut settings = Settings::web();
    settings.rules = vec!["gopher.words".into()];
    settings.repeated_words = 40;
    let outs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    run(files.path(), outs[0].path(), &settings, 1).unwrap();
    run(files.path(), outs[1].path(), &settings, 4).unwrap();
    assert_eq!(contents(outs[0].path()), contents(outs[1].path()));
    // Stopped, and gone on.
    let mut left = 150;
    let stopped =
        prepare(&[files.path().to_path_buf()], &settings, outs[2].path(), 2, &mut |_, _, _| {
            left -= 1;
            left > 0
        });
    assert!(matches!(stopped, Err(PrepareError::Stopped)));
    assert!(!outs[2].path().join("documents.jsonl").exists());
    run(files.path(), outs[2].path(), &settings, 2).unwrap();
    assert_eq!(contents(outs[0].path()), contents(outs[2].path()));
    // A part that is there is not read again, one whose file has changed is.
    let seen = |path: &Path| {
        std::fs::metadata(path.join("parts/00000.jsonl")).unwrap().modified().unwrap()
    };
    let before = seen(outs[2].path());
    run(files.path(), outs[2].path(), &settings, 2).unwrap();
    assert_eq!(seen(outs[2].path()), before);
    std::fs::write(files.path().join("000.txt"), words(9000, 77)).unwrap();
    run(files.path(), outs[2].path(), &settings, 2).unwrap();
    assert_ne!(seen(outs[2].path()), before);
}

#[test]
fn nothing_is_an_error() {
    let out = tempfile::tempdir().unwrap();
    let why = |from: &Path| run(from, out.path(), &Settings::default(), 1).unwrap_err().to_string();
    let none = folder(&[]);
    assert!(why(none.path()).contains("there are no files"));
    let junk = folder(&[("x", "\0")]);
    assert!(why(junk.path()).contains("its one file was skipped"));
    assert!(why(&none.path().join("none")).contains("cannot read"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Nothing is lost, nothing is there twice, and a fair part is held out.
    #[test]
    fn train_and_heldout_make_the_whole(
        texts in prop::collection::vec("([a-zäß€ ]{1,30}\n{0,2}){1,40}", 1..12),
    ) {
        let dir = tempfile::tempdir().unwrap();
        for (i, text) in texts.iter().enumerate() {
            std::fs::write(dir.path().join(format!("{i:02}")), format!("{i} {text}")).unwrap();
        }
        let out = tempfile::tempdir().unwrap();
        let settings = Settings { heldout: 0.1, ..Settings::default() };
        let stats = run(dir.path(), out.path(), &settings, 2).unwrap();
        let mut whole = vec![String::new(); texts.len()];
        for name in ["documents.jsonl", "heldout.jsonl"] {
            for d in lines(&out.path().join(name)) {
                let i: usize = d.source[d.source.len() - 2..].parse().unwrap();
                whole[i] += &d.text;
            }
        }
        for (i, text) in texts.iter().enumerate() {
            prop_assert_eq!(&whole[i], &format!("{i} {text}"));
        }
        let (held, total) = (stats.heldout.bytes, stats.heldout.bytes + stats.train.bytes);
        prop_assert!(held > 0 && held <= total * 9 / 10, "{held} of {total}: {}", stats.heldout_how);
    }
}
