//! The files below the given paths.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use store::StoreError;

use crate::Skip;

/// What `collect` writes beside what it has collected.
pub const COLLECTED: &str = "collected.jsonl";

/// Files in the order of their paths; names that begin with a dot don't count below a folder.
#[derive(Debug, Default)]
pub struct Files {
    /// The files, and their bytes.
    pub files: Vec<(PathBuf, u64)>,
    /// What is no file, can't be read, or is there twice.
    pub skipped: Vec<Skip>,
    /// What was visited, without symbolic links: each counts once, and loops end.
    seen: BTreeSet<PathBuf>,
}

impl Files {
    /// Looks below `paths`.
    ///
    /// # Errors
    /// [`StoreError`] if one of `paths` itself can't be read. Everything else is skipped.
    pub fn below(paths: &[PathBuf]) -> Result<Files, StoreError> {
        let mut files = Files::default();
        for path in paths {
            std::fs::metadata(path).map_err(StoreError::io("read", path))?;
            files.visit(path);
        }
        Ok(files)
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|f| f.1).sum()
    }

    fn skip(&mut self, path: &Path, reason: impl Into<String>) {
        self.skipped.push(Skip { source: path.display().to_string(), reason: reason.into() });
    }

    fn visit(&mut self, path: &Path) {
        let facts = path.canonicalize().and_then(|real| Ok((std::fs::metadata(&real)?, real)));
        let (facts, real) = match facts {
            Ok(facts) => facts,
            Err(e) => return self.skip(path, e.to_string()),
        };
        if facts.is_file() {
            if self.seen.insert(real) {
                self.files.push((path.to_path_buf(), facts.len()));
            } else {
                self.skip(path, "the same file is there under another name");
            }
        } else if facts.is_dir() {
            if !self.seen.insert(real) {
                return self.skip(path, "the same folder is there under another name");
            }
            let list = || -> std::io::Result<Vec<PathBuf>> {
                std::fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect()
            };
            match list() {
                Ok(mut entries) => {
                    entries.sort();
                    for entry in entries.iter().filter(|e| !hidden(e)) {
                        if entry.file_name().is_some_and(|n| n == COLLECTED) {
                            self.skip(entry, "the list of a collection, not a part of it");
                            continue;
                        }
                        self.visit(entry);
                    }
                }
                Err(e) => self.skip(path, format!("the folder can't be listed: {e}")),
            }
        } else {
            self.skip(path, "neither a file nor a folder");
        }
    }
}

fn hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.'))
}
