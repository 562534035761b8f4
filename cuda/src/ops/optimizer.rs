//! Steps of optimizers: AdamW, Muon, and the clipping of gradients, without a word to the host.
//!
//! The norm of all gradients is [`squared_norm`] of each into parts of one buffer, and [`clip`] of
//! that; the factor that it leaves on the card is what steps multiply gradients by.
//!
//! [`squared_norm`]: super::update::squared_norm
#![allow(unsafe_code)]

use super::update::round_bf16;
use crate::gpu::{args, count};
use crate::matmul::{Matrix, matmul};
use crate::{Buffer, Error, Gpu, Shape, Slice, SliceMut};

/// Elements of a partial sum of Muon's norm: enough blocks for a card, and few enough sums for one
/// of them.
const PART: usize = 1 << 13;
/// Coefficients of the quintic step, tuned by Muon's authors for a steep slope at 0.
const QUINTIC: [f32; 3] = [3.4445, -4.7750, 2.0315];
const STEPS: usize = 5;
/// A shorter gradient is none.
const LEAST: f32 = 1e-7;

/// From the partial sums of squares of all gradients: their norm, `to[0]`, and what to multiply
/// them by so that it is at most `limit`, `to[1]`: 1 for shorter ones, and always if `limit` is 0.
/// Sums are f64, in a fixed order.
///
/// # Panics
/// If `to` is not two numbers.
pub fn clip(
    gpu: &Gpu,
    sums: Slice<'_, f32>,
    limit: f32,
    to: SliceMut<'_, f32>,
) -> Result<(), Error> {
    assert_eq!(to.len(), 2, "a norm and a factor");
    let n = sums.len();
    // SAFETY: reads n sums, writes two numbers.
    unsafe { gpu.launch("clip_factor", Shape::new(1, 256), args![sums, n, limit, to]) }
}

/// Settings of one AdamW step.
#[derive(Clone, Copy, Debug)]
pub struct AdamW {
    /// Learning rate.
    pub lr: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the denominator.
    pub eps: f32,
    /// Decoupled weight decay, times the learning rate.
    pub weight_decay: f32,
    /// Number of this step, from 1.
    pub step: u64,
}

/// A parameter, and the copy of it in bf16 that products read, if they do.
#[derive(Debug)]
pub struct Parameter<'a> {
    /// What is trained.
    pub value: SliceMut<'a, f32>,
    /// Written with it.
    pub bf16: Option<SliceMut<'a, u16>>,
}

impl Parameter<'_> {
    fn len(&self) -> usize {
        let len = self.value.len();
        assert!(
            self.bf16.as_ref().is_none_or(|copy| copy.len() == len),
            "a copy of {len} elements"
        );
        len
    }
}

/// A gradient, and the number that it is multiplied by, if it is: [`clip`]'s factor.
#[derive(Clone, Copy, Debug)]
pub struct Gradient<'a> {
    /// As the way back left it.
    pub value: Slice<'a, f32>,
    /// One number.
    pub factor: Option<Slice<'a, f32>>,
}

impl Gradient<'_> {
    fn len(&self) -> usize {
        assert!(self.factor.is_none_or(|factor| factor.len() == 1), "one factor");
        self.value.len()
    }
}

/// AdamW (Loshchilov and Hutter 2019): moments with bias correction, decay apart from the gradient.
/// All are of one length. The same operations in the same order as the CPU's, which give the same
/// bits.
pub fn adamw(
    gpu: &Gpu,
    s: AdamW,
    x: Parameter<'_>,
    g: Gradient<'_>,
    m: SliceMut<'_, f32>,
    v: SliceMut<'_, f32>,
) -> Result<(), Error> {
    let n = x.len();
    assert!(g.len() == n && m.len() == n && v.len() == n, "moments of {n} elements");
    let corrected = |beta: f32| 1.0 - libm::pow(f64::from(beta), s.step as f64);
    let rate = (f64::from(s.lr) / corrected(s.beta1)) as f32;
    let root = (1.0 / corrected(s.beta2)) as f32;
    let (rest1, rest2, keep) = (1.0 - s.beta1, 1.0 - s.beta2, 1.0 - s.lr * s.weight_decay);
    let args = args![
        x.value, x.bf16, g.value, g.factor, m, v, n, s.beta1, rest1, s.beta2, rest2, rate, root,
        s.eps, keep
    ];
    // SAFETY: elements below n.
    unsafe { gpu.launch("adamw", Shape::over(n), args) }
}

/// Settings of one Muon step.
#[derive(Clone, Copy, Debug)]
pub struct Muon {
    /// Learning rate: the spectral norm of a square matrix's update.
    pub lr: f32,
    /// Decay of the momentum.
    pub momentum: f32,
    /// Decoupled weight decay, times the learning rate.
    pub weight_decay: f32,
}

/// Memory that Muon's steps need beside parameters, one matrix after the other.
#[derive(Debug)]
pub struct Scratch {
    /// The matrix that becomes orthogonal, in bf16, and a product with it.
    x: Buffer<u16>,
    product: Buffer<f32>,
    /// On the shorter side: `x xᵀ`, that squared, and what goes into products of both.
    gram: Buffer<f32>,
    square: Buffer<f32>,
    narrow: Buffer<u16>,
    sums: Buffer<f32>,
    norm: Buffer<f32>,
}

