//! NEON, which every AArch64 CPU has: a vector is four quarters.
//!
//! There is no level with BF16's own products: BFDOT rounds in its own way and BFMLAL gives the bits
//! of two multiply-adds in no less time.

use super::{LANES, Simd};
use std::arch::aarch64::*;

/// NEON, and for [`Bytes`](crate::bytes::Bytes) dot products and products of matrices.
#[derive(Clone, Copy)]
pub struct Arm<const DOT: bool, const MATRICES: bool>;

/// NEON.
pub type Neon = Arm<false, false>;
/// NEON with dot products of bytes.
pub type NeonDot = Arm<true, false>;
/// And with products of matrices of bytes.
pub type NeonI8mm = Arm<true, true>;

/// All quarters; no closure, which would be compiled without the instruction set.
macro_rules! each {
    ($($v:ident),+ => $e:expr) => {[
        { let ($($v,)+) = ($($v[0],)+); $e },
        { let ($($v,)+) = ($($v[1],)+); $e },
        { let ($($v,)+) = ($($v[2],)+); $e },
        { let ($($v,)+) = ($($v[3],)+); $e },
    ]};
}
pub(crate) use each;

// SAFETY: of the impl and of every block in it: NEON is there on AArch64, and pointers are the caller's promise.
unsafe impl<const DOT: bool, const MATRICES: bool> Simd for Arm<DOT, MATRICES> {
    type F = [float32x4_t; 4];
    type Mask = [uint32x4_t; 4];
    // 24 of 32 registers.
    const TILE_ROWS: usize = 6;
    const TILE_VECTORS: usize = 1;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        // SAFETY: see the impl.
        unsafe { [vdupq_n_f32(x); 4] }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        // SAFETY: see the impl.
        unsafe { [vld1q_f32(p), vld1q_f32(p.add(4)), vld1q_f32(p.add(8)), vld1q_f32(p.add(12))] }
    }
    #[inline(always)]
    unsafe fn load_n(p: *const f32, n: usize) -> Self::F {
        let mut a = [0.0f32; LANES];
        // SAFETY: see the impl.
        unsafe {
            std::ptr::copy_nonoverlapping(p, a.as_mut_ptr(), n);
            Self::load(a.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::F) {
        // SAFETY: see the impl.
        unsafe {
            vst1q_f32(p, v[0]);
            vst1q_f32(p.add(4), v[1]);
            vst1q_f32(p.add(8), v[2]);
            vst1q_f32(p.add(12), v[3]);
        }
    }
    #[inline(always)]
    unsafe fn store_n(p: *mut f32, v: Self::F, n: usize) {
        let mut a = [0.0f32; LANES];
        // SAFETY: see the impl.
        unsafe {
            Self::store(a.as_mut_ptr(), v);
            std::ptr::copy_nonoverlapping(a.as_ptr(), p, n);
        }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see the impl.
        unsafe { each!(a, b => vaddq_f32(a, b)) }
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see the impl.
        unsafe { each!(a, b => vsubq_f32(a, b)) }
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see the impl.
        unsafe { each!(a, b => vmulq_f32(a, b)) }
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see the impl.
        unsafe { each!(a, b => vdivq_f32(a, b)) }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // SAFETY: see the impl.
        unsafe { each!(a, b, c => vfmaq_f32(c, a, b)) }
    }
    #[inline(always)]
    unsafe fn sqrt(a: Self::F) -> Self::F {
        // SAFETY: see the impl.
        unsafe { each!(a => vsqrtq_f32(a)) }
    }
    // NEON's own maximum of a number and NaN is NaN, whichever comes first.
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see the impl.
        unsafe { each!(a, b => vbslq_f32(vcgtq_f32(a, b), a, b)) }
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see the impl.
        unsafe { each!(a, b => vbslq_f32(vcltq_f32(a, b), a, b)) }
    }
    #[inline(always)]
    unsafe fn sum(v: Self::F) -> f32 {
        // SAFETY: see the impl.
        unsafe {
            let four = vaddq_f32(vaddq_f32(v[0], v[2]), vaddq_f32(v[1], v[3]));
            vpadds_f32(vadd_f32(vget_low_f32(four), vget_high_f32(four)))
        }
    }
    #[inline(always)]
    unsafe fn max_lane(v: Self::F) -> f32 {
        // SAFETY: see the impl.
        unsafe { vmaxvq_f32(vmaxq_f32(vmaxq_f32(v[0], v[2]), vmaxq_f32(v[1], v[3]))) }
    }
    #[inline(always)]
    unsafe fn round(a: Self::F) -> Self::F {
        // SAFETY: see the impl.
        unsafe { each!(a => vrndnq_f32(a)) }
    }
    #[inline(always)]
    unsafe fn scale2(a: Self::F, n: Self::F) -> Self::F {
        // SAFETY: see the impl.
        unsafe { each!(a, n => vmulq_f32(a, power(n))) }
    }
    #[inline(always)]
    unsafe fn lt(a: Self::F, b: Self::F) -> Self::Mask {
        // SAFETY: see the impl.
        unsafe { each!(a, b => vcltq_f32(a, b)) }
    }
    #[inline(always)]
    unsafe fn select(m: Self::Mask, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see the impl.
        unsafe { each!(m, a, b => vbslq_f32(m, a, b)) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self::F {
        // SAFETY: see the impl.
        unsafe {
            let (a, b) = (vld1q_u16(p), vld1q_u16(p.add(8)));
            let (c, d) = (vmovl_high_u16(a), vmovl_high_u16(b));
            let x = [vmovl_u16(vget_low_u16(a)), c, vmovl_u16(vget_low_u16(b)), d];
            each!(x => vreinterpretq_f32_u32(vshlq_n_u32::<16>(x)))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut u16, v: Self::F) {
        // SAFETY: see the impl.
        unsafe {
            let [a, b, c, d] = each!(v => vshrn_n_u32::<16>(rounded(v)));
            vst1q_u16(p, vcombine_u16(a, b));
            vst1q_u16(p.add(8), vcombine_u16(c, d));
        }
    }
    #[inline(always)]
    unsafe fn pair_bf16(even: Self::F, odd: Self::F) -> Self::F {
        // SAFETY: see the impl.
        unsafe {
            each!(even, odd => {
                vreinterpretq_f32_u32(vsriq_n_u32::<16>(rounded(odd), rounded(even)))
            })
        }
    }
    #[inline(always)]
    unsafe fn transpose(rows: [Self::F; LANES]) -> [Self::F; LANES] {
        let mut out = rows;
        for block in 0..16 {
            let (i, j, r) = (block / 4, block % 4, block / 4 * 4);
            let block = [rows[r][j], rows[r + 1][j], rows[r + 2][j], rows[r + 3][j]];
            // SAFETY: see the impl.
            let block = unsafe { transpose4(block) };
            for (c, v) in block.iter().enumerate() {
                out[j * 4 + c][i] = *v;
            }
        }
        out
    }
    #[inline(always)]
    unsafe fn splat_pair(p: *const u16) -> Self::F {
        // SAFETY: see the impl.
        unsafe { Self::splat(p.cast::<f32>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn widen_pairs(v: Self::F) -> [Self::F; 2] {
        // SAFETY: see the impl.
        unsafe { [each!(v => even(v)), each!(v => odd(v))] }
    }
}

/// `2^n` for integer-valued `n`.
#[inline(always)]
unsafe fn power(n: float32x4_t) -> float32x4_t {
    // SAFETY: NEON is there.
    unsafe {
        let e = vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127));
        vreinterpretq_f32_s32(vshlq_n_s32::<23>(e))
    }
}

/// f32 rounded to bf16, in the upper half of each lane (the lower half is arbitrary).
#[inline(always)]
unsafe fn rounded(v: float32x4_t) -> uint32x4_t {
    // SAFETY: NEON is there.
    unsafe {
        // Half of the last kept place is added, less one when that place is even; a NaN is kept
        // quiet instead.
        let x = vreinterpretq_u32_f32(v);
        let odd = vandq_u32(vshrq_n_u32::<16>(x), vdupq_n_u32(1));
        let r = vaddq_u32(x, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
        let quiet = vorrq_u32(x, vdupq_n_u32(0x0040_0000));
        vbslq_u32(vceqq_f32(v, v), r, quiet)
    }
}

/// The even ones of pairs of bf16.
#[inline(always)]
unsafe fn even(v: float32x4_t) -> float32x4_t {
    // SAFETY: NEON is there.
    unsafe { vreinterpretq_f32_u32(vshlq_n_u32::<16>(vreinterpretq_u32_f32(v))) }
}

/// The odd ones.
#[inline(always)]
unsafe fn odd(v: float32x4_t) -> float32x4_t {
    // SAFETY: NEON is there.
    unsafe {
        let high = vandq_u32(vreinterpretq_u32_f32(v), vdupq_n_u32(0xffff_0000));
        vreinterpretq_f32_u32(high)
    }
}

/// Four by four: pairs, then pairs of pairs.
#[inline(always)]
unsafe fn transpose4(r: [float32x4_t; 4]) -> [float32x4_t; 4] {
    // SAFETY: NEON is there.
    unsafe {
        let two = [
            vreinterpretq_f64_f32(vtrn1q_f32(r[0], r[1])),
            vreinterpretq_f64_f32(vtrn2q_f32(r[0], r[1])),
            vreinterpretq_f64_f32(vtrn1q_f32(r[2], r[3])),
            vreinterpretq_f64_f32(vtrn2q_f32(r[2], r[3])),
        ];
        [
            vreinterpretq_f32_f64(vtrn1q_f64(two[0], two[2])),
            vreinterpretq_f32_f64(vtrn1q_f64(two[1], two[3])),
            vreinterpretq_f32_f64(vtrn2q_f64(two[0], two[2])),
            vreinterpretq_f32_f64(vtrn2q_f64(two[1], two[3])),
        ]
    }
}
