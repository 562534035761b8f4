//! Cells of strips to signed codes with f32 scales: the way from a block to products, type by type. The
//! formulas are those of [`BlockType::widen`], 16 rows at a time.
#![allow(unsafe_code)]

use crate::blocks::{BlockType, IQ4};
use crate::bytes::{BYTES, Bytes};
use crate::simd::LANES;

use super::{GROUP, STEPS};
use BlockType::*;

/// Where groups go: codes of 32 columns by 16 rows, a scale for all or for each half, and as many least values, or
/// none. Codes are unsigned, [`offset`] above what they stand for.
pub(crate) trait Sink<S: Bytes> {
    /// Whether it is fast enough to be worth the longer code of groups that are written out.
    const WRITTEN_OUT: bool = false;

    /// Groups have so many bytes, from now on.
    fn of(&mut self, _group: usize) {}

    /// Takes group `g`. `BITS`: of its codes.
    ///
    /// # Safety
    /// It has a place for it; as for [`Bytes`].
    unsafe fn put<const N: usize, const BITS: u32>(
        &mut self,
        g: usize,
        codes: [S::B; STEPS],
        scales: [S::F; N],
        leasts: Option<[S::F; N]>,
    );
}

/// Bits of a type's codes.
pub(crate) const fn bits(kind: BlockType) -> u32 {
    match kind {
        Q2_K => 2,
        Q3_K => 3,
        Q4_0 | Q4_1 | Q4_K => 4,
        Q5_0 | Q5_1 | Q5_K => 5,
        Q6_K => 6,
        _ => 8,
    }
}

/// How far codes of so many bits are above what they stand for. Those of types with a least value aren't; bytes are
/// signed where products take them so.
pub(crate) const fn offset<S: Bytes>(bits: u32, least: bool) -> u8 {
    if least || bits == 8 && !S::UNSIGNED { 0 } else { 1 << (bits - 1) }
}

/// Steps of a group, whose `scales` are one or two, whose products with bytes, in pairs, can be added in 16 bits: at most
/// as many as have the same scale; 0 if not even two can.
pub(crate) const fn span(bits: u32, scales: usize) -> usize {
    let pair = 2 * 127 * ((1 << bits) - 1);
    let room = i16::MAX as usize / pair;
    let most = STEPS / scales;
    match room {
        0 => 0,
        _ if room >= most => most,
        _ => 1 << room.ilog2(),
    }
}

/// Whether products add up by pairs.
pub(crate) const fn by_pairs<S: Bytes>(bits: u32, scales: usize) -> bool {
    S::PAIRS.is_some() && span(bits, scales) > 0
}

/// `start` and the products of steps: of their codes by the bytes at `x`. `N`: scales of a group.
#[inline(always)]
pub(crate) unsafe fn dots<S: Bytes, const N: usize, const BITS: u32>(
    start: S::B,
    codes: &[S::B],
    x: *const u8,
) -> S::B {
    let mut sum = start;
    // SAFETY: the caller's promise.
    unsafe {
        if const { by_pairs::<S>(BITS, N) } {
            let steps = const { span(BITS, N) };
            for (i, span) in codes.chunks_exact(steps).enumerate() {
                let mut pairs = S::splat_byte(0);
                for (s, code) in span.iter().enumerate() {
                    pairs = S::dot_pairs(pairs, *code, S::splat_word(x.add((i * steps + s) * 4)));
                }
                sum = S::add_pairs(sum, pairs);
            }
        } else {
            for (s, code) in codes.iter().enumerate() {
                sum = S::dot(sum, *code, S::splat_word(x.add(s * 4)));
            }
        }
        sum
    }
}

/// What a dot product starts from, so that the [`offset`] of codes drops out: so many times the negative sum of the bytes
/// that they are multiplied by, which is at `less`.
#[inline(always)]
pub(crate) unsafe fn start<S: Bytes, const BITS: u32, const LEAST: bool>(less: *const f32) -> S::B {
    // SAFETY: the caller's promise.
    unsafe {
        match const { offset::<S>(BITS, LEAST) } {
            0 => S::splat_byte(0),
            offset => S::lift_words(S::splat_word(less.cast()), offset.ilog2() as i32),
        }
    }
}

/// Groups of a strip made ready for products with many rows: codes, `[groups][8][64 bytes]`, two steps interleaved
/// where there are products of matrices, and for each scale of a group 16 scales and 16 least values.
pub(crate) struct Ready {
    pub(crate) codes: *mut u8,
    pub(crate) scales: *mut f32,
    pub(crate) leasts: *mut f32,
}

