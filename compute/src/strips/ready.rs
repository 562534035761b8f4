//! Cells of strips to signed codes with f32 scales: the way from a block to products, type by type. The
//! formulas are those of [`BlockType::widen`], 16 rows at a time.
#![allow(unsafe_code)]

use crate::blocks::{BlockType, IQ4};
use crate::bytes::{BYTES, Bytes};
use crate::simd::LANES;

use super::{GROUP, STEPS};
use BlockType::*;

/// Where groups go: signed codes of 32 columns by 16 rows, a scale for all or for each half, and as
/// many least values, or none.
pub(crate) trait Sink<S: Bytes> {
    /// Whether it is fast enough to be worth the longer code of groups that are written out.
    const WRITTEN_OUT: bool = false;

    /// Takes group `g`. `SPAN`: see [`span`].
    ///
    /// # Safety
    /// It has a place for it; as for [`Bytes`].
    unsafe fn put<const N: usize, const SPAN: usize>(
        &mut self,
        g: usize,
        codes: [S::B; STEPS],
        scales: [S::F; N],
        leasts: Option<[S::F; N]>,
    );
}

/// Steps of a group whose products with unsigned bytes, in pairs, can be added in 16 bits: at most as many as have the
/// same scale; 0 if not even two can.
pub(crate) const fn span(kind: BlockType) -> usize {
    match kind {
        Q4_0 => 8,                             // -8..8: 8 * 2 * 255 * 8 < 2^15
        Q4_1 | Q5_0 | Q4_K | Q2_K | Q3_K => 4, // 0..16, -16..16; 0..4, -4..4 of half a group
        Q5_1 | Q5_K | Q6_K => 2,               // 0..32, -32..32
        _ => 0,
    }
}

/// `start` and the products of steps: of their bytes at `x` by their codes.
#[inline(always)]
pub(crate) unsafe fn dots<S: Bytes, const SPAN: usize>(
    start: S::B,
    x: *const u8,
    codes: &[S::B],
) -> S::B {
    let mut sum = start;
    // SAFETY: the caller's promise.
    unsafe {
        if const { S::PAIRS.is_some() && SPAN > 0 } {
            for (i, span) in codes.chunks_exact(SPAN).enumerate() {
                let mut pairs = S::splat_byte(0);
                for (s, code) in span.iter().enumerate() {
                    pairs = S::dot_pairs(pairs, S::splat_word(x.add((i * SPAN + s) * 4)), *code);
                }
                sum = S::add_pairs(sum, pairs);
            }
        } else {
            for (s, code) in codes.iter().enumerate() {
                sum = S::dot(sum, S::splat_word(x.add(s * 4)), *code);
            }
        }
        sum
    }
}

/// Whether products leave the bias in, so that they have to [`start`] from what takes it off.
pub(crate) const fn biased<S: Bytes>(span: usize) -> bool {
    S::UNSIGNED || S::PAIRS.is_some() && span > 0
}

/// What a dot product starts from, so that [`Bytes::BIAS`] drops out.
#[inline(always)]
pub(crate) unsafe fn start<S: Bytes, const SPAN: usize>(codes: &[S::B]) -> S::B {
    // SAFETY: the caller's promise; the steps of a group have 32 bytes.
    unsafe {
        let zero = S::splat_byte(0);
        if const { !biased::<S>(SPAN) } {
            return zero;
        }
        S::sub_words(zero, dots::<S, SPAN>(zero, [S::BIAS; GROUP].as_ptr(), codes))
    }
}

/// Groups of a strip made ready for products with many rows: codes, `[groups][8][64 bytes]`, and
/// for each scale of a group 16 scales, 16 least values, and [`start`].
pub(crate) struct Ready {
    pub(crate) codes: *mut u8,
    pub(crate) scales: *mut f32,
    pub(crate) leasts: *mut f32,
    pub(crate) starts: *mut u8,
}

impl<S: Bytes> Sink<S> for Ready {
    #[inline(always)]
    unsafe fn put<const N: usize, const SPAN: usize>(
        &mut self,
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
            if const { biased::<S>(SPAN) } {
                for i in 0..N {
                    let half = &codes[i * STEPS / N..(i + 1) * STEPS / N];
                    S::store_bytes(self.starts.add((g * N + i) * BYTES), start::<S, SPAN>(half));
                }
            }
        }
    }
}

/// Widens columns of a strip from `cells` on, whole cells: column `k` to `to[k * step..][..16]`, the
/// numbers of [`BlockType::widen`].
///
/// # Safety
/// The cells are there, and `to` has room; as for [`Bytes`].
#[inline(always)]
pub(crate) unsafe fn widen<S: Bytes>(
    kind: BlockType,
    cells: *const u8,
    columns: usize,
    to: *mut f32,
    step: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        if kind == F16 {
            for k in 0..columns {
                S::store(to.add(k * step), S::load_f16(cells.cast::<u16>().add(k * LANES)));
            }
        } else if kind == BF16 {
            for k in (0..columns).step_by(2) {
                let pairs = S::widen_pairs(S::load(cells.cast::<f32>().add(k / 2 * LANES)));
                for (k, wide) in (k..columns).zip(pairs) {
                    S::store(to.add(k * step), wide);
                }
            }
        } else {
            ready::<S, Wide>(kind, cells, columns / kind.elements(), &mut Wide { to, step });
        }
    }
}

