//! Entries: immutable, double entry, chained by hash.
//!
//! An entry's hash is the SHA-256 of this encoding, in which integers are big-endian, a text or blob is its length as
//! `u64` and its bytes, and an optional value is a byte 0, or a byte 1 and the value:
//!
//! ```text
//! "tokrun ledger entry 1"  as text
//! prev_hash                32 bytes; zeros for the first entry
//! id                       i64
//! kind                     text
//! idempotency_key          text
//! created_us, effective_us i64 each
//! request_id               optional text
//! memo_digest              optional blob: SHA-256 of the memo's salt and text
//! subject_digest           optional blob: of a grant's terms, or of a settled request's row in the log
//! number of postings       u64, then for each in the order of its line:
//!   account                text: "issued", "spent", "expired" or the id of a wallet
//!   allowance              optional text: the id of a grant
//!   amount                 i64
//! ```
//!
//! The digest of a row is the SHA-256 of its columns in the order of [`TERMS`] and [`LOGGED`]: each a byte 0 for NULL, a
//! byte 1 and an integer, a byte 2 and the eight bytes of a float, a byte 3 and a text, or a byte 4 and a blob. Columns
//! that later versions added are hashed where they are not NULL, each behind its place in that order as an i64.
//!
//! The chain shows that nothing before its head was changed by somebody who does not recompute all of it. Against
//! somebody who does, only a head kept elsewhere helps.

use std::collections::HashMap;
use std::sync::Arc;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, Row, Rows, Statement};
use sha2::{Digest, Sha256};

use crate::{LedgerError, Result};

/// A SHA-256.
pub(crate) type Hash = [u8; 32];

/// What precedes the first entry.
pub(crate) const GENESIS: Hash = [0; 32];

/// The accounts that every ledger has.
pub(crate) const ISSUED: i64 = 1;
/// Where debits go.
pub(crate) const SPENT: i64 = 2;
/// Where expired grants go.
pub(crate) const EXPIRED: i64 = 3;

/// An entry to be written.
pub(crate) struct Draft<'a> {
    pub(crate) kind: &'a str,
    pub(crate) idempotency_key: &'a str,
    pub(crate) created_us: i64,
    pub(crate) effective_us: i64,
    pub(crate) request_id: Option<&'a str>,
    pub(crate) memo_digest: Option<Hash>,
    pub(crate) subject_digest: Option<Hash>,
    /// Account, grant and amount of each line; the amounts sum to zero.
    pub(crate) postings: &'a [(i64, Option<i64>, i64)],
}

/// An entry as it is stored.
pub(crate) struct Entry {
    pub(crate) id: i64,
    pub(crate) kind: String,
    pub(crate) idempotency_key: String,
    pub(crate) created_us: i64,
    pub(crate) effective_us: i64,
    pub(crate) request_id: Option<String>,
    pub(crate) memo_digest: Option<Vec<u8>>,
    pub(crate) subject_digest: Option<Vec<u8>>,
    pub(crate) prev_hash: Hash,
    pub(crate) hash: Hash,
    pub(crate) postings: Vec<Posting>,
}

/// One line of an entry.
pub(crate) struct Posting {
    pub(crate) account: Arc<str>,
    pub(crate) allowance: Option<Arc<str>>,
    pub(crate) amount: i64,
}

/// The end of the chain.
pub(crate) struct Head {
    pub(crate) entry: i64,
    pub(crate) count: i64,
    pub(crate) hash: Hash,
}

/// Columns in the order that [`Entry::from_row`] reads.
pub(crate) const ENTRY_COLUMNS: &str =
    "id, kind, idempotency_key, created_us, effective_us, request_id, memo_digest, subject_digest, prev_hash, hash";

/// The terms of a grant `g` to the account `a`, in the order in which they are hashed.
pub(crate) const TERMS: &str = "g.id, a.id, g.kind, g.amount, g.priority, g.effective_us, g.expires_us, g.created_us, \
     g.class, g.scope, g.value_nano, g.currency, g.vesting";

/// Those of the first version; NULL in a later one was not hashed.
const TERMS_FIRST: usize = 8;

