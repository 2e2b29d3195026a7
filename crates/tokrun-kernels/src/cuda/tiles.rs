//! Products on tensor cores: what `kernels/tiles.cuh` needs to be launched.

use super::backend::{Cuda, THREADS};
use super::device::{Device, Kernel};
use super::launches::Arguments;
use super::matrix::Matrix;
use super::rows::CudaEncoded;
use crate::{KernelError, WeightType};

/// Steps of fewer rows than this run on the kernels of few rows, which read weights once for up to eight.
const ROWS_MIN: usize = 9;
/// Rows of the input that a block works on, as kernels come for them.
const TILE_ROWS: [usize; 4] = [16, 32, 64, 128];
/// Those that kernels of every type come for.
const COMMON: usize = 3;
/// Rows of the matrix a block, unless several parts of the columns share it.
const TILE_OUTPUTS: usize = 128;
/// Steps of 32 bytes, of each row and part, that are in shared memory at once.
const STAGE_STEPS: usize = 4;
/// Floats between the finished sums of two rows of the input.
const SUMS_STRIDE: usize = TILE_OUTPUTS + 4;

/// The kernels of a weight type, and what their blocks need.
#[derive(Clone, Copy, Debug)]
pub(super) struct TileKernels {
    /// How many of [`TILE_ROWS`] there are.
    heights: usize,
    /// For each of them; what is left over repeats the last one.
    linear: [Kernel; 4],
    gated: [Kernel; 4],
    /// Columns of a step of 32 bytes.
    step_columns: usize,
    /// The kernels' `Stage`.
    stage_bytes: usize,
}

/// Rows of the input that share a matrix: one after the other, or as they are grouped by their experts.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Grouped {
    /// Matrices, one an expert.
    pub(super) experts: u64,
    /// `[tiles]`: expert, first pair and count.
    pub(super) tiles: u64,
    /// `[pairs]`
    pub(super) order: u64,
    /// Pairs an input row.
    pub(super) ranks: usize,
}

/// Which kernel of each type, and how many tiles the input is cut into.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    which: usize,
    pub(super) tiles: usize,
}

impl Cut {
    /// Of so many rows, for the kernels of a type.
    pub(super) fn of_rows(rows: usize, kernels: &TileKernels) -> Self {
        Self::among(kernels.heights, rows)
    }

    fn among(heights: usize, rows: usize) -> Self {
        let which = TILE_ROWS[..heights].iter().position(|tile| rows <= *tile).unwrap_or(heights - 1);
        Self { which, tiles: rows.div_ceil(TILE_ROWS[which]) }
    }

    /// Of pairs that are spread over experts anyhow: each has an unfilled tile at most. For the kernels of any type.
    pub(super) fn of_pairs(pairs: usize, experts: usize) -> Self {
        let Self { which, .. } = Self::among(COMMON, pairs.div_ceil(experts));
        Self { which, tiles: pairs / TILE_ROWS[which] + experts.min(pairs) }
    }

    /// Rows of a tile.
    pub(super) fn rows(self) -> usize {
        TILE_ROWS[self.which]
    }
}

impl TileKernels {
    /// Those of a type; there are none for f32, whose products tensor cores would round.
    pub(super) fn load(device: &Device, weight_type: WeightType) -> Result<Option<Self>, KernelError> {
        // Planes of unpacked weights, and the scales of a step in each row of the matrix and of the input.
        let (planes, scales) = match weight_type {
            WeightType::F32 => return Ok(None),
            WeightType::BF16 | WeightType::FP8 => (1, 0),
            WeightType::F16 => (2, 0),
            WeightType::Q4_0 | WeightType::Q5_0 | WeightType::Q8_0 => (1, 1 + 1),
            WeightType::IQ4_NL | WeightType::IQ4_XS | WeightType::MXFP4 => (1, 1 + 1),
            WeightType::Q4_1 | WeightType::Q5_1 | WeightType::Q4_K | WeightType::Q5_K => (1, 2 + 2),
            WeightType::Q3_K | WeightType::Q6_K => (1, 2 + 1),
            WeightType::Q2_K => (1, 4 + 3),
        };
        let slots = TILE_OUTPUTS * STAGE_STEPS;
        let scale_bytes = if scales == 0 { 32 } else { 4 * slots * scales };
        let name = weight_type.name().to_ascii_lowercase();
        let halves = matches!(weight_type, WeightType::Q2_K | WeightType::Q3_K | WeightType::Q6_K);
        let heights = if halves { COMMON } else { TILE_ROWS.len() };
        let kernels = |operation: &str| -> Result<[Kernel; 4], KernelError> {
            let kernel =
                |rows: usize| device.kernel(&format!("tiles_{name}"), &format!("{operation}_tile_{name}_{rows}"));
            let [a, b, c, d] = TILE_ROWS.map(|rows| kernel(rows.min(TILE_ROWS[heights - 1])));
            Ok([a?, b?, c?, d?])
        };
        Ok(Some(Self {
            heights,
            linear: kernels("linear")?,
            gated: kernels("gated")?,
            step_columns: if scales == 0 { 16 } else { 32 },
            stage_bytes: 32 * slots * (planes + 1) + scale_bytes,
        }))
    }

