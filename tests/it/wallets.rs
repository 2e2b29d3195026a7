//! What a team lead types.

use crate::support::{Home, text, tiny_model};

fn team(home: &Home) {
    home.json(&["wallet", "create", "tools", "--kind", "team", "--zone", "Europe/Berlin"]);
    home.json(&["wallet", "grant", "tools", "100"]);
    home.json(&["wallet", "create", "ada", "--parent", "tools", "--draw", "40", "--draw-every", "month"]);
    home.json(&["wallet", "create", "bob", "--parent", "tools", "--overdraft", "2.5"]);
}

#[test]
fn a_member_generates_from_the_pool_up_to_its_cap() {
    let home = Home::new();
    team(&home);
    let model = tiny_model();
    let ada = home.json(&["wallet", "show", "ada"]);
    assert_eq!((&ada["balance"], &ada["drawable"], &ada["zone"]), (&0.into(), &40.into(), &"Europe/Berlin".into()));
    assert_eq!(ada["draw"], serde_json::json!({ "cap": 40, "every": "month", "drawn": 0 }));

    let arguments = ["generate", "--raw", "hello", "--model", &model, "--user", "ada", "--ignore-eos", "-n", "500"];
    let output = home.run(&[&arguments[..], &["--output", "json"]].concat());
    assert_eq!(output.status.code(), Some(3), "the cap ends it: {}", text(&output.stderr));
    let answer = crate::support::parse(&output);
    assert_eq!((&answer["allowance"]["debited"], &answer["allowance"]["balance"]), (&40.into(), &0.into()));
    assert_eq!(home.balance("tools"), 60);
    assert_eq!(home.usage_tokens("ada"), 40);
    assert_eq!(home.json(&["wallet", "show", "ada"])["draw"]["drawn"], 40);
    home.verify();
}

#[test]
fn a_monthly_grant_is_given_shown_and_ended() {
    let home = Home::new();
    team(&home);
    let monthly =
        ["wallet", "grant", "ada", "50", "--every", "month", "--on", "1", "--rollover", "10", "--memo", "pay"];
    let given = home.json(&monthly);
    assert_eq!((&given["wallet"]["balance"], &given["recurring"]["on"]), (&50.into(), &1.into()));
    let ada = home.json(&["wallet", "show", "ada"]);
    assert_eq!(ada["recurring"][0]["rollover"], 10);
    assert!(text(&home.run(&["wallet", "show", "ada"]).stdout).contains("50 every month (Europe/Berlin), next at"));
    let recurring = ada["recurring"][0]["id"].as_str().expect("an id").to_owned();
    let grant = ada["grants"][0]["id"].as_str().expect("an id").to_owned();
    assert_eq!(home.json(&["wallet", "void", &recurring])["recurring"], serde_json::json!([]));
    let voided = home.json(&["wallet", "void", &grant]);
    assert_eq!((&voided["balance"], &voided["grants"][0]["state"]), (&0.into(), &"void".into()));
    assert_eq!(home.run(&["wallet", "void", "none"]).status.code(), Some(4));
    assert_eq!(home.run(&["wallet", "grant", "ada", "5", "--every", "week", "--on", "9"]).status.code(), Some(2));
    assert_eq!(home.run(&["wallet", "grant", "ada", "5", "--on", "9"]).status.code(), Some(2));
    home.verify();
}

