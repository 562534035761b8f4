//! Products of small matrices where each row has a range of k of its own: what a causal mask or a
//! sliding window leaves, without multiplying by what it hides.

use std::ops::Range;

use half::{bf16, f16};

use super::tiles::Tiles;
use crate::bytes::Bytes;
use crate::simd::{LANES, Simd};

/// What the matrix on the right holds.
pub(super) trait Element: Copy {
    /// Whether bands by it may slope; the code of those that don't is a third as long.
    const SLOPES: bool;
    /// Whether a step of a chain is two elements.
    const PAIRS: bool = false;

    /// Sixteen, widened.
    ///
    /// # Safety
    /// They are there; as for [`Bytes`].
    unsafe fn load<S: Bytes>(p: *const Self) -> S::F;

    /// A step of a chain.
    ///
    /// # Safety
    /// As for [`Bytes`].
    #[inline(always)]
    unsafe fn add<S: Bytes>(sum: S::F, a: S::F, b: S::F) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { S::fma(a, b, sum) }
    }
}

/// Two bf16 that follow each other along k, in a word; those on the left are so, too.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Pairs(f32);

impl Element for Pairs {
    const SLOPES: bool = false;
    const PAIRS: bool = true;

    #[inline(always)]
    unsafe fn load<S: Bytes>(p: *const Self) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { S::load(p.cast()) }
    }

    #[inline(always)]
    unsafe fn add<S: Bytes>(sum: S::F, a: S::F, b: S::F) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { S::dot_bf16(sum, a, b) }
    }
}

macro_rules! element {
    ($($type:ty, $slopes:expr, $load:ident;)*) => {$(
        impl Element for $type {
            const SLOPES: bool = $slopes;
            #[inline(always)]
            unsafe fn load<S: Bytes>(p: *const Self) -> S::F {
                // SAFETY: the caller's promise.
                unsafe { S::$load(p.cast()) }
            }
        }
    )*};
}
element! { f32, true, load; f16, false, load_f16; bf16, false, load_bf16; }

/// Row `r` takes the `k` of `from + r * slope .. to + r * slope` that are in `0..depth`.
#[derive(Clone, Copy)]
pub(super) struct Band {
    pub(super) from: isize,
    pub(super) to: isize,
    /// 0 or 1.
    pub(super) slope: isize,
    pub(super) depth: usize,
}

impl Band {
    pub(super) fn all(depth: usize) -> Band {
        Band { from: 0, to: depth as isize, slope: 0, depth }
    }

    pub(super) fn row(&self, r: usize) -> Range<usize> {
        let r = r as isize * self.slope;
        let clamp = |x: isize| x.clamp(0, self.depth as isize) as usize;
        clamp(self.from + r)..clamp(self.to + r)
    }

    /// What a product by `E` goes through for the first `rows`: for pairs those that any of the rows takes, where
    /// the others have zeros on the left.
    pub(super) fn of<E: Element>(self, rows: usize) -> Band {
        if !E::PAIRS {
            return self;
        }
        let (from, to) = (self.row(0).start / 2, self.row(rows - 1).end.div_ceil(2));
        Band { from: from as isize, to: to as isize, slope: 0, depth: self.depth.div_ceil(2) }
    }
}

/// What the chains of a product start from.
#[derive(Clone, Copy)]
pub(super) enum Start {
    Zero,
    /// What is in `c`.
    Go,
    /// What is in `c`, times a factor for each row.
    Scaled(*const f32),
}

/// `c[r] = start + Σ_k a[r, k] b[k]`, each element one chain in order of k.
#[derive(Clone, Copy)]
pub(super) struct Product<E: Element> {
    /// Element `(r, k)`, or pair, at `r * a_row + k * a_k`.
    pub(super) a: *const f32,
    pub(super) a_row: usize,
    pub(super) a_k: usize,
    /// Rows `b_row` apart.
    pub(super) b: *const E,
    pub(super) b_row: usize,
    /// Rows `c_row` apart.
    pub(super) c: *mut f32,
    pub(super) c_row: usize,
    /// Columns, in whole vectors of 16.
    pub(super) vectors: usize,
    pub(super) band: Band,
    pub(super) start: Start,
}

