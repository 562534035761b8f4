//! Products with quantised weights ([`Strips`]): activations are rounded to 8 bits, 32 to a scale
//! (as Q8_0), and products within a group of 32, or 16, are exact in integers: of unsigned codes of weights, from
//! which what they are too high by drops out, by signed ones. A lane is an output, and an output is one chain over
//! the groups in ascending order:
//!
//! ```text
//! y = y + (scale of w * scale of x) * (sum of codes of w * codes of x)
//! y = y + least of w * (scale of x * sum of codes of x)           (where the type has a least)
//! ```
//!
//! each a fused multiply-add. The error of rounding comes from the few groups with the largest
//! scales, so those of a row have a second digit: what rounding left over, rounded again.
//! These make a second chain of the same kind, and the output is the sum of both.
//!
//! Groups of strips are made ready in the nearest cache ([`ready`]) and all rows pass by; for few
//! rows, where memory sets the pace, groups stay in registers ([`few`]). The bits are the same.
#![allow(unsafe_code)]

mod few;
mod rounding;

use std::cell::Cell;

pub use rounding::{Layout, quantise};

use super::Cpu;
use super::rows::Parts;
use crate::aligned::Aligned;
use crate::bytes::{BYTES, Bytes};
use crate::simd::{Cache, LANES, prefetch};
use crate::strips::{GROUP, Ready, Strips, bits, by_pairs, ready, span, start};

/// Most groups that are made ready at a time: with 24 of two strips there is room in the nearest
/// cache for the rows that pass by.
const BLOCK: usize = 24;
/// Groups between which a tile asks for what comes next. In each it would cost the products registers.
const ASKING: usize = 4;
/// Most strips of a tile.
const STRIPS: usize = 2;
/// Multiply-adds of a task, some microseconds, and weights of one where rows are few.
const TASK: usize = 1 << 19;
const WEIGHTS: usize = 1 << 16;
/// Rows of a task at least: making weights ready has to pay.
const ROWS: usize = 96;

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
    let layout = Layout::new(k);
    assert!(codes.len() == rows * layout.codes() && numbers.len() == rows * layout.numbers());
    assert!(c.len() == rows * n && w.rounds(), "{rows} rows by {w:?}");
    if c.is_empty() {
        return;
    }
    if rows <= few::rows(cpu.isa) {
        return few::product(cpu, codes, numbers, w, c, more);
    }
    let pairs = n.div_ceil(STRIPS * LANES);
    // By rows first: what a thread wrote of them is in its cache. Then by columns.
    let threads = cpu.pool.threads();
    let wanted = (n * k / WEIGHTS).max(rows * n * k / TASK).max(1).next_multiple_of(threads);
    let wanted = wanted.min(threads * 4);
    let by_rows = (rows / ROWS).clamp(1, wanted);
    // As many for each thread.
    let by_rows = if by_rows > threads { by_rows / threads * threads } else { by_rows };
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

/// f32 that a strip's part of [`READY`] has: codes; scales and least values of halves. After these come the second
/// chains of the rows of a task.
const ROOM: usize = BLOCK * GROUP * LANES / 4 + 2 * BLOCK * 2 * LANES;

#[inline(always)]
unsafe fn multiply_area<S: Bytes>(area: &Area<'_>) {
    let mut scratch = READY.take();
    let len = STRIPS * (ROOM + area.rows.len() * LANES);
    if scratch.len() < len {
        match Aligned::zeros(len) {
            Some(memory) => scratch = memory,
            None => std::alloc::handle_alloc_error(std::alloc::Layout::new::<[f32; ROOM]>()),
        }
    }
    // SAFETY: there is room for a block of each strip; the rest is the caller's promise.
    unsafe {
        let mut parts = [room(scratch.as_mut_ptr(), 0), room(scratch.as_mut_ptr(), 1)];
        let seconds = scratch.as_mut_ptr().wrapping_add(STRIPS * ROOM);
        macro_rules! by_bits {
            ($(($n:literal, $least:literal, $bits:literal))*) => {
                match (area.w.scales(), area.w.has_least(), bits(area.w.kind())) {
                    $(($n, $least, $bits) => {
                        multiply_strips::<S, $n, $least, $bits>(area, &mut parts, seconds)
                    })*
                    _ => unreachable!("a type of other codes"),
                }
            };
        }
        by_bits! {
            (1, false, 4) (1, false, 5) (1, false, 8) (1, true, 4) (1, true, 5) (2, false, 3) (2, false, 6) (2, true, 2)
        };
    }
    READY.set(scratch);
}