/// A row `r` of the log, of the account `a`, in the order in which it is hashed.
pub(crate) const LOGGED: &str = "r.id, a.id, r.project, r.tags, r.model, r.device, r.prompt_micro, r.cached_micro, \
     r.output_micro, r.prompt_tokens, r.cached_tokens, r.output_tokens, r.reasoning_tokens, r.debited, r.queue_us, \
     r.ttft_us, r.decode_us, r.total_us, r.itl, r.energy_uj, r.finish_reason, r.started_us, r.ended_us, r.access_key";

/// Those of the first version; NULL in a later one was not hashed.
const LOGGED_FIRST: usize = 23;

/// An entry's lines, ids spelled out.
pub(crate) const POSTINGS: &str = "SELECT a.id, g.id, p.amount FROM posting p \
     JOIN account a ON a.seq = p.account LEFT JOIN allowance g ON g.seq = p.allowance \
     WHERE p.entry = ?1 ORDER BY p.line";

/// Writes an entry behind the head. Returns its id.
pub(crate) fn append(conn: &Connection, draft: &Draft<'_>) -> Result<i64> {
    debug_assert_eq!(draft.postings.iter().map(|&(_, _, amount)| i128::from(amount)).sum::<i128>(), 0);
    let head = head(conn)?;
    let id = head.entry + 1;
    let mut entry = Entry {
        id,
        kind: draft.kind.to_owned(),
        idempotency_key: draft.idempotency_key.to_owned(),
        created_us: draft.created_us,
        effective_us: draft.effective_us,
        request_id: draft.request_id.map(str::to_owned),
        memo_digest: draft.memo_digest.map(|digest| digest.to_vec()),
        subject_digest: draft.subject_digest.map(|digest| digest.to_vec()),
        prev_hash: head.hash,
        hash: GENESIS,
        postings: Vec::with_capacity(draft.postings.len()),
    };
    for &(account, allowance, amount) in draft.postings {
        entry.postings.push(Posting {
            account: id_of(conn, "SELECT id FROM account WHERE seq = ?1", account)?,
            allowance: allowance
                .map(|grant| id_of(conn, "SELECT id FROM allowance WHERE seq = ?1", grant))
                .transpose()?,
            amount,
        });
    }
    entry.hash = entry.digest();
    insert(conn, &entry, draft.postings)?;
    conn.prepare_cached("UPDATE head SET entry = ?1, count = ?2, hash = ?3 WHERE id = 1")?.execute((
        id,
        head.count + 1,
        entry.hash,
    ))?;
    Ok(id)
}

/// The end of the chain; an error if its row is gone.
pub(crate) fn head(conn: &Connection) -> Result<Head> {
    conn.prepare_cached("SELECT entry, count, hash FROM head WHERE id = 1")?
        .query_row([], |row| Ok(Head { entry: row.get(0)?, count: row.get(1)?, hash: row.get(2)? }))
        .optional()?
        .ok_or_else(|| LedgerError::Bad { reason: "the head of the chain is missing".into() })
}

/// Reads one entry.
pub(crate) fn load(conn: &Connection, id: i64) -> Result<Entry> {
    let sql = format!("SELECT {ENTRY_COLUMNS} FROM entry WHERE id = ?1");
    let mut entry = conn.query_row(&sql, [id], Entry::from_row)?;
    entry.load_postings(conn)?;
    Ok(entry)
}

/// SHA-256 of a salt and a text: what the chain keeps of a memo.
pub(crate) fn salted(salt: &[u8], text: &str) -> Hash {
    Sha256::new().chain_update(salt).chain_update(text).finalize().into()
}

/// What the chain keeps of a grant's terms.
pub(crate) fn terms_digest(conn: &Connection, grant: i64) -> Result<Hash> {
    let sql = format!("SELECT {TERMS} FROM allowance g JOIN account a ON a.seq = g.wallet WHERE g.seq = ?1");
    conn.prepare_cached(&sql)?.query_row([grant], |row| Ok(terms_of(row, 0)))?
}

/// What the chain keeps of a settled request's row in the log.
pub(crate) fn log_digest(conn: &Connection, logged: i64) -> Result<Hash> {
    let sql = format!("SELECT {LOGGED} FROM request_log r JOIN account a ON a.seq = r.wallet WHERE r.seq = ?1");
    conn.prepare_cached(&sql)?.query_row([logged], |row| Ok(logged_of(row, 0)))?
}

