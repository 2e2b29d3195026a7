//! What a collector of OpenTelemetry's is told of requests, and that one which is dead is nobody's trouble.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value as Any};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use serde_json::json;
use tokrun_server::{ServerOptions, Telemetry};

use crate::support::{Choices, EMBEDDER, MODEL, Service, chat};

/// A collector: what it is sent, by path.
fn collector() -> (String, Receiver<(String, Vec<u8>)>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("there is a free port");
    let url = format!("http://{}", listener.local_addr().expect("it has an address"));
    let (sender, received) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let sender = sender.clone();
            std::thread::spawn(move || {
                let mut stream = BufReader::new(stream.expect("it connects"));
                while let Some(request) = read_request(&mut stream) {
                    stream.get_mut().write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").expect("it reads");
                    let _ = sender.send(request);
                }
            });
        }
    });
    (url, received)
}

fn read_request(stream: &mut BufReader<TcpStream>) -> Option<(String, Vec<u8>)> {
    let mut line = String::new();
    if stream.read_line(&mut line).ok()? == 0 {
        return None;
    }
    let path = line.split(' ').nth(1).expect("a path").to_owned();
    let mut length = 0;
    loop {
        line.clear();
        stream.read_line(&mut line).expect("a head");
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.parse().expect("a length");
        }
        if name.eq_ignore_ascii_case("content-type") {
            assert_eq!(value, "application/x-protobuf");
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).expect("a body");
    Some((path, body))
}

fn service(endpoint: &str) -> Service {
    let telemetry = Some(Arc::new(Telemetry::start(endpoint).expect("it starts")));
    let options = ServerOptions { payer: Some("ada".to_owned()), telemetry, ..ServerOptions::default() };
    Service::with(Choices { options, embeds: true, ..Choices::default() })
}

fn attributes(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: &Any| match value {
        Any::StringValue(text) => text.clone(),
        Any::IntValue(number) => number.to_string(),
        Any::DoubleValue(number) => number.to_string(),
        Any::ArrayValue(values) => format!("{} of them", values.values.len()),
        other => format!("{other:?}"),
    };
    let value = |pair: &KeyValue| Some((pair.key.clone(), text(pair.value.as_ref()?.value.as_ref()?)));
    attributes.iter().filter_map(value).collect()
}

