//! Tools for models whose templates know none: the conversation says what there is, and how to call it.

use serde_json::Value;

use super::{Tool, ToolCall};
use crate::template::ChatMessage;

/// Where a template lets instructions stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SystemPlace {
    /// In a system message.
    Own,
    /// In the first user's message, since it knows no others.
    FirstUser,
}

/// The same conversation in words that every template takes, with the tools in its instructions.
pub(crate) fn teach(messages: &[ChatMessage], tools: &[Tool], place: SystemPlace) -> Vec<ChatMessage> {
    let mut taught: Vec<ChatMessage> = Vec::with_capacity(messages.len() + 1);
    for message in messages {
        match (message.role.as_str(), taught.last_mut()) {
            // The results of several calls are one turn, as templates that want turns to alternate expect.
            ("tool", Some(last)) if last.role == "user" && last.content.ends_with(RESULT_END) => {
                last.content.push('\n');
                last.content.push_str(&result(&message.content));
            }
            ("tool", _) => taught.push(ChatMessage::new("user", result(&message.content))),
            _ => taught.push(spelled_out(message)),
        }
    }
    if !tools.is_empty() {
        instruct(&mut taught, &instructions(tools), place);
    }
    taught
}

const RESULT_END: &str = "\n</tool_response>";

fn result(content: &str) -> String {
    format!("<tool_response>\n{content}{RESULT_END}")
}

/// A message whose calls are part of what it says.
fn spelled_out(message: &ChatMessage) -> ChatMessage {
    let said = Some(&message.content).filter(|content| !content.is_empty()).cloned();
    let calls = message.tool_calls.iter().map(block);
    let content: Vec<String> = said.into_iter().chain(calls).collect();
    ChatMessage { tool_calls: Vec::new(), content: content.join("\n"), ..message.clone() }
}

fn block(call: &ToolCall) -> String {
    let name = Value::from(call.name.as_str());
    format!("<tool_call>\n{{\"name\": {name}, \"arguments\": {}}}\n</tool_call>", call.arguments)
}

fn instruct(messages: &mut Vec<ChatMessage>, instructions: &str, place: SystemPlace) {
    let role = if place == SystemPlace::Own { "system" } else { "user" };
    match messages.first_mut() {
        Some(first) if first.role == role => first.content = format!("{}\n\n{instructions}", first.content),
        _ => messages.insert(0, ChatMessage::new(role, instructions)),
    }
}

fn instructions(tools: &[Tool]) -> String {
    let listed: Vec<String> = tools.iter().map(|tool| tool.for_templates().to_string()).collect();
    format!(
        "You can call functions. These are their signatures, one JSON object a line:\n<tools>\n{}\n</tools>\n\
         To call one, write a JSON object with its name and its arguments between tags, and nothing else:\n\
         <tool_call>\n{{\"name\": \"the function's name\", \"arguments\": {{\"an argument\": \"its value\"}}}}\n</tool_call>\n\
         Several calls are several such blocks. What they return comes between <tool_response> tags. When no function \
         helps, answer in plain words.",
        listed.join("\n")
    )
}
