//! The name of a model, and which of its files are wanted.

use std::path::{Path, PathBuf};

use crate::{HubError, Listed};

/// What belongs to a model beside its weights, if it is there.
const BESIDE: [&str; 6] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
];

/// `hf:organisation/name`, or one file of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// `organisation/name`.
    pub repository: String,
    /// The file, if one is named.
    pub file: Option<String>,
}

/// Whether a part of a path is an ordinary one.
fn plain(part: &str) -> bool {
    let usual = |c: char| c.is_ascii_alphanumeric() || "._-+".contains(c);
    !part.is_empty() && part.len() <= 200 && !part.starts_with('.') && part.chars().all(usual)
}

impl Name {
    /// Reads a name. `None`: it doesn't begin with `hf:`, so it is a path.
    ///
    /// # Errors
    /// [`HubError::Name`].
    pub fn parse(text: &str) -> Result<Option<Name>, HubError> {
        let Some(rest) = text.strip_prefix("hf:") else { return Ok(None) };
        let (repository, file) = match rest.split_once(':') {
            Some((repository, file)) => (repository, Some(file)),
            None => (rest, None),
        };
        let two = repository.split_once('/').is_some_and(|(a, b)| plain(a) && plain(b));
        if !two || !file.is_none_or(|file| file.split('/').all(plain)) {
            return Err(HubError::Name(text.into()));
        }
        Ok(Some(Name { repository: repository.into(), file: file.map(String::from) }))
    }

    /// The files to fetch.
    pub(crate) fn choose<'a>(&self, all: &'a [Listed]) -> Result<Vec<&'a Listed>, HubError> {
        let ends = |f: &Listed, end: &str| f.name.to_ascii_lowercase().ends_with(end);
        let none = |files: String| HubError::NoWeights { name: self.repository.clone(), files };
        let ggufs: Vec<&Listed> = all.iter().filter(|f| ends(f, ".gguf")).collect();
        let list = || {
            let names: Vec<&str> = ggufs.iter().map(|f| &f.name[..]).collect();
            format!("; say hf:{}:FILE, one of: {}", self.repository, names.join(", "))
        };
        if let Some(file) = &self.file {
            return match ggufs.iter().find(|f| f.name == *file) {
                Some(first) => Ok(parts(first, &ggufs)),
                None if ggufs.is_empty() => Err(none(", no .gguf file".into())),
                None => Err(none(list())),
            };
        }
        let weights = |f: &&Listed| {
            let model = f.name.starts_with("model") && !f.name.contains('/');
            model && ends(f, ".safetensors") && plain(&f.name)
        };
        let found: Vec<&Listed> = all.iter().filter(weights).collect();
        if !found.is_empty() {
            let beside = all.iter().filter(|f| BESIDE.contains(&&f.name[..]));
            return Ok(beside.chain(found).collect());
        }
        match &ggufs[..] {
            [] => Err(none(": neither model*.safetensors nor .gguf".into())),
            [one] if one.name.split('/').all(plain) => Ok(vec![one]),
            _ => Err(none(list())),
        }
    }

    /// What of a folder is the model: the folder, or its GGUF file.
    pub(crate) fn chosen(&self, all: &[Listed], folder: &Path) -> PathBuf {
        let weights = |f: &Listed| f.name.ends_with(".safetensors");
        match (&self.file, all.iter().find(|f| f.name.to_ascii_lowercase().ends_with(".gguf"))) {
            (Some(file), _) => folder.join(file),
            (None, Some(gguf)) if !all.iter().any(weights) => folder.join(&gguf.name),
            _ => folder.to_path_buf(),
        }
    }

    /// The same of a folder that was fetched before.
    pub(crate) fn within(&self, folder: &Path) -> PathBuf {
        match &self.file {
            Some(file) => folder.join(file),
            None if folder.join("config.json").is_file() => folder.to_path_buf(),
            None => {
                let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
                let mut files = files.map(|entry| entry.path());
                let gguf = files.find(|path| path.extension().is_some_and(|e| e == "gguf"));
                gguf.unwrap_or_else(|| folder.to_path_buf())
            }
        }
    }
}

/// All parts of a GGUF file of which one is `first`.
fn parts<'a>(first: &'a Listed, all: &[&'a Listed]) -> Vec<&'a Listed> {
    match first.name.split_once("-00001-of-") {
        None => vec![first],
        Some((stem, ending)) => {
            let belongs = |f: &&&Listed| {
                let rest = f.name.strip_prefix(stem).unwrap_or_default();
                rest.starts_with('-') && rest.ends_with(&format!("-of-{ending}"))
            };
            all.iter().filter(belongs).copied().collect()
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn listed(names: &[&str]) -> Vec<Listed> {
        let one =
            |name: &&str| Listed { name: name.to_string(), size: None, blob: None, lfs: None };
        names.iter().map(one).collect()
    }

    #[test]
    fn names() {
        let parse = |text: &str| Name::parse(text);
        assert_eq!(parse("models/a.gguf").unwrap(), None);
        let name = parse("hf:org/name:sub/x.gguf").unwrap().unwrap();
        assert_eq!((&name.repository[..], name.file.as_deref()), ("org/name", Some("sub/x.gguf")));
        for bad in
            ["hf:", "hf:a", "hf:a/b/c", "hf:../x", "hf:a/b:../c", "hf:a/b:", "hf:a/b c", "hf:a/.b"]
        {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn files() {
        let name = |text: &str| Name::parse(text).unwrap().unwrap();
        let chosen = |text: &str, all: &[Listed]| {
            let chosen = name(text).choose(all).map_err(|e| e.to_string());
            chosen.map(|files| files.into_iter().map(|f| f.name.clone()).collect::<Vec<_>>())
        };
        let all = listed(&[
            "config.json",
            "model.safetensors",
            "onnx/model.safetensors",
            "pytorch_model.bin",
            "a.png",
        ]);
        assert_eq!(chosen("hf:o/n", &all).unwrap(), ["config.json", "model.safetensors"]);
        let all = listed(&["a-Q4.gguf", "a-Q8-00001-of-00002.gguf", "a-Q8-00002-of-00002.gguf"]);
        assert!(chosen("hf:o/n", &all).unwrap_err().contains("a-Q4.gguf"));
        assert_eq!(chosen("hf:o/n:a-Q4.gguf", &all).unwrap(), ["a-Q4.gguf"]);
        assert_eq!(chosen("hf:o/n:a-Q8-00001-of-00002.gguf", &all).unwrap().len(), 2);
        assert!(chosen("hf:o/n:b.gguf", &all).unwrap_err().contains("one of"));
        assert!(chosen("hf:o/n", &listed(&["x.bin"])).unwrap_err().contains("no weights"));
    }
}