/// The part of the scratch memory that strip `i` of a tile has.
fn room(scratch: *mut f32, i: usize) -> Ready {
    let start = scratch.wrapping_add(i * ROOM);
    let numbers = start.wrapping_add(BLOCK * GROUP * LANES / 4);
    let [scales, leasts] = [0, 1].map(|i| numbers.wrapping_add(i * BLOCK * 2 * LANES));
    Ready { codes: start.cast(), scales, leasts }
}

#[inline(always)]
unsafe fn multiply_strips<S: Bytes, const N: usize, const LEAST: bool, const BITS: u32>(
    area: &Area<'_>,
    parts: &mut [Ready; STRIPS],
    seconds: *mut f32,
) {
    let w = area.w;
    let (most_rows, strips) = S::BYTE_TILE;
    let most_rows = match S::PAIRS {
        Some(rows) if by_pairs::<S>(BITS, N) => rows + usize::from(span(BITS, N) == GROUP / 4),
        _ => most_rows,
    };
    let (n, layout) = (w.rows(), Layout::new(w.cols()));
    let cell = w.cell() / GROUP;
    let cell_bytes = w.kind().bytes() * LANES;
    // As even as can be.
    let cells = layout.groups / cell;
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
            // What comes next is asked for while rows pass by, by each tile its share.
            let tiles = area.rows.len().div_ceil(most_rows);
            let (next_column, next_first) =
                if b + 1 < blocks { (column, first + block) } else { (column + strips * LANES, 0) };
            let mut ahead = [None; STRIPS];
            for (i, ahead) in ahead.iter_mut().enumerate().take(strips) {
                if next_column + i * LANES < area.columns.end {
                    let at = next_first / cell * cell_bytes;
                    *ahead = Some(w.cells(next_column / LANES + i)[at..].as_ptr());
                }
            }
            for (t, row) in area.rows.clone().step_by(most_rows).enumerate() {
                let tile = Tile {
                    ahead: ahead.map(|start| start.map(|p| p.wrapping_add(t * BYTES))),
                    ahead_step: cell_bytes / cell,
                    share: tiles * BYTES,
                    codes: area.codes[row * layout.codes()..].as_ptr(),
                    numbers: area.numbers[row * layout.numbers()..].as_ptr(),
                    layout,
                    first,
                    block,
                    parts,
                    c: area.c.wrapping_add(row * n + column),
                    ldc: n,
                    columns,
                    more: area.more || first > 0,
                };
                let rows = (area.rows.end - row).min(most_rows);
                let seconds = seconds.wrapping_add((row - area.rows.start) * STRIPS * LANES);
                // SAFETY: rows, columns and groups are inside of the operands, and each row has room
                // for its second chain.
                unsafe { tile.run::<S, N, LEAST, BITS>(rows, seconds) };
            }
        }
    }
}

/// A few rows by one or two strips, over a block of groups.
struct Tile<'a> {
    /// Of the first row.
    codes: *const u8,
    numbers: *const f32,
    layout: Layout,
    /// The first group, and how many.
    first: usize,
    block: usize,
    parts: &'a [Ready; STRIPS],
    /// Where the strips go on, how far for each group, and between the lines of it that this tile asks for.
    ahead: [Option<*const u8>; STRIPS],
    ahead_step: usize,
    share: usize,
    c: *mut f32,
    ldc: usize,
    columns: usize,
    more: bool,
}

