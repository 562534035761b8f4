//! Answers as server-sent events.

use std::convert::Infallible;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use model::generator::Usage;
use serde_json::Value;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio_stream::wrappers::ReceiverStream;

use crate::answer::{End, Part, Told};
use crate::chat::add;

/// The form of what is streamed.
pub trait Streamed: Send + Sync + 'static {
    /// Before an answer.
    fn first(&self, index: usize) -> Option<Value>;
    /// A piece of its text.
    fn text(&self, index: usize, text: &str, told: &[Told]) -> Value;
    /// After it; `shown` is the text that was told.
    fn end(&self, index: usize, end: &End, shown: &str) -> Vec<Value>;
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
    let tell =
        async |value: Value| sender.send(Ok(Event::default().data(value.to_string()))).await.ok();
    if let Some(first) = form.first(index) {
        tell(first).await?;
    }
    let mut shown = String::new();
    while let Some(part) = parts.recv().await {
        match part {
            Part::Text(text, told) => {
                shown.push_str(&text);
                tell(form.text(index, &text, &told)).await?;
            }
            Part::End(end) => {
                for value in form.end(index, &end, &shown) {
                    tell(value).await?;
                }
                return Some(end.usage);
            }
            Part::Failed(error) => {
                tell(error.body()).await?;
                return None;
            }
        }
    }
    None
}
