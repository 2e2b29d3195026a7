//! Normalisation and other work on single values.

use std::ops::Range;

use super::pool::Pool;
use super::rows::{CpuRows, by_rows};
use super::simd::{Kernel, LANES, Level, Simd};
use crate::Norm;

/// Normalises `columns` of the first `rows` rows in place.
pub(super) fn norm(pool: &mut Pool, level: Level, rows: usize, x: &mut CpuRows, columns: Range<usize>, norm: &Norm) {
    assert_eq!(columns.len(), norm.weight.len(), "the norm's width");
    let width = x.width();
    by_rows(pool, x.first_mut(rows), width, |_, values| {
        level.run(NormRows { values, width, columns: columns.clone(), norm });
    });
}

/// `x += norm(y)` on the first `rows` rows.
pub(super) fn add_norm(pool: &mut Pool, level: Level, rows: usize, x: &mut CpuRows, y: &CpuRows, norm: &Norm) {
    assert_eq!((x.width(), y.width()), (norm.weight.len(), norm.weight.len()), "the norm's width");
    let width = x.width();
    by_rows(pool, x.first_mut(rows), width, |rows, values| {
        let y = &y.first(rows.end)[rows.start * width..];
        level.run(AddNormRows { values, y, norm });
    });
}

/// `cap * tanh(x / cap)` on the first `rows` rows.
pub(super) fn softcap(pool: &mut Pool, level: Level, rows: usize, x: &mut CpuRows, cap: f32) {
    // Values stand for themselves, so the cuts may lie anywhere that is quick.
    by_rows(pool, x.first_mut(rows), 1, |_, values| level.run(Softcap { values, cap }));
}

/// `1 / sqrt(mean(x^2) + epsilon)`.
#[inline(always)]
pub(super) fn inverse_rms<S: Simd>(simd: S, x: &[f32], epsilon: f32) -> f32 {
    let (blocks, rest) = x.as_chunks::<{ 4 * LANES }>();
    let mut sums = [simd.splat(0.0); 4];
    for block in blocks {
        let (vectors, _) = block.as_chunks::<LANES>();
        for (sum, vector) in sums.iter_mut().zip(vectors) {
            let x = simd.load(vector);
            *sum = simd.fma(x, x, *sum);
        }
    }
    for (sum, part) in sums.iter_mut().zip(rest.chunks(LANES)) {
        let x = load_part(simd, part);
        *sum = simd.fma(x, x, *sum);
    }
    let sum = simd.sum(simd.add(simd.add(sums[0], sums[1]), simd.add(sums[2], sums[3])));
    1.0 / (sum / x.len() as f32 + epsilon).sqrt()
}

/// Up to 16 values, and zeros after them.
#[inline(always)]
pub(super) fn load_part<S: Simd>(simd: S, part: &[f32]) -> S::F32 {
    match part.first_chunk() {
        Some(full) => simd.load(full),
        None => {
            let mut padded = [0.0; LANES];
            padded[..part.len()].copy_from_slice(part);
            simd.load(&padded)
        }
    }
}

/// As many values as `part` has, at most 16.
#[inline(always)]
pub(super) fn store_part<S: Simd>(simd: S, x: S::F32, part: &mut [f32]) {
    match part.first_chunk_mut() {
        Some(full) => simd.store(x, full),
        None => {
            let mut padded = [0.0; LANES];
            simd.store(x, &mut padded);
            part.copy_from_slice(&padded[..part.len()]);
        }
    }
}

/// `x * factor * weight`, in place.
#[inline(always)]
pub(super) fn scale_by_weight<S: Simd>(simd: S, x: &mut [f32], factor: f32, weight: &[f32]) {
    let factor = simd.splat(factor);
    for (x, weight) in x.chunks_mut(LANES).zip(weight.chunks(LANES)) {
        let y = simd.mul(simd.mul(load_part(simd, x), factor), load_part(simd, weight));
        store_part(simd, y, x);
    }
}

struct NormRows<'a> {
    values: &'a mut [f32],
    width: usize,
    columns: Range<usize>,
    norm: &'a Norm,
}

impl Kernel for NormRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for row in self.values.chunks_exact_mut(self.width) {
            let x = &mut row[self.columns.start..self.columns.end];
            let factor = inverse_rms(simd, x, self.norm.epsilon);
            scale_by_weight(simd, x, factor, &self.norm.weight);
        }
    }
}

struct AddNormRows<'a> {
    values: &'a mut [f32],
    y: &'a [f32],
    norm: &'a Norm,
}

impl Kernel for AddNormRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let weight = &self.norm.weight;
        for (x, y) in self.values.chunks_exact_mut(weight.len()).zip(self.y.chunks_exact(weight.len())) {
            let factor = simd.splat(inverse_rms(simd, y, self.norm.epsilon));
            for ((x, y), weight) in x.chunks_mut(LANES).zip(y.chunks(LANES)).zip(weight.chunks(LANES)) {
                let normed = simd.mul(simd.mul(load_part(simd, y), factor), load_part(simd, weight));
                let sum = simd.add(load_part(simd, x), normed);
                store_part(simd, sum, x);
            }
        }
    }
}

struct Softcap<'a> {
    values: &'a mut [f32],
    cap: f32,
}

impl Kernel for Softcap<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let cap = simd.splat(self.cap);
        for part in self.values.chunks_mut(LANES) {
            let x = load_part(simd, part);
            store_part(simd, simd.mul(cap, simd.tanh(simd.div(x, cap))), part);
        }
    }
}

#[cfg(test)]
mod tests;
