//! What this machine can do at best, measured: the ceilings that speeds are a share of. Where a card computes, they are
//! [its own](crate::card_peak); one that fails ends this as it ends a pass ([`caught`](crate::tape::caught)).
#![allow(unsafe_code)]

use std::hint::black_box;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use super::Cpu;
use super::rows::Parts;
use crate::bytes::{BYTES, Bytes};
use crate::card_peak;
use crate::simd::{Isa, LANES, Simd};
use crate::tape::ended;
use crate::tensor::DType;

const ROUNDS: usize = 100_000;
const RUNS: usize = 7;
/// How much faster products of bf16 have to be to be preferred.
const CLEARLY: f64 = 1.3;
/// f32 that bandwidth is measured on: 1 GiB, more than the caches of large machines.
const ELEMENTS: usize = 1 << 28;

/// FLOP/s of f32 multiply-adds on all threads, or of products on the card.
pub fn f32_flops(cpu: &Cpu) -> f64 {
    match &cpu.card {
        Some(card) => ended(card_peak::f32_flops(card)),
        None => best(cpu, 2, false),
    }
}

/// FLOP/s of bf16 pair products on all threads, or of products on the card.
pub fn bf16_flops(cpu: &Cpu) -> f64 {
    match &cpu.card {
        Some(card) => ended(card_peak::bf16_flops(card)),
        None => best(cpu, 4, true),
    }
}

/// Operations a second (a product and its sum are two) of products of bytes on all threads. (A card multiplies none.)
pub fn byte_ops(cpu: &Cpu) -> f64 {
    best_of(cpu, 8, |cpu| crate::dispatch!(cpu.isa, byte_chains() -> usize))
}

/// The operand type whose products are faster here, and its FLOP/s. bf16 has to be clearly ahead,
/// so that noise does not decide how a model is trained.
pub fn best_products(cpu: &Cpu) -> (DType, f64) {
    let (single, half) = (f32_flops(cpu), bf16_flops(cpu));
    if half > CLEARLY * single { (DType::Bf16, half) } else { (DType::F32, single) }
}

/// Whether a thread multiplies bf16 clearly faster than f32: some CPUs have the instruction, at half the speed.
/// Measured once, in a millisecond.
pub fn multiplies_bf16(isa: Isa) -> bool {
    static FASTER: OnceLock<bool> = OnceLock::new();
    let seconds = |bf16: bool| {
        let run = |_| {
            let start = Instant::now();
            crate::dispatch!(isa, chains(rounds: usize = ROUNDS / 8, bf16: bool = bf16) -> usize);
            start.elapsed().as_secs_f64()
        };
        (0..RUNS).map(run).fold(f64::INFINITY, f64::min)
    };
    // A step of bf16 is two multiply-adds.
    isa == Isa::Avx512Bf16 && *FASTER.get_or_init(|| 2.0 * seconds(false) > CLEARLY * seconds(true))
}

fn best(cpu: &Cpu, per_lane: usize, bf16: bool) -> f64 {
    best_of(
        cpu,
        per_lane,
        |cpu| crate::dispatch!(cpu.isa, chains(rounds: usize = ROUNDS, bf16: bool = bf16) -> usize),
    )
}

fn best_of(cpu: &Cpu, per_lane: usize, chains: impl Fn(&Cpu) -> usize + Sync) -> f64 {
    let threads = cpu.pool.threads();
    let mut best = 0f64;
    for _ in 0..RUNS {
        let steps = AtomicUsize::new(0);
        let start = Instant::now();
        cpu.pool.run(threads, |_| {
            steps.fetch_add(chains(cpu), Relaxed);
        });
        let work = steps.into_inner() * LANES * per_lane;
        best = best.max(work as f64 / start.elapsed().as_secs_f64());
    }
    best
}

/// Independent chains of products, and how many steps they made. There are enough of them to hide
/// the latency of any product, and as few as the registers hold.
#[inline(always)]
unsafe fn chains<S: Simd>(rounds: usize, bf16: bool) -> usize {
    // SAFETY: the instruction set is the caller's promise.
    unsafe {
        match (S::TILE_VECTORS > 1, bf16) {
            (true, false) => chain::<S, 24, false>(rounds),
            (true, true) => chain::<S, 24, true>(rounds),
            (false, false) => chain::<S, 6, false>(rounds),
            (false, true) => chain::<S, 6, true>(rounds),
        }
    }
}