/// Rows of a tile: with [`vectors`] it fills the registers. Divides a block.
pub(super) const fn rows<S: Simd>() -> usize {
    if S::TILE_VECTORS > 1 { 8 } else { 4 }
}

impl<E: Element> Tiles for Product<E> {
    #[inline(always)]
    fn vectors(&self) -> usize {
        self.vectors
    }

    /// Whether the rows share some k, and each begins and ends where the one before it does, or
    /// one later: what [`Tiles::tile`] can do.
    #[inline(always)]
    fn together(&self, row: usize, rows: usize) -> bool {
        debug_assert!(E::SLOPES || self.band.slope == 0);
        let (first, last) = (self.band.row(row), self.band.row(row + rows - 1));
        let even = |steps: usize| steps == 0 || steps == rows - 1;
        let shared = last.start < first.end || self.band.slope == 0;
        shared && even(last.start - first.start) && even(last.end - first.end)
    }

    /// A tile whose accumulators stay in registers: a triangle where rows begin one after the
    /// other, the k that all share, a triangle where rows end one after the other.
    #[inline(always)]
    #[allow(unused_assignments)] // a and b after the last step
    unsafe fn tile<S: Bytes, const R: usize, const V: usize>(&self, row: usize, vector: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            let c = self.c.add(row * self.c_row + vector * LANES);
            let mut acc = [[S::splat(0.0); V]; R];
            if !matches!(self.start, Start::Zero) {
                for (r, acc) in acc.iter_mut().enumerate() {
                    for (v, acc) in acc.iter_mut().enumerate() {
                        *acc = S::load(c.add(r * self.c_row + v * LANES));
                    }
                }
            }
            if let Start::Scaled(factors) = self.start {
                for (r, acc) in acc.iter_mut().enumerate() {
                    let factor = S::splat(*factors.add(row + r));
                    acc.iter_mut().for_each(|acc| *acc = S::mul(*acc, factor));
                }
            }
            let (first, last) = (self.band.row(row), self.band.row(row + R - 1));
            let mut a = self.a.add(row * self.a_row + first.start * self.a_k);
            let mut b = self.b.add(first.start * self.b_row + vector * LANES);
            macro_rules! step {
                ($rows:expr) => {
                    self.step::<S, R, V>(&mut acc, $rows, a, b);
                    a = a.add(self.a_k);
                    b = b.add(self.b_row);
                };
            }
            // Written out, so that every accumulator has a register of its own.
            macro_rules! triangle {
                ($($n:literal)*, $before:expr) => {$(
                    if $n < R {
                        step!(if $before { 0..$n } else { $n..R });
                    }
                )*};
            }
            if E::SLOPES && last.start > first.start {
                triangle!(1 2 3 4 5 6 7, true);
            }
            for _ in last.start..first.end {
                step!(0..R);
            }
            if E::SLOPES && last.end > first.end {
                triangle!(1 2 3 4 5 6 7, false);
            }
            for (r, acc) in acc.iter().enumerate() {
                for (v, acc) in acc.iter().enumerate() {
                    S::store(c.add(r * self.c_row + v * LANES), *acc);
                }
            }
        }
    }
}

impl<E: Element> Product<E> {
    /// One k for some of the rows of a tile.
    #[inline(always)]
    unsafe fn step<S: Bytes, const R: usize, const V: usize>(
        &self,
        acc: &mut [[S::F; V]; R],
        rows: Range<usize>,
        a: *const f32,
        b: *const E,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let mut bv = [S::splat(0.0); V];
            for (v, bv) in bv.iter_mut().enumerate() {
                *bv = E::load::<S>(b.add(v * LANES));
            }
            for r in rows {
                let x = S::splat(*a.add(r * self.a_row));
                for (acc, bv) in acc[r].iter_mut().zip(&bv) {
                    *acc = E::add::<S>(*acc, x, *bv);
                }
            }
        }
    }
}
