//! Root-mean-square normalisation (Zhang and Sennrich 2019): `y = x / rms(x) * w`.
#![allow(unsafe_code)]

use super::Cpu;
use super::rows::Parts;
use crate::math::sum_of_squares;
use crate::simd::{Simd, at, put};

/// Rows of a block: partial sums of weight gradients are taken over whole blocks, so that their
/// order does not depend on the threads.
pub(crate) const BLOCK: usize = 256;

/// `y[r] = x[r] * inv[r] * w` with `inv[r] = 1 / sqrt(mean(x[r]^2) + eps)`.
///
/// `x`, `y`: `[rows, width]`; `w`: `[width]`; `inv`: `[rows]`.
pub fn rms_norm(cpu: &Cpu, x: &[f32], w: &[f32], eps: f32, y: &mut [f32], inv: &mut [f32]) {
    let width = w.len();
    let rows = inv.len();
    assert!(x.len() == rows * width && y.len() == x.len());
    let (y, inv) = (Parts::new(y), Parts::new(inv));
    cpu.pool.split(rows, 16, |r| {
        // SAFETY: ranges of rows are disjoint.
        let (y, inv) = unsafe { (y.part(r.start * width..r.end * width), inv.part(r.clone())) };
        let x = &x[r.start * width..r.end * width];
        crate::dispatch!(cpu.isa, forward(x: &[f32] = x, w: &[f32] = w, eps: f32 = eps, y: &mut [f32] = y, inv: &mut [f32] = inv));
    });
}

#[inline(always)]
unsafe fn forward<S: Simd>(x: &[f32], w: &[f32], eps: f32, y: &mut [f32], inv: &mut [f32]) {
    let n = w.len();
    for ((x, y), inv) in x.chunks_exact(n).zip(y.chunks_exact_mut(n)).zip(inv) {
        // SAFETY: all three hold n elements.
        unsafe {
            *inv = inverse_rms::<S>(x, eps);
            scale_row::<S>(x.as_ptr(), *inv, w.as_ptr(), y.as_mut_ptr(), n);
        }
    }
}

/// `1 / sqrt(mean(x^2) + eps)`.
#[inline(always)]
pub(crate) unsafe fn inverse_rms<S: Simd>(x: &[f32], eps: f32) -> f32 {
    // SAFETY: the slice's own length.
    let sum = unsafe { sum_of_squares::<S>(x.as_ptr(), x.len()) };
    1.0 / (sum / x.len() as f32 + eps).sqrt()
}

/// `y = x * inv * w` over `n` elements.
#[inline(always)]
pub(crate) unsafe fn scale_row<S: Simd>(
    x: *const f32,
    inv: f32,
    w: *const f32,
    y: *mut f32,
    n: usize,
) {
    // SAFETY: the caller gives n elements each.
    unsafe {
        let scale = S::splat(inv);
        for i in (0..n).step_by(16) {
            put::<S>(y, i, n, S::mul(S::mul(at::<S>(x, i, n), scale), at::<S>(w, i, n)));
        }
    }
}

/// Writes `dx` (`[rows, width]`) and adds to `dw` (`[width]`), from `dy` and what forward had.
/// `partial` is scratch of `rows.div_ceil(256) * width`.
#[allow(clippy::too_many_arguments)]
pub fn rms_norm_backward(
    cpu: &Cpu,
    x: &[f32],
    w: &[f32],
    inv: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    dw: &mut [f32],
    partial: &mut [f32],
) {
    let (width, rows) = (w.len(), inv.len());
    let blocks = rows.div_ceil(BLOCK);
    assert!(x.len() == rows * width && dy.len() == x.len() && dx.len() == x.len());
    assert!(partial.len() == blocks * width && dw.len() == width);
    partial.fill(0.0);
    {
        let (dx, partial) = (Parts::new(dx), Parts::new(partial));
        cpu.pool.run(blocks, |b| {
            let r = b * BLOCK..((b + 1) * BLOCK).min(rows);
            let e = r.start * width..r.end * width;
            // SAFETY: blocks are disjoint.
            let (dx, sum) =
                unsafe { (dx.part(e.clone()), partial.part(b * width..(b + 1) * width)) };
            let (x, dy, inv) = (&x[e.clone()], &dy[e], &inv[r]);
            crate::dispatch!(cpu.isa, backward(x: &[f32] = x, w: &[f32] = w, inv: &[f32] = inv, dy: &[f32] = dy, dx: &mut [f32] = dx, dw: &mut [f32] = sum));
        });
    }
    for block in partial.chunks_exact(width) {
        dw.iter_mut().zip(block).for_each(|(a, b)| *a += b);
    }
}

#[inline(always)]
unsafe fn backward<S: Simd>(
    x: &[f32],
    w: &[f32],
    inv: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    dw: &mut [f32],
) {
    let n = w.len();
    let rows = x.chunks_exact(n).zip(dy.chunks_exact(n)).zip(dx.chunks_exact_mut(n)).zip(inv);
    for (((x, dy), dx), inv) in rows {
        // SAFETY: all hold n elements.
        unsafe {
            row_backward::<S>(
                x.as_ptr(),
                w.as_ptr(),
                *inv,
                dy.as_ptr(),
                dx.as_mut_ptr(),
                dw.as_mut_ptr(),
                n,
            );
        }
    }
}

/// One row: with `g = dy * w`, `dx = inv * g - x * inv^3 * sum(g * x) / n`; `dw += dy * x * inv`.
/// `dx` may be `dy`.
#[inline(always)]
pub(crate) unsafe fn row_backward<S: Simd>(
    x: *const f32,
    w: *const f32,
    inv: f32,
    dy: *const f32,
    dx: *mut f32,
    dw: *mut f32,
    n: usize,
) {
    // SAFETY: the caller gives n elements each.
    unsafe {
        let mut acc = S::splat(0.0);
        for i in (0..n).step_by(16) {
            let g = S::mul(at::<S>(dy, i, n), at::<S>(w, i, n));
            acc = S::fma(g, at::<S>(x, i, n), acc);
        }
        let slope = S::splat(-(inv * inv * inv) * (S::sum(acc) / n as f32));
        let scale = S::splat(inv);
        for i in (0..n).step_by(16) {
            let (x, d) = (at::<S>(x, i, n), at::<S>(dy, i, n));
            let g = S::mul(d, at::<S>(w, i, n));
            put::<S>(dw, i, n, S::fma(d, S::mul(x, scale), at::<S>(dw, i, n)));
            put::<S>(dx, i, n, S::fma(x, slope, S::mul(scale, g)));
        }
    }
}
