//! Rows by number, on the emulator.
#![allow(clippy::unwrap_used)]

mod common;

use common::{bf16, from_bf16, gpu, values};
use cuda::ops::{Output, embedding, rows};

#[test]
fn rows_come_out_of_a_table() {
    let gpu = gpu();
    for width in [1, 6, 64, 1100] {
        let table = values(1, 11 * width);
        let ids = [3u32, 0, 10, 3, 11, u32::MAX];
        let (gtable, gids) = (gpu.upload(&table, "t").unwrap(), gpu.upload(&ids, "ids").unwrap());
        let mut y = gpu.buffer(ids.len() * width, "y").unwrap();
        let mut rounded = gpu.buffer(ids.len() * width, "y").unwrap();
        let out = Output::both(y.slice_mut(), rounded.slice_mut());
        embedding::embedding(&gpu, gtable.slice(), gids.slice(), width, out).unwrap();
        let (y, rounded) = (y.read().unwrap(), rounded.read().unwrap());
        for (r, id) in ids.iter().enumerate() {
            let got = &y[r * width..(r + 1) * width];
            if *id < 11 {
                assert_eq!(*got, table[*id as usize * width..(*id as usize + 1) * width]);
            } else {
                assert!(got.iter().all(|x| x.is_nan()));
                continue;
            }
            let bits: Vec<u16> = got.iter().map(|x| bf16(*x)).collect();
            assert_eq!(rounded[r * width..(r + 1) * width], bits);
        }

        let bits: Vec<u16> = table.iter().map(|x| bf16(*x)).collect();
        let gtable = gpu.upload(&bits, "t").unwrap();
        let mut y = gpu.buffer(4 * width, "y").unwrap();
        let out = Output::f32(y.slice_mut());
        embedding::embedding_bf16(&gpu, gtable.slice(), gids.part(..4), width, out).unwrap();
        let expected: Vec<f32> = ids[..4]
            .iter()
            .flat_map(|id| &bits[*id as usize * width..(*id as usize + 1) * width])
            .map(|bits| from_bf16(*bits))
            .collect();
        assert_eq!(y.read().unwrap(), expected);
    }
}

#[test]
fn gradients_go_into_the_table_in_order() {
    let gpu = gpu();
    for (count, vocab, width) in [(1, 1, 1), (700, 5, 7), (700, 1000, 3), (40, 9, 1100)] {
        let (dy, first) = (values(1, count * width), values(2, vocab * width));
        let mut ids: Vec<u32> = (0..count).map(|i| (i * i * 31 % 1013 % vocab) as u32).collect();
        ids[count / 2] = if count > 1 { u32::MAX } else { 0 };
        let (gdy, gids) = (gpu.upload(&dy, "dy").unwrap(), gpu.upload(&ids, "ids").unwrap());
        let mut expected = first.clone();
        for (dy, id) in dy.chunks(width).zip(&ids).filter(|(_, id)| **id != u32::MAX) {
            let row = &mut expected[*id as usize * width..(*id as usize + 1) * width];
            row.iter_mut().zip(dy).for_each(|(sum, d)| *sum += d);
        }
        for _ in 0..2 {
            let mut table = gpu.upload(&first, "table").unwrap();
            embedding::embedding_backward(
                &gpu,
                gdy.slice(),
                gids.slice(),
                width,
                table.slice_mut(),
            )
            .unwrap();
            assert_eq!(table.read().unwrap(), expected, "[{count}] of [{vocab}, {width}]");
        }
    }
}

#[test]
fn rows_go_back() {
    let gpu = gpu();
    let width = 10;
    let (x, first, weights) = (values(1, 3 * width), values(2, 6 * width), values(3, 3));
    let ids = [4u32, 0, 6];
    let up = |x: &[f32]| gpu.upload(x, "x").unwrap();
    let (gx, gw) = (up(&x), up(&weights));
    let gids = gpu.upload(&ids, "ids").unwrap();
    let (mut put, mut added) = (up(&first), up(&first));
    rows::scatter(&gpu, gx.slice(), gids.slice(), width, put.slice_mut()).unwrap();
    let to = added.slice_mut();
    rows::scatter_add(&gpu, gx.slice(), gids.slice(), gw.slice(), width, to).unwrap();
    let (mut expected, mut sums) = (first.clone(), first);
    for (r, id) in [(0, 4), (1, 0)] {
        for c in 0..width {
            expected[id * width + c] = x[r * width + c];
            let sum = &mut sums[id * width + c];
            *sum = weights[r].mul_add(x[r * width + c], *sum);
        }
    }
    assert_eq!(put.read().unwrap(), expected);
    assert_eq!(added.read().unwrap(), sums);
    let mut back = gpu.buffer(2 * width, "back").unwrap();
    let out = Output::f32(back.slice_mut());
    rows::gather(&gpu, put.slice(), gids.part(..2), width, out).unwrap();
    assert_eq!(back.read().unwrap(), x[..2 * width]);
}
