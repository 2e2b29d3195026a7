//! What was used, by user, model, project, key or day, with percentiles from merged histograms.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use rusqlite::{Connection, Row};
use serde::Serialize;

use crate::statement::MEMBERS;
use crate::{Credits, LatencyHistogram, LedgerError, Result, admin, query};

/// What to report.
#[derive(Debug, Clone)]
pub struct UsageQuery {
    /// How to group.
    pub by: UsageBy,
    /// Requests that ended at this time or later.
    pub since: Option<Timestamp>,
    /// Requests that ended before this time.
    pub until: Option<Timestamp>,
    /// Requests of this wallet alone.
    pub wallet: Option<String>,
    /// And of all that stand under it.
    pub subtree: bool,
}

impl UsageQuery {
    /// Everything there is.
    pub fn new(by: UsageBy) -> UsageQuery {
        UsageQuery { by, since: None, until: None, wallet: None, subtree: false }
    }
}

/// How to group.
#[derive(Debug, Clone)]
pub enum UsageBy {
    /// By the name of the wallet.
    User,
    /// By the name of the model.
    Model,
    /// By the project; nothing for requests of none.
    Project,
    /// By the name of the key that they came with; nothing for requests without one.
    Key,
    /// By the day on which requests ended, as `YYYY-MM-DD`.
    Day {
        /// Where a day begins.
        time_zone: TimeZone,
    },
}

/// The usage of one group: settled requests only.
#[derive(Debug, Clone, Serialize)]
pub struct UsageRow {
    /// The user, model, project, key or day.
    pub key: String,
    /// Settled requests.
    pub requests: u64,
    /// Prompt tokens debited.
    pub prompt_tokens: u64,
    /// Those of them that were found in the cache.
    pub cached_tokens: u64,
    /// Output tokens debited.
    pub output_tokens: u64,
    /// Those of them that were reasoning.
    pub reasoning_tokens: u64,
    /// `prompt_tokens + output_tokens`.
    pub total_tokens: u64,
    /// What they cost.
    pub debited: Credits,
    /// Output tokens over the whole time of their requests (queue, prompt and decoding); `None` without measured time.
    pub tokens_per_s: Option<f64>,
    /// Output tokens after each request's first over the time since that first; `None` without measured time.
    pub decode_tokens_per_s: Option<f64>,
    /// Time to the first token.
    pub ttft_ms: Option<Percentiles>,
    /// Time between tokens.
    pub itl_ms: Option<Percentiles>,
    /// The energy that went into them, as far as it was measured; `None` where it never was.
    pub energy_joules: Option<f64>,
}

/// Latencies in milliseconds that half, 95 % and 99 % do not exceed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Percentiles {
    /// The median.
    pub p50: f64,
    /// 95 %.
    pub p95: f64,
    /// 99 %.
    pub p99: f64,
}

impl Percentiles {
    /// Of a histogram in microseconds; `None` if it is empty.
    pub fn of(histogram: &LatencyHistogram) -> Option<Percentiles> {
        let ms = |quantile| histogram.quantile_us(quantile).map(|us| us as f64 / 1000.0);
        Some(Percentiles { p50: ms(0.5)?, p95: ms(0.95)?, p99: ms(0.99)? })
    }
}

