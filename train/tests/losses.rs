//! The first 50 losses of a run are PyTorch's, from the same weights on the same batches, and those of adapters are
//! PEFT's (`tests/losses.py`).

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;

use compute::parameters::{Parameter, Parameters};
use compute::tape::Workspace;
use compute::tensor::{DType, Tensor};
use compute::{Cpu, Span};
use model::adapter::{Adapter, Shape, begin};
use model::config::Config;
use model::transformer::{Transformer, shapes};
use safetensors::SafeTensors;
use serde::Deserialize;
use train::optimizer::{Optimizer, OptimizerConfig};

#[derive(Deserialize)]
struct Fixture {
    /// `[steps, sequences, length + 1]`
    tokens: Vec<Vec<Vec<u32>>>,
    losses: Vec<f64>,
}

fn start() -> Transformer {
    let file = include_bytes!("../../model/tests/fixtures/pytorch.safetensors");
    let (_, header) = SafeTensors::read_metadata(file).unwrap();
    let config = Config::from_json(&header.metadata().as_ref().unwrap()["config"]).unwrap();
    let tensors = SafeTensors::deserialize(file).unwrap();
    let mut parameters = Parameters::default();
    for (name, shape) in shapes(&config) {
        let data = tensors.tensor(&format!("weight.{name}")).unwrap().data();
        let data = data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        let vector = shape.len() == 1;
        let (rows, cols) = if vector { (1, shape[0]) } else { (shape[0], shape[1]) };
        let value = Tensor::new(rows, cols, data);
        parameters.add(Parameter { name, value, vector, trainable: true });
    }
    Transformer::new(config, parameters)
}

/// The losses of a run over all batches, each before its step.
fn train(model: &mut Transformer, lr: f64, dtype: DType, batches: &[Vec<Vec<u32>>]) -> Vec<f64> {
    let settings =
        OptimizerConfig { muon: false, lr, norm_lr: lr, eps: 1e-8, ..OptimizerConfig::default() };
    let mut optimizer = Optimizer::new(settings, &model.parameters);
    let cpu = Arc::new(Cpu::new(2));
    let mut ws = Workspace::new(cpu.clone(), dtype);
    let mut gradients = ws.gradients(&model.parameters);
    let mut losses = Vec::new();
    for batch in batches {
        let length = batch[0].len() - 1;
        let tokens: Vec<u32> = batch.iter().flat_map(|s| s[..length].to_vec()).collect();
        let targets: Vec<u32> = batch.iter().flat_map(|s| s[1..].to_vec()).collect();
        let spans: Vec<Span> =
            (0..batch.len()).map(|i| Span { start: i * length, len: length }).collect();
        let weights = vec![1.0 / tokens.len() as f32; tokens.len()];
        gradients.clear();
        let mut tape = ws.record(&model.parameters, &mut gradients);
        let loss = model.loss(&mut tape, &tokens, &targets, &spans, &weights);
        tape.backward();
        drop(tape);
        losses.push(loss.sum() / tokens.len() as f64);
        let length = gradients.norm(&cpu);
        optimizer.step(&mut ws, &mut model.parameters, &mut gradients, length, 1.0);
    }
    losses
}

fn compare(got: &[f64], want: &[f64], tolerance: f64, what: &str) {
    let apart = got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(got.len() == want.len() && apart < tolerance, "{what}: {apart} apart");
    println!(
        "{what}: losses from {:.3} to {:.3} within {apart:.1e}",
        want[0],
        want[want.len() - 1]
    );
}

fn fixture() -> Fixture {
    serde_json::from_str(include_str!("fixtures/losses.json")).unwrap()
}

#[test]
fn the_first_losses_are_those_of_pytorch() {
    let Fixture { tokens, losses } = fixture();
    for (dtype, tolerance) in [(DType::F32, 1e-3), (DType::Bf16, 3e-2)] {
        compare(
            &train(&mut start(), 3e-3, dtype, &tokens),
            &losses,
            tolerance,
            &format!("{dtype:?}"),
        );
    }
}

#[test]
fn the_first_losses_of_adapters_are_those_of_peft() {
    let tokens = fixture().tokens;
    let losses: Vec<f64> = serde_json::from_str(include_str!("fixtures/lora/losses.json")).unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/lora");
    for dtype in [DType::F32, DType::Bf16] {
        let mut model = start();
        Adapter::read(&folder, model.config()).unwrap().apply(&mut model);
        // All layers have one already: what is left to do is to freeze the rest.
        begin(&mut model, Shape { rank: 4, alpha: 8.0, modules: &["q_proj".into()] }, 0).unwrap();
        let own: Vec<_> = model.parameters.iter().filter(|p| !p.trainable).cloned().collect();
        let tolerance = if dtype == DType::F32 { 1e-3 } else { 3e-2 };
        let what = format!("adapters, {dtype:?}");
        compare(&train(&mut model, 1e-2, dtype, &tokens), &losses, tolerance, &what);
        let after = model.parameters.iter().filter(|p| !p.trainable);
        assert!(own.iter().zip(after).all(|(a, b)| a.value.f32() == b.value.f32()));
    }
}
