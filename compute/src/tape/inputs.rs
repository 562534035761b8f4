//! What goes into products with weights: sums of squares, by column.

use crate::parameters::ParamId;

/// Of each weight, over all rows that went through it.
#[derive(Clone, Debug, Default)]
pub struct InputSquares {
    /// By id: rows, and the sums.
    list: Vec<(u64, Vec<f64>)>,
}

impl InputSquares {
    /// Adds rows of `cols`.
    pub(super) fn add(&mut self, id: ParamId, x: &[f32], cols: usize) {
        if self.list.len() <= id.0 {
            self.list.resize_with(id.0 + 1, Default::default);
        }
        let (rows, sums) = &mut self.list[id.0];
        sums.resize(cols, 0.0);
        for row in x.chunks_exact(cols) {
            *rows += 1;
            sums.iter_mut().zip(row).for_each(|(s, x)| *s += f64::from(*x) * f64::from(*x));
        }
    }

    /// Mean squares of the columns that went through weight `id`; `None` if nothing did.
    pub fn means(&self, id: usize) -> Option<Vec<f32>> {
        let (rows, sums) = self.list.get(id)?;
        (*rows > 0).then(|| sums.iter().map(|s| (s / *rows as f64) as f32).collect())
    }
}
