//! What logits say about probabilities, without sorting a vocabulary of hundreds of thousands.
//!
//! Every cut keeps the head of the distribution: all tokens whose logit is within some distance of the largest. So a
//! small head is tried first, and widened until it surely holds what the cut keeps; only the head is looked at closely.

use std::cmp::Ordering;

use tokrun_model::TokenId;

use super::{BLOCK, SamplingParams};

/// How far below the largest logit each head reaches, in units of the temperature: within e^-4 = 1.8 % of the most
/// probable token's probability, and so on to everything that is possible at all.
const REACHES: [f32; 4] = [4.0, 8.0, 16.0, f32::INFINITY];

/// A row of logits at a temperature. A token's weight is its probability relative to the most probable token.
#[derive(Clone, Copy, Debug)]
pub(super) struct Distribution<'a> {
    logits: &'a [f32],
    largest: f32,
    /// One over the temperature.
    scale: f32,
}

/// A token that may be drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    pub(super) token: TokenId,
    pub(super) logit: f32,
    /// 1 for the most probable token.
    pub(super) weight: f32,
}

impl<'a> Distribution<'a> {
    /// The distribution of `logits`, `[vocab_size]`, whose largest is `largest`, at a temperature above 0.
    pub(super) fn new(logits: &'a [f32], largest: f32, temperature: f32) -> Self {
        Self { logits, largest, scale: temperature.recip().min(f32::MAX) }
    }

    /// The sum of all weights.
    pub(super) fn mass(&self) -> f64 {
        self.logits.chunks(BLOCK).map(|block| self.block_mass(block)).sum()
    }

    /// The token at `number`, in [0, 1), when all tokens stand in a line by id, each as wide as its probability.
    pub(super) fn draw(&self, number: f64) -> Option<TokenId> {
        let masses: Vec<f64> = self.logits.chunks(BLOCK).map(|block| self.block_mass(block)).collect();
        let mut left = number * masses.iter().sum::<f64>();
        let mut first = 0;
        for (block, mass) in self.logits.chunks(BLOCK).zip(masses) {
            if left < mass {
                let weights = block.iter().map(|logit| self.weight(*logit));
                return position(left, weights).map(|index| (first + index) as TokenId);
            }
            left -= mass;
            first += BLOCK;
        }
        None
    }

    /// The tokens that top-k, top-p and min-p leave, by id. Never empty.
    pub(super) fn select(&self, params: &SamplingParams) -> Vec<Candidate> {
        let top_p = f64::from(params.top_p);
        let mut kept = if params.top_k > 0 && params.top_k < self.logits.len() {
            let mut top = self.top(params.top_k);
            if top_p < 1.0 {
                let mass = top_p * total_weight(&top);
                keep_mass(&mut top, mass);
            }
            top
        } else if top_p < 1.0 {
            let mass = top_p * self.mass();
            let mut head = self.smallest_head(|head| total_weight(head) >= mass);
            keep_mass(&mut head, mass);
            head
        } else {
            // A little further than min-p reaches, so that rounding loses nothing; the exact cut follows.
            self.head(-params.min_p.ln() * 1.001 + 0.001)
        };
        kept.retain(|candidate| candidate.weight >= params.min_p);
        kept.sort_unstable_by_key(|candidate| candidate.token);
        kept
    }

