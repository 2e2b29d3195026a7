//! Attention over one segment of the context, for several queries that share a key-value head.
//!
//! What a query gets from a segment depends on the query and the keys it sees alone: each score and each output value is
//! one chain of multiply-adds in a fixed order, keys that it does not see weigh exactly nothing, and segments begin at
//! fixed positions. So it does not matter which queries are computed together, or by whom.

use std::ops::Range;

use super::super::kv::Element;
use super::super::simd::{Kernel, LANES, Simd};
use super::plan::first_seen;

/// Blocks of the cache a segment has.
pub(super) const SEGMENT_BLOCKS: usize = 16;
/// Tokens of a segment.
pub(super) const SEGMENT_TOKENS: usize = SEGMENT_BLOCKS * LANES;

/// Queries for which a vector of keys or values is used once it is loaded. Their sums with four such vectors fit into 32
/// registers, with two into the 8 that narrower levels have for our vectors.
const fn queries_max<S: Simd>() -> usize {
    match S::GROUP_ROWS {
        8.. => 6,
        4.. => 2,
        _ => 1,
    }
}

/// Scores, and then weights, of one query with the tokens of a segment.
pub(super) type Weights = [f32; SEGMENT_TOKENS];

/// The blocks of a segment that are looked at.
pub(super) struct Blocks<'a, E: Element> {
    /// Of each block `[dim][16 tokens]`.
    pub(super) keys: [&'a [[E::Bits; LANES]]; SEGMENT_BLOCKS],
    /// Of each block `[16 tokens][dim]`.
    pub(super) values: [&'a [[E::Bits; LANES]]; SEGMENT_BLOCKS],
    /// How many there are.
    pub(super) count: usize,
    /// Whether they come from memory, and are worth asking for ahead of use.
    pub(super) cold: bool,
}

impl<E: Element> Blocks<'_, E> {
    pub(super) const NONE: Self =
        Self { keys: [&[]; SEGMENT_BLOCKS], values: [&[]; SEGMENT_BLOCKS], count: 0, cold: false };
}

/// What a query got from the segments so far: weighted values `[dim]` that are not divided by their weight yet.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Softmax {
    /// The largest score, in powers of two.
    pub(super) top: f32,
    /// Sum of the weights, `2^(score - top)`; 0 where nothing was seen.
    pub(super) total: f32,
}

/// Vectors of the cache that a line of memory holds.
const fn vectors_a_line<E: Element>() -> usize {
    64 / size_of::<[E::Bits; LANES]>()
}

/// Scores of queries with the keys of all blocks.
pub(super) struct Score<'a, E: Element> {
    pub(super) blocks: &'a Blocks<'a, E>,
    /// `[weights.len(), dim]`
    pub(super) queries: &'a [f32],
    pub(super) dim: usize,
    pub(super) weights: &'a mut [Weights],
}

impl<E: Element> Kernel for Score<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { blocks, queries, dim, weights } = self;
        let passes = weights.len().div_ceil(queries_max::<S>());
        for pass in 0..passes {
            let (start, end) = (weights.len() * pass / passes, weights.len() * (pass + 1) / passes);
            let (queries, weights) = (&queries[start * dim..end * dim], &mut weights[start..end]);
            if const { queries_max::<S>() == 6 } {
                match end - start {
                    1 => score_queries::<S, E, 1>(simd, blocks, queries, dim, weights),
                    2 => score_queries::<S, E, 2>(simd, blocks, queries, dim, weights),
                    3 => score_queries::<S, E, 3>(simd, blocks, queries, dim, weights),
                    4 => score_queries::<S, E, 4>(simd, blocks, queries, dim, weights),
                    5 => score_queries::<S, E, 5>(simd, blocks, queries, dim, weights),
                    _ => score_queries::<S, E, 6>(simd, blocks, queries, dim, weights),
                }
            } else if const { queries_max::<S>() == 2 } {
                match end - start {
                    1 => score_queries::<S, E, 1>(simd, blocks, queries, dim, weights),
                    _ => score_queries::<S, E, 2>(simd, blocks, queries, dim, weights),
                }
            } else {
                score_queries::<S, E, 1>(simd, blocks, queries, dim, weights);
            }
        }
    }
}

