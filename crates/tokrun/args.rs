//! The command line: a contract that scripts depend on.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use tokrun_ledger::{Credits, ModelScope};

mod agreed;
mod bench;
mod books;
mod compute;
mod load;
mod people;
mod prices;
mod serve;

pub(crate) use agreed::{BudgetArgs, EventsArgs, LimitCommand, LimitSetArgs, ProjectCommand, Span};
pub(crate) use bench::{BenchArgs, Devices, Switch};
pub(crate) use books::{ExportArgs, ExportFormat, ImportArgs, StatementArgs};
pub(crate) use compute::{Backend, ComputeArgs, Device, EngineArgs, WeightStorage};
pub(crate) use load::{BenchCommand, Dataset, Endpoint, LoadArgs, Objective, ObjectiveMetric, RandomPrompts};
pub(crate) use people::{ApproveArgs, DelegateArgs, KeyCommand, KeyCreateArgs, RequestArgs};
pub(crate) use prices::{EstimateArgs, PriceCommand, PriceSetArgs};
pub(crate) use serve::ServeArgs;

/// Run language models on your own machine, every token paid from an exact allowance before it is shown.
#[derive(Debug, Parser)]
#[command(name = "tokrun", version, max_term_width = 100, propagate_version = true)]
pub(crate) struct Cli {
    /// How results and errors are printed.
    #[arg(long, global = true, value_enum, default_value_t = Format::Text, value_name = "FORMAT", hide_possible_values = false)]
    pub(crate) output: Format,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Text,
    /// For programs: one JSON value on stdout.
    Json,
    /// A Markdown table (`bench`).
    Md,
    /// Comma-separated values (`bench`, `wallet statement`).
    Csv,
    /// One JSON object a line (`bench`).
    Jsonl,
    /// A page to be printed (`wallet statement`).
    Html,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Answer one prompt.
    Generate(Box<GenerateArgs>),
    /// Talk to a model, turn by turn.
    Chat(Box<ChatArgs>),
    /// Serve models over HTTP, to clients of OpenAI's and Anthropic's APIs.
    Serve(Box<ServeArgs>),
    /// Measure prefill and decode speed, as llama-bench does; or a server under load, with `bench serve`.
    Bench(Box<BenchArgs>),
    /// List, pull, show, verify and remove models.
    #[command(subcommand)]
    Model(ModelCommand),
    /// Create, fill, show and freeze wallets.
    #[command(subcommand)]
    Wallet(WalletCommand),
    /// Create, show, rotate and revoke access keys.
    #[command(subcommand)]
    Key(KeyCommand),
    /// Budgets of projects, which cut across wallets.
    #[command(subcommand)]
    Project(ProjectCommand),
    /// What tokens cost: set, list and remove prices, and estimate what hardware of your own makes them cost.
    #[command(subcommand)]
    Price(PriceCommand),
    /// Requests, tokens, speed and latency by user, model, project, key or day.
    Usage(UsageArgs),
    /// What somebody should hear of: limits and grants that are nearly, or wholly, used.
    Events(EventsArgs),
    /// Check, back up and export the ledger.
    #[command(subcommand)]
    Ledger(LedgerCommand),
    /// Check this machine and say what to do about what is wrong.
    Doctor(DoctorArgs),
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Write a manual page for each command.
    Man {
        /// Where to; `~/.local/share/man/man1`, for example. It is created if need be.
        directory: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    /// The prompt; `-` or nothing (with piped input) reads it from stdin.
    pub(crate) prompt: Option<String>,
    /// Read the prompt from a file.
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    pub(crate) file: Option<PathBuf>,
    /// Continue the prompt as it stands, without the model's chat template.
    #[arg(long, conflicts_with = "system")]
    pub(crate) raw: bool,
    /// Do not print the line of figures.
    #[arg(long)]
    pub(crate) no_stats: bool,
    #[command(flatten)]
    pub(crate) answer: AnswerArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ChatArgs {
    /// Do not print the line of figures after each answer.
    #[arg(long)]
    pub(crate) no_stats: bool,
    #[command(flatten)]
    pub(crate) answer: AnswerArgs,
}

/// What `generate` and `chat` share.
#[derive(Debug, Args)]
pub(crate) struct AnswerArgs {
    /// A name from the catalogue, a GGUF file, or a directory of safetensors.
    #[arg(long, short, value_name = "NAME|PATH", env = "TOKRUN_MODEL")]
    pub(crate) model: Option<String>,
    /// The system message.
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    #[command(flatten)]
    pub(crate) payer: PayerArgs,
    #[command(flatten)]
    pub(crate) form: FormArgs,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    #[command(flatten)]
    pub(crate) compute: ComputeArgs,
}

/// One form at most; the model's end token then ends the answer, and nothing else does but --max-tokens, --stop and
/// the allowance, which may cut it short.
#[derive(Debug, Args)]
#[command(next_help_heading = "Form of the answer (--max-tokens and --stop may still cut it short)")]
#[group(multiple = false, conflicts_with = "ignore_eos")]
pub(crate) struct FormArgs {
    /// Answer with JSON that the JSON Schema in FILE describes.
    #[arg(long, value_name = "FILE")]
    pub(crate) json_schema: Option<PathBuf>,
    /// Answer with text that the regular expression RE matches as a whole.
    #[arg(long, value_name = "RE")]
    pub(crate) regex: Option<String>,
    /// Answer with text of the context-free grammar in FILE, in Lark's syntax.
    #[arg(long, value_name = "FILE")]
    pub(crate) grammar: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Who pays")]
pub(crate) struct PayerArgs {
    /// Whose allowance pays; your account's name if absent.
    #[arg(long, value_name = "NAME")]
    pub(crate) user: Option<String>,
    /// The project it is booked under.
    #[arg(long, value_name = "NAME")]
    pub(crate) project: Option<String>,
    /// Attribution, as often as needed.
    #[arg(long = "tag", value_name = "K=V", value_parser = key_value)]
    pub(crate) tags: Vec<(String, String)>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct SamplingArgs {
    /// Output tokens at most.
    #[arg(long, short = 'n', value_name = "N")]
    pub(crate) max_tokens: Option<usize>,
    /// 0 takes the likeliest token; higher is more varied.
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    pub(crate) temperature: Option<f32>,
    /// Choose among the likeliest tokens that together have this probability.
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub(crate) top_p: Option<f32>,
    /// Choose among this many likeliest tokens.
    #[arg(long, value_name = "K")]
    pub(crate) top_k: Option<usize>,
    /// Choose among tokens with at least this share of the likeliest one's probability.
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub(crate) min_p: Option<f32>,
    /// Divide the logits of tokens that occurred already; 1 is off.
    #[arg(long, value_name = "R", allow_negative_numbers = true)]
    pub(crate) repeat_penalty: Option<f32>,
    /// Lower tokens that the answer already has, once.
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub(crate) presence_penalty: Option<f32>,
    /// Lower tokens that the answer already has, each time.
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub(crate) frequency_penalty: Option<f32>,
    /// Add B to the logit of token ID, as often as needed.
    #[arg(long = "logit-bias", value_name = "ID=B", value_parser = logit_bias)]
    pub(crate) logit_bias: Vec<(u32, f32)>,
    /// The same seed gives the same text.
    #[arg(long, value_name = "S")]
    pub(crate) seed: Option<u64>,
    /// End the answer before this string, as often as needed.
    #[arg(long = "stop", value_name = "STR")]
    pub(crate) stop: Vec<String>,
    /// Report each token's log-probability and the N likeliest (with `--output json`).
    #[arg(long, value_name = "N")]
    pub(crate) logprobs: Option<usize>,
    /// Go on past the model's end token.
    #[arg(long)]
    pub(crate) ignore_eos: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ModelCommand {
    /// The models of the catalogue, and which are here.
    List,
    /// Fetch a model.
    Pull {
        /// Its name in the catalogue.
        name: String,
    },
    /// What a model is: from the catalogue, and from its file if it is here.
    Show {
        /// A name from the catalogue, a GGUF file, or a directory of safetensors.
        model: String,
        #[command(flatten)]
        fit: FitArgs,
    },
    /// Hash the files of a model, or of all, and compare.
    Verify {
        /// Its name; all that are here if absent.
        name: Option<String>,
    },
    /// Delete a model's files.
    Remove {
        /// Its name.
        name: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct FitArgs {
    /// Show how much memory it takes on the device, and how many tokens of context fit; nothing is loaded.
    #[arg(long)]
    pub(crate) fit: bool,
    /// Where it would be computed.
    #[arg(long, value_name = "auto|cpu|cuda[:N]", default_value = "auto", value_parser = Device::parse, requires = "fit")]
    pub(crate) device: Device,
    /// Longest sequence, prompt and answer together, in tokens; what the model allows if absent.
    #[arg(long, short = 'c', value_name = "N", value_parser = compute::positive, requires = "fit")]
    pub(crate) context: Option<usize>,
    /// What weights of floats would be rounded to.
    #[arg(long, value_enum, value_name = "TYPE", requires = "fit")]
    pub(crate) dtype: Option<WeightStorage>,
    /// Sequences at once.
    #[arg(long, value_name = "N", value_parser = compute::positive, default_value = "1", requires = "fit")]
    pub(crate) sequences: usize,
}

#[derive(Debug, Subcommand)]
pub(crate) enum WalletCommand {
    /// All wallets and their balances.
    List,
    /// One wallet with its grants.
    Show {
        /// Whose; your account's name if absent.
        user: Option<String>,
    },
    /// Open an empty wallet.
    Create {
        /// Whose.
        user: String,
        #[command(flatten)]
        terms: TermsArgs,
        /// Creating twice under the same key creates once.
        #[arg(long, value_name = "KEY")]
        idempotency_key: Option<String>,
    },
    /// Change where a wallet stands, and what it may draw or overdraw.
    Set {
        /// Whose.
        user: String,
        #[command(flatten)]
        terms: TermsArgs,
        /// Let it stand under no wallet.
        #[arg(long, conflicts_with = "parent")]
        no_parent: bool,
        /// Changing twice under the same key changes once.
        #[arg(long, value_name = "KEY")]
        idempotency_key: Option<String>,
    },
    /// Add an allowance to a wallet.
    Grant(GrantArgs),
    /// Give everybody right under a wallet a share: by weight, exactly. What cannot be split, a micro-credit each, goes
    /// to the first by name.
    Deposit(DepositArgs),
    /// Give credits of one wallet to another.
    Transfer {
        /// Whose they are: out of their own grants, as these would burn.
        from: String,
        /// Who gets them.
        to: String,
        /// How many credits.
        amount: Credits,
        /// When what is left of them expires, unless they expire earlier: a date, an instant, or a time from now.
        #[arg(long, value_name = "WHEN", value_parser = instant_ahead)]
        expires: Option<jiff::Timestamp>,
        /// What it is for; kept outside the hashed books.
        #[arg(long, value_name = "TEXT")]
        memo: Option<String>,
        /// Transferring twice under the same key transfers once.
        #[arg(long, value_name = "KEY")]
        idempotency_key: Option<String>,
    },
    /// Pay a request back to the grants that paid it; what had expired meanwhile stays expired.
    Refund {
        /// Its id, as `generate --output json` and statements tell it.
        request: String,
        /// How many credits; all that was not refunded yet if absent.
        amount: Option<Credits>,
        /// What it is for; kept outside the hashed books.
        #[arg(long, value_name = "TEXT")]
        memo: Option<String>,
        /// Refunding twice under the same key refunds once.
        #[arg(long, value_name = "KEY")]
        idempotency_key: Option<String>,
    },
    /// Take back what is left of a grant made by mistake, or of a transfer: its giver gets it.
    Correct {
        /// The grant's id, as `wallet show --output json` tells it; of a transfer, that of the grant received.
        grant: String,
        /// How many credits; all that is left of it if absent.
        amount: Option<Credits>,
        /// What it is for; kept outside the hashed books.
        #[arg(long, value_name = "TEXT")]
        memo: Option<String>,
        /// Correcting twice under the same key corrects once.
        #[arg(long, value_name = "KEY")]
        idempotency_key: Option<String>,
    },
    /// Take a grant back: what is left of it, or what a recurring one would still give.
    Void {
        /// Its id, as `wallet show --output json` tells it.
        grant: String,
        /// The same key makes nothing else void.
        #[arg(long, value_name = "KEY")]
        idempotency_key: Option<String>,
    },
    /// Limit what is used in a minute, a day or a month, by one request, or at once.
    #[command(subcommand)]
    Limit(LimitCommand),
    /// Refuse new requests of a wallet.
    Freeze {
        /// Whose.
        user: String,
        /// Freezing twice under the same key freezes once, whatever was thawed meanwhile.
        #[arg(long, value_name = "KEY")]
        idempotency_key: Option<String>,
    },
    /// Allow them again.
    Thaw {
        /// Whose.
        user: String,
        /// Thawing twice under the same key thaws once, whatever was frozen meanwhile.
        #[arg(long, value_name = "KEY")]
        idempotency_key: Option<String>,
    },
    /// Ask for an allowance; whoever may grant it hears of it.
    Request(RequestArgs),
    /// What was asked for, and what came of it.
    Requests {
        /// Only for this wallet.
        user: Option<String>,
        /// Only what nobody has answered.
        #[arg(long)]
        open: bool,
    },
    /// Give what was asked for, once.
    Approve(ApproveArgs),
    /// Give nothing, and say why.
    Deny {
        /// Its id, as `wallet requests` tells it.
        id: String,
        /// Why; kept outside the hashed books.
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        /// Denying twice under the same key denies once.
        #[arg(long, value_name = "KEY")]
        idempotency_key: Option<String>,
    },
    /// Open a wallet under another one for an agent or a script, with a part of what that has, and no more.
    Delegate(DelegateArgs),
    /// End a delegation: what is left goes back to the grants that it came from.
    Revoke {
        /// The delegated wallet.
        name: String,
        /// Revoking twice under the same key is once: what came back meanwhile stays.
        #[arg(long, value_name = "KEY")]
        idempotency_key: Option<String>,
    },
    /// Close the wallet of somebody who leaves, for good: with its delegations, keys, and all that would still come.
    Close {
        /// Whose.
        user: String,
        /// The wallet that gets what is left; without it, what is left is void.
        #[arg(long, value_name = "WALLET")]
        to: Option<String>,
        /// Closing twice under the same key closes once.
        #[arg(long, value_name = "KEY")]
        idempotency_key: Option<String>,
    },
    /// Create, change and fill wallets as a table says: all of it, or nothing.
    Import(ImportArgs),
    /// What came in and what was spent, between two instants or in a month.
    Statement(StatementArgs),
}

/// Where a wallet stands, and what it may spend beside its grants.
#[derive(Debug, Args)]
pub(crate) struct TermsArgs {
    /// What it is for; a person if nothing else is said.
    #[arg(long, value_enum)]
    pub(crate) kind: Option<Kind>,
    /// The wallet that it stands under.
    #[arg(long, value_name = "WALLET")]
    pub(crate) parent: Option<String>,
    /// The time zone of its days and months, such as Europe/Berlin; the parent's if absent, else UTC.
    #[arg(long, value_name = "ZONE")]
    pub(crate) zone: Option<String>,
    /// How far below nothing it may go, when everything else is spent.
    #[arg(long, value_name = "CREDITS")]
    pub(crate) overdraft: Option<Credits>,
    /// How much it may draw from its parent when its own grants are spent: an amount, or `all`.
    #[arg(long, value_name = "CREDITS|all", value_parser = cap)]
    pub(crate) draw: Option<Cap>,
    /// The period after which --draw begins anew; never if absent.
    #[arg(long, value_enum, requires = "draw", value_name = "PERIOD")]
    pub(crate) draw_every: Option<Every>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    Organisation,
    Team,
    Person,
    Service,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Every {
    Day,
    Week,
    Month,
}

/// At most so much, or all there is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cap(pub(crate) Option<Credits>);

pub(crate) fn cap(text: &str) -> Result<Cap, String> {
    match text {
        "all" => Ok(Cap(None)),
        amount => amount.parse().map(|amount| Cap(Some(amount))).map_err(|error| format!("{error}, or `all`")),
    }
}

/// What credits are good for, and what they are worth.
#[derive(Debug, Args)]
pub(crate) struct CreditTermsArgs {
    /// The only models that they pay for: names, or beginnings with a `*`, as in llama-*,smollm2-135m.
    #[arg(long, value_name = "MODELS")]
    pub(crate) models: Option<ModelScope>,
    /// They are given away, not paid for.
    #[arg(long)]
    pub(crate) promotional: bool,
    /// What one of them is worth, for as long as it lasts.
    #[arg(long, value_name = "0.002EUR")]
    pub(crate) value: Option<tokrun_ledger::CreditValue>,
}

#[derive(Debug, Args)]
pub(crate) struct DepositArgs {
    /// Under which wallet the members stand.
    pub(crate) wallet: String,
    /// How many credits, all together.
    pub(crate) amount: Credits,
    /// What a member's share weighs (repeatable); 1 if nothing is said.
    #[arg(long = "weight", value_name = "MEMBER=N", value_parser = weight)]
    pub(crate) weights: Vec<(String, u32)>,
    /// When what is left of them expires: a date, an instant, or a time from now (`30d`).
    #[arg(long, value_name = "WHEN", value_parser = instant_ahead)]
    pub(crate) expires: Option<jiff::Timestamp>,
    /// Lower is spent first.
    #[arg(long, value_name = "N", default_value_t = 100, allow_negative_numbers = true)]
    pub(crate) priority: i32,
    #[command(flatten)]
    pub(crate) terms: CreditTermsArgs,
    /// What it is for; kept outside the hashed books.
    #[arg(long, value_name = "TEXT")]
    pub(crate) memo: Option<String>,
    /// Depositing twice under the same key deposits once.
    #[arg(long, value_name = "KEY")]
    pub(crate) idempotency_key: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct GrantArgs {
    /// Whose.
    pub(crate) user: String,
    /// How many credits; at the default price a credit is a token.
    pub(crate) amount: Credits,
    /// When what is left of it expires: a date, an instant, or a time from now (`30d`).
    #[arg(long, value_name = "WHEN", value_parser = instant_ahead)]
    pub(crate) expires: Option<jiff::Timestamp>,
    /// When it can first be spent; now if absent.
    #[arg(long, value_name = "WHEN", value_parser = instant_ahead)]
    pub(crate) effective: Option<jiff::Timestamp>,
    /// Lower is spent first.
    #[arg(long, value_name = "N", default_value_t = 100, allow_negative_numbers = true)]
    pub(crate) priority: i32,
    /// What it is for; kept outside the hashed books.
    #[arg(long, value_name = "TEXT")]
    pub(crate) memo: Option<String>,
    /// Granting twice under the same key grants once.
    #[arg(long, value_name = "KEY")]
    pub(crate) idempotency_key: Option<String>,
    /// Give it again and again, each time good until the next: now (or at --effective), then at midnight in the wallet's
    /// time zone.
    #[arg(long, value_enum, conflicts_with = "expires", value_name = "PERIOD")]
    pub(crate) every: Option<Every>,
    /// On which day of the month (1 to 31) or of the week (1, Monday, to 7); that of the first grant if absent.
    #[arg(long, requires = "every", value_name = "DAY", value_parser = day)]
    pub(crate) on: Option<u8>,
    /// Give none at or after this instant.
    #[arg(long, requires = "every", value_name = "WHEN", value_parser = instant_ahead)]
    pub(crate) until: Option<jiff::Timestamp>,
    /// How much of what is left goes on into the next period.
    #[arg(long, requires = "every", value_name = "CREDITS", default_value = "0")]
    pub(crate) rollover: Credits,
    #[command(flatten)]
    pub(crate) terms: CreditTermsArgs,
    /// Let it vest in so many equal parts, one a period (--vest-every), each at midnight in the wallet's time zone.
    #[arg(long, value_name = "PERIODS", conflicts_with = "every", value_parser = periods)]
    pub(crate) vest: Option<u32>,
    /// The period of --vest.
    #[arg(long, value_enum, requires = "vest", value_name = "PERIOD", default_value = "month")]
    pub(crate) vest_every: Every,
    /// Let nothing vest before so many periods have passed, and then all of theirs at once.
    #[arg(long, requires = "vest", value_name = "PERIODS", default_value_t = 0, value_parser = periods)]
    pub(crate) cliff: u32,
}

#[derive(Debug, Args)]
pub(crate) struct UsageArgs {
    /// What to group by.
    #[arg(long, value_enum, default_value_t = GroupBy::User)]
    pub(crate) by: GroupBy,
    /// Requests that ended at or after this instant: a date, an instant, or how long ago (`30d`).
    #[arg(long, value_name = "WHEN", allow_hyphen_values = true, value_parser = instant_back)]
    pub(crate) since: Option<jiff::Timestamp>,
    /// Requests that ended before this instant.
    #[arg(long, value_name = "WHEN", allow_hyphen_values = true, value_parser = instant_back)]
    pub(crate) until: Option<jiff::Timestamp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum GroupBy {
    User,
    Model,
    Project,
    Key,
    Day,
}

#[derive(Debug, Subcommand)]
pub(crate) enum LedgerCommand {
    /// Recompute the whole chain of entries and every balance; a ledger that fails refuses to spend.
    Verify,
    /// Print the head of the chain, to be kept where nobody can write who can write the ledger.
    Anchor {
        /// Verify the ledger, and that nothing was rewritten since it printed this.
        #[arg(long, value_name = "ANCHOR")]
        check: Option<tokrun_ledger::Anchor>,
    },
    /// Copy the ledger, consistent and durable, while it is in use.
    Backup {
        /// A file that does not exist yet.
        file: PathBuf,
    },
    /// Write the books for other programs to stdout.
    Export(ExportArgs),
}

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Whether this model fits; the default model if absent.
    #[arg(long, short, value_name = "NAME|PATH", env = "TOKRUN_MODEL")]
    pub(crate) model: Option<String>,
}

fn weight(text: &str) -> Result<(String, u32), String> {
    let (member, weight) = text.rsplit_once('=').ok_or("expected MEMBER=N")?;
    let weight = weight.parse().map_err(|_| format!("`{weight}` is no weight: write a whole number"))?;
    Ok((member.to_owned(), weight))
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE".to_owned()),
    }
}

fn logit_bias(text: &str) -> Result<(u32, f32), String> {
    let (id, bias) = text.split_once('=').ok_or("expected ID=BIAS")?;
    let id = id.parse().map_err(|_| format!("`{id}` is no token id"))?;
    let bias: f32 = bias.parse().map_err(|_| format!("`{bias}` is no number"))?;
    if bias.is_nan() { Err("the bias must be a number".to_owned()) } else { Ok((id, bias)) }
}

/// A day by its number.
fn day(text: &str) -> Result<u8, String> {
    let expected = "expected a number: a day of the month from 1 to 31, or of the week from 1 (Monday) to 7";
    text.parse().map_err(|_| expected.to_owned())
}

/// How many periods.
fn periods(text: &str) -> Result<u32, String> {
    let expected = "expected how many periods, such as 12; --vest-every says how long one is";
    text.parse().map_err(|_| expected.to_owned())
}

/// An instant as people write it; a span counts from now on: `30d`, `2 weeks`.
fn instant_ahead(text: &str) -> Result<jiff::Timestamp, String> {
    instant(text, |now, span| now.checked_add(span))
}

/// An instant as people write it; a span counts back from now.
fn instant_back(text: &str) -> Result<jiff::Timestamp, String> {
    instant(text, |now, span| now.checked_sub(span.abs()))
}

fn instant(
    text: &str,
    from_now: impl Fn(&jiff::ZonedDateTime, jiff::Span) -> Result<jiff::ZonedDateTime, jiff::Error>,
) -> Result<jiff::Timestamp, String> {
    When::parse(text, from_now)?.at(&jiff::tz::TimeZone::system())
}

/// An instant as people write it. A date alone has none until it is known whose day it is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum When {
    At(jiff::Timestamp),
    On(jiff::civil::DateTime),
}

impl When {
    pub(crate) fn parse(
        text: &str,
        from_now: impl Fn(&jiff::ZonedDateTime, jiff::Span) -> Result<jiff::ZonedDateTime, jiff::Error>,
    ) -> Result<When, String> {
        if let Ok(zoned) = text.parse::<jiff::ZonedDateTime>() {
            return Ok(When::At(zoned.timestamp()));
        }
        if let Ok(instant) = text.parse::<jiff::Timestamp>() {
            return Ok(When::At(instant));
        }
        if let Ok(date) = text.parse::<jiff::civil::DateTime>() {
            return Ok(When::On(date));
        }
        if let Ok(span) = text.parse::<jiff::Span>() {
            let zoned = from_now(&jiff::ZonedDateTime::now(), span);
            return zoned.map(|zoned| When::At(zoned.timestamp())).map_err(|error| error.to_string());
        }
        Err("expected a date (2026-12-31), an instant (2026-12-31T18:00:00Z) or a span of time (30d)".to_owned())
    }

    /// The instant, where dates are those of a time zone.
    pub(crate) fn at(self, zone: &jiff::tz::TimeZone) -> Result<jiff::Timestamp, String> {
        match self {
            When::At(instant) => Ok(instant),
            When::On(date) => {
                let zoned = date.to_zoned_datetime(zone.clone());
                zoned.map(|zoned| zoned.timestamp()).map_err(|error| error.to_string())
            }
        }
    }
}
