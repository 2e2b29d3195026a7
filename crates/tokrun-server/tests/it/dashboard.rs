//! The dashboard: what its page may do, who sees what, and the page itself in a browser where there is one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokrun_ledger::{
    Admission, Debit, FinishReason, GrantRequest, LatencyHistogram, Ledger, NewAsk, NewKey, NewWallet, Price,
    PromptDebit, Role, Settlement, Transfer, WalletKind,
};
use tokrun_server::{Links, ServerOptions};

use crate::support::{Choices, MODEL, Service};

const DAY_US: i64 = 86_400_000_000;

/// Four weeks of a team's life: `ada` spends as people do, `bob` belongs to nobody.
fn four_weeks(file: &Path) {
    let today_us = jiff::Timestamp::now().as_microsecond();
    let clock = Arc::new(AtomicI64::new(today_us - 28 * DAY_US));
    let read = Arc::clone(&clock);
    let ledger = Ledger::open_with_clock(file, Arc::new(move || read.load(Ordering::Relaxed))).expect("a new ledger");
    let open = |wallet| ledger.open_wallet(wallet).expect("a wallet can be made");
    open(NewWallet { kind: WalletKind::Team, ..NewWallet::new("tools") });
    open(NewWallet { parent: Some("tools".to_owned()), ..NewWallet::new("ada") });
    open(NewWallet::new("bob"));
    open(NewWallet::new("boss"));
    let grant = |wallet: &str, amount: &str, memo: &str| {
        let request = GrantRequest::new(wallet, amount.parse().expect("an amount"));
        ledger.grant(GrantRequest { memo: Some(memo.to_owned()), ..request }).expect("it can be granted");
    };
    grant("ada", "3000000", "for November");
    grant("bob", "900000", "for the trial");
    grant("tools", "2000000", "the team's pool");
    for day in 1..28_i64 {
        clock.store(today_us - (28 - day) * DAY_US, Ordering::Relaxed);
        let is_workday = (day % 7) < 5;
        let tokens = if is_workday { 60_000 + (day * 7919) % 50_000 } else { 4_000 };
        request(&ledger, "ada", &format!("ada-{day}"), tokens.unsigned_abs(), (80 + day * 13 % 70).unsigned_abs());
        if day % 3 == 0 {
            request(&ledger, "bob", &format!("bob-{day}"), 9_000, 120);
        }
        if day == 14 {
            grant("ada", "500000", "for the launch");
        }
    }
    clock.store(today_us, Ordering::Relaxed);
    let ask = NewAsk {
        wallet: "bob".to_owned(),
        amount: "5000".parse().expect("an amount"),
        reason: Some("the demo on Friday".to_owned()),
        idempotency_key: None,
    };
    ledger.ask(ask).expect("everybody may ask");
}

/// A request that was served: a third of it prompt.
fn request(ledger: &Ledger, wallet: &str, id: &str, tokens: u64, ttft_ms: u64) {
    let (prompt_tokens, output_tokens) = (tokens / 3, (tokens - tokens / 3) as u32);
    let admission = Admission {
        request_id: id.to_owned(),
        wallet: wallet.to_owned(),
        starter: None,
        model: "llama-3.1-8b".to_owned(),
        device: "cpu".to_owned(),
        price: Price::default(),
        prompt_tokens,
        key: Some("laptop".to_owned()),
        project: None,
        tags: BTreeMap::new(),
    };
    ledger.admit(admission).expect("it is paid");
    let (reply, answer) = std::sync::mpsc::channel();
    let prompt = Some(PromptDebit { cached_tokens: prompt_tokens / 2 });
    let debit = Debit { request_id: id.to_owned(), prompt, output_tokens, reasoning_tokens: 0 };
    ledger.debit(vec![debit], move |debited| reply.send(debited).expect("it is awaited"));
    answer.recv().expect("it is answered").expect("it is paid");
    let decode_us = u64::from(output_tokens) * (11_000 + ttft_ms * 20);
    let settlement = Settlement {
        ttft_us: Some(ttft_ms * 1000),
        decode_us,
        total_us: decode_us + ttft_ms * 1000,
        itl: LatencyHistogram::from_iter([11_000, 12_000, 14_000, 19_000]),
        ..Settlement::new(id, FinishReason::Stop)
    };
    ledger.settle(settlement).expect("it is settled");
}

