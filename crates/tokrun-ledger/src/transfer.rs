//! What one wallet gives to another.

use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;

use crate::admin::{
    arguments_hash, check_countable, check_memo, earlier, insert_memo, refuse_closed, remember, require_wallet,
};
use crate::chain::{self, Draft};
use crate::purse::{Layer, Part};
use crate::writer::Tx;
use crate::{Credits, LedgerError, Result, WalletView, query, tree};

/// An amount that goes from one wallet to another.
#[derive(Debug, Clone)]
pub struct Transfer {
    /// The name of the wallet that gives: out of its own live grants, in the order in which they burn.
    pub from: String,
    /// The name of the wallet that receives.
    pub to: String,
    /// More than zero.
    pub amount: Credits,
    /// From when what was received cannot be spent any more. What expires earlier in the first wallet does so in the other.
    pub expires: Option<Timestamp>,
    /// Shown in both statements, kept apart from the hashed entries.
    pub memo: Option<String>,
    /// The same key with the same arguments transfers once, however often it is sent.
    pub idempotency_key: Option<String>,
}

impl Transfer {
    /// A transfer that changes nobody's expiry.
    pub fn new(from: impl Into<String>, to: impl Into<String>, amount: Credits) -> Transfer {
        Transfer { from: from.into(), to: to.into(), amount, expires: None, memo: None, idempotency_key: None }
    }
}

/// Both wallets, after a transfer.
#[derive(Debug, Clone, Serialize)]
pub struct Transferred {
    /// What was transferred.
    pub amount: Credits,
    /// Who gave.
    pub from: WalletView,
    /// Who received.
    pub to: WalletView,
}

/// Moves an amount, all of it or nothing.
pub(crate) fn transfer(tx: &mut Tx<'_>, request: &Transfer) -> Result<Transferred> {
    tx.check_good()?;
    let (from, to) = (require_wallet(tx.conn, &request.from)?, require_wallet(tx.conn, &request.to)?);
    let expires_us = request.expires.map(Timestamp::as_microsecond);
    let arguments = arguments_hash(&[
        "transfer",
        &from.id,
        &to.id,
        &request.amount.micro().to_string(),
        &format!("{expires_us:?}"),
        &format!("{:?}", request.memo),
    ]);
    let key = request.idempotency_key.as_deref();
    if earlier(tx.conn, key, &arguments)?.is_none() {
        ends(tx, request)?;
        give(tx, request, from.seq, to.seq)?;
        remember(tx.conn, key, &arguments, &to.id)?;
    }
    Ok(Transferred {
        amount: request.amount,
        from: query::wallet_view(tx.conn, from.seq, tx.now_us)?,
        to: query::wallet_view(tx.conn, to.seq, tx.now_us)?,
    })
}

/// The two wallets, if such a transfer can be.
pub(crate) fn ends(tx: &Tx<'_>, request: &Transfer) -> Result<(i64, i64)> {
    let invalid = |reason| Err(LedgerError::InvalidGrant { reason });
    let (from, to) = (require_wallet(tx.conn, &request.from)?.seq, require_wallet(tx.conn, &request.to)?.seq);
    if request.amount <= Credits::ZERO {
        return invalid("the amount must be more than zero");
    }
    if from == to {
        return invalid("it would go to the wallet that it comes from; name another");
    }
    if request.expires.is_some_and(|expires| expires.as_microsecond() <= tx.now_us) {
        return invalid("it would expire before it can be spent; choose a later expiry");
    }
    tree::require_spendable(&tree::path(tx.conn, from)?)?;
    refuse_closed(tx.conn, to, &request.to)?;
    check_memo(request.memo.as_deref())?;
    check_countable(tx, to, request.amount.micro())?;
    Ok((from, to))
}

/// Moves the amount between the two wallets, whatever they are. Returns the grants in which it was received.
pub(crate) fn give(tx: &mut Tx<'_>, request: &Transfer, from: i64, to: i64) -> Result<Vec<i64>> {
    let parts = take(tx, request, from)?;
    let received = parts.iter().map(|&part| receive(tx, request, (from, to), part)).collect::<Result<Vec<i64>>>()?;
    repay(tx, to, &received)?;
    Ok(received)
}

/// Takes the amount out of the wallet's own grants: neither a pool nor an overdraft can be given away.
fn take(tx: &mut Tx<'_>, request: &Transfer, from: i64) -> Result<Vec<Part>> {
    let mut purse = tx.take_purse(from)?;
    let needed = request.amount.micro();
    let mut parts = Vec::new();
    let taken = purse.take(needed, None, Layer::Grants, tx.now_us, &mut parts);
    if taken < needed {
        let balance = Credits::from_micro(taken);
        return Err(LedgerError::Exhausted { name: request.from.clone(), needed: request.amount, balance });
    }
    parts.iter().for_each(|&part| purse.settle(part));
    tx.save_purse(from, purse)?;
    Ok(parts)
}

/// Gives a part on, as a grant with the terms of the one it comes from and no later an expiry. Returns its number.
fn receive(tx: &Tx<'_>, request: &Transfer, (from, to): (i64, i64), (source, amount): Part) -> Result<i64> {
    let expires_us = request.expires.map_or(i64::MAX, Timestamp::as_microsecond);
    let id = Uuid::now_v7().to_string();
    let sql = "INSERT INTO allowance (id, wallet, kind, amount, priority, effective_us, expires_us, created_us, active, \
         remaining, class, scope, value_nano, currency) SELECT ?1, ?2, 'transfer', ?3, priority, ?4, nullif(min(coalesce(expires_us, ?5), ?5), ?6), ?4, 1, ?3, class, scope, value_nano, currency \
         FROM allowance WHERE seq = ?7";
    let received = tx.conn.prepare_cached(sql)?.insert((&id, to, amount, tx.now_us, expires_us, i64::MAX, source))?;
    if let Some(memo) = &request.memo {
        insert_memo(tx, received, memo)?;
    }
    let draft = Draft {
        kind: "transfer",
        idempotency_key: &format!("transfer:{id}"),
        created_us: tx.now_us,
        effective_us: tx.now_us,
        request_id: None,
        memo_digest: tx.memo_digest(received)?,
        subject_digest: Some(chain::terms_digest(tx.conn, received)?),
        postings: &[(from, Some(source), -amount), (to, Some(received), amount)],
    };
    chain::append(tx.conn, &draft)?;
    Ok(received)
}

/// What is received repays what was overdrawn, as any grant does.
fn repay(tx: &mut Tx<'_>, to: i64, received: &[i64]) -> Result<()> {
    tx.cache.purses.remove(&to);
    let mut purse = tx.take_purse(to)?;
    for &seq in received {
        if let Some(event) = purse.repay(seq, tx.now_us) {
            tx.write_event(to, &purse, &event, None)?;
        }
    }
    tx.save_purse(to, purse)
}
