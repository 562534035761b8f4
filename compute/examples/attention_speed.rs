//! Speed of attention: training passes over batches of spans, prompts over pages, and decoding at depths.
//!
//! FLOP are counted for what a causal mask leaves: two products forward, five backward.

use std::time::Instant;

use compute::cpu::attention::{AttentionShape, CachedSpan, backward, forward, forward_cached};
use compute::kv::{KvPages, KvType, PAGE};
use compute::{Cpu, Span};

/// Median seconds of nine runs after a first.
fn median(mut f: impl FnMut()) -> f64 {
    f();
    let mut runs: Vec<f64> = (0..9)
        .map(|_| {
            let start = Instant::now();
            f();
            start.elapsed().as_secs_f64()
        })
        .collect();
    runs.sort_by(f64::total_cmp);
    runs[4]
}

fn numbers(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919 % 1000) as f32 - 500.0) / 500.0).collect()
}

fn main() {
    let threads = std::env::args().nth(1).and_then(|t| t.parse().ok()).unwrap_or(2);
    let cpu = Cpu::new(threads);
    let peak = compute::cpu::peak::f32_flops(&cpu) / 1e9;
    println!("{}, {threads} threads, peak {peak:.0} GFLOP/s f32", cpu.isa.name());
    for (heads, kv_heads, head_dim) in [(4, 2, 32), (4, 4, 32), (4, 2, 64), (9, 3, 64)] {
        let scale = 1.0 / (head_dim as f32).sqrt();
        let s = AttentionShape { heads, kv_heads, head_dim, scale, window: None, cap: None };
        println!("{heads} heads, {kv_heads} key heads of {head_dim}");
        for len in [64, 90, 128, 384, 2048] {
            train(&cpu, &s, len, false);
            train(&cpu, &s, len, true);
        }
        for (past, len) in [(0, 512), (1000, 128), (4096, 512)] {
            for kind in [KvType::F16, KvType::Q16] {
                prompt(&cpu, &s, past, len, kind);
            }
        }
        for depth in [128, 1024, 4096] {
            for kind in [KvType::F16, KvType::Q16] {
                decode(&cpu, &s, depth, kind);
            }
        }
    }
}

fn train(cpu: &Cpu, s: &AttentionShape, len: usize, bf16: bool) {
    let count = 4096 / len;
    let rows = count * len;
    let spans: Vec<Span> = (0..count).map(|i| Span { start: i * len, len }).collect();
    let (w, kw) = (s.heads * s.head_dim, s.kv_heads * s.head_dim);
    let [q, dout] = [numbers(rows * w), numbers(rows * w + 1)[1..].to_vec()];
    let [k, v] = [numbers(rows * kw), numbers(rows * kw + 2)[2..].to_vec()];
    let (mut out, mut lse) = (vec![0.0; rows * w], vec![0.0; rows * s.heads]);
    let [mut dq, mut dk, mut dv] = [w, kw, kw].map(|w| vec![0.0; rows * w]);
    let pairs = (count * len * (len + 1) / 2 * s.heads) as f64;
    let product = pairs * 2.0 * s.head_dim as f64 / 1e9;
    let there = median(|| forward(cpu, s, &spans, bf16, &q, &k, &v, &mut out, &mut lse));
    let back = median(|| {
        backward(cpu, s, &spans, bf16, &q, &k, &v, &out, &lse, &dout, &mut dq, &mut dk, &mut dv)
    });
    println!(
        "  spans of {len:4}, {}: forward {:6.1} GFLOP/s ({:6.0} µs), backward {:6.1} GFLOP/s ({:6.0} µs)",
        if bf16 { "bf16" } else { "f32" },
        2.0 * product / there,
        there * 1e6,
        5.0 * product / back,
        back * 1e6
    );
}

/// Rows of a prompt after others whose keys and values are there.
fn prompt(cpu: &Cpu, s: &AttentionShape, past: usize, len: usize, kind: KvType) {
    let (w, kw) = (s.heads * s.head_dim, s.kv_heads * s.head_dim);
    let all = past + len;
    let Ok(mut pages) = KvPages::new(kind, 1, s.kv_heads, s.head_dim, all.div_ceil(PAGE)) else {
        return;
    };
    let ids: Vec<_> = std::iter::from_fn(|| pages.allocate()).collect();
    let (k, v) = (numbers(all * kw), numbers(all * kw));
    let rows = Span { start: 0, len: all };
    let append =
        median(|| pages.append(cpu, 0, &[CachedSpan { rows, past: 0, pages: &ids }], &k, &v));
    let spans = [CachedSpan { rows: Span { start: 0, len }, past, pages: &ids }];
    let (q, mut out) = (numbers(len * w), vec![0.0; len * w]);
    let seconds = median(|| forward_cached(cpu, s, 0, &pages, &spans, &q, &mut out));
    let pairs = (len * past + len * (len + 1) / 2) * s.heads;
    let flop = (pairs * 4 * s.head_dim) as f64 / 1e9;
    println!(
        "  {len:4} rows after {past:4}, {}: {:6.1} GFLOP/s ({:6.0} µs); storing {all} {:6.0} µs",
        kind.name(),
        flop / seconds,
        seconds * 1e6,
        append * 1e6
    );
}

/// One new token in each of 1 and 8 sequences.
fn decode(cpu: &Cpu, s: &AttentionShape, depth: usize, kind: KvType) {
    let (w, kw) = (s.heads * s.head_dim, s.kv_heads * s.head_dim);
    print!("  decode at {depth:4}, {}:", kind.name());
    for sequences in [1, 8] {
        let each = depth.div_ceil(PAGE);
        let Ok(mut pages) = KvPages::new(kind, 1, s.kv_heads, s.head_dim, each * sequences) else {
            return;
        };
        let ids: Vec<_> = std::iter::from_fn(|| pages.allocate()).collect();
        let (k, v) = (numbers(depth * kw), numbers(depth * kw));
        for ids in ids.chunks(each) {
            let rows = Span { start: 0, len: depth };
            pages.append(cpu, 0, &[CachedSpan { rows, past: 0, pages: ids }], &k, &v);
        }
        let spans: Vec<_> = ids
            .chunks(each)
            .enumerate()
            .map(|(start, pages)| CachedSpan {
                rows: Span { start, len: 1 },
                past: depth - 1,
                pages,
            })
            .collect();
        let (q, mut out) = (numbers(sequences * w), vec![0.0; sequences * w]);
        let seconds = median(|| forward_cached(cpu, s, 0, &pages, &spans, &q, &mut out));
        let bytes = (2 * depth * kw * 2 * sequences) as f64;
        print!(
            " {sequences} sequences {:7.0} tokens/s a layer ({:5.1} GB/s) ",
            sequences as f64 / seconds,
            bytes / seconds / 1e9
        );
    }
    println!();
}
