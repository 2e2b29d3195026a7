//! Attention over the paged cache: one query head of one token after the other.

use half::{bf16, f16};

use super::{inverse_rms, reserve, shape, soften};
use crate::KernelError;
use crate::backend::{Attention, BlockId, KV_BLOCK_TOKENS, KvShape, KvType, Norm, Rope, RopeStyle};

/// Values that share a scale where the cache is 8-bit.
const Q8_0_VALUES: usize = 32;

/// Keys and values as f32, rounded to what the cache's type can hold.
#[derive(Debug)]
pub struct ReferenceKv {
    shape: KvShape,
    /// `[layers, blocks, KV_BLOCK_TOKENS, kv_heads, head_dim]`.
    pub(super) keys: Vec<f32>,
    pub(super) values: Vec<f32>,
}

impl ReferenceKv {
    pub(super) fn new(kv: KvShape) -> Result<Self, KernelError> {
        let len = [kv.blocks, KV_BLOCK_TOKENS, kv.kv_heads, kv.head_dim]
            .into_iter()
            .try_fold(kv.layers, usize::checked_mul)
            .ok_or_else(|| shape(format!("a KV cache of {} blocks", kv.blocks)))?;
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        reserve(&mut keys, len)?;
        reserve(&mut values, len)?;
        keys.resize(len, 0.0);
        values.resize(len, 0.0);
        Ok(Self { shape: kv, keys, values })
    }

    /// One token: stores its key and value at `position`, then attends with each of its query heads.
    #[expect(clippy::too_many_arguments, reason = "one token of `Backend::attention`, with where it stands")]
    pub(super) fn attend(
        &mut self,
        layer: usize,
        attention: &Attention,
        rope: Option<&Rope>,
        blocks: &[BlockId],
        position: usize,
        qkv: &[f32],
        out: &mut [f32],
    ) {
        let Attention { heads, kv_heads, head_dim, .. } = *attention;
        assert_eq!(qkv.len(), (heads + 2 * kv_heads) * head_dim, "width of queries, keys and values");
        let (queries, rest) = qkv.split_at(heads * head_dim);
        let (keys, values) = rest.split_at(kv_heads * head_dim);
        let (query_norm, key_norm) = attention.head_norms.as_ref().map(|(query, key)| (query, key)).unzip();

        for (kv_head, (key, value)) in keys.chunks_exact(head_dim).zip(values.chunks_exact(head_dim)).enumerate() {
            let key: Vec<f32> = prepared(key, key_norm, rope, position).into_iter().map(|x| x as f32).collect();
            let at = self.place(layer, blocks, position, kv_head);
            let kv_type = self.shape.kv_type;
            self.keys[at..at + head_dim].copy_from_slice(&stored(&key, kv_type));
            self.values[at..at + head_dim].copy_from_slice(&stored(value, kv_type));
        }

        let group = heads / kv_heads;
        for (head, (query, out)) in queries.chunks_exact(head_dim).zip(out.chunks_exact_mut(head_dim)).enumerate() {
            let query = prepared(query, query_norm, rope, position);
            let first = attention.window_tokens.map_or(0, |window| (position + 1).saturating_sub(window));
            let places: Vec<usize> =
                (first..=position).map(|seen| self.place(layer, blocks, seen, head / group)).collect();
            self.mix(&query, &places, attention, out);
        }
    }

    /// The sum of the values at `places`, weighted by the softmax of the query's scores with the keys there.
    fn mix(&self, query: &[f64], places: &[usize], attention: &Attention, out: &mut [f32]) {
        let scores: Vec<f64> = places
            .iter()
            .map(|&at| {
                let key = &self.keys[at..at + query.len()];
                let product: f64 = query.iter().zip(key).map(|(&q, &k)| q * f64::from(k)).sum();
                let score = product * f64::from(attention.scale);
                attention.softcap.map_or(score, |cap| soften(score, cap))
            })
            .collect();
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
        let total: f64 = weights.iter().sum();
        for (i, out) in out.iter_mut().enumerate() {
            let sum: f64 =
                places.iter().zip(&weights).map(|(&at, weight)| weight * f64::from(self.values[at + i])).sum();
            *out = (sum / total) as f32;
        }
    }

    /// Index of the first value of a head at a position.
    fn place(&self, layer: usize, blocks: &[BlockId], position: usize, kv_head: usize) -> usize {
        let KvShape { layers, kv_heads, head_dim, blocks: total, .. } = self.shape;
        let block = blocks[position / KV_BLOCK_TOKENS] as usize;
        assert!(layer < layers && block < total && kv_head < kv_heads, "outside of the KV cache");
        let token = (layer * total + block) * KV_BLOCK_TOKENS + position % KV_BLOCK_TOKENS;
        (token * kv_heads + kv_head) * head_dim
    }
}

/// A query or key head, normalised and turned.
fn prepared(head: &[f32], norm: Option<&Norm>, rope: Option<&Rope>, position: usize) -> Vec<f64> {
    let mut turned: Vec<f64> = head.iter().copied().map(f64::from).collect();
    if let Some(norm) = norm {
        let factor = inverse_rms(head, norm.epsilon);
        for (x, &weight) in turned.iter_mut().zip(norm.weight.iter()) {
            *x *= factor * f64::from(weight);
        }
    }
    if let Some(rope) = rope {
        rotate(&mut turned, rope, position);
    }
    turned
}

pub(super) fn rotate(head: &mut [f64], rope: &Rope, position: usize) {
    let pairs = rope.frequencies.len();
    for (i, &frequency) in rope.frequencies.iter().enumerate() {
        let (first, second) = match rope.style {
            RopeStyle::Interleaved => (2 * i, 2 * i + 1),
            RopeStyle::Halves => (i, i + pairs),
        };
        let (sine, cosine) = (position as f64 * f64::from(frequency)).sin_cos();
        let magnitude = f64::from(rope.magnitude);
        let (a, b) = (head[first], head[second]);
        head[first] = magnitude * (a * cosine - b * sine);
        head[second] = magnitude * (a * sine + b * cosine);
    }
}

/// What a cache of that type gives back. Values are made finite first, so that what one sequence left behind can never
/// disturb the next one that uses the block, not even masked.
fn stored(values: &[f32], kv_type: KvType) -> Vec<f32> {
    let finite = |limit: f32| values.iter().map(move |&x| if x.is_nan() { 0.0 } else { x.clamp(-limit, limit) });
    match kv_type {
        KvType::F32 => finite(f32::MAX).collect(),
        KvType::F16 => finite(f16::MAX.to_f32()).map(|x| f16::from_f32(x).to_f32()).collect(),
        KvType::BF16 => finite(bf16::MAX.to_f32()).map(|x| bf16::from_f32(x).to_f32()).collect(),
        KvType::Q8_0 => {
            let values: Vec<f32> = finite(f16::MAX.to_f32()).collect();
            values.chunks(Q8_0_VALUES).flat_map(eight_bit).collect()
        }
    }
}

fn eight_bit(values: &[f32]) -> Vec<f32> {
    let largest = values.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    let scale = f16::from_f32(largest / 127.0).to_f32();
    let code = |x: f32| if scale == 0.0 { 0.0 } else { (x / scale).round_ties_even().clamp(-127.0, 127.0) };
    values.iter().map(|&x| code(x) * scale).collect()
}
