//! `bench`: what it prints, and that its figures are made of what they say.

use serde_json::Value;

use crate::support::{Home, fixture, parse, text, tiny_model};

/// Names that scripts for llama-bench look for, and ours.
const FIELDS: [&str; 26] = [
    "cpu_info",
    "backends",
    "model_filename",
    "model_type",
    "model_size",
    "model_n_params",
    "n_batch",
    "n_threads",
    "type_k",
    "type_v",
    "n_prompt",
    "n_gen",
    "n_depth",
    "test_time",
    "avg_ns",
    "stddev_ns",
    "avg_ts",
    "stddev_ts",
    "samples_ns",
    "samples_ts",
    "ledger",
    "concurrency",
    "speculation",
    "simd_level",
    "barrier_ns",
    "read_bandwidth_bytes_per_s",
];

fn rows(home: &Home, arguments: &[&str]) -> Vec<Value> {
    home.json(&[&["bench", "--model", &tiny_model()], arguments].concat()).as_array().expect("a list").clone()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("a list").iter().map(|number| number.as_f64().expect("a number")).collect()
}

#[test]
fn rows_have_the_fields_of_llama_bench() {
    let home = Home::new();
    let rows = rows(&home, &["-p", "32", "-n", "16", "-r", "3"]);
    assert_eq!(rows.len(), 2);
    for (row, (n_prompt, n_gen)) in rows.iter().zip([(32, 0), (0, 16)]) {
        for field in FIELDS {
            assert!(!row[field].is_null(), "{field} is missing: {row}");
        }
        assert_eq!((&row["n_prompt"], &row["n_gen"], &row["n_depth"]), (&n_prompt.into(), &n_gen.into(), &0.into()));
        let (rates, times) = (numbers(&row["samples_ts"]), numbers(&row["samples_ns"]));
        assert_eq!((rates.len(), times.len()), (3, 3));
        for (rate, ns) in rates.iter().zip(&times) {
            let tokens = f64::from(n_prompt + n_gen);
            assert!((rate * ns / 1e9 / tokens - 1.0).abs() < 1e-6, "{rate} tokens/s in {ns} ns are not {tokens}");
        }
        let mean = rates.iter().sum::<f64>() / 3.0;
        assert!((row["avg_ts"].as_f64().expect("a rate") / mean - 1.0).abs() < 1e-9);
        assert_eq!(row["ledger"], true);
        let decodes = n_gen > 0;
        assert_eq!(row["roofline_share"].as_f64().is_some_and(|share| share > 0.0), decodes, "{row}");
        assert!(row["fsync_us"].is_number());
    }
    assert!(!home.path().join("ledger.db").exists(), "the bench touched the real ledger");
    let left = std::fs::read_dir(home.path()).expect("the home is there").count();
    assert_eq!(left, 0, "the bench left something behind");
}

#[test]
fn lists_are_combined() {
    let home = Home::new();
    let lists = ["-p", "8,16", "-n", "4", "--pg", "8,4", "-d", "0,16", "-b", "8,64", "-t", "1,2"];
    let rows = rows(&home, &[&lists[..], &["-r", "1", "--ledger", "off"]].concat());
    let run = |row: &Value| {
        let number = |name: &str| row[name].as_i64().expect("a count");
        (number("n_threads"), number("n_batch"), row["test"].as_str().expect("a name").to_owned())
    };
    let mut expected = Vec::new();
    for (threads, batch) in [(1, 8), (1, 64), (2, 8), (2, 64)] {
        for test in ["pp8", "pp8 @ d16", "pp16", "pp16 @ d16", "tg4", "tg4 @ d16", "pp8+tg4", "pp8+tg4 @ d16"] {
            expected.push((threads, batch, test.to_owned()));
        }
    }
    assert_eq!(rows.iter().map(run).collect::<Vec<_>>(), expected);
    assert!(rows.iter().all(|row| row["ledger"] == false && row["fsync_us"].is_null() && row["backends"] == "native"));
}

/// Without a cache of prefixes, what comes before would be computed within the time that is measured.
#[test]
fn prefill_at_a_depth_needs_that_depth_in_the_cache() {
    let home = Home::new();
    let model = tiny_model();
    let base = ["bench", "--model", &model, "-p", "8", "-n", "0", "-d", "16", "-r", "1", "--ledger", "off"];
    let without = home.run(&[&base[..], &["--no-prefix-cache"]].concat());
    assert_eq!(without.status.code(), Some(1), "{}", text(&without.stdout));
    assert!(text(&without.stderr).contains("were in the cache"), "{}", text(&without.stderr));
    let odd = home.run(&["bench", "--model", &model, "-p", "8", "-n", "0", "-d", "17"]);
    assert_eq!(odd.status.code(), Some(2));
    assert!(text(&odd.stderr).contains("a multiple"), "{}", text(&odd.stderr));
}

