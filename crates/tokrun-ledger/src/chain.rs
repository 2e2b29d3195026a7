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

use std::ops::Range;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, Row};
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

/// An entry as it is stored. It borrows, because a check looks at millions of them.
pub(crate) struct Entry<'a> {
    pub(crate) id: i64,
    pub(crate) kind: &'a str,
    pub(crate) idempotency_key: &'a str,
    pub(crate) created_us: i64,
    pub(crate) effective_us: i64,
    pub(crate) request_id: Option<&'a str>,
    pub(crate) memo_digest: Option<&'a [u8]>,
    pub(crate) subject_digest: Option<&'a [u8]>,
    pub(crate) prev_hash: Hash,
    pub(crate) hash: Hash,
}

/// One line of an entry, ids spelled out.
pub(crate) struct Line<S> {
    pub(crate) account: S,
    pub(crate) allowance: Option<S>,
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

/// A row `r` of the log in the order in which it is hashed, the wallet by its id.
pub(crate) const LOGGED: &str = "r.id, r.wallet, r.project, r.tags, r.model, r.device, r.prompt_micro, r.cached_micro, \
     r.output_micro, r.prompt_tokens, r.cached_tokens, r.output_tokens, r.reasoning_tokens, r.debited, r.queue_us, \
     r.ttft_us, r.decode_us, r.total_us, r.itl, r.energy_uj, r.finish_reason, r.started_us, r.ended_us, r.access_key, \
     r.reasoning_micro, r.value_nano, r.currency";

/// How many they are, and which is the wallet.
pub(crate) const LOGGED_COLUMNS: usize = 27;
const LOGGED_WALLET: usize = 1;

/// Those of the first version; NULL in a later one was not hashed.
const LOGGED_FIRST: usize = 23;

/// An entry's lines, ids spelled out.
const POSTINGS: &str = "SELECT a.id, g.id, p.amount FROM posting p \
     JOIN account a ON a.seq = p.account LEFT JOIN allowance g ON g.seq = p.allowance \
     WHERE p.entry = ?1 ORDER BY p.line";

/// Writes an entry behind the head. Returns its id.
pub(crate) fn append(conn: &Connection, draft: &Draft<'_>) -> Result<i64> {
    debug_assert_eq!(draft.postings.iter().map(|&(_, _, amount)| i128::from(amount)).sum::<i128>(), 0);
    let head = head(conn)?;
    let mut lines = Vec::with_capacity(draft.postings.len());
    for &(account, allowance, amount) in draft.postings {
        let account = id_of(conn, "SELECT id FROM account WHERE seq = ?1", account)?;
        let allowance = allowance.map(|grant| id_of(conn, "SELECT id FROM allowance WHERE seq = ?1", grant));
        lines.push(Line { account, allowance: allowance.transpose()?, amount });
    }
    let mut entry = Entry {
        id: head.entry + 1,
        kind: draft.kind,
        idempotency_key: draft.idempotency_key,
        created_us: draft.created_us,
        effective_us: draft.effective_us,
        request_id: draft.request_id,
        memo_digest: draft.memo_digest.as_ref().map(Hash::as_slice),
        subject_digest: draft.subject_digest.as_ref().map(Hash::as_slice),
        prev_hash: head.hash,
        hash: GENESIS,
    };
    entry.hash = entry.digest(&lines, &mut Encoder::default());
    insert(conn, &entry, draft.postings)?;
    conn.prepare_cached("UPDATE head SET entry = ?1, count = ?2, hash = ?3 WHERE id = 1")?.execute((
        entry.id,
        head.count + 1,
        entry.hash,
    ))?;
    Ok(entry.id)
}

/// The end of the chain; an error if its row is gone.
pub(crate) fn head(conn: &Connection) -> Result<Head> {
    conn.prepare_cached("SELECT entry, count, hash FROM head WHERE id = 1")?
        .query_row([], |row| Ok(Head { entry: row.get(0)?, count: row.get(1)?, hash: row.get(2)? }))
        .optional()?
        .ok_or_else(|| LedgerError::Bad { reason: "the head of the chain is missing".into() })
}

/// The hash that an entry has, and the one it should have.
pub(crate) fn hashes(conn: &Connection, id: i64) -> Result<(Hash, Hash)> {
    let mut statement = conn.prepare_cached(POSTINGS)?;
    let lines = statement
        .query_map([id], |row| Ok(Line { account: row.get(0)?, allowance: row.get(1)?, amount: row.get(2)? }))?;
    let lines: Vec<Line<String>> = lines.collect::<rusqlite::Result<_>>()?;
    let sql = format!("SELECT {ENTRY_COLUMNS} FROM entry WHERE id = ?1");
    Ok(conn.query_row(&sql, [id], |row| {
        let entry = Entry::from_row(row)?;
        Ok((entry.hash, entry.digest(&lines, &mut Encoder::default())))
    })?)
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
    let sql = format!("SELECT {LOGGED} FROM request_log r WHERE r.seq = ?1");
    conn.prepare_cached(&sql)?.query_row([logged], |row| {
        let row: [ValueRef<'_>; LOGGED_COLUMNS] = values(row)?;
        let wallet = row[LOGGED_WALLET].as_i64()?;
        let wallet = id_of(conn, "SELECT id FROM account WHERE seq = ?1", wallet);
        Ok(wallet.map(|wallet| logged_of(&row, &wallet, &mut Encoder::default())))
    })?
}

/// Digests [`TERMS`], from the column `first` of a row on.
pub(crate) fn terms_of(row: &Row<'_>, first: usize) -> Result<Hash> {
    let mut encoder = Encoder::default();
    encoder.columns(row, first..first + TERMS_FIRST)?;
    for column in first + TERMS_FIRST..row.as_ref().column_count() {
        let value = row.get_ref(column)?;
        if value != ValueRef::Null {
            encoder.integer((column - first) as i64);
            encoder.value(value);
        }
    }
    Ok(encoder.finish())
}

/// Digests a row of [`LOGGED`], of the wallet with this id.
pub(crate) fn logged_of(row: &[ValueRef<'_>], wallet: &str, encoder: &mut Encoder) -> Hash {
    let (first, later) = row.split_at(LOGGED_FIRST);
    for (place, &value) in first.iter().enumerate() {
        encoder.value(if place == LOGGED_WALLET { ValueRef::Text(wallet.as_bytes()) } else { value });
    }
    for (place, &value) in later.iter().enumerate().filter(|(_, value)| **value != ValueRef::Null) {
        encoder.integer((LOGGED_FIRST + place) as i64);
        encoder.value(value);
    }
    encoder.finish()
}

/// All columns of a row, each read once.
pub(crate) fn values<'a, const COLUMNS: usize>(row: &'a Row<'_>) -> rusqlite::Result<[ValueRef<'a>; COLUMNS]> {
    let mut values = [ValueRef::Null; COLUMNS];
    for (column, value) in values.iter_mut().enumerate() {
        *value = row.get_ref(column)?;
    }
    Ok(values)
}

/// Digests a row from its column `first` on.
pub(crate) fn row_digest(row: &Row<'_>, first: usize) -> Result<Hash> {
    columns_digest(row, first..row.as_ref().column_count())
}

/// Digests some columns of a row.
pub(crate) fn columns_digest(row: &Row<'_>, columns: Range<usize>) -> Result<Hash> {
    let mut encoder = Encoder::default();
    encoder.columns(row, columns)?;
    Ok(encoder.finish())
}

impl<'a> Entry<'a> {
    /// From [`ENTRY_COLUMNS`].
    pub(crate) fn from_row(row: &'a Row<'_>) -> rusqlite::Result<Entry<'a>> {
        Ok(Entry {
            id: row.get(0)?,
            kind: row.get_ref(1)?.as_str()?,
            idempotency_key: row.get_ref(2)?.as_str()?,
            created_us: row.get(3)?,
            effective_us: row.get(4)?,
            request_id: row.get_ref(5)?.as_str_or_null()?,
            memo_digest: row.get_ref(6)?.as_blob_or_null()?,
            subject_digest: row.get_ref(7)?.as_blob_or_null()?,
            prev_hash: row.get(8)?,
            hash: row.get(9)?,
        })
    }

    /// The hash that it should have, with these lines.
    pub(crate) fn digest<S: AsRef<str>>(&self, lines: &[Line<S>], encoder: &mut Encoder) -> Hash {
        encoder.bytes(b"tokrun ledger entry 1");
        encoder.0.extend(self.prev_hash);
        encoder.integer(self.id);
        encoder.bytes(self.kind.as_bytes());
        encoder.bytes(self.idempotency_key.as_bytes());
        encoder.integer(self.created_us);
        encoder.integer(self.effective_us);
        encoder.optional(self.request_id.map(str::as_bytes));
        encoder.optional(self.memo_digest);
        encoder.optional(self.subject_digest);
        encoder.length(lines.len());
        for line in lines {
            encoder.bytes(line.account.as_ref().as_bytes());
            encoder.optional(line.allowance.as_ref().map(|id| id.as_ref().as_bytes()));
            encoder.integer(line.amount);
        }
        encoder.finish()
    }
}

/// The canonical encoding, hashed as a whole: a hash takes long strides more quickly than many small steps.
#[derive(Default)]
pub(crate) struct Encoder(Vec<u8>);

impl Encoder {
    /// The hash of all that was encoded since the last one.
    fn finish(&mut self) -> Hash {
        let hash = Sha256::digest(&self.0).into();
        self.0.clear();
        hash
    }

