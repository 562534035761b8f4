//! The chat template: a conversation to the text, and then the tokens, that the model was trained on.
//!
//! The template is Jinja source stored with the model, as `transformers` stores it; there is one
//! renderer, for training and for inference, and text in messages never becomes a special token.

mod jinja;
mod shield;

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};

use minijinja::value::{Serde, Value as Jinja};
use serde_json::{Value, json};
use thiserror::Error;

use crate::message::{Message, Role};
use crate::tokenizer::Tokenizer;
use shield::Shield;

/// ChatML with Hermes tool calls, for the models grown here: what Qwen3's template renders when
/// there is no reasoning.
pub const CHATML: &str = include_str!("template/chatml.jinja");

/// Why a conversation can't be rendered.
#[derive(Debug, Error)]
pub enum TemplateError {
    /// The template isn't Jinja, or not the Jinja known here.
    #[error("chat template: {0}")]
    Syntax(String),
    /// The template failed or refused the conversation.
    #[error("chat template: {0}")]
    Render(String),
    /// Nothing to render.
    #[error("a conversation needs at least one message")]
    Empty,
    /// Tools aren't a list.
    #[error("tools must be a JSON array of tool definitions")]
    Tools,
    /// No character is left to stand in for those of special tokens.
    #[error("the conversation uses every private-use character of Unicode")]
    PrivateUse,
    /// What the model saw when it answered isn't what training would show it.
    #[error(
        "message {message}: the chat template renders the conversation up to this assistant's turn \
         differently when more follows, so it can't be trained on in one piece; end the conversation here"
    )]
    NotAPrefix {
        /// Index of the message.
        message: usize,
    },
    /// The model could never learn to stop.
    #[error(
        "message {message}: the chat template ends the assistant's turn without a special token"
    )]
    NoEnd {
        /// Index of the message.
        message: usize,
    },
    /// The model would learn to write what stands before an answer.
    #[error(
        "message {message}: the chat template has no generation prompt: asked for one, it doesn't begin the \
         assistant's turn (add_generation_prompt)"
    )]
    NoGenerationPrompt {
        /// Index of the message.
        message: usize,
    },
    /// The template passes over calls of tools.
    #[error("message {message}: the chat template has no words for calls of tools")]
    NoCalls {
        /// Index of the message.
        message: usize,
    },
    /// The template passes over definitions of tools.
    #[error("the chat template has no words for definitions of tools")]
    NoTools,
    /// A file next to the model can't be read.
    #[error("{path}: {reason}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// What a template has to know of the tokenizer.
#[derive(Debug, Clone, Default)]
pub struct SpecialTokens {
    /// Text and id of every special token.
    pub tokens: Vec<(String, u32)>,
    /// The template's `bos_token`; empty if there is none.
    pub bos: String,
    /// The template's `eos_token`; empty if there is none.
    pub eos: String,
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    source: String,
    jinja: jinja::Jinja,
    special: SpecialTokens,
    /// Characters that are shielded in text.
    ends: BTreeSet<char>,
    /// Private-use characters of the template itself.
    taken: BTreeSet<char>,
}

/// A part of a rendered conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Text, which never encodes to a special token.
    Text(String),
    /// A special token: its text and its id.
    Special(String, u32),
}

impl Piece {
    /// Its text, a special token's too.
    pub fn text(&self) -> &str {
        match self {
            Piece::Text(text) | Piece::Special(text, _) => text,
        }
    }

    /// Tokens as pieces: what a model said, with its special tokens told apart from text that
    /// looks like them.
    pub fn of(tokenizer: &Tokenizer, tokens: &[u32]) -> Vec<Piece> {
        let runs = tokens.chunk_by(|&a, &b| !tokenizer.is_special(a) && !tokenizer.is_special(b));
        let piece = |run: &[u32]| match run {
            &[id] if tokenizer.is_special(id) => Piece::Special(tokenizer.decode(run), id),
            text => Piece::Text(tokenizer.decode(text)),
        };
        runs.map(piece).collect()
    }
}

