//! Tools as clients describe them: what the dialects have in common.

use serde_json::{Map, Value, json};
use tokrun_runtime::{Tool, ToolCall, ToolChoice};

use crate::error::ApiError;

/// As the reference service bounds them.
const TOOLS_MAX: usize = 128;
const NAME_CHARACTERS_MAX: usize = 128;

/// What a client says of its tools.
#[derive(Debug, Default)]
pub(crate) struct ToolUse {
    pub(crate) tools: Vec<Tool>,
    pub(crate) choice: ToolChoice,
    pub(crate) one_call: bool,
}

/// A tool as it is described, or why it is none.
pub(crate) fn tool(
    name: &str,
    description: Option<&str>,
    parameters: Option<&Value>,
    strict: bool,
) -> Result<Tool, ApiError> {
    let is_named_well = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    if !is_named_well || name.is_empty() || name.len() > NAME_CHARACTERS_MAX {
        let message = "A tool's name has 1 to 128 letters, digits, '_' and '-'.";
        return Err(ApiError::invalid_param("tools", message));
    }
    let nothing = || json!({ "type": "object", "properties": {} });
    let parameters = parameters.filter(|schema| !schema.is_null()).cloned().unwrap_or_else(nothing);
    if !parameters.is_object() {
        let message = format!("The parameters of '{name}' are no JSON schema of an object.");
        return Err(ApiError::invalid_param("tools", message));
    }
    Ok(Tool { name: name.to_owned(), description: description.map(str::to_owned), parameters, strict })
}

/// Tools with how they are to be called; `None` for not at all.
pub(crate) fn tool_use(tools: Vec<Tool>, choice: Option<ToolChoice>, parallel: bool) -> Result<ToolUse, ApiError> {
    if tools.len() > TOOLS_MAX {
        let message = format!("There are {} tools; {TOOLS_MAX} are the most.", tools.len());
        return Err(ApiError::invalid_param("tools", message));
    }
    let Some(choice) = choice else { return Ok(ToolUse::default()) };
    let is_there = match &choice {
        ToolChoice::Auto => true,
        ToolChoice::Required => !tools.is_empty(),
        ToolChoice::Named(name) => tools.iter().any(|tool| tool.name == *name),
    };
    if !is_there {
        return Err(ApiError::invalid_param("tool_choice", "'tool_choice' asks for a tool that is not among 'tools'."));
    }
    let one_call = !parallel || matches!(choice, ToolChoice::Named(_));
    Ok(ToolUse { tools, choice, one_call })
}

/// A choice as OpenAI's two APIs write it: a word, or the name of a function.
pub(crate) fn openai_choice(choice: Option<&Value>) -> Result<Option<ToolChoice>, ApiError> {
    let wrong = |message: &str| Err(ApiError::invalid_param("tool_choice", message));
    let Some(choice) = choice else { return Ok(Some(ToolChoice::Auto)) };
    match (choice.as_str(), choice.get("type").and_then(Value::as_str)) {
        (Some("none"), _) => Ok(None),
        (Some("auto"), _) => Ok(Some(ToolChoice::Auto)),
        (Some("required"), _) => Ok(Some(ToolChoice::Required)),
        (_, Some("function")) => match choice.get("function").unwrap_or(choice).get("name").and_then(Value::as_str) {
            Some(name) => Ok(Some(ToolChoice::Named(name.to_owned()))),
            None => wrong("'tool_choice' names no function."),
        },
        (_, Some("allowed_tools" | "custom")) => {
            Err(ApiError::unsupported("tool_choice", "give the allowed tools alone as 'tools'"))
        }
        _ => wrong("'tool_choice' is 'none', 'auto', 'required' or a function."),
    }
}

/// A call that an answer had, as clients send it back: its arguments are JSON text.
pub(crate) fn call(id: &str, name: &str, arguments: &str, param: &str) -> Result<ToolCall, ApiError> {
    let text = if arguments.trim().is_empty() { "{}" } else { arguments };
    let arguments: Map<String, Value> = serde_json::from_str(text).map_err(|error| {
        ApiError::invalid_param(param, format!("The arguments of a call are no JSON object: {error}."))
    })?;
    Ok(ToolCall { id: id.to_owned(), name: name.to_owned(), arguments: Value::Object(arguments) })
}
