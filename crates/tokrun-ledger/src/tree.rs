//! The tree of wallets: organisation > team > person > service.

use jiff::tz::TimeZone;
use rusqlite::Connection;
use serde::Serialize;
use std::fmt;

use crate::calendar::Period;
use crate::{Credits, LedgerError, Result};

/// Deeper trees than this are refused, and taken for tampering where they are found.
const LEVELS_MAX: usize = 8;

/// What a wallet is for. A parent stands above its children in this order; teams may hold teams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WalletKind {
    /// A company or a department.
    Organisation,
    /// People who share: their prompts' prefixes are cached together, too.
    Team,
    /// Somebody.
    Person,
    /// A program or an agent.
    Service,
}

impl WalletKind {
    /// The name used in the file, on the command line and in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            WalletKind::Organisation => "organisation",
            WalletKind::Team => "team",
            WalletKind::Person => "person",
            WalletKind::Service => "service",
        }
    }

    pub(crate) fn from_name(name: &str) -> Result<WalletKind> {
        use WalletKind::{Organisation, Person, Service, Team};
        let known = [Organisation, Team, Person, Service].into_iter().find(|kind| kind.as_str() == name);
        known.ok_or_else(|| LedgerError::Bad { reason: format!("a wallet is of the unknown kind {name}") })
    }

    fn may_hold(self, child: WalletKind) -> bool {
        self < child || self == child && matches!(self, WalletKind::Organisation | WalletKind::Team)
    }
}

impl fmt::Display for WalletKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// How far a wallet may draw on its parent's pool, once its own grants are used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct DrawTerms {
    /// At most this much; `None`: all there is.
    pub cap: Option<Credits>,
    /// Of the wallet's time zone, after which the cap begins anew; `None`: never.
    pub every: Option<Period>,
}

/// A wallet to be created.
#[derive(Debug, Clone)]
pub struct NewWallet {
    /// Whose it is.
    pub name: String,
    /// What it is for.
    pub kind: WalletKind,
    /// Under which wallet it stands.
    pub parent: Option<String>,
    /// An IANA name, such as `Europe/Berlin`; the parent's if `None`, UTC without one.
    pub zone: Option<String>,
    /// The agreed overdraft.
    pub overdraft: Credits,
    /// Whether it may draw on the parent.
    pub draw: Option<DrawTerms>,
    /// The same key with the same arguments creates once, however often it is sent.
    pub idempotency_key: Option<String>,
}

impl NewWallet {
    /// A person's empty wallet, in UTC and without parent or overdraft.
    pub fn new(name: impl Into<String>) -> NewWallet {
        NewWallet {
            name: name.into(),
            kind: WalletKind::Person,
            parent: None,
            zone: None,
            overdraft: Credits::ZERO,
            draw: None,
            idempotency_key: None,
        }
    }
}

/// What to change of a wallet; the default changes nothing.
#[derive(Debug, Clone, Default)]
pub struct WalletChange {
    /// What it is for.
    pub kind: Option<WalletKind>,
    /// Under which wallet it stands; `Some(None)`: under none. Not while a request of it, or of what is under it, runs.
    pub parent: Option<Option<String>>,
    /// The name of a time zone; `Some(None)`: the parent's.
    pub zone: Option<Option<String>>,
    /// The agreed overdraft; not less than is used of it.
    pub overdraft: Option<Credits>,
    /// How far it may draw on the parent. What was drawn in the current period counts on.
    pub draw: Option<DrawTerms>,
    /// The same key with the same arguments changes once, however often it is sent.
    pub idempotency_key: Option<String>,
}

/// A wallet on the way up, as its row has it.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) seq: i64,
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) kind: WalletKind,
    pub(crate) frozen: bool,
    pub(crate) closed: bool,
    zone: Option<String>,
}

/// SQL for the wallet `?2` and what it stands under, as `above (wallet, level)`.
pub(crate) const ABOVE: &str = "above (wallet, level) AS (SELECT ?2, 0 UNION ALL SELECT w.parent, level + 1 FROM above \
     JOIN wallet w ON w.seq = above.wallet WHERE w.parent IS NOT NULL AND level < 8)";

/// A wallet, wherever it stands.
pub(crate) fn node(conn: &Connection, wallet: i64) -> Result<Node> {
    up(conn, wallet, 1)?.pop().ok_or_else(|| LedgerError::Bad { reason: "a wallet is missing".into() })
}

