//! `/admin/v1/limits`: how much in how long.

use axum::extract::{Path, Query};
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Value, json};
use tokrun_ledger::{Action, LimitScope, LimitSpan, LimitView, NewLimit, Quota, WARN_PERCENT, json as shown};

use super::fields::{Amount, OfWallet};
use super::{Admin, refusal};
use crate::body::Payload;
use crate::error::ApiError;

pub(super) async fn list(admin: Admin, Query(OfWallet { wallet }): Query<OfWallet>) -> Response {
    admin
        .answer(move |admin| {
            admin.require_read(wallet.as_deref())?;
            let limits = admin.app.books.limits().map_err(|error| refusal(&error))?;
            Ok(limits
                .iter()
                .filter(|limit| wallet.is_none() || limit.scope.wallet == wallet)
                .map(shown::limit)
                .collect())
        })
        .await
}

/// As `tokrun wallet limit set` has it: one of `tokens`, `credits` and `requests`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct New {
    wallet: Option<String>,
    key: Option<String>,
    project: Option<String>,
    model: Option<String>,
    tokens: Option<u64>,
    credits: Option<Amount>,
    requests: Option<u64>,
    /// Over what; requests without it are those that run at once.
    per: Option<String>,
    warn: Option<Vec<u8>>,
}

impl New {
    fn limit(self) -> Result<NewLimit, ApiError> {
        let quota = match (self.tokens, self.credits, self.requests) {
            (Some(tokens), None, None) => Quota::Tokens(tokens),
            (None, Some(Amount(credits)), None) => Quota::Credits(credits),
            (None, None, Some(requests)) => Quota::Requests(requests),
            _ => return Err(ApiError::invalid_param("tokens", "One of 'tokens', 'credits' and 'requests' is needed.")),
        };
        let span = match &self.per {
            Some(per) => span(per)?,
            None if matches!(quota, Quota::Requests(_)) => LimitSpan::Running,
            None => return Err(wrong_span()),
        };
        let scope = LimitScope { wallet: self.wallet, key: self.key, project: self.project, model: self.model };
        let warn = self.warn.unwrap_or_else(|| WARN_PERCENT.to_vec());
        Ok(NewLimit { warn, ..NewLimit::new(scope, quota, span) })
    }
}

fn span(name: &str) -> Result<LimitSpan, ApiError> {
    use LimitSpan::{Day, Hour, Minute, Month, Request, Week};
    let all = [Request, Minute, Hour, Day, Week, Month];
    all.into_iter().find(|span| span.as_str() == name).ok_or_else(wrong_span)
}

fn wrong_span() -> ApiError {
    ApiError::invalid_param("per", "'per' is request, minute, hour, day, week or month.")
}

pub(super) async fn set(admin: Admin, payload: Payload) -> Response {
    admin
        .answer(move |admin| {
            let limit = payload.parse::<New>()?.limit()?;
            require(admin, &limit.scope)?;
            let set = admin.ledger().set_limit(NewLimit { idempotency_key: admin.idempotency_key(), ..limit });
            set.map(|limit| shown::limit(&limit)).map_err(|error| refusal(&error))
        })
        .await
}

pub(super) async fn remove(admin: Admin, Path(id): Path<String>) -> Response {
    admin.answer(move |admin| remove_one(admin, &id)).await
}

fn remove_one(admin: &Admin, id: &str) -> Result<Value, ApiError> {
    admin.require(Action::Manage)?;
    let ledger = admin.ledger();
    let limits = ledger.limits().map_err(|error| refusal(&error))?;
    let found: Option<&LimitView> = limits.iter().find(|limit| limit.id == id);
    found.map_or(Ok(()), |limit| require(admin, &limit.scope))?;
    // One that was removed before is told by its idempotency key, or is unknown.
    ledger.remove_limit(id, admin.idempotency_key()).map_err(|error| refusal(&error))?;
    Ok(json!({ "id": id }))
}

/// Whoever manages others' limits does not manage their own, nor that of a key of theirs.
fn require(admin: &Admin, scope: &LimitScope) -> Result<(), ApiError> {
    admin.require(Action::Manage)?;
    scope.wallet.as_ref().map_or(Ok(()), |wallet| admin.require_of(Action::Manage, wallet))?;
    let of_key = scope.key.as_ref().and_then(|key| admin.app.ledger.key(key).ok());
    of_key.map_or(Ok(()), |key| admin.require_of(Action::Manage, &key.wallet))
}
