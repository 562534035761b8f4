//! The first 50 losses of a run are PyTorch's, from the same weights on the same batches
//! (`tests/losses.py`).

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use compute::parameters::{Gradients, Parameter, Parameters};
use compute::tape::Workspace;
use compute::tensor::{DType, Tensor};
use compute::{Cpu, Span};
use model::config::Config;
use model::transformer::{Transformer, shapes};
use safetensors::SafeTensors;
use serde::Deserialize;
use train::optimizer::{Optimizer, OptimizerConfig, norm};

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

#[test]
fn the_first_losses_are_those_of_pytorch() {
    let fixture: Fixture = serde_json::from_str(include_str!("fixtures/losses.json")).unwrap();
    for (dtype, tolerance) in [(DType::F32, 1e-3), (DType::Bf16, 3e-2)] {
        let mut model = start();
        let settings = OptimizerConfig {
            muon: false,
            lr: 3e-3,
            norm_lr: 3e-3,
            eps: 1e-8,
            ..OptimizerConfig::default()
        };
        let mut optimizer = Optimizer::new(settings, &model.parameters);
        let cpu = Arc::new(Cpu::new(2));
        let mut ws = Workspace::new(cpu.clone(), dtype);
        let mut gradients = Gradients::zeros(&model.parameters);
        let mut most = 0f64;
        for (step, (batch, want)) in fixture.tokens.iter().zip(&fixture.losses).enumerate() {
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
            let got = loss.sum() / tokens.len() as f64;
            most = most.max((got - want).abs());
            assert!((got - want).abs() < tolerance, "{dtype:?}, step {step}: {got}, not {want}");
            let length = norm(&cpu, &gradients);
            optimizer.step(&cpu, &mut model.parameters, &mut gradients, length, 1.0);
            ws.weights_changed();
        }
        let (first, last) = (fixture.losses[0], fixture.losses[fixture.losses.len() - 1]);
        println!("{dtype:?}: losses from {first:.3} to {last:.3} within {most:.1e}");
    }
}
