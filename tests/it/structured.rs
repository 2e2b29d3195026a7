//! Answers of a form that was asked for: JSON of a schema, text of an expression or a grammar.

use std::fs;
use std::io::Write;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::support::{Home, default_model, parse, text, tiny_model};

const PERSON: &str = r#"{
    "type": "object",
    "properties": { "name": { "enum": ["Ada", "Grace"] }, "age": { "type": "integer", "minimum": 10, "maximum": 99 } },
    "required": ["name", "age"],
    "additionalProperties": false,
    "x-guidance": { "whitespace_flexible": false }
}"#;

/// A file in the home.
fn file(home: &Home, name: &str, content: &str) -> String {
    let path = home.path().join(name);
    fs::write(&path, content).expect("it can be written");
    path.to_str().expect("UTF-8").to_owned()
}

fn generate<'a>(model: &'a str, extra: &[&'a str]) -> Vec<&'a str> {
    [&["generate", "Who are you?", "--model", model, "--user", "ada"][..], extra].concat()
}

fn home_with_money(credits: u64) -> Home {
    let home = Home::new();
    home.wallet("ada", credits);
    home
}

fn is_person(answer: &str) {
    let person: Value = serde_json::from_str(answer).unwrap_or_else(|error| panic!("{error}: {answer}"));
    assert!(["Ada", "Grace"].contains(&person["name"].as_str().expect("a name")), "{person}");
    assert!((10..=99).contains(&person["age"].as_i64().expect("an age")), "{person}");
    assert_eq!(person.as_object().expect("an object").len(), 2);
}

#[test]
fn an_answer_has_the_form_that_was_asked_for_and_every_token_is_paid() {
    let home = home_with_money(100_000);
    let model = tiny_model();
    let schema = file(&home, "person.json", PERSON);
    let grammar = file(&home, "sum.lark", "start: NUMBER (\"+\" NUMBER)~1..4\nNUMBER: /[0-9]{1,3}/\n");
    let is_date = |text: &str| {
        let parts: Vec<&str> = text.split('-').collect();
        assert_eq!(parts.iter().map(|part| part.len()).collect::<Vec<_>>(), [4, 2, 2], "{text}");
        assert!(parts.concat().bytes().all(|byte| byte.is_ascii_digit()), "{text}");
    };
    let is_sum = |text: &str| {
        let terms: Vec<&str> = text.split('+').collect();
        assert!((2..=5).contains(&terms.len()), "{text}");
        assert!(terms.iter().all(|term| term.len() <= 3 && term.parse::<u16>().is_ok()), "{text}");
    };
    type Form<'a> = (&'a [&'a str], &'a dyn Fn(&str));
    let forms: [Form<'_>; 3] = [
        (&["--json-schema", &schema], &is_person),
        (&["--regex", r"\d{4}-\d{2}-\d{2}"], &is_date),
        (&["--grammar", &grammar], &is_sum),
    ];
    let mut paid = 0;
    for (form, check) in forms {
        for how in [&["--temperature", "0"][..], &["--seed", "1"], &["--seed", "2", "--temperature", "3", "--raw"]] {
            let answer = home.json(&generate(&model, &[form, how].concat()));
            check(answer["text"].as_str().expect("text"));
            assert_eq!(answer["finish_reason"], "stop", "{answer}");
            let tokens = answer["token_ids"].as_array().expect("a list").len() as i64;
            assert_eq!(answer["usage"]["completion_tokens"], tokens);
            assert_eq!(answer["allowance"]["debited"], answer["usage"]["total_tokens"]);
            paid += answer["usage"]["total_tokens"].as_i64().expect("a count");
        }
    }
    assert_eq!(100_000 - home.balance("ada"), paid);
    home.verify();
}

#[test]
fn length_and_allowance_may_cut_a_form_short() {
    let home = home_with_money(100_000);
    let model = tiny_model();
    let form = ["--regex", "(ab){20}", "--temperature", "0"];
    let answer = home.json(&generate(&model, &[&form[..], &["--max-tokens", "3"]].concat()));
    assert_eq!((&answer["finish_reason"], &answer["usage"]["completion_tokens"]), (&json!("length"), &json!(3)));
    assert!("ab".repeat(20).starts_with(answer["text"].as_str().expect("text")));

    let prompt = answer["usage"]["prompt_tokens"].as_u64().expect("a count");
    home.wallet("poor", prompt + 5);
    let output = home.run(&[
        "generate",
        "Who are you?",
        "--model",
        &model,
        "--user",
        "poor",
        "--regex",
        "(ab){20}",
        "--temperature",
        "0",
        "--output",
        "json",
    ]);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
    let answer = parse(&output);
    assert_eq!((&answer["finish_reason"], &answer["usage"]["completion_tokens"]), (&json!("allowance"), &json!(5)));
    assert!("ab".repeat(20).starts_with(answer["text"].as_str().expect("text")));
    assert_eq!(home.balance("poor"), 0);
    home.verify();
}

#[test]
fn speculation_and_the_prefix_cache_leave_a_form_as_it_is() {
    let home = home_with_money(100_000);
    let model = tiny_model();
    // Repetitive enough for guesses to come true, and free enough for them to fail.
    let form = ["--regex", "(aab[0-9]?){30,60}"];
    for how in [&["--temperature", "0"][..], &["--seed", "7", "--temperature", "2"], &["--repeat-penalty", "1.3"]] {
        let asked = generate(&model, &[&form[..], how, &["--deterministic"]].concat());
        let usual = home.json(&asked);
        for without in ["--no-speculation", "--no-prefix-cache"] {
            let other = home.json(&[&asked[..], &[without]].concat());
            assert_eq!(other["token_ids"], usual["token_ids"], "{how:?} {without}");
            assert_eq!(other["text"], usual["text"]);
            assert_eq!(other["allowance"]["debited"], usual["allowance"]["debited"]);
        }
        let text = usual["text"].as_str().expect("text");
        let groups: Vec<&str> = text.split("aab").collect();
        assert!(groups[0].is_empty() && (31..=61).contains(&groups.len()), "{text}");
        assert!(groups[1..].iter().all(|tail| tail.len() <= 1 && tail.bytes().all(|byte| byte.is_ascii_digit())));
    }
    home.verify();
}

#[test]
fn a_form_that_cannot_be_used_is_refused_and_costs_nothing() {
    let home = home_with_money(1_000);
    let model = tiny_model();
    let broken = file(&home, "broken.json", "{");
    let unsupported = file(&home, "unsupported.json", r#"{"type": "array", "uniqueItems": true}"#);
    let contradictory = file(&home, "contradictory.json", r#"{"type": "integer", "minimum": 5, "maximum": 4}"#);
    let grammar = file(&home, "grammar.lark", "start: nobody\n");
    let empty = file(&home, "empty.lark", "\n");
    let deep = file(&home, "deep.json", &(r#"{"items":"#.repeat(5_000) + "{}" + &"}".repeat(5_000)));
    let nowhere = home.path().join("nowhere.json").display().to_string();
    let cases: [(&[&str], i32, &str); 11] = [
        (&["--json-schema", &broken], 2, "it is no JSON"),
        (&["--json-schema", &unsupported], 2, "uniqueItems"),
        (&["--json-schema", &contradictory], 2, "minimum (5) is greater than maximum (4)"),
        (&["--json-schema", &deep], 2, "recursion limit"),
        (&["--json-schema", &nowhere], 1, "nowhere.json"),
        (&["--regex", "(a"], 2, "unclosed group"),
        (&["--regex", ""], 2, "it is empty"),
        (&["--grammar", &grammar], 2, "unknown name"),
        (&["--grammar", &empty], 2, "it is empty"),
        (&["--regex", "a", "--grammar", &grammar], 2, "cannot be used with"),
        (&["--regex", "a", "--ignore-eos"], 2, "cannot be used with"),
    ];
    let before = home.books();
    for (form, status, words) in cases {
        let output = home.run(&generate(&model, form));
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{form:?}: {said}");
        assert!(said.contains("error: ") && said.contains(words), "{form:?} does not say `{words}`: {said}");
        assert!(output.stdout.is_empty() && !said.contains("panicked"), "{form:?}: {said}");
    }
    assert_eq!(home.books(), before);
    let output = home.run(&generate(&model, &["--regex", "(a", "--output", "json"]));
    assert_eq!(parse(&output)["error"]["code"], "invalid_grammar");
}

#[test]
fn a_chat_answers_in_form_turn_by_turn() {
    let home = home_with_money(10_000);
    let model = tiny_model();
    let chat = |form: &[&str], input: &str| {
        let arguments = [&["chat", "--model", &model, "--user", "ada", "--no-stats"][..], form].concat();
        let mut command = home.command(&arguments);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        // A chat that was refused reads nothing.
        let _ = child.stdin.take().expect("it is piped").write_all(input.as_bytes());
        child.wait_with_output().expect("it ends")
    };
    let output = chat(&["--regex", "yes|no"], "Is it raining?\nAnd tomorrow?\n/retry\n");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let said = text(&output.stdout);
    assert_eq!(said.lines().count(), 3, "{said}");
    assert!(said.lines().all(|line| line == "yes" || line == "no"), "{said}");
    let output = chat(&["--regex", "(yes"], "Is it raining?\n");
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
    assert!(output.stdout.is_empty());
    home.verify();
}

#[test]
fn the_default_model_fills_in_a_form() {
    let Some(model) = default_model() else { return };
    let home = home_with_money(10_000);
    let schema = file(
        &home,
        "capital.json",
        r#"{"type": "object", "properties": {"country": {"type": "string"}, "capital": {"type": "string"}},
            "required": ["country", "capital"], "additionalProperties": false}"#,
    );
    let prompt = "What is the capital of France? Answer in JSON with the keys country and capital.";
    let answer = home.json(&[
        "generate",
        prompt,
        "--model",
        &model,
        "--user",
        "ada",
        "--temperature",
        "0",
        "--max-tokens",
        "80",
        "--json-schema",
        &schema,
    ]);
    assert_eq!(answer["finish_reason"], "stop", "{answer}");
    let filled: Value = serde_json::from_str(answer["text"].as_str().expect("text")).expect("it is JSON");
    assert!(filled["capital"].as_str().expect("a string").contains("Paris"), "{filled}");
    assert!(filled["country"].is_string(), "{filled}");
}
