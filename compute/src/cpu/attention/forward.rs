//! The forward pass, for keys of this batch and for keys in pages alike.
//!
//! Keys come in segments of 512, anchored as blocks are: a row's state after each is computed by itself
//! and added to that after those before it. So a single row's keys can be shared among threads (Dao et
//! al. 2023, Flash-Decoding), to the same bits.

use std::cell::Cell;
use std::ops::Range;

use super::band::{self, Band, Element, Pairs, Product, Start};
use super::codes;
use super::tiles::Tiles;
use super::transpose::{halves, pad, pair_rows, transpose, transpose_pairs, unpad};
use super::{AttentionShape, BLOCK, CachedSpan, Unit, cap_scores, check_spans};
use super::{with_scratch, with_units};
use crate::Span;
use crate::aligned::Aligned;
use crate::bytes::Bytes;
use crate::cpu::Cpu;
use crate::kv::{Codes, KvPages, KvType, PageId, Stored, padded};
use crate::math::exp_masked;
use crate::simd::reduce::reduce;
use crate::simd::{LANES, Simd};

/// Rows of a task at most, and at least where there are more: enough to make packing a block of keys cheap.
const CHUNK: usize = 256;
const LEAST: usize = 16;

/// Rows of a task, of so many: few enough that there are several tasks for each thread.
fn chunk(cpu: &Cpu, s: &AttentionShape, rows: usize) -> usize {
    let mut chunk = CHUNK;
    while chunk > LEAST && rows.div_ceil(chunk) * s.kv_heads < 4 * cpu.pool.threads() {
        chunk /= 2;
    }
    chunk
}

/// Keys of a segment: eight blocks.
const SEGMENT: usize = 8 * BLOCK;

/// Rows of a task whose segments may be tasks of their own.
const FEW: usize = 8;

/// `out = softmax(scale q kᵀ) v`, causal within each span.
///
/// `q`, `out`: `[T, heads * head_dim]`; `k`, `v`: `[T, kv_heads * head_dim]`; `lse`: `[T, heads]`,
/// the logarithm of each row's softmax sum, which [`backward`](super::backward) needs. Rows of no
/// span become 0. With `bf16` the operands of both products are rounded to it, and their sums stay in f32; hidden
/// keys have to be numbers then.
///
/// # Panics
/// If sizes do not agree, or spans overlap or are out of order.
#[allow(clippy::too_many_arguments)]
pub fn forward(
    cpu: &Cpu,
    s: &AttentionShape,
    spans: &[Span],
    bf16: bool,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    out: &mut [f32],
    lse: &mut [f32],
) {
    s.check();
    let (width, kv_width) = s.widths();
    let rows = lse.len() / s.heads;
    assert!(lse.len() == rows * s.heads && q.len() == rows * width && out.len() == q.len());
    assert!(k.len() == rows * kv_width && v.len() == k.len());
    check_spans(spans.iter().copied(), rows, |r| {
        out[r.start * width..r.end * width].fill(0.0);
        lse[r.start * s.heads..r.end * s.heads].fill(0.0);
    });
    let (out, lse) = (Out(out.as_mut_ptr()), Out(lse.as_mut_ptr()));
    let chunk = chunk(cpu, s, spans.iter().map(|span| span.len).sum());
    with_units(s, spans.iter().map(|span| (0, span.len)), chunk, |units| {
        run(cpu, units, |unit| {
            let start = spans[unit.span].start;
            let row = start + unit.from;
            Task {
                shape: s,
                keys: Keys::Rows { k: &k[start * kv_width..], v: &v[start * kv_width..], bf16 },
                kv_head: unit.kv_head,
                from: unit.from,
                to: unit.to,
                q: &q[row * width..(row + unit.to - unit.from) * width],
                out: out.at(row * width),
                lse: Some(lse.at(row * s.heads)),
            }
        });
    });
}

