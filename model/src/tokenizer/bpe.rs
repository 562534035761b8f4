//! Byte-pair encoding of one piece: the merge of lowest rank first, the leftmost of equals first.
//!
//! Sennrich, Haddow, Birch, "Neural Machine Translation of Rare Words with Subword Units" (2016).

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

/// Ids and ranks are below this.
const NONE: u32 = u32::MAX;

/// From this many symbols on, a heap finds the next merge; below, a scan does.
const LONG: usize = 100;

/// The merges of a vocabulary.
#[derive(Clone, Debug, Default)]
pub(super) struct Merges {
    /// Pair of ids → rank.
    ranks: HashMap<u64, u32, foldhash::fast::RandomState>,
    /// Rank → id of what the pair becomes.
    made: Vec<u32>,
}

/// Memory of [`Merges::apply`], kept from one piece to the next.
#[derive(Default)]
pub(super) struct Work {
    /// Rank of the pair that starts at each symbol.
    ranks: Vec<u32>,
    next: Vec<u32>,
    previous: Vec<u32>,
    heap: BinaryHeap<Reverse<(u32, u32)>>,
}

fn key(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

impl Merges {
    /// Appends the merge of a pair. One that is there already gets the new rank, as
    /// `tokenizers` has it.
    pub(super) fn push(&mut self, left: u32, right: u32, made: u32) {
        self.ranks.insert(key(left, right), self.made.len() as u32);
        self.made.push(made);
    }

    /// What pairs become, by rank.
    pub(super) fn made(&self) -> &[u32] {
        &self.made
    }

    #[inline]
    fn rank(&self, left: u32, right: u32) -> u32 {
        self.ranks.get(&key(left, right)).copied().unwrap_or(NONE)
    }

    /// Merges a piece's symbols (to begin with, its bytes' ids) until nothing is left to merge.
    /// Takes O(n log n) time.
    pub(super) fn apply(&self, symbols: &mut Vec<u32>, work: &mut Work) {
        work.ranks.clear();
        work.ranks.extend(symbols.windows(2).map(|pair| self.rank(pair[0], pair[1])));
        work.ranks.push(NONE);
        if symbols.len() < LONG { self.scan(symbols, work) } else { self.heap(symbols, work) }
    }

    fn scan(&self, symbols: &mut Vec<u32>, work: &mut Work) {
        let ranks = &mut work.ranks;
        loop {
            let mut best = (NONE, 0);
            for (i, &rank) in ranks.iter().enumerate() {
                if rank < best.0 {
                    best = (rank, i);
                }
            }
            let (rank, at) = best;
            if rank == NONE {
                return;
            }
            symbols[at] = self.made[rank as usize];
            symbols.remove(at + 1);
            ranks.remove(at + 1);
            ranks[at] = symbols.get(at + 1).map_or(NONE, |&next| self.rank(symbols[at], next));
            if at > 0 {
                ranks[at - 1] = self.rank(symbols[at - 1], symbols[at]);
            }
        }
    }

    fn heap(&self, symbols: &mut Vec<u32>, work: &mut Work) {
        let Work { ranks, next, previous, heap } = work;
        let len = symbols.len() as u32;
        next.clear();
        next.extend(1..=len);
        previous.clear();
        previous.extend((0..len).map(|i| i.wrapping_sub(1)));
        heap.clear();
        heap.extend((0..len).map(|i| Reverse((ranks[i as usize], i))).filter(|e| e.0.0 != NONE));
        while let Some(Reverse((rank, at))) = heap.pop() {
            let i = at as usize;
            if ranks[i] != rank {
                continue; // merged away, or another pair by now
            }
            let gone = next[i];
            let after = next[gone as usize];
            symbols[i] = self.made[rank as usize];
            ranks[gone as usize] = NONE;
            symbols[gone as usize] = NONE;
            next[i] = after;
            ranks[i] = NONE;
            if after < len {
                previous[after as usize] = at;
                ranks[i] = self.rank(symbols[i], symbols[after as usize]);
            }
            let before = previous[i];
            if before != NONE {
                ranks[before as usize] = self.rank(symbols[before as usize], symbols[i]);
            }
            for j in [before, at] {
                if j != NONE && ranks[j as usize] != NONE {
                    heap.push(Reverse((ranks[j as usize], j)));
                }
            }
        }
        symbols.retain(|&symbol| symbol != NONE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Against the definition: find the lowest rank by looking everywhere, merge, repeat.
        #[test]
        fn merges_by_rank(pairs in prop::collection::vec((0u32..12, 0u32..12), 0..40),
                          piece in prop::collection::vec(0u32..4, 0..300)) {
            let mut merges = Merges::default();
            let mut list: Vec<((u32, u32), u32)> = vec![];
            for (l, r) in pairs {
                let made = 4 + list.len() as u32 % 10; // some are made twice
                if l < made && r < made && !list.iter().any(|m| m.0 == (l, r)) {
                    merges.push(l, r, made);
                    list.push(((l, r), made));
                }
            }
            let mut plain = piece.clone();
            'merging: loop {
                for &((l, r), made) in &list {
                    if let Some(i) = plain.windows(2).position(|w| w == [l, r]) {
                        plain[i] = made;
                        plain.remove(i + 1);
                        continue 'merging;
                    }
                }
                break;
            }
            let mut work = Work::default();
            let mut scanned = piece.clone();
            merges.apply(&mut scanned, &mut work);
            prop_assert_eq!(&scanned, &plain);
            let mut heaped = piece;
            work.ranks.clear();
            work.ranks.extend(heaped.windows(2).map(|p| merges.rank(p[0], p[1])));
            work.ranks.push(NONE);
            merges.heap(&mut heaped, &mut work);
            prop_assert_eq!(&heaped, &plain);
        }
    }
}