/// A rendered conversation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rendered {
    /// The parts in order, each with whether the model is to learn to produce it.
    pub pieces: Vec<(Piece, bool)>,
}

impl Rendered {
    /// Its ids, and for each whether the model is to learn to produce it.
    pub fn tokens(&self, tokenizer: &Tokenizer) -> (Vec<u32>, Vec<bool>) {
        let (mut tokens, mut learned) = (Vec::new(), Vec::new());
        for (piece, learn) in &self.pieces {
            match piece {
                Piece::Text(text) => tokens.extend(tokenizer.encode(text)),
                Piece::Special(_, id) => tokens.push(*id),
            }
            learned.resize(tokens.len(), *learn);
        }
        (tokens, learned)
    }

    /// The conversation as one string, for people.
    pub fn text(&self) -> String {
        self.pieces.iter().map(|(piece, _)| piece.text()).collect()
    }
}

impl ChatTemplate {
    /// Compiles a template.
    ///
    /// # Errors
    /// [`TemplateError::Syntax`].
    pub fn new(source: &str, special: SpecialTokens) -> Result<Self, TemplateError> {
        let jinja = jinja::Jinja::new(source).map_err(|e| TemplateError::Syntax(error_text(&e)))?;
        let names: Vec<String> = special.tokens.iter().map(|(text, _)| text.clone()).collect();
        let mut taken = BTreeSet::new();
        for text in [source, &special.bos, &special.eos] {
            shield::take(text, &mut taken);
        }
        Ok(ChatTemplate {
            source: source.to_string(),
            jinja,
            ends: shield::ends(&names),
            special,
            taken,
        })
    }

    /// Reads the template of a Hugging Face directory: `chat_template.jinja`, or else
    /// `tokenizer_config.json`. `tokens`: text and id of every special token. `None` if the model
    /// has no template: a base model.
    ///
    /// # Errors
    /// [`TemplateError::File`], [`TemplateError::Syntax`].
    pub fn load(
        directory: &Path,
        tokens: Vec<(String, u32)>,
    ) -> Result<Option<Self>, TemplateError> {
        let path = directory.join("tokenizer_config.json");
        let wrong = |reason: String| TemplateError::File { path: path.clone(), reason };
        let config: Value = match read(&path)? {
            Some(text) => serde_json::from_str(&text).map_err(|e| wrong(e.to_string()))?,
            None => Value::Null,
        };
        // A token is its text, or an object with its text as `content`.
        let token = |key: &str| match &config[key] {
            Value::String(text) => text.clone(),
            other => other["content"].as_str().unwrap_or_default().to_string(),
        };
        let special = SpecialTokens { tokens, bos: token("bos_token"), eos: token("eos_token") };
        if let Some(source) = read(&directory.join("chat_template.jinja"))? {
            return Self::new(&source, special).map(Some);
        }
        let source = match &config["chat_template"] {
            Value::Null => return Ok(None),
            Value::String(source) => source.as_str(),
            // Several by name, of which one is the default.
            Value::Array(named) => named
                .iter()
                .find(|t| t["name"] == "default")
                .and_then(|t| t["template"].as_str())
                .ok_or_else(|| wrong("chat_template has no template named \"default\"".into()))?,
            _ => return Err(wrong("chat_template is neither a text nor a list".into())),
        };
        Self::new(source, special).map(Some)
    }

    /// The Jinja source, to be stored with a model.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Renders a conversation. `tools`: a list of definitions in OpenAI's layout.
    /// With `add_generation_prompt` it ends where the assistant starts to speak.
    ///
    /// # Errors
    /// What the template objects to, and [`TemplateError::Empty`].
    pub fn render(
        &self,
        messages: &[Message],
        tools: Option<&Value>,
        add_generation_prompt: bool,
    ) -> Result<Rendered, TemplateError> {
        let covered = self.cover(messages, tools)?;
        let text = self.render_covered(&covered, messages.len(), add_generation_prompt)?;
        let mut rendered = Rendered::default();
        self.split(&text, &covered.shield, false, &mut rendered.pieces);
        Ok(rendered)
    }

