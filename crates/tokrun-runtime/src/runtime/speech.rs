//! How a model is spoken to, and what its tokens say.

use tokrun_engine::{
    AfterReasoning, ChatTemplate, Constraint, EngineError, Grammar, InvalidParameter, ReasoningTags, RenderOptions,
    Submission, TokenId, Tokenizer, ToolStyle,
};

use super::Runtime;
use crate::transcript::Rules;
use crate::{GenerateRequest, Prompt, RuntimeError};

/// What models spell the beginning and the end of their thinking.
const REASONING_TAGS: [(&str, &str); 2] = [("<think>", "</think>"), ("[THINK]", "[/THINK]")];

/// A prompt as the model sees it.
pub(super) struct Encoded {
    pub(super) tokens: Vec<TokenId>,
    /// Its end, as text, where a template made it.
    pub(super) tail: Option<String>,
}

impl Runtime {
    /// The tokens of a prompt, as the model will see them.
    ///
    /// # Errors
    /// When the model has no usable template for a conversation, or the text cannot be encoded.
    pub fn encode(&self, prompt: &Prompt) -> Result<Vec<TokenId>, RuntimeError> {
        Ok(self.encoded(prompt)?.tokens)
    }

    pub(super) fn encoded(&self, prompt: &Prompt) -> Result<Encoded, RuntimeError> {
        Ok(match prompt {
            Prompt::Tokens(tokens) => Encoded { tokens: tokens.clone(), tail: None },
            Prompt::Text(text) => Encoded { tokens: self.model.tokenizer.encode(text, true)?, tail: None },
            Prompt::Chat(conversation) => {
                let options = RenderOptions { add_generation_prompt: true, now: jiff::ZonedDateTime::now().datetime() };
                let text = self.template()?.render(conversation, &options)?;
                let tokens = self.model.tokenizer.encode(&text, false)?;
                let words = text.trim_end();
                let tail = words.char_indices().rev().nth(15).map_or(words, |(from, _)| &words[from..]).to_owned();
                Encoded { tokens, tail: Some(tail) }
            }
        })
    }

    fn template(&self) -> Result<&ChatTemplate, RuntimeError> {
        self.model.template.as_ref().map_err(|reason| RuntimeError::NoTemplate(reason.to_string()))
    }

    /// How the model calls tools.
    ///
    /// # Errors
    /// When it has no usable template for a conversation.
    pub fn tool_style(&self) -> Result<ToolStyle, RuntimeError> {
        Ok(self.template()?.tool_style())
    }

    /// Whether the model can think before it answers.
    pub fn reasons(&self) -> bool {
        self.model.reasoning.is_some()
    }

    /// What makes text of the answer's tokens; the prompt ends with `tail`.
    pub(super) fn rules(&self, request: &GenerateRequest, tail: Option<&str>) -> Rules {
        let tokenizer = &self.model.tokenizer;
        let ends_with = |token: TokenId| {
            let spelling = tokenizer.token_text(token).unwrap_or_default();
            tail.is_some_and(|tail| tail.ends_with(&spelling))
        };
        // Text that goes on as it stands is told apart by nobody; a template may have closed the thinking already.
        let reasoning = self.model.reasoning.filter(|tags| tail.is_some() && !ends_with(tags.close));
        let spelled = match (&request.prompt, &self.model.template) {
            (Prompt::Chat(conversation), Ok(template)) if !conversation.tools.is_empty() => {
                template.tool_style().markers().filter_map(|marker| tokenizer.token_id(marker)).collect()
            }
            _ => Vec::new(),
        };
        Rules {
            stop: request.stop.clone(),
            continues: tail.is_none(),
            spelled,
            reasoning,
            reasons_at_once: reasoning.is_some_and(|tags| ends_with(tags.open)),
            splits_reasoning: request.splits_reasoning,
        }
    }

    pub(super) fn constraint(
        &self,
        grammar: &Grammar,
        submission: &Submission,
        rules: &Rules,
    ) -> Result<Box<dyn Constraint>, EngineError> {
        if submission.end_tokens.is_empty() && !self.model.end_tokens.is_empty() {
            let range = "false when a grammar says where the answer ends";
            return Err(InvalidParameter { name: "ignore_eos", value: "true".to_owned(), range }.into());
        }
        let answer = self.model.grammars.compile(grammar, rules.continues)?;
        Ok(match rules.reasoning.filter(|_| rules.splits_reasoning) {
            Some(tags) => {
                let end_tokens = self.model.end_tokens.clone();
                Box::new(AfterReasoning::new(answer, tags, end_tokens, rules.reasons_at_once))
            }
            None => answer,
        })
    }
}

/// The tags of a model that thinks.
pub(super) fn reasoning_tags(tokenizer: &Tokenizer) -> Option<ReasoningTags> {
    REASONING_TAGS.iter().find_map(|(open, close)| {
        Some(ReasoningTags { open: tokenizer.token_id(open)?, close: tokenizer.token_id(close)? })
    })
}