    fn columns(&mut self, row: &Row<'_>, columns: Range<usize>) -> rusqlite::Result<()> {
        for column in columns {
            self.value(row.get_ref(column)?);
        }
        Ok(())
    }

    fn integer(&mut self, value: i64) {
        self.0.extend(value.to_be_bytes());
    }

    fn length(&mut self, length: usize) {
        self.0.extend((length as u64).to_be_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.length(bytes.len());
        self.0.extend_from_slice(bytes);
    }

    fn value(&mut self, value: ValueRef<'_>) {
        match value {
            ValueRef::Null => self.0.push(0),
            ValueRef::Integer(integer) => {
                self.0.push(1);
                self.integer(integer);
            }
            ValueRef::Real(real) => {
                self.0.push(2);
                self.0.extend(real.to_be_bytes());
            }
            ValueRef::Text(text) => {
                self.0.push(3);
                self.bytes(text);
            }
            ValueRef::Blob(blob) => {
                self.0.push(4);
                self.bytes(blob);
            }
        }
    }

    fn optional(&mut self, bytes: Option<&[u8]>) {
        self.0.push(u8::from(bytes.is_some()));
        if let Some(bytes) = bytes {
            self.bytes(bytes);
        }
    }
}

fn id_of(conn: &Connection, sql: &str, seq: i64) -> Result<String> {
    Ok(conn.prepare_cached(sql)?.query_row([seq], |row| row.get(0))?)
}

fn insert(conn: &Connection, entry: &Entry<'_>, postings: &[(i64, Option<i64>, i64)]) -> Result<()> {
    conn.prepare_cached(
        "INSERT INTO entry (id, kind, idempotency_key, created_us, effective_us, request_id, memo_digest, \
         subject_digest, prev_hash, hash) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
    )?
    .execute((
        entry.id,
        entry.kind,
        entry.idempotency_key,
        entry.created_us,
        entry.effective_us,
        entry.request_id,
        entry.memo_digest,
        entry.subject_digest,
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
