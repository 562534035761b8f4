//! What near duplicates cost: `cargo run --release -p homegrown-documents --example minhash -- TEXTS.jsonl`
//!
//! One thread: texts to hashes of words, those to signatures of 128 numbers over 5 words, those to an
//! index of 16 bands, and the documents that are near an earlier one. In memory, without reading; seconds of
//! the core, whatever else it does.

use std::collections::HashMap;

use documents::clean::hashes;
use documents::near::{MinHash, Sets};
use documents::settings::Near;
use rustix::time::{ClockId, clock_gettime};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("name a file of JSONL")?;
    let mut texts = Vec::new();
    for line in std::fs::read_to_string(path)?.lines() {
        let record: serde_json::Value = serde_json::from_str(line)?;
        texts.extend(record["text"].as_str().map(str::to_string));
    }
    let megabytes = texts.iter().map(String::len).sum::<usize>() as f64 / 1e6;
    println!("{} documents, {megabytes:.1} MB", texts.len());
    let near = Near { bands: 16, rows: 8, words: 5 };
    let minhash = MinHash::new(&near);
    let told = |what: &str, from: f64| {
        let seconds = now() - from;
        println!("{what}: {seconds:.2} s, {:.0} MB/s", megabytes / seconds);
    };
    let start = now();
    let words: Vec<Vec<u64>> = texts.iter().map(|text| hashes(text)).collect();
    told("words", start);
    let signing = now();
    let bands: Vec<Option<Vec<u64>>> = words.iter().map(|w| minhash.bands(w)).collect();
    told("shingles and signatures", signing);
    let indexing = now();
    let mut sets = Sets::new(texts.len());
    for band in 0..near.bands {
        let mut first = HashMap::new();
        for (i, bands) in bands.iter().enumerate() {
            if let Some(bands) = bands {
                sets.join(*first.entry(bands[band]).or_insert(i as u32), i as u32);
            }
        }
    }
    let duplicates = (0..texts.len() as u32).filter(|i| sets.first(*i) != *i).count();
    told("index", indexing);
    told("all", start);
    println!("{duplicates} near duplicates");
    Ok(())
}

/// Seconds of the process.
fn now() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
