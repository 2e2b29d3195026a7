use std::path::Path;

use rusqlite::Connection;
use tempfile::TempDir;

use super::*;
use crate::place::Place;
use crate::store;
use crate::{
    Admission, Credits, Debit, FinishReason, GrantRequest, Ledger, LimitScope, LimitSpan, NewLimit, Price, PromptDebit,
    Quota, Refund, Settlement, Transfer,
};

fn ask(ledger: &Ledger, id: &str, wallet: &str, output_tokens: u32) {
    let admission = Admission {
        request_id: id.into(),
        wallet: wallet.into(),
        starter: None,
        model: "model".into(),
        device: "cpu".into(),
        price: Price::default(),
        prompt_tokens: 3,
        key: None,
        project: None,
        tags: Default::default(),
    };
    ledger.admit(admission).unwrap();
    // Some are settled before their first token: their rows in the log have no entry.
    if output_tokens > 0 {
        let (reply, answer) = std::sync::mpsc::channel();
        let prompt = Some(PromptDebit { cached_tokens: 1 });
        let debit = Debit { request_id: id.into(), prompt, output_tokens, reasoning_tokens: 0 };
        ledger.debit(vec![debit], move |debited| reply.send(debited).unwrap());
        answer.recv().unwrap().unwrap();
    }
    ledger.settle(Settlement::new(id, FinishReason::Stop)).unwrap();
}

/// A ledger with a bit of everything, some thirty entries.
fn with_history(file: &Path) {
    let ledger = Ledger::open(file).unwrap();
    for wallet in ["ada", "bob"] {
        ledger.create_wallet(wallet, None).unwrap();
        ledger.grant(GrantRequest::new(wallet, "1000".parse().unwrap())).unwrap();
    }
    for number in 0..20 {
        let wallet = if number % 3 == 0 { "bob" } else { "ada" };
        ask(&ledger, &format!("r{number}"), wallet, number % 4);
    }
    ledger.refund(Refund { memo: Some("it hung".into()), ..Refund::new("r1") }).unwrap();
    ledger.transfer(Transfer::new("ada", "bob", Credits::ONE)).unwrap();
    let scope = LimitScope { wallet: Some("ada".into()), ..LimitScope::default() };
    ledger.set_limit(NewLimit::new(scope, Quota::Tokens(1000), LimitSpan::Day)).unwrap();
    for number in 20..30 {
        ask(&ledger, &format!("r{number}"), "ada", number % 4);
    }
}

/// What is found on so many threads, in so many ranges a thread.
fn found(file: &Path, threads: usize, ranges_a_thread: i64) -> VerifyReport {
    let place = Place::at(file).unwrap();
    let open = || store::open_reader(&place);
    let conn = open().unwrap();
    let conn = conn.unchecked_transaction().unwrap();
    check(&conn, &open, threads, ranges_a_thread).unwrap()
}

/// Does `work` to a copy, with nothing in its way.
fn tampered(original: &Path, work: impl FnOnce(&Connection)) -> TempDir {
    let home = TempDir::new().unwrap();
    let file = home.path().join("ledger.db");
    std::fs::copy(original, &file).unwrap();
    let conn = Connection::open(&file).unwrap();
    conn.execute_batch("PRAGMA foreign_keys = OFF; PRAGMA ignore_check_constraints = ON").unwrap();
    let sql = "SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'";
    let triggers: Vec<(String, String)> = conn
        .prepare(sql)
        .unwrap()
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap()
        .collect::<rusqlite::Result<_>>()
        .unwrap();
    triggers.iter().for_each(|(name, _)| conn.execute_batch(&format!("DROP TRIGGER {name}")).unwrap());
    work(&conn);
    triggers.iter().for_each(|(_, sql)| conn.execute_batch(sql).unwrap());
    home
}

