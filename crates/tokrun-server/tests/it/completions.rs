//! Answers that are sent as a whole.

use serde_json::{Value, json};

use crate::support::{MODEL, Service, chat};

#[test]
fn what_is_delivered_is_debited_and_reported() {
    let service = Service::new();
    let before = service.balance();
    let reply = service.post("/v1/chat/completions", &chat(json!({})));
    let answer = reply.ok();
    let usage = &answer["usage"];
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["model"], MODEL);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["choices"][0]["message"]["role"], "assistant");
    assert_eq!(usage["completion_tokens"], 12);
    let total = usage["total_tokens"].as_i64().expect("a count");
    assert_eq!(before - service.balance(), total, "a credit a token");
    assert_eq!(answer["tokrun"]["debited"], total);
    assert_eq!(answer["tokrun"]["balance"], service.balance());
    assert_eq!(reply.headers["x-tokrun-debited"], total.to_string());
    assert_eq!(reply.headers["x-tokrun-balance"], service.balance().to_string());
    assert_eq!(answer["id"], format!("chatcmpl-{}", reply.headers["x-request-id"]));
    assert_eq!(service.logged(), (usage["prompt_tokens"].as_u64().expect("a count"), 12));
    assert_eq!(service.metric("vllm:prompt_tokens_total") as u64, usage["prompt_tokens"].as_u64().expect("a count"));
    assert_eq!(service.metric("vllm:generation_tokens_total"), 12.0);
    assert_eq!(service.metric("tokrun_debited_credits_total") as i64, total);
}

#[test]
fn a_request_says_how_to_sample() {
    let service = Service::new();
    let text = |extra: Value| {
        let answer = service.post("/v1/chat/completions", &chat(extra)).ok();
        answer["choices"][0]["message"]["content"].as_str().expect("it is text").to_owned()
    };
    let greedy = text(json!({}));
    assert_eq!(text(json!({ "top_k": 1, "temperature": 1.0 })), greedy);
    let seeded = |seed: i64| text(json!({ "temperature": 2.0, "top_k": 0, "seed": seed }));
    assert_eq!(seeded(7), seeded(7));
    assert_ne!(seeded(7), seeded(8));
    let stop = greedy.chars().nth(4).expect("it is longer").to_string();
    let stopped = service.post("/v1/chat/completions", &chat(json!({ "stop": stop }))).ok();
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
    assert!(greedy.starts_with(stopped["choices"][0]["message"]["content"].as_str().expect("it is text")));
}

#[test]
fn several_answers_are_several_metered_requests() {
    let service = Service::new();
    let answer = service.post("/v1/chat/completions", &chat(json!({ "n": 3, "temperature": 1.5, "seed": 1 }))).ok();
    let choices = answer["choices"].as_array().expect("a list");
    let indices: Vec<_> = choices.iter().map(|choice| choice["index"].as_u64()).collect();
    assert_eq!(indices, [Some(0), Some(1), Some(2)]);
    assert_ne!(choices[0]["message"]["content"], choices[1]["message"]["content"]);
    assert_eq!(answer["usage"]["completion_tokens"], 36);
    let (prompt, output) = service.logged();
    assert_eq!(answer["usage"]["prompt_tokens"], prompt);
    assert_eq!(output, 36);
}

#[test]
fn log_probabilities_are_those_of_the_text() {
    let service = Service::new();
    let request = chat(json!({ "logprobs": true, "top_logprobs": 2 }));
    let answer = service.post("/v1/chat/completions", &request).ok();
    let choice = &answer["choices"][0];
    let content = choice["logprobs"]["content"].as_array().expect("a list");
    let bytes: Vec<u8> = content
        .iter()
        .flat_map(|token| token["bytes"].as_array().expect("a list"))
        .map(|byte| u8::try_from(byte.as_u64().expect("a byte")).expect("a byte"))
        .collect();
    assert_eq!(String::from_utf8_lossy(&bytes), choice["message"]["content"].as_str().expect("it is text"));
    for token in content {
        let top = token["top_logprobs"].as_array().expect("a list");
        assert_eq!(top.len(), 2);
        assert_eq!(top[0]["token"], token["token"], "greedy takes the likeliest");
    }
}

#[test]
fn an_answer_can_be_held_to_a_schema() {
    let service = Service::new();
    let schema = json!({
        "type": "object",
        "properties": { "mood": { "enum": ["good", "bad"] } },
        "required": ["mood"],
        "additionalProperties": false,
    });
    let format = json!({ "type": "json_schema", "json_schema": { "name": "mood", "schema": schema, "strict": true } });
    let request = chat(json!({ "response_format": format, "ignore_eos": null, "max_tokens": 100 }));
    let answer = service.post("/v1/chat/completions", &request).ok();
    let text = answer["choices"][0]["message"]["content"].as_str().expect("it is text");
    let object: Value = serde_json::from_str(text).expect("it is JSON");
    assert!(object["mood"] == "good" || object["mood"] == "bad", "{text}");
}

#[test]
fn texts_and_tokens_are_continued() {
    let service = Service::new();
    let ask = |prompt: Value| {
        let request = json!({ "model": MODEL, "prompt": prompt, "temperature": 0, "ignore_eos": true });
        service.post("/v1/completions", &request).ok()
    };
    let one = ask(json!("The light"));
    assert_eq!(one["usage"]["completion_tokens"], 16, "as many as the reference service");
    let tokens = service.post("/tokenize", &json!({ "model": MODEL, "prompt": "The light" })).ok();
    assert_eq!(tokens["count"], one["usage"]["prompt_tokens"]);
    let of_tokens = ask(tokens["tokens"].clone());
    assert_eq!(of_tokens["choices"], one["choices"]);
    let several = ask(json!(["The light", "There"]));
    assert_eq!(several["choices"][0]["text"], one["choices"][0]["text"]);
    assert_eq!(several["choices"].as_array().map(Vec::len), Some(2));
    let back = service.post("/detokenize", &json!({ "tokens": tokens["tokens"] })).ok();
    assert_eq!(back["prompt"], "The light");
}

#[test]
fn models_are_listed_by_name() {
    let service = Service::new();
    let list = service.get("/v1/models").ok();
    assert_eq!(list["data"][0]["id"], MODEL);
    assert_eq!(list["data"][0]["max_model_len"], 128);
    assert_eq!(service.get("/v1/models/alias").ok()["id"], MODEL);
    assert_eq!(service.get("/v1/models/other").status, 404);
    assert_eq!(service.get("/health").ok()["status"], "ok");
    assert_eq!(service.get("/ready").ok()["status"], "ready");
    assert_eq!(service.get("/version").ok()["version"], env!("CARGO_PKG_VERSION"));
}
