//! A month in the life of a ledger, from the first table of people to the last statement.
//!
//! `cargo run --release --example month [DIRECTORY]` imports 200 people in three teams and time zones, lets them ask through
//! March 2026 (daylight saving begins twice on the way) on a clock that only the example moves, and checks that what the
//! statements say adds up to the books. It leaves `ledger.db` in the directory, for `TOKRUN_HOME=DIRECTORY tokrun ledger
//! export --format focus` to read; without one it cleans up behind itself.
#![expect(clippy::print_stdout, reason = "an example talks to its reader")]

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::mpsc;

use jiff::Timestamp;
use jiff::civil::date;
use jiff::tz::TimeZone;
use tokrun_ledger::{
    Admission, Approval, Clock, Credits, Debit, DrawTerms, FinishReason, GrantRequest, ImportGrant, ImportRow, Ledger,
    LimitScope, LimitSpan, NewAsk, NewLimit, NewPrice, Period, Price, PromptDebit, Quota, RecurringGrant, Refund,
    Settlement, StatementQuery, Transfer, UsageBy, UsageQuery, WalletChange, WalletKind,
};

type Outcome<T> = Result<T, Box<dyn Error>>;

const PEOPLE: usize = 200;
const TEAMS: [(&str, &str); 3] =
    [("tools", "Europe/Berlin"), ("research", "America/New_York"), ("support", "Asia/Kolkata")];
const MODEL: &str = "smollm2-135m";

