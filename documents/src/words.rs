//! Words of a text and their hashes, which files may hold: the same in every version.

/// A token: a word, or a sign that stands by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token<'a> {
    /// As written.
    pub text: &'a str,
    /// Whether it has a letter or a digit.
    pub word: bool,
}

/// Tokens of a text. A word is letters and digits, with apostrophes and hyphens inside.
pub fn tokens(text: &str) -> impl Iterator<Item = Token<'_>> {
    let bytes = text.as_bytes();
    let mut at = 0;
    std::iter::from_fn(move || {
        loop {
            let first = char_at(text, at)?;
            if first.is_whitespace() {
                at += first.len_utf8();
                continue;
            }
            let start = at;
            at += first.len_utf8();
            let word = first.is_alphanumeric() || first == '_';
            while word && at < bytes.len() {
                let b = bytes[at];
                if b.is_ascii_alphanumeric() || b == b'_' {
                    at += 1;
                } else if b < 128 {
                    let inside = matches!(b, b'\'' | b'-')
                        && char_at(text, at + 1).is_some_and(char::is_alphanumeric);
                    if !inside {
                        break;
                    }
                    at += 1;
                } else {
                    match char_at(text, at) {
                        Some(c) if c.is_alphanumeric() || mark(c) => at += c.len_utf8(),
                        Some('’') if char_at(text, at + 3).is_some_and(char::is_alphanumeric) => {
                            at += 3;
                        }
                        _ => break,
                    }
                }
            }
            return Some(Token { text: &text[start..at], word });
        }
    })
}

/// The character that begins at a byte.
fn char_at(text: &str, at: usize) -> Option<char> {
    match text.as_bytes().get(at)? {
        b if *b < 128 => Some(char::from(*b)),
        _ => text[at..].chars().next(),
    }
}

/// Marks that combine with letters: accents, and vowels of Indic scripts.
fn mark(c: char) -> bool {
    matches!(c as u32, 0x300..=0x36f | 0x900..=0xdff | 0x200c..=0x200d)
}

const K: u64 = 0x9e37_79b9_7f4a_7c15;

/// Mixes two numbers: both halves of their product.
pub fn mix(a: u64, b: u64) -> u64 {
    let product = u128::from(a ^ K) * u128::from(b ^ 0xd6e8_feb8_6659_fd93);
    (product as u64) ^ (product >> 64) as u64
}

/// A hash of bytes. Not against adversaries.
pub fn hash(bytes: &[u8]) -> u64 {
    let mut hash = K ^ bytes.len() as u64;
    let mut chunks = bytes.chunks_exact(8);
    for chunk in chunks.by_ref() {
        hash = mix(hash, chunk.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)));
    }
    mix(hash, chunks.remainder().iter().fold(1, |n, b| n << 8 | u64::from(*b)))
}

/// A hash of a word in small letters.
pub fn hash_small(word: &str) -> u64 {
    let mut small = [0; 64];
    let bytes = word.as_bytes();
    if bytes.is_ascii() && bytes.len() <= small.len() {
        let small = &mut small[..bytes.len()];
        small.copy_from_slice(bytes);
        small.make_ascii_lowercase();
        hash(small)
    } else {
        hash(word.to_lowercase().as_bytes())
    }
}

/// Hashes of all runs of `n` words, given the words' hashes.
pub fn runs(words: &[u64], n: usize) -> impl Iterator<Item = u64> + '_ {
    words.windows(n.max(1)).map(move |run| run.iter().fold(n as u64, |h, w| mix(h, *w)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_signs() {
        let all: Vec<_> =
            tokens("Don't stop—it's well-known: naïve (x_1)… ’t").map(|t| t.text).collect();
        let want = [
            "Don't",
            "stop",
            "—",
            "it's",
            "well-known",
            ":",
            "naïve",
            "(",
            "x_1",
            ")",
            "…",
            "’",
            "t",
        ];
        assert_eq!(all, want);
        assert_eq!(hash_small("NAÏVE"), hash_small("naïve"));
        // Kept in files: never to change.
        assert_eq!(hash(b"homegrown"), hash_small("HomeGrown"));
        assert_ne!(hash(b"a"), hash(b"a\0"));
        // Each word of a run counts.
        let run = |words: &[u64]| runs(words, 3).next();
        let all =
            [run(&[1, 2, 3]), run(&[4, 2, 3]), run(&[1, 4, 3]), run(&[1, 2, 4]), run(&[2, 1, 3])];
        assert!((1..5).all(|i| !all[..i].contains(&all[i])));
    }
}
