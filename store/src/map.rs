//! Memory maps of files that are only read.

#![allow(unsafe_code)]

use std::fs::File;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};

use crate::StoreError;

/// A file's bytes, mapped into memory.
pub struct Map {
    path: PathBuf,
    bytes: memmap2::Mmap,
}

impl Map {
    /// Maps a whole file.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn open(path: &Path) -> Result<Map, StoreError> {
        let file = File::open(path).map_err(StoreError::io("read", path))?;
        // SAFETY: the map is read-only and private to this process. Files that are mapped are
        // written once, under another name, and never changed in place (see `atomic`); who cuts
        // one while it is mapped ends the process with SIGBUS, but can't make it read elsewhere.
        let bytes = unsafe { memmap2::Mmap::map(&file) }.map_err(StoreError::io("map", path))?;
        Ok(Map { path: path.to_path_buf(), bytes })
    }

    /// Lets go of the memory that bytes of the file take here; who reads them again gets them from the
    /// file.
    pub fn forget(&self, bytes: Range<usize>) {
        #[cfg(unix)]
        if bytes.start < bytes.end && bytes.end <= self.bytes.len() {
            // SAFETY: the map is shared with the file and read-only, so its pages come back as they are.
            let _ = unsafe {
                let (start, len) = (bytes.start, bytes.len());
                self.bytes.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, len)
            };
        }
        #[cfg(not(unix))]
        let _ = bytes;
    }

    /// Where the file lies.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl AsRef<[u8]> for Map {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl std::fmt::Debug for Map {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Map({}, {} bytes)", self.path.display(), self.bytes.len())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "bytes").unwrap();
        assert_eq!(&*Map::open(&path).unwrap(), b"bytes");
        std::fs::write(&path, "").unwrap();
        assert_eq!(&*Map::open(&path).unwrap(), b"");
        let error = Map::open(&dir.path().join("none")).unwrap_err().to_string();
        assert!(error.contains("none") && error.contains("read"), "{error}");
    }
}
