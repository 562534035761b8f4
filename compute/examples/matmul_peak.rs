//! Throughput of matrix products of training, beside the machine's peak.

use std::time::Instant;

use compute::Cpu;
use compute::cpu::matmul::{Mat, Packed, Rows, gemm, gemm_packed};

fn main() {
    let threads = std::env::args().nth(1).and_then(|t| t.parse().ok()).unwrap_or(2);
    let cpu = Cpu::new(threads);
    println!("{} {} threads", cpu.isa.name(), threads);
    let time = |name: &str, flops: f64, f: &mut dyn FnMut()| {
        f();
        let mut runs: Vec<f64> = (0..9)
            .map(|_| {
                let t = Instant::now();
                f();
                t.elapsed().as_secs_f64()
            })
            .collect();
        runs.sort_by(f64::total_cmp);
        println!("{name:28} {:8.1} GFLOP/s", flops / runs[4] / 1e9);
    };
    for (t, k, n) in [
        (2048, 128, 128),
        (2048, 128, 352),
        (2048, 352, 128),
        (256, 128, 2048),
        (2048, 384, 1152),
        (2048, 2048, 2048),
    ] {
        let (a, w) = (vec![0.5f32; t * k], vec![0.25f32; n * k]);
        let mut c = vec![0.0f32; t * n];
        let packed = Packed::new(&cpu, k, n, Mat { data: &w, stride: k, transposed: true }, false);
        let flops = 2.0 * (t * k * n) as f64;
        time(&format!("forward {t}x{k}x{n}"), flops, &mut || {
            gemm_packed(&cpu, t, n, k, Rows::F32 { data: &a, stride: k }, &packed, &mut c, n, false)
        });
        let mut dw = vec![0.0f32; n * k];
        time(&format!("weight gradient {n}x{t}x{k}"), flops, &mut || {
            let dy = Mat { data: &c[..], stride: n, transposed: true };
            let x = Mat { data: &a[..], stride: k, transposed: false };
            gemm(&cpu, n, k, t, dy, x, &mut dw, k, true)
        });
    }
}
