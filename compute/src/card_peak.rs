//! What a card can do at best, measured: the ceilings that speeds are a share of. Each is the best of several runs
//! after one that warms up, with nothing else on the card's stream.

use std::time::Instant;

use cuda::matmul::{Matrix, matmul};
use cuda::{Buffer, Element, Error, Gpu, Slice};

use crate::rng::Rng;

const RUNS: usize = 10;
/// Rows and columns of the matrices that are multiplied, halved until they fit into memory.
const SIDE: usize = 8192;
/// Bytes that are copied, halved until they fit into memory twice.
const BYTES: usize = 1 << 30;
/// Random values that operands repeat: with zeros, a card would draw less power and run faster.
const VALUES: usize = 1 << 20;

/// FLOP/s of products of bf16 with sums in f32.
///
/// # Errors
/// [`Error::OutOfMemory`], [`Error::Product`], [`Error::Driver`].
pub fn bf16_flops(gpu: &Gpu) -> Result<f64, Error> {
    let values: Vec<_> = values().iter().map(|x| half::bf16::from_f32(*x).to_bits()).collect();
    halving(SIDE, |side| products(gpu, side, &values, |x, n| Matrix::bf16(x, n, n)))
}

/// FLOP/s of products of f32.
///
/// # Errors
/// As [`bf16_flops`].
pub fn f32_flops(gpu: &Gpu) -> Result<f64, Error> {
    halving(SIDE, |side| products(gpu, side, &values(), |x, n| Matrix::f32(x, n, n)))
}

/// Bytes a second that a copy within the card's memory reads and writes.
///
/// # Errors
/// [`Error::OutOfMemory`], [`Error::Driver`].
pub fn bandwidth(gpu: &Gpu) -> Result<f64, Error> {
    halving(BYTES, |bytes| copies(gpu, bytes))
}

/// Measures at `size`, or at the largest half, quarter and so on of it that there is memory for.
fn halving(mut size: usize, measure: impl Fn(usize) -> Result<f64, Error>) -> Result<f64, Error> {
    loop {
        match measure(size) {
            Err(Error::OutOfMemory { .. }) if size > 1024 => size /= 2,
            measured => return measured,
        }
    }
}

fn products<T: Element>(
    gpu: &Gpu,
    side: usize,
    values: &[T],
    matrix: for<'a> fn(Slice<'a, T>, usize) -> Matrix<'a>,
) -> Result<f64, Error> {
    let [a, b] = [filled(gpu, values, side * side)?, filled(gpu, values, side * side)?];
    let mut c = gpu.buffer(side * side, "a product")?;
    let of = |x| matrix(x, side);
    let flops = 2.0 * (side as f64).powi(3);
    best(gpu, flops, || matmul(gpu, of(a.slice()), of(b.slice()), c.slice_mut(), false))
}

fn copies(gpu: &Gpu, bytes: usize) -> Result<f64, Error> {
    let from = filled(gpu, &values(), bytes / size_of::<f32>())?;
    let mut to = gpu.buffer(from.len(), "a copy")?;
    best(gpu, 2.0 * bytes as f64, || to.slice_mut().copy(from.slice()))
}

/// The highest rate at which `run` does its `work`.
fn best(gpu: &Gpu, work: f64, mut run: impl FnMut() -> Result<(), Error>) -> Result<f64, Error> {
    let mut best = 0f64;
    for round in 0..=RUNS {
        gpu.synchronise()?;
        let start = Instant::now();
        run()?;
        gpu.synchronise()?;
        if round > 0 {
            best = best.max(work / start.elapsed().as_secs_f64());
        }
    }
    Ok(best)
}

fn values() -> Vec<f32> {
    let mut rng = Rng::new(1);
    (0..VALUES).map(|_| 2.0 * rng.f64() as f32 - 1.0).collect()
}

/// `len` elements that repeat `values`.
fn filled<T: Element>(gpu: &Gpu, values: &[T], len: usize) -> Result<Buffer<T>, Error> {
    let mut filled = gpu.buffer(len, "values to measure with")?;
    let values = gpu.upload(&values[..values.len().min(len)], "values to measure with")?;
    for start in (0..len).step_by(values.len()) {
        let end = len.min(start + values.len());
        filled.part_mut(start..end).copy(values.part(..end - start))?;
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn ceilings_are_plausible() {
        let gpu = Gpu::emulated();
        let plausible = |rate: f64| rate > 1e5 && rate < 1e13;
        let single = products(&gpu, 24, &values(), |x, n| Matrix::f32(x, n, n));
        let half = products(&gpu, 24, &[0x3f80; 100], |x, n| Matrix::bf16(x, n, n));
        assert!(plausible(single.unwrap()));
        assert!(plausible(half.unwrap()));
        assert!(plausible(copies(&gpu, 1 << 16).unwrap()));
    }

    #[test]
    fn values_repeat() {
        let filled = filled(&Gpu::emulated(), &[1u32, 2, 3], 7).unwrap();
        assert_eq!(filled.read().unwrap(), [1, 2, 3, 1, 2, 3, 1]);
    }

    #[test]
    fn too_large_is_halved() {
        let error = |bytes| {
            let (name, what) = (String::new(), String::new());
            Error::OutOfMemory { name, what, bytes, free: 0, total: 0 }
        };
        let fits = |most| move |n| if n > most { Err(error(n)) } else { Ok(n as f64) };
        assert_eq!(halving(SIDE, fits(5000)).unwrap(), 4096.0);
        assert!(halving(SIDE, fits(100)).is_err());
    }
}
