//! How much memory a model takes, and what the KV cache gets, decided before anything is loaded.

use tokrun_kernels::cuda::{self, CudaError};
use tokrun_kernels::{KV_BLOCK_TOKENS, KernelError, KvShape, KvType};

use super::architecture::Architecture;
use super::decoder::Room;
use super::sources::Sources;
use crate::{LoadOptions, MemoryPlan, ModelError, ModelInfo, Paging};

/// Sequences that may exist at once where the caller does not say.
const SEQUENCES_MAX: usize = 64;
/// Rows of a step at most, beside one for each sequence: longer ones are cut, which changes no result.
const PREFILL_ROWS: usize = 512;
/// What the logits of a step take at most, unless the sequences have more.
const LOGITS_BYTES: usize = 64 << 20;

/// Where a model is to be computed.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) device: String,
    pub(super) free_bytes: u64,
    pub(super) total_bytes: u64,
    /// A card's memory: taken when it is asked for, and used by nobody else. The host's is taken when it is written to, and
    /// others need some too.
    pub(super) is_card: bool,
}

/// What is loaded, and how.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) memory: MemoryPlan,
    pub(super) shape: KvShape,
    pub(super) paging: Paging,
    pub(super) sequences_max: usize,
    pub(super) room: Room,
    /// Where the context is less than what was asked for.
    pub(super) note: Option<String>,
}

impl Place {
    /// Memory of the host that can be had without pushing others out.
    pub(super) fn host() -> Self {
        let mut system = sysinfo::System::new();
        system.refresh_memory();
        let limits = system.cgroup_limits();
        let (free, total) = limits.map_or((u64::MAX, u64::MAX), |limits| (limits.free_memory, limits.total_memory));
        Self {
            device: "cpu".to_owned(),
            free_bytes: system.available_memory().min(free),
            total_bytes: system.total_memory().min(total),
            is_card: false,
        }
    }

    /// That of a CUDA device.
    ///
    /// # Errors
    /// When there is no such device.
    pub(super) fn cuda(ordinal: usize) -> Result<Self, ModelError> {
        let machine = cuda::probe().map_err(|reason| KernelError::from(CudaError::from(reason)))?;
        let Some(card) = machine.devices.get(ordinal) else {
            return Err(KernelError::from(CudaError::NoSuchDevice { ordinal, devices: machine.devices.len() }).into());
        };
        Ok(Self {
            device: format!("cuda:{ordinal}"),
            free_bytes: card.memory_free_bytes as u64,
            total_bytes: card.memory_total_bytes as u64,
            is_card: true,
        })
    }
}