/// The same for rows whose keys, their own included, are in pages: row `i` of a span has position
/// `past + i` and sees positions `0..=past + i`.
///
/// `q`, `out`: `[T, heads * head_dim]`. Rows of no span become 0.
///
/// # Panics
/// If sizes do not agree, spans overlap or are out of order, or pages are missing.
pub fn forward_cached(
    cpu: &Cpu,
    s: &AttentionShape,
    layer: usize,
    pages: &KvPages,
    spans: &[CachedSpan<'_>],
    q: &[f32],
    out: &mut [f32],
) {
    s.check();
    let (width, _) = s.widths();
    let (layers, kv_heads, head_dim) = pages.shape();
    assert!(layer < layers && kv_heads == s.kv_heads && head_dim == s.head_dim);
    assert!(q.len() == out.len() && q.len().is_multiple_of(width));
    for span in spans {
        assert!(span.pages.len() * BLOCK >= span.past + span.rows.len, "a page is missing");
    }
    check_spans(spans.iter().map(|s| s.rows), q.len() / width, |r| {
        out[r.start * width..r.end * width].fill(0.0);
    });
    let out = Out(out.as_mut_ptr());
    let chunk = chunk(cpu, s, spans.iter().map(|span| span.rows.len).sum());
    with_units(s, spans.iter().map(|span| (span.past, span.rows.len)), chunk, |units| {
        run(cpu, units, |unit| {
            let span = &spans[unit.span];
            let row = span.rows.start + unit.from - span.past;
            Task {
                shape: s,
                keys: Keys::Pages { pages, layer, ids: span.pages },
                kv_head: unit.kv_head,
                from: unit.from,
                to: unit.to,
                q: &q[row * width..(row + unit.to - unit.from) * width],
                out: out.at(row * width),
                lse: None,
            }
        });
    });
}

/// Computes units. Where rows are few and keys many, segments are tasks of their own, whose results are
/// put together afterwards, in the order in which a single task does it.
fn run<'a>(cpu: &Cpu, units: &[Unit], task: impl Fn(Unit) -> Task<'a> + Sync) {
    thread_local!(static PARTS: Cell<Aligned> = const { Cell::new(Aligned::empty()) });
    // A unit, its segments, and where the state of a part goes.
    let mut pieces: Vec<(Unit, Range<usize>, Option<usize>)> = Vec::with_capacity(units.len());
    let mut split: Vec<(Unit, usize)> = Vec::new();
    let mut len = 0;
    for unit in units {
        let task = task(*unit);
        let segments = task.segments();
        if task.to - task.from > FEW || segments.len() == 1 {
            pieces.push((*unit, segments, None));
            continue;
        }
        split.push((*unit, len));
        for segment in segments {
            pieces.push((*unit, segment..segment + 1, Some(len)));
            len += State::len(task.lines(), padded(task.shape.head_dim));
        }
    }
    let mut memory = PARTS.take();
    if memory.len() < len {
        memory = Aligned::zeros(len).unwrap_or_else(|| panic!("no memory for {len} numbers"));
    }
    let parts = Out(memory.as_mut_ptr());
    cpu.pool.run(pieces.len(), |i| {
        let (unit, segments, part) = pieces[i].clone();
        task(unit).start(cpu, segments, part.map(|part| parts.at(part)));
    });
    cpu.pool.run(split.len(), |i| {
        let (unit, part) = split[i];
        task(unit).put_together(cpu, parts.at(part));
    });
    PARTS.set(memory);
}

/// Output that tasks write disjoint parts of.
struct Out(*mut f32);
// SAFETY: units differ in rows or in head, and write those only.
unsafe impl Sync for Out {}

impl Out {
    fn at(&self, i: usize) -> *mut f32 {
        self.0.wrapping_add(i)
    }
}

/// Where keys and values come from.
#[derive(Clone, Copy)]
enum Keys<'a> {
    /// Rows of this batch, from the span's first, for products in f32 or bf16.
    Rows { k: &'a [f32], v: &'a [f32], bf16: bool },
    /// A sequence's pages.
    Pages { pages: &'a KvPages, layer: usize, ids: &'a [PageId] },
}

/// A unit of work: positions `from..to`, the query heads of one key head.
#[derive(Clone, Copy)]
struct Task<'a> {
    shape: &'a AttentionShape,
    keys: Keys<'a>,
    kv_head: usize,
    from: usize,
    to: usize,
    /// The rows.
    q: &'a [f32],
    out: *mut f32,
    lse: Option<*mut f32>,
}

/// What is known of lines after some of their keys.
#[derive(Clone, Copy)]
struct State {
    /// Weighted sums of values, `[lines, hdp]`.
    acc: *mut f32,
    /// Largest score, `[lines]`.
    max: *mut f32,
    /// Sums of weights in 16 virtual lanes, `[lines, 16]`.
    sum: *mut f32,
}

impl State {
    fn len(lines: usize, hdp: usize) -> usize {
        lines * (hdp + LANES) + lines.next_multiple_of(LANES)
    }

