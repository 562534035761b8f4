//! A vector on every row.
#![allow(unsafe_code)]

use super::Cpu;
use super::rows::Parts;

/// Columns of a task of [`column_sums`].
const COLUMNS: usize = 32;

/// `y[r] = b`, or with `more` `y[r] += b`. `y`: `[rows, b.len()]`.
pub fn add_bias(cpu: &Cpu, b: &[f32], y: &mut [f32], more: bool) {
    let width = b.len();
    let rows = y.len() / width.max(1);
    assert_eq!(y.len(), rows * width);
    let y = Parts::new(y);
    cpu.pool.split(rows, 16, |r| {
        // SAFETY: ranges of rows are disjoint.
        let y = unsafe { y.part(r.start * width..r.end * width) };
        for y in y.chunks_exact_mut(width) {
            if more {
                y.iter_mut().zip(b).for_each(|(y, b)| *y += b);
            } else {
                y.copy_from_slice(b);
            }
        }
    });
}

/// `sums[c] += dy[r][c]`, rows in order. Threads split the columns.
pub fn column_sums(cpu: &Cpu, dy: &[f32], sums: &mut [f32]) {
    let width = sums.len();
    assert!(dy.len().is_multiple_of(width.max(1)));
    let sums = Parts::new(sums);
    cpu.pool.run(width.div_ceil(COLUMNS), |task| {
        let c = task * COLUMNS..((task + 1) * COLUMNS).min(width);
        // SAFETY: ranges of columns are disjoint.
        let sums = unsafe { sums.part(c.clone()) };
        for dy in dy.chunks_exact(width) {
            sums.iter_mut().zip(&dy[c.clone()]).for_each(|(sum, d)| *sum += d);
        }
    });
}
