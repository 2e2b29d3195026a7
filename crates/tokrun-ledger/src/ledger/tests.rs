//! What only the inside can arrange: a database that is full to the page, one batch of many jobs, a broken job.

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::time::Duration;

use rusqlite::Connection;
use tempfile::TempDir;

use super::*;
use crate::{Credits, FinishReason, Price, PromptDebit};

fn open() -> (TempDir, Ledger) {
    let home = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(&home.path().join("ledger.db")).unwrap();
    ledger.create_wallet("ada", None).unwrap();
    ledger.grant(GrantRequest::new("ada", Credits::from_credits(1000).unwrap())).unwrap();
    (home, ledger)
}

fn admission(id: &str) -> Admission {
    Admission {
        request_id: id.into(),
        wallet: "ada".into(),
        starter: None,
        model: "model".into(),
        device: "cpu".into(),
        price: Price::default(),
        prompt_tokens: 9,
        key: None,
        project: None,
        tags: BTreeMap::new(),
    }
}

fn balance(ledger: &Ledger) -> i64 {
    ledger.wallet("ada").unwrap().balance.micro() / crate::MICRO
}

#[test]
fn a_full_database_refuses_and_recovers() {
    let (_home, ledger) = open();
    ledger.admit(admission("open")).unwrap();
    ledger
        .write(|tx| {
            let pages: i64 = tx.conn.pragma_query_value(None, "page_count", |row| row.get(0))?;
            Ok(tx.conn.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(()))?)
        })
        .unwrap();
    let mut names = (0..).map(|number| format!("{number}-{}", "x".repeat(100)));
    let error = names.find_map(|name| ledger.create_wallet(&name, None).err()).unwrap();
    assert!(matches!(error, LedgerError::DiskFull), "{error:?}");
    let before = balance(&ledger);
    let full = |id: &str| Admission { model: "x".repeat(8000), ..admission(id) };
    assert!(matches!(ledger.admit(full("no room")), Err(LedgerError::DiskFull)));
    assert_eq!(balance(&ledger), before);
    assert!(ledger.verify().unwrap().passed());

    ledger.write(|tx| Ok(tx.conn.pragma_update_and_check(None, "max_page_count", 1_000_000, |_| Ok(()))?)).unwrap();
    ledger.admit(full("room")).unwrap();
    assert_eq!(balance(&ledger), before - 10);
    let settled = ledger.settle(Settlement::new("open", FinishReason::Cancelled)).unwrap();
    assert_eq!(settled.balance.micro() / crate::MICRO, before);
    assert!(ledger.verify().unwrap().passed());
}

/// Holds the writer's turn, as another process would, so that what is queued meanwhile becomes one transaction.
fn in_one_batch(ledger: &Ledger, queue: impl FnOnce()) {
    let lock = WriteLock::open(&ledger.inner.place).unwrap();
    let turn = lock.hold().unwrap();
    // The writer takes this one out of the queue and waits with it for its turn.
    ledger.queue(job(|_| Ok(()), drop));
    std::thread::sleep(std::time::Duration::from_millis(50));
    queue();
    drop(turn);
}

#[test]
fn jobs_of_one_batch_are_refused_one_by_one() {
    let (_home, ledger) = open();
    let (reply, answers) = mpsc::channel();
    let admit = |id: &str, prompt_tokens| {
        let reply = reply.clone();
        let id_again = id.to_owned();
        let admission = Admission { prompt_tokens, ..admission(id) };
        ledger.admit_then(admission, move |outcome| reply.send((id_again, outcome.map(drop))).unwrap());
    };
    in_one_batch(&ledger, || {
        admit("a", 9);
        admit("too dear", 100_000);
        admit("b", 9);
        admit("a", 9);
        let debit = |id: &str| Debit {
            request_id: id.into(),
            prompt: Some(PromptDebit { cached_tokens: 0 }),
            output_tokens: 1,
            reasoning_tokens: 0,
        };
        let reply = reply.clone();
        ledger.debit(vec![debit("a"), debit("too dear"), debit("b")], move |debited| {
            let granted = debited.unwrap().iter().map(|debited| debited.granted.to_string()).collect::<String>();
            reply.send((granted, Ok(()))).unwrap();
        });
    });
    let answers: Vec<_> = answers.iter().take(5).collect();
    let ids: Vec<_> = answers.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(ids, ["a", "too dear", "b", "a", "101"], "in their order");
    assert!(answers[0].1.is_ok() && answers[2].1.is_ok());
    assert!(matches!(answers[1].1, Err(LedgerError::Exhausted { .. })));
    assert!(matches!(answers[3].1, Err(LedgerError::DuplicateRequest { .. })));
    assert_eq!(balance(&ledger), 980);
    assert!(ledger.verify().unwrap().passed());
}

