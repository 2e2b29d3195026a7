//! Attention over the paged cache: any heads, any blocks, any cut into steps.

use std::ops::Range;

use proptest::prelude::*;
use tokrun_kernels::{
    Attention, Backend, BlockId, KV_BLOCK_TOKENS, KvShape, KvType, Norm, Rope, RopeStyle, Span, Step,
};

use crate::support::{
    ATTENTION_CASES, Agreement, Estimate, LONG_TOKENS, Random, processors, reference, same_bits, table, upload, within,
};

/// Layers of the cache; attention is computed in one of them.
const LAYERS: usize = 2;

/// Some sequences with their blocks, and the queries, keys and values of all their tokens.
pub(crate) struct Case {
    pub(crate) attention: Attention,
    pub(crate) rope: Option<Rope>,
    kv_type: KvType,
    layer: usize,
    /// Tokens of each sequence.
    lengths: Vec<usize>,
    /// Blocks of each sequence.
    blocks: Vec<Vec<BlockId>>,
    /// One row a token, sequence after sequence.
    pub(crate) qkv: Vec<f32>,
}

impl Case {
    pub(crate) fn random(seed: u64, heads: Heads, lengths: Vec<usize>, kv_type: KvType) -> Self {
        let random = &mut Random::new(seed);
        let Heads { kv_heads, group, head_dim } = heads;
        let mut some = |chance: usize| random.below(chance) == 0;
        let (has_rope, has_norms, has_window, has_cap) = (!some(4), some(3), some(3), some(3));
        let longest = lengths.iter().copied().max().unwrap_or(1);
        let attention = Attention {
            heads: kv_heads * group,
            kv_heads,
            head_dim,
            scale: 1.0 / (head_dim as f32).sqrt(),
            softcap: has_cap.then_some(3.0),
            window_tokens: has_window.then(|| 1 + random.below(2 * longest)),
            rope: None,
            head_norms: has_norms.then(|| (head_norm(random, head_dim), head_norm(random, head_dim))),
        };
        let rope = (has_rope && head_dim > 1).then(|| rope(random, head_dim));
        let width = (attention.heads + 2 * kv_heads) * head_dim;
        let tokens = lengths.iter().sum::<usize>();
        // All cache types hold values exactly, and keys that are neither normalised nor turned.
        let qkv = random.values(tokens * width, 128.0).into_iter().map(|x| x.round() / 64.0).collect();
        Self {
            attention,
            rope,
            kv_type,
            layer: random.below(LAYERS),
            blocks: shuffled_blocks(random, &lengths),
            qkv,
            lengths,
        }
    }

    fn width(&self) -> usize {
        (self.attention.heads + 2 * self.attention.kv_heads) * self.attention.head_dim
    }

    fn out_width(&self) -> usize {
        self.attention.heads * self.attention.head_dim
    }

    fn cache(&self) -> KvShape {
        KvShape {
            layers: LAYERS,
            kv_heads: self.attention.kv_heads,
            head_dim: self.attention.head_dim,
            blocks: self.blocks.iter().map(Vec::len).sum::<usize>() + 1,
            kv_type: self.kv_type,
        }
    }

    /// The outputs of all tokens, sequence after sequence.
    pub(crate) fn run<B: Backend>(&self, backend: &mut B, steps: &[Vec<Part>]) -> Vec<f32> {
        let mut kv = backend.kv_cache(self.cache()).expect("there is memory");
        self.run_in(backend, &mut kv, &self.qkv, steps)
    }

    fn run_in<B: Backend>(&self, backend: &mut B, kv: &mut B::Kv, qkv: &[f32], steps: &[Vec<Part>]) -> Vec<f32> {
        let rope = self.rope.clone().map(|rope| backend.add_rope(rope));
        let attention = Attention { rope, ..self.attention.clone() };
        let qkv = table(backend, qkv, self.width());
        let mut outputs = vec![0.0; self.lengths.iter().sum::<usize>() * self.out_width()];
        for parts in steps {
            let step = self.step(parts);
            backend.begin(&step);
            let rows = step.tokens.len();
            let qkv = upload(backend, rows, &qkv, self.width());
            let mut out = backend.rows(rows, self.out_width()).expect("there is memory");
            backend.attention(self.layer, &attention, &qkv, kv, &mut out);
            for (&token, row) in step.tokens.iter().zip(backend.read(&out).chunks_exact(self.out_width())) {
                outputs[token as usize * self.out_width()..][..self.out_width()].copy_from_slice(row);
            }
        }
        outputs
    }

