//! Log-probabilities of the model's own distribution: the unmodified logits, before bias, penalties and temperature.

use std::cmp::Ordering;

use tokrun_model::TokenId;

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
/// `log_softmax` does, though padded rows are never named. It is summed in f64.
pub(crate) fn token_logprob(logits: &[f32], vocab_size: usize, chosen: TokenId, top_n: usize) -> TokenLogprob {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - largest).exp()).sum();
    let normaliser = f64::from(largest) + sum.ln();
    let logprob = |logit: f32| (f64::from(logit) - normaliser) as f32;
    let top = most_probable(&logits[..vocab_size], top_n).into_iter().map(|(token, logit)| (token, logprob(logit)));
    TokenLogprob { top: top.collect(), logprob: logprob(logits[chosen as usize]) }
}

/// The `count` largest logits with their tokens, largest first, of equal ones the lowest id.
fn most_probable(logits: &[f32], count: usize) -> Vec<(TokenId, f32)> {
    let order = |left: &(TokenId, f32), right: &(TokenId, f32)| -> Ordering {
        right.1.total_cmp(&left.1).then(left.0.cmp(&right.0))
    };
    if count == 0 {
        return Vec::new();
    }
    let mut tokens: Vec<(TokenId, f32)> =
        logits.iter().enumerate().map(|(id, logit)| (id as TokenId, *logit)).collect();
    if tokens.len() > count {
        tokens.select_nth_unstable_by(count - 1, order);
        tokens.truncate(count);
    }
    tokens.sort_unstable_by(order);
    tokens
}
