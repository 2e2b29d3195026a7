//! What grants are beside amounts: for which models, worth how much, in how many parts.

use tokrun_ledger::{
    Credits, Deposit, FinishReason, GrantClass, GrantRequest, GrantState, GrantTerms, Ledger, LedgerError, NewWallet,
    Period, RecurringGrant, Transfer, Vesting, WalletKind,
};

use crate::common::{Home, START_US, admission, at, balance, credits, debit, first_debit, fund, settle, verify};

fn terms(scope: &str) -> GrantTerms {
    GrantTerms {
        class: GrantClass::Promotional,
        scope: Some(scope.parse().unwrap()),
        value: Some("0.002EUR".parse().unwrap()),
    }
}

/// Debits as much of 50 tokens as is paid, on a model. Returns how many.
fn spend(ledger: &Ledger, id: &str, wallet: &str, model: &str) -> u32 {
    ledger.admit(tokrun_ledger::Admission { model: model.into(), ..admission(id, wallet, 1) }).unwrap();
    let granted = debit(ledger, first_debit(id, 0, 50)).granted;
    settle(ledger, id, FinishReason::Allowance).unwrap();
    granted
}

#[test]
fn a_grant_pays_for_its_models_alone() {
    let home = Home::new();
    let ledger = home.open();
    fund(&ledger, "ada", 10);
    ledger
        .grant(GrantRequest { priority: -1, terms: terms("llama-*"), ..GrantRequest::new("ada", credits(7)) })
        .unwrap();
    assert_eq!(spend(&ledger, "r1", "ada", "smollm2"), 9, "the other one pays nothing");
    assert_eq!(balance(&ledger, "ada"), credits(7));
    let refused = ledger.admit(admission("r2", "ada", 1)).unwrap_err();
    assert!(matches!(refused, LedgerError::Exhausted { balance, .. } if balance == Credits::ZERO), "{refused}");
    assert_eq!(spend(&ledger, "r3", "ada", "llama-8b"), 6);
    assert_eq!(balance(&ledger, "ada"), Credits::ZERO);
    verify(&ledger);
    // What a dead process left is settled with the models in mind, too.
    ledger.grant(GrantRequest { terms: terms("llama-*"), ..GrantRequest::new("ada", credits(7)) }).unwrap();
    ledger.admit(tokrun_ledger::Admission { model: "llama-1".into(), ..admission("r4", "ada", 2) }).unwrap();
    debit(&ledger, first_debit("r4", 0, 2));
    home.bury_everybody();
    let heir = home.open();
    assert_eq!(balance(&heir, "ada"), credits(3));
    verify(&heir);
}

#[test]
fn a_grant_for_some_models_repays_no_overdraft() {
    let home = Home::new();
    let ledger = home.open();
    ledger.open_wallet(NewWallet { overdraft: credits(4), ..NewWallet::new("ada") }).unwrap();
    assert_eq!(spend(&ledger, "r1", "ada", "any"), 3);
    let grant = GrantRequest { terms: terms("llama-*"), ..GrantRequest::new("ada", credits(7)) };
    assert_eq!(ledger.grant(grant).unwrap().remaining, credits(7));
    assert_eq!(balance(&ledger, "ada"), credits(3));
    assert_eq!(ledger.grant(GrantRequest::new("ada", credits(5))).unwrap().remaining, credits(1));
    verify(&ledger);
}

#[test]
fn terms_go_with_what_is_transferred_and_what_comes_again() {
    let home = Home::new();
    let ledger = home.open();
    for name in ["ada", "bob"] {
        ledger.create_wallet(name, None).unwrap();
    }
    let daily = RecurringGrant {
        terms: terms("llama-*"),
        rollover: credits(3),
        ..RecurringGrant::new("ada", credits(7), Period::Day)
    };
    ledger.grant_every(daily).unwrap();
    home.pass(86_400);
    let ada = ledger.wallet("ada").unwrap();
    assert_eq!(ada.recurring[0].terms, terms("llama-*"));
    let live: Vec<_> = ada.grants.iter().filter(|grant| grant.state == GrantState::Live).collect();
    assert_eq!((live.len(), ada.balance), (2, credits(10)));
    assert!(live.iter().all(|grant| grant.terms == terms("llama-*")), "seen before it is written");
    let done = ledger.transfer(Transfer::new("ada", "bob", credits(9))).unwrap();
    assert!(done.to.grants.iter().all(|grant| grant.terms == terms("llama-*")));
    assert!(ledger.admit(admission("r1", "bob", 1)).is_err());
    assert_eq!(spend(&ledger, "r2", "bob", "llama-8b"), 8);
    verify(&ledger);
    // Terms are hashed.
    home.sql().execute_batch("UPDATE allowance SET scope = NULL WHERE wallet = (SELECT max(seq) FROM wallet)").unwrap();
    assert!(!ledger.verify().unwrap().passed());
}

