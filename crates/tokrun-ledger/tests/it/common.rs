//! What several tests need.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::mpsc;

use tempfile::TempDir;
use tokrun_ledger::{
    Admission, Clock, Credits, Debit, Debited, FinishReason, GrantRequest, Ledger, MICRO, Price, PromptDebit, Result,
    Settled, Settlement,
};

/// When the driven clock starts: 2026-01-01.
pub(crate) const START_US: i64 = 1_767_225_600_000_000;

/// A ledger in a directory of its own, on a clock that only the test moves.
pub(crate) struct Home {
    pub(crate) directory: TempDir,
    now_us: Arc<AtomicI64>,
}

impl Home {
    pub(crate) fn new() -> Home {
        let directory = tempfile::tempdir().expect("a temporary directory");
        Home { directory, now_us: Arc::new(AtomicI64::new(START_US)) }
    }

    /// On a disk of memory, where there is one: for tests whose durable commits would take all their time.
    pub(crate) fn in_memory() -> Home {
        let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        Home { directory: directory.expect("a temporary directory"), ..Home::new() }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("ledger.db")
    }

    pub(crate) fn open(&self) -> Ledger {
        Ledger::open_with_clock(&self.path(), self.clock()).expect("the ledger opens")
    }

    pub(crate) fn clock(&self) -> Clock {
        let now_us = Arc::clone(&self.now_us);
        Arc::new(move || now_us.load(Ordering::SeqCst))
    }

    pub(crate) fn now_us(&self) -> i64 {
        self.now_us.load(Ordering::SeqCst)
    }

    pub(crate) fn pass(&self, seconds: i64) {
        self.now_us.fetch_add(seconds * 1_000_000, Ordering::SeqCst);
    }

    /// Makes every process that has the ledger open look dead.
    pub(crate) fn bury_everybody(&self) {
        std::fs::remove_dir_all(self.directory.path().join("run")).expect("somebody had it open");
    }

    /// Requests that are not settled.
    pub(crate) fn open_requests(&self) -> i64 {
        self.count("open_request")
    }

    /// Entries in the chain.
    pub(crate) fn entries(&self) -> i64 {
        self.count("entry")
    }

    fn count(&self, table: &str) -> i64 {
        let count = format!("SELECT count(*) FROM {table}");
        self.sql().query_row(&count, [], |row| row.get(0)).expect("the table is there")
    }

    pub(crate) fn sql(&self) -> rusqlite::Connection {
        rusqlite::Connection::open(self.path()).expect("SQLite opens the file")
    }
}

pub(crate) fn at(us: i64) -> jiff::Timestamp {
    jiff::Timestamp::from_microsecond(us).expect("within the calendar")
}

pub(crate) fn credits(credits: i64) -> Credits {
    Credits::from_micro(credits * MICRO)
}

pub(crate) fn fund(ledger: &Ledger, wallet: &str, amount: i64) {
    ledger.create_wallet(wallet, None).expect("a new wallet");
    ledger.grant(GrantRequest::new(wallet, credits(amount))).expect("a grant");
}

pub(crate) fn admission(id: &str, wallet: &str, prompt_tokens: u64) -> Admission {
    Admission {
        request_id: id.into(),
        wallet: wallet.into(),
        starter: None,
        model: "model".into(),
        device: "cpu".into(),
        price: Price::default(),
        prompt_tokens,
        key: None,
        project: None,
        tags: BTreeMap::new(),
    }
}

pub(crate) fn first_debit(id: &str, cached_tokens: u64, output_tokens: u32) -> Debit {
    Debit { request_id: id.into(), prompt: Some(PromptDebit { cached_tokens }), output_tokens, reasoning_tokens: 0 }
}

pub(crate) fn next_debit(id: &str, output_tokens: u32) -> Debit {
    Debit { request_id: id.into(), prompt: None, output_tokens, reasoning_tokens: 0 }
}

pub(crate) fn debit_all(ledger: &Ledger, debits: Vec<Debit>) -> Result<Vec<Debited>> {
    let (reply, answer) = mpsc::channel();
    ledger.debit(debits, move |debited| reply.send(debited).expect("the test waits"));
    answer.recv().expect("every debit is answered")
}

pub(crate) fn debit(ledger: &Ledger, debit: Debit) -> Debited {
    debit_all(ledger, vec![debit]).expect("a good ledger").remove(0)
}

pub(crate) fn settle(ledger: &Ledger, id: &str, finish_reason: FinishReason) -> Result<Settled> {
    ledger.settle(Settlement::new(id, finish_reason))
}

pub(crate) fn balance(ledger: &Ledger, wallet: &str) -> Credits {
    ledger.wallet(wallet).expect("the wallet exists").balance
}

#[track_caller]
pub(crate) fn verify(ledger: &Ledger) {
    let report = ledger.verify().expect("verify runs");
    assert!(report.passed(), "{:#?}", report.problems);
}

/// What the files of a ledger hold, apart from locks, shared memory and empty logs.
pub(crate) fn snapshot(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let is_content = |path: &PathBuf| path.is_file() && !path.to_string_lossy().ends_with("-shm");
    let mut files: Vec<_> = std::fs::read_dir(directory)
        .expect("the directory exists")
        .map(|file| file.expect("readable").path())
        .filter(is_content)
        .map(|path| (path.clone(), std::fs::read(path).expect("readable")))
        .filter(|(_, content)| !content.is_empty())
        .collect();
    files.sort();
    files
}
