//! Few rows by F16 or BF16 weights, where reading the weights sets the pace: they are widened on
//! the way to the multiply-add, eight strips at a time, so that enough chains are in flight.
#![allow(unsafe_code)]

use crate::bytes::Bytes;
use crate::cpu::Cpu;
use crate::cpu::rows::Parts;
use crate::simd::LANES;
use crate::strips::{Strips, load_half};

/// Most rows.
pub(super) const ROWS: usize = 2;
/// Strips that are read side by side.
const STRIPS: usize = 8;
/// Weights of a task at least.
const TASK: usize = 1 << 16;

/// `c = a wᵀ`, or `c += …`, as [`gemm_strips`](super::gemm_strips), whose lengths are checked. Each
/// output is one chain over k in ascending order, as everywhere.
pub(super) fn product(cpu: &Cpu, a: &[f32], w: &Strips, c: &mut [f32], more: bool) {
    let (n, k) = (w.rows(), w.cols());
    let rows = c.len() / n.max(1);
    assert!(c.len() == rows * n && a.len() == rows * k && rows <= ROWS);
    let groups = n.div_ceil(STRIPS * LANES);
    let tasks = (n * k / TASK).clamp(1, cpu.pool.threads() * 4).min(groups);
    let c = Parts::new(c);
    cpu.pool.run(tasks, |task| {
        // SAFETY: tasks write disjoint columns of c, inside of it.
        let c = unsafe { c.part(0..0).as_mut_ptr() };
        let columns = task * groups / tasks * STRIPS * LANES
            ..n.min((task + 1) * groups / tasks * STRIPS * LANES);
        let area = Area { a, w, columns, c, more };
        match rows {
            1 => crate::dispatch!(cpu.isa, one(area: &Area<'_> = &area)),
            _ => crate::dispatch!(cpu.isa, two(area: &Area<'_> = &area)),
        }
    });
}

/// What a task computes.
struct Area<'a> {
    a: &'a [f32],
    w: &'a Strips,
    columns: std::ops::Range<usize>,
    c: *mut f32,
    more: bool,
}

#[inline(always)]
unsafe fn one<S: Bytes>(area: &Area<'_>) {
    // SAFETY: the caller's promise.
    unsafe { columns::<S, 1>(area) }
}

#[inline(always)]
unsafe fn two<S: Bytes>(area: &Area<'_>) {
    // SAFETY: the caller's promise.
    unsafe { columns::<S, 2>(area) }
}

#[inline(always)]
unsafe fn columns<S: Bytes, const R: usize>(area: &Area<'_>) {
    let mut column = area.columns.start;
    while column < area.columns.end {
        let left = area.columns.end - column;
        // SAFETY: the caller's promise.
        unsafe {
            if S::TILE_VECTORS > 1 && left > (STRIPS - 1) * LANES {
                strips::<S, R, STRIPS>(area, column);
                column += STRIPS * LANES;
            } else if left > LANES {
                strips::<S, R, 2>(area, column);
                column += 2 * LANES;
            } else {
                strips::<S, R, 1>(area, column);
                column += LANES;
            }
        }
    }
}

/// `R` rows by `V` strips.
#[inline(always)]
unsafe fn strips<S: Bytes, const R: usize, const V: usize>(area: &Area<'_>, column: usize) {
    let (w, n, k) = (area.w, area.w.rows(), area.w.cols());
    let mut from = [std::ptr::null::<u16>(); V];
    for (v, from) in from.iter_mut().enumerate() {
        *from = w.cells(column / LANES + v).as_ptr().cast();
    }
    // SAFETY: strips have k rows of 16 halves; columns past the end are neither read nor written.
    unsafe {
        let mut sums = [[S::splat(0.0); V]; R];
        if area.more {
            for (r, sums) in sums.iter_mut().enumerate() {
                for (v, sum) in sums.iter_mut().enumerate() {
                    let at = column + v * LANES;
                    *sum = S::load_n(area.c.add(r * n + at), (n - at).min(LANES));
                }
            }
        }
        let f16 = w.is_f16();
        for i in 0..k {
            for (v, from) in from.iter().enumerate() {
                let half = load_half::<S>(f16, from.add(i * LANES));
                for (r, sums) in sums.iter_mut().enumerate() {
                    sums[v] = S::fma(S::splat(*area.a.as_ptr().add(r * k + i)), half, sums[v]);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            for (v, sum) in sums.iter().enumerate() {
                let at = column + v * LANES;
                S::store_n(area.c.add(r * n + at), *sum, (n - at).min(LANES));
            }
        }
    }
}
