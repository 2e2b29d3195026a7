//! What can go wrong with an allowance, one variant per decision a caller can take.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::ErrorCode;

use crate::text::shown;
use crate::{AskState, Credits, LimitReached};

/// The result of a ledger operation.
pub type Result<T, E = LedgerError> = std::result::Result<T, E>;

/// Why the ledger did not do what it was asked to. Whatever the variant, nothing was changed.
///
/// Clonable, because one failed commit answers everybody who waited for it.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum LedgerError {
    /// No wallet has this name.
    #[error("there is no wallet `{0}`; create it with `tokrun wallet create {0}`", shown(name))]
    UnknownWallet {
        /// The name asked for.
        name: String,
    },
    /// The name is taken.
    #[error("the wallet `{}` exists already; choose another name, or grant to this one", shown(name))]
    WalletExists {
        /// The name asked for.
        name: String,
    },
    /// Not usable as a wallet's name.
    #[error("`{}` cannot name a wallet: {reason}", shown(name))]
    InvalidName {
        /// The name asked for.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A wallet cannot be what it is asked to be: its parent, kind, time zone or overdraft.
    #[error("the wallet `{}` cannot be so: {reason}", shown(name))]
    InvalidWallet {
        /// Whose it is.
        name: String,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// The wallet, or one above it, is frozen: it admits no request.
    #[error("the wallet `{0}` is frozen; `tokrun wallet thaw {0}` lets it spend again", shown(name))]
    Frozen {
        /// The frozen one.
        name: String,
    },
    /// The wallet was closed, for good.
    #[error("the wallet `{}` is closed; use another one", shown(name))]
    WalletClosed {
        /// The closed one.
        name: String,
    },
    /// The allowance does not cover the prompt and one output token.
    #[error(
        "the allowance of `{0}` is used up: {needed} credits are needed, {balance} are left; grant more with `tokrun wallet grant {0} AMOUNT`",
        shown(name)
    )]
    Exhausted {
        /// Whose wallet it is.
        name: String,
        /// The prompt at full price and one output token.
        needed: Credits,
        /// What is left.
        balance: Credits,
    },
    /// A limit does not admit the request now.
    #[error("a limit is reached: {reached}; the ledger's owner can change it with `tokrun wallet limit set`")]
    Limited {
        /// Which one, and when it begins anew.
        reached: Box<LimitReached>,
    },
    /// No limit has this id.
    #[error("there is no limit `{}`; `tokrun wallet limit list --output json` tells their ids", shown(id))]
    UnknownLimit {
        /// The id asked for.
        id: String,
    },
    /// No access key has this id or name.
    #[error("there is no access key `{}`; `tokrun key list` tells their names", shown(id))]
    UnknownKey {
        /// The id or name asked for.
        id: String,
    },
    /// The name of a key was used before, for one that may be revoked by now.
    #[error("there was an access key `{}` already, and the log names it; choose another name", shown(name))]
    KeyExists {
        /// The name asked for.
        name: String,
    },
    /// A key that cannot be.
    #[error("invalid access key: {reason}")]
    InvalidKey {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Whoever shows this secret may do nothing. The message tells nobody why.
    #[error("this access key is not valid; ask for another one where you have it from")]
    KeyRefused {
        /// Why, for those who keep the ledger.
        reason: KeyRefusal,
    },
    /// A key does not reach so far.
    #[error("the access key `{}` is not for {what}; use another key", shown(key))]
    KeyScope {
        /// The key's name.
        key: String,
        /// The wallet, model or project that it is not for.
        what: String,
    },
    /// The operating system gives no random bits.
    #[error("this system gives no random bits for a key ({reason}); try again, or on another machine")]
    NoRandomness {
        /// What it said.
        reason: String,
    },
    /// Nobody asked for an allowance under this id.
    #[error("there is no request for an allowance `{}`; `tokrun wallet requests` tells their ids", shown(id))]
    UnknownAsk {
        /// The id asked for.
        id: String,
    },
    /// It was answered before.
    #[error("the request for an allowance `{}` was {state} already; ask again", shown(id))]
    Answered {
        /// Its id.
        id: String,
        /// How.
        state: AskState,
    },
    /// No event has this id.
    #[error("there is no event `{}`; `tokrun events --output json` tells their ids", shown(id))]
    UnknownEvent {
        /// The id asked for.
        id: String,
    },
    /// A limit that says nothing, or what cannot be counted.
    #[error("invalid limit: {reason}")]
    InvalidLimit {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// No price has this id.
    #[error("there is no price `{}`; `tokrun price list --output json` tells their ids", shown(id))]
    UnknownPrice {
        /// The id asked for.
        id: String,
    },
    /// A price that cannot be.
    #[error("invalid price: {reason}")]
    InvalidPrice {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// No grant has this id.
    #[error("there is no grant `{}`; `tokrun wallet show USER --output json` tells their ids", shown(id))]
    UnknownGrant {
        /// The id asked for.
        id: String,
    },
    /// A grant of nothing, of more than can be counted, or that could never be spent.
    #[error("invalid grant: {reason}")]
    InvalidGrant {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A refund or correction of more than was taken, or of nothing.
    #[error("this cannot be taken back: {reason}")]
    InvalidReversal {
        /// What is wrong, and what to do.
        reason: String,
    },
    /// No settled request has this id.
    #[error("there is no settled request `{}`; `tokrun wallet statement USER` tells their ids", shown(id))]
    NotSettled {
        /// The id asked for.
        id: String,
    },
    /// A row of a table that cannot be imported; none of them is.
    #[error("row {row}, column {column}: {reason}")]
    Row {
        /// Its number, the first one's being 1.
        row: u64,
        /// The column.
        column: &'static str,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// A request that contradicts itself, a bug of the caller.
    #[error("invalid request `{}`: {reason}", shown(id))]
    InvalidRequest {
        /// The request.
        id: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The request id was used before.
    #[error("the request id `{}` was used before; every request needs a new one", shown(id))]
    DuplicateRequest {
        /// The request.
        id: String,
    },
    /// The request is not open: never admitted, settled, or taken for dead and settled by another process.
    #[error("the request `{}` is not open; it was settled or never admitted", shown(id))]
    UnknownRequest {
        /// The request.
        id: String,
    },
    /// The idempotency key was used for something else.
    #[error("the idempotency key `{}` was used before with other arguments; use a new one", shown(key))]
    IdempotencyConflict {
        /// The key.
        key: String,
    },
    /// The ledger contradicts itself and refuses to spend.
    #[error(
        "the ledger is marked bad and spends nothing: {reason}; restore a backup, or repair it and run `tokrun ledger verify`"
    )]
    Bad {
        /// What was found.
        reason: String,
    },
    /// The file is from a newer version of this program.
    #[error("{path} has schema version {found}, this program knows {known}; upgrade tokrun")]
    NewerSchema {
        /// The ledger.
        path: PathBuf,
        /// The version of the file.
        found: i64,
        /// The newest version known here.
        known: i64,
    },
    /// The file is from an older version of this program, and open for reading alone.
    #[error(
        "{path} has schema version {found}, this program knows {known}, and may not bring it up to date; let its owner run `tokrun ledger verify` once where it can be written"
    )]
    OlderSchema {
        /// The ledger.
        path: PathBuf,
        /// The version of the file.
        found: i64,
        /// The newest version known here.
        known: i64,
    },
    /// The file, or its log, was replaced, moved or removed while this process had it open.
    #[error(
        "{path} or its log was replaced, moved or removed while it was in use, and nothing more is charged; put it back, or restart this program"
    )]
    Replaced {
        /// The ledger.
        path: PathBuf,
    },
    /// The file is something else.
    #[error("{path} is not a tokrun ledger: {reason}; move it away, or restore a backup")]
    NotALedger {
        /// The file.
        path: PathBuf,
        /// How that shows.
        reason: String,
    },
    /// The file is damaged.
    #[error("the ledger file is damaged ({reason}); restore a backup")]
    Corrupt {
        /// What SQLite said.
        reason: String,
    },
    /// Wallets and grants are the business of whoever owns the file (and of the superuser).
    #[error(
        "{path} belongs to another user, who alone may change its wallets and grants; ask them, or run this as them"
    )]
    NotOwner {
        /// The ledger.
        path: PathBuf,
    },
    /// The file has several names. SQLite's log and the locks lie beside each of them, so that whoever uses another name
    /// would not see what is spent under this one.
    #[error(
        "{path} is one of several hard links to the same ledger, which cannot be kept apart; use one path, and remove the other links"
    )]
    HardLinked {
        /// The name that was used.
        path: PathBuf,
    },
    /// SQLite's locks cannot be trusted there.
    #[error(
        "{path} is on a network filesystem ({kind}), where file locks cannot be trusted; set TOKRUN_HOME to a local disk"
    )]
    NetworkFilesystem {
        /// The ledger.
        path: PathBuf,
        /// Its filesystem.
        kind: &'static str,
    },
    /// The ledger, or its directory, cannot be written.
    #[error("{path} cannot be written; check its owner and permissions, or set TOKRUN_HOME to a directory of yours")]
    ReadOnly {
        /// The ledger.
        path: PathBuf,
    },
    /// The disk is full; nothing was charged.
    #[error("the disk is full: nothing was charged; free some space beside the ledger and try again")]
    DiskFull,
    /// The disk refused to read or write the ledger; nothing was charged. A limit on the size of files, or a quota, looks
    /// like this too. On a disk that fails all that follows as well, whoever opens the file next may still find what was
    /// refused last, as after a crash: repeat it with its idempotency key.
    #[error("the disk failed ({reason}): nothing was charged; check its space, quota and health, and try again")]
    DiskFailed {
        /// What SQLite said.
        reason: String,
    },
    /// The operating system refused to read or write; nothing was charged.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: Arc<std::io::Error>,
    },
    /// A file that would have been overwritten.
    #[error("{path} exists already; choose another name")]
    FileExists {
        /// The file.
        path: PathBuf,
    },
    /// Not a place for a backup.
    #[error("cannot back up to {path}: {reason}; give the name of a file that does not exist yet")]
    InvalidBackup {
        /// The place asked for.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// For ten seconds it was somebody else's turn to write.
    #[error(
        "another process has held the ledger's lock for 10 s: it is stopped, perhaps, or a database tool; let it go on (`kill -CONT`) or end it, and try again"
    )]
    Busy,
    /// SQLite failed otherwise; nothing was charged.
    #[error("the ledger file could not be used: {0}")]
    Sqlite(Arc<rusqlite::Error>),
    /// The writer of this ledger is gone.
    #[error("the ledger's writer has stopped; open the ledger again")]
    Closed,
}

