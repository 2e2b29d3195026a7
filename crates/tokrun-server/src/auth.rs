//! Who asks, and who pays.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use axum::response::Response;
use jiff::Timestamp;
use tokrun_ledger::{Action, KeyView, ModelScope, Role};
use tokrun_runtime::Payer;

use crate::app::App;
use crate::error::{ApiError, Dialect};
use crate::models::Model;
use crate::sessions;

/// Whoever a request comes from, and what it is booked under.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// The wallet that pays.
    pub(crate) wallet: String,
    /// The name of the key.
    pub(crate) key: Option<String>,
    /// The project: that of the key, else the one that the client names.
    pub(crate) project: Option<String>,
    /// What else this caller may do. Without a key it is whoever owns the machine.
    pub(crate) role: Role,
    models: Option<ModelScope>,
}

impl Caller {
    /// Whoever asks without a key, where that is allowed.
    pub(crate) fn owner(wallet: &str) -> Self {
        Self { wallet: wallet.to_owned(), key: None, project: None, role: Role::Admin, models: None }
    }

    /// Who pays for a request of this caller.
    pub(crate) fn payer(&self) -> Payer {
        Payer { wallet: self.wallet.clone(), key: self.key.clone(), project: self.project.clone(), ..Payer::default() }
    }

    /// Whether this caller may use a model.
    pub(crate) fn may_use(&self, model: &Model) -> bool {
        self.may_use_named(model.name())
    }

    /// Whether this caller may use the model of this name.
    pub(crate) fn may_use_named(&self, model: &str) -> bool {
        self.models.as_ref().is_none_or(|models| models.has(model))
    }

    /// Refuses what this caller's role does not allow. `own`: it is about the caller's own wallet.
    pub(crate) fn require(&self, action: Action, own: bool) -> Result<(), ApiError> {
        if self.role.may(action, own) {
            return Ok(());
        }
        Err(ApiError::forbidden(
            "insufficient_permissions",
            format!("A key of the role {} may not do that.", self.role),
        ))
    }
}

impl From<KeyView> for Caller {
    fn from(key: KeyView) -> Self {
        Self { wallet: key.wallet, key: Some(key.name), project: key.project, role: key.role, models: key.models }
    }
}

impl FromRequestParts<Arc<App>> for Caller {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Response> {
        let caller = authenticate(app, secret(&parts.headers), parts.headers.contains_key(header::ORIGIN)).await;
        let mut caller = caller.map_err(|error| error.response(Dialect::of(parts.uri.path())))?;
        let project = parts.headers.get("openai-project").and_then(|value| value.to_str().ok());
        // The ledger refuses one that the key is not for.
        caller.project = project.map(str::to_owned).or(caller.project);
        Ok(caller)
    }
}

/// The secret that came along: `Authorization: Bearer`, or `x-api-key` as Anthropic's clients have it.
pub(crate) fn secret(headers: &HeaderMap) -> Option<String> {
    let bearer = headers.get("authorization").and_then(|value| value.to_str().ok()).and_then(|value| {
        let (scheme, secret) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(secret.trim())
    });
    let secret = bearer.or_else(|| headers.get("x-api-key").and_then(|value| value.to_str().ok()));
    secret.map(str::to_owned)
}

/// The key that somebody administers with: its secret came along, or that of a session which it was shown to once.
pub(crate) async fn key_or_session(app: &Arc<App>, headers: &HeaderMap) -> Result<KeyView, ApiError> {
    let secret = secret(headers).ok_or_else(|| ApiError::unauthorized("You did not provide an API key."))?;
    let key = app.blocking(move |app| {
        if secret.starts_with(sessions::PREFIX) {
            let key_id = app.sessions.key_id(&secret);
            return valid_key(app, &key_id.ok_or_else(|| ApiError::unauthorized("This session has ended."))?);
        }
        app.ledger.authenticate(&secret).map_err(|error| ApiError::from(&error))
    });
    key.await
}

/// The key of this id, if it is still good for anything.
pub(crate) fn valid_key(app: &App, key_id: &str) -> Result<KeyView, ApiError> {
    let key = app.ledger.key(key_id).map_err(|_| ApiError::unauthorized("This session has ended."))?;
    let is_valid = key.state(Timestamp::now()) == "valid";
    if is_valid { Ok(key) } else { Err(ApiError::unauthorized("This session has ended.")) }
}

/// How the secret of a key begins, a mistyped one's too.
const KEY_PREFIX: &str = "tkr-";

/// Finds out whose request it is. Where none needs a key, clients that insist on one may send anything that is none; a page
/// in a browser needs one all the same: any page that somebody opens could ask, and would spend what is theirs.
async fn authenticate(app: &Arc<App>, secret: Option<String>, is_page: bool) -> Result<Caller, ApiError> {
    match (&app.options.payer, secret.filter(|secret| app.options.payer.is_none() || secret.starts_with(KEY_PREFIX))) {
        (Some(_), None) if is_page => {
            let message = "Pages in a browser need an access key; create one with `tokrun key create`.";
            Err(ApiError::forbidden("key_needed", message))
        }
        (Some(payer), None) => Ok(Caller::owner(payer)),
        (None, None) => Err(ApiError::unauthorized("You did not provide an API key.")),
        (_, Some(secret)) => {
            let key = app.blocking(move |app| app.ledger.authenticate(&secret).map_err(|error| ApiError::from(&error)));
            key.await.map(Caller::from)
        }
    }
}
