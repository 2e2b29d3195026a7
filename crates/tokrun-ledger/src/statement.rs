//! What came into a wallet and what went out of it, between two instants.
//!
//! A line is an entry's effect on the wallet, or on all wallets of a subtree together, so that the lines between two
//! instants are the difference of the balances at them: `opening + lines = closing`, whatever the instants are.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use rusqlite::{Connection, OptionalExtension, Row};
use serde::Serialize;

use crate::calendar::date_at;
use crate::purse::{EventKind, Purse};
use crate::query::timestamp;
use crate::{Credits, GrantKind, Result, admin, tree};

/// Which statement.
#[derive(Debug, Clone)]
pub struct StatementQuery {
    /// The name of the wallet.
    pub wallet: String,
    /// Of the wallet and all that stand under it, as if they were one.
    pub subtree: bool,
    /// Entries that took effect at this time or later.
    pub from: Option<Timestamp>,
    /// Entries that took effect before this time.
    pub to: Option<Timestamp>,
}

impl StatementQuery {
    /// Everything that ever happened to one wallet.
    pub fn new(wallet: impl Into<String>) -> StatementQuery {
        StatementQuery { wallet: wallet.into(), subtree: false, from: None, to: None }
    }
}

/// A wallet's entries over a window.
#[derive(Debug, Clone, Serialize)]
pub struct Statement {
    /// Whose it is.
    pub wallet: String,
    /// Whether it is of all wallets under it, too.
    pub subtree: bool,
    /// The name of the time zone whose days it counts.
    pub zone: String,
    /// The first instant of the window.
    pub from: Option<Timestamp>,
    /// The first instant after it.
    pub to: Option<Timestamp>,
    /// The balance of entries before the first line.
    pub opening: Credits,
    /// In the order of their effect.
    pub lines: Vec<StatementLine>,
    /// The balance of entries after the last line: `opening` and every line's amount.
    pub closing: Credits,
    /// In flight now. If the period is open-ended, `closing - in_flight` is the wallet's balance.
    pub in_flight: Credits,
    /// What the lines of settled requests add up to.
    pub spending: Spending,
}

/// What was spent, in several groupings of the same settled requests: each adds up to the same sum.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Spending {
    /// By the model that answered.
    pub by_model: Vec<Spent>,
    /// By project; requests that named none are under "".
    pub by_project: Vec<Spent>,
    /// By the wallet that asked: a member's requests that this wallet's pool paid are the member's.
    pub by_wallet: Vec<Spent>,
    /// By the day on which they were settled, `YYYY-MM-DD`.
    pub by_day: Vec<Spent>,
}

/// One group of settled requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Spent {
    /// The model, project, wallet or day.
    pub key: String,
    /// How many this wallet paid, wholly or in part.
    pub requests: u64,
    /// Their tokens, prompt and output.
    pub tokens: u64,
    /// What this wallet paid of them.
    pub amount: Credits,
}

/// What an entry was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StatementKind {
    /// The grant a wallet came with.
    Starter,
    /// A grant became effective.
    Grant,
    /// A request was settled.
    Settle,
    /// A grant expired with something left.
    Expire,
    /// A grant was taken back.
    Void,
    /// Given to, or received from, another wallet.
    Transfer,
    /// A settled request was paid back.
    Refund,
    /// A grant or a transfer was taken back, wholly or in part.
    Correct,
    /// What was left of a recurring grant went on into its next period: the balance stays.
    Rollover,
}

impl StatementKind {
    /// The name used in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            StatementKind::Starter => "starter",
            StatementKind::Grant => "grant",
            StatementKind::Settle => "settle",
            StatementKind::Expire => "expire",
            StatementKind::Void => "void",
            StatementKind::Transfer => "transfer",
            StatementKind::Refund => "refund",
            StatementKind::Correct => "correct",
            StatementKind::Rollover => "rollover",
        }
    }

    /// The kind of an entry.
    fn of_entry(name: &str) -> StatementKind {
        use StatementKind::{Correct, Expire, Grant, Refund, Rollover, Settle, Starter, Transfer, Void};
        let known = [Starter, Grant, Settle, Expire, Void, Transfer, Refund, Correct, Rollover];
        known.into_iter().find(|kind| kind.as_str() == name).unwrap_or(Settle)
    }
}

