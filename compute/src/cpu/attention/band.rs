//! Products of small matrices where each row has a range of k of its own: what a causal mask or a
//! sliding window leaves, without multiplying by what it hides.

use std::ops::Range;

use crate::simd::{LANES, Simd};

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
pub(super) struct Product {
    /// Element `(r, k)` at `r * a_row + k * a_k`.
    pub(super) a: *const f32,
    pub(super) a_row: usize,
    pub(super) a_k: usize,
    /// Rows `b_row` apart.
    pub(super) b: *const f32,
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

impl Product {
    /// Computes `rows` rows.
    ///
    /// # Safety
    /// The pointers hold what the fields say; as for [`Simd`].
    #[inline(always)]
    pub(super) unsafe fn run<S: Simd>(&self, rows: usize) {
        let mut r = 0;
        // SAFETY: the caller's promise; tiles are within rows and columns.
        unsafe {
            if S::TILE_VECTORS > 1 {
                while r + 8 <= rows {
                    self.stripe::<S, 8>(r);
                    r += 8;
                }
            }
            while r + 4 <= rows {
                self.stripe::<S, 4>(r);
                r += 4;
            }
            match rows - r {
                0 => {}
                1 => self.stripe::<S, 1>(r),
                2 => self.stripe::<S, 2>(r),
                _ => self.stripe::<S, 3>(r),
            }
        }
    }

    #[inline(always)]
    unsafe fn stripe<S: Simd, const R: usize>(&self, row: usize) {
        let mut v = 0;
        // SAFETY: the caller's promise.
        unsafe {
            if S::TILE_VECTORS > 1 {
                while v + 2 <= self.vectors {
                    self.tile::<S, R, 2>(row, v);
                    v += 2;
                }
            }
            while v < self.vectors {
                self.tile::<S, R, 1>(row, v);
                v += 1;
            }
        }
    }

    #[inline(always)]
    unsafe fn tile<S: Simd, const R: usize, const V: usize>(&self, row: usize, vector: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            let a = self.a.add(row * self.a_row);
            let b = self.b.add(vector * LANES);
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
            // All rows share `inner`; before and after it each k is for some of them.
            let (first, last) = (self.band.row(row), self.band.row(row + R - 1));
            let inner =
                if last.start < first.end { last.start..first.end } else { last.end..last.end };
            self.edge::<S, R, V>(&mut acc, a, b, row, first.start..inner.start);
            let (mut ak, mut bk) = (a.add(inner.start * self.a_k), b.add(inner.start * self.b_row));
            for _ in inner.clone() {
                let mut bv = [S::splat(0.0); V];
                for (v, bv) in bv.iter_mut().enumerate() {
                    *bv = S::load(bk.add(v * LANES));
                }
                for (r, acc) in acc.iter_mut().enumerate() {
                    let x = S::splat(*ak.add(r * self.a_row));
                    for (acc, bv) in acc.iter_mut().zip(&bv) {
                        *acc = S::fma(x, *bv, *acc);
                    }
                }
                ak = ak.add(self.a_k);
                bk = bk.add(self.b_row);
            }
            self.edge::<S, R, V>(&mut acc, a, b, row, inner.end..last.end);
            for (r, acc) in acc.iter().enumerate() {
                for (v, acc) in acc.iter().enumerate() {
                    S::store(c.add(r * self.c_row + v * LANES), *acc);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn edge<S: Simd, const R: usize, const V: usize>(
        &self,
        acc: &mut [[S::F; V]; R],
        a: *const f32,
        b: *const f32,
        row: usize,
        k: Range<usize>,
    ) {
        for k in k {
            for (r, acc) in acc.iter_mut().enumerate() {
                if self.band.row(row + r).contains(&k) {
                    // SAFETY: the caller's promise.
                    unsafe {
                        let x = S::splat(*a.add(r * self.a_row + k * self.a_k));
                        for (v, acc) in acc.iter_mut().enumerate() {
                            *acc = S::fma(x, S::load(b.add(k * self.b_row + v * LANES)), *acc);
                        }
                    }
                }
            }
        }
    }
}
