//! Refunds and corrections: new entries that name what they take back. What was written stays.
//!
//! A refund returns what a settled request was debited to the grants that paid it, the one that burns last first. What
//! comes back to a grant that has expired, or was made void, is gone again at once, by an entry of its own, as what a
//! request gives back too late is. What an overdraft had paid comes back as a grant of kind `refund`, which repays the
//! overdraft like any other. A correction takes back what is left of a grant, or of a transfer, whose giver gets it.

use rusqlite::{Connection, OptionalExtension};
use serde::Serialize;
use uuid::Uuid;

use crate::admin::{arguments_hash, check_memo, earlier, remember};
use crate::chain::{self, Draft, EXPIRED, ISSUED, SPENT};
use crate::writer::Tx;
use crate::{Credits, LedgerError, Result, WalletView, audit, closing, query};

/// A settled request to be paid back.
#[derive(Debug, Clone)]
pub struct Refund {
    /// The request.
    pub request_id: String,
    /// How much; all that was not refunded yet if `None`.
    pub amount: Option<Credits>,
    /// Shown in statements, kept apart from the hashed entries.
    pub memo: Option<String>,
    /// The same key with the same arguments refunds once, however often it is sent.
    pub idempotency_key: Option<String>,
}

impl Refund {
    /// All of a request.
    pub fn new(request_id: impl Into<String>) -> Refund {
        Refund { request_id: request_id.into(), amount: None, memo: None, idempotency_key: None }
    }
}

/// A grant, or a received transfer, to be taken back.
#[derive(Debug, Clone)]
pub struct Correction {
    /// The id of the grant; of a transfer, that of the grant in which it was received.
    pub grant_id: String,
    /// How much; all that is left of it if `None`.
    pub amount: Option<Credits>,
    /// Shown in statements, kept apart from the hashed entries.
    pub memo: Option<String>,
    /// The same key with the same arguments corrects once, however often it is sent.
    pub idempotency_key: Option<String>,
}

impl Correction {
    /// All that is left of a grant.
    pub fn new(grant_id: impl Into<String>) -> Correction {
        Correction { grant_id: grant_id.into(), amount: None, memo: None, idempotency_key: None }
    }
}

/// What was taken back.
#[derive(Debug, Clone, Serialize)]
pub struct Reversed {
    /// The number of its entry.
    pub entry: u64,
    /// The request that was refunded, or the grant that was corrected.
    pub of: String,
    /// How much.
    pub amount: Credits,
    /// How much of it came back to grants that had expired or were void, and is gone.
    pub expired: Credits,
    /// How much of the request, or of the grant, was taken back in all.
    pub reversed: Credits,
    /// The wallet that had asked, or that had been given.
    pub wallet: WalletView,
}

/// A row of reversals `x`, with the request `r` or the grant `c` that it is of, in the order in which it is hashed.
pub(crate) const REVERSED: &str = "r.id, c.id, x.amount, x.expired";

/// Where that is read from, beside the row itself.
pub(crate) const REVERSALS: &str = "LEFT JOIN request_log r ON r.seq = x.request \
     LEFT JOIN allowance c ON c.seq = x.corrected";

/// A part of what was paid: by which grant of which wallet, and how much.
struct Paid {
    wallet: i64,
    allowance: i64,
    amount: i64,
}

/// Pays a settled request back, all of the amount or nothing.
pub(crate) fn refund(tx: &mut Tx<'_>, refund: &Refund) -> Result<Reversed> {
    tx.check_good()?;
    let amount = refund.amount.map(|amount| amount.micro());
    let arguments =
        arguments_hash(&["refund", &refund.request_id, &format!("{amount:?}"), &format!("{:?}", refund.memo)]);
    let key = refund.idempotency_key.as_deref();
    if let Some(entry) = earlier(tx.conn, key, &arguments)? {
        return reversed(tx, &entry);
    }
    let sql = "SELECT seq, entry FROM request_log WHERE id = ?1";
    let found = tx
        .conn
        .prepare_cached(sql)?
        .query_row([&refund.request_id], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, Option<i64>>(1)?)));
    let unknown = || LedgerError::NotSettled { id: refund.request_id.clone() };
    let (request, settled) = found.optional()?.ok_or_else(unknown)?;
    let mut paid = settled.map_or(Ok(Vec::new()), |entry| paid(tx.conn, request, entry))?;
    let left = paid.iter().map(|paid| paid.amount).sum();
    let amount = check_amount(amount, left, "was paid for the request and is not refunded")?;
    check_memo(refund.memo.as_deref())?;

    let mut owed = amount;
    paid.retain_mut(|paid| {
        paid.amount = paid.amount.min(owed);
        owed -= paid.amount;
        paid.amount > 0
    });
    let reversal = Reversal { kind: "refund", request: Some((request, &refund.request_id)), corrected: None, amount };
    let entry = reversal.write(tx, (SPENT, None), &paid, refund.memo.as_deref())?;
    remember(tx.conn, key, &arguments, &entry.to_string())?;
    reversed(tx, &entry.to_string())
}

