//! What people who share a service type: keys, requests for an allowance, delegations, budgets, and leaving.

use serde_json::json;

use crate::support::{Home, parse, text, tiny_model};

#[test]
fn a_key_is_made_shown_once_and_revoked() {
    let home = Home::new();
    home.wallet("ada", 100);
    let made =
        home.run(&["key", "create", "ada", "ci", "--role", "finance", "--models", "llama-*", "--expires", "90d"]);
    let secret = text(&made.stdout);
    assert!(tokrun_ledger::is_key_secret(secret.trim_end()), "stdout is the secret: {secret}");
    let key = home.json(&["key", "show", "ci"]);
    assert_eq!((&key["wallet"], &key["role"], &key["models"]), (&"ada".into(), &"finance".into(), &"llama-*".into()));
    assert_eq!((&key["state"], key.get("secret")), (&"valid".into(), None));
    let keyed = ["key", "create", "ada", "laptop", "--idempotency-key", "once"];
    assert!(home.json(&keyed)["secret"].is_string());
    assert_eq!(home.json(&keyed)["secret"], json!(null));
    let rotated = home.json(&["key", "rotate", "ci", "--grace", "1h"]);
    assert!(rotated["secret"].as_str().is_some_and(|new| new != secret.trim_end() && rotated["id"] == key["id"]));
    assert_eq!(home.json(&["key", "revoke", "ci"])["state"], "revoked");
    assert_eq!(home.json(&["key", "list", "ada"]).as_array().map(Vec::len), Some(2));
    assert!(text(&home.run(&["key", "list"]).stdout).contains("revoked"));
    for (arguments, status) in [
        (&["key", "create", "ada", "ci"][..], 1),
        (&["key", "create", "eve", "x"], 4),
        (&["key", "create", "ada", "x", "--role", "root"], 2),
        (&["key", "create", "ada", "x", "--expires", "2020-01-01"], 2),
        (&["key", "rotate", "ci"], 2),
        (&["key", "rotate", "laptop", "--grace", "soon"], 2),
        (&["key", "show", "none"], 4),
        (&["key", "revoke", "none"], 4),
    ] {
        let output = home.run(arguments);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {}", text(&output.stderr));
    }
    home.verify();
}

#[test]
fn an_allowance_is_asked_for_given_delegated_and_left_behind() {
    let home = Home::new();
    home.wallet("team", 100);
    home.wallet("ada", 0);
    let asked = home.json(&["wallet", "request", "50", "--user", "ada", "--reason", "a demo"]);
    assert_eq!((&asked["state"], &asked["reason"]), (&"open".into(), &"a demo".into()));
    assert!(text(&home.run(&["events"]).stdout).contains("ada asks for 50 credits"));
    let id = asked["id"].as_str().unwrap();
    let approve = ["wallet", "approve", id, "--amount", "40", "--from", "team", "--idempotency-key", "k"];
    assert_eq!(home.json(&approve)["given"], 40);
    assert_eq!(home.json(&approve)["given"], 40);
    assert_eq!((home.balance("ada"), home.balance("team")), (40, 60));
    assert_eq!(parse(&home.run(&["wallet", "deny", id, "--output", "json"]))["error"]["code"], "answered");
    assert_eq!(home.json(&["wallet", "requests", "--open"]), json!([]));

    let agent = home.json(&["wallet", "delegate", "ada", "agent", "30", "--expires", "8h"]);
    assert_eq!(
        (&agent["balance"], &agent["parent"], &agent["delegation"]["from"]),
        (&30.into(), &"ada".into(), &"ada".into())
    );
    let model = tiny_model();
    let arguments = ["generate", "--raw", "hello", "--model", &model, "--user", "agent", "--project", "web"];
    let answer = home.json(&[&arguments[..], &["--ignore-eos", "-n", "5"]].concat());
    let spent = answer["allowance"]["debited"].as_i64().unwrap();
    home.json(&["project", "budget", "web", "20", "--every", "week"]);
    let projects = home.json(&["project", "list"]);
    assert_eq!((&projects[0]["project"], &projects[0]["debited"]), (&"web".into(), &spent.into()));
    assert_eq!((&projects[0]["budgets"][0]["amount"], &projects[0]["budgets"][0]["per"]), (&20.into(), &"week".into()));
    let limited = home.run(&[&arguments[..], &["--ignore-eos", "-n", "500"]].concat());
    assert_eq!(limited.status.code(), Some(3), "{}", text(&limited.stderr));
    assert_eq!(home.usage_tokens("agent"), spent + 20, "a budget counts from when it is set");
    assert_eq!(home.json(&["wallet", "revoke", "agent"])["balance"], 0);
    assert_eq!(home.balance("ada"), 40 - spent - 20);
    assert_eq!(home.run(&arguments).status.code(), Some(3), "it is closed");

    let closed = home.json(&["wallet", "close", "ada", "--to", "team"]);
    assert!(closed["closed"].is_string() && closed["balance"] == 0);
    assert_eq!(home.balance("team"), 100 - spent - 20);
    assert!(text(&home.run(&["wallet", "list"]).stdout).contains("closed"));
    for (arguments, status) in [
        (&["wallet", "grant", "ada", "1"][..], 3),
        (&["wallet", "close", "ada"], 2),
        (&["wallet", "revoke", "team"], 2),
        (&["wallet", "approve", "none"], 4),
        (&["wallet", "delegate", "team", "x", "1000"], 3),
        (&["wallet", "request", "0", "--user", "team"], 2),
        (&["project", "budget", "web", "-1"], 2),
    ] {
        let output = home.run(arguments);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {}", text(&output.stderr));
    }
    home.verify();
}
