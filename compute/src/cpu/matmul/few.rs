//! Few rows by F16 or BF16 weights, where reading the weights sets the pace: they are multiplied as they come, or
//! widened on the way to the multiply-add, eight strips at a time, so that enough chains are in flight.
#![allow(unsafe_code)]

use super::Rows;
use crate::blocks::BlockType;
use crate::bytes::Bytes;
use crate::cpu::rows::Parts;
use crate::cpu::{Cpu, next};
use crate::simd::LANES;
use crate::strips::Strips;

/// Most rows.
pub(super) const ROWS: usize = 16;
/// Strips that are read side by side.
const STRIPS: usize = 8;
/// Weights of a task at least.
const TASK: usize = 1 << 16;

/// `c = a wᵀ`, or `c += …`, as [`gemm_strips`](super::gemm_strips), whose lengths are checked. Each
/// output is one chain over k in ascending order, as everywhere.
pub(super) fn product(cpu: &Cpu, rows: usize, a: Rows<'_>, w: &Strips, c: &mut [f32], more: bool) {
    let (n, k) = (w.rows(), w.cols());
    assert!(c.len() == rows * n && rows <= ROWS);
    let groups = n.div_ceil(STRIPS * LANES);
    let tasks = (n * k / TASK).clamp(1, cpu.pool.threads() * 4).min(groups);
    let c = Parts::new(c);
    next::announce(cpu, w);
    cpu.pool.run(tasks, |task| {
        // SAFETY: tasks write disjoint columns of c, inside of it.
        let c = unsafe { c.part(0..0).as_mut_ptr() };
        let columns = task * groups / tasks * STRIPS * LANES
            ..n.min((task + 1) * groups / tasks * STRIPS * LANES);
        let area = Area { rows, a, w, columns, c, more };
        crate::dispatch!(cpu.isa, multiply(area: &Area<'_> = &area));
    });
}

/// What a task computes.
struct Area<'a> {
    rows: usize,
    /// Rows without gaps.
    a: Rows<'a>,
    w: &'a Strips,
    columns: std::ops::Range<usize>,
    c: *mut f32,
    more: bool,
}

/// Some strips are read by one row, two or four at a time, after the first from the nearest caches.
#[inline(always)]
unsafe fn multiply<S: Bytes>(area: &Area<'_>) {
    let mut column = area.columns.start;
    while column < area.columns.end {
        let left = (area.columns.end - column).div_ceil(LANES);
        let wide = S::TILE_VECTORS > 1 && left >= STRIPS;
        let taken = if wide { STRIPS } else { left.min(2) };
        let mut row = 0;
        while row < area.rows {
            // SAFETY: the caller's promise.
            unsafe {
                row += match (area.rows - row, taken) {
                    (1, STRIPS) => strips::<S, 1, STRIPS>(area, row, column),
                    (2 | 3, STRIPS) => strips::<S, 2, STRIPS>(area, row, column),
                    (_, STRIPS) => {
                        strips::<S, 4, { STRIPS / 2 }>(area, row, column);
                        strips::<S, 4, { STRIPS / 2 }>(area, row, column + STRIPS / 2 * LANES)
                    }
                    (1, 2) => strips::<S, 1, 2>(area, row, column),
                    (_, 2) => strips::<S, 2, 2>(area, row, column),
                    (1, _) => strips::<S, 1, 1>(area, row, column),
                    _ => strips::<S, 2, 1>(area, row, column),
                };
            }
        }
        column += taken * LANES;
    }
}

/// `R` rows by `V` strips; gives `R`.
#[inline(always)]
unsafe fn strips<S: Bytes, const R: usize, const V: usize>(
    area: &Area<'_>,
    row: usize,
    column: usize,
) -> usize {
    let (w, n, k) = (area.w, area.w.rows(), area.w.cols());
    let c = area.c.wrapping_add(row * n);
    let mut from = [std::ptr::null::<u8>(); V];
    for (v, from) in from.iter_mut().enumerate() {
        *from = w.cells(column / LANES + v).as_ptr();
    }
    // SAFETY: strips have k rows of 16 halves, or of pairs; columns past the end are neither read nor written.
    unsafe {
        let mut sums = [[S::splat(0.0); V]; R];
        if area.more {
            for (r, sums) in sums.iter_mut().enumerate() {
                for (v, sum) in sums.iter_mut().enumerate() {
                    let at = column + v * LANES;
                    *sum = S::load_n(c.add(r * n + at), (n - at).min(LANES));
                }
            }
        }
        match area.a {
            Rows::Bf16 { data, .. } => {
                let a = data[row * k..(row + R) * k].as_ptr();
                for i in (0..k).step_by(2) {
                    for (v, from) in from.iter().enumerate() {
                        let pairs = S::load(from.cast::<f32>().add(i / 2 * LANES));
                        for (r, sums) in sums.iter_mut().enumerate() {
                            sums[v] = S::dot_bf16(sums[v], S::splat_pair(a.add(r * k + i)), pairs);
                        }
                    }
                }
            }
            Rows::F32 { data, .. } if w.kind() == BlockType::F16 => {
                let a = data[row * k..(row + R) * k].as_ptr();
                for i in 0..k {
                    for (v, from) in from.iter().enumerate() {
                        let half = S::load_f16(from.cast::<u16>().add(i * LANES));
                        for (r, sums) in sums.iter_mut().enumerate() {
                            sums[v] = S::fma(S::splat(*a.add(r * k + i)), half, sums[v]);
                        }
                    }
                }
            }
            Rows::F32 { data, .. } => {
                let a = data[row * k..(row + R) * k].as_ptr();
                for i in (0..k).step_by(2) {
                    for (v, from) in from.iter().enumerate() {
                        let pairs = S::load(from.cast::<f32>().add(i / 2 * LANES));
                        for (i, half) in (i..k).zip(S::widen_pairs(pairs)) {
                            for (r, sums) in sums.iter_mut().enumerate() {
                                sums[v] = S::fma(S::splat(*a.add(r * k + i)), half, sums[v]);
                            }
                        }
                    }
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            for (v, sum) in sums.iter().enumerate() {
                let at = column + v * LANES;
                S::store_n(c.add(r * n + at), *sum, (n - at).min(LANES));
            }
        }
    }
    R
}