/// Takes back what is left of a grant, all of the amount or nothing.
pub(crate) fn correct(tx: &mut Tx<'_>, correction: &Correction) -> Result<Reversed> {
    tx.check_good()?;
    let amount = correction.amount.map(|amount| amount.micro());
    let (id, memo) = (&correction.grant_id, correction.memo.as_deref());
    let arguments = arguments_hash(&["correct", id, &format!("{amount:?}"), &format!("{memo:?}")]);
    let key = correction.idempotency_key.as_deref();
    if let Some(entry) = earlier(tx.conn, key, &arguments)? {
        return reversed(tx, &entry);
    }
    let sql = "SELECT seq, wallet FROM allowance WHERE id = ?1 AND kind <> 'overdraft'";
    let found = tx.conn.prepare_cached(sql)?.query_row([id], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    let (seq, wallet): (i64, i64) = found.ok_or_else(|| LedgerError::UnknownGrant { id: id.clone() })?;
    let mut purse = tx.take_purse(wallet)?;
    let left = purse.grant(seq).map_or(0, |grant| grant.remaining);
    let amount = check_amount(amount, left, "is left of the grant")?;
    check_memo(memo)?;
    purse.take_out(seq, amount);
    tx.save_purse(wallet, purse)?;

    let given_by = giver(tx.conn, id)?;
    let to: Vec<Paid> = given_by.into_iter().map(|(wallet, allowance)| Paid { wallet, allowance, amount }).collect();
    let reversal = Reversal { kind: "correct", request: None, corrected: Some(seq), amount };
    let entry = reversal.write(tx, (wallet, Some(seq)), &to, memo)?;
    remember(tx.conn, key, &arguments, &entry.to_string())?;
    reversed(tx, &entry.to_string())
}

fn check_amount(asked: Option<i64>, left: i64, what: &str) -> Result<i64> {
    let amount = asked.unwrap_or(left);
    let invalid = |reason: String| Err(LedgerError::InvalidReversal { reason });
    match amount {
        _ if left == 0 => invalid(format!("nothing {what}; `tokrun wallet statement` shows what was")),
        ..=0 => invalid("the amount must be more than zero".into()),
        _ if amount > left => {
            let left = Credits::from_micro(left);
            invalid(format!("only {left} credits {what}; take back at most so much"))
        }
        _ => Ok(amount),
    }
}

/// What grants paid for a request and were not given back: overdrafts first, then pools, then what burns last. What an overdraft paid came back as a
/// grant that was not there to pay.
fn paid(conn: &Connection, request: i64, settled: i64) -> Result<Vec<Paid>> {
    let sql = "WITH paid AS (SELECT p.account, p.allowance, -p.amount AS amount, g.kind = 'overdraft' AS overdrawn, \
         g.priority, g.expires_us FROM posting p JOIN allowance g ON g.seq = p.allowance WHERE p.entry = ?2), \
         returned AS (SELECT q.account, q.allowance, q.amount, q.allowance NOT IN (SELECT allowance FROM paid) AS new \
         FROM reversal x JOIN posting q ON q.entry = x.entry WHERE x.request = ?1 AND q.amount > 0) \
         SELECT account, allowance, amount - coalesce((SELECT sum(r.amount) FROM returned r \
         WHERE iif(paid.overdrawn, r.new AND r.account = paid.account, r.allowance = paid.allowance)), 0) \
         FROM paid ORDER BY overdrawn DESC, account = (SELECT wallet FROM request_log WHERE seq = ?1), priority DESC, \
         expires_us IS NULL DESC, expires_us DESC, allowance DESC";
    let mut statement = conn.prepare_cached(sql)?;
    let read = |row: &rusqlite::Row<'_>| Ok(Paid { wallet: row.get(0)?, allowance: row.get(1)?, amount: row.get(2)? });
    Ok(statement.query_map([request, settled], read)?.collect::<rusqlite::Result<_>>()?)
}

/// The wallet and the grant that a transfer came from; `None` of what was not transferred.
pub(crate) fn giver(conn: &Connection, id: &str) -> Result<Option<(i64, i64)>> {
    let sql = "SELECT p.account, p.allowance FROM entry e JOIN posting p ON p.entry = e.id \
         WHERE e.idempotency_key = ?1 AND p.amount < 0";
    let found = conn.prepare_cached(sql)?.query_row([format!("transfer:{id}")], |row| Ok((row.get(0)?, row.get(1)?)));
    Ok(found.optional()?)
}

/// An entry to be written.
struct Reversal<'a> {
    kind: &'static str,
    request: Option<(i64, &'a str)>,
    corrected: Option<i64>,
    amount: i64,
}

/// What is known of a grant that something comes back to.
struct Target {
    is_overdraft: bool,
    /// How what comes back is gone again.
    gone: Option<&'static str>,
}

impl Reversal<'_> {
    /// Moves the amount from `from` to whom it came from, or, if nobody gave it, back to what is issued.
    fn write(&self, tx: &mut Tx<'_>, from: (i64, Option<i64>), to: &[Paid], memo: Option<&str>) -> Result<i64> {
        let mut postings = vec![(from.0, from.1, -self.amount)];
        let (mut late, mut new) = (Vec::new(), Vec::new());
        for paid in to {
            let target = target(tx, paid)?;
            let allowance = if target.is_overdraft { insert_refund(tx, paid)? } else { paid.allowance };
            postings.push((paid.wallet, Some(allowance), paid.amount));
            match target.gone {
                Some(kind) => late.push((paid, kind)),
                None if target.is_overdraft => new.push((paid.wallet, allowance)),
                None => {
                    let sql = "UPDATE allowance SET remaining = remaining + ?2 WHERE seq = ?1";
                    tx.conn.prepare_cached(sql)?.execute((paid.allowance, paid.amount))?;
                    tx.cache.purses.remove(&paid.wallet);
                }
            }
        }
        if to.is_empty() {
            postings.push((ISSUED, None, self.amount));
        }
        let expired = late.iter().map(|(paid, _)| paid.amount).sum();
        let entry = self.append(tx, &postings, expired, memo)?;
        for (paid, kind) in late {
            expire(tx, paid, kind, self.request.map(|(_, id)| id))?;
        }
        for (wallet, seq) in new {
            repay(tx, wallet, seq)?;
        }
        to.iter().try_for_each(|paid| closing::settle_up(tx, paid.wallet))?;
        Ok(entry)
    }

    fn append(
        &self,
        tx: &Tx<'_>,
        postings: &[(i64, Option<i64>, i64)],
        expired: i64,
        memo: Option<&str>,
    ) -> Result<i64> {
        let entry = chain::head(tx.conn)?.entry + 1;
        let sql = "INSERT INTO reversal (entry, request, corrected, amount, expired) VALUES (?1, ?2, ?3, ?4, ?5)";
        let request = self.request.map(|(seq, _)| seq);
        tx.conn.prepare_cached(sql)?.execute((entry, request, self.corrected, self.amount, expired))?;
        let draft = Draft {
            kind: self.kind,
            idempotency_key: &format!("{}:{entry}", self.kind),
            created_us: tx.now_us,
            effective_us: tx.now_us,
            request_id: self.request.map(|(_, id)| id),
            memo_digest: memo.map(|memo| insert_entry_memo(tx, entry, memo)).transpose()?,
            subject_digest: Some(digest(tx.conn, entry)?),
            postings,
        };
        chain::append(tx.conn, &draft)
    }
}

