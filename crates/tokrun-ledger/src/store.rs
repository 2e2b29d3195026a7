//! The SQLite file: creating, opening, migrating and checking it.

use std::fs::{self, OpenOptions};
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags};
use uuid::Uuid;

use crate::place::{Place, open_private, sync_file};
use crate::{LedgerError, Result, chain};

/// "tokr": marks a file as ours.
pub(crate) const APPLICATION_ID: i64 = 0x746f_6b72;

/// Every version's changes in order; the last one's number is the schema version.
const MIGRATIONS: &[&str] = &[
    include_str!("schema/1.sql"),
    include_str!("schema/2.sql"),
    include_str!("schema/3.sql"),
    include_str!("schema/4.sql"),
    include_str!("schema/5.sql"),
    include_str!("schema/6.sql"),
    include_str!("schema/7.sql"),
    include_str!("schema/8.sql"),
];

/// What a write-ahead log begins with; frames follow.
const WAL_HEADER_BYTES: u64 = 32;

/// Older write-ahead logs can lose commits when two connections meet.
const SQLITE_VERSION_MIN: i32 = 3_051_003;

/// How long to wait for programs that do not queue on our lock, such as the `sqlite3` shell.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Statements that a connection keeps prepared: more than there are, since preparing one takes longer than running it.
const STATEMENTS_KEPT: usize = 128;

/// The version a file has once it is migrated.
pub(crate) const fn schema_version() -> i64 {
    MIGRATIONS.len() as i64
}

/// Opens the file for writing, creating or migrating it. The caller holds the write lock.
pub(crate) fn open(place: &Place, now_us: i64) -> Result<Connection> {
    assert!(rusqlite::version_number() >= SQLITE_VERSION_MIN, "SQLite {} can lose commits", rusqlite::version());
    if !place.file.exists() {
        create(place, now_us)?;
    }
    place.refuse_hard_links()?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn =
        Connection::open_with_flags(&place.file, flags).map_err(|error| LedgerError::at_open(&place.file, error))?;
    conn.busy_timeout(BUSY_TIMEOUT)?;
    check_identity(place, &conn)?;
    if conn.is_readonly("main")? {
        return Err(LedgerError::ReadOnly { path: place.file.clone() });
    }
    configure(&conn).map_err(|error| LedgerError::at_open(&place.file, error))?;
    if has_frames(place) {
        make_durable(&conn).map_err(|error| LedgerError::at_open(&place.file, error))?;
    }
    migrate(&conn)?;
    Ok(conn)
}

/// Opens the file for reading alone.
pub(crate) fn open_reader(place: &Place) -> Result<Connection> {
    place.refuse_hard_links()?;
    match connect_reader(place, false) {
        // In a directory that cannot be written there can be no shared memory. If no log is left either, then the file
        // is complete, and nobody can be changing it.
        Err(LedgerError::ReadOnly { .. }) if !has_log(place) => connect_reader(place, true),
        outcome => outcome,
    }
}

/// A fresh ledger in memory, to compare a schema with.
pub(crate) fn pristine() -> Result<Connection> {
    let conn = Connection::open_in_memory()?;
    migrate(&conn)?;
    Ok(conn)
}

/// The cheap check of every start: the head agrees with the last entry, and that entry with its own hash. What does not
/// even read as an entry contradicts itself as well; pages that SQLite cannot read are an error.
pub(crate) fn quick_check(conn: &Connection) -> Result<Option<String>> {
    match contradiction(conn) {
        Err(LedgerError::Bad { reason }) => Ok(Some(reason)),
        Err(LedgerError::Sqlite(error)) => Ok(Some(error.to_string())),
        outcome => outcome,
    }
}

fn contradiction(conn: &Connection) -> Result<Option<String>> {
    let head = chain::head(conn)?;
    let last: i64 = conn.query_row("SELECT coalesce(max(id), 0) FROM entry", [], |row| row.get(0))?;
    if (head.entry, head.count) != (last, last) {
        return Ok(Some(format!("the head names entry {} of {}, the last entry is {last}", head.entry, head.count)));
    }
    if last == 0 {
        return Ok((head.hash != chain::GENESIS).then(|| "the head of an empty chain has a hash".into()));
    }
    let (hash, computed) = chain::hashes(conn, last)?;
    if hash != head.hash || computed != head.hash {
        return Ok(Some(format!("entry {last} does not have the hash that the head names")));
    }
    Ok(None)
}

/// Builds a complete ledger aside and moves it into place, so that a ledger that exists is whole: an empty or half
/// written file is never taken for a new one.
fn create(place: &Place, now_us: i64) -> Result<()> {
    if has_log(place) {
        // SQLite would replay that log into the new file.
        return Err(LedgerError::NotALedger {
            path: place.file.clone(),
            reason: "its write-ahead log is there, but the ledger itself is missing".into(),
        });
    }
    let fresh = place.beside(".new");
    for leftover in [fresh.clone(), place.beside(".new-wal"), place.beside(".new-shm"), place.beside(".new-journal")] {
        match fs::remove_file(&leftover) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(LedgerError::io("remove", &leftover, error));
            }
            _ => {}
        }
    }
    open_private(OpenOptions::new().write(true).create_new(true), &fresh)
        .map_err(|source| LedgerError::io("create", &fresh, source))?;
    let outcome = build(&fresh, now_us).and_then(|()| {
        sync_file(&fresh)?;
        fs::rename(&fresh, &place.file).map_err(|source| LedgerError::io("create", &place.file, source))?;
        place.sync_directory()
    });
    if outcome.is_err() {
        fs::remove_file(&fresh).ok();
    }
    outcome
}

