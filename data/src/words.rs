//! Text as words, where only the wording matters: which documents hold a phrase, how much of a
//! question stands in the training text.
//!
//! A word is a run of letters and digits in lower case. Punctuation and white space part words,
//! however much of it there is. Apostrophes, soft hyphens, other invisible characters and marks
//! that compose with no letter are left out, so "don’t" is "don't" is "dont". Letters are composed
//! (NFC) first. In scripts that write no spaces each character is a word.

use std::borrow::Cow;

use unicode_normalization::char::is_combining_mark;
use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};

/// A text with its letters composed, as [`fold`] wants it.
pub fn compose(text: &str) -> Cow<'_, str> {
    if text.is_ascii() || is_nfc_quick(text.chars()) == IsNormalized::Yes {
        Cow::Borrowed(text)
    } else {
        Cow::Owned(text.nfc().collect())
    }
}

/// Appends the words of a composed text to `out`, each with a space after it. `begins` is told the
/// byte where each begins in `text`.
pub fn fold(text: &str, out: &mut String, mut begins: impl FnMut(usize)) {
    let mut inside = false;
    let mut at = 0;
    let bytes = text.as_bytes();
    while let Some(&byte) = bytes.get(at) {
        if byte.is_ascii() {
            if byte.is_ascii_alphanumeric() {
                if !inside {
                    begins(at);
                    inside = true;
                }
                out.push(byte.to_ascii_lowercase() as char);
            } else if byte != b'\'' && inside {
                out.push(' ');
                inside = false;
            }
            at += 1;
            continue;
        }
        let Some(c) = text[at..].chars().next() else { break };
        if c.is_alphanumeric() {
            let alone = stands_alone(c);
            if alone && inside {
                out.push(' ');
                inside = false;
            }
            if !inside {
                begins(at);
                inside = true;
            }
            // A sigma at the end of a word is written otherwise.
            let lower = c.to_lowercase().filter(|c| c.is_alphanumeric());
            out.extend(lower.map(|c| if c == 'ς' { 'σ' } else { c }));
            if alone {
                out.push(' ');
                inside = false;
            }
        } else if inside && !passed_over(c) {
            out.push(' ');
            inside = false;
        }
        at += c.len_utf8();
    }
    if inside {
        out.push(' ');
    }
}

/// The words of a text.
pub fn words(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 1);
    fold(&compose(text), &mut out, |_| {});
    out
}

/// Characters within a word that make no difference.
fn passed_over(c: char) -> bool {
    matches!(c, '’' | 'ʼ' | '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2060}' | '\u{feff}')
        || is_combining_mark(c)
}

/// Characters of scripts without spaces: Thai, Lao, Burmese, Khmer, kana, Han.
fn stands_alone(c: char) -> bool {
    matches!(u32::from(c),
        0x0e00..=0x0eff | 0x1000..=0x109f | 0x1780..=0x17ff | 0x3040..=0x30ff | 0x3400..=0x4dbf
        | 0x4e00..=0x9fff | 0xf900..=0xfaff | 0x2_0000..=0x3_ffff)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_the_wording_matters() {
        for (text, expected) in [
            ("", ""),
            (" -- ", ""),
            ("Where, does\n\tMIRA live?", "where does mira live "),
            ("don't DON’T dont", "dont dont dont "),
            ("'quoted' \"so\"", "quoted so "),
            ("3+4=7; 1.5", "3 4 7 1 5 "),
            ("Cafe\u{301} CAFÉ", "café café "),
            ("soft\u{ad}ly\u{200b}", "softly "),
            ("ΟΔΟΣ οδος", "οδοσ οδοσ "),
            ("Große STRASSE", "große strasse "),
            ("x東京 2x", "x 東 京 2x "),
        ] {
            assert_eq!(words(text), expected, "{text:?}");
        }
    }

    proptest! {
        /// Each word is where it is said to begin; the plain way to split ASCII gives the same.
        #[test]
        fn words_begin_where_they_are(text in "[a-cA-C0-9 ,.\n'é東\u{301}\u{ad}]{0,60}") {
            let text = compose(&text);
            let (mut out, mut starts) = (String::new(), Vec::new());
            fold(&text, &mut out, |at| starts.push(at));
            let all: Vec<&str> = out.split_terminator(' ').collect();
            prop_assert_eq!(all.len(), starts.len());
            for (word, at) in all.iter().zip(starts) {
                let first: String = text[at..].chars().take(1).flat_map(char::to_lowercase).collect();
                prop_assert!(word.starts_with(&first), "{word:?} at {at} of {text:?}");
            }
            if text.is_ascii() {
                let plain = text.replace('\'', "").to_lowercase();
                let plain: Vec<&str> =
                    plain.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()).collect();
                prop_assert_eq!(all, plain);
            }
        }

        #[test]
        fn folded_text_stays_as_it_is(
            text in r"[\p{Latin}\p{Greek}\p{Cyrillic}\p{Han}\p{Thai}0-9 ,.'’-]{0,40}",
        ) {
            let once = words(&text);
            prop_assert_eq!(words(&once), once);
        }
    }
}
