//! The writer: one thread a process through which everything that changes the file passes.
//!
//! Whatever is queued when the thread's turn comes becomes one transaction, so that one fsync pays for all of it.
//! Each job runs in a savepoint: one that is refused leaves the others alone. Nobody hears of a job's outcome before
//! the commit has returned.

use std::collections::HashMap;
use std::marker::PhantomData;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OptionalExtension};

use crate::chain::{self, Draft};
use crate::funds::Funds;
use crate::limits::Counter;
use crate::open_request::OpenRequest;
use crate::place::{LEAVE_PATIENCE, Place, WriteLock};
use crate::purse::{Event, EventKind, Purse};
use crate::recover::{self, Recovery, RunLock};
use crate::watch::Watch;
use crate::{Clock, GrantKind, LedgerError, Result, admin, delegation};

/// At most one commit in this time on average, one more after a pause: an fsync costs about as much, and a reader sees no
/// difference below it. The one more is for a short answer, which ends right after its first token.
const COMMIT_INTERVAL: Duration = Duration::from_millis(5);

/// How many jobs one transaction takes. Far more than an engine has sequences; it bounds the memory of a flood.
const BATCH_MAX: usize = 1024;

/// How often an active writer looks for requests of dead processes.
const RECOVERY_INTERVAL: Duration = Duration::from_secs(5);

/// Wallets kept in memory, beyond which they are read again.
const CACHED_WALLETS_MAX: usize = 4096;

/// Called on the writer thread when the transaction is over: `Ok` once it is durable.
pub(crate) type Finish = Box<dyn FnOnce(Result<()>) + Send>;

/// Something to be done in a transaction, or refused because there is none.
pub(crate) type Job = Box<dyn FnOnce(Result<&mut Tx<'_>>) -> Finish + Send>;

/// Makes a job of `work`, which changes all it wants or nothing, and of `reply`, which hears how it ended.
pub(crate) fn job<T: Send + 'static>(
    work: impl FnOnce(&mut Tx<'_>) -> Result<T> + Send + 'static,
    reply: impl FnOnce(Result<T>) + Send + 'static,
) -> Job {
    let reply = Reply(Some(reply), PhantomData);
    Box::new(move |tx| {
        let outcome = tx.and_then(|tx| tx.savepoint(work));
        Box::new(move |committed| reply.give(committed.and(outcome)))
    })
}

/// An answer that somebody waits for. Dropped without one, because the writer ended or panicked, it says so.
struct Reply<T, F: FnOnce(Result<T>)>(Option<F>, PhantomData<fn(T)>);

impl<T, F: FnOnce(Result<T>)> Reply<T, F> {
    fn give(mut self, answer: Result<T>) {
        if let Some(reply) = self.0.take() {
            reply(answer);
        }
    }
}

impl<T, F: FnOnce(Result<T>)> Drop for Reply<T, F> {
    fn drop(&mut self) {
        if let Some(reply) = self.0.take() {
            reply(Err(LedgerError::Closed));
        }
    }
}

/// The open transaction, and what the writer remembers between transactions.
pub(crate) struct Tx<'a> {
    /// The connection that the transaction is open on.
    pub(crate) conn: &'a Connection,
    /// The time of this commit: grants are judged with it.
    pub(crate) now_us: i64,
    /// This process in the rows of its requests.
    pub(crate) owner: &'a str,
    pub(crate) cache: &'a mut Cache,
    /// For whom the job acts, if not for the owner of the file: the id of a key.
    pub(crate) actor: Option<Arc<str>>,
    /// Why this transaction cannot be committed any more.
    failed: Option<LedgerError>,
}

/// What was read from the file, as long as nobody else has changed it.
#[derive(Default)]
pub(crate) struct Cache {
    /// SQLite's count of other connections' commits when this was read.
    data_version: Option<i64>,
    pub(crate) meta: Meta,
    pub(crate) requests: HashMap<String, OpenRequest>,
    pub(crate) purses: HashMap<i64, Purse>,
    pub(crate) limits: HashMap<i64, Counter>,
}

/// The modes of the ledger.
#[derive(Debug, Clone, Default)]
pub(crate) struct Meta {
    pub(crate) service: bool,
    pub(crate) bad: Option<String>,
    pub(crate) has_limits: bool,
    /// When the next delegation ends by itself.
    pub(crate) next_end_us: Option<i64>,
}

