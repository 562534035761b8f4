//! Messages: a tree a conversation.

use rusqlite::{OptionalExtension, Row, params};
use serde::Serialize;
use serde_json::Value;

use super::{CONTENT, ConversationError, Conversations, MESSAGES, Result, json, now, sqlite};

/// A message as it is kept.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Message {
    /// Its name in addresses.
    pub id: String,
    /// What it answers or follows; a conversation may begin several times.
    pub parent: Option<String>,
    /// `user`, `assistant` or `tool`.
    pub role: String,
    /// What is said.
    pub content: String,
    /// What was thought before.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reasoning_content: String,
    /// Calls of tools in OpenAI's form.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub tool_calls: Value,
    /// The call that a tool's result answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// `whole` if somebody wrote it; `writing`; or how an answer ended: `stop`, `length`, `tool_calls`, `stopped`
    /// (by who asked), `cut` (by the server's end), `failed`.
    pub state: String,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The model that answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// What tells that model from others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    /// With it the same answer comes again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<i64>,
    /// What was asked for, beside the messages.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub asked: Value,
    /// What it cost.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub usage: Value,
    /// What it can be verified by.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub receipt: Value,
    /// Whether its tokens are kept, with their probabilities.
    pub has_tokens: bool,
    /// 1 up, -1 down, 0 neither.
    pub thumb: i64,
    /// What somebody thinks of it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub comment: String,
    /// Milliseconds since 1970.
    pub created: i64,
}

/// A message that somebody writes.
#[derive(Debug, Clone, Default)]
pub struct Said<'a> {
    /// What it follows.
    pub parent: Option<&'a str>,
    /// `user`, `tool`, or `assistant`: what the model should have said.
    pub role: &'a str,
    /// What is said.
    pub content: &'a str,
    /// Of a tool's result: the call.
    pub tool_call_id: Option<&'a str>,
}

/// What of an answer is not part of its message yet.
const PIECES: &str = "(SELECT group_concat(p.content, '') FROM (SELECT content FROM pieces WHERE message = m.n ORDER BY n) AS p)";

fn columns() -> String {
    let thought = PIECES.replace("content", "reasoning");
    format!(
        "SELECT m.id, m.parent, m.role, m.content || coalesce({PIECES}, ''), m.reasoning || coalesce({thought}, ''),
            m.tool_calls, m.tool_call_id, m.state, m.error, m.model, m.fingerprint, m.seed, m.asked, m.usage,
            m.receipt, m.tokens IS NOT NULL, coalesce(f.thumb, 0), coalesce(f.comment, ''), m.created
         FROM messages AS m LEFT JOIN feedback AS f ON f.message = m.id"
    )
}

fn message(row: &Row) -> rusqlite::Result<Message> {
    Ok(Message {
        id: row.get(0)?,
        parent: row.get(1)?,
        role: row.get(2)?,
        content: row.get(3)?,
        reasoning_content: row.get(4)?,
        tool_calls: json(row.get(5)?),
        tool_call_id: row.get(6)?,
        state: row.get(7)?,
        error: row.get(8)?,
        model: row.get(9)?,
        fingerprint: row.get(10)?,
        seed: row.get(11)?,
        asked: json(row.get(12)?),
        usage: json(row.get(13)?),
        receipt: json(row.get(14)?),
        has_tokens: row.get(15)?,
        thumb: row.get(16)?,
        comment: row.get(17)?,
        created: row.get(18)?,
    })
}

impl Conversations {
    /// All messages of a conversation, in the order in which they came.
    ///
    /// # Errors
    /// The file's.
    pub fn messages(&self, conversation: &str) -> Result<Vec<Message>> {
        let sql = format!("{} WHERE m.conversation = ?1 ORDER BY m.n", columns());
        sqlite::rows(&self.db(), &sql, [conversation], message).map_err(|e| self.wrong(e))
    }

