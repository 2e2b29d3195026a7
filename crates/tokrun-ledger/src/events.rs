//! What somebody should hear of, once: thresholds of limits and of the grants of a period, and what was
//! asked for and answered.
//!
//! An event is written in the transaction that makes it true, under an id that stays: once a window, over any number of
//! processes and crashes. Delivering it is somebody else's work, later, and never keeps a debit waiting: what came of
//! that is kept per sink, so that each event arrives there at least once.

use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, Row};
use serde::Serialize;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::limits::{Counter, Crossing};
use crate::writer::Tx;
use crate::{LedgerError, Result, admin, query};

/// Between the first attempts to deliver an event; each next pause is twice as long.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(3600);

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EventView {
    /// Its place among all events, for [`crate::Ledger::events`].
    #[serde(skip)]
    pub number: i64,
    /// Opaque, the same wherever and however often it is delivered.
    pub id: String,
    /// `limit_threshold`, `grant_threshold`, `allowance_request` or `allowance_answer`.
    pub kind: String,
    /// When it happened.
    pub created: Timestamp,
    /// What happened.
    pub data: Value,
}

/// A threshold of a limit.
pub(crate) fn of_limit(conn: &Connection, now_us: i64, counter: &Counter, crossing: &Crossing) -> Result<()> {
    let reached = counter.reached();
    let data = json!({
        "percent": crossing.percent,
        "limit": { "id": reached.id, "what": reached.what, "scope": counter.scope },
        "window": query::timestamp(crossing.from_us),
        "resets": reached.resets,
    });
    write(conn, "limit_threshold", now_us, &data)
}

/// A threshold of what a wallet is given for a period.
pub(crate) fn of_grant(conn: &Connection, now_us: i64, grant: i64, percent: u8) -> Result<()> {
    let sql = "SELECT g.id, g.amount, g.effective_us, g.expires_us, n.name, r.id FROM allowance g \
         LEFT JOIN wallet_name n ON n.wallet = g.wallet LEFT JOIN recurrence r ON r.seq = g.recurrence WHERE g.seq = ?1";
    let data = conn.prepare_cached(sql)?.query_row([grant], |row| {
        Ok(json!({
            "percent": percent,
            "wallet": row.get::<_, Option<String>>(4)?,
            "grant": {
                "id": row.get::<_, String>(0)?,
                "recurring": row.get::<_, Option<String>>(5)?,
                "amount": crate::Credits::from_micro(row.get(1)?),
            },
            "window": query::timestamp(row.get(2)?),
            "resets": row.get::<_, Option<i64>>(3)?.map(query::timestamp),
        }))
    })?;
    write(conn, "grant_threshold", now_us, &data)
}

pub(crate) fn write(conn: &Connection, kind: &str, now_us: i64, data: &Value) -> Result<()> {
    let sql = "INSERT INTO event (id, kind, created_us, body) VALUES (?1, ?2, ?3, ?4)";
    conn.prepare_cached(sql)?.execute((Uuid::now_v7().to_string(), kind, now_us, data.to_string()))?;
    Ok(())
}

const COLUMNS: &str = "v.seq, v.id, v.kind, v.created_us, v.body";

fn view(row: &Row<'_>) -> rusqlite::Result<EventView> {
    Ok(EventView {
        number: row.get(0)?,
        id: row.get(1)?,
        kind: row.get(2)?,
        created: query::timestamp(row.get(3)?),
        data: serde_json::from_str(row.get_ref(4)?.as_str()?).unwrap_or(Value::Null),
    })
}

/// Events of this time or later that come after number `after`, in their order.
pub(crate) fn list(conn: &Connection, since: Option<Timestamp>, after: i64) -> Result<Vec<EventView>> {
    let since_us = since.map_or(i64::MIN, Timestamp::as_microsecond);
    let sql = format!("SELECT {COLUMNS} FROM event v WHERE v.seq > ?1 AND v.created_us >= ?2 ORDER BY v.seq");
    let mut statement = conn.prepare_cached(&sql)?;
    let events = statement.query_map([after, since_us], view)?.collect::<rusqlite::Result<_>>()?;
    Ok(events)
}

/// Events of this time or later that have not arrived at a sink and are due, in their order.
pub(crate) fn due(conn: &Connection, sink: &str, since: Option<Timestamp>, now_us: i64) -> Result<Vec<EventView>> {
    let since_us = since.map_or(i64::MIN, Timestamp::as_microsecond);
    let sql = format!(
        "SELECT {COLUMNS} FROM event v LEFT JOIN delivery d ON d.event = v.seq AND d.sink = ?1 \
         WHERE v.created_us >= ?2 AND (d.event IS NULL OR d.next_us <= ?3) ORDER BY v.seq"
    );
    let mut statement = conn.prepare_cached(&sql)?;
    let events = statement
        .query_map((admin::key_digest(conn, sink)?, since_us, now_us), view)?
        .collect::<rusqlite::Result<_>>()?;
    Ok(events)
}

/// Keeps what came of an attempt to deliver: it arrived, or is to be tried again, each time after a longer pause.
pub(crate) fn attempted(tx: &Tx<'_>, sink: &str, event: &str, arrived: bool) -> Result<()> {
    let sql = "SELECT v.seq, coalesce(d.attempts, 0) FROM event v LEFT JOIN delivery d ON d.event = v.seq AND d.sink = ?2 \
         WHERE v.id = ?1";
    let sink = admin::key_digest(tx.conn, sink)?;
    let found = tx.conn.prepare_cached(sql)?.query_map((event, sink), |row| Ok((row.get(0)?, row.get(1)?)))?.next();
    let Some((seq, attempts)): Option<(i64, u32)> = found.transpose()? else {
        return Err(LedgerError::UnknownEvent { id: event.to_owned() });
    };
    let pause = RETRY_MIN.saturating_mul(1 << attempts.min(20)).min(RETRY_MAX);
    let next_us = (!arrived).then(|| tx.now_us + pause.as_micros() as i64);
    // What has arrived stays arrived.
    let sql = "INSERT INTO delivery (sink, event, attempts, next_us) VALUES (?1, ?2, ?3, ?4) \
         ON CONFLICT (sink, event) DO UPDATE SET attempts = excluded.attempts, \
         next_us = iif(next_us IS NULL, NULL, excluded.next_us)";
    tx.conn.prepare_cached(sql)?.execute((sink, seq, attempts.saturating_add(1), next_us))?;
    Ok(())
}
