//! The KV cache: for each layer, block and key-value head the keys `[head_dim][16 tokens]`, then the values
//! `[16 tokens][head_dim]`, so that scores come out with tokens across lanes and outputs with values across lanes.

mod quantised;

use std::ops::Range;

use super::memory::{Buffer, Disjoint, Pages, Plain};
use super::simd::{Kernel, LANES, Level, Simd};
use crate::{BlockId, KV_BLOCK_TOKENS, KernelError, KvShape, KvType};

pub(super) use quantised::QuantisedLayer;

const _: () = assert!(KV_BLOCK_TOKENS == LANES, "a block is one vector wide");

/// Keys and values of all layers, taken from the system as they are written.
pub struct CpuKv {
    pub(super) shape: KvShape,
    pub(super) cache: Cache,
}

pub(super) enum Cache {
    F32(Buffer<f32>),
    F16(Buffer<u16>),
    BF16(Buffer<u16>),
    Q8_0 { codes: Buffer<i8>, scales: Buffer<u16> },
}

impl std::fmt::Debug for CpuKv {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CpuKv").field("shape", &self.shape).finish_non_exhaustive()
    }
}

impl CpuKv {
    pub(super) fn new(shape: KvShape) -> Result<Self, KernelError> {
        let KvShape { layers, kv_heads, blocks, .. } = shape;
        let head = head_values(padded(shape.head_dim));
        let len = [kv_heads, blocks, layers].into_iter().try_fold(head, usize::checked_mul);
        let len = len.ok_or(KernelError::OutOfMemory { bytes: usize::MAX })?;
        let cache = match shape.kv_type {
            KvType::F32 => Cache::F32(Buffer::new(len, Pages::Normal)?),
            KvType::F16 => Cache::F16(Buffer::new(len, Pages::Normal)?),
            KvType::BF16 => Cache::BF16(Buffer::new(len, Pages::Normal)?),
            KvType::Q8_0 => {
                let scales = len / head * quantised::head_scales(padded(shape.head_dim));
                Cache::Q8_0 { codes: Buffer::new(len, Pages::Normal)?, scales: Buffer::new(scales, Pages::Normal)? }
            }
        };
        Ok(Self { shape, cache })
    }
}

/// Values of a head in the cache: whole vectors, those past the head's own zero.
pub(super) fn padded(head_dim: usize) -> usize {
    head_dim.next_multiple_of(LANES)
}

/// Values of one head in one block: keys and values.
fn head_values(padded_dim: usize) -> usize {
    2 * KV_BLOCK_TOKENS * padded_dim
}

/// How numbers are stored.
pub(super) trait Element: Send + Sync + 'static {
    /// What the memory holds.
    type Bits: Plain;
    /// The largest finite number.
    const LARGEST: f32;
    const ZERO: Self::Bits;

    fn load<S: Simd>(simd: S, from: &[Self::Bits; LANES]) -> S::F32;
    /// Rounds to the nearest; for finite values.
    fn store<S: Simd>(simd: S, x: S::F32, to: &mut [Self::Bits; LANES]);
}

macro_rules! element {
    ($name:ident, $bits:ty, $largest:expr, $load:ident, $store:ident) => {
        pub(super) struct $name;

        impl Element for $name {
            type Bits = $bits;
            const LARGEST: f32 = $largest;
            const ZERO: $bits = 0 as $bits;

            #[inline(always)]
            fn load<S: Simd>(simd: S, from: &[$bits; LANES]) -> S::F32 {
                simd.$load(from)
            }

            #[inline(always)]
            fn store<S: Simd>(simd: S, x: S::F32, to: &mut [$bits; LANES]) {
                simd.$store(x, to);
            }
        }
    };
}
element!(F32, f32, f32::MAX, load, store);
element!(F16, u16, 65_504.0, load_f16, store_f16);
// All ones but the last of the exponent and in the mantissa.
element!(BF16, u16, f32::from_bits(0x7f7f_0000), load_bf16, store_bf16);

/// One layer of a cache, as the threads of a job share it.
pub(super) trait Storage: Sync {
    /// What attention reads.
    type Element: Element;

    /// Vectors that [`read`](Self::read) needs to bring a head in a block into the form that attention reads.
    fn vectors_to_expand(&self) -> usize;

