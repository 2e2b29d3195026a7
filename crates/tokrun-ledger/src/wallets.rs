//! Creating wallets and changing their terms, as the writer does it.

use jiff::tz::TimeZone;
use rusqlite::{Connection, OptionalExtension};
use uuid::Uuid;

use crate::admin::{
    self, Wallet, arguments_hash, earlier, find_wallet, refuse_closed, remember, require_wallet, seq_of,
};
use crate::calendar::Period;
use crate::writer::Tx;
use crate::{Credits, DrawTerms, LedgerError, NewWallet, Result, WalletChange, WalletKind, WalletView, query, tree};

/// Creates an empty wallet.
pub(crate) fn create(tx: &mut Tx<'_>, new: &NewWallet) -> Result<WalletView> {
    tx.check_good()?;
    let key = new.idempotency_key.as_deref();
    let arguments = arguments_of(new);
    let seq = match earlier(tx.conn, key, &arguments)? {
        Some(id) => seq_of(tx.conn, "SELECT seq FROM account WHERE id = ?1", &id)?,
        None => {
            if find_wallet(tx.conn, &new.name)?.is_some() {
                return Err(LedgerError::WalletExists { name: new.name.clone() });
            }
            let wallet = admin::insert_wallet(tx, &new.name)?;
            remember(tx.conn, key, &arguments, &wallet.id)?;
            let change = WalletChange {
                kind: Some(new.kind),
                parent: new.parent.clone().map(Some),
                zone: new.zone.clone().map(Some),
                overdraft: Some(new.overdraft),
                draw: new.draw,
                idempotency_key: None,
            };
            apply(tx, &wallet, &new.name, &change)?;
            wallet.seq
        }
    };
    query::wallet_view(tx.conn, seq, tx.now_us)
}

/// Changes a wallet's terms, all of them or none.
pub(crate) fn change(tx: &mut Tx<'_>, name: &str, change: &WalletChange) -> Result<WalletView> {
    tx.check_good()?;
    let wallet = require_wallet(tx.conn, name)?;
    let key = change.idempotency_key.as_deref();
    let amounts = (change.overdraft.map(Credits::micro), change.draw.map(draw_argument));
    let arguments = format!("{:?}", (change.kind, &change.parent, &change.zone, amounts));
    let arguments = arguments_hash(&["change", &wallet.id, &arguments]);
    if earlier(tx.conn, key, &arguments)?.is_none() {
        refuse_closed(tx.conn, wallet.seq, name)?;
        apply(tx, &wallet, name, change)?;
        remember(tx.conn, key, &arguments, &wallet.id)?;
    }
    query::wallet_view(tx.conn, wallet.seq, tx.now_us)
}

fn apply(tx: &mut Tx<'_>, wallet: &Wallet, name: &str, change: &WalletChange) -> Result<()> {
    if let Some(Some(zone)) = &change.zone {
        tree::check_zone(name, zone)?;
    }
    if let Some(zone) = &change.zone {
        tx.conn.execute("UPDATE wallet SET zone = ?2 WHERE seq = ?1", (wallet.seq, zone))?;
    }
    if change.kind.is_some() || change.parent.is_some() {
        set_place(tx, wallet, name, change)?;
    }
    if let Some(overdraft) = change.overdraft {
        set_overdraft(tx, wallet, name, overdraft)?;
    }
    if let Some(draw) = change.draw {
        set_draw(tx, wallet, name, draw)?;
    }
    // What is remembered of this wallet, or of any below it, may follow from the old terms.
    tx.cache.purses.clear();
    tx.cache.limits.clear();
    Ok(())
}

fn set_place(tx: &Tx<'_>, wallet: &Wallet, name: &str, change: &WalletChange) -> Result<()> {
    let before = tree::path(tx.conn, wallet.seq)?;
    let kind = change.kind.unwrap_or(before[0].kind);
    let parent = match &change.parent {
        None => before.get(1).map(|node| node.seq),
        Some(None) => None,
        Some(Some(parent)) => {
            let above = require_wallet(tx.conn, parent)?;
            refuse_closed(tx.conn, above.seq, parent)?;
            Some(above.seq)
        }
    };
    if parent != before.get(1).map(|node| node.seq) && is_running(tx.conn, wallet.seq)? {
        let reason = "requests of it, or of wallets under it, are running; move it when they have ended".into();
        return Err(LedgerError::InvalidWallet { name: name.to_owned(), reason });
    }
    let above = parent.map_or(Ok(Vec::new()), |parent| tree::path(tx.conn, parent))?;
    tree::check_place(name, kind, &above, Some(wallet.seq))?;
    tx.conn.execute("UPDATE wallet SET kind = ?2, parent = ?3 WHERE seq = ?1", (wallet.seq, kind.as_str(), parent))?;
    if parent.is_none() {
        tx.conn.execute("DELETE FROM draw WHERE wallet = ?1", [wallet.seq])?;
    }
    check_below(tx.conn, wallet.seq)
}

