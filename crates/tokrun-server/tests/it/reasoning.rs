//! Thoughts before an answer: told apart, counted, and priced by themselves.

use serde_json::{Value, json};
use tokrun_ledger::{Credits, Price};

use crate::support::{Choices, MODEL, Service, with};

const SAYS: &str = "<think>\nThe user asks. I know.\n</think>\n\nIt is blue.";

fn ask(extra: Value) -> Value {
    let messages = json!([{ "role": "user", "content": "Why?" }]);
    with(json!({ "model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 200 }), extra)
}

fn thinking() -> Service {
    let price = Price { reasoning: Credits::from_micro(3_000_000), ..Price::default() };
    Service::with(Choices { says: Some(SAYS.to_owned()), context_tokens: 512, price, ..Choices::default() })
}

#[test]
fn thoughts_are_told_apart_counted_and_priced() {
    let service = thinking();
    let before = service.balance();
    let answer = service.post("/v1/chat/completions", &ask(json!({}))).ok();
    let message = &answer["choices"][0]["message"];
    assert_eq!(message["reasoning_content"], "The user asks. I know.");
    assert_eq!(message["content"], "It is blue.");
    let usage = &answer["usage"];
    let count = |value: &Value| value.as_i64().expect("a count");
    let reasoning = count(&usage["completion_tokens_details"]["reasoning_tokens"]);
    // The tags are tokens of their own, so what is counted is exact.
    let thoughts = service.post("/tokenize", &json!({ "prompt": "<think>\nThe user asks. I know.\n</think>" })).ok();
    assert_eq!(reasoning, count(&thoughts["count"]));
    let paid = count(&usage["total_tokens"]) + 2 * reasoning;
    assert_eq!((before - service.balance(), &answer["tokrun"]["debited"]), (paid, &json!(paid)));
    let mut logged = 0;
    let visit = |request: &tokrun_ledger::ExportedRequest| {
        logged += request.reasoning_tokens;
        std::ops::ControlFlow::Continue(())
    };
    service.ledger.export_requests(None, None, visit).expect("the log can be read");
    assert_eq!(logged.cast_signed(), reasoning);
}

#[test]
fn thoughts_stream_before_the_answer() {
    let service = thinking();
    let events: Vec<(Option<String>, String)> =
        service.stream("/v1/chat/completions", &ask(json!({ "stream": true }))).collect();
    let (mut thoughts, mut words) = (String::new(), String::new());
    for (_, data) in events.iter().filter(|(_, data)| data != "[DONE]") {
        let chunk: Value = serde_json::from_str(data).expect("JSON");
        let delta = &chunk["choices"][0]["delta"];
        if let Some(text) = delta["reasoning_content"].as_str() {
            assert_eq!(words, "", "thoughts come first");
            thoughts.push_str(text);
        }
        words.push_str(delta["content"].as_str().unwrap_or_default());
    }
    assert_eq!((thoughts.as_str(), words.as_str()), ("The user asks. I know.", "It is blue."));
}

#[test]
fn what_holds_for_the_answer_does_not_hold_for_the_thoughts() {
    let service = thinking();
    let answer = service.post("/v1/chat/completions", &ask(json!({ "stop": ["asks", "blue"] }))).ok();
    let message = &answer["choices"][0]["message"];
    assert_eq!(
        (&message["reasoning_content"], &message["content"]),
        (&json!("The user asks. I know."), &json!("It is "))
    );
    let format =
        json!({ "type": "json_schema", "json_schema": { "name": "x", "schema": { "enum": ["red", "green"] } } });
    let answer = service.post("/v1/chat/completions", &ask(json!({ "response_format": format }))).ok();
    let message = &answer["choices"][0]["message"];
    assert_eq!(message["reasoning_content"], "The user asks. I know.");
    assert!(message["content"] == "\"red\"" || message["content"] == "\"green\"", "{message}");
}

#[test]
fn a_client_says_whether_to_think() {
    let service = thinking();
    // The template closes the thinking before it begins, and the model says what it says.
    for extra in
        [json!({ "reasoning_effort": "none" }), json!({ "chat_template_kwargs": { "enable_thinking": false } })]
    {
        let answer = service.post("/v1/chat/completions", &ask(extra)).ok();
        assert!(answer["choices"][0]["message"].get("reasoning_content").is_none(), "{answer}");
        assert_eq!(answer["usage"]["completion_tokens_details"]["reasoning_tokens"], 0);
    }
    service.post("/v1/chat/completions", &ask(json!({ "reasoning_effort": "high" }))).ok();
    let plain = Service::new();
    let reply = plain.post("/v1/chat/completions", &ask(json!({ "reasoning_effort": "high", "max_tokens": 4 })));
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (400, &json!("unsupported_parameter")));
    plain.post("/v1/chat/completions", &ask(json!({ "reasoning_effort": "none", "max_tokens": 4 }))).ok();
}

#[test]
fn messages_think_when_asked() {
    let service = thinking();
    let thinks = json!({ "thinking": { "type": "enabled", "budget_tokens": 1024 } });
    let answer = service.post("/v1/messages", &ask(thinks.clone())).ok();
    let content = &answer["content"];
    assert_eq!(content[0], json!({ "type": "thinking", "thinking": "The user asks. I know.", "signature": "" }));
    assert_eq!(content[1], json!({ "type": "text", "text": "It is blue." }));
    let events: Vec<(Option<String>, String)> =
        service.stream("/v1/messages", &with(ask(thinks), json!({ "stream": true }))).collect();
    let events: Vec<Value> = events.iter().map(|(_, data)| serde_json::from_str(data).expect("JSON")).collect();
    let thoughts: String = events.iter().filter_map(|event| event["delta"]["thinking"].as_str()).collect();
    assert_eq!(thoughts, "The user asks. I know.");
    let turns = json!([{ "role": "user", "content": "Why?" }, { "role": "assistant", "content": content }, { "role": "user", "content": "And?" }]);
    let answer = service.post("/v1/messages", &ask(json!({ "messages": turns }))).ok();
    assert!(answer["content"].as_array().expect("blocks").iter().all(|block| block["type"] == "text"), "{answer}");
}

#[test]
fn responses_have_items_of_reasoning() {
    let service = thinking();
    let request = |extra: Value| {
        with(json!({ "model": MODEL, "input": "Why?", "temperature": 0, "max_output_tokens": 200 }), extra)
    };
    let answer = service.post("/v1/responses", &request(json!({ "reasoning": { "effort": "low" } }))).ok();
    let output = &answer["output"];
    assert_eq!(
        (&output[0]["type"], &output[0]["content"][0]["text"]),
        (&json!("reasoning"), &json!("The user asks. I know."))
    );
    assert_eq!(output[1]["content"][0]["text"], "It is blue.");
    assert!(answer["usage"]["output_tokens_details"]["reasoning_tokens"].as_u64().is_some_and(|tokens| tokens > 4));
    let events: Vec<(Option<String>, String)> =
        service.stream("/v1/responses", &request(json!({ "stream": true }))).collect();
    let thoughts: String = events
        .iter()
        .filter(|(name, _)| name.as_deref() == Some("response.reasoning_text.delta"))
        .map(|(_, data)| serde_json::from_str::<Value>(data).expect("JSON")["delta"].as_str().expect("text").to_owned())
        .collect();
    assert_eq!(thoughts, "The user asks. I know.");
    let input =
        json!([{ "role": "user", "content": "Why?" }, output[0], output[1], { "role": "user", "content": "And?" }]);
    service.post("/v1/responses", &request(json!({ "input": input }))).ok();
}
