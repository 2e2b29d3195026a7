//! `/v1/responses`: OpenAI's newer form, as far as it is about text and functions. Nothing is kept, so no response
//! continues another. What is answered is in [`answer`].

use std::collections::BTreeMap;

use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokrun_runtime::{ChatMessage, Conversation, Grammar, Prompt, Tool};

use crate::asked::Asked;
use crate::begin::{Sampling, Wanted};
use crate::content::Anything;
use crate::error::ApiError;
use crate::openai::request::tags;
use crate::tools::{self, ToolUse};

mod answer;
mod items;

use items::Item;

/// What is asked.
#[derive(Debug, Deserialize, JsonSchema)]
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
    /// Among the requests of one wallet a lower one is served earlier; 0 is the usual.
    priority: Option<i32>,
    user: Option<String>,
    metadata: Option<BTreeMap<String, String>>,
    store: Option<bool>,
    background: Option<bool>,
    background_options: Option<Anything>,
    access_programs: Option<Anything>,
    image: Option<Anything>,
    previous_response_id: Option<String>,
    conversation: Option<Anything>,
    prompt: Option<Anything>,
    tools: Option<Vec<Value>>,
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    include: Option<Vec<String>>,
    reasoning: Option<Reasoning>,
    truncation: Option<String>,
    top_logprobs: Option<usize>,
    max_tool_calls: Option<usize>,
    context_management: Option<Anything>,
    moderation: Option<Anything>,
    #[expect(dead_code, reason = "a hint that changes no answer")]
    service_tier: Option<String>,
    #[expect(dead_code, reason = "a hint that changes no answer")]
    prompt_cache_key: Option<String>,
    #[expect(dead_code, reason = "a hint that changes no answer")]
    prompt_cache_options: Option<Anything>,
    #[expect(dead_code, reason = "a hint that changes no answer")]
    prompt_cache_retention: Option<String>,
    #[expect(dead_code, reason = "a hint that changes no answer")]
    safety_identifier: Option<String>,
    #[expect(dead_code, reason = "padding against those who measure packets; there is none here")]
    stream_options: Option<Anything>,
}

/// Text, or turns of a conversation.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a string or a list of messages")]
enum Input {
    Text(String),
    Items(Vec<Item>),
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct TextOptions {
    format: Option<Map<String, Value>>,
    verbosity: Option<Value>,
}

#[derive(Debug, Deserialize, JsonSchema)]
struct Reasoning {
    effort: Option<String>,
    summary: Option<String>,
}

impl ResponsesRequest {
    fn wanted(&self) -> Result<Wanted, ApiError> {
        self.refuse_unsupported()?;
        let ToolUse { tools, choice, one_call } = self.tool_use()?;
        let effort = self.reasoning.as_ref().and_then(|reasoning| reasoning.effort.as_deref());
        let conversation = Conversation { tools, ..self.messages()?.into() };
        Ok(Wanted {
            model: self.model.clone(),
            prompts: vec![Prompt::Chat(conversation)],
            tool_choice: choice,
            one_call,
            thinks: effort.map(|effort| !matches!(effort, "none" | "minimal")),
            n: 1,
            max_tokens: self.max_output_tokens,
            sampling: Sampling { temperature: self.temperature, top_p: self.top_p, ..Sampling::default() },
            grammar: self.grammar()?,
            priority: self.priority.unwrap_or(0),
            tags: tags(self.user.as_deref(), self.metadata.as_ref())?,
            ..Wanted::default()
        })
    }

    fn messages(&self) -> Result<Vec<ChatMessage>, ApiError> {
        let mut messages: Vec<ChatMessage> =
            self.instructions.iter().map(|text| ChatMessage::new("system", text)).collect();
        match &self.input {
            Input::Text(text) => messages.push(ChatMessage::new("user", text)),
            Input::Items(items) => items::add(items, &mut messages)?,
        }
        if messages.len() == self.instructions.iter().len() {
            return Err(ApiError::invalid_param("input", "The list of messages is empty."));
        }
        Ok(messages)
    }

    fn tool_use(&self) -> Result<ToolUse, ApiError> {
        let text = |tool: &Value, key: &str| tool.get(key).and_then(Value::as_str).map(str::to_owned);
        let tool = |tool: &Value| match (text(tool, "type").as_deref(), text(tool, "name")) {
            (Some("function"), Some(name)) => {
                // The reference service holds functions to their schemas where nobody says otherwise; that may not be
                // possible with every schema, so here it is done when asked for.
                let strict = tool.get("strict") == Some(&Value::Bool(true));
                tools::tool(&name, text(tool, "description").as_deref(), tool.get("parameters"), strict)
            }
            _ => Err(ApiError::unsupported("tools", "only functions can be called")),
        };
        let tools: Result<Vec<Tool>, ApiError> = self.tools.iter().flatten().map(tool).collect();
        let parallel = self.parallel_tool_calls.unwrap_or(true);
        tools::tool_use(tools?, tools::openai_choice(self.tool_choice.as_ref())?, parallel)
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
        // Reasoning is sent in the open, so nobody needs it encrypted.
        let includes = |list: &Vec<String>| list.iter().any(|what| what != "reasoning.encrypted_content");
        let keeps_nothing = "this server keeps no prompts and no answers";
        let does_not_know = "the models of this server do not know it";
        let summarizes = |reasoning: &Reasoning| reasoning.summary.as_ref().is_some_and(|how| how != "auto");
        for (param, is_asked, why) in [
            ("store", self.store == Some(true), keeps_nothing),
            ("background", self.background == Some(true), keeps_nothing),
            ("background_options", self.background_options.is_some(), keeps_nothing),
            ("access_programs", self.access_programs.is_some(), does_not_know),
            ("image", self.image.is_some(), does_not_know),
            ("previous_response_id", self.previous_response_id.is_some(), keeps_nothing),
            ("conversation", self.conversation.is_some(), keeps_nothing),
            ("prompt", self.prompt.is_some(), keeps_nothing),
            ("include", self.include.as_ref().is_some_and(includes), does_not_know),
            ("reasoning.summary", self.reasoning.as_ref().is_some_and(summarizes), "the reasoning itself is sent"),
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

/// Answers.
pub(crate) async fn create(asked: Asked) -> Response {
    let begun = asked.begin(|request: ResponsesRequest| Ok((request.wanted()?, request))).await;
    match begun {
        Ok((begun, request)) if request.stream == Some(true) => answer::stream(begun, &request),
        Ok((begun, request)) => answer::whole(begun, &request).await.unwrap_or_else(IntoResponse::into_response),
        Err(error) => error.into_response(),
    }
}
