//! The books for other programs.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::support::{Home, text, tiny_model};

fn rows(home: &Home, arguments: &[&str]) -> Vec<BTreeMap<String, String>> {
    let output = home.run(&[&["ledger", "export"], arguments].concat());
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    let mut table = csv::Reader::from_reader(&output.stdout[..]);
    table.deserialize().map(|row| row.expect("a row")).collect()
}

fn sum<'a>(rows: impl IntoIterator<Item = &'a BTreeMap<String, String>>, column: &str) -> f64 {
    rows.into_iter().map(|row| row[column].parse::<f64>().expect("a number")).sum()
}

#[test]
fn every_posting_is_exported_and_all_of_them_are_zero() {
    let home = Home::new();
    assert!(rows(&home, &["--format", "csv"]).is_empty());
    assert_eq!(home.json(&["ledger", "export", "--format", "json"]), Value::Array(Vec::new()));
    home.wallet("=ada", 100);
    let model = tiny_model();
    home.json(&["generate", "--raw", "hello", "--model", &model, "--user", "=ada", "--ignore-eos", "-n", "9"]);
    let csv = rows(&home, &["--format", "csv"]);
    assert_eq!(sum(&csv, "amount"), 0.0);
    let ada = csv.iter().filter(|row| row["account"] == "'=ada");
    assert_eq!(sum(ada, "amount"), home.balance("=ada") as f64, "{csv:?}");

    let entries = home.json(&["ledger", "export", "--format", "json"]);
    let entries = entries.as_array().expect("a list");
    let head = home.json(&["ledger", "verify"])["head"].clone();
    assert_eq!((entries.len(), &entries[1]["hash"]), (2, &head), "the last one is the head");
    assert_eq!(entries[1]["postings"].as_array().expect("a list").len(), 2);
    assert!(rows(&home, &["--format", "csv", "--to", "2020-01-01"]).is_empty());
}

#[test]
fn focus_tells_each_requests_tokens_and_what_they_cost() {
    let home = Home::new();
    home.wallet("ada", 1000);
    let model = tiny_model();
    let asked = ["generate", "--raw", "hello", "--model", &model, "--user", "ada", "--ignore-eos", "-n", "9"];
    home.json(&[&asked[..], &["--project", "apollo", "--tag", "team=tools"]].concat());
    home.json(&asked);
    let free = rows(&home, &["--format", "focus"]);
    let paid = rows(&home, &["--format", "focus", "--credit-value", "0.002EUR"]);
    let used = home.usage_tokens("ada") as f64;
    for table in [&free, &paid] {
        assert_eq!(table.len(), 4, "prompt and output of two requests");
        assert_eq!(sum(table, "x_Credits"), used);
        assert_eq!(sum(table, "ConsumedQuantity"), used);
    }
    assert_eq!(sum(&free, "BilledCost"), 0.0);
    assert!((sum(&paid, "BilledCost") - used * 0.002).abs() < 1e-9);
    assert_eq!((&free[0]["BillingCurrency"][..], &paid[0]["BillingCurrency"][..]), ("XXX", "EUR"));
    assert_eq!(paid[0]["x_Project"], "apollo");
    assert_eq!(paid[0]["Tags"], r#"{"team":"tools"}"#);
    assert!(paid.iter().all(|row| row["ChargePeriodStart"] < row["ChargePeriodEnd"]));
    for arguments in [&["--format", "focus", "--credit-value", "1"][..], &["--format", "csv", "--credit-value", "1EUR"]]
    {
        let output = home.run(&[&["ledger", "export"], arguments].concat());
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    }
}
