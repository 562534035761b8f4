//! Gradients of parameters on a card: summed over passes, and read or cleared once a step.

use super::*;

/// Elements of each of the parameters, of those that passes have added to.
#[derive(Debug, Default)]
pub(crate) struct Sums {
    list: Vec<Option<Buffer<f32>>>,
}

impl Sums {
    /// Sums of one, to add to.
    pub(super) fn of(
        &mut self,
        gpu: &Gpu,
        parameters: &Parameters,
        id: ParamId,
    ) -> Result<&mut Buffer<f32>, Error> {
        if self.list.len() <= id.0 {
            self.list.resize_with(id.0 + 1, || None);
        }
        let slot = &mut self.list[id.0];
        Ok(match slot {
            Some(sums) => sums,
            None => {
                let (len, name) = (parameters.get(id).value.len(), &parameters.get(id).name);
                slot.insert(gpu.zeros(len, &format!("the gradient of {name}"))?)
            }
        })
    }

    /// The same, taken out where two are needed at once; `None` for a parameter that isn't trained.
    pub(super) fn take(
        &mut self,
        gpu: &Gpu,
        parameters: &Parameters,
        id: ParamId,
    ) -> Result<Option<Buffer<f32>>, Error> {
        if !parameters.get(id).trainable {
            return Ok(None);
        }
        self.of(gpu, parameters, id)?;
        Ok(self.list[id.0].take())
    }

    /// Puts back what was taken out.
    pub(super) fn put(&mut self, id: ParamId, sums: Option<Buffer<f32>>) {
        if sums.is_some() {
            self.list[id.0] = sums;
        }
    }

    /// Adds them to a list in main memory, and forgets them.
    pub(crate) fn hand_on(&mut self, list: &mut [Vec<f32>]) -> Result<(), Error> {
        for (sums, to) in self.list.iter_mut().zip(list) {
            if let Some(sums) = sums.take() {
                sums.read()?.iter().zip(to).for_each(|(d, sum)| *sum += d);
            }
        }
        Ok(())
    }

    /// Sets all to zero.
    pub(crate) fn clear(&mut self) -> Result<(), Error> {
        self.list.iter_mut().flatten().try_for_each(|sums| sums.slice_mut().zero())
    }

    /// The length of all together.
    pub(crate) fn norm(&self) -> Result<f64, Error> {
        let mut all = self.list.iter().flatten().filter(|sums| !sums.is_empty()).peekable();
        let Some(gpu) = all.peek().map(|sums| sums.gpu().clone()) else { return Ok(0.0) };
        let count = self.list.iter().flatten().map(|sums| ops::update::parts(sums.len())).sum();
        let mut squares = gpu.buffer(count, "lengths of gradients")?;
        let mut start = 0;
        for sums in all {
            let end = start + ops::update::parts(sums.len());
            ops::update::squared_norm(&gpu, sums.slice(), squares.part_mut(start..end))?;
            start = end;
        }
        Ok(squares.read()?.iter().map(|x| f64::from(*x)).sum::<f64>().sqrt())
    }
}
