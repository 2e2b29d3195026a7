//! `/v1/responses`: OpenAI's newer form, as far as it is about text. Nothing is kept, so no response continues another.

use std::collections::BTreeMap;

use axum::response::{IntoResponse, Response};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokrun_ledger::FinishReason;
use tokrun_runtime::{ChatMessage, Delta, Grammar, Outcome, Prompt, Usage};

use crate::asked::Asked;
use crate::begin::{Begun, Sampling, Summary, Wanted};
use crate::content::Content;
use crate::error::ApiError;
use crate::openai::request::tags;
use crate::reply::ok;
use crate::sse::{self, Frames, Scribe};

/// What is asked.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ResponsesRequest {
    model: String,
    input: Input,
    instructions: Option<String>,
    max_output_tokens: Option<usize>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    stream: Option<bool>,
    text: Option<TextOptions>,
    user: Option<String>,
    metadata: Option<BTreeMap<String, String>>,
    store: Option<bool>,
    background: Option<bool>,
    background_options: Option<IgnoredAny>,
    access_programs: Option<IgnoredAny>,
    image: Option<IgnoredAny>,
    previous_response_id: Option<String>,
    conversation: Option<IgnoredAny>,
    prompt: Option<IgnoredAny>,
    tools: Option<Vec<IgnoredAny>>,
    tool_choice: Option<IgnoredAny>,
    include: Option<Vec<IgnoredAny>>,
    reasoning: Option<Reasoning>,
    truncation: Option<String>,
    top_logprobs: Option<usize>,
    max_tool_calls: Option<usize>,
    context_management: Option<IgnoredAny>,
    moderation: Option<IgnoredAny>,
    #[expect(dead_code, reason = "there are no tools that could be called at once")]
    parallel_tool_calls: Option<bool>,
    #[expect(dead_code, reason = "a hint that changes no answer")]
    service_tier: Option<String>,
    #[expect(dead_code, reason = "a hint that changes no answer")]
    prompt_cache_key: Option<String>,
    #[expect(dead_code, reason = "a hint that changes no answer")]
    prompt_cache_options: Option<IgnoredAny>,
    #[expect(dead_code, reason = "a hint that changes no answer")]
    prompt_cache_retention: Option<String>,
    #[expect(dead_code, reason = "a hint that changes no answer")]
    safety_identifier: Option<String>,
    #[expect(dead_code, reason = "padding against those who measure packets; there is none here")]
    stream_options: Option<IgnoredAny>,
}

/// Text, or turns of a conversation.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a string or a list of messages")]
enum Input {
    Text(String),
    Items(Vec<Item>),
}

/// A turn. What clients send back of an answer has more fields than it needs.
#[derive(Debug, Deserialize)]
struct Item {
    #[serde(rename = "type", default = "message")]
    kind: String,
    role: Option<String>,
    content: Option<Content>,
}