/// Reads the log, group by group in the order of their keys.
pub(crate) fn usage(conn: &Connection, query: &UsageQuery) -> Result<Vec<UsageRow>> {
    let key = match query.by {
        UsageBy::User => "coalesce(n.name, a.id)",
        UsageBy::Model => "r.model",
        UsageBy::Project => "coalesce(r.project, '')",
        UsageBy::Key => "coalesce(r.access_key, '')",
        UsageBy::Day { .. } => "''",
    };
    let wallet = query.wallet.as_deref().map(|name| admin::require_wallet(conn, name)).transpose()?;
    let sql = format!(
        "{MEMBERS} SELECT {key}, r.ended_us, r.prompt_tokens, r.cached_tokens, r.output_tokens, r.reasoning_tokens, r.debited, \
         r.ttft_us, r.decode_us, r.total_us, r.itl, r.energy_uj FROM request_log r JOIN account a ON a.seq = r.wallet \
         LEFT JOIN wallet_name n ON n.wallet = r.wallet WHERE r.ended_us >= ?3 AND r.ended_us < ?4 \
         AND (?1 IS NULL OR r.wallet IN (SELECT wallet FROM member)) ORDER BY r.seq"
    );
    let since_us = query.since.map_or(i64::MIN, Timestamp::as_microsecond);
    let until_us = query.until.map_or(i64::MAX, Timestamp::as_microsecond);
    let mut statement = conn.prepare_cached(&sql)?;
    let mut rows = statement.query((wallet.map(|wallet| wallet.seq), query.subtree, since_us, until_us))?;
    let mut groups: BTreeMap<String, Group> = BTreeMap::new();
    while let Some(row) = rows.next()? {
        let key = match &query.by {
            UsageBy::Day { time_zone } => day(row.get(1)?, time_zone),
            _ => row.get(0)?,
        };
        groups.entry(key).or_default().add(row)?;
    }
    Ok(groups.into_iter().map(|(key, group)| group.into_row(key)).collect())
}

/// Sums over one group.
#[derive(Default)]
struct Group {
    requests: u64,
    prompt_tokens: u64,
    cached_tokens: u64,
    output_tokens: u64,
    reasoning_tokens: u64,
    debited: i64,
    timed_tokens: u64,
    total_us: u64,
    decoded_tokens: u64,
    decode_us: u64,
    ttft: LatencyHistogram,
    itl: LatencyHistogram,
    energy_uj: Option<u64>,
}

impl Group {
    fn add(&mut self, row: &Row<'_>) -> Result<()> {
        let output_tokens: u64 = row.get(4)?;
        // Saturating: a price of zero bounds no count, and a report may not fail over one absurd row.
        let add = |sum: &mut u64, value: u64| *sum = sum.saturating_add(value);
        add(&mut self.requests, 1);
        add(&mut self.prompt_tokens, row.get(2)?);
        add(&mut self.cached_tokens, row.get(3)?);
        add(&mut self.output_tokens, output_tokens);
        add(&mut self.reasoning_tokens, row.get(5)?);
        self.debited = self.debited.saturating_add(row.get(6)?);
        if let Some(ttft_us) = row.get(7)? {
            self.ttft.record(ttft_us);
        }
        if let (Some(decode_us), Some(total_us)) = (row.get(8)?, row.get(9)?) {
            add(&mut self.timed_tokens, output_tokens);
            add(&mut self.total_us, total_us);
            add(&mut self.decoded_tokens, output_tokens.saturating_sub(1));
            add(&mut self.decode_us, decode_us);
        }
        let itl = LatencyHistogram::from_bytes(row.get_ref(10)?.as_blob().unwrap_or_default())
            .ok_or_else(|| LedgerError::Corrupt { reason: "a latency histogram of the log is unreadable".into() })?;
        self.itl.merge(&itl);
        if let Some(energy_uj) = row.get(11)? {
            add(self.energy_uj.get_or_insert(0), energy_uj);
        }
        Ok(())
    }

    fn into_row(self, key: String) -> UsageRow {
        let per_s = |tokens: u64, us: u64| (us > 0).then(|| tokens as f64 / (us as f64 / 1e6));
        UsageRow {
            key,
            requests: self.requests,
            prompt_tokens: self.prompt_tokens,
            cached_tokens: self.cached_tokens,
            output_tokens: self.output_tokens,
            reasoning_tokens: self.reasoning_tokens,
            total_tokens: self.prompt_tokens.saturating_add(self.output_tokens),
            debited: Credits::from_micro(self.debited),
            tokens_per_s: per_s(self.timed_tokens, self.total_us),
            decode_tokens_per_s: per_s(self.decoded_tokens, self.decode_us),
            ttft_ms: Percentiles::of(&self.ttft),
            itl_ms: Percentiles::of(&self.itl),
            energy_joules: self.energy_uj.map(|uj| uj as f64 / 1e6),
        }
    }
}

fn day(ended_us: i64, time_zone: &TimeZone) -> String {
    time_zone.to_datetime(query::timestamp(ended_us)).date().to_string()
}
