//! Against plain f64 attention and its central differences; the same bits on every path.

use super::*;
use crate::Isa;
use crate::cpu::Cpu;
use crate::cpu::tests::{everywhere, noise};
use crate::kv::{KvPages, KvSequence, KvType};

fn shape(heads: usize, kv_heads: usize, head_dim: usize, window: Option<usize>) -> AttentionShape {
    let scale = 1.3 / (head_dim as f32).sqrt();
    AttentionShape { heads, kv_heads, head_dim, scale, window, cap: None }
}

fn capped(shape: AttentionShape, cap: f32) -> AttentionShape {
    AttentionShape { cap: Some(cap), ..shape }
}

/// Spans of these lengths with a gap of one row after the first.
fn spans(lens: &[usize]) -> (Vec<Span>, usize) {
    let mut start = 0;
    let mut spans = Vec::new();
    for &len in lens {
        spans.push(Span { start, len });
        start += len + usize::from(spans.len() == 1);
    }
    (spans, start)
}

struct Case {
    s: AttentionShape,
    spans: Vec<Span>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    dout: Vec<f32>,
    rows: usize,
    /// Whether products are in bf16.
    bf16: bool,
}

fn case(s: AttentionShape, lens: &[usize]) -> Case {
    let (spans, rows) = spans(lens);
    let (w, kw) = s.widths();
    let q = noise(1, rows * w).iter().map(|x| x * 3.0).collect();
    let k = noise(2, rows * kw).iter().map(|x| x * 2.0).collect();
    let (v, dout) = (noise(3, rows * kw), noise(4, rows * w));
    Case { s, spans, q, k, v, dout, rows, bf16: false }
}

fn cases() -> Vec<Case> {
    vec![
        case(shape(1, 1, 1, None), &[1]),
        case(shape(1, 1, 3, None), &[3, 1, 17]),
        case(shape(2, 1, 16, None), &[17, 65]),
        case(shape(4, 2, 24, None), &[65, 3, 129]),
        case(shape(3, 3, 64, None), &[200]),
        case(shape(6, 2, 32, None), &[64, 63, 128]),
        case(shape(2, 1, 16, Some(1)), &[17, 70]),
        case(shape(2, 2, 3, Some(5)), &[129]),
        case(shape(4, 1, 17, Some(64)), &[200]),
        case(shape(2, 1, 16, Some(70)), &[3, 290]),
        case(shape(1, 1, 32, None), &[600]),
        case(capped(shape(4, 2, 24, None), 1.5), &[65, 3, 129]),
        case(capped(shape(2, 1, 16, Some(70)), 0.5), &[3, 190]),
    ]
}

impl Case {
    fn forward(&self, cpu: &Cpu) -> (Vec<f32>, Vec<f32>) {
        let mut out = vec![7.0; self.q.len()];
        let mut lse = vec![7.0; self.rows * self.s.heads];
        forward(
            cpu,
            &self.s,
            &self.spans,
            self.bf16,
            &self.q,
            &self.k,
            &self.v,
            &mut out,
            &mut lse,
        );
        (out, lse)
    }

    /// Forward, then dq, dk, dv.
    fn backward(&self, cpu: &Cpu) -> [Vec<f32>; 3] {
        let (out, lse) = self.forward(cpu);
        let [mut dq, mut dk, mut dv] = [&self.q, &self.k, &self.v].map(|x| vec![7.0; x.len()]);
        let Case { s, spans, bf16, q, k, v, dout, .. } = self;
        backward(cpu, s, spans, *bf16, q, k, v, &out, &lse, dout, &mut dq, &mut dk, &mut dv);
        [dq, dk, dv]
    }
}