    /// A message.
    ///
    /// # Errors
    /// If it isn't there.
    pub fn message(&self, who: Option<&str>, id: &str) -> Result<Message> {
        let sql = format!(
            "{} JOIN conversations AS c ON c.id = m.conversation
             WHERE m.id = ?1 AND (?2 IS NULL OR c.owner = ?2)",
            columns()
        );
        let found = self.db().query_row(&sql, params![id, who], message).optional();
        found.map_err(|e| self.wrong(e))?.ok_or(ConversationError::NotThere("message"))
    }

    /// The tokens of an answer with their probabilities, as JSON: `[[token, log-probability, [[alternative,
    /// log-probability], …]], …]`.
    ///
    /// # Errors
    /// If there is no such message, or its tokens aren't kept.
    pub fn tokens(&self, who: Option<&str>, id: &str) -> Result<String> {
        let sql =
            "SELECT m.tokens FROM messages AS m JOIN conversations AS c ON c.id = m.conversation
             WHERE m.id = ?1 AND (?2 IS NULL OR c.owner = ?2) AND m.tokens IS NOT NULL";
        let found = self.db().query_row(sql, params![id, who], |row| row.get(0)).optional();
        found.map_err(|e| self.wrong(e))?.ok_or(ConversationError::NotThere("message with tokens"))
    }

    /// Adds a message that somebody wrote.
    ///
    /// # Errors
    /// If there is no such conversation or parent; roles and sizes that can't be.
    pub fn say(&self, who: Option<&str>, conversation: &str, said: &Said) -> Result<Message> {
        if !["user", "tool", "assistant"].contains(&said.role) {
            return Err(ConversationError::field("role", "it is user, tool or assistant"));
        }
        if said.content.len() > CONTENT {
            let why = format!("{} bytes; {CONTENT} are allowed", said.content.len());
            return Err(ConversationError::field("content", why));
        }
        if said.tool_call_id.is_some_and(|id| id.len() > 200) {
            return Err(ConversationError::field("tool_call_id", "it is longer than 200 bytes"));
        }
        let sql = "INSERT INTO messages (id, conversation, parent, role, content, tool_call_id, state, created)
            VALUES (lower(hex(randomblob(16))), ?1, ?2, ?3, ?4, ?5, 'whole', ?6) RETURNING id";
        let id: String = self.add(who, conversation, said.parent, |db| {
            let Said { parent, role, content, tool_call_id } = said;
            let values = params![conversation, parent, role, content, tool_call_id, now()];
            db.query_row(sql, values, |row| row.get(0))
        })?;
        self.message(who, &id)
    }

    /// Checks where a message is to be, and adds it, in one transaction.
    pub(super) fn add<T>(
        &self,
        who: Option<&str>,
        conversation: &str,
        parent: Option<&str>,
        insert: impl FnOnce(&rusqlite::Connection) -> rusqlite::Result<T>,
    ) -> Result<T> {
        let mut db = self.db();
        let all = db.transaction().map_err(|e| self.wrong(e))?;
        let touch = "UPDATE conversations SET changed = max(?3, changed + 1)
            WHERE id = ?1 AND (?2 IS NULL OR owner = ?2)";
        let there = all.execute(touch, params![conversation, who, now()]);
        if there.map_err(|e| self.wrong(e))? == 0 {
            return Err(ConversationError::NotThere("conversation"));
        }
        let count = "SELECT count(*), count(*) FILTER (WHERE id = ?2) FROM messages WHERE conversation = ?1";
        let (messages, parents): (i64, i64) = all
            .query_row(count, params![conversation, parent], |row| Ok((row.get(0)?, row.get(1)?)))
            .map_err(|e| self.wrong(e))?;
        if messages >= MESSAGES as i64 {
            let why = format!("it has {MESSAGES} messages, which is as many as it can have");
            return Err(ConversationError::field("conversation", why));
        }
        if parent.is_some() && parents == 0 {
            return Err(ConversationError::field("parent", "the conversation has no such message"));
        }
        let made = insert(&all).map_err(|e| self.wrong(e))?;
        all.commit().map_err(|e| self.wrong(e))?;
        Ok(made)
    }
}
