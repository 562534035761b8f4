//! Steps of optimizers on the emulator: AdamW to the bit, Muon against f64 that is rounded where it is.
#![allow(clippy::unwrap_used)]

mod common;

use common::{bf16, from_bf16, gpu, values};
use cuda::ops::optimizer::{self, AdamW, Gradient, Muon, Parameter, Scratch};
use cuda::ops::update::{parts, squared_norm};

/// AdamW in f32, as the CPU does it.
fn plain_adamw(s: AdamW, factor: f32, x: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
    let corrected = |beta: f32| 1.0 - libm::pow(f64::from(beta), s.step as f64);
    let rate = -(f64::from(s.lr) / corrected(s.beta1)) as f32;
    let root = (1.0 / corrected(s.beta2)) as f32;
    for i in 0..x.len() {
        let g = factor * g[i];
        m[i] = s.beta1.mul_add(m[i], (1.0 - s.beta1) * g);
        v[i] = s.beta2.mul_add(v[i], (1.0 - s.beta2) * (g * g));
        let step = m[i] / ((v[i] * root).sqrt() + s.eps);
        x[i] = rate.mul_add(step, (1.0 - s.lr * s.weight_decay) * x[i]);
    }
}

#[test]
fn adamw_has_the_bits_of_the_cpus() {
    let gpu = gpu();
    for (len, offset, decay) in [(1, 0, 0.0), (777, 0, 0.1), (4096, 4, 0.0), (1030, 3, 0.1)] {
        let settings = |step| AdamW {
            lr: 3e-3,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-10,
            weight_decay: decay,
            step,
        };
        let (mut x, mut m, mut v) = (values(1, len), vec![0.0; len], vec![0.0; len]);
        let mut wide = vec![9.0; offset];
        wide.extend_from_slice(&x);
        let mut dx = gpu.upload(&wide, "x").unwrap();
        let mut dx16 = gpu.zeros::<u16>(offset + len, "x16").unwrap();
        let (mut dm, mut dv) = (gpu.zeros(len, "m").unwrap(), gpu.zeros(len, "v").unwrap());
        for step in 1..=3 {
            let g = values(10 + step, len);
            let dg = gpu.upload(&g, "g").unwrap();
            // The second step has no factor, the third no copy.
            let factor = if step == 2 { 1.0 } else { 0.37 };
            let dfactor = gpu.upload(&[factor], "factor").unwrap();
            plain_adamw(settings(step), factor, &mut x, &g, &mut m, &mut v);
            let parameter = Parameter {
                value: dx.part_mut(offset..),
                bf16: (step < 3).then(|| dx16.part_mut(offset..)),
            };
            let gradient =
                Gradient { value: dg.slice(), factor: (step != 2).then(|| dfactor.slice()) };
            optimizer::adamw(
                &gpu,
                settings(step),
                parameter,
                gradient,
                dm.slice_mut(),
                dv.slice_mut(),
            )
            .unwrap();
            assert_eq!(dx.part(offset..).read().unwrap(), x, "{len}, step {step}");
            assert_eq!(dm.read().unwrap(), m);
            assert_eq!(dv.read().unwrap(), v);
            if step < 3 {
                let rounded: Vec<u16> = x.iter().map(|x| bf16(*x)).collect();
                assert_eq!(dx16.part(offset..).read().unwrap(), rounded);
            }
        }
        assert_eq!(dx.part(..offset).read().unwrap(), vec![9.0; offset]);
    }
}

