//! `homegrown tokenizer`: train one, text to ids, ids to text.

use std::io::Read;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use model::tokenizer::{Tokenizer, TrainOptions};
use serde_json::{Value, json};

use crate::common::{Common, say};
use crate::failure::Failure;
use crate::tokenize;

/// What to do with a tokenizer.
#[derive(Subcommand, Debug)]
pub enum TokenizerCommand {
    /// Learn one from documents and write tokenizer.json.
    Train(TrainArgs),
    /// Text (or stdin) to ids.
    Encode(EncodeArgs),
    /// Ids (or stdin) to text.
    Decode(DecodeArgs),
}

/// Arguments of `tokenizer train`.
#[derive(Args, Debug)]
pub struct TrainArgs {
    /// Files and folders of documents.
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// Tokens in all: bytes, merges, special tokens.
    #[arg(long, default_value_t = 32_768)]
    vocab: usize,
    /// Where to write it.
    #[arg(long, default_value = "tokenizer.json", value_name = "FILE")]
    out: PathBuf,
}

/// Arguments of `tokenizer encode`.
#[derive(Args, Debug)]
pub struct EncodeArgs {
    /// A tokenizer.json, a model directory or a run directory.
    tokenizer: PathBuf,
    /// The text [default: stdin].
    text: Option<String>,
    /// Recognise special tokens in the text.
    #[arg(long)]
    special: bool,
}

/// Arguments of `tokenizer decode`.
#[derive(Args, Debug)]
pub struct DecodeArgs {
    /// A tokenizer.json, a model directory or a run directory.
    tokenizer: PathBuf,
    /// The ids [default: stdin].
    ids: Vec<u32>,
}

/// Runs the command.
///
/// # Errors
/// What can't be read, learned or written.
pub fn run(command: &TokenizerCommand, common: &Common) -> Result<Value, Failure> {
    match command {
        TokenizerCommand::Train(args) => train(args, common),
        TokenizerCommand::Encode(args) => {
            let tokenizer = load(&args.tokenizer)?;
            let text = args.text.clone().map_or_else(stdin, Ok)?;
            let ids = match args.special {
                true => tokenizer.encode_with_special(&text),
                false => tokenizer.encode(&text),
            };
            if !common.json {
                say(&ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" "));
            }
            Ok(json!({"ids": ids}))
        }
        TokenizerCommand::Decode(args) => {
            let tokenizer = load(&args.tokenizer)?;
            let mut ids = args.ids.clone();
            if ids.is_empty() {
                for word in stdin()?.split_whitespace() {
                    ids.push(
                        word.parse()
                            .map_err(|_| Failure::invalid(format!("{word:?} is not an id")))?,
                    );
                }
            }
            let size = tokenizer.vocab_size();
            if let Some(id) = ids.iter().find(|id| **id as usize >= size) {
                return Err(Failure::invalid(format!("id {id}: this tokenizer has {size} tokens")));
            }
            let text = tokenizer.decode(&ids);
            if !common.json {
                say(&text);
            }
            Ok(json!({"text": text}))
        }
    }
}

fn train(args: &TrainArgs, common: &Common) -> Result<Value, Failure> {
    let options = TrainOptions {
        vocab_size: args.vocab,
        special_tokens: tokenize::special(),
        threads: common.threads(),
        ..TrainOptions::default()
    };
    let mut bytes = 0;
    let texts =
        documents::stream::documents(&args.paths, &Default::default())?.filter_map(|document| {
            match document {
                Ok(document) => {
                    bytes += document.text.len();
                    Some(document.text)
                }
                Err(skip) => {
                    eprintln!("   skipped {}: {}", skip.source, skip.reason);
                    None
                }
            }
        });
    let tokenizer = tokenize::train_shown(texts, &options)?;
    store::write_atomic(&args.out, tokenizer.to_json().as_bytes())?;
    if !common.json {
        say(&format!("{} tokens: {}", tokenizer.vocab_size(), args.out.display()));
    }
    Ok(json!({"path": args.out, "vocab_size": tokenizer.vocab_size(), "bytes": bytes}))
}

/// Reads `tokenizer.json` of a file, model or run.
fn load(path: &Path) -> Result<Tokenizer, Failure> {
    let places = ["tokenizer.json", "model/tokenizer.json", "tokenizer/tokenizer.json"];
    let found = places.iter().map(|p| path.join(p)).find(|p| p.is_file());
    Ok(Tokenizer::load(found.as_deref().unwrap_or(path))?)
}

/// All of stdin.
fn stdin() -> Result<String, Failure> {
    let mut text = String::new();
    std::io::stdin()
        .read_to_string(&mut text)
        .map_err(|e| Failure::invalid(format!("cannot read stdin: {e}")))?;
    Ok(text)
}
