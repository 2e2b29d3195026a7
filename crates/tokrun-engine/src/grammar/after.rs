//! A form that holds from where the thinking ends.

use tokrun_model::TokenId;

use crate::error::EngineError;
use crate::sampler::Constraint;

/// The tokens that a model puts around its thinking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReasoningTags {
    /// Begins it, as the first token of an answer.
    pub open: TokenId,
    /// Ends it.
    pub close: TokenId,
}

/// Leaves a model free while it thinks, and holds what it says then.
#[derive(Debug)]
pub struct AfterReasoning {
    inner: Box<dyn Constraint>,
    tags: ReasoningTags,
    end_tokens: Vec<TokenId>,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Beginning,
    Thinking,
    Saying,
}

impl AfterReasoning {
    /// `inner` holds what comes after the thinking, which the prompt has `begun` already, or which the answer may begin with.
    pub fn new(inner: Box<dyn Constraint>, tags: ReasoningTags, end_tokens: Vec<TokenId>, begun: bool) -> Self {
        let stage = if begun { Stage::Thinking } else { Stage::Beginning };
        Self { inner, tags, end_tokens, stage }
    }
}

impl Constraint for AfterReasoning {
    fn mask(&mut self, logits: &mut [f32]) -> Result<(), EngineError> {
        match self.stage {
            Stage::Saying => self.inner.mask(logits),
            Stage::Beginning => {
                let thinks = logits.get(self.tags.open as usize).copied();
                self.inner.mask(logits)?;
                if let (Some(logit), Some(thinks)) = (logits.get_mut(self.tags.open as usize), thinks) {
                    *logit = thinks;
                }
                Ok(())
            }
            Stage::Thinking => {
                // It has yet to say something.
                for end in &self.end_tokens {
                    if let Some(logit) = logits.get_mut(*end as usize) {
                        *logit = f32::NEG_INFINITY;
                    }
                }
                Ok(())
            }
        }
    }

    fn advance(&mut self, token: TokenId) -> Result<(), EngineError> {
        match self.stage {
            Stage::Beginning if token == self.tags.open => self.stage = Stage::Thinking,
            Stage::Thinking if token == self.tags.close => self.stage = Stage::Saying,
            Stage::Thinking => {}
            Stage::Beginning | Stage::Saying => {
                self.stage = Stage::Saying;
                self.inner.advance(token)?;
            }
        }
        Ok(())
    }
}
