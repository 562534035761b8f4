//! Products: all ways to transpose, both types. (On a card by cuBLASLt; in the emulator by loops.)
#![allow(clippy::unwrap_used)]

mod common;

use common::{bf16, close, from_bf16, gpu, values};
use cuda::matmul::{Matrix, matmul};

fn flip(x: Matrix<'_>, transposed: bool) -> Matrix<'_> {
    if transposed { x.t() } else { x }
}

#[test]
fn products_of_all_orders() {
    let gpu = gpu();
    for (m, n, k) in [(1, 1, 1), (5, 7, 3), (16, 8, 33), (2, 3, 0)] {
        let (a, b, first) = (values(1, m * k), values(2, k * n), values(3, m * n));
        let round = |x: &[f32]| x.iter().map(|x| bf16(*x)).collect::<Vec<_>>();
        let (a16, b16) = (round(&a), round(&b));
        let a: Vec<f32> = a16.iter().map(|x| from_bf16(*x)).collect();
        let b: Vec<f32> = b16.iter().map(|x| from_bf16(*x)).collect();
        let turned = |x: &[u16], rows: usize, cols: usize| -> Vec<u16> {
            (0..x.len()).map(|i| x[i % rows * cols + i / rows]).collect()
        };
        for (bits, more) in (0..8).flat_map(|bits| [(bits, false), (bits, true)]) {
            let (left, right, wide) = (bits & 1 > 0, bits & 2 > 0, bits & 4 > 0);
            let a_bits = if left { turned(&a16, m, k) } else { a16.clone() };
            let b_bits = if right { turned(&b16, k, n) } else { b16.clone() };
            let (a_rows, a_cols) = if left { (k, m) } else { (m, k) };
            let (b_rows, b_cols) = if right { (n, k) } else { (k, n) };
            let mut c = gpu.upload(&first, "c").unwrap();
            if wide {
                let up = |x: &[u16]| {
                    let x: Vec<f32> = x.iter().map(|x| from_bf16(*x)).collect();
                    gpu.upload(&x, "x").unwrap()
                };
                let (ga, gb) = (up(&a_bits), up(&b_bits));
                let x = flip(Matrix::f32(ga.slice(), a_rows, a_cols), left);
                let y = flip(Matrix::f32(gb.slice(), b_rows, b_cols), right);
                matmul(&gpu, x, y, c.slice_mut(), more).unwrap();
            } else {
                let up = |x: &[u16]| gpu.upload(x, "x").unwrap();
                let (ga, gb) = (up(&a_bits), up(&b_bits));
                let x = flip(Matrix::bf16(ga.slice(), a_rows, a_cols), left);
                let y = flip(Matrix::bf16(gb.slice(), b_rows, b_cols), right);
                matmul(&gpu, x, y, c.slice_mut(), more).unwrap();
            }
            let expected: Vec<f64> = (0..m * n)
                .map(|i| {
                    let terms =
                        (0..k).map(|j| f64::from(a[i / n * k + j]) * f64::from(b[j * n + i % n]));
                    terms.sum::<f64>() + if more { f64::from(first[i]) } else { 0.0 }
                })
                .collect();
            close(&format!("[{m}, {k}] [{k}, {n}]"), &c.read().unwrap(), &expected, 1e-6);
        }
    }
}
