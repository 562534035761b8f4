//! Runs: their curves while they train, and their reports, shown where nothing in them can do anything.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use axum::body::Bytes;
use axum::extract::{self, State};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Asked, assets, blocking};
use crate::App;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::keys;

/// Where curves are.
const STAGES: [&str; 2] = ["pretrain", "finetune"];
/// What can be opened.
const PAGES: [&str; 2] = ["report.html", "costs.html"];
/// Bytes of metrics that are told at a time.
const CHUNK: u64 = 1 << 20;
/// Largest page.
const PAGE: u64 = 64 << 20;
/// Most runs that are listed.
const LISTED: usize = 500;
/// How long nobody may look at a page before its address means nothing.
const FORGOTTEN: Duration = Duration::from_secs(600);
/// Addresses of pages at a time.
const TICKETS: usize = 256;
/// A run whose curves grew so lately is running.
const LIVE: Duration = Duration::from_secs(60);
/// Of a report: nothing in it runs or is loaded, and only our page frames it.
const POLICY: &str = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'self'";

/// A folder of runs, and which of their pages are open. A frame can't say a key, so it gets an address nobody can guess.
pub struct Runs {
    folder: PathBuf,
    open: Mutex<HashMap<String, (PathBuf, Instant)>>,
}

impl Runs {
    pub fn new(folder: PathBuf) -> Runs {
        Runs { folder, open: Mutex::default() }
    }

    /// The folder of a run; its name is a part of a path, and no more.
    fn run(&self, name: &str) -> Result<PathBuf, ApiError> {
        let plain = |c: char| c.is_alphanumeric() || "._-+ ".contains(c);
        let there = !name.starts_with('.') && name.chars().all(plain);
        let folder = self.folder.join(name);
        match there && !name.is_empty() && folder.is_dir() {
            true => Ok(folder),
            false => Err(ApiError::not_there(format!("there is no run {name:?}"))),
        }
    }

    /// An address for the pages of a run.
    fn ticket(&self, folder: PathBuf) -> Result<String, ApiError> {
        let ticket = keys::random().map_err(|e| ApiError::internal(e.to_string()))?;
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, (_, seen)| seen.elapsed() < FORGOTTEN);
        if open.len() >= TICKETS {
            let oldest = open.iter().min_by_key(|(_, (_, seen))| *seen).map(|(t, _)| t.clone());
            oldest.map(|oldest| open.remove(&oldest));
        }
        open.insert(ticket.clone(), (folder, Instant::now()));
        Ok(ticket)
    }

    fn opened(&self, ticket: &str) -> Option<PathBuf> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let (folder, seen) = open.get_mut(ticket)?;
        if seen.elapsed() >= FORGOTTEN {
            return None;
        }
        *seen = Instant::now();
        Some(folder.clone())
    }
}

/// Behind the guard.
pub fn data() -> Router<Arc<App>> {
    Router::new()
        .route("/runs/all", get(all))
        .route("/runs/of/{name}/metrics/{stage}", get(metrics))
        .route("/runs/of/{name}/open", post(open))
}

/// Before it: an address that was told is the key.
pub fn pages() -> Router<Arc<App>> {
    Router::new().route("/runs/pages/{ticket}/{page}", get(page))
}

/// Seconds since 1970 of a file's last change.
fn changed(path: &Path) -> Option<SystemTime> {
    path.metadata().ok()?.modified().ok()
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |t| t.as_secs())
}

/// What is told of a run; `None` if the folder is none.
fn describe(folder: &Path) -> Option<Value> {
    let name = folder.file_name()?.to_str()?.to_string();
    if name.starts_with('.') || !folder.join("run.json").is_file() {
        return None;
    }
    let run: Value = store::read_json(&folder.join("run.json")).unwrap_or_default();
    let curves = |stage: &&str| folder.join(stage).join("metrics.jsonl");
    let stages: Vec<&str> = STAGES.into_iter().filter(|s| curves(s).is_file()).collect();
    let files =
        stages.iter().map(curves).chain([folder.join("run.json"), folder.join("report.html")]);
    let last = files.filter_map(|file| changed(&file)).max()?;
    let grew = stages.iter().filter_map(|s| changed(&curves(s))).max();
    let live = grew.is_some_and(|at| at.elapsed().is_ok_and(|ago| ago < LIVE));
    Some(json!({
        "name": name,
        "source": run["source"],
        "command": run["command"],
        "seed": run["seed"],
        "stages": stages,
        "live": live && !folder.join("report.html").is_file(),
        "pages": PAGES.into_iter().filter(|page| folder.join(page).is_file()).collect::<Vec<_>>(),
        "changed": seconds(last),
    }))
}

