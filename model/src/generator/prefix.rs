//! Keys and values that are there already, for sequences that begin alike: the next turn of a conversation,
//! questions behind the same examples, many behind the same instructions.
//!
//! Those of finished sequences are looked through one by one, as far as each agrees: there are at most [`ENTRIES`] of them. A
//! radix tree would find them sooner, for more to keep in order.

use std::collections::VecDeque;

use compute::kv::{KvPages, KvSequence, PAGE};

/// Most sequences that are remembered.
const ENTRIES: usize = 256;

/// What sequences have to have in common beside their tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Salt {
    pub(super) owner: u64,
    pub(super) adapter: usize,
}

/// A sequence of the same salt that is being computed.
pub(super) struct Running<'a> {
    pub(super) tokens: &'a [u32],
    pub(super) kv: &'a KvSequence,
}

/// Tokens, and their keys and values.
struct Entry {
    salt: Salt,
    tokens: Vec<u32>,
    kv: KvSequence,
}

/// Finished sequences, the one used longest ago first.
#[derive(Default)]
pub(super) struct Prefixes {
    entries: VecDeque<Entry>,
}

impl Prefixes {
    /// Remembers a sequence whose first `kv.len` tokens are in its pages.
    pub(super) fn keep(
        &mut self,
        pages: &mut KvPages,
        salt: Salt,
        mut tokens: Vec<u32>,
        mut kv: KvSequence,
    ) {
        tokens.truncate(kv.len);
        for page in kv.pages.drain(kv.len.div_ceil(PAGE)..) {
            release(pages, &KvSequence { pages: vec![page], len: 0 });
        }
        // What it continues isn't needed any more.
        let mut i = 0;
        while i < self.entries.len() {
            if self.entries[i].salt == salt && tokens.starts_with(&self.entries[i].tokens) {
                self.drop_at(pages, i);
            } else {
                i += 1;
            }
        }
        self.entries.push_back(Entry { salt, tokens, kv });
        if self.entries.len() > ENTRIES {
            self.drop_at(pages, 0);
        }
    }

    /// Pages for `capacity` tokens that begin with `prompt`. Whole pages of the longest beginning
    /// known are shared and the last one, which will be written to, is copied. At least the last
    /// token of the prompt is left to compute, for its logits. Forgets sequences to make room;
    /// `None` if there still is none, or if it is better to wait: much of the prompt is just being computed.
    pub(super) fn open<'a>(
        &mut self,
        pages: &mut KvPages,
        salt: Salt,
        prompt: &[u32],
        capacity: usize,
        running: impl Iterator<Item = Running<'a>>,
    ) -> Option<KvSequence> {
        let prompt = &prompt[..prompt.len().saturating_sub(1)];
        let common = |tokens: &[u32]| prompt.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        let finished = (0..self.entries.len()).filter(|&i| self.entries[i].salt == salt);
        let finished = finished.map(|i| (common(&self.entries[i].tokens), i)).max();
        let known = finished.map_or(0, |(len, _)| len);
        let (mut computed, mut coming) = (None, 0);
        for Running { tokens, kv } in running {
            let len = common(tokens);
            coming = coming.max(len);
            let now = len.min(kv.len);
            if now > computed.map_or(known, |(len, _)| len) {
                computed = Some((now, kv));
            }
        }
        let mut kv = KvSequence { len: computed.map_or(known, |(len, _)| len), pages: Vec::new() };
        if coming > kv.len + PAGE {
            return None;
        }
        let whole = kv.len / PAGE;
        let source = match (computed, finished) {
            (Some((_, kv)), _) => Some(&kv.pages),
            (None, Some((_, i))) => {
                if let Some(entry) = self.entries.remove(i) {
                    self.entries.push_back(entry); // used last
                }
                self.entries.back().map(|entry| &entry.kv.pages)
            }
            (None, None) => None,
        };
        let rest = source.filter(|_| !kv.len.is_multiple_of(PAGE)).map(|source| source[whole]);
        for &page in source.map_or(&[][..], |source| &source[..whole]) {
            let retained = pages.retain(page);
            debug_assert!(retained.is_ok(), "{retained:?}");
            kv.pages.push(page);
        }
        let needed = capacity.div_ceil(PAGE) - kv.pages.len();
        let kept = usize::from(computed.is_none() && finished.is_some());
        while pages.free_pages() < needed && self.entries.len() > kept {
            self.drop_at(pages, 0);
        }
        match rest.map(|page| pages.copy_page(page)) {
            Some(Ok(copy)) => kv.pages.push(copy),
            Some(Err(_)) => kv.len -= kv.len % PAGE, // no room for both
            None => {}
        }
        let needed = capacity.div_ceil(PAGE) - kv.pages.len();
        while pages.free_pages() < needed && !self.entries.is_empty() {
            self.drop_at(pages, 0);
        }
        if pages.free_pages() < needed {
            release(pages, &kv);
            return None;
        }
        kv.pages.extend((0..needed).map_while(|_| pages.allocate()));
        Some(kv)
    }

    fn drop_at(&mut self, pages: &mut KvPages, i: usize) {
        if let Some(entry) = self.entries.remove(i) {
            release(pages, &entry.kv);
        }
    }
}

