//! Attention over the paged cache.
//!
//! A *unit* is some consecutive queries of a sequence with the query heads of one key-value head, which share each key
//! and value that is loaded. It goes through the context in segments of [`SEGMENT_TOKENS`] positions and merges what they
//! give in order. Where there are few units (one sequence that is decoded), the segments of a unit are shared out among
//! the threads, and the last one to finish merges: the same expressions in the same order, so the same bits.

mod plan;
mod segment;
#[cfg(test)]
mod tests;

use std::sync::atomic::Ordering::AcqRel;

use super::kv::{BF16, Cache, CpuKv, Element, F16, F32, Layer, padded};
use super::memory::Disjoint;
use super::norm::{inverse_rms, scale_by_weight};
use super::pool::Pool;
use super::rope::RopeTable;
use super::rows::CpuRows;
use super::simd::{Kernel, LANES, Level, Simd};
use crate::{Attention, KV_BLOCK_TOKENS, Norm, Span};
use plan::{Item, Plan, Unit};
use segment::{Blocks, SEGMENT_BLOCKS, SEGMENT_TOKENS, Softmax, Weights, merge, mix, score, weigh};

/// Values of keys that queries are multiplied with, below which waking the other threads takes longer than the work.
const ALONE_WORK_MAX: usize = 32 << 10;

/// What attention reads.
#[derive(Clone, Copy)]
pub(super) struct Inputs<'a> {
    pub(super) attention: &'a Attention,
    pub(super) rope: Option<&'a RopeTable>,
    pub(super) spans: &'a [Span],
    pub(super) qkv: &'a CpuRows,
}

/// What attention keeps between calls, so as not to reserve memory at each.
#[derive(Default)]
pub(super) struct Workspace {
    plan: Plan,
    /// What the segments of units gave that several threads compute: see [`Unit::parts`].
    parts: Vec<f32>,
    part_sums: Vec<Softmax>,
    threads: Vec<Scratch>,
}

/// Memory of one thread.
#[derive(Default)]
struct Scratch {
    /// Of each query of a unit `[dim]`.
    queries: Vec<f32>,
    weights: Vec<Weights>,
    /// What a segment gave: of each query `[dim]`, and its sums.
    part: Vec<f32>,
    part_sums: Vec<Softmax>,
    /// What all segments so far gave.
    out: Vec<f32>,
    sums: Vec<Softmax>,
    /// A key and a value on their way to the cache.
    key: Vec<f32>,
    value: Vec<f32>,
}

/// Stores keys and values of the step's rows in the cache, and attends with their queries.
pub(super) fn attend(
    pool: &mut Pool,
    level: Level,
    workspace: &mut Workspace,
    inputs: Inputs<'_>,
    layer: usize,
    kv: &mut CpuKv,
    out: &mut CpuRows,
) {
    let Attention { heads, kv_heads, head_dim, .. } = *inputs.attention;
    let shape = kv.shape;
    assert_eq!((kv_heads, head_dim), (shape.kv_heads, shape.head_dim), "the cache was made for other heads");
    assert!(heads.is_multiple_of(kv_heads), "{heads} query heads for {kv_heads} key-value heads");
    assert!(layer < shape.layers, "layer {layer} of {}", shape.layers);
    assert_eq!(inputs.qkv.width(), (heads + 2 * kv_heads) * head_dim, "width of queries, keys and values");
    assert_eq!(out.width(), heads * head_dim, "width of the output");
    match &mut kv.cache {
        Cache::F32(memory) => {
            attend_in(pool, level, workspace, inputs, Layer::<F32>::new(memory, &shape, layer), out);
        }
        Cache::F16(memory) => {
            attend_in(pool, level, workspace, inputs, Layer::<F16>::new(memory, &shape, layer), out);
        }
        Cache::BF16(memory) => {
            attend_in(pool, level, workspace, inputs, Layer::<BF16>::new(memory, &shape, layer), out);
        }
    }
}

