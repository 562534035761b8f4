//! Models from elsewhere, gone on from: adapters over a quantised base, and all weights.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

fn homegrown(folder: &Path, args: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_homegrown"));
    command.args(args.split_whitespace()).current_dir(folder).output().unwrap()
}

/// What a command that works prints.
fn works(folder: &Path, args: &str) -> (Value, String) {
    let output = homegrown(folder, &format!("{args} --json"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{args}: {said}");
    (serde_json::from_slice(&output.stdout).unwrap(), said)
}

/// Texts, conversations, and a small model that knows neither: `news/`, `chats.jsonl`, `base.gguf`.
fn begin(folder: &Path) {
    for part in ["old", "news"] {
        std::fs::create_dir_all(folder.join(part)).unwrap();
        for i in 0..20 {
            let text =
                format!("Text {i} of {part}. {}", "It was so, and so it will be. ".repeat(5 + i));
            let text = if part == "news" { text.to_uppercase() } else { text };
            std::fs::write(folder.join(part).join(format!("{i}.txt")), text).unwrap();
        }
    }
    let talk = |i: usize, answer: &str| {
        let question = format!("What is {i}?");
        let messages = json!([{"role": "user", "content": question}, {"role": "assistant", "content": answer}]);
        format!("{}\n", json!({ "messages": messages }))
    };
    let old: String = (0..40).map(|i| talk(i, "A number.")).collect();
    std::fs::write(folder.join("old.jsonl"), old).unwrap();
    let new: String =
        (0..200).map(|i| talk(i, "That is for you to find out, my friend.")).collect();
    std::fs::write(folder.join("chats.jsonl"), new).unwrap();
    let small = "--set model.dim=32 --set model.heads=2 --set model.kv_heads=1 --set model.head_dim=16 \
                 --set model.ffn=64 --set model.layers=2 --set model.context=128 --set pretrain.dtype=f32 \
                 --set finetune.dtype=f32 --set pretrain.tokens=60000 --set finetune.tokens=20000 \
                 --set tokenizer.vocab_size=330 --until finetune";
    works(folder, &format!("grow --docs old --chats old.jsonl --out base {small}"));
    works(folder, "export base --to gguf --quant Q8_0 --out base.gguf");
}

const SETTINGS: &str = "--set model.context=128 --set pretrain.dtype=f32 --set finetune.dtype=f32 \
     --set pretrain.micro_tokens=256 --set finetune.micro_tokens=256 --set pretrain.batch_tokens=512 \
     --set finetune.batch_tokens=512 --set pretrain.optimizer.lr=0.01 --set finetune.optimizer.lr=0.01 \
     --set finetune.validate_tokens=3000 --set eval.compressors=false";

#[test]
fn a_base_learns_texts_and_answers() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    begin(folder);
    let grow = format!(
        "grow --base base.gguf --docs news --chats chats.jsonl --set lora.rank=4 {SETTINGS}"
    );
    let (value, said) = works(folder, &format!("{grow} --set lora.dropout=0.1 --out tuned"));
    assert!(said.contains("of memory"), "{said}");
    let [bits, answers] = ["bits_per_byte", "answers"].map(|key| value[key].clone());
    let number = |v: &Value| v.as_f64().unwrap();
    assert!(number(&bits["base"]) < number(&bits["start"]), "{bits}");
    assert!(number(&answers["fine-tuned"]) < 0.8 * number(&answers["start"]), "{answers}");
    let read = |file: &str| -> Value {
        serde_json::from_slice(&std::fs::read(folder.join(file)).unwrap()).unwrap()
    };
    let about = read("tuned/model/adapter_config.json");
    assert_eq!((&about["base_model_name_or_path"], &about["r"]), (&json!("base.gguf"), &json!(4)));
    let report = std::fs::read_to_string(folder.join("tuned/report.md")).unwrap();
    assert!(report.contains("start model, answers of held-out conversations"), "{report}");

    // It is a model like any other.
    let ask = |model: &str| {
        works(folder, &format!("chat {model} --message Who --temperature 0 --exact")).0
    };
    let said = ask("tuned");
    let with = ask("base.gguf --adapter tuned/model");
    assert_eq!(said["answers"], with["answers"], "{said}");
    assert_ne!(said["answers"], ask("base.gguf")["answers"]);
    works(folder, "export tuned --to safetensors --quant F32 --out merged");
    assert_eq!(said["answers"], ask("merged")["answers"]);

    // Nothing is done twice; other threads and layers computed twice make the same bytes.
    let (_, again) = works(folder, &format!("{grow} --set lora.dropout=0.1 --out tuned"));
    assert_eq!(again.matches("unchanged").count(), 6, "{again}");
    works(
        folder,
        &format!("{grow} --set lora.dropout=0.1 --set recompute=true --threads 1 --out other"),
    );
    for file in ["base/adapter_model.safetensors", "model/adapter_model.safetensors"] {
        let bytes = |run: &str| std::fs::read(folder.join(run).join(file)).unwrap();
        assert!(bytes("tuned") == bytes("other"), "{file}");
    }
    let (shown, _) = works(folder, "show tuned --verify");
    assert_eq!(shown["verified"]["ok"], true, "{shown}");
}

#[test]
fn a_base_learns_texts_alone() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    begin(folder);
    let (result, _) =
        works(folder, &format!("grow --base base.gguf --docs news --out read {SETTINGS}"));
    assert!(!folder.join("read/data/conversations.jsonl").exists(), "{result}");
    works(folder, "score read news/3.txt --exact");
    let (shown, _) = works(folder, "show read --verify");
    assert_eq!(shown["verified"]["ok"], true, "{shown}");
}

