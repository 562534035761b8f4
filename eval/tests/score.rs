//! Scores of a small random model against one pass of the model for each token.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use compute::tape::Workspace;
use compute::tensor::DType;
use compute::{Cpu, IGNORE, Span};
use eval::score::{Windows, heldout, score};
use model::config::Config;
use model::init::{Init, initialise};
use model::transformer::Transformer;

const VOCAB: usize = 31;
const CONTEXT: usize = 24;

fn model(init: &Init) -> Transformer {
    let config = Config::from_json(
        r#"{"model_type": "qwen3", "vocab_size": 31, "hidden_size": 16, "intermediate_size": 24,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
            "head_dim": 8, "max_position_embeddings": 24, "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0, "tie_word_embeddings": true}"#,
    )
    .unwrap();
    let parameters = initialise(&config, init, 3);
    Transformer::new(config, parameters)
}

fn random() -> Transformer {
    model(&Init { embedding_std: 0.5, matrix_gain: 1.5, output_gain: 0.8, ..Init::default() })
}

fn workspace() -> Workspace {
    Workspace::new(Arc::new(Cpu::new(2)), DType::F32)
}

fn tokens(n: usize) -> Vec<u32> {
    (0..n).map(|i| ((i * i * 7 + i * 3 + 5) % VOCAB) as u32).collect()
}

/// Nats of the last of `tokens` after all the others.
fn nats(model: &Transformer, tokens: &[u32]) -> f64 {
    let (last, read) = tokens.split_last().unwrap();
    let mut targets = vec![IGNORE; read.len()];
    targets[read.len() - 1] = *last;
    let spans = [Span { start: 0, len: read.len() }];
    f64::from(model.loss_rows(&mut workspace(), read, &targets, &spans)[read.len() - 1])
}

fn close(a: f64, b: f64) {
    assert!((a - b).abs() <= 1e-6 * b.abs().max(1.0), "{a} is not {b}");
}

#[test]
fn sliding_windows_score_each_token_with_its_longest_context() {
    let (model, text) = (random(), tokens(53));
    let (context, stride) = (10, 4);
    let windows = Windows::Sliding { context, stride };
    let ours = score(&model, &mut workspace(), &text, None, |t| t as usize, windows).unwrap();
    let mut sum = 0.0;
    for at in 1..text.len() {
        // The earliest multiple of the stride from which a window reaches the token.
        let start = (0..).map(|i| i * stride).find(|start| start + context > at).unwrap();
        sum += nats(&model, &text[start..=at]);
    }
    let bytes: u32 = text[1..].iter().sum();
    close(ours.nats_per_token, sum / 52.0);
    close(ours.perplexity, (sum / 52.0).exp());
    close(ours.bits_per_byte, sum / f64::from(bytes) / 2f64.ln());
    assert_eq!((ours.tokens, ours.bytes), (52, u64::from(bytes)));
}

#[test]
fn windows_of_llama_cpp_score_the_second_half_after_bos() {
    let (model, text) = (random(), tokens(53));
    let windows = Windows::LlamaCpp { context: 12 };
    let ours = score(&model, &mut workspace(), &text, Some(1), |_| 1, windows).unwrap();
    let (mut sum, mut count) = (0.0, 0);
    for start in [0, 12, 24, 36] {
        let mut window = text[start..start + 12].to_vec();
        window[0] = 1;
        for at in 7..12 {
            sum += nats(&model, &window[..=at]);
            count += 1;
        }
    }
    assert_eq!(ours.tokens, count);
    close(ours.nats_per_token, sum / count as f64);
    let short = score(&model, &mut workspace(), &text[..23], None, |_| 1, windows);
    assert!(short.unwrap_err().to_string().contains("24 tokens"));
}

/// A model whose head is zero finds every token equally likely: the scores are known exactly.
#[test]
fn a_model_that_knows_nothing_needs_the_logarithm_of_its_vocabulary() {
    let model = model(&Init { embedding_std: 0.0, ..Init::default() });
    let documents = [tokens(5), tokens(70), vec![], tokens(23)];
    let ours = heldout(&model, &mut workspace(), &documents, [0; 2], 196).unwrap();
    // 98 tokens of text and 4 ends; 196 bytes of text and 3 newlines.
    assert_eq!((ours.documents, ours.tokens, ours.bytes), (4, 102, 199));
    let each = (VOCAB as f64).ln();
    close(ours.nats_per_token, each);
    close(ours.bits_per_byte, 102.0 * (VOCAB as f64).log2() / 199.0);
    close(ours.ends_bits_per_byte, 4.0 * (VOCAB as f64).log2() / 199.0);
}

#[test]
fn documents_do_not_see_each_other_and_long_ones_are_read_in_halves() {
    let model = random();
    let (short, long) = (tokens(9), tokens(40));
    let documents = [short.clone(), long.clone()];
    let ours = heldout(&model, &mut workspace(), &documents, [2; 2], 100).unwrap();
    let (mut sum, mut ends) = (0.0, 0.0);
    for document in [short, long] {
        let text = [vec![2], document, vec![2]].concat();
        for at in 1..text.len() {
            let half = CONTEXT / 2;
            let start = (0..).map(|i| i * half).find(|start| start + CONTEXT > at).unwrap();
            let value = nats(&model, &text[start..=at]);
            sum += value;
            ends += if at + 1 == text.len() { value } else { 0.0 };
        }
    }
    close(ours.nats_per_token, sum / 51.0);
    close(ours.bits_per_byte, sum / 101.0 / 2f64.ln());
    close(ours.ends_bits_per_byte, ends / 101.0 / 2f64.ln());
}

#[test]
fn nothing_to_score_is_said() {
    let (model, mut ws) = (random(), workspace());
    let windows = Windows::Sliding { context: 8, stride: 4 };
    assert!(score(&model, &mut ws, &[3], None, |_| 1, windows).is_err());
    assert!(score(&model, &mut ws, &[], None, |_| 1, windows).is_err());
    let windows = Windows::Sliding { context: CONTEXT + 1, stride: 4 };
    let error = score(&model, &mut ws, &tokens(9), None, |_| 1, windows).unwrap_err();
    assert!(error.to_string().contains("2 to 24"), "{error}");
    assert!(heldout(&model, &mut ws, &[], [0; 2], 0).is_err());
}
