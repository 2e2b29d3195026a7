//! What goes into the ledger and what comes out of it.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use serde::Serialize;

use crate::{
    Credits, Delegation, DrawTerms, GrantTerms, LatencyHistogram, LedgerError, LimitReached, Price, RecurringView,
    WalletKind,
};

/// A request that wants to start.
#[derive(Debug, Clone)]
pub struct Admission {
    /// Opaque, never used before.
    pub request_id: String,
    /// The name of the wallet that pays.
    pub wallet: String,
    /// Only if the caller may create that wallet: then an unknown one is created with this grant, inside the admission,
    /// unless the ledger is a service's.
    pub starter: Option<StarterGrant>,
    /// For the log.
    pub model: String,
    /// For the log.
    pub device: String,
    /// What it costs, frozen for the whole request, unless the ledger has a price of its own for the model: that is asked.
    pub price: Price,
    /// Held at the full prompt price, together with one output token.
    pub prompt_tokens: u64,
    /// The name of the key that it came with: its limits hold, and the log names it.
    pub key: Option<String>,
    /// Its limits hold, and the log names it.
    pub project: Option<String>,
    /// For the log.
    pub tags: BTreeMap<String, String>,
}

/// What a new wallet starts with.
#[derive(Debug, Clone, Copy)]
pub struct StarterGrant {
    /// Never expires. With zero, the wallet is created with no grant.
    pub amount: Credits,
}

/// An admitted request.
#[derive(Debug, Clone)]
pub struct Admitted {
    /// The opaque id of the wallet.
    pub wallet_id: String,
    /// The opaque id of the team it belongs to: the nearest one above it, else the wallet itself.
    pub team_id: String,
    /// Whether this admission created the wallet.
    pub wallet_created: bool,
    /// What it costs.
    pub price: Price,
    /// What is held for the prompt and one output token.
    pub held: Credits,
    /// What its wallet has left beside it; less than nothing if it is overdrawn.
    pub balance: Credits,
}

/// Tokens that a running request produced since its last debit.
#[derive(Debug, Clone)]
pub struct Debit {
    /// An admitted request.
    pub request_id: String,
    /// With the first debit of a request, and only there: pays the prompt and gives the rest of the hold back.
    pub prompt: Option<PromptDebit>,
    /// New output tokens.
    pub output_tokens: u32,
    /// So many of them, the first ones, were reasoning. Where reasoning follows an answer, it is a debit of its own.
    pub reasoning_tokens: u32,
}

/// How much of the prompt had to be computed.
#[derive(Debug, Clone, Copy)]
pub struct PromptDebit {
    /// Prompt tokens found in the prefix cache, at most the prompt.
    pub cached_tokens: u64,
}

/// A durable debit.
#[derive(Debug, Clone)]
pub struct Debited {
    /// Whose it is.
    pub request_id: String,
    /// Output tokens of this debit that are paid: deliver these and no more.
    pub granted: u32,
    /// Fewer were granted than asked for: the allowance, or a limit, ends here.
    pub exhausted: bool,
    /// The limit that ends it, if the allowance itself would have paid more.
    pub limited: Option<LimitReached>,
    /// Why nothing was debited although the commit succeeded: the request is not open, or the debit contradicts it.
    pub refused: Option<LedgerError>,
}

/// Why a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FinishReason {
    /// The model or a stop string ended it.
    Stop,
    /// It reached its limit of tokens.
    Length,
    /// The allowance ended.
    Allowance,
    /// A limit was reached.
    Limit,
    /// It was not done in time.
    Deadline,
    /// The user or client left.
    Cancelled,
    /// Something failed.
    Error,
    /// Its process died; settled by another one.
    Crashed,
}

impl FinishReason {
    /// The name used in the log and in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::Allowance => "allowance",
            FinishReason::Limit => "limit",
            FinishReason::Deadline => "deadline",
            FinishReason::Cancelled => "cancelled",
            FinishReason::Error => "error",
            FinishReason::Crashed => "crashed",
        }
    }
}

impl FinishReason {
    /// The reason of a row in the log; one that a later version added reads as an error.
    pub(crate) fn from_log(name: &str) -> FinishReason {
        use FinishReason::{Allowance, Cancelled, Crashed, Deadline, Error, Length, Limit, Stop};
        let known = [Stop, Length, Allowance, Limit, Deadline, Cancelled, Error, Crashed];
        known.into_iter().find(|reason| reason.as_str() == name).unwrap_or(Error)
    }
}

impl fmt::Display for FinishReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The end of a request, and how long it took. Times are those of the process that ran it.
#[derive(Debug, Clone)]
pub struct Settlement {
    /// An admitted request.
    pub request_id: String,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Output tokens that were reasoning, as far as debits did not say so. Where they have a price of their own, only those
    /// count that were debited as such.
    pub reasoning_tokens: u64,
    /// From admission to the first step that worked on it.
    pub queue_us: u64,
    /// From admission to the first delivered token; `None` if there was none.
    pub ttft_us: Option<u64>,
    /// From the first to the last delivered token.
    pub decode_us: u64,
    /// From admission to the end.
    pub total_us: u64,
    /// The times between delivered tokens.
    pub itl: LatencyHistogram,
    /// The energy that went into it, µJ; `None` where it could not be measured.
    pub energy_uj: Option<u64>,
}