    /// The `count` most probable tokens, or all that are possible, in no order.
    pub(super) fn top(&self, count: usize) -> Vec<Candidate> {
        if count == 0 {
            return Vec::new();
        }
        let mut head = self.smallest_head(|head| head.len() >= count);
        if head.len() > count {
            head.select_nth_unstable_by(count - 1, most_probable_first);
            head.truncate(count);
        }
        head
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

    /// All possible tokens whose logit is within `reach` temperatures of the largest, by id.
    fn head(&self, reach: f32) -> Vec<Candidate> {
        let least = (self.largest - reach / self.scale).max(f32::MIN);
        let within = self.logits.iter().enumerate().filter(|(_, logit)| **logit >= least);
        let candidate = |(token, logit): (usize, &f32)| Candidate {
            token: token as TokenId,
            logit: *logit,
            weight: self.weight(*logit),
        };
        within.map(candidate).collect()
    }

    fn weight(&self, logit: f32) -> f32 {
        exp((logit - self.largest) * self.scale)
    }

    /// The sum of the weights of a block, in eight lanes that the compiler can keep side by side.
    fn block_mass(&self, block: &[f32]) -> f64 {
        let mut lanes = [0.0; 8];
        let (eights, rest) = block.as_chunks::<8>();
        for eight in eights {
            for (lane, logit) in lanes.iter_mut().zip(eight) {
                *lane += f64::from(self.weight(*logit));
            }
        }
        lanes.iter().sum::<f64>() + rest.iter().map(|logit| f64::from(self.weight(*logit))).sum::<f64>()
    }
}

/// Which of `weights` in a line is at `left` from its beginning.
pub(super) fn position(mut left: f64, mut weights: impl Iterator<Item = f32>) -> Option<usize> {
    weights.position(|weight| {
        left -= f64::from(weight);
        left < 0.0
    })
}

/// The sum of the candidates' weights.
pub(super) fn total_weight(candidates: &[Candidate]) -> f64 {
    candidates.iter().map(|candidate| f64::from(candidate.weight)).sum()
}

/// By falling logit, of equal ones by rising id: a total order, so that every cut is unique.
pub(super) fn most_probable_first(left: &Candidate, right: &Candidate) -> Ordering {
    right.logit.total_cmp(&left.logit).then(left.token.cmp(&right.token))
}

/// Keeps the fewest most probable candidates that together weigh at least `mass`, by halving what is in doubt.
fn keep_mass(candidates: &mut Vec<Candidate>, mass: f64) {
    let (mut sure, mut in_doubt) = (0, candidates.len());
    let mut sure_mass = 0.0;
    while sure < in_doubt {
        let middle = sure + (in_doubt - sure) / 2;
        candidates[sure..in_doubt].select_nth_unstable_by(middle - sure, most_probable_first);
        let upper_mass = total_weight(&candidates[sure..=middle]);
        if sure_mass + upper_mass < mass {
            sure = middle + 1;
            sure_mass += upper_mass;
        } else {
            in_doubt = middle;
        }
    }
    // All before `sure` weigh too little together; with it they are enough.
    candidates.truncate(sure + 1);
}

/// e^x for x at most 0, within 2e-7 relative to the argument's own rounding; below 2^-126 it is 0.
///
/// It needs neither a branch nor a call, so the compiler computes several at once; and unlike the system's own it gives the
/// same bits everywhere.
fn exp(x: f32) -> f32 {
    // Adding 1.5 * 2^23 leaves no room for a fraction: the sum's low bits are the rounded integer.
    const ROUNDER: f32 = 12_582_912.0;
    let power = (x * std::f32::consts::LOG2_E).max(-127.0);
    let shifted = power + ROUNDER;
    let fraction = (power - (shifted - ROUNDER)) * std::f32::consts::LN_2;
    let exponent = (shifted.to_bits() as i32) - (ROUNDER.to_bits() as i32);
    let two_to_the = f32::from_bits(((exponent + 127) << 23) as u32);
    let series = 1.0 / 720.0;
    let series = series * fraction + 1.0 / 120.0;
    let series = series * fraction + 1.0 / 24.0;
    let series = series * fraction + 1.0 / 6.0;
    let series = series * fraction + 0.5;
    let series = series * fraction + 1.0;
    (series * fraction + 1.0) * two_to_the
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_is_close_to_the_true_one() {
        for step in 0..1_000_000 {
            let x = -(step as f32) * 1e-4;
            let (found, expected) = (f64::from(exp(x)), f64::from(x).exp());
            if x > -87.0 {
                let tolerance = 2e-7 + f64::from(-x) * 1.2e-7;
                assert!((found / expected - 1.0).abs() < tolerance, "e^{x} is {expected}, not {found}");
            } else {
                assert!((0.0..2e-38).contains(&found), "e^{x}: {found}");
            }
        }
        assert_eq!((exp(0.0), exp(f32::NEG_INFINITY)), (1.0, 0.0));
    }
}