/// Results and log-sums by the definition, of q, k and v in f64.
fn plain(c: &Case, x: &[Vec<f64>; 3]) -> (Vec<f64>, Vec<f64>) {
    let [q, k, v] = x;
    let (s, hd, (w, kw)) = (&c.s, c.s.head_dim, c.s.widths());
    let (mut out, mut lse) = (vec![0.0; q.len()], vec![0.0; c.rows * s.heads]);
    for span in &c.spans {
        for i in 0..span.len {
            for h in 0..s.heads {
                let at = (span.start + i) * w + h * hd;
                let key = |j: usize| (span.start + j) * kw + h / (s.heads / s.kv_heads) * hd;
                let seen: Vec<usize> =
                    (0..=i).filter(|j| s.window.is_none_or(|w| i - j < w)).collect();
                let weights: Vec<f64> = seen
                    .iter()
                    .map(|&j| {
                        let dot: f64 = (0..hd).map(|d| q[at + d] * k[key(j) + d]).sum();
                        let score = dot * f64::from(s.scale);
                        s.cap.map_or(score, |c| f64::from(c) * (score / f64::from(c)).tanh()).exp()
                    })
                    .collect();
                let sum: f64 = weights.iter().sum();
                lse[(span.start + i) * s.heads + h] = sum.ln();
                for (j, weight) in seen.iter().zip(&weights) {
                    for d in 0..hd {
                        out[at + d] += weight / sum * v[key(*j) + d];
                    }
                }
            }
        }
    }
    (out, lse)
}

fn wide(c: &Case) -> [Vec<f64>; 3] {
    [&c.q, &c.k, &c.v].map(|x| x.iter().map(|x| f64::from(*x)).collect())
}

#[track_caller]
fn close(name: &str, got: &[f32], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len());
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!(
            (f64::from(*g) - w).abs() <= tolerance * (1.0 + w.abs()),
            "{name} {i}: {g}, not {w}"
        );
    }
}

#[test]
fn forward_is_softmax_attention() {
    for c in cases() {
        let (out, lse) = plain(&c, &wide(&c));
        let got = everywhere(|cpu| {
            let (out, lse) = c.forward(cpu);
            [out, lse].concat()
        });
        close("out", &got[..out.len()], &out, 3e-6);
        close("lse", &got[out.len()..], &lse, 3e-6);
    }
}

#[test]
fn backward_is_the_slope_of_forward() {
    for c in cases() {
        check_slopes(&c, &everywhere(|cpu| c.backward(cpu).concat()), [2e-5, 1e-5]);
    }
}

/// Gradients of the case against differences of plain attention: single ones within a tolerance of their own size,
/// sums along random directions within one of the length of all.
fn check_slopes(c: &Case, got: &[f32], [single, together]: [f64; 2]) {
    let x = wide(c);
    let loss = |x: &[Vec<f64>; 3]| -> f64 {
        plain(c, x).0.iter().zip(&c.dout).map(|(o, d)| o * f64::from(*d)).sum()
    };
    let step = 1e-5;
    let mut at = 0;
    for part in 0..3 {
        let n = x[part].len();
        let got = &got[at..at + n];
        at += n;
        // Every element of a small case, some of a large one, …
        for i in (0..n).step_by((n * c.rows / 600).max(1) | 1) {
            let side = |sign: f64| {
                let mut x = x.clone();
                x[part][i] += sign * step;
                loss(&x)
            };
            let slope = (side(1.0) - side(-1.0)) / (2.0 * step);
            let error = (f64::from(got[i]) - slope).abs();
            assert!(error <= single * (1.0 + slope.abs()), "{part} {i}: {}, not {slope}", got[i]);
        }
        // … and all of them together.
        for seed in 0..3 {
            let direction = noise(50 + seed, n);
            let side = |sign: f64| {
                let mut x = x.clone();
                let along = x[part].iter_mut().zip(&direction);
                along.for_each(|(x, d)| *x += sign * step * f64::from(*d));
                loss(&x)
            };
            let slope = (side(1.0) - side(-1.0)) / (2.0 * step);
            let mine: f64 =
                got.iter().zip(&direction).map(|(g, d)| f64::from(*g) * f64::from(*d)).sum();
            let length = got.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
            assert!((mine - slope).abs() <= together * (1.0 + length), "{mine}, not {slope}");
        }
    }
}

/// A case whose operands bf16 holds, so that it differs from plain attention by what weights and slopes lose alone.
fn halved(mut c: Case) -> Case {
    // A power of two, by which scaling loses nothing.
    c.s.scale = 2f32.powi(c.s.scale.log2().round() as i32);
    for x in [&mut c.q, &mut c.k, &mut c.v, &mut c.dout] {
        x.iter_mut().for_each(|x| *x = half::bf16::from_f32(*x).to_f32());
    }
    Case { bf16: true, ..c }
}

