//! The document against the server that it describes.

use serde_json::{Value, json};

use crate::support::{Choices, EMBEDDER, MODEL, Reply, Service, chat, with};

/// What is wrong with a value under a schema of the document; every keyword is either known here, or fails the test.
fn faults(document: &Value, schema: &Value, value: &Value, at: &str) -> Vec<String> {
    let Value::Object(keywords) = schema else {
        return if *schema == json!(false) { vec![format!("{at} is not allowed")] } else { Vec::new() };
    };
    let mut found = Vec::new();
    for (keyword, says) in keywords {
        let listed = || says.as_array().expect("it is a list");
        let is_valid = |schema: &&Value| faults(document, schema, value, at).is_empty();
        let is_right = match keyword.as_str() {
            "$ref" => {
                let pointer = says.as_str().expect("it is text").trim_start_matches('#');
                found.extend(faults(document, document.pointer(pointer).expect("it leads somewhere"), value, at));
                true
            }
            "type" => {
                says.as_array().map_or(vec![says], |types| types.iter().collect()).iter().any(|kind| is_a(kind, value))
            }
            "const" => says == value,
            "enum" => listed().contains(value),
            "anyOf" => listed().iter().any(|schema| is_valid(&schema)),
            "oneOf" => listed().iter().filter(is_valid).count() == 1,
            "allOf" => listed().iter().all(|schema| is_valid(&schema)),
            "minimum" => value.as_f64().is_none_or(|number| number >= says.as_f64().expect("a number")),
            "maximum" => value.as_f64().is_none_or(|number| number <= says.as_f64().expect("a number")),
            "maxItems" => value.as_array().is_none_or(|items| items.len() as u64 <= says.as_u64().expect("a count")),
            "minItems" => value.as_array().is_none_or(|items| items.len() as u64 >= says.as_u64().expect("a count")),
            "required" => value
                .as_object()
                .is_none_or(|object| listed().iter().all(|name| object.contains_key(name.as_str().expect("a name")))),
            "items" => {
                for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                    found.extend(faults(document, says, item, &format!("{at}[{index}]")));
                }
                true
            }
            "properties" => {
                for (name, property) in value.as_object().into_iter().flatten() {
                    found.extend(
                        says.get(name)
                            .into_iter()
                            .flat_map(|schema| faults(document, schema, property, &format!("{at}.{name}"))),
                    );
                }
                true
            }
            "additionalProperties" => {
                let listed = |name: &String| schema["properties"].get(name).is_some();
                for (name, property) in value.as_object().into_iter().flatten().filter(|(name, _)| !listed(name)) {
                    // Keys that are numbers are described by a pattern.
                    if schema.get("patternProperties").is_none() {
                        found.extend(faults(document, says, property, &format!("{at}.{name}")));
                    }
                }
                true
            }
            "description" | "format" | "title" | "default" | "patternProperties" => true,
            unknown => panic!("the keyword {unknown} is not known here: {schema}"),
        };
        if !is_right {
            found.push(format!("{at} = {value} is not as {keyword} {says} has it"));
        }
    }
    found
}

fn is_a(kind: &Value, value: &Value) -> bool {
    match kind.as_str().expect("it is a name") {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        kind => panic!("there is no type {kind}"),
    }
}

/// Holds a reply to what the document says of its path.
fn check(document: &Value, method: &str, path: &str, reply: &Reply) {
    let operation = &document["paths"][path][method];
    let status = if reply.status == 200 { "200".to_owned() } else { format!("{}XX", reply.status / 100) };
    let schema = &operation["responses"][&status]["content"]["application/json"]["schema"];
    assert!(schema.is_object(), "{method} {path} {status} is described");
    let faults = faults(document, schema, &reply.json(), "");
    assert!(faults.is_empty(), "{method} {path}: {faults:?}\n{}", reply.text);
}

/// Whether the document takes this as a request.
fn takes(document: &Value, path: &str, request: &Value) -> bool {
    let schema = &document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"];
    faults(document, schema, request, "").is_empty()
}

#[test]
fn what_is_answered_is_what_is_described() {
    let service = Service::with(Choices { embeds: true, ..Choices::default() });
    let document = service.get("/openapi.json").ok();
    let version = document["openapi"].as_str().expect("it is text");
    assert!(version.starts_with("3.1"), "{version}");
    for path in ["/health", "/ready", "/version", "/openapi.json", "/v1/models", "/v1/usage/me"] {
        let reply = service.get(path);
        reply.ok();
        check(&document, "get", path, &reply);
    }
    check(&document, "get", "/v1/models/{name}", &service.get("/v1/models/tiny"));
    check(&document, "get", "/v1/models/{name}", &service.get("/v1/models/other"));
    for path in ["/v1/organization/usage/completions", "/v1/organization/costs"] {
        check(&document, "get", path, &service.get(&format!("{path}?start_time=0")));
        check(&document, "get", path, &service.get(path));
    }
    let messages = json!([{ "role": "user", "content": "The light was" }]);
    let message = json!({ "model": MODEL, "messages": messages, "max_tokens": 4 });
    for (path, request) in [
        ("/v1/chat/completions", chat(json!({}))),
        ("/v1/chat/completions", chat(json!({ "logprobs": true, "top_logprobs": 2, "n": 2, "stop": ["a", "b"] }))),
        ("/v1/chat/completions", chat(json!({ "temperature": 9 }))),
        ("/v1/completions", json!({ "model": MODEL, "prompt": "Once", "max_tokens": 4, "logprobs": 2 })),
        ("/v1/completions", json!({ "model": MODEL, "prompt": [[5, 6]], "max_tokens": 4 })),
        ("/v1/embeddings", json!({ "model": EMBEDDER, "input": ["one", "two"] })),
        ("/v1/embeddings", json!({ "model": EMBEDDER, "input": [5, 6], "encoding_format": "base64", "dimensions": 8 })),
        ("/v1/embeddings", json!({ "model": MODEL, "input": [[5], [6]] })),
        ("/v1/responses", json!({ "model": MODEL, "input": "Once", "max_output_tokens": 4 })),
        ("/v1/messages", message.clone()),
        ("/v1/messages", with(message.clone(), json!({ "model": "other" }))),
        ("/v1/messages/count_tokens", with(message, json!({ "max_tokens": null }))),
        ("/tokenize", json!({ "prompt": "Once" })),
        ("/tokenize", json!({ "messages": messages, "return_token_strs": true })),
        ("/detokenize", json!({ "tokens": [5, 6] })),
    ] {
        assert!(takes(&document, path, &request), "{path} takes {request}");
        check(&document, "post", path, &service.post(path, &request));
    }
    assert!(!takes(&document, "/v1/chat/completions", &chat(json!({ "flavour": 1 }))), "what is unknown is refused");
    assert!(!takes(&document, "/v1/chat/completions", &chat(json!({ "model": 5 }))));
}
