//! Norms of rows and heads, rotations, and their gradients, on the emulator.
#![allow(clippy::unwrap_used)]

mod common;

use common::{bf16, close, dot, gpu, gradient, values, wide};
use cuda::ops::heads::{self, Norm, Rope};
use cuda::ops::{Output, Sums, bias, layer_norm, norm};

const EPS: f32 = 1e-5;

fn rms_norm(x: &[f64], w: &[f64]) -> Vec<f64> {
    x.chunks(w.len())
        .flat_map(|row| {
            let inv = 1.0 / (dot(row, row) / row.len() as f64 + f64::from(EPS)).sqrt();
            row.iter().zip(w).map(move |(x, w)| x * inv * w).collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn rms_norm_and_its_gradients() {
    let gpu = gpu();
    for (rows, width) in [(1, 1), (3, 7), (5, 128), (300, 36), (2, 1500)] {
        let what = format!("[{rows}, {width}]");
        let (x, w, dy) = (values(1, rows * width), values(2, width), values(3, rows * width));
        let (dx_, dw_, ddy) = (
            gpu.upload(&x, "x").unwrap(),
            gpu.upload(&w, "w").unwrap(),
            gpu.upload(&dy, "dy").unwrap(),
        );
        let mut y = gpu.buffer(rows * width, "y").unwrap();
        let mut rounded = gpu.buffer(rows * width, "y").unwrap();
        let mut inv = gpu.buffer(rows, "inv").unwrap();
        let out = Output::both(y.slice_mut(), rounded.slice_mut());
        norm::rms_norm(&gpu, dx_.slice(), dw_.slice(), EPS, out, Some(inv.slice_mut())).unwrap();
        let got = y.read().unwrap();
        close(&what, &got, &rms_norm(&wide(&x), &wide(&w)), 1e-6);
        let expected: Vec<u16> = got.iter().map(|y| bf16(*y)).collect();
        assert_eq!(rounded.read().unwrap(), expected);

        let first = values(4, rows * width);
        let mut gradients = vec![];
        for _ in 0..2 {
            let mut dx = gpu.upload(&first, "dx").unwrap();
            let mut dw = gpu.upload(&w, "dw").unwrap();
            let mut scratch = gpu.buffer(bias::parts(rows) * width, "scratch").unwrap();
            let sums = Sums { sums: dw.slice_mut(), scratch: scratch.slice_mut() };
            norm::rms_norm_backward(
                &gpu,
                dx_.slice(),
                dw_.slice(),
                inv.slice(),
                ddy.slice(),
                dx.slice_mut(),
                true,
                Some(sums),
            )
            .unwrap();
            gradients.push((dx.read().unwrap(), dw.read().unwrap()));
        }
        assert_eq!(gradients[0], gradients[1], "the same in both orders of threads");
        let (dx, dw) = &gradients[0];
        let (x, w, dy) = (wide(&x), wide(&w), wide(&dy));
        let mut expected = gradient(&x, |x| dot(&rms_norm(x, &w), &dy));
        expected.iter_mut().zip(&first).for_each(|(d, first)| *d += f64::from(*first));
        close(&what, dx, &expected, 1e-5);
        let mut expected = gradient(&w, |w| dot(&rms_norm(&x, w), &dy));
        expected.iter_mut().zip(&w).for_each(|(d, w)| *d += w);
        close(&what, dw, &expected, 1e-5);

        let mut dx = gpu.buffer(rows * width, "dx").unwrap();
        norm::rms_norm_backward(
            &gpu,
            dx_.slice(),
            dw_.slice(),
            inv.slice(),
            ddy.slice(),
            dx.slice_mut(),
            false,
            None,
        )
        .unwrap();
        close(&what, &dx.read().unwrap(), &gradient(&x, |x| dot(&rms_norm(x, &w), &dy)), 1e-5);
    }
}

fn layer(x: &[f64], w: &[f64], b: &[f64]) -> Vec<f64> {
    x.chunks(w.len())
        .flat_map(|row| {
            let n = row.len() as f64;
            let mean = row.iter().sum::<f64>() / n;
            let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
            let inv = 1.0 / (variance + f64::from(EPS)).sqrt();
            let all = row.iter().zip(w).zip(b);
            all.map(move |((x, w), b)| (x - mean) * inv * w + b).collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn layer_norm_and_its_gradients() {
    let gpu = gpu();
    for (rows, width) in [(3, 7), (4, 64), (270, 33), (2, 1501)] {
        let what = format!("[{rows}, {width}]");
        let (x, dy) = (values(1, rows * width), values(3, rows * width));
        let (w, b) = (values(2, width), values(5, width));
        let up = |x: &[f32]| gpu.upload(x, "x").unwrap();
        let (gx, gw, gb, gdy) = (up(&x), up(&w), up(&b), up(&dy));
        let mut y = gpu.buffer(rows * width, "y").unwrap();
        let mut stats = gpu.buffer(2 * rows, "stats").unwrap();
        let out = Output::f32(y.slice_mut());
        let weights = (gw.slice(), gb.slice());
        layer_norm::layer_norm(&gpu, gx.slice(), weights, EPS, out, Some(stats.slice_mut()))
            .unwrap();
        let (mut dx, mut dw, mut db) = (up(&dy), up(&w), up(&b));
        let mut scratch = gpu.buffer(2 * bias::parts(rows) * width, "scratch").unwrap();
        let (one, two) = scratch.slice_mut().split_at(bias::parts(rows) * width);
        layer_norm::layer_norm_backward(
            &gpu,
            gx.slice(),
            gw.slice(),
            stats.slice(),
            gdy.slice(),
            dx.slice_mut(),
            true,
            Some(Sums { sums: dw.slice_mut(), scratch: one }),
            Some(Sums { sums: db.slice_mut(), scratch: two }),
        )
        .unwrap();
        let (x, w, b, dy_wide) = (wide(&x), wide(&w), wide(&b), wide(&dy));
        close(&what, &y.read().unwrap(), &layer(&x, &w, &b), 1e-5);
        let plus = |gradient: Vec<f64>, first: &[f64]| -> Vec<f64> {
            gradient.iter().zip(first).map(|(d, first)| d + first).collect()
        };
        let expected = plus(gradient(&x, |x| dot(&layer(x, &w, &b), &dy_wide)), &dy_wide);
        close(&what, &dx.read().unwrap(), &expected, 1e-5);
        let expected = plus(gradient(&w, |w| dot(&layer(&x, w, &b), &dy_wide)), &w);
        close(&what, &dw.read().unwrap(), &expected, 1e-5);
        let expected = plus(gradient(&b, |b| dot(&layer(&x, &w, b), &dy_wide)), &b);
        close(&what, &db.read().unwrap(), &expected, 1e-5);
    }
}

/// Angles as the CPU's tables have them: `[positions, 2, n]`.
fn table(positions: usize, dim: usize, n: usize) -> Vec<f32> {
    let mut table = vec![];
    for p in 0..positions {
        let angle = |i: usize| p as f64 * libm::pow(10_000.0, -2.0 * i as f64 / dim as f64);
        table.extend((0..n).map(|i| angle(i).cos() as f32));
        table.extend((0..n).map(|i| angle(i).sin() as f32));
    }
    table
}

/// Heads normalised (with `w`) and rotated.
fn rotated(x: &[f64], w: &[f64], dim: usize, n: usize, table: &[f32], at: &[u32]) -> Vec<f64> {
    let mut y = if w.is_empty() { x.to_vec() } else { rms_norm(x, w) };
    let heads = x.len() / dim / at.len();
    for (head, y) in y.chunks_mut(dim).enumerate() {
        let row = &table[at[head / heads] as usize * 2 * n..][..2 * n];
        for i in 0..n {
            let (cos, sin) = (f64::from(row[i]), f64::from(row[n + i]));
            let (a, b) = (y[i], y[n + i]);
            (y[i], y[n + i]) = (a * cos - b * sin, b * cos + a * sin);
        }
    }
    y
}

#[test]
fn heads_and_their_gradients() {
    let gpu = gpu();
    for (rows, heads, dim, n) in [(1, 1, 2, 1), (5, 3, 16, 8), (40, 7, 10, 3), (3, 2, 128, 64)] {
        let len = rows * heads * dim;
        let (x, w, dy) = (values(1, len), values(2, dim), values(3, len));
        let at: Vec<u32> = (0..rows).map(|r| (r * 7 % 50) as u32).collect();
        let angles = table(50, dim, n);
        let rope = Rope::new(&gpu, dim, n, &angles).unwrap();
        let up = |x: &[f32]| gpu.upload(x, "x").unwrap();
        let (gx, gw, gdy) = (up(&x), up(&w), up(&dy));
        let gat = gpu.upload(&at, "positions").unwrap();
        for with_norm in [true, false] {
            let what = format!("[{rows}, {heads}, {dim}], norm: {with_norm}");
            let weight = with_norm.then(|| gw.slice());
            let mut y = gpu.buffer(len, "y").unwrap();
            let mut rounded = gpu.buffer(len, "y").unwrap();
            let mut inv = gpu.buffer(rows * heads, "inv").unwrap();
            let out = Output::both(y.slice_mut(), rounded.slice_mut());
            let kept = with_norm.then(|| inv.slice_mut());
            heads::norm_rotate(&gpu, gx.slice(), weight, EPS, &rope, gat.slice(), out, kept)
                .unwrap();
            let (x, dy) = (wide(&x), wide(&dy));
            let used = if with_norm { wide(&w) } else { vec![] };
            let expected = rotated(&x, &used, dim, n, &angles, &at);
            let got = y.read().unwrap();
            close(&what, &got, &expected, 1e-6);
            let bits: Vec<u16> = got.iter().map(|y| bf16(*y)).collect();
            assert_eq!(rounded.read().unwrap(), bits);

            let (mut dx, mut dw) = (gpu.buffer(len, "dx").unwrap(), up(&w));
            let parts = bias::parts(rows * heads);
            let mut scratch = gpu.buffer(parts * dim, "scratch").unwrap();
            let norm = weight.map(|w| Norm {
                w,
                inv: inv.slice(),
                dw: Some(Sums { sums: dw.slice_mut(), scratch: scratch.slice_mut() }),
            });
            let out = Output::f32(dx.slice_mut());
            heads::norm_rotate_backward(
                &gpu,
                gx.slice(),
                norm,
                &rope,
                gat.slice(),
                gdy.slice(),
                out,
            )
            .unwrap();
            let loss = |x: &[f64], w: &[f64]| dot(&rotated(x, w, dim, n, &angles, &at), &dy);
            close(&what, &dx.read().unwrap(), &gradient(&x, |x| loss(x, &used)), 1e-5);
            if with_norm {
                let mut expected = gradient(&used, |w| loss(&x, w));
                expected.iter_mut().zip(&used).for_each(|(d, w)| *d += w);
                close(&what, &dw.read().unwrap(), &expected, 1e-5);
            }
        }
    }
}

#[test]
fn a_position_past_the_table_is_not_a_number() {
    let gpu = gpu();
    let rope = Rope::new(&gpu, 4, 1, &table(2, 4, 1)).unwrap();
    let x = gpu.upload(&values(1, 8), "x").unwrap();
    let at = gpu.upload(&[1, 2], "positions").unwrap();
    let mut y = gpu.buffer(8, "y").unwrap();
    let out = Output::f32(y.slice_mut());
    heads::norm_rotate(&gpu, x.slice(), None, 0.0, &rope, at.slice(), out, None).unwrap();
    let nan: Vec<bool> = y.read().unwrap().iter().map(|y| y.is_nan()).collect();
    assert_eq!(nan, [false, false, false, false, true, true, false, false]);
}
