//! From logits to one token.
//!
//! The order is that of Hugging Face transformers (`LogitsProcessorList`, then the warpers):
//!
//! 1. logit bias: `l[t] += bias[t]` (OpenAI's `logit_bias`);
//! 2. repeat penalty over prompt and output: `l[t] / p` if `l[t] > 0`, else `l[t] * p`, once a distinct token
//!    (Keskar et al. 2019, CTRL; llama.cpp and transformers alike);
//! 3. frequency and presence penalties over the output alone: `l[t] -= count[t] * frequency + (count[t] > 0) * presence`
//!    (the formula of OpenAI's reference);
//! 4. the request's [`Constraint`], so that nothing above can bring back what it forbids;
//! 5. temperature: `l / T`; 0 takes the largest logit, of equal ones the lowest id, and ends here;
//! 6. top-k; top-p over what is left (Holtzman et al. 2020: the fewest most probable tokens that hold at least `p`);
//!    min-p (Nguyen et al. 2024: at least `min_p` times the probability of the most probable token);
//! 7. one draw. Its random number depends on the seed and on how many tokens the request has already generated, and on
//!    nothing else, so that batching never changes a text.

use std::collections::{BTreeMap, VecDeque};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use tokrun_model::TokenId;
use tokrun_model::sampling::Draw;

use crate::error::EngineError;

mod constraint;
mod logprob;
mod params;
#[cfg(test)]
mod tests;

pub use constraint::Constraint;
pub use logprob::TokenLogprob;
pub(crate) use logprob::token_logprob;
pub use params::SamplingParams;

/// Chooses the tokens of one request.
#[derive(Debug)]
pub(crate) struct Sampler {
    params: SamplingParams,
    /// Tokens the repeat penalty looks at, with how often each occurs; empty when that penalty is off.
    repeated: Occurrences,
    /// How often each token was generated; empty when neither penalty on the output is on.
    generated: BTreeMap<TokenId, u32>,
    /// Tokens generated so far.
    step: u64,
    constraint: Option<Box<dyn Constraint>>,
    /// Logits with bias, penalties and constraint, kept to save its allocation.
    scratch: Vec<f32>,
}

impl Sampler {
    /// A sampler for a request that continues `prompt`. The parameters must have been validated.
    pub(crate) fn new(params: SamplingParams, prompt: &[TokenId], constraint: Option<Box<dyn Constraint>>) -> Self {
        let mut repeated =
            Occurrences { counts: BTreeMap::new(), recent: VecDeque::new(), last_n: params.repeat_last_n };
        if params.penalises_repeats() {
            prompt.iter().for_each(|token| repeated.push(*token));
        }
        Self { params, repeated, generated: BTreeMap::new(), step: 0, constraint, scratch: Vec::new() }
    }

    /// Chooses the next token from `logits`, `[vocab_size]`, and remembers it.
    ///
    /// # Errors
    /// When a logit is not a number or positive infinity, or when the constraint fails. Negative infinity is a token that
    /// never comes.
    pub(crate) fn sample(&mut self, logits: &[f32]) -> Result<TokenId, EngineError> {
        let token = if !self.is_plain() {
            let mut adjusted = std::mem::take(&mut self.scratch);
            adjusted.clear();
            adjusted.extend_from_slice(logits);
            let token = self.choose_adjusted(&mut adjusted);
            self.scratch = adjusted;
            token?
        } else {
            self.choose(logits)?
        };
        self.remember(token);
        if let Some(constraint) = &mut self.constraint {
            constraint.advance(token)?;
        }
        Ok(token)
    }

    fn choose_adjusted(&mut self, logits: &mut [f32]) -> Result<TokenId, EngineError> {
        self.adjust(logits);
        if let Some(constraint) = &mut self.constraint {
            constraint.mask(logits)?;
        }
        self.choose(logits)
    }

    /// Steps 1 to 3. Tokens outside the vocabulary are passed over: the prompt may hold padded rows of the model.
    fn adjust(&self, logits: &mut [f32]) {
        for (token, bias) in &self.params.logit_bias {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit += bias;
            }
        }
        let penalty = self.params.repeat_penalty;
        for token in self.repeated.counts.keys() {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
            }
        }
        for (token, count) in &self.generated {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit -= *count as f32 * self.params.frequency_penalty + self.params.presence_penalty;
            }
        }
    }

    /// How the token after the next `ahead` ones is chosen among the first `vocab_size`, where nothing changes the logits.
    pub(crate) fn plain_draw(&self, vocab_size: usize, ahead: usize) -> Draw {
        debug_assert!(self.is_plain(), "a draw knows of no bias, penalty or constraint");
        self.draw(vocab_size, self.step + ahead as u64)
    }

    /// Whether nothing changes the logits.
    pub(crate) fn is_plain(&self) -> bool {
        self.constraint.is_none() && !self.params.changes_logits()
    }

    /// A token was chosen by a [`plain_draw`](Self::plain_draw).
    pub(crate) fn accept(&mut self, token: TokenId) {
        self.remember(token);
    }

    /// Steps 5 to 7.
    fn choose(&self, logits: &[f32]) -> Result<TokenId, EngineError> {
        Ok(self.draw(logits.len(), self.step).choose(logits)?)
    }

    /// How token `step` is chosen among the first `vocab_size`.
    fn draw(&self, vocab_size: usize, step: u64) -> Draw {
        let SamplingParams { temperature, top_k, top_p, min_p, seed, .. } = self.params;
        // Without a temperature nothing is left to chance.
        let number = if temperature == 0.0 { 0 } else { uniform(seed, step) };
        Draw { vocab_size, temperature, top_k, top_p, min_p, number }
    }

    fn remember(&mut self, token: TokenId) {
        self.step += 1;
        if self.params.penalises_repeats() {
            self.repeated.push(token);
        }
        if self.params.penalises_output() {
            *self.generated.entry(token).or_default() += 1;
        }
    }
}

/// The distinct tokens among the last `last_n`, or among all.
#[derive(Debug)]
struct Occurrences {
    counts: BTreeMap<TokenId, u32>,
    /// The last `last_n` in order; stays empty without that limit.
    recent: VecDeque<TokenId>,
    last_n: Option<usize>,
}

impl Occurrences {
    fn push(&mut self, token: TokenId) {
        *self.counts.entry(token).or_default() += 1;
        let Some(last_n) = self.last_n else { return };
        self.recent.push_back(token);
        if self.recent.len() > last_n
            && let Some(oldest) = self.recent.pop_front()
            && let Some(count) = self.counts.get_mut(&oldest)
        {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&oldest);
            }
        }
    }
}

/// The number that token `step` of a request with this seed is drawn with.
fn uniform(seed: u64, step: u64) -> u64 {
    // The key is laid out here, not with `seed_from_u64`, so that no release of the library can change a text.
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    let mut generator = ChaCha8Rng::from_seed(key);
    generator.set_stream(step);
    generator.next_u64()
}
