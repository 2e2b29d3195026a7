//! The other forms: Anthropic's messages, OpenAI's responses.

use serde_json::{Value, json};

use crate::support::{Events, MODEL, Service, chat, with};

fn message(extra: Value) -> Value {
    let messages = json!([{ "role": "user", "content": [{ "type": "text", "text": "The light was" }] }]);
    with(json!({ "model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 12 }), extra)
}

fn parse(events: Events) -> Vec<(String, Value)> {
    let parsed = |(name, data): (Option<String>, String)| {
        let data: Value = serde_json::from_str(&data).expect("an event's data is JSON");
        let name = name.expect("an event has a name");
        assert_eq!(data["type"], name);
        (name, data)
    };
    events.map(parsed).collect()
}

#[test]
fn a_message_is_answered() {
    let service = Service::new();
    let before = service.balance();
    let reply = service.post("/v1/messages", &message(json!({ "system": "Be brief." })));
    let answer = reply.ok();
    assert_eq!((&answer["type"], &answer["role"]), (&json!("message"), &json!("assistant")));
    assert_eq!(answer["content"][0]["type"], "text");
    let count = |name: &str| answer["usage"][name].as_i64().expect("a count");
    let total = count("input_tokens") + count("cache_read_input_tokens") + count("output_tokens");
    assert_eq!(before - service.balance(), total);
    assert_eq!(answer["tokrun"]["debited"], total);
    let counted =
        service.post("/v1/messages/count_tokens", &message(json!({ "system": "Be brief.", "max_tokens": null })));
    assert_eq!(counted.ok()["input_tokens"], count("input_tokens") + count("cache_read_input_tokens"));
    let error = service.post("/v1/messages", &message(json!({ "max_tokens": null })));
    assert_eq!((error.status, &error.json()["error"]["type"]), (400, &json!("invalid_request_error")));
    let error = service.post("/v1/messages", &message(json!({ "model": "other" })));
    assert_eq!((error.status, &error.json()["error"]["type"]), (404, &json!("not_found_error")));
}

#[test]
fn a_message_streams_in_anthropics_events() {
    let service = Service::new();
    let whole = service.post("/v1/messages", &message(json!({}))).ok();
    let before = service.balance();
    let events = parse(service.stream("/v1/messages", &message(json!({ "stream": true }))));
    let names: Vec<&str> =
        events.iter().map(|(name, _)| name.as_str()).filter(|name| *name != "content_block_delta").collect();
    assert_eq!(
        names,
        ["message_start", "content_block_start", "ping", "content_block_stop", "message_delta", "message_stop"]
    );
    let text: String = events.iter().filter_map(|(_, event)| event["delta"]["text"].as_str()).collect();
    assert_eq!(whole["content"][0]["text"], text);
    let end = &events[events.len() - 2].1;
    assert_eq!(end["delta"]["stop_reason"], whole["stop_reason"]);
    let usage = &end["usage"];
    let count = |name: &str| usage[name].as_i64().expect("a count");
    let total = count("input_tokens") + count("cache_read_input_tokens") + count("output_tokens");
    assert_eq!(before - service.balance(), total);
}

#[test]
fn the_stop_sequence_that_ended_a_message_is_named() {
    let service = Service::new();
    let whole = service.post("/v1/messages", &message(json!({ "max_tokens": 40 }))).ok();
    let text = whole["content"][0]["text"].as_str().expect("it is text");
    let stop: String = text.chars().skip(3).take(2).collect();
    let answer = service.post("/v1/messages", &message(json!({ "stop_sequences": ["zzz", stop] }))).ok();
    assert_eq!((&answer["stop_reason"], &answer["stop_sequence"]), (&json!("stop_sequence"), &json!(stop)));
}

#[test]
fn a_response_is_given_and_streamed() {
    let service = Service::new();
    let request = |extra: Value| {
        with(json!({ "model": MODEL, "input": "The light was", "temperature": 0, "max_output_tokens": 12 }), extra)
    };
    let before = service.balance();
    let whole = service.post("/v1/responses", &request(json!({}))).ok();
    assert_eq!(whole["object"], "response");
    assert_eq!(whole["usage"]["total_tokens"], before - service.balance());
    let text = &whole["output"][0]["content"][0]["text"];
    let as_chat = service.post("/v1/chat/completions", &chat(json!({ "ignore_eos": null }))).ok();
    assert_eq!(*text, as_chat["choices"][0]["message"]["content"]);
    assert_eq!(
        whole["status"],
        if as_chat["choices"][0]["finish_reason"] == "stop" { "completed" } else { "incomplete" }
    );

    let events = parse(service.stream("/v1/responses", &request(json!({ "stream": true }))));
    let numbers: Vec<_> = events.iter().map(|(_, event)| event["sequence_number"].as_u64()).collect();
    assert_eq!(numbers, (0..events.len() as u64).map(Some).collect::<Vec<_>>());
    let streamed: String = events.iter().filter_map(|(_, event)| event["delta"].as_str()).collect();
    assert_eq!(*text, streamed);
    let last = &events[events.len() - 1].1["response"];
    assert_eq!(last["output"][0]["content"][0]["text"], *text);
    assert_eq!(last["status"], whole["status"]);

    for (extra, param) in [
        (json!({ "previous_response_id": "resp_1" }), "previous_response_id"),
        (json!({ "store": true }), "store"),
        (json!({ "tools": [{ "type": "web_search" }] }), "tools"),
        (json!({ "input": [] }), "input"),
    ] {
        let reply = service.post("/v1/responses", &request(extra));
        assert_eq!((reply.status, &reply.json()["error"]["param"]), (400, &json!(param)), "{}", reply.text);
    }
    let turns = json!([
        { "role": "user", "content": "Hello" },
        { "type": "message", "role": "assistant", "id": "msg_1", "status": "completed",
          "content": [{ "type": "output_text", "text": "Hi", "annotations": [] }] },
        { "role": "user", "content": [{ "type": "input_text", "text": "The light was" }] },
    ]);
    service.post("/v1/responses", &request(json!({ "input": turns, "instructions": "Be brief." }))).ok();
}
