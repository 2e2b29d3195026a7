//! Ends that nobody wished for: clients that leave or read slowly, and a server that must end.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use tokrun_server::ServerOptions;

use crate::support::{Choices, Service, chat};

/// So many tokens the engine may run ahead of what a client has read, beside what sockets hold.
const WINDOW: u64 = 32;

fn roomy(options: ServerOptions) -> Choices {
    let options = ServerOptions { payer: Some("ada".to_owned()), ..options };
    Choices { context_tokens: 16_384, options, ..Choices::default() }
}

fn endless(stream: bool) -> Value {
    chat(json!({ "max_tokens": 16_000, "stream": stream }))
}

/// One whose events are so large that few of them fill the sockets.
fn endless_and_large() -> Value {
    chat(json!({ "max_tokens": 16_000, "stream": true, "logprobs": true, "top_logprobs": 20 }))
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(30), "waited too long until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Sends a request by hand, so that it can be left at any point.
fn connect(service: &Service, body: &Value) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket can be made");
    socket.set_recv_buffer_size(4096).expect("it can be set");
    socket.connect(&service.address.into()).expect("it listens");
    let mut stream = TcpStream::from(socket);
    let body = body.to_string();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).expect("it can be written");
    stream.write_all(body.as_bytes()).expect("it can be written");
    stream
}

#[test]
fn a_client_that_leaves_pays_what_was_committed_and_no_more() {
    let service = Service::with(roomy(ServerOptions::default()));
    let stream = connect(&service, &endless(true));
    until("there are tokens", || service.metric("vllm:generation_tokens_total") > 0.0);
    drop(stream);
    until("its request is settled", || service.open_requests() == 0);
    let (_, output) = service.logged();
    assert!(output > 0 && output < 16_000, "{output} tokens");
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(service.logged().1, output, "nothing is paid after it");
    assert_eq!(service.metric("vllm:generation_tokens_total") as u64, output);
}

#[test]
fn a_client_that_waits_for_the_whole_answer_may_leave_too() {
    let service = Service::with(roomy(ServerOptions::default()));
    let stream = connect(&service, &endless(false));
    until("it runs", || service.metric("vllm:generation_tokens_total") > 0.0);
    drop(stream);
    until("its request is settled", || service.open_requests() == 0);
    assert!(service.logged().1 < 16_000);
}

#[test]
fn a_client_that_reads_nothing_holds_its_own_answer_back() {
    let service = Service::with(roomy(ServerOptions::default()));
    let mut stream = connect(&service, &endless_and_large());
    let mut before = 0;
    until("its sockets are full", || {
        std::thread::sleep(Duration::from_millis(100));
        let now = service.metric("vllm:generation_tokens_total") as u64;
        std::mem::replace(&mut before, now) == now && now > 0
    });
    assert_eq!(service.open_requests(), 1, "it waits");
    let mut some = vec![0; 1 << 20];
    let mut received = 0;
    while received < some.len() {
        received += stream.read(&mut some[received..]).expect("it goes on");
    }
    until("it goes on", || service.metric("vllm:generation_tokens_total") as u64 > before);
}

#[test]
fn a_client_that_never_reads_is_ended() {
    let service =
        Service::with(roomy(ServerOptions { stall_timeout: Duration::from_millis(300), ..ServerOptions::default() }));
    let stream = connect(&service, &endless_and_large());
    until("it is ended", || service.metric("vllm:generation_tokens_total") > 0.0 && service.open_requests() == 0);
    drop(stream);
}

#[test]
fn a_server_that_ends_lets_requests_end() {
    let mut service = Service::with(Choices { context_tokens: 2048, ..Choices::default() });
    let mut events = service.stream("/v1/chat/completions", &chat(json!({ "max_tokens": 1500, "stream": true })));
    events.next().expect("it begins");
    service.end();
    let last = events.map(|(_, data)| data).filter(|data| data != "[DONE]").last().expect("there are more");
    let last: Value = serde_json::from_str(&last).expect("it is JSON");
    assert_eq!(last["tokrun"]["finish_reason"], "length", "it went on to its end");
    service.join();
    assert_eq!(service.logged().1, 1500);
    assert!(TcpStream::connect(service.address).is_err(), "nobody listens any more");
}

#[test]
fn what_does_not_end_in_time_is_cancelled_and_settled() {
    let mut service =
        Service::with(roomy(ServerOptions { drain: Duration::from_millis(100), ..ServerOptions::default() }));
    let mut events = service.stream("/v1/chat/completions", &endless(true));
    events.next().expect("it begins");
    service.end();
    let data: Vec<String> = events.map(|(_, data)| data).collect();
    assert_eq!(data.last().map(String::as_str), Some("[DONE]"), "the client gets the end of its answer");
    let last: Value = serde_json::from_str(&data[data.len() - 2]).expect("it is JSON");
    assert_eq!(last["tokrun"]["finish_reason"], "cancelled");
    service.join();
    let (prompt, output) = service.logged();
    assert_eq!(last["tokrun"]["debited"], prompt + output);
}

#[test]
fn a_second_word_ends_it_at_once() {
    let mut service = Service::with(roomy(ServerOptions::default()));
    let mut events = service.stream("/v1/chat/completions", &endless(true));
    events.next().expect("it begins");
    service.end();
    service.end_now();
    assert_eq!(events.last().map(|(_, data)| data).as_deref(), Some("[DONE]"));
    service.join();
}

#[test]
fn many_clients_at_once_get_what_the_ledger_says() {
    let service = Service::with(Choices { context_tokens: 512, ..Choices::default() });
    let reported = std::sync::Mutex::new((0, 0));
    std::thread::scope(|scope| {
        for client in 0..16_u64 {
            let (service, reported) = (&service, &reported);
            scope.spawn(move || {
                for round in 0..3 {
                    let extra = json!({
                        "stream": true, "stream_options": { "include_usage": true }, "temperature": 1.2,
                        "seed": client * 10 + round, "max_tokens": 10 + client * 5, "ignore_eos": false,
                    });
                    let mut events = service.stream("/v1/chat/completions", &chat(extra));
                    if (client + round) % 3 == 0 {
                        // A third leaves on the way.
                        events.next();
                        continue;
                    }
                    let data: Vec<String> = events.map(|(_, data)| data).collect();
                    let last: Value = serde_json::from_str(&data[data.len() - 2]).expect("it is JSON");
                    let count = |name: &str| last["usage"][name].as_u64().expect("a count");
                    let mut reported = reported.lock().expect("no client panics");
                    reported.0 += count("prompt_tokens");
                    reported.1 += count("completion_tokens");
                }
            });
        }
    });
    until("all is settled", || service.open_requests() == 0);
    let (prompt, output) = service.logged();
    let (read_prompt, read_output) = reported.into_inner().expect("no client panics");
    assert!(read_prompt <= prompt && read_output <= output);
    assert_eq!(1_000_000 - service.balance(), (prompt + output).cast_signed(), "a credit a token");
    assert_eq!(service.metric("vllm:generation_tokens_total") as u64, output);
    assert_eq!(service.metric("vllm:prompt_tokens_total") as u64, prompt);
    // Who left had read little, and pays at most the window and what was on its way.
    assert!(output - read_output <= 16 * (WINDOW + 85), "{output} debited, {read_output} read to the end");
}
