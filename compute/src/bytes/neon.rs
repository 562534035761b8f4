//! [`Bytes`] by NEON, whose products are of signed bytes.

use std::arch::{aarch64::*, asm};

use super::{BYTES, Bytes};
use crate::simd::{Arm, Neon, each};

// SAFETY: of the impl and of every block in it: NEON is there on AArch64; where `DOT` and `MATRICES` are set, such
// products of bytes are the caller's promise, and so are pointers.
unsafe impl<const DOT: bool, const MATRICES: bool> Bytes for Arm<DOT, MATRICES> {
    type B = [uint8x16_t; 4];
    const MATRICES: bool = MATRICES;
    // 12 sums, 12 dot products and what they are made of fill 32 registers. Matrices have rows in twos.
    const BYTE_TILE: (usize, usize) = (if MATRICES { 4 } else { 3 }, 1);

    #[inline(always)]
    unsafe fn load_bytes(p: *const u8) -> Self::B {
        // SAFETY: see the impl.
        unsafe { [vld1q_u8(p), vld1q_u8(p.add(16)), vld1q_u8(p.add(32)), vld1q_u8(p.add(48))] }
    }
    #[inline(always)]
    unsafe fn store_bytes(p: *mut u8, v: Self::B) {
        // SAFETY: see the impl.
        unsafe {
            vst1q_u8(p, v[0]);
            vst1q_u8(p.add(16), v[1]);
            vst1q_u8(p.add(32), v[2]);
            vst1q_u8(p.add(48), v[3]);
        }
    }
    #[inline(always)]
    unsafe fn splat_byte(x: u8) -> Self::B {
        // SAFETY: see the impl.
        unsafe { [vdupq_n_u8(x); 4] }
    }
    #[inline(always)]
    unsafe fn splat_word(p: *const u8) -> Self::B {
        // SAFETY: see the impl.
        unsafe { [vreinterpretq_u8_u32(vdupq_n_u32(p.cast::<u32>().read_unaligned())); 4] }
    }
    #[inline(always)]
    unsafe fn or(a: Self::B, b: Self::B) -> Self::B {
        // SAFETY: see the impl.
        unsafe { each!(a, b => vorrq_u8(a, b)) }
    }
    #[inline(always)]
    unsafe fn sub_bytes(a: Self::B, b: Self::B) -> Self::B {
        // SAFETY: see the impl.
        unsafe { each!(a, b => vsubq_u8(a, b)) }
    }
    #[inline(always)]
    unsafe fn bits(v: Self::B, shift: i32, mask: u8) -> Self::B {
        // SAFETY: see the impl.
        unsafe {
            let (right, mask) = (vdupq_n_s8(-shift as i8), vdupq_n_u8(mask));
            each!(v => vandq_u8(vshlq_u8(v, right), mask))
        }
    }
    #[inline(always)]
    unsafe fn lookup(table: &[i8; 16], v: Self::B) -> Self::B {
        // SAFETY: see the impl.
        unsafe {
            let table = vld1q_u8(table.as_ptr().cast());
            each!(v => vqtbl1q_u8(table, v))
        }
    }
    #[inline(always)]
    unsafe fn word_bits(v: Self::B, shift: i32, mask: u32) -> Self::B {
        // SAFETY: see the impl.
        unsafe {
            let (right, mask) = (vdupq_n_s32(-shift), vdupq_n_u32(mask));
            each!(v => {
                let shifted = vshlq_u32(vreinterpretq_u32_u8(v), right);
                vreinterpretq_u8_u32(vandq_u32(shifted, mask))
            })
        }
    }
    #[inline(always)]
    unsafe fn word_byte(v: Self::B, i: i32) -> Self::B {
        // SAFETY: see the impl.
        unsafe {
            let up = vdupq_n_s32(24 - 8 * i);
            each!(v => {
                let top = vshlq_s32(vreinterpretq_s32_u8(v), up);
                vreinterpretq_u8_s32(vshrq_n_s32::<24>(top))
            })
        }
    }
    #[inline(always)]
    unsafe fn lift_words(v: Self::B, shift: i32) -> Self::B {
        // SAFETY: see the impl.
        unsafe {
            let up = vdupq_n_s32(shift);
            each!(v => vreinterpretq_u8_u32(vshlq_u32(vreinterpretq_u32_u8(v), up)))
        }
    }
    #[inline(always)]
    unsafe fn words_to_f32(v: Self::B) -> Self::F {
        // SAFETY: see the impl.
        unsafe { each!(v => vcvtq_f32_s32(vreinterpretq_s32_u8(v))) }
    }
    #[inline(always)]
    unsafe fn f32_to_words(v: Self::F) -> Self::B {
        // SAFETY: see the impl.
        unsafe { each!(v => vreinterpretq_u8_s32(vcvtnq_s32_f32(v))) }
    }
    #[inline(always)]
    unsafe fn store_codes(p: *mut u8, v: Self::F) {
        // SAFETY: see the impl.
        unsafe {
            let [a, b, c, d] = each!(v => vqmovn_s32(vcvtnq_s32_f32(v)));
            let (low, high) = (vqmovn_s16(vcombine_s16(a, b)), vqmovn_s16(vcombine_s16(c, d)));
            vst1q_s8(p.cast(), vcombine_s8(low, high));
        }
    }
    #[inline(always)]
    unsafe fn store_shorts(p: *mut i16, v: Self::F) {
        // SAFETY: see the impl.
        unsafe {
            let [a, b, c, d] = each!(v => vqmovn_s32(vcvtnq_s32_f32(v)));
            vst1q_s16(p, vcombine_s16(a, b));
            vst1q_s16(p.add(8), vcombine_s16(c, d));
        }
    }
    #[inline(always)]
    unsafe fn dot_shorts(acc: Self::B, a: Self::B, b: Self::B) -> Self::B {
        // SAFETY: see the impl.
        unsafe {
            each!(acc, a, b => {
                let (a, b) = (vreinterpretq_s16_u8(a), vreinterpretq_s16_u8(b));
                let low = vmull_s16(vget_low_s16(a), vget_low_s16(b));
                let sums = vpaddq_s32(low, vmull_high_s16(a, b));
                vreinterpretq_u8_s32(vaddq_s32(vreinterpretq_s32_u8(acc), sums))
            })
        }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self::F {
        // SAFETY: see the impl.
        unsafe {
            let v = [vld1_u16(p), vld1_u16(p.add(4)), vld1_u16(p.add(8)), vld1_u16(p.add(12))];
            each!(v => vcvt_f32_f16(vreinterpret_f16_u16(v)))
        }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const u8) -> Self::F {
        // SAFETY: see the impl.
        unsafe {
            let v = vld1q_s8(p.cast());
            let (a, b) = (vmovl_s8(vget_low_s8(v)), vmovl_high_s8(v));
            let (low, high) = (vget_low_s16(a), vget_low_s16(b));
            let v = [vmovl_s16(low), vmovl_high_s16(a), vmovl_s16(high), vmovl_high_s16(b)];
            each!(v => vcvtq_f32_s32(v))
        }
    }
    #[inline(always)]
    unsafe fn dot(acc: Self::B, w: Self::B, x: Self::B) -> Self::B {
        // SAFETY: see the impl.
        unsafe {
            if DOT {
                each!(acc, w, x => dot_words(acc, w, x))
            } else {
                each!(acc, w, x => dot_pairs(acc, w, x))
            }
        }
    }
    #[inline(always)]
    unsafe fn interleave(a: Self::B, b: Self::B) -> [Self::B; 2] {
        // SAFETY: see the impl.
        unsafe {
            let (a, b) = (each!(a => vreinterpretq_u32_u8(a)), each!(b => vreinterpretq_u32_u8(b)));
            let (low, high) = (each!(a, b => vzip1q_u32(a, b)), each!(a, b => vzip2q_u32(a, b)));
            [[low[0], high[0], low[1], high[1]], [low[2], high[2], low[3], high[3]]]
                .map(|v| each!(v => vreinterpretq_u8_u32(v)))
        }
    }
    #[inline(always)]
    unsafe fn apart(a: Self::B, b: Self::B) -> [Self::B; 2] {
        // SAFETY: see the impl.
        unsafe {
            let (a, b) = (each!(a => vreinterpretq_u32_u8(a)), each!(b => vreinterpretq_u32_u8(b)));
            let (even, odd) = ([a[0], a[2], b[0], b[2]], [a[1], a[3], b[1], b[3]]);
            let first = each!(even, odd => vreinterpretq_u8_u32(vuzp1q_u32(even, odd)));
            [first, each!(even, odd => vreinterpretq_u8_u32(vuzp2q_u32(even, odd)))]
        }
    }
    #[inline(always)]
    unsafe fn dots<const R: usize>(
        acc: [Self::B; R],
        w: *const u8,
        x: [*const u8; R],
        steps: usize,
    ) -> [Self::B; R] {
        // SAFETY: see the impl.
        unsafe { dots_of_half::<R, 1>(dots_of_half::<R, 0>(acc, w, x, steps), w, x, steps) }
    }
}

/// [`Bytes::dots`] of one half of the columns. Rows are taken in twos, and columns too: sums of two rows by two columns
/// are side by side.
#[inline(always)]
unsafe fn dots_of_half<const R: usize, const HALF: usize>(
    mut acc: [[uint8x16_t; 4]; R],
    w: *const u8,
    x: [*const u8; R],
    steps: usize,
) -> [[uint8x16_t; 4]; R] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut tiles = [[vdupq_n_u8(0); 4]; R];
        for row in (0..R).step_by(2) {
            let other = (row + 1).min(R - 1);
            let [a, b] = [row, other].map(|row| [acc[row][HALF * 2], acc[row][HALF * 2 + 1]]);
            let [[t0, t1], [t2, t3]] = [halves(a[0], b[0]), halves(a[1], b[1])];
            tiles[row] = [t0, t1, t2, t3];
        }
        for step in (0..steps).step_by(2) {
            let w = Neon::load_bytes(w.add((step + HALF) * BYTES));
            for row in (0..R).step_by(2) {
                let other = (row + 1).min(R - 1);
                let [a, b] = [x[row], x[other]].map(|x| vld1_u8(x.add(step * 4)));
                let (tile, two) = (tiles[row], vcombine_u8(a, b));
                tiles[row] = each!(tile, w => dot_matrices(tile, w, two));
            }
        }
        for row in (0..R).step_by(2) {
            let [t0, t1, t2, t3] = tiles[row];
            let [a, b] = [halves(t0, t1), halves(t2, t3)];
            for (i, row) in (row..R.min(row + 2)).enumerate() {
                acc[row][HALF * 2] = a[i];
                acc[row][HALF * 2 + 1] = b[i];
            }
        }
    }
    acc
}

