//! Passes on a card, which is emulated here: what they compute is what the CPU computes, as far as bf16 goes.

mod common;

use std::sync::Arc;

use common::{card, model, narrow};
use compute::blocks::BlockType;
use compute::kv::{KvPages, KvSequence, KvType};
use compute::parameters::Gradients;
use compute::tape::Workspace;
use compute::tensor::DType;
use compute::{Cpu, IGNORE, Span};
use model::directory::load_keeping;
use model::transformer::{Step, Transformer};

fn cpu() -> Arc<Cpu> {
    Arc::new(Cpu::new(2))
}

/// Three sequences of 1, 5 and 40 rows, some rows without a target.
fn batch() -> (Vec<u32>, Vec<u32>, Vec<Span>, Vec<f32>) {
    let lengths = [1, 5, 40];
    let n: usize = lengths.iter().sum();
    let tokens: Vec<u32> = (0..n as u32).map(|i| i * i * 7 % 43).collect();
    let targets = (0..n as u32).map(|i| if i % 5 == 3 { IGNORE } else { (i * 11 + 3) % 43 });
    let weights = (0..n).map(|i| 0.01 + 0.002 * (i % 7) as f32);
    let mut start = 0;
    let spans = lengths.map(|len| {
        start += len;
        Span { start: start - len, len }
    });
    (tokens, targets.collect(), spans.to_vec(), weights.collect())
}

type Learned = (Vec<f32>, Vec<Vec<f32>>);

fn learn(m: &Transformer, on: Arc<Cpu>, products: DType, recompute: bool) -> Learned {
    let (tokens, targets, spans, weights) = batch();
    let mut gradients = Gradients::zeros(&m.parameters);
    let mut ws = Workspace::new(on, products);
    ws.set_recompute(recompute);
    let mut tape = ws.record(&m.parameters, &mut gradients);
    let loss = m.loss(&mut tape, &tokens, &targets, &spans, &weights);
    tape.backward();
    drop(tape);
    (loss.rows, gradients.iter().cloned().collect())
}

/// How far `got` is from `want`, of its length.
fn away(got: &[f32], want: &[f32]) -> f64 {
    let length = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x * x)).sum::<f64>().sqrt();
    let off = length(&mut got.iter().zip(want).map(|(a, b)| a - b));
    off / length(&mut want.iter().copied()).max(1e-12)
}

#[test]
fn losses_and_gradients_are_the_cpus() {
    // Attention is in bf16 on a card, whatever products are.
    for (tied, products, limit) in
        [(true, DType::F32, 2e-2), (false, DType::F32, 2e-2), (true, DType::Bf16, 4e-2)]
    {
        let m = model(tied);
        let (want_rows, want) = learn(&m, cpu(), DType::F32, false);
        let (rows, got) = learn(&m, card(), products, false);
        assert!(away(&rows, &want_rows) < 1e-2, "losses: {}", away(&rows, &want_rows));
        for ((got, want), p) in got.iter().zip(&want).zip(m.parameters.iter()) {
            let away = away(got, want);
            assert!(away < limit, "{products:?}: gradient of {} is {away} away", p.name);
        }
    }
}

#[test]
fn a_pass_has_the_same_bits_again_and_when_layers_are_made_twice() {
    let m = model(true);
    let first = learn(&m, card(), DType::Bf16, false);
    assert!(first == learn(&m, card(), DType::Bf16, false), "the same pass");
    assert!(first == learn(&m, card(), DType::Bf16, true), "layers made again");
}

/// Logits of a prompt's last token and of answers to it, token by token; beside it another sequence, if asked for.
fn answer(m: &Transformer, on: Arc<Cpu>, kind: KvType, neighbour: bool) -> Vec<Vec<f32>> {
    let mut ws = Workspace::new(on, DType::F32);
    let mut pages = KvPages::new(kind, 2, 2, 16, 8).expect("pages");
    let sequence = |pages: &mut KvPages| {
        let taken = (0..2).filter_map(|_| pages.allocate()).collect();
        KvSequence { pages: taken, len: 0 }
    };
    let (mut kv, mut other) = (sequence(&mut pages), sequence(&mut pages));
    let vocab = m.config().vocab_size;
    let prompt: Vec<u32> = (0..70).map(|i| i * i * 5 % 43).collect();
    let mut inputs = vec![prompt];
    inputs.extend([[3], [17], [4]].map(Vec::from));
    let mut all = Vec::new();
    for (i, tokens) in inputs.iter().enumerate() {
        let beside = [i as u32 + 1; 3];
        let mut steps = vec![Step { tokens, logits: 1, kv: &mut kv }];
        if neighbour {
            steps.push(Step { tokens: &beside, logits: 2, kv: &mut other });
        }
        let logits = m.forward_cached(&mut ws, &mut pages, &mut steps);
        all.push(logits[..vocab].to_vec());
    }
    all
}

