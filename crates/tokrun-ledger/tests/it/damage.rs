//! Files that are damaged, forged, foreign, newer, or that cannot be written.

use std::fs;
use std::path::Path;

use tokrun_ledger::{Credits, FinishReason, GrantRequest, Ledger, LedgerError, VerifyReport};

use crate::common::{
    Home, admission, at, balance, credits, debit, debit_all, first_debit, fund, next_debit, settle, snapshot, verify,
};

/// A ledger with some history: three grants, two settled requests, one that is open.
fn with_history(home: &Home) -> Ledger {
    let ledger = home.open();
    fund(&ledger, "ada", 100);
    fund(&ledger, "bob", 50);
    let expires = Some(at(home.now_us() + 1_000_000));
    let memo = Some("for the summer school".to_owned());
    ledger.grant(GrantRequest { expires, memo, ..GrantRequest::new("bob", credits(7)) }).unwrap();
    for (id, wallet) in [("r1", "ada"), ("r2", "bob")] {
        ledger.admit(admission(id, wallet, 5)).unwrap();
        debit(&ledger, first_debit(id, 1, 4));
        settle(&ledger, id, FinishReason::Stop).unwrap();
    }
    ledger.admit(admission("open", "ada", 5)).unwrap();
    debit(&ledger, first_debit("open", 0, 2));
    verify(&ledger);
    ledger
}

/// Copies of one ledger, which is quicker than to make each anew. Its processes live as far as the copies can see.
struct Original {
    home: Home,
    _ledger: Ledger,
}

impl Original {
    fn new() -> Original {
        let home = Home::new();
        let ledger = with_history(&home);
        ledger.backup(&home.directory.path().join("backup.db")).unwrap();
        Original { home, _ledger: ledger }
    }

    fn copy(&self) -> (Home, Vec<fs::File>) {
        let copy = Home::new();
        fs::copy(self.home.directory.path().join("backup.db"), copy.path()).unwrap();
        let run = copy.directory.path().join("run");
        fs::create_dir(&run).unwrap();
        let owners = fs::read_dir(self.home.directory.path().join("run")).unwrap();
        let lock = |owner: fs::DirEntry| {
            let file = fs::File::create(run.join(owner.file_name())).unwrap();
            file.lock().unwrap();
            file
        };
        let locks = owners.map(|owner| lock(owner.unwrap())).collect();
        (copy, locks)
    }
}

