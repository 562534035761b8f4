//! What a file is, by its first bytes and then by its name.

use serde::{Deserialize, Serialize};

/// What a document was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Format {
    #[default]
    Text,
    Markdown,
    Code,
    Html,
    Pdf,
    Docx,
    Odt,
    Pptx,
    Odp,
    Xlsx,
    Ods,
    Csv,
    Epub,
    Json,
    Jsonl,
    Notebook,
    Mail,
    Parquet,
}

impl Format {
    /// As in files and tables.
    pub fn name(self) -> &'static str {
        match self {
            Format::Text => "text",
            Format::Markdown => "markdown",
            Format::Code => "code",
            Format::Html => "html",
            Format::Pdf => "pdf",
            Format::Docx => "docx",
            Format::Odt => "odt",
            Format::Pptx => "pptx",
            Format::Odp => "odp",
            Format::Xlsx => "xlsx",
            Format::Ods => "ods",
            Format::Csv => "csv",
            Format::Epub => "epub",
            Format::Json => "json",
            Format::Jsonl => "jsonl",
            Format::Notebook => "notebook",
            Format::Mail => "mail",
            Format::Parquet => "parquet",
        }
    }
}

/// How a stream is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// gzip, also in several members.
    Gzip,
    /// Zstandard.
    Zstd,
    /// xz.
    Xz,
}

/// How a file is to be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A stream that holds another.
    Packed(Packing),
    /// A tar archive.
    Tar,
    /// A zip archive; office files are some.
    Zip,
    /// Web pages as they were collected.
    Warc,
    /// Many messages.
    Mbox,
    /// A document, or lines of them.
    Leaf(Format),
    /// Nothing that is read here, and why.
    Not(String),
}

/// Beginnings of files that are no text.
const MAGIC: &[(&[u8], &str)] = &[
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"RIFF", "sound, video or an image"),
    (b"\x7fELF", "a program"),
    (b"\xd0\xcf\x11\xe0", "an old or encrypted Office file; save it as .docx, .xlsx or .odt"),
    (b"BZh", "a bzip2 file; pack it as gzip, zstd or xz"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; pack it as zip or tar"),
    (b"Rar!", "a rar archive; pack it as zip or tar"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"\0asm", "a WebAssembly program"),
    (b"ID3", "sound"),
    (b"OggS", "sound or video"),
    (b"GGUF", "a model"),
    (b"%!PS", "PostScript; convert it to PDF"),
    (b"{\\rtf", "RTF; save it as .docx or .odt"),
];

/// Bytes of a file's beginning that are looked at.
pub const HEAD: usize = 8192;

/// What a file is that begins like this and is called so.
pub fn identify(head: &[u8], name: &str) -> Kind {
    let extension = extension(name);
    let starts = |magic: &[u8]| head.starts_with(magic);
    if starts(b"\x1f\x8b") {
        return Kind::Packed(Packing::Gzip);
    } else if starts(b"\x28\xb5\x2f\xfd") {
        return Kind::Packed(Packing::Zstd);
    } else if starts(b"\xfd7zXZ\0") {
        return Kind::Packed(Packing::Xz);
    } else if starts(b"PK\x03\x04") || starts(b"PK\x05\x06") {
        return Kind::Zip;
    } else if head.get(257..262) == Some(b"ustar") {
        return Kind::Tar;
    } else if starts(b"WARC/") {
        return Kind::Warc;
    } else if head[..head.len().min(1024)].windows(5).any(|w| w == b"%PDF-") {
        return Kind::Leaf(Format::Pdf);
    } else if starts(b"PAR1") {
        return Kind::Leaf(Format::Parquet);
    }
    if let Some((_, what)) = MAGIC.iter().find(|(magic, _)| starts(magic)) {
        return Kind::Not(format!("not text: {what}"));
    }
    if let Some(reason) = crate::encoding::binary(head) {
        return Kind::Not(reason);
    }
    if head.iter().all(u8::is_ascii_whitespace) && head.len() < HEAD {
        return Kind::Not("it is empty".into());
    }
    let mail = || {
        let first = head.split(|b| *b == b'\n').nth(1).unwrap_or_default();
        first.iter().position(|b| *b == b':').is_some_and(|at| !first[..at].contains(&b' '))
    };
    if starts(b"From ") && mail() {
        return Kind::Mbox;
    }
    let by_name = match extension.as_str() {
        "html" | "htm" | "xhtml" => Format::Html,
        "md" | "markdown" => Format::Markdown,
        "csv" | "tsv" => Format::Csv,
        "json" => Format::Json,
        "jsonl" | "ndjson" => Format::Jsonl,
        "ipynb" => Format::Notebook,
        "eml" => Format::Mail,
        // Else they would have begun as such.
        "pdf" | "docx" | "odt" | "pptx" | "odp" | "xlsx" | "ods" | "epub" | "parquet" | "zip"
        | "gz" | "zst" | "xz" | "tar" | "tgz" | "warc"
            if !page(head) =>
        {
            return Kind::Not(format!("broken: it does not begin as a .{extension} file does"));
        }
        _ if page(head) => Format::Html,
        _ if language(name).is_some() => Format::Code,
        _ => Format::Text,
    };
    Kind::Leaf(by_name)
}

