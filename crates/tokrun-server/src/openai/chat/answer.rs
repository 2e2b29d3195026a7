//! `/v1/chat/completions`: what is answered.

use axum::response::Response;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;
use tokrun_ledger::FinishReason;
use tokrun_runtime::{Delta, Outcome};

use crate::begin::{Begun, Summary, Tokrun};
use crate::error::ApiError;
use crate::models::Lease;
use crate::openai::request::Manner;
use crate::openai::wire::{WireLogprob, WireUsage, finish_reason, logprobs};
use crate::reply::ok;
use crate::said::{Call, Listener, Piece};
use crate::sse::{self, Frames, Scribe};

#[derive(Serialize, JsonSchema)]
pub(crate) struct Completion<'a> {
    id: String,
    object: &'static str,
    created: i64,
    model: &'a str,
    choices: Vec<Choice>,
    usage: WireUsage,
    service_tier: &'static str,
    system_fingerprint: Option<&'static str>,
    tokrun: Tokrun,
}

#[derive(Serialize, JsonSchema)]
struct Choice {
    index: usize,
    message: Answer,
    logprobs: Option<Logprobs>,
    finish_reason: &'static str,
}

#[derive(Serialize, JsonSchema)]
struct Answer {
    role: &'static str,
    /// Null where there are calls and no words.
    content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default)]
    tool_calls: Vec<WireCall>,
    refusal: Option<&'static str>,
    annotations: [Value; 0],
}

/// A call, or a part of one.
#[derive(Serialize, JsonSchema)]
struct WireCall {
    /// Which one it is, in a stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    function: WireFunction,
}

#[derive(Serialize, JsonSchema)]
struct WireFunction {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    arguments: String,
}

impl WireCall {
    fn begin(index: Option<usize>, id: &str, name: String, arguments: String) -> Self {
        let function = WireFunction { name: Some(name), arguments };
        Self { index, id: Some(format!("call_{id}")), kind: Some("function"), function }
    }

    fn more(index: usize, arguments: String) -> Self {
        Self { index: Some(index), id: None, kind: None, function: WireFunction { name: None, arguments } }
    }
}

/// An answer that ends with calls ends for them.
fn why_ended(reason: FinishReason, has_called: bool) -> &'static str {
    if has_called && reason == FinishReason::Stop { "tool_calls" } else { finish_reason(reason) }
}

#[derive(Serialize, JsonSchema)]
struct Logprobs {
    content: Vec<WireLogprob>,
    refusal: Option<&'static str>,
}

pub(super) async fn whole(begun: Begun, manner: &Manner) -> Result<Response, ApiError> {
    let Begun { answers, hearing, model, limits, id, created } = begun;
    let mut summary = Summary::default();
    let mut choices = Vec::new();
    for (index, outcome) in answers.collect().await? {
        summary.add(&outcome);
        let tokens = outcome.token_ids.iter().copied().zip(outcome.logprobs.iter().flatten());
        let content = logprobs(model.runtime().tokenizer(), tokens);
        let said = hearing.said(&outcome);
        let has_called = !said.calls.is_empty();
        let whole = |call: Call| WireCall::begin(None, &call.id, call.name, call.arguments);
        let message = Answer {
            role: "assistant",
            content: Some(said.text).filter(|text| !has_called || !text.is_empty()),
            reasoning_content: Some(said.reasoning).filter(|reasoning| !reasoning.is_empty()),
            tool_calls: said.calls.into_iter().map(whole).collect(),
            refusal: None,
            annotations: [],
        };
        choices.push(Choice {
            index,
            message,
            logprobs: manner.wants_logprobs.then_some(Logprobs { content, refusal: None }),
            finish_reason: why_ended(outcome.finish_reason, has_called),
        });
    }
    choices.sort_by_key(|choice| choice.index);
    let mut response = ok(&Completion {
        tokrun: summary.tokrun(&id),
        id: format!("chatcmpl-{id}"),
        object: "chat.completion",
        created: created.as_second(),
        model: model.name(),
        choices,
        usage: WireUsage::from(&summary.usage),
        service_tier: "default",
        system_fingerprint: None,
    });
    summary.tell(response.headers_mut());
    limits.tell(response.headers_mut());
    Ok(response)
}

pub(super) fn stream(begun: Begun, manner: &Manner) -> Response {
    let Begun { answers, hearing, model, limits, id, created } = begun;
    let scribe = ChatScribe {
        wire_id: format!("chatcmpl-{id}"),
        id,
        created: created.as_second(),
        model,
        listeners: (0..answers.count()).map(|_| (hearing.listener(), 0)).collect(),
        includes_usage: manner.includes_usage,
        wants_logprobs: manner.wants_logprobs,
        summary: Summary::default(),
        unfinished: answers.count(),
    };
    let mut response = sse::response(answers, scribe);
    limits.tell(response.headers_mut());
    response
}