fn attend_in<E: Element>(
    pool: &mut Pool,
    level: Level,
    workspace: &mut Workspace,
    inputs: Inputs<'_>,
    layer: Layer<'_, E>,
    out: &mut CpuRows,
) {
    let dim = padded(inputs.attention.head_dim);
    let threads = pool.threads();
    workspace.prepare(inputs, dim, threads);
    let Workspace { plan, parts, part_sums, threads: scratch } = workspace;
    let rows = inputs.spans.last().map_or(0, |span| span.rows.end);
    let scratch = Disjoint::new(scratch);
    let job = Job {
        inputs,
        layer,
        plan,
        dim,
        group: inputs.attention.heads / inputs.attention.kv_heads,
        parts: Disjoint::new(parts),
        part_sums: Disjoint::new(part_sums),
        out: Disjoint::new(out.first_mut(rows)),
    };

    if threads == 1 || plan.scores * dim <= ALONE_WORK_MAX {
        #[expect(unsafe_code, reason = "scratch memory of each thread")]
        // SAFETY: no other thread takes part.
        let scratch = unsafe { &mut scratch.part(0..1)[0] };
        for block in 0..plan.written.len() {
            level.run(StoreBlock { job: &job, block, scratch });
        }
        for item in 0..plan.items.len() {
            level.run(DoItem { job: &job, item, scratch });
        }
        return;
    }
    pool.run(|worker| {
        #[expect(unsafe_code, reason = "scratch memory of each thread")]
        // SAFETY: each worker takes its own.
        let scratch = unsafe { &mut scratch.part(worker.index()..worker.index() + 1)[0] };
        if !plan.written.is_empty() {
            for block in worker.chunks(plan.written.len()) {
                level.run(StoreBlock { job: &job, block, scratch });
            }
            worker.barrier();
        }
        for item in worker.chunks(plan.items.len()) {
            level.run(DoItem { job: &job, item, scratch });
        }
    });
}

impl Workspace {
    /// Plans the call and makes room for it.
    fn prepare(&mut self, inputs: Inputs<'_>, dim: usize, threads: usize) {
        self.plan.make(inputs.attention, inputs.spans, threads);
        if self.parts.len() < self.plan.parts * dim {
            self.parts.resize(self.plan.parts * dim, 0.0);
            self.part_sums.resize(self.plan.parts, Softmax::default());
        }
        self.threads.resize_with(threads.max(self.threads.len()), Scratch::default);
        for thread in &mut self.threads {
            thread.make_room(self.plan.queries_max, dim);
        }
    }
}

impl Scratch {
    fn make_room(&mut self, queries: usize, dim: usize) {
        let Self { queries: query, weights, part, part_sums, out, sums, key, value } = self;
        if weights.len() < queries {
            weights.resize(queries, [0.0; SEGMENT_TOKENS]);
            part_sums.resize(queries, Softmax::default());
            sums.resize(queries, Softmax::default());
        }
        for values in [query, part, out] {
            if values.len() < queries * dim {
                values.resize(queries * dim, 0.0);
            }
        }
        key.resize(dim, 0.0);
        value.resize(dim, 0.0);
    }
}

/// One call, as all threads see it.
struct Job<'a, E: Element> {
    inputs: Inputs<'a>,
    layer: Layer<'a, E>,
    plan: &'a Plan,
    /// Values a head, in whole vectors.
    dim: usize,
    /// Query heads of a key-value head.
    group: usize,
    parts: Disjoint<'a, f32>,
    part_sums: Disjoint<'a, Softmax>,
    out: Disjoint<'a, f32>,
}

struct StoreBlock<'a, 'b, E: Element> {
    job: &'a Job<'b, E>,
    block: usize,
    scratch: &'a mut Scratch,
}

impl<E: Element> Kernel for StoreBlock<'_, '_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let written = &self.job.plan.written[self.block];
        for (row, position) in written.rows.clone().zip(written.start..) {
            for kv_head in 0..self.job.inputs.attention.kv_heads {
                self.job.store(simd, written.span, row, position, kv_head, self.scratch);
            }
        }
    }
}

struct DoItem<'a, 'b, E: Element> {
    job: &'a Job<'b, E>,
    item: usize,
    scratch: &'a mut Scratch,
}

impl<E: Element> Kernel for DoItem<'_, '_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { job, item, scratch } = self;
        let item = &job.plan.items[item];
        let unit = &job.plan.units[item.unit];
        if job.plan.written.is_empty() && item.segments.end == unit.segments.end {
            // The one row of this unit is in the last block, which no other item reads.
            job.store(simd, unit.span, unit.rows.start, unit.start, unit.kv_head, scratch);
        }
        job.take_queries(simd, unit, scratch);
        if item.segments == unit.segments {
            job.do_whole(simd, unit, scratch);
        } else {
            job.do_part(simd, unit, item, scratch);
        }
    }
}

