//! How quick a large ledger is: to open, to show, to verify.
//!
//! `cargo run --release -p tokrun-ledger --example large DIRECTORY [ENTRIES]`, ten million of them without a number, takes
//! some minutes and some gigabytes. The entries are written as SQL, with hashes after the encoding that `chain.rs`
//! documents: had it changed, `verify` would say so.

#![allow(clippy::print_stdout, reason = "it prints its measurements")]

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rusqlite::Connection;
use sha2::{Digest, Sha256};
use tokrun_ledger::{
    Admission, Credits, Debit, FinishReason, GrantRequest, Ledger, Price, PromptDebit, Settlement, StatementQuery,
};

type Outcome<T> = Result<T, Box<dyn Error>>;

const WALLETS: usize = 200;
const PROMPT_TOKENS: i64 = 100;
const OUTPUT_TOKENS: i64 = 200;
const YEAR_US: i64 = 365 * 86_400_000_000;

fn main() -> Outcome<()> {
    let mut arguments = std::env::args_os().skip(1);
    let directory = PathBuf::from(arguments.next().ok_or("name a directory")?);
    let entries: i64 = arguments.next().map_or(Ok(10_000_000), |count| count.to_string_lossy().parse())?;
    let file = directory.join("ledger.db");
    if !file.exists() {
        let start = Instant::now();
        build(&file, entries)?;
        println!("built in {:.0} s", start.elapsed().as_secs_f64());
    }
    measure(&file)
}

/// The median of several runs of what is quick.
fn median(mut run: impl FnMut() -> Outcome<()>) -> Outcome<Duration> {
    let mut times = Vec::new();
    for _ in 0..5 {
        let start = Instant::now();
        run()?;
        times.push(start.elapsed());
    }
    times.sort();
    Ok(times[2])
}

fn measure(file: &Path) -> Outcome<()> {
    let open = median(|| {
        Ledger::open(file)?;
        Ok(())
    })?;
    let ledger = Ledger::open(file)?;
    let show = median(|| {
        ledger.wallet("wallet-7")?;
        ledger.forecast("wallet-7")?;
        Ok(())
    })?;
    let now = Timestamp::now();
    let month_ago = Timestamp::from_microsecond(now.as_microsecond() - YEAR_US / 12)?;
    let query = StatementQuery { from: Some(month_ago), to: Some(now), ..StatementQuery::new("wallet-7") };
    let mut lines = 0;
    let statement = median(|| {
        lines = ledger.statement_of(&query)?.lines.len();
        Ok(())
    })?;
    let list = median(|| {
        ledger.wallets()?;
        Ok(())
    })?;
    let ms = |time: Duration| format!("{:.1} ms", time.as_secs_f64() * 1e3);
    println!("open {}; wallet show with forecast {}; wallet list {}", ms(open), ms(show), ms(list));
    println!("statement of a month, {lines} lines: {}", ms(statement));
    let start = Instant::now();
    let report = ledger.verify()?;
    let took = start.elapsed().as_secs_f64();
    println!("verify {:.1} s, {:.0} entries/s", took, report.entries as f64 / took);
    if !report.passed() {
        return Err(format!("{:#?}", report.problems).into());
    }
    Ok(())
}

/// A ledger of many wallets, each with one grant, whose requests over a year were settled in turn.
fn build(file: &Path, entries: i64) -> Outcome<()> {
    let ledger = Ledger::open(file)?;
    for wallet in 0..WALLETS {
        let name = format!("wallet-{wallet}");
        ledger.create_wallet(&name, None)?;
        ledger.grant(GrantRequest::new(name, Credits::from_credits(1_000_000_000_000).ok_or("too much")?))?;
    }
    // One request as the ledger itself writes it: what every other one looks like.
    ledger.admit(Admission {
        request_id: "sample".into(),
        wallet: "wallet-0".into(),
        starter: None,
        model: "smollm2-135m".into(),
        device: "cpu".into(),
        price: Price::default(),
        prompt_tokens: PROMPT_TOKENS.unsigned_abs(),
        key: None,
        project: None,
        tags: Default::default(),
    })?;
    let (reply, answer) = std::sync::mpsc::channel();
    let prompt = Some(PromptDebit { cached_tokens: 0 });
    let debit = Debit { request_id: "sample".into(), prompt, output_tokens: OUTPUT_TOKENS as u32, reasoning_tokens: 0 };
    ledger.debit(vec![debit], move |debited| drop(reply.send(debited)));
    answer.recv()??;
    ledger.settle(Settlement::new("sample", FinishReason::Stop))?;
    drop(ledger);

    let mut conn = Connection::open(file)?;
    conn.execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -500000;")?;
    let transaction = conn.transaction()?;
    append(&transaction, entries)?;
    transaction.commit()?;
    conn.execute_batch("PRAGMA journal_mode = WAL;")?;
    Ok(())
}

