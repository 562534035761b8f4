//! Shows the microworld: samples of each kind, and counts.
//!
//! `cargo run --release -p homegrown-data --example microworld -- [SAMPLES] [COUNTED]`

use std::collections::{BTreeMap, BTreeSet};

use data::microworld::{Stream, World, WorldConfig};

/// What is counted of a kind.
#[derive(Default)]
struct Count {
    texts: usize,
    bytes: usize,
    words: usize,
    samples: Vec<String>,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1).map(|a| a.parse::<usize>());
    let samples = arguments.next().transpose()?.unwrap_or(3);
    let counted = arguments.next().transpose()?.unwrap_or(20_000);
    let world = World::new(&WorldConfig::default(), 0)?;
    let mut kinds: BTreeMap<String, Count> = BTreeMap::new();
    let mut words: BTreeMap<String, usize> = BTreeMap::new();
    let mut distinct = BTreeSet::new();
    let mut add = |kind: String, text: String| {
        let count = kinds.entry(kind).or_default();
        count.texts += 1;
        count.bytes += text.len();
        for word in text.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()) {
            count.words += 1;
            if !word.starts_with(|c: char| c.is_ascii_digit()) {
                *words.entry(word.to_string()).or_default() += 1;
            }
        }
        distinct.insert(text.clone());
        if count.samples.len() < samples {
            count.samples.push(text);
        }
    };
    for document in world.documents(Stream::Pretrain).take(counted) {
        add(format!("document {}", document.kind), document.text);
    }
    for talk in world.talks(Stream::FineTune).take(counted / 2) {
        let lines = talk.messages.iter().map(|m| {
            let calls: Vec<_> = m.tool_calls.iter().map(|c| c.arguments.to_string()).collect();
            format!("{}> {}{}", m.role.as_str(), m.content, calls.join(" "))
        });
        add(format!("conversation {}", talk.kind), lines.collect::<Vec<_>>().join("\n"));
    }
    for question in world.questions(samples.max(100)) {
        let text = format!("{}\n= {}", question.messages[0].content, question.expected);
        add(format!("question {}", question.task.name()), text);
    }
    for (kind, count) in &kinds {
        let texts = count.texts as f64;
        println!(
            "=== {kind}: {} texts, {:.0} bytes and {:.0} words each",
            count.texts,
            count.bytes as f64 / texts,
            count.words as f64 / texts
        );
        count.samples.iter().for_each(|sample| println!("{sample}\n"));
    }
    let mut top: Vec<_> = words.iter().collect();
    top.sort_by_key(|(word, n)| (usize::MAX - **n, (*word).clone()));
    let total: usize = top.iter().map(|(_, n)| **n).sum();
    let mut covered = 0;
    for (i, (_, n)) in top.iter().enumerate() {
        covered += **n;
        if [200, 500, 800, 1000, 1200, 1500].contains(&(i + 1)) {
            println!("{} words cover {:.2} %", i + 1, 100.0 * covered as f64 / total as f64);
        }
    }
    let all: usize = kinds.values().map(|c| c.texts).sum();
    println!("{} distinct words; {} of {all} texts are distinct", top.len(), distinct.len());
    Ok(())
}
