//! Added tokens: strings that stand outside the model, such as `<|im_end|>`.

use std::borrow::Cow;

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};
use unicode_general_category::{GeneralCategory, get_general_category};

use super::TokenizerError;

/// Longest content, in bytes.
const LONGEST: usize = 512;

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
    /// White space to its left is part of it.
    pub(super) lstrip: bool,
    /// White space to its right is part of it.
    pub(super) rstrip: bool,
    /// Only where no letter, number or mark is beside it.
    pub(super) single_word: bool,
    /// Just a way to write text, such as a token of four newlines: text from outside becomes it.
    /// All others are control.
    pub(super) text: bool,
}

impl AddedToken {
    /// A token that is found wherever it stands.
    pub(super) fn new(id: u32, content: String, special: bool) -> AddedToken {
        AddedToken {
            id,
            content,
            special,
            normalized: false,
            lstrip: false,
            rstrip: false,
            single_word: false,
            text: false,
        }
    }
}

/// All of them, and how to find them.
#[derive(Debug)]
pub(super) struct Added {
    /// By id.
    pub(super) tokens: Vec<AddedToken>,
    /// For templates: all tokens.
    all: Finders,
    /// For text from outside: the tokens that are text.
    text: Finders,
}

/// In the raw text, and in the normalised text between what is found there.
#[derive(Debug)]
struct Finders {
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
    tokens: Vec<AddedToken>,
}

impl Added {
    /// # Errors
    /// If a content is too long, or nothing when it is normalised.
    pub(super) fn new(
        mut tokens: Vec<AddedToken>,
        normalize: impl Fn(&str) -> Cow<'_, str>,
    ) -> Result<Added, TokenizerError> {
        tokens.sort_by_key(|token| token.id);
        if let Some(token) = tokens.iter().find(|token| token.content.len() > LONGEST) {
            let (id, len) = (token.id, token.content.len());
            let what = format!("added token {id} has {len} bytes; at most {LONGEST} are read");
            return Err(TokenizerError::Unsupported(what));
        }
        let finder = |normalized: bool, all: bool| {
            let wanted =
                |token: &&AddedToken| token.normalized == normalized && (all || token.text);
            let mine: Vec<AddedToken> = tokens.iter().filter(wanted).cloned().collect();
            let pattern = |token: &AddedToken| match normalized {
                true => normalize(&token.content).into_owned(),
                false => token.content.clone(),
            };
            Finder::new(mine.iter().map(pattern).collect(), mine)
        };
        let finders = |all| {
            Ok::<_, TokenizerError>(Finders {
                raw: finder(false, all)?,
                normalized: finder(true, all)?,
            })
        };
        Ok(Added { all: finders(true)?, text: finders(false)?, tokens })
    }

    /// An added token by its id.
    pub(super) fn get(&self, id: u32) -> Option<&AddedToken> {
        let at = self.tokens.binary_search_by_key(&id, |token| token.id).ok()?;
        Some(&self.tokens[at])
    }

    /// Cuts a text into added tokens and the normalised text between them; in text from outside
    /// (`control` is false) only those that are text are found.
    pub(super) fn split(
        &self,
        text: &str,
        control: bool,
        normalize: impl Fn(&str) -> Cow<'_, str>,
        mut each: impl FnMut(Segment<'_>),
    ) {
        let finders = if control { &self.all } else { &self.text };
        finders.raw.split(text, &mut |segment| match segment {
            Segment::Token(_) => each(segment),
            Segment::Text(text) => finders.normalized.split(&normalize(text), &mut each),
        });
    }
}

impl Finder {
    fn new(patterns: Vec<String>, tokens: Vec<AddedToken>) -> Result<Finder, TokenizerError> {
        if let Some(at) = patterns.iter().position(String::is_empty) {
            let what = format!("added token {:?} is empty when normalised", tokens[at].content);
            return Err(TokenizerError::Invalid(what));
        }
        let automaton = (!patterns.is_empty())
            .then(|| {
                AhoCorasick::builder()
                    .match_kind(MatchKind::LeftmostLongest)
                    // Not a full table, which takes a kilobyte for each byte of a pattern.
                    .kind(Some(AhoCorasickKind::ContiguousNFA))
                    .build(&patterns)
            })
            .transpose()
            .map_err(|error| TokenizerError::Invalid(format!("added tokens: {error}")))?;
        Ok(Finder { automaton, tokens })
    }

    fn split(&self, text: &str, each: &mut dyn FnMut(Segment<'_>)) {
        let mut done = 0;
        for found in self.automaton.iter().flat_map(|automaton| automaton.find_iter(text)) {
            let token = &self.tokens[found.pattern().as_usize()];
            let (mut start, mut end) = (found.start(), found.end());
            if start < done {
                continue; // white space that went with the token before
            }
            let (before, after) = (&text[done..start], &text[end..]);
            if token.single_word
                && (text[..start].chars().next_back().is_some_and(is_word)
                    || after.chars().next().is_some_and(is_word))
            {
                continue;
            }
            if token.lstrip {
                start = done + before.trim_end().len();
            }
            if token.rstrip {
                end += after.len() - after.trim_start().len();
            }
            if done < start {
                each(Segment::Text(&text[done..start]));
            }
            each(Segment::Token(token.id));
            done = end;
        }
        if done < text.len() {
            each(Segment::Text(&text[done..]));
        }
    }
}

/// `\w`
fn is_word(c: char) -> bool {
    use GeneralCategory::*;
    c.is_alphanumeric()
        || matches!(c, '\u{200c}' | '\u{200d}')
        || matches!(
            get_general_category(c),
            NonspacingMark | SpacingMark | EnclosingMark | ConnectorPunctuation
        )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn white_space_and_words_beside_them() {
        let token = |id, content: &str| AddedToken::new(id, content.into(), true);
        let tokens = vec![
            AddedToken { lstrip: true, ..token(1, "<l>") },
            AddedToken { rstrip: true, ..token(2, "<r>") },
            AddedToken { single_word: true, ..token(3, "one") },
            AddedToken { text: true, ..token(4, "\n\n") },
        ];
        let added = Added::new(tokens, |text| text.into()).unwrap();
        let split = |text: &str, control| {
            let mut parts = String::new();
            added.split(
                text,
                control,
                |text| text.into(),
                |segment| match segment {
                    Segment::Token(id) => parts += &format!("[{id}]"),
                    Segment::Text(text) => parts += text,
                },
            );
            parts
        };
        assert_eq!(split("a <l> <r> <l>b", true), "a[1] [2][1]b");
        assert_eq!(
            split("one, one two_one onerous e\u{301}one", true),
            "[3], [3] two_one onerous e\u{301}one"
        );
        assert_eq!(split("<r>\n\n\n\n\nb <l>\n\n", true), "[2]b[1][4]");
        assert_eq!(split("<l>\n\n\n", false), "<l>[4]\n");
    }
}
