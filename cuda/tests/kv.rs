//! Attention to keys and values in pages, on the emulator, against its definition in f64.
#![allow(clippy::unwrap_used)]

mod common;

use common::{close, gpu, values};
use cuda::ops::Output;
use cuda::ops::attention::AttentionShape;
use cuda::ops::kv::{self, CachedSpan, CachedSpans, KvShape, KvType, Limits, PAGE};
use cuda::{Buffer, Gpu};

/// Multiples of 1/64 below `scale`, which all types hold as they are.
fn numbers(seed: u64, len: usize, scale: f32) -> Vec<f32> {
    values(seed, len).iter().map(|x| (x * scale * 64.0).round() / 64.0).collect()
}

/// A sequence with all of its keys and values, of which the last `len` rows are new.
struct Sequence {
    past: usize,
    len: usize,
    pages: Vec<u32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

fn sequence(seed: u64, s: &AttentionShape, past: usize, len: usize, pages: &[u32]) -> Sequence {
    let (w, kw) = (s.heads * s.head_dim, s.kv_heads * s.head_dim);
    Sequence {
        past,
        len,
        pages: pages.to_vec(),
        q: numbers(seed, len * w, 3.0),
        k: numbers(seed + 1, (past + len) * kw, 2.0),
        v: numbers(seed + 2, (past + len) * kw, 1.0),
    }
}

/// What is kept of rows of keys or values.
fn stored(kind: KvType, head_dim: usize, rows: &[f32]) -> Vec<f64> {
    let eighths = |group: &[f32]| -> Vec<f64> {
        let largest = group.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        let code =
            |x: &f32| if largest > 0.0 { (x * (127.0 / largest)).round_ties_even() } else { 0.0 };
        group.iter().map(|x| f64::from(code(x) * (largest / 127.0))).collect()
    };
    match kind {
        KvType::Q8 => {
            rows.chunks(head_dim).flat_map(|head| head.chunks(32)).flat_map(eighths).collect()
        }
        _ => rows.iter().map(|x| (*x).into()).collect(),
    }
}

impl Sequence {
    fn plain(&self, s: &AttentionShape, kind: KvType) -> Vec<f64> {
        let hd = s.head_dim;
        let (w, kw) = (s.heads * hd, s.kv_heads * hd);
        let (k, v) = (stored(kind, hd, &self.k), stored(kind, hd, &self.v));
        let mut out = vec![0.0; self.q.len()];
        for (i, h) in (0..self.len).flat_map(|i| (0..s.heads).map(move |h| (i, h))) {
            let (at, p) = (i * w + h * hd, self.past + i);
            let first = s.window.map_or(0, |window| (p + 1).saturating_sub(window));
            let key = |j: usize| j * kw + h / (s.heads / s.kv_heads) * hd;
            let weight = |j: usize| {
                let dot: f64 = (0..hd).map(|d| f64::from(self.q[at + d]) * k[key(j) + d]).sum();
                let score = dot * f64::from(s.scale);
                s.cap.map_or(score, |c| f64::from(c) * (score / f64::from(c)).tanh()).exp()
            };
            let weights: Vec<f64> = (first..=p).map(weight).collect();
            let sum: f64 = weights.iter().sum();
            for (j, weight) in (first..=p).zip(&weights) {
                (0..hd).for_each(|d| out[at + d] += weight / sum * v[key(j) + d]);
            }
        }
        out
    }
}

/// A cache whose layer 1 is used.
struct Cache {
    gpu: Gpu,
    s: AttentionShape,
    shape: KvShape,
    pages: Buffer<u8>,
}

const CACHE_PAGES: usize = 40;

impl Cache {
    fn new(kind: KvType, s: AttentionShape) -> Cache {
        let gpu = gpu();
        let shape = KvShape { kind, layers: 2, kv_heads: s.kv_heads, head_dim: s.head_dim };
        // Of any content: NaN.
        let pages = gpu.buffer(CACHE_PAGES * shape.page_bytes(), "pages").unwrap();
        Cache { gpu, s, shape, pages }
    }

    fn limits(&self, rows: usize, span_rows: usize) -> Limits {
        Limits { rows, spans: 4, span_rows, span_pages: 13, cache_pages: CACHE_PAGES }
    }

