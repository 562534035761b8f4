//! Keys and values of sequences that are being generated, in pages of 64 positions (Kwon et al.
//! 2023). A page is attention's key block, stored as its kernel reads it: keys transposed. Pages
//! count their users, so that sequences with the same beginning share its pages.

use crate::aligned::Aligned;
use crate::simd::LANES;

/// Positions in a page.
pub const PAGE: usize = 64;

/// A page of a [`KvPages`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageId(u32);

/// What can go wrong with pages.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum KvError {
    /// More memory than there is.
    #[error(
        "a key/value cache of {pages} pages of {PAGE} positions ({bytes} bytes) does not fit: use fewer pages"
    )]
    TooLarge {
        /// Pages asked for.
        pages: usize,
        /// Bytes they take, as far as that can be counted.
        bytes: usize,
    },
    /// Released too often, or never allocated here.
    #[error("page {0} of the key/value cache is not in use")]
    NotInUse(u32),
    /// A page has more users than can be counted.
    #[error("page {0} of the key/value cache has too many users")]
    TooManyUsers(u32),
    /// All pages are in use.
    #[error("all pages of the key/value cache are in use")]
    OutOfPages,
}

/// The pages of one model. A page holds, layer by layer, keys `[kv_heads, head_dim, 64]` and
/// values `[kv_heads, 64, head_dim rounded up to 16]`, f32.
pub struct KvPages {
    data: Aligned,
    /// Users of each page; 0 = free.
    users: Vec<u32>,
    /// Free pages; the last one goes next.
    free: Vec<u32>,
    layers: usize,
    kv_heads: usize,
    head_dim: usize,
}

/// One sequence's pages.
#[derive(Clone, Debug, Default)]
pub struct KvSequence {
    /// Pages of positions `0..64`, `64..128`, …
    pub pages: Vec<PageId>,
    /// Positions that are filled.
    pub len: usize,
}

/// Row length of stored values: whole vectors.
pub(crate) fn padded(head_dim: usize) -> usize {
    head_dim.next_multiple_of(LANES)
}

impl KvPages {
    /// Room for `pages` pages.
    ///
    /// # Errors
    /// [`KvError::TooLarge`] if the system does not give the memory.
    pub fn new(
        layers: usize,
        kv_heads: usize,
        head_dim: usize,
        pages: usize,
    ) -> Result<KvPages, KvError> {
        let floats = || {
            let head = head_dim.checked_add(head_dim.checked_next_multiple_of(LANES)?)?;
            head.checked_mul(PAGE)?.checked_mul(kv_heads)?.checked_mul(layers)?.checked_mul(pages)
        };
        let floats = floats().filter(|n| n.checked_mul(4).is_some());
        let bytes = floats.map_or(usize::MAX, |n| n * 4);
        let data = floats.filter(|_| pages < u32::MAX as usize).and_then(Aligned::zeros);
        let data = data.ok_or(KvError::TooLarge { pages, bytes })?;
        let (users, free) = (vec![0; pages], (0..pages as u32).rev().collect());
        Ok(KvPages { data, users, free, layers, kv_heads, head_dim })
    }

    /// A page with one user and whatever it held before; `None` if all are in use.
    pub fn allocate(&mut self) -> Option<PageId> {
        let page = self.free.pop()?;
        self.users[page as usize] = 1;
        Some(PageId(page))
    }

    /// One more user of a page.
    ///
    /// # Errors
    /// If it is not in use.
    pub fn retain(&mut self, page: PageId) -> Result<(), KvError> {
        let users = self.users_mut(page)?;
        *users = users.checked_add(1).ok_or(KvError::TooManyUsers(page.0))?;
        Ok(())
    }

    /// One user less; without any the page is free.
    ///
    /// # Errors
    /// If it is not in use.
    pub fn release(&mut self, page: PageId) -> Result<(), KvError> {
        let users = self.users_mut(page)?;
        *users -= 1;
        if *users == 0 {
            self.free.push(page.0);
        }
        Ok(())
    }

    /// How many users a page has: 0 if it is free. One with several is copied before it is
    /// appended to.
    pub fn users(&self, page: PageId) -> u32 {
        self.users.get(page.0 as usize).copied().unwrap_or(0)
    }

    /// A new page with the contents of `page` and one user.
    ///
    /// # Errors
    /// If all pages are in use, or `page` is not.
    pub fn copy_page(&mut self, page: PageId) -> Result<PageId, KvError> {
        self.users_mut(page)?;
        let copy = self.allocate().ok_or(KvError::OutOfPages)?;
        let n = self.page_len();
        let from = page.0 as usize * n;
        self.data.copy_within(from..from + n, copy.0 as usize * n);
        Ok(copy)
    }

    /// Pages that [`KvPages::allocate`] can still give.
    pub fn free_pages(&self) -> usize {
        self.free.len()
    }

    /// All pages, free or not.
    pub fn total_pages(&self) -> usize {
        self.users.len()
    }

    /// Memory of all pages.
    pub fn bytes(&self) -> usize {
        self.data.len() * 4
    }

