//! Anthropic's API: `/v1/messages`, and counting its tokens. What is answered is in [`answer`].

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokrun_runtime::{ChatMessage, Conversation, Grammar, Prompt, Tool, ToolChoice};

use crate::app::App;
use crate::asked::Asked;
use crate::auth::Caller;
use crate::begin::{Sampling, Wanted, find_loaded};
use crate::body::Payload;
use crate::content::{Anything, Content};
use crate::error::{ApiError, Dialect};
use crate::reply::ok;
use crate::tools::{self, ToolUse};

pub(crate) mod answer;
mod turns;

use turns::Turn;

/// What is asked.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct MessagesRequest {
    model: String,
    messages: Vec<Message>,
    /// Required, except for counting.
    max_tokens: Option<usize>,
    system: Option<Content>,
    #[serde(default)]
    stop_sequences: Vec<String>,
    #[serde(default)]
    stream: bool,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<usize>,
    metadata: Option<Metadata>,
    /// Among the requests of one wallet a lower one is served earlier; 0 is the usual.
    priority: Option<i32>,
    output_config: Option<OutputConfig>,
    /// The older place of `output_config.format`.
    output_format: Option<OutputFormat>,
    tools: Option<Vec<WireTool>>,
    tool_choice: Option<WireChoice>,
    thinking: Option<Thinking>,
    container: Option<Anything>,
    mcp_servers: Option<Vec<Anything>>,
    context_management: Option<Anything>,
    user_profile_id: Option<String>,
    workspace_id: Option<String>,
    #[expect(dead_code, reason = "a hint that changes no answer")]
    diagnostics: Option<Anything>,
    #[expect(dead_code, reason = "a hint that changes no answer")]
    speed: Option<String>,
    #[expect(dead_code, reason = "a hint that changes no answer")]
    service_tier: Option<String>,
    #[expect(dead_code, reason = "a hint that changes no answer")]
    cache_control: Option<Anything>,
    #[expect(dead_code, reason = "a hint that changes no answer")]
    inference_geo: Option<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Message {
    role: Role,
    content: Turn,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Role {
    User,
    Assistant,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Metadata {
    user_id: Option<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct OutputConfig {
    format: Option<OutputFormat>,
    effort: Option<Anything>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
enum OutputFormat {
    JsonSchema { schema: Value },
}

#[derive(Debug, Deserialize, JsonSchema)]
struct Thinking {
    #[serde(rename = "type")]
    kind: String,
}

/// A tool that the client runs; those that Anthropic runs have a `type` of their own.
#[derive(Debug, Deserialize, JsonSchema)]
struct WireTool {
    #[serde(rename = "type")]
    kind: Option<String>,
    name: String,
    description: Option<String>,
    input_schema: Option<Value>,
    strict: Option<bool>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct WireChoice {
    #[serde(rename = "type")]
    kind: Chosen,
    name: Option<String>,
    #[serde(default)]
    disable_parallel_tool_use: bool,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Chosen {
    Auto,
    Any,
    Tool,
    None,
}

impl MessagesRequest {
    fn wanted(self) -> Result<Wanted, ApiError> {
        self.refuse_unsupported()?;
        let max_tokens = self.max_tokens.ok_or_else(|| ApiError::invalid("max_tokens: Field required"))?;
        if self.temperature.is_some_and(|temperature| temperature > 1.0) {
            return Err(ApiError::invalid("temperature: it ranges from 0 to 1"));
        }
        let user = self.metadata.as_ref().and_then(|metadata| metadata.user_id.clone());
        let tags: BTreeMap<String, String> = user.into_iter().map(|user| ("user".to_owned(), user)).collect();
        let format = self.output_config.as_ref().and_then(|config| config.format.as_ref());
        let format = format.or(self.output_format.as_ref());
        let grammar = format.map(|OutputFormat::JsonSchema { schema }| Grammar::JsonSchema(schema.to_string()));
        let (prompt, choice, one_call) = self.prompt()?;
        Ok(Wanted {
            prompts: vec![prompt],
            tool_choice: choice,
            one_call,
            thinks: Some(self.thinks()),
            model: self.model,
            n: 1,
            max_tokens: Some(max_tokens),
            sampling: Sampling {
                temperature: self.temperature,
                top_p: self.top_p,
                top_k: self.top_k,
                ..Sampling::default()
            },
            stop: self.stop_sequences,
            grammar,
            priority: self.priority.unwrap_or(0),
            tags,
            ..Wanted::default()
        })
    }

    /// As the reference service does, only when asked.
    fn thinks(&self) -> bool {
        self.thinking.as_ref().is_some_and(|thinking| thinking.kind != "disabled")
    }

    /// The conversation, and how its tools are to be called.
    fn prompt(&self) -> Result<(Prompt, ToolChoice, bool), ApiError> {
        if self.messages.last().is_none_or(|message| message.role == Role::Assistant) {
            return Err(ApiError::invalid("messages: the conversation must end with a user's message"));
        }
        let mut messages = Vec::new();
        if let Some(system) = &self.system {
            messages.push(ChatMessage::new("system", system.text()?));
        }
        for message in &self.messages {
            match message.role {
                Role::User => messages.extend(message.content.of_user()?),
                Role::Assistant => messages.push(message.content.of_assistant()?),
            }
        }
        let ToolUse { tools, choice, one_call } = self.tool_use()?;
        let mut settings = Map::new();
        settings.insert("enable_thinking".to_owned(), self.thinks().into());
        Ok((Prompt::Chat(Conversation { messages, tools, settings }), choice, one_call))
    }

    fn tool_use(&self) -> Result<ToolUse, ApiError> {
        let tool = |tool: &WireTool| match tool.kind.as_deref() {
            None | Some("custom") => {
                let (description, strict) = (tool.description.as_deref(), tool.strict == Some(true));
                tools::tool(&tool.name, description, tool.input_schema.as_ref(), strict)
            }
            Some(_) => Err(ApiError::unsupported("tools", "this server runs no tools itself")),
        };
        let tools: Result<Vec<Tool>, ApiError> = self.tools.iter().flatten().map(tool).collect();
        let Some(choice) = &self.tool_choice else { return tools::tool_use(tools?, Some(ToolChoice::Auto), true) };
        let chosen = match (choice.kind, &choice.name) {
            (Chosen::None, _) => None,
            (Chosen::Auto, _) => Some(ToolChoice::Auto),
            (Chosen::Any, _) => Some(ToolChoice::Required),
            (Chosen::Tool, Some(name)) => Some(ToolChoice::Named(name.clone())),
            (Chosen::Tool, None) => return Err(ApiError::invalid("tool_choice.name: Field required")),
        };
        tools::tool_use(tools?, chosen, !choice.disable_parallel_tool_use)
    }

    fn refuse_unsupported(&self) -> Result<(), ApiError> {
        let named = |list: &Option<Vec<Anything>>| list.as_ref().is_some_and(|list| !list.is_empty());
        for (param, is_asked) in [
            ("container", self.container.is_some()),
            ("mcp_servers", named(&self.mcp_servers)),
            ("context_management", self.context_management.is_some()),
            ("user_profile_id", self.user_profile_id.is_some()),
            ("workspace_id", self.workspace_id.is_some()),
            ("output_config.effort", self.output_config.as_ref().is_some_and(|config| config.effort.is_some())),
        ] {
            if is_asked {
                return Err(ApiError::unsupported(param, "the models of this server do not know it"));
            }
        }
        Ok(())
    }
}

/// How many tokens a conversation has.
pub(crate) async fn count_tokens(State(app): State<Arc<App>>, caller: Caller, payload: Payload) -> Response {
    let counted = async {
        let (request, payload) = app.blocking(move |_| Ok((payload.parse::<MessagesRequest>()?, payload))).await?;
        let model = find_loaded(&app, &caller, &request.model).await?;
        let count = app.blocking(move |_| {
            let _counted = payload;
            let (prompt, ..) = request.prompt()?;
            model.could_fit(&prompt)?;
            let tokens = model.runtime().encode(&prompt).map_err(|error| ApiError::from(&error))?;
            Ok(tokens.len())
        });
        count.await
    };
    match counted.await {
        Ok(input_tokens) => ok(&json!({ "input_tokens": input_tokens })),
        Err(error) => error.response(Dialect::Anthropic),
    }
}

/// Answers a conversation.
pub(crate) async fn create(asked: Asked) -> Response {
    let begun = asked.begin(|request: MessagesRequest| {
        let streams = request.stream;
        Ok((request.wanted()?, streams))
    });
    match begun.await {
        Ok((begun, true)) => answer::stream(begun),
        Ok((begun, false)) => answer::whole(begun).await.unwrap_or_else(|error| error.response(Dialect::Anthropic)),
        Err(error) => error.response(Dialect::Anthropic),
    }
}
