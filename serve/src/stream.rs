//! Answers as server-sent events.

use std::convert::Infallible;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use model::generator::Usage;
use model::sampler::Logprobs;
use serde_json::Value;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{StreamExt, StreamMap};
use tools::reader::Said;

use crate::answer::{End, Part, Piece};
use crate::chat::add;
use crate::error::ApiError;

/// The form of what is streamed.
pub trait Streamed: Send + Sync + 'static {
    /// Before an answer.
    fn first(&self, index: usize) -> Option<Value>;
    /// What the model thinks of the prompt's tokens.
    fn prompt(&self, _index: usize, _all: &[Logprobs]) -> Option<Value> {
        None
    }
    /// A piece of it; `calls` of tools came before.
    fn said(&self, index: usize, piece: &Piece, calls: usize) -> Value;
    /// After it.
    fn end(&self, index: usize, end: &End) -> Value;
    /// After all of them.
    fn usage(&self, usage: &Usage) -> Option<Value>;
}

/// Streams answers side by side, as they come, then `[DONE]`. Who goes away ends them.
pub fn stream(answers: Vec<Receiver<Part>>, form: impl Streamed) -> Response {
    let (sender, receiver) = channel::<Result<Event, Infallible>>(64);
    tokio::spawn(async move {
        // Nobody listens any more, or an answer failed, which was told.
        let _ = all(answers, &form, &sender).await;
    });
    Sse::new(ReceiverStream::new(receiver)).keep_alive(KeepAlive::default()).into_response()
}

/// Streams all answers; `None` if nobody listens any more, or one failed or broke off.
async fn all(
    answers: Vec<Receiver<Part>>,
    form: &impl Streamed,
    sender: &Sender<Result<Event, Infallible>>,
) -> Option<()> {
    let tell = async |value: Option<Value>| match value {
        Some(value) => sender.send(Ok(Event::default().data(value.to_string()))).await.ok(),
        None => Some(()),
    };
    let (mut usage, mut calls) = (Usage::default(), vec![0; answers.len()]);
    let (mut open, mut left) = (StreamMap::new(), answers.len());
    for (index, answer) in answers.into_iter().enumerate() {
        tell(form.first(index)).await?;
        open.insert(index, ReceiverStream::new(answer));
    }
    while let Some((index, part)) = open.next().await {
        match part {
            Part::Prompt(all) => tell(form.prompt(index, &all)).await?,
            Part::Said(piece) => {
                tell(Some(form.said(index, &piece, calls[index]))).await?;
                calls[index] += piece.said.iter().filter(|s| matches!(s, Said::Call(_))).count();
            }
            Part::End(end) => {
                tell(Some(form.end(index, &end))).await?;
                add(&mut usage, &end.usage, index);
                left -= 1;
            }
            Part::Failed(error) => {
                tell(Some(error.body())).await?;
                return None;
            }
        }
    }
    if left > 0 {
        return None;
    }
    tell(form.usage(&usage)).await?;
    sender.send(Ok(Event::default().data("[DONE]"))).await.ok()
}

/// The form of one answer as events with names; each is its event's `type`. It gathers what was said, so that
/// at the end it is the whole answer, too.
pub trait Named: Send + 'static {
    /// Before the answer.
    fn first(&mut self) -> Vec<Value>;
    /// A piece of it.
    fn said(&mut self, piece: Piece) -> Vec<Value>;
    /// After it.
    fn end(&mut self, end: End) -> Vec<Value>;
    /// In its place, or in the middle of it.
    fn failed(&mut self, error: &ApiError) -> Vec<Value>;
}

/// Streams one answer. Who goes away ends it.
pub fn named(mut parts: Receiver<Part>, mut form: impl Named) -> Response {
    let (sender, receiver) = channel::<Result<Event, Infallible>>(64);
    tokio::spawn(async move {
        let (mut events, mut ended) = (form.first(), false);
        loop {
            for value in events {
                let name = value["type"].as_str().unwrap_or_default();
                let event = Event::default().event(name).data(value.to_string());
                if sender.send(Ok(event)).await.is_err() {
                    return;
                }
            }
            if ended {
                return;
            }
            let part = parts.recv().await;
            ended = !matches!(part, Some(Part::Said(_) | Part::Prompt(_)));
            events = match part {
                Some(Part::Said(piece)) => form.said(piece),
                Some(Part::Prompt(_)) => Vec::new(),
                Some(Part::End(end)) => form.end(*end),
                Some(Part::Failed(error)) => form.failed(&error),
                None => form.failed(&ApiError::internal("the answer broke off")),
            };
        }
    });
    Sse::new(ReceiverStream::new(receiver)).keep_alive(KeepAlive::default()).into_response()
}

/// Waits for the end of an answer, and returns what its form is then.
///
/// # Errors
/// Why there is none.
pub async fn ended<F: Named>(mut parts: Receiver<Part>, mut form: F) -> Result<F, ApiError> {
    while let Some(part) = parts.recv().await {
        match part {
            Part::Prompt(_) => {}
            Part::Said(piece) => drop(form.said(piece)),
            Part::End(end) => {
                form.end(*end);
                return Ok(form);
            }
            Part::Failed(error) => return Err(error),
        }
    }
    Err(ApiError::internal("the answer broke off"))
}