impl Ready {
    /// Codes of step `s` of group `g`.
    ///
    /// # Safety
    /// It has been put; as for [`Bytes`].
    #[inline(always)]
    pub(crate) unsafe fn step<S: Bytes>(&self, g: usize, s: usize) -> S::B {
        // SAFETY: the caller's promise.
        unsafe {
            let at = |s: usize| self.codes.add((g * STEPS + s) * BYTES);
            if const { S::MATRICES } {
                let first = at(s / 2 * 2);
                S::apart(S::load_bytes(first), S::load_bytes(first.add(BYTES)))[s % 2]
            } else {
                S::load_bytes(at(s))
            }
        }
    }
}

impl<S: Bytes> Sink<S> for Ready {
    #[inline(always)]
    unsafe fn put<const N: usize, const BITS: u32>(
        &mut self,
        g: usize,
        codes: [S::B; STEPS],
        scales: [S::F; N],
        leasts: Option<[S::F; N]>,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            for (s, two) in codes.as_chunks::<2>().0.iter().enumerate() {
                let two = if const { S::MATRICES } { S::interleave(two[0], two[1]) } else { *two };
                let to = self.codes.add((g * STEPS + s * 2) * BYTES);
                S::store_bytes(to, two[0]);
                S::store_bytes(to.add(BYTES), two[1]);
            }
            for (i, scale) in scales.into_iter().enumerate() {
                S::store(self.scales.add((g * N + i) * LANES), scale);
            }
            for (i, least) in leasts.into_iter().flatten().enumerate() {
                S::store(self.leasts.add((g * N + i) * LANES), least);
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
    unsafe fn put<const N: usize, const BITS: u32>(
        &mut self,
        g: usize,
        codes: [S::B; STEPS],
        scales: [S::F; N],
        leasts: Option<[S::F; N]>,
    ) {
        let offset = if leasts.is_some() { 0 } else { const { offset::<S>(BITS, false) } };
        for (s, codes) in codes.into_iter().enumerate() {
            let half = s * N / STEPS;
            // SAFETY: the caller's promise.
            let codes = unsafe { S::sub_bytes(codes, S::splat_byte(offset)) };
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
    macro_rules! each {
        ($cell:ident, $kind:ident) => {{
            let (bytes, groups) = const { ($kind.bytes() * LANES, $kind.elements() / GROUP) };
            to.of(bytes / groups);
            for i in 0..count {
                $cell::<S, K>(cells.add(i * bytes), i * groups, to);
            }
        }};
    }
    // SAFETY: the caller's promise, in all of these.
    unsafe {
        match kind {
            Q4_0 => each!(q4_0, Q4_0),
            Q4_1 => each!(q4_1, Q4_1),
            Q5_0 => each!(q5_0, Q5_0),
            Q5_1 => each!(q5_1, Q5_1),
            Q8_0 => each!(q8_0, Q8_0),
            Q2_K => each!(q2_k, Q2_K),
            Q3_K => each!(q3_k, Q3_K),
            Q4_K => each!(q4_k, Q4_K),
            Q5_K => each!(q5_k, Q5_K),
            Q6_K => each!(q6_k, Q6_K),
            IQ4_NL => each!(iq4_nl, IQ4_NL),
            IQ4_XS => each!(iq4_xs, IQ4_XS),
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

/// With a fifth bit, step by step in the bits of one vector.
#[inline(always)]
unsafe fn fifths<S: Bytes>(mut codes: [S::B; STEPS], high: S::B) -> [S::B; STEPS] {
    for (s, code) in codes.iter_mut().enumerate() {
        // SAFETY: see above.
        unsafe { *code = S::or(*code, S::bits(high, s as i32 - 4, 16)) };
    }
    codes
}

#[inline(always)]
unsafe fn q4_0<S: Bytes, K: Sink<S>>(cell: *const u8, g: usize, to: &mut K) {
    // SAFETY: see above.
    unsafe { to.put::<1, { bits(Q4_0) }>(g, nibbles::<S>(cell, 1, 0), [half::<S>(cell, 0)], None) }
}

#[inline(always)]
unsafe fn q4_1<S: Bytes, K: Sink<S>>(cell: *const u8, g: usize, to: &mut K) {
    // SAFETY: see above.
    unsafe {
        let least = Some([half::<S>(cell, 1)]);
        to.put::<1, { bits(Q4_1) }>(g, nibbles::<S>(cell, 2, 0), [half::<S>(cell, 0)], least)
    }
}

#[inline(always)]
unsafe fn q5_0<S: Bytes, K: Sink<S>>(cell: *const u8, g: usize, to: &mut K) {
    // SAFETY: see above.
    unsafe {
        let codes = fifths::<S>(nibbles::<S>(cell, 1, 1), word::<S>(cell, 1, 0));
        to.put::<1, { bits(Q5_0) }>(g, codes, [half::<S>(cell, 0)], None)
    }
}

#[inline(always)]
unsafe fn q5_1<S: Bytes, K: Sink<S>>(cell: *const u8, g: usize, to: &mut K) {
    // SAFETY: see above.
    unsafe {
        let codes = fifths::<S>(nibbles::<S>(cell, 2, 1), word::<S>(cell, 2, 0));
        to.put::<1, { bits(Q5_1) }>(g, codes, [half::<S>(cell, 0)], Some([half::<S>(cell, 1)]))
    }
}

#[inline(always)]
unsafe fn q8_0<S: Bytes, K: Sink<S>>(cell: *const u8, g: usize, to: &mut K) {
    // SAFETY: see above.
    unsafe {
        let mut codes = [S::splat_byte(0); STEPS];
        for (s, code) in codes.iter_mut().enumerate() {
            // They are signed.
            let offset = S::splat_byte(const { offset::<S>(bits(Q8_0), false) });
            *code = S::sub_bytes(word::<S>(cell, 1, s), offset);
        }
        to.put::<1, { bits(Q8_0) }>(g, codes, [half::<S>(cell, 0)], None)
    }
}

#[inline(always)]
unsafe fn steps_of_iq4<S: Bytes>(cell: *const u8, halves: usize, first: usize) -> [S::B; STEPS] {
    // SAFETY: see above.
    unsafe {
        let mut codes = nibbles::<S>(cell, halves, first);
        let table = const {
            let (mut table, mut i) = (IQ4, 0);
            while i < table.len() {
                table[i] = table[i].wrapping_add(offset::<S>(bits(IQ4_NL), false) as i8);
                i += 1;
            }
            table
        };
        for code in &mut codes {
            *code = S::lookup(&table, *code);
        }
        codes
    }
}

#[inline(always)]
unsafe fn iq4_nl<S: Bytes, K: Sink<S>>(cell: *const u8, g: usize, to: &mut K) {
    // SAFETY: see above.
    unsafe {
        to.put::<1, { bits(IQ4_NL) }>(g, steps_of_iq4::<S>(cell, 1, 0), [half::<S>(cell, 0)], None)
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
            let high = S::bits(S::word_bits(high, 2 * s as i32, 3), -4, 0x30);
            let scale = S::words_to_f32(S::or(low, high));
            let scale = S::mul(d, S::sub(scale, S::splat(32.0)));
            let codes = steps_of_iq4::<S>(cell, 2, 1 + 4 * s);
            to.put::<1, { bits(IQ4_XS) }>(g + s, codes, [scale], None);
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
            to.put::<2, { bits(Q2_K) }>(g + q, pairs::<S>(cell, 2, 4, q), scales, Some(leasts));
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
                let six = S::words_to_f32(S::or(low, S::bits(high, -4, 0x30)));
                *scale = S::mul(d, S::sub(six, S::splat(32.0)));
            }
            let mut codes = pairs::<S>(cell, 1, 8, q);
            for (s, code) in codes.iter_mut().enumerate() {
                let high = S::bits(word::<S>(cell, 1, s), q as i32 - 2, 4);
                *code = S::or(*code, high);
            }
            to.put::<2, { bits(Q3_K) }>(g + q, codes, scales, None);
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
            let (low, high) = (S::word_bits(c, shift, 15), S::word_bits(a, shift + 2, 0x30));
            let (low_least, high_least) =
                (S::word_bits(c, shift + 4, 15), S::word_bits(b, shift + 2, 0x30));
            (S::or(low, high), S::or(low_least, high_least))
        };
        // The same for all groups of a cell.
        let (d, least_d) = (half::<S>(cell, 0), S::sub(S::splat(0.0), half::<S>(cell, 1)));
        (S::mul(d, S::words_to_f32(scale)), S::mul(least_d, S::words_to_f32(least)))
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
            to.put::<1, { bits(Q4_K) }>(g + q, fours::<S>(cell, 3, q), [scale], Some([least]));
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
                let high = S::bits(word::<S>(cell, 2, 3 + s), q as i32 - 4, 16);
                *code = S::or(*code, high);
            }
            to.put::<1, { bits(Q5_K) }>(g + q, codes, [scale], Some([least]));
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
                *code = S::or(low, S::bits(high, (within * 2) as i32 - 4, 0x30));
            }
            to.put::<2, { bits(Q6_K) }>(g + q, codes, scales, None);
        });
    }
}
