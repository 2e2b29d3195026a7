//! Limits beside grants, and what is heard of them.

use tokrun_ledger::{
    Admission, Credits, Debit, FinishReason, Ledger, LedgerError, LimitScope, LimitSpan, NewLimit, NewWallet, Period,
    Price, PromptDebit, Quota, RecurringGrant, WalletChange,
};

use crate::common::{Home, admission, at, balance, credits, debit, first_debit, fund, next_debit, settle, verify};

fn of_wallet(name: &str) -> LimitScope {
    LimitScope { wallet: Some(name.into()), ..LimitScope::default() }
}

fn limit(ledger: &Ledger, scope: LimitScope, quota: Quota, span: LimitSpan) -> String {
    ledger.set_limit(NewLimit::new(scope, quota, span)).unwrap().id
}

#[track_caller]
fn limited(outcome: Result<impl std::fmt::Debug, LedgerError>) -> tokrun_ledger::LimitReached {
    match outcome {
        Err(LedgerError::Limited { reached }) => *reached,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_request_ends_at_the_very_token_and_goes_on_in_the_next_window() {
    let home = Home::new();
    let ledger = home.open();
    fund(&ledger, "ada", 1000);
    home.pass(5);
    let id = limit(&ledger, of_wallet("ada"), Quota::Tokens(30), LimitSpan::Minute);
    ledger.admit(admission("r1", "ada", 10)).unwrap();
    assert_eq!(ledger.limits().unwrap()[0].used, Some(Quota::Tokens(11)), "the hold counts");
    assert_eq!(debit(&ledger, first_debit("r1", 9, 12)).granted, 12);
    let end = debit(&ledger, next_debit("r1", 9));
    assert_eq!((end.granted, end.exhausted), (8, true));
    let reached = end.limited.expect("it was not the allowance");
    assert_eq!((reached.id, reached.what.as_str()), (id.clone(), "30 tokens a minute of wallet ada"));
    assert_eq!(reached.resets, Some(at(home.now_us() + 55_000_000)));
    let refused = limited(ledger.admit(admission("r2", "ada", 0)));
    assert_eq!(refused.retry_after_s(at(home.now_us())), Some(55));
    home.pass(55);
    assert_eq!(debit(&ledger, next_debit("r1", 40)).granted, 30, "another minute, the same request");
    let settled = settle(&ledger, "r1", FinishReason::Limit).unwrap();
    assert_eq!((settled.output_tokens, settled.finish_reason), (50, FinishReason::Limit));
    verify(&ledger);
    drop(ledger);
    let ledger = home.open();
    assert_eq!(ledger.limits().unwrap()[0].used, Some(Quota::Tokens(30)), "it is in the file");
    ledger.remove_limit(&id, None).unwrap();
    assert!(matches!(ledger.remove_limit(&id, None), Err(LedgerError::UnknownLimit { .. })));
    ledger.admit(admission("r2", "ada", 100)).unwrap();
    verify(&ledger);
}

#[test]
fn credits_are_counted_at_their_price_and_free_tokens_as_tokens() {
    let home = Home::new();
    let ledger = home.open();
    fund(&ledger, "ada", 1000);
    limit(&ledger, of_wallet("ada"), Quota::Credits("2.5".parse().unwrap()), LimitSpan::Day);
    let price = Price {
        prompt: Credits::from_micro(200_000),
        cached_prompt: Credits::from_micro(100_000),
        output: Credits::from_micro(300_000),
        ..Price::default()
    };
    ledger.admit(Admission { price, ..admission("r1", "ada", 5) }).unwrap();
    // 3 fresh and 2 cached prompt tokens cost 0.8; 5 at 0.3 fit into the rest, and 0.2 stay.
    let paid = debit(&ledger, first_debit("r1", 2, 9));
    assert_eq!((paid.granted, paid.limited.is_some()), (5, true));
    assert_eq!(ledger.limits().unwrap()[0].used, Some(Quota::Credits(Credits::from_micro(2_300_000))));
    ledger.admit(Admission { price: Price::FREE, ..admission("free", "ada", 50) }).unwrap();
    assert_eq!(debit(&ledger, first_debit("free", 0, 90)).granted, 90, "what costs nothing is not limited in credits");
    limit(&ledger, of_wallet("ada"), Quota::Tokens(200), LimitSpan::Month);
    assert_eq!(debit(&ledger, next_debit("free", 90)).granted, 50, "150 were in flight, 10 of the other request");
    verify(&ledger);
}

#[test]
fn a_team_s_limit_counts_what_is_under_it_and_each_part_of_a_scope_must_apply() {
    let home = Home::new();
    let ledger = home.open();
    fund(&ledger, "team", 10);
    ledger
        .change_wallet("team", WalletChange { kind: Some(tokrun_ledger::WalletKind::Team), ..WalletChange::default() })
        .unwrap();
    for name in ["ada", "bob"] {
        ledger.open_wallet(NewWallet { parent: Some("team".into()), ..NewWallet::new(name) }).unwrap();
        ledger.grant(tokrun_ledger::GrantRequest::new(name, credits(1000))).unwrap();
    }
    limit(&ledger, of_wallet("team"), Quota::Tokens(100), LimitSpan::Hour);
    let of_key = LimitScope { key: Some("ci".into()), ..LimitScope::default() };
    limit(&ledger, of_key, Quota::Requests(2), LimitSpan::Day);
    let of_both = LimitScope { project: Some("web".into()), model: Some("model".into()), ..of_wallet("ada") };
    limit(&ledger, of_both, Quota::Tokens(20), LimitSpan::Request);

    ledger.admit(admission("a", "ada", 29)).unwrap();
    ledger.admit(admission("b", "bob", 29)).unwrap();
    assert_eq!(debit(&ledger, first_debit("a", 0, 31)).granted, 31, "60 of ada, 30 of bob");
    assert_eq!(debit(&ledger, first_debit("b", 0, 31)).granted, 11);
    let keyed = |id: &str| Admission { key: Some("ci".into()), ..admission(id, "ada", 0) };
    assert!(limited(ledger.admit(keyed("k0"))).what.contains("100 tokens an hour of wallet team"));
    home.pass(3600);
    ledger.admit(keyed("k1")).unwrap();
    ledger.admit(keyed("k2")).unwrap();
    assert_eq!(limited(ledger.admit(keyed("k3"))).what, "2 requests a day of key ci");

    let web = |id: &str, model: &str, tokens| {
        let project = Some("web".into());
        Admission { project, model: model.into(), ..admission(id, "ada", tokens) }
    };
    assert_eq!(limited(ledger.admit(web("w1", "model", 20))).resets, None, "another minute makes it no smaller");
    ledger.admit(web("w2", "another", 20)).unwrap();
    ledger.admit(web("w3", "model", 15)).unwrap();
    assert_eq!(debit(&ledger, first_debit("w3", 0, 9)).granted, 5);
    verify(&ledger);
}

#[test]
fn requests_at_once_are_those_that_are_not_settled() {
    let home = Home::new();
    let ledger = home.open();
    fund(&ledger, "ada", 1000);
    limit(&ledger, of_wallet("ada"), Quota::Requests(2), LimitSpan::Running);
    ledger.admit(admission("r1", "ada", 1)).unwrap();
    ledger.admit(admission("r2", "ada", 1)).unwrap();
    limited(ledger.admit(admission("r3", "ada", 1)));
    assert_eq!(ledger.limits().unwrap()[0].used, Some(Quota::Requests(2)));
    assert_eq!(balance(&ledger, "ada"), credits(996), "a refusal holds nothing");
    settle(&ledger, "r1", FinishReason::Cancelled).unwrap();
    ledger.admit(admission("r3", "ada", 1)).unwrap();
    verify(&ledger);
}

#[test]
fn a_hold_that_comes_back_counts_no_longer_unless_the_window_is_another() {
    let home = Home::new();
    let ledger = home.open();
    fund(&ledger, "ada", 1000);
    limit(&ledger, of_wallet("ada"), Quota::Tokens(100), LimitSpan::Minute);
    let used = || ledger.limits().unwrap()[0].used.unwrap();
    ledger.admit(admission("r1", "ada", 60)).unwrap();
    settle(&ledger, "r1", FinishReason::Cancelled).unwrap();
    assert_eq!(used(), Quota::Tokens(0));
    ledger.admit(admission("r2", "ada", 60)).unwrap();
    home.pass(60);
    ledger.admit(admission("r3", "ada", 60)).unwrap();
    settle(&ledger, "r2", FinishReason::Cancelled).unwrap();
    assert_eq!(used(), Quota::Tokens(61));
    let prompt = Some(PromptDebit { cached_tokens: 0 });
    assert_eq!(
        debit(&ledger, Debit { request_id: "r3".into(), prompt, output_tokens: 0, reasoning_tokens: 0 }).granted,
        0
    );
    assert_eq!(used(), Quota::Tokens(60));
    verify(&ledger);
}

#[test]
fn thresholds_are_heard_of_once_a_window_over_crashes_and_processes() {
    let home = Home::new();
    let mut ledger = home.open();
    fund(&ledger, "ada", 10_000);
    limit(&ledger, of_wallet("ada"), Quota::Tokens(100), LimitSpan::Day);
    ledger.admit(admission("r1", "ada", 40)).unwrap();
    assert_eq!(debit(&ledger, first_debit("r1", 0, 45)).granted, 45);
    home.bury_everybody();
    drop(ledger);
    ledger = home.open();
    let other = home.open();
    other.admit(admission("r2", "ada", 0)).unwrap();
    assert_eq!(debit(&other, first_debit("r2", 0, 30)).granted, 15);
    ledger.admit(admission("r3", "ada", 0)).unwrap_err();
    let percents = |ledger: &Ledger| -> Vec<i64> {
        ledger.events(None, 0).unwrap().iter().map(|event| event.data["percent"].as_i64().unwrap()).collect()
    };
    assert_eq!(percents(&ledger), [50, 80, 100]);
    home.pass(86_400);
    ledger.admit(admission("r4", "ada", 59)).unwrap();
    assert_eq!(percents(&ledger), [50, 80, 100, 50]);

    // A sink that is down at first hears of each in the end.
    let due = || ledger.events_due("hook", None).unwrap();
    assert_eq!(due().len(), 4);
    for event in due() {
        ledger.event_attempted("hook", &event.id, event.data["percent"] == 50).unwrap();
    }
    assert_eq!(due(), [], "not yet");
    home.pass(1);
    assert_eq!(due().len(), 2);
    for event in due() {
        ledger.event_attempted("hook", &event.id, false).unwrap();
    }
    home.pass(1);
    assert_eq!(due(), [], "the pause doubles");
    home.pass(1);
    for event in due() {
        ledger.event_attempted("hook", &event.id, true).unwrap();
        ledger.event_attempted("hook", &event.id, false).unwrap();
    }
    home.pass(10_000);
    assert_eq!(due(), []);
    assert_eq!(ledger.events_due("another", None).unwrap().len(), 4);
    assert!(matches!(ledger.event_attempted("hook", "none", true), Err(LedgerError::UnknownEvent { .. })));
    verify(&ledger);
}

#[test]
fn what_is_given_for_a_period_warns_by_what_is_spent_of_it_alone() {
    let home = Home::new();
    let ledger = home.open();
    fund(&ledger, "bob", 100);
    ledger.create_wallet("ada", None).unwrap();
    ledger.grant_every(RecurringGrant::new("ada", credits(100), Period::Day)).unwrap();
    ledger.admit(admission("other", "bob", 98)).unwrap();
    assert_eq!(ledger.events(None, 0).unwrap(), [], "a grant that is given once is no period's");
    ledger.admit(admission("r1", "ada", 59)).unwrap();
    settle(&ledger, "r1", FinishReason::Cancelled).unwrap();
    ledger.admit(admission("r2", "ada", 59)).unwrap();
    settle(&ledger, "r2", FinishReason::Cancelled).unwrap();
    let percents = || -> Vec<i64> {
        let events = ledger.events(None, 0).unwrap();
        assert!(events.iter().all(|event| event.kind == "grant_threshold" && event.data["wallet"] == "ada"));
        events.iter().map(|event| event.data["percent"].as_i64().unwrap()).collect()
    };
    assert_eq!(percents(), [50], "once, though it was reached twice");
    home.pass(86_400);
    ledger.admit(admission("r3", "ada", 9)).unwrap();
    assert_eq!(percents(), [50], "what expires is not spent");
    assert_eq!(debit(&ledger, first_debit("r3", 0, 200)).granted, 91);
    assert_eq!(percents(), [50, 50, 80, 100]);
    verify(&ledger);
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let home = Home::new();
    let ledger = home.open();
    fund(&ledger, "ada", 10);
    let entries = home.entries();
    let tokens = Quota::Tokens(5);
    for (scope, quota, span) in [
        (LimitScope::default(), tokens, LimitSpan::Day),
        (of_wallet("ada"), tokens, LimitSpan::Running),
        (of_wallet("ada"), Quota::Requests(5), LimitSpan::Request),
        (of_wallet("ada"), Quota::Tokens(u64::MAX), LimitSpan::Day),
        (of_wallet("ada"), Quota::Credits(Credits::from_micro(-1)), LimitSpan::Day),
        (LimitScope { model: Some(String::new()), ..LimitScope::default() }, tokens, LimitSpan::Day),
    ] {
        let refused = ledger.set_limit(NewLimit::new(scope, quota, span));
        assert!(matches!(refused, Err(LedgerError::InvalidLimit { .. })), "{refused:?}");
    }
    let warned = NewLimit { warn: vec![101], ..NewLimit::new(of_wallet("ada"), tokens, LimitSpan::Day) };
    assert!(matches!(ledger.set_limit(warned), Err(LedgerError::InvalidLimit { .. })));
    let unknown = ledger.set_limit(NewLimit::new(of_wallet("eve"), tokens, LimitSpan::Day));
    assert!(matches!(unknown, Err(LedgerError::UnknownWallet { .. })));
    assert_eq!(home.entries(), entries);

    let keyed = |amount| NewLimit {
        idempotency_key: Some("k".into()),
        ..NewLimit::new(of_wallet("ada"), Quota::Tokens(amount), LimitSpan::Day)
    };
    let first = ledger.set_limit(keyed(5)).unwrap();
    assert_eq!(ledger.set_limit(keyed(5)).unwrap().id, first.id);
    assert!(matches!(ledger.set_limit(keyed(6)), Err(LedgerError::IdempotencyConflict { .. })));
    assert_eq!(home.entries(), entries + 1);
}

#[test]
fn a_limit_that_somebody_raised_behind_the_ledger_is_found() {
    for forgery in [
        "UPDATE quota SET amount = 1000000",
        "UPDATE quota SET model = 'another'",
        "UPDATE record SET body = replace(body, '30', '99')",
        "DELETE FROM quota_use; DELETE FROM quota",
        "PRAGMA foreign_keys = OFF; DELETE FROM record WHERE kind = 'limit'",
        "INSERT INTO record SELECT entry + 1, kind, subject, body, actor FROM record ORDER BY entry DESC LIMIT 1",
        "INSERT INTO quota SELECT seq + 1, id || 'x', entry, wallet, access_key, project, 'm', measure, span, 1, warn FROM quota",
    ] {
        let home = Home::new();
        let ledger = home.open();
        fund(&ledger, "ada", 1000);
        limit(&ledger, of_wallet("ada"), Quota::Tokens(30), LimitSpan::Minute);
        limit(&ledger, of_wallet("ada"), Quota::Tokens(31), LimitSpan::Minute);
        verify(&ledger);
        home.sql().execute_batch(&format!("PRAGMA foreign_keys = OFF; {forgery}")).unwrap();
        assert!(!ledger.verify().unwrap().passed(), "{forgery}");
    }
}
