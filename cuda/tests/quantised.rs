//! Weights as GGUF files hold them, on the emulator, against ggml's formulas element by element.
#![allow(clippy::unwrap_used)]

mod common;

use common::{bf16, from_bf16, gpu, values};
use cuda::ops::Output;
use cuda::ops::quantised::{self, BlockType, Weights, pack, packed_bytes};
use cuda::{Gpu, Slice};

use BlockType::*;

/// Blocks of random codes with scales of a sane size, and their elements.
struct Blocks {
    kind: BlockType,
    rows: usize,
    cols: usize,
    bytes: Vec<u8>,
    elements: Vec<f32>,
}

impl Blocks {
    fn random(kind: BlockType, rows: usize, cols: usize, seed: u64) -> Blocks {
        let blocks = rows * cols / kind.elements();
        let mut bytes: Vec<u8> = values(seed, blocks * kind.bytes())
            .iter()
            .map(|x| ((x + 1.0) * 4096.0) as u32 as u8)
            .collect();
        let factors: &[usize] = match kind {
            Q4_0 | Q5_0 | Q8_0 => &[0],
            Q4_1 | Q5_1 | Q4_K | Q5_K => &[0, 2],
            Q6_K => &[208],
            F16 => &[0],
            BF16 | F32 => &[],
        };
        for (i, block) in bytes.chunks_exact_mut(kind.bytes()).enumerate() {
            for &at in factors {
                // 2^-7 to 2^-3, of either sign.
                let bits = u16::from_le_bytes([block[at], block[at + 1]]);
                let sane = bits & 0x83ff | (8 + bits % 5) << 10;
                block[at..at + 2].copy_from_slice(&sane.to_le_bytes());
            }
            let plain = values(seed + 1 + i as u64, 1)[0];
            match kind {
                BF16 => block.copy_from_slice(&bf16(plain).to_le_bytes()),
                F32 => block.copy_from_slice(&plain.to_le_bytes()),
                _ => {}
            }
        }
        let elements = bytes.chunks_exact(kind.bytes()).flat_map(|b| elements(kind, b)).collect();
        Blocks { kind, rows, cols, bytes, elements }
    }

    fn upload(&self, gpu: &Gpu) -> Weights {
        Weights::upload(gpu, self.kind, self.rows, self.cols, &self.bytes, "weights").unwrap()
    }
}

fn half(b: &[u8], at: usize) -> f32 {
    let bits = u16::from_le_bytes([b[at], b[at + 1]]);
    let (exponent, mantissa) = (i32::from(bits >> 10 & 31), f32::from(bits & 1023));
    let size = if exponent == 0 {
        mantissa * 2f32.powi(-24)
    } else {
        (1.0 + mantissa / 1024.0) * 2f32.powi(exponent - 15)
    };
    if bits >> 15 == 1 { -size } else { size }
}

/// A block's elements, as ggml's `dequantize_row_*` makes them.
fn elements(kind: BlockType, b: &[u8]) -> Vec<f32> {
    let mut y = vec![0.0; kind.elements()];
    let word = |at: usize| u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
    match kind {
        F32 => y[0] = f32::from_bits(word(0)),
        F16 => y[0] = half(b, 0),
        BF16 => y[0] = from_bf16(u16::from_le_bytes([b[0], b[1]])),
        Q4_0 | Q4_1 | Q5_0 | Q5_1 => {
            let (affine, five) = (matches!(kind, Q4_1 | Q5_1), matches!(kind, Q5_0 | Q5_1));
            let d = half(b, 0);
            let m = if affine { half(b, 2) } else { 0.0 };
            let after = if affine { 4 } else { 2 };
            let (high, codes) =
                if five { (word(after), &b[after + 4..]) } else { (0, &b[after..]) };
            for (j, byte) in codes.iter().enumerate() {
                let first = u32::from(byte & 15) | (high >> j & 1) << 4;
                let second = u32::from(byte >> 4) | (high >> (j + 16) & 1) << 4;
                for (i, q) in [(j, first), (j + 16, second)] {
                    y[i] = match kind {
                        Q4_0 => (q as f32 - 8.0) * d,
                        Q5_0 => (q as f32 - 16.0) * d,
                        _ => q as f32 * d + m,
                    };
                }
            }
        }
        Q8_0 => {
            for (y, q) in y.iter_mut().zip(&b[2..]) {
                *y = f32::from(*q as i8) * half(b, 0);
            }
        }
        Q4_K | Q5_K => {
            let (d, least, packed) = (half(b, 0), half(b, 2), &b[4..16]);
            let codes = if kind == Q5_K { &b[48..] } else { &b[16..] };
            for i in 0..256 {
                let j = i / 32;
                let (scale, m) = if j < 4 {
                    (packed[j] & 63, packed[j + 4] & 63)
                } else {
                    let low = packed[j + 4];
                    ((low & 15) | ((packed[j - 4] >> 6) << 4), (low >> 4) | ((packed[j] >> 6) << 4))
                };
                let byte = codes[i / 64 * 32 + i % 32];
                let mut q = if j % 2 == 0 { byte & 15 } else { byte >> 4 };
                if kind == Q5_K && b[16 + i % 32] >> j & 1 == 1 {
                    q += 16;
                }
                y[i] = d * f32::from(scale) * f32::from(q) - least * f32::from(m);
            }
        }
        Q6_K => {
            let (low, high, scales, d) = (&b[..128], &b[128..192], &b[192..208], half(b, 208));
            for n in 0..2 {
                for l in 0..32 {
                    let (ql, qh) = (&low[64 * n..], high[32 * n + l]);
                    let codes = [
                        (ql[l] & 15) | (qh & 3) << 4,
                        (ql[l + 32] & 15) | (qh >> 2 & 3) << 4,
                        (ql[l] >> 4) | (qh >> 4 & 3) << 4,
                        (ql[l + 32] >> 4) | (qh >> 6 & 3) << 4,
                    ];
                    for (quarter, q) in codes.into_iter().enumerate() {
                        let i = 128 * n + 32 * quarter + l;
                        let scale = scales[i / 16] as i8;
                        y[i] = d * f32::from(scale) * f32::from(i16::from(q) - 32);
                    }
                }
            }
        }
    }
    y
}

