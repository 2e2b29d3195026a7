//! `tokrun wallet`: who has how much.

use serde_json::{Value, json};
use tokrun_ledger::{
    Credits, DrawTerms, GrantKind, GrantRequest, GrantState, GrantView, NewWallet, Period, RecurringGrant,
    RecurringView, Statement, StatementLine, Transfer, Transferred, WalletChange, WalletKind, WalletView,
};

use super::answer;
use crate::args::{Every, Format, GrantArgs, Kind, TermsArgs, WalletCommand};
use crate::failure::{Failure, Status};
use crate::{home, output};

pub(crate) fn run(command: WalletCommand, format: Format) -> Result<Status, Failure> {
    let looks = matches!(command, WalletCommand::List | WalletCommand::Show { .. } | WalletCommand::Statement { .. });
    let ledger = if looks { answer::ledger_to_read()? } else { answer::ledger()? };
    let own_or = |user: Option<String>| user.map_or_else(home::account, Ok);
    match command {
        WalletCommand::List => list(&ledger.wallets()?, format),
        WalletCommand::Show { user } => show(&ledger.wallet(&own_or(user)?)?, format),
        WalletCommand::Create { user, terms, idempotency_key } => {
            let new = NewWallet { idempotency_key, ..new_wallet(user, terms) };
            show(&ledger.open_wallet(new)?, format);
        }
        WalletCommand::Set { user, terms, no_parent } => {
            show(&ledger.change_wallet(&user, change(terms, no_parent))?, format);
        }
        WalletCommand::Grant(args) if args.every.is_some() => {
            let user = args.user.clone();
            let recurring = ledger.grant_every(recurring_grant(args))?;
            granted_every(&recurring, &ledger.wallet(&user)?, format);
        }
        WalletCommand::Transfer { from, to, amount, expires, memo, idempotency_key } => {
            let done = ledger.transfer(Transfer { from, to, amount, expires, memo, idempotency_key })?;
            transferred(&done, format);
        }
        WalletCommand::Void { grant } => show(&ledger.void(&grant)?, format),
        WalletCommand::Grant(args) => {
            let user = args.user.clone();
            let grant = ledger.grant(grant_request(args))?;
            granted(&grant, &ledger.wallet(&user)?, format);
        }
        WalletCommand::Freeze { user } => show(&ledger.freeze(&user)?, format),
        WalletCommand::Thaw { user } => show(&ledger.thaw(&user)?, format),
        WalletCommand::Statement { user, from, to } => {
            statement(&ledger.statement(&own_or(user)?, from, to)?, format);
        }
    }
    Ok(Status::Done)
}

fn new_wallet(name: String, terms: TermsArgs) -> NewWallet {
    let change = change(terms, false);
    NewWallet {
        kind: change.kind.unwrap_or(WalletKind::Person),
        parent: change.parent.flatten(),
        zone: change.zone.flatten(),
        overdraft: change.overdraft.unwrap_or(Credits::ZERO),
        draw: change.draw,
        ..NewWallet::new(name)
    }
}

fn change(terms: TermsArgs, no_parent: bool) -> WalletChange {
    let every = terms.draw_every.map(period);
    WalletChange {
        kind: terms.kind.map(|kind| match kind {
            Kind::Organisation => WalletKind::Organisation,
            Kind::Team => WalletKind::Team,
            Kind::Person => WalletKind::Person,
            Kind::Service => WalletKind::Service,
        }),
        parent: if no_parent { Some(None) } else { terms.parent.map(Some) },
        zone: terms.zone.map(Some),
        overdraft: terms.overdraft,
        draw: terms.draw.map(|cap| DrawTerms { cap: cap.0, every }),
    }
}

fn grant_request(args: GrantArgs) -> GrantRequest {
    GrantRequest {
        wallet: args.user,
        amount: args.amount,
        priority: args.priority,
        effective: args.effective,
        expires: args.expires,
        memo: args.memo,
        idempotency_key: args.idempotency_key,
    }
}

fn recurring_grant(args: GrantArgs) -> RecurringGrant {
    RecurringGrant {
        wallet: args.user,
        amount: args.amount,
        priority: args.priority,
        every: args.every.map_or(Period::Month, period),
        on: args.on,
        start: args.effective,
        until: args.until,
        rollover: args.rollover,
        memo: args.memo,
        idempotency_key: args.idempotency_key,
    }
}

fn period(every: Every) -> Period {
    match every {
        Every::Day => Period::Day,
        Every::Week => Period::Week,
        Every::Month => Period::Month,
    }
}

