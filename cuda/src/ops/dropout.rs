//! Dropout (Srivastava et al. 2014): elements become nothing at random, the others larger.
#![allow(unsafe_code)]

use crate::gpu::args;
use crate::{Error, Gpu, Shape, Slice, SliceMut};

/// `y = x / (1 - rate)` where an element stays, 0 where not; a function of the key and an element's place
/// alone, the same as on the CPU. The gradient goes back by the same function. Of one length. `rate` is from 0 to below 1.
pub fn dropout(
    gpu: &Gpu,
    key: u64,
    rate: f32,
    x: Slice<'_, f32>,
    y: SliceMut<'_, f32>,
) -> Result<(), Error> {
    let n = y.len();
    assert_eq!(x.len(), n, "elements to drop");
    let least = (f64::from(rate) * 2f64.powi(32)) as u64;
    let factor = 1.0 / (1.0 - rate);
    // SAFETY: elements below n.
    unsafe { gpu.launch("dropout", Shape::over(n), args![key, least, factor, x, y, n]) }
}
