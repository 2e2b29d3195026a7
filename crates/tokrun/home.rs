//! Where tokrun keeps its state, and who is asking.

use std::path::PathBuf;

use crate::failure::{Failure, Status};

/// `$TOKRUN_HOME`, else the platform's data directory.
pub(crate) fn directory() -> Result<PathBuf, Failure> {
    if let Some(home) = std::env::var_os("TOKRUN_HOME").filter(|home| !home.is_empty()) {
        return Ok(PathBuf::from(home));
    }
    let from_env = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let data = if cfg!(target_os = "macos") {
        from_env("HOME").map(|home| home.join("Library/Application Support"))
    } else {
        from_env("XDG_DATA_HOME").or_else(|| from_env("HOME").map(|home| home.join(".local/share")))
    };
    data.map(|data| data.join("tokrun")).ok_or_else(|| {
        Failure::new(Status::Failed, "no_home", "there is no home directory to keep state in")
            .hint("set TOKRUN_HOME to a directory")
    })
}

/// The ledger's file.
pub(crate) fn ledger_file() -> Result<PathBuf, Failure> {
    Ok(directory()?.join("ledger.db"))
}

/// The account name of the effective user.
pub(crate) fn account() -> Result<String, Failure> {
    whoami::username().map_err(|error| {
        Failure::new(Status::Failed, "no_account", format!("this account has no name: {error}"))
            .hint("name the wallet with --user")
    })
}
