//! What went wrong, as a person or a script is told.

use std::error::Error;
use std::process::ExitCode;

use tokrun_engine::{EngineError, InvalidParameter, SubmitError};
use tokrun_kernels::KernelError;
use tokrun_ledger::{LedgerError, LimitReached};
use tokrun_model::ModelError;
use tokrun_model::catalogue::CatalogueError;
use tokrun_model::pull::PullError;
use tokrun_model::store::StoreError;
use tokrun_runtime::{RuntimeError, with_causes};

use crate::args::Format;

/// How the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Done = 0,
    Failed = 1,
    Usage = 2,
    Allowance = 3,
    Unknown = 4,
    Interrupted = 130,
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> Self {
        Self::from(status as u8)
    }
}

/// The code of a failure for want of memory.
pub(crate) const OUT_OF_MEMORY: &str = "out_of_memory";

/// A failure: what happened, and what to do about it.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) status: Status,
    code: &'static str,
    message: String,
    hint: Option<String>,
    /// The limit that is reached, if that is what happened.
    limit: Option<Box<LimitReached>>,
}

impl Failure {
    pub(crate) fn new(status: Status, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), hint: None, limit: None }
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// A limit that begins anew at some time.
    pub(crate) fn until(mut self, reached: &LimitReached) -> Self {
        self.limit = Some(Box::new(reached.clone()));
        self
    }

    /// Ctrl-C before anything was generated.
    pub(crate) fn interrupted() -> Self {
        Self::new(Status::Interrupted, "interrupted", "interrupted")
    }

    /// An I/O error on something the user named.
    pub(crate) fn io(what: &str, error: &std::io::Error) -> Self {
        Self::new(Status::Failed, "io", format!("{what}: {error}"))
    }

    fn of(status: Status, code: &'static str, error: &dyn Error) -> Self {
        Self::new(status, code, with_causes(error))
    }

    /// Of an error whose message is "what happened; what to do".
    fn with_remedy(status: Status, code: &'static str, error: &dyn Error) -> Self {
        let text = with_causes(error);
        match text.split_once("; ") {
            Some((what, remedy)) => Self::new(status, code, what).hint(remedy),
            None => Self::new(status, code, text),
        }
    }

    /// On stderr for people; with `--output json` as one object on stdout.
    pub(crate) fn report(&self, format: Format) {
        if format == Format::Json {
            out!("{}", serde_json::json!({ "error": self.json() }));
            return;
        }
        say!("error: {}", self.message);
        if let Some(hint) = &self.hint {
            say!("hint: {hint}");
        }
        if let Some(wait_s) = self.limit.as_ref().and_then(|limit| limit.retry_after_s(jiff::Timestamp::now())) {
            say!("hint: it begins anew in {wait_s} s");
        }
    }

    /// What happened, in one line.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// Whether there was not enough memory.
    pub(crate) fn is_out_of_memory(&self) -> bool {
        self.code == OUT_OF_MEMORY
    }

    /// What to do about it.
    pub(crate) fn remedy(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// `{code, message, hint}`.
    pub(crate) fn json(&self) -> serde_json::Value {
        let mut object = serde_json::json!({ "code": self.code, "message": self.message, "hint": self.hint });
        if let Some(reached) = &self.limit {
            object["limit"] = tokrun_ledger::json::limit_reached(reached);
        }
        object
    }
}

/// Library errors whose status does not depend on their variant.
macro_rules! always {
    ($($error:ty => $status:ident, $code:literal;)*) => {$(
        impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                Self::of(Status::$status, $code, &error)
            }
        }
    )*};
}

always! {
    CatalogueError => Failed, "bad_catalogue";
    InvalidParameter => Usage, "usage";
}

impl From<ModelError> for Failure {
    fn from(error: ModelError) -> Self {
        match &error {
            ModelError::DoesNotFit { .. } => Self::with_remedy(Status::Failed, OUT_OF_MEMORY, &error),
            ModelError::Weights(KernelError::Cuda(_)) => Self::of(Status::Failed, "cuda", &error)
                .hint("use --device cpu; `tokrun doctor` shows what this machine has"),
            _ => Self::of(Status::Failed, "bad_model", &error),
        }
    }
}

impl From<PullError> for Failure {
    fn from(error: PullError) -> Self {
        let failure = Self::of(Status::Failed, "pull_failed", &error);
        match error.hint() {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::NoSuchModel { .. } => Self::new(Status::Unknown, "unknown_model", error.to_string())
                .hint("`tokrun model list` shows the names; a path to a model works too"),
            StoreError::NotAModel { path, .. } if !path.exists() => Self::of(Status::Unknown, "unknown_model", &error),
            StoreError::NotPulled { .. } => Self::with_remedy(Status::Unknown, "unknown_model", &error),
            _ => Self::with_remedy(Status::Failed, "model_store", &error),
        }
    }
}

