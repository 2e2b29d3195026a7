//! Access keys: who acts for a wallet over a service, in which role, and for what.
//!
//! A key belongs to a wallet, so that a new key is no new allowance. It keeps its id and its name for good, and with them
//! its limits and its place in the log; what can be replaced is its secret, of which the file has a digest alone.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row};
use serde::Serialize;
use uuid::Uuid;

use crate::admin::{arguments_hash, earlier, refuse_closed, remember, require_wallet};
use crate::chain::Hash;
use crate::record::{self, Kind};
use crate::text::{is_name, shown};
use crate::writer::Tx;
use crate::{Admission, KeyRefusal, LedgerError, ModelScope, Result, Role, query};

mod secret;

pub use secret::is_key_secret;

/// A key to be created.
#[derive(Debug, Clone)]
pub struct NewKey {
    /// The name of the wallet that pays for what is done with it.
    pub wallet: String,
    /// What limits and the log name it by: never used before, and in the books for good.
    pub name: String,
    /// What else may be done with it.
    pub role: Role,
    /// The only models that it is for; all if `None`.
    pub models: Option<ModelScope>,
    /// The only project that it is for, under which is booked what names none; any if `None`.
    pub project: Option<String>,
    /// From when it is good for nothing; never if `None`.
    pub expires: Option<Timestamp>,
    /// The same key with the same arguments creates once, however often it is sent.
    pub idempotency_key: Option<String>,
}

impl NewKey {
    /// A member's key, for every model and project, that never expires.
    pub fn new(wallet: impl Into<String>, name: impl Into<String>) -> NewKey {
        NewKey {
            wallet: wallet.into(),
            name: name.into(),
            role: Role::Member,
            models: None,
            project: None,
            expires: None,
            idempotency_key: None,
        }
    }
}

/// A key and, this once, its secret, which `Debug` does not show.
#[derive(Clone)]
pub struct CreatedKey {
    /// The key.
    pub view: KeyView,
    /// What its owner shows; nobody finds it again. `None` if an idempotency key was used before.
    pub secret: Option<String>,
}

impl fmt::Debug for CreatedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CreatedKey").field("view", &self.view).finish_non_exhaustive()
    }
}

/// A key, as everybody may see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyView {
    /// Opaque.
    pub id: String,
    /// What limits and the log name it by.
    pub name: String,
    /// The name of the wallet that pays.
    pub wallet: String,
    /// What else may be done with it.
    pub role: Role,
    /// The only models that it is for.
    pub models: Option<ModelScope>,
    /// The only project that it is for.
    pub project: Option<String>,
    /// When it was created.
    pub created: Timestamp,
    /// From when it is good for nothing.
    pub expires: Option<Timestamp>,
    /// Since when it is good for nothing.
    pub revoked: Option<Timestamp>,
}

impl KeyView {
    /// What it is good for at an instant: `valid`, `expired` or `revoked`.
    pub fn state(&self, now: Timestamp) -> &'static str {
        match self {
            KeyView { revoked: Some(_), .. } => "revoked",
            KeyView { expires: Some(expires), .. } if *expires <= now => "expired",
            _ => "valid",
        }
    }
}

/// The rows of the table, as they are recorded.
pub(crate) const RECORDED: Kind = Kind {
    set: "key",
    ended: None,
    table: "access_key",
    bodies: "SELECT k.seq, k.entry, k.id, json_object('wallet', a.id, 'name', k.name, 'role', k.role, 'models', k.models, \
         'project', k.project, 'created_us', k.created_us, 'expires_us', k.expires_us, 'revoked_us', k.revoked_us, \
         'secrets', json((SELECT json_group_array(json_array(hex(s.digest), s.until_us) ORDER BY s.digest) \
         FROM key_secret s WHERE s.access_key = k.seq))) AS body FROM access_key k JOIN account a ON a.seq = k.wallet",
};

/// For [`view`].
const COLUMNS: &str =
    "k.id, k.name, coalesce(n.name, a.id), k.role, k.models, k.project, k.created_us, k.expires_us, k.revoked_us";

/// Whose they are, beside a key `k`.
const OWNERS: &str = "JOIN account a ON a.seq = k.wallet LEFT JOIN wallet_name n ON n.wallet = k.wallet";

fn view(row: &Row<'_>) -> Result<KeyView> {
    let (role, models): (String, Option<String>) = (row.get(3)?, row.get(4)?);
    let bad = |reason| LedgerError::Bad { reason };
    let time = |micros: Option<i64>| micros.map(query::timestamp);
    Ok(KeyView {
        id: row.get(0)?,
        name: row.get(1)?,
        wallet: row.get(2)?,
        role: role.parse().map_err(bad)?,
        models: models.map(|models| models.parse()).transpose().map_err(bad)?,
        project: row.get(5)?,
        created: query::timestamp(row.get(6)?),
        expires: time(row.get(7)?),
        revoked: time(row.get(8)?),
    })
}