    fn at(start: *mut f32, lines: usize, hdp: usize) -> State {
        let sum = start.wrapping_add(lines * hdp);
        State { acc: start, sum, max: sum.wrapping_add(lines * LANES) }
    }

    /// That before any key.
    #[inline(always)]
    unsafe fn reset<S: Simd>(&self, lines: usize, hdp: usize) {
        // SAFETY: there are that many lines.
        unsafe {
            for line in 0..lines {
                *self.max.add(line) = f32::NEG_INFINITY;
            }
            for i in (0..lines * LANES).step_by(LANES) {
                S::store(self.sum.add(i), S::splat(0.0));
            }
            for i in (0..lines * hdp).step_by(LANES) {
                S::store(self.acc.add(i), S::splat(0.0));
            }
        }
    }

    /// Adds what is known after later keys, of which lines `first..first + n` see some.
    #[inline(always)]
    unsafe fn add<S: Simd>(&self, later: &State, first: usize, n: usize, hdp: usize) {
        // SAFETY: both have these lines.
        unsafe {
            for line in (first..first + n).step_by(LANES) {
                let rows = (first + n - line).min(LANES);
                let (before, after) =
                    (S::load_n(self.max.add(line), rows), S::load_n(later.max.add(line), rows));
                let max = S::max(before, after);
                S::store_n(self.max.add(line), max, rows);
                let old = S::to_array(exp_masked::<S>(S::sub(before, max)));
                let new = S::to_array(exp_masked::<S>(S::sub(after, max)));
                for r in 0..rows {
                    let (old, new) = (S::splat(old[r]), S::splat(new[r]));
                    let mut add =
                        (self.sum.add((line + r) * LANES), later.sum.add((line + r) * LANES));
                    S::store(add.0, S::fma(S::load(add.1), new, S::mul(S::load(add.0), old)));
                    add = (self.acc.add((line + r) * hdp), later.acc.add((line + r) * hdp));
                    for d in (0..hdp).step_by(LANES) {
                        let sum = S::mul(S::load(add.0.add(d)), old);
                        S::store(add.0.add(d), S::fma(S::load(add.1.add(d)), new, sum));
                    }
                }
            }
        }
    }
}

/// Rows that the kernel goes through together, `(head of the group, position)` in this order.
#[derive(Clone, Copy)]
struct Lines {
    /// Queries, scaled, `[lines, hdp]`; where products are in bf16, that is what they are, and where they are of codes,
    /// what [`codes::queries`] writes.
    q: *const f32,
    /// After the keys of a segment so far.
    state: State,
    /// After all segments so far.
    total: State,
    /// Weights of a tile, `[rows, 64]`.
    p: *mut f32,
    /// A block of keys, `[hd, 64]`, and of values, `[64, hdp]`; pairs for products in bf16.
    k: *mut f32,
    v: *mut f32,
}

