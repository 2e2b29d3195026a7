//! The books, row by row, for whoever keeps others: nothing is held in memory but the row at hand.

use std::ops::ControlFlow;

use jiff::Timestamp;
use rusqlite::{Connection, Row};
use serde::Serialize;

use crate::query::timestamp;
use crate::{CreditValue, Credits, Price, Result};

/// An entry of the chain.
#[derive(Debug, Clone, Serialize)]
pub struct ExportedEntry {
    /// Its number; they follow each other.
    pub id: u64,
    /// What it was for.
    pub kind: String,
    /// When it was written.
    pub created: Timestamp,
    /// When it took effect.
    pub effective: Timestamp,
    /// The request that it is about.
    pub request_id: Option<String>,
    /// Its hash in hexadecimal.
    pub hash: String,
    /// What it moves; the amounts sum to zero.
    pub postings: Vec<ExportedPosting>,
}

/// One line of an entry.
#[derive(Debug, Clone, Serialize)]
pub struct ExportedPosting {
    /// `issued`, `spent`, `expired`, or a wallet's name.
    pub account: String,
    /// Its opaque id, which stays when the name was deleted.
    pub account_id: String,
    /// The grant, where the account is a wallet.
    pub grant_id: Option<String>,
    /// Signed.
    pub amount: Credits,
}

/// A settled request, as the log has it.
#[derive(Debug, Clone, Serialize)]
pub struct ExportedRequest {
    /// Opaque.
    pub id: String,
    /// The name of the wallet that asked.
    pub wallet: String,
    /// Its opaque id.
    pub wallet_id: String,
    /// The name of the key that it came with.
    pub key: Option<String>,
    /// What it was booked under.
    pub project: Option<String>,
    /// Its tags, a JSON object.
    pub tags: String,
    /// The model that answered.
    pub model: String,
    /// Where it was computed.
    pub device: String,
    /// The price of a token, frozen when it was admitted.
    pub price: Price,
    /// Prompt tokens, those found in the cache among them.
    pub prompt_tokens: u64,
    /// Those found in the cache.
    pub cached_tokens: u64,
    /// Output tokens, reasoning among them.
    pub output_tokens: u64,
    /// Those that were reasoning.
    pub reasoning_tokens: u64,
    /// What a credit was worth when it was admitted, if the ledger's price said so.
    pub value: Option<CreditValue>,
    /// What it cost.
    pub debited: Credits,
    /// Why it ended.
    pub finish_reason: String,
    /// When it was admitted.
    pub started: Timestamp,
    /// When it was settled.
    pub ended: Timestamp,
}

/// Shows each entry that took effect in `[from, to)` to `visit`, in the order of the chain, until it breaks off.
pub(crate) fn entries(
    conn: &Connection,
    from: Option<Timestamp>,
    to: Option<Timestamp>,
    mut visit: impl FnMut(&ExportedEntry) -> ControlFlow<()>,
) -> Result<()> {
    let sql = "SELECT e.id, e.kind, e.created_us, e.effective_us, e.request_id, lower(hex(e.hash)), \
         coalesce(n.name, a.id), a.id, g.id, p.amount FROM entry e LEFT JOIN posting p ON p.entry = e.id \
         LEFT JOIN account a ON a.seq = p.account LEFT JOIN wallet_name n ON n.wallet = p.account \
         LEFT JOIN allowance g ON g.seq = p.allowance WHERE e.effective_us >= ?1 AND e.effective_us < ?2 \
         ORDER BY e.id, p.line";
    let mut statement = conn.prepare_cached(sql)?;
    let mut rows = statement.query(window(from, to))?;
    let mut entry: Option<ExportedEntry> = None;
    while let Some(row) = rows.next()? {
        let id = row.get(0)?;
        if entry.as_ref().is_none_or(|entry| entry.id != id)
            && let Some(whole) = entry.replace(entry_of(id, row)?)
            && visit(&whole).is_break()
        {
            return Ok(());
        }
        if let (Some(entry), Some(account)) = (&mut entry, row.get(6)?) {
            let (account_id, grant_id, amount) = (row.get(7)?, row.get(8)?, Credits::from_micro(row.get(9)?));
            entry.postings.push(ExportedPosting { account, account_id, grant_id, amount });
        }
    }
    if let Some(last) = entry {
        let _ended = visit(&last);
    }
    Ok(())
}

/// In microseconds, open ends far away.
fn window(from: Option<Timestamp>, to: Option<Timestamp>) -> [i64; 2] {
    [from.map_or(i64::MIN, Timestamp::as_microsecond), to.map_or(i64::MAX, Timestamp::as_microsecond)]
}

fn entry_of(id: u64, row: &Row<'_>) -> rusqlite::Result<ExportedEntry> {
    Ok(ExportedEntry {
        id,
        kind: row.get(1)?,
        created: timestamp(row.get(2)?),
        effective: timestamp(row.get(3)?),
        request_id: row.get(4)?,
        hash: row.get(5)?,
        postings: Vec::new(),
    })
}

/// Shows each request that ended in `[from, to)` to `visit`, until it breaks off.
pub(crate) fn requests(
    conn: &Connection,
    from: Option<Timestamp>,
    to: Option<Timestamp>,
    mut visit: impl FnMut(&ExportedRequest) -> ControlFlow<()>,
) -> Result<()> {
    let sql = "SELECT r.id, coalesce(n.name, a.id), a.id, r.project, r.tags, r.model, r.device, r.prompt_micro, \
         r.cached_micro, r.output_micro, r.prompt_tokens, r.cached_tokens, r.output_tokens, r.debited, \
         r.finish_reason, r.started_us, r.ended_us, r.reasoning_micro, r.reasoning_tokens, r.value_nano, r.currency, \
         r.access_key \
         FROM request_log r JOIN account a ON a.seq = r.wallet \
         LEFT JOIN wallet_name n ON n.wallet = r.wallet WHERE r.ended_us >= ?1 AND r.ended_us < ?2 ORDER BY r.ended_us";
    let mut statement = conn.prepare_cached(sql)?;
    let mut rows = statement.query(window(from, to))?;
    while let Some(row) = rows.next()? {
        if visit(&request_of(row)?).is_break() {
            break;
        }
    }
    Ok(())
}

fn request_of(row: &Row<'_>) -> rusqlite::Result<ExportedRequest> {
    Ok(ExportedRequest {
        id: row.get(0)?,
        wallet: row.get(1)?,
        wallet_id: row.get(2)?,
        key: row.get("access_key")?,
        project: row.get(3)?,
        tags: row.get(4)?,
        model: row.get(5)?,
        device: row.get(6)?,
        price: Price::from_micro([row.get(7)?, row.get(8)?, row.get(9)?], row.get("reasoning_micro")?),
        prompt_tokens: row.get(10)?,
        cached_tokens: row.get(11)?,
        output_tokens: row.get(12)?,
        reasoning_tokens: row.get("reasoning_tokens")?,
        value: CreditValue::from_row(row)?,
        debited: Credits::from_micro(row.get(13)?),
        finish_reason: row.get(14)?,
        started: timestamp(row.get(15)?),
        ended: timestamp(row.get(16)?),
    })
}
