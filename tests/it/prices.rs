//! What finance types to say what tokens cost, and to find out what they should.

use serde_json::json;

use crate::support::{Home, parse, text, tiny_model};

#[test]
fn a_price_of_the_ledger_holds_for_whoever_asks() {
    let home = Home::new();
    home.wallet("ada", 1000);
    let model = tiny_model();
    let name = home.json(&["generate", "--raw", "hello", "--model", &model, "--user", "ada", "-n", "1"]);
    let name = name["model"].as_str().expect("a name").to_owned();
    let before = home.json(&["wallet", "show", "ada"])["balance"].as_f64().expect("a balance");
    let set = ["price", "set", &name, "--prompt", "0.5", "--cached-prompt", "0", "--output-token", "2"];
    let set = home.json(&[&set[..], &["--reasoning", "1.5", "--value", "0.002EUR"]].concat());
    assert_eq!((&set["source"], &set["output"], &set["reasoning"]), (&"ledger".into(), &2.into(), &1.5.into()));
    let answer =
        home.json(&["generate", "--raw", "hello", "--model", &model, "--user", "ada", "--ignore-eos", "-n", "10"]);
    let prompt = answer["usage"]["prompt_tokens"].as_f64().expect("a count");
    assert_eq!(answer["allowance"]["debited"], json!(prompt * 0.5 + 20.0));
    assert_eq!(home.json(&["wallet", "show", "ada"])["balance"], json!(before - prompt * 0.5 - 20.0));

    let listed = home.json(&["price", "list"]);
    assert_eq!((&listed[0]["id"], &listed[0]["value"]), (&set["id"], &"0.002EUR".into()));
    let then = home.json(&["price", "list", "--at", "2020-01-01"]);
    assert!(then.as_array().is_some_and(|all| all.iter().all(|price| price["source"] == "catalogue")), "{then}");
    let of_default = home.json(&["price", "list", "smollm2", "--at", "2020-01-01"]);
    assert_eq!((&of_default[0]["model"], &of_default[0]["reasoning"]), (&"smollm2-135m".into(), &1.into()));
    assert!(text(&home.run(&["price", "list"]).stdout).contains("0.002EUR"));
    let exported = text(&home.run(&["ledger", "export", "--format", "focus"]).stdout);
    assert!(exported.contains(",EUR,") && exported.contains(",XXX,"), "{exported}");

    home.json(&["price", "remove", set["id"].as_str().expect("an id")]);
    assert_eq!(home.json(&["price", "list"]), json!([]));
    home.verify();
}

#[test]
fn prices_that_cannot_be_are_refused() {
    let home = Home::new();
    for (arguments, status) in [
        (&["set", "m", "--prompt", "1"][..], 2),
        (&["set", "m", "--prompt", "-1", "--output-token", "1"], 2),
        (&["set", "m", "--prompt", "1", "--output-token", "0.0000001"], 2),
        (&["set", "m", "--prompt", "1", "--output-token", "99999999999999"], 2),
        (&["set", "m", "--prompt", "1", "--cached-prompt", "2", "--output-token", "1"], 2),
        (&["set", "m", "--prompt", "1", "--output-token", "1", "--value", "1"], 2),
        (&["set", "m", "--prompt", "1", "--output-token", "1", "--from", "2020-01-01"], 2),
        (&["set", "m", "--prompt", "1", "--output-token", "1", "--until", "2020-01-01"], 2),
        (&["set", "", "--prompt", "1", "--output-token", "1"], 2),
        (&["remove", "none"], 4),
    ] {
        let output = home.run(&[&["price"], arguments, &["--output", "json"]].concat());
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {}", text(&output.stderr));
        assert!(parse(&output)["error"]["message"].is_string(), "{arguments:?}");
    }
    assert_eq!(home.json(&["price", "list"]), json!([]));
    assert_eq!(home.json(&["ledger", "verify"])["entries"], 0);
}

const HARDWARE: [&str; 10] =
    ["--card-price", "26280EUR", "--years", "3", "--power", "700", "--electricity", "0.30EUR", "--utilisation", "0.5"];

