//! Each family against transformers (in f64, `tests/families.py`): logits, loss and the gradient of the
//! embedding, to which the way back through every operation leads; and from pages of the cache.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use compute::kv::{KvSequence, KvType, PAGE};
use compute::parameters::{Gradients, ParamId};
use compute::tape::Workspace;
use compute::tensor::DType;
use compute::{Cpu, IGNORE, Span};
use model::config::Config;
use model::transformer::{Step, Transformer};
use model::weights::{self, GgufFiles, SafeFiles};
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    tokens: Vec<u32>,
    logits: Vec<Vec<f64>>,
    loss: f64,
    gradient: Vec<f64>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families")
}

fn cases() -> BTreeMap<String, Case> {
    serde_json::from_slice(&std::fs::read(folder().join("cases.json")).unwrap()).unwrap()
}

fn load(name: &str) -> Transformer {
    let dir = folder().join(name);
    let text = std::fs::read_to_string(dir.join("config.json")).unwrap();
    let config = Config::from_json(&text).unwrap();
    let parameters = weights::read(&config, &SafeFiles::open(&dir).unwrap(), None).unwrap();
    Transformer::new(config, parameters)
}

/// The same from GGUF, if there is one.
fn load_gguf(name: &str) -> Option<Transformer> {
    let one = folder().join(format!("{name}.gguf"));
    let first = folder().join(format!("{name}-00001-of-00003.gguf"));
    let path = [one, first].into_iter().find(|path| path.is_file())?;
    let files = GgufFiles::open(&path).unwrap();
    let config = Config::from_gguf(&files).unwrap();
    let parameters = weights::read(&config, &files, None).unwrap();
    Some(Transformer::new(config, parameters))
}

/// Logits of all rows, the tokens given in pieces of these lengths.
fn logits(model: &Transformer, tokens: &[u32], pieces: &[usize]) -> Vec<f32> {
    let mut ws = Workspace::new(Arc::new(Cpu::new(2)), DType::F32);
    let mut pages = model.pages(KvType::F32, 4).unwrap();
    let mut kv = KvSequence::default();
    kv.pages.push(pages.allocate().unwrap());
    assert!(tokens.len() <= PAGE);
    let (mut logits, mut start) = (Vec::new(), 0);
    for len in pieces {
        let tokens = &tokens[start..start + len];
        let mut steps = [Step { tokens, logits: tokens.len(), kv: &mut kv }];
        logits.extend(model.forward_cached(&mut ws, &mut pages, &mut steps));
        start += len;
    }
    logits
}

#[test]
fn logits_are_those_of_transformers() {
    let mut files = 0;
    for (name, case) in cases() {
        let model = load(&name);
        let n = case.tokens.len();
        let whole = logits(&model, &case.tokens, &[n]);
        let want: Vec<f64> = case.logits.concat();
        assert_eq!(whole.len(), want.len());
        let size = want.iter().fold(1.0f64, |m, x| m.max(x.abs()));
        let off = whole.iter().zip(&want).map(|(g, w)| (f64::from(*g) - w).abs());
        let off = off.fold(0.0, f64::max) / size;
        println!("{name}: logits within {off:.1e}");
        assert!(off < 1e-4, "{name}: logits are {off:.1e} away");
        if let Some(model) = load_gguf(&name) {
            let off = logits(&model, &case.tokens, &[n]);
            let off = off.iter().zip(&want).map(|(g, w)| (f64::from(*g) - w).abs());
            let off = off.fold(0.0, f64::max) / size;
            println!("{name}: logits of the GGUF file within {off:.1e}");
            assert!(off < 1e-4, "{name}: logits of the GGUF file are {off:.1e} away");
            files += 1;
        }
        let mut pieces = vec![1; n - 9];
        pieces.splice(0..0, [2, 7]);
        let apart = logits(&model, &case.tokens, &pieces);
        assert!(whole.iter().zip(&apart).all(|(a, b)| a.to_bits() == b.to_bits()), "{name}");
    }
    assert_eq!(files, 9, "GGUF files");
}

#[test]
fn gradients_are_those_of_transformers() {
    for (name, case) in cases() {
        let model = load(&name);
        if model.config().mixture.is_some() {
            continue; // experts have no backward pass
        }
        let n = case.tokens.len();
        let targets: Vec<u32> = case.tokens[1..].iter().copied().chain([IGNORE]).collect();
        let (spans, share) = ([Span { start: 0, len: n }], vec![1.0 / (n - 1) as f32; n]);
        let mut gradients = Gradients::zeros(&model.parameters);
        let mut ws = Workspace::new(Arc::new(Cpu::new(2)), DType::F32);
        let mut tape = ws.record(&model.parameters, &mut gradients);
        let loss = model.loss(&mut tape, &case.tokens, &targets, &spans, &share);
        tape.backward();
        drop(tape);
        let loss = loss.sum() / (n - 1) as f64;
        assert!((loss - case.loss).abs() < 1e-5 * case.loss, "{name}: {loss}, not {}", case.loss);
        let got = gradients.get(ParamId(0));
        let size = case.gradient.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        let off = got.iter().zip(&case.gradient).map(|(g, w)| (f64::from(*g) - w).abs());
        let off = off.fold(0.0, f64::max) / size;
        println!("{name}: gradient within {off:.1e}");
        assert!(off < 1e-4, "{name}: the gradient is {off:.1e} away");
    }
}

#[test]
fn unknown_families_are_named_with_the_known_ones() {
    let error = Config::from_json(r#"{"model_type": "mamba"}"#).unwrap_err().to_string();
    assert!(error.contains("\"mamba\"") && error.contains("llama") && error.contains("gpt2"));
}
