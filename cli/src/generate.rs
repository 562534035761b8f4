//! `homegrown generate`: one prompt, one answer.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use compute::Cpu;
use compute::kv::KvType;
use model::Loaded;
use model::generator::{GenerateError, Options, Reason};
use model::message::Message;
use model::sampler::{Sampling, SamplingError};
use model::transformer::Transformer;
use serde_json::{Value, json};
use tools::assistant::{Assistant, AssistantError, Settings};

use crate::common::Common;
use crate::failure::Failure;
use crate::fetched::ModelArgs;
use crate::interrupt;

/// How tokens are chosen.
#[derive(Args, Clone, Debug)]
pub struct SamplingArgs {
    /// Longest conversation, tokens, for which memory is taken; not more than the model's own.
    #[arg(long, default_value_t = 8192, value_name = "N")]
    pub context: usize,
    /// Divides the logits; 0 always takes the likeliest token.
    #[arg(long, default_value_t = 0.0, value_name = "T")]
    temperature: f32,
    /// Draw among the K likeliest tokens only; 0 is all.
    #[arg(long, default_value_t = 0, value_name = "K")]
    top_k: usize,
    /// Draw among the fewest likeliest tokens whose probabilities reach P.
    #[arg(long, default_value_t = 1.0, value_name = "P")]
    top_p: f32,
    /// Draw among tokens at least P times as likely as the likeliest.
    #[arg(long, default_value_t = 0.0, value_name = "P")]
    min_p: f32,
    /// Makes tokens that occurred less likely; 1 doesn't.
    #[arg(long, default_value_t = 1.0, value_name = "R")]
    repetition_penalty: f32,
    /// Most tokens of an answer [default: what the context holds].
    #[arg(long, value_name = "N")]
    pub max_tokens: Option<usize>,
    /// Most tokens that are guessed ahead from the text so far; 0 for none. Answers don't change.
    #[arg(long, default_value_t = 8, value_name = "N")]
    lookup: usize,
    /// A smaller model with the same tokens that guesses ahead. Answers don't change.
    #[arg(long, value_name = "MODEL")]
    draft: Option<PathBuf>,
    /// What keys and values are stored as: f32, f16, bf16, q16, q8 [default: q16; f16 with --exact; f32 if weights are].
    #[arg(long, value_name = "TYPE")]
    kv: Option<KvType>,
    /// Ends an answer where it occurs; may be given several times.
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
}

impl SamplingArgs {
    /// As the generator takes them.
    pub fn settings(&self, common: &Common) -> Settings {
        let sampling = Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            seed: common.seed.unwrap_or(0),
            ..Sampling::default()
        };
        Settings { sampling, max_tokens: self.max_tokens, stop: self.stop.clone() }
    }
}

/// Arguments of `generate`.
#[derive(Args, Debug)]
pub struct GenerateArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// The prompt: one message to the assistant or, with --raw, a text to continue.
    #[arg(long, value_name = "TEXT")]
    prompt: String,
    /// Continue the prompt as text, without the chat template.
    #[arg(long)]
    raw: bool,
    /// Report log-probabilities of the tokens and of the N likeliest at each place (with --json).
    #[arg(long, value_name = "N")]
    logprobs: Option<usize>,
    #[command(flatten)]
    sampling: SamplingArgs,
}

/// Loads a model and starts to generate with it, `sequences` at a time.
///
/// # Errors
/// What can't be read, or started.
pub fn start(
    model: &ModelArgs,
    sampling: &SamplingArgs,
    common: &Common,
    sequences: usize,
) -> Result<Assistant, Failure> {
    let cpu = common.cpu()?;
    let mut loaded = model.load(&cpu)?;
    loaded.transformer.limit_context(sampling.context);
    let options = Options::new(loaded.transformer.config(), sequences);
    let kv = sampling.kv.unwrap_or_else(|| loaded.transformer.kv_type(model.exact));
    let draft = sampling.draft.as_deref().map(|path| draft(path, &loaded, &cpu)).transpose()?;
    let options = Options { lookup: sampling.lookup, exact: model.exact, kv, draft, ..options };
    Assistant::start(loaded, cpu, options).map_err(failure)
}

/// A model that guesses for `model`, which has to have the same tokens.
fn draft(path: &Path, model: &Loaded, cpu: &Cpu) -> Result<Arc<Transformer>, Failure> {
    let draft =
        ModelArgs { model: path.to_path_buf(), exact: false, adapters: Vec::new() }.load(cpu)?;
    let sizes = [&draft, model].map(|m| m.tokenizer.vocab_size());
    let same = |id| draft.tokenizer.token_bytes(id) == model.tokenizer.token_bytes(id);
    if sizes[0] != sizes[1] || !(0..sizes[0] as u32).all(same) {
        return Err(Failure::invalid(format!("--draft {}: it has other tokens", path.display()))
            .hint(
                "A draft is a smaller model of the same family, or the same model in fewer bits.",
            ));
    }
    Ok(Arc::new(draft.transformer))
}

/// What went wrong, with what to do about it.
pub fn failure(error: AssistantError) -> Failure {
    use GenerateError as G;
    match &error {
        AssistantError::NoTemplate => {
            Failure::invalid(error).hint("--raw continues the prompt as text.")
        }
        AssistantError::Generate(G::TooLong { .. }) => {
            Failure::invalid(error).hint(
                "Shorten the prompt, lower --max-tokens, or raise --context if the model can take more.",
            )
        }
        AssistantError::Generate(G::Cancelled) => Failure::interrupted("interrupted"),
        AssistantError::Generate(G::Memory(_) | G::Thread(_) | G::Stopped) => {
            Failure::failed(error)
        }
        AssistantError::Generate(G::Sampling(SamplingError::NotANumber)) => Failure::invalid(error)
            .hint("The model's files may be damaged, or its training has diverged."),
        _ => Failure::invalid(error),
    }
}

/// Generates.
///
/// # Errors
/// What can't be read, a prompt that doesn't fit, settings that make no sense.
pub fn generate(args: &GenerateArgs, common: &Common) -> Result<Value, Failure> {
    let assistant = start(&args.model, &args.sampling, common, 1)?;
    let mut settings = args.sampling.settings(common);
    settings.sampling.logprobs = args.logprobs;
    let request = if args.raw {
        assistant.continuation(&args.prompt, &settings)
    } else {
        let message = [Message::user(args.prompt.as_str())];
        assistant.next_message(&message, None, &settings).map_err(failure)?
    };
    let tokenizer = assistant.tokenizer();
    let mut out = std::io::stdout();
    let _graceful = interrupt::graceful();
    let events = assistant.submit(request).map_err(failure)?;
    let completion = events.watch(&mut |id, text| {
        if !common.json {
            // Special tokens show too. Nobody may be there to read it.
            let special = id.filter(|id| tokenizer.is_special(*id));
            let special = special.map_or(String::new(), |id| tokenizer.decode(&[id]));
            let _ = write!(out, "{text}{special}").and_then(|()| out.flush());
        }
        if interrupt::requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let completion = completion.map_err(|e| failure(e.into()))?;
    if !common.json {
        let _ = writeln!(out);
    }
    let text = match completion.reason {
        Reason::StopString(_) => completion.text,
        _ => tokenizer.decode(&completion.tokens),
    };
    let mut value = json!({
        "text": text,
        "tokens": completion.tokens,
        "reason": completion.reason,
        "usage": completion.usage,
        "seed": settings.sampling.seed,
    });
    if args.logprobs.is_some() {
        value["logprobs"] = serde_json::to_value(completion.logprobs).map_err(Failure::failed)?;
    }
    Ok(value)
}
