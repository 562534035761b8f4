//! What readers of files do with any bytes: they may refuse them, and nothing else. Each function
//! is the body of a fuzz target (`fuzz/`) and is fed mutations of sound files in the tests.

mod requests;

use std::io::Write;

use compute::Cpu;
use compute::parameters::Parameters;
use data::jsonl::{self, Conversation};
use data::shards::Shards;
use homegrown::recipe::Recipe;
use model::config::{Config, Sizes};
use model::gguf::Contents;
use model::init::{Init, initialise};
use model::tokenizer::{DecodeStream, Tokenizer};
use model::weights::GgufFiles;
pub use requests::requests;
use train::checkpoint;
use train::optimizer::{Optimizer, OptimizerConfig};

/// A model of a few hundred numbers.
fn small() -> (Config, Parameters) {
    let config = Config {
        rope_theta: 1e4,
        tie_word_embeddings: true,
        ..Config::qwen3(Sizes {
            vocab: 7,
            width: 4,
            ffn: 6,
            layers: 1,
            heads: 2,
            kv_heads: 1,
            head_dim: 2,
            context: 8,
        })
    };
    let parameters = initialise(&config, &Init::default(), 0);
    (config, parameters)
}

/// Bytes as a file, for readers that map theirs.
fn file(bytes: &[u8]) -> Option<tempfile::NamedTempFile> {
    let mut file = tempfile::NamedTempFile::new().ok()?;
    file.write_all(bytes).ok()?;
    file.flush().ok()?;
    Some(file)
}

/// Weights of a model.
pub fn safetensors(bytes: &[u8]) {
    if let Ok(files) = model::weights::SafeFiles::one(bytes) {
        let _ = model::weights::read(&small().0, &files, None);
    }
}

/// A GGUF file; what is taken is read and widened.
pub fn gguf(bytes: &[u8]) {
    let Ok(files) = GgufFiles::one(bytes) else { return };
    let contents = files.contents();
    if let Ok(config) = Config::from_gguf(&files) {
        let places = model::weights::places::places;
        // Not more than the file has: the names of many layers would only take time.
        if config.num_hidden_layers * config.mixture.as_ref().map_or(1, |m| m.experts) < 64 {
            assert!(!places(&config, model::weights::places::Layout::Gguf).is_empty());
            let _ = model::weights::read(&config, &files, None);
            let _ = model::weights::read(&config, &files, Some(&Cpu::new(1)));
        }
    }
    for key in contents.metadata.keys() {
        let _ = (contents.strings(bytes, key), contents.numbers(bytes, key));
    }
    for info in contents.tensors.values() {
        let mut elements = vec![0.0; info.shape.iter().product()];
        info.kind.widen(&bytes[info.bytes.clone()], &mut elements);
    }
}

/// A `tokenizer.json`; one that is taken turns text to ids and back, and can be written.
pub fn tokenizer(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(tokenizer) = Tokenizer::from_json(text) {
        used(&tokenizer);
    }
}

/// The tokenizer of a GGUF file.
pub fn tokenizer_gguf(bytes: &[u8]) {
    let Ok(contents) = Contents::read(bytes) else { return };
    if let Ok(tokenizer) = Tokenizer::from_gguf(&contents, bytes) {
        used(&tokenizer);
    }
}

/// What every sound tokenizer keeps to.
fn used(tokenizer: &Tokenizer) {
    let text =
        "A text, 12 words; ünd\u{1F600} \n\n  more. <s> ▁<|end|>\0 aaaaaaaaaaaaaaaaaaaaaaaaaa";
    let ids = tokenizer.encode(text);
    let unknown = tokenizer.roles().unknown;
    assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
    assert!(ids.iter().all(|&id| !tokenizer.is_special(id) || Some(id) == unknown));
    let ids = tokenizer.encode_with_special(text);
    let mut stream = DecodeStream::new();
    let mut streamed: String = ids.iter().map(|&id| stream.push(tokenizer, id)).collect();
    streamed += &stream.finish();
    assert!(streamed == tokenizer.decode(&ids));
    let _ = tokenizer.to_json();
}

/// A set of one token shard; one that is taken is read.
pub fn shard(bytes: &[u8]) {
    let Ok(folder) = tempfile::tempdir() else { return };
    if std::fs::write(folder.path().join("00000.shard"), bytes).is_err() {
        return;
    }
    if let Ok(shards) = Shards::open(folder.path(), None) {
        let totals = shards.totals();
        for document in [0, totals.documents - 1] {
            let rows = shards.document_tokens(document);
            assert!(shards.read(document, 0..rows).count() == rows);
        }
    }
}

/// A manifest of checkpoints, or a checkpoint.
pub fn checkpoint(bytes: &[u8]) {
    let _ = store::sealed::unseal::<checkpoint::Manifest>(bytes);
    let _ = checkpoint::read_manifest(bytes);
    let (_, mut parameters) = small();
    let mut optimizer = Optimizer::new(OptimizerConfig::default(), &parameters);
    let _ = checkpoint::decode(bytes, &mut parameters, &mut optimizer);
}

