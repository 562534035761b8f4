//! The tape on a card: the operations of [`Tape`] by the kernels of [`cuda`], in the same order and with the same
//! contracts. Values are f32 in the card's memory, with a copy in bf16 once a product wants one. The card has
//! copies of the parameters that passes read, which are made again after
//! [`Workspace::weights_changed`](super::Workspace::weights_changed). Steps of an optimizer change the copies, with
//! gradients and moments that are there, too ([`optimizer`]); then main memory's can't be read until
//! [`Workspace::fetch`](super::Workspace::fetch).
//!
//! A card that fails ends the pass: [`ended`].

mod backward;
mod cached;
mod forward;
mod gradients;
mod head;
mod optimizer;
mod steps;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::Arc;

use cuda::matmul::{Matrix, matmul};
use cuda::ops::quantised::{self, BlockType};
use cuda::ops::{self, Output, attention::Spans, kv::CachedSpans};
use cuda::{Buffer, Error, Gpu, Slice, SliceMut};

use super::{Dropout, Linear, Tape, Var, again, dropout};
use crate::Span;
use crate::blocks;
use crate::cpu::attention::AttentionShape;
use crate::cpu::gated::Activation;
use crate::cpu::heads::Rope;
use crate::parameters::{ParamId, Parameter, Parameters};
use crate::strips::Strips;
use crate::tensor::{DType, Device};

pub(super) use backward::{back_to, seed};
pub(super) use cached::attention_cached;
pub(super) use forward::*;
pub(crate) use gradients::Sums;
pub(super) use head::{cross_entropy, logits};
pub use optimizer::{CardMoments, Muon, Rule};
use steps::Steps;
pub(super) use steps::step;

/// Rows of a product from which weights that stay as they were stored are widened for it first.
const MANY: usize = 64;

/// Why a parameter can't be read.
const ELSEWHERE: &str =
    "the newest values are on another workspace's card, or were forgotten there";

/// What went wrong on the card, if anything did, as a panic without a message: who has a place for errors catches it
/// with [`caught`].
pub(crate) fn ended<T>(result: Result<T, Error>) -> T {
    result.unwrap_or_else(|error| resume_unwind(Box::new(error)))
}

/// Runs `f`, and gives what went wrong on a card in the middle of it, which left its values unfinished.
///
/// # Errors
/// Those of [`cuda`]. Other panics go on.
pub fn caught<T>(f: impl FnOnce() -> T) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(f)).map_err(|panic| match panic.downcast() {
        Ok(error) => *error,
        Err(panic) => resume_unwind(panic),
    })
}

/// What passes over one model have on a card.
pub(super) struct Card {
    pub(super) gpu: Gpu,
    weights: Vec<Weight>,
    ropes: Vec<(Arc<Rope>, Arc<ops::heads::Rope>)>,
    pub(super) steps: Steps,
}

/// The card of a tape that is on one.
fn there(card: &mut Option<Card>) -> &mut Card {
    match card {
        Some(card) => card,
        None => unreachable!("a tape that is on no card"),
    }
}

/// A token or a position of each row: here, and on the card, where a workspace may keep them.
type Numbers = (Rc<[u32]>, Arc<Buffer<u32>>);

/// What layer after layer of a pass asks for, with what it was made from.
#[derive(Default)]
pub(super) struct Pass {
    numbers: Vec<Numbers>,
    spans: Option<(Rc<[Span]>, Rc<Spans>)>,
    cached_spans: Option<Arc<CachedSpans>>,
    /// Positions whose angles are wanted at least.
    positions: usize,
}

impl Pass {
    /// Numbers of rows on the card.
    fn numbers(&mut self, gpu: &Gpu, numbers: &Rc<[u32]>) -> Result<Arc<Buffer<u32>>, Error> {
        if let Some((_, buffer)) = self.numbers.iter().find(|(k, _)| Rc::ptr_eq(k, numbers)) {
            return Ok(buffer.clone());
        }
        let buffer = Arc::new(gpu.upload(numbers, "numbers of rows")?);
        self.numbers.push((numbers.clone(), buffer.clone()));
        Ok(buffer)
    }

    fn spans(&mut self, gpu: &Gpu, rows: usize, spans: &Rc<[Span]>) -> Result<Rc<Spans>, Error> {
        if let Some((_, made)) = self.spans.as_ref().filter(|(k, _)| Rc::ptr_eq(k, spans)) {
            return Ok(made.clone());
        }
        let list: Vec<_> = spans.iter().map(|s| (s.start, s.len)).collect();
        let made = Rc::new(Spans::new(gpu, rows, &list)?);
        self.spans = Some((spans.clone(), made.clone()));
        Ok(made)
    }
}