    /// A step over parts of sequences; a token is named by its row in `qkv`.
    fn step(&self, parts: &[Part]) -> Step {
        let mut step = Step::default();
        for part in parts {
            let first = self.lengths[..part.sequence].iter().sum::<usize>();
            let row = step.tokens.len();
            step.tokens.extend(part.positions.clone().map(|position| (first + position) as u32));
            step.spans.push(Span {
                rows: row..step.tokens.len(),
                start: part.positions.start,
                blocks: self.blocks[part.sequence][..part.positions.end.div_ceil(KV_BLOCK_TOKENS)].to_vec(),
            });
        }
        step
    }

    /// Every sequence in one part, all in one step.
    pub(crate) fn at_once(&self) -> Vec<Vec<Part>> {
        let part = |(sequence, &length): (usize, &usize)| Part { sequence, positions: 0..length };
        vec![self.lengths.iter().enumerate().map(part).collect()]
    }

    /// Sequences start, stop and go on at random, by one token or many.
    fn bit_by_bit(&self, random: &mut Random) -> Vec<Vec<Part>> {
        let mut done = vec![0; self.lengths.len()];
        let mut steps = Vec::new();
        while done != self.lengths {
            let mut order: Vec<usize> =
                (0..done.len()).filter(|&sequence| done[sequence] < self.lengths[sequence]).collect();
            random.shuffle(&mut order);
            order.truncate(1 + random.below(order.len()));
            let parts = order.into_iter().map(|sequence| {
                let start = done[sequence];
                let longest = [1, 5, 40, 1000][random.below(4)];
                let end = (start + 1 + random.below(longest)).min(self.lengths[sequence]);
                done[sequence] = end;
                Part { sequence, positions: start..end }
            });
            steps.push(parts.collect());
        }
        steps
    }

    /// How far outputs may be from the reference's, around those.
    ///
    /// Keys that were normalised or turned may round to the neighbour of what the reference rounded to, so a score is off
    /// by no more than that share of the longest query times the longest key; weights are then off by the exponential of
    /// twice the largest such error. `rounding` is that of queries and weights, where they are rounded.
    fn estimates(&self, expected: &[f32], rounding: f64) -> Vec<Estimate> {
        let Attention { heads, kv_heads, head_dim, scale, .. } = self.attention;
        let neighbour = match self.kv_type {
            _ if self.rope.is_none() && self.attention.head_norms.is_none() => 0.0,
            KvType::F32 => 0.0,
            KvType::F16 => 2f64.powi(-10),
            KvType::BF16 => 2f64.powi(-7),
            KvType::Q8_0 => 3.0 / 127.0,
        };
        let (query_norm, key_norm) = self.attention.head_norms.as_ref().map(|(query, key)| (query, key)).unzip();
        let turned = self.rope.as_ref().map_or(1.0, |rope| f64::from(rope.magnitude).max(1.0));
        let (mut query, mut key, mut value) = (0f64, 0f64, 0f64);
        for row in self.qkv.chunks_exact(self.width()) {
            for (i, head) in row.chunks_exact(head_dim).enumerate() {
                match i {
                    i if i < heads => query = query.max(turned * length(head, query_norm)),
                    i if i < heads + kv_heads => key = key.max(turned * length(head, key_norm)),
                    _ => value = head.iter().fold(value, |value, &x| value.max(f64::from(x).abs())),
                }
            }
        }
        let score = f64::from(scale) * query * key * (neighbour + rounding + 3e-6);
        let error = value * ((2.0 * score + 1e-5).exp_m1() + 2.0 * rounding);
        expected.iter().map(|&x| Estimate { value: f64::from(x), error }).collect()
    }
}

/// Consecutive tokens of a sequence.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    sequence: usize,
    positions: Range<usize>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Heads {
    pub(crate) kv_heads: usize,
    pub(crate) group: usize,
    pub(crate) head_dim: usize,
}

fn head_norm(random: &mut Random, head_dim: usize) -> Norm {
    Norm { weight: random.values(head_dim, 1.5).into(), epsilon: 1e-6 }
}

/// Of all or of part of a head.
fn rope(random: &mut Random, head_dim: usize) -> Rope {
    let pairs = 1 + random.below(head_dim / 2);
    Rope {
        frequencies: (0..pairs).map(|i| 10_000f32.powf(-(i as f32) / pairs as f32)).collect(),
        magnitude: if random.below(3) == 0 { 1.2 } else { 1.0 },
        style: if random.below(2) == 0 { RopeStyle::Interleaved } else { RopeStyle::Halves },
    }
}

