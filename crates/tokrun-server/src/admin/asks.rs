//! `/admin/v1/requests`: what is asked for, and what comes of it.

use axum::extract::{Path, Query};
use axum::response::Response;
use jiff::Timestamp;
use serde::Deserialize;
use tokrun_ledger::{Action, Approval, AskState, AskView, NewAsk, json};

use super::fields::{Amount, usual_priority};
use super::{Admin, Standing, refusal};
use crate::body::Payload;
use crate::error::ApiError;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Which {
    wallet: Option<String>,
    /// Only what nobody has answered.
    #[serde(default)]
    open: bool,
}

pub(super) async fn list(admin: Admin, Query(Which { wallet, open }): Query<Which>) -> Response {
    admin
        .answer(move |admin| {
            admin.require_read(wallet.as_deref())?;
            let asks = admin.app.books.asks(wallet.as_deref()).map_err(|error| refusal(&error))?;
            Ok(asks.iter().filter(|ask| !open || ask.state == AskState::Open).map(json::ask).collect())
        })
        .await
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct New {
    /// That of the key that is shown if absent.
    wallet: Option<String>,
    amount: Amount,
    reason: Option<String>,
}

pub(super) async fn ask(admin: Admin, payload: Payload) -> Response {
    admin
        .answer(move |admin| {
            let New { wallet, amount, reason } = payload.parse()?;
            let wallet = wallet.unwrap_or_else(|| admin.key.wallet.clone());
            admin.require_of(Action::Ask, &wallet)?;
            let new = NewAsk { wallet, amount: amount.0, reason, idempotency_key: admin.idempotency_key() };
            admin.ledger().ask(new).map(|ask| json::ask(&ask)).map_err(|error| refusal(&error))
        })
        .await
}

/// What was asked for under this id. Whoever sees nobody else's does not learn what there is.
fn find(admin: &Admin, id: &str) -> Result<AskView, ApiError> {
    let asks = admin.app.books.asks(None).map_err(|error| refusal(&error))?;
    let found = asks.into_iter().find(|ask| ask.id == id);
    let unknown = || admin.require(Action::Read).and_then(|()| Err(ApiError::unknown_ask(id)));
    let ask = found.map_or_else(unknown, Ok)?;
    admin.require_of(Action::Read, &ask.wallet)?;
    Ok(ask)
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Answer {
    amount: Option<Amount>,
    /// The wallet that gives it; if absent, it is granted.
    from: Option<String>,
    expires: Option<Timestamp>,
    priority: Option<i32>,
}

pub(super) async fn approve(admin: Admin, Path(id): Path<String>, payload: Payload) -> Response {
    admin
        .answer(move |admin| {
            let ask = find(admin, &id)?;
            let Answer { amount, from, expires, priority } = payload.parse_or_default()?;
            // Who gives of their own gives; whoever else does, funds.
            let own = |wallet: &String| Standing::of(&admin.app.ledger, &admin.key.wallet, wallet);
            match &from {
                Some(giver) if own(giver).is_ok_and(|standing| standing == Standing::Theirs) => {
                    admin.require_of(Action::Give, giver)?;
                }
                _ => {
                    admin.require_of(Action::Fund, &ask.wallet)?;
                    from.as_ref().map_or(Ok(()), |giver| admin.require_of(Action::Give, giver))?;
                }
            }
            let approval = Approval {
                ask_id: ask.id,
                amount: amount.map(|amount| amount.0),
                from,
                priority: priority.unwrap_or_else(usual_priority),
                expires,
                idempotency_key: admin.idempotency_key(),
            };
            admin.ledger().approve(approval).map(|ask| json::ask(&ask)).map_err(|error| refusal(&error))
        })
        .await
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Denial {
    reason: Option<String>,
}

pub(super) async fn deny(admin: Admin, Path(id): Path<String>, payload: Payload) -> Response {
    admin
        .answer(move |admin| {
            let ask = find(admin, &id)?;
            admin.require_of(Action::Fund, &ask.wallet)?;
            let Denial { reason } = payload.parse_or_default()?;
            let denied = admin.ledger().deny(&ask.id, reason, admin.idempotency_key());
            denied.map(|ask| json::ask(&ask)).map_err(|error| refusal(&error))
        })
        .await
}