#[test]
fn all_weights_learn_answers_alone() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    begin(folder);
    let train = format!("train sft --base base --chats chats.jsonl --set lora.rank=0 {SETTINGS}");
    works(folder, &format!("{train} --set mixture.passes=8 --out full"));
    assert!(
        folder.join("full/model/model.safetensors").exists() && !folder.join("full/base").exists()
    );
    let (said, _) = works(folder, "chat full --message What --temperature 0");
    assert!(said["answers"][0].as_str().unwrap().starts_with("That is"), "{said}");
    works(folder, "generate full --raw --prompt Text --max-tokens 4");

    // A template of one's own goes where the model goes.
    let mine = "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}\
                {% if add_generation_prompt %}<|im_start|>assistant: {% endif %}";
    std::fs::write(folder.join("mine.jinja"), mine).unwrap();
    for (base, run) in [("base", "of-directory"), ("base.gguf", "of-gguf")] {
        let set = "--set lora.rank=2 --set data.template=mine.jinja --until finetune";
        works(
            folder,
            &format!("grow --base {base} --chats chats.jsonl {SETTINGS} {set} --out {run}"),
        );
        for (to, out) in [("gguf", format!("{run}.gguf")), ("safetensors", format!("{run}-st"))] {
            works(folder, &format!("export {run} --to {to} --out {out}"));
            let loaded = model::load(&folder.join(&out)).unwrap();
            assert_eq!(loaded.template.unwrap().source(), mine, "{out}");
        }
    }
}

#[test]
fn what_cant_be_gone_on_from_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    begin(folder);
    let fails = |args: &str, want: &str| {
        let (command, rest) = args.split_at(4);
        let output = homegrown(folder, &format!("{command} --out bad {SETTINGS} {rest}"));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{args}: {said}");
        assert!(said.contains(want), "{args}: {said}");
    };
    fails("grow --base base.gguf", "there is nothing that it is to learn");
    fails("grow --base nowhere --chats chats.jsonl", "nowhere is not a model");
    fails(
        "grow --base base.gguf --chats chats.jsonl --set model.layers=3",
        "only model.context can be set",
    );
    fails(
        "grow --base base.gguf --chats chats.jsonl --set model.context=129",
        "more than the base's 128",
    );
    fails(
        "grow --base base.gguf --chats chats.jsonl --set lora.modules=[\"c_attn\"]",
        "no layer of this model has a matrix c_attn",
    );
    fails("grow --set lora.rank=4", "adapters need a base");
    std::fs::write(
        folder.join("plain.jinja"),
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}",
    )
    .unwrap();
    fails(
        "grow --base base.gguf --chats chats.jsonl --set data.template=plain.jinja",
        "has no generation prompt",
    );
    std::fs::write(
        folder.join("order.jsonl"),
        "{\"messages\":[{\"role\":\"assistant\",\"content\":\"Hi\"}]}\n",
    )
    .unwrap();
    fails(
        "grow --base base.gguf --chats order.jsonl",
        "message 0: assistant can't follow the beginning",
    );
}