impl Task<'_> {
    /// Query rows of all heads.
    fn lines(&self) -> usize {
        self.shape.group() * (self.to - self.from)
    }

    /// Segments of keys that some row sees.
    fn segments(&self) -> Range<usize> {
        self.shape.first_key(self.from) / SEGMENT..(self.to - 1) / SEGMENT + 1
    }

    /// Writes what all segments give, or to `part` the state after one.
    fn start(self, cpu: &Cpu, segments: Range<usize>, part: Option<*mut f32>) {
        let hdp = padded(self.shape.head_dim);
        let lines = self.lines();
        let state = State::len(lines, hdp);
        let lens = [lines * hdp, state, state, LANES * BLOCK, BLOCK * hdp, BLOCK * hdp];
        with_scratch(lens, |[q, state, total, p, k, v]| {
            let state = State::at(part.unwrap_or(state), lines, hdp);
            let lines = Lines { q, state, total: State::at(total, lines, hdp), p, k, v };
            if part.is_some() {
                let segment = segments.start;
                crate::dispatch!(
                    cpu.isa,
                    part_kernel(task: Task<'_> = self, lines: Lines = lines, segment: usize = segment)
                );
            } else {
                crate::dispatch!(
                    cpu.isa,
                    kernel(task: Task<'_> = self, lines: Lines = lines, segments: Range<usize> = segments)
                );
            }
        });
    }

    /// Writes what the parts of all segments give.
    fn put_together(self, cpu: &Cpu, parts: *mut f32) {
        let len = State::len(self.lines(), padded(self.shape.head_dim));
        with_scratch([len], |[total]| {
            crate::dispatch!(
                cpu.isa,
                total_kernel(task: Task<'_> = self, parts: *mut f32 = parts, total: *mut f32 = total)
            );
        });
    }

    /// Whether products are in bf16.
    fn bf16(&self) -> bool {
        matches!(self.keys, Keys::Rows { bf16: true, .. })
    }

    /// Whether products are of codes.
    fn of_codes(&self) -> bool {
        matches!(self.keys, Keys::Pages { pages, .. } if pages.kind() == KvType::Q16)
    }

    /// Keys and values of block `b`; packed or widened into `lines`, if need be.
    #[inline(always)]
    unsafe fn block<S: Bytes>(&self, b: usize, last: usize, lines: &Lines) -> Stored {
        let hd = self.shape.head_dim;
        match self.keys {
            Keys::Rows { k, v, bf16 } => {
                let stride = self.shape.widths().1;
                let rows = BLOCK.min(self.to - b * BLOCK);
                let at = b * BLOCK * stride + self.kv_head * hd;
                assert!(at + (rows - 1) * stride + hd <= k.len().min(v.len()));
                // SAFETY: within k and v (asserted); the scratch holds a block of each.
                unsafe {
                    let (k, v) = (k.as_ptr().add(at), v.as_ptr().add(at));
                    if bf16 {
                        transpose_pairs::<S>(k, stride, rows, hd, lines.k);
                        pair_rows::<S>(v, stride, rows, hd, 1.0, lines.v);
                    } else {
                        transpose::<S>(k, stride, rows, hd, lines.k);
                        pad::<S>(v, stride, rows, hd, 1.0, lines.v);
                    }
                }
            }
            Keys::Pages { pages, layer, ids } => {
                let next = (b < last).then(|| ids[b + 1]);
                let block = pages.block(layer, ids[b], self.kv_head, next);
                // Halves that one tile reads need no place of their own.
                let once = self.to - self.from == 1 && self.shape.group() <= band::rows::<S>();
                match block.stored() {
                    Some(plain @ Stored::F32(..)) => return plain,
                    Some(stored) if once || self.of_codes() => {
                        block.ask_far();
                        return stored;
                    }
                    // SAFETY: the scratch holds a block of each.
                    _ => unsafe { block.widen::<S>(lines.k, lines.v) },
                }
            }
        }
        Stored::F32(lines.k, lines.v)
    }
}

#[inline(always)]
unsafe fn kernel<S: Bytes>(task: Task<'_>, lines: Lines, segments: Range<usize>) {
    let hdp = padded(task.shape.head_dim);
    // SAFETY: the caller's promise.
    unsafe {
        task.queries::<S>(&lines);
        lines.total.reset::<S>(task.lines(), hdp);
        for segment in segments {
            task.segment::<S>(&lines, segment);
            task.add::<S>(&lines.total, &lines.state, segment);
        }
        task.write::<S>(&lines.total);
    }
}

#[inline(always)]
unsafe fn part_kernel<S: Bytes>(task: Task<'_>, lines: Lines, segment: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        task.queries::<S>(&lines);
        task.segment::<S>(&lines, segment);
    }
}

#[inline(always)]
unsafe fn total_kernel<S: Bytes>(task: Task<'_>, parts: *mut f32, total: *mut f32) {
    let (lines, hdp) = (task.lines(), padded(task.shape.head_dim));
    let total = State::at(total, lines, hdp);
    // SAFETY: the caller's promise: a part for each segment.
    unsafe {
        total.reset::<S>(lines, hdp);
        for (i, segment) in task.segments().enumerate() {
            let part = State::at(parts.add(i * State::len(lines, hdp)), lines, hdp);
            task.add::<S>(&total, &part, segment);
        }
        task.write::<S>(&total);
    }
}

impl Task<'_> {
    /// Scales the queries.
    #[inline(always)]
    unsafe fn queries<S: Bytes>(&self, lines: &Lines) {
        let s = self.shape;
        let (hd, hdp, n) = (s.head_dim, padded(s.head_dim), self.to - self.from);
        for h in 0..s.group() {
            // SAFETY: `q` holds n rows, `lines` as many of each head.
            unsafe {
                let q = self.q.as_ptr().add((self.kv_head * s.group() + h) * hd);
                let (stride, to, line) = (s.heads * hd, lines.q.cast_mut(), h * n * hdp);
                if self.of_codes() {
                    codes::queries::<S>(q, stride, n, hd, s.scale, to.add(line));
                } else if self.bf16() {
                    halves::<S>(q, stride, n, hd, s.scale, to.cast::<u16>().add(line));
                } else {
                    pad::<S>(q, stride, n, hd, s.scale, to.add(line));
                }
            }
        }
    }

    /// Brings `lines.state` from before any key to after those of a segment.
    #[inline(always)]
    unsafe fn segment<S: Bytes>(&self, lines: &Lines, segment: usize) {
        let s = self.shape;
        let first = s.first_key(self.from).max(segment * SEGMENT) / BLOCK;
        let last = (self.to - 1).min((segment + 1) * SEGMENT - 1) / BLOCK;
        // SAFETY: `lines` holds group * n lines; the instruction set is the caller's promise.
        unsafe {
            lines.state.reset::<S>(self.lines(), padded(s.head_dim));
            for b in first..=last {
                match self.block::<S>(b, last, lines) {
                    Stored::F32(k, v) if self.bf16() => self
                        .tiles::<S, (*const Pairs, *const Pairs)>(lines, b, (k.cast(), v.cast())),
                    Stored::F32(k, v) => self.tiles::<S, _>(lines, b, (k, v)),
                    Stored::F16(k, v) => self.tiles::<S, _>(lines, b, (k, v)),
                    Stored::Bf16(k, v) => self.tiles::<S, _>(lines, b, (k, v)),
                    Stored::Q16(codes) => self.tiles::<S, _>(lines, b, codes),
                }
            }
        }
    }

    /// Block `b` for all lines.
    #[inline(always)]
    unsafe fn tiles<S: Bytes, B: Block>(&self, lines: &Lines, b: usize, block: B) {
        let s = self.shape;
        let (group, n) = (s.group(), self.to - self.from);
        // Rows of a head go together, or, if there is but one row, the heads of the group.
        let (runs, slope) = if n == 1 { (1, 0) } else { (group, 1) };
        for run in 0..runs {
            let mut i = (b * BLOCK).saturating_sub(self.from) * slope;
            while i < group * n / runs {
                let p = self.from + i * slope;
                if s.first_key(p) >= (b + 1) * BLOCK {
                    break;
                }
                // Not over the end of a block, so that all rows see something of each.
                let most = B::rows::<S>() - p % B::rows::<S>() * slope;
                let rows = most.min(group * n / runs - i);
                let start = (b * BLOCK) as isize;
                let visible = Band {
                    from: p as isize + 1 - s.reach() - start,
                    to: p as isize + 1 - start,
                    slope: slope as isize,
                    depth: BLOCK,
                };
                let tile = Tile { shape: s, lines, line: run * n + i, rows, visible };
                // SAFETY: `lines` holds group * n lines; the rest is the caller's promise.
                unsafe { block.pass::<S>(&tile) };
                i += rows;
            }
        }
    }

    /// Adds the state after a segment to that after those before it, for rows that see some of it.
    #[inline(always)]
    unsafe fn add<S: Bytes>(&self, total: &State, state: &State, segment: usize) {
        let (s, n) = (self.shape, self.to - self.from);
        let start = (segment * SEGMENT).saturating_sub(self.from).min(n);
        let end = (start..n)
            .rev()
            .find(|i| s.first_key(self.from + i) < (segment + 1) * SEGMENT)
            .map_or(start, |i| i + 1);
        for h in 0..s.group() {
            // SAFETY: both have group * n lines.
            unsafe { total.add::<S>(state, h * n + start, end - start, padded(s.head_dim)) };
        }
    }

    /// Writes the rows.
    #[inline(always)]
    unsafe fn write<S: Bytes>(&self, total: &State) {
        let s = self.shape;
        let (hd, hdp, n) = (s.head_dim, padded(s.head_dim), self.to - self.from);
        // SAFETY: `out` and `lse` hold n rows, `total` as many of each head.
        unsafe {
            for h in 0..s.group() {
                for i in (0..n).step_by(LANES) {
                    let (line, rows) = (h * n + i, LANES.min(n - i));
                    let mut sums = [S::splat(1.0); LANES];
                    for (r, sum) in sums.iter_mut().enumerate().take(rows) {
                        *sum = S::load(total.sum.add((line + r) * LANES));
                    }
                    let sums = S::to_array(reduce::<S, true>(sums));
                    for (r, sum) in sums.iter().enumerate().take(rows) {
                        let at = (i + r) * s.heads + self.kv_head * s.group() + h;
                        let (acc, out) = (total.acc.add((line + r) * hdp), self.out.add(at * hd));
                        unpad::<S>(acc, 1, hd, 1.0 / sum, out, 0);
                        if let Some(lse) = self.lse {
                            *lse.add(at) = *total.max.add(line + r) + libm::logf(*sum);
                        }
                    }
                }
            }
        }
    }
}

