//! `/admin/v1/wallets`: who has how much, and what a wallet is.

use axum::extract::Path;
use axum::response::Response;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;
use tokrun_ledger::{Action, Closing, Credits, Delegate, DrawTerms, NewWallet, Period, WalletChange, WalletKind, json};

use super::fields::{Amount, Cap, Parsed, plain, said};
use super::{Admin, refusal};
use crate::body::Payload;
use crate::error::ApiError;

/// Where a wallet stands, and what it may spend beside its grants.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Terms {
    /// Of a wallet that is to be created.
    wallet: Option<String>,
    kind: Option<String>,
    /// `null`: under none.
    #[serde(default, deserialize_with = "said")]
    parent: Option<Option<String>>,
    /// `null`: the parent's.
    #[serde(default, deserialize_with = "said")]
    zone: Option<Option<String>>,
    overdraft: Option<Amount>,
    draw: Option<Cap>,
    draw_every: Option<Parsed<Period>>,
}

impl Terms {
    fn change(self) -> Result<WalletChange, ApiError> {
        let every = plain(self.draw_every);
        if every.is_some() && self.draw.is_none() {
            return Err(ApiError::invalid_param("draw_every", "'draw_every' is of 'draw', which is missing."));
        }
        Ok(WalletChange {
            kind: self.kind.as_deref().map(kind).transpose()?,
            parent: self.parent,
            zone: self.zone,
            overdraft: self.overdraft.map(|amount| amount.0),
            draw: self.draw.map(|cap| DrawTerms { cap: cap.0, every }),
            idempotency_key: None,
        })
    }
}

fn kind(name: &str) -> Result<WalletKind, ApiError> {
    let all = [WalletKind::Organisation, WalletKind::Team, WalletKind::Person, WalletKind::Service];
    let found = all.into_iter().find(|kind| kind.as_str() == name);
    found.ok_or_else(|| ApiError::invalid_param("kind", "'kind' is organisation, team, person or service."))
}

pub(super) async fn list(admin: Admin) -> Response {
    admin
        .answer(|admin| {
            admin.require(Action::Read)?;
            let wallets = admin.app.books.wallets().map_err(|error| refusal(&error))?;
            Ok(wallets.iter().map(json::wallet).collect())
        })
        .await
}

pub(super) async fn show(admin: Admin, Path(name): Path<String>) -> Response {
    admin
        .answer(move |admin| {
            admin.require_of(Action::Read, &name)?;
            let ledger = &admin.app.books;
            let shown = ledger.wallet(&name).and_then(|wallet| {
                let lasts = ledger.forecast(&name)?;
                Ok(json::wallet_with_forecast(&wallet, lasts.as_ref()))
            });
            shown.map_err(|error| refusal(&error))
        })
        .await
}

pub(super) async fn create(admin: Admin, payload: Payload) -> Response {
    admin
        .answer(move |admin| {
            admin.require(Action::Manage)?;
            let mut terms: Terms = payload.parse()?;
            let name = terms.wallet.take();
            let name = name.ok_or_else(|| ApiError::invalid_param("wallet", "'wallet' is missing: its name."))?;
            let change = terms.change()?;
            let new = NewWallet {
                kind: change.kind.unwrap_or(WalletKind::Person),
                parent: change.parent.flatten(),
                zone: change.zone.flatten(),
                overdraft: change.overdraft.unwrap_or(Credits::ZERO),
                draw: change.draw,
                idempotency_key: admin.idempotency_key(),
                ..NewWallet::new(name)
            };
            admin.ledger().open_wallet(new).map(|wallet| json::wallet(&wallet)).map_err(|error| refusal(&error))
        })
        .await
}

pub(super) async fn change(admin: Admin, Path(name): Path<String>, payload: Payload) -> Response {
    admin
        .answer(move |admin| {
            admin.require_of(Action::Manage, &name)?;
            let terms: Terms = payload.parse()?;
            if terms.wallet.is_some() {
                return Err(ApiError::invalid_param("wallet", "A wallet keeps its name."));
            }
            let change = WalletChange { idempotency_key: admin.idempotency_key(), ..terms.change()? };
            let changed = admin.ledger().change_wallet(&name, change);
            changed.map(|wallet| json::wallet(&wallet)).map_err(|error| refusal(&error))
        })
        .await
}

pub(super) async fn freeze(admin: Admin, Path(name): Path<String>) -> Response {
    admin.answer(move |admin| set_frozen(admin, &name, true)).await
}

pub(super) async fn thaw(admin: Admin, Path(name): Path<String>) -> Response {
    admin.answer(move |admin| set_frozen(admin, &name, false)).await
}

fn set_frozen(admin: &Admin, name: &str, frozen: bool) -> Result<Value, ApiError> {
    admin.require_of(Action::Manage, name)?;
    let (ledger, key) = (admin.ledger(), admin.idempotency_key());
    let wallet = if frozen { ledger.freeze(name, key) } else { ledger.thaw(name, key) };
    wallet.map(|wallet| json::wallet(&wallet)).map_err(|error| refusal(&error))
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Close {
    /// The wallet that gets what is left; without it, what is left is void.
    to: Option<String>,
}

pub(super) async fn close(admin: Admin, Path(name): Path<String>, payload: Payload) -> Response {
    admin
        .answer(move |admin| {
            admin.require_of(Action::Manage, &name)?;
            let Close { to } = payload.parse_or_default()?;
            // It would be a grant to whoever gets the rest.
            to.as_ref().map_or(Ok(()), |heir| admin.require_of(Action::Fund, heir))?;
            let closing = Closing { wallet: name, to, idempotency_key: admin.idempotency_key() };
            admin.ledger().close(closing).map(|wallet| json::wallet(&wallet)).map_err(|error| refusal(&error))
        })
        .await
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Delegated {
    /// Of the new wallet.
    name: String,
    amount: Amount,
    expires: Option<Timestamp>,
    memo: Option<String>,
}

pub(super) async fn delegate(admin: Admin, Path(from): Path<String>, payload: Payload) -> Response {
    admin
        .answer(move |admin| {
            admin.require_of(Action::Give, &from)?;
            let Delegated { name, amount, expires, memo } = payload.parse()?;
            let idempotency_key = admin.idempotency_key();
            let delegate = Delegate { from, name, amount: amount.0, expires, memo, idempotency_key };
            admin.ledger().delegate(delegate).map(|wallet| json::wallet(&wallet)).map_err(|error| refusal(&error))
        })
        .await
}

/// Takes a delegation back. It is theirs who gave it.
pub(super) async fn revoke(admin: Admin, Path(name): Path<String>) -> Response {
    admin
        .answer(move |admin| {
            let ledger = admin.ledger();
            let delegation = ledger.wallet(&name).ok().and_then(|wallet| wallet.delegation);
            admin.require_of(Action::Give, delegation.as_ref().map_or(&name, |delegation| &delegation.from))?;
            ledger
                .revoke(&name, admin.idempotency_key())
                .map(|wallet| json::wallet(&wallet))
                .map_err(|error| refusal(&error))
        })
        .await
}
