//! Weights as `model.safetensors`.

use compute::parameters::{Parameter, Parameters};
use compute::tensor::Tensor;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use thiserror::Error;

use crate::config::Config;
use crate::transformer::shapes;

/// Why weights can't be used.
#[derive(Debug, Error)]
pub enum WeightsError {
    /// Not a safetensors file, or a broken one.
    #[error("not a valid safetensors file: {0}")]
    Format(#[from] safetensors::SafeTensorError),
    /// The configuration asks for a tensor that isn't there.
    #[error("tensor {0} is missing")]
    Missing(String),
    /// A tensor that the configuration doesn't ask for.
    #[error("tensor {0} belongs to no part of the configured model")]
    Unknown(String),
    /// A tensor of another shape than the configuration says.
    #[error("tensor {name} has shape {got:?}, but config.json makes it {want:?}")]
    Shape {
        /// Its name.
        name: String,
        /// In the file.
        got: Vec<usize>,
        /// By the configuration.
        want: Vec<usize>,
    },
    /// An element type that isn't read.
    #[error("tensor {name} is {dtype:?}; F32, F16 and BF16 are read")]
    Type {
        /// Its name.
        name: String,
        /// In the file.
        dtype: Dtype,
    },
}

/// The parameters of `config` from the bytes of a safetensors file.
///
/// # Errors
/// A tensor missing, unknown, or of the wrong shape or type; a broken file.
pub fn read(config: &Config, bytes: &[u8]) -> Result<Parameters, WeightsError> {
    let file = SafeTensors::deserialize(bytes)?;
    let wanted = shapes(config);
    for name in file.names() {
        // A tied head may be stored twice.
        let tied = config.tie_word_embeddings && name == "lm_head.weight";
        if !tied && !wanted.iter().any(|(want, _)| want == name) {
            return Err(WeightsError::Unknown(name.to_string()));
        }
    }
    let mut parameters = Parameters::default();
    for (name, want) in wanted {
        let view = file.tensor(&name).map_err(|_| WeightsError::Missing(name.clone()))?;
        if view.shape() != want {
            return Err(WeightsError::Shape { name, got: view.shape().to_vec(), want });
        }
        let data = floats(&view)
            .ok_or_else(|| WeightsError::Type { name: name.clone(), dtype: view.dtype() })?;
        parameters.add(parameter(name, &want, data));
    }
    Ok(parameters)
}

/// A trainable parameter of this name and shape.
pub(crate) fn parameter(name: String, shape: &[usize], data: Vec<f32>) -> Parameter {
    let vector = shape.len() == 1;
    let (rows, cols) = if vector { (1, shape[0]) } else { (shape[0], shape[1]) };
    Parameter { name, value: Tensor::new(rows, cols, data), vector, trainable: true }
}

fn floats(view: &TensorView<'_>) -> Option<Vec<f32>> {
    let bytes = view.data();
    Some(match view.dtype() {
        Dtype::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        Dtype::F16 => {
            bytes.as_chunks().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect()
        }
        Dtype::BF16 => {
            bytes.as_chunks().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect()
        }
        _ => return None,
    })
}

/// The bytes of a safetensors file with these parameters in F32, in order of their names.
///
/// # Errors
/// What the format can't hold (it holds everything that a model has).
pub fn write(parameters: &Parameters) -> Result<Vec<u8>, WeightsError> {
    let bytes: Vec<(String, Vec<usize>, Vec<u8>)> = parameters
        .iter()
        .map(|p| {
            let shape =
                if p.vector { vec![p.value.cols()] } else { vec![p.value.rows(), p.value.cols()] };
            (p.name.clone(), shape, p.value.f32().iter().flat_map(|x| x.to_le_bytes()).collect())
        })
        .collect();
    let views: Vec<(&str, TensorView<'_>)> = bytes
        .iter()
        .map(|(name, shape, data)| {
            Ok((name.as_str(), TensorView::new(Dtype::F32, shape.clone(), data)?))
        })
        .collect::<Result<_, safetensors::SafeTensorError>>()?;
    let metadata = std::collections::HashMap::from([("format".to_string(), "pt".to_string())]);
    Ok(safetensors::serialize(views, Some(metadata))?)
}
