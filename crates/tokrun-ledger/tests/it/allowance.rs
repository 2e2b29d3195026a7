//! What a wallet may spend: exact ends, burn-down, expiry, holds, and everything being said and counted once.

use crate::common::{
    Home, START_US, admission, at, balance, credits, debit, debit_all, first_debit, fund, next_debit, settle, verify,
};
use tokrun_ledger::{
    Admission, Credits, FinishReason, GrantRequest, GrantState, LatencyHistogram, LedgerError, Price, Settlement,
    StarterGrant, StatementKind, UsageBy, UsageQuery,
};

#[test]
fn stops_at_the_exact_token() {
    let home = Home::new();
    let ledger = home.open();
    fund(&ledger, "ada", 25);
    let admitted = ledger.admit(admission("r", "ada", 10)).unwrap();
    assert_eq!((admitted.held, admitted.balance, admitted.wallet_created), (credits(11), credits(14), false));

    let first = debit(&ledger, first_debit("r", 0, 6));
    assert_eq!((first.granted, first.exhausted), (6, false));
    assert_eq!(balance(&ledger, "ada"), credits(9));
    let last = debit(&ledger, next_debit("r", 10));
    assert_eq!((last.granted, last.exhausted), (9, true));
    let none = debit(&ledger, next_debit("r", 1));
    assert_eq!((none.granted, none.exhausted), (0, true));

    let settled = settle(&ledger, "r", FinishReason::Allowance).unwrap();
    assert_eq!((settled.debited, settled.balance), (credits(25), credits(0)));
    assert_eq!((settled.prompt_tokens, settled.cached_tokens, settled.output_tokens), (10, 0, 15));
    verify(&ledger);
}

#[test]
fn a_token_is_paid_whole_over_several_grants_or_not_at_all() {
    let home = Home::new();
    let ledger = home.open();
    ledger.create_wallet("ada", None).unwrap();
    for amount in ["0.4", "0.4", "0.4", "0.7"] {
        ledger.grant(GrantRequest::new("ada", amount.parse().unwrap())).unwrap();
    }
    let free_prompt = Price { prompt: Credits::ZERO, cached_prompt: Credits::ZERO, ..Price::default() };
    ledger.admit(Admission { price: free_prompt, ..admission("r", "ada", 5) }).unwrap();
    let debited = debit(&ledger, first_debit("r", 5, 3));
    assert_eq!((debited.granted, debited.exhausted), (1, true));
    let settled = settle(&ledger, "r", FinishReason::Allowance).unwrap();
    assert_eq!((settled.debited, settled.balance), (Credits::ONE, "0.9".parse().unwrap()));
    verify(&ledger);
}

#[test]
fn cached_prompt_tokens_cost_their_own_price_and_the_rest_of_the_hold_returns() {
    let home = Home::new();
    let ledger = home.open();
    fund(&ledger, "ada", 100);
    let price =
        Price { prompt: credits(2), cached_prompt: "0.5".parse().unwrap(), output: credits(3), reasoning: credits(3) };
    let admitted = ledger.admit(Admission { price, ..admission("r", "ada", 10) }).unwrap();
    assert_eq!(admitted.held, credits(23));
    debit(&ledger, first_debit("r", 4, 2));
    let wallet = ledger.wallet("ada").unwrap();
    assert_eq!((wallet.in_flight, wallet.balance), (credits(6 * 2 + 2 + 6), credits(80)));
    assert_eq!(settle(&ledger, "r", FinishReason::Stop).unwrap().cached_tokens, 4);
    verify(&ledger);
}

#[test]
fn a_request_that_never_ran_costs_nothing() {
    let home = Home::new();
    let ledger = home.open();
    fund(&ledger, "ada", 25);
    ledger.admit(admission("r", "ada", 10)).unwrap();
    let settled = settle(&ledger, "r", FinishReason::Cancelled).unwrap();
    assert_eq!((settled.debited, settled.balance), (Credits::ZERO, credits(25)));
    let usage = &ledger.usage(&UsageQuery::new(UsageBy::User)).unwrap()[0];
    assert_eq!((usage.requests, usage.total_tokens, usage.debited), (1, 0, Credits::ZERO));
    assert_eq!(ledger.statement("ada", None, None).unwrap().lines.len(), 1, "the grant alone");
    verify(&ledger);
}

