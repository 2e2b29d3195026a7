//! `/v1/chat/completions`: what is asked. What is answered is in [`answer`].

use axum::response::Response;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokrun_runtime::{ChatMessage, Conversation, Grammar, Prompt, ToolCall};

use super::request::{Asks, Common, Manner, request};
use crate::begin::{Begun, Wanted};
use crate::content::{Anything, Content};
use crate::error::ApiError;
use crate::tools::{self, ToolUse};

pub(crate) mod answer;

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
        /// What the model may call.
        tools: Option<Vec<WireTool>>,
        /// Whether it calls.
        tool_choice: Option<Value>,
        /// Several calls in one answer.
        parallel_tool_calls: Option<bool>,
        /// How long to think: `none` for not at all.
        reasoning_effort: Option<String>,
        /// What else the model's template is told.
        chat_template_kwargs: Option<Map<String, Value>>,
        functions: Option<Vec<Anything>>,
        function_call: Option<Value>,
        audio: Option<Anything>,
        web_search_options: Option<Anything>,
        verbosity: Option<Value>,
        moderation: Option<Anything>,
        service_tier: Option<String>,
        prediction: Option<Anything>,
        prompt_cache_key: Option<String>,
        prompt_cache_options: Option<Anything>,
        prompt_cache_retention: Option<String>,
        safety_identifier: Option<String>,
    }
}

/// One turn.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Message {
    role: String,
    content: Option<Content>,
    tool_calls: Option<Vec<WireCall>>,
    tool_call_id: Option<String>,
    reasoning_content: Option<String>,
    // Clients send answers back as they got them.
    #[expect(dead_code, reason = "known, so that it is not refused; templates do not take it")]
    name: Option<String>,
    #[expect(dead_code, reason = "known, so that an answer can be sent back as it came")]
    refusal: Option<String>,
    #[expect(dead_code, reason = "known, so that an answer can be sent back as it came")]
    annotations: Option<Vec<Anything>>,
    #[expect(dead_code, reason = "known, so that an answer can be sent back as it came")]
    function_call: Option<Anything>,
    #[expect(dead_code, reason = "known, so that an answer can be sent back as it came")]
    audio: Option<Anything>,
}

/// A tool: a function, which is the only kind there is here.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct WireTool {
    #[serde(rename = "type")]
    kind: String,
    function: Option<Function>,
    custom: Option<Anything>,
}

/// A function that a model may call.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Function {
    name: String,
    description: Option<String>,
    parameters: Option<Value>,
    strict: Option<bool>,
}

/// A call in an earlier answer.
#[derive(Debug, Deserialize, JsonSchema)]
pub(crate) struct WireCall {
    id: String,
    function: Called,
}

#[derive(Debug, Deserialize, JsonSchema)]
struct Called {
    name: String,
    arguments: String,
}

/// The form of an answer.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum ResponseFormat {
    /// Any text.
    Text,
    /// A JSON object.
    JsonObject,
    /// JSON that a schema describes.
    JsonSchema {
        /// The schema and its name.
        json_schema: NamedSchema,
    },
}

/// A named schema.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NamedSchema {
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
            Self::JsonSchema { json_schema: NamedSchema { schema: Some(schema), .. } } => schema.to_string(),
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
        let ToolUse { tools, choice, one_call } = self.tool_use()?;
        let settings = self.chat_template_kwargs.clone().unwrap_or_default();
        Ok(Wanted {
            model: self.model.clone(),
            prompts: vec![Prompt::Chat(Conversation { messages: messages?, tools, settings })],
            tool_choice: choice,
            one_call,
            thinks: self.reasoning_effort.as_deref().map(|effort| !matches!(effort, "none" | "minimal")),
            max_tokens: self.max_completion_tokens.or(self.max_tokens),
            grammar: self.response_format.as_ref().and_then(ResponseFormat::grammar),
            logprobs: self.wanted_logprobs()?,
            ..self.common().wanted()?
        })
    }

    fn tool_use(&self) -> Result<ToolUse, ApiError> {
        let tool = |tool: &WireTool| match &tool.function {
            Some(function) if tool.kind == "function" && tool.custom.is_none() => {
                let (description, strict) = (function.description.as_deref(), function.strict == Some(true));
                tools::tool(&function.name, description, function.parameters.as_ref(), strict)
            }
            _ => Err(ApiError::unsupported("tools", "only functions can be called")),
        };
        let tools: Result<Vec<_>, ApiError> = self.tools.iter().flatten().map(tool).collect();
        let parallel = self.parallel_tool_calls.unwrap_or(true);
        tools::tool_use(tools?, tools::openai_choice(self.tool_choice.as_ref())?, parallel)
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
        for (param, is_asked) in [
            ("functions", self.functions.as_ref().is_some_and(|functions| !functions.is_empty())),
            ("function_call", asks(&self.function_call)),
            ("audio", self.audio.is_some()),
            ("web_search_options", self.web_search_options.is_some()),
            ("moderation", self.moderation.is_some()),
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
        let wrong = |message: &str| ApiError::invalid_param("messages", message);
        let role = match self.role.as_str() {
            "developer" => "system",
            role @ ("system" | "user" | "assistant" | "tool") => role,
            other => {
                let other: String = other.chars().take(64).collect();
                return Err(wrong(&format!(
                    "The role '{other}' is not supported: system, developer, user, assistant and tool are."
                )));
            }
        };
        if role == "tool" && self.tool_call_id.is_none() {
            return Err(wrong("A message of the role 'tool' names its call: 'tool_call_id'."));
        }
        let calls = self.tool_calls.as_deref().unwrap_or_default();
        if role != "assistant" && !calls.is_empty() {
            return Err(wrong("Only a message of the role 'assistant' has 'tool_calls'."));
        }
        let call = |call: &WireCall| tools::call(&call.id, &call.function.name, &call.function.arguments, "messages");
        let tool_calls: Result<Vec<ToolCall>, ApiError> = calls.iter().map(call).collect();
        let content = match self.content.as_ref().map(Content::text).transpose()? {
            Some(content) => content,
            None if !calls.is_empty() => String::new(),
            None => return Err(wrong("A message has no content.")),
        };
        Ok(ChatMessage {
            tool_calls: tool_calls?,
            tool_call_id: self.tool_call_id.clone(),
            reasoning_content: self.reasoning_content.clone(),
            ..ChatMessage::new(role, content)
        })
    }
}

impl Asks for ChatRequest {
    fn wanted(&self) -> Result<Wanted, ApiError> {
        self.wanted()
    }

    fn common(&self) -> Common<'_> {
        self.common()
    }

    async fn whole(begun: Begun, manner: &Manner) -> Result<Response, ApiError> {
        answer::whole(begun, manner).await
    }

    fn stream(begun: Begun, manner: &Manner) -> Response {
        answer::stream(begun, manner)
    }
}
