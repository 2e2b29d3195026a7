//! The full check: the file, the chain, the sums, and the log against them.
//!
//! Nearly all there is are entries, their postings and the log, which never change once they are written. They are read
//! once, in ranges, on as many threads as there are processors (`pass`), while another thread has SQLite check every page
//! and value (`file`); the rest is small, and checked by queries (`rules`). Each thread has a connection of its own. All of
//! them look at the entries up to the last one that the first connection saw, so it does not matter that writers go on.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use foldhash::{HashMap, HashMapExt};
use rusqlite::Connection;
use serde::Serialize;

use crate::chain::{self, GENESIS};
use crate::{LedgerError, Result, record};

mod file;
mod pass;
mod rules;
#[cfg(test)]
mod tests;

use file::{Bag, INDEXES, Secret};
use pass::{Names, Outcome, Range};
use rules::Sums;

/// A file with more wrong than this is not repaired line by line.
const PROBLEMS_MAX: usize = 100;

/// Fewer entries than this are checked more quickly than a thread and its connection are there.
const ENTRIES_A_THREAD: u64 = 20_000;

/// Ranges a thread, so that none waits long for the last one.
const RANGES_A_THREAD: i64 = 4;

/// What a full check found.
#[derive(Debug, Clone, Default, Serialize)]
pub struct VerifyReport {
    /// Entries in the chain.
    pub entries: u64,
    /// Wallets.
    pub wallets: u64,
    /// Settled requests.
    pub requests: u64,
    /// Requests that are not settled; those of living processes are no fault.
    pub open_requests: u64,
    /// The hash of the last entry in hexadecimal. Kept elsewhere, it shows later that nothing before it was rewritten.
    pub head: String,
    /// What is wrong, the chain's faults first, in the order of its entries; empty if nothing is.
    pub problems: Vec<Problem>,
    /// The mark that the ledger had.
    #[serde(skip)]
    pub(crate) mark_before: Option<String>,
}
/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The entry it shows in, if it is one.
    pub entry: Option<u64>,
    /// What is wrong with it.
    pub what: String,
}

impl VerifyReport {
    /// Whether nothing is wrong.
    pub fn passed(&self) -> bool {
        self.problems.is_empty()
    }

    /// Why the ledger may spend nothing.
    pub(crate) fn mark(&self) -> Option<String> {
        self.problems.first().map(|problem| match problem.entry {
            Some(entry) => format!("entry {entry}: {}", problem.what),
            None => problem.what.clone(),
        })
    }

    pub(crate) fn add(&mut self, entry: Option<i64>, what: impl Into<String>) {
        let mut problems = Problems(std::mem::take(&mut self.problems));
        problems.add(entry, what);
        self.problems = problems.0;
    }

    fn extend(&mut self, found: &Problems) {
        let room = PROBLEMS_MAX.saturating_sub(self.problems.len());
        self.problems.extend(found.0.iter().take(room).cloned());
    }