async fn all(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    let folder = app.web()?.runs.folder.clone();
    let shown = folder.display().to_string();
    let runs = blocking(move || {
        let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        let mut runs: Vec<Value> = entries.filter_map(|entry| describe(&entry.path())).collect();
        runs.sort_by_key(|run| std::cmp::Reverse(run["changed"].as_u64()));
        runs.truncate(LISTED);
        runs
    });
    Ok(Json(json!({"folder": shown, "data": runs.await?})))
}

/// From where on metrics are told.
#[derive(Deserialize)]
struct From {
    /// Bytes.
    #[serde(default)]
    from: u64,
}

/// Whole lines of a run's metrics, and where the next begin. A file that got shorter is told from its start.
async fn metrics(
    State(app): State<Arc<App>>,
    extract::Path((name, stage)): extract::Path<(String, String)>,
    Asked(From { from }): Asked<From>,
) -> Result<Json<Value>, ApiError> {
    if !STAGES.contains(&stage.as_str()) {
        return Err(ApiError::not_there(format!("there is no stage {stage:?}")));
    }
    let path = app.web()?.runs.run(&name)?.join(&stage).join("metrics.jsonl");
    let read = move || -> std::io::Result<Value> {
        let mut file = File::open(&path)?;
        let length = file.metadata()?.len();
        let from = if from > length { 0 } else { from };
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        file.take(CHUNK).read_to_end(&mut bytes)?;
        let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        bytes.truncate(whole);
        let next = from + whole as u64;
        let text = String::from_utf8_lossy(&bytes);
        Ok(json!({"from": from, "next": next, "more": next < length && whole > 0, "text": text}))
    };
    let told = blocking(read).await?;
    let wrong = |e| ApiError::not_there(format!("the metrics of {name:?} can't be read: {e}"));
    Ok(Json(told.map_err(wrong)?))
}

/// Gives the pages of a run an address.
async fn open(
    State(app): State<Arc<App>>,
    extract::Path(name): extract::Path<String>,
    body: Bytes,
) -> Result<Json<Value>, ApiError> {
    let page: String = Fields::read(&body)?.need("page")?;
    let runs = &app.web()?.runs;
    let folder = runs.run(&name)?;
    if !PAGES.contains(&page.as_str()) || !folder.join(&page).is_file() {
        return Err(ApiError::not_there(format!("the run has no {page:?}")));
    }
    let ticket = runs.ticket(folder)?;
    Ok(Json(json!({"address": format!("/runs/pages/{ticket}/{page}")})))
}

async fn page(
    State(app): State<Arc<App>>,
    extract::Path((ticket, page)): extract::Path<(String, String)>,
) -> Result<Response, ApiError> {
    let gone = || ApiError::not_there("this address is no longer one: open the page again");
    let folder = app.web()?.runs.opened(&ticket).ok_or_else(gone)?;
    if !PAGES.contains(&page.as_str()) {
        return Err(gone());
    }
    let read = move || -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(folder.join(page))?.take(PAGE + 1).read_to_end(&mut bytes)?;
        match bytes.len() as u64 > PAGE {
            true => Err(std::io::Error::other(format!("it is larger than {PAGE} bytes"))),
            false => Ok(bytes),
        }
    };
    let bytes = blocking(read).await?;
    let bytes = bytes.map_err(|e| ApiError::not_there(format!("the page can't be read: {e}")))?;
    Ok(assets::page(bytes, "text/html; charset=utf-8", POLICY))
}
