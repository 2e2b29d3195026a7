//! The dashboard: one page that is in the program, and what it asks for.
//!
//! Everybody sees their own wallet, whoever has the key of a team's wallet all that stand under it, and whoever may read
//! everything also the machine. Nothing of what was asked or answered is kept, so nothing of it is shown. What the page
//! changes (keys, requests for an allowance) goes through the administration's routes.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};
use serde::Deserialize;
use serde_json::{Value, json};
use tokrun_ledger::{Action, LedgerError, UsageBy, UsageQuery, WalletKind, WalletView, json as shown};

use crate::admin::{Admin, refusal};
use crate::app::App;
use crate::auth;
use crate::body::Payload;
use crate::error::ApiError;
use crate::reply::ok;
use crate::sessions;

/// The page, what it asks for, and signing in and out.
pub(crate) fn router() -> Router<Arc<App>> {
    Router::new()
        .route("/", get(|| file("text/html; charset=utf-8", include_str!("dashboard/index.html"))))
        .route("/dashboard/style.css", get(|| file("text/css; charset=utf-8", include_str!("dashboard/style.css"))))
        .route("/dashboard/app.js", get(|| file(SCRIPT, include_str!("dashboard/app.js"))))
        .route("/dashboard/server.js", get(|| file(SCRIPT, include_str!("dashboard/server.js"))))
        .route("/dashboard/wallet.js", get(|| file(SCRIPT, include_str!("dashboard/wallet.js"))))
        .route("/dashboard/others.js", get(|| file(SCRIPT, include_str!("dashboard/others.js"))))
        .route("/dashboard/plot.js", get(|| file(SCRIPT, include_str!("dashboard/plot.js"))))
        .route("/dashboard/session", post(sign_in).delete(sign_out))
        .route("/dashboard/now", get(now))
        .route("/dashboard/days", get(days))
        .route("/dashboard/team", get(team))
        .route("/dashboard/machine", get(machine))
}

const SCRIPT: &str = "text/javascript; charset=utf-8";

/// The page runs its own script and nothing else, and nobody frames it.
const HEADERS: [(HeaderName, HeaderValue); 6] = [
    (
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
        ),
    ),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    (HeaderName::from_static("cross-origin-opener-policy"), HeaderValue::from_static("same-origin")),
];

