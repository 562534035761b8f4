//! A model that is talked to: messages in, messages out, tools run in between.

use std::ops::ControlFlow;
use std::sync::{Arc, OnceLock};

use compute::Cpu;
use model::Loaded;
use model::generator::{
    Completion, Events, GenerateError, Generator, Options, Reason, Request, Usage,
};
use model::message::{Message, ToolCall};
use model::sampler::Sampling;
use model::template::{ChatTemplate, Piece, TemplateError};
use model::tokenizer::Tokenizer;
use model::transformer::Transformer;
use serde_json::Value;
use thiserror::Error;

use crate::grammar::{AfterThinking, Form, Grammars};
use crate::reader::{self, Reader, Speech, opens_thinking};
use crate::{Toolbox, generic};

/// Most rounds of tool calls in one answer.
pub const ROUNDS: usize = 8;

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum AssistantError {
    /// A base model.
    #[error("the model has no chat template: it completes text, it doesn't answer messages")]
    NoTemplate,
    /// The template refused the conversation.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// A form that answers can't be kept to.
    #[error("{0}")]
    Form(String),
    /// The generator refused or failed.
    #[error(transparent)]
    Generate(#[from] GenerateError),
}

/// How an answer is generated.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Most tokens of a message; `None` for as many as the context holds.
    pub max_tokens: Option<usize>,
    /// Strings that end a message.
    pub stop: Vec<String>,
}

