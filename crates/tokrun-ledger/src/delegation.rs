//! A part of a wallet for a program: a wallet of its own, under the giver's, with so much and no more.
//!
//! What it was given are transfers, so it can spend no more than them, and what is left of each goes back to the very
//! grant that it came from when the delegation ends ([`closing`]): by hand, or at its time, by whoever writes first after
//! it and as of it. Its open requests get no further than what they have taken by then; what they give back when they are
//! settled goes the same way.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension};
use serde::Serialize;
use uuid::Uuid;

use crate::admin::{Wallet, arguments_hash, earlier, find_wallet, remember, require_wallet, seq_of};
use crate::closing::{self, Rest};
use crate::record::{self, Kind};
use crate::writer::Tx;
use crate::{Credits, LedgerError, NewWallet, Result, Transfer, WalletKind, WalletView, query, transfer, wallets};

/// A part of a wallet to be delegated.
#[derive(Debug, Clone)]
pub struct Delegate {
    /// The name of the wallet that gives: out of its own live grants, in the order in which they burn.
    pub from: String,
    /// The name of the new wallet, of kind service, under it.
    pub name: String,
    /// More than zero.
    pub amount: Credits,
    /// When it ends by itself.
    pub expires: Option<Timestamp>,
    /// Shown in both statements, kept apart from the hashed entries.
    pub memo: Option<String>,
    /// The same key with the same arguments delegates once, however often it is sent.
    pub idempotency_key: Option<String>,
}

impl Delegate {
    /// A delegation that ends when it is revoked.
    pub fn new(from: impl Into<String>, name: impl Into<String>, amount: Credits) -> Delegate {
        let (from, name) = (from.into(), name.into());
        Delegate { from, name, amount, expires: None, memo: None, idempotency_key: None }
    }
}

/// What a delegated wallet is beside a wallet, until the delegation ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Delegation {
    /// The name of the wallet that gave.
    pub from: String,
    /// What was delegated at first.
    pub amount: Credits,
    /// When.
    pub created: Timestamp,
    /// When it ends by itself.
    pub expires: Option<Timestamp>,
}

/// The rows of the table, as they are recorded. Those that ended are closures.
pub(crate) const RECORDED: Kind = Kind {
    set: "delegation",
    ended: Some("delegation_end"),
    table: "delegation",
    bodies: "SELECT d.seq, d.entry, d.id, json_object('wallet', a.id, 'giver', b.id, 'amount', d.amount, \
         'created_us', d.created_us, 'expires_us', d.expires_us) AS body FROM delegation d \
         JOIN account a ON a.seq = d.wallet JOIN account b ON b.seq = d.giver",
};

/// Delegates: the wallet, what is in it, and that it is one, or nothing.
pub(crate) fn delegate(tx: &mut Tx<'_>, new: &Delegate) -> Result<WalletView> {
    tx.check_good()?;
    let from = require_wallet(tx.conn, &new.from)?;
    let expires_us = new.expires.map(Timestamp::as_microsecond);
    let terms = format!("{:?}", (&new.name, new.amount.micro(), expires_us, &new.memo));
    let arguments = arguments_hash(&["delegate", &from.id, &terms]);
    let key = new.idempotency_key.as_deref();
    if let Some(id) = earlier(tx.conn, key, &arguments)? {
        let seq = seq_of(tx.conn, "SELECT seq FROM account WHERE id = ?1", &id)?;
        return query::wallet_view(tx.conn, seq, tx.now_us);
    }
    if expires_us.is_some_and(|expires_us| expires_us <= tx.now_us) {
        return Err(LedgerError::InvalidGrant { reason: "it would end before it can be spent; choose a later end" });
    }
    if find_wallet(tx.conn, &new.name)?.is_some() {
        return Err(LedgerError::WalletExists { name: new.name.clone() });
    }
    let parent = Some(new.from.clone());
    wallets::create(tx, &NewWallet { kind: WalletKind::Service, parent, ..NewWallet::new(&new.name) })?;
    let given = Transfer { memo: new.memo.clone(), ..Transfer::new(&new.from, &new.name, new.amount) };
    let (giver, wallet) = transfer::ends(tx, &given)?;
    transfer::give(tx, &given, giver, wallet)?;
    // The entry follows in the same transaction.
    let sql = "INSERT INTO delegation (id, entry, wallet, giver, amount, created_us, expires_us) \
         VALUES (?1, 0, ?2, ?3, ?4, ?5, ?6)";
    let terms = (Uuid::now_v7().to_string(), wallet, giver, new.amount.micro(), tx.now_us, expires_us);
    let seq = tx.conn.prepare_cached(sql)?.insert(terms)?;
    record::set(tx, &RECORDED, seq)?;
    tx.cache.meta.next_end_us = next_end_us(tx.conn)?;
    let view = query::wallet_view(tx.conn, wallet, tx.now_us)?;
    remember(tx.conn, key, &arguments, &view.id)?;
    Ok(view)
}

