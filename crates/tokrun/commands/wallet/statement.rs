//! `tokrun wallet statement`: what became of it.

use serde_json::{Value, json};
use tokrun_ledger::{Statement, StatementLine};

use crate::args::Format;
use crate::output;

pub(super) fn statement(statement: &Statement, format: Format) {
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
