//! The page's files: in the program, nothing from elsewhere.

use std::sync::Arc;

use axum::Router;
use axum::extract::Path;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::App;
use crate::error::ApiError;

/// Nothing is loaded but from here, nothing runs but files, nobody frames the page. A report of a run is framed by it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
    img-src 'self' data:; frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

macro_rules! assets {
    ($($name:literal),* $(,)?) => { [$(($name, include_str!(concat!("../../web/", $name)))),*] };
}

const ASSETS: &[(&str, &str)] = &assets![
    "api.js",
    "chart.js",
    "chat.css",
    "chat.js",
    "column.js",
    "dom.js",
    "highlight.js",
    "icon.svg",
    "icons.js",
    "index.html",
    "inline.js",
    "main.js",
    "markdown.js",
    "message.js",
    "runs.css",
    "runs.html",
    "runs.js",
    "settings.js",
    "sidebar.js",
    "stream.js",
    "style.css",
    "theme.js",
    "tokens.js",
    "tools.js",
    "tree.js",
];

pub fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/", get(|| async { asset("index.html") }))
        .route("/runs", get(|| async { asset("runs.html") }))
        .route("/assets/{name}", get(|Path(name): Path<String>| async move { asset(&name) }))
}

fn asset(name: &str) -> Response {
    let Some((_, text)) = ASSETS.iter().find(|(of, _)| *of == name) else {
        return ApiError::not_there(format!("there is no /assets/{name}")).into_response();
    };
    let kind = match name.rsplit_once('.') {
        Some((_, "html")) => "text/html; charset=utf-8",
        Some((_, "css")) => "text/css; charset=utf-8",
        Some((_, "js")) => "text/javascript; charset=utf-8",
        Some((_, "svg")) => "image/svg+xml",
        _ => "application/octet-stream",
    };
    page(*text, kind, POLICY)
}

/// An answer with the headers of all pages. A page of today's program is not one of yesterday's.
pub fn page(text: impl IntoResponse, kind: &'static str, policy: &'static str) -> Response {
    let mut response = text.into_response();
    for (name, value) in [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-cache"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}
