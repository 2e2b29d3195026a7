//! Asking and being given, parts of wallets for programs, and leaving.

use tokrun_ledger::{
    Approval, AskState, Closing, Correction, Credits, Delegate, DrawTerms, FinishReason, GrantRequest, GrantState,
    Ledger, LedgerError, NewAsk, NewKey, NewWallet, Period, RecurringGrant, Refund, Transfer, Vesting, WalletKind,
};

use crate::common::{Home, admission, at, balance, credits, debit, first_debit, fund, next_debit, settle, verify};

fn ask(ledger: &Ledger, wallet: &str, amount: i64) -> String {
    let (reason, idempotency_key) = (Some("a demo".into()), None);
    ledger.ask(NewAsk { wallet: wallet.into(), amount: credits(amount), reason, idempotency_key }).unwrap().id
}

/// What a wallet's statement says is what it has.
#[track_caller]
fn statement_agrees(ledger: &Ledger, wallet: &str) {
    let statement = ledger.statement(wallet, None, None).unwrap();
    let view = ledger.wallet(wallet).unwrap();
    assert_eq!(statement.closing.micro() - statement.in_flight.micro(), view.balance.micro(), "{wallet}");
}

#[test]
fn what_is_asked_for_is_given_once() {
    let home = Home::new();
    let ledger = home.open();
    fund(&ledger, "team", 100);
    ledger.create_wallet("ada", None).unwrap();
    let first = ask(&ledger, "ada", 50);
    let view = &ledger.asks(Some("ada")).unwrap()[0];
    assert_eq!((view.state, view.reason.as_deref(), view.amount), (AskState::Open, Some("a demo"), credits(50)));

    let approval = Approval { amount: Some(credits(40)), idempotency_key: Some("k".into()), ..Approval::new(&first) };
    let approved = ledger.approve(approval.clone()).unwrap();
    assert_eq!((approved.state, approved.given), (AskState::Approved, Some(credits(40))));
    assert_eq!(ledger.approve(approval.clone()).unwrap(), approved);
    let other = ledger.approve(Approval { amount: None, ..approval });
    assert!(matches!(other, Err(LedgerError::IdempotencyConflict { .. })), "{other:?}");
    let again = ledger.approve(Approval::new(&first));
    assert!(matches!(again, Err(LedgerError::Answered { state: AskState::Approved, .. })), "{again:?}");
    let grant = &ledger.wallet("ada").unwrap().grants[0];
    assert_eq!((&approved.grants[0], grant.memo.as_deref()), (&grant.id, Some("a demo")));

    let second = ask(&ledger, "ada", 70);
    let out_of_the_pool = Approval { from: Some("team".into()), ..Approval::new(&second) };
    let too_much = ledger.approve(Approval { amount: Some(credits(101)), ..out_of_the_pool.clone() });
    assert!(matches!(too_much, Err(LedgerError::Exhausted { .. })), "{too_much:?}");
    assert_eq!(ledger.approve(out_of_the_pool).unwrap().state, AskState::Approved);
    assert_eq!((balance(&ledger, "ada"), balance(&ledger, "team")), (credits(110), credits(30)));

    let third = ask(&ledger, "ada", 1);
    let denied = ledger.deny(&third, Some("enough".into()), None).unwrap();
    assert_eq!((denied.state, denied.answer.as_deref()), (AskState::Denied, Some("enough")));
    assert!(matches!(ledger.deny(&third, None, None), Err(LedgerError::Answered { .. })));
    let events: Vec<String> = ledger.events(None, 0).unwrap().into_iter().map(|event| event.kind).collect();
    assert_eq!(events, ["allowance_request", "allowance_answer"].repeat(3));
    verify(&ledger);
    statement_agrees(&ledger, "ada");

    let nothing = NewAsk { wallet: "ada".into(), amount: Credits::ZERO, reason: None, idempotency_key: None };
    assert!(matches!(ledger.ask(nothing.clone()), Err(LedgerError::InvalidGrant { .. })));
    let nobody = NewAsk { wallet: "eve".into(), amount: credits(1), ..nothing };
    assert!(matches!(ledger.ask(nobody), Err(LedgerError::UnknownWallet { .. })));
    assert!(matches!(ledger.approve(Approval::new("none")), Err(LedgerError::UnknownAsk { .. })));
    home.sql().execute("UPDATE note SET text = 'a car' WHERE text = 'a demo'", []).unwrap();
    assert!(!ledger.verify().unwrap().passed());
}

