//! Causal attention over the rows of a batch, with an online softmax (Dao 2023, FlashAttention-2,
//! <https://arxiv.org/abs/2307.08691>): scores exist in registers only, products are in bf16 and their
//! sums in f32.
//!
//! A row's bits depend on its query and the keys that it sees, and on no other row.
#![allow(unsafe_code)]

use crate::gpu::{args, count};
use crate::ops::Output;
use crate::{Buffer, Element, Error, Gpu, Shape, Slice, SliceMut};

/// What attention is like in a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Query heads; a multiple of `kv_heads`.
    pub heads: usize,
    /// Key/value heads, each shared by `heads / kv_heads` consecutive query heads.
    pub kv_heads: usize,
    /// Elements of a head: a multiple of 8, up to 256.
    pub head_dim: usize,
    /// Factor of the scores, usually `1 / sqrt(head_dim)`; above 0.
    pub scale: f32,
    /// Row `i` sees keys `j <= i` with `i - j < window`; `None`: all of them.
    pub window: Option<usize>,
    /// Scores become `cap * tanh(score / cap)` (Gemma 2); `None`: they stay. Above 0.
    pub cap: Option<f32>,
}

/// Sizes of heads that there is code for; others are filled up with zeros to the next.
const HEAD_DIMS: [usize; 6] = [32, 64, 80, 96, 128, 256];

impl AttentionShape {
    /// With the usual factor, without a window or a cap.
    pub fn plain(heads: usize, kv_heads: usize, head_dim: usize) -> AttentionShape {
        let scale = 1.0 / (head_dim.max(1) as f32).sqrt();
        AttentionShape { heads, kv_heads, head_dim, scale, window: None, cap: None }
    }

    /// Row lengths of queries and of keys.
    pub(super) fn widths(&self) -> (usize, usize) {
        (self.heads * self.head_dim, self.kv_heads * self.head_dim)
    }

    /// The size of heads whose code is to be run.
    ///
    /// # Panics
    /// If there is none, or the shape makes no sense.
    pub(super) fn compiled(&self) -> usize {
        let Self { heads, kv_heads, head_dim, .. } = *self;
        assert!(
            kv_heads > 0 && heads.is_multiple_of(kv_heads) && heads <= 0xffff,
            "{heads} query heads for {kv_heads} key heads"
        );
        assert!(self.scale > 0.0 && self.cap.is_none_or(|cap| cap > 0.0), "factors above 0");
        let compiled = HEAD_DIMS.into_iter().find(|size| *size >= head_dim);
        match compiled.filter(|_| head_dim > 0 && head_dim.is_multiple_of(8)) {
            Some(compiled) => compiled,
            None => panic!("heads of {head_dim} elements: not a multiple of 8 up to 256"),
        }
    }

    /// As kernels take them: heads and their size, the factor, the cap (0: none), the window.
    pub(super) fn numbers(&self) -> (i32, i32, i32, f32, f32, i32) {
        let int = |n: usize| count(n) as i32;
        let window = self.window.unwrap_or(usize::MAX).clamp(1, 1 << 29) as i32;
        let cap = self.cap.unwrap_or(0.0);
        (int(self.heads), int(self.kv_heads), int(self.head_dim), self.scale, cap, window)
    }
}

/// Asserts that kernels can read or write 16 bytes at a time.
pub(super) fn aligned<T: Element>(x: &Slice<'_, T>) {
    assert!(x.address().is_multiple_of(16), "a slice that doesn't start at a multiple of 16 bytes");
}

/// The sequences of a batch, on the card: spans of its rows that never see each other.
#[derive(Debug)]
pub struct Spans {
    /// First rows, then the number of all rows; lengths. What is not used is empty spans at the end.
    numbers: Buffer<u32>,
    most: usize,
    rows: usize,
}

impl Spans {
    /// Spans `(first row, rows)` of a batch of `rows` rows, in order and apart from each other.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    ///
    /// # Panics
    /// If they overlap, are out of order or go beyond the rows.
    pub fn new(gpu: &Gpu, rows: usize, spans: &[(usize, usize)]) -> Result<Spans, Error> {
        // One more for rows before the first.
        let most = spans.len() + 1;
        let numbers = gpu.buffer(2 * most + 1, "spans")?;
        let mut made = Spans { numbers, most, rows };
        made.write(spans)?;
        Ok(made)
    }

