//! What is said in a turn of Anthropic's conversations: words, thoughts, calls and their results.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;
use tokrun_runtime::{ChatMessage, ToolCall};

use crate::content::Content;
use crate::error::ApiError;

/// Words alone, or blocks.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a string or a list of content blocks")]
pub(super) enum Turn {
    Text(String),
    Blocks(Vec<Block>),
}

/// A block. What clients send back of an answer has more fields than are needed here.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Block {
    Text {
        text: String,
    },
    Thinking {
        thinking: String,
    },
    // Only those who wrote it can read it.
    RedactedThinking {},
    ToolUse {
        id: String,
        name: String,
        input: Value,
    },
    ToolResult {
        tool_use_id: String,
        content: Option<Content>,
        #[serde(default)]
        is_error: bool,
    },
    #[serde(other)]
    Other,
}

fn unsupported() -> ApiError {
    ApiError::invalid_param("messages", "messages: this kind of content is not supported there, only text is")
}

impl Turn {
    /// A user's turn: the results of calls come before what else is said.
    pub(super) fn of_user(&self) -> Result<Vec<ChatMessage>, ApiError> {
        let blocks = match self {
            Self::Text(text) => return Ok(vec![ChatMessage::new("user", text)]),
            Self::Blocks(blocks) => blocks,
        };
        let (mut messages, mut words) = (Vec::new(), Vec::new());
        for block in blocks {
            match block {
                Block::Text { text } => words.push(text.as_str()),
                Block::ToolResult { tool_use_id, content, is_error } => {
                    let content = content.as_ref().map(Content::text).transpose()?.unwrap_or_default();
                    let content = if *is_error { format!("Error: {content}") } else { content };
                    let tool_call_id = Some(tool_use_id.clone());
                    messages.push(ChatMessage { tool_call_id, ..ChatMessage::new("tool", content) });
                }
                _ => return Err(unsupported()),
            }
        }
        if !words.is_empty() || messages.is_empty() {
            messages.push(ChatMessage::new("user", words.join("\n")));
        }
        Ok(messages)
    }

    /// An answer that was given before.
    pub(super) fn of_assistant(&self) -> Result<ChatMessage, ApiError> {
        let blocks = match self {
            Self::Text(text) => return Ok(ChatMessage::new("assistant", text)),
            Self::Blocks(blocks) => blocks,
        };
        let (mut message, mut words) = (ChatMessage::new("assistant", ""), Vec::new());
        for block in blocks {
            match block {
                Block::Text { text } => words.push(text.as_str()),
                Block::Thinking { thinking } => message.reasoning_content.get_or_insert_default().push_str(thinking),
                Block::RedactedThinking {} => {}
                Block::ToolUse { id, name, input } if input.is_object() => {
                    message.tool_calls.push(ToolCall { id: id.clone(), name: name.clone(), arguments: input.clone() })
                }
                _ => return Err(unsupported()),
            }
        }
        message.content = words.join("\n");
        Ok(message)
    }
}
