//! Answers as server-sent events.

use std::convert::Infallible;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use model::generator::Usage;
use model::sampler::Logprobs;
use serde_json::Value;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio_stream::wrappers::ReceiverStream;
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

/// Streams several answers at a time, then `[DONE]`. Who goes away ends them.
pub fn stream(answers: Vec<Receiver<Part>>, form: impl Streamed) -> Response {
    let (sender, receiver) = channel::<Result<Event, Infallible>>(64);
    tokio::spawn(async move {
        let mut usage = Usage::default();
        let form = &form;
        // One after the other in the stream; the engine answers them together.
        for (index, answer) in answers.into_iter().enumerate() {
            match one(index, answer, form, &sender).await {
                Some(of) => add(&mut usage, &of, index),
                None => return,
            }
        }
        let last = form.usage(&usage).map(|value| value.to_string());
        for data in last.into_iter().chain(["[DONE]".to_string()]) {
            if sender.send(Ok(Event::default().data(data))).await.is_err() {
                return;
            }
        }
    });
    Sse::new(ReceiverStream::new(receiver)).keep_alive(KeepAlive::default()).into_response()
}

/// Streams one answer; `None` if nobody listens any more, or it failed.
async fn one(
    index: usize,
    mut parts: Receiver<Part>,
    form: &impl Streamed,
    sender: &Sender<Result<Event, Infallible>>,
) -> Option<Usage> {
    let tell = async |value: Option<Value>| match value {
        Some(value) => sender.send(Ok(Event::default().data(value.to_string()))).await.ok(),
        None => Some(()),
    };
    tell(form.first(index)).await?;
    let mut calls = 0;
    while let Some(part) = parts.recv().await {
        match part {
            Part::Prompt(all) => tell(form.prompt(index, &all)).await?,
            Part::Said(piece) => {
                tell(Some(form.said(index, &piece, calls))).await?;
                calls += piece.said.iter().filter(|said| matches!(said, Said::Call(_))).count();
            }
            Part::End(end) => {
                tell(Some(form.end(index, &end))).await?;
                return Some(end.usage);
            }
            Part::Failed(error) => {
                tell(Some(error.body())).await?;
                return None;
            }
        }
    }
    None
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
