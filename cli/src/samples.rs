//! What a model writes while it is trained: the beginnings of held-out documents, continued, and
//! answers to questions.

use std::sync::Arc;

use compute::tape::Workspace;
use data::encode::{END_OF_TEXT, END_OF_TURN};
use data::jsonl::{self, Conversation};
use model::generator::{Generator, Options, Request};
use model::message::{Message, Role};
use model::template::ChatTemplate;
use model::tokenizer::Tokenizer;
use model::transformer::Transformer;
use train::Sample;

use crate::failure::Failure;
use crate::stage::Run;
use crate::tokenize::Line;

/// Documents that are continued.
const DOCUMENTS: usize = 2;
/// Questions that are asked.
const QUESTIONS: usize = 4;
/// Words that a document is given.
const WORDS: usize = 12;
/// Most tokens of a sample.
const TOKENS: usize = 80;

/// Prompts, and the tokenizer that they are read with.
pub struct Samples {
    tokenizer: Arc<Tokenizer>,
    /// As a person reads it, and as the model does.
    prompts: Vec<(String, Vec<u32>)>,
}

impl Samples {
    /// Prompts from a run's data. `template`: with it, questions too.
    ///
    /// # Errors
    /// What can't be read or rendered.
    pub fn new(
        run: &Run,
        tokenizer: &Arc<Tokenizer>,
        template: Option<&ChatTemplate>,
    ) -> Result<Samples, Failure> {
        let mut prompts = Vec::new();
        let held = run.path("data/heldout.jsonl");
        let lines = held.exists().then(|| jsonl::read::<Line>(&held)).transpose()?;
        for line in lines.into_iter().flatten().take(DOCUMENTS) {
            let text = line?.text;
            let words = text.split_inclusive(char::is_whitespace).take(WORDS);
            let start: String = words.collect::<String>().trim_end().to_string();
            let mut tokens: Vec<u32> = tokenizer.special_id(END_OF_TEXT).into_iter().collect();
            tokens.extend(tokenizer.encode(&start));
            prompts.push((start, tokens));
        }
        if let Some(template) = template {
            for messages in questions(run)? {
                let (tokens, _) = template.render(&messages, None, true)?.tokens(tokenizer);
                let asked = messages.last().map(|m| m.content.clone()).unwrap_or_default();
                prompts.push((asked, tokens));
            }
        }
        Ok(Samples { tokenizer: Arc::clone(tokenizer), prompts })
    }

    /// What a model makes of the prompts, greedily. Nothing where it can't (a prompt may fill the
    /// context).
    pub fn write(&self, model: &Transformer, ws: &Workspace) -> Vec<Sample> {
        let config = model.config();
        let options =
            Options { products: ws.products(), ..Options::new(config, self.prompts.len()) };
        let (model, cpu) = (Arc::new(model.clone()), ws.cpu().clone());
        let Ok(generator) = Generator::start(model, self.tokenizer.clone(), cpu, options) else {
            return Vec::new();
        };
        let ends = [END_OF_TEXT, END_OF_TURN];
        let stop_ids: Vec<u32> =
            ends.iter().filter_map(|end| self.tokenizer.special_id(end)).collect();
        let ask = |(text, prompt): &(String, Vec<u32>)| {
            let room = config.max_position_embeddings.saturating_sub(prompt.len());
            let request = Request {
                prompt: prompt.clone(),
                max_tokens: Some(TOKENS.min(room)),
                stop_ids: stop_ids.clone(),
                ..Request::default()
            };
            Some((text.clone(), generator.submit(request).ok()?))
        };
        let asked: Vec<_> = self.prompts.iter().filter_map(ask).collect();
        let answer = |(prompt, events): (String, model::generator::Events)| {
            let tokens = events.wait().ok()?.tokens;
            Some(Sample { prompt, text: self.tokenizer.decode(&tokens) })
        };
        asked.into_iter().filter_map(answer).collect()
    }
}

/// Questions of a run: one of each of the first tasks; or what people first say in conversations.
fn questions(run: &Run) -> Result<Vec<Vec<Message>>, Failure> {
    #[derive(serde::Deserialize)]
    struct Question {
        task: String,
        messages: Vec<Message>,
    }
    let mut list = Vec::new();
    let path = run.path("data/questions.jsonl");
    if path.exists() {
        let mut tasks = Vec::new();
        for question in jsonl::read::<Question>(&path)? {
            let question = question?;
            if list.len() < QUESTIONS && !tasks.contains(&question.task) {
                tasks.push(question.task);
                list.push(question.messages);
            }
        }
        return Ok(list);
    }
    let path = run.path("data/conversations.jsonl");
    if !path.exists() {
        return Ok(list); // a base that learns texts only
    }
    for talk in jsonl::read::<Conversation>(&path)?.take(QUESTIONS) {
        let messages = talk?.messages;
        let start = messages.iter().position(|m| m.role == Role::Assistant).unwrap_or(0);
        if start > 0 {
            list.push(messages[..start].to_vec());
        }
    }
    Ok(list)
}
