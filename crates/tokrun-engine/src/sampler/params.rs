//! How to choose among the logits, as the caller asks for it.

use std::collections::BTreeMap;

use tokrun_model::TokenId;

use crate::error::InvalidParameter;

/// How to choose the next token. The default draws from the model's own distribution: nothing is cut off or penalised.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Flattens (above 1) or sharpens (below 1) the distribution; 0 always takes the most probable token.
    pub temperature: f32,
    /// Keep that many most probable tokens, of equal ones those of the lowest ids; 0 keeps all.
    pub top_k: usize,
    /// Keep the fewest most probable tokens that together hold at least this probability; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens that have at least this share of the most probable token's probability; 0 keeps all.
    pub min_p: f32,
    /// Divides positive logits and multiplies others of tokens that occur in the prompt or the output; 1 is off.
    pub repeat_penalty: f32,
    /// Tokens the repeat penalty looks back at, prompt and output together; `None` for all of them.
    pub repeat_last_n: Option<usize>,
    /// Subtracted from the logit of each token that occurs in the output; 0 is off.
    pub presence_penalty: f32,
    /// Subtracted from the logit of each token for each time it occurs in the output; 0 is off.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens.
    pub logit_bias: BTreeMap<TokenId, f32>,
    /// Same seed, same text.
    pub seed: u64,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repeat_penalty: 1.0,
            repeat_last_n: None,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: BTreeMap::new(),
            seed: 0,
        }
    }
}

impl SamplingParams {
    /// Always the most probable token.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Checks every parameter against its range; not-a-number is in none.
    ///
    /// # Errors
    /// The first parameter outside its range.
    pub fn validate(&self) -> Result<(), InvalidParameter> {
        let check = |name, value: f32, valid: bool, range| {
            if valid { Ok(()) } else { Err(InvalidParameter { name, value: value.to_string(), range }) }
        };
        let finite = f32::is_finite;
        let (t, p, m, r) = (self.temperature, self.top_p, self.min_p, self.repeat_penalty);
        check("temperature", t, finite(t) && t >= 0.0, "a number from 0 up")?;
        check("top_p", p, p > 0.0 && p <= 1.0, "above 0 and at most 1")?;
        check("min_p", m, (0.0..=1.0).contains(&m), "from 0 to 1")?;
        check("repeat_penalty", r, finite(r) && r > 0.0, "a number above 0")?;
        for (name, value) in
            [("presence_penalty", self.presence_penalty), ("frequency_penalty", self.frequency_penalty)]
        {
            check(name, value, (-2.0..=2.0).contains(&value), "from -2 to 2")?;
        }
        for bias in self.logit_bias.values() {
            check("logit_bias", *bias, (-100.0..=100.0).contains(bias), "from -100 to 100")?;
        }
        Ok(())
    }

    /// Whether anything changes the logits before the temperature does.
    pub(super) fn changes_logits(&self) -> bool {
        !self.logit_bias.is_empty() || self.penalises_repeats() || self.penalises_output()
    }

    pub(super) fn penalises_repeats(&self) -> bool {
        self.repeat_penalty != 1.0 && self.repeat_last_n != Some(0)
    }

    pub(super) fn penalises_output(&self) -> bool {
        self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }
}
