//! Times training and encoding for `bench/tokenizer/bench.py`, and does single steps for it:
//!
//! ```text
//! tokenizer_bench train TEXTS VOCAB THREADS OUT.json
//! tokenizer_bench encode TEXTS TOKENIZER.json THREADS ROUNDS
//! ```
//! TEXTS has one text after another, each followed by a NUL. Prints seconds, one number a line.

use std::error::Error;
use std::time::Instant;

use compute::Pool;
use model::tokenizer::{Tokenizer, TrainOptions};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [command, texts, rest @ ..] = &arguments[..] else { return Err("see the source".into()) };
    let texts = std::fs::read_to_string(texts)?;
    let texts: Vec<&str> = texts.split_terminator('\0').collect();
    match (command.as_str(), rest) {
        ("train", [vocab, threads, out]) => {
            let options = TrainOptions {
                vocab_size: vocab.parse()?,
                threads: threads.parse()?,
                ..TrainOptions::default()
            };
            let start = Instant::now();
            let mut counted = None;
            let tokenizer = Tokenizer::train(&texts, &options, &mut |progress| {
                if matches!(progress, model::tokenizer::Progress::Merging { .. }) {
                    counted.get_or_insert(start.elapsed());
                }
            })?;
            println!("{}", start.elapsed().as_secs_f64());
            eprintln!("first merges after {counted:?}");
            std::fs::write(out, tokenizer.to_json())?;
        }
        ("encode", [tokenizer, threads, rounds]) => {
            let tokenizer = Tokenizer::load(tokenizer)?;
            let pool = Pool::new(threads.parse()?);
            let mut tokens = 0;
            for _ in 0..rounds.parse()? {
                let start = Instant::now();
                let ids = tokenizer.encode_batch(&pool, &texts);
                println!("{}", start.elapsed().as_secs_f64());
                tokens = ids.iter().map(Vec::len).sum();
            }
            eprintln!("{tokens} tokens");
        }
        _ => return Err("see the source".into()),
    }
    Ok(())
}
