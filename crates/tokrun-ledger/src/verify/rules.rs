//! Rules that concern few rows, or what is not in the chain: each is a query.

use foldhash::HashMap;
use rusqlite::{Connection, Row};

use crate::chain::{self, Hash, TERMS};
use crate::reversal::{REVERSALS, REVERSED};
use crate::{Price, Result};

use super::{Problems, VerifyReport};

/// What the entries say of a grant, in micro-credits.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sums {
    /// All of it.
    pub(super) net: i128,
    /// What came in.
    pub(super) given: i128,
    /// What of that came back by refunds and corrections.
    pub(super) returned: i128,
}

impl Sums {
    pub(super) fn add(&mut self, more: Sums) {
        self.net += more.net;
        self.given += more.given;
        self.returned += more.returned;
    }
}

/// The terms and the memo of the grant that an entry gave are those of the entry. A memo may have been deleted.
pub(super) fn check_terms(conn: &Connection, entry: i64, problems: &mut Problems) -> Result<()> {
    let sql = format!(
        "SELECT e.id, e.subject_digest, e.memo_digest, m.salt, m.text, {TERMS} FROM entry e \
         JOIN posting p ON p.entry = e.id JOIN allowance g ON g.seq = p.allowance \
         JOIN account a ON a.seq = g.wallet LEFT JOIN memo m ON m.allowance = g.seq \
         WHERE e.id = ?1 AND p.amount > 0"
    );
    let mut statement = conn.prepare_cached(&sql)?;
    let mut rows = statement.query([entry])?;
    while let Some(row) = rows.next()? {
        let memo: Option<Vec<u8>> = row.get(2)?;
        if !is_digest(row, 1, chain::terms_of(row, 5)?)? {
            problems.add(Some(entry), "the terms of its grant were changed");
        }
        if let (Some(salt), Some(text)) = (row.get::<_, Option<Vec<u8>>>(3)?, row.get::<_, Option<String>>(4)?)
            && memo.is_none_or(|memo| memo != chain::salted(&salt, &text))
        {
            problems.add(Some(entry), "the memo of its grant was changed");
        }
    }
    Ok(())
}

/// What was promised before its time, or outside its own entry, is what a grant is.
pub(super) fn check_promises(conn: &Connection, report: &mut VerifyReport) -> Result<()> {
    let sql = format!(
        "SELECT e.id, e.subject_digest, {TERMS} FROM entry e LEFT JOIN allowance g ON g.id = substr(e.idempotency_key, 9) \
         LEFT JOIN account a ON a.seq = g.wallet WHERE e.idempotency_key >= 'promise:' AND e.idempotency_key < 'promise;' \
         ORDER BY e.id"
    );
    each(conn, &sql, |row| {
        if !is_digest(row, 1, chain::terms_of(row, 2)?)? {
            report.add(row.get(0)?, "the terms of the grant that it promises were changed");
        }
        Ok(())
    })
}

