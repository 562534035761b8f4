//! Against the package `gguf`: `fixture.bin` is made by `fixture.py`.

use super::*;

const FIXTURE: &[u8] = include_bytes!("fixture.bin");

#[test]
fn blocks_are_what_they_are_elsewhere() {
    let mut rest = FIXTURE;
    let mut take = |n: usize| {
        let (now, later) = rest.split_at(n);
        rest = later;
        now
    };
    let order = [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS];
    for kind in order {
        let from = take(3 * kind.bytes());
        let want = take(3 * kind.elements() * 4).as_chunks().0.iter();
        let want: Vec<f32> = want.map(|b| f32::from_le_bytes(*b)).collect();
        let mut got = vec![f32::NAN; want.len()];
        kind.widen(from, &mut got);
        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
            // The products may be rounded in another order.
            let near = (got - want).abs() <= 2e-6 * want.abs().max(1.0);
            assert!(near, "{} element {i}: {got}, not {want}", kind.name());
        }
    }
    assert!(rest.is_empty());
}

#[test]
fn plain_types_are_exact() {
    let values = [1.5f32, -0.0, 65504.0, 2f32.powi(-14)];
    let bytes = |b: &[[u8; 2]]| b.concat();
    let (f16, bf16): (Vec<_>, Vec<_>) = values
        .iter()
        .map(|v| (half::f16::from_f32(*v).to_le_bytes(), half::bf16::from_f32(*v).to_le_bytes()))
        .unzip();
    let mut y = [f32::NAN; 4];
    F16.widen(&bytes(&f16), &mut y);
    assert_eq!(y, values);
    BF16.widen(&bytes(&bf16), &mut y);
    assert_eq!(y, [1.5, -0.0, 65536.0, 2f32.powi(-14)]);
    assert_eq!(Q4_K.bytes_of(512), Some(288));
    assert_eq!((Q4_K.bytes_of(100), F32.bytes_of(u64::MAX)), (None, None));
}
