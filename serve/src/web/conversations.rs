//! What is kept of conversations, over HTTP.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use store::conversations::{Conversations, Said};

use super::{Asked, Who};
use crate::App;
use crate::error::ApiError;
use crate::fields::Fields;

type Answer = Result<Json<Value>, ApiError>;

/// Which conversations are listed.
#[derive(Deserialize)]
pub struct Which {
    /// With these words.
    search: Option<String>,
    /// Changed before: milliseconds since 1970.
    before: Option<i64>,
}

pub async fn list(
    State(app): State<Arc<App>>,
    Who(who): Who,
    Asked(which): Asked<Which>,
) -> Answer {
    let found = app.keep(move |store| match which.search {
        Some(words) => store.search(who.as_deref(), &words),
        None => store.list(who.as_deref(), which.before),
    });
    Ok(Json(json!({"data": found.await?})))
}

pub async fn create(State(app): State<Arc<App>>, Who(who): Who, body: Bytes) -> Answer {
    let mut f = Fields::read(&body)?;
    let title: String = f.need("title")?;
    let settings: Value = f.take("settings")?.unwrap_or_else(|| json!({}));
    let owner = who.unwrap_or_default();
    let made = app.keep(move |store| store.create(&owner, &title, &settings)).await?;
    Ok(Json(json!(made)))
}

pub async fn read(State(app): State<Arc<App>>, Who(who): Who, Path(id): Path<String>) -> Answer {
    let both = app.keep(move |store| {
        let conversation = store.conversation(who.as_deref(), &id)?;
        Ok((conversation, store.messages(&id)?))
    });
    let (conversation, messages) = both.await?;
    let mut value = json!(conversation);
    value["messages"] = json!(messages);
    Ok(Json(value))
}

pub async fn change(
    State(app): State<Arc<App>>,
    Who(who): Who,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<StatusCode, ApiError> {
    let mut f = Fields::read(&body)?;
    let title: Option<String> = f.take("title")?;
    let settings: Option<Value> = f.take("settings")?;
    let change = move |store: &Conversations| {
        store.change(who.as_deref(), &id, title.as_deref(), settings.as_ref())
    };
    app.keep(change).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn remove(
    State(app): State<Arc<App>>,
    Who(who): Who,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    app.keep(move |store| store.remove(who.as_deref(), &id)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Keeps what somebody says: when it is answered, it is on the disk.
pub async fn say(
    State(app): State<Arc<App>>,
    Who(who): Who,
    Path(id): Path<String>,
    body: Bytes,
) -> Answer {
    let mut f = Fields::read(&body)?;
    let parent: Option<String> = f.take("parent")?;
    let (role, content): (String, String) = (f.need("role")?, f.need("content")?);
    let tool_call_id: Option<String> = f.take("tool_call_id")?;
    let said = app.keep(move |store| {
        let said = Said {
            parent: parent.as_deref(),
            role: &role,
            content: &content,
            tool_call_id: tool_call_id.as_deref(),
        };
        store.say(who.as_deref(), &id, &said)
    });
    Ok(Json(json!(said.await?)))
}

pub async fn message(State(app): State<Arc<App>>, Who(who): Who, Path(id): Path<String>) -> Answer {
    let message = app.keep(move |store| store.message(who.as_deref(), &id)).await?;
    Ok(Json(json!(message)))
}

pub async fn tokens(
    State(app): State<Arc<App>>,
    Who(who): Who,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let tokens = app.keep(move |store| store.tokens(who.as_deref(), &id)).await?;
    Ok(([(header::CONTENT_TYPE, "application/json")], tokens).into_response())
}

pub async fn judge(
    State(app): State<Arc<App>>,
    Who(who): Who,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<StatusCode, ApiError> {
    let mut f = Fields::read(&body)?;
    let thumb: i64 = f.take("thumb")?.unwrap_or(0);
    let comment: String = f.take("comment")?.unwrap_or_default();
    app.keep(move |store| store.judge(who.as_deref(), &id, thumb, &comment)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Which form feedback is exported in.
#[derive(Deserialize)]
pub struct Form {
    form: Option<String>,
}

/// What later learning reads: a line for each judged answer, or for each pair of which one is preferred.
pub async fn feedback(
    State(app): State<Arc<App>>,
    Who(who): Who,
    Asked(form): Asked<Form>,
) -> Result<Response, ApiError> {
    let pairs = match form.form.as_deref() {
        None | Some("messages") => false,
        Some("preferences") => true,
        Some(_) => return Err(ApiError::field("form", "it is messages or preferences")),
    };
    let lines = app.keep(move |store| {
        let mut lines = String::new();
        for id in store.judged(who.as_deref())? {
            let values = if pairs { store.preferences(&id)? } else { store.judgements(&id)? };
            for value in values {
                lines.push_str(&value.to_string());
                lines.push('\n');
            }
        }
        Ok(lines)
    });
    let name = if pairs { "preferences.jsonl" } else { "feedback.jsonl" };
    let disposition = format!("attachment; filename=\"{name}\"");
    let headers = [
        (header::CONTENT_TYPE, "application/jsonl".to_string()),
        (header::CONTENT_DISPOSITION, disposition),
    ];
    Ok((headers, lines.await?).into_response())
}
