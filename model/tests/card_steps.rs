//! Steps of generation on a card, which is emulated here, become graphs: they are launched, and give the bits of passes that
//! are not recorded.

mod common;

use std::iter::repeat_n;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;

use common::{card, config, model, narrow, random};
use compute::blocks::BlockType;
use compute::cpu::update::AdamW;
use compute::kv::{KvPages, KvSequence, KvType};
use compute::parameters::ParamId;
use compute::tape::{CardMoments, Head, NewRows, Rule, Workspace, caught};
use compute::tensor::{DType, Tensor};
use compute::{Cpu, Span};
use model::adapter::{self, Shape};
use model::config::Config;
use model::transformer::{Step, Transformer};

/// Of a sequence, by number: new tokens, and rows of logits.
type Part = (usize, usize, usize);

/// One new token.
const fn one(sequence: usize) -> Part {
    (sequence, 1, 1)
}

/// Steps, each so many times.
fn script(steps: &[(usize, &[Part])]) -> Vec<Vec<Part>> {
    steps.iter().flat_map(|(times, parts)| repeat_n(parts.to_vec(), *times)).collect()
}

/// Sequences of up to 256 tokens, which are functions of sequence and position.
struct Talk {
    pages: KvPages,
    sequences: Vec<KvSequence>,
}

impl Talk {
    fn new(kind: KvType, sequences: usize) -> Talk {
        let mut pages = KvPages::new(kind, 2, 2, 16, 4 * sequences).expect("pages");
        let sequences = (0..sequences)
            .map(|_| KvSequence {
                pages: (0..4).filter_map(|_| pages.allocate()).collect(),
                len: 0,
            })
            .collect();
        Talk { pages, sequences }
    }

    /// Logits of each part of a step; parts are by number.
    fn step(&mut self, m: &Transformer, ws: &mut Workspace, parts: &[Part]) -> Vec<Vec<f32>> {
        let tokens: Vec<Vec<u32>> = parts
            .iter()
            .map(|(i, n, _)| (self.sequences[*i].len..).take(*n).map(|p| token(*i, p)).collect())
            .collect();
        let chosen = self.sequences.iter_mut().enumerate();
        let chosen = chosen.filter(|(i, _)| parts.iter().any(|part| part.0 == *i));
        let mut steps: Vec<Step<'_>> = (chosen.zip(&tokens).zip(parts))
            .map(|(((_, kv), tokens), (_, _, logits))| Step { tokens, logits: *logits, kv })
            .collect();
        let logits = m.forward_cached(ws, &mut self.pages, &mut steps);
        let mut rest = &logits[..];
        let mut next = |(_, _, wanted): &Part| {
            let own;
            (own, rest) = rest.split_at(wanted * m.config().vocab_size);
            own.to_vec()
        };
        let each = parts.iter().map(&mut next).collect();
        assert!(rest.is_empty());
        each
    }
}

fn token(sequence: usize, position: usize) -> u32 {
    ((position * position * 5 + 7 * sequence) % 43) as u32
}

fn plain(on: Arc<Cpu>) -> Workspace {
    Workspace::new(on, DType::F32)
}

/// Logits of each step with one workspace, and how many graphs it launched.
fn as_graphs(
    m: &Transformer,
    mut ws: Workspace,
    kind: KvType,
    script: &[Vec<Part>],
) -> (Vec<Vec<Vec<f32>>>, usize) {
    let mut talk = Talk::new(kind, sequences(script));
    let all = script.iter().map(|parts| talk.step(m, &mut ws, parts)).collect();
    (all, ws.graph_launches())
}

/// The same with a workspace for each step, which has seen none before.
fn as_passes(
    m: &Transformer,
    on: &Arc<Cpu>,
    new: impl Fn(Arc<Cpu>) -> Workspace,
    kind: KvType,
    script: &[Vec<Part>],
) -> Vec<Vec<Vec<f32>>> {
    let mut talk = Talk::new(kind, sequences(script));
    let mut step = |parts: &Vec<Part>| {
        let mut ws = new(on.clone());
        let logits = talk.step(m, &mut ws, parts);
        assert_eq!(ws.graph_launches(), 0);
        logits
    };
    script.iter().map(&mut step).collect()
}

fn sequences(script: &[Vec<Part>]) -> usize {
    script.iter().flat_map(|parts| parts.iter()).map(|part| part.0 + 1).max().unwrap_or(0)
}

