//! New adapters, and what training made of them, in PEFT's files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use compute::parameters::{Parameter, Parameters};
use compute::rng::Rng;
use compute::tape::{Linear, LowRank};
use compute::tensor::Tensor;
use serde_json::{Map, json};

use super::{AdapterError, CONFIG, PREFIX, WEIGHTS};
use crate::transformer::Transformer;
use crate::weights;
use crate::weights::places::{Layout, Place, places};

/// What a new adapter is.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape<'a> {
    /// Rank of its products.
    pub rank: usize,
    /// Their factor, times the rank.
    pub alpha: f32,
    /// Ends of the names of the matrices that have one, such as `q_proj`.
    pub modules: &'a [String],
}

/// Freezes a model's weights, and puts adapters to its linear layers that change nothing yet: `a` is random, from
/// `±1/√in` (as PEFT starts it), `b` is zero. Layers that have one go on with that.
///
/// # Errors
/// [`AdapterError::Module`].
pub fn begin(model: &mut Transformer, shape: Shape<'_>, seed: u64) -> Result<(), AdapterError> {
    let places = places(model.config(), Layout::HuggingFace);
    let of = |name: &str| places.iter().find(|p| p.name == name).map_or("", |p| &p.tensor[..]);
    let is = |name: &str, module: &str| {
        let path = name.trim_end_matches(".weight");
        path.strip_suffix(module).is_some_and(|rest| rest.ends_with('.'))
    };
    let (linears, parameters) = model.linears();
    parameters.iter_mut().for_each(|p| p.trainable = false);
    let (mut used, mut there) = (BTreeSet::new(), BTreeSet::new());
    for layer in linears {
        let name = parameters.get(layer.weight).name.clone();
        there.insert(last(&name).to_string());
        let module = shape.modules.iter().find(|m| is(&name, m) || is(of(&name), m));
        used.extend(module);
        if let Some(LowRank { a, b, .. }) = layer.adapter {
            [a, b].into_iter().for_each(|id| parameters.get_mut(id).trainable = true);
        } else if module.is_some() {
            layer.adapter = Some(fresh(parameters, layer, &name, &shape, seed));
        }
    }
    match shape.modules.iter().find(|m| !used.contains(m)) {
        Some(module) => {
            let there = there.into_iter().collect::<Vec<_>>().join(", ");
            Err(AdapterError::Module { module: module.clone(), there })
        }
        None => Ok(()),
    }
}

fn fresh(
    parameters: &mut Parameters,
    layer: &Linear,
    name: &str,
    shape: &Shape<'_>,
    seed: u64,
) -> LowRank {
    let weight = &parameters.get(layer.weight).value;
    let (out, input, rank) = (weight.rows(), weight.cols(), shape.rank);
    let module = name.trim_end_matches(".weight");
    let mut add = |factor: &str, rows: usize, cols: usize, data: Vec<f32>| {
        let (name, value) = (format!("{module}.{factor}.weight"), Tensor::new(rows, cols, data));
        parameters.add(Parameter { name, value, vector: false, trainable: true })
    };
    let mut rng = Rng::new(seed).stream(name);
    let bound = 1.0 / (input as f32).sqrt();
    let random = (0..rank * input).map(|_| (2.0 * rng.f64() - 1.0) as f32 * bound).collect();
    LowRank {
        a: add("lora_A", rank, input, random),
        b: add("lora_B", out, rank, vec![0.0; out * rank]),
        scale: shape.alpha / rank as f32,
    }
}

/// `up_proj` of `model.layers.3.mlp.up_proj.weight`.
fn last(name: &str) -> &str {
    let module = name.trim_end_matches(".weight");
    module.rsplit('.').next().unwrap_or(module)
}

/// Writes a model's adapter as PEFT's files, for the model that `base` names. Where that has one matrix for what
/// are several here, theirs become one product of all their ranks.
///
/// # Errors
/// What can't be written.
pub fn write(model: &mut Transformer, base: &str, dir: &Path) -> Result<(), AdapterError> {
    let config = model.config().clone();
    let (linears, parameters) = model.linears();
    let adapters: BTreeMap<String, LowRank> =
        linears.filter_map(|l| Some((parameters.get(l.weight).name.clone(), l.adapter?))).collect();
    let mut matrices: BTreeMap<String, Vec<(Place, LowRank)>> = BTreeMap::new();
    for place in places(&config, Layout::HuggingFace) {
        if let Some(adapter) = adapters.get(&place.name) {
            matrices.entry(place.tensor.clone()).or_default().push((place, *adapter));
        }
    }
    let mut tensors = Parameters::default();
    let (mut modules, mut turned) = (BTreeSet::new(), false);
    let mut sizes: Vec<(String, usize, f32)> = Vec::new();
    for (tensor, parts) in &matrices {
        let (first, LowRank { scale, .. }) = &parts[0];
        turned |= first.turned;
        let value = |id| &parameters.get(id).value;
        let rank: usize = parts.iter().map(|(_, p)| value(p.a).rows()).sum();
        let out = if first.turned { first.whole[1] } else { first.whole[0] };
        let a: Vec<f32> = parts.iter().flat_map(|(_, p)| value(p.a).f32().to_vec()).collect();
        let mut b = vec![0.0; out * rank];
        let mut from = 0;
        for (place, part) in parts {
            let of = value(part.b);
            let width = of.cols();
            for (r, row) in of.f32().chunks(width).enumerate() {
                let at = (place.rows.start + r) * rank + from;
                let scaled = row.iter().map(|x| x * (part.scale / scale));
                b[at..at + width].iter_mut().zip(scaled).for_each(|(b, x)| *b = x);
            }
            from += width;
        }
        let module = tensor.trim_end_matches(".weight");
        for (factor, rows, data) in [("lora_A", rank, a), ("lora_B", out, b)] {
            let name = format!("{PREFIX}{module}.{factor}.weight");
            let value = Tensor::new(rows, data.len() / rows, data);
            tensors.add(Parameter { name, value, vector: false, trainable: false });
        }
        modules.insert(last(tensor));
        sizes.push((module.to_string(), rank, scale * rank as f32));
    }
    let (rank, alpha) = sizes.first().map_or((1, 1.0), |s| (s.1, s.2));
    let (mut ranks, mut alphas) = (Map::new(), Map::new());
    for (module, r, of) in &sizes {
        if *r != rank {
            ranks.insert(module.clone(), json!(r));
        }
        if *of != alpha {
            alphas.insert(module.clone(), json!(of));
        }
    }
    let about = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "target_modules": modules,
        "fan_in_fan_out": turned,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": false,
        "inference_mode": true,
        "init_lora_weights": true,
    });
    let path = dir.join(WEIGHTS);
    let bytes = weights::write(&tensors).map_err(|e| AdapterError::Weights(path.clone(), e))?;
    store::create_dir(dir)?;
    store::write_atomic(&path, &bytes)?;
    Ok(store::write_json(&dir.join(CONFIG), &about)?)
}
