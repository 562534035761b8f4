//! How a product is cut: stripes of rows, and of each stripe tiles whose sums stay in registers.

use crate::bytes::Bytes;

/// A product of rows by columns in vectors of 16.
pub(super) trait Tiles {
    /// Columns, in vectors.
    fn vectors(&self) -> usize;

    /// Whether `rows` rows from `row` on may be one tile.
    fn together(&self, row: usize, rows: usize) -> bool;

    /// `R` rows from `row` on, `V` vectors from `vector` on.
    ///
    /// # Safety
    /// What the product reads and writes is there; as for [`Bytes`].
    unsafe fn tile<S: Bytes, const R: usize, const V: usize>(&self, row: usize, vector: usize);

    /// Computes `rows` rows.
    ///
    /// # Safety
    /// As for [`Tiles::tile`].
    #[inline(always)]
    unsafe fn run<S: Bytes>(&self, rows: usize) {
        let wide = const { S::TILE_VECTORS > 1 };
        let mut r = 0;
        // SAFETY: the caller's promise; stripes are within the rows.
        unsafe {
            while r < rows {
                let fits = |n| n <= rows - r && self.together(r, n);
                r += if wide && fits(8) {
                    self.stripe::<S, 8>(r)
                } else if fits(4) {
                    self.stripe::<S, 4>(r)
                } else if wide && rows - r == 3 && fits(3) {
                    // Three query heads to a key head are common.
                    self.stripe::<S, 3>(r)
                } else if fits(2) {
                    self.stripe::<S, 2>(r)
                } else {
                    self.stripe::<S, 1>(r)
                };
            }
        }
    }

    /// `R` rows from `row` on; gives `R`.
    ///
    /// # Safety
    /// As for [`Tiles::tile`].
    #[inline(always)]
    unsafe fn stripe<S: Bytes, const R: usize>(&self, row: usize) -> usize {
        let mut v = 0;
        // SAFETY: the caller's promise.
        unsafe {
            if const { S::TILE_VECTORS > 1 } {
                while v + 2 <= self.vectors() {
                    self.tile::<S, R, 2>(row, v);
                    v += 2;
                }
            }
            while v < self.vectors() {
                self.tile::<S, R, 1>(row, v);
                v += 1;
            }
        }
        R
    }
}
