//! Products against plain chains and f64, bit for bit where that is promised.

use super::*;
use crate::Isa;
use crate::cpu::tests::{everywhere, noise};

const SHAPES: [[usize; 3]; 7] =
    [[1, 1, 1], [3, 17, 129], [17, 129, 3], [129, 3, 17], [9, 49, 260], [64, 96, 128], [1, 200, 0]];

/// A matrix `[rows, cols]` laid out either way, with rows two elements longer than needed.
fn operand(data: &[f32], rows: usize, cols: usize, transposed: bool) -> (Vec<f32>, usize) {
    let (outer, inner) = if transposed { (cols, rows) } else { (rows, cols) };
    let stride = inner + 2;
    let mut out = vec![f32::NAN; outer * stride];
    for o in 0..outer {
        for i in 0..inner {
            let (r, c) = if transposed { (i, o) } else { (o, i) };
            out[o * stride + i] = data[r * cols + c];
        }
    }
    (out, stride)
}

#[test]
fn f32_is_one_chain_of_fused_multiply_adds() {
    for [m, n, k] in SHAPES {
        let (a, b, c0) = (noise(1, m * k), noise(2, k * n), noise(3, m * n));
        for accumulate in [false, true] {
            let mut want = if accumulate { c0.clone() } else { vec![0.0; m * n] };
            for (i, w) in want.iter_mut().enumerate() {
                for kk in 0..k {
                    *w = a[i / n * k + kk].mul_add(b[kk * n + i % n], *w);
                }
            }
            for (ta, tb) in [(false, false), (false, true), (true, false), (true, true)] {
                let (pa, sa) = operand(&a, m, k, ta);
                let (pb, sb) = operand(&b, k, n, tb);
                let ma = Mat { data: &pa[..], stride: sa, transposed: ta };
                let mb = Mat { data: &pb[..], stride: sb, transposed: tb };
                let got = everywhere(|cpu| {
                    let mut c = c0.clone();
                    gemm(cpu, m, n, k, ma, mb, &mut c, n, accumulate);
                    c
                });
                assert_eq!(got, want, "{m} x {n} x {k}, transposed {ta} {tb}");
                if !ta {
                    let got = everywhere(|cpu| {
                        let packed = Packed::new(cpu, k, n, mb, false);
                        let mut c = c0.clone();
                        let rows = Rows::F32 { data: &pa, stride: sa };
                        gemm_packed(cpu, m, n, k, rows, &packed, &mut c, n, accumulate);
                        c
                    });
                    assert_eq!(got, want);
                }
            }
        }
    }
}

#[test]
fn bf16_is_close_and_does_not_depend_on_threads() {
    for [m, n, k] in SHAPES {
        let half = |x: Vec<f32>| -> (Vec<f32>, Vec<u16>) {
            let h: Vec<_> = x.iter().map(|x| half::bf16::from_f32(*x)).collect();
            (h.iter().map(|h| h.to_f32()).collect(), h.iter().map(|h| h.to_bits()).collect())
        };
        let ((a, ha), (b, hb)) = (half(noise(4, m * k)), half(noise(5, k * n)));
        for isa in Isa::ALL.into_iter().filter(|i| i.available()) {
            let mut first = None;
            for threads in [1, 2, 3] {
                let cpu = Cpu::with(threads, isa);
                let mut c = vec![1.0; m * n];
                let ma = Mat { data: &ha[..], stride: k, transposed: false };
                let mb = Mat { data: &hb[..], stride: n, transposed: false };
                gemm_bf16(&cpu, m, n, k, ma, mb, &mut c, n, true);
                for (i, c) in c.iter().enumerate() {
                    let products = (0..k)
                        .map(|kk| f64::from(a[i / n * k + kk]) * f64::from(b[kk * n + i % n]));
                    let want = 1.0 + products.sum::<f64>();
                    assert!((f64::from(*c) - want).abs() < 1e-4, "{c}, not {want}");
                }
                // The same from a packed operand, and from transposed ones.
                let (fb, sb) = operand(&b, k, n, true);
                let mb = Mat { data: &fb[..], stride: sb, transposed: true };
                let packed = Packed::new(&cpu, k, n, mb, true);
                let mut d = vec![1.0; m * n];
                let rows = Rows::Bf16 { data: &ha, stride: k };
                gemm_packed(&cpu, m, n, k, rows, &packed, &mut d, n, true);
                assert_eq!(c, d);
                let (fa, sa) = operand(&a, m, k, true);
                let ta: Vec<u16> = fa.iter().map(|x| half::bf16::from_f32(*x).to_bits()).collect();
                let ma = Mat { data: &ta[..], stride: sa, transposed: true };
                let mb = Mat { data: &hb[..], stride: n, transposed: false };
                let mut e = vec![1.0; m * n];
                gemm_bf16(&cpu, m, n, k, ma, mb, &mut e, n, true);
                assert_eq!(c, e);
                assert_eq!(*first.get_or_insert(c.clone()), c, "{threads} threads");
            }
        }
    }
}

