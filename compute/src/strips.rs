//! Matrices of fewer than 32 bits an element as the kernels read them: blocks of 16 rows side by side.
//!
//! A strip is 16 rows (outputs of a linear layer). Where a row has a block of ggml ([`BlockType`]),
//! a strip has a cell: the blocks' scales of 16 bits side by side, then their other bytes, the
//! words of four of all rows side by side. So a lane of 32 bits is an output, a cell is as large as
//! its blocks, and nothing is lost: a row can be put together again. The high bits of Q5_0 and Q5_1
//! change places (see [`spread`]), so that every code's bits lie in its own byte.
#![allow(unsafe_code)]

use crate::aligned::Aligned;
use crate::blocks::{BlockType, IQ4};
use crate::bytes::{BYTES, Bytes};
use crate::cpu::Cpu;
use crate::cpu::rows::Parts;
use crate::simd::LANES;

use BlockType::*;

/// Elements that share a scale of the activations.
pub(crate) const GROUP: usize = 32;
/// Words of a row in a group.
const STEPS: usize = GROUP / 4;

/// A matrix `[rows, cols]` of any type of [`BlockType`] but f32.
pub struct Strips {
    rows: usize,
    cols: usize,
    kind: BlockType,
    /// Strip after strip, each `[cells][bytes of 16 blocks]`.
    data: Aligned,
}

impl std::fmt::Debug for Strips {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} [{}, {}]", self.kind.name(), self.rows, self.cols)
    }
}

/// Where the parts of a block lie: 16-bit numbers, and the rest, which is whole words.
struct Parting {
    halves: &'static [usize],
    words: std::ops::Range<usize>,
    /// Which word holds a fifth bit of 32 codes, if one does.
    fifths: Option<usize>,
}

fn parting(kind: BlockType) -> Option<Parting> {
    let (halves, words): (&[usize], _) = match kind {
        F32 => return None,
        // A block is one element.
        F16 | BF16 => (&[0], 2..2),
        Q4_0 | IQ4_NL => (&[0], 2..18),
        Q4_1 => (&[0, 2], 4..20),
        Q5_0 => (&[0], 2..22),
        Q5_1 => (&[0, 2], 4..24),
        Q8_0 => (&[0], 2..34),
        Q2_K => (&[80, 82], 0..80),
        Q3_K => (&[108], 0..108),
        Q4_K => (&[0, 2], 4..144),
        Q5_K => (&[0, 2], 4..176),
        Q6_K => (&[208], 0..208),
        IQ4_XS => (&[0, 2], 4..136),
    };
    let fifths = matches!(kind, Q5_0 | Q5_1).then_some(words.start);
    Some(Parting { halves, words, fifths })
}

/// Bit `4 s + t` of a word moves to bit `s` of byte `t`.
fn spread(word: u32) -> u32 {
    (0..32).fold(0, |all, i| all | (word >> i & 1) << (i % 4 * 8 + i / 4))
}

/// What [`spread`] did, undone.
fn unspread(word: u32) -> u32 {
    (0..32).fold(0, |all, i| all | (word >> (i % 4 * 8 + i / 4) & 1) << i)
}

impl Strips {
    /// Whether a type can be laid out so.
    pub fn holds(kind: BlockType) -> bool {
        parting(kind).is_some()
    }

