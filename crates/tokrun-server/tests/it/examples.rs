//! What `examples/` has for those who watch: it names what there is.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tokrun_ledger::{NewKey, NewWallet, Role, WalletKind};

use crate::support::{Choices, Service, chat};

fn example(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The names of samples that a server tells, by what their families are.
fn told(metrics: &str) -> BTreeSet<String> {
    let families = metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let samples = families.flat_map(|(name, kind)| {
        let endings: &[&str] = match kind {
            "counter" => &["_total"],
            "histogram" => &["_bucket", "_sum", "_count"],
            _ => &[""],
        };
        endings.iter().map(move |ending| format!("{name}{ending}"))
    });
    samples.collect()
}

/// The metrics that a query names.
fn named(query: &str) -> Vec<String> {
    let is_name = |character: char| character.is_ascii_alphanumeric() || "_:".contains(character);
    let words = query.split(|character| !is_name(character));
    words.filter(|word| word.starts_with("vllm:") || word.starts_with("tokrun_")).map(str::to_owned).collect()
}

#[test]
fn the_board_asks_for_metrics_that_there_are() {
    let service = Service::with(Choices::default());
    let team = NewWallet { kind: WalletKind::Team, ..NewWallet::new("tools") };
    service.ledger.open_wallet(team).expect("a team can be made");
    service.post("/v1/chat/completions", &chat(json!({}))).ok();
    assert_eq!(service.post("/v1/chat/completions", &json!({})).status, 400);
    let mut told = told(&service.get("/metrics").text);
    // Only machines that measure it tell it.
    told.insert("tokrun_energy_joules_total".to_owned());
    let board: Value = serde_json::from_str(&example("prometheus/grafana.json")).expect("it is JSON");
    let panels = board["panels"].as_array().expect("it has panels");
    let mut asked = BTreeMap::new();
    for panel in panels {
        for target in panel["targets"].as_array().expect("a panel has queries") {
            let query = target["expr"].as_str().expect("a query");
            let names = named(query);
            assert!(!names.is_empty(), "{query} asks for nothing");
            names.into_iter().for_each(|name| drop(asked.insert(name, panel["title"].clone())));
        }
    }
    assert!(asked.len() > 15, "{asked:?}");
    for (name, panel) in &asked {
        assert!(told.contains(name), "{panel} asks for {name}, which nobody tells");
    }
}

#[test]
fn prometheus_is_led_to_the_metrics() {
    let config = example("prometheus/prometheus.yml");
    let value = |name: &str| {
        let line = config.lines().find_map(|line| line.trim_start().trim_start_matches("- ").strip_prefix(name));
        line.unwrap_or_else(|| panic!("it has no {name}")).trim().to_owned()
    };
    assert_eq!(value("targets:"), r#"["127.0.0.1:8080"]"#, "where `tokrun serve` listens if nothing else is said");
    let service = Service::new();
    assert_eq!(service.get(&value("metrics_path:")).status, 200);
    assert_eq!(value("type:"), "Bearer");
}

#[test]
fn balances_are_for_those_who_may_see_them() {
    let open = Service::new();
    assert!(!open.get("/metrics").text.contains("tokrun_wallet_balance_credits"), "a person's is not told unasked");
    let mut choices = Choices::default();
    choices.options.metrics_users = 1;
    let open = Service::with(choices);
    open.ledger.create_wallet("bob", None).expect("a wallet can be made");
    assert!(open.get("/metrics").text.contains(r#"tokrun_wallet_balance_credits{wallet="ada",kind="person"} 1000000"#));
    assert!(!open.get("/metrics").text.contains("bob"), "of so many and no more");
    let mut choices = Choices::default();
    (choices.options.payer, choices.options.metrics_users) = (None, 10);
    let closed = Service::with(choices);
    let member = closed.key(NewKey::new("ada", "member"));
    let auditor = closed.key(NewKey { role: Role::Auditor, ..NewKey::new("ada", "auditor") });
    let has_balances = |text: &str| text.contains("tokrun_wallet_balance_credits");
    let metrics = |key: &str| closed.with_key(key, "GET", "/metrics", None);
    assert!(!has_balances(&closed.get("/metrics").text) && !has_balances(&metrics(&member).text));
    assert!(has_balances(&metrics(&auditor).text));
    assert_eq!(metrics("tkr-wrong").status, 401);
    assert!(metrics(&auditor).text.ends_with("# EOF\n"));
}
