//! Cells of strips to signed codes with f32 scales: the way from a block to products, type by type. The
//! formulas are those of [`BlockType::widen`], 16 rows at a time.
#![allow(unsafe_code)]

use crate::blocks::{BlockType, IQ4};
use crate::bytes::{BYTES, Bytes};
use crate::simd::LANES;

use super::STEPS;
use BlockType::*;

/// Groups of a strip made ready for products: signed codes, `[groups][8][64 bytes]`, and for each
/// scale of a group 16 scales, 16 least values, and what int8 products start from.
pub(crate) struct Ready {
    pub(crate) codes: *mut u8,
    pub(crate) scales: *mut f32,
    pub(crate) leasts: *mut f32,
    pub(crate) starts: *mut u8,
}

impl Ready {
    /// Puts group `g`: with one scale or two, and as many least values, or none.
    ///
    /// # Safety
    /// There is room; as for [`Bytes`].
    #[inline(always)]
    unsafe fn put<S: Bytes, const N: usize>(
        &self,
        g: usize,
        codes: [S::B; STEPS],
        scales: [S::F; N],
        leasts: Option<[S::F; N]>,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            for (s, codes) in codes.into_iter().enumerate() {
                S::store_bytes(self.codes.add((g * STEPS + s) * BYTES), codes);
            }
            for (i, scale) in scales.into_iter().enumerate() {
                S::store(self.scales.add((g * N + i) * LANES), scale);
            }
            for (i, least) in leasts.into_iter().flatten().enumerate() {
                S::store(self.leasts.add((g * N + i) * LANES), least);
            }
            if S::BIAS != 0 {
                let (zero, bias) = (S::splat_byte(0), S::splat_byte(S::BIAS));
                for i in 0..N {
                    let mut sum = zero;
                    for codes in &codes[i * STEPS / N..(i + 1) * STEPS / N] {
                        sum = S::dot(sum, bias, *codes);
                    }
                    S::store_bytes(self.starts.add((g * N + i) * BYTES), S::sub_words(zero, sum));
                }
            }
        }
    }
}

/// Widens 16 columns of a strip of F16 or BF16 from `from`: column `k` to `to[k * step..][..16]`.
///
/// # Safety
/// `from` holds as many rows of 16 halves, and `to` has room; as for [`Bytes`].
#[inline(always)]
pub(crate) unsafe fn widen<S: Bytes>(
    kind: BlockType,
    from: *const u8,
    columns: usize,
    to: *mut f32,
    step: usize,
) {
    for k in 0..columns {
        // SAFETY: the caller's promise.
        unsafe {
            let wide = load_half::<S>(kind == F16, from.cast::<u16>().add(k * LANES));
            S::store(to.add(k * step), wide);
        }
    }
}

/// Sixteen F16, or BF16, widened.
///
/// # Safety
/// They are there; as for [`Bytes`].
#[inline(always)]
pub(crate) unsafe fn load_half<S: Bytes>(f16: bool, from: *const u16) -> S::F {
    // SAFETY: the caller's promise.
    unsafe { if f16 { S::load_f16(from) } else { S::load_bf16(from) } }
}

/// Makes one cell ready; its groups begin with `g`.
///
/// # Safety
/// `cell` is a whole cell of this type, and `to` has room; as for [`Bytes`].
#[inline(always)]
pub(crate) unsafe fn ready<S: Bytes>(kind: BlockType, cell: *const u8, g: usize, to: &Ready) {
    // SAFETY: the caller's promise, in all of these.
    unsafe {
        match kind {
            Q4_0 => q4_0::<S>(cell, g, to),
            Q4_1 => q4_1::<S>(cell, g, to),
            Q5_0 => q5_0::<S>(cell, g, to),
            Q5_1 => q5_1::<S>(cell, g, to),
            Q8_0 => q8_0::<S>(cell, g, to),
            Q2_K => q2_k::<S>(cell, g, to),
            Q3_K => q3_k::<S>(cell, g, to),
            Q4_K => q4_k::<S>(cell, g, to),
            Q5_K => q5_k::<S>(cell, g, to),
            Q6_K => q6_k::<S>(cell, g, to),
            IQ4_NL => iq4_nl::<S>(cell, g, to),
            IQ4_XS => iq4_xs::<S>(cell, g, to),
            F32 | F16 | BF16 => {} // no codes
        }
    }
}

