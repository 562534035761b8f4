//! What tests of passes on a card share.
#![allow(dead_code)]

use std::sync::Arc;

use compute::Cpu;
use compute::blocks::BlockType;
use compute::strips::Strips;
use compute::tensor::Tensor;
use model::config::{Config, Sizes};
use model::init::{Init, initialise};
use model::transformer::Transformer;

/// What [`model`] is.
pub fn config() -> Config {
    let sizes = Sizes {
        vocab: 43,
        width: 64,
        ffn: 96,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        context: 256,
    };
    Config { rope_theta: 1e4, ..Config::qwen3(sizes) }
}

/// A small model of random weights.
pub fn model(tied: bool) -> Transformer {
    random(Config { tie_word_embeddings: tied, ..config() })
}

/// One of random weights.
pub fn random(config: Config) -> Transformer {
    let init = Init {
        embedding_std: 0.5,
        matrix_gain: 1.5,
        output_gain: 0.8,
        qk_norm: 1.3,
        induction: false,
    };
    let parameters = initialise(&config, &init, 7);
    Transformer::new(config, parameters)
}

/// The same with matrices of a narrow type.
pub fn narrow(mut m: Transformer, kind: BlockType) -> Transformer {
    let cpu = Cpu::new(1);
    for p in m.parameters.iter_mut().filter(|p| !p.vector) {
        let (rows, cols) = (p.value.rows(), p.value.cols());
        let row = cols / kind.elements() * kind.bytes();
        let mut blocks = vec![0; rows * row];
        for (r, to) in blocks.chunks_exact_mut(row).enumerate() {
            kind.narrow(&p.value.f32()[r * cols..(r + 1) * cols], None, to).expect("numbers");
        }
        let strips = Strips::new(&cpu, rows, cols, kind, |r| &blocks[r * row..(r + 1) * row]);
        p.value = Tensor::quantised(strips.expect("memory"));
        p.trainable = false;
    }
    m
}

/// An emulated one.
pub fn card() -> Arc<Cpu> {
    Arc::new(Cpu { card: Some(cuda::Gpu::emulated()), ..Cpu::new(1) })
}
