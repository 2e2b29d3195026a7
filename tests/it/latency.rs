//! Speed and latency per user: what `usage` says, recomputed from what each request said of itself.

use serde_json::Value;

use crate::support::{Home, tiny_model};

const REQUESTS: usize = 20;

#[test]
fn usage_by_user_agrees_with_the_requests_themselves() {
    let home = Home::new();
    let model = tiny_model();
    for (index, user) in ["ada", "ben", "cleo"].into_iter().enumerate() {
        home.wallet(user, 1_000_000);
        let tokens = (10 + 7 * index).to_string();
        let answers: Vec<Value> = (0..REQUESTS)
            .map(|_| {
                home.json(&[
                    "generate",
                    "Hello",
                    "--model",
                    &model,
                    "--user",
                    user,
                    "--ignore-eos",
                    "--max-tokens",
                    &tokens,
                ])
            })
            .collect();
        check(&home, user, &answers);
    }
    let by_model = home.json(&["usage", "--by", "model"]);
    assert_eq!(by_model[0]["requests"], 3 * REQUESTS);
    let by_day = home.json(&["usage", "--by", "day"]);
    let days: u64 =
        by_day.as_array().expect("a list").iter().map(|day| day["requests"].as_u64().expect("a count")).sum();
    assert_eq!(days, 3 * REQUESTS as u64);
}

fn check(home: &Home, user: &str, answers: &[Value]) {
    let usage = home.json(&["usage", "--by", "user"]);
    let row =
        usage.as_array().expect("a list").iter().find(|row| row["user"] == user).expect("the user is there").clone();
    let sum = |field: &str| answers.iter().map(|answer| answer["usage"][field].as_u64().expect("a count")).sum::<u64>();
    assert_eq!(row["requests"], REQUESTS);
    assert_eq!(row["prompt_tokens"], sum("prompt_tokens"));
    assert_eq!(row["completion_tokens"], sum("completion_tokens"));
    assert_eq!(row["total_tokens"], sum("total_tokens"));

    let mut ttft: Vec<f64> = answers.iter().map(|answer| answer["timing"]["ttft_ms"].as_f64().expect("ms")).collect();
    let mut itl: Vec<f64> = answers
        .iter()
        .flat_map(|answer| answer["timing"]["itl_us"].as_array().expect("a list").clone())
        .map(|gap| gap.as_f64().expect("µs") / 1e3)
        .collect();
    for (name, share) in [("p50", 0.50), ("p95", 0.95), ("p99", 0.99)] {
        assert_same_bucket(&row["ttft_ms"][name], percentile(&mut ttft, share), &format!("{user} ttft {name}"));
        assert_same_bucket(&row["itl_ms"][name], percentile(&mut itl, share), &format!("{user} itl {name}"));
    }

    let total_s: f64 =
        answers.iter().map(|answer| answer["timing"]["total_ms"].as_f64().expect("ms")).sum::<f64>() / 1e3;
    let decode_s: f64 =
        answers.iter().map(|answer| answer["timing"]["decode_ms"].as_f64().expect("ms")).sum::<f64>() / 1e3;
    let tokens = sum("completion_tokens") as f64;
    assert_close(&row["tokens_per_s"], tokens / total_s, "tokens_per_s");
    assert_close(&row["decode_tokens_per_s"], (tokens - answers.len() as f64) / decode_s, "decode_tokens_per_s");
}

/// Nearest rank.
fn percentile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((share * values.len() as f64).ceil() as usize).saturating_sub(1)]
}

/// A bucket at three significant digits is at most a thousandth wide; below a millisecond the unit of 1 µs is.
fn assert_same_bucket(said: &Value, expected_ms: f64, what: &str) {
    let said = said.as_f64().unwrap_or_else(|| panic!("{what} is missing"));
    let bucket_ms = (expected_ms / 1000.0).max(0.001) * 1.001;
    assert!((said - expected_ms).abs() <= bucket_ms, "{what}: usage says {said} ms, the requests {expected_ms} ms");
}

fn assert_close(said: &Value, expected: f64, what: &str) {
    let said = said.as_f64().unwrap_or_else(|| panic!("{what} is missing"));
    assert!((said / expected - 1.0).abs() < 1e-3, "{what}: usage says {said}, the requests {expected}");
}