fn message() -> String {
    "message".to_owned()
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TextOptions {
    format: Option<Map<String, Value>>,
    verbosity: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct Reasoning {
    effort: Option<IgnoredAny>,
    summary: Option<IgnoredAny>,
}

impl ResponsesRequest {
    fn wanted(&self) -> Result<Wanted, ApiError> {
        self.refuse_unsupported()?;
        Ok(Wanted {
            model: self.model.clone(),
            prompts: vec![Prompt::Chat(self.messages()?)],
            n: 1,
            max_tokens: self.max_output_tokens,
            sampling: Sampling { temperature: self.temperature, top_p: self.top_p, ..Sampling::default() },
            grammar: self.grammar()?,
            tags: tags(self.user.as_deref(), self.metadata.as_ref())?,
            ..Wanted::default()
        })
    }

    fn messages(&self) -> Result<Vec<ChatMessage>, ApiError> {
        let system = |text: &String| ChatMessage { role: "system".to_owned(), content: text.clone() };
        let mut messages: Vec<ChatMessage> = self.instructions.iter().map(system).collect();
        match &self.input {
            Input::Text(text) => messages.push(ChatMessage { role: "user".to_owned(), content: text.clone() }),
            Input::Items(items) => {
                for item in items {
                    messages.push(item.chat_message()?);
                }
            }
        }
        if messages.len() == self.instructions.iter().len() {
            return Err(ApiError::invalid_param("input", "The list of messages is empty."));
        }
        Ok(messages)
    }

    fn grammar(&self) -> Result<Option<Grammar>, ApiError> {
        let Some(format) = self.text.as_ref().and_then(|text| text.format.as_ref()) else { return Ok(None) };
        let schema = match format.get("type").and_then(Value::as_str) {
            Some("text") => return Ok(None),
            Some("json_object") => json!({ "type": "object" }).to_string(),
            Some("json_schema") => match format.get("schema") {
                Some(schema) => schema.to_string(),
                None => return Err(ApiError::invalid_param("text.format.schema", "There is no schema.")),
            },
            _ => {
                let message = "The type of a format is 'text', 'json_object' or 'json_schema'.";
                return Err(ApiError::invalid_param("text.format.type", message));
            }
        };
        Ok(Some(Grammar::JsonSchema(schema)))
    }

    fn refuse_unsupported(&self) -> Result<(), ApiError> {
        let named = |list: &Option<Vec<IgnoredAny>>| list.as_ref().is_some_and(|list| !list.is_empty());
        let keeps_nothing = "this server keeps no prompts and no answers";
        let does_not_know = "the models of this server do not know it";
        let reasons = |reasoning: &Reasoning| reasoning.effort.is_some() || reasoning.summary.is_some();
        for (param, is_asked, why) in [
            ("store", self.store == Some(true), keeps_nothing),
            ("background", self.background == Some(true), keeps_nothing),
            ("background_options", self.background_options.is_some(), keeps_nothing),
            ("access_programs", self.access_programs.is_some(), does_not_know),
            ("image", self.image.is_some(), does_not_know),
            ("previous_response_id", self.previous_response_id.is_some(), keeps_nothing),
            ("conversation", self.conversation.is_some(), keeps_nothing),
            ("prompt", self.prompt.is_some(), keeps_nothing),
            ("tools", named(&self.tools), does_not_know),
            ("tool_choice", self.tool_choice.is_some() && named(&self.tools), does_not_know),
            ("include", named(&self.include), does_not_know),
            ("reasoning", self.reasoning.as_ref().is_some_and(reasons), does_not_know),
            ("truncation", self.truncation.as_ref().is_some_and(|how| how != "disabled"), "no prompt is cut"),
            ("top_logprobs", self.top_logprobs.is_some_and(|top| top > 0), "ask /v1/chat/completions for them"),
            ("max_tool_calls", self.max_tool_calls.is_some(), does_not_know),
            ("context_management", self.context_management.is_some(), does_not_know),
            ("moderation", self.moderation.is_some(), does_not_know),
            ("text.verbosity", self.text.as_ref().is_some_and(TextOptions::asks_for_verbosity), does_not_know),
        ] {
            if is_asked {
                return Err(ApiError::unsupported(param, why));
            }
        }
        Ok(())
    }
}

impl TextOptions {
    fn asks_for_verbosity(&self) -> bool {
        self.verbosity.as_ref().is_some_and(|verbosity| *verbosity != json!("medium"))
    }
}

impl Item {
    fn chat_message(&self) -> Result<ChatMessage, ApiError> {
        if self.kind != "message" {
            let kind: String = self.kind.chars().take(64).collect();
            return Err(ApiError::invalid_param("input", format!("Items of type '{kind}' are not supported.")));
        }
        let role = match self.role.as_deref() {
            Some("developer" | "system") => "system",
            Some("user") => "user",
            Some("assistant") => "assistant",
            _ => {
                return Err(ApiError::invalid_param(
                    "input",
                    "A message's role is user, assistant, system or developer.",
                ));
            }
        };
        let content =
            self.content.as_ref().ok_or_else(|| ApiError::invalid_param("input", "A message has no content."))?;
        Ok(ChatMessage { role: role.to_owned(), content: content.text()? })
    }
}

/// Answers.
pub(crate) async fn create(asked: Asked) -> Response {
    let begun = asked.begin(|request: ResponsesRequest| Ok((request.wanted()?, request))).await;
    match begun {
        Ok((begun, request)) if request.stream == Some(true) => stream(begun, &request),
        Ok((begun, request)) => whole(begun, &request).await.unwrap_or_else(IntoResponse::into_response),
        Err(error) => error.into_response(),
    }
}

async fn whole(begun: Begun, request: &ResponsesRequest) -> Result<Response, ApiError> {
    let page = Page::new(&begun, request);
    let Begun { answers, limits, .. } = begun;
    let mut summary = Summary::default();
    let (_, outcome) = answers.collect().await?.swap_remove(0);
    summary.add(&outcome);
    let mut response = ok(&page.ended(&outcome, &summary));
    summary.tell(response.headers_mut());
    limits.tell(response.headers_mut());
    Ok(response)
}

/// The response object, which repeats what was asked.
struct Page {
    id: String,
    item_id: String,
    frame: Value,
}

impl Page {
    fn new(begun: &Begun, request: &ResponsesRequest) -> Self {
        let format = request.text.as_ref().and_then(|text| text.format.clone().map(Value::from));
        let id = begun.id.clone();
        let frame = json!({
            "id": format!("resp_{id}"),
            "object": "response",
            "created_at": begun.created.as_second(),
            "status": "in_progress",
            "background": false,
            "error": null,
            "incomplete_details": null,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "model": begun.model.name(),
            "output": [],
            "parallel_tool_calls": false,
            "previous_response_id": null,
            "reasoning": { "effort": null, "summary": null },
            "service_tier": "default",
            "store": false,
            "temperature": request.temperature.unwrap_or(begun.model.served.sampling.temperature),
            "text": { "format": format.unwrap_or_else(|| json!({ "type": "text" })) },
            "tool_choice": "auto",
            "tools": [],
            "top_p": request.top_p.unwrap_or(begun.model.served.sampling.top_p),
            "truncation": "disabled",
            "usage": null,
            "user": request.user,
            "metadata": request.metadata.clone().unwrap_or_default(),
        });
        Self { item_id: format!("msg_{id}"), id, frame }
    }

    fn item(&self, status: &str, content: &[Value]) -> Value {
        json!({ "type": "message", "id": self.item_id, "status": status, "role": "assistant", "content": content })
    }

    /// As it is at the end.
    fn ended(&self, outcome: &Outcome, summary: &Summary) -> Value {
        let mut page = self.frame.clone();
        let is_whole = outcome.finish_reason == FinishReason::Stop;
        let status = if is_whole { "completed" } else { "incomplete" };
        page["status"] = status.into();
        if !is_whole {
            page["incomplete_details"] = json!({ "reason": "max_output_tokens" });
        }
        page["output"] = json!([self.item(status, &[text_part(&outcome.text)])]);
        page["usage"] = json!(WireUsage::from(&summary.usage));
        page["tokrun"] = json!(summary.tokrun(&self.id));
        page
    }
}

fn text_part(text: &str) -> Value {
    json!({ "type": "output_text", "text": text, "annotations": [], "logprobs": [] })
}

#[derive(Serialize)]
struct WireUsage {
    input_tokens: u64,
    input_tokens_details: InputDetails,
    output_tokens: u64,
    output_tokens_details: OutputDetails,
    total_tokens: u64,
}

#[derive(Serialize)]
struct InputDetails {
    cached_tokens: u64,
}

#[derive(Serialize)]
struct OutputDetails {
    reasoning_tokens: u64,
}

impl From<&Usage> for WireUsage {
    fn from(usage: &Usage) -> Self {
        Self {
            input_tokens: usage.prompt_tokens,
            input_tokens_details: InputDetails { cached_tokens: usage.cached_tokens },
            output_tokens: usage.completion_tokens,
            output_tokens_details: OutputDetails { reasoning_tokens: 0 },
            total_tokens: usage.prompt_tokens + usage.completion_tokens,
        }
    }
}

fn stream(begun: Begun, request: &ResponsesRequest) -> Response {
    let page = Page::new(&begun, request);
    let Begun { answers, limits, .. } = begun;
    let mut response = sse::response(answers, PageScribe { page, sequence_number: 0 });
    limits.tell(response.headers_mut());
    response
}

struct PageScribe {
    page: Page,
    sequence_number: u64,
}

#[derive(Serialize)]
struct TextDelta<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    sequence_number: u64,
    item_id: &'a str,
    output_index: usize,
    content_index: usize,
    delta: &'a str,
    logprobs: [Value; 0],
}

impl PageScribe {
    fn next_number(&mut self) -> u64 {
        self.sequence_number += 1;
        self.sequence_number - 1
    }

    /// An event, with its name and number.
    fn send(&mut self, name: &str, mut event: Value, out: &mut Frames) {
        event["type"] = name.into();
        event["sequence_number"] = self.next_number().into();
        out.event(name, &event);
    }
}

impl Scribe for PageScribe {
    fn open(&mut self, out: &mut Frames) {
        let frame = self.page.frame.clone();
        self.send("response.created", json!({ "response": frame }), out);
        self.send("response.in_progress", json!({ "response": frame }), out);
        let item = self.page.item("in_progress", &[]);
        self.send("response.output_item.added", json!({ "output_index": 0, "item": item }), out);
        let place =
            json!({ "item_id": self.page.item_id, "output_index": 0, "content_index": 0, "part": text_part("") });
        self.send("response.content_part.added", place, out);
    }

    fn delta(&mut self, _choice: usize, delta: Delta, out: &mut Frames) {
        if delta.text.is_empty() {
            return;
        }
        let sequence_number = self.next_number();
        let name = "response.output_text.delta";
        out.event(
            name,
            &TextDelta {
                kind: name,
                sequence_number,
                item_id: &self.page.item_id,
                output_index: 0,
                content_index: 0,
                delta: &delta.text,
                logprobs: [],
            },
        );
    }

    fn finished(&mut self, _choice: usize, outcome: Outcome, out: &mut Frames) {
        let mut summary = Summary::default();
        summary.add(&outcome);
        let page = self.page.ended(&outcome, &summary);
        let place = |what: Value| {
            let mut place = json!({ "item_id": self.page.item_id, "output_index": 0, "content_index": 0 });
            place
                .as_object_mut()
                .into_iter()
                .for_each(|place| place.extend(what.as_object().cloned().unwrap_or_default()));
            place
        };
        let text = place(json!({ "text": outcome.text, "logprobs": [] }));
        let part = place(json!({ "part": text_part(&outcome.text) }));
        let item = json!({ "output_index": 0, "item": page["output"][0] });
        self.send("response.output_text.done", text, out);
        self.send("response.content_part.done", part, out);
        self.send("response.output_item.done", item, out);
        let is_whole = outcome.finish_reason == FinishReason::Stop;
        let name = if is_whole { "response.completed" } else { "response.incomplete" };
        self.send(name, json!({ "response": page }), out);
    }

    fn failed(&mut self, error: &ApiError, out: &mut Frames) {
        let mut page = self.page.frame.clone();
        page["status"] = "failed".into();
        page["error"] = json!({ "code": "server_error", "message": error.message });
        self.send("response.failed", json!({ "response": page }), out);
    }

    fn close(&mut self, _out: &mut Frames) {}
}
