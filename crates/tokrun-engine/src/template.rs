//! Chat templates: a conversation becomes the text that a model was trained to continue.
//!
//! They are Jinja programs that come with the model, written for the environment that Hugging Face transformers gives
//! them (`apply_chat_template`). This module gives them the same one: `trim_blocks` and `lstrip_blocks`, Python's methods
//! of strings, lists and dicts, loop controls, `raise_exception`, `strftime_now`, a `tojson` that is `json.dumps`, and
//! `{% generation %}` blocks. They are untrusted: one that does not end is stopped.

use std::fmt;

use jiff::civil::DateTime;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Error, ErrorKind, Value, context};
use serde::Serialize;
use tokrun_model::Assets;

use crate::error::EngineError;
use crate::tools::{Form, SystemPlace, Tool, ToolCall, ToolStyle, teach};

mod json;
mod probe;
#[cfg(test)]
mod tests;

/// Instructions a template may execute: real ones need a few hundred a message.
const FUEL: u64 = 50_000_000;

const NAME: &str = "chat template";

/// One turn of a conversation.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ChatMessage {
    /// Who speaks: `system`, `user`, `assistant`, `tool`, or what else the template knows.
    pub role: String,
    /// What is said.
    pub content: String,
    /// What the assistant thought before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// The tools that the assistant called.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// The call that this is the result of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
}

impl ChatMessage {
    /// Words, and nothing else.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), ..Self::default() }
    }
}

/// What a model is to go on with.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversation {
    /// The turns so far.
    pub messages: Vec<ChatMessage>,
    /// What the model may call.
    pub tools: Vec<Tool>,
    /// What else the template is told, by name: `enable_thinking`, say.
    pub settings: serde_json::Map<String, serde_json::Value>,
}

impl From<Vec<ChatMessage>> for Conversation {
    fn from(messages: Vec<ChatMessage>) -> Self {
        Self { messages, ..Self::default() }
    }
}

/// What a template may depend on besides the conversation.
#[derive(Clone, Debug)]
pub struct RenderOptions {
    /// End with the words that open the assistant's turn.
    pub add_generation_prompt: bool,
    /// Local date and time, for templates that name them.
    pub now: DateTime,
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// `bos_token` and the like, as far as the model has them.
    special_tokens: Vec<(&'static str, String)>,
    tools: ToolStyle,
    /// Where it lets the instructions stand that teach tools.
    system: SystemPlace,
    /// It takes the tools as a part of the system message.
    tools_in_system: bool,
}

impl ChatTemplate {
    /// Compiles the template of a model.
    ///
    /// # Errors
    /// When it has none, or it is no valid Jinja.
    pub fn compile(assets: &Assets) -> Result<Self, EngineError> {
        let source = assets.chat_template.as_deref().ok_or(EngineError::NoChatTemplate)?;
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| broken(&error))?);
        // The text is for a model, not for a browser.
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("cycler", minijinja_contrib::globals::cycler);
        environment.add_function("joiner", minijinja_contrib::globals::joiner);
        environment.add_filter("tojson", json::tojson);
        environment.add_template_owned(NAME, without_generation_blocks(source)).map_err(|error| broken(&error))?;
        let special_tokens = [
            ("bos_token", &assets.bos_token),
            ("eos_token", &assets.eos_token),
            ("pad_token", &assets.pad_token),
            ("unk_token", &assets.unk_token),
        ];
        let special_tokens =
            special_tokens.into_iter().filter_map(|(name, token)| Some((name, token.clone()?))).collect();
        let tools_in_system = source.contains("message['tools']");
        let (tools, system) = (ToolStyle::TAUGHT, SystemPlace::Own);
        let template = Self { environment, special_tokens, tools, system, tools_in_system };
        Ok(template.probed(Form::shown_in(source)))
    }

    /// How the model calls tools.
    pub fn tool_style(&self) -> ToolStyle {
        self.tools
    }

    /// The text to tokenize, special tokens spelled out: no others may be added.
    ///
    /// # Errors
    /// When the template refuses the conversation (`raise_exception`), or fails.
    pub fn render(&self, conversation: &Conversation, options: &RenderOptions) -> Result<String, EngineError> {
        let Conversation { messages, tools, settings } = conversation;
        let has_called = messages.iter().any(|message| !message.tool_calls.is_empty());
        if self.tools.is_taught && (!tools.is_empty() || has_called) {
            return self.fill(Value::from(Serde(teach(messages, tools, self.system))), (), settings, options);
        }
        let tools: Vec<serde_json::Value> = tools.iter().map(Tool::for_templates).collect();
        let mut messages = serde_json::to_value(messages)
            .map_err(|error| broken(&Error::new(ErrorKind::BadSerialization, error.to_string())))?;
        if self.tools.form == Form::Listed {
            shorten_ids(&mut messages);
        }
        if self.tools_in_system && !tools.is_empty() {
            tools_to_system(&mut messages, &tools);
        }
        let tools = (!tools.is_empty()).then_some(Serde(tools));
        self.fill(Value::from(Serde(messages)), tools.map(Value::from), settings, options)
    }

    fn fill(
        &self,
        messages: Value,
        tools: impl Into<Value>,
        settings: &serde_json::Map<String, serde_json::Value>,
        options: &RenderOptions,
    ) -> Result<String, EngineError> {
        let now = options.now;
        let tools = tools.into();
        let special_tokens = Value::from_pairs(self.special_tokens.iter().map(|(name, token)| (*name, token.as_str())));
        let context = context! {
            messages,
            add_generation_prompt => options.add_generation_prompt,
            // SmolLM 3 has its own name for them.
            xml_tools => tools.clone(),
            tools,
            documents => (),
            strftime_now => Value::from_function(move |format: &str| strftime(format, now)),
            ..minijinja::value::merge_maps([special_tokens, Value::from(Serde(settings))])
        };
        let template = self.environment.get_template(NAME).map_err(|error| broken(&error))?;
        template.render(context).map_err(|error| match raised(&error) {
            Some(reason) => EngineError::TemplateRefused { reason },
            None => broken(&error),
        })
    }
}

