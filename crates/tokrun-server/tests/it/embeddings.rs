//! Vectors of texts: what comes back, and what it costs.

use std::path::Path;

use serde_json::{Value, json};
use tokrun_ledger::NewKey;
use tokrun_server::ServerOptions;

use crate::support::{Choices, EMBEDDER, MODEL, Reply, Service, chat};

fn service() -> Service {
    Service::with(Choices { embeds: true, ..Choices::default() })
}

fn with_balance(balance: u64) -> Service {
    Service::with(Choices { embeds: true, balance, ..Choices::default() })
}

fn embed(service: &Service, extra: Value) -> Reply {
    service.post("/v1/embeddings", &crate::support::with(json!({ "model": EMBEDDER, "input": "one" }), extra))
}

fn reference() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/embed-bert/reference.json");
    serde_json::from_str(&std::fs::read_to_string(path).expect("it is committed")).expect("it is JSON")
}

fn vectors(body: &Value) -> Vec<Vec<f64>> {
    let data = body["data"].as_array().expect("it is a list");
    let vector = |(index, entry): (usize, &Value)| {
        assert_eq!((&entry["object"], &entry["index"]), (&json!("embedding"), &json!(index)));
        entry["embedding"].as_array().expect("numbers").iter().map(|value| value.as_f64().expect("a number")).collect()
    };
    data.iter().enumerate().map(vector).collect()
}

fn distance(left: &[f64], right: &[Value]) -> f64 {
    assert_eq!(left.len(), right.len());
    let pairs = left.iter().zip(right);
    pairs.map(|(left, right)| (left - right.as_f64().expect("a number")).abs()).fold(0.0, f64::max)
}

#[test]
fn texts_and_their_tokens_have_the_reference_vectors_and_cost_their_tokens() {
    let (service, reference) = (service(), reference());
    let tokens: usize =
        reference["token_ids"].as_array().expect("a list").iter().map(|ids| ids.as_array().map_or(0, Vec::len)).sum();
    for (round, input) in [&reference["texts"], &reference["token_ids"]].into_iter().enumerate() {
        let reply = embed(&service, json!({ "input": input, "user": "cyd" }));
        let body = reply.ok();
        assert_eq!((&body["object"], &body["model"]), (&json!("list"), &json!(EMBEDDER)));
        for (vector, expected) in vectors(&body).iter().zip(reference["vectors"].as_array().expect("a list")) {
            assert!(distance(vector, expected.as_array().expect("numbers")) < 1e-4, "{input}");
        }
        assert_eq!(body["usage"], json!({ "prompt_tokens": tokens, "total_tokens": tokens }));
        assert_eq!(reply.headers["x-tokrun-debited"], tokens.to_string());
        let left = 1_000_000 - (round + 1) * tokens;
        assert_eq!(reply.headers["x-tokrun-balance"], left.to_string());
        assert_eq!(service.balance(), left as i64);
        assert_eq!(service.logged(), ((round + 1) as u64 * tokens as u64, 0));
    }
    assert_eq!(service.metric("vllm:prompt_tokens_total"), 2.0 * tokens as f64);
    let me = service.get("/v1/usage/me").ok();
    assert_eq!(me["this_month"]["requests"], 2);
}

#[test]
fn one_text_alone_is_a_list_of_one() {
    let service = service();
    for input in [json!("one"), json!(["one"]), json!([2, 144, 3]), json!([[2, 144, 3]])] {
        let body = embed(&service, json!({ "input": input })).ok();
        assert_eq!(vectors(&body).len(), 1, "{input}");
        assert_eq!(body["usage"]["prompt_tokens"], 3, "{input}");
    }
}

#[test]
fn base64_holds_the_same_numbers() {
    let service = service();
    let numbers = vectors(&embed(&service, json!({})).ok());
    let body = embed(&service, json!({ "encoding_format": "base64" })).ok();
    let text = body["data"][0]["embedding"].as_str().expect("it is text");
    use base64::Engine;
    let bytes = base64::prelude::BASE64_STANDARD.decode(text).expect("it is base64");
    let decoded: Vec<f64> =
        bytes.chunks_exact(4).map(|bytes| f64::from(f32::from_le_bytes(bytes.try_into().expect("four")))).collect();
    assert_eq!(decoded.len(), 24);
    for (decoded, number) in decoded.iter().zip(&numbers[0]) {
        assert_eq!(*decoded as f32, *number as f32);
    }
}

