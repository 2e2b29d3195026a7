//! `tokrun wallet statement`: what came into a wallet, what went out, and what is left, in four forms.

use jiff::tz::TimeZone;
use serde::Serialize;
use serde_json::{Value, json};
use tokrun_ledger::{
    Credits, Ledger, Spent, Statement, StatementKind, StatementLine, StatementQuery, json as ledger_json,
};

use super::show::text_forecast;
use crate::args::{Format, StatementArgs};
use crate::failure::{Failure, Status};
use crate::{home, output};

/// One page, with everything in it that it needs.
const PAGE: &str = include_str!("statement.html");

pub(super) fn run(ledger: &Ledger, args: &StatementArgs, format: Format) -> Result<(), Failure> {
    let wallet = args.user.clone().map_or_else(home::account, Ok)?;
    let zone = zone(&ledger.wallet(&wallet)?.zone)?;
    let (from, to) = args.span.instants(&zone).map_err(|what| Failure::new(Status::Usage, "usage", what))?;
    let query = StatementQuery { subtree: args.subtree, from, to, ..StatementQuery::new(wallet) };
    let statement = ledger.statement_of(&query)?;
    let forecast = ledger.forecast(&statement.wallet)?;
    // Of one wallet, as it is now: on a statement of something else it would mislead.
    let tells = !args.subtree && statement.to.is_none_or(|to| to > jiff::Timestamp::now());
    let forecast_text = tells.then(|| text_forecast(forecast.as_ref(), &statement.zone));
    match format {
        Format::Json => {
            let mut shown = ledger_json::statement(&statement);
            shown["forecast"] = ledger_json::forecast(forecast.as_ref().filter(|_| tells));
            out!("{shown}");
        }
        Format::Csv => out!("{}", csv_statement(&statement)?.trim_end()),
        Format::Html => {
            out!("{}", html_statement(&statement, &zone, args.requests, forecast_text.as_deref())?.trim_end());
        }
        _ => {
            print_statement(&statement, &zone, args.requests);
            forecast_text.iter().for_each(|text| out!("{text}"));
        }
    }
    Ok(())
}

/// The calendar of a wallet.
fn zone(name: &str) -> Result<TimeZone, Failure> {
    let unknown = |error: jiff::Error| Failure::new(Status::Failed, "ledger", format!("no time zone {name}: {error}"));
    TimeZone::get(name).map_err(unknown)
}

fn print_statement(statement: &Statement, zone: &TimeZone, each_request: bool) {
    out!("{}: opening balance {}", title(statement, zone), output::credits(statement.opening));
    let rows = rows(statement, zone, each_request);
    let cells = rows.into_iter().map(|row| vec![row.when, row.what, row.amount, row.balance, row.reason]);
    out!("{}", output::table(&["when", "what", "amount", "balance", "for"], &[2, 3], cells));
    for (by, groups) in groupings(statement) {
        let cells = groups.iter().map(|spent| {
            let (requests, tokens) = (output::grouped(spent.requests), output::grouped(spent.tokens));
            vec![output::plain(named(spent)).to_owned(), requests, tokens, output::credits(spent.amount)]
        });
        out!("\n{}", output::table(&[by, "requests", "tokens", "spent"], &[1, 2, 3], cells));
    }
    let totals = statement.totals().into_iter().map(|(what, sum)| format!("{what} {}, ", output::credits(sum)));
    out!(
        "\n{}in flight {}, closing balance {}",
        totals.collect::<String>(),
        output::credits(statement.in_flight),
        output::credits(statement.closing)
    );
}

/// Whose, of when.
fn title(statement: &Statement, zone: &TimeZone) -> String {
    let under = if statement.subtree { " and all under it" } else { "" };
    format!("{}{under}{}", output::plain(&statement.wallet), period(statement, zone))
}

fn period(statement: &Statement, zone: &TimeZone) -> String {
    let at = |time: jiff::Timestamp| shown(time, zone);
    match (statement.from, statement.to) {
        (None, None) => String::new(),
        (Some(from), None) => format!(" from {}", at(from)),
        (None, Some(to)) => format!(" until {}", at(to)),
        (Some(from), Some(to)) => format!(" from {} until {} ({})", at(from), at(to), statement.zone),
    }
}

