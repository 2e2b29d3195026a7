//! Tiles of weights times groups of rows: the inner loops.
//!
//! Each output has one order of roundings: blocks of 32 columns from left to right. How many rows and tiles a kernel has
//! in its registers, and whether weights were unpacked before, changes nothing about it.

use super::activations::{Encoded, Forms, GroupAt, Int8Blocks};
use super::formats::{BLOCK, Format, GROUPS};
use super::memory::{Disjoint, Plain};
use super::norm::{load_part, store_part};
use super::simd::{Kernel, LANES, Simd};

/// How far ahead of the weights in use the next ones are asked for, in bytes.
const AHEAD_BYTES: usize = 8192;
const LINE_BYTES: usize = 64;

/// Repeats a block with each constant index of a group.
macro_rules! each_group {
    ($i:ident => $block:block) => {
        each_group!(@ $i [0 1 2 3 4 5 6 7] $block)
    };
    (@ $i:ident [$($k:literal)*] $block:block) => {
        $({
            const $i: usize = $k;
            $block
        })*
    };
}

/// Weights that a kernel multiplies with: 16 rows of a matrix, lane = row.
pub(super) trait Weights: Send + Sync + 'static {
    /// 16 rows.
    type Tile<'a>: Copy;
    /// What rows must be encoded as.
    const FORMS: Forms;
    /// Sums that one output keeps in registers.
    const SUMS: usize;

    /// Reads a tile of `blocks` blocks of columns.
    fn tile(bytes: &[u8], blocks: usize) -> Self::Tile<'_>;

    /// `sums[p][t] += tiles[p] * input[t]`, over all columns of the tiles, which are blocks from `first` on of the input.
    fn multiply<S: Simd, const T: usize, const P: usize>(
        simd: S,
        tiles: [Self::Tile<'_>; P],
        input: (&Encoded, GroupAt, usize),
        sums: &mut [[S::F32; T]; P],
    );
}

/// Quantised weights: exact integer products within a block, scaled in f32.
pub(super) struct Quantised<F>(std::marker::PhantomData<F>);

/// A tile of quantised weights: codes of all units, then scales of all units.
pub(super) struct UnitTile<'a, F: Format> {
    pub(super) codes: &'a [F::Codes],
    pub(super) scales: &'a [F::Scales],
}

impl<F: Format> Clone for UnitTile<'_, F> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<F: Format> Copy for UnitTile<'_, F> {}

impl<'a, F: Format> UnitTile<'a, F> {
    /// Reads the first `units` units of `bytes`.
    #[inline(always)]
    pub(super) fn new(bytes: &'a [u8], units: usize) -> Self {
        let (codes, scales) = bytes.split_at(units * size_of::<F::Codes>());
        Self { codes: cast(codes, units), scales: cast(scales, units) }
    }

    /// Asks for what lies `AHEAD_BYTES` after unit `unit`, block `block`: each line once.
    #[inline(always)]
    fn prefetch<S: Simd>(&self, simd: S, unit: usize, block: usize) {
        let block_bytes = size_of::<F::Codes>() / F::BLOCKS;
        let codes = std::ptr::from_ref(&self.codes[unit]).cast::<u8>().wrapping_add(block * block_bytes + AHEAD_BYTES);
        for line in 0..block_bytes.div_ceil(LINE_BYTES) {
            simd.prefetch_once(codes.wrapping_add(line * LINE_BYTES));
        }
        let scale_bytes = size_of::<F::Scales>().div_ceil(F::BLOCKS);
        let scales =
            std::ptr::from_ref(&self.scales[unit]).cast::<u8>().wrapping_add(block * scale_bytes + AHEAD_BYTES);
        simd.prefetch_once(scales);
    }
}

impl<F: Format> Weights for Quantised<F> {
    type Tile<'a> = UnitTile<'a, F>;
    const FORMS: Forms = Forms { int8: true, halves: F::HALVES, bf16: false, f32: false };
    const SUMS: usize = 1 + F::HALVES as usize;