#[test]
fn bf16_is_close_to_plain_attention() {
    for c in cases().into_iter().map(halved) {
        let (out, lse) = plain(&c, &wide(&c));
        for isa in Isa::ALL.into_iter().filter(|i| i.available()) {
            let cpu = |threads| Cpu::with(threads, isa);
            let got = c.forward(&cpu(1));
            close("out", &got.0, &out, 6e-3);
            close("lse", &got.1, &lse, 3e-6);
            let slopes = c.backward(&cpu(2)).concat();
            check_slopes(&c, &slopes, [2e-2, 4e-3]);
            same_bits(&got.0, &c.forward(&cpu(3)).0);
            same_bits(&slopes, &c.backward(&cpu(1)).concat());
        }
    }
}

/// A cache with the keys and values of every span, appended in pieces, its pages out of order.
fn filled(c: &Case, layer: usize, kind: KvType) -> (KvPages, Vec<KvSequence>) {
    let count = c.spans.iter().map(|s| s.len.div_ceil(BLOCK)).sum();
    let mut pages = KvPages::new(kind, 2, c.s.kv_heads, c.s.head_dim, count).expect("small");
    let mut sequences = vec![KvSequence::default(); c.spans.len()];
    let longest = c.spans.iter().map(|s| s.len).max().unwrap_or(0);
    for position in (0..longest).step_by(BLOCK) {
        for (sequence, span) in sequences.iter_mut().zip(&c.spans).rev() {
            if position < span.len {
                sequence.pages.push(pages.allocate().expect("counted"));
            }
        }
    }
    for (sequence, span) in sequences.iter_mut().zip(&c.spans) {
        while sequence.len < span.len {
            let n = 23.min(span.len - sequence.len);
            let rows = Span { start: span.start + sequence.len, len: n };
            let piece = CachedSpan { rows, past: sequence.len, pages: &sequence.pages };
            pages.append(&Cpu::new(2), layer, &[piece], &c.k, &c.v);
            sequence.len += n;
        }
    }
    (pages, sequences)
}

/// `forward_cached` of every span in pieces of `step` rows, pieces of all spans batched.
fn in_steps(
    c: &Case,
    cpu: &Cpu,
    pages: &KvPages,
    sequences: &[KvSequence],
    step: usize,
) -> Vec<f32> {
    let w = c.s.widths().0;
    let mut result = vec![0.0; c.q.len()];
    let longest = c.spans.iter().map(|s| s.len).max().unwrap_or(0);
    for past in (0..longest).step_by(step) {
        let (mut q, mut pieces, mut rows) = (Vec::new(), Vec::new(), Vec::new());
        for (span, sequence) in c.spans.iter().zip(sequences) {
            let len = span.len.saturating_sub(past).min(step);
            let start = rows.len();
            rows.extend((0..len).map(|i| span.start + past + i));
            pieces.push(CachedSpan { rows: Span { start, len }, past, pages: &sequence.pages });
        }
        pieces.retain(|p| p.rows.len > 0);
        rows.iter().for_each(|r| q.extend_from_slice(&c.q[r * w..(r + 1) * w]));
        let mut out = vec![7.0; q.len()];
        forward_cached(cpu, &c.s, 1, pages, &pieces, &q, &mut out);
        for (i, r) in rows.iter().enumerate() {
            result[r * w..(r + 1) * w].copy_from_slice(&out[i * w..(i + 1) * w]);
        }
    }
    result
}

#[track_caller]
fn same_bits(a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len());
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert!(a.to_bits() == b.to_bits(), "element {i}: {a:e} and {b:e}");
    }
}

#[test]
fn tokens_one_by_one_in_pieces_and_at_once_are_the_same_bits() {
    for c in cases() {
        let (pages, sequences) = filled(&c, 1, KvType::F32);
        let whole = c.forward(&Cpu::with(1, Isa::Portable)).0;
        for isa in Isa::ALL.into_iter().filter(|i| i.available()) {
            for (threads, step) in [(1, 1), (3, 1), (2, 7), (1, 64), (2, 100), (2, 1000)] {
                let cpu = Cpu::with(threads, isa);
                same_bits(&in_steps(&c, &cpu, &pages, &sequences, step), &whole);
            }
        }
    }
}

