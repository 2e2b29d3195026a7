//! Noticing that the ledger's files were replaced, moved or removed while they are in use.
//!
//! What is written to a file that nobody finds any more is lost, and whoever opens the new one spends the same credits
//! again. So each transaction begins with a look at the names.

use std::fs;
use std::path::{Path, PathBuf};

use crate::place::Place;
use crate::{LedgerError, Result};

/// The files that a connection has open.
#[derive(Debug)]
pub(crate) struct Watch {
    file: PathBuf,
    log: PathBuf,
    file_id: Option<FileId>,
    /// `None` until SQLite has made it.
    log_id: Option<FileId>,
}

/// Device and inode.
type FileId = (u64, u64);

impl Watch {
    /// Of a connection that was just opened. The caller holds the write lock.
    pub(crate) fn start(place: &Place) -> Watch {
        let (file, log) = (place.file.clone(), place.beside("-wal"));
        let (file_id, log_id) = (file_id(&file), file_id(&log));
        Watch { file, log, file_id, log_id }
    }

    /// Refuses to go on if a name leads elsewhere by now.
    ///
    /// # Errors
    /// [`LedgerError::Replaced`].
    pub(crate) fn check(&self) -> Result<()> {
        let log_is_gone = self.log_id.is_some() && file_id(&self.log) != self.log_id;
        match log_is_gone || file_id(&self.file) != self.file_id {
            true => Err(LedgerError::Replaced { path: self.file.clone() }),
            false => Ok(()),
        }
    }

    /// To be called after a commit, when the log is there for certain.
    pub(crate) fn committed(&mut self) {
        if self.log_id.is_none() {
            self.log_id = file_id(&self.log);
        }
    }

    /// Whether the log that is in use may be folded into the file, and removed by name, at the end: not if one of the
    /// names is somebody else's by now. A log that was merely removed is saved that way.
    pub(crate) fn may_fold(&self) -> bool {
        let log_id = file_id(&self.log);
        file_id(&self.file) == self.file_id && (log_id.is_none() || log_id == self.log_id)
    }
}

/// `None` if there is no such file.
#[cfg(unix)]
fn file_id(path: &Path) -> Option<FileId> {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

/// Elsewhere, a file that is open can be neither replaced nor removed.
#[cfg(not(unix))]
fn file_id(path: &Path) -> Option<FileId> {
    fs::metadata(path).ok().map(|_| (0, 0))
}
