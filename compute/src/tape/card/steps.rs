//! Steps of generation as graphs. The kernels of a step with few new rows take less time than it takes to give them one by
//! one, so a kind of step that comes again is recorded, and from then on given as one launch.
//!
//! Steps read what differs among those of a kind from buffers that stay. The first step of a kind is a pass as any other: it
//! brings weights to the card, makes tables and loads kernels, none of which can be done while the second one is recorded,
//! which is the same pass.
//!
//! A graph costs memory for inputs, logits and the values of about a layer, as what its pass gives up is used again by what
//! comes later. The weights and pages that it reads stay as long as it does, so it ends when they do.

use std::iter::repeat;
use std::sync::Weak;

use cuda::Graph;
use cuda::ops::kv::Limits;

use super::*;
use crate::kv::{KvPages, PAGE};
use crate::tape::{Head, NewRows};

/// Kinds that a workspace remembers. Each size of batch is one, and each number of guesses; a kind that comes more
/// rarely than the others is not worth a recording.
const KINDS: usize = 8;

/// Most new rows of a sequence: a token and eight guesses, rounded up. Prompts have as many lengths as there are prompts,
/// and enough to compute that launches don't matter.
const SPAN_ROWS: usize = 16;

/// What the recording of a step depends on, beside the pages and the weights.
#[derive(Clone, Copy, PartialEq)]
struct Kind {
    limits: Limits,
    /// Rows of logits.
    wanted: usize,
    head: Head,
    precision: Precision,
    /// Number of parameters: adapters add theirs.
    parameters: usize,
}

/// Rounded up, so that few kinds do for batches of all sizes: products take eight rows in nearly the time of one.
fn rounded(n: usize) -> usize {
    if n <= 8 { n.next_power_of_two() } else { n.next_multiple_of(8) }
}

impl Kind {
    /// `None` if the step is not to become a graph.
    fn of(tape: &Tape<'_>, new: &NewRows<'_>, pages: &KvPages, head: Head) -> Option<Kind> {
        let limits = cached::limits(new.tokens.len(), new.spans, pages.total_pages());
        let limits = Limits {
            rows: rounded(limits.rows),
            spans: rounded(limits.spans),
            span_rows: rounded(limits.span_rows),
            // By doubling, as a sequence grows through all of them.
            span_pages: limits.span_pages.next_power_of_two(),
            ..limits
        };
        // With more rows, products take long enough, and have weights widened for them.
        let short = limits.span_rows <= SPAN_ROWS && limits.rows < MANY;
        (short && !new.wanted.is_empty()).then(|| Kind {
            limits,
            wanted: rounded(new.wanted.len()),
            head,
            precision: tape.precision(),
            parameters: tape.parameters.iter().len(),
        })
    }
}

/// The kinds of steps that were seen.
#[derive(Default)]
pub(in crate::tape) struct Steps {
    /// The one that was taken last is the last.
    list: Vec<Step>,
    /// Launches of graphs.
    pub(in crate::tape) launches: usize,
}

impl Steps {
    /// For weights that change.
    pub(super) fn forget(&mut self) {
        self.list.clear();
    }

    /// Pages may have ended.
    fn forget_ended(&mut self) {
        self.list.retain(|step| step.pages.strong_count() > 0);
    }

    /// Takes out that of a kind, if it is known.
    fn take(&mut self, kind: &Kind, pages: &Weak<()>) -> Option<Step> {
        let place = self.list.iter().position(|s| s.kind == *kind && s.pages.ptr_eq(pages));
        place.map(|place| self.list.remove(place))
    }

    fn keep(&mut self, step: Step) {
        if self.list.len() == KINDS {
            self.list.remove(0);
        }
        self.list.push(step);
    }
}

/// A kind of step, with what its passes read and write.
struct Step {
    kind: Kind,
    /// Ends with them.
    pages: Weak<()>,
    tokens: Arc<Buffer<u32>>,
    positions: Arc<Buffer<u32>>,
    spans: Arc<CachedSpans>,
    wanted: Buffer<u32>,
    logits: Buffer<f32>,
    /// Whether a pass has brought here what one needs.
    seen: bool,
    graph: Option<Graph>,
}

