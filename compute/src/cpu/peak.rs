//! What this machine can do at best, measured: the ceilings that speeds are a share of.
#![allow(unsafe_code)]

use std::hint::black_box;
use std::time::Instant;

use super::Cpu;
use crate::simd::{LANES, Simd};
use crate::tensor::DType;

/// Accumulators in flight: enough to hide the latency of a multiply-add on two ports, few enough
/// for sixteen registers of half a vector.
const CHAINS: usize = 12;
const ROUNDS: usize = 200_000;
const RUNS: usize = 7;

/// FLOP/s of f32 multiply-adds on all threads.
pub fn f32_flops(cpu: &Cpu) -> f64 {
    best(cpu, 2.0, false)
}

/// FLOP/s of bf16 pair products on all threads.
pub fn bf16_flops(cpu: &Cpu) -> f64 {
    best(cpu, 4.0, true)
}

/// The operand type whose products are faster here, and its FLOP/s. bf16 has to be clearly ahead,
/// so that noise does not decide how a model is trained.
pub fn best_products(cpu: &Cpu) -> (DType, f64) {
    let (single, half) = (f32_flops(cpu), bf16_flops(cpu));
    if half > 1.3 * single { (DType::Bf16, half) } else { (DType::F32, single) }
}

fn best(cpu: &Cpu, per_lane: f64, bf16: bool) -> f64 {
    let threads = cpu.pool.threads();
    let work = per_lane * (LANES * CHAINS * ROUNDS * threads) as f64;
    (0..RUNS)
        .map(|_| {
            let start = Instant::now();
            cpu.pool.run(threads, |_| {
                let x = black_box(0.999f32);
                let sum = if bf16 {
                    crate::dispatch!(cpu.isa, bf16_chains(x: f32 = x) -> f32)
                } else {
                    crate::dispatch!(cpu.isa, f32_chains(x: f32 = x) -> f32)
                };
                black_box(sum);
            });
            work / start.elapsed().as_secs_f64()
        })
        .fold(0.0, f64::max)
}

#[inline(always)]
unsafe fn f32_chains<S: Simd>(x: f32) -> f32 {
    // SAFETY: the instruction set is the caller's promise.
    unsafe {
        let (a, b) = (S::splat(x), S::splat(1e-3));
        let mut acc = [S::splat(0.0); CHAINS];
        for _ in 0..ROUNDS {
            acc.iter_mut().for_each(|c| *c = S::fma(*c, a, b));
        }
        acc.into_iter().map(|c| S::sum(c)).sum()
    }
}

#[inline(always)]
unsafe fn bf16_chains<S: Simd>(x: f32) -> f32 {
    // SAFETY: the instruction set is the caller's promise.
    unsafe {
        let (a, b) = (S::splat(x), S::splat(1e-3));
        let mut acc = [S::splat(0.0); CHAINS];
        for _ in 0..ROUNDS {
            acc.iter_mut().for_each(|c| *c = S::dot_bf16(*c, a, b));
        }
        acc.into_iter().map(|c| S::sum(c)).sum()
    }
}

/// Bytes a second that all threads together read from memory (256 MiB, far more than caches that
/// a core has to itself).
pub fn read_bandwidth(cpu: &Cpu) -> f64 {
    let n = 64 << 20;
    let data = vec![1.0f32; n];
    let threads = cpu.pool.threads();
    let each = n / threads / LANES * LANES;
    (0..RUNS)
        .map(|_| {
            let start = Instant::now();
            cpu.pool.run(threads, |t| {
                let part = &data[t * each..(t + 1) * each];
                black_box(crate::dispatch!(cpu.isa, sum(x: &[f32] = part) -> f32));
            });
            (each * threads * 4) as f64 / start.elapsed().as_secs_f64()
        })
        .fold(0.0, f64::max)
}

#[inline(always)]
unsafe fn sum<S: Simd>(x: &[f32]) -> f32 {
    // SAFETY: chunks of 4 * 16 elements; the instruction set is the caller's promise.
    unsafe {
        let mut acc = [S::splat(0.0); 4];
        for chunk in x.chunks_exact(4 * LANES) {
            for (i, acc) in acc.iter_mut().enumerate() {
                *acc = S::add(*acc, S::load(chunk.as_ptr().add(i * LANES)));
            }
        }
        acc.into_iter().map(|c| S::sum(c)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ceilings_are_plausible() {
        let cpu = Cpu::new(1);
        let (single, half, bytes) = (f32_flops(&cpu), bf16_flops(&cpu), read_bandwidth(&cpu));
        println!("{:.1} {:.1} GFLOP/s, {:.1} GB/s", single / 1e9, half / 1e9, bytes / 1e9);
        assert!(single > 1e8 && half > 1e7 && bytes > 1e8);
    }
}
