//! API keys: a file has a line `HASH NAME` for each, the BLAKE3 of a random key that is shown once.

use std::path::Path;

use store::StoreError;
use thiserror::Error;

/// What keys begin with.
const PREFIX: &str = "hg-";

/// Why there are no keys.
#[derive(Debug, Error)]
pub enum KeyError {
    /// The file can't be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A line that is none.
    #[error("{path}, line {line}: not a hash and a name")]
    Line {
        /// The file.
        path: String,
        /// Counted from 1.
        line: usize,
    },
    /// The system has no random numbers.
    #[error("no random numbers for a key: {0}")]
    Random(std::io::Error),
}

/// Who may ask.
#[derive(Debug, Default)]
pub struct Keys(Vec<(blake3::Hash, String)>);

impl Keys {
    /// Reads a file of keys.
    ///
    /// # Errors
    /// A file that can't be read, or has a line that is none.
    pub fn read(path: &Path) -> Result<Keys, KeyError> {
        let text = store::read_text(path)?;
        let key = |(i, line): (usize, &str)| {
            let wrong = || KeyError::Line { path: path.display().to_string(), line: i + 1 };
            let (hash, name) = line.split_once(' ').ok_or_else(wrong)?;
            let hash = blake3::Hash::from_hex(hash).map_err(|_| wrong())?;
            Ok((hash, name.trim().to_string()))
        };
        text.lines()
            .enumerate()
            .filter(|(_, l)| !l.trim().is_empty())
            .map(key)
            .collect::<Result<_, _>>()
            .map(Keys)
    }

    /// Makes a key for somebody, adds its hash to the file, and returns it: nobody can tell it again.
    ///
    /// # Errors
    /// A file that can't be read or written.
    pub fn add(path: &Path, name: &str) -> Result<String, KeyError> {
        use std::io::Read as _;
        let mut bytes = [0; 24];
        let random = std::fs::File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut bytes));
        random.map_err(KeyError::Random)?;
        let key: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        let key = format!("{PREFIX}{key}");
        let before = if path.exists() { store::read_text(path)? } else { String::new() };
        let name = name.replace(char::is_control, " ");
        let text = format!("{before}{} {name}\n", blake3::hash(key.as_bytes()).to_hex());
        store::write_atomic(path, text.as_bytes())?;
        Ok(key)
    }

    /// Whose key it is: its number, from 1, and the name. All hashes are compared, each in constant time.
    pub fn whose(&self, key: &str) -> Option<(u64, &str)> {
        let hash = blake3::hash(key.as_bytes());
        let mut found = None;
        for (number, (known, name)) in (1..).zip(&self.0) {
            if *known == hash {
                found = Some((number, name.as_str()));
            }
        }
        found
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_kept_as_hashes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        let (one, two) = (Keys::add(&path, "Ann").unwrap(), Keys::add(&path, "Bob\nEve").unwrap());
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(!text.contains(&one) && text.lines().count() == 2);
        let keys = Keys::read(&path).unwrap();
        assert_eq!((keys.whose(&one), keys.whose(&two)), (Some((1, "Ann")), Some((2, "Bob Eve"))));
        assert_eq!(keys.whose("hg-"), None);
        std::fs::write(&path, "secret").unwrap();
        assert!(Keys::read(&path).unwrap_err().to_string().contains("line 1"));
    }
}