/// Several blocks of k, several slices, and rows a multiple of 4 KiB apart.
#[test]
fn long_chains_are_not_split() {
    for [m, n, k, stride] in [[17, 1283, 513, 514], [31, 33, 1030, 2048]] {
        let (a, b) = (noise(6, m * stride), noise(7, k * n));
        let c0 = noise(8, m * n);
        let ma = Mat { data: &a[..], stride, transposed: false };
        let mb = Mat { data: &b[..], stride: n, transposed: false };
        // The same elements with rows as columns.
        let turned = transposed_copy(&a, m, k, stride);
        let ta = Mat { data: &turned[..], stride: m, transposed: true };
        let half = |x: &[f32]| -> Vec<u16> {
            x.iter().map(|x| half::bf16::from_f32(*x).to_bits()).collect()
        };
        let (ha, ht, hb) = (half(&a), half(&turned), half(&b));
        let wide = |x: &[u16]| -> Vec<f32> {
            x.iter().map(|x| half::bf16::from_bits(*x).to_f32()).collect()
        };
        let (wa, wb) = (wide(&ha), wide(&hb));
        let mut want = c0.clone();
        let mut rough = vec![0f64; m * n];
        for i in 0..m * n {
            for kk in 0..k {
                let (x, y) = (i / n * stride + kk, kk * n + i % n);
                want[i] = a[x].mul_add(b[y], want[i]);
                rough[i] += f64::from(wa[x]) * f64::from(wb[y]);
            }
        }
        for isa in Isa::ALL.into_iter().filter(|i| *i > Isa::Portable && i.available()) {
            for threads in [1, 3] {
                let cpu = Cpu::with(threads, isa);
                for a in [ma, ta] {
                    let mut c = c0.clone();
                    gemm(&cpu, m, n, k, a, mb, &mut c, n, true);
                    assert_eq!(c, want, "{} {threads}", isa.name());
                }
                let packed = Packed::new(&cpu, k, n, mb, false);
                let mut c = c0.clone();
                let rows = Rows::F32 { data: &a, stride };
                gemm_packed(&cpu, m, n, k, rows, &packed, &mut c, n, true);
                assert_eq!(c, want, "{} {threads}, packed", isa.name());

                let mut c = vec![0.0; m * n];
                let rows = Rows::Bf16 { data: &ha, stride };
                let packed = Packed::new(&cpu, k, n, mb, true);
                gemm_packed(&cpu, m, n, k, rows, &packed, &mut c, n, false);
                for (c, want) in c.iter().zip(&rough) {
                    assert!((f64::from(*c) - want).abs() < 2e-4, "{c}, not {want}");
                }
                let mut d = vec![f32::NAN; m * n];
                let a = Mat { data: &ht[..], stride: m, transposed: true };
                let b = Mat { data: &hb[..], stride: n, transposed: false };
                gemm_bf16(&cpu, m, n, k, a, b, &mut d, n, false);
                assert_eq!(c, d, "{} {threads}, bf16", isa.name());
            }
        }
    }
}

fn transposed_copy(a: &[f32], rows: usize, columns: usize, stride: usize) -> Vec<f32> {
    let mut out = vec![0.0; rows * columns];
    for r in 0..rows {
        for c in 0..columns {
            out[c * rows + r] = a[r * stride + c];
        }
    }
    out
}

