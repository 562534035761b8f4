//! Loss and every gradient against PyTorch in f64, on a model that transformers made
//! (`tests/pytorch.py`).

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use compute::parameters::{Gradients, Parameter, Parameters};
use compute::tape::Workspace;
use compute::tensor::{DType, Tensor};
use compute::{Cpu, IGNORE, Span};
use model::config::Config;
use model::transformer::{Transformer, shapes};
use safetensors::SafeTensors;

#[test]
fn loss_and_every_gradient_are_those_of_pytorch() {
    let file = include_bytes!("fixtures/pytorch.safetensors");
    let (_, header) = SafeTensors::read_metadata(file).unwrap();
    let config = header.metadata().as_ref().unwrap()["config"].clone();
    let config = Config::from_json(&config).unwrap();
    let tensors = SafeTensors::deserialize(file).unwrap();
    let bytes = |name: &str| tensors.tensor(name).unwrap().data();
    let doubles = |name: &str| -> Vec<f64> {
        bytes(name).as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect()
    };

    let mut parameters = Parameters::default();
    for (name, shape) in shapes(&config) {
        let data = bytes(&format!("weight.{name}"));
        let data = data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        let (rows, cols) = if shape.len() == 1 { (1, shape[0]) } else { (shape[0], shape[1]) };
        let value = Tensor::new(rows, cols, data);
        parameters.add(Parameter { name, value, vector: shape.len() == 1, trainable: true });
    }
    let model = Transformer::new(config, parameters);
    let tokens: Vec<u32> =
        bytes("tokens").as_chunks().0.iter().map(|b| i64::from_le_bytes(*b) as u32).collect();
    let n = tokens.len();
    let targets: Vec<u32> = tokens[1..].iter().copied().chain([IGNORE]).collect();
    let (spans, weights) = ([Span { start: 0, len: n }], vec![1.0 / (n - 1) as f32; n]);

    for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::Bf16, 2e-2)] {
        let mut gradients = Gradients::zeros(&model.parameters);
        let mut ws = Workspace::new(Arc::new(Cpu::new(2)), dtype);
        let mut tape = ws.record(&model.parameters, &mut gradients);
        let loss = model.loss(&mut tape, &tokens, &targets, &spans, &weights);
        tape.backward();
        drop(tape);
        let (got, want) = (loss.sum() / (n - 1) as f64, doubles("loss")[0]);
        assert!((got - want).abs() <= tolerance * want, "{dtype:?}: loss {got}, not {want}");
        for (p, g) in model.parameters.iter().zip(gradients.iter()) {
            let want = doubles(&format!("gradient.{}", p.name));
            assert_eq!(g.len(), want.len());
            // Relative to the whole gradient of this parameter.
            let square = |x: f64| x * x;
            let size = want.iter().map(|w| w * w).sum::<f64>().sqrt();
            let off = g.iter().zip(&want).map(|(g, w)| square(f64::from(*g) - w)).sum::<f64>();
            let off = off.sqrt() / size;
            println!("{dtype:?} {}: {off:.2e}", p.name);
            assert!(off <= tolerance, "{dtype:?}: the gradient of {} is {off:.1e} off", p.name);
        }
    }
}
