//! What became of a source: a line of `collected.jsonl`.

use serde::{Deserialize, Serialize};

/// What became of a source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It is in the collection.
    Stored,
    /// It leads to a page that is in the collection already.
    Duplicate,
    /// It was not wanted, or its server doesn't want it collected.
    Refused,
    /// It could not be had.
    #[default]
    Failed,
    /// Its turn has not come: there are as many pages as were asked for.
    Left,
}

/// What became of a source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The URL, or the path of a local file.
    pub source: String,
    /// What became of it.
    pub outcome: Outcome,
    /// Why, if it isn't stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Links from the given sources to here.
    #[serde(default)]
    pub depth: u32,
    /// Where redirects led to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub final_url: Option<String>,
    /// The status of the last answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Bytes of the file, or of the body as it was sent.
    #[serde(default)]
    pub bytes: u64,
    /// When it was fetched, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
    /// When it was last changed, as the server says; of a local file, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_modified: Option<String>,
    /// `Content-Type`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// Its licence, as the page or the server says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub licence: Option<String>,
    /// What the page or the server says to robots ("noindex", "noai" …).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub robots: Option<String>,
    /// The file of the collection that it is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Where in that file its record begins, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// How long its record is, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<u64>,
    /// The pages that it is the first to link to, if links are followed from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub links: Option<Vec<String>>,
}

impl Entry {
    /// Why it isn't stored.
    pub(crate) fn with(mut self, outcome: Outcome, reason: impl Into<String>) -> Entry {
        (self.outcome, self.reason) = (outcome, Some(reason.into()));
        self
    }
}