#[test]
fn an_estimate_is_exact_and_shows_its_formula() {
    let home = Home::new();
    let speeds = ["--prompt-tokens-per-s", "20000", "--output-tokens-per-s", "2500"];
    let estimate = |more: &[&str]| home.json(&[&["price", "estimate"], &HARDWARE[..], &speeds, more].concat());
    let told = estimate(&["--value", "0.000002EUR"]);
    // 26280 / (3 x 8760 h) is 1 EUR an hour, 2 an hour in use; 0.7 kW cost 0.21 EUR an hour.
    assert_eq!(told["capital_per_busy_hour"], json!({ "amount": "2", "exact": "2" }));
    assert_eq!(told["energy_per_busy_hour"], json!({ "amount": "0.21", "exact": "21/100" }));
    // 2.21 EUR / 9 million tokens an hour.
    let output = &told["prices"]["output"];
    assert_eq!((&output["per_million"], &output["exact"]), (&"0.245555556".into(), &"221/900".into()));
    assert_eq!(
        (&output["credits_per_token"], &output["credits_per_million"]),
        (&"0.122778".into(), &"122777.777778".into())
    );
    assert_eq!(told["prices"]["prompt"]["per_million"], "0.030694445");
    assert_eq!(told["prices"]["cached_prompt"]["per_million"], "0");
    assert!(told["formulas"]["per_million"].as_str().is_some_and(|formula| formula.contains("3600")));
    // Idle power counts half the time; four cards cost four times as much.
    let more = estimate(&["--idle-power", "100", "--cards", "4", "--overhead", "1.5", "--cached-share", "0.1"]);
    assert_eq!(more["energy_per_busy_hour"]["exact"], "36/25");
    assert_eq!(more["prices"]["cached_prompt"]["per_million"], "0.013111112");
    assert!(more["prices"]["output"]["credits_per_token"].is_null());
    let shown = text(&home.run(&[&["price", "estimate"], &HARDWARE[..], &speeds].concat()).stdout);
    assert!(shown.contains("0.245555556EUR") && shown.contains("utilisation"), "{shown}");

    let file = home.path().join("bench.json");
    let test =
        |n_prompt: u32, n_gen: u32, avg_ts: f64| json!({ "n_prompt": n_prompt, "n_gen": n_gen, "avg_ts": avg_ts });
    let tests = [test(512, 0, 20000.0), test(0, 128, 100.5), test(0, 128, 2500.0), test(0, 16, 90.0), test(8, 8, 1e6)];
    std::fs::write(&file, json!(tests).to_string()).expect("it can be written");
    let measured =
        home.json(&[&["price", "estimate"], &HARDWARE[..], &["--bench", file.to_str().expect("UTF-8")]].concat());
    assert_eq!(measured["prices"]["output"]["exact"], "221/900");
}

#[test]
fn estimates_of_nonsense_are_refused() {
    let home = Home::new();
    let speeds = ["--prompt-tokens-per-s", "20000", "--output-tokens-per-s", "2500"];
    let nowhere = ["--bench", "/nowhere/bench.json"];
    for (more, status) in [
        (&[][..], 2),
        (&["--prompt-tokens-per-s", "1", "--output-tokens-per-s", "0"], 2),
        (&["--prompt-tokens-per-s", "-1", "--output-tokens-per-s", "1"], 2),
        (&nowhere[..], 1),
    ] {
        let output = home.run(&[&["price", "estimate"], &HARDWARE[..], more].concat());
        assert_eq!(output.status.code(), Some(status), "{more:?}: {}", text(&output.stderr));
    }
    for (flag, value) in [
        ("--card-price", "26280"),
        ("--card-price", "-1EUR"),
        ("--years", "0"),
        ("--electricity", "0.3USD"),
        ("--utilisation", "0"),
        ("--utilisation", "1.01"),
        ("--power", "1e3"),
    ] {
        let mut arguments = [&["price", "estimate"], &HARDWARE[..], &speeds].concat();
        let place = arguments.iter().position(|argument| *argument == flag).expect("it is given");
        arguments[place + 1] = value;
        let output = home.run(&arguments);
        assert_eq!(output.status.code(), Some(2), "{flag} {value}: {}", text(&output.stderr));
    }
}
