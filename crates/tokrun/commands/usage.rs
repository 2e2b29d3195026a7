//! `tokrun usage`: what was served to whom, and how fast.

use serde_json::Value;
use tokrun_ledger::{Percentiles, UsageBy, UsageQuery, UsageRow, json};

use super::answer;
use crate::args::{Format, GroupBy, UsageArgs};
use crate::failure::{Failure, Status};
use crate::output;

pub(crate) fn run(args: &UsageArgs, format: Format) -> Result<Status, Failure> {
    let (by, name) = match args.by {
        GroupBy::User => (UsageBy::User, "user"),
        GroupBy::Model => (UsageBy::Model, "model"),
        GroupBy::Project => (UsageBy::Project, "project"),
        GroupBy::Key => (UsageBy::Key, "key"),
        GroupBy::Day => (UsageBy::Day { time_zone: jiff::tz::TimeZone::system() }, "day"),
    };
    let rows =
        answer::ledger_to_read()?.usage(&UsageQuery { since: args.since, until: args.until, ..UsageQuery::new(by) })?;
    if format == Format::Json {
        out!("{}", Value::from_iter(rows.iter().map(|row| json::usage(name, row))));
        return Ok(Status::Done);
    }
    let header = [
        name, "requests", "prompt", "output", "total", "paid", "tokens/s", "decode/s", "ttft p50", "p95 ms", "itl p50",
        "p95", "p99 ms", "joules",
    ];
    let table = output::table(&header, &(1..header.len()).collect::<Vec<_>>(), rows.iter().map(text_row));
    out!("{table}");
    Ok(Status::Done)
}

fn text_row(row: &UsageRow) -> Vec<String> {
    let rate = |rate: Option<f64>| rate.map_or_else(String::new, |rate| format!("{rate:.1}"));
    let of = |percentiles: &Option<Percentiles>, pick: fn(&Percentiles) -> f64| {
        percentiles.as_ref().map_or_else(String::new, |percentiles| format!("{:.1}", pick(percentiles)))
    };
    vec![
        row.key.clone(),
        output::grouped(row.requests),
        output::grouped(row.prompt_tokens),
        output::grouped(row.output_tokens),
        output::grouped(row.total_tokens),
        output::credits(row.debited),
        rate(row.tokens_per_s),
        rate(row.decode_tokens_per_s),
        of(&row.ttft_ms, |ms| ms.p50),
        of(&row.ttft_ms, |ms| ms.p95),
        of(&row.itl_ms, |ms| ms.p50),
        of(&row.itl_ms, |ms| ms.p95),
        of(&row.itl_ms, |ms| ms.p99),
        row.energy_joules.map_or_else(String::new, |joules| format!("{joules:.1}")),
    ]
}
