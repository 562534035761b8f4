//! Bringing a head's rows into the order that the kernels read.

use super::BLOCK;
use crate::simd::{LANES, Simd, at};

/// Elements `d..d + 16` of the first 16 of `rows` rows, a vector for each element; what is not there is 0.
#[inline(always)]
unsafe fn columns<S: Simd>(
    from: *const f32,
    stride: usize,
    rows: usize,
    d: usize,
    hd: usize,
) -> [S::F; LANES] {
    // SAFETY: the caller gives rows of `hd` elements, `d` below it.
    unsafe {
        let mut x = [S::splat(0.0); LANES];
        for (i, x) in x.iter_mut().enumerate().take(rows) {
            *x = at::<S>(from.add(i * stride), d, hd);
        }
        S::transpose(x)
    }
}

/// `to[d * 64 + j] = from[j * stride + d]` for `rows <= 64` rows `j` of `hd` elements. Columns past
/// the rows, up to a multiple of 16, become 0.
///
/// # Safety
/// The pointers hold that; as for [`Simd`].
#[inline(always)]
pub(super) unsafe fn transpose<S: Simd>(
    from: *const f32,
    stride: usize,
    rows: usize,
    hd: usize,
    to: *mut f32,
) {
    for j in (0..rows).step_by(LANES) {
        for d in (0..hd).step_by(LANES) {
            // SAFETY: the caller's promise.
            unsafe {
                let x = columns::<S>(from.add(j * stride), stride, rows - j, d, hd);
                for (i, x) in x.iter().enumerate() {
                    if d + i < hd {
                        S::store(to.add((d + i) * BLOCK + j), *x);
                    }
                }
            }
        }
    }
}

/// As [`transpose`], but pairs: `to[d * 64 + j]` are elements `2 d` and `2 d + 1` of row `j`, as bf16.
///
/// # Safety
/// The pointers hold that; as for [`Simd`].
#[inline(always)]
pub(super) unsafe fn transpose_pairs<S: Simd>(
    from: *const f32,
    stride: usize,
    rows: usize,
    hd: usize,
    to: *mut f32,
) {
    for j in (0..rows).step_by(LANES) {
        for d in (0..hd).step_by(LANES) {
            // SAFETY: the caller's promise.
            unsafe {
                let x = columns::<S>(from.add(j * stride), stride, rows - j, d, hd);
                for (i, pair) in x.as_chunks::<2>().0.iter().enumerate() {
                    if d + 2 * i < hd {
                        let pair = S::pair_bf16(pair[0], pair[1]);
                        S::store(to.add((d / 2 + i) * BLOCK + j), pair);
                    }
                }
            }
        }
    }
}

/// Rows of `hd` elements, `stride` apart, times `factor`, as bf16 in rows of `hdp`, whole vectors, ends 0.
///
/// # Safety
/// The pointers hold that; as for [`Simd`].
#[inline(always)]
pub(super) unsafe fn halves<S: Simd>(
    from: *const f32,
    stride: usize,
    rows: usize,
    hd: usize,
    factor: f32,
    to: *mut u16,
) {
    let hdp = hd.next_multiple_of(LANES);
    for j in 0..rows {
        for d in (0..hd).step_by(LANES) {
            // SAFETY: the caller's promise.
            unsafe {
                let x = S::mul(at::<S>(from.add(j * stride), d, hd), S::splat(factor));
                S::store_bf16(to.add(j * hdp + d), x);
            }
        }
    }
}

/// The same, but pairs of rows: `to[j * hdp + d]` are elements `d` of rows `2 j` and `2 j + 1`, as bf16; what an odd
/// last row is paired with is 0.
///
/// # Safety
/// The pointers hold that; as for [`Simd`].
#[inline(always)]
pub(super) unsafe fn pair_rows<S: Simd>(
    from: *const f32,
    stride: usize,
    rows: usize,
    hd: usize,
    factor: f32,
    to: *mut f32,
) {
    let hdp = hd.next_multiple_of(LANES);
    for j in (0..rows).step_by(2) {
        for d in (0..hd).step_by(LANES) {
            // SAFETY: the caller's promise.
            unsafe {
                let even = at::<S>(from.add(j * stride), d, hd);
                let odd = match j + 1 < rows {
                    true => at::<S>(from.add((j + 1) * stride), d, hd),
                    false => S::splat(0.0),
                };
                let factor = S::splat(factor);
                let pair = S::pair_bf16(S::mul(even, factor), S::mul(odd, factor));
                S::store(to.add(j / 2 * hdp + d), pair);
            }
        }
    }
}

/// Rows of `hd` elements, `stride` apart, times `factor`, as rows of whole vectors, ends 0.
///
/// # Safety
/// The pointers hold that; as for [`Simd`].
#[inline(always)]
pub(super) unsafe fn pad<S: Simd>(
    from: *const f32,
    stride: usize,
    rows: usize,
    hd: usize,
    factor: f32,
    to: *mut f32,
) {
    let (whole, hdp) = (hd / LANES * LANES, hd.next_multiple_of(LANES));
    // SAFETY: the caller's promise.
    unsafe {
        let factor = S::splat(factor);
        for j in 0..rows {
            let (from, to) = (from.add(j * stride), to.add(j * hdp));
            let mut d = 0;
            while d < whole {
                S::store(to.add(d), S::mul(S::load(from.add(d)), factor));
                d += LANES;
            }
            if d < hd {
                S::store(to.add(d), S::mul(S::load_n(from.add(d), hd - d), factor));
            }
        }
    }
}

/// The way back: rows of whole vectors, times `factor`, to rows of `hd` elements, `stride` apart.
///
/// # Safety
/// The pointers hold that; as for [`Simd`].
#[inline(always)]
pub(super) unsafe fn unpad<S: Simd>(
    from: *const f32,
    rows: usize,
    hd: usize,
    factor: f32,
    to: *mut f32,
    stride: usize,
) {
    let (whole, hdp) = (hd / LANES * LANES, hd.next_multiple_of(LANES));
    // SAFETY: the caller's promise.
    unsafe {
        let factor = S::splat(factor);
        for j in 0..rows {
            let (from, to) = (from.add(j * hdp), to.add(j * stride));
            let mut d = 0;
            while d < whole {
                S::store(to.add(d), S::mul(S::load(from.add(d)), factor));
                d += LANES;
            }
            if d < hd {
                S::store_n(to.add(d), S::mul(S::load(from.add(d)), factor), hd - d);
            }
        }
    }
}