/// Columns that end in the middle of a unit and at its end.
fn widths(kind: BlockType) -> [usize; 3] {
    match kind.elements() {
        1 => [4, 100, 640],
        32 => [32, 160, 640],
        _ => [256, 768, 2304],
    }
}

/// The same numbers (but for the sign of 0).
#[track_caller]
fn same(what: &str, got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert!(got == expected, "{what}[{i}]: {got}, expected {expected}");
    }
}

#[test]
fn elements_are_those_of_ggml() {
    let gpu = gpu();
    for kind in BlockType::ALL {
        for (rows, cols) in [1, 16, 37].into_iter().zip(widths(kind)) {
            let what = format!("{} [{rows}, {cols}]", kind.name());
            let blocks = Blocks::random(kind, rows, cols, 7);
            let w = blocks.upload(&gpu);
            assert_eq!((w.kind(), w.rows(), w.cols()), (kind, rows, cols));
            let mut y = gpu.buffer(rows * cols, "y").unwrap();
            let mut y16 = gpu.buffer(rows * cols, "y16").unwrap();
            let both = Output::both(y.slice_mut(), y16.slice_mut());
            quantised::widen(&gpu, &w, 0, both).unwrap();
            same(&what, &y.read().unwrap(), &blocks.elements);
            let rounded = |x: &f32| from_bf16(bf16(*x));
            let rounded: Vec<f32> = blocks.elements.iter().map(rounded).collect();
            let got: Vec<f32> = y16.read().unwrap().into_iter().map(from_bf16).collect();
            same(&what, &got, &rounded);
            // Some of them.
            let start = rows / 3;
            let some = Output::f32(y.part_mut(..(rows - start) * cols));
            quantised::widen(&gpu, &w, start, some).unwrap();
            same(
                &what,
                &y.read().unwrap()[..(rows - start) * cols],
                &blocks.elements[start * cols..],
            );
        }
    }
}

#[test]
fn rows_are_chosen() {
    let gpu = gpu();
    for kind in [Q4_0, Q6_K, F16] {
        let (rows, cols) = (21, widths(kind)[1]);
        let blocks = Blocks::random(kind, rows, cols, 3);
        let w = blocks.upload(&gpu);
        let chosen = [20u32, 0, 7, 7, 21, u32::MAX, 15, 16];
        let ids = gpu.upload(&chosen, "ids").unwrap();
        let mut y = gpu.buffer(chosen.len() * cols, "y").unwrap();
        quantised::rows(&gpu, &w, ids.slice(), Output::f32(y.slice_mut())).unwrap();
        let mut y16 = gpu.buffer(chosen.len() * cols, "y16").unwrap();
        quantised::rows(&gpu, &w, ids.slice(), Output::bf16(y16.slice_mut())).unwrap();
        let (y, y16) = (y.read().unwrap(), y16.read().unwrap());
        for (i, &row) in chosen.iter().enumerate() {
            let (got, row) = (&y[i * cols..(i + 1) * cols], row as usize);
            if row < rows {
                same(kind.name(), got, &blocks.elements[row * cols..(row + 1) * cols]);
                assert!(got.iter().zip(&y16[i * cols..]).all(|(x, y)| bf16(*x) == *y));
            } else {
                assert!(got.iter().all(|x| x.is_nan()), "{} row {row}", kind.name());
            }
        }
    }
}