async fn file(content_type: &'static str, text: &'static str) -> Response {
    (HEADERS, [(header::CONTENT_TYPE, HeaderValue::from_static(content_type))], text).into_response()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SignIn {
    /// The secret of a key.
    key: Option<String>,
    /// Or the code of a one-time link.
    link: Option<String>,
}

/// Signs in: for a key, or for the code of a link, once.
async fn sign_in(State(app): State<Arc<App>>, payload: Payload) -> Response {
    let signed_in = app.blocking(move |app| {
        let key = match payload.parse()? {
            SignIn { key: Some(secret), link: None } => {
                app.ledger.authenticate(&secret).map_err(|error| ApiError::from(&error))?
            }
            SignIn { link: Some(code), key: None } => {
                let key_id = app.links.redeem(&code);
                let key_id = key_id.ok_or_else(|| ApiError::unauthorized("This link was used, or is too old."))?;
                auth::valid_key(app, &key_id)?
            }
            _ => return Err(ApiError::invalid_param("key", "A 'key' or the code of a 'link' is needed.")),
        };
        let session = app.sessions.begin(&key.id);
        Ok(json!({ "session": session, "life_s": sessions::LIFE.as_secs(), "key": shown::key(&key) }))
    });
    signed_in.await.map_or_else(IntoResponse::into_response, |session| ok(&session))
}

async fn sign_out(State(app): State<Arc<App>>, headers: HeaderMap) -> Response {
    if let Some(secret) = auth::secret(&headers) {
        app.sessions.end(&secret);
    }
    ok(&json!({ "signed_out": true }))
}

/// What changes from second to second.
async fn now(admin: Admin) -> Response {
    admin
        .answer(|admin| {
            let wallet = own(admin)?;
            let requests = admin.app.live.count();
            Ok(json!({
                "now": Timestamp::now(),
                "key": shown::key(&admin.key),
                "wallet": shown::wallet(&wallet),
                "sees": { "team": leads(admin, &wallet), "machine": admin.sees_all() },
                "requests_running": admin.sees_all().then_some(requests),
            }))
        })
        .await
}

fn own(admin: &Admin) -> Result<WalletView, ApiError> {
    admin.app.books.wallet(&admin.key.wallet).map_err(|error| refusal(&error))
}

/// Whether there are others to see: in the team whose key it is, or everybody.
fn leads(admin: &Admin, wallet: &WalletView) -> bool {
    admin.sees_all() || matches!(wallet.kind, WalletKind::Team | WalletKind::Organisation)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    /// One's own if absent.
    wallet: Option<String>,
    /// With all that stand under it.
    #[serde(default)]
    subtree: bool,
    #[serde(default = "four_weeks")]
    days: u16,
}

fn four_weeks() -> u16 {
    28
}

/// So many of the last requests are listed.
const REQUESTS_SHOWN: u16 = 25;

/// What became of a wallet day by day, how long it lasts, and its last requests.
async fn days(admin: Admin, Query(asked): Query<Asked>) -> Response {
    admin
        .answer(move |admin| {
            let wallet = asked.wallet.unwrap_or_else(|| admin.key.wallet.clone());
            admin.require_of(Action::Read, &wallet)?;
            history(admin, &wallet, asked.subtree, asked.days).map_err(|error| refusal(&error))
        })
        .await
}

fn history(admin: &Admin, name: &str, subtree: bool, days: u16) -> Result<Value, LedgerError> {
    let books = &admin.app.books;
    let wallet = books.wallet(name)?;
    let time_zone = TimeZone::get(&wallet.zone).unwrap_or(TimeZone::UTC);
    let since = since(&time_zone, days);
    let query = |by| UsageQuery { since, wallet: Some(name.to_owned()), subtree, ..UsageQuery::new(by) };
    let rows = |what: &str, by| -> Result<Value, LedgerError> {
        Ok(books.usage(&query(by))?.iter().map(|row| shown::usage(what, row)).collect())
    };
    Ok(json!({
        "wallet": name,
        "subtree": subtree,
        "zone": wallet.zone,
        "forecast": shown::forecast(books.forecast(name)?.as_ref()),
        "days": books.days(name, subtree, days)?,
        "by_day": rows("day", UsageBy::Day { time_zone })?,
        "by_model": rows("model", UsageBy::Model)?,
        "by_key": rows("key", UsageBy::Key)?,
        "requests": books.last_requests(name, subtree, REQUESTS_SHOWN)?,
    }))
}

/// The midnight with which the first of so many days began.
fn since(zone: &TimeZone, days: u16) -> Option<Timestamp> {
    let today = zone.to_datetime(Timestamp::now()).date();
    let first = today.saturating_sub(Span::new().days(i64::from(days.max(1)) - 1));
    first.to_zoned_datetime(zone.clone()).ok().map(|midnight| midnight.timestamp())
}

/// The wallets that this key may see beside its own, with what they spent and how long they last.
async fn team(admin: Admin, Query(asked): Query<Asked>) -> Response {
    admin
        .answer(move |admin| {
            let all = admin.app.books.wallets().map_err(|error| refusal(&error))?;
            let seen = all.iter().filter(|wallet| admin.sees_all() || is_under(&all, wallet, &admin.key.wallet));
            members(admin, seen, asked.days).map_err(|error| refusal(&error))
        })
        .await
}

/// Of more wallets, those that spent most are shown.
const WALLETS_SHOWN: usize = 500;

/// Whether a wallet stands under another one, or is it.
fn is_under(all: &[WalletView], wallet: &WalletView, top: &str) -> bool {
    let parent = |wallet: &&WalletView| all.iter().find(|other| Some(&other.name) == wallet.parent.as_ref());
    std::iter::successors(Some(wallet), parent).any(|wallet| wallet.name == top)
}

fn members<'a>(admin: &Admin, wallets: impl Iterator<Item = &'a WalletView>, days: u16) -> Result<Value, LedgerError> {
    let books = &admin.app.books;
    let query = UsageQuery { since: since(&TimeZone::UTC, days), ..UsageQuery::new(UsageBy::User) };
    let used = books.usage(&query)?;
    let spent =
        |wallet: &WalletView| used.iter().find(|row| row.key == wallet.name).map_or(0, |row| row.debited.micro());
    let mut wallets: Vec<_> = wallets.collect();
    if wallets.len() > WALLETS_SHOWN {
        wallets.sort_by_key(|wallet| std::cmp::Reverse(spent(wallet)));
        wallets.truncate(WALLETS_SHOWN);
    }
    wallets
        .into_iter()
        .map(|wallet| {
            let used = used.iter().find(|row| row.key == wallet.name);
            let usage = used.map(|row| shown::usage("user", row));
            Ok(json!({
                "wallet": wallet.name,
                "kind": wallet.kind,
                "parent": wallet.parent,
                "balance": wallet.balance,
                "drawable": wallet.drawable,
                "in_flight": wallet.in_flight,
                "frozen": wallet.frozen,
                "closed": wallet.closed,
                "forecast": shown::forecast(books.forecast(&wallet.name)?.as_ref()),
                "usage": usage,
            }))
        })
        .collect()
}

/// How busy the machine is.
async fn machine(admin: Admin) -> Response {
    admin
        .answer(|admin| {
            if !admin.sees_all() {
                return Err(ApiError::forbidden("insufficient_permissions", "The machine is for those who see all."));
            }
            let app = &admin.app;
            let health = app.books.health().map_err(|error| refusal(&error))?;
            let models: Value = app.models.iter().map(|model| app.metrics.of(model, app.models.see(model))).collect();
            Ok(json!({
                "now_ms": app.begun.elapsed().as_millis(),
                "version": env!("CARGO_PKG_VERSION"),
                "requests_running": app.live.count(),
                "models": models,
                "ledger": {
                    "entries": health.entries,
                    "wallets": health.wallets,
                    "open_requests": health.open_requests,
                    "bad": health.bad,
                },
            }))
        })
        .await
}
