//! Keys and values of earlier positions, in pages of 64 positions that sequences can share.

use thiserror::Error;

use crate::simd::LANES;

/// Positions of a page.
pub const PAGE: usize = 64;

/// Which page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PageId(u32);

/// Why pages can't be had.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum KvError {
    /// More memory than can be addressed or than there is.
    #[error("{pages} pages of {page_bytes} bytes are more memory than there is")]
    TooLarge {
        /// Asked for.
        pages: usize,
        /// Of each.
        page_bytes: usize,
    },
}

/// One sequence: its pages in order, and how many positions are filled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KvSequence {
    /// Pages, 64 positions each.
    pub pages: Vec<PageId>,
    /// Positions that hold keys and values.
    pub len: usize,
}

/// The storage of all pages of a model, taken once. A page holds, for each layer and key head, keys
/// transposed `[head_dim][64]` and values `[64][head_dim rounded up to 16]`, f32.
pub struct KvPages {
    kv_heads: usize,
    head_dim: usize,
    layers: usize,
    data: Vec<f32>,
    /// How many sequences hold each page.
    holders: Vec<u32>,
    free: Vec<PageId>,
}

impl KvPages {
    /// Storage for `pages` pages.
    ///
    /// # Errors
    /// If it is more memory than can be had.
    pub fn new(
        layers: usize,
        kv_heads: usize,
        head_dim: usize,
        pages: usize,
    ) -> Result<KvPages, KvError> {
        let mut kv = KvPages {
            kv_heads,
            head_dim,
            layers,
            data: Vec::new(),
            holders: vec![0; pages],
            free: (0..pages as u32).rev().map(PageId).collect(),
        };
        let too_large = KvError::TooLarge { pages, page_bytes: kv.page_len() * 4 };
        match kv.page_len().checked_mul(pages) {
            Some(len) if kv.data.try_reserve_exact(len).is_ok() => kv.data.resize(len, 0.0),
            _ => return Err(too_large),
        }
        Ok(kv)
    }

    fn padded(&self) -> usize {
        self.head_dim.next_multiple_of(LANES)
    }

    fn head_len(&self) -> usize {
        PAGE * (self.head_dim + self.padded())
    }

    fn page_len(&self) -> usize {
        self.layers * self.kv_heads * self.head_len()
    }

    /// Bytes of all pages.
    pub fn bytes(&self) -> usize {
        self.data.len() * 4
    }

    /// Pages that nobody holds.
    pub fn free_pages(&self) -> usize {
        self.free.len()
    }

    /// A page that nobody held, now held once; `None` if there is none.
    pub fn allocate(&mut self) -> Option<PageId> {
        let page = self.free.pop()?;
        self.holders[page.0 as usize] = 1;
        Some(page)
    }

    /// One more sequence holds a page.
    ///
    /// # Panics
    /// If nobody holds it.
    pub fn retain(&mut self, page: PageId) {
        let holders = &mut self.holders[page.0 as usize];
        assert!(*holders > 0, "a page that nobody holds");
        *holders += 1;
    }

    /// How many hold a page.
    pub fn holders(&self, page: PageId) -> u32 {
        self.holders[page.0 as usize]
    }

    /// One sequence less holds a page.
    ///
    /// # Panics
    /// If nobody holds it.
    pub fn release(&mut self, page: PageId) {
        let holders = &mut self.holders[page.0 as usize];
        assert!(*holders > 0, "a page released twice");
        *holders -= 1;
        if *holders == 0 {
            self.free.push(page);
        }
    }

    /// Copies all of a page, so that a sequence can write to its own.
    pub fn copy_page(&mut self, from: PageId, to: PageId) {
        let len = self.page_len();
        let from = from.0 as usize * len;
        self.data.copy_within(from..from + len, to.0 as usize * len);
    }

    fn head_start(&self, layer: usize, head: usize, page: PageId) -> usize {
        page.0 as usize * self.page_len() + (layer * self.kv_heads + head) * self.head_len()
    }

    /// Keys `[head_dim][64]` of a page.
    pub(crate) fn keys(&self, layer: usize, head: usize, page: PageId) -> &[f32] {
        &self.data[self.head_start(layer, head, page)..][..PAGE * self.head_dim]
    }

    /// Values `[64][head_dim rounded up]` of a page.
    pub(crate) fn values(&self, layer: usize, head: usize, page: PageId) -> &[f32] {
        let start = self.head_start(layer, head, page) + PAGE * self.head_dim;
        &self.data[start..][..PAGE * self.padded()]
    }

    /// Writes keys and values (`[n, kv_heads * head_dim]`) of positions `start..start + n` of a
    /// sequence that has these pages.
    ///
    /// # Panics
    /// If the pages have no such positions.
    pub fn append(&mut self, layer: usize, pages: &[PageId], start: usize, k: &[f32], v: &[f32]) {
        let (hd, padded, width) = (self.head_dim, self.padded(), self.kv_heads * self.head_dim);
        for (i, (k, v)) in k.chunks_exact(width).zip(v.chunks_exact(width)).enumerate() {
            let position = start + i;
            let (page, at) = (pages[position / PAGE], position % PAGE);
            for head in 0..self.kv_heads {
                let from = self.head_start(layer, head, page);
                let area = &mut self.data[from..from + PAGE * (hd + padded)];
                let (keys, values) = area.split_at_mut(PAGE * hd);
                for (e, k) in k[head * hd..(head + 1) * hd].iter().enumerate() {
                    keys[e * PAGE + at] = *k;
                }
                values[at * padded..at * padded + hd]
                    .copy_from_slice(&v[head * hd..(head + 1) * hd]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_counted() {
        let mut kv = KvPages::new(2, 1, 4, 2).expect("small");
        let (a, b) = (kv.allocate().expect("free"), kv.allocate().expect("free"));
        assert!(a != b && kv.allocate().is_none());
        kv.retain(a);
        kv.release(a);
        assert_eq!(kv.free_pages(), 0);
        kv.release(a);
        assert_eq!((kv.free_pages(), kv.allocate()), (1, Some(a)));
    }

    #[test]
    fn too_much_is_an_error() {
        assert!(KvPages::new(1 << 20, 1 << 20, 1 << 12, 1 << 20).is_err());
        assert!(KvPages::new(1 << 10, 1 << 10, 1 << 10, 1 << 12).is_err());
    }
}