/// Applies `sql` behind the ledger's back.
fn tamper(home: &Home, sql: &str) {
    let conn = home.sql();
    // Whoever tampers is not held up by triggers, checks or references.
    conn.execute_batch("PRAGMA ignore_check_constraints = ON; PRAGMA foreign_keys = OFF").unwrap();
    let triggers: Vec<(String, String)> = conn
        .prepare("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'")
        .unwrap()
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    for (name, _) in &triggers {
        conn.execute_batch(&format!("DROP TRIGGER {name}")).unwrap();
    }
    conn.execute_batch(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    for (_, trigger) in &triggers {
        conn.execute_batch(trigger).unwrap();
    }
}

/// Every way to spend or to give answers that the ledger is bad, and changes nothing.
fn assert_refuses_to_spend(ledger: &Ledger, sql: &str) {
    let bad = |error: &LedgerError| matches!(error, LedgerError::Bad { .. });
    assert!(ledger.admit(admission("next", "bob", 1)).is_err_and(|error| bad(&error)), "{sql}");
    assert!(debit_all(ledger, vec![next_debit("open", 1)]).is_err_and(|error| bad(&error)), "{sql}");
    assert!(ledger.grant(GrantRequest::new("bob", credits(1))).is_err_and(|error| bad(&error)), "{sql}");
    assert!(settle(ledger, "open", FinishReason::Stop).is_err_and(|error| bad(&error)), "{sql}");
}

/// A request that nobody made, of many tokens that cost nothing.
const FREE_AND_INVENTED: &str = "INSERT INTO request_log (id, wallet, tags, model, device, prompt_micro, cached_micro, \
     output_micro, prompt_tokens, cached_tokens, output_tokens, reasoning_tokens, debited, itl, finish_reason, started_us, \
     ended_us) SELECT 'invented', wallet, tags, model, device, 0, 0, 0, 999999, 0, 999999, 0, 0, itl, 'stop', started_us, \
     ended_us FROM request_log LIMIT 1";

#[test]
fn every_change_of_the_history_is_found_and_named() {
    // What is done, and the entry that verify must name (none: what is wrong is no entry).
    let forgeries: &[(&str, Option<u64>)] = &[
        ("UPDATE entry SET created_us = created_us + 1 WHERE id = 2", Some(2)),
        ("UPDATE entry SET effective_us = effective_us - 1 WHERE id = 1", Some(1)),
        ("UPDATE entry SET kind = 'starter' WHERE id = 1", Some(1)),
        ("UPDATE entry SET request_id = 'r9' WHERE id = 4", Some(4)),
        ("UPDATE entry SET idempotency_key = 'settle:r9' WHERE id = 4", Some(4)),
        ("UPDATE entry SET memo_digest = zeroblob(32) WHERE id = 3", Some(3)),
        ("UPDATE entry SET hash = zeroblob(32) WHERE id = 3", Some(3)),
        ("UPDATE entry SET prev_hash = zeroblob(32) WHERE id = 3", Some(3)),
        ("UPDATE entry SET hash = x'00' WHERE id = 5", Some(5)),
        ("DELETE FROM posting WHERE entry = 2; DELETE FROM entry WHERE id = 2", Some(3)),
        ("DELETE FROM posting WHERE entry = 5; DELETE FROM entry WHERE id = 5", Some(4)),
        ("DELETE FROM posting WHERE entry = 2", Some(2)),
        ("UPDATE posting SET amount = amount * 2 WHERE entry = 1", Some(1)),
        ("UPDATE posting SET amount = amount + 1 WHERE entry = 4 AND line = 0", Some(4)),
        ("UPDATE posting SET account = 3 WHERE entry = 4 AND account = 2", Some(4)),
        ("UPDATE posting SET line = 7 - line WHERE entry = 4", Some(4)),
        ("UPDATE posting SET entry = 1, line = 9 WHERE entry = 2 AND line = 1", Some(1)),
        ("UPDATE head SET hash = zeroblob(32)", Some(5)),
        ("UPDATE head SET entry = 4", Some(5)),
        ("UPDATE head SET count = 4", Some(5)),
        ("DELETE FROM head", None),
        ("UPDATE allowance SET remaining = remaining + 1 WHERE seq = 1", None),
        ("UPDATE allowance SET amount = amount + 1 WHERE seq = 1", Some(1)),
        ("UPDATE allowance SET priority = priority - 1 WHERE seq = 1", Some(1)),
        ("UPDATE allowance SET effective_us = effective_us - 1 WHERE seq = 1", Some(1)),
        ("UPDATE allowance SET created_us = created_us - 1 WHERE seq = 1", Some(1)),
        ("UPDATE allowance SET expires_us = expires_us + 1 WHERE seq = 3", Some(3)),
        ("UPDATE allowance SET expires_us = NULL WHERE seq = 3", Some(3)),
        ("UPDATE allowance SET kind = 'starter' WHERE seq = 1", Some(1)),
        ("UPDATE memo SET text = 'for somebody else'", Some(3)),
        ("UPDATE memo SET allowance = 1", Some(1)),
        ("INSERT INTO memo VALUES (2, x'00', 'a gift')", Some(2)),
        ("DELETE FROM meta", None),
        ("INSERT INTO meta SELECT 2, ledger_id, salt, created_us, service, bad FROM meta", None),
        ("UPDATE allowance SET wallet = 4 WHERE seq = 2", Some(2)),
        ("DELETE FROM allowance WHERE seq = 2", Some(2)),
        ("UPDATE in_flight SET debited = debited - 1", None),
        ("DELETE FROM in_flight", None),
        ("UPDATE progress SET output_tokens = output_tokens + 1", None),
        ("UPDATE open_request SET prompt_tokens = prompt_tokens - 1", None),
        ("UPDATE open_request SET output_micro = 0", None),
        ("UPDATE request_log SET output_tokens = output_tokens + 1 WHERE id = 'r1'", Some(4)),
        ("UPDATE request_log SET debited = debited + 1 WHERE id = 'r1'", Some(4)),
        ("UPDATE request_log SET wallet = 5 WHERE id = 'r1'", Some(4)),
        ("UPDATE request_log SET id = 'r9' WHERE id = 'r1'", Some(4)),
        ("UPDATE request_log SET entry = NULL WHERE id = 'r1'", Some(4)),
        ("UPDATE request_log SET itl = x'0102' WHERE id = 'r1'", Some(4)),
        ("DELETE FROM request_log WHERE id = 'r2'", Some(5)),
        ("UPDATE request_log SET model = 'other' WHERE id = 'r1'", Some(4)),
        ("UPDATE request_log SET device = 'cuda' WHERE id = 'r1'", Some(4)),
        ("UPDATE request_log SET project = 'p' WHERE id = 'r1'", Some(4)),
        ("UPDATE request_log SET tags = '{\"a\":\"b\"}' WHERE id = 'r1'", Some(4)),
        (
            "UPDATE request_log SET prompt_tokens = prompt_tokens + output_tokens, output_tokens = 0 WHERE id = 'r1'",
            Some(4),
        ),
        ("UPDATE request_log SET cached_tokens = 0 WHERE id = 'r1'", Some(4)),
        ("UPDATE request_log SET reasoning_tokens = 1 WHERE id = 'r1'", Some(4)),
        ("UPDATE request_log SET ttft_us = 1 WHERE id = 'r1'", Some(4)),
        ("UPDATE request_log SET total_us = total_us + 1 WHERE id = 'r1'", Some(4)),
        ("UPDATE request_log SET energy_uj = 1 WHERE id = 'r1'", Some(4)),
        ("UPDATE request_log SET finish_reason = 'error' WHERE id = 'r1'", Some(4)),
        ("UPDATE request_log SET started_us = started_us - 1 WHERE id = 'r1'", Some(4)),
        ("UPDATE request_log SET ended_us = ended_us + 1 WHERE id = 'r2'", Some(5)),
        (FREE_AND_INVENTED, None),
        ("DROP INDEX request_log_ended", None),
        ("DROP TABLE idempotency", None),
        ("CREATE TRIGGER gift AFTER INSERT ON entry BEGIN UPDATE meta SET service = 0; END", None),
    ];
    let original = Original::new();
    for &(sql, named) in forgeries {
        let (home, _locks) = original.copy();
        let ledger = home.open();
        tamper(&home, sql);
        let report: VerifyReport = ledger.verify().unwrap();
        let first = report.problems.first().unwrap_or_else(|| panic!("not found: {sql}"));
        assert_eq!(first.entry, named, "{sql}: {:#?}", report.problems);
        assert_refuses_to_spend(&ledger, sql);
        assert!(ledger.health().is_err() || ledger.health().unwrap().bad.is_some(), "{sql}");
    }
}

#[test]
fn the_quick_check_of_a_start_finds_a_forged_end() {
    let original = Original::new();
    for sql in [
        "UPDATE head SET hash = zeroblob(32)",
        "UPDATE head SET count = 4",
        "DELETE FROM head",
        "UPDATE entry SET hash = x'00' WHERE id = 5",
        "UPDATE posting SET amount = amount * 2 WHERE entry = 5",
        "UPDATE entry SET request_id = 'r9' WHERE id = 5",
        "DELETE FROM posting WHERE entry = 5; DELETE FROM entry WHERE id = 5",
    ] {
        let (home, locks) = original.copy();
        let ledger = home.open();
        tamper(&home, sql);
        drop(locks);
        let heir = home.open();
        assert_refuses_to_spend(&heir, sql);
        assert_eq!(heir.health().unwrap().open_requests, 1, "nothing is settled on a bad ledger: {sql}");
        // Whoever had it open already learns it from the mark.
        assert_refuses_to_spend(&ledger, sql);
    }
}

#[test]
fn the_mark_stays_until_a_check_passes() {
    let home = Home::new();
    let ledger = with_history(&home);
    let forge = "UPDATE allowance SET remaining = remaining + 1000000 WHERE seq = 1";
    tamper(&home, forge);
    assert!(!ledger.verify().unwrap().passed());
    assert_eq!(home.open().health().unwrap().bad, ledger.health().unwrap().bad);
    tamper(&home, "UPDATE allowance SET remaining = remaining - 1000000 WHERE seq = 1");
    assert_refuses_to_spend(&ledger, "repaired, but not verified");
    verify(&ledger);
    assert_eq!(ledger.health().unwrap().bad, None);
    assert_eq!(debit(&ledger, next_debit("open", 1)).granted, 1);
    settle(&ledger, "open", FinishReason::Stop).unwrap();
    verify(&ledger);
}

#[test]
fn the_file_itself_forbids_rewriting_history() {
    let home = Home::new();
    let ledger = with_history(&home);
    let conn = home.sql();
    for sql in [
        "UPDATE entry SET kind = 'grant'",
        "DELETE FROM entry",
        "UPDATE posting SET amount = 1",
        "DELETE FROM posting",
        "UPDATE request_log SET debited = 0",
        "DELETE FROM request_log",
        "DELETE FROM head",
        "UPDATE allowance SET remaining = -1",
        "UPDATE allowance SET remaining = amount + 1",
        "INSERT INTO entry SELECT 9, kind, idempotency_key, 0, 0, NULL, NULL, prev_hash, hash FROM entry WHERE id = 1",
    ] {
        assert!(conn.execute_batch(sql).is_err(), "{sql}");
    }
    verify(&ledger);
}

#[test]
fn what_is_no_ledger_is_left_alone() {
    let foreign = |path: &Path| {
        let conn = rusqlite::Connection::open(path).unwrap();
        conn.execute_batch("CREATE TABLE song (title TEXT); INSERT INTO song VALUES ('x')").unwrap();
    };
    let garbage = |path: &Path| fs::write(path, b"all work and no play".repeat(1000)).unwrap();
    let empty = |path: &Path| fs::write(path, b"").unwrap();
    let log_alone = |path: &Path| fs::write(path.with_extension("db-wal"), b"somebody's commits").unwrap();
    let makers: [&dyn Fn(&Path); 4] = [&foreign, &garbage, &empty, &log_alone];
    for (index, make) in makers.iter().enumerate() {
        let home = Home::new();
        make(&home.path());
        let before = snapshot(home.directory.path());
        for outcome in [Ledger::open(&home.path()), Ledger::open_read_only(&home.path())] {
            assert!(matches!(outcome, Err(LedgerError::NotALedger { .. })), "{index}: {outcome:?}");
        }
        assert!(snapshot(home.directory.path()) == before, "{index}");
    }
    let home = Home::new();
    assert!(matches!(Ledger::open(home.directory.path()), Err(LedgerError::NotALedger { .. })), "a directory");
    assert!(matches!(Ledger::open_read_only(&home.path()), Err(LedgerError::NotALedger { .. })), "nothing at all");
    assert!(!home.path().exists());
}

#[test]
fn a_newer_ledger_is_left_alone() {
    let home = Home::new();
    drop(with_history(&home));
    let known: i64 = home.sql().pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    home.sql().pragma_update(None, "user_version", known + 1).unwrap();
    let before = snapshot(home.directory.path());
    for outcome in [Ledger::open(&home.path()), Ledger::open_read_only(&home.path())] {
        match outcome {
            Err(error @ LedgerError::NewerSchema { .. }) => assert!(error.to_string().contains("upgrade"), "{error}"),
            other => panic!("{other:?}"),
        }
    }
    assert!(snapshot(home.directory.path()) == before);
}

#[test]
fn a_truncated_ledger_is_found_out_wherever_it_is_cut() {
    let home = Home::new();
    drop(with_history(&home));
    let whole = fs::read(home.path()).unwrap();
    let pages = whole.len() / 4096;
    assert!(pages > 10, "{pages} pages");
    for kept in [100, 4096, 4096 * (pages / 2), 4096 * (pages - 1), whole.len() - 1] {
        fs::write(home.path(), &whole[..kept]).unwrap();
        let outcome = Ledger::open(&home.path());
        assert!(
            matches!(outcome, Err(LedgerError::Corrupt { .. } | LedgerError::NotALedger { .. })),
            "{kept} bytes: {outcome:?}"
        );
        assert!(fs::read(home.path()).unwrap() == whole[..kept], "it is left as it was");
    }
}

#[test]
fn flipped_bits_are_found() {
    let home = Home::new();
    drop(with_history(&home));
    let whole = fs::read(home.path()).unwrap();
    // Inside the text of an entry, wherever SQLite put it.
    let found = whole.windows(9).position(|bytes| bytes == b"settle:r1").expect("the entry's key is in the file");
    let mut flipped = whole.clone();
    flipped[found + 8] ^= 0x02;
    fs::write(home.path(), flipped).unwrap();
    let ledger = home.open();
    let report = ledger.verify().unwrap();
    assert!(!report.passed());
    assert!(matches!(ledger.admit(admission("next", "bob", 1)), Err(LedgerError::Bad { .. })));
}

#[test]
fn a_ledger_on_a_disk_that_cannot_be_written_can_be_read() {
    // The kernel's own directories refuse files even to the superuser.
    for path in ["/proc/tokrun/ledger.db", "/sys/tokrun/ledger.db"] {
        let outcome = Ledger::open(Path::new(path));
        assert!(matches!(outcome, Err(LedgerError::ReadOnly { .. } | LedgerError::Io { .. })), "{outcome:?}");
    }
    let home = Home::new();
    let ledger = with_history(&home);
    let reader = Ledger::open_read_only(&home.path()).unwrap();
    assert_eq!(reader.wallets().unwrap().len(), 2);
    assert!(reader.statement("ada", None, None).unwrap().closing > Credits::ZERO);
    assert!(matches!(reader.admit(admission("next", "ada", 1)), Err(LedgerError::ReadOnly { .. })));
    assert!(debit_all(&reader, vec![next_debit("open", 1)]).is_err());
    debit(&ledger, next_debit("open", 3));
    assert_eq!(balance(&reader, "ada"), balance(&ledger, "ada"), "it follows the writer");
}

/// What a forger may do to a request in flight.
const FORGED_IN_FLIGHT: [&str; 6] = [
    "UPDATE in_flight SET allowance = 2",
    "UPDATE in_flight SET held = 5000000, allowance = 2",
    "UPDATE in_flight SET held = 5000000",
    "UPDATE open_request SET prompt_tokens = 9223372036854775807",
    "UPDATE open_request SET wallet = 5",
    "UPDATE progress SET running = 0, output_tokens = 0; UPDATE in_flight SET held = debited, debited = 0, allowance = 2",
];

#[test]
fn a_request_that_is_forged_while_it_runs_stops_the_ledger() {
    for sql in FORGED_IN_FLIGHT {
        for runs in [false, true] {
            let home = Home::new();
            let ledger = home.open();
            fund(&ledger, "ada", 100);
            fund(&ledger, "bob", 100);
            ledger.admit(admission("open", "ada", 5)).unwrap();
            if runs {
                debit(&ledger, first_debit("open", 0, 2));
            }
            tamper(&home, sql);
            let next = if runs { next_debit("open", 1) } else { first_debit("open", 0, 1) };
            let outcome = debit_all(&ledger, vec![next]);
            assert!(matches!(outcome, Err(LedgerError::Bad { .. })), "{sql}: {outcome:?}");
            assert_refuses_to_spend(&ledger, sql);
            assert!(ledger.health().unwrap().bad.is_some(), "{sql}");
            assert_eq!(home.entries(), 2, "nothing is settled: {sql}");
        }
    }
}

#[test]
fn a_dead_request_that_was_forged_is_named_and_never_settled() {
    let forged_elsewhere = "UPDATE in_flight SET allowance = 3";
    for sql in FORGED_IN_FLIGHT.into_iter().chain([forged_elsewhere]) {
        for runs in [false, true] {
            let home = Home::new();
            let ledger = home.open();
            fund(&ledger, "ada", 100);
            fund(&ledger, "bob", 100);
            ledger.grant(GrantRequest { priority: 1, ..GrantRequest::new("ada", credits(50)) }).unwrap();
            ledger.admit(admission("open", "ada", 5)).unwrap();
            if runs {
                debit(&ledger, first_debit("open", 0, 2));
            }
            tamper(&home, sql);
            home.bury_everybody();
            let unsettled = || (home.open_requests(), home.entries()) == (1, 3);

            let checker = Ledger::open_unsettled(&home.path()).unwrap();
            let report = checker.verify().unwrap();
            assert!(!report.passed() && unsettled(), "{sql}");
            assert!(report.problems.iter().all(|problem| problem.entry.is_none()), "{sql}: {:?}", report.problems);
            drop(checker);
            // Without the mark as well: an ordinary opening finds it by itself.
            tamper(&home, "UPDATE meta SET bad = NULL");
            let heir = home.open();
            assert!(heir.health().unwrap().bad.is_some() && unsettled(), "{sql}");
            assert_refuses_to_spend(&heir, sql);
            assert!(!heir.verify().unwrap().passed() && unsettled(), "{sql}");
        }
    }
}

#[test]
fn who_only_verifies_settles_nothing() {
    let home = Home::new();
    let ledger = with_history(&home);
    home.bury_everybody();
    let checker = Ledger::open_unsettled(&home.path()).unwrap();
    assert!(checker.verify().unwrap().passed());
    drop(checker);
    assert_eq!(home.open_requests(), 1);
    drop(home.open());
    assert_eq!(home.open_requests(), 0);
    verify(&ledger);
}

#[test]
fn a_ledger_with_two_names_is_refused_under_both() {
    let home = Home::new();
    drop(with_history(&home));
    let elsewhere = home.directory.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let other = elsewhere.join("ledger.db");
    fs::hard_link(home.path(), &other).unwrap();
    let before = snapshot(home.directory.path());
    for path in [home.path(), other.clone()] {
        for outcome in [Ledger::open(&path), Ledger::open_unsettled(&path), Ledger::open_read_only(&path)] {
            match outcome {
                Err(error @ LedgerError::HardLinked { .. }) => assert!(error.to_string().contains("use one path")),
                other => panic!("{other:?}"),
            }
        }
    }
    assert!(snapshot(home.directory.path()) == before);
    fs::remove_file(&other).unwrap();
    verify(&home.open());
}

#[cfg(unix)]
#[test]
fn a_link_that_leads_nowhere_is_no_place_for_a_new_ledger() {
    let home = Home::new();
    let target = home.directory.path().join("unmounted").join("ledger.db");
    std::os::unix::fs::symlink(&target, home.path()).unwrap();
    for outcome in [Ledger::open(&home.path()), Ledger::open_read_only(&home.path())] {
        match outcome {
            Err(error @ LedgerError::NotALedger { .. }) => assert!(error.to_string().contains("unmounted"), "{error}"),
            other => panic!("{other:?}"),
        }
    }
    assert!(fs::symlink_metadata(home.path()).unwrap().is_symlink(), "the link is still there");
    fs::create_dir(target.parent().unwrap()).unwrap();
    drop(Ledger::open(&target).unwrap());
    assert!(Ledger::open(&home.path()).is_ok_and(|ledger| ledger.path() == fs::canonicalize(&target).unwrap()));
}

/// Nothing is charged any more, and the program is told why.
fn assert_replaced(ledger: &Ledger) {
    let replaced = |error: &LedgerError| matches!(error, LedgerError::Replaced { .. });
    assert!(debit_all(ledger, vec![next_debit("open", 1)]).is_err_and(|error| replaced(&error)));
    assert!(ledger.admit(admission("next", "ada", 1)).is_err_and(|error| replaced(&error)));
    assert!(ledger.grant(GrantRequest::new("ada", credits(1))).is_err_and(|error| replaced(&error)));
}

#[test]
fn who_uses_a_ledger_that_was_replaced_stops() {
    let home = Home::new();
    let ledger = with_history(&home);
    let aside = home.directory.path().join("aside.db");
    ledger.backup(&home.directory.path().join("backup.db")).unwrap();
    fs::rename(home.path(), &aside).unwrap();
    assert_replaced(&ledger);
    fs::copy(home.directory.path().join("backup.db"), home.path()).unwrap();
    assert_replaced(&ledger);
    // Put back, it goes on.
    fs::rename(&aside, home.path()).unwrap();
    assert_eq!(debit(&ledger, next_debit("open", 1)).granted, 1);
    verify(&ledger);
}

#[test]
fn who_uses_a_log_that_was_removed_stops_and_loses_nothing() {
    let home = Home::new();
    let ledger = with_history(&home);
    let before = ledger.wallet("ada").unwrap();
    fs::remove_file(home.path().with_extension("db-wal")).unwrap();
    assert_replaced(&ledger);
    drop(ledger);
    // Its end saved what it had committed; what it left open is settled by the next.
    let heir = home.open();
    let after = heir.wallet("ada").unwrap();
    assert_eq!((after.balance, after.in_flight), (before.balance, Credits::ZERO));
    verify(&heir);
}

#[test]
fn who_uses_a_log_that_was_replaced_leaves_the_new_one_alone() {
    let home = Home::new();
    let ledger = with_history(&home);
    ledger.backup(&home.directory.path().join("backup.db")).unwrap();
    for suffix in ["db-wal", "db-shm"] {
        fs::remove_file(home.path().with_extension(suffix)).unwrap();
    }
    fs::rename(home.directory.path().join("backup.db"), home.path()).unwrap();
    let heir = home.open();
    fund(&heir, "eve", 5);
    assert_replaced(&ledger);
    drop(ledger);
    fund(&heir, "bea", 5);
    verify(&heir);
    drop(heir);
    assert_eq!(balance(&home.open(), "bea"), credits(5));
}
