//! Clients that mean harm: a clear status, bounded memory, and nothing in the ledger.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::json;
use tokrun_server::ServerOptions;

use crate::support::{Choices, Service, chat};

fn impatient() -> Choices {
    let options = ServerOptions {
        payer: Some("ada".to_owned()),
        body_bytes_max: 1 << 20,
        bodies_bytes_max: 4 << 20,
        head_timeout: Duration::from_millis(300),
        body_timeout: Duration::from_millis(300),
        idle_timeout: Duration::from_millis(400),
        ..ServerOptions::default()
    };
    Choices { options, ..Choices::default() }
}

/// What comes back until the server closes the connection, which it must.
fn rest(mut stream: TcpStream) -> String {
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("it can be set");
    let mut text = Vec::new();
    if let Err(error) = stream.read_to_end(&mut text) {
        // A reset is an end too.
        assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "the connection was left open");
    }
    String::from_utf8_lossy(&text).into_owned()
}

fn send(service: &Service, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(service.address).expect("it listens");
    stream.write_all(bytes).expect("it can be written");
    stream
}

fn untouched(service: &Service) {
    let health = service.ledger.health().expect("it can be read");
    assert_eq!((health.entries, health.open_requests), (1, 0), "the grant, and nothing else");
    assert_eq!(service.get("/health").status, 200, "it still serves");
}

#[test]
fn a_page_in_a_browser_spends_nothing_without_a_key() {
    let service = Service::with(impatient());
    for key in [None, Some(("authorization", "Bearer anything"))] {
        let headers: Vec<(&str, &str)> = [("origin", "https://elsewhere.example")].into_iter().chain(key).collect();
        let reply = service.post_with("/v1/chat/completions", &chat(json!({})), &headers);
        assert_eq!((reply.status, &reply.json()["error"]["code"]), (403, &json!("key_needed")));
    }
    assert_eq!(service.post_with("/v1/chat/completions", &chat(json!({})), &[]).status, 200);
}

