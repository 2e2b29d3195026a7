//! 64 clients on one server, most of them of one wallet, a third of whose requests leave on the way, while it is killed and
//! started anew: what was received, what the ledger says and what `/metrics` says are the same to the token.
//!
//! It takes some seconds; `TOKRUN_TEST_LOAD_S=60` makes it take longer.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use crate::serve::Served;
use crate::support::{Home, Random, default_model, tiny_model};

mod client;
mod fairness;

use client::{Client, End, Seen, now_us};

/// Clients of each wallet: one floods, two would be served as well, and two run dry.
const CLIENTS: [usize; 5] = [40, 6, 6, 6, 6];
const GRANTS: [i64; 5] = [100_000_000, 100_000_000, 100_000_000, 300, 100];
/// What the last one may overdraw.
const FLOORS: [i64; 5] = [0, 0, 0, 0, -200];
const RUNNING_MAX: usize = 8;
/// The engine computes at most so many tokens past what a connection took.
const WINDOW: u64 = 32;
/// What may have been on its way to a client that left: it had read all there was, so these are what a few steps brought
/// until the server heard of it.
const ON_THE_WAY: u64 = 32;
/// Tokens of a step, as the engine has it.
const STEP_TOKENS: u64 = 512;

#[test]
fn sixty_four_clients_and_a_kill_lose_and_invent_nothing() {
    under_load(&tiny_model());
}

#[test]
fn sixty_four_clients_of_the_default_model_lose_and_invent_nothing() {
    if let Some(model) = default_model() {
        under_load(&model);
    }
}

fn under_load(model: &str) {
    let seconds = std::env::var("TOKRUN_TEST_LOAD_S").ok().and_then(|seconds| seconds.parse().ok()).unwrap_or(4.0);
    let half = Duration::from_secs_f64(seconds / 2.0);
    let home = Home::new();
    let mut random = Random::new();
    let clients = clients(&home, model, &mut random);
    let start = || {
        let running = RUNNING_MAX.to_string();
        let flags =
            ["serve", "--model", model, "--port", "0", "--output", "json", "--log", "error", "--max-running", &running];
        Served::of(&mut home.command(&flags))
    };
    let address_of = |served: &Served| served.url.trim_start_matches("http://").to_owned();

    let first = start();
    let address = RwLock::new(address_of(&first));
    let (is_over, all_seen) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    let (second, restarted_us) = thread::scope(|scope| {
        for mut client in clients {
            let (address, is_over, all_seen) = (&address, &is_over, &all_seen);
            scope.spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    let at = address.read().expect("nobody panicked").clone();
                    let seen = client.ask(&at);
                    if matches!(seen.end, End::Refused(_) | End::Broken) {
                        thread::sleep(Duration::from_millis(20));
                    }
                    all_seen.lock().expect("nobody panicked").push(seen);
                }
            });
        }
        thread::sleep(half);
        first.kill();
        let restarted_us = now_us();
        let second = start();
        *address.write().expect("nobody panicked") = address_of(&second);
        thread::sleep(half);
        is_over.store(true, Ordering::Relaxed);
        (second, restarted_us)
    });

    let metrics = metrics_at_rest(&second.url);
    assert_eq!(second.terminate().code(), Some(0));
    let seen = all_seen.into_inner().expect("nobody panicked");
    let rows = rows(&home.path().join("ledger.db"));
    clients_and_ledger_agree(&seen, &rows);
    wallets_agree(&home, &rows);
    metrics_agree(&metrics, rows.values().filter(|row| row.started_us >= restarted_us));
    ends_were_all_there(&seen);
    fairness::everybody_was_served_alike(&seen, &rows);
    home.verify();
}

