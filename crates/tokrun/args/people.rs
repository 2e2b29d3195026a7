//! Flags of who acts for whom, and who asks for what.

use std::time::Duration;

use clap::{Args, Subcommand};
use tokrun_ledger::{Credits, ModelScope, Role};

use super::instant_ahead;

#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Create an access key of a wallet, and print its secret, this once.
    Create(KeyCreateArgs),
    /// All access keys.
    List {
        /// Only those of this wallet.
        wallet: Option<String>,
    },
    /// One access key.
    Show {
        /// Its name or id.
        key: String,
    },
    /// Give an access key another secret, and print it, this once.
    Rotate {
        /// Its name or id.
        key: String,
        /// How long the secret before is good for yet.
        #[arg(long, value_name = "TIME", value_parser = span, default_value = "24h")]
        grace: Duration,
        /// Rotating twice under the same key rotates once.
        #[arg(long, value_name = "KEY")]
        idempotency_key: Option<String>,
    },
    /// Print a link with which the owner of an access key signs in to the dashboard of `tokrun serve`, once.
    Link {
        /// Its name or id.
        key: String,
        /// How long the link is good.
        #[arg(long, value_name = "TIME", value_parser = span, default_value = "10m")]
        expires: Duration,
        /// Where the dashboard is.
        #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080")]
        url: String,
    },
    /// Make an access key good for nothing, for good.
    Revoke {
        /// Its name or id.
        key: String,
        /// Revoking twice under the same key is once.
        #[arg(long, value_name = "KEY")]
        idempotency_key: Option<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct KeyCreateArgs {
    /// The wallet that pays for what is done with it.
    pub(crate) wallet: String,
    /// What limits and `usage --by key` name it by; never used before, and in the books for good.
    pub(crate) name: String,
    /// What else may be done with it: member, auditor, finance or admin.
    #[arg(long, value_name = "ROLE", default_value = "member", value_parser = |role: &str| role.parse::<Role>())]
    pub(crate) role: Role,
    /// The only models that it is for: names, or beginnings with a `*`, as in llama-*,smollm2-135m.
    #[arg(long, value_name = "MODELS")]
    pub(crate) models: Option<ModelScope>,
    /// The only project that it is for; what names none is booked under it.
    #[arg(long, value_name = "NAME")]
    pub(crate) project: Option<String>,
    /// From when it is good for nothing: a date, an instant, or a time from now (`90d`).
    #[arg(long, value_name = "WHEN", value_parser = instant_ahead)]
    pub(crate) expires: Option<jiff::Timestamp>,
    /// Creating twice under the same key creates once, and prints the secret the first time alone.
    #[arg(long, value_name = "KEY")]
    pub(crate) idempotency_key: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct RequestArgs {
    /// How many credits.
    pub(crate) amount: Credits,
    /// What for: becomes the memo of what is given; kept outside the hashed books.
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
    /// For whose wallet; your account's if absent.
    #[arg(long, value_name = "NAME")]
    pub(crate) user: Option<String>,
    /// Asking twice under the same key asks once.
    #[arg(long, value_name = "KEY")]
    pub(crate) idempotency_key: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ApproveArgs {
    /// Its id, as `wallet requests` tells it.
    pub(crate) id: String,
    /// How many credits; what was asked for if absent.
    #[arg(long, value_name = "CREDITS")]
    pub(crate) amount: Option<Credits>,
    /// The wallet that gives them, such as the team's; they are granted if absent.
    #[arg(long, value_name = "WALLET")]
    pub(crate) from: Option<String>,
    /// When what is left of them expires: a date, an instant, or a time from now (`30d`).
    #[arg(long, value_name = "WHEN", value_parser = instant_ahead)]
    pub(crate) expires: Option<jiff::Timestamp>,
    /// Lower is spent first.
    #[arg(long, value_name = "N", default_value_t = 100, conflicts_with = "from", allow_negative_numbers = true)]
    pub(crate) priority: i32,
    /// Approving twice under the same key approves once.
    #[arg(long, value_name = "KEY")]
    pub(crate) idempotency_key: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct DelegateArgs {
    /// Whose credits they are: out of their own grants, as these would burn.
    pub(crate) from: String,
    /// The new wallet.
    pub(crate) name: String,
    /// How many credits.
    pub(crate) amount: Credits,
    /// When it is revoked by itself: a date, an instant, or a time from now (`8h`).
    #[arg(long, value_name = "WHEN", value_parser = instant_ahead)]
    pub(crate) expires: Option<jiff::Timestamp>,
    /// What it is for; kept outside the hashed books.
    #[arg(long, value_name = "TEXT")]
    pub(crate) memo: Option<String>,
    /// Delegating twice under the same key delegates once.
    #[arg(long, value_name = "KEY")]
    pub(crate) idempotency_key: Option<String>,
}

/// A time as people write it: `90s`, `24h`, `2 days`.
pub(super) fn span(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is no time: write 90s, 24h or 7d");
    let span: jiff::Span = text.parse().map_err(|_| wrong())?;
    let relative = jiff::SpanRelativeTo::days_are_24_hours();
    span.to_duration(relative).ok().and_then(|time| Duration::try_from(time).ok()).ok_or_else(wrong)
}
