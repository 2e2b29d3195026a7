//! What the ledger shows, as JSON: one form for the command line's `--output json` and for a service's administration.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    AskView, CreatedKey, CreditValue, Forecast, GrantView, KeyView, LimitReached, LimitView, Percentiles, Price,
    PriceView, Quota, RecurringView, Reversed, Share, Spent, Statement, StatementLine, Transferred, UsageRow,
    WalletView,
};

/// A wallet.
pub fn wallet(wallet: &WalletView) -> Value {
    json!({
        "wallet": wallet.name,
        "id": wallet.id,
        "balance": wallet.balance,
        "drawable": wallet.drawable,
        "kind": wallet.kind,
        "parent": wallet.parent,
        "team": wallet.team,
        "zone": wallet.zone,
        "overdraft": wallet.overdraft,
        "draw": wallet.draw.map(|draw| json!({ "cap": draw.cap, "every": draw.every, "drawn": wallet.drawn })),
        "in_flight": wallet.in_flight,
        "unit": "credits",
        "frozen": wallet.frozen,
        "closed": wallet.closed,
        "delegation": wallet.delegation.as_ref().map(|delegation| json!({
            "from": delegation.from,
            "amount": delegation.amount,
            "created": delegation.created,
            "expires": delegation.expires,
        })),
        "recurring": wallet.recurring.iter().map(recurring).collect::<Value>(),
        "grants": wallet.grants.iter().map(grant).collect::<Value>(),
    })
}

/// A wallet, and how long it lasts.
pub fn wallet_with_forecast(view: &WalletView, lasts: Option<&Forecast>) -> Value {
    let mut shown = wallet(view);
    shown["forecast"] = forecast(lasts);
    shown
}

/// How long a wallet lasts; `null` where it cannot be told.
pub fn forecast(forecast: Option<&Forecast>) -> Value {
    forecast.map_or(
        Value::Null,
        |forecast| json!({ "per_day": forecast.per_day, "days_seen": forecast.days_seen, "until": forecast.until }),
    )
}

/// A grant.
pub fn grant(grant: &GrantView) -> Value {
    json!({
        "id": grant.id,
        "kind": grant.kind,
        "state": grant.state,
        "amount": grant.amount,
        "remaining": grant.remaining,
        "priority": grant.priority,
        "effective": grant.effective,
        "expires": grant.expires,
        "memo": grant.memo,
        "class": grant.terms.class,
        "models": grant.terms.scope,
        "value": grant.terms.value,
        "vesting": grant.vesting,
    })
}

/// A grant that comes again and again.
pub fn recurring(recurring: &RecurringView) -> Value {
    json!({
        "id": recurring.id,
        "amount": recurring.amount,
        "priority": recurring.priority,
        "every": recurring.every,
        "on": recurring.on,
        "zone": recurring.zone,
        "rollover": recurring.rollover,
        "next": recurring.next,
        "until": recurring.until,
        "memo": recurring.memo,
        "class": recurring.terms.class,
        "models": recurring.terms.scope,
        "value": recurring.terms.value,
    })
}

/// A grant that was made, and the wallet that has it now.
pub fn granted(made: &GrantView, has: &WalletView) -> Value {
    json!({ "grant": grant(made), "wallet": wallet(has) })
}

/// A recurring grant that was made, and its wallet.
pub fn granted_every(made: &RecurringView, has: &WalletView) -> Value {
    json!({ "recurring": recurring(made), "wallet": wallet(has) })
}

/// A grant in parts that was made, and its wallet.
pub fn granted_vesting(parts: &[GrantView], has: &WalletView) -> Value {
    let vesting = parts.first().and_then(|first| first.vesting.as_ref());
    json!({ "vesting": vesting, "grants": parts.iter().map(grant).collect::<Value>(), "wallet": wallet(has) })
}

/// A deposit, and who got what of it.
pub fn deposited(shares: &[Share]) -> Value {
    let micro = shares.iter().fold(0_i64, |sum, share| sum.saturating_add(share.amount.micro()));
    json!({ "amount": crate::Credits::from_micro(micro), "unit": "credits", "shares": shares })
}

/// A transfer.
pub fn transferred(done: &Transferred) -> Value {
    json!({ "amount": done.amount, "from": wallet(&done.from), "to": wallet(&done.to) })
}

/// A refund, of a `request_id`, or a correction, of a `grant`.
pub fn reversed(done: &Reversed, of: &str) -> Value {
    json!({
        "entry": done.entry,
        of: done.of,
        "amount": done.amount,
        "expired": done.expired,
        "reversed": done.reversed,
        "unit": "credits",
        "wallet": wallet(&done.wallet),
    })
}

/// A price, wherever it comes from.
#[derive(Debug, Clone)]
pub struct ShownPrice {
    /// Of one that is the ledger's.
    pub id: Option<String>,
    /// The name of the model.
    pub model: String,
    /// What its tokens cost.
    pub price: Price,
    /// What a credit is worth.
    pub value: Option<CreditValue>,
    /// From when on.
    pub from: Option<Timestamp>,
    /// Until when.
    pub until: Option<Timestamp>,
}

