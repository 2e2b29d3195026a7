//! Refunds and corrections.

use tokrun_ledger::{
    Correction, Credits, DrawTerms, FinishReason, GrantKind, GrantRequest, Ledger, LedgerError, NewWallet, Refund,
    StatementKind, Transfer, WalletKind,
};

use crate::common::{Home, admission, at, balance, credits, debit, first_debit, fund, settle, verify};

/// Settles a request of 4 prompt tokens and so many of output.
fn request(ledger: &Ledger, id: &str, wallet: &str, output: u32) {
    ledger.admit(admission(id, wallet, 4)).unwrap();
    assert_eq!(debit(ledger, first_debit(id, 0, output)).granted, output);
    settle(ledger, id, FinishReason::Stop).unwrap();
}

#[test]
fn a_refund_returns_to_the_grants_that_paid_the_last_one_first() {
    let home = Home::new();
    let ledger = home.open();
    fund(&ledger, "ada", 10);
    let soon = Some(at(home.now_us() + 60_000_000));
    ledger.grant(GrantRequest { expires: soon, ..GrantRequest::new("ada", credits(7)) }).unwrap();
    request(&ledger, "r1", "ada", 6);
    let part = Refund { amount: Some(credits(4)), memo: Some("it hung".into()), ..Refund::new("r1") };
    let done = ledger.refund(part).unwrap();
    assert_eq!((done.amount, done.expired, done.reversed), (credits(4), Credits::ZERO, credits(4)));
    let left: Vec<_> = done.wallet.grants.iter().map(|grant| grant.remaining).collect();
    assert_eq!(left, [credits(1), credits(10)], "3 to the one that paid last, 1 to the other");
    let statement = ledger.statement("ada", None, None).unwrap();
    let line = statement.lines.last().unwrap();
    assert_eq!((line.kind, line.amount, line.memo.as_deref()), (StatementKind::Refund, credits(4), Some("it hung")));
    assert_eq!(line.request_id.as_deref(), Some("r1"));
    verify(&ledger);

    // The rest comes back to a grant that has expired meanwhile.
    home.pass(60);
    let done = ledger.refund(Refund::new("r1")).unwrap();
    assert_eq!((done.amount, done.expired, done.reversed), (credits(6), credits(6), credits(10)));
    assert_eq!(balance(&ledger, "ada"), credits(10));
    let refused = ledger.refund(Refund::new("r1")).unwrap_err();
    assert!(matches!(refused, LedgerError::InvalidReversal { .. }), "{refused}");
    let statement = ledger.statement("ada", None, None).unwrap();
    assert_eq!(statement.closing, credits(10));
    verify(&ledger);
}

#[test]
fn what_pools_and_overdrafts_paid_comes_back_to_them() {
    let home = Home::new();
    let ledger = home.open();
    ledger.open_wallet(NewWallet { kind: WalletKind::Team, overdraft: credits(3), ..NewWallet::new("tools") }).unwrap();
    ledger.grant(GrantRequest::new("tools", credits(4))).unwrap();
    let draw = Some(DrawTerms { cap: None, every: None });
    let parent = Some("tools".to_owned());
    ledger.open_wallet(NewWallet { parent, draw, overdraft: credits(2), ..NewWallet::new("ada") }).unwrap();
    request(&ledger, "r1", "ada", 4);
    assert_eq!((balance(&ledger, "ada"), balance(&ledger, "tools")), (credits(-2), credits(-2)));
    let part = |amount| Refund { amount: Some(credits(amount)), ..Refund::new("r1") };
    ledger.refund(part(3)).unwrap();
    assert_eq!((balance(&ledger, "ada"), balance(&ledger, "tools")), (credits(-1), Credits::ZERO));
    verify(&ledger);

    // A grant has repaid the overdraft before the rest of the refund comes.
    ledger.grant(GrantRequest::new("ada", credits(5))).unwrap();
    ledger.refund(Refund::new("r1")).unwrap();
    assert_eq!((balance(&ledger, "ada"), balance(&ledger, "tools")), (credits(5), credits(4)));
    let ada = ledger.wallet("ada").unwrap();
    let kinds: Vec<_> = ada.grants.iter().map(|grant| (grant.kind, grant.remaining)).collect();
    assert!(kinds.contains(&(GrantKind::Refund, credits(1))), "{kinds:?}");
    verify(&ledger);

    // What a refund's own grant paid can be refunded, too.
    request(&ledger, "r2", "ada", 4);
    ledger.refund(Refund::new("r2")).unwrap();
    assert_eq!((balance(&ledger, "ada"), balance(&ledger, "tools")), (credits(5), credits(4)));
    verify(&ledger);
}

