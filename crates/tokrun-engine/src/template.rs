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

mod json;
#[cfg(test)]
mod tests;

/// Instructions a template may execute: real ones need a few hundred a message.
const FUEL: u64 = 50_000_000;

const NAME: &str = "chat template";

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ChatMessage {
    /// Who speaks: `system`, `user`, `assistant`, or what else the template knows.
    pub role: String,
    /// What is said.
    pub content: String,
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
        Ok(Self { environment, special_tokens })
    }

    /// The text to tokenize, special tokens spelled out: no others may be added.
    ///
    /// # Errors
    /// When the template refuses the conversation (`raise_exception`), or fails.
    pub fn render(&self, messages: &[ChatMessage], options: &RenderOptions) -> Result<String, EngineError> {
        let now = options.now;
        let special_tokens = Value::from_pairs(self.special_tokens.iter().map(|(name, token)| (*name, token.as_str())));
        let context = context! {
            messages => Value::from(Serde(messages)),
            add_generation_prompt => options.add_generation_prompt,
            tools => (),
            documents => (),
            strftime_now => Value::from_function(move |format: &str| strftime(format, now)),
            ..special_tokens
        };
        let template = self.environment.get_template(NAME).map_err(|error| broken(&error))?;
        template.render(context).map_err(|error| match raised(&error) {
            Some(reason) => EngineError::TemplateRefused { reason },
            None => broken(&error),
        })
    }
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