#[test]
fn a_delegation_spends_no_more_than_it_has_and_its_rest_goes_back_to_the_grants_it_came_from() {
    let home = Home::new();
    let ledger = home.open();
    fund(&ledger, "ada", 100);
    let soon = at(home.now_us() + 60_000_000);
    ledger.grant(GrantRequest { expires: Some(soon), ..GrantRequest::new("ada", credits(20)) }).unwrap();
    let keyed = Delegate { idempotency_key: Some("k".into()), ..Delegate::new("ada", "agent", credits(50)) };
    let agent = ledger.delegate(keyed.clone()).unwrap();
    assert_eq!((agent.kind, agent.parent.as_deref(), agent.balance), (WalletKind::Service, Some("ada"), credits(50)));
    assert_eq!(agent.delegation.as_ref().map(|it| (it.from.as_str(), it.amount)), Some(("ada", credits(50))));
    assert_eq!(ledger.delegate(keyed).unwrap().id, agent.id);
    assert_eq!(balance(&ledger, "ada"), credits(70));

    ledger.admit(admission("r1", "agent", 10)).unwrap();
    assert_eq!(debit(&ledger, first_debit("r1", 0, 5)).granted, 5);
    ledger.admit(admission("r2", "agent", 19)).unwrap();
    let key = || Some("it is done".to_owned());
    let revoked = ledger.revoke("agent", key()).unwrap();
    assert_eq!((revoked.balance, revoked.in_flight, revoked.delegation), (Credits::ZERO, credits(35), None));
    assert_eq!(revoked.closed, Some(at(home.now_us())));
    assert_eq!(balance(&ledger, "ada"), credits(85));
    let end = debit(&ledger, next_debit("r1", 5));
    assert_eq!((end.granted, end.exhausted), (0, true), "nothing is left to run on");
    settle(&ledger, "r2", FinishReason::Cancelled).unwrap();
    assert_eq!(balance(&ledger, "ada"), credits(105), "what was held follows");
    settle(&ledger, "r1", FinishReason::Allowance).unwrap();
    let refund = Refund { amount: Some(credits(4)), ..Refund::new("r1") };
    ledger.refund(refund).unwrap();
    assert_eq!((balance(&ledger, "agent"), balance(&ledger, "ada")), (Credits::ZERO, credits(109)));
    let grants = ledger.wallet("ada").unwrap().grants;
    let remaining: Vec<Credits> = grants.iter().map(|grant| grant.remaining).collect();
    assert_eq!(remaining, [credits(9), credits(100)], "11 of the one that expires soon were spent");

    let entries = home.entries();
    assert_eq!(ledger.revoke("agent", None).unwrap().closed, revoked.closed);
    assert_eq!(ledger.revoke("agent", key()).unwrap().closed, revoked.closed);
    assert_eq!(home.entries(), entries, "again, it changes nothing");
    for refused in [
        ledger.admit(admission("r3", "agent", 1)).map(drop),
        ledger.thaw("agent", None).map(drop),
        ledger.grant(GrantRequest::new("agent", credits(1))).map(drop),
        ledger.transfer(Transfer::new("ada", "agent", credits(1))).map(drop),
        ledger.create_key(NewKey::new("agent", "key")).map(drop),
    ] {
        assert!(matches!(refused, Err(LedgerError::WalletClosed { .. })), "{refused:?}");
    }
    verify(&ledger);
    statement_agrees(&ledger, "ada");
    statement_agrees(&ledger, "agent");
}

#[test]
fn a_delegation_ends_at_its_time_with_whatever_is_written_next() {
    let home = Home::new();
    let ledger = home.open();
    fund(&ledger, "ada", 100);
    fund(&ledger, "bob", 100);
    let (first, second) = (at(home.now_us() + 10_000_000), at(home.now_us() + 20_000_000));
    ledger.delegate(Delegate { expires: Some(second), ..Delegate::new("ada", "late", credits(30)) }).unwrap();
    ledger.delegate(Delegate { expires: Some(first), ..Delegate::new("ada", "early", credits(20)) }).unwrap();
    ledger.admit(admission("r1", "early", 9)).unwrap();
    home.pass(10);
    assert!(matches!(ledger.admit(admission("r2", "early", 1)), Err(LedgerError::WalletClosed { .. })));
    assert_eq!(balance(&ledger, "ada"), credits(60));
    assert_eq!(debit(&ledger, first_debit("r1", 0, 5)).granted, 1, "what was held, and no more");
    home.pass(100);
    drop(ledger);
    let ledger = home.open();
    assert_eq!(balance(&ledger, "ada"), credits(90));
    assert_eq!(ledger.wallet("late").unwrap().closed, Some(second));
    let lines = ledger.statement("late", None, None).unwrap().lines;
    assert_eq!(lines.last().unwrap().date, second, "as of its time, whenever it was written");
    verify(&ledger);
    let past = Delegate { expires: Some(second), ..Delegate::new("ada", "never", credits(1)) };
    assert!(matches!(ledger.delegate(past), Err(LedgerError::InvalidGrant { .. })));
}