/// The `i`th row of 16 halves.
#[inline(always)]
unsafe fn half<S: Bytes>(cell: *const u8, i: usize) -> S::F {
    // SAFETY: the caller's promise: the cell has it.
    unsafe { S::load_f16(cell.add(i * 2 * LANES).cast()) }
}

/// The `i`th vector of words, after so many rows of halves.
#[inline(always)]
unsafe fn word<S: Bytes>(cell: *const u8, halves: usize, i: usize) -> S::B {
    // SAFETY: the caller's promise: the cell has it.
    unsafe { S::load_bytes(cell.add(halves * 2 * LANES + i * BYTES)) }
}

/// 32 codes of four bits from four vectors: low halves first.
#[inline(always)]
unsafe fn nibbles<S: Bytes>(cell: *const u8, halves: usize, first: usize) -> [S::B; STEPS] {
    // SAFETY: the caller's promise, as in all of these.
    unsafe {
        let mut codes = [S::splat_byte(0); STEPS];
        for i in 0..STEPS / 2 {
            let v = word::<S>(cell, halves, first + i);
            codes[i] = S::bits(v, 0, 15);
            codes[i + STEPS / 2] = S::bits(v, 4, 15);
        }
        codes
    }
}

#[inline(always)]
unsafe fn less<S: Bytes>(mut codes: [S::B; STEPS], by: u8) -> [S::B; STEPS] {
    for code in &mut codes {
        // SAFETY: see above.
        unsafe { *code = S::sub_bytes(*code, S::splat_byte(by)) };
    }
    codes
}

/// With a fifth bit, step by step in the bits of one vector.
#[inline(always)]
unsafe fn fifths<S: Bytes>(mut codes: [S::B; STEPS], high: S::B) -> [S::B; STEPS] {
    for (s, code) in codes.iter_mut().enumerate() {
        // SAFETY: see above.
        unsafe { *code = S::or(*code, S::lift(S::bits(high, s as i32, 1), 4)) };
    }
    codes
}

#[inline(always)]
unsafe fn q4_0<S: Bytes>(cell: *const u8, g: usize, to: &Ready) {
    // SAFETY: see above.
    unsafe { to.put::<S, 1>(g, less::<S>(nibbles::<S>(cell, 1, 0), 8), [half::<S>(cell, 0)], None) }
}

#[inline(always)]
unsafe fn q4_1<S: Bytes>(cell: *const u8, g: usize, to: &Ready) {
    // SAFETY: see above.
    unsafe {
        let least = Some([half::<S>(cell, 1)]);
        to.put::<S, 1>(g, nibbles::<S>(cell, 2, 0), [half::<S>(cell, 0)], least)
    }
}

#[inline(always)]
unsafe fn q5_0<S: Bytes>(cell: *const u8, g: usize, to: &Ready) {
    // SAFETY: see above.
    unsafe {
        let codes = fifths::<S>(nibbles::<S>(cell, 1, 1), word::<S>(cell, 1, 0));
        to.put::<S, 1>(g, less::<S>(codes, 16), [half::<S>(cell, 0)], None)
    }
}

#[inline(always)]
unsafe fn q5_1<S: Bytes>(cell: *const u8, g: usize, to: &Ready) {
    // SAFETY: see above.
    unsafe {
        let codes = fifths::<S>(nibbles::<S>(cell, 2, 1), word::<S>(cell, 2, 0));
        to.put::<S, 1>(g, codes, [half::<S>(cell, 0)], Some([half::<S>(cell, 1)]))
    }
}

#[inline(always)]
unsafe fn q8_0<S: Bytes>(cell: *const u8, g: usize, to: &Ready) {
    // SAFETY: see above.
    unsafe {
        let mut codes = [S::splat_byte(0); STEPS];
        for (s, code) in codes.iter_mut().enumerate() {
            *code = word::<S>(cell, 1, s);
        }
        to.put::<S, 1>(g, codes, [half::<S>(cell, 0)], None)
    }
}

#[inline(always)]
unsafe fn steps_of_iq4<S: Bytes>(cell: *const u8, halves: usize, first: usize) -> [S::B; STEPS] {
    // SAFETY: see above.
    unsafe {
        let mut codes = nibbles::<S>(cell, halves, first);
        for code in &mut codes {
            *code = S::lookup(&IQ4, *code);
        }
        codes
    }
}

