//! The second pass: which documents of all parts stay, by what is known of each.
//!
//! Memory: 29 bytes a document, and 12 more while a band is compared.

use crate::near::Sets;
use crate::parts::{Paths, facts};
use crate::settings::Settings;
use crate::{PrepareError, split};

/// What becomes of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is trained on.
    Train,
    /// It is held out.
    HeldOut,
    /// It has the text of an earlier one.
    Same,
    /// It has nearly the text of an earlier one.
    Near,
}

/// The fates of all documents, in the order of parts.
pub struct Selection {
    fates: Vec<Fate>,
    /// The earlier document, of those that are like one.
    like: Vec<u32>,
    /// How much is held out, and how it was chosen, in words.
    pub heldout: String,
    /// A document whose end is held out, and about where that begins.
    pub tail: Option<(usize, usize)>,
}

impl Selection {
    /// What becomes of a document, and the one that it is like.
    pub fn fate(&self, document: usize) -> (Fate, u32) {
        (self.fates[document], self.like[document])
    }

    /// Chooses among the documents of `parts` parts.
    ///
    /// # Errors
    /// Parts that can't be read.
    pub fn new(
        paths: &Paths,
        parts: usize,
        settings: &Settings,
    ) -> Result<Selection, PrepareError> {
        let bands = settings.near.bands;
        let (mut hashes, mut sizes) = (Vec::new(), Vec::new());
        for part in 0..parts {
            facts(&paths.of(part, "facts"), bands, |fact| {
                hashes.push(fact.hash());
                sizes.push(fact.bytes());
            })?;
        }
        let n = hashes.len();
        if n > u32::MAX as usize {
            let most = u32::MAX;
            return Err(PrepareError::Setting(format!("{n} documents; at most {most} at once")));
        }
        let mut chosen = Selection {
            fates: vec![Fate::Train; n],
            like: (0..n as u32).collect(),
            heldout: String::new(),
            tail: None,
        };
        let mut order: Vec<u32> = (0..n as u32).collect();
        order.sort_unstable_by_key(|i| (hashes[*i as usize], *i));
        if settings.exact {
            for pair in 1..n {
                let (last, this) = (order[pair - 1] as usize, order[pair] as usize);
                if hashes[last] == hashes[this] {
                    chosen.fates[this] = Fate::Same;
                    chosen.like[this] = chosen.like[last];
                }
            }
        }
        if bands > 0 {
            chosen.near(paths, parts, bands)?;
        }
        chosen.hold_out(&order, &sizes, settings.heldout);
        Ok(chosen)
    }

    fn near(&mut self, paths: &Paths, parts: usize, bands: usize) -> Result<(), PrepareError> {
        let mut sets = Sets::new(self.fates.len());
        for band in 0..bands {
            let (mut keys, mut document) = (Vec::new(), 0);
            for part in 0..parts {
                facts(&paths.of(part, "facts"), bands, |fact| {
                    if let Some(key) = fact.band(band)
                        && self.fates[document] == Fate::Train
                    {
                        keys.push((key, document as u32));
                    }
                    document += 1;
                })?;
            }
            keys.sort_unstable();
            for pair in keys.windows(2).filter(|pair| pair[0].0 == pair[1].0) {
                sets.join(pair[0].1, pair[1].1);
            }
        }
        for document in 0..self.fates.len() {
            let first = sets.first(document as u32);
            if first as usize != document {
                self.fates[document] = Fate::Near;
                self.like[document] = first;
            }
        }
        Ok(())
    }

    /// Holds out whole documents in the order of their hashes, as long as they come to no more
    /// than `share` of the bytes; if they come to less than half of that, the end of the longest
    /// document instead.
    fn hold_out(&mut self, order: &[u32], sizes: &[u32], share: f64) {
        let size = |i: u32| sizes[i as usize] as usize;
        let stay = |fates: &[Fate], i: u32| fates[i as usize] == Fate::Train;
        let staying: Vec<u32> = order.iter().copied().filter(|i| stay(&self.fates, *i)).collect();
        let total: usize = staying.iter().map(|i| size(*i)).sum();
        let (budget, mut held, mut count) = (total as f64 * share, 0, 0);
        for i in &staying {
            if (held + size(*i)) as f64 <= budget {
                self.fates[*i as usize] = Fate::HeldOut;
                held += size(*i);
                count += 1;
            }
        }
        let percent = |n: f64| n / total.max(1) as f64 * 100.0;
        if held as f64 >= budget / 2.0 && count > 0 || share <= 0.0 {
            self.heldout = format!(
                "{count} whole documents, {:.1} % of the text, in the order of their hashes",
                percent(held as f64)
            );
            return;
        }
        staying.iter().for_each(|i| self.fates[*i as usize] = Fate::Train);
        let Some(longest) = staying.iter().max_by_key(|i| (size(**i), **i)) else { return };
        let tail = budget.max(1.0).min(size(*longest) as f64 / 2.0);
        self.tail = Some((*longest as usize, size(*longest) - tail as usize));
        self.heldout =
            format!("the end of the longest document, {:.1} % of the text", percent(tail));
    }

    /// A text as what is trained on and what is held out of it.
    pub fn cut<'a>(&self, document: usize, text: &'a str) -> Option<(&'a str, &'a str)> {
        let (tail, at) = self.tail?;
        (tail == document).then(|| text.split_at(split::boundary(text, at.min(text.len()))))
    }
}