impl From<PriceView> for ShownPrice {
    fn from(view: PriceView) -> ShownPrice {
        let PriceView { id, model, price, value, from, until } = view;
        ShownPrice { id: Some(id), model, price, value, from: Some(from), until }
    }
}

/// A price.
pub fn price(shown: &ShownPrice) -> Value {
    let Price { prompt, cached_prompt, output, reasoning } = shown.price;
    json!({
        "id": shown.id,
        "model": shown.model,
        "source": if shown.id.is_some() { "ledger" } else { "catalogue" },
        "prompt": prompt,
        "cached_prompt": cached_prompt,
        "output": output,
        "reasoning": reasoning,
        "value": shown.value.as_ref().map(ToString::to_string),
        "from": shown.from,
        "until": shown.until,
    })
}

/// A statement.
pub fn statement(statement: &Statement) -> Value {
    let totals = statement.totals().into_iter().map(|(what, sum)| (what.to_owned(), json!(sum)));
    let spent = |groups: &[Spent]| -> Value {
        let group = |spent: &Spent| json!({ "key": spent.key, "requests": spent.requests, "tokens": spent.tokens, "amount": spent.amount });
        groups.iter().map(group).collect()
    };
    json!({
        "wallet": statement.wallet,
        "subtree": statement.subtree,
        "zone": statement.zone,
        "from": statement.from,
        "to": statement.to,
        "opening": statement.opening,
        "lines": statement.lines.iter().map(statement_line).collect::<Value>(),
        "totals": Value::Object(totals.collect()),
        "spending": {
            "by_model": spent(&statement.spending.by_model),
            "by_project": spent(&statement.spending.by_project),
            "by_wallet": spent(&statement.spending.by_wallet),
            "by_day": spent(&statement.spending.by_day),
        },
        "in_flight": statement.in_flight,
        "closing": statement.closing,
        "unit": "credits",
    })
}

fn statement_line(line: &StatementLine) -> Value {
    let request = line.request.as_ref();
    json!({
        "date": line.date,
        "kind": line.kind,
        "amount": line.amount,
        "balance_after": line.balance_after,
        "moved": line.moved,
        "request_id": line.request_id,
        "wallet": request.map(|request| &request.wallet),
        "model": request.map(|request| &request.model),
        "project": request.and_then(|request| request.project.as_ref()),
        "tokens": request.map(|request| request.tokens),
        "other": line.other,
        "memo": line.memo,
    })
}

/// A limit.
pub fn limit(limit: &LimitView) -> Value {
    json!({
        "id": limit.id,
        "scope": limit.scope,
        "measure": limit.quota.measure(),
        "per": limit.span,
        "amount": quota(limit.quota),
        "used": limit.used.map(quota),
        "resets": limit.resets,
        "warn": limit.warn,
    })
}

fn quota(quota: Quota) -> Value {
    match quota {
        Quota::Tokens(count) | Quota::Requests(count) => count.into(),
        Quota::Credits(credits) => json!(credits),
    }
}

/// A limit that was reached, and when to try again.
pub fn limit_reached(reached: &LimitReached) -> Value {
    json!({
        "id": reached.id,
        "what": reached.what,
        "resets": reached.resets,
        "retry_after": reached.retry_after_s(Timestamp::now()),
    })
}

/// A key.
pub fn key(key: &KeyView) -> Value {
    json!({
        "id": key.id,
        "name": key.name,
        "wallet": key.wallet,
        "role": key.role,
        "models": key.models,
        "project": key.project,
        "created": key.created,
        "expires": key.expires,
        "revoked": key.revoked,
        "state": key.state(Timestamp::now()),
    })
}

/// A key that was created or rotated, with its secret, this once.
pub fn created_key(created: &CreatedKey) -> Value {
    let mut shown = key(&created.view);
    shown["secret"] = json!(created.secret);
    shown
}

/// What was asked for, and what came of it.
pub fn ask(ask: &AskView) -> Value {
    json!({
        "id": ask.id,
        "wallet": ask.wallet,
        "amount": ask.amount,
        "reason": ask.reason,
        "created": ask.created,
        "state": ask.state,
        "answered": ask.answered,
        "answer": ask.answer,
        "given": ask.given,
        "grants": ask.grants,
        "unit": "credits",
    })
}

/// What one user, model, project, key or day used, whichever `by` says.
pub fn usage(by: &str, row: &UsageRow) -> Value {
    let percentiles = |percentiles: &Option<Percentiles>| {
        percentiles.as_ref().map(|ms| json!({ "p50": ms.p50, "p95": ms.p95, "p99": ms.p99 }))
    };
    json!({
        by: row.key,
        "requests": row.requests,
        "prompt_tokens": row.prompt_tokens,
        "cached_tokens": row.cached_tokens,
        "completion_tokens": row.output_tokens,
        "total_tokens": row.total_tokens,
        "debited": row.debited,
        "unit": "credits",
        "tokens_per_s": row.tokens_per_s,
        "decode_tokens_per_s": row.decode_tokens_per_s,
        "ttft_ms": percentiles(&row.ttft_ms),
        "itl_ms": percentiles(&row.itl_ms),
        "energy_joules": row.energy_joules,
    })
}
