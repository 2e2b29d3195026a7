//! Attention over the paged cache: keys and values are stored, then each segment of each row's context is summed by a block
//! of its own, then the segments are put together. The rows of prompts take another way (`prompts`).

use super::backend::{Cuda, THREADS};
use super::device::{Device, Kernel};
use super::launches::Arguments;
use super::memory::Buffer;
use super::prompts::{PromptKernel, between};
use super::rows::{CudaRows, checked_len};
use crate::{Attention, KV_BLOCK_TOKENS, KernelError, KvShape, KvType, Norm, Rope, RopeStyle};

/// Segments of a context at most, as kernels/attention.cuh says.
pub(super) const SEGMENTS: usize = 32;
/// The shortest ones.
const SEGMENT_TOKENS_MIN: usize = 64;
/// The largest head of the kernels.
const HEAD_DIM_MAX: usize = 256;
/// Bytes of partial sums that one launch leaves behind, unless a single row has more: rows beyond it take another launch.
const PARTIAL_BYTES: usize = 64 << 20;
/// Threads a block.
const ATTENTION_THREADS: usize = 128;
/// Query heads that share each load of keys and values, as kernels come for them.
const GROUPS: [usize; 3] = [1, 4, 8];
/// Lanes that share a token, eight values each.
const LANES: [usize; 3] = [8, 16, 32];

/// What attention keeps between calls.
#[derive(Debug, Default)]
pub(super) struct Workspace {
    /// `[rows, heads, head_dim]`: queries, normalised and turned.
    queries: Option<Buffer<f32>>,
    /// `[rows, heads, SEGMENTS]`: largest score and sum of the weights.
    partials: Option<Buffer<u64>>,
    /// `[rows, heads, SEGMENTS, head_dim]`
    sums: Option<Buffer<f32>>,
}

/// Keys and values of all layers on the device.
#[derive(Debug)]
pub struct CudaKv {
    shape: KvShape,
    /// `[layers, blocks, kv_heads, keys and values, 16, padded head]`
    values: Buffer<u8>,
    /// Of 8-bit values: `[layers, blocks, kv_heads, keys and values, 16, padded head / 32 rounded up]`.
    scales: Option<Buffer<u16>>,
    kernels: KvKernels,
}

/// The kernels of its type.
#[derive(Clone, Copy, Debug)]
struct KvKernels {
    store: Kernel,
    /// For the lanes that the head takes, and each of [`GROUPS`].
    attend: [Kernel; 3],
    /// For prompts, where the device is free to add in another order.
    prompt: Option<PromptKernel>,
}

impl CudaKv {
    /// With `with_prompts`, prompts are attended on tensor cores.
    pub(super) fn new(device: &Device, shape: KvShape, with_prompts: bool) -> Result<Self, KernelError> {
        let dim = shape.head_dim;
        if dim == 0 || dim > HEAD_DIM_MAX {
            let reason = format!("heads of {dim} values: the CUDA kernels have 1 to {HEAD_DIM_MAX} (use --device cpu)");
            return Err(KernelError::Shape { reason });
        }
        let name = kv_name(shape.kv_type);
        let module = format!("attention_{name}");
        let lanes = LANES.into_iter().find(|lanes| 8 * lanes >= dim).expect("the largest heads have 32 lanes");
        let [one, four, eight] = GROUPS.map(|group| device.kernel(&module, &format!("attend_{name}_{lanes}_{group}")));
        let kernels = KvKernels {
            store: device.kernel(&module, &format!("store_{name}"))?,
            attend: [one?, four?, eight?],
            prompt: if with_prompts { PromptKernel::load(device, shape.kv_type, dim)? } else { None },
        };
        let tokens =
            [2 * KV_BLOCK_TOKENS, shape.kv_heads, shape.blocks].into_iter().try_fold(shape.layers, checked_len)?;
        let padded = dim.next_multiple_of(16);
        let values = device.buffer(checked_len(tokens, padded * value_bytes(shape.kv_type))?)?;
        let scales = match shape.kv_type {
            KvType::Q8_0 => Some(device.buffer(checked_len(tokens, padded.div_ceil(32))?)?),
            KvType::F32 | KvType::F16 | KvType::BF16 => None,
        };
        Ok(Self { shape, values, scales, kernels })
    }