#[test]
fn a_key_refunds_once_and_wrong_amounts_nothing() {
    let home = Home::new();
    let ledger = home.open();
    fund(&ledger, "ada", 20);
    request(&ledger, "r1", "ada", 6);
    let once = Refund { amount: Some(credits(3)), idempotency_key: Some("k".into()), ..Refund::new("r1") };
    let first = ledger.refund(once.clone()).unwrap();
    assert_eq!(ledger.refund(once.clone()).unwrap().entry, first.entry);
    assert_eq!(balance(&ledger, "ada"), credits(13));
    let other = Refund { amount: Some(credits(4)), ..once };
    assert!(matches!(ledger.refund(other), Err(LedgerError::IdempotencyConflict { .. })));
    for amount in [credits(8), Credits::ZERO, credits(-1)] {
        let refused = ledger.refund(Refund { amount: Some(amount), ..Refund::new("r1") });
        assert!(matches!(refused, Err(LedgerError::InvalidReversal { .. })), "{amount}");
    }
    assert!(matches!(ledger.refund(Refund::new("r2")), Err(LedgerError::NotSettled { .. })));
    ledger.admit(admission("open", "ada", 1)).unwrap();
    assert!(matches!(ledger.refund(Refund::new("open")), Err(LedgerError::NotSettled { .. })));
    assert_eq!(balance(&ledger, "ada"), credits(11));
    verify(&ledger);
}

#[test]
fn a_correction_takes_back_what_is_left_of_a_grant_or_a_transfer() {
    let home = Home::new();
    let ledger = home.open();
    fund(&ledger, "ada", 20);
    ledger.create_wallet("bob", None).unwrap();
    let sent = ledger.transfer(Transfer::new("ada", "bob", credits(15))).unwrap();
    request(&ledger, "r1", "bob", 6);
    let received = sent.to.grants[0].id.clone();
    let part = Correction {
        amount: Some(credits(2)),
        memo: Some("the wrong bob".into()),
        idempotency_key: Some("k".into()),
        ..Correction::new(&received)
    };
    ledger.correct(part.clone()).unwrap();
    let done = ledger.correct(part).unwrap();
    assert_eq!((done.amount, done.wallet.balance, balance(&ledger, "ada")), (credits(2), credits(3), credits(7)));
    let too_much = Correction { amount: Some(credits(4)), ..Correction::new(&received) };
    assert!(matches!(ledger.correct(too_much), Err(LedgerError::InvalidReversal { .. })));
    ledger.correct(Correction::new(&received)).unwrap();
    assert_eq!((balance(&ledger, "bob"), balance(&ledger, "ada")), (Credits::ZERO, credits(10)));
    let lines = ledger.statement("ada", None, None).unwrap().lines;
    let line = &lines[lines.len() - 2];
    assert_eq!(
        (line.kind, line.other.as_deref(), line.memo.as_deref()),
        (StatementKind::Correct, Some("bob"), Some("the wrong bob"))
    );
    verify(&ledger);

    let grant = ledger.wallet("ada").unwrap().grants[0].id.clone();
    let done = ledger.correct(Correction { amount: Some(credits(9)), ..Correction::new(grant) }).unwrap();
    assert_eq!(done.wallet.balance, credits(1));
    assert!(matches!(ledger.correct(Correction::new("none")), Err(LedgerError::UnknownGrant { .. })));
    verify(&ledger);
}

#[test]
fn what_was_taken_back_cannot_be_rewritten() {
    let home = Home::new();
    let ledger = home.open();
    fund(&ledger, "ada", 20);
    request(&ledger, "r1", "ada", 6);
    ledger.refund(Refund { memo: Some("why".into()), ..Refund::new("r1") }).unwrap();
    verify(&ledger);
    let sql = home.sql();
    let rest = "BEGIN SELECT RAISE(ABORT, 'entries are immutable: write a correcting one'); END;";
    for (change, undo) in [
        ("UPDATE reversal SET expired = 1", "UPDATE reversal SET expired = 0"),
        ("UPDATE entry_memo SET text = 'else'", "UPDATE entry_memo SET text = 'why'"),
    ] {
        for statement in [change, undo] {
            sql.execute_batch(&format!(
                "DROP TRIGGER reversal_is_final_update; {statement}; \
                 CREATE TRIGGER reversal_is_final_update BEFORE UPDATE ON reversal\n{rest}"
            ))
            .unwrap();
            assert_eq!(ledger.verify().unwrap().passed(), statement == undo, "{statement}");
        }
    }
}
