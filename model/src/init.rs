//! Weights of a new model, from a seed: the one place where they start.

use std::sync::OnceLock;
use std::thread::available_parallelism;

use compute::Pool;
use compute::parameters::Parameters;
use compute::rng::Rng;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::induction::Stream;
use crate::transformer::shapes;
use crate::weights::parameter;

/// How weights start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Init {
    /// Standard deviation of the embedding (and of an untied head).
    pub embedding_std: f32,
    /// Standard deviation of an inner matrix, times the square root of its inputs.
    pub matrix_gain: f32,
    /// The same for the matrices that write to the residual stream (`o_proj`, `down_proj`).
    pub output_gain: f32,
    /// Weights of the norms of queries and keys: attention starts sharper above 1.
    pub qk_norm: f32,
    /// Whether an induction head is there from the start (where the shape has room for it).
    pub induction: bool,
}

impl Default for Init {
    fn default() -> Self {
        Init {
            embedding_std: 0.02,
            matrix_gain: 1.0,
            output_gain: 0.0,
            qk_norm: 1.0,
            induction: false,
        }
    }
}

/// Parameters of a new model. Each has a random stream of its own, by its name: the same from any number of threads.
pub fn initialise(config: &Config, init: &Init, seed: u64) -> Parameters {
    let stream = if init.induction {
        Stream::new(config, &mut Rng::new(seed).stream("stream"))
    } else {
        None
    };
    let shapes = shapes(config);
    let made: Vec<OnceLock<Vec<f32>>> = shapes.iter().map(|_| OnceLock::new()).collect();
    Pool::new(available_parallelism().map_or(1, usize::from)).run(shapes.len(), |i| {
        let (name, shape) = &shapes[i];
        made[i].get_or_init(|| values(config, init, seed, stream.as_ref(), name, shape));
    });
    let mut parameters = Parameters::default();
    for ((name, shape), data) in shapes.into_iter().zip(made) {
        parameters.add(parameter(name, &shape, data.into_inner().unwrap_or_default()));
    }
    parameters
}

/// How a parameter starts.
fn values(
    config: &Config,
    init: &Init,
    seed: u64,
    stream: Option<&Stream>,
    name: &str,
    shape: &[usize],
) -> Vec<f32> {
    let count: usize = shape.iter().product();
    let normal = |std: f32| -> Vec<f32> {
        let mut rng = Rng::new(seed).stream(name);
        (0..count).map(|_| rng.normal() * std).collect()
    };
    let mut data = if name.contains("q_norm") || name.contains("k_norm") {
        vec![init.qk_norm; count]
    } else if shape.len() == 1 {
        vec![1.0; count]
    } else if name.contains("embed_tokens") || name.contains("lm_head") {
        normal(init.embedding_std)
    } else {
        let output = name.contains("o_proj") || name.contains("down_proj");
        let gain = if output { init.output_gain } else { init.matrix_gain };
        normal(gain / (shape[1] as f32).sqrt())
    };
    if let Some(stream) = stream {
        stream.write(config, name, &mut data, init.embedding_std);
        if name.contains("embed_tokens") {
            let rows = data.chunks_exact_mut(config.hidden_size);
            rows.for_each(|row| stream.embed(row, init.embedding_std));
        }
    }
    data
}
