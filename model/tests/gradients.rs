//! The transformer's loss and gradients against a plain f64 transformer and its central
//! differences; bit-equality across instruction sets, threads and neighbours.

use std::sync::Arc;

use compute::parameters::Gradients;
use compute::tape::Workspace;
use compute::tensor::DType;
use compute::{Cpu, IGNORE, Isa, Span};
use model::config::{Config, Sizes};
use model::init::{Init, initialise};
use model::transformer::{Transformer, shapes};

fn config(tied: bool) -> Config {
    Config {
        rope_theta: 1e4,
        tie_word_embeddings: tied,
        ..Config::qwen3(Sizes {
            vocab: 29,
            width: 12,
            ffn: 19,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            head_dim: 6,
            context: 96,
        })
    }
}

fn model(tied: bool) -> Transformer {
    let config = config(tied);
    let init = Init {
        embedding_std: 0.5,
        matrix_gain: 1.5,
        output_gain: 0.8,
        qk_norm: 1.3,
        induction: false,
    };
    let parameters = initialise(&config, &init, 7);
    Transformer::new(config, parameters)
}

/// The model in plain f64: mean of `weights * nats` over one sequence at a time.
fn reference(c: &Config, p: &[Vec<f64>], tokens: &[u32], targets: &[u32], w: &[f64]) -> f64 {
    let names: Vec<String> = shapes(c).into_iter().map(|(n, _)| n).collect();
    let get = |name: &str| &p[names.iter().position(|n| n == name).expect(name)];
    let (d, hd) = (c.hidden_size, c.head_dim);
    let group = c.num_attention_heads / c.num_key_value_heads;
    let linear = |x: &[f64], w: &[f64]| -> Vec<f64> {
        w.chunks(x.len()).map(|row| row.iter().zip(x).map(|(a, b)| a * b).sum()).collect()
    };
    let norm = |x: &[f64], w: &[f64]| -> Vec<f64> {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        x.iter().zip(w).map(|(x, w)| x / (mean + 1e-6).sqrt() * w).collect()
    };
    let head = |x: &[f64], w: &[f64], t: usize| -> Vec<f64> {
        let x = norm(x, w);
        let mut y = x.clone();
        for i in 0..hd / 2 {
            let a = t as f64 * c.rope_theta.powf(-2.0 * i as f64 / hd as f64);
            y[i] = x[i] * a.cos() - x[i + hd / 2] * a.sin();
            y[i + hd / 2] = x[i] * a.sin() + x[i + hd / 2] * a.cos();
        }
        y
    };
    let embedding = get("model.embed_tokens.weight");
    let mut x: Vec<Vec<f64>> =
        tokens.iter().map(|t| embedding[*t as usize * d..][..d].to_vec()).collect();
    for l in 0..c.num_hidden_layers {
        let w = |name: &str| get(&format!("model.layers.{l}.{name}.weight"));
        let h: Vec<_> = x.iter().map(|x| norm(x, w("input_layernorm"))).collect();
        let split = |v: Vec<f64>| v.chunks(hd).map(<[f64]>::to_vec).collect::<Vec<_>>();
        let turned = |h: &[f64], m: &str, n: &str, t: usize| -> Vec<Vec<f64>> {
            split(linear(h, w(m))).iter().map(|x| head(x, w(n), t)).collect()
        };
        let rows = || h.iter().enumerate();
        let q: Vec<_> =
            rows().map(|(t, h)| turned(h, "self_attn.q_proj", "self_attn.q_norm", t)).collect();
        let k: Vec<_> =
            rows().map(|(t, h)| turned(h, "self_attn.k_proj", "self_attn.k_norm", t)).collect();
        let v: Vec<_> = h.iter().map(|h| split(linear(h, w("self_attn.v_proj")))).collect();
        for t in 0..x.len() {
            let mut out = Vec::new();
            for (n, q) in q[t].iter().enumerate() {
                let score = |s: usize| {
                    let dot: f64 = q.iter().zip(&k[s][n / group]).map(|(a, b)| a * b).sum();
                    (dot / (hd as f64).sqrt()).exp()
                };
                let weights: Vec<f64> = (0..=t).map(score).collect();
                let sum: f64 = weights.iter().sum();
                out.extend((0..hd).map(|i| {
                    weights
                        .iter()
                        .enumerate()
                        .map(|(s, p)| p / sum * v[s][n / group][i])
                        .sum::<f64>()
                }));
            }
            let a = linear(&out, w("self_attn.o_proj"));
            x[t].iter_mut().zip(a).for_each(|(x, a)| *x += a);
            let h = norm(&x[t], w("post_attention_layernorm"));
            let (gate, up) = (linear(&h, w("mlp.gate_proj")), linear(&h, w("mlp.up_proj")));
            let m: Vec<f64> =
                gate.iter().zip(&up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
            let m = linear(&m, w("mlp.down_proj"));
            x[t].iter_mut().zip(m).for_each(|(x, m)| *x += m);
        }
    }
    let head = if c.tie_word_embeddings { embedding } else { get("lm_head.weight") };
    let mut loss = 0.0;
    for (t, x) in x.iter().enumerate() {
        if targets[t] == IGNORE {
            continue;
        }
        let logits = linear(&norm(x, get("model.norm.weight")), head);
        let max = logits.iter().fold(f64::MIN, |m, x| m.max(*x));
        let sum: f64 = logits.iter().map(|x| (x - max).exp()).sum();
        loss += w[t] * (max + sum.ln() - logits[targets[t] as usize]);
    }
    loss
}

/// Three sequences of 1, 5 and 70 rows, some rows without a target.
fn batch() -> (Vec<u32>, Vec<u32>, Vec<Span>, Vec<f32>) {
    let lengths = [1, 5, 70];
    let n: usize = lengths.iter().sum();
    let tokens: Vec<u32> = (0..n as u32).map(|i| i * i * 7 % 29).collect();
    let targets = (0..n as u32).map(|i| if i % 5 == 3 { IGNORE } else { (i * 11 + 3) % 29 });
    let weights = (0..n).map(|i| 0.01 + 0.002 * (i % 7) as f32);
    let mut start = 0;
    let spans = lengths.map(|len| {
        start += len;
        Span { start: start - len, len }
    });
    (tokens, targets.collect(), spans.to_vec(), weights.collect())
}

fn run(m: &Transformer, cpu: Cpu, products: DType) -> (Vec<f32>, Vec<Vec<f32>>) {
    let (tokens, targets, spans, weights) = batch();
    let mut gradients = Gradients::zeros(&m.parameters);
    let mut ws = Workspace::new(Arc::new(cpu), products);
    let mut tape = ws.record(&m.parameters, &mut gradients);
    let loss = m.loss(&mut tape, &tokens, &targets, &spans, &weights);
    tape.backward();
    drop(tape);
    (loss.rows, gradients.iter().cloned().collect())
}

#[test]
fn loss_and_gradients_are_those_of_a_plain_f64_transformer() {
    for (tied, dtype, tolerance) in
        [(true, DType::F32, 1e-5), (false, DType::F32, 1e-5), (true, DType::Bf16, 2e-2)]
    {
        let m = model(tied);
        let (tokens, targets, spans, weights) = batch();
        let mut p: Vec<Vec<f64>> = m
            .parameters
            .iter()
            .map(|p| p.value.f32().iter().map(|x| f64::from(*x)).collect())
            .collect();
        let w: Vec<f64> = weights.iter().map(|x| f64::from(*x)).collect();
        let total = |p: &[Vec<f64>]| -> f64 {
            spans
                .iter()
                .map(|s| {
                    let r = s.start..s.start + s.len;
                    reference(m.config(), p, &tokens[r.clone()], &targets[r.clone()], &w[r])
                })
                .sum()
        };
        let (rows, gradients) = run(&m, Cpu::new(2), dtype);
        let got: f64 = rows.iter().zip(&w).map(|(n, w)| f64::from(*n) * w).sum();
        let want = total(&p);
        assert!((got - want).abs() <= tolerance * want, "{dtype:?}: loss {got}, not {want}");

        for (i, g) in gradients.iter().enumerate() {
            let name = m.parameters.iter().nth(i).map(|p| p.name.clone()).unwrap_or_default();
            let size = (g.iter().map(|g| f64::from(g * g)).sum::<f64>() / g.len() as f64).sqrt();
            // A few elements of each.
            for e in (0..g.len()).step_by((g.len() / 4).max(1)) {
                let (h, old) = (1e-5, p[i][e]);
                p[i][e] = old + h;
                let up = total(&p);
                p[i][e] = old - h;
                let down = total(&p);
                p[i][e] = old;
                let want = (up - down) / (2.0 * h);
                let off = (f64::from(g[e]) - want).abs();
                let limit = if dtype == DType::F32 { 2e-4 } else { 8e-2 };
                assert!(
                    off <= limit * (want.abs() + size),
                    "{dtype:?} {name}[{e}]: {}, not {want} (rms {size})",
                    g[e]
                );
            }
        }
    }
}

#[test]
fn the_same_bits_on_every_instruction_set_and_thread_count() {
    let m = model(true);
    let first = run(&m, Cpu::with(1, Isa::Portable), DType::F32);
    assert!(first.0.iter().all(|x| x.is_finite()));
    for isa in Isa::ALL.into_iter().filter(|i| i.available()) {
        for threads in [1, 2, 3] {
            let other = run(&m, Cpu::with(threads, isa), DType::F32);
            assert_eq!(first, other, "{} with {threads} threads", isa.name());
            let half = |threads| run(&m, Cpu::with(threads, isa), DType::Bf16);
            assert_eq!(half(1), half(threads), "bf16 on {}", isa.name());
        }
    }
}

#[test]
fn neighbours_change_nothing() {
    let m = model(true);
    let (tokens, targets, spans, _) = batch();
    let mut ws = Workspace::new(Arc::new(Cpu::new(2)), DType::F32);
    let together = m.loss_rows(&mut ws, &tokens, &targets, &spans);
    for s in spans {
        let r = s.start..s.start + s.len;
        let span = [Span { start: 0, len: s.len }];
        let alone = m.loss_rows(&mut ws, &tokens[r.clone()], &targets[r.clone()], &span);
        assert_eq!(alone, together[r]);
    }
}

#[test]
fn a_steady_step_takes_no_memory() {
    let m = model(true);
    let (tokens, targets, spans, weights) = batch();
    let mut gradients = Gradients::zeros(&m.parameters);
    let mut ws = Workspace::new(Arc::new(Cpu::new(2)), DType::F32);
    let mut sizes = Vec::new();
    for _ in 0..4 {
        let mut tape = ws.record(&m.parameters, &mut gradients);
        m.loss(&mut tape, &tokens, &targets, &spans, &weights);
        tape.backward();
        drop(tape);
        ws.weights_changed();
        sizes.push(ws.bytes());
    }
    assert!(sizes[0] > 0 && sizes[1..].iter().all(|s| *s == sizes[1]), "{sizes:?}");
}
