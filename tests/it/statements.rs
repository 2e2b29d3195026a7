//! What a finance person types: statements in every form.

use crate::support::{Home, text, tiny_model};

/// ada paid two requests of one project, and gave something away.
fn books() -> Home {
    let home = Home::new();
    home.json(&["wallet", "create", "tools", "--kind", "team", "--zone", "Pacific/Auckland"]);
    home.json(&["wallet", "create", "ada", "--parent", "tools"]);
    home.json(&["wallet", "grant", "ada", "100.5", "--memo", "<b>=pay</b>"]);
    home.json(&["wallet", "transfer", "ada", "tools", "0.5", "--memo", "=1+1"]);
    for _ in 0..2 {
        let model = tiny_model();
        let asked = ["generate", "--raw", "hello", "--model", &model, "--user", "ada", "--ignore-eos", "-n", "9"];
        home.json(&[&asked[..], &["--project", "apollo"]].concat());
    }
    home
}

#[test]
fn a_statement_adds_up_in_every_form() {
    let home = books();
    let json = home.json(&["wallet", "statement", "ada"]);
    let paid = home.spent("ada");
    assert!(paid > 0);
    assert_eq!((&json["opening"], &json["closing"]), (&0.into(), &(100 - paid).into()));
    assert_eq!(json["totals"]["granted"], 100.5);
    assert_eq!(json["totals"]["spent"], -paid);
    assert_eq!(json["zone"], "Pacific/Auckland");
    assert!(json["forecast"].is_null() && home.json(&["wallet", "show", "ada"])["forecast"].is_null(), "too early");
    for by in ["by_model", "by_project", "by_wallet", "by_day"] {
        let group = &json["spending"][by][0];
        assert_eq!((&group["requests"], &group["amount"]), (&2.into(), &paid.into()), "{by}");
    }
    assert_eq!(json["spending"]["by_project"][0]["key"], "apollo");

    let csv = home.run(&["wallet", "statement", "ada", "--output", "csv"]);
    let mut table = csv::Reader::from_reader(&csv.stdout[..]);
    let rows: Vec<csv::StringRecord> = table.records().map(|row| row.expect("a row")).collect();
    let sum: f64 = rows.iter().map(|row| row[2].parse().unwrap_or(0.0)).sum();
    assert_eq!(rows.len(), 6, "opening, four lines, closing");
    assert_eq!(rows[5][3].parse().ok(), Some(sum), "the amounts add up to the closing balance");
    assert_eq!(&rows[2][10], "'=1+1", "no spreadsheet takes a memo for a formula");

    let shown = text(&home.run(&["wallet", "statement", "ada"]).stdout);
    assert!(shown.contains("cannot be told yet"), "{shown}");
    assert!(shown.contains("2 requests") && shown.contains("tools: =1+1"), "{shown}");
    let each = text(&home.run(&["wallet", "statement", "ada", "--requests"]).stdout);
    let spent = each.lines().filter(|line| line.starts_with(" 20") && line.contains(" spent "));
    assert_eq!(spent.count(), 2, "{each}");

    let page = text(&home.run(&["wallet", "statement", "ada", "--output", "html"]).stdout);
    assert!(page.starts_with("<!doctype html>") && page.contains("apollo"), "{page}");
    assert!(page.contains("&lt;b&gt;") && !page.contains("<b>"), "what people wrote is no markup: {page}");
    assert!(!page.contains("http"), "it fetches nothing: {page}");
}

#[test]
fn a_tree_is_one_wallet_and_a_month_is_the_wallets() {
    let home = books();
    let tools = home.json(&["wallet", "statement", "tools", "--subtree"]);
    let kinds: Vec<&str> =
        tools["lines"].as_array().expect("lines").iter().filter_map(|line| line["kind"].as_str()).collect();
    assert_eq!(kinds, ["grant", "settle", "settle"], "what moved within it is none of its business");
    assert_eq!(tools["spending"]["by_wallet"][0]["key"], "ada");

    let month = home.json(&["wallet", "statement", "ada", "--month", "2020-01"]);
    assert_eq!((&month["from"], &month["to"]), (&"2019-12-31T11:00:00Z".into(), &"2020-01-31T11:00:00Z".into()));
    assert_eq!((&month["opening"], &month["closing"]), (&0.into(), &0.into()));
    let since = home.json(&["wallet", "statement", "ada", "--from", "2020-01-01"]);
    assert_eq!(since["from"], "2019-12-31T11:00:00Z", "a date is the wallet's");
    assert_eq!(since["lines"].as_array().expect("lines").len(), 4);
    for (arguments, said) in [
        (&["--month", "2026-13"][..], "a month"),
        (&["--month", "2026-11", "--from", "2026-11-01"], "cannot be used with"),
        (&["--from", "2026-11-02", "--to", "2026-11-01"], "before it begins"),
        (&["--output", "md"], "json"),
    ] {
        let output = home.run(&[&["wallet", "statement", "ada"][..], arguments].concat());
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(text(&output.stderr).contains(said), "{}", text(&output.stderr));
    }
}
