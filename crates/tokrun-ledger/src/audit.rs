//! Terms in the chain. An entry without postings moves nothing: its digest says what holds from then on.

use rusqlite::Connection;

use crate::chain::{self, Draft, Hash};
use crate::{Result, admin};

/// The kinds of entries that have no postings.
pub(crate) const KINDS: [&str; 1] = ["promise"];

/// Says the terms of a grant that no entry of its own tells, or not yet.
pub(crate) fn promise(conn: &Connection, now_us: i64, grant: i64) -> Result<()> {
    let id = admin::text_of(conn, "SELECT id FROM allowance WHERE seq = ?1", grant)?;
    record(conn, now_us, "promise", &format!("promise:{id}"), chain::terms_digest(conn, grant)?).map(|_| ())
}

/// Writes an entry that has no postings. Returns its number.
pub(crate) fn record(conn: &Connection, now_us: i64, kind: &str, key: &str, digest: Hash) -> Result<i64> {
    let draft = Draft {
        kind,
        idempotency_key: key,
        created_us: now_us,
        effective_us: now_us,
        request_id: None,
        memo_digest: None,
        subject_digest: Some(digest),
        postings: &[],
    };
    chain::append(conn, &draft)
}