/// The first halves of both, and the second ones.
#[inline(always)]
unsafe fn halves(a: uint8x16_t, b: uint8x16_t) -> [uint8x16_t; 2] {
    // SAFETY: NEON is there.
    unsafe {
        let (a, b) = (vreinterpretq_u64_u8(a), vreinterpretq_u64_u8(b));
        [vzip1q_u64(a, b), vzip2q_u64(a, b)].map(|v| vreinterpretq_u8_u64(v))
    }
}

/// `[2, 2]` sums of `[2, 8]` rows by `[2, 8]` columns; by the instruction's name, as `vmmlaq_s32` is not in stable Rust.
#[inline(always)]
unsafe fn dot_matrices(mut acc: uint8x16_t, w: uint8x16_t, x: uint8x16_t) -> uint8x16_t {
    // SAFETY: products of matrices of bytes are the caller's promise.
    unsafe {
        asm!(
            "smmla {acc:v}.4s, {x:v}.16b, {w:v}.16b",
            acc = inout(vreg) acc,
            x = in(vreg) x,
            w = in(vreg) w,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    acc
}

/// Pairs of products are added in 16 bits: 2 * 127 * 128 fits.
#[inline(always)]
unsafe fn dot_pairs(acc: uint8x16_t, w: uint8x16_t, x: uint8x16_t) -> uint8x16_t {
    // SAFETY: NEON is there.
    unsafe {
        let (x, w) = (vreinterpretq_s8_u8(x), vreinterpretq_s8_u8(w));
        let low = vmull_s8(vget_low_s8(x), vget_low_s8(w));
        let pairs = vpaddq_s16(low, vmull_high_s8(x, w));
        vreinterpretq_u8_s32(vpadalq_s16(vreinterpretq_s32_u8(acc), pairs))
    }
}

/// By the instruction's name, as `vdotq_s32` is not in stable Rust.
#[inline(always)]
unsafe fn dot_words(mut acc: uint8x16_t, w: uint8x16_t, x: uint8x16_t) -> uint8x16_t {
    // SAFETY: dot products of bytes are the caller's promise.
    unsafe {
        asm!(
            "sdot {acc:v}.4s, {x:v}.16b, {w:v}.16b",
            acc = inout(vreg) acc,
            x = in(vreg) x,
            w = in(vreg) w,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    acc
}
