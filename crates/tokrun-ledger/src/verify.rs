//! The full check: the file, the chain, the sums, and the log against them.

use rusqlite::Connection;
use serde::Serialize;

use crate::chain::{self, AllPostings, Entry, Hash, LOGGED, TERMS};
use crate::reversal::{REVERSALS, REVERSED};
use crate::{Credits, LatencyHistogram, LedgerError, Price, Result, audit, record, store};

/// A file with more wrong than this is not repaired line by line.
const PROBLEMS_MAX: usize = 100;

/// What a full check found.
#[derive(Debug, Clone, Default, Serialize)]
pub struct VerifyReport {
    /// Entries in the chain.
    pub entries: u64,
    /// Wallets.
    pub wallets: u64,
    /// Settled requests.
    pub requests: u64,
    /// Requests that are not settled; those of living processes are no fault.
    pub open_requests: u64,
    /// The hash of the last entry in hexadecimal. Kept elsewhere, it shows later that nothing before it was rewritten.
    pub head: String,
    /// What is wrong, the chain's faults first, in the order of its entries; empty if nothing is.
    pub problems: Vec<Problem>,
    /// The mark that the ledger had.
    #[serde(skip)]
    pub(crate) mark_before: Option<String>,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The entry it shows in, if it is one.
    pub entry: Option<u64>,
    /// What is wrong with it.
    pub what: String,
}

impl VerifyReport {
    /// Whether nothing is wrong.
    pub fn passed(&self) -> bool {
        self.problems.is_empty()
    }

    /// Why the ledger may spend nothing.
    pub(crate) fn mark(&self) -> Option<String> {
        self.problems.first().map(|problem| match problem.entry {
            Some(entry) => format!("entry {entry}: {}", problem.what),
            None => problem.what.clone(),
        })
    }

    pub(crate) fn add(&mut self, entry: Option<i64>, what: impl Into<String>) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(Problem { entry: entry.map(i64::cast_unsigned), what: what.into() });
        }
    }
}

/// Checks one consistent state.
pub(crate) fn verify(conn: &Connection) -> Result<VerifyReport> {
    let mut report = VerifyReport::default();
    let checks = [
        check_chain,
        check_postings,
        check_terms,
        check_promises,
        check_reversals,
        check_grants,
        check_log,
        check_logged,
        check_open_requests,
        record::check,
        check_modes,
        check_file,
        check_schema,
    ];
    for check in checks {
        match check(conn, &mut report) {
            Ok(()) => {}
            Err(LedgerError::Bad { reason } | LedgerError::Corrupt { reason } | LedgerError::DiskFailed { reason }) => {
                report.add(None, reason)
            }
            // What cannot even be read as what it should be.
            Err(LedgerError::Sqlite(error)) => report.add(None, error.to_string()),
            Err(error) => return Err(error),
        }
    }
    let count = |sql: &str| conn.query_row(sql, [], |row| row.get::<_, u64>(0)).unwrap_or(0);
    report.wallets = count("SELECT count(*) FROM wallet");
    report.requests = count("SELECT count(*) FROM request_log");
    report.open_requests = count("SELECT count(*) FROM open_request");
    report.mark_before = conn.query_row("SELECT bad FROM meta WHERE id = 1", [], |row| row.get(0)).unwrap_or(None);
    Ok(report)
}

/// The part of the check that costs little and concerns requests in flight: what they hold and have debited, and the
/// grants that they have it from.
///
/// # Errors
/// [`LedgerError::Bad`], with the first contradiction.
pub(crate) fn require_sound_in_flight(conn: &Connection) -> Result<()> {
    let mut report = VerifyReport::default();
    check_open_requests(conn, &mut report)?;
    check_grants_where(conn, &mut report, "g.seq IN (SELECT allowance FROM in_flight)")?;
    report.mark().map_or(Ok(()), |reason| Err(LedgerError::Bad { reason }))
}

/// Every entry follows from the one before, sums to zero, and the head names the last.
fn check_chain(conn: &Connection, report: &mut VerifyReport) -> Result<()> {
    let head = chain::head(conn)?;
    let mut statement = conn.prepare(&format!("SELECT {} FROM entry ORDER BY id", chain::ENTRY_COLUMNS))?;
    let mut rows = statement.query([])?;
    let mut postings = conn.prepare(chain::ALL_POSTINGS)?;
    let mut postings = AllPostings::new(conn, &mut postings)?;
    let (mut last, mut hash, mut count) = (0_i64, chain::GENESIS, 0_i64);
    while let Some(row) = rows.next()? {
        let id = row.get(0)?;
        let entry = Entry::from_row(row).map_err(LedgerError::from).and_then(|mut entry| {
            entry.postings = postings.of(id)?;
            Ok(entry)
        });
        match entry {
            Ok(entry) => {
                check_entry(&entry, last, &hash, report);
                hash = entry.hash;
            }
            Err(error) => report.add(Some(id), error.to_string()),
        }
        last = id;
        count += 1;
    }
    report.entries = count.cast_unsigned();
    report.head = head.hash.iter().map(|byte| format!("{byte:02x}")).collect();
    if (head.entry, head.count, head.hash) != (last, count, hash) {
        let (named, of) = (head.entry, head.count);
        report.add(
            Some(last),
            format!("the head names entry {named} of {of}, or another hash; {count} entries are there"),
        );
    }
    Ok(())
}