#[test]
fn gradients_of_all_parameters_are_clipped() {
    let gpu = gpu();
    let lens = [3, 70_000, 1, 66_001];
    let gradients: Vec<Vec<f32>> = lens.iter().map(|&len| values(len as u64, len)).collect();
    let all: usize = lens.iter().map(|&len| parts(len)).sum();
    let mut sums = gpu.buffer(all, "sums").unwrap();
    let mut start = 0;
    for g in &gradients {
        let end = start + parts(g.len());
        let g = gpu.upload(g, "g").unwrap();
        squared_norm(&gpu, g.slice(), sums.part_mut(start..end)).unwrap();
        start = end;
    }
    let squares = gradients.iter().flatten().map(|g| f64::from(*g).powi(2));
    let norm = squares.sum::<f64>().sqrt();
    let mut to = gpu.buffer(2, "clip").unwrap();
    for limit in [0.0, 1.0, norm as f32 * 1.1] {
        optimizer::clip(&gpu, sums.slice(), limit, to.slice_mut()).unwrap();
        let got = to.read().unwrap();
        let factor = if limit == 1.0 { 1.0 / norm } else { 1.0 };
        assert!((f64::from(got[0]) / norm - 1.0).abs() < 1e-6, "{got:?}, norm {norm}");
        assert!((f64::from(got[1]) / factor - 1.0).abs() < 1e-6, "{got:?}, norm {norm}");
        // Again, with threads in the other order.
        optimizer::clip(&gpu, sums.slice(), limit, to.slice_mut()).unwrap();
        assert_eq!(to.read().unwrap(), got);
    }
    // Many sums, and none.
    let many: Vec<f32> = values(5, 3001).iter().map(|x| x.abs()).collect();
    let norm = many.iter().map(|x| f64::from(*x)).sum::<f64>().sqrt();
    let many = gpu.upload(&many, "sums").unwrap();
    optimizer::clip(&gpu, many.slice(), 0.5, to.slice_mut()).unwrap();
    let got = to.read().unwrap();
    assert!((f64::from(got[0]) / norm - 1.0).abs() < 1e-7, "{got:?}, norm {norm}");
    assert!((f64::from(got[1]) * norm / 0.5 - 1.0).abs() < 1e-7, "{got:?}, norm {norm}");
    optimizer::clip(&gpu, many.part(..0), 0.5, to.slice_mut()).unwrap();
    assert_eq!(to.read().unwrap(), [0.0, 1.0]);
}

/// `a b`, `[m, k]` and `[k, n]`.
fn product(
    a: impl Fn(usize, usize) -> f64,
    b: impl Fn(usize, usize) -> f64,
    [m, k, n]: [usize; 3],
) -> Vec<f64> {
    let at = |i: usize| (0..k).map(|j| a(i / n, j) * b(j, i % n)).sum();
    (0..m * n).map(at).collect()
}

/// What Muon makes of `g + μ momentum`, in f64; rounded to bf16 where operands are, if `rounds`.
fn orthogonal(u: &[f64], rows: usize, cols: usize, rounds: bool) -> Vec<f64> {
    let round = |x: f64| if rounds { f64::from(from_bf16(bf16(x as f32))) } else { x };
    let norm = u.iter().map(|u| u * u).sum::<f64>().sqrt();
    let mut x: Vec<f64> = u.iter().map(|u| round(u / norm)).collect();
    let short = rows.min(cols);
    for step in 0..5 {
        let at = |r: usize, c: usize| x[r * cols + c];
        let gram = if rows > cols {
            product(|i, j| at(j, i), at, [short, rows, short])
        } else {
            product(at, |i, j| at(j, i), [short, cols, short])
        };
        let low = |i: usize, j: usize| round(gram[i * short + j]);
        let square = product(low, low, [short; 3]);
        let p = |i: usize, j: usize| {
            let at = i * short + j;
            round(-4.7750 * gram[at] + 2.0315 * square[at])
        };
        let next = if rows > cols {
            product(at, p, [rows, cols, cols])
        } else {
            product(p, at, [rows, rows, cols])
        };
        let last = step == 4;
        let sum = |(x, next): (&f64, &f64)| 3.4445 * x + next;
        x = x.iter().zip(&next).map(sum).map(|x| if last { x } else { round(x) }).collect();
    }
    x
}