    /// Other spans, not more than there were first. What launches need to know of them stays the same,
    /// so a recorded graph can go on with these.
    ///
    /// # Errors
    /// [`Error::Driver`].
    ///
    /// # Panics
    /// As for [`Spans::new`], or if there are more.
    pub fn write(&mut self, spans: &[(usize, usize)]) -> Result<(), Error> {
        assert!(spans.len() < self.most, "{} spans in the place of {}", spans.len(), self.most - 1);
        assert!(self.rows < 1 << 30, "{} rows", self.rows);
        let (mut starts, mut lens) = (vec![0], vec![0]);
        let mut end = 0;
        for &(start, len) in spans {
            let next = start.checked_add(len).filter(|next| start >= end && *next <= self.rows);
            end = next.unwrap_or_else(|| panic!("spans have to be in order, within the rows"));
            starts.push(count(start));
            lens.push(count(len));
        }
        starts.resize(self.most + 1, count(self.rows));
        lens.resize(self.most, 0);
        starts.append(&mut lens);
        self.numbers.slice_mut().write(&starts)
    }

    /// First rows and the number of all rows; lengths; how many.
    fn numbers(&self) -> (Slice<'_, u32>, Slice<'_, u32>, i32) {
        (self.numbers.part(..=self.most), self.numbers.part(self.most + 1..), self.most as i32)
    }

    /// Tiles of `size` rows, which are of one span each, at most.
    fn tiles(&self, size: usize) -> usize {
        self.rows / size + self.most
    }
}

/// The tiles of the kernels in attention.cu and attention_backward.cu, which say the same.
struct Tiles {
    /// Elements from row to row of a tile.
    pitch: usize,
    /// Forward, and backward for queries: rows of a block; keys at a time.
    rows: usize,
    keys_at_a_time: usize,
    /// Backward for keys: keys of a block; queries at a time; threads.
    keys: usize,
    queries_at_a_time: usize,
    threads: usize,
}

impl Tiles {
    fn of(compiled: usize) -> Tiles {
        let by_size = |small, middle, large| match compiled {
            ..=64 => small,
            65..=128 => middle,
            _ => large,
        };
        Tiles {
            pitch: compiled + 8,
            rows: by_size(128, 128, 64),
            keys_at_a_time: by_size(32, 32, 16),
            keys: by_size(128, 64, 64),
            queries_at_a_time: by_size(32, 48, 16),
            threads: by_size(128, 128, 256),
        }
    }
}

/// `out = softmax(scale q kᵀ) v`, causal within each span.
///
/// `q`: `[rows, heads * head_dim]`, `k`, `v`: `[rows, kv_heads * head_dim]`, all bf16; `out`: as q;
/// `lse`: `[rows, heads]`, the logarithm of each row's softmax sum, which [`backward`] needs. Rows of no
/// span become 0.
///
/// # Errors
/// Of launches.
///
/// # Panics
/// If sizes do not agree, or a slice does not start at a multiple of 16 bytes.
#[allow(clippy::too_many_arguments)]
pub fn forward(
    gpu: &Gpu,
    s: &AttentionShape,
    spans: &Spans,
    q: Slice<'_, u16>,
    k: Slice<'_, u16>,
    v: Slice<'_, u16>,
    out: Output<'_>,
    lse: SliceMut<'_, f32>,
) -> Result<(), Error> {
    let compiled = s.compiled();
    let (width, kv_width) = s.widths();
    assert!(q.len() == spans.rows * width && out.len() == q.len(), "queries");
    assert!(k.len() == spans.rows * kv_width && v.len() == k.len(), "keys and values");
    assert_eq!(lse.len(), spans.rows * s.heads, "logarithms of sums");
    [q, k, v].iter().for_each(aligned);
    out.f32.iter().for_each(|x| aligned(&x.as_slice()));
    out.bf16.iter().for_each(|x| aligned(&x.as_slice()));
    let t = Tiles::of(compiled);
    let (heads, kv_heads, head_dim, scale, cap, window) = s.numbers();
    let (starts, lens, n) = spans.numbers();
    let shape = Shape::grid([spans.tiles(t.rows), s.heads, 1], 128)
        .shared((t.rows + 2 * 64) * t.pitch * size_of::<u16>());
    let args = args![
        q, k, v, starts, lens, n, heads, kv_heads, head_dim, scale, cap, window, out.f32, out.bf16,
        lse
    ];
    // SAFETY: the operands have the rows that spans are within; the tiles are the kernel's.
    unsafe { gpu.launch(&format!("attention_forward_{compiled}"), shape, args) }
}

