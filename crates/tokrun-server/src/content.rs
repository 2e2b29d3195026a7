//! What is said in a conversation, as clients write it: text, or a list of parts.

use serde::Deserialize;

use crate::error::ApiError;

/// What is said: text, or parts of it.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a string or a list of content parts")]
pub(crate) enum Content {
    Text(String),
    Parts(Vec<Part>),
}

/// A part of what is said.
#[derive(Debug, Deserialize)]
pub(crate) struct Part {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
}

impl Content {
    /// The text, where it is nothing but text.
    pub(crate) fn text(&self) -> Result<String, ApiError> {
        let parts = match self {
            Self::Text(text) => return Ok(text.clone()),
            Self::Parts(parts) => parts,
        };
        let texts: Result<Vec<&str>, ApiError> = parts.iter().map(Part::text).collect();
        Ok(texts?.join("\n"))
    }
}

impl Part {
    pub(crate) fn text(&self) -> Result<&str, ApiError> {
        match (&self.text, self.kind.as_str()) {
            (Some(text), "text" | "input_text" | "output_text" | "reasoning_text") => Ok(text),
            (_, kind) => {
                let kind: String = kind.chars().take(64).collect();
                Err(ApiError::invalid_param(
                    "messages",
                    format!("Content of type '{kind}' is not supported: only text."),
                ))
            }
        }
    }
}