impl Tile<'_> {
    #[inline(always)]
    unsafe fn run<S: Bytes, const N: usize, const LEAST: bool, const BITS: u32>(
        &self,
        rows: usize,
        seconds: *mut f32,
    ) {
        macro_rules! by_rows {
            ($v:literal: $($r:literal)*) => {{
                for r in 0..rows {
                    let second = seconds.wrapping_add(r * STRIPS * LANES);
                    self.second::<S, $v, N, LEAST, BITS>(r, second);
                }
                match rows {
                    $($r => self.multiply::<S, $r, $v, N, LEAST, BITS>(seconds),)*
                    _ => {}
                }
            }};
        }
        // SAFETY: the caller's promise.
        unsafe {
            if const { S::BYTE_TILE.1 == 1 } {
                by_rows!(1: 1 2 3 4)
            } else {
                by_rows!(2: 1 2 3 4 5 6)
            }
        }
    }

    #[inline(always)]
    unsafe fn multiply<
        S: Bytes,
        const R: usize,
        const V: usize,
        const N: usize,
        const LEAST: bool,
        const BITS: u32,
    >(
        &self,
        seconds: *const f32,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            for i in 0..R * V {
                let p = self.c.wrapping_add(i / V * self.ldc + i % V * LANES);
                prefetch(p.cast(), Cache::Written);
            }
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
            for some in (0..self.block).step_by(ASKING) {
                let end = self.block.min(some + ASKING);
                for ahead in self.ahead.iter().take(V).flatten() {
                    for line in (some * self.ahead_step..end * self.ahead_step).step_by(self.share)
                    {
                        prefetch(ahead.wrapping_add(line), Cache::Second);
                    }
                }
                for g in some..end {
                    for i in 0..N {
                        self.group::<S, R, V, N, LEAST, BITS>(g, i, &mut sums);
                    }
                }
            }
            let last = self.first + self.block == self.layout.groups;
            for (r, sums) in sums.iter_mut().enumerate() {
                for (v, sum) in sums.iter_mut().enumerate() {
                    if last {
                        let second = seconds.add((r * STRIPS + v) * LANES);
                        *sum = S::add(*sum, S::load(second));
                    }
                    let p = self.c.wrapping_add(r * self.ldc + v * LANES);
                    match self.columns.saturating_sub(v * LANES) {
                        LANES.. => S::store(p, *sum),
                        left => S::store_n(p, *sum, left),
                    }
                }
            }
        }
    }

    /// Adds group `g`, or its half `i` of two, to the chains.
    #[inline(always)]
    unsafe fn group<
        S: Bytes,
        const R: usize,
        const V: usize,
        const N: usize,
        const LEAST: bool,
        const BITS: u32,
    >(
        &self,
        g: usize,
        i: usize,
        sums: &mut [[S::F; V]; R],
    ) {
        let (layout, group) = (self.layout, self.first + g);
        let at = g * N + i;
        // SAFETY: the caller's promise.
        unsafe {
            let mut dots = [[S::splat_byte(0); V]; R];
            for (r, dots) in dots.iter_mut().enumerate() {
                let numbers = self.numbers.add(r * layout.numbers());
                let less = numbers.add(layout.less_at(N, group, i));
                *dots = [start::<S, BITS, LEAST>(less); V];
            }
            let steps = GROUP / 4 / N;
            if const { S::MATRICES } {
                let (mut acc, mut x) = ([S::splat_byte(0); R], [std::ptr::null(); R]);
                for r in 0..R {
                    acc[r] = dots[r][0];
                    x[r] = self.codes.add(r * layout.codes() + group * GROUP + i * steps * 4);
                }
                let w = self.parts[0].codes.add((g * (GROUP / 4) + i * steps) * BYTES);
                for (dots, dot) in dots.iter_mut().zip(S::dots(acc, w, x, steps)) {
                    dots[0] = dot;
                }
            }
            let mut pairs = [[S::splat_byte(0); V]; R];
            let each = if const { S::MATRICES } { 0 } else { steps };
            for s in i * steps..i * steps + each {
                let mut w = [S::splat_byte(0); V];
                for (w, part) in w.iter_mut().zip(self.parts) {
                    *w = part.step::<S>(g, s);
                }
                for (r, (dots, pairs)) in dots.iter_mut().zip(&mut pairs).enumerate() {
                    let x = self.codes.add(r * layout.codes() + group * GROUP + s * 4);
                    let x = S::splat_word(x);
                    for ((dot, pairs), w) in dots.iter_mut().zip(pairs).zip(&w) {
                        if const { by_pairs::<S>(BITS, N) } {
                            *pairs = S::dot_pairs(*pairs, *w, x);
                            if (s + 1) % const { span(BITS, N) } == 0 {
                                *dot = S::add_pairs(*dot, *pairs);
                                *pairs = S::splat_byte(0);
                            }
                        } else {
                            *dot = S::dot(*dot, *w, x);
                        }
                    }
                }
            }
            let (mut scales, mut leasts) = ([S::splat(0.0); V], [S::splat(0.0); V]);
            for (v, part) in self.parts.iter().enumerate().take(V) {
                scales[v] = S::load(part.scales.add(at * LANES));
                if LEAST {
                    leasts[v] = S::load(part.leasts.add(at * LANES));
                }
            }
            for (r, (sums, dots)) in sums.iter_mut().zip(dots).enumerate() {
                let numbers = self.numbers.add(r * layout.numbers());
                let x = S::splat(*numbers.add(group));
                for ((sum, dot), scale) in sums.iter_mut().zip(dots).zip(scales) {
                    *sum = S::fma(S::words_to_f32(dot), S::mul(scale, x), *sum);
                }
                if LEAST {
                    let x = S::splat(*numbers.add(layout.sum_at(N, group, i)));
                    for (sum, least) in sums.iter_mut().zip(leasts) {
                        *sum = S::fma(least, x, *sum);
                    }
                }
            }
        }
    }
}

