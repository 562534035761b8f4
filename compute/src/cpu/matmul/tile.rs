//! The innermost product: a tile of accumulators that stays in registers while k goes by.
//!
//! A step of a chain is one 32-bit word of each operand: an f32, or (`PAIRS`) two bf16 that follow
//! each other along k.
#![allow(unsafe_code)]

use std::hint::black_box;

use crate::simd::{Cache, LANES, Simd, prefetch};

/// Rows of a tile on any instruction set, at most.
const MOST_ROWS: usize = 16;

/// One accumulator tile.
#[derive(Clone, Copy)]
pub(super) struct Tile<const PAIRS: bool> {
    /// The word of row `r` and step `kk` is at `r * row_step + kk * k_step`.
    pub(super) a: *const f32,
    pub(super) row_step: usize,
    pub(super) k_step: usize,
    /// Columns lie side by side, steps of k `b_step` words apart. Whole vectors are read.
    pub(super) b: *const f32,
    pub(super) b_step: usize,
    /// Steps of the chains.
    pub(super) k: usize,
    /// Rows `ldc` apart.
    pub(super) c: *mut f32,
    pub(super) ldc: usize,
    /// At most `TILE_VECTORS * 16`.
    pub(super) columns: usize,
    /// Whether the chains go on from `c`.
    pub(super) more: bool,
}

impl<const PAIRS: bool> Tile<PAIRS> {
    /// Computes `rows <= TILE_ROWS` rows.
    ///
    /// # Safety
    /// The pointers (`a` at any alignment) hold what the fields say; as for [`Simd`].
    #[inline(always)]
    pub(super) unsafe fn run<S: Simd>(&self, rows: usize) {
        macro_rules! by_rows {
            ($v:literal: $($r:literal)*) => {
                match rows {
                    $($r => self.multiply::<S, $r, $v>(),)*
                    _ => {}
                }
            };
        }
        // SAFETY: the caller's promise.
        unsafe {
            if const { S::TILE_VECTORS == 1 } {
                by_rows!(1: 1 2 3 4 5 6)
            } else {
                by_rows!(2: 1 2 3 4 5 6 7 8 9 10 11 12 13 14)
            }
        }
    }

    /// Asks for the outputs of the tile below.
    #[inline(always)]
    pub(super) fn prefetch(&self, rows: usize) {
        for r in rows..2 * rows {
            for column in (0..self.columns).step_by(LANES) {
                prefetch(self.c.wrapping_add(r * self.ldc + column).cast(), Cache::First);
            }
        }
    }

    #[inline(always)]
    unsafe fn multiply<S: Simd, const R: usize, const V: usize>(&self) {
        // SAFETY: the caller's promise.
        unsafe {
            let mut acc = [[S::splat(0.0); V]; R];
            if self.more {
                for (r, acc) in acc.iter_mut().enumerate() {
                    for (v, acc) in acc.iter_mut().enumerate() {
                        let p = self.c.wrapping_add(r * self.ldc + v * LANES);
                        *acc = match self.columns.saturating_sub(v * LANES) {
                            LANES.. => S::load(p),
                            left => S::load_n(p, left),
                        };
                    }
                }
            }
            // Every fourth row has a pointer of its own: the others are one addressing mode away,
            // where one pointer for all would go through a chain of additions as long as the
            // multiply-adds take. (The compiler makes that chain if it sees that they are related.)
            let mut a = [self.a; MOST_ROWS / 4];
            for (i, a) in a.iter_mut().enumerate().take(R.div_ceil(4)).skip(1) {
                *a = black_box(self.a.wrapping_add(4 * i * self.row_step));
            }
            let mut b = self.b;
            for _ in 0..self.k {
                let mut bv = [S::splat(0.0); V];
                for (v, bv) in bv.iter_mut().enumerate() {
                    *bv = S::load(b.add(v * LANES));
                }
                for (r, acc) in acc.iter_mut().enumerate() {
                    let p = a[r / 4].wrapping_add(r % 4 * self.row_step);
                    let x = S::splat(p.read_unaligned());
                    for (acc, bv) in acc.iter_mut().zip(&bv) {
                        *acc = if PAIRS { S::dot_bf16(*acc, x, *bv) } else { S::fma(x, *bv, *acc) };
                    }
                }
                for a in &mut a {
                    *a = a.wrapping_add(self.k_step);
                }
                b = b.wrapping_add(self.b_step);
            }
            for (r, acc) in acc.iter().enumerate() {
                for (v, acc) in acc.iter().enumerate() {
                    let p = self.c.wrapping_add(r * self.ldc + v * LANES);
                    match self.columns.saturating_sub(v * LANES) {
                        LANES.. => S::store(p, *acc),
                        left => S::store_n(p, *acc, left),
                    }
                }
            }
        }
    }
}