/// Digests [`TERMS`], from the column `first` of a row on.
pub(crate) fn terms_of(row: &Row<'_>, first: usize) -> Result<Hash> {
    let mut encoder = Encoder(Sha256::new());
    for column in first..row.as_ref().column_count() {
        let (place, value) = (column - first, row.get_ref(column)?);
        if place >= TERMS_FIRST {
            if value == ValueRef::Null {
                continue;
            }
            encoder.integer(place as i64);
        }
        encoder.value(value);
    }
    Ok(encoder.0.finalize().into())
}

/// Digests a row from its column `first` on.
pub(crate) fn row_digest(row: &Row<'_>, first: usize) -> Result<Hash> {
    columns_digest(row, first..row.as_ref().column_count())
}

/// Digests [`LOGGED`], from the column `first` of a row on.
pub(crate) fn logged_of(row: &Row<'_>, first: usize) -> Result<Hash> {
    let added = first + LOGGED_FIRST..row.as_ref().column_count();
    let mut encoder = Encoder(Sha256::new());
    for column in first..added.start {
        encoder.value(row.get_ref(column)?);
    }
    for column in added {
        let value = row.get_ref(column)?;
        if value != ValueRef::Null {
            encoder.integer((column - first) as i64);
            encoder.value(value);
        }
    }
    Ok(encoder.0.finalize().into())
}

/// Digests some columns of a row.
pub(crate) fn columns_digest(row: &Row<'_>, columns: std::ops::Range<usize>) -> Result<Hash> {
    let mut encoder = Encoder(Sha256::new());
    for column in columns {
        encoder.value(row.get_ref(column)?);
    }
    Ok(encoder.0.finalize().into())
}

impl Entry {
    /// From [`ENTRY_COLUMNS`], without postings.
    pub(crate) fn from_row(row: &Row<'_>) -> rusqlite::Result<Entry> {
        Ok(Entry {
            id: row.get(0)?,
            kind: row.get(1)?,
            idempotency_key: row.get(2)?,
            created_us: row.get(3)?,
            effective_us: row.get(4)?,
            request_id: row.get(5)?,
            memo_digest: row.get(6)?,
            subject_digest: row.get(7)?,
            prev_hash: row.get(8)?,
            hash: row.get(9)?,
            postings: Vec::new(),
        })
    }

    /// Reads the lines.
    pub(crate) fn load_postings(&mut self, conn: &Connection) -> Result<()> {
        let mut statement = conn.prepare_cached(POSTINGS)?;
        let postings = statement.query_map([self.id], |row| {
            Ok(Posting { account: row.get(0)?, allowance: row.get(1)?, amount: row.get(2)? })
        })?;
        self.postings = postings.collect::<rusqlite::Result<_>>()?;
        Ok(())
    }

    /// The hash this entry should have.
    pub(crate) fn digest(&self) -> Hash {
        let mut encoder = Encoder(Sha256::new());
        encoder.bytes(b"tokrun ledger entry 1");
        encoder.0.update(self.prev_hash);
        encoder.integer(self.id);
        encoder.bytes(self.kind.as_bytes());
        encoder.bytes(self.idempotency_key.as_bytes());
        encoder.integer(self.created_us);
        encoder.integer(self.effective_us);
        encoder.optional(self.request_id.as_deref().map(str::as_bytes));
        encoder.optional(self.memo_digest.as_deref());
        encoder.optional(self.subject_digest.as_deref());
        encoder.length(self.postings.len());
        for posting in &self.postings {
            encoder.bytes(posting.account.as_bytes());
            encoder.optional(posting.allowance.as_deref().map(str::as_bytes));
            encoder.integer(posting.amount);
        }
        encoder.0.finalize().into()
    }
}

/// Reads the lines of all entries in their order: many times as quick as looking up those of each.
pub(crate) struct AllPostings<'a> {
    rows: Rows<'a>,
    /// Read, and of an entry that was not asked for yet.
    next: Option<(i64, Posting)>,
    accounts: HashMap<i64, Arc<str>>,
    allowances: HashMap<i64, Arc<str>>,
}

