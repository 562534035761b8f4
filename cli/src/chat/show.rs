//! What is shown: answers on stdout, all else on stderr.

use std::io::{IsTerminal, Write};

use model::message::ToolCall;

use crate::common::harmless;

/// Where answers and notes go.
pub struct Screen {
    /// stdout is kept for one JSON object.
    json: bool,
    /// Answers go to a terminal, which obeys control characters.
    terminal: bool,
    /// Notes are dimmed.
    dim: bool,
    /// A line of the answer is open.
    open: bool,
}

impl Screen {
    /// The process's own.
    pub fn new(json: bool) -> Screen {
        let (out, err) = (std::io::stdout().is_terminal(), std::io::stderr().is_terminal());
        Screen { json, terminal: if json { err } else { out }, dim: err, open: false }
    }

    /// Part of an answer. Nobody may be there to read it.
    pub fn text(&mut self, text: &str) {
        let Some(last) = text.chars().next_back() else { return };
        self.open = last != '\n';
        let text = if self.terminal { harmless(text) } else { text.to_string() };
        let _ = if self.json {
            write!(std::io::stderr(), "{text}").and_then(|()| std::io::stderr().flush())
        } else {
            write!(std::io::stdout(), "{text}").and_then(|()| std::io::stdout().flush())
        };
    }

    /// Part of what the model thinks before it answers.
    pub fn aside(&mut self, text: &str) {
        let Some(last) = text.chars().next_back() else { return };
        self.open = last != '\n';
        let text = harmless(text);
        let text = if self.dim { format!("\x1b[2m{text}\x1b[0m") } else { text };
        let _ = write!(std::io::stderr(), "{text}").and_then(|()| std::io::stderr().flush());
    }

    /// The end of an answer.
    pub fn end(&mut self) {
        if self.open {
            self.text("\n");
        }
    }

    /// Something beside the conversation.
    pub fn note(&mut self, text: &str) {
        self.end();
        let text = harmless(text);
        let _ = if self.dim {
            writeln!(std::io::stderr(), "\x1b[2m{text}\x1b[0m")
        } else {
            writeln!(std::io::stderr(), "{text}")
        };
    }
}

/// A call for people: `calculator(12*34)`.
pub fn call(call: &ToolCall) -> String {
    let arguments = call.arguments.as_object().into_iter().flatten();
    let text = |value: &serde_json::Value| match value.as_str() {
        Some(text) => text.to_string(),
        None => value.to_string(),
    };
    let arguments: Vec<String> = arguments.map(|(_, value)| text(value)).collect();
    format!("{}({})", call.name, arguments.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn terminals_are_not_commanded() {
        assert_eq!(harmless("a\x1b[2Jb\n\tc\u{9b}é"), "a\u{fffd}[2Jb\n\tc\u{fffd}é");
    }

    #[test]
    fn calls_are_short() {
        let f = ToolCall { name: "f".into(), arguments: json!({"a": "x+1", "b": [1, 2]}) };
        assert_eq!(call(&f), "f(x+1, [1,2])");
    }
}
