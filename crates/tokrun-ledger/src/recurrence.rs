//! Grants that come again with the calendar.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use rusqlite::Connection;
use serde::Serialize;
use uuid::Uuid;

use crate::admin::{arguments_hash, check_countable, check_memo, earlier, refuse_closed, remember, require_wallet};
use crate::calendar::{Period, date_at, next_us};
use crate::writer::Tx;
use crate::{Credits, GrantTerms, LedgerError, Result, query, tree};

/// With it, what a century of days gives can be counted.
const AMOUNT_MAX: i64 = i64::MAX / 100_000;

/// An allowance that is given again and again. Each is good until the next one.
#[derive(Debug, Clone)]
pub struct RecurringGrant {
    /// The name of the wallet.
    pub wallet: String,
    /// More than zero, each time.
    pub amount: Credits,
    /// Lower burns first.
    pub priority: i32,
    /// How often, in the calendar of the wallet's time zone as it is now.
    pub every: Period,
    /// The day of the month (1 to 31; the last one in a shorter month), or of the week (1, Monday, to 7); that of the
    /// first grant if `None`. Every day has no such choice.
    pub on: Option<u8>,
    /// When the first one is given; now if `None` or past. The next ones come at midnight.
    pub start: Option<Timestamp>,
    /// None is given at or after this time.
    pub until: Option<Timestamp>,
    /// How much of what is left goes on into the next period, where it burns first.
    pub rollover: Credits,
    /// Shown in statements, kept apart from the hashed entries.
    pub memo: Option<String>,
    /// What each of them is beside an amount.
    pub terms: GrantTerms,
    /// The same key with the same arguments grants once, however often it is sent.
    pub idempotency_key: Option<String>,
}

impl RecurringGrant {
    /// A grant that begins now and goes on for ever; nothing rolls over.
    pub fn new(wallet: impl Into<String>, amount: Credits, every: Period) -> RecurringGrant {
        RecurringGrant {
            wallet: wallet.into(),
            amount,
            priority: 0,
            every,
            on: None,
            start: None,
            until: None,
            rollover: Credits::ZERO,
            memo: None,
            terms: GrantTerms::default(),
            idempotency_key: None,
        }
    }
}

/// A recurring grant, seen now.
#[derive(Debug, Clone, Serialize)]
pub struct RecurringView {
    /// Opaque; `void` takes it.
    pub id: String,
    /// What is given each time.
    pub amount: Credits,
    /// Lower burns first.
    pub priority: i32,
    /// How often.
    pub every: Period,
    /// The day of the month or of the week; 1 for every day.
    pub on: u8,
    /// In which calendar.
    pub zone: String,
    /// How much of what is left goes on into the next period.
    pub rollover: Credits,
    /// When it is given next; `None` if never again.
    pub next: Option<Timestamp>,
    /// None is given at or after this time.
    pub until: Option<Timestamp>,
    /// What it is for.
    pub memo: Option<String>,
    /// What each of them is beside an amount.
    pub terms: GrantTerms,
}

/// A recurring grant, as far as giving it is concerned.
#[derive(Debug, Clone)]
pub(crate) struct Recurrence {
    pub(crate) seq: i64,
    pub(crate) id: String,
    pub(crate) amount: i64,
    pub(crate) priority: i32,
    pub(crate) rollover: i64,
    pub(crate) next_us: i64,
    pub(crate) given: i64,
    every: Period,
    on_day: u8,
    zone_name: String,
    zone: TimeZone,
    until_us: i64,
    memo: Option<String>,
    pub(crate) terms: GrantTerms,
    dirty: bool,
}

impl Recurrence {
    /// Those of a wallet that give something again.
    pub(crate) fn load_all(conn: &Connection, wallet: i64) -> Result<Vec<Recurrence>> {
        Recurrence::load_where(conn, "wallet = ?1 AND next_us < until_us", wallet)
    }

