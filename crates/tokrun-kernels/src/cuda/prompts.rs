//! Attention of prompts on tensor cores: what `kernels/prompts.cuh` needs to be launched.

use std::ops::Range;

use super::attention::CudaKv;
use super::backend::Cuda;
use super::device::{Device, Kernel};
use crate::{Attention, KernelError, KvType, Step};

/// Spans of fewer rows than this are attended row by row: their context is cut into segments, which fill a card better.
pub(super) const PROMPT_ROWS_MIN: usize = 16;
/// The largest heads of each kernel.
const DIMS: [usize; 4] = [64, 96, 128, 256];
/// Threads a block.
const THREADS: usize = 128;

/// The kernel of a type of cache and a size of heads, and what its blocks need.
#[derive(Clone, Copy, Debug)]
pub(super) struct PromptKernel {
    kernel: Kernel,
    /// Query heads of rows that a block works on.
    lines: usize,
    shared_bytes: usize,
}

impl PromptKernel {
    /// That of a cache; there is none for f32, which tensor cores would round.
    pub(super) fn load(device: &Device, kv_type: KvType, head_dim: usize) -> Result<Option<Self>, KernelError> {
        let name = match kv_type {
            KvType::F32 => return Ok(None),
            KvType::F16 => "f16",
            KvType::BF16 => "bf16",
            KvType::Q8_0 => "q8_0",
        };
        let dim = DIMS.into_iter().find(|dim| head_dim <= *dim).expect("the cache was refused otherwise");
        // The kernels' `PromptShape`.
        let (lines, tokens) = match dim {
            64 => (128, 64),
            96 | 128 => (128, 48),
            _ => (64, 32),
        };
        let kernel = device.kernel(&format!("prompts_{name}"), &format!("prompt_{name}_{dim}"))?;
        Ok(Some(Self { kernel, lines, shared_bytes: (lines + 2 * tokens) * (dim / 8 + 1) * 16 }))
    }
}

/// The rows of a step that belong to prompts: spans of many rows.
pub(super) fn prompts(step: &Step) -> impl Iterator<Item = Range<usize>> {
    step.spans.iter().map(|span| span.rows.clone()).filter(|rows| rows.len() >= PROMPT_ROWS_MIN)
}

/// What of `0..rows` is between these ranges, which are in order.
pub(super) fn between(rows: usize, ranges: &[Range<usize>]) -> Vec<Range<usize>> {
    let starts = std::iter::once(0).chain(ranges.iter().map(|range| range.end));
    let ends = ranges.iter().map(|range| range.start).chain([rows]);
    starts.zip(ends).map(|(start, end)| start..end).filter(|range| !range.is_empty()).collect()
}

impl Cuda {
    /// Attention of all prompts of the step, to `out`.
    pub(super) fn attend_prompts(
        &mut self,
        layer: usize,
        attention: &Attention,
        PromptKernel { kernel, lines, shared_bytes }: PromptKernel,
        kv: &CudaKv,
        (queries, out): (u64, u64),
    ) {
        let Attention { heads, kv_heads, .. } = *attention;
        let share = heads / kv_heads;
        let tiles = self.prompts.iter().map(|rows| (rows.len() * share).div_ceil(lines)).sum();
        let arguments = self.launches.add_with_shared(kernel, [tiles, kv_heads, 1], THREADS, shared_bytes);
        let arguments = kv.layer(layer, arguments.param().address(queries).param().int(heads));
        let arguments = attention.scores(self.stage.places(0, arguments));
        arguments.param().address(self.stage.prompts()).param().address(out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Span;

    #[test]
    fn rows_are_of_prompts_or_between_them() {
        let mut step = Step::default();
        for count in [1, 16, 40, 15, 1, 17] {
            let first = step.tokens.len();
            step.tokens.resize(first + count, 0);
            step.spans.push(Span { rows: first..first + count, start: 0, blocks: Vec::new() });
        }
        let prompts: Vec<_> = prompts(&step).collect();
        assert_eq!(prompts, [1..17, 17..57, 73..90]);
        assert_eq!(between(90, &prompts), [0..1, 57..73]);
        assert_eq!(between(91, &prompts), [0..1, 57..73, 90..91]);
        assert_eq!(between(3, &[]).first(), Some(&(0..3)));
    }
}
