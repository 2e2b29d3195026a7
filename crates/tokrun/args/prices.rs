//! Flags of what tokens cost.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use tokrun_ledger::{CreditValue, Credits};

use super::instant_ahead;
use crate::commands::{Money, Ratio};

#[derive(Debug, Subcommand)]
pub(crate) enum PriceCommand {
    /// The ledger's prices, or what every model costs at an instant.
    List {
        /// Only those of this model.
        model: Option<String>,
        /// Those that hold then, the catalogue's among them: a date, an instant, or a time from now (`30d`).
        #[arg(long, value_name = "WHEN", allow_hyphen_values = true, value_parser = instant_ahead)]
        at: Option<jiff::Timestamp>,
    },
    /// Set what a model's tokens cost, in credits a token. It goes before the catalogue's price, for whoever asks; what runs
    /// keeps the price that it was admitted at.
    Set(PriceSetArgs),
    /// Remove a price: what held before it, or the catalogue's, holds again.
    Remove {
        /// Its id, as `price list` tells it.
        id: String,
        /// Removing twice under the same key is no error.
        #[arg(long, value_name = "KEY")]
        idempotency_key: Option<String>,
    },
    /// What tokens cost on hardware of your own: what a price would have to be.
    Estimate(Box<EstimateArgs>),
}

#[derive(Debug, Args)]
pub(crate) struct PriceSetArgs {
    /// Which model, as `generate` names it.
    pub(crate) model: String,
    /// A prompt token.
    #[arg(long, value_name = "CREDITS")]
    pub(crate) prompt: Credits,
    /// A prompt token that is found in the prefix cache; as a prompt token if absent.
    #[arg(long, value_name = "CREDITS")]
    pub(crate) cached_prompt: Option<Credits>,
    /// An output token.
    #[arg(long, value_name = "CREDITS")]
    pub(crate) output_token: Credits,
    /// An output token that was reasoning; as an output token if absent.
    #[arg(long, value_name = "CREDITS")]
    pub(crate) reasoning: Option<Credits>,
    /// What a credit is worth; kept with each request, for exports.
    #[arg(long, value_name = "0.002EUR")]
    pub(crate) value: Option<CreditValue>,
    /// From when on: a date, an instant, or a time from now; now if absent.
    #[arg(long, value_name = "WHEN", value_parser = instant_ahead)]
    pub(crate) from: Option<jiff::Timestamp>,
    /// Until when; for good if absent.
    #[arg(long, value_name = "WHEN", value_parser = instant_ahead)]
    pub(crate) until: Option<jiff::Timestamp>,
    /// Setting twice under the same key sets once.
    #[arg(long, value_name = "KEY")]
    pub(crate) idempotency_key: Option<String>,
}

/// What the hardware costs, and what comes out of it. All figures are exact decimals.
#[derive(Debug, Args)]
pub(crate) struct EstimateArgs {
    /// What a card (or a machine) costs.
    #[arg(long, value_name = "30000EUR")]
    pub(crate) card_price: Money,
    /// How many there are.
    #[arg(long, value_name = "N", default_value = "1")]
    pub(crate) cards: Ratio,
    /// In how many years they are written off.
    #[arg(long, value_name = "YEARS", default_value = "4")]
    pub(crate) years: Ratio,
    /// The power that each takes while it computes, the share of its host included, in watts.
    #[arg(long, value_name = "WATTS")]
    pub(crate) power: Ratio,
    /// The power that each takes while it does not.
    #[arg(long, value_name = "WATTS", default_value = "0")]
    pub(crate) idle_power: Ratio,
    /// What a kilowatt-hour costs, in the card's currency.
    #[arg(long, value_name = "0.30EUR")]
    pub(crate) electricity: Money,
    /// Power at the meter for each watt of the cards: cooling and losses.
    #[arg(long, value_name = "FACTOR", default_value = "1")]
    pub(crate) overhead: Ratio,
    /// The share of the time in which they compute, above 0 and up to 1: idle time is paid by what is computed.
    #[arg(long, value_name = "SHARE")]
    pub(crate) utilisation: Ratio,
    /// Prompt tokens a second, of all cards.
    #[arg(long, value_name = "N")]
    pub(crate) prompt_tokens_per_s: Option<Ratio>,
    /// Output tokens a second, of all cards and all requests at once.
    #[arg(long, value_name = "N")]
    pub(crate) output_tokens_per_s: Option<Ratio>,
    /// What `tokrun bench --output json` measured: the best test of prompts alone, and of answers alone.
    #[arg(long, value_name = "FILE")]
    pub(crate) bench: Option<PathBuf>,
    /// What a prompt token costs that is found in the cache, as a share of one that is computed.
    #[arg(long, value_name = "SHARE", default_value = "0")]
    pub(crate) cached_share: Ratio,
    /// What a credit is worth: then the price is told in credits too.
    #[arg(long, value_name = "0.002EUR")]
    pub(crate) value: Option<Money>,
}
