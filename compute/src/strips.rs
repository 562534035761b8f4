//! Matrices of fewer than 32 bits an element as the kernels read them: blocks of 16 rows side by side.
//!
//! A strip is 16 rows (outputs of a linear layer). Where a row has a block of ggml ([`BlockType`]),
//! a strip has a cell: the blocks' scales of 16 bits side by side, then their other bytes, the
//! words of four of all rows side by side. So a lane of 32 bits is an output, a cell is as large as
//! its blocks, and nothing is lost: a row can be put together again. The high bits of Q5_0 and Q5_1
//! change places (see [`spread`]), so that every code's bits lie in its own byte. A cell of BF16 is
//! two elements, as products of pairs take them; a last single one lies beside 0.
#![allow(unsafe_code)]

mod ready;

use std::ops::Range;

use crate::aligned::Aligned;
use crate::blocks::BlockType;
use crate::bytes::BYTES;
use crate::cpu::Cpu;
use crate::cpu::rows::Parts;
use crate::simd::LANES;

pub(crate) use ready::{Ready, Sink, bits, by_pairs, dots, ready, span, start, widen};

use BlockType::*;

/// Elements that share a scale of the activations.
pub(crate) const GROUP: usize = 32;
/// Bytes that are laid out at a time.
const PART: usize = 16 << 20;
/// Words of a row in a group.
pub(crate) const STEPS: usize = GROUP / 4;

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
    words: Range<usize>,
    /// Which word holds a fifth bit of 32 codes, if one does.
    fifths: Option<usize>,
}

fn parting(kind: BlockType) -> Option<Parting> {
    let (halves, words): (&[usize], _) = match kind {
        F32 => return None,
        F16 => (&[0], 2..2),
        BF16 => (&[], 0..4),
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
        Strips::new_part_by_part(cpu, rows, cols, kind, row, |_| {})
    }

    /// The same; `read` is told of the rows that won't be asked for again, some megabytes at a time.
    ///
    /// # Panics
    /// As [`Strips::new`].
    pub fn new_part_by_part<'a>(
        cpu: &Cpu,
        rows: usize,
        cols: usize,
        kind: BlockType,
        row: impl Fn(usize) -> &'a [u8] + Sync,
        mut read: impl FnMut(Range<usize>),
    ) -> Option<Strips> {
        let Some(parting) = parting(kind) else { panic!("{} is not laid out so", kind.name()) };
        assert!(cols.is_multiple_of(kind.elements()), "rows of whole blocks");
        let (elements, block) = cell(kind);
        let strip = cols.div_ceil(elements) * block * LANES;
        let strips = rows.div_ceil(LANES);
        let mut data = Aligned::zeros(strips.checked_mul(strip)?.div_ceil(4))?;
        let out = Parts::new(&mut data[..]);
        let lay = |range: Range<usize>| {
            for s in range {
                // SAFETY: strips are disjoint, and whole words (16 blocks).
                let strip = unsafe { out.part(s * strip / 4..(s + 1) * strip / 4) };
                let strip = as_bytes(strip);
                for lane in 0..LANES.min(rows - s * LANES) {
                    let row = row(s * LANES + lane);
                    assert_eq!(row.len(), cols / kind.elements() * kind.bytes(), "bytes of a row");
                    // Plain elements: the same, in fewer steps.
                    match kind {
                        F16 => plain::<2>(row, strip, lane),
                        BF16 => plain::<4>(row, strip, lane),
                        _ => {
                            let cells = strip.chunks_exact_mut(block * LANES);
                            for (block, cell) in row.chunks_exact(block).zip(cells) {
                                put(&parting, block, cell, lane);
                            }
                        }
                    }
                }
            }
        };
        let part = (PART / strip.max(1)).max(1);
        for first in (0..strips).step_by(part) {
            let last = strips.min(first + part);
            cpu.pool.split(last - first, 1, |r| lay(first + r.start..first + r.end));
            read(first * LANES..rows.min(last * LANES));
        }
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
        let (elements, block) = cell(self.kind);
        let Some(parting) = parting(self.kind) else { return };
        let mut whole = [0; 256];
        let cells = self.cells(r / LANES).chunks_exact(block * LANES);
        for (cell, out) in cells.zip(out.chunks_mut(elements)) {
            take(&parting, cell, &mut whole[..block], r % LANES);
            self.kind.widen(&whole[..out.len() * block / elements], out);
        }
    }

    /// The blocks of a row, as they were stored.
    ///
    /// # Panics
    /// If there is no such row, or `out` is not as long.
    pub fn row_blocks(&self, r: usize, out: &mut [u8]) {
        let len = self.cols / self.kind.elements() * self.kind.bytes();
        assert!(r < self.rows && out.len() == len, "the blocks of a row of {self:?}");
        let (_, block) = cell(self.kind);
        let Some(parting) = parting(self.kind) else { return };
        let mut whole = [0; 256];
        let cells = self.cells(r / LANES).chunks_exact(block * LANES);
        for (cell, out) in cells.zip(out.chunks_mut(block)) {
            take(&parting, cell, &mut whole[..block], r % LANES);
            out.copy_from_slice(&whole[..out.len()]);
        }
    }

    /// Whether products with it round activations to 8 bits.
    pub fn rounds(&self) -> bool {
        !matches!(self.kind, F16 | BF16)
    }

    /// Whether it can be multiplied as pairs of bf16.
    pub fn has_pairs(&self) -> bool {
        self.kind == BF16 && self.cols.is_multiple_of(2)
    }

    /// Elements of a cell.
    pub(crate) fn cell(&self) -> usize {
        cell(self.kind).0
    }

    /// Scales of the weights in a group of 32: one or two.
    pub(crate) fn scales(&self) -> usize {
        if matches!(self.kind, Q2_K | Q3_K | Q6_K) { 2 } else { 1 }
    }

    /// Whether weights are `scale * code + least`.
    pub(crate) fn has_least(&self) -> bool {
        matches!(self.kind, Q4_1 | Q5_1 | Q2_K | Q4_K | Q5_K)
    }

    /// The cells of a strip.
    pub(crate) fn cells(&self, strip: usize) -> &[u8] {
        self.cells_of(strip, 0..self.cols)
    }

    /// Those of a strip that hold these columns, whole cells.
    pub(crate) fn cells_of(&self, strip: usize, columns: Range<usize>) -> &[u8] {
        let (elements, bytes) = cell(self.kind);
        let at = |column: usize| column.div_ceil(elements) * bytes * LANES;
        let start = strip * at(self.cols);
        &self.data.bytes()[start + at(columns.start)..start + at(columns.end)]
    }
}

/// Elements and bytes of a row in a cell.
fn cell(kind: BlockType) -> (usize, usize) {
    if kind == BF16 { (2, 4) } else { (kind.elements(), kind.bytes()) }
}

fn as_bytes(words: &mut [f32]) -> &mut [u8] {
    // SAFETY: f32 are four plain bytes each.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), words.len() * 4) }
}

/// Puts the `N` bytes of each cell of a row to their places; the last cell may be half full.
fn plain<const N: usize>(row: &[u8], strip: &mut [u8], lane: usize) {
    let (whole, rest) = row.as_chunks::<N>();
    let mut places = strip.as_chunks_mut::<N>().0.iter_mut().skip(lane).step_by(LANES);
    for (bytes, place) in whole.iter().zip(places.by_ref()) {
        *place = *bytes;
    }
    if let Some(place) = places.next() {
        place[..rest.len()].copy_from_slice(rest);
    }
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

#[cfg(test)]
pub(crate) mod tests;
