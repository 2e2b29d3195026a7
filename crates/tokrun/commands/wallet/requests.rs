//! `tokrun wallet request`, `requests`, `approve` and `deny`: what is asked for, and what comes of it.

use serde_json::Value;
use tokrun_ledger::{Approval, AskState, AskView, Ledger, NewAsk, json};

use crate::args::{ApproveArgs, Format, RequestArgs};
use crate::failure::Failure;
use crate::{home, output};

pub(super) fn ask(ledger: &Ledger, args: RequestArgs, format: Format) -> Result<(), Failure> {
    let RequestArgs { amount, reason, user, idempotency_key } = args;
    let wallet = user.map_or_else(home::account, Ok)?;
    show(&ledger.ask(NewAsk { wallet, amount, reason, idempotency_key })?, format);
    Ok(())
}

pub(super) fn approve(ledger: &Ledger, args: ApproveArgs, format: Format) -> Result<(), Failure> {
    let ApproveArgs { id, amount, from, expires, priority, idempotency_key } = args;
    show(&ledger.approve(Approval { ask_id: id, amount, from, priority, expires, idempotency_key })?, format);
    Ok(())
}

pub(super) fn list(ledger: &Ledger, user: Option<&str>, open: bool, format: Format) -> Result<(), Failure> {
    let mut asks = ledger.asks(user)?;
    asks.retain(|ask| !open || ask.state == AskState::Open);
    if format == Format::Json {
        out!("{}", Value::from_iter(asks.iter().map(json::ask)));
        return Ok(());
    }
    let rows = asks.iter().map(|ask| {
        vec![
            ask.created.to_string(),
            ask.wallet.clone(),
            output::credits(ask.amount),
            ask.state.to_string(),
            ask.given.map(output::credits).unwrap_or_default(),
            ask.reason.as_deref().map(output::plain).unwrap_or_default(),
            ask.id.clone(),
        ]
    });
    out!("{}", output::table(&["when", "wallet", "asked", "", "given", "for", "id"], &[2, 4], rows));
    Ok(())
}

pub(super) fn show(ask: &AskView, format: Format) {
    if format == Format::Json {
        out!("{}", json::ask(ask));
        return;
    }
    let given = ask.given.map_or_else(String::new, |given| format!(", {} given", output::credits(given)));
    let why = ask.answer.as_ref().map_or_else(String::new, |why| format!(": {}", output::plain(why)));
    out!("{}: {} for {}, {}{given}{why}", ask.id, output::credits(ask.amount), ask.wallet, ask.state);
}
