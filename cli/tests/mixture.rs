//! Folders of documents in a mixture by weight.

#![allow(clippy::unwrap_used)]

use std::process::{Command, Output};

use serde_json::Value;

fn homegrown(folder: &std::path::Path, args: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_homegrown"));
    command.args(args.split_whitespace()).current_dir(folder).output().unwrap()
}

#[test]
fn folders_are_drawn_from_by_their_weights() {
    let dir = tempfile::tempdir().unwrap();
    for (folder, words) in [("news", "Something happened today. "), ("a/news", "It was so. ")] {
        std::fs::create_dir_all(dir.path().join(folder)).unwrap();
        for i in 0..8 {
            let text = format!("Text {i} of {folder}. {}", words.repeat(30 + i));
            std::fs::write(dir.path().join(folder).join(format!("{i}.txt")), text).unwrap();
        }
    }
    let small = "--set model.dim=16 --set model.heads=2 --set model.kv_heads=1 --set model.head_dim=8 \
                 --set model.ffn=16 --set model.layers=1 --set model.context=64 --set pretrain.dtype=f32 \
                 --set pretrain.micro_tokens=256 --set pretrain.batch_tokens=256 \
                 --set pretrain.tokens=40000 --set tokenizer.vocab_size=300 --until pretrain";
    let grow = format!("grow --docs news --docs a --out run {small}");
    let output = homegrown(dir.path(), &format!("{grow} --set mixture.documents=[3,1]"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("times through documents-0: more text would teach more"), "{said}");
    let read = |file: &str| -> Value {
        serde_json::from_slice(&std::fs::read(dir.path().join(file)).unwrap()).unwrap()
    };
    let tokens = read("run/stages/tokenize.json");
    let trained = read("run/stages/pretrain.json");
    let drawn = |i: usize| {
        let of = &tokens[format!("documents-{i}")];
        let rows = of["tokens"].as_f64().unwrap() - of["documents"].as_f64().unwrap();
        trained["data"][i]["passes"].as_f64().unwrap() * rows
    };
    let share = drawn(0) / (drawn(0) + drawn(1));
    assert!((share - 0.75).abs() < 0.03, "{share} of the tokens are from the first folder");

    let output = homegrown(dir.path(), &format!("{grow} --set mixture.documents=[3,1,2]"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("3 weights for 2 paths"), "{said}");
}