impl Scratch {
    /// For matrices of these `[rows, cols]`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn new(gpu: &Gpu, shapes: impl IntoIterator<Item = [usize; 2]>) -> Result<Scratch, Error> {
        let (mut all, mut short) = (0, 0);
        for [rows, cols] in shapes {
            (all, short) = (all.max(rows * cols), short.max(rows.min(cols)));
        }
        let what = "Muon's products";
        Ok(Scratch {
            x: gpu.buffer(all, what)?,
            product: gpu.buffer(all, what)?,
            gram: gpu.buffer(short * short, what)?,
            square: gpu.buffer(short * short, what)?,
            narrow: gpu.buffer(short * short, what)?,
            sums: gpu.buffer(all.div_ceil(PART), what)?,
            norm: gpu.buffer(2, what)?,
        })
    }
}

/// One step of Muon (Jordan et al. 2024): `momentum = μ momentum + g`; with Nesterov's look-ahead
/// `u = orthogonal(g + μ momentum)`; `w = (1 - lr·decay) w - lr · sqrt(max(1, rows / cols)) · u`.
/// All are `[rows, cols]`.
///
/// `u` is found in five Newton–Schulz steps on the shorter side, `X ← a X + (b A + c A²) X` with `A
/// = X Xᵀ`, whose operands are rounded to bf16 (the CPU's are f32), while sums and what is between
/// products are f32.
///
/// # Panics
/// If lengths don't fit, or `scratch` is for smaller matrices.
#[allow(clippy::too_many_arguments)]
pub fn muon(
    gpu: &Gpu,
    s: Muon,
    [rows, cols]: [usize; 2],
    w: Parameter<'_>,
    g: Gradient<'_>,
    momentum: SliceMut<'_, f32>,
    scratch: &mut Scratch,
) -> Result<(), Error> {
    let (n, short) = (rows * cols, rows.min(cols));
    assert!(w.len() == n && g.len() == n && momentum.len() == n, "matrices of [{rows}, {cols}]");
    assert!(
        scratch.x.len() >= n && scratch.gram.len() >= short * short,
        "scratch of [{rows}, {cols}]"
    );
    if n == 0 {
        return Ok(());
    }
    let Scratch { x, product, gram, square, narrow, sums, norm } = scratch;
    let mut sums = sums.part_mut(..n.div_ceil(PART));
    let parts = Shape::new(sums.len(), 256);
    let args = args![g.value, g.factor, s.momentum, momentum, n, count(PART), sums];
    // SAFETY: block i has the elements of part i below n, and sum i.
    unsafe { gpu.launch("muon_momentum", parts, args)? };
    clip(gpu, sums.reborrow().as_slice(), 0.0, norm.slice_mut())?;
    let (x, mut product) = (x.part_mut(..n), product.part_mut(..n));
    let length = norm.part(..1);
    let args = args![g.value, g.factor, s.momentum, momentum, length, LEAST, x, n];
    // SAFETY: elements below n, and one norm.
    unsafe { gpu.launch("muon_start", Shape::over(n), args)? };

    let squares = short * short;
    let (mut gram, mut square) = (gram.part_mut(..squares), square.part_mut(..squares));
    let mut narrow = narrow.part_mut(..squares);
    let [a, b, c] = QUINTIC;
    for step in 0..STEPS {
        let whole = Matrix::bf16(x.as_slice(), rows, cols);
        let (left, right) = if rows > cols { (whole.t(), whole) } else { (whole, whole.t()) };
        matmul(gpu, left, right, gram.reborrow(), false)?;
        round_bf16(gpu, gram.as_slice(), narrow.reborrow())?;
        let symmetric = Matrix::bf16(narrow.as_slice(), short, short);
        matmul(gpu, symmetric, symmetric, square.reborrow(), false)?;
        let args = args![gram, b, square, c, narrow, squares];
        // SAFETY: elements below short * short.
        unsafe { gpu.launch("muon_polynomial", Shape::over(squares), args)? };
        let symmetric = Matrix::bf16(narrow.as_slice(), short, short);
        let (left, right) = if rows > cols { (whole, symmetric) } else { (symmetric, whole) };
        matmul(gpu, left, right, product.reborrow(), false)?;
        if step + 1 < STEPS {
            // SAFETY: elements below n.
            unsafe { gpu.launch("muon_next", Shape::over(n), args![a, product, x, n])? };
        }
    }
    let rate = s.lr * (rows as f32 / cols as f32).max(1.0).sqrt();
    let keep = 1.0 - s.lr * s.weight_decay;
    let args = args![a, x, product, rate, keep, w.value, w.bf16, n];
    // SAFETY: elements below n.
    unsafe { gpu.launch("muon_update", Shape::over(n), args) }
}

/// Floating-point operations of the products of a Muon step.
pub fn muon_flops(rows: usize, cols: usize) -> f64 {
    let (n, m) = (rows.min(cols) as f64, rows.max(cols) as f64);
    STEPS as f64 * (4.0 * n * n * m + 2.0 * n * n * n)
}