fn service() -> Service {
    let choices = Choices { balance: 0, context_tokens: 16_384, before: Some(four_weeks), ..Choices::default() };
    Service::with(Choices { options: ServerOptions::default(), ..choices })
}

fn see(service: &Service, secret: &str, path: &str) -> Value {
    service.with_key(secret, "GET", path, None).ok()
}

#[test]
fn everybody_sees_what_is_theirs() {
    let service = service();
    let key = |wallet: &str, role| service.key(NewKey { role, ..NewKey::new(wallet, format!("{wallet}'s")) });
    let (ada, lead, boss) = (key("ada", Role::Member), key("tools", Role::Member), key("boss", Role::Admin));
    let now = see(&service, &ada, "/dashboard/now");
    assert_eq!((&now["wallet"]["wallet"], &now["key"]["name"]), (&json!("ada"), &json!("ada's")));
    assert_eq!(now["sees"], json!({ "team": false, "machine": false }));
    let seen = see(&service, &ada, "/dashboard/days");
    let days = seen["days"].as_array().expect("a list");
    assert_eq!(days.len(), 28);
    let left = |day: &Value| day["left"].as_f64().expect("an amount");
    let moved = |day: &Value| ["came_in", "spent", "went"].map(|name| day[name].as_f64().expect("an amount"));
    for pair in days.windows(2) {
        let [came_in, spent, went] = moved(&pair[1]);
        assert!((left(&pair[0]) + came_in - spent - went - left(&pair[1])).abs() < 1e-6, "{pair:?}");
    }
    assert_eq!(Some(left(&days[27])), now["wallet"]["balance"].as_f64(), "the days end where the balance is");
    assert!(seen["forecast"]["until"].is_string(), "{}", seen["forecast"]);
    assert_eq!(seen["requests"].as_array().map(Vec::len), Some(25));
    assert_eq!(seen["requests"][0]["id"], "ada-27", "the newest first");
    assert!(!seen.to_string().contains("bob"), "nobody else is in it");
    for path in ["/dashboard/days?wallet=bob", "/dashboard/days?wallet=tools&subtree=true", "/dashboard/machine"] {
        assert_eq!(service.with_key(&ada, "GET", path, None).status, 403, "{path}");
    }
    let names = |seen: Value| -> Vec<String> {
        let rows = seen.as_array().expect("a list").iter();
        rows.map(|row| row["wallet"].as_str().expect("a name").to_owned()).collect()
    };
    assert_eq!(names(see(&service, &ada, "/dashboard/team")), ["ada"]);
    assert_eq!(names(see(&service, &lead, "/dashboard/team")), ["ada", "tools"]);
    assert_eq!(names(see(&service, &boss, "/dashboard/team")), ["ada", "bob", "boss", "tools"]);
    let team = see(&service, &lead, "/dashboard/days?subtree=true");
    assert_eq!(team["by_key"][0]["requests"], 27, "of the members");
    let day = |path: &str| see(&service, &lead, path)["days"][27].clone();
    let before = [day("/dashboard/days"), day("/dashboard/days?subtree=true")];
    let gift = Transfer::new("tools", "ada", "100".parse().expect("an amount"));
    service.ledger.transfer(gift).expect("it can be given");
    let after = [day("/dashboard/days"), day("/dashboard/days?subtree=true")];
    assert_eq!((&after[0]["went"], &after[0]["came_in"]), (&json!(100), &before[0]["came_in"]));
    assert_eq!(after[1], before[1], "what moves within a team neither comes nor goes");
    let machine = see(&service, &boss, "/dashboard/machine");
    assert_eq!((&machine["models"][0]["model"], &machine["ledger"]["wallets"]), (&json!(MODEL), &json!(4)));
}

