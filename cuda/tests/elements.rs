//! Gates, limits, dropout and biases, on the emulator.
#![allow(clippy::unwrap_used)]

mod common;

use common::{bf16, close, dot, gpu, gradient, values, wide};
use cuda::ops::gated::{Activation, gated, gated_backward};
use cuda::ops::{Output, Sums, bias, cap, dropout};

fn activation(f: Activation, x: f64) -> f64 {
    match f {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Gelu => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            x / 2.0 * (1.0 + inner.tanh())
        }
    }
}

#[test]
fn gates_and_their_gradients() {
    let gpu = gpu();
    let n = 1029;
    let x: Vec<f32> = values(1, n).iter().map(|x| 8.0 * x).collect();
    let (u, dy) = (values(2, n), values(3, n));
    let up = |x: &[f32]| gpu.upload(x, "x").unwrap();
    let (gx, gu, gdy) = (up(&x), up(&u), up(&dy));
    let (x, u, dy) = (wide(&x), wide(&u), wide(&dy));
    for f in [Activation::Silu, Activation::Gelu] {
        for with_up in [true, false] {
            let what = format!("{f:?}, up: {with_up}");
            let factor = |i: usize, u: &[f64]| if with_up { u[i] } else { 1.0 };
            let value = |x: &[f64], u: &[f64]| -> Vec<f64> {
                (0..n).map(|i| activation(f, x[i]) * factor(i, u)).collect()
            };
            let mut y = gpu.buffer(n, "y").unwrap();
            let mut rounded = gpu.buffer(n, "y").unwrap();
            let out = Output::both(y.slice_mut(), rounded.slice_mut());
            gated(&gpu, f, gx.slice(), with_up.then(|| gu.slice()), out).unwrap();
            let got = y.read().unwrap();
            close(&what, &got, &value(&x, &u), 1e-6);
            let bits: Vec<u16> = got.iter().map(|y| bf16(*y)).collect();
            assert_eq!(rounded.read().unwrap(), bits);

            let (mut dx, mut du) = (gpu.buffer(n, "dx").unwrap(), gpu.buffer(n, "du").unwrap());
            let other = with_up.then(|| (gu.slice(), Output::f32(du.slice_mut())));
            let out = Output::f32(dx.slice_mut());
            gated_backward(&gpu, f, gx.slice(), other, gdy.slice(), out).unwrap();
            close(&what, &dx.read().unwrap(), &gradient(&x, |x| dot(&value(x, &u), &dy)), 5e-6);
            if with_up {
                let expected = gradient(&u, |u| dot(&value(&x, u), &dy));
                close(&what, &du.read().unwrap(), &expected, 5e-6);
            }
        }
    }
}

#[test]
fn activations_far_out_are_numbers() {
    let gpu = gpu();
    let x = gpu.upload(&[-1e4f32, -100.0, 100.0, 1e4], "x").unwrap();
    for f in [Activation::Silu, Activation::Gelu] {
        let (mut y, mut dx) = (gpu.buffer(4, "y").unwrap(), gpu.buffer(4, "dx").unwrap());
        gated(&gpu, f, x.slice(), None, Output::f32(y.slice_mut())).unwrap();
        gated_backward(&gpu, f, x.slice(), None, x.slice(), Output::f32(dx.slice_mut())).unwrap();
        close("values", &y.read().unwrap(), &[0.0, 0.0, 100.0, 1e4], 1e-9);
        close("gradients", &dx.read().unwrap(), &[0.0, 0.0, 100.0, 1e4], 1e-9);
    }
}

#[test]
fn limits_and_their_gradients() {
    let gpu = gpu();
    let (x, dy) = (values(1, 333), values(2, 333));
    let mut y = gpu.upload(&x, "x").unwrap();
    cap::cap(&gpu, 0.7, y.slice_mut()).unwrap();
    let capped = |x: &[f64]| -> Vec<f64> {
        let limit = f64::from(0.7f32);
        x.iter().map(|x| limit * (x / limit).tanh()).collect()
    };
    let mut dx = gpu.upload(&dy, "dy").unwrap();
    cap::cap_backward(&gpu, 0.7, y.slice(), dx.slice_mut()).unwrap();
    let (x, dy) = (wide(&x), wide(&dy));
    close("values", &y.read().unwrap(), &capped(&x), 1e-6);
    close("gradients", &dx.read().unwrap(), &gradient(&x, |x| dot(&capped(x), &dy)), 1e-6);
}

/// As the CPU's dropout has it.
fn mixed(mut x: u64) -> u64 {
    x = (x ^ (x >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    x = (x ^ (x >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ (x >> 33)
}

#[test]
fn dropout_is_a_function_of_key_and_place() {
    let gpu = gpu();
    let x = values(1, 5001);
    let gx = gpu.upload(&x, "x").unwrap();
    for rate in [0.1f32, 0.5] {
        let mut y = gpu.buffer(x.len(), "y").unwrap();
        let key = 0xfedc_ba98_7654_3210;
        dropout::dropout(&gpu, key, rate, gx.slice(), y.slice_mut()).unwrap();
        let least = (f64::from(rate) * 2f64.powi(32)) as u64;
        let factor = 1.0 / (1.0 - rate);
        let expected: Vec<f32> = (0..)
            .zip(&x)
            .map(|(i, x)| if mixed(key ^ i) >> 32 >= least { x * factor } else { 0.0 })
            .collect();
        assert_eq!(y.read().unwrap(), expected);
        let dropped = expected.iter().filter(|x| **x == 0.0).count();
        let share = dropped as f64 / x.len() as f64;
        assert!((share - f64::from(rate)).abs() < 0.03, "{share}");
    }
}

#[test]
fn biases_and_their_gradients() {
    let gpu = gpu();
    for (rows, width) in [(1, 1), (5, 7), (513, 130), (1000, 4)] {
        let (b, x) = (values(1, width), values(2, rows * width));
        let gb = gpu.upload(&b, "b").unwrap();
        let mut y = gpu.buffer(rows * width, "y").unwrap();
        bias::add_bias(&gpu, gb.slice(), y.slice_mut(), false).unwrap();
        assert_eq!(y.read().unwrap(), b.repeat(rows));
        let mut y = gpu.upload(&x, "y").unwrap();
        bias::add_bias(&gpu, gb.slice(), y.slice_mut(), true).unwrap();
        let expected: Vec<f32> = x.iter().enumerate().map(|(i, x)| x + b[i % width]).collect();
        assert_eq!(y.read().unwrap(), expected);

        let mut all = vec![];
        for _ in 0..2 {
            let mut sums = gpu.upload(&b, "sums").unwrap();
            let mut scratch = gpu.buffer(bias::parts(rows) * width, "scratch").unwrap();
            let to = Sums { sums: sums.slice_mut(), scratch: scratch.slice_mut() };
            bias::column_sums(&gpu, gpu.upload(&x, "x").unwrap().slice(), to).unwrap();
            all.push(sums.read().unwrap());
        }
        assert_eq!(all[0], all[1]);
        let mut expected = wide(&b);
        x.iter().enumerate().for_each(|(i, x)| expected[i % width] += f64::from(*x));
        close("sums", &all[0], &expected, 1e-6);
    }
}
