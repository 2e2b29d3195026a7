//! What `doctor` wants to know of a ledger and its disk.

use std::fs::{self, OpenOptions};
use std::io::{Seek, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use rusqlite::Connection;
use serde::Serialize;

use crate::place::open_private;
use crate::{LedgerError, Result};

/// Enough for a median.
const PROBES: usize = 33;

/// A ledger's state.
#[derive(Debug, Clone, Serialize)]
pub struct Health {
    /// The file.
    pub path: PathBuf,
    /// The version of its schema.
    pub schema_version: i64,
    /// The SQLite that this program carries.
    pub sqlite_version: String,
    /// Entries in the chain.
    pub entries: u64,
    /// Wallets.
    pub wallets: u64,
    /// Requests that are not settled.
    pub open_requests: u64,
    /// Whether nothing is created by itself.
    pub service: bool,
    /// Why the ledger spends nothing, if it does not.
    pub bad: Option<String>,
}

/// Reads the state.
pub(crate) fn health(conn: &Connection, path: &Path) -> Result<Health> {
    let sql = "SELECT coalesce((SELECT count FROM head), 0), (SELECT count(*) FROM wallet), (SELECT count(*) FROM open_request), \
         service, bad FROM meta WHERE id = 1";
    let health = conn.query_row(sql, [], |row| {
        Ok(Health {
            path: path.to_owned(),
            schema_version: crate::store::schema_version(),
            sqlite_version: rusqlite::version().to_owned(),
            entries: row.get(0)?,
            wallets: row.get(1)?,
            open_requests: row.get(2)?,
            service: row.get(3)?,
            bad: row.get(4)?,
        })
    });
    Ok(health?)
}

/// The median time, in microseconds, that the disk under `directory` takes to make 4 KiB durable: what a commit costs
/// at least. Measured on a temporary file.
pub fn fsync_probe_us(directory: &Path) -> Result<u64> {
    let path = directory.join(format!(".fsync-probe-{}", uuid::Uuid::new_v4()));
    let failed = |source| LedgerError::io("measure fsync in", directory, source);
    let mut file = open_private(OpenOptions::new().write(true).create_new(true), &path).map_err(failed)?;
    let mut probe = || {
        let start = Instant::now();
        file.rewind()?;
        file.write_all(&[0x5a; 4096]).and_then(|()| file.sync_data())?;
        Ok(u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX))
    };
    let times: std::io::Result<Vec<u64>> = (0..PROBES).map(|_| probe()).collect();
    fs::remove_file(&path).map_err(failed)?;
    let mut times = times.map_err(failed)?;
    times.sort_unstable();
    Ok(times[PROBES / 2])
}