/// What the chain keeps of a reversal.
fn digest(conn: &Connection, entry: i64) -> Result<chain::Hash> {
    let sql = format!("SELECT {REVERSED} FROM reversal x {REVERSALS} WHERE x.entry = ?1");
    conn.prepare_cached(&sql)?.query_row([entry], |row| Ok(chain::row_digest(row, 0)))?
}

/// Keeps what an entry is for. Returns what the chain keeps of that.
fn insert_entry_memo(tx: &Tx<'_>, entry: i64, memo: &str) -> Result<chain::Hash> {
    let salt = *Uuid::new_v4().as_bytes();
    tx.conn.execute("INSERT INTO entry_memo (entry, salt, text) VALUES (?1, ?2, ?3)", (entry, salt, memo))?;
    Ok(chain::salted(&salt, memo))
}

/// Looks at a grant as of now.
fn target(tx: &mut Tx<'_>, paid: &Paid) -> Result<Target> {
    let purse = tx.take_purse(paid.wallet)?;
    tx.save_purse(paid.wallet, purse)?;
    let sql = "SELECT kind = 'overdraft', voided_us IS NOT NULL, expires_us <= ?2 FROM allowance WHERE seq = ?1";
    Ok(tx.conn.prepare_cached(sql)?.query_row((paid.allowance, tx.now_us), |row| {
        let gone = match (row.get(1)?, row.get(2)?) {
            (true, _) => Some("void"),
            (false, Some(true)) => Some("expire"),
            (false, _) => None,
        };
        Ok(Target { is_overdraft: row.get(0)?, gone })
    })?)
}