impl Cache {
    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.data_version = None;
        self.requests.clear();
        self.purses.clear();
        self.limits.clear();
    }
}

impl Tx<'_> {
    /// Runs `work` all or nothing.
    pub(crate) fn savepoint<T>(&mut self, work: impl FnOnce(&mut Tx<'_>) -> Result<T>) -> Result<T> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let outcome = run(self.conn, "SAVEPOINT job").and_then(|()| work(self));
        let ended = match &outcome {
            Ok(_) => run(self.conn, "RELEASE job"),
            Err(error) => {
                self.cache.clear();
                run(self.conn, "ROLLBACK TO job")
                    .and_then(|()| run(self.conn, "RELEASE job"))
                    .and_then(|()| self.refresh())
                    .and_then(|()| self.mark(error))
            }
        };
        // A full disk or a broken one ends the whole transaction, not just this job.
        if self.conn.is_autocommit() || ended.is_err() {
            let error = outcome.as_ref().err().cloned().or(ended.err()).unwrap_or(LedgerError::Busy);
            self.failed = Some(error.clone());
            return Err(error);
        }
        outcome
    }

    /// Marks the ledger if this is how a job found that it contradicts itself.
    fn mark(&mut self, error: &LedgerError) -> Result<()> {
        match error {
            LedgerError::Bad { reason } if self.cache.meta.bad.is_none() => admin::set_bad(self, Some(reason.clone())),
            _ => Ok(()),
        }
    }

    /// Refuses to go on with a ledger that is marked bad.
    pub(crate) fn check_good(&self) -> Result<()> {
        match &self.cache.meta.bad {
            Some(reason) => Err(LedgerError::Bad { reason: reason.clone() }),
            None => Ok(()),
        }
    }

    /// The purse of a wallet, as of now. Put it back with [`Tx::keep_purse`]; a job that fails just drops it.
    pub(crate) fn take_purse(&mut self, wallet: i64) -> Result<Purse> {
        let mut purse = match self.cache.purses.remove(&wallet) {
            Some(purse) => purse,
            None => Purse::load(self.conn, wallet)?,
        };
        let mut events = purse.pass_time(self.now_us);
        purse.number(&mut events, |grant, recurrence| admin::insert_given(self, wallet, grant, recurrence))?;
        for event in events {
            self.write_event(wallet, &purse, &event, None)?;
        }
        Ok(purse)
    }

    /// Remembers a purse. Its changes are written by [`Tx::save_purse`], or by whoever keeps it.
    pub(crate) fn keep_purse(&mut self, wallet: i64, purse: Purse) {
        self.cache.purses.insert(wallet, purse);
    }

    /// The purse of a wallet and those that it draws on, as of now, to be spent on a model. Put them back with [`Tx::keep_funds`].
    pub(crate) fn take_funds(&mut self, wallet: i64, model: &Arc<str>) -> Result<Funds> {
        let mut levels = Vec::with_capacity(1);
        let mut next = Some(wallet);
        while let Some(wallet) = next {
            let purse = self.take_purse(wallet)?;
            next = purse.draw.as_ref().map(|draw| draw.parent);
            levels.push((wallet, purse));
        }
        Ok(Funds { levels, model: Some(Arc::clone(model)) })
    }

    /// Remembers them, as [`Tx::keep_purse`] does.
    pub(crate) fn keep_funds(&mut self, funds: Funds) {
        for (wallet, purse) in funds.levels {
            self.keep_purse(wallet, purse);
        }
    }

    /// Writes what changed of them and remembers them.
    pub(crate) fn save_funds(&mut self, funds: Funds) -> Result<()> {
        funds.levels.into_iter().try_for_each(|(wallet, purse)| self.save_purse(wallet, purse))
    }

    /// Writes a purse's changes and remembers it.
    pub(crate) fn save_purse(&mut self, wallet: i64, mut purse: Purse) -> Result<()> {
        purse.save(self.conn, wallet, self.now_us)?;
        self.keep_purse(wallet, purse);
        Ok(())
    }

    /// Writes the entry of a grant that became effective or expired. `request` names the one whose money came back too
    /// late, if that is how it expired.
    pub(crate) fn write_event(&self, wallet: i64, purse: &Purse, event: &Event, request: Option<&str>) -> Result<()> {
        let grant = purse.grant(event.grant).expect("events are of grants that the purse has");
        let (kind, other, signed) = match event.kind {
            EventKind::Activate if grant.kind == GrantKind::Starter => ("starter", chain::ISSUED, event.amount),
            EventKind::Activate => ("grant", chain::ISSUED, event.amount),
            EventKind::Repay => ("repay", wallet, -event.amount),
            EventKind::Rollover => ("rollover", wallet, -event.amount),
            EventKind::Expire => ("expire", chain::EXPIRED, -event.amount),
            EventKind::Void => ("void", chain::ISSUED, -event.amount),
        };
        let (memo, terms) = match event.kind {
            EventKind::Activate => (self.memo_digest(grant.seq)?, Some(chain::terms_digest(self.conn, grant.seq)?)),
            EventKind::Rollover => (None, event.to.map(|to| chain::terms_digest(self.conn, to)).transpose()?),
            EventKind::Repay | EventKind::Expire | EventKind::Void => (None, None),
        };
        let key = match event.kind {
            EventKind::Activate | EventKind::Repay | EventKind::Rollover => format!("{kind}:{}", grant.id),
            // A grant can expire several times: what is held comes back late, and clocks are set back.
            EventKind::Expire | EventKind::Void => format!("{kind}:{}:{}", grant.id, chain::head(self.conn)?.entry + 1),
        };
        let draft = Draft {
            kind,
            idempotency_key: &key,
            created_us: self.now_us,
            effective_us: event.at_us,
            request_id: request,
            memo_digest: memo,
            subject_digest: terms,
            postings: &[(other, event.to, -signed), (wallet, Some(grant.seq), signed)],
        };
        chain::append(self.conn, &draft)?;
        Ok(())
    }

    /// Whether the time of a delegation is over that nobody ended yet.
    fn is_end_due(&self) -> bool {
        self.cache.meta.bad.is_none() && self.cache.meta.next_end_us.is_some_and(|end_us| end_us <= self.now_us)
    }

    /// What the chain keeps of a grant's memo.
    pub(crate) fn memo_digest(&self, grant: i64) -> Result<Option<chain::Hash>> {
        let mut statement = self.conn.prepare_cached("SELECT salt, text FROM memo WHERE allowance = ?1")?;
        let memo = statement.query_row([grant], |row| Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, String>(1)?)));
        Ok(memo.optional()?.map(|(salt, text)| chain::salted(&salt, &text)))
    }

    /// Forgets what others may have changed since the last transaction.
    fn refresh(&mut self) -> Result<()> {
        let version = self.conn.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))?;
        if self.cache.data_version != Some(version) || self.cache.purses.len() > CACHED_WALLETS_MAX {
            self.cache.clear();
            self.cache.meta = self
                .conn
                .prepare_cached("SELECT service, bad, EXISTS (SELECT 1 FROM quota), (SELECT min(expires_us) FROM delegation) FROM meta WHERE id = 1")?
                .query_row([], |row| {
                    let (service, bad, has_limits) = (row.get(0)?, row.get(1)?, row.get(2)?);
                    Ok(Meta { service, bad, has_limits, next_end_us: row.get(3)? })
                })
                .optional()?
                .ok_or_else(|| LedgerError::Bad { reason: "its row of modes is missing".into() })?;
            self.cache.data_version = Some(version);
        }
        Ok(())
    }
}