#[test]
fn credits_go_from_one_wallet_to_another() {
    let home = Home::new();
    home.wallet("ada", 20);
    home.wallet("bob", 0);
    let lend = ["wallet", "transfer", "ada", "bob", "7.5", "--memo", "lunch", "--idempotency-key", "lunch-1"];
    home.json(&lend);
    let done = home.json(&lend);
    assert_eq!((&done["from"]["balance"], &done["to"]["balance"]), (&12.5.into(), &7.5.into()));
    assert_eq!(home.json(&["wallet", "statement", "bob"])["lines"][0]["other"], "ada");
    assert!(text(&home.run(&["wallet", "statement", "ada"]).stdout).contains("bob: lunch"));
    for (arguments, status) in [
        (&["wallet", "transfer", "ada", "bob", "13"][..], 3),
        (&["wallet", "transfer", "ada", "ada", "1"], 2),
        (&["wallet", "transfer", "ada", "eve", "1"], 4),
        (&["wallet", "transfer", "ada", "bob", "-1"], 2),
        (&["wallet", "transfer", "ada", "bob", "0"], 2),
    ] {
        assert_eq!(home.run(arguments).status.code(), Some(status), "{arguments:?}");
    }
    assert_eq!(home.json(&["wallet", "show", "ada"])["balance"], 12.5);
    home.verify();
}

#[test]
fn a_request_is_refunded_and_a_mistake_taken_back() {
    let home = Home::new();
    home.wallet("ada", 60);
    let model = tiny_model();
    let arguments = ["generate", "--raw", "hello", "--model", &model, "--user", "ada", "--ignore-eos", "-n", "20"];
    let answer = home.json(&arguments);
    let id = answer["request_id"].as_str().expect("an id").to_owned();
    let cost = answer["allowance"]["debited"].as_f64().expect("a number");
    let part = home.json(&["wallet", "refund", &id, "5", "--memo", "it hung", "--idempotency-key", "k"]);
    assert_eq!((&part["amount"], &part["request_id"]), (&5.into(), &id.as_str().into()));
    home.json(&["wallet", "refund", &id, "5", "--memo", "it hung", "--idempotency-key", "k"]);
    assert!(text(&home.run(&["wallet", "refund", &id]).stdout).contains("refunded"));
    assert_eq!(home.balance("ada"), 60);
    assert_eq!(home.json(&["wallet", "show", "ada"])["balance"], 60);
    assert!(cost >= 20.0);
    for (arguments, status) in [
        (&["wallet", "refund", &id][..], 2),
        (&["wallet", "refund", "nobody's"], 4),
        (&["wallet", "refund", &id, "-1"], 2),
        (&["wallet", "correct", "nobody's"], 4),
    ] {
        assert_eq!(home.run(arguments).status.code(), Some(status), "{arguments:?}");
    }
    let grant = home.json(&["wallet", "show", "ada"])["grants"][0]["id"].as_str().expect("an id").to_owned();
    assert_eq!(home.run(&["wallet", "correct", &grant, "61"]).status.code(), Some(2));
    assert_eq!(home.json(&["wallet", "correct", &grant, "10", "--memo", "typo"])["wallet"]["balance"], 50);
    home.verify();
}

#[test]
fn a_grant_has_models_a_value_and_parts() {
    let home = Home::new();
    team(&home);
    let shares = home.json(&["wallet", "deposit", "tools", "10", "--weight", "bob=2", "--memo", "bonus"]);
    assert_eq!((&shares["shares"][0]["wallet"], &shares["shares"][0]["amount"]), (&"ada".into(), &3.333334.into()));
    assert_eq!(home.json(&["wallet", "show", "bob"])["balance"], 6.666666);
    let terms = ["--models", "llama-*", "--promotional", "--value", "0.002EUR"];
    let grant = home.json(&[&["wallet", "grant", "ada", "50"][..], &terms].concat())["grant"].clone();
    let told = ["models", "class", "value"].map(|name| grant[name].as_str().expect("a text").to_owned());
    assert_eq!(told, ["llama-*", "promotional", "0.002EUR"]);
    let shown = text(&home.run(&["wallet", "show", "ada"]).stdout);
    assert!(shown.contains("live, promotional, for llama-*, worth 0.002EUR each"), "{shown}");
    let vesting = home.json(&["wallet", "grant", "bob", "48", "--vest", "48", "--cliff", "12"]);
    assert_eq!((&vesting["grants"][0]["amount"], &vesting["grants"][1]["amount"]), (&12.into(), &1.into()));
    assert_eq!(vesting["grants"][0]["state"], "pending");
    let id = vesting["vesting"].as_str().expect("an id").to_owned();
    assert_eq!(home.json(&["wallet", "void", &id])["grants"][1]["state"], "void");
    let books = home.books();
    for arguments in [
        &["wallet", "deposit", "ada", "5"][..],
        &["wallet", "deposit", "tools", "5", "--weight", "eve=1"],
        &["wallet", "grant", "ada", "5", "--value", "2"],
        &["wallet", "grant", "ada", "5", "--models", "a b"],
        &["wallet", "grant", "ada", "5", "--vest", "3", "--cliff", "4"],
        &["wallet", "grant", "ada", "5", "--vest", "3", "--every", "month"],
    ] {
        assert_eq!(home.run(arguments).status.code(), Some(2), "{arguments:?}");
    }
    assert_eq!(home.books(), books);
    home.verify();
}

