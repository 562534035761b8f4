use super::*;
use crate::rng::Rng;

pub(crate) const KINDS: [BlockType; 12] =
    [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS];

/// Rows of random blocks, with scales of ordinary size.
pub(crate) fn random(kind: BlockType, rows: usize, cols: usize, rng: &mut Rng) -> Vec<u8> {
    let parting = parting(kind).expect("a quantised type");
    let mut data = vec![0u8; rows * cols / kind.elements() * kind.bytes()];
    for block in data.chunks_exact_mut(kind.bytes()) {
        block.iter_mut().for_each(|b| *b = rng.below(256) as u8);
        if kind == BF16 {
            block.copy_from_slice(&half::bf16::from_f32(rng.normal()).to_le_bytes());
        }
        for &at in parting.halves {
            // The second row of IQ4_XS is bits, not a number.
            if kind != IQ4_XS || at == 0 {
                let x = half::f16::from_f32(0.002 + 0.01 * rng.f64() as f32);
                block[at..at + 2].copy_from_slice(&x.to_le_bytes());
            }
        }
    }
    data
}

pub(crate) fn strips(cpu: &Cpu, kind: BlockType, rows: usize, cols: usize, data: &[u8]) -> Strips {
    let row = cols / kind.elements() * kind.bytes();
    Strips::new(cpu, rows, cols, kind, |r| &data[r * row..(r + 1) * row]).expect("memory")
}

#[test]
fn rows_come_out_as_they_went_in() {
    let cpu = Cpu::new(2);
    let mut rng = Rng::new(1);
    for kind in KINDS.into_iter().chain([F16, BF16]) {
        // A last element alone has a place beside it.
        let (rows, cols, places) = if kind == BF16 { (37, 511, 512) } else { (37, 512, 512) };
        let data = random(kind, rows, cols, &mut rng);
        let strips = strips(&cpu, kind, rows, cols, &data);
        assert_eq!(strips.bytes(), 48 * places / kind.elements() * kind.bytes());
        let mut want = vec![0.0; rows * cols];
        kind.widen(&data, &mut want);
        for (r, want) in want.chunks_exact(cols).enumerate() {
            let mut row = vec![0.0; cols];
            strips.row(r, &mut row);
            assert_eq!(row, want, "{} row {r}", kind.name());
            let bytes = data.len() / rows;
            let mut blocks = vec![0; bytes];
            strips.row_blocks(r, &mut blocks);
            assert_eq!(blocks, data[r * bytes..(r + 1) * bytes], "{} row {r}", kind.name());
        }
    }
}
