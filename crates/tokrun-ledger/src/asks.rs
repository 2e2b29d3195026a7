//! Asking for an allowance, and what comes of it.
//!
//! An approval is a grant: it is the decision of whoever may grant, it succeeds whatever a pool has left by then, and the
//! pool's owner finds nothing missing that they have not given. Who wants a pool to pay names it, and then it is a
//! transfer. Either way it is given in the transaction that answers, so that it is given once.

use std::fmt;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row};
use serde::Serialize;
use serde_json::json;
use uuid::Uuid;

use crate::admin::{self, arguments_hash, check_memo, earlier, refuse_closed, remember, require_wallet, seq_of};
use crate::record::{self, Kind};
use crate::writer::Tx;
use crate::{Credits, GrantRequest, LedgerError, Result, Transfer, events, query, transfer};

/// An allowance that somebody asks for.
#[derive(Debug, Clone)]
pub struct NewAsk {
    /// The name of the wallet that it is for.
    pub wallet: String,
    /// More than zero.
    pub amount: Credits,
    /// What it is for: becomes the memo of what is given, and is kept apart from the hashed entries.
    pub reason: Option<String>,
    /// The same key with the same arguments asks once, however often it is sent.
    pub idempotency_key: Option<String>,
}

/// A yes.
#[derive(Debug, Clone)]
pub struct Approval {
    /// What was asked.
    pub ask_id: String,
    /// How much; what was asked for if `None`.
    pub amount: Option<Credits>,
    /// The name of the wallet that gives it; if `None`, it is granted.
    pub from: Option<String>,
    /// Of what is granted: lower burns first. What is transferred keeps that of its grants.
    pub priority: i32,
    /// From when what is given cannot be spent any more.
    pub expires: Option<Timestamp>,
    /// The same key with the same arguments approves once, however often it is sent.
    pub idempotency_key: Option<String>,
}

impl Approval {
    /// A grant of what was asked for that never expires.
    pub fn new(ask_id: impl Into<String>) -> Approval {
        Approval { ask_id: ask_id.into(), amount: None, from: None, priority: 0, expires: None, idempotency_key: None }
    }
}

/// What came of asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AskState {
    /// Nobody answered yet.
    Open,
    /// Something was given.
    Approved,
    /// Nothing was given.
    Denied,
}

impl AskState {
    /// The name used in the file and in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            AskState::Open => "open",
            AskState::Approved => "approved",
            AskState::Denied => "denied",
        }
    }

    fn from_name(name: &str) -> Result<AskState> {
        let known = [AskState::Open, AskState::Approved, AskState::Denied].into_iter().find(|it| it.as_str() == name);
        known.ok_or_else(|| LedgerError::Bad { reason: format!("an answer is {name}, which nobody knows") })
    }
}

impl fmt::Display for AskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What somebody asked for, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AskView {
    /// Opaque.
    pub id: String,
    /// The name of the wallet that it is for.
    pub wallet: String,
    /// What was asked for.
    pub amount: Credits,
    /// What for.
    pub reason: Option<String>,
    /// When.
    pub created: Timestamp,
    /// What came of it.
    pub state: AskState,
    /// When it was answered.
    pub answered: Option<Timestamp>,
    /// Why it was denied.
    pub answer: Option<String>,
    /// How much was given.
    pub given: Option<Credits>,
    /// The ids of the grants in which it was given.
    pub grants: Vec<String>,
}

/// The rows of the table, as they are recorded.
pub(crate) const RECORDED: Kind = Kind {
    set: "ask",
    ended: None,
    table: "ask",
    bodies: "SELECT k.seq, k.entry, k.id, json_object('wallet', a.id, 'amount', k.amount, 'reason', hex(k.reason), \
         'created_us', k.created_us, 'state', k.state, 'answered_us', k.answered_us, 'answer', hex(k.answer), \
         'given', k.given, 'grants', json(k.grants)) AS body FROM ask k JOIN account a ON a.seq = k.wallet",
};

