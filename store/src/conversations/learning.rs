//! What people think of answers, and how later learning reads it: JSONL.

use std::collections::HashMap;

use rusqlite::params;
use serde_json::{Value, json};

use super::{COMMENT, ConversationError, Conversations, Message, Result, now, sqlite};

impl Conversations {
    /// Keeps what somebody thinks of an answer: 1, 0 or -1, and words.
    ///
    /// # Errors
    /// If there is no such message; other numbers, too many words.
    pub fn judge(&self, who: Option<&str>, id: &str, thumb: i64, comment: &str) -> Result<()> {
        if !(-1..=1).contains(&thumb) {
            return Err(ConversationError::field("thumb", "it is 1, 0 or -1"));
        }
        if comment.len() > COMMENT {
            let why = format!("{} bytes; {COMMENT} are allowed", comment.len());
            return Err(ConversationError::field("comment", why));
        }
        let sql = "INSERT INTO feedback (message, thumb, comment, changed)
            SELECT m.id, ?3, ?4, ?5 FROM messages AS m JOIN conversations AS c ON c.id = m.conversation
            WHERE m.id = ?1 AND (?2 IS NULL OR c.owner = ?2)
            ON CONFLICT (message) DO UPDATE SET thumb = ?3, comment = ?4, changed = ?5";
        let values = params![id, who, thumb, comment, now()];
        match self.db().execute(sql, values).map_err(|e| self.wrong(e))? {
            0 => Err(ConversationError::NotThere("message")),
            _ => Ok(()),
        }
    }

    /// The conversations in which something was judged.
    ///
    /// # Errors
    /// The file's.
    pub fn judged(&self, who: Option<&str>) -> Result<Vec<String>> {
        let sql = "SELECT DISTINCT c.id FROM feedback AS f JOIN messages AS m ON m.id = f.message
            JOIN conversations AS c ON c.id = m.conversation
            WHERE (f.thumb <> 0 OR f.comment <> '') AND (?1 IS NULL OR c.owner = ?1) ORDER BY c.created, c.id";
        sqlite::rows(&self.db(), sql, [who], |row| row.get(0)).map_err(|e| self.wrong(e))
    }

    /// A conversation's judged answers, each with all that stood before it:
    /// `{"messages": […], "thumb": 1, "comment": "…", "model": …, "fingerprint": …, "seed": …}`.
    ///
    /// # Errors
    /// The file's.
    pub fn judgements(&self, conversation: &str) -> Result<Vec<Value>> {
        let messages = self.messages(conversation)?;
        let tree = Tree::new(&messages);
        let judged = |m: &&Message| m.thumb != 0 || !m.comment.is_empty();
        let one = |m: &Message| {
            let mut value =
                json!({"messages": tree.path(m), "thumb": m.thumb, "comment": m.comment});
            for (key, of) in [
                ("model", json!(m.model)),
                ("fingerprint", json!(m.fingerprint)),
                ("seed", json!(m.seed)),
                ("receipt", m.receipt.clone()),
            ] {
                if !of.is_null() {
                    value[key] = of;
                }
            }
            if m.asked["tools"].is_array() {
                value["tools"] = m.asked["tools"].clone();
            }
            value
        };
        Ok(messages.iter().filter(judged).map(one).collect())
    }

    /// Pairs of answers to the same, one with its thumb up and one with its thumb down:
    /// `{"prompt": […], "chosen": […], "rejected": […]}`, lists of messages all.
    ///
    /// # Errors
    /// The file's.
    pub fn preferences(&self, conversation: &str) -> Result<Vec<Value>> {
        let messages = self.messages(conversation)?;
        let tree = Tree::new(&messages);
        let mut pairs = Vec::new();
        for up in messages.iter().filter(|m| m.thumb == 1) {
            let against =
                |m: &&Message| m.thumb == -1 && m.parent == up.parent && m.role == up.role;
            for down in messages.iter().filter(against) {
                let mut prompt = tree.path(up);
                prompt.pop();
                pairs.push(json!({
                    "prompt": prompt, "chosen": [plain(up)], "rejected": [plain(down)]
                }));
            }
        }
        Ok(pairs)
    }
}

/// Messages by their names.
struct Tree<'a>(HashMap<&'a str, &'a Message>);

impl<'a> Tree<'a> {
    fn new(messages: &'a [Message]) -> Tree<'a> {
        Tree(messages.iter().map(|m| (m.id.as_str(), m)).collect())
    }

    /// From the system prompt it was asked with to the message itself. (A parent is older than its children, so this
    /// ends.)
    fn path(&self, of: &Message) -> Vec<Value> {
        let mut path = Vec::new();
        let mut at = Some(of);
        while let Some(message) = at {
            path.push(plain(message));
            at = message.parent.as_deref().and_then(|id| self.0.get(id).copied());
        }
        if let Some(system) = of.asked["system"].as_str() {
            path.push(json!({"role": "system", "content": system}));
        }
        path.reverse();
        path
    }
}

/// A message as files of conversations have it.
fn plain(message: &Message) -> Value {
    let mut value = json!({"role": message.role, "content": message.content});
    if !message.reasoning_content.is_empty() {
        value["reasoning_content"] = message.reasoning_content.clone().into();
    }
    if message.tool_calls.is_array() {
        value["tool_calls"] = message.tool_calls.clone();
    }
    value
}
