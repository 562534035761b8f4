//! What is done to a text before it is cut: Unicode's normal forms, and SentencePiece's spaces.
//!
//! SentencePiece writes a space as `▁`. Here it is the other way: a `▁` in the text or in the
//! vocabulary is a space, so that tokens hold the bytes that they stand for.

use std::borrow::Cow;

use unicode_normalization::{
    IsNormalized, UnicodeNormalization, is_nfc_quick, is_nfd_quick, is_nfkc_quick, is_nfkd_quick,
};

/// SentencePiece's space.
pub(super) const SPACE: char = '▁';

/// One change of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Canonical composition.
    Nfc,
    /// Canonical decomposition.
    Nfd,
    /// Compatibility composition.
    Nfkc,
    /// Compatibility decomposition.
    Nfkd,
    /// Small letters.
    Lowercase,
    /// A text put before it, whatever it begins with.
    Prepend(String),
    /// One text replaced by another.
    Replace(String, String),
    /// Two and more spaces become one.
    OneSpace,
    /// Words apart: white space goes, and each has one space before it.
    Words,
}

/// All of them, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Normalizer {
    pub(super) steps: Vec<Step>,
    /// Whether a `▁` is a space.
    pub(super) spaces: bool,
}

impl Normalizer {
    /// The text after all changes; borrowed if there are none.
    pub(super) fn apply<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let mut text = Cow::Borrowed(text);
        for step in &self.steps {
            if let Some(changed) = step.apply(&text) {
                text = Cow::Owned(changed);
            }
        }
        match self.spaces && text.contains(SPACE) {
            true => Cow::Owned(text.replace(SPACE, " ")),
            false => text,
        }
    }
}

impl Step {
    /// The text after the change; `None` if nothing changes.
    fn apply(&self, text: &str) -> Option<String> {
        match self {
            Step::Nfc => match nfc(text) {
                Cow::Borrowed(_) => None,
                Cow::Owned(text) => Some(text),
            },
            Step::Nfd => form(text, is_nfd_quick(text.chars()), |c| c.nfd().collect()),
            Step::Nfkc => form(text, is_nfkc_quick(text.chars()), |c| c.nfkc().collect()),
            Step::Nfkd => form(text, is_nfkd_quick(text.chars()), |c| c.nfkd().collect()),
            // Character by character: a sigma at the end of a word is one as any other.
            Step::Lowercase => Some(text.chars().flat_map(char::to_lowercase).collect()),
            Step::Prepend(prefix) => (!text.is_empty()).then(|| format!("{prefix}{text}")),
            Step::Replace(from, to) => text.contains(from.as_str()).then(|| text.replace(from, to)),
            Step::OneSpace => text.contains("  ").then(|| one_space(text)),
            Step::Words => Some(words(text)),
        }
    }
}

fn form(text: &str, quick: IsNormalized, change: impl Fn(&str) -> String) -> Option<String> {
    (!text.is_ascii() && quick != IsNormalized::Yes).then(|| change(text))
}

/// Unicode's canonical composition (NFC).
pub(super) fn nfc(text: &str) -> Cow<'_, str> {
    // Below U+0300, of which 0xcc is the first byte, every text is composed.
    if text.bytes().all(|byte| byte < 0xcc) || is_nfc_quick(text.chars()) == IsNormalized::Yes {
        Cow::Borrowed(text)
    } else {
        Cow::Owned(text.nfc().collect())
    }
}

fn one_space(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c != ' ' || !out.ends_with(' ') {
            out.push(c);
        }
    }
    out
}

fn words(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 1);
    for word in text.split_whitespace() {
        if !word.starts_with(SPACE) {
            out.push(' ');
        }
        out.push_str(word);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_go_in_order() {
        let steps = vec![Step::Prepend(" ".into()), Step::OneSpace, Step::Nfkc, Step::Lowercase];
        let normalizer = Normalizer { steps, spaces: true };
        assert_eq!(normalizer.apply("  Ａ \u{2581}É"), " a  é");
        assert_eq!(normalizer.apply(""), "");
        let replace = Step::Replace("a".into(), "bb".into());
        let normalizer = Normalizer { steps: vec![replace, Step::Nfd, Step::Nfkd], spaces: false };
        assert_eq!(normalizer.apply("aé②▁"), "bbe\u{301}2▁");
        let normalizer = Normalizer { steps: vec![Step::Words], spaces: true };
        assert_eq!(normalizer.apply("\n a\u{a0}b ▁c"), " a b c");
        let normalizer = Normalizer { steps: vec![Step::Nfc], spaces: false };
        assert!(matches!(normalizer.apply("xyz"), Cow::Borrowed("xyz")));
    }
}