/// An instant on the wallet's clock; a midnight is a date.
fn shown(time: jiff::Timestamp, zone: &TimeZone) -> String {
    let local = zone.to_datetime(time);
    if local.time() == jiff::civil::Time::midnight() {
        return local.date().to_string();
    }
    local.strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// A line as people read it.
#[derive(Serialize)]
struct Row {
    when: String,
    what: String,
    amount: String,
    balance: String,
    reason: String,
}

/// The lines; requests that followed each other on one day are one, unless each is wanted.
fn rows(statement: &Statement, zone: &TimeZone, each_request: bool) -> Vec<Row> {
    let day = |line: &StatementLine| (line.kind == StatementKind::Settle).then(|| zone.to_datetime(line.date).date());
    let together = |a: &StatementLine, b: &StatementLine| !each_request && day(a).is_some() && day(a) == day(b);
    let row = |lines: &[StatementLine]| {
        let last = lines.last().expect("a chunk holds a line");
        let amount: i64 = lines.iter().map(|line| line.amount.micro()).sum();
        Row {
            when: match day(last).filter(|_| !each_request) {
                Some(day) => day.to_string(),
                None => shown(last.date, zone),
            },
            what: last.title().to_owned(),
            amount: output::credits(Credits::from_micro(amount)),
            balance: output::credits(last.balance_after),
            reason: match last.kind {
                StatementKind::Settle if !each_request => format!("{} requests", output::grouped(lines.len() as u64)),
                _ => reason(last),
            },
        }
    };
    statement.lines.chunk_by(together).map(row).collect()
}

fn reason(line: &StatementLine) -> String {
    let moved = line.moved.map(output::credits);
    let model = line.request.as_ref().map(|request| request.model.clone());
    let texts = [&line.request_id, &model, &line.other, &moved, &line.memo];
    texts.into_iter().flatten().map(|text| output::plain(text)).collect::<Vec<_>>().join(": ")
}

/// The groupings that say something.
fn groupings(statement: &Statement) -> Vec<(&'static str, &[Spent])> {
    let spending = &statement.spending;
    let (is_of_one, has_projects) = (
        spending.by_wallet.iter().all(|spent| spent.key == statement.wallet),
        spending.by_project.iter().any(|spent| !spent.key.is_empty()),
    );
    let groups = [
        ("model", &spending.by_model, true),
        ("project", &spending.by_project, has_projects),
        ("wallet", &spending.by_wallet, !is_of_one),
        ("day", &spending.by_day, spending.by_day.len() > 1),
    ];
    let told = groups.into_iter().filter(|(_, groups, tells)| *tells && !groups.is_empty());
    told.map(|(by, groups, _)| (by, groups.as_slice())).collect()
}

fn named(spent: &Spent) -> &str {
    if spent.key.is_empty() { "(none)" } else { &spent.key }
}

fn html_statement(
    statement: &Statement,
    zone: &TimeZone,
    each_request: bool,
    forecast: Option<&str>,
) -> Result<String, Failure> {
    let failed = |error: minijinja::Error| Failure::new(Status::Failed, "statement", error.to_string());
    let groupings: Vec<Value> = groupings(statement)
        .into_iter()
        .map(|(by, groups)| {
            let rows = groups.iter().map(|spent| {
                let (requests, tokens) = (output::grouped(spent.requests), output::grouped(spent.tokens));
                json!({ "key": named(spent), "requests": requests, "tokens": tokens, "amount": output::credits(spent.amount) })
            });
            json!({ "by": by, "rows": rows.collect::<Value>() })
        })
        .collect();
    let totals = statement.totals().into_iter();
    let totals = totals.map(|(what, sum)| json!({ "what": what, "sum": output::credits(sum) }));
    let page = json!({
        "wallet": statement.wallet,
        "subtree": statement.subtree,
        "period": period(statement, zone).trim(),
        "zone": statement.zone,
        "opening": output::credits(statement.opening),
        "totals": totals.collect::<Value>(),
        "closing": output::credits(statement.closing),
        "in_flight": (statement.in_flight != Credits::ZERO).then(|| output::credits(statement.in_flight)),
        "forecast": forecast,
        "rows": rows(statement, zone, each_request),
        "groupings": groupings,
    });
    let mut templates = minijinja::Environment::new();
    // A name that ends so has whatever is put in escaped.
    templates.add_template("statement.html", PAGE).map_err(failed)?;
    templates
        .get_template("statement.html")
        .and_then(|template| template.render(minijinja::value::Serde(&page)))
        .map_err(failed)
}

/// One row a line, between one for the opening and one for the closing balance.
fn csv_statement(statement: &Statement) -> Result<String, Failure> {
    let mut table = csv::Writer::from_writer(Vec::new());
    let failed = |error: csv::Error| Failure::new(Status::Failed, "statement", error.to_string());
    let header =
        ["date", "kind", "amount", "balance", "request_id", "wallet", "model", "project", "tokens", "other", "memo"];
    let ends = |kind: &str, time: Option<jiff::Timestamp>, balance: Credits| {
        let mut row = vec![String::new(); header.len()];
        (row[0], row[1]) = (time.map_or_else(String::new, |time| time.to_string()), kind.to_owned());
        row[3] = balance.to_string();
        row
    };
    table.write_record(header).map_err(failed)?;
    table.write_record(ends("opening", statement.from, statement.opening)).map_err(failed)?;
    for line in &statement.lines {
        table.write_record(csv_line(line)).map_err(failed)?;
    }
    table.write_record(ends("closing", statement.to, statement.closing)).map_err(failed)?;
    let bytes = table.into_inner().expect("a writer to memory does not fail");
    Ok(String::from_utf8(bytes).expect("it was written from text"))
}

fn csv_line(line: &StatementLine) -> [String; 11] {
    let text = |text: Option<&String>| text.map_or_else(String::new, |text| output::csv_text(text));
    let request = line.request.as_ref();
    [
        line.date.to_string(),
        line.kind.as_str().to_owned(),
        line.amount.to_string(),
        line.balance_after.to_string(),
        text(line.request_id.as_ref()),
        text(request.map(|request| &request.wallet)),
        text(request.map(|request| &request.model)),
        text(request.and_then(|request| request.project.as_ref())),
        request.map_or_else(String::new, |request| request.tokens.to_string()),
        text(line.other.as_ref()),
        text(line.memo.as_ref()),
    ]
}
