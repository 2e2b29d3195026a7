//! Statements add up, between any two instants, for a wallet and for a tree of them.

use fastrand::Rng;
use jiff::Timestamp;
use tokrun_ledger::{
    Credits, DrawTerms, FinishReason, GrantRequest, Ledger, NewWallet, Period, RecurringGrant, Spent, Statement,
    StatementKind, StatementQuery, Transfer, WalletKind,
};

use crate::common::{Home, START_US, admission, at, credits, debit, first_debit, settle, verify};

const WALLETS: [&str; 5] = ["acme", "tools", "ada", "bob", "agent"];
const DAY_S: i64 = 86_400;

#[test]
fn opening_and_lines_are_closing_between_any_two_instants() {
    for seed in 0..12 {
        let mut rng = Rng::with_seed(seed);
        let home = Home::new();
        let ledger = company(&home);
        for step in 0..60 {
            act(&home, &ledger, &mut rng, &format!("{seed}-{step}"));
            if rng.u8(..4) == 0 {
                home.pass(rng.i64(1..4 * DAY_S));
            }
        }
        let mut told = Vec::new();
        for wallet in WALLETS {
            told.extend(check(&home, &ledger, &mut rng, wallet, &format!("seed {seed}, {wallet}")));
        }
        // Whoever writes next writes what time has done.
        home.pass(1);
        for wallet in WALLETS {
            ledger.grant(GrantRequest::new(wallet, Credits::from_micro(1))).unwrap();
        }
        told.iter().for_each(|told| told.check(&home, &format!("seed {seed}")));
        verify(&ledger);
    }
}

/// A tree of wallets in Berlin that are given something again and again.
fn company(home: &Home) -> Ledger {
    let ledger = home.open();
    let under = |name: &str, kind, parent: Option<&str>| NewWallet {
        kind,
        parent: parent.map(str::to_owned),
        draw: parent.map(|_| DrawTerms { cap: Some(credits(40)), every: Some(Period::Week) }),
        ..NewWallet::new(name)
    };
    let berlin = Some("Europe/Berlin".to_owned());
    let acme = NewWallet { zone: berlin, ..under("acme", WalletKind::Organisation, None) };
    ledger.open_wallet(acme).unwrap();
    ledger.open_wallet(under("tools", WalletKind::Team, Some("acme"))).unwrap();
    ledger.open_wallet(NewWallet { overdraft: credits(5), ..under("ada", WalletKind::Person, Some("tools")) }).unwrap();
    ledger.open_wallet(under("bob", WalletKind::Person, Some("tools"))).unwrap();
    ledger.open_wallet(under("agent", WalletKind::Service, Some("ada"))).unwrap();
    ledger.grant_every(RecurringGrant::new("tools", credits(50), Period::Week)).unwrap();
    let monthly = RecurringGrant { rollover: credits(7), ..RecurringGrant::new("ada", credits(30), Period::Day) };
    ledger.grant_every(monthly).unwrap();
    ledger
}

/// Something that the books must explain; what the ledger refuses is none.
fn act(home: &Home, ledger: &Ledger, rng: &mut Rng, id: &str) {
    let wallet = WALLETS[rng.usize(..WALLETS.len())];
    match rng.u8(..8) {
        0 => {
            let expires = rng.bool().then(|| at(home.now_us() + rng.i64(1..6 * DAY_S) * 1_000_000));
            let effective = rng.bool().then(|| at(home.now_us() + rng.i64(0..1_000_000)));
            let amount = Credits::from_micro(rng.i64(1..30_000_000));
            ledger.grant(GrantRequest { effective, expires, ..GrantRequest::new(wallet, amount) }).unwrap();
        }
        1 => {
            let to = WALLETS[rng.usize(..WALLETS.len())];
            ledger.transfer(Transfer::new(wallet, to, Credits::from_micro(rng.i64(1..9_000_000)))).ok();
        }
        2 => {
            let grants = ledger.wallet(wallet).unwrap().grants;
            if let Some(grant) = grants.get(rng.usize(..grants.len().max(1))) {
                ledger.void(&grant.id, None).ok();
            }
        }
        _ => {
            let mut request = admission(id, wallet, rng.u64(1..9));
            request.model = format!("model-{}", rng.u8(..2));
            request.project = rng.bool().then(|| format!("project-{}", rng.u8(..3)));
            if ledger.admit(request).is_ok() {
                debit(ledger, first_debit(id, 0, rng.u32(..20)));
                if rng.u8(..10) > 0 {
                    settle(ledger, id, FinishReason::Stop).unwrap();
                }
            }
        }
    }
}

