//! Dropout (Srivastava et al. 2014) before adapters: elements of an input become nothing at random, the others larger.

use std::sync::Mutex;

use super::{Op, Tape, Var};
use crate::Pool;
use crate::parameters::ParamId;
use crate::rng::Rng;

/// Elements of a task.
const TASK: usize = 1 << 14;

/// Which elements are dropped in passes that record: a function of the seed, the adapter and an element's
/// place alone, so it is the same for any number of threads, and when it is computed again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Share of the elements that are dropped, from 0 to below 1.
    pub rate: f32,
    /// To be another in each pass.
    pub seed: u64,
}

/// A choice of elements.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mask {
    pub(super) key: u64,
    pub(super) rate: f32,
}

impl Mask {
    /// That of the adapter whose first factor is `a`.
    pub(super) fn new(seed: u64, rate: f32, a: ParamId) -> Mask {
        Mask { key: Rng::new(seed).numbered(a.0 as u64).next_u64(), rate }
    }

    /// `y = x / (1 - rate)` where an element stays, 0 where not.
    fn apply(self, pool: &Pool, x: &[f32], y: &mut [f32]) {
        let least = (f64::from(self.rate) * 2f64.powi(32)) as u64;
        let factor = 1.0 / (1.0 - self.rate);
        let tasks: Vec<_> = x.chunks(TASK).zip(y.chunks_mut(TASK)).map(Mutex::new).collect();
        pool.run(tasks.len(), |t| {
            let mut task = tasks[t].lock().unwrap_or_else(|e| e.into_inner());
            let (x, y) = &mut *task;
            for (i, (x, y)) in x.iter().zip(y.iter_mut()).enumerate() {
                let stays = mixed(self.key ^ (t * TASK + i) as u64) >> 32 >= least;
                *y = if stays { x * factor } else { 0.0 };
            }
        });
    }
}

/// The finaliser of MurmurHash3 (Appleby), which spreads each bit over all.
fn mixed(mut x: u64) -> u64 {
    x = (x ^ (x >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    x = (x ^ (x >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ (x >> 33)
}

impl Tape<'_> {
    /// The input of an adapter whose first factor is `a`: `x` itself, if nothing is to be dropped in this pass.
    pub(super) fn dropout(&mut self, x: Var, a: ParamId) -> Var {
        let Some(Dropout { rate, seed }) =
            self.ws.dropout.filter(|d| self.ws.learns && d.rate > 0.0)
        else {
            return x;
        };
        let mask = Mask::new(seed, rate, a);
        let mut y = self.ws.floats.take(self.nodes[x.0].value.len());
        mask.apply(&self.ws.cpu.pool, self.value(x), &mut y);
        self.push(y, self.nodes[x.0].rows, Op::Dropout { x, mask })
    }

    pub(super) fn dropout_back(&mut self, x: Var, mask: Mask, dy: Vec<f32>) {
        let mut dx = self.ws.floats.take(dy.len());
        mask.apply(&self.ws.cpu.pool, &dy, &mut dx);
        self.ws.floats.give(dy);
        self.add_gradient(x, dx);
    }
}
