//! What a response is asked to go on from: messages, calls and their results, thoughts.

use schemars::JsonSchema;
use serde::Deserialize;
use tokrun_runtime::ChatMessage;

use crate::content::Content;
use crate::error::ApiError;
use crate::tools;

/// An item. What clients send back of an answer has more fields than it needs.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct Item {
    #[serde(rename = "type", default = "message")]
    kind: String,
    role: Option<String>,
    content: Option<Content>,
    call_id: Option<String>,
    name: Option<String>,
    arguments: Option<String>,
    output: Option<Content>,
}

fn message() -> String {
    "message".to_owned()
}

/// Adds the turns that the items are; what an assistant thought, said and called in a row is one.
pub(super) fn add(items: &[Item], messages: &mut Vec<ChatMessage>) -> Result<(), ApiError> {
    for item in items {
        match item.kind.as_str() {
            "message" => {
                let said = item.message()?;
                match messages.last_mut() {
                    Some(last) if said.role == "assistant" && is_only_thought(last) => last.content = said.content,
                    _ => messages.push(said),
                }
            }
            "reasoning" => {
                let reasoning_content = item.content.as_ref().map(Content::text).transpose()?;
                messages.push(ChatMessage { reasoning_content, ..ChatMessage::new("assistant", "") });
            }
            "function_call" => {
                let (id, name) = (required(&item.call_id, "call_id")?, required(&item.name, "name")?);
                let call = tools::call(id, name, required(&item.arguments, "arguments")?, "input")?;
                match messages.last_mut() {
                    Some(last) if last.role == "assistant" => last.tool_calls.push(call),
                    _ => {
                        messages.push(ChatMessage { tool_calls: vec![call], ..ChatMessage::new("assistant", "") });
                    }
                }
            }
            "function_call_output" => {
                let output = required(&item.output, "output")?.text()?;
                let tool_call_id = Some(required(&item.call_id, "call_id")?.clone());
                messages.push(ChatMessage { tool_call_id, ..ChatMessage::new("tool", output) });
            }
            kind => {
                let kind: String = kind.chars().take(64).collect();
                return Err(wrong(format!("Items of type '{kind}' are not supported.")));
            }
        }
    }
    Ok(())
}

fn is_only_thought(message: &ChatMessage) -> bool {
    message.role == "assistant" && message.content.is_empty() && message.tool_calls.is_empty()
}

fn required<'a, T>(field: &'a Option<T>, name: &str) -> Result<&'a T, ApiError> {
    field.as_ref().ok_or_else(|| wrong(format!("An item has no '{name}'.")))
}

fn wrong(message: impl Into<String>) -> ApiError {
    ApiError::invalid_param("input", message)
}

impl Item {
    fn message(&self) -> Result<ChatMessage, ApiError> {
        let role = match self.role.as_deref() {
            Some("developer" | "system") => "system",
            Some("user") => "user",
            Some("assistant") => "assistant",
            _ => return Err(wrong("A message's role is user, assistant, system or developer.")),
        };
        Ok(ChatMessage::new(role, required(&self.content, "content")?.text()?))
    }
}
