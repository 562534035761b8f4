//! Cross-entropy and argmax on the emulator, against their definitions in f64.
#![allow(clippy::unwrap_used)]

mod common;

use common::{bf16, close, gpu, values};
use cuda::ops::softmax::{self, IGNORE};

#[derive(PartialEq, Debug)]
struct Results {
    nats: Vec<f32>,
    logits: Vec<f32>,
    gradient: Vec<u16>,
}

fn run(
    logits: &[f32],
    targets: &[u32],
    weights: Option<&[f32]>,
    cap: Option<f32>,
    copy: bool,
) -> Results {
    let gpu = gpu();
    let mut x = gpu.upload(logits, "logits").unwrap();
    let targets = gpu.upload(targets, "targets").unwrap();
    let weights = weights.map(|weights| gpu.upload(weights, "weights").unwrap());
    let mut nats = gpu.buffer(targets.len(), "nats").unwrap();
    let mut gradient = gpu.zeros(logits.len(), "gradient").unwrap();
    softmax::cross_entropy(
        &gpu,
        x.slice_mut(),
        targets.slice(),
        weights.as_ref().map(|weights| weights.slice()),
        cap,
        nats.slice_mut(),
        copy.then_some(gradient.slice_mut()),
    )
    .unwrap();
    Results {
        nats: nats.read().unwrap(),
        logits: x.read().unwrap(),
        gradient: gradient.read().unwrap(),
    }
}

fn check(vocab: usize, scale: f32, cap: Option<f32>) {
    let rows = 4;
    let logits: Vec<f32> = values(vocab as u64, rows * vocab).iter().map(|x| x * scale).collect();
    let targets = [0, IGNORE, vocab as u32 - 1, vocab as u32 / 2];
    let weights = [0.5, 7.0, -2.0, 1.0];
    let (mut nats, mut gradient) = (vec![], vec![]);
    for (r, row) in logits.chunks(vocab).enumerate() {
        let bound = |x: f64| cap.map_or(x, |cap| f64::from(cap) * (x / f64::from(cap)).tanh());
        let y: Vec<f64> = row.iter().map(|x| bound(f64::from(*x))).collect();
        let most = y.iter().fold(f64::NEG_INFINITY, |most, y| most.max(*y));
        let sum: f64 = y.iter().map(|y| (y - most).exp()).sum();
        let target = (targets[r] != IGNORE).then_some(targets[r] as usize);
        nats.push(target.map_or(0.0, |target| most + sum.ln() - y[target]));
        gradient.extend(y.iter().enumerate().map(|(i, y)| {
            let p = (y - most).exp() / sum - f64::from(target == Some(i));
            let slope = cap.map_or(1.0, |cap| 1.0 - (y / f64::from(cap)).powi(2));
            target.map_or(0.0, |_| f64::from(weights[r]) * p * slope)
        }));
    }
    let plain = run(&logits, &targets, None, cap, false);
    close("nats", &plain.nats, &nats, 1e-6);
    assert_eq!(plain.logits, logits);
    let in_place = run(&logits, &targets, Some(&weights), cap, false);
    assert_eq!(in_place.nats, plain.nats);
    close("gradient", &in_place.logits, &gradient, 1e-6);
    let apart = run(&logits, &targets, Some(&weights), cap, true);
    assert_eq!((apart.nats, &apart.logits), (plain.nats, &logits));
    let rounded: Vec<u16> = in_place.logits.iter().map(|x| bf16(*x)).collect();
    assert!(apart.gradient == rounded);
}

#[test]
fn cross_entropy_of_odd_rows() {
    for vocab in [1, 3, 130, 2049, 4096, 9001] {
        check(vocab, 10.0, None);
        check(vocab, 60.0, Some(30.0));
    }
}

#[test]
fn what_is_hidden_weighs_nothing_and_what_is_broken_shows() {
    let hidden = f32::NEG_INFINITY;
    let x = [hidden, 1.0, 1.0, hidden, hidden, 2.0, f32::NAN, 0.0, 1.0, 2.0, 3.0, 4.0];
    let got = run(&x, &[1, 2, 4], Some(&[1.0; 3]), None, false);
    assert!((got.nats[0] - 2.0f32.ln()).abs() < 1e-6, "{}", got.nats[0]);
    assert_eq!(got.logits[..4], [0.0, -0.5, 0.5, 0.0]);
    assert!(got.nats[1].is_nan() && got.nats[2].is_nan());
    assert_eq!(got.logits[8..], [0.0; 4], "no token 4 of four");
}

#[test]
fn the_first_of_the_largest_is_found() {
    let gpu = gpu();
    for width in [1, 5, 127, 5001] {
        let mut x = values(9, 5 * width);
        // Rows: a single one, two in tie, all alike, NaN, -inf only.
        x[width / 2] = 3.0;
        x[width + width / 3] = 3.0;
        x[2 * width - 1] = 3.0;
        x[2 * width..3 * width].fill(-1.0);
        x[3 * width + width / 2] = f32::NAN;
        x[4 * width - 1] = f32::NAN;
        x[4 * width..].fill(f32::NEG_INFINITY);
        let x = gpu.upload(&x, "x").unwrap();
        let (mut ids, mut tops) = (gpu.buffer(5, "ids").unwrap(), gpu.buffer(5, "tops").unwrap());
        softmax::argmax(&gpu, x.slice(), ids.slice_mut(), tops.slice_mut()).unwrap();
        let middle = width as u32 / 2;
        assert_eq!(ids.read().unwrap(), [middle, width as u32 / 3, 0, middle, 0]);
        let tops = tops.read().unwrap();
        assert_eq!((tops[0], tops[1], tops[2], tops[4]), (3.0, 3.0, -1.0, f32::NEG_INFINITY));
        assert!(tops[3].is_nan());
    }
}