#[test]
fn muon_steps_are_orthogonal() {
    let gpu = gpu();
    for [rows, cols] in [[12, 12], [41, 12], [9, 130], [1, 5], [64, 48]] {
        let n = rows * cols;
        let s = Muon { lr: 0.02, momentum: 0.95, weight_decay: 0.1 };
        let mut scratch = Scratch::new(&gpu, [[7, 3], [rows, cols]]).unwrap();
        let w = values(1, n);
        let mut dw = gpu.upload(&w, "w").unwrap();
        let mut dw16 = gpu.zeros::<u16>(n, "w16").unwrap();
        let mut dm = gpu.zeros(n, "momentum").unwrap();
        let factor = gpu.upload(&[0.25f32], "factor").unwrap();
        let (mut w, mut m) = (common::wide(&w), vec![0.0f32; n]);
        for step in 0..2 {
            let g = values(20 + step, n);
            let dg = gpu.upload(&g, "g").unwrap();
            let parameter = Parameter { value: dw.slice_mut(), bf16: Some(dw16.slice_mut()) };
            let gradient = Gradient { value: dg.slice(), factor: Some(factor.slice()) };
            let before = (parameter.value.as_slice().read().unwrap(), dm.read().unwrap());
            optimizer::muon(
                &gpu,
                s,
                [rows, cols],
                parameter,
                gradient,
                dm.slice_mut(),
                &mut scratch,
            )
            .unwrap();
            let mut u = vec![0.0; n];
            for i in 0..n {
                let g = 0.25 * g[i];
                m[i] = g + s.momentum * m[i];
                u[i] = f64::from(s.momentum.mul_add(m[i], g));
            }
            assert_eq!(dm.read().unwrap(), m, "[{rows}, {cols}]");
            let rate = f64::from(s.lr) * (rows as f64 / cols as f64).max(1.0).sqrt();
            let (u, exact) = (orthogonal(&u, rows, cols, true), orthogonal(&u, rows, cols, false));
            let got = dw.read().unwrap();
            let size = rate * u.iter().fold(0.0f64, |most, u| most.max(u.abs()));
            for i in 0..n {
                let kept = (1.0 - 0.02 * 0.1) * w[i];
                let apart = |u: f64| (f64::from(got[i]) - (kept - rate * u)).abs() / size;
                assert!(apart(u[i]) < 0.03, "[{rows}, {cols}] {i}: {}", apart(u[i]));
                assert!(apart(exact[i]) < 0.05, "[{rows}, {cols}] {i}: {}", apart(exact[i]));
            }
            assert!(dw16.read().unwrap().iter().zip(&got).all(|(a, b)| *a == bf16(*b)));
            // Again from the same start.
            let (w_before, m_before) = before;
            dw.slice_mut().write(&w_before).unwrap();
            dm.slice_mut().write(&m_before).unwrap();
            let parameter = Parameter { value: dw.slice_mut(), bf16: None };
            optimizer::muon(
                &gpu,
                s,
                [rows, cols],
                parameter,
                gradient,
                dm.slice_mut(),
                &mut scratch,
            )
            .unwrap();
            assert_eq!(dw.read().unwrap(), got);
            w = common::wide(&got);
        }
    }
}

#[test]
fn muon_takes_rounding_errors_for_nothing() {
    let gpu = gpu();
    let s = Muon { lr: 0.5, momentum: 0.9, weight_decay: 0.5 };
    let mut scratch = Scratch::new(&gpu, [[6, 4]]).unwrap();
    let mut w = gpu.upload(&values(1, 24), "w").unwrap();
    let before = w.read().unwrap();
    let g = gpu.upload(&[1e-9f32; 24], "g").unwrap();
    let mut m = gpu.zeros(24, "momentum").unwrap();
    let parameter = Parameter { value: w.slice_mut(), bf16: None };
    let gradient = Gradient { value: g.slice(), factor: None };
    optimizer::muon(&gpu, s, [6, 4], parameter, gradient, m.slice_mut(), &mut scratch).unwrap();
    let kept: Vec<f32> = before.iter().map(|w| 0.75 * w).collect();
    assert_eq!(w.read().unwrap(), kept);
}
