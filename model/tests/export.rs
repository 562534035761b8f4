//! Models that were written are read as the same models: from each of the families' fixtures to both
//! formats and all types, and what can't be written is told.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use compute::blocks::BlockType;
use compute::tape::Workspace;
use compute::tensor::DType;
use compute::{Cpu, IGNORE, Pool, Span};
use model::config::Config;
use model::export::{self, ExportError, Exported, Options, Quant};
use model::gguf::{Contents, Head};
use model::template::ChatTemplate;
use model::tokenizer::Tokenizer;
use model::transformer::Transformer;
use model::weights::{self, SafeFiles};
use model::{Loaded, load};
use serde_json::Value;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// A tokenizer, as a fixture has it.
fn tokenizer(kind: &str) -> String {
    let file = std::fs::read(fixtures().join(format!("kinds/{kind}.json"))).unwrap();
    serde_json::from_slice::<Value>(&file).unwrap()["file"].to_string()
}

/// A family's small model, with a tokenizer from a directory. The embedding is made as long as that.
fn made(family: &str, tokenizer_kind: &str, dir: &Path) -> Loaded {
    let source = fixtures().join("families").join(family);
    let text = std::fs::read_to_string(source.join("config.json")).unwrap();
    let config = Config::from_json(&text).unwrap();
    let mut parameters = weights::read(&config, &SafeFiles::open(&source).unwrap(), None).unwrap();
    let json = tokenizer(tokenizer_kind);
    let tokenizer = Tokenizer::from_json(&json).unwrap();
    let rows = tokenizer.vocab_size() + 3;
    for p in parameters.iter_mut() {
        if p.name == "model.embed_tokens.weight" || p.name == "lm_head.weight" {
            let (cols, old) = (p.value.cols(), p.value.f32());
            let data = (0..rows * cols).map(|i| old[i % old.len()] + i as f32 * 1e-4).collect();
            p.value = compute::tensor::Tensor::new(rows, cols, data);
        }
    }
    let config = Config { vocab_size: rows, ..config };
    let template = "{% for m in messages %}{{ m.content }}</s>{% endfor %}";
    let settings = serde_json::json!({"bos_token": "<s>", "chat_template": template}).to_string();
    std::fs::create_dir(dir).unwrap();
    std::fs::write(dir.join("tokenizer.json"), json).unwrap();
    std::fs::write(dir.join("tokenizer_config.json"), settings).unwrap();
    Loaded {
        bos: tokenizer.roles().bos.filter(|_| tokenizer.roles().add_bos),
        ends: config.eos_token_id.into_iter().collect(),
        template: Some(ChatTemplate::new(template, Default::default()).unwrap()),
        tokenizer,
        transformer: Transformer::new(config, parameters),
        path: dir.to_path_buf(),
    }
}

/// Nats of tokens: the same bits only if the models are the same.
fn nats(model: &Transformer) -> Vec<f32> {
    let tokens: Vec<u32> = (0..20).map(|i| i * 7 % 47).collect();
    let targets: Vec<u32> = tokens[1..].iter().copied().chain([IGNORE]).collect();
    let mut ws = Workspace::new(Arc::new(Cpu::new(1)), DType::F32);
    model.loss_rows(&mut ws, &tokens, &targets, &[Span { start: 0, len: tokens.len() }])
}

fn options(quant: Quant) -> Options<'static> {
    Options { quant, importance: None, metadata: Vec::new() }
}

fn write(loaded: &Loaded, quant: Quant, out: &Path) -> Result<Exported, ExportError> {
    let (mut last, mut total) = (0, 0);
    let mut progress = |done, of| (last, total) = (done, of);
    let pool = Pool::new(2);
    let exported = match out.extension() {
        Some(_) => export::gguf(loaded, &pool, &options(quant), out, &mut progress),
        None => export::safetensors(loaded, &pool, &options(quant), out, &mut progress),
    }?;
    assert_eq!((last, total), (exported.parameters, exported.parameters));
    Ok(exported)
}

const FAMILIES: [&str; 10] = [
    "llama",
    "llama-biases",
    "qwen2",
    "qwen3",
    "qwen3-moe",
    "gemma2",
    "gemma3",
    "phi3",
    "gpt2",
    "mistral",
];

