//! The induction head that a new model can start with.

use std::sync::Arc;

use compute::rng::Rng;
use compute::tape::Workspace;
use compute::tensor::DType;
use compute::{Cpu, Span};
use model::config::{Config, Sizes};
use model::init::{Init, initialise};
use model::transformer::Transformer;

/// Mean nats of the first and of the second pass over a random sequence that comes twice.
fn twice(induction: bool) -> (f64, f64) {
    let config = Config {
        rope_theta: 1e6,
        tie_word_embeddings: true,
        ..Config::qwen3(Sizes {
            vocab: 500,
            width: 128,
            ffn: 64,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            head_dim: 32,
            context: 384,
        })
    };
    // A large embedding, so that logits are, too.
    let init = Init { embedding_std: 0.3, qk_norm: 1.8, induction, ..Init::default() };
    let parameters = initialise(&config, &init, 3);
    let model = Transformer::new(config, parameters);
    let mut rng = Rng::new(5);
    let half: Vec<u32> = (0..60).map(|_| rng.below(500) as u32).collect();
    let tokens = [half.clone(), half].concat();
    let mut targets = tokens[1..].to_vec();
    targets.push(0);
    let mut ws = Workspace::new(Arc::new(Cpu::new(1)), DType::F32);
    let nats = model.loss_rows(&mut ws, &tokens, &targets, &[Span { start: 0, len: 120 }]);
    let mean = |x: &[f32]| x.iter().map(|x| f64::from(*x)).sum::<f64>() / x.len() as f64;
    (mean(&nats[..59]), mean(&nats[61..119]))
}

#[test]
fn what_came_before_is_expected_again() {
    let (first, second) = twice(true);
    assert!(second < first - 1.0, "{first} nats, then {second}");
    let (first, second) = twice(false);
    assert!((second - first).abs() < 0.5, "without it: {first} nats, then {second}");
}
