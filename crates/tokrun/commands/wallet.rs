//! `tokrun wallet`: who has how much.

use serde_json::{Value, json};
use tokrun_ledger::{Credits, GrantKind, GrantRequest, GrantState, GrantView, Statement, WalletView};

use super::answer;
use crate::args::{Format, GrantArgs, WalletCommand};
use crate::failure::{Failure, Status};
use crate::{home, output};

pub(crate) fn run(command: WalletCommand, format: Format) -> Result<Status, Failure> {
    let looks = matches!(command, WalletCommand::List | WalletCommand::Show { .. } | WalletCommand::Statement { .. });
    let ledger = if looks { answer::ledger_to_read()? } else { answer::ledger()? };
    let own_or = |user: Option<String>| user.map_or_else(home::account, Ok);
    match command {
        WalletCommand::List => list(&ledger.wallets()?, format),
        WalletCommand::Show { user } => show(&ledger.wallet(&own_or(user)?)?, format),
        WalletCommand::Create { user } => show(&ledger.create_wallet(&user, None)?, format),
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

fn list(wallets: &[WalletView], format: Format) {
    if format == Format::Json {
        out!("{}", Value::from_iter(wallets.iter().map(json_wallet)));
        return;
    }
    let rows = wallets.iter().map(|wallet| {
        vec![
            wallet.name.clone(),
            output::credits(wallet.balance),
            output::credits(wallet.in_flight),
            if wallet.frozen { "frozen" } else { "" }.to_owned(),
        ]
    });
    out!("{}", output::table(&["wallet", "balance", "in flight", ""], &[1, 2], rows));
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

fn kind(kind: GrantKind) -> &'static str {
    match kind {
        GrantKind::Starter => "starter",
        GrantKind::Grant => "grant",
    }
}

fn state(state: GrantState) -> &'static str {
    match state {
        GrantState::Pending => "not yet",
        GrantState::Live => "live",
        GrantState::Used => "used up",
        GrantState::Expired => "expired",
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
            line.request_id.clone().or_else(|| line.memo.as_deref().map(output::plain)).unwrap_or_default(),
        ]
    });
    out!("{}", output::table(&["when", "what", "amount", "balance", "for"], &[2, 3], rows));
    out!("in flight {}, closing balance {}", output::credits(statement.in_flight), output::credits(statement.closing));
}

fn json_wallet(wallet: &WalletView) -> Value {
    json!({
        "wallet": wallet.name,
        "id": wallet.id,
        "balance": output::credits_json(wallet.balance),
        "in_flight": output::credits_json(wallet.in_flight),
        "unit": "credits",
        "frozen": wallet.frozen,
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

fn json_statement(statement: &Statement) -> Value {
    let lines = statement.lines.iter().map(|line| {
        json!({
            "date": line.date,
            "kind": line.kind,
            "amount": output::credits_json(line.amount),
            "balance_after": output::credits_json(line.balance_after),
            "request_id": line.request_id,
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
