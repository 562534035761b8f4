//! Operands in the order in which the kernel reads them.
//!
//! An operand is cut into strips: 32 columns of the right one, or the rows of a tile of the left
//! one. A strip lies as `[steps][width]` words, and a step of a chain is one word: an f32, or a
//! pair of bf16. So a step reads one or two cache lines, and rows that are a power of two apart
//! don't fight for the same sets of the cache.
#![allow(unsafe_code)]

use std::ops::Range;

use super::Mat;
use crate::cpu::Cpu;
use crate::cpu::rows::Parts;
use crate::simd::{Cache, LANES, Simd, prefetch};

/// Sixteen words: a cache line.
#[derive(Clone, Copy, Default)]
#[repr(C, align(64))]
pub(super) struct Line([f32; LANES]);

/// The words of some lines.
pub(super) fn words(lines: &mut [Line]) -> &mut [f32] {
    // SAFETY: a line is sixteen f32, and nothing else.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * LANES) }
}

/// Rows that are copied strip by strip: enough to make up for the way from strip to strip, and few
/// enough for the translation of addresses.
const CHUNK: usize = 4 * LANES;

/// An operand in memory.
#[derive(Clone, Copy)]
pub(super) enum Operand<'a> {
    F32(Mat<'a, f32>),
    Bf16(Mat<'a, u16>),
}

impl Operand<'_> {
    /// The same memory with rows for columns.
    pub(super) fn turned(self) -> Self {
        match self {
            Operand::F32(m) => Operand::F32(Mat { transposed: !m.transposed, ..m }),
            Operand::Bf16(m) => Operand::Bf16(Mat { transposed: !m.transposed, ..m }),
        }
    }
}

/// How an operand is cut.
#[derive(Clone, Copy)]
pub(super) enum Cut {
    /// So many columns in strips of so many words; the last one may be narrower.
    Columns(usize, usize),
    /// So many rows in so many strips, as even as can be, of so many words: half a line or a line.
    Rows(usize, usize, usize),
}

impl Cut {
    pub(super) fn count(self) -> usize {
        match self {
            Cut::Columns(n, width) => n.div_ceil(width),
            Cut::Rows(_, count, _) => count,
        }
    }

    /// Columns or rows of a strip.
    pub(super) fn range(self, i: usize) -> Range<usize> {
        match self {
            Cut::Columns(n, width) => i * width..n.min((i + 1) * width),
            Cut::Rows(m, count, _) => i * m / count..(i + 1) * m / count,
        }
    }

    /// Words of a step.
    pub(super) fn width(self) -> usize {
        match self {
            Cut::Columns(_, width) | Cut::Rows(_, _, width) => width,
        }
    }
}

/// Packs `source`, seen as `[k, columns]`, into strips of columns, the first lines of `out`.
pub(super) fn pack(
    cpu: &Cpu,
    source: Operand<'_>,
    strips: Cut,
    k: usize,
    pairs: bool,
    out: &mut [Line],
) {
    let steps = if pairs { k.div_ceil(2) } else { k };
    assert!(strips.width().is_multiple_of(LANES), "whole lines");
    let words = &mut words(out)[..strips.count() * steps * strips.width()];
    let out = Parts::new(words);
    let chunks = k.div_ceil(LANES);
    let tasks = (k * strips.count() * strips.width() / 16384)
        .clamp(1, cpu.pool.threads() * 4)
        .min(chunks.max(1));
    cpu.pool.run(tasks, |t| {
        let from = |t: usize| (t * chunks / tasks * LANES).min(k);
        let (k, which) = (from(t)..from(t + 1), 0..strips.count());
        let part = Part { source, strips, which, k, first: 0, steps, pairs };
        // SAFETY: tasks write disjoint steps of each strip, inside of `out`.
        let out = unsafe { out.part(0..0).as_mut_ptr() };
        crate::dispatch!(cpu.isa, pack_part(part: Part<'_> = part, out: *mut f32 = out));
    });
}

/// Packs `k` of some strips of `source` into the first words of `out`. Strips of half a line spoil
/// half a line more.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
pub(super) unsafe fn pack_block<S: Simd>(
    source: Operand<'_>,
    strips: Cut,
    which: Range<usize>,
    k: Range<usize>,
    pairs: bool,
    out: &mut [f32],
) {
    let steps = if pairs { k.len().div_ceil(2) } else { k.len() };
    let spoiled = LANES.saturating_sub(strips.width());
    assert!(out.len() >= which.len() * steps * strips.width() + spoiled, "room for what is packed");
    let first = k.start;
    let part = Part { source, strips, which, k, first, steps, pairs };
    // SAFETY: `out` has room for all of these steps; the instruction set is the caller's promise.
    unsafe { pack_part::<S>(part, out.as_mut_ptr()) }
}

/// What a task packs.
struct Part<'a> {
    source: Operand<'a>,
    strips: Cut,
    /// Which of them.
    which: Range<usize>,
    k: Range<usize>,
    /// The k of the first step.
    first: usize,
    /// Steps of a strip.
    steps: usize,
    pairs: bool,
}

#[inline(always)]
unsafe fn pack_part<S: Simd>(part: Part<'_>, out: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe {
        match part.source {
            Operand::F32(m) => pack_strips::<S, f32>(m, &part, out),
            Operand::Bf16(m) => pack_strips::<S, u16>(m, &part, out),
        }
    }
}

