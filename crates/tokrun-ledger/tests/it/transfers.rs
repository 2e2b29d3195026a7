//! What one wallet gives to another.

use tokrun_ledger::{
    Credits, FinishReason, GrantKind, GrantRequest, Ledger, LedgerError, NewWallet, StatementKind, Transfer,
};

use crate::common::{Home, admission, at, balance, credits, debit, first_debit, fund, settle, verify};

fn pair(home: &Home) -> Ledger {
    let ledger = home.open();
    fund(&ledger, "ada", 10);
    ledger.open_wallet(NewWallet { overdraft: credits(4), ..NewWallet::new("bob") }).unwrap();
    ledger
}

#[test]
fn a_transfer_moves_what_burns_first_and_keeps_its_expiry() {
    let home = Home::new();
    let ledger = pair(&home);
    let soon = at(home.now_us() + 60_000_000);
    let later = at(home.now_us() + 600_000_000);
    ledger.grant(GrantRequest { expires: Some(soon), ..GrantRequest::new("ada", credits(5)) }).unwrap();
    let lent = Transfer { memo: Some("lent".into()), expires: Some(later), ..Transfer::new("ada", "bob", credits(7)) };
    let done = ledger.transfer(lent).unwrap();
    assert_eq!((done.from.balance, done.to.balance), (credits(8), credits(7)));
    let received: Vec<_> = done.to.grants.iter().map(|grant| (grant.kind, grant.amount, grant.expires)).collect();
    let transfer = GrantKind::Transfer;
    assert_eq!(received, [(transfer, credits(5), Some(soon)), (transfer, credits(2), Some(later))]);
    for (wallet, sign, other) in [("ada", -1, "bob"), ("bob", 1, "ada")] {
        let lines = ledger.statement(wallet, None, None).unwrap().lines;
        let lines: Vec<_> = lines.iter().filter(|line| line.kind == StatementKind::Transfer).collect();
        assert_eq!(lines.iter().map(|line| line.amount).collect::<Vec<_>>(), [credits(5 * sign), credits(2 * sign)]);
        for line in lines {
            assert_eq!((line.memo.as_deref(), line.other.as_deref()), (Some("lent"), Some(other)));
        }
    }
    verify(&ledger);
    home.pass(600);
    assert_eq!((balance(&ledger, "ada"), balance(&ledger, "bob")), (credits(8), Credits::ZERO));
    verify(&ledger);
}

#[test]
fn what_is_received_repays_an_overdraft() {
    let home = Home::new();
    let ledger = pair(&home);
    ledger.admit(admission("r1", "bob", 1)).unwrap();
    debit(&ledger, first_debit("r1", 0, 2));
    settle(&ledger, "r1", FinishReason::Stop).unwrap();
    assert_eq!(balance(&ledger, "bob"), credits(-3));
    let done = ledger.transfer(Transfer::new("ada", "bob", credits(5))).unwrap();
    assert_eq!((done.to.balance, done.to.drawable, done.to.grants[0].remaining), (credits(2), credits(4), credits(2)));
    verify(&ledger);
}

#[test]
fn a_key_transfers_once_and_what_cannot_be_moves_nothing() {
    let home = Home::new();
    let ledger = pair(&home);
    let keyed = Transfer { idempotency_key: Some("lunch".into()), ..Transfer::new("ada", "bob", credits(3)) };
    ledger.transfer(keyed.clone()).unwrap();
    ledger.transfer(keyed.clone()).unwrap();
    let other = Transfer { amount: credits(4), ..keyed };
    assert!(matches!(ledger.transfer(other), Err(LedgerError::IdempotencyConflict { .. })));
    // What is in flight cannot be given away, nor can an overdraft.
    ledger.admit(admission("r1", "ada", 4)).unwrap();
    let refused = ledger.transfer(Transfer::new("ada", "bob", credits(3))).unwrap_err();
    assert!(matches!(&refused, LedgerError::Exhausted { balance, .. } if *balance == credits(2)), "{refused}");
    assert!(ledger.transfer(Transfer::new("bob", "ada", credits(4))).is_err());
    for nonsense in [
        Transfer::new("ada", "ada", credits(1)),
        Transfer::new("ada", "bob", Credits::ZERO),
        Transfer { expires: Some(at(home.now_us())), ..Transfer::new("ada", "bob", credits(1)) },
    ] {
        assert!(matches!(ledger.transfer(nonsense), Err(LedgerError::InvalidGrant { .. })));
    }
    assert!(matches!(ledger.transfer(Transfer::new("ada", "eve", credits(1))), Err(LedgerError::UnknownWallet { .. })));
    ledger.freeze("ada", None).unwrap();
    assert!(matches!(ledger.transfer(Transfer::new("ada", "bob", credits(1))), Err(LedgerError::Frozen { .. })));
    assert_eq!((balance(&ledger, "ada"), balance(&ledger, "bob")), (credits(2), credits(3)));
    verify(&ledger);
}
