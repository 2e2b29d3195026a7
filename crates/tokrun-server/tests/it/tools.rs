//! Tools: calls that a model makes by itself, and calls that it must make.

use serde_json::{Value, json};

use crate::support::{Choices, MODEL, Service, with};

fn weather() -> Value {
    json!({
        "type": "object",
        "properties": {
            "city": { "type": "string", "enum": ["Oslo", "Rome"] },
            "days": { "type": "integer", "minimum": 1, "maximum": 9 },
        },
        "required": ["city", "days"],
    })
}

fn functions() -> Value {
    json!([
        { "type": "function", "function": { "name": "weather", "description": "Tells.", "parameters": weather() } },
        { "type": "function", "function": { "name": "time" } },
    ])
}

fn ask(extra: Value) -> Value {
    let messages = json!([{ "role": "user", "content": "What is it like in Oslo?" }]);
    let request =
        json!({ "model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 600, "tools": functions() });
    with(request, extra)
}

const CALLS: &str = "Let me see.\n\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Oslo\", \"days\": 3}}\n\
                     </tool_call>\n<tool_call>\n{\"name\": \"time\", \"arguments\": {}}\n</tool_call>";

fn is_weather(arguments: &str) {
    let arguments: Value = serde_json::from_str(arguments).unwrap_or_else(|error| panic!("{error}: {arguments}"));
    let keys: Vec<&String> = arguments.as_object().expect("it is an object").keys().collect();
    assert_eq!(keys, ["city", "days"]);
    assert!(arguments["city"] == "Oslo" || arguments["city"] == "Rome", "{arguments}");
    assert!(arguments["days"].as_i64().is_some_and(|days| (1..=9).contains(&days)), "{arguments}");
}

#[test]
fn calls_are_told_from_words() {
    let service = Service::saying(CALLS);
    let before = service.balance();
    let answer = service.post("/v1/chat/completions", &ask(json!({}))).ok();
    let choice = &answer["choices"][0];
    assert_eq!(
        (&choice["finish_reason"], &choice["message"]["content"]),
        (&json!("tool_calls"), &json!("Let me see."))
    );
    let calls = choice["message"]["tool_calls"].as_array().expect("there are calls");
    let names: Vec<&Value> = calls.iter().map(|call| &call["function"]["name"]).collect();
    assert_eq!(names, ["weather", "time"]);
    assert!(
        calls
            .iter()
            .all(|call| call["type"] == "function" && call["id"].as_str().is_some_and(|id| id.starts_with("call_")))
    );
    assert_ne!(calls[0]["id"], calls[1]["id"]);
    assert_eq!(calls[0]["function"]["arguments"], "{\"city\": \"Oslo\", \"days\": 3}");
    assert_eq!(answer["usage"]["total_tokens"], before - service.balance());

    // Without tools the same answer is words.
    let answer = service.post("/v1/chat/completions", &ask(json!({ "tools": null }))).ok();
    assert_eq!(
        (&answer["choices"][0]["message"]["content"], &answer["choices"][0]["finish_reason"]),
        (&json!(CALLS), &json!("stop"))
    );
    let answer = service.post("/v1/chat/completions", &ask(json!({ "tool_choice": "none" }))).ok();
    assert_eq!(answer["choices"][0]["message"]["content"], CALLS);
}

#[test]
fn calls_stream_by_name_first_and_then_by_their_arguments() {
    let service = Service::saying(CALLS);
    let events: Vec<String> =
        service.stream("/v1/chat/completions", &ask(json!({ "stream": true }))).map(|(_, data)| data).collect();
    let chunks: Vec<Value> =
        events.iter().filter(|data| *data != "[DONE]").map(|data| serde_json::from_str(data).expect("JSON")).collect();
    let mut calls: Vec<(Value, String, String)> = Vec::new();
    for call in chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["tool_calls"].get(0)) {
        let arguments = call["function"]["arguments"].as_str().expect("it is text");
        if let Some(name) = call["function"]["name"].as_str() {
            assert_eq!((&call["index"], &call["type"], arguments), (&json!(calls.len()), &json!("function"), ""));
            calls.push((call["id"].clone(), name.to_owned(), String::new()));
        } else {
            assert_eq!(call["index"], calls.len() - 1);
            assert!(call.get("id").is_none() && call.get("type").is_none());
            calls.last_mut().expect("a call comes first").2.push_str(arguments);
        }
    }
    let read: Vec<(&str, &str)> =
        calls.iter().map(|(_, name, arguments)| (name.as_str(), arguments.as_str())).collect();
    assert_eq!(read, [("weather", "{\"city\": \"Oslo\", \"days\": 3}"), ("time", "{}")]);
    let words: String = chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(words, "Let me see.");
    assert_eq!(chunks[chunks.len() - 1]["choices"][0]["finish_reason"], "tool_calls");
}

#[test]
fn one_call_is_one_call() {
    let service = Service::saying(CALLS);
    let answer = service.post("/v1/chat/completions", &ask(json!({ "parallel_tool_calls": false }))).ok();
    let calls = answer["choices"][0]["message"]["tool_calls"].as_array().expect("there is a call");
    assert_eq!((calls.len(), &answer["choices"][0]["finish_reason"]), (1, &json!("tool_calls")));
}

#[test]
fn a_strict_tool_is_called_as_its_schema_says() {
    let says =
        "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Atlantis\", \"days\": 99}}\n</tool_call>";
    let service = Service::saying(says);
    let mut tools = functions();
    tools[0]["function"]["strict"] = true.into();
    let answer = service.post("/v1/chat/completions", &ask(json!({ "tools": tools }))).ok();
    let message = &answer["choices"][0]["message"];
    is_weather(message["tool_calls"][0]["function"]["arguments"].as_str().unwrap_or_else(|| panic!("{answer}")));
    // One that is not strict is the model's to get wrong.
    let answer = service.post("/v1/chat/completions", &ask(json!({}))).ok();
    let call = &answer["choices"][0]["message"]["tool_calls"][0]["function"];
    assert_eq!(call["arguments"], "{\"city\": \"Atlantis\", \"days\": 99}");
}

/// A model that knows nothing of tools, and whose tokens mean nothing.
#[test]
fn a_call_that_must_come_comes() {
    let service = Service::with(Choices { context_tokens: 4096, ..Choices::default() });
    let named = json!({ "type": "function", "function": { "name": "weather" } });
    for extra in [json!({ "tool_choice": named }), json!({ "tool_choice": named, "temperature": 1.0, "seed": 7 })] {
        let answer = service.post("/v1/chat/completions", &ask(extra)).ok();
        let choice = &answer["choices"][0];
        assert_eq!(
            (&choice["finish_reason"], &choice["message"]["content"]),
            (&json!("tool_calls"), &Value::Null),
            "{answer}"
        );
        let calls = choice["message"]["tool_calls"].as_array().expect("there is a call");
        assert_eq!((calls.len(), &calls[0]["function"]["name"]), (1, &json!("weather")));
        is_weather(calls[0]["function"]["arguments"].as_str().expect("it is text"));
    }
    let required = json!({ "tool_choice": "required", "parallel_tool_calls": false, "temperature": 1.0, "seed": 3 });
    let answer = service.post("/v1/chat/completions", &ask(required)).ok();
    let call = &answer["choices"][0]["message"]["tool_calls"][0]["function"];
    assert!(call["name"] == "weather" || call["name"] == "time", "{answer}");
    // What a grammar cannot hold is the model's, unless the tool is strict.
    let schema = json!({ "type": "object", "properties": { "a": { "type": "string" } }, "not": { "required": ["a"] } });
    let tool = |strict: bool| json!([{ "type": "function", "function": { "name": "odd", "parameters": schema, "strict": strict } }]);
    let reply = service.post("/v1/chat/completions", &ask(json!({ "tools": tool(true), "tool_choice": "required" })));
    assert_eq!((reply.status, &reply.json()["error"]["param"]), (400, &json!("tools")), "{}", reply.text);
    let loose = json!({ "tools": tool(false), "tool_choice": "required", "max_tokens": 100 });
    let answer = service.post("/v1/chat/completions", &ask(loose)).ok();
    assert_eq!(answer["choices"][0]["message"]["tool_calls"][0]["function"]["name"], "odd");
}

#[test]
fn results_of_calls_are_taken_back() {
    let messages = json!([
        { "role": "user", "content": "What is it like in Oslo?" },
        { "role": "assistant", "content": null, "tool_calls": [
            { "id": "call_1", "type": "function", "function": { "name": "weather", "arguments": "{\"city\": \"Oslo\"}" } },
        ] },
        { "role": "tool", "tool_call_id": "call_1", "content": "Rain." },
    ]);
    // A template that knows tools, and one that knows none.
    for service in [Service::saying("It rains."), Service::with(Choices { context_tokens: 4096, ..Choices::default() })]
    {
        let answer = service.post("/v1/chat/completions", &ask(json!({ "messages": messages, "max_tokens": 5 }))).ok();
        assert_eq!(answer["object"], "chat.completion");
    }
}

#[test]
fn wrong_tools_are_told_what_is_wrong() {
    let service = Service::saying("No.");
    let message = |extra: Value| json!({ "messages": [with(json!({ "role": "assistant", "content": "x" }), extra)] });
    let tool = |function: Value| json!({ "tools": [{ "type": "function", "function": function }] });
    let call = json!([{ "id": "1", "type": "function", "function": { "name": "f", "arguments": "{" } }]);
    for (extra, param) in [
        (json!({ "tools": [{ "type": "web_search" }] }), "tools"),
        (tool(json!({ "name": "no spaces" })), "tools"),
        (tool(json!({ "name": "f", "parameters": [] })), "tools"),
        (json!({ "tool_choice": { "type": "function", "function": { "name": "other" } } }), "tool_choice"),
        (json!({ "tool_choice": "sometimes" }), "tool_choice"),
        (json!({ "tools": null, "tool_choice": "required" }), "tool_choice"),
        (json!({ "response_format": { "type": "json_object" } }), "response_format"),
        (message(json!({ "tool_calls": call })), "messages"),
        (message(json!({ "role": "tool" })), "messages"),
        (
            message(
                json!({ "role": "user", "tool_calls": [{ "id": "1", "function": { "name": "f", "arguments": "{}" } }] }),
            ),
            "messages",
        ),
    ] {
        let reply = service.post("/v1/chat/completions", &ask(extra.clone()));
        assert_eq!((reply.status, &reply.json()["error"]["param"]), (400, &json!(param)), "{extra} {}", reply.text);
    }
    assert_eq!(service.balance(), 1_000_000);
}

fn message(extra: Value) -> Value {
    let messages = json!([{ "role": "user", "content": "What is it like in Oslo?" }]);
    let tools = json!([{ "name": "weather", "description": "Tells.", "input_schema": weather() }, { "name": "time", "input_schema": { "type": "object" } }]);
    with(json!({ "model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 600, "tools": tools }), extra)
}

#[test]
fn messages_use_tools_and_take_their_results() {
    let service = Service::saying(CALLS);
    let answer = service.post("/v1/messages", &message(json!({}))).ok();
    assert_eq!(answer["stop_reason"], "tool_use");
    let content = answer["content"].as_array().expect("there are blocks");
    let kinds: Vec<&Value> = content.iter().map(|block| &block["type"]).collect();
    assert_eq!(kinds, ["text", "tool_use", "tool_use"]);
    assert_eq!((&content[1]["name"], &content[1]["input"]), (&json!("weather"), &json!({ "city": "Oslo", "days": 3 })));
    assert!(content[1]["id"].as_str().is_some_and(|id| id.starts_with("toolu_")));

    let events: Vec<(Option<String>, String)> =
        service.stream("/v1/messages", &message(json!({ "stream": true }))).collect();
    let events: Vec<Value> = events.iter().map(|(_, data)| serde_json::from_str(data).expect("JSON")).collect();
    let begun: Vec<&Value> = events
        .iter()
        .filter(|event| event["type"] == "content_block_start")
        .map(|event| &event["content_block"]["type"])
        .collect();
    assert_eq!(begun, ["text", "tool_use", "tool_use"]);
    let input: String = events
        .iter()
        .filter(|event| event["index"] == 1)
        .filter_map(|event| event["delta"]["partial_json"].as_str())
        .collect();
    assert_eq!(input, "{\"city\": \"Oslo\", \"days\": 3}");
    assert!(events.iter().any(|event| event["delta"]["stop_reason"] == "tool_use"));

    let turns = json!([
        { "role": "user", "content": "What is it like in Oslo?" },
        { "role": "assistant", "content": content },
        { "role": "user", "content": [
            { "type": "tool_result", "tool_use_id": content[1]["id"], "content": [{ "type": "text", "text": "Rain." }] },
            { "type": "tool_result", "tool_use_id": content[2]["id"], "is_error": true },
            { "type": "text", "text": "And?" },
        ] },
    ]);
    service.post("/v1/messages", &message(json!({ "messages": turns }))).ok();
    let choice = json!({ "type": "tool", "name": "weather" });
    let answer = service.post("/v1/messages", &message(json!({ "tool_choice": choice }))).ok();
    assert_eq!(
        (&answer["content"][0]["type"], &answer["content"][0]["name"]),
        (&json!("tool_use"), &json!("weather")),
        "{answer}"
    );
    let reply =
        service.post("/v1/messages", &message(json!({ "tools": [{ "type": "bash_20250124", "name": "bash" }] })));
    assert_eq!(reply.status, 400, "{}", reply.text);
    let counted = |tools: Value| {
        let request = message(json!({ "tools": tools, "max_tokens": null }));
        service.post("/v1/messages/count_tokens", &request).ok()["input_tokens"].as_u64().expect("a count")
    };
    assert!(counted(message(json!({}))["tools"].clone()) > counted(json!(null)));
}

#[test]
fn responses_call_functions_and_take_their_outputs() {
    let service = Service::saying(CALLS);
    let tools = json!([{ "type": "function", "name": "weather", "parameters": weather() }, { "type": "function", "name": "time" }]);
    let request = |extra: Value| {
        with(
            json!({ "model": MODEL, "input": "What is it like?", "temperature": 0, "max_output_tokens": 600, "tools": tools }),
            extra,
        )
    };
    let answer = service.post("/v1/responses", &request(json!({}))).ok();
    assert_eq!(answer["status"], "completed");
    let output = answer["output"].as_array().expect("there are items");
    let kinds: Vec<&Value> = output.iter().map(|item| &item["type"]).collect();
    assert_eq!(kinds, ["message", "function_call", "function_call"]);
    assert_eq!(
        (&output[1]["name"], &output[1]["arguments"]),
        (&json!("weather"), &json!("{\"city\": \"Oslo\", \"days\": 3}"))
    );

    let events: Vec<(Option<String>, String)> =
        service.stream("/v1/responses", &request(json!({ "stream": true }))).collect();
    let events: Vec<Value> = events.iter().map(|(_, data)| serde_json::from_str(data).expect("JSON")).collect();
    let of = |kind: &str| events.iter().filter(|event| event["type"] == kind).cloned().collect::<Vec<Value>>();
    let arguments: String = of("response.function_call_arguments.delta")
        .iter()
        .filter(|event| event["output_index"] == 1)
        .filter_map(|event| event["delta"].as_str())
        .collect();
    assert_eq!(arguments, output[1]["arguments"]);
    assert_eq!(of("response.output_item.done").len(), 3);
    let last = &events[events.len() - 1]["response"]["output"];
    assert_eq!(last[1]["arguments"], output[1]["arguments"]);

    let mut input = vec![json!({ "role": "user", "content": "What is it like?" })];
    input.extend(output.clone());
    input.push(json!({ "type": "function_call_output", "call_id": output[1]["call_id"], "output": "Rain." }));
    service.post("/v1/responses", &request(json!({ "input": input }))).ok();
    let choice = json!({ "type": "function", "name": "time" });
    let answer = service.post("/v1/responses", &request(json!({ "tool_choice": choice }))).ok();
    assert_eq!((&answer["output"][0]["type"], &answer["output"][0]["name"]), (&json!("function_call"), &json!("time")));
}
