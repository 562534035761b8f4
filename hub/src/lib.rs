//! Models by name: `hf:org/name[:file]` is fetched from a hub that speaks Hugging Face's protocol, once,
//! and checked against the hub's own hashes.
//!
//! A broken connection is taken up where it broke, also by a later run; a file gets its name only
//! when its size and hash are right. What was fetched is used without asking when the hub can't be
//! reached, and that is said.

mod check;
mod download;
mod name;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use thiserror::Error;
use ureq::Agent;

pub use name::Name;

/// Largest answer to a question about a model.
const LIST_BYTES: u64 = 16 << 20;
/// How long a server may be silent.
const SILENCE: Duration = Duration::from_secs(60);
/// How long one answer may take; then it is asked for the rest, which a stalled one never sends.
const PATIENCE: Duration = Duration::from_secs(120);

/// Why a model can't be had.
#[derive(Debug, Error)]
pub enum HubError {
    /// Not such a name.
    #[error(
        "{0:?} is not the name of a model: hf:ORGANISATION/NAME or hf:ORGANISATION/NAME:FILE.gguf"
    )]
    Name(String),
    /// The hub has no such thing, or doesn't give it to us.
    #[error("{url}: {why}")]
    Refused {
        /// What was asked for.
        url: String,
        /// What it said.
        why: String,
    },
    /// It can't be reached, or stops talking.
    #[error(
        "{url}: {why}, {tries} times; what came is kept, and the same command goes on from there"
    )]
    Broken {
        /// What was asked for.
        url: String,
        /// The last time.
        why: String,
        /// How often it was tried.
        tries: u32,
    },
    /// The hub's list is not as it should be.
    #[error("{url}: {why}")]
    List {
        /// What was asked for.
        url: String,
        /// What is wrong.
        why: String,
    },
    /// None of the model's files can be used, or there are several to choose from.
    #[error("{name} has no weights that can be read here{files}")]
    NoWeights {
        /// The model.
        name: String,
        /// What it has.
        files: String,
    },
    /// What came is not what the hub promised.
    #[error("{file} from {url} is damaged: {why}; it was thrown away")]
    Damaged {
        /// The file.
        file: String,
        /// Where it came from.
        url: String,
        /// How it differs.
        why: String,
    },
    /// A file here could not be read or written.
    #[error(transparent)]
    Store(#[from] store::StoreError),
    /// There is no place for it.
    #[error("no folder to keep models in: set HOMEGROWN_CACHE")]
    NoCache,
}

/// How far a file is.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// Its name.
    pub file: &'a str,
    /// Bytes that are here.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
}

/// A file as the hub lists it.
#[derive(Clone, Debug, Deserialize)]
struct Listed {
    #[serde(rename = "rfilename")]
    name: String,
    size: Option<u64>,
    /// Git's hash of a small file.
    #[serde(rename = "blobId")]
    blob: Option<String>,
    lfs: Option<Large>,
}

/// What is known of a large file.
#[derive(Clone, Debug, Deserialize)]
struct Large {
    sha256: String,
    size: u64,
}

/// A model as the hub lists it.
#[derive(Debug, Deserialize)]
struct Listing {
    /// The commit.
    sha: String,
    siblings: Vec<Listed>,
}

/// A hub, and the folder in which its models are kept.
pub struct Hub {
    endpoint: String,
    token: Option<String>,
    cache: PathBuf,
    agent: Agent,
    /// Pause before the second try of what broke; it doubles.
    pub pause: Duration,
}

impl Hub {
    /// A hub at `endpoint` (`https://huggingface.co`), models kept in `cache`.
    pub fn new(endpoint: &str, token: Option<String>, cache: &Path) -> Hub {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(SILENCE))
            .timeout_recv_response(Some(SILENCE))
            .timeout_recv_body(Some(PATIENCE))
            .user_agent(concat!("homegrown/", env!("CARGO_PKG_VERSION")))
            .build();
        Hub {
            endpoint: endpoint.trim_end_matches('/').to_string(),
            token,
            cache: cache.to_path_buf(),
            agent: Agent::new_with_config(config),
            pause: Duration::from_secs(1),
        }
    }

    /// As the environment says: `HF_ENDPOINT`, `HF_TOKEN`, `HOMEGROWN_CACHE` (or the user's cache
    /// folder).
    ///
    /// # Errors
    /// [`HubError::NoCache`].
    pub fn from_environment() -> Result<Hub, HubError> {
        let get = |key: &str| std::env::var(key).ok().filter(|value| !value.is_empty());
        let cache = get("HOMEGROWN_CACHE")
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(get("XDG_CACHE_HOME")?).join("homegrown")))
            .or_else(|| Some(PathBuf::from(get("HOME")?).join(".cache/homegrown")))
            .ok_or(HubError::NoCache)?;
        let endpoint = get("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        Ok(Hub::new(&endpoint, get("HF_TOKEN"), &cache))
    }

    /// Fetches what isn't here yet. Returns the model's folder, or the file that was named.
    /// `told` hears how far it is, and what there is to say.
    ///
    /// # Errors
    /// [`HubError`].
    pub fn fetch(
        &self,
        name: &Name,
        progress: &mut dyn FnMut(Progress<'_>),
        told: &mut dyn FnMut(String),
    ) -> Result<PathBuf, HubError> {
        let home = self.cache.join("models").join(name.repository.replace('/', "--"));
        let newest = home.join("main");
        let listing = match self.list(name) {
            Ok(listing) => listing,
            Err(HubError::Broken { url, why, .. }) if newest.is_file() => {
                let commit = store::read_text(&newest)?;
                let path = name.within(&home.join(commit.trim()));
                if path.exists() {
                    told(format!(
                        "{url}: {why}; using {} as it was fetched before",
                        path.display()
                    ));
                    return Ok(path);
                }
                return Err(HubError::Broken { url, why, tries: download::TRIES });
            }
            Err(error) => return Err(error),
        };
        let wanted = name.choose(&listing.siblings)?;
        let folder = home.join(&listing.sha);
        store::create_dir(&folder)?;
        for file in wanted {
            self.download(name, &listing.sha, file, &folder, progress)?;
        }
        store::write_atomic(&newest, listing.sha.as_bytes())?;
        Ok(name.chosen(&listing.siblings, &folder))
    }

    /// Asks which files a model has.
    fn list(&self, name: &Name) -> Result<Listing, HubError> {
        let url =
            format!("{}/api/models/{}/revision/main?blobs=true", self.endpoint, name.repository);
        let text = self.tried(&url, || {
            let mut response = self.get(&url, None)?;
            let limited = response.body_mut().with_config().limit(LIST_BYTES);
            limited.read_to_string().map_err(|e| download::Trouble::Passing(e.to_string()))
        })?;
        let wrong = |why: String| HubError::List { url: url.clone(), why };
        let listing: Listing = serde_json::from_str(&text).map_err(|e| wrong(e.to_string()))?;
        if listing.sha.is_empty() || !listing.sha.chars().all(|c| c.is_ascii_hexdigit()) {
            return Err(wrong(format!("{:?} is no commit", listing.sha)));
        }
        Ok(listing)
    }
}
