//! What a model says, as it comes: reasoning, text, and calls of tools.
//!
//! ```text
//! <think>                                                    reasoning, where the template knows it
//! 12*34 is a case for the calculator.
//! </think>
//! Let me see.                                                text
//! <tool_call>{"name": "calculator", "arguments": …}</tool_call>   a call (see `calls`)
//! ```
//!
//! Where the tokenizer has tokens for the tags, the same characters as text are text. A call that can't be read stays
//! text, as it was written; it is not an error.

use model::message::{Message, ToolCall};
use model::template::{ChatTemplate, Piece};
use model::tokenizer::Tokenizer;
use serde_json::Value;

use crate::calls::Format;
use crate::grammar::Form;

const THINK: &str = "<think>";
const THOUGHT: &str = "</think>";

/// How a model writes.
#[derive(Clone, Copy, Debug)]
pub struct Speech {
    /// The form of its calls.
    pub format: Format,
    /// Whether its template has reasoning.
    pub thinks: bool,
    /// Whether the tags of calls, and those of reasoning, are tokens of their own.
    call_tokens: bool,
    think_tokens: bool,
}

impl Speech {
    /// As a model's template and tokenizer show it.
    pub fn of(template: Option<&ChatTemplate>, tokenizer: &Tokenizer) -> Speech {
        let source = template.map_or("", ChatTemplate::source);
        let format = Format::of(source);
        Speech {
            format,
            thinks: source.contains(THOUGHT),
            call_tokens: tokenizer.special_id(format.open()).is_some(),
            think_tokens: tokenizer.special_id(THOUGHT).is_some(),
        }
    }

    /// The same with calls of another form.
    #[cfg(test)]
    pub(crate) fn with(self, format: Format) -> Speech {
        Speech { format, ..self }
    }

    /// Reads an answer to `prompt`, in which reasoning may have begun. `calls`: whether tools may be called;
    /// `tools`: their definitions, as far as they are known.
    pub fn reader(
        &self,
        tokenizer: &Tokenizer,
        prompt: &[u32],
        calls: bool,
        tools: Option<&Value>,
    ) -> Reader {
        let state = match self.thinks && opens_thinking(tokenizer, prompt) {
            true => State::Reasoning { fresh: true },
            false => State::Start { thinks: self.thinks },
        };
        Reader { speech: *self, calls, tools: tools.cloned(), state, held: String::new() }
    }

