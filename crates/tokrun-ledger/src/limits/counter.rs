//! What of a limit is used: arithmetic alone, on what was read and will be written.

use jiff::tz::TimeZone;
use rusqlite::{Connection, Row};

use super::{LimitReached, LimitSpan, Measure, described};
use crate::{Result, query, tree};

/// What requests cost, by every measure.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Load {
    pub(crate) tokens: i64,
    pub(crate) micro: i64,
    pub(crate) requests: i64,
}

impl Load {
    fn by(self, measure: Measure) -> i64 {
        match measure {
            Measure::Tokens => self.tokens,
            Measure::Credits => self.micro,
            Measure::Requests => self.requests,
        }
    }

    /// Takes as much of it as there is, up to `most`, by each measure.
    pub(crate) fn take(&mut self, most: Load) -> Load {
        let part = |own: &mut i64, most: i64| {
            let part = most.min(*own);
            *own -= part;
            part
        };
        Load {
            tokens: part(&mut self.tokens, most.tokens),
            micro: part(&mut self.micro, most.micro),
            requests: part(&mut self.requests, most.requests),
        }
    }
}

/// One limit, as far as counting is concerned.
#[derive(Debug, Clone)]
pub(crate) struct Counter {
    pub(crate) seq: i64,
    pub(crate) id: String,
    pub(crate) scope: super::LimitScope,
    pub(crate) measure: Measure,
    pub(crate) span: LimitSpan,
    pub(crate) amount: i64,
    pub(crate) warn: Vec<u8>,
    pub(crate) used: i64,
    from_us: i64,
    until_us: i64,
    warned: u8,
    zone: TimeZone,
    dirty: bool,
}

/// A threshold that was reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Crossing {
    pub(crate) percent: u8,
    pub(crate) from_us: i64,
}

impl Counter {
    /// From [`super::COLUMNS`].
    pub(crate) fn from_row(conn: &Connection, row: &Row<'_>) -> Result<Counter> {
        let wallet: Option<i64> = row.get("wallet")?;
        let zone = wallet.map(|wallet| tree::zone(&tree::path(conn, wallet)?)).transpose()?;
        let mut counter = Counter {
            seq: row.get("seq")?,
            id: row.get("id")?,
            scope: super::LimitScope {
                wallet: row.get("name")?,
                key: row.get("access_key")?,
                project: row.get("project")?,
                model: row.get("model")?,
            },
            measure: Measure::from_name(row.get_ref("measure")?.as_str().unwrap_or_default())?,
            span: LimitSpan::from_name(row.get_ref("span")?.as_str().unwrap_or_default())?,
            amount: row.get("amount")?,
            warn: serde_json::from_str(row.get_ref("warn")?.as_str().unwrap_or_default()).unwrap_or_default(),
            used: row.get("used")?,
            from_us: row.get("from_us")?,
            until_us: 0,
            warned: row.get("warned")?,
            zone: zone.unwrap_or(TimeZone::UTC),
            dirty: false,
        };
        (counter.from_us, counter.until_us) = counter.span.around(counter.from_us, &counter.zone);
        Ok(counter)
    }

    /// Begins a new window if the last one is over.
    pub(crate) fn pass_time(&mut self, now_us: i64) {
        if now_us >= self.until_us {
            (self.from_us, self.until_us) = self.span.around(now_us, &self.zone);
            (self.used, self.warned, self.dirty) = (0, 0, true);
        }
    }

    /// Lets the next [save](Counter::save) look for thresholds, whatever is counted.
    pub(crate) fn touch(&mut self) {
        self.dirty = true;
    }

    /// What may still be counted in this window.
    pub(crate) fn left(&self) -> i64 {
        self.amount.saturating_sub(self.used).max(0)
    }

    /// Whether what a new request holds fits.
    fn admits(&self, hold: Load) -> bool {
        match self.span {
            // Those that run are counted where they are, in the file.
            LimitSpan::Running => true,
            LimitSpan::Request => hold.by(self.measure) <= self.amount,
            _ => hold.by(self.measure) <= self.left(),
        }
    }

