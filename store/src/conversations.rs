//! Conversations in SQLite: trees of messages, what people think of them, and answers as they are written.
//!
//! What is promised: a message that was taken, and an answer's end, are on the disk ([`open`](Conversations::open)).
//! A piece of an answer is committed before it is shown, so the end of this process (`kill -9`) loses nothing that was
//! shown; only a power cut may lose the last pieces of an answer that was being written.

mod answers;
mod learning;
mod tree;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, OptionalExtension, Row, named_params, params};
use serde::Serialize;
use serde_json::Value;
use thiserror::Error;

pub use answers::{Asked, End, Piece};
pub use tree::{Message, Said};

use crate::{Lock, StoreError, sqlite};

/// From version to version.
const STEPS: [&str; 1] = [include_str!("conversations/schema.sql")];

/// Most characters of a title.
pub const TITLE: usize = 200;
/// Most bytes of a conversation's settings.
pub const SETTINGS: usize = 64 << 10;
/// Most bytes of a message that somebody wrote.
pub const CONTENT: usize = 1 << 20;
/// Most bytes of a comment.
pub const COMMENT: usize = 10_000;
/// Most messages of a conversation.
pub const MESSAGES: usize = 10_000;
/// Conversations that are listed at a time.
pub const LISTED: usize = 100;
/// Most words that are searched for.
const WORDS: usize = 16;

/// What can't be done.
#[derive(Debug, Error)]
pub enum ConversationError {
    /// Nothing is called so, or it is somebody else's.
    #[error("there is no {0} of this name")]
    NotThere(&'static str),
    /// A field that can't be as it is.
    #[error("{field}: {why}")]
    Field {
        /// Which.
        field: &'static str,
        /// Why not.
        why: String,
    },
    /// The file.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ConversationError {
    fn field(field: &'static str, why: impl Into<String>) -> ConversationError {
        ConversationError::Field { field, why: why.into() }
    }
}

type Result<T> = std::result::Result<T, ConversationError>;

/// A database of conversations. Of those that ask, `None` is who sees all.
pub struct Conversations {
    path: PathBuf,
    /// Commits of this one are on the disk.
    db: Mutex<Connection>,
    /// Commits of this one survive the process: pieces of answers.
    quick: Mutex<Connection>,
    /// Held by one of those that use the file: the one that tidies up.
    _tidies: Option<Lock>,
}

/// A conversation without its messages.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Conversation {
    /// Its name in addresses.
    pub id: String,
    /// What it is about.
    pub title: String,
    /// What the page set: system prompt, sampling, tools, the leaves shown.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub settings: Value,
    /// Milliseconds since 1970.
    pub created: i64,
    /// The same, of its last message or change.
    pub changed: i64,
    /// Of a search: a part of the message that was found, found words in `\u{2}` and `\u{3}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub found: Option<String>,
}

