//! Bringing a head's rows into the order that the kernels read.

use super::BLOCK;
use crate::simd::{LANES, Simd, at, put};

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
    for j in 0..rows.next_multiple_of(LANES) {
        for d in 0..hd {
            // SAFETY: the caller's promise.
            unsafe {
                *to.add(d * BLOCK + j) = if j < rows { *from.add(j * stride + d) } else { 0.0 }
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
    let hdp = hd.next_multiple_of(LANES);
    for j in 0..rows {
        for d in (0..hd).step_by(LANES) {
            // SAFETY: the caller's promise.
            unsafe {
                let x = S::mul(at::<S>(from.add(j * stride), d, hd), S::splat(factor));
                S::store(to.add(j * hdp + d), x);
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
    let hdp = hd.next_multiple_of(LANES);
    for j in 0..rows {
        for d in (0..hd).step_by(LANES) {
            // SAFETY: the caller's promise.
            unsafe {
                let x = S::mul(S::load(from.add(j * hdp + d)), S::splat(factor));
                put::<S>(to.add(j * stride), d, hd, x);
            }
        }
    }
}
