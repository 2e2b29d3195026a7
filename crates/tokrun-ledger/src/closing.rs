//! The end of a wallet: it admits nothing and is given nothing any more, and what is left of it goes where it should.
//!
//! Requests that run may end, with what they have taken. What they give back, and what a refund or a correction brings
//! back later, goes the same way in the same transaction, so that nothing stays behind.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension};
use uuid::Uuid;

use crate::admin::{self, Wallet, arguments_hash, check_countable, earlier, refuse_closed, remember, require_wallet};
use crate::purse::{Grant, Layer};
use crate::record::{self, Kind};
use crate::writer::Tx;
use crate::{
    Correction, Credits, LedgerError, Result, Transfer, WalletView, asks, delegation, keys, query, reversal, transfer,
    tree,
};

/// A wallet to be closed.
#[derive(Debug, Clone)]
pub struct Closing {
    /// Its name.
    pub wallet: String,
    /// The name of the wallet that gets what is left, with its terms; if `None`, what is left is void.
    pub to: Option<String>,
    /// The same key with the same arguments closes once, however often it is sent.
    pub idempotency_key: Option<String>,
}

impl Closing {
    /// What is left is void.
    pub fn new(wallet: impl Into<String>) -> Closing {
        Closing { wallet: wallet.into(), to: None, idempotency_key: None }
    }
}

/// Where what is left of a wallet goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rest {
    /// To whom it came from.
    Return,
    /// To another wallet.
    Heir(i64),
    /// To nobody.
    Void,
}

/// The rows of the table, as they are recorded.
pub(crate) const RECORDED: Kind = Kind {
    set: "closure",
    ended: None,
    table: "closure",
    bodies: "SELECT c.seq, c.entry, c.id, json_object('wallet', a.id, 'rest', c.rest, 'heir', b.id, \
         'closed_us', c.closed_us) AS body FROM closure c JOIN account a ON a.seq = c.wallet \
         LEFT JOIN account b ON b.seq = c.heir",
};

/// Closes a wallet. Again, it changes nothing.
pub(crate) fn close(tx: &mut Tx<'_>, closing: &Closing) -> Result<WalletView> {
    tx.check_good()?;
    let wallet = require_wallet(tx.conn, &closing.wallet)?;
    let invalid = |reason: &str| LedgerError::InvalidWallet { name: closing.wallet.clone(), reason: reason.into() };
    let heir = closing.to.as_deref().map(|to| require_wallet(tx.conn, to)).transpose()?;
    let arguments = arguments_hash(&["close", &wallet.id, &format!("{:?}", heir.as_ref().map(|heir| &heir.id))]);
    let key = closing.idempotency_key.as_deref();
    if earlier(tx.conn, key, &arguments)?.is_none() {
        let rest = heir.as_ref().map_or(Rest::Void, |heir| Rest::Heir(heir.seq));
        match rest_of(tx.conn, wallet.seq)? {
            Some(before) if before != rest => return Err(invalid("it is closed already, and its rest went elsewhere")),
            Some(_) => {}
            None => check(tx, closing, wallet.seq, heir.map(|heir| heir.seq))?,
        }
        shut(tx, &wallet, rest)?;
        remember(tx.conn, key, &arguments, &wallet.id)?;
    }
    query::wallet_view(tx.conn, wallet.seq, tx.now_us)
}

fn check(tx: &Tx<'_>, closing: &Closing, wallet: i64, heir: Option<i64>) -> Result<()> {
    let invalid =
        |name: &str, reason: &str| Err(LedgerError::InvalidWallet { name: name.into(), reason: reason.into() });
    let is_delegated = |wallet: i64| Ok::<_, LedgerError>(delegation::of_wallet(tx.conn, wallet)?.is_some());
    if is_delegated(wallet)? {
        return invalid(&closing.wallet, "it is delegated; `tokrun wallet revoke` gives back what is left of it");
    }
    let Some((heir, name)) = heir.zip(closing.to.as_deref()) else { return Ok(()) };
    if heir == wallet {
        return invalid(name, "its rest would stay in it; name another");
    }
    if is_delegated(heir)? {
        return invalid(name, "it is delegated, and would give what it gets back; name another");
    }
    refuse_closed(tx.conn, heir, name)
}

/// Where the rest of a closed wallet goes; `None` of one that is not closed.
pub(crate) fn rest_of(conn: &Connection, wallet: i64) -> Result<Option<Rest>> {
    let sql = "SELECT rest, heir FROM closure WHERE wallet = ?1";
    let read = |row: &rusqlite::Row<'_>| Ok((row.get::<_, String>(0)?, row.get(1)?));
    Ok(match conn.prepare_cached(sql)?.query_row([wallet], read).optional()? {
        None => None,
        Some((_, Some(heir))) => Some(Rest::Heir(heir)),
        Some((rest, None)) => Some(if rest == "return" { Rest::Return } else { Rest::Void }),
    })
}

/// When a wallet was closed.
pub(crate) fn closed(conn: &Connection, wallet: i64) -> Result<Option<Timestamp>> {
    let sql = "SELECT closed_us FROM closure WHERE wallet = ?1";
    Ok(conn.prepare_cached(sql)?.query_row([wallet], |row| row.get(0)).optional()?.map(query::timestamp))
}

