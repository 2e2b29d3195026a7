//! Tiles of weights times groups of rows: the inner loops.
//!
//! Each output has one order of roundings: blocks of 32 columns from left to right. How many rows and tiles a kernel has
//! in its registers, and whether weights were unpacked before, changes nothing about it.

#![allow(clippy::needless_range_loop, reason = "rows and tiles count through several arrays at once")]

use std::marker::PhantomData;
use std::ops::Range;

use super::activations::{Encoded, Forms, GroupAt, Int8Blocks};
use super::formats::{Codes, Format, Scales};
use super::memory::{Disjoint, LINE_BYTES, Plain};
use super::norm::{load_part, store_part};
use super::simd::{Kernel, LANES, Simd};

/// How far ahead of the weights in use the next ones are asked for: into the second cache, which can wait for far more
/// lines from memory at once than the first one can, and from there into the first.
const FAR_BYTES: usize = 24576;
const NEAR_BYTES: usize = 1536;
/// A whole number below 2^22, added to the bits of this float, makes it larger by that number: so an integer product that
/// starts here needs no conversion.
const WHOLE: f32 = 12_582_912.0;

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

    /// `sums[p][t] += tiles[p] * input[t]`, over all columns.
    fn multiply<S: Simd, const T: usize, const P: usize>(
        simd: S,
        tiles: [Self::Tile<'_>; P],
        input: (&Encoded, GroupAt),
        sums: &mut [[S::F32; T]; P],
    );
}

/// Quantised weights: exact integer products within a block, scaled in f32.
pub(super) struct Quantised<F>(PhantomData<F>);

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

    /// Asks for the weights after unit `unit`, block `block`.
    #[inline(always)]
    pub(super) fn prefetch<S: Simd>(&self, simd: S, unit: usize, block: usize) {
        let code_bytes = size_of::<F::Codes>() / F::BLOCKS;
        let codes = std::ptr::from_ref(&self.codes[unit]).cast::<u8>().wrapping_add(block * code_bytes);
        let scale_bytes = size_of::<F::Scales>().div_ceil(F::BLOCKS);
        let scales = std::ptr::from_ref(&self.scales[unit]).cast::<u8>().wrapping_add(block * scale_bytes);
        for line in 0..code_bytes.div_ceil(LINE_BYTES) {
            prefetch_after(simd, codes.wrapping_add(line * LINE_BYTES));
        }
        prefetch_after(simd, scales);
    }
}

/// Asks for what comes after the line at `address`.
#[inline(always)]
pub(super) fn prefetch_after<S: Simd>(simd: S, address: *const u8) {
    simd.prefetch_far(address.wrapping_add(FAR_BYTES));
    simd.prefetch(address.wrapping_add(NEAR_BYTES));
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
        (input, at): (&Encoded, GroupAt),
        sums: &mut [[S::F32; T]; P],
    ) {
        let units = tiles[0].codes.len();
        let x = input.int8::<T>(at, units * F::BLOCKS);
        for unit in 0..units {
            for block in 0..F::BLOCKS {
                let column = unit * F::BLOCKS + block;
                let dots = dot_products::<S, F, T, P>(simd, &tiles, (unit, block), &x, column);
                for p in 0..P {
                    if F::COLD && at.is_first() {
                        tiles[p].prefetch(simd, unit, block);
                    }
                    let scales = tiles[p].scales[unit].scales(simd, block);
                    let mins = tiles[p].scales[unit].mins(simd, block);
                    let starts = scales.map(|scale| simd.mul(scale, simd.splat(-WHOLE)));
                    for t in 0..T {
                        let product = scale::<S, F>(simd, [dots[0][p][t], dots[1][p][t]], scales, starts);
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

/// Products of one block of all tiles and rows, on top of [`WHOLE`]: of its halves, or of all of it and nothing.
#[inline(always)]
fn dot_products<S: Simd, F: Format, const T: usize, const P: usize>(
    simd: S,
    tiles: &[UnitTile<'_, F>; P],
    (unit, block): (usize, usize),
    x: &Int8Blocks<'_, T>,
    column: usize,
) -> [[[S::I32; T]; P]; 2] {
    let whole = simd.splat_i32(WHOLE.to_bits().cast_signed());
    let mut dots = [[[whole; T]; P]; 2];
    if let Some(bits) = F::ZERO_BITS {
        for t in 0..T {
            let [first, second] = if F::HALVES {
                [x.half_totals[column][0][t], x.half_totals[column][1][t]]
            } else {
                [x.totals[column][t], 0]
            };
            for p in 0..P {
                dots[0][p][t] = simd.add_i32(whole, times_power(simd, first, bits));
                if F::HALVES {
                    dots[1][p][t] = simd.add_i32(whole, times_power(simd, second, bits));
                }
            }
        }
    }
    each_group!(I => {
        // Groups `g` and `g + 4` often share a plane: 0 4 1 5 2 6 3 7.
        const GROUP: usize = I / 2 + I % 2 * 4;
        let half = if F::HALVES { GROUP / 4 } else { 0 };
        let mut weights = [simd.splat_byte(0); P];
        for p in 0..P {
            weights[p] = tiles[p].codes[unit].get(simd, block, GROUP);
        }
        for p in 0..P {
            simd.dot4_rows::<T, GROUP>(&mut dots[half][p], weights[p], &x.codes[column]);
        }
    });
    dots
}

/// Integer products times the block's scales, where `starts` is what takes [`WHOLE`] times them off again. Scales have at
/// most 17 bits, so starts are exact, and each product is rounded once.
#[inline(always)]
fn scale<S: Simd, F: Format>(simd: S, dots: [S::I32; 2], scales: [S::F32; 2], starts: [S::F32; 2]) -> S::F32 {
    if F::HALVES {
        let second = simd.fma(simd.bits_as_f32(dots[1]), scales[1], starts[1]);
        simd.fma(simd.sub(simd.bits_as_f32(dots[0]), simd.splat(WHOLE)), scales[0], second)
    } else {
        simd.fma(simd.bits_as_f32(dots[0]), scales[0], starts[0])
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

/// A matrix of outputs, which several threads share.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    /// Rows of `stride` values.
    pub(super) values: &'a Disjoint<'a, f32>,
    pub(super) stride: usize,
    /// Column of the first output.
    pub(super) column: usize,
}

/// Where products go: row 0 belongs to the first row that is multiplied.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    /// What they are added to; none: zeros.
    pub(super) from: Option<Place<'a>>,
    pub(super) to: Place<'a>,
    /// Outputs; the last tile may have more rows than are wanted.
    pub(super) outputs: usize,
    /// Added at the end, a value an output.
    pub(super) bias: Option<&'a [f32]>,
}

impl Target<'_> {
    /// The same for a product that begins `tiles` tiles later.
    pub(super) fn after(mut self, tiles: usize) -> Self {
        let skipped = self.outputs.min(tiles * LANES);
        self.outputs -= skipped;
        self.bias = self.bias.map(|bias| &bias[bias.len().min(skipped)..]);
        for place in self.from.iter_mut().chain([&mut self.to]) {
            place.column += skipped;
        }
        self
    }
}

/// Consecutive tiles, an even number of them unless there are many rows, times rows.
pub(super) struct Product<'a> {
    pub(super) tiles: &'a [u8],
    pub(super) tile_bytes: usize,
    /// Blocks of columns a tile.
    pub(super) blocks: usize,
    pub(super) input: &'a Encoded,
    /// Rows to multiply with: whole groups, but for the last.
    pub(super) rows: Range<usize>,
    pub(super) target: Target<'a>,
}

impl<'a> Product<'a> {
    /// With tiles of these weights.
    pub(super) fn with<W: Weights>(self) -> ProductWith<'a, W> {
        ProductWith(self, PhantomData)
    }
}

/// A product with one kind of weights.
pub(super) struct ProductWith<'a, W>(Product<'a>, PhantomData<W>);

impl<W: Weights> Kernel for ProductWith<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        // Eight rows fill the registers with one tile.
        let eight = S::GROUP_ROWS >= 8 && self.0.input.groups().next().is_some_and(|at| at.size == 8);
        if S::PAIRS && W::SUMS == 1 && !eight {
            self.0.in_steps::<S, W, 2>(simd);
        } else {
            self.0.in_steps::<S, W, 1>(simd);
        }
    }
}