    /// Keys `[dim][16 tokens]` and values `[16 tokens][dim]` of a head in a block; `expanded` is room for them, if they
    /// are not stored so.
    ///
    /// # Safety
    /// Nobody stores into that block and head meanwhile.
    #[expect(unsafe_code, reason = "threads share one cache")]
    unsafe fn read<'a>(
        &'a self,
        level: Level,
        block: BlockId,
        head: usize,
        expanded: &'a mut [[f32; LANES]],
    ) -> [&'a [Vector<Self::Element>]; 2];

    /// Stores key and value, `[dim]` each, of token number `token` of a block. They are made finite first: what one
    /// sequence left behind must never disturb the next one that uses the block, not even masked.
    ///
    /// # Safety
    /// Nobody uses that block and head meanwhile.
    #[expect(unsafe_code, reason = "threads share one cache")]
    unsafe fn store(&self, level: Level, place: (BlockId, usize, usize), key: &mut [f32], value: &mut [f32]);
}

/// 16 numbers, as they are stored.
pub(super) type Vector<E> = [<E as Element>::Bits; LANES];

/// A layer whose numbers are stored one by one.
pub(super) struct Layer<'a, E: Element> {
    memory: Disjoint<'a, E::Bits>,
    kv_heads: usize,
    dim: usize,
}

impl<'a, E: Element> Layer<'a, E> {
    pub(super) fn new(memory: &'a mut [E::Bits], shape: &KvShape, layer: usize) -> Self {
        let dim = padded(shape.head_dim);
        let len = shape.blocks * shape.kv_heads * head_values(dim);
        Self { memory: Disjoint::new(&mut memory[layer * len..][..len]), kv_heads: shape.kv_heads, dim }
    }

    fn values(&self, block: BlockId, head: usize) -> Range<usize> {
        let start = (block as usize * self.kv_heads + head) * head_values(self.dim);
        start..start + head_values(self.dim)
    }
}

impl<E: Element> Storage for Layer<'_, E> {
    type Element = E;

    fn vectors_to_expand(&self) -> usize {
        0
    }

    #[expect(unsafe_code, reason = "threads share one cache")]
    unsafe fn read<'a>(
        &'a self,
        _: Level,
        block: BlockId,
        head: usize,
        _: &'a mut [[f32; LANES]],
    ) -> [&'a [Vector<E>]; 2] {
        // SAFETY: as the caller promises.
        let both = unsafe { self.memory.shared(self.values(block, head)) };
        let (keys, values) = both.as_chunks().0.split_at(self.dim);
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
        // SAFETY: as the caller promises.
        let both = unsafe { self.memory.part(self.values(block, head)) };
        let (keys, values) = both.as_chunks_mut().0.split_at_mut(self.dim);
        level.run(StoreToken::<E> { token, key, value, keys, values });
    }
}

/// Stores the key and the value of one token in a block.
struct StoreToken<'a, E: Element> {
    /// Its place in the block.
    token: usize,
    /// `[dim]`
    key: &'a mut [f32],
    /// `[dim]`
    value: &'a mut [f32],
    /// `[dim][16 tokens]`
    keys: &'a mut [[E::Bits; LANES]],
    /// `[16 tokens][dim]`
    values: &'a mut [[E::Bits; LANES]],
}

impl<E: Element> Kernel for StoreToken<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        make_finite(self.key, E::LARGEST);
        make_finite(self.value, E::LARGEST);
        let mut column = [E::ZERO; LANES];
        for (part, keys) in self.key.as_chunks().0.iter().zip(self.keys.chunks_exact_mut(LANES)) {
            E::store(simd, simd.load(part), &mut column);
            for (bits, tokens) in column.iter().zip(keys) {
                tokens[self.token] = *bits;
            }
        }
        let vectors = self.value.len() / LANES;
        for (part, to) in self.value.as_chunks().0.iter().zip(&mut self.values[self.token * vectors..][..vectors]) {
            E::store(simd, simd.load(part), to);
        }
    }
}

#[inline(always)]
fn make_finite(values: &mut [f32], largest: f32) {
    for x in values {
        *x = if x.is_nan() { 0.0 } else { x.clamp(-largest, largest) };
    }
}
