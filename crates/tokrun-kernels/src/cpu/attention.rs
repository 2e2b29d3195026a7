//! Attention over the paged cache.
//!
//! A *unit* is some consecutive queries of a sequence with the query heads of one key-value head, which share each key
//! and value that is loaded. It goes through the context in segments of [`SEGMENT_TOKENS`] positions and merges what they
//! give in order. Where there are few units (one sequence that is decoded), the segments of a unit are shared out among
//! the threads, and the last one to finish merges: the same expressions in the same order, so the same bits.

mod heads;
mod plan;
mod segment;
#[cfg(test)]
mod tests;

use std::f32::consts::LOG2_E;
use std::sync::atomic::Ordering::AcqRel;

use super::kv::{BF16, Cache, CpuKv, F16, F32, Layer, QuantisedLayer, Storage, padded};
use super::memory::Disjoint;
use super::pool::{Pool, Worker};
use super::rope::RopeTable;
use super::rows::CpuRows;
use super::simd::{LANES, Level};
use crate::{Attention, KV_BLOCK_TOKENS, Norm, Span};
use heads::{Divide, TakeHeads};
use plan::{Item, Plan, Unit, Written, first_seen};
use segment::{Blocks, Merge, Mix, SEGMENT_BLOCKS, SEGMENT_TOKENS, Score, Softmax, Weigh, Weights};

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
    /// Keys and values of a segment, where they are not stored as they are read.
    expanded: Vec<[f32; LANES]>,
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
        Cache::Q8_0 { codes, scales } => {
            attend_in(pool, level, workspace, inputs, QuantisedLayer::new(codes, scales, &shape, layer), out);
        }
    }
}

fn attend_in<L: Storage>(
    pool: &mut Pool,
    level: Level,
    workspace: &mut Workspace,
    inputs: Inputs<'_>,
    layer: L,
    out: &mut CpuRows,
) {
    let dim = padded(inputs.attention.head_dim);
    let threads = pool.threads();
    workspace.prepare(inputs, dim, threads, layer.vectors_to_expand());
    let Workspace { plan, parts, part_sums, threads: scratch } = workspace;
    let rows = inputs.spans.last().map_or(0, |span| span.rows.end);
    let scratch = Disjoint::new(scratch);
    let job = Job {
        level,
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
        plan.written.iter().for_each(|written| job.store_block(written, scratch));
        plan.items.iter().for_each(|item| job.do_item(item, scratch));
        return;
    }
    let with_scratch = |worker: &Worker<'_>, work: &mut dyn FnMut(&mut Scratch)| {
        let index = worker.index();
        #[expect(unsafe_code, reason = "scratch memory of each thread")]
        // SAFETY: each worker takes its own.
        work(unsafe { &mut scratch.part(index..index + 1)[0] });
    };
    pool.for_chunks(plan.written.len(), |worker, chunks| {
        with_scratch(worker, &mut |scratch| chunks.for_each(|block| job.store_block(&plan.written[block], scratch)));
    });
    pool.for_chunks(plan.items.len(), |worker, chunks| {
        with_scratch(worker, &mut |scratch| chunks.for_each(|item| job.do_item(&plan.items[item], scratch)));
    });
}

impl Workspace {
    /// Plans the call and makes room for it.
    fn prepare(&mut self, inputs: Inputs<'_>, dim: usize, threads: usize, vectors_to_expand: usize) {
        self.plan.make(inputs.attention, inputs.spans, threads);
        if self.parts.len() < self.plan.parts * dim {
            self.parts.resize(self.plan.parts * dim, 0.0);
            self.part_sums.resize(self.plan.parts, Softmax::default());
        }
        self.threads.resize_with(threads.max(self.threads.len()), Scratch::default);
        for thread in &mut self.threads {
            thread.make_room(self.plan.queries_max, dim);
            thread.expanded.resize(SEGMENT_BLOCKS * vectors_to_expand, [0.0; LANES]);
        }
    }
}

