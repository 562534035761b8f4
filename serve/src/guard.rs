//! Who may ask: pages of other sites in a browser here may not, and where there are keys, nobody without one.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::App;
use crate::error::ApiError;

/// Names of this machine, for itself.
const OWN: [&str; 3] = ["localhost", "127.0.0.1", "[::1]"];

/// Who asks.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    /// A number for each key; 0 where there are none.
    pub owner: u64,
}

/// Looks at a request before it is read.
pub async fn guard(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    match check(&app, request.headers()) {
        Ok(caller) => request.extensions_mut().insert(caller),
        Err(error) => return error.into_response(),
    };
    let response = next.run(request).await;
    // What axum says of bodies that are too large.
    match response.status() {
        StatusCode::PAYLOAD_TOO_LARGE => ApiError::too_large(app.limits.body).into_response(),
        _ => response,
    }
}

fn check(app: &App, headers: &HeaderMap) -> Result<Caller, ApiError> {
    let text = |name: header::HeaderName| headers.get(name).map(|v| v.to_str().unwrap_or_default());
    let known = |host: &str| {
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
            _ => host,
        };
        OWN.contains(&name) || app.hosts.iter().any(|h| h == name)
    };
    // A name that a stranger's site made to mean this machine (DNS rebinding).
    if let Some(host) = text(header::HOST).filter(|host| !known(host)) {
        let why = format!("this server isn't called {host:?} (--host NAME allows it)");
        return Err(ApiError::forbidden(why));
    }
    if let Some(origin) = text(header::ORIGIN) {
        let host = origin.split_once("://").map_or(origin, |(_, host)| host);
        if !known(host) {
            return Err(ApiError::forbidden(format!(
                "pages of {origin:?} may not ask this server"
            )));
        }
    }
    let Some(keys) = &app.keys else { return Ok(Caller { owner: 0 }) };
    let key = text(header::AUTHORIZATION).and_then(|v| v.strip_prefix("Bearer "));
    match key.and_then(|key| keys.whose(key)) {
        Some((owner, _)) => Ok(Caller { owner }),
        None => Err(ApiError::unauthorized()),
    }
}