    /// Stores rows `from..` of sequences up to their end.
    fn append(&mut self, sequences: &[&Sequence], from: impl Fn(&Sequence) -> usize) {
        let kw = self.s.kv_heads * self.s.head_dim;
        let (mut k, mut v, mut spans) = (vec![], vec![], vec![]);
        for x in sequences {
            let (start, past) = (k.len() / kw, from(x));
            k.extend(&x.k[past * kw..]);
            v.extend(&x.v[past * kw..]);
            spans.push(CachedSpan { start, len: x.past + x.len - past, past, pages: &x.pages });
        }
        let rows = k.len() / kw;
        let mut cached = CachedSpans::new(&self.gpu, self.limits(rows, rows)).unwrap();
        cached.write(&spans).unwrap();
        let (k, v) = (self.gpu.upload(&k, "k").unwrap(), self.gpu.upload(&v, "v").unwrap());
        let pages = self.pages.slice_mut();
        kv::append(&self.gpu, &self.shape, 1, pages, &cached, k.slice(), v.slice()).unwrap();
    }

    /// Results of the new rows of sequences, for which launches are made for `span_rows` rows each.
    fn attend(&self, sequences: &[&Sequence], span_rows: usize) -> Vec<Vec<f32>> {
        let w = self.s.heads * self.s.head_dim;
        let (mut q, mut spans) = (vec![], vec![]);
        for x in sequences {
            let (start, pages) = (q.len() / w, &x.pages[..]);
            q.extend(&x.q);
            spans.push(CachedSpan { start, len: x.len, past: x.past, pages });
        }
        let limits = self.limits(q.len() / w, span_rows);
        let mut cached = CachedSpans::new(&self.gpu, limits).unwrap();
        cached.write(&spans).unwrap();
        let q = self.gpu.upload(&q, "q").unwrap();
        let mut out = self.gpu.buffer(q.len(), "out").unwrap();
        let mut rounded = self.gpu.buffer(q.len(), "out in bf16").unwrap();
        let mut scratch = self.gpu.buffer(cached.scratch(&self.s), "scratch").unwrap();
        let (pages, scratch) = (self.pages.slice(), scratch.slice_mut());
        let both = Output::both(out.slice_mut(), rounded.slice_mut());
        kv::forward_cached(
            &self.gpu,
            &self.s,
            &self.shape,
            1,
            pages,
            &cached,
            q.slice(),
            scratch,
            both,
        )
        .unwrap();
        let out = out.read().unwrap();
        for (x, bits) in out.iter().zip(rounded.read().unwrap()) {
            assert!(x.is_nan() || bits == common::bf16(*x), "{x} in bf16");
        }
        spans.iter().map(|x| out[x.start * w..(x.start + x.len) * w].to_vec()).collect()
    }
}

fn shape(heads: usize, kv_heads: usize, head_dim: usize) -> AttentionShape {
    AttentionShape {
        scale: 1.3 / (head_dim as f32).sqrt(),
        ..AttentionShape::plain(heads, kv_heads, head_dim)
    }
}

/// Sequences with one new row, a few, and many; long, short and new.
fn check(kind: KvType, s: AttentionShape) {
    let mut cache = Cache::new(kind, s);
    let sequences = [
        sequence(10, &s, 300, 1, &[3, 0, 17, 5, 39]),
        sequence(20, &s, 0, 1, &[8]),
        sequence(30, &s, 125, 5, &[1, 2, 4]),
        sequence(40, &s, 70, 140, &[30, 31, 29, 28]),
    ];
    let all: Vec<&Sequence> = sequences.iter().collect();
    cache.append(&all, |_| 0);
    let together = cache.attend(&all, 140);
    for (i, x) in sequences.iter().enumerate() {
        let tolerance = if kind == KvType::Bf16 { 6e-3 } else { 2e-3 };
        close(&format!("{kind:?} {i}"), &together[i], &x.plain(&s, kind), tolerance);
        // Alone, and as threads come in another order.
        assert!(cache.attend(&[x], x.len) == [together[i].clone()], "not the same bits");
    }
}

#[test]
fn halves() {
    check(KvType::F16, shape(4, 1, 64));
    check(KvType::F16, AttentionShape { cap: Some(2.0), ..shape(6, 2, 16) });
    check(KvType::Bf16, AttentionShape { window: Some(100), ..shape(2, 2, 64) });
}

#[test]
fn heads_of_80_and_128() {
    check(KvType::F16, AttentionShape { window: Some(3), ..shape(3, 1, 80) });
    check(KvType::F16, shape(1, 1, 128));
}

#[test]
fn heads_of_256() {
    check(KvType::Bf16, AttentionShape { window: Some(90), ..shape(1, 1, 256) });
}

#[test]
fn eighths() {
    check(KvType::Q8, shape(2, 1, 64));
    check(KvType::Q8, AttentionShape { window: Some(70), ..shape(1, 1, 72) });
}

#[test]
fn rows_come_in_steps_and_graphs_follow() {
    let s = shape(4, 2, 64);
    let mut cache = Cache::new(KvType::F16, s);
    // The first 70 rows, then one at a time; another sequence has the same beginning in a copy.
    let whole = sequence(50, &s, 0, 75, &[7, 9]);
    cache.append(&[&whole], |_| 0);
    kv::copy_page(&cache.shape, cache.pages.slice_mut(), 7, 11).unwrap();
    kv::copy_page(&cache.shape, cache.pages.slice_mut(), 9, 2).unwrap();
    let w = s.heads * s.head_dim;
    let step = |past: usize, pages: &[u32]| Sequence {
        past,
        len: 1,
        pages: pages.to_vec(),
        q: whole.q[past * w..(past + 1) * w].to_vec(),
        k: whole.k.clone(),
        v: whole.v.clone(),
    };
    let expected: Vec<f64> = whole.plain(&s, KvType::F16);
    let limits =
        Limits { rows: 2, spans: 2, span_rows: 1, span_pages: 6, cache_pages: CACHE_PAGES };
    let mut cached = CachedSpans::new(&cache.gpu, limits).unwrap();
    let mut q = cache.gpu.zeros(2 * w, "q").unwrap();
    let mut out = cache.gpu.zeros(2 * w, "out").unwrap();
    let mut scratch = cache.gpu.buffer(cached.scratch(&s), "scratch").unwrap();
    let graph = cache
        .gpu
        .capture(|| {
            let (pages, scratch) = (cache.pages.slice(), scratch.slice_mut());
            let out = Output::f32(out.slice_mut());
            kv::forward_cached(
                &cache.gpu,
                &s,
                &cache.shape,
                1,
                pages,
                &cached,
                q.slice(),
                scratch,
                out,
            )
        })
        .unwrap();
    for past in [70, 71, 3] {
        let steps = [step(past, &[7, 9]), step(past + 1, &[11, 2])];
        let mut spans = vec![];
        for (i, x) in steps.iter().enumerate() {
            q.part_mut(i * w..(i + 1) * w).write(&x.q).unwrap();
            spans.push(CachedSpan { start: i, len: 1, past: x.past, pages: &x.pages });
        }
        cached.write(&spans).unwrap();
        graph.launch().unwrap();
        let got = out.read().unwrap();
        close("steps", &got, &expected[past * w..(past + 2) * w], 2e-3);
        for (i, x) in steps.iter().enumerate() {
            assert!(cache.attend(&[x], 1)[0] == got[i * w..(i + 1) * w], "not the same bits");
        }
    }
}

#[test]
fn what_is_no_number_stays_none() {
    let s = shape(1, 1, 64);
    for kind in [KvType::F16, KvType::Q8] {
        let mut cache = Cache::new(kind, s);
        let mut broken = sequence(60, &s, 4, 1, &[5]);
        broken.v[65] = f32::NAN;
        cache.append(&[&broken], |_| 0);
        let out = &cache.attend(&[&broken], 1)[0];
        assert!(out[1].is_nan(), "{kind:?}");
    }
}

#[test]
#[should_panic(expected = "pages are needed")]
fn missing_pages_are_refused() {
    let cache = Cache::new(KvType::F16, shape(1, 1, 64));
    let mut cached = CachedSpans::new(&cache.gpu, cache.limits(1, 1)).unwrap();
    let _ = cached.write(&[CachedSpan { start: 0, len: 1, past: PAGE, pages: &[0] }]);
}