/// `x`, rounded as a cache of that type does it: rows of heads.
fn rounded(x: &[f32], head_dim: usize, kind: KvType) -> Vec<f32> {
    let eighths = |head: &[f32]| {
        let groups = head.chunks(32).flat_map(|group| {
            let largest = group.iter().fold(0f32, |most, x| most.max(x.abs()));
            group.iter().map(move |x| (x * (127.0 / largest)).round_ties_even() * (largest / 127.0))
        });
        groups.collect::<Vec<f32>>()
    };
    match kind {
        KvType::F32 => x.to_vec(),
        KvType::F16 => x.iter().map(|x| half::f16::from_f32(*x).to_f32()).collect(),
        KvType::Bf16 => x.iter().map(|x| half::bf16::from_f32(*x).to_f32()).collect(),
        KvType::Q16 => x.chunks(head_dim).flat_map(|head| coded(head, 4095.0)).collect(),
        KvType::Q8 => x.chunks(head_dim).flat_map(eighths).collect(),
    }
}

/// A head, rounded to integers up to `most`.
fn coded(head: &[f32], most: f32) -> Vec<f32> {
    let largest = head.iter().fold(0f32, |most, x| most.max(x.abs()));
    head.iter().map(|x| (x * (most / largest)).round_ties_even() * (largest / most)).collect()
}

#[test]
fn a_cache_of_fewer_bits_is_attention_over_rounded_keys() {
    for c in cases() {
        for kind in [KvType::F16, KvType::Bf16, KvType::Q8] {
            let (pages, sequences) = filled(&c, 1, kind);
            let (k, v) = (rounded(&c.k, c.s.head_dim, kind), rounded(&c.v, c.s.head_dim, kind));
            let whole = Case { k, v, q: c.q.clone(), spans: c.spans.clone(), dout: vec![], ..c };
            let whole = whole.forward(&Cpu::with(1, Isa::Portable)).0;
            for isa in Isa::ALL.into_iter().filter(|i| i.available()) {
                for (threads, step) in [(3, 1), (2, 100)] {
                    let cpu = Cpu::with(threads, isa);
                    same_bits(&in_steps(&c, &cpu, &pages, &sequences, step), &whole);
                }
            }
        }
    }
}

/// Rows of a case by 16-bit codes; the same bits on every instruction set, by any steps and threads.
fn by_codes(c: &Case) -> Vec<f32> {
    let (pages, sequences) = filled(c, 1, KvType::Q16);
    let first = in_steps(c, &Cpu::with(1, Isa::Portable), &pages, &sequences, 1000);
    for isa in Isa::ALL.into_iter().filter(|i| i.available()) {
        for (threads, step) in [(1, 1), (3, 1), (2, 7), (1, 64), (2, 100), (2, 1000)] {
            let got = in_steps(c, &Cpu::with(threads, isa), &pages, &sequences, step);
            same_bits(&got, &first);
        }
    }
    first
}

#[test]
fn a_cache_of_codes_is_attention_over_rounded_operands() {
    for c in cases() {
        let hd = c.s.head_dim;
        let most = (f64::from(u32::MAX / 2) / 4095.0 / hd as f64).floor().min(8191.0) as f32;
        let q = c.q.chunks(hd).flat_map(|head| coded(head, most)).collect();
        let (k, v) = (rounded(&c.k, hd, KvType::Q16), rounded(&c.v, hd, KvType::Q16));
        let whole = Case { q, k, v, spans: c.spans.clone(), dout: vec![], ..c };
        // What is left is the rounding of weights.
        close("out", &by_codes(&c), &plain(&whole, &wide(&whole)).0, 1e-3);
    }
}

#[test]
fn the_largest_codes_have_room() {
    for hd in [16, 64, 256] {
        let mut c = case(shape(2, 1, hd, None), &[64, 70]);
        for (i, x) in c.q.iter_mut().enumerate() {
            *x = if i / hd % 3 == 0 { -1.0 } else { 0.01 };
        }
        for (i, x) in c.k.iter_mut().enumerate() {
            *x = if i / hd % 5 == 0 { 0.5 } else { -0.5 };
        }
        c.v.fill(1.0);
        close("out", &by_codes(&c), &plain(&c, &wide(&c)).0, 1e-4);
    }
}

