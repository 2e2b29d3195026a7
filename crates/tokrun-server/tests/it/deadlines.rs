//! Requests that must have ended in time, and those that are more urgent than others.

use std::collections::BTreeMap;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use tokrun_server::ServerOptions;

use crate::support::{Choices, Service, chat, tiny_model};

const DEADLINE: &str = "x-tokrun-deadline-ms";

/// One place, and long answers.
fn narrow(options: ServerOptions) -> Service {
    let options = ServerOptions { payer: Some("ada".to_owned()), ..options };
    Service::with(Choices { running_max: 1, context_tokens: 16_384, options, ..Choices::default() })
}

fn endless(extra: &Value) -> Value {
    let mut body = chat(json!({ "max_tokens": 16_000 }));
    body.as_object_mut().expect("it is one").extend(extra.as_object().expect("it is one").clone());
    body
}

/// Requests in the log by how they ended, with their output tokens.
fn ends(service: &Service) -> BTreeMap<String, u64> {
    let mut ends = BTreeMap::new();
    let visit = |request: &tokrun_ledger::ExportedRequest| {
        *ends.entry(request.finish_reason.as_str().to_owned()).or_default() += request.output_tokens;
        std::ops::ControlFlow::Continue(())
    };
    service.ledger.export_requests(None, None, visit).expect("the log can be read");
    ends
}

#[test]
fn an_answer_that_takes_too_long_ends_with_what_was_paid() {
    let service = narrow(ServerOptions::default());
    let headers = [(DEADLINE, "300")];
    let answer = service.post_with("/v1/chat/completions", &endless(&json!({})), &headers).ok();
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["tokrun"]["finish_reason"], "deadline");
    let first = answer["usage"]["completion_tokens"].as_u64().expect("a count");
    assert!((1..16_000).contains(&first), "{first} tokens");
    assert_eq!(answer["tokrun"]["debited"], answer["usage"]["total_tokens"]);
    let message =
        json!({ "model": "tiny", "max_tokens": 16_000, "messages": [{ "role": "user", "content": "The light" }] });
    let answer = service.post_with("/v1/messages", &message, &headers).ok();
    if answer["tokrun"]["finish_reason"] == "deadline" {
        assert_eq!(answer["stop_reason"], "max_tokens");
    }
    assert!(ends(&service)["deadline"] >= first, "{:?}", ends(&service));
    assert_eq!(service.metric("vllm:generation_tokens_total") as u64, service.logged().1);
}

#[test]
fn the_operator_says_how_long_a_request_may_take() {
    let service =
        narrow(ServerOptions { request_timeout: Some(Duration::from_millis(300)), ..ServerOptions::default() });
    let events = service.stream("/v1/chat/completions", &endless(&json!({ "stream": true })));
    let data: Vec<String> = events.map(|(_, data)| data).collect();
    assert_eq!(data.last().map(String::as_str), Some("[DONE]"));
    let last: Value = serde_json::from_str(&data[data.len() - 2]).expect("it is JSON");
    assert_eq!(
        (&last["choices"][0]["finish_reason"], &last["tokrun"]["finish_reason"]),
        (&json!("length"), &json!("deadline"))
    );
    // A client has less time than that, but not more.
    let reply = service.post_with("/v1/chat/completions", &endless(&json!({})), &[(DEADLINE, "60000")]);
    assert_eq!(reply.ok()["tokrun"]["finish_reason"], "deadline");
}

#[test]
fn what_waits_past_its_deadline_is_refused_and_pays_nothing() {
    let service = narrow(ServerOptions::default());
    let mut stream = service.stream("/v1/chat/completions", &endless(&json!({ "stream": true })));
    stream.next().expect("it begins");
    let reader = thread::spawn(move || stream.count());
    let late = |path: &str, body: &Value, ms: &str| {
        let reply = service.post_with(path, body, &[(DEADLINE, ms)]);
        assert_eq!((reply.status, reply.headers["x-should-retry"].as_str()), (504, "false"), "{}", reply.text);
        reply.json()["error"].clone()
    };
    let error = late("/v1/chat/completions", &chat(json!({})), "100");
    assert_eq!(error["code"], "deadline_exceeded");
    let message = json!({ "model": "tiny", "max_tokens": 5, "messages": [{ "role": "user", "content": "The light" }] });
    assert_eq!(late("/v1/messages", &message, "100")["type"], "timeout_error");
    assert_eq!(late("/v1/chat/completions", &chat(json!({})), "0")["code"], "deadline_exceeded");
    let body = chat(json!({ "stream": true }));
    let reply = service.post_with("/v1/chat/completions", &body, &[(DEADLINE, "100")]);
    assert!(reply.text.contains("deadline_exceeded"), "{}", reply.text);
    assert!(!reader.is_finished(), "the others waited for it");
    assert_eq!(ends(&service), BTreeMap::from([("deadline".to_owned(), 0)]));
    assert_eq!(service.logged(), (0, 0), "nothing was paid yet by those that ended");
    for wrong in ["-1", "soon", "1.5", ""] {
        let reply = service.post_with("/v1/chat/completions", &chat(json!({})), &[(DEADLINE, wrong)]);
        assert_eq!((reply.status, &reply.json()["error"]["param"]), (400, &json!(DEADLINE)), "{wrong}");
    }
    reader.join().expect("no client panics");
}

#[test]
fn who_waits_for_a_model_has_a_deadline_too() {
    let (open, gate) = channel::<()>();
    let gate = std::sync::Mutex::new(gate);
    let options = ServerOptions { payer: Some("ada".to_owned()), ..ServerOptions::default() };
    let service = Service::of(Choices { options, ..Choices::default() }, |choices, ledger, home| {
        let mut model = tiny_model("slow", choices, ledger, home);
        (model.loaded, model.load) = (
            None,
            Box::new(move || {
                let _ = gate.lock().expect("no load panics").recv();
                Err(tokrun_server::LoadError::Failed("the test is over".to_owned()))
            }),
        );
        vec![model]
    });
    let reply = service.post_with("/v1/chat/completions", &chat(json!({ "model": "slow" })), &[(DEADLINE, "100")]);
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (504, &json!("deadline_exceeded")));
    assert_eq!(service.metric("tokrun_places_taken"), 0.0, "it has left its place");
    drop(open);
}

#[test]
fn the_more_urgent_request_of_a_wallet_is_served_first() {
    let service = narrow(ServerOptions::default());
    let mut stream = service.stream("/v1/chat/completions", &endless(&json!({ "stream": true })));
    stream.next().expect("it begins");
    let reader = thread::spawn(move || stream.count());
    let ask = |priority: i32, deadline_ms: &str| {
        let body = chat(json!({ "max_tokens": 3, "priority": priority }));
        service.post_with("/v1/chat/completions", &body, &[(DEADLINE, deadline_ms)]).status
    };
    assert_eq!(ask(1, "300"), 504, "a higher number comes later");
    assert_eq!(ask(i32::MIN, "60000"), 200, "a lower one takes the place");
    assert!(!reader.is_finished());
    reader.join().expect("no client panics");
    assert_eq!(ends(&service)["length"], 16_003, "who gave way went on to its end");
}