/// Gives a sequence's pages back.
pub(super) fn release(pages: &mut KvPages, kv: &KvSequence) {
    for &page in &kv.pages {
        let released = pages.release(page);
        debug_assert!(released.is_ok(), "{released:?}");
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use compute::kv::KvType;

    use super::*;

    fn sequence(seed: u32, len: usize) -> Vec<u32> {
        (0..len as u32).map(|i| i * seed).collect()
    }

    fn open(
        prefixes: &mut Prefixes,
        pages: &mut KvPages,
        prompt: &[u32],
        capacity: usize,
    ) -> Option<KvSequence> {
        prefixes.open(pages, Salt::default(), prompt, capacity, std::iter::empty())
    }

    #[test]
    fn beginnings_are_shared_and_pages_come_back() {
        let mut pages = KvPages::new(KvType::F32, 1, 1, 1, 8).unwrap();
        let mut prefixes = Prefixes::default();
        let first = sequence(1, 150);
        let mut kv = open(&mut prefixes, &mut pages, &first, 200).unwrap();
        assert_eq!((kv.len, kv.pages.len(), pages.free_pages()), (0, 4, 4));
        kv.len = 150;
        let old = kv.pages.clone();
        prefixes.keep(&mut pages, Salt::default(), first.clone(), kv);
        assert_eq!(pages.free_pages(), 5);

        // The same prompt: all but its last token, two pages shared, the third copied.
        let again = open(&mut prefixes, &mut pages, &first, 150).unwrap();
        assert_eq!((again.len, &again.pages[..2], pages.free_pages()), (149, &old[..2], 4));
        assert_ne!(again.pages[2], old[2]);

        // Another one that parts after 100 tokens; then nothing is left but what is remembered.
        let mut other = sequence(1, 100);
        other.extend([7; 150]);
        let parted = open(&mut prefixes, &mut pages, &other, 250).unwrap();
        assert_eq!((parted.len, parted.pages[0], pages.free_pages()), (100, old[0], 1));
        // Nothing in common, and 2 pages needed: the remembered one is forgotten for it.
        let stranger = open(&mut prefixes, &mut pages, &[9; 90], 128).unwrap();
        assert_eq!((stranger.len, pages.free_pages()), (0, 0));
        assert!(open(&mut prefixes, &mut pages, &first, 10).is_none());
        for kv in [again, parted, stranger] {
            release(&mut pages, &kv);
        }
        assert_eq!(pages.free_pages(), 8);
    }

    #[test]
    fn room_for_one_is_enough() {
        let mut pages = KvPages::new(KvType::F32, 1, 1, 1, 2).unwrap();
        let mut prefixes = Prefixes::default();
        for round in 0..4 {
            let prompt = sequence(1 + round / 2, 100);
            let mut kv = open(&mut prefixes, &mut pages, &prompt, 128).unwrap();
            kv.len = 120;
            prefixes.keep(&mut pages, Salt::default(), sequence(1 + round / 2, 128), kv);
        }
        assert_eq!(pages.free_pages(), 0);
        prefixes.drop_at(&mut pages, 0);
        assert_eq!(pages.free_pages(), 2);
    }

    #[test]
    fn what_is_continued_is_remembered_once() {
        let mut pages = KvPages::new(KvType::F32, 1, 1, 1, 8).unwrap();
        let mut prefixes = Prefixes::default();
        for len in [20, 40, 60] {
            let mut kv = open(&mut prefixes, &mut pages, &sequence(1, len), len).unwrap();
            kv.len = len;
            prefixes.keep(&mut pages, Salt::default(), sequence(1, len), kv);
        }
        assert_eq!((prefixes.entries.len(), pages.free_pages()), (1, 7));
    }

    #[test]
    fn owners_share_nothing() {
        let mut pages = KvPages::new(KvType::F32, 1, 1, 1, 8).unwrap();
        let mut prefixes = Prefixes::default();
        let (mine, other) = (Salt { owner: 1, adapter: 0 }, Salt { owner: 2, adapter: 0 });
        let prompt = sequence(1, 100);
        let mut kv = prefixes.open(&mut pages, mine, &prompt, 100, std::iter::empty()).unwrap();
        kv.len = 100;
        prefixes.keep(&mut pages, mine, prompt.clone(), kv);
        for (salt, len) in [(mine, 99), (other, 0), (Salt { owner: 1, adapter: 1 }, 0)] {
            let kv = prefixes.open(&mut pages, salt, &prompt, 100, std::iter::empty()).unwrap();
            assert_eq!(kv.len, len);
            release(&mut pages, &kv);
        }
    }

    #[test]
    fn what_is_being_computed_is_waited_for_and_shared() {
        let mut pages = KvPages::new(KvType::F32, 1, 1, 1, 8).unwrap();
        let mut prefixes = Prefixes::default();
        let prompt = sequence(1, 200);
        let mut first = open(&mut prefixes, &mut pages, &prompt, 220).unwrap();
        let mut again = |pages: &mut KvPages, first: &KvSequence| {
            let running = Running { tokens: &prompt, kv: first };
            prefixes.open(pages, Salt::default(), &prompt, 220, std::iter::once(running))
        };
        first.len = 100;
        assert!(again(&mut pages, &first).is_none());
        first.len = 200;
        let second = again(&mut pages, &first).unwrap();
        assert_eq!((second.len, &second.pages[..3]), (199, &first.pages[..3]));
        release(&mut pages, &first);
        release(&mut pages, &second);
        assert_eq!(pages.free_pages(), 8);
    }
}
