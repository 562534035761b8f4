//! How text is cut for SentencePiece's models, which have no expression: at spaces.
//!
//! Their merges know no words, only a vocabulary; but where no token goes over a space, none can
//! be made over it, and the text falls into words that are merged one by one. It is the same, and
//! words come again.

use std::collections::HashSet;

/// Which space is put before a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Prefix {
    /// None.
    Never,
    /// Before the very start of a text, if there is none.
    First,
    /// Before every part between added tokens, if there is none.
    Always,
}

/// Where a text is cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Words {
    /// Before the first of some spaces, unless one of these characters is before it: some token
    /// has it and a space after it.
    Runs(HashSet<char>),
    /// Before every space.
    Each,
    /// Nowhere.
    Whole,
}

impl Words {
    /// The cuts that change nothing, for tokens (with spaces for `▁`) of which `space` tells
    /// whether a space alone is one.
    pub(super) fn harmless<'a>(tokens: impl Iterator<Item = &'a str>, space: bool) -> Words {
        if !space {
            return Words::Whole; // characters that are not known are fused, and it is one
        }
        let mut before = HashSet::new();
        for token in tokens {
            for (at, _) in token.match_indices(' ') {
                before.extend(token[..at].chars().next_back().filter(|&c| c != ' '));
            }
        }
        Words::Runs(before)
    }

    /// Where the piece that starts at byte `start < text.len()` ends.
    #[inline]
    pub(super) fn piece_end(&self, text: &str, start: usize) -> usize {
        let bytes = text.as_bytes();
        let spaces = (start + 1..bytes.len()).filter(|&at| bytes[at] == b' ');
        let end = match self {
            Words::Whole => None,
            Words::Each => { spaces }.next(),
            Words::Runs(over) => { spaces }.find(|&at| {
                bytes[at - 1] != b' '
                    && (over.is_empty()
                        || text[start..at].chars().next_back().is_none_or(|c| !over.contains(&c)))
            }),
        };
        end.unwrap_or(bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut<'a>(words: &Words, text: &'a str) -> Vec<&'a str> {
        let (mut pieces, mut start) = (vec![], 0);
        while start < text.len() {
            let end = words.piece_end(text, start);
            pieces.push(&text[start..end]);
            start = end;
        }
        pieces
    }

    #[test]
    fn cuts_are_where_no_token_is() {
        let words = Words::harmless(["a", " ", " b", "   ", "> <", "é ,"].into_iter(), true);
        assert_eq!(cut(&words, "  a   b> < > b é ,c"), ["  a", "   b> <", " > b", " é ,c"]);
        assert_eq!(cut(&Words::Each, "  a b"), [" ", " a", " b"]);
        assert_eq!(cut(&Words::harmless(["a"].into_iter(), false), " a b"), [" a b"]);
    }
}
