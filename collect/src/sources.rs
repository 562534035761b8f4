//! What is to be collected.

use std::path::{Path, PathBuf};

use crate::CollectError;

/// What is to be collected, in its order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// URLs, as they were given.
    pub urls: Vec<String>,
    /// Local files and folders.
    pub paths: Vec<PathBuf>,
}

impl Sources {
    /// Reads arguments (URLs, paths) and lists of URLs: one a line, after `#` a comment.
    ///
    /// # Errors
    /// What is neither a URL nor there; lists that can't be read; nothing at all.
    pub fn read(arguments: &[String], lists: &[PathBuf]) -> Result<Sources, CollectError> {
        let mut sources = Sources::default();
        for argument in arguments {
            match argument.split_once("://") {
                Some(("http" | "https", _)) => sources.urls.push(argument.clone()),
                Some((scheme, _)) if !Path::new(argument).exists() => {
                    let words =
                        format!("{argument}: {scheme} can't be fetched, only http and https");
                    return Err(CollectError::Setting(words));
                }
                _ => {
                    let path = PathBuf::from(argument);
                    if !path.exists() {
                        let words = format!(
                            "{argument}: no such file or folder; URLs begin with http:// or https://"
                        );
                        return Err(CollectError::Setting(words));
                    }
                    sources.paths.push(path);
                }
            }
        }
        for list in lists {
            for line in store::read_text(list)?.lines() {
                // A `#` within a URL begins its fragment.
                let line = line.trim();
                let url = line.split_whitespace().next().filter(|url| !url.starts_with('#'));
                sources.urls.extend(url.map(String::from));
            }
        }
        if sources == Sources::default() {
            return Err(CollectError::Setting(
                "no source: name a URL, a path, or --urls FILE".into(),
            ));
        }
        Ok(sources)
    }
}
