//! Every row-wise kernel against plain f64 arithmetic and central differences, and bit for bit
//! across instruction sets and thread counts.

use super::bias::{add_bias, column_sums};
use super::gated::{Activation, gated, gated_backward};
use super::heads::{Rope, norm_rotate, norm_rotate_backward};
use super::layer_norm::{layer_norm, layer_norm_backward};
use super::{Cpu, embedding, norm, softmax, update};
use crate::Isa;

/// Numbers in (-1, 1) from a linear congruence: no relation to anything in the code under test.
pub(crate) fn noise(seed: u64, n: usize) -> Vec<f32> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..n)
        .map(|_| {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((x >> 40) as f32 / (1u64 << 23) as f32) - 1.0
        })
        .collect()
}

/// Runs a kernel on every available instruction set and 1, 2, 3 threads; checks that all bits
/// agree and returns the result.
pub(crate) fn everywhere(run: impl Fn(&Cpu) -> Vec<f32>) -> Vec<f32> {
    let mut first: Option<Vec<f32>> = None;
    for isa in Isa::ALL.into_iter().filter(|i| i.available()) {
        for threads in [1, 2, 3] {
            let out = run(&Cpu::with(threads, isa));
            match &first {
                None => first = Some(out),
                Some(f) => {
                    let same = f.iter().zip(&out).all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(same, "{} with {threads} threads differs", isa.name());
                }
            }
        }
    }
    first.unwrap_or_default()
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

#[track_caller]
fn close(got: &[f32], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len());
    let scale = want.iter().fold(1e-3f64, |m, x| m.max(x.abs()));
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((f64::from(*g) - w).abs() <= tolerance * scale, "element {i}: {g}, not {w}");
    }
}

/// The gradient of `sum(dy * f(x))` by central differences.
fn differences(x: &[f64], dy: &[f64], f: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
    let h = 1e-5;
    (0..x.len())
        .map(|i| {
            let side = |s: f64| {
                let mut x = x.to_vec();
                x[i] += s * h;
                f(&x).iter().zip(dy).map(|(y, d)| y * d).sum::<f64>()
            };
            (side(1.0) - side(-1.0)) / (2.0 * h)
        })
        .collect()
}

