//! Against the package `gguf` (`fixture.bin` is made by `fixture.py`), and bounds of the error.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

const FIXTURE: &[u8] = include_bytes!("fixture.bin");

fn narrowed(kind: BlockType, x: &[f32], importance: Option<&[f32]>) -> Result<Vec<f32>, Unfit> {
    let mut bytes = vec![0; x.len() / kind.elements() * kind.bytes()];
    kind.narrow(x, importance, &mut bytes)?;
    let mut y = vec![f32::NAN; x.len()];
    kind.widen(&bytes, &mut y);
    Ok(y)
}

#[test]
fn bytes_are_those_of_the_reference() {
    let (x, mut rest) = FIXTURE.split_at(8 * 32 * 4);
    let x: Vec<f32> = x.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    for kind in [F16, BF16, Q4_0, Q5_1, Q8_0] {
        let mut got = vec![0; x.len() / kind.elements() * kind.bytes()];
        kind.narrow(&x, None, &mut got).unwrap();
        let (want, after) = rest.split_at(got.len());
        rest = after;
        assert!(got == want, "{}", kind.name());
    }
    assert!(rest.is_empty());
}

/// What every element may be away from its own, for a block.
fn bound(kind: BlockType, x: &[f32]) -> f32 {
    let most = x.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    // A step between codes, and what the 16 bits of a scale are away at the last code.
    let (steps, codes) = match kind {
        F32 => return 0.0,
        F16 => return most * 2f32.powi(-11) + 2f32.powi(-25),
        BF16 => return most * 2f32.powi(-8),
        Q8_0 => (0.5 / 127.0, 127.0),
        Q4_0 => (1.0 / 7.0, 8.0),
        Q5_0 => (1.0 / 15.0, 16.0),
        Q5_1 => (1.0 / 31.0, 32.0),
        // From the least to the largest there may be twice as much; 6 bits of each scale.
        Q4_K => (2.0 / 15.0 + 2.0 / 63.0, 15.0 * 63.0 * 2.0),
        Q5_K => (2.0 / 31.0 + 2.0 / 63.0, 31.0 * 63.0 * 2.0),
        _ => (1.0 / 31.0 + 1.0 / 128.0, 32.0 * 128.0),
    };
    most * (steps + 2f32.powi(-10)) + codes * 2f32.powi(-25)
}

/// Elements of all sizes, in blocks of like ones, outliers among them.
fn elements() -> impl Strategy<Value = Vec<f32>> {
    let block = (-40i32..14, prop::collection::vec(-1.0f32..1.0, 256), 0usize..256, 0.0f32..20.0)
        .prop_map(|(size, mut x, at, outlier)| {
            x[at] *= outlier;
            x.iter_mut().for_each(|x| *x *= 2f32.powi(size));
            x
        });
    prop_oneof![
        4 => block,
        1 => prop::collection::vec(prop::num::f32::ANY, 256),
        1 => prop::collection::vec(prop_oneof![Just(0.0f32), Just(1.0), Just(-3.0), Just(1e-20)], 256),
    ]
}

proptest! {
    #[test]
    fn errors_are_small_or_told(x in elements(), w in prop::collection::vec(0.0f32..10.0, 256), weighed: bool) {
        for kind in BlockType::NARROW {
            let importance = (weighed && !matches!(kind, Q8_0 | Q5_1)).then_some(&w[..]);
            match narrowed(kind, &x, importance) {
                Ok(y) => {
                    // The searched ones take a larger error of one element for a smaller sum.
                    let looser = if importance.is_some() || matches!(kind, Q5_0 | Q4_K | Q5_K | Q6_K) { 3.0 } else { 1.0 };
                    for (x, y) in x.chunks(kind.elements()).zip(y.chunks(kind.elements())) {
                        let bound = bound(kind, x) * looser;
                        for (x, y) in x.iter().zip(y) {
                            prop_assert!((x - y).abs() <= bound, "{}: {} became {}, bound {}", kind.name(), x, y, bound);
                        }
                    }
                }
                Err(e) => {
                    prop_assert_eq!(e.value.to_bits(), x[e.at].to_bits());
                    prop_assert!(!e.value.is_finite() || e.value.abs() > 65000.0, "{}", e);
                }
            }
        }
    }
}

fn normal(n: usize, seed: u64) -> Vec<f32> {
    let mut rng = crate::rng::Rng::new(seed);
    (0..n).map(|_| rng.normal()).collect()
}

fn squares(x: &[f32], y: &[f32], w: &[f32]) -> f64 {
    let off = x.iter().zip(y).zip(w).map(|((x, y), w)| f64::from(w * (x - y) * (x - y)));
    off.sum::<f64>() / x.len() as f64
}

#[test]
fn searches_pay() {
    let x = normal(64 * SUPER, 1);
    let ones = vec![1.0; x.len()];
    let error = |kind, importance| {
        let y = narrowed(kind, &x, importance).unwrap();
        squares(&x, &y, &ones)
    };
    let mut last = f64::INFINITY;
    for (kind, most) in [
        (Q4_0, 1.0e-2),
        (Q4_K, 6.5e-3),
        (Q5_0, 2.3e-3),
        (Q5_K, 1.6e-3),
        (Q6_K, 5.0e-4),
        (Q8_0, 4e-5),
    ] {
        let error = error(kind, None);
        println!("{}: {error:.2e}", kind.name());
        assert!(error < most && error < last, "{}: {error:.2e}", kind.name());
        last = error;
    }
    // What counts more is kept better.
    let w: Vec<f32> = (0..x.len()).map(|i| if i % 7 == 0 { 50.0 } else { 1.0 }).collect();
    for kind in [Q4_0, Q5_0, Q4_K, Q5_K, Q6_K] {
        let with = squares(&x, &narrowed(kind, &x, Some(&w)).unwrap(), &w);
        let without = squares(&x, &narrowed(kind, &x, None).unwrap(), &w);
        println!("{}: {:.3} of the weighted error", kind.name(), with / without);
        assert!(with < 0.95 * without, "{}", kind.name());
    }
}

#[test]
fn what_does_not_fit_is_told() {
    let told = |kind: BlockType, x: &[f32]| narrowed(kind, x, None).unwrap_err().to_string();
    assert_eq!(told(F16, &[1.0, 65520.0]), "element 1 is 65520, which F16 can't hold");
    assert_eq!(told(F32, &[f32::NAN]), "element 0 is NaN, which F32 can't hold");
    let mut x = vec![0.5; SUPER];
    x[200] = -1e30;
    for kind in [Q4_0, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K] {
        assert!(told(kind, &x).starts_with("element 200 is -1"), "{}", kind.name());
    }
    x[200] = f32::INFINITY;
    assert!(told(Q4_K, &x).contains("element 200 is inf"));
    assert_eq!(narrowed(Q6_K, &[0.0; SUPER], None).unwrap(), [0.0; SUPER]);
}
