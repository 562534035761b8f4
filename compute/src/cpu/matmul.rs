//! Matrix products. A lane is an output, and an output is one chain of fused multiply-adds over k
//! in ascending order: blocks of k continue the chain through `c`, so results depend neither on
//! blocking, nor on neighbours, nor on threads (DESIGN: the kernel contract).
//!
//! The right operand is packed in panels of 48 columns (3 vectors). The left one is read in place,
//! 8 rows at a time (24 accumulators, 3 loads and 8 broadcasts for 24 multiply-adds), or packed in
//! groups of 8 rows if it lies transposed, where rows a power of two apart would share cache sets.
#![allow(unsafe_code)]

use std::cell::RefCell;

use super::Cpu;
use super::rows::Parts;
use super::tile::{Bf16, Element, F32, Tile};
#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx2, Avx512};
use crate::simd::{Isa, LANES, Portable, Simd};

/// Vectors of a panel.
const VECTORS: usize = 3;
/// Columns of a panel.
const PANEL: usize = VECTORS * LANES;
/// k of a block: a block of a panel stays in the first-level cache.
const BLOCK: usize = 128;

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
    /// Distances to the next row and the next column.
    fn steps(&self) -> (usize, usize) {
        if self.transposed { (1, self.stride) } else { (self.stride, 1) }
    }

    fn check(&self, rows: usize, cols: usize) {
        let (r, c) = self.steps();
        let needed = if rows * cols == 0 { 0 } else { (rows - 1) * r + (cols - 1) * c + 1 };
        assert!(self.data.len() >= needed, "a {rows} x {cols} operand has too few elements");
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
    panels: Panels,
    valid: bool,
}

enum Panels {
    F32(Vec<f32>),
    Bf16(Vec<u16>),
}

impl Packed {
    /// Packs `source` (`[k, n]`), rounding to bf16 if asked to.
    pub fn new(cpu: &Cpu, k: usize, n: usize, source: Mat<'_, f32>, bf16: bool) -> Packed {
        let panels = if bf16 { Panels::Bf16(Vec::new()) } else { Panels::F32(Vec::new()) };
        let mut packed = Packed { k, n, panels, valid: false };
        packed.pack(cpu, k, n, source, bf16);
        packed
    }