/// Groups widened to f32: column `k` at `to[k * step..][..16]`.
struct Wide {
    to: *mut f32,
    step: usize,
}

impl<S: Bytes> Sink<S> for Wide {
    #[inline(always)]
    unsafe fn put<const N: usize, const SPAN: usize>(
        &mut self,
        g: usize,
        codes: [S::B; STEPS],
        scales: [S::F; N],
        leasts: Option<[S::F; N]>,
    ) {
        for (s, codes) in codes.into_iter().enumerate() {
            let half = s * N / STEPS;
            for i in 0..4 {
                // SAFETY: the caller's promise.
                unsafe {
                    let mut x = S::words_to_f32(S::word_byte(codes, i as i32));
                    x = S::mul(scales[half], x);
                    if let Some(leasts) = leasts {
                        x = S::add(x, leasts[half]);
                    }
                    S::store(self.to.add((g * GROUP + 4 * s + i) * self.step), x);
                }
            }
        }
    }
}

/// Takes `count` cells to where groups go, from group 0 on.
///
/// # Safety
/// The cells are whole and of this type, and `to` has room; as for [`Bytes`].
#[inline(always)]
pub(crate) unsafe fn ready<S: Bytes, K: Sink<S>>(
    kind: BlockType,
    cells: *const u8,
    count: usize,
    to: &mut K,
) {
    let (bytes, groups) = (kind.bytes() * LANES, kind.elements() / GROUP);
    macro_rules! each {
        ($cell:ident) => {
            for i in 0..count {
                $cell::<S, K>(cells.add(i * bytes), i * groups, to);
            }
        };
    }
    // SAFETY: the caller's promise, in all of these.
    unsafe {
        match kind {
            Q4_0 => each!(q4_0),
            Q4_1 => each!(q4_1),
            Q5_0 => each!(q5_0),
            Q5_1 => each!(q5_1),
            Q8_0 => each!(q8_0),
            Q2_K => each!(q2_k),
            Q3_K => each!(q3_k),
            Q4_K => each!(q4_k),
            Q5_K => each!(q5_k),
            Q6_K => each!(q6_k),
            IQ4_NL => each!(iq4_nl),
            IQ4_XS => each!(iq4_xs),
            F32 | F16 | BF16 => {} // no codes
        }
    }
}