/// Wallets, keys, and who asks with them.
fn clients(home: &Home, model: &str, random: &mut Random) -> Vec<Client> {
    let name = Path::new(model).file_name().and_then(|name| name.to_str()).expect("it has a name");
    let name = name.strip_suffix(".gguf").unwrap_or(name);
    let mut clients = Vec::new();
    for (wallet, count) in CLIENTS.into_iter().enumerate() {
        let named = wallet_name(wallet);
        home.json(&["wallet", "create", &named, "--overdraft", &(-FLOORS[wallet]).to_string()]);
        home.json(&["wallet", "grant", &named, &GRANTS[wallet].to_string()]);
        let key = home.json(&["key", "create", &named, &format!("key-{wallet}")]);
        let key = key["secret"].as_str().expect("it is shown once");
        clients.extend((0..count).map(|_| Client {
            wallet,
            key: key.to_owned(),
            model: name.to_owned(),
            random: random.fork(),
        }));
    }
    clients
}

fn wallet_name(wallet: usize) -> String {
    format!("wallet-{wallet}")
}

/// What the ledger logged of a request.
struct Row {
    wallet: usize,
    prompt_tokens: u64,
    cached_tokens: u64,
    output_tokens: u64,
    debited: i64,
    started_us: i64,
    queue_us: i64,
}

fn rows(ledger: &Path) -> HashMap<String, Row> {
    let connection = Connection::open(ledger).expect("it is there");
    let query =
        "SELECT r.id, n.name, prompt_tokens, cached_tokens, output_tokens, debited, started_us, ifnull(queue_us, 0)
        FROM request_log r JOIN wallet_name n ON n.wallet = r.wallet";
    let mut statement = connection.prepare(query).expect("the schema has it");
    let rows = statement.query_map([], |row| {
        let wallet: String = row.get(1)?;
        let debited_micro: i64 = row.get(5)?;
        assert_eq!(debited_micro % 1_000_000, 0, "a token costs a credit");
        let logged = Row {
            wallet: wallet.trim_start_matches("wallet-").parse().expect("it is one of ours"),
            prompt_tokens: row.get(2)?,
            cached_tokens: row.get(3)?,
            output_tokens: row.get(4)?,
            debited: debited_micro / 1_000_000,
            started_us: row.get(6)?,
            queue_us: row.get(7)?,
        };
        Ok((row.get(0)?, logged))
    });
    rows.expect("it can be asked").collect::<Result<_, _>>().expect("rows are as the schema says")
}

/// What was read to its end is the same on both sides; what was not is within what promise 4 allows.
fn clients_and_ledger_agree(seen: &[Seen], rows: &HashMap<String, Row>) {
    let mut headless = 0;
    for seen in seen {
        let row = seen.id.as_ref().and_then(|id| rows.get(id));
        match (seen.end, row) {
            (End::Refused(status), row) => {
                assert_eq!(status, 429, "{seen:?}");
                assert!(
                    row.is_none() && GRANTS[seen.wallet] < 10_000,
                    "refused, and {seen:?} is in the ledger or was rich"
                );
            }
            (End::Broken, None) => headless += 1,
            (_, None) => panic!("the ledger has nothing of {seen:?}"),
            (End::Whole, Some(row)) => {
                let usage = |name: &str| seen.usage[name].as_i64().unwrap_or_else(|| panic!("no {name}: {seen:?}"));
                assert_eq!(seen.received_tokens(), row.output_tokens, "{seen:?}");
                assert_eq!(usage("completion_tokens") as u64, row.output_tokens, "{seen:?}");
                assert_eq!(usage("prompt_tokens") as u64, row.prompt_tokens, "{seen:?}");
                assert_eq!((usage("total_tokens"), seen.tokrun["debited"].as_i64()), (row.debited, Some(row.debited)));
            }
            (End::Left | End::Broken, Some(row)) => {
                let received = seen.received_tokens();
                let bound = received..=received + WINDOW + ON_THE_WAY;
                assert!(
                    bound.contains(&row.output_tokens),
                    "{} tokens paid, {bound:?} allowed: {seen:?}",
                    row.output_tokens
                );
            }
        }
    }
    // Requests whose clients lost the server before they heard their names.
    let known: HashSet<&String> = seen.iter().filter_map(|seen| seen.id.as_ref()).collect();
    let unheard: Vec<&Row> = rows.iter().filter(|(id, _)| !known.contains(id)).map(|(_, row)| row).collect();
    assert!(unheard.len() <= headless, "{} requests that nobody asked for", unheard.len());
    assert!(unheard.iter().all(|row| row.output_tokens <= WINDOW + ON_THE_WAY));
}

