//! Against plain f64 softmax attention and its central differences; bit for bit across instruction
//! sets, threads, neighbours, and between whole sequences and pages.

use super::*;
use crate::cpu::Cpu;
use crate::cpu::tests::{everywhere, noise};
use crate::kv::{KvPages, KvSequence};

fn shape(heads: usize, kv_heads: usize, head_dim: usize, window: Option<usize>) -> AttentionShape {
    AttentionShape { heads, kv_heads, head_dim, scale: 1.7 / (head_dim as f32).sqrt(), window }
}

fn reference(s: &AttentionShape, spans: &[Span], q: &[f64], k: &[f64], v: &[f64]) -> Vec<f64> {
    let hd = s.head_dim;
    let mut out = vec![0.0; q.len()];
    for span in spans {
        for i in 0..span.len {
            for h in 0..s.heads {
                let kv = h / (s.heads / s.kv_heads);
                let row = |x: &[f64], r: usize, heads: usize, h: usize| {
                    x[((span.start + r) * heads + h) * hd..][..hd].to_vec()
                };
                let qi = row(q, i, s.heads, h);
                let first = s.window.map_or(0, |w| (i + 1).saturating_sub(w));
                let weights: Vec<f64> = (first..=i)
                    .map(|j| {
                        let kj = row(k, j, s.kv_heads, kv);
                        let dot: f64 = qi.iter().zip(kj).map(|(a, b)| a * b).sum();
                        (dot * f64::from(s.scale)).exp()
                    })
                    .collect();
                let sum: f64 = weights.iter().sum();
                for (j, p) in (first..=i).zip(&weights) {
                    let vj = row(v, j, s.kv_heads, kv);
                    for e in 0..hd {
                        out[((span.start + i) * s.heads + h) * hd + e] += p / sum * vj[e];
                    }
                }
            }
        }
    }
    out
}

fn spans(lengths: &[usize]) -> Vec<Span> {
    let mut start = 0;
    lengths
        .iter()
        .map(|len| {
            start += len;
            Span { start: start - len, len: *len }
        })
        .collect()
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

#[test]
fn forward_and_backward_against_f64() {
    for (lengths, s) in [
        (&[1][..], shape(1, 1, 1, None)),
        (&[3, 1, 17], shape(2, 1, 3, None)),
        (&[65, 2], shape(2, 2, 16, None)),
        (&[129, 5], shape(4, 2, 24, None)),
        (&[200], shape(1, 1, 64, Some(70))),
        (&[17, 90], shape(3, 1, 8, Some(5))),
    ] {
        let spans = spans(lengths);
        let rows: usize = lengths.iter().sum();
        let (nq, nk) = (rows * s.heads * s.head_dim, rows * s.kv_heads * s.head_dim);
        let (q, k, v, dout) = (noise(1, nq), noise(2, nk), noise(3, nk), noise(4, nq));
        let got = everywhere(|cpu| {
            let (mut out, mut lse) = (vec![0.0; nq], vec![0.0; rows * s.heads]);
            forward(cpu, &s, &spans, &q, &k, &v, &mut out, &mut lse);
            let (mut dq, mut dk, mut dv) = (vec![0.0; nq], vec![0.0; nk], vec![0.0; nk]);
            backward(cpu, &s, &spans, &q, &k, &v, &out, &lse, &dout, &mut dq, &mut dk, &mut dv);
            [out, dq, dk, dv].concat()
        });
        let (fq, fk, fv) = (wide(&q), wide(&k), wide(&v));
        let want = reference(&s, &spans, &fq, &fk, &fv);
        for (g, w) in got.iter().zip(&want) {
            assert!((f64::from(*g) - w).abs() < 1e-5, "{lengths:?}: {g}, not {w}");
        }
        // Differences of some elements of each input.
        let loss = |q: &[f64], k: &[f64], v: &[f64]| -> f64 {
            let out = reference(&s, &spans, q, k, v);
            out.iter().zip(&dout).map(|(o, d)| o * f64::from(*d)).sum()
        };
        for (which, (x, at)) in
            [(&fq, nq), (&fk, 2 * nq), (&fv, 2 * nq + nk)].into_iter().enumerate()
        {
            for i in (0..x.len()).step_by((x.len() / 9).max(1)) {
                let side = |h: f64| {
                    let mut x = x.clone();
                    x[i] += h;
                    match which {
                        0 => loss(&x, &fk, &fv),
                        1 => loss(&fq, &x, &fv),
                        _ => loss(&fq, &fk, &x),
                    }
                };
                let want = (side(1e-5) - side(-1e-5)) / 2e-5;
                let got = f64::from(got[at + i]);
                assert!(
                    (got - want).abs() < 1e-4 * (1.0 + want.abs()),
                    "{lengths:?} input {which}, element {i}: {got}, not {want}"
                );
            }
        }
    }
}

#[test]
fn pages_give_the_bits_of_whole_sequences() {
    for s in [shape(4, 2, 32, None), shape(2, 1, 24, Some(40))] {
        let spans = spans(&[150, 1, 64, 90]);
        let rows = 305;
        let (wide, narrow) = (s.heads * s.head_dim, s.kv_heads * s.head_dim);
        let (q, k, v) = (noise(5, rows * wide), noise(6, rows * narrow), noise(7, rows * narrow));
        let cpu = Cpu::new(2);
        let (mut whole, mut lse) = (vec![0.0; rows * wide], vec![0.0; rows * s.heads]);
        forward(&cpu, &s, &spans, &q, &k, &v, &mut whole, &mut lse);
        for piece in [1, 7, 64, 1000] {
            let mut pages = KvPages::new(3, s.kv_heads, s.head_dim, 12).expect("small");
            let mut sequences: Vec<KvSequence> = spans
                .iter()
                .map(|span| KvSequence {
                    pages: (0..span.len.div_ceil(BLOCK)).filter_map(|_| pages.allocate()).collect(),
                    len: 0,
                })
                .collect();
            let mut out = vec![0.0; rows * wide];
            while sequences.iter().zip(&spans).any(|(q, s)| q.len < s.len) {
                // The next rows of every sequence that has some, as one batch.
                let (mut bq, mut from, mut cached) = (Vec::new(), Vec::new(), Vec::new());
                for (sequence, span) in sequences.iter().zip(&spans) {
                    let n = piece.min(span.len - sequence.len);
                    let r = span.start + sequence.len..span.start + sequence.len + n;
                    let kv = r.start * narrow..r.end * narrow;
                    pages.append(1, &sequence.pages, sequence.len, &k[kv.clone()], &v[kv]);
                    if n > 0 {
                        cached.push(CachedSpan {
                            rows: Span { start: bq.len() / wide, len: n },
                            past: sequence.len,
                            pages: &sequence.pages,
                        });
                        from.push(r.clone());
                        bq.extend_from_slice(&q[r.start * wide..r.end * wide]);
                    }
                }
                let mut bout = vec![0.0; bq.len()];
                forward_cached(&cpu, &s, 1, &pages, &cached, &bq, &mut bout);
                let mut at = 0;
                for r in &from {
                    let n = r.len() * wide;
                    out[r.start * wide..r.end * wide].copy_from_slice(&bout[at..at + n]);
                    at += n;
                }
                for (sequence, span) in sequences.iter_mut().zip(&spans) {
                    sequence.len += piece.min(span.len - sequence.len);
                }
            }
            let same = whole.iter().zip(&out).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "pieces of {piece}");
        }
    }
}
