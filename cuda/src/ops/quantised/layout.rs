//! How matrices lie on the card (`kernels/quantised.h` tells why), made from the blocks of ggml.
//!
//! A tile is 16 rows; its units of 64 columns, or 256 for the K types, follow each other. A unit is
//! as large as its blocks: codes by fragments of 16 columns, then scales and the like, row by row.

use std::ops::Range;

/// Rows of a tile.
const TILE: usize = 16;
/// Columns whose codes lie together, and those of a fragment.
const PART: usize = 64;
const FRAGMENT: usize = 16;
const FRAGMENTS: usize = PART / FRAGMENT;
/// A block of zeros, of any type.
const NOTHING: [u8; 256] = [0; 256];

/// How elements are stored: the types of ggml.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
    Q4_K,
    Q5_K,
    Q6_K,
}

use BlockType::*;

impl BlockType {
    /// All of them.
    pub const ALL: [BlockType; 11] =
        [F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K];

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
            Q4_K => "Q4_K",
            Q5_K => "Q5_K",
            Q6_K => "Q6_K",
        }
    }

    /// Elements of a block.
    pub fn elements(self) -> usize {
        match self {
            F32 | F16 | BF16 => 1,
            Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q8_0 => 32,
            Q4_K | Q5_K | Q6_K => 256,
        }
    }

    /// Bytes of a block.
    pub fn bytes(self) -> usize {
        match self {
            F32 => 4,
            F16 | BF16 => 2,
            Q4_0 => 2 + 16,
            Q4_1 => 4 + 16,
            Q5_0 => 2 + 4 + 16,
            Q5_1 => 4 + 4 + 16,
            Q8_0 => 2 + 32,
            Q4_K => 4 + 12 + 128,
            Q5_K => 4 + 12 + 32 + 128,
            Q6_K => 128 + 64 + 16 + 2,
        }
    }

    /// Bytes of a row.
    ///
    /// # Panics
    /// If it isn't whole blocks, or no multiple of 4.
    pub(super) fn row_bytes(self, cols: usize) -> usize {
        let fit = cols.is_multiple_of(self.elements()) && cols.is_multiple_of(4);
        assert!(fit, "{cols} columns of {}", self.name());
        cols / self.elements() * self.bytes()
    }

    /// Columns of a unit.
    fn width(self) -> usize {
        self.elements().max(PART)
    }

    /// Bytes of a unit.
    pub(super) fn unit_bytes(self) -> usize {
        TILE * self.width() / self.elements() * self.bytes()
    }

    /// Units of a step of the products.
    pub(super) fn step(self) -> usize {
        if self.elements() == 32 { 2 } else { 1 }
    }

    fn codes(self) -> Codes {
        match self {
            F16 | BF16 => Codes::Plain(2),
            F32 => Codes::Plain(4),
            Q8_0 => Codes::Bytes,
            Q4_0 | Q4_1 | Q4_K => Codes::Nibbles(0),
            Q5_0 | Q5_1 | Q5_K => Codes::Nibbles(1),
            Q6_K => Codes::Nibbles(2),
        }
    }

    /// Where the numbers of a block lie (scales, leasts, factors), in stretches that a unit has
    /// apart.
    fn numbers(self) -> [Range<usize>; 2] {
        match self {
            F32 | F16 | BF16 => [0..0, 0..0],
            Q4_0 | Q5_0 | Q8_0 => [0..2, 0..0],
            Q4_1 | Q5_1 => [0..4, 0..0],
            Q4_K | Q5_K => [0..16, 0..0],
            Q6_K => [192..208, 208..210],
        }
    }

    /// The codes of four elements of a block from `i` on, a byte each.
    #[inline(always)]
    fn four(self, block: &[u8], i: usize) -> u32 {
        // Half a byte of four neighbours of 32: low halves first.
        let halves = |at: usize, i: usize| word(block, at + i % 16) >> (i / 16 * 4) & 0x0f0f_0f0f;
        // Four bits in a row, a byte each.
        let fifths = |bits: u32, i: usize| ((bits >> i & 15) * 0x0020_4081) & 0x0101_0101;
        // The same of 256: 64 share 32 bytes; and their fifth bits, a bit each of 32 bytes.
        let supers =
            |at: usize| word(block, at + i / 64 * 32 + i % 32) >> (i % 64 / 32 * 4) & 0x0f0f_0f0f;
        match self {
            F32 | F16 | BF16 => 0,
            Q4_0 => halves(2, i),
            Q4_1 => halves(4, i),
            Q5_0 => halves(6, i) | fifths(word(block, 2), i) << 4,
            Q5_1 => halves(8, i) | fifths(word(block, 4), i) << 4,
            Q8_0 => word(block, 2 + i),
            Q4_K => supers(16),
            Q5_K => supers(48) | (word(block, 16 + i % 32) >> (i / 32) & 0x0101_0101) << 4,
            Q6_K => {
                let (half, within) = (i / 128, i % 128);
                let low = word(block, half * 64 + within % 64) >> (within / 64 * 4) & 0x0f0f_0f0f;
                let high = word(block, 128 + half * 32 + within % 32) >> (within / 32 * 2);
                low | (high & 0x0303_0303) << 4
            }
        }
    }
}

