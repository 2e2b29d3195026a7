//! Wallets under wallets: pools, caps, overdrafts, freezing, and where a wallet may stand.

use tokrun_ledger::{
    Credits, DrawTerms, FinishReason, Ledger, LedgerError, NewWallet, Period, WalletChange, WalletKind,
};

use crate::common::{Home, admission, balance, credits, debit, first_debit, fund, next_debit, settle, verify};

const MONTHLY: Option<Period> = Some(Period::Month);

/// A company with 1,000, a team in it that draws on it, and two people: ada has 10 of her own and may draw 20 a month.
fn company(home: &Home) -> Ledger {
    let ledger = home.open();
    let new = |name: &str, kind, parent: Option<&str>, draw| NewWallet {
        kind,
        parent: parent.map(str::to_owned),
        draw,
        ..NewWallet::new(name)
    };
    let draws = |cap: Option<i64>, every| Some(DrawTerms { cap: cap.map(credits), every });
    ledger.open_wallet(new("acme", WalletKind::Organisation, None, None)).unwrap();
    ledger.open_wallet(new("tools", WalletKind::Team, Some("acme"), draws(Some(100), None))).unwrap();
    ledger.open_wallet(new("ada", WalletKind::Person, Some("tools"), draws(Some(20), MONTHLY))).unwrap();
    ledger.open_wallet(new("bob", WalletKind::Person, Some("tools"), None)).unwrap();
    give(&ledger, "acme", 1000);
    give(&ledger, "tools", 5);
    give(&ledger, "ada", 10);
    ledger
}

fn give(ledger: &Ledger, wallet: &str, amount: i64) {
    ledger.grant(tokrun_ledger::GrantRequest::new(wallet, credits(amount))).unwrap();
}

fn change(ledger: &Ledger, wallet: &str, change: WalletChange) -> Result<(), LedgerError> {
    ledger.change_wallet(wallet, change).map(|_| ())
}

#[test]
fn a_member_spends_its_own_then_the_pools_up_to_its_cap() {
    let home = Home::new();
    let ledger = company(&home);
    let ada = ledger.wallet("ada").unwrap();
    assert_eq!((ada.balance, ada.drawable, ada.team.as_deref()), (credits(10), credits(20), Some("tools")));

    ledger.admit(admission("r1", "ada", 2)).unwrap();
    let first = debit(&ledger, first_debit("r1", 0, 100));
    assert_eq!((first.granted, first.exhausted), (28, true), "10 of her own, 5 of the team, 15 of the company");
    assert_eq!(balance(&ledger, "tools"), Credits::ZERO);
    assert_eq!(balance(&ledger, "acme"), credits(985));
    let settled = settle(&ledger, "r1", FinishReason::Allowance).unwrap();
    assert_eq!((settled.debited, settled.balance), (credits(30), Credits::ZERO));
    let refused = ledger.admit(admission("r2", "ada", 1)).unwrap_err();
    assert!(matches!(refused, LedgerError::Exhausted { balance: Credits::ZERO, .. }), "{refused}");

    // bob may not draw at all; next month ada may again.
    assert!(ledger.admit(admission("r3", "bob", 1)).is_err());
    home.pass(31 * 24 * 3600);
    ledger.admit(admission("r4", "ada", 1)).unwrap();
    assert_eq!(ledger.wallet("ada").unwrap().drawn, credits(2));
    settle(&ledger, "r4", FinishReason::Cancelled).unwrap();
    assert_eq!(ledger.wallet("ada").unwrap().drawn, Credits::ZERO, "what was only held does not count");
    verify(&ledger);
}

#[test]
fn a_crashed_member_gives_the_hold_back_to_the_pool() {
    let home = Home::new();
    let ledger = company(&home);
    ledger.admit(admission("r1", "ada", 20)).unwrap();
    assert_eq!(ledger.wallet("ada").unwrap().drawn, credits(11));
    home.bury_everybody();
    let ledger = home.open();
    assert_eq!((balance(&ledger, "tools"), balance(&ledger, "acme")), (credits(5), credits(1000)));
    assert_eq!(ledger.wallet("ada").unwrap().drawn, Credits::ZERO);
    verify(&ledger);
}

#[test]
fn an_overdraft_comes_last_and_the_next_grant_repays_it() {
    let home = Home::new();
    let ledger = company(&home);
    let overdraft = |amount| WalletChange { overdraft: Some(credits(amount)), ..WalletChange::default() };
    change(&ledger, "ada", overdraft(7)).unwrap();
    ledger.admit(admission("r1", "ada", 2)).unwrap();
    assert_eq!(debit(&ledger, first_debit("r1", 0, 100)).granted, 35);
    assert_eq!(balance(&ledger, "ada"), credits(-7));
    assert_eq!(debit(&ledger, next_debit("r1", 1)).granted, 0);
    settle(&ledger, "r1", FinishReason::Allowance).unwrap();
    assert_eq!(ledger.statement("ada", None, None).unwrap().closing, credits(-7));
    verify(&ledger);

    let refused = change(&ledger, "ada", overdraft(6)).unwrap_err();
    assert!(refused.to_string().contains("7 credits of its overdraft are used"), "{refused}");
    give(&ledger, "ada", 10);
    let ada = ledger.wallet("ada").unwrap();
    assert_eq!((ada.balance, ada.drawable, ada.grants.last().unwrap().remaining), (credits(3), credits(7), credits(3)));
    change(&ledger, "ada", overdraft(0)).unwrap();
    assert_eq!(ledger.wallet("ada").unwrap().drawable, Credits::ZERO);
    change(&ledger, "ada", overdraft(2)).unwrap();
    assert_eq!(ledger.wallet("ada").unwrap().drawable, credits(2));
    verify(&ledger);
}

