//! Products with quantised weights ([`Strips`]): activations are rounded to 8 bits, 32 to a scale
//! (as Q8_0), and products within a group of 32, or 16, are exact in integers. A lane is an
//! output, and an output is one chain over the groups in ascending order:
//!
//! ```text
//! y = y + (scale of w * scale of x) * (sum of codes of w * codes of x)
//! y = y + least of w * (scale of x * sum of codes of x)           (where the type has a least)
//! ```
//!
//! each a fused multiply-add. Groups of strips are made ready in the nearest cache ([`ready`]) and
//! all rows pass by; for few rows, where memory sets the pace, groups stay in registers ([`few`]). The bits are the same.
#![allow(unsafe_code)]

mod few;

use std::cell::Cell;

use super::Cpu;
use super::rows::Parts;
use crate::aligned::Aligned;
use crate::bytes::{BYTES, Bytes};
use crate::simd::{LANES, prefetch};
use crate::strips::{GROUP, Ready, Strips, ready};

/// Most groups that are made ready at a time: with 24 of two strips there is room in the nearest
/// cache for the rows that pass by.
const BLOCK: usize = 24;
/// Rows that are few.
const FEW: usize = 4;
/// Most strips of a tile.
const STRIPS: usize = 2;
/// Multiply-adds of a task, some microseconds, and weights of one where rows are few.
const TASK: usize = 1 << 19;
const WEIGHTS: usize = 1 << 16;
/// Rows of a task at least: making weights ready has to pay.
const ROWS: usize = 96;

/// Numbers of a row of activations for each group: its scale; its scale times the sum of its codes;
/// that of each half.
pub const NUMBERS: usize = 4;

/// Groups whose largest number is below are rounded to zeros.
const TINY: f32 = 1e-36;

/// Rounds rows `[rows, cols]` to 8 bits: `codes` `[rows, cols]`, `numbers` `[rows, 4 cols / 32]`
/// (scales, then sums, then sums of halves). The code of the largest of a group is ±127.
///
/// # Panics
/// If rows are not whole groups, or lengths don't agree.
pub fn quantise(cpu: &Cpu, x: &[f32], cols: usize, codes: &mut [u8], numbers: &mut [f32]) {
    assert!(cols.is_multiple_of(GROUP) && x.len().is_multiple_of(cols.max(1)));
    let groups = cols / GROUP;
    let rows = x.len() / cols.max(1);
    assert!(codes.len() == x.len() && numbers.len() == rows * groups * NUMBERS);
    let (codes, numbers) = (Parts::new(codes), Parts::new(numbers));
    let grain = (4096 / cols.max(1)).max(1);
    cpu.pool.split(rows, grain, |range| {
        for r in range {
            // SAFETY: rows are disjoint.
            let (codes, numbers) = unsafe {
                let n = groups * NUMBERS;
                (codes.part(r * cols..(r + 1) * cols), numbers.part(r * n..(r + 1) * n))
            };
            let x = &x[r * cols..(r + 1) * cols];
            crate::dispatch!(
                cpu.isa,
                quantise_row(x: &[f32] = x, codes: &mut [u8] = codes, numbers: &mut [f32] = numbers)
            );
        }
    });
}

#[inline(always)]
unsafe fn quantise_row<S: Bytes>(x: &[f32], codes: &mut [u8], numbers: &mut [f32]) {
    let groups = x.len() / GROUP;
    for (g, x) in x.chunks_exact(GROUP).enumerate() {
        // SAFETY: a group is two vectors; the instruction set is the caller's promise.
        unsafe {
            let halves = [S::load(x.as_ptr()), S::load(x.as_ptr().add(LANES))];
            let zero = S::splat(0.0);
            let (most, least) = (S::max(halves[0], halves[1]), S::min(halves[0], halves[1]));
            let largest = S::max_lane(S::max(most, S::sub(zero, least)));
            // Smaller ones have no inverse; they are nothing beside any other number.
            let inverse = S::splat(if largest > TINY { 127.0 / largest } else { 0.0 });
            let mut sums = [0.0; 2];
            for i in 0..2 {
                let code = S::round(S::mul(halves[i], inverse));
                S::store_codes(codes.as_mut_ptr().add(g * GROUP + i * LANES), code);
                sums[i] = S::sum(code);
            }
            let sum = sums[0] + sums[1];
            // What is no number is not hidden by rounding: then the sum is none.
            let scale = if sum.is_nan() { f32::NAN } else { largest / 127.0 };
            numbers[g] = scale;
            numbers[groups + g] = scale * sum;
            numbers[2 * groups + 2 * g] = scale * sums[0];
            numbers[2 * groups + 2 * g + 1] = scale * sums[1];
        }
    }
}

