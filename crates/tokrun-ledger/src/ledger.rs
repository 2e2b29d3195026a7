//! The handle that everybody holds.

use std::fmt;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use jiff::Timestamp;
use rusqlite::Connection;

use crate::place::{LEAVE_PATIENCE, Place, WriteLock};
use crate::recover::{self, Recovery, RunLock};
use crate::watch::Watch;
use crate::writer::{Cache, Job, Tx, Writer, job};
use crate::{
    Admission, Admitted, Anchor, Correction, Debit, Debited, Deposit, ExportedEntry, ExportedRequest, Forecast,
    GrantRequest, GrantView, Health, ImportRow, ImportedRow, KeyView, LedgerError, NewWallet, RecurringGrant,
    RecurringView, Refund, Result, Reversed, Settled, Settlement, Share, Statement, StatementQuery, Transfer,
    Transferred, UsageQuery, UsageRow, VerifyReport, Vesting, WalletChange, WalletView, admin, anchor, backup, chain,
    deposit, export, forecast, health, import, query, record, recurrence, request, reversal, statement, store,
    transfer, usage, verify, wallets,
};

/// Microseconds since 1970 UTC. Read at every commit, and whenever something is shown.
pub type Clock = Arc<dyn Fn() -> i64 + Send + Sync>;

/// Jobs that may wait for the writer before callers do.
const QUEUE_JOBS: usize = 1024;

/// An open ledger. Cloning it is cheap; all clones share one writer thread, which ends with the last of them. Requests
/// that are open then are settled with what they were debited.
///
/// Any number of processes, and of `Ledger`s within one, may have the same file open.
#[derive(Clone)]
pub struct Ledger {
    inner: Arc<Inner>,
    /// See [`Ledger::acting_for`].
    actor: Option<Arc<str>>,
}

struct Inner {
    place: Place,
    clock: Clock,
    /// Taken out when the ledger is dropped.
    reader: Mutex<Option<Connection>>,
    /// `None` if the ledger is open for reading alone.
    writer: Option<WriterHandle>,
    lock: Option<Arc<WriteLock>>,
}

struct WriterHandle {
    jobs: SyncSender<Job>,
    thread: JoinHandle<()>,
}

impl From<Inner> for Ledger {
    fn from(inner: Inner) -> Ledger {
        Ledger { inner: Arc::new(inner), actor: None }
    }
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Ledger").field(&self.inner.place.file).finish()
    }
}

/// Opening.
impl Ledger {
    /// Opens the ledger at `path`, creating it, readable by its owner alone, and its directory if they do not exist.
    /// Settles the requests of processes that died.
    ///
    /// # Errors
    /// [`LedgerError::NewerSchema`], [`NotALedger`](LedgerError::NotALedger), [`Corrupt`](LedgerError::Corrupt),
    /// [`HardLinked`](LedgerError::HardLinked), [`NetworkFilesystem`](LedgerError::NetworkFilesystem), [`ReadOnly`](LedgerError::ReadOnly),
    /// [`DiskFull`](LedgerError::DiskFull): the file is left as it was. A ledger that contradicts itself does open, and
    /// refuses to spend with [`LedgerError::Bad`].
    pub fn open(path: &Path) -> Result<Ledger> {
        Ledger::open_with_clock(path, Arc::new(|| Timestamp::now().as_microsecond()))
    }

    /// As [`Ledger::open`], with another clock.
    pub fn open_with_clock(path: &Path, clock: Clock) -> Result<Ledger> {
        Ledger::open_to(path, clock, Recovery::Settle)
    }

    /// As [`Ledger::open`], and leaves the requests of processes that died as they are: what is to be
    /// [verified](Ledger::verify) should be seen before anything of it is settled. The next ordinary opening settles
    /// them.
    ///
    /// # Errors
    /// As [`Ledger::open`].
    pub fn open_unsettled(path: &Path) -> Result<Ledger> {
        Ledger::open_to(path, Arc::new(|| Timestamp::now().as_microsecond()), Recovery::Leave)
    }