/// For [`AllPostings::new`].
pub(crate) const ALL_POSTINGS: &str = "SELECT entry, account, allowance, amount FROM posting ORDER BY entry, line";

impl<'a> AllPostings<'a> {
    /// Of a statement for [`ALL_POSTINGS`].
    pub(crate) fn new(conn: &Connection, statement: &'a mut Statement<'_>) -> Result<AllPostings<'a>> {
        let ids = |sql: &str| -> Result<HashMap<i64, Arc<str>>> {
            let mut statement = conn.prepare(sql)?;
            let ids = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok(ids.collect::<rusqlite::Result<_>>()?)
        };
        let (accounts, allowances) = (ids("SELECT seq, id FROM account")?, ids("SELECT seq, id FROM allowance")?);
        Ok(AllPostings { rows: statement.query([])?, next: None, accounts, allowances })
    }

    /// The lines of an entry that follows the one asked for before. One whose account is missing is none.
    pub(crate) fn of(&mut self, entry: i64) -> Result<Vec<Posting>> {
        let mut postings = Vec::with_capacity(2);
        loop {
            if self.next.is_none() {
                self.next = self.read()?;
            }
            match self.next.take() {
                Some((of, _)) if of < entry => {}
                Some((of, posting)) if of == entry => postings.push(posting),
                later => {
                    self.next = later;
                    return Ok(postings);
                }
            }
        }
    }

    fn read(&mut self) -> Result<Option<(i64, Posting)>> {
        while let Some(row) = self.rows.next()? {
            let (account, allowance): (i64, Option<i64>) = (row.get(1)?, row.get(2)?);
            if let Some(account) = self.accounts.get(&account) {
                let allowance = allowance.and_then(|allowance| self.allowances.get(&allowance));
                let posting =
                    Posting { account: Arc::clone(account), allowance: allowance.map(Arc::clone), amount: row.get(3)? };
                return Ok(Some((row.get(0)?, posting)));
            }
        }
        Ok(None)
    }
}

/// The canonical encoding, hashed as it is written.
struct Encoder(Sha256);

impl Encoder {
    fn integer(&mut self, value: i64) {
        self.0.update(value.to_be_bytes());
    }

    fn length(&mut self, length: usize) {
        self.0.update((length as u64).to_be_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.length(bytes.len());
        self.0.update(bytes);
    }

    fn value(&mut self, value: ValueRef<'_>) {
        match value {
            ValueRef::Null => self.0.update([0]),
            ValueRef::Integer(integer) => {
                self.0.update([1]);
                self.integer(integer);
            }
            ValueRef::Real(real) => {
                self.0.update([2]);
                self.0.update(real.to_be_bytes());
            }
            ValueRef::Text(text) => {
                self.0.update([3]);
                self.bytes(text);
            }
            ValueRef::Blob(blob) => {
                self.0.update([4]);
                self.bytes(blob);
            }
        }
    }

    fn optional(&mut self, bytes: Option<&[u8]>) {
        self.0.update([u8::from(bytes.is_some())]);
        if let Some(bytes) = bytes {
            self.bytes(bytes);
        }
    }
}

fn id_of(conn: &Connection, sql: &str, seq: i64) -> Result<Arc<str>> {
    Ok(conn.prepare_cached(sql)?.query_row([seq], |row| row.get(0))?)
}

fn insert(conn: &Connection, entry: &Entry, postings: &[(i64, Option<i64>, i64)]) -> Result<()> {
    conn.prepare_cached(
        "INSERT INTO entry (id, kind, idempotency_key, created_us, effective_us, request_id, memo_digest, \
         subject_digest, prev_hash, hash) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
    )?
    .execute((
        entry.id,
        &entry.kind,
        &entry.idempotency_key,
        entry.created_us,
        entry.effective_us,
        &entry.request_id,
        &entry.memo_digest,
        &entry.subject_digest,
        entry.prev_hash,
        entry.hash,
    ))?;
    let mut line = conn
        .prepare_cached("INSERT INTO posting (entry, line, account, allowance, amount) VALUES (?1, ?2, ?3, ?4, ?5)")?;
    for (number, &(account, allowance, amount)) in postings.iter().enumerate() {
        line.execute((entry.id, number as i64, account, allowance, amount))?;
    }
    Ok(())
}