/// `c = x wᵀ`, or `c += …`: rows of `codes` and `numbers` (see [`quantise`]), `w` `[n, k]`, `c`
/// `[rows, n]`.
///
/// # Panics
/// If lengths don't agree, or `w` is not quantised.
pub fn product(
    cpu: &Cpu,
    rows: usize,
    codes: &[u8],
    numbers: &[f32],
    w: &Strips,
    c: &mut [f32],
    more: bool,
) {
    let (n, k) = (w.rows(), w.cols());
    assert!(codes.len() == rows * k && numbers.len() == rows * k / GROUP * NUMBERS);
    assert!(c.len() == rows * n && w.rounds(), "{rows} rows by {w:?}");
    if c.is_empty() {
        return;
    }
    if rows <= few::ROWS {
        return few::product(cpu, codes, numbers, w, c, more);
    }
    let pairs = n.div_ceil(STRIPS * LANES);
    // By rows first: what a thread wrote of them is in its cache. Then by columns.
    let threads = cpu.pool.threads();
    let wanted = (n * k / WEIGHTS).max(rows * n * k / TASK).next_multiple_of(threads);
    let wanted = wanted.min(threads * 4);
    let by_rows = (rows / ROWS).clamp(1, wanted);
    let by_columns = (wanted / by_rows).clamp(1, pairs);
    let c = Parts::new(c);
    cpu.pool.run(by_rows * by_columns, |task| {
        let (r, p) = (task / by_columns, task % by_columns);
        // SAFETY: tasks write disjoint rows and columns of c, inside of it (asserted).
        let c = unsafe { c.part(0..0).as_mut_ptr() };
        let area = Area {
            codes,
            numbers,
            w,
            rows: r * rows / by_rows..(r + 1) * rows / by_rows,
            columns: p * pairs / by_columns * STRIPS * LANES
                ..n.min((p + 1) * pairs / by_columns * STRIPS * LANES),
            c,
            more,
        };
        crate::dispatch!(cpu.isa, multiply_area(area: &Area<'_> = &area));
    });
}

/// What a task computes.
struct Area<'a> {
    codes: &'a [u8],
    numbers: &'a [f32],
    w: &'a Strips,
    rows: std::ops::Range<usize>,
    columns: std::ops::Range<usize>,
    c: *mut f32,
    more: bool,
}

thread_local! {
    /// Groups of strips that this thread has made ready.
    static READY: Cell<Aligned> = const { Cell::new(Aligned::empty()) };
}

/// f32 that a strip's part of [`READY`] has: codes; scales, least values and starts of halves.
const ROOM: usize = BLOCK * GROUP * LANES / 4 + 3 * BLOCK * 2 * LANES;

#[inline(always)]
unsafe fn multiply_area<S: Bytes>(area: &Area<'_>) {
    let mut scratch = READY.take();
    if scratch.len() < STRIPS * ROOM {
        match Aligned::zeros(STRIPS * ROOM) {
            Some(memory) => scratch = memory,
            None => std::alloc::handle_alloc_error(std::alloc::Layout::new::<[f32; ROOM]>()),
        }
    }
    // SAFETY: there is room for a block of each strip; the rest is the caller's promise.
    unsafe {
        let mut parts = [room(scratch.as_mut_ptr(), 0), room(scratch.as_mut_ptr(), 1)];
        match (area.w.scales(), area.w.has_least()) {
            (1, false) => multiply_strips::<S, 1, false>(area, &mut parts),
            (1, true) => multiply_strips::<S, 1, true>(area, &mut parts),
            (_, false) => multiply_strips::<S, 2, false>(area, &mut parts),
            (_, true) => multiply_strips::<S, 2, true>(area, &mut parts),
        }
    }
    READY.set(scratch);
}

/// The part of the scratch memory that strip `i` of a tile has.
fn room(scratch: *mut f32, i: usize) -> Ready {
    let start = scratch.wrapping_add(i * ROOM);
    let numbers = start.wrapping_add(BLOCK * GROUP * LANES / 4);
    let [scales, leasts, starts] = [0, 1, 2].map(|i| numbers.wrapping_add(i * BLOCK * 2 * LANES));
    Ready { codes: start.cast(), scales, leasts, starts: starts.cast() }
}

#[inline(always)]
unsafe fn multiply_strips<S: Bytes, const N: usize, const LEAST: bool>(
    area: &Area<'_>,
    parts: &mut [Ready; STRIPS],
) {
    let w = area.w;
    let (most_rows, strips) = S::BYTE_TILE;
    let (n, groups) = (w.rows(), w.cols() / GROUP);
    let cell = w.cell() / GROUP;
    let cell_bytes = w.kind().bytes() * LANES;
    // As even as can be.
    let cells = groups / cell;
    let blocks = cells.div_ceil(BLOCK / cell);
    for column in area.columns.clone().step_by(strips * LANES) {
        let columns = (area.columns.end - column).min(strips * LANES);
        for b in 0..blocks {
            let first = b * cells / blocks * cell;
            let block = (b + 1) * cells / blocks * cell - first;
            for (i, part) in parts.iter_mut().enumerate().take(columns.div_ceil(LANES)) {
                let (start, end) = (first / cell * cell_bytes, (first + block) / cell * cell_bytes);
                let cells = w.cells(column / LANES + i)[start..end].as_ptr();
                // SAFETY: whole cells, and room for their groups.
                unsafe { ready::<S, Ready>(w.kind(), cells, block / cell, part) };
            }
            // What comes next is asked for while few rows pass by; many take longer than reading it.
            let (next_column, next_first) =
                if b + 1 < blocks { (column, first + block) } else { (column + strips * LANES, 0) };
            let mut ahead = [std::ptr::null(); STRIPS];
            for (i, ahead) in ahead.iter_mut().enumerate().take(strips) {
                if next_column + i * LANES < area.columns.end {
                    let at = next_first / cell * cell_bytes;
                    *ahead = w.cells(next_column / LANES + i)[at..].as_ptr();
                }
            }
            for row in area.rows.clone().step_by(most_rows) {
                let tile = Tile {
                    ahead,
                    ahead_step: cell_bytes / cell,
                    codes: area.codes[row * w.cols() + first * GROUP..].as_ptr(),
                    stride: w.cols(),
                    numbers: area.numbers[row * groups * NUMBERS + first..].as_ptr(),
                    groups,
                    first,
                    block,
                    parts,
                    c: area.c.wrapping_add(row * n + column),
                    ldc: n,
                    columns,
                    more: area.more || first > 0,
                };
                // SAFETY: rows, columns and groups are inside of the operands.
                unsafe { tile.run::<S, N, LEAST>((area.rows.end - row).min(most_rows)) };
            }
        }
    }
}

/// A few rows by one or two strips, over a block of groups.
struct Tile<'a> {
    /// Codes of the first row, from the first group on, and from one row to the next.
    codes: *const u8,
    stride: usize,
    /// Scales of the first row, from the first group on; a row has four times `groups` numbers.
    numbers: *const f32,
    groups: usize,
    first: usize,
    block: usize,
    parts: &'a [Ready; STRIPS],
    /// Where the strips go on, and how far for each group.
    ahead: [*const u8; STRIPS],
    ahead_step: usize,
    c: *mut f32,
    ldc: usize,
    columns: usize,
    more: bool,
}

