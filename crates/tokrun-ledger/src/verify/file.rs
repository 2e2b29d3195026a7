//! The file below the books: pages, indexes, references, the schema.

use std::hash::BuildHasher;
use std::sync::OnceLock;

use rusqlite::{Connection, Row};

use crate::{Result, store};

use super::rules::each;
use super::{Problems, VerifyReport};

/// The tables that hold nearly all there is. What their rows refer to is checked with the books, and what their indexes
/// hold beside it: to look up every row in every index, as `PRAGMA integrity_check` does, takes three times as long.
const LARGE: [&str; 3] = ["entry", "posting", "request_log"];

/// An index of a large table.
pub(super) struct Index {
    pub(super) table: &'static str,
    pub(super) name: &'static str,
    /// Its columns, then the rest of the row's key.
    columns: &'static str,
    is_text: bool,
}

/// The indexes of the large tables.
pub(super) const INDEXES: [Index; 4] = [
    Index { table: "entry", name: "sqlite_autoindex_entry_1", columns: "idempotency_key, id", is_text: true },
    Index { table: "posting", name: "posting_account", columns: "account, entry, line", is_text: false },
    Index { table: "request_log", name: "sqlite_autoindex_request_log_1", columns: "id, seq", is_text: true },
    Index { table: "request_log", name: "request_log_ended", columns: "ended_us, seq", is_text: false },
];

/// What an index has of a row. The texts are unique, the numbers are with the key of the row, which they end with.
#[derive(Hash, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key<'a> {
    Text(&'a [u8], i64),
    Numbers([i64; 3]),
}

/// By what rows are hashed.
pub(super) type Secret = foldhash::quality::RandomState;

/// Rows in any order. Two bags that hold something else look alike by a chance of 2^-64: nobody who wrote to the file knew
/// the secret by which its rows are hashed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Bag {
    rows: u64,
    sum: u64,
}

impl Bag {
    pub(super) fn add(&mut self, secret: &Secret, key: &Key<'_>) {
        self.merge(Bag { rows: 1, sum: secret.hash_one(key) });
    }

    pub(super) fn merge(&mut self, other: Bag) {
        self.rows += other.rows;
        self.sum = self.sum.wrapping_add(other.sum);
    }
}

/// What an index has of the rows up to `last`; later ones came while the books were read. Its order is checked on the
/// way: what is out of order would not be found.
pub(super) fn read_index(
    conn: &Connection,
    index: &Index,
    last: i64,
    secret: &Secret,
    problems: &mut Problems,
) -> Result<Bag> {
    let Index { table, name, columns, is_text } = index;
    let mut statement = conn.prepare(&format!("SELECT {columns} FROM {table} INDEXED BY {name} ORDER BY {columns}"))?;
    let mut rows = statement.query([])?;
    let mut bag = Bag::default();
    let (mut text, mut numbers) = (Vec::new(), [i64::MIN; 3]);
    let mut is_first = true;
    while let Some(row) = rows.next()? {
        let key = if *is_text { text_key(row)? } else { Key::Numbers(numbers_of(row)?) };
        let is_in_order = match key {
            Key::Text(now, _) => text.as_slice() < now,
            Key::Numbers(now) => numbers < now,
        };
        if !is_in_order && !is_first {
            problems.add(None, format!("the index {name} is out of order, or has a row twice"));
        }
        // The second column is the number by which rows were written.
        let written = match key {
            Key::Text(now, written) => {
                text.clear();
                text.extend_from_slice(now);
                written
            }
            Key::Numbers(now) => {
                numbers = now;
                now[1]
            }
        };
        if written <= last {
            bag.add(secret, &key);
        }
        is_first = false;
    }
    Ok(bag)
}

fn text_key<'a>(row: &'a Row<'_>) -> rusqlite::Result<Key<'a>> {
    Ok(Key::Text(row.get_ref(0)?.as_bytes()?, row.get(1)?))
}