    fn open_to(path: &Path, clock: Clock, recovery: Recovery) -> Result<Ledger> {
        let place = Place::make(path)?;
        place.refuse_network()?;
        let lock = Arc::new(WriteLock::open(&place)?);
        let turn = lock.hold()?;
        let conn = store::open(&place, clock())?;
        let contradiction = store::quick_check(&conn)?;
        let watch = Watch::start(&place);
        let run_lock = RunLock::claim(&place)?;
        let reader = store::open_reader(&place)?;
        drop(turn);

        let mut writer = Writer {
            conn,
            place: place.clone(),
            lock: Arc::clone(&lock),
            run_lock,
            clock: Arc::clone(&clock),
            cache: Cache::default(),
            recovery,
            last_recovery: None,
            broken: false,
            watch,
        };
        writer.start(contradiction)?;
        if recovery == Recovery::Settle {
            recover::sweep(&place);
        }
        let (jobs, queue) = mpsc::sync_channel(QUEUE_JOBS);
        let thread = thread::Builder::new()
            .name("ledger-writer".into())
            .spawn(move || writer.run(&queue))
            .map_err(|source| LedgerError::io("start the writer of", &place.file, source))?;
        let writer = Some(WriterHandle { jobs, thread });
        Ok(Inner { place, clock, reader: Mutex::new(Some(reader)), writer, lock: Some(lock) }.into())
    }

    /// Opens an existing ledger, or a backup, to look at it: on a disk that cannot be written, say. Whatever would write
    /// answers [`LedgerError::ReadOnly`].
    pub fn open_read_only(path: &Path) -> Result<Ledger> {
        let place = Place::at(path)?;
        if !place.file.exists() {
            let reason = "there is no such file".into();
            return Err(LedgerError::NotALedger { path: place.file, reason });
        }
        // So that nobody closes the file, and with it the log, just now. Without the right to lock there is no writer.
        let lock = WriteLock::open(&place).ok().map(Arc::new);
        let turn = lock.as_ref().map(|lock| lock.hold()).transpose()?;
        let reader = store::open_reader(&place)?;
        drop(turn);
        let clock: Clock = Arc::new(|| Timestamp::now().as_microsecond());
        Ok(Inner { place, clock, reader: Mutex::new(Some(reader)), writer: None, lock }.into())
    }

    /// The same ledger for what a service does for the owner of a key: what is agreed on or given through it is recorded
    /// with the key's id. Whether they [may](crate::Role::may) is for the service to ask.
    pub fn acting_for(&self, key: &KeyView) -> Ledger {
        Ledger { inner: Arc::clone(&self.inner), actor: Some(key.id.as_str().into()) }
    }

    /// The file, resolved.
    pub fn path(&self) -> &Path {
        &self.inner.place.file
    }
}

/// Requests. What blocks, or waits for room in the queue, must not be called from a reply.
impl Ledger {
    /// Admits a request: holds its prompt at the full price and one output token. Returns once that is durable.
    ///
    /// # Errors
    /// [`LedgerError::UnknownWallet`], [`Frozen`](LedgerError::Frozen), [`Exhausted`](LedgerError::Exhausted),
    /// [`DuplicateRequest`](LedgerError::DuplicateRequest), [`InvalidRequest`](LedgerError::InvalidRequest),
    /// [`Bad`](LedgerError::Bad).
    pub fn admit(&self, admission: Admission) -> Result<Admitted> {
        self.write(move |tx| request::admit(tx, &admission))
    }

    /// As [`Ledger::admit`], answering through `reply`, as [`Ledger::debit`] does.
    pub fn admit_then(&self, admission: Admission, reply: impl FnOnce(Result<Admitted>) + Send + 'static) {
        self.queue(job(move |tx| request::admit(tx, &admission), reply));
    }

    /// Queues what the running requests produced since their last debits. They share a commit, at most one in 5 ms, with
    /// whatever else is queued. `reply` is called on the writer thread once it is durable (or failed: then nothing is
    /// debited, and nothing may be delivered), with one answer per debit in their order. It should return at once.
    ///
    /// A token is paid whole or not at all, if need be out of several grants.
    pub fn debit(&self, debits: Vec<Debit>, reply: impl FnOnce(Result<Vec<Debited>>) + Send + 'static) {
        self.queue(job(move |tx| request::debit(tx, &debits), reply));
    }

    /// Settles a request, once: one entry, one row in the log. A request that was never debited costs nothing. Settling
    /// it again changes nothing and gives what was recorded.
    ///
    /// # Errors
    /// [`LedgerError::UnknownRequest`] if it was never admitted.
    pub fn settle(&self, settlement: Settlement) -> Result<Settled> {
        self.write(move |tx| request::settle(tx, &settlement.into()))
    }