/// Refuses a place in which what is under the wallet could not stand.
fn check_below(conn: &Connection, wallet: i64) -> Result<()> {
    let above = tree::path(conn, wallet)?;
    for child in children(conn, wallet)? {
        let node = tree::node(conn, child)?;
        tree::check_place(&node.name, node.kind, &above, Some(child))?;
        check_below(conn, child)?;
    }
    Ok(())
}

/// The limit may fall to what is used of it, and no further.
fn set_overdraft(tx: &Tx<'_>, wallet: &Wallet, name: &str, overdraft: Credits) -> Result<()> {
    let invalid = |reason: String| Err(LedgerError::InvalidWallet { name: name.to_owned(), reason });
    let limit = overdraft.micro();
    let line = tx
        .conn
        .prepare_cached(
            "SELECT seq, amount - remaining, active FROM allowance WHERE wallet = ?1 AND kind = 'overdraft'",
        )?
        .query_row([wallet.seq], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, bool>(2)?)))
        .optional()?;
    if limit < 0 {
        return invalid("an overdraft is an amount, not less than nothing".into());
    }
    admin::check_countable(tx, wallet.seq, limit)?;
    match line {
        None if limit == 0 => {}
        None => {
            let sql = "INSERT INTO allowance (id, wallet, kind, amount, priority, effective_us, expires_us, created_us, \
                 active, remaining) VALUES (?1, ?2, 'overdraft', ?3, 0, ?4, NULL, ?4, 1, ?3)";
            tx.conn.execute(sql, (Uuid::now_v7().to_string(), wallet.seq, limit, tx.now_us))?;
        }
        Some((_, used, true)) if limit < used => {
            let used = Credits::from_micro(used);
            return invalid(format!("{used} credits of its overdraft are used; agree on no less, or grant first"));
        }
        Some((seq, used, active)) => {
            let used = if active { used } else { 0 };
            let sql = "UPDATE allowance SET amount = max(?2, 1), remaining = ?2 - ?3, active = ?2 > 0 WHERE seq = ?1";
            tx.conn.execute(sql, (seq, limit, used))?;
        }
    }
    Ok(())
}

fn set_draw(tx: &Tx<'_>, wallet: &Wallet, name: &str, terms: DrawTerms) -> Result<()> {
    let invalid = |reason: &str| Err(LedgerError::InvalidWallet { name: name.to_owned(), reason: reason.into() });
    let path = tree::path(tx.conn, wallet.seq)?;
    if path.len() < 2 {
        return invalid("it stands under no wallet that it could draw on; give it a parent");
    }
    if terms.cap.is_some_and(|cap| cap < Credits::ZERO) {
        return invalid("a cap is an amount, not less than nothing");
    }
    let zone: TimeZone = tree::zone(&path)?;
    let from_us = terms.every.map_or(0, |every| every.around(tx.now_us, &zone).0);
    let every = terms.every.map_or("ever", Period::as_str);
    // Another period counts from nothing; the same one goes on.
    let sql = "INSERT INTO draw (wallet, cap, every, from_us, drawn) VALUES (?1, ?2, ?3, ?4, 0) \
         ON CONFLICT (wallet) DO UPDATE SET cap = excluded.cap, every = excluded.every, from_us = excluded.from_us, \
         drawn = iif(every = excluded.every AND from_us = excluded.from_us, drawn, 0)";
    tx.conn.execute(sql, (wallet.seq, terms.cap.map(Credits::micro), every, from_us))?;
    Ok(())
}

fn children(conn: &Connection, wallet: i64) -> Result<Vec<i64>> {
    let mut statement = conn.prepare_cached("SELECT seq FROM wallet WHERE parent = ?1")?;
    Ok(statement.query_map([wallet], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?)
}

/// Whether a request of the wallet, or of any under it, is open.
fn is_running(conn: &Connection, wallet: i64) -> Result<bool> {
    let sql = "WITH RECURSIVE below (wallet) AS (SELECT ?1 UNION SELECT w.seq FROM below \
         JOIN wallet w ON w.parent = below.wallet) \
         SELECT EXISTS (SELECT 1 FROM open_request WHERE wallet IN below)";
    Ok(conn.prepare_cached(sql)?.query_row([wallet], |row| row.get(0))?)
}

fn draw_argument(draw: DrawTerms) -> (Option<i64>, Option<Period>) {
    (draw.cap.map(Credits::micro), draw.every)
}

fn arguments_of(new: &NewWallet) -> crate::chain::Hash {
    // As the first version hashed it, so that its keys stay good.
    if (new.kind, &new.parent, &new.zone, new.overdraft, new.draw)
        == (WalletKind::Person, &None, &None, Credits::ZERO, None)
    {
        return arguments_hash(&["wallet", &new.name]);
    }
    let draw = new.draw.map(draw_argument);
    arguments_hash(&[
        "wallet",
        &new.name,
        new.kind.as_str(),
        &format!("{:?}", new.parent),
        &format!("{:?}", new.zone),
        &new.overdraft.micro().to_string(),
        &format!("{draw:?}"),
    ])
}