#[inline(always)]
unsafe fn iq4_nl<S: Bytes>(cell: *const u8, g: usize, to: &Ready) {
    // SAFETY: see above.
    unsafe { to.put::<S, 1>(g, steps_of_iq4::<S>(cell, 1, 0), [half::<S>(cell, 0)], None) }
}

/// Scales `d (low + 16 high - 32)`: low halves of a byte in the first word, two high bits in the
/// second row of halves.
#[inline(always)]
unsafe fn iq4_xs<S: Bytes>(cell: *const u8, g: usize, to: &Ready) {
    // SAFETY: see above; 16 halves are 8 vectors' worth of words.
    unsafe {
        let (d, low) = (half::<S>(cell, 0), word::<S>(cell, 2, 0));
        let mut high = [0u32; LANES];
        for (lane, high) in high.iter_mut().enumerate() {
            *high = u32::from(cell.add(2 * LANES).cast::<u16>().add(lane).read_unaligned());
        }
        let high = S::load_bytes(high.as_ptr().cast());
        for s in 0..8 {
            let low = S::word_bits(low, 4 * s, 15);
            let high = S::word_bits(high, 2 * s, 3);
            let scale = S::words_to_f32(S::or(low, S::lift(high, 4)));
            let scale = S::mul(d, S::sub(scale, S::splat(32.0)));
            let codes = steps_of_iq4::<S>(cell, 2, 1 + 4 * s as usize);
            to.put::<S, 1>(g + s as usize, codes, [scale], None);
        }
    }
}

/// Two-bit codes of group `q` (of eight): four groups share eight vectors.
#[inline(always)]
unsafe fn pairs<S: Bytes>(cell: *const u8, halves: usize, first: usize, q: usize) -> [S::B; STEPS] {
    // SAFETY: see above.
    unsafe {
        let mut codes = [S::splat_byte(0); STEPS];
        for (s, code) in codes.iter_mut().enumerate() {
            let v = word::<S>(cell, halves, first + q / 4 * STEPS + s);
            *code = S::bits(v, (q % 4 * 2) as i32, 3);
        }
        codes
    }
}

/// Scales and least values of four bits each, a byte for 16 elements.
#[inline(always)]
unsafe fn q2_k<S: Bytes>(cell: *const u8, g: usize, to: &Ready) {
    // SAFETY: see above.
    unsafe {
        let (d, least) = (half::<S>(cell, 0), S::sub(S::splat(0.0), half::<S>(cell, 1)));
        for q in 0..8 {
            let (mut scales, mut leasts) = ([d; 2], [least; 2]);
            for i in 0..2 {
                let v = word::<S>(cell, 2, (2 * q + i) / 4);
                let shift = ((2 * q + i) % 4 * 8) as i32;
                scales[i] = S::mul(d, S::words_to_f32(S::word_bits(v, shift, 15)));
                leasts[i] = S::mul(least, S::words_to_f32(S::word_bits(v, shift + 4, 15)));
            }
            to.put::<S, 2>(g + q, pairs::<S>(cell, 2, 4, q), scales, Some(leasts));
        }
    }
}

/// Scales of six bits: low halves in the first eight of 12 bytes, high bits in the last four.
#[inline(always)]
unsafe fn q3_k<S: Bytes>(cell: *const u8, g: usize, to: &Ready) {
    // SAFETY: see above.
    unsafe {
        let d = half::<S>(cell, 0);
        for q in 0..8 {
            let mut scales = [d; 2];
            for (i, scale) in scales.iter_mut().enumerate() {
                let s = 2 * q + i;
                let low = word::<S>(cell, 1, 24 + s % 8 / 4);
                let low = S::word_bits(low, (s % 4 * 8 + s / 8 * 4) as i32, 15);
                let high = word::<S>(cell, 1, 26);
                let high = S::word_bits(high, (s % 4 * 8 + s / 4 * 2) as i32, 3);
                let six = S::words_to_f32(S::or(low, S::lift(high, 4)));
                *scale = S::mul(d, S::sub(six, S::splat(32.0)));
            }
            let mut codes = pairs::<S>(cell, 1, 8, q);
            for (s, code) in codes.iter_mut().enumerate() {
                let high = S::bits(word::<S>(cell, 1, s), q as i32, 1);
                *code = S::or(*code, S::lift(high, 2));
            }
            to.put::<S, 2>(g + q, less::<S>(codes, 4), scales, None);
        }
    }
}