fn numbers_of(row: &Row<'_>) -> rusqlite::Result<[i64; 3]> {
    let third = if row.as_ref().column_count() > 2 { row.get(2)? } else { 0 };
    Ok([row.get(0)?, row.get(1)?, third])
}

/// Says that an index does not have what its table has.
pub(super) fn compare(index: &Index, held: Bag, expected: Bag, problems: &mut Problems) {
    if held != expected {
        problems.add(None, format!("the index {} does not have the rows of {}", index.name, index.table));
    }
}

/// Every page, the free ones too, and the type of every value. The constraints of large tables are looked at with the
/// books, which read their values anyway; those of the others by [`check_small`].
pub(super) fn check_pages(conn: &Connection, problems: &mut Problems) -> Result<()> {
    conn.execute_batch("PRAGMA ignore_check_constraints = ON")?;
    let checked = complaints(conn, "PRAGMA quick_check", |line| problems.add(None, line));
    conn.execute_batch("PRAGMA ignore_check_constraints = OFF")?;
    checked
}

/// The indexes and references of the tables that are not large.
pub(super) fn check_small(conn: &Connection, report: &mut VerifyReport) -> Result<()> {
    let mut statement = conn.prepare("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")?;
    let tables: Vec<String> = statement.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    for table in tables.iter().filter(|table| !LARGE.contains(&table.as_str())) {
        let quoted = table.replace('"', "\"\"");
        complaints(conn, &format!("PRAGMA integrity_check(\"{quoted}\")"), |line| report.add(None, line))?;
        each(conn, &format!("PRAGMA foreign_key_check(\"{quoted}\")"), |row| {
            let (table, parent): (String, String) = (row.get(0)?, row.get(2)?);
            report.add(None, format!("a row of {table} refers to a row of {parent} that is missing"));
            Ok(())
        })?;
    }
    Ok(())
}

fn complaints(conn: &Connection, sql: &str, mut tell: impl FnMut(String)) -> Result<()> {
    each(conn, sql, |row| {
        let line: String = row.get(0)?;
        if line != "ok" {
            tell(line);
        }
        Ok(())
    })
}

/// The tables and triggers are those that this version creates: none dropped, none changed.
pub(super) fn check_schema(conn: &Connection, report: &mut VerifyReport) -> Result<()> {
    static OURS: OnceLock<Schema> = OnceLock::new();
    let ours = match OURS.get() {
        Some(ours) => ours,
        None => {
            let ours = schema(&store::pristine()?)?;
            OURS.get_or_init(|| ours)
        }
    };
    if schema(conn)? != *ours {
        report.add(None, "a table, index or trigger was changed, added or dropped");
    }
    Ok(())
}

/// Type, name and SQL of whatever is in it.
type Schema = Vec<(String, String, Option<String>)>;

fn schema(conn: &Connection) -> Result<Schema> {
    let sql = "SELECT type, name, sql FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%' ORDER BY type, name";
    let mut statement = conn.prepare(sql)?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An index that nobody compares with its table would be one that nobody checks.
    #[test]
    fn every_index_of_a_large_table_is_known() {
        let conn = store::pristine().unwrap();
        let sql = "SELECT name FROM sqlite_schema WHERE type = 'index' AND tbl_name = ?1";
        for table in LARGE {
            let mut statement = conn.prepare(sql).unwrap();
            let mut found: Vec<String> =
                statement.query_map([table], |row| row.get(0)).unwrap().collect::<rusqlite::Result<_>>().unwrap();
            // The primary key of a table without row ids is the table.
            found.retain(|name| name != "sqlite_autoindex_posting_1");
            let mut known: Vec<&str> =
                INDEXES.iter().filter(|index| index.table == table).map(|index| index.name).collect();
            known.sort_unstable();
            found.sort_unstable();
            assert_eq!(found, known, "{table}");
        }
    }
}
