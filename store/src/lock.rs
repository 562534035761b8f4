//! One writer at a time: a file that the system locks for a program, as long as that runs.
//!
//! The system lets go of a lock when its program ends, however that ends, so nothing is left to
//! clean up after a crash; a lock file that lies about without being locked means nothing. What
//! stands in it only tells others who holds it.

use std::fs::{File, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::StoreError;

/// A lock that is held. Dropped, it is free.
pub struct Lock(File);

impl Drop for Lock {
    /// Closing alone would not do: a process that this one is just starting shares its open files
    /// until it becomes the other program, and would hold the lock for that long.
    fn drop(&mut self) {
        let _ = self.0.unlock();
    }
}

/// Who holds a lock.
#[derive(Serialize, Deserialize)]
struct Holder {
    pid: u32,
    host: String,
    command: String,
    /// Seconds since 1970.
    since: u64,
}

impl Lock {
    /// Takes the lock of a file, which is created if it isn't there.
    ///
    /// # Errors
    /// [`StoreError::Locked`] if another program has it, [`StoreError::Io`].
    pub fn take(path: &Path) -> Result<Lock, StoreError> {
        let open =
            || File::options().create(true).read(true).write(true).truncate(false).open(path);
        let mut file = open().map_err(StoreError::io("write", path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                let _ = file.read_to_string(&mut text);
                return Err(StoreError::Locked { path: path.into(), holder: describe(&text) });
            }
            // Some network file systems have no locks: then there is one writer if people see to it.
            Err(TryLockError::Error(e)) if e.kind() == std::io::ErrorKind::Unsupported => {}
            Err(TryLockError::Error(e)) => return Err(StoreError::io("lock", path)(e)),
        }
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let holder = Holder {
            pid: std::process::id(),
            host: host.trim().to_string(),
            command: std::env::args().collect::<Vec<_>>().join(" "),
            since,
        };
        let mut write = || -> std::io::Result<()> {
            file.set_len(0)?;
            file.rewind()?;
            file.write_all(serde_json::to_string(&holder)?.as_bytes())
        };
        write().map_err(StoreError::io("write", path))?;
        Ok(Lock(file))
    }
}

/// Who holds a lock, in words.
fn describe(text: &str) -> String {
    let Ok(holder) = serde_json::from_str::<Holder>(text) else {
        return "another program writes there".into();
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    // A clock may have been set back.
    let time = match now.saturating_sub(holder.since) / 60 {
        0 => String::new(),
        minutes => format!(" for {minutes} min"),
    };
    let Holder { pid, host, command, .. } = holder;
    format!("process {pid} on {host} has written there{time} ({command})")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_second_writer_is_told_who_the_first_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = Lock::take(&path).unwrap();
        let error = Lock::take(&path).map(drop).unwrap_err().to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        drop(first);
        // A file that a starting process still shares doesn't keep the lock.
        let second = Lock::take(&path).unwrap();
        let shared = second.0.try_clone().unwrap();
        drop(second);
        drop(Lock::take(&path).unwrap());
        drop(shared);
        // What is left of a program that is gone doesn't matter, nor what stands in the file.
        std::fs::write(&path, "junk").unwrap();
        drop(Lock::take(&path).unwrap());
    }
}