#[test]
fn free_tokens_are_counted_all_the_same() {
    let home = Home::new();
    let ledger = home.open();
    ledger.create_wallet("ada", None).unwrap();
    ledger.admit(Admission { price: Price::FREE, ..admission("r", "ada", 7) }).unwrap();
    assert_eq!(debit(&ledger, first_debit("r", 0, 1000)).granted, 1000);
    let settled = settle(&ledger, "r", FinishReason::Length).unwrap();
    assert_eq!((settled.debited, settled.prompt_tokens, settled.output_tokens), (Credits::ZERO, 7, 1000));
    verify(&ledger);
    assert_eq!(home.entries(), 1, "the chain tells of them");
    assert_eq!(ledger.statement("ada", None, None).unwrap().lines.len(), 0, "they moved no money");
}

#[test]
fn burns_by_priority_then_expiry_then_age() {
    let home = Home::new();
    let ledger = home.open();
    ledger.create_wallet("ada", None).unwrap();
    let grant = |memo: &str, priority, expires: Option<i64>| {
        let expires = expires.map(|seconds| at(START_US + seconds * 1_000_000));
        let memo = Some(memo.to_owned());
        ledger.grant(GrantRequest { priority, expires, memo, ..GrantRequest::new("ada", credits(10)) }).unwrap();
    };
    grant("fourth", 0, None);
    grant("fifth", 0, None);
    grant("third", 0, Some(200));
    grant("second", 0, Some(100));
    grant("sixth", 1, Some(50));
    grant("first", -1, None);
    let order: Vec<_> = ledger.wallet("ada").unwrap().grants.into_iter().map(|grant| grant.memo.unwrap()).collect();
    assert_eq!(order, ["first", "second", "third", "fourth", "fifth", "sixth"]);

    ledger.admit(admission("r", "ada", 4)).unwrap();
    debit(&ledger, first_debit("r", 0, 51));
    settle(&ledger, "r", FinishReason::Stop).unwrap();
    let left: Vec<_> = ledger.wallet("ada").unwrap().grants.into_iter().map(|grant| grant.remaining).collect();
    assert_eq!(left, [0, 0, 0, 0, 0, 5].map(credits));
    verify(&ledger);
}

#[test]
fn a_hold_burns_in_the_same_order_after_others_have_written() {
    for interfere in [false, true] {
        let home = Home::new();
        let ledger = home.open();
        ledger.create_wallet("ada", None).unwrap();
        ledger.grant(GrantRequest::new("ada", credits(6))).unwrap();
        ledger.grant(GrantRequest { priority: -1, ..GrantRequest::new("ada", credits(6)) }).unwrap();
        let price = Price { cached_prompt: Credits::ZERO, ..Price::default() };
        ledger.admit(Admission { price, ..admission("r", "ada", 10) }).unwrap();
        if interfere {
            home.open().create_wallet("bob", None).unwrap();
        }
        debit(&ledger, first_debit("r", 8, 1));
        let left: Vec<_> = ledger.wallet("ada").unwrap().grants.into_iter().map(|grant| grant.remaining).collect();
        assert_eq!(left, [credits(3), credits(6)], "the younger one burns first");
        verify(&ledger);
    }
}