impl From<LedgerError> for Failure {
    fn from(error: LedgerError) -> Self {
        Self::from(&error)
    }
}

impl From<&LedgerError> for Failure {
    fn from(error: &LedgerError) -> Self {
        use LedgerError as E;
        let (status, code) = match error {
            E::UnknownWallet { .. } => (Status::Unknown, "unknown_wallet"),
            E::UnknownGrant { .. } => (Status::Unknown, "unknown_grant"),
            E::NotSettled { .. } => (Status::Unknown, "unknown_request"),
            E::Frozen { .. } => (Status::Allowance, "wallet_frozen"),
            E::UnknownLimit { .. } => (Status::Unknown, "unknown_limit"),
            E::UnknownAsk { .. } => (Status::Unknown, "unknown_request"),
            E::Answered { .. } => (Status::Failed, "answered"),
            E::WalletClosed { .. } => (Status::Allowance, "wallet_closed"),
            E::UnknownKey { .. } => (Status::Unknown, "unknown_key"),
            E::KeyExists { .. } => (Status::Failed, "key_exists"),
            E::KeyRefused { .. } => (Status::Allowance, "key_refused"),
            E::KeyScope { .. } => (Status::Allowance, "key_scope"),
            E::UnknownPrice { .. } => (Status::Unknown, "unknown_price"),
            E::UnknownEvent { .. } => (Status::Unknown, "unknown_event"),
            E::Limited { .. } => (Status::Allowance, "limit_reached"),
            E::Exhausted { .. } => (Status::Allowance, "allowance_exhausted"),
            E::WalletExists { .. } => (Status::Failed, "wallet_exists"),
            E::InvalidName { .. }
            | E::InvalidWallet { .. }
            | E::InvalidGrant { .. }
            | E::InvalidReversal { .. }
            | E::Row { .. }
            | E::InvalidLimit { .. }
            | E::InvalidKey { .. }
            | E::InvalidPrice { .. }
            | E::IdempotencyConflict { .. }
            | E::InvalidBackup { .. } => (Status::Usage, "usage"),
            E::NotOwner { .. } => (Status::Failed, "not_owner"),
            E::Bad { .. } | E::Corrupt { .. } => (Status::Failed, "ledger_bad"),
            E::NewerSchema { .. } => (Status::Failed, "ledger_newer"),
            E::OlderSchema { .. } => (Status::Failed, "ledger_older"),
            E::DiskFull => (Status::Failed, "disk_full"),
            E::ReadOnly { .. } => (Status::Failed, "read_only"),
            _ => (Status::Failed, "ledger"),
        };
        let failure = Self::with_remedy(status, code, error);
        match error {
            E::Io { .. } => failure.hint("set TOKRUN_HOME to a directory that you can write to"),
            E::Limited { reached } => failure.until(reached),
            // An empty wallet of the own name would stand in the way of the one that the first answer opens.
            E::UnknownWallet { name } if crate::home::account().is_ok_and(|account| account == *name) => {
                failure.hint("your first `tokrun generate` opens it, with the starter grant")
            }
            _ => failure,
        }
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        Self::from(&error)
    }
}

impl From<&EngineError> for Failure {
    fn from(error: &EngineError) -> Self {
        let (status, code) = match error {
            EngineError::InvalidParameter(_)
            | EngineError::TemplateRefused { .. }
            | EngineError::UnknownToken { .. } => (Status::Usage, "usage"),
            EngineError::InvalidGrammar { .. } => (Status::Usage, "invalid_grammar"),
            EngineError::NoChatTemplate => (Status::Usage, "no_chat_template"),
            _ => (Status::Failed, "engine"),
        };
        Self::with_remedy(status, code, error)
    }
}

impl From<RuntimeError> for Failure {
    fn from(error: RuntimeError) -> Self {
        Self::from(&error)
    }
}

impl From<&RuntimeError> for Failure {
    fn from(error: &RuntimeError) -> Self {
        match error {
            RuntimeError::Ledger(error) => Self::from(error),
            RuntimeError::Engine(error) => Self::from(error),
            RuntimeError::Unpaid(cause) => Self { message: with_causes(error), ..Self::from(cause) },
            RuntimeError::Submit(SubmitError::QueueFull { .. } | SubmitError::Stopped) => {
                Self::of(Status::Failed, "engine", error)
            }
            RuntimeError::Submit(_) => Self::with_remedy(Status::Usage, "usage", error),
            RuntimeError::NoTemplate(_) => Self::with_remedy(Status::Usage, "no_chat_template", error),
            RuntimeError::Model(_) => Self::of(Status::Failed, "model_failed", error)
                .hint("what was shown is paid, and nothing else; try again, on another --device if it comes back"),
            _ => Self::of(Status::Failed, "model_failed", error),
        }
    }
}