    /// As [`Ledger::settle`], answering through `reply`, as [`Ledger::debit`] does.
    pub fn settle_then(&self, settlement: Settlement, reply: impl FnOnce(Result<Settled>) + Send + 'static) {
        self.queue(job(move |tx| request::settle(tx, &settlement.into()), reply));
    }
}

/// Wallets. Only the owner of the file, and the superuser, may change them: everybody else is answered
/// [`LedgerError::NotOwner`].
impl Ledger {
    /// Creates a person's empty wallet. With an idempotency key, repeating it gives the wallet of the first time.
    pub fn create_wallet(&self, name: &str, idempotency_key: Option<String>) -> Result<WalletView> {
        self.open_wallet(NewWallet { idempotency_key, ..NewWallet::new(name) })
    }

    /// Creates an empty wallet of any kind, anywhere in the tree.
    ///
    /// # Errors
    /// [`LedgerError::InvalidWallet`] says which of its terms cannot be.
    pub fn open_wallet(&self, wallet: NewWallet) -> Result<WalletView> {
        self.administer(move |tx| wallets::create(tx, &wallet))
    }

    /// Changes a wallet's terms, all that are named or none. With an idempotency key, repeating it changes nothing more.
    ///
    /// # Errors
    /// [`LedgerError::InvalidWallet`] says which of them cannot be.
    pub fn change_wallet(&self, name: &str, change: WalletChange) -> Result<WalletView> {
        let name = name.to_owned();
        self.administer(move |tx| wallets::change(tx, &name, &change))
    }

    /// Gives an allowance. With an idempotency key, repeating it grants nothing more.
    pub fn grant(&self, request: GrantRequest) -> Result<GrantView> {
        self.administer(move |tx| admin::grant(tx, &request))
    }

    /// Gives an allowance in parts, with the calendar: what it returns, in the order of their times. With an idempotency
    /// key, repeating it grants nothing more. Their common id, [made void](Ledger::void), ends what has not vested.
    pub fn grant_vesting(&self, request: GrantRequest, vesting: Vesting) -> Result<Vec<GrantView>> {
        self.administer(move |tx| admin::grant_vesting(tx, &request, vesting))
    }

    /// Gives every wallet right under one its share of an amount, as grants, all or none. With an idempotency key,
    /// repeating it grants nothing more.
    pub fn deposit(&self, request: Deposit) -> Result<Vec<Share>> {
        self.administer(move |tx| deposit::deposit(tx, &request))
    }

    /// Gives an allowance again and again: what time has made due is written by whoever writes next, with the amounts and
    /// times that it has whether or not a process ran then. With an idempotency key, repeating it grants nothing more.
    pub fn grant_every(&self, request: RecurringGrant) -> Result<RecurringView> {
        self.administer(move |tx| recurrence::grant_every(tx, &request))
    }

    /// Creates, changes and fills many wallets: all that the rows say, or nothing. With `dry_run` nothing is changed, and the
    /// answer is what would have been.
    ///
    /// # Errors
    /// [`LedgerError::Row`] names the row and the column that cannot be.
    pub fn import(&self, rows: Vec<ImportRow>, dry_run: bool) -> Result<Vec<ImportedRow>> {
        self.administer(move |tx| import::import(tx, &rows, dry_run))
    }

    /// Moves an amount from one wallet to another. With an idempotency key, repeating it moves nothing more.
    ///
    /// # Errors
    /// [`LedgerError::Exhausted`] if the first has not so much of its own, [`Frozen`](LedgerError::Frozen),
    /// [`InvalidGrant`](LedgerError::InvalidGrant).
    pub fn transfer(&self, request: Transfer) -> Result<Transferred> {
        self.administer(move |tx| transfer::transfer(tx, &request))
    }

    /// Pays a settled request back to the grants that paid it, wholly or in part. With an idempotency key, repeating it
    /// pays nothing more.
    ///
    /// # Errors
    /// [`LedgerError::NotSettled`], [`InvalidReversal`](LedgerError::InvalidReversal) for more than was paid.
    pub fn refund(&self, request: Refund) -> Result<Reversed> {
        self.administer(move |tx| reversal::refund(tx, &request))
    }