/// One entry's effect on a wallet.
#[derive(Debug, Clone, Serialize)]
pub struct StatementLine {
    /// When it took effect.
    pub date: Timestamp,
    /// What it was for.
    pub kind: StatementKind,
    /// Signed: what was given is positive.
    pub amount: Credits,
    /// The balance of entries after it.
    pub balance_after: Credits,
    /// What rolled over, if that is what happened.
    pub moved: Option<Credits>,
    /// The request that was settled.
    pub request_id: Option<String>,
    /// What the log says of it.
    pub request: Option<StatementRequest>,
    /// The other wallet of a transfer.
    pub other: Option<String>,
    /// What the grant was given for.
    pub memo: Option<String>,
}

/// A settled request, as the log has it.
#[derive(Debug, Clone, Serialize)]
pub struct StatementRequest {
    /// The name of the wallet that asked.
    pub wallet: String,
    /// The model that answered.
    pub model: String,
    /// What it was booked under.
    pub project: Option<String>,
    /// Prompt and output.
    pub tokens: u64,
}

impl Statement {
    /// The sum of the lines of each kind, what was received and what was sent apart: these and `opening` are `closing`.
    pub fn totals(&self) -> Vec<(&'static str, Credits)> {
        let mut sums: BTreeMap<(StatementKind, bool), i64> = BTreeMap::new();
        for line in self.lines.iter().filter(|line| line.amount != Credits::ZERO) {
            *sums.entry((line.kind, line.amount < Credits::ZERO)).or_default() += line.amount.micro();
        }
        let named = |((kind, is_less), sum)| (title(kind, is_less), Credits::from_micro(sum));
        sums.into_iter().map(named).collect()
    }
}

impl StatementLine {
    /// What it is called on a statement: a transfer is either sent or received.
    pub fn title(&self) -> &'static str {
        title(self.kind, self.amount < Credits::ZERO)
    }
}

fn title(kind: StatementKind, is_less: bool) -> &'static str {
    match kind {
        StatementKind::Starter => "starter grant",
        StatementKind::Grant => "granted",
        StatementKind::Settle => "spent",
        StatementKind::Expire => "expired",
        StatementKind::Void => "taken back",
        StatementKind::Transfer if is_less => "sent",
        StatementKind::Transfer => "received",
        StatementKind::Refund => "refunded",
        StatementKind::Correct if is_less => "corrected",
        StatementKind::Correct => "returned",
        StatementKind::Rollover => "rolled over",
    }
}

/// SQL for the wallets of a statement of `?1`: itself, and with `?2` all that stand under it.
pub(crate) const MEMBERS: &str = "WITH RECURSIVE member (wallet) AS (SELECT ?1 UNION SELECT w.seq FROM member \
     JOIN wallet w ON w.parent = member.wallet WHERE ?2)";

/// The instants of a statement, µs, the last one excluded.
struct Window {
    from_us: i64,
    to_us: i64,
}

impl Window {
    fn has(&self, at_us: i64) -> bool {
        (self.from_us..self.to_us).contains(&at_us)
    }
}

/// A wallet's, or a subtree's, entries that took effect in the window.
pub(crate) fn statement(conn: &Connection, query: &StatementQuery, now_us: i64) -> Result<Statement> {
    let wallet = admin::require_wallet(conn, &query.wallet)?.seq;
    let path = tree::path(conn, wallet)?;
    let window = Window {
        from_us: query.from.map_or(i64::MIN, Timestamp::as_microsecond),
        to_us: query.to.map_or(i64::MAX, Timestamp::as_microsecond),
    };
    let members = members(conn, wallet, query.subtree)?;
    let (mut opening, mut lines) = written_lines(conn, wallet, query.subtree, &window)?;
    for &member in &members {
        for line in due_lines(conn, member, now_us)? {
            let at_us = line.date.as_microsecond();
            if at_us < window.from_us {
                opening += line.amount.micro();
            } else if window.has(at_us) {
                lines.push(line);
            }
        }
    }
    lines.sort_by_key(|line| line.date);

    let mut balance = opening;
    for line in &mut lines {
        balance += line.amount.micro();
        line.balance_after = Credits::from_micro(balance);
    }
    Ok(Statement {
        wallet: query.wallet.clone(),
        subtree: query.subtree,
        zone: tree::zone_name(&path),
        from: query.from,
        to: query.to,
        opening: Credits::from_micro(opening),
        closing: Credits::from_micro(balance),
        in_flight: Credits::from_micro(in_flight(conn, wallet, query.subtree)?),
        spending: spending(&lines, &tree::zone(&path)?),
        lines,
    })
}

