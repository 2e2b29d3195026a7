//! `/v1/responses`: what is answered.

use axum::response::Response;
use serde::Serialize;
use serde_json::{Value, json};
use tokrun_ledger::FinishReason;
use tokrun_runtime::{Delta, Outcome, Usage};

use super::ResponsesRequest;
use crate::begin::{Begun, Summary};
use crate::error::ApiError;
use crate::reply::ok;
use crate::said::{Listener, Piece};
use crate::sse::{self, Frames, Scribe};

pub(super) async fn whole(begun: Begun, request: &ResponsesRequest) -> Result<Response, ApiError> {
    let mut page = Page::new(&begun, request);
    let Begun { answers, limits, .. } = begun;
    let mut summary = Summary::default();
    let (_, mut outcome) = answers.collect().await?.swap_remove(0);
    summary.add(&outcome);
    // The same items as in a stream, with nobody to follow how they come about.
    let mut unheard = Frames::default();
    page.hear(std::mem::take(&mut outcome.reasoning), std::mem::take(&mut outcome.text), &mut unheard);
    page.end_items(is_whole(&outcome), &mut unheard);
    let mut response = ok(&page.ended(&outcome, &summary));
    summary.tell(response.headers_mut());
    limits.tell(response.headers_mut());
    Ok(response)
}

pub(super) fn stream(begun: Begun, request: &ResponsesRequest) -> Response {
    let page = Page::new(&begun, request);
    let Begun { answers, limits, .. } = begun;
    let mut response = sse::response(answers, page);
    limits.tell(response.headers_mut());
    response
}

fn is_whole(outcome: &Outcome) -> bool {
    outcome.finish_reason == FinishReason::Stop
}

/// The response object, which repeats what was asked, and its items as they come.
struct Page {
    id: String,
    frame: Value,
    listener: Listener,
    /// Items that are complete.
    items: Vec<Value>,
    open: Option<Open>,
    sequence_number: u64,
}

/// The item that is being written.
struct Open {
    kind: Kind,
    id: String,
    text: String,
    /// Of a call: its id and its name.
    call: Option<(String, String)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Reasoning,
    Message,
    Call,
}

impl Kind {
    /// What its events are called.
    fn event(self) -> &'static str {
        match self {
            Self::Reasoning => "response.reasoning_text",
            Self::Message => "response.output_text",
            Self::Call => "response.function_call_arguments",
        }
    }

    fn part(self, text: &str) -> Value {
        match self {
            Self::Reasoning => json!({ "type": "reasoning_text", "text": text }),
            _ => json!({ "type": "output_text", "text": text, "annotations": [], "logprobs": [] }),
        }
    }
}

impl Open {
    fn item(&self, status: &str, content: &[Value]) -> Value {
        let id = &self.id;
        match (self.kind, &self.call) {
            (Kind::Reasoning, _) => {
                json!({ "type": "reasoning", "id": id, "status": status, "summary": [], "content": content })
            }
            (Kind::Call, Some((call_id, name))) => json!({
                "type": "function_call", "id": id, "status": status, "call_id": call_id, "name": name, "arguments": self.text
            }),
            _ => json!({ "type": "message", "id": id, "status": status, "role": "assistant", "content": content }),
        }
    }
}