    /// The kernels' `Cache`: one layer.
    pub(super) fn layer<'a>(&self, layer: usize, arguments: Arguments<'a>) -> Arguments<'a> {
        let KvShape { layers, kv_heads, head_dim, blocks, kv_type } = self.shape;
        assert!(layer < layers, "layer {layer} of {layers}");
        let padded = head_dim.next_multiple_of(16);
        let tokens = layer * blocks * kv_heads * 2 * KV_BLOCK_TOKENS;
        let values = self.values.address() + (tokens * padded * value_bytes(kv_type)) as u64;
        let scales =
            self.scales.as_ref().map_or(0, |scales| scales.address() + (2 * tokens * padded.div_ceil(32)) as u64);
        arguments.param().address(values).address(scales).int(kv_heads).int(head_dim).int(padded)
    }
}

/// Segments of contexts of up to so many tokens, at most.
pub(super) const fn segments(tokens: usize) -> usize {
    let shortest = tokens.div_ceil(SEGMENT_TOKENS_MIN);
    if shortest < SEGMENTS { shortest } else { SEGMENTS }
}

const fn kv_name(kv_type: KvType) -> &'static str {
    match kv_type {
        KvType::F32 => "f32",
        KvType::F16 => "f16",
        KvType::BF16 => "bf16",
        KvType::Q8_0 => "q8_0",
    }
}

const fn value_bytes(kv_type: KvType) -> usize {
    match kv_type {
        KvType::F32 => 4,
        KvType::F16 | KvType::BF16 => 2,
        KvType::Q8_0 => 1,
    }
}

/// A rope, and the turns of the current step's rows.
#[derive(Debug)]
pub(super) struct RopeTable {
    rope: Rope,
    frequencies: Option<Buffer<f32>>,
    /// `[rows, pairs]`: cosine and sine.
    angles: Option<Buffer<u64>>,
    /// Whether they are those of the step.
    ready: bool,
}

impl RopeTable {
    pub(super) fn new(rope: Rope) -> Self {
        Self { rope, frequencies: None, angles: None, ready: false }
    }

    /// Another step has begun.
    pub(super) fn forget(&mut self) {
        self.ready = false;
    }
}

impl Cuda {
    pub(super) fn launch_attention(
        &mut self,
        layer: usize,
        attention: &Attention,
        qkv: &CudaRows,
        kv: &CudaKv,
        out: &mut CudaRows,
    ) -> Result<(), KernelError> {
        let Attention { heads, kv_heads, head_dim, .. } = *attention;
        assert_eq!((kv.shape.kv_heads, kv.shape.head_dim), (kv_heads, head_dim), "the cache's heads");
        assert!(heads.is_multiple_of(kv_heads), "{heads} heads cannot share {kv_heads}");
        assert_eq!(qkv.width(), (heads + 2 * kv_heads) * head_dim, "width of queries, keys and values");
        assert_eq!(out.width(), heads * head_dim, "the output's width");
        let rows = self.rows;
        // For the largest step, so that graphs of small ones stay right when larger ones come.
        let rows_max = self.stage.rows();
        let values = checked_len(rows_max, heads * head_dim)?;
        let queries = self.room(|cuda| &mut cuda.attention.queries, values)?;
        self.store(layer, attention, qkv.address(rows), kv, queries)?;

        let row_values = heads * SEGMENTS * head_dim;
        let rows_at_once = (PARTIAL_BYTES / (4 * row_values)).clamp(1, rows_max);
        let sums = self.room(|cuda| &mut cuda.attention.sums, rows_at_once * row_values)?;
        let partials = self.room(|cuda| &mut cuda.attention.partials, rows_at_once * heads * SEGMENTS)?;
        let to = out.address_mut(rows);
        let prompt = kv.kernels.prompt.filter(|_| !self.prompts.is_empty());
        if let Some(kernel) = prompt {
            self.attend_prompts(layer, attention, kernel, kv, (queries, to));
        }
        for run in between(rows, if prompt.is_some() { &self.prompts } else { &[] }) {
            for first in run.clone().step_by(rows_at_once) {
                let part = Part { first, rows: rows_at_once.min(run.end - first), queries, partials, sums };
                self.attend(layer, attention, kv, &part);
                self.combine(attention, &part, to);
            }
        }
        Ok(())
    }

