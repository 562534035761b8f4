//! Personal data: addresses, phone and card numbers, keys.

use serde::{Deserialize, Serialize};

/// What is done with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Personal {
    /// It stays.
    #[default]
    Keep,
    /// A word like `[mail]` stands in its place.
    Mask,
    /// The document is dropped.
    Drop,
}

/// A find: its place, and what it is.
pub type Find = (std::ops::Range<usize>, &'static str);

/// Beginnings of keys of well-known services, and how many characters follow at least.
const KEYS: &[(&str, usize)] = &[
    ("AKIA", 16),
    ("ASIA", 16),
    ("AIza", 35),
    ("ghp_", 30),
    ("gho_", 30),
    ("github_pat_", 30),
    ("glpat-", 20),
    ("sk-", 32),
    ("sk_live_", 20),
    ("xoxb-", 20),
    ("xoxp-", 20),
    ("eyJhbGciOi", 40),
];

/// Finds all of it, in order.
pub fn find(text: &str) -> Vec<Find> {
    let bytes = text.as_bytes();
    let (mut finds, mut at): (Vec<Find>, usize) = (Vec::new(), 0);
    while at < bytes.len() {
        let fresh = at == 0 || !bytes[at - 1].is_ascii_alphanumeric();
        let found = match bytes[at] {
            b'@' => mail(bytes, at),
            b'0'..=b'9' | b'+' | b'(' if fresh => number(bytes, at),
            b'A' | b'g' | b's' | b'x' | b'e' if fresh => key(bytes, at),
            b'-' if bytes[at..].starts_with(b"-----BEGIN ") => block(text, at),
            _ => None,
        };
        match found {
            Some((range, what)) => {
                at = range.end;
                let start = range.start.max(finds.last().map_or(0, |f| f.0.end));
                finds.push((start..at, what));
            }
            None => at += 1,
        }
    }
    finds
}

/// A text with words in the place of what was found.
pub fn mask(text: &str, finds: &[Find]) -> String {
    let (mut masked, mut at) = (String::with_capacity(text.len()), 0);
    for (range, what) in finds {
        masked += &text[at..range.start];
        masked += what;
        at = range.end;
    }
    masked + &text[at..]
}

fn mail(bytes: &[u8], at: usize) -> Option<Find> {
    let local =
        |b: &&u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'%' | b'+' | b'-');
    let before = bytes[..at].iter().rev().take(64).take_while(local).count();
    let host = |b: &&u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-');
    let after = bytes[at + 1..].iter().take(253).take_while(host).count();
    let host = bytes[at + 1..at + 1 + after].trim_ascii_end();
    let host = host.strip_suffix(b".").unwrap_or(host);
    let dot = host.iter().rposition(|b| *b == b'.')?;
    let top = &host[dot + 1..];
    let real = before > 0 && dot > 0 && top.len() >= 2 && top.iter().all(u8::is_ascii_alphabetic);
    real.then(|| (at - before..at + 1 + host.len(), "[mail]"))
}