    /// Takes back what is left of a grant made by mistake, or of a transfer: its giver gets it. With an idempotency key,
    /// repeating it takes nothing more.
    ///
    /// # Errors
    /// [`LedgerError::UnknownGrant`], [`InvalidReversal`](LedgerError::InvalidReversal) for more than is left.
    pub fn correct(&self, request: Correction) -> Result<Reversed> {
        self.administer(move |tx| reversal::correct(tx, &request))
    }

    /// Makes a grant void: what is left of it is gone, what requests have of it they may spend. Of a recurring grant's id:
    /// no more of it is given. Again, it changes nothing, with an idempotency key or without.
    ///
    /// # Errors
    /// [`LedgerError::UnknownGrant`].
    pub fn void(&self, grant_id: &str, idempotency_key: Option<String>) -> Result<WalletView> {
        let id = grant_id.to_owned();
        self.administer(move |tx| admin::void(tx, &id, idempotency_key.as_deref()))
    }

    /// Refuses new requests of the wallet, and of all under it, from now on; what runs may end. With an idempotency key,
    /// repeating it freezes nothing that was thawed meanwhile.
    pub fn freeze(&self, name: &str, idempotency_key: Option<String>) -> Result<WalletView> {
        let name = name.to_owned();
        self.administer(move |tx| admin::set_frozen(tx, &name, true, idempotency_key.as_deref()))
    }

    /// Lets a frozen wallet spend again. With an idempotency key, repeating it thaws nothing that was frozen meanwhile.
    pub fn thaw(&self, name: &str, idempotency_key: Option<String>) -> Result<WalletView> {
        let name = name.to_owned();
        self.administer(move |tx| admin::set_frozen(tx, &name, false, idempotency_key.as_deref()))
    }

    /// Marks the ledger as a service's, in which no starter grant creates a wallet.
    pub fn set_service(&self, service: bool) -> Result<()> {
        self.administer(move |tx| admin::set_service(tx, service))
    }

    /// Every wallet, by name.
    pub fn wallets(&self) -> Result<Vec<WalletView>> {
        self.read(query::wallets)
    }

    /// One wallet.
    pub fn wallet(&self, name: &str) -> Result<WalletView> {
        self.read(|conn, now_us| query::wallet(conn, name, now_us))
    }

    /// How long a wallet's own grants last at the pace of the last four weeks; `None` if that cannot be told yet.
    pub fn forecast(&self, name: &str) -> Result<Option<Forecast>> {
        self.read(|conn, now_us| forecast::forecast(conn, name, now_us))
    }

    /// The entries of a wallet that took effect in `[from, to)`; open ends reach to the first and the last.
    pub fn statement(&self, name: &str, from: Option<Timestamp>, to: Option<Timestamp>) -> Result<Statement> {
        self.statement_of(&StatementQuery { from, to, ..StatementQuery::new(name) })
    }

    /// A statement of a wallet, or of all wallets under it together.
    pub fn statement_of(&self, query: &StatementQuery) -> Result<Statement> {
        self.read(|conn, now_us| statement::statement(conn, query, now_us))
    }

    /// What settled requests used, in the order of the groups' keys.
    pub fn usage(&self, usage_query: &UsageQuery) -> Result<Vec<UsageRow>> {
        self.read(|conn, _| usage::usage(conn, usage_query))
    }
}

/// The books for other programs. Writers go on meanwhile; the state that is read is the one of the first row.
impl Ledger {
    /// What names this ledger; opaque.
    pub fn id(&self) -> Result<String> {
        self.read(|conn, _| Ok(conn.query_row("SELECT ledger_id FROM meta WHERE id = 1", [], |row| row.get(0))?))
    }

    /// Shows each entry that took effect in `[from, to)` to `visit`, in the order of the chain, until it breaks off. What
    /// time has made due is an entry once somebody writes.
    pub fn export_entries(
        &self,
        from: Option<Timestamp>,
        to: Option<Timestamp>,
        visit: impl FnMut(&ExportedEntry) -> ControlFlow<()>,
    ) -> Result<()> {
        self.read(|conn, _| export::entries(conn, from, to, visit))
    }

    /// Shows each request that was settled in `[from, to)` to `visit`, until it breaks off.
    pub fn export_requests(
        &self,
        from: Option<Timestamp>,
        to: Option<Timestamp>,
        visit: impl FnMut(&ExportedRequest) -> ControlFlow<()>,
    ) -> Result<()> {
        self.read(|conn, _| export::requests(conn, from, to, visit))
    }
}

