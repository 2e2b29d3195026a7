//! What an answer must look like so that its calls are calls: a grammar in `llguidance`'s form of Lark.

use std::fmt::Write;

use serde_json::{Value, json};

use super::{Form, Tool, ToolChoice, ToolStyle};
use crate::grammar::{Grammar, with_bounded_whitespace};
use crate::tokenizer::Tokenizer;

impl ToolStyle {
    /// What holds an answer to `choice`. `None` where the model is free: it calls as it sees fit, as often as it sees fit,
    /// and no tool is strict.
    pub fn grammar(
        self,
        tools: &[Tool],
        choice: &ToolChoice,
        parallel: bool,
        tokenizer: &Tokenizer,
    ) -> Option<Grammar> {
        let is_free = *choice == ToolChoice::Auto;
        if is_free && parallel && !tools.iter().any(|tool| tool.strict) {
            return None;
        }
        let rules = Rules { form: self.form, tokenizer };
        let mut lark = if is_free { rules.free(parallel) } else { rules.forced(parallel) };
        let is_chosen = |tool: &&Tool| !matches!(choice, ToolChoice::Named(name) if *name != tool.name);
        let mut names = Vec::new();
        for (index, tool) in tools.iter().filter(is_chosen).enumerate() {
            let begin = format!("{{\"name\": \"{}\", \"{}\": ", tool.name, self.form.arguments_key());
            let schema = if is_free && !tool.strict { json!({ "type": "object" }) } else { arguments(tool) };
            // It cannot fail: writing to a string.
            let _ = writeln!(lark, "call_{index}: {} arguments_{index} \"}}\"", quoted(&begin));
            let _ = writeln!(lark, "arguments_{index}: %json {}", with_bounded_whitespace(schema));
            names.push(format!("call_{index}"));
        }
        let _ = writeln!(lark, "call: {}", names.join(" | "));
        Some(Grammar::Lark(lark))
    }
}

/// The schema of a call's arguments. An argument that nobody declared is not wanted, unless the schema asks for it.
fn arguments(tool: &Tool) -> Value {
    let mut schema = tool.parameters.clone();
    let Some(object) = schema.as_object_mut() else { return json!({ "type": "object" }) };
    object.entry("type").or_insert_with(|| json!("object"));
    let is_combined =
        ["allOf", "anyOf", "oneOf", "$ref", "patternProperties"].iter().any(|key| object.contains_key(*key));
    if !is_combined {
        object.entry("properties").or_insert_with(|| json!({}));
        object.entry("additionalProperties").or_insert(Value::Bool(false));
    }
    schema
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

struct Rules<'a> {
    form: Form,
    tokenizer: &'a Tokenizer,
}

impl Rules<'_> {
    /// A marker that is a token of its own, where text leaves it out.
    fn special(&self, marker: &str) -> Option<String> {
        let token = self.tokenizer.token_id(marker)?;
        self.tokenizer.is_special(token).then(|| format!("<[{token}]>"))
    }

    fn marker(&self, marker: &str) -> String {
        self.special(marker).unwrap_or_else(|| quoted(marker))
    }

    /// What comes after the opening marker.
    fn body(&self, parallel: bool) -> String {
        let close = self.form.close().map(|close| self.marker(close)).unwrap_or_default();
        let more = |separator: &str| if parallel { format!(" ({separator} SPACE? call)*") } else { String::new() };
        match self.form {
            Form::Tagged => format!("SPACE? call SPACE? {close}"),
            Form::Bare => format!("call{}", more("\";\"")),
            Form::Listed | Form::Piped => format!("SPACE? \"[\" call{} \"]\" {close}", more("\",\"")),
        }
    }

    fn forced(&self, parallel: bool) -> String {
        let open = self.marker(self.form.opens()[0]);
        let start = match self.form {
            Form::Bare => "body".to_owned(),
            Form::Tagged if parallel => format!("{open} body (SPACE? {open} body)*"),
            _ => format!("{open} body"),
        };
        format!("start: {start}\nbody: {}\n{SPACE}", self.body(parallel))
    }

    fn free(&self, parallel: bool) -> String {
        let opening = self.form.opens()[0];
        let special = self.special(opening);
        if self.form == Form::Bare {
            let tagged = special.map(|open| format!(" | {open} body")).unwrap_or_default();
            return format!(
                "start: body{tagged} | WORDS?\nbody: {}\nWORDS: /[^{{](.|\\n)*/\n{SPACE}",
                self.body(parallel)
            );
        }
        let head = match special {
            Some(open) => format!("head: WORDS? {open}"),
            None => format!("head[lazy]: /(.|\\n)*{}/", escaped(opening)),
        };
        let start = match (self.form, parallel) {
            (Form::Tagged, true) => "(head body)* WORDS?",
            _ => "head body | WORDS?",
        };
        format!("start: {start}\n{head}\nbody: {}\nWORDS: /(.|\\n)+/\n{SPACE}", self.body(parallel))
    }
}

const SPACE: &str = "SPACE: /[ \\n]{1,3}/\n";

/// A marker within a regular expression.
fn escaped(marker: &str) -> String {
    let has_meaning = |c: char| r"\/.+*?()|[]{}^$".contains(c);
    marker.chars().flat_map(|c| has_meaning(c).then_some('\\').into_iter().chain([c])).collect()
}
