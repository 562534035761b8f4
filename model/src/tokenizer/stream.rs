//! Decoding token by token.

use super::Tokenizer;

/// Gives out text as tokens come, and holds back the bytes of a character that is not complete.
/// All it gives out, one after another, is [`Tokenizer::decode`] of all ids.
#[derive(Clone, Debug, Default)]
pub struct DecodeStream {
    held: Vec<u8>,
    /// Whether a byte has come.
    started: bool,
}

impl DecodeStream {
    /// A stream at its start.
    pub fn new() -> DecodeStream {
        DecodeStream::default()
    }

    /// The text that a token completes; may be empty.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> String {
        let mut bytes = tokenizer.token_bytes(id).unwrap_or_default();
        if !self.started && !bytes.is_empty() {
            self.started = true;
            bytes = tokenizer.without_prefix(bytes);
        }
        self.push_bytes(bytes)
    }

    fn push_bytes(&mut self, bytes: &[u8]) -> String {
        self.held.extend(bytes);
        let mut text = String::new();
        let mut done = 0;
        loop {
            let (valid, bad) = match std::str::from_utf8(&self.held[done..]) {
                Ok(all) => (all, None),
                Err(error) => {
                    let end = done + error.valid_up_to();
                    let valid = std::str::from_utf8(&self.held[done..end]).unwrap_or_default();
                    (valid, Some(error.error_len()))
                }
            };
            text.push_str(valid);
            done += valid.len();
            match bad {
                Some(Some(len)) => {
                    text.push('\u{fffd}');
                    done += len;
                }
                // The end, or the start of a character that may yet be completed.
                None | Some(None) => break,
            }
        }
        self.held.drain(..done);
        text
    }

    /// What is still held back when no more tokens come; the stream is at its start again.
    pub fn finish(&mut self) -> String {
        self.started = false;
        String::from_utf8_lossy(&std::mem::take(&mut self.held)).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_cuts_give_the_lossy_whole(bytes in prop::collection::vec(prop_oneof![
                any::<u8>(), Just(0xf0u8), Just(0x9fu8), Just(0x98u8), Just(0x80u8), Just(b'a')], 0..40),
            cuts in prop::collection::vec(0usize..6, 0..20)) {
            let (mut stream, mut text, mut rest) = (DecodeStream::new(), String::new(), &bytes[..]);
            for cut in cuts {
                let (part, more) = rest.split_at(cut.min(rest.len()));
                text += &stream.push_bytes(part);
                rest = more;
            }
            text += &stream.push_bytes(rest);
            text += &stream.finish();
            prop_assert_eq!(text, String::from_utf8_lossy(&bytes));
        }
    }

    #[test]
    fn text_comes_as_soon_as_it_is_whole() {
        let mut stream = DecodeStream::new();
        let smile = "a😀".as_bytes();
        assert_eq!(stream.push_bytes(&smile[..3]), "a");
        assert_eq!(stream.push_bytes(&smile[3..]), "😀");
        assert_eq!(stream.push_bytes(&smile[1..3]), "");
        assert_eq!(stream.push_bytes(b"b"), "\u{fffd}b");
        assert_eq!(stream.finish(), "");
    }
}
