//! Files of all kinds, made by other programs where they are at hand, and files that mean harm.
#![allow(clippy::unwrap_used)]

use std::io::{Cursor, Write};
use std::path::Path;

use documents::parse::parse;
use documents::read::{Item, read_file};
use documents::{Document, Limits, Settings, Skip};
use proptest::prelude::*;

/// All that comes out of a file.
fn read(path: &Path, limits: &Limits) -> (Vec<Document>, Vec<Skip>) {
    let (mut documents, mut skips) = (Vec::new(), Vec::new());
    let settings = Settings { limits: limits.clone(), ..Settings::default() };
    read_file(path, &settings, &mut |item| {
        match item {
            Item::Skip(skip) => skips.push(skip),
            Item::Piece(piece) => {
                for parsed in parse(piece, &settings) {
                    match parsed {
                        Ok(document) => documents.push(document),
                        Err(skip) => skips.push(skip),
                    }
                }
            }
        }
        true
    });
    (documents, skips)
}

/// The same for bytes under a name.
fn read_bytes(name: &str, bytes: &[u8], limits: &Limits) -> (Vec<Document>, Vec<Skip>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    let (documents, skips) = read(&path, limits);
    // Nothing is written anywhere.
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    (documents, skips)
}

fn text(name: &str, bytes: &[u8]) -> String {
    let (documents, skips) = read_bytes(name, bytes, &Limits::default());
    assert!(skips.is_empty(), "{skips:?}");
    documents.iter().map(|d| d.text.as_str()).collect::<Vec<_>>().join("\n---\n")
}

fn reason(name: &str, bytes: &[u8]) -> String {
    let (documents, skips) = read_bytes(name, bytes, &Limits::default());
    assert!(documents.is_empty(), "{documents:?}");
    skips.iter().map(|s| s.reason.as_str()).collect::<Vec<_>>().join("; ")
}

