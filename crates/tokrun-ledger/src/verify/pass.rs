//! One pass over a range of entries, with their postings and the log beside them: whatever can be said of one entry.
//!
//! An entry has the hash of the one before, so ranges are checked one beside the other, each beginning with the hash that
//! the last entry before it has. The log is in the order of the entries that it belongs to, so that both are read once,
//! in their order, and nothing is looked up.

use foldhash::{HashMap, HashMapExt};
use rusqlite::fallible_streaming_iterator::FallibleStreamingIterator;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, Row, Rows};

use crate::chain::{self, Encoder, Entry, GENESIS, Hash, LOGGED, LOGGED_COLUMNS, Line};
use crate::{Credits, LatencyHistogram, Price, Result, audit, record};

use super::Problems;
use super::file::{Bag, Key, Secret};
use super::rules::{self, Sums};

/// Where in a row of [`LOGGED`] its parts are.
const REQUEST_ID: usize = 0;
const WALLET: usize = 1;
const PROMPT_PRICE: usize = 6;
const CACHED_PRICE: usize = 7;
const OUTPUT_PRICE: usize = 8;
const PROMPT_TOKENS: usize = 9;
const CACHED_TOKENS: usize = 10;
const OUTPUT_TOKENS: usize = 11;
const REASONING_TOKENS: usize = 12;
const DEBITED: usize = 13;
const ITL: usize = 18;
const ENDED: usize = 22;
const REASONING_PRICE: usize = 24;

/// With the entry and the number of the row before them.
const COLUMNS: usize = 2 + LOGGED_COLUMNS;

/// What the numbers in postings mean.
pub(super) struct Names {
    accounts: HashMap<i64, Account>,
    grants: HashMap<i64, Grant>,
}

struct Account {
    id: String,
    is_wallet: bool,
}

struct Grant {
    id: String,
    wallet: i64,
}

impl Names {
    pub(super) fn load(conn: &Connection) -> Result<Names> {
        let sql = "SELECT a.seq, a.id, w.seq IS NOT NULL FROM account a LEFT JOIN wallet w ON w.seq = a.seq";
        let mut accounts = HashMap::new();
        rules::each(conn, sql, |row| {
            accounts.insert(row.get(0)?, Account { id: row.get(1)?, is_wallet: row.get(2)? });
            Ok(())
        })?;
        let mut grants = HashMap::new();
        rules::each(conn, "SELECT seq, id, wallet FROM allowance", |row| {
            grants.insert(row.get(0)?, Grant { id: row.get(1)?, wallet: row.get(2)? });
            Ok(())
        })?;
        Ok(Names { accounts, grants })
    }
}

/// Entries from `first` on, before `end`, and the rows of the log that belong to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) first: i64,
    pub(super) end: i64,
    pub(super) first_logged: i64,
    pub(super) end_logged: i64,
}

/// All there is, in so many ranges of about as many entries.
pub(super) fn ranges(conn: &Connection, count: i64) -> Result<Vec<Range>> {
    let ends = |table: &str, key: &str| -> Result<(i64, i64)> {
        // Each by itself comes from the end of a tree; both at once would take a look at every row.
        let sql = format!(
            "SELECT coalesce((SELECT min({key}) FROM {table}), 0), coalesce((SELECT max({key}) FROM {table}), 0)"
        );
        Ok(conn.query_row(&sql, [], |row| Ok((row.get(0)?, row.get(1)?)))?)
    };
    let ((first, last), (_, last_logged)) = (ends("entry", "id")?, ends("request_log", "seq")?);
    let width = (i128::from(last) - i128::from(first) + 1) / i128::from(count);
    let mut cuts = vec![(i64::MIN, i64::MIN)];
    for number in 1..count {
        let entry = i64::try_from(i128::from(first) + width * i128::from(number)).unwrap_or(last);
        cuts.push((entry, first_logged_of(conn, entry, last_logged)?));
    }
    cuts.push((last.saturating_add(1), last_logged.saturating_add(1)));
    let range = |pair: &[(i64, i64)]| Range {
        first: pair[0].0,
        end: pair[1].0,
        first_logged: pair[0].1,
        end_logged: pair[1].1,
    };
    Ok(cuts.windows(2).map(range).collect())
}