/// Fills an empty file.
fn build(path: &Path, now_us: i64) -> Result<()> {
    let conn = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    conn.pragma_update(None, "synchronous", "FULL")?;
    migrate(&conn)?;
    conn.execute(
        "INSERT INTO meta (id, ledger_id, salt, created_us) VALUES (1, ?1, randomblob(32), ?2)",
        (Uuid::now_v7().to_string(), now_us),
    )?;
    conn.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    conn.close().map_err(|(_, error)| error.into())
}

/// Refuses files that are not ours, or newer than this program, before anything is written to them.
fn check_identity(place: &Place, conn: &Connection) -> Result<()> {
    let pragma = |name: &str| conn.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let identity = pragma("application_id").and_then(|application| Ok((application, pragma("user_version")?)));
    let (application, found) = identity.map_err(|error| LedgerError::at_open(&place.file, error))?;
    if application != APPLICATION_ID {
        let reason = "it is a database of another program, or empty".into();
        return Err(LedgerError::NotALedger { path: place.file.clone(), reason });
    }
    require_whole_pages(place, conn)?;
    match found {
        found if found > schema_version() => {
            Err(LedgerError::NewerSchema { path: place.file.clone(), found, known: schema_version() })
        }
        found if found < 1 => {
            let reason = format!("it claims to have schema version {found}");
            Err(LedgerError::NotALedger { path: place.file.clone(), reason })
        }
        _ => Ok(()),
    }
}

/// A last page that was cut is not noticed until it is read. Where there is a log, the power may have failed while pages
/// were copied out of it: it has the page still, and SQLite reads it there.
fn require_whole_pages(place: &Place, conn: &Connection) -> Result<()> {
    let page_bytes: u64 = conn.pragma_query_value(None, "page_size", |row| row.get(0))?;
    let file = fs::metadata(&place.file).map_err(|source| LedgerError::io("read", &place.file, source))?;
    match has_frames(place) || file.len().is_multiple_of(page_bytes) {
        true => Ok(()),
        false => Err(LedgerError::Corrupt { reason: "its last page is cut off".into() }),
    }
}

fn configure(conn: &Connection) -> rusqlite::Result<()> {
    conn.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    // Drivers and builds differ in their defaults; in WAL mode anything below FULL loses commits with the power.
    conn.pragma_update(None, "synchronous", "FULL")?;
    conn.pragma_update(None, "fullfsync", true)?;
    conn.pragma_update(None, "checkpoint_fullfsync", true)?;
    conn.pragma_update(None, "foreign_keys", true)?;
    // Without it, INSERT OR REPLACE would delete rows behind the back of the triggers.
    conn.pragma_update(None, "recursive_triggers", true)?;
    conn.pragma_update(None, "trusted_schema", false)?;
    conn.pragma_update(None, "temp_store", "MEMORY")?;
    conn.set_prepared_statement_cache_capacity(STATEMENTS_KEPT);
    Ok(())
}

/// Makes good what a log holds. Whoever died, or whose disk failed, may have left a commit in it that was never synced:
/// SQLite reads it all the same, and so would whoever repeats a request under its key, until the power fails. A
/// checkpoint syncs the log before it copies anything, so a disk that is full says so after that. One that another
/// connection is at already, or has done, does as well.
fn make_durable(conn: &Connection) -> rusqlite::Result<()> {
    match conn.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())) {
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::DiskFull) => Ok(()),
        outcome => outcome,
    }
}

/// Brings the schema up to date, all or nothing.
fn migrate(conn: &Connection) -> Result<()> {
    let version: i64 = conn.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let done = usize::try_from(version).unwrap_or(0).min(MIGRATIONS.len());
    if done == MIGRATIONS.len() {
        return Ok(());
    }
    let transaction = conn.unchecked_transaction()?;
    for migration in &MIGRATIONS[done..] {
        transaction.execute_batch(migration)?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", schema_version())?;
    Ok(transaction.commit()?)
}

fn connect_reader(place: &Place, immutable: bool) -> Result<Connection> {
    let at_open = |error| LedgerError::at_open(&place.file, error);
    // A connection is used by one thread at a time, which the compiler sees to.
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = if immutable {
        Connection::open_with_flags(immutable_uri(&place.file), flags | OpenFlags::SQLITE_OPEN_URI)
    } else {
        Connection::open_with_flags(&place.file, flags)
    };
    let conn = conn.map_err(at_open)?;
    conn.busy_timeout(BUSY_TIMEOUT)?;
    check_identity(place, &conn)?;
    let found = conn.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(at_open)?;
    if found < schema_version() {
        return Err(LedgerError::OlderSchema { path: place.file.clone(), found, known: schema_version() });
    }
    conn.pragma_update(None, "trusted_schema", false)?;
    conn.pragma_update(None, "temp_store", "MEMORY")?;
    conn.set_prepared_statement_cache_capacity(STATEMENTS_KEPT);
    Ok(conn)
}

/// A path as SQLite's URI syntax wants it, byte by byte.
fn immutable_uri(path: &Path) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-_.~".contains(&byte);
    let escaped: String = path
        .as_os_str()
        .as_encoded_bytes()
        .iter()
        .map(|&byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect();
    format!("file:{escaped}?immutable=1")
}

/// Whether a write-ahead log lies beside the file that may hold commits.
fn has_frames(place: &Place) -> bool {
    fs::metadata(place.beside("-wal")).is_ok_and(|log| log.len() > WAL_HEADER_BYTES)
}

/// Whether a write-ahead log with something in it lies beside the file.
fn has_log(place: &Place) -> bool {
    fs::metadata(place.beside("-wal")).is_ok_and(|log| log.len() > 0)
}