#[inline(always)]
fn score_queries<S: Simd, E: Element, const QUERIES: usize>(
    simd: S,
    blocks: &Blocks<'_, E>,
    queries: &[f32],
    dim: usize,
    weights: &mut [Weights],
) {
    let mut block = 0;
    if const { queries_max::<S>() == 6 } {
        while blocks.count - block >= 4 {
            score_blocks::<S, E, QUERIES, 4>(simd, blocks, block, queries, dim, weights);
            block += 4;
        }
    } else if const { queries_max::<S>() == 2 } {
        while blocks.count - block >= 2 {
            score_blocks::<S, E, QUERIES, 2>(simd, blocks, block, queries, dim, weights);
            block += 2;
        }
    }
    for block in block..blocks.count {
        score_blocks::<S, E, QUERIES, 1>(simd, blocks, block, queries, dim, weights);
    }
}

#[inline(always)]
fn score_blocks<S: Simd, E: Element, const QUERIES: usize, const BLOCKS: usize>(
    simd: S,
    blocks: &Blocks<'_, E>,
    first: usize,
    queries: &[f32],
    dim: usize,
    weights: &mut [Weights],
) {
    assert_eq!(weights.len(), QUERIES);
    let mut query = [queries; QUERIES];
    for (i, query) in query.iter_mut().enumerate() {
        *query = &queries[i * dim..][..dim];
    }
    let mut keys = [blocks.keys[first]; BLOCKS];
    let mut next = [blocks.keys[first].as_ptr(); BLOCKS];
    for i in 0..BLOCKS {
        keys[i] = &blocks.keys[first + i][..dim];
        // Past the last keys come the values.
        let ahead = first + BLOCKS + i;
        next[i] = if ahead < blocks.count { blocks.keys[ahead] } else { blocks.values[ahead - blocks.count] }.as_ptr();
    }
    let mut sums = [[simd.splat(0.0); BLOCKS]; QUERIES];
    for d in 0..dim {
        if blocks.cold && d.is_multiple_of(vectors_a_line::<E>()) {
            for next in &next {
                simd.prefetch(next.wrapping_add(d).cast());
            }
        }
        let mut key = [simd.splat(0.0); BLOCKS];
        for (key, keys) in key.iter_mut().zip(&keys) {
            *key = E::load(simd, &keys[d]);
        }
        for (sums, query) in sums.iter_mut().zip(&query) {
            let query = simd.splat(query[d]);
            for (sum, key) in sums.iter_mut().zip(&key) {
                *sum = simd.fma(query, *key, *sum);
            }
        }
    }
    for (weights, sums) in weights.iter_mut().zip(&sums) {
        let (vectors, _) = weights.as_chunks_mut();
        for (vector, sum) in vectors[first..][..BLOCKS].iter_mut().zip(sums) {
            simd.store(*sum, vector);
        }
    }
}

/// Turns the scores of queries with the tokens of all blocks into weights.
pub(super) struct Weigh<'a> {
    /// Blocks that were looked at.
    pub(super) blocks: usize,
    /// Position of the first token in them.
    pub(super) start: usize,
    /// Position of the first query.
    pub(super) position: usize,
    /// Query heads that share a position.
    pub(super) group: usize,
    pub(super) window_tokens: Option<usize>,
    /// Scores are in powers of two, or in units of the cap where there is one: this is what to multiply its tanh with.
    pub(super) cap: Option<f32>,
    pub(super) weights: &'a mut [Weights],
    pub(super) sums: &'a mut [Softmax],
}

impl Kernel for Weigh<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { blocks, start, group, window_tokens, cap, .. } = self;
        for (i, (weights, sums)) in self.weights.iter_mut().zip(self.sums).enumerate() {
            let position = self.position + i / group;
            let seen = first_seen(position, window_tokens).max(start)..(position + 1).max(start);
            let visible = seen.start - start..(seen.end - start).min(blocks * LANES);
            *sums = weigh(simd, weights, blocks, visible, cap);
        }
    }
}