fn check(home: &Home, ledger: &Ledger, rng: &mut Rng, wallet: &str, what: &str) -> Vec<Told> {
    let mut told = Vec::new();
    let of = |subtree, from, to| {
        ledger.statement_of(&StatementQuery { subtree, from, to, ..StatementQuery::new(wallet) }).unwrap()
    };
    let instant = |rng: &mut Rng| at(rng.i64(START_US - 1..=home.now_us() + 1));
    for subtree in [false, true] {
        let whole = of(subtree, None, None);
        let balances = ledger.wallets().unwrap();
        let is_member = |name: &str| name == wallet || subtree && stands_under(ledger, name, wallet);
        let balance: i64 = balances.iter().filter(|w| is_member(&w.name)).map(|w| w.balance.micro()).sum();
        assert_eq!(whole.closing.micro() - whole.in_flight.micro(), balance, "{what}: the balance of now");
        for _ in 0..6 {
            let (from, to) = (instant(rng), instant(rng));
            let (from, to) = (from.min(to), from.max(to));
            let part = of(subtree, Some(from), Some(to));
            adds_up(&part, what);
            let before = of(subtree, None, Some(from));
            adds_up(&before, what);
            let after = of(subtree, Some(to), None);
            adds_up(&after, what);
            assert_eq!((before.closing, part.closing), (part.opening, after.opening), "{what}: parts join");
            assert_eq!(after.closing, whole.closing, "{what}: {from} {to}");
            let lines = before.lines.len() + part.lines.len() + after.lines.len();
            assert_eq!(lines, whole.lines.len(), "{what}: each line is in one part");
            let wallets = balances.iter().filter(|w| is_member(&w.name)).map(|w| w.name.clone()).collect();
            told.push(Told { wallets, before: to, closing: part.closing });
        }
    }
    told
}

/// A balance that a statement told.
struct Told {
    wallets: Vec<String>,
    before: Timestamp,
    closing: Credits,
}

impl Told {
    /// Compares it with the entries themselves, once all that was due is written.
    fn check(&self, home: &Home, what: &str) {
        let sql = "SELECT coalesce(sum(p.amount), 0) FROM posting p JOIN entry e ON e.id = p.entry \
             JOIN wallet_name n ON n.wallet = p.account WHERE n.name = ?1 AND e.effective_us < ?2";
        let conn = home.sql();
        let booked = |name: &String| -> i64 {
            conn.query_row(sql, (name, self.before.as_microsecond()), |row| row.get(0)).unwrap()
        };
        let booked: i64 = self.wallets.iter().map(booked).sum();
        assert_eq!(self.closing.micro(), booked, "{what}: the books at {}", self.before);
    }
}

fn stands_under(ledger: &Ledger, name: &str, above: &str) -> bool {
    let parent = ledger.wallet(name).unwrap().parent;
    parent.is_some_and(|parent| parent == above || stands_under(ledger, &parent, above))
}

fn adds_up(statement: &Statement, what: &str) {
    let mut balance = statement.opening.micro();
    for line in &statement.lines {
        balance += line.amount.micro();
        assert_eq!(line.balance_after.micro(), balance, "{what}");
    }
    assert_eq!(statement.closing.micro(), balance, "{what}");
    let totals: i64 = statement.totals().iter().map(|(_, sum)| sum.micro()).sum();
    assert_eq!(statement.opening.micro() + totals, balance, "{what}: the totals are the lines");
    let settled = statement.lines.iter().filter(|line| line.kind == StatementKind::Settle);
    let spent: i64 = settled.map(|line| -line.amount.micro()).sum();
    let spending = &statement.spending;
    for groups in [&spending.by_model, &spending.by_project, &spending.by_wallet, &spending.by_day] {
        let sum: i64 = groups.iter().map(|group: &Spent| group.amount.micro()).sum();
        assert_eq!(sum, spent, "{what}: every grouping is of the same requests");
    }
}

#[test]
fn days_are_those_of_the_wallet_and_a_pools_requests_are_the_members() {
    let home = Home::new();
    let ledger = company(&home);
    home.pass(DAY_S * 4 + 23 * 3600 + 1800); // half past midnight of the 6th of January in Berlin
    ledger.admit(admission("late", "bob", 3)).unwrap();
    debit(&ledger, first_debit("late", 0, 4));
    settle(&ledger, "late", FinishReason::Stop).unwrap();
    let tools = ledger.statement("tools", None, None).unwrap();
    assert_eq!(tools.zone, "Europe/Berlin");
    let spent = |key: &str| vec![Spent { key: key.into(), requests: 1, tokens: 7, amount: credits(7) }];
    assert_eq!(tools.spending.by_day, spent("2026-01-06"));
    assert_eq!(tools.spending.by_wallet, spent("bob"));
    assert_eq!(tools.spending.by_project, spent(""));
    assert_eq!(ledger.statement("bob", None, None).unwrap().lines.len(), 0, "the pool paid");
    let subtree = StatementQuery { subtree: true, ..StatementQuery::new("tools") };
    assert_eq!(ledger.statement_of(&subtree).unwrap().spending.by_model, spent("model"));
}
