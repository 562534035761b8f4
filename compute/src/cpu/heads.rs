//! What happens to queries and keys before attention: an optional RMS norm of each head (Henry et
//! al. 2020; Qwen3), then rotary positions (Su et al. 2021), the halves of a head as pairs.
#![allow(unsafe_code)]

use std::sync::OnceLock;

use super::Cpu;
use super::norm::{BLOCK, inverse_rms, row_backward, scale_row};
use super::rows::Parts;
use crate::simd::{Simd, at, put};

/// Positions whose angles are computed together, when the first of them is asked for.
const POSITIONS: usize = 512;

/// Cosines and sines of positions. The first `2 * frequencies` elements of a head are rotated, its
/// others stay.
#[derive(Debug)]
pub struct Rope {
    head_dim: usize,
    frequencies: Vec<f64>,
    /// What cosines and sines are multiplied by (Peng et al. 2023; Ding et al. 2024), usually 1.
    scale: f64,
    /// Tables of [`POSITIONS`] positions: `[positions, 2, frequencies]`.
    tables: Vec<OnceLock<Vec<f32>>>,
}

impl Rope {
    /// Angles `position * base^(-2 i / head_dim)`, computed in f64 (the same on every machine).
    pub fn new(positions: usize, head_dim: usize, base: f64) -> Rope {
        let frequency = |i| libm::pow(base, -2.0 * i as f64 / head_dim as f64);
        Rope::with(positions, head_dim, (0..head_dim / 2).map(frequency).collect(), 1.0)
    }

    /// Angles `position * frequencies[i]`, cosines and sines times `scale`.
    ///
    /// # Panics
    /// If there are more frequencies than pairs in a head.
    pub fn with(positions: usize, head_dim: usize, frequencies: Vec<f64>, scale: f64) -> Rope {
        assert!(2 * frequencies.len() <= head_dim, "frequencies of a head of {head_dim}");
        let tables = (0..positions.div_ceil(POSITIONS)).map(|_| OnceLock::new()).collect();
        Rope { head_dim, frequencies, scale, tables }
    }

    /// Elements of a head.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Frequencies: half the elements of a head that are rotated.
    pub fn frequencies(&self) -> usize {
        self.frequencies.len()
    }

    /// Number of positions, up to 511 more than were asked for.
    pub fn positions(&self) -> usize {
        self.tables.len() * POSITIONS
    }

    /// Cosines and sines of the first positions, `[positions, 2, frequencies]`.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn table(&self, positions: usize) -> Vec<f32> {
        let both = |(cos, sin): (&[f32], &[f32])| [cos, sin].concat();
        (0..positions as u32).flat_map(|p| both(self.at(p))).collect()
    }

    fn at(&self, position: u32) -> (&[f32], &[f32]) {
        let (table, row) = (position as usize / POSITIONS, position as usize % POSITIONS);
        let n = self.frequencies.len();
        let values = self.tables[table].get_or_init(|| {
            let mut values = Vec::with_capacity(POSITIONS * 2 * n);
            for p in table * POSITIONS..(table + 1) * POSITIONS {
                let angles = self.frequencies.iter().map(|f| libm::sincos(p as f64 * f));
                let (sin, cos): (Vec<f64>, Vec<f64>) = angles.unzip();
                values.extend(cos.iter().chain(&sin).map(|x| (x * self.scale) as f32));
            }
            values
        });
        values[row * 2 * n..(row + 1) * 2 * n].split_at(n)
    }
}

/// `y = rotate(norm(x))`, head by head. `x`, `y`: `[rows, heads * head_dim]`; `positions`: `[rows]`;
/// with a norm: `w`: `[head_dim]` and `inv`: `[rows * heads]`, else both empty.
#[allow(clippy::too_many_arguments)]
pub fn norm_rotate(
    cpu: &Cpu,
    x: &[f32],
    w: &[f32],
    eps: f32,
    rope: &Rope,
    positions: &[u32],
    y: &mut [f32],
    inv: &mut [f32],
) {
    let (rows, hd) = (positions.len(), rope.head_dim);
    let width = x.len() / rows.max(1);
    let heads = width / hd;
    let per_row = if w.is_empty() { 0 } else { heads };
    assert!(x.len() == rows * heads * hd && y.len() == x.len() && inv.len() == rows * per_row);
    let (y, inv) = (Parts::new(y), Parts::new(inv));
    cpu.pool.split(rows, 16, |r| {
        // SAFETY: ranges of rows are disjoint.
        let (y, inv) = unsafe {
            (y.part(r.start * width..r.end * width), inv.part(r.start * per_row..r.end * per_row))
        };
        let (x, p) = (&x[r.start * width..r.end * width], &positions[r]);
        crate::dispatch!(cpu.isa, forward(x: &[f32] = x, w: &[f32] = w, eps: f32 = eps, rope: &Rope = rope, positions: &[u32] = p, y: &mut [f32] = y, inv: &mut [f32] = inv));
    });
}

