//! The bytes of a vocabulary's tokens, and the way back from bytes to tokens.

/// Bytes by id.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    /// The bytes of token `i` are `text[ends[i - 1]..ends[i]]`.
    text: Vec<u8>,
    ends: Vec<usize>,
}

impl Tokens {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.text.extend(bytes);
        self.ends.push(self.text.len());
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn get(&self, id: u32) -> Option<&[u8]> {
        let id = id as usize;
        let end = *self.ends.get(id)?;
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        Some(&self.text[start..end])
    }
}

/// Some tokens in the order of their bytes. Four bytes a token, where a hash table of their texts
/// would take ten times that.
#[derive(Debug)]
pub(super) struct Lookup {
    ids: Vec<u32>,
    /// Where those begin that start with each byte, and the end.
    starts: Box<[u32; 257]>,
}

impl Lookup {
    /// Of these tokens; of two with the same bytes, the one with the lower id.
    pub(super) fn new(tokens: &Tokens, ids: impl Iterator<Item = u32>) -> Lookup {
        let bytes = |id: u32| tokens.get(id).unwrap_or_default();
        let mut ids: Vec<u32> = ids.filter(|&id| !bytes(id).is_empty()).collect();
        ids.sort_unstable_by(|&a, &b| bytes(a).cmp(bytes(b)).then(a.cmp(&b)));
        ids.dedup_by(|b, a| bytes(*a) == bytes(*b));
        let mut starts = Box::new([0; 257]);
        for (first, start) in starts.iter_mut().enumerate() {
            *start = ids.partition_point(|&id| usize::from(bytes(id)[0]) < first) as u32;
        }
        Lookup { ids, starts }
    }

    /// The token of these bytes.
    pub(super) fn find(&self, tokens: &Tokens, bytes: &[u8]) -> Option<u32> {
        let range = &self.ids[self.range(*bytes.first()?)];
        let at = range.binary_search_by_key(&Some(bytes), |&id| tokens.get(id)).ok()?;
        Some(range[at])
    }

    /// Every token that a text begins with, the shortest first.
    pub(super) fn prefixes(&self, tokens: &Tokens, text: &[u8], mut each: impl FnMut(u32, usize)) {
        let Some(&first) = text.first() else { return };
        let mut range = &self.ids[self.range(first)];
        let byte = |id: u32, at: usize| tokens.get(id).unwrap_or_default().get(at).copied();
        for len in 1.. {
            // Those left share `len` bytes with the text; the shortest comes first.
            let Some(&id) = range.first() else { return };
            if byte(id, len).is_none() {
                each(id, len);
                range = &range[1..];
            }
            let Some(&next) = text.get(len) else { return };
            let from = range.partition_point(|&id| byte(id, len) < Some(next));
            let to = range[from..].partition_point(|&id| byte(id, len) == Some(next));
            range = &range[from..from + to];
        }
    }

    fn range(&self, first: u8) -> std::ops::Range<usize> {
        let first = usize::from(first);
        self.starts[first] as usize..self.starts[first + 1] as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn tokens_are_found(words in prop::collection::vec("[ab\u{ff}]{0,4}", 0..30), text in "[ab\u{ff}]{0,8}") {
            let mut tokens = Tokens::default();
            words.iter().for_each(|word| tokens.push(word.as_bytes()));
            let lookup = Lookup::new(&tokens, 0..words.len() as u32);
            let id = |text: &str| words.iter().position(|word| word == text).filter(|_| !text.is_empty());
            prop_assert_eq!(lookup.find(&tokens, text.as_bytes()), id(&text).map(|id| id as u32));
            let mut found = vec![];
            lookup.prefixes(&tokens, text.as_bytes(), |id, len| found.push((id as usize, len)));
            let ends = (0..=text.len()).filter(|&end| text.is_char_boundary(end));
            let expected: Vec<_> = ends.filter_map(|end| Some((id(&text[..end])?, end))).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
