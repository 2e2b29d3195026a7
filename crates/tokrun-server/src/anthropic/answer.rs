//! `/v1/messages`: what is answered.

use axum::response::Response;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value, json};
use tokrun_ledger::FinishReason;
use tokrun_runtime::{Delta, Outcome, Usage};

use crate::begin::{Begun, Summary, Tokrun};
use crate::error::ApiError;
use crate::models::Lease;
use crate::reply::ok;
use crate::said::{Call, Listener, Piece, Said};
use crate::sse::{self, Frames, Scribe};

/// Tokens of the prompt that were found in the cache are counted apart.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
struct WireUsage {
    input_tokens: u64,
    cache_creation_input_tokens: u64,
    cache_read_input_tokens: u64,
    output_tokens: u64,
}

impl From<&Usage> for WireUsage {
    fn from(usage: &Usage) -> Self {
        Self {
            input_tokens: usage.prompt_tokens - usage.cached_tokens.min(usage.prompt_tokens),
            cache_creation_input_tokens: 0,
            cache_read_input_tokens: usage.cached_tokens,
            output_tokens: usage.completion_tokens,
        }
    }
}

#[derive(Serialize, JsonSchema)]
pub(crate) struct WireMessage<'a> {
    id: String,
    #[serde(rename = "type")]
    kind: &'static str,
    role: &'static str,
    model: &'a str,
    content: Vec<Block>,
    stop_reason: Option<&'static str>,
    stop_sequence: Option<String>,
    usage: WireUsage,
    #[serde(skip_serializing_if = "Option::is_none")]
    tokrun: Option<Tokrun>,
}

#[derive(Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Block {
    // Nobody else wrote it, so there is nothing to sign.
    Thinking { thinking: String, signature: &'static str },
    Text { text: String },
    ToolUse { id: String, name: String, input: Map<String, Value> },
}

impl From<Call> for Block {
    fn from(call: Call) -> Self {
        // One that was cut off on the way is no object yet.
        let input = serde_json::from_str(&call.arguments).unwrap_or_default();
        Self::ToolUse { id: format!("toolu_{}", call.id), name: call.name, input }
    }
}

fn blocks(said: Said) -> Vec<Block> {
    let thinking = Some(said.reasoning).filter(|text| !text.is_empty());
    let thinking = thinking.map(|thinking| Block::Thinking { thinking, signature: "" });
    let text = (!said.text.is_empty() || said.calls.is_empty()).then_some(Block::Text { text: said.text });
    thinking.into_iter().chain(text).chain(said.calls.into_iter().map(Block::from)).collect()
}

/// Why an answer ended.
fn stop_reason(outcome: &Outcome, has_called: bool) -> &'static str {
    match outcome.finish_reason {
        FinishReason::Stop if outcome.stopped_by.is_some() => "stop_sequence",
        FinishReason::Stop if has_called => "tool_use",
        FinishReason::Stop => "end_turn",
        _ => "max_tokens",
    }
}

pub(super) async fn whole(begun: Begun) -> Result<Response, ApiError> {
    let Begun { answers, hearing, model, limits, id, .. } = begun;
    let mut summary = Summary::default();
    let (_, outcome) = answers.collect().await?.swap_remove(0);
    summary.add(&outcome);
    let said = hearing.said(&outcome);
    let mut response = ok(&WireMessage {
        tokrun: Some(summary.tokrun(&id)),
        id: format!("msg_{id}"),
        kind: "message",
        role: "assistant",
        model: model.name(),
        stop_reason: Some(stop_reason(&outcome, !said.calls.is_empty())),
        content: blocks(said),
        stop_sequence: outcome.stopped_by,
        usage: WireUsage::from(&summary.usage),
    });
    summary.tell(response.headers_mut());
    limits.tell(response.headers_mut());
    Ok(response)
}

pub(super) fn stream(begun: Begun) -> Response {
    let Begun { answers, hearing, model, limits, id, .. } = begun;
    let prompt_tokens = answers.prompt_tokens() as u64;
    let listener = hearing.listener();
    let scribe = MessageScribe { id, model, prompt_tokens, listener, open: None, blocks: 0 };
    let mut response = sse::response(answers, scribe);
    limits.tell(response.headers_mut());
    response
}

