//! Wallets, grants and the modes of a ledger, as the writer changes them.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::calendar::{date_at, midnight_us};
use crate::chain::{self, Hash};
use crate::purse::Grant;
use crate::recurrence::{self, Recurrence};
use crate::text::is_invisible;
use crate::writer::Tx;
use crate::{
    Admission, GrantKind, GrantRequest, GrantTerms, GrantView, LedgerError, Result, Vesting, WalletView, audit,
    closing, query, tree,
};

/// Long enough for any account name or mail address.
const NAME_CHARS_MAX: usize = 128;

/// A note, not a document.
const MEMO_BYTES_MAX: usize = 4096;

/// A wallet, as its row has it.
pub(crate) struct Wallet {
    pub(crate) seq: i64,
    pub(crate) id: String,
}

/// A grant that was checked.
struct NewGrant<'a> {
    kind: GrantKind,
    amount: i64,
    priority: i32,
    effective_us: i64,
    expires_us: Option<i64>,
    memo: Option<&'a str>,
    terms: &'a GrantTerms,
}

/// The wallet that an admission names, created if it may be; and whether it was.
pub(crate) fn wallet_for(tx: &mut Tx<'_>, admission: &Admission) -> Result<(Wallet, bool)> {
    let name = &admission.wallet;
    if let Some(wallet) = find_wallet(tx.conn, name)? {
        return Ok((wallet, false));
    }
    let unknown = || LedgerError::UnknownWallet { name: name.clone() };
    let starter = admission.starter.filter(|_| !tx.cache.meta.service).ok_or_else(unknown)?;
    let wallet = insert_wallet(tx, name)?;
    let grant = NewGrant {
        kind: GrantKind::Starter,
        amount: starter.amount.micro(),
        priority: 0,
        effective_us: tx.now_us,
        expires_us: None,
        memo: None,
        terms: &GrantTerms::default(),
    };
    if grant.amount != 0 {
        insert_grant(tx, &wallet, &Uuid::now_v7().to_string(), None, &grant)?;
        activate(tx, wallet.seq)?;
    }
    Ok((wallet, true))
}

/// Gives an allowance.
pub(crate) fn grant(tx: &mut Tx<'_>, request: &GrantRequest) -> Result<GrantView> {
    tx.check_good()?;
    let wallet = require_wallet(tx.conn, &request.wallet)?;
    let arguments = grant_arguments(request, &wallet, "grant", "");
    let key = request.idempotency_key.as_deref();
    let seq = match earlier(tx.conn, key, &arguments)? {
        Some(id) => seq_of(tx.conn, "SELECT seq FROM allowance WHERE id = ?1", &id)?,
        None => {
            refuse_closed(tx.conn, wallet.seq, &request.wallet)?;
            let grant = NewGrant {
                kind: GrantKind::Grant,
                amount: request.amount.micro(),
                priority: request.priority,
                effective_us: request.effective.map_or(tx.now_us, Timestamp::as_microsecond).max(tx.now_us),
                expires_us: request.expires.map(Timestamp::as_microsecond),
                memo: request.memo.as_deref(),
                terms: &request.terms,
            };
            let id = Uuid::now_v7().to_string();
            let seq = insert_grant(tx, &wallet, &id, None, &grant)?;
            activate(tx, wallet.seq)?;
            remember(tx.conn, key, &arguments, &id)?;
            seq
        }
    };
    query::grant_view(tx.conn, seq, tx.now_us)
}