#[test]
fn grants_are_judged_at_each_commit() {
    let home = Home::new();
    let ledger = home.open();
    ledger.create_wallet("ada", None).unwrap();
    let until = |seconds: i64| Some(at(START_US + seconds * 1_000_000));
    ledger.grant(GrantRequest { expires: until(10), ..GrantRequest::new("ada", credits(20)) }).unwrap();
    ledger.grant(GrantRequest { effective: until(30), ..GrantRequest::new("ada", credits(5)) }).unwrap();
    assert_eq!(ledger.wallet("ada").unwrap().grants[1].state, GrantState::Pending);

    ledger.admit(admission("r", "ada", 3)).unwrap();
    assert_eq!(debit(&ledger, first_debit("r", 0, 2)).granted, 2);
    home.pass(10);
    assert_eq!(balance(&ledger, "ada"), Credits::ZERO, "seen before anybody writes it");
    let late = debit(&ledger, next_debit("r", 2));
    assert_eq!((late.granted, late.exhausted), (0, true));
    home.pass(20);
    assert_eq!(balance(&ledger, "ada"), credits(5));
    assert_eq!(debit(&ledger, next_debit("r", 2)).granted, 2);
    let settled = settle(&ledger, "r", FinishReason::Stop).unwrap();
    assert_eq!((settled.debited, settled.balance), (credits(7), credits(3)));

    let statement = ledger.statement("ada", None, None).unwrap();
    let lines: Vec<_> = statement.lines.iter().map(|line| (line.kind, line.amount, line.balance_after)).collect();
    use StatementKind::{Expire, Grant, Settle};
    let (minus_15, minus_7) = (Credits::from_micro(-15_000_000), Credits::from_micro(-7_000_000));
    let expected = [
        (Grant, credits(20), credits(20)),
        (Expire, minus_15, credits(5)),
        (Grant, credits(5), credits(10)),
        (Settle, minus_7, credits(3)),
    ];
    assert_eq!(lines, expected);
    assert_eq!(statement.lines[1].date, at(START_US + 10_000_000), "at the instant of the expiry");
    verify(&ledger);
}

#[test]
fn a_hold_outlives_its_grant_and_what_is_left_of_it_expires() {
    let home = Home::new();
    let ledger = home.open();
    ledger.create_wallet("ada", None).unwrap();
    let expires = Some(at(START_US + 10_000_000));
    ledger.grant(GrantRequest { expires, ..GrantRequest::new("ada", credits(20)) }).unwrap();
    ledger.admit(admission("ran", "ada", 5)).unwrap();
    ledger.admit(admission("idle", "ada", 5)).unwrap();
    home.pass(15);
    assert_eq!(debit(&ledger, first_debit("ran", 0, 3)).granted, 1, "what was held is good for one token");
    settle(&ledger, "ran", FinishReason::Allowance).unwrap();
    settle(&ledger, "idle", FinishReason::Cancelled).unwrap();
    let wallet = ledger.wallet("ada").unwrap();
    assert_eq!((wallet.balance, wallet.in_flight), (Credits::ZERO, Credits::ZERO));
    let statement = ledger.statement("ada", None, None).unwrap();
    assert_eq!(statement.closing, Credits::ZERO);
    let expired = statement.lines.iter().filter(|line| line.kind == StatementKind::Expire);
    let seconds = |date: jiff::Timestamp| (date.as_microsecond() - START_US) / 1_000_000;
    let expired: Vec<_> = expired.map(|line| (seconds(line.date), line.amount.micro() / 1_000_000)).collect();
    assert_eq!(expired, [(10, -8), (15, -6)], "what is over by then is not rewritten");
    verify(&ledger);
}

#[test]
fn a_clock_that_is_set_back_breaks_nothing() {
    let home = Home::new();
    let ledger = home.open();
    ledger.create_wallet("ada", None).unwrap();
    let expires = Some(at(START_US + 10_000_000));
    ledger.grant(GrantRequest { expires, ..GrantRequest::new("ada", credits(20)) }).unwrap();
    ledger.admit(admission("held", "ada", 5)).unwrap();
    home.pass(10);
    ledger.create_wallet("bob", None).unwrap();
    assert!(matches!(ledger.admit(admission("late", "ada", 1)), Err(LedgerError::Exhausted { .. })));
    ledger.grant(GrantRequest::new("ada", credits(1))).unwrap();
    home.pass(-5);
    settle(&ledger, "held", FinishReason::Cancelled).unwrap();
    assert_eq!(ledger.wallet("ada").unwrap().grants[0].remaining, credits(6), "what was held came back in time");
    verify(&ledger);
    home.pass(5);
    ledger.grant(GrantRequest::new("ada", credits(1))).unwrap();
    assert_eq!(balance(&ledger, "ada"), credits(2), "and expires again");
    let expired = ledger.statement("ada", None, None).unwrap().lines;
    assert_eq!(expired.iter().filter(|line| line.kind == StatementKind::Expire).count(), 2);
    verify(&ledger);
}