/// A parameter on the card, in the forms that were asked for.
#[derive(Default)]
struct Weight {
    stale: bool,
    /// Whether steps were taken here that main memory doesn't know of.
    newest: bool,
    plain: Option<Buffer<f32>>,
    half: Option<Buffer<u16>>,
    stored: Option<quantised::Weights>,
}

impl Weight {
    /// # Panics
    /// If the parameter's newest values are on another workspace's card.
    fn assert_here(&self, p: &Parameter) {
        assert!(self.newest || p.value.device() == Device::Cpu, "{}: {ELSEWHERE}", p.name);
    }
}

/// A value on the card.
pub(super) struct Node<'a> {
    /// `[rows, cols]`; `None` when it was given up.
    value: Option<Buffer<f32>>,
    half: Option<Buffer<u16>>,
    rows: usize,
    cols: usize,
    gradient: Option<Buffer<f32>>,
    op: Op<'a>,
}

/// As [`super::Op`].
enum Op<'a> {
    Input,
    Again {
        x: Var,
        made: again::Made<'a>,
    },
    Dropout {
        x: Var,
        mask: dropout::Mask,
    },
    Add {
        a: Var,
        b: Var,
    },
    Scale {
        x: Var,
        factor: f32,
    },
    Embedding {
        table: ParamId,
        ids: Arc<Buffer<u32>>,
    },
    Linear {
        x: Var,
        layer: Linear,
        residual: Option<Var>,
    },
    RmsNorm {
        x: Var,
        w: ParamId,
        inv: Buffer<f32>,
    },
    LayerNorm {
        x: Var,
        w: ParamId,
        b: ParamId,
        stats: Buffer<f32>,
    },
    Heads {
        x: Var,
        w: Option<ParamId>,
        inv: Option<Buffer<f32>>,
        rope: Arc<ops::heads::Rope>,
        positions: Arc<Buffer<u32>>,
    },
    Attention {
        q: Var,
        k: Var,
        v: Var,
        shape: AttentionShape,
        spans: Rc<Spans>,
        lse: Buffer<f32>,
    },
    Gated {
        f: Activation,
        gate: Var,
        up: Option<Var>,
    },
}

impl Node<'_> {
    fn value(&self) -> Slice<'_, f32> {
        match &self.value {
            Some(value) => value.slice(),
            None => panic!("a value that was given up"),
        }
    }

    /// Its elements, in main memory.
    pub(super) fn read(&self) -> Vec<f32> {
        ended(self.value().read())
    }

    pub(super) fn read_gradient(&self) -> Option<Vec<f32>> {
        self.gradient.as_ref().map(|gradient| ended(gradient.read()))
    }

    pub(super) fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// Gives up its memory.
    pub(super) fn give_up(&mut self) {
        (self.value, self.half) = (None, None);
        self.op = Op::Input;
    }

    /// Makes the copy in bf16, if there is none.
    fn halve(&mut self, gpu: &Gpu) -> Result<(), Error> {
        if self.half.is_none() {
            self.half = Some(halved(gpu, self.value())?);
        }
        Ok(())
    }

    /// The copy in bf16, which was made.
    fn half(&self) -> Slice<'_, u16> {
        match &self.half {
            Some(half) => half.slice(),
            None => panic!("a value that was not rounded"),
        }
    }
}

/// A copy in bf16.
fn halved(gpu: &Gpu, x: Slice<'_, f32>) -> Result<Buffer<u16>, Error> {
    let mut half = gpu.buffer(x.len(), "a value in bf16")?;
    ops::update::round_bf16(gpu, x, half.slice_mut())?;
    Ok(half)
}

/// How products are to be computed.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct Precision {
    pub(super) products: DType,
    /// Weights of fewer bits are widened to f32.
    pub(super) exact: bool,
}

impl Precision {
    /// Whether a product with this weight reads bf16.
    fn halves(self, strips: Option<&Strips>) -> bool {
        match strips {
            Some(_) => !self.exact,
            None => self.products == DType::Bf16,
        }
    }
}

impl Card {
    pub(super) fn new(gpu: Gpu) -> Card {
        Card { gpu, weights: Vec::new(), ropes: Vec::new(), steps: Steps::default() }
    }

    pub(super) fn weights_changed(&mut self) {
        self.weights.iter_mut().for_each(|w| w.stale = true);
        self.steps.forget();
    }

    fn buffer(&self, len: usize, what: &str) -> Result<Buffer<f32>, Error> {
        self.gpu.buffer(len, what)
    }

    /// A parameter's place, without what is out of date.
    ///
    /// # Panics
    /// If its newest values are on another workspace's card.
    fn weight(&mut self, parameters: &Parameters, id: ParamId) -> &mut Weight {
        if self.weights.len() <= id.0 {
            self.weights.resize_with(id.0 + 1, Weight::default);
        }
        let weight = &mut self.weights[id.0];
        if weight.stale {
            *weight = Weight::default();
        }
        weight.assert_here(parameters.get(id));
        weight
    }

