//! What was agreed and moves no money: limits, keys, what was asked for, delegations, closures.
//!
//! What holds now is a row of a table of its own. Each time such a row is written, its [body](Kind::bodies) goes into
//! the table `record`, and an entry without postings covers it by its digest, together with who acted if a service acted
//! for somebody. So the rows can be computed from the chain, and [`check`] finds every one that says something else, is
//! missing, or was never agreed.

use rusqlite::{Connection, OptionalExtension, Row};
use serde_json::json;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::Result;
use crate::chain::{self, Draft, Hash};
use crate::verify::{Problems, VerifyReport};
use crate::writer::Tx;

/// A table whose rows are recorded.
pub(crate) struct Kind {
    /// Of the entries that say what holds from then on.
    pub(crate) set: &'static str,
    /// Of the entries that say that it holds no longer, if its rows are ever deleted.
    pub(crate) ended: Option<&'static str>,
    pub(crate) table: &'static str,
    /// SQL for `seq`, `entry`, `id` and `body`, as JSON, of every row.
    pub(crate) bodies: &'static str,
}

/// What is wrong where an entry and its record do not agree.
const CHANGED: &str = "the record of what was agreed was changed or removed";

/// All of them.
const KINDS: [&Kind; 6] = [
    &crate::limits::RECORDED,
    &crate::keys::RECORDED,
    &crate::asks::RECORDED,
    &crate::delegation::RECORDED,
    &crate::closing::RECORDED,
    &crate::prices::RECORDED,
];

/// Of the entries that say who had the entries before them written.
const ACTED: &str = "act";

/// Whether entries of this kind have no postings.
pub(crate) fn is_kind(kind: &str) -> bool {
    kind == ACTED || KINDS.iter().any(|known| known.set == kind || known.ended == Some(kind))
}

/// Records a row that was just written.
pub(crate) fn set(tx: &Tx<'_>, kind: &Kind, seq: i64) -> Result<()> {
    let sql = format!("SELECT id, body FROM ({}) WHERE seq = ?1", kind.bodies);
    let (id, body): (String, String) =
        tx.conn.prepare_cached(&sql)?.query_row([seq], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let entry = append(tx, kind.set, &id, &body)?;
    tx.conn.prepare_cached(&format!("UPDATE {} SET entry = ?2 WHERE seq = ?1", kind.table))?.execute((seq, entry))?;
    Ok(())
}

/// Records that what has this id holds no longer; its row is to be deleted.
pub(crate) fn end(tx: &Tx<'_>, kind: &Kind, id: &str) -> Result<()> {
    append(tx, kind.ended.expect("what is deleted can end"), id, "{}").map(drop)
}

/// Records who acted, if somebody moved money behind entry `before`: those entries name nobody.
pub(crate) fn acted(tx: &Tx<'_>, before: i64) -> Result<()> {
    let Some(actor) = &tx.actor else { return Ok(()) };
    let sql = "SELECT EXISTS (SELECT 1 FROM posting WHERE entry > ?1)";
    if tx.conn.prepare_cached(sql)?.query_row([before], |row| row.get(0))? {
        let body = json!({ "from": before + 1, "to": chain::head(tx.conn)?.entry });
        append(tx, ACTED, actor, &body.to_string())?;
    }
    Ok(())
}

fn append(tx: &Tx<'_>, kind: &str, id: &str, body: &str) -> Result<i64> {
    let next = chain::head(tx.conn)?.entry + 1;
    let draft = Draft {
        kind,
        idempotency_key: &format!("{kind}:{id}:{next}"),
        created_us: tx.now_us,
        effective_us: tx.now_us,
        request_id: None,
        memo_digest: None,
        subject_digest: Some(digest(kind, id, body, tx.actor.as_deref())),
        postings: &[],
    };
    let entry = chain::append(tx.conn, &draft)?;
    tx.conn
        .prepare_cached("INSERT INTO record (entry, kind, subject, body, actor) VALUES (?1, ?2, ?3, ?4, ?5)")?
        .execute((entry, kind, id, body, tx.actor.as_deref()))?;
    Ok(entry)
}

fn digest(kind: &str, id: &str, body: &str, actor: Option<&str>) -> Hash {
    [Some(kind), Some(id), Some(body), actor]
        .into_iter()
        .flatten()
        .fold(Sha256::new(), |hash, text| hash.chain_update((text.len() as u64).to_be_bytes()).chain_update(text))
        .finalize()
        .into()
}

/// Keeps what somebody wrote, apart from what is hashed. Returns the digest by which a row names it.
pub(crate) fn note(tx: &Tx<'_>, text: Option<&str>) -> Result<Option<Hash>> {
    let Some(text) = text else { return Ok(None) };
    let salt = *Uuid::new_v4().as_bytes();
    let digest = chain::salted(&salt, text);
    let sql = "INSERT INTO note (digest, salt, text) VALUES (?1, ?2, ?3)";
    tx.conn.prepare_cached(sql)?.execute((digest, salt, text))?;
    Ok(Some(digest))
}

/// An entry of one of the kinds has its record, which says what the entry covers.
pub(crate) fn check_entry(conn: &Connection, entry: i64, problems: &mut Problems) -> Result<()> {
    let sql = "SELECT e.kind, e.subject_digest, r.kind, r.subject, r.body, r.actor FROM entry e \
         JOIN record r ON r.entry = e.id WHERE e.id = ?1";
    let read = |row: &Row<'_>| -> rusqlite::Result<bool> {
        let (kind, recorded): (String, String) = (row.get(0)?, row.get(2)?);
        let (id, body, actor): (String, String, Option<String>) = (row.get(3)?, row.get(4)?, row.get(5)?);
        let digest = digest(&recorded, &id, &body, actor.as_deref());
        Ok(recorded == kind && row.get_ref(1)?.as_blob_or_null()?.is_some_and(|stored| stored == digest))
    };
    if !conn.prepare_cached(sql)?.query_row([entry], read).optional()?.unwrap_or(false) {
        problems.add(Some(entry), CHANGED);
    }
    Ok(())
}