/// Mistral's templates refuse the ids of calls that are not nine letters and digits: those here are made of the real ones.
fn shorten_ids(messages: &mut serde_json::Value) {
    let short = |id: &mut serde_json::Value| {
        let Some(text) = id.as_str() else { return };
        let hash = text
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
        *id = format!("{:09x}", hash & 0xf_ffff_ffff).into();
    };
    for message in messages.as_array_mut().into_iter().flatten() {
        for call in message.get_mut("tool_calls").and_then(|calls| calls.as_array_mut()).into_iter().flatten() {
            call.get_mut("id").into_iter().for_each(short);
        }
        message.get_mut("tool_call_id").into_iter().for_each(short);
    }
}

/// Phi's templates take the tools as text in a system message.
fn tools_to_system(messages: &mut serde_json::Value, tools: &[serde_json::Value]) {
    let Some(messages) = messages.as_array_mut() else { return };
    if messages.first().is_none_or(|first| first["role"] != "system") {
        messages.insert(
            0,
            serde_json::json!({ "role": "system", "content": "You are a helpful assistant with some tools." }),
        );
    }
    // Its functions alone, without what every entry has.
    let functions: Vec<&serde_json::Value> = tools.iter().map(|tool| &tool["function"]).collect();
    messages[0]["tools"] = serde_json::json!(functions).to_string().into();
}

/// What a template said to `raise_exception`, carried as the source of an error so that it can be told from a failure.
#[derive(Debug)]
struct Raised(String);

impl fmt::Display for Raised {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Raised(message)))
}

fn raised(error: &Error) -> Option<String> {
    let first: &dyn std::error::Error = error;
    std::iter::successors(Some(first), |error| error.source())
        .find_map(|error| Some(error.downcast_ref::<Raised>()?.0.clone()))
}

fn broken(error: &Error) -> EngineError {
    EngineError::BrokenTemplate { reason: error.to_string() }
}

fn strftime(format: &str, now: DateTime) -> Result<String, Error> {
    jiff::fmt::strtime::format(format, now).map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
}

/// Replaces `{% generation %}` by `{% with %}`: it marks the assistant's words for training, and all that is left of it
/// here is that it opens a scope. Whitespace control stays as it is.
fn without_generation_blocks(source: &str) -> String {
    let mut plain = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start + 2);
        plain.push_str(before);
        rest = tag;
        for (name, replacement) in [("generation", "with"), ("endgeneration", "endwith")] {
            let inner = tag.trim_start_matches(['-', '+']);
            let Some(after) = inner.trim_start().strip_prefix(name) else { continue };
            if after.trim_start().trim_start_matches(['-', '+']).starts_with("%}") {
                plain.push_str(&tag[..tag.len() - inner.len()]);
                plain.push_str(&format!(" {replacement} "));
                rest = after.trim_start();
                break;
            }
        }
    }
    plain.push_str(rest);
    plain
}
