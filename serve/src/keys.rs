//! API keys: a file has a line `HASH NAME` for each, the BLAKE3 of a random key that is shown once. After the name,
//! `requests-per-minute=N` and `tokens-per-minute=N` are limits of this key in place of everybody's.

use std::path::Path;

use store::StoreError;
use thiserror::Error;

use crate::rates::{Caller, PerMinute};

/// What keys begin with.
const PREFIX: &str = "hg-";

/// Why there are no keys.
#[derive(Debug, Error)]
pub enum KeyError {
    /// The file can't be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A line that is none.
    #[error(
        "{path}, line {line}: not a hash, a name and limits (requests-per-minute=N, tokens-per-minute=N)"
    )]
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

/// What nobody can guess: 24 bytes of the system's, as hexadecimal digits.
pub fn random() -> std::io::Result<String> {
    use std::io::Read as _;
    let mut bytes = [0; 24];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

/// Who may ask.
#[derive(Debug, Default)]
pub struct Keys(Vec<(blake3::Hash, Caller)>);

impl Keys {
    /// Reads a file of keys; `rates` are the limits of those that have none of their own.
    ///
    /// # Errors
    /// A file that can't be read, or has a line that is none.
    pub fn read(path: &Path, rates: PerMinute) -> Result<Keys, KeyError> {
        let text = store::read_text(path)?;
        let key = |(i, line): (usize, &str)| {
            let wrong = || KeyError::Line { path: path.display().to_string(), line: i + 1 };
            let (hash, name) = line.split_once(' ').ok_or_else(wrong)?;
            let hash = blake3::Hash::from_hex(hash).map_err(|_| wrong())?;
            let (mut name, mut rates) = (name.trim(), rates);
            loop {
                let (before, last) = name.rsplit_once(' ').unwrap_or(("", name));
                let Some((what, number)) = last.split_once("-per-minute=") else { break };
                let number = Some(number.parse().ok().filter(|n| *n > 0).ok_or_else(wrong)?);
                match what {
                    "requests" => rates.requests = number,
                    "tokens" => rates.tokens = number,
                    _ => return Err(wrong()),
                }
                name = before.trim();
            }
            Ok((hash, Caller::new(i as u64 + 1, Some(name), rates)))
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
        let key = format!("{PREFIX}{}", random().map_err(KeyError::Random)?);
        let before = if path.exists() { store::read_text(path)? } else { String::new() };
        let name = name.replace(char::is_control, " ");
        let text = format!("{before}{} {name}\n", blake3::hash(key.as_bytes()).to_hex());
        store::write_atomic(path, text.as_bytes())?;
        Ok(key)
    }

    /// Whose key it is. All hashes are compared, each in constant time.
    pub fn whose(&self, key: &str) -> Option<&Caller> {
        let hash = blake3::hash(key.as_bytes());
        let mut found = None;
        for (known, caller) in &self.0 {
            if *known == hash {
                found = Some(caller);
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
        let none = PerMinute::default();
        let keys = Keys::read(&path, none).unwrap();
        let whose = |key: &str| keys.whose(key)?.name.as_deref();
        assert_eq!((whose(&one), whose(&two)), (Some("Ann"), Some("Bob Eve")));
        assert_eq!(whose("hg-"), None);
        let line = text.lines().next().unwrap();
        for wrong in [
            "secret",
            &format!("{line} requests-per-minute=many"),
            &format!("{line} tokens-per-minute=0"),
            &format!("{line} words-per-minute=1"),
        ] {
            std::fs::write(&path, wrong).unwrap();
            assert!(Keys::read(&path, none).unwrap_err().to_string().contains("line 1"), "{wrong}");
        }
    }

    #[test]
    fn a_key_may_have_limits_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        let key = Keys::add(&path, "Ann Lee").unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let limits = "tokens-per-minute=900 requests-per-minute=2";
        std::fs::write(&path, format!("{} {limits}\n", text.trim_end())).unwrap();
        let rates = PerMinute { requests: Some(100), tokens: None };
        let keys = Keys::read(&path, rates).unwrap();
        let ann = keys.whose(&key).unwrap();
        assert_eq!(ann.name.as_deref(), Some("Ann Lee"));
        let now = std::time::Instant::now();
        assert!(ann.ask(now).is_ok() && ann.ask(now).is_ok());
        assert_eq!(ann.ask(now).unwrap_err().most, 2);
    }
}
