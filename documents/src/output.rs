//! Files of documents that others read: JSONL, or parquet.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use store::{AtomicFile, StoreError};

use crate::Document;

/// How documents are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Output {
    /// A line each.
    #[default]
    Jsonl,
    /// A row each.
    Parquet,
}

impl Output {
    /// What names of files end in.
    pub fn extension(self) -> &'static str {
        match self {
            Output::Jsonl => "jsonl",
            Output::Parquet => "parquet",
        }
    }

    /// The file of a name, without its ending, in a folder.
    pub fn path(self, folder: &Path, name: &str) -> PathBuf {
        folder.join(name).with_extension(self.extension())
    }
}

/// A file of documents in the making.
pub(crate) struct Sink {
    path: PathBuf,
    kind: Kind,
}

enum Kind {
    Lines(AtomicFile),
    #[cfg(feature = "parquet")]
    Rows(Box<crate::parquet::Writer>),
}

impl Sink {
    /// Starts a file.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn create(folder: &Path, name: &str, output: Output) -> Result<Sink, StoreError> {
        let path = output.path(folder, name);
        let kind = match output {
            #[cfg(feature = "parquet")]
            Output::Parquet => Kind::Rows(Box::new(crate::parquet::Writer::create(&path)?)),
            // Settings were checked: without parquet, nobody asks for it.
            _ => Kind::Lines(AtomicFile::create(&path)?),
        };
        Ok(Sink { path, kind })
    }

    /// The file's name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a document.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn push(&mut self, document: &Document) -> Result<(), StoreError> {
        let written = match &mut self.kind {
            Kind::Lines(file) => serde_json::to_writer(&mut *file, document)
                .map_err(std::io::Error::from)
                .and_then(|()| file.write_all(b"\n")),
            #[cfg(feature = "parquet")]
            Kind::Rows(file) => file.push(document.clone()),
        };
        written.map_err(|e| StoreError::io("write", &self.path)(e))
    }

    /// Ends the file and gives it its name. What an earlier run wrote in another form is removed.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn commit(self) -> Result<(), StoreError> {
        match self.kind {
            Kind::Lines(file) => file.commit()?,
            #[cfg(feature = "parquet")]
            Kind::Rows(file) => file.commit(&self.path)?,
        }
        for other in [Output::Jsonl, Output::Parquet] {
            let path = self.path.with_extension(other.extension());
            if path != self.path && path.is_file() {
                std::fs::remove_file(&path).map_err(StoreError::io("remove", &path))?;
            }
        }
        Ok(())
    }
}

/// Gives the documents of a file that was written so to `see`, until it wants no more.
///
/// # Errors
/// [`StoreError`]: a file that can't be read, or holds something else.
pub fn each(
    folder: &Path,
    name: &str,
    output: Output,
    see: &mut dyn FnMut(Document) -> bool,
) -> Result<(), StoreError> {
    let path = output.path(folder, name);
    let damaged = |reason: String| StoreError::Damaged { path: path.clone(), reason };
    let mut file = File::open(&path).map_err(StoreError::io("read", &path))?;
    if output == Output::Parquet {
        return rows(file, see).map_err(damaged);
    }
    let mut lines = BufReader::with_capacity(1 << 20, &mut file);
    let (mut line, mut number) = (Vec::new(), 0);
    loop {
        line.clear();
        number += 1;
        if lines.read_until(b'\n', &mut line).map_err(StoreError::io("read", &path))? == 0 {
            return Ok(());
        }
        let document = serde_json::from_slice(&line);
        if !see(document.map_err(|e| damaged(format!("line {number} is no document: {e}")))?) {
            return Ok(());
        }
    }
}

#[cfg(feature = "parquet")]
fn rows(file: File, see: &mut dyn FnMut(Document) -> bool) -> Result<(), String> {
    use crate::parquet::{Source, Told, rows};
    let most = crate::Limits::default().line_bytes;
    let mut wrong = None;
    rows(Source::File(file), most, None, &mut |told| {
        let Told::Row(record) = told else { return true };
        match serde_json::from_value(serde_json::Value::Object(record)) {
            Ok(document) => see(document),
            Err(e) => {
                wrong = Some(format!("a row is no document: {e}"));
                false
            }
        }
    })?;
    wrong.map_or(Ok(()), Err)
}

#[cfg(not(feature = "parquet"))]
fn rows(_: File, _: &mut dyn FnMut(Document) -> bool) -> Result<(), String> {
    Err(crate::NO_PARQUET.into())
}