/// A recipe.
pub fn recipe(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(recipe) = Recipe::resolve(&[("fuzz.toml", text)], &[]) {
        // What was taken is a recipe again.
        assert!(Recipe::resolve(&[("again.toml", &recipe.to_toml())], &[]).is_ok());
    }
}

/// A JSONL file of conversations.
pub fn conversations(bytes: &[u8]) {
    let Some(file) = file(bytes) else { return };
    if let Ok(lines) = jsonl::read::<Conversation>(file.path()) {
        // The first error ends a file.
        let _ = lines.take_while(Result::is_ok).count();
    }
}

/// A target's name and a file.
pub type Seed = (&'static str, Vec<u8>);

/// A sound file for each target, to start from.
///
/// # Errors
/// If the system has no room for temporary files.
pub fn seeds() -> Result<Vec<Seed>, Box<dyn std::error::Error>> {
    let (_, parameters) = small();
    let weights = model::weights::write(&parameters)?;
    let options = model::tokenizer::TrainOptions {
        vocab_size: 300,
        special_tokens: vec!["<|end|>".into()],
        ..Default::default()
    };
    let tokenizer = Tokenizer::train(["some words, some more words"; 3], &options, &mut |_| {})?;
    let tokenizer = tokenizer.to_json().into_bytes();

    // Of each kind, with its cases beside it.
    let kinds: [&[u8]; 6] = [
        include_bytes!("../../model/tests/fixtures/kinds/llama3.json"),
        include_bytes!("../../model/tests/fixtures/kinds/deepseek.json"),
        include_bytes!("../../model/tests/fixtures/kinds/llama.json"),
        include_bytes!("../../model/tests/fixtures/kinds/gemma.json"),
        include_bytes!("../../model/tests/fixtures/kinds/t5.json"),
        include_bytes!("../../model/tests/fixtures/kinds/unigram.json"),
    ];
    let mut tokenizers = vec![tokenizer];
    for kind in kinds {
        let fixture: serde_json::Value = serde_json::from_slice(kind)?;
        tokenizers.push(fixture["file"].to_string().into_bytes());
    }

    let folder = tempfile::tempdir()?;
    let mut writer =
        data::shards::ShardWriter::create(folder.path(), store::hash_bytes(b"tokenizer"), 300)?;
    writer.push(&[1, 2, 3, 4], None, 4)?;
    writer.push(&[5, 6, 7], Some(&[false, false, true]), 3)?;
    writer.finish()?;
    let shard = std::fs::read(folder.path().join("00000.shard"))?;

    let optimizer = Optimizer::new(OptimizerConfig::default(), &parameters);
    let key = store::hash_bytes(b"run");
    let checkpoints = folder.path().join("checkpoints");
    let state = checkpoint::State {
        schema_version: checkpoint::SCHEMA_VERSION,
        key,
        tokens: 10,
        steps: 2,
        updates: 2,
        flops: 1.5,
        loss: 2.5,
        heldout_bits_per_byte: Some(1.25),
        guard: Default::default(),
        loader: Default::default(),
        metrics: key,
    };
    let mut saved = checkpoint::Checkpoints::open(&checkpoints, key, 1)?;
    saved.save(&state, true, &parameters, &optimizer)?;
    let sealed = std::fs::read(checkpoints.join("manifest.json"))?;
    let manifest: checkpoint::Manifest = store::read_sealed(&checkpoints.join("manifest.json"))?;
    let manifest = serde_json::to_vec_pretty(&manifest)?;
    let state = std::fs::read(checkpoints.join("step-00000002.safetensors"))?;

    let talk = br#"{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}
{"messages": [{"role": "assistant", "content": "", "tool_calls": [{"name": "calculator", "arguments": {"expression": "1+1"}}]}]}
"#;
    let mut seeds = vec![
        ("safetensors", weights),
        ("gguf", include_bytes!("../../model/src/gguf/fixture.gguf").to_vec()),
        ("tokenizer_gguf", include_bytes!("../../model/tests/fixtures/kinds/smollm.gguf").to_vec()),
        ("tokenizer_gguf", include_bytes!("../../model/tests/fixtures/kinds/llama.gguf").to_vec()),
        ("tokenizer_gguf", include_bytes!("../../model/tests/fixtures/kinds/gemma.gguf").to_vec()),
        ("tokenizer_gguf", include_bytes!("../../model/tests/fixtures/kinds/t5.gguf").to_vec()),
        ("shard", shard),
        ("recipe", homegrown::recipe::DEFAULT.into()),
        ("recipe", homegrown::recipe::DOCS.into()),
        ("checkpoint", sealed),
        ("checkpoint", manifest),
        ("checkpoint", state),
        ("conversations", talk.to_vec()),
    ];
    seeds.extend(tokenizers.into_iter().map(|file| ("tokenizer", file)));
    seeds.extend(requests::seeds().into_iter().map(|request| ("requests", request)));
    Ok(seeds)
}