/// Memory is read in order: rows that are steps are a few over all strips before the next ones,
/// and where columns are steps one strip comes after the other.
#[inline(always)]
unsafe fn pack_strips<S: Simd, T: Element>(m: Mat<'_, T>, part: &Part<'_>, out: *mut f32) {
    let Part { strips, which, k, .. } = part;
    let chunks = |len| k.clone().step_by(len).map(move |start| start..k.end.min(start + len));
    // SAFETY: the caller's promise, and strips and steps that are the part's.
    unsafe {
        if m.transposed {
            for (i, strip) in which.clone().enumerate() {
                for k in chunks(LANES) {
                    pack_piece::<S, T>(m, part, i, strips.range(strip), k, out);
                }
            }
        } else {
            for k in chunks(CHUNK) {
                for (i, strip) in which.clone().enumerate() {
                    pack_piece::<S, T>(m, part, i, strips.range(strip), k.clone(), out);
                }
            }
        }
    }
}

/// Packs some steps of a strip, the `i`th of the part.
#[inline(always)]
unsafe fn pack_piece<S: Simd, T: Element>(
    m: Mat<'_, T>,
    part: &Part<'_>,
    i: usize,
    strip: Range<usize>,
    k: Range<usize>,
    out: *mut f32,
) {
    let Part { strips, first, steps, pairs, .. } = part;
    let (width, n) = (strips.width(), k.len());
    let step = if *pairs { (k.start - first) / 2 } else { k.start - first };
    for (line, column) in strip.clone().step_by(LANES).enumerate() {
        let columns = LANES.min(strip.end - column);
        let to = out.wrapping_add((i * steps + step) * width + line * LANES);
        let (row, at, rows) =
            if m.transposed { (column, k.start, columns) } else { (k.start, column, n) };
        let block = Block { from: &m.data[row * m.stride + at..], stride: m.stride, to, width };
        let inside = block.from.len() >= (rows - 1) * m.stride + LANES;
        // SAFETY: these steps of this strip are the caller's; only blocks inside are read without
        // a look at the end.
        unsafe {
            match (m.transposed, pairs) {
                (false, false) if inside => block.copy::<S, true>(n),
                (false, true) if inside => block.pair::<S, true>(n),
                (true, _) if inside && n == LANES && columns == LANES => {
                    block.turn::<S, true>(LANES, LANES, *pairs)
                }
                (false, false) => block.copy::<S, false>(n),
                (false, true) => block.pair::<S, false>(n),
                (true, _) => block.turn::<S, false>(n, columns, *pairs),
            }
        }
    }
}

/// An element type of operands.
trait Element: Copy {
    /// Reads 16 and widens.
    unsafe fn load<S: Simd>(p: *const Self) -> S::F;
    /// Reads fewer; the other lanes are 0.
    unsafe fn load_few<S: Simd>(from: &[Self]) -> S::F;
    /// Reads 16 of two rows, as pairs of bf16.
    #[inline(always)]
    unsafe fn pair<S: Simd>(even: *const Self, odd: *const Self) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { S::pair_bf16(Self::load::<S>(even), Self::load::<S>(odd)) }
    }
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const f32) -> S::F {
        // SAFETY: the caller's promise, as in all of these.
        unsafe { S::load(p) }
    }
    #[inline(always)]
    unsafe fn load_few<S: Simd>(from: &[f32]) -> S::F {
        // SAFETY: see above.
        unsafe { S::load_n(from.as_ptr(), from.len()) }
    }
}

