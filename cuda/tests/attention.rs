//! Attention on the emulator, against its definition in f64.
#![allow(clippy::unwrap_used)]

mod common;

use common::{bf16, close, from_bf16, gpu, values};
use cuda::ops::Output;
use cuda::ops::attention::{self, AttentionShape, Spans};

fn shape(heads: usize, kv_heads: usize, head_dim: usize) -> AttentionShape {
    let scale = 1.3 / (head_dim as f32).sqrt();
    AttentionShape { heads, kv_heads, head_dim, scale, window: None, cap: None }
}

#[derive(Clone)]
struct Case {
    s: AttentionShape,
    spans: Vec<(usize, usize)>,
    rows: usize,
    q: Vec<u16>,
    k: Vec<u16>,
    v: Vec<u16>,
    dout: Vec<f32>,
}

/// Spans of these lengths, `gap` rows before the first and after each.
fn case(s: AttentionShape, lens: &[usize], gap: usize) -> Case {
    let mut rows = gap;
    let spans = lens.iter().map(|len| {
        rows += len + gap;
        (rows - len - gap, *len)
    });
    let spans = spans.collect();
    let halves = |seed, len, scale: f32| -> Vec<u16> {
        values(seed, len).iter().map(|x| bf16(x * scale)).collect()
    };
    let (w, kw) = (s.heads * s.head_dim, s.kv_heads * s.head_dim);
    let (q, k) = (halves(1, rows * w, 3.0), halves(2, rows * kw, 2.0));
    let (v, dout) = (halves(3, rows * kw, 1.0), values(4, rows * w));
    Case { s, spans, rows, q, k, v, dout }
}

#[derive(PartialEq)]
struct Results {
    out: Vec<f32>,
    out_bf16: Vec<u16>,
    lse: Vec<f32>,
    gradients: [Vec<f32>; 3],
}

impl Case {
    fn run(&self, backward: bool) -> Results {
        let gpu = gpu();
        let spans = Spans::new(&gpu, self.rows, &self.spans).unwrap();
        let [q, k, v] = [&self.q, &self.k, &self.v].map(|x| gpu.upload(x, "operand").unwrap());
        let [mut out, mut dq] = [(); 2].map(|()| gpu.buffer(self.q.len(), "as q").unwrap());
        let [mut dk, mut dv] = [(); 2].map(|()| gpu.buffer(self.k.len(), "as k").unwrap());
        let [mut lse, mut delta] =
            [(); 2].map(|()| gpu.buffer(self.rows * self.s.heads, "as lse").unwrap());
        let mut half = gpu.buffer(self.q.len(), "bf16").unwrap();
        let (q, k, v) = (q.slice(), k.slice(), v.slice());
        let both = Output::both(out.slice_mut(), half.slice_mut());
        attention::forward(&gpu, &self.s, &spans, q, k, v, both, lse.slice_mut()).unwrap();
        let out_bf16 = half.read().unwrap();
        if backward {
            let dout = gpu.upload(&self.dout, "dout").unwrap();
            attention::backward(
                &gpu,
                &self.s,
                &spans,
                q,
                k,
                v,
                out.slice(),
                lse.slice(),
                dout.slice(),
                delta.slice_mut(),
                half.slice_mut(),
                dq.slice_mut(),
                dk.slice_mut(),
                dv.slice_mut(),
            )
            .unwrap();
        } else {
            for x in [&mut dq, &mut dk, &mut dv] {
                x.slice_mut().zero().unwrap();
            }
        }
        let gradients = [dq, dk, dv].map(|x| x.read().unwrap());
        Results { out: out.read().unwrap(), out_bf16, lse: lse.read().unwrap(), gradients }
    }