    /// How many more tokens of a request fit: each costs `token`, `held` is counted already, and the request came to
    /// `so_far` without it.
    fn affords(&self, token: Load, held: Load, so_far: Load) -> i64 {
        let room = match self.span {
            LimitSpan::Running => return i64::MAX,
            LimitSpan::Request => self.amount.saturating_sub(so_far.by(self.measure)),
            _ => self.left().saturating_add(held.by(self.measure)),
        };
        match token.by(self.measure) {
            0 => i64::MAX,
            each => (room / each).max(0),
        }
    }

    /// Counts what was taken beyond what was held since `taken_us`, or counts the rest of that no longer, unless it was
    /// taken in an earlier window.
    fn charge(&mut self, cost: Load, held: Load, taken_us: i64) {
        let more = cost.by(self.measure).saturating_sub(held.by(self.measure));
        if more == 0 || self.span.is_per_request() || more < 0 && taken_us < self.from_us {
            return;
        }
        self.used = self.used.saturating_add(more).max(0);
        self.dirty = true;
    }

    /// When it can be used again; `None` if time does not change that.
    pub(crate) fn resets_us(&self) -> Option<i64> {
        (!self.span.is_per_request()).then_some(self.until_us)
    }

    pub(crate) fn reached(&self) -> LimitReached {
        LimitReached {
            id: self.id.clone(),
            what: described(&self.scope, self.measure, self.span, self.amount),
            resets: self.resets_us().map(query::timestamp),
        }
    }

    /// The highest threshold that is newly reached in this window, and those below it that are. What is of each request, or
    /// of those that run, has no window: nobody is warned of it.
    fn crossings(&mut self) -> Vec<Crossing> {
        if self.span.is_per_request() {
            return Vec::new();
        }
        let is_reached =
            |percent: u8| i128::from(self.used) * 100 >= i128::from(self.amount) * i128::from(percent) && self.used > 0;
        let mut reached: Vec<u8> =
            self.warn.iter().copied().filter(|&percent| percent > self.warned && is_reached(percent)).collect();
        reached.sort_unstable();
        self.warned = reached.last().copied().unwrap_or(self.warned);
        reached.into_iter().map(|percent| Crossing { percent, from_us: self.from_us }).collect()
    }

    /// Writes what changed. Returns what somebody should hear of.
    pub(crate) fn save(&mut self, conn: &Connection) -> Result<Vec<Crossing>> {
        if !std::mem::take(&mut self.dirty) {
            return Ok(Vec::new());
        }
        let crossings = self.crossings();
        let sql = "UPDATE quota_use SET from_us = ?2, used = ?3, warned = ?4 WHERE quota = ?1";
        conn.prepare_cached(sql)?.execute((self.seq, self.from_us, self.used, self.warned))?;
        Ok(crossings)
    }
}

/// The limits that hold for one request.
#[derive(Debug, Clone, Default)]
pub(crate) struct Guards(pub(crate) Vec<Counter>);

impl Guards {
    /// Counts what a new request holds; the limit that it does not fit, and then nothing is counted.
    pub(crate) fn admit(&mut self, hold: Load, now_us: i64) -> Result<(), LimitReached> {
        if let Some(full) = self.0.iter().find(|counter| !counter.admits(hold)) {
            return Err(full.reached());
        }
        self.charge(hold, Load::default(), now_us);
        Ok(())
    }

    /// How many more tokens fit, and the limit that says so.
    pub(crate) fn affords(&self, token: Load, held: Load, so_far: Load) -> (i64, Option<&Counter>) {
        let counted = self.0.iter().map(|counter| (counter.affords(token, held, so_far), Some(counter)));
        counted.min_by_key(|&(tokens, _)| tokens).unwrap_or((i64::MAX, None))
    }

    /// As [`Counter::charge`], of every limit.
    pub(crate) fn charge(&mut self, cost: Load, held: Load, taken_us: i64) {
        self.0.iter_mut().for_each(|counter| counter.charge(cost, held, taken_us));
    }
}
