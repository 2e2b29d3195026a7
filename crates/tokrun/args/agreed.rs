//! Flags of what is agreed beside money.

use clap::{Args, Subcommand, ValueEnum};
use tokrun_ledger::Credits;

use super::{Every, instant_back};

#[derive(Debug, Subcommand)]
pub(crate) enum LimitCommand {
    /// All limits, and what is used of them.
    List {
        /// Only those of this wallet.
        user: Option<String>,
    },
    /// Set a limit, or another amount of one.
    Set(LimitSetArgs),
    /// Remove a limit.
    Remove {
        /// Its id, as `wallet limit list` tells it.
        id: String,
        /// Removing twice under the same key is no error.
        #[arg(long, value_name = "KEY")]
        idempotency_key: Option<String>,
    },
}

/// For requests to which all that is named applies.
#[derive(Debug, Args)]
pub(crate) struct LimitSetArgs {
    /// For this wallet and all that are under it.
    pub(crate) user: Option<String>,
    /// For requests with this key.
    #[arg(long, value_name = "NAME")]
    pub(crate) key: Option<String>,
    /// For requests of this project.
    #[arg(long, value_name = "NAME")]
    pub(crate) project: Option<String>,
    /// For requests to this model.
    #[arg(long, value_name = "NAME")]
    pub(crate) model: Option<String>,
    #[command(flatten)]
    pub(crate) quota: QuotaArgs,
    /// What it is counted over; requests without it are those that run at once.
    #[arg(long, value_enum, value_name = "SPAN")]
    pub(crate) per: Option<Span>,
    /// At which percentages of it an event is raised.
    #[arg(long, value_name = "PERCENT,...", value_delimiter = ',', default_values_t = tokrun_ledger::WARN_PERCENT)]
    pub(crate) warn: Vec<u8>,
    /// Setting twice under the same key sets once.
    #[arg(long, value_name = "KEY")]
    pub(crate) idempotency_key: Option<String>,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct QuotaArgs {
    /// So many tokens, of prompts and answers.
    #[arg(long, value_name = "N")]
    pub(crate) tokens: Option<u64>,
    /// So many credits.
    #[arg(long, value_name = "CREDITS")]
    pub(crate) credits: Option<Credits>,
    /// So many requests.
    #[arg(long, value_name = "N")]
    pub(crate) requests: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Span {
    Request,
    Minute,
    Hour,
    Day,
    Week,
    Month,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ProjectCommand {
    /// Set how many credits all requests of a project may spend together; each is still paid by its own wallet.
    Budget(BudgetArgs),
    /// The projects that were booked under or have a budget, and what they spent.
    List {
        /// Count requests that ended at or after this instant: a date, an instant, or how long ago (`30d`).
        #[arg(long, value_name = "WHEN", allow_hyphen_values = true, value_parser = instant_back)]
        since: Option<jiff::Timestamp>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct BudgetArgs {
    /// The project.
    pub(crate) project: String,
    /// How many credits.
    pub(crate) amount: Credits,
    /// After which it begins anew, in UTC.
    #[arg(long, value_enum, value_name = "PERIOD", default_value = "month")]
    pub(crate) every: Every,
    /// At which percentages of it an event is raised.
    #[arg(long, value_name = "PERCENT,...", value_delimiter = ',', default_values_t = tokrun_ledger::WARN_PERCENT)]
    pub(crate) warn: Vec<u8>,
    /// Setting twice under the same key sets once.
    #[arg(long, value_name = "KEY")]
    pub(crate) idempotency_key: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// Events at or after this instant: a date, an instant, or how long ago (`30d`).
    #[arg(long, value_name = "WHEN", allow_hyphen_values = true, value_parser = instant_back)]
    pub(crate) since: Option<jiff::Timestamp>,
    /// Go on with those that are still to come, until interrupted.
    #[arg(long)]
    pub(crate) follow: bool,
    /// Post each as JSON to this address, until it answers with a success; what has arrived there is not sent again.
    #[arg(long, value_name = "URL")]
    pub(crate) webhook: Option<String>,
    /// Run this program for each, with the event as JSON on its stdin, until it succeeds; no shell is involved.
    #[arg(long, value_name = "PROGRAM", conflicts_with = "webhook")]
    pub(crate) command: Option<String>,
}