    /// What a check came to; what cannot even be read as what it should be is a problem of its own.
    fn noted<T>(&mut self, outcome: Result<T>) -> Result<Option<T>> {
        match outcome {
            Ok(done) => Ok(Some(done)),
            Err(LedgerError::Bad { reason } | LedgerError::Corrupt { reason } | LedgerError::DiskFailed { reason }) => {
                self.add(None, reason);
                Ok(None)
            }
            Err(LedgerError::Sqlite(error)) => {
                self.add(None, error.to_string());
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

/// What is wrong with one part; no more than anybody reads.
#[derive(Debug, Default)]
pub(crate) struct Problems(Vec<Problem>);

impl Problems {
    pub(crate) fn add(&mut self, entry: Option<i64>, what: impl Into<String>) {
        if self.0.len() < PROBLEMS_MAX {
            self.0.push(Problem { entry: entry.map(i64::cast_unsigned), what: what.into() });
        }
    }
}

/// Opens one more connection to the file.
pub(crate) type Open<'a> = &'a (dyn Fn() -> Result<Connection> + Sync);

/// Checks one consistent state.
pub(crate) fn verify(open: Open<'_>) -> Result<VerifyReport> {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let conn = open()?;
    let conn = conn.unchecked_transaction()?;
    let last: u64 = conn.query_row("SELECT max(id) FROM entry", [], |row| row.get(0)).unwrap_or(0);
    let worthwhile = usize::try_from(1 + last / ENTRIES_A_THREAD).unwrap_or(threads);
    check(&conn, open, threads.min(worthwhile), RANGES_A_THREAD)
}

/// The part of the check that costs little and concerns requests in flight: what they hold and have debited, and the
/// grants that they have it from.
///
/// # Errors
/// [`LedgerError::Bad`], with the first contradiction.
pub(crate) fn require_sound_in_flight(conn: &Connection) -> Result<()> {
    let mut report = VerifyReport::default();
    rules::check_open_requests(conn, &mut report)?;
    let condition = "g.seq IN (SELECT allowance FROM in_flight)";
    let sums = rules::sums_where(conn, condition)?;
    rules::check_grants(conn, &mut report, &sums, condition)?;
    report.mark().map_or(Ok(()), |reason| Err(LedgerError::Bad { reason }))
}

/// What the threads share.
struct Books {
    names: Names,
    /// The last entry and the last row of the log that are looked at.
    last: i64,
    last_logged: i64,
    /// See [`Bag`].
    secret: Secret,
}

/// What a thread takes on.
enum Task {
    Pages,
    Range(Range),
    Index(usize),
}

/// What came of it.
enum Done {
    Pages(Problems),
    Range(Box<Outcome>),
    Index(usize, Bag, Problems),
}

fn check(conn: &Connection, open: Open<'_>, threads: usize, ranges_a_thread: i64) -> Result<VerifyReport> {
    let mut report = VerifyReport::default();
    let ranges = if threads == 1 { 1 } else { threads as i64 * ranges_a_thread };
    let books = report.noted(Books::load(conn))?;
    let ranges = report.noted(pass::ranges(conn, ranges))?;
    let (mut sums, mut below) = (None, Problems::default());
    if let (Some(books), Some(ranges)) = (&books, ranges) {
        let mut tasks = vec![Task::Pages];
        tasks.extend(ranges.into_iter().map(Task::Range));
        tasks.extend((0..INDEXES.len()).map(Task::Index));
        let done = run(&tasks, books, conn, open, threads);
        sums = collect(conn, done, &mut report, &mut below)?;
    }
    for rule in [rules::check_promises, rules::check_reversals] {
        let outcome = rule(conn, &mut report);
        report.noted(outcome)?;
    }
    if let Some(sums) = sums {
        let outcome = rules::check_grants(conn, &mut report, &sums, "TRUE");
        report.noted(outcome)?;
    }
    type Rule = fn(&Connection, &mut VerifyReport) -> Result<()>;
    let rules: [Rule; 4] = [rules::check_settled, rules::check_open_requests, record::check, rules::check_modes];
    for rule in rules {
        let outcome = rule(conn, &mut report);
        report.noted(outcome)?;
    }
    report.extend(&below);
    for rule in [file::check_small, file::check_schema] {
        let outcome = rule(conn, &mut report);
        report.noted(outcome)?;
    }
    let count = |sql: &str| conn.query_row(sql, [], |row| row.get::<_, u64>(0)).unwrap_or(0);
    report.wallets = count("SELECT count(*) FROM wallet");
    report.open_requests = count("SELECT count(*) FROM open_request");
    report.mark_before = conn.query_row("SELECT bad FROM meta WHERE id = 1", [], |row| row.get(0)).unwrap_or(None);
    Ok(report)
}

impl Books {
    fn load(conn: &Connection) -> Result<Books> {
        let last = |sql| conn.query_row(sql, [], |row| row.get(0));
        Ok(Books {
            names: Names::load(conn)?,
            last: last("SELECT coalesce(max(id), 0) FROM entry")?,
            last_logged: last("SELECT coalesce(max(seq), 0) FROM request_log")?,
            secret: Secret::default(),
        })
    }
}

/// Does all tasks, each by the thread that comes to it first; this one is one of them. A thread that finds no way in leaves
/// its work to the others.
fn run(tasks: &[Task], books: &Books, conn: &Connection, open: Open<'_>, threads: usize) -> Vec<Result<Done>> {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = |conn: &Connection| {
        while let Some(task) = tasks.get(next.fetch_add(1, Ordering::Relaxed)) {
            let outcome = task.run(conn, books);
            done.lock().unwrap_or_else(PoisonError::into_inner).push(outcome);
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(|| {
                let Ok(conn) = open() else { return };
                if let Ok(transaction) = conn.unchecked_transaction() {
                    work(&transaction);
                }
            });
        }
        work(conn);
    });
    done.into_inner().unwrap_or_else(PoisonError::into_inner)
}

impl Task {
    fn run(&self, conn: &Connection, books: &Books) -> Result<Done> {
        let mut problems = Problems::default();
        Ok(match self {
            Task::Pages => {
                file::check_pages(conn, &mut problems)?;
                Done::Pages(problems)
            }
            Task::Range(range) => Done::Range(Box::new(pass::run(conn, &books.names, *range, &books.secret)?)),
            Task::Index(number) => {
                let index = &INDEXES[*number];
                let last = if index.table == "request_log" { books.last_logged } else { books.last };
                let held = file::read_index(conn, index, last, &books.secret, &mut problems)?;
                Done::Index(*number, held, problems)
            }
        })
    }
}

/// Puts together what the threads found: the books' problems into the report, those of the file below them apart. Returns
/// what the entries say of each grant, if all of them could be read.
fn collect(
    conn: &Connection,
    done: Vec<Result<Done>>,
    report: &mut VerifyReport,
    below: &mut Problems,
) -> Result<Option<HashMap<i64, Sums>>> {
    let (mut passes, mut indexes, mut is_whole) = (Vec::new(), Vec::new(), true);
    let mut unread = VerifyReport::default();
    for outcome in done {
        match unread.noted(outcome)? {
            Some(Done::Pages(problems)) => below.0.splice(0..0, problems.0).for_each(drop),
            Some(Done::Range(outcome)) => passes.push(*outcome),
            Some(Done::Index(number, held, problems)) => {
                below.0.extend(problems.0);
                indexes.push((number, held));
            }
            None => is_whole = false,
        }
    }
    passes.sort_by_key(|pass| pass.last);
    passes.iter().for_each(|pass| report.extend(&pass.found.chain));
    if is_whole {
        let outcome = check_head(conn, &passes, report);
        report.noted(outcome)?;
    }
    report.problems.extend(unread.problems);
    let parts: [fn(&Outcome) -> &Problems; 4] =
        [|it| &it.found.postings, |it| &it.found.terms, |it| &it.found.unlogged, |it| &it.found.log];
    for part in parts {
        passes.iter().for_each(|pass| report.extend(part(pass)));
    }
    if !is_whole {
        return Ok(None);
    }
    for (number, held) in indexes {
        let mut expected = Bag::default();
        passes.iter().for_each(|pass| expected.merge(pass.indexed[number]));
        file::compare(&INDEXES[number], held, expected, below);
    }
    let mut sums: HashMap<i64, Sums> = HashMap::new();
    for (grant, more) in passes.into_iter().flat_map(|pass| pass.sums) {
        sums.entry(grant).or_default().add(more);
    }
    Ok(Some(sums))
}

/// The head names the last entry, and nothing lies behind it.
fn check_head(conn: &Connection, passes: &[Outcome], report: &mut VerifyReport) -> Result<()> {
    let count: i64 = passes.iter().map(|pass| pass.entries).sum();
    let (last, hash) = passes.last().map_or((0, GENESIS), |pass| (pass.last, pass.hash));
    report.entries = count.cast_unsigned();
    report.requests = passes.iter().map(|pass| pass.requests).sum();
    let head = chain::head(conn)?;
    report.head = head.hash.iter().map(|byte| format!("{byte:02x}")).collect();
    if (head.entry, head.count, head.hash) != (last, count, hash) {
        let (named, of) = (head.entry, head.count);
        report.add(
            Some(last),
            format!("the head names entry {named} of {of}, or another hash; {count} entries are there"),
        );
    }
    rules::each(conn, "SELECT entry FROM posting WHERE entry > (SELECT coalesce(max(id), 0) FROM entry)", |row| {
        report.add(row.get(0)?, "a posting of it belongs to no entry");
        Ok(())
    })
}
