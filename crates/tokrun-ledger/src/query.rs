//! Wallets as a reader sees them. What time did since the last write is shown as if it were written.

use jiff::Timestamp;
use rusqlite::Connection;

use crate::funds::Funds;
use crate::purse::{BURN_ORDER, GRANT_COLUMNS, Grant, Purse};
use crate::recurrence::Recurrence;
use crate::{
    Credits, DrawTerms, GrantState, GrantView, LedgerError, Result, WalletKind, WalletView, admin, closing, delegation,
    tree,
};

/// Every wallet, by name.
pub(crate) fn wallets(conn: &Connection, now_us: i64) -> Result<Vec<WalletView>> {
    let mut statement = conn.prepare_cached(
        "SELECT w.seq FROM wallet w LEFT JOIN wallet_name n ON n.wallet = w.seq ORDER BY n.name IS NULL, n.name, w.seq",
    )?;
    let wallets: Vec<i64> = statement.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    wallets.into_iter().map(|wallet| wallet_view(conn, wallet, now_us)).collect()
}

/// The wallet of a name.
pub(crate) fn wallet(conn: &Connection, name: &str, now_us: i64) -> Result<WalletView> {
    wallet_view(conn, admin::require_wallet(conn, name)?.seq, now_us)
}

/// One wallet.
pub(crate) fn wallet_view(conn: &Connection, wallet: i64, now_us: i64) -> Result<WalletView> {
    let path = tree::path(conn, wallet)?;
    let funds = funds(conn, wallet, now_us)?;
    let own = funds.own();
    let balance = own.balance(now_us);
    let draw = own.draw.as_ref();
    let sql = "SELECT w.created_us, (SELECT coalesce(sum(f.held + f.debited), 0) FROM allowance g \
         JOIN in_flight f ON f.allowance = g.seq WHERE g.wallet = w.seq) FROM wallet w WHERE w.seq = ?1";
    let mut grants = grant_views(conn, "g.wallet = ?1 AND g.kind <> 'overdraft'", wallet, now_us)?;
    // What a grant is about to repay of the overdraft is not seen in it alone.
    for grant in &mut grants {
        if let Some(passed) = own.grants.iter().find(|passed| passed.id == grant.id) {
            grant.remaining = Credits::from_micro(passed.remaining);
        }
    }
    // What recurred since the last write.
    grants.extend(own.grants.iter().filter(|grant| grant.seq < 0).map(|grant| GrantView {
        id: grant.id.clone(),
        kind: grant.kind,
        amount: Credits::from_micro(grant.amount),
        remaining: Credits::from_micro(grant.remaining),
        in_flight: Credits::ZERO,
        priority: grant.priority,
        effective: timestamp(grant.effective_us),
        expires: grant.expires_us.map(timestamp),
        created: timestamp(grant.effective_us),
        state: state(grant, now_us),
        memo: own.memo_of(grant),
        terms: grant.terms.clone(),
        vesting: None,
    }));
    // Those that are not written yet are the youngest.
    grants.sort_by_key(|grant| (grant.priority, grant.expires.is_none(), grant.expires));
    let (created_us, in_flight) =
        conn.prepare_cached(sql)?.query_row([wallet], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(WalletView {
        name: path[0].name.clone(),
        id: path[0].id.clone(),
        balance: Credits::from_micro(balance),
        drawable: Credits::from_micro(funds.available(now_us).saturating_sub(balance.max(0))),
        kind: path[0].kind,
        parent: path.get(1).map(|node| node.name.clone()),
        team: path.iter().find(|node| node.kind == WalletKind::Team).map(|node| node.name.clone()),
        zone: tree::zone_name(&path),
        overdraft: Credits::from_micro(own.overdraft().map_or(0, |line| line.amount)),
        draw: draw.map(|draw| DrawTerms { cap: draw.cap.map(Credits::from_micro), every: draw.every }),
        drawn: Credits::from_micro(draw.map_or(0, |draw| draw.drawn)),
        in_flight: Credits::from_micro(in_flight),
        recurring: own.recurrences.iter().map(Recurrence::view).filter(|view| view.next.is_some()).collect(),
        frozen: path.iter().any(|node| node.frozen),
        closed: closing::closed(conn, wallet)?,
        delegation: delegation::of_wallet(conn, wallet)?,
        created: timestamp(created_us),
        grants,
    })
}

/// What a wallet can pay with, as the next writer will find it.
fn funds(conn: &Connection, wallet: i64, now_us: i64) -> Result<Funds> {
    let mut levels = Vec::new();
    let mut next = Some(wallet);
    while let Some(wallet) = next {
        let mut purse = Purse::load(conn, wallet)?;
        purse.pass_time(now_us);
        next = purse.draw.as_ref().map(|draw| draw.parent);
        levels.push((wallet, purse));
    }
    Ok(Funds { levels, model: None })
}

/// One grant.
pub(crate) fn grant_view(conn: &Connection, seq: i64, now_us: i64) -> Result<GrantView> {
    let mut views = grant_views(conn, "g.seq = ?1", seq, now_us)?;
    views.pop().ok_or_else(|| LedgerError::Corrupt { reason: format!("grant {seq} is missing") })
}

/// A time of the file; one outside the calendar, which only tampering writes, is shown as its end.
pub(crate) fn timestamp(micros: i64) -> Timestamp {
    Timestamp::from_microsecond(micros).unwrap_or(if micros < 0 { Timestamp::MIN } else { Timestamp::MAX })
}

fn grant_views(conn: &Connection, condition: &str, key: i64, now_us: i64) -> Result<Vec<GrantView>> {
    let sql = format!(
        "SELECT {GRANT_COLUMNS}, g.created_us, g.vesting, m.text, \
         (SELECT coalesce(sum(f.held + f.debited), 0) FROM in_flight f WHERE f.allowance = g.seq) AS in_flight \
         FROM allowance g LEFT JOIN memo m ON m.allowance = g.seq WHERE {condition} {BURN_ORDER}"
    );
    let mut statement = conn.prepare_cached(&sql)?;
    let views = statement.query_map([key], |row| {
        let mut purse =
            Purse { grants: vec![Grant::from_row(row)?], draw: None, recurrences: Vec::new(), warnings: Vec::new() };
        purse.pass_time(now_us);
        let grant = &purse.grants[0];
        Ok(GrantView {
            id: grant.id.clone(),
            kind: grant.kind,
            amount: Credits::from_micro(grant.amount),
            remaining: Credits::from_micro(grant.remaining),
            in_flight: Credits::from_micro(row.get("in_flight")?),
            priority: grant.priority,
            effective: timestamp(grant.effective_us),
            expires: grant.expires_us.map(timestamp),
            created: timestamp(row.get("created_us")?),
            state: state(grant, now_us),
            memo: row.get("text")?,
            terms: grant.terms.clone(),
            vesting: row.get("vesting")?,
        })
    })?;
    Ok(views.collect::<rusqlite::Result<_>>()?)
}

/// What a grant is good for, once time was passed.
fn state(grant: &Grant, now_us: i64) -> GrantState {
    match grant {
        grant if grant.voided => GrantState::Void,
        grant if grant.is_expired(now_us) => GrantState::Expired,
        grant if !grant.active || grant.effective_us > now_us => GrantState::Pending,
        grant if grant.remaining == 0 => GrantState::Used,
        _ => GrantState::Live,
    }
}
