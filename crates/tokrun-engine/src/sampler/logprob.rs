//! Log-probabilities of the model's own distribution: the unmodified logits, before bias, penalties and temperature.

use tokrun_model::TokenId;
use tokrun_model::sampling::{Distribution, largest, most_probable_first};

/// The log-probability of a chosen token, and the most probable tokens beside it.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprob {
    /// Natural logarithm of the chosen token's probability.
    pub logprob: f32,
    /// The most probable tokens with theirs, most probable first, of equal ones the lowest id.
    pub top: Vec<(TokenId, f32)>,
}

/// The log-probability of `chosen` and of the `top_n` most probable of the first `vocab_size` tokens.
///
/// `logits` is the whole row, padded rows included: the distribution is normalised over what the model computed, as
/// `log_softmax` does, though padded rows are never named.
pub(crate) fn token_logprob(logits: &[f32], vocab_size: usize, chosen: TokenId, top_n: usize) -> TokenLogprob {
    let largest = largest(logits);
    let normaliser = f64::from(largest) + Distribution::new(logits, largest, 1.0).mass().ln();
    let logprob = |logit: f32| (f64::from(logit) - normaliser) as f32;
    let mut top = Distribution::new(&logits[..vocab_size], largest, 1.0).top(top_n);
    top.sort_unstable_by(most_probable_first);
    TokenLogprob {
        logprob: logprob(logits[chosen as usize]),
        top: top.into_iter().map(|candidate| (candidate.token, logprob(candidate.logit))).collect(),
    }
}
