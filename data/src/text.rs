//! Text of one's own: files and folders of UTF-8 to documents, a part of them held out.
//!
//! A file is a document; one of more than [`DOCUMENT_BYTES`] is cut into several between
//! paragraphs. Below a folder all files are read, in the order of their paths, except those whose
//! names begin with a dot. What is not text is skipped and listed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use store::{Hash, StoreError, hash_bytes};
use thiserror::Error;

/// Longest document.
pub const DOCUMENT_BYTES: usize = 8 << 20;
/// Largest file.
pub const FILE_BYTES: u64 = 2 << 30;

/// Why there is no text.
#[derive(Debug, Error)]
pub enum TextError {
    /// A path that was given can't be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Nothing was left.
    #[error("no text in {paths}: {found}")]
    Empty {
        /// What was given.
        paths: String,
        /// What was found instead.
        found: String,
    },
    /// The files are being written.
    #[error("{} changed while it was read; run again when nobody writes to it", .0.display())]
    Changed(PathBuf),
}

/// A file that was not read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skip {
    /// Which.
    pub path: PathBuf,
    /// Why.
    pub reason: String,
}

/// A document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    /// The text.
    pub text: String,
    /// Where it is from.
    pub source: String,
}

/// What a survey of text files found.
#[derive(Debug)]
pub struct Corpus {
    files: Vec<TextFile>,
    /// Files that are not text, can't be read, or are there twice.
    pub skipped: Vec<Skip>,
    /// How much is held out, and how it was chosen, in words.
    pub heldout: String,
    tail: Option<Tail>,
}

#[derive(Debug)]
struct TextFile {
    path: PathBuf,
    /// Hash, bytes, whether it is held out; one a document.
    documents: Vec<(Hash, usize, bool)>,
}

/// A document whose end is held out.
#[derive(Debug)]
struct Tail {
    file: usize,
    document: usize,
    /// About where the end begins.
    at: usize,
}

impl Corpus {
    /// Reads all text below `paths` once, and chooses what to hold out: whole documents in the
    /// order of their hashes, as long as they come to no more than `share` of the bytes; if
    /// they come to less than half of that, the end of the longest document instead.
    ///
    /// # Errors
    /// [`TextError::Store`] if one of `paths` itself can't be read, [`TextError::Empty`] if no
    /// text was found. Everything else is in [`Corpus::skipped`].
    pub fn survey(paths: &[PathBuf], share: f64) -> Result<Corpus, TextError> {
        let (mut found, mut skipped) = (Found::default(), Vec::new());
        for path in paths {
            std::fs::metadata(path).map_err(StoreError::io("read", path))?;
            found.visit(path, &mut skipped)?;
        }
        let mut files = Vec::new();
        for path in found.files {
            match read(&path) {
                Ok(text) => {
                    let facts = |t: &str| (hash_bytes(t.as_bytes()), t.len(), false);
                    files.push(TextFile { path, documents: documents(&text).map(facts).collect() });
                }
                Err(reason) => skipped.push(Skip { path, reason }),
            }
        }
        if files.is_empty() {
            let list: Vec<_> = paths.iter().map(|p| p.display().to_string()).collect();
            let found = match skipped.first() {
                None => "there are no files (names that begin with a dot don't count)".to_string(),
                Some(s) => format!(
                    "{} files were skipped, the first of them {}: {}",
                    skipped.len(),
                    s.path.display(),
                    s.reason
                ),
            };
            return Err(TextError::Empty { paths: list.join(", "), found });
        }
        let mut corpus = Corpus { files, skipped, heldout: String::new(), tail: None };
        corpus.hold_out(share);
        Ok(corpus)
    }

    fn hold_out(&mut self, share: f64) {
        let mut all: Vec<_> = (self.files.iter().enumerate())
            .flat_map(|(f, file)| {
                file.documents.iter().enumerate().map(move |(d, (h, n, _))| (*h, f, d, *n))
            })
            .collect();
        all.sort();
        let total: usize = all.iter().map(|a| a.3).sum();
        let (budget, mut held, mut count) = (total as f64 * share, 0, 0);
        for (_, f, d, n) in &all {
            if (held + n) as f64 <= budget {
                self.files[*f].documents[*d].2 = true;
                held += n;
                count += 1;
            }
        }
        let Some(&(_, file, document, n)) = all.iter().max_by_key(|a| a.3) else { return };
        let percent = |n: f64| n / total as f64 * 100.0;
        if held as f64 >= budget / 2.0 && count > 0 || share <= 0.0 {
            self.heldout = format!(
                "{count} whole documents, {:.1} % of the text, in the order of their hashes",
                percent(held as f64)
            );
            return;
        }
        self.files.iter_mut().flat_map(|f| &mut f.documents).for_each(|d| d.2 = false);
        let tail = budget.min(n as f64 / 2.0);
        self.tail = Some(Tail { file, document, at: n - tail as usize });
        let name = self.files[file].path.display();
        self.heldout = format!("the end of {name}, {:.1} % of the text", percent(tail));
    }

