//! Answers that are sent as they come.

use serde_json::{Value, json};

use crate::support::{MODEL, Service, chat};

fn chunks(service: &Service, path: &str, request: &Value) -> Vec<Value> {
    let mut data: Vec<String> = service.stream(path, request).map(|(_, data)| data).collect();
    assert_eq!(data.pop().as_deref(), Some("[DONE]"));
    data.iter().map(|data| serde_json::from_str(data).expect("a chunk is JSON")).collect()
}

#[test]
fn a_stream_is_the_whole_answer_in_pieces() {
    let service = Service::new();
    let whole = service.post("/v1/chat/completions", &chat(json!({}))).ok();
    let before = service.balance();
    let request = chat(json!({ "stream": true, "stream_options": { "include_usage": true } }));
    let chunks = chunks(&service, "/v1/chat/completions", &request);
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({ "role": "assistant", "content": "", "refusal": null }));
    let text: String = chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(whole["choices"][0]["message"]["content"], text);
    let (last, others) = chunks.split_last().expect("there are chunks");
    assert!(others.iter().all(|chunk| chunk["usage"].is_null() && chunk.get("usage").is_some()));
    assert_eq!(others[others.len() - 1]["choices"][0]["finish_reason"], "length");
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["completion_tokens"], 12);
    assert_eq!(last["usage"]["total_tokens"], before - service.balance());
    assert_eq!(last["tokrun"]["debited"], before - service.balance());
    assert_eq!(last["tokrun"]["balance"], service.balance());
    let ids: std::collections::BTreeSet<_> = chunks.iter().map(|chunk| chunk["id"].to_string()).collect();
    assert_eq!(ids.len(), 1);
}

#[test]
fn without_usage_the_last_chunk_says_what_was_paid() {
    let service = Service::new();
    let chunks = chunks(&service, "/v1/chat/completions", &chat(json!({ "stream": true })));
    assert!(chunks.iter().all(|chunk| chunk.get("usage").is_none()));
    let last = &chunks[chunks.len() - 1];
    assert_eq!(last["choices"][0]["finish_reason"], "length");
    assert_eq!(last["tokrun"]["balance"], service.balance());
    assert!(chunks[..chunks.len() - 1].iter().all(|chunk| chunk.get("tokrun").is_none()));
}

#[test]
fn several_answers_come_interleaved_in_one_stream() {
    let service = Service::new();
    let request = json!({
        "model": MODEL, "prompt": ["The", "There"], "n": 2, "max_tokens": 8, "ignore_eos": true, "seed": 3,
        "stream": true, "logprobs": 1,
    });
    let chunks = chunks(&service, "/v1/completions", &request);
    let mut texts = [const { String::new() }; 4];
    let mut tokens = [0; 4];
    let mut finished = 0;
    for chunk in &chunks {
        let choice = &chunk["choices"][0];
        let index = usize::try_from(choice["index"].as_u64().expect("an index")).expect("it is small");
        texts[index].push_str(choice["text"].as_str().expect("it is text"));
        tokens[index] += choice["logprobs"]["tokens"].as_array().map_or(0, Vec::len);
        finished += usize::from(!choice["finish_reason"].is_null());
    }
    assert_eq!(finished, 4);
    assert_eq!(tokens, [8; 4], "{texts:?}");
    assert_eq!(service.logged().1, 32);
}

#[test]
fn log_probabilities_come_with_their_text() {
    let service = Service::new();
    let request = chat(json!({ "logprobs": true, "top_logprobs": 1, "stream": true }));
    let chunks = chunks(&service, "/v1/chat/completions", &request);
    let tokens: usize =
        chunks.iter().filter_map(|chunk| chunk["choices"][0]["logprobs"]["content"].as_array()).map(Vec::len).sum();
    assert_eq!(tokens, 12);
}