/// Creates a key.
pub(crate) fn create(tx: &mut Tx<'_>, new: &NewKey) -> Result<CreatedKey> {
    tx.check_good()?;
    let wallet = require_wallet(tx.conn, &new.wallet)?;
    let expires_us = new.expires.map(Timestamp::as_microsecond);
    let models = new.models.as_ref().map(ModelScope::to_string);
    let terms = format!("{:?}", (&new.name, new.role, &models, &new.project, expires_us));
    let arguments = arguments_hash(&["key", &wallet.id, &terms]);
    let key = new.idempotency_key.as_deref();
    if let Some(id) = earlier(tx.conn, key, &arguments)? {
        return Ok(CreatedKey { view: find(tx.conn, &id)?, secret: None });
    }
    refuse_closed(tx.conn, wallet.seq, &new.wallet)?;
    check(tx, new)?;
    let id = Uuid::now_v7().to_string();
    // The entry follows in the same transaction.
    let sql = "INSERT INTO access_key (id, entry, wallet, name, role, models, project, created_us, expires_us) \
         VALUES (?1, 0, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
    let terms = (&id, wallet.seq, &new.name, new.role.as_str(), models, &new.project, tx.now_us, expires_us);
    let seq = tx.conn.prepare_cached(sql)?.insert(terms)?;
    remember(tx.conn, key, &arguments, &id)?;
    issue(tx, seq, &id)
}

fn check(tx: &Tx<'_>, new: &NewKey) -> Result<()> {
    let invalid = |reason| Err(LedgerError::InvalidKey { reason });
    if ![Some(&new.name), new.project.as_ref()].into_iter().flatten().all(|name| is_name(name)) {
        return invalid("a name in it is empty, longer than 128 characters, or has some that cannot be seen");
    }
    if new.expires.is_some_and(|expires| expires.as_microsecond() <= tx.now_us) {
        return invalid("it would have expired already; choose a later expiry");
    }
    let sql = "SELECT EXISTS (SELECT 1 FROM access_key WHERE name = ?1 OR id = ?1)";
    match tx.conn.prepare_cached(sql)?.query_row([&new.name], |row| row.get(0))? {
        true => Err(LedgerError::KeyExists { name: new.name.clone() }),
        false => Ok(()),
    }
}

/// Gives a key one more secret, and records it.
fn issue(tx: &Tx<'_>, seq: i64, id: &str) -> Result<CreatedKey> {
    let secret = secret::generate()?;
    let sql = "INSERT INTO key_secret (digest, access_key) VALUES (?1, ?2)";
    tx.conn.prepare_cached(sql)?.execute((secret::digest(&secret), seq))?;
    record::set(tx, &RECORDED, seq)?;
    Ok(CreatedKey { view: find(tx.conn, id)?, secret: Some(secret) })
}

/// Replaces a key's secret. The one before is good for a while longer, so that whoever has it can be told.
pub(crate) fn rotate(tx: &mut Tx<'_>, id: &str, grace: Duration, key: Option<&str>) -> Result<CreatedKey> {
    tx.check_good()?;
    let found = find(tx.conn, id)?;
    let arguments = arguments_hash(&["key rotation", &found.id, &grace.as_micros().to_string()]);
    if earlier(tx.conn, key, &arguments)?.is_some() {
        return Ok(CreatedKey { view: found, secret: None });
    }
    let has_passed = |time: Option<Timestamp>| time.is_some_and(|time| time.as_microsecond() <= tx.now_us);
    if found.revoked.is_some() || has_passed(found.expires) {
        let reason = "it was revoked, or has expired; create another one";
        return Err(LedgerError::InvalidKey { reason });
    }
    let seq = record::find(tx.conn, &RECORDED, &found.id)?.ok_or_else(|| unknown(id))?;
    let until_us = tx.now_us.saturating_add(i64::try_from(grace.as_micros()).unwrap_or(i64::MAX));
    let sql = "UPDATE key_secret SET until_us = min(coalesce(until_us, ?2), ?2) WHERE access_key = ?1";
    tx.conn.prepare_cached(sql)?.execute((seq, until_us))?;
    let sql = "DELETE FROM key_secret WHERE access_key = ?1 AND until_us <= ?2";
    tx.conn.prepare_cached(sql)?.execute((seq, tx.now_us))?;
    remember(tx.conn, key, &arguments, &found.id)?;
    issue(tx, seq, &found.id)
}

/// Makes a key good for nothing, for good. Again, it changes nothing.
pub(crate) fn revoke(tx: &mut Tx<'_>, id: &str, key: Option<&str>) -> Result<KeyView> {
    tx.check_good()?;
    let found = find(tx.conn, id)?;
    let arguments = arguments_hash(&["key revocation", &found.id]);
    if earlier(tx.conn, key, &arguments)?.is_some() {
        return Ok(found);
    }
    remember(tx.conn, key, &arguments, &found.id)?;
    if found.revoked.is_some() {
        return Ok(found);
    }
    let sql = "UPDATE access_key SET revoked_us = ?2 WHERE id = ?1 RETURNING seq";
    let seq = tx.conn.prepare_cached(sql)?.query_row((&found.id, tx.now_us), |row| row.get(0))?;
    record::set(tx, &RECORDED, seq)?;
    find(tx.conn, &found.id)
}

