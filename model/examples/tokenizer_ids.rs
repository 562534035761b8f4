//! The ids that a tokenizer gives, for comparisons with other programs with `tokenizers`.
//!
//! ```text
//! tokenizer_ids TOKENIZER.json|FILE.gguf TEXTS.json OUT.json [WRITTEN.json]
//! ```
//! TEXTS is a list of texts. OUT becomes a list of `{"plain", "special", "decoded"}`: the ids of
//! each as text from outside and as a template's, and the latter decoded. WRITTEN becomes the tokenizer's
//! own `tokenizer.json`.

use std::error::Error;

use model::gguf::Contents;
use model::tokenizer::Tokenizer;
use serde_json::json;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [file, texts, out, written @ ..] = &arguments[..] else {
        return Err("see the source".into());
    };
    let start = std::time::Instant::now();
    let bytes = std::fs::read(file)?;
    let read = start.elapsed();
    let tokenizer = match file.ends_with(".gguf") {
        true => Tokenizer::from_gguf(&Contents::read(&bytes)?, &bytes)?,
        false => Tokenizer::from_json(std::str::from_utf8(&bytes)?)?,
    };
    eprintln!("{tokenizer:?} {:?}", tokenizer.roles());
    let loaded = start.elapsed() - read;
    let texts: Vec<String> = serde_json::from_slice(&std::fs::read(texts)?)?;
    let size: usize = texts.iter().map(String::len).sum();
    let start = std::time::Instant::now();
    let plain: Vec<Vec<u32>> = texts.iter().map(|text| tokenizer.encode(text)).collect();
    let seconds = start.elapsed().as_secs_f64();
    eprintln!("loaded in {loaded:?}; {:.1} MB/s", size as f64 / 1e6 / seconds);
    let results: Vec<_> = texts
        .iter()
        .zip(plain)
        .map(|(text, plain)| {
            let special = tokenizer.encode_with_special(text);
            json!({"plain": plain, "decoded": tokenizer.decode(&special), "special": special})
        })
        .collect();
    std::fs::write(out, serde_json::to_string(&results)?)?;
    if let [written] = written {
        std::fs::write(written, tokenizer.to_json())?;
    }
    Ok(())
}