/// Care.
impl Ledger {
    /// Checks everything there is to check, while others go on writing. A failure marks the ledger bad, so that it spends
    /// nothing; a success takes that mark away. A ledger open for reading alone is checked and not marked, nor is one
    /// whose disk takes nothing any more.
    pub fn verify(&self) -> Result<VerifyReport> {
        let report = verify::verify(&|| store::open_reader(&self.inner.place))?;
        let mark = report.mark();
        if self.inner.writer.is_some() && report.mark_before != mark {
            let marked = self.write(move |tx| admin::set_bad(tx, mark));
            // What was found must be told even if it cannot be written down.
            if report.passed() {
                marked?;
            }
        }
        Ok(report)
    }

    /// The head of the chain, to be kept elsewhere.
    pub fn anchor(&self) -> Result<Anchor> {
        self.read(|conn, _| anchor::now(conn))
    }

    /// As [`Ledger::verify`], and checks that nothing up to an anchor was rewritten. An anchor that does not fit marks
    /// nothing: it may be the anchor that is wrong.
    pub fn check_anchor(&self, anchor: &Anchor) -> Result<VerifyReport> {
        let mut report = self.verify()?;
        self.read(|conn, _| anchor::check(conn, anchor, &mut report))?;
        Ok(report)
    }

    /// Copies the ledger, consistent and durable, to a file that does not exist yet.
    pub fn backup(&self, to: &Path) -> Result<()> {
        let reader = self.inner.reader.lock().unwrap_or_else(PoisonError::into_inner);
        backup::backup(reader.as_ref().ok_or(LedgerError::Closed)?, to)
    }

    /// What `doctor` wants to know.
    pub fn health(&self) -> Result<Health> {
        self.read(|conn, _| health::health(conn, self.path()))
    }
}

impl Ledger {
    /// As [`Ledger::write`], for the owner of the file alone.
    fn administer<T: Send + 'static>(&self, work: impl FnOnce(&mut Tx<'_>) -> Result<T> + Send + 'static) -> Result<T> {
        if self.inner.writer.is_some() {
            self.inner.place.require_owner()?;
        }
        self.write(move |tx| {
            let before = chain::head(tx.conn)?.entry;
            let outcome = work(tx)?;
            record::acted(tx, before)?;
            Ok(outcome)
        })
    }

    /// Does `work` on the writer thread and waits until it is durable.
    fn write<T: Send + 'static>(&self, work: impl FnOnce(&mut Tx<'_>) -> Result<T> + Send + 'static) -> Result<T> {
        let (reply, answer): (_, Receiver<Result<T>>) = mpsc::sync_channel(1);
        let actor = self.actor.clone();
        let work = move |tx: &mut Tx<'_>| {
            tx.actor = actor;
            let outcome = work(tx);
            tx.actor = None;
            outcome
        };
        // Nobody hears the answer only if the caller's thread is gone.
        self.queue(job(work, move |outcome| drop(reply.send(outcome))));
        answer.recv().unwrap_or(Err(LedgerError::Closed))
    }

    fn queue(&self, job: Job) {
        match &self.inner.writer {
            // A job that cannot be sent is dropped, and answers that the writer is gone.
            Some(writer) => drop(writer.jobs.send(job)),
            None => job(Err(LedgerError::ReadOnly { path: self.inner.place.file.clone() }))(Ok(())),
        }
    }

    /// Reads one consistent state.
    fn read<T>(&self, work: impl FnOnce(&Connection, i64) -> Result<T>) -> Result<T> {
        let reader = self.inner.reader.lock().unwrap_or_else(PoisonError::into_inner);
        let conn = reader.as_ref().ok_or(LedgerError::Closed)?;
        let transaction = conn.unchecked_transaction()?;
        work(&transaction, (self.inner.clock)())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Before the writer's connection, so that the writer is the last to leave and folds the log into the file.
        let turn = self.lock.as_ref().and_then(|lock| lock.hold_within(LEAVE_PATIENCE).ok());
        self.reader.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        drop(turn);
        if let Some(WriterHandle { jobs, thread }) = self.writer.take() {
            drop(jobs);
            // The last handle may be one that a reply held, and a thread cannot wait for itself.
            if thread.thread().id() != thread::current().id() {
                thread.join().ok();
            }
        }
    }
}

mod agreed;
mod browse;
mod people;

#[cfg(test)]
mod tests;
