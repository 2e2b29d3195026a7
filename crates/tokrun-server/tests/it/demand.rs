//! Several models: which of them are in memory, who waits for one, and who gives way.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokrun_server::{LoadError, Memory, ServedModel, ServerOptions};

use crate::support::{Choices, Reply, Service, chat, tiny_model};

/// Models of these sizes that are loaded when they are wanted, but for the first, which is in memory; changed as a test
/// needs it.
fn serving(options: ServerOptions, sizes: &[(&str, u64)], mut change: impl FnMut(&mut ServedModel)) -> Service {
    let options = ServerOptions { payer: Some("ada".to_owned()), ..options };
    let choices = Choices { options, context_tokens: 16_384, ..Choices::default() };
    Service::of(choices, |choices, ledger, home| {
        let model = |(index, (name, bytes)): (usize, &(&str, u64))| {
            let mut model = tiny_model(name, choices, ledger, home);
            model.loaded = model.loaded.filter(|_| index == 0);
            model.memory = vec![Memory { device: "cpu".to_owned(), bytes: *bytes }];
            change(&mut model);
            model
        };
        sizes.iter().enumerate().map(model).collect()
    })
}

fn budget(bytes: u64) -> ServerOptions {
    let memory_budget_bytes = BTreeMap::from([("cpu".to_owned(), bytes)]);
    ServerOptions { memory_budget_bytes, ..ServerOptions::default() }
}

/// Has the model wait with each load until it is told what comes of it.
fn gate(model: &mut ServedModel) -> Sender<Result<(), LoadError>> {
    let (sender, gate) = channel();
    let gate = Mutex::new(gate);
    let load = std::mem::replace(&mut model.load, Box::new(|| Ok(Vec::new())));
    model.load = Box::new(move || {
        let gate = gate.lock().expect("no load panics");
        gate.recv().map_err(|_| LoadError::Failed("the test is over".to_owned()))??;
        load()
    });
    sender
}

fn ask(service: &Service, model: &str) -> Reply {
    service.post("/v1/chat/completions", &chat(json!({ "model": model, "max_tokens": 3 })))
}

/// Asks by hand, so that it can be left.
fn begin(service: &Service, model: &str) -> TcpStream {
    let body = chat(json!({ "model": model })).to_string();
    let mut client = TcpStream::connect(service.address).expect("it listens");
    let length = body.len();
    write!(client, "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n{body}")
        .expect("it can be written");
    client
}

/// The state of each model.
fn states(service: &Service) -> Vec<String> {
    let models = service.get("/v1/models").ok();
    let text = |value: &Value| value.as_str().expect("it is text").to_owned();
    models["data"].as_array().expect("a list").iter().map(|model| text(&model["tokrun"]["state"])).collect()
}

/// A figure of one model.
fn of_model(service: &Service, figure: &str, model: &str) -> f64 {
    let text = service.get("/metrics").text;
    let is_it = |line: &&str| line.starts_with(figure) && line.contains(&format!("model_name=\"{model}\""));
    text.lines()
        .filter(is_it)
        .map(|line| line.rsplit(' ').next().expect("a figure").parse::<f64>().expect("a number"))
        .sum()
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(30), "waited too long until {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn those_who_want_a_model_wait_for_one_load_and_nobody_else_waits() {
    let mut open = None;
    let service = serving(ServerOptions::default(), &[("a", 1), ("b", 1)], |model| {
        if model.name == "b" {
            open = Some(gate(model));
        }
    });
    assert_eq!(states(&service), ["loaded", "unloaded"]);
    assert_eq!(service.get("/v1/models/b").ok()["max_model_len"], 16_384);
    thread::scope(|scope| {
        let mut waiting: Vec<_> = (0..4).map(|_| scope.spawn(|| ask(&service, "b").status)).collect();
        waiting.push(scope.spawn(|| service.post("/tokenize", &json!({ "model": "b", "prompt": "hi" })).status));
        until("all wait", || of_model(&service, "tokrun_places_taken", "b") == 4.0);
        assert_eq!(states(&service), ["loaded", "loading"]);
        assert_eq!(service.get("/ready").status, 200);
        assert_eq!(ask(&service, "a").status, 200, "others go on");
        assert!(waiting.iter().all(|one| !one.is_finished()));
        open.as_ref().expect("it has a gate").send(Ok(())).expect("it loads");
        assert!(waiting.into_iter().all(|one| one.join().expect("no client panics") == 200));
    });
    assert_eq!(states(&service), ["loaded", "loaded"]);
    assert_eq!(of_model(&service, "tokrun_model_loads_total", "b"), 1.0);
    assert!(of_model(&service, "tokrun_model_load_seconds_total", "b") > 0.0);
}

#[test]
fn the_model_that_was_used_least_lately_gives_way() {
    let service = serving(budget(100), &[("a", 60), ("b", 60), ("c", 30)], |_| {});
    let bytes = || ["a", "b", "c"].map(|model| of_model(&service, "tokrun_model_memory_bytes", model));
    assert_eq!(bytes(), [60.0, 0.0, 0.0]);
    assert_eq!(ask(&service, "b").status, 200);
    assert_eq!(bytes(), [0.0, 60.0, 0.0]);
    assert_eq!(ask(&service, "c").status, 200);
    assert_eq!(bytes(), [0.0, 60.0, 30.0], "there is room for it");
    assert_eq!(ask(&service, "b").status, 200);
    assert_eq!(ask(&service, "a").status, 200);
    assert_eq!(bytes(), [60.0, 0.0, 0.0], "c was used before b, and that was not enough");
    assert_eq!(of_model(&service, "tokrun_model_unloads_total", "b"), 1.0);
    // Each was paid: three tokens and the prompt, whatever was in memory.
    let (prompt, output) = service.logged();
    assert_eq!(1_000_000 - service.balance(), (prompt + output).cast_signed());
    assert_eq!(output, 12);
}