fn now() -> i64 {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

/// JSON of a column that we wrote.
fn json(text: Option<String>) -> Value {
    text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
}

fn check_title(title: &str) -> Result<()> {
    match title.chars().count() {
        1..=TITLE => Ok(()),
        n => Err(ConversationError::field(
            "title",
            format!("{n} characters; 1 to {TITLE} are allowed"),
        )),
    }
}

fn check_settings(settings: &Value) -> Result<String> {
    let text = settings.to_string();
    match settings.is_object() && text.len() <= SETTINGS {
        true => Ok(text),
        false => {
            let why = format!("it is an object of at most {SETTINGS} bytes");
            Err(ConversationError::field("settings", why))
        }
    }
}

/// Words as FTS5 is asked for them: each as it stands, the last perhaps only begun.
fn query(words: &str) -> String {
    let words: Vec<String> = words
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .take(WORDS)
        .map(|word| format!("\"{word}\""))
        .collect();
    match words.is_empty() {
        true => String::new(),
        false => format!("{}*", words.join(" ")),
    }
}

impl Conversations {
    /// Opens the file, which is made if it isn't there. Answers that a server's end cut off become messages.
    ///
    /// # Errors
    /// A file that can't be used, or is none of ours.
    pub fn open(path: &Path) -> std::result::Result<Conversations, StoreError> {
        if let Some(folder) = path.parent().filter(|f| !f.as_os_str().is_empty()) {
            crate::create_dir(folder)?;
        }
        let db = sqlite::open(path, true, &STEPS)?;
        private(path)?;
        let quick = sqlite::open(path, false, &STEPS)?;
        let mut lock = path.as_os_str().to_os_string();
        lock.push(".lock");
        // Who else has the file open may be writing answers.
        let tidies = match Lock::take(Path::new(&lock)) {
            Ok(lock) => Some(lock),
            Err(StoreError::Locked { .. }) => None,
            Err(other) => return Err(other),
        };
        let (db, quick) = (Mutex::new(db), Mutex::new(quick));
        let all = Conversations { path: path.into(), db, quick, _tidies: tidies };
        if all._tidies.is_some() {
            all.finish_cut().map_err(sqlite::wrong(path))?;
        }
        Ok(all)
    }

    /// A connection, once nobody else has it. A panic in between left no transaction open.
    fn db(&self) -> MutexGuard<'_, Connection> {
        self.db.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wrong(&self, error: rusqlite::Error) -> ConversationError {
        sqlite::wrong(&self.path)(error).into()
    }

    /// A new conversation.
    ///
    /// # Errors
    /// A title or settings that are none.
    pub fn create(&self, owner: &str, title: &str, settings: &Value) -> Result<Conversation> {
        check_title(title)?;
        let text = check_settings(settings)?;
        let sql = "INSERT INTO conversations (id, owner, title, settings, created, changed)
            VALUES (lower(hex(randomblob(16))), ?1, ?2, ?3, ?4, ?4) RETURNING id, title, settings, created, changed";
        let db = self.db();
        db.query_row(sql, params![owner, title, text, now()], conversation)
            .map_err(|e| self.wrong(e))
    }

    /// A conversation.
    ///
    /// # Errors
    /// If it isn't there.
    pub fn conversation(&self, who: Option<&str>, id: &str) -> Result<Conversation> {
        let sql = "SELECT id, title, settings, created, changed FROM conversations
            WHERE id = ?1 AND (?2 IS NULL OR owner = ?2)";
        let found = self.db().query_row(sql, params![id, who], conversation).optional();
        found.map_err(|e| self.wrong(e))?.ok_or(ConversationError::NotThere("conversation"))
    }

    /// The newest conversations, of those last changed before a time.
    ///
    /// # Errors
    /// The file's.
    pub fn list(&self, who: Option<&str>, before: Option<i64>) -> Result<Vec<Conversation>> {
        let sql = "SELECT id, title, NULL, created, changed FROM conversations
            WHERE (?1 IS NULL OR owner = ?1) AND changed < ?2 ORDER BY changed DESC, id LIMIT ?3";
        let limit = params![who, before.unwrap_or(i64::MAX), LISTED as i64];
        sqlite::rows(&self.db(), sql, limit, conversation).map_err(|e| self.wrong(e))
    }

    /// Conversations with messages that hold all the words, the newest first.
    ///
    /// # Errors
    /// The file's.
    pub fn search(&self, who: Option<&str>, words: &str) -> Result<Vec<Conversation>> {
        let query = query(words);
        if query.is_empty() {
            return Ok(Vec::new());
        }
        // The newest message of each conversation that was found.
        let sql = "SELECT c.id, c.title, NULL, c.created, c.changed,
                (SELECT snippet(search, 0, char(2), char(3), '…', 16) FROM search
                 WHERE search MATCH :query AND rowid = found.n)
            FROM (SELECT conversation, max(messages.n) AS n FROM search
                  JOIN messages ON messages.n = search.rowid
                  WHERE search MATCH :query GROUP BY conversation) AS found
            JOIN conversations AS c ON c.id = found.conversation
            WHERE :who IS NULL OR c.owner = :who ORDER BY c.changed DESC, c.id LIMIT :limit";
        let values = named_params! {":query": query, ":who": who, ":limit": LISTED as i64};
        let found = |row: &Row| Ok(Conversation { found: row.get(5)?, ..conversation(row)? });
        sqlite::rows(&self.db(), sql, values, found).map_err(|e| self.wrong(e))
    }

    /// Changes title, settings or both.
    ///
    /// # Errors
    /// If it isn't there; a title or settings that are none.
    pub fn change(
        &self,
        who: Option<&str>,
        id: &str,
        title: Option<&str>,
        settings: Option<&Value>,
    ) -> Result<()> {
        title.map_or(Ok(()), check_title)?;
        let settings = settings.map(check_settings).transpose()?;
        let sql = "UPDATE conversations SET title = coalesce(?3, title), settings = coalesce(?4, settings)
            WHERE id = ?1 AND (?2 IS NULL OR owner = ?2)";
        self.changed_one(sql, params![id, who, title, settings])
    }

    /// Removes a conversation with all that belongs to it.
    ///
    /// # Errors
    /// If it isn't there.
    pub fn remove(&self, who: Option<&str>, id: &str) -> Result<()> {
        let sql = "DELETE FROM conversations WHERE id = ?1 AND (?2 IS NULL OR owner = ?2)";
        self.changed_one(sql, params![id, who])
    }

    fn changed_one(&self, sql: &str, values: &[&dyn rusqlite::ToSql]) -> Result<()> {
        match self.db().execute(sql, values).map_err(|e| self.wrong(e))? {
            0 => Err(ConversationError::NotThere("conversation")),
            _ => Ok(()),
        }
    }
}

/// What people said is for its owner's eyes.
fn private(path: &Path) -> std::result::Result<(), StoreError> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let only_owner = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(path, only_owner).map_err(StoreError::io("protect", path))?;
    }
    Ok(())
}

fn conversation(row: &Row) -> rusqlite::Result<Conversation> {
    Ok(Conversation {
        id: row.get(0)?,
        title: row.get(1)?,
        settings: json(row.get(2)?),
        created: row.get(3)?,
        changed: row.get(4)?,
        found: None,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
