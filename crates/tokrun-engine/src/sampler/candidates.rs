//! The tokens that top-k, top-p and min-p leave, without sorting a vocabulary of hundreds of thousands.
//!
//! Every cut keeps the head of the distribution: all tokens whose logit is within some distance of the largest. So a
//! small head is tried first, and widened until it surely holds what the cut keeps; only the head is ever sorted.

use std::cmp::Ordering;

use tokrun_model::TokenId;

use super::SamplingParams;

/// How far below the largest logit each head reaches, in units of the temperature: within e^-4 = 1.8 % of the most
/// probable token's probability, and so on to everything that is possible at all.
const REACHES: [f64; 4] = [4.0, 8.0, 16.0, f64::INFINITY];

/// A token that may be drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    pub(super) token: TokenId,
    /// Its logit, unscaled.
    logit: f32,
    /// Its probability relative to the most probable token, which weighs exactly 1.
    pub(super) weight: f64,
}

/// What is left of `logits`, `[vocab_size]`, whose largest is `largest`, at a temperature above 0. Never empty.
pub(super) fn select(logits: &[f32], largest: f32, params: &SamplingParams) -> Vec<Candidate> {
    let distribution = Distribution { logits, largest, temperature: f64::from(params.temperature) };
    let (top_p, min_p) = (f64::from(params.top_p), f64::from(params.min_p));
    let mut kept = if params.top_k > 0 && params.top_k < logits.len() {
        let top = distribution.top(params.top_k);
        let mass = total_weight(&top);
        if top_p < 1.0 { most_probable_holding(top, top_p * mass) } else { top }
    } else if top_p < 1.0 {
        let mass = top_p * logits.iter().map(|logit| distribution.weight(*logit)).sum::<f64>();
        most_probable_holding(distribution.smallest_head(|head| total_weight(head) >= mass), mass)
    } else {
        // A little further than min-p reaches, so that rounding loses nothing; the exact cut follows.
        distribution.head(-min_p.ln() * 1.001 + 0.001)
    };
    kept.retain(|candidate| candidate.weight >= min_p);
    kept
}

struct Distribution<'a> {
    logits: &'a [f32],
    largest: f32,
    temperature: f64,
}

impl Distribution<'_> {
    fn weight(&self, logit: f32) -> f64 {
        (f64::from(logit - self.largest) / self.temperature).exp()
    }

    /// All possible tokens whose logit is within `reach` temperatures of the largest, by id.
    fn head(&self, reach: f64) -> Vec<Candidate> {
        let least = ((f64::from(self.largest) - reach * self.temperature) as f32).max(f32::MIN);
        let within = self.logits.iter().enumerate().filter(|(_, logit)| **logit >= least);
        within
            .map(|(token, logit)| Candidate { token: token as TokenId, logit: *logit, weight: self.weight(*logit) })
            .collect()
    }

    /// The smallest of the heads that is `enough`, or all possible tokens.
    fn smallest_head(&self, enough: impl Fn(&[Candidate]) -> bool) -> Vec<Candidate> {
        let mut head = Vec::new();
        for reach in REACHES {
            head = self.head(reach);
            if enough(&head) {
                break;
            }
        }
        head
    }

    /// The `count` most probable tokens, or all that are possible, most probable first.
    fn top(&self, count: usize) -> Vec<Candidate> {
        let mut head = self.smallest_head(|head| head.len() >= count);
        if head.len() > count {
            head.select_nth_unstable_by(count - 1, most_probable_first);
            head.truncate(count);
        }
        head.sort_unstable_by(most_probable_first);
        head
    }
}

/// The fewest most probable candidates that together weigh at least `mass`, most probable first.
fn most_probable_holding(mut candidates: Vec<Candidate>, mass: f64) -> Vec<Candidate> {
    candidates.sort_unstable_by(most_probable_first);
    let mut held = 0.0;
    let enough = candidates.iter().position(|candidate| {
        held += candidate.weight;
        held >= mass
    });
    candidates.truncate(enough.map_or(candidates.len(), |last| last + 1));
    candidates
}

fn total_weight(candidates: &[Candidate]) -> f64 {
    candidates.iter().map(|candidate| candidate.weight).sum()
}

/// By falling logit, of equal ones by rising id: a total order, so that every cut is unique.
fn most_probable_first(left: &Candidate, right: &Candidate) -> Ordering {
    right.logit.total_cmp(&left.logit).then(left.token.cmp(&right.token))
}