#[test]
fn who_delegates_what_cannot_be_delegates_nothing() {
    let home = Home::new();
    let ledger = home.open();
    fund(&ledger, "ada", 10);
    let entries = home.entries();
    let too_much = ledger.delegate(Delegate::new("ada", "agent", credits(11)));
    assert!(matches!(too_much, Err(LedgerError::Exhausted { .. })), "{too_much:?}");
    assert!(matches!(ledger.wallet("agent"), Err(LedgerError::UnknownWallet { .. })), "not even the wallet is there");
    assert!(matches!(ledger.delegate(Delegate::new("ada", "ada", credits(1))), Err(LedgerError::WalletExists { .. })));
    assert!(matches!(ledger.revoke("ada", None), Err(LedgerError::InvalidWallet { .. })));
    assert!(matches!(ledger.revoke("eve", None), Err(LedgerError::UnknownWallet { .. })));
    assert_eq!(home.entries(), entries);
    ledger.delegate(Delegate::new("ada", "agent", credits(5))).unwrap();
    let nested = ledger.delegate(Delegate::new("agent", "sub", credits(1)));
    assert!(matches!(nested, Err(LedgerError::InvalidWallet { .. })), "a program delegates to nobody: {nested:?}");
    for forgery in ["DELETE FROM delegation", "UPDATE delegation SET expires_us = created_us + 1"] {
        let backup = home.directory.path().join(format!("{}.db", forgery.len()));
        ledger.backup(&backup).unwrap();
        rusqlite::Connection::open(&backup).unwrap().execute_batch(forgery).unwrap();
        assert!(!Ledger::open_read_only(&backup).unwrap().verify().unwrap().passed(), "{forgery}");
    }
    verify(&ledger);
}

/// Somebody with all that one can have.
fn leaver(home: &Home) -> Ledger {
    let ledger = home.open();
    ledger.open_wallet(NewWallet { kind: WalletKind::Team, ..NewWallet::new("team") }).unwrap();
    ledger.grant(GrantRequest::new("team", credits(1000))).unwrap();
    let draw = Some(DrawTerms { cap: None, every: None });
    let parent = Some("team".into());
    ledger.open_wallet(NewWallet { parent, draw, overdraft: credits(7), ..NewWallet::new("ada") }).unwrap();
    ledger.grant(GrantRequest::new("ada", credits(100))).unwrap();
    ledger.grant_every(RecurringGrant::new("ada", credits(10), Period::Day)).unwrap();
    let vesting = Vesting { every: Period::Month, periods: 12, cliff: 0 };
    ledger.grant_vesting(GrantRequest::new("ada", credits(1200)), vesting).unwrap();
    ledger.delegate(Delegate::new("ada", "agent", credits(30))).unwrap();
    ledger.create_key(NewKey::new("ada", "laptop")).unwrap();
    ledger.create_key(NewKey::new("agent", "robot")).unwrap();
    ask(&ledger, "ada", 5);
    ledger
}

#[test]
fn who_leaves_keeps_nothing_and_nothing_is_lost() {
    for to in [None, Some("team")] {
        let home = Home::new();
        let ledger = leaver(&home);
        ledger.admit(admission("own", "ada", 9)).unwrap();
        assert_eq!(debit(&ledger, first_debit("own", 0, 3)).granted, 3);
        ledger.admit(admission("robot", "agent", 9)).unwrap();
        ledger.admit(admission("dear", "ada", 99)).unwrap();
        let closing = Closing { to: to.map(str::to_owned), ..Closing::new("ada") };
        let closed = ledger.close(closing.clone()).unwrap();
        // 12 of the own request, and what was left after that is held, with 32 of the pool.
        assert_eq!((closed.balance, closed.in_flight), (Credits::ZERO, credits(80)));
        assert_eq!((closed.closed, closed.frozen), (Some(at(home.now_us())), true));
        assert_eq!((closed.overdraft, closed.drawable), (Credits::ZERO, Credits::ZERO));
        assert!(closed.recurring.is_empty() && ledger.keys(None).unwrap().iter().all(|key| key.revoked.is_some()));
        assert!(
            closed.grants.iter().all(|grant| grant.state != GrantState::Pending && grant.state != GrantState::Live)
        );
        assert_eq!(ledger.asks(None).unwrap()[0].state, AskState::Denied);
        assert!(ledger.wallet("agent").unwrap().closed.is_some());
        let entries = home.entries();
        ledger.close(closing).unwrap();
        assert_eq!(home.entries(), entries, "again, it changes nothing");
        let elsewhere = Closing { to: Some("bob".into()), ..Closing::new("ada") };
        fund(&ledger, "bob", 1);
        assert!(matches!(ledger.close(elsewhere), Err(LedgerError::InvalidWallet { .. })));

        assert_eq!(debit(&ledger, next_debit("own", 9)).granted, 0, "neither from the pool nor on credit");
        for id in ["own", "robot", "dear"] {
            settle(&ledger, id, FinishReason::Cancelled).unwrap();
        }
        ledger.refund(Refund { amount: Some(credits(2)), ..Refund::new("own") }).unwrap();
        home.pass(40 * 86_400);
        assert_eq!((balance(&ledger, "ada"), balance(&ledger, "agent")), (Credits::ZERO, Credits::ZERO));
        // Of 110 that were given, 12 were spent and 2 of them came back; the 10 of the day are over meanwhile.
        assert_eq!(balance(&ledger, "team"), if to.is_some() { credits(1090) } else { credits(1000) });
        verify(&ledger);
        for wallet in ["ada", "agent", "team"] {
            statement_agrees(&ledger, wallet);
        }
    }
}

