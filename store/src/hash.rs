//! BLAKE3 content hashes.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::StoreError;

/// A BLAKE3 hash; written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hash(pub [u8; 32]);

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for Hash {
    type Err = String;

    fn from_str(text: &str) -> Result<Hash, String> {
        blake3::Hash::from_hex(text)
            .map(|h| Hash(*h.as_bytes()))
            .map_err(|e| format!("{text:?} is not a BLAKE3 hash: {e}"))
    }
}

impl Serialize for Hash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// A hash in the making.
#[derive(Default)]
pub struct Hasher(blake3::Hasher);

impl Hasher {
    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Adds all that a reader gives.
    ///
    /// # Errors
    /// The reader's.
    pub fn update_reader(&mut self, reader: impl io::Read) -> io::Result<()> {
        self.0.update_reader(reader).map(drop)
    }

    /// The hash of all that was added.
    pub fn finish(&self) -> Hash {
        Hash(*self.0.finalize().as_bytes())
    }
}

/// Hash of some bytes.
pub fn hash_bytes(bytes: &[u8]) -> Hash {
    Hash(*blake3::hash(bytes).as_bytes())
}

/// Hash of a file's contents, read in pieces.
///
/// # Errors
/// [`StoreError::Io`].
pub fn hash_file(path: &Path) -> Result<Hash, StoreError> {
    let hash = || {
        let mut hasher = Hasher::default();
        hasher.update_reader(std::fs::File::open(path)?)?;
        Ok(hasher.finish())
    };
    hash().map_err(StoreError::io("read", path))
}

/// Hash of a folder: of the lines `HASH  RELATIVE/PATH` of all files below it, by path, so
/// that `b3sum` can be asked for the same. Half-written files (`.*.tmp`) and `lineage.json`, which
/// tells where a folder is from, don't count; symbolic links are not followed.
///
/// # Errors
/// [`StoreError::Io`].
pub fn hash_dir(path: &Path) -> Result<Hash, StoreError> {
    let mut files = Vec::new();
    collect(path, &mut PathBuf::new(), &mut files)?;
    files.sort();
    let mut hasher = Hasher::default();
    for name in files {
        let hash = hash_file(&path.join(&name))?;
        hasher.update(format!("{hash}  {}\n", name.display()).as_bytes());
    }
    Ok(hasher.finish())
}

/// Hash of a file, or of a folder.
///
/// # Errors
/// [`StoreError::Io`].
pub fn hash_path(path: &Path) -> Result<Hash, StoreError> {
    if path.is_dir() { hash_dir(path) } else { hash_file(path) }
}

fn collect(root: &Path, below: &mut PathBuf, files: &mut Vec<PathBuf>) -> Result<(), StoreError> {
    let folder = root.join(&below);
    let list = || StoreError::io("list the folder", &folder);
    for entry in std::fs::read_dir(&folder).map_err(list())? {
        let entry = entry.map_err(list())?;
        let (name, kind) = (entry.file_name(), entry.file_type().map_err(list())?);
        let shown = name.to_string_lossy();
        below.push(&name);
        if kind.is_dir() {
            collect(root, below, files)?;
        } else if kind.is_file()
            && !(shown.starts_with('.') && shown.ends_with(".tmp"))
            && shown != crate::lineage::FILE
        {
            files.push(below.clone());
        }
        below.pop();
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn known_answers() {
        // From the BLAKE3 specification: the hash of nothing; and of "abc" by `b3sum`.
        let nothing = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
        assert_eq!(hash_bytes(b"").to_string(), nothing);
        let abc = "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85";
        assert_eq!(hash_bytes(b"abc").to_string(), abc);
        assert_eq!(abc.parse::<Hash>().unwrap(), hash_bytes(b"abc"));
        assert!("abc".parse::<Hash>().is_err());
        let json = serde_json::to_string(&hash_bytes(b"abc")).unwrap();
        assert_eq!(serde_json::from_str::<Hash>(&json).unwrap(), hash_bytes(b"abc"));
    }

    #[test]
    fn a_folder_is_its_names_and_contents() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            crate::write_atomic(&dir.path().join(name), text.as_bytes()).unwrap();
        };
        write("b", "abc");
        write("a/c", "");
        let listing = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262  a/c\n\
                       6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85  b\n";
        let first = hash_dir(dir.path()).unwrap();
        assert_eq!(first, hash_bytes(listing.as_bytes()));
        write(".b.123.tmp", "half");
        assert_eq!(hash_dir(dir.path()).unwrap(), first);
        write("b", "abd");
        assert_ne!(hash_dir(dir.path()).unwrap(), first);
        assert!(hash_dir(&dir.path().join("none")).unwrap_err().to_string().contains("none"));
    }
}
