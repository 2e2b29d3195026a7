//! The administration over HTTP: what each role may, what is repeated, and what the books say of it.

use serde_json::{Value, json};
use tokrun_ledger::{Credits, NewKey, NewWallet, Role, WalletChange, WalletKind};
use tokrun_server::ServerOptions;

use crate::support::{Choices, Reply, Service, chat};

/// `boss`, `books` and `eyes` have keys of the roles admin, finance and auditor, `ada` one of a member, and `lead` one of the
/// wallet of the team that `ada` belongs to.
struct Office {
    service: Service,
    boss: String,
    books: String,
    eyes: String,
    ada: String,
    lead: String,
}

impl Office {
    fn new() -> Self {
        let service = Service::with(Choices { options: ServerOptions::default(), ..Choices::default() });
        let team = NewWallet { kind: WalletKind::Team, ..NewWallet::new("tools") };
        service.ledger.open_wallet(team).expect("a team can be made");
        for name in ["boss", "books", "eyes", "bob"] {
            service.ledger.create_wallet(name, None).expect("a wallet can be made");
        }
        let change = WalletChange { parent: Some(Some("tools".to_owned())), ..WalletChange::default() };
        service.ledger.change_wallet("ada", change).expect("ada can join");
        let key = |wallet: &str, role| service.key(NewKey { role, ..NewKey::new(wallet, format!("{wallet}'s")) });
        Self {
            boss: key("boss", Role::Admin),
            books: key("books", Role::Finance),
            eyes: key("eyes", Role::Auditor),
            ada: key("ada", Role::Member),
            lead: key("tools", Role::Member),
            service,
        }
    }

    fn ask(&self, secret: &str, method: &str, path: &str, body: &Value) -> Reply {
        let body = (!body.is_null()).then_some(body);
        self.service.with_key(secret, method, &format!("/admin/v1{path}"), body)
    }

    fn balance(&self, wallet: &str) -> Credits {
        self.service.ledger.wallet(wallet).expect("there is one").balance
    }
}

fn credits(text: &str) -> Credits {
    text.parse().expect("an amount")
}