#[test]
fn vectors_are_cut_short_where_the_model_was_made_for_it() {
    let service = service();
    let whole = &vectors(&embed(&service, json!({})).ok())[0];
    let short = &vectors(&embed(&service, json!({ "dimensions": 8 })).ok())[0];
    let length = whole[..8].iter().map(|value| value * value).sum::<f64>().sqrt();
    assert_eq!(short.len(), 8);
    for (short, whole) in short.iter().zip(whole) {
        assert!((short - whole / length).abs() < 1e-6, "{short} {whole}");
    }
    assert_eq!(vectors(&embed(&service, json!({ "dimensions": 24 })).ok())[0].len(), 24);
    for refused in [0, 9, 25] {
        let reply = embed(&service, json!({ "dimensions": refused }));
        assert_eq!((reply.status, &reply.json()["error"]["param"]), (400, &json!("dimensions")), "{refused}");
    }
}

#[test]
fn wrong_requests_are_told_what_is_wrong_and_cost_nothing() {
    let service = service();
    let long = "one ".repeat(63);
    let cases = [
        (json!({ "model": "other" }), 404, "model", Some("model_not_found")),
        (json!({ "model": MODEL }), 400, "model", Some("unsupported_model")),
        (json!({ "flavour": 1 }), 400, "flavour", None),
        (json!({ "encoding_format": "int8" }), 400, "encoding_format", None),
        (json!({ "input": "" }), 400, "input", None),
        (json!({ "input": [] }), 400, "input", None),
        (json!({ "input": ["one", ""] }), 400, "input", None),
        (json!({ "input": [[5], []] }), 400, "input", None),
        (json!({ "input": 5 }), 400, "input", None),
        (json!({ "input": [[200]] }), 400, "input", None),
        (json!({ "input": vec!["one"; 2049] }), 400, "input", None),
        (json!({ "input": ["one", long] }), 400, "input", Some("context_length_exceeded")),
        (json!({ "input": vec![5; 65] }), 400, "input", Some("context_length_exceeded")),
        (json!({ "input": "x".repeat(100_000) }), 400, "input", Some("context_length_exceeded")),
    ];
    for (extra, status, param, code) in cases {
        let reply = embed(&service, extra.clone());
        let error = &reply.json()["error"];
        let what = extra.to_string().chars().take(80).collect::<String>();
        assert_eq!(
            (reply.status, &error["param"], error["code"].as_str()),
            (status, &json!(param), code),
            "{what}: {error}"
        );
    }
    let error = embed(&service, json!({ "input": ["one", long] })).json();
    assert!(
        error["error"]["message"].as_str().is_some_and(|message| message.contains("input 1 has 65 tokens")),
        "{error}"
    );
    let spoken = service.post("/v1/chat/completions", &chat(json!({ "model": EMBEDDER })));
    assert_eq!((spoken.status, &spoken.json()["error"]["code"]), (400, &json!("unsupported_model")));
    let text = json!({ "model": EMBEDDER, "max_tokens": 3, "messages": [{ "role": "user", "content": "hi" }] });
    assert_eq!(service.post("/v1/messages", &text).status, 400);
    assert_eq!((service.balance(), service.logged()), (1_000_000, (0, 0)));
}

#[test]
fn an_allowance_pays_to_its_last_token_and_no_further() {
    let service = with_balance(7);
    embed(&service, json!({ "input": ["one", "one"] })).ok();
    let refused = embed(&service, json!({}));
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (429, &json!("insufficient_quota")));
    assert_eq!(refused.headers["x-should-retry"], "false");
    assert_eq!((service.balance(), service.logged()), (1, (6, 0)));
    // What is left pays for exactly one token.
    assert_eq!(embed(&service, json!({ "input": [5] })).ok()["usage"]["prompt_tokens"], 1);
    assert_eq!(service.balance(), 0);
}