    /// Makes queries and keys ready, and stores keys and values.
    fn store(
        &mut self,
        layer: usize,
        attention: &Attention,
        qkv: u64,
        kv: &CudaKv,
        queries: u64,
    ) -> Result<(), KernelError> {
        let (query_norm, key_norm) = attention.head_norms.as_ref().map(|(query, key)| (query, key)).unzip();
        let weight = |cuda: &mut Self, norm: Option<&Norm>| norm.map_or(Ok(0), |norm| cuda.norm_weight(norm));
        let (query_weight, key_weight) = (weight(self, query_norm)?, weight(self, key_norm)?);
        let epsilon = |norm: Option<&Norm>| norm.map_or(0.0, |norm| norm.epsilon);
        let (angles, pairs, interleaved) = match attention.rope {
            Some(rope) => self.angles(rope.0)?,
            None => (0, 0, false),
        };
        let grid = [attention.heads + 2 * attention.kv_heads, self.rows, 1];
        let arguments = self.launches.add(kv.kernels.store, grid, ATTENTION_THREADS).param().address(qkv);
        let arguments = kv.layer(layer, arguments.param().int(attention.heads));
        let arguments = self.stage.places(0, arguments).param().address(query_weight).address(key_weight);
        let arguments = arguments.float(epsilon(query_norm)).float(epsilon(key_norm)).address(angles);
        arguments.int(pairs).int(usize::from(interleaved)).param().address(queries);
        Ok(())
    }

    /// The turns of the step's rows, computed when a layer first asks: where they lie, how many pairs, whether interleaved.
    fn angles(&mut self, rope: usize) -> Result<(u64, usize, bool), KernelError> {
        let RopeTable { rope, frequencies, angles, ready } = &mut self.ropes[rope];
        let pairs = rope.frequencies.len();
        let rows = self.stage.rows();
        if angles.as_ref().is_none_or(|angles| angles.len() < rows * pairs) {
            // Only ever at the first use in a step, whose launches do not know the old ones yet.
            *angles = Some(self.device.buffer(checked_len(rows, pairs)?)?);
        }
        let frequencies = match frequencies {
            Some(frequencies) => frequencies.address(),
            none => none.insert(self.device.buffer_of(&rope.frequencies)?).address(),
        };
        let at = angles.as_ref().expect("made above").address();
        if !std::mem::replace(ready, true) {
            let grid = [pairs.div_ceil(ATTENTION_THREADS), self.rows, 1];
            let arguments = self.launches.add(self.kernels.rope_angles, grid, ATTENTION_THREADS);
            let arguments = arguments.param().address(self.stage.positions(0)).param().address(frequencies);
            arguments.param().float(rope.magnitude).param().int(pairs).param().address(at);
        }
        Ok((at, pairs, rope.style == RopeStyle::Interleaved))
    }

    fn attend(&mut self, layer: usize, attention: &Attention, kv: &CudaKv, part: &Part) {
        let Attention { heads, kv_heads, head_dim, .. } = *attention;
        let share = heads / kv_heads;
        let group = GROUPS.iter().position(|group| share <= *group).unwrap_or(GROUPS.len() - 1);
        let tiles = share.div_ceil(GROUPS[group]);
        let grid = [self.segments, kv_heads * tiles, part.rows];
        let queries = part.queries + (4 * part.first * heads * head_dim) as u64;
        let arguments = self.launches.add(kv.kernels.attend[group], grid, ATTENTION_THREADS).param().address(queries);
        let arguments = kv.layer(layer, arguments.param().int(heads));
        let arguments = attention.scores(self.stage.places(part.first, arguments));
        arguments.param().address(part.partials).param().address(part.sums);
    }

    fn combine(&mut self, attention: &Attention, part: &Part, out: u64) {
        let Attention { heads, head_dim, window_tokens, .. } = *attention;
        let grid = [heads, part.rows, 1];
        let arguments = self.launches.add(self.kernels.combine, grid, THREADS).param().address(part.partials);
        let arguments = arguments.param().address(part.sums).param().address(self.stage.positions(part.first));
        let arguments = arguments.param().int(window(window_tokens)).param().int(head_dim);
        arguments.param().address(out + (4 * part.first * heads * head_dim) as u64);
    }
}

impl Attention {
    /// The kernels' `Scores`.
    pub(super) fn scores<'a>(&self, arguments: Arguments<'a>) -> Arguments<'a> {
        let arguments = arguments.param().float(self.scale).float(self.softcap.unwrap_or(0.0));
        arguments.int(window(self.window_tokens))
    }
}

/// Rows whose partial sums fit at once, and where everything lies.
struct Part {
    first: usize,
    rows: usize,
    queries: u64,
    partials: u64,
    sums: u64,
}

/// As the kernels want it: 0 is none. Windows that no position reaches the end of are as good as none.
fn window(tokens: Option<usize>) -> usize {
    tokens.filter(|tokens| *tokens < i32::MAX as usize).unwrap_or(0)
}
