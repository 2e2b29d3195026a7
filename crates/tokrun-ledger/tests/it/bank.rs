//! A bank of eight processes that transfer, spend and refund at random and are killed at random: no credit is made or
//! lost, nobody is overdrawn, and whatever was acknowledged is in the books.

use std::collections::HashMap;
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use tokrun_ledger::{Credits, FinishReason, GrantRequest, Ledger, Refund, Transfer};
use uuid::Uuid;

use crate::common::{Home, admission, credits, debit_all, first_debit, next_debit, settle, verify};
use crate::processes::{Worker, say};

const WALLETS: [&str; 6] = ["ada", "bob", "eve", "mia", "tom", "zoe"];
const PROCESSES: usize = 8;
/// What each wallet begins with, in credits: soon too little for all that is asked of it.
const FUNDED: i64 = 3000;

/// In seconds; the tests that run at night take 60.
const LENGTH: &str = "TOKRUN_BANK_SECONDS";

#[test]
fn totals_stay_and_nothing_acknowledged_is_lost_while_processes_are_killed() {
    let length = std::env::var(LENGTH).map_or(10, |seconds| seconds.parse().expect("a number of seconds"));
    let end = Instant::now() + Duration::from_secs(length);
    let home = Home::new();
    let ledger = Ledger::open(&home.path()).unwrap();
    for wallet in WALLETS {
        ledger.create_wallet(wallet, None).unwrap();
        ledger.grant(GrantRequest::new(wallet, credits(FUNDED))).unwrap();
    }
    let said: Vec<String> = thread::scope(|scope| {
        let seats: Vec<_> = (0..PROCESSES)
            .map(|seat| {
                let path = home.path();
                scope.spawn(move || {
                    let mut rng = Rng::with_seed(seat as u64);
                    let mut said = Vec::new();
                    while Instant::now() < end {
                        let worker = Worker::start(&path, "bank");
                        said.extend(worker.kill_after(Duration::from_millis(rng.u64(300..3000))));
                    }
                    said
                })
            })
            .collect();
        while Instant::now() < end {
            check_totals(&home, &ledger);
            thread::sleep(Duration::from_millis(100));
        }
        seats.into_iter().flat_map(|seat| seat.join().unwrap()).collect()
    });

    // The first to open it settles what the dead left.
    drop(ledger);
    let ledger = Ledger::open(&home.path()).unwrap();
    check_totals(&home, &ledger);
    verify(&ledger);
    assert_eq!(home.open_requests(), 0, "whoever died is settled");
    check_acknowledged(&home, &ledger, &said);
}

/// What was issued is spent or in a wallet, whatever is under way.
fn check_totals(home: &Home, ledger: &Ledger) {
    let total: i64 = home
        .sql()
        .query_row(
            "SELECT (SELECT sum(remaining) FROM allowance) + (SELECT coalesce(sum(held + debited), 0) FROM in_flight) \
             + (SELECT coalesce(sum(amount), 0) FROM posting WHERE account = (SELECT seq FROM account WHERE id = 'spent'))",
            [],
            |row| row.get(0),
        )
        .unwrap();
    assert_eq!(Credits::from_micro(total), credits(FUNDED * WALLETS.len() as i64), "the bank's total");
    for wallet in ledger.wallets().unwrap() {
        assert!(wallet.balance >= Credits::ZERO, "{wallet:?}");
    }
}

fn check_acknowledged(home: &Home, ledger: &Ledger, said: &[String]) {
    let conn = home.sql();
    let mut counts = HashMap::new();
    let mut paid: HashMap<&str, i64> = HashMap::new();
    let balances = || ledger.wallets().unwrap().into_iter().map(|wallet| wallet.balance).collect::<Vec<_>>();
    let before = balances();
    for line in said {
        let words: Vec<&str> = line.split(' ').collect();
        *counts.entry(words[0].to_owned()).or_insert(0) += 1;
        match words[..] {
            ["transfer", key, from, to, micro] => {
                let found: i64 =
                    conn.query_row("SELECT count(*) FROM memo WHERE text = ?1", [key], |row| row.get(0)).unwrap();
                assert!(found > 0, "an acknowledged transfer is lost: {line}");
                if counts["transfer"] % 20 == 0 {
                    ledger.transfer(transfer(key, from, to, micro.parse().unwrap())).unwrap();
                }
            }
            ["paid", id, tokens] => {
                let most = paid.entry(id).or_default();
                *most = tokens.parse::<i64>().unwrap().max(*most);
            }
            ["refund", id] => {
                let sql = "SELECT count(*) FROM entry WHERE request_id = ?1 AND kind = 'refund'";
                let found: i64 = conn.query_row(sql, [id], |row| row.get(0)).unwrap();
                assert_eq!(found, 1, "an acknowledged refund is lost, or was made twice: {line}");
            }
            _ => {}
        }
    }
    for (id, tokens) in paid {
        let sql = "SELECT debited / 1000000 FROM request_log WHERE id = ?1";
        let logged: i64 = conn.query_row(sql, [id], |row| row.get(0)).unwrap();
        assert!(logged >= tokens, "acknowledged debits are lost: request {id} paid {tokens}, the log has {logged}");
    }
    assert_eq!(balances(), before, "what is sent again moves nothing again");
    for what in ["transfer", "paid", "refund"] {
        assert!(counts.get(what).is_some_and(|&count| count > 0), "no {what} at all: {counts:?}");
    }
}

/// What each process does until it is killed. It says what was acknowledged.
pub(crate) fn trade_for_ever(ledger: &Ledger) {
    let mut rng = Rng::new();
    loop {
        let [from, to] = [(); 2].map(|()| WALLETS[rng.usize(..WALLETS.len())]);
        if rng.bool() {
            let (key, micro) = (Uuid::new_v4().to_string(), rng.i64(1..20_000_000));
            if from != to && ledger.transfer(transfer(&key, from, to, micro)).is_ok() {
                say(&format!("transfer {key} {from} {to} {micro}"));
            }
        } else {
            spend(ledger, &mut rng, from);
        }
    }
}

fn transfer(key: &str, from: &str, to: &str, micro: i64) -> Transfer {
    let (memo, idempotency_key) = (Some(key.to_owned()), Some(key.to_owned()));
    Transfer { memo, idempotency_key, ..Transfer::new(from, to, Credits::from_micro(micro)) }
}

/// A request of a few debits, perhaps refunded.
fn spend(ledger: &Ledger, rng: &mut Rng, wallet: &str) {
    let id = Uuid::new_v4().to_string();
    let prompt = rng.u64(1..20);
    if ledger.admit(admission(&id, wallet, prompt)).is_err() {
        return;
    }
    let mut tokens = i64::try_from(prompt).unwrap();
    for step in 0..rng.u32(1..5) {
        let output = rng.u32(1..6);
        let debit = if step == 0 { first_debit(&id, 0, output) } else { next_debit(&id, output) };
        let debited = debit_all(ledger, vec![debit]).unwrap().remove(0);
        assert!(debited.refused.is_none(), "{debited:?}");
        tokens += i64::from(debited.granted);
        say(&format!("paid {id} {tokens}"));
        if debited.exhausted {
            break;
        }
    }
    settle(ledger, &id, FinishReason::Stop).unwrap();
    if rng.bool() {
        let key = Some(format!("refund-{id}"));
        ledger.refund(Refund { idempotency_key: key, ..Refund::new(&id) }).unwrap();
        say(&format!("refund {id}"));
    }
}