/// Blocks for each sequence, in any order; block 0 stays free.
fn shuffled_blocks(random: &mut Random, lengths: &[usize]) -> Vec<Vec<BlockId>> {
    let counts: Vec<usize> = lengths.iter().map(|length| length.div_ceil(KV_BLOCK_TOKENS)).collect();
    let mut all: Vec<BlockId> = (1..=counts.iter().sum::<usize>() as BlockId).collect();
    random.shuffle(&mut all);
    let mut all = all.into_iter();
    counts.into_iter().map(|count| all.by_ref().take(count).collect()).collect()
}

/// The length of a head as a vector, after its norm.
fn length(head: &[f32], norm: Option<&Norm>) -> f64 {
    let squares: f64 = head.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    match norm {
        None => squares.sqrt(),
        Some(norm) => {
            let factor = (squares / head.len() as f64 + f64::from(norm.epsilon)).sqrt().recip();
            let weighted = head.iter().zip(norm.weight.iter()).map(|(&x, &weight)| f64::from(x * weight) * factor);
            weighted.map(|x| x * x).sum::<f64>().sqrt()
        }
    }
}

pub(crate) fn check(case: &Case, seed: u64) {
    let expected = case.run(&mut reference(), &case.at_once());
    let mut agreement = Agreement::default();
    for mut processor in processors() {
        let estimates = case.estimates(&expected, processor.attention_rounding(case.kv_type));
        let found = case.run(&mut processor.cpu, &case.at_once());
        within(&found, &expected, &estimates, &processor.who);
        let pieces = case.run(&mut processor.cpu, &case.bit_by_bit(&mut Random::new(seed)));
        processor.in_other_steps(&pieces, &found, &expected, &estimates);
        agreement.check(&processor, &[], found);
    }
}

fn kv_types() -> impl Strategy<Value = KvType> {
    proptest::sample::select(vec![KvType::F32, KvType::F16, KvType::BF16, KvType::Q8_0])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ATTENTION_CASES, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn attention_agrees_with_the_reference(
        seed: u64, kv_heads in 1..=3usize, group in 1..=8usize, eighths in 2..=32usize,
        lengths in proptest::collection::vec(1..90usize, 1..=4), kv_type in kv_types(),
    ) {
        let heads = Heads { kv_heads, group, head_dim: 8 * eighths };
        check(&Case::random(seed, heads, lengths, kv_type), seed);
    }
}

/// Several segments of context, where work is shared out within a sequence.
#[test]
fn long_contexts_agree_with_the_reference() {
    for (seed, kv_type) in [(1, KvType::F32), (2, KvType::F16), (3, KvType::BF16), (4, KvType::F16)] {
        let heads = Heads { kv_heads: 2, group: 3, head_dim: 16 };
        check(&Case::random(seed, heads, LONG_TOKENS.to_vec(), kv_type), seed);
    }
}

/// Heads whose size is no multiple of a vector.
#[test]
fn odd_heads_agree_with_the_reference() {
    for (seed, head_dim) in [(1, 2), (2, 20), (3, 30), (4, 80), (5, 100)] {
        let heads = Heads { kv_heads: 2, group: 2, head_dim };
        check(&Case::random(seed, heads, vec![40, 21], KvType::F16), seed);
    }
}

/// What is not a number stays with the sequence that brought it, even in blocks that another one uses next.
#[test]
fn blocks_carry_nothing_over_to_their_next_user() {
    let heads = Heads { kv_heads: 2, group: 2, head_dim: 32 };
    for kv_type in [KvType::F32, KvType::F16, KvType::BF16] {
        let case = Case::random(7, heads, vec![37], kv_type);
        let poison: Vec<f32> = [f32::NAN, f32::INFINITY, f32::MAX, f32::NEG_INFINITY].repeat(case.qkv.len() / 4);
        for mut processor in processors() {
            let backend = &mut processor.cpu;
            let steps = case.bit_by_bit(&mut Random::new(1));
            let clean = case.run(backend, &steps);
            let mut kv = backend.kv_cache(case.cache()).expect("there is memory");
            case.run_in(backend, &mut kv, &poison, &case.at_once());
            let found = case.run_in(backend, &mut kv, &case.qkv, &steps);
            same_bits(&found, &clean, &processor.who);
        }
    }
}
