//! Who asks, and who pays.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::HeaderMap;
use axum::http::request::Parts;
use axum::response::Response;
use tokrun_runtime::Payer;

use crate::app::App;
use crate::error::{ApiError, Dialect};
use crate::models::Model;

/// Whoever a request comes from, and what it is booked under.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// The wallet that pays.
    pub(crate) wallet: String,
    /// The name of the key.
    pub(crate) key: Option<String>,
    /// The project that the key is for.
    pub(crate) project: Option<String>,
}

impl Caller {
    /// Who pays for a request of this caller.
    pub(crate) fn payer(&self) -> Payer {
        Payer { wallet: self.wallet.clone(), key: self.key.clone(), project: self.project.clone(), ..Payer::default() }
    }

    /// Whether this caller may use a model.
    pub(crate) fn may_use(&self, _model: &Model) -> bool {
        true
    }
}

impl FromRequestParts<Arc<App>> for Caller {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Response> {
        let caller = authenticate(app, secret(&parts.headers)).await;
        caller.map_err(|error| error.response(Dialect::of(parts.uri.path())))
    }
}

/// The secret that came along: `Authorization: Bearer`, or `x-api-key` as Anthropic's clients have it.
fn secret(headers: &HeaderMap) -> Option<String> {
    let bearer = headers.get("authorization").and_then(|value| value.to_str().ok()).and_then(|value| {
        let (scheme, secret) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(secret.trim())
    });
    let secret = bearer.or_else(|| headers.get("x-api-key").and_then(|value| value.to_str().ok()));
    secret.map(str::to_owned)
}

/// Finds out whose request it is.
async fn authenticate(app: &Arc<App>, _secret: Option<String>) -> Result<Caller, ApiError> {
    match &app.options.payer {
        Some(wallet) => Ok(Caller { wallet: wallet.clone(), key: None, project: None }),
        None => Err(ApiError::unauthorized("You did not provide an API key.")),
    }
}
