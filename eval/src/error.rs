//! What can go wrong while measuring a model or writing about it.

use std::path::PathBuf;

/// An error of this crate: what was wrong, where, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file could not be written or read by `store`.
    #[error(transparent)]
    Store(#[from] store::StoreError),
    /// A compressor refused to work.
    #[error("{compressor} failed: {reason}")]
    Compressor {
        /// `xz` or `zstd`.
        compressor: &'static str,
        /// What the library said.
        reason: String,
    },
    /// A text or a setting makes no score possible.
    #[error("nothing to score: {0}")]
    Nothing(String),
    /// A setting lies outside what is possible.
    #[error("{0}")]
    Setting(String),
    /// The model computed something that is no number.
    #[error("the model's loss is not finite at token {0} of the text: its weights are broken")]
    NotFinite(usize),
    /// A model gave no answer.
    #[error(transparent)]
    Generate(#[from] model::generator::GenerateError),
    /// A conversation could not be rendered.
    #[error(transparent)]
    Template(#[from] model::template::TemplateError),
    /// A template of the report is broken (a defect of this program).
    #[error("the report could not be rendered: {0}")]
    Render(String),
}

impl Error {
    /// Attaches the path to an input or output error.
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { path, source }
    }
}
