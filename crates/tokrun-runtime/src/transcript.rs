//! Tokens into text that may be shown.

use tokrun_engine::{DetokenizeStream, EngineError, StopMatcher, TokenId, Tokenizer};

/// What makes text of tokens.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rules {
    /// Strings that end the answer and are not part of it.
    pub(crate) stop: Vec<String>,
    /// The answer goes on in the middle of a text: a space that it begins with belongs to it.
    pub(crate) continues: bool,
}

/// The text of one answer as its tokens come: whole characters only, and nothing that could still become a stop string.
pub(crate) struct Transcript {
    characters: DetokenizeStream,
    stops: StopMatcher,
}

/// What one more token adds.
pub(crate) struct Step {
    pub(crate) text: String,
    pub(crate) stopped: bool,
}

impl Transcript {
    pub(crate) fn new(tokenizer: &Tokenizer, rules: &Rules) -> Result<Self, EngineError> {
        let characters = if rules.continues { tokenizer.continuing_stream() } else { tokenizer.stream() };
        Ok(Self { characters, stops: StopMatcher::new(rules.stop.clone())? })
    }

    pub(crate) fn push(&mut self, token: TokenId) -> Result<Step, EngineError> {
        let characters = self.characters.push(token)?;
        let step = self.stops.push(&characters);
        Ok(Step { text: step.text, stopped: step.stopped })
    }

    /// The text of an answer that consists of `tokens` and nothing else: what was held back is part of it.
    pub(crate) fn whole(tokenizer: &Tokenizer, rules: &Rules, tokens: &[TokenId]) -> Result<String, EngineError> {
        let mut transcript = Self::new(tokenizer, rules)?;
        let mut text = String::new();
        for &token in tokens {
            let step = transcript.push(token)?;
            text.push_str(&step.text);
            if step.stopped {
                return Ok(text);
            }
        }
        let rest = transcript.characters.finish();
        let step = transcript.stops.push(&rest);
        text.push_str(&step.text);
        if !step.stopped {
            text.push_str(&transcript.stops.finish());
        }
        Ok(text)
    }
}
