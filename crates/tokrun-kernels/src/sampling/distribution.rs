//! What logits say about probabilities, without sorting a vocabulary of hundreds of thousands.
//!
//! Every cut keeps the head of the distribution: all tokens whose logit is within some distance of the largest. So a
//! small head is tried first, and widened until it surely holds what the cut keeps; only the head is looked at closely.

use super::{BLOCK, fraction, maximum, most_probable_first, position};

/// How far below the largest logit each head reaches, in units of the temperature: within e^-4 = 1.8 % of the most
/// probable token's probability, and so on to everything that is possible at all.
const REACHES: [f32; 4] = [4.0, 8.0, 16.0, f32::INFINITY];

/// Logits of which the largest is known before any is looked at for itself.
const FEW: usize = 64;

/// What a weight of 1 is in units. So many of them that 2^18 tokens, more than any vocabulary, stay below 2^63.
const UNITS: f64 = (1_u64 << 44) as f64;

/// A row of logits at a temperature. A token's weight is its probability relative to the most probable token.
#[derive(Clone, Copy, Debug)]
pub struct Distribution<'a> {
    logits: &'a [f32],
    largest: f32,
    /// One over the temperature.
    scale: f32,
}

/// A token that may be drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Which.
    pub token: u32,
    /// Its logit.
    pub logit: f32,
    /// Its probability relative to the most probable token's.
    pub(super) weight: f32,
}

impl<'a> Distribution<'a> {
    /// The distribution of `logits`, `[vocab_size]`, none above `largest`, at a temperature above 0.
    pub fn new(logits: &'a [f32], largest: f32, temperature: f32) -> Self {
        Self { logits, largest, scale: scale(temperature) }
    }

    /// The sum of all weights.
    pub fn mass(&self) -> f64 {
        self.units() as f64 / UNITS
    }

    /// The `count` most probable tokens, or all that are possible, in no order.
    pub fn top(&self, count: usize) -> Vec<Candidate> {
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

    /// The fewest most probable tokens that together weigh at least so much, in no order.
    pub(super) fn most_probable(&self, enough: u64) -> Vec<Candidate> {
        let mut head = self.smallest_head(|head| total_units(head) >= enough);
        keep_units(&mut head, enough);
        head
    }

    /// All possible tokens whose logit is within `reach` temperatures of the largest, by id.
    pub(super) fn head(&self, reach: f32) -> Vec<Candidate> {
        let least = (self.largest - reach / self.scale).max(f32::MIN);
        let candidate = |token: usize, logit: f32| Candidate { token: token as u32, logit, weight: self.weight(logit) };
        let mut head = Vec::new();
        for (few, first) in self.logits.chunks(FEW).zip((0..).step_by(FEW)) {
            // Most of a vocabulary is out of reach, and is passed over many tokens at a time.
            if maximum(few) >= least {
                let within = few.iter().zip(first..).filter(|(logit, _)| **logit >= least);
                head.extend(within.map(|(logit, token)| candidate(token, *logit)));
            }
        }
        head
    }

    /// The token at `number` / 2^64, when all tokens stand in a line by id, each as wide as its weight.
    pub(super) fn at(&self, number: u64) -> u32 {
        let blocks: Vec<u64> = self.logits.chunks(BLOCK).map(|block| self.block_units(block)).collect();
        let left = fraction(number, blocks.iter().sum());
        let block = position(left, blocks.iter().copied());
        let before: u64 = blocks[..block].iter().sum();
        let first = block * BLOCK;
        let weights = self.logits[first..].iter().map(|logit| units(self.weight(*logit)));
        (first + position(left - before, weights)) as u32
    }

    /// The sum of all weights.
    pub(super) fn units(&self) -> u64 {
        self.logits.chunks(BLOCK).map(|block| self.block_units(block)).sum()
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

    fn weight(&self, logit: f32) -> f32 {
        exp((logit - self.largest) * self.scale)
    }

    /// The sum of the weights of a block: one pass for weights and one for their sum, because the compiler keeps lanes
    /// side by side only where all are equally wide.
    fn block_units(&self, block: &[f32]) -> u64 {
        let mut weights = [0.0; BLOCK];
        for (weight, logit) in weights.iter_mut().zip(block) {
            *weight = self.weight(*logit);
        }
        let mut lanes = [0_u64; 8];
        for eight in weights.as_chunks::<8>().0 {
            for (lane, weight) in lanes.iter_mut().zip(eight) {
                *lane += units(*weight);
            }
        }
        lanes.iter().sum()
    }
}

/// The factor on logits: one over the temperature, which is above 0.
pub(crate) fn scale(temperature: f32) -> f32 {
    temperature.recip().min(f32::MAX)
}

/// A weight, from 0 to 1, in units of 2^-44, rounded to the nearest, of two to the even one.
pub(super) fn units(weight: f32) -> u64 {
    // What is between 256 and 512 has a fraction of just those units.
    const ROUNDER: f64 = 256.0;
    (f64::from(weight) + ROUNDER).to_bits() - ROUNDER.to_bits()
}

/// The sum of the candidates' weights.
pub(super) fn total_units(candidates: &[Candidate]) -> u64 {
    candidates.iter().map(|candidate| units(candidate.weight)).sum()
}

/// Keeps the fewest most probable candidates that together weigh at least so much, by halving what is in doubt.
pub(super) fn keep_units(candidates: &mut Vec<Candidate>, enough: u64) {
    let (mut sure, mut in_doubt) = (0, candidates.len());
    let mut sure_units = 0;
    while sure < in_doubt {
        let middle = sure + (in_doubt - sure) / 2;
        candidates[sure..in_doubt].select_nth_unstable_by(middle - sure, most_probable_first);
        let upper_units = total_units(&candidates[sure..=middle]);
        if sure_units + upper_units < enough {
            sure = middle + 1;
            sure_units += upper_units;
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

    #[test]
    fn units_are_rounded_weights() {
        assert_eq!((units(0.0), units(0.5), units(1.0)), (0, 1 << 43, 1 << 44));
        let of = |count: f32| count / UNITS as f32;
        assert_eq!([0.5, 0.51, 1.0, 1.5, 2.5].map(|count| units(of(count))), [0, 1, 1, 2, 2]);
    }
}