/// Lines `line..line + rows`, and which keys of a block each sees.
struct Tile<'a> {
    shape: &'a AttentionShape,
    lines: &'a Lines,
    line: usize,
    rows: usize,
    visible: Band,
}

/// A block of keys and values that lines pass by.
trait Block: Copy {
    /// Rows of a tile; divides a block.
    fn rows<S: Simd>() -> usize;

    /// Brings the states of a tile's lines to what they are after this block.
    ///
    /// # Safety
    /// Lines and blocks hold what they say; as for [`Bytes`].
    unsafe fn pass<S: Bytes>(self, tile: &Tile<'_>);
}

impl Tile<'_> {
    /// Vectors of scores.
    #[inline(always)]
    fn vectors(&self) -> usize {
        self.visible.row(self.rows - 1).end.div_ceil(LANES)
    }

    /// Caps and masks the scores, brings the lines' largest ones up to date, and gives the largest of this block and
    /// what sums up to here are multiplied by.
    #[inline(always)]
    unsafe fn rescale<S: Simd>(&self) -> (S::F, [f32; LANES]) {
        let (vectors, scores) = (self.vectors(), self.lines.p);
        // SAFETY: the caller's promise.
        unsafe {
            let mut top = [S::splat(f32::NEG_INFINITY); LANES];
            for (r, top) in top.iter_mut().enumerate().take(self.rows) {
                let x = scores.add(r * BLOCK);
                if let Some(cap) = self.shape.cap {
                    cap_scores::<S>(x, vectors, cap);
                }
                mask::<S>(x, vectors, self.visible.row(r), f32::NEG_INFINITY);
                for v in 0..vectors {
                    *top = S::max(S::load(x.add(v * LANES)), *top);
                }
            }
            // Lane r for row r; NaN scores have not come through.
            let largest = self.lines.state.max.add(self.line);
            let before = S::load_n(largest, self.rows);
            let top = reduce::<S, false>(top);
            let max = S::max(before, top);
            S::store_n(largest, max, self.rows);
            let mut rescale = [0.0f32; LANES];
            S::store(rescale.as_mut_ptr(), exp_masked::<S>(S::sub(before, max)));
            (top, rescale)
        }
    }
}

