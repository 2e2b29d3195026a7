//! What a durable debit costs on this disk and this machine, and what bare SQLite takes to change the same rows as durably.
//!
//! `cargo bench -p tokrun-ledger`, in `$TOKRUN_BENCH_DIRECTORY` or else in the current one; `-- 16` for that many requests
//! alone.

#![allow(clippy::print_stdout, reason = "it prints its measurements")]

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tokrun_ledger::{
    Admission, Credits, Debit, FinishReason, GrantRequest, LatencyHistogram, Ledger, Price, PromptDebit, Settlement,
    fsync_probe_us,
};

const MEASURED: Duration = Duration::from_secs(4);

/// The ledger commits no more often than this on average: an engine's step takes longer.
const INTERVAL: Duration = Duration::from_millis(5);

fn main() -> Result<(), Box<dyn Error>> {
    let directory = std::env::var_os("TOKRUN_BENCH_DIRECTORY").map_or_else(|| PathBuf::from("."), PathBuf::from);
    println!(
        "| requests | wallets | commits/s | debits/s | commit p50 / p99 ms | writer CPU us/commit | bare debits/s | of bare \
         | bare CPU us/commit | bare, unpaced | fsync p50 us |"
    );
    println!("|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|");
    let wanted: Vec<usize> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    for (requests, wallets) in [(1, 1), (16, 1), (16, 16), (64, 1), (64, 64), (256, 1), (256, 256)] {
        if !wanted.is_empty() && !wanted.contains(&requests) {
            continue;
        }
        let home = tempfile::tempdir_in(&directory)?;
        let ledger = Ledger::open(&home.path().join("ledger.db"))?;
        start(&ledger, requests, wallets)?;
        let fsync_us = fsync_probe_us(home.path())?;
        let run = measure(&ledger, requests)?;
        let ms = |quantile| run.latency.quantile_us(quantile).unwrap_or(0) as f64 / 1000.0;
        let (paced, unpaced) = (bare(home.path(), Some(INTERVAL))?, bare(home.path(), None)?);
        let [debits, paced_debits, unpaced_debits] =
            [&run, &paced, &unpaced].map(|run| run.commits / run.elapsed.as_secs_f64() * requests as f64);
        println!(
            "| {requests} | {wallets} | {:.0} | {debits:.0} | {:.1} / {:.1} | {} | {paced_debits:.0} | {:.2} | {} \
             | {unpaced_debits:.0} | {fsync_us} |",
            run.commits / run.elapsed.as_secs_f64(),
            ms(0.5),
            ms(0.99),
            run.cpu_us(),
            debits / paced_debits,
            paced.cpu_us(),
        );
        for request in 0..requests {
            ledger.settle(Settlement::new(request.to_string(), FinishReason::Stop))?;
        }
        assert!(ledger.verify()?.passed());
    }
    Ok(())
}

struct Run {
    commits: f64,
    elapsed: Duration,
    latency: LatencyHistogram,
    /// Of the thread that commits, where the system tells.
    cpu: Option<Duration>,
}

impl Run {
    /// Processor time a commit.
    fn cpu_us(&self) -> String {
        self.cpu.map_or("?".to_owned(), |cpu| format!("{:.0}", cpu.as_secs_f64() * 1e6 / self.commits))
    }
}

/// Admits the requests and debits their prompts.
fn start(ledger: &Ledger, requests: usize, wallets: usize) -> Result<(), Box<dyn Error>> {
    let allowance = Credits::from_credits(1_000_000_000).ok_or("too much")?;
    for wallet in 0..wallets {
        ledger.create_wallet(&wallet.to_string(), None)?;
        ledger.grant(GrantRequest::new(wallet.to_string(), allowance))?;
    }
    for request in 0..requests {
        ledger.admit(Admission {
            request_id: request.to_string(),
            wallet: (request % wallets).to_string(),
            starter: None,
            model: "model".into(),
            device: "cpu".into(),
            price: Price::default(),
            prompt_tokens: 100,
            key: None,
            project: None,
            tags: BTreeMap::new(),
        })?;
    }
    commit(ledger, requests, Some(PromptDebit { cached_tokens: 0 }))
}