/// `x wᵀ` on the device, and what it was before for `more`.
fn product(gpu: &Gpu, w: &Weights, x: Slice<'_, u16>, before: Option<&[f32]>) -> Vec<f32> {
    let n = x.len() / w.cols() * w.rows();
    let mut y = match before {
        Some(before) => gpu.upload(before, "y").unwrap(),
        None => gpu.buffer(n, "y").unwrap(),
    };
    quantised::product(gpu, x, w, y.slice_mut(), before.is_some()).unwrap();
    y.read().unwrap()
}

#[test]
fn products_are_exact_but_for_sums() {
    let gpu = gpu();
    for kind in BlockType::ALL {
        for (n, k, rows) in [
            (1, widths(kind)[0], 1),
            (17, widths(kind)[1], 3),
            (37, widths(kind)[2], 11),
            (50, widths(kind)[1], 70),
        ] {
            let what = format!("{} [{n}, {k}] for {rows}", kind.name());
            let blocks = Blocks::random(kind, n, k, 11);
            let w = blocks.upload(&gpu);
            let x: Vec<u16> = values(13, rows * k).iter().map(|x| bf16(*x)).collect();
            let dx = gpu.upload(&x, "x").unwrap();
            let y = product(&gpu, &w, dx.slice(), None);
            for (i, y) in y.iter().enumerate() {
                let x = x[i / n * k..][..k].iter().map(|x| f64::from(from_bf16(*x)));
                let w = blocks.elements[i % n * k..][..k].iter().map(|w| f64::from(*w));
                let (mut sum, mut size) = (0.0, 0.0);
                for (x, w) in x.zip(w) {
                    sum += x * w;
                    size += (x * w).abs();
                }
                let apart = (f64::from(*y) - sum).abs();
                assert!(apart <= 1e-6 * size, "{what}, output {i}: {y}, expected {sum} of {size}");
            }
            // Again, with the emulator's threads in the other order.
            same(&what, &product(&gpu, &w, dx.slice(), None), &y);
            let before = values(17, y.len());
            let added: Vec<f32> = y.iter().zip(&before).map(|(y, before)| before + y).collect();
            same(&what, &product(&gpu, &w, dx.slice(), Some(&before)), &added);
        }
    }
}

#[test]
fn a_rows_bits_do_not_depend_on_the_others() {
    let gpu = gpu();
    for kind in BlockType::ALL {
        let (n, k) = (35, widths(kind)[2]);
        let w = Blocks::random(kind, n, k, 19).upload(&gpu);
        let x: Vec<u16> = values(23, 33 * k).iter().map(|x| bf16(*x)).collect();
        let dx = gpu.upload(&x, "x").unwrap();
        let all = product(&gpu, &w, dx.slice(), None);
        for (start, end) in [(0, 1), (9, 10), (32, 33), (3, 11), (8, 24), (13, 25)] {
            let some = product(&gpu, &w, dx.part(start * k..end * k), None);
            same(kind.name(), &some, &all[start * n..end * n]);
        }
    }
}

#[test]
fn the_layout_is_as_large_as_the_file_and_is_made_in_parts() {
    for kind in BlockType::ALL {
        let blocks = Blocks::random(kind, 48, 512, 29);
        assert_eq!(packed_bytes(kind, 48, 512), blocks.bytes.len());
        let whole = pack(kind, 48, 512, &blocks.bytes);
        let (first, rest) = blocks.bytes.split_at(blocks.bytes.len() / 3);
        let parts = [pack(kind, 16, 512, first), pack(kind, 32, 512, rest)].concat();
        assert!(whole == parts, "{}", kind.name());
    }
    assert!(pack(Q4_0, 0, 32, &[]).is_empty());
}

#[test]
fn products_are_recorded() {
    let gpu = gpu();
    let blocks = Blocks::random(Q4_K, 16, 256, 31);
    let w = blocks.upload(&gpu);
    let mut x = gpu.zeros::<u16>(256, "x").unwrap();
    let mut y = gpu.zeros(16, "y").unwrap();
    let graph =
        gpu.capture(|| quantised::product(&gpu, x.slice(), &w, y.slice_mut(), false)).unwrap();
    let values: Vec<u16> = values(37, 256).iter().map(|x| bf16(*x)).collect();
    x.slice_mut().write(&values).unwrap();
    graph.launch().unwrap();
    same("y", &y.read().unwrap(), &product(&gpu, &w, x.slice(), None));
}

#[test]
#[should_panic(expected = "columns of Q4_K")]
fn rows_must_be_whole_blocks() {
    pack(Q4_K, 1, 128, &[0; 72]);
}
