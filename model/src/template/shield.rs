//! Keeps text from becoming control: "Text is never control" in ARCHITECTURE.md.
//!
//! A special token is recognised in a rendered template by its characters, so text that contains
//! `<|im_end|>`, or pieces that a template trims and joins into it, would end a turn. Before
//! rendering, every character of a text that can start or end a special token is replaced by a
//! stand-in: a private-use character that occurs nowhere in the conversation. Afterwards special
//! tokens are looked for, of which both ends must then be the template's own, and only then the
//! stand-ins become what they stood for.

use std::collections::BTreeSet;

use serde_json::Value;

/// The stand-ins of one conversation.
#[derive(Debug)]
pub(super) struct Shield {
    /// Character, stand-in.
    pairs: Vec<(char, char)>,
}

impl Shield {
    /// Stand-ins for `ends` (see [`ends`]) that are not among the characters `taken`.
    /// `None` if text and template use up all 137,468 private-use characters.
    pub(super) fn new(ends: &BTreeSet<char>, taken: &BTreeSet<char>) -> Option<Self> {
        let private = ('\u{e000}'..='\u{f8ff}')
            .chain('\u{f0000}'..='\u{ffffd}')
            .chain('\u{100000}'..='\u{10fffd}');
        let mut free = private.filter(|c| !taken.contains(c));
        let pairs = ends.iter().map(|&c| Some((c, free.next()?))).collect::<Option<_>>()?;
        Some(Shield { pairs })
    }

    /// The text with stand-ins.
    pub(super) fn cover(&self, text: &str) -> String {
        let stand_in = |c| self.pairs.iter().find(|p| p.0 == c).map_or(c, |p| p.1);
        text.chars().map(stand_in).collect()
    }

    /// The text without stand-ins.
    pub(super) fn uncover(&self, text: &str) -> String {
        let original = |c| self.pairs.iter().find(|p| p.1 == c).map_or(c, |p| p.0);
        text.chars().map(original).collect()
    }

    /// All strings in a JSON value, keys too, with stand-ins.
    pub(super) fn cover_json(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.cover(text)),
            Value::Array(items) => items.iter().map(|item| self.cover_json(item)).collect(),
            Value::Object(map) => {
                map.iter().map(|(k, v)| (self.cover(k), self.cover_json(v))).collect()
            }
            other => other.clone(),
        }
    }
}

/// The characters that start or end one of the special tokens. White space is left alone: templates
/// trim it, and no special token depends on it.
pub(super) fn ends(special: &[String]) -> BTreeSet<char> {
    special
        .iter()
        .flat_map(|token| {
            let token = token.trim();
            token.chars().next().into_iter().chain(token.chars().next_back())
        })
        .collect()
}

/// Adds the private-use characters of a text to `taken`.
pub(super) fn take(text: &str, taken: &mut BTreeSet<char>) {
    taken.extend(text.chars().filter(
        |c| matches!(c, '\u{e000}'..='\u{f8ff}' | '\u{f0000}'..='\u{ffffd}' | '\u{100000}'..='\u{10fffd}'),
    ));
}

/// Adds the private-use characters of all strings in a JSON value to `taken`.
pub(super) fn take_json(value: &Value, taken: &mut BTreeSet<char>) {
    match value {
        Value::String(text) => take(text, taken),
        Value::Array(items) => items.iter().for_each(|item| take_json(item, taken)),
        Value::Object(map) => map.iter().for_each(|(k, v)| {
            take(k, taken);
            take_json(v, taken);
        }),
        _ => {}
    }
}