#[test]
fn what_stands_under_a_frozen_wallet_is_frozen() {
    let home = Home::new();
    let ledger = company(&home);
    ledger.admit(admission("r1", "ada", 1)).unwrap();
    ledger.freeze("acme", None).unwrap();
    assert!(ledger.wallet("ada").unwrap().frozen);
    let refused = ledger.admit(admission("r2", "ada", 1)).unwrap_err();
    assert!(matches!(&refused, LedgerError::Frozen { name } if name == "acme"), "{refused}");
    assert_eq!(debit(&ledger, first_debit("r1", 0, 3)).granted, 3, "what runs may end");
    ledger.thaw("acme", None).unwrap();
    ledger.admit(admission("r2", "ada", 1)).unwrap();
}

#[test]
fn a_team_is_named_to_all_who_belong_to_it_and_to_nobody_else() {
    let home = Home::new();
    let ledger = company(&home);
    fund(&ledger, "eve", 10);
    give(&ledger, "bob", 10);
    let team_of = |id: &str, wallet: &str| ledger.admit(admission(id, wallet, 1)).unwrap().team_id;
    let tools = ledger.wallet("tools").unwrap().id;
    assert_eq!(team_of("r1", "ada"), tools);
    assert_eq!(team_of("r2", "bob"), tools);
    assert_eq!(team_of("r3", "eve"), ledger.wallet("eve").unwrap().id);
    assert_eq!(team_of("r4", "acme"), ledger.wallet("acme").unwrap().id, "a company is no team");
}

#[test]
fn a_place_that_is_none_is_refused_and_changes_nothing() {
    let home = Home::new();
    let ledger = company(&home);
    let under = |parent: &str| WalletChange { parent: Some(Some(parent.into())), ..WalletChange::default() };
    let before = format!("{:?}", ledger.wallets().unwrap());
    let mut refusals = vec![
        change(&ledger, "acme", under("acme")).unwrap_err(),
        change(&ledger, "acme", under("tools")).unwrap_err(),
        change(&ledger, "bob", under("ada")).unwrap_err(),
        change(&ledger, "tools", WalletChange { kind: Some(WalletKind::Person), ..WalletChange::default() })
            .unwrap_err(),
        change(&ledger, "ada", WalletChange { zone: Some(Some("Mars/Base".into())), ..WalletChange::default() })
            .unwrap_err(),
        change(
            &ledger,
            "acme",
            WalletChange { draw: Some(DrawTerms { cap: None, every: None }), ..WalletChange::default() },
        )
        .unwrap_err(),
    ];
    ledger.admit(admission("r1", "ada", 1)).unwrap();
    refusals
        .push(change(&ledger, "tools", WalletChange { parent: Some(None), ..WalletChange::default() }).unwrap_err());
    settle(&ledger, "r1", FinishReason::Cancelled).unwrap();
    for refusal in &refusals {
        assert!(matches!(refusal, LedgerError::InvalidWallet { .. }), "{refusal}");
    }
    assert!(matches!(change(&ledger, "ada", under("nobody")), Err(LedgerError::UnknownWallet { .. })));
    assert_eq!(format!("{:?}", ledger.wallets().unwrap()), before);

    change(&ledger, "bob", WalletChange { parent: Some(None), ..WalletChange::default() }).unwrap();
    assert_eq!(ledger.wallet("bob").unwrap().parent, None);
}

#[test]
fn a_tree_has_an_end() {
    let home = Home::new();
    let ledger = home.open();
    let team = |name: String, parent: Option<String>| {
        ledger.open_wallet(NewWallet { kind: WalletKind::Team, parent, ..NewWallet::new(name) })
    };
    team("team-1".into(), None).unwrap();
    for level in 2..=8 {
        team(format!("team-{level}"), Some(format!("team-{}", level - 1))).unwrap();
    }
    let refused = team("team-9".into(), Some("team-8".into())).unwrap_err();
    assert!(refused.to_string().contains("8 are the most"), "{refused}");
    // Nor can it be pushed down from above.
    team("top".into(), None).unwrap();
    let down = WalletChange { parent: Some(Some("top".into())), ..WalletChange::default() };
    assert!(change(&ledger, "team-1", down).is_err());
    verify(&ledger);
}
