//! Many processes on one file: sharing it fairly, dying at any instant, and settling for each other.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tokrun_ledger::{
    Admission, Credits, DrawTerms, FinishReason, GrantRequest, Ledger, LedgerError, MICRO, NewWallet, Settlement,
    StarterGrant, UsageBy, UsageQuery, WalletChange, WalletKind,
};
use uuid::Uuid;

use crate::common::{
    Home, admission, balance, credits, debit, debit_all, first_debit, fund, next_debit, settle, verify,
};

const LEDGER: &str = "TOKRUN_TEST_LEDGER";
const TASK: &str = "TOKRUN_TEST_TASK";
const PROMPT_TOKENS: u64 = 10;
/// Output tokens of a worker's debit.
const STEP_TOKENS: u32 = 3;

/// What the other tests start in processes of their own. It tells its parent what it did on lines that begin with `@`.
#[test]
#[ignore = "run by the other tests of this file, in processes of their own"]
fn worker() {
    let path = std::env::var_os(LEDGER).expect("a parent test starts this one");
    let path = Path::new(&path);
    say("ready");
    match std::env::var(TASK).expect("a parent test gives it a task").as_str() {
        "one request" => spend(&open(path), Some(1)),
        "requests for ever" => spend(&open(path), None),
        "open requests" => leave_open(&open(path)),
        "recover" => drop(open(path)),
        "come and go" => (0..10).for_each(|_| first_request(path)),
        "until the disk is full" => spend_until_it_fails(&open(path)),
        "not the owner" => administer_for_another(&open(path)),
        "bank" => crate::bank::trade_for_ever(&open(path)),
        "hold the lock" => hold_the_lock(path),
        task => panic!("{task}?"),
    }
}

#[test]
fn sixteen_processes_share_a_wallet_that_pays_for_half_of_them() {
    let home = Home::new();
    let ledger = open(&home.path());
    let wanted = i64::try_from(PROMPT_TOKENS).unwrap() + i64::from(STEP_TOKENS) * 20;
    let funded = 16 * wanted / 2;
    fund(&ledger, "ada", funded);
    let busy = AtomicBool::new(true);
    let (reports, worst_fsync) = thread::scope(|scope| {
        let disk = scope.spawn(|| worst_fsync_while(&busy, home.directory.path()));
        let workers: Vec<Worker> = (0..16).map(|_| Worker::start(&home.path(), "one request")).collect();
        let reports: Vec<Vec<String>> = workers.into_iter().map(Worker::finish).collect();
        busy.store(false, Ordering::SeqCst);
        (reports, disk.join().unwrap())
    });

    let paid: i64 = reports.iter().map(|report| paid(report).iter().map(|(_, tokens)| tokens).sum::<i64>()).sum();
    let left = balance(&ledger, "ada");
    assert_eq!(credits(funded - paid), left, "granted = delivered + left");
    assert!(
        left >= Credits::ZERO && left.micro() < (PROMPT_TOKENS as i64 + 1) * MICRO,
        "nothing affordable is refused"
    );
    assert_eq!(ledger.wallet("ada").unwrap().in_flight, Credits::ZERO);
    verify(&ledger);

    let waits = reports.iter().flatten().filter_map(|line| line.strip_prefix("waited "));
    let longest = waits.map(|us| Duration::from_micros(us.parse().unwrap())).max().unwrap();
    // Nobody waits for more than everybody's turn; on a disk that is busy with other things a turn takes what it takes.
    let fair = Duration::from_millis(500).max(worst_fsync * 16);
    assert!(longest < fair, "somebody waited {longest:?}, an fsync {worst_fsync:?}");
}

