//! Keys and values of sequences that are being generated, in pages of 64 positions (Kwon et al. 2023,
//! <https://arxiv.org/abs/2309.06180>), and attention of new rows to them.
//!
//! A sequence's results depend on its rows and on how many of them are new, not on what else is in the
//! batch. What changes from step to step (lengths, pages) lies on the card, so a recorded graph stays
//! right.
#![allow(unsafe_code)]

use super::Output;
use super::attention::{AttentionShape, aligned};
use crate::gpu::{args, count};
use crate::{Buffer, Error, Gpu, Shape, Slice, SliceMut};

/// Positions in a page.
pub const PAGE: usize = 64;

/// New rows of a sequence, up to which its keys are shared among blocks by segments.
const FEW: usize = 8;

/// Pages in a segment, and lines (rows of query heads) of a tile, of the kernels for few rows.
const SEGMENT: usize = 4;
const LINES: usize = 16;

/// What `spans` on the card say in the place of a place.
const NO_PLACE: u32 = u32::MAX;

/// What keys and values are rounded to when they are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvType {
    /// Half precision: numbers up to 65,504.
    F16,
    /// The upper half of an f32.
    Bf16,
    /// Eight bits, 32 elements of a head to a scale (f32).
    Q8,
}

/// What the pages of a model are like. A page holds, layer by layer and head by head, keys
/// `[64, head_dim]` and values `[64, head_dim]`, then for [`KvType::Q8`] the scales of 32 elements, of keys
/// and of values, `[64, groups]` each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Of elements.
    pub kind: KvType,
    /// Layers.
    pub layers: usize,
    /// Key/value heads of a layer.
    pub kv_heads: usize,
    /// Elements of a head: a multiple of 8, up to 256.
    pub head_dim: usize,
}

impl KvShape {
    /// Bytes of a page. A cache is a buffer of as many for each page.
    pub fn page_bytes(&self) -> usize {
        self.layers * self.layer_bytes()
    }

    fn layer_bytes(&self) -> usize {
        let elements = 2 * PAGE * self.head_dim;
        let head = match self.kind {
            KvType::F16 | KvType::Bf16 => 2 * elements,
            KvType::Q8 => elements + 2 * PAGE * self.head_dim.div_ceil(32) * size_of::<f32>(),
        };
        self.kv_heads * head
    }

    /// Pages from a layer's first head on.
    fn layer<'a>(&self, layer: usize, pages: Slice<'a, u8>, spans: &CachedSpans) -> Slice<'a, u8> {
        assert!(layer < self.layers, "layer {layer} of {}", self.layers);
        let wanted = spans.limits.cache_pages * self.page_bytes();
        assert!(pages.len() >= wanted, "{} bytes of pages, of {wanted}", pages.len());
        let pages = pages.part(layer * self.layer_bytes()..);
        aligned(&pages);
        pages
    }

    /// The variant of a kernel for this type of elements.
    fn kernel(&self, name: &str, head_dim: usize) -> String {
        let kind = match self.kind {
            KvType::F16 => "f16",
            KvType::Bf16 => "bf16",
            KvType::Q8 => "q8",
        };
        format!("{name}_{head_dim}_{kind}")
    }
}

/// The newest rows of a sequence whose keys and values are in pages.
#[derive(Clone, Copy, Debug)]
pub struct CachedSpan<'a> {
    /// First of its rows in the batch.
    pub start: usize,
    /// Rows.
    pub len: usize,
    /// Position of the first of them in the sequence.
    pub past: usize,
    /// The sequence's pages, of positions `0..past + len` at least.
    pub pages: &'a [u32],
}

/// Up to what [`CachedSpans`] can go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Rows of the batch.
    pub rows: usize,
    /// Sequences.
    pub spans: usize,
    /// New rows of a sequence.
    pub span_rows: usize,
    /// Pages of a sequence.
    pub span_pages: usize,
    /// Pages of the cache.
    pub cache_pages: usize,
}

/// The sequences of a batch and their pages, on the card.
#[derive(Debug)]
pub struct CachedSpans {
    /// `[spans, 4]`: first row, rows, past, place of partial sums.
    spans: Buffer<u32>,
    /// `[spans, span_pages]`.
    table: Buffer<u32>,
    limits: Limits,
}

