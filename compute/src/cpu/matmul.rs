//! Matrix products. A lane is an output, and an output is one chain of fused multiply-adds over k
//! in ascending order: blocks of k continue the chain through `c`, so results depend neither on
//! blocking, nor on neighbours, nor on threads (ARCHITECTURE: the kernel contract).
//!
//! The layers are those of Goto and van de Geijn (2008), but each task packs for itself ([`pack`]), as
//! lines that another core wrote come slowly: a block of a strip of the right operand is packed
//! and stays in the near caches while the rows of a task pass by; a tile of `c` stays in registers (`tile`: on AVX-512 14 rows by 32
//! columns, 28 accumulators, 16 loads for 28 multiply-adds; on AVX2 6 by 16).
#![allow(unsafe_code)]

mod few;
mod pack;
mod tile;

use std::cell::Cell;
use std::ops::Range;

use super::Cpu;
use super::rows::Parts;
use crate::bytes::Bytes;
use crate::simd::{LANES, Simd};
use crate::strips::{Strips, widen};
use pack::{Cut, Line, Operand, pack, pack_block, words};
use tile::Tile;

/// Steps of a block: each passes over the outputs once, and 1,024 steps of a strip are 128 KiB or 64.
const BLOCK: usize = 1024;
/// Multiply-adds of a task at least (some microseconds), so that a small product is not split.
const TASK: usize = 1 << 17;

/// Lines of the rows that pass by a panel before the next one: 192 KiB.
const PASSING: usize = 3 << 10;

/// Lines of the panels that a task packs at a time: 1 MiB.
const PACKED: usize = 16 << 10;

/// The same if it packs only those: 256 KiB, which stay in the second cache beside the rows that pass by.
const STAYING: usize = 4 << 10;

/// Lines of the rows that a task packs once for all panels: 4 MiB.
const KEPT: usize = 64 << 10;

/// A matrix operand in memory: element `(r, c)` is `data[r * stride + c]`, or transposed
/// `data[c * stride + r]`.
#[derive(Clone, Copy, Debug)]
pub struct Mat<'a, T> {
    /// The elements.
    pub data: &'a [T],
    /// From one row (transposed: column) to the next.
    pub stride: usize,
    /// Whether rows lie as columns.
    pub transposed: bool,
}

impl<T> Mat<'_, T> {
    fn check(&self, rows: usize, cols: usize) {
        let (outer, inner) = if self.transposed { (cols, rows) } else { (rows, cols) };
        let needed = if rows * cols == 0 { 0 } else { (outer - 1) * self.stride + inner };
        assert!(
            self.data.len() >= needed && (outer <= 1 || self.stride >= inner),
            "a {rows} x {cols} operand of stride {} has {} elements",
            self.stride,
            self.data.len()
        );
    }
}

/// Rows of a left operand, `[m, k]`, in the type of the packed right one.
#[derive(Clone, Copy, Debug)]
pub enum Rows<'a> {
    /// f32.
    F32 {
        /// The elements.
        data: &'a [f32],
        /// From one row to the next.
        stride: usize,
    },
    /// bf16 bits.
    Bf16 {
        /// The elements.
        data: &'a [u16],
        /// From one row to the next.
        stride: usize,
    },
}

impl<'a> Rows<'a> {
    fn operand(self, m: usize, k: usize) -> Operand<'a> {
        match self {
            Rows::F32 { data, stride } => {
                let a = Mat { data, stride, transposed: false };
                a.check(m, k);
                Operand::F32(a)
            }
            Rows::Bf16 { data, stride } => {
                let a = Mat { data, stride, transposed: false };
                a.check(m, k);
                Operand::Bf16(a)
            }
        }
    }
}

/// A right operand `[k, n]` packed for the kernel: weights, packed once for many products.
pub struct Packed {
    k: usize,
    n: usize,
    /// Strips of 32 columns, each `[steps][32]`.
    panels: Vec<Line>,
    bf16: bool,
    valid: bool,
}

