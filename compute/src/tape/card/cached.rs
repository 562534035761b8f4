//! Attention to keys and values in pages.

use cuda::ops::kv::{self, Limits};

use super::forward::on_card;
use super::*;
use crate::cpu::attention::CachedSpan;
use crate::kv::{KvPages, PAGE};

/// As [`Tape::attention_cached`].
#[allow(clippy::too_many_arguments)]
pub(in crate::tape) fn attention_cached(
    tape: &mut Tape<'_>,
    [q, k, v]: [Var; 3],
    shape: &AttentionShape,
    layer: usize,
    spans: &[CachedSpan<'_>],
    pages: &mut KvPages,
) -> Result<Var, Error> {
    let gpu = forward::card(tape).gpu.clone();
    let rows = tape.on_card[q.0].rows;
    // The same for all layers of a pass.
    let spans = match &tape.pass.cached_spans {
        Some(spans) => spans.clone(),
        None => {
            let mut made = CachedSpans::new(&gpu, limits(rows, spans, pages.total_pages()))?;
            write(&mut made, spans)?;
            tape.pass.cached_spans.insert(Arc::new(made)).clone()
        }
    };
    let (on, nodes) = (pages.on_card(&gpu)?, &tape.on_card);
    let (key, value) = (nodes[k.0].value(), nodes[v.0].value());
    kv::append(&gpu, &on.shape, layer, on.data.slice_mut(), &spans, key, value)?;
    let (s, data) = (on_card(shape), on.data.slice());
    let mut out = gpu.zeros(nodes[q.0].value().len(), "what attention gives")?;
    let mut scratch = gpu.buffer(spans.scratch(&s), "partial sums of attention")?;
    let (query, y) = (nodes[q.0].value(), Output::f32(out.slice_mut()));
    kv::forward_cached(&gpu, &s, &on.shape, layer, data, &spans, query, scratch.slice_mut(), y)?;
    Ok(push(tape, out, rows, Op::Input))
}

/// What a batch of these goes up to.
pub(super) fn limits(rows: usize, spans: &[CachedSpan<'_>], cache_pages: usize) -> Limits {
    Limits {
        rows,
        spans: spans.len(),
        span_rows: spans.iter().map(|s| s.rows.len).max().unwrap_or(0),
        span_pages: spans.iter().map(needed).max().unwrap_or(0),
        cache_pages,
    }
}

/// Pages that hold a sequence with its new rows; it may have more.
fn needed(span: &CachedSpan<'_>) -> usize {
    (span.past + span.rows.len).div_ceil(PAGE)
}

/// Brings them to the card.
pub(super) fn write(to: &mut CachedSpans, spans: &[CachedSpan<'_>]) -> Result<(), Error> {
    let numbers: Vec<Vec<u32>> = spans
        .iter()
        .map(|s| s.pages.iter().take(needed(s)).map(|page| page.number()).collect())
        .collect();
    let list: Vec<_> = (spans.iter().zip(&numbers))
        .map(|(s, pages)| kv::CachedSpan {
            start: s.rows.start,
            len: s.rows.len,
            past: s.past,
            pages,
        })
        .collect();
    to.write(&list)
}
