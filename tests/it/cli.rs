//! The command line as a contract: streams, formats, exit statuses.

use std::io::Write;
use std::process::Stdio;

use crate::support::{Home, parse, text, tiny_model};

#[test]
fn text_streams_to_stdout_and_figures_to_stderr() {
    let home = Home::new();
    let model = tiny_model();
    let base = ["generate", "Hello", "--model", &model, "--ignore-eos", "--max-tokens", "12", "--temperature", "0"];
    let output = home.run(&base);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let answer = home.json(&base);
    assert_eq!(text(&output.stdout).trim_end(), answer["text"].as_str().expect("text").trim_end());
    let figures = text(&output.stderr);
    assert!(figures.contains("tokens/s") && figures.contains("left"), "{figures}");
    let quiet = home.run(&[&base[..], &["--no-stats"]].concat());
    assert_eq!(text(&quiet.stderr), "");
    assert!(!text(&output.stdout).contains('\u{1b}'), "colours where there is no terminal");
}

#[test]
fn the_json_answer_has_every_field_of_the_contract() {
    let home = Home::new();
    let answer = home.json(&[
        "generate",
        "Hello",
        "--model",
        &tiny_model(),
        "--ignore-eos",
        "--max-tokens",
        "6",
        "--logprobs",
        "3",
    ]);
    for field in [
        "request_id",
        "model",
        "device",
        "user",
        "text",
        "finish_reason",
        "prompt_token_ids",
        "token_ids",
        "logprobs",
        "usage",
        "timing",
        "allowance",
    ] {
        assert!(!answer[field].is_null(), "{field} is missing: {answer}");
    }
    for field in ["load_ms", "queue_ms", "ttft_ms", "prefill_tokens_per_s", "decode_tokens_per_s", "itl_ms", "total_ms"]
    {
        assert!(!answer["timing"][field].is_null(), "timing.{field} is missing: {answer}");
    }
    for field in ["p50", "p95", "p99"] {
        assert!(answer["timing"]["itl_ms"][field].is_number(), "timing.itl_ms.{field}");
    }
    for field in ["wallet", "debited", "balance", "unit"] {
        assert!(!answer["allowance"][field].is_null(), "allowance.{field}");
    }
    assert_eq!(answer["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    assert_eq!(answer["usage"]["completion_tokens_details"]["reasoning_tokens"], 0);
    let logprobs = answer["logprobs"].as_array().expect("a list");
    assert_eq!(logprobs.len(), 6);
    for (entry, token) in logprobs.iter().zip(answer["token_ids"].as_array().expect("a list")) {
        assert_eq!(&entry["id"], token);
        let top = entry["top"].as_array().expect("a list");
        assert_eq!(top.len(), 3);
        assert!(top[0][1].as_f64() >= top[1][1].as_f64());
        assert!(entry["logprob"].as_f64().expect("a number") <= top[0][1].as_f64().expect("a number") + 1e-6);
    }
}

#[test]
fn the_prompt_comes_from_stdin_or_a_file_too() {
    let home = Home::new();
    let model = tiny_model();
    let flags =
        ["--model", &model, "--raw", "--ignore-eos", "--max-tokens", "4", "--temperature", "0", "--output", "json"];
    let direct = home.run(&[&["generate", "Once upon a time"][..], &flags].concat());
    let direct = parse(&direct);
    let file = home.path().join("prompt.txt");
    std::fs::write(&file, "Once upon a time").expect("it can be written");
    let from_file = parse(&home.run(&[&["generate", "--file", file.to_str().expect("UTF-8")][..], &flags].concat()));
    assert_eq!(from_file["prompt_token_ids"], direct["prompt_token_ids"]);
    for prompt in [&["generate"][..], &["generate", "-"]] {
        let mut child = home
            .command(&[prompt, &flags].concat())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
        child.stdin.take().expect("it is piped").write_all(b"Once upon a time").expect("it reads");
        let piped = parse(&child.wait_with_output().expect("it ends"));
        assert_eq!(piped["token_ids"], direct["token_ids"]);
    }
}

#[test]
fn usage_errors_exit_2_in_both_formats() {
    let home = Home::new();
    for arguments in [
        &["no-such-command"][..],
        &["generate", "--no-such-flag"],
        &["wallet", "grant", "ada"],
        &["generate", "x", "--device", "tpu"],
    ] {
        assert_eq!(home.run(arguments).status.code(), Some(2), "{arguments:?}");
        let output = home.run(&[arguments, &["--output", "json"]].concat());
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert_eq!(parse(&output)["error"]["code"], "usage", "{arguments:?}");
    }
    assert_eq!(home.run(&["--help"]).status.code(), Some(0));
    assert_eq!(home.run(&["--version"]).status.code(), Some(0));
}

#[test]
fn wallets_are_created_filled_and_shown() {
    let home = Home::new();
    home.json(&["wallet", "create", "ada"]);
    assert_eq!(home.balance("ada"), 0);
    home.json(&["wallet", "grant", "ada", "12.5", "--memo", "November", "--expires", "2999-01-01"]);
    home.json(&["wallet", "grant", "ada", "7.5", "--priority", "-1"]);
    let wallet = home.json(&["wallet", "show", "ada"]);
    assert_eq!(wallet["balance"], 20);
    assert_eq!(wallet["grants"].as_array().expect("a list").len(), 2);
    let key = ["wallet", "grant", "ada", "5", "--idempotency-key", "payroll-11"];
    home.json(&key);
    home.json(&key);
    assert_eq!(home.balance("ada"), 25, "the same key grants once");
    let statement = home.json(&["wallet", "statement", "ada"]);
    assert_eq!(statement["closing"], 25);
    assert_eq!(statement["lines"].as_array().expect("a list").len(), 3);
    assert!(text(&home.run(&["wallet", "list"]).stdout).contains("ada"));
    assert!(text(&home.run(&["wallet", "statement", "ada"]).stdout).contains("November"));
    home.verify();
}

#[test]
fn a_backup_is_a_sound_ledger_and_overwrites_nothing() {
    let home = Home::new();
    home.wallet("ada", 500);
    let copy = home.path().join("copy");
    std::fs::create_dir(&copy).expect("it can be made");
    let file = copy.join("ledger.db");
    let file_name = file.to_str().expect("UTF-8");
    home.json(&["ledger", "backup", file_name]);
    assert_eq!(home.run(&["ledger", "backup", file_name]).status.code(), Some(1));
    let output = home
        .command(&["wallet", "show", "ada", "--output", "json"])
        .env("TOKRUN_HOME", &copy)
        .output()
        .expect("it runs");
    assert_eq!(parse(&output)["balance"], 500);
    let output = home.command(&["ledger", "verify"]).env("TOKRUN_HOME", &copy).output().expect("it runs");
    assert!(output.status.success());
}

#[test]
fn chat_remembers_pays_and_saves() {
    let home = Home::new();
    home.wallet("ada", 10_000);
    let saved = home.path().join("talk.json");
    let model = tiny_model();
    let mut child = home
        .command(&[
            "chat",
            "--model",
            &model,
            "--user",
            "ada",
            "--max-tokens",
            "8",
            "--ignore-eos",
            "--temperature",
            "0",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let lines = format!("Hello\nAnd then?\n/balance\n/nonsense\n/save {}\n/quit\nnever read\n", saved.display());
    child.stdin.take().expect("it is piped").write_all(lines.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("/help") && said.contains("ada has"), "{said}");
    let turns: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(saved).expect("it was saved")).expect("JSON");
    let roles: Vec<&str> =
        turns.as_array().expect("a list").iter().map(|turn| turn["role"].as_str().expect("a role")).collect();
    assert_eq!(roles, ["user", "assistant", "user", "assistant"]);
    let usage = home.json(&["usage"]);
    assert_eq!(usage[0]["requests"], 2);
    assert_eq!(usage[0]["completion_tokens"], 16);
    assert_eq!(home.spent("ada"), home.usage_tokens("ada"));
}

#[test]
fn doctor_names_every_part_and_a_remedy_for_what_is_missing() {
    let home = Home::new();
    let findings = home.json(&["doctor"]);
    let about: Vec<&str> =
        findings.as_array().expect("a list").iter().map(|row| row["about"].as_str().expect("a name")).collect();
    assert_eq!(about, ["processor", "engine", "gpu", "memory", "home", "model", "ledger"]);
    let model = &findings[5];
    assert!(model["remedy"].as_str().expect("a remedy").contains("tokrun model pull"));
    assert!(text(&home.run(&["doctor", "--model", &tiny_model()]).stdout).contains("fits"));
}

#[test]
fn the_catalogue_lists_what_can_be_run() {
    let home = Home::new();
    let models = home.json(&["model", "list"]);
    let names: Vec<&str> =
        models.as_array().expect("a list").iter().map(|model| model["name"].as_str().expect("a name")).collect();
    assert!(names.contains(&"smollm2-135m"), "{names:?}");
    let default: Vec<_> = models.as_array().expect("a list").iter().filter(|model| model["default"] == true).collect();
    assert_eq!(default[0]["name"], "smollm2-135m");
    let shown = home.json(&["model", "show", &tiny_model()]);
    assert_eq!(shown["file"]["architecture"], "llama");
}

#[test]
fn completions_are_printed_for_every_shell() {
    let home = Home::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = home.run(&["completions", shell]);
        assert!(output.status.success() && text(&output.stdout).contains("tokrun"), "{shell}");
    }
}

/// The catalogue's price and name hold for a pulled model however it is named.
#[test]
fn a_pulled_model_named_by_its_path_costs_the_same() {
    let home = Home::new();
    home.wallet("ada", 10_000);
    std::fs::write(
        home.path().join("models.toml"),
        r#"
[[model]]
name = "tiny"
title = "Tiny"
architecture = "llama"
format = "safetensors"
dtype = "F32"
context_tokens = 16384
licence = "Apache-2.0"
sources = [{ hub = "nobody/tiny", revision = "main" }]
prices = [{ prompt = "2", output = "0.5" }]
"#,
    )
    .expect("it can be written");
    let place = home.path().join("models/tiny");
    crate::support::copy_directory(std::path::Path::new(&tiny_model()), &place);
    let path = place.to_str().expect("UTF-8");
    let answer = home.json(&["generate", "Hi", "--model", path, "--user", "ada", "--max-tokens", "4", "--ignore-eos"]);
    assert_eq!(answer["model"], "tiny");
    let usage = &answer["usage"];
    let cost = 2.0 * usage["prompt_tokens"].as_f64().expect("a count")
        + 0.5 * usage["completion_tokens"].as_f64().expect("a count");
    assert_eq!(answer["allowance"]["debited"].as_f64(), Some(cost));
}