/// One query: 0 for tokens that are not `visible`.
#[inline(always)]
fn weigh<S: Simd>(simd: S, weights: &mut Weights, blocks: usize, visible: Range<usize>, cap: Option<f32>) -> Softmax {
    if visible.is_empty() {
        weights[..blocks * LANES].fill(0.0);
        return Softmax::default();
    }
    let (vectors, _) = weights.as_chunks_mut::<LANES>();
    let vectors = &mut vectors[..blocks];
    if let Some(cap) = cap {
        for vector in vectors.iter_mut() {
            let capped = simd.mul(simd.splat(cap), simd.tanh(simd.load(vector)));
            simd.store(capped, vector);
        }
    }
    let lowest = simd.splat(f32::NEG_INFINITY);
    let mut top = lowest;
    for (block, vector) in vectors.iter().enumerate() {
        top = simd.max(top, keep(simd, simd.load(vector), lowest, block, &visible));
    }
    let top = simd.largest(top);
    let mut total = simd.splat(0.0);
    for (block, vector) in vectors.iter_mut().enumerate() {
        let weight = simd.exp2(simd.sub(simd.load(vector), simd.splat(top)));
        let weight = keep(simd, weight, simd.splat(0.0), block, &visible);
        total = simd.add(total, weight);
        simd.store(weight, vector);
    }
    Softmax { top, total: simd.sum(total) }
}

/// `x` for the visible tokens of a block, `other` for the rest.
#[inline(always)]
fn keep<S: Simd>(simd: S, x: S::F32, other: S::F32, block: usize, visible: &Range<usize>) -> S::F32 {
    let start = block * LANES;
    let mut kept = x;
    if visible.end < start + LANES {
        kept = simd.first_lanes(visible.end.saturating_sub(start), kept, other);
    }
    if visible.start > start {
        kept = simd.first_lanes(visible.start - start, other, kept);
    }
    kept
}

/// The sums of the values of all blocks, weighted for each query.
pub(super) struct Mix<'a, E: Element> {
    pub(super) blocks: &'a Blocks<'a, E>,
    pub(super) weights: &'a [Weights],
    pub(super) dim: usize,
    /// `[weights.len(), dim]`
    pub(super) out: &'a mut [f32],
}

impl<E: Element> Kernel for Mix<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { blocks, weights, dim, out } = self;
        let passes = weights.len().div_ceil(queries_max::<S>());
        for pass in 0..passes {
            let (start, end) = (weights.len() * pass / passes, weights.len() * (pass + 1) / passes);
            let (weights, out) = (&weights[start..end], &mut out[start * dim..end * dim]);
            if const { queries_max::<S>() == 6 } {
                match end - start {
                    1 => mix_queries::<S, E, 1>(simd, blocks, weights, dim, out),
                    2 => mix_queries::<S, E, 2>(simd, blocks, weights, dim, out),
                    3 => mix_queries::<S, E, 3>(simd, blocks, weights, dim, out),
                    4 => mix_queries::<S, E, 4>(simd, blocks, weights, dim, out),
                    5 => mix_queries::<S, E, 5>(simd, blocks, weights, dim, out),
                    _ => mix_queries::<S, E, 6>(simd, blocks, weights, dim, out),
                }
            } else if const { queries_max::<S>() == 2 } {
                match end - start {
                    1 => mix_queries::<S, E, 1>(simd, blocks, weights, dim, out),
                    _ => mix_queries::<S, E, 2>(simd, blocks, weights, dim, out),
                }
            } else {
                mix_queries::<S, E, 1>(simd, blocks, weights, dim, out);
            }
        }
    }
}

