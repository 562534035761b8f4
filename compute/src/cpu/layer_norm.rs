//! Layer normalisation (Ba et al. 2016): `y = (x - mean(x)) / std(x) * w + b`.
#![allow(unsafe_code)]

use super::Cpu;
use super::norm::BLOCK;
use super::rows::Parts;
use crate::simd::{Simd, at, put};

/// `y[r] = (x[r] - mean) * inv * w + b` with `inv = 1 / sqrt(variance + eps)`; `stats` keeps mean and
/// inv of each row.
///
/// `x`, `y`: `[rows, width]`; `w`, `b`: `[width]`; `stats`: `[rows, 2]`.
pub fn layer_norm(
    cpu: &Cpu,
    x: &[f32],
    (w, b): (&[f32], &[f32]),
    eps: f32,
    y: &mut [f32],
    stats: &mut [f32],
) {
    let (width, rows) = (w.len(), stats.len() / 2);
    assert!(x.len() == rows * width && y.len() == x.len() && b.len() == width);
    let (y, stats) = (Parts::new(y), Parts::new(stats));
    cpu.pool.split(rows, 16, |r| {
        let e = r.start * width..r.end * width;
        // SAFETY: ranges of rows are disjoint.
        let (y, stats) = unsafe { (y.part(e.clone()), stats.part(r.start * 2..r.end * 2)) };
        let x = &x[e];
        crate::dispatch!(cpu.isa, forward(x: &[f32] = x, w: &[f32] = w, b: &[f32] = b, eps: f32 = eps, y: &mut [f32] = y, stats: &mut [f32] = stats));
    });
}

#[inline(always)]
unsafe fn forward<S: Simd>(
    x: &[f32],
    w: &[f32],
    b: &[f32],
    eps: f32,
    y: &mut [f32],
    stats: &mut [f32],
) {
    let n = w.len();
    let rows = x.chunks_exact(n).zip(y.chunks_exact_mut(n)).zip(stats.chunks_exact_mut(2));
    for ((x, y), stats) in rows {
        // SAFETY: all hold n elements.
        unsafe {
            let mean = sum::<S>(n, |i| at::<S>(x.as_ptr(), i, n)) / n as f32;
            let middle = S::splat(mean);
            let variance = sum::<S>(n, |i| {
                // What lies past the end is 0, not `mean` away from it.
                put::<S>(y.as_mut_ptr(), i, n, S::sub(at::<S>(x.as_ptr(), i, n), middle));
                let apart = at::<S>(y.as_ptr(), i, n);
                S::mul(apart, apart)
            }) / n as f32;
            let inv = 1.0 / (variance + eps).sqrt();
            stats.copy_from_slice(&[mean, inv]);
            let scale = S::splat(inv);
            for i in (0..n).step_by(16) {
                let unit = S::mul(at::<S>(y.as_ptr(), i, n), scale);
                let value = S::fma(unit, at::<S>(w.as_ptr(), i, n), at::<S>(b.as_ptr(), i, n));
                put::<S>(y.as_mut_ptr(), i, n, value);
            }
        }
    }
}

/// The sum of `f(0), f(16), …`, of 16 lanes each.
#[inline(always)]
unsafe fn sum<S: Simd>(n: usize, mut f: impl FnMut(usize) -> S::F) -> f32 {
    // SAFETY: the instruction set is the caller's promise.
    unsafe {
        let mut sum = S::splat(0.0);
        for i in (0..n).step_by(16) {
            sum = S::add(sum, f(i));
        }
        S::sum(sum)
    }
}

/// Writes `dx` and adds to `dw` and `db`, from `dy` and what forward had. With `g = dy * w` and
/// `u = (x - mean) * inv`: `dx = inv * (g - mean(g) - u * mean(g * u))`, `dw += dy * u`, `db += dy`.
/// `partial` is scratch of `rows.div_ceil(256) * 2 * width`.
#[allow(clippy::too_many_arguments)]
pub fn layer_norm_backward(
    cpu: &Cpu,
    x: &[f32],
    w: &[f32],
    stats: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    dw: &mut [f32],
    db: &mut [f32],
    partial: &mut [f32],
) {
    let (width, rows) = (w.len(), stats.len() / 2);
    let blocks = rows.div_ceil(BLOCK);
    assert!(x.len() == rows * width && dy.len() == x.len() && dx.len() == x.len());
    assert!(partial.len() == blocks * 2 * width && dw.len() == width && db.len() == width);
    partial.fill(0.0);
    {
        let (dx, partial) = (Parts::new(dx), Parts::new(partial));
        cpu.pool.run(blocks, |block| {
            let r = block * BLOCK..((block + 1) * BLOCK).min(rows);
            let e = r.start * width..r.end * width;
            let sums = block * 2 * width..(block + 1) * 2 * width;
            // SAFETY: blocks are disjoint.
            let (dx, sums) = unsafe { (dx.part(e.clone()), partial.part(sums)) };
            let (x, dy, stats) = (&x[e.clone()], &dy[e], &stats[r.start * 2..r.end * 2]);
            crate::dispatch!(cpu.isa, backward(x: &[f32] = x, w: &[f32] = w, stats: &[f32] = stats, dy: &[f32] = dy, dx: &mut [f32] = dx, sums: &mut [f32] = sums));
        });
    }
    for block in partial.chunks_exact(2 * width) {
        let (w, b) = block.split_at(width);
        dw.iter_mut().zip(w).for_each(|(sum, x)| *sum += x);
        db.iter_mut().zip(b).for_each(|(sum, x)| *sum += x);
    }
}

#[inline(always)]
unsafe fn backward<S: Simd>(
    x: &[f32],
    w: &[f32],
    stats: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    sums: &mut [f32],
) {
    let n = w.len();
    let (dw, db) = sums.split_at_mut(n);
    let rows = x.chunks_exact(n).zip(dy.chunks_exact(n)).zip(dx.chunks_exact_mut(n));
    for (((x, dy), dx), stats) in rows.zip(stats.chunks_exact(2)) {
        // SAFETY: all hold n elements.
        unsafe {
            let (middle, inv) = (S::splat(stats[0]), S::splat(stats[1]));
            let unit = |i| S::mul(S::sub(at::<S>(x.as_ptr(), i, n), middle), inv);
            let slope = |i| S::mul(at::<S>(dy.as_ptr(), i, n), at::<S>(w.as_ptr(), i, n));
            let mean = S::splat(sum::<S>(n, slope) / n as f32);
            let along = S::splat(sum::<S>(n, |i| S::mul(slope(i), unit(i))) / n as f32);
            for i in (0..n).step_by(16) {
                let (d, u) = (at::<S>(dy.as_ptr(), i, n), unit(i));
                let apart = S::sub(S::sub(slope(i), mean), S::mul(u, along));
                put::<S>(dx.as_mut_ptr(), i, n, S::mul(inv, apart));
                put::<S>(dw.as_mut_ptr(), i, n, S::fma(d, u, at::<S>(dw.as_ptr(), i, n)));
                put::<S>(db.as_mut_ptr(), i, n, S::add(d, at::<S>(db.as_ptr(), i, n)));
            }
        }
    }
}