    /// A parameter that is f32, as it is.
    fn plain(&mut self, parameters: &Parameters, id: ParamId) -> Result<&Buffer<f32>, Error> {
        let gpu = self.gpu.clone();
        let slot = &mut self.weight(parameters, id).plain;
        Ok(match slot {
            Some(plain) => plain,
            None => slot.insert(gpu.upload(parameters.f32(id), &parameters.get(id).name)?),
        })
    }

    /// A parameter that is f32, rounded to bf16.
    fn half(&mut self, parameters: &Parameters, id: ParamId) -> Result<&Buffer<u16>, Error> {
        let gpu = self.gpu.clone();
        let Weight { plain, half: slot, .. } = self.weight(parameters, id);
        Ok(match (slot, plain) {
            (Some(half), _) => half,
            (slot, Some(plain)) => slot.insert(halved(&gpu, plain.slice())?),
            (slot, None) => {
                let round = |x: &f32| half::bf16::from_f32(*x).to_bits();
                let bits: Vec<u16> = parameters.f32(id).iter().map(round).collect();
                slot.insert(gpu.upload(&bits, &parameters.get(id).name)?)
            }
        })
    }

    /// A parameter of fewer bits, as it was stored; types that the card has no kernels for as BF16.
    fn stored(
        &mut self,
        parameters: &Parameters,
        w: &Strips,
        id: ParamId,
    ) -> Result<&quantised::Weights, Error> {
        let gpu = self.gpu.clone();
        let slot = &mut self.weight(parameters, id).stored;
        Ok(match slot {
            Some(stored) => stored,
            None => {
                let (rows, cols) = (w.rows(), w.cols());
                let (kind, blocks) = match kind_on_card(w.kind()) {
                    Some(kind) => {
                        let row = cols / w.kind().elements() * w.kind().bytes();
                        let mut blocks = vec![0; rows * row];
                        for (r, row) in blocks.chunks_exact_mut(row.max(1)).enumerate() {
                            w.row_blocks(r, row);
                        }
                        (kind, blocks)
                    }
                    None => {
                        let (mut blocks, mut row) = (Vec::new(), vec![0.0; cols]);
                        for r in 0..rows {
                            w.row(r, &mut row);
                            let bytes = row.iter().map(|x| half::bf16::from_f32(*x).to_le_bytes());
                            blocks.extend(bytes.flatten());
                        }
                        (BlockType::BF16, blocks)
                    }
                };
                slot.insert(quantised::Weights::upload(
                    &gpu,
                    kind,
                    rows,
                    cols,
                    &blocks,
                    &parameters.get(id).name,
                )?)
            }
        })
    }

    /// `c = x wᵀ`, or `c += …`. `x`: `[rows, in]`, with its copy in bf16 where [`Precision::halves`].
    #[allow(clippy::too_many_arguments)]
    fn product(
        &mut self,
        precision: Precision,
        parameters: &Parameters,
        id: ParamId,
        x: &Node<'_>,
        c: SliceMut<'_, f32>,
        more: bool,
    ) -> Result<(), Error> {
        let (gpu, rows) = (self.gpu.clone(), x.rows);
        let weight = parameters.get(id);
        let (n, k) = (weight.value.rows(), weight.value.cols());
        assert!(x.cols == k && c.len() == rows * n, "a product with {}", weight.name);
        let Some(strips) = weight.value.strips() else {
            return match precision.products {
                DType::Bf16 => {
                    let w = Matrix::bf16(self.half(parameters, id)?.slice(), n, k);
                    matmul(&gpu, Matrix::bf16(x.half(), rows, k), w.t(), c, more)
                }
                DType::F32 => {
                    let w = Matrix::f32(self.plain(parameters, id)?.slice(), n, k);
                    matmul(&gpu, Matrix::f32(x.value(), rows, k), w.t(), c, more)
                }
            };
        };
        let w = self.stored(parameters, strips, id)?;
        if precision.halves(Some(strips)) && rows < MANY {
            return quantised::product(&gpu, x.half(), w, c, more);
        }
        match widened(&gpu, precision, w)? {
            Wide::Half(w) => {
                let w = Matrix::bf16(w.slice(), n, k);
                matmul(&gpu, Matrix::bf16(x.half(), rows, k), w.t(), c, more)
            }
            Wide::Plain(w) => {
                let w = Matrix::f32(w.slice(), n, k);
                matmul(&gpu, Matrix::f32(x.value(), rows, k), w.t(), c, more)
            }
        }
    }

