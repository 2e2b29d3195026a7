//! The head of the chain, to be kept where nobody can write who can write the ledger.

use std::fmt;
use std::str::FromStr;

use rusqlite::{Connection, OptionalExtension};

use crate::chain::{self, GENESIS, Hash};
use crate::text::shown;
use crate::verify::VerifyReport;
use crate::{LedgerError, Result};

/// An entry of a ledger and its hash. `Display` prints `LEDGER:ENTRY:HASH`, `FromStr` reads it back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anchor {
    /// The opaque id of the ledger.
    pub ledger: String,
    /// The number of the entry; 0 before the first one.
    pub entry: u64,
    hash: Hash,
}

impl fmt::Display for Anchor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:", self.ledger, self.entry)?;
        self.hash.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Anchor {
    type Err = String;

    fn from_str(text: &str) -> Result<Anchor, String> {
        let malformed = || format!("`{}` is no anchor; give what `tokrun ledger anchor` printed", shown(text));
        let mut parts = text.trim().splitn(3, ':');
        let (Some(ledger), Some(entry), Some(hash)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(malformed());
        };
        let digits = |at: usize| hash.get(at * 2..at * 2 + 2).and_then(|byte| u8::from_str_radix(byte, 16).ok());
        let mut bytes = GENESIS;
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = digits(at).ok_or_else(malformed)?;
        }
        let is_whole = !ledger.is_empty() && hash.len() == 2 * bytes.len() && !hash.contains('+');
        let entry = entry.parse().ok().filter(|_| is_whole).ok_or_else(malformed)?;
        Ok(Anchor { ledger: ledger.to_owned(), entry, hash: bytes })
    }
}

/// The anchor of now.
pub(crate) fn now(conn: &Connection) -> Result<Anchor> {
    let head = chain::head(conn)?;
    Ok(Anchor { ledger: ledger_id(conn)?, entry: head.entry.cast_unsigned(), hash: head.hash })
}

/// Adds to the report of a full check what contradicts an anchor. The check has shown that every hash follows from all
/// that is before it, so that this one hash speaks for all entries up to its own.
pub(crate) fn check(conn: &Connection, anchor: &Anchor, report: &mut VerifyReport) -> Result<()> {
    let ledger = ledger_id(conn)?;
    if ledger != anchor.ledger {
        report.add(None, format!("the anchor is of the ledger {}, this is {ledger}", shown(&anchor.ledger)));
        return Ok(());
    }
    let entry = i64::try_from(anchor.entry).unwrap_or(i64::MAX);
    let sql = "SELECT hash FROM entry WHERE id = ?1";
    let hash: Option<Hash> = match entry {
        0 => Some(GENESIS),
        _ => conn.prepare_cached(sql)?.query_row([entry], |row| row.get(0)).optional()?,
    };
    match hash {
        None => report.add(Some(entry), "the anchor names it, and it is not there: the end of the chain was cut off"),
        Some(hash) if hash != anchor.hash => {
            report.add(
                Some(entry),
                "it is not the one that the anchor names: this entry, or one before it, was rewritten",
            );
        }
        Some(_) => {}
    }
    Ok(())
}

fn ledger_id(conn: &Connection) -> Result<String> {
    let found = conn.query_row("SELECT ledger_id FROM meta WHERE id = 1", [], |row| row.get(0)).optional()?;
    found.ok_or_else(|| LedgerError::Bad { reason: "its row of modes is missing".into() })
}
