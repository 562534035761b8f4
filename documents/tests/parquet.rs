//! Files of rows, made by another program (`parquet/make.py`), whole and damaged; and our own.
#![cfg(feature = "parquet")]
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use documents::output::{Output, each};
use documents::prepare::prepare;
use documents::{Document, Format, Settings, Skip};
use proptest::prelude::*;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parquet").join(format!("{name}.parquet"))
}

fn read(path: &Path, settings: &Settings) -> (Vec<Document>, Vec<Skip>) {
    let (mut documents, mut skips) = (Vec::new(), Vec::new());
    for one in documents::stream::documents(&[path.to_path_buf()], settings).unwrap() {
        match one {
            Ok(document) => documents.push(document),
            Err(skip) => skips.push(skip),
        }
    }
    (documents, skips)
}

fn reason(name: &str) -> String {
    let (documents, skips) = read(&fixture(name), &Settings::default());
    assert!(documents.is_empty() && skips.len() == 1, "{skips:?}");
    skips[0].reason.clone()
}

#[test]
fn rows_are_documents() {
    for name in ["snappy", "gzip", "zstd", "none", "second"] {
        let (documents, skips) = read(&fixture(name), &Settings::default());
        // Three of them are null; a record of the others is left.
        assert_eq!((documents.len(), skips.len()), (300, 0), "{name}: {skips:?}");
        let one = &documents[149];
        assert_eq!(one.text, "Page 150: naïve words, and 3 more.", "{name}");
        assert!(one.source.ends_with("#150") && one.format == Format::Parquet);
        assert_eq!(one.about.url.as_deref(), Some("https://example.org/150"));
        assert_eq!(one.about.time.as_deref(), Some("2024-05-01"));
        assert_eq!(one.about.licence.as_deref(), Some("CC0"));
    }
    let (documents, _) = read(&fixture("table"), &Settings::default());
    assert_eq!(
        documents[0].text,
        "name: Ann\nborn: 1970-01-01\nheight: 1.7\npets:\ncat\ndog\nraw: bytes that are text"
    );
    let named = |field: &str| Settings { text_field: field.into(), ..Settings::default() };
    let (documents, _) = read(&fixture("table"), &named("name"));
    assert_eq!(documents[1].text, "Bob");
    let (_, skips) = read(&fixture("table"), &named("body"));
    assert_eq!(skips[0].reason, "it has no column body, but name, born, height, pets, raw");
}

#[test]
fn what_is_not_read_is_told() {
    assert!(reason("brotli").contains("packed with BROTLI"));
    assert!(reason("delta").contains("encoded as DELTA_BYTE_ARRAY"));
    assert!(reason("bomb").contains("a page of more than 67108864 bytes"));
    // A hundred million bytes of twelve thousand.
    let (documents, skips) = read(&fixture("repeated"), &Settings::default());
    assert!(documents.len() < 70_000, "{}", documents.len());
    assert!(skips[0].reason.contains("bombs"), "{skips:?}");
}

#[test]
fn documents_are_rows() {
    let (folder, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for i in 0..40 {
        let text = format!("<html><title>T{i}</title><p>Some words, number {i}.</p>");
        std::fs::write(folder.path().join(format!("{i:02}.html")), text).unwrap();
    }
    let run = |output| {
        let settings = Settings { output, heldout: 0.1, ..Settings::default() };
        let from = [folder.path().to_path_buf()];
        prepare(&from, &settings, out.path(), 2, &mut |_, _, _| true).unwrap();
        let mut all = Vec::new();
        for name in ["documents", "heldout"] {
            each(out.path(), name, output, &mut |document| {
                all.push(document);
                true
            })
            .unwrap();
        }
        all
    };
    let lines = run(Output::Jsonl);
    let rows = run(Output::Parquet);
    assert_eq!((lines.len(), &lines), (40, &rows));
    assert!(!out.path().join("documents.jsonl").exists());
    // Others read them as any table.
    let (documents, skips) = read(&out.path().join("documents.parquet"), &Settings::default());
    assert!(skips.is_empty() && documents.len() + 4 == 40);
    assert_eq!(documents[0].about.title.as_deref(), Some("T0"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever is wrong with a file, it is no more than skipped.
    #[test]
    fn damage_is_survived(
        which in 0..6usize,
        end in any::<bool>(),
        at in any::<prop::sample::Index>(),
        with in any::<[u8; 3]>(),
        cut in any::<prop::sample::Index>(),
    ) {
        let name = ["snappy", "gzip", "zstd", "none", "second", "table"][which];
        let mut bytes = std::fs::read(fixture(name)).unwrap();
        // Most of what can go wrong is in the footer.
        let from = if end { bytes.len() - 1000 } else { 0 };
        let place = from + at.index(bytes.len() - from);
        for (i, b) in with.iter().enumerate() {
            if let Some(byte) = bytes.get_mut(place + i) {
                *byte = *b;
            }
        }
        if cut.index(8) == 0 {
            bytes.truncate(cut.index(bytes.len()));
        }
        let file = tempfile::Builder::new().suffix(".parquet").tempfile().unwrap();
        std::fs::write(file.path(), &bytes).unwrap();
        read(file.path(), &Settings::default());
    }
}