impl Scratch {
    fn make_room(&mut self, queries: usize, dim: usize) {
        let Self { queries: query, weights, part, part_sums, out, sums, key, value, .. } = self;
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
struct Job<'a, L> {
    level: Level,
    inputs: Inputs<'a>,
    layer: L,
    plan: &'a Plan,
    /// Values a head, in whole vectors.
    dim: usize,
    /// Query heads of a key-value head.
    group: usize,
    parts: Disjoint<'a, f32>,
    part_sums: Disjoint<'a, Softmax>,
    out: Disjoint<'a, f32>,
}

impl<L: Storage> Job<'_, L> {
    /// Stores the keys and values of the rows that go to one block.
    fn store_block(&self, written: &Written, scratch: &mut Scratch) {
        for (row, position) in written.rows.clone().zip(written.start..) {
            for kv_head in 0..self.inputs.attention.kv_heads {
                self.store(written.span, row, position, kv_head, scratch);
            }
        }
    }

    fn do_item(&self, item: &Item, scratch: &mut Scratch) {
        let unit = &self.plan.units[item.unit];
        if self.plan.written.is_empty() && item.segments.end == unit.segments.end {
            // The one row of this unit is in the last block, which no other item reads.
            self.store(unit.span, unit.rows.start, unit.start, unit.kv_head, scratch);
        }
        self.take_queries(unit, scratch);
        if item.segments == unit.segments {
            self.do_whole(unit, scratch);
        } else {
            self.do_part(unit, item, scratch);
        }
    }

    /// Normalises, turns and stores the key of a row, and stores its value.
    fn store(&self, span: usize, row: usize, position: usize, kv_head: usize, scratch: &mut Scratch) {
        let Attention { heads, kv_heads, ref head_norms, .. } = *self.inputs.attention;
        let Scratch { key, value, .. } = scratch;
        let norm = head_norms.as_ref().map(|(_, key)| key);
        self.take_heads(row, heads + kv_head, 1, norm, self.inputs.rope, 1.0, key);
        self.take_heads(row, heads + kv_heads + kv_head, 1, None, None, 1.0, value);

        let block = self.inputs.spans[span].blocks[position / KV_BLOCK_TOKENS];
        let place = (block, position % KV_BLOCK_TOKENS, kv_head);
        #[expect(unsafe_code, reason = "threads share one cache")]
        // SAFETY: each written block is stored to by one thread: before all items, which only read it, or by the
        // one item of a unit that reads it. No two spans write to one block.
        unsafe {
            self.layer.store(self.level, place, key, value);
        }
    }

    /// Brings the queries of a unit into the form they are multiplied in: query heads of a row side by side.
    fn take_queries(&self, unit: &Unit, scratch: &mut Scratch) {
        let Attention { ref head_norms, scale, softcap, .. } = *self.inputs.attention;
        let norm = head_norms.as_ref().map(|(query, _)| query);
        // Scores come out in powers of two, or in units of the cap.
        let scale = softcap.map_or(scale * LOG2_E, |cap| scale / cap);
        let queries = scratch.queries.chunks_exact_mut(self.group * self.dim);
        for (row, to) in unit.rows.clone().zip(queries) {
            self.take_heads(row, unit.kv_head * self.group, self.group, norm, self.inputs.rope, scale, to);
        }
    }

    /// `count` heads of a row from `first`, counted over queries, keys and values.
    #[expect(clippy::too_many_arguments, reason = "what is done to heads differs in all of these")]
    fn take_heads(
        &self,
        row: usize,
        first: usize,
        count: usize,
        norm: Option<&Norm>,
        rope: Option<&RopeTable>,
        scale: f32,
        to: &mut [f32],
    ) {
        let head_dim = self.inputs.attention.head_dim;
        let heads = &self.inputs.qkv.row(row)[first * head_dim..(first + count) * head_dim];
        self.level.run(TakeHeads { heads, head_dim, norm, rope, row, scale, to, dim: self.dim });
    }

    /// All segments of a unit, by this thread.
    fn do_whole(&self, unit: &Unit, scratch: &mut Scratch) {
        let queries = unit.rows.len() * self.group;
        scratch.sums[..queries].fill(Softmax::default());
        for segment in unit.segments.clone() {
            self.do_segment(unit, segment, scratch);
            let Scratch { part, part_sums, out, sums, .. } = scratch;
            self.level.run(Merge { dim: self.dim, sums: &mut sums[..queries], out, part_sums, part });
        }
        self.finish(unit, scratch);
    }

