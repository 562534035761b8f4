//! Real open models give the answers that they give in transformers (`tests/open_models.py`).
//!
//! `HOMEGROWN_MODELS` names a folder with `smollm2.gguf` and `gemma3.gguf`, as `.ci/models` makes it.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use compute::tape::Workspace;
use compute::tensor::DType;
use compute::{Cpu, IGNORE, Span};
use model::message::Message;
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

#[test]
fn answers_are_those_of_transformers() {
    let Some(folder) = std::env::var_os("HOMEGROWN_MODELS").map(PathBuf::from) else {
        println!("SKIPPED: open models; HOMEGROWN_MODELS names no folder (see .ci/models)");
        return;
    };
    let fixture: Fixture = serde_json::from_str(include_str!("fixtures/open_models.json")).unwrap();
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