#[test]
fn f32_is_the_same_model() {
    let temp = tempfile::tempdir().unwrap();
    for family in FAMILIES {
        let at = |name: &str| temp.path().join(format!("{family}-{name}"));
        let kind = if family.starts_with("llama") { "llama" } else { "smollm" };
        let loaded = made(family, kind, &at("source"));
        let want = nats(&loaded.transformer);
        // There and back through both formats.
        write(&loaded, Quant::F32, &at("a")).unwrap();
        let a = load(&at("a")).unwrap();
        write(&a, Quant::F32, &at("b.gguf")).unwrap();
        let b = load(&at("b.gguf")).unwrap();
        write(&b, Quant::F32, &at("c.gguf")).unwrap();
        let c = load(&at("c.gguf")).unwrap();
        write(&c, Quant::F32, &at("d")).unwrap();
        let d = load(&at("d")).unwrap();
        let text = "The mill <s> is  by\nthe river, é 1234.";
        for (name, model) in [("a", &a), ("b", &b), ("c", &c), ("d", &d)] {
            // Norms less 1, and factors of frequencies in f32, may cost a bit.
            let exact = !matches!(
                (family, name),
                ("gemma2" | "gemma3", _) | ("llama" | "phi3" | "qwen2", "b" | "c" | "d")
            );
            let got = nats(&model.transformer);
            // A window ends the context in GGUF: then all is as before up to there.
            let (far, upto) = if family == "mistral" && name != "a" {
                assert_eq!(model.transformer.config().max_position_embeddings, 7);
                (0, 7)
            } else {
                (0, want.len())
            };
            for (got, want) in got[far..upto].iter().zip(&want[far..upto]) {
                let near = (got - want).abs() <= if exact { 0.0 } else { 2e-5 * want.abs() };
                assert!(near, "{family} {name}: {got}, not {want}");
            }
            assert_eq!(
                model.tokenizer.encode(text),
                loaded.tokenizer.encode(text),
                "{family} {name}"
            );
            assert_eq!((model.bos, model.ends[0]), (loaded.bos, loaded.ends[0]), "{family} {name}");
            let source = |m: &Loaded| m.template.as_ref().unwrap().source().to_string();
            assert_eq!(source(model), source(&loaded));
        }
        assert_eq!(
            std::fs::read(at("b.gguf")).unwrap().len(),
            std::fs::read(at("c.gguf")).unwrap().len()
        );
    }
}

#[test]
fn types_are_within_their_errors() {
    let temp = tempfile::tempdir().unwrap();
    let loaded = made("qwen3", "smollm", &temp.path().join("source"));
    let want = nats(&loaded.transformer);
    let mut last = u64::MAX;
    for (quant, most) in [
        (Quant::F32, 0.0),
        (Quant::F16, 0.01),
        (Quant::BF16, 0.1),
        (Quant::Q8_0, 0.1),
        (Quant::Q6_K, 0.1),
        (Quant::Q4_K_M, 1.0),
        (Quant::Q4_0, 2.0),
    ] {
        let path = temp.path().join(format!("{quant}.gguf"));
        let exported = write(&loaded, quant, &path).unwrap();
        let got = nats(&load(&path).unwrap().transformer);
        let off = got.iter().zip(&want).map(|(g, w)| (g - w).abs()).fold(0.0, f32::max);
        println!("{quant}: {off:.4} nats, {:.2} bits a weight", exported.bits_per_weight());
        assert!(off <= most, "{quant}: {off}");
        let size = std::fs::metadata(&path).unwrap().len();
        assert_eq!(exported.files, [(path, size)]);
        assert!(exported.bytes <= last, "{quant} is larger than the one before");
        last = exported.bytes;
    }
    let notes = write(&loaded, Quant::Q4_K_M, &temp.path().join("again.gguf")).unwrap().notes;
    let wanted = "1 tensor with rows of 24, no multiple of 256: F16 in place of Q4_K";
    assert!(notes.iter().any(|note| note == wanted), "{notes:?}");
    // Threads don't matter.
    let one = temp.path().join("one.gguf");
    export::gguf(&loaded, &Pool::new(1), &options(Quant::Q4_K_M), &one, &mut |_, _| ()).unwrap();
    let bytes = |name: &str| std::fs::read(temp.path().join(name)).unwrap();
    assert!(bytes("one.gguf") == bytes("again.gguf"));
}

