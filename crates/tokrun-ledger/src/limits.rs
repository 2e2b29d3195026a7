//! Limits: so many tokens, credits or requests in each stretch of time, beside what there is to spend.
//!
//! A limit holds for the requests of a wallet and of all that are under it, of a key, of a project, of a model, or of
//! what is all of these. What a request holds counts from its admission on; each commit counts what it debits, in the
//! same transaction, so that no number of processes exceeds it. Minutes and hours are counted from the epoch on; days,
//! weeks and months are those of the wallet's time zone, or of UTC where the limit names no wallet. A new limit counts
//! from the moment it is set, with what is in flight then.

use std::fmt;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use rusqlite::Connection;
use serde::Serialize;
use uuid::Uuid;

use crate::admin::{arguments_hash, earlier, remember, require_wallet};
use crate::calendar::Period;
use crate::record::{self, Kind};
use crate::text::is_name;
use crate::writer::Tx;
use crate::{Credits, LedgerError, Result, query};

mod counter;

pub(crate) use counter::{Counter, Crossing, Guards, Load};

/// At which percentages somebody should hear of it, if nothing else is said.
pub const WARN_PERCENT: [u8; 3] = [50, 80, 100];

/// For which requests a limit holds: those to which all that is named applies.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct LimitScope {
    /// Of this wallet, or of one under it.
    pub wallet: Option<String>,
    /// With this key.
    pub key: Option<String>,
    /// For this project.
    pub project: Option<String>,
    /// Of this model.
    pub model: Option<String>,
}

/// How much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quota {
    /// Of prompts and answers, cached and free ones included.
    Tokens(u64),
    /// What they cost.
    Credits(Credits),
    /// As many requests.
    Requests(u64),
}

/// What a limit counts over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LimitSpan {
    /// One request.
    Request,
    /// The requests that run at once.
    Running,
    /// From one minute of the epoch to the next.
    Minute,
    /// From one hour of the epoch to the next.
    Hour,
    /// From midnight to midnight.
    Day,
    /// From Monday on.
    Week,
    /// From the first of a month on.
    Month,
}

/// A limit to be set.
#[derive(Debug, Clone)]
pub struct NewLimit {
    /// For which requests; at least one part of it is named.
    pub scope: LimitScope,
    /// How much. A limit with the same scope, measure and span is replaced, and what was counted counts on.
    pub quota: Quota,
    /// Over what.
    pub span: LimitSpan,
    /// At which percentages of it an event is raised.
    pub warn: Vec<u8>,
    /// The same key with the same arguments sets it once, however often it is sent.
    pub idempotency_key: Option<String>,
}

impl NewLimit {
    /// A limit that warns at the usual percentages.
    pub fn new(scope: LimitScope, quota: Quota, span: LimitSpan) -> NewLimit {
        NewLimit { scope, quota, span, warn: WARN_PERCENT.into(), idempotency_key: None }
    }
}

/// A limit, seen now.
#[derive(Debug, Clone)]
pub struct LimitView {
    /// Opaque; removing it takes it.
    pub id: String,
    /// For which requests it holds.
    pub scope: LimitScope,
    /// How much.
    pub quota: Quota,
    /// Over what.
    pub span: LimitSpan,
    /// What of it is used in this window, or by the requests that run; `None` for one that is of each request.
    pub used: Option<Quota>,
    /// When the next window begins.
    pub resets: Option<Timestamp>,
    /// At which percentages of it an event is raised.
    pub warn: Vec<u8>,
}

/// A limit that ended a request, or did not admit it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitReached {
    /// Its id.
    pub id: String,
    /// What it is: `1000 tokens a day of wallet ada`.
    pub what: String,
    /// When it begins anew; `None` if time does not change it.
    pub resets: Option<Timestamp>,
}

impl LimitReached {
    /// Seconds until it is worth trying again, rounded up; `None` if time does not change it.
    pub fn retry_after_s(&self, now: Timestamp) -> Option<u64> {
        let wait_us = self.resets?.as_microsecond().saturating_sub(now.as_microsecond()).max(0);
        Some(wait_us.cast_unsigned().div_ceil(1_000_000))
    }
}

