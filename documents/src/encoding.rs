//! Bytes of an unknown encoding to text.

use encoding_rs::{Encoding, UTF_8, UTF_16BE, UTF_16LE};

/// Control characters per thousand that a text may have at most.
const CONTROLS: usize = 10;

/// Why bytes are no text.
pub fn binary(head: &[u8]) -> Option<String> {
    if of_bom(head).is_some() || utf16(head).is_some() {
        return None;
    }
    if let Some(at) = head.iter().position(|b| *b == 0) {
        return Some(format!("not text: byte {at} is zero"));
    }
    // Erased memory, and no letter that is so frequent in any code page.
    let erased = head.iter().filter(|b| **b == 255).count();
    if erased * 2 > head.len() {
        return Some(format!("not text: {erased} of the first {} bytes are 255", head.len()));
    }
    let control = |b: &&u8| matches!(b, 1..=8 | 14..=26 | 28..=31 | 127);
    let controls = head.iter().filter(control).count();
    (controls * 1000 > head.len() * CONTROLS)
        .then(|| format!("not text: {controls} of the first {} bytes are controls", head.len()))
}

fn of_bom(head: &[u8]) -> Option<&'static Encoding> {
    Encoding::for_bom(head).map(|(encoding, _)| encoding)
}

/// UTF-16 without a mark: nearly every second byte is zero, and few of the others.
fn utf16(head: &[u8]) -> Option<&'static Encoding> {
    let head = &head[..head.len() / 2 * 2];
    if head.len() < 8 {
        return None;
    }
    let zeros = |from: usize| head.iter().skip(from).step_by(2).filter(|b| **b == 0).count();
    let (even, odd, most) = (zeros(0), zeros(1), head.len() / 2 * 3 / 4);
    match () {
        () if odd >= most && even == 0 => Some(UTF_16LE),
        () if even >= most && odd == 0 => Some(UTF_16BE),
        () => None,
    }
}

/// The encoding of a text of which this is the head (`whole`: all of it).
pub fn detect(head: &[u8], whole: bool) -> &'static Encoding {
    if let Some(encoding) = of_bom(head).or_else(|| utf16(head)) {
        return encoding;
    }
    match std::str::from_utf8(head) {
        Ok(_) => return UTF_8,
        // A character may be cut at the end.
        Err(e) if !whole && e.error_len().is_none() => return UTF_8,
        Err(_) => {}
    }
    let mut detector = chardetng::EncodingDetector::new(chardetng::Iso2022JpDetection::Allow);
    detector.feed(&head[..head.len().min(1 << 20)], true);
    detector.guess(None, chardetng::Utf8Detection::Allow)
}

/// The encoding that a page states for itself, if it does.
pub fn stated(head: &[u8]) -> Option<&'static Encoding> {
    let head = String::from_utf8_lossy(&head[..head.len().min(1024)]).to_ascii_lowercase();
    let at = head.find("charset=").map(|i| i + 8).or(head.find("encoding=").map(|i| i + 9))?;
    let label = head[at..].trim_start_matches(['"', '\'', ' ']);
    let end = label.find(['"', '\'', ' ', '>', ';', '/']).unwrap_or(label.len());
    Encoding::for_label(&label.as_bytes()[..end])
}

/// Text, without a byte order mark; what is no character is U+FFFD.
pub fn decode(bytes: Vec<u8>, encoding: &'static Encoding) -> String {
    if encoding == UTF_8 {
        let bytes = match bytes.strip_prefix(b"\xef\xbb\xbf") {
            Some(rest) => rest.to_vec(),
            None => bytes,
        };
        return String::from_utf8(bytes)
            .unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned());
    }
    encoding.decode_with_bom_removal(&bytes).0.into_owned()
}

/// A whole text of an unknown encoding.
pub fn text(bytes: Vec<u8>) -> String {
    let encoding = detect(&bytes, true);
    decode(bytes, encoding)
}

/// A page or an XML file: as it says, unless it is UTF-8 or says what can't be.
pub fn page(bytes: Vec<u8>) -> String {
    let encoding = match detect(&bytes, true) {
        guess if guess == UTF_8 || guess == UTF_16LE || guess == UTF_16BE => guess,
        guess => stated(&bytes).filter(|e| *e != UTF_8).unwrap_or(guess),
    };
    decode(bytes, encoding)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings_are_found() {
        let german = "Die Größe der Fläche übertrifft die Länge; schöne Grüße aus Köln. ".repeat(4);
        let (latin, _, _) = encoding_rs::WINDOWS_1252.encode(&german);
        assert_eq!(text(latin.into_owned()), german);
        let japanese =
            "これは日本語の文章です。文字コードを調べるための例文として使います。".repeat(4);
        for encoding in [encoding_rs::SHIFT_JIS, encoding_rs::EUC_JP] {
            assert_eq!(text(encoding.encode(&japanese).0.into_owned()), japanese);
        }
        let utf16: Vec<u8> = german.encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert_eq!(text(utf16.clone()), german);
        assert_eq!(text([b"\xff\xfe".to_vec(), utf16].concat()), german);
        assert_eq!(text(b"\xef\xbb\xbfabc".to_vec()), "abc");
        let page_bytes = b"<html><meta charset='iso-8859-2'><p>\xb1\xb6".to_vec();
        assert!(page(page_bytes).ends_with("ąś"));
        assert!(binary(b"a\0b").is_some_and(|r| r.contains("byte 1")));
        assert!(binary(&[0xff; 64]).is_some());
        assert!(binary("tab\tand\nline".as_bytes()).is_none());
    }
}