    /// Results, logarithms of sums, and gradients by the definition.
    fn plain(&self) -> (Vec<f64>, Vec<f64>, [Vec<f64>; 3]) {
        let s = &self.s;
        let wide = |x: &[u16]| -> Vec<f64> { x.iter().map(|x| from_bf16(*x).into()).collect() };
        let (q, k, v) = (wide(&self.q), wide(&self.k), wide(&self.v));
        let hd = s.head_dim;
        let (w, kw) = (s.heads * hd, s.kv_heads * hd);
        let (mut out, mut lse) = (vec![0.0; q.len()], vec![0.0; self.rows * s.heads]);
        let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
        let (scale, cap) = (f64::from(s.scale), s.cap.map(f64::from));
        for &(start, len) in &self.spans {
            for (i, h) in (0..len).flat_map(|i| (0..s.heads).map(move |h| (i, h))) {
                let at = (start + i) * w + h * hd;
                let first = s.window.map_or(0, |window| (i + 1).saturating_sub(window));
                let key = |j: usize| (start + j) * kw + h / (s.heads / s.kv_heads) * hd;
                let dot = |x: &[f64], at: usize, y: &[f64], to: usize| -> f64 {
                    (0..hd).map(|d| x[at + d] * y[to + d]).sum()
                };
                let scores: Vec<f64> = (first..=i)
                    .map(|j| scale * dot(&q, at, &k, key(j)))
                    .map(|x| cap.map_or(x, |cap| cap * (x / cap).tanh()))
                    .collect();
                let sum: f64 = scores.iter().map(|x| x.exp()).sum();
                lse[(start + i) * s.heads + h] = sum.ln();
                let weights: Vec<f64> = scores.iter().map(|x| x.exp() / sum).collect();
                for (j, weight) in (first..=i).zip(&weights) {
                    (0..hd).for_each(|d| out[at + d] += weight * v[key(j) + d]);
                }
                let dout: Vec<f64> = self.dout[at..at + hd].iter().map(|x| (*x).into()).collect();
                let delta = dot(&dout, 0, &out, at);
                for (j, (weight, score)) in (first..=i).zip(weights.iter().zip(&scores)) {
                    let mut slope = weight * (dot(&dout, 0, &v, key(j)) - delta) * scale;
                    slope *= cap.map_or(1.0, |cap| 1.0 - (score / cap).powi(2));
                    for d in 0..hd {
                        dv[key(j) + d] += weight * dout[d];
                        dq[at + d] += slope * k[key(j) + d];
                        dk[key(j) + d] += slope * q[at + d];
                    }
                }
            }
        }
        (out, lse, [dq, dk, dv])
    }

    fn check(&self, backward: bool) {
        let got = self.run(backward);
        let (out, lse, gradients) = self.plain();
        close("out", &got.out, &out, 6e-3);
        close("lse", &got.lse, &lse, 2e-6);
        let rounded: Vec<u16> = got.out.iter().map(|x| bf16(*x)).collect();
        assert_eq!(got.out_bf16, rounded);
        if backward {
            for (i, name) in ["dq", "dk", "dv"].into_iter().enumerate() {
                close(name, &got.gradients[i], &gradients[i], 1e-2);
            }
        }
        // Again: the emulator's threads run in another order.
        assert!(self.run(backward) == got, "not the same bits");
    }
}

#[test]
fn heads_of_16_in_groups_and_spans_with_gaps() {
    case(shape(4, 2, 16), &[1, 65, 3, 150], 1).check(true);
    case(shape(2, 1, 16), &[], 3).check(true);
}

#[test]
fn windows_and_caps() {
    let s = shape(3, 1, 32);
    case(AttentionShape { window: Some(1), ..s }, &[17, 70], 0).check(true);
    case(AttentionShape { window: Some(40), cap: Some(1.5), ..s }, &[140], 2).check(true);
    case(AttentionShape { cap: Some(0.7), ..s }, &[130, 2], 0).check(true);
}

#[test]
fn heads_of_64() {
    case(shape(2, 2, 64), &[150, 1], 0).check(true);
    case(AttentionShape { window: Some(64), ..shape(2, 1, 56) }, &[33, 140], 5).check(true);
}

#[test]
fn heads_of_80_and_96() {
    case(shape(2, 1, 80), &[100, 31], 1).check(true);
    case(shape(1, 1, 96), &[70], 0).check(true);
}

#[test]
fn heads_of_128() {
    case(shape(2, 1, 128), &[129, 5], 0).check(true);
}

#[test]
fn heads_of_256() {
    case(AttentionShape { window: Some(50), ..shape(2, 1, 256) }, &[90, 5], 0).check(true);
}

#[test]
fn graphs_go_on_with_other_spans() {
    let gpu = gpu();
    let case = case(shape(2, 1, 32), &[40, 30, 9], 0);
    let s = &case.s;
    let mut spans = Spans::new(&gpu, case.rows, &case.spans).unwrap();
    let [q, k, v] = [&case.q, &case.k, &case.v].map(|x| gpu.upload(x, "operand").unwrap());
    let mut out = gpu.buffer(case.q.len(), "out").unwrap();
    let mut lse = gpu.buffer(case.rows * s.heads, "lse").unwrap();
    let graph = gpu
        .capture(|| {
            let (q, k, v, out) = (q.slice(), k.slice(), v.slice(), Output::bf16(out.slice_mut()));
            attention::forward(&gpu, s, &spans, q, k, v, out, lse.slice_mut())
        })
        .unwrap();
    for others in [&[(0, 40), (40, 30), (70, 9)][..], &[(3, 70)], &[], &[(0, 1), (78, 1)]] {
        spans.write(others).unwrap();
        graph.launch().unwrap();
        let case = Case { spans: others.to_vec(), ..case.clone() };
        assert!(out.read().unwrap() == case.run(false).out_bf16, "{others:?}");
    }
}

#[test]
#[should_panic(expected = "in order")]
fn spans_out_of_order_are_refused() {
    let _ = Spans::new(&gpu(), 9, &[(3, 4), (0, 2)]);
}
