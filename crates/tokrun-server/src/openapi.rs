//! `/openapi.json`: what is served, in OpenAPI's terms, made of the very types that requests are read into and that
//! answers are written from.

use axum::response::Response;
use schemars::generate::{SchemaGenerator, SchemaSettings};
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value, json};

use crate::openai::{chat, completions, embeddings, models};
use crate::reply::ok;
use crate::{anthropic, responses, tokens};

/// The document.
pub(crate) async fn openapi() -> Response {
    ok(&document())
}

/// What one path does.
struct Operation {
    path: &'static str,
    summary: &'static str,
    /// What is sent there; nothing, for what is only asked.
    request: Option<Schema>,
    /// What comes back.
    response: Schema,
    /// The answer can come as server-sent events.
    streams: bool,
    /// Needs an access key, where the server needs any.
    needs_key: bool,
    parameters: Value,
}

pub(crate) fn document() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
    });
    let mut schemas = settings.into_generator();
    let mut paths = Map::new();
    for operation in operations(&mut schemas) {
        let method = if operation.request.is_some() { "post" } else { "get" };
        paths.insert(operation.path.to_owned(), json!({ method: operation.described() }));
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "tokrun",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "A metered inference service: what OpenAI's and Anthropic's clients speak, every token paid before it is sent.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas.take_definitions(true),
            "securitySchemes": { "key": { "type": "http", "scheme": "bearer" }, "x-api-key": { "type": "apiKey", "in": "header", "name": "x-api-key" } },
        },
    })
}

impl Operation {
    /// Something that is asked, and needs a key.
    fn get(path: &'static str, summary: &'static str, response: Schema) -> Self {
        Self { path, summary, request: None, response, streams: false, needs_key: true, parameters: json!([]) }
    }

    /// Something that is sent.
    fn post<T: JsonSchema>(
        path: &'static str,
        summary: &'static str,
        schemas: &mut SchemaGenerator,
        response: Schema,
    ) -> Self {
        Self { request: Some(schemas.subschema_for::<T>()), ..Self::get(path, summary, response) }
    }

    fn open(self) -> Self {
        Self { needs_key: false, ..self }
    }

    fn streaming(self) -> Self {
        Self { streams: true, ..self }
    }

    fn described(&self) -> Value {
        let mut content = json!({ "application/json": { "schema": self.response } });
        if self.path == "/metrics" {
            content = json!({ "text/plain": { "schema": { "type": "string" } } });
        }
        if self.streams {
            content["text/event-stream"] = json!({ "schema": { "type": "string" } });
        }
        let refused = json!({ "description": "It was refused, or it failed.", "content": { "application/json": { "schema": error() } } });
        let mut described = json!({
            "operationId": self.path.trim_matches('/').replace(['/', '{', '}', '*'], "_"),
            "summary": self.summary,
            "parameters": self.parameters,
            "responses": { "200": { "description": "All went well.", "content": content }, "4XX": refused, "5XX": refused },
        });
        if let Some(request) = &self.request {
            described["requestBody"] =
                json!({ "required": true, "content": { "application/json": { "schema": request } } });
        }
        if self.needs_key {
            // Without one where the operator has named somebody who pays for that.
            described["security"] = json!([{ "key": [] }, { "x-api-key": [] }, {}]);
        }
        described
    }
}