struct ChatScribe {
    id: String,
    wire_id: String,
    created: i64,
    model: Lease,
    /// Each answer's, with the number of its calls so far.
    listeners: Vec<(Listener, usize)>,
    includes_usage: bool,
    wants_logprobs: bool,
    summary: Summary,
    unfinished: usize,
}

#[derive(Serialize)]
struct Chunk<'a> {
    id: &'a str,
    object: &'static str,
    created: i64,
    model: &'a str,
    service_tier: &'static str,
    system_fingerprint: Option<&'static str>,
    choices: &'a [ChunkChoice],
    /// Null in every chunk but the last, where the usage is wanted; else absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<WireUsage>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tokrun: Option<Tokrun>,
}

#[derive(Serialize)]
struct ChunkChoice {
    index: usize,
    delta: ChunkDelta,
    logprobs: Option<Logprobs>,
    finish_reason: Option<&'static str>,
}

#[derive(Default, Serialize)]
struct ChunkDelta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_calls: Option<[WireCall; 1]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refusal: Option<Option<&'static str>>,
}

impl ChunkDelta {
    /// A part of an answer that has had so many calls.
    fn of(piece: Piece, calls: &mut usize) -> Self {
        match piece {
            Piece::Reasoning(text) => Self { reasoning_content: Some(text), ..Self::default() },
            Piece::Text(text) => Self { content: Some(text), ..Self::default() },
            Piece::Call { id, name } => {
                *calls += 1;
                let call = WireCall::begin(Some(*calls - 1), &id, name, String::new());
                Self { tool_calls: Some([call]), ..Self::default() }
            }
            Piece::Arguments(text) => {
                let call = WireCall::more(calls.saturating_sub(1), text);
                Self { tool_calls: Some([call]), ..Self::default() }
            }
        }
    }
}

impl ChatScribe {
    fn send(&self, choices: &[ChunkChoice], usage: Option<WireUsage>, tokrun: Option<Tokrun>, out: &mut Frames) {
        out.data(&Chunk {
            id: &self.wire_id,
            object: "chat.completion.chunk",
            created: self.created,
            model: self.model.name(),
            service_tier: "default",
            system_fingerprint: None,
            choices,
            usage: self.includes_usage.then_some(usage),
            tokrun,
        });
    }
}

impl Scribe for ChatScribe {
    fn open(&mut self, out: &mut Frames) {
        for index in 0..self.listeners.len() {
            let (role, content, refusal) = (Some("assistant"), Some(String::new()), Some(None));
            let delta = ChunkDelta { role, content, refusal, ..ChunkDelta::default() };
            self.send(&[ChunkChoice { index, delta, logprobs: None, finish_reason: None }], None, None, out);
        }
    }

    fn delta(&mut self, index: usize, delta: Delta, out: &mut Frames) {
        let tokens = delta.logprobs.iter().map(|(id, logprob)| (*id, logprob));
        let content = logprobs(self.model.runtime().tokenizer(), tokens);
        let has_logprobs = !content.is_empty();
        let mut logprobs = self.wants_logprobs.then_some(Logprobs { content, refusal: None });
        let (listener, calls) = &mut self.listeners[index];
        let pieces = listener.hear(delta.reasoning, delta.text);
        let mut deltas: Vec<ChunkDelta> = pieces.into_iter().map(|piece| ChunkDelta::of(piece, calls)).collect();
        if deltas.is_empty() && has_logprobs {
            deltas.push(ChunkDelta { content: Some(String::new()), ..ChunkDelta::default() });
        }
        for delta in deltas {
            let logprobs = logprobs.take();
            self.send(&[ChunkChoice { index, delta, logprobs, finish_reason: None }], None, None, out);
        }
    }

    fn finished(&mut self, index: usize, outcome: Outcome, out: &mut Frames) {
        self.summary.add(&outcome);
        self.unfinished -= 1;
        let (listener, calls) = &mut self.listeners[index];
        let rest = listener.end();
        let finish_reason = Some(why_ended(outcome.finish_reason, listener.has_called()));
        let rest: Vec<ChunkDelta> = rest.into_iter().map(|piece| ChunkDelta::of(piece, calls)).collect();
        for delta in rest {
            self.send(&[ChunkChoice { index, delta, logprobs: None, finish_reason: None }], None, None, out);
        }
        let choice = ChunkChoice { index, delta: ChunkDelta::default(), logprobs: None, finish_reason };
        let is_last = self.unfinished == 0 && !self.includes_usage;
        self.send(&[choice], None, is_last.then(|| self.summary.tokrun(&self.id)), out);
    }

    fn failed(&mut self, error: &ApiError, out: &mut Frames) {
        out.data(&error.openai());
    }

    fn close(&mut self, out: &mut Frames) {
        if self.includes_usage {
            let usage = WireUsage::from(&self.summary.usage);
            self.send(&[], Some(usage), Some(self.summary.tokrun(&self.id)), out);
        }
        out.raw("data: [DONE]\n\n");
    }
}