/// Refunds and corrections are what their entries say, and never more than was taken.
pub(super) fn check_reversals(conn: &Connection, report: &mut VerifyReport) -> Result<()> {
    let sql = format!(
        "SELECT e.id, e.subject_digest, {REVERSED}, m.salt, m.text, e.memo_digest FROM entry e \
         LEFT JOIN reversal x ON x.entry = e.id {REVERSALS} LEFT JOIN entry_memo m ON m.entry = e.id \
         WHERE e.idempotency_key >= 'refund:' AND e.idempotency_key < 'refund;' \
         OR e.idempotency_key >= 'correct:' AND e.idempotency_key < 'correct;' UNION ALL \
         SELECT x.entry, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL FROM reversal x LEFT JOIN entry e \
         ON e.id = x.entry AND e.kind IN ('refund', 'correct') WHERE e.id IS NULL ORDER BY 1"
    );
    each(conn, &sql, |row| {
        if !is_digest(row, 1, chain::columns_digest(row, 2..6)?)? {
            report.add(row.get(0)?, "what it takes back was changed");
        }
        if let (Some(salt), Some(text)) = (row.get::<_, Option<Vec<u8>>>(6)?, row.get::<_, Option<String>>(7)?)
            && !is_digest(row, 8, chain::salted(&salt, &text))?
        {
            report.add(row.get(0)?, "its memo was changed");
        }
        Ok(())
    })?;
    let sql = "SELECT x.entry FROM reversal x LEFT JOIN posting p ON p.entry = x.entry AND p.amount < 0 \
         GROUP BY x.entry HAVING total(p.amount) <> -x.amount UNION \
         SELECT max(x.entry) FROM reversal x JOIN request_log r ON r.seq = x.request \
         GROUP BY x.request HAVING sum(x.amount) > r.debited UNION \
         SELECT max(x.entry) FROM reversal x JOIN allowance g ON g.seq = x.corrected \
         GROUP BY x.corrected HAVING sum(x.amount) > g.amount ORDER BY 1";
    each(conn, sql, |row| {
        report.add(row.get(0)?, "it takes back another amount than it says, or more than was taken");
        Ok(())
    })
}

/// What the entries of the wallets of some grants say of each grant.
pub(super) fn sums_where(conn: &Connection, condition: &str) -> Result<HashMap<i64, Sums>> {
    let sql = format!(
        "WITH checked AS (SELECT wallet FROM allowance g WHERE {condition}) \
         SELECT p.allowance, sum(p.amount), sum(max(p.amount, 0)), sum(iif(x.entry IS NULL, 0, max(p.amount, 0))) \
         FROM posting p LEFT JOIN reversal x ON x.entry = p.entry \
         WHERE p.account IN checked AND p.allowance IS NOT NULL GROUP BY p.allowance"
    );
    let mut statement = conn.prepare(&sql)?;
    let sum = |row: &Row<'_>, column| row.get::<_, i64>(column).map(i128::from);
    let sums = statement.query_map([], |row| {
        Ok((row.get(0)?, Sums { net: sum(row, 1)?, given: sum(row, 2)?, returned: sum(row, 3)? }))
    })?;
    Ok(sums.collect::<rusqlite::Result<_>>()?)
}

/// Per grant, and so per wallet: entries - in flight = what remains.
pub(super) fn check_grants(
    conn: &Connection,
    report: &mut VerifyReport,
    sums: &HashMap<i64, Sums>,
    condition: &str,
) -> Result<()> {
    let sql = format!(
        "WITH flying AS (SELECT allowance, sum(held + debited) AS amount FROM in_flight GROUP BY allowance) \
         SELECT g.seq, g.id, g.amount, g.active, g.remaining, coalesce(f.amount, 0), g.kind = 'overdraft', \
         g.kind = 'refund' FROM allowance g LEFT JOIN flying f ON f.allowance = g.seq WHERE {condition} ORDER BY g.seq"
    );
    each(conn, &sql, |row| {
        let sums = sums.get(&row.get(0)?).copied().unwrap_or_default();
        let (id, amount, active): (String, i64, bool) = (row.get(1)?, row.get(2)?, row.get(3)?);
        let (remaining, flying): (i64, i64) = (row.get(4)?, row.get(5)?);
        let (is_overdraft, is_refund): (bool, bool) = (row.get(6)?, row.get(7)?);
        // Of an overdraft, entries say the used part.
        let remaining = i128::from(remaining) - if is_overdraft && active { i128::from(amount) } else { 0 };
        // A grant that a refund made may be refunded to again.
        let given = sums.given - if is_refund { 0 } else { sums.returned };
        let expected = if active { i128::from(amount) } else { 0 };
        if !is_overdraft && given != expected && !(is_refund && given > expected) {
            report.add(None, format!("grant {id} is of {amount} micro-credits, its entries say {given}"));
        }
        let net = sums.net;
        if net - i128::from(flying) != remaining {
            let what =
                format!("grant {id} has {remaining} micro-credits left; its entries say {net}, {flying} in flight");
            report.add(None, what);
        }
        Ok(())
    })
}