    /// Bytes of all text.
    pub fn bytes(&self) -> u64 {
        self.files.iter().flat_map(|f| &f.documents).map(|d| d.1 as u64).sum()
    }

    /// Hash of all text with its paths, and of what is held out.
    pub fn hash(&self) -> Hash {
        let mut hasher = store::hash::Hasher::default();
        for file in &self.files {
            for (hash, _, held) in &file.documents {
                hasher.update(format!("{hash} {held} {}\n", file.path.display()).as_bytes());
            }
        }
        hasher.update(self.heldout.as_bytes());
        hasher.finish()
    }

    /// Calls `f` with every document and whether it is held out, in order.
    ///
    /// # Errors
    /// [`TextError::Changed`] if a file is no longer what it was, and those of `f`.
    pub fn documents<E: From<TextError>>(
        &self,
        mut f: impl FnMut(Document, bool) -> Result<(), E>,
    ) -> Result<(), E> {
        for (i, file) in self.files.iter().enumerate() {
            let changed = || E::from(TextError::Changed(file.path.clone()));
            let text = read(&file.path).map_err(|_| changed())?;
            let mut rest = file.documents.iter().enumerate();
            for part in documents(&text) {
                let (d, (hash, _, held)) = rest.next().ok_or_else(changed)?;
                if hash_bytes(part.as_bytes()) != *hash {
                    return Err(changed());
                }
                let name = file.path.display();
                let source = if file.documents.len() == 1 {
                    name.to_string()
                } else {
                    format!("{name}#{d}")
                };
                let document = |text: &str| Document { text: text.into(), source: source.clone() };
                match &self.tail {
                    Some(t) if (t.file, t.document) == (i, d) => {
                        let (head, tail) = part.split_at(boundary(part, t.at));
                        for (text, held) in [(head, false), (tail, true)] {
                            if !text.is_empty() {
                                f(document(text), held)?;
                            }
                        }
                    }
                    _ => f(document(part), *held)?,
                }
            }
            if rest.next().is_some() {
                return Err(changed());
            }
        }
        Ok(())
    }
}

/// Files below the given paths.
#[derive(Default)]
struct Found {
    files: Vec<PathBuf>,
    /// What was visited, without symbolic links: each counts once, and loops end.
    seen: BTreeSet<PathBuf>,
}

impl Found {
    /// Visits a path that was given, or one below it. Only a list that can't be read at the top
    /// is an error.
    fn visit(&mut self, path: &Path, skipped: &mut Vec<Skip>) -> Result<(), StoreError> {
        let mut skip = |reason: String| skipped.push(Skip { path: path.to_path_buf(), reason });
        let real = match path.canonicalize() {
            Ok(real) => real,
            Err(e) => {
                skip(e.to_string());
                return Ok(());
            }
        };
        if real.is_file() {
            if self.seen.insert(real) {
                self.files.push(path.to_path_buf());
            } else {
                skip("the same file is there under another name".into());
            }
        } else if real.is_dir() {
            if !self.seen.insert(real) {
                skip("the same folder is there under another name".into());
                return Ok(());
            }
            let list = || -> std::io::Result<Vec<PathBuf>> {
                std::fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect()
            };
            let mut entries = match list() {
                Ok(entries) => entries,
                Err(e) => {
                    skip(format!("the folder can't be listed: {e}"));
                    return Ok(());
                }
            };
            entries.sort();
            for entry in entries {
                let hidden =
                    entry.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.'));
                if !hidden {
                    self.visit(&entry, skipped)?;
                }
            }
        } else {
            skip("neither a file nor a folder".into());
        }
        Ok(())
    }
}

/// The text of a file, without a byte order mark, or why it is none.
fn read(path: &Path) -> Result<String, String> {
    let size = std::fs::metadata(path).map_err(|e| e.to_string())?.len();
    if size > FILE_BYTES {
        return Err(format!("{size} bytes; files of up to {FILE_BYTES} are read, so split it"));
    }
    let bytes = std::fs::read(path).map_err(|e| e.to_string())?;
    let text = String::from_utf8(bytes).map_err(|e| {
        format!("not UTF-8 text: byte {} is out of place", e.utf8_error().valid_up_to())
    })?;
    if let Some(at) = text.find('\0') {
        return Err(format!("not text: byte {at} is zero"));
    }
    let text = text.strip_prefix('\u{feff}').map(str::to_string).unwrap_or(text);
    if text.trim().is_empty() { Err("it is empty".into()) } else { Ok(text) }
}

