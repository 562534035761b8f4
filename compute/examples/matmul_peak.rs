//! Throughput of the matrix products of training beside the machine's peak in the same run.
//!
//!     cargo run --release -p homegrown-compute --example matmul_peak -- [THREADS]
//!
//! `HOMEGROWN_ISA=avx2` shows another instruction set.

use std::time::Instant;

use compute::Cpu;
use compute::cpu::matmul::{Mat, Packed, Rows, gemm, gemm_bf16, gemm_packed};
use compute::cpu::peak;

/// The best of some runs, and the peak measured between them.
fn show(name: &str, flops: f64, peak: &dyn Fn() -> f64, run: &mut dyn FnMut()) {
    let (mut best, mut ceiling) = (0f64, 0f64);
    for _ in 0..4 {
        ceiling = ceiling.max(peak());
        for _ in 0..((2e9 / flops) as usize).clamp(2, 200) {
            let start = Instant::now();
            run();
            best = best.max(flops / start.elapsed().as_secs_f64());
        }
    }
    println!("{name:34} {:7.1} GFLOP/s {:5.1} %", best / 1e9, 100.0 * best / ceiling);
}

fn main() {
    let threads = std::env::args().nth(1).and_then(|t| t.parse().ok()).unwrap_or(2);
    let cpu = Cpu::new(threads);
    println!("{}, {threads} threads (m x k x n)", cpu.isa.name());
    let single = || peak::f32_flops(&cpu);
    let half = || peak::bf16_flops(&cpu);
    // Tokens that go through the model at a time, inputs and outputs of the layers of models with 1.1, 10.4 and 49.9
    // million parameters: attention, gate and up, down; and a chunk of a head.
    for (t, k, n) in [
        (2048, 128, 128),
        (2048, 128, 384),
        (2048, 384, 128),
        (2048, 384, 384),
        (2048, 384, 1024),
        (2048, 1024, 384),
        (2048, 640, 640),
        (2048, 640, 1728),
        (2048, 1728, 640),
        (256, 128, 2048),
        (256, 640, 8192),
    ] {
        let (x, w) = (vec![0.5f32; t * k], vec![0.25f32; n * k]);
        let (mut y, mut dx) = (vec![1e-3f32; t * n], vec![0f32; t * k]);
        let mut dw = vec![0f32; n * k];
        let flops = 2.0 * (t * k * n) as f64;
        let (rows, turned) = (
            Mat { data: &w[..], stride: k, transposed: false },
            Mat { data: &w[..], stride: k, transposed: true },
        );
        for bf16 in [false, true] {
            let ceiling: &dyn Fn() -> f64 = if bf16 { &half } else { &single };
            let kind = if bf16 { " bf16" } else { "" };
            let forward = Packed::new(&cpu, k, n, turned, bf16);
            let backward = Packed::new(&cpu, n, k, rows, bf16);
            let hx = vec![0x3f00u16; t * k];
            let hy = vec![0x3a80u16; t * n];
            let left = |f, h, stride| match bf16 {
                false => Rows::F32 { data: f, stride },
                true => Rows::Bf16 { data: h, stride },
            };
            show(&format!("y = x w'  {t}x{k}x{n}{kind}"), flops, ceiling, &mut || {
                gemm_packed(&cpu, t, n, k, left(&x, &hx, k), &forward, &mut y, n, false);
            });
            show(&format!("dx = dy w {t}x{n}x{k}{kind}"), flops, ceiling, &mut || {
                gemm_packed(&cpu, t, k, n, left(&y, &hy, n), &backward, &mut dx, k, false);
            });
            show(&format!("dw += dy' x {n}x{t}x{k}{kind}"), flops, ceiling, &mut || {
                if bf16 {
                    let dy = Mat { data: &hy[..], stride: n, transposed: true };
                    let x = Mat { data: &hx[..], stride: k, transposed: false };
                    gemm_bf16(&cpu, n, k, t, dy, x, &mut dw, k, true);
                } else {
                    let dy = Mat { data: &y[..], stride: n, transposed: true };
                    let x = Mat { data: &x[..], stride: k, transposed: false };
                    gemm(&cpu, n, k, t, dy, x, &mut dw, k, true);
                }
            });
        }
    }
    for n in [128, 256, 512, 2048] {
        let x = vec![0.5f32; n * n];
        let mut y = vec![0f32; n * n];
        let flops = 2.0 * (n * n * n) as f64;
        let plain = Mat { data: &x[..], stride: n, transposed: false };
        let turned = Mat { data: &x[..], stride: n, transposed: true };
        show(&format!("x x'  {n}x{n}x{n}"), flops, &single, &mut || {
            gemm(&cpu, n, n, n, plain, turned, &mut y, n, false);
        });
        show(&format!("x x   {n}x{n}x{n}"), flops, &single, &mut || {
            gemm(&cpu, n, n, n, plain, plain, &mut y, n, false);
        });
        let x = vec![0x3f00u16; n * n];
        let plain = Mat { data: &x[..], stride: n, transposed: false };
        let turned = Mat { data: &x[..], stride: n, transposed: true };
        show(&format!("x x'  {n}x{n}x{n} bf16"), flops, &half, &mut || {
            gemm_bf16(&cpu, n, n, n, plain, turned, &mut y, n, false);
        });
        show(&format!("x x   {n}x{n}x{n} bf16"), flops, &half, &mut || {
            gemm_bf16(&cpu, n, n, n, plain, plain, &mut y, n, false);
        });
    }
    for m in [1, 4, 16] {
        let (k, n) = (128, 352);
        let (x, w) = (vec![0.5f32; m * k], vec![0.25f32; n * k]);
        let mut y = vec![0f32; m * n];
        let turned = Mat { data: &w[..], stride: k, transposed: true };
        let packed = Packed::new(&cpu, k, n, turned, false);
        let flops = 2.0 * (m * k * n) as f64;
        show(&format!("decode {m}x{k}x{n}"), flops, &single, &mut || {
            let x = Rows::F32 { data: &x, stride: k };
            gemm_packed(&cpu, m, n, k, x, &packed, &mut y, n, false);
        });
    }
}