#[test]
fn made_up_weights_are_measured_without_a_download() {
    let home = Home::new();
    let arguments = ["--synthetic", "smollm2-135m:q4_0", "-p", "8", "-n", "4", "-r", "1", "--ledger", "off"];
    let rows = home.json(&[&["bench"], &arguments[..]].concat());
    assert_eq!(rows[0]["model_type"], "llama 134.52 M Q4_0");
    assert!(rows[1]["avg_ts"].as_f64().is_some_and(|rate| rate > 0.0));
    assert!(!home.path().join("models").exists(), "nothing was pulled");
    for (wrong, needle) in [("smollm9", "smollm2-135m"), ("smollm2-135m:q9", "Q4_0")] {
        let output = home.run(&["bench", "--synthetic", wrong]);
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output.stderr).contains(needle), "{}", text(&output.stderr));
    }
}

#[test]
fn a_profile_says_where_the_time_goes() {
    let home = Home::new();
    let model = tiny_model();
    let base = ["bench", "--model", &model, "--profile", "-p", "32", "-n", "4", "-d", "16", "-r", "2"];
    let rows = home.json(&base);
    let rows = rows.as_array().expect("a list");
    for test in ["pp32 @ d16", "tg4 @ d16"] {
        let of_test: Vec<&Value> = rows.iter().filter(|row| row["test"] == test).collect();
        let shares: f64 = of_test.iter().map(|row| row["share"].as_f64().expect("a share")).sum();
        assert!((shares - 1.0).abs() < 1e-6, "{test}: {shares}");
        let calls = |op: &str| {
            of_test.iter().find(|row| row["op"] == op).unwrap_or_else(|| panic!("{test} has no {op}: {rows:?}"))["calls"]
                .as_u64()
                .expect("a count")
        };
        // Three layers, two repetitions; a prompt is one step, each decoded token another.
        let steps = if test.starts_with("pp") { 1 } else { 4 };
        assert_eq!(calls("attention"), 3 * 2 * steps, "{test}");
    }
    let markdown = text(&home.run(&base).stdout);
    assert!(markdown.contains("| attention |") && markdown.contains("%"), "{markdown}");
    let candle = home.run(&[&base[..], &["--backend", "candle"]].concat());
    assert_eq!(candle.status.code(), Some(2), "{}", text(&candle.stderr));
}

#[test]
fn decoding_at_a_depth_is_named_and_counted_as_such() {
    let home = Home::new();
    let rows = rows(&home, &["-p", "0", "-n", "8", "-d", "0,40", "-r", "1", "--ledger", "off"]);
    let tests: Vec<&str> = rows.iter().map(|row| row["test"].as_str().expect("a name")).collect();
    assert_eq!(tests, ["tg8", "tg8 @ d40"]);
    assert_eq!(rows[1]["n_depth"], 40);
}

#[test]
fn requests_at_once_have_latencies() {
    let home = Home::new();
    let arguments = ["-p", "0", "-n", "12", "--concurrency", "1,3", "-r", "2"];
    let rows = rows(&home, &arguments);
    assert_eq!(rows.iter().map(|row| row["test"].clone()).collect::<Vec<_>>(), ["tg12", "tg12 x3"]);
    for row in &rows {
        for field in ["request_avg_ts", "ttft_p50_ms", "ttft_p95_ms", "itl_p50_ms", "itl_p95_ms", "itl_p99_ms"] {
            assert!(row[field].as_f64().is_some_and(|value| value >= 0.0), "{field}: {row}");
        }
        assert!(row["itl_p99_ms"].as_f64() >= row["itl_p50_ms"].as_f64());
    }
    let model = tiny_model();
    let markdown = text(&home.run(&[&["bench", "--model", &model][..], &arguments].concat()).stdout);
    assert!(markdown.contains("| TTFT p50 / p95 ms |") && markdown.contains("| tg12 x3 |"), "{markdown}");
}