    /// The form of an answer that is a call of one of these tools, by name and schema of arguments.
    pub fn call(&self, tokenizer: &Tokenizer, tools: &[(&str, Value)]) -> Form {
        let tag = |name: &str| match tokenizer.special_id(name) {
            Some(id) => format!("<[{id}]>"),
            None => Value::from(name).to_string(),
        };
        let open = tag(self.format.open());
        let start = match self.format {
            Format::Tags | Format::Xml => {
                let close = self.format.close().map(tag).unwrap_or_default();
                format!(r#"{open} "\n" call "\n" {close}"#)
            }
            Format::Mistral => format!(r#"{open} "[" call "]""#),
            Format::Llama => "call".into(),
            Format::Pythonic => r#""[" call "]""#.into(),
        };
        Form::Lark(format!("start: {start}\n{}", self.format.rules(tools)))
    }

    /// A whole answer as a message.
    pub fn message(&self, tokenizer: &Tokenizer, prompt: &[u32], tokens: &[u32]) -> Message {
        let mut reader = self.reader(tokenizer, prompt, true, None);
        let mut message = Message::assistant("");
        for piece in Piece::of(tokenizer, tokens) {
            match &piece {
                Piece::Text(text) => reader.text(text),
                Piece::Special(name, _) => reader.special(name),
            }
            .into_iter()
            .for_each(|said| said.add_to(&mut message));
        }
        reader.finish().into_iter().for_each(|said| said.add_to(&mut message));
        message
    }
}

/// Whether a prompt ends with the tag that begins reasoning.
pub fn opens_thinking(tokenizer: &Tokenizer, prompt: &[u32]) -> bool {
    let end = &prompt[prompt.len().saturating_sub(8)..];
    tokenizer.decode(end).trim_end().ends_with(THINK)
}

/// A part of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Said {
    /// What it thinks before it answers.
    Reasoning(String),
    /// What it says.
    Text(String),
    /// What it wants to be called.
    Call(ToolCall),
}

impl Said {
    /// Puts it to what was said before.
    pub fn add_to(self, message: &mut Message) {
        match self {
            Said::Reasoning(text) => message.reasoning.push_str(&text),
            Said::Text(text) => message.content.push_str(&text),
            Said::Call(call) => message.tool_calls.push(call),
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Nothing but white space so far.
    Start {
        thinks: bool,
    },
    /// In reasoning; `fresh` before its first word.
    Reasoning {
        fresh: bool,
    },
    Text,
    /// In a call, of which the tag, if there was one, isn't in `held`.
    Call {
        tag: bool,
    },
    /// White space behind reasoning or a call, which is the template's.
    Between,
}

/// Reads one answer.
#[derive(Debug)]
pub struct Reader {
    speech: Speech,
    calls: bool,
    tools: Option<Value>,
    state: State,
    /// What may be part of a tag, or white space that may be the template's.
    held: String,
}

impl Reader {
    /// Text comes. Returns what is certain now.
    pub fn text(&mut self, text: &str) -> Vec<Said> {
        let mut said = Vec::new();
        if !text.is_empty() {
            self.held.push_str(text);
            while self.advance(&mut said) {}
        }
        said.retain(|said| !matches!(said, Said::Text(t) | Said::Reasoning(t) if t.is_empty()));
        said
    }

    /// A special token comes; those that mean nothing here are passed over.
    pub fn special(&mut self, name: &str) -> Vec<Said> {
        let format = self.speech.format;
        let mut said = Vec::new();
        match self.state {
            State::Start { thinks: true } if name == THINK => {
                self.held.clear();
                self.state = State::Reasoning { fresh: true };
            }
            State::Reasoning { .. } if name == THOUGHT => self.end_reasoning(&mut said, None),
            State::Call { tag } if Some(name) == format.close() => {
                let body = std::mem::take(&mut self.held);
                self.end_call(tag, &body, name, &mut said);
            }
            State::Call { tag } => {
                if name == format.open() {
                    let body = std::mem::take(&mut self.held);
                    self.end_call(tag, &body, "", &mut said);
                    self.state = State::Call { tag: true };
                } else {
                    self.held.push_str(name); // such as [ARGS]
                }
            }
            State::Start { .. } | State::Text | State::Between
                if self.calls && name == format.open() =>
            {
                self.begin_call(&mut said);
            }
            State::Text => said.push(Said::Text(std::mem::take(&mut self.held))),
            _ => {}
        }
        said.retain(|said| !matches!(said, Said::Text(t) | Said::Reasoning(t) if t.is_empty()));
        said
    }

    /// Nothing more comes. Returns what was held back.
    pub fn finish(mut self) -> Vec<Said> {
        let mut said = Vec::new();
        let held = std::mem::take(&mut self.held);
        match self.state {
            State::Start { .. } | State::Text => said.push(Said::Text(held)),
            State::Reasoning { .. } => said.push(Said::Reasoning(held.trim_end().into())),
            State::Call { tag } => match tag && self.speech.format.close().is_some() {
                true => said.push(Said::Text(self.speech.format.open().to_string() + &held)),
                false => self.end_call(tag, &held, "", &mut said),
            },
            State::Between => {}
        }
        said.retain(|said| !matches!(said, Said::Text(t) | Said::Reasoning(t) if t.is_empty()));
        said
    }

    /// Takes a step; `false` if more text is needed for the next.
    fn advance(&mut self, said: &mut Vec<Said>) -> bool {
        let format = self.speech.format;
        match self.state {
            State::Start { thinks } => {
                let text = self.held.trim_start();
                let tag = thinks && !self.speech.think_tokens;
                if tag && let Some(rest) = text.strip_prefix(THINK) {
                    self.held = rest.into();
                    self.state = State::Reasoning { fresh: true };
                } else if self.is_bare_call(text) {
                    self.state = State::Call { tag: false };
                } else if !(tag && THINK.starts_with(text)
                    || text.is_empty() && (thinks || self.calls && format.bare().is_some()))
                {
                    self.state = State::Text;
                } else {
                    return false;
                }
                true
            }
            State::Reasoning { fresh } => {
                if fresh {
                    self.held = self.held.trim_start().into();
                    self.state = State::Reasoning { fresh: self.held.is_empty() };
                }
                let found = self.held.find(THOUGHT).filter(|_| !self.speech.think_tokens);
                if found.is_some() {
                    self.end_reasoning(said, found);
                    return true;
                }
                // White space before the end is the template's.
                let sure = without_start(&self.held, THOUGHT).trim_end().len();
                said.push(Said::Reasoning(self.held.drain(..sure).collect()));
                false
            }
            State::Text => {
                let open = format.open();
                let tag = self.calls && !self.speech.call_tokens;
                if tag && let Some(at) = self.held.find(open) {
                    let rest = self.held.split_off(at + open.len());
                    self.held.truncate(at);
                    self.begin_call(said);
                    self.held = rest;
                    return true;
                }
                let mut sure = &self.held[..];
                if tag {
                    sure = without_start(sure, open);
                }
                if self.calls {
                    // The template puts a line break before a call.
                    sure = sure.strip_suffix('\n').unwrap_or(sure);
                }
                let sure = sure.len();
                said.push(Said::Text(self.held.drain(..sure).collect()));
                false
            }
            State::Call { tag: true } if !self.speech.call_tokens => {
                let Some(close) = format.close() else {
                    // One call ends where the next begins.
                    let Some(at) = self.held.find(format.open()) else { return false };
                    let rest = self.held.split_off(at);
                    let body = std::mem::replace(&mut self.held, rest);
                    self.end_call(true, &body, "", said);
                    self.state = State::Text;
                    return true;
                };
                let Some(at) = self.held.find(close) else { return false };
                let rest = self.held.split_off(at + close.len());
                let body = std::mem::replace(&mut self.held, rest);
                // A stray tag doesn't hide the call after it.
                let body = &body[..at];
                let stray = body.rfind(format.open()).unwrap_or(0);
                if stray > 0 || body.starts_with(format.open()) {
                    said.push(Said::Text(format.open().to_string() + &body[..stray]));
                    let body = &body[stray + format.open().len()..];
                    self.end_call(true, body, close, said);
                } else {
                    self.end_call(true, body, close, said);
                }
                !self.held.is_empty()
            }
            State::Call { .. } => false,
            State::Between => {
                self.held = self.held.trim_start().into();
                if self.held.is_empty() {
                    return false;
                }
                self.state = match self.is_bare_call(&self.held) {
                    true => State::Call { tag: false },
                    false => State::Text,
                };
                true
            }
        }
    }

    /// Whether a text is a call from its first character on.
    fn is_bare_call(&self, text: &str) -> bool {
        self.calls && self.speech.format.bare().is_some_and(|c| text.starts_with(c))
    }

    /// Reasoning ends: before `at` with a tag of text, or with all that is held.
    fn end_reasoning(&mut self, said: &mut Vec<Said>, at: Option<usize>) {
        let rest = at.map(|at| self.held.split_off(at).split_off(THOUGHT.len()));
        let text = std::mem::replace(&mut self.held, rest.unwrap_or_default());
        said.push(Said::Reasoning(text.trim_end().into()));
        // Line breaks between reasoning and answer are the template's, as those behind a call.
        self.state = State::Between;
    }

    fn begin_call(&mut self, said: &mut Vec<Said>) {
        let text = std::mem::take(&mut self.held);
        said.push(Said::Text(text.strip_suffix('\n').unwrap_or(&text).into()));
        self.state = State::Call { tag: true };
    }

    /// The call, or text as it was.
    fn end_call(&mut self, tag: bool, body: &str, close: &str, said: &mut Vec<Said>) {
        match self.speech.format.read(body, self.tools.as_ref()) {
            Some(calls) => {
                said.extend(calls.into_iter().map(Said::Call));
                self.state = State::Between;
            }
            None => {
                let open = if tag { self.speech.format.open() } else { "" };
                said.push(Said::Text(format!("{open}{body}{close}")));
                self.state = State::Text;
            }
        }
    }
}

/// The text less an end that may be the start of a tag.
fn without_start<'a>(text: &'a str, tag: &str) -> &'a str {
    let most = text.len().min(tag.len() - 1);
    let starts = (1..=most).rev().find(|&n| text.ends_with(&tag[..n]));
    &text[..text.len() - starts.unwrap_or(0)]
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use model::message::Role;
    use model::template::{CHATML, SpecialTokens};
    use serde_json::json;