#[test]
fn answers_are_the_cpus_whatever_weights_and_pages_are() {
    let plain = [(model(true), 2e-2), (model(false), 2e-2)];
    let kinds =
        [BlockType::Q4_0, BlockType::Q5_1, BlockType::Q8_0, BlockType::F16, BlockType::BF16];
    let narrowed = kinds.map(|kind| (narrow(model(true), kind), 3e-2));
    for (m, limit) in plain.into_iter().chain(narrowed) {
        for kind in [KvType::F16, KvType::Bf16] {
            let want = answer(&m, cpu(), kind, false);
            let got = answer(&m, card(), kind, false);
            for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                assert!(away(got, want) < limit, "answer {i}: {} away", away(got, want));
            }
        }
    }
}

#[test]
fn answers_do_not_depend_on_neighbours() {
    let m = narrow(model(true), BlockType::Q8_0);
    let (alone, beside) =
        (answer(&m, card(), KvType::F16, false), answer(&m, card(), KvType::F16, true));
    // A prompt of many rows is multiplied by cuBLASLt, which may sum otherwise for another number of rows.
    assert!(alone[1..] == beside[1..], "tokens alone and in a batch");
}

#[test]
fn weights_that_changed_are_brought_again() {
    let mut m = model(true);
    let (tokens, targets, spans, _) = batch();
    let mut ws = Workspace::new(card(), DType::Bf16);
    let before = m.loss_rows(&mut ws, &tokens, &targets, &spans);
    for p in m.parameters.iter_mut() {
        p.value.f32_mut().iter_mut().for_each(|x| *x *= 0.5);
    }
    assert_eq!(m.loss_rows(&mut ws, &tokens, &targets, &spans), before, "not told yet");
    ws.weights_changed();
    let after = m.loss_rows(&mut ws, &tokens, &targets, &spans);
    let fresh = m.loss_rows(&mut Workspace::new(card(), DType::Bf16), &tokens, &targets, &spans);
    assert!(after == fresh && after != before);
}

/// Of real models: the tokens, and nearly the probabilities.
#[test]
fn real_models_answer_as_on_the_cpu() {
    let Some(folder) = std::env::var_os("HOMEGROWN_MODELS").map(std::path::PathBuf::from) else {
        println!("SKIPPED: open models; HOMEGROWN_MODELS names no folder (see .ci/models)");
        return;
    };
    for name in ["smollm2", "gemma3"] {
        let path = folder.join(format!("{name}.gguf"));
        let loaded = load_keeping(&path, Some(&Cpu::new(2))).expect("a model");
        let text =
            loaded.tokenizer.encode("The capital of France is Paris. The capital of Italy is");
        let prompt: Vec<u32> = loaded.bos.into_iter().chain(text).collect();
        let (m, c) = (&loaded.transformer, loaded.transformer.config());
        let run = |on: Arc<Cpu>| {
            let mut ws = Workspace::new(on, DType::F32);
            let heads = c.num_key_value_heads;
            let mut pages = KvPages::new(KvType::F16, c.num_hidden_layers, heads, c.head_dim, 1);
            let pages = pages.as_mut().expect("pages");
            let mut kv = KvSequence { pages: pages.allocate().into_iter().collect(), len: 0 };
            let mut tokens = prompt.clone();
            [0, 1].map(|_| {
                let step = Step { tokens: &tokens, logits: 1, kv: &mut kv };
                let logits = m.forward_cached(&mut ws, pages, &mut [step]);
                let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]));
                tokens = best.into_iter().map(|id| id as u32).collect();
                (loaded.tokenizer.decode(&tokens), logits)
            })
        };
        let (want, got) = (run(cpu()), run(card()));
        for ((token, p), (same, q)) in want.iter().zip(&got) {
            assert_eq!(token, same, "{name}");
            let kl = divergence(p, q);
            println!("{name}: {token:?}, KL {kl:.1e}");
            assert!(kl < 5e-3, "{name}: KL {kl:.1e}");
        }
        assert_eq!(got[0].0, " Rome", "{name}");
    }
}

/// Nats that `q` is away from `p`, both logits.
fn divergence(p: &[f32], q: &[f32]) -> f64 {
    let total = |x: &[f32]| x.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln();
    let (zp, zq) = (total(p), total(q));
    let one = |(p, q): (&f32, &f32)| {
        let (p, q) = (f64::from(*p) - zp, f64::from(*q) - zq);
        p.exp() * (p - q)
    };
    p.iter().zip(q).map(one).sum()
}