impl CachedSpans {
    /// No sequences yet.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn new(gpu: &Gpu, limits: Limits) -> Result<CachedSpans, Error> {
        let Limits { spans, span_pages, .. } = limits;
        assert!(limits.rows < 1 << 30 && span_pages < 1 << 24, "{limits:?}");
        Ok(CachedSpans {
            spans: gpu.zeros(4 * spans, "spans of cached sequences")?,
            table: gpu.zeros(spans * span_pages, "pages of cached sequences")?,
            limits,
        })
    }

    /// Other sequences. Launches that were recorded go on with these.
    ///
    /// # Errors
    /// [`Error::Driver`].
    ///
    /// # Panics
    /// If spans overlap or are out of order, if a page is missing, or beyond the limits.
    pub fn write(&mut self, spans: &[CachedSpan<'_>]) -> Result<(), Error> {
        let limits = self.limits;
        assert!(spans.len() <= limits.spans, "{} sequences of {}", spans.len(), limits.spans);
        let mut numbers = vec![0; self.spans.len()];
        let mut table = vec![0; self.table.len()];
        let (mut end, mut places) = (0, 0);
        for (i, span) in spans.iter().enumerate() {
            let CachedSpan { start, len, past, pages } = *span;
            assert!(start >= end && len <= limits.span_rows, "{len} rows from row {start} on");
            end = start + len;
            assert!(end <= limits.rows, "rows up to {end} of {}", limits.rows);
            let needed = (past + len).div_ceil(PAGE);
            assert!(needed <= pages.len().min(limits.span_pages), "{needed} pages are needed");
            for (to, page) in table[i * limits.span_pages..].iter_mut().zip(&pages[..needed]) {
                assert!((*page as usize) < limits.cache_pages, "page {page}");
                *to = *page;
            }
            let place = if len <= FEW { count(places) } else { NO_PLACE };
            places += if len <= FEW { len } else { 0 };
            numbers[4 * i..][..4].copy_from_slice(&[count(start), count(len), count(past), place]);
        }
        self.spans.slice_mut().write(&numbers)?;
        self.table.slice_mut().write(&table)
    }

    /// Elements of working memory that [`forward_cached`] needs.
    pub fn scratch(&self, s: &AttentionShape) -> usize {
        self.parts(s) * (s.head_dim + 2)
    }

    /// Partial sums: of every row of sequences with few new ones, query head and segment.
    fn parts(&self, s: &AttentionShape) -> usize {
        let Limits { rows, spans, span_rows, .. } = self.limits;
        rows.min(spans * span_rows.min(FEW)) * s.heads * self.segments()
    }

    fn segments(&self) -> usize {
        self.limits.span_pages.div_ceil(SEGMENT)
    }
}

/// Rounds new rows of keys and values, `[rows, kv_heads * head_dim]`, and stores them in a layer of their
/// sequences' pages.
///
/// # Errors
/// Of launches.
///
/// # Panics
/// If sizes do not agree, or a slice does not start at a multiple of 16 bytes.
#[allow(clippy::too_many_arguments)]
pub fn append(
    gpu: &Gpu,
    cache: &KvShape,
    layer: usize,
    pages: SliceMut<'_, u8>,
    spans: &CachedSpans,
    k: Slice<'_, f32>,
    v: Slice<'_, f32>,
) -> Result<(), Error> {
    let s = AttentionShape::plain(cache.kv_heads, cache.kv_heads, cache.head_dim);
    let elements = spans.limits.rows * cache.kv_heads * cache.head_dim;
    assert!(k.len() >= elements && v.len() == k.len(), "keys and values");
    [k, v].iter().for_each(aligned);
    let pages = cache.layer(layer, pages.as_slice(), spans);
    let (_, kv_heads, head_dim, ..) = s.numbers();
    let Limits { spans: n, span_rows, span_pages, .. } = spans.limits;
    let (bytes, table_len) = (cache.page_bytes(), count(span_pages));
    let shape = Shape::grid([span_rows.min(256), n, 1], 128);
    let (spans, table) = (spans.spans.slice(), spans.table.slice());
    let args = args![k, v, spans, table, table_len, pages, bytes, kv_heads, head_dim];
    // SAFETY: rows and pages are within the limits (checked as spans were written), and there are as many;
    // `pages` is a part of what is to be written.
    unsafe { gpu.launch(&cache.kernel("kv_append", s.compiled()), shape, args) }
}