/// Every record belongs to such an entry, and the tables say what was recorded last.
pub(crate) fn check(conn: &Connection, report: &mut VerifyReport) -> Result<()> {
    let sql = "SELECT r.entry, e.kind FROM record r LEFT JOIN entry e ON e.id = r.entry ORDER BY r.entry";
    let mut statement = conn.prepare(sql)?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        if !row.get::<_, Option<String>>(1)?.is_some_and(|kind| is_kind(&kind)) {
            report.add(row.get(0)?, CHANGED);
        }
    }
    check_notes(conn, report)?;
    KINDS.iter().try_for_each(|kind| check_rows(conn, kind, report))
}

fn check_notes(conn: &Connection, report: &mut VerifyReport) -> Result<()> {
    let mut statement = conn.prepare("SELECT digest, salt, text FROM note")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (digest, salt, text): (Hash, Vec<u8>, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
        if digest != chain::salted(&salt, &text) {
            report.add(None, "a reason that somebody wrote was changed");
        }
    }
    Ok(())
}

fn check_rows(conn: &Connection, kind: &Kind, report: &mut VerifyReport) -> Result<()> {
    // The last record of each subject of this kind, beside the row that it describes.
    let sql = format!(
        "WITH last AS (SELECT max(entry) AS entry, subject, kind, body FROM record WHERE kind IN (?1, ?2) GROUP BY subject), \
         agreed AS (SELECT * FROM last WHERE kind = ?1) \
         SELECT a.entry, coalesce(a.subject, t.id), a.body IS t.body AND a.entry IS t.entry \
         FROM agreed a FULL JOIN ({}) t ON t.id = a.subject",
        kind.bodies
    );
    let mut statement = conn.prepare(&sql)?;
    let mut rows = statement.query((kind.set, kind.ended))?;
    while let Some(row) = rows.next()? {
        if !row.get::<_, bool>(2)? {
            let id: String = row.get(1)?;
            report.add(row.get(0)?, format!("the {} {id} is not as it was agreed", kind.set));
        }
    }
    Ok(())
}

/// The number of a row, by its id.
pub(crate) fn find(conn: &Connection, kind: &Kind, id: &str) -> Result<Option<i64>> {
    let sql = format!("SELECT seq FROM {} WHERE id = ?1", kind.table);
    Ok(conn.prepare_cached(&sql)?.query_row([id], |row| row.get(0)).optional()?)
}
