//! What a person looks at who wants to know how it goes: the last days of a wallet, and its last requests. And whose
//! something is, for who must know whether they may touch it.

use std::collections::BTreeMap;

use jiff::civil::Date;
use jiff::{Span, Timestamp};
use rusqlite::{Connection, OptionalExtension, Row};
use serde::Serialize;

use crate::admin::require_wallet;
use crate::calendar::{date_at, midnight_us};
use crate::query::timestamp;
use crate::statement::MEMBERS;
use crate::{Credits, LedgerError, Result, tree};

/// So many days of a wallet at most.
const DAYS_MAX: u16 = 366;

/// A day of a wallet, or of all wallets of a subtree together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WalletDay {
    /// Of the wallet's time zone.
    pub date: Date,
    /// What was granted, transferred to it, or paid back.
    pub came_in: Credits,
    /// What settled requests cost.
    pub spent: Credits,
    /// What expired, became void, or went to others.
    pub went: Credits,
    /// What entries had left at its end. Of today: now.
    pub left: Credits,
}

/// A settled request, as the log has it.
#[derive(Debug, Clone, Serialize)]
pub struct LoggedRequest {
    /// Opaque.
    pub id: String,
    /// The name of the wallet that asked.
    pub wallet: String,
    /// The name of the key that it came with.
    pub key: Option<String>,
    /// What it was booked under.
    pub project: Option<String>,
    /// The model that answered.
    pub model: String,
    /// When it was settled.
    pub ended: Timestamp,
    /// Prompt tokens, those found in the cache among them.
    pub prompt_tokens: u64,
    /// Those found in the cache.
    pub cached_tokens: u64,
    /// Output tokens.
    pub output_tokens: u64,
    /// What it cost.
    pub debited: Credits,
    /// Why it ended.
    pub finish_reason: String,
    /// From admission to the first token.
    pub ttft_ms: Option<f64>,
    /// From admission to the end.
    pub total_ms: Option<f64>,
    /// Output tokens after the first over the time since then.
    pub decode_tokens_per_s: Option<f64>,
}

