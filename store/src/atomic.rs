//! Writing a file so that whoever looks sees either the old one or the whole new one, also after
//! a kill or a power cut: write beside it, fsync, rename, fsync the folder.

use std::fs::{File, Permissions};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use tempfile::NamedTempFile;

use crate::{StoreError, crash};

/// A file in the making. It gets its name in [`commit`](AtomicFile::commit); dropped before that,
/// it is removed.
pub struct AtomicFile {
    path: PathBuf,
    file: BufWriter<NamedTempFile>,
}

impl AtomicFile {
    /// Starts a file that shall become `path`. Creates missing folders.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn create(path: &Path) -> Result<AtomicFile, StoreError> {
        let folder = folder_of(path);
        crate::create_dir(folder)?;
        let mut builder = tempfile::Builder::new();
        let prefix = path.file_name().map(|n| format!(".{}.", n.display())).unwrap_or_default();
        builder.prefix(&prefix).suffix(".tmp");
        // As any new file: what the umask leaves of rw-rw-rw-.
        #[cfg(unix)]
        builder.permissions(<Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o666));
        crash::point();
        let file = builder.tempfile_in(folder).map_err(StoreError::io("write", path))?;
        crash::point();
        Ok(AtomicFile { path: path.to_path_buf(), file: BufWriter::with_capacity(1 << 16, file) })
    }

    /// Makes the file durable and gives it its name.
    ///
    /// # Errors
    /// [`StoreError::Io`]; then the old file is still there, untouched.
    pub fn commit(self) -> Result<(), StoreError> {
        let AtomicFile { path, file } = self;
        let file = file.into_inner().map_err(|e| StoreError::io("write", &path)(e.into_error()))?;
        crash::point();
        file.as_file().sync_all().map_err(StoreError::io("write", &path))?;
        crash::point();
        file.persist(&path).map_err(|e| StoreError::io("rename a new file to", &path)(e.error))?;
        crash::point();
        sync_folder(folder_of(&path))
    }

    /// Overwrites bytes at the start of the file: a header that was not known before.
    ///
    /// # Errors
    /// What the system says.
    pub fn rewrite_start(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(bytes)?;
        self.file.seek(SeekFrom::End(0))?;
        Ok(())
    }

    /// All that was written so far, from a byte on.
    ///
    /// # Errors
    /// What the system says.
    pub fn reread(&mut self, from: u64) -> io::Result<impl io::Read> {
        self.file.flush()?;
        let mut file = self.file.get_ref().reopen()?;
        file.seek(SeekFrom::Start(from))?;
        Ok(file)
    }

    /// The name that the file will get.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        crash::point();
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Writes a whole file atomically. Creates missing folders.
///
/// # Errors
/// [`StoreError::Io`]; then the old file is still there, untouched.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes).map_err(StoreError::io("write", path))?;
    file.commit()
}

/// Writes a value as indented JSON, atomically.
///
/// # Errors
/// [`StoreError::Io`].
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), StoreError> {
    let mut bytes = serde_json::to_vec_pretty(value)
        .map_err(|e| StoreError::io("write", path)(io::Error::other(e)))?;
    bytes.push(b'\n');
    write_atomic(path, &bytes)
}

/// Whether this is a file in the making, as a program that was killed leaves behind.
pub fn half_written(entry: &std::fs::DirEntry) -> bool {
    let name = entry.file_name();
    let name = name.to_string_lossy();
    name.starts_with('.') && name.ends_with(".tmp") && entry.file_type().is_ok_and(|t| t.is_file())
}

/// Removes the files that a killed program left half-written in a folder and those below it. Only
/// for a folder that nobody else writes in.
///
/// # Errors
/// [`StoreError::Io`].
pub fn remove_half_written(folder: &Path) -> Result<(), StoreError> {
    let list = || StoreError::io("list the folder", folder);
    for entry in std::fs::read_dir(folder).map_err(list())? {
        let entry = entry.map_err(list())?;
        let path = entry.path();
        if half_written(&entry) {
            std::fs::remove_file(&path).map_err(StoreError::io("remove", &path))?;
        } else if entry.file_type().map_err(list())?.is_dir() {
            remove_half_written(&path)?;
        }
    }
    Ok(())
}

/// The folder that a file lies in.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes a rename in this folder durable.
fn sync_folder(folder: &Path) -> Result<(), StoreError> {
    let sync = || File::open(folder)?.sync_all();
    sync().map_err(StoreError::io("sync the folder", folder))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_old_file_stays_until_the_new_one_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/file");
        write_atomic(&path, b"old").unwrap();
        let mut file = AtomicFile::create(&path).unwrap();
        file.write_all(b"half").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        drop(file);
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        let mut file = AtomicFile::create(&path).unwrap();
        file.write_all(b"....and the rest").unwrap();
        file.rewrite_start(b"head").unwrap();
        file.write_all(b"!").unwrap();
        file.commit().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"headand the rest!");
        let left: Vec<_> = std::fs::read_dir(path.parent().unwrap()).unwrap().collect();
        assert_eq!(left.len(), 1, "temporary files are gone: {left:?}");
    }

    #[test]
    fn errors_name_action_and_path() {
        let dir = tempfile::tempdir().unwrap();
        let blocked = dir.path().join("file");
        std::fs::write(&blocked, "").unwrap();
        let error = write_atomic(&blocked.join("below"), b"").unwrap_err().to_string();
        assert!(error.contains("create the folder") && error.contains("file"), "{error}");
        let error = write_atomic(dir.path(), b"").unwrap_err().to_string();
        assert!(error.contains("rename"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn others_may_read_what_the_umask_lets_them() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let (plain, atomic) = (dir.path().join("plain"), dir.path().join("atomic"));
        std::fs::write(&plain, "").unwrap();
        write_atomic(&atomic, b"").unwrap();
        let mode = |p: &Path| std::fs::metadata(p).unwrap().permissions().mode();
        assert_eq!(mode(&plain), mode(&atomic));
    }
}