fn code(reply: &Reply) -> (u16, String) {
    (reply.status, reply.json()["error"]["code"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn an_admin_runs_the_whole_life_of_a_wallet() {
    let office = Office::new();
    let boss = |method, path: &str, body: Value| office.ask(&office.boss, method, path, &body).ok();
    let new =
        json!({ "wallet": "eve", "parent": "tools", "draw": 500, "draw_every": "month", "zone": "Europe/Berlin" });
    let eve = boss("POST", "/wallets", new);
    assert_eq!((&eve["wallet"], &eve["draw"]["cap"], &eve["team"]), (&json!("eve"), &json!(500), &json!("tools")));
    let granted =
        boss("POST", "/wallets/eve/grants", json!({ "amount": 12.5, "memo": "welcome", "promotional": true }));
    assert_eq!((&granted["wallet"]["balance"], &granted["grant"]["class"]), (&json!(12.5), &json!("promotional")));
    let monthly = boss("POST", "/wallets/eve/grants", json!({ "amount": "100", "every": "month", "rollover": 20 }));
    assert_eq!(monthly["recurring"]["rollover"], 20);
    let vesting = boss("POST", "/wallets/eve/grants", json!({ "amount": 48, "vest": 4, "cliff": 2 }));
    assert_eq!(vesting["grants"].as_array().map(Vec::len), Some(3));
    boss("DELETE", &format!("/grants/{}", vesting["vesting"].as_str().expect("an id")), Value::Null);
    boss("DELETE", &format!("/grants/{}", monthly["recurring"]["id"].as_str().expect("an id")), Value::Null);
    let id = granted["grant"]["id"].as_str().expect("an id");
    let taken = boss("POST", "/corrections", json!({ "grant": id, "amount": 2.5 }));
    assert_eq!((&taken["amount"], &taken["grant"]), (&json!(2.5), &json!(id)));
    boss("POST", "/transfers", json!({ "from": "eve", "to": "bob", "amount": 10 }));
    assert_eq!(office.balance("bob"), credits("10"));
    assert_eq!(boss("POST", "/wallets/eve/freeze", Value::Null)["frozen"], true);
    assert_eq!(boss("POST", "/wallets/eve/thaw", Value::Null)["frozen"], false);
    assert_eq!(boss("PATCH", "/wallets/eve", json!({ "parent": null, "overdraft": 7 }))["overdraft"], 7);
    let limit = boss("POST", "/limits", json!({ "wallet": "eve", "tokens": 1000, "per": "day" }));
    assert_eq!(boss("GET", "/limits?wallet=eve", Value::Null), json!([limit]));
    boss("DELETE", &format!("/limits/{}", limit["id"].as_str().expect("an id")), Value::Null);
    assert_eq!(boss("GET", "/limits", Value::Null), json!([]));
    let closed = boss("POST", "/wallets/eve/close", json!({ "to": "bob" }));
    assert!(closed["closed"].is_string());
    assert_eq!(boss("GET", "/wallets/eve", Value::Null)["balance"], 0);
    assert_eq!(boss("GET", "/wallets", Value::Null).as_array().map(Vec::len), Some(7));
}

#[test]
fn finance_sets_prices_and_everybody_sees_them() {
    let office = Office::new();
    let new = json!({ "model": "alias", "prompt": 0.5, "output": 2, "value": "0.002EUR" });
    assert_eq!(code(&office.ask(&office.ada, "POST", "/prices", &new)), (403, "insufficient_permissions".to_owned()));
    assert_eq!(code(&office.ask(&office.eyes, "POST", "/prices", &new)), (403, "insufficient_permissions".to_owned()));
    let set = office.ask(&office.books, "POST", "/prices", &new).ok();
    assert_eq!((&set["model"], &set["cached_prompt"], &set["reasoning"]), (&json!("tiny"), &json!(0.5), &json!(2)));
    assert_eq!(office.ask(&office.ada, "GET", "/prices?model=alias", &Value::Null).ok(), json!([set]));
    let answer = office.service.with_key(&office.ada, "POST", "/v1/chat/completions", Some(&chat(json!({})))).ok();
    let count = |name: &str| answer["usage"][name].as_f64().expect("a count");
    assert_eq!(answer["tokrun"]["debited"], 0.5 * count("prompt_tokens") + 2.0 * count("completion_tokens"));
    let dear = json!({ "model": "other", "prompt": 1, "cached_prompt": 2, "output": 2 });
    assert_eq!(code(&office.ask(&office.books, "POST", "/prices", &dear)), (400, "invalid".to_owned()));
    let path = format!("/prices/{}", set["id"].as_str().expect("an id"));
    assert_eq!(office.ask(&office.ada, "DELETE", &path, &Value::Null).status, 403);
    office.ask(&office.books, "DELETE", &path, &Value::Null).ok();
    assert_eq!(code(&office.ask(&office.books, "DELETE", &path, &Value::Null)), (404, "unknown_price".to_owned()));
    let now = office.ask(&office.ada, "GET", "/prices?at=2100-01-01T00:00:00Z", &Value::Null).ok();
    assert_eq!((&now[0]["source"], &now[0]["output"]), (&json!("catalogue"), &json!(1)));
}

#[test]
fn statements_are_for_those_who_may_see_the_wallet() {
    let office = Office::new();
    let answer = office.service.with_key(&office.ada, "POST", "/v1/chat/completions", Some(&chat(json!({})))).ok();
    let see =
        |secret: &str, query: &str| office.ask(secret, "GET", &format!("/wallets/ada/statement{query}"), &Value::Null);
    let statement = see(&office.ada, "").ok();
    let paid = answer["tokrun"]["debited"].as_i64().expect("a sum");
    assert_eq!(statement["closing"], 1_000_000 - paid);
    assert_eq!(statement["spending"]["by_model"][0]["amount"], paid);
    assert_eq!(see(&office.lead, "").ok()["closing"], statement["closing"], "the team's own see it");
    assert_eq!(see(&office.eyes, "?subtree=true&from=2026-01-01").ok()["opening"], 0);
    let before = see(&office.eyes, "?month=2020-02").ok();
    assert_eq!((&before["lines"], &before["to"]), (&json!([]), &json!("2020-03-01T00:00:00Z")));
    assert_eq!(see(&office.ada, "?month=2020-02&to=2020-03-01").status, 400);
    assert_eq!(see(&office.ada, "?from=yesterday").status, 400);
    let other = office.ask(&office.ada, "GET", "/wallets/bob/statement", &Value::Null);
    assert_eq!(code(&other), (403, "insufficient_permissions".to_owned()));
}

#[test]
fn what_is_done_is_in_the_books_with_the_key_that_did_it() {
    let office = Office::new();
    office.ask(&office.boss, "POST", "/wallets/bob/grants", &json!({ "amount": 5 })).ok();
    let mut last = None;
    let visit = |entry: &tokrun_ledger::ExportedEntry| {
        last = Some(entry.kind.clone());
        std::ops::ControlFlow::Continue(())
    };
    office.service.ledger.export_entries(None, None, visit).expect("the books can be read");
    assert_eq!(last.as_deref(), Some("act"), "who did it is the last entry");
}

#[test]
fn members_act_for_themselves_and_are_refused_the_rest() {
    let office = Office::new();
    let grant = json!({ "amount": 5 });
    let limit = json!({ "wallet": "ada", "tokens": 1, "per": "day" });
    for (method, path, body) in [
        ("GET", "/wallets", &Value::Null),
        ("POST", "/wallets", &json!({ "wallet": "mine" })),
        ("GET", "/wallets/bob", &Value::Null),
        ("GET", "/wallets/nobody", &Value::Null),
        ("PATCH", "/wallets/ada", &json!({ "overdraft": 1000 })),
        ("POST", "/wallets/ada/grants", &grant),
        ("POST", "/wallets/nobody/grants", &grant),
        ("POST", "/wallets/tools/deposit", &grant),
        ("POST", "/wallets/bob/freeze", &Value::Null),
        ("POST", "/wallets/ada/close", &json!({ "to": "bob" })),
        ("POST", "/wallets/bob/delegate", &json!({ "name": "x", "amount": 1 })),
        ("POST", "/wallets/bob/revoke", &Value::Null),
        ("POST", "/transfers", &json!({ "from": "bob", "to": "ada", "amount": 1 })),
        ("POST", "/refunds", &json!({ "request_id": "x" })),
        ("POST", "/corrections", &json!({ "grant": "x" })),
        ("DELETE", "/grants/x", &Value::Null),
        ("GET", "/limits", &Value::Null),
        ("POST", "/limits", &limit),
        ("DELETE", "/limits/x", &Value::Null),
        ("GET", "/keys", &Value::Null),
        ("GET", "/keys?wallet=bob", &Value::Null),
        ("GET", "/keys/boss's", &Value::Null),
        ("GET", "/keys/nobody's", &Value::Null),
        ("POST", "/keys", &json!({ "name": "up", "role": "admin" })),
        ("POST", "/keys", &json!({ "name": "up", "wallet": "bob" })),
        ("POST", "/keys/boss's/rotate", &Value::Null),
        ("DELETE", "/keys/boss's", &Value::Null),
        ("GET", "/requests", &Value::Null),
        ("POST", "/requests", &json!({ "wallet": "bob", "amount": 1 })),
        ("POST", "/requests/x/approve", &Value::Null),
        ("GET", "/usage", &Value::Null),
        ("GET", "/usage?wallet=bob", &Value::Null),
        ("GET", "/usage?wallet=tools&subtree=true", &Value::Null),
        ("GET", "/events", &Value::Null),
    ] {
        let reply = office.ask(&office.ada, method, path, body);
        assert_eq!(reply.status, 403, "{method} {path}: {}", reply.text);
        let unsigned = office.service.with_headers(method, &format!("/admin/v1{path}"), Some(body), &[]);
        assert_eq!(unsigned.status, 401, "{method} {path}: {}", unsigned.text);
    }
    let ada = |method, path: &str, body: Value| office.ask(&office.ada, method, path, &body).ok();
    assert_eq!(ada("GET", "/wallets/ada", Value::Null)["balance"], 1_000_000);
    ada("POST", "/transfers", json!({ "from": "ada", "to": "bob", "amount": 3 }));
    ada("POST", "/wallets/ada/delegate", json!({ "name": "script", "amount": 50 }));
    let key = ada("POST", "/keys", json!({ "wallet": "script", "name": "script's" }));
    assert_eq!((&key["wallet"], &key["role"]), (&json!("script"), &json!("member")));
    assert_eq!(ada("GET", "/usage?wallet=ada&subtree=true", Value::Null), json!([]));
    ada("POST", "/wallets/script/revoke", Value::Null);
    assert_eq!(office.balance("ada"), credits("999997"));
    assert_eq!(ada("GET", "/requests?wallet=ada", Value::Null), json!([]));
}

#[test]
fn where_no_key_is_needed_to_spend_one_is_needed_to_administer() {
    let service = Service::new();
    for path in ["/admin/v1/wallets", "/admin/v1/wallets/ada", "/dashboard/now"] {
        assert_eq!(code(&service.get(path)), (401, "invalid_api_key".to_owned()), "{path}");
    }
}

#[test]
fn auditors_see_and_finance_gives_and_nobody_raises_their_own() {
    let office = Office::new();
    let grant = json!({ "amount": 5 });
    assert_eq!(office.ask(&office.eyes, "GET", "/wallets", &Value::Null).status, 200);
    assert_eq!(office.ask(&office.eyes, "GET", "/events", &Value::Null).status, 200);
    assert_eq!(office.ask(&office.eyes, "POST", "/wallets/bob/grants", &grant).status, 403);
    assert_eq!(office.ask(&office.eyes, "POST", "/keys", &json!({ "name": "more" })).status, 403);
    assert_eq!(office.ask(&office.books, "POST", "/wallets/bob/grants", &grant).status, 200);
    assert_eq!(office.ask(&office.books, "POST", "/wallets", &json!({ "wallet": "x" })).status, 403);
    assert_eq!(office.ask(&office.books, "POST", "/wallets/books/grants", &grant).status, 403);
    assert_eq!(office.ask(&office.boss, "POST", "/wallets/boss/grants", &grant).status, 403);
    let own = json!({ "from": "bob", "to": "boss", "amount": 1 });
    assert_eq!(office.ask(&office.boss, "POST", "/transfers", &own).status, 403, "nor out of somebody else's");
    let own = json!({ "to": "boss" });
    assert_eq!(office.ask(&office.boss, "POST", "/wallets/bob/close", &own).status, 403);
    assert_eq!(office.ask(&office.boss, "PATCH", "/wallets/boss", &json!({ "overdraft": 9 })).status, 403);
    assert_eq!(office.balance("bob"), credits("5"));
}

#[test]
fn whoever_has_the_key_of_a_team_sees_it_and_gives_of_its_own() {
    let office = Office::new();
    office.ask(&office.boss, "POST", "/wallets/tools/grants", &json!({ "amount": 100 })).ok();
    assert_eq!(office.ask(&office.lead, "GET", "/wallets/ada", &Value::Null).status, 200);
    assert_eq!(office.ask(&office.lead, "GET", "/wallets/bob", &Value::Null).status, 403);
    assert_eq!(office.ask(&office.lead, "GET", "/usage?wallet=tools&subtree=true", &Value::Null).status, 200);
    let out = json!({ "from": "ada", "to": "tools", "amount": 1 });
    assert_eq!(office.ask(&office.lead, "POST", "/transfers", &out).status, 403, "what a member has is theirs");
    let asked = office.ask(&office.ada, "POST", "/requests", &json!({ "amount": 40, "reason": "a demo" })).ok();
    let path = |what: &str| format!("/requests/{}/{what}", asked["id"].as_str().expect("an id"));
    assert_eq!(office.ask(&office.lead, "POST", &path("approve"), &Value::Null).status, 403, "it would be a grant");
    let given = office.ask(&office.lead, "POST", &path("approve"), &json!({ "amount": 30, "from": "tools" })).ok();
    assert_eq!((&given["state"], &given["given"]), (&json!("approved"), &json!(30)));
    assert_eq!(code(&office.ask(&office.books, "POST", &path("deny"), &Value::Null)), (409, "answered".to_owned()));
    assert_eq!((office.balance("tools"), office.balance("ada")), (credits("70"), credits("1000030")));
}

#[test]
fn repeating_with_an_idempotency_key_does_it_once() {
    let office = Office::new();
    let send = |secret: &str, path: &str, body: &Value| {
        let headers = [("authorization", &*format!("Bearer {secret}")), ("idempotency-key", "november")];
        office.service.with_headers("POST", &format!("/admin/v1{path}"), Some(body), &headers)
    };
    let grant = json!({ "amount": 5 });
    let (first, again) =
        (send(&office.boss, "/wallets/bob/grants", &grant), send(&office.boss, "/wallets/bob/grants", &grant));
    assert_eq!(first.ok()["grant"]["id"], again.ok()["grant"]["id"]);
    assert_eq!(office.balance("bob"), credits("5"));
    let other = send(&office.boss, "/wallets/bob/grants", &json!({ "amount": 6 }));
    assert_eq!(code(&other), (409, "idempotency_conflict".to_owned()));
    send(&office.books, "/wallets/bob/grants", &json!({ "amount": 6 })).ok();
    assert_eq!(office.balance("bob"), credits("11"), "another caller's key is another key");
    let (first, again) =
        (send(&office.ada, "/keys", &json!({ "name": "new" })), send(&office.ada, "/keys", &json!({ "name": "new" })));
    assert!(first.ok()["secret"].is_string() && again.ok()["secret"].is_null());
    let long = "x".repeat(300);
    let headers = [("authorization", &*format!("Bearer {}", office.boss)), ("idempotency-key", &long)];
    assert_eq!(office.service.with_headers("POST", "/admin/v1/wallets", Some(&grant), &headers).status, 400);
}

#[test]
fn a_key_makes_no_key_that_reaches_farther() {
    let office = Office::new();
    let in_an_hour = jiff::Timestamp::now().as_second() + 3600;
    let expires = jiff::Timestamp::from_second(in_an_hour).expect("it is in range");
    let narrow = NewKey {
        models: Some("tiny".parse().expect("a scope")),
        project: Some("web".to_owned()),
        expires: Some(expires),
        ..NewKey::new("ada", "narrow")
    };
    let narrow = office.service.key(narrow);
    let wider = [
        json!({ "name": "a", "models": "*" }),
        json!({ "name": "b", "project": "other" }),
        json!({ "name": "c", "expires": expires + jiff::SignedDuration::from_hours(1) }),
        json!({ "name": "d", "role": "finance" }),
    ];
    for new in &wider {
        let reply = office.ask(&narrow, "POST", "/keys", new);
        assert_eq!(reply.status, 403, "{new}: {}", reply.text);
    }
    assert_eq!(
        office.ask(&narrow, "POST", "/keys/ada's/rotate", &Value::Null).status,
        403,
        "nor gets the secret of one"
    );
    let made = office.ask(&narrow, "POST", "/keys", &json!({ "name": "e" })).ok();
    assert_eq!((&made["models"], &made["project"], &made["expires"]), (&json!("tiny"), &json!("web"), &json!(expires)));
    let secret = made["secret"].as_str().expect("it is shown once");
    let rotated = office.ask(secret, "POST", "/keys/e/rotate", &json!({ "grace_s": 0 })).ok();
    assert_eq!(office.ask(secret, "GET", "/keys/e", &Value::Null).status, 401, "it was replaced");
    let secret = rotated["secret"].as_str().expect("it is shown once");
    assert_eq!(office.ask(secret, "DELETE", "/keys/e", &Value::Null).ok()["state"], "revoked");
    assert_eq!(office.ask(secret, "GET", "/keys/e", &Value::Null).status, 401);
}

#[test]
fn what_is_wrong_is_told_and_changes_nothing() {
    let office = Office::new();
    let bob = "/wallets/bob/grants";
    for (path, body, status) in [
        (bob, json!({ "amount": -5 }), 400),
        (bob, json!({ "amount": "much" }), 400),
        (bob, json!({ "amount": 5, "amonut": 5 }), 400),
        (bob, json!({ "amount": 5, "on": 3 }), 400),
        (bob, json!({ "amount": 5, "every": "month", "expires": "2030-01-01T00:00:00Z" }), 400),
        (bob, json!({ "amount": 5, "expires": "2000-01-01T00:00:00Z" }), 400),
        ("/wallets/nobody/grants", json!({ "amount": 5 }), 404),
        ("/wallets", json!({ "wallet": "bob" }), 409),
        ("/wallets", json!({ "wallet": "" }), 400),
        ("/wallets", json!({ "wallet": "x", "parent": "bob", "kind": "team" }), 400),
        ("/wallets", json!({ "wallet": "x", "kind": "king" }), 400),
        ("/transfers", json!({ "from": "bob", "to": "ada", "amount": 1 }), 409),
        ("/limits", json!({ "wallet": "bob", "tokens": 1, "requests": 1 }), 400),
        ("/limits", json!({ "wallet": "bob", "tokens": 1 }), 400),
        ("/keys", json!({ "wallet": "bob", "name": "ada's" }), 409),
        ("/refunds", json!({ "request_id": "nothing" }), 404),
        ("/requests/nothing/approve", json!({}), 404),
    ] {
        let reply = office.ask(&office.boss, "POST", path, &body);
        assert_eq!(reply.status, status, "{path} {body}: {}", reply.text);
        assert!(reply.json()["error"]["message"].as_str().is_some_and(|message| message.len() > 10), "{}", reply.text);
    }
    assert_eq!(office.balance("bob"), Credits::ZERO);
    assert_eq!(office.ask(&office.boss, "GET", "/nothing", &Value::Null).status, 404);
    assert_eq!(office.ask(&office.boss, "PUT", "/wallets", &Value::Null).status, 405);
}

#[test]
fn usage_is_told_by_key_and_a_request_can_be_refunded() {
    let office = Office::new();
    let spend = office.service.with_key(&office.ada, "POST", "/v1/chat/completions", Some(&chat(json!({})))).ok();
    let debited = &spend["tokrun"]["debited"];
    let by_key = office.ask(&office.eyes, "GET", "/usage?by=key&wallet=ada", &Value::Null).ok();
    assert_eq!((&by_key[0]["key"], &by_key[0]["debited"]), (&json!("ada's"), debited));
    let page = "/v1/organization/usage/completions?start_time=0&group_by=api_key_id&limit=1&bucket_width=1d";
    let today = jiff::Timestamp::now().as_second() / 86_400 * 86_400;
    let page = page.replace("start_time=0", &format!("start_time={today}"));
    let page = office.service.with_key(&office.eyes, "GET", &page, None).ok();
    assert_eq!(page["data"][0]["results"][0]["api_key_id"], "ada's");
    let refund = json!({ "request_id": spend["tokrun"]["request_id"], "memo": "it hung" });
    assert_eq!(&office.ask(&office.books, "POST", "/refunds", &refund).ok()["amount"], debited);
    assert_eq!(office.balance("ada"), credits("1000000"));
}