#[test]
fn slow_heads_and_bodies_are_cut_off() {
    let service = Service::with(impatient());
    for bytes in [&b""[..], b"P", b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-slow:", b"PRI * HTTP/2.0\r\n"] {
        rest(send(&service, bytes));
    }
    let head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 500\r\n\r\n{\"model\":";
    let text = rest(send(&service, head));
    assert!(text.starts_with("HTTP/1.1 408"), "{text}");
    // One that has asked something, and then says nothing more.
    let text = rest(send(&service, b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"));
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    untouched(&service);
}

#[test]
fn large_bodies_and_heads_are_refused() {
    let service = Service::with(impatient());
    let announced = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 999999999999\r\n\r\n";
    let text = rest(send(&service, announced));
    assert!(text.starts_with("HTTP/1.1 413"), "{text}");
    let mut chunked = TcpStream::connect(service.address).expect("it listens");
    let head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";
    chunked.write_all(head).expect("it can be written");
    let chunk = [&b"10000\r\n"[..], &[b' '; 0x10000], b"\r\n"].concat();
    // The server may answer, and close, before all is written.
    let _ = (0..32).try_for_each(|_| chunked.write_all(&chunk));
    let text = rest(chunked);
    assert!(text.is_empty() || text.starts_with("HTTP/1.1 413"), "{text}");
    let mut flood = b"GET /health HTTP/1.1\r\nhost: x\r\n".to_vec();
    (0..5000).for_each(|index| flood.extend(format!("x-{index}: {index}\r\n").bytes()));
    flood.extend(b"\r\n");
    let mut stream = TcpStream::connect(service.address).expect("it listens");
    let _ = stream.write_all(&flood);
    let text = rest(stream);
    assert!(text.is_empty() || text.starts_with("HTTP/1.1 431"), "{text}");
    untouched(&service);
}

#[test]
fn absurd_json_is_refused() {
    let service = Service::with(impatient());
    let deep = [b"{\"model\":\"tiny\",\"messages\":".as_slice(), &[b'['; 100_000], b"}"].concat();
    assert_eq!(service.post_bytes("/v1/chat/completions", &deep).status, 400);
    let deep_schema = format!("{}{}", "{\"a\":".repeat(100), "1".to_owned() + &"}".repeat(100));
    let schema: serde_json::Value = serde_json::from_str(&deep_schema).expect("it is JSON");
    let format = json!({ "type": "json_schema", "json_schema": { "name": "x", "schema": schema } });
    let reply = service.post("/v1/chat/completions", &chat(json!({ "response_format": format, "ignore_eos": null })));
    assert!(matches!(reply.status, 200 | 400), "{}", reply.text);
    let tokens: Vec<u32> = (0..200_000).map(|_| 5).collect();
    let reply = service.post("/v1/completions", &json!({ "model": "tiny", "prompt": tokens }));
    assert_eq!(reply.status, 400, "{}", reply.text);
    assert_eq!(reply.json()["error"]["code"], "context_length_exceeded");
}

#[test]
fn a_prompt_of_a_million_tokens_is_refused_unread() {
    let service = Service::new();
    let begun = Instant::now();
    let text = "lightning ".repeat(750_000);
    let request = chat(json!({ "messages": [{ "role": "user", "content": text }] }));
    let reply = service.post("/v1/chat/completions", &request);
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (400, &json!("context_length_exceeded")));
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    untouched(&service);
}

#[test]
fn two_thousand_idle_connections_keep_nobody_out() {
    let service = Service::with(Choices::default());
    service.get("/health");
    let idle: Vec<TcpStream> = (0..2000).map(|_| send(&service, b"")).collect();
    let begun = Instant::now();
    service.post("/v1/chat/completions", &chat(json!({}))).ok();
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    drop(idle);
}

#[test]
fn paths_and_bytes_that_lead_nowhere_are_refused() {
    let service = Service::with(impatient());
    let raw = |request: &[u8]| rest(send(&service, request));
    for path in [
        "/../../etc/passwd",
        "/dashboard/../../etc/passwd",
        "/dashboard/..%2f..%2fetc%2fpasswd",
        "/dashboard/app.js/",
        "/v1/models/..%2f..%2fetc%2fpasswd",
        "/v1/models/%00",
        "/v1/models/%ff%fe",
        "/admin/v1/../../v1/models",
        "/admin/v1/wallets/%ff",
        "//v1/chat/completions",
        "/V1/MODELS",
        "*",
    ] {
        let text = raw(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes());
        let status = text.split(' ').nth(1).unwrap_or_default();
        assert!(matches!(status, "400" | "401" | "404"), "{path}: {text}");
        assert!(!text.contains("root:"), "{path}");
    }
    let chat = "/v1/chat/completions";
    for body in [&b"\xff\xfe"[..], b"{\"model\":\"\xc3\x28\"}", b"{", b"nul\0", b"[]", b"", b"{\"model\": 1e999}"] {
        assert_eq!(service.post_bytes(chat, body).status, 400, "{body:?}");
        assert_eq!(service.post_bytes("/dashboard/session", body).status, 400, "{body:?}");
    }
    for head in [
        &b"GET / HTTP/1.1\r\nhost: x\r\nx-bad\xff: 1\r\n\r\n"[..],
        b"GET /\x01 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ] {
        let text = raw(head);
        assert!(text.is_empty() || text.starts_with("HTTP/1.1 400"), "{text}");
    }
    untouched(&service);
}

/// What this process holds in memory.
fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").expect("it can be read");
    let pages: u64 = pages.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("it has a count");
    pages * 4096
}

#[test]
fn bodies_that_never_end_take_no_more_memory_than_all_may_have() {
    let service = Service::with(impatient());
    service.get("/health");
    let before = resident_bytes();
    let head = format!("POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", 1 << 20);
    let begun = [head.as_bytes(), &vec![b' '; (1 << 20) - 1]].concat();
    let clients: Vec<_> = (0..64)
        .map(|_| {
            let stream = TcpStream::connect(service.address).expect("it listens");
            stream.set_write_timeout(Some(Duration::from_millis(20))).expect("it can be set");
            // What the server does not read stays with the system.
            let _ = (&stream).write_all(&begun);
            stream
        })
        .collect();
    let grown = resident_bytes().saturating_sub(before);
    // 4 MiB of bodies, what buffers round up, the client's own copy, and what else tests beside this one hold.
    assert!(grown < 48 << 20, "{grown} bytes more, of 64 MiB that were sent");
    clients.into_iter().map(rest).filter(|text| !text.is_empty()).for_each(|text| {
        assert!(text.starts_with("HTTP/1.1 408"), "{text}");
    });
    untouched(&service);
}
