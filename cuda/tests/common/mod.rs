//! What tests of operations share.
#![allow(dead_code)]

use cuda::Gpu;

/// The device to test on.
pub fn gpu() -> Gpu {
    Gpu::emulated()
}

/// Numbers from -1 to 1, the same for one seed (SplitMix64, Steele et al. 2014).
pub fn values(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x2545_f491_4f6c_dd1d);
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    (0..len).map(|_| (next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0).collect()
}

/// The bits of the nearest bf16, ties to even.
pub fn bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

/// A bf16's value.
pub fn from_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Asserts that all are within `tolerance` times the largest of what was expected, or times 1.
#[track_caller]
pub fn close(what: &str, got: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let scale = expected.iter().fold(1.0f64, |most, x| most.max(x.abs()));
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let apart = (f64::from(*got) - expected).abs();
        assert!(apart <= tolerance * scale, "{what}[{i}]: {got}, expected {expected}");
    }
}

/// The gradient of `loss` at `x`, by differences.
pub fn gradient(x: &[f64], loss: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    let step = 1e-5;
    let mut x = x.to_vec();
    (0..x.len())
        .map(|i| {
            let here = x[i];
            let mut at = |there| {
                x[i] = there;
                loss(&x)
            };
            let slope = (at(here + step) - at(here - step)) / (2.0 * step);
            x[i] = here;
            slope
        })
        .collect()
}

/// In f64.
pub fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

/// The sum of products.
pub fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}
