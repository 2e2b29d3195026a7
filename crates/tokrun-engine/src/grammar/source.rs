//! Grammars as they are written.

use llguidance::api::TopLevelGrammar;
use llguidance::regex_to_lark;
use serde_json::{Value, json};

/// Longer ones are refused unread.
const SOURCE_BYTES_MAX: usize = 1 << 20;

/// Brackets within brackets, at most.
const DEPTH_MAX: usize = 200;

/// Between the parts of a JSON text: enough to indent deeply, and not so much that a weak model gets lost in it.
const WHITESPACE: &str = r"[\x20\x0A\x0D\x09]{1,40}";

/// Of what the library says is wrong.
const REASON_CHARACTERS_MAX: usize = 300;

/// The form of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Grammar {
    /// JSON that this JSON Schema describes, with any white space between its parts. A keyword that cannot be honoured
    /// is an error. References stay within the schema. A name that the schema does not list may come twice, where it
    /// admits such names at all.
    JsonSchema(String),
    /// Text that this regular expression matches from its first to its last character; Rust's syntax, without
    /// look-around. As in the patterns of a JSON Schema, `\d` and `\w` are ASCII.
    Regex(String),
    /// Text that this context-free grammar describes; Lark's syntax as `llguidance` takes it.
    Lark(String),
}

impl Grammar {
    /// What it is, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::JsonSchema(_) => "JSON schema",
            Self::Regex(_) => "regular expression",
            Self::Lark(_) => "grammar",
        }
    }

    /// As the library takes it.
    pub(super) fn parse(&self) -> Result<TopLevelGrammar, String> {
        let (Self::JsonSchema(source) | Self::Regex(source) | Self::Lark(source)) = self;
        if source.trim().is_empty() {
            return Err("it is empty".to_owned());
        }
        if source.len() > SOURCE_BYTES_MAX {
            return Err(format!("it has {} bytes, more than {SOURCE_BYTES_MAX}", source.len()));
        }
        match self {
            Self::JsonSchema(source) => {
                let schema = serde_json::from_str(source).map_err(|error| format!("it is no JSON: {error}"))?;
                Ok(TopLevelGrammar::from_json_schema(with_bounded_whitespace(schema)))
            }
            Self::Regex(source) => {
                shallow(source)?;
                Ok(TopLevelGrammar::from_lark(format!("start: /{}/", regex_to_lark(source, "dw"))))
            }
            Self::Lark(source) => shallow(source).map(|()| TopLevelGrammar::from_lark(source.clone())),
        }
    }
}

/// The schema with our choice of white space, unless it makes its own (llguidance's `x-guidance`).
pub(crate) fn with_bounded_whitespace(mut schema: Value) -> Value {
    if let Some(object) = schema.as_object_mut() {
        object.entry("x-guidance").or_insert_with(|| json!({ "whitespace_pattern": WHITESPACE }));
    }
    schema
}

/// Refuses brackets that are nested deeper than the stack could be trusted with. Quoted brackets count too, closed or
/// not: nobody writes hundreds of those.
fn shallow(source: &str) -> Result<(), String> {
    let mut depth = 0_usize;
    for byte in source.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > DEPTH_MAX {
            return Err(format!("its brackets are nested more than {DEPTH_MAX} deep"));
        }
    }
    Ok(())
}

/// What the library says over several lines, in one: without the source that it quotes and points at, and without the
/// trace that it adds to a panic.
pub(super) fn in_short(reason: &str) -> String {
    let reason = reason.split("<backtrace>").next().unwrap_or_default();
    let quoted =
        |line: &str| line.contains(" | ") && line.trim_start().starts_with(|first: char| first.is_ascii_digit());
    let words = |line: &&str| line.chars().any(char::is_alphanumeric);
    let mut lines = reason.lines().filter(|line| !quoted(line)).filter(words).map(str::trim);
    // The regular expressions' own parser quotes the expression before it says what is wrong.
    let verdict = lines.clone().find_map(|line| line.strip_prefix("error: ").map(str::to_owned));
    let text = verdict.unwrap_or_else(|| lines.by_ref().collect::<Vec<_>>().join(" ")).replace("; ", ", ");
    match text.char_indices().nth(REASON_CHARACTERS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