#[test]
fn what_cannot_be_written_is_told() {
    let temp = tempfile::tempdir().unwrap();
    let at = |name: &str| temp.path().join(name);
    let told =
        |loaded: &Loaded, quant, out: &str| write(loaded, quant, &at(out)).unwrap_err().to_string();
    let mut loaded = made("qwen3", "smollm", &at("source"));
    assert!(told(&loaded, Quant::Q8_0, "x").contains("Q8_0 is no type of safetensors"));
    assert!(told(&loaded, Quant::F32, "source").contains("is there already"));
    std::fs::write(at("there.gguf"), "").unwrap();
    assert!(told(&loaded, Quant::F32, "there.gguf").contains("is there already"));
    let name = "model.layers.1.mlp.up_proj.weight";
    let spoil = |loaded: &mut Loaded, value: f32| {
        let p = loaded.transformer.parameters.iter_mut().find(|p| p.name == name).unwrap();
        p.value.f32_mut()[18] = value;
    };
    spoil(&mut loaded, 1e5);
    assert_eq!(
        told(&loaded, Quant::F16, "x.gguf"),
        "tensor blk.1.ffn_up.weight: element 18 is 100000, which F16 can't hold"
    );
    assert_eq!(
        told(&loaded, Quant::F16, "x"),
        format!("tensor {name}: element 18 is 100000, which F16 can't hold")
    );
    spoil(&mut loaded, f32::NAN);
    assert!(told(&loaded, Quant::F32, "x.gguf").contains("element 18 is NaN"));
    assert!(!at("x.gguf").exists(), "nothing is left");

    let loaded = made("gemma2-scale", "smollm", &at("scale"));
    let text = told(&loaded, Quant::F32, "y.gguf");
    assert!(text.contains("GGUF can't say") && text.contains("gemma2: attention_scale"), "{text}");
    let loaded = made("qwen3", "unigram", &at("unigram"));
    let text = told(&loaded, Quant::F32, "y.gguf");
    assert!(text.starts_with("the tokenizer: "), "{text}");
}

#[test]
fn tokenizers_of_other_kinds() {
    for kind in
        ["gpt2", "llama3", "smollm", "deepseek", "tekken", "llama", "llama_prepend", "gemma", "t5"]
    {
        let json = Tokenizer::from_json(&tokenizer(kind)).unwrap();
        let mut head = Head::default();
        json.to_gguf(json.vocab_size() + 5, json.roles(), &mut head)
            .unwrap_or_else(|e| panic!("{kind}: {e}"));
        let bytes = head.bytes();
        let again = Tokenizer::from_gguf(&Contents::read(&bytes).unwrap(), &bytes).unwrap();
        assert_eq!(again.vocab_size(), json.vocab_size() + 5);
        let cases = std::fs::read(fixtures().join(format!("kinds/{kind}.json"))).unwrap();
        let cases: Value = serde_json::from_slice(&cases).unwrap();
        for case in cases["cases"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            if kind == "llama_prepend" && text.starts_with([' ', '▁']) {
                continue; // it gets another one, which GGUF does not tell
            }
            assert_eq!(again.encode(text), json.encode(text), "{kind}: {text:?}");
        }
    }
}

#[test]
fn importance_lessens_the_weighted_error() {
    let temp = tempfile::tempdir().unwrap();
    let loaded = made("llama", "llama", &temp.path().join("source"));
    let cpu = Arc::new(Cpu::new(1));
    let text = "The mill is by the river. ".repeat(30);
    let mut told = 0;
    let importance = export::calibrate(&loaded, &cpu, &text, &mut |done, _| told = done).unwrap();
    assert_eq!(told, importance.tokens as u64);
    let few = export::calibrate(&loaded, &cpu, "short", &mut |_, _| ()).unwrap_err();
    assert!(few.to_string().contains("at least 64"), "{few}");
    let write = |importance, name: &str| {
        let options = Options { importance, ..options(Quant::Q4_0) };
        let path = temp.path().join(name);
        export::gguf(&loaded, &cpu.pool, &options, &path, &mut |_, _| ()).unwrap();
        std::fs::read(path).unwrap()
    };
    // Rows here are shorter than blocks; what matters is that all goes through.
    let (with, without) = (write(Some(&importance), "a.gguf"), write(None, "b.gguf"));
    assert_eq!(with.len(), without.len());
    let contents = Contents::read(&with).unwrap();
    assert_eq!(contents.tensors["blk.0.attn_norm.weight"].kind, BlockType::F32);
}
