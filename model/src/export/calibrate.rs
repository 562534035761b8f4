//! How much the inputs of each matrix count: their mean squares over some text. An error of a weight
//! adds that much to the mean square error of the output (the diagonal of the layer's Hessian, as
//! in Optimal Brain Surgeon and after).

use std::collections::HashMap;
use std::sync::Arc;

use compute::tape::Workspace;
use compute::tensor::DType;
use compute::{Cpu, IGNORE, Span};

use super::{ExportError, Progress};
use crate::directory::Loaded;

/// Tokens of a window.
const WINDOW: usize = 512;
/// Fewest tokens that tell anything.
const LEAST: usize = 64;

/// Mean squares of the inputs of matrices.
#[derive(Clone, Debug, Default)]
pub struct Importance {
    by_name: HashMap<String, Vec<f32>>,
    /// Tokens that were looked at.
    pub tokens: usize,
}

impl Importance {
    /// Of the columns of a parameter.
    pub(super) fn of(&self, name: &str) -> Option<&[f32]> {
        self.by_name.get(name).map(|squares| &squares[..])
    }
}

/// Runs the model over a text. Told of tokens.
///
/// # Errors
/// A text too short.
pub fn calibrate(
    loaded: &Loaded,
    cpu: &Arc<Cpu>,
    text: &str,
    progress: Progress<'_>,
) -> Result<Importance, ExportError> {
    let tokens = loaded.tokenizer.encode(text);
    if tokens.len() < LEAST {
        return Err(ExportError::Text(tokens.len(), LEAST));
    }
    let model = &loaded.transformer;
    let window = WINDOW.min(model.config().max_position_embeddings);
    let mut ws = Workspace::new(cpu.clone(), DType::F32);
    ws.inputs = Some(Default::default());
    let mut done = 0;
    for part in tokens.chunks(window - usize::from(loaded.bos.is_some())) {
        let rows: Vec<u32> = loaded.bos.into_iter().chain(part.iter().copied()).collect();
        let targets: Vec<u32> = rows[1..].iter().copied().chain([IGNORE]).collect();
        model.loss_rows(&mut ws, &rows, &targets, &[Span { start: 0, len: rows.len() }]);
        done += part.len();
        progress(done as u64, tokens.len() as u64);
    }
    let inputs = ws.inputs.take().unwrap_or_default();
    let by_name = model.parameters.iter().enumerate();
    let by_name = by_name.filter_map(|(id, p)| Some((p.name.clone(), inputs.means(id)?)));
    Ok(Importance { by_name: by_name.collect(), tokens: tokens.len() })
}
