//! What clients are told when something is wrong, and that nothing is booked then.

use serde_json::{Value, json};
use tokrun_ledger::{Closing, LimitScope, LimitSpan, NewLimit, Quota, RecurringGrant};
use tokrun_server::{ServerOptions, StatusCode};

use crate::support::{Choices, MODEL, Reply, Service, chat};

fn error(reply: &Reply, status: u16) -> Value {
    assert_eq!(reply.status, status, "{}", reply.text);
    let error = reply.json()["error"].clone();
    assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{error}");
    assert!(reply.headers.contains_key("x-request-id"));
    error
}

#[test]
fn wrong_requests_are_told_what_is_wrong() {
    let service = Service::new();
    let long = "light ".repeat(500);
    let cases = [
        (chat(json!({ "model": "other" })), 404, Some("model"), Some("model_not_found")),
        (chat(json!({ "flavour": 1 })), 400, Some("flavour"), None),
        (chat(json!({ "temperature": "hot" })), 400, Some("temperature"), None),
        (chat(json!({ "temperature": 3 })), 400, Some("temperature"), None),
        (chat(json!({ "temperature": -1 })), 400, Some("temperature"), None),
        (chat(json!({ "top_p": 1.5 })), 400, Some("top_p"), None),
        (chat(json!({ "max_tokens": 0 })), 400, Some("max_tokens"), None),
        (chat(json!({ "max_completion_tokens": 5 })), 400, Some("max_tokens"), None),
        (chat(json!({ "n": 0 })), 400, Some("n"), None),
        (chat(json!({ "n": 1000 })), 400, Some("n"), None),
        (chat(json!({ "top_logprobs": 3 })), 400, Some("top_logprobs"), None),
        (chat(json!({ "logprobs": true, "top_logprobs": 21 })), 400, Some("top_logprobs"), None),
        (chat(json!({ "stop": "" })), 400, Some("stop"), None),
        (chat(json!({ "logit_bias": { "5": 200 } })), 400, Some("logit_bias"), None),
        (chat(json!({ "stream_options": { "include_usage": true } })), 400, Some("stream_options"), None),
        (chat(json!({ "messages": [] })), 400, Some("messages"), None),
        (chat(json!({ "messages": [{ "role": "wizard", "content": "hi" }] })), 400, Some("messages"), None),
        (
            chat(json!({ "messages": [{ "role": "user", "content": [{ "type": "image_url" }] }] })),
            400,
            Some("messages"),
            None,
        ),
        (
            chat(json!({ "messages": [{ "role": "user", "content": long }] })),
            400,
            Some("messages"),
            Some("context_length_exceeded"),
        ),
        (chat(json!({ "store": true })), 400, Some("store"), Some("unsupported_parameter")),
        (chat(json!({ "audio": {} })), 400, Some("audio"), Some("unsupported_parameter")),
        (
            chat(
                json!({ "ignore_eos": false, "response_format": { "type": "json_schema", "json_schema": { "name": "x", "schema": { "not": {} } } } }),
            ),
            400,
            Some("response_format"),
            None,
        ),
    ];
    for (request, status, param, code) in cases {
        let error = error(&service.post("/v1/chat/completions", &request), status);
        assert_eq!(error["type"], "invalid_request_error", "{request}");
        assert_eq!((error["param"].as_str(), error["code"].as_str()), (param, code), "{request}: {error}");
    }
    assert_eq!(service.balance(), 1_000_000);
    assert_eq!(service.ledger.health().expect("it can be read").entries, 1, "the grant, and nothing else");
    assert!(service.metric("tokrun_refusals_total") > 15.0);
}

#[test]
fn what_is_no_request_is_told_so() {
    let service = Service::new();
    for body in [&b"{"[..], b"", b"[]", b"{\"model\": \"\xff\xfe\"}", b"{} trailing"] {
        error(&service.post_bytes("/v1/chat/completions", body), 400);
    }
    assert_eq!(error(&service.get("/v1/nothing"), 404)["code"], "unknown_url");
    assert_eq!(error(&service.get("/v1/../../etc/passwd"), 404)["code"], "unknown_url");
    assert_eq!(error(&service.get("/v1/chat/completions"), 405)["code"], "method_not_allowed");
}

#[test]
fn an_empty_wallet_is_told_its_balance_and_its_next_refill() {
    let service = Service::with(Choices { balance: 3, ..Choices::default() });
    let mut monthly = RecurringGrant::new("ada", "500".parse().expect("an amount"), tokrun_ledger::Period::Month);
    monthly.start = Some(jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24));
    service.ledger.grant_every(monthly).expect("it can be agreed");
    let reply = service.post("/v1/chat/completions", &chat(json!({ "stream": true })));
    let error = error(&reply, 429);
    assert_eq!(error["type"], "insufficient_quota");
    assert_eq!(error["code"], "insufficient_quota");
    assert_eq!(error["tokrun"]["balance"], 3);
    assert_eq!(error["tokrun"]["refill"]["amount"], 500);
    assert_eq!(reply.headers["x-should-retry"], "false");
    assert_eq!(service.balance(), 3);
}

