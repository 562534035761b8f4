//! Files of all kinds to clean, distinct documents.
//!
//! [`read`] turns a file into pieces and [`parse`] pieces into documents; [`clean`] looks at one
//! document, [`prepare`] at all. It knows nothing of models.

pub mod clean;
pub mod document;
mod encoding;
pub mod files;
mod formats;
pub mod identify;
pub mod licence;
pub mod near;
pub mod output;
#[cfg(feature = "parquet")]
mod parquet;
pub mod parse;
pub mod parts;
pub mod prepare;
pub mod read;
mod repeated;
mod select;
pub mod settings;
mod split;
pub mod stream;
mod unpack;
mod warc;
pub mod words;

use std::path::PathBuf;

use store::StoreError;
use thiserror::Error;

pub use document::{Document, Limits, Skip};
pub use identify::Format;
pub use settings::Settings;

/// What a build says that can't.
#[cfg(not(feature = "parquet"))]
const NO_PARQUET: &str = "this build has no parquet; build it with `--features parquet`";

/// Why documents could not be prepared.
#[derive(Debug, Error)]
pub enum PrepareError {
    /// The system refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A setting makes no sense.
    #[error("{0}")]
    Setting(String),
    /// Nothing was left.
    #[error("no text in {paths}: {found}")]
    Empty {
        /// What was given.
        paths: String,
        /// What was found instead.
        found: String,
    },
    /// The files are being written.
    #[error("{} changed while it was read; run again when nobody writes to it", .0.display())]
    Changed(PathBuf),
    /// It was asked to stop.
    #[error("stopped; the same command goes on from here")]
    Stopped,
}
