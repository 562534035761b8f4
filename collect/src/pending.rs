//! Pages that are fetched and wait for those before them, a file each in `.pending`: an entry on the
//! first line, then the record. So records come in the order of the sources, however fast servers are,
//! and nothing is fetched twice if it is killed meanwhile.

use std::path::{Path, PathBuf};

use store::StoreError;

use crate::entry::Entry;

/// The folder of what waits.
pub struct Pending(PathBuf);

impl Pending {
    pub fn new(out: &Path) -> Pending {
        Pending(out.join(".pending"))
    }

    fn path(&self, source: &str) -> PathBuf {
        self.0.join(store::hash_bytes(source.as_bytes()).to_string())
    }

    /// Keeps a page, whole or not at all.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn put(&self, entry: &Entry, record: &[u8]) -> Result<(), StoreError> {
        let path = self.path(&entry.source);
        let mut bytes =
            serde_json::to_vec(entry).map_err(|e| StoreError::io("write", &path)(e.into()))?;
        bytes.push(b'\n');
        bytes.extend_from_slice(record);
        store::write_atomic(&path, &bytes)
    }

    /// A page and its record, if it waits.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn get(&self, source: &str) -> Result<Option<(Entry, Vec<u8>)>, StoreError> {
        let path = self.path(source);
        if !path.exists() {
            return Ok(None);
        }
        let mut bytes = store::read(&path)?;
        let end = bytes.iter().position(|b| *b == b'\n').unwrap_or(bytes.len());
        let entry = serde_json::from_slice(&bytes[..end]).map_err(|e| {
            let reason = format!("its first line is no entry ({e}); delete it to fetch it again");
            StoreError::Damaged { path, reason }
        })?;
        bytes.drain(..(end + 1).min(bytes.len()));
        Ok(Some((entry, bytes)))
    }

    /// Forgets a page.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn remove(&self, source: &str) -> Result<(), StoreError> {
        let path = self.path(source);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(StoreError::io("remove", &path)(e))
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        // If nothing is left in it.
        let _ = std::fs::remove_dir(&self.0);
    }
}