impl Tile<'_> {
    /// Goes on with the second chain of row `r`.
    #[inline(always)]
    unsafe fn second<
        S: Bytes,
        const V: usize,
        const N: usize,
        const LEAST: bool,
        const BITS: u32,
    >(
        &self,
        r: usize,
        second: *mut f32,
    ) {
        let (groups, digits) = (self.layout.groups, self.layout.digits());
        let codes = self.codes.wrapping_add(r * self.layout.codes());
        let numbers = self.numbers.wrapping_add(r * self.layout.numbers());
        // SAFETY: the caller's promise.
        unsafe {
            let mut sums = [S::splat(0.0); V];
            if self.first > 0 {
                for (v, sum) in sums.iter_mut().enumerate() {
                    *sum = S::load(second.add(v * LANES));
                }
            }
            for d in groups..digits {
                let group = (*numbers.add(self.layout.finer_at() + d - groups)).to_bits() as usize;
                if group < self.first {
                    continue;
                }
                let g = group - self.first;
                if g >= self.block {
                    break;
                }
                for i in 0..N {
                    let steps = GROUP / 4 / N;
                    // Without pairs: its rows are few. In two halves, which wait for each other half as long; their
                    // sum is an integer that f32 holds.
                    let less = numbers.add(self.layout.less_at(N, d, i));
                    let mut dots = [[start::<S, BITS, LEAST>(less), S::splat_byte(0)]; V];
                    for s in i * steps..(i + 1) * steps {
                        let x = S::splat_word(codes.add(d * GROUP + s * 4));
                        for (dots, part) in dots.iter_mut().zip(self.parts) {
                            let w = part.step::<S>(g, s);
                            dots[s % 2] = S::dot(dots[s % 2], w, x);
                        }
                    }
                    for ((sum, dots), part) in sums.iter_mut().zip(dots).zip(self.parts) {
                        let at = (g * N + i) * LANES;
                        let scale = S::mul(S::load(part.scales.add(at)), S::splat(*numbers.add(d)));
                        let dot = S::add(S::words_to_f32(dots[0]), S::words_to_f32(dots[1]));
                        *sum = S::fma(dot, scale, *sum);
                        if LEAST {
                            let x = S::splat(*numbers.add(self.layout.sum_at(N, d, i)));
                            *sum = S::fma(S::load(part.leasts.add(at)), x, *sum);
                        }
                    }
                }
            }
            for (v, sum) in sums.into_iter().enumerate() {
                S::store(second.add(v * LANES), sum);
            }
        }
    }
}

#[cfg(test)]
mod tests;