impl fmt::Display for LimitReached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.what)?;
        self.resets.map_or(Ok(()), |resets| write!(f, "; it begins anew at {resets}"))
    }
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Measure {
    Tokens,
    Credits,
    Requests,
}

impl Measure {
    const fn as_str(self) -> &'static str {
        match self {
            Measure::Tokens => "tokens",
            Measure::Credits => "credits",
            Measure::Requests => "requests",
        }
    }

    fn from_name(name: &str) -> Result<Measure> {
        let known = [Measure::Tokens, Measure::Credits, Measure::Requests].into_iter().find(|it| it.as_str() == name);
        known.ok_or_else(|| LedgerError::Bad { reason: format!("a limit counts {name}, which nobody knows") })
    }

    /// An amount that was counted.
    fn quota(self, amount: i64) -> Quota {
        match self {
            Measure::Tokens => Quota::Tokens(amount.max(0).cast_unsigned()),
            Measure::Credits => Quota::Credits(Credits::from_micro(amount)),
            Measure::Requests => Quota::Requests(amount.max(0).cast_unsigned()),
        }
    }
}

impl Quota {
    fn parts(self) -> Option<(Measure, i64)> {
        Some(match self {
            Quota::Tokens(tokens) => (Measure::Tokens, i64::try_from(tokens).ok()?),
            Quota::Credits(credits) => (Measure::Credits, credits.micro()),
            Quota::Requests(requests) => (Measure::Requests, i64::try_from(requests).ok()?),
        })
    }

    /// What it counts, as the file and JSON name it.
    pub const fn measure(self) -> &'static str {
        match self {
            Quota::Tokens(_) => Measure::Tokens.as_str(),
            Quota::Credits(_) => Measure::Credits.as_str(),
            Quota::Requests(_) => Measure::Requests.as_str(),
        }
    }
}

impl fmt::Display for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Quota::Tokens(count) | Quota::Requests(count) => write!(f, "{count} {}", self.measure()),
            Quota::Credits(credits) => write!(f, "{credits} credits"),
        }
    }
}

impl LimitSpan {
    /// The name used in the file, on the command line and in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            LimitSpan::Request => "request",
            LimitSpan::Running => "running",
            LimitSpan::Minute => "minute",
            LimitSpan::Hour => "hour",
            LimitSpan::Day => "day",
            LimitSpan::Week => "week",
            LimitSpan::Month => "month",
        }
    }

    fn from_name(name: &str) -> Result<LimitSpan> {
        use LimitSpan::{Day, Hour, Minute, Month, Request, Running, Week};
        let known = [Request, Running, Minute, Hour, Day, Week, Month].into_iter().find(|span| span.as_str() == name);
        known.ok_or_else(|| LedgerError::Bad { reason: format!("a limit is of a span {name}, which nobody knows") })
    }

    /// Whether it says something about each request, or about those that run, and nothing adds up over time.
    const fn is_per_request(self) -> bool {
        matches!(self, LimitSpan::Request | LimitSpan::Running)
    }

    /// The window around an instant: where it begins and where the next one does.
    fn around(self, at_us: i64, zone: &TimeZone) -> (i64, i64) {
        let every = |seconds: i64| {
            let from_us = at_us - at_us.rem_euclid(seconds * 1_000_000);
            (from_us, from_us.saturating_add(seconds * 1_000_000))
        };
        match self {
            LimitSpan::Request | LimitSpan::Running => (i64::MIN, i64::MAX),
            LimitSpan::Minute => every(60),
            LimitSpan::Hour => every(3600),
            LimitSpan::Day => Period::Day.around(at_us, zone),
            LimitSpan::Week => Period::Week.around(at_us, zone),
            LimitSpan::Month => Period::Month.around(at_us, zone),
        }
    }
}

