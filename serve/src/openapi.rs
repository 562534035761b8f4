//! `/openapi.json`: what can be asked, for programs. `serve/tests/openapi.rs` holds it to what requests are read for.

use axum::Json;
use serde_json::Value;

/// The document.
pub fn openapi() -> Value {
    let mut document: Value =
        serde_json::from_str(include_str!("openapi.json")).unwrap_or_default();
    document["info"]["version"] = env!("CARGO_PKG_VERSION").into();
    document
}

/// Tells it.
pub async fn told() -> Json<Value> {
    Json(openapi())
}
