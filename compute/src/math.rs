//! Functions that vectors share, the same polynomial on every instruction set.
#![allow(unsafe_code)]

use crate::simd::Simd;

/// `e^x`, within 2 units in the last place for `-87.3 <= x <= 88.3`; clamped outside, and exactly
/// 0 below -87.3 (so that a masked score, -inf, weighs nothing). NaN gives NaN: what went wrong
/// shows in the loss.
///
/// Cody–Waite reduction to `|r| <= ln 2 / 2`, then the Taylor–Remez polynomial of degree 6.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
pub unsafe fn exp<S: Simd>(x: S::F) -> S::F {
    // SAFETY: the instruction set is the caller's promise.
    unsafe {
        let low = S::splat(-87.3);
        // Gives its second operand, x, where that is NaN.
        S::select(S::lt(x, low), S::splat(0.0), exp_within::<S>(S::max(low, x)))
    }
}

/// As [`exp`], for `-87.3 <= x`; anything for less.
#[inline(always)]
unsafe fn exp_within<S: Simd>(x: S::F) -> S::F {
    // SAFETY: the instruction set is the caller's promise.
    unsafe {
        let clamped = S::min(S::splat(88.3), x);
        let n = S::round(S::mul(clamped, S::splat(std::f32::consts::LOG2_E)));
        let r = S::fma(n, S::splat(-0.693_359_4), clamped);
        let r = S::fma(n, S::splat(2.121_944_4e-4), r);
        let mut p = S::splat(1.0 / 720.0);
        for c in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
            p = S::fma(p, r, S::splat(c));
        }
        S::scale2(p, n)
    }
}

/// As [`exp`], but NaN gives 0: the difference of two masked scores, -inf, weighs nothing.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
pub unsafe fn exp_masked<S: Simd>(x: S::F) -> S::F {
    // SAFETY: the instruction set is the caller's promise.
    unsafe { S::select(S::lt(S::splat(-87.3), x), exp_within::<S>(x), S::splat(0.0)) }
}

/// `1 / (1 + e^-x)`.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
pub unsafe fn sigmoid<S: Simd>(x: S::F) -> S::F {
    // SAFETY: the instruction set is the caller's promise.
    unsafe {
        let one = S::splat(1.0);
        S::div(one, S::add(one, exp::<S>(S::sub(S::splat(0.0), x))))
    }
}

/// `tanh x`, within 1e-7.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
pub unsafe fn tanh<S: Simd>(x: S::F) -> S::F {
    // SAFETY: the instruction set is the caller's promise.
    unsafe {
        // 2 sigmoid(2 x) - 1
        S::fma(S::splat(2.0), sigmoid::<S>(S::add(x, x)), S::splat(-1.0))
    }
}

/// The sum of `f(i)` over chunks of 16, in 16 virtual lanes and a fixed tree: lane `l` adds
/// elements `l, l + 16, …` in order. Used by every reduction to one number.
///
/// # Safety
/// `x` points to `n` readable f32; as for [`Simd`].
#[inline(always)]
pub unsafe fn sum_of_squares<S: Simd>(x: *const f32, n: usize) -> f32 {
    // SAFETY: the caller's promise.
    unsafe {
        let mut acc = S::splat(0.0);
        let mut i = 0;
        while i + 16 <= n {
            let v = S::load(x.add(i));
            acc = S::fma(v, v, acc);
            i += 16;
        }
        if i < n {
            let v = S::load_n(x.add(i), n - i);
            acc = S::fma(v, v, acc);
        }
        S::sum(acc)
    }
}

/// The inner product of two vectors, reduced as [`sum_of_squares`].
///
/// # Safety
/// `a` and `b` point to `n` readable f32; as for [`Simd`].
#[inline(always)]
pub unsafe fn dot<S: Simd>(a: *const f32, b: *const f32, n: usize) -> f32 {
    // SAFETY: the caller's promise.
    unsafe {
        let mut acc = S::splat(0.0);
        let mut i = 0;
        while i + 16 <= n {
            acc = S::fma(S::load(a.add(i)), S::load(b.add(i)), acc);
            i += 16;
        }
        if i < n {
            acc = S::fma(S::load_n(a.add(i), n - i), S::load_n(b.add(i), n - i), acc);
        }
        S::sum(acc)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Isa;

    #[inline(always)]
    unsafe fn exp_all<S: Simd>(x: *const f32, y: *mut f32, n: usize) {
        for i in (0..n).step_by(16) {
            // SAFETY: n is a multiple of 16 within both.
            unsafe { S::store(y.add(i), exp::<S>(S::load(x.add(i)))) }
        }
    }

    #[test]
    fn exp_is_close_to_f64_and_the_same_everywhere() {
        let x: Vec<f32> = (0..16 * 4096).map(|i| -90.0 + i as f32 * (179.0 / 65536.0)).collect();
        let mut reference: Option<Vec<f32>> = None;
        for isa in Isa::ALL.into_iter().filter(|i| i.available()) {
            let mut y = vec![0.0f32; x.len()];
            let (px, py, n) = (x.as_ptr(), y.as_mut_ptr(), x.len());
            crate::dispatch!(isa, exp_all(x: *const f32 = px, y: *mut f32 = py, n: usize = n));
            for (&x, &y) in x.iter().zip(&y) {
                if x > -87.3 && x < 88.3 {
                    let want = f64::from(x).exp();
                    assert!((f64::from(y) - want).abs() <= 2.5e-7 * want, "exp({x}) = {y}, {want}");
                } else if x < -87.3 {
                    assert_eq!(y, 0.0);
                }
            }
            match &reference {
                None => reference = Some(y),
                Some(r) => assert!(r.iter().zip(&y).all(|(a, b)| a.to_bits() == b.to_bits())),
            }
        }
    }
}