/// Gives an allowance in parts, with the calendar. Each is a grant of its own that becomes effective in its time.
pub(crate) fn grant_vesting(tx: &mut Tx<'_>, request: &GrantRequest, vesting: Vesting) -> Result<Vec<GrantView>> {
    tx.check_good()?;
    vesting.check()?;
    let wallet = require_wallet(tx.conn, &request.wallet)?;
    let arguments = grant_arguments(request, &wallet, "vesting", &format!("{vesting:?}"));
    let key = request.idempotency_key.as_deref();
    let id = match earlier(tx.conn, key, &arguments)? {
        Some(id) => id,
        None => {
            refuse_closed(tx.conn, wallet.seq, &request.wallet)?;
            let id = Uuid::now_v7().to_string();
            insert_parts(tx, &wallet, &id, request, vesting)?;
            activate(tx, wallet.seq)?;
            remember(tx.conn, key, &arguments, &id)?;
            id
        }
    };
    let mut statement = tx.conn.prepare_cached("SELECT seq FROM allowance WHERE vesting = ?1 ORDER BY seq")?;
    let parts: Vec<i64> = statement.query_map([id], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    parts.into_iter().map(|seq| query::grant_view(tx.conn, seq, tx.now_us)).collect()
}

fn insert_parts(tx: &Tx<'_>, wallet: &Wallet, id: &str, request: &GrantRequest, vesting: Vesting) -> Result<()> {
    if request.amount.micro() <= 0 {
        return Err(LedgerError::InvalidGrant { reason: "the amount must be more than zero" });
    }
    let zone = tree::zone(&tree::path(tx.conn, wallet.seq)?)?;
    let start_us = request.effective.map_or(tx.now_us, Timestamp::as_microsecond).max(tx.now_us);
    let first_day = date_at(start_us, &zone);
    for (number, amount) in vesting.parts(request.amount.micro()) {
        // Counted from the first day each time, so that the 31st comes back after a short month.
        let day = first_day.saturating_add(vesting.every.span(number));
        let part = NewGrant {
            kind: GrantKind::Grant,
            amount,
            priority: request.priority,
            effective_us: midnight_us(day, &zone).max(start_us),
            expires_us: request.expires.map(Timestamp::as_microsecond),
            memo: request.memo.as_deref(),
            terms: &request.terms,
        };
        insert_grant(tx, wallet, &format!("{id}.{number}"), Some(id), &part)?;
    }
    Ok(())
}

fn grant_arguments(request: &GrantRequest, wallet: &Wallet, what: &str, how: &str) -> Hash {
    let micros = |time: Option<Timestamp>| time.map(Timestamp::as_microsecond);
    let mut arguments = vec![
        what.to_owned(),
        wallet.id.clone(),
        request.amount.micro().to_string(),
        request.priority.to_string(),
        format!("{:?}", micros(request.effective)),
        format!("{:?}", micros(request.expires)),
        format!("{:?}", request.memo),
    ];
    // As earlier versions hashed it, so that their keys stay good.
    arguments.extend((request.terms != GrantTerms::default()).then(|| request.terms.argument()));
    arguments.extend((!how.is_empty()).then(|| how.to_owned()));
    arguments_hash(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Freezes or thaws: a frozen wallet admits nothing, what runs may end.
pub(crate) fn set_frozen(tx: &mut Tx<'_>, name: &str, frozen: bool, key: Option<&str>) -> Result<WalletView> {
    let wallet = require_wallet(tx.conn, name)?;
    let arguments = arguments_hash(&[if frozen { "freeze" } else { "thaw" }, &wallet.id]);
    if earlier(tx.conn, key, &arguments)?.is_none() {
        refuse_closed(tx.conn, wallet.seq, name)?;
        tx.conn.execute("UPDATE wallet SET frozen = ?2 WHERE seq = ?1", (wallet.seq, frozen))?;
        remember(tx.conn, key, &arguments, &wallet.id)?;
    }
    query::wallet_view(tx.conn, wallet.seq, tx.now_us)
}

/// A service creates nothing by itself.
pub(crate) fn set_service(tx: &mut Tx<'_>, service: bool) -> Result<()> {
    tx.conn.execute("UPDATE meta SET service = ?1 WHERE id = 1", [service])?;
    tx.cache.meta.service = service;
    Ok(())
}

/// Marks the ledger bad, or good again.
pub(crate) fn set_bad(tx: &mut Tx<'_>, reason: Option<String>) -> Result<()> {
    tx.conn.execute("UPDATE meta SET bad = ?1 WHERE id = 1", [&reason])?;
    tx.cache.meta.bad = reason;
    Ok(())
}

/// The wallet of a name that must exist.
pub(crate) fn require_wallet(conn: &Connection, name: &str) -> Result<Wallet> {
    find_wallet(conn, name)?.ok_or_else(|| LedgerError::UnknownWallet { name: name.to_owned() })
}

/// Refuses a wallet that was closed.
pub(crate) fn refuse_closed(conn: &Connection, wallet: i64, name: &str) -> Result<()> {
    match closing::rest_of(conn, wallet)? {
        Some(_) => Err(LedgerError::WalletClosed { name: name.to_owned() }),
        None => Ok(()),
    }
}

/// The wallet of a name, if there is one.
pub(crate) fn find_wallet(conn: &Connection, name: &str) -> Result<Option<Wallet>> {
    let sql = "SELECT w.seq, a.id FROM wallet_name n JOIN wallet w ON w.seq = n.wallet \
         JOIN account a ON a.seq = w.seq WHERE n.name = ?1";
    let read = |row: &rusqlite::Row<'_>| Ok(Wallet { seq: row.get(0)?, id: row.get(1)? });
    Ok(conn.prepare_cached(sql)?.query_row([name], read).optional()?)
}

/// Writes an empty wallet under a new name.
pub(crate) fn insert_wallet(tx: &Tx<'_>, name: &str) -> Result<Wallet> {
    check_name(name)?;
    let id = Uuid::now_v7().to_string();
    let seq = tx.conn.prepare_cached("INSERT INTO account (id) VALUES (?1)")?.insert([&id])?;
    tx.conn.execute("INSERT INTO wallet (seq, created_us) VALUES (?1, ?2)", (seq, tx.now_us))?;
    tx.conn.execute("INSERT INTO wallet_name (wallet, name) VALUES (?1, ?2)", (seq, name))?;
    Ok(Wallet { seq, id })
}

fn check_name(name: &str) -> Result<()> {
    let reason = match name {
        "" => "it is empty",
        name if name.trim() != name => "it begins or ends with a blank",
        name if name.chars().count() > NAME_CHARS_MAX => "it is longer than 128 characters",
        name if name.chars().any(is_invisible) => "it has a control character, or one that cannot be seen",
        _ => return Ok(()),
    };
    Err(LedgerError::InvalidName { name: name.to_owned(), reason })
}

/// Writes a grant. Its entry follows when it is effective; of one that is not yet, an entry promises it.
fn insert_grant(tx: &Tx<'_>, wallet: &Wallet, id: &str, vesting: Option<&str>, grant: &NewGrant<'_>) -> Result<i64> {
    check_grant(tx, wallet, grant)?;
    let kind = match grant.kind {
        GrantKind::Starter => "starter",
        _ => "grant",
    };
    let (class, scope, value_nano, currency) = grant.terms.columns();
    let sql = "INSERT INTO allowance (id, wallet, kind, amount, priority, effective_us, expires_us, created_us, active, \
         remaining, class, scope, value_nano, currency, vesting) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, 0, 0, ?9, ?10, ?11, ?12, ?13)";
    let seq = tx.conn.prepare_cached(sql)?.insert(rusqlite::params![
        id,
        wallet.seq,
        kind,
        grant.amount,
        grant.priority,
        grant.effective_us,
        grant.expires_us,
        tx.now_us,
        class,
        scope,
        value_nano,
        currency,
        vesting,
    ])?;
    if let Some(memo) = grant.memo {
        insert_memo(tx, seq, memo)?;
    }
    if grant.effective_us > tx.now_us {
        audit::promise(tx.conn, tx.now_us, seq)?;
    }
    Ok(seq)
}

/// Reads a wallet again with its new grants, which become active on the way if they are effective already.
fn activate(tx: &mut Tx<'_>, wallet: i64) -> Result<()> {
    tx.cache.purses.remove(&wallet);
    let purse = tx.take_purse(wallet)?;
    tx.save_purse(wallet, purse)
}

/// Writes a grant that a recurring one gave; its entry follows. Returns its number.
pub(crate) fn insert_given(tx: &Tx<'_>, wallet: i64, grant: &Grant, recurrence: &Recurrence) -> Result<i64> {
    let kind = if grant.kind == GrantKind::Rollover { "rollover" } else { "grant" };
    let sql = "INSERT INTO allowance (id, wallet, kind, amount, priority, effective_us, expires_us, created_us, active, \
         remaining, recurrence, class, scope, value_nano, currency) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?6, 0, 0, ?8, ?9, ?10, ?11, ?12)";
    let (class, scope, value_nano, currency) = grant.terms.columns();
    let seq = tx.conn.prepare_cached(sql)?.insert((
        &grant.id,
        wallet,
        kind,
        grant.amount,
        grant.priority,
        grant.effective_us,
        grant.expires_us,
        recurrence.seq,
        class,
        scope,
        value_nano,
        currency,
    ))?;
    if let Some(memo) = recurrence.view().memo.filter(|_| grant.kind == GrantKind::Grant) {
        insert_memo(tx, seq, &memo)?;
    }
    Ok(seq)
}

/// Keeps what a grant is for.
pub(crate) fn insert_memo(tx: &Tx<'_>, grant: i64, memo: &str) -> Result<()> {
    let salt = *Uuid::new_v4().as_bytes();
    tx.conn.execute("INSERT INTO memo (allowance, salt, text) VALUES (?1, ?2, ?3)", (grant, salt, memo))?;
    Ok(())
}

/// Makes a grant void: what is left of it is gone, and what comes back of it goes the same way. Of a recurring grant: no
/// more of it is given. Again: nothing changes.
pub(crate) fn void(tx: &mut Tx<'_>, id: &str, key: Option<&str>) -> Result<WalletView> {
    tx.check_good()?;
    let arguments = arguments_hash(&["void", id]);
    // Again, it changes nothing: a key only tells whether it was used for something else.
    if earlier(tx.conn, key, &arguments)?.is_none() {
        remember(tx.conn, key, &arguments, id)?;
    }
    let sql = "SELECT seq, wallet FROM allowance WHERE id = ?1 AND kind <> 'overdraft'";
    let found: Option<(i64, i64)> =
        tx.conn.prepare_cached(sql)?.query_row([id], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    let Some((seq, wallet)) = found else {
        if let Some(wallet) = end_vesting(tx, id)? {
            return query::wallet_view(tx.conn, wallet, tx.now_us);
        }
        let wallet = recurrence::end(tx, id)?.ok_or_else(|| LedgerError::UnknownGrant { id: id.to_owned() })?;
        tx.cache.purses.remove(&wallet);
        return query::wallet_view(tx.conn, wallet, tx.now_us);
    };
    let mut purse = tx.take_purse(wallet)?;
    // One that is spent or has expired stays what it is.
    if purse.has(seq) {
        if let Some(event) = purse.void(seq, tx.now_us) {
            tx.write_event(wallet, &purse, &event, None)?;
        }
        let sql = "UPDATE allowance SET voided_us = coalesce(voided_us, ?2) WHERE seq = ?1";
        tx.conn.prepare_cached(sql)?.execute((seq, tx.now_us))?;
    }
    tx.save_purse(wallet, purse)?;
    query::wallet_view(tx.conn, wallet, tx.now_us)
}

/// Makes void what of a vesting has not vested. `None` if there is none of this id.
fn end_vesting(tx: &mut Tx<'_>, id: &str) -> Result<Option<i64>> {
    let sql = "SELECT wallet FROM allowance WHERE vesting = ?1 LIMIT 1";
    let found: Option<i64> = tx.conn.prepare_cached(sql)?.query_row([id], |row| row.get(0)).optional()?;
    let Some(wallet) = found else { return Ok(None) };
    // What has vested by now is written first: it stays.
    let purse = tx.take_purse(wallet)?;
    tx.save_purse(wallet, purse)?;
    tx.cache.purses.remove(&wallet);
    let sql = "UPDATE allowance SET voided_us = ?2 WHERE vesting = ?1 AND active = 0 AND voided_us IS NULL";
    tx.conn.prepare_cached(sql)?.execute((id, tx.now_us))?;
    Ok(Some(wallet))
}

fn check_grant(tx: &Tx<'_>, wallet: &Wallet, grant: &NewGrant<'_>) -> Result<()> {
    let invalid = |reason| Err(LedgerError::InvalidGrant { reason });
    if grant.amount <= 0 {
        return invalid("the amount must be more than zero");
    }
    if grant.expires_us.is_some_and(|expires_us| expires_us <= grant.effective_us) {
        return invalid("it would expire before it can be spent; choose a later expiry");
    }
    check_memo(grant.memo)?;
    check_countable(tx, wallet.seq, grant.amount)
}

/// Refuses a memo that is a document.
pub(crate) fn check_memo(memo: Option<&str>) -> Result<()> {
    match memo.is_some_and(|memo| memo.len() > MEMO_BYTES_MAX) {
        true => Err(LedgerError::InvalidGrant { reason: "the memo is longer than 4 KiB" }),
        false => Ok(()),
    }
}

/// Refuses what would let a sum over a wallet overflow.
pub(crate) fn check_countable(tx: &Tx<'_>, wallet: i64, amount: i64) -> Result<()> {
    let granted: i64 = tx
        .conn
        .prepare_cached("SELECT coalesce(sum(amount), 0) FROM allowance WHERE wallet = ?1")?
        .query_row([wallet], |row| row.get(0))?;
    let reason = "this wallet was granted more than can be counted; choose a smaller amount";
    granted.checked_add(amount).map(|_| ()).ok_or(LedgerError::InvalidGrant { reason })
}

/// The wallet that a grant belongs to.
pub(crate) fn wallet_of_grant(conn: &Connection, grant: i64) -> Result<i64> {
    Ok(conn.prepare_cached("SELECT wallet FROM allowance WHERE seq = ?1")?.query_row([grant], |row| row.get(0))?)
}

/// What came of an earlier use of this key.
pub(crate) fn earlier(conn: &Connection, key: Option<&str>, arguments: &Hash) -> Result<Option<String>> {
    let Some(key) = key else { return Ok(None) };
    let found = conn
        .prepare_cached("SELECT arguments, subject FROM idempotency WHERE key = ?1")?
        .query_row([key_digest(conn, key)?], |row| Ok((row.get::<_, Hash>(0)?, row.get(1)?)))
        .optional()?;
    match found {
        Some((before, _)) if before != *arguments => Err(LedgerError::IdempotencyConflict { key: key.to_owned() }),
        Some((_, subject)) => Ok(Some(subject)),
        None => Ok(None),
    }
}

/// Whether something came of a key before.
pub(crate) fn is_used(conn: &Connection, key: &str) -> Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM idempotency WHERE key = ?1)";
    Ok(conn.prepare_cached(sql)?.query_row([key_digest(conn, key)?], |row| row.get(0))?)
}

/// Keeps what came of a key, if there is one.
pub(crate) fn remember(conn: &Connection, key: Option<&str>, arguments: &Hash, subject: &str) -> Result<()> {
    if let Some(key) = key {
        conn.prepare_cached("INSERT INTO idempotency (key, arguments, subject) VALUES (?1, ?2, ?3)")?.execute((
            key_digest(conn, key)?,
            arguments,
            subject,
        ))?;
    }
    Ok(())
}

/// Keys are chosen by people and may name people: only a salted digest is kept.
pub(crate) fn key_digest(conn: &Connection, key: &str) -> Result<Hash> {
    let salt: Vec<u8> = conn.query_row("SELECT salt FROM meta WHERE id = 1", [], |row| row.get(0))?;
    Ok(chain::salted(&salt, key))
}

/// What a key was used with.
pub(crate) fn arguments_hash(arguments: &[&str]) -> Hash {
    let mut hasher = Sha256::new();
    for argument in arguments {
        hasher.update((argument.len() as u64).to_be_bytes());
        hasher.update(argument);
    }
    hasher.finalize().into()
}

/// The text that `sql` finds for a row.
pub(crate) fn text_of(conn: &Connection, sql: &str, seq: i64) -> Result<String> {
    Ok(conn.prepare_cached(sql)?.query_row([seq], |row| row.get(0))?)
}

/// The row that `sql` finds for an opaque id.
pub(crate) fn seq_of(conn: &Connection, sql: &str, id: &str) -> Result<i64> {
    Ok(conn.prepare_cached(sql)?.query_row([id], |row| row.get(0))?)
}