/// A text as documents.
fn documents(mut text: &str) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        let limit = text.floor_char_boundary(DOCUMENT_BYTES);
        let at = if limit == text.len() { limit } else { boundary(text, limit) };
        let (document, rest) = text.split_at(at);
        text = rest;
        (!document.is_empty()).then_some(document)
    })
}

/// The last place up to `at` where a paragraph begins; or else a line; or else a character. Not 0.
fn boundary(text: &str, at: usize) -> usize {
    let head = &text[..text.floor_char_boundary(at)];
    // Not too far back, or it would be another place altogether.
    let near = head.floor_char_boundary(head.len() - head.len().min(1 << 16));
    let place = |mark: &str| head[near..].rfind(mark).map(|i| near + i + mark.len());
    let first = text.chars().next().map_or(0, char::len_utf8);
    place("\n\n").or_else(|| place("\n")).unwrap_or(head.len()).max(first)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn collect(corpus: &Corpus) -> (Vec<Document>, Vec<Document>) {
        let (mut train, mut heldout) = (Vec::new(), Vec::new());
        let push = |d, held| -> Result<(), TextError> {
            if held {
                heldout.push(d)
            } else {
                train.push(d)
            }
            Ok(())
        };
        corpus.documents(push).unwrap();
        (train, heldout)
    }

    #[test]
    fn a_folder_of_all_kinds_of_files() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let write = |name: &str, bytes: &[u8]| {
            std::fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
            std::fs::write(root.join(name), bytes).unwrap();
        };
        write("b.txt", "\u{feff}Zwei.\n".as_bytes());
        write("a/one.md", b"One.\n");
        write("a/latin1.txt", b"caf\xe9");
        write("a/junk.txt", b"a\0b");
        write("empty", b" \n");
        write(".git/config", b"hidden");
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink("..", root.join("a/up")).unwrap();
            std::os::unix::fs::symlink("b.txt", root.join("c.txt")).unwrap();
            std::os::unix::fs::symlink("nowhere", root.join("broken")).unwrap();
        }
        let corpus = Corpus::survey(&[root.to_path_buf()], 0.0).unwrap();
        let (train, heldout) = collect(&corpus);
        let texts: Vec<_> = train.iter().map(|d| d.text.as_str()).collect();
        assert_eq!((texts, heldout.len()), (vec!["One.\n", "Zwei.\n"], 0));
        assert!(train[0].source.ends_with("a/one.md"));
        let skipped: String = (corpus.skipped.iter())
            .map(|s| format!("{}: {}\n", s.path.strip_prefix(root).unwrap().display(), s.reason))
            .collect();
        for line in [
            "a/latin1.txt: not UTF-8 text: byte 3",
            "a/junk.txt: not text: byte 1",
            "empty: it is empty",
            "a/up: the same folder",
            "c.txt: the same file",
            "broken: No such file",
        ] {
            assert!(skipped.contains(line), "{line} is not in\n{skipped}");
        }
        assert_eq!(corpus.skipped.len(), 6);

        let corpus = Corpus::survey(&[root.to_path_buf()], 0.1).unwrap();
        write("b.txt", b"Three.");
        let result = corpus.documents(|_, _| Ok::<(), TextError>(()));
        assert!(matches!(result, Err(TextError::Changed(_))));
    }

    #[test]
    fn nothing_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let survey = |p: &Path| Corpus::survey(&[p.to_path_buf()], 0.1).unwrap_err().to_string();
        assert!(survey(dir.path()).contains("there are no files"));
        std::fs::write(dir.path().join("x"), b"\xff").unwrap();
        assert!(survey(dir.path()).contains("1 files were skipped"));
        assert!(survey(&dir.path().join("none")).contains("cannot read"));
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
            let corpus = Corpus::survey(&[dir.path().to_path_buf()], 0.1).unwrap();
            let mut whole = vec![String::new(); texts.len()];
            let (mut held, mut total) = (0, 0);
            corpus.documents(|d, h| {
                let i: usize = d.source[d.source.len() - 2..].parse().unwrap();
                whole[i] += &d.text;
                total += d.text.len();
                held += if h { d.text.len() } else { 0 };
                Ok::<(), TextError>(())
            }).unwrap();
            for (i, text) in texts.iter().enumerate() {
                prop_assert_eq!(&whole[i], &format!("{i} {text}"));
            }
            prop_assert!(held > 0 && held <= total * 9 / 10, "{held} of {total}: {}", corpus.heldout);
        }

        #[test]
        fn boundaries_are_of_characters(text in "[a€\n]{1,50}", at in 0..60usize) {
            let at = boundary(&text, at.min(text.len()));
            prop_assert!(text.is_char_boundary(at) && at > 0);
        }
    }
}