    /// Renders a whole conversation for fine-tuning: what the assistant says, its tool calls and
    /// the token that ends its turn are to be learned, all else is given. Each assistant's turn is
    /// preceded by exactly the tokens that [`render`](Self::render) gives with a generation prompt.
    ///
    /// # Errors
    /// As `render`, [`TemplateError::NotAPrefix`], [`TemplateError::NoEnd`].
    pub fn render_for_training(
        &self,
        messages: &[Message],
        tools: Option<&Value>,
    ) -> Result<Rendered, TemplateError> {
        let covered = self.cover(messages, tools)?;
        let text = self.render_covered(&covered, messages.len(), false)?;
        let mut rendered = Rendered::default();
        let mut done = 0;
        for (i, _) in messages.iter().enumerate().filter(|(_, m)| m.role == Role::Assistant) {
            let before = self.render_covered(&covered, i, true)?;
            let turn = self.render_covered(&covered, i + 1, false)?;
            if !(text.starts_with(&turn) && turn.starts_with(&before)) || before.len() < done {
                return Err(TemplateError::NotAPrefix { message: i });
            }
            // Where a user's turn ends is where some templates' answers begin; others begin them with a special token.
            let special = self.special_in(&turn[before.len()..]).next();
            let header = special.is_some_and(|(range, _)| range.start == 0)
                && !messages[i].content.is_empty();
            if header && before == self.render_covered(&covered, i, false)? {
                return Err(TemplateError::NoGenerationPrompt { message: i });
            }
            // Whatever follows the last special token, such as a line break, is the template's.
            let end = before.len()
                + self
                    .special_in(&turn[before.len()..])
                    .last()
                    .ok_or(TemplateError::NoEnd { message: i })?
                    .0
                    .end;
            self.split(&text[done..before.len()], &covered.shield, false, &mut rendered.pieces);
            self.split(&text[before.len()..end], &covered.shield, true, &mut rendered.pieces);
            done = end;
        }
        self.check_words(messages, tools, &text)?;
        self.split(&text[done..], &covered.shield, false, &mut rendered.pieces);
        Ok(rendered)
    }

    /// Whether calls and definitions of tools leave a trace in `text`, where they are.
    fn check_words(
        &self,
        messages: &[Message],
        tools: Option<&Value>,
        text: &str,
    ) -> Result<(), TemplateError> {
        let without = |messages: &[Message], tools: Option<&Value>| {
            let covered = self.cover(messages, tools)?;
            self.render_covered(&covered, messages.len(), false)
        };
        if let Some(i) = messages.iter().position(|m| !m.tool_calls.is_empty()) {
            let mut bare = messages.to_vec();
            bare[i].tool_calls.clear();
            // A template may refuse a turn without both.
            if without(&bare, tools).is_ok_and(|bare| bare == text) {
                return Err(TemplateError::NoCalls { message: i });
            }
        }
        let some = tools.and_then(Value::as_array).is_some_and(|list| !list.is_empty());
        if some && without(messages, None).is_ok_and(|bare| bare == text) {
            return Err(TemplateError::NoTools);
        }
        Ok(())
    }

