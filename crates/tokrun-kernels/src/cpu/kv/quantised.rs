//! An 8-bit cache: codes, and a scale for each 32 values of a head. Attention reads it through a copy in f32 that fits into
//! the second cache.

use std::ops::Range;

use half::f16;

use super::super::memory::Disjoint;
use super::super::simd::{Kernel, LANES, Level, Simd};
use super::{Element, F16, F32, Storage, head_values, make_finite, padded};
use crate::{BlockId, KV_BLOCK_TOKENS, KvShape};

/// Values that share a scale.
const GROUP: usize = 32;
/// The largest code.
const CODE_MAX: f32 = 127.0;

/// Scales of one head in one block: of keys `[groups][16 tokens]`, then of values `[16 tokens][groups]`.
pub(super) fn head_scales(dim: usize) -> usize {
    2 * KV_BLOCK_TOKENS * dim.div_ceil(GROUP)
}

/// One layer.
pub(in super::super) struct QuantisedLayer<'a> {
    codes: Disjoint<'a, i8>,
    scales: Disjoint<'a, u16>,
    kv_heads: usize,
    dim: usize,
}

impl<'a> QuantisedLayer<'a> {
    pub(in super::super) fn new(codes: &'a mut [i8], scales: &'a mut [u16], shape: &KvShape, layer: usize) -> Self {
        let dim = padded(shape.head_dim);
        let heads = shape.blocks * shape.kv_heads;
        let (code_count, scale_count) = (heads * head_values(dim), heads * head_scales(dim));
        Self {
            codes: Disjoint::new(&mut codes[layer * code_count..][..code_count]),
            scales: Disjoint::new(&mut scales[layer * scale_count..][..scale_count]),
            kv_heads: shape.kv_heads,
            dim,
        }
    }

    /// Where the codes and the scales of a head in a block lie.
    fn place(&self, block: BlockId, head: usize) -> (Range<usize>, Range<usize>) {
        let index = block as usize * self.kv_heads + head;
        let range = |count: usize| index * count..(index + 1) * count;
        (range(head_values(self.dim)), range(head_scales(self.dim)))
    }
}

impl Storage for QuantisedLayer<'_> {
    type Element = F32;

    fn vectors_to_expand(&self) -> usize {
        head_values(self.dim) / LANES
    }

    #[expect(unsafe_code, reason = "threads share one cache")]
    unsafe fn read<'a>(
        &'a self,
        level: Level,
        block: BlockId,
        head: usize,
        expanded: &'a mut [[f32; LANES]],
    ) -> [&'a [[f32; LANES]]; 2] {
        let (codes, scales) = self.place(block, head);
        // SAFETY: as the caller promises.
        let codes = unsafe { self.codes.shared(codes) };
        // SAFETY: as the caller promises.
        let scales = unsafe { self.scales.shared(scales) };
        level.run(Expand { codes, scales, dim: self.dim, to: expanded });
        let (keys, values) = expanded.split_at(self.dim);
        [keys, values]
    }

    #[expect(unsafe_code, reason = "threads share one cache")]
    unsafe fn store(
        &self,
        level: Level,
        (block, token, head): (BlockId, usize, usize),
        key: &mut [f32],
        value: &mut [f32],
    ) {
        let (codes, scales) = self.place(block, head);
        // SAFETY: as the caller promises.
        let codes = unsafe { self.codes.part(codes) };
        // SAFETY: as the caller promises.
        let scales = unsafe { self.scales.part(scales) };
        level.run(Quantise { token, key, value, codes, scales });
    }
}

/// Codes and scales of a head in a block, as numbers.
struct Expand<'a> {
    codes: &'a [i8],
    scales: &'a [u16],
    dim: usize,
    /// Keys `[dim][16 tokens]`, then values `[16 tokens][dim]`.
    to: &'a mut [[f32; LANES]],
}

impl Kernel for Expand<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let groups = self.dim.div_ceil(GROUP);
        let (key_scales, value_scales) = self.scales.split_at(groups * LANES);
        let (keys, values) = self.to.split_at_mut(self.dim);
        let (key_codes, value_codes) = self.codes.as_chunks().0.split_at(self.dim);
        for (d, (codes, key)) in key_codes.iter().zip(keys).enumerate() {
            let scales = simd.load_f16(&key_scales.as_chunks().0[d / GROUP]);
            simd.store(simd.mul(simd.load_i8(codes), scales), key);
        }
        let vectors = self.dim / LANES;
        for (token, values) in values.chunks_exact_mut(vectors).enumerate() {
            for (i, value) in values.iter_mut().enumerate() {
                let scale = f16::from_bits(value_scales[token * groups + i * LANES / GROUP]).to_f32();
                let codes = simd.load_i8(&value_codes[token * vectors + i]);
                simd.store(simd.mul(codes, simd.splat(scale)), value);
            }
        }
    }
}

/// Stores the key and the value of one token.
struct Quantise<'a> {
    token: usize,
    /// `[dim]`
    key: &'a mut [f32],
    /// `[dim]`
    value: &'a mut [f32],
    codes: &'a mut [i8],
    scales: &'a mut [u16],
}

impl Kernel for Quantise<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let dim = self.key.len();
        let groups = dim.div_ceil(GROUP);
        // A scale must be finite in f16.
        make_finite(self.key, F16::LARGEST);
        make_finite(self.value, F16::LARGEST);
        let (key_codes, value_codes) = self.codes.split_at_mut(dim * LANES);
        let (key_scales, value_scales) = self.scales.split_at_mut(groups * LANES);
        for (group, values) in self.key.chunks(GROUP).enumerate() {
            let scale = scale_of(values);
            key_scales[group * LANES + self.token] = scale.to_bits();
            for (d, x) in values.iter().enumerate() {
                key_codes[(group * GROUP + d) * LANES + self.token] = code(*x, scale.to_f32());
            }
        }
        for (group, values) in self.value.chunks(GROUP).enumerate() {
            let scale = scale_of(values);
            value_scales[self.token * groups + group] = scale.to_bits();
            for (d, x) in values.iter().enumerate() {
                value_codes[self.token * dim + group * GROUP + d] = code(*x, scale.to_f32());
            }
        }
    }
}

#[inline(always)]
fn scale_of(values: &[f32]) -> f16 {
    f16::from_f32(values.iter().fold(0.0f32, |largest, x| largest.max(x.abs())) / CODE_MAX)
}

#[inline(always)]
fn code(x: f32, scale: f32) -> i8 {
    // Values that are all next to 0 have a scale of 0.
    if scale == 0.0 { 0 } else { (x / scale).round_ties_even().clamp(-CODE_MAX, CODE_MAX) as i8 }
}