struct MessageScribe {
    id: String,
    model: Lease,
    prompt_tokens: u64,
    listener: Listener,
    /// The kind of the block that is open.
    open: Option<Kind>,
    /// Blocks that have begun.
    blocks: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Thinking,
    Text,
    ToolUse,
}

#[derive(Serialize)]
struct BlockDelta<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    index: usize,
    delta: DeltaOf<'a>,
}

#[derive(Serialize)]
#[serde(tag = "type")]
enum DeltaOf<'a> {
    #[serde(rename = "thinking_delta")]
    Thinking { thinking: &'a str },
    #[serde(rename = "text_delta")]
    Text { text: &'a str },
    #[serde(rename = "input_json_delta")]
    Input { partial_json: &'a str },
}

impl MessageScribe {
    fn write(&mut self, piece: &Piece, out: &mut Frames) {
        match piece {
            Piece::Reasoning(thinking) => {
                self.begin(Kind::Thinking, Block::Thinking { thinking: String::new(), signature: "" }, out);
                self.more(DeltaOf::Thinking { thinking }, out);
            }
            Piece::Text(text) => {
                self.begin(Kind::Text, Block::Text { text: String::new() }, out);
                self.more(DeltaOf::Text { text }, out);
            }
            Piece::Call { id, name } => {
                // Each call is a block of its own.
                self.end(out);
                let (id, name) = (format!("toolu_{id}"), name.clone());
                self.begin(Kind::ToolUse, Block::ToolUse { id, name, input: Map::new() }, out);
            }
            Piece::Arguments(partial_json) => self.more(DeltaOf::Input { partial_json }, out),
        }
    }

    /// Begins a block, unless one of its kind is open.
    fn begin(&mut self, kind: Kind, block: Block, out: &mut Frames) {
        if self.open == Some(kind) {
            return;
        }
        self.end(out);
        let start = json!({ "type": "content_block_start", "index": self.blocks, "content_block": block });
        out.event("content_block_start", &start);
        if self.blocks == 0 {
            out.event("ping", &json!({ "type": "ping" }));
        }
        self.open = Some(kind);
        self.blocks += 1;
    }

    fn more(&self, delta: DeltaOf<'_>, out: &mut Frames) {
        let index = self.blocks.saturating_sub(1);
        out.event("content_block_delta", &BlockDelta { kind: "content_block_delta", index, delta });
    }

    fn end(&mut self, out: &mut Frames) {
        if self.open.take().is_some() {
            let index = self.blocks - 1;
            out.event("content_block_stop", &json!({ "type": "content_block_stop", "index": index }));
        }
    }
}

impl Scribe for MessageScribe {
    fn open(&mut self, out: &mut Frames) {
        let message = WireMessage {
            id: format!("msg_{}", self.id),
            kind: "message",
            role: "assistant",
            model: self.model.name(),
            content: Vec::new(),
            stop_reason: None,
            stop_sequence: None,
            // What of it was cached is known, and told, at the end.
            usage: WireUsage::from(&Usage { prompt_tokens: self.prompt_tokens, ..Usage::default() }),
            tokrun: None,
        };
        out.event("message_start", &json!({ "type": "message_start", "message": message }));
    }

    fn delta(&mut self, _choice: usize, delta: Delta, out: &mut Frames) {
        for piece in self.listener.hear(delta.reasoning, delta.text) {
            self.write(&piece, out);
        }
    }

    fn finished(&mut self, _choice: usize, outcome: Outcome, out: &mut Frames) {
        for piece in self.listener.end() {
            self.write(&piece, out);
        }
        if self.blocks == 0 {
            self.begin(Kind::Text, Block::Text { text: String::new() }, out);
        }
        self.end(out);
        let mut summary = Summary::default();
        summary.add(&outcome);
        let reason = stop_reason(&outcome, self.listener.has_called());
        out.event(
            "message_delta",
            &json!({
                "type": "message_delta",
                "delta": { "stop_reason": reason, "stop_sequence": outcome.stopped_by },
                "usage": WireUsage::from(&summary.usage),
                "tokrun": summary.tokrun(&self.id),
            }),
        );
    }

    fn failed(&mut self, error: &ApiError, out: &mut Frames) {
        out.event("error", &error.anthropic());
    }

    fn close(&mut self, out: &mut Frames) {
        out.event("message_stop", &json!({ "type": "message_stop" }));
    }
}