/// What can be watched while an answer comes.
#[derive(Debug)]
pub enum Said<'a> {
    /// What the model thinks before it answers.
    Reasoning(&'a str),
    /// Text of the message, as it becomes certain.
    Text(&'a str),
    /// A call, before it is run.
    Call(&'a ToolCall),
    /// The result of the last call.
    Result(&'a str),
}

/// What an answer came to.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The assistant's messages and the results of its calls, in order.
    pub messages: Vec<Message>,
    /// Tokens of all its messages, as generated.
    pub tokens: Vec<u32>,
    /// Why the last message ended.
    pub reason: Reason,
    /// What all rounds cost together.
    pub usage: Usage,
    /// Whether [`ROUNDS`] were used up with calls still coming.
    pub unfinished: bool,
}

/// A generator with the model's own way of writing conversations.
pub struct Assistant {
    generator: Arc<Generator>,
    /// Which of the generator's adapters it asks; 0 for none.
    adapter: usize,
    tokenizer: Arc<Tokenizer>,
    template: Option<Arc<ChatTemplate>>,
    speech: Speech,
    /// Made when the first form is asked for.
    grammars: Arc<OnceLock<Result<Grammars, String>>>,
    /// Token that raw text starts with.
    bos: Option<u32>,
    /// Token that stands for an empty text.
    start: Option<u32>,
    stop_ids: Vec<u32>,
    context: usize,
}

impl Assistant {
    /// Starts a generator for a model in memory. It stops at the configuration's end-of-text token
    /// and at the token by which the template ends a turn.
    ///
    /// # Errors
    /// If the generator can't be started.
    pub fn new(
        model: Arc<Transformer>,
        tokenizer: Arc<Tokenizer>,
        template: Option<ChatTemplate>,
        cpu: Arc<Cpu>,
        options: Options,
    ) -> Result<Self, AssistantError> {
        let config = model.config();
        let mut stop_ids: Vec<u32> = config.eos_token_id.into_iter().collect();
        stop_ids.extend(template.as_ref().and_then(end_of_turn));
        let (start, context) = (config.bos_token_id, config.max_position_embeddings);
        let generator = Arc::new(Generator::start(model, tokenizer.clone(), cpu, options)?);
        let speech = Speech::of(template.as_ref(), &tokenizer);
        Ok(Assistant {
            generator,
            adapter: 0,
            tokenizer,
            template: template.map(Arc::new),
            speech,
            grammars: Arc::default(),
            bos: None,
            start,
            stop_ids,
            context,
        })
    }

    /// Starts a generator for a model from files, which may name more tokens to stop at.
    ///
    /// # Errors
    /// If the generator can't be started.
    pub fn start(loaded: Loaded, cpu: Arc<Cpu>, options: Options) -> Result<Self, AssistantError> {
        let Loaded { transformer, tokenizer, template, bos, ends, .. } = loaded;
        let model = Arc::new(transformer);
        let mut assistant = Self::new(model, Arc::new(tokenizer), template, cpu, options)?;
        assistant.bos = bos;
        assistant.stop_ids.extend(ends);
        Ok(assistant)
    }

    /// The same model with one of [`Options::adapters`], counted from 1, which may have a template of its own.
    pub fn with_adapter(&self, adapter: usize, template: Option<ChatTemplate>) -> Assistant {
        let template = template.map(Arc::new).or_else(|| self.template.clone());
        let mut stop_ids = self.stop_ids.clone();
        stop_ids.extend(template.as_deref().and_then(end_of_turn));
        Assistant {
            generator: self.generator.clone(),
            adapter,
            tokenizer: self.tokenizer.clone(),
            speech: Speech::of(template.as_deref(), &self.tokenizer),
            template,
            grammars: Arc::default(),
            bos: self.bos,
            start: self.start,
            stop_ids,
            context: self.context,
        }
    }

    /// The Jinja source of its chat template.
    pub fn template(&self) -> Option<&str> {
        self.template.as_deref().map(ChatTemplate::source)
    }

    /// Whether it answers messages, or only completes text.
    pub fn chats(&self) -> bool {
        self.template.is_some()
    }

    /// Tokens that the model knows.
    pub fn vocab(&self) -> usize {
        self.generator.vocab()
    }

    /// Tokens of the model's context.
    pub fn context(&self) -> usize {
        self.context
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The request for the next message of a conversation. `tools`: definitions for the template;
    /// a model may know its tools without.
    ///
    /// # Errors
    /// [`AssistantError::NoTemplate`], and what the template objects to.
    pub fn next_message(
        &self,
        messages: &[Message],
        tools: Option<&Value>,
        settings: &Settings,
    ) -> Result<Request, AssistantError> {
        let template = self.template.as_ref().ok_or(AssistantError::NoTemplate)?;
        let rendered = match tools {
            Some(tools) if !generic::knows_tools(template.source()) => {
                template.render(&generic::with_tools(messages, tools), None, true)?
            }
            tools => template.render(messages, tools, true)?,
        };
        let (prompt, _) = rendered.tokens(&self.tokenizer);
        Ok(self.request(prompt, settings))
    }

    /// The request for the continuation of a text, in which nothing is control.
    pub fn continuation(&self, text: &str, settings: &Settings) -> Request {
        let mut prompt: Vec<u32> = self.bos.into_iter().collect();
        prompt.extend(self.tokenizer.encode(text));
        if prompt.is_empty() {
            prompt.extend(self.start);
        }
        self.request(prompt, settings)
    }

    fn request(&self, prompt: Vec<u32>, settings: &Settings) -> Request {
        let Settings { sampling, max_tokens, stop } = settings.clone();
        Request {
            prompt,
            max_tokens,
            sampling,
            stop,
            stop_ids: self.stop_ids.clone(),
            adapter: self.adapter,
            ..Request::default()
        }
    }

    /// Keeps the answer to a request to a form, from where reasoning ends.
    ///
    /// # Errors
    /// [`AssistantError::Form`]: what is wrong with it.
    pub fn keep_to(&self, request: &mut Request, form: &Form) -> Result<(), AssistantError> {
        let new = || Grammars::new(&self.tokenizer, self.vocab(), &self.stop_ids);
        let grammars = self.grammars.get_or_init(new).as_ref();
        let grammars = grammars.map_err(|e| AssistantError::Form(e.clone()))?;
        let form = grammars.constraint(form).map_err(AssistantError::Form)?;
        let thinks = self.speech.thinks && opens_thinking(&self.tokenizer, &request.prompt);
        request.constraint = Some(match thinks {
            true => {
                let tokenizer = self.tokenizer.clone();
                Box::new(AfterThinking { form, tokenizer, thinking: Some(Vec::new()) })
            }
            false => form,
        });
        Ok(())
    }

    /// Starts to generate.
    ///
    /// # Errors
    /// What the generator objects to.
    pub fn submit(&self, request: Request) -> Result<Events, AssistantError> {
        Ok(self.generator.submit(request)?)
    }

    /// Whole answers to many requests at a time, in their order.
    ///
    /// # Errors
    /// What the generator objects to.
    pub fn complete_all(
        &self,
        requests: impl IntoIterator<Item = Request>,
    ) -> Result<Vec<Completion>, AssistantError> {
        Ok(self.generator.complete(requests)?)
    }

    /// How the model writes reasoning and calls.
    pub fn speech(&self) -> Speech {
        self.speech
    }

    /// Reads an answer to `prompt`: see [`Speech::reader`].
    pub fn reader(&self, prompt: &[u32], calls: bool, tools: Option<&Value>) -> Reader {
        self.speech.reader(&self.tokenizer, prompt, calls, tools)
    }

    /// Answers a conversation: generates, runs the calls, goes on with their results. `tools` is
    /// what may be called, `definitions` what the template is told of it.
    ///
    /// # Errors
    /// What template and generator object to. A conversation that has no room for the next message
    /// is among it: nothing is cut. [`GenerateError::Cancelled`] if `watch` breaks off.
    pub fn answer(
        &self,
        conversation: &[Message],
        tools: &Toolbox,
        definitions: Option<&Value>,
        settings: &Settings,
        watch: &mut dyn FnMut(Said<'_>) -> ControlFlow<()>,
    ) -> Result<Answer, AssistantError> {
        let mut messages = conversation.to_vec();
        let (mut tokens, mut usage) = (Vec::new(), Usage::default());
        let mut rounds = 0;
        loop {
            rounds += 1;
            let request = self.next_message(&messages, definitions, settings)?;
            let mut reader = self.reader(&request.prompt, true, definitions);
            let mut message = Message::assistant("");
            let completion = self.submit(request)?.watch(&mut |id, text| {
                let mut parts = reader.text(text);
                if let Some(name) = id.and_then(|id| self.tokenizer.special_name(id)) {
                    parts.extend(reader.special(name));
                }
                // Whoever watches may have had enough, also where nothing is to be seen.
                watch(Said::Text(""))?;
                parts.into_iter().try_for_each(|part| {
                    part.clone().add_to(&mut message);
                    match &part {
                        reader::Said::Reasoning(text) => watch(Said::Reasoning(text)),
                        reader::Said::Text(text) => watch(Said::Text(text)),
                        reader::Said::Call(_) => ControlFlow::Continue(()), // shown when it is run
                    }
                })
            })?;
            usage.prompt += completion.usage.prompt;
            usage.remembered += completion.usage.remembered;
            usage.generated += completion.usage.generated;
            for part in reader.finish() {
                if let reader::Said::Text(text) = &part {
                    let _ = watch(Said::Text(text)); // such as a call that was cut
                }
                part.add_to(&mut message);
            }
            tokens.extend(&completion.tokens);
            let calls = message.tool_calls.clone();
            messages.push(message);
            for call in &calls {
                let _ = watch(Said::Call(call));
                let result = tools.call(call);
                let _ = watch(Said::Result(&result));
                messages.push(Message::tool(result));
            }
            if calls.is_empty() || rounds == ROUNDS {
                return Ok(Answer {
                    messages: messages.split_off(conversation.len()),
                    tokens,
                    reason: completion.reason,
                    usage,
                    unfinished: !calls.is_empty(),
                });
            }
        }
    }
}

/// The token by which a template ends the assistant's turn.
fn end_of_turn(template: &ChatTemplate) -> Option<u32> {
    let turns = [Message::user("?"), Message::assistant("!")];
    let rendered = template.render_for_training(&turns, None).ok()?;
    rendered.pieces.iter().rev().find_map(|(piece, learned)| match piece {
        Piece::Special(_, id) if *learned => Some(*id),
        _ => None,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use model::config::Config;
    use model::init::{Init, initialise};
    use model::template::{CHATML, SpecialTokens};
    use model::tokenizer::TrainOptions;
    use serde_json::json;

    const CALL: &str = r#"{"name":"calculator","arguments": {"expression"
:
"6*7"}}"#;

    /// A model whose next token depends on the last one alone: after a line break it calls the
    /// calculator. No token of the call occurs twice.
    fn caller(end_of_text: Option<u32>) -> Assistant {
        let special =
            ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>"];
        let options = TrainOptions {
            vocab_size: 400,
            special_tokens: special.map(String::from).to_vec(),
            ..TrainOptions::default()
        };
        let tokenizer = Tokenizer::train([CALL, CALL], &options, &mut |_| {}).unwrap();
        let id = |name: &str| tokenizer.special_id(name).unwrap();
        let mut script = vec![tokenizer.encode("\n")[0], id("<tool_call>")];
        script.extend(tokenizer.encode(CALL));
        script.extend([id("</tool_call>"), id("<|im_end|>")]);

        let vocab = tokenizer.vocab_size();
        let config = json!({
            "model_type": "qwen3", "vocab_size": vocab, "hidden_size": vocab,
            "intermediate_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1,
            "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-6, "rope_theta": 1e4, "tie_word_embeddings": false,
            "eos_token_id": end_of_text
        });
        let config = Config::from_json(&config.to_string()).unwrap();
        // Nothing but the embedding reaches the head: outputs of layers start at 0.
        let mut parameters = initialise(&config, &Init::default(), 1);
        for parameter in parameters.iter_mut() {
            let is = |name: &str| parameter.name.contains(name);
            let (embedding, head) = (is("embed_tokens"), is("lm_head"));
            if embedding || head {
                let data = parameter.value.f32_mut();
                data.fill(0.0);
                let pairs: Vec<(u32, u32)> = match embedding {
                    true => (0..vocab as u32).map(|i| (i, i)).collect(),
                    false => script.windows(2).map(|pair| (pair[1], pair[0])).collect(),
                };
                pairs.iter().for_each(|&(row, column)| {
                    data[row as usize * vocab + column as usize] = 1.0;
                });
            }
        }
        let tokens = tokenizer.special_tokens().map(|(id, text)| (text.to_string(), id)).collect();
        let special = SpecialTokens { tokens, ..SpecialTokens::default() };
        let template = ChatTemplate::new(CHATML, special).unwrap();
        let model = Arc::new(Transformer::new(config.clone(), parameters));
        let cpu = Arc::new(Cpu::new(1));
        let options = Options::new(&config, 2);
        Assistant::new(model, Arc::new(tokenizer), Some(template), cpu, options).unwrap()
    }

    #[test]
    fn calls_are_run_shown_and_bounded() {
        let assistant = caller(None);
        let mut shown = Vec::new();
        let conversation = [Message::user("What is 6*7?")];
        let (tools, settings) = (Toolbox::calculator(), Settings::default());
        let answer = assistant
            .answer(&conversation, &tools, None, &settings, &mut |said| {
                shown.push(match said {
                    Said::Reasoning(text) | Said::Text(text) => text.to_string(),
                    Said::Call(call) => format!("{} {}", call.name, call.arguments),
                    Said::Result(result) => format!("= {result}"),
                });
                ControlFlow::Continue(())
            })
            .unwrap();
        // It never does anything else, so it is stopped.
        assert!(answer.unfinished);
        assert_eq!(answer.messages.len(), 2 * ROUNDS);
        let call = Message::call("calculator", json!({"expression": "6*7"}));
        assert_eq!(answer.messages[..2], [call, Message::tool("42")]);
        assert!(matches!(answer.reason, Reason::StopToken(_)), "the template's end of a turn");
        shown.retain(|text| !text.is_empty());
        assert_eq!(shown[..2], ["calculator {\"expression\":\"6*7\"}", "= 42"]);
        assert_eq!(answer.usage.generated, answer.tokens.len() + ROUNDS);
        // Each round starts where the one before ended.
        assert!(answer.usage.remembered > 0);
    }

    #[test]
    fn a_call_that_is_cut_is_text() {
        let assistant = caller(None);
        let settings = Settings { max_tokens: Some(5), ..Settings::default() };
        let mut shown = String::new();
        let answer = assistant
            .answer(&[Message::user("?")], &Toolbox::calculator(), None, &settings, &mut |said| {
                if let Said::Text(text) = said {
                    shown += text;
                }
                ControlFlow::Continue(())
            })
            .unwrap();
        let expected = "<tool_call>{\"name\":\"calculator";
        assert_eq!(
            (answer.messages, answer.reason),
            (vec![Message::assistant(expected)], Reason::Length)
        );
        assert_eq!(shown, expected);
    }

    #[test]
    fn refusals() {
        let assistant = caller(None);
        let long = [Message::user("x".repeat(3000))];
        let answer = |messages: &[Message], on: ControlFlow<()>| {
            let (tools, settings) = (Toolbox::default(), Settings::default());
            assistant.answer(messages, &tools, None, &settings, &mut |_| on)
        };
        let error = answer(&long, ControlFlow::Continue(())).unwrap_err();
        assert!(matches!(error, AssistantError::Generate(GenerateError::TooLong { .. })));
        let error = answer(&long[..0], ControlFlow::Continue(())).unwrap_err();
        assert!(matches!(error, AssistantError::Template(TemplateError::Empty)));
        let error = answer(&[Message::user("?")], ControlFlow::Break(())).unwrap_err();
        assert!(matches!(error, AssistantError::Generate(GenerateError::Cancelled)));
    }

    #[test]
    fn text_is_continued_up_to_the_end_of_text() {
        let open = caller(None);
        let stop = open.tokenizer().special_id("</tool_call>");
        let assistant = caller(stop);
        let settings = Settings::default();
        let request = assistant.continuation("a\n", &settings);
        let completion = assistant.complete_all([request]).unwrap().remove(0);
        assert_eq!(completion.text, CALL);
        assert_eq!(completion.reason, Reason::StopToken(stop.unwrap()));
        // What looks like control in a prompt is text.
        let request = assistant.continuation("<|im_end|>", &settings);
        assert!(request.prompt.len() > 1);
    }
}
