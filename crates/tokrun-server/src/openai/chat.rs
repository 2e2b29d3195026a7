//! `/v1/chat/completions`.

use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokrun_runtime::{ChatMessage, Delta, Grammar, Outcome, Prompt};

use super::request::{Manner, request};
use super::wire::{WireLogprob, WireUsage, finish_reason, logprobs};
use crate::asked::Asked;
use crate::begin::{Begun, Summary, Tokrun, Wanted};
use crate::content::Content;
use crate::error::ApiError;
use crate::reply::ok;
use crate::sse::{self, Frames, Scribe};

/// Alternatives to a token, as the reference service bounds them.
const TOP_LOGPROBS_MAX: usize = 20;

request! {
    /// What is asked.
    #[expect(dead_code, reason = "hints that change no answer are known, so that they are not refused, and let pass")]
    ChatRequest {
        /// The conversation.
        messages: Vec<Message>,
        /// Output tokens at most; the newer name.
        max_completion_tokens: Option<usize>,
        /// Report log-probabilities.
        logprobs: Option<bool>,
        /// And of so many alternatives.
        top_logprobs: Option<usize>,
        /// The form of the answer.
        response_format: Option<ResponseFormat>,
        /// What the answer consists of.
        modalities: Option<Vec<String>>,
        /// Whether the service keeps the answer; this one keeps none.
        store: Option<bool>,
        tools: Option<Vec<IgnoredAny>>,
        tool_choice: Option<Value>,
        parallel_tool_calls: Option<bool>,
        functions: Option<Vec<IgnoredAny>>,
        function_call: Option<Value>,
        audio: Option<IgnoredAny>,
        web_search_options: Option<IgnoredAny>,
        reasoning_effort: Option<Value>,
        verbosity: Option<Value>,
        moderation: Option<IgnoredAny>,
        service_tier: Option<String>,
        prediction: Option<IgnoredAny>,
        prompt_cache_key: Option<String>,
        prompt_cache_options: Option<IgnoredAny>,
        prompt_cache_retention: Option<String>,
        safety_identifier: Option<String>,
    }
}

/// One turn.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Message {
    role: String,
    content: Option<Content>,
    tool_calls: Option<Vec<IgnoredAny>>,
    // Clients send answers back as they got them.
    #[expect(dead_code, reason = "known, so that it is not refused; templates do not take it")]
    name: Option<String>,
    #[expect(dead_code, reason = "known, so that an answer can be sent back as it came")]
    refusal: Option<String>,
    #[expect(dead_code, reason = "known, so that an answer can be sent back as it came")]
    annotations: Option<Vec<IgnoredAny>>,
}

/// The form of an answer.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum ResponseFormat {
    /// Any text.
    Text,
    /// A JSON object.
    JsonObject,
    /// JSON that a schema describes.
    JsonSchema {
        /// The schema and its name.
        json_schema: JsonSchema,
    },
}

/// A named schema.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct JsonSchema {
    #[expect(dead_code, reason = "required by the reference service, and nothing follows from it")]
    name: String,
    #[expect(dead_code, reason = "for the reader")]
    description: Option<String>,
    /// The schema; any JSON object without one.
    schema: Option<Value>,
    #[expect(dead_code, reason = "every answer is held to its schema strictly")]
    strict: Option<bool>,
}

impl ResponseFormat {
    pub(crate) fn grammar(&self) -> Option<Grammar> {
        let schema = match self {
            Self::Text => return None,
            Self::JsonSchema { json_schema: JsonSchema { schema: Some(schema), .. } } => schema.to_string(),
            Self::JsonObject | Self::JsonSchema { .. } => json!({ "type": "object" }).to_string(),
        };
        Some(Grammar::JsonSchema(schema))
    }
}

impl ChatRequest {
    fn wanted(&self) -> Result<Wanted, ApiError> {
        self.refuse_unsupported()?;
        if self.max_tokens.is_some() && self.max_completion_tokens.is_some() {
            let message = "'max_tokens' and 'max_completion_tokens' cannot both be set.";
            return Err(ApiError::invalid_param("max_tokens", message));
        }
        if self.messages.is_empty() {
            return Err(ApiError::invalid_param("messages", "The list of messages is empty."));
        }
        let messages: Result<Vec<ChatMessage>, ApiError> = self.messages.iter().map(Message::chat_message).collect();
        Ok(Wanted {
            model: self.model.clone(),
            prompts: vec![Prompt::Chat(messages?)],
            max_tokens: self.max_completion_tokens.or(self.max_tokens),
            grammar: self.response_format.as_ref().and_then(ResponseFormat::grammar),
            logprobs: self.wanted_logprobs()?,
            ..self.common().wanted()?
        })
    }

    fn wanted_logprobs(&self) -> Result<Option<usize>, ApiError> {
        match (self.logprobs, self.top_logprobs) {
            (Some(true), Some(top)) if top > TOP_LOGPROBS_MAX => {
                let message = format!("top_logprobs is {top}, but at most {TOP_LOGPROBS_MAX} are told.");
                Err(ApiError::invalid_param("top_logprobs", message))
            }
            (Some(true), top) => Ok(Some(top.unwrap_or(0))),
            (_, Some(_)) => {
                let message = "'logprobs' must be true for 'top_logprobs' to be used.";
                Err(ApiError::invalid_param("top_logprobs", message))
            }
            (_, None) => Ok(None),
        }
    }

