//! A model as somebody who can be asked: the generator, its tokenizer and its chat template.

use model::generator::{Completion, Generator, Request};
use model::message::{Message, Role};
use model::sampler::Sampling;
use model::template::ChatTemplate;
use model::tokenizer::Tokenizer;
use serde_json::Value;
use tools::reader::Speech;

use crate::Error;
use crate::ask::Speaker;

/// Tokens that end an answer: of a turn and of a text.
const ENDS: [&str; 2] = ["<|im_end|>", "<|endoftext|>"];

/// Asks a generator, always for the likeliest token.
pub struct Greedy<'a> {
    /// The model, running.
    pub generator: &'a Generator,
    /// Its tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// Its chat template; a base model has none and only completes.
    pub template: Option<&'a ChatTemplate>,
    /// The model's longest context, tokens.
    pub context: usize,
    /// Most tokens of an answer.
    pub most: usize,
    written: u64,
}

impl<'a> Greedy<'a> {
    /// Answers have at most `most` tokens, and what is left of `context`.
    pub fn new(
        generator: &'a Generator,
        tokenizer: &'a Tokenizer,
        template: Option<&'a ChatTemplate>,
        context: usize,
        most: usize,
    ) -> Greedy<'a> {
        Greedy { generator, tokenizer, template, context, most, written: 0 }
    }

    /// The answer to each prompt; nothing where `None` stands.
    fn generate(
        &mut self,
        prompts: Vec<Option<Vec<u32>>>,
        stop: &[&str],
    ) -> Result<Vec<Option<Completion>>, Error> {
        let stop_ids: Vec<u32> =
            ENDS.iter().filter_map(|end| self.tokenizer.special_id(end)).collect();
        let mut asked = Vec::new();
        for prompt in prompts.iter().flatten() {
            let room = self.context.saturating_sub(prompt.len());
            asked.push(Request {
                prompt: prompt.clone(),
                max_tokens: Some(self.most.min(room).max(1)),
                sampling: Sampling::default(), // greedy
                stop: stop.iter().map(|s| s.to_string()).collect(),
                stop_ids: stop_ids.clone(),
                ..Request::default()
            });
        }
        let mut answers = self.generator.complete(asked)?.into_iter();
        Ok(prompts
            .iter()
            .map(|prompt| {
                let answer = prompt.as_ref().and_then(|_| answers.next());
                self.written += answer.as_ref().map_or(0, |a| a.usage.generated as u64);
                answer
            })
            .collect())
    }
}

impl Speaker for Greedy<'_> {
    fn reply(
        &mut self,
        conversations: &[&[Message]],
        tools: &Value,
    ) -> Result<Vec<Message>, Error> {
        let template = self.template.ok_or_else(|| {
            Error::Setting("this model has no chat template: it can only complete text".into())
        })?;
        let tools = (!tools.is_null()).then_some(tools);
        let mut prompts = Vec::new();
        for messages in conversations {
            let (prompt, _) = template.render(messages, tools, true)?.tokens(self.tokenizer);
            // Who has called tools until the context is full has nothing left to say. A question
            // that is too long by itself is an error, which the generator tells.
            let full = prompt.len() >= self.context
                && messages.last().is_some_and(|m| m.role == Role::Tool);
            prompts.push((!full).then_some(prompt));
        }
        let speech = Speech::of(self.template, self.tokenizer);
        let asked = prompts.clone();
        let answers = self.generate(prompts, &[])?;
        let message = |(prompt, answer): (Option<Vec<u32>>, Option<Completion>)| match answer {
            Some(answer) => {
                let prompt = prompt.unwrap_or_default();
                speech.message(self.tokenizer, &prompt, &answer.tokens)
            }
            None => Message::assistant(""),
        };
        Ok(asked.into_iter().zip(answers).map(message).collect())
    }

    fn complete(&mut self, texts: &[String]) -> Result<Vec<String>, Error> {
        // As in training, a text begins after the end of another.
        let start = self.tokenizer.special_id("<|endoftext|>");
        let prompt = |text: &String| {
            Some(start.into_iter().chain(self.tokenizer.encode(text)).collect::<Vec<u32>>())
        };
        let prompts = texts.iter().map(prompt).collect();
        let answers = self.generate(prompts, &["\n"])?;
        Ok(answers.into_iter().map(|a| a.map_or(String::new(), |a| a.text)).collect())
    }

    fn tokens(&self) -> u64 {
        self.written
    }
}