/// What a limit is, in words.
fn described(scope: &LimitScope, measure: Measure, span: LimitSpan, amount: i64) -> String {
    let parts = [("wallet", &scope.wallet), ("key", &scope.key), ("project", &scope.project), ("model", &scope.model)];
    let named = parts.iter().filter_map(|(what, name)| name.as_ref().map(|name| format!("{what} {name}")));
    let over = match span {
        LimitSpan::Running => "at once".to_owned(),
        LimitSpan::Hour => "an hour".to_owned(),
        span => format!("a {}", span.as_str()),
    };
    format!("{} {over} of {}", measure.quota(amount), named.collect::<Vec<_>>().join(", "))
}

/// The rows of the table, as they are recorded.
pub(crate) const RECORDED: Kind = Kind {
    set: "limit",
    ended: Some("limit_end"),
    table: "quota",
    bodies: "SELECT q.seq, q.entry, q.id, json_object('wallet', a.id, 'key', q.access_key, 'project', q.project, \
         'model', q.model, 'measure', q.measure, 'span', q.span, 'amount', q.amount, 'warn', json(q.warn)) AS body \
         FROM quota q LEFT JOIN account a ON a.seq = q.wallet",
};

/// For [`Counter::from_row`].
const COLUMNS: &str = "SELECT q.*, u.from_us, u.used, u.warned, n.name FROM quota q JOIN quota_use u ON u.quota = q.seq \
     LEFT JOIN wallet_name n ON n.wallet = q.wallet";

/// SQL: whether the limit `q` holds for the open request `o`.
const HOLDS: &str = "(q.access_key IS NULL OR q.access_key IS o.access_key) AND (q.project IS NULL OR q.project IS o.project) \
     AND (q.model IS NULL OR q.model = o.model) AND (q.wallet IS NULL OR q.wallet IN (WITH RECURSIVE up (seq) AS \
     (SELECT o.wallet UNION SELECT w.parent FROM up JOIN wallet w ON w.seq = up.seq WHERE w.parent IS NOT NULL) \
     SELECT seq FROM up))";

/// Sets a limit, or another amount of one.
pub(crate) fn set(tx: &mut Tx<'_>, new: &NewLimit) -> Result<LimitView> {
    tx.check_good()?;
    let (measure, amount) = check(new)?;
    let wallet = new.scope.wallet.as_deref().map(|name| require_wallet(tx.conn, name)).transpose()?;
    let arguments = arguments_hash(&[
        "limit",
        &format!("{:?}", wallet.as_ref().map(|wallet| &wallet.id)),
        &format!("{:?}", (&new.scope.key, &new.scope.project, &new.scope.model)),
        &format!("{measure:?} {:?} {amount} {:?}", new.span, new.warn),
    ]);
    let key = new.idempotency_key.as_deref();
    let id = match earlier(tx.conn, key, &arguments)? {
        Some(id) => id,
        None => {
            let (seq, id) = write(tx, new, wallet.map(|wallet| wallet.seq), measure, amount)?;
            record::set(tx, &RECORDED, seq)?;
            remember(tx.conn, key, &arguments, &id)?;
            tx.limits_changed()?;
            // A lower amount may reach thresholds at once.
            let mut guards = tx.take_guards(&[seq])?;
            guards.0.iter_mut().for_each(Counter::touch);
            tx.keep_guards(guards);
            tx.save_limits()?;
            id
        }
    };
    let found = views(tx.conn, tx.now_us)?.into_iter().find(|view| view.id == id);
    found.ok_or(LedgerError::UnknownLimit { id })
}

fn check(new: &NewLimit) -> Result<(Measure, i64)> {
    let invalid = |reason| LedgerError::InvalidLimit { reason };
    let (measure, amount) = new.quota.parts().ok_or_else(|| invalid("it is more than can be counted"))?;
    if amount < 0 {
        return Err(invalid("it is less than nothing"));
    }
    match (measure, new.span) {
        (Measure::Requests, LimitSpan::Request) => {
            return Err(invalid("a request is always one; limit its tokens or credits"));
        }
        (Measure::Tokens | Measure::Credits, LimitSpan::Running) => {
            return Err(invalid("only requests can be limited to so many at once"));
        }
        _ => {}
    }
    let names = [&new.scope.key, &new.scope.project, &new.scope.model];
    if new.scope.wallet.is_none() && names.iter().all(|name| name.is_none()) {
        return Err(invalid("it says of no wallet, key, project or model that it is theirs; name one"));
    }
    if !names.into_iter().flatten().all(|name| is_name(name)) {
        return Err(invalid("a name in it is empty, longer than 128 characters, or has some that cannot be seen"));
    }
    if new.warn.iter().any(|percent| !(1..=100).contains(percent)) {
        return Err(invalid("it can warn at 1 to 100 percent"));
    }
    Ok((measure, amount))
}