/// Numbers of cards, phones and machines.
fn number(bytes: &[u8], at: usize) -> Option<Find> {
    let part = |b: &&u8| b.is_ascii_digit() || matches!(b, b' ' | b'-' | b'.' | b'(' | b')' | b'+');
    let length = bytes[at..].iter().take(24).take_while(part).count();
    let run = &bytes[at..at + length];
    let end = run.iter().rposition(u8::is_ascii_digit)? + 1;
    let run = &run[..end];
    // A longer number, or a word.
    if bytes.get(at + end).is_some_and(u8::is_ascii_alphanumeric) {
        return None;
    }
    let digits: Vec<u8> = run.iter().filter(|b| b.is_ascii_digit()).map(|b| b - b'0').collect();
    let groups: Vec<usize> =
        run.split(|b| !b.is_ascii_digit()).map(<[u8]>::len).filter(|n| *n > 0).collect();
    let dotted = run.split(|b| *b == b'.');
    let machine = groups.len() == 4
        && dotted.clone().count() == 4
        && dotted
            .clone()
            .all(|p| matches!(std::str::from_utf8(p).map(str::parse::<u8>), Ok(Ok(_))));
    if machine {
        // Private, loopback and the like say nothing of anybody; small numbers are versions.
        let mut parts = dotted.map(digits_of);
        let first = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
        let small = first.0 < 16 && first.1 < 16 && parts.all(|p| p < 16);
        let private = small
            || matches!(
                first,
                (0 | 10 | 127 | 224.., _) | (192, 168) | (172, 16..=31) | (169, 254)
            );
        return (!private).then(|| (at..at + end, "[ip]"));
    }
    if run.contains(&b'.') && !run.starts_with(b"+") {
        return None;
    }
    let card = (13..=19).contains(&digits.len())
        && (groups.len() == 1 || groups.iter().all(|n| (3..=7).contains(n)))
        && matches!(digits[0], 3..=6)
        && luhn(&digits);
    if card && !run.contains(&b'(') {
        return Some((at..at + end, "[card]"));
    }
    let international =
        run[0] == b'+' && (8..=15).contains(&digits.len()) && !run[1..].contains(&b'+');
    let american =
        digits.len() == 10 && groups == [3, 3, 4] && !run.contains(&b'+') && digits[0] > 1;
    (international || american).then(|| (at..at + end, "[phone]"))
}

fn digits_of(part: &[u8]) -> u32 {
    part.iter().fold(0, |n, b| n * 10 + u32::from(b.wrapping_sub(b'0')))
}

/// The check of card numbers (ISO/IEC 7812-1, annex B).
fn luhn(digits: &[u8]) -> bool {
    let doubled = |(i, d): (usize, &u8)| match (i % 2, *d) {
        (1, d) if d > 4 => u32::from(2 * d - 9),
        (1, d) => u32::from(2 * d),
        (_, d) => u32::from(d),
    };
    digits.iter().rev().enumerate().map(doubled).sum::<u32>() % 10 == 0
}

fn key(bytes: &[u8], at: usize) -> Option<Find> {
    let (start, least) =
        KEYS.iter().find(|(start, _)| bytes[at..].starts_with(start.as_bytes()))?;
    let rest = &bytes[at + start.len()..];
    let part = |b: &&u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    let length = rest.iter().take(4096).take_while(part).count();
    let varied = rest[..length].iter().any(u8::is_ascii_digit);
    (length >= *least && varied).then(|| (at..at + start.len() + length, "[key]"))
}

/// A private key between its lines.
fn block(text: &str, at: usize) -> Option<Find> {
    let head = text[at..].lines().next()?;
    if !head.contains("PRIVATE KEY") {
        return None;
    }
    let end = text[at + 11..].find("-----END ").map(|i| at + 11 + i)?;
    let line = text[end..].find('\n').map_or(text.len(), |i| end + i);
    Some((at..line, "[key]"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn personal_data_is_found_and_other_numbers_are_not() {
        let masked = |text: &str| mask(text, &find(text));
        for (text, want) in [
            ("Write to ann.b@example.co.uk.", "Write to [mail]."),
            ("call +49 30 1234567 now", "call [phone] now"),
            ("(555) 123-4567, 555-123-4567", "[phone], [phone]"),
            ("card 4111 1111 1111 1111!", "card [card]!"),
            ("at 93.184.216.34 and 192.168.1.1", "at [ip] and 192.168.1.1"),
            ("AKIAIOSFODNN7EXAMPLE", "[key]"),
            (
                "x -----BEGIN RSA PRIVATE KEY-----\nMII\n-----END RSA PRIVATE KEY-----\ny",
                "x [key]\ny",
            ),
        ] {
            assert_eq!(masked(text), want);
        }
        for text in [
            "In 1984-1985 there were 1 234 567 of 3.14159265358979",
            "2024-05-01 10:00:00, ISBN 978-3-16-148410-0",
            "version 1.2.3.4, 4111 1111 1111 1112, a @ b, @home, x@y",
            "sk-learn and AKIA, for(i=0;i<10;i++)",
        ] {
            assert_eq!(masked(text), text);
        }
    }
}