    const OPEN: &str = "<tool_call>";
    const CLOSE: &str = "</tool_call>";

    fn speech(format: Format, tokens: bool) -> Speech {
        Speech { format, thinks: true, call_tokens: tokens, think_tokens: tokens }
    }

    fn reader(speech: Speech) -> Reader {
        let state = State::Start { thinks: speech.thinks };
        Reader { speech, calls: true, tools: None, state, held: String::new() }
    }

    /// Reads parts; those that are tags are special tokens, if the tokenizer has them.
    fn read(speech: Speech, parts: &[&str]) -> Message {
        let mut message = Message::new(Role::Assistant, "");
        let mut reader = reader(speech);
        let tags =
            [THINK, THOUGHT, "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", OPEN, CLOSE, "<end>"];
        for part in parts {
            let said = match speech.call_tokens && tags.contains(part) {
                true => reader.special(part),
                false => reader.text(part),
            };
            said.into_iter().for_each(|said| said.add_to(&mut message));
        }
        reader.finish().into_iter().for_each(|said| said.add_to(&mut message));
        message
    }

    fn call(name: &str, arguments: Value) -> ToolCall {
        ToolCall { name: name.into(), arguments }
    }

    #[test]
    fn finds_calls_however_they_are_cut() {
        let json = "\n{\"name\": \"f\", \"arguments\": {\"x\": 1}}\n";
        let parts = [
            THINK,
            "\nWell.\n",
            THOUGHT,
            "\n\nI compute.\n",
            OPEN,
            json,
            CLOSE,
            "\n",
            OPEN,
            "{\"name\": \"g\"}",
            CLOSE,
        ];
        let expected = Message {
            reasoning: "Well.".into(),
            tool_calls: vec![call("f", json!({"x": 1})), call("g", json!({}))],
            ..Message::assistant("I compute.")
        };
        assert_eq!(read(speech(Format::Tags, true), &parts), expected);
        let text = parts.concat();
        for n in 1..9 {
            let cut: Vec<String> =
                text.chars().collect::<Vec<_>>().chunks(n).map(|c| c.iter().collect()).collect();
            let cut: Vec<&str> = cut.iter().map(String::as_str).collect();
            assert_eq!(read(speech(Format::Tags, false), &cut), expected, "{n}");
        }
    }