    /// Packs again, in the same memory.
    pub fn pack(&mut self, cpu: &Cpu, k: usize, n: usize, source: Mat<'_, f32>, bf16: bool) {
        (self.k, self.n, self.valid) = (k, n, true);
        match &mut self.panels {
            Panels::F32(panels) if !bf16 => pack(cpu, k, n, source, panels, |x| x),
            Panels::Bf16(panels) if bf16 => {
                pack_pairs(cpu, k, n, source, panels, |x| half::bf16::from_f32(x).to_bits());
            }
            _ => *self = Packed::new(cpu, k, n, source, bf16),
        }
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

/// Panels `[n / 48][k][48]`, the last one filled up with zeros.
fn pack(
    cpu: &Cpu,
    k: usize,
    n: usize,
    source: Mat<'_, f32>,
    panels: &mut Vec<f32>,
    convert: impl Fn(f32) -> f32 + Sync,
) {
    source.check(k, n);
    panels.resize(n.div_ceil(PANEL) * k * PANEL, 0.0);
    let parts = Parts::new(panels);
    cpu.pool.run(n.div_ceil(PANEL), |p| {
        // SAFETY: panels are disjoint.
        let panel = unsafe { parts.part(p * k * PANEL..(p + 1) * k * PANEL) };
        let columns = PANEL.min(n - p * PANEL);
        if source.transposed {
            for j in 0..columns {
                let column = &source.data[(p * PANEL + j) * source.stride..][..k];
                for (kk, x) in column.iter().enumerate() {
                    panel[kk * PANEL + j] = convert(*x);
                }
            }
        } else {
            for (kk, row) in panel.chunks_exact_mut(PANEL).enumerate() {
                let from = &source.data[kk * source.stride + p * PANEL..][..columns];
                row.iter_mut().zip(from).for_each(|(a, b)| *a = convert(*b));
            }
        }
        if columns < PANEL {
            panel.chunks_exact_mut(PANEL).for_each(|row| row[columns..].fill(0.0));
        }
    });
}

/// Panels of pairs `[n / 48][k / 2][48][2]`, filled up with zeros.
fn pack_pairs<T: Copy + Sync>(
    cpu: &Cpu,
    k: usize,
    n: usize,
    source: Mat<'_, T>,
    panels: &mut Vec<u16>,
    convert: impl Fn(T) -> u16 + Sync,
) {
    source.check(k, n);
    let pairs = k.div_ceil(2);
    panels.resize(n.div_ceil(PANEL) * pairs * PANEL * 2, 0);
    let (row_step, column_step) = source.steps();
    let parts = Parts::new(panels);
    cpu.pool.run(n.div_ceil(PANEL), |p| {
        let size = pairs * PANEL * 2;
        // SAFETY: panels are disjoint.
        let panel = unsafe { parts.part(p * size..(p + 1) * size) };
        let columns = PANEL.min(n - p * PANEL);
        if columns < PANEL || k % 2 == 1 {
            panel.fill(0);
        }
        for kk in 0..k {
            let row = &mut panel[kk / 2 * PANEL * 2..][..PANEL * 2];
            for j in 0..columns {
                let from = kk * row_step + (p * PANEL + j) * column_step;
                row[j * 2 + kk % 2] = convert(source.data[from]);
            }
        }
    });
}

thread_local! {
    /// Packed operands of the products of this thread.
    static FLOATS: RefCell<(Vec<f32>, Vec<f32>)> = const { RefCell::new((Vec::new(), Vec::new())) };
    static HALVES: RefCell<(Vec<u16>, Vec<u16>)> = const { RefCell::new((Vec::new(), Vec::new())) };
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
    let (mut panels, mut groups) = FLOATS.take();
    pack(cpu, k, n, b, &mut panels, |x| x);
    let left = if a.transposed {
        pack_groups(cpu, m, k, a, &mut groups)
    } else {
        Left { data: a.data, tile_step: a.stride, row_step: a.stride, k_step: 1 }
    };
    multiply_f32(cpu, m, n, k, left, &panels, c, ldc, accumulate);
    FLOATS.set((panels, groups));
}

/// A left operand for the kernel: element `(tile + r, kk)` is at `tile * tile_step + r * row_step +
/// kk * k_step`, where `tile` is the first row of a tile.
#[derive(Clone, Copy)]
struct Left<'a> {
    data: &'a [f32],
    tile_step: usize,
    row_step: usize,
    k_step: usize,
}

/// A transposed left operand as groups of a tile's rows: `[m / tile][k][tile]`.
fn pack_groups<'a>(
    cpu: &Cpu,
    m: usize,
    k: usize,
    a: Mat<'_, f32>,
    groups: &'a mut Vec<f32>,
) -> Left<'a> {
    let tile = tile_rows(cpu.isa);
    groups.resize(m.div_ceil(tile) * tile * k, 0.0);
    let parts = Parts::new(groups);
    cpu.pool.run(m.div_ceil(tile), |g| {
        // SAFETY: groups are disjoint.
        let group = unsafe { parts.part(g * tile * k..(g + 1) * tile * k) };
        let rows = tile.min(m - g * tile);
        for (kk, to) in group.chunks_exact_mut(tile).enumerate() {
            let from = &a.data[kk * a.stride + g * tile..][..rows];
            match (to.as_chunks_mut::<8>().0, from.as_chunks::<8>().0) {
                ([to], [from]) => *to = *from, // the common case, without a call
                _ => to[..rows].copy_from_slice(from),
            }
        }
    });
    Left { data: groups, tile_step: k, row_step: 1, k_step: tile }
}

/// Rows of a tile on an instruction set.
fn tile_rows(isa: Isa) -> usize {
    match isa {
        Isa::Portable => Portable::TILE_ROWS,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => Avx2::TILE_ROWS,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Bf16 => Avx512::TILE_ROWS,
        #[cfg(not(target_arch = "x86_64"))]
        _ => Portable::TILE_ROWS,
    }
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
    let (mut panels, mut rows) = HALVES.take();
    pack_pairs(cpu, k, n, b, &mut panels, |x| x);
    // Pairs along k must lie together, and an odd k is filled up.
    let (a, stride) = if a.transposed || k % 2 == 1 {
        let stride = k.next_multiple_of(2);
        rows.resize(m * stride, 0);
        let (row_step, column_step) = a.steps();
        let parts = Parts::new(&mut rows);
        cpu.pool.split(m, 8, |r| {
            for r in r {
                // SAFETY: rows are disjoint.
                let row = unsafe { parts.part(r * stride..(r + 1) * stride) };
                row[k..].fill(0);
                for (kk, x) in row[..k].iter_mut().enumerate() {
                    *x = a.data[r * row_step + kk * column_step];
                }
            }
        });
        (&rows[..], stride)
    } else {
        (a.data, a.stride)
    };
    multiply_bf16(cpu, m, n, k, a, stride, &panels, c, ldc, accumulate);
    HALVES.set((panels, rows));
}

