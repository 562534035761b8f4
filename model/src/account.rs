//! What a model costs: parameters, floating-point operations, bytes. A product of `[m, k]` and
//! `[k, n]` counts `2 m k n`; norms, activations and softmax are left out (a few per cent).

use crate::config::Config;

/// Elements of the matrices that every token goes through, the head included.
pub fn product_parameters(c: &Config) -> usize {
    let attention = 2 * c.hidden_size * (c.query_width() + c.key_width());
    let mlp = 3 * c.hidden_size * c.intermediate_size;
    c.num_hidden_layers * (attention + mlp) + c.vocab_size * c.hidden_size
}

/// Operations of one token's forward pass when it attends to `visible` positions (its own
/// included; the mean over a batch gives the mean).
pub fn forward_flops(c: &Config, visible: f64) -> f64 {
    let attention = 4.0 * c.query_width() as f64 * visible * c.num_hidden_layers as f64;
    2.0 * product_parameters(c) as f64 + attention
}

/// Operations of one token of training: the backward pass is two products for each one, of which that for the
/// weights is only done for the share of them that is `trained`.
pub fn training_flops(c: &Config, visible: f64, trained: f64) -> f64 {
    (2.0 + trained) * forward_flops(c, visible)
}

/// Bytes of keys and values that one position takes in f32.
pub fn kv_bytes_per_position(c: &Config) -> usize {
    2 * c.num_hidden_layers * c.key_width() * 4
}

/// Mean number of visible positions over sequences of these lengths (causal).
pub fn mean_visible(lengths: impl Iterator<Item = usize>) -> f64 {
    let (mut rows, mut sum) = (0.0, 0.0);
    for n in lengths {
        rows += n as f64;
        sum += (n * (n + 1)) as f64 / 2.0;
    }
    if rows == 0.0 { 0.0 } else { sum / rows }
}