impl<E: Element> Block for (*const E, *const E) {
    fn rows<S: Simd>() -> usize {
        band::rows::<S>()
    }

    #[inline(always)]
    unsafe fn pass<S: Bytes>(self, tile: &Tile<'_>) {
        let Tile { shape: s, lines, line, rows, visible } = *tile;
        let (hdp, vectors) = (padded(s.head_dim), tile.vectors());
        // SAFETY: the caller's promise.
        unsafe {
            let words = if E::PAIRS { hdp / 2 } else { hdp };
            let scores = Product {
                a: lines.q.add(line * words),
                a_row: words,
                a_k: 1,
                b: self.0,
                b_row: BLOCK,
                c: lines.p,
                c_row: BLOCK,
                vectors,
                band: Band::all(s.head_dim).of::<E>(rows),
                start: Start::Zero,
            };
            scores.run::<S>(rows);
            let (_, rescale) = tile.rescale::<S>();
            for (r, rescale) in rescale.iter().enumerate().take(rows) {
                let x = lines.p.add(r * BLOCK);
                let sum = lines.state.sum.add((line + r) * LANES);
                let max = S::splat(*lines.state.max.add(line + r));
                let mut total = S::mul(S::load(sum), S::splat(*rescale));
                for v in 0..vectors {
                    let weight = exp_masked::<S>(S::sub(S::load(x.add(v * LANES)), max));
                    if E::PAIRS {
                        S::store_bf16(x.cast::<u16>().add(v * LANES), weight);
                    } else {
                        S::store(x.add(v * LANES), weight);
                    }
                    total = S::add(total, weight);
                }
                S::store(sum, total);
            }
            let values = Product {
                a: lines.p,
                a_row: BLOCK,
                a_k: 1,
                b: self.1,
                b_row: hdp,
                c: lines.state.acc.add(line * hdp),
                c_row: hdp,
                vectors: hdp / LANES,
                band: visible.of::<E>(rows),
                start: Start::Scaled(rescale.as_ptr()),
            };
            values.run::<S>(rows);
        }
    }
}

