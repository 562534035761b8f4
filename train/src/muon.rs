//! Muon (Jordan et al. 2024): momentum, made orthogonal by Newton–Schulz steps, for the matrices
//! inside a model.

use compute::Cpu;
use compute::cpu::matmul::{Mat, gemm};
use compute::cpu::update::{axpby, squared_norm};
pub use compute::tape::Muon;

/// Coefficients of the quintic step, tuned by its authors for a steep slope at 0.
const QUINTIC: [f32; 3] = [3.4445, -4.7750, 2.0315];
const STEPS: usize = 5;
/// A shorter gradient is none.
const LEAST: f32 = 1e-7;

/// Memory that a step needs beside the parameter, reused between steps.
#[derive(Default)]
pub struct Scratch {
    x: Vec<f32>,
    gram: Vec<f32>,
    square: Vec<f32>,
    next: Vec<f32>,
}

/// One step: `momentum = μ momentum + g`; with Nesterov's look-ahead `u = orthogonal(g + μ momentum)`;
/// `w = (1 - lr·decay) w - lr · sqrt(max(1, rows / cols)) · u`. All are `[rows, cols]`.
#[allow(clippy::too_many_arguments)]
pub fn step(
    cpu: &Cpu,
    s: Muon,
    rows: usize,
    cols: usize,
    w: &mut [f32],
    g: &[f32],
    momentum: &mut [f32],
    scratch: &mut Scratch,
) {
    axpby(cpu, 1.0, g, s.momentum, momentum);
    scratch.x.clear();
    scratch.x.extend_from_slice(g);
    axpby(cpu, s.momentum, momentum, 1.0, &mut scratch.x);
    orthogonalise(cpu, rows, cols, scratch);
    let rate = s.lr * (rows as f32 / cols as f32).max(1.0).sqrt();
    axpby(cpu, -rate, &scratch.x, 1.0 - s.lr * s.weight_decay, w);
}

/// Floating-point operations of the products of a step, symmetric ones counted whole.
pub fn flops(rows: usize, cols: usize) -> f64 {
    let (n, m) = (rows.min(cols) as f64, rows.max(cols) as f64);
    STEPS as f64 * (4.0 * n * n * m + 2.0 * n * n * n)
}

/// `c = a b`, `[n, n]`, where that is symmetric to the bit: `b` is `aᵀ`, so both ways a product's chain
/// has the same factors. What is right of the diagonal's blocks is copied from the other side.
fn symmetric(cpu: &Cpu, n: usize, k: usize, a: Mat<'_, f32>, b: Mat<'_, f32>, c: &mut [f32]) {
    const ROWS: usize = 128;
    for start in (0..n).step_by(ROWS) {
        let end = n.min(start + ROWS);
        let first = if a.transposed { start } else { start * a.stride };
        let rows = Mat { data: &a.data[first..], ..a };
        gemm(cpu, end - start, end, k, rows, b, &mut c[start * n..], n, false);
    }
    for start in (0..n).step_by(ROWS) {
        for row in start..n.min(start + ROWS) {
            for column in n.min(start + ROWS)..n {
                c[row * n + column] = c[column * n + row];
            }
        }
    }
}

/// `scratch.x` (`[rows, cols]`) to about `U Vᵀ` of its singular value decomposition: every step
/// is `X ← a X + (b A + c A²) X` with `A = X Xᵀ`, on the shorter side.
fn orthogonalise(cpu: &Cpu, rows: usize, cols: usize, scratch: &mut Scratch) {
    let Scratch { x, gram, square, next } = scratch;
    let norm = squared_norm(cpu, x).sqrt() as f32;
    if norm < LEAST {
        // Rounding errors of nothing. Their squares would be subnormal numbers, which are slow.
        x.fill(0.0);
        return;
    }
    x.iter_mut().for_each(|v| *v /= norm);
    let (n, m) = (rows.min(cols), rows.max(cols));
    gram.resize(n * n, 0.0);
    square.resize(n * n, 0.0);
    next.resize(n * m, 0.0);
    let tall = rows > cols;
    let [a, b, c] = QUINTIC;
    for _ in 0..STEPS {
        // X as [n, m], whichever way it lies.
        let plain = Mat { data: &x[..], stride: cols, transposed: tall };
        let turned = Mat { data: &x[..], stride: cols, transposed: !tall };
        symmetric(cpu, n, m, plain, turned, gram);
        let square_of = Mat { data: &gram[..], stride: n, transposed: false };
        symmetric(cpu, n, n, square_of, square_of, square);
        axpby(cpu, b, gram, c, square);
        next.copy_from_slice(x);
        next.iter_mut().for_each(|v| *v *= a);
        let p = Mat { data: &square[..], stride: n, transposed: false };
        let whole = Mat { data: &x[..], stride: cols, transposed: false };
        if tall {
            gemm(cpu, rows, cols, n, whole, p, next, cols, true);
        } else {
            gemm(cpu, rows, cols, n, p, whole, next, cols, true);
        }
        std::mem::swap(x, next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symmetric_products_have_the_bits_of_whole_ones() {
        let cpu = Cpu::new(1);
        for (n, k, turned) in [(1, 3, false), (128, 20, true), (300, 140, false), (300, 77, true)] {
            let x: Vec<f32> = (0..n * k).map(|i| ((i * 37 + 11) % 101) as f32 / 7.0).collect();
            let stride = if turned { n } else { k };
            let a = Mat { data: &x[..], stride, transposed: turned };
            let b = Mat { data: &x[..], stride, transposed: !turned };
            let (mut whole, mut half) = (vec![0.0; n * n], vec![9.0; n * n]);
            gemm(&cpu, n, n, k, a, b, &mut whole, n, false);
            symmetric(&cpu, n, k, a, b, &mut half);
            assert_eq!(whole, half, "{n} x {k}");
        }
    }

    #[test]
    fn singular_values_come_near_one() {
        let cpu = Cpu::new(2);
        for (rows, cols) in [(12, 12), (40, 12), (12, 40)] {
            let mut s = Scratch {
                x: (0..rows * cols).map(|i| ((i * i * 7 + i) % 31) as f32 - 15.0).collect(),
                ..Default::default()
            };
            let start = s.x.clone();
            orthogonalise(&cpu, rows, cols, &mut s);
            // The Gram matrix of the shorter side: its trace is the sum of squared singular
            // values, each of which the quintic leaves between 0.6 and 1.3.
            let n = rows.min(cols) as f64;
            let trace: f64 = s.x.iter().map(|v| f64::from(v * v)).sum();
            assert!(trace > 0.4 * n && trace < 1.5 * n, "{rows} x {cols}: trace {trace}");
            let along: f32 = s.x.iter().zip(&start).map(|(a, b)| a * b).sum();
            assert!(along > 0.0, "the same direction");
        }
    }
}