/// Why an access key is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyRefusal {
    /// No key has this secret.
    Unknown,
    /// The key has another secret by now.
    Replaced,
    /// The key is revoked.
    Revoked,
    /// The key has expired.
    Expired,
}

impl LedgerError {
    /// Whether the allowance said no, as opposed to something having gone wrong.
    pub fn is_refusal(&self) -> bool {
        matches!(self, LedgerError::Frozen { .. } | LedgerError::Exhausted { .. } | LedgerError::Limited { .. })
    }

    pub(crate) fn io(action: &'static str, path: &Path, source: std::io::Error) -> LedgerError {
        use std::io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem, StorageFull};
        match source.kind() {
            PermissionDenied | ReadOnlyFilesystem => LedgerError::ReadOnly { path: path.to_owned() },
            StorageFull => LedgerError::DiskFull,
            _ => LedgerError::Io { action, path: path.to_owned(), source: Arc::new(source) },
        }
    }

    /// As `From<rusqlite::Error>`, for the moment a file is opened, when its path helps.
    pub(crate) fn at_open(path: &Path, error: rusqlite::Error) -> LedgerError {
        match error.sqlite_error_code() {
            Some(ErrorCode::NotADatabase) => {
                LedgerError::NotALedger { path: path.to_owned(), reason: "it is no SQLite database".into() }
            }
            Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => {
                LedgerError::ReadOnly { path: path.to_owned() }
            }
            _ => error.into(),
        }
    }
}

impl From<rusqlite::Error> for LedgerError {
    fn from(error: rusqlite::Error) -> LedgerError {
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => LedgerError::DiskFull,
            Some(ErrorCode::SystemIoFailure) => LedgerError::DiskFailed { reason: error.to_string() },
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => LedgerError::Busy,
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                LedgerError::Corrupt { reason: error.to_string() }
            }
            _ => LedgerError::Sqlite(Arc::new(error)),
        }
    }
}