#[test]
fn every_format_holds_the_same_rows() {
    let home = Home::new();
    let model = tiny_model();
    let run = |format| {
        let arguments = ["bench", "--model", &model, "-p", "16", "-n", "8", "-r", "2", "--output", format];
        let output = home.run(&arguments);
        assert!(output.status.success(), "{format}: {}", text(&output.stderr));
        text(&output.stdout)
    };
    let markdown = run("md");
    assert_eq!(markdown.lines().count(), 4, "{markdown}");
    assert!(markdown.starts_with("| model | size | params | backend | threads |"), "{markdown}");
    assert!(markdown.contains("| pp16 |") && markdown.contains("| tg8 |") && markdown.contains(" ± "), "{markdown}");
    let cells: Vec<usize> = markdown.lines().map(|line| line.matches('|').count()).collect();
    assert!(cells.iter().all(|count| *count == cells[0]), "{markdown}");

    let csv = run("csv");
    let lines: Vec<&str> = csv.lines().collect();
    assert_eq!(lines.len(), 3, "{csv}");
    let names: Vec<&str> = lines[0].split(',').collect();
    assert!(names.contains(&"avg_ts") && !names.contains(&"samples_ts"), "{csv}");

    let objects: Vec<Value> =
        run("jsonl").lines().map(|line| serde_json::from_str(line).expect("an object a line")).collect();
    assert_eq!(objects.iter().map(|row| row["test"].clone()).collect::<Vec<_>>(), ["pp16", "tg8"]);
    let fields: Vec<&String> = objects[0].as_object().expect("an object").keys().collect();
    let scalar = fields.iter().filter(|name| !name.starts_with("samples_")).count();
    assert_eq!(scalar, names.len(), "CSV and JSON differ in fields");
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let home = Home::new();
    let model = tiny_model();
    let refused = |arguments: &[&str], needle: &str| {
        let output = home.run(&[&["bench", "--model", &model], arguments].concat());
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
        assert!(stderr.contains(needle), "{arguments:?}: {stderr}");
        assert!(output.stdout.is_empty(), "{arguments:?}: something was measured");
    };
    refused(&["-n", "100000"], "context");
    refused(&["-d", "16000", "-n", "16000"], "context");
    refused(&["-p", "8,x"], "invalid value");
    refused(&["-b", "0"], "at least 1");
    refused(&["-r", "0"], "invalid value");
    refused(&["-t", "0"], "invalid value");
    refused(&["--concurrency", "0"], "at least 1");
    refused(&["--pg", "512"], "two numbers");
    refused(&["--kv-cache-bytes", "lots"], "such as 512M");
    refused(&["--context", "0"], "at least 1");
    refused(&["--backend", "vulkan"], "invalid value");
    refused(&["--backend", "candle", "-p", "16", "-n", "0", "-d", "16"], "cache of prefixes");
    refused(&["--backend", "candle", "-p", "16", "-n", "0", "-t", "1,2"], "once for each thread count");
    let output = home.run(&["bench", "--model", &model, "-n", "100000", "-p", "0", "--output", "json"]);
    assert_eq!(parse(&output)["error"]["code"], "usage");
}

/// The other side is Hugging Face's float32 logits, see `crates/xtask/fixtures/perplexity.py`.
#[test]
fn perplexity_is_that_of_the_reference() {
    let home = Home::new();
    let model = fixture("llama").display().to_string();
    let reference = std::fs::read(fixture("llama").join("perplexity.json")).expect("the fixture is there");
    let reference: Value = serde_json::from_slice(&reference).expect("it is JSON");
    let file = home.path().join("text.txt");
    std::fs::write(&file, reference["text"].as_str().expect("a text")).expect("it can be written");
    let file = file.display().to_string();
    for case in reference["cases"].as_array().expect("a list") {
        let context = case["context"].to_string();
        for backend in ["auto", "candle"] {
            let found = home.json(&[
                "bench",
                "--model",
                &model,
                "--perplexity",
                &file,
                "--context",
                &context,
                "--backend",
                backend,
            ]);
            assert_eq!((&found["n_scored"], &found["n_tokens"]), (&case["n_scored"], &reference["n_tokens"]));
            for name in ["nll", "perplexity"] {
                let (found, expected) = (found[name].as_f64().expect("one"), case[name].as_f64().expect("one"));
                assert!((found / expected - 1.0).abs() < 1e-3, "{backend}, {context}: {name} {found}, not {expected}");
            }
        }
    }
    let markdown = text(&home.run(&["bench", "--model", &model, "--perplexity", &file]).stdout);
    assert!(markdown.contains("| perplexity |") && markdown.contains(" ± "), "{markdown}");
}

#[test]
fn a_text_too_short_or_missing_has_no_perplexity() {
    let home = Home::new();
    let model = tiny_model();
    let file = home.path().join("empty.txt");
    std::fs::write(&file, "").expect("it can be written");
    let run = |file: &str| home.run(&["bench", "--model", &model, "--perplexity", file, "--output", "json"]);
    let empty = run(&file.display().to_string());
    assert_eq!(empty.status.code(), Some(2));
    assert!(parse(&empty)["error"]["hint"].as_str().is_some_and(|hint| hint.contains("longer")));
    let missing = run("/nowhere/text.txt");
    assert_eq!(missing.status.code(), Some(1));
    assert!(parse(&missing)["error"]["message"].as_str().is_some_and(|message| message.contains("/nowhere/text.txt")));
}
