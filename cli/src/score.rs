//! `homegrown score`: how well a model predicts a text.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use compute::tape::Workspace;
use compute::tensor::DType;
use eval::score::Windows;
use serde_json::Value;

use crate::common::Common;
use crate::failure::Failure;
use crate::fetched::ModelArgs;

/// Arguments of `score`.
#[derive(Args, Debug)]
pub struct ScoreArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// A file of UTF-8 text.
    file: PathBuf,
    /// Tokens in a window [default: the model's longest context].
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    /// Tokens from one window's start to the next [default: half the context].
    #[arg(long, value_name = "N")]
    stride: Option<usize>,
    /// Each token once with the longest left context (sliding), or as llama-perplexity does.
    #[arg(long, value_enum, default_value = "sliding")]
    windows: WindowKind,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum WindowKind {
    Sliding,
    #[value(name = "llama.cpp")]
    LlamaCpp,
}

/// Scores a text.
///
/// # Errors
/// What can't be read; windows that don't fit.
pub fn score(args: &ScoreArgs, common: &Common) -> Result<Value, Failure> {
    let cpu = common.cpu()?;
    let loaded = args.model.load(&cpu)?;
    let text = store::read_text(&args.file)?;
    let context = args.context.unwrap_or(loaded.transformer.config().max_position_embeddings);
    let windows = match args.windows {
        WindowKind::Sliding => {
            Windows::Sliding { context, stride: args.stride.unwrap_or((context / 2).max(1)) }
        }
        WindowKind::LlamaCpp if args.stride.is_some() => {
            return Err(Failure::invalid("--stride: windows as in llama.cpp stand side by side"));
        }
        WindowKind::LlamaCpp => Windows::LlamaCpp { context },
    };
    let tokenizer = &loaded.tokenizer;
    let bos = loaded.bos;
    let mut tokens: Vec<u32> = bos.into_iter().collect();
    tokens.extend(tokenizer.encode(&text));
    let length = |id: u32| match tokenizer.is_special(id) {
        true => 0,
        false => tokenizer.token_bytes(id).map_or(0, <[u8]>::len),
    };
    let mut ws = Workspace::new(cpu, DType::F32);
    ws.set_exact(args.model.exact);
    let score = eval::score::score(&loaded.transformer, &mut ws, &tokens, bos, length, windows);
    let score = score.map_err(|e| {
        let failure = Failure::from(e);
        Failure { message: format!("{}: {}", args.file.display(), failure.message), ..failure }
    })?;
    let value = serde_json::to_value(score).map_err(Failure::failed)?;
    common.table(&value);
    Ok(value)
}
