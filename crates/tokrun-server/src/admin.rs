//! The administration of the ledger over HTTP: what `tokrun wallet`, `key` and `usage` do, by the same calls, for whoever
//! shows a key whose role allows it. What they get is what these commands print with `--output json`.
//!
//! Everything here needs a key, whoever asks: where none is needed to spend, anybody on the machine may ask. What is
//! changed is recorded in the chain with the key it was changed by. An `Idempotency-Key` makes repeating safe; keys of
//! different callers are different keys.

mod asks;
mod fields;
mod grants;
mod keys;
mod limits;
mod prices;
mod reads;
mod refusals;
mod standing;
mod wallets;

use std::sync::Arc;

use axum::Router;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::Value;
use tokrun_ledger::{Action, KeyView, Ledger};

use crate::app::App;
use crate::auth;
use crate::error::ApiError;
use crate::reply::ok;

pub(crate) use refusals::refusal;
pub(crate) use standing::Standing;

/// Longer keys are no keys.
const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;

/// All of it, under `/admin/v1`.
pub(crate) fn router() -> Router<Arc<App>> {
    Router::new()
        .route("/wallets", get(wallets::list).post(wallets::create))
        .route("/wallets/{name}", get(wallets::show).patch(wallets::change))
        .route("/wallets/{name}/freeze", post(wallets::freeze))
        .route("/wallets/{name}/thaw", post(wallets::thaw))
        .route("/wallets/{name}/close", post(wallets::close))
        .route("/wallets/{name}/delegate", post(wallets::delegate))
        .route("/wallets/{name}/revoke", post(wallets::revoke))
        .route("/wallets/{name}/grants", post(grants::grant))
        .route("/wallets/{name}/deposit", post(grants::deposit))
        .route("/wallets/{name}/statement", get(reads::statement))
        .route("/grants/{id}", axum::routing::delete(grants::void))
        .route("/transfers", post(grants::transfer))
        .route("/refunds", post(grants::refund))
        .route("/corrections", post(grants::correct))
        .route("/limits", get(limits::list).post(limits::set))
        .route("/limits/{id}", axum::routing::delete(limits::remove))
        .route("/prices", get(prices::list).post(prices::set))
        .route("/prices/{id}", axum::routing::delete(prices::remove))
        .route("/keys", get(keys::list).post(keys::create))
        .route("/keys/{id}", get(keys::show).delete(keys::revoke))
        .route("/keys/{id}/rotate", post(keys::rotate))
        .route("/requests", get(asks::list).post(asks::ask))
        .route("/requests/{id}/approve", post(asks::approve))
        .route("/requests/{id}/deny", post(asks::deny))
        .route("/usage", get(reads::usage))
        .route("/events", get(reads::events))
}

/// Whoever administers, and what they may.
pub(crate) struct Admin {
    pub(crate) app: Arc<App>,
    pub(crate) key: KeyView,
    idempotency_key: Option<String>,
}

impl FromRequestParts<Arc<App>> for Admin {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Response> {
        let key = auth::key_or_session(app, &parts.headers).await.map_err(IntoResponse::into_response)?;
        let idempotency_key = parts.headers.get("idempotency-key").map(|value| value.to_str().unwrap_or_default());
        if idempotency_key.is_some_and(|key| key.is_empty() || key.len() > IDEMPOTENCY_KEY_BYTES_MAX) {
            let message =
                format!("An idempotency key has from 1 to {IDEMPOTENCY_KEY_BYTES_MAX} visible ASCII characters.");
            return Err(ApiError::invalid_param("Idempotency-Key", message).into_response());
        }
        // Nobody finds out, or spoils, what another caller's keys were used for.
        let idempotency_key = idempotency_key.map(|sent| format!("{}:{sent}", key.id));
        Ok(Self { app: Arc::clone(app), key, idempotency_key })
    }
}

impl Admin {
    /// Does it on a thread that may block, and answers with what comes of it.
    pub(crate) async fn answer(self, work: impl FnOnce(&Self) -> Result<Value, ApiError> + Send + 'static) -> Response {
        let app = Arc::clone(&self.app);
        let done = app.blocking(move |_| work(&self)).await;
        done.map_or_else(IntoResponse::into_response, |value| ok(&value))
    }

    /// The ledger, as seen with this key: whatever it changes is recorded with it.
    pub(crate) fn ledger(&self) -> Ledger {
        self.app.ledger.acting_for(&self.key)
    }

    fn idempotency_key(&self) -> Option<String> {
        self.idempotency_key.clone()
    }

    /// Whether this key may see all wallets.
    pub(crate) fn sees_all(&self) -> bool {
        self.key.role.may(Action::Read, false)
    }

    /// Refuses what is about no wallet in particular.
    fn require(&self, action: Action) -> Result<(), ApiError> {
        if self.key.role.may(action, false) { Ok(()) } else { Err(self.forbidden()) }
    }

    /// Refuses what is about a wallet. Who may do it to nobody else's does not learn whose there are.
    pub(crate) fn require_of(&self, action: Action, wallet: &str) -> Result<(), ApiError> {
        let standing = match Standing::of(&self.app.ledger, &self.key.wallet, wallet) {
            Ok(standing) => standing,
            Err(error) if self.key.role.may(action, false) => return Err(refusal(&error)),
            Err(_) => return Err(self.forbidden()),
        };
        if self.key.role.may(action, standing.is_own(action)) { Ok(()) } else { Err(self.forbidden()) }
    }

    /// Refuses whoever may not see this wallet, or all of them where none is named.
    fn require_read(&self, wallet: Option<&str>) -> Result<(), ApiError> {
        wallet.map_or_else(|| self.require(Action::Read), |wallet| self.require_of(Action::Read, wallet))
    }

    fn forbidden(&self) -> ApiError {
        let message = format!("A key of the role {} may not do that, or not to this wallet.", self.key.role);
        ApiError::forbidden("insufficient_permissions", message)
    }
}