impl Product<'_> {
    /// `P` tiles at a time; there are whole steps of them.
    #[inline(always)]
    fn in_steps<S: Simd, W: Weights, const P: usize>(&self, simd: S) {
        for tile in (0..self.tiles.len() / self.tile_bytes).step_by(P) {
            for at in self.input.groups().skip_while(|at| at.row < self.rows.start) {
                if at.row >= self.rows.end {
                    break;
                }
                match at.size {
                    8 if S::GROUP_ROWS >= 8 && P == 1 => self.step::<S, W, 8, P>(simd, tile, at),
                    4 if S::GROUP_ROWS >= 4 => self.step::<S, W, 4, P>(simd, tile, at),
                    _ => self.step::<S, W, 1, P>(simd, tile, at),
                }
            }
        }
    }

    #[inline(always)]
    fn step<S: Simd, W: Weights, const T: usize, const P: usize>(&self, simd: S, tile: usize, at: GroupAt) {
        let mut tiles = [W::tile(&self.tiles[tile * self.tile_bytes..], self.blocks); P];
        for p in 1..P {
            tiles[p] = W::tile(&self.tiles[(tile + p) * self.tile_bytes..], self.blocks);
        }
        let mut sums = [[simd.splat(0.0); T]; P];
        if let Some(from) = self.target.from {
            for p in 0..P {
                for t in 0..T.min(self.rows.end - at.row) {
                    sums[p][t] = load_part(simd, self.outputs(&from, tile + p, at.row + t));
                }
            }
        }
        W::multiply::<S, T, P>(simd, tiles, (self.input, at), &mut sums);
        for p in 0..P {
            for t in 0..T.min(self.rows.end - at.row) {
                self.store(simd, tile + p, at.row + t, sums[p][t]);
            }
        }
    }

    /// Outputs of `tile` for `row`: 16, or fewer where the matrix ends.
    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "threads share one matrix")]
    fn outputs<'p>(&self, place: &'p Place<'_>, tile: usize, row: usize) -> &'p mut [f32] {
        let first = self.target.outputs.min(tile * LANES);
        let count = LANES.min(self.target.outputs - first);
        let start = (row - self.rows.start) * place.stride + place.column + first;
        #[expect(unsafe_code, reason = "threads share one matrix")]
        // SAFETY: these tiles are this thread's: nobody else uses these columns.
        unsafe {
            place.values.part(start..start + count)
        }
    }

    #[inline(always)]
    fn store<S: Simd>(&self, simd: S, tile: usize, row: usize, sum: S::F32) {
        let outputs = self.outputs(&self.target.to, tile, row);
        let sum = match self.target.bias {
            Some(bias) => simd.add(sum, load_part(simd, &bias[bias.len().min(tile * LANES)..][..outputs.len()])),
            None => sum,
        };
        store_part(simd, sum, outputs);
    }
}