#[inline(always)]
fn mix_queries<S: Simd, E: Element, const QUERIES: usize>(
    simd: S,
    blocks: &Blocks<'_, E>,
    weights: &[Weights],
    dim: usize,
    out: &mut [f32],
) {
    let vectors = dim / LANES;
    let mut at = 0;
    if const { queries_max::<S>() == 6 } {
        while vectors - at >= 4 {
            mix_vectors::<S, E, QUERIES, 4>(simd, blocks, weights, vectors, at, out);
            at += 4;
        }
    } else if const { queries_max::<S>() == 2 } {
        while vectors - at >= 2 {
            mix_vectors::<S, E, QUERIES, 2>(simd, blocks, weights, vectors, at, out);
            at += 2;
        }
    }
    for at in at..vectors {
        mix_vectors::<S, E, QUERIES, 1>(simd, blocks, weights, vectors, at, out);
    }
}

/// `VECTORS` vectors from `at` of each of the `vectors` a head has.
#[inline(always)]
fn mix_vectors<S: Simd, E: Element, const QUERIES: usize, const VECTORS: usize>(
    simd: S,
    blocks: &Blocks<'_, E>,
    weights: &[Weights],
    vectors: usize,
    at: usize,
    out: &mut [f32],
) {
    let weights: &[Weights; QUERIES] = weights.try_into().expect("as many as were counted");
    let mut sums = [[simd.splat(0.0); VECTORS]; QUERIES];
    for block in 0..blocks.count {
        let values = blocks.values[block];
        let next = blocks.values[(block + 2).min(blocks.count - 1)].as_ptr();
        for token in 0..LANES {
            let mut value = [simd.splat(0.0); VECTORS];
            let from: &[[E::Bits; LANES]] = &values[token * vectors + at..][..VECTORS];
            for (value, from) in value.iter_mut().zip(from) {
                *value = E::load(simd, from);
            }
            if blocks.cold {
                for i in (0..VECTORS).step_by(vectors_a_line::<E>()) {
                    simd.prefetch(next.wrapping_add(token * vectors + at + i).cast());
                }
            }
            for (sums, weights) in sums.iter_mut().zip(weights) {
                let weight = simd.splat(weights[block * LANES + token]);
                for (sum, value) in sums.iter_mut().zip(&value) {
                    *sum = simd.fma(weight, *value, *sum);
                }
            }
        }
    }
    for (row, sums) in out.chunks_exact_mut(vectors * LANES).zip(&sums) {
        let (to, _) = row.as_chunks_mut();
        for (to, sum) in to[at..][..VECTORS].iter_mut().zip(sums) {
            simd.store(*sum, to);
        }
    }
}

/// Adds what a later segment gave to what the earlier ones did: always the same expression, in the order of segments.
pub(super) struct Merge<'a> {
    pub(super) dim: usize,
    pub(super) sums: &'a mut [Softmax],
    /// `[sums.len(), dim]`
    pub(super) out: &'a mut [f32],
    pub(super) part_sums: &'a [Softmax],
    pub(super) part: &'a [f32],
}

impl Kernel for Merge<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let rows = self.out.chunks_exact_mut(self.dim).zip(self.part.chunks_exact(self.dim));
        for ((sums, part_sums), (out, part)) in self.sums.iter_mut().zip(self.part_sums).zip(rows) {
            if part_sums.total == 0.0 {
                continue;
            }
            if sums.total == 0.0 {
                *sums = *part_sums;
                out.copy_from_slice(part);
                continue;
            }
            merge(simd, sums, out, *part_sums, part);
        }
    }
}

#[inline(always)]
fn merge<S: Simd>(simd: S, sums: &mut Softmax, out: &mut [f32], part_sums: Softmax, part: &[f32]) {
    let top = simd.max(simd.splat(sums.top), simd.splat(part_sums.top));
    let old = simd.exp2(simd.sub(simd.splat(sums.top), top));
    let new = simd.exp2(simd.sub(simd.splat(part_sums.top), top));
    let total = simd.fma(simd.splat(sums.total), old, simd.mul(simd.splat(part_sums.total), new));
    *sums = Softmax { top: simd.largest(top), total: simd.largest(total) };
    for (out, part) in out.as_chunks_mut().0.iter_mut().zip(part.as_chunks().0) {
        let sum = simd.fma(simd.load(out), old, simd.mul(simd.load(part), new));
        simd.store(sum, out);
    }
}
