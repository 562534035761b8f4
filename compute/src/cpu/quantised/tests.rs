use super::*;
use crate::Isa;
use crate::blocks::BlockType;
use crate::rng::Rng;
use crate::strips::tests::{KINDS, random, strips};

struct Rounded {
    codes: Vec<u8>,
    numbers: Vec<f32>,
}

fn rounded(cpu: &Cpu, x: &[f32], cols: usize) -> Rounded {
    let (rows, layout) = (x.len() / cols, Layout::new(cols));
    let mut codes = vec![0; rows * layout.codes()];
    let mut numbers = vec![0.0; rows * layout.numbers()];
    quantise(cpu, x, cols, &mut codes, &mut numbers);
    Rounded { codes, numbers }
}

fn on(isa: Isa, threads: usize) -> Cpu {
    let mut cpu = Cpu::new(threads);
    cpu.isa = isa;
    cpu
}

/// Against f64 sums of rounded activations and widened weights, on every instruction set, whose
/// bits must agree; few rows give what they give among others.
#[test]
fn products_are_those_of_the_widened_weights() {
    let mut rng = Rng::new(2);
    for kind in KINDS {
        let (m, n, k) = (9, 71, 1280);
        let layout = Layout::new(k);
        let data = random(kind, n, k, &mut rng);
        let mut wide = vec![0.0; n * k];
        kind.widen(&data, &mut wide);
        let x: Vec<f32> = (0..m * k).map(|_| rng.normal()).collect();
        let mut first: Option<Vec<u32>> = None;
        for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
            let cpu = on(isa, 1 + isa as usize % 3);
            let w = strips(&cpu, kind, n, k, &data);
            let q = rounded(&cpu, &x, k);
            let start: Vec<f32> = (0..m * n).map(|i| i as f32 / 100.0).collect();
            let mut y = start.clone();
            product(&cpu, m, &q.codes, &q.numbers, &w, &mut y, true);

            for (r, c) in (0..m).flat_map(|r| (0..n).map(move |c| (r, c))) {
                let mut sum = f64::from(start[r * n + c]);
                let mut size = sum.abs();
                let numbers = &q.numbers[r * layout.numbers()..][..layout.numbers()];
                let finer = &numbers[numbers.len() - layout.finer..];
                let columns = |g: usize| g * GROUP..(g + 1) * GROUP;
                let second = finer.iter().flat_map(|g| columns(g.to_bits() as usize));
                for (i, column) in (0..k).chain(second).enumerate() {
                    let code = f64::from(q.codes[r * layout.codes() + i] as i8);
                    let product =
                        code * f64::from(numbers[i / GROUP]) * f64::from(wide[c * k + column]);
                    sum += product;
                    size += product.abs();
                }
                let error = (f64::from(y[r * n + c]) - sum).abs();
                assert!(error <= 1e-5 * size, "{} {}: {error} of {size}", kind.name(), isa.name());
            }
            let bits: Vec<u32> = y.iter().map(|y| y.to_bits()).collect();
            assert_eq!(*first.get_or_insert(bits.clone()), bits, "{} {}", kind.name(), isa.name());

            for few in 1..m {
                let from = m - few;
                let some = rounded(&cpu, &x[from * k..], k);
                let mut rows = start[from * n..].to_vec();
                product(&cpu, few, &some.codes, &some.numbers, &w, &mut rows, true);
                assert_eq!(rows, y[from * n..], "{} {}", kind.name(), isa.name());
            }
        }
    }
}

/// All codes the largest or the least: sums in 16 bits have room for them.
#[test]
fn the_largest_products_have_room() {
    use BlockType::*;
    let mut rng = Rng::new(4);
    let (m, n, k) = (7, 40, 512);
    for kind in KINDS {
        let scales = match kind {
            Q4_1 | Q5_1 | Q4_K | Q5_K => 0..4,
            Q2_K => 80..84,
            Q3_K => 108..110,
            Q6_K => 208..210,
            _ => 0..2,
        };
        for (fill, sign) in [(0, 1.0), (0, -1.0), (0xff, 1.0), (0xff, -1.0)] {
            let mut data = random(kind, n, k, &mut rng);
            for block in data.chunks_exact_mut(kind.bytes()) {
                let kept = block[scales.clone()].to_vec();
                block.fill(fill);
                block[scales.clone()].copy_from_slice(&kept);
            }
            let mut first: Option<Vec<u32>> = None;
            for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
                let cpu = on(isa, 1);
                let w = strips(&cpu, kind, n, k, &data);
                for rows in [1, m] {
                    let q = rounded(&cpu, &vec![sign; rows * k], k);
                    let mut y = vec![0.0; rows * n];
                    product(&cpu, rows, &q.codes, &q.numbers, &w, &mut y, false);
                    let bits: Vec<u32> = y[..n].iter().map(|y| y.to_bits()).collect();
                    let name = (kind.name(), isa.name(), fill, sign);
                    assert_eq!(*first.get_or_insert(bits.clone()), bits, "{name:?}");
                }
            }
        }
    }
}

/// The groups with the largest scales have a second digit, and are known to a 254th of the first.
#[test]
fn the_loudest_groups_are_finer() {
    let mut rng = Rng::new(3);
    let (k, layout) = (640, Layout::new(640));
    for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
        let mut x: Vec<f32> = (0..k).map(|_| rng.normal()).collect();
        x[3 * GROUP + 5] = 100.0;
        x[17 * GROUP + 30] = -200.0;
        let q = rounded(&on(isa, 1), &x, k);
        let finer = &q.numbers[layout.numbers() - 2..];
        assert_eq!([finer[0], finer[1]].map(f32::to_bits), [3, 17]);
        let digit = |d: usize, i: usize| f32::from(q.codes[d * GROUP + i] as i8) * q.numbers[d];
        for (d, g) in [(20, 3), (21, 17)] {
            for i in 0..GROUP {
                let error = digit(g, i) + digit(d, i) - x[g * GROUP + i];
                assert!(error.abs() <= q.numbers[g] / 240.0, "{g} {i}: {error}");
            }
        }
    }
}

#[test]
fn rounding_keeps_the_largest_and_shows_what_is_broken() {
    for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
        let cpu = on(isa, 1);
        let mut x: Vec<f32> = (0..64).map(|i| (i as f32 - 20.0) / 7.0).collect();
        let q = rounded(&cpu, &x, 64);
        for (i, x) in x.iter().enumerate() {
            let code = f32::from(q.codes[i] as i8);
            let scale = q.numbers[i / GROUP];
            assert!((code * scale - x).abs() <= scale * 0.5001, "{i}: {code} of {scale} for {x}");
        }
        for small in [0.0, 1e-40, -1e-37] {
            let numbers = rounded(&cpu, &[small; 32], 32).numbers;
            assert!(numbers.iter().all(|x| x.abs() < 1e-36), "{numbers:?}");
        }
        x[40] = f32::NAN;
        let q = rounded(&cpu, &x, 64);
        assert!(q.numbers[0].is_finite() && q.numbers[1].is_nan());
        x[40] = f32::INFINITY;
        assert!(!rounded(&cpu, &x, 64).numbers[1].is_finite());
    }
}