impl<E: Element> Job<'_, E> {
    /// Normalises, turns and stores the key of a row, and stores its value.
    #[inline(always)]
    fn store<S: Simd>(&self, simd: S, span: usize, row: usize, position: usize, kv_head: usize, scratch: &mut Scratch) {
        let Attention { heads, kv_heads, head_dim, head_norms, .. } = self.inputs.attention;
        let qkv = self.inputs.qkv.row(row);
        let Scratch { key, value, .. } = scratch;
        let norm = head_norms.as_ref().map(|(_, key)| key);
        self.take_head(simd, &qkv[(heads + kv_head) * head_dim..][..*head_dim], norm, row, key);
        value[..*head_dim].copy_from_slice(&qkv[(heads + kv_heads + kv_head) * head_dim..][..*head_dim]);
        value[*head_dim..].fill(0.0);

        let block = self.inputs.spans[span].blocks[position / KV_BLOCK_TOKENS];
        #[expect(unsafe_code, reason = "threads share one cache")]
        // SAFETY: each written block is stored to by one thread: before a barrier, after which it is only read, or by the
        // one item of a unit that reads it. No two spans write to one block.
        unsafe {
            self.layer.store(simd, (block, position % KV_BLOCK_TOKENS, kv_head), key, value);
        }
    }

    /// Copies a head of a row, normalised and turned; zeros fill its last vector.
    #[inline(always)]
    fn take_head<S: Simd>(&self, simd: S, head: &[f32], norm: Option<&Norm>, row: usize, to: &mut [f32]) {
        let (to, rest) = to.split_at_mut(head.len());
        to.copy_from_slice(head);
        rest.fill(0.0);
        if let Some(norm) = norm {
            let factor = inverse_rms(simd, head, norm.epsilon);
            scale_by_weight(simd, to, factor, &norm.weight);
        }
        if let Some(rope) = self.inputs.rope {
            rope.rotate(simd, row, to);
        }
    }

    /// Brings the queries of a unit into the form they are multiplied in: query heads of a row side by side.
    #[inline(always)]
    fn take_queries<S: Simd>(&self, simd: S, unit: &Unit, scratch: &mut Scratch) {
        let Attention { head_dim, head_norms, scale, softcap, .. } = self.inputs.attention;
        let norm = head_norms.as_ref().map(|(query, _)| query);
        // Scores come out in powers of two, or in units of the cap.
        let factor = simd.splat(softcap.map_or(scale * std::f32::consts::LOG2_E, |cap| scale / cap));
        let mut queries = scratch.queries.chunks_exact_mut(self.dim);
        for row in unit.rows.clone() {
            let heads = &self.inputs.qkv.row(row)[unit.kv_head * self.group * head_dim..][..self.group * head_dim];
            for (head, to) in heads.chunks_exact(*head_dim).zip(&mut queries) {
                self.take_head(simd, head, norm, row, to);
                for part in to.as_chunks_mut::<LANES>().0 {
                    let scaled = simd.mul(simd.load(part), factor);
                    simd.store(scaled, part);
                }
            }
        }
    }

    /// All segments of a unit, by this thread.
    #[inline(always)]
    fn do_whole<S: Simd>(&self, simd: S, unit: &Unit, scratch: &mut Scratch) {
        let queries = unit.rows.len() * self.group;
        scratch.sums[..queries].fill(Softmax::default());
        for segment in unit.segments.clone() {
            self.do_segment(simd, unit, segment, scratch);
            let Scratch { part, part_sums, out, sums, .. } = scratch;
            merge_rows(simd, self.dim, &mut sums[..queries], out, &part_sums[..queries], part);
        }
        self.finish(simd, unit, scratch);
    }

    /// Some segments of a unit; who is the last to finish merges all of them.
    #[inline(always)]
    fn do_part<S: Simd>(&self, simd: S, unit: &Unit, item: &Item, scratch: &mut Scratch) {
        let queries = unit.rows.len() * self.group;
        let at = |segment: usize| {
            let start = unit.parts + (segment - unit.segments.start) * queries;
            start..start + queries
        };
        for segment in item.segments.clone() {
            self.do_segment(simd, unit, segment, scratch);
            let place = at(segment);
            #[expect(unsafe_code, reason = "threads share what segments gave")]
            // SAFETY: each segment of a unit is in one item, and nobody reads it before all items are finished.
            let part = unsafe { self.parts.part(place.start * self.dim..place.end * self.dim) };
            #[expect(unsafe_code, reason = "threads share what segments gave")]
            // SAFETY: as above.
            let sums = unsafe { self.part_sums.part(place) };
            part.copy_from_slice(&scratch.part[..queries * self.dim]);
            sums.copy_from_slice(&scratch.part_sums[..queries]);
        }
        if unit.unfinished.fetch_sub(1, AcqRel) > 1 {
            return;
        }
        scratch.sums[..queries].fill(Softmax::default());
        for segment in unit.segments.clone() {
            let place = at(segment);
            #[expect(unsafe_code, reason = "threads share what segments gave")]
            // SAFETY: the other items of the unit are finished.
            let part = unsafe { self.parts.shared(place.start * self.dim..place.end * self.dim) };
            #[expect(unsafe_code, reason = "threads share what segments gave")]
            // SAFETY: as above.
            let sums = unsafe { self.part_sums.shared(place) };
            merge_rows(simd, self.dim, &mut scratch.sums[..queries], &mut scratch.out, sums, part);
        }
        self.finish(simd, unit, scratch);
    }

    /// What the queries of a unit get from one segment, to `part` and `part_sums`.
    #[inline(always)]
    fn do_segment<S: Simd>(&self, simd: S, unit: &Unit, segment: usize, scratch: &mut Scratch) {
        let Attention { softcap, window_tokens, .. } = *self.inputs.attention;
        let queries = unit.rows.len() * self.group;
        let span = &self.inputs.spans[unit.span];
        let last = unit.start + unit.rows.len() - 1;
        // Blocks that no query sees weigh nothing, so they may be left out.
        let first_block = (segment * SEGMENT_BLOCKS).max(plan::first_seen(unit.start, window_tokens) / LANES);
        let end_block = ((segment + 1) * SEGMENT_BLOCKS).min(last / LANES + 1);
        let mut blocks = Blocks::<E>::NONE;
        blocks.cold = unit.rows.len() == 1;
        for block in first_block..end_block {
            #[expect(unsafe_code, reason = "threads share one cache")]
            // SAFETY: blocks of this head are written to before the barrier, or by this item: see `store`.
            let [keys, values] = unsafe { self.layer.head(span.blocks[block], unit.kv_head) };
            blocks.keys[blocks.count] = keys;
            blocks.values[blocks.count] = values;
            blocks.count += 1;
        }

        let Scratch { queries: query, weights, part, part_sums, .. } = scratch;
        let weights = &mut weights[..queries];
        score(simd, &blocks, query, self.dim, weights);
        let start = first_block * LANES;
        let cap = softcap.map(|cap| cap * std::f32::consts::LOG2_E);
        for (i, (weights, sums)) in weights.iter_mut().zip(part_sums).enumerate() {
            let position = unit.start + i / self.group;
            let seen = plan::first_seen(position, window_tokens).max(start)..(position + 1).max(start);
            let visible = seen.start - start..(seen.end - start).min(blocks.count * LANES);
            *sums = weigh(simd, weights, blocks.count, visible, cap);
        }
        mix(simd, &blocks, weights, self.dim, part);
    }

    /// Divides what a unit got by its weight, and hands it out.
    #[inline(always)]
    fn finish<S: Simd>(&self, simd: S, unit: &Unit, scratch: &Scratch) {
        let Attention { heads, head_dim, .. } = *self.inputs.attention;
        let mut results = scratch.out.chunks_exact(self.dim).zip(&scratch.sums);
        for row in unit.rows.clone() {
            let start = (row * heads + unit.kv_head * self.group) * head_dim;
            #[expect(unsafe_code, reason = "threads share the output")]
            // SAFETY: these heads of this row belong to this unit, which only this thread finishes.
            let out = unsafe { self.out.part(start..start + self.group * head_dim) };
            for (out, (values, sums)) in out.chunks_exact_mut(head_dim).zip(&mut results) {
                scale_to(simd, values, 1.0 / sums.total, out);
            }
        }
    }
}

#[inline(always)]
fn merge_rows<S: Simd>(
    simd: S,
    dim: usize,
    so_far: &mut [Softmax],
    out: &mut [f32],
    parts: &[Softmax],
    values: &[f32],
) {
    let rows = out.chunks_exact_mut(dim).zip(values.chunks_exact(dim));
    for ((so_far, part), (out, value)) in so_far.iter_mut().zip(parts).zip(rows) {
        merge(simd, so_far, out, *part, value);
    }
}

/// `x * factor`, as many values as `out` has.
#[inline(always)]
fn scale_to<S: Simd>(simd: S, x: &[f32], factor: f32, out: &mut [f32]) {
    for (x, out) in x.as_chunks::<LANES>().0.iter().zip(out.chunks_mut(LANES)) {
        super::norm::store_part(simd, simd.mul(simd.load(x), simd.splat(factor)), out);
    }
}