    /// Some segments of a unit; who is the last to finish merges all of them.
    fn do_part(&self, unit: &Unit, item: &Item, scratch: &mut Scratch) {
        let queries = unit.rows.len() * self.group;
        let place = |segment: usize| {
            let start = unit.parts + (segment - unit.segments.start) * queries;
            start..start + queries
        };
        for segment in item.segments.clone() {
            self.do_segment(unit, segment, scratch);
            let place = place(segment);
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
            let place = place(segment);
            #[expect(unsafe_code, reason = "threads share what segments gave")]
            // SAFETY: the other items of the unit are finished.
            let part = unsafe { self.parts.shared(place.start * self.dim..place.end * self.dim) };
            #[expect(unsafe_code, reason = "threads share what segments gave")]
            // SAFETY: as above.
            let part_sums = unsafe { self.part_sums.shared(place) };
            let Scratch { out, sums, .. } = scratch;
            self.level.run(Merge { dim: self.dim, sums: &mut sums[..queries], out, part_sums, part });
        }
        self.finish(unit, scratch);
    }

    /// What the queries of a unit get from one segment, to `part` and `part_sums`.
    fn do_segment(&self, unit: &Unit, segment: usize, scratch: &mut Scratch) {
        let Attention { softcap, window_tokens, .. } = *self.inputs.attention;
        let queries = unit.rows.len() * self.group;
        // Blocks that no query sees weigh nothing, so they may be left out.
        let last = unit.start + unit.rows.len() - 1;
        let first_block = (segment * SEGMENT_BLOCKS).max(first_seen(unit.start, window_tokens) / KV_BLOCK_TOKENS);
        let end_block = ((segment + 1) * SEGMENT_BLOCKS).min(last / KV_BLOCK_TOKENS + 1);
        let Scratch { queries: query, weights, part, part_sums, expanded, .. } = scratch;
        let mut room = expanded.chunks_mut(self.layer.vectors_to_expand().max(1));
        let mut blocks = Blocks::<L::Element> { cold: unit.rows.len() == 1, ..Blocks::NONE };
        for &block in &self.inputs.spans[unit.span].blocks[first_block..end_block] {
            let room = room.next().unwrap_or_default();
            #[expect(unsafe_code, reason = "threads share one cache")]
            // SAFETY: blocks of this head are written to before all items, or by this item: see `store`.
            let [keys, values] = unsafe { self.layer.read(self.level, block, unit.kv_head, room) };
            blocks.keys[blocks.count] = keys;
            blocks.values[blocks.count] = values;
            blocks.count += 1;
        }

        let weights = &mut weights[..queries];
        self.level.run(Score { blocks: &blocks, queries: query, dim: self.dim, weights });
        self.level.run(Weigh {
            blocks: blocks.count,
            start: first_block * KV_BLOCK_TOKENS,
            position: unit.start,
            group: self.group,
            window_tokens,
            cap: softcap.map(|cap| cap * LOG2_E),
            weights,
            sums: part_sums,
        });
        self.level.run(Mix { blocks: &blocks, weights, dim: self.dim, out: part });
    }

    /// Divides what a unit got by its weight, and hands it out.
    fn finish(&self, unit: &Unit, scratch: &Scratch) {
        let Attention { heads, head_dim, .. } = *self.inputs.attention;
        let values = scratch.out.chunks_exact(self.group * self.dim).zip(scratch.sums.chunks_exact(self.group));
        for (row, (values, sums)) in unit.rows.clone().zip(values) {
            let start = (row * heads + unit.kv_head * self.group) * head_dim;
            #[expect(unsafe_code, reason = "threads share the output")]
            // SAFETY: these heads of this row belong to this unit, which only this thread finishes.
            let out = unsafe { self.out.part(start..start + self.group * head_dim) };
            self.level.run(Divide { values, dim: self.dim, sums, out, head_dim });
        }
    }
}