fn append(conn: &Connection, entries: i64) -> Outcome<()> {
    let mut accounts = Vec::new();
    for wallet in 0..WALLETS {
        let sql = "SELECT a.seq, a.id, g.seq, g.id FROM wallet_name n JOIN account a ON a.seq = n.wallet \
             JOIN allowance g ON g.wallet = a.seq WHERE n.name = ?1";
        let row: (i64, String, i64, String) = conn.query_row(sql, [format!("wallet-{wallet}")], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
        })?;
        accounts.push(row);
    }
    let itl: Vec<u8> = conn.query_row("SELECT itl FROM request_log", [], |row| row.get(0))?;
    let (first, mut hash): (i64, Vec<u8>) =
        conn.query_row("SELECT entry, hash FROM head", [], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let now_us = Timestamp::now().as_microsecond();
    let mut entry = conn.prepare(
        "INSERT INTO entry (id, kind, idempotency_key, created_us, effective_us, request_id, subject_digest, prev_hash, \
         hash) VALUES (?1, 'settle', ?2, ?3, ?3, ?4, ?5, ?6, ?7)",
    )?;
    let mut posting =
        conn.prepare("INSERT INTO posting (entry, line, account, allowance, amount) VALUES (?1, ?2, ?3, ?4, ?5)")?;
    let mut log = conn.prepare(
        "INSERT INTO request_log (id, entry, wallet, tags, model, device, prompt_micro, cached_micro, output_micro, \
         prompt_tokens, cached_tokens, output_tokens, reasoning_tokens, debited, itl, finish_reason, started_us, ended_us) \
         VALUES (?1, ?2, ?3, '{}', 'smollm2-135m', 'cpu', 1000000, 1000000, 1000000, ?4, 0, ?5, 0, ?6, ?7, 'stop', ?8, ?8)",
    )?;
    let debited = (PROMPT_TOKENS + OUTPUT_TOKENS) * 1_000_000;
    for number in 1..=entries {
        let (id, request) = (first + number, format!("request-{number:012}"));
        let at_us = now_us - YEAR_US + YEAR_US / entries * number;
        let (wallet, wallet_id, grant, grant_id) = &accounts[number as usize % WALLETS];
        let mut logged = Row::default();
        logged.text(&request).text(wallet_id).null().text("{}").text("smollm2-135m").text("cpu");
        for integer in [1_000_000, 1_000_000, 1_000_000, PROMPT_TOKENS, 0, OUTPUT_TOKENS, 0, debited] {
            logged.integer(integer);
        }
        logged.null().null().null().null().blob(&itl).null().text("stop").integer(at_us).integer(at_us);
        let logged = Sha256::digest(&logged.0);

        let key = format!("settle:{request}");
        let mut bytes = Vec::with_capacity(512);
        put(&mut bytes, b"tokrun ledger entry 1");
        bytes.extend(&hash);
        bytes.extend(id.to_be_bytes());
        put(&mut bytes, b"settle");
        put(&mut bytes, key.as_bytes());
        bytes.extend(at_us.to_be_bytes());
        bytes.extend(at_us.to_be_bytes());
        optional(&mut bytes, Some(request.as_bytes()));
        optional(&mut bytes, None);
        optional(&mut bytes, Some(&logged));
        bytes.extend(2_u64.to_be_bytes());
        put(&mut bytes, wallet_id.as_bytes());
        optional(&mut bytes, Some(grant_id.as_bytes()));
        bytes.extend((-debited).to_be_bytes());
        put(&mut bytes, b"spent");
        optional(&mut bytes, None);
        bytes.extend(debited.to_be_bytes());
        let this = Sha256::digest(&bytes);

        entry.execute((id, &key, at_us, &request, &logged[..], &hash, &this[..]))?;
        posting.execute((id, 0, wallet, Some(grant), -debited))?;
        posting.execute((id, 1, 2, None::<i64>, debited))?;
        log.execute((&request, id, wallet, PROMPT_TOKENS, OUTPUT_TOKENS, debited, &itl, at_us))?;
        hash = this.to_vec();
    }
    conn.execute("UPDATE head SET entry = ?1, count = ?1, hash = ?2", (first + entries, &hash))?;
    conn.execute(
        "UPDATE allowance SET remaining = (SELECT sum(p.amount) FROM posting p WHERE p.account = allowance.wallet)",
        [],
    )?;
    Ok(())
}

/// A row as its digest takes it.
#[derive(Default)]
struct Row(Vec<u8>);

impl Row {
    fn null(&mut self) -> &mut Row {
        self.0.push(0);
        self
    }

    fn integer(&mut self, value: i64) -> &mut Row {
        self.0.push(1);
        self.0.extend(value.to_be_bytes());
        self
    }

    fn text(&mut self, text: &str) -> &mut Row {
        self.0.push(3);
        put(&mut self.0, text.as_bytes());
        self
    }

    fn blob(&mut self, blob: &[u8]) -> &mut Row {
        self.0.push(4);
        put(&mut self.0, blob);
        self
    }
}

fn put(bytes: &mut Vec<u8>, value: &[u8]) {
    bytes.extend((value.len() as u64).to_be_bytes());
    bytes.extend(value);
}

fn optional(bytes: &mut Vec<u8>, value: Option<&[u8]>) {
    bytes.push(u8::from(value.is_some()));
    if let Some(value) = value {
        put(bytes, value);
    }
}