    /// `dx = dy w`, or `dx += …`. `dy`: `[rows, out]`, with a copy in bf16 where [`Precision::halves`].
    #[allow(clippy::too_many_arguments)]
    fn product_back(
        &mut self,
        precision: Precision,
        parameters: &Parameters,
        id: ParamId,
        rows: usize,
        dy: Slice<'_, f32>,
        dy_half: Option<Slice<'_, u16>>,
        dx: SliceMut<'_, f32>,
        more: bool,
    ) -> Result<(), Error> {
        let gpu = self.gpu.clone();
        let weight = parameters.get(id);
        let (n, k) = (weight.value.rows(), weight.value.cols());
        if let Some(strips) = weight.value.strips() {
            // As on the CPU, the way back is that of exact products.
            let exact = Precision { exact: true, ..precision };
            return match widened(&gpu, exact, self.stored(parameters, strips, id)?)? {
                Wide::Plain(w) => {
                    let w = Matrix::f32(w.slice(), n, k);
                    matmul(&gpu, Matrix::f32(dy, rows, n), w, dx, more)
                }
                Wide::Half(_) => Ok(()),
            };
        }
        match dy_half {
            Some(dy) => {
                let w = Matrix::bf16(self.half(parameters, id)?.slice(), n, k);
                matmul(&gpu, Matrix::bf16(dy, rows, n), w, dx, more)
            }
            None => {
                let w = Matrix::f32(self.plain(parameters, id)?.slice(), n, k);
                matmul(&gpu, Matrix::f32(dy, rows, n), w, dx, more)
            }
        }
    }

    /// What [`Card::plain`] has brought here.
    fn known(&self, id: ParamId) -> Slice<'_, f32> {
        match self.weights.get(id.0).and_then(|w| w.plain.as_ref()) {
            Some(plain) => plain.slice(),
            None => panic!("a parameter that is not on the card"),
        }
    }

    /// Angles of at least `positions` positions, or of all that there are.
    fn rope(&mut self, rope: &Arc<Rope>, positions: usize) -> Result<Arc<ops::heads::Rope>, Error> {
        let positions = positions.min(rope.positions());
        let slot = self.ropes.iter().position(|(known, _)| Arc::ptr_eq(known, rope));
        if let Some((_, made)) =
            slot.map(|i| &self.ropes[i]).filter(|r| r.1.positions() >= positions)
        {
            return Ok(made.clone());
        }
        // Twice as many as are asked for, so that long answers don't make them again and again.
        let positions = (2 * positions).min(rope.positions());
        let table = rope.table(positions);
        let made = Arc::new(ops::heads::Rope::new(
            &self.gpu,
            rope.head_dim(),
            rope.frequencies(),
            &table,
        )?);
        match slot {
            Some(i) => self.ropes[i].1 = made.clone(),
            None => self.ropes.push((rope.clone(), made.clone())),
        }
        Ok(made)
    }
}

/// A weight, widened for a product.
enum Wide {
    Half(Buffer<u16>),
    Plain(Buffer<f32>),
}

fn widened(gpu: &Gpu, precision: Precision, w: &quantised::Weights) -> Result<Wide, Error> {
    let len = w.rows() * w.cols();
    if precision.exact {
        let mut plain = gpu.buffer(len, "a widened weight")?;
        quantised::widen(gpu, w, 0, Output::f32(plain.slice_mut()))?;
        return Ok(Wide::Plain(plain));
    }
    let mut half = gpu.buffer(len, "a widened weight")?;
    quantised::widen(gpu, w, 0, Output::bf16(half.slice_mut()))?;
    Ok(Wide::Half(half))
}

/// The card's name of a type, if it has kernels for it.
fn kind_on_card(kind: blocks::BlockType) -> Option<BlockType> {
    BlockType::ALL.into_iter().find(|known| known.name() == kind.name())
}

/// Scratch of sums over `rows` rows of `width`.
fn scratch(gpu: &Gpu, rows: usize, width: usize) -> Result<Buffer<f32>, Error> {
    gpu.buffer(ops::bias::parts(rows) * width, "sums")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_card_says_is_caught_and_nothing_else() {
        assert!(matches!(caught(|| ended(Ok(3))), Ok(3)));
        let gpu = Gpu::emulated();
        let error = caught(|| ended(gpu.buffer::<f32>(1 << 50, "a key/value cache of 9 pages")));
        let told = error.err().map(|error| error.to_string()).unwrap_or_default();
        assert!(
            told.contains("a key/value cache of 9 pages needs 4503599627370496 bytes"),
            "{told}"
        );
        let other = catch_unwind(|| caught(|| assert_eq!(1, 2)));
        assert!(other.is_err(), "other panics go on");
    }
}