/// Attention of rows whose keys, their own included, are in pages: row `i` of a span has position
/// `past + i` and sees positions `0..=past + i`, as far as the window goes.
///
/// `q`: `[rows, heads * head_dim]`; `out`: as q; `scratch`: working memory, [`CachedSpans::scratch`] of it.
/// Queries and weights are rounded to the pages' type, f16 for [`KvType::Q8`]. Rows of no span stay what
/// they are.
///
/// # Errors
/// Of launches.
///
/// # Panics
/// If sizes do not agree, or a slice does not start at a multiple of 16 bytes.
#[allow(clippy::too_many_arguments)]
pub fn forward_cached(
    gpu: &Gpu,
    s: &AttentionShape,
    cache: &KvShape,
    layer: usize,
    pages: Slice<'_, u8>,
    spans: &CachedSpans,
    q: Slice<'_, f32>,
    scratch: SliceMut<'_, f32>,
    out: Output<'_>,
) -> Result<(), Error> {
    assert!(cache.kv_heads == s.kv_heads && cache.head_dim == s.head_dim, "{cache:?} for {s:?}");
    let compiled = s.compiled();
    let (width, _) = s.widths();
    assert!(q.len() >= spans.limits.rows * width && out.len() == q.len(), "queries");
    assert!(scratch.len() >= spans.scratch(s), "{} elements of scratch", scratch.len());
    aligned(&q);
    out.f32.iter().for_each(|x| aligned(&x.as_slice()));
    out.bf16.iter().for_each(|x| aligned(&x.as_slice()));
    aligned(&scratch.as_slice());
    let pages = cache.layer(layer, pages, spans);
    let (heads, kv_heads, head_dim, scale, cap, window) = s.numbers();
    let Limits { spans: n, span_rows, span_pages, .. } = spans.limits;
    let (bytes, table_len) = (cache.page_bytes(), count(span_pages));
    let (parts, segments) = (spans.parts(s), spans.segments());
    let (spans, table) = (spans.spans.slice(), spans.table.slice());
    if span_rows > FEW {
        let (rows, pitch) = (if compiled <= 128 { 128 } else { 64 }, compiled + 8);
        let shape = Shape::grid([span_rows.div_ceil(rows), s.heads, n], 128)
            .shared((rows + 2 * PAGE) * pitch * size_of::<u16>());
        let args = args![
            q, pages, bytes, spans, table, table_len, heads, kv_heads, head_dim, scale, cap,
            window, out.f32, out.bf16
        ];
        // SAFETY: rows and pages are within the limits (checked as spans were written), and there are as
        // many; the tiles are the kernel's.
        unsafe { gpu.launch(&cache.kernel("kv_prompt", compiled), shape, args)? };
    }
    let few = span_rows.min(FEW);
    let tiles = (few * (s.heads / s.kv_heads)).div_ceil(LINES);
    // Enough blocks for the card, and not one for each segment that there may be.
    let stride =
        (16 * gpu.multiprocessors()).div_ceil((tiles * s.kv_heads * n).max(1)).min(segments);
    let shape = Shape::grid([tiles * stride, s.kv_heads, n], 128)
        .shared(4 * LINES * (compiled.next_multiple_of(64) + 2) * size_of::<f32>());
    let (segments, stride) = (count(segments), count(stride));
    let (sums, stats) = scratch.split_at(parts * s.head_dim);
    let args = args![
        q, pages, bytes, spans, table, table_len, segments, stride, heads, kv_heads, head_dim,
        scale, cap, window, sums, stats
    ];
    // SAFETY: as above; partial sums have places for all rows of sequences with few new ones.
    unsafe { gpu.launch(&cache.kernel("kv_decode", compiled), shape, args)? };
    let shape = Shape::grid([s.heads, few, n], 64);
    let args = args![sums, stats, spans, segments, heads, head_dim, window, out.f32, out.bf16];
    // SAFETY: as above.
    unsafe { gpu.launch(&cache.kernel("kv_combine", compiled), shape, args) }
}

/// Copies a page, of all layers.
///
/// # Errors
/// [`Error::Driver`].
///
/// # Panics
/// If there are no such pages, or they are the same.
pub fn copy_page(
    cache: &KvShape,
    mut pages: SliceMut<'_, u8>,
    from: usize,
    to: usize,
) -> Result<(), Error> {
    let bytes = cache.page_bytes();
    assert!(from != to, "page {from} onto itself");
    let (before, mut after) = pages.reborrow().split_at(from.max(to) * bytes);
    let mut lower = before;
    if from < to {
        let from = lower.as_slice().part(from * bytes..(from + 1) * bytes);
        after.part_mut(..bytes).copy(from)
    } else {
        lower.part_mut(to * bytes..(to + 1) * bytes).copy(after.as_slice().part(..bytes))
    }
}
