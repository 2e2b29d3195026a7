//! Whether the server lives, whether it takes requests, and what it is.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::json;

use crate::app::App;
use crate::error::ApiError;
use crate::reply::{json_response, ok};

/// It answers, so it lives.
pub(crate) async fn health() -> Response {
    ok(&json!({ "status": "ok" }))
}

/// Whether it takes requests: not while it ends, and not when the ledger spends nothing.
pub(crate) async fn ready(State(app): State<Arc<App>>) -> Response {
    let not_ready = |reason: &str| {
        json_response(StatusCode::SERVICE_UNAVAILABLE, &json!({ "status": "not ready", "reason": reason }))
    };
    if app.is_draining() {
        return not_ready("the server is about to end");
    }
    let health = app.blocking(|app| app.ledger.health().map_err(|error| ApiError::internal(&error))).await;
    match health {
        Ok(health) if health.bad.is_some() => not_ready("the ledger is marked bad; see `tokrun ledger verify`"),
        Ok(_) => ok(&json!({ "status": "ready" })),
        Err(error) => error.response(crate::error::Dialect::OpenAi),
    }
}

/// What runs here.
pub(crate) async fn version() -> Response {
    ok(&json!({ "version": env!("CARGO_PKG_VERSION") }))
}