#[test]
fn what_is_overdrawn_stays_so_and_grows_no_more() {
    let home = Home::new();
    let ledger = home.open();
    fund(&ledger, "team", 1);
    ledger.open_wallet(NewWallet { overdraft: credits(30), ..NewWallet::new("ada") }).unwrap();
    ledger.admit(admission("r1", "ada", 2)).unwrap();
    assert_eq!(debit(&ledger, first_debit("r1", 0, 2)).granted, 2);
    settle(&ledger, "r1", FinishReason::Stop).unwrap();
    ledger.admit(admission("r2", "ada", 5)).unwrap();
    let closed = ledger.close(Closing { to: Some("team".into()), ..Closing::new("ada") }).unwrap();
    assert_eq!((closed.balance, closed.overdraft, closed.drawable), (credits(-10), credits(10), Credits::ZERO));
    verify(&ledger);
    assert_eq!(debit(&ledger, first_debit("r2", 5, 9)).granted, 1);
    settle(&ledger, "r2", FinishReason::Allowance).unwrap();
    assert_eq!(balance(&ledger, "ada"), credits(-10));
    let refund = Refund { amount: Some(credits(4)), ..Refund::new("r1") };
    ledger.refund(refund).unwrap();
    let ada = ledger.wallet("ada").unwrap();
    assert_eq!((ada.balance, ada.overdraft, balance(&ledger, "team")), (credits(-6), credits(6), credits(1)));
    verify(&ledger);
    statement_agrees(&ledger, "ada");
}

#[test]
fn what_cannot_be_closed_stays_open() {
    let home = Home::new();
    let ledger = leaver(&home);
    fund(&ledger, "bob", 1);
    let entries = home.entries();
    let to = |wallet: &str, to: &str| Closing { to: Some(to.into()), ..Closing::new(wallet) };
    for closing in [Closing::new("team"), Closing::new("agent"), to("ada", "ada"), to("bob", "agent")] {
        let refused = ledger.close(closing.clone());
        assert!(matches!(refused, Err(LedgerError::InvalidWallet { .. })), "{closing:?}: {refused:?}");
    }
    assert!(matches!(ledger.close(to("ada", "eve")), Err(LedgerError::UnknownWallet { .. })));
    assert_eq!(home.entries(), entries);
    ledger.close(Closing::new("bob")).unwrap();
    assert!(matches!(ledger.close(to("ada", "bob")), Err(LedgerError::WalletClosed { .. })));
    let under = NewWallet { parent: Some("bob".into()), kind: WalletKind::Service, ..NewWallet::new("x") };
    assert!(matches!(ledger.open_wallet(under), Err(LedgerError::WalletClosed { .. })));
    home.sql().execute_batch("DELETE FROM closure").unwrap();
    assert!(!ledger.verify().unwrap().passed());
}

#[test]
fn what_is_given_back_to_somebody_who_left_goes_where_their_rest_went() {
    let home = Home::new();
    let ledger = home.open();
    for name in ["ada", "bob", "eve"] {
        fund(&ledger, name, 100);
    }
    let received = ledger.transfer(Transfer::new("ada", "bob", credits(40))).unwrap().to.grants[1].id.clone();
    ledger.close(Closing { to: Some("eve".into()), ..Closing::new("ada") }).unwrap();
    assert_eq!(balance(&ledger, "eve"), credits(160));
    ledger.correct(Correction::new(received)).unwrap();
    assert_eq!((balance(&ledger, "ada"), balance(&ledger, "eve")), (Credits::ZERO, credits(200)));
    ledger.close(Closing::new("eve")).unwrap();
    assert_eq!(balance(&ledger, "eve"), Credits::ZERO);
    verify(&ledger);
}