    /// Messages and tools with all their text shielded.
    fn cover(&self, messages: &[Message], tools: Option<&Value>) -> Result<Covered, TemplateError> {
        if messages.is_empty() {
            return Err(TemplateError::Empty);
        }
        if tools.is_some_and(|tools| !tools.is_array()) {
            return Err(TemplateError::Tools);
        }
        let mut taken = self.taken.clone();
        let mut bytes = self.source.len();
        let texts = json!([messages, tools]);
        shield::take_json(&texts, &mut taken);
        measure(&texts, &mut bytes);
        let shield = Shield::new(&self.ends, &taken).ok_or(TemplateError::PrivateUse)?;
        let cover = |message: &Message| {
            let mut value = json!({
                "role": message.role.as_str(),
                "content": shield.cover(&message.content),
            });
            if !message.reasoning.is_empty() {
                value["reasoning_content"] = shield.cover(&message.reasoning).into();
            }
            if !message.tool_calls.is_empty() {
                let call = |call: &crate::message::ToolCall| {
                    let (name, arguments) = (&call.name, &call.arguments);
                    json!({"type": "function", "function": {
                        "name": shield.cover(name), "arguments": shield.cover_json(arguments)
                    }})
                };
                value["tool_calls"] = message.tool_calls.iter().map(call).collect();
            }
            Jinja::from(Serde(value))
        };
        let messages = messages.iter().map(cover).collect();
        let tools = Jinja::from(Serde(tools.map(|tools| shield.cover_json(tools))));
        // Stand-ins take up to 4 bytes, and a template may well say things twice.
        Ok(Covered { messages, tools, shield, limit: (1 << 20) + 16 * bytes })
    }

    /// Renders the first `n` messages, with stand-ins.
    fn render_covered(
        &self,
        covered: &Covered,
        n: usize,
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        let variables = minijinja::context! {
            messages => Jinja::from(covered.messages[..n].to_vec()),
            tools => covered.tools.clone(),
            add_generation_prompt,
            bos_token => self.special.bos.as_str(),
            eos_token => self.special.eos.as_str(),
        };
        self.jinja
            .render(variables, covered.limit)
            .map_err(|e| TemplateError::Render(error_text(&e)))
    }

    /// The special tokens in a text with stand-ins: range, index. Leftmost first, then longest.
    fn special_in<'a>(&'a self, text: &'a str) -> impl Iterator<Item = (Range<usize>, usize)> + 'a {
        let mut at = 0;
        std::iter::from_fn(move || {
            while let Some(c) = text[at..].chars().next() {
                let longest = (self.special.tokens.iter().enumerate())
                    .filter(|(_, (token, _))| {
                        !token.trim().is_empty() && text[at..].starts_with(token.as_str())
                    })
                    .max_by_key(|(_, (token, _))| token.len());
                let start = at;
                if let Some((i, (token, _))) = longest {
                    at += token.len();
                    return Some((start..at, i));
                }
                at += c.len_utf8();
            }
            None
        })
    }

    /// Splits a text with stand-ins into pieces without.
    fn split(&self, text: &str, shield: &Shield, learned: bool, pieces: &mut Vec<(Piece, bool)>) {
        let plain = |range: Range<usize>, pieces: &mut Vec<(Piece, bool)>| {
            if !range.is_empty() {
                pieces.push((Piece::Text(shield.uncover(&text[range])), learned));
            }
        };
        let mut done = 0;
        for (range, i) in self.special_in(text) {
            plain(done..range.start, pieces);
            let (token, id) = &self.special.tokens[i];
            pieces.push((Piece::Special(token.clone(), *id), learned));
            done = range.end;
        }
        plain(done..text.len(), pieces);
    }
}

/// A conversation in which no text can be mistaken for a special token.
struct Covered {
    messages: Vec<Jinja>,
    tools: Jinja,
    shield: Shield,
    /// Bytes that it may render to.
    limit: usize,
}

/// Adds up the bytes of all strings in a JSON value.
fn measure(value: &Value, bytes: &mut usize) {
    match value {
        Value::String(text) => *bytes += text.len(),
        Value::Array(items) => items.iter().for_each(|item| measure(item, bytes)),
        Value::Object(map) => map.iter().for_each(|(key, value)| {
            *bytes += key.len();
            measure(value, bytes);
        }),
        _ => *bytes += 8,
    }
}

/// A file's text, or `None` if there is no such file.
fn read(path: &Path) -> Result<Option<String>, TemplateError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(TemplateError::File { path: path.into(), reason: e.to_string() }),
    }
}

/// An error of the template engine with its causes.
fn error_text(error: &minijinja::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text += &format!(": {inner}");
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests;