fn rms_reference(x: &[f64], w: &[f64], eps: f64) -> Vec<f64> {
    x.chunks(w.len())
        .flat_map(|row| {
            let mean = row.iter().map(|x| x * x).sum::<f64>() / w.len() as f64;
            let inv = 1.0 / (mean + eps).sqrt();
            row.iter().zip(w).map(move |(x, w)| x * inv * w).collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn rms_norm() {
    for (rows, n) in [(1, 1), (3, 17), (17, 3), (2, 129), (300, 16)] {
        let (x, w, dy) = (noise(1, rows * n), noise(2, n), noise(3, rows * n));
        let eps = 1e-6;
        let y = everywhere(|cpu| {
            let (mut y, mut inv) = (vec![0.0; rows * n], vec![0.0; rows]);
            norm::rms_norm(cpu, &x, &w, eps, &mut y, &mut inv);
            y
        });
        let (fx, fw, fdy) = (wide(&x), wide(&w), wide(&dy));
        close(&y, &rms_reference(&fx, &fw, f64::from(eps)), 1e-6);
        let both = everywhere(|cpu| {
            let (mut y, mut inv) = (vec![0.0; rows * n], vec![0.0; rows]);
            norm::rms_norm(cpu, &x, &w, eps, &mut y, &mut inv);
            let (mut dx, mut dw) = (vec![0.0; rows * n], vec![0.0; n]);
            let mut scratch = vec![0.0; rows.div_ceil(norm::BLOCK) * n];
            norm::rms_norm_backward(cpu, &x, &w, &inv, &dy, &mut dx, &mut dw, &mut scratch);
            dx.extend(dw);
            dx
        });
        if rows * n > 3000 {
            continue; // differences take a while; the blocks are what this size is for
        }
        let dx = differences(&fx, &fdy, |x| rms_reference(x, &fw, f64::from(eps)));
        let dw = differences(&fw, &fdy, |w| rms_reference(&fx, w, f64::from(eps)));
        close(&both[..rows * n], &dx, 1e-4);
        close(&both[rows * n..], &dw, 1e-4);
    }
}

fn rotate_reference(
    x: &[f64],
    hd: usize,
    turned: usize,
    heads: usize,
    base: f64,
    positions: &[u32],
) -> Vec<f64> {
    let mut y = x.to_vec();
    for (t, p) in positions.iter().enumerate() {
        for h in 0..heads {
            let row = &mut y[(t * heads + h) * hd..(t * heads + h + 1) * hd];
            for i in 0..turned / 2 {
                let angle = f64::from(*p) * base.powf(-2.0 * i as f64 / turned as f64);
                let (a, b) = (row[i], row[i + turned / 2]);
                row[i] = a * angle.cos() - b * angle.sin();
                row[i + turned / 2] = a * angle.sin() + b * angle.cos();
            }
        }
    }
    y
}

#[test]
fn heads_are_normalised_and_rotated() {
    for (rows, heads, hd, normed, still) in [
        (1, 1, 2, true, 0),
        (5, 3, 6, true, 0),
        (9, 2, 34, false, 0),
        (3, 1, 64, true, 0),
        (5, 2, 20, false, 4),
        (70, 1, 40, true, 6),
    ] {
        let n = rows * heads * hd;
        let (x, dy) = (noise(4, n), noise(5, n));
        let w = if normed { noise(6, hd) } else { vec![] };
        let positions: Vec<u32> = (0..rows as u32).map(|p| p * 17 % 611).collect();
        let turned = hd - still;
        let frequency = |i: usize| 1e4f64.powf(-2.0 * i as f64 / turned as f64);
        let rope = Rope::with(611, hd, (0..turned / 2).map(frequency).collect(), 1.0);
        let eps = 1e-6f32;
        let reference = |x: &[f64], w: &[f64]| {
            let x = if normed { rms_reference(x, w, f64::from(eps)) } else { x.to_vec() };
            rotate_reference(&x, hd, turned, heads, 1e4, &positions)
        };
        let invs = if normed { rows * heads } else { 0 };
        let y = everywhere(|cpu| {
            let (mut y, mut inv) = (vec![0.0; n], vec![0.0; invs]);
            norm_rotate(cpu, &x, &w, eps, &rope, &positions, &mut y, &mut inv);
            y
        });
        let (fx, fw, fdy) = (wide(&x), wide(&w), wide(&dy));
        close(&y, &reference(&fx, &fw), 1e-6);
        let both = everywhere(|cpu| {
            let (mut y, mut inv) = (vec![0.0; n], vec![0.0; invs]);
            norm_rotate(cpu, &x, &w, eps, &rope, &positions, &mut y, &mut inv);
            let (mut dx, mut dw) = (vec![0.0; n], vec![0.0; w.len()]);
            let mut scratch = vec![0.0; rows.div_ceil(norm::BLOCK) * w.len()];
            norm_rotate_backward(
                cpu,
                &x,
                &w,
                &inv,
                &rope,
                &positions,
                &dy,
                &mut dx,
                &mut dw,
                &mut scratch,
            );
            dx.extend(dw);
            dx
        });
        close(&both[..n], &differences(&fx, &fdy, |x| reference(x, &fw)), 1e-4);
        close(&both[n..], &differences(&fw, &fdy, |w| reference(&fx, w)), 1e-4);
    }
}

fn activation(f: Activation, x: f64) -> f64 {
    match f {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Gelu => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            x / 2.0 * (1.0 + inner.tanh())
        }
    }
}

#[test]
fn gates() {
    for f in [Activation::Silu, Activation::Gelu] {
        for n in [1, 3, 17, 129, 5000] {
            let (g, u, dy) = (noise(7, n), noise(8, n), noise(9, n));
            let g: Vec<f32> = g.iter().map(|x| x * 8.0).collect();
            let reference = |g: &[f64], u: &[f64]| -> Vec<f64> {
                g.iter().zip(u).map(|(g, u)| activation(f, *g) * u).collect()
            };
            let out = everywhere(|cpu| {
                let [mut y, mut dg, mut du] = [0; 3].map(|_| vec![0.0; n]);
                gated(cpu, f, &g, Some(&u), &mut y);
                gated_backward(cpu, f, &g, Some((&u, &mut du)), &dy, &mut dg);
                [y, dg, du].concat()
            });
            let (fg, fu, fdy) = (wide(&g), wide(&u), wide(&dy));
            close(&out[..n], &reference(&fg, &fu), 1e-6);
            let alone = everywhere(|cpu| {
                let [mut y, mut dg] = [0; 2].map(|_| vec![0.0; n]);
                gated(cpu, f, &g, None, &mut y);
                gated_backward(cpu, f, &g, None, &dy, &mut dg);
                [y, dg].concat()
            });
            let one = vec![1.0; n];
            close(&alone[..n], &reference(&fg, &one), 1e-6);
            if n < 1000 {
                close(&out[n..2 * n], &differences(&fg, &fdy, |g| reference(g, &fu)), 1e-4);
                close(&out[2 * n..], &differences(&fu, &fdy, |u| reference(&fg, u)), 1e-4);
                close(&alone[n..], &differences(&fg, &fdy, |g| reference(g, &one)), 1e-4);
            }
        }
    }
}

#[test]
fn layer_norms() {
    for (rows, n) in [(1, 2), (3, 17), (17, 3), (2, 129), (300, 16)] {
        let (x, w, b, dy) = (noise(1, rows * n), noise(2, n), noise(3, n), noise(4, rows * n));
        let eps = 1e-5;
        let reference = |x: &[f64], w: &[f64], b: &[f64]| -> Vec<f64> {
            x.chunks(n)
                .flat_map(|row| {
                    let mean = row.iter().sum::<f64>() / n as f64;
                    let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
                    let inv = 1.0 / (variance + f64::from(eps)).sqrt();
                    let unit = row.iter().map(move |x| (x - mean) * inv);
                    unit.zip(w).zip(b).map(|((x, w), b)| x * w + b).collect::<Vec<_>>()
                })
                .collect()
        };
        let out = everywhere(|cpu| {
            let [mut y, mut dx] = [0; 2].map(|_| vec![0.0; rows * n]);
            let [mut dw, mut db] = [0; 2].map(|_| vec![0.0; n]);
            let mut stats = vec![0.0; 2 * rows];
            let mut partial = vec![0.0; rows.div_ceil(norm::BLOCK) * 2 * n];
            layer_norm(cpu, &x, (&w, &b), eps, &mut y, &mut stats);
            layer_norm_backward(cpu, &x, &w, &stats, &dy, &mut dx, &mut dw, &mut db, &mut partial);
            [y, dx, dw, db].concat()
        });
        let (fx, fw, fb, fdy) = (wide(&x), wide(&w), wide(&b), wide(&dy));
        let (y, rest) = out.split_at(rows * n);
        let (dx, rest) = rest.split_at(rows * n);
        close(y, &reference(&fx, &fw, &fb), 1e-5);
        close(dx, &differences(&fx, &fdy, |x| reference(x, &fw, &fb)), 1e-3);
        close(&rest[..n], &differences(&fw, &fdy, |w| reference(&fx, w, &fb)), 1e-4);
        close(&rest[n..], &differences(&fb, &fdy, |b| reference(&fx, &fw, b)), 1e-4);
    }
}

#[test]
fn biases_and_caps() {
    for (rows, n) in [(1, 1), (3, 17), (129, 33)] {
        let (b, x) = (noise(1, n), noise(2, rows * n));
        let out = everywhere(|cpu| {
            let (mut y, mut z, mut sums) = (x.clone(), x.clone(), b.clone());
            add_bias(cpu, &b, &mut y, true);
            add_bias(cpu, &b, &mut z, false);
            column_sums(cpu, &x, &mut sums);
            let mut capped: Vec<f32> = x.iter().map(|x| x * 90.0).collect();
            super::cap::cap(cpu, 30.0, &mut capped);
            [y, z, capped, sums].concat()
        });
        let (fx, fb) = (wide(&x), wide(&b));
        let mut sums = fb.clone();
        (0..rows * n).for_each(|i| sums[i % n] += fx[i]);
        let want: Vec<f64> = (0..rows * n)
            .map(|i| fx[i] + fb[i % n])
            .chain((0..rows * n).map(|i| fb[i % n]))
            .chain(fx.iter().map(|x| 30.0 * (x * 3.0).tanh()))
            .chain(sums)
            .collect();
        close(&out, &want, 1e-6);
    }
}

#[test]
fn embeddings() {
    let (vocab, width) = (7, 33);
    let ids = [3u32, 0, 3, 6, 6, 6];
    let (table, dy) = (noise(10, vocab * width), noise(11, ids.len() * width));
    let out = everywhere(|cpu| {
        let (mut y, mut dt) = (vec![0.0; ids.len() * width], vec![0.5; vocab * width]);
        embedding::embedding(cpu, &table, &ids, width, &mut y);
        embedding::embedding_backward(cpu, &dy, &ids, width, &mut dt);
        [y, dt].concat()
    });
    for (r, id) in ids.iter().enumerate() {
        let row = &table[*id as usize * width..][..width];
        assert_eq!(&out[r * width..(r + 1) * width], row);
    }
    let mut want = vec![0.5f64; vocab * width];
    for (r, id) in ids.iter().enumerate() {
        for c in 0..width {
            want[*id as usize * width + c] += f64::from(dy[r * width + c]);
        }
    }
    close(&out[ids.len() * width..], &want, 1e-6);
}

#[test]
fn cross_entropy() {
    for (rows, vocab) in [(1, 1), (3, 17), (17, 3), (5, 129), (2, 2048)] {
        let logits: Vec<f32> = noise(12, rows * vocab).iter().map(|x| x * 20.0).collect();
        let targets: Vec<u32> = (0..rows).map(|r| (r * 7 % vocab) as u32).collect();
        let weights = noise(13, rows);
        let reference = |l: &[f64]| -> Vec<f64> {
            l.chunks(vocab)
                .zip(&targets)
                .map(|(l, t)| {
                    let max = l.iter().fold(f64::MIN, |m, x| m.max(*x));
                    let sum: f64 = l.iter().map(|x| (x - max).exp()).sum();
                    max + sum.ln() - l[*t as usize]
                })
                .collect()
        };
        let out = everywhere(|cpu| {
            let (mut l, mut nll) = (logits.clone(), vec![0.0; rows]);
            softmax::cross_entropy(cpu, &mut l, &targets, &weights, &mut nll);
            let (mut l2, mut nll2) = (logits.clone(), vec![0.0; rows]);
            softmax::cross_entropy(cpu, &mut l2, &targets, &[], &mut nll2);
            assert_eq!((&nll, &l2), (&nll2, &logits), "without weights, logits stay");
            [nll, l].concat()
        });
        let (fl, fw) = (wide(&logits), wide(&weights));
        close(&out[..rows], &reference(&fl), 1e-6);
        if rows * vocab < 1000 {
            close(&out[rows..], &differences(&fl, &fw, reference), 1e-4);
        }
    }
}

#[test]
fn adamw_follows_its_definition() {
    let n = 100;
    let s = |step| update::AdamW {
        lr: 0.1,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
        step,
    };
    let x = everywhere(|cpu| {
        let (mut x, mut m, mut v) = (noise(14, n), vec![0.0; n], vec![0.0; n]);
        for step in 1..=5 {
            update::adamw(cpu, s(step), &mut x, &noise(20 + step, n), &mut m, &mut v);
        }
        x
    });
    let (mut want, mut m, mut v) = (wide(&noise(14, n)), vec![0.0; n], vec![0.0; n]);
    for step in 1..=5i32 {
        for (i, g) in wide(&noise(20 + step as u64, n)).into_iter().enumerate() {
            m[i] = 0.9 * m[i] + 0.1 * g;
            v[i] = 0.95 * v[i] + 0.05 * g * g;
            let (m, v) = (m[i] / (1.0 - 0.9f64.powi(step)), v[i] / (1.0 - 0.95f64.powi(step)));
            want[i] = want[i] * (1.0 - 0.1 * 0.1) - 0.1 * m / (v.sqrt() + 1e-8);
        }
    }
    close(&x, &want, 1e-5);
}

#[test]
fn squared_norm_and_axpby() {
    let x = noise(15, 10_001);
    let want: f64 = wide(&x).iter().map(|x| x * x).sum();
    let out = everywhere(|cpu| {
        let mut y = noise(16, x.len());
        update::axpby(cpu, 0.5, &x, 2.0, &mut y);
        y.push(update::squared_norm(cpu, &x) as f32);
        y
    });
    let y: Vec<f64> = x
        .iter()
        .zip(noise(16, x.len()))
        .map(|(x, y)| 0.5 * f64::from(*x) + 2.0 * f64::from(y))
        .collect();
    close(&out[..x.len()], &y, 1e-6);
    close(&out[x.len()..], &[want], 1e-6);
}
