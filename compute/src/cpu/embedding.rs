//! Rows of a table by id, and the gradient back into the table.
#![allow(unsafe_code)]

use super::Cpu;
use super::rows::Parts;
use crate::strips::Strips;

/// `y[r] = table[ids[r]]`. `table`: `[vocab, width]`, `y`: `[rows, width]`.
///
/// # Panics
/// If an id is outside of the table.
pub fn embedding(cpu: &Cpu, table: &[f32], ids: &[u32], width: usize, y: &mut [f32]) {
    assert_eq!(y.len(), ids.len() * width);
    let y = Parts::new(y);
    cpu.pool.split(ids.len(), 64, |r| {
        // SAFETY: ranges of rows are disjoint.
        let y = unsafe { y.part(r.start * width..r.end * width) };
        for (y, &id) in y.chunks_exact_mut(width).zip(&ids[r]) {
            y.copy_from_slice(&table[id as usize * width..(id as usize + 1) * width]);
        }
    });
}

/// As [`embedding`], of a quantised table.
///
/// # Panics
/// If an id is outside of the table.
pub fn quantised(cpu: &Cpu, table: &Strips, ids: &[u32], y: &mut [f32]) {
    let width = table.cols();
    assert_eq!(y.len(), ids.len() * width);
    let y = Parts::new(y);
    cpu.pool.split(ids.len(), 8, |r| {
        // SAFETY: ranges of rows are disjoint.
        let y = unsafe { y.part(r.start * width..r.end * width) };
        for (y, &id) in y.chunks_exact_mut(width).zip(&ids[r]) {
            table.row(id as usize, y);
        }
    });
}

/// `dtable[ids[r]] += dy[r]`, rows in order. Threads split the columns.
pub fn embedding_backward(cpu: &Cpu, dy: &[f32], ids: &[u32], width: usize, dtable: &mut [f32]) {
    assert_eq!(dy.len(), ids.len() * width);
    let columns = 32.min(width);
    let dtable = Parts::new(dtable);
    cpu.pool.run(width.div_ceil(columns), |task| {
        let c = task * columns..((task + 1) * columns).min(width);
        for (dy, &id) in dy.chunks_exact(width).zip(ids) {
            let row = id as usize * width;
            // SAFETY: ranges of columns are disjoint.
            let d = unsafe { dtable.part(row + c.start..row + c.end) };
            d.iter_mut().zip(&dy[c.clone()]).for_each(|(a, b)| *a += b);
        }
    });
}