impl Packed {
    /// Packs `source` (`[k, n]`), rounding to bf16 if asked to.
    pub fn new(cpu: &Cpu, k: usize, n: usize, source: Mat<'_, f32>, bf16: bool) -> Packed {
        let mut packed = Packed { k, n, panels: Vec::new(), bf16, valid: false };
        packed.pack(cpu, k, n, source, bf16);
        packed
    }

    /// Packs again, in the same memory.
    pub fn pack(&mut self, cpu: &Cpu, k: usize, n: usize, source: Mat<'_, f32>, bf16: bool) {
        source.check(k, n);
        (self.k, self.n, self.bf16, self.valid) = (k, n, bf16, true);
        let strips = Cut::Columns(n, tile(cpu)[1]);
        let words = strips.count() * steps(k, bf16) * strips.width();
        self.panels.resize(words / LANES, Line::default());
        pack(cpu, Operand::F32(source), strips, k, bf16, &mut self.panels);
    }

    /// Rows of the operand.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Columns of the operand.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Marks the contents as out of date; the memory stays.
    pub fn invalidate(&mut self) {
        self.valid = false;
    }

    /// Whether the contents are up to date.
    pub fn is_valid(&self) -> bool {
        self.valid
    }
}

/// Steps of a chain over `k` elements.
fn steps(k: usize, pairs: bool) -> usize {
    if pairs { k.div_ceil(2) } else { k }
}

/// `c = a b`, or `c += a b`: `a` `[m, k]`, `b` `[k, n]`, `c` `[m, n]` with rows `ldc` apart.
#[allow(clippy::too_many_arguments)]
pub fn gemm(
    cpu: &Cpu,
    m: usize,
    n: usize,
    k: usize,
    a: Mat<'_, f32>,
    b: Mat<'_, f32>,
    c: &mut [f32],
    ldc: usize,
    accumulate: bool,
) {
    a.check(m, k);
    b.check(k, n);
    let right = Factor::Loose(Operand::F32(b));
    product(cpu, [m, n, k], Operand::F32(a), right, c, ldc, accumulate);
}

/// As [`gemm`], with bf16 operands (bits) and f32 sums.
#[allow(clippy::too_many_arguments)]
pub fn gemm_bf16(
    cpu: &Cpu,
    m: usize,
    n: usize,
    k: usize,
    a: Mat<'_, u16>,
    b: Mat<'_, u16>,
    c: &mut [f32],
    ldc: usize,
    accumulate: bool,
) {
    a.check(m, k);
    b.check(k, n);
    let right = Factor::Loose(Operand::Bf16(b));
    product(cpu, [m, n, k], Operand::Bf16(a), right, c, ldc, accumulate);
}

/// As [`gemm`], with a right operand packed before.
///
/// # Panics
/// If the types of the operands differ, or the packed operand is out of date.
#[allow(clippy::too_many_arguments)]
pub fn gemm_packed(
    cpu: &Cpu,
    m: usize,
    n: usize,
    k: usize,
    a: Rows<'_>,
    b: &Packed,
    c: &mut [f32],
    ldc: usize,
    accumulate: bool,
) {
    assert!(b.valid && b.k == k && b.n == n, "the packed operand is [{}, {}]", b.k, b.n);
    assert_eq!(matches!(a, Rows::Bf16 { .. }), b.bf16, "a product of f32 and bf16 operands");
    product(cpu, [m, n, k], a.operand(m, k), Factor::Packed(&b.panels), c, ldc, accumulate);
}

/// As [`gemm`], with the right operand `wᵀ` of a matrix `w` `[n, k]` of any type. Rows of f32 meet it widened block by
/// block: the same bits as if it were widened before. Rows of bf16 meet pairs as they lie. `a` has no gaps.
///
/// # Panics
/// If lengths don't agree, or rows are bf16 and `w` has no pairs.
pub fn gemm_strips(cpu: &Cpu, m: usize, a: Rows<'_>, w: &Strips, c: &mut [f32], accumulate: bool) {
    let (n, k) = (w.rows(), w.cols());
    let operand = a.operand(m, k);
    let (Rows::F32 { stride, .. } | Rows::Bf16 { stride, .. }) = a;
    assert!(stride == k && (w.has_pairs() || matches!(a, Rows::F32 { .. })), "{m} rows by {w:?}");
    if m <= few::ROWS && !w.rounds() {
        return few::product(cpu, m, a, w, c, accumulate);
    }
    product(cpu, [m, n, k], operand, Factor::Strips(w), c, n, accumulate);
}

