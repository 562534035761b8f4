//! The server: OpenAI's API over one engine that answers many at a time.
//!
//! ```text
//! request ─► guard (host, origin, key) ─► fields ─► engine's queue ─► a thread an answer ─► JSON or events
//! ```
//!
//! A request's answer depends on the request alone (see [`model::generator`]): with the same seed it is the same
//! bytes, whatever else is running. tokio is used here, and nowhere below.

mod answer;
mod chat;
mod completions;
mod embeddings;
mod error;
mod fields;
mod guard;
mod keys;
mod listen;
mod messages;
mod metrics;
mod openapi;
mod rates;
mod receipt;
mod responses;
mod stream;
mod web;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{Uri, header};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use compute::rng::Rng;
use model::tokenizer::Tokenizer;
use serde_json::{Value, json};
use tokio::sync::mpsc::Receiver;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tools::assistant::Assistant;

use answer::{Ask, Part};
use error::ApiError;
use fields::Fields;
pub use keys::{KeyError, Keys};
pub use listen::{Tls, TlsError};
use metrics::Metrics;
pub use openapi::openapi;
pub use rates::{Caller, PerMinute};
pub use receipt::{Receipt, ReplayError, Replayed, replay};
pub use web::Web;

/// What the server takes on.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of a request.
    pub body: usize,
    /// Answers of a request.
    pub answers: usize,
    /// Answers that are computed at a time or wait for it; who asks for more is refused.
    pub places: usize,
    /// Connections that are open at a time; who comes then waits.
    pub connections: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { body: 4 << 20, answers: 16, places: 80, connections: 512 }
    }
}

/// A model of the API.
pub struct Served {
    /// Its name.
    pub name: String,
    /// What tells it from others: BLAKE3 of its files.
    pub hash: String,
    /// What answers. Its queue has to have room for all of [`Limits::places`].
    pub assistant: Assistant,
    /// How its engine is set where that changes answers, for receipts.
    pub engine: Value,
}

impl Served {
    fn tokenizer(&self) -> &Tokenizer {
        self.assistant.tokenizer()
    }
}

/// How to serve.
#[derive(Debug, Default)]
pub struct Settings {
    /// Who may ask; `None`: everybody who can reach it.
    pub keys: Option<Keys>,
    /// What all may ask for together where there are no keys.
    pub rates: PerMinute,
    /// Names that the server is reached by, beside its address.
    pub hosts: Vec<String>,
    /// What it takes on.
    pub limits: Limits,
    /// The page, if there is one.
    pub web: Option<Web>,
}

/// What all requests share.
pub struct App {
    /// The model that is asked where none is named.
    model: Arc<Served>,
    others: Vec<Arc<Served>>,
    keys: Option<Keys>,
    /// Who asks where there are no keys.
    everybody: Caller,
    hosts: Vec<String>,
    limits: Limits,
    web: Option<Web>,
    places: Arc<Semaphore>,
    metrics: Metrics,
    /// Seconds since 1970.
    started: u64,
    /// Requests so far: for their names.
    count: AtomicU64,
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs())
}

impl App {
    /// A server's state. `model` is asked where a request names none.
    pub fn new(model: Served, others: Vec<Served>, settings: Settings) -> Arc<App> {
        let Settings { keys, rates, hosts, limits, web } = settings;
        Arc::new(App {
            model: Arc::new(model),
            others: others.into_iter().map(Arc::new).collect(),
            keys,
            everybody: Caller::new(0, None, rates),
            hosts,
            places: Arc::new(Semaphore::new(limits.places)),
            limits,
            web,
            metrics: Metrics::default(),
            started: now(),
            count: AtomicU64::new(0),
        })
    }

    /// The paths.
    pub fn router(self: Arc<App>) -> Router {
        Router::new()
            .route(chat::PATH, post(chat::chat))
            .route(completions::PATH, post(completions::completions))
            .route(embeddings::PATH, post(embeddings::embeddings))
            .route(responses::PATH, post(responses::responses))
            .route(messages::PATH, post(messages::messages))
            .route("/v1/messages/count_tokens", post(messages::count))
            .route("/v1/models", get(models))
            .route("/metrics", get(metrics))
            .route("/openapi.json", get(openapi::told))
            .merge(web::data(&self))
            .layer(axum::middleware::from_fn_with_state(self.clone(), guard::guard))
            .layer(DefaultBodyLimit::max(self.limits.body))
            .merge(web::pages(&self))
            .route("/health", get(|| async { Json(json!({"status": "ok"})) }))
            .fallback(|uri: Uri| async move { ApiError::no_route(uri.path()) })
            .method_not_allowed_fallback(|| async { ApiError::no_method() })
            .with_state(self)
    }

