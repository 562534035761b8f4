//! JSON files that end with the hash of what stands before, so that a flipped bit in them is
//! noticed: `{…, "blake3": "HEX"}`.

use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::hash::hash_bytes;
use crate::{StoreError, read, write_atomic};

/// The key of the hash.
const SEAL: &str = "blake3";

/// Writes an object as indented JSON with its seal, atomically.
///
/// # Errors
/// [`StoreError::Io`].
pub fn write_sealed<T: Serialize>(path: &Path, value: &T) -> Result<(), StoreError> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| StoreError::io("write", path)(std::io::Error::other(e)))?;
    let body = text.trim_end_matches('}').trim_end();
    let comma = if body.ends_with('{') { "" } else { "," };
    let body = format!("{body}{comma}\n  \"{SEAL}\": \"");
    write_atomic(path, format!("{body}{}\"\n}}\n", hash_bytes(body.as_bytes())).as_bytes())
}

/// Reads what [`write_sealed`] wrote.
///
/// # Errors
/// [`StoreError::Io`]; a file whose seal is missing or broken, or that is not the wanted JSON, is
/// [`StoreError::Damaged`].
pub fn read_sealed<T: DeserializeOwned>(path: &Path) -> Result<T, StoreError> {
    unseal(&read(path)?).map_err(|reason| StoreError::Damaged { path: path.to_path_buf(), reason })
}

/// The value in the bytes of a sealed file.
///
/// # Errors
/// What is wrong with it, in words.
pub fn unseal<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let mut value: Value = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    let seal = value.as_object_mut().and_then(|o| o.remove(SEAL));
    let Some(Value::String(seal)) = seal else {
        return Err(format!("it has no {SEAL}, the hash of what it holds"));
    };
    // The last thing in the file: quote, brace, newline, and the hash before.
    let body = bytes.strip_suffix(b"\"\n}\n").and_then(|b| b.strip_suffix(seal.as_bytes()));
    if body.is_none_or(|body| hash_bytes(body).to_string() != seal) {
        return Err("its contents have changed since it was written".into());
    }
    serde_json::from_value(value).map_err(|e| e.to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn every_flipped_bit_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        let value = BTreeMap::from([("name", Value::from("é")), ("seconds", 0.1.into())]);
        write_sealed(&path, &value).unwrap();
        let back: BTreeMap<String, Value> = read_sealed(&path).unwrap();
        assert!(back.iter().map(|(k, v)| (k.as_str(), v)).eq(value.iter().map(|(k, v)| (*k, v))));
        let sound = read(&path).unwrap();
        for bit in 0..8 * sound.len() {
            let mut bytes = sound.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(unseal::<Value>(&bytes).is_err(), "bit {bit}");
        }
        for end in 0..sound.len() {
            assert!(unseal::<Value>(&sound[..end]).is_err(), "{end} bytes");
        }
        write_sealed(&path, &Value::Object(Default::default())).unwrap();
        assert_eq!(read_sealed::<Value>(&path).unwrap(), Value::Object(Default::default()));
        std::fs::write(&path, "{}\n").unwrap();
        assert!(read_sealed::<Value>(&path).unwrap_err().to_string().contains("no blake3"));
    }
}