/// Codes of a part.
#[derive(Clone, Copy)]
enum Codes {
    /// Numbers of so many bytes.
    Plain(usize),
    /// Eight bits.
    Bytes,
    /// Four bits, and apart from them so many more.
    Nibbles(usize),
}

impl Codes {
    /// Bytes of a part.
    fn bytes(self) -> usize {
        TILE * PART / 8
            * match self {
                Codes::Plain(bytes) => 8 * bytes,
                Codes::Bytes => 8,
                Codes::Nibbles(high) => 4 + high,
            }
    }
}

#[inline(always)]
fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Exchanges the two bytes in the middle: neighbours of a pair come into different halves.
#[inline(always)]
fn pairs_apart(x: u32) -> u32 {
    x & 0xff00_00ff | (x & 0xff00) << 8 | (x >> 8 & 0xff00)
}

/// Bytes of a matrix on the card: those of its blocks, with rows and columns that fill up units.
///
/// # Panics
/// If rows aren't whole blocks, or no multiple of 4.
pub fn packed_bytes(kind: BlockType, rows: usize, cols: usize) -> usize {
    kind.row_bytes(cols);
    rows.div_ceil(TILE) * cols.div_ceil(kind.width()) * kind.unit_bytes()
}

/// A matrix `[rows, cols]` as the kernels read it, from its blocks row by row. Parts of a matrix,
/// of whole tiles of 16 rows, can be packed apart and put one after the other.
///
/// # Panics
/// If rows aren't whole blocks, or no multiple of 4, or `blocks` is not of that many elements.
pub fn pack(kind: BlockType, rows: usize, cols: usize, blocks: &[u8]) -> Vec<u8> {
    let row_bytes = kind.row_bytes(cols);
    assert_eq!(blocks.len(), rows * row_bytes, "bytes of [{rows}, {cols}] {}", kind.name());
    let mut packed = vec![0; packed_bytes(kind, rows, cols)];
    if packed.is_empty() {
        return packed;
    }
    let tile_bytes = cols.div_ceil(kind.width()) * kind.unit_bytes();
    let tiles = blocks.chunks(TILE * row_bytes).zip(packed.chunks_exact_mut(tile_bytes));
    for (tile, packed) in tiles {
        // Rows that aren't there are empty.
        let mut rows: [&[u8]; TILE] = [&[]; TILE];
        rows.iter_mut().zip(tile.chunks_exact(row_bytes)).for_each(|(row, bytes)| *row = bytes);
        for (i, unit) in packed.chunks_exact_mut(kind.unit_bytes()).enumerate() {
            let start = i * kind.width();
            // A function for each type, as `kind` is a constant in each arm.
            match kind {
                F32 => pack_unit(F32, &rows, start, unit),
                F16 | BF16 => pack_unit(F16, &rows, start, unit),
                Q4_0 => pack_unit(Q4_0, &rows, start, unit),
                Q4_1 => pack_unit(Q4_1, &rows, start, unit),
                Q5_0 => pack_unit(Q5_0, &rows, start, unit),
                Q5_1 => pack_unit(Q5_1, &rows, start, unit),
                Q8_0 => pack_unit(Q8_0, &rows, start, unit),
                Q4_K => pack_unit(Q4_K, &rows, start, unit),
                Q5_K => pack_unit(Q5_K, &rows, start, unit),
                Q6_K => pack_unit(Q6_K, &rows, start, unit),
            }
        }
    }
    packed
}