#[inline(always)]
unsafe fn forward<S: Simd>(
    x: &[f32],
    w: &[f32],
    eps: f32,
    rope: &Rope,
    positions: &[u32],
    y: &mut [f32],
    inv: &mut [f32],
) {
    let hd = rope.head_dim;
    let heads = x.len() / hd / positions.len();
    for (t, &position) in positions.iter().enumerate() {
        let (cos, sin) = rope.at(position);
        for h in 0..heads {
            let at = (t * heads + h) * hd;
            let (x, y) = (&x[at..at + hd], &mut y[at..at + hd]);
            // SAFETY: x, y and w hold hd elements, cos and sin half of that.
            unsafe {
                if w.is_empty() {
                    y[2 * cos.len()..].copy_from_slice(&x[2 * cos.len()..]);
                    rotate::<S>(x.as_ptr(), cos, sin, y.as_mut_ptr());
                } else {
                    let scale = inverse_rms::<S>(x, eps);
                    inv[t * heads + h] = scale;
                    scale_row::<S>(x.as_ptr(), scale, w.as_ptr(), y.as_mut_ptr(), hd);
                    rotate::<S>(y.as_ptr(), cos, sin, y.as_mut_ptr());
                }
            }
        }
    }
}

/// `(a, b) -> (a cos - b sin, b cos + a sin)`; `y` may be `x`.
#[inline(always)]
unsafe fn rotate<S: Simd>(x: *const f32, cos: &[f32], sin: &[f32], y: *mut f32) {
    let n = cos.len();
    // SAFETY: x and y hold 2 n elements.
    unsafe {
        for i in (0..n).step_by(16) {
            let (c, s) = (at::<S>(cos.as_ptr(), i, n), at::<S>(sin.as_ptr(), i, n));
            let (a, b) = (at::<S>(x, i, n), at::<S>(x.add(n), i, n));
            put::<S>(y, i, n, S::sub(S::mul(a, c), S::mul(b, s)));
            put::<S>(y.add(n), i, n, S::fma(b, c, S::mul(a, s)));
        }
    }
}

/// Writes `dx` and adds to `dw`, from `dy` and what forward had. `partial` is scratch of
/// `rows.div_ceil(256) * w.len()`; `dx` must not be `dy`.
#[allow(clippy::too_many_arguments)]
pub fn norm_rotate_backward(
    cpu: &Cpu,
    x: &[f32],
    w: &[f32],
    inv: &[f32],
    rope: &Rope,
    positions: &[u32],
    dy: &[f32],
    dx: &mut [f32],
    dw: &mut [f32],
    partial: &mut [f32],
) {
    let (rows, hd, n) = (positions.len(), rope.head_dim, w.len());
    let width = x.len() / rows.max(1);
    let per_row = if w.is_empty() { 0 } else { width / hd };
    let blocks = rows.div_ceil(BLOCK);
    assert!(dy.len() == x.len() && dx.len() == x.len() && inv.len() == rows * per_row);
    assert!(partial.len() == blocks * n && dw.len() == n);
    partial.fill(0.0);
    {
        let (dx, partial) = (Parts::new(dx), Parts::new(partial));
        cpu.pool.run(blocks, |b| {
            let r = b * BLOCK..((b + 1) * BLOCK).min(rows);
            let e = r.start * width..r.end * width;
            // SAFETY: blocks are disjoint.
            let (dx, sum) = unsafe { (dx.part(e.clone()), partial.part(b * n..(b + 1) * n)) };
            let (x, dy, inv) = (&x[e.clone()], &dy[e], &inv[r.start * per_row..r.end * per_row]);
            let p = &positions[r];
            crate::dispatch!(cpu.isa, backward(x: &[f32] = x, w: &[f32] = w, inv: &[f32] = inv, rope: &Rope = rope, positions: &[u32] = p, dy: &[f32] = dy, dx: &mut [f32] = dx, dw: &mut [f32] = sum));
        });
    }
    if n > 0 {
        for block in partial.chunks_exact(n) {
            dw.iter_mut().zip(block).for_each(|(a, b)| *a += b);
        }
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn backward<S: Simd>(
    x: &[f32],
    w: &[f32],
    inv: &[f32],
    rope: &Rope,
    positions: &[u32],
    dy: &[f32],
    dx: &mut [f32],
    dw: &mut [f32],
) {
    let (half, hd) = (rope.frequencies.len(), rope.head_dim);
    let heads = x.len() / hd / positions.len();
    for (t, &position) in positions.iter().enumerate() {
        let (cos, sin) = rope.at(position);
        for h in 0..heads {
            let e = (t * heads + h) * hd;
            let (x, dy, dx) = (&x[e..e + hd], &dy[e..e + hd], &mut dx[e..e + hd]);
            dx[2 * half..].copy_from_slice(&dy[2 * half..]);
            let d = dx.as_mut_ptr();
            // SAFETY: slices of hd elements; cos and sin half of that; row_backward may work in
            // place.
            unsafe {
                for i in (0..half).step_by(16) {
                    let c = at::<S>(cos.as_ptr(), i, half);
                    let s = at::<S>(sin.as_ptr(), i, half);
                    let a = at::<S>(dy.as_ptr(), i, half);
                    let b = at::<S>(dy.as_ptr().add(half), i, half);
                    put::<S>(d, i, half, S::fma(a, c, S::mul(b, s)));
                    put::<S>(d.add(half), i, half, S::sub(S::mul(b, c), S::mul(a, s)));
                }
                if !w.is_empty() {
                    let inv = inv[t * heads + h];
                    row_backward::<S>(x.as_ptr(), w.as_ptr(), inv, d, d, dw.as_mut_ptr(), hd);
                }
            }
        }
    }
}