impl Element for u16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u16) -> S::F {
        // SAFETY: see above.
        unsafe { S::load_bf16(p) }
    }
    #[inline(always)]
    unsafe fn load_few<S: Simd>(from: &[u16]) -> S::F {
        let mut few = [0; LANES];
        few[..from.len()].copy_from_slice(from);
        // SAFETY: see above.
        unsafe { S::load_bf16(few.as_ptr()) }
    }
    #[inline(always)]
    unsafe fn pair<S: Simd>(even: *const u16, odd: *const u16) -> S::F {
        // SAFETY: see above.
        unsafe { S::load_pairs(even, odd) }
    }
}

/// Some steps of a line of a strip.
struct Block<'a, T> {
    /// Rows of memory, `stride` apart.
    from: &'a [T],
    stride: usize,
    /// Steps `width` words apart.
    to: *mut f32,
    width: usize,
}

impl<T: Element> Block<'_, T> {
    /// Sixteen elements of a row. Those past the operand's columns are whatever stands there, as
    /// nobody uses them, and 0 past its end.
    #[inline(always)]
    unsafe fn read<S: Simd, const INSIDE: bool>(&self, row: usize) -> S::F {
        let start = row * self.stride;
        // SAFETY: 16 elements are there; the instruction set is the caller's promise.
        unsafe {
            if INSIDE || start + LANES <= self.from.len() {
                T::load::<S>(self.from.as_ptr().add(start))
            } else {
                T::load_few::<S>(self.from.get(start..).unwrap_or_default())
            }
        }
    }

    /// Asks for a row that comes with the next steps: what is far apart nobody guesses.
    #[inline(always)]
    fn ask(&self, row: usize) {
        prefetch(self.from.as_ptr().wrapping_add(row * self.stride).cast(), Cache::Second);
    }

    /// Rows are steps.
    #[inline(always)]
    unsafe fn copy<S: Simd, const INSIDE: bool>(&self, n: usize) {
        for i in 0..n {
            self.ask(i + CHUNK);
            // SAFETY: the caller's promise.
            unsafe { self.write::<S>(i, i + 1 == n, self.read::<S, INSIDE>(i)) }
        }
    }

    /// A step. What it spoils of the next one is written after it, but for the last one's: there
    /// the next strip may be.
    #[inline(always)]
    unsafe fn write<S: Simd>(&self, step: usize, last: bool, x: S::F) {
        let to = self.to.wrapping_add(step * self.width);
        // SAFETY: the caller's promise.
        unsafe {
            if last && self.width < LANES { S::store_n(to, x, self.width) } else { S::store(to, x) }
        }
    }

    /// Two rows are a step; a last one is paired with 0.
    #[inline(always)]
    unsafe fn pair<S: Simd, const INSIDE: bool>(&self, n: usize) {
        for i in 0..n.div_ceil(2) {
            self.ask(2 * i + CHUNK);
            self.ask(2 * i + 1 + CHUNK);
            // SAFETY: the caller's promise.
            unsafe {
                let pair = if INSIDE && 2 * i + 1 < n {
                    let even = self.from.as_ptr().add(2 * i * self.stride);
                    T::pair::<S>(even, even.add(self.stride))
                } else {
                    let even = self.read::<S, INSIDE>(2 * i);
                    let odd = match 2 * i + 1 < n {
                        true => self.read::<S, INSIDE>(2 * i + 1),
                        false => S::splat(0.0),
                    };
                    S::pair_bf16(even, odd)
                };
                self.write::<S>(i, i + 1 == n.div_ceil(2), pair);
            }
        }
    }

    /// Columns are steps. (Strips come one after the other here: nothing is spoiled.)
    #[inline(always)]
    unsafe fn turn<S: Simd, const INSIDE: bool>(&self, n: usize, rows: usize, pairs: bool) {
        // SAFETY: the caller's promise.
        unsafe {
            let mut block = [S::splat(0.0); LANES];
            for (i, row) in block.iter_mut().enumerate() {
                if i < rows {
                    *row = self.read::<S, INSIDE>(i);
                }
            }
            let mut block = S::transpose(block);
            if pairs {
                for (i, row) in block.iter_mut().enumerate() {
                    if i >= n {
                        *row = S::splat(0.0);
                    }
                }
                for (i, pair) in block.as_chunks::<2>().0.iter().enumerate() {
                    if 2 * i < n {
                        S::store(self.to.add(i * self.width), S::pair_bf16(pair[0], pair[1]));
                    }
                }
            } else {
                for (i, row) in block.iter().enumerate() {
                    if i < n {
                        S::store(self.to.add(i * self.width), *row);
                    }
                }
            }
        }
    }
}
