//! What an anchor that is kept elsewhere shows.

use tokrun_ledger::{Anchor, GrantRequest, Ledger};

use crate::common::{Home, credits, fund, verify};

#[test]
fn an_anchor_holds_while_the_chain_grows_and_shows_when_it_was_rewritten() {
    let home = Home::new();
    let ledger = home.open();
    let empty = ledger.anchor().unwrap();
    fund(&ledger, "ada", 10);
    let anchor: Anchor = ledger.anchor().unwrap().to_string().parse().unwrap();
    assert_eq!(anchor, ledger.anchor().unwrap());
    ledger.grant(GrantRequest::new("ada", credits(5))).unwrap();
    let last = ledger.anchor().unwrap();
    for kept in [&empty, &anchor, &last] {
        assert!(ledger.check_anchor(kept).unwrap().passed());
    }

    // Somebody writes another history, which is sound in itself, under the same name.
    let id: String = home.sql().query_row("SELECT ledger_id FROM meta", [], |row| row.get(0)).unwrap();
    let forged = Home::new();
    let ledger = forged.open();
    fund(&ledger, "ada", 1000);
    forged.sql().execute("UPDATE meta SET ledger_id = ?1", [id]).unwrap();
    verify(&ledger);
    let report = ledger.check_anchor(&anchor).unwrap();
    assert!(report.problems[0].what.contains("rewritten"), "{report:?}");
    assert_eq!(report.problems[0].entry, Some(anchor.entry));
    let report =
        ledger.check_anchor(&last.to_string().replace(&format!(":{}:", last.entry), ":99:").parse().unwrap()).unwrap();
    assert!(report.problems[0].what.contains("cut off"), "{report:?}");
    let report = ledger.check_anchor(&last.to_string().replace(&last.ledger, "other").parse().unwrap()).unwrap();
    assert!(report.problems[0].what.contains("other"), "{report:?}");
    assert!(Ledger::open(&forged.path()).unwrap().verify().unwrap().passed(), "a wrong anchor marks nothing");
}

#[test]
fn what_is_no_anchor_is_refused() {
    let hash = "0".repeat(64);
    assert!(format!("id:0:{hash}").parse::<Anchor>().is_ok());
    for nonsense in [
        String::new(),
        "id:0".into(),
        format!("id:x:{hash}"),
        format!(":0:{hash}"),
        format!("id:0:{hash}0"),
        format!("id:0:+{}", &hash[1..]),
    ] {
        assert!(nonsense.parse::<Anchor>().is_err(), "{nonsense}");
    }
}
