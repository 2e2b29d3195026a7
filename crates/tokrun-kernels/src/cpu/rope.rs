//! Rotary positions: sines and cosines of a step's rows, computed once for all layers and heads.

use super::norm::{load_part, store_part};
use super::simd::{LANES, Simd};
use crate::{Rope, RopeStyle, Span};

/// A rope with the factors of the rows of the current step.
pub(super) struct RopeTable {
    rope: Rope,
    /// `[rows, 2, width]`: the factors of the values themselves, then those of their partners.
    factors: Vec<f32>,
}

impl RopeTable {
    pub(super) fn new(rope: Rope) -> Self {
        Self { rope, factors: Vec::new() }
    }

    /// Computes the factors of the rows of `spans`, which are in order and without gaps.
    pub(super) fn begin(&mut self, spans: &[Span]) {
        self.factors.clear();
        for position in spans.iter().flat_map(|span| (span.start..).take(span.rows.len())) {
            self.push_row(position as f64);
        }
    }

    fn push_row(&mut self, position: f64) {
        let magnitude = f64::from(self.rope.magnitude);
        // In f64: a float32 angle of 100,000 radians is off by some thousandths.
        let turns = self.rope.frequencies.iter().map(|&frequency| (position * f64::from(frequency)).sin_cos());
        let start = self.factors.len();
        match self.rope.style {
            RopeStyle::Halves => {
                self.factors.extend(turns.clone().map(|(_, cosine)| (magnitude * cosine) as f32));
                self.factors.extend(turns.map(|(sine, _)| (magnitude * sine) as f32));
            }
            RopeStyle::Interleaved => {
                let width = self.width();
                self.factors.resize(start + 2 * width, 0.0);
                let (own, partner) = self.factors[start..].split_at_mut(width);
                for (i, (sine, cosine)) in turns.enumerate() {
                    own[2 * i..][..2].fill((magnitude * cosine) as f32);
                    partner[2 * i] = (-magnitude * sine) as f32;
                    partner[2 * i + 1] = (magnitude * sine) as f32;
                }
            }
        }
    }

    /// Factors of each kind a row has.
    fn width(&self) -> usize {
        match self.rope.style {
            RopeStyle::Halves => self.rope.frequencies.len(),
            RopeStyle::Interleaved => 2 * self.rope.frequencies.len(),
        }
    }

    /// Turns a head of row `row` in place.
    #[inline(always)]
    pub(super) fn rotate<S: Simd>(&self, simd: S, row: usize, head: &mut [f32]) {
        let width = self.width();
        let (own, partner) = self.factors[row * 2 * width..][..2 * width].split_at(width);
        match self.rope.style {
            RopeStyle::Halves => rotate_halves(simd, own, partner, head),
            RopeStyle::Interleaved => rotate_pairs(simd, own, partner, head),
        }
    }
}

#[inline(always)]
fn rotate_halves<S: Simd>(simd: S, cosines: &[f32], sines: &[f32], head: &mut [f32]) {
    let (first, second) = head.split_at_mut(cosines.len());
    let factors = cosines.chunks(LANES).zip(sines.chunks(LANES));
    for ((a, b), (cosine, sine)) in first.chunks_mut(LANES).zip(second.chunks_mut(LANES)).zip(factors) {
        // The second half may go on past the pairs: values that do not turn.
        let b = &mut b[..cosine.len()];
        let (x, y) = (load_part(simd, a), load_part(simd, b));
        let (cosine, sine) = (load_part(simd, cosine), load_part(simd, sine));
        store_part(simd, simd.sub(simd.mul(x, cosine), simd.mul(y, sine)), a);
        store_part(simd, simd.fma(y, cosine, simd.mul(x, sine)), b);
    }
}

#[inline(always)]
fn rotate_pairs<S: Simd>(simd: S, own: &[f32], partner: &[f32], head: &mut [f32]) {
    let factors = own.chunks(LANES).zip(partner.chunks(LANES));
    for (part, (own, partner)) in head[..own.len()].chunks_mut(LANES).zip(factors) {
        let x = load_part(simd, part);
        let swapped = simd.mul(simd.swap_pairs(x), load_part(simd, partner));
        store_part(simd, simd.fma(x, load_part(simd, own), swapped), part);
    }
}