#[test]
fn eight_processes_of_a_member_exceed_neither_its_cap_nor_its_overdraft() {
    let home = Home::new();
    let ledger = open(&home.path());
    let (own, pool, cap, overdraft) = (20, 1000, 200, 5);
    fund(&ledger, "team", pool);
    ledger.change_wallet("team", WalletChange { kind: Some(WalletKind::Team), ..WalletChange::default() }).unwrap();
    let ada = NewWallet {
        parent: Some("team".into()),
        draw: Some(DrawTerms { cap: Some(credits(cap)), every: None }),
        overdraft: credits(overdraft),
        ..NewWallet::new("ada")
    };
    ledger.open_wallet(ada).unwrap();
    ledger.grant(GrantRequest::new("ada", credits(own))).unwrap();
    let workers: Vec<Worker> = (0..8).map(|_| Worker::start(&home.path(), "one request")).collect();
    let reports: Vec<Vec<String>> = workers.into_iter().map(Worker::finish).collect();

    let paid: i64 = reports.iter().map(|report| paid(report).iter().map(|(_, tokens)| tokens).sum::<i64>()).sum();
    let (ada, team) = (ledger.wallet("ada").unwrap(), ledger.wallet("team").unwrap());
    assert!(ada.balance >= credits(-overdraft) && ada.drawn <= credits(cap), "{ada:?}");
    assert_eq!(team.balance, credits(pool).checked_sub(ada.drawn).unwrap());
    let spent = credits(own).checked_sub(ada.balance).unwrap().checked_add(ada.drawn).unwrap();
    assert_eq!(spent, credits(paid), "what all levels gave is what was delivered");
    let left = own + cap + overdraft - paid;
    assert!((0..PROMPT_TOKENS as i64 + 1).contains(&left), "nothing affordable is refused: {left} left");
    verify(&ledger);
}

#[test]
fn killed_at_any_instant_nothing_is_lost_and_nothing_is_charged_twice() {
    let home = Home::new();
    let mut ledger = open(&home.path());
    let funded = 1_000_000;
    fund(&ledger, "ada", funded);
    let mut acknowledged = Vec::new();
    for round in 0..30 {
        let mut worker = Worker::start(&home.path(), "requests for ever");
        worker.wait_for("ready");
        // From before it has opened the file to well within its second request.
        let delay_us = Uuid::new_v4().as_u128() % 200_000;
        thread::sleep(Duration::from_micros(delay_us as u64));
        // Half of the time its heir is somebody who was there all along, otherwise a newcomer.
        if round % 2 == 0 {
            drop(ledger);
            worker.child.kill().unwrap();
            acknowledged.extend(paid(&worker.finish()));
            ledger = open(&home.path());
        } else {
            worker.child.kill().unwrap();
            acknowledged.extend(paid(&worker.finish()));
            drop(open(&home.path()));
        }
        verify(&ledger);
        assert_eq!(ledger.health().unwrap().open_requests, 0, "the dead are settled");
    }
    assert!(acknowledged.len() >= 10, "only {} requests got as far as a debit", acknowledged.len());

    let log = logged(&home);
    for (id, tokens) in &acknowledged {
        let debited = log.iter().find(|(logged, _)| logged == id).unwrap_or_else(|| panic!("{id} is lost")).1;
        let excess = debited - tokens;
        // What was durable when the process died, and what it had no time to say.
        assert!((0..=PROMPT_TOKENS as i64 + i64::from(STEP_TOKENS)).contains(&excess), "{id}: {debited} for {tokens}");
    }
    let debited: i64 = log.iter().map(|(_, tokens)| tokens).sum();
    assert_eq!(balance(&ledger, "ada"), credits(funded - debited));
    let lines = ledger.statement("ada", None, None).unwrap().lines.len();
    assert_eq!(lines, 1 + log.iter().filter(|(_, tokens)| *tokens > 0).count(), "each is settled once");
}

#[test]
fn heirs_that_race_settle_once() {
    for _ in 0..3 {
        let home = Home::new();
        let ledger = open(&home.path());
        fund(&ledger, "ada", 1000);
        let mut worker = Worker::start(&home.path(), "open requests");
        worker.wait_for("left open");
        assert_eq!(ledger.health().unwrap().open_requests, 8, "its requests are left alone while it lives");
        drop(open(&home.path()));
        assert_eq!(ledger.health().unwrap().open_requests, 8);
        worker.child.kill().unwrap();
        worker.finish();
        let heirs: Vec<Worker> = (0..4).map(|_| Worker::start(&home.path(), "recover")).collect();
        heirs.into_iter().for_each(|heir| drop(heir.finish()));
        // Four of them ran: 10 + 3 tokens each. The other four were only held.
        assert_eq!(balance(&ledger, "ada"), credits(1000 - 4 * 13));
        let usage = &ledger.usage(&UsageQuery::new(UsageBy::User)).unwrap()[0];
        assert_eq!((usage.requests, usage.total_tokens, usage.tokens_per_s), (8, 52, None));
        assert_eq!(ledger.statement("ada", None, None).unwrap().lines.len(), 1 + 4);
        verify(&ledger);
        let locks = std::fs::read_dir(home.directory.path().join("run")).unwrap().count();
        assert_eq!(locks, 1, "the locks of the dead are gone");
    }
}