/// The first row of the log that belongs to this entry or to a later one. Where the log is not in order, it is any row, and
/// the pass will see that.
fn first_logged_of(conn: &Connection, entry: i64, last_logged: i64) -> Result<i64> {
    let sql = "SELECT seq, entry FROM request_log WHERE seq >= ?1 AND entry IS NOT NULL ORDER BY seq LIMIT 1";
    let mut statement = conn.prepare(sql)?;
    let (mut low, mut high) = (0, last_logged.saturating_add(1));
    while low < high {
        let middle = low + (high - low) / 2;
        let found = statement.query_row([middle], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)));
        match found.optional()? {
            Some((seq, of)) if of < entry => low = seq + 1,
            _ => high = middle,
        }
    }
    Ok(low)
}

/// What is wrong, by the rule that it breaks.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) chain: Problems,
    pub(super) postings: Problems,
    pub(super) terms: Problems,
    pub(super) unlogged: Problems,
    pub(super) log: Problems,
}

/// What a pass over a range came to.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) entries: i64,
    /// Rows of the log.
    pub(super) requests: u64,
    /// The last entry up to the end of the range, and its hash.
    pub(super) last: i64,
    pub(super) hash: Hash,
    pub(super) sums: HashMap<i64, Sums>,
    /// What the indexes ought to have, in their order.
    pub(super) indexed: [Bag; 4],
    pub(super) found: Found,
}

/// Checks a range.
pub(super) fn run(conn: &Connection, names: &Names, range: Range, secret: &Secret) -> Result<Outcome> {
    let before = "SELECT id, hash FROM entry WHERE id < ?1 ORDER BY id DESC LIMIT 1";
    let before = conn.query_row(before, [range.first], |row| Ok((row.get(0)?, row.get(1)?))).optional();
    // One whose hash cannot be read is reported by the range that it is in.
    let (last, hash) = before.unwrap_or(None).unwrap_or((0, GENESIS));
    let mut pass = Pass {
        conn,
        names,
        secret,
        encoder: Encoder::default(),
        lines: Vec::new(),
        moved: Vec::new(),
        outcome: Outcome { last, hash, ..Outcome::default() },
    };
    let entries = format!("SELECT {} FROM entry WHERE id >= ?1 AND id < ?2 ORDER BY id", chain::ENTRY_COLUMNS);
    let postings = "SELECT entry, line, account, allowance, amount FROM posting WHERE entry >= ?1 AND entry < ?2 \
         ORDER BY entry, line";
    let logged =
        format!("SELECT r.entry, r.seq, {LOGGED} FROM request_log r WHERE r.seq >= ?1 AND r.seq < ?2 ORDER BY r.seq");
    let (mut entries, mut postings, mut logged) =
        (conn.prepare(&entries)?, conn.prepare(postings)?, conn.prepare(&logged)?);
    let mut entries = entries.query([range.first, range.end])?;
    let mut postings = postings.query([range.first, range.end])?;
    let mut logged = logged.query([range.first_logged, range.end_logged])?;
    postings.advance()?;
    logged.advance()?;
    while let Some(row) = entries.next()? {
        let id = row.get(0)?;
        pass.read_postings(&mut postings, id)?;
        match Entry::from_row(row) {
            Ok(entry) => pass.check_entry(&entry, &mut logged)?,
            Err(error) => pass.outcome.found.chain.add(Some(id), error.to_string()),
        }
        pass.outcome.last = id;
        pass.outcome.entries += 1;
    }
    pass.read_postings(&mut postings, range.end)?;
    pass.skip_logged(&mut logged, i64::MAX)?;
    Ok(pass.outcome)
}

struct Pass<'a> {
    conn: &'a Connection,
    names: &'a Names,
    secret: &'a Secret,
    encoder: Encoder,
    /// Of the entry that is checked.
    lines: Vec<Line<&'a str>>,
    /// What it moved of grants.
    moved: Vec<(i64, i64)>,
    outcome: Outcome,
}

