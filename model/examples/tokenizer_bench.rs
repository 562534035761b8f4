//! Our side of `bench/tokenizer/bench.py`.
//!
//! ```text
//! tokenizer_bench train TEXTS VOCAB THREADS OUT.json
//! tokenizer_bench encode TEXTS TOKENIZER.json THREADS [IDS]
//! ```
//! TEXTS has one text after another, each followed by a NUL. `train` prints seconds and the MB of
//! memory it took besides the texts; `encode` prints seconds once for each line it reads, and in the
//! end it writes the ids as JSON.

use std::error::Error;
use std::io::Write;
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
            let (before, start) = (memory("VmRSS")?, Instant::now());
            let tokenizer = Tokenizer::train(&texts, &options, &mut |_| {})?;
            println!("{} {}", start.elapsed().as_secs_f64(), memory("VmHWM")? - before);
            std::fs::write(out, tokenizer.to_json())?;
        }
        ("encode", [tokenizer, threads, out @ ..]) => {
            let tokenizer = Tokenizer::load(tokenizer)?;
            let pool = Pool::new(threads.parse()?);
            let mut ids = vec![];
            for line in std::io::stdin().lines() {
                line?;
                let start = Instant::now();
                ids = tokenizer.encode_batch(&pool, &texts);
                println!("{}", start.elapsed().as_secs_f64());
                std::io::stdout().flush()?;
            }
            if let [out] = out {
                std::fs::write(out, serde_json::to_string(&ids)?)?;
            }
        }
        _ => return Err("see the source".into()),
    }
    Ok(())
}

/// VmRSS (now) or VmHWM (at most so far) of this process in MB.
fn memory(field: &str) -> Result<f64, Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with(field)).ok_or("no such field")?;
    Ok(line.split_whitespace().nth(1).ok_or("no number")?.parse::<f64>()? / 1024.0)
}