/// No request is settled and still open.
pub(super) fn check_settled(conn: &Connection, report: &mut VerifyReport) -> Result<()> {
    let sql = "SELECT r.entry, r.id FROM open_request o CROSS JOIN request_log r ON r.id = o.id ORDER BY o.seq";
    each(conn, sql, |row| {
        report.add(row.get(0)?, format!("request {} is settled and still open", row.get::<_, String>(1)?));
        Ok(())
    })
}

/// The ledger has its modes, once.
pub(super) fn check_modes(conn: &Connection, report: &mut VerifyReport) -> Result<()> {
    let rows: i64 = conn.query_row("SELECT count(*) FROM meta", [], |row| row.get(0))?;
    if rows != 1 {
        report.add(None, format!("the table meta has {rows} rows, not one"));
    }
    Ok(())
}

/// What is in flight follows from the price and the progress.
pub(super) fn check_open_requests(conn: &Connection, report: &mut VerifyReport) -> Result<()> {
    // Of a wallet's own grants, or of one's that it stands under.
    let sql = "WITH RECURSIVE above (wallet, upper) AS (SELECT seq, seq FROM wallet UNION \
         SELECT above.wallet, w.parent FROM above JOIN wallet w ON w.seq = above.upper WHERE w.parent IS NOT NULL) \
         SELECT o.id, coalesce(sum(f.held), 0), coalesce(sum(f.debited), 0), o.prompt_micro, o.cached_micro, \
         o.output_micro, o.prompt_tokens, p.running, p.cached_tokens, p.output_tokens, \
         total((o.wallet, g.wallet) NOT IN above) > 0, o.reasoning_micro, p.reasoning_tokens \
         FROM open_request o LEFT JOIN progress p ON p.request = o.seq LEFT JOIN in_flight f ON f.request = o.seq \
         LEFT JOIN allowance g ON g.seq = f.allowance GROUP BY o.seq ORDER BY o.seq";
    each(conn, sql, |row| {
        let id: String = row.get(0)?;
        let (held, debited): (i64, i64) = (row.get(1)?, row.get(2)?);
        let (price, prompt_tokens) = (price(row, 3, 11)?, row.get(6)?);
        let expected = match row.get(7)? {
            Some(true) => {
                let cost = price.of_request(prompt_tokens, row.get(8)?, row.get(9)?, row.get(12)?);
                cost.map(|cost| (0, cost.micro()))
            }
            Some(false) => price.to_begin(prompt_tokens).map(|cost| (cost.micro(), 0)),
            None => None,
        };
        if expected != Some((held, debited)) || row.get(10)? {
            report
                .add(None, format!("what the open request {id} holds and has debited does not follow from its tokens"));
        }
        Ok(())
    })
}

/// Whether a column holds this digest.
pub(super) fn is_digest(row: &Row<'_>, column: usize, digest: Hash) -> Result<bool> {
    Ok(row.get_ref(column)?.as_blob_or_null().map_err(rusqlite::Error::from)?.is_some_and(|stored| stored == digest))
}

/// The price in three columns from `first` on, and the one of reasoning tokens.
pub(super) fn price(row: &Row<'_>, first: usize, reasoning: usize) -> rusqlite::Result<Price> {
    Ok(Price::from_micro([row.get(first)?, row.get(first + 1)?, row.get(first + 2)?], row.get(reasoning)?))
}

pub(super) fn each(conn: &Connection, sql: &str, mut visit: impl FnMut(&Row<'_>) -> Result<()>) -> Result<()> {
    let mut statement = conn.prepare(sql)?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        visit(row)?;
    }
    Ok(())
}