/// Plans a model on a place.
///
/// # Errors
/// [`ModelError::DoesNotFit`], with what would.
pub(super) fn plan(
    architecture: &Architecture,
    sources: &Sources<'_>,
    info: &ModelInfo,
    options: &LoadOptions,
    place: Place,
) -> Result<Plan, ModelError> {
    let sequences_max = options.sequences_max.unwrap_or(SEQUENCES_MAX).max(1);
    let room = room(architecture, sequences_max);
    let workspace_bytes = workspace_bytes(architecture, room, place.is_card);
    let weight_bytes = if options.fp8 {
        sources.matrices().into_iter().map(|matrix| matrix.loaded_bytes(place.is_card)).sum()
    } else {
        loaded_bytes(info, place.is_card)
    };
    let free_bytes = options.memory_bytes.map_or(place.free_bytes, |bytes| bytes.min(place.free_bytes));
    let refuse = |reason: String| Err(ModelError::DoesNotFit { device: place.device.clone(), reason });
    let Some(left) = free_bytes.checked_sub(weight_bytes.saturating_add(workspace_bytes)) else {
        return refuse(format!(
            "{weight_bytes} bytes of weights and {workspace_bytes} of workspace do not fit into the {free_bytes} that {}; {}",
            if free_bytes < place.free_bytes { "it may take" } else { "are free" },
            smaller(info, free_bytes.saturating_sub(workspace_bytes))
        ));
    };
    let kv_type = options.kv_type.unwrap_or(if info.dtype == "F32" { KvType::F32 } else { KvType::F16 });
    let shape = KvShape {
        layers: architecture.layers.len(),
        kv_heads: architecture.kv_heads,
        head_dim: architecture.head_dim,
        blocks: 0,
        kv_type,
    };
    let block_bytes = shape.block_bytes();
    let budget = match options.kv_cache_bytes {
        Some(bytes) if place.is_card && bytes > left => {
            return refuse(format!(
                "a KV cache of {bytes} bytes does not fit beside {weight_bytes} of weights and {workspace_bytes} of \
                 workspace; --kv-cache-bytes {left} would"
            ));
        }
        Some(bytes) => bytes,
        // Drivers take some memory too, and give it in large pieces.
        None if place.is_card => left / 10 * 9,
        None => left / 2,
    };
    // Blocks are numbered in 32 bits.
    let affordable = usize::try_from(budget / block_bytes as u64).unwrap_or(usize::MAX).min(u32::MAX as usize);
    let wanted = architecture.context_tokens.div_ceil(KV_BLOCK_TOKENS).saturating_mul(sequences_max);
    let blocks = if options.kv_cache_bytes.is_some() { affordable } else { wanted.min(affordable) };
    if blocks == 0 {
        return refuse(format!(
            "a KV cache of {budget} bytes holds not even {KV_BLOCK_TOKENS} tokens, which take {block_bytes}; \
             free memory, or give it more (--kv-cache-bytes)"
        ));
    }
    let context_tokens = architecture.context_tokens.min(blocks * KV_BLOCK_TOKENS);
    let note = (context_tokens < architecture.context_tokens).then(|| {
        format!(
            "the context is cut to {context_tokens} of {} tokens: the KV cache has {} bytes (--kv-cache-bytes)",
            architecture.context_tokens,
            blocks * block_bytes
        )
    });
    let memory = MemoryPlan {
        device: place.device,
        free_bytes,
        total_bytes: place.total_bytes,
        weight_bytes,
        workspace_bytes,
        kv_cache_bytes: (blocks * block_bytes) as u64,
        kv_type,
        cache_tokens: blocks * KV_BLOCK_TOKENS,
        context_tokens,
    };
    let paging = Paging { block_tokens: KV_BLOCK_TOKENS, blocks, block_bytes };
    Ok(Plan { memory, shape: KvShape { blocks, ..shape }, paging, sequences_max, room, note })
}

/// What the weights take once they are loaded. Processors have no 8-bit floats, and widen them to f32; cards keep a scale for
/// each 128 of them.
fn loaded_bytes(info: &ModelInfo, is_card: bool) -> u64 {
    match (&*info.dtype, is_card) {
        ("FP8" | "F8_E4M3", false) => info.weight_bytes.saturating_mul(4),
        ("F8_E4M3", true) => info.weight_bytes + info.weight_bytes / 32,
        _ => info.weight_bytes,
    }
}

fn room(architecture: &Architecture, sequences_max: usize) -> Room {
    let rows = PREFILL_ROWS + sequences_max;
    let logits = (LOGITS_BYTES / (4 * architecture.vocab_size)).max(sequences_max).min(rows);
    Room { rows, logits }
}

/// What is computed on the way, counted as f32: rows of each buffer of a step. On a card, the segments of attention's
/// context lie beside each other too.
fn workspace_bytes(architecture: &Architecture, room: Room, is_card: bool) -> u64 {
    let (hidden, queries) = (architecture.hidden, architecture.query_width());
    let feed_forward = architecture.experts.map_or(0, |experts| experts.per_token * experts.feed_forward);
    let segments = if is_card { CARD_SEGMENTS } else { 0 };
    let widths = [
        3 * hidden,
        (3 + segments) * queries,
        2 * architecture.key_width(),
        2 * architecture.feed_forward.max(feed_forward),
    ];
    let row_values: usize = widths.iter().sum();
    let fixed = if is_card { CARD_FIXED_BYTES } else { 0 };
    fixed + 4 * (room.rows * row_values + room.logits * (hidden + architecture.vocab_size)) as u64
}

/// Kernels, graphs, copies of vectors, and what is lost where a driver gives memory in large pieces.
const CARD_FIXED_BYTES: u64 = 64 << 20;

/// Segments of context that a row's attention is usually cut into.
const CARD_SEGMENTS: usize = 8;

/// What would fit into so many bytes.
fn smaller(info: &ModelInfo, bytes: u64) -> String {
    let bits = bytes as f64 * 8.0 / info.parameters.max(1) as f64;
    if bits < 2.0 {
        return "choose a smaller model, or a device with more memory".to_owned();
    }
    format!("weights of at most {bits:.1} bits each would (Q4_0 has 4.5), or a smaller model")
}
