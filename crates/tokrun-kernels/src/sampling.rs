//! From a row of logits to one token: the arithmetic that every processor does alike.
//!
//! Tokens are weighed by their probability relative to the most probable one, rounded to a multiple of 2^-44. Sums of such
//! weights are whole numbers, so they are the same in any order: a device that adds them up in parallel draws the very
//! token that one loop does. What a cut keeps is the beginning of one order of all tokens, by falling logit, of equal ones
//! by rising id; so every cut is unique.

use std::cmp::Ordering;

mod distribution;
mod drawn;
#[cfg(test)]
mod tests;

pub(crate) use distribution::scale;
pub use distribution::{Candidate, Distribution};
use distribution::{total_units, units};
pub(crate) use drawn::Drawn;

/// Logits looked at together.
const BLOCK: usize = 512;

/// How to choose one token. A temperature of 0 takes the largest logit, of equal ones the lowest id, and looks at nothing
/// else.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draw {
    /// Of the row, only the first `vocab_size` logits are looked at; at least 1.
    pub vocab_size: usize,
    /// Logits are divided by it; finite, from 0 up.
    pub temperature: f32,
    /// Keep that many most probable tokens; 0 keeps all.
    pub top_k: usize,
    /// Of those, keep the fewest most probable that together hold at least this share; above 0, and 1 keeps all.
    pub top_p: f32,
    /// Of those, keep what has at least this share of the most probable token's probability; from 0, which keeps all, to 1.
    pub min_p: f32,
    /// Where in the line of what is kept, by id, the token is taken: a uniform random fraction of 2^64.
    pub number: u64,
}

/// A logit that leaves no choice to make: no number, positive infinity, or nothing but negative infinity.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("the logit of token {token} is {value}")]
pub struct BadLogit {
    /// The first such token.
    pub token: u32,
    /// Its logit.
    pub value: f32,
}

impl Draw {
    /// The token, from `logits`, `[at least vocab_size]`.
    ///
    /// # Errors
    /// When a logit is not a number or positive infinity, or all are negative infinity, which is a token that never comes.
    pub fn choose(&self, logits: &[f32]) -> Result<u32, BadLogit> {
        let logits = &logits[..self.vocab_size];
        let best = most_probable(logits)?;
        if self.temperature == 0.0 {
            return Ok(best);
        }
        let distribution = Distribution::new(logits, logits[best as usize], self.temperature);
        if !self.cuts() {
            return Ok(distribution.at(self.number));
        }
        let kept = self.keep(&distribution);
        let left = fraction(self.number, total_units(&kept));
        let drawn = position(left, kept.iter().map(|candidate| units(candidate.weight)));
        Ok(kept[drawn].token)
    }

    /// Whether fewer than all tokens may be drawn.
    fn cuts(&self) -> bool {
        self.top_k > 0 || self.top_p < 1.0 || self.min_p > 0.0
    }

    /// The tokens that top-k, top-p and min-p leave, by id. Never empty.
    fn keep(&self, distribution: &Distribution<'_>) -> Vec<Candidate> {
        let mut kept = if self.top_k > 0 && self.top_k < self.vocab_size {
            let mut top = distribution.top(self.top_k);
            if self.top_p < 1.0 {
                let enough = self.share(total_units(&top));
                distribution::keep_units(&mut top, enough);
            }
            top
        } else if self.top_p < 1.0 {
            distribution.most_probable(self.share(distribution.units()))
        } else {
            // A little further than min-p reaches, so that rounding loses nothing; the exact cut follows.
            distribution.head(-self.min_p.ln() * 1.001 + 0.001)
        };
        kept.retain(|candidate| candidate.weight >= self.min_p);
        kept.sort_unstable_by_key(|candidate| candidate.token);
        kept
    }

    /// `top_p` of so many units.
    fn share(&self, units: u64) -> u64 {
        (f64::from(self.top_p) * units as f64).ceil() as u64
    }
}

/// The token of the largest logit, of equal ones the lowest.
///
/// # Errors
/// When there is none: see [`Draw::choose`].
pub fn most_probable(logits: &[f32]) -> Result<u32, BadLogit> {
    let (mut largest, mut first) = (f32::NEG_INFINITY, 0);
    let mut sane = true;
    for (block, index) in logits.chunks(BLOCK).zip((0..).step_by(BLOCK)) {
        let maximum = maximum(block);
        if maximum > largest {
            (largest, first) = (maximum, index);
        }
        // False for infinity and for what is no number.
        sane &= block.iter().fold(true, |sane, logit| sane & (*logit < f32::INFINITY));
    }
    let bad = logits.iter().position(|logit| !sane && (logit.is_nan() || *logit == f32::INFINITY));
    if let Some(token) = bad.or((largest == f32::NEG_INFINITY).then_some(0)) {
        let value = logits.get(token).copied().unwrap_or(largest);
        return Err(BadLogit { token: token as u32, value });
    }
    let within = logits[first..].iter().position(|logit| *logit == largest).unwrap_or(0);
    Ok((first + within) as u32)
}

/// The largest of a row; what is no number is passed over.
pub fn largest(logits: &[f32]) -> f32 {
    logits.chunks(BLOCK).map(maximum).fold(f32::NEG_INFINITY, f32::max)
}

/// By falling logit, of equal ones by rising id: a total order, so that every cut is unique.
pub fn most_probable_first(left: &Candidate, right: &Candidate) -> Ordering {
    right.logit.total_cmp(&left.logit).then(left.token.cmp(&right.token))
}

/// The largest of a block, in lanes that the compiler can keep side by side.
fn maximum(block: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let (sixteens, rest) = block.as_chunks::<16>();
    for sixteen in sixteens {
        for (lane, logit) in lanes.iter_mut().zip(sixteen) {
            *lane = if *logit > *lane { *logit } else { *lane };
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |largest, logit| largest.max(*logit))
}

/// `number` / 2^64 of `total`, rounded down.
fn fraction(number: u64, total: u64) -> u64 {
    ((u128::from(number) * u128::from(total)) >> 64) as u64
}

/// Which of the weights in a line, all together more than `left`, is at `left` from its beginning.
fn position(mut left: u64, mut weights: impl Iterator<Item = u64>) -> usize {
    let found = weights.position(|weight| {
        let ends_here = left < weight;
        left = left.saturating_sub(weight);
        ends_here
    });
    found.expect("all weights together are more")
}
