//! `bench serve`: what it counts is what the server's ledger says, and what it cannot measure it says.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::serve::Served;
use crate::support::{Home, parse, text};

/// What scripts for `vllm bench serve` read.
const FIELDS: [&str; 16] = [
    "date",
    "backend",
    "model_id",
    "num_prompts",
    "request_rate",
    "burstiness",
    "max_concurrency",
    "duration",
    "completed",
    "failed",
    "total_input_tokens",
    "total_output_tokens",
    "request_throughput",
    "output_throughput",
    "total_token_throughput",
    "max_concurrent_requests",
];

fn bench(home: &Home, url: &str, flags: &str) -> Value {
    let flags: Vec<&str> = flags.split(' ').collect();
    home.json(&[&["bench", "serve", "--url", url], &flags[..]].concat())
}

fn count(report: &Value, field: &str) -> i64 {
    report[field].as_i64().unwrap_or_else(|| panic!("{field} is no count: {report}"))
}

#[test]
fn what_clients_count_is_what_the_ledger_debited() {
    let home = Home::new();
    home.wallet("ada", 1_000_000);
    let served = Served::start(&home, &["--user", "ada"]);
    let tokens = |report: &Value| count(report, "total_input_tokens") + count(report, "total_output_tokens");

    let flags = "-n 12 --concurrency 4 --dataset random:in=10,out=6 --ignore-eos --warmup 0 --detailed --goodput ttft:60000 e2el:60000";
    let report = bench(&home, &served.url, flags);
    for field in FIELDS {
        assert!(!report[field].is_null(), "{field} is missing: {report}");
    }
    for metric in ["ttft", "tpot", "itl", "e2el"] {
        for what in ["mean", "median", "std", "p50", "p75", "p90", "p95", "p99"] {
            assert!(report[format!("{what}_{metric}_ms")].is_number(), "{what}_{metric}_ms: {report}");
        }
    }
    assert_eq!(
        (count(&report, "completed"), count(&report, "failed"), &report["counted_by"]),
        (12, 0, &"usage".into())
    );
    assert_eq!(count(&report, "total_output_tokens"), 12 * 6);
    assert!((1..=4).contains(&count(&report, "max_concurrent_requests")));
    assert_eq!(report["request_goodput"], report["request_throughput"], "all were good");
    assert_eq!((report["ttfts"].as_array().map(Vec::len), &report["request_rate"]), (Some(12), &"inf".into()));
    assert_eq!(home.usage_tokens("ada"), tokens(&report));

    // Conversations that begin alike, as they come, with one before that does not count.
    let flags = "-n 6 --rate 200 --seed 3 --endpoint chat --dataset random:in=4,out=3,prefix=40,range=0.5";
    let chats = bench(&home, &served.url, flags);
    assert_eq!((&chats["request_rate"], &chats["max_concurrency"]), (&200.0.into(), &Value::Null));
    assert!(count(&chats, "total_cached_tokens") >= 6 * 32, "{chats}");
    let before_tokens = home.usage_tokens("ada") - tokens(&report) - tokens(&chats);
    assert!(before_tokens > 40, "{before_tokens} tokens for the one before");

    let timed = bench(&home, &served.url, "--duration 0.5 --concurrency 2 --dataset random:in=4,out=2 --ignore-eos");
    assert!(count(&timed, "completed") > 2 && timed["duration"].as_f64().is_some_and(|s| (0.4..5.0).contains(&s)));
    assert_eq!(served.terminate().code(), Some(0));
    home.verify();
}

#[test]
fn what_cannot_be_measured_says_what_to_do() {
    let home = Home::new();
    let free = TcpListener::bind("127.0.0.1:0").expect("there is a free port");
    let url = format!("http://{}", free.local_addr().expect("it has one"));
    drop(free);
    let output = home.run(&["bench", "serve", "--url", &url]);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.contains("cannot connect") && said.contains("hint: start a server there"), "{said}");
    let output = home.run(&["bench", "serve", "--url", &url, "--output", "json"]);
    assert_eq!(parse(&output)["error"]["code"], "load");
    for wrong in [
        &["--rate", "inf", "--duration", "1"][..],
        &["--dataset", "/nowhere.json"],
        &["--output", "md"],
        &["--goodput", "speed:3"],
    ] {
        let output = home.run(&[&["bench", "serve", "--url", &url], wrong].concat());
        assert!(matches!(output.status.code(), Some(1 | 2)) && !output.stderr.is_empty(), "{wrong:?}");
    }
    // The flags of the one are not those of the other.
    assert_eq!(home.run(&["bench", "-p", "4", "serve"]).status.code(), Some(2));
}

/// A server of few words: no usage, a pause before each piece, and every third request refused.
fn terse_server(requests: usize) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("there is a free port");
    let url = format!("http://{}", listener.local_addr().expect("it has one"));
    thread::spawn(move || {
        for (index, stream) in listener.incoming().take(requests).enumerate() {
            answer(stream.expect("it connects"), index % 3 == 2);
        }
    });
    url
}

fn answer(mut stream: TcpStream, is_refused: bool) {
    let mut reader = BufReader::new(stream.try_clone().expect("it can be shared"));
    let (mut line, mut length) = (String::new(), 0);
    while reader.read_line(&mut line).expect("it sends a head") > 2 {
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().expect("a length");
        }
        line.clear();
    }
    reader.read_exact(&mut vec![0; length]).expect("it sends a body");
    let mut send = |text: &str| stream.write_all(text.as_bytes()).expect("it reads");
    if is_refused {
        let body = r#"{"error": {"message": "too busy"}}"#;
        return send(&format!(
            "HTTP/1.1 503 Busy\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        ));
    }
    send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n");
    for _ in 0..4 {
        thread::sleep(Duration::from_millis(20));
        send("data: {\"choices\": [{\"text\": \" word\", \"finish_reason\": null}]}\n\n");
    }
    send("data: {\"choices\": [{\"text\": \"\", \"finish_reason\": \"length\"}]}\n\ndata: [DONE]\n\n");
}

#[test]
fn times_are_those_of_the_wire_and_pieces_count_where_nothing_else_does() {
    let home = Home::new();
    let report = bench(&home, &terse_server(9), "--model m -n 9 --concurrency 1 --warmup 0 --goodput tpot:1");
    assert_eq!((count(&report, "completed"), count(&report, "failed")), (6, 3));
    assert_eq!(report["failures"], serde_json::json!([{ "error": "503: too busy", "count": 3 }]));
    assert_eq!((&report["counted_by"], count(&report, "total_output_tokens")), (&"pieces".into(), 6 * 4));
    let ms = |field: &str| report[field].as_f64().expect("a time");
    // Never less than the pauses; how much more depends on the machine.
    for (field, least_ms, most_ms) in [
        ("median_ttft_ms", 20.0, 200.0),
        ("median_itl_ms", 19.0, 200.0),
        ("median_tpot_ms", 19.0, 200.0),
        ("median_e2el_ms", 80.0, 800.0),
    ] {
        assert!((least_ms..most_ms).contains(&ms(field)), "{field}: {report}");
    }
    assert_eq!(report["request_goodput"], 0.0);
    let output = home.run(&["bench", "serve", "--url", &terse_server(2), "--model", "m", "-n", "1"]);
    let said = text(&output.stdout);
    assert!(output.status.success() && said.contains("reports no usage") && said.contains("TTFT"), "{said}");
}