impl<'a> Pass<'a> {
    /// Takes the lines of an entry; there should be none before them.
    fn read_postings(&mut self, postings: &mut Rows<'_>, entry: i64) -> Result<()> {
        self.lines.clear();
        self.moved.clear();
        while let Some(row) = postings.get() {
            let of: i64 = row.get(0)?;
            if of > entry {
                break;
            }
            let (line, account, allowance, amount) = (row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?);
            self.outcome.indexed[1].add(self.secret, &Key::Numbers([account, of, line]));
            if amount == 0 {
                self.outcome.found.postings.add(Some(of), "a posting of it moves nothing");
            }
            if of != entry || !self.take_line(account, allowance, amount) {
                let what = "a posting of it belongs to no entry, or to another wallet's grant";
                self.outcome.found.postings.add(Some(of), what);
            }
            postings.advance()?;
        }
        Ok(())
    }

    /// Keeps a line, unless its account is missing. Returns whether it is a wallet's and of one of its grants, or neither.
    fn take_line(&mut self, account: i64, allowance: Option<i64>, amount: i64) -> bool {
        self.moved.extend(allowance.map(|allowance| (allowance, amount)));
        let Some(named) = self.names.accounts.get(&account) else { return false };
        let grant = allowance.and_then(|seq| self.names.grants.get(&seq));
        let id = grant.map(|grant| grant.id.as_str());
        self.lines.push(Line { account: &named.id, allowance: id, amount });
        match grant {
            Some(grant) => named.is_wallet && grant.wallet == account,
            None => !named.is_wallet && allowance.is_none(),
        }
    }

    /// An entry follows from the one before, sums to zero, and is what belongs to it elsewhere.
    fn check_entry(&mut self, entry: &Entry<'_>, logged: &mut Rows<'_>) -> Result<()> {
        let (id, chain) = (entry.id, &mut self.outcome.found.chain);
        let (before, hash_before) = (self.outcome.last, self.outcome.hash);
        if id != before + 1 {
            chain.add(Some(id), format!("it follows entry {before}: entries between them are missing"));
        }
        if entry.prev_hash != hash_before {
            chain.add(Some(id), "it does not continue the chain: its previous hash is another");
        }
        if entry.digest(&self.lines, &mut self.encoder) != entry.hash {
            chain.add(Some(id), "it was changed: its hash is another");
        }
        self.outcome.hash = entry.hash;
        let sum: i128 = self.lines.iter().map(|line| i128::from(line.amount)).sum();
        // Free tokens are settled without any.
        let is_record = record::is_kind(entry.kind);
        let may_be_empty = || entry.kind == "settle" || is_record || audit::KINDS.contains(&entry.kind);
        if sum != 0 || self.lines.is_empty() && !may_be_empty() {
            let count = self.lines.len();
            chain.add(Some(id), format!("its {count} postings sum to {sum} micro-credits, not to zero"));
        }
        self.outcome.indexed[0].add(self.secret, &Key::Text(entry.idempotency_key.as_bytes(), id));
        self.add_sums(entry.kind);
        match entry.kind {
            "settle" => self.check_settlement(entry, logged)?,
            "starter" | "grant" | "rollover" | "transfer" => {
                rules::check_terms(self.conn, id, &mut self.outcome.found.terms)?;
            }
            _ if is_record => record::check_entry(self.conn, id, &mut self.outcome.found.terms)?,
            _ => {}
        }
        Ok(())
    }

    fn add_sums(&mut self, kind: &str) {
        let is_reversal = matches!(kind, "refund" | "correct");
        for &(allowance, amount) in &self.moved {
            let (sums, given) = (self.outcome.sums.entry(allowance).or_default(), i128::from(amount.max(0)));
            sums.net += i128::from(amount);
            sums.given += given;
            sums.returned += if is_reversal { given } else { 0 };
        }
    }

    /// A settlement has one row in the log, and its key.
    fn check_settlement(&mut self, entry: &Entry<'_>, logged: &mut Rows<'_>) -> Result<()> {
        let settles = entry.idempotency_key.strip_prefix("settle:");
        if settles.is_none() || settles != entry.request_id {
            self.outcome.found.chain.add(Some(entry.id), "its idempotency key is not that of its request");
        }
        self.skip_logged(logged, entry.id)?;
        let mut count = 0;
        while let Some(row) = logged.get()
            && row.get::<_, Option<i64>>(0)? == Some(entry.id)
        {
            self.check_logged(row, Some(entry))?;
            logged.advance()?;
            count += 1;
        }
        if count != 1 {
            let what = "it settles a request that has not exactly one row in the log";
            self.outcome.found.unlogged.add(Some(entry.id), what);
        }
        Ok(())
    }