#[test]
fn what_is_used_stays_and_who_waits_for_its_room_gets_it() {
    let service = serving(budget(100), &[("a", 60), ("b", 60)], |_| {});
    let body = |model: &str| chat(json!({ "model": model, "max_tokens": 400, "stream": true }));
    let mut stream = service.stream("/v1/chat/completions", &body("a"));
    stream.next().expect("it begins");
    thread::scope(|scope| {
        let b = scope.spawn(|| ask(&service, "b"));
        until("b is wanted", || states(&service)[1] == "loading");
        // It would keep a from ever falling idle.
        thread::sleep(Duration::from_millis(50));
        let again = scope.spawn(|| ask(&service, "a"));
        until("it waits as well", || states(&service)[0] == "loading");
        assert!(!b.is_finished() && !again.is_finished());
        assert_eq!(stream.last().map(|(_, data)| data).as_deref(), Some("[DONE]"), "what runs goes on to its end");
        assert_eq!(b.join().expect("no client panics").status, 200);
        assert_eq!(again.join().expect("no client panics").status, 200);
    });
    assert_eq!(states(&service), ["loaded", "unloaded"]);
    assert_eq!(service.logged().1, 406);
}

#[test]
fn nothing_is_loaded_for_clients_that_left() {
    let service = serving(budget(100), &[("a", 60), ("b", 60)], |_| {});
    let body = chat(json!({ "model": "a", "max_tokens": 16_000, "stream": true }));
    let mut stream = service.stream("/v1/chat/completions", &body);
    stream.next().expect("it begins");
    let client = begin(&service, "b");
    until("b is wanted", || states(&service)[1] == "loading");
    drop(client);
    until("it is not any more", || states(&service)[1] == "unloaded");
    assert_eq!(ask(&service, "a").status, 200, "nobody has to give way now");
    assert_eq!(of_model(&service, "tokrun_model_loads_total", "b"), 0.0);
}

#[test]
fn a_load_that_fails_is_told_and_tried_anew() {
    let mut open = None;
    let service = serving(ServerOptions::default(), &[("a", 1), ("b", 1)], |model| {
        if model.name == "b" {
            open = Some(gate(model));
        }
    });
    let open = open.expect("it has a gate");
    let fails = |error: LoadError| {
        open.send(Err(error)).expect("it loads");
        let reply = ask(&service, "b");
        let error = reply.json()["error"].clone();
        (reply.status, error["code"].clone(), error["message"].to_string(), reply.headers)
    };
    let (status, code, message, headers) = fails(LoadError::Failed("/secret/place: no such file".to_owned()));
    assert_eq!((status, code), (500, json!("model_not_loaded")));
    assert!(!message.contains("secret"), "{message}");
    assert_eq!(headers["x-should-retry"], "false");
    let (status, code, message, headers) = fails(LoadError::NoRoom("7 bytes are free".to_owned()));
    assert_eq!((status, code), (503, json!("overloaded")));
    assert!(message.contains("7 bytes are free") && headers.contains_key("retry-after"), "{message}");
    open.send(Ok(())).expect("it loads");
    assert_eq!(ask(&service, "b").status, 200);
    assert_eq!(of_model(&service, "tokrun_model_loads_total", "b"), 3.0);
    assert_eq!(service.logged().1, 3, "nothing else was paid");
}

#[test]
fn idle_models_are_unloaded_in_time() {
    let options = ServerOptions { keep_alive: Some(Duration::from_millis(100)), ..ServerOptions::default() };
    let service = serving(options, &[("a", 10)], |_| {});
    let mut stream =
        service.stream("/v1/chat/completions", &chat(json!({ "model": "a", "max_tokens": 16_000, "stream": true })));
    stream.next().expect("it begins");
    thread::sleep(Duration::from_millis(250));
    assert_eq!(states(&service), ["loaded"], "it is in use");
    drop(stream);
    until("it is idle for long", || states(&service) == ["unloaded"]);
    assert_eq!(of_model(&service, "tokrun_model_memory_bytes", "a"), 0.0);
    assert_eq!(service.get("/ready").status, 200);
    assert_eq!(ask(&service, "a").status, 200);
    assert_eq!(of_model(&service, "tokrun_model_loads_total", "a"), 2.0);
}

#[test]
fn a_server_that_ends_waits_for_no_load() {
    let mut open = None;
    let mut service = serving(ServerOptions::default(), &[("a", 1), ("b", 1)], |model| {
        if model.name == "b" {
            open = Some(gate(model));
        }
    });
    let mut client = begin(&service, "b");
    until("it waits", || of_model(&service, "tokrun_places_taken", "b") == 1.0);
    service.end();
    service.join();
    let mut said = String::new();
    client.read_to_string(&mut said).expect("it is answered");
    assert!(said.starts_with("HTTP/1.1 503") && said.contains("about to end"), "{said}");
    drop(open);
}
