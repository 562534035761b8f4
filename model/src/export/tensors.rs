//! Parameters as the tensors of a file: what [`weights::read`](crate::weights::read) undid is done
//! again.

use std::collections::HashMap;
use std::sync::OnceLock;

use compute::Pool;
use compute::blocks::{BlockType, Unfit};
use compute::parameters::{Parameter, Parameters};
use store::AtomicFile;

use super::{ExportError, Importance, put};
use crate::config::Config;
use crate::weights::places::{Layout, Place, places};
use crate::weights::source;

/// Elements that are narrowed before they are written.
const BATCH: usize = 1 << 22;
/// Elements of a task.
const TASK: usize = 1 << 15;

/// A tensor of the file to be.
pub(super) struct FileTensor<'a> {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    parts: Vec<Part<'a>>,
}

/// A parameter that lies in it.
struct Part<'a> {
    place: Place,
    parameter: &'a Parameter,
    /// Which row of the parameter (of a vector: which element) lies at each of the place's, if it isn't
    /// the same one.
    order: Option<Vec<usize>>,
}

/// All of them, in the order of the parameters.
pub(super) fn tensors<'a>(
    config: &Config,
    layout: Layout,
    parameters: &'a Parameters,
) -> Vec<FileTensor<'a>> {
    let mut list: Vec<FileTensor<'a>> = Vec::new();
    let mut known = HashMap::new();
    for (place, parameter) in places(config, layout).into_iter().zip(parameters.iter()) {
        let at = *known.entry(place.tensor.clone()).or_insert(list.len());
        if at == list.len() {
            let (name, shape) = (place.tensor.clone(), place.whole.clone());
            list.push(FileTensor { name, shape, parts: Vec::new() });
        }
        let order = place.interleaved.map(|heads| {
            let rows = place.shape[0];
            let mut order = vec![0; rows];
            (0..rows).for_each(|r| order[source(r, rows / heads)] = r);
            order
        });
        list[at].parts.push(Part { place, parameter, order });
    }
    list
}

impl FileTensor<'_> {
    pub(super) fn is_vector(&self) -> bool {
        self.shape.len() == 1
    }

    pub(super) fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Elements of a row.
    pub(super) fn cols(&self) -> usize {
        self.shape[self.shape.len() - 1]
    }

    /// All elements, where rows of the parameters aren't rows of the file.
    fn whole(&self) -> Option<Vec<f32>> {
        let turned = self.parts.iter().any(|p| p.place.turned);
        if !turned && !self.is_vector() {
            return None;
        }
        let mut all = vec![0.0; self.len()];
        for part in &self.parts {
            let (start, less) = (part.place.rows.start, part.place.plus);
            if self.is_vector() {
                let values = part.parameter.value.f32();
                for (i, y) in all[part.place.rows.clone()].iter_mut().enumerate() {
                    *y = values[part.order.as_ref().map_or(i, |order| order[i])] - less;
                }
            } else {
                let mut row = vec![0.0; part.parameter.value.cols()];
                for r in 0..part.parameter.value.rows() {
                    part.parameter.value.row(r, &mut row);
                    for (i, x) in row.iter().enumerate() {
                        all[i * self.cols() + start + r] = x - less;
                    }
                }
            }
        }
        Some(all)
    }

    /// The parameter of a row, and which of its rows that is.
    fn part(&self, row: usize) -> Option<(&Parameter, usize)> {
        let part = self.parts.iter().find(|p| p.place.rows.contains(&row))?;
        let row = row - part.place.rows.start;
        Some((part.parameter, part.order.as_ref().map_or(row, |order| order[row])))
    }

    /// Narrows all elements and writes them. `done` is told of elements, now and then.
    ///
    /// # Errors
    /// An element that the type can't hold; what the system says of writing.
    pub(super) fn write(
        &self,
        pool: &Pool,
        kind: BlockType,
        importance: Option<&Importance>,
        file: &mut AtomicFile,
        done: &mut dyn FnMut(u64),
    ) -> Result<(), ExportError> {
        let (cols, rows) = (self.cols(), self.len() / self.cols());
        let whole = self.whole();
        let narrow = |row: usize, values: &mut [f32], bytes: &mut [u8]| -> Result<(), Unfit> {
            let mut weights = None;
            match (&whole, self.part(row)) {
                (Some(whole), _) => {
                    values.copy_from_slice(&whole[row * cols..(row + 1) * cols]);
                }
                (None, Some((parameter, row))) => {
                    parameter.value.row(row, values);
                    weights = importance.and_then(|i| i.of(&parameter.name));
                }
                // The places of a tensor cover it.
                (None, None) => {}
            }
            kind.narrow(values, weights, bytes).map_err(|e| Unfit { at: row * cols + e.at, ..e })
        };
        let row_bytes = cols / kind.elements() * kind.bytes();
        let each = (TASK / cols).max(1);
        let batch = (BATCH / (each * cols)).max(1) * each;
        for start in (0..rows).step_by(batch) {
            let count = batch.min(rows - start);
            let tasks: Vec<OnceLock<Result<Vec<u8>, Unfit>>> =
                (0..count.div_ceil(each)).map(|_| OnceLock::new()).collect();
            pool.run(tasks.len(), |t| {
                let range = start + t * each..(start + (t + 1) * each).min(start + count);
                let mut bytes = vec![0; range.len() * row_bytes];
                let mut values = vec![0.0; cols];
                let narrowed = range
                    .zip(bytes.chunks_exact_mut(row_bytes))
                    .try_for_each(|(row, bytes)| narrow(row, &mut values, bytes));
                let _ = tasks[t].set(narrowed.map(|()| bytes));
            });
            for bytes in tasks.into_iter().filter_map(OnceLock::into_inner) {
                let bytes = bytes.map_err(|e| ExportError::Unfit(self.name.clone(), e))?;
                put(file, &bytes)?;
            }
            done((count * cols) as u64);
        }
        Ok(())
    }
}
