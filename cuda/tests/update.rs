//! Operations element by element, on the emulator.
#![allow(clippy::unwrap_used)]

mod common;

use common::{gpu, values};
use cuda::ops::update;

#[test]
fn elements_are_filled_scaled_and_added() {
    let gpu = gpu();
    let (x, y) = (values(1, 777), values(2, 777));
    let (dx, mut dy) = (gpu.upload(&x, "x").unwrap(), gpu.upload(&y, "y").unwrap());
    update::axpby(&gpu, 2.0, dx.slice(), -0.5, dy.slice_mut()).unwrap();
    let expected: Vec<f32> = x.iter().zip(&y).map(|(x, y)| 2.0f32.mul_add(*x, -0.5 * y)).collect();
    assert_eq!(dy.read().unwrap(), expected);
    // New memory is NaN, which must not matter.
    let mut new = gpu.buffer(777, "new").unwrap();
    update::axpby(&gpu, 1.0, dx.slice(), 0.0, new.slice_mut()).unwrap();
    assert_eq!(new.read().unwrap(), x);
    update::scale(&gpu, 3.0, new.part_mut(1..776)).unwrap();
    let read = new.read().unwrap();
    assert_eq!((read[0], read[1], read[775], read[776]), (x[0], 3.0 * x[1], 3.0 * x[775], x[776]));
    update::fill(&gpu, 7.0, new.part_mut(5..)).unwrap();
    assert_eq!(new.part(4..6).read().unwrap(), [3.0 * x[4], 7.0]);
    update::copy(&gpu, dx.part(..9), dy.part_mut(100..109)).unwrap();
    assert_eq!(dy.part(100..109).read().unwrap(), x[..9]);
    new.slice_mut().zero().unwrap();
    assert_eq!(new.read().unwrap(), [0.0; 777]);
}

#[test]
fn bf16_is_rounded_to_the_nearest() {
    let gpu = gpu();
    let mut x = values(3, 1000);
    x.extend([0.0, -0.0, f32::INFINITY, f32::from_bits(0x3f80_8000), f32::from_bits(0x3f81_8000)]);
    let dx = gpu.upload(&x, "x").unwrap();
    let mut dy = gpu.buffer(x.len(), "y").unwrap();
    update::round_bf16(&gpu, dx.slice(), dy.slice_mut()).unwrap();
    let bits = dy.read().unwrap();
    for (x, bits) in x.iter().zip(&bits) {
        assert_eq!(*bits, common::bf16(*x), "{x}");
    }
    let mut back = gpu.buffer(x.len(), "back").unwrap();
    update::widen_bf16(&gpu, dy.slice(), back.slice_mut()).unwrap();
    for (x, bits) in back.read().unwrap().iter().zip(&bits) {
        assert_eq!(x.to_bits(), u32::from(*bits) << 16);
    }
}

#[test]
fn squared_norms_of_odd_lengths() {
    let gpu = gpu();
    for len in [0, 1, 31, 257, 65_536, 65_537, 200_001] {
        let x = values(4, len);
        let dx = gpu.upload(&x, "x").unwrap();
        let mut sums = gpu.buffer(update::parts(len), "sums").unwrap();
        update::squared_norm(&gpu, dx.slice(), sums.slice_mut()).unwrap();
        let first = sums.read().unwrap();
        let sum: f64 = first.iter().map(|x| f64::from(*x)).sum();
        let expected: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum();
        assert!((sum - expected).abs() <= 1e-6 * expected, "{len}: {sum} {expected}");
        // Again, with threads in the other order.
        update::squared_norm(&gpu, dx.slice(), sums.slice_mut()).unwrap();
        assert_eq!(sums.read().unwrap(), first);
    }
}
