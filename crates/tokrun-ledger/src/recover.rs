//! Requests of dead processes.
//!
//! Every process keeps a lock on `run/<owner>.lock` for life and has its owner id in the rows of its requests. Whoever
//! can take that lock knows that the owner is dead, and settles those rows with what they had recorded. No process ids:
//! they are reused, and mean nothing across containers.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::place::{Place, create_dir_private, create_lock_file};
use crate::request;
use crate::verify;
use crate::writer::Tx;
use crate::{FinishReason, LedgerError, Result};

/// What to do about requests of dead processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Recovery {
    /// Settle them, at once and from time to time.
    Settle,
    /// Leave them to others.
    Leave,
}

/// The lock that says that this process lives.
#[derive(Debug)]
pub(crate) struct RunLock {
    /// This process in the rows of its requests.
    pub(crate) owner: String,
    path: PathBuf,
    /// Locked until it is closed.
    _file: File,
}

impl RunLock {
    /// Takes a new owner id and locks it.
    pub(crate) fn claim(place: &Place) -> Result<RunLock> {
        let directory = place.run_directory();
        create_dir_private(&directory).map_err(|source| LedgerError::io("create", &directory, source))?;
        let owner = Uuid::now_v7().to_string();
        let path = lock_path(&directory, &owner);
        // Locked before it has the name that others look for, or they would take it for a dead process's.
        let unnamed = directory.join(format!("{owner}.new"));
        let failed = |source| LedgerError::io("lock", &path, source);
        let file = create_lock_file(&unnamed).map_err(failed)?;
        file.lock().and_then(|()| fs::rename(&unnamed, &path)).map_err(failed)?;
        Ok(RunLock { owner, path, _file: file })
    }

    /// Ends this process as far as the ledger is concerned.
    pub(crate) fn release(self) {
        fs::remove_file(&self.path).ok();
    }
}

/// A dead process, whose lock is held here so that nobody else settles for it.
pub(crate) struct Dead {
    path: PathBuf,
    file: Option<File>,
}

/// Settles the requests of every process that is dead. The locks are to be [buried](bury) once that is durable; until
/// then, or if it fails, they keep others from trying. If anything that is in flight contradicts the rest, the ledger is
/// marked bad and nothing is settled.
pub(crate) fn settle_dead(tx: &mut Tx<'_>, place: &Place) -> Vec<Dead> {
    let directory = place.run_directory();
    let Ok(owners) = tx.savepoint(other_owners) else { return Vec::new() };
    let found = owners.into_iter().filter_map(|owner| Some((take(lock_path(&directory, &owner))?, owner)));
    let found: Vec<(Dead, String)> = found.collect();
    // What contradicts itself must not get into the chain, where it could not be told from the truth any more.
    if found.is_empty() || tx.savepoint(|tx| verify::require_sound_in_flight(tx.conn)).is_err() {
        return Vec::new();
    }
    let mut dead = Vec::new();
    for (corpse, owner) in found {
        if tx.savepoint(|tx| settle_all(tx, &owner)).is_ok() {
            dead.push(corpse);
        }
    }
    dead
}

/// Settles what this process leaves open.
pub(crate) fn settle_own(tx: &mut Tx<'_>) -> Result<()> {
    tx.savepoint(|tx| settle_all(tx, tx.owner))
}

/// Removes the locks of dead processes whose requests are durably settled.
pub(crate) fn bury(dead: Vec<Dead>) {
    for Dead { path, file } in dead {
        fs::remove_file(path).ok();
        drop(file);
    }
}

/// Removes the locks of dead processes that left nothing open.
pub(crate) fn sweep(place: &Place) {
    let Ok(files) = fs::read_dir(place.run_directory()) else { return };
    let stale = files.flatten().map(|file| file.path()).filter(|path| path.extension().is_some_and(|it| it == "lock"));
    bury(stale.filter_map(take).collect());
}

fn other_owners(tx: &mut Tx<'_>) -> Result<Vec<String>> {
    if tx.cache.meta.bad.is_some() {
        return Ok(Vec::new());
    }
    let mut statement = tx.conn.prepare_cached("SELECT DISTINCT owner FROM open_request WHERE owner <> ?1")?;
    let owners = statement.query_map([tx.owner], |row| row.get(0))?;
    Ok(owners.collect::<rusqlite::Result<_>>()?)
}

fn settle_all(tx: &mut Tx<'_>, owner: &str) -> Result<()> {
    tx.check_good()?;
    let requests: Vec<String> = tx
        .conn
        .prepare_cached("SELECT id FROM open_request WHERE owner = ?1 ORDER BY seq")?
        .query_map([owner], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    for id in requests {
        request::settle(tx, &request::Ending::unmeasured(id, FinishReason::Crashed))?;
    }
    Ok(())
}

/// Takes the lock of a process if it is dead. One that is missing, as in a restored backup, counts as dead: a process
/// that lives in spite of it is told so at its next debit, and delivers nothing more.
fn take(path: PathBuf) -> Option<Dead> {
    match File::open(&path) {
        Ok(file) => match file.try_lock() {
            Ok(()) => Some(Dead { path, file: Some(file) }),
            Err(TryLockError::WouldBlock | TryLockError::Error(_)) => None,
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Some(Dead { path, file: None }),
        Err(_) => None,
    }
}

fn lock_path(directory: &Path, owner: &str) -> PathBuf {
    directory.join(format!("{owner}.lock"))
}