#[test]
fn rows_of_c_may_be_further_apart() {
    let (m, n, k, ldc) = (15, 35, 20, 41);
    let (a, b) = (noise(1, m * k), noise(2, k * n));
    let got = everywhere(|cpu| {
        let mut c = vec![7.0; (m - 1) * ldc + n];
        let a = Mat { data: &a[..], stride: k, transposed: false };
        let b = Mat { data: &b[..], stride: n, transposed: false };
        gemm(cpu, m, n, k, a, b, &mut c, ldc, false);
        c
    });
    for (i, got) in got.iter().enumerate() {
        let (r, c) = (i / ldc, i % ldc);
        let chain = |sum, kk: usize| a[r * k + kk].mul_add(b[kk * n + c], sum);
        let want = if c < n { (0..k).fold(0.0, chain) } else { 7.0 };
        assert_eq!(*got, want, "row {r}, column {c}");
    }
}

/// Weights read as they are stored give the bits that they give widened and packed, to and fro.
#[test]
fn narrow_weights_give_the_bits_of_widened_ones() {
    use crate::blocks::BlockType::{BF16, F16};
    use crate::strips::tests::{KINDS, random, strips};
    let mut rng = crate::rng::Rng::new(7);
    for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
        let mut cpu = Cpu::new(2);
        cpu.isa = isa;
        for (i, kind) in KINDS.into_iter().chain([F16, BF16]).enumerate() {
            let shapes = match kind.elements() {
                1 => [(7, 40), (70, 1039), (33, 1024), (300, 65)],
                _ => [(7, 256), (70, 1280), (33, 512), (300, 768)],
            };
            for (j, (n, k)) in shapes.into_iter().enumerate() {
                let m = [1, 2, 3, 40][(i + j) % 4];
                let data = random(kind, n, k, &mut rng);
                let w = strips(&cpu, kind, n, k, &data);
                let mut wide = vec![0.0; n * k];
                kind.widen(&data, &mut wide);
                let label = format!("{} {m} x {k} x {n} {}", kind.name(), isa.name());

                let x: Vec<f32> = (0..m * k).map(|_| rng.normal()).collect();
                let (mut y, mut want) = (vec![1.0; m * n], vec![1.0; m * n]);
                let rows = Rows::F32 { data: &x, stride: k };
                gemm_strips(&cpu, m, rows, &w, &mut y, true);
                let a = Mat { data: &x[..], stride: k, transposed: false };
                let b = Mat { data: &wide[..], stride: k, transposed: true };
                gemm(&cpu, m, n, k, a, b, &mut want, n, true);
                assert_eq!(y, want, "{label}");

                let dy: Vec<f32> = (0..m * n).map(|_| rng.normal()).collect();
                let (mut dx, mut want) = (vec![1.0; m * k], vec![1.0; m * k]);
                let mut scratch = vec![f32::NAN; [16, 48, 304][j % 3] * k];
                gemm_strips_turned(&cpu, m, &dy, &w, &mut scratch, &mut dx, j % 2 == 0);
                let a = Mat { data: &dy[..], stride: n, transposed: false };
                let b = Mat { data: &wide[..], stride: k, transposed: false };
                gemm(&cpu, m, k, n, a, b, &mut want, k, j % 2 == 0);
                assert_eq!(dx, want, "{label}, turned");
            }
        }
    }
}

/// Pairs of a BF16 weight where it lies give the bits of packed ones, for few rows and for many.
#[test]
fn pairs_give_the_bits_of_packed_ones() {
    use crate::blocks::BlockType::BF16;
    use crate::strips::tests::{random, strips};
    let mut rng = crate::rng::Rng::new(8);
    for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
        let mut cpu = Cpu::new(2);
        cpu.isa = isa;
        for (n, k) in [(7, 40), (70, 1038), (33, 1024), (300, 66)] {
            let data = random(BF16, n, k, &mut rng);
            let w = strips(&cpu, BF16, n, k, &data);
            let b: Vec<u16> =
                data.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b)).collect();
            let b = Mat { data: &b[..], stride: k, transposed: true };
            for m in [1, 2, 3, 5, 16, 40] {
                let x: Vec<f32> = (0..m * k).map(|_| rng.normal()).collect();
                let mut half = vec![0; m * k];
                to_bf16(&cpu, &x, &mut half);
                let (mut y, mut want) = (vec![1.0; m * n], vec![1.0; m * n]);
                let rows = Rows::Bf16 { data: &half, stride: k };
                gemm_strips(&cpu, m, rows, &w, &mut y, true);
                let a = Mat { data: &half[..], stride: k, transposed: false };
                gemm_bf16(&cpu, m, n, k, a, b, &mut want, n, true);
                assert_eq!(y, want, "{m} x {k} x {n}, {}", isa.name());
            }
        }
    }
}