/// Columns `start` on of a tile.
#[inline(always)]
fn pack_unit(kind: BlockType, rows: &[&[u8]; TILE], start: usize, unit: &mut [u8]) {
    let (elements, bytes, codes) = (kind.elements(), kind.bytes(), kind.codes());
    // As many bytes from the block of a column on; zeros where there is none.
    let block = |row: usize, column: usize, bytes: usize| {
        let at = column / elements * kind.bytes();
        rows[row].get(at..at + bytes).unwrap_or(&NOTHING[..bytes])
    };
    let (parts, mut numbers) = unit.split_at_mut(kind.width() / PART * codes.bytes());
    for (p, part) in parts.chunks_exact_mut(codes.bytes()).enumerate() {
        for lane in 0..32 {
            let rows = [lane / 4, lane / 4 + TILE / 2];
            let mut fours = [[0; 2]; FRAGMENTS];
            for (f, fours) in fours.iter_mut().enumerate() {
                let column = start + p * PART + f * FRAGMENT + lane % 4 * 4;
                for (h, four) in fours.iter_mut().enumerate() {
                    match codes {
                        Codes::Plain(size) => {
                            put_plain(part, size, f, lane, h, block(rows[h], column, 4 * size));
                        }
                        _ => *four = kind.four(block(rows[h], column, bytes), column % elements),
                    }
                }
            }
            put_codes(part, codes, lane, fours);
        }
    }
    // Stretch by stretch, row by row, block by block.
    for stretch in kind.numbers().into_iter().filter(|stretch| !stretch.is_empty()) {
        let width = kind.width() / elements * stretch.len();
        let (here, rest) = numbers.split_at_mut(TILE * width);
        for (row, to) in here.chunks_exact_mut(width).enumerate() {
            for (i, to) in to.chunks_exact_mut(stretch.len()).enumerate() {
                to.copy_from_slice(&block(row, start + i * elements, bytes)[stretch.clone()]);
            }
        }
        numbers = rest;
    }
}

/// Four neighbours of row `h` of the two of a lane's fragment `f`, of so many bytes each: in pairs,
/// those of both rows in turn. Lanes lie side by side in words of 16 bytes.
#[inline(always)]
fn put_plain(part: &mut [u8], size: usize, f: usize, lane: usize, h: usize, four: &[u8]) {
    for (pair, elements) in four.chunks_exact(2 * size).enumerate() {
        let place = (4 * pair + 2 * h) * size;
        let words = f * size / 2 + place / 16;
        let to = (words * 32 + lane) * 16 + place % 16;
        part[to..to + 2 * size].copy_from_slice(elements);
    }
}

/// Codes of four neighbours of both rows of a lane's fragments, a byte each.
#[inline(always)]
fn put_codes(part: &mut [u8], codes: Codes, lane: usize, fours: [[u32; 2]; FRAGMENTS]) {
    let mut put = |at: usize, word: u32| part[at..at + 4].copy_from_slice(&word.to_le_bytes());
    match codes {
        Codes::Plain(_) => {}
        Codes::Bytes => {
            for (f, [a, b]) in fours.into_iter().enumerate() {
                let at = (f / 2 * 32 + lane) * 16 + f % 2 * 8;
                put(at, pairs_apart(a));
                put(at + 4, pairs_apart(b));
            }
        }
        Codes::Nibbles(high) => {
            let mut words = [0; 2];
            for (f, [a, b]) in fours.into_iter().enumerate() {
                put(lane * 16 + f * 4, pairs_apart(a & 0x0f0f_0f0f | (b & 0x0f0f_0f0f) << 4));
                // Of the bits above, each half of a word has two registers' in either byte.
                let x = pairs_apart(a >> 4 & 0x0f0f_0f0f | (b >> 4 & 0x0f0f_0f0f) << high);
                let mask = (1 << (2 * high)) - 1;
                let half = |x: u32| x & mask | (x >> 8 & mask) << (2 * high);
                let at = 4 * high * f;
                words[at / 16] |= half(x) << (at % 16) | half(x >> 16) << (16 + at % 16);
            }
            for (i, word) in words.into_iter().enumerate().take(high) {
                put(512 + (lane * high + i) * 4, word);
            }
        }
    }
}