fn check_entry(entry: &Entry, before: i64, hash_before: &Hash, report: &mut VerifyReport) {
    let id = entry.id;
    if id != before + 1 {
        report.add(Some(id), format!("it follows entry {before}: entries between them are missing"));
    }
    if entry.prev_hash != *hash_before {
        report.add(Some(id), "it does not continue the chain: its previous hash is another");
    }
    if entry.digest() != entry.hash {
        report.add(Some(id), "it was changed: its hash is another");
    }
    let sum: i128 = entry.postings.iter().map(|posting| i128::from(posting.amount)).sum();
    // Free tokens are settled without any.
    let may_be_empty =
        entry.kind == "settle" || audit::KINDS.contains(&entry.kind.as_str()) || record::is_kind(&entry.kind);
    if sum != 0 || entry.postings.is_empty() && !may_be_empty {
        report.add(Some(id), format!("its {} postings sum to {sum} micro-credits, not to zero", entry.postings.len()));
    }
    if entry.kind == "settle" && !settles(&entry.idempotency_key, entry.request_id.as_deref()) {
        report.add(Some(id), "its idempotency key is not that of its request");
    }
}

fn settles(key: &str, request: Option<&str>) -> bool {
    key.strip_prefix("settle:").is_some_and(|settled| Some(settled) == request)
}

/// Wallets' postings, and only those, belong to a grant of that wallet; no posting lacks its entry.
fn check_postings(conn: &Connection, report: &mut VerifyReport) -> Result<()> {
    let sql = "SELECT p.entry FROM posting p LEFT JOIN entry e ON e.id = p.entry LEFT JOIN wallet w ON w.seq = p.account \
         LEFT JOIN allowance g ON g.seq = p.allowance WHERE e.id IS NULL OR (w.seq IS NULL) <> (g.seq IS NULL) \
         OR g.wallet <> p.account ORDER BY p.entry";
    each(conn, sql, |row| {
        report.add(row.get(0)?, "a posting of it belongs to no entry, or to another wallet's grant");
        Ok(())
    })
}

/// The terms and the memo of a grant are those of its entry. A memo may have been deleted.
fn check_terms(conn: &Connection, report: &mut VerifyReport) -> Result<()> {
    let sql = format!(
        "SELECT e.id, e.subject_digest, e.memo_digest, m.salt, m.text, {TERMS} FROM entry e \
         JOIN posting p ON p.entry = e.id JOIN allowance g ON g.seq = p.allowance \
         JOIN account a ON a.seq = g.wallet LEFT JOIN memo m ON m.allowance = g.seq \
         WHERE e.kind IN ('starter', 'grant', 'rollover', 'transfer') AND p.amount > 0 ORDER BY e.id"
    );
    each(conn, &sql, |row| {
        let (entry, memo): (_, Option<Vec<u8>>) = (row.get(0)?, row.get(2)?);
        if !is_digest(row, 1, chain::terms_of(row, 5)?)? {
            report.add(entry, "the terms of its grant were changed");
        }
        if let (Some(salt), Some(text)) = (row.get::<_, Option<Vec<u8>>>(3)?, row.get::<_, Option<String>>(4)?)
            && memo.is_none_or(|memo| memo != chain::salted(&salt, &text))
        {
            report.add(entry, "the memo of its grant was changed");
        }
        Ok(())
    })
}