/// As [`gemm`], with a right operand packed before.
///
/// # Panics
/// If the types of the operands differ.
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
    match (a, &b.panels) {
        (Rows::F32 { data, stride }, Panels::F32(panels)) => {
            Mat { data, stride, transposed: false }.check(m, k);
            let a = Left { data, tile_step: stride, row_step: stride, k_step: 1 };
            multiply_f32(cpu, m, n, k, a, panels, c, ldc, accumulate);
        }
        (Rows::Bf16 { data, stride }, Panels::Bf16(_)) if k % 2 == 1 => {
            let a = Mat { data, stride, transposed: false };
            let (_, mut rows) = HALVES.take();
            let wide = k + 1;
            rows.clear();
            rows.resize(m * wide, 0);
            a.check(m, k);
            for (r, row) in rows.chunks_exact_mut(wide).enumerate() {
                row[..k].copy_from_slice(&data[r * stride..][..k]);
            }
            if let Panels::Bf16(panels) = &b.panels {
                multiply_bf16(cpu, m, n, k, &rows, wide, panels, c, ldc, accumulate);
            }
            HALVES.set((Vec::new(), rows));
        }
        (Rows::Bf16 { data, stride }, Panels::Bf16(panels)) => {
            multiply_bf16(cpu, m, n, k, data, stride, panels, c, ldc, accumulate);
        }
        _ => panic!("a product of f32 and bf16 operands"),
    }
}

/// Cuts `c` into tasks: columns by panels, rows so that there are a few tasks a thread.
fn tasks(cpu: &Cpu, m: usize, panels: usize) -> (usize, usize, usize) {
    let wanted = cpu.pool.threads() * 4;
    let tile = tile_rows(cpu.isa);
    // Panels of a task: all of them while rows give tasks enough.
    let row_tasks = m.div_ceil(tile * 4).min(wanted).max(1);
    let panel_tasks = wanted.div_ceil(row_tasks).min(panels).max(1);
    let rows = m.div_ceil(row_tasks).next_multiple_of(tile);
    (rows, m.div_ceil(rows), panels.div_ceil(panel_tasks))
}

#[allow(clippy::too_many_arguments)]
fn multiply_f32(
    cpu: &Cpu,
    m: usize,
    n: usize,
    k: usize,
    a: Left<'_>,
    panels: &[f32],
    c: &mut [f32],
    ldc: usize,
    accumulate: bool,
) {
    if m == 0 || n == 0 {
        return;
    }
    assert!(ldc >= n && c.len() >= (m - 1) * ldc + n, "c is too small");
    let count = n.div_ceil(PANEL);
    let (rows, row_tasks, each) = tasks(cpu, m, count);
    let steps = Steps { tile: a.tile_step, row: a.row_step, k: a.k_step };
    let c = Parts::new(c);
    cpu.pool.run(row_tasks * count.div_ceil(each), |task| {
        let (r, p) = (task % row_tasks * rows, task / row_tasks * each);
        let area = Area { rows: r..(r + rows).min(m), panels: p..(p + each).min(count), n, k, ldc };
        // SAFETY: tasks write disjoint rows and columns of c, inside of it (asserted); a and the
        // panels hold what the kernel reads (checked).
        let c = unsafe { c.part(0..0).as_mut_ptr() };
        let (a, b) = (a.data.as_ptr(), panels.as_ptr());
        crate::dispatch!(cpu.isa, area_f32(area: &Area = &area, a: *const f32 = a, steps: Steps = steps, b: *const f32 = b, c: *mut f32 = c, accumulate: bool = accumulate));
    });
}