fn members(conn: &Connection, wallet: i64, subtree: bool) -> Result<Vec<i64>> {
    let mut statement = conn.prepare_cached(&format!("{MEMBERS} SELECT wallet FROM member"))?;
    Ok(statement.query_map((wallet, subtree), |row| row.get(0))?.collect::<rusqlite::Result<_>>()?)
}

fn in_flight(conn: &Connection, wallet: i64, subtree: bool) -> Result<i64> {
    let sql = format!(
        "{MEMBERS} SELECT coalesce(sum(f.held + f.debited), 0) FROM in_flight f \
         JOIN allowance g ON g.seq = f.allowance WHERE g.wallet IN member"
    );
    Ok(conn.prepare_cached(&sql)?.query_row((wallet, subtree), |row| row.get(0))?)
}

/// The sum of the entries before the window, and those in it, as they were written: both are read in one pass, since most
/// of the time goes into finding the entries at all. What moves within the wallets changes nothing and is left out, but for what rolled
/// over.
fn written_lines(conn: &Connection, wallet: i64, subtree: bool, window: &Window) -> Result<(i64, Vec<StatementLine>)> {
    // Of one wallet the index has them in order; of several they are sorted.
    let postings = match subtree {
        false => "posting p CROSS JOIN entry e ON e.id = p.entry WHERE p.account = ?1",
        true => {
            "member CROSS JOIN posting p ON p.account = member.wallet CROSS JOIN entry e ON e.id = p.entry WHERE TRUE"
        }
    };
    let sql = format!(
        "{MEMBERS}, line AS (SELECT p.entry AS id, e.effective_us, e.kind, e.request_id, e.memo_digest, sum(p.amount) AS amount, \
         max(p.amount) AS moved FROM {postings} AND e.effective_us < ?4 \
         GROUP BY p.entry HAVING sum(p.amount) <> 0 OR e.kind = 'rollover') \
         SELECT l.effective_us, l.kind, l.amount, l.moved, l.request_id, \
         CASE WHEN l.memo_digest IS NULL OR l.effective_us < ?3 THEN NULL WHEN l.kind IN ('refund', 'correct') \
         THEN (SELECT m.text FROM entry_memo m WHERE m.entry = l.id) \
         ELSE (SELECT m.text FROM posting q JOIN memo m ON m.allowance = q.allowance \
         WHERE q.entry = l.id AND q.amount > 0) END, \
         iif(l.kind IN ('transfer', 'correct') AND l.effective_us >= ?3, (SELECT coalesce(n.name, a.id) FROM posting q JOIN account a ON a.seq = q.account \
         LEFT JOIN wallet_name n ON n.wallet = q.account WHERE q.entry = l.id AND q.allowance IS NOT NULL AND q.account NOT IN member), NULL), \
         r.model, r.project, r.prompt_tokens, r.output_tokens, coalesce(n.name, a.id), l.id \
         FROM line l LEFT JOIN request_log r ON l.kind IN ('settle', 'refund') AND l.effective_us >= ?3 AND r.id = l.request_id \
         LEFT JOIN account a ON a.seq = r.wallet LEFT JOIN wallet_name n ON n.wallet = r.wallet"
    );
    let mut statement = conn.prepare_cached(&sql)?;
    let mut rows = statement.query((wallet, subtree, window.from_us, window.to_us))?;
    let (mut before, mut lines) = (0, Vec::new());
    while let Some(row) = rows.next()? {
        match row.get::<_, i64>(0)? < window.from_us {
            true => before += row.get::<_, i64>(2)?,
            false => lines.push((row.get::<_, i64>(12)?, written_line(row)?)),
        }
    }
    lines.sort_unstable_by_key(|&(id, _)| id);
    Ok((before, lines.into_iter().map(|(_, line)| line).collect()))
}

