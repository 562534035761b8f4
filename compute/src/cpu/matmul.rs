//! Matrix products. A lane is an output, and an output is one chain of fused multiply-adds over k
//! in ascending order: blocks of k continue the chain through `c`, so results depend neither on
//! blocking, nor on neighbours, nor on threads (ARCHITECTURE: the kernel contract).
//!
//! The layers are those of Goto and van de Geijn (2008): slices of k are packed where they need it
//! ([`pack`]); a block of a strip of the right operand stays in the first-level cache while the
//! rows of a task pass by; a tile of `c` stays in registers (`tile`: on AVX-512 14 rows by 32
//! columns, 28 accumulators, 16 loads for 28 multiply-adds).
#![allow(unsafe_code)]

mod pack;
mod tile;

use std::cell::Cell;
use std::ops::Range;

use super::Cpu;
use super::rows::Parts;
#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx2, Avx512};
use crate::simd::{Isa, LANES, Portable, Simd};
use pack::{Line, Operand, Strips, pack};
use tile::Tile;

/// Lines of a step of a strip of the right operand, on every instruction set.
const PANEL_LINES: usize = 2;
/// Columns of such a strip.
const PANEL: usize = PANEL_LINES * LANES;
/// Steps of a block: 256 steps of a strip are 32 KiB.
const BLOCK: usize = 256;
/// Words of a slice of what is packed for one product, of both operands: the cache of one core
/// holds them.
const SLICE: usize = 320 * 1024;
/// Multiply-adds of a task at least (some microseconds), so that a small product is not split.
const TASK: usize = 1 << 17;

/// Tiles of rows of a task times steps of a block, at most: 24 strips of 256 steps are 384 KiB.
const TASK_ROWS: usize = 24 * BLOCK;

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

    /// The same memory with rows for columns.
    fn turned(self) -> Self {
        Mat { transposed: !self.transposed, ..self }
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
        let strips = Strips::Columns(n, PANEL_LINES);
        self.panels.resize(strips.size(steps(k, bf16)), Line::default());
        pack(cpu, Operand::F32(source), strips, 0..k, bf16, &mut self.panels);
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
    let right = Right::Operand(Operand::F32(b));
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
    let right = Right::Operand(Operand::Bf16(b));
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
    let a = match a {
        Rows::F32 { data, stride } if !b.bf16 => {
            let a = Mat { data, stride, transposed: false };
            a.check(m, k);
            Operand::F32(a)
        }
        Rows::Bf16 { data, stride } if b.bf16 => {
            let a = Mat { data, stride, transposed: false };
            a.check(m, k);
            Operand::Bf16(a)
        }
        _ => panic!("a product of f32 and bf16 operands"),
    };
    product(cpu, [m, n, k], a, Right::Packed(&b.panels), c, ldc, accumulate);
}

/// A right operand.
enum Right<'a> {
    Operand(Operand<'a>),
    Packed(&'a [Line]),
}

/// A left operand as the kernel reads it.
#[derive(Clone, Copy)]
enum Left<'a> {
    /// Rows in memory, from some column on.
    InPlace(Operand<'a>, usize),
    /// Strips of rows.
    Packed(&'a [Line]),
}

/// Whether the kernel can read a left operand `[m, k]` where it lies, and fast: along k, whole
/// pairs, and not so that the rows of a tile share a set of the first-level cache.
fn in_place(a: Operand<'_>, m: usize, k: usize) -> bool {
    let (transposed, bytes, whole) = match a {
        Operand::F32(a) => (a.transposed, a.stride * 4, true),
        Operand::Bf16(a) => (
            a.transposed,
            a.stride * 2,
            k.is_multiple_of(2) && (a.stride.is_multiple_of(2) || m == 1),
        ),
    };
    !transposed && whole && (!bytes.is_multiple_of(4096) || m <= 4)
}

thread_local! {
    /// Slices of both operands of the products that this thread asks for.
    static SLICES: Cell<(Vec<Line>, Vec<Line>)> = const { Cell::new((Vec::new(), Vec::new())) };
}

fn product(
    cpu: &Cpu,
    [m, n, k]: [usize; 3],
    a: Operand<'_>,
    b: Right<'_>,
    c: &mut [f32],
    ldc: usize,
    accumulate: bool,
) {
    if m == 0 || n == 0 {
        return;
    }
    assert!(ldc >= n && c.len() >= (m - 1) * ldc + n, "c is too small");
    let (pairs, turned) = match a {
        Operand::F32(a) => (false, Operand::F32(a.turned())),
        Operand::Bf16(a) => (true, Operand::Bf16(a.turned())),
    };
    let rows = Strips::Rows(m, m.div_ceil(tile_rows(cpu.isa)));
    let columns = Strips::Columns(n, PANEL_LINES);
    let pack_a = !in_place(a, m, k);
    let pack_b = matches!(b, Right::Operand(_));
    let width = if pack_a { m } else { 0 } + if pack_b { n } else { 0 };
    let slice = SLICE.checked_div(width).map_or(k, |s| (s / BLOCK).max(1) * BLOCK).max(1);
    let (mut left, mut right) = SLICES.take();
    let mut start = 0;
    loop {
        let range = start..k.min(start + slice);
        let n_steps = steps(range.len(), pairs);
        if pack_a {
            grow(&mut left, rows.size(n_steps));
            pack(cpu, turned, rows, range.clone(), pairs, &mut left);
        }
        if let Right::Operand(b) = b {
            grow(&mut right, columns.size(n_steps));
            pack(cpu, b, columns, range.clone(), pairs, &mut right);
        }
        let (b, panel) = match b {
            Right::Operand(_) => (&right[..], n_steps * PANEL),
            Right::Packed(panels) => (panels, steps(k, pairs) * PANEL),
        };
        let factors = Factors {
            rows,
            columns,
            steps: n_steps,
            left: if pack_a { Left::Packed(&left) } else { Left::InPlace(a, start) },
            right: b,
            first: if pack_b { 0 } else { steps(start, pairs) },
            panel,
        };
        multiply(cpu, &factors, pairs, c, ldc, accumulate || start > 0);
        start = range.end;
        if start >= k {
            break;
        }
    }
    SLICES.set((left, right));
}

fn grow(lines: &mut Vec<Line>, len: usize) {
    if lines.len() < len {
        lines.resize(len, Line::default());
    }
}

/// Rows of a tile on an instruction set.
fn tile_rows(isa: Isa) -> usize {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => Avx2::TILE_ROWS,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Bf16 => Avx512::TILE_ROWS,
        _ => Portable::TILE_ROWS,
    }
}

/// Both operands over a slice of k.
struct Factors<'a> {
    rows: Strips,
    columns: Strips,
    steps: usize,
    left: Left<'a>,
    right: &'a [Line],
    /// Where the slice starts in a panel, and from one panel to the next: steps, words.
    first: usize,
    panel: usize,
}