/// The writer thread's state.
pub(crate) struct Writer {
    pub(crate) conn: Connection,
    pub(crate) place: Place,
    pub(crate) lock: Arc<WriteLock>,
    pub(crate) run_lock: RunLock,
    pub(crate) clock: Clock,
    pub(crate) cache: Cache,
    pub(crate) recovery: Recovery,
    /// `None`: not yet.
    pub(crate) last_recovery: Option<Instant>,
    /// A job panicked: what the writer remembers may be half changed.
    pub(crate) broken: bool,
    pub(crate) watch: Watch,
}

impl Writer {
    /// The first transaction: marks a ledger that contradicts itself, or else settles what dead processes left. If that
    /// cannot be written now, on a full disk say, a later transaction will.
    pub(crate) fn start(&mut self, contradiction: Option<String>) -> Result<()> {
        let Some(reason) = contradiction else {
            self.transaction(|_| {}).ok();
            return Ok(());
        };
        self.last_recovery = Some(Instant::now());
        let mut marked = Ok(());
        let committed = self.transaction(|tx| {
            marked = tx.savepoint(|tx| match tx.cache.meta.bad {
                Some(_) => Ok(()),
                None => admin::set_bad(tx, Some(reason)),
            });
        });
        committed.and(marked)
    }

    /// Works until every sender is gone, or a job panics: then whatever is queued is answered
    /// [`LedgerError::Closed`], by being dropped, and so is whatever comes later.
    pub(crate) fn run(mut self, jobs: &Receiver<Job>) {
        let mut due = Instant::now();
        while !self.broken
            && let Ok(first) = jobs.recv()
        {
            let mut batch = vec![first];
            gather(jobs, &mut batch, due);
            due = (due + COMMIT_INTERVAL).max(Instant::now());
            self.commit(batch);
        }
        self.close();
    }