    fn load_where(conn: &Connection, condition: &str, key: impl rusqlite::ToSql) -> Result<Vec<Recurrence>> {
        let sql = format!(
            "SELECT seq, id, amount, priority, rollover, next_us, given, every, on_day, zone, until_us, memo, class, scope, value_nano, \
             currency \
             FROM recurrence WHERE {condition} ORDER BY seq"
        );
        let mut statement = conn.prepare_cached(&sql)?;
        let mut rows = statement.query([key])?;
        let mut recurrences = Vec::new();
        while let Some(row) = rows.next()? {
            let (every, zone_name): (String, String) = (row.get(7)?, row.get(9)?);
            let unknown = |_| LedgerError::Bad { reason: format!("no calendar has a period {every}") };
            recurrences.push(Recurrence {
                seq: row.get(0)?,
                id: row.get(1)?,
                amount: row.get(2)?,
                priority: row.get(3)?,
                rollover: row.get(4)?,
                next_us: row.get(5)?,
                given: row.get(6)?,
                every: every.parse().map_err(unknown)?,
                on_day: row.get::<_, i64>(8)?.clamp(1, 31) as u8,
                zone: zone_of(&zone_name)?,
                zone_name,
                until_us: row.get(10)?,
                memo: row.get(11)?,
                terms: GrantTerms::from_row(row)?,
                dirty: false,
            });
        }
        Ok(recurrences)
    }

    /// When it is due, if it is by now.
    pub(crate) fn due_us(&self, now_us: i64) -> Option<i64> {
        (self.next_us <= now_us && self.next_us < self.until_us).then_some(self.next_us)
    }

    /// One more is given. Returns from when until when it is good.
    pub(crate) fn advance(&mut self) -> (i64, i64) {
        let from_us = self.next_us;
        self.next_us = next_us(self.every, self.on_day, from_us, &self.zone);
        self.given += 1;
        self.dirty = true;
        (from_us, self.next_us)
    }

    /// Writes what changed.
    pub(crate) fn save(&mut self, conn: &Connection) -> Result<()> {
        if std::mem::take(&mut self.dirty) {
            let sql = "UPDATE recurrence SET next_us = ?2, given = ?3 WHERE seq = ?1";
            conn.prepare_cached(sql)?.execute((self.seq, self.next_us, self.given))?;
        }
        Ok(())
    }

    pub(crate) fn view(&self) -> RecurringView {
        RecurringView {
            id: self.id.clone(),
            amount: Credits::from_micro(self.amount),
            priority: self.priority,
            every: self.every,
            on: self.on_day,
            zone: self.zone_name.clone(),
            rollover: Credits::from_micro(self.rollover),
            next: (self.next_us < self.until_us).then(|| query::timestamp(self.next_us)),
            until: (self.until_us < i64::MAX).then(|| query::timestamp(self.until_us)),
            memo: self.memo.clone(),
            terms: self.terms.clone(),
        }
    }
}

