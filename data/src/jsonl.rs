//! JSONL: one JSON value a line. Conversations, documents and questions are files of this kind.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use model::message::Message;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use store::{AtomicFile, StoreError};
use thiserror::Error;

/// Longest line that is read.
pub(crate) const LINE_BYTES: u64 = 64 << 20;

/// Why a JSONL file can't be read.
#[derive(Debug, Error)]
pub enum JsonlError {
    /// The system refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A line is not what it should be.
    #[error("{}, line {line}: {reason}", path.display())]
    Line {
        /// Which file.
        path: PathBuf,
        /// Counted from 1.
        line: u64,
        /// What is wrong.
        reason: String,
    },
}

/// A conversation, as one line of a file. Other keys are passed over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Conversation {
    /// Its messages.
    pub messages: Vec<Message>,
    /// Definitions of the tools that it was had with, in OpenAI's layout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tools: Option<serde_json::Value>,
}

/// Reads a file line by line; empty lines don't count.
///
/// # Errors
/// [`JsonlError::Store`] if it can't be opened; the iterator gives the others.
pub fn read<T: DeserializeOwned>(
    path: &Path,
) -> Result<impl Iterator<Item = Result<T, JsonlError>> + use<T>, JsonlError> {
    let mut file = BufReader::new(File::open(path).map_err(StoreError::io("read", path))?);
    let path = path.to_path_buf();
    let (mut line, mut bytes) = (0, Vec::new());
    Ok(std::iter::from_fn(move || {
        loop {
            bytes.clear();
            line += 1;
            let wrong = |reason: String| JsonlError::Line { path: path.clone(), line, reason };
            match file.by_ref().take(LINE_BYTES).read_until(b'\n', &mut bytes) {
                Err(e) => return Some(Err(StoreError::io("read", &path)(e).into())),
                Ok(0) => return None,
                Ok(n) if n as u64 == LINE_BYTES => {
                    return Some(Err(wrong(format!("it is longer than {LINE_BYTES} bytes"))));
                }
                Ok(_) if bytes.iter().all(u8::is_ascii_whitespace) => {}
                Ok(_) => {
                    let value = serde_json::from_slice(&bytes);
                    return Some(value.map_err(|e| wrong(without_line(&e))));
                }
            }
        }
    }))
}

/// An error of JSON without "at line 1", which would be the line's own count.
pub(crate) fn without_line(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    match text.strip_suffix(&place) {
        Some(reason) => format!("{reason} (column {})", error.column()),
        None => text,
    }
}

/// Writes a JSONL file as a stream, atomically.
pub struct Writer(AtomicFile);

impl Writer {
    /// Starts a file.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn create(path: &Path) -> Result<Writer, StoreError> {
        AtomicFile::create(path).map(Writer)
    }

    /// Adds a line.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn push<T: Serialize>(&mut self, value: &T) -> Result<(), StoreError> {
        let mut line = || -> std::io::Result<()> {
            serde_json::to_writer(&mut self.0, value)?;
            self.0.write_all(b"\n")
        };
        line().map_err(|e| StoreError::io("write", self.0.path())(e))
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn finish(self) -> Result<(), StoreError> {
        self.0.commit()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_back_and_errors_name_theirs() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chats.jsonl");
        let chat = |text: &str| Conversation { messages: vec![Message::user(text)], tools: None };
        let mut writer = Writer::create(&path).unwrap();
        writer.push(&chat("a\nb")).unwrap();
        writer.push(&chat("c")).unwrap();
        writer.finish().unwrap();
        let all = || read::<Conversation>(&path).unwrap().collect::<Result<Vec<_>, _>>();
        assert_eq!(all().unwrap(), [chat("a\nb"), chat("c")]);

        let mut text = std::fs::read_to_string(&path).unwrap();
        text += "\n  \n{\"messages\": [{\"role\": \"robot\"}]}\n";
        std::fs::write(&path, text).unwrap();
        let error = all().unwrap_err().to_string();
        assert!(error.contains("chats.jsonl, line 5: unknown variant `robot`"), "{error}");
        assert!(read::<Conversation>(&dir.path().join("none")).is_err());
    }
}