    #[test]
    fn other_forms() {
        let weather = || vec![call("w", json!({"c": "P"}))];
        for (format, tokens, parts) in [
            (Format::Llama, true, &["{\"name\": \"w\",", " \"parameters\": {\"c\": \"P\"}}"][..]),
            (
                Format::Llama,
                true,
                &["<|python_tag|>", "{\"name\": \"w\", \"parameters\": {\"c\": \"P\"}}"],
            ),
            (
                Format::Mistral,
                true,
                &["[TOOL_CALLS]", "[{\"name\": \"w\", \"arguments\": {\"c\": \"P\"}}]"],
            ),
            (Format::Mistral, true, &["[TOOL_CALLS]", "w", "[ARGS]", "{\"c\": \"P\"}"]),
            (Format::Mistral, false, &["[TOOL_", "CALLS]w[ARGS]{\"c\": \"P\"}"]),
            (Format::Pythonic, false, &["[w(c=", "'P')]"]),
            (Format::Pythonic, false, &["<think>Hm.</think>\n", "\n[w(c='P')]"]),
            (
                Format::Tags,
                false,
                &[OPEN, OPEN, "{\"name\": \"w\", \"arguments\": {\"c\": \"P\"}}", CLOSE],
            ),
            (
                Format::Tags,
                true,
                &[OPEN, OPEN, "{\"name\": \"w\", \"arguments\": {\"c\": \"P\"}}", CLOSE],
            ),
        ] {
            assert_eq!(read(speech(format, tokens), parts).tool_calls, weather(), "{parts:?}");
        }
        let two = ["[TOOL_CALLS]", "a", "[ARGS]", "{}", "[TOOL_CALLS]", "b", "[ARGS]", "{}"];
        for tokens in [true, false] {
            assert_eq!(read(speech(Format::Mistral, tokens), &two).tool_calls.len(), 2);
        }
    }

