//! Shows the microworld: samples of each kind, and counts, in tokens of a small tokenizer.
//!
//! `cargo run --release -p homegrown-data --example microworld -- [SAMPLES] [COUNTED]`

use std::collections::{BTreeMap, BTreeSet};

use data::encode::{self, SPECIAL};
use data::jsonl::Conversation;
use data::microworld::{ATTRIBUTES, Stream, Talk, World, WorldConfig};
use model::template::{CHATML, ChatTemplate};
use model::tokenizer::{Tokenizer, TrainOptions};

/// What is counted of a kind.
#[derive(Default)]
struct Count {
    texts: usize,
    bytes: usize,
    tokens: usize,
    longest: usize,
    samples: Vec<String>,
}

fn shown(talk: &Talk) -> String {
    let lines = talk.messages.iter().map(|m| {
        let calls: Vec<_> = m.tool_calls.iter().map(|c| c.arguments.to_string()).collect();
        format!("{}> {}{}", m.role.as_str(), m.content, calls.join(" "))
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1).map(|a| a.parse::<usize>());
    let samples = arguments.next().transpose()?.unwrap_or(3);
    let counted = arguments.next().transpose()?.unwrap_or(20_000);
    let world = World::new(&WorldConfig::default(), 0)?;
    let documents: Vec<_> = world.documents(Stream::Pretrain).take(counted).collect();
    let talks: Vec<_> = world.talks(Stream::FineTune).take(counted / 2).collect();

    let special_tokens = SPECIAL.map(String::from).to_vec();
    let options = TrainOptions { vocab_size: 2048, special_tokens, ..TrainOptions::default() };
    let texts = (documents.iter().map(|d| d.text.clone())).chain(talks.iter().map(shown));
    let tokenizer = Tokenizer::train(texts, &options, &mut |_| {})?;
    let template = ChatTemplate::new(CHATML, encode::special_tokens(&tokenizer))?;

    let mut kinds: BTreeMap<String, Count> = BTreeMap::new();
    let mut words: BTreeMap<String, usize> = BTreeMap::new();
    let mut distinct = BTreeSet::new();
    let mut add = |kind: String, text: String, tokens: usize| {
        let count = kinds.entry(kind).or_default();
        count.texts += 1;
        count.bytes += text.len();
        count.tokens += tokens;
        count.longest = count.longest.max(tokens);
        for word in text.split(|c: char| !c.is_alphabetic()).filter(|w| !w.is_empty()) {
            *words.entry(word.to_string()).or_default() += 1;
        }
        distinct.insert(text.clone());
        if count.samples.len() < samples {
            count.samples.push(text);
        }
    };
    for document in documents {
        let tokens = tokenizer.encode(&document.text).len() + 1;
        add(format!("document {}", document.kind), document.text, tokens);
    }
    for talk in talks {
        let (kind, text) = (format!("conversation {}", talk.kind), shown(&talk));
        let conversation = Conversation { messages: talk.messages, tools: None };
        add(kind, text, encode::conversation(&tokenizer, &template, &conversation)?.0.len());
    }
    let tokens = |group: &str| -> usize {
        kinds.iter().filter(|k| k.0.starts_with(group)).map(|k| k.1.tokens).sum()
    };
    for (kind, count) in &kinds {
        let each = |n: usize| n as f64 / count.texts as f64;
        println!(
            "=== {kind}: {:.1} % of tokens; {} texts of {:.0} bytes and {:.0} tokens, the longest {}",
            100.0 * count.tokens as f64 / tokens(kind.split(' ').next().unwrap_or("")) as f64,
            count.texts,
            each(count.bytes),
            each(count.tokens),
            count.longest,
        );
        count.samples.iter().for_each(|sample| println!("{sample}\n"));
    }
    for question in world.questions(samples) {
        let name = question.task.name();
        let prompt: Vec<_> = question.messages.iter().map(|m| m.content.as_str()).collect();
        println!("=== question {name}, chance {:.2}", question.chance);
        println!("{}\n= {}\n", prompt.join("\n"), question.expected);
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
    let whole = |word: &&(&String, &usize)| tokenizer.encode(&format!(" {}", word.0)).len() == 1;
    println!("{} words are one token", top.iter().filter(whole).count());
    let parts: Vec<&str> = (ATTRIBUTES.iter().flat_map(|a| world.pool(*a).iter()))
        .map(String::as_str)
        .filter(|w| tokenizer.encode(&format!(" {w}")).len() > 1)
        .collect();
    println!("{} values are several tokens: {}", parts.len(), parts.join(" "));
    let rare: Vec<&str> = top.iter().rev().take(60).map(|w| w.0.as_str()).collect();
    println!("the rarest words: {}", rare.join(" "));
    Ok(())
}