#[test]
fn refusals_change_nothing_and_say_why() {
    let home = Home::new();
    let ledger = home.open();
    fund(&ledger, "ada", 10);
    assert!(
        matches!(ledger.admit(admission("r", "bob", 1)), Err(LedgerError::UnknownWallet { name }) if name == "bob")
    );
    match ledger.admit(admission("r", "ada", 10)) {
        Err(LedgerError::Exhausted { needed, balance, .. }) => {
            assert_eq!((needed, balance), (credits(11), credits(10)))
        }
        other => panic!("{other:?}"),
    }
    ledger.freeze("ada", None).unwrap();
    assert!(matches!(ledger.admit(admission("r", "ada", 1)), Err(LedgerError::Frozen { .. })));
    ledger.thaw("ada", None).unwrap();
    ledger.admit(admission("r", "ada", 1)).unwrap();
    assert!(matches!(ledger.admit(admission("r", "ada", 1)), Err(LedgerError::DuplicateRequest { .. })));
    ledger.freeze("ada", None).unwrap();
    assert_eq!(debit(&ledger, first_debit("r", 0, 1)).granted, 1, "what runs may end");
    settle(&ledger, "r", FinishReason::Stop).unwrap();
    ledger.thaw("ada", None).unwrap();
    assert!(matches!(ledger.admit(admission("r", "ada", 1)), Err(LedgerError::DuplicateRequest { .. })));
    assert_eq!(balance(&ledger, "ada"), credits(8));
    verify(&ledger);
}

#[test]
fn contradictory_debits_are_refused_and_leave_the_others_alone() {
    let home = Home::new();
    let ledger = home.open();
    fund(&ledger, "ada", 100);
    ledger.admit(admission("good", "ada", 3)).unwrap();
    ledger.admit(admission("bad", "ada", 3)).unwrap();
    let debits = vec![
        next_debit("bad", 1),
        first_debit("bad", 4, 1),
        first_debit("nobody", 0, 1),
        first_debit("good", 0, 2),
        first_debit("good", 0, 2),
        next_debit("good", 2),
    ];
    let answers = debit_all(&ledger, debits).unwrap();
    let granted: Vec<_> = answers.iter().map(|debited| debited.granted).collect();
    assert_eq!(granted, [0, 0, 0, 2, 0, 2]);
    assert!(matches!(answers[2].refused, Some(LedgerError::UnknownRequest { .. })));
    for index in [0, 1, 4] {
        assert!(matches!(answers[index].refused, Some(LedgerError::InvalidRequest { .. })), "{index}");
    }
    assert_eq!(settle(&ledger, "good", FinishReason::Stop).unwrap().debited, credits(7));
    assert_eq!(settle(&ledger, "bad", FinishReason::Error).unwrap().debited, Credits::ZERO);
    verify(&ledger);
}

