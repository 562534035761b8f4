//! What is typed: lines from a terminal with editing and history, or from a pipe.

use std::io::BufRead;

use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::DefaultHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Editor, Helper};

use crate::failure::Failure;

/// Starts and ends a text of several lines.
const FENCE: &str = "\"\"\"";

/// Where messages come from.
pub enum Input {
    /// A person at a terminal.
    Terminal(Box<Editor<Lines, DefaultHistory>>),
    /// A file or another program.
    Pipe(std::io::StdinLock<'static>),
}

impl Input {
    /// Standard input.
    ///
    /// # Errors
    /// If the terminal can't be set up.
    pub fn new(terminal: bool) -> Result<Input, Failure> {
        if !terminal {
            return Ok(Input::Pipe(std::io::stdin().lock()));
        }
        let mut editor = Editor::new().map_err(Failure::failed)?;
        editor.set_helper(Some(Lines));
        Ok(Input::Terminal(Box::new(editor)))
    }

    /// The next message or command; `None` at the end.
    ///
    /// # Errors
    /// If it can't be read or isn't UTF-8.
    pub fn next(&mut self) -> Result<Option<String>, Failure> {
        match self {
            Input::Terminal(editor) => loop {
                match editor.readline("> ") {
                    Ok(text) => {
                        let _ = editor.add_history_entry(&text); // convenience only
                        return Ok(Some(plain(&text)));
                    }
                    Err(ReadlineError::Interrupted) => continue, // the line is dropped
                    Err(ReadlineError::Eof) => return Ok(None),
                    Err(error) => return Err(Failure::failed(error)),
                }
            },
            Input::Pipe(stdin) => {
                let mut text = String::new();
                loop {
                    let read = stdin.read_line(&mut text);
                    let n = read.map_err(|e| Failure::invalid(format!("standard input: {e}")))?;
                    if n == 0 && text.is_empty() {
                        return Ok(None);
                    }
                    if n == 0 || !goes_on(text.trim_end_matches(['\r', '\n'])) {
                        return Ok(Some(plain(text.trim_end_matches(['\r', '\n']))));
                    }
                }
            }
        }
    }
}

/// Whether more lines belong to a text.
fn goes_on(text: &str) -> bool {
    text.ends_with('\\') || (text.starts_with(FENCE) && !(closed(text)))
}

fn closed(text: &str) -> bool {
    text.len() >= 2 * FENCE.len() && text.trim_end().ends_with(FENCE)
}

/// A text without the marks of several lines.
fn plain(text: &str) -> String {
    if text.starts_with(FENCE) && closed(text) {
        let inner = &text.trim_end()[FENCE.len()..];
        let inner = inner.strip_suffix(FENCE).unwrap_or(inner);
        return inner.trim_matches('\n').to_string();
    }
    text.replace("\\\r\n", "\n").replace("\\\n", "\n")
}

/// Tells the editor when a text is whole.
pub struct Lines;

impl Validator for Lines {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        Ok(match goes_on(context.input()) {
            true => ValidationResult::Incomplete,
            false => ValidationResult::Valid(None),
        })
    }
}

impl Completer for Lines {
    type Candidate = String;
}

impl Hinter for Lines {
    type Hint = String;
}

impl Highlighter for Lines {}

impl Helper for Lines {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_several_lines() {
        for (text, more) in [
            ("hello", false),
            ("hello \\", true),
            ("\"\"\"", true),
            ("\"\"\"a\nb", true),
            ("\"\"\"a\nb\"\"\"", false),
            ("\"\"\"\na\n\"\"\" ", false),
            ("", false),
        ] {
            assert_eq!(goes_on(text), more, "{text:?}");
        }
        for (text, expected) in [
            ("hello", "hello"),
            ("a\\\nb\\\nc", "a\nb\nc"),
            ("\"\"\"\na\\\nb\n\"\"\"", "a\\\nb"),
            ("\"\"\"a\"\"\"", "a"),
            ("\"\"\"open", "\"\"\"open"),
        ] {
            assert_eq!(plain(text), expected, "{text:?}");
        }
    }
}
