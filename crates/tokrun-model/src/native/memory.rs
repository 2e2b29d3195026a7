//! How much memory the KV cache gets, decided before anything is loaded.

use tokrun_kernels::{KV_BLOCK_TOKENS, KvShape, KvType};

use super::architecture::Architecture;
use crate::{LoadOptions, ModelError, Paging};

/// Sequences that may exist at once where the caller does not say.
pub(super) const SEQUENCES_MAX: usize = 64;

/// The cache of one model.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) shape: KvShape,
    pub(super) paging: Paging,
    /// Longest sequence that fits.
    pub(super) context_tokens: usize,
    /// Where that is less than what was asked for.
    pub(super) note: Option<String>,
}

/// Plans the cache of a model whose weights take `weight_bytes` of the `free_bytes` there are, and are `float32` or not.
///
/// # Errors
/// [`ModelError::Unsupported`] when not even one block fits.
pub(super) fn plan(
    architecture: &Architecture,
    options: &LoadOptions,
    free_bytes: u64,
    weight_bytes: u64,
    float32: bool,
) -> Result<Plan, ModelError> {
    let kv_type = options.kv_type.unwrap_or(if float32 { KvType::F32 } else { KvType::F16 });
    let shape = KvShape {
        layers: architecture.layers.len(),
        kv_heads: architecture.kv_heads,
        head_dim: architecture.head_dim,
        blocks: 0,
        kv_type,
    };
    let block_bytes = shape.block_bytes();
    let sequences = options.sequences_max.unwrap_or(SEQUENCES_MAX).max(1);
    let context_blocks = architecture.context_tokens.div_ceil(KV_BLOCK_TOKENS);
    let wanted = context_blocks.saturating_mul(sequences);
    let budget = match options.kv_cache_bytes {
        Some(bytes) => bytes,
        None => free_bytes.saturating_sub(weight_bytes) / 2,
    };
    // Blocks are numbered in 32 bits.
    let affordable = usize::try_from(budget / block_bytes as u64).unwrap_or(usize::MAX).min(u32::MAX as usize);
    let blocks = if options.kv_cache_bytes.is_some() { affordable } else { wanted.min(affordable) };
    if blocks == 0 {
        let reason = format!(
            "a KV cache of {budget} bytes holds not even {KV_BLOCK_TOKENS} tokens, which take {block_bytes}: \
             free memory, or give it more (--kv-cache-bytes)"
        );
        return Err(ModelError::Unsupported { reason });
    }
    let context_tokens = architecture.context_tokens.min(blocks * KV_BLOCK_TOKENS);
    let note = (context_tokens < architecture.context_tokens).then(|| {
        format!(
            "the context is cut to {context_tokens} of {} tokens: the KV cache has {} bytes (--kv-cache-bytes)",
            architecture.context_tokens,
            blocks * block_bytes
        )
    });
    let shape = KvShape { blocks, ..shape };
    Ok(Plan { shape, paging: Paging { block_tokens: KV_BLOCK_TOKENS, blocks, block_bytes }, context_tokens, note })
}

/// Memory of the host that can be had without pushing others out.
pub(super) fn free_bytes() -> u64 {
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    let limit = system.cgroup_limits().map_or(u64::MAX, |limits| limits.free_memory);
    system.available_memory().min(limit)
}