#[test]
fn a_collector_is_told_of_each_request_and_of_no_text() {
    let (url, received) = collector();
    let service = service(&url);
    let ask = chat(json!({ "messages": [{ "role": "user", "content": "a secret ingredient" }] }));
    let (trace, parent) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
    let header = format!("00-{trace}-{parent}-01");
    let answer = service.post_with("/v1/chat/completions", &ask, &[("traceparent", &header)]).ok();
    service.post("/v1/embeddings", &json!({ "model": EMBEDDER, "input": "one" })).ok();
    assert_eq!(service.post("/v1/chat/completions", &chat(json!({ "model": "other" }))).status, 404);
    service.get("/v1/models").ok();
    drop(service);

    let mut spans: Vec<Span> = Vec::new();
    let mut metrics = BTreeMap::new();
    for (path, body) in received.try_iter() {
        assert!(!String::from_utf8_lossy(&body).contains("ingredient"), "no text is told");
        assert!(!String::from_utf8_lossy(&body).contains("ada"), "nobody is named");
        if path == "/v1/traces" {
            let sent = ExportTraceServiceRequest::decode(&*body).expect("it is what the protocol says");
            for resource in sent.resource_spans {
                let told = attributes(&resource.resource.expect("somebody tells").attributes);
                assert_eq!(told["service.name"], "tokrun");
                spans.extend(resource.scope_spans.into_iter().flat_map(|scope| scope.spans));
            }
        } else {
            assert_eq!(path, "/v1/metrics");
            let sent = ExportMetricsServiceRequest::decode(&*body).expect("it is what the protocol says");
            let scopes = sent.resource_metrics.into_iter().flat_map(|resource| resource.scope_metrics);
            metrics.extend(scopes.flat_map(|scope| scope.metrics).map(|metric| (metric.name.clone(), metric)));
        }
    }

    let named = |name: &str| spans.iter().filter(|span| span.name == name).collect::<Vec<_>>();
    assert_eq!(spans.len(), 5, "{:?}", spans.iter().map(|span| &span.name).collect::<Vec<_>>());
    let (requests, answers) = (named("POST /v1/chat/completions"), named(&format!("chat {MODEL}")));
    let (request, spoken) = (requests[0], answers[0]);
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert_eq!((hex(&request.trace_id), hex(&request.parent_span_id)), (trace.to_owned(), parent.to_owned()));
    assert_eq!((&spoken.trace_id, &spoken.parent_span_id), (&request.trace_id, &request.span_id));
    assert_eq!(attributes(&request.attributes)["http.response.status_code"], "200");
    assert_eq!(attributes(&requests[1].attributes)["error.type"], "model_not_found");
    let told = attributes(&spoken.attributes);
    for (name, expected) in [
        ("gen_ai.operation.name", "chat".to_owned()),
        ("gen_ai.request.model", MODEL.to_owned()),
        ("gen_ai.response.finish_reasons", "1 of them".to_owned()),
        ("gen_ai.usage.input_tokens", answer["usage"]["prompt_tokens"].to_string()),
        ("gen_ai.usage.output_tokens", answer["usage"]["completion_tokens"].to_string()),
        ("tokrun.debited_credits", answer["usage"]["total_tokens"].to_string()),
    ] {
        assert_eq!(told[name], expected, "{name}");
    }
    assert!(told["gen_ai.latency.time_to_first_token"].parse::<f64>().expect("seconds") > 0.0);
    assert!(spoken.start_time_unix_nano < spoken.end_time_unix_nano);
    assert!(request.start_time_unix_nano <= spoken.start_time_unix_nano);
    assert_eq!(attributes(&named(&format!("embeddings {EMBEDDER}"))[0].attributes)["gen_ai.usage.input_tokens"], "3");

    // Of each figure: how often it was observed, and the sum.
    let observed = |name: &str, wanted: &[(&str, &str)]| {
        let Some(Data::Histogram(histogram)) = &metrics[name].data else { panic!("{name} is a histogram") };
        let is_wanted = |told: &BTreeMap<String, String>| wanted.iter().all(|(name, value)| told[*name] == **value);
        let points = histogram.data_points.iter().filter(|point| is_wanted(&attributes(&point.attributes)));
        points.fold((0, 0.0), |(count, sum), point| (count + point.count, sum + point.sum.unwrap_or(0.0)))
    };
    let of_chat = ("gen_ai.operation.name", "chat");
    let usage = |kind| observed("gen_ai.client.token.usage", &[of_chat, ("gen_ai.token.type", kind)]);
    let counted = |name: &str| answer["usage"][name].as_f64().expect("a count");
    assert_eq!(usage("input"), (1, counted("prompt_tokens")));
    assert_eq!(usage("output"), (1, counted("completion_tokens")));
    for name in ["request.duration", "time_to_first_token", "time_per_output_token"] {
        let (count, sum) = observed(&format!("gen_ai.server.{name}"), &[of_chat, ("gen_ai.request.model", MODEL)]);
        assert!(count == 1 && sum > 0.0, "{name}: {count} {sum}");
    }
}

#[test]
fn a_collector_that_does_not_answer_holds_nobody_up() {
    // It accepts connections, and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").expect("there is a free port");
    let service = service(&format!("http://{}", silent.local_addr().expect("it has an address")));
    for _ in 0..10 {
        service.post("/v1/chat/completions", &chat(json!({ "max_tokens": 2 }))).ok();
    }
    let begun = Instant::now();
    drop(service);
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(8), "it ends in time: {took:?}");
    drop(silent);
}

#[test]
fn what_is_no_address_is_told_at_the_start() {
    assert!(Telemetry::start("not an address").is_err());
}