fn zip(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in files {
        writer.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        // As it is: the builder would refuse a path that leads out.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(bytes.len() as u64);
        header.set_cksum();
        builder.append(&header, *bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

#[test]
fn archives_in_archives() {
    let limits = Limits::default();
    let inner = zip(&[("a.txt", b"In a zip."), ("b.html", b"<html><p>In a page.</p>")]);
    let outer = gzip(&tar(&[("x/inner.zip", &inner), ("x/c.txt", b"In a tar.")]));
    let (documents, skips) = read_bytes("all.tar.gz", &outer, &limits);
    assert!(skips.is_empty(), "{skips:?}");
    let found: Vec<_> = documents
        .iter()
        .map(|d| (d.source.rsplit('/').next().unwrap(), d.text.as_str(), d.format.name()))
        .collect();
    let want = [
        ("inner.zip!a.txt", "In a zip.", "text"),
        ("inner.zip!b.html", "In a page.", "html"),
        ("c.txt", "In a tar.", "text"),
    ];
    assert_eq!(found, want);
    let zst = zstd::encode_all(&b"Packed."[..], 3).unwrap();
    assert_eq!(text("a.txt.zst", &zst), "Packed.");
    let mut xz = Vec::new();
    std::io::copy(&mut liblzma::read::XzEncoder::new(&b"Packed."[..], 3), &mut xz).unwrap();
    assert_eq!(text("a.txt.xz", &xz), "Packed.");
}

#[test]
fn records() {
    let lines =
        b"{\"text\": \"One.\", \"url\": \"https://a.b\", \"metadata\": {\"date\": \"2024\"}}\n\n\
                  {\"question\": \"Why?\", \"answer\": \"So.\"}\n{broken\n[1,2]\n";
    let (documents, skips) = read_bytes("a.jsonl", lines, &Limits::default());
    let texts: Vec<_> = documents.iter().map(|d| d.text.as_str()).collect();
    assert_eq!(texts, ["One.", "question: Why?\nanswer: So.", "1\n2"]);
    assert_eq!(documents[0].about.url.as_deref(), Some("https://a.b"));
    assert_eq!(documents[0].about.time.as_deref(), Some("2024"));
    assert!(skips.len() == 1 && skips[0].source.ends_with("a.jsonl#4"), "{skips:?}");
    assert_eq!(text("a.json", br#"[{"text": "One."}, {"text": "Two."}]"#), "One.\n---\nTwo.");
    assert_eq!(
        text("lines.json", b"{\"text\": \"One.\"}\n{\"text\": \"Two.\"}\n"),
        "One.\n---\nTwo."
    );
    assert!(reason("deep.json", "[".repeat(100_000).as_bytes()).contains("recursion limit"));
    let limits = Limits { line_bytes: 1000, ..Limits::default() };
    let long = format!(
        "{{\"text\": \"a\"}}\n{{\"text\": \"{}\"}}\n{{\"text\": \"c\"}}\n",
        "b".repeat(5000)
    );
    let (documents, skips) = read_bytes("long.jsonl", long.as_bytes(), &limits);
    let found: Vec<_> =
        documents.iter().map(|d| (&d.text[..], d.source.split('#').nth(1).unwrap())).collect();
    assert_eq!(found, [("a", "1"), ("c", "3")]);
    assert!(skips[0].source.ends_with("#2"), "{skips:?}");
}

#[test]
fn long_texts_are_cut_and_whole() {
    let limits = Limits { document_bytes: 1000, ..Limits::default() };
    let whole: String = (0..500)
        .map(|i| format!("Zeile {i} – süß.\n{}", if i % 7 == 0 { "\n" } else { "" }))
        .collect();
    let (documents, skips) = read_bytes("a.txt", whole.as_bytes(), &limits);
    assert!(skips.is_empty() && documents.len() > 10);
    assert!(documents.iter().all(|d| d.text.len() <= 1000));
    assert_eq!(documents.iter().map(|d| d.text.as_str()).collect::<String>(), whole);
    let utf16: Vec<u8> = whole.encode_utf16().flat_map(u16::to_be_bytes).collect();
    let (documents, _) = read_bytes("a.txt", &[b"\xfe\xff".to_vec(), utf16].concat(), &limits);
    let joined: String = documents.iter().map(|d| d.text.as_str()).collect();
    assert_eq!(joined, whole);
}

#[test]
fn web_archives() {
    let record = |kind: &str, content: &str, body: &str| {
        format!(
            "WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: http://x.org/a\r\n\
             WARC-Date: 2024-05-01T00:00:00Z\r\nContent-Type: {content}\r\n\
             Content-Length: {}\r\n\r\n{body}\r\n\r\n",
            body.len()
        )
    };
    let page = "HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\
                Transfer-Encoding: chunked\r\n\r\n1b\r\n<html><body><p>One page.</p\r\n1\r\n>\r\n0\r\n\r\n";
    let gone = "HTTP/1.1 404 Not Found\r\n\r\nNo.";
    let warc = [
        record("warcinfo", "application/warc-fields", "software: x"),
        record("response", "application/http; msgtype=response", page),
        record("response", "application/http; msgtype=response", gone),
        record("conversion", "text/plain", "Plain words."),
    ];
    // Each record packed by itself, as crawlers do it.
    let packed: Vec<u8> = warc.iter().flat_map(|r| gzip(r.as_bytes())).collect();
    let (documents, skips) = read_bytes("a.warc.gz", &packed, &Limits::default());
    let texts: Vec<_> = documents.iter().map(|d| d.text.as_str()).collect();
    assert_eq!(texts, ["One page.", "Plain words."]);
    assert_eq!(documents[0].about.url.as_deref(), Some("http://x.org/a"));
    assert_eq!(documents[1].about.time.as_deref(), Some("2024-05-01T00:00:00Z"));
    assert!(skips.len() == 1 && skips[0].reason.contains("404"), "{skips:?}");
}

#[test]
fn mail_and_notebooks() {
    let mail = b"From ann@example.org Mon May  6 10:00:00 2024\n\
        From: Ann <ann@example.org>\nSubject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\n\
        Date: Mon, 6 May 2024 10:00:00 +0000\nContent-Type: text/plain; charset=utf-8\n\n\
        Hello Bob.\n\nFrom bob@example.org Tue May  7 10:00:00 2024\nSubject: Re\n\
        Content-Type: text/html\n\n<p>Hello <b>Ann</b>.</p>\n";
    let found = text("box.mbox", mail);
    assert_eq!(found, "Subject: Grüße\n\nHello Bob.\n\n---\nSubject: Re\n\nHello Ann.\n");
    let book = br##"{"cells": [{"cell_type": "markdown", "source": ["# T\n", "x"]},
        {"cell_type": "code", "source": "1 + 1", "outputs": [{"data": {"text/plain": ["2"]}}]}],
        "metadata": {"kernelspec": {"language": "python"}}}"##;
    assert_eq!(text("a.ipynb", book), "# T\nx\n\n```python\n1 + 1\n```\n\n```output\n2\n```");
}

#[test]
fn files_that_mean_harm() {
    let bomb = gzip(&vec![b'a'; 300 << 20]);
    assert!(reason("bomb.html.gz", &bomb).contains("bomb"));
    let (_, skips) = read_bytes("bomb.txt.gz", &bomb, &Limits::default());
    assert!(skips[0].reason.contains("bomb"), "{skips:?}");
    let entity = zip(&[
        ("[Content_Types].xml", b"<Types/>"),
        (
            "word/document.xml",
            b"<!DOCTYPE d [<!ENTITY a \"ha\"><!ENTITY b \"&a;&a;&a;\">]><d><p><t>x&b;&lt;&#65;</t></p></d>",
        ),
    ]);
    assert_eq!(text("entities.docx", &entity), "x<A");
    let wide = format!("<p>{}</p>", "x".repeat(100 << 20));
    let wide = zip(&[("[Content_Types].xml", b"<Types/>"), ("word/document.xml", wide.as_bytes())]);
    assert!(reason("wide.docx", &wide).contains("bomb"));
    let climbing = tar(&[
        ("../../etc/passwd", b"root"),
        ("/abs", b"root"),
        ("ok.txt", b"ok"),
        ("ok.txt", b"again"),
    ]);
    let (documents, skips) = read_bytes("a.tar", &climbing, &Limits::default());
    assert_eq!(documents.len(), 1);
    let reasons: Vec<_> = skips.iter().map(|s| s.reason.as_str()).collect();
    let out = "its path leads out of the archive";
    assert_eq!(reasons, [out, out, "a second member of this name"]);
    let mut nested = b"deep".to_vec();
    for _ in 0..50 {
        nested = gzip(&nested);
    }
    assert!(reason("deep.gz", &nested).contains("archives in archives"));
    assert!(reason("a.docx", b"not a docx at all").contains("broken"));
    assert!(reason("a.pdf", b"%PDF-1.7\nnothing").contains("broken"));
    assert!(reason("a.pdf", b"%PDF-1.7\ntrailer <</Encrypt 1 0 R>>").contains("encrypted"));
    assert!(reason("a.xlsx", b"PK\x03\x04 and no more").contains("broken"));
    assert!(reason("empty", b"").contains("empty"));
    assert!(reason("ole.doc", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1").contains("Office"));
}

/// A file of one page with this content, and a table of its objects.
fn pdf(content: &str, more: &[u8]) -> Vec<u8> {
    let objects = [
        "<</Type/Catalog/Pages 2 0 R>>".to_string(),
        "<</Type/Pages/Kids[3 0 R]/Count 1>>".to_string(),
        "<</Type/Page/Parent 2 0 R/MediaBox[0 0 600 800]/Contents 4 0 R\
         /Resources<</Font<</F 5 0 R>>>>>>"
            .to_string(),
        format!("<</Length {}>>stream\n{content}\nendstream", content.len()),
        "<</Type/Font/Subtype/Type1/BaseFont/Helvetica/Encoding<</BaseEncoding/WinAnsiEncoding\
         /Differences[1/f_i/eacute]>>>>"
            .to_string(),
    ];
    let mut file = b"%PDF-1.4\n".to_vec();
    let mut places = Vec::new();
    for (i, object) in objects.iter().enumerate() {
        places.push(file.len());
        file.extend(format!("{} 0 obj\n{object}\nendobj\n", i + 1).bytes());
    }
    file.extend(more);
    let table = file.len();
    file.extend(format!("xref\n0 {}\n0000000000 65535 f \n", objects.len() + 1).bytes());
    places.iter().for_each(|p| file.extend(format!("{p:010} 00000 n \n").bytes()));
    let size = objects.len() + 1;
    file.extend(
        format!("trailer\n<</Size {size}/Root 1 0 R>>\nstartxref\n{table}\n%%EOF\n").bytes(),
    );
    file
}

#[test]
fn pages_of_pdf() {
    let content = "BT /F 10 Tf 50 700 Td 12 TL (A sen-) Tj T* (tence in two lines.) Tj \
                   0 -30 Td [(Of\\001ce) -300 (caf\\002)] TJ ET";
    assert_eq!(text("a.pdf", &pdf(content, b"")), "A sentence in two lines.\n\nOffice café\n");
    let mut packed = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    packed.write_all(&vec![0; 300 << 20]).unwrap();
    let mut stream = b"9 0 obj <</Type/ObjStm/Filter/FlateDecode>>stream\n".to_vec();
    stream.extend(packed.finish().unwrap());
    stream.extend(b"\nendstream endobj\n");
    assert!(reason("bomb.pdf", &pdf(content, &stream)).contains("bomb"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// No file of any kind, whatever is wrong with it, does more than be skipped.
    #[test]
    fn damage_is_survived(at in any::<prop::sample::Index>(), with in any::<[u8; 4]>(), cut in any::<prop::sample::Index>(), kind in 0..9usize) {
        let sheet = zip(&[
            ("[Content_Types].xml", b"<Types/>"),
            ("xl/workbook.xml", b"<workbook><sheets><sheet name='S' id='r1'/></sheets></workbook>"),
            ("xl/_rels/workbook.xml.rels", b"<R><Relationship Id='r1' Target='s.xml'/></R>"),
            ("xl/s.xml", b"<worksheet><row><c r='B2'><v>1</v></c></row></worksheet>"),
        ]);
        let book = zip(&[
            ("mimetype", b"application/epub+zip"),
            ("META-INF/container.xml", b"<c><rootfile full-path='a.opf'/></c>"),
            ("a.opf", b"<p><item id='1' href='1.html'/><itemref idref='1'/></p>"),
            ("1.html", b"<p>Chapter</p>"),
        ]);
        let open = zip(&[
            ("mimetype", b"application/vnd.oasis.opendocument.text"),
            ("content.xml", b"<d><h outline-level='1'>T</h><p>x<s c='9'/></p></d>"),
        ]);
        let warc = b"WARC/1.0\r\nWARC-Type: response\r\nContent-Type: application/http\r\nContent-Length: 60\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n";
        let (name, mut bytes) = match kind {
            0 => ("a.pdf", pdf("BT /F 10 Tf 50 700 Td (A sentence.) Tj [(b) -9 (c)] TJ ET", b"")),
            1 => ("a.xlsx", sheet),
            2 => ("a.epub", book),
            3 => ("a.odt", open),
            4 => ("a.warc", warc.to_vec()),
            5 => ("a.tar", tar(&[("a.txt", b"abc"), ("b.html", b"<table><tr><td>x")])),
            6 => ("a.html", b"<!doctype html><title>x</title><main><table><tr><td>a<p>b</table><pre>x".to_vec()),
            7 => ("a.eml", b"Subject: x\nContent-Type: multipart/mixed; boundary=b\n\n--b\n\nhello\n--b--".to_vec()),
            _ => ("a.csv", b"a,b\n\"c\nd\",e\n".to_vec()),
        };
        let place = at.index(bytes.len());
        for (i, b) in with.iter().enumerate() {
            if let Some(byte) = bytes.get_mut(place + i) {
                *byte = *b;
            }
        }
        let end = cut.index(bytes.len() * 4).min(bytes.len());
        bytes.truncate(end);
        read_bytes(name, &bytes, &Limits::default());
    }
}