fn list(wallets: &[WalletView], format: Format) {
    if format == Format::Json {
        out!("{}", Value::from_iter(wallets.iter().map(json_wallet)));
        return;
    }
    let rows = as_tree(wallets).into_iter().map(|(level, wallet)| {
        vec![
            format!("{}{}", "  ".repeat(level), wallet.name),
            wallet.kind.to_string(),
            output::credits(wallet.balance),
            output::credits(wallet.drawable),
            output::credits(wallet.in_flight),
            if wallet.frozen { "frozen" } else { "" }.to_owned(),
        ]
    });
    out!("{}", output::table(&["wallet", "kind", "balance", "may draw", "in flight", ""], &[2, 3, 4], rows));
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

fn show(wallet: &WalletView, format: Format) {
    if format == Format::Json {
        out!("{}", json_wallet(wallet));
        return;
    }
    let frozen = if wallet.frozen { ", frozen" } else { "" };
    out!("{}: {} credits{frozen}", wallet.name, output::credits(wallet.balance));
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
                format!("{}, {}", kind(grant.kind), state(grant.state)),
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
    }
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

fn granted(grant: &GrantView, wallet: &WalletView, format: Format) {
    if format == Format::Json {
        out!("{}", json!({ "grant": json_grant(grant), "wallet": json_wallet(wallet) }));
        return;
    }
    out!(
        "granted {} to {}, who has {} now",
        output::credits(grant.amount),
        wallet.name,
        output::credits(wallet.balance)
    );
}

fn transferred(done: &Transferred, format: Format) {
    let amount = done.amount;
    if format == Format::Json {
        let (from, to) = (json_wallet(&done.from), json_wallet(&done.to));
        out!("{}", json!({ "amount": output::credits_json(amount), "from": from, "to": to }));
        return;
    }
    out!(
        "{} went from {}, who has {} now, to {}, who has {}",
        output::credits(amount),
        done.from.name,
        output::credits(done.from.balance),
        done.to.name,
        output::credits(done.to.balance)
    );
}

fn granted_every(recurring: &RecurringView, wallet: &WalletView, format: Format) {
    if format == Format::Json {
        out!("{}", json!({ "recurring": json_recurring(recurring), "wallet": json_wallet(wallet) }));
        return;
    }
    out!(
        "{} every {} to {}, who has {} now; next at {}",
        output::credits(recurring.amount),
        recurring.every,
        wallet.name,
        output::credits(wallet.balance),
        recurring.next.map_or_else(|| "no time".to_owned(), |next| next.to_string())
    );
}

fn statement(statement: &Statement, format: Format) {
    if format == Format::Json {
        out!("{}", json_statement(statement));
        return;
    }
    out!("{}: opening balance {}", statement.wallet, output::credits(statement.opening));
    let rows = statement.lines.iter().map(|line| {
        vec![
            line.date.to_string(),
            line.kind.as_str().to_owned(),
            output::credits(line.amount),
            output::credits(line.balance_after),
            reason(line),
        ]
    });
    out!("{}", output::table(&["when", "what", "amount", "balance", "for"], &[2, 3], rows));
    out!("in flight {}, closing balance {}", output::credits(statement.in_flight), output::credits(statement.closing));
}

fn reason(line: &StatementLine) -> String {
    let texts = [&line.request_id, &line.other, &line.memo];
    texts.into_iter().flatten().map(|text| output::plain(text)).collect::<Vec<_>>().join(": ")
}

fn json_wallet(wallet: &WalletView) -> Value {
    json!({
        "wallet": wallet.name,
        "id": wallet.id,
        "balance": output::credits_json(wallet.balance),
        "drawable": output::credits_json(wallet.drawable),
        "kind": wallet.kind,
        "parent": wallet.parent,
        "team": wallet.team,
        "zone": wallet.zone,
        "overdraft": output::credits_json(wallet.overdraft),
        "draw": wallet.draw.map(|draw| json!({
            "cap": draw.cap.map(output::credits_json),
            "every": draw.every,
            "drawn": output::credits_json(wallet.drawn),
        })),
        "in_flight": output::credits_json(wallet.in_flight),
        "unit": "credits",
        "frozen": wallet.frozen,
        "recurring": wallet.recurring.iter().map(json_recurring).collect::<Value>(),
        "grants": wallet.grants.iter().map(json_grant).collect::<Value>(),
    })
}

fn json_grant(grant: &GrantView) -> Value {
    json!({
        "id": grant.id,
        "kind": grant.kind,
        "state": grant.state,
        "amount": output::credits_json(grant.amount),
        "remaining": output::credits_json(grant.remaining),
        "priority": grant.priority,
        "effective": grant.effective,
        "expires": grant.expires,
        "memo": grant.memo,
    })
}

fn json_recurring(recurring: &RecurringView) -> Value {
    json!({
        "id": recurring.id,
        "amount": output::credits_json(recurring.amount),
        "priority": recurring.priority,
        "every": recurring.every,
        "on": recurring.on,
        "zone": recurring.zone,
        "rollover": output::credits_json(recurring.rollover),
        "next": recurring.next,
        "until": recurring.until,
        "memo": recurring.memo,
    })
}

fn json_statement(statement: &Statement) -> Value {
    let lines = statement.lines.iter().map(|line| {
        json!({
            "date": line.date,
            "kind": line.kind,
            "amount": output::credits_json(line.amount),
            "balance_after": output::credits_json(line.balance_after),
            "request_id": line.request_id,
            "other": line.other,
            "memo": line.memo,
        })
    });
    json!({
        "wallet": statement.wallet,
        "opening": output::credits_json(statement.opening),
        "lines": lines.collect::<Value>(),
        "in_flight": output::credits_json(statement.in_flight),
        "closing": output::credits_json(statement.closing),
        "unit": "credits",
    })
}