    /// Runs a batch in one transaction, makes it durable, and tells everybody.
    pub(crate) fn commit(&mut self, batch: Vec<Job>) {
        let mut finishes = Vec::with_capacity(batch.len());
        let outcome = self.transaction(|tx| finishes.extend(batch.into_iter().map(|job| job(Ok(tx)))));
        for finish in finishes {
            // One reply that panics must not keep the others from being given.
            self.broken |= panic::catch_unwind(AssertUnwindSafe(|| finish(outcome.clone()))).is_err();
        }
    }

    /// Runs `work` between BEGIN and COMMIT, in this process's turn. If the transaction cannot even begin, `work` still
    /// runs, and each of its savepoints fails with the reason. If it panics, everything is rolled back.
    fn transaction(&mut self, work: impl FnOnce(&mut Tx<'_>)) -> Result<()> {
        let lock = Arc::clone(&self.lock);
        let turn = lock.hold();
        let begun = turn.as_ref().map(|_| ()).map_err(Clone::clone);
        let begun = begun.and_then(|()| self.watch.check()).and_then(|()| run(&self.conn, "BEGIN IMMEDIATE"));
        let mut tx = Tx {
            conn: &self.conn,
            now_us: (self.clock)(),
            owner: &self.run_lock.owner,
            cache: &mut self.cache,
            actor: None,
            failed: None,
        };
        tx.failed = begun.and_then(|()| tx.refresh()).err();
        let is_time = self.recovery == Recovery::Settle
            && self.last_recovery.is_none_or(|last| last.elapsed() >= RECOVERY_INTERVAL);
        let ran = panic::catch_unwind(AssertUnwindSafe(|| {
            let mut dead = Vec::new();
            if self.recovery == Recovery::Settle && tx.is_end_due() {
                // What cannot be ended now is left alone; whoever writes next tries again.
                tx.savepoint(delegation::end_due).ok();
            }
            if is_time {
                self.last_recovery = Some(Instant::now());
                dead = recover::settle_dead(&mut tx, &self.place);
            }
            work(&mut tx);
            dead
        }));
        let dead = ran.unwrap_or_else(|_| {
            self.broken = true;
            tx.failed = Some(LedgerError::Closed);
            Vec::new()
        });
        let outcome = match tx.failed.take() {
            Some(error) => Err(error),
            None => run(&self.conn, "COMMIT"),
        };
        if outcome.is_err() {
            self.cache.clear();
            if !self.conn.is_autocommit() {
                run(&self.conn, "ROLLBACK").ok();
            }
        } else {
            self.watch.committed();
            recover::bury(dead);
        }
        outcome
    }

    /// Settles what this process left open, and lets go of the file in its turn, because SQLite folds the log into the
    /// file when the last one leaves.
    fn close(mut self) {
        let _settled = self.transaction(|tx| {
            recover::settle_own(tx).ok();
        });
        let turn = self.lock.hold_within(LEAVE_PATIENCE);
        if !self.watch.may_fold() {
            self.conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).ok();
        }
        self.conn.close().ok();
        drop(turn);
        self.run_lock.release();
    }
}

/// Waits until the next commit is due, and takes all that came until then.
fn gather(jobs: &Receiver<Job>, batch: &mut Vec<Job>, due: Instant) {
    while batch.len() < BATCH_MAX {
        match jobs.recv_timeout(due.saturating_duration_since(Instant::now())) {
            Ok(job) => batch.push(job),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn run(conn: &Connection, sql: &str) -> Result<()> {
    conn.prepare_cached(sql)?.execute([])?;
    Ok(())
}