/// Cuts `c` into tasks by tiles of rows and, if they are few, by panels.
fn multiply(cpu: &Cpu, f: &Factors<'_>, pairs: bool, c: &mut [f32], ldc: usize, more: bool) {
    let (tiles, panels) = (f.rows.count(), f.columns.count());
    let work = tiles * tile_rows(cpu.isa) * panels * PANEL * f.steps;
    let wanted = (work / TASK).clamp(1, cpu.pool.threads() * 4);
    // A block of a panel comes from the second-level cache for the rows of each task, and a block
    // of those rows stays there.
    let by_rows = (tiles / 4).clamp(1, wanted).max(tiles * f.steps.min(BLOCK) / TASK_ROWS);
    let by_columns = wanted.div_ceil(by_rows).min(panels);
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
            crate::dispatch!(cpu.isa, multiply_pairs(f: &Factors<'_> = f, area: &Area = &area));
        } else {
            crate::dispatch!(cpu.isa, multiply_singles(f: &Factors<'_> = f, area: &Area = &area));
        }
    });
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
unsafe fn multiply_singles<S: Simd>(f: &Factors<'_>, area: &Area) {
    // SAFETY: the caller's promise.
    unsafe { multiply_area::<S, false>(f, area) }
}

#[inline(always)]
unsafe fn multiply_pairs<S: Simd>(f: &Factors<'_>, area: &Area) {
    // SAFETY: the caller's promise.
    unsafe { multiply_area::<S, true>(f, area) }
}

/// Blocks of k outermost: the rows of a block stay in the second-level cache for all panels, a
/// panel's part of it in the first-level one for all rows.
#[inline(always)]
unsafe fn multiply_area<S: Simd, const PAIRS: bool>(f: &Factors<'_>, area: &Area) {
    let unit = if PAIRS { 2 } else { 1 };
    let (a, row_step) = match f.left {
        Left::InPlace(Operand::F32(a), k) => (a.data.as_ptr().wrapping_add(k), a.stride),
        Left::InPlace(Operand::Bf16(a), k) => {
            (a.data.as_ptr().wrapping_add(k).cast(), a.stride / unit)
        }
        Left::Packed(lines) => (lines.as_ptr().cast(), 1),
    };
    let packed = matches!(f.left, Left::Packed(_));
    let b = f.right.as_ptr().cast::<f32>().wrapping_add(f.first * PANEL);
    let blocks = f.steps.div_ceil(BLOCK).max(1);
    for block in 0..blocks {
        let start = block * f.steps / blocks;
        let k = (block + 1) * f.steps / blocks - start;
        for p in area.panels.clone() {
            let columns = f.columns.range(p);
            let b = b.wrapping_add(p * f.panel + start * PANEL);
            for t in area.tiles.clone() {
                let rows = f.rows.range(t);
                let (a, k_step) = if packed {
                    (a.wrapping_add((t * f.steps + start) * LANES), LANES)
                } else {
                    (a.wrapping_add(rows.start * row_step + start), 1)
                };
                for v in (0..columns.len()).step_by(S::TILE_VECTORS * LANES) {
                    let tile = Tile::<PAIRS> {
                        a,
                        row_step,
                        k_step,
                        b: b.wrapping_add(v),
                        b_step: PANEL,
                        k,
                        c: area.c.wrapping_add(rows.start * area.ldc + columns.start + v),
                        ldc: area.ldc,
                        columns: (columns.len() - v).min(S::TILE_VECTORS * LANES),
                        more: area.more || block > 0,
                    };
                    if t + 1 < area.tiles.end {
                        tile.prefetch(rows.len());
                    }
                    // SAFETY: rows, columns and k are inside of the operands.
                    unsafe { tile.run::<S>(rows.len()) };
                }
            }
        }
    }
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