#[allow(clippy::too_many_arguments)]
fn multiply_bf16(
    cpu: &Cpu,
    m: usize,
    n: usize,
    k: usize,
    a: &[u16],
    stride: usize,
    panels: &[u16],
    c: &mut [f32],
    ldc: usize,
    accumulate: bool,
) {
    if m == 0 || n == 0 {
        return;
    }
    let pairs = k.div_ceil(2);
    assert!(a.len() >= (m - 1) * stride + pairs * 2, "a is too small");
    assert!(ldc >= n && c.len() >= (m - 1) * ldc + n, "c is too small");
    let count = n.div_ceil(PANEL);
    let (rows, row_tasks, each) = tasks(cpu, m, count);
    let steps = Steps { tile: stride, row: stride, k: 2 };
    let c = Parts::new(c);
    cpu.pool.run(row_tasks * count.div_ceil(each), |task| {
        let (r, p) = (task % row_tasks * rows, task / row_tasks * each);
        let panel_range = p..(p + each).min(count);
        let area = Area { rows: r..(r + rows).min(m), panels: panel_range, n, k: pairs, ldc };
        // SAFETY: as in multiply_f32; k counts pairs.
        let c = unsafe { c.part(0..0).as_mut_ptr() };
        let (a, b) = (a.as_ptr(), panels.as_ptr());
        crate::dispatch!(cpu.isa, area_bf16(area: &Area = &area, a: *const u16 = a, steps: Steps = steps, b: *const u16 = b, c: *mut f32 = c, accumulate: bool = accumulate));
    });
}

/// What a task computes.
struct Area {
    rows: std::ops::Range<usize>,
    panels: std::ops::Range<usize>,
    n: usize,
    /// Elements, or pairs, of a chain.
    k: usize,
    ldc: usize,
}

/// Distances in a left operand: see [`Left`].
#[derive(Clone, Copy)]
struct Steps {
    tile: usize,
    row: usize,
    k: usize,
}

#[inline(always)]
unsafe fn area_f32<S: Simd>(
    area: &Area,
    a: *const f32,
    steps: Steps,
    b: *const f32,
    c: *mut f32,
    accumulate: bool,
) {
    // SAFETY: the caller's promise.
    unsafe { whole_area::<S, F32>(area, a, steps, b, c, accumulate) }
}

#[inline(always)]
unsafe fn area_bf16<S: Simd>(
    area: &Area,
    a: *const u16,
    steps: Steps,
    b: *const u16,
    c: *mut f32,
    accumulate: bool,
) {
    // SAFETY: the caller's promise.
    unsafe { whole_area::<S, Bf16>(area, a, steps, b, c, accumulate) }
}

