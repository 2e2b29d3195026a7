//! `/admin/v1/wallets/{name}/grants` and what else moves credits.

use axum::extract::Path;
use axum::response::Response;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;
use tokrun_ledger::{
    Action, Correction, CreditValue, Credits, Deposit, GrantRequest, LedgerError, ModelScope, Period, RecurringGrant,
    Refund, Transfer, Vesting, json,
};

use super::fields::{Amount, Parsed, plain, terms, usual_priority};
use super::{Admin, Standing, refusal};
use crate::body::Payload;
use crate::error::ApiError;

/// As `tokrun wallet grant` has it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Grant {
    amount: Amount,
    #[serde(default = "usual_priority")]
    priority: i32,
    effective: Option<Timestamp>,
    expires: Option<Timestamp>,
    memo: Option<String>,
    /// Again and again.
    every: Option<Parsed<Period>>,
    on: Option<u8>,
    until: Option<Timestamp>,
    rollover: Option<Amount>,
    /// In so many parts.
    vest: Option<u32>,
    vest_every: Option<Parsed<Period>>,
    #[serde(default)]
    cliff: u32,
    models: Option<Parsed<ModelScope>>,
    #[serde(default)]
    promotional: bool,
    value: Option<Parsed<CreditValue>>,
}

impl Grant {
    /// Refuses what would be passed over.
    fn check(&self) -> Result<(), ApiError> {
        let clash = |name: &str, message: &str| Err(ApiError::invalid_param(name, message));
        match self {
            Self { every: Some(_), expires: Some(_), .. } => {
                clash("expires", "What recurs lasts until it comes again.")
            }
            Self { every: Some(_), vest: Some(_), .. } => clash("vest", "What recurs does not vest."),
            Self { every: None, on: Some(_), .. } => clash("on", "'on' is of 'every', which is missing."),
            Self { every: None, until: Some(_), .. } => clash("until", "'until' is of 'every', which is missing."),
            Self { every: None, rollover: Some(_), .. } => {
                clash("rollover", "'rollover' is of 'every', which is missing.")
            }
            Self { vest: None, vest_every: Some(_), .. } => {
                clash("vest_every", "'vest_every' is of 'vest', which is missing.")
            }
            Self { vest: None, cliff: 1.., .. } => clash("cliff", "'cliff' is of 'vest', which is missing."),
            _ => Ok(()),
        }
    }

    fn make(self, admin: &Admin, wallet: String) -> Result<Value, LedgerError> {
        let (ledger, idempotency_key) = (admin.ledger(), admin.idempotency_key());
        let Self { amount: Amount(amount), priority, effective, expires, memo, .. } = self;
        let terms = terms(self.models, self.promotional, self.value);
        let name = wallet.clone();
        if let Some(Parsed(every)) = self.every {
            let rollover = self.rollover.map_or(Credits::ZERO, |amount| amount.0);
            let (on, until, start) = (self.on, self.until, effective);
            let recurring = RecurringGrant {
                wallet,
                amount,
                priority,
                every,
                on,
                start,
                until,
                rollover,
                memo,
                terms,
                idempotency_key,
            };
            let made = ledger.grant_every(recurring)?;
            return Ok(json::granted_every(&made, &ledger.wallet(&name)?));
        }
        let request = GrantRequest { wallet, amount, priority, effective, expires, memo, terms, idempotency_key };
        if let Some(periods) = self.vest {
            let every = plain(self.vest_every).unwrap_or(Period::Month);
            let parts = ledger.grant_vesting(request, Vesting { every, periods, cliff: self.cliff })?;
            return Ok(json::granted_vesting(&parts, &ledger.wallet(&name)?));
        }
        let made = ledger.grant(request)?;
        Ok(json::granted(&made, &ledger.wallet(&name)?))
    }
}