/// Products of codes: scales of keys and queries are multiplied into scores, scales of values into weights, which are
/// rounded after that. Weights are by the largest score of a line in this block, so that codes are as large as they can be.
impl Block for Codes {
    fn rows<S: Simd>() -> usize {
        LANES
    }

    #[inline(always)]
    unsafe fn pass<S: Bytes>(self, tile: &Tile<'_>) {
        let Tile { shape: s, lines, line, rows, visible } = *tile;
        let (hdp, vectors) = (padded(s.head_dim), tile.vectors());
        // SAFETY: the caller's promise.
        unsafe {
            let queries = lines.q.add(line * hdp);
            let to = codes::Scores { to: lines.p, queries, hdp, scales: self.key_scales };
            let scores = codes::Product {
                a: queries.cast(),
                a_row: hdp,
                b: self.keys,
                b_row: BLOCK,
                words: 0..s.head_dim.div_ceil(2),
                vectors,
                to,
            };
            scores.run::<S>(rows);
            let (top, rescale) = tile.rescale::<S>();
            let (mut tops, mut shrink, mut factors) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
            S::store(tops.as_mut_ptr(), top);
            let max = S::load_n(lines.state.max.add(line), rows);
            S::store(shrink.as_mut_ptr(), exp_masked::<S>(S::sub(top, max)));
            let (mut scales, mut one, mut of) = ([0.0; BLOCK], 0.0, 0..0);
            for r in 0..rows {
                // Its bits depend on what it sees alone.
                if visible.row(r) != of {
                    of = visible.row(r);
                    one = codes::weights::<S>(self.value_scales, of.clone(), &mut scales);
                }
                factors[r] = one * shrink[r];
                let x = lines.p.add(r * BLOCK);
                let top = S::splat(tops[r]);
                let mut total = S::splat(0.0);
                for v in 0..vectors {
                    let weight = exp_masked::<S>(S::sub(S::load(x.add(v * LANES)), top));
                    total = S::add(total, weight);
                    let code = S::mul(weight, S::load(scales.as_ptr().add(v * LANES)));
                    S::store_shorts(x.cast::<i16>().add(v * LANES), code);
                }
                let sum = lines.state.sum.add((line + r) * LANES);
                let before = S::mul(S::load(sum), S::splat(rescale[r]));
                S::store(sum, S::fma(total, S::splat(shrink[r]), before));
            }
            let seen = visible.of::<Pairs>(rows);
            let to = codes::Sums { to: lines.state.acc.add(line * hdp), hdp, rescale, factors };
            let values = codes::Product {
                a: lines.p.cast_const().cast(),
                a_row: BLOCK,
                b: self.values,
                b_row: hdp,
                words: seen.row(0),
                vectors: hdp / LANES,
                to,
            };
            values.run::<S>(rows);
        }
    }
}

/// What is outside of `visible` becomes `fill`.
#[inline(always)]
pub(super) unsafe fn mask<S: Simd>(x: *mut f32, vectors: usize, visible: Range<usize>, fill: f32) {
    const LANE: [f32; LANES] = {
        let mut lane = [0.0; LANES];
        let mut i = 0;
        while i < LANES {
            lane[i] = i as f32;
            i += 1;
        }
        lane
    };
    if visible.start == 0 && visible.end >= vectors * LANES {
        return;
    }
    // SAFETY: x holds that many vectors.
    unsafe {
        let hidden = S::splat(fill);
        let (from, to) = (S::splat(visible.start as f32), S::splat(visible.end as f32));
        for v in 0..vectors {
            if visible.start <= v * LANES && (v + 1) * LANES <= visible.end {
                continue;
            }
            let lane = S::add(S::load(LANE.as_ptr()), S::splat((v * LANES) as f32));
            let score = S::load(x.add(v * LANES));
            let score = S::select(S::lt(lane, to), score, hidden);
            S::store(x.add(v * LANES), S::select(S::lt(lane, from), hidden, score));
        }
    }
}
