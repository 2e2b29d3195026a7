//! Grants that come again, what of them rolls over, and grants made void.

use jiff::Timestamp;
use proptest::prelude::*;
use tokrun_ledger::{
    Credits, FinishReason, GrantRequest, GrantState, Ledger, LedgerError, NewWallet, Period, RecurringGrant,
    StatementKind,
};

use crate::common::{Home, admission, at, balance, credits, debit, first_debit, settle, verify};

const DAY: i64 = 24 * 3600;

fn us(text: &str) -> i64 {
    text.parse::<Timestamp>().unwrap().as_microsecond()
}

fn pass_until(home: &Home, text: &str) {
    home.pass((us(text) - home.now_us()) / 1_000_000);
}

fn berliner(home: &Home) -> Ledger {
    let ledger = home.open();
    ledger.open_wallet(NewWallet { zone: Some("Europe/Berlin".into()), ..NewWallet::new("ada") }).unwrap();
    ledger
}

fn spend(ledger: &Ledger, id: &str, amount: u32) {
    ledger.admit(admission(id, "ada", 1)).unwrap();
    assert_eq!(debit(ledger, first_debit(id, 0, amount - 1)).granted, amount - 1);
    settle(ledger, id, FinishReason::Stop).unwrap();
}

#[test]
fn a_monthly_grant_comes_at_local_midnight_and_what_is_left_rolls_over_up_to_a_cap() {
    let home = Home::new();
    let ledger = berliner(&home);
    pass_until(&home, "2026-02-15T09:00:00Z");
    let given = RecurringGrant {
        on: Some(31),
        rollover: credits(30),
        memo: Some("allowance".into()),
        ..RecurringGrant::new("ada", credits(100), Period::Month)
    };
    let view = ledger.grant_every(given).unwrap();
    assert_eq!(view.next.unwrap().to_string(), "2026-02-27T23:00:00Z", "the 28th, in Berlin");
    assert_eq!(balance(&ledger, "ada"), credits(100));
    spend(&ledger, "r1", 60);

    pass_until(&home, "2026-02-27T22:59:59Z");
    assert_eq!(balance(&ledger, "ada"), credits(40));
    home.pass(1);
    assert_eq!(balance(&ledger, "ada"), credits(130), "seen before it is written");
    spend(&ledger, "r2", 35);
    let ada = ledger.wallet("ada").unwrap();
    let left: Vec<_> = ada.grants.iter().filter(|grant| grant.state == GrantState::Live).collect();
    assert_eq!(left.len(), 1, "what rolled over burns first");
    assert_eq!((left[0].remaining, left[0].memo.as_deref()), (credits(95), Some("allowance")));
    assert_eq!(left[0].expires.unwrap().to_string(), "2026-03-30T22:00:00Z", "summer time");
    let lines = ledger.statement("ada", None, None).unwrap().lines;
    let kinds: Vec<_> = lines.iter().map(|line| (line.kind, line.amount)).collect();
    use StatementKind::{Expire, Grant, Rollover, Settle};
    let expected = [(Grant, 100), (Settle, -60), (Rollover, 0), (Grant, 100), (Expire, -10), (Settle, -35)];
    assert_eq!(kinds, expected.map(|(kind, amount)| (kind, Credits::from_micro(amount * 1_000_000))));
    assert_eq!(lines[2].moved, Some(credits(30)));
    verify(&ledger);
}

#[test]
fn it_ends_when_it_was_to_end_or_is_made_void() {
    let home = Home::new();
    let ledger = berliner(&home);
    let daily = RecurringGrant {
        until: Some(at(home.now_us() + 3 * DAY * 1_000_000)),
        ..RecurringGrant::new("ada", credits(5), Period::Day)
    };
    ledger.grant_every(daily).unwrap();
    home.pass(10 * DAY);
    // At once, and at the three midnights before the end; the last one is good for a day.
    assert_eq!(ledger.wallet("ada").unwrap().grants.len(), 4);
    assert_eq!(balance(&ledger, "ada"), Credits::ZERO);
    let weekly = ledger.grant_every(RecurringGrant::new("ada", credits(7), Period::Week)).unwrap();
    assert_eq!(ledger.wallet("ada").unwrap().recurring.len(), 1);
    ledger.void(&weekly.id, None).unwrap();
    home.pass(30 * DAY);
    let ada = ledger.wallet("ada").unwrap();
    assert_eq!((ada.recurring.len(), ada.grants.len()), (0, 5));
    verify(&ledger);
}