/// A wallet and what it stands under, itself first.
///
/// # Errors
/// [`LedgerError::Bad`] if that leads nowhere: in a circle, say.
pub(crate) fn path(conn: &Connection, wallet: i64) -> Result<Vec<Node>> {
    let nodes = up(conn, wallet, LEVELS_MAX + 1)?;
    match nodes.len() {
        1..=LEVELS_MAX => Ok(nodes),
        _ => Err(LedgerError::Bad { reason: "a wallet stands under itself, or too deep".into() }),
    }
}

fn up(conn: &Connection, wallet: i64, levels: usize) -> Result<Vec<Node>> {
    let sql = "WITH RECURSIVE up (seq, level) AS (SELECT ?1, 0 UNION ALL SELECT w.parent, level + 1 FROM up \
         JOIN wallet w ON w.seq = up.seq WHERE w.parent IS NOT NULL AND level + 1 < ?2) \
         SELECT w.seq, a.id, coalesce(n.name, a.id), w.frozen, w.zone, w.kind, \
         EXISTS (SELECT 1 FROM closure c WHERE c.wallet = w.seq) FROM up JOIN wallet w ON w.seq = up.seq \
         JOIN account a ON a.seq = w.seq LEFT JOIN wallet_name n ON n.wallet = w.seq ORDER BY level";
    let mut statement = conn.prepare_cached(sql)?;
    let mut rows = statement.query((wallet, levels as i64))?;
    let mut nodes = Vec::new();
    while let Some(row) = rows.next()? {
        nodes.push(Node {
            seq: row.get(0)?,
            id: row.get(1)?,
            name: row.get(2)?,
            frozen: row.get(3)?,
            closed: row.get(6)?,
            zone: row.get(4)?,
            kind: WalletKind::from_name(row.get_ref(5)?.as_str().unwrap_or_default())?,
        });
    }
    Ok(nodes)
}

/// Refuses to spend where the wallet, or one above it, is frozen or closed.
pub(crate) fn require_spendable(path: &[Node]) -> Result<()> {
    match path.iter().find(|node| node.frozen) {
        Some(Node { name, closed: true, .. }) => Err(LedgerError::WalletClosed { name: name.clone() }),
        Some(Node { name, .. }) => Err(LedgerError::Frozen { name: name.clone() }),
        None => Ok(()),
    }
}

/// The calendar of a wallet: its own, else that of the nearest wallet above.
///
/// # Errors
/// [`LedgerError::Bad`] if it is none: a guess in its place would count days that begin at the wrong hour.
pub(crate) fn zone(path: &[Node]) -> Result<TimeZone> {
    let Some(name) = path.iter().find_map(|node| node.zone.as_deref()) else { return Ok(TimeZone::UTC) };
    TimeZone::get(name).map_err(|_| LedgerError::Bad { reason: format!("there is no time zone {name}") })
}

/// The name of that calendar.
pub(crate) fn zone_name(path: &[Node]) -> String {
    path.iter().find_map(|node| node.zone.clone()).unwrap_or_else(|| "UTC".into())
}

/// Who shares with a wallet: the nearest team it belongs to, else only itself.
pub(crate) fn team(path: &[Node]) -> &Node {
    path.iter().find(|node| node.kind == WalletKind::Team).unwrap_or(&path[0])
}

/// Refuses a place in the tree that is none: `path` begins at the parent.
pub(crate) fn check_place(name: &str, kind: WalletKind, path: &[Node], wallet: Option<i64>) -> Result<()> {
    let invalid = |reason: String| Err(LedgerError::InvalidWallet { name: name.to_owned(), reason });
    let Some(parent) = path.first() else { return Ok(()) };
    if path.iter().any(|node| Some(node.seq) == wallet) {
        return invalid(format!("it would stand under itself, through `{}`; choose another parent", parent.name));
    }
    if !parent.kind.may_hold(kind) {
        let held = parent.kind;
        return invalid(format!(
            "a {kind} cannot stand under `{}`, a {held}: organisation, team, person, service is the order",
            parent.name
        ));
    }
    if path.len() >= LEVELS_MAX {
        return invalid(format!("it would stand {} levels deep; {LEVELS_MAX} are the most", path.len() + 1));
    }
    Ok(())
}

/// Refuses what no calendar is known for.
pub(crate) fn check_zone(name: &str, zone: &str) -> Result<()> {
    match TimeZone::get(zone) {
        Ok(_) => Ok(()),
        Err(_) => Err(LedgerError::InvalidWallet {
            name: name.to_owned(),
            reason: format!("there is no time zone `{zone}`; give an IANA name, such as Europe/Berlin"),
        }),
    }
}