/// Gradients of [`forward`]: writes `dq`, `dk` and `dv` given `dout` and what forward took and gave. Rows
/// of no span get 0.
///
/// `dout`, `dq`: as out, f32; `dk`, `dv`: as k, f32. `delta`, as lse, and `dout_bf16`, as out, are
/// working memory.
///
/// # Errors
/// Of launches.
///
/// # Panics
/// If sizes do not agree, or a slice does not start at a multiple of 16 bytes.
#[allow(clippy::too_many_arguments)]
pub fn backward(
    gpu: &Gpu,
    s: &AttentionShape,
    spans: &Spans,
    q: Slice<'_, u16>,
    k: Slice<'_, u16>,
    v: Slice<'_, u16>,
    out: Slice<'_, f32>,
    lse: Slice<'_, f32>,
    dout: Slice<'_, f32>,
    delta: SliceMut<'_, f32>,
    dout_bf16: SliceMut<'_, u16>,
    dq: SliceMut<'_, f32>,
    dk: SliceMut<'_, f32>,
    dv: SliceMut<'_, f32>,
) -> Result<(), Error> {
    let compiled = s.compiled();
    let (width, kv_width) = s.widths();
    let (elements, kv_elements) = (spans.rows * width, spans.rows * kv_width);
    assert!([q.len(), out.len(), dout.len(), dq.len()] == [elements; 4], "queries");
    assert!([k.len(), v.len(), dk.len(), dv.len()] == [kv_elements; 4], "keys and values");
    assert!([lse.len(), delta.len()] == [spans.rows * s.heads; 2], "numbers of rows");
    assert_eq!(dout_bf16.len(), elements, "gradients in bf16");
    [q, k, v, dout_bf16.as_slice()].iter().for_each(aligned);
    [out, dout, dq.as_slice(), dk.as_slice(), dv.as_slice()].iter().for_each(aligned);
    let t = Tiles::of(compiled);
    let (heads, kv_heads, head_dim, scale, cap, window) = s.numbers();
    let (starts, lens, n) = spans.numbers();

    let rows = spans.rows * s.heads;
    let shape = Shape::new((8 * rows).div_ceil(256), 256);
    let args = args![dout, out, rows, head_dim, delta, dout_bf16];
    // SAFETY: eight threads to each of as many rows of heads as the operands have.
    unsafe { gpu.launch(&format!("attention_delta_{compiled}"), shape, args)? };

    let known = 4 * t.queries_at_a_time * size_of::<f32>();
    let shape = Shape::grid([spans.tiles(t.keys), s.kv_heads, 1], t.threads)
        .shared((2 * t.keys + 3 * t.queries_at_a_time) * t.pitch * size_of::<u16>() + known);
    #[rustfmt::skip]
    let args = args![
        q, k, v, dout_bf16, lse, delta, starts, lens, n, heads, kv_heads, head_dim, scale, cap, window, dk, dv
    ];
    // SAFETY: the operands have the rows that spans are within; the tiles are the kernel's.
    unsafe { gpu.launch(&format!("attention_keys_{compiled}"), shape, args)? };

    let shape = Shape::grid([spans.tiles(t.rows), s.heads, 1], 128)
        .shared((2 * t.rows + 3 * t.keys_at_a_time) * t.pitch * size_of::<u16>());
    #[rustfmt::skip]
    let args = args![
        q, k, v, dout_bf16, lse, delta, starts, lens, n, heads, kv_heads, head_dim, scale, cap, window, dq
    ];
    // SAFETY: as above.
    unsafe { gpu.launch(&format!("attention_queries_{compiled}"), shape, args) }
}
