//! Delivered = debited = reported, however a request ends.

use std::io::Read;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;

use crate::support::{Home, account, parse, text, tiny_model};

/// `usage.total_tokens == allowance.debited` and what statement and usage show.
fn assert_exact(home: &Home, user: &str, answer: &Value) {
    let usage = &answer["usage"];
    let total = usage["total_tokens"].as_i64().expect("a count");
    let completion = usage["completion_tokens"].as_i64().expect("a count");
    assert_eq!(total, usage["prompt_tokens"].as_i64().expect("a count") + completion);
    assert_eq!(completion as usize, answer["token_ids"].as_array().expect("a list").len());
    assert_eq!(answer["allowance"]["debited"], total, "{answer}");
    assert_eq!(home.spent(user), total);
    assert_eq!(home.usage_tokens(user), total);
    assert_eq!(answer["allowance"]["balance"].as_i64(), Some(home.balance(user)));
    home.verify();
}

/// What ada was granted is spent and counted, or left; nothing is in flight.
fn assert_settled(home: &Home, granted: i64) {
    let spent = home.spent("ada");
    assert!(spent > 0);
    assert_eq!(home.usage_tokens("ada"), spent);
    assert_eq!(home.balance("ada"), granted - spent);
    assert_eq!(home.json(&["wallet", "show", "ada"])["in_flight"], 0);
    home.verify();
}

fn generate(home: &Home, user: &str, extra: &[&str]) -> (Value, i32) {
    let model = tiny_model();
    let base = ["generate", "Hello there", "--model", &model, "--user", user, "--output", "json", "--seed", "1"];
    let output = home.run(&[&base[..], extra].concat());
    (parse(&output), output.status.code().expect("it was not killed"))
}

#[test]
fn length_is_exact() {
    let home = Home::new();
    home.wallet("ada", 10_000);
    let (answer, status) = generate(&home, "ada", &["--max-tokens", "20", "--ignore-eos"]);
    assert_eq!((status, &answer["finish_reason"]), (0, &"length".into()));
    assert_eq!(answer["usage"]["completion_tokens"], 20);
    assert_exact(&home, "ada", &answer);
}

#[test]
fn the_end_token_is_paid_and_not_shown() {
    let home = Home::new();
    home.wallet("ada", 10_000);
    let end = end_token();
    // A bias makes the end token certain.
    let (answer, status) = generate(&home, "ada", &["--logit-bias", &format!("{end}=100")]);
    assert_eq!((status, &answer["finish_reason"]), (0, &"stop".into()));
    assert_eq!(answer["token_ids"], serde_json::json!([end]));
    assert_eq!(answer["text"], "");
    assert_exact(&home, "ada", &answer);
}

fn end_token() -> u32 {
    let path = crate::support::fixture("llama/generation_config.json");
    let config: Value =
        serde_json::from_str(&std::fs::read_to_string(path).expect("the fixture has it")).expect("JSON");
    let end = &config["eos_token_id"];
    end.as_u64().or_else(|| end[0].as_u64()).expect("an end token") as u32
}

#[test]
fn a_stop_string_is_paid_and_not_shown() {
    let home = Home::new();
    home.wallet("ada", 100_000);
    let (whole, _) = generate(&home, "ada", &["--max-tokens", "40", "--ignore-eos", "--temperature", "0"]);
    let text = whole["text"].as_str().expect("text");
    // A string from the middle of the answer that spans tokens; the earliest place it occurs is what counts.
    let middle: String = text.chars().skip(text.chars().count() / 2).take(3).collect();
    assert_eq!(middle.chars().count(), 3, "the fixture answers too little: {text:?}");
    let at = text.find(&middle).expect("it was taken from there");

    let home = Home::new();
    home.wallet("ada", 100_000);
    let (answer, status) =
        generate(&home, "ada", &["--max-tokens", "40", "--ignore-eos", "--temperature", "0", "--stop", &middle]);
    assert_eq!((status, &answer["finish_reason"]), (0, &"stop".into()));
    assert_eq!(answer["text"], text[..at]);
    assert_exact(&home, "ada", &answer);
}

#[test]
fn the_allowance_ends_at_the_last_token_it_can_pay() {
    let model = tiny_model();
    for credits in [25_u64, 26, 40] {
        let home = Home::new();
        home.wallet("ada", credits);
        let arguments =
            ["generate", "Hi", "--raw", "--model", &model, "--user", "ada", "--ignore-eos", "--output", "json"];
        let output = home.run(&arguments);
        assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
        let answer = parse(&output);
        assert_eq!(answer["finish_reason"], "allowance");
        assert_eq!(answer["usage"]["total_tokens"], credits);
        assert_eq!(home.balance("ada"), 0);
        assert_exact(&home, "ada", &answer);

        // Nothing is left for another one, and that costs nothing.
        let refused = home.run(&arguments);
        assert_eq!(refused.status.code(), Some(3));
        assert_eq!(parse(&refused)["error"]["code"], "allowance_exhausted");
        assert_exact(&home, "ada", &answer);
    }
}