    #[inline(always)]
    fn tile(bytes: &[u8], blocks: usize) -> UnitTile<'_, F> {
        UnitTile::new(bytes, blocks / F::BLOCKS)
    }

    #[inline(always)]
    fn multiply<S: Simd, const T: usize, const P: usize>(
        simd: S,
        tiles: [UnitTile<'_, F>; P],
        (input, at, first): (&Encoded, GroupAt, usize),
        sums: &mut [[S::F32; T]; P],
    ) {
        let units = tiles[0].codes.len();
        let x = input.int8::<T>(at, first, units * F::BLOCKS);
        for unit in 0..units {
            for block in 0..F::BLOCKS {
                let column = unit * F::BLOCKS + block;
                let dots = dot_products::<S, F, T, P>(simd, &tiles, (unit, block), &x, column);
                for p in 0..P {
                    if F::STREAMED {
                        tiles[p].prefetch(simd, unit, block);
                    }
                    let scales = F::scales(simd, &tiles[p].scales[unit], block);
                    let mins = F::mins(simd, &tiles[p].scales[unit], block);
                    for t in 0..T {
                        let product = scale::<S, F>(simd, [dots[0][p][t], dots[1][p][t]], scales);
                        sums[p][t] = simd.fma(product, simd.splat(x.scales[column][t]), sums[p][t]);
                        if F::MINS && F::HALVES {
                            sums[p][t] = simd.fma(mins[0], simd.splat(x.half_sums[column][0][t]), sums[p][t]);
                            sums[p][t] = simd.fma(mins[1], simd.splat(x.half_sums[column][1][t]), sums[p][t]);
                        } else if F::MINS {
                            sums[p][t] = simd.fma(mins[0], simd.splat(x.sums[column][t]), sums[p][t]);
                        }
                    }
                }
            }
        }
    }
}

/// Products of one block of all tiles and rows: of its halves, or of all of it and nothing.
#[inline(always)]
fn dot_products<S: Simd, F: Format, const T: usize, const P: usize>(
    simd: S,
    tiles: &[UnitTile<'_, F>; P],
    (unit, block): (usize, usize),
    x: &Int8Blocks<'_, T>,
    column: usize,
) -> [[[S::I32; T]; P]; 2] {
    let mut dots = [[[simd.splat_i32(0); T]; P]; 2];
    if let Some(bits) = F::ZERO_BITS {
        for t in 0..T {
            let [first, second] = if F::HALVES {
                [x.half_totals[column][0][t], x.half_totals[column][1][t]]
            } else {
                [x.totals[column][t], 0]
            };
            for p in 0..P {
                dots[0][p][t] = times_power(simd, first, bits);
                if F::HALVES {
                    dots[1][p][t] = times_power(simd, second, bits);
                }
            }
        }
    }
    each_group!(I => {
        // Groups `g` and `g + 4` often share a plane: 0 4 1 5 2 6 3 7, unless halves have their own sums.
        let group = if F::HALVES { I } else { I / 2 + I % 2 * 4 };
        let half = if F::HALVES { group / 4 } else { 0 };
        let mut weights = [simd.splat_byte(0); P];
        for p in 0..P {
            weights[p] = F::codes(simd, &tiles[p].codes[unit], block, group);
        }
        for t in 0..T {
            let four = simd.splat_lane(&x.codes[column][t][group]);
            for p in 0..P {
                dots[half][p][t] = simd.dot4(dots[half][p][t], weights[p], four);
            }
        }
    });
    dots
}

/// Integer products times the block's scales.
#[inline(always)]
fn scale<S: Simd, F: Format>(simd: S, dots: [S::I32; 2], scales: [S::F32; 2]) -> S::F32 {
    let first = simd.to_f32(dots[0]);
    if F::HALVES {
        let second = simd.mul(simd.to_f32(dots[1]), scales[1]);
        simd.fma(first, scales[0], second)
    } else {
        simd.mul(first, scales[0])
    }
}

/// `x * 2^bits` in every lane.
#[inline(always)]
fn times_power<S: Simd>(simd: S, x: i32, bits: u32) -> S::I32 {
    let x = simd.splat_i32(x);
    match bits {
        2 => simd.shift_left_i32::<2>(x),
        3 => simd.shift_left_i32::<3>(x),
        4 => simd.shift_left_i32::<4>(x),
        5 => simd.shift_left_i32::<5>(x),
        _ => simd.shift_left_i32::<7>(x),
    }
}

/// `count` values at the start of `bytes`.
#[inline(always)]
pub(super) fn cast<T: Plain>(bytes: &[u8], count: usize) -> &[T] {
    assert!(bytes.len() >= count * size_of::<T>() && bytes.as_ptr().cast::<T>().is_aligned(), "a tile's bytes");
    #[expect(unsafe_code, reason = "weights are packed as bytes")]
    // SAFETY: in bounds and aligned, and every bit pattern is a value.
    unsafe {
        std::slice::from_raw_parts(bytes.as_ptr().cast(), count)
    }
}

/// As [`cast`], to write.
#[inline(always)]
pub(super) fn cast_mut<T: Plain>(bytes: &mut [u8], count: usize) -> &mut [T] {
    assert!(bytes.len() >= count * size_of::<T>() && bytes.as_ptr().cast::<T>().is_aligned(), "a tile's bytes");
    #[expect(unsafe_code, reason = "weights are packed as bytes")]
    // SAFETY: in bounds and aligned, every bit pattern is a value, and the borrow is exclusive.
    unsafe {
        std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), count)
    }
}

