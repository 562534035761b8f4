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
use crate::simd::{LANES, Simd};

/// Sixteen words: a cache line.
#[derive(Clone, Copy, Default)]
#[repr(C, align(64))]
pub(super) struct Line([f32; LANES]);

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
    /// So many columns in strips of so many lines; the last one may be narrower.
    Columns(usize, usize),
    /// So many rows in so many strips of at most a line, as even as can be.
    Rows(usize, usize),
}

impl Cut {
    pub(super) fn count(self) -> usize {
        match self {
            Cut::Columns(n, lines) => n.div_ceil(lines * LANES),
            Cut::Rows(_, count) => count,
        }
    }

    /// Columns or rows of a strip.
    pub(super) fn range(self, i: usize) -> Range<usize> {
        match self {
            Cut::Columns(n, lines) => i * lines * LANES..n.min((i + 1) * lines * LANES),
            Cut::Rows(m, count) => i * m / count..(i + 1) * m / count,
        }
    }

    /// Lines of a step.
    pub(super) fn lines(self) -> usize {
        match self {
            Cut::Columns(_, lines) => lines,
            Cut::Rows(..) => 1,
        }
    }

    /// Lines in all.
    pub(super) fn size(self, steps: usize) -> usize {
        self.count() * steps * self.lines()
    }
}

/// Packs `source`, seen as `[k, columns]`, into the first lines of `out`.
pub(super) fn pack(
    cpu: &Cpu,
    source: Operand<'_>,
    strips: Cut,
    k: usize,
    pairs: bool,
    out: &mut [Line],
) {
    let steps = if pairs { k.div_ceil(2) } else { k };
    let out = Parts::new(&mut out[..strips.size(steps)]);
    let chunks = k.div_ceil(LANES);
    let tasks = (k * strips.count() * strips.lines() * LANES / 16384)
        .clamp(1, cpu.pool.threads() * 4)
        .min(chunks.max(1));
    cpu.pool.run(tasks, |t| {
        let from = |t: usize| (t * chunks / tasks * LANES).min(k);
        let (k, which) = (from(t)..from(t + 1), 0..strips.count());
        let part = Part { source, strips, which, k, first: 0, steps, pairs };
        // SAFETY: tasks write disjoint steps of each strip, inside of `out`.
        let out = unsafe { out.part(0..0).as_mut_ptr().cast::<f32>() };
        crate::dispatch!(cpu.isa, pack_part(part: Part<'_> = part, out: *mut f32 = out));
    });
}

/// Packs `k` of some strips of `source` into the first lines of `out`.
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
    out: &mut [Line],
) {
    let steps = if pairs { k.len().div_ceil(2) } else { k.len() };
    assert!(out.len() >= which.len() * steps * strips.lines(), "room for what is packed");
    let first = k.start;
    let part = Part { source, strips, which, k, first, steps, pairs };
    // SAFETY: `out` has room for all of these steps; the instruction set is the caller's promise.
    unsafe { pack_part::<S>(part, out.as_mut_ptr().cast()) }
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
    let (width, n) = (strips.lines() * LANES, k.len());
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

    /// Rows are steps.
    #[inline(always)]
    unsafe fn copy<S: Simd, const INSIDE: bool>(&self, n: usize) {
        for i in 0..n {
            // SAFETY: the caller's promise.
            unsafe { S::store(self.to.add(i * self.width), self.read::<S, INSIDE>(i)) }
        }
    }

    /// Two rows are a step; a last one is paired with 0.
    #[inline(always)]
    unsafe fn pair<S: Simd, const INSIDE: bool>(&self, n: usize) {
        for i in 0..n.div_ceil(2) {
            // SAFETY: the caller's promise.
            unsafe {
                let even = self.read::<S, INSIDE>(2 * i);
                let odd =
                    if 2 * i + 1 < n { self.read::<S, INSIDE>(2 * i + 1) } else { S::splat(0.0) };
                S::store(self.to.add(i * self.width), S::pair_bf16(even, odd));
            }
        }
    }

    /// Columns are steps.
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