#[test]
fn an_anchor_shows_that_nothing_was_rewritten() {
    let home = Home::new();
    home.wallet("ada", 20);
    let anchor = text(&home.run(&["ledger", "anchor"]).stdout).trim().to_owned();
    assert_eq!(home.json(&["ledger", "anchor"])["anchor"], anchor.as_str());
    home.wallet("bob", 20);
    assert_eq!(home.json(&["ledger", "anchor", "--check", &anchor])["ok"], true);
    let (rest, hash) = anchor.rsplit_once(':').expect("three parts");
    let other = format!("{rest}:{}", hash.chars().rev().collect::<String>());
    let output = home.run(&["ledger", "anchor", "--check", &other]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("rewritten"), "{}", text(&output.stderr));
    assert_eq!(home.run(&["ledger", "anchor", "--check", "nonsense"]).status.code(), Some(2));
    home.verify();
}

#[test]
fn wallets_are_listed_as_a_tree_and_moved() {
    let home = Home::new();
    team(&home);
    home.json(&["wallet", "create", "acme", "--kind", "organisation"]);
    home.json(&["wallet", "set", "tools", "--parent", "acme"]);
    let shown = text(&home.run(&["wallet", "list"]).stdout);
    let names: Vec<&str> = shown.lines().skip(1).map(|line| line.trim_end()).collect();
    let begin = |line: &str| line.split_whitespace().next().unwrap_or_default().to_owned();
    assert_eq!(names.iter().map(|line| begin(line)).collect::<Vec<_>>(), ["acme", "tools", "ada", "bob"], "{shown}");
    let depth = |line: &str| line.len() - line.trim_start().len();
    assert!(depth(names[0]) < depth(names[1]) && depth(names[1]) < depth(names[2]), "{shown}");

    let tools = home.json(&["wallet", "freeze", "tools"]);
    assert_eq!(tools["frozen"], true);
    assert_eq!(home.json(&["wallet", "show", "ada"])["frozen"], true);
    home.json(&["wallet", "thaw", "tools"]);
    assert_eq!(home.json(&["wallet", "set", "bob", "--no-parent"])["parent"], serde_json::Value::Null);
}

#[test]
fn what_cannot_be_is_refused_with_a_remedy_and_changes_nothing() {
    let home = Home::new();
    team(&home);
    let books = home.books();
    for (arguments, status, said) in [
        (&["wallet", "set", "tools", "--parent", "ada"][..], 2, "under itself"),
        (&["wallet", "set", "ada", "--parent", "bob"], 2, "is the order"),
        (&["wallet", "set", "ada", "--zone", "Mars/Base"], 2, "Europe/Berlin"),
        (&["wallet", "set", "ada", "--parent", "nobody"], 4, "nobody"),
        (&["wallet", "set", "tools", "--draw", "5"], 2, "parent"),
        (&["wallet", "set", "ada", "--draw", "some"], 2, "all"),
        (&["wallet", "create", "eve", "--parent", "nobody"], 4, "nobody"),
    ] {
        let output = home.run(arguments);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {}", text(&output.stderr));
        assert!(text(&output.stderr).contains(said), "{arguments:?}: {}", text(&output.stderr));
    }
    assert_eq!(home.books(), books);
}
