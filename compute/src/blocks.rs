//! Quantised weights as GGUF files hold them: rows cut into blocks of 32 or 256 elements, each with
//! scales of its own. The layouts are those of ggml (`ggml-common.h`); formulas stand beside each.

mod narrow;

use half::{bf16, f16};

pub use narrow::Unfit;

/// Elements of a block of the K types.
const SUPER: usize = 256;
/// The steps of IQ4: 4-bit codes that lie denser around 0.
pub(crate) const IQ4: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// How elements are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, non_camel_case_types)] // the names of ggml
pub enum BlockType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    IQ4_NL,
    IQ4_XS,
}

use BlockType::*;

impl BlockType {
    /// All of them.
    pub const ALL: [BlockType; 15] = [
        F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS,
    ];

    /// Its name in ggml.
    pub fn name(self) -> &'static str {
        match self {
            F32 => "F32",
            F16 => "F16",
            BF16 => "BF16",
            Q4_0 => "Q4_0",
            Q4_1 => "Q4_1",
            Q5_0 => "Q5_0",
            Q5_1 => "Q5_1",
            Q8_0 => "Q8_0",
            Q2_K => "Q2_K",
            Q3_K => "Q3_K",
            Q4_K => "Q4_K",
            Q5_K => "Q5_K",
            Q6_K => "Q6_K",
            IQ4_NL => "IQ4_NL",
            IQ4_XS => "IQ4_XS",
        }
    }

    /// Elements of a block.
    pub const fn elements(self) -> usize {
        match self {
            F32 | F16 | BF16 => 1,
            Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q8_0 | IQ4_NL => 32,
            Q2_K | Q3_K | Q4_K | Q5_K | Q6_K | IQ4_XS => SUPER,
        }
    }

    /// Bytes of a block.
    pub const fn bytes(self) -> usize {
        match self {
            F32 => 4,
            F16 | BF16 => 2,
            Q4_0 | IQ4_NL => 2 + 16,
            Q4_1 => 2 + 2 + 16,
            Q5_0 => 2 + 4 + 16,
            Q5_1 => 2 + 2 + 4 + 16,
            Q8_0 => 2 + 32,
            Q2_K => 16 + 64 + 2 + 2,
            Q3_K => 32 + 64 + 12 + 2,
            Q4_K => 2 + 2 + 12 + 128,
            Q5_K => 2 + 2 + 12 + 32 + 128,
            Q6_K => 128 + 64 + 16 + 2,
            IQ4_XS => 2 + 2 + 4 + 128,
        }
    }

    /// Bytes of `n` elements; `None` if they are no whole blocks, or too many.
    pub fn bytes_of(self, n: u64) -> Option<u64> {
        let each = self.elements() as u64;
        n.is_multiple_of(each).then(|| (n / each).checked_mul(self.bytes() as u64)).flatten()
    }

    /// Widens whole blocks to f32.
    ///
    /// # Panics
    /// If `from` and `to` are not the same number of whole blocks.
    pub fn widen(self, from: &[u8], to: &mut [f32]) {
        let (bytes, elements) = (self.bytes(), self.elements());
        assert!(
            from.len().is_multiple_of(bytes) && from.len() / bytes * elements == to.len(),
            "{} bytes of {} for {} elements",
            from.len(),
            self.name(),
            to.len()
        );
        let blocks = from.chunks_exact(bytes).zip(to.chunks_exact_mut(elements));
        match self {
            F32 => blocks.for_each(|(b, y)| y[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
            F16 => blocks.for_each(|(b, y)| y[0] = half_at(b, 0)),
            BF16 => blocks.for_each(|(b, y)| y[0] = bf16::from_le_bytes([b[0], b[1]]).to_f32()),
            Q4_0 => blocks.for_each(|(b, y)| {
                let d = half_at(b, 0);
                nibbles(&b[2..], y, |_, q| d * (f32::from(q) - 8.0));
            }),
            Q4_1 => blocks.for_each(|(b, y)| {
                let (d, m) = (half_at(b, 0), half_at(b, 2));
                nibbles(&b[4..], y, |_, q| d * f32::from(q) + m);
            }),
            Q5_0 => blocks.for_each(|(b, y)| {
                let (d, high) = (half_at(b, 0), word_at(b, 2));
                nibbles(&b[6..], y, |i, q| d * (fifth(q, high, i) - 16.0));
            }),
            Q5_1 => blocks.for_each(|(b, y)| {
                let (d, m, high) = (half_at(b, 0), half_at(b, 2), word_at(b, 4));
                nibbles(&b[8..], y, |i, q| d * fifth(q, high, i) + m);
            }),
            Q8_0 => blocks.for_each(|(b, y)| {
                let d = half_at(b, 0);
                y.iter_mut().zip(&b[2..]).for_each(|(y, q)| *y = d * f32::from(*q as i8));
            }),
            IQ4_NL => blocks.for_each(|(b, y)| {
                let d = half_at(b, 0);
                nibbles(&b[2..], y, |_, q| d * f32::from(IQ4[usize::from(q)]));
            }),
            Q2_K => blocks.for_each(|(b, y)| q2_k(b, y)),
            Q3_K => blocks.for_each(|(b, y)| q3_k(b, y)),
            Q4_K => blocks.for_each(|(b, y)| q4_k(b, y)),
            Q5_K => blocks.for_each(|(b, y)| q5_k(b, y)),
            Q6_K => blocks.for_each(|(b, y)| q6_k(b, y)),
            IQ4_XS => blocks.for_each(|(b, y)| iq4_xs(b, y)),
        }
    }
}

fn half_at(b: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([b[at], b[at + 1]]).to_f32()
}

fn word_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

/// Sixteen bytes to 32 elements: low halves first. `f` is told the element and its code.
fn nibbles(bytes: &[u8], y: &mut [f32], f: impl Fn(usize, u8) -> f32) {
    for (i, q) in bytes[..16].iter().enumerate() {
        y[i] = f(i, q & 15);
        y[i + 16] = f(i + 16, q >> 4);
    }
}

/// A code of four bits with its fifth.
fn fifth(q: u8, high: u32, i: usize) -> f32 {
    f32::from(q | ((high >> i & 1) << 4) as u8)
}

/// `y = d·(scale & 15)·q - dmin·(scale >> 4)`, 16 elements a scale, q of two bits.
fn q2_k(b: &[u8], y: &mut [f32]) {
    let (scales, codes, d, least) = (&b[..16], &b[16..80], half_at(b, 80), half_at(b, 82));
    for (i, y) in y.iter_mut().enumerate() {
        let (scale, q) = (scales[i / 16], two_bits(codes, i));
        *y = d * f32::from(scale & 15) * f32::from(q) - least * f32::from(scale >> 4);
    }
}

/// Code `i` of 256 two-bit ones: 128 share 32 bytes, 32 lie in the same bits.
fn two_bits(codes: &[u8], i: usize) -> u8 {
    codes[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3
}

/// `y = d·(scale - 32)·(q - 4·!high)`, 16 elements a 6-bit scale, q of two bits.
fn q3_k(b: &[u8], y: &mut [f32]) {
    let (high, codes, packed, d) = (&b[..32], &b[32..96], &b[96..108], half_at(b, 108));
    for (i, y) in y.iter_mut().enumerate() {
        let s = i / 16;
        let low = if s < 8 { packed[s] & 15 } else { packed[s - 8] >> 4 };
        let scale = low | (packed[8 + s % 4] >> (s / 4 * 2) & 3) << 4;
        let q =
            i16::from(two_bits(codes, i)) - if high[i % 32] >> (i / 32) & 1 == 1 { 0 } else { 4 };
        *y = d * (f32::from(scale) - 32.0) * f32::from(q);
    }
}

/// Scale and least of 32 elements, of six bits each: 8 of both in 12 bytes.
fn scale_and_least(packed: &[u8], i: usize) -> (f32, f32) {
    let (scale, least) = if i < 4 {
        (packed[i] & 63, packed[i + 4] & 63)
    } else {
        let (low, a, b) = (packed[i + 4], packed[i - 4], packed[i]);
        (low & 15 | a >> 6 << 4, low >> 4 | b >> 6 << 4)
    };
    (f32::from(scale), f32::from(least))
}

/// Code `i` of 256 four-bit ones: 64 share 32 bytes, low halves first.
fn four_bits(codes: &[u8], i: usize) -> u8 {
    codes[i / 64 * 32 + i % 32] >> (i % 64 / 32 * 4) & 15
}

/// `y = d·scale·q - dmin·least`, 32 elements a scale, q of four bits.
fn q4_k(b: &[u8], y: &mut [f32]) {
    let (d, least, packed, codes) = (half_at(b, 0), half_at(b, 2), &b[4..16], &b[16..144]);
    for (i, y) in y.iter_mut().enumerate() {
        let (scale, m) = scale_and_least(packed, i / 32);
        *y = d * scale * f32::from(four_bits(codes, i)) - least * m;
    }
}

/// As [`q4_k`], with a fifth bit.
fn q5_k(b: &[u8], y: &mut [f32]) {
    let (d, least, packed) = (half_at(b, 0), half_at(b, 2), &b[4..16]);
    let (high, codes) = (&b[16..48], &b[48..176]);
    for (i, y) in y.iter_mut().enumerate() {
        let (scale, m) = scale_and_least(packed, i / 32);
        let q = four_bits(codes, i) | (high[i % 32] >> (i / 32) & 1) << 4;
        *y = d * scale * f32::from(q) - least * m;
    }
}

/// `y = d·scale·(q - 32)`, 16 elements a scale of eight bits, q of four bits and two.
fn q6_k(b: &[u8], y: &mut [f32]) {
    let (low, high, scales, d) = (&b[..128], &b[128..192], &b[192..208], half_at(b, 208));
    for (i, y) in y.iter_mut().enumerate() {
        let (half, within) = (i / 128, i % 128);
        let four = low[half * 64 + within % 64] >> (within / 64 * 4) & 15;
        let two = high[half * 32 + within % 32] >> (within / 32 * 2) & 3;
        let q = i16::from(four | two << 4) - 32;
        *y = d * f32::from(scales[i / 16] as i8) * f32::from(q);
    }
}

/// `y = d·(scale - 32)·step[q]`, 32 elements a scale of six bits.
fn iq4_xs(b: &[u8], y: &mut [f32]) {
    let (d, high, low) = (half_at(b, 0), u16::from_le_bytes([b[2], b[3]]), &b[4..8]);
    for (s, y) in y.chunks_exact_mut(32).enumerate() {
        let scale = low[s / 2] >> (s % 2 * 4) & 15 | ((high >> (2 * s) & 3) << 4) as u8;
        let d = d * (f32::from(scale) - 32.0);
        nibbles(&b[8 + s * 16..], y, |_, q| d * f32::from(IQ4[usize::from(q)]));
    }
}

#[cfg(test)]
mod tests;
