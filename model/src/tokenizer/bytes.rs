//! How a vocabulary writes bytes: GPT-2's table of one printable character for each.

/// The character that stands for each byte: itself where it is printable and not a space, else
/// the next one from U+0100 on.
const CHARS: [char; 256] = {
    let mut table = ['\0'; 256];
    let (mut byte, mut stand_in) = (0, 0x100);
    while byte < 256 {
        let code = if printable(byte as u8) {
            byte as u32
        } else {
            stand_in += 1;
            stand_in - 1
        };
        table[byte] = match char::from_u32(code) {
            Some(c) => c,
            None => '\0',
        };
        byte += 1;
    }
    table
};

const fn printable(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff)
}

/// The 256 bytes in the order of their characters, in which GPT-2, Qwen and ours number them.
pub(super) fn alphabet() -> impl Iterator<Item = u8> {
    let of = |keep: bool| (0..=255).filter(move |&byte| printable(byte) == keep);
    of(true).chain(of(false))
}

/// Bytes as the vocabulary writes them.
pub(super) fn to_text(bytes: &[u8]) -> String {
    bytes.iter().map(|&byte| CHARS[byte as usize]).collect()
}

/// The bytes that a vocabulary's text stands for; `None` if a character stands for none.
pub(super) fn from_text(text: &str) -> Option<Vec<u8>> {
    text.chars()
        .map(|c| match c {
            '\0'..='\u{ff}' => printable(c as u8).then_some(c as u8),
            _ => CHARS.iter().position(|&x| x == c).map(|byte| byte as u8),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_its_character() {
        let all: Vec<u8> = alphabet().collect();
        assert_eq!(all.len(), 256);
        assert_eq!(from_text(&to_text(&all)), Some(all.clone()));
        assert_eq!(to_text(&all[..3]), "!\"#");
        assert_eq!(to_text(b" a\n\0\xad\x7f"), "ĠaĊĀŃġ"); // as in GPT-2's vocabulary
        let mut text: Vec<char> = to_text(&all).chars().collect();
        assert!(text.is_sorted());
        text.dedup();
        assert_eq!(text.len(), 256);
        assert_eq!(from_text("a b"), None);
        assert_eq!(from_text("中"), None);
    }
}