/// What came back to a grant that is no more goes the way of the rest of it.
fn expire(tx: &Tx<'_>, paid: &Paid, kind: &str, request: Option<&str>) -> Result<()> {
    let sql = "SELECT id FROM allowance WHERE seq = ?1";
    let id: String = tx.conn.prepare_cached(sql)?.query_row([paid.allowance], |row| row.get(0))?;
    let gone = if kind == "void" { ISSUED } else { EXPIRED };
    let draft = Draft {
        kind,
        idempotency_key: &format!("{kind}:{id}:{}", chain::head(tx.conn)?.entry + 1),
        created_us: tx.now_us,
        effective_us: tx.now_us,
        request_id: request,
        memo_digest: None,
        subject_digest: None,
        postings: &[(paid.wallet, Some(paid.allowance), -paid.amount), (gone, None, paid.amount)],
    };
    chain::append(tx.conn, &draft).map(|_| ())
}

/// Writes the grant in which comes back what an overdraft had paid.
fn insert_refund(tx: &Tx<'_>, paid: &Paid) -> Result<i64> {
    let sql = "INSERT INTO allowance (id, wallet, kind, amount, priority, effective_us, expires_us, created_us, active, \
         remaining) VALUES (?1, ?2, 'refund', ?3, 0, ?4, NULL, ?4, 1, ?3)";
    let id = Uuid::now_v7().to_string();
    let seq = tx.conn.prepare_cached(sql)?.insert((&id, paid.wallet, paid.amount, tx.now_us))?;
    audit::promise(tx.conn, tx.now_us, seq)?;
    Ok(seq)
}

fn repay(tx: &mut Tx<'_>, wallet: i64, seq: i64) -> Result<()> {
    tx.cache.purses.remove(&wallet);
    let mut purse = tx.take_purse(wallet)?;
    if let Some(event) = purse.repay(seq, tx.now_us) {
        tx.write_event(wallet, &purse, &event, None)?;
    }
    tx.save_purse(wallet, purse)
}

/// What an entry took back.
fn reversed(tx: &Tx<'_>, entry: &str) -> Result<Reversed> {
    let sql = "SELECT x.entry, coalesce(r.id, c.id), x.amount, x.expired, coalesce(r.wallet, c.wallet), \
         (SELECT sum(y.amount) FROM reversal y WHERE y.request = x.request OR y.corrected = x.corrected) \
         FROM reversal x LEFT JOIN request_log r ON r.seq = x.request \
         LEFT JOIN allowance c ON c.seq = x.corrected WHERE x.entry = CAST(?1 AS INTEGER)";
    let (wallet, found) = tx.conn.prepare_cached(sql)?.query_row([entry], |row| {
        let found = (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(5)?);
        Ok((row.get::<_, i64>(4)?, found))
    })?;
    let (entry, of, amount, expired, reversed) = found;
    Ok(Reversed {
        entry,
        of,
        amount: Credits::from_micro(amount),
        expired: Credits::from_micro(expired),
        reversed: Credits::from_micro(reversed),
        wallet: query::wallet_view(tx.conn, wallet, tx.now_us)?,
    })
}
