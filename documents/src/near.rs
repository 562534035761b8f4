//! MinHash signatures and their bands (Broder 1997; Leskovec et al., Mining of Massive Datasets, 3).

use crate::settings::Near;
use crate::words::{mix, runs};

/// Permutations that are worked on at once: as many as stay in registers.
const LANES: usize = 32;

/// The permutations `x → a x + b` of 32-bit numbers.
pub struct MinHash {
    a: Vec<[u32; LANES]>,
    b: Vec<[u32; LANES]>,
    near: Near,
    /// The widest vectors that this processor has.
    vectors: pulp::Arch,
}

impl MinHash {
    /// Permutations for these bands and rows; the same in every version.
    pub fn new(near: &Near) -> MinHash {
        let blocks = (near.bands * near.rows).div_ceil(LANES);
        let number = |i: usize, of: u64| (mix(i as u64 + 1, of) >> 32) as u32;
        let block = |k: usize, of: u64, set: u32| {
            std::array::from_fn(|lane| number(k * LANES + lane, of) | set)
        };
        MinHash {
            a: (0..blocks).map(|k| block(k, 0x0A, 1)).collect(),
            b: (0..blocks).map(|k| block(k, 0x0B, 0)).collect(),
            near: near.clone(),
            vectors: pulp::Arch::new(),
        }
    }

    /// The signature of a text, given its words' hashes; none if it has fewer than a shingle.
    pub fn signature(&self, words: &[u64]) -> Option<Vec<u32>> {
        let shingles: Vec<u32> = runs(words, self.near.words).map(|h| (h >> 32) as u32).collect();
        if shingles.is_empty() {
            return None;
        }
        let mut signature = self.vectors.dispatch(Least { minhash: self, shingles: &shingles });
        signature.truncate(self.near.bands * self.near.rows);
        Some(signature)
    }

    /// One number a band; two documents that agree in one are near.
    pub fn bands(&self, words: &[u64]) -> Option<Vec<u64>> {
        let signature = self.signature(words)?;
        let band = |rows: &[u32]| rows.iter().fold(rows.len() as u64, |h, r| mix(h, u64::from(*r)));
        Some(signature.chunks(self.near.rows).map(band).collect())
    }
}

/// The least of each permutation, compiled for each kind of processor.
struct Least<'a> {
    minhash: &'a MinHash,
    shingles: &'a [u32],
}

impl pulp::NullaryFnOnce for Least<'_> {
    type Output = Vec<u32>;

    #[inline(always)]
    fn call(self) -> Vec<u32> {
        let mut signature = Vec::with_capacity(self.minhash.a.len() * LANES);
        for (a, b) in self.minhash.a.iter().zip(&self.minhash.b) {
            let mut least = [u32::MAX; LANES];
            for x in self.shingles {
                for lane in 0..LANES {
                    let y = x.wrapping_mul(a[lane]).wrapping_add(b[lane]);
                    least[lane] = least[lane].min(y);
                }
            }
            signature.extend(least);
        }
        signature
    }
}

/// Sets of documents that were joined: each knows the first of its set.
pub struct Sets(Vec<u32>);

impl Sets {
    /// Each document by itself.
    pub fn new(n: usize) -> Sets {
        Sets((0..n as u32).collect())
    }

    /// The first of a document's set.
    pub fn first(&mut self, mut i: u32) -> u32 {
        while self.0[i as usize] != i {
            let up = self.0[self.0[i as usize] as usize];
            self.0[i as usize] = up;
            i = up;
        }
        i
    }

    /// Joins the sets of two documents.
    pub fn join(&mut self, i: u32, j: u32) {
        let (i, j) = (self.first(i), self.first(j));
        self.0[i.max(j) as usize] = i.min(j);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clean::hashes;

    #[test]
    fn signatures_estimate_the_overlap() {
        let near = Near { bands: 32, rows: 8, words: 5 };
        let minhash = MinHash::new(&near);
        let text =
            |from: usize| -> String { (from..from + 1000).map(|i| format!("w{i} ")).collect() };
        let (a, b) = (hashes(&text(0)), hashes(&text(200)));
        let sets: Vec<std::collections::HashSet<u64>> =
            [&a, &b].map(|w| runs(w, 5).collect()).into_iter().collect();
        let common = sets[0].intersection(&sets[1]).count() as f64;
        let exact = common / sets[0].union(&sets[1]).count() as f64;
        let (a, b) =
            (minhash.signature(&a).unwrap_or_default(), minhash.signature(&b).unwrap_or_default());
        let same = a.iter().zip(&b).filter(|(x, y)| x == y).count() as f64 / 256.0;
        // Of 256 draws the standard error is 0.03.
        assert!((same - exact).abs() < 0.1, "{same} for {exact}");
        assert!(minhash.signature(&hashes("too short")).is_none());
    }
}
