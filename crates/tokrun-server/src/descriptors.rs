//! File descriptors: every connection takes one, and shells usually allow 1024.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// For models, the ledger, and all else that is no connection.
const OTHERS: u64 = 1024;

/// Lets the process have one for each connection, as far as its system lets it.
pub(crate) fn make_room(connections: usize) {
    let wanted = u64::try_from(connections).unwrap_or(u64::MAX).saturating_add(OTHERS);
    let limit = getrlimit(Resource::Nofile);
    let raised = limit.maximum.map_or(wanted, |maximum| wanted.min(maximum));
    if limit.current.is_none_or(|current| current >= raised) {
        return;
    }
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: Some(raised), ..limit }) {
        tracing::warn!(%error, "there are descriptors for fewer than {connections} connections");
    }
}