pub(super) async fn grant(admin: Admin, Path(name): Path<String>, payload: Payload) -> Response {
    admin
        .answer(move |admin| {
            admin.require_of(Action::Fund, &name)?;
            let grant: Grant = payload.parse()?;
            grant.check()?;
            grant.make(admin, name).map_err(|error| refusal(&error))
        })
        .await
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Deposited {
    amount: Amount,
    /// By name; the others weigh 1.
    #[serde(default)]
    weights: std::collections::BTreeMap<String, u32>,
    #[serde(default = "usual_priority")]
    priority: i32,
    expires: Option<Timestamp>,
    memo: Option<String>,
    models: Option<Parsed<ModelScope>>,
    #[serde(default)]
    promotional: bool,
    value: Option<Parsed<CreditValue>>,
}

pub(super) async fn deposit(admin: Admin, Path(name): Path<String>, payload: Payload) -> Response {
    admin
        .answer(move |admin| {
            admin.require_of(Action::Fund, &name)?;
            let deposited: Deposited = payload.parse()?;
            let ledger = admin.ledger();
            // Who is among the members would raise their own allowance.
            let wallets = ledger.wallets().map_err(|error| refusal(&error))?;
            let members = wallets.iter().filter(|wallet| wallet.parent.as_deref() == Some(&name));
            let mut members = members.map(|member| &member.name);
            members.try_for_each(|member| admin.require_of(Action::Fund, member))?;
            let deposit = Deposit {
                wallet: name,
                amount: deposited.amount.0,
                weights: deposited.weights.into_iter().collect(),
                priority: deposited.priority,
                expires: deposited.expires,
                terms: terms(deposited.models, deposited.promotional, deposited.value),
                memo: deposited.memo,
                idempotency_key: admin.idempotency_key(),
            };
            ledger.deposit(deposit).map(|shares| json::deposited(&shares)).map_err(|error| refusal(&error))
        })
        .await
}

pub(super) async fn void(admin: Admin, Path(id): Path<String>) -> Response {
    admin
        .answer(move |admin| {
            let ledger = admin.ledger();
            fund_of(admin, ledger.wallet_of_grant(&id))?;
            ledger
                .void(&id, admin.idempotency_key())
                .map(|wallet| json::wallet(&wallet))
                .map_err(|error| refusal(&error))
        })
        .await
}

/// Refuses whoever may not fund the wallet that something belongs to.
fn fund_of(admin: &Admin, wallet: Result<String, LedgerError>) -> Result<(), ApiError> {
    // Whoever may fund nobody does not learn what there is.
    admin.require(Action::Fund)?;
    admin.require_of(Action::Fund, &wallet.map_err(|error| refusal(&error))?)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Transferring {
    from: String,
    to: String,
    amount: Amount,
    expires: Option<Timestamp>,
    memo: Option<String>,
}

pub(super) async fn transfer(admin: Admin, payload: Payload) -> Response {
    admin
        .answer(move |admin| {
            let Transferring { from, to, amount, expires, memo } = payload.parse()?;
            admin.require_of(Action::Give, &from)?;
            // What comes out of somebody else's wallet raises the allowance of whoever gets it.
            let standing =
                Standing::of(&admin.app.ledger, &admin.key.wallet, &from).map_err(|error| refusal(&error))?;
            if standing != Standing::Theirs {
                admin.require_of(Action::Fund, &to)?;
            }
            let idempotency_key = admin.idempotency_key();
            let done = admin.ledger().transfer(Transfer { from, to, amount: amount.0, expires, memo, idempotency_key });
            done.map(|done| json::transferred(&done)).map_err(|error| refusal(&error))
        })
        .await
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Refunding {
    request_id: String,
    amount: Option<Amount>,
    memo: Option<String>,
}

pub(super) async fn refund(admin: Admin, payload: Payload) -> Response {
    admin
        .answer(move |admin| {
            let Refunding { request_id, amount, memo } = payload.parse()?;
            let ledger = admin.ledger();
            fund_of(admin, ledger.wallet_of_request(&request_id))?;
            let (amount, idempotency_key) = (amount.map(|amount| amount.0), admin.idempotency_key());
            let done = ledger.refund(Refund { request_id, amount, memo, idempotency_key });
            done.map(|done| json::reversed(&done, "request_id")).map_err(|error| refusal(&error))
        })
        .await
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Correcting {
    grant: String,
    amount: Option<Amount>,
    memo: Option<String>,
}

pub(super) async fn correct(admin: Admin, payload: Payload) -> Response {
    admin
        .answer(move |admin| {
            let Correcting { grant: grant_id, amount, memo } = payload.parse()?;
            let ledger = admin.ledger();
            fund_of(admin, ledger.wallet_of_grant(&grant_id))?;
            let (amount, idempotency_key) = (amount.map(|amount| amount.0), admin.idempotency_key());
            let done = ledger.correct(Correction { grant_id, amount, memo, idempotency_key });
            done.map(|done| json::reversed(&done, "grant")).map_err(|error| refusal(&error))
        })
        .await
}
