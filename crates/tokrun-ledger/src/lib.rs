//! The allowance ledger: who may still spend how many tokens, what was spent, and the proof of it, in one SQLite file.
//!
//! A request is *admitted* (its prompt and one output token are held), *debited* as its tokens are produced, and
//! *settled* once. A debit is reported only after it is on the disk, so whoever shows a token afterwards can never show
//! one that is not paid, whatever happens to the process or the machine. Any number of processes may use one file.
//!
//! The crate knows nothing of models: a model is a name, a token is a count.
//!
//! # How it keeps its promises
//! - Everything that changes the file passes through one thread a process (`writer`): what is queued becomes one
//!   transaction, at most one in 5 ms, and is answered after its fsync. The writers of all processes take turns on a file
//!   lock.
//! - Wallets form a tree (`tree`, `wallets`). A request pays with its wallet's own grants by priority, expiry and age, then
//!   with those of the pools above it as far as caps on the way let it, then with agreed overdrafts in the same order
//!   (`funds`). Whatever it takes, at any level, is taken in the same transaction, so that no level is ever overdrawn.
//! - Limits (`limits`) are counted in the same transactions; a request ends, or does not begin, at whatever ends first. What
//!   was agreed and moves no money is recorded in the chain as well (`record`), and what crosses a threshold leaves an
//!   event (`events`).
//! - What somebody asks for is granted once (`asks`). A part of a wallet can be delegated (`delegation`), and goes back to the
//!   grants that it came from; a wallet can be closed (`closing`), and what comes back to it later goes where its rest went.
//! - Access keys (`keys`) say for which wallet, in which role (`role`) and for what somebody acts; who acted is recorded.
//! - What is in flight is taken out of its grants at once, so that no two requests, in whatever processes, can spend the
//!   same credit: `entries - in flight = balance = live grants - overdraft used`, per grant and per wallet (`purse`, `open_request`).
//! - A settled request is one immutable entry and one row of the log (`request`, `chain`). Entries are double: over all
//!   accounts (issued, wallets, spent, expired) each of them sums to zero, and each carries the hash of the one before.
//! - What tokens cost (`prices`) is looked up and frozen where a request is admitted: the ledger's own price of the model
//!   goes before the one that the request brings.
//! - What is taken back (`reversal`) is a new entry that names what it takes back, and never more of it than there was.
//!   Grants may be for some models alone (`terms`), and vest with the calendar (`admin`).
//! - What recurs (`recurrence`) is given by whoever writes next, as of the midnight at which it was due; what of it is left
//!   then goes on into the next period, up to a cap, or expires (`purse`). `calendar` knows zones and daylight saving.
//! - Whoever dies leaves what it had debited; the next one that notices settles it (`recover`).
//! - What time does (grants that become effective or expire) is written by the next writer and shown by every reader as if
//!   it were written already, at the instant at which it happened.
//!
//! # How quick it is
//! Measured on 2 cores of a shared virtual machine that was busy with other things, with fsyncs of 0.15 to 4 ms.
//! `cargo bench -p tokrun-ledger` takes durable debits as an engine makes them, at most one commit in 5 ms, and bare SQLite at
//! the same pace with the same rows:
//!
//! | requests a commit | debits/s | of bare SQLite | commit p50, p99 |
//! |---:|---:|---:|---:|
//! | 1 | 199 | 1.00 | 4.0, 12.1 ms |
//! | 16 | 3,191 | 1.00 | 5.0, 11.8 ms |
//! | 64 | 12,612 | 0.99 | 5.0, 11.8 ms |
//! | 256 | 47,335 | 0.93 | 4.7, 13.5 ms |
//! | 256, of as many wallets | 41,821 | 0.86 | 5.8, 15.9 ms |
//!
//! `cargo run --release -p tokrun-ledger --example large DIRECTORY` makes a ledger of ten million entries over a year, of 200
//! wallets: it opens in 1.1 ms, a wallet with its forecast is shown in 0.4 ms, a statement of a month (4,166 lines of 50,000)
//! takes 315 ms. `verify` checks 356,000 entries a second there, each with its postings, its row in the log and what four
//! indexes have of it, while other work has its share of both cores; it takes 4.2 µs of processor time an entry, on as many
//! threads as there are.
//!
//! ```
//! use std::collections::BTreeMap;
//! use tokrun_ledger::{
//!     Admission, Credits, Debit, FinishReason, GrantRequest, LatencyHistogram, Ledger, Price, PromptDebit, Settlement,
//!     UsageBy, UsageQuery,
//! };
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let home = tempfile::tempdir()?;
//! let ledger = Ledger::open(&home.path().join("ledger.db"))?;
//! ledger.create_wallet("ada", None)?;
//! ledger.grant(GrantRequest::new("ada", "25".parse()?))?;
//!
//! ledger.admit(Admission {
//!     request_id: "request-1".into(),
//!     wallet: "ada".into(),
//!     starter: None,
//!     model: "smollm2-135m".into(),
//!     device: "cpu".into(),
//!     price: Price::default(), // 1 credit a token
//!     prompt_tokens: 10,
//!     key: None,
//!     project: None,
//!     tags: BTreeMap::new(),
//! })?;
//!
//! // Twenty tokens were generated, fifteen can be paid: deliver exactly those.
//! let (reply, committed) = std::sync::mpsc::channel();
//! let debit =
//!     Debit {
//!         request_id: "request-1".into(),
//!         prompt: Some(PromptDebit { cached_tokens: 0 }),
//!         output_tokens: 20,
//!         reasoning_tokens: 0,
//!     };
//! ledger.debit(vec![debit], move |debited| reply.send(debited).expect("the receiver is alive"));
//! let debited = committed.recv()??;
//! assert_eq!(debited[0].granted, 15);
//! assert!(debited[0].exhausted);
//!
//! let settled = ledger.settle(Settlement {
//!     queue_us: 100,
//!     ttft_us: Some(20_000),
//!     decode_us: 150_000,
//!     total_us: 180_000,
//!     itl: LatencyHistogram::from_iter([10_000; 14]),
//!     ..Settlement::new("request-1", FinishReason::Allowance)
//! })?;
//! assert_eq!(settled.debited, "25".parse::<Credits>()?);
//! assert_eq!(settled.balance, Credits::ZERO);
//!
//! let usage = ledger.usage(&UsageQuery::new(UsageBy::User))?;
//! assert_eq!((usage[0].key.as_str(), usage[0].total_tokens), ("ada", 25));
//! assert!(ledger.verify()?.passed());
//! # Ok(())
//! # }
//! ```

