//! The innermost product: a tile of accumulators that stays in registers while k goes by.
#![allow(unsafe_code)]

use crate::simd::{LANES, Simd};

/// How operands of a type are read.
pub(crate) trait Element {
    type T: Copy;
    /// Elements that one step of a chain takes.
    const UNIT: usize;
    /// One step of a row, in all lanes.
    unsafe fn broadcast<S: Simd>(p: *const Self::T) -> S::F;
    /// One step of 16 columns.
    unsafe fn load<S: Simd>(p: *const Self::T) -> S::F;
    /// The chain goes on.
    unsafe fn multiply_add<S: Simd>(acc: S::F, a: S::F, b: S::F) -> S::F;
}

pub(crate) struct F32;
pub(crate) struct Bf16;

impl Element for F32 {
    type T = f32;
    const UNIT: usize = 1;
    #[inline(always)]
    unsafe fn broadcast<S: Simd>(p: *const f32) -> S::F {
        // SAFETY: the caller's promise, as in all of these.
        unsafe { S::splat(*p) }
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const f32) -> S::F {
        // SAFETY: see above.
        unsafe { S::load(p) }
    }
    #[inline(always)]
    unsafe fn multiply_add<S: Simd>(acc: S::F, a: S::F, b: S::F) -> S::F {
        // SAFETY: see above.
        unsafe { S::fma(a, b, acc) }
    }
}

impl Element for Bf16 {
    type T = u16;
    const UNIT: usize = 2;
    #[inline(always)]
    unsafe fn broadcast<S: Simd>(p: *const u16) -> S::F {
        // SAFETY: see above.
        unsafe { S::splat_pair(p) }
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u16) -> S::F {
        // SAFETY: see above; 16 pairs.
        unsafe { S::load(p.cast()) }
    }
    #[inline(always)]
    unsafe fn multiply_add<S: Simd>(acc: S::F, a: S::F, b: S::F) -> S::F {
        // SAFETY: see above.
        unsafe { S::dot_bf16(acc, a, b) }
    }
}

/// One accumulator tile.
pub(crate) struct Tile<E: Element> {
    /// Element `(r, kk)` is at `r * row_step + kk * k_step`.
    pub(crate) a: *const E::T,
    pub(crate) row_step: usize,
    pub(crate) k_step: usize,
    /// Columns lie side by side (as pairs for bf16), steps of k `b_step` elements apart. Whole
    /// vectors are read.
    pub(crate) b: *const E::T,
    pub(crate) b_step: usize,
    /// Steps of the chains.
    pub(crate) k: usize,
    /// Rows `ldc` apart.
    pub(crate) c: *mut f32,
    pub(crate) ldc: usize,
    /// At most `TILE_VECTORS * 16`.
    pub(crate) columns: usize,
    /// Whether the chains go on from `c`.
    pub(crate) more: bool,
}

impl<E: Element> Tile<E> {
    /// Computes `rows <= TILE_ROWS` rows.
    ///
    /// # Safety
    /// The pointers hold what the fields say; as for [`Simd`].
    #[inline(always)]
    pub(crate) unsafe fn run<S: Simd>(&self, rows: usize) {
        macro_rules! by_rows {
            ($($r:literal)*) => {
                match (rows, self.columns.div_ceil(LANES)) {
                    $(
                        ($r, 1) => self.multiply::<S, $r, 1>(),
                        ($r, 2) => self.multiply::<S, $r, 2>(),
                        ($r, _) => self.multiply::<S, $r, 3>(),
                    )*
                    _ => {}
                }
            };
        }
        // SAFETY: the caller's promise.
        unsafe {
            if S::TILE_VECTORS == 1 {
                match rows {
                    1 => self.multiply::<S, 1, 1>(),
                    2 => self.multiply::<S, 2, 1>(),
                    3 => self.multiply::<S, 3, 1>(),
                    4 => self.multiply::<S, 4, 1>(),
                    5 => self.multiply::<S, 5, 1>(),
                    _ => self.multiply::<S, 6, 1>(),
                }
            } else {
                by_rows!(1 2 3 4 5 6 7 8)
            }
        }
    }

    #[inline(always)]
    unsafe fn multiply<S: Simd, const R: usize, const V: usize>(&self) {
        let full = self.columns == V * LANES;
        // SAFETY: the caller's promise.
        unsafe {
            let mut acc = [[S::splat(0.0); V]; R];
            if self.more {
                for (r, acc) in acc.iter_mut().enumerate() {
                    for (v, acc) in acc.iter_mut().enumerate() {
                        let p = self.c.add(r * self.ldc + v * LANES);
                        *acc = if full || v + 1 < V {
                            S::load(p)
                        } else {
                            S::load_n(p, self.columns - v * LANES)
                        };
                    }
                }
            }
            let (mut a, mut b) = (self.a, self.b);
            for _ in 0..self.k {
                let mut bv = [S::splat(0.0); V];
                for (v, bv) in bv.iter_mut().enumerate() {
                    *bv = E::load::<S>(b.add(v * LANES * E::UNIT));
                }
                for (r, acc) in acc.iter_mut().enumerate() {
                    let x = E::broadcast::<S>(a.add(r * self.row_step));
                    for (acc, bv) in acc.iter_mut().zip(&bv) {
                        *acc = E::multiply_add::<S>(*acc, x, *bv);
                    }
                }
                a = a.add(self.k_step);
                b = b.add(self.b_step);
            }
            for (r, acc) in acc.iter().enumerate() {
                for (v, acc) in acc.iter().enumerate() {
                    let p = self.c.add(r * self.ldc + v * LANES);
                    if full || v + 1 < V {
                        S::store(p, *acc);
                    } else {
                        S::store_n(p, *acc, self.columns - v * LANES);
                    }
                }
            }
        }
    }
}

/// `c = a b`, or `c += a b`, of any small size on one thread: `a` `[m, k]` with element `(r, kk)` at
/// `r * a_row + kk * a_k`; `b` `[k, n]` with rows `b_row` apart; `c` `[m, n]` with rows `c_row` apart.
///
/// # Safety
/// The pointers hold that, `b` up to whole vectors of columns; as for [`Simd`].
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub(crate) unsafe fn product<S: Simd>(
    (m, n, k): (usize, usize, usize),
    (a, a_row, a_k): (*const f32, usize, usize),
    (b, b_row): (*const f32, usize),
    (c, c_row): (*mut f32, usize),
    more: bool,
) {
    let width = S::TILE_VECTORS * LANES;
    for column in (0..n).step_by(width) {
        for row in (0..m).step_by(S::TILE_ROWS) {
            // SAFETY: inside of what the caller gave.
            unsafe {
                let tile = Tile::<F32> {
                    a: a.add(row * a_row),
                    row_step: a_row,
                    k_step: a_k,
                    b: b.add(column),
                    b_step: b_row,
                    k,
                    c: c.add(row * c_row + column),
                    ldc: c_row,
                    columns: width.min(n - column),
                    more,
                };
                tile.run::<S>(S::TILE_ROWS.min(m - row));
            }
        }
    }
}