    /// Stores rows of keys and values, `[n, kv_heads * head_dim]`, as positions `position..` of a
    /// sequence in a layer.
    ///
    /// # Panics
    /// If `pages` has no page in use for a position, or sizes do not agree.
    pub fn append(
        &mut self,
        layer: usize,
        pages: &[PageId],
        position: usize,
        k: &[f32],
        v: &[f32],
    ) {
        let (hd, hdp) = (self.head_dim, padded(self.head_dim));
        let width = self.kv_heads * hd;
        assert!(k.len() == v.len() && k.len().is_multiple_of(width.max(1)));
        for (i, (k, v)) in k.chunks_exact(width).zip(v.chunks_exact(width)).enumerate() {
            let (page, slot) = (pages[(position + i) / PAGE], (position + i) % PAGE);
            assert!(self.users(page) > 0, "page {} is not in use", page.0);
            for head in 0..self.kv_heads {
                let start = self.head_start(layer, page, head);
                let (keys, values) =
                    self.data[start..start + PAGE * (hd + hdp)].split_at_mut(PAGE * hd);
                let r = head * hd..(head + 1) * hd;
                for (column, x) in keys.chunks_exact_mut(PAGE).zip(&k[r.clone()]) {
                    column[slot] = *x;
                }
                values[slot * hdp..slot * hdp + hd].copy_from_slice(&v[r]);
            }
        }
    }

    /// Keys `[head_dim, 64]` and values `[64, padded head_dim]` of a head in a page.
    pub(crate) fn block(&self, layer: usize, page: PageId, kv_head: usize) -> (&[f32], &[f32]) {
        assert!(self.users(page) > 0, "page {} is not in use", page.0);
        let start = self.head_start(layer, page, kv_head);
        let (hd, hdp) = (self.head_dim, padded(self.head_dim));
        self.data[start..start + PAGE * (hd + hdp)].split_at(PAGE * hd)
    }

    /// Layers, key/value heads, elements of a head.
    pub fn shape(&self) -> (usize, usize, usize) {
        (self.layers, self.kv_heads, self.head_dim)
    }

    fn head_start(&self, layer: usize, page: PageId, head: usize) -> usize {
        assert!(layer < self.layers && head < self.kv_heads);
        let head_len = PAGE * (self.head_dim + padded(self.head_dim));
        page.0 as usize * self.page_len() + (layer * self.kv_heads + head) * head_len
    }

    fn page_len(&self) -> usize {
        self.layers * self.kv_heads * PAGE * (self.head_dim + padded(self.head_dim))
    }

    fn users_mut(&mut self, page: PageId) -> Result<&mut u32, KvError> {
        let users = self.users.get_mut(page.0 as usize).filter(|u| **u > 0);
        users.ok_or(KvError::NotInUse(page.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_counted() {
        let mut pages = KvPages::new(2, 1, 3, 2).expect("small");
        let (a, b) = (pages.allocate().expect("free"), pages.allocate().expect("free"));
        assert_ne!(a, b);
        assert_eq!((pages.allocate(), pages.free_pages()), (None, 0));
        assert_eq!(pages.copy_page(a), Err(KvError::OutOfPages));
        pages.retain(a).expect("in use");
        assert_eq!(pages.users(a), 2);
        pages.release(a).expect("in use");
        assert_eq!(pages.free_pages(), 0);
        pages.release(a).expect("in use");
        assert_eq!(pages.free_pages(), 1);
        assert_eq!(pages.release(a), Err(KvError::NotInUse(a.0)));
        assert_eq!(pages.retain(a), Err(KvError::NotInUse(a.0)));
        assert_eq!(pages.copy_page(a), Err(KvError::NotInUse(a.0)));
        assert_eq!(pages.free_pages(), 1, "misuse changes nothing");
        assert_eq!(pages.allocate(), Some(a));
        assert_eq!(pages.release(PageId(7)), Err(KvError::NotInUse(7)));
    }

    #[test]
    fn contents_go_where_they_belong_and_copies_are_apart() {
        let (layers, heads, hd) = (2, 2, 3);
        let mut pages = KvPages::new(layers, heads, hd, 3).expect("small");
        let ids = [pages.allocate().expect("free"), pages.allocate().expect("free")];
        let width = heads * hd;
        let k: Vec<f32> = (0..5 * width).map(|i| i as f32).collect();
        let v: Vec<f32> = k.iter().map(|x| -x).collect();
        pages.append(1, &ids, 62, &k, &v);
        let copy = pages.copy_page(ids[1]).expect("one left");
        pages.append(1, &[ids[0], copy], 64, &vec![9.0; width], &vec![9.0; width]);
        for (i, position) in (62..67).enumerate() {
            for h in 0..heads {
                let (keys, values) = pages.block(1, ids[position / PAGE], h);
                for d in 0..hd {
                    let x = (i * width + h * hd + d) as f32;
                    assert_eq!(keys[d * PAGE + position % PAGE], x);
                    assert_eq!(values[position % PAGE * padded(hd) + d], -x);
                }
            }
        }
        assert_eq!(pages.block(1, copy, 0).0[0], 9.0);
        assert_eq!(pages.block(1, copy, 0).0[1], pages.block(1, ids[1], 0).0[1]);
        assert!(pages.block(0, ids[0], 0).0.iter().all(|x| *x == 0.0), "the other layer");
    }

    #[test]
    fn what_cannot_fit_is_an_error() {
        for (layers, hd, pages) in [(1, 64, usize::MAX), (usize::MAX, 64, 2), (1, usize::MAX, 1)] {
            assert!(matches!(KvPages::new(layers, 1, hd, pages), Err(KvError::TooLarge { .. })));
        }
        assert!(KvPages::new(1 << 20, 1 << 10, 1 << 10, 1 << 10).is_err(), "petabytes");
        assert_eq!(KvPages::new(1, 1, 64, 0).map(|p| p.bytes()), Ok(0));
    }
}