#[test]
fn keys_reach_embedding_models_as_they_do_others() {
    let service = Service::with(Choices { embeds: true, options: ServerOptions::default(), ..Choices::default() });
    assert_eq!(embed(&service, json!({})).status, 401);
    let scoped = |name: &str, models: &str| {
        service.key(NewKey { models: Some(models.parse().expect("a scope")), ..NewKey::new("ada", name) })
    };
    let (embeds, speaks) = (scoped("embeds", "tiny-e*"), scoped("speaks", MODEL));
    let body = json!({ "model": EMBEDDER, "input": "one" });
    service.with_key(&embeds, "POST", "/v1/embeddings", Some(&body)).ok();
    assert_eq!(service.with_key(&speaks, "POST", "/v1/embeddings", Some(&body)).status, 404);
    let listed = |secret: &str| {
        let list = service.with_key(secret, "GET", "/v1/models", None).ok();
        list["data"].as_array().expect("a list").iter().map(|model| model["id"].clone()).collect::<Vec<_>>()
    };
    assert_eq!((listed(&embeds), listed(&speaks)), (vec![json!(EMBEDDER)], vec![json!(MODEL)]));
    let spoken = service.with_key(&speaks, "POST", "/v1/chat/completions", Some(&chat(json!({ "model": EMBEDDER }))));
    assert_eq!(spoken.status, 404, "what a key may not see is not told of");
    assert_eq!(service.with_key(&embeds, "GET", &format!("/v1/models/{EMBEDDER}"), None).ok()["max_model_len"], 64);
}

#[test]
fn texts_are_tokenized_as_they_are_embedded() {
    let service = service();
    let body =
        service.post("/tokenize", &json!({ "model": EMBEDDER, "prompt": "one", "return_token_strs": true })).ok();
    assert_eq!(body["tokens"], json!([2, 144, 3]));
    assert_eq!(body["token_strs"], json!(["[CLS]", "one", "[SEP]"]));
    let bare = json!({ "model": EMBEDDER, "prompt": "one", "add_special_tokens": false });
    assert_eq!(service.post("/tokenize", &bare).ok()["count"], 1);
    let turns = json!({ "model": EMBEDDER, "messages": [{ "role": "user", "content": "hi" }] });
    assert_eq!(service.post("/tokenize", &turns).status, 400);
    assert_eq!(service.post("/detokenize", &json!({ "model": EMBEDDER, "tokens": [2] })).status, 400);
}

#[test]
fn many_clients_at_once_pay_exactly_what_they_are_told() {
    let service = with_balance(2000);
    let told = std::sync::atomic::AtomicU64::new(0);
    let refused = std::sync::atomic::AtomicU64::new(0);
    std::thread::scope(|scope| {
        for client in 0..8_usize {
            let (service, told, refused) = (&service, &told, &refused);
            scope.spawn(move || {
                for round in 1..=20_usize {
                    let texts = vec!["one two three ".repeat(1 + (client * round) % 5); 1 + round % 4];
                    let reply = embed(service, json!({ "input": texts }));
                    match reply.status {
                        200 => told.fetch_add(
                            reply.json()["usage"]["prompt_tokens"].as_u64().expect("a count"),
                            std::sync::atomic::Ordering::Relaxed,
                        ),
                        429 => refused.fetch_add(1, std::sync::atomic::Ordering::Relaxed),
                        status => panic!("{status}: {}", reply.text),
                    };
                }
            });
        }
    });
    let told = told.into_inner();
    assert!(refused.into_inner() > 0, "the allowance runs out");
    assert_eq!((service.balance() as u64, service.logged()), (2000 - told, (told, 0)));
    assert_eq!(service.metric("tokrun_debited_tokens_total") as u64, told);
}

#[test]
fn what_comes_too_late_is_refused_and_costs_nothing() {
    let service = service();
    let body = json!({ "model": EMBEDDER, "input": "one" });
    let reply = service.post_with("/v1/embeddings", &body, &[("x-tokrun-deadline-ms", "0")]);
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (504, &json!("deadline_exceeded")));
    assert_eq!((service.balance(), service.logged()), (1_000_000, (0, 0)));
}
