//! Keys and values of finished sequences, for those that begin alike: the next turn of a
//! conversation, questions behind the same examples.

use std::collections::VecDeque;

use compute::kv::{KvPages, KvSequence, PAGE};

/// Most sequences that are remembered.
const ENTRIES: usize = 256;

/// Finished sequences, the one used longest ago first: tokens, and their keys and values.
#[derive(Default)]
pub(super) struct Prefixes {
    entries: VecDeque<(Vec<u32>, KvSequence)>,
}

impl Prefixes {
    /// Remembers a sequence whose first `kv.len` tokens are in its pages.
    pub(super) fn keep(&mut self, pages: &mut KvPages, mut tokens: Vec<u32>, mut kv: KvSequence) {
        tokens.truncate(kv.len);
        for page in kv.pages.drain(kv.len.div_ceil(PAGE)..) {
            release(pages, &KvSequence { pages: vec![page], len: 0 });
        }
        // What it continues isn't needed any more.
        let mut i = 0;
        while i < self.entries.len() {
            if tokens.starts_with(&self.entries[i].0) {
                self.drop_at(pages, i);
            } else {
                i += 1;
            }
        }
        self.entries.push_back((tokens, kv));
        if self.entries.len() > ENTRIES {
            self.drop_at(pages, 0);
        }
    }

    /// Pages for `capacity` tokens that begin with `prompt`. Whole pages of the longest beginning
    /// known are shared and the last one, which will be written to, is copied. At least the last
    /// token of the prompt is left to compute, for its logits. Forgets sequences to make room;
    /// `None` if there still is none.
    pub(super) fn open(
        &mut self,
        pages: &mut KvPages,
        prompt: &[u32],
        capacity: usize,
    ) -> Option<KvSequence> {
        let common = |tokens: &[u32]| {
            prompt[..prompt.len() - 1].iter().zip(tokens).take_while(|(a, b)| a == b).count()
        };
        let best = (0..self.entries.len()).max_by_key(|&i| common(&self.entries[i].0));
        let mut kv = KvSequence::default();
        if let Some(i) = best
            && let Some(entry) = self.entries.remove(i)
        {
            kv.len = common(&entry.0);
            for &page in &entry.1.pages[..kv.len / PAGE] {
                let retained = pages.retain(page);
                debug_assert!(retained.is_ok(), "{retained:?}");
                kv.pages.push(page);
            }
            let rest = (kv.len % PAGE > 0).then(|| entry.1.pages[kv.len / PAGE]);
            self.entries.push_back(entry); // used last
            let needed = capacity.div_ceil(PAGE) - kv.pages.len();
            while pages.free_pages() < needed && self.entries.len() > 1 {
                self.drop_at(pages, 0);
            }
            match rest.map(|page| pages.copy_page(page)) {
                Some(Ok(copy)) => kv.pages.push(copy),
                Some(Err(_)) => kv.len -= kv.len % PAGE, // no room for both
                None => {}
            }
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
        if let Some((_, kv)) = self.entries.remove(i) {
            release(pages, &kv);
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

    #[test]
    fn beginnings_are_shared_and_pages_come_back() {
        let mut pages = KvPages::new(KvType::F32, 1, 1, 1, 8).unwrap();
        let mut prefixes = Prefixes::default();
        let first = sequence(1, 150);
        let mut kv = prefixes.open(&mut pages, &first, 200).unwrap();
        assert_eq!((kv.len, kv.pages.len(), pages.free_pages()), (0, 4, 4));
        kv.len = 150;
        let old = kv.pages.clone();
        prefixes.keep(&mut pages, first.clone(), kv);
        assert_eq!(pages.free_pages(), 5);

        // The same prompt: all but its last token, two pages shared, the third copied.
        let again = prefixes.open(&mut pages, &first, 150).unwrap();
        assert_eq!((again.len, &again.pages[..2], pages.free_pages()), (149, &old[..2], 4));
        assert_ne!(again.pages[2], old[2]);

        // Another one that parts after 100 tokens; then nothing is left but what is remembered.
        let mut other = sequence(1, 100);
        other.extend([7; 150]);
        let parted = prefixes.open(&mut pages, &other, 250).unwrap();
        assert_eq!((parted.len, parted.pages[0], pages.free_pages()), (100, old[0], 1));
        // Nothing in common, and 2 pages needed: the remembered one is forgotten for it.
        let stranger = prefixes.open(&mut pages, &[9; 90], 128).unwrap();
        assert_eq!((stranger.len, pages.free_pages()), (0, 0));
        assert!(prefixes.open(&mut pages, &first, 10).is_none());
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
            let mut kv = prefixes.open(&mut pages, &prompt, 128).unwrap();
            kv.len = 120;
            prefixes.keep(&mut pages, sequence(1 + round / 2, 128), kv);
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
            let mut kv = prefixes.open(&mut pages, &sequence(1, len), len).unwrap();
            kv.len = len;
            prefixes.keep(&mut pages, sequence(1, len), kv);
        }
        assert_eq!((prefixes.entries.len(), pages.free_pages()), (1, 7));
    }
}
