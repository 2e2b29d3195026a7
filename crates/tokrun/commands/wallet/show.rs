//! `tokrun wallet list` and `show`: what a wallet has.

use jiff::tz::TimeZone;
use serde_json::Value;
use tokrun_ledger::{Credits, DrawTerms, Forecast, GrantClass, GrantKind, GrantState, GrantView, WalletView, json};

use crate::args::Format;
use crate::output;

pub(super) fn list(wallets: &[WalletView], format: Format) {
    if format == Format::Json {
        out!("{}", Value::from_iter(wallets.iter().map(json::wallet)));
        return;
    }
    let rows = as_tree(wallets).into_iter().map(|(level, wallet)| {
        vec![
            format!("{}{}", "  ".repeat(level), wallet.name),
            wallet.kind.to_string(),
            output::credits(wallet.balance),
            output::credits(wallet.drawable),
            output::credits(wallet.in_flight),
            condition(wallet).to_owned(),
        ]
    });
    out!("{}", output::table(&["wallet", "kind", "balance", "may draw", "in flight", ""], &[2, 3, 4], rows));
}

fn condition(wallet: &WalletView) -> &'static str {
    match wallet {
        WalletView { closed: Some(_), .. } => "closed",
        WalletView { frozen: true, .. } => "frozen",
        _ => "",
    }
}

/// Every wallet below its parent, with how deep it stands.
fn as_tree(wallets: &[WalletView]) -> Vec<(usize, &WalletView)> {
    let mut found = Vec::new();
    let mut stack: Vec<(usize, &WalletView)> =
        wallets.iter().rev().filter(|wallet| wallet.parent.is_none()).map(|wallet| (0, wallet)).collect();
    while let Some((level, wallet)) = stack.pop() {
        found.push((level, wallet));
        let children = wallets.iter().rev().filter(|child| child.parent.as_ref() == Some(&wallet.name));
        stack.extend(children.map(|child| (level + 1, child)));
    }
    found
}

/// One wallet, and how long it lasts.
pub(super) fn show_with_forecast(wallet: &WalletView, forecast: Option<&Forecast>, format: Format) {
    if format == Format::Json {
        out!("{}", json::wallet_with_forecast(wallet, forecast));
        return;
    }
    show(wallet, format);
    out!("{}", text_forecast(forecast, &wallet.zone));
}

pub(super) fn text_forecast(forecast: Option<&Forecast>, zone: &str) -> String {
    let Some(forecast) = forecast else {
        return "how long it lasts cannot be told yet: that takes three days of spending".to_owned();
    };
    let pace = format!("{} a day over the last {} days", output::credits(forecast.per_day), forecast.days_seen);
    let zone = TimeZone::get(zone).unwrap_or(TimeZone::UTC);
    match forecast.until {
        Some(until) => format!("lasts until {} at this pace: {pace}", zone.to_datetime(until).strftime("%-d %B %Y")),
        None => format!("lasts for more than a year at this pace: {pace}"),
    }
}

pub(super) fn show(wallet: &WalletView, format: Format) {
    if format == Format::Json {
        out!("{}", json::wallet(wallet));
        return;
    }
    let separator = if wallet.frozen { ", " } else { "" };
    out!("{}: {} credits{separator}{}", wallet.name, output::credits(wallet.balance), condition(wallet));
    if let Some(delegation) = &wallet.delegation {
        let until = delegation.expires.map_or_else(String::new, |expires| format!(", until {expires}"));
        out!("delegated by {}, with {} at first{until}", delegation.from, output::credits(delegation.amount));
    }
    if wallet.in_flight != Credits::ZERO {
        out!("in flight: {}", output::credits(wallet.in_flight));
    }
    if wallet.drawable != Credits::ZERO {
        out!("on top of it: {} from pools and overdrafts", output::credits(wallet.drawable));
    }
    if let Some(parent) = &wallet.parent {
        out!("under {parent}{}", wallet.draw.map_or_else(String::new, |draw| draws(wallet, draw)));
    }
    for recurring in &wallet.recurring {
        let next = recurring.next.map_or_else(String::new, |next| format!(", next at {next}"));
        out!("{} every {} ({}){next}", output::credits(recurring.amount), recurring.every, recurring.zone);
    }
    if !wallet.grants.is_empty() {
        let rows = wallet.grants.iter().map(|grant| {
            vec![
                format!("{}, {}{}", kind(grant.kind), state(grant.state), terms(grant)),
                output::credits(grant.remaining),
                output::credits(grant.amount),
                grant.priority.to_string(),
                grant.expires.map_or_else(|| "never".to_owned(), |expires| expires.to_string()),
                grant.memo.as_deref().map(output::plain).unwrap_or_default(),
            ]
        });
        out!("{}", output::table(&["grant", "left", "of", "priority", "expires", "memo"], &[1, 2, 3], rows));
    }
}

fn draws(wallet: &WalletView, draw: DrawTerms) -> String {
    let cap = draw.cap.map_or_else(|| "all".to_owned(), output::credits);
    let every = draw.every.map_or_else(String::new, |every| format!(" a {every} ({})", wallet.zone));
    format!(", of which it may draw {cap}{every}; {} are drawn", output::credits(wallet.drawn))
}

fn kind(kind: GrantKind) -> &'static str {
    match kind {
        GrantKind::Starter => "starter",
        GrantKind::Grant => "grant",
        GrantKind::Rollover => "rollover",
        GrantKind::Transfer => "transfer",
        GrantKind::Refund => "refund",
    }
}

/// What is special about a grant.
fn terms(grant: &GrantView) -> String {
    let terms = &grant.terms;
    let given_away = (terms.class == GrantClass::Promotional).then(|| ", promotional".to_owned());
    let models = terms.scope.as_ref().map(|models| format!(", for {models}"));
    let value = terms.value.as_ref().map(|value| format!(", worth {value} each"));
    [given_away, models, value].into_iter().flatten().collect()
}

fn state(state: GrantState) -> &'static str {
    match state {
        GrantState::Pending => "not yet",
        GrantState::Live => "live",
        GrantState::Used => "used up",
        GrantState::Expired => "expired",
        GrantState::Void => "void",
    }
}