/// A token of every request, again and again, as an engine does it: the next step runs while the last one is committed.
fn measure(ledger: &Ledger, requests: usize) -> Result<Run, Box<dyn Error>> {
    let cpu_before = writer_cpu();
    let start = Instant::now();
    let mut latency = LatencyHistogram::new();
    let mut commits = 0.0;
    while start.elapsed() < MEASURED {
        let step = Instant::now();
        commit(ledger, requests, None)?;
        latency.record(u64::try_from(step.elapsed().as_micros())?);
        commits += 1.0;
    }
    let elapsed = start.elapsed();
    let cpu = cpu_before.and_then(|before| Some(writer_cpu()?.saturating_sub(before)));
    Ok(Run { commits, elapsed, latency, cpu })
}

fn commit(ledger: &Ledger, requests: usize, prompt: Option<PromptDebit>) -> Result<(), Box<dyn Error>> {
    let debits = (0..requests)
        .map(|request| Debit { request_id: request.to_string(), prompt, output_tokens: 1, reasoning_tokens: 0 })
        .collect();
    let (reply, committed) = mpsc::channel();
    ledger.debit(debits, move |debited| drop(reply.send(debited)));
    match committed.recv()??.iter().all(|debited| debited.granted == 1) {
        true => Ok(()),
        false => Err("a token was not granted".into()),
    }
}

/// Commits a second of SQLite alone, one transaction after another, that change what a debit of every open request does:
/// its progress, what it has of its grant, and that grant. Whoever verifies the file afterwards finds nothing wrong.
fn bare(directory: &Path, interval: Option<Duration>) -> Result<Run, Box<dyn Error>> {
    let mut conn = rusqlite::Connection::open(directory.join("ledger.db"))?;
    conn.execute_batch("PRAGMA synchronous = FULL; PRAGMA busy_timeout = 1000;")?;
    let in_flight: Vec<(i64, i64)> = conn
        .prepare("SELECT request, allowance FROM in_flight")?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<rusqlite::Result<_>>()?;
    let mut of_grant: BTreeMap<i64, i64> = BTreeMap::new();
    in_flight.iter().for_each(|(_, grant)| *of_grant.entry(*grant).or_default() += 1);
    let own_task = Path::new("/proc/thread-self");
    let (cpu_before, mut latency) = (cpu_of(own_task), LatencyHistogram::new());
    let (start, mut due, mut commits) = (Instant::now(), Instant::now(), 0.0);
    while start.elapsed() < MEASURED {
        if let Some(interval) = interval {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            due = (due + interval).max(Instant::now());
        }
        let step = Instant::now();
        let transaction = conn.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        for &(request, grant) in &in_flight {
            transaction
                .prepare_cached("UPDATE progress SET output_tokens = output_tokens + 1 WHERE request = ?1")?
                .execute([request])?;
            transaction
                .prepare_cached(
                    "UPDATE in_flight SET debited = debited + 1000000 WHERE request = ?1 AND allowance = ?2",
                )?
                .execute([request, grant])?;
        }
        for (grant, requests) in &of_grant {
            transaction
                .prepare_cached("UPDATE allowance SET remaining = remaining - 1000000 * ?2 WHERE seq = ?1")?
                .execute([grant, requests])?;
        }
        transaction.commit()?;
        latency.record(u64::try_from(step.elapsed().as_micros())?);
        commits += 1.0;
    }
    let cpu = cpu_before.and_then(|before| Some(cpu_of(own_task)?.saturating_sub(before)));
    Ok(Run { commits, elapsed: start.elapsed(), latency, cpu })
}

/// The processor time of the writer thread, on Linux.
fn writer_cpu() -> Option<Duration> {
    let is_writer =
        |task: &Path| std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() == "ledger-writer");
    let task =
        std::fs::read_dir("/proc/self/task").ok()?.flatten().map(|task| task.path()).find(|task| is_writer(task))?;
    cpu_of(&task)
}

fn cpu_of(task: &Path) -> Option<Duration> {
    let schedstat = std::fs::read_to_string(task.join("schedstat")).ok()?;
    schedstat.split(' ').next()?.parse().ok().map(Duration::from_nanos)
}