/// Everything of an area: blocks of k outermost, so that a block of a panel is read from the first
/// cache by all rows.
#[inline(always)]
unsafe fn whole_area<S: Simd, E: Element>(
    area: &Area,
    a: *const E::T,
    steps: Steps,
    b: *const E::T,
    c: *mut f32,
    accumulate: bool,
) {
    let unit = PANEL * E::UNIT;
    for p in area.panels.clone() {
        let columns = PANEL.min(area.n - p * PANEL);
        let mut start = 0;
        loop {
            let k = BLOCK.min(area.k - start);
            let more = accumulate || start > 0;
            let mut row = area.rows.start;
            while row < area.rows.end {
                let rows = S::TILE_ROWS.min(area.rows.end - row);
                for v in (0..columns.div_ceil(LANES)).step_by(S::TILE_VECTORS) {
                    let left = columns - v * LANES;
                    // SAFETY: rows, columns and k are inside of the operands (checked by the
                    // caller).
                    unsafe {
                        let tile = Tile::<E> {
                            a: a.add(row * steps.tile + start * steps.k),
                            row_step: steps.row,
                            k_step: steps.k,
                            b: b.add((p * area.k + start) * unit + v * LANES * E::UNIT),
                            b_step: unit,
                            k,
                            c: c.add(row * area.ldc + p * PANEL + v * LANES),
                            ldc: area.ldc,
                            columns: left.min(S::TILE_VECTORS * LANES),
                            more,
                        };
                        tile.run::<S>(rows);
                    }
                }
                row += rows;
            }
            start += k;
            if start >= area.k {
                break;
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
mod tests {
    use super::*;
    use crate::Pool;
    use crate::cpu::tests::{everywhere, noise};

    const SHAPES: [[usize; 3]; 7] = [
        [1, 1, 1],
        [3, 17, 129],
        [17, 129, 3],
        [129, 3, 17],
        [9, 49, 260],
        [64, 96, 128],
        [1, 200, 0],
    ];

    /// A matrix `[rows, cols]` laid out either way, with rows two elements longer than needed.
    fn operand(data: &[f32], rows: usize, cols: usize, transposed: bool) -> (Vec<f32>, usize) {
        let (outer, inner) = if transposed { (cols, rows) } else { (rows, cols) };
        let stride = inner + 2;
        let mut out = vec![f32::NAN; outer * stride];
        for o in 0..outer {
            for i in 0..inner {
                let (r, c) = if transposed { (i, o) } else { (o, i) };
                out[o * stride + i] = data[r * cols + c];
            }
        }
        (out, stride)
    }

    #[test]
    fn f32_is_one_chain_of_fused_multiply_adds() {
        for [m, n, k] in SHAPES {
            let (a, b, c0) = (noise(1, m * k), noise(2, k * n), noise(3, m * n));
            for accumulate in [false, true] {
                let mut want = if accumulate { c0.clone() } else { vec![0.0; m * n] };
                for (i, w) in want.iter_mut().enumerate() {
                    for kk in 0..k {
                        *w = a[i / n * k + kk].mul_add(b[kk * n + i % n], *w);
                    }
                }
                for (ta, tb) in [(false, false), (false, true), (true, false), (true, true)] {
                    let (pa, sa) = operand(&a, m, k, ta);
                    let (pb, sb) = operand(&b, k, n, tb);
                    let ma = Mat { data: &pa[..], stride: sa, transposed: ta };
                    let mb = Mat { data: &pb[..], stride: sb, transposed: tb };
                    let got = everywhere(|cpu| {
                        let mut c = c0.clone();
                        gemm(cpu, m, n, k, ma, mb, &mut c, n, accumulate);
                        c
                    });
                    assert_eq!(got, want, "{m} x {n} x {k}, transposed {ta} {tb}");
                    if !ta {
                        let got = everywhere(|cpu| {
                            let packed = Packed::new(cpu, k, n, mb, false);
                            let mut c = c0.clone();
                            let rows = Rows::F32 { data: &pa, stride: sa };
                            gemm_packed(cpu, m, n, k, rows, &packed, &mut c, n, accumulate);
                            c
                        });
                        assert_eq!(got, want);
                    }
                }
            }
        }
    }

    #[test]
    fn bf16_is_close_and_does_not_depend_on_threads() {
        for [m, n, k] in SHAPES {
            let half = |x: Vec<f32>| -> (Vec<f32>, Vec<u16>) {
                let h: Vec<_> = x.iter().map(|x| half::bf16::from_f32(*x)).collect();
                (h.iter().map(|h| h.to_f32()).collect(), h.iter().map(|h| h.to_bits()).collect())
            };
            let ((a, ha), (b, hb)) = (half(noise(4, m * k)), half(noise(5, k * n)));
            for isa in Isa::ALL.into_iter().filter(|i| i.available()) {
                let mut first = None;
                for threads in [1, 2, 3] {
                    let cpu = Cpu { pool: Pool::new(threads), isa };
                    let mut c = vec![1.0; m * n];
                    let ma = Mat { data: &ha[..], stride: k, transposed: false };
                    let mb = Mat { data: &hb[..], stride: n, transposed: false };
                    gemm_bf16(&cpu, m, n, k, ma, mb, &mut c, n, true);
                    for (i, c) in c.iter().enumerate() {
                        let products = (0..k)
                            .map(|kk| f64::from(a[i / n * k + kk]) * f64::from(b[kk * n + i % n]));
                        let want = 1.0 + products.sum::<f64>();
                        assert!((f64::from(*c) - want).abs() < 1e-4, "{c}, not {want}");
                    }
                    // The same from a packed operand, and from transposed ones.
                    let (fb, sb) = operand(&b, k, n, true);
                    let mb = Mat { data: &fb[..], stride: sb, transposed: true };
                    let packed = Packed::new(&cpu, k, n, mb, true);
                    let mut d = vec![1.0; m * n];
                    let rows = Rows::Bf16 { data: &ha, stride: k };
                    gemm_packed(&cpu, m, n, k, rows, &packed, &mut d, n, true);
                    assert_eq!(c, d);
                    let (fa, sa) = operand(&a, m, k, true);
                    let ta: Vec<u16> =
                        fa.iter().map(|x| half::bf16::from_f32(*x).to_bits()).collect();
                    let ma = Mat { data: &ta[..], stride: sa, transposed: true };
                    let mb = Mat { data: &hb[..], stride: n, transposed: false };
                    let mut e = vec![1.0; m * n];
                    gemm_bf16(&cpu, m, n, k, ma, mb, &mut e, n, true);
                    assert_eq!(c, e);
                    assert_eq!(*first.get_or_insert(c.clone()), c, "{threads} threads");
                }
            }
        }
    }
}