#[test]
fn absurd_numbers_are_refused() {
    let home = Home::new();
    let ledger = home.open();
    ledger.create_wallet("ada", None).unwrap();
    let max = Credits::from_micro(i64::MAX);
    ledger.grant(GrantRequest::new("ada", max)).unwrap();
    for amount in [Credits::ZERO, Credits::from_micro(-1), Credits::from_micro(1), max] {
        assert!(matches!(ledger.grant(GrantRequest::new("ada", amount)), Err(LedgerError::InvalidGrant { .. })));
    }
    let expired = GrantRequest { expires: Some(at(START_US)), ..GrantRequest::new("ada", credits(1)) };
    assert!(matches!(ledger.grant(expired), Err(LedgerError::InvalidGrant { .. })));
    let negative = Price { output: Credits::from_micro(-1), ..Price::default() };
    let dear_cache = Price { cached_prompt: credits(2), ..Price::default() };
    for absurd in [
        admission("r", "ada", u64::MAX),
        admission("r", "ada", i64::MAX as u64),
        Admission { price: Price::FREE, ..admission("r", "ada", u64::MAX) },
        Admission { price: negative, ..admission("r", "ada", 1) },
        Admission { price: dear_cache, ..admission("r", "ada", 1) },
        Admission { model: "x".repeat(1 << 20), ..admission("r", "ada", 1) },
        admission("", "ada", 1),
    ] {
        assert!(matches!(ledger.admit(absurd), Err(LedgerError::InvalidRequest { .. })));
    }
    let long = "x".repeat(129);
    for name in ["", " ada", "a\nb", "a\u{1b}[2J", "ad\u{200b}a", "\u{202e}ada", "ada\u{feff}", "a\u{e0061}", &long] {
        let error = ledger.create_wallet(name, None).unwrap_err();
        assert!(matches!(error, LedgerError::InvalidName { .. }), "{name:?}");
        assert!(!error.to_string().contains(['\n', '\u{1b}', '\u{200b}', '\u{202e}', '\u{feff}']), "{error}");
    }
    let unknown = ledger.wallet("ev\u{202e}e\u{1b}[2J").unwrap_err();
    assert!(unknown.to_string().contains("`ev\\u{202e}e\\u{1b}[2J`"), "{unknown}");
    // The largest of everything that is legal.
    ledger.admit(admission("r", "ada", 9_223_372_036_853)).unwrap();
    assert_eq!(debit(&ledger, first_debit("r", 0, u32::MAX)).granted, 1);
    ledger.admit(Admission { price: Price::FREE, ..admission("free", "ada", i64::MAX as u64) }).unwrap();
    assert_eq!(debit(&ledger, first_debit("free", i64::MAX as u64, u32::MAX)).granted, u32::MAX);
    let absurd =
        Settlement { total_us: u64::MAX, ttft_us: Some(u64::MAX), ..Settlement::new("r", FinishReason::Length) };
    assert_eq!(ledger.settle(absurd).unwrap().balance, Credits::from_micro(775_807));
    settle(&ledger, "free", FinishReason::Stop).unwrap();
    assert_eq!(ledger.usage(&UsageQuery::new(UsageBy::Model)).unwrap()[0].requests, 2);
    verify(&ledger);
}

#[test]
fn everything_happens_once() {
    let home = Home::new();
    let ledger = home.open();
    let key = || Some("hr-2026-01".to_owned());
    let created = ledger.create_wallet("ada", key()).unwrap();
    assert_eq!(ledger.create_wallet("ada", key()).unwrap().id, created.id);
    assert!(matches!(ledger.create_wallet("ada", None), Err(LedgerError::WalletExists { .. })));
    assert!(matches!(ledger.create_wallet("bob", key()), Err(LedgerError::IdempotencyConflict { .. })));

    let gift = |amount| GrantRequest {
        idempotency_key: Some("bonus".into()),
        memo: Some("welcome".into()),
        ..GrantRequest::new("ada", credits(amount))
    };
    let granted = ledger.grant(gift(10)).unwrap();
    home.pass(60);
    assert_eq!(ledger.grant(gift(10)).unwrap().id, granted.id);
    assert!(matches!(ledger.grant(gift(11)), Err(LedgerError::IdempotencyConflict { .. })));
    assert_eq!(balance(&ledger, "ada"), credits(10));

    ledger.admit(admission("r", "ada", 2)).unwrap();
    debit(&ledger, first_debit("r", 0, 3));
    let settled = settle(&ledger, "r", FinishReason::Stop).unwrap();
    assert_eq!(settle(&ledger, "r", FinishReason::Error).unwrap(), settled);
    assert!(matches!(settle(&ledger, "nobody", FinishReason::Stop), Err(LedgerError::UnknownRequest { .. })));
    assert_eq!(ledger.statement("ada", None, None).unwrap().lines.len(), 2);
    verify(&ledger);
}