fn operations(schemas: &mut SchemaGenerator) -> Vec<Operation> {
    let status = || object(&["status"]);
    let list = schemas.subschema_for::<models::List>();
    let entry = schemas.subschema_for::<models::Entry>();
    let chat_answer = schemas.subschema_for::<chat::answer::Completion<'_>>();
    let completion = schemas.subschema_for::<completions::Completion<'_>>();
    let embedding_list = schemas.subschema_for::<embeddings::EmbeddingList<'_>>();
    let message = schemas.subschema_for::<anthropic::answer::WireMessage<'_>>();
    let response = object(&["id", "object", "status", "model", "output", "usage", "tokrun"]);
    vec![
        Operation::get("/health", "Whether the server lives", status()).open(),
        Operation::get("/ready", "Whether it takes requests", status()).open(),
        Operation::get("/version", "What runs", object(&["version"])).open(),
        Operation::get("/openapi.json", "This document", object(&["openapi", "paths"])).open(),
        Operation::get("/metrics", "Figures in Prometheus's form", schema(json!({ "type": "string" }))).open(),
        Operation::get("/v1/models", "The models that can be asked", list),
        Operation {
            parameters: json!([{ "name": "name", "in": "path", "required": true, "schema": { "type": "string" } }]),
            ..Operation::get("/v1/models/{name}", "One of them", entry)
        },
        Operation::post::<chat::ChatRequest>("/v1/chat/completions", "Answers a conversation", schemas, chat_answer)
            .streaming(),
        Operation::post::<completions::CompletionRequest>(
            "/v1/completions",
            "Goes on with a text",
            schemas,
            completion,
        )
        .streaming(),
        Operation::post::<embeddings::EmbeddingsRequest>(
            "/v1/embeddings",
            "Gives each text a vector",
            schemas,
            embedding_list,
        ),
        Operation::post::<responses::ResponsesRequest>(
            "/v1/responses",
            "Answers, in OpenAI's newer form",
            schemas,
            response,
        )
        .streaming(),
        Operation::post::<anthropic::MessagesRequest>("/v1/messages", "Answers, in Anthropic's form", schemas, message)
            .streaming(),
        Operation::post::<anthropic::MessagesRequest>(
            "/v1/messages/count_tokens",
            "Counts a conversation's tokens",
            schemas,
            object(&["input_tokens"]),
        ),
        Operation::get(
            "/v1/usage/me",
            "What the caller has, and has used",
            object(&["object", "wallet", "balance", "unit"]),
        ),
        Operation {
            parameters: page_parameters(),
            ..Operation::get("/v1/organization/usage/completions", "Tokens by time", page())
        },
        Operation {
            parameters: page_parameters(),
            ..Operation::get("/v1/organization/costs", "Credits by time", page())
        },
        Operation::post::<tokens::Tokenize>(
            "/tokenize",
            "Text or a conversation to tokens",
            schemas,
            object(&["count", "max_model_len", "tokens"]),
        ),
        Operation::post::<tokens::Detokenize>("/detokenize", "Tokens to text", schemas, object(&["prompt"])),
    ]
}

/// An object that has at least these.
fn object(required: &[&str]) -> Schema {
    schema(json!({ "type": "object", "required": required }))
}

fn page() -> Schema {
    let bucket = json!({ "type": "object", "required": ["object", "start_time", "end_time", "results"] });
    let properties = json!({ "data": { "type": "array", "items": bucket }, "has_more": { "type": "boolean" } });
    schema(
        json!({ "type": "object", "required": ["object", "data", "has_more", "next_page"], "properties": properties }),
    )
}

fn page_parameters() -> Value {
    let parameter = |name: &str, required: bool, schema: Value| json!({ "name": name, "in": "query", "required": required, "schema": schema });
    let time = || json!({ "type": "integer", "minimum": 0 });
    json!([
        parameter("start_time", true, time()),
        parameter("end_time", false, time()),
        parameter("limit", false, json!({ "type": "integer" }))
    ])
}

/// OpenAI's errors and Anthropic's both have this.
fn error() -> Value {
    let error =
        json!({ "type": "object", "required": ["type", "message"], "properties": { "message": { "type": "string" } } });
    json!({ "type": "object", "required": ["error"], "properties": { "error": error } })
}

fn schema(value: Value) -> Schema {
    Schema::try_from(value).expect("an object is a schema")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_is_described_and_nothing_else() {
        let document = document();
        let described: Vec<&String> = document["paths"].as_object().expect("there are paths").keys().collect();
        let served: Vec<String> = crate::routes::routes().iter().map(|(path, _)| path.replace("{*", "{")).collect();
        assert_eq!(described, served.iter().collect::<Vec<_>>());
    }

    #[test]
    fn every_reference_leads_somewhere() {
        fn check(value: &Value, document: &Value) {
            match value {
                Value::Object(object) => {
                    if let Some(Value::String(reference)) = object.get("$ref") {
                        let pointer = reference.strip_prefix('#').unwrap_or_else(|| panic!("{reference}"));
                        assert!(document.pointer(pointer).is_some(), "{reference}");
                    }
                    object.values().for_each(|value| check(value, document));
                }
                Value::Array(values) => values.iter().for_each(|value| check(value, document)),
                _ => {}
            }
        }
        let document = document();
        check(&document, &document);
    }
}
