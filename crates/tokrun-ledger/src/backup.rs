//! A consistent copy in a new file, while others write.

use std::fs::{self, OpenOptions};
use std::path::Path;

use rusqlite::Connection;

use crate::place::{Place, open_private, sync_directory, sync_file};
use crate::{LedgerError, Result};

/// Copies what `conn` sees to `to`, which must not exist. The copy appears whole and durable, or not at all.
pub(crate) fn backup(conn: &Connection, to: &Path) -> Result<()> {
    let invalid = |reason| Err(LedgerError::InvalidBackup { path: to.to_owned(), reason });
    if to.is_dir() {
        return invalid("it is a directory");
    }
    if to.as_os_str().as_encoded_bytes().last().is_some_and(|&byte| std::path::is_separator(char::from(byte))) {
        return invalid("it is written like a directory");
    }
    let place = Place::at(to)?;
    let exists = || LedgerError::FileExists { path: to.to_owned() };
    if place.file.exists() {
        return Err(exists());
    }
    let part = place.beside(&format!(".{}.part", uuid::Uuid::new_v4()));
    open_private(OpenOptions::new().write(true).create_new(true), &part)
        .map_err(|source| LedgerError::io("create", &part, source))?;
    let copied = copy(conn, &part).and_then(|()| {
        // A link, unlike a rename, never replaces what somebody else put there meanwhile.
        fs::hard_link(&part, &place.file).map_err(|source| match source.kind() {
            std::io::ErrorKind::AlreadyExists => exists(),
            _ => LedgerError::io("create", to, source),
        })
    });
    fs::remove_file(&part).ok();
    copied?;
    sync_directory(place.directory())
}

fn copy(conn: &Connection, part: &Path) -> Result<()> {
    let name = part.to_str().ok_or_else(|| {
        LedgerError::io(
            "create",
            part,
            std::io::Error::new(std::io::ErrorKind::InvalidFilename, "the path is no UTF-8"),
        )
    })?;
    conn.execute("VACUUM INTO ?1", [name])?;
    sync_file(part)
}