#[test]
fn a_starter_grant_comes_with_the_first_admission_unless_the_ledger_is_a_services() {
    let home = Home::new();
    let ledger = home.open();
    let starter = Some(StarterGrant { amount: credits(1000) });
    let too_long = Admission { starter, ..admission("a", "ada", 1000) };
    assert!(matches!(ledger.admit(too_long), Err(LedgerError::Exhausted { .. })));
    assert!(ledger.wallets().unwrap().is_empty(), "a refused admission creates nothing");
    let admitted = ledger.admit(Admission { starter, ..admission("a", "ada", 10) }).unwrap();
    assert!(admitted.wallet_created);
    assert_eq!(admitted.balance, credits(989));
    assert!(!ledger.admit(Admission { starter, ..admission("b", "ada", 10) }).unwrap().wallet_created);
    assert_eq!(ledger.statement("ada", None, None).unwrap().lines[0].kind, StatementKind::Starter);

    ledger.set_service(true).unwrap();
    let stranger = Admission { starter, ..admission("c", "bob", 10) };
    assert!(matches!(ledger.admit(stranger), Err(LedgerError::UnknownWallet { .. })));
    let other_process = home.open();
    let stranger = Admission { starter, ..admission("c", "bob", 10) };
    assert!(matches!(other_process.admit(stranger), Err(LedgerError::UnknownWallet { .. })));
    assert!(ledger.health().unwrap().service);
}

#[test]
fn statements_of_periods_fit_together() {
    let home = Home::new();
    let ledger = home.open();
    fund(&ledger, "ada", 100);
    for day in 0..4 {
        home.pass(86_400);
        let id = format!("r{day}");
        ledger.admit(admission(&id, "ada", 5)).unwrap();
        debit(&ledger, first_debit(&id, 0, 5));
        settle(&ledger, &id, FinishReason::Stop).unwrap();
    }
    ledger.admit(admission("open", "ada", 5)).unwrap();
    let middle = Some(at(START_US + 2 * 86_400_000_000 + 1));
    let (early, late) =
        (ledger.statement("ada", None, middle).unwrap(), ledger.statement("ada", middle, None).unwrap());
    assert_eq!((early.opening, early.lines.len(), early.closing), (Credits::ZERO, 3, credits(80)));
    assert_eq!((late.opening, late.lines.len(), late.closing), (credits(80), 2, credits(60)));
    assert_eq!(late.closing.checked_sub(late.in_flight), Some(balance(&ledger, "ada")));
    assert_eq!(late.lines[0].request_id.as_deref(), Some("r2"));
    assert!(matches!(ledger.statement("bob", None, None), Err(LedgerError::UnknownWallet { .. })));
}

#[test]
fn usage_merges_histograms_per_user_model_and_day() {
    let home = Home::new();
    let ledger = home.open();
    let mut all = LatencyHistogram::new();
    for (user, requests) in [("ada", 3), ("bob", 2)] {
        fund(&ledger, user, 1000);
        for number in 0..requests {
            home.pass(86_400 / 2);
            let id = format!("{user}-{number}");
            let model = if number == 0 { "small" } else { "large" };
            ledger.admit(Admission { model: model.into(), ..admission(&id, user, 10) }).unwrap();
            debit(&ledger, first_debit(&id, 2, 11));
            let itl = LatencyHistogram::from_iter((1..=10).map(|step| step * 1000 * (number + 1)));
            if user == "ada" {
                all.merge(&itl);
            }
            let settlement = Settlement {
                ttft_us: Some(20_000 * (number + 1)),
                decode_us: 1_000_000,
                total_us: 1_100_000,
                itl,
                energy_uj: (user == "ada" && number > 0).then_some(1_250_000),
                ..Settlement::new(id, FinishReason::Stop)
            };
            ledger.settle(settlement).unwrap();
        }
    }
    let by_user = ledger.usage(&UsageQuery::new(UsageBy::User)).unwrap();
    let ada = &by_user[0];
    assert_eq!((ada.key.as_str(), ada.requests, ada.prompt_tokens, ada.cached_tokens), ("ada", 3, 30, 6));
    assert_eq!((ada.output_tokens, ada.total_tokens, ada.debited), (33, 63, credits(63)));
    assert_eq!((ada.tokens_per_s, ada.decode_tokens_per_s), (Some(10.0), Some(10.0)));
    assert_eq!(ada.itl_ms, tokrun_ledger::Percentiles::of(&all));
    assert_eq!((ada.energy_joules, by_user[1].energy_joules), (Some(2.5), None), "as far as it was measured");
    let ttft = ada.ttft_ms.unwrap();
    assert!((ttft.p50 - 40.0).abs() < 0.1 && (ttft.p99 - 60.0).abs() < 0.1, "{ttft:?}");

    let by_model = ledger.usage(&UsageQuery::new(UsageBy::Model)).unwrap();
    let models: Vec<_> = by_model.iter().map(|row| (row.key.as_str(), row.requests)).collect();
    assert_eq!(models, [("large", 3), ("small", 2)]);

    // Five requests, half a day apart, from noon of 1 January UTC.
    let days = |zone| {
        let by = UsageBy::Day { time_zone: jiff::tz::TimeZone::fixed(jiff::tz::Offset::from_hours(zone).unwrap()) };
        let rows = ledger.usage(&UsageQuery::new(by)).unwrap();
        rows.into_iter().map(|row| (row.key, row.requests)).collect::<Vec<_>>()
    };
    let named = |days: &[(&str, u64)]| days.iter().map(|&(day, count)| (day.to_owned(), count)).collect::<Vec<_>>();
    assert_eq!(days(0), named(&[("2026-01-01", 1), ("2026-01-02", 2), ("2026-01-03", 2)]));
    assert_eq!(days(-1), named(&[("2026-01-01", 2), ("2026-01-02", 2), ("2026-01-03", 1)]));
    let noon = Some(at(START_US + 86_400_000_000));
    let query = UsageQuery { since: noon, ..UsageQuery::new(UsageBy::User) };
    assert_eq!(ledger.usage(&query).unwrap().iter().map(|row| row.requests).sum::<u64>(), 4);
    verify(&ledger);
}