#[test]
fn codes_of_what_is_hidden_may_be_anything_and_what_is_seen_and_no_number_shows() {
    let good = case(shape(4, 2, 24, None), &[30, 190]);
    let (w, kw) = good.s.widths();
    let (want, bad) = (by_codes(&good), good.spans[1].start + 130);
    for broken in [f32::NAN, f32::INFINITY] {
        for values in [false, true] {
            let mut c = case(good.s, &[30, 190]);
            let side = if values { &mut c.v } else { &mut c.k };
            side[bad * kw] = broken;
            let got = {
                let (pages, sequences) = filled(&c, 1, KvType::Q16);
                in_steps(&c, &Cpu::new(2), &pages, &sequences, 50)
            };
            same_bits(&got[..bad * w], &want[..bad * w]);
            // Those of the other key head don't see it.
            for (i, x) in got.iter().enumerate().skip(bad * w) {
                assert_eq!(x.is_nan(), i % w < w / 2, "element {i}: {x}");
            }
        }
    }
}

#[test]
fn a_row_depends_on_what_it_sees_alone() {
    let cpu = Cpu::new(2);
    for (window, bf16) in [(None, false), (Some(50), false), (None, true), (Some(50), true)] {
        let of = || Case { bf16, ..case(shape(4, 2, 24, window), &[30, 190, 20]) };
        let c = of();
        let (w, kw) = c.s.widths();
        let (span, i) = (c.spans[1], 130);
        let row = span.start + i;
        let seen = span.start + c.s.first_key(i)..row + 1;
        let before = c.forward(&cpu);
        let mut other = of();
        // Weights of 0 don't hide what is no number.
        let hidden = if bf16 { [9.0, -9.0] } else { [f32::NAN, f32::INFINITY] };
        for r in (0..c.rows).filter(|r| !seen.contains(r)) {
            other.k[r * kw..(r + 1) * kw].fill(hidden[0]);
            other.v[r * kw..(r + 1) * kw].fill(hidden[1]);
        }
        for r in (0..c.rows).filter(|r| *r != row) {
            other.q[r * w..(r + 1) * w].fill(-5.0);
        }
        let after = other.forward(&cpu);
        same_bits(&before.0[row * w..(row + 1) * w], &after.0[row * w..(row + 1) * w]);
        same_bits(&before.1[row * 4..(row + 1) * 4], &after.1[row * 4..(row + 1) * 4]);

        // Nor does a span's gradient depend on other spans, or on where it stands.
        let whole = c.backward(&cpu);
        let cut = |x: &[f32], w: usize| x[span.start * w..(span.start + span.len) * w].to_vec();
        let alone = Case {
            s: c.s,
            spans: vec![Span { start: 0, len: span.len }],
            q: cut(&c.q, w),
            k: cut(&c.k, kw),
            v: cut(&c.v, kw),
            dout: cut(&c.dout, w),
            rows: span.len,
            bf16,
        };
        for (whole, (alone, w)) in whole.iter().zip(alone.backward(&cpu).iter().zip([w, kw, kw])) {
            same_bits(&cut(whole, w), alone);
        }
    }
}

#[test]
fn rows_of_no_span_are_zero() {
    let c = case(shape(2, 1, 16, None), &[5, 9]);
    let cpu = Cpu::new(1);
    let (out, lse) = c.forward(&cpu);
    let [dq, dk, dv] = c.backward(&cpu);
    assert!(out[5 * 32..6 * 32].iter().chain(&lse[10..12]).all(|x| *x == 0.0));
    let gap = dq[5 * 32..6 * 32].iter().chain(&dk[5 * 16..6 * 16]).chain(&dv[5 * 16..6 * 16]);
    assert!(gap.into_iter().all(|x| *x == 0.0));
}

#[test]
#[should_panic(expected = "spans have to be in order")]
fn overlapping_spans_are_refused() {
    let mut c = case(shape(1, 1, 16, None), &[5, 9]);
    c.spans[1].start = 4;
    c.forward(&Cpu::new(1));
}

#[test]
#[should_panic(expected = "a page is missing")]
fn missing_pages_are_refused() {
    let c = case(shape(1, 1, 16, None), &[70]);
    let (pages, sequences) = filled(&c, 1, KvType::F32);
    let rows = Span { start: 0, len: 70 };
    let span = CachedSpan { rows, past: 0, pages: &sequences[0].pages[..1] };
    forward_cached(&Cpu::new(1), &c.s, 1, &pages, &[span], &c.q, &mut vec![0.0; c.q.len()]);
}