fn main() -> Outcome<()> {
    let named = std::env::args_os().nth(1).map(PathBuf::from);
    let directory =
        named.clone().unwrap_or_else(|| std::env::temp_dir().join(format!("tokrun-month-{}", std::process::id())));
    std::fs::create_dir_all(&directory)?;
    let month = run(&directory);
    if named.is_none() {
        std::fs::remove_dir_all(&directory)?;
    }
    let Month { requests, refused, spent, refunded, left, entries } = month?;
    println!("{requests} requests were paid {spent} credits, {refunded} of it came back, {refused} were refused");
    println!("{left} credits are left; {entries} entries say all of it");
    Ok(())
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Month {
    /// Requests that were settled, and those that were refused: too few credits, a limit, a frozen wallet.
    pub(crate) requests: u64,
    pub(crate) refused: u64,
    /// What was spent and what came back, over all wallets.
    pub(crate) spent: Credits,
    pub(crate) refunded: Credits,
    /// What is left, over all wallets.
    pub(crate) left: Credits,
    /// Entries in the chain.
    pub(crate) entries: u64,
}

/// Lives through the month in a new ledger in this directory.
pub(crate) fn run(directory: &Path) -> Outcome<Month> {
    let time = Time::at("2026-02-27T12:00:00Z")?;
    let ledger = Ledger::open_with_clock(&directory.join("ledger.db"), time.clock())?;
    let table = directory.join("people.csv");
    std::fs::write(&table, people())?;

    // Finance imports the table once; sending it again by mistake changes nothing.
    ledger.import(read_table(&table)?, false)?;
    let again = ledger.import(read_table(&table)?, false)?;
    expect(again.iter().all(|row| !row.is_news()), "the same table again changes nothing")?;

    agree(&ledger, &time)?;
    let mut office = Office { ledger, rng: Rng(2026), refused: 0, requests: Vec::new() };
    for day in 1..=31_i8 {
        time.set(date(2026, 3, day).at(10, 0, 0, 0).to_zoned_datetime(TimeZone::UTC)?.timestamp());
        office.day(day)?;
        incidents(&office, day)?;
    }
    time.set("2026-04-01T12:00:00Z".parse()?);
    close(&office)
}

/// The clock that the ledger reads.
struct Time(Arc<AtomicI64>);

impl Time {
    fn at(instant: &str) -> Outcome<Time> {
        Ok(Time(Arc::new(AtomicI64::new(instant.parse::<Timestamp>()?.as_microsecond()))))
    }

    fn clock(&self) -> Clock {
        let now_us = Arc::clone(&self.0);
        Arc::new(move || now_us.load(Ordering::SeqCst))
    }

    fn set(&self, instant: Timestamp) {
        self.0.store(instant.as_microsecond(), Ordering::SeqCst);
    }
}

/// A table as an HR system writes it, with the columns of `tokrun wallet import`.
fn people() -> String {
    let mut table = "wallet,kind,parent,zone,draw,draw_every,amount,expires,every,on,rollover,memo\n".to_owned();
    table += "acme,organisation,,,,,,,,,,\n";
    for (team, zone) in TEAMS {
        table += &format!("{team},team,acme,{zone},,,100000,2026-07-01,,,,the pool of {team}\n");
    }
    for person in 0..PEOPLE {
        let (team, _) = TEAMS[person % TEAMS.len()];
        table += &format!("person-{person:03},person,{team},,1000,month,3000,,month,1,500,part of the pay\n");
    }
    table
}

fn read_table(file: &Path) -> Outcome<Vec<ImportRow>> {
    let mut zones: BTreeMap<String, TimeZone> = BTreeMap::new();
    let mut rows = Vec::new();
    for record in csv::Reader::from_path(file)?.deserialize() {
        let record: BTreeMap<String, String> = record?;
        let cell = |column: &str| record.get(column).filter(|cell| !cell.is_empty()).cloned();
        let wallet = cell("wallet").ok_or("a row names no wallet")?;
        let parent = cell("parent");
        let zone = match (cell("zone"), parent.as_ref().and_then(|parent| zones.get(parent))) {
            (Some(name), _) => TimeZone::get(&name)?,
            (None, parents) => parents.cloned().unwrap_or(TimeZone::UTC),
        };
        zones.insert(wallet.clone(), zone.clone());
        let change = WalletChange {
            kind: match cell("kind").as_deref() {
                Some("organisation") => Some(WalletKind::Organisation),
                Some("team") => Some(WalletKind::Team),
                _ => None,
            },
            parent: parent.map(Some),
            zone: cell("zone").map(Some),
            draw: cell("draw")
                .map(|cap| cap.parse())
                .transpose()?
                .map(|cap| DrawTerms { cap: Some(cap), every: Some(Period::Month) }),
            ..WalletChange::default()
        };
        let key = Some(format!("import of {wallet}"));
        let grant = match (cell("amount"), cell("every")) {
            (None, _) => None,
            (Some(amount), None) => Some(ImportGrant::Once(GrantRequest {
                expires: cell("expires").map(|day| midnight(&day, &zone)).transpose()?,
                memo: cell("memo"),
                idempotency_key: key,
                ..GrantRequest::new(&wallet, amount.parse()?)
            })),
            (Some(amount), Some(_)) => Some(ImportGrant::Every(RecurringGrant {
                on: cell("on").map(|day| day.parse()).transpose()?,
                rollover: cell("rollover").unwrap_or_else(|| "0".into()).parse()?,
                memo: cell("memo"),
                idempotency_key: key,
                ..RecurringGrant::new(&wallet, amount.parse()?, Period::Month)
            })),
        };
        rows.push(ImportRow { wallet, change, grant });
    }
    Ok(rows)
}

fn midnight(day: &str, zone: &TimeZone) -> Outcome<Timestamp> {
    Ok(day.parse::<jiff::civil::Date>()?.at(0, 0, 0, 0).to_zoned_datetime(zone.clone())?.timestamp())
}

/// Prices and limits, before the month begins.
fn agree(ledger: &Ledger, time: &Time) -> Outcome<()> {
    let price = |prompt: &str, cached: &str, output: &str, reasoning: &str| -> Outcome<Price> {
        let (prompt, cached_prompt) = (prompt.parse()?, cached.parse()?);
        Ok(Price { prompt, cached_prompt, output: output.parse()?, reasoning: reasoning.parse()? })
    };
    let value = Some("0.002EUR".parse()?);
    ledger.set_price(NewPrice { value: value.clone(), ..NewPrice::new(MODEL, price("0.5", "0.1", "1", "0.75")?) })?;
    // From the middle of the month on, answers cost more.
    let dearer = NewPrice::new(MODEL, price("0.5", "0.1", "1.25", "0.75")?);
    ledger.set_price(NewPrice { value, from: Some("2026-03-16T00:00:00Z".parse()?), ..dearer })?;

    let of_wallet = |wallet: &str| LimitScope { wallet: Some(wallet.into()), ..LimitScope::default() };
    let support_a_day = Quota::Tokens(9_000);
    ledger.set_limit(NewLimit::new(of_wallet("support"), support_a_day, LimitSpan::Day))?;
    ledger.set_limit(NewLimit::new(of_wallet("person-000"), Quota::Credits("1500".parse()?), LimitSpan::Month))?;
    time.set("2026-02-28T12:00:00Z".parse()?);
    Ok(())
}

/// Who asks, and what came of it.
struct Office {
    ledger: Ledger,
    rng: Rng,
    refused: u64,
    /// Settled, in their order.
    requests: Vec<String>,
}

/// A number that looks random and is the same each time.
struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: u64) -> u64 {
        // The steps and the mix of SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

impl Office {
    /// Each person asks on two days of three. They ask at once: what is queued together shares its commits.
    fn day(&mut self, day: i8) -> Outcome<()> {
        let mut asked = Vec::new();
        for person in 0..PEOPLE {
            if self.rng.below(3) > 0 {
                asked.push((format!("march-{day}-{person}"), person, self.rng.below(180) + 20));
            }
        }
        let (reply, answers) = mpsc::channel();
        for (id, person, prompt_tokens) in &asked {
            let (reply, asked) = (reply.clone(), (id.clone(), *prompt_tokens));
            let then = move |outcome| drop(reply.send((asked, outcome)));
            self.ledger.admit_then(admission(id, *person, *prompt_tokens), then);
        }
        drop(reply);
        let mut debits = Vec::new();
        for ((id, prompt_tokens), outcome) in answers {
            match outcome {
                Ok(_) => {
                    let reasoning_tokens = self.rng.below(40) as u32;
                    let output_tokens = reasoning_tokens + self.rng.below(200) as u32 + 1;
                    let prompt = Some(PromptDebit { cached_tokens: self.rng.below(prompt_tokens) });
                    debits.push(Debit { request_id: id, prompt, output_tokens, reasoning_tokens });
                }
                Err(error) if error.is_refusal() => self.refused += 1,
                Err(error) => return Err(error.into()),
            }
        }
        let (reply, answers) = mpsc::channel();
        self.ledger.debit(debits, move |outcome| drop(reply.send(outcome)));
        let (reply, settled) = mpsc::channel();
        for debited in answers.recv()?? {
            let ended = if debited.exhausted { FinishReason::Allowance } else { FinishReason::Stop };
            let reply = reply.clone();
            self.ledger.settle_then(Settlement::new(&debited.request_id, ended), move |it| drop(reply.send(it)));
            self.requests.push(debited.request_id);
        }
        drop(reply);
        settled.into_iter().try_for_each(|outcome| outcome.map(drop))?;
        Ok(())
    }
}

fn admission(id: &str, person: usize, prompt_tokens: u64) -> Admission {
    Admission {
        request_id: id.into(),
        wallet: format!("person-{person:03}"),
        starter: None,
        model: MODEL.into(),
        device: "cpu".into(),
        // The ledger has prices of its own for this model, which go before it.
        price: Price::default(),
        prompt_tokens,
        key: None,
        project: person.is_multiple_of(2).then(|| "apollo".into()),
        tags: BTreeMap::from([("site".into(), TEAMS[person % TEAMS.len()].1.into())]),
    }
}

/// What happens in a month.
fn incidents(office: &Office, day: i8) -> Outcome<()> {
    let ledger = &office.ledger;
    match day {
        9 => {
            let memo = Some("for the demo".into());
            ledger.transfer(Transfer { memo, ..Transfer::new("person-001", "person-004", "250".parse()?) })?;
        }
        12 => {
            let reason = Some("the migration of the archive".into());
            let (wallet, amount) = ("person-007".into(), "400".parse()?);
            let asked = ledger.ask(NewAsk { wallet, amount, reason, idempotency_key: None })?;
            ledger.approve(Approval { amount: Some("300".parse()?), ..Approval::new(asked.id) })?;
        }
        20 => {
            let hung = office.requests.last().ok_or("somebody asked")?;
            let refunded = ledger.refund(Refund { memo: Some("it hung".into()), ..Refund::new(hung) })?;
            expect(refunded.amount > Credits::ZERO, "what was paid comes back")?;
        }
        25 => drop(ledger.freeze("person-013", None)?),
        26 => drop(ledger.thaw("person-013", None)?),
        _ => {}
    }
    Ok(())
}

/// The end of the month: everybody's statement, and whether all of it adds up to the books.
fn close(office: &Office) -> Outcome<Month> {
    let ledger = &office.ledger;
    let (mut spent, mut refunded, mut left) = (0, 0, 0);
    for wallet in ledger.wallets()? {
        let zone = TimeZone::get(&wallet.zone)?;
        let (from, to) = (midnight("2026-03-01", &zone)?, midnight("2026-04-01", &zone)?);
        let query = StatementQuery { from: Some(from), to: Some(to), ..StatementQuery::new(&wallet.name) };
        let march = ledger.statement_of(&query)?;
        let lines: i64 = march.lines.iter().map(|line| line.amount.micro()).sum();
        expect(march.opening.micro() + lines == march.closing.micro(), "a statement adds up")?;
        let totals: i64 = march.totals().iter().map(|(_, amount)| amount.micro()).sum();
        expect(totals == lines, "the sums of its kinds are those of its lines")?;
        let of_spending: i64 = march.spending.by_day.iter().map(|day| day.amount.micro()).sum();
        let settled: i64 = sum(&march.lines, |kind| kind == "settle");
        expect(of_spending == -settled, "its days are what was spent")?;
        spent -= settled;
        refunded += sum(&march.lines, |kind| kind == "refund");
        let whole = ledger.statement(&wallet.name, None, None)?;
        expect(whole.closing == wallet.balance, "all its lines together are the balance")?;
        left += wallet.balance.micro();
    }
    let usage = ledger.usage(&UsageQuery::new(UsageBy::Model))?;
    let debited: i64 = usage.iter().map(|row| row.debited.micro()).sum();
    expect(debited == spent, "what the log says was debited is what statements say was spent")?;
    let report = ledger.verify()?;
    expect(report.passed(), "the books are sound")?;
    Ok(Month {
        requests: usage.iter().map(|row| row.requests).sum(),
        refused: office.refused,
        spent: Credits::from_micro(spent),
        refunded: Credits::from_micro(refunded),
        left: Credits::from_micro(left),
        entries: report.entries,
    })
}

fn sum(lines: &[tokrun_ledger::StatementLine], is_of: impl Fn(&str) -> bool) -> i64 {
    lines.iter().filter(|line| is_of(line.kind.as_str())).map(|line| line.amount.micro()).sum()
}

fn expect(holds: bool, what: &str) -> Outcome<()> {
    if holds { Ok(()) } else { Err(format!("not so: {what}").into()) }
}
