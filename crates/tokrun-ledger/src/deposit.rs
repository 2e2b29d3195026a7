//! What is given to all members of a wallet at once, in exact shares.

use jiff::Timestamp;
use serde::Serialize;

use crate::admin::{arguments_hash, earlier, remember, require_wallet};
use crate::writer::Tx;
use crate::{Credits, GrantRequest, GrantTerms, LedgerError, Result, admin, query};

/// An amount that trickles down to the wallets right under one.
#[derive(Debug, Clone)]
pub struct Deposit {
    /// The name of the wallet whose members get it.
    pub wallet: String,
    /// More than zero, all members together.
    pub amount: Credits,
    /// Names of members, and how much each weighs; the others weigh 1. Who weighs nothing gets nothing.
    pub weights: Vec<(String, u32)>,
    /// Of every share: lower burns first.
    pub priority: i32,
    /// Of every share: from when it cannot be spent any more.
    pub expires: Option<Timestamp>,
    /// Of every share.
    pub terms: GrantTerms,
    /// Of every share: shown in statements, kept apart from the hashed entries.
    pub memo: Option<String>,
    /// The same key with the same arguments deposits once, however often it is sent.
    pub idempotency_key: Option<String>,
}

impl Deposit {
    /// Equal shares that never expire.
    pub fn new(wallet: impl Into<String>, amount: Credits) -> Deposit {
        Deposit {
            wallet: wallet.into(),
            amount,
            weights: Vec::new(),
            priority: 0,
            expires: None,
            terms: GrantTerms::default(),
            memo: None,
            idempotency_key: None,
        }
    }
}

/// What a member got.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Share {
    /// The name of its wallet.
    pub wallet: String,
    /// The id of its grant.
    pub grant: String,
    /// How much.
    pub amount: Credits,
}

/// Gives every member its share: what its weight is of all weights, rounded down to a micro-credit. What is left of the
/// amount after that goes to the first members by name, a micro-credit each.
pub(crate) fn deposit(tx: &mut Tx<'_>, deposit: &Deposit) -> Result<Vec<Share>> {
    tx.check_good()?;
    let wallet = require_wallet(tx.conn, &deposit.wallet)?;
    let expires_us = deposit.expires.map(Timestamp::as_microsecond);
    let arguments = arguments_hash(&[
        "deposit",
        &wallet.id,
        &deposit.amount.micro().to_string(),
        &format!("{:?}", deposit.weights),
        &deposit.priority.to_string(),
        &format!("{expires_us:?}"),
        &deposit.terms.argument(),
        &format!("{:?}", deposit.memo),
    ]);
    let key = deposit.idempotency_key.as_deref();
    if let Some(grants) = earlier(tx.conn, key, &arguments)? {
        return grants.split(' ').map(|grant| share(tx, grant)).collect();
    }
    if deposit.amount <= Credits::ZERO {
        return Err(LedgerError::InvalidGrant { reason: "the amount must be more than zero" });
    }
    let mut grants = Vec::new();
    for (name, amount) in shares(deposit.amount.micro(), &members(tx, wallet.seq, deposit)?) {
        let request = GrantRequest {
            priority: deposit.priority,
            expires: deposit.expires,
            terms: deposit.terms.clone(),
            memo: deposit.memo.clone(),
            ..GrantRequest::new(name, Credits::from_micro(amount))
        };
        grants.push(admin::grant(tx, &request)?.id);
    }
    remember(tx.conn, key, &arguments, &grants.join(" "))?;
    grants.iter().map(|grant| share(tx, grant)).collect()
}

/// The names of the members and their weights, by name.
fn members(tx: &Tx<'_>, wallet: i64, deposit: &Deposit) -> Result<Vec<(String, u32)>> {
    let invalid = |reason: String| Err(LedgerError::InvalidWallet { name: deposit.wallet.clone(), reason });
    let sql = "SELECT n.name FROM wallet w JOIN wallet_name n ON n.wallet = w.seq WHERE w.parent = ?1 \
         AND w.seq NOT IN (SELECT wallet FROM closure) ORDER BY n.name";
    let mut statement = tx.conn.prepare_cached(sql)?;
    let names: Vec<String> = statement.query_map([wallet], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    for (index, (named, _)) in deposit.weights.iter().enumerate() {
        if !names.contains(named) {
            return invalid(format!("`{named}` does not stand right under it; name one that does"));
        }
        if deposit.weights[..index].iter().any(|(before, _)| before == named) {
            return invalid(format!("`{named}` has two weights; give one"));
        }
    }
    let weight =
        |name: &String| deposit.weights.iter().find(|(named, _)| named == name).map_or(1, |&(_, weight)| weight);
    let members: Vec<_> =
        names.into_iter().map(|name| (weight(&name), name)).map(|(weight, name)| (name, weight)).collect();
    if members.iter().all(|&(_, weight)| weight == 0) {
        return invalid(
            "nobody right under it gets a share; put wallets there with `tokrun wallet set NAME --parent`".into(),
        );
    }
    Ok(members)
}

fn shares(amount: i64, members: &[(String, u32)]) -> Vec<(&str, i64)> {
    let all: i128 = members.iter().map(|&(_, weight)| i128::from(weight)).sum();
    let part = |weight: u32| (i128::from(amount) * i128::from(weight) / all) as i64;
    let mut shares: Vec<(&str, i64)> = Vec::new();
    shares
        .extend(members.iter().filter(|&&(_, weight)| weight > 0).map(|(name, weight)| (name.as_str(), part(*weight))));
    let left = amount - shares.iter().map(|(_, share)| share).sum::<i64>();
    shares.iter_mut().take(usize::try_from(left).unwrap_or(0)).for_each(|(_, share)| *share += 1);
    shares.retain(|&(_, share)| share > 0);
    shares
}

fn share(tx: &Tx<'_>, grant: &str) -> Result<Share> {
    let sql = "SELECT g.seq, coalesce(n.name, a.id) FROM allowance g JOIN account a ON a.seq = g.wallet \
         LEFT JOIN wallet_name n ON n.wallet = g.wallet WHERE g.id = ?1";
    let (seq, wallet) = tx.conn.prepare_cached(sql)?.query_row([grant], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let view = query::grant_view(tx.conn, seq, tx.now_us)?;
    Ok(Share { wallet, grant: view.id, amount: view.amount })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up_to_the_micro_credit() {
        let members = |weights: &[u32]| -> Vec<(String, u32)> {
            weights.iter().enumerate().map(|(index, &weight)| (format!("m{index}"), weight)).collect()
        };
        let amounts = |amount, weights: &[u32]| {
            shares(amount, &members(weights)).into_iter().map(|(_, share)| share).collect::<Vec<_>>()
        };
        assert_eq!(amounts(10, &[1, 1, 1]), [4, 3, 3]);
        assert_eq!(amounts(10, &[0, 2, 1]), [7, 3]);
        assert_eq!(amounts(2, &[1, 1, 1]), [1, 1]);
        assert_eq!(amounts(i64::MAX, &[u32::MAX, 1, 7]).iter().sum::<i64>(), i64::MAX);
    }
}
