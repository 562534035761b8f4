//! Who may ask, and how much: pages of other sites in a browser here may not, and where there are keys, nobody without one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::{FromRequest, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::App;
use crate::error::ApiError;
use crate::rates::Caller;

/// Names of this machine, for itself.
const OWN: [&str; 3] = ["localhost", "127.0.0.1", "[::1]"];

/// How long a request's body may take to arrive.
const ARRIVAL: Duration = Duration::from_secs(60);

/// Looks at a request, then reads it whole. Who asks is told to what comes after.
pub async fn guard(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let anthropics = request.uri().path().starts_with("/v1/messages");
    let response = guarded(&app, request, next).await;
    if anthropics { ApiError::in_anthropics_form(response) } else { response }
}

async fn guarded(app: &App, request: Request, next: Next) -> Response {
    let caller = match check(app, request.headers()) {
        Ok(caller) => caller.clone(),
        Err(error) => return error.into_response(),
    };
    let counted = request.method() == Method::POST;
    let asked = if counted { caller.ask(Instant::now()) } else { Ok(()) };
    let mut response = match asked {
        Ok(()) => match arrived(app, request).await {
            Ok(mut request) => {
                request.extensions_mut().insert(caller.clone());
                next.run(request).await
            }
            Err(error) => error.into_response(),
        },
        Err(too_much) => ApiError::too_much(&too_much).into_response(),
    };
    if counted {
        caller.tell(response.headers_mut(), Instant::now());
    }
    response
}

/// The request with its body in memory: not too large a one, and in time.
async fn arrived(app: &App, request: Request) -> Result<Request, ApiError> {
    let (parts, body) = request.into_parts();
    let mut reading = Request::new(body);
    *reading.extensions_mut() = parts.extensions.clone();
    let reading = Bytes::from_request(reading, &());
    match tokio::time::timeout(ARRIVAL, reading).await {
        Err(_) => Err(ApiError::too_slow()),
        Ok(Ok(body)) => Ok(Request::from_parts(parts, body.into())),
        Ok(Err(error)) => Err(match error.status() {
            StatusCode::PAYLOAD_TOO_LARGE => ApiError::too_large(app.limits.body),
            _ => ApiError::invalid(error.body_text()),
        }),
    }
}

fn check<'a>(app: &'a App, headers: &HeaderMap) -> Result<&'a Caller, ApiError> {
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
    let Some(keys) = &app.keys else { return Ok(&app.everybody) };
    let bearer = text(header::AUTHORIZATION).and_then(|v| v.strip_prefix("Bearer "));
    // As clients of Anthropic's API tell theirs.
    let key = bearer.or_else(|| text(header::HeaderName::from_static("x-api-key")));
    key.and_then(|key| keys.whose(key)).ok_or_else(ApiError::unauthorized)
}