mod admin;
mod anchor;
mod asks;
mod audit;
mod backup;
mod browse;
mod calendar;
mod chain;
mod closing;
mod credits;
mod delegation;
mod deposit;
mod error;
mod events;
mod export;
mod forecast;
mod funds;
mod health;
mod histogram;
mod import;
pub mod json;
mod keys;
mod ledger;
mod limits;
mod open_request;
mod place;
mod prices;
mod purse;
mod query;
mod record;
mod recover;
mod recurrence;
mod request;
mod reversal;
mod role;
mod statement;
mod store;
mod terms;
mod text;
mod transfer;
mod tree;
mod types;
mod usage;
mod verify;
mod wallets;
mod watch;
mod writer;

pub use anchor::Anchor;
pub use asks::{Approval, AskState, AskView, NewAsk};
pub use browse::{LoggedRequest, WalletDay};
pub use calendar::Period;
pub use closing::Closing;
pub use credits::{Credits, MICRO, ParseCreditsError, Price};
pub use delegation::{Delegate, Delegation};
pub use deposit::{Deposit, Share};
pub use error::{KeyRefusal, LedgerError, Result};
pub use events::EventView;
pub use export::{ExportedEntry, ExportedPosting, ExportedRequest};
pub use forecast::Forecast;
pub use health::{Health, fsync_probe_us};
pub use histogram::LatencyHistogram;
pub use import::{ImportGrant, ImportRow, ImportedChange, ImportedRow};
pub use keys::{CreatedKey, KeyView, NewKey, is_key_secret};
pub use ledger::{Clock, Ledger};
pub use limits::{LimitReached, LimitScope, LimitSpan, LimitView, NewLimit, Quota, WARN_PERCENT};
pub use prices::{NewPrice, PriceView};
pub use recurrence::{RecurringGrant, RecurringView};
pub use reversal::{Correction, Refund, Reversed};
pub use role::{Action, Role};
pub use statement::{Spending, Spent, Statement, StatementKind, StatementLine, StatementQuery, StatementRequest};
pub use terms::{CreditValue, GrantClass, GrantTerms, ModelScope, Vesting};
pub use transfer::{Transfer, Transferred};
pub use tree::{DrawTerms, NewWallet, WalletChange, WalletKind};
pub use types::{
    Admission, Admitted, Debit, Debited, FinishReason, GrantKind, GrantRequest, GrantState, GrantView, PromptDebit,
    Settled, Settlement, StarterGrant, WalletView,
};
pub use usage::{Percentiles, UsageBy, UsageQuery, UsageRow};
pub use verify::{Problem, VerifyReport};
