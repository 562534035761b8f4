//! Added tokens: strings that stand outside the model, such as `<|im_end|>`.

use std::borrow::Cow;

use aho_corasick::{AhoCorasick, MatchKind};

use super::TokenizerError;

/// One added token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AddedToken {
    pub(super) id: u32,
    pub(super) content: String,
    /// Looked for in the normalised text instead of the raw one.
    pub(super) normalized: bool,
    /// Left out by programs that "skip special tokens" when they decode. Those that programs read
    /// in the answer, such as `<tool_call>`, are not.
    pub(super) special: bool,
}

/// All of them, and how to find them.
#[derive(Debug)]
pub(super) struct Added {
    /// By id.
    pub(super) tokens: Vec<AddedToken>,
    raw: Finder,
    normalized: Finder,
}

/// A part of a text.
pub(super) enum Segment<'a> {
    /// An added token.
    Token(u32),
    /// Normalised text between them.
    Text(&'a str),
}

#[derive(Debug)]
struct Finder {
    automaton: Option<AhoCorasick>,
    /// Of the automaton's patterns.
    ids: Vec<u32>,
}

impl Added {
    /// # Errors
    /// If the contents are too long for an automaton.
    pub(super) fn new(
        mut tokens: Vec<AddedToken>,
        normalize: impl Fn(&str) -> Cow<'_, str>,
    ) -> Result<Added, TokenizerError> {
        tokens.sort_by_key(|token| token.id);
        let finder = |normalized: bool| {
            let mine = || tokens.iter().filter(move |token| token.normalized == normalized);
            let text =
                |content| if normalized { normalize(content) } else { Cow::Borrowed(content) };
            let patterns = mine().map(|token| text(token.content.as_str()).into_owned());
            Finder::new(patterns.collect(), mine().map(|token| token.id).collect())
        };
        Ok(Added { raw: finder(false)?, normalized: finder(true)?, tokens })
    }

    /// Whether an id is an added token's.
    pub(super) fn has(&self, id: u32) -> bool {
        self.tokens.binary_search_by_key(&id, |token| token.id).is_ok()
    }

    /// Cuts a text into added tokens and the normalised text between them.
    pub(super) fn split(
        &self,
        text: &str,
        normalize: impl Fn(&str) -> Cow<'_, str>,
        mut each: impl FnMut(Segment<'_>),
    ) {
        self.raw.split(text, &mut |segment| match segment {
            Segment::Token(_) => each(segment),
            Segment::Text(text) => self.normalized.split(&normalize(text), &mut each),
        });
    }
}

impl Finder {
    fn new(patterns: Vec<String>, ids: Vec<u32>) -> Result<Finder, TokenizerError> {
        let automaton = (!patterns.is_empty())
            .then(|| AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(&patterns))
            .transpose()
            .map_err(|error| TokenizerError::Invalid(format!("added tokens: {error}")))?;
        Ok(Finder { automaton, ids })
    }

    fn split(&self, text: &str, each: &mut dyn FnMut(Segment<'_>)) {
        let mut start = 0;
        for found in self.automaton.iter().flat_map(|automaton| automaton.find_iter(text)) {
            if start < found.start() {
                each(Segment::Text(&text[start..found.start()]));
            }
            each(Segment::Token(self.ids[found.pattern().as_usize()]));
            start = found.end();
        }
        if start < text.len() {
            each(Segment::Text(&text[start..]));
        }
    }
}
