//! Sixteen reductions at once.
#![allow(unsafe_code)]

use super::{LANES, Simd};

/// 16 reductions at once: lane `j` is the sum, or the largest, of vector `j`'s lanes, in the tree
/// of [`Simd::sum`].
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
pub unsafe fn reduce<S: Simd, const SUM: bool>(x: [S::F; LANES]) -> S::F {
    // SAFETY: the caller's promise.
    unsafe {
        let mut x = S::transpose(x);
        halve::<S, SUM, 8>(&mut x);
        halve::<S, SUM, 4>(&mut x);
        halve::<S, SUM, 2>(&mut x);
        halve::<S, SUM, 1>(&mut x);
        x[0]
    }
}

#[inline(always)]
unsafe fn halve<S: Simd, const SUM: bool, const N: usize>(x: &mut [S::F; LANES]) {
    for i in 0..N {
        // SAFETY: the caller's promise.
        unsafe { x[i] = if SUM { S::add(x[i], x[i + N]) } else { S::max(x[i], x[i + N]) } }
    }
}
