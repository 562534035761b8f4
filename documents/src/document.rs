//! What a document is, what is passed over, and how much is taken at most.

use serde::{Deserialize, Serialize};

use crate::Format;

/// A text and where it is from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    /// The text.
    pub text: String,
    /// The file; members of archives after `!`, parts of files after `#`.
    pub source: String,
    /// What the file was.
    #[serde(default)]
    pub format: Format,
    /// What is known about it.
    #[serde(flatten)]
    pub about: About,
}

/// What a file, or what it was collected with, says about a document.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// Its title.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// Where it was on the web.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// When it was written or collected, as stated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
    /// Its licence, as stated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub licence: Option<String>,
    /// Its language: ISO 639-3 of a human one, the name of a programming language.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub language: Option<String>,
    /// Bytes of text that a reader of the page wouldn't see and that were left out.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub hidden_bytes: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// A file, or a part of one, that was not read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skip {
    /// Which.
    pub source: String,
    /// Why.
    pub reason: String,
}

/// How much is taken at most; what is larger is cut, or skipped and listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Longest document, bytes; a longer text is cut into several between paragraphs.
    pub document_bytes: usize,
    /// Largest file that must be held in memory to be read (PDF, office files …), bytes.
    pub file_bytes: u64,
    /// Longest line of JSONL, bytes.
    pub line_bytes: u64,
    /// How many times its size an archive may unpack to, after its first `unpack_bytes`.
    pub unpack_ratio: u64,
    /// See `unpack_ratio`, bytes.
    pub unpack_bytes: u64,
    /// How deep archives may lie in archives.
    pub depth: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            document_bytes: 8 << 20,
            file_bytes: 256 << 20,
            line_bytes: 64 << 20,
            unpack_ratio: 200,
            unpack_bytes: 64 << 20,
            depth: 8,
        }
    }
}
