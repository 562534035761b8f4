//! Bringing a head's rows into the order that the kernels read.

use super::BLOCK;
use crate::bytes::Bytes;
use crate::simd::{LANES, Portable, Simd, at};

/// Transposing 16 vectors in registers.
pub(super) trait Transpose: Bytes {
    /// Lane `i` of vector `j` becomes lane `j` of vector `i`.
    unsafe fn transpose16(x: [Self::F; LANES]) -> [Self::F; LANES];
}

impl Transpose for Portable {
    #[inline(always)]
    unsafe fn transpose16(x: [Self::F; LANES]) -> [Self::F; LANES] {
        let mut out = x;
        for (i, row) in out.iter_mut().enumerate() {
            for (j, y) in row.iter_mut().enumerate() {
                *y = x[j][i];
            }
        }
        out
    }
}

#[cfg(target_arch = "aarch64")]
impl<const DOT: bool> Transpose for crate::simd::Arm<DOT> {
    #[inline(always)]
    unsafe fn transpose16(x: [Self::F; LANES]) -> [Self::F; LANES] {
        // SAFETY: the caller's promise.
        unsafe { Self::transpose(x) }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Transpose;
    use crate::simd::{Avx2, Avx512, Avx512Bf16, LANES};

    impl Transpose for Avx2 {
        #[inline(always)]
        unsafe fn transpose16(x: [Self::F; LANES]) -> [Self::F; LANES] {
            // Four quarters of 8 by 8. Loops, for a closure would not be compiled for AVX2.
            let mut out = x;
            // SAFETY: AVX2 is the caller's promise.
            unsafe {
                for quarter in 0..4 {
                    let (top, half) = (quarter / 2 * 8, quarter % 2);
                    // Fours of rows within 128-bit lanes, then the lanes themselves.
                    let mut fours = [[_mm256_setzero_ps(); 4]; 2];
                    for (g, four) in fours.iter_mut().enumerate() {
                        let r = top + 4 * g;
                        let (r0, r1) = (x[r][half], x[r + 1][half]);
                        let (r2, r3) = (x[r + 2][half], x[r + 3][half]);
                        let (a, b) = (_mm256_unpacklo_ps(r0, r1), _mm256_unpackhi_ps(r0, r1));
                        let (c, d) = (_mm256_unpacklo_ps(r2, r3), _mm256_unpackhi_ps(r2, r3));
                        *four = [
                            _mm256_shuffle_ps::<0x44>(a, c),
                            _mm256_shuffle_ps::<0xee>(a, c),
                            _mm256_shuffle_ps::<0x44>(b, d),
                            _mm256_shuffle_ps::<0xee>(b, d),
                        ];
                    }
                    for i in 0..4 {
                        let (a, b) = (fours[0][i], fours[1][i]);
                        out[half * 8 + i][top / 8] = _mm256_permute2f128_ps::<0x20>(a, b);
                        out[half * 8 + 4 + i][top / 8] = _mm256_permute2f128_ps::<0x31>(a, b);
                    }
                }
            }
            out
        }
    }

    /// # Safety
    /// The CPU has AVX-512F.
    #[inline(always)]
    unsafe fn transpose512(x: [__m512; LANES]) -> [__m512; LANES] {
        let mut out = x;
        // SAFETY: AVX-512F is the caller's promise.
        unsafe {
            // Within 128-bit lanes: lane l of fours[g][i] is element 4 l + i of rows 4 g .. 4 g + 4.
            let mut fours = [[_mm512_setzero_ps(); 4]; 4];
            for (g, four) in fours.iter_mut().enumerate() {
                let r = 4 * g;
                let (a, b) =
                    (_mm512_unpacklo_ps(x[r], x[r + 1]), _mm512_unpackhi_ps(x[r], x[r + 1]));
                let (c, d) = (
                    _mm512_unpacklo_ps(x[r + 2], x[r + 3]),
                    _mm512_unpackhi_ps(x[r + 2], x[r + 3]),
                );
                *four = [
                    _mm512_shuffle_ps::<0x44>(a, c),
                    _mm512_shuffle_ps::<0xee>(a, c),
                    _mm512_shuffle_ps::<0x44>(b, d),
                    _mm512_shuffle_ps::<0xee>(b, d),
                ];
            }
            // Then the lanes themselves, 4 by 4.
            for i in 0..4 {
                let (a, b) = (fours[0][i], fours[1][i]);
                let (c, d) = (fours[2][i], fours[3][i]);
                let ab02 = _mm512_shuffle_f32x4::<0x88>(a, b);
                let ab13 = _mm512_shuffle_f32x4::<0xdd>(a, b);
                let cd02 = _mm512_shuffle_f32x4::<0x88>(c, d);
                let cd13 = _mm512_shuffle_f32x4::<0xdd>(c, d);
                out[i] = _mm512_shuffle_f32x4::<0x88>(ab02, cd02);
                out[4 + i] = _mm512_shuffle_f32x4::<0x88>(ab13, cd13);
                out[8 + i] = _mm512_shuffle_f32x4::<0xdd>(ab02, cd02);
                out[12 + i] = _mm512_shuffle_f32x4::<0xdd>(ab13, cd13);
            }
        }
        out
    }

    impl Transpose for Avx512 {
        #[inline(always)]
        unsafe fn transpose16(x: [Self::F; LANES]) -> [Self::F; LANES] {
            // SAFETY: the caller's promise.
            unsafe { transpose512(x) }
        }
    }

    impl Transpose for Avx512Bf16 {
        #[inline(always)]
        unsafe fn transpose16(x: [Self::F; LANES]) -> [Self::F; LANES] {
            // SAFETY: the caller's promise.
            unsafe { transpose512(x) }
        }
    }
}

/// `to[d * 64 + j] = from[j * stride + d]` for `rows <= 64` rows `j` of `hd` elements. Columns past
/// the rows, up to a multiple of 16, become 0.
///
/// # Safety
/// The pointers hold that; as for [`Simd`].
#[inline(always)]
pub(super) unsafe fn transpose<S: Transpose>(
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
                let mut x = [S::splat(0.0); LANES];
                for (i, x) in x.iter_mut().enumerate() {
                    if j + i < rows {
                        *x = at::<S>(from.add((j + i) * stride), d, hd);
                    }
                }
                let x = S::transpose16(x);
                for (i, x) in x.iter().enumerate() {
                    if d + i < hd {
                        S::store(to.add((d + i) * BLOCK + j), *x);
                    }
                }
            }
        }
    }
}

/// 16 reductions at once: lane `j` is the sum, or the largest, of vector `j`'s lanes, in the tree
/// of [`Simd::sum`].
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
pub(super) unsafe fn reduce<S: Transpose, const SUM: bool>(x: [S::F; LANES]) -> S::F {
    // SAFETY: the caller's promise.
    unsafe {
        let mut x = S::transpose16(x);
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