fn write(tx: &Tx<'_>, new: &NewLimit, wallet: Option<i64>, measure: Measure, amount: i64) -> Result<(i64, String)> {
    let scope = &new.scope;
    let mut warn = new.warn.clone();
    warn.sort_unstable();
    warn.dedup();
    let warn = serde_json::json!(warn).to_string();
    let sql = "UPDATE quota SET amount = ?7, warn = ?8 WHERE wallet IS ?1 AND access_key IS ?2 AND project IS ?3 \
         AND model IS ?4 AND measure = ?5 AND span = ?6 RETURNING seq, id";
    let (measure, span) = (measure.as_str(), new.span.as_str());
    let terms = (wallet, &scope.key, &scope.project, &scope.model, measure, span, amount, &warn);
    let mut update = tx.conn.prepare_cached(sql)?;
    let replaced = update.query_map(terms, |row| Ok((row.get(0)?, row.get(1)?)))?.next().transpose()?;
    if let Some(replaced) = replaced {
        return Ok(replaced);
    }
    let id = Uuid::now_v7().to_string();
    // The entry follows in the same transaction.
    let sql = "INSERT INTO quota (wallet, access_key, project, model, measure, span, amount, warn, id, entry) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, 0)";
    let (wallet, key, project, model, measure, span, amount, warn) = terms;
    let seq = tx.conn.prepare_cached(sql)?.insert((wallet, key, project, model, measure, span, amount, warn, &id))?;
    let sql = "INSERT INTO quota_use (quota, from_us, used, warned) VALUES (?1, ?2, 0, 0)";
    tx.conn.prepare_cached(sql)?.execute((seq, tx.now_us))?;
    count_in_flight(tx, seq)?;
    Ok((seq, id))
}

/// What runs when a limit is set counts: so what comes back of it later was counted before.
fn count_in_flight(tx: &Tx<'_>, seq: i64) -> Result<()> {
    let sql = format!(
        "UPDATE quota_use SET used = (SELECT coalesce(sum(CASE q.measure WHEN 'requests' THEN 1 \
         WHEN 'tokens' THEN o.prompt_tokens + iif(p.running, p.output_tokens, 1) \
         ELSE (SELECT coalesce(sum(f.held + f.debited), 0) FROM in_flight f WHERE f.request = o.seq) END), 0) \
         FROM quota q, open_request o JOIN progress p ON p.request = o.seq WHERE q.seq = ?1 AND {HOLDS}) WHERE quota = ?1"
    );
    tx.conn.prepare_cached(&sql)?.execute([seq])?;
    Ok(())
}

/// Removes a limit. Again, without the key: there is none of this id.
pub(crate) fn remove(tx: &mut Tx<'_>, id: &str, key: Option<&str>) -> Result<()> {
    tx.check_good()?;
    let arguments = arguments_hash(&["limit removal", id]);
    if earlier(tx.conn, key, &arguments)?.is_some() {
        return Ok(());
    }
    let seq = record::find(tx.conn, &RECORDED, id)?.ok_or_else(|| LedgerError::UnknownLimit { id: id.to_owned() })?;
    record::end(tx, &RECORDED, id)?;
    tx.conn.prepare_cached("DELETE FROM quota_use WHERE quota = ?1")?.execute([seq])?;
    tx.conn.prepare_cached("DELETE FROM quota WHERE seq = ?1")?.execute([seq])?;
    remember(tx.conn, key, &arguments, id)?;
    tx.limits_changed()
}