#[test]
fn what_ends_the_transaction_fails_everybody_in_it_and_nobody_after_it() {
    let (_home, ledger) = open();
    let (reply, answers) = mpsc::channel();
    in_one_batch(&ledger, || {
        for id in ["before", "the end", "after"] {
            let reply = reply.clone();
            let work = move |tx: &mut Tx<'_>| {
                let admitted = request::admit(tx, &admission(id))?;
                if id == "the end" {
                    // As SQLite does by itself when the disk fails in the middle of a statement.
                    tx.conn.execute_batch("ROLLBACK")?;
                    return Err(LedgerError::DiskFull);
                }
                Ok(admitted)
            };
            ledger.queue(job(work, move |outcome| reply.send(outcome).unwrap()));
        }
    });
    for outcome in answers.iter().take(3) {
        assert!(matches!(outcome, Err(LedgerError::DiskFull)), "{outcome:?}");
    }
    assert_eq!((balance(&ledger), ledger.health().unwrap().open_requests), (1000, 0));
    ledger.admit(admission("before")).unwrap();
    assert!(ledger.verify().unwrap().passed());
}

#[test]
fn a_panic_is_rolled_back_and_leaves_nobody_waiting() {
    let (home, ledger) = open();
    ledger.admit(admission("open")).unwrap();
    let (reply, answers) = mpsc::channel();
    in_one_batch(&ledger, || {
        for id in ["before", "the end", "after"] {
            let reply = reply.clone();
            let work = move |tx: &mut Tx<'_>| {
                let admitted = request::admit(tx, &admission(id))?;
                assert_ne!(id, "the end", "the panic of this test");
                Ok(admitted)
            };
            ledger.queue(job(work, move |outcome| drop(reply.send(outcome))));
        }
    });
    for _ in 0..3 {
        let outcome = answers.recv_timeout(Duration::from_secs(20)).expect("everybody is answered");
        assert!(matches!(outcome, Err(LedgerError::Closed)), "{outcome:?}");
    }
    assert!(matches!(ledger.admit(admission("later")), Err(LedgerError::Closed)), "it stopped");
    drop(ledger);
    let heir = Ledger::open(&home.path().join("ledger.db")).unwrap();
    assert_eq!((balance(&heir), heir.health().unwrap().open_requests), (1000, 0), "what was open is settled");
    assert!(heir.verify().unwrap().passed());
}

#[test]
fn a_reply_that_panics_keeps_nobody_from_theirs() {
    let (_home, ledger) = open();
    let (reply, answers) = mpsc::channel();
    in_one_batch(&ledger, || {
        ledger.admit_then(admission("a"), |_| panic!("the panic of this test"));
        ledger.admit_then(admission("b"), move |outcome| drop(reply.send(outcome)));
    });
    assert!(answers.recv_timeout(Duration::from_secs(20)).expect("it is answered").is_ok());
}

#[test]
fn a_reply_comes_after_the_commit() {
    let (home, ledger) = open();
    let path = home.path().join("ledger.db");
    let (reply, answers) = mpsc::channel();
    ledger.admit_then(admission("r"), move |_| {
        // What another program sees while the reply runs.
        let other = Connection::open(&path).unwrap();
        let open: i64 = other.query_row("SELECT count(*) FROM open_request", [], |row| row.get(0)).unwrap();
        reply.send(open).unwrap();
    });
    assert_eq!(answers.recv().unwrap(), 1);
}

#[test]
fn the_last_handle_may_be_dropped_by_a_reply() {
    let (home, ledger) = open();
    let (done, wait) = mpsc::channel();
    let held = ledger.clone();
    let (hold, released) = mpsc::channel::<()>();
    ledger.admit_then(admission("r"), move |_| {
        released.recv().ok();
        drop(held);
        done.send(()).unwrap();
    });
    drop(ledger);
    hold.send(()).unwrap();
    wait.recv().unwrap();
    // The writer leaves by itself, after the reply.
    let heir = Ledger::open(&home.path().join("ledger.db")).unwrap();
    let patience = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while heir.health().unwrap().open_requests > 0 {
        assert!(std::time::Instant::now() < patience, "it is never settled");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert_eq!(balance(&heir), 1000, "what was only held has come back");
    assert!(heir.verify().unwrap().passed());
}

#[test]
fn handles_may_be_shared_between_threads() {
    fn shared<T: Send + Sync + Clone>() {}
    shared::<Ledger>();
}