#[test]
fn an_active_writer_settles_for_the_dead_without_being_reopened() {
    let home = Home::new();
    let ledger = open(&home.path());
    fund(&ledger, "ada", 1000);
    let mut worker = Worker::start(&home.path(), "open requests");
    worker.wait_for("left open");
    worker.child.kill().unwrap();
    worker.finish();
    let patience = Instant::now() + Duration::from_secs(20);
    while ledger.health().unwrap().open_requests > 0 {
        assert!(Instant::now() < patience, "nobody settled for the dead");
        ledger.thaw("ada", None).unwrap();
        thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(balance(&ledger, "ada"), credits(1000 - 4 * 13));
    verify(&ledger);
}

#[test]
fn processes_that_come_and_go_at_once_never_meet_a_locked_file() {
    let home = Home::new();
    let workers: Vec<Worker> = (0..8).map(|_| Worker::start(&home.path(), "come and go")).collect();
    workers.into_iter().for_each(|worker| drop(worker.finish()));
    let ledger = open(&home.path());
    let wallet = ledger.wallet("ada").unwrap();
    assert_eq!(wallet.grants.len(), 1, "the first of them created the wallet, and nobody else");
    assert_eq!(wallet.balance, credits(10_000 - 8 * 10 * 3));
    verify(&ledger);
}

#[test]
fn on_a_full_disk_a_failed_commit_charges_nothing() {
    let home = Home::new();
    fund(&open(&home.path()), "ada", 1_000_000);
    // A limit on the size of files fails writes as a full disk does, of all processes that this shell becomes.
    let limited = "trap '' XFSZ; ulimit -f 1000; exec \"$0\" \"$@\"";
    let report = Worker::start_through(&["sh", "-c", limited], &home.path(), "until the disk is full").finish();
    assert!(report.iter().any(|line| line == "failed"), "{report:?}");
    let acknowledged: i64 = paid(&report).iter().map(|(_, tokens)| tokens).sum();
    assert!(acknowledged > 0);

    let ledger = open(&home.path());
    verify(&ledger);
    assert_eq!(ledger.health().unwrap().open_requests, 0);
    assert_eq!(balance(&ledger, "ada"), credits(1_000_000 - acknowledged), "what was not acknowledged was not charged");
}

#[test]
fn whoever_holds_the_lock_for_ever_is_not_waited_for() {
    let home = Home::new();
    let ledger = open(&home.path());
    fund(&ledger, "ada", 1000);
    let mut holder = Worker::start(&home.path(), "hold the lock");
    holder.wait_for("holding");
    let busy = |outcome: Result<(), LedgerError>| match outcome {
        Err(error @ LedgerError::Busy) => assert!(error.to_string().contains("kill -CONT"), "{error}"),
        other => panic!("{other:?}"),
    };
    thread::scope(|scope| {
        scope.spawn(|| busy(Ledger::open(&home.path()).map(drop)));
        scope.spawn(|| busy(Ledger::open_read_only(&home.path()).map(drop)));
        scope.spawn(|| busy(ledger.freeze("ada", None).map(drop)));
        assert_eq!(balance(&ledger, "ada"), credits(1000), "reading needs no lock");
    });
    holder.child.kill().unwrap();
    holder.finish();
    assert!(!ledger.wallet("ada").unwrap().frozen);
    ledger.freeze("ada", None).unwrap();
    drop(open(&home.path()));
    verify(&ledger);
}

#[cfg(unix)]
#[test]
#[ignore = "needs the superuser, to become somebody else: run with `--ignored owner`"]
fn only_the_owner_changes_wallets_and_grants() {
    use std::fs::{Permissions, read_dir, set_permissions};
    use std::os::unix::fs::PermissionsExt;
    let home = Home::new();
    let ledger = open(&home.path());
    fund(&ledger, "ada", 1000);
    set_permissions(home.directory.path(), Permissions::from_mode(0o777)).unwrap();
    for file in read_dir(home.directory.path()).unwrap() {
        set_permissions(file.unwrap().path(), Permissions::from_mode(0o777)).unwrap();
    }
    let nobody = ["setpriv", "--reuid", "65534", "--clear-groups"];
    let report = Worker::start_through(&nobody, &home.path(), "not the owner").finish();
    assert!(report.iter().any(|line| line == "refused"), "{report:?}");
    assert!(!ledger.wallet("ada").unwrap().frozen && !ledger.health().unwrap().service);
    verify(&ledger);
}

/// The longest that anybody, in no queue at all, waits for this disk.
fn worst_fsync_while(busy: &AtomicBool, directory: &Path) -> Duration {
    let mut file = tempfile::tempfile_in(directory).unwrap();
    let mut worst = Duration::ZERO;
    while busy.load(Ordering::SeqCst) {
        let start = Instant::now();
        file.write_all(&[0; 4096]).and_then(|()| file.sync_all()).unwrap();
        worst = worst.max(start.elapsed());
        thread::sleep(Duration::from_millis(5));
    }
    worst
}

/// Requests of twenty steps, until the allowance ends.
fn spend(ledger: &Ledger, requests: Option<usize>) {
    for _ in 0..requests.unwrap_or(usize::MAX) {
        let id = Uuid::now_v7().to_string();
        match timed(|| ledger.admit(admission(&id, "ada", PROMPT_TOKENS))) {
            Ok(_) => {}
            Err(LedgerError::Exhausted { .. }) => return,
            Err(error) => panic!("{error}"),
        }
        let mut exhausted = false;
        let mut tokens = 0;
        for step in 0..20 {
            let next = if step == 0 { first_debit(&id, 0, STEP_TOKENS) } else { next_debit(&id, STEP_TOKENS) };
            let debited = timed(|| debit(ledger, next));
            tokens += debited.granted + if step == 0 { PROMPT_TOKENS as u32 } else { 0 };
            say(&format!("paid {id} {tokens}"));
            exhausted = debited.exhausted;
            if exhausted {
                break;
            }
        }
        let reason = if exhausted { FinishReason::Allowance } else { FinishReason::Length };
        let settled = timed(|| ledger.settle(Settlement::new(&id, reason))).unwrap();
        assert_eq!(settled.debited, credits(i64::from(tokens)));
    }
}

/// As a process that was stopped in the middle of a commit does.
fn hold_the_lock(path: &Path) {
    let lock = std::fs::File::open(path.with_extension("db.lock")).unwrap();
    lock.lock().unwrap();
    say("holding");
    thread::sleep(Duration::from_secs(600));
}

/// Somebody who may write the file, and does not own it.
fn administer_for_another(ledger: &Ledger) {
    let refused = |error: &LedgerError| matches!(error, LedgerError::NotOwner { .. });
    assert!(ledger.create_wallet("bob", None).is_err_and(|error| refused(&error)));
    assert!(ledger.grant(GrantRequest::new("ada", credits(1))).is_err_and(|error| refused(&error)));
    assert!(ledger.freeze("ada", None).is_err_and(|error| refused(&error)));
    assert!(ledger.thaw("ada", None).is_err_and(|error| refused(&error)));
    assert!(ledger.set_service(true).is_err_and(|error| refused(&error)));
    let starter = Some(StarterGrant { amount: credits(10) });
    assert!(ledger.admit(Admission { starter, ..admission("r", "eve", 2) }).unwrap().wallet_created);
    settle(ledger, "r", FinishReason::Stop).unwrap();
    assert_eq!(ledger.wallet("ada").unwrap().balance, credits(1000));
    say("refused");
}

fn leave_open(ledger: &Ledger) {
    for number in 0..8 {
        let id = number.to_string();
        ledger.admit(admission(&id, "ada", PROMPT_TOKENS)).unwrap();
        if number % 2 == 0 {
            assert_eq!(debit(ledger, first_debit(&id, 0, STEP_TOKENS)).granted, STEP_TOKENS);
        }
    }
    say("left open");
    thread::sleep(Duration::from_secs(600));
}

fn first_request(path: &Path) {
    let ledger = open(path);
    let id = Uuid::now_v7().to_string();
    let starter = Some(StarterGrant { amount: credits(10_000) });
    ledger.admit(Admission { starter, ..admission(&id, "ada", 2) }).unwrap();
    debit(&ledger, first_debit(&id, 0, 1));
    settle(&ledger, &id, FinishReason::Stop).unwrap();
}

fn spend_until_it_fails(ledger: &Ledger) {
    ledger.admit(admission("r", "ada", PROMPT_TOKENS)).unwrap();
    let mut tokens = PROMPT_TOKENS as u32 + debit(ledger, first_debit("r", 0, STEP_TOKENS)).granted;
    say(&format!("paid r {tokens}"));
    loop {
        match debit_all(ledger, vec![next_debit("r", STEP_TOKENS)]) {
            Ok(debited) => {
                tokens += debited[0].granted;
                say(&format!("paid r {tokens}"));
            }
            Err(error) => {
                assert!(matches!(error, LedgerError::DiskFull | LedgerError::DiskFailed { .. }), "{error:?}");
                say("failed");
                break;
            }
        }
    }
    assert!(ledger.settle(Settlement::new("r", FinishReason::Error)).is_err(), "the disk is still full");
    let charged = ledger.wallet("ada").unwrap().in_flight;
    assert_eq!(charged, credits(i64::from(tokens)), "what failed is not charged, and reading goes on");
}

fn open(path: &Path) -> Ledger {
    Ledger::open(path).unwrap_or_else(|error| panic!("{error}"))
}

fn timed<T>(work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let outcome = work();
    say(&format!("waited {}", start.elapsed().as_micros()));
    outcome
}

/// One whole line, at once, so that whatever the parent has read was said after it was true.
pub(crate) fn say(line: &str) {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(format!("\n@{line}\n").as_bytes()).and_then(|()| stdout.flush()).expect("the parent listens");
}

/// A process that runs [`worker`].
pub(crate) struct Worker {
    child: Child,
    said: BufReader<ChildStdout>,
}

impl Worker {
    pub(crate) fn start(ledger: &Path, task: &str) -> Worker {
        Worker::start_through(&[], ledger, task)
    }

    fn start_through(wrapper: &[&str], ledger: &Path, task: &str) -> Worker {
        let tests = std::env::current_exe().unwrap();
        let mut words: Vec<_> = wrapper.iter().map(Into::into).collect();
        words.push(tests.into_os_string());
        let mut child = Command::new(&words[0])
            .args(&words[1..])
            .args(["--exact", "processes::worker", "--ignored", "--nocapture", "--test-threads=1"])
            .env(LEDGER, ledger)
            .env(TASK, task)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(child.stdout.take().unwrap());
        Worker { child, said }
    }

    fn wait_for(&mut self, wanted: &str) {
        let mut line = String::new();
        while line.trim_end().strip_prefix('@') != Some(wanted) {
            line.clear();
            assert!(self.said.read_line(&mut line).unwrap() > 0, "it ended without saying `{wanted}`");
        }
    }

    /// Everything it says until it is killed, after a time.
    pub(crate) fn kill_after(mut self, life: Duration) -> Vec<String> {
        let Worker { child, said } = &mut self;
        let lines: Vec<String> = thread::scope(|scope| {
            let reader = scope.spawn(|| said.by_ref().lines().map_while(Result::ok).collect());
            thread::sleep(life);
            child.kill().unwrap();
            reader.join().unwrap()
        });
        let status = self.child.wait().unwrap();
        assert!(status.code().is_none(), "a worker failed before it was killed: {lines:?}");
        lines.into_iter().filter_map(|line| line.strip_prefix('@').map(str::to_owned)).collect()
    }

    /// Everything it says until it ends. A worker that failed, but for being killed, fails the test.
    fn finish(mut self) -> Vec<String> {
        let lines: Vec<String> = self.said.by_ref().lines().map_while(Result::ok).collect();
        let status = self.child.wait().unwrap();
        assert!(status.success() || status.code().is_none(), "a worker failed: {lines:?}");
        lines.into_iter().filter_map(|line| line.strip_prefix('@').map(str::to_owned)).collect()
    }
}

impl Drop for Worker {
    /// A test that fails leaves nobody behind.
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The last that a worker said of each of its requests.
fn paid(report: &[String]) -> Vec<(String, i64)> {
    let mut last: Vec<(String, i64)> = Vec::new();
    for line in report {
        let Some((id, tokens)) = line.strip_prefix("paid ").and_then(|paid| paid.split_once(' ')) else { continue };
        let tokens = tokens.parse().unwrap();
        match last.last_mut().filter(|(same, _)| same == id) {
            Some((_, paid)) => *paid = tokens,
            None => last.push((id.to_owned(), tokens)),
        }
    }
    last
}

/// Every request in the log, and its tokens.
fn logged(home: &Home) -> Vec<(String, i64)> {
    let conn = home.sql();
    let mut statement = conn.prepare("SELECT id, debited / 1000000 FROM request_log").unwrap();
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    rows.collect::<Result<_, _>>().unwrap()
}
