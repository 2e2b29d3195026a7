//! The KV cache: for each layer, block and key-value head the keys `[head_dim][16 tokens]`, then the values
//! `[16 tokens][head_dim]`, so that scores come out with tokens across lanes and outputs with values across lanes.

use super::memory::{Buffer, Disjoint, Pages, Plain};
use super::simd::{LANES, Simd};
use crate::{BlockId, KV_BLOCK_TOKENS, KernelError, KvShape, KvType};

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
                let reason = "a KV cache of type q8_0 is not there yet on the CPU: choose f16, bf16 or f32".to_owned();
                return Err(KernelError::Shape { reason });
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
pub(super) struct Layer<'a, E: Element> {
    memory: Disjoint<'a, E::Bits>,
    kv_heads: usize,
    padded_dim: usize,
}

impl<'a, E: Element> Layer<'a, E> {
    pub(super) fn new(memory: &'a mut [E::Bits], shape: &KvShape, layer: usize) -> Self {
        let padded_dim = padded(shape.head_dim);
        let len = shape.blocks * shape.kv_heads * head_values(padded_dim);
        let memory = Disjoint::new(&mut memory[layer * len..][..len]);
        Self { memory, kv_heads: shape.kv_heads, padded_dim }
    }

    fn start(&self, block: BlockId, head: usize) -> usize {
        debug_assert!(head < self.kv_heads);
        (block as usize * self.kv_heads + head) * head_values(self.padded_dim)
    }

    /// Keys `[padded_dim][16 tokens]` and values `[16 tokens][padded_dim]` of a head in a block.
    ///
    /// # Safety
    /// Nobody stores into that block and head meanwhile.
    #[inline(always)]
    #[expect(unsafe_code, reason = "threads share one cache")]
    pub(super) unsafe fn head(&self, block: BlockId, head: usize) -> [&[[E::Bits; LANES]]; 2] {
        let start = self.start(block, head);
        // SAFETY: as the caller promises.
        let both = unsafe { self.memory.shared(start..start + head_values(self.padded_dim)) };
        let (keys, values) = both.as_chunks().0.split_at(self.padded_dim);
        [keys, values]
    }

    /// The same, to write to.
    ///
    /// # Safety
    /// Nobody uses that block and head meanwhile.
    #[inline(always)]
    #[expect(unsafe_code, clippy::mut_from_ref, reason = "threads share one cache")]
    pub(super) unsafe fn head_mut(&self, block: BlockId, head: usize) -> [&mut [[E::Bits; LANES]]; 2] {
        let start = self.start(block, head);
        // SAFETY: as the caller promises.
        let both = unsafe { self.memory.part(start..start + head_values(self.padded_dim)) };
        let (keys, values) = both.as_chunks_mut().0.split_at_mut(self.padded_dim);
        [keys, values]
    }
}