/// Scale and least value of group `q`, of six bits: 8 of both in three words.
#[inline(always)]
unsafe fn scale_and_least<S: Bytes>(cell: *const u8, q: usize) -> (S::F, S::F) {
    // SAFETY: see above.
    unsafe {
        let shift = (q % 4 * 8) as i32;
        let [a, b, c] = [word::<S>(cell, 2, 0), word::<S>(cell, 2, 1), word::<S>(cell, 2, 2)];
        let (scale, least) = if q < 4 {
            (S::word_bits(a, shift, 63), S::word_bits(b, shift, 63))
        } else {
            let (low, high) = (S::word_bits(c, shift, 15), S::word_bits(a, shift + 6, 3));
            let (low_least, high_least) =
                (S::word_bits(c, shift + 4, 15), S::word_bits(b, shift + 6, 3));
            (S::or(low, S::lift(high, 4)), S::or(low_least, S::lift(high_least, 4)))
        };
        let least = S::mul(half::<S>(cell, 1), S::words_to_f32(least));
        (S::mul(half::<S>(cell, 0), S::words_to_f32(scale)), S::sub(S::splat(0.0), least))
    }
}

/// Four-bit codes of group `q`: two groups share eight vectors.
#[inline(always)]
unsafe fn fours<S: Bytes>(cell: *const u8, first: usize, q: usize) -> [S::B; STEPS] {
    // SAFETY: see above.
    unsafe {
        let mut codes = [S::splat_byte(0); STEPS];
        for (s, code) in codes.iter_mut().enumerate() {
            let v = word::<S>(cell, 2, first + q / 2 * STEPS + s);
            *code = S::bits(v, (q % 2 * 4) as i32, 15);
        }
        codes
    }
}

#[inline(always)]
unsafe fn q4_k<S: Bytes>(cell: *const u8, g: usize, to: &Ready) {
    // SAFETY: see above.
    unsafe {
        for q in 0..8 {
            let (scale, least) = scale_and_least::<S>(cell, q);
            to.put::<S, 1>(g + q, fours::<S>(cell, 3, q), [scale], Some([least]));
        }
    }
}

/// As [`q4_k`], with a fifth bit: that of group `q` is bit `q` of eight vectors.
#[inline(always)]
unsafe fn q5_k<S: Bytes>(cell: *const u8, g: usize, to: &Ready) {
    // SAFETY: see above.
    unsafe {
        for q in 0..8 {
            let (scale, least) = scale_and_least::<S>(cell, q);
            let mut codes = fours::<S>(cell, 11, q);
            for (s, code) in codes.iter_mut().enumerate() {
                let high = S::bits(word::<S>(cell, 2, 3 + s), q as i32, 1);
                *code = S::or(*code, S::lift(high, 4));
            }
            to.put::<S, 1>(g + q, codes, [scale], Some([least]));
        }
    }
}

/// Halves of 128 elements: four bits in 16 vectors, of which low halves are the first 64 elements,
/// and two bits in eight. A byte is a scale of 16 elements.
#[inline(always)]
unsafe fn q6_k<S: Bytes>(cell: *const u8, g: usize, to: &Ready) {
    // SAFETY: see above.
    unsafe {
        let d = half::<S>(cell, 0);
        for q in 0..8 {
            let (of_two, within) = (q / 4, q % 4);
            let mut scales = [d; 2];
            for (i, scale) in scales.iter_mut().enumerate() {
                let v = word::<S>(cell, 1, 48 + (2 * q + i) / 4);
                *scale = S::mul(d, S::words_to_f32(S::word_byte(v, ((2 * q + i) % 4) as i32)));
            }
            let mut codes = [S::splat_byte(0); STEPS];
            for (s, code) in codes.iter_mut().enumerate() {
                let low = word::<S>(cell, 1, of_two * 16 + within % 2 * STEPS + s);
                let high = word::<S>(cell, 1, 32 + of_two * STEPS + s);
                let low = S::bits(low, (within / 2 * 4) as i32, 15);
                *code = S::or(low, S::lift(S::bits(high, (within * 2) as i32, 3), 4));
            }
            to.put::<S, 2>(g + q, less::<S>(codes, 32), scales, None);
        }
    }
}