/// For [`view`].
const ASKS: &str = "SELECT k.id, coalesce(n.name, a.id), k.amount, r.text, k.created_us, k.state, k.answered_us, \
     w.text, k.given, k.grants FROM ask k JOIN account a ON a.seq = k.wallet \
     LEFT JOIN wallet_name n ON n.wallet = k.wallet LEFT JOIN note r ON r.digest = k.reason \
     LEFT JOIN note w ON w.digest = k.answer";

fn view(row: &Row<'_>) -> Result<AskView> {
    let credits = Credits::from_micro;
    let grants: Option<String> = row.get(9)?;
    Ok(AskView {
        id: row.get(0)?,
        wallet: row.get(1)?,
        amount: credits(row.get(2)?),
        reason: row.get(3)?,
        created: query::timestamp(row.get(4)?),
        state: AskState::from_name(row.get_ref(5)?.as_str().unwrap_or_default())?,
        answered: row.get::<_, Option<_>>(6)?.map(query::timestamp),
        answer: row.get(7)?,
        given: row.get::<_, Option<_>>(8)?.map(credits),
        grants: grants.and_then(|grants| serde_json::from_str(&grants).ok()).unwrap_or_default(),
    })
}

/// Asks.
pub(crate) fn ask(tx: &mut Tx<'_>, new: &NewAsk) -> Result<AskView> {
    tx.check_good()?;
    let wallet = require_wallet(tx.conn, &new.wallet)?;
    let amount = new.amount.micro();
    let arguments = arguments_hash(&["ask", &wallet.id, &amount.to_string(), &format!("{:?}", new.reason)]);
    let key = new.idempotency_key.as_deref();
    if let Some(id) = earlier(tx.conn, key, &arguments)? {
        return find(tx.conn, &id);
    }
    refuse_closed(tx.conn, wallet.seq, &new.wallet)?;
    if amount <= 0 {
        return Err(LedgerError::InvalidGrant { reason: "the amount must be more than zero" });
    }
    check_memo(new.reason.as_deref())?;
    let id = Uuid::now_v7().to_string();
    let reason = record::note(tx, new.reason.as_deref())?;
    // The entry follows in the same transaction.
    let sql =
        "INSERT INTO ask (id, entry, wallet, amount, reason, created_us, state) VALUES (?1, 0, ?2, ?3, ?4, ?5, 'open')";
    let seq = tx.conn.prepare_cached(sql)?.insert((&id, wallet.seq, amount, reason, tx.now_us))?;
    remember(tx.conn, key, &arguments, &id)?;
    tell(tx, seq, &id, "allowance_request")
}

/// Gives what was asked for, or another amount.
pub(crate) fn approve(tx: &mut Tx<'_>, approval: &Approval) -> Result<AskView> {
    tx.check_good()?;
    let asked = find(tx.conn, &approval.ask_id)?;
    let amount = approval.amount.unwrap_or(asked.amount);
    let expires_us = approval.expires.map(Timestamp::as_microsecond);
    let terms = format!("{:?}", (amount.micro(), &approval.from, approval.priority, expires_us));
    let arguments = arguments_hash(&["approve", &asked.id, &terms]);
    let key = approval.idempotency_key.as_deref();
    if earlier(tx.conn, key, &arguments)?.is_some() {
        return Ok(asked);
    }
    let seq = require_unanswered(tx, &asked)?;
    let grants = serde_json::to_string(&give(tx, approval, &asked, amount)?).unwrap_or_default();
    let sql = "UPDATE ask SET state = 'approved', answered_us = ?2, given = ?3, grants = ?4 WHERE seq = ?1";
    tx.conn.prepare_cached(sql)?.execute((seq, tx.now_us, amount.micro(), grants))?;
    remember(tx.conn, key, &arguments, &asked.id)?;
    tell(tx, seq, &asked.id, "allowance_answer")
}