fn written_line(row: &Row<'_>) -> rusqlite::Result<StatementLine> {
    let kind = StatementKind::of_entry(row.get_ref(1)?.as_str()?);
    let model: Option<String> = row.get(7)?;
    let request = match model {
        Some(model) => {
            let tokens = row.get::<_, u64>(9)?.saturating_add(row.get(10)?);
            Some(StatementRequest { wallet: row.get(11)?, model, project: row.get(8)?, tokens })
        }
        None => None,
    };
    let moved: i64 = row.get(3)?;
    Ok(StatementLine {
        date: timestamp(row.get(0)?),
        kind,
        amount: Credits::from_micro(row.get(2)?),
        balance_after: Credits::ZERO,
        moved: (kind == StatementKind::Rollover).then(|| Credits::from_micro(moved)),
        request_id: row.get(4)?,
        request,
        memo: row.get(5)?,
        other: row.get(6)?,
    })
}

/// The entries that the next writer will write because time has passed.
fn due_lines(conn: &Connection, wallet: i64, now_us: i64) -> Result<Vec<StatementLine>> {
    let mut purse = Purse::load(conn, wallet)?;
    let mut lines = Vec::new();
    for event in purse.pass_time(now_us) {
        let Some(grant) = purse.grant(event.grant) else { continue };
        let (kind, signed) = match event.kind {
            EventKind::Activate if grant.kind == GrantKind::Starter => (StatementKind::Starter, event.amount),
            EventKind::Activate => (StatementKind::Grant, event.amount),
            EventKind::Rollover => (StatementKind::Rollover, 0),
            // It moves within the wallet: no line.
            EventKind::Repay => continue,
            EventKind::Void => (StatementKind::Void, -event.amount),
            EventKind::Expire => (StatementKind::Expire, -event.amount),
        };
        let memo = match event.kind {
            EventKind::Activate if grant.seq < 0 => purse.memo_of(grant),
            EventKind::Activate => conn
                .prepare_cached("SELECT text FROM memo WHERE allowance = ?1")?
                .query_row([grant.seq], |row| row.get(0))
                .optional()?,
            _ => None,
        };
        lines.push(StatementLine {
            date: timestamp(event.at_us),
            kind,
            amount: Credits::from_micro(signed),
            balance_after: Credits::ZERO,
            moved: (kind == StatementKind::Rollover).then(|| Credits::from_micro(event.amount)),
            request_id: None,
            request: None,
            other: None,
            memo,
        });
    }
    Ok(lines)
}

/// The lines of settled requests, grouped in each way.
fn spending(lines: &[StatementLine], zone: &TimeZone) -> Spending {
    let mut groups = [const { BTreeMap::<String, Spent>::new() }; 4];
    for line in lines.iter().filter(|line| line.kind == StatementKind::Settle) {
        let request = line.request.as_ref();
        let named = |pick: fn(&StatementRequest) -> Option<&str>| request.and_then(pick).unwrap_or_default().to_owned();
        let keys = [
            named(|request| Some(&request.model)),
            named(|request| request.project.as_deref()),
            named(|request| Some(&request.wallet)),
            date_at(line.date.as_microsecond(), zone).to_string(),
        ];
        for (group, key) in groups.iter_mut().zip(keys) {
            let spent = group.entry(key).or_insert_with_key(|key| Spent {
                key: key.clone(),
                requests: 0,
                tokens: 0,
                amount: Credits::ZERO,
            });
            spent.requests += 1;
            spent.tokens = spent.tokens.saturating_add(request.map_or(0, |request| request.tokens));
            spent.amount = Credits::from_micro(spent.amount.micro() - line.amount.micro());
        }
    }
    let [by_model, by_project, by_wallet, by_day] = groups.map(|group| group.into_values().collect());
    Spending { by_model, by_project, by_wallet, by_day }
}