/// `c = a w`, or `c += a w`: `a` `[m, n]`, `w` `[n, k]` of any type, `c` `[m, k]`; some rows of `w` at a time are
/// widened into `scratch`.
///
/// # Panics
/// If lengths don't agree, or `scratch` has no room for 16 rows of `w`.
pub fn gemm_strips_turned(
    cpu: &Cpu,
    m: usize,
    a: &[f32],
    w: &Strips,
    scratch: &mut [f32],
    c: &mut [f32],
    accumulate: bool,
) {
    let (n, k) = (w.rows(), w.cols());
    let rows = (scratch.len() / k.max(1)) / LANES * LANES;
    assert!(rows > 0 && a.len() == m * n && c.len() == m * k, "{m} rows by {w:?}");
    for start in (0..n).step_by(rows) {
        let steps = rows.min(n - start);
        let strips = start / LANES..(start + steps).div_ceil(LANES);
        {
            let out = Parts::new(&mut *scratch);
            cpu.pool.split(strips.len(), 1, |range| {
                for i in range {
                    // SAFETY: strips are 16 columns of their own of `[k, rows]`.
                    let to = unsafe { out.part(0..0).as_mut_ptr().add(i * LANES) };
                    let cells = w.cells(strips.start + i);
                    let strip = Turned { w, cells, to, rows };
                    crate::dispatch!(cpu.isa, widen_turned(strip: &Turned<'_> = &strip));
                }
            });
        }
        let a = Mat { data: &a[start..], stride: n, transposed: false };
        let b = Mat { data: &scratch[..], stride: rows, transposed: true };
        gemm(cpu, m, k, steps, a, b, c, k, accumulate || start > 0);
    }
}

/// A strip on its way to columns of `[k, rows]`.
struct Turned<'a> {
    w: &'a Strips,
    cells: &'a [u8],
    to: *mut f32,
    rows: usize,
}

#[inline(always)]
unsafe fn widen_turned<S: Bytes>(strip: &Turned<'_>) {
    let Turned { w, cells, to, rows } = *strip;
    // SAFETY: the strip is whole, and `to` has a column for each of its rows.
    unsafe { widen::<S>(w.kind(), cells.as_ptr(), w.cols(), to, rows) };
}

/// An operand as a task finds it.
#[derive(Clone, Copy)]
enum Factor<'a> {
    /// The kernel reads it where it lies.
    InPlace(Operand<'a>),
    /// Each task packs what it needs of it, block by block.
    Loose(Operand<'a>),
    /// It was packed before, all of it.
    Packed(&'a [Line]),
    /// Each task widens what it needs of it, or copies pairs, block by block.
    Strips(&'a Strips),
}

/// Whether the kernel can read a left operand `[m, k]` where it lies, and fast: whole pairs along
/// k, and not so that the rows of a tile share a set of the first-level cache.
fn in_place(a: Operand<'_>, m: usize, k: usize) -> bool {
    let apart = |bytes: usize| !bytes.is_multiple_of(4096) || m <= 4;
    match a {
        Operand::F32(a) => !a.transposed && apart(a.stride * 4),
        Operand::Bf16(a) => {
            let whole = k.is_multiple_of(2) && (a.stride.is_multiple_of(2) || m == 1);
            !a.transposed && whole && apart(a.stride * 2)
        }
    }
}

thread_local! {
    /// Blocks of both operands that this thread has packed for itself.
    static BLOCKS: Cell<(Vec<Line>, Vec<Line>)> = const { Cell::new((Vec::new(), Vec::new())) };
}

/// Cuts `c` into tasks by tiles of rows and, if they are few, by panels.
fn product(
    cpu: &Cpu,
    [m, n, k]: [usize; 3],
    a: Operand<'_>,
    b: Factor<'_>,
    c: &mut [f32],
    ldc: usize,
    more: bool,
) {
    if m == 0 || n == 0 {
        return;
    }
    assert!(ldc >= n && c.len() >= (m - 1) * ldc + n, "c is too small");
    let pairs = matches!(a, Operand::Bf16(_));
    let [tile_rows, panel] = tile(cpu);
    let rows = Cut::Rows(m, m.div_ceil(tile_rows), tile_rows.next_multiple_of(LANES / 2));
    let columns = Cut::Columns(n, panel);
    let a = if in_place(a, m, k) { Factor::InPlace(a) } else { Factor::Loose(a.turned()) };
    let steps = steps(k, pairs);
    let f = Factors { rows, columns, steps, k, a, b };

    let (tiles, panels) = (rows.count(), columns.count());
    let work = tiles * tile_rows * panels * panel * steps;
    let (by_rows, by_columns) = if matches!((&f.a, &f.b), (Factor::InPlace(_), Factor::Packed(_))) {
        let wanted = (work / TASK).clamp(1, cpu.pool.threads() * 4);
        let by_rows = (tiles / 4).clamp(1, wanted);
        (by_rows, wanted.div_ceil(by_rows).min(panels))
    } else {
        // Each task packs for itself: few tasks, and those with the least to pack.
        let wanted = (work / TASK).clamp(1, cpu.pool.threads());
        let grid = |by_columns: usize| (wanted.div_ceil(by_columns).min(tiles), by_columns);
        let packed = |&(by_rows, by_columns): &(usize, usize)| {
            let a = if matches!(f.a, Factor::Loose(_)) { by_columns * m } else { 0 };
            let b = if matches!(f.b, Factor::Packed(_)) { 0 } else { by_rows * n };
            // As many tasks as are wanted, if that can be.
            (std::cmp::Reverse((by_rows * by_columns).min(wanted)), a + b)
        };
        (1..=wanted.min(panels)).map(grid).min_by_key(packed).unwrap_or((1, 1))
    };
    let c = Parts::new(c);
    cpu.pool.run(by_rows * by_columns, |task| {
        let (r, p) = (task / by_columns, task % by_columns);
        let tiles = r * tiles / by_rows..(r + 1) * tiles / by_rows;
        let panels = p * panels / by_columns..(p + 1) * panels / by_columns;
        // SAFETY: tasks write disjoint rows and columns of c, inside of it (asserted), and the
        // operands hold what the kernel reads (checked).
        let c = unsafe { c.part(0..0).as_mut_ptr() };
        let area = Area { tiles, panels, c, ldc, more };
        if pairs {
            crate::dispatch!(cpu.isa, multiply_pairs(f: &Factors<'_> = &f, area: &Area = &area));
        } else {
            crate::dispatch!(cpu.isa, multiply_singles(f: &Factors<'_> = &f, area: &Area = &area));
        }
    });
}

/// Rows and columns of a tile, which are those of a strip of either operand.
fn tile(cpu: &Cpu) -> [usize; 2] {
    crate::dispatch!(cpu.isa, tile_size() -> [usize; 2])
}

#[inline(always)]
unsafe fn tile_size<S: Simd>() -> [usize; 2] {
    [S::TILE_ROWS, S::TILE_VECTORS * LANES]
}

/// Both operands.
struct Factors<'a> {
    rows: Cut,
    columns: Cut,
    /// Steps of the chains, and what they are of k.
    steps: usize,
    k: usize,
    a: Factor<'a>,
    b: Factor<'a>,
}

/// What a task computes.
struct Area {
    tiles: Range<usize>,
    panels: Range<usize>,
    c: *mut f32,
    ldc: usize,
    more: bool,
}

#[inline(always)]
unsafe fn multiply_singles<S: Bytes>(f: &Factors<'_>, area: &Area) {
    // SAFETY: the caller's promise.
    unsafe { multiply_area::<S, false>(f, area) }
}

#[inline(always)]
unsafe fn multiply_pairs<S: Bytes>(f: &Factors<'_>, area: &Area) {
    // SAFETY: the caller's promise.
    unsafe { multiply_area::<S, true>(f, area) }
}

/// A range in pieces of at most `len`.
fn pieces(range: &Range<usize>, len: usize) -> impl Iterator<Item = Range<usize>> + use<> {
    let end = range.end;
    range.clone().step_by(len).map(move |start| start..end.min(start + len))
}

/// Widens `k` of some panels, whole cells, into the first words of `out`, as [`pack_block`] would; or copies pairs.
#[inline(always)]
unsafe fn unpack_block<S: Bytes, const PAIRS: bool>(
    w: &Strips,
    panels: Range<usize>,
    k: Range<usize>,
    out: &mut [f32],
) {
    let strips = w.rows().div_ceil(LANES);
    let steps = steps(k.len(), PAIRS);
    for strip in panels.start * S::TILE_VECTORS..strips.min(panels.end * S::TILE_VECTORS) {
        let (panel, line) = (strip / S::TILE_VECTORS - panels.start, strip % S::TILE_VECTORS);
        let from = w.cells_of(strip, k.clone());
        let to = out[(panel * steps * S::TILE_VECTORS + line) * LANES..].as_mut_ptr();
        // SAFETY: so many columns or pairs, and as many lines of the panel.
        unsafe {
            if PAIRS {
                for i in 0..steps {
                    let pairs = S::load(from.as_ptr().cast::<f32>().add(i * LANES));
                    S::store(to.add(i * S::TILE_VECTORS * LANES), pairs);
                }
            } else {
                widen::<S>(w.kind(), from.as_ptr(), steps, to, S::TILE_VECTORS * LANES)
            }
        }
    }
}

/// The first `len` words, which are there.
fn room(lines: &mut Vec<Line>, len: usize) -> &mut [f32] {
    if lines.len() * LANES < len {
        lines.resize(len.div_ceil(LANES), Line::default());
    }
    &mut words(lines)[..len]
}

/// Blocks of k outermost. The panels of a block stay in the second-level cache, a good part of one
/// in the first-level one while rows pass by; rows are packed when the first panels need them, and
/// the next ones find them in the cache of all cores.
#[inline(always)]
unsafe fn multiply_area<S: Bytes, const PAIRS: bool>(f: &Factors<'_>, area: &Area) {
    let unit = if PAIRS { 2 } else { 1 };
    let (mut left, mut right) = BLOCKS.take();
    let cell = if let Factor::Strips(w) = f.b { w.cell() / unit } else { 1 };
    let cells = f.steps.div_ceil(cell);
    let (width, panel) = (f.rows.width(), f.columns.width());
    let blocks = cells.div_ceil(BLOCK.div_ceil(cell)).max(1);
    for block in 0..blocks {
        let start = block * cells / blocks * cell;
        let steps = f.steps.min((block + 1) * cells / blocks * cell) - start;
        let k = start * unit..f.k.min((start + steps) * unit);
        let lines = match (&f.a, &f.b) {
            (Factor::InPlace(_), Factor::Strips(_)) => STAYING,
            _ => PACKED,
        };
        let packed = (lines / (steps.max(1) * S::TILE_VECTORS)).max(1);
        let passing = (PASSING * LANES / (steps.max(1) * width)).max(1);
        let kept = match f.a {
            // Packed rows have passed by all panels at once.
            Factor::Loose(_) if area.panels.len() <= packed => passing,
            Factor::Loose(_) => (KEPT * LANES / (steps.max(1) * width)).max(1),
            _ => area.tiles.len().max(1),
        };
        let passes = pieces(&area.tiles, kept).flat_map(|kept| {
            pieces(&area.panels, packed).map(move |panels| (kept.clone(), panels))
        });
        let mut there = 0..0;
        for (kept, panels) in passes {
            let right_len = panels.len() * steps * panel;
            let fresh = std::mem::replace(&mut there, panels.clone()) != panels;
            // SAFETY: the instruction set is the caller's promise.
            unsafe {
                match f.b {
                    _ if !fresh => {}
                    Factor::Loose(b) => {
                        let right = room(&mut right, right_len);
                        pack_block::<S>(b, f.columns, panels.clone(), k.clone(), PAIRS, right)
                    }
                    Factor::Strips(w) => {
                        let right = room(&mut right, right_len);
                        unpack_block::<S, PAIRS>(w, panels.clone(), k.clone(), right)
                    }
                    _ => {}
                }
            }
            for tiles in pieces(&kept, passing) {
                if let (Factor::Loose(a), true) = (f.a, panels.start == area.panels.start) {
                    let left = &mut room(&mut left, kept.len() * steps * width + LANES)
                        [(tiles.start - kept.start) * steps * width..];
                    // SAFETY: see above.
                    unsafe { pack_block::<S>(a, f.rows, tiles.clone(), k.clone(), PAIRS, left) };
                }
                for p in panels.clone() {
                    let columns = f.columns.range(p);
                    let (b, first) = match f.b {
                        Factor::Packed(lines) => (lines, p * f.steps + start),
                        _ => (&right[..], (p - panels.start) * steps),
                    };
                    let b = b.as_ptr().cast::<f32>().wrapping_add(first * panel);
                    for t in tiles.clone() {
                        let rows = f.rows.range(t);
                        let (a, row_step, k_step) = match f.a {
                            Factor::InPlace(Operand::F32(a)) => {
                                let first = rows.start * a.stride + start;
                                (a.data.as_ptr().wrapping_add(first), a.stride, 1)
                            }
                            Factor::InPlace(Operand::Bf16(a)) => {
                                let first = rows.start * a.stride + start * unit;
                                (a.data.as_ptr().wrapping_add(first).cast(), a.stride / unit, 1)
                            }
                            _ => {
                                let first = (t - kept.start) * steps * width;
                                (left.as_ptr().cast::<f32>().wrapping_add(first), 1, width)
                            }
                        };
                        let tile = Tile::<PAIRS> {
                            a,
                            row_step,
                            k_step,
                            b,
                            b_step: panel,
                            k: steps,
                            c: area.c.wrapping_add(rows.start * area.ldc + columns.start),
                            ldc: area.ldc,
                            columns: columns.len(),
                            more: area.more || block > 0,
                        };
                        if t + 1 < tiles.end {
                            tile.prefetch(rows.len());
                        }
                        // SAFETY: rows, columns and k are inside of the operands.
                        unsafe { tile.run::<S>(rows.len()) };
                    }
                }
            }
        }
    }
    BLOCKS.set((left, right));
}

/// Rounds to bf16: `dst[i] = bf16(src[i])`.
pub fn to_bf16(cpu: &Cpu, src: &[f32], dst: &mut [u16]) {
    assert_eq!(src.len(), dst.len());
    let len = src.len();
    let dst = Parts::new(dst);
    cpu.pool.split(len, 4096, |r| {
        // SAFETY: ranges are disjoint.
        let dst = unsafe { dst.part(r.clone()) };
        let src = &src[r];
        crate::dispatch!(cpu.isa, narrow(src: &[f32] = src, dst: &mut [u16] = dst));
    });
}

#[inline(always)]
unsafe fn narrow<S: Simd>(src: &[f32], dst: &mut [u16]) {
    let n = src.len();
    let mut i = 0;
    while i + LANES <= n {
        // SAFETY: 16 elements are there.
        unsafe { S::store_bf16(dst.as_mut_ptr().add(i), S::load(src.as_ptr().add(i))) };
        i += LANES;
    }
    for (d, s) in dst[i..].iter_mut().zip(&src[i..]) {
        *d = half::bf16::from_f32(*s).to_bits();
    }
}

#[cfg(test)]
mod tests;