    /// Which model is asked for; nobody has to say.
    fn find(&self, name: Option<String>) -> Result<Arc<Served>, ApiError> {
        let Some(name) = name else { return Ok(self.model.clone()) };
        let found = self.models().find(|m| m.name == name);
        found.cloned().ok_or_else(|| ApiError::no_model(&name, &self.names().join(", ")))
    }

    fn models(&self) -> impl Iterator<Item = &Arc<Served>> {
        std::iter::once(&self.model).chain(&self.others)
    }

    /// The names of the models.
    pub fn names(&self) -> Vec<&str> {
        self.models().map(|m| m.name.as_str()).collect()
    }

    /// Whether a request to a path would be taken, as far as it can be told without answering it; if not, the error.
    ///
    /// # Errors
    /// What is wrong with it, as its client is told.
    pub fn reads(&self, path: &str, body: &[u8]) -> Result<(), Value> {
        let who = &self.everybody;
        let read = match path {
            chat::PATH => Fields::read(body).and_then(|f| chat::read(self, who, f).map(drop)),
            completions::PATH => completions::read(self, who, body).map(drop),
            embeddings::PATH => embeddings::read(self, who, body).map(drop),
            responses::PATH => responses::read(self, who, body).map(drop),
            messages::PATH => messages::read(self, who, body, false).map(drop),
            "/v1/messages/count_tokens" => messages::read(self, who, body, true).map(drop),
            _ => Err(ApiError::no_route(path)),
        };
        read.map_err(|error| error.body())
    }

    /// A seed that was not there before.
    fn fresh(&self) -> u64 {
        let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_nanos() as u64);
        // As clients' seeds: whole numbers that JSON carries exactly.
        Rng::new(nanos).numbered(self.count.load(Ordering::Relaxed)).next_u64() >> 12
    }

    /// What all answers tell: the seed is the one to say to get this answer again.
    fn about(&self, kind: &str, model: &Served, seed: u64) -> Value {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        json!({
            "id": format!("{kind}-{:x}-{count:x}", self.started),
            "object": Value::Null,
            "created": now(),
            "model": model.name,
            "system_fingerprint": model.hash.get(..16),
            "seed": seed,
        })
    }

    /// A place for an answer.
    fn place(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        self.places.clone().try_acquire_owned().map_err(|_| {
            self.metrics.refused.fetch_add(1, Ordering::Relaxed);
            ApiError::busy()
        })
    }

    /// Starts all answers to a request, or none.
    fn start_all(
        self: &Arc<App>,
        caller: &Caller,
        model: &Arc<Served>,
        asks: Vec<Ask>,
    ) -> Result<Vec<Receiver<Part>>, ApiError> {
        let places = asks.iter().map(|_| self.place()).collect::<Result<Vec<_>, _>>()?;
        // Answers to one prompt cost it once.
        let prompts = asks.chunk_by(|a, b| a.request.prompt == b.request.prompt);
        let cost = prompts.map(|same| same[0].request.prompt.len()).sum();
        let start = |(ask, place)| self.start(caller.clone(), model, ask, place);
        let started = asks.into_iter().zip(places).map(start).collect::<Result<_, _>>()?;
        caller.spend(cost, Instant::now());
        Ok(started)
    }
}

async fn models(State(app): State<Arc<App>>) -> Json<Value> {
    let model = |m: &Arc<Served>| {
        json!({
            "id": m.name, "object": "model", "created": app.started, "owned_by": "homegrown",
            "max_model_len": m.assistant.context(),
        })
    };
    Json(json!({"object": "list", "data": app.models().map(model).collect::<Vec<_>>()}))
}

async fn metrics(State(app): State<Arc<App>>) -> impl IntoResponse {
    let form = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, form)], app.metrics.text())
}

/// Serves until `stop` says so or the system asks politely; then what is being answered is answered to its end.
/// `listening` is told the address. With `tls`, nothing but TLS is spoken there.
///
/// # Errors
/// An address that can't be listened on.
pub fn serve(
    app: Arc<App>,
    listen: SocketAddr,
    tls: Option<Tls>,
    listening: impl FnOnce(SocketAddr),
    stop: fn() -> bool,
) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(app.limits.places + 8)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(listen).await?;
        listening(listener.local_addr()?);
        let connections = app.limits.connections;
        listen::listen(listener, tls, app.router(), connections, stopped(stop)).await;
        Ok(())
    })
}

/// Until `stop` says so, or SIGTERM.
async fn stopped(stop: fn() -> bool) {
    let asked = async {
        while !stop() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            tokio::select! { () = asked => {}, _ = terminate.recv() => {} }
            return;
        }
    }
    #[allow(unreachable_code)]
    asked.await
}
