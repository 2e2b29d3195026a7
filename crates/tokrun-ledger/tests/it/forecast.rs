//! How long it lasts.

use tokrun_ledger::{Credits, FinishReason, GrantRequest, Ledger, Period, RecurringGrant};

use crate::common::{Home, admission, at, credits, debit, first_debit, fund, settle};

const DAY_S: i64 = 86_400;

/// So many days on each of which so much is spent at noon.
fn days(home: &Home, ledger: &Ledger, days: i64, tokens: u64) {
    for _ in 0..days {
        home.pass(DAY_S / 2);
        let id = format!("day-{}", home.now_us());
        ledger.admit(admission(&id, "ada", tokens - 1)).unwrap();
        debit(ledger, first_debit(&id, 0, 1));
        settle(ledger, &id, FinishReason::Stop).unwrap();
        home.pass(DAY_S / 2);
    }
}

#[test]
fn it_counts_on_what_is_to_come_and_not_on_what_expires() {
    let home = Home::new();
    let ledger = home.open();
    fund(&ledger, "ada", 100);
    assert_eq!(ledger.forecast("ada").unwrap(), None, "nothing was spent");
    days(&home, &ledger, 2, 10);
    assert_eq!(ledger.forecast("ada").unwrap(), None, "two days tell nothing");
    days(&home, &ledger, 2, 10);
    let forecast = ledger.forecast("ada").unwrap().unwrap();
    assert_eq!((forecast.per_day, forecast.days_seen), (credits(10), 4));
    assert_eq!(forecast.until, Some(at(home.now_us() + 6 * DAY_S * 1_000_000)), "60 are left");

    let expires = Some(at(home.now_us() + 2 * DAY_S * 1_000_000));
    let short = GrantRequest { expires, priority: -1, ..GrantRequest::new("ada", credits(500)) };
    ledger.grant(short).unwrap();
    let later = Some(at(home.now_us() + 3 * DAY_S * 1_000_000));
    ledger.grant(GrantRequest { effective: later, ..GrantRequest::new("ada", credits(5)) }).unwrap();
    let forecast = ledger.forecast("ada").unwrap().unwrap();
    // Two days of what expires, six of the 60 that were left, half a day of what comes.
    assert_eq!(forecast.until, Some(at(home.now_us() + 17 * DAY_S * 500_000)));

    ledger.grant_every(RecurringGrant::new("ada", credits(10), Period::Day)).unwrap();
    assert_eq!(ledger.forecast("ada").unwrap().unwrap().until, None, "more comes than goes");
}

#[test]
fn nothing_left_ends_now_and_a_stranger_is_unknown() {
    let home = Home::new();
    let ledger = home.open();
    fund(&ledger, "ada", 40);
    days(&home, &ledger, 4, 10);
    let forecast = ledger.forecast("ada").unwrap().unwrap();
    assert_eq!((forecast.until, ledger.wallet("ada").unwrap().balance), (Some(at(home.now_us())), Credits::ZERO));
    assert!(ledger.forecast("eve").is_err());
}