#[test]
fn a_void_grant_is_gone_but_for_what_runs() {
    let home = Home::new();
    let ledger = berliner(&home);
    let grant = ledger.grant(GrantRequest::new("ada", credits(50))).unwrap();
    let later = GrantRequest { effective: Some(at(home.now_us() + 1_000_000)), ..GrantRequest::new("ada", credits(9)) };
    let pending = ledger.grant(later).unwrap();
    ledger.admit(admission("r1", "ada", 9)).unwrap();
    assert_eq!(ledger.void(&grant.id, None).unwrap().balance, Credits::ZERO);
    ledger.void(&pending.id, Some("mistake".into())).unwrap();
    ledger.void(&pending.id, Some("mistake".into())).unwrap();
    let other = ledger.void(&grant.id, Some("mistake".into()));
    assert!(matches!(other, Err(LedgerError::IdempotencyConflict { .. })), "{other:?}");
    ledger.void(&grant.id, None).unwrap();
    home.pass(2);
    let first = debit(&ledger, first_debit("r1", 9, 5));
    assert_eq!(first.granted, 1, "the hold covers one");
    settle(&ledger, "r1", FinishReason::Allowance).unwrap();
    ledger.admit(admission("r2", "ada", 0)).unwrap_err();
    assert!(ledger.wallet("ada").unwrap().grants.iter().all(|grant| grant.state == GrantState::Void));
    assert_eq!(ledger.statement("ada", None, None).unwrap().closing, Credits::ZERO);
    assert!(matches!(ledger.void("nothing", None), Err(LedgerError::UnknownGrant { .. })));
    verify(&ledger);

    // What was only held of a void grant comes back to nobody.
    let grant = ledger.grant(GrantRequest::new("ada", credits(50))).unwrap();
    ledger.admit(admission("r3", "ada", 9)).unwrap();
    ledger.void(&grant.id, None).unwrap();
    settle(&ledger, "r3", FinishReason::Cancelled).unwrap();
    assert_eq!(balance(&ledger, "ada"), Credits::ZERO);
    verify(&ledger);
}

#[test]
fn a_key_gives_once_and_nonsense_gives_nothing() {
    let home = Home::new();
    let ledger = berliner(&home);
    let keyed =
        RecurringGrant { idempotency_key: Some("pay".into()), ..RecurringGrant::new("ada", credits(5), Period::Day) };
    let id = ledger.grant_every(keyed.clone()).unwrap().id;
    assert_eq!(ledger.grant_every(keyed.clone()).unwrap().id, id);
    let other = RecurringGrant { amount: credits(6), ..keyed };
    assert!(matches!(ledger.grant_every(other), Err(LedgerError::IdempotencyConflict { .. })));
    let new = || RecurringGrant::new("ada", credits(5), Period::Week);
    for nonsense in [
        RecurringGrant { amount: Credits::ZERO, ..new() },
        RecurringGrant { amount: Credits::from_micro(i64::MAX), ..new() },
        RecurringGrant { rollover: Credits::from_micro(-1), ..new() },
        RecurringGrant { on: Some(8), ..new() },
        RecurringGrant { on: Some(0), ..new() },
        RecurringGrant { until: Some(at(home.now_us())), ..new() },
    ] {
        let refused = ledger.grant_every(nonsense).unwrap_err();
        assert!(matches!(refused, LedgerError::InvalidGrant { .. }), "{refused}");
    }
    assert_eq!(balance(&ledger, "ada"), credits(5));
    assert_eq!(ledger.wallet("ada").unwrap().recurring.len(), 1);
}

/// What the books say of a wallet, without what depends on who wrote it when.
fn books(ledger: &Ledger) -> Vec<String> {
    let statement = ledger.statement("ada", None, None).unwrap();
    let line =
        |line: &tokrun_ledger::StatementLine| format!("{} {:?} {} {:?}", line.date, line.kind, line.amount, line.memo);
    let ada = ledger.wallet("ada").unwrap();
    let grant = |grant: &tokrun_ledger::GrantView| {
        format!("{} {} {} {:?} {:?}", grant.effective, grant.amount, grant.remaining, grant.expires, grant.state)
    };
    statement.lines.iter().map(line).chain(ada.grants.iter().map(grant)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 100, ..ProptestConfig::default() })]

    /// The same grants, whether somebody writes at random moments or nobody does for months.
    #[test]
    fn nothing_depends_on_who_was_awake(
        grants in prop::collection::vec((2..9_i64, 0..3_usize, 1..29_u8, 0..6_i64, -1..2_i32), 1..4),
        naps in prop::collection::vec(1..3_000_000_i64, 1..12),
        overdraft in 0..4_i64,
    ) {
        let (lazy, busy) = (Home::new(), Home::new());
        let ledgers = [berliner(&lazy), berliner(&busy)];
        for ledger in &ledgers {
            let change = tokrun_ledger::WalletChange { overdraft: Some(credits(overdraft)), ..Default::default() };
            ledger.change_wallet("ada", change).unwrap();
            for &(amount, every, on, rollover, priority) in &grants {
                let every = [Period::Day, Period::Week, Period::Month][every];
                let on = match every { Period::Day => None, Period::Week => Some(on % 7 + 1), Period::Month => Some(on) };
                let new = RecurringGrant::new("ada", credits(amount), every);
                ledger.grant_every(RecurringGrant { on, rollover: credits(rollover), priority, ..new }).unwrap();
            }
            // Down to the floor, so that what comes next repays the overdraft.
            let given: i64 = grants.iter().map(|grant| grant.0).sum();
            spend(ledger, "first", u32::try_from(given + overdraft).unwrap());
        }
        for (number, &nap) in naps.iter().enumerate() {
            lazy.pass(nap);
            busy.pass(nap);
            // Whoever writes anything of that wallet writes what is due; one that is refused writes nothing.
            let id = format!("r{number}");
            if ledgers[1].admit(admission(&id, "ada", 0)).is_ok() {
                settle(&ledgers[1], &id, FinishReason::Cancelled).unwrap();
            }
        }
        prop_assert_eq!(books(&ledgers[0]), books(&ledgers[1]));
        for ledger in &ledgers {
            ledger.grant(GrantRequest::new("ada", credits(1))).unwrap();
        }
        prop_assert_eq!(books(&ledgers[0]), books(&ledgers[1]));
        verify(&ledgers[0]);
        verify(&ledgers[1]);
    }
}
