//! Long texts to several documents, cut between paragraphs.

/// How far back a better place is looked for, bytes.
const NEAR: usize = 1 << 16;

/// The last place up to `at` where a paragraph begins; or else a line; or else a character. Not 0.
pub fn boundary(text: &str, at: usize) -> usize {
    let head = &text[..text.floor_char_boundary(at)];
    // Not too far back, or it would be another place altogether.
    let near = head.floor_char_boundary(head.len() - head.len().min(NEAR));
    let place = |mark: &str| head[near..].rfind(mark).map(|i| near + i + mark.len());
    let first = text.chars().next().map_or(0, char::len_utf8);
    place("\n\n").or_else(|| place("\n")).unwrap_or(head.len()).max(first)
}

/// The same for bytes of an encoding in which a line ends with a byte 10 and nothing else does.
pub fn boundary_of_bytes(bytes: &[u8], at: usize) -> usize {
    let head = &bytes[..at.min(bytes.len())];
    let near = head.len() - head.len().min(NEAR);
    let line = |i: usize| head[i] == b'\n';
    let paragraph = (near + 2..=head.len()).rev().find(|i| line(i - 1) && line(i - 2));
    let place = paragraph.or_else(|| (near + 1..=head.len()).rev().find(|i| line(i - 1)));
    place.unwrap_or_else(|| {
        // Between characters of UTF-8, if it is UTF-8.
        let continues = |i: &usize| bytes.get(*i).is_some_and(|b| b & 0xc0 == 0x80);
        let back = (head.len().saturating_sub(3)..=head.len()).rev().find(|i| !continues(i));
        back.filter(|at| *at > 0).unwrap_or(head.len())
    })
}

/// A text as texts of at most `most` bytes.
pub fn parts(mut text: &str, most: usize) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        let limit = text.floor_char_boundary(most);
        let at = if limit == text.len() { limit } else { boundary(text, limit) };
        let (part, rest) = text.split_at(at);
        text = rest;
        (!part.is_empty()).then_some(part)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn boundaries_are_of_characters(text in "[a€\n]{1,50}", at in 4..60usize) {
            let place = boundary(&text, at.min(text.len()));
            prop_assert!(text.is_char_boundary(place) && place > 0);
            let place = boundary_of_bytes(text.as_bytes(), at);
            prop_assert!(text.is_char_boundary(place), "{text:?} {at} {place}");
            let whole: String = parts(&text, at).collect();
            prop_assert_eq!(whole, text);
        }
    }
}