#[test]
fn a_grant_vests_by_the_calendar_whoever_is_awake() {
    let yearly = |ledger: &Ledger| {
        ledger.open_wallet(NewWallet { zone: Some("Europe/Berlin".into()), ..NewWallet::new("ada") }).unwrap();
        let request = GrantRequest {
            memo: Some("equity".into()),
            terms: terms("*"),
            idempotency_key: Some("k".into()),
            // 31 January in Berlin.
            effective: Some(at(START_US + 30 * 86_400_000_000)),
            ..GrantRequest::new("ada", credits(100))
        };
        let vesting = Vesting { every: Period::Month, periods: 12, cliff: 3 };
        let first = ledger.grant_vesting(request.clone(), vesting).unwrap();
        let again = ledger.grant_vesting(request, vesting).unwrap();
        assert_eq!(
            first.iter().map(|part| &part.id).collect::<Vec<_>>(),
            again.iter().map(|part| &part.id).collect::<Vec<_>>()
        );
        first
    };
    let (home, sleeper) = (Home::new(), Home::new());
    let (ledger, asleep) = (home.open(), sleeper.open());
    let parts = yearly(&ledger);
    yearly(&asleep);
    let told: Vec<_> = parts.iter().take(3).map(|part| (part.amount, part.effective.to_string())).collect();
    // The 31st comes back after a short month.
    let expected =
        [("25", "2026-04-29T22:00:00Z"), ("8.333333", "2026-05-30T22:00:00Z"), ("8.333333", "2026-06-29T22:00:00Z")];
    assert_eq!(told, expected.map(|(amount, at)| (amount.parse().unwrap(), at.to_owned())));
    assert_eq!(parts.iter().map(|part| part.amount.micro()).sum::<i64>(), credits(100).micro());
    let at_cliff = (parts[0].effective.as_microsecond() - home.now_us()) / 1_000_000;
    home.pass(at_cliff - 1);
    assert_eq!(balance(&ledger, "ada"), Credits::ZERO, "nothing before the cliff");
    home.pass(1);
    assert_eq!(balance(&ledger, "ada"), credits(25));
    ledger.create_wallet("bob", None).unwrap();
    for _ in 0..6 {
        home.pass(40 * 86_400);
        ledger.freeze("bob", None).unwrap();
    }
    sleeper.pass((home.now_us() - sleeper.now_us()) / 1_000_000);
    let statement = |ledger: &Ledger| {
        let lines = ledger.statement("ada", None, None).unwrap().lines;
        lines.iter().map(|line| (line.date, line.amount)).collect::<Vec<_>>()
    };
    assert_eq!(statement(&ledger), statement(&asleep));
    verify(&ledger);
    // Who leaves keeps what has vested.
    let vested = balance(&asleep, "ada");
    let id = asleep.wallet("ada").unwrap().grants[0].vesting.clone().unwrap();
    asleep.void(&id, None).unwrap();
    sleeper.pass(400 * 86_400);
    assert_eq!(balance(&asleep, "ada"), vested);
    assert!(vested > credits(25) && vested < credits(100));
    verify(&asleep);
}

#[test]
fn a_promise_cannot_be_rewritten() {
    let home = Home::new();
    let ledger = home.open();
    ledger.create_wallet("ada", None).unwrap();
    let vesting = |periods, cliff| Vesting { every: Period::Month, periods, cliff };
    ledger.grant_vesting(GrantRequest::new("ada", credits(10)), vesting(5, 0)).unwrap();
    verify(&ledger);
    home.sql().execute_batch("UPDATE allowance SET amount = amount + 1 WHERE seq = 3").unwrap();
    let report = ledger.verify().unwrap();
    assert!(report.problems[0].what.contains("promises"), "{report:?}");
    home.sql().execute_batch("UPDATE allowance SET amount = amount - 1 WHERE seq = 3").unwrap();
    verify(&ledger);
    for nonsense in [vesting(0, 0), vesting(5, 6), vesting(481, 0)] {
        let refused = ledger.grant_vesting(GrantRequest::new("ada", credits(10)), nonsense);
        assert!(matches!(refused, Err(LedgerError::InvalidGrant { .. })), "{nonsense:?}");
    }
    assert!(ledger.grant_vesting(GrantRequest::new("ada", Credits::ZERO), vesting(5, 0)).is_err());
}

#[test]
fn a_deposit_trickles_down_to_the_micro_credit() {
    let home = Home::new();
    let ledger = home.open();
    ledger.open_wallet(NewWallet { kind: WalletKind::Team, ..NewWallet::new("tools") }).unwrap();
    for name in ["bob", "ada", "eve"] {
        ledger.open_wallet(NewWallet { parent: Some("tools".into()), ..NewWallet::new(name) }).unwrap();
    }
    ledger.create_wallet("zoe", None).unwrap();
    let once = Deposit { idempotency_key: Some("k".into()), ..Deposit::new("tools", credits(10)) };
    let shares = ledger.deposit(once.clone()).unwrap();
    let told: Vec<_> = shares.iter().map(|share| (share.wallet.as_str(), share.amount.micro())).collect();
    assert_eq!(told, [("ada", 3_333_334), ("bob", 3_333_333), ("eve", 3_333_333)]);
    assert_eq!(ledger.deposit(once).unwrap(), shares);
    let weights = vec![("ada".to_owned(), 0), ("eve".to_owned(), 3)];
    ledger.deposit(Deposit { weights, ..Deposit::new("tools", credits(4)) }).unwrap();
    let balances = ["ada", "bob", "eve"].map(|name| balance(&ledger, name).micro());
    assert_eq!(balances, [3_333_334, 4_333_333, 6_333_333]);
    for nonsense in [
        Deposit { weights: vec![("zoe".into(), 1)], ..Deposit::new("tools", credits(1)) },
        Deposit { weights: vec![("ada".into(), 1), ("ada".into(), 2)], ..Deposit::new("tools", credits(1)) },
        Deposit::new("ada", credits(1)),
        Deposit::new("tools", Credits::ZERO),
        Deposit::new("nobody", credits(1)),
    ] {
        assert!(ledger.deposit(nonsense.clone()).is_err(), "{nonsense:?}");
    }
    assert_eq!(["ada", "bob", "eve"].map(|name| balance(&ledger, name).micro()), balances);
    verify(&ledger);
}
