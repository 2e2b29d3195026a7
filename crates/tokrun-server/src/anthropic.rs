//! Anthropic's API: `/v1/messages`, and counting its tokens.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokrun_ledger::FinishReason;
use tokrun_runtime::{ChatMessage, Delta, Grammar, Outcome, Prompt, Usage};

use crate::app::App;
use crate::asked::Asked;
use crate::auth::Caller;
use crate::begin::{Begun, Sampling, Summary, Tokrun, Wanted, find_model};
use crate::body::Payload;
use crate::content::Content;
use crate::error::{ApiError, Dialect};
use crate::models::Model;
use crate::reply::ok;
use crate::sse::{self, Frames, Scribe};

/// What is asked.
#[derive(Debug, Deserialize)]
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
    output_config: Option<OutputConfig>,
    /// The older place of `output_config.format`.
    output_format: Option<OutputFormat>,
    tools: Option<Vec<IgnoredAny>>,
    tool_choice: Option<IgnoredAny>,
    thinking: Option<Thinking>,
    container: Option<IgnoredAny>,
    mcp_servers: Option<Vec<IgnoredAny>>,
    context_management: Option<IgnoredAny>,
    user_profile_id: Option<String>,
    workspace_id: Option<String>,
    #[expect(dead_code, reason = "a hint that changes no answer")]
    diagnostics: Option<IgnoredAny>,
    #[expect(dead_code, reason = "a hint that changes no answer")]
    speed: Option<String>,
    #[expect(dead_code, reason = "a hint that changes no answer")]
    service_tier: Option<String>,
    #[expect(dead_code, reason = "a hint that changes no answer")]
    cache_control: Option<IgnoredAny>,
    #[expect(dead_code, reason = "a hint that changes no answer")]
    inference_geo: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Message {
    role: Role,
    content: Content,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Role {
    User,
    Assistant,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Metadata {
    user_id: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct OutputConfig {
    format: Option<OutputFormat>,
    effort: Option<IgnoredAny>,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum OutputFormat {
    JsonSchema { schema: Value },
}

#[derive(Debug, Deserialize)]
struct Thinking {
    #[serde(rename = "type")]
    kind: String,
}

impl MessagesRequest {
    fn wanted(self) -> Result<(Wanted, Vec<String>), ApiError> {
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
        let stop = self.stop_sequences.clone();
        let wanted = Wanted {
            prompts: vec![self.prompt()?],
            model: self.model,
            n: 1,
            max_tokens: Some(max_tokens),
            sampling: Sampling {
                temperature: self.temperature,
                top_p: self.top_p,
                top_k: self.top_k,
                ..Sampling::default()
            },
            stop: stop.clone(),
            grammar,
            tags,
            ..Wanted::default()
        };
        Ok((wanted, stop))
    }

    fn prompt(&self) -> Result<Prompt, ApiError> {
        if self.messages.last().is_none_or(|message| message.role == Role::Assistant) {
            return Err(ApiError::invalid("messages: the conversation must end with a user's message"));
        }
        let said = |role: &str, content: &Content| Ok(ChatMessage { role: role.to_owned(), content: content.text()? });
        let system = self.system.iter().map(|content| said("system", content));
        let turns = self.messages.iter().map(|message| match message.role {
            Role::User => said("user", &message.content),
            Role::Assistant => said("assistant", &message.content),
        });
        let messages: Result<Vec<ChatMessage>, ApiError> = system.chain(turns).collect();
        Ok(Prompt::Chat(messages?))
    }

    fn refuse_unsupported(&self) -> Result<(), ApiError> {
        let named = |list: &Option<Vec<IgnoredAny>>| list.as_ref().is_some_and(|list| !list.is_empty());
        for (param, is_asked) in [
            ("tools", named(&self.tools)),
            ("tool_choice", self.tool_choice.is_some() && named(&self.tools)),
            ("thinking", self.thinking.as_ref().is_some_and(|thinking| thinking.kind != "disabled")),
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
    let counted = app.blocking(move |app| {
        let request: MessagesRequest = payload.parse()?;
        let model = find_model(app, &caller, &request.model)?;
        let prompt = request.prompt()?;
        model.could_fit(&prompt)?;
        let tokens = model.runtime().encode(&prompt).map_err(|error| ApiError::from(&error))?;
        Ok(tokens.len())
    });
    match counted.await {
        Ok(input_tokens) => ok(&json!({ "input_tokens": input_tokens })),
        Err(error) => error.response(Dialect::Anthropic),
    }
}

/// Answers a conversation.
pub(crate) async fn create(asked: Asked) -> Response {
    let begun = asked.begin(|request: MessagesRequest| {
        let streams = request.stream;
        let (wanted, stop) = request.wanted()?;
        Ok((wanted, (stop, streams)))
    });
    match begun.await {
        Ok((begun, (stop, true))) => stream(begun, stop),
        Ok((begun, (stop, false))) => {
            whole(begun, &stop).await.unwrap_or_else(|error| error.response(Dialect::Anthropic))
        }
        Err(error) => error.response(Dialect::Anthropic),
    }
}

/// Tokens of the prompt that were found in the cache are counted apart.
#[derive(Clone, Copy, Debug, Serialize)]
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

#[derive(Serialize)]
struct WireMessage<'a> {
    id: String,
    #[serde(rename = "type")]
    kind: &'static str,
    role: &'static str,
    model: &'a str,
    content: Vec<Block>,
    stop_reason: Option<&'static str>,
    stop_sequence: Option<&'a str>,
    usage: WireUsage,
    #[serde(skip_serializing_if = "Option::is_none")]
    tokrun: Option<Tokrun>,
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Block {
    Text { text: String },
}

/// Why an answer ended, and the stop string that did it.
fn stop_reason<'a>(model: &Model, outcome: &Outcome, stop: &'a [String]) -> (&'static str, Option<&'a str>) {
    if outcome.finish_reason != FinishReason::Stop {
        return ("max_tokens", None);
    }
    // The tokens of the stop string are paid, so they are among the answer's, and their text follows what is shown.
    let whole = model.runtime().tokenizer().decode(&outcome.token_ids).unwrap_or_default();
    let rest = whole.strip_prefix(outcome.text.as_str()).unwrap_or_default();
    match stop.iter().find(|stop| rest.starts_with(stop.as_str())) {
        Some(stop) => ("stop_sequence", Some(stop)),
        None => ("end_turn", None),
    }
}

async fn whole(begun: Begun, stop: &[String]) -> Result<Response, ApiError> {
    let Begun { answers, model, limits, id, .. } = begun;
    let mut summary = Summary::default();
    let (_, outcome) = answers.collect().await?.swap_remove(0);
    summary.add(&outcome);
    let (reason, sequence) = stop_reason(&model, &outcome, stop);
    let mut response = ok(&WireMessage {
        tokrun: Some(summary.tokrun(&id)),
        id: format!("msg_{id}"),
        kind: "message",
        role: "assistant",
        model: model.name(),
        content: vec![Block::Text { text: outcome.text }],
        stop_reason: Some(reason),
        stop_sequence: sequence,
        usage: WireUsage::from(&summary.usage),
    });
    summary.tell(response.headers_mut());
    limits.tell(response.headers_mut());
    Ok(response)
}

fn stream(begun: Begun, stop: Vec<String>) -> Response {
    let Begun { answers, model, limits, id, .. } = begun;
    let prompt_tokens = answers.prompt_tokens() as u64;
    let mut response = sse::response(answers, MessageScribe { id, model, stop, prompt_tokens });
    limits.tell(response.headers_mut());
    response
}

struct MessageScribe {
    id: String,
    model: Arc<Model>,
    stop: Vec<String>,
    prompt_tokens: u64,
}

#[derive(Serialize)]
struct TextDelta<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    index: usize,
    delta: TextDeltaText<'a>,
}

#[derive(Serialize)]
struct TextDeltaText<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    text: &'a str,
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
        let block = Block::Text { text: String::new() };
        let start = json!({ "type": "content_block_start", "index": 0, "content_block": block });
        out.event("content_block_start", &start);
        out.event("ping", &json!({ "type": "ping" }));
    }

    fn delta(&mut self, _choice: usize, delta: Delta, out: &mut Frames) {
        if !delta.text.is_empty() {
            let text = TextDeltaText { kind: "text_delta", text: &delta.text };
            let delta = TextDelta { kind: "content_block_delta", index: 0, delta: text };
            out.event("content_block_delta", &delta);
        }
    }

    fn finished(&mut self, _choice: usize, outcome: Outcome, out: &mut Frames) {
        let mut summary = Summary::default();
        summary.add(&outcome);
        let (reason, sequence) = stop_reason(&self.model, &outcome, &self.stop);
        out.event("content_block_stop", &json!({ "type": "content_block_stop", "index": 0 }));
        out.event(
            "message_delta",
            &json!({
                "type": "message_delta",
                "delta": { "stop_reason": reason, "stop_sequence": sequence },
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
