//! Long runs of words that were there before, in this document or an earlier one.
//!
//! Of all runs of `words` words those are remembered whose hash falls into a sample; the sample
//! is the same everywhere, so that a run's second time is known by its first. When the table is
//! full, the sample is halved: memory stays what it was, and what is missed are runs that are
//! barely longer than `words`.

use crate::words::{hash_small, mix, runs, tokens};

/// One run of so many is remembered at first.
const SAMPLE: u64 = 8;

/// The runs that were there.
pub struct Repeated {
    words: usize,
    /// Hashes; 0 is empty.
    table: Vec<u64>,
    used: usize,
    sample: u64,
}

impl Repeated {
    /// For runs of `words` words, in so much memory.
    pub fn new(words: usize, bytes: usize) -> Repeated {
        // The largest power of two that fits.
        let slots = 1usize << (bytes / 8).max(2).ilog2();
        Repeated { words, table: vec![0; slots], used: 0, sample: SAMPLE }
    }

    /// Cuts from a text what was there before, and remembers the rest. Returns the bytes cut.
    pub fn cut(&mut self, text: &mut String) -> usize {
        let all: Vec<(usize, u64)> = tokens(text)
            .filter(|t| t.word)
            .map(|t| (t.text.as_ptr() as usize - text.as_ptr() as usize, hash_small(t.text)))
            .collect();
        let hashes: Vec<u64> = all.iter().map(|w| w.1).collect();
        // Ranges of words, of which each overlaps or touches at most the last.
        let mut cuts: Vec<(usize, usize)> = Vec::new();
        for (i, run) in runs(&hashes, self.words).enumerate() {
            let run = mix(run, 1).max(1);
            if !run.is_multiple_of(self.sample) || !self.seen(run) {
                continue;
            }
            let end = i + self.words;
            match cuts.last_mut() {
                Some(last) if i <= last.1 => last.1 = end,
                _ => cuts.push((i, end)),
            }
        }
        if cuts.is_empty() {
            return 0;
        }
        let (mut kept, mut at) = (String::with_capacity(text.len()), 0);
        for (first, end) in cuts {
            kept += &text[at..all[first].0];
            at = all.get(end).map_or(text.len(), |w| w.0);
        }
        kept += &text[at..];
        let cut = text.len() - kept.len();
        *text = kept;
        cut
    }

    /// Whether a run was there; remembers it.
    fn seen(&mut self, run: u64) -> bool {
        if self.used * 4 > self.table.len() * 3 {
            self.halve();
        }
        let mask = self.table.len() - 1;
        let mut at = (run >> 20) as usize & mask;
        loop {
            match self.table[at] {
                0 => {
                    self.table[at] = run;
                    self.used += 1;
                    return false;
                }
                there if there == run => return true,
                _ => at = (at + 1) & mask,
            }
        }
    }

    fn halve(&mut self) {
        self.sample *= 2;
        let kept: Vec<u64> = self
            .table
            .iter()
            .copied()
            .filter(|r| *r != 0 && r.is_multiple_of(self.sample))
            .collect();
        self.table.fill(0);
        self.used = 0;
        kept.into_iter().for_each(|run| {
            self.seen(run);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_passage_stays_once() {
        let words = |from: usize, n: usize| -> String {
            (from..from + n).map(|i| format!("word{i} ")).collect()
        };
        let mut repeated = Repeated::new(50, 1 << 20);
        let mut first = format!("{}. End.", words(0, 300));
        assert_eq!(repeated.cut(&mut first), 0);
        let mut second = format!("Begin: {}And more.", words(50, 200));
        let before = second.len();
        let cut = repeated.cut(&mut second);
        assert!(second.starts_with("Begin: ") && second.ends_with("And more."), "{second}");
        assert!(cut > before * 2 / 3 && cut < before, "{cut} of {before}");
        // A table that is full forgets, but goes on.
        let mut small = Repeated::new(5, 1 << 10);
        for i in 0..50 {
            let mut text = words(i * 1000, 500);
            assert_eq!(small.cut(&mut text), 0);
        }
        let mut again = words(49_000, 500);
        assert!(small.cut(&mut again) > 0);
    }
}