#[test]
fn the_operator_may_choose_another_status() {
    let options = ServerOptions {
        payer: Some("ada".to_owned()),
        exhausted_status: StatusCode::PAYMENT_REQUIRED,
        ..ServerOptions::default()
    };
    let service = Service::with(Choices { balance: 0, options, ..Choices::default() });
    let error = error(&service.post("/v1/chat/completions", &chat(json!({}))), 402);
    assert_eq!(error["type"], "insufficient_quota");
    let reply = service.post(
        "/v1/messages",
        &json!({ "model": MODEL, "max_tokens": 5, "messages": [{ "role": "user", "content": "hi" }] }),
    );
    assert_eq!((reply.status, &reply.json()["error"]["type"]), (402, &json!("billing_error")));
}

#[test]
fn an_allowance_that_ends_on_the_way_ends_the_answer() {
    let prompt_tokens = {
        let service = Service::new();
        service.post("/v1/chat/completions", &chat(json!({}))).ok()["usage"]["prompt_tokens"].as_u64().expect("a count")
    };
    let service = Service::with(Choices { balance: prompt_tokens + 7, ..Choices::default() });
    let answer = service.post("/v1/chat/completions", &chat(json!({ "max_tokens": 50 }))).ok();
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["tokrun"]["finish_reason"], "allowance");
    assert_eq!(answer["usage"]["completion_tokens"], 7);
    assert_eq!(answer["tokrun"]["balance"], 0);
    assert_eq!(service.balance(), 0);
}

#[test]
fn of_several_answers_the_paid_ones_are_delivered() {
    let prompt_tokens = {
        let service = Service::new();
        service.post("/v1/chat/completions", &chat(json!({}))).ok()["usage"]["prompt_tokens"].as_u64().expect("a count")
    };
    let service = Service::with(Choices { balance: prompt_tokens + 12, ..Choices::default() });
    let answer = service.post("/v1/chat/completions", &chat(json!({ "n": 2, "stop": null }))).ok();
    let debited = answer["tokrun"]["debited"].as_u64().expect("a sum");
    assert_eq!(answer["tokrun"]["finish_reason"], "allowance");
    assert_eq!(answer["usage"]["total_tokens"], debited);
    assert_eq!(service.balance().cast_unsigned(), prompt_tokens + 12 - debited);
}

#[test]
fn limits_are_told_in_headers_and_end_in_429() {
    let service = Service::new();
    let scope = LimitScope { wallet: Some("ada".to_owned()), ..LimitScope::default() };
    service.ledger.set_limit(NewLimit::new(scope.clone(), Quota::Requests(2), LimitSpan::Hour)).expect("it can be set");
    service.ledger.set_limit(NewLimit::new(scope, Quota::Tokens(100_000), LimitSpan::Day)).expect("it can be set");
    let first = service.post("/v1/chat/completions", &chat(json!({})));
    first.ok();
    assert_eq!(first.headers["x-ratelimit-limit-requests"], "2");
    assert_eq!(first.headers["x-ratelimit-remaining-requests"], "1");
    assert_eq!(first.headers["x-ratelimit-limit-tokens"], "100000");
    assert!(first.headers["x-ratelimit-reset-requests"].ends_with('s'));
    service.post("/v1/chat/completions", &chat(json!({}))).ok();
    let reply = service.post("/v1/chat/completions", &chat(json!({})));
    let error = error(&reply, 429);
    assert_eq!(error["code"], "rate_limit_exceeded");
    assert!(reply.headers["retry-after"].parse::<u64>().is_ok_and(|wait_s| wait_s <= 3600));
    assert!(error["tokrun"]["limit"]["what"].as_str().is_some_and(|what| what.contains("requests")));
}

#[test]
fn a_frozen_or_closed_wallet_is_forbidden() {
    let service = Service::new();
    service.ledger.freeze("ada", None).expect("it can be frozen");
    assert_eq!(error(&service.post("/v1/chat/completions", &chat(json!({}))), 403)["code"], "wallet_frozen");
    service.ledger.thaw("ada", None).expect("it can be thawed");
    service
        .ledger
        .close(Closing { wallet: "ada".to_owned(), to: None, idempotency_key: None })
        .expect("it can be closed");
    assert_eq!(error(&service.post("/v1/chat/completions", &chat(json!({}))), 403)["code"], "wallet_closed");
}

#[test]
fn without_a_payer_a_key_is_needed() {
    let service = Service::with(Choices { options: ServerOptions::default(), ..Choices::default() });
    for path in ["/v1/models", "/v1/models/tiny"] {
        assert_eq!(error(&service.get(path), 401)["code"], "invalid_api_key");
    }
    assert_eq!(error(&service.post("/v1/chat/completions", &chat(json!({}))), 401)["code"], "invalid_api_key");
    let reply = service.post("/v1/messages", &json!({}));
    assert_eq!((reply.status, &reply.json()["error"]["type"]), (401, &json!("authentication_error")));
    assert_eq!(service.get("/health").status, 200);
}

#[test]
fn a_full_queue_is_told_to_come_back() {
    let choices = Choices { running_max: 1, waiting_max: 1, context_tokens: 16_384, ..Choices::default() };
    let service = Service::with(choices);
    let endless = chat(json!({ "max_tokens": 16_000, "stream": true }));
    let mut first = service.stream("/v1/chat/completions", &endless);
    first.next().expect("it begins");
    let second = service.stream("/v1/chat/completions", &endless);
    let reply = service.post("/v1/chat/completions", &chat(json!({})));
    assert_eq!(error(&reply, 503)["code"], "overloaded");
    assert_eq!(reply.headers["retry-after"], "1");
    assert_eq!(service.ledger.health().expect("it can be read").open_requests, 2, "nothing was held for the third");
    drop((first, second));
}