impl Step {
    fn new(gpu: &Gpu, kind: Kind, vocab: usize, pages: Weak<()>) -> Result<Step, Error> {
        let Limits { rows, .. } = kind.limits;
        Ok(Step {
            kind,
            pages,
            tokens: Arc::new(gpu.buffer(rows, "tokens")?),
            positions: Arc::new(gpu.buffer(rows, "positions")?),
            spans: Arc::new(CachedSpans::new(gpu, kind.limits)?),
            wanted: gpu.buffer(kind.wanted, "rows")?,
            logits: gpu.buffer(kind.wanted * vocab, "logits")?,
            seen: false,
            graph: None,
        })
    }

    /// Brings the inputs of a step here. Rows beyond them are token 0 at position 0, of no sequence.
    fn write(&mut self, new: &NewRows<'_>) -> Result<(), Error> {
        let write = |to: &mut Buffer<u32>, numbers: &mut dyn Iterator<Item = u32>| {
            let numbers: Vec<u32> = numbers.chain(repeat(0)).take(to.len()).collect();
            to.slice_mut().write(&numbers)
        };
        write(own(&mut self.tokens), &mut new.tokens.iter().copied())?;
        write(own(&mut self.positions), &mut new.positions.iter().copied())?;
        write(&mut self.wanted, &mut new.wanted.iter().map(|row| *row as u32))?;
        cached::write(own(&mut self.spans), new.spans)
    }

    /// What a pass is to read in the place of what it would upload.
    fn pass(&self, new: &NewRows<'_>) -> Pass {
        let tokens = (new.tokens.clone(), self.tokens.clone());
        let positions = (new.positions.clone(), self.positions.clone());
        Pass {
            numbers: vec![tokens, positions],
            spans: None,
            cached_spans: Some(self.spans.clone()),
            positions: self.kind.limits.span_pages * PAGE,
        }
    }
}

/// What was lent to passes that are over.
fn own<T>(lent: &mut Arc<T>) -> &mut T {
    match Arc::get_mut(lent) {
        Some(own) => own,
        None => unreachable!("a tape makes one step, and goes with it"),
    }
}

/// As [`Tape::step`].
pub(in crate::tape) fn step<'a>(
    mut tape: Tape<'a>,
    new: &NewRows<'_>,
    pages: &mut KvPages,
    head: Head,
    layers: impl FnOnce(&mut Tape<'a>, &mut KvPages) -> Var,
) -> Result<Vec<f32>, Error> {
    let (parameters, kind) = (tape.parameters, Kind::of(&tape, new, pages, head));
    let card = forward::card(&mut tape);
    // Before other pages are made, which may need the memory.
    card.steps.forget_ended();
    let Some(kind) = kind else {
        let h = layers(&mut tape, pages);
        return head::logits(&mut tape, h, new.wanted, head);
    };
    let gpu = card.gpu.clone();
    let identity = Arc::downgrade(&pages.on_card(&gpu)?.identity);
    let vocab = parameters.get(head.weight).value.rows();
    // One that fails is not put back.
    let mut step = match card.steps.take(&kind, &identity) {
        Some(step) => step,
        None => Step::new(&gpu, kind, vocab, identity)?,
    };
    step.write(new)?;
    if step.graph.is_none() {
        tape.pass = step.pass(new);
        let (wanted, logits) = (&step.wanted, step.logits.slice_mut());
        let pass = || {
            let h = layers(&mut tape, pages);
            head::logits_to(&mut tape, h, wanted, head, logits)
        };
        match step.seen {
            true => step.graph = Some(gpu.capture(pass)?),
            false => pass()?,
        }
        step.seen = true;
    }
    let card = forward::card(&mut tape);
    if let Some(graph) = &step.graph {
        card.weights.iter().zip(parameters.iter()).for_each(|(w, p)| w.assert_here(p));
        graph.launch()?;
        card.steps.launches += 1;
    }
    let logits = step.logits.part(..new.wanted.len() * vocab).read()?;
    card.steps.keep(step);
    Ok(logits)
}
