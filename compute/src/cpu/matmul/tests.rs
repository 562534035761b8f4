//! Products against plain chains and f64, bit for bit where that is promised.

use super::*;
use crate::Pool;
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
                let cpu = Cpu { pool: Pool::new(threads), isa };
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
