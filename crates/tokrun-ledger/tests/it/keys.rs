//! Access keys: whose they are, what they are for, and what is told to whom who has none.

use std::time::Duration;

use tokrun_ledger::{
    Admission, FinishReason, GrantRequest, KeyRefusal, Ledger, LedgerError, NewKey, Role, UsageBy, UsageQuery,
    is_key_secret,
};

use crate::common::{Home, admission, at, credits, debit, first_debit, fund, settle, verify};

fn home_with_ada() -> (Home, Ledger) {
    let home = Home::new();
    let ledger = home.open();
    fund(&ledger, "ada", 1000);
    (home, ledger)
}

#[track_caller]
fn refusal(ledger: &Ledger, secret: &str) -> KeyRefusal {
    match ledger.authenticate(secret).unwrap_err() {
        LedgerError::KeyRefused { reason } => reason,
        other => panic!("{other}"),
    }
}

#[test]
fn a_key_is_known_by_its_secret_until_it_is_revoked() {
    let (home, ledger) = home_with_ada();
    let expires = at(home.now_us() + 60_000_000);
    let new = NewKey { role: Role::Finance, expires: Some(expires), ..NewKey::new("ada", "laptop") };
    let created = ledger.create_key(new).unwrap();
    let secret = created.secret.unwrap();
    assert!(is_key_secret(&secret));
    let key = ledger.authenticate(&secret).unwrap();
    assert_eq!(key, created.view);
    assert_eq!((key.name.as_str(), key.wallet.as_str(), key.role), ("laptop", "ada", Role::Finance));
    assert_eq!((key.expires, key.revoked), (Some(expires), None));
    let other = ledger.create_key(NewKey::new("ada", "ci")).unwrap();
    assert_eq!(ledger.keys(Some("ada")).unwrap().len(), 2);
    assert_eq!((ledger.key("ci").unwrap(), ledger.key(&other.view.id).unwrap()), (other.view.clone(), other.view));

    home.pass(60);
    assert_eq!(refusal(&ledger, &secret), KeyRefusal::Expired);
    let ci = other.secret.unwrap();
    let revoked = ledger.revoke_key("ci", Some("leak".into())).unwrap();
    assert_eq!(ledger.revoke_key("ci", Some("leak".into())).unwrap(), revoked);
    home.pass(1);
    let entries = home.entries();
    assert_eq!(ledger.revoke_key("ci", None).unwrap(), revoked, "again, it changes nothing");
    assert_eq!(home.entries(), entries);
    assert_eq!(refusal(&ledger, &ci), KeyRefusal::Revoked);
    assert_eq!(refusal(&ledger, "tkr-nobody"), KeyRefusal::Unknown);
    let told: Vec<String> =
        [&secret, &ci, ""].iter().map(|secret| ledger.authenticate(secret).unwrap_err().to_string()).collect();
    assert!(told.iter().all(|text| *text == told[0]), "nobody is told why: {told:?}");
    verify(&ledger);
    drop(ledger);
    let file = std::fs::read(home.path()).unwrap();
    for secret in [secret, ci] {
        assert!(!file.windows(20).any(|bytes| bytes == &secret.as_bytes()[4..24]), "no secret is in the file");
    }
}

#[test]
fn a_secret_that_is_replaced_is_good_for_a_while() {
    let (home, ledger) = home_with_ada();
    let first = ledger.create_key(NewKey::new("ada", "ci")).unwrap();
    let first_secret = first.secret.unwrap();
    let rotate = |grace, key: &str| ledger.rotate_key("ci", Duration::from_secs(grace), Some(key.into()));
    let second = rotate(30, "once").unwrap();
    assert_eq!((&second.view, rotate(30, "once").unwrap().secret), (&first.view, None));
    assert!(matches!(rotate(31, "once"), Err(LedgerError::IdempotencyConflict { .. })));
    let second_secret = second.secret.unwrap();
    for secret in [&first_secret, &second_secret] {
        assert_eq!(ledger.authenticate(secret).unwrap(), first.view);
    }
    home.pass(20);
    let third_secret = rotate(30, "twice").unwrap().secret.unwrap();
    home.pass(10);
    assert_eq!(refusal(&ledger, &first_secret), KeyRefusal::Replaced, "another rotation gives it no more time");
    ledger.authenticate(&second_secret).unwrap();
    home.pass(20);
    assert_eq!(refusal(&ledger, &second_secret), KeyRefusal::Replaced);
    let leaked = rotate(0, "leaked").unwrap().secret.unwrap();
    assert_eq!(refusal(&ledger, &third_secret), KeyRefusal::Unknown, "at once, and forgotten");
    ledger.revoke_key("ci", None).unwrap();
    assert_eq!(refusal(&ledger, &leaked), KeyRefusal::Revoked);
    assert!(matches!(rotate(0, "late"), Err(LedgerError::InvalidKey { .. })));
    verify(&ledger);
}

