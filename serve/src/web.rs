//! The page: chat, runs, and what they keep. It asks `/v1` like everybody; conversations are under `/chat`.
//!
//! ```text
//! /                                     the page, /assets/NAME, /runs: for everybody, as they hold nothing
//! /chat/conversations[/ID[/messages]]   trees of messages (store::conversations)
//! /chat/conversations/ID/answers        as /v1/chat/completions, and kept before it is shown
//! /chat/messages/ID[/tokens|/feedback]
//! /chat/feedback.jsonl                  what later learning reads
//! /chat/tools/NAME                      runs a tool
//! /runs/…                               curves and reports (runs.rs)
//! ```

mod answers;
mod assets;
mod conversations;
mod runs;

use std::path::PathBuf;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{FromRequestParts, Path, Query};
use axum::http::request::Parts;
use axum::routing::{get, post, put};
use axum::{Json, Router};
use model::message::ToolCall;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use store::conversations::{ConversationError, Conversations};
use tools::Toolbox;

use crate::App;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::rates::Caller;
use runs::Runs;

/// What the page keeps and shows.
pub struct Web {
    store: Arc<Conversations>,
    runs: Runs,
}

impl std::fmt::Debug for Web {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Web").finish_non_exhaustive()
    }
}

impl Web {
    /// Conversations that are kept, and a folder of runs.
    pub fn new(store: Conversations, runs: PathBuf) -> Web {
        Web { store: Arc::new(store), runs: Runs::new(runs) }
    }
}

/// The page itself: nothing of anybody's is in it.
pub fn pages(app: &App) -> Router<Arc<App>> {
    match app.web {
        Some(_) => assets::routes().merge(runs::pages()),
        None => Router::new(),
    }
}

/// What is somebody's.
pub fn data(app: &App) -> Router<Arc<App>> {
    if app.web.is_none() {
        return Router::new();
    }
    use conversations as c;
    let one = get(c::read).patch(c::change).delete(c::remove);
    Router::new()
        .route("/chat/about", get(about))
        .route("/chat/conversations", get(c::list).post(c::create))
        .route("/chat/conversations/{id}", one)
        .route("/chat/conversations/{id}/messages", post(c::say))
        .route("/chat/conversations/{id}/answers", post(answers::answer))
        .route("/chat/messages/{id}", get(c::message))
        .route("/chat/messages/{id}/tokens", get(c::tokens))
        .route("/chat/messages/{id}/feedback", put(c::judge))
        .route("/chat/feedback.jsonl", get(c::feedback))
        .route("/chat/tools/{name}", post(run_tool))
        .merge(runs::data())
}

/// Who asks: the name of the key; `None`, who sees all, where there are no keys.
struct Who(Option<String>);

impl FromRequestParts<Arc<App>> for Who {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<App>) -> Result<Who, ApiError> {
        let caller = parts.extensions.get::<Caller>().ok_or_else(ApiError::unauthorized)?;
        Ok(Who(caller.name.as_deref().map(String::from)))
    }
}

/// What stands behind the `?`; what is wrong with it is told as everything is.
struct Asked<T>(T);

impl<T: DeserializeOwned> FromRequestParts<Arc<App>> for Asked<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<App>) -> Result<Asked<T>, ApiError> {
        let read = Query::try_from_uri(&parts.uri);
        read.map(|Query(asked)| Asked(asked)).map_err(|e| ApiError::invalid(e.body_text()))
    }
}

impl App {
    /// The page's state; routes that need it exist only with it.
    fn web(&self) -> Result<&Web, ApiError> {
        self.web.as_ref().ok_or_else(|| ApiError::internal("the page is turned off"))
    }

    /// Asks the store, on a thread that may wait.
    async fn keep<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&Conversations) -> Result<T, ConversationError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let store = Arc::clone(&self.web()?.store);
        blocking(move || ask(&store)).await?.map_err(ApiError::from)
    }
}

/// Does what waits for the disk.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| ApiError::internal("what reads and writes files broke down"))
}

impl From<ConversationError> for ApiError {
    fn from(error: ConversationError) -> ApiError {
        match error {
            ConversationError::Field { field, why } => ApiError::field(field, why),
            ConversationError::NotThere(_) => ApiError::not_there(error.to_string()),
            ConversationError::Store(error) => ApiError::internal(error.to_string()),
        }
    }
}

async fn about(Who(who): Who) -> Json<Value> {
    Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "name": who,
        "tools": Toolbox::calculator().definitions(),
    }))
}

async fn run_tool(Path(name): Path<String>, body: Bytes) -> Result<Json<Value>, ApiError> {
    let tools = Toolbox::calculator();
    if !tools.tools.iter().any(|tool| tool.name == name) {
        return Err(ApiError::not_there(format!("no tool here is named {name:?}")));
    }
    let mut f = Fields::read(&body)?;
    let call = ToolCall { name, arguments: f.need("arguments")? };
    Ok(Json(json!({"content": tools.call(&call)})))
}