#[test]
fn a_starter_of_nothing_is_a_wallet_without_a_grant() {
    let home = Home::new();
    let ledger = home.open();
    let starter = Some(StarterGrant { amount: Credits::ZERO });
    let free = Admission { starter, price: Price::FREE, ..admission("free", "ada", 5) };
    assert!(ledger.admit(free).unwrap().wallet_created);
    let wallet = ledger.wallet("ada").unwrap();
    assert_eq!((wallet.grants.len(), wallet.balance), (0, Credits::ZERO));
    let dear = Admission { starter, ..admission("dear", "ada", 5) };
    assert!(matches!(ledger.admit(dear), Err(LedgerError::Exhausted { .. })));
    verify(&ledger);
}

#[test]
fn a_backup_is_whole_and_overwrites_nothing() {
    let home = Home::new();
    let ledger = home.open();
    fund(&ledger, "ada", 100);
    ledger.admit(admission("open", "ada", 5)).unwrap();
    debit(&ledger, first_debit("open", 0, 5));
    let copy = home.directory.path().join("copy").join("backup.db");
    std::fs::create_dir(copy.parent().unwrap()).unwrap();
    ledger.backup(&copy).unwrap();
    assert!(matches!(ledger.backup(&copy), Err(LedgerError::FileExists { .. })));
    for place in [copy.parent().unwrap(), &copy.join(""), &copy.with_extension("other").join("")] {
        let error = ledger.backup(place).unwrap_err();
        assert!(matches!(error, LedgerError::InvalidBackup { .. }), "{error:?}");
        assert!(error.to_string().contains("directory"), "{error}");
    }
    assert_eq!(std::fs::read_dir(copy.parent().unwrap()).unwrap().count(), 1, "nothing else is left there");
    debit(&ledger, next_debit("open", 5));

    let reader = tokrun_ledger::Ledger::open_read_only(&copy).unwrap();
    verify(&reader);
    assert_eq!(reader.wallet("ada").unwrap().in_flight, credits(10));
    assert!(matches!(reader.create_wallet("bob", None), Err(LedgerError::ReadOnly { .. })));
    drop(reader);
    // Restored, its open request has no living process and is settled as far as it was debited then.
    let restored = tokrun_ledger::Ledger::open_with_clock(&copy, home.clock()).unwrap();
    assert_eq!((balance(&restored, "ada"), restored.health().unwrap().open_requests), (credits(90), 0));
    verify(&restored);
    assert_eq!(settle(&ledger, "open", FinishReason::Stop).unwrap().debited, credits(15));
}