#[inline(always)]
unsafe fn chain<S: Simd, const N: usize, const BF16: bool>(rounds: usize) -> usize {
    // SAFETY: the instruction set is the caller's promise.
    unsafe {
        let (a, b) = (S::splat(black_box(0.999)), S::splat(black_box(1e-3)));
        let mut acc = [S::splat(0.0); N];
        for _ in 0..rounds {
            for c in &mut acc {
                *c = if BF16 { S::dot_bf16(*c, a, b) } else { S::fma(*c, a, b) };
            }
        }
        for c in acc {
            black_box(S::sum(c));
        }
    }
    N * rounds
}

#[inline(always)]
unsafe fn byte_chains<S: Bytes>() -> usize {
    // SAFETY: the instruction set is the caller's promise.
    unsafe {
        // Of as many registers as the tiles of products have.
        match S::TILE_VECTORS {
            _ if const { S::MATRICES } => matrices::<S>(),
            1 => byte_chain::<S, 4>(),
            _ => byte_chain::<S, 24>(),
        }
    }
}

/// Four rows by a group of weights.
#[inline(always)]
unsafe fn matrices<S: Bytes>() -> usize {
    const STEPS: usize = 8;
    let (w, x) = ([5u8; STEPS * BYTES], [3u8; STEPS * 4]);
    // SAFETY: as above; there are as many vectors and words as steps.
    unsafe {
        let mut acc = [S::splat_byte(0); 4];
        for _ in 0..ROUNDS / STEPS {
            let (w, x) = (black_box(&w).as_ptr(), black_box(&x).as_ptr());
            acc = S::dots(acc, w, [x; 4], STEPS);
        }
        for c in acc {
            black_box(S::sum(S::words_to_f32(c)));
        }
    }
    4 * (ROUNDS / STEPS * STEPS)
}

/// Each chain has a left operand of its own, read anew each round: of products that are more than one
/// instruction, the compiler would otherwise compute all but the sum once.
#[inline(always)]
unsafe fn byte_chain<S: Bytes, const N: usize>() -> usize {
    let x = [3u8; 4 * 24];
    // SAFETY: as above; there are four bytes for each chain.
    unsafe {
        let w = S::splat_byte(black_box(5));
        let mut acc = [S::splat_byte(0); N];
        for _ in 0..ROUNDS {
            let x = black_box(&x).as_ptr();
            for (i, c) in acc.iter_mut().enumerate() {
                let x = S::splat_word(x.add(4 * i));
                *c = match S::PAIRS {
                    Some(_) => S::dot_pairs(*c, w, x),
                    None => S::dot(*c, w, x),
                };
            }
        }
        for c in acc {
            black_box(S::sum(S::words_to_f32(c)));
        }
    }
    N * ROUNDS
}

/// Bytes a second that all threads together read from memory, or the card reads and writes in a copy. Takes 1 GiB for
/// the while (a card: 2 GiB).
pub fn read_bandwidth(cpu: &Cpu) -> f64 {
    if let Some(card) = &cpu.card {
        return ended(card_peak::bandwidth(card));
    }
    let mut data = vec![0f32; ELEMENTS];
    let threads = cpu.pool.threads();
    let each = ELEMENTS / threads / LANES * LANES;
    // Memory that nothing was written to is one page of zeros.
    let parts = Parts::new(&mut data);
    cpu.pool.run(threads, |t| {
        // SAFETY: parts are disjoint.
        unsafe { parts.part(t * each..(t + 1) * each) }.fill(1.0);
    });
    let mut best = 0f64;
    for _ in 0..3 {
        let start = Instant::now();
        cpu.pool.run(threads, |t| {
            let part = &data[t * each..(t + 1) * each];
            black_box(crate::dispatch!(cpu.isa, sum(x: &[f32] = part) -> f32));
        });
        best = best.max((each * threads * 4) as f64 / start.elapsed().as_secs_f64());
    }
    best
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
        let mut total = 0.0;
        for c in acc {
            total += S::sum(c);
        }
        total
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
        assert!([single, half, bytes].iter().all(|rate| *rate > 1e6));
    }
}