    #[test]
    fn what_cannot_be_read_stays_text() {
        for parts in [
            &["a", OPEN, "{\"name\": ", CLOSE, "b"][..],
            &["a", OPEN, "{\"arguments\": {}}", CLOSE],
            &["a", OPEN, "{\"name\": \"f\"}"],
            &["a", OPEN, OPEN, "{\"name\": ", CLOSE],
            &[OPEN],
            &["a < b </tool"],
            &["<thin", "g>"],
            &["a\n"],
            &[],
        ] {
            for tokens in [true, false] {
                let message = read(speech(Format::Tags, tokens), parts);
                assert_eq!(
                    (message.tool_calls.len(), message.content),
                    (0, parts.concat()),
                    "{parts:?}"
                );
            }
        }
        // As tokens they are control, as characters they are text.
        let written = "as text: <tool_call>{\"name\": \"f\"}</tool_call> <think>";
        assert_eq!(read(speech(Format::Tags, true), &[written]).content, written);
        assert_eq!(read(speech(Format::Llama, true), &["{\"a\": 1}"]).content, "{\"a\": 1}");
        assert_eq!(read(speech(Format::Tags, true), &["So.", "<end>"]).content, "So.");
    }

    #[test]
    fn reasoning_that_never_ends_is_reasoning() {
        let message = read(speech(Format::Tags, false), &["<think>I ", "wonder\n"]);
        assert_eq!((&message.reasoning[..], &message.content[..]), ("I wonder", ""));
    }

    proptest::proptest! {
        /// What the template writes is read back.
        #[test]
        fn reads_what_the_template_writes(content in "[a-z<>\n |_]{0,20}", names in proptest::collection::vec("[a-z_\"<>é]{0,9}", 0..3), value in ".{0,9}") {
            let mut message = Message::assistant(content);
            for name in names {
                message.tool_calls.push(ToolCall { name, arguments: json!({value.clone(): [value.clone(), 1.5, Value::Null]}) });
            }
            // A line break at the end of the content can't be told from the template's.
            proptest::prop_assume!(message.tool_calls.is_empty() || !message.content.ends_with('\n'));
            let tokens = ["<|im_start|>", "<|im_end|>", OPEN, CLOSE].iter().zip(1..);
            let special = SpecialTokens {
                tokens: tokens.map(|(name, id)| (name.to_string(), id)).collect(),
                ..Default::default()
            };
            let template = ChatTemplate::new(CHATML, special).unwrap();
            let rendered = template.render_for_training(&[Message::user("?"), message.clone()], None).unwrap();
            let speech = Speech { thinks: false, ..speech(Format::Tags, true) };
            let mut reader = reader(speech);
            let mut said = Vec::new();
            for (piece, _) in rendered.pieces.into_iter().filter(|p| p.1) {
                said.extend(match piece {
                    Piece::Text(text) => reader.text(&text),
                    Piece::Special(name, _) => reader.special(&name),
                });
            }
            said.extend(reader.finish());
            let mut read = Message::assistant("");
            said.into_iter().for_each(|said| said.add_to(&mut read));
            proptest::prop_assert_eq!(read, message);
        }
    }
}