#[test]
fn many_threads_find_what_one_does() {
    let home = TempDir::new().unwrap();
    let file = home.path().join("ledger.db");
    with_history(&file);
    let whole = found(&file, 1, 1);
    assert!(whole.passed() && whole.entries > 25 && whole.requests == 30, "{whole:?}");
    for (threads, ranges) in [(2, 4), (3, 5), (4, 20)] {
        let report = found(&file, threads, ranges);
        assert_eq!((report.problems, report.entries, report.head), (Vec::new(), whole.entries, whole.head.clone()));
    }
    for forgery in [
        "UPDATE entry SET created_us = created_us + 1 WHERE id = 13",
        "UPDATE entry SET hash = zeroblob(32) WHERE id % 5 = 0",
        "UPDATE entry SET hash = x'00' WHERE id = 9",
        "DELETE FROM entry WHERE id BETWEEN 8 AND 12",
        "DELETE FROM posting WHERE entry = 12",
        "UPDATE posting SET entry = 999 WHERE entry = 12 AND line = 1",
        "UPDATE posting SET amount = amount - 1 WHERE entry = 17",
        "UPDATE request_log SET debited = debited + 1 WHERE entry = 17",
        "UPDATE request_log SET entry = NULL WHERE entry = 17",
        "UPDATE request_log SET entry = 40 - entry WHERE entry IS NOT NULL",
        "UPDATE request_log SET seq = 900 - seq",
        "UPDATE request_log SET cached_tokens = -1 WHERE entry IS NULL",
        "UPDATE request_log SET entry = 11 WHERE entry = 12",
        "DELETE FROM request_log WHERE entry > 20",
        "UPDATE reversal SET amount = amount + 1",
        "UPDATE record SET body = replace(body, '1000', '9000')",
        "DELETE FROM record",
        "UPDATE allowance SET remaining = remaining + 1",
        "UPDATE entry SET kind = 'limit' WHERE id = 14",
    ] {
        let home = tampered(&file, |conn| conn.execute_batch(forgery).unwrap());
        let file = home.path().join("ledger.db");
        let one = found(&file, 1, 1).problems;
        assert!(!one.is_empty(), "{forgery}");
        for (threads, ranges) in [(2, 4), (4, 20)] {
            let many = found(&file, threads, ranges).problems;
            assert_eq!(many.first(), one.first(), "{forgery}: {many:#?}");
        }
    }
}

/// What the table `helper` is done to, whose rows are those of an index: as a bad disk or somebody with an editor may.
const INDEX_DAMAGE: [&str; 3] = [
    "DELETE FROM helper WHERE (a, b) = (SELECT a, b FROM helper LIMIT 1 OFFSET 5)",
    "INSERT INTO helper SELECT * FROM (SELECT a, b + 1 FROM helper ORDER BY b DESC LIMIT 1)",
    "UPDATE helper SET b = b + 1000 WHERE (a, b) = (SELECT a, b FROM helper LIMIT 1 OFFSET 5)",
];

#[test]
fn an_index_that_has_something_else_than_its_table_is_found() {
    let home = TempDir::new().unwrap();
    let file = home.path().join("ledger.db");
    with_history(&file);
    for (number, index) in INDEXES.iter().enumerate() {
        for damage in INDEX_DAMAGE {
            let home = TempDir::new().unwrap();
            let copy = home.path().join("ledger.db");
            std::fs::copy(&file, &copy).unwrap();
            let (columns, damage) = match index.table {
                "posting" => ("a, b, c", damage.replace("a, b + 1 ", "a, b + 1, c ")),
                _ => ("a, b", damage.to_owned()),
            };
            // An index is stored as a table without row ids is.
            let create = format!("CREATE TABLE helper ({columns}, PRIMARY KEY ({columns})) WITHOUT ROWID");
            with_schema(&copy, |conn| {
                let sql = "INSERT INTO sqlite_schema SELECT 'table', 'helper', 'helper', rootpage, ?2 \
                     FROM sqlite_schema WHERE name = ?1";
                conn.execute(sql, [index.name, create.as_str()]).unwrap();
            });
            assert_eq!(Connection::open(&copy).unwrap().execute(&damage, []).unwrap(), 1, "{damage}");
            with_schema(&copy, |conn| conn.execute_batch("DELETE FROM sqlite_schema WHERE name = 'helper'").unwrap());
            for (threads, ranges) in [(1, 1), (3, 4)] {
                let problems = found(&copy, threads, ranges).problems;
                let is_named = problems.iter().all(|problem| problem.what.contains(index.name));
                assert!(is_named && !problems.is_empty(), "{number}: {damage}: {problems:#?}");
            }
        }
    }
}

fn with_schema(file: &Path, work: impl FnOnce(&Connection)) {
    let conn = Connection::open(file).unwrap();
    conn.execute_batch("PRAGMA writable_schema = ON").unwrap();
    work(&conn);
}
