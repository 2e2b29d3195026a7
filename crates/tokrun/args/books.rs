//! What is read out of the ledger, and brought into it.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use jiff::civil::Date;
use jiff::tz::TimeZone;
use tokrun_ledger::CreditValue;

use super::When;

/// A stretch of time, as a person says it.
#[derive(Debug, Args)]
pub(crate) struct SpanArgs {
    /// From this instant on: a date (of the wallet's time zone), an instant, or how long ago (`30d`).
    #[arg(long, value_name = "WHEN", allow_hyphen_values = true, value_parser = when_back)]
    from: Option<When>,
    /// Until before this instant.
    #[arg(long, value_name = "WHEN", allow_hyphen_values = true, value_parser = when_back)]
    to: Option<When>,
    /// This month, of the wallet's time zone.
    #[arg(long, value_name = "YYYY-MM", conflicts_with_all = ["from", "to"], value_parser = month)]
    month: Option<Date>,
}

impl SpanArgs {
    /// The first instant and the first one after, where days are those of a time zone.
    pub(crate) fn instants(
        &self,
        zone: &TimeZone,
    ) -> Result<(Option<jiff::Timestamp>, Option<jiff::Timestamp>), String> {
        let (from, to) = match self.month {
            Some(first) => {
                let next = first.saturating_add(jiff::Span::new().months(1));
                (Some(When::On(first.into())), Some(When::On(next.into())))
            }
            None => (self.from, self.to),
        };
        let at = |when: Option<When>| when.map(|when| when.at(zone)).transpose();
        let (from, to) = (at(from)?, at(to)?);
        match (from, to) {
            (Some(from), Some(to)) if from > to => Err(format!("it would end ({to}) before it begins ({from})")),
            period => Ok(period),
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct StatementArgs {
    /// Whose; your account's name if absent.
    pub(crate) user: Option<String>,
    #[command(flatten)]
    pub(crate) span: SpanArgs,
    /// Of the wallet and all under it, as if they were one.
    #[arg(long)]
    pub(crate) subtree: bool,
    /// Show each request on a line of its own, not those of a day together.
    #[arg(long)]
    pub(crate) requests: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// A CSV file whose first line names its columns; `-` reads stdin. Of each row `wallet` is needed; `kind`, `parent`,
    /// `zone`, `overdraft`, `draw` and `draw_every` are its terms; `amount` grants, with `expires`, `effective`, `priority`,
    /// `memo`, or again and again with `every`, `on`, `until` and `rollover`. Empty cells say nothing. Dates are those of
    /// the wallet's time zone. The same rows grant once, however often they are imported; `key` tells apart what is
    /// meant again.
    pub(crate) file: PathBuf,
    /// Show what would change, and change nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// What is written.
    #[arg(long, value_enum)]
    pub(crate) format: ExportFormat,
    #[command(flatten)]
    pub(crate) span: SpanArgs,
    /// What a credit is worth in money, for the costs of FOCUS; as each request's price said, else nothing, if absent.
    #[arg(long, value_name = "0.002EUR")]
    pub(crate) credit_value: Option<CreditValue>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExportFormat {
    /// Every posting of every entry, a row each.
    Csv,
    /// Every entry with its postings, as one list.
    Json,
    /// Every settled request, as rows of the FinOps FOCUS specification 1.3.
    Focus,
}

fn when_back(text: &str) -> Result<When, String> {
    When::parse(text, |now, span| now.checked_sub(span.abs()))
}

fn month(text: &str) -> Result<Date, String> {
    let is_month = text.len() == 7 && text.is_char_boundary(4);
    let date = is_month.then(|| format!("{text}-01").parse().ok()).flatten();
    date.ok_or_else(|| "expected a month, such as 2026-11".to_owned())
}