/// Ends a delegation: what is left goes back. Again, what has come back meanwhile does.
pub(crate) fn revoke(tx: &mut Tx<'_>, name: &str, key: Option<&str>) -> Result<WalletView> {
    tx.check_good()?;
    let wallet = require_wallet(tx.conn, name)?;
    let arguments = arguments_hash(&["revoke", &wallet.id]);
    if earlier(tx.conn, key, &arguments)?.is_some() {
        return query::wallet_view(tx.conn, wallet.seq, tx.now_us);
    }
    if of_wallet(tx.conn, wallet.seq)?.is_none() && closing::rest_of(tx.conn, wallet.seq)? != Some(Rest::Return) {
        let reason = "nobody delegated it; `tokrun wallet close` closes it".into();
        return Err(LedgerError::InvalidWallet { name: name.to_owned(), reason });
    }
    closing::shut(tx, &wallet, Rest::Return)?;
    remember(tx.conn, key, &arguments, &wallet.id)?;
    query::wallet_view(tx.conn, wallet.seq, tx.now_us)
}

/// Ends every delegation whose time has come, each as of its time. Nobody has spent anything since: who writes does this
/// first.
pub(crate) fn end_due(tx: &mut Tx<'_>) -> Result<()> {
    while let Some(at_us) = tx.cache.meta.next_end_us.filter(|&at_us| at_us <= tx.now_us) {
        let sql = "SELECT w.seq, a.id FROM delegation d JOIN wallet w ON w.seq = d.wallet JOIN account a ON a.seq = w.seq \
             WHERE d.expires_us = ?1 ORDER BY d.seq LIMIT 1";
        let read = |row: &rusqlite::Row<'_>| Ok(Wallet { seq: row.get(0)?, id: row.get(1)? });
        let wallet = tx.conn.prepare_cached(sql)?.query_row([at_us], read)?;
        let now_us = std::mem::replace(&mut tx.now_us, at_us);
        let ended = closing::shut(tx, &wallet, Rest::Return);
        tx.now_us = now_us;
        ended?;
    }
    Ok(())
}

/// When the next one ends by itself.
pub(crate) fn next_end_us(conn: &Connection) -> Result<Option<i64>> {
    Ok(conn.prepare_cached("SELECT min(expires_us) FROM delegation")?.query_row([], |row| row.get(0))?)
}

/// What a wallet is a delegation of.
pub(crate) fn of_wallet(conn: &Connection, wallet: i64) -> Result<Option<Delegation>> {
    let sql = "SELECT coalesce(n.name, a.id), d.amount, d.created_us, d.expires_us FROM delegation d \
         JOIN account a ON a.seq = d.giver LEFT JOIN wallet_name n ON n.wallet = d.giver WHERE d.wallet = ?1";
    let read = |row: &rusqlite::Row<'_>| {
        Ok(Delegation {
            from: row.get(0)?,
            amount: Credits::from_micro(row.get(1)?),
            created: query::timestamp(row.get(2)?),
            expires: row.get::<_, Option<_>>(3)?.map(query::timestamp),
        })
    };
    Ok(conn.prepare_cached(sql)?.query_row([wallet], read).optional()?)
}

/// The wallets that one delegated to, and that are not revoked.
pub(crate) fn given_by(conn: &Connection, giver: i64) -> Result<Vec<Wallet>> {
    let sql =
        "SELECT a.seq, a.id FROM delegation d JOIN account a ON a.seq = d.wallet WHERE d.giver = ?1 ORDER BY d.seq";
    let mut statement = conn.prepare_cached(sql)?;
    let read = |row: &rusqlite::Row<'_>| Ok(Wallet { seq: row.get(0)?, id: row.get(1)? });
    Ok(statement.query_map([giver], read)?.collect::<rusqlite::Result<_>>()?)
}
