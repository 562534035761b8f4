//! Real open models give the answers that they give in transformers (`tests/open_models.py`).
//!
//! `HOMEGROWN_MODELS` names a folder with `smollm2.gguf` and `gemma3.gguf`, as `.ci/models` makes it.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use compute::kv::{KvSequence, KvType, PAGE};
use compute::tape::Workspace;
use compute::tensor::DType;
use compute::{Cpu, IGNORE, Span};
use model::directory::load_keeping;
use model::message::Message;
use model::transformer::{Step, Transformer};
use serde::Deserialize;

#[derive(Deserialize)]
struct Fixture {
    text: String,
    models: BTreeMap<String, Case>,
}

#[derive(Deserialize)]
struct Case {
    ids: Vec<u32>,
    /// Of each token after the first of `[bos] + ids`.
    logprobs: Vec<f32>,
    talks: Vec<Talk>,
}

#[derive(Deserialize)]
struct Talk {
    messages: Vec<Message>,
    prompt: bool,
    text: String,
}

fn models() -> Option<(PathBuf, Fixture)> {
    let Some(folder) = std::env::var_os("HOMEGROWN_MODELS").map(PathBuf::from) else {
        println!("SKIPPED: open models; HOMEGROWN_MODELS names no folder (see .ci/models)");
        return None;
    };
    Some((folder, serde_json::from_str(include_str!("fixtures/open_models.json")).unwrap()))
}

#[test]
fn answers_are_those_of_transformers() {
    let Some((folder, fixture)) = models() else { return };
    for (name, case) in fixture.models {
        let loaded = model::load(&folder.join(format!("{name}.gguf"))).unwrap();
        assert_eq!(loaded.tokenizer.encode(&fixture.text), case.ids, "{name}");
        assert_eq!(loaded.tokenizer.decode(&case.ids), fixture.text, "{name}");

        let tokens: Vec<u32> = loaded.bos.into_iter().chain(case.ids).collect();
        let targets: Vec<u32> = tokens[1..].iter().copied().chain([IGNORE]).collect();
        let mut ws = Workspace::new(Arc::new(Cpu::new(2)), DType::F32);
        let span = [Span { start: 0, len: tokens.len() }];
        let nats = loaded.transformer.loss_rows(&mut ws, &tokens, &targets, &span);
        let off = nats.iter().zip(&case.logprobs).map(|(n, l)| (n + l).abs()).fold(0.0, f32::max);
        println!("{name}: log-probabilities of {} tokens within {off:.1e}", case.logprobs.len());
        assert!(off < 2e-4, "{name}: log-probabilities are {off:.1e} away");

        for talk in case.talks {
            let template = loaded.template.as_ref().unwrap();
            let rendered = template.render(&talk.messages, None, talk.prompt).unwrap();
            assert_eq!(rendered.text(), talk.text, "{name}");
        }
    }
}

/// Logits of all tokens, `chunk` at a time, `[tokens, vocab]`.
fn logits(model: &Transformer, cpu: Cpu, tokens: &[u32], chunk: usize, exact: bool) -> Vec<f32> {
    let count = tokens.len().div_ceil(PAGE);
    let mut pages = model.pages(KvType::F32, count).unwrap();
    let mut kv = KvSequence::default();
    kv.pages.extend((0..count).filter_map(|_| pages.allocate()));
    let mut ws = Workspace::new(Arc::new(cpu), DType::F32);
    ws.set_exact(exact);
    let pieces = tokens.chunks(chunk).map(|tokens| {
        let mut steps = [Step { tokens, logits: tokens.len(), kv: &mut kv }];
        model.forward_cached(&mut ws, &mut pages, &mut steps)
    });
    pieces.collect::<Vec<_>>().concat()
}

/// Nats that `q` is away from `p`, both logits.
fn divergence(p: &[f32], q: &[f32]) -> f64 {
    let normal = |x: &[f32]| {
        let most = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = x.iter().map(|x| f64::from(x - most).exp()).sum();
        f64::from(most) + sum.ln()
    };
    let (zp, zq) = (normal(p), normal(q));
    let one = |(p, q): (&f32, &f32)| {
        let (p, q) = (f64::from(*p) - zp, f64::from(*q) - zq);
        p.exp() * (p - q)
    };
    p.iter().zip(q).map(one).sum()
}

#[test]
fn quantised_weights_give_nearly_the_same_and_always_the_same_bits() {
    let Some((folder, fixture)) = models() else { return };
    for (name, case) in fixture.models {
        let path = folder.join(format!("{name}.gguf"));
        let wide = model::load(&path).unwrap();
        let kept = load_keeping(&path, Some(&Cpu::new(2))).unwrap().transformer;
        let tokens: Vec<u32> = wide.bos.into_iter().chain(case.ids).take(100).collect();
        let vocab = kept.config().vocab_size;
        let exact = logits(&wide.transformer, Cpu::new(2), &tokens, 64, false);
        assert!(
            logits(&kept, Cpu::new(2), &tokens, 64, true) == exact,
            "{name}: f32 has one result"
        );
        let at_once = logits(&kept, Cpu::new(2), &tokens, tokens.len(), false);
        let one_by_one = logits(&kept, Cpu::new(1), &tokens, 1, false);
        assert!(at_once == one_by_one, "{name}: a prompt gives other bits than its tokens");
        let away: f64 =
            exact.chunks(vocab).zip(at_once.chunks(vocab)).map(|(p, q)| divergence(p, q)).sum();
        let away = away / tokens.len() as f64;
        println!("{name}: quantised weights, KL {away:.1e} a token");
        assert!(away < 5e-3, "{name}: KL {away:.1e}");
    }
}
