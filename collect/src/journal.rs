//! `collected.jsonl`: what became of each source, a line each, only appended to.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use documents::files::COLLECTED;
use store::{AtomicFile, StoreError, crash};

use crate::entry::{Entry, Outcome};

/// Takes what failed out of the journal of a folder, so that it is asked for again. Nothing of it is
/// in other files.
///
/// # Errors
/// [`StoreError`].
pub fn forget_failed(dir: &Path) -> Result<(), StoreError> {
    let path = dir.join(COLLECTED);
    if !path.exists() {
        return Ok(());
    }
    let mut lines = BufReader::new(File::open(&path).map_err(StoreError::io("read", &path))?);
    let (mut kept, mut forgotten, mut line) = (AtomicFile::create(&path)?, 0, Vec::new());
    loop {
        line.clear();
        if lines.read_until(b'\n', &mut line).map_err(StoreError::io("read", &path))? == 0 {
            break;
        }
        // What is no entry is told when the journal is opened.
        let entry = serde_json::from_slice::<Entry>(&line);
        if entry.is_ok_and(|entry| entry.outcome == Outcome::Failed) {
            forgotten += 1;
        } else {
            kept.write_all(&line).map_err(StoreError::io("write", &path))?;
        }
    }
    if forgotten > 0 { kept.commit() } else { Ok(()) }
}

/// The file, open at its end.
pub struct Journal {
    path: PathBuf,
    file: File,
}

impl Journal {
    /// Opens the journal of a folder and gives each of its entries to `see`. What a kill left of
    /// its last line is cut off, and what it says of sources that were left.
    ///
    /// # Errors
    /// [`StoreError`]: the system refuses; a line in the middle is no entry.
    pub fn open(dir: &Path, mut see: impl FnMut(Entry)) -> Result<Journal, StoreError> {
        let path = dir.join(COLLECTED);
        let open =
            || File::options().create(true).read(true).write(true).truncate(false).open(&path);
        let file = open().map_err(StoreError::io("write", &path))?;
        let broken = || StoreError::io("read", &path);
        let (mut whole, mut line, mut number) = (0, Vec::new(), 0);
        let mut lines = BufReader::new(&file);
        loop {
            line.clear();
            let n = lines.read_until(b'\n', &mut line).map_err(broken())?;
            number += 1;
            if n == 0 || line.last() != Some(&b'\n') {
                break;
            }
            let entry: Entry = serde_json::from_slice(&line).map_err(|e| {
                let reason = format!("line {number} is no entry: {e}");
                StoreError::Damaged { path: path.clone(), reason }
            })?;
            // They are at the end.
            if entry.outcome == Outcome::Left {
                break;
            }
            whole += n as u64;
            see(entry);
        }
        file.set_len(whole).map_err(StoreError::io("cut", &path))?;
        let append = || File::options().append(true).open(&path);
        let file = append().map_err(StoreError::io("write", &path))?;
        Ok(Journal { path, file })
    }

    /// Appends entries, durably.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn append(&mut self, entries: &[Entry]) -> Result<(), StoreError> {
        let broken = || StoreError::io("write", &self.path);
        let mut lines = Vec::new();
        for entry in entries {
            serde_json::to_writer(&mut lines, entry).map_err(|e| broken()(e.into()))?;
            lines.push(b'\n');
        }
        crash::point();
        let half = lines.len() / 2;
        self.file.write_all(&lines[..half]).map_err(broken())?;
        crash::point();
        self.file.write_all(&lines[half..]).map_err(broken())?;
        self.file.sync_data().map_err(broken())?;
        crash::point();
        Ok(())
    }
}