#[test]
fn what_the_allowance_paid_for_is_printed_in_text_too() {
    let home = Home::new();
    home.wallet("ada", 30);
    let model = tiny_model();
    let base = ["generate", "Hi", "--raw", "--model", &model, "--user", "ada", "--ignore-eos", "--temperature", "0"];
    let shown = home.run(&base);
    assert_eq!(shown.status.code(), Some(3));
    assert!(text(&shown.stderr).contains("hint:"), "{}", text(&shown.stderr));
    let home = Home::new();
    home.wallet("ada", 30);
    let answer = parse(&home.run(&[&base[..], &["--output", "json"]].concat()));
    assert_eq!(
        text(&shown.stdout).trim_end_matches('\n'),
        answer["text"].as_str().expect("text").trim_end_matches('\n')
    );
}

#[test]
fn ctrl_c_pays_settles_and_exits_130() {
    let home = Home::new();
    home.wallet("ada", 1_000_000);
    let model = tiny_model();
    let mut child = home
        .command(&[
            "generate",
            "Hello",
            "--model",
            &model,
            "--user",
            "ada",
            "--ignore-eos",
            "--seed",
            "1",
            "--temperature",
            "1",
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut stdout = child.stdout.take().expect("it is piped");
    let mut first = [0; 16];
    stdout.read_exact(&mut first).expect("it begins to answer");
    let reader = std::thread::spawn(move || {
        let mut rest = Vec::new();
        stdout.read_to_end(&mut rest).map(|_| rest)
    });
    interrupt(child.id());
    let output = child.wait_with_output().expect("it ends");
    drop(reader.join());
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    assert_settled(&home, 1_000_000);
}

#[test]
fn ctrl_c_in_json_reports_what_was_paid() {
    let home = Home::new();
    home.wallet("ada", 1_000_000);
    let model = tiny_model();
    let arguments = [
        "generate",
        "Hello",
        "--model",
        &model,
        "--user",
        "ada",
        "--ignore-eos",
        "--max-tokens",
        "100000",
        "--output",
        "json",
    ];
    let child = home.command(&arguments).stdout(Stdio::piped()).spawn().expect("the program starts");
    wait_until(|| home.json(&["wallet", "show", "ada"])["in_flight"].as_f64().expect("a number") > 30.0);
    interrupt(child.id());
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(130));
    let answer = parse(&output);
    assert_eq!(answer["finish_reason"], "cancelled");
    assert_exact(&home, "ada", &answer);
}

#[test]
fn a_closed_pipe_ends_the_request_and_pays_for_what_was_committed() {
    let home = Home::new();
    home.wallet("ada", 1_000_000);
    let model = tiny_model();
    let mut child = home
        .command(&["generate", "Hello", "--model", &model, "--user", "ada", "--ignore-eos", "--max-tokens", "100000"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut stdout = child.stdout.take().expect("it is piped");
    let mut first = [0; 20];
    stdout.read_exact(&mut first).expect("it begins to answer");
    drop(stdout);
    let status = child.wait().expect("it ends");
    assert_eq!(status.code(), Some(0), "a reader that has enough is no failure");
    assert_settled(&home, 1_000_000);
}

#[test]
fn the_first_generate_opens_the_own_wallet_and_no_other() {
    let home = Home::new();
    let model = tiny_model();
    let arguments = ["generate", "Hello", "--model", &model, "--max-tokens", "5", "--ignore-eos"];
    let answer = home.json(&arguments);
    let account = account();
    assert_eq!(answer["user"], account);
    assert_eq!(home.balance(&account), 1_000_000 - answer["usage"]["total_tokens"].as_i64().expect("a count"));
    assert_exact(&home, &account, &answer);

    let before = home.books();
    let stranger = home.run(&[&arguments[..], &["--user", "somebody-else"]].concat());
    assert_eq!(stranger.status.code(), Some(4), "{}", text(&stranger.stderr));
    assert_eq!(home.books(), before);
}

#[test]
fn the_same_seed_gives_the_same_text() {
    let home = Home::new();
    home.wallet("ada", 1_000_000);
    let flags = ["--max-tokens", "30", "--ignore-eos", "--temperature", "1.5", "--top-p", "0.95"];
    let (first, _) = generate(&home, "ada", &flags);
    let (second, _) = generate(&home, "ada", &flags);
    assert_eq!(first["token_ids"], second["token_ids"]);
    let other = home.json(
        &[&["generate", "Hello there", "--model", &tiny_model(), "--user", "ada", "--seed", "2"][..], &flags[..]]
            .concat(),
    );
    assert_ne!(first["token_ids"], other["token_ids"], "another seed, another text");
    let model = tiny_model();
    let unseeded = [&["generate", "Hello there", "--model", &model, "--user", "ada"][..], &flags[..]].concat();
    let deterministic = [&unseeded[..], &["--deterministic"]].concat();
    assert_eq!(home.json(&deterministic)["token_ids"], home.json(&deterministic)["token_ids"]);
    assert_ne!(home.json(&unseeded)["seed"], home.json(&unseeded)["seed"], "each run draws its own seed");
}

#[cfg(unix)]
fn interrupt(pid: u32) {
    let status = std::process::Command::new("kill").args(["-INT", &pid.to_string()]).status().expect("kill runs");
    assert!(status.success());
}

fn wait_until(condition: impl Fn() -> bool) {
    for _ in 0..600 {
        if condition() {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("it did not happen within 30 s");
}