    /// Takes the rows of the log before those of an entry: of requests without tokens, which have no entry.
    fn skip_logged(&mut self, logged: &mut Rows<'_>, entry: i64) -> Result<()> {
        while let Some(row) = logged.get()
            && row.get::<_, Option<i64>>(0)?.is_none_or(|of| of < entry)
        {
            self.check_logged(row, None)?;
            logged.advance()?;
        }
        Ok(())
    }

    /// A row of the log agrees with itself, with its price and with its entry.
    fn check_logged(&mut self, row: &Row<'_>, entry: Option<&Entry<'_>>) -> Result<()> {
        let values: [ValueRef<'_>; COLUMNS] = chain::values(row)?;
        let row = &values[2..];
        let (of, seq) = (integer_or_null(values[0])?, integer(values[1])?);
        let id = row[REQUEST_ID].as_str().map_err(rusqlite::Error::from)?;
        let log = &mut self.outcome.found.log;
        let (debited, cost) = (integer(row[DEBITED])?, cost(row)?);
        if cost != Some(Credits::from_micro(debited)) {
            log.add(of, format!("the tokens of request {id} do not cost what was debited"));
        }
        if !is_countable(row)? {
            log.add(of, format!("the tokens of request {id} cannot be counted so"));
        }
        if !LatencyHistogram::is_readable(row[ITL].as_blob().unwrap_or_default()) {
            log.add(of, format!("the latencies of request {id} are unreadable"));
        }
        let wallet = self.names.accounts.get(&integer(row[WALLET])?).filter(|account| account.is_wallet);
        let agrees = match entry {
            Some(entry) => {
                let paid: i128 = self.moved.iter().map(|&(_, amount)| -i128::from(amount)).sum();
                entry.request_id == Some(id) && paid == i128::from(debited)
            }
            None => {
                let tokens = [PROMPT_TOKENS, CACHED_TOKENS, OUTPUT_TOKENS, REASONING_TOKENS, DEBITED];
                of.is_none() && tokens.into_iter().all(|column| row[column] == ValueRef::Integer(0))
            }
        };
        if !agrees || wallet.is_none() {
            log.add(of, format!("the log of request {id} does not agree with its entry"));
        }
        if let (Some(entry), Some(wallet)) = (entry, wallet)
            && entry.subject_digest != Some(&chain::logged_of(row, &wallet.id, &mut self.encoder)[..])
        {
            log.add(of, "the log of its request was changed");
        }
        self.outcome.requests += 1;
        self.outcome.indexed[2].add(self.secret, &Key::Text(id.as_bytes(), seq));
        self.outcome.indexed[3].add(self.secret, &Key::Numbers([integer(row[ENDED])?, seq, 0]));
        Ok(())
    }
}

/// Whether nothing in a row of the log is negative, or more than what it is a part of.
fn is_countable(row: &[ValueRef<'_>]) -> rusqlite::Result<bool> {
    let parts = [(CACHED_TOKENS, PROMPT_TOKENS), (REASONING_TOKENS, OUTPUT_TOKENS)];
    for (part, whole) in parts {
        if !(0..=integer(row[whole])?).contains(&integer(row[part])?) {
            return Ok(false);
        }
    }
    Ok(integer(row[DEBITED])? >= 0)
}

/// What a row of the log says that it cost.
fn cost(row: &[ValueRef<'_>]) -> rusqlite::Result<Option<Credits>> {
    let prices = [integer(row[PROMPT_PRICE])?, integer(row[CACHED_PRICE])?, integer(row[OUTPUT_PRICE])?];
    let price = Price::from_micro(prices, integer_or_null(row[REASONING_PRICE])?);
    let tokens = |column: usize| integer(row[column]).map(|tokens| u64::try_from(tokens).unwrap_or(u64::MAX));
    let (prompt, cached) = (tokens(PROMPT_TOKENS)?, tokens(CACHED_TOKENS)?);
    Ok(price.of_request(prompt, cached, tokens(OUTPUT_TOKENS)?, tokens(REASONING_TOKENS)?))
}

fn integer(value: ValueRef<'_>) -> rusqlite::Result<i64> {
    Ok(value.as_i64()?)
}

fn integer_or_null(value: ValueRef<'_>) -> rusqlite::Result<Option<i64>> {
    Ok(value.as_i64_or_null()?)
}
