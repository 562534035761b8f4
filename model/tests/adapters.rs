//! Adapters against PEFT's, over the tiny models of `families.rs` (`tests/adapters.py`): logits with them apart, over
//! weights of halves, merged, and of two at once; and what is refused.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use compute::Cpu;
use compute::kv::{KvSequence, KvType};
use compute::parameters::Gradients;
use compute::tape::Workspace;
use compute::tensor::DType;
use compute::{IGNORE, Span};
use model::adapter::{Adapter, merge};
use model::config::Config;
use model::transformer::{Step, Transformer};
use model::weights::{self, SafeFiles};
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    family: String,
    tokens: Vec<u32>,
    logits: Vec<Vec<f64>>,
}

fn fixtures(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path)
}

fn load(family: &str) -> Transformer {
    let dir = fixtures("families").join(family);
    let text = std::fs::read_to_string(dir.join("config.json")).unwrap();
    let config = Config::from_json(&text).unwrap();
    let parameters = weights::read(&config, &SafeFiles::open(&dir).unwrap(), None).unwrap();
    Transformer::new(config, parameters)
}

fn adapt(model: &mut Transformer, name: &str) {
    let adapter = Adapter::read(&fixtures("adapters").join(name), model.config()).unwrap();
    adapter.apply(model);
}

fn logits(model: &Transformer, tokens: &[u32]) -> Vec<f32> {
    let mut ws = Workspace::new(Arc::new(Cpu::new(2)), DType::F32);
    let mut pages = model.pages(KvType::F32, 1).unwrap();
    let mut kv = KvSequence::default();
    kv.pages.push(pages.allocate().unwrap());
    let mut steps = [Step { tokens, logits: tokens.len(), kv: &mut kv }];
    model.forward_cached(&mut ws, &mut pages, &mut steps)
}

/// The largest difference.
fn apart(got: &[f32], want: &[Vec<f64>]) -> f64 {
    let want: Vec<f64> = want.concat();
    assert_eq!(got.len(), want.len());
    got.iter().zip(&want).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max)
}

#[test]
fn logits_are_those_of_peft() {
    let text = std::fs::read(fixtures("adapters/cases.json")).unwrap();
    let cases: BTreeMap<String, Case> = serde_json::from_slice(&text).unwrap();
    assert_eq!(cases.len(), 5);
    for (name, case) in cases {
        let mut model = load(&case.family);
        let without = logits(&model, &case.tokens);
        let own = model.parameters.iter().len();
        let names: &[&str] = if name == "both" { &["llama", "llama-second"] } else { &[&name] };
        names.iter().for_each(|name| adapt(&mut model, name));
        let with = logits(&model, &case.tokens);
        assert!(apart(&with, &case.logits) < 1e-4, "{name}: {}", apart(&with, &case.logits));
        assert!(apart(&without, &case.logits) > 1e-2, "{name} changes something");

        merge(&mut model, &Cpu::new(2));
        assert_eq!(model.parameters.iter().len(), own);
        let merged = logits(&model, &case.tokens);
        assert!(apart(&merged, &case.logits) < 1e-4, "{name}, merged");
    }
}

/// The gradients of both factors against finite differences, while the base has none.
#[test]
fn the_way_back_goes_through_adapters() {
    let mut model = load("llama");
    model.parameters.iter_mut().for_each(|p| p.trainable = false);
    let own = model.parameters.iter().len();
    adapt(&mut model, "llama");
    let tokens: Vec<u32> = (3..19).collect();
    let targets: Vec<u32> = (4..19).chain([IGNORE]).collect();
    let spans = [Span { start: 0, len: tokens.len() }];
    let weights = vec![1.0 / 15.0; tokens.len()];
    let mut ws = Workspace::new(Arc::new(Cpu::new(2)), DType::F32);
    let mut gradients = Gradients::zeros(&model.parameters);
    {
        let mut tape = ws.record(&model.parameters, &mut gradients);
        model.loss(&mut tape, &tokens, &targets, &spans, &weights);
        tape.backward();
    }
    let loss = |model: &Transformer| -> f64 {
        let mut ws = Workspace::new(Arc::new(Cpu::new(2)), DType::F32);
        let rows = model.loss_rows(&mut ws, &tokens, &targets, &spans);
        rows.iter().map(|x| f64::from(*x)).sum::<f64>() / 15.0
    };
    for (i, gradient) in gradients.iter().enumerate() {
        if i < own {
            assert!(gradient.is_empty());
            continue;
        }
        for at in [0, gradient.len() / 2, gradient.len() - 1] {
            let (mut up, mut down) = (model.clone(), model.clone());
            up.parameters.iter_mut().nth(i).unwrap().value.f32_mut()[at] += 1e-2;
            down.parameters.iter_mut().nth(i).unwrap().value.f32_mut()[at] -= 1e-2;
            let slope = (loss(&up) - loss(&down)) / 2e-2;
            let got = f64::from(gradient[at]);
            assert!(
                (slope - got).abs() < 1e-3 + 2e-2 * slope.abs(),
                "{i} {at}: {got}, not {slope}"
            );
        }
    }
}

#[test]
fn what_does_not_fit_is_named() {
    let read = |dir: &Path, family: &str| {
        Adapter::read(dir, load(family).config()).map(drop).unwrap_err().to_string()
    };
    let llama = fixtures("adapters/llama");
    let error = read(&llama, "phi3");
    assert!(error.contains("belongs to no layer") || error.contains("another base"), "{error}");
    let error = read(&llama, "mistral");
    assert!(error.contains("for another base model") && error.contains("q_proj"), "{error}");

    let dir = tempfile::tempdir().unwrap();
    let weights = std::fs::read(llama.join("adapter_model.safetensors")).unwrap();
    let config = std::fs::read_to_string(llama.join("adapter_config.json")).unwrap();
    let with = |config: &str, weights: &[u8]| {
        std::fs::write(dir.path().join("adapter_config.json"), config).unwrap();
        std::fs::write(dir.path().join("adapter_model.safetensors"), weights).unwrap();
        read(dir.path(), "llama")
    };
    for (from, to, want) in [
        (r#""peft_type": "LORA""#, r#""peft_type": "IA3""#, "LORA is read"),
        (r#""use_dora": false"#, r#""use_dora": true"#, "use_dora is true"),
        (r#""bias": "none""#, r#""bias": "all""#, r#"bias is "all""#),
        (r#""modules_to_save": null"#, r#""modules_to_save": ["lm_head"]"#, "lm_head"),
        (r#""r": 4"#, r#""r": "four""#, "adapter_config.json"),
        ("down_proj\": 2", "down_(proj\": 2", "down_(proj"),
    ] {
        assert!(config.contains(from), "{from}");
        let error = with(&config.replace(from, to), &weights);
        assert!(error.contains(want), "{error}");
    }
    let error = with(&config, &weights[..weights.len() / 2]);
    assert!(error.contains("adapter_model.safetensors"), "{error}");
}
