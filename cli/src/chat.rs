//! `homegrown chat`: a conversation in the terminal, over a pipe, or from `--message`s.

mod input;
mod show;

use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use clap::Args;
use data::jsonl::Conversation;
use model::generator::{GenerateError, Reason, Usage};
use model::message::{Message, Role};
use serde_json::{Value, json};
use tools::Toolbox;
use tools::assistant::{Assistant, AssistantError, Said, Settings};

use crate::common::Common;
use crate::failure::Failure;
use crate::fetched::ModelArgs;
use crate::generate::{SamplingArgs, failure, start};
use crate::interrupt;
use input::Input;
use show::Screen;

/// Most tokens of a base model's continuation, unless --max-tokens says otherwise.
const CONTINUATION: usize = 200;

const HELP: &str = "\
/help          this
/reset         forget the conversation
/undo          forget the last question and its answer
/system TEXT   give instructions for a new conversation
/save FILE     add the conversation to a JSONL file
/quit          leave (also Ctrl-D)
A line that ends in \\ goes on in the next; \"\"\" starts and ends a text of several lines.
Ctrl-C stops an answer.";

/// Arguments of `chat`.
#[derive(Args, Debug)]
pub struct ChatArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Say this and print the answer, without a terminal; several are one conversation.
    #[arg(long, value_name = "TEXT")]
    message: Vec<String>,
    /// Instructions for the conversation.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Describe the tools to the model: for models that don't know the calculator from training.
    #[arg(long)]
    describe_tools: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
}

/// A conversation that is going on.
struct Chat {
    assistant: Assistant,
    settings: Settings,
    tools: Toolbox,
    definitions: Option<Value>,
    system: Option<String>,
    messages: Vec<Message>,
    screen: Screen,
    usage: Usage,
    seconds: f64,
    answers: Vec<String>,
}

/// Whether to go on.
enum Next {
    Go,
    Quit,
}

/// Talks.
///
/// # Errors
/// What can't be read; with `--message`, what can't be answered.
pub fn chat(args: &ChatArgs, common: &Common) -> Result<Value, Failure> {
    let assistant = start(&args.model, &args.sampling, common, 1)?;
    let tools = Toolbox::calculator();
    let mut settings = args.sampling.settings(common);
    if !assistant.chats() {
        settings.max_tokens = settings.max_tokens.or(Some(CONTINUATION));
    }
    let mut chat = Chat {
        definitions: args.describe_tools.then(|| tools.definitions()),
        assistant,
        settings,
        tools,
        system: args.system.clone(),
        messages: Vec::new(),
        screen: Screen::new(common.json),
        usage: Usage::default(),
        seconds: 0.0,
        answers: Vec::new(),
    };
    chat.reset();
    if !chat.assistant.chats() {
        chat.screen.note("This is a base model: it has no chat template and continues your text.");
        if args.system.is_some() {
            return Err(Failure::invalid("--system: a base model takes no instructions"));
        }
    }
    if args.message.is_empty() {
        let interactive = std::io::stdin().is_terminal();
        if interactive {
            chat.screen.note("/help tells what you can do; Ctrl-D leaves.");
        }
        let mut input = Input::new(interactive)?;
        while let Some(text) = input.next()? {
            match chat.take(&text) {
                Ok(Next::Go) => {}
                Ok(Next::Quit) => break,
                // Somebody is there to do something about it.
                Err(failure) if interactive => chat.screen.note(&format!("error: {failure}")),
                Err(failure) => return Err(failure),
            }
        }
    } else {
        for message in &args.message {
            chat.say(message)?;
        }
    }
    Ok(json!({
        "messages": chat.messages,
        "answers": chat.answers,
        "usage": chat.usage,
        "tokens_per_s": rate(chat.usage.generated, chat.seconds),
    }))
}

impl Chat {
    /// Takes what was typed: a command or a message.
    fn take(&mut self, text: &str) -> Result<Next, Failure> {
        let typed = text.trim();
        if typed.is_empty() {
            return Ok(Next::Go);
        }
        if !typed.starts_with('/') {
            self.say(text)?;
            return Ok(Next::Go);
        }
        let (command, argument) = typed.split_once(char::is_whitespace).unwrap_or((typed, ""));
        let argument = argument.trim();
        match command {
            "/help" => self.screen.note(HELP),
            "/quit" | "/exit" => return Ok(Next::Quit),
            "/reset" => {
                self.reset();
                self.screen.note("Forgotten.");
            }
            "/undo" => match self.messages.iter().rposition(|m| m.role == Role::User) {
                Some(last) => {
                    self.messages.truncate(last);
                    self.screen.note("Forgotten.");
                }
                None => self.screen.note("There is nothing to undo."),
            },
            "/system" if !self.assistant.chats() => {
                self.screen.note("A base model takes no instructions.");
            }
            "/system" => {
                self.system = (!argument.is_empty()).then(|| argument.to_string());
                self.reset();
                let what = if argument.is_empty() { "without" } else { "with these" };
                self.screen.note(&format!("A new conversation, {what} instructions."));
            }
            "/save" if argument.is_empty() => self.screen.note("/save FILE: a name is missing."),
            "/save" => {
                save(Path::new(argument), &self.messages)?;
                self.screen.note(&format!("Added to {argument}."));
            }
            _ => self.screen.note(&format!("{command} is not known; /help lists what is.")),
        }
        Ok(Next::Go)
    }