#[test]
fn an_answer_has_the_bits_of_passes_across_pages() {
    // Tokens 62 to 70, of one page and of two; then 126 to 132, of two and of three.
    let script = script(&[(1, &[(0, 62, 1)]), (9, &[one(0)]), (1, &[(0, 55, 1)]), (7, &[one(0)])]);
    let bf16 = |on| Workspace::new(on, DType::Bf16);
    let exact = |on| {
        let mut ws = Workspace::new(on, DType::F32);
        ws.set_exact(true);
        ws
    };
    // What Gemma and GPT-2 have beside others.
    let gemma = Config {
        scaled_embedding: true,
        norms_after: true,
        window: Some(40),
        local: vec![true, false],
        local_rope_theta: Some(1e3),
        attention_cap: Some(20.0),
        logit_cap: Some(5.0),
        ..config()
    };
    let gpt2 = Config {
        qk_norm: false,
        layer_norms: true,
        qkv_bias: true,
        output_bias: true,
        mlp_bias: true,
        learned_positions: true,
        gated: false,
        ..config()
    };
    type New<'a> = &'a dyn Fn(Arc<Cpu>) -> Workspace;
    let cases: [(Transformer, New<'_>, KvType); 7] = [
        (model(true), &plain, KvType::F16),
        (model(false), &bf16, KvType::Q8),
        (narrow(model(true), BlockType::Q8_0), &plain, KvType::F16),
        (narrow(model(false), BlockType::Q4_0), &plain, KvType::Q8),
        (narrow(model(true), BlockType::Q4_0), &exact, KvType::F16),
        (random(gemma), &plain, KvType::F16),
        (random(gpt2), &plain, KvType::Bf16),
    ];
    for (i, (m, new, kind)) in cases.into_iter().enumerate() {
        let on = card();
        let (got, launches) = as_graphs(&m, new(on.clone()), kind, &script);
        assert!(got == as_passes(&m, &on, new, kind, &script), "case {i}");
        // All but the prompts and the first step with one, two and four pages.
        assert_eq!(launches, 16 - 3, "case {i}");
    }
}

#[test]
fn sequences_that_come_and_go_have_the_bits_that_they_have_alone() {
    let script = script(&[
        (1, &[(0, 20, 1)]),
        (1, &[one(0), (1, 30, 0)]),
        (3, &[one(0), one(1)]),
        (1, &[one(0), one(1), (2, 17, 1)]),
        // Of guesses more than one row is computed, and wanted.
        (3, &[one(0), (1, 2, 2), one(2)]),
        (3, &[one(0), one(1), one(2)]),
        (1, &[(3, 5, 1)]),
        (2, &[(0, 9, 9), one(2), one(3)]),
        (2, &[one(2), one(3)]),
        (3, &[one(3)]),
    ]);
    for m in [model(true), narrow(model(true), BlockType::Q8_0)] {
        let on = card();
        let (got, launches) = as_graphs(&m, plain(on.clone()), KvType::F16, &script);
        // Of two sequences 2 and 2, of three with guesses 2 and 1 and without 2, of one 2.
        assert_eq!(launches, 11);
        for sequence in 0..4 {
            let of = |part: &&Part| part.0 == sequence;
            let alone: Vec<Vec<Part>> = (script.iter())
                .map(|parts| parts.iter().filter(of).copied().collect())
                .filter(|parts: &Vec<Part>| !parts.is_empty())
                .collect();
            let want = as_passes(&m, &on, plain, KvType::F16, &alone).into_iter().flatten();
            let own = script.iter().zip(&got).flat_map(|(parts, logits)| {
                parts.iter().zip(logits).filter(|(part, _)| of(part)).map(|(_, logits)| logits)
            });
            assert!(own.cloned().collect::<Vec<_>>() == want.collect::<Vec<_>>(), "{sequence}");
        }
    }
}

#[test]
fn graphs_that_were_not_used_for_long_are_forgotten() {
    let m = narrow(model(true), BlockType::Q8_0);
    // Ten kinds: one, two, four and eight rows of which as many or less are wanted.
    let sizes = [1, 2, 4, 8];
    let kinds = sizes.iter().flat_map(|n| sizes.map(|wanted| (0, *n, wanted)));
    let kinds: Vec<[Part; 1]> = kinds.filter(|part| part.2 <= part.1).map(|part| [part]).collect();
    assert_eq!(kinds.len(), 10);
    let on = card();
    let gpu = on.card.clone().expect("a card");
    let mut ws = plain(on.clone());
    let mut talk = Talk::new(KvType::F16, 1);
    let mut go_through = |ws: &mut Workspace, kinds: &[[Part; 1]]| -> Vec<Vec<Vec<f32>>> {
        let mut step = |part: &[Part; 1]| {
            talk.sequences[0].len = 0;
            talk.step(&m, ws, part)
        };
        kinds.iter().map(&mut step).collect()
    };
    let want = go_through(&mut ws, &kinds);
    let free = gpu.memory().expect("a card").free;
    for _ in 0..2 {
        assert!(go_through(&mut ws, &kinds) == want);
    }
    assert_eq!(ws.graph_launches(), 0, "each is forgotten before it comes again");
    assert_eq!(gpu.memory().expect("a card").free, free);
    for _ in 0..3 {
        assert!(go_through(&mut ws, &kinds[..8]) == want[..8]);
    }
    assert_eq!(ws.graph_launches(), 8 + 8);
    assert!(gpu.memory().expect("a card").free < free);
    for _ in 0..2 {
        assert!(go_through(&mut ws, &kinds) == want);
    }
    assert_eq!(gpu.memory().expect("a card").free, free, "graphs gave theirs back");
    drop((ws, talk, m));
    drop(on);
    let memory = gpu.memory().expect("a card");
    assert_eq!(memory.free, memory.total, "all of it came back");
}

#[test]
fn weights_that_changed_end_graphs() {
    let mut m = model(true);
    let on = card();
    let (mut ws, mut talk) = (plain(on.clone()), Talk::new(KvType::F16, 1));
    let mut again = |m: &Transformer, ws: &mut Workspace| {
        talk.sequences[0].len = 0;
        let logits = talk.step(m, ws, &[(0, 3, 2)]);
        (logits, ws.graph_launches())
    };
    let (before, _) = again(&m, &mut ws);
    assert_eq!(again(&m, &mut ws), (before.clone(), 1));
    for p in m.parameters.iter_mut() {
        p.value.f32_mut().iter_mut().for_each(|x| *x *= 0.5);
    }
    assert_eq!(again(&m, &mut ws), (before.clone(), 2), "not told yet");
    ws.weights_changed();
    let (want, _) = again(&m, &mut plain(on.clone()));
    assert!(want != before);
    for launches in [2, 3, 4] {
        assert_eq!(again(&m, &mut ws), (want.clone(), launches));
    }
    // An adapter comes: other parameters.
    let shape = Shape { rank: 2, alpha: 4.0, modules: &["q_proj".into(), "down_proj".into()] };
    adapter::begin(&mut m, shape, 1).expect("such modules");
    for p in m.parameters.iter_mut().filter(|p| p.name.ends_with("lora_B.weight")) {
        p.value.f32_mut().fill(0.1);
    }
    let (adapted, _) = again(&m, &mut plain(on.clone()));
    assert!(adapted != want);
    for launches in [4, 5] {
        assert_eq!(again(&m, &mut ws), (adapted.clone(), launches));
    }
}

#[test]
fn exact_steps_are_another_kind() {
    let m = narrow(model(true), BlockType::Q4_0);
    let on = card();
    let (mut ws, mut talk) = (plain(on.clone()), Talk::new(KvType::F16, 1));
    let mut again = |ws: &mut Workspace, exact: bool| {
        ws.set_exact(exact);
        talk.sequences[0].len = 0;
        talk.step(&m, ws, &[one(0)])
    };
    let want = [false, true].map(|exact| again(&mut plain(on.clone()), exact));
    assert!(want[0] != want[1]);
    for _ in 0..3 {
        assert!([false, true].map(|exact| again(&mut ws, exact)) == want);
    }
    assert_eq!(ws.graph_launches(), 4);
}

#[test]
fn a_step_of_training_ends_graphs() {
    let mut m = model(true);
    let on = card();
    let (mut ws, mut talk) = (plain(on.clone()), Talk::new(KvType::F16, 1));
    let mut again = |m: &Transformer, ws: &mut Workspace| {
        talk.sequences[0].len = 0;
        let logits = talk.step(m, ws, &[one(0)]);
        (logits, ws.graph_launches())
    };
    let (before, _) = again(&m, &mut ws);
    assert_eq!(again(&m, &mut ws), (before.clone(), 1));
    let mut gradients = ws.gradients(&m.parameters);
    let mut tape = ws.record(&m.parameters, &mut gradients);
    let spans = [Span { start: 0, len: 4 }];
    m.loss(&mut tape, &[1, 2, 3, 4], &[2, 3, 4, 5], &spans, &[1.0; 4]);
    tape.backward();
    drop(tape);
    let zeros: Vec<Vec<f32>> = m.parameters.iter().map(|p| vec![0.0; p.value.len()]).collect();
    let moments: Vec<Vec<&[f32]>> = zeros.iter().map(|z| vec![&z[..]; 2]).collect();
    let mut moments = CardMoments::upload(&ws, &m.parameters, &moments).expect("a card");
    let adamw = AdamW { lr: 0.1, beta1: 0.9, beta2: 0.9, eps: 1e-8, weight_decay: 0.0, step: 1 };
    let rules = vec![Some(Rule::AdamW(adamw)); m.parameters.iter().len()];
    ws.step_on_card(&mut m.parameters, &mut gradients, &mut moments, 1.0, &rules);
    let (after, launches) = again(&m, &mut ws);
    assert_eq!(launches, 1);
    assert_eq!(again(&m, &mut ws), (after.clone(), 2));
    ws.fetch(&mut m.parameters);
    assert!(after != before && after == again(&m, &mut plain(on.clone())).0);
}

#[test]
fn caches_have_graphs_of_their_own_and_take_them_along() {
    let m = narrow(model(true), BlockType::Q8_0);
    let on = card();
    let gpu = on.card.clone().expect("a card");
    let free = || gpu.memory().expect("a card").free;
    let mut ws = plain(on.clone());
    let (mut first, mut second) = (Talk::new(KvType::F16, 2), Talk::new(KvType::F16, 2));
    // The second one is of another sequence, so that there is something to mix up.
    let steps = script(&[(1, &[(0, 3, 1)]), (2, &[one(0)])]);
    let other = script(&[(1, &[(1, 3, 1)]), (2, &[one(1)])]);
    let mut got = [Vec::new(), Vec::new()];
    for (one, two) in steps.iter().zip(&other) {
        got[0].push(first.step(&m, &mut ws, one));
        got[1].push(second.step(&m, &mut ws, two));
    }
    assert!(got[0] == as_passes(&m, &card(), plain, KvType::F16, &steps));
    assert!(got[1] == as_passes(&m, &card(), plain, KvType::F16, &other));
    assert_eq!(ws.graph_launches(), 2);
    let (before, cache) = (free(), 8 * 2 * 2 * 2 * 64 * 16 * 2);
    drop(second);
    first.step(&m, &mut ws, &[one(0)]);
    assert_eq!(ws.graph_launches(), 3);
    assert!(free() >= before + cache, "{} of {cache} bytes", free() - before);
}

#[test]
fn a_recording_that_fails_leaves_the_workspace_as_it_was() {
    let m = model(true);
    let mut ws = plain(card());
    let mut pages = KvPages::new(KvType::F16, 2, 2, 16, 1).expect("pages");
    let head = Head { weight: ParamId(0), cap: None };
    let (tokens, positions) = (Rc::from([5, 6]), Rc::from([0, 1]));
    let new = NewRows { tokens: &tokens, positions: &positions, spans: &[], wanted: &[1] };
    let mut step = |upload: bool, panic: bool| {
        ws.compute(&m.parameters).step(&new, &mut pages, head, |tape, _| {
            let x = tape.embedding(ParamId(0), &tokens);
            assert!(!panic, "in the middle");
            if upload {
                tape.input(&Tensor::zeros(1, 1));
            }
            x
        })
    };
    let want = step(false, false);
    let refused = caught(|| step(true, false)).err().map(|error| error.to_string());
    assert_eq!(refused.as_deref(), Some("a copy to the card can't be recorded into a graph"));
    assert_eq!(step(false, false), want);
    assert!(catch_unwind(AssertUnwindSafe(|| step(false, true))).is_err());
    for _ in 0..3 {
        assert_eq!(step(false, false), want);
    }
    assert_eq!(ws.graph_launches(), 2);
}

#[test]
fn workspaces_of_several_threads_record_side_by_side() {
    let m = narrow(model(true), BlockType::Q4_0);
    let on = card();
    let script = script(&[(1, &[(0, 62, 1)]), (6, &[one(0)])]);
    let (want, launches) = as_graphs(&m, plain(card()), KvType::F16, &script);
    std::thread::scope(|scope| {
        let work = || as_graphs(&m, plain(on.clone()), KvType::F16, &script);
        let others: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
        for other in others {
            assert!(other.join().expect("no panic") == (want.clone(), launches));
        }
    });
}