/// What was promised before its time, or outside its own entry, is what a grant is.
fn check_promises(conn: &Connection, report: &mut VerifyReport) -> Result<()> {
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
fn check_reversals(conn: &Connection, report: &mut VerifyReport) -> Result<()> {
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

/// Per grant, and so per wallet: entries - in flight = what remains.
fn check_grants(conn: &Connection, report: &mut VerifyReport) -> Result<()> {
    check_grants_where(conn, report, "TRUE")
}

fn check_grants_where(conn: &Connection, report: &mut VerifyReport, condition: &str) -> Result<()> {
    let sql = format!(
        "WITH checked AS (SELECT * FROM allowance g WHERE {condition}), \
         posted AS (SELECT allowance, sum(amount) AS net, sum(max(amount, 0)) AS given FROM posting \
         WHERE account IN (SELECT wallet FROM checked) AND allowance IS NOT NULL GROUP BY allowance), \
         returned AS (SELECT p.allowance, sum(p.amount) AS amount FROM reversal x JOIN posting p ON p.entry = x.entry \
         WHERE p.allowance IS NOT NULL AND p.amount > 0 GROUP BY p.allowance), \
         flying AS (SELECT allowance, sum(held + debited) AS amount FROM in_flight GROUP BY allowance) \
         SELECT g.id, g.amount, g.active, g.remaining, coalesce(p.net, 0), coalesce(p.given, 0) - iif(g.kind = 'refund', 0, coalesce(r.amount, 0)), coalesce(f.amount, 0), \
         g.kind = 'overdraft', g.kind = 'refund' \
         FROM checked g LEFT JOIN posted p ON p.allowance = g.seq LEFT JOIN flying f ON f.allowance = g.seq \
         LEFT JOIN returned r ON r.allowance = g.seq \
         ORDER BY g.seq"
    );
    each(conn, &sql, |row| {
        let (id, amount, active): (String, i64, bool) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let (remaining, net, given, flying): (i64, i64, i64, i64) =
            (row.get(3)?, row.get(4)?, row.get(5)?, row.get(6)?);
        // Of an overdraft, entries say the used part.
        let is_overdraft = row.get(7)?;
        let remaining = if is_overdraft && active { remaining - amount } else { remaining };
        // A grant that a refund made may be refunded to again.
        let is_given = given == if active { amount } else { 0 } || row.get(8)? && given > amount;
        if !is_overdraft && !is_given {
            report.add(None, format!("grant {id} is of {amount} micro-credits, its entries say {given}"));
        }
        if i128::from(net) - i128::from(flying) != i128::from(remaining) {
            let what =
                format!("grant {id} has {remaining} micro-credits left; its entries say {net}, {flying} in flight");
            report.add(None, what);
        }
        Ok(())
    })
}

/// Every settled request has one row in the log, which agrees with its entry and its price.
fn check_log(conn: &Connection, report: &mut VerifyReport) -> Result<()> {
    let sql = "SELECT e.id FROM entry e LEFT JOIN request_log r ON r.entry = e.id WHERE e.kind = 'settle' \
         GROUP BY e.id HAVING count(r.seq) <> 1 ORDER BY e.id";
    each(conn, sql, |row| {
        report.add(row.get(0)?, "it settles a request that has not exactly one row in the log");
        Ok(())
    })?;
    let sql = "WITH spent AS (SELECT entry, -sum(amount) AS amount FROM posting \
         WHERE allowance IS NOT NULL GROUP BY entry) \
         SELECT r.entry, r.id, r.debited, r.prompt_micro, r.cached_micro, r.output_micro, r.prompt_tokens, \
         r.cached_tokens, r.output_tokens, r.itl, EXISTS (SELECT 1 FROM open_request o WHERE o.id = r.id), \
         CASE WHEN r.entry IS NULL \
         THEN (r.debited, r.prompt_tokens, r.cached_tokens, r.output_tokens, r.reasoning_tokens) IS (0, 0, 0, 0, 0) ELSE e.kind IS 'settle' AND e.request_id IS r.id \
         AND coalesce(s.amount, 0) IS r.debited END \
         FROM request_log r LEFT JOIN entry e ON e.id = r.entry LEFT JOIN spent s ON s.entry = r.entry ORDER BY r.seq";
    each(conn, sql, |row| {
        let (entry, id): (Option<i64>, String) = (row.get(0)?, row.get(1)?);
        let cost = price(row, 3)?.of_request(row.get(6)?, row.get(7)?, row.get(8)?);
        if cost != Some(Credits::from_micro(row.get(2)?)) {
            report.add(entry, format!("the tokens of request {id} do not cost what was debited"));
        }
        if LatencyHistogram::from_bytes(row.get_ref(9)?.as_blob().unwrap_or_default()).is_none() {
            report.add(entry, format!("the latencies of request {id} are unreadable"));
        }
        if row.get(10)? {
            report.add(entry, format!("request {id} is settled and still open"));
        }
        if !row.get::<_, bool>(11)? {
            report.add(entry, format!("the log of request {id} does not agree with its entry"));
        }
        Ok(())
    })
}

/// The row of a settled request is the one that its entry was written for.
fn check_logged(conn: &Connection, report: &mut VerifyReport) -> Result<()> {
    let sql = format!(
        "SELECT e.id, e.subject_digest, {LOGGED} FROM entry e JOIN request_log r ON r.entry = e.id \
         JOIN account a ON a.seq = r.wallet WHERE e.kind = 'settle' ORDER BY e.id"
    );
    each(conn, &sql, |row| {
        if !is_digest(row, 1, chain::logged_of(row, 2)?)? {
            report.add(row.get(0)?, "the log of its request was changed");
        }
        Ok(())
    })
}

fn is_digest(row: &rusqlite::Row<'_>, column: usize, digest: Hash) -> Result<bool> {
    Ok(row.get::<_, Option<Vec<u8>>>(column)?.is_some_and(|stored| stored == digest))
}

/// The ledger has its modes, once.
fn check_modes(conn: &Connection, report: &mut VerifyReport) -> Result<()> {
    let rows: i64 = conn.query_row("SELECT count(*) FROM meta", [], |row| row.get(0))?;
    if rows != 1 {
        report.add(None, format!("the table meta has {rows} rows, not one"));
    }
    Ok(())
}

/// What is in flight follows from the price and the progress.
fn check_open_requests(conn: &Connection, report: &mut VerifyReport) -> Result<()> {
    // Of a wallet's own grants, or of one's that it stands under.
    let sql = "WITH RECURSIVE above (wallet, upper) AS (SELECT seq, seq FROM wallet UNION \
         SELECT above.wallet, w.parent FROM above JOIN wallet w ON w.seq = above.upper WHERE w.parent IS NOT NULL) \
         SELECT o.id, coalesce(sum(f.held), 0), coalesce(sum(f.debited), 0), o.prompt_micro, o.cached_micro, \
         o.output_micro, o.prompt_tokens, p.running, p.cached_tokens, p.output_tokens, \
         total((o.wallet, g.wallet) NOT IN above) > 0 \
         FROM open_request o LEFT JOIN progress p ON p.request = o.seq LEFT JOIN in_flight f ON f.request = o.seq \
         LEFT JOIN allowance g ON g.seq = f.allowance GROUP BY o.seq ORDER BY o.seq";
    each(conn, sql, |row| {
        let id: String = row.get(0)?;
        let (held, debited): (i64, i64) = (row.get(1)?, row.get(2)?);
        let (price, prompt_tokens) = (price(row, 3)?, row.get(6)?);
        let expected = match row.get(7)? {
            Some(true) => price.of_request(prompt_tokens, row.get(8)?, row.get(9)?).map(|cost| (0, cost.micro())),
            Some(false) => price.of_request(prompt_tokens, 0, 1).map(|cost| (cost.micro(), 0)),
            None => None,
        };
        if expected != Some((held, debited)) || row.get(10)? {
            report
                .add(None, format!("what the open request {id} holds and has debited does not follow from its tokens"));
        }
        Ok(())
    })
}

/// The pages, indexes, constraints and references of the file.
fn check_file(conn: &Connection, report: &mut VerifyReport) -> Result<()> {
    each(conn, "PRAGMA integrity_check", |row| {
        let line: String = row.get(0)?;
        if line != "ok" {
            report.add(None, line);
        }
        Ok(())
    })?;
    each(conn, "PRAGMA foreign_key_check", |row| {
        let (table, parent): (String, String) = (row.get(0)?, row.get(2)?);
        report.add(None, format!("a row of {table} refers to a row of {parent} that is missing"));
        Ok(())
    })
}

/// The tables and triggers are those that this version creates: none dropped, none changed.
fn check_schema(conn: &Connection, report: &mut VerifyReport) -> Result<()> {
    if schema(conn)? != schema(&store::pristine()?)? {
        report.add(None, "a table, index or trigger was changed, added or dropped");
    }
    Ok(())
}

fn schema(conn: &Connection) -> Result<Vec<(String, String, Option<String>)>> {
    let sql = "SELECT type, name, sql FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%' ORDER BY type, name";
    let mut statement = conn.prepare(sql)?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// Three columns from `first` on.
fn price(row: &rusqlite::Row<'_>, first: usize) -> rusqlite::Result<Price> {
    Ok(Price {
        prompt: Credits::from_micro(row.get(first)?),
        cached_prompt: Credits::from_micro(row.get(first + 1)?),
        output: Credits::from_micro(row.get(first + 2)?),
    })
}

fn each(conn: &Connection, sql: &str, mut visit: impl FnMut(&rusqlite::Row<'_>) -> Result<()>) -> Result<()> {
    let mut statement = conn.prepare(sql)?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        visit(row)?;
    }
    Ok(())
}