/// Every wallet has what was granted less what was debited, and no less than it may.
fn wallets_agree(home: &Home, rows: &HashMap<String, Row>) {
    for wallet in 0..CLIENTS.len() {
        let of_wallet = || rows.values().filter(|row| row.wallet == wallet);
        for row in of_wallet() {
            assert_eq!(row.debited as u64, row.prompt_tokens + row.output_tokens);
        }
        let debited: i64 = of_wallet().map(|row| row.debited).sum();
        let name = wallet_name(wallet);
        let shown = home.json(&["wallet", "show", &name]);
        assert_eq!(home.balance(&name), GRANTS[wallet] - debited, "{shown}");
        assert_eq!((&shown["in_flight"], home.spent(&name), home.usage_tokens(&name)), (&0.into(), debited, debited));
        assert!(home.balance(&name) >= FLOORS[wallet], "{shown}");
    }
}

/// The metrics of a server with nothing left to do.
fn metrics_at_rest(url: &str) -> String {
    let read = || {
        let mut response = ureq::get(format!("{url}/metrics")).call().expect("it answers");
        response.body_mut().read_to_string().expect("it can be read")
    };
    let begun = Instant::now();
    let mut before = f64::NAN;
    loop {
        let text = read();
        let ended = value(&text, "vllm:request_success_total", "");
        // A client that is gone gives its place up a little before its request is settled.
        if value(&text, "tokrun_places_taken", "") == 0.0 && ended == before {
            return text;
        }
        before = ended;
        assert!(begun.elapsed() < Duration::from_secs(60), "it does not come to rest: {text}");
        thread::sleep(Duration::from_millis(300));
    }
}

/// Over all its labels that have this in them.
fn value(metrics: &str, name: &str, label: &str) -> f64 {
    let lines = metrics.lines().filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{')));
    let values =
        lines.filter(|line| line.contains(label)).map(|line| line.rsplit(' ').next().expect("a line has a word"));
    values.map(|value| value.parse::<f64>().expect("a number")).sum()
}

fn metrics_agree<'a>(metrics: &str, rows: impl Iterator<Item = &'a Row> + Clone) {
    let sum = |of: fn(&Row) -> u64| rows.clone().map(of).sum::<u64>() as f64;
    let debited = |kind| value(metrics, "tokrun_debited_tokens_total", &format!("kind=\"{kind}\""));
    for (said, logged) in [
        (debited("prompt"), sum(|row| row.prompt_tokens - row.cached_tokens)),
        (debited("cached"), sum(|row| row.cached_tokens)),
        (debited("output"), sum(|row| row.output_tokens)),
        (value(metrics, "vllm:prompt_tokens_total", ""), sum(|row| row.prompt_tokens)),
        (value(metrics, "vllm:generation_tokens_total", ""), sum(|row| row.output_tokens)),
        (value(metrics, "tokrun_debited_credits_total", ""), sum(|row| row.debited as u64)),
        (value(metrics, "vllm:request_success_total", ""), sum(|_| 1)),
    ] {
        assert!((said - logged).abs() < 0.5, "{said} in the metrics, {logged} in the ledger:\n{metrics}");
    }
    assert!(debited("output") > 0.0);
}

/// The load was what it is meant to be.
fn ends_were_all_there(seen: &[Seen]) {
    let count = |end: fn(&End) -> bool| seen.iter().filter(|seen| end(&seen.end)).count();
    let (whole, left) = (count(|end| *end == End::Whole), count(|end| *end == End::Left));
    let (broken, refused) = (count(|end| *end == End::Broken), count(|end| matches!(end, End::Refused(_))));
    eprintln!("{whole} read to their end, {left} left, {broken} broken off, {refused} refused");
    assert!(left * 6 > whole && whole > 5, "{whole} whole, {left} left");
    assert!(broken > 0, "nothing ran when it was killed");
    for poor in 3..5 {
        let ran_dry = seen.iter().any(|seen| seen.wallet == poor && matches!(seen.end, End::Refused(_)));
        assert!(ran_dry, "{} had enough", wallet_name(poor));
    }
}
