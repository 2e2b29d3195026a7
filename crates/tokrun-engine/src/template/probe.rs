//! What a template can do, found out by trying.

use jiff::civil::date;
use serde_json::json;

use super::{ChatMessage, ChatTemplate, Conversation, RenderOptions};
use crate::tools::{Form, SystemPlace, Tool, ToolCall, ToolStyle};

/// Nothing else in a template says so.
const NAME: &str = "probe_7f3a";

impl ChatTemplate {
    /// Knows how it takes tools, whose calls its text shows to have `form`, and whether it takes instructions.
    pub(super) fn probed(mut self, form: Option<Form>) -> Self {
        let system = [ChatMessage::new("system", NAME), ChatMessage::new("user", "Hi")];
        if !self.tells(&system.to_vec().into()) {
            self.system = SystemPlace::FirstUser;
        }
        if let Some(form) = form {
            self.tools = ToolStyle { form, is_taught: false };
            if !self.takes_tools() {
                self.tools = ToolStyle::TAUGHT;
            }
        }
        self
    }

    /// Whether it tells of a tool, of a call and of its result.
    fn takes_tools(&self) -> bool {
        let user = ChatMessage::new("user", "Hi");
        let schema = json!({ "type": "object", "properties": {} });
        let tool =
            Tool { name: NAME.to_owned(), description: Some("What".to_owned()), parameters: schema, strict: false };
        let asked = Conversation { tools: vec![tool], ..vec![user.clone()].into() };
        // Some show a call only together with its result.
        let after = |name: &str, result: &str| {
            let call = ToolCall { id: "call".to_owned(), name: name.to_owned(), arguments: json!({}) };
            let called = ChatMessage { tool_calls: vec![call], ..ChatMessage::new("assistant", "") };
            let result = ChatMessage { tool_call_id: Some("call".to_owned()), ..ChatMessage::new("tool", result) };
            Conversation::from(vec![user.clone(), called, result])
        };
        self.tells(&asked) && self.tells(&after(NAME, "what")) && self.tells(&after("what", NAME))
    }

    fn tells(&self, conversation: &Conversation) -> bool {
        let options = RenderOptions { add_generation_prompt: true, now: date(2024, 7, 5).at(9, 3, 7, 0) };
        self.render(conversation, &options).is_ok_and(|text| text.contains(NAME))
    }
}