/// The last days of a wallet, or of its subtree, today the last of them.
pub(crate) fn days(conn: &Connection, name: &str, subtree: bool, days: u16, now_us: i64) -> Result<Vec<WalletDay>> {
    let wallet = require_wallet(conn, name)?.seq;
    let zone = tree::zone(&tree::path(conn, wallet)?)?;
    let today = date_at(now_us, &zone);
    let first = today.saturating_sub(Span::new().days(i64::from(days.clamp(1, DAYS_MAX)) - 1));
    let sql = format!(
        "{MEMBERS} SELECT coalesce(sum(p.amount), 0) FROM posting p JOIN entry e ON e.id = p.entry \
         WHERE p.account IN (SELECT wallet FROM member) AND e.effective_us < ?3"
    );
    let from_us = midnight_us(first, &zone);
    let mut left: i64 = conn.prepare_cached(&sql)?.query_row((wallet, subtree, from_us), |row| row.get(0))?;
    // What moves within a subtree neither comes nor goes.
    let sql = format!(
        "{MEMBERS} SELECT e.effective_us, e.kind, sum(p.amount) FROM posting p JOIN entry e ON e.id = p.entry \
         WHERE p.account IN (SELECT wallet FROM member) AND e.effective_us >= ?3 GROUP BY e.id ORDER BY e.id"
    );
    let mut found: BTreeMap<Date, [i64; 3]> = BTreeMap::new();
    let mut statement = conn.prepare_cached(&sql)?;
    let mut rows = statement.query((wallet, subtree, from_us))?;
    while let Some(row) = rows.next()? {
        let (at_us, kind, amount): (i64, String, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let sums = found.entry(date_at(at_us, &zone)).or_default();
        let place = match (kind.as_str(), amount) {
            ("settle", _) => &mut sums[1],
            (_, 0..) => &mut sums[0],
            _ => &mut sums[2],
        };
        *place = place.saturating_add(amount);
    }
    let dates = (0..i64::from(DAYS_MAX)).map(|day| first.saturating_add(Span::new().days(day)));
    let day = |date: Date| {
        let [came_in, spent, went] = found.get(&date).copied().unwrap_or_default();
        left = left.saturating_add(came_in).saturating_add(spent).saturating_add(went);
        let credits = Credits::from_micro;
        WalletDay { date, came_in: credits(came_in), spent: credits(-spent), went: credits(-went), left: credits(left) }
    };
    Ok(dates.take_while(|date| *date <= today).map(day).collect())
}

/// The last settled requests of a wallet, or of its subtree, the newest first.
pub(crate) fn requests(conn: &Connection, name: &str, subtree: bool, count: u16) -> Result<Vec<LoggedRequest>> {
    let wallet = require_wallet(conn, name)?.seq;
    let sql = format!(
        "{MEMBERS} SELECT r.id, coalesce(n.name, a.id), r.access_key, r.project, r.model, r.ended_us, r.prompt_tokens, \
         r.cached_tokens, r.output_tokens, r.debited, r.finish_reason, r.ttft_us, r.total_us, r.decode_us \
         FROM request_log r JOIN account a ON a.seq = r.wallet LEFT JOIN wallet_name n ON n.wallet = r.wallet \
         WHERE r.wallet IN (SELECT wallet FROM member) ORDER BY r.ended_us DESC LIMIT ?3"
    );
    let mut statement = conn.prepare_cached(&sql)?;
    Ok(statement.query_map((wallet, subtree, count), logged)?.collect::<rusqlite::Result<_>>()?)
}

fn logged(row: &Row<'_>) -> rusqlite::Result<LoggedRequest> {
    let ms = |us: Option<i64>| us.map(|us| us as f64 / 1000.0);
    let (output_tokens, decode_us): (u64, Option<i64>) = (row.get(8)?, row.get(13)?);
    let decoded = decode_us.filter(|us| *us > 0 && output_tokens > 1);
    Ok(LoggedRequest {
        id: row.get(0)?,
        wallet: row.get(1)?,
        key: row.get(2)?,
        project: row.get(3)?,
        model: row.get(4)?,
        ended: timestamp(row.get(5)?),
        prompt_tokens: row.get(6)?,
        cached_tokens: row.get(7)?,
        output_tokens,
        debited: Credits::from_micro(row.get(9)?),
        finish_reason: row.get(10)?,
        ttft_ms: ms(row.get(11)?),
        total_ms: ms(row.get(12)?),
        decode_tokens_per_s: decoded.map(|us| (output_tokens - 1) as f64 / (us as f64 / 1e6)),
    })
}

/// The name of the wallet that a grant, a vesting or a recurring grant is of.
pub(crate) fn wallet_of_grant(conn: &Connection, id: &str) -> Result<String> {
    let sql = "SELECT coalesce(n.name, a.id) FROM (SELECT wallet FROM allowance WHERE id = ?1 AND kind <> 'overdraft' \
         UNION ALL SELECT wallet FROM recurrence WHERE id = ?1 UNION ALL SELECT wallet FROM allowance WHERE vesting = ?1) g \
         JOIN account a ON a.seq = g.wallet LEFT JOIN wallet_name n ON n.wallet = g.wallet LIMIT 1";
    let found = conn.prepare_cached(sql)?.query_row([id], |row| row.get(0)).optional()?;
    found.ok_or_else(|| LedgerError::UnknownGrant { id: id.to_owned() })
}

/// The name of the wallet that a settled request is of.
pub(crate) fn wallet_of_request(conn: &Connection, id: &str) -> Result<String> {
    let sql = "SELECT coalesce(n.name, a.id) FROM request_log r JOIN account a ON a.seq = r.wallet \
         LEFT JOIN wallet_name n ON n.wallet = r.wallet WHERE r.id = ?1";
    let found = conn.prepare_cached(sql)?.query_row([id], |row| row.get(0)).optional()?;
    found.ok_or_else(|| LedgerError::NotSettled { id: id.to_owned() })
}
