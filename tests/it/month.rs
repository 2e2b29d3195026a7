//! A month in the life: the example, what the program makes of the books that it leaves, and what FinOps says of the export.

use std::process::Command;

use serde_json::Value;

use crate::support::{Home, text};

#[allow(dead_code, reason = "the example's own `main` is for those who run it")]
#[path = "../../examples/month.rs"]
mod example;

const MARCH: [&str; 4] = ["--from", "2026-02-27", "--to", "2026-04-02"];

#[test]
fn a_month_of_two_hundred_people_adds_up_and_is_exported() {
    let home = Home::new();
    let month = example::run(home.path()).unwrap_or_else(|error| panic!("{error}"));
    assert!(month.requests > 3000 && month.refused > 5, "{month:?}");
    assert!(home.run(&["ledger", "verify"]).status.success());

    let export = home.run(&[&["ledger", "export", "--format", "focus"][..], &MARCH].concat());
    assert!(export.status.success(), "{}", text(&export.stderr));
    let mut rows = csv::Reader::from_reader(&export.stdout[..]);
    let header = rows.headers().expect("a header").clone();
    let column = |name: &str| header.iter().position(|column| column == name).expect("the column is there");
    let [credits, cost, currency, meter] = ["x_Credits", "BilledCost", "BillingCurrency", "SkuMeter"].map(column);
    let (mut spent, mut billed, mut meters) = (0.0, 0.0, std::collections::BTreeSet::new());
    for row in rows.records() {
        let row = row.expect("a row");
        spent += row[credits].parse::<f64>().expect("credits");
        billed += row[cost].parse::<f64>().expect("money");
        assert_eq!(&row[currency], "EUR", "the price of then says what a credit was worth");
        meters.insert(row[meter].to_owned());
    }
    assert_eq!(meters.len(), 4, "{meters:?}");
    let all: f64 = month.spent.to_string().parse().expect("a number");
    assert!((spent - all).abs() < 1e-3 && (billed - all * 0.002).abs() < 1e-6, "{spent} {billed} {all}");
    validate(&home, &export.stdout);

    // The same through the program: what is spent of everybody is what the organisation's statement says.
    let acme = ["wallet", "statement", "acme", "--subtree"];
    let statement = home.json(&[&acme[..], &MARCH].concat());
    let lines = statement["lines"].as_array().expect("lines");
    let amount = |line: &Value| line["amount"].as_f64().expect("an amount");
    let settled: f64 = lines.iter().filter(|line| line["kind"] == "settle").map(amount).sum();
    let refunded: f64 = lines.iter().filter(|line| line["kind"] == "refund").map(amount).sum();
    assert!((settled + all).abs() < 1e-3, "{settled}");
    assert!(refunded > 0.0 && (refunded - month.refunded.to_string().parse::<f64>().expect("a number")).abs() < 1e-3);
}

/// What the FinOps Foundation's own validator says. It is required where `TOKRUN_REQUIRE_FOCUS` is set; elsewhere a test that
/// lacks it says so. `TOKRUN_FOCUS_VALIDATOR` names the program.
fn validate(home: &Home, table: &[u8]) {
    let validator = std::env::var("TOKRUN_FOCUS_VALIDATOR").unwrap_or_else(|_| "focus-validator".into());
    let file = home.path().join("focus.csv");
    std::fs::write(&file, table).expect("it can be written");
    let run = Command::new(&validator)
        .args(["--data-file", file.to_str().expect("UTF-8"), "--validate-version", "1.2", "--block-download"])
        .current_dir(home.path())
        .output();
    match run {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            assert!(
                std::env::var_os("TOKRUN_REQUIRE_FOCUS").is_none(),
                "{validator} is required: pip install focus-validator"
            );
            eprintln!("SKIPPED: {validator} is not here; `pip install focus-validator` brings it");
        }
        run => {
            let output = run.expect("it starts");
            assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
        }
    }
}