impl Settlement {
    /// A settlement without any measured time.
    pub fn new(request_id: impl Into<String>, finish_reason: FinishReason) -> Settlement {
        Settlement {
            request_id: request_id.into(),
            finish_reason,
            reasoning_tokens: 0,
            queue_us: 0,
            ttft_us: None,
            decode_us: 0,
            total_us: 0,
            itl: LatencyHistogram::new(),
            energy_uj: None,
        }
    }
}

/// A settled request. Settling it again gives the same figures, with the balance of then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Settled {
    /// What it cost.
    pub debited: Credits,
    /// What its wallet has left, net of what is in flight.
    pub balance: Credits,
    /// Prompt tokens debited: all, or none if it ended before its first debit.
    pub prompt_tokens: u64,
    /// Those of them that were found in the cache.
    pub cached_tokens: u64,
    /// Output tokens debited.
    pub output_tokens: u64,
    /// As recorded: `crashed` if another process took this one for dead and settled first.
    #[serde(skip)]
    pub finish_reason: FinishReason,
}

/// An allowance to be given.
#[derive(Debug, Clone)]
pub struct GrantRequest {
    /// The name of the wallet.
    pub wallet: String,
    /// More than zero.
    pub amount: Credits,
    /// Lower burns first; 0 if nothing else is said.
    pub priority: i32,
    /// From when it can be spent; now if `None` or past.
    pub effective: Option<Timestamp>,
    /// From when it cannot be spent any more; never if `None`.
    pub expires: Option<Timestamp>,
    /// Shown in statements, kept apart from the hashed entries.
    pub memo: Option<String>,
    /// What it is beside an amount.
    pub terms: GrantTerms,
    /// The same key with the same arguments grants once, however often it is sent.
    pub idempotency_key: Option<String>,
}

impl GrantRequest {
    /// A grant that is effective now and never expires.
    pub fn new(wallet: impl Into<String>, amount: Credits) -> GrantRequest {
        GrantRequest {
            wallet: wallet.into(),
            amount,
            priority: 0,
            effective: None,
            expires: None,
            memo: None,
            terms: GrantTerms::default(),
            idempotency_key: None,
        }
    }
}

/// A wallet, seen now.
#[derive(Debug, Clone, Serialize)]
pub struct WalletView {
    /// Who it belongs to; the id again once the name was deleted.
    pub name: String,
    /// Opaque.
    pub id: String,
    /// The live grants less what is used of the overdraft, net of what is in flight.
    pub balance: Credits,
    /// What can be spent on top of the balance, or up to nothing if it is overdrawn: of the pools above and of agreed
    /// overdrafts.
    pub drawable: Credits,
    /// What it is for.
    pub kind: WalletKind,
    /// The name of the wallet it stands under.
    pub parent: Option<String>,
    /// The name of the nearest team, if it belongs to one.
    pub team: Option<String>,
    /// The name of the time zone whose calendar holds for it.
    pub zone: String,
    /// The agreed overdraft.
    pub overdraft: Credits,
    /// How far it may draw on its parent.
    pub draw: Option<DrawTerms>,
    /// What it has drawn in the current period.
    pub drawn: Credits,
    /// Held by, or debited to, requests that are not settled yet.
    pub in_flight: Credits,
    /// Admits no request, because it or a wallet above it is frozen.
    pub frozen: bool,
    /// Since when it is closed, for good.
    pub closed: Option<Timestamp>,
    /// What it is if another wallet delegated it, and has not revoked it.
    pub delegation: Option<Delegation>,
    /// When it was created.
    pub created: Timestamp,
    /// What it is given again and again.
    pub recurring: Vec<RecurringView>,
    /// Every grant it ever had, in burn-down order.
    pub grants: Vec<GrantView>,
}

/// Where a grant came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum GrantKind {
    /// Came with the wallet.
    Starter,
    /// Given by somebody.
    Grant,
    /// Received from another wallet.
    Transfer,
    /// What was left of a recurring grant when its next period began.
    Rollover,
    /// What an overdraft had paid for a request that was refunded.
    Refund,
}

/// What a grant is good for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum GrantState {
    /// Not effective yet.
    Pending,
    /// Can be spent.
    Live,
    /// Spent.
    Used,
    /// Too late.
    Expired,
    /// Taken back.
    Void,
}

/// A grant, seen now.
#[derive(Debug, Clone, Serialize)]
pub struct GrantView {
    /// Opaque.
    pub id: String,
    /// Where it came from.
    pub kind: GrantKind,
    /// What was given.
    pub amount: Credits,
    /// What can be spent of it, net of what is in flight.
    pub remaining: Credits,
    /// Held by, or debited to, requests that are not settled yet.
    pub in_flight: Credits,
    /// Lower burns first.
    pub priority: i32,
    /// From when it can be spent.
    pub effective: Timestamp,
    /// From when it cannot be spent any more.
    pub expires: Option<Timestamp>,
    /// When it was given.
    pub created: Timestamp,
    /// What it is good for.
    pub state: GrantState,
    /// What it was given for.
    pub memo: Option<String>,
    /// What it is beside an amount.
    pub terms: GrantTerms,
    /// The id that all grants of one vesting have in common; `void` takes it.
    pub vesting: Option<String>,
}
