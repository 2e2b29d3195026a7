//! Rotary positions: sines and cosines of a step's rows, computed once for all layers and heads.

use super::norm::{load_part, store_part};
use super::pool::Pool;
use super::rows::by_rows;
use super::simd::{LANES, Simd};
use crate::{Rope, RopeStyle};

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

    /// Computes the factors of rows at the given positions.
    pub(super) fn begin(&mut self, pool: &mut Pool, positions: &[usize]) {
        let Self { rope, factors } = self;
        let width = rope.width();
        factors.resize(positions.len() * 2 * width, 0.0);
        if width == 0 {
            return;
        }
        by_rows(pool, factors, 2 * width, |rows, factors| {
            for (position, factors) in positions[rows].iter().zip(factors.chunks_exact_mut(2 * width)) {
                let (own, partner) = factors.split_at_mut(width);
                rope.factors(*position as f64, own, partner);
            }
        });
    }

    /// Turns a head of row `row` in place.
    #[inline(always)]
    pub(super) fn rotate<S: Simd>(&self, simd: S, row: usize, head: &mut [f32]) {
        let width = self.rope.width();
        let (own, partner) = self.factors[row * 2 * width..][..2 * width].split_at(width);
        match self.rope.style {
            RopeStyle::Halves => rotate_halves(simd, own, partner, head),
            RopeStyle::Interleaved => rotate_pairs(simd, own, partner, head),
        }
    }
}

impl Rope {
    /// Factors of each kind a row has.
    fn width(&self) -> usize {
        match self.style {
            RopeStyle::Halves => self.frequencies.len(),
            RopeStyle::Interleaved => 2 * self.frequencies.len(),
        }
    }

    /// The factors of one position.
    fn factors(&self, position: f64, own: &mut [f32], partner: &mut [f32]) {
        let magnitude = f64::from(self.magnitude);
        for (i, &frequency) in self.frequencies.iter().enumerate() {
            // In f64: an angle of 100,000 radians in f32 is off by some thousandths.
            let (sine, cosine) = (position * f64::from(frequency)).sin_cos();
            let (sine, cosine) = ((magnitude * sine) as f32, (magnitude * cosine) as f32);
            match self.style {
                RopeStyle::Halves => (own[i], partner[i]) = (cosine, sine),
                RopeStyle::Interleaved => {
                    own[2 * i..][..2].fill(cosine);
                    partner[2 * i..][..2].copy_from_slice(&[-sine, sine]);
                }
            }
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
