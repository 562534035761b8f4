//! Local files: linked into the collection, or copied where the disk is another.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use documents::files::Files;
use store::{AtomicFile, StoreError};

use crate::crawl::Known;
use crate::entry::{Entry, Outcome};
use crate::journal::Journal;
use crate::stats::Stats;
use crate::{CollectError, time};

/// Entries that are written to disk at once.
const ENTRIES: usize = 256;

/// Collects files and all files of folders.
///
/// # Errors
/// What can't be read or written.
pub fn collect(
    paths: &[PathBuf],
    out: &Path,
    known: &Known,
    journal: &mut Journal,
    stats: &mut Stats,
) -> Result<(), CollectError> {
    let real = |path: &Path| path.canonicalize().map_err(StoreError::io("read", path));
    let inside = real(out)?;
    let mut entries = Vec::new();
    for path in paths {
        let path = real(path)?;
        if inside.starts_with(&path) {
            return Err(CollectError::Setting(format!(
                "{}: the collection itself would lie in it; choose another --out",
                path.display()
            )));
        }
        let root = if path.is_dir() { path.as_path() } else { path.parent().unwrap_or(&path) };
        let files = Files::below(std::slice::from_ref(&path))?;
        for (file, _) in &files.files {
            let source = file.display().to_string();
            if !known.has(&source) {
                let entry = Entry { source, ..Entry::default() };
                entries.push(match link(file, root, out) {
                    Ok(found) => Entry { source: entry.source, ..found },
                    Err(e) => entry.with(Outcome::Failed, e.to_string()),
                });
            }
            if entries.len() >= ENTRIES {
                flush(&mut entries, journal, stats)?;
            }
        }
        for skip in files.skipped.into_iter().filter(|skip| !known.has(&skip.source)) {
            let entry = Entry { source: skip.source, ..Entry::default() };
            entries.push(entry.with(Outcome::Refused, skip.reason));
        }
    }
    Ok(flush(&mut entries, journal, stats)?)
}

fn flush(
    entries: &mut Vec<Entry>,
    journal: &mut Journal,
    stats: &mut Stats,
) -> Result<(), StoreError> {
    if !entries.is_empty() {
        journal.append(entries)?;
        entries.drain(..).for_each(|entry| stats.count(&entry));
    }
    Ok(())
}

/// Links a file below `root` into the collection.
fn link(file: &Path, root: &Path, out: &Path) -> Result<Entry, StoreError> {
    let read = || StoreError::io("read", file);
    let real = file.canonicalize().map_err(read())?;
    let facts = real.metadata().map_err(read())?;
    // Folders of the same name are kept apart.
    let mark = &store::hash_bytes(root.display().to_string().as_bytes()).to_string()[..8];
    let name = root.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let below = file.strip_prefix(root).unwrap_or(file);
    let place = Path::new("files").join(format!("{}-{mark}", name.trim_start_matches('.')));
    let place = Path::new(&place).join(below);
    let to = out.join(&place);
    if !to.exists() {
        to.parent().map_or(Ok(()), store::create_dir)?;
        if std::fs::hard_link(&real, &to).is_err() {
            let mut copy = AtomicFile::create(&to)?;
            let mut from = File::open(&real).map_err(read())?;
            io::copy(&mut from, &mut copy).map_err(StoreError::io("write", &to))?;
            copy.commit()?;
        }
    }
    Ok(Entry {
        outcome: Outcome::Stored,
        bytes: facts.len(),
        last_modified: facts.modified().ok().map(time::rfc3339),
        file: Some(place.display().to_string()),
        ..Entry::default()
    })
}