/// The key of an id or, else, of a name.
pub(crate) fn find(conn: &Connection, id: &str) -> Result<KeyView> {
    let sql = format!(
        "SELECT {COLUMNS} FROM access_key k {OWNERS} WHERE k.id = ?1 OR k.name = ?1 ORDER BY k.id <> ?1 LIMIT 1"
    );
    let found = conn.prepare_cached(&sql)?.query_row([id], |row| Ok(view(row))).optional()?;
    found.unwrap_or_else(|| Err(unknown(id)))
}

fn unknown(id: &str) -> LedgerError {
    LedgerError::UnknownKey { id: id.to_owned() }
}

/// Every key, or every key of a wallet, in the order in which they were created.
pub(crate) fn list(conn: &Connection, wallet: Option<&str>) -> Result<Vec<KeyView>> {
    let wallet = wallet.map(|name| require_wallet(conn, name)).transpose()?.map(|wallet| wallet.seq);
    let sql = format!("SELECT {COLUMNS} FROM access_key k {OWNERS} WHERE ?1 IS NULL OR k.wallet = ?1 ORDER BY k.seq");
    let mut statement = conn.prepare_cached(&sql)?;
    let mut rows = statement.query([wallet])?;
    let mut keys = Vec::new();
    while let Some(row) = rows.next()? {
        keys.push(view(row)?);
    }
    Ok(keys)
}

/// The ids of a wallet's keys that are not revoked.
pub(crate) fn of_wallet(conn: &Connection, wallet: i64) -> Result<Vec<String>> {
    let sql = "SELECT id FROM access_key WHERE wallet = ?1 AND revoked_us IS NULL ORDER BY seq";
    let mut statement = conn.prepare_cached(sql)?;
    Ok(statement.query_map([wallet], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?)
}

/// The key that a secret is of. Whatever is wrong with it, the same is looked up, and the same is answered.
pub(crate) fn authenticate(conn: &Connection, secret: &str, now_us: i64) -> Result<KeyView> {
    let refused = |reason| LedgerError::KeyRefused { reason };
    let digest = secret::digest(secret);
    let sql = format!(
        "SELECT {COLUMNS}, s.digest, s.until_us FROM key_secret s JOIN access_key k ON k.seq = s.access_key {OWNERS} \
         WHERE s.digest = ?1"
    );
    let read = |row: &Row<'_>| Ok((row.get(9)?, row.get(10)?, view(row)));
    let found = conn.prepare_cached(&sql)?.query_row([digest], read).optional()?;
    let (stored, until_us, key): (Hash, Option<i64>, _) = found.ok_or_else(|| refused(KeyRefusal::Unknown))?;
    let (key, is_same) = (key?, is_same(&stored, &digest));
    match refusal(&key, now_us) {
        _ if !is_same => Err(refused(KeyRefusal::Unknown)),
        None if until_us.is_some_and(|until_us| until_us <= now_us) => Err(refused(KeyRefusal::Replaced)),
        None => Ok(key),
        Some(reason) => Err(refused(reason)),
    }
}

/// Takes as long whatever the digests have in common.
fn is_same(one: &Hash, other: &Hash) -> bool {
    std::hint::black_box(one.iter().zip(other).fold(0, |differing, (one, other)| differing | (one ^ other))) == 0
}

/// Why a key is good for nothing, if it is.
fn refusal(key: &KeyView, now_us: i64) -> Option<KeyRefusal> {
    match key {
        KeyView { revoked: Some(_), .. } => Some(KeyRefusal::Revoked),
        KeyView { expires: Some(expires), .. } if expires.as_microsecond() <= now_us => Some(KeyRefusal::Expired),
        _ => None,
    }
}

/// The admission as its key lets it be: in the key's project if it names none. A name that is no access key's is nothing
/// but a name, by which limits and the log know the request.
pub(crate) fn admit<'a>(tx: &Tx<'_>, admission: &'a Admission) -> Result<Cow<'a, Admission>> {
    let Some(name) = &admission.key else { return Ok(Cow::Borrowed(admission)) };
    let sql = format!("SELECT {COLUMNS} FROM access_key k {OWNERS} WHERE k.name = ?1");
    let found = tx.conn.prepare_cached(&sql)?.query_row([name], |row| Ok(view(row))).optional()?;
    let Some(key) = found.transpose()? else { return Ok(Cow::Borrowed(admission)) };
    if let Some(reason) = refusal(&key, tx.now_us) {
        return Err(LedgerError::KeyRefused { reason });
    }
    let beyond = |what: String| Err(LedgerError::KeyScope { key: name.clone(), what });
    if key.wallet != admission.wallet {
        return beyond(format!("the wallet `{}`", shown(&admission.wallet)));
    }
    if key.models.is_some_and(|models| !models.has(&admission.model)) {
        return beyond(format!("the model `{}`", shown(&admission.model)));
    }
    match (key.project, &admission.project) {
        (Some(only), None) => Ok(Cow::Owned(Admission { project: Some(only), ..admission.clone() })),
        (Some(only), Some(project)) if only != *project => beyond(format!("the project `{}`", shown(project))),
        _ => Ok(Cow::Borrowed(admission)),
    }
}