/// Ends all that a wallet is and has, and gives its rest away.
pub(crate) fn shut(tx: &mut Tx<'_>, wallet: &Wallet, rest: Rest) -> Result<()> {
    if rest_of(tx.conn, wallet.seq)?.is_none() {
        for delegated in delegation::given_by(tx.conn, wallet.seq)? {
            shut(tx, &delegated, Rest::Return)?;
        }
        // A delegation ends at its time, whatever was put under it; that can spend no more either.
        if rest != Rest::Return {
            require_childless(tx, wallet)?;
        }
        end_promises(tx, wallet.seq)?;
        for key in keys::of_wallet(tx.conn, wallet.seq)? {
            keys::revoke(tx, &key, None)?;
        }
        asks::deny_all(tx, wallet.seq, "the wallet was closed")?;
        write(tx, wallet.seq, rest)?;
    }
    settle_up(tx, wallet.seq)
}

/// Refuses to close what others stand under.
fn require_childless(tx: &Tx<'_>, wallet: &Wallet) -> Result<()> {
    let sql = "SELECT coalesce(n.name, a.id) FROM wallet w JOIN account a ON a.seq = w.seq LEFT JOIN wallet_name n ON n.wallet = w.seq \
         WHERE w.parent = ?1 AND w.seq NOT IN (SELECT wallet FROM closure) ORDER BY 1 LIMIT 1";
    let child: Option<String> = tx.conn.prepare_cached(sql)?.query_row([wallet.seq], |row| row.get(0)).optional()?;
    match child {
        None => Ok(()),
        Some(child) => Err(LedgerError::InvalidWallet {
            name: tree::node(tx.conn, wallet.seq)?.name,
            reason: format!("`{child}` stands under it; close that first, or move it"),
        }),
    }
}

/// What would be given or drawn later is not.
fn end_promises(tx: &mut Tx<'_>, wallet: i64) -> Result<()> {
    // What is due by now is written first: it was given.
    let purse = tx.take_purse(wallet)?;
    tx.save_purse(wallet, purse)?;
    for sql in [
        "UPDATE allowance SET voided_us = ?2 WHERE wallet = ?1 AND active = 0 AND voided_us IS NULL AND kind <> 'overdraft'",
        "UPDATE recurrence SET until_us = min(until_us, ?2) WHERE wallet = ?1",
    ] {
        tx.conn.prepare_cached(sql)?.execute((wallet, tx.now_us))?;
    }
    // Not deleted: what running requests drew may come back.
    tx.conn.prepare_cached("UPDATE draw SET cap = 0 WHERE wallet = ?1")?.execute([wallet])?;
    tx.cache.purses.clear();
    Ok(())
}

fn write(tx: &mut Tx<'_>, wallet: i64, rest: Rest) -> Result<()> {
    let (name, heir) = match rest {
        Rest::Return => ("return", None),
        Rest::Heir(heir) => ("heir", Some(heir)),
        Rest::Void => ("void", None),
    };
    tx.conn.prepare_cached("UPDATE wallet SET frozen = 1 WHERE seq = ?1")?.execute([wallet])?;
    let sql = "SELECT id FROM delegation WHERE wallet = ?1";
    let delegated: Option<String> = tx.conn.prepare_cached(sql)?.query_row([wallet], |row| row.get(0)).optional()?;
    if let Some(id) = delegated {
        record::end(tx, &delegation::RECORDED, &id)?;
        tx.conn.prepare_cached("DELETE FROM delegation WHERE wallet = ?1")?.execute([wallet])?;
        tx.cache.meta.next_end_us = delegation::next_end_us(tx.conn)?;
    }
    // The entry follows in the same transaction.
    let sql = "INSERT INTO closure (id, entry, wallet, rest, heir, closed_us) VALUES (?1, 0, ?2, ?3, ?4, ?5)";
    let seq = tx.conn.prepare_cached(sql)?.insert((Uuid::now_v7().to_string(), wallet, name, heir, tx.now_us))?;
    record::set(tx, &RECORDED, seq)
}

/// What is left of a closed wallet, or has come back to it, goes where its rest goes. Of any other: nothing happens.
pub(crate) fn settle_up(tx: &mut Tx<'_>, wallet: i64) -> Result<()> {
    let Some(rest) = rest_of(tx.conn, wallet)? else { return Ok(()) };
    let purse = tx.take_purse(wallet)?;
    let is_left = |grant: &&Grant| grant.layer == Layer::Grants && grant.is_live(tx.now_us) && grant.remaining > 0;
    let left: Vec<(String, i64)> =
        purse.grants.iter().filter(is_left).map(|grant| (grant.id.clone(), grant.remaining)).collect();
    tx.save_purse(wallet, purse)?;
    end_overdraft(tx, wallet)?;
    match rest {
        Rest::Void => left.iter().try_for_each(|(id, _)| admin::void(tx, id, None).map(drop)),
        Rest::Return => left.into_iter().try_for_each(|(id, _)| reversal::correct(tx, &Correction::new(id)).map(drop)),
        Rest::Heir(_) if left.is_empty() => Ok(()),
        Rest::Heir(heir) => {
            let amount = left.iter().map(|&(_, amount)| amount).sum();
            // An heir that was given more than can be counted must not keep a request from being settled.
            if check_countable(tx, heir, amount).is_ok() {
                transfer::give(tx, &Transfer::new("", "", Credits::from_micro(amount)), wallet, heir)?;
            }
            settle_up(tx, heir)
        }
    }
}

/// What of an overdraft is not used cannot be any more.
fn end_overdraft(tx: &mut Tx<'_>, wallet: i64) -> Result<()> {
    let sql = "UPDATE allowance SET amount = max(amount - remaining, 1), active = amount > remaining, remaining = 0 \
         WHERE wallet = ?1 AND kind = 'overdraft' AND active = 1 AND remaining > 0";
    tx.conn.prepare_cached(sql)?.execute([wallet])?;
    tx.cache.purses.remove(&wallet);
    Ok(())
}
