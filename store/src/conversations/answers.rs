//! Answers while they are written: a row a piece, and one message at the end.

use std::sync::PoisonError;

use rusqlite::{Connection, params};
use serde_json::Value;

use super::{ConversationError, Conversations, Result, now, sqlite};

/// An answer that is being written.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Its message.
    pub id: String,
    n: i64,
}

/// What came of an answer at a time.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Piece {
    /// Of its text.
    pub content: String,
    /// Of what was thought before.
    pub reasoning: String,
    /// Its tokens: `[token, log-probability, [[alternative, log-probability], …]]` each.
    pub tokens: Vec<Value>,
}

/// The end of an answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct End {
    /// `stop`, `length`, `tool_calls`, `stopped` or `failed`.
    pub state: String,
    /// Why it failed.
    pub error: Option<String>,
    /// The calls of tools; null if there are none.
    pub tool_calls: Value,
    /// The model.
    pub model: Option<String>,
    /// Its fingerprint.
    pub fingerprint: Option<String>,
    /// The seed.
    pub seed: Option<i64>,
    /// What it cost.
    pub usage: Value,
    /// What it can be verified by.
    pub receipt: Value,
}

/// JSON for a column, where there is some.
fn column(value: &Value) -> Option<String> {
    (!value.is_null()).then(|| value.to_string())
}

impl Conversations {
    /// Adds an answer that is about to be written. `asked`: the request without its messages.
    ///
    /// # Errors
    /// If there is no such conversation or parent.
    pub fn begin(
        &self,
        who: Option<&str>,
        conversation: &str,
        parent: Option<&str>,
        asked: &Value,
    ) -> Result<Asked> {
        let sql = "INSERT INTO messages (id, conversation, parent, role, content, state, model, asked, created)
            VALUES (lower(hex(randomblob(16))), ?1, ?2, 'assistant', '', 'writing', ?3, ?4, ?5) RETURNING id, n";
        self.add(who, conversation, parent, |db| {
            let model = asked["model"].as_str();
            let values = params![conversation, parent, model, column(asked), now()];
            db.query_row(sql, values, |row| Ok(Asked { id: row.get(0)?, n: row.get(1)? }))
        })
    }

    /// Keeps a piece: before it is shown.
    ///
    /// # Errors
    /// If the message is gone: somebody removed the conversation.
    pub fn piece(&self, of: &Asked, piece: &Piece) -> Result<()> {
        let tokens: Vec<String> = piece.tokens.iter().map(Value::to_string).collect();
        let sql =
            "INSERT INTO pieces (message, content, reasoning, tokens) VALUES (?1, ?2, ?3, ?4)";
        let values = params![of.n, piece.content, piece.reasoning, tokens.join(",")];
        let db = self.quick.lock().unwrap_or_else(PoisonError::into_inner);
        let added = db.execute(sql, values);
        match added.map_err(|e| (e.sqlite_error_code(), e)) {
            Ok(_) => Ok(()),
            Err((Some(rusqlite::ErrorCode::ConstraintViolation), _)) => {
                Err(ConversationError::NotThere("message"))
            }
            Err((_, error)) => Err(self.wrong(error)),
        }
    }

    /// Makes the pieces a message.
    ///
    /// # Errors
    /// The file's.
    pub fn end(&self, of: &Asked, end: &End) -> Result<()> {
        let mut db = self.db();
        let mut write = || -> rusqlite::Result<()> {
            let all = db.transaction()?;
            finish(&all, of.n, &end.state)?;
            let sql = "UPDATE messages SET error = ?2, tool_calls = ?3, model = coalesce(?4, model), fingerprint = ?5,
                seed = ?6, usage = ?7, receipt = ?8 WHERE n = ?1";
            all.execute(
                sql,
                params![
                    of.n,
                    end.error,
                    column(&end.tool_calls),
                    end.model,
                    end.fingerprint,
                    end.seed,
                    column(&end.usage),
                    column(&end.receipt)
                ],
            )?;
            all.commit()
        };
        write().map_err(|e| self.wrong(e))
    }

    /// Makes messages of answers whose server ended before they did.
    pub(super) fn finish_cut(&self) -> rusqlite::Result<()> {
        let mut db = self.db();
        let all = db.transaction()?;
        let cut = "SELECT n FROM messages WHERE state = 'writing'";
        for n in sqlite::rows(&all, cut, [], |row| row.get(0))? {
            finish(&all, n, "cut")?;
        }
        all.commit()
    }
}

/// Puts the pieces of a message together.
fn finish(db: &Connection, n: i64, state: &str) -> rusqlite::Result<()> {
    let (mut content, mut reasoning, mut tokens) = (String::new(), String::new(), String::new());
    let mut select =
        db.prepare("SELECT content, reasoning, tokens FROM pieces WHERE message = ?1 ORDER BY n")?;
    let mut rows = select.query([n])?;
    while let Some(row) = rows.next()? {
        content.push_str(row.get_ref(0)?.as_str()?);
        reasoning.push_str(row.get_ref(1)?.as_str()?);
        let more = row.get_ref(2)?.as_str()?;
        if !more.is_empty() {
            tokens.push(if tokens.is_empty() { '[' } else { ',' });
            tokens.push_str(more);
        }
    }
    let tokens = (!tokens.is_empty()).then(|| tokens + "]");
    let sql =
        "UPDATE messages SET state = ?2, content = content || ?3, reasoning = reasoning || ?4,
        tokens = coalesce(?5, tokens) WHERE n = ?1";
    db.execute(sql, params![n, state, content, reasoning, tokens])?;
    db.execute("DELETE FROM pieces WHERE message = ?1", [n])?;
    Ok(())
}