    fn shared_bytes(&self, cut: Cut) -> usize {
        (2 * self.stage_bytes).max(4 * SUMS_STRIDE * cut.rows())
    }

    /// How many parts of the columns are added up by warps of their own: more where there are few blocks and many columns,
    /// as long as the input of a stage fits.
    fn parts(&self, blocks: impl Fn(usize) -> usize, columns: usize, most: usize, enough: usize) -> usize {
        let steps = columns.div_ceil(self.step_columns);
        let mut parts = 1;
        while 2 * parts <= most && blocks(parts) < enough && steps >= 2 * STAGE_STEPS * parts {
            parts *= 2;
        }
        parts
    }
}

impl Cuda {
    /// Whether a step of so many rows goes through tensor cores.
    pub(super) fn on_tensor_cores(&self, rows: usize) -> bool {
        !self.options.deterministic && rows >= ROWS_MIN
    }

    /// Products of a matrix, to `to`, which has `stride` values a row.
    #[expect(clippy::too_many_arguments, reason = "what a product consists of")]
    pub(super) fn multiply_tiles(
        &mut self,
        kernels: TileKernels,
        matrix: &Matrix,
        (cut, grouped): (Cut, Grouped),
        input: &CudaEncoded,
        adds: bool,
        to: u64,
        stride: usize,
    ) {
        let blocks = |parts: usize| matrix.rows.div_ceil(TILE_OUTPUTS / parts) * cut.tiles;
        let most = TILE_OUTPUTS / cut.rows();
        let parts = kernels.parts(blocks, matrix.columns, most, self.blocks_enough());
        let (kernel, shared) = (kernels.linear[cut.which], kernels.shared_bytes(cut));
        let arguments = self.launches.add_with_shared(kernel, [blocks(parts), 1, 1], THREADS, shared);
        let arguments = tile_arguments(arguments, matrix, (cut, grouped), input, parts);
        arguments.param().address(to).param().int(stride).param().int(usize::from(adds));
    }

    /// Hidden values of a joined gate and up, encoded.
    pub(super) fn gate_tiles(
        &mut self,
        kernels: TileKernels,
        matrix: &Matrix,
        (cut, grouped): (Cut, Grouped),
        input: &CudaEncoded,
        activation: usize,
        out: &CudaEncoded,
    ) {
        let blocks = |parts: usize| (matrix.rows / 2).div_ceil(TILE_OUTPUTS / 2 / parts) * cut.tiles;
        // The encoding of 32 hidden values needs all of them in a block.
        let most = (TILE_OUTPUTS / cut.rows()).min(2);
        let parts = kernels.parts(blocks, matrix.columns, most, self.blocks_enough());
        let (kernel, shared) = (kernels.gated[cut.which], kernels.shared_bytes(cut));
        let arguments = self.launches.add_with_shared(kernel, [blocks(parts), 1, 1], THREADS, shared);
        let arguments = tile_arguments(arguments, matrix, (cut, grouped), input, parts);
        out.output(arguments.param().int(activation));
    }

    /// Two for each multiprocessor.
    fn blocks_enough(&self) -> usize {
        2 * usize::try_from(self.device.facts().multiprocessors).unwrap_or(1)
    }
}

/// What both kernels begin with.
fn tile_arguments<'a>(
    arguments: Arguments<'a>,
    matrix: &Matrix,
    (cut, grouped): (Cut, Grouped),
    input: &CudaEncoded,
    parts: usize,
) -> Arguments<'a> {
    let Grouped { experts, tiles, order, ranks } = grouped;
    let arguments = matrix.argument(arguments).param().address(experts).address(tiles).address(order).int(ranks);
    input.input(matrix.form, arguments).param().int(cut.tiles).param().int(parts)
}