/// Every limit, in the order in which they were set.
pub(crate) fn views(conn: &Connection, now_us: i64) -> Result<Vec<LimitView>> {
    let running = format!("SELECT count(*) FROM quota q, open_request o WHERE q.seq = ?1 AND {HOLDS}");
    let mut running = conn.prepare_cached(&running)?;
    let mut statement = conn.prepare_cached(&format!("{COLUMNS} ORDER BY q.seq"))?;
    let mut rows = statement.query([])?;
    let mut views = Vec::new();
    while let Some(row) = rows.next()? {
        let mut counter = Counter::from_row(conn, row)?;
        counter.pass_time(now_us);
        let used = match counter.span {
            LimitSpan::Request => None,
            LimitSpan::Running => Some(running.query_row([counter.seq], |row| row.get(0))?),
            _ => Some(counter.used),
        };
        views.push(LimitView {
            quota: counter.measure.quota(counter.amount),
            span: counter.span,
            used: used.map(|used| counter.measure.quota(used)),
            resets: counter.resets_us().map(query::timestamp),
            id: counter.id,
            scope: counter.scope,
            warn: counter.warn,
        });
    }
    Ok(views)
}

/// The numbers of the limits that hold for an open request.
pub(crate) fn of_request(tx: &Tx<'_>, request: i64) -> Result<Vec<i64>> {
    if !tx.cache.meta.has_limits {
        return Ok(Vec::new());
    }
    let sql = format!("SELECT q.seq FROM open_request o, quota q WHERE o.seq = ?1 AND {HOLDS} ORDER BY q.seq");
    let mut statement = tx.conn.prepare_cached(&sql)?;
    let limits = statement.query_map([request], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    Ok(limits)
}

/// The limit of requests at once that another request, which is written already, exceeds.
pub(crate) fn exceeded_at_once(tx: &Tx<'_>, guards: &Guards) -> Result<Option<LimitReached>> {
    let sql = format!("SELECT count(*) FROM quota q, open_request o WHERE q.seq = ?1 AND {HOLDS}");
    for counter in guards.0.iter().filter(|counter| counter.span == LimitSpan::Running) {
        let running: i64 = tx.conn.prepare_cached(&sql)?.query_row([counter.seq], |row| row.get(0))?;
        if running > counter.amount {
            return Ok(Some(counter.reached()));
        }
    }
    Ok(None)
}

impl Tx<'_> {
    /// The limits of a request, as of now. Put them back with [`Tx::keep_guards`]; a job that fails just drops them.
    pub(crate) fn take_guards(&mut self, limits: &[i64]) -> Result<Guards> {
        let mut guards = Vec::with_capacity(limits.len());
        for &limit in limits {
            let mut counter = match self.cache.limits.remove(&limit) {
                Some(counter) => counter,
                None => load(self.conn, limit)?,
            };
            counter.pass_time(self.now_us);
            guards.push(counter);
        }
        Ok(Guards(guards))
    }

    /// Remembers them. Their changes are written by [`Tx::save_limits`].
    pub(crate) fn keep_guards(&mut self, guards: Guards) {
        for counter in guards.0 {
            self.cache.limits.insert(counter.seq, counter);
        }
    }

    /// Writes what was counted, and the events of thresholds that it reached.
    pub(crate) fn save_limits(&mut self) -> Result<()> {
        for counter in self.cache.limits.values_mut() {
            for crossing in counter.save(self.conn)? {
                crate::events::of_limit(self.conn, self.now_us, counter, &crossing)?;
            }
        }
        Ok(())
    }

    /// Forgets what followed from the limits of before.
    fn limits_changed(&mut self) -> Result<()> {
        self.cache.requests.clear();
        self.cache.limits.clear();
        self.cache.meta.has_limits =
            self.conn.prepare_cached("SELECT EXISTS (SELECT 1 FROM quota)")?.query_row([], |row| row.get(0))?;
        Ok(())
    }
}

fn load(conn: &Connection, limit: i64) -> Result<Counter> {
    let mut statement = conn.prepare_cached(&format!("{COLUMNS} WHERE q.seq = ?1"))?;
    let mut rows = statement.query([limit])?;
    let row = rows.next()?.ok_or_else(|| LedgerError::Bad { reason: "a limit is not counted".into() })?;
    Counter::from_row(conn, row)
}
