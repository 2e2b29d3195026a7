//! What is said in a conversation, as clients write it: text, or a list of parts.

use schemars::JsonSchema;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};

use crate::error::ApiError;

/// A value that is known, and not looked into.
#[derive(Clone, Copy, Debug, JsonSchema)]
#[schemars(transparent)]
pub(crate) struct Anything(#[schemars(with = "serde_json::Value")] ());

impl<'de> Deserialize<'de> for Anything {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Self(()))
    }
}

/// What is said: text, or parts of it.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a string or a list of content parts")]
pub(crate) enum Content {
    Text(String),
    Parts(Vec<Part>),
}

/// A part of what is said.
#[derive(Debug, Deserialize, JsonSchema)]
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