/// What is done with each of the eight groups of a cell; if the sink wants it, written out, so that
/// shifts are constants.
macro_rules! eight {
    ($q:ident => $body:block) => {
        if const { K::WRITTEN_OUT } {
            eight!($q => $body: 0 1 2 3 4 5 6 7);
        } else {
            for $q in 0..8 {
                $body
            }
        }
    };
    ($q:ident => $body:block: $($n:literal)*) => {
        $({
            let $q: usize = $n;
            $body
        })*
    };
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
unsafe fn q4_0<S: Bytes, K: Sink<S>>(cell: *const u8, g: usize, to: &mut K) {
    // SAFETY: see above.
    unsafe {
        to.put::<1, { span(Q4_0) }>(
            g,
            less::<S>(nibbles::<S>(cell, 1, 0), 8),
            [half::<S>(cell, 0)],
            None,
        )
    }
}

#[inline(always)]
unsafe fn q4_1<S: Bytes, K: Sink<S>>(cell: *const u8, g: usize, to: &mut K) {
    // SAFETY: see above.
    unsafe {
        let least = Some([half::<S>(cell, 1)]);
        to.put::<1, { span(Q4_1) }>(g, nibbles::<S>(cell, 2, 0), [half::<S>(cell, 0)], least)
    }
}

#[inline(always)]
unsafe fn q5_0<S: Bytes, K: Sink<S>>(cell: *const u8, g: usize, to: &mut K) {
    // SAFETY: see above.
    unsafe {
        let codes = fifths::<S>(nibbles::<S>(cell, 1, 1), word::<S>(cell, 1, 0));
        to.put::<1, { span(Q5_0) }>(g, less::<S>(codes, 16), [half::<S>(cell, 0)], None)
    }
}

#[inline(always)]
unsafe fn q5_1<S: Bytes, K: Sink<S>>(cell: *const u8, g: usize, to: &mut K) {
    // SAFETY: see above.
    unsafe {
        let codes = fifths::<S>(nibbles::<S>(cell, 2, 1), word::<S>(cell, 2, 0));
        to.put::<1, { span(Q5_1) }>(g, codes, [half::<S>(cell, 0)], Some([half::<S>(cell, 1)]))
    }
}

#[inline(always)]
unsafe fn q8_0<S: Bytes, K: Sink<S>>(cell: *const u8, g: usize, to: &mut K) {
    // SAFETY: see above.
    unsafe {
        let mut codes = [S::splat_byte(0); STEPS];
        for (s, code) in codes.iter_mut().enumerate() {
            *code = word::<S>(cell, 1, s);
        }
        to.put::<1, { span(Q8_0) }>(g, codes, [half::<S>(cell, 0)], None)
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
unsafe fn iq4_nl<S: Bytes, K: Sink<S>>(cell: *const u8, g: usize, to: &mut K) {
    // SAFETY: see above.
    unsafe {
        to.put::<1, { span(IQ4_NL) }>(g, steps_of_iq4::<S>(cell, 1, 0), [half::<S>(cell, 0)], None)
    }
}

/// Scales `d (low + 16 high - 32)`: low halves of a byte in the first word, two high bits in the
/// second row of halves.
#[inline(always)]
unsafe fn iq4_xs<S: Bytes, K: Sink<S>>(cell: *const u8, g: usize, to: &mut K) {
    // SAFETY: see above; 16 halves are 8 vectors' worth of words.
    unsafe {
        let (d, low) = (half::<S>(cell, 0), word::<S>(cell, 2, 0));
        let mut high = [0u32; LANES];
        for (lane, high) in high.iter_mut().enumerate() {
            *high = u32::from(cell.add(2 * LANES).cast::<u16>().add(lane).read_unaligned());
        }
        let high = S::load_bytes(high.as_ptr().cast());
        eight!(s => {
            let low = S::word_bits(low, 4 * s as i32, 15);
            let high = S::word_bits(high, 2 * s as i32, 3);
            let scale = S::words_to_f32(S::or(low, S::lift(high, 4)));
            let scale = S::mul(d, S::sub(scale, S::splat(32.0)));
            let codes = steps_of_iq4::<S>(cell, 2, 1 + 4 * s);
            to.put::<1, { span(IQ4_XS) }>(g + s, codes, [scale], None);
        });
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
unsafe fn q2_k<S: Bytes, K: Sink<S>>(cell: *const u8, g: usize, to: &mut K) {
    // SAFETY: see above.
    unsafe {
        let (d, least) = (half::<S>(cell, 0), S::sub(S::splat(0.0), half::<S>(cell, 1)));
        eight!(q => {
            let (mut scales, mut leasts) = ([d; 2], [least; 2]);
            for i in 0..2 {
                let v = word::<S>(cell, 2, (2 * q + i) / 4);
                let shift = ((2 * q + i) % 4 * 8) as i32;
                scales[i] = S::mul(d, S::words_to_f32(S::word_bits(v, shift, 15)));
                leasts[i] = S::mul(least, S::words_to_f32(S::word_bits(v, shift + 4, 15)));
            }
            to.put::<2, { span(Q2_K) }>(g + q, pairs::<S>(cell, 2, 4, q), scales, Some(leasts));
        });
    }
}

/// Scales of six bits: low halves in the first eight of 12 bytes, high bits in the last four.
#[inline(always)]
unsafe fn q3_k<S: Bytes, K: Sink<S>>(cell: *const u8, g: usize, to: &mut K) {
    // SAFETY: see above.
    unsafe {
        let d = half::<S>(cell, 0);
        eight!(q => {
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
            to.put::<2, { span(Q3_K) }>(g + q, less::<S>(codes, 4), scales, None);
        });
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
unsafe fn q4_k<S: Bytes, K: Sink<S>>(cell: *const u8, g: usize, to: &mut K) {
    // SAFETY: see above.
    unsafe {
        eight!(q => {
            let (scale, least) = scale_and_least::<S>(cell, q);
            to.put::<1, { span(Q4_K) }>(g + q, fours::<S>(cell, 3, q), [scale], Some([least]));
        });
    }
}

/// As [`q4_k`], with a fifth bit: that of group `q` is bit `q` of eight vectors.
#[inline(always)]
unsafe fn q5_k<S: Bytes, K: Sink<S>>(cell: *const u8, g: usize, to: &mut K) {
    // SAFETY: see above.
    unsafe {
        eight!(q => {
            let (scale, least) = scale_and_least::<S>(cell, q);
            let mut codes = fours::<S>(cell, 11, q);
            for (s, code) in codes.iter_mut().enumerate() {
                let high = S::bits(word::<S>(cell, 2, 3 + s), q as i32, 1);
                *code = S::or(*code, S::lift(high, 4));
            }
            to.put::<1, { span(Q5_K) }>(g + q, codes, [scale], Some([least]));
        });
    }
}

/// Halves of 128 elements: four bits in 16 vectors, of which low halves are the first 64 elements,
/// and two bits in eight. A byte is a scale of 16 elements.
#[inline(always)]
unsafe fn q6_k<S: Bytes, K: Sink<S>>(cell: *const u8, g: usize, to: &mut K) {
    // SAFETY: see above.
    unsafe {
        let d = half::<S>(cell, 0);
        eight!(q => {
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
            to.put::<2, { span(Q6_K) }>(g + q, less::<S>(codes, 32), scales, None);
        });
    }
}