#[test]
fn a_request_is_held_to_its_key_and_booked_under_it() {
    let (home, ledger) = home_with_ada();
    fund(&ledger, "bob", 10);
    let expires = Some(at(home.now_us() + 60_000_000));
    let models = Some("mod*".parse().unwrap());
    let new = NewKey { models, project: Some("web".into()), expires, ..NewKey::new("ada", "ci") };
    ledger.create_key(new).unwrap();
    let with = |id: &str, wallet: &str| Admission { key: Some("ci".into()), ..admission(id, wallet, 2) };
    let beyond = |admission: Admission| match ledger.admit(admission).unwrap_err() {
        LedgerError::KeyScope { what, .. } => what,
        other => panic!("{other}"),
    };
    assert_eq!(beyond(with("r1", "bob")), "the wallet `bob`");
    assert_eq!(beyond(Admission { model: "llama".into(), ..with("r1", "ada") }), "the model `llama`");
    assert_eq!(beyond(Admission { project: Some("app".into()), ..with("r1", "ada") }), "the project `app`");
    ledger.admit(with("r1", "ada")).unwrap();
    ledger.admit(Admission { project: Some("web".into()), ..with("r2", "ada") }).unwrap();
    ledger.admit(Admission { key: Some("some name".into()), ..admission("r3", "ada", 2) }).unwrap();
    home.pass(60);
    let late = ledger.admit(with("r4", "ada"));
    assert!(matches!(late, Err(LedgerError::KeyRefused { reason: KeyRefusal::Expired })), "{late:?}");
    for id in ["r1", "r2", "r3"] {
        assert_eq!(debit(&ledger, first_debit(id, 0, 5)).granted, 5, "what runs may end");
        settle(&ledger, id, FinishReason::Stop).unwrap();
    }
    let used = |by| -> Vec<(String, u64)> {
        let rows = ledger.usage(&UsageQuery::new(by)).unwrap();
        rows.into_iter().map(|row| (row.key, row.requests)).collect()
    };
    assert_eq!(used(UsageBy::Key), [("ci".to_owned(), 2), ("some name".to_owned(), 1)]);
    assert_eq!(used(UsageBy::Project), [(String::new(), 1), ("web".to_owned(), 2)]);
    verify(&ledger);
}

#[test]
fn what_cannot_be_a_key_is_refused_and_a_key_of_its_own_creates_once() {
    let (home, ledger) = home_with_ada();
    let keyed = NewKey { idempotency_key: Some("k".into()), ..NewKey::new("ada", "ci") };
    let first = ledger.create_key(keyed.clone()).unwrap();
    let again = ledger.create_key(keyed.clone()).unwrap();
    assert_eq!((again.view, again.secret), (first.view, None));
    let entries = home.entries();
    let other = ledger.create_key(NewKey { role: Role::Admin, ..keyed });
    assert!(matches!(other, Err(LedgerError::IdempotencyConflict { .. })));
    ledger.revoke_key("ci", None).unwrap();
    assert!(matches!(ledger.create_key(NewKey::new("ada", "ci")), Err(LedgerError::KeyExists { .. })));
    let now = Some(at(home.now_us()));
    for nonsense in [
        NewKey::new("ada", ""),
        NewKey::new("ada", "a\u{202e}b"),
        NewKey { project: Some(String::new()), ..NewKey::new("ada", "x") },
        NewKey { expires: now, ..NewKey::new("ada", "x") },
    ] {
        assert!(matches!(ledger.create_key(nonsense), Err(LedgerError::InvalidKey { .. })));
    }
    assert!(matches!(ledger.create_key(NewKey::new("eve", "x")), Err(LedgerError::UnknownWallet { .. })));
    assert!(matches!(ledger.keys(Some("eve")), Err(LedgerError::UnknownWallet { .. })));
    assert!(matches!(ledger.revoke_key("x", None), Err(LedgerError::UnknownKey { .. })));
    assert!(matches!(ledger.rotate_key("x", Duration::ZERO, None), Err(LedgerError::UnknownKey { .. })));
    assert_eq!(home.entries(), entries + 1, "the revocation alone");
}

#[test]
fn a_key_that_somebody_made_behind_the_ledger_is_found() {
    for forgery in [
        "UPDATE access_key SET role = 'admin'",
        "UPDATE access_key SET revoked_us = NULL",
        "UPDATE access_key SET wallet = (SELECT max(seq) FROM wallet)",
        "INSERT INTO key_secret (digest, access_key) VALUES (zeroblob(32), 1)",
        "UPDATE key_secret SET digest = zeroblob(32)",
        "UPDATE record SET actor = 'somebody'",
    ] {
        let (home, ledger) = home_with_ada();
        fund(&ledger, "bob", 1);
        ledger.create_key(NewKey::new("ada", "ci")).unwrap();
        ledger.revoke_key("ci", None).unwrap();
        verify(&ledger);
        home.sql().execute_batch(forgery).unwrap();
        assert!(!ledger.verify().unwrap().passed(), "{forgery}");
    }
}

#[test]
fn the_record_says_who_acted() {
    let (home, ledger) = home_with_ada();
    let admin = ledger.create_key(NewKey { role: Role::Admin, ..NewKey::new("ada", "root") }).unwrap().view;
    let key = ledger.acting_for(&admin).create_key(NewKey::new("ada", "ci")).unwrap().view;
    ledger.revoke_key("ci", None).unwrap();
    let sql = home.sql();
    let mut statement = sql.prepare("SELECT actor FROM record WHERE subject = ?1 ORDER BY entry").unwrap();
    let actors: Vec<Option<String>> =
        statement.query_map([&key.id], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap();
    assert_eq!(actors, [Some(admin.id.clone()), None]);
    let acting = ledger.acting_for(&admin);
    acting.grant(GrantRequest::new("ada", credits(7))).unwrap();
    acting.freeze("ada", None).unwrap();
    let sql = "SELECT kind, subject, actor, body FROM record ORDER BY entry DESC LIMIT 1";
    let read = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?));
    let last: (String, String, String, String) = home.sql().query_row(sql, [], read).unwrap();
    let granted = home.entries() - 1;
    let body = format!(r#"{{"from":{granted},"to":{granted}}}"#);
    assert_eq!(last, ("act".to_owned(), admin.id.clone(), admin.id, body), "the grant's entry names nobody");
    verify(&ledger);
}