/// Returns the ids of what was given.
fn give(tx: &mut Tx<'_>, approval: &Approval, asked: &AskView, amount: Credits) -> Result<Vec<String>> {
    let (wallet, memo, expires) = (asked.wallet.clone(), asked.reason.clone(), approval.expires);
    match &approval.from {
        None => {
            let grant =
                GrantRequest { priority: approval.priority, expires, memo, ..GrantRequest::new(wallet, amount) };
            Ok(vec![admin::grant(tx, &grant)?.id])
        }
        Some(from) => {
            let transfer = Transfer { expires, memo, ..Transfer::new(from, wallet, amount) };
            let (from, to) = transfer::ends(tx, &transfer)?;
            let received = transfer::give(tx, &transfer, from, to)?;
            let id_of = |seq| admin::text_of(tx.conn, "SELECT id FROM allowance WHERE seq = ?1", seq);
            received.into_iter().map(id_of).collect()
        }
    }
}

/// Gives nothing, and says why.
pub(crate) fn deny(tx: &mut Tx<'_>, id: &str, why: Option<&str>, key: Option<&str>) -> Result<AskView> {
    tx.check_good()?;
    let asked = find(tx.conn, id)?;
    let arguments = arguments_hash(&["deny", &asked.id, &format!("{why:?}")]);
    if earlier(tx.conn, key, &arguments)?.is_some() {
        return Ok(asked);
    }
    let seq = require_unanswered(tx, &asked)?;
    check_memo(why)?;
    let answer = record::note(tx, why)?;
    let sql = "UPDATE ask SET state = 'denied', answered_us = ?2, answer = ?3 WHERE seq = ?1";
    tx.conn.prepare_cached(sql)?.execute((seq, tx.now_us, answer))?;
    remember(tx.conn, key, &arguments, &asked.id)?;
    tell(tx, seq, &asked.id, "allowance_answer")
}

/// Denies all that a wallet still asks for.
pub(crate) fn deny_all(tx: &mut Tx<'_>, wallet: i64, why: &str) -> Result<()> {
    let mut statement =
        tx.conn.prepare_cached("SELECT id FROM ask WHERE wallet = ?1 AND state = 'open' ORDER BY seq")?;
    let open: Vec<String> = statement.query_map([wallet], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    open.iter().try_for_each(|id| deny(tx, id, Some(why), None).map(drop))
}

fn require_unanswered(tx: &Tx<'_>, asked: &AskView) -> Result<i64> {
    match asked.state {
        AskState::Open => seq_of(tx.conn, "SELECT seq FROM ask WHERE id = ?1", &asked.id),
        state => Err(LedgerError::Answered { id: asked.id.clone(), state }),
    }
}

/// Records what was written, and tells whoever wants to hear of it.
fn tell(tx: &Tx<'_>, seq: i64, id: &str, kind: &str) -> Result<AskView> {
    record::set(tx, &RECORDED, seq)?;
    let view = find(tx.conn, id)?;
    events::write(tx.conn, kind, tx.now_us, &json!({ "wallet": view.wallet, "request": view }))?;
    Ok(view)
}

/// What was asked, by its id.
pub(crate) fn find(conn: &Connection, id: &str) -> Result<AskView> {
    let sql = format!("{ASKS} WHERE k.id = ?1");
    let found = conn.prepare_cached(&sql)?.query_row([id], |row| Ok(view(row))).optional()?;
    found.unwrap_or_else(|| Err(LedgerError::UnknownAsk { id: id.to_owned() }))
}

/// All that was asked, or all for a wallet, in its order.
pub(crate) fn list(conn: &Connection, wallet: Option<&str>) -> Result<Vec<AskView>> {
    let wallet = wallet.map(|name| require_wallet(conn, name)).transpose()?.map(|wallet| wallet.seq);
    let mut statement = conn.prepare_cached(&format!("{ASKS} WHERE ?1 IS NULL OR k.wallet = ?1 ORDER BY k.seq"))?;
    let mut rows = statement.query([wallet])?;
    let mut asks = Vec::new();
    while let Some(row) = rows.next()? {
        asks.push(view(row)?);
    }
    Ok(asks)
}
