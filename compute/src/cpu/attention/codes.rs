//! Products of 16-bit codes ([`KvType::Q16`](crate::kv::KvType::Q16)): two at a time, in integers, whose sums have room
//! in 32 bits and are exact. So there is no order to keep, and every instruction set gives the same bits.

use std::ops::Range;

use super::forward::mask;
use super::tiles::Tiles;
use crate::bytes::Bytes;
use crate::kv::{CODE, PAGE, encode};
use crate::simd::{LANES, Simd};

/// Largest code of weights: a block of them by codes of values fits into 31 bits.
pub(super) const WEIGHT: f32 = 8191.0;
const _: () = assert!(WEIGHT as u64 * (CODE as u64) * (PAGE as u64) < 1 << 31);

/// Largest code of queries of so many elements: as large, if that fits.
fn query(head_dim: usize) -> f32 {
    (i32::MAX as usize / usize::from(CODE) / head_dim).clamp(1, WEIGHT as usize) as f32
}

/// Scales of a block's values where they are `visible`, as numbers up to the largest code: what weights up to 1 are
/// multiplied by to be codes. Gives what a code stands for; NaN where something visible is no number.
///
/// # Safety
/// There are 64 scales; as for [`Simd`].
#[inline(always)]
pub(super) unsafe fn weights<S: Simd>(
    scales: *const f32,
    visible: Range<usize>,
    to: &mut [f32; PAGE],
) -> f32 {
    // SAFETY: the caller's promise.
    unsafe {
        for v in (0..PAGE).step_by(LANES) {
            S::store(to.as_mut_ptr().add(v), S::load(scales.add(v)));
        }
        mask::<S>(to.as_mut_ptr(), PAGE / LANES, visible, 0.0);
        let (mut largest, mut nothing) = (S::splat(0.0), S::splat(0.0));
        for v in (0..PAGE).step_by(LANES) {
            let scale = S::load(to.as_ptr().add(v));
            largest = S::max(scale, largest);
            nothing = S::fma(scale, S::splat(0.0), nothing);
        }
        let (largest, good) = (S::max_lane(largest), S::sum(nothing) == 0.0);
        let inverse = if good && largest > 1e-36 { WEIGHT / largest } else { 0.0 };
        for v in (0..PAGE).step_by(LANES) {
            let to = to.as_mut_ptr().add(v);
            S::store(to, S::mul(S::load(to), S::splat(inverse)));
        }
        if good { largest / WEIGHT } else { f32::NAN }
    }
}

/// Rows of queries of `hd` elements, `stride` apart, as codes: lines of `hdp` words, codes in the first half, then what
/// one stands for, times `factor`; NaN where something in the row is no number.
///
/// # Safety
/// The pointers hold that; as for [`Bytes`].
#[inline(always)]
pub(super) unsafe fn queries<S: Bytes>(
    from: *const f32,
    stride: usize,
    rows: usize,
    hd: usize,
    factor: f32,
    to: *mut f32,
) {
    let hdp = hd.next_multiple_of(LANES);
    for j in 0..rows {
        // SAFETY: the caller's promise.
        unsafe {
            let to = to.add(j * hdp);
            *to.add(hdp / 2) = factor * encode::<S>(from.add(j * stride), hd, query(hd), to.cast());
        }
    }
}

/// Where sums of a product go.
pub(super) trait Finish {
    /// Those of row `r`, columns `16 v ..`.
    ///
    /// # Safety
    /// There is such a place; as for [`Bytes`].
    unsafe fn put<S: Bytes>(&self, r: usize, v: usize, sums: S::B);
}

/// Scores: `[rows, 64]`, of queries in lines of `hdp` words and keys with scales.
pub(super) struct Scores {
    pub(super) to: *mut f32,
    pub(super) queries: *const f32,
    pub(super) hdp: usize,
    pub(super) scales: *const f32,
}

impl Finish for Scores {
    #[inline(always)]
    unsafe fn put<S: Bytes>(&self, r: usize, v: usize, sums: S::B) {
        // SAFETY: the caller's promise.
        unsafe {
            let query = S::splat(*self.queries.add(r * self.hdp + self.hdp / 2));
            let scale = S::mul(query, S::load(self.scales.add(v * LANES)));
            let score = S::mul(S::words_to_f32(sums), scale);
            S::store(self.to.add(r * PAGE + v * LANES), score);
        }
    }
}

/// Weighted sums of values, `[rows, hdp]`: what is there, rescaled, and these, times a factor of each row.
pub(super) struct Sums {
    pub(super) to: *mut f32,
    pub(super) hdp: usize,
    pub(super) rescale: [f32; LANES],
    pub(super) factors: [f32; LANES],
}

impl Finish for Sums {
    #[inline(always)]
    unsafe fn put<S: Bytes>(&self, r: usize, v: usize, sums: S::B) {
        // SAFETY: the caller's promise.
        unsafe {
            let to = self.to.add(r * self.hdp + v * LANES);
            let before = S::mul(S::load(to), S::splat(*self.rescale.get_unchecked(r)));
            let factor = S::splat(*self.factors.get_unchecked(r));
            S::store(to, S::fma(S::words_to_f32(sums), factor, before));
        }
    }
}

/// `to[r] = sum over words w of a[r, w] b[w]`, each word two codes.
pub(super) struct Product<T: Finish> {
    /// Word `w` of row `r` at `r * a_row + w`.
    pub(super) a: *const [i16; 2],
    pub(super) a_row: usize,
    /// Rows of words, `b_row` apart.
    pub(super) b: *const u8,
    pub(super) b_row: usize,
    pub(super) words: Range<usize>,
    /// Columns, in vectors of 16.
    pub(super) vectors: usize,
    pub(super) to: T,
}

impl<T: Finish> Tiles for Product<T> {
    #[inline(always)]
    fn vectors(&self) -> usize {
        self.vectors
    }

    #[inline(always)]
    fn together(&self, _: usize, _: usize) -> bool {
        true
    }

    /// A tile whose sums stay in registers.
    #[inline(always)]
    unsafe fn tile<S: Bytes, const R: usize, const V: usize>(&self, row: usize, vector: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            let mut sums = [[S::splat_byte(0); V]; R];
            let mut a = self.a.add(row * self.a_row + self.words.start);
            let mut b = self.b.add((self.words.start * self.b_row + vector * LANES) * 4);
            for _ in self.words.clone() {
                let mut bv = [S::splat_byte(0); V];
                for (v, bv) in bv.iter_mut().enumerate() {
                    *bv = S::load_bytes(b.add(v * LANES * 4));
                }
                for (r, sums) in sums.iter_mut().enumerate() {
                    let x = S::splat_word(a.add(r * self.a_row).cast());
                    for (sum, bv) in sums.iter_mut().zip(&bv) {
                        *sum = S::dot_shorts(*sum, x, *bv);
                    }
                }
                a = a.add(1);
                b = b.add(self.b_row * 4);
            }
            for (r, sums) in sums.into_iter().enumerate() {
                for (v, sum) in sums.into_iter().enumerate() {
                    self.to.put::<S>(row + r, vector + v, sum);
                }
            }
        }
    }
}