/// Whether it begins as a page.
fn page(head: &[u8]) -> bool {
    let head = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start();
    let starts = |mark: &[u8]| head.get(..mark.len()).is_some_and(|h| h.eq_ignore_ascii_case(mark));
    starts(b"<!doctype html")
        || starts(b"<html")
        || starts(b"<head")
        || starts(b"<?xml") && head.windows(5).take(1024).any(|w| w.eq_ignore_ascii_case(b"<html"))
}

/// The last part of a name after a dot, in small letters.
pub fn extension(name: &str) -> String {
    let file = name.rsplit(['/', '!']).next().unwrap_or(name);
    file.rsplit_once('.').map(|(_, e)| e.to_ascii_lowercase()).unwrap_or_default()
}

/// A name without the extension of how it is packed.
pub fn unpacked_name(name: &str) -> String {
    match extension(name).as_str() {
        "tgz" => format!("{}tar", &name[..name.len() - 3]),
        e @ ("gz" | "zst" | "xz") => name[..name.len() - e.len() - 1].to_string(),
        _ => name.to_string(),
    }
}

/// The programming language of a file, by its name.
pub fn language(name: &str) -> Option<&'static str> {
    Some(match extension(name).as_str() {
        "rs" => "rust",
        "c" | "h" => "c",
        "cc" | "cpp" | "cxx" | "hh" | "hpp" | "cu" | "cuh" => "c++",
        "py" | "pyi" => "python",
        "js" | "mjs" | "cjs" | "jsx" => "javascript",
        "ts" | "tsx" => "typescript",
        "go" => "go",
        "java" => "java",
        "kt" | "kts" => "kotlin",
        "cs" => "c#",
        "rb" => "ruby",
        "pl" | "pm" => "perl",
        "php" => "php",
        "sh" | "bash" | "zsh" => "shell",
        "lua" => "lua",
        "sql" => "sql",
        "swift" => "swift",
        "scala" => "scala",
        "hs" => "haskell",
        "ml" | "mli" => "ocaml",
        "ex" | "exs" => "elixir",
        "erl" => "erlang",
        "clj" => "clojure",
        "jl" => "julia",
        "r" => "r",
        "zig" => "zig",
        "asm" | "s" => "assembly",
        "f90" | "f" => "fortran",
        "css" | "scss" => "css",
        "toml" => "toml",
        "yaml" | "yml" => "yaml",
        "xml" | "svg" | "xsl" => "xml",
        "cmake" => "cmake",
        "mk" => "make",
        "tex" => "tex",
        "vue" => "vue",
        _ => match name.rsplit(['/', '!']).next().unwrap_or(name) {
            "Makefile" | "makefile" => "make",
            "Dockerfile" => "docker",
            "CMakeLists.txt" => "cmake",
            _ => return None,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_before_names() {
        let leaf = |head: &[u8], name: &str| match identify(head, name) {
            Kind::Leaf(format) => format.name().to_string(),
            other => format!("{other:?}"),
        };
        assert_eq!(leaf(b"%PDF-1.7", "a.txt"), "pdf");
        assert_eq!(leaf(b"<!DOCTYPE HTML><p>", "a.pdf"), "html");
        assert!(leaf(b"Hello there", "a.docx").contains("broken"));
        assert_eq!(leaf(b"fn main() {}", "src/main.rs"), "code");
        assert_eq!(leaf(b"Hello", "README"), "text");
        assert_eq!(leaf(b"From a@b Mon\nSubject: x\n", "inbox"), "Mbox");
        assert_eq!(leaf(b"From here on\nall is well: fine\n", "a"), "text");
        assert!(leaf(b"\x89PNG\r\n", "a.txt").contains("PNG"));
        assert!(leaf(b" \n", "a").contains("empty"));
        assert_eq!(unpacked_name("a/b.tgz"), "a/b.tar");
        assert_eq!(unpacked_name("a/b.html.gz"), "a/b.html");
    }
}