    /// Lays out a matrix. `row(r)` are the blocks of row `r`.
    ///
    /// `None` if there is no memory for it.
    ///
    /// # Panics
    /// If the type is f32, or rows are no whole blocks.
    pub fn new<'a>(
        cpu: &Cpu,
        rows: usize,
        cols: usize,
        kind: BlockType,
        row: impl Fn(usize) -> &'a [u8] + Sync,
    ) -> Option<Strips> {
        let Some(parting) = parting(kind) else { panic!("{} is not laid out so", kind.name()) };
        assert!(cols.is_multiple_of(kind.elements()), "rows of whole blocks");
        let (cells, block) = (cols / kind.elements(), kind.bytes());
        let strip = cells * block * LANES;
        let strips = rows.div_ceil(LANES);
        let mut data = Aligned::zeros(strips.checked_mul(strip)?.div_ceil(4))?;
        let out = Parts::new(&mut data[..]);
        cpu.pool.split(strips, 1, |range| {
            for s in range {
                // SAFETY: strips are disjoint, and whole words (16 blocks).
                let strip = unsafe { out.part(s * strip / 4..(s + 1) * strip / 4) };
                let strip = as_bytes(strip);
                for lane in 0..LANES.min(rows - s * LANES) {
                    let row = row(s * LANES + lane);
                    assert_eq!(row.len(), cells * block, "bytes of a row");
                    if parting.words.is_empty() {
                        // An element a block: the same, in fewer steps.
                        let cells = strip.chunks_exact_mut(2 * LANES);
                        for (half, cell) in row.as_chunks::<2>().0.iter().zip(cells) {
                            cell[lane * 2..][..2].copy_from_slice(half);
                        }
                        continue;
                    }
                    for (b, cell) in
                        row.chunks_exact(block).zip(strip.chunks_exact_mut(block * LANES))
                    {
                        put(&parting, b, cell, lane);
                    }
                }
            }
        });
        Some(Strips { rows, cols, kind, data })
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The type of the blocks.
    pub fn kind(&self) -> BlockType {
        self.kind
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> usize {
        self.data.len() * 4
    }

    /// A row, widened to f32.
    ///
    /// # Panics
    /// If there is no such row, or `out` is not one long.
    pub fn row(&self, r: usize, out: &mut [f32]) {
        assert!(r < self.rows && out.len() == self.cols, "a row of {self:?}");
        let (elements, block) = (self.kind.elements(), self.kind.bytes());
        let (strip, lane) = (r / LANES, r % LANES);
        let cells = self.cols / elements;
        let Some(parting) = parting(self.kind) else { return };
        let mut whole = [0; 256];
        let whole = &mut whole[..block];
        for (cell, out) in out.chunks_exact_mut(elements).enumerate() {
            let start = (strip * cells + cell) * block * LANES;
            take(&parting, &bytes(&self.data)[start..start + block * LANES], whole, lane);
            self.kind.widen(whole, out);
        }
    }

    /// Whether products with it round activations to 8 bits; those with F16 and BF16 don't.
    pub fn rounds(&self) -> bool {
        !matches!(self.kind, F16 | BF16)
    }

    /// Whether elements are F16.
    pub(crate) fn is_f16(&self) -> bool {
        self.kind == F16
    }

    /// Elements of a cell.
    pub(crate) fn cell(&self) -> usize {
        self.kind.elements()
    }

    /// Scales of the weights in a group of 32: one or two.
    pub(crate) fn scales(&self) -> usize {
        if matches!(self.kind, Q2_K | Q3_K | Q6_K) { 2 } else { 1 }
    }

    /// Whether weights are `scale * code + least`.
    pub(crate) fn has_least(&self) -> bool {
        matches!(self.kind, Q4_1 | Q5_1 | Q2_K | Q4_K | Q5_K)
    }

    /// Where the cells of a strip begin.
    pub(crate) fn cells(&self, strip: usize) -> &[u8] {
        let len = self.cols / self.kind.elements() * self.kind.bytes() * LANES;
        &bytes(&self.data)[strip * len..(strip + 1) * len]
    }
}

fn as_bytes(words: &mut [f32]) -> &mut [u8] {
    // SAFETY: f32 are four plain bytes each.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), words.len() * 4) }
}

fn bytes(words: &[f32]) -> &[u8] {
    // SAFETY: f32 are four plain bytes each.
    unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), words.len() * 4) }
}

/// Puts the block of a row into its cell.
fn put(parting: &Parting, block: &[u8], cell: &mut [u8], lane: usize) {
    let halves = parting.halves.len() * 2 * LANES;
    for (i, &at) in parting.halves.iter().enumerate() {
        cell[(i * LANES + lane) * 2..][..2].copy_from_slice(&block[at..at + 2]);
    }
    let words = block[parting.words.clone()].as_chunks::<4>().0;
    for (word, to) in words.iter().zip(cell[halves..].chunks_exact_mut(BYTES)) {
        to[lane * 4..][..4].copy_from_slice(word);
    }
    if parting.fifths.is_some() {
        let word = &mut cell[halves + lane * 4..][..4];
        let bits = spread(u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
        word.copy_from_slice(&bits.to_le_bytes());
    }
}

/// Takes it out again.
fn take(parting: &Parting, cell: &[u8], block: &mut [u8], lane: usize) {
    let halves = parting.halves.len() * 2 * LANES;
    for (i, &at) in parting.halves.iter().enumerate() {
        block[at..at + 2].copy_from_slice(&cell[(i * LANES + lane) * 2..][..2]);
    }
    let words = block[parting.words.clone()].as_chunks_mut::<4>().0;
    for (word, from) in words.iter_mut().zip(cell[halves..].chunks_exact(BYTES)) {
        word.copy_from_slice(&from[lane * 4..][..4]);
    }
    if let Some(at) = parting.fifths {
        let word = &mut block[at..at + 4];
        let bits = unspread(u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
        word.copy_from_slice(&bits.to_le_bytes());
    }
}

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

#[cfg(test)]
pub(crate) mod tests;