/// Begins to give an allowance again and again; the first one at once if it is due.
pub(crate) fn grant_every(tx: &mut Tx<'_>, request: &RecurringGrant) -> Result<RecurringView> {
    tx.check_good()?;
    let wallet = require_wallet(tx.conn, &request.wallet)?;
    let micros = |time: Option<Timestamp>| time.map(Timestamp::as_microsecond);
    let mut arguments = vec![
        "recurrence".to_owned(),
        wallet.id.clone(),
        request.amount.micro().to_string(),
        request.priority.to_string(),
        request.every.as_str().to_owned(),
        format!("{:?}", request.on),
        format!("{:?}", micros(request.start)),
        format!("{:?}", micros(request.until)),
        request.rollover.micro().to_string(),
        format!("{:?}", request.memo),
    ];
    // As earlier versions hashed it, so that their keys stay good.
    arguments.extend((request.terms != GrantTerms::default()).then(|| request.terms.argument()));
    let arguments = arguments_hash(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let key = request.idempotency_key.as_deref();
    let id = match earlier(tx.conn, key, &arguments)? {
        Some(id) => id,
        None => {
            refuse_closed(tx.conn, wallet.seq, &request.wallet)?;
            let zone = tree::zone_name(&tree::path(tx.conn, wallet.seq)?);
            let id = insert(tx, wallet.seq, request, &zone)?;
            remember(tx.conn, key, &arguments, &id)?;
            tx.cache.purses.remove(&wallet.seq);
            let purse = tx.take_purse(wallet.seq)?;
            tx.save_purse(wallet.seq, purse)?;
            id
        }
    };
    // One that has ended since is shown as it is now: it gives nothing next.
    let found = Recurrence::load_where(tx.conn, "id = ?1", &id)?.pop();
    let missing = || LedgerError::Bad { reason: "a recurring grant is missing".into() };
    found.map(|recurrence| recurrence.view()).ok_or_else(missing)
}

/// Ends a recurring grant; what was given of it stays. `None` if there is none of this id.
pub(crate) fn end(tx: &mut Tx<'_>, id: &str) -> Result<Option<i64>> {
    let sql = "UPDATE recurrence SET until_us = min(until_us, ?2) WHERE id = ?1 RETURNING wallet";
    let ended = tx.conn.prepare_cached(sql)?.query_map((id, tx.now_us), |row| row.get(0))?.next().transpose()?;
    Ok(ended)
}

/// The time zone that the ledger names; a guess in its place would give at the wrong hour.
fn zone_of(name: &str) -> Result<TimeZone> {
    TimeZone::get(name).map_err(|_| LedgerError::Bad { reason: format!("there is no time zone {name}") })
}

fn insert(tx: &Tx<'_>, wallet: i64, request: &RecurringGrant, zone_name: &str) -> Result<String> {
    let invalid = |reason| Err(LedgerError::InvalidGrant { reason });
    let start_us = request.start.map_or(tx.now_us, Timestamp::as_microsecond).max(tx.now_us);
    let until_us = request.until.map_or(i64::MAX, Timestamp::as_microsecond);
    let zone = zone_of(zone_name)?;
    let date = date_at(start_us, &zone);
    let (on_max, on) = match request.every {
        Period::Day => (1, 1),
        Period::Week => (7, date.weekday().to_monday_one_offset().cast_unsigned()),
        Period::Month => (31, date.day().cast_unsigned()),
    };
    if request.amount <= Credits::ZERO {
        return invalid("the amount must be more than zero");
    }
    if request.amount.micro() > AMOUNT_MAX || request.rollover.micro() > AMOUNT_MAX {
        return invalid("so much, again and again, cannot be counted; choose a smaller amount");
    }
    if request.rollover < Credits::ZERO {
        return invalid("less than nothing cannot roll over");
    }
    if request.on.is_some_and(|on| !(1..=on_max).contains(&on)) {
        return invalid("there is no such day: a month has days 1 to 31, a week 1 (Monday) to 7, a day has none");
    }
    if until_us <= start_us {
        return invalid("it would end before it begins; choose a later end");
    }
    check_memo(request.memo.as_deref())?;
    check_countable(tx, wallet, request.amount.micro())?;
    let id = Uuid::now_v7().to_string();
    let sql = "INSERT INTO recurrence (id, wallet, amount, priority, every, on_day, zone, rollover, created_us, next_us, \
         until_us, memo, class, scope, value_nano, currency) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)";
    let (class, scope, value_nano, currency) = request.terms.columns();
    tx.conn.execute(
        sql,
        rusqlite::params![
            id,
            wallet,
            request.amount.micro(),
            request.priority,
            request.every.as_str(),
            i64::from(request.on.unwrap_or(on)),
            zone_name,
            request.rollover.micro(),
            tx.now_us,
            start_us,
            until_us,
            request.memo,
            class,
            scope,
            value_nano,
            currency,
        ],
    )?;
    Ok(id)
}
