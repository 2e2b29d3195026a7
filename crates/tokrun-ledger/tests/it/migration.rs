//! A file of the first version, as the program of that time wrote it, becomes one of today's.

use tokrun_ledger::{FinishReason, GrantRequest, Ledger, LedgerError, WalletKind};

use crate::common::{Home, START_US, at, balance, credits, debit, next_debit, settle, verify};

const VERSION_1: &str = include_str!("version-1.sql");

fn old_ledger() -> Home {
    let home = Home::new();
    let sql = home.sql();
    // Its tables come in the order of their names.
    sql.pragma_update(None, "foreign_keys", false).unwrap();
    sql.execute_batch(VERSION_1).unwrap();
    sql.pragma_update(None, "application_id", 1_953_459_058).unwrap();
    sql.pragma_update(None, "user_version", 1).unwrap();
    home
}

#[test]
fn what_the_first_version_wrote_is_kept_and_goes_on() {
    let home = old_ledger();
    home.pass(2);
    let ledger = Ledger::open_with_clock(&home.path(), home.clock()).unwrap();
    verify(&ledger);
    // The processes of then are dead: one request had debited 15, the other had a hold.
    assert_eq!(home.open_requests(), 0);
    assert_eq!(balance(&ledger, "ada"), credits(100 - 15 - 15));
    assert!(ledger.wallet("bob").unwrap().frozen);
    let eve = ledger.wallet("eve").unwrap();
    assert_eq!((eve.kind, eve.parent, eve.zone.as_str()), (WalletKind::Person, None, "UTC"));
    assert_eq!(eve.grants[0].memo.as_deref(), Some("a gift"));
    // Its idempotency keys still hold.
    assert_eq!(ledger.create_wallet("eve", Some("eve-key".into())).unwrap().id, eve.id);
    let gift = GrantRequest {
        memo: Some("a gift".into()),
        priority: 3,
        expires: Some(at(START_US + 900_000_000_000)),
        effective: Some(at(START_US + 60_000_000)),
        idempotency_key: Some("gift".into()),
        ..GrantRequest::new("eve", credits(7))
    };
    ledger.grant(gift).unwrap();
    home.pass(60);
    assert_eq!(balance(&ledger, "eve"), credits(7));
    verify(&ledger);
    let refused = debit(&ledger, next_debit("r2", 1)).refused;
    assert!(matches!(refused, Some(LedgerError::UnknownRequest { .. })), "{refused:?}");
    assert_eq!(settle(&ledger, "r2", FinishReason::Stop).unwrap().finish_reason, FinishReason::Crashed);
}

#[test]
fn a_reader_that_may_not_migrate_says_who_can() {
    let home = old_ledger();
    let before = std::fs::read(home.path()).unwrap();
    let error = Ledger::open_read_only(&home.path()).unwrap_err();
    assert!(matches!(error, LedgerError::OlderSchema { found: 1, .. }), "{error}");
    assert_eq!(std::fs::read(home.path()).unwrap(), before);
}