#[test]
fn a_person_can_be_deleted_without_breaking_the_chain() {
    let home = Home::new();
    let ledger = home.open();
    ledger.create_wallet("ada", None).unwrap();
    let memo = Some("for Ada Lovelace".to_owned());
    ledger.grant(GrantRequest { memo, ..GrantRequest::new("ada", credits(5)) }).unwrap();
    let id = ledger.wallet("ada").unwrap().id;
    home.sql().execute_batch("DELETE FROM wallet_name; DELETE FROM memo").unwrap();
    verify(&ledger);
    assert_eq!(ledger.wallets().unwrap()[0].name, id);
}

#[test]
fn two_ledgers_of_one_process_see_each_other() {
    let home = Home::new();
    let (one, two) = (home.open(), home.open());
    fund(&one, "ada", 20);
    one.admit(admission("one", "ada", 4)).unwrap();
    two.admit(admission("two", "ada", 4)).unwrap();
    assert_eq!(debit(&one, first_debit("one", 0, 6)).granted, 6);
    assert_eq!(debit(&two, first_debit("two", 0, 6)).granted, 6);
    let last = debit(&one, next_debit("one", 1));
    assert_eq!((last.granted, last.exhausted), (0, true));
    drop(one);
    assert_eq!(balance(&two, "ada"), Credits::ZERO, "what it left open is settled as far as it was debited");
    assert_eq!(two.health().unwrap().open_requests, 1);
    settle(&two, "two", FinishReason::Stop).unwrap();
    verify(&two);
}

#[test]
fn a_process_taken_for_dead_is_told_so_and_delivers_nothing_more() {
    let home = Home::new();
    let ledger = home.open();
    fund(&ledger, "ada", 100);
    ledger.admit(admission("held", "ada", 5)).unwrap();
    ledger.admit(admission("ran", "ada", 5)).unwrap();
    debit(&ledger, first_debit("ran", 0, 5));
    home.bury_everybody();
    let heir = home.open();
    assert_eq!((balance(&heir, "ada"), heir.health().unwrap().open_requests), (credits(90), 0));
    let answer = debit(&ledger, next_debit("ran", 5));
    assert!(matches!(answer.refused, Some(LedgerError::UnknownRequest { .. })));
    let settled = settle(&ledger, "ran", FinishReason::Stop).unwrap();
    assert_eq!((settled.debited, settled.finish_reason), (credits(10), FinishReason::Crashed));
    assert_eq!(settle(&ledger, "held", FinishReason::Stop).unwrap().debited, Credits::ZERO);
    verify(&heir);
}

#[test]
fn health_tells_what_is_there_and_the_probe_leaves_nothing_behind() {
    let home = Home::new();
    let ledger = home.open();
    fund(&ledger, "ada", 10);
    ledger.admit(admission("r", "ada", 1)).unwrap();
    let health = ledger.health().unwrap();
    assert_eq!((health.schema_version, health.entries, health.wallets, health.open_requests), (8, 1, 1, 1));
    assert_eq!((health.service, health.bad), (false, None));
    assert_eq!(health.path, ledger.path());
    let disk = tempfile::tempdir().unwrap();
    assert!(tokrun_ledger::fsync_probe_us(disk.path()).unwrap() < 10_000_000);
    assert_eq!(std::fs::read_dir(disk.path()).unwrap().count(), 0);
    assert!(tokrun_ledger::fsync_probe_us(&disk.path().join("nowhere")).is_err());
}

#[cfg(unix)]
#[test]
fn the_ledger_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let home = Home::new();
    let path = home.directory.path().join("made").join("for").join("it").join("ledger.db");
    let ledger = tokrun_ledger::Ledger::open(&path).unwrap();
    ledger.create_wallet("ada", None).unwrap();
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    assert_eq!(mode(&path), 0o600);
    assert_eq!(mode(&path.with_extension("db-wal")), 0o600);
    let copy = home.directory.path().join("backup.db");
    ledger.backup(&copy).unwrap();
    assert_eq!(mode(&copy), 0o600);
}