#[test]
fn sessions_act_for_their_key_as_long_as_it_is_good() {
    let service = service();
    let secret = service.key(NewKey::new("ada", "laptop"));
    let sign_in = |shown: Value| service.post("/dashboard/session", &shown);
    let session = |reply: &Value| reply["session"].as_str().expect("a secret").to_owned();
    for wrong in [json!({ "key": "tkr-x" }), json!({ "link": "x" }), json!({ "link": "../ledger.db" })] {
        assert_eq!(sign_in(wrong).status, 401);
    }
    assert_eq!(sign_in(json!({})).status, 400);
    let by_key = session(&sign_in(json!({ "key": secret })).ok());
    let view = service.ledger.key("laptop").expect("there is one");
    let code = Links::of(&service.ledger).create(&view, Duration::from_secs(60)).expect("a link can be made");
    let by_link = session(&sign_in(json!({ "link": code })).ok());
    assert_eq!(sign_in(json!({ "link": code })).status, 401, "a link works once");
    assert_eq!(see(&service, &by_link, "/dashboard/now")["key"]["name"], "laptop");
    let spend = service.with_key(&by_key, "POST", "/v1/chat/completions", Some(&crate::support::chat(json!({}))));
    assert_eq!(spend.status, 401, "a session looks after a wallet, and spends nothing");
    service.with_key(&by_link, "DELETE", "/dashboard/session", None).ok();
    assert_eq!(service.with_key(&by_link, "GET", "/dashboard/now", None).status, 401);
    see(&service, &by_key, "/dashboard/now");
    service.ledger.revoke_key("laptop", None).expect("it can be revoked");
    assert_eq!(service.with_key(&by_key, "GET", "/dashboard/now", None).status, 401, "its key is revoked");
}

const FILES: [&str; 7] = [
    "/",
    "/dashboard/style.css",
    "/dashboard/app.js",
    "/dashboard/server.js",
    "/dashboard/wallet.js",
    "/dashboard/others.js",
    "/dashboard/plot.js",
];

#[test]
fn the_page_is_whole_and_lets_nothing_else_in() {
    let service = Service::new();
    let page = service.get("/");
    assert_eq!((page.status, &*page.headers["content-type"]), (200, "text/html; charset=utf-8"));
    for path in FILES {
        let file = service.get(path);
        let policy = &file.headers["content-security-policy"];
        assert!(policy.starts_with("default-src 'none'; script-src 'self'; style-src 'self'"), "{policy}");
        assert_eq!(&file.headers["x-content-type-options"], "nosniff");
        for outside in ["https://", "innerHTML", "eval(", " style=\"", "<script>"] {
            assert!(!file.text.contains(outside), "{path} has {outside}");
        }
    }
}

/// Where `playwright-core` and `axe-core` are, if a browser is here too.
fn browser() -> Option<PathBuf> {
    let chromium = std::env::var("CHROMIUM").unwrap_or_else(|_| "/usr/bin/chromium".to_owned());
    let modules = PathBuf::from(std::env::var("TOKRUN_BROWSER_MODULES").unwrap_or_default());
    let has = |name: &str| modules.join(name).join("package.json").exists();
    if Path::new(&chromium).exists() && has("playwright-core") && has("axe-core") {
        return Some(modules);
    }
    assert!(
        std::env::var_os("TOKRUN_REQUIRE_BROWSER").is_none(),
        "a Chromium is required (CHROMIUM), and TOKRUN_BROWSER_MODULES: where `npm install playwright-core axe-core` put them"
    );
    eprintln!("SKIPPED: no Chromium, or TOKRUN_BROWSER_MODULES does not say where playwright-core and axe-core are");
    None
}

#[test]
fn the_dashboard_works_in_a_browser() {
    let Some(modules) = browser() else { return };
    let service = service();
    let key = |wallet: &str, name: &str, role| service.key(NewKey { role, ..NewKey::new(wallet, name) });
    key("tools", "lead", Role::Member);
    let lead = service.ledger.key("lead").expect("there is one");
    let link = Links::of(&service.ledger).create(&lead, Duration::from_secs(600)).expect("a link can be made");
    let facts = json!({
        "model": MODEL,
        "ada": key("ada", "ada's laptop", Role::Member),
        "bob": key("bob", "bob's", Role::Member),
        "boss": key("boss", "boss's", Role::Admin),
        "link": link,
    });
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/dashboard.mjs");
    let mut node = Command::new("node");
    node.arg(script).args([&service.url(""), &facts.to_string()]).env("NODE_PATH", modules);
    let output = node.output().expect("node runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
}
