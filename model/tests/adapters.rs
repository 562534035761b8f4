//! Adapters against PEFT's, over the tiny models of `families.rs` (`tests/adapters.py`): logits with them apart, over
//! weights of halves, merged, and of two at once; and what is refused.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use compute::Cpu;
use compute::kv::{KvSequence, KvType};
use compute::parameters::Gradients;
use compute::rng::Rng;
use compute::tape::{Dropout, Workspace};
use compute::tensor::DType;
use compute::{IGNORE, Span};
use model::adapter::{Adapter, Shape, base, begin, is_adapter, merge, write};
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

/// A tiny model with a new adapter that is no longer nothing.
fn begun(family: &str, modules: &[&str]) -> Transformer {
    let mut model = load(family);
    let modules: Vec<String> = modules.iter().map(|m| m.to_string()).collect();
    begin(&mut model, Shape { rank: 3, alpha: 5.0, modules: &modules }, 7).unwrap();
    let mut rng = Rng::new(1);
    for p in model.parameters.iter_mut().filter(|p| p.name.contains("lora_B")) {
        assert!(p.value.f32().iter().all(|x| *x == 0.0));
        p.value.f32_mut().iter_mut().for_each(|x| *x = rng.normal() * 0.3);
    }
    model
}

#[test]
fn what_is_written_is_read() {
    let all = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    // Of fused matrices some parts only, and by the names that files have.
    for (family, modules) in [
        ("llama", &all[..]),
        ("phi3", &["q_proj", "v_proj", "up_proj"]),
        ("gpt2", &["c_attn", "c_fc"]),
    ] {
        let mut model = begun(family, modules);
        let tokens: Vec<u32> = (3..19).collect();
        let with = logits(&model, &tokens);
        let dir = tempfile::tempdir().unwrap();
        write(&mut model, "some/base", dir.path()).unwrap();
        assert!(is_adapter(dir.path()));
        assert_eq!(base(dir.path()).unwrap(), "some/base");
        let mut again = load(family);
        let without = logits(&again, &tokens);
        Adapter::read(dir.path(), again.config()).unwrap().apply(&mut again);
        let read = logits(&again, &tokens);
        let apart =
            |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(apart(&with, &without) > 1e-2, "{family}: it changes something");
        assert!(apart(&with, &read) < 1e-5, "{family}: {}", apart(&with, &read));
        if family == "llama" {
            assert_eq!(with, read, "the same products");
        }
    }
    let mut model = load("llama");
    let modules = ["c_attn".to_string()];
    let error = begin(&mut model, Shape { rank: 2, alpha: 2.0, modules: &modules }, 0).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("no layer of this model has a matrix c_attn; there are down_proj"),
        "{error}"
    );
}

/// Layers that are computed twice, dropout, and any number of threads: the same bits.
#[test]
fn gradients_are_the_same_however_they_are_computed() {
    let model = begun("llama", &["q_proj", "down_proj"]);
    let tokens: Vec<u32> = (0..40).map(|i| i * 5 % 30).collect();
    let targets: Vec<u32> = (0..40).map(|i| i * 7 % 30).collect();
    let spans = [Span { start: 0, len: 25 }, Span { start: 25, len: 15 }];
    let run = |threads: usize, recompute: bool, rate: f32, seed: u64| {
        let mut ws = Workspace::new(Arc::new(Cpu::new(threads)), DType::F32);
        ws.set_recompute(recompute);
        ws.dropout = Some(Dropout { rate, seed });
        let mut gradients = Gradients::zeros(&model.parameters);
        let mut tape = ws.record(&model.parameters, &mut gradients);
        let loss = model.loss(&mut tape, &tokens, &targets, &spans, &[0.1; 40]);
        tape.backward();
        drop(tape);
        (loss.rows, gradients.iter().flatten().copied().collect::<Vec<f32>>())
    };
    let plain = run(1, false, 0.0, 0);
    assert!(plain.1.iter().any(|x| *x != 0.0));
    assert_eq!(run(2, true, 0.0, 0), plain);
    let dropped = run(1, false, 0.5, 3);
    assert_ne!(dropped, plain);
    assert_eq!(run(2, true, 0.5, 3), dropped);
    assert_ne!(run(1, false, 0.5, 4), dropped);
    // On average little changes.
    let mean =
        |i: usize| (0..400).map(|seed| run(1, false, 0.05, seed).1[i] as f64).sum::<f64>() / 400.0;
    let at =
        (0..plain.1.len()).max_by(|a, b| plain.1[*a].abs().total_cmp(&plain.1[*b].abs())).unwrap();
    let (mean, want) = (mean(at), f64::from(plain.1[at]));
    assert!((mean / want - 1.0).abs() < 0.3, "{mean}, not {want}");
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