/// Where products go.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    /// Rows of `stride` values.
    pub(super) out: &'a Disjoint<'a, f32>,
    pub(super) stride: usize,
    /// Row of `out` of the first input row.
    pub(super) first_row: usize,
    /// Column of the first output.
    pub(super) column: usize,
    /// Outputs; the last tile may have more rows than are wanted.
    pub(super) outputs: usize,
    /// Whether to add to what is there.
    pub(super) add: bool,
    /// Added at the end, a value an output.
    pub(super) bias: Option<&'a [f32]>,
}

/// Consecutive tiles, an even number of them, times rows.
pub(super) struct MultiplyTiles<'a, W: Weights> {
    pub(super) tiles: &'a [u8],
    pub(super) tile_bytes: usize,
    /// Blocks of columns a tile.
    pub(super) blocks: usize,
    pub(super) input: &'a Encoded,
    /// Rows to multiply with: whole groups, but for the last.
    pub(super) rows: std::ops::Range<usize>,
    /// First block of the input's columns.
    pub(super) first_block: usize,
    pub(super) target: Target<'a>,
    pub(super) weights: std::marker::PhantomData<W>,
}

impl<W: Weights> Kernel for MultiplyTiles<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        // Eight rows with two sums an output fill the registers with one tile.
        if S::PAIRS && W::SUMS == 1 { self.in_steps::<S, 2>(simd) } else { self.in_steps::<S, 1>(simd) }
    }
}

impl<W: Weights> MultiplyTiles<'_, W> {
    /// `P` tiles at a time; there are whole steps of them.
    #[inline(always)]
    fn in_steps<S: Simd, const P: usize>(&self, simd: S) {
        for tile in (0..self.tiles.len() / self.tile_bytes).step_by(P) {
            for at in self.input.groups().skip_while(|at| at.row < self.rows.start) {
                if at.row >= self.rows.end {
                    break;
                }
                match at.size {
                    8 if S::GROUP_ROWS >= 8 => self.step::<S, 8, P>(simd, tile, at),
                    4 if S::GROUP_ROWS >= 4 => self.step::<S, 4, P>(simd, tile, at),
                    _ => self.step::<S, 1, P>(simd, tile, at),
                }
            }
        }
    }

    #[inline(always)]
    fn step<S: Simd, const T: usize, const P: usize>(&self, simd: S, tile: usize, at: GroupAt) {
        let mut tiles = [W::tile(&self.tiles[tile * self.tile_bytes..], self.blocks); P];
        for p in 1..P {
            tiles[p] = W::tile(&self.tiles[(tile + p) * self.tile_bytes..], self.blocks);
        }
        let mut sums = [[simd.splat(0.0); T]; P];
        if self.target.add {
            for p in 0..P {
                for t in 0..T.min(self.rows.end - at.row) {
                    sums[p][t] = self.load(simd, tile + p, at.row + t);
                }
            }
        }
        W::multiply::<S, T, P>(simd, tiles, (self.input, at, self.first_block), &mut sums);
        for p in 0..P {
            for t in 0..T.min(self.rows.end - at.row) {
                self.store(simd, tile + p, at.row + t, sums[p][t]);
            }
        }
    }

    /// Outputs of `tile` for `row`: 16, or fewer where the matrix ends.
    #[inline(always)]
    fn outputs(&self, tile: usize, row: usize) -> &mut [f32] {
        let target = &self.target;
        let first = target.outputs.min(tile * LANES);
        let count = LANES.min(target.outputs - first);
        let start = (row - self.rows.start + target.first_row) * target.stride + target.column + first;
        #[expect(unsafe_code, reason = "threads share one matrix")]
        // SAFETY: these tiles are this thread's: nobody else writes these columns.
        unsafe {
            target.out.part(start..start + count)
        }
    }

    #[inline(always)]
    fn load<S: Simd>(&self, simd: S, tile: usize, row: usize) -> S::F32 {
        load_part(simd, self.outputs(tile, row))
    }

    #[inline(always)]
    fn store<S: Simd>(&self, simd: S, tile: usize, row: usize, sum: S::F32) {
        let outputs = self.outputs(tile, row);
        let sum = match self.target.bias {
            Some(bias) => simd.add(sum, load_part(simd, &bias[bias.len().min(tile * LANES)..][..outputs.len()])),
            None => sum,
        };
        store_part(simd, sum, outputs);
    }
}

const _: () = assert!(GROUPS * 4 == BLOCK);
