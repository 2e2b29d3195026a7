//! Tools: how a model is told of the functions that it may call, and how its calls are recognised.
//!
//! Each family was trained on a form of its own. A template that takes tools tells the model of them, and its text shows
//! the form that the calls will have; where a template knows no tools, or their form is unknown here, the conversation
//! itself teaches the model one ([`taught`]). The forms are few, and differ in little but their brackets.

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

mod grammar;
mod reader;
mod taught;
#[cfg(test)]
mod tests;

pub use reader::{ToolPiece, ToolReader};
pub(crate) use taught::{SystemPlace, teach};

/// A function that a model may call.
#[derive(Clone, Debug, PartialEq)]
pub struct Tool {
    /// Letters, digits, `_` and `-`.
    pub name: String,
    /// What it does.
    pub description: Option<String>,
    /// The JSON Schema of its arguments, an object.
    pub parameters: Value,
    /// Whether calls are held to that schema wherever the model decides to call.
    pub strict: bool,
}

impl Tool {
    /// As templates expect it.
    pub(crate) fn for_templates(&self) -> Value {
        let mut function = json!({ "name": self.name });
        if let Some(description) = &self.description {
            function["description"] = json!(description);
        }
        function["parameters"] = self.parameters.clone();
        json!({ "type": "function", "function": function })
    }
}

/// A call that a model made.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolCall {
    /// Names it, so that its result can.
    pub id: String,
    /// The function.
    pub name: String,
    /// Its arguments, an object.
    pub arguments: Value,
}

impl Serialize for ToolCall {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(3))?;
        map.serialize_entry("id", &self.id)?;
        map.serialize_entry("type", "function")?;
        map.serialize_entry("function", &json!({ "name": self.name, "arguments": self.arguments }))?;
        map.end()
    }
}

/// Whether a model calls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// As it sees fit.
    #[default]
    Auto,
    /// It must call some tool.
    Required,
    /// It must call this one.
    Named(String),
}

/// The form of calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, a block for each call: Hermes, Qwen, SmolLM.
    Tagged,
    /// `[TOOL_CALLS][{"name": …, "arguments": {…}}, …]`: Mistral.
    Listed,
    /// `{"name": …, "parameters": {…}}` is the whole answer, perhaps after `<|python_tag|>`: Llama 3.
    Bare,
    /// `<|tool_call|>[{"name": …, "arguments": {…}}, …]<|/tool_call|>`, or `functools[…]`: Phi.
    Piped,
}

impl Form {
    /// The form that a template's text shows.
    pub(crate) fn shown_in(template: &str) -> Option<Self> {
        let has = |text: &str| template.contains(text);
        if has("<tool_call>") {
            // Some put XML or a bare name there.
            return (!has("<function=") && !has("<arg_key>")).then_some(Self::Tagged);
        }
        if has("[TOOL_CALLS]") {
            return (!has("[ARGS]")).then_some(Self::Listed);
        }
        if has("<|python_tag|>") || has("ipython") {
            return Some(Self::Bare);
        }
        (has("<|tool|>") || has("<|tool_call|>")).then_some(Self::Piped)
    }

    /// What calls may begin with.
    pub(crate) fn opens(self) -> &'static [&'static str] {
        match self {
            Self::Tagged => &["<tool_call>"],
            Self::Listed => &["[TOOL_CALLS]"],
            Self::Bare => &["<|python_tag|>"],
            Self::Piped => &["<|tool_call|>", "functools"],
        }
    }

    /// What ends them; without it the end of the answer does.
    pub(crate) fn close(self) -> Option<&'static str> {
        match self {
            Self::Tagged => Some("</tool_call>"),
            Self::Piped => Some("<|/tool_call|>"),
            Self::Listed | Self::Bare => None,
        }
    }

    /// What a call's arguments are called.
    fn arguments_key(self) -> &'static str {
        if self == Self::Bare { "parameters" } else { "arguments" }
    }
}

/// How one model calls tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ToolStyle {
    pub(crate) form: Form,
    /// Its template does not tell it of tools, so the conversation must.
    pub(crate) is_taught: bool,
}

impl ToolStyle {
    /// The form that is taught to models that know none.
    pub(crate) const TAUGHT: Self = Self { form: Form::Tagged, is_taught: true };

    /// What marks calls, where those are tokens that text otherwise leaves out.
    pub fn markers(self) -> impl Iterator<Item = &'static str> {
        self.form.opens().iter().copied().chain(self.form.close())
    }
}