    /// What is understood and cannot be honoured. Hints that change no answer (`prediction`, `prompt_cache_key`) are let
    /// pass.
    fn refuse_unsupported(&self) -> Result<(), ApiError> {
        let asks = |value: &Option<Value>| value.as_ref().is_some_and(|value| *value != json!("none"));
        let no_tools = self.tools.as_ref().is_none_or(Vec::is_empty);
        for (param, is_asked) in [
            ("tools", !no_tools),
            ("tool_choice", asks(&self.tool_choice) && self.tool_choice != Some(json!("auto"))),
            ("functions", self.functions.as_ref().is_some_and(|functions| !functions.is_empty())),
            ("function_call", asks(&self.function_call)),
            ("audio", self.audio.is_some()),
            ("web_search_options", self.web_search_options.is_some()),
            ("moderation", self.moderation.is_some()),
            ("reasoning_effort", asks(&self.reasoning_effort)),
            ("verbosity", self.verbosity.as_ref().is_some_and(|verbosity| *verbosity != json!("medium"))),
        ] {
            if is_asked {
                return Err(ApiError::unsupported(param, "the models of this server do not know it"));
            }
        }
        if self.store == Some(true) {
            return Err(ApiError::unsupported("store", "this server keeps no prompts and no answers"));
        }
        if self.modalities.as_ref().is_some_and(|modalities| modalities.iter().any(|modality| modality != "text")) {
            return Err(ApiError::unsupported("modalities", "the models of this server write text"));
        }
        Ok(())
    }
}

impl Message {
    fn chat_message(&self) -> Result<ChatMessage, ApiError> {
        let role = match self.role.as_str() {
            "developer" => "system",
            role @ ("system" | "user" | "assistant") => role,
            other => {
                let other: String = other.chars().take(64).collect();
                let message = format!("The role '{other}' is not supported: system, developer, user, assistant are.");
                return Err(ApiError::invalid_param("messages", message));
            }
        };
        if self.tool_calls.as_ref().is_some_and(|calls| !calls.is_empty()) {
            return Err(ApiError::invalid_param("messages", "'tool_calls' are not supported."));
        }
        let content = self.content.as_ref().map(Content::text).transpose()?;
        let content = content.ok_or_else(|| ApiError::invalid_param("messages", "A message has no content."))?;
        Ok(ChatMessage { role: role.to_owned(), content })
    }
}

/// Answers a conversation.
pub(crate) async fn create(asked: Asked) -> Response {
    let begun = asked.begin(|request: ChatRequest| {
        let wanted = request.wanted()?;
        let manner = request.common().manner(&wanted);
        Ok((wanted, manner))
    });
    match begun.await {
        Ok((begun, manner)) if manner.streams => stream(begun, &manner),
        Ok((begun, manner)) => whole(begun, &manner).await.unwrap_or_else(IntoResponse::into_response),
        Err(error) => error.into_response(),
    }
}

#[derive(Serialize)]
struct Completion<'a> {
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

#[derive(Serialize)]
struct Choice {
    index: usize,
    message: Answer,
    logprobs: Option<Logprobs>,
    finish_reason: &'static str,
}

#[derive(Serialize)]
struct Answer {
    role: &'static str,
    content: String,
    refusal: Option<&'static str>,
    annotations: [Value; 0],
}

#[derive(Serialize)]
struct Logprobs {
    content: Vec<WireLogprob>,
    refusal: Option<&'static str>,
}

async fn whole(begun: Begun, manner: &Manner) -> Result<Response, ApiError> {
    let Begun { answers, model, limits, id, created } = begun;
    let mut summary = Summary::default();
    let mut choices = Vec::new();
    for (index, outcome) in answers.collect().await? {
        summary.add(&outcome);
        let tokens = outcome.token_ids.iter().copied().zip(outcome.logprobs.iter().flatten());
        let content = logprobs(model.runtime().tokenizer(), tokens);
        choices.push(Choice {
            index,
            message: Answer { role: "assistant", content: outcome.text, refusal: None, annotations: [] },
            logprobs: manner.wants_logprobs.then_some(Logprobs { content, refusal: None }),
            finish_reason: finish_reason(outcome.finish_reason),
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

fn stream(begun: Begun, manner: &Manner) -> Response {
    let Begun { answers, model, limits, id, created } = begun;
    let scribe = ChatScribe {
        wire_id: format!("chatcmpl-{id}"),
        id,
        created: created.as_second(),
        model,
        choices: answers.count(),
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
    model: Arc<crate::models::Model>,
    choices: usize,
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
    refusal: Option<Option<&'static str>>,
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
        for index in 0..self.choices {
            let delta = ChunkDelta { role: Some("assistant"), content: Some(String::new()), refusal: Some(None) };
            self.send(&[ChunkChoice { index, delta, logprobs: None, finish_reason: None }], None, None, out);
        }
    }

    fn delta(&mut self, index: usize, delta: Delta, out: &mut Frames) {
        if delta.text.is_empty() && delta.logprobs.is_empty() {
            return;
        }
        let tokens = delta.logprobs.iter().map(|(id, logprob)| (*id, logprob));
        let content = logprobs(self.model.runtime().tokenizer(), tokens);
        let choice = ChunkChoice {
            index,
            delta: ChunkDelta { content: Some(delta.text), ..ChunkDelta::default() },
            logprobs: self.wants_logprobs.then_some(Logprobs { content, refusal: None }),
            finish_reason: None,
        };
        self.send(&[choice], None, None, out);
    }

    fn finished(&mut self, index: usize, outcome: Outcome, out: &mut Frames) {
        self.summary.add(&outcome);
        self.unfinished -= 1;
        let finish_reason = Some(finish_reason(outcome.finish_reason));
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