impl Tile<'_> {
    #[inline(always)]
    unsafe fn run<S: Bytes, const N: usize, const LEAST: bool>(&self, rows: usize) {
        macro_rules! by_rows {
            ($v:literal: $($r:literal)*) => {
                match rows {
                    $($r => self.multiply::<S, $r, $v, N, LEAST>(),)*
                    _ => {}
                }
            };
        }
        // SAFETY: the caller's promise.
        unsafe {
            if const { S::BYTE_TILE.1 == 1 } {
                by_rows!(1: 1 2 3)
            } else {
                by_rows!(2: 1 2 3 4 5 6)
            }
        }
    }

    #[inline(always)]
    unsafe fn multiply<S, const R: usize, const V: usize, const N: usize, const LEAST: bool>(&self)
    where
        S: Bytes,
    {
        let row = self.groups * NUMBERS;
        // SAFETY: the caller's promise.
        unsafe {
            let mut sums = [[S::splat(0.0); V]; R];
            if self.more {
                for (r, sums) in sums.iter_mut().enumerate() {
                    for (v, sum) in sums.iter_mut().enumerate() {
                        let p = self.c.wrapping_add(r * self.ldc + v * LANES);
                        *sum = match self.columns.saturating_sub(v * LANES) {
                            LANES.. => S::load(p),
                            left => S::load_n(p, left),
                        };
                    }
                }
            }
            for g in 0..self.block {
                if R <= FEW {
                    for ahead in self.ahead.iter().take(V).filter(|p| !p.is_null()) {
                        for line in (0..self.ahead_step).step_by(BYTES) {
                            prefetch(ahead.wrapping_add(g * self.ahead_step + line).cast());
                        }
                    }
                }
                for i in 0..N {
                    let mut dots = [[S::splat_byte(0); V]; R];
                    if S::BIAS != 0 {
                        for (v, part) in self.parts.iter().enumerate().take(V) {
                            let start = S::load_bytes(part.starts.add((g * N + i) * BYTES));
                            dots.iter_mut().for_each(|dots| dots[v] = start);
                        }
                    }
                    let steps = GROUP / 4 / N;
                    for s in i * steps..(i + 1) * steps {
                        let step = g * (GROUP / 4) + s;
                        let mut w = [S::splat_byte(0); V];
                        for (w, part) in w.iter_mut().zip(self.parts) {
                            *w = S::load_bytes(part.codes.add(step * BYTES));
                        }
                        for (r, dots) in dots.iter_mut().enumerate() {
                            let x = S::splat_word(self.codes.add(r * self.stride + step * 4));
                            for (dot, w) in dots.iter_mut().zip(&w) {
                                *dot = S::dot(*dot, x, *w);
                            }
                        }
                    }
                    for (v, part) in self.parts.iter().enumerate().take(V) {
                        let scale = S::load(part.scales.add((g * N + i) * LANES));
                        for (r, (sums, dots)) in sums.iter_mut().zip(&dots).enumerate() {
                            let x = S::splat(*self.numbers.add(r * row + g));
                            sums[v] = S::fma(S::words_to_f32(dots[v]), S::mul(scale, x), sums[v]);
                        }
                        if LEAST {
                            let least = S::load(part.leasts.add((g * N + i) * LANES));
                            for (r, sums) in sums.iter_mut().enumerate() {
                                // From `numbers` of `first` on: sums, or sums of halves.
                                let at = if N == 1 {
                                    self.groups + g
                                } else {
                                    2 * self.groups + self.first + 2 * g + i
                                };
                                let x = S::splat(*self.numbers.add(r * row + at));
                                sums[v] = S::fma(least, x, sums[v]);
                            }
                        }
                    }
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                for (v, sum) in sums.iter().enumerate() {
                    let p = self.c.wrapping_add(r * self.ldc + v * LANES);
                    match self.columns.saturating_sub(v * LANES) {
                        LANES.. => S::store(p, *sum),
                        left => S::store_n(p, *sum, left),
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
