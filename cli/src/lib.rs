//! The `homegrown` command: arguments in, one exit code out.

mod bench;
mod chat;
mod common;
mod corpus;
mod evaluate;
mod export;
pub mod failure;
mod fetched;
mod generate;
mod grow;
mod interrupt;
mod prepare;
mod progress;
pub mod recipe;
#[cfg(feature = "serve")]
mod replay;
mod samples;
mod score;
#[cfg(feature = "serve")]
mod serve;
mod show;
mod stage;
mod tokenize;
mod tokenizer;
mod training;
mod world;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use serde_json::{Value, json};

use common::Common;
use failure::Failure;

/// The whole life of a language model: text in, an assistant of your own out.
#[derive(Parser)]
#[command(name = "homegrown", version, max_term_width = 100)]
struct Arguments {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Text in, assistant out: prepare, tokenize, pretrain, fine-tune, evaluate, report.
    Grow(grow::GrowArgs),
    /// One stage of training, in the run directory of a recipe.
    #[command(subcommand)]
    Train(grow::TrainCommand),
    /// Tokenizers: train one, text to ids, ids to text.
    #[command(subcommand)]
    Tokenizer(tokenizer::TokenizerCommand),
    /// Documents: read, clean and deduplicate them, and look at what became of each.
    #[command(subcommand)]
    Data(corpus::DataCommand),
    /// Talk to a model in the terminal.
    Chat(chat::ChatArgs),
    /// One prompt, one answer.
    Generate(generate::GenerateArgs),
    /// How well a model predicts a text: bits per byte, perplexity.
    Score(score::ScoreArgs),
    /// A model behind OpenAI's API, for many at a time.
    #[cfg(feature = "serve")]
    Serve(serve::ServeArgs),
    /// An answer of the server once more, from its receipt: the same bytes, or what isn't the same.
    #[cfg(feature = "serve")]
    Replay(replay::ReplayArgs),
    /// A model for other programs: a directory of safetensors, or a GGUF file.
    Export(export::ExportArgs),
    /// Where something is from: the stages, texts, recipe and code behind a run, a model, a report.
    Show(show::ShowArgs),
    /// What this machine does.
    #[command(subcommand)]
    Bench(BenchCommand),
}

#[derive(Subcommand)]
enum BenchCommand {
    /// Training steps on random tokens.
    Train(bench::BenchTrainArgs),
    /// Prompts and answers of a model, on random tokens.
    Infer(bench::infer::BenchInferArgs),
}

/// The program.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let common = &arguments.common;
    interrupt::listen(common.json);
    let lists = matches!(arguments.command, Command::Bench(BenchCommand::Infer(_)));
    let result = compute::tape::caught(|| {
        common.check(lists)?;
        run(&arguments.command, common)
    });
    match result.unwrap_or_else(|error| {
        Err(Failure::failed(error).hint("--device cpu computes on the CPU."))
    }) {
        Ok(value) => {
            if common.json {
                common::say(&value.to_string());
            }
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("error: {failure}");
            if common.json {
                let (error, hint) = (&failure.message, &failure.hint);
                let mut value = json!({"error": error, "hint": hint, "exit": failure.exit});
                if let Some(object) = value.as_object_mut() {
                    object.extend(*failure.details);
                }
                common::say(&value.to_string());
            }
            ExitCode::from(failure.exit)
        }
    }
}

/// Runs a command; returns what `--json` prints.
fn run(command: &Command, common: &Common) -> Result<Value, Failure> {
    match command {
        Command::Grow(args) => grow::grow(args, common),
        Command::Train(command) => grow::train(command, common),
        Command::Tokenizer(command) => tokenizer::run(command, common),
        Command::Data(command) => corpus::command(command, common),
        Command::Chat(args) => chat::chat(args, common),
        Command::Generate(args) => generate::generate(args, common),
        Command::Score(args) => score::score(args, common),
        #[cfg(feature = "serve")]
        Command::Serve(args) => serve::serve(args, common),
        #[cfg(feature = "serve")]
        Command::Replay(args) => replay::replay(args, common),
        Command::Export(args) => export::export(args, common),
        Command::Show(args) => show::show(args, common),
        Command::Bench(BenchCommand::Train(args)) => {
            let result = bench::train(args, common)?;
            let mut value = serde_json::to_value(&result).map_err(Failure::failed)?;
            if !common.json && !result.profile.is_empty() {
                value.as_object_mut().map(|v| v.remove("profile"));
                common.table(&value);
                common::say(&bench::table(&result.profile).trim_fmt());
            } else {
                common.table(&value);
            }
            Ok(value)
        }
        Command::Bench(BenchCommand::Infer(args)) => bench::infer::infer(args, common),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn arguments_are_consistent() {
        super::Arguments::command().debug_assert();
    }
}
