//! Attention to keys and values in pages.

use cuda::ops::kv::{self, Limits};

use super::forward::on_card;
use super::*;
use crate::cpu::attention::CachedSpan;
use crate::kv::KvPages;

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
    let cache_pages = pages.total_pages();
    // The same for all layers of a pass.
    if tape.pass.cached_spans.is_none() {
        tape.pass.cached_spans = Some(written(&gpu, rows, spans, cache_pages)?);
    }
    let (Some(spans), nodes) = (&tape.pass.cached_spans, &tape.on_card) else {
        unreachable!("written")
    };
    let on = pages.on_card(&gpu)?;
    let (key, value) = (nodes[k.0].value(), nodes[v.0].value());
    kv::append(&gpu, &on.shape, layer, on.data.slice_mut(), spans, key, value)?;
    let (s, data) = (on_card(shape), on.data.slice());
    let mut out = gpu.zeros(nodes[q.0].value().len(), "what attention gives")?;
    let mut scratch = gpu.buffer(spans.scratch(&s), "partial sums of attention")?;
    let (query, y) = (nodes[q.0].value(), Output::f32(out.slice_mut()));
    kv::forward_cached(&gpu, &s, &on.shape, layer, data, spans, query, scratch.slice_mut(), y)?;
    Ok(push(tape, out, rows, Op::Input))
}

fn written(
    gpu: &Gpu,
    rows: usize,
    spans: &[CachedSpan<'_>],
    cache_pages: usize,
) -> Result<CachedSpans, Error> {
    let numbers: Vec<Vec<u32>> =
        spans.iter().map(|s| s.pages.iter().map(|page| page.number()).collect()).collect();
    let limits = Limits {
        rows,
        spans: spans.len(),
        span_rows: spans.iter().map(|s| s.rows.len).max().unwrap_or(0),
        span_pages: numbers.iter().map(Vec::len).max().unwrap_or(0),
        cache_pages,
    };
    let list: Vec<_> = (spans.iter().zip(&numbers))
        .map(|(s, pages)| kv::CachedSpan {
            start: s.rows.start,
            len: s.rows.len,
            past: s.past,
            pages,
        })
        .collect();
    let mut written = CachedSpans::new(gpu, limits)?;
    written.write(&list)?;
    Ok(written)
}
