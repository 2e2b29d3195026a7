use super::*;
use crate::purse::tests::{grant, overdraft};

fn level(wallet: i64, grants: Vec<crate::purse::Grant>, cap: Option<i64>) -> (i64, Purse) {
    let draw = cap.map(|cap| Draw {
        parent: wallet + 1,
        cap: Some(cap),
        every: None,
        drawn: 0,
        from_us: 10,
        until_us: i64::MAX,
        zone: TimeZone::UTC,
        dirty: false,
    });
    (wallet, Purse { grants, draw, recurrences: Vec::new(), warnings: Vec::new() })
}

#[test]
fn grants_of_every_level_come_before_overdrafts_and_caps_hold_on_the_way() {
    let mut funds = Funds {
        levels: vec![
            level(1, vec![grant(1, 0, None, 5), overdraft(2, 3)], Some(9)),
            level(2, vec![grant(3, 0, None, 4), overdraft(4, 2)], Some(6)),
            level(3, vec![grant(5, 0, None, 100)], None),
        ],
        model: None,
    };
    assert_eq!(funds.available(20), 5 + 3 + 9);
    assert_eq!(funds.pay(18, 20), None);
    assert_eq!(funds.pay(11, 20), Some(vec![(1, 5), (3, 4), (5, 2)]));
    assert_eq!(funds.available(20), 3 + 3, "the first cap has 3 left, the second 4");
    assert_eq!(funds.pay(6, 20), Some(vec![(5, 3), (2, 3)]));
    assert_eq!(funds.available(20), 0);
    funds.give_back((5, 2), 20, 21).unwrap();
    assert_eq!(funds.available(21), 2);
    funds.give_back((5, 2), 9, 21).unwrap();
    assert_eq!(funds.available(21), 2, "taken in an earlier period: it does not count in this one");
    assert!(matches!(funds.give_back((8, 1), 20, 21), Err(LedgerError::Bad { .. })));
}