/// More of an item's text.
#[derive(Serialize)]
struct TextDelta<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    sequence_number: u64,
    item_id: &'a str,
    output_index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_index: Option<usize>,
    delta: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<[Value; 0]>,
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
            "parallel_tool_calls": request.parallel_tool_calls.unwrap_or(true),
            "previous_response_id": null,
            "reasoning": { "effort": request.reasoning.as_ref().and_then(|reasoning| reasoning.effort.as_ref()), "summary": null },
            "service_tier": "default",
            "store": false,
            "temperature": request.temperature.unwrap_or(begun.model.model().served.sampling.temperature),
            "text": { "format": format.unwrap_or_else(|| json!({ "type": "text" })) },
            "tool_choice": request.tool_choice.clone().unwrap_or_else(|| "auto".into()),
            "tools": request.tools.as_deref().unwrap_or_default(),
            "top_p": request.top_p.unwrap_or(begun.model.model().served.sampling.top_p),
            "truncation": "disabled",
            "usage": null,
            "user": request.user,
            "metadata": request.metadata.clone().unwrap_or_default(),
        });
        let (items, listener) = (Vec::new(), begun.hearing.listener());
        Self { id, frame, listener, items, open: None, sequence_number: 0 }
    }

    /// As it is at the end.
    fn ended(&self, outcome: &Outcome, summary: &Summary) -> Value {
        let mut page = self.frame.clone();
        page["status"] = if is_whole(outcome) { "completed" } else { "incomplete" }.into();
        if !is_whole(outcome) {
            page["incomplete_details"] = json!({ "reason": "max_output_tokens" });
        }
        page["output"] = json!(self.items);
        page["usage"] = json!(WireUsage::from(&summary.usage));
        page["tokrun"] = json!(summary.tokrun(&self.id));
        page
    }

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

    /// An event about the item that is open.
    fn send_of(&mut self, open: &Open, name: &str, mut event: Value, out: &mut Frames) {
        event["item_id"] = open.id.as_str().into();
        event["output_index"] = self.items.len().into();
        if open.kind != Kind::Call {
            event["content_index"] = 0.into();
        }
        self.send(name, event, out);
    }

    fn hear(&mut self, reasoning: String, text: String, out: &mut Frames) {
        for piece in self.listener.hear(reasoning, text) {
            self.write(piece, out);
        }
    }

    fn write(&mut self, piece: Piece, out: &mut Frames) {
        match piece {
            Piece::Reasoning(text) => {
                self.begin(Kind::Reasoning, None, out);
                self.more(&text, out);
            }
            Piece::Text(text) => {
                self.begin(Kind::Message, None, out);
                self.more(&text, out);
            }
            Piece::Call { id, name } => {
                self.end_item("completed", out);
                self.begin(Kind::Call, Some((format!("call_{id}"), name)), out);
            }
            Piece::Arguments(text) => self.more(&text, out),
        }
    }

    /// Begins an item, unless one of its kind is open.
    fn begin(&mut self, kind: Kind, call: Option<(String, String)>, out: &mut Frames) {
        if self.open.as_ref().is_some_and(|open| open.kind == kind) {
            return;
        }
        self.end_item("completed", out);
        let prefix = match kind {
            Kind::Reasoning => "rs",
            Kind::Message => "msg",
            Kind::Call => "fc",
        };
        let number = self.items.len();
        let suffix = if number == 0 { String::new() } else { format!("-{number}") };
        let open = Open { kind, id: format!("{prefix}_{}{suffix}", self.id), text: String::new(), call };
        let item = open.item("in_progress", &[]);
        self.send("response.output_item.added", json!({ "output_index": number, "item": item }), out);
        if kind != Kind::Call {
            self.send_of(&open, "response.content_part.added", json!({ "part": kind.part("") }), out);
        }
        self.open = Some(open);
    }

    fn more(&mut self, text: &str, out: &mut Frames) {
        let sequence_number = self.next_number();
        let Some(open) = &mut self.open else { return };
        open.text.push_str(text);
        let name = format!("{}.delta", open.kind.event());
        let delta = TextDelta {
            kind: &name,
            sequence_number,
            item_id: &open.id,
            output_index: self.items.len(),
            content_index: (open.kind != Kind::Call).then_some(0),
            delta: text,
            logprobs: (open.kind == Kind::Message).then_some([]),
        };
        out.event(&name, &delta);
    }

    fn end_item(&mut self, status: &str, out: &mut Frames) {
        let Some(open) = self.open.take() else { return };
        let name = format!("{}.done", open.kind.event());
        let part = open.kind.part(&open.text);
        let item = match (open.kind, &open.call) {
            (Kind::Call, Some((_, called))) => {
                self.send_of(&open, &name, json!({ "name": called, "arguments": open.text }), out);
                open.item(status, &[])
            }
            _ => {
                let mut done = json!({ "text": open.text });
                if open.kind == Kind::Message {
                    done["logprobs"] = json!([]);
                }
                self.send_of(&open, &name, done, out);
                self.send_of(&open, "response.content_part.done", json!({ "part": part }), out);
                open.item(status, &[part])
            }
        };
        let event = json!({ "output_index": self.items.len(), "item": item });
        self.send("response.output_item.done", event, out);
        self.items.push(item);
    }

    /// Nothing more comes: there is at least an empty message.
    fn end_items(&mut self, is_whole: bool, out: &mut Frames) {
        for piece in self.listener.end() {
            self.write(piece, out);
        }
        if self.items.is_empty() && self.open.is_none() {
            self.begin(Kind::Message, None, out);
        }
        self.end_item(if is_whole { "completed" } else { "incomplete" }, out);
    }
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
            output_tokens_details: OutputDetails { reasoning_tokens: usage.reasoning_tokens },
            total_tokens: usage.prompt_tokens + usage.completion_tokens,
        }
    }
}

impl Scribe for Page {
    fn open(&mut self, out: &mut Frames) {
        let frame = self.frame.clone();
        self.send("response.created", json!({ "response": frame }), out);
        self.send("response.in_progress", json!({ "response": frame }), out);
    }

    fn delta(&mut self, _choice: usize, delta: Delta, out: &mut Frames) {
        self.hear(delta.reasoning, delta.text, out);
    }

    fn finished(&mut self, _choice: usize, outcome: Outcome, out: &mut Frames) {
        let mut summary = Summary::default();
        summary.add(&outcome);
        self.end_items(is_whole(&outcome), out);
        let name = if is_whole(&outcome) { "response.completed" } else { "response.incomplete" };
        let page = self.ended(&outcome, &summary);
        self.send(name, json!({ "response": page }), out);
    }

    fn failed(&mut self, error: &ApiError, out: &mut Frames) {
        let mut page = self.frame.clone();
        page["status"] = "failed".into();
        page["error"] = json!({ "code": "server_error", "message": error.message });
        self.send("response.failed", json!({ "response": page }), out);
    }

    fn close(&mut self, _out: &mut Frames) {}
}
