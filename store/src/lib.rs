//! Files that survive: atomic writes, content hashes, records of what was made from what, memory
//! maps. Every error names the path and what was being done with it.

pub mod atomic;
#[cfg(feature = "sqlite")]
pub mod conversations;
pub mod crash;
pub mod hash;
pub mod lineage;
pub mod lock;
pub mod map;
pub mod record;
pub mod sealed;
#[cfg(feature = "sqlite")]
mod sqlite;

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

pub use atomic::{AtomicFile, write_atomic, write_json};
pub use hash::{Hash, hash_bytes, hash_dir, hash_file, hash_path};
pub use lineage::Lineage;
pub use lock::Lock;
pub use map::Map;
pub use record::{Record, Stale};
pub use sealed::{read_sealed, write_sealed};

/// A file that could not be used.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried: "read", "write", "rename" …
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another program writes there.
    #[error("{} is in use: {holder}", path.display())]
    Locked {
        /// The lock's file.
        path: PathBuf,
        /// Who holds it, as far as it is known.
        holder: String,
    },
    /// The file does not hold what its name says.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
}

impl StoreError {
    /// Attaches an action and a path to an error of the system.
    pub fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| StoreError::Io { action, path, source }
    }
}

/// Reads a whole file.
///
/// # Errors
/// [`StoreError::Io`].
pub fn read(path: &Path) -> Result<Vec<u8>, StoreError> {
    std::fs::read(path).map_err(StoreError::io("read", path))
}

/// Reads a UTF-8 file.
///
/// # Errors
/// [`StoreError::Io`]; bytes that are not UTF-8 are [`StoreError::Damaged`] with their offset.
pub fn read_text(path: &Path) -> Result<String, StoreError> {
    String::from_utf8(read(path)?).map_err(|e| StoreError::Damaged {
        path: path.to_path_buf(),
        reason: format!("it is not UTF-8 from byte {} on", e.utf8_error().valid_up_to()),
    })
}

/// Reads a JSON file.
///
/// # Errors
/// [`StoreError::Io`]; what is not the wanted JSON is [`StoreError::Damaged`].
pub fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, StoreError> {
    serde_json::from_slice(&read(path)?)
        .map_err(|e| StoreError::Damaged { path: path.to_path_buf(), reason: e.to_string() })
}

/// Bytes that the disk of a folder has left for us; `None` where the system doesn't tell.
pub fn free_bytes(folder: &Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(folder).ok()?;
    Some(disk.f_bavail * disk.f_frsize)
}

/// Bytes of memory that programs can still have; `None` where the system doesn't tell.
pub fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// Creates a folder and those above it.
///
/// # Errors
/// [`StoreError::Io`].
pub fn create_dir(path: &Path) -> Result<(), StoreError> {
    std::fs::create_dir_all(path).map_err(StoreError::io("create the folder", path))
}