    /// Starts anew.
    fn reset(&mut self) {
        self.messages = self.system.iter().map(Message::system).collect();
    }

    /// Says something and shows the answer. After an error the conversation is as before.
    fn say(&mut self, text: &str) -> Result<(), Failure> {
        let (start, before) = (Instant::now(), self.usage);
        let _graceful = interrupt::graceful();
        let result = if self.assistant.chats() { self.ask(text) } else { self.complete(text) };
        self.screen.end();
        interrupt::clear();
        let reason = match result {
            Ok(reason) => reason,
            Err(AssistantError::Generate(GenerateError::Cancelled)) => {
                self.screen.note("[stopped; question and answer are forgotten]");
                return Ok(());
            }
            Err(AssistantError::Generate(error @ GenerateError::TooLong { .. })) => {
                let hint = "The conversation has grown too long: /reset starts anew, /undo takes \
                            the last answer back; or lower --max-tokens.";
                return Err(Failure::invalid(error).hint(hint));
            }
            Err(error) => return Err(failure(error)),
        };
        let seconds = start.elapsed().as_secs_f64();
        self.seconds += seconds;
        let tokens = self.usage.generated - before.generated;
        let mut note = format!("[{tokens} tokens, {:.0} tokens/s", rate(tokens, seconds));
        if reason == Reason::Length {
            note += match self.settings.max_tokens {
                Some(_) => "; cut off at --max-tokens",
                None => "; cut off, the context is full",
            };
        }
        self.screen.note(&(note + "]"));
        Ok(())
    }

    fn ask(&mut self, text: &str) -> Result<Reason, AssistantError> {
        let mut conversation = self.messages.clone();
        conversation.push(Message::user(text));
        let screen = &mut self.screen;
        let mut last = None;
        let definitions = self.definitions.as_ref();
        let answer = self.assistant.answer(
            &conversation,
            &self.tools,
            definitions,
            &self.settings,
            &mut |said| {
                match said {
                    Said::Reasoning(text) => screen.aside(text),
                    Said::Text(text) => screen.text(text),
                    Said::Call(call) => last = Some(call.clone()),
                    Said::Result(result) => {
                        let call = last.take();
                        let call = call.map_or(String::new(), |c| show::call(&c));
                        screen.note(&format!("[{call} = {result}]"));
                    }
                }
                go_on()
            },
        )?;
        self.add(answer.usage);
        conversation.extend(answer.messages);
        self.messages = conversation;
        self.answers.push(self.messages.last().map_or(String::new(), |m| m.content.clone()));
        if answer.unfinished {
            self.screen.note("[it called tools again and again, and was stopped]");
        }
        Ok(answer.reason)
    }

    /// A base model's continuation. Nothing is remembered: the next text stands alone.
    fn complete(&mut self, text: &str) -> Result<Reason, AssistantError> {
        let request = self.assistant.continuation(text, &self.settings);
        let screen = &mut self.screen;
        let completion = self.assistant.submit(request)?.watch(&mut |_, text| {
            screen.text(text);
            go_on()
        })?;
        self.add(completion.usage);
        self.answers.push(completion.text);
        Ok(completion.reason)
    }

    fn add(&mut self, usage: Usage) {
        self.usage.prompt += usage.prompt;
        self.usage.remembered += usage.remembered;
        self.usage.generated += usage.generated;
    }
}

/// Until Ctrl-C.
fn go_on() -> ControlFlow<()> {
    if interrupt::requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}

/// Tokens per second.
fn rate(tokens: usize, seconds: f64) -> f64 {
    tokens as f64 / seconds.max(1e-9)
}

/// Adds a conversation to a file of them, as data for fine-tuning.
fn save(path: &Path, messages: &[Message]) -> Result<(), Failure> {
    let mut text = if path.exists() { store::read_text(path)? } else { String::new() };
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    let conversation = Conversation { messages: messages.to_vec(), tools: None };
    text += &serde_json::to_string(&conversation).map_err(Failure::failed)?;
    text.push('\n');
    Ok(store::write_atomic(path, text.as_bytes())?)
}
