//! Matrices times rows, on all threads.

use std::marker::PhantomData;
use std::ops::Range;

use half::{bf16, f16};

use super::activations::Encoded;
use super::floats::{Brain, Floats, Half, Single};
use super::formats::{BLOCK, Format, SpreadScales, Whole, row_values, spread_unit, with_format};
use super::matrix::{Matrix, Packed};
use super::memory::{Disjoint, Plain};
use super::pool::Pool;
use super::product::{MultiplyTiles, Quantised, Target, UnitTile, Weights, cast, cast_mut};
use super::simd::{Kernel, LANES, Level, Simd};
use crate::Store;

#[cfg(test)]
mod tests;

/// From so many rows on, weights are unpacked once for all of them.
const SPREAD_ROWS_MIN: usize = 32;
/// Blocks of columns that are unpacked at once, of two tiles: so that they stay in the first cache.
const SPREAD_BLOCKS: usize = 12;
/// Multiplications below which waking the other threads takes longer than the work.
const ALONE_PRODUCTS_MAX: usize = 64 << 10;

/// `out[row] = weights * input[row] + bias`, or added to what is there; `out` has rows of all outputs side by side.
pub(super) fn linear(pool: &mut Pool, level: Level, input: &Encoded, weights: &Packed, store: Store, out: &mut [f32]) {
    let (rows, outputs) = (input.rows(), weights.outputs());
    assert_eq!(input.width(), weights.columns(), "the input's width");
    assert_eq!(out.len(), rows * outputs, "the output's size");
    input.expect(weights.forms());
    let out = Disjoint::new(out);
    let columns = first_columns(&weights.matrices);
    let chunk = |index: usize| {
        let chunk = &weights.chunks[index];
        let matrix = &weights.matrices[chunk.matrix];
        let first = chunk.tiles.start * LANES;
        let target = Target {
            out: &out,
            stride: outputs,
            first_row: 0,
            column: columns[chunk.matrix] + first,
            outputs: (chunk.tiles.len() * LANES).min(matrix.rows - first),
            add: store == Store::Add,
            bias: matrix.bias.as_ref().map(|bias| &bias[first..]),
        };
        multiply(level, matrix, weights.bytes(chunk), input, 0..rows, target);
    };
    if pool.threads() == 1 || rows * outputs * weights.columns() <= ALONE_PRODUCTS_MAX {
        return (0..weights.chunks.len()).for_each(chunk);
    }
    pool.run(|worker| worker.chunks(weights.chunks.len()).for_each(chunk));
}

/// The first output column of each matrix.
fn first_columns(matrices: &[Matrix]) -> Vec<usize> {
    let sum = |first: &mut usize, matrix: &Matrix| Some(std::mem::replace(first, *first + matrix.rows));
    matrices.iter().scan(0, sum).collect()
}

/// Consecutive tiles of `matrix` times `rows` of the input, which are whole groups.
pub(super) fn multiply(
    level: Level,
    matrix: &Matrix,
    tiles: &[u8],
    input: &Encoded,
    rows: Range<usize>,
    target: Target<'_>,
) {
    let work = Work { level, matrix, tiles, input, rows, target };
    with_format!(matrix.weight_type, F => work.quantised::<F>(), float => match matrix.weight_type {
        WeightType::F32 => work.all::<Floats<Single>>(),
        WeightType::F16 => work.all::<Floats<Half>>(),
        _ => work.all::<Floats<Brain>>(),
    });
}

/// The arguments of [`multiply`].
struct Work<'a> {
    level: Level,
    matrix: &'a Matrix,
    tiles: &'a [u8],
    input: &'a Encoded,
    rows: Range<usize>,
    target: Target<'a>,
}

impl Work<'_> {
    /// From the tiles as they are.
    fn all<W: Weights>(self) {
        self.level.run(MultiplyTiles::<W> {
            tiles: self.tiles,
            tile_bytes: self.matrix.tile_bytes,
            blocks: self.matrix.blocks,
            input: self.input,
            rows: self.rows,
            first_block: 0,
            target: self.target,
            weights: PhantomData,
        });
    }

    fn quantised<F: Format>(self) {
        if self.rows.len() < SPREAD_ROWS_MIN {
            return self.all::<Quantised<F>>();
        }
        let mut panel = Panel([0; 2 * PANEL_BLOCKS * SPREAD_BLOCK_BYTES]);
        for (pair, tiles) in self.tiles.chunks(2 * self.matrix.tile_bytes).enumerate() {
            self.spread::<F>(tiles, pair * 2 * LANES, &mut panel);
        }
    }

    /// One or two tiles, some columns at a time: unpacked, and then multiplied with all rows. `first_output` is that of
    /// the tiles among the target's.
    fn spread<F: Format>(&self, tiles: &[u8], first_output: usize, panel: &mut Panel) {
        let blocks = self.matrix.blocks;
        // Parts of about equal size, of whole units.
        let step = blocks.div_ceil(blocks.div_ceil(SPREAD_BLOCKS)).next_multiple_of(F::BLOCKS);
        for first_block in (0..blocks).step_by(step) {
            let end_block = blocks.min(first_block + step);
            let tile_bytes = (end_block - first_block) * SPREAD_BLOCK_BYTES;
            let units = first_block / F::BLOCKS..end_block / F::BLOCKS;
            for (tile, to) in tiles.chunks_exact(self.matrix.tile_bytes).zip(panel.0.chunks_exact_mut(tile_bytes)) {
                let tile = UnitTile::<F>::new(tile, blocks / F::BLOCKS);
                self.level.run(SpreadTile { tile, units: units.clone(), to });
            }
            self.level.run(MultiplyTiles::<Quantised<F::Spread>> {
                tiles: &panel.0[..tiles.len() / self.matrix.tile_bytes * tile_bytes],
                tile_bytes,
                blocks: end_block - first_block,
                input: self.input,
                rows: self.rows.clone(),
                first_block,
                target: Target {
                    column: self.target.column + first_output,
                    outputs: self.target.outputs - first_output,
                    add: self.target.add || first_block > 0,
                    bias: self.target.bias.filter(|_| end_block == blocks).map(|bias| &bias[first_output..]),
                    ..self.target
                },
                weights: PhantomData,
            });
        }
    }
}

/// Bytes of an unpacked block of a tile.
const SPREAD_BLOCK_BYTES: usize = size_of::<Whole>() + size_of::<SpreadScales>();
/// Blocks of a tile that a panel has room for: [`SPREAD_BLOCKS`], in whole units of eight.
const PANEL_BLOCKS: usize = SPREAD_BLOCKS.next_multiple_of(8);

/// Two tiles, unpacked.
#[repr(align(64))]
struct Panel([u8; 2 * PANEL_BLOCKS * SPREAD_BLOCK_BYTES]);

/// Unpacks some units of a tile.
struct SpreadTile<'a, F: Format> {
    tile: UnitTile<'a, F>,
    units: Range<usize>,
    to: &'a mut [u8],
}

impl<F: Format> Kernel for SpreadTile<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let blocks = self.units.len() * F::BLOCKS;
        let (codes, scales) = self.to.split_at_mut(blocks * size_of::<Whole>());
        let codes = cast_mut::<Whole>(codes, blocks).chunks_exact_mut(F::BLOCKS);
        let scales = cast_mut::<SpreadScales>(scales, blocks).chunks_exact_mut(F::BLOCKS);
        for ((unit, codes), scales) in self.units.zip(codes).zip(scales) {
            spread_unit::<S, F>(simd, (&self.tile.codes[unit], &self.tile.scales[unit]), codes, scales);
        }
    }
}

/// `out[i] = scale * row tokens[i]` of the first matrix.
///
/// # Panics
/// When a token has no row.
pub(super) fn embed(pool: &mut Pool, level: Level, table: &Packed, tokens: &[u32], scale: f32, out: &mut [f32]) {
    let width = table.columns();
    assert_eq!(out.len(), tokens.len() * width, "the output's size");
    super::rows::by_rows(pool, out, width, |rows, out| {
        for (token, out) in tokens[rows].iter().zip(out.chunks_exact_mut(width)) {
            let row = *token as usize;
            let matrix = &table.matrices[0];
            assert!(row < matrix.rows, "token {token} of {}", matrix.rows);
            let tile = table.tile_of(row);
            let row = row % LANES;
            with_format!(matrix.weight_type, F => level.run(UnpackRow {
                tile: UnitTile::<F>::new(tile, matrix.blocks / F::BLOCKS), row, scale, out,
            }), float => match matrix.weight_type {
                WeightType::F32 => unpack_floats(tile, row, scale, out, |value: f32| value),
                WeightType::F16 => unpack_floats(tile, row, scale, out, |bits| f16::from_bits(bits).to_f32()),
                _ => unpack_floats(tile, row, scale, out, |bits| bf16::from_bits(bits).to_f32()),
            });
        }
    });
}

/// One row of a tile, as numbers.
struct UnpackRow<'a, F: Format> {
    tile: UnitTile<'a, F>,
    row: usize,
    scale: f32,
    out: &'a mut [f32],
}

impl<F: Format> Kernel for UnpackRow<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for (index, out) in self.out.chunks_exact_mut(BLOCK).enumerate() {
            let (unit, block) = (index / F::BLOCKS, index % F::BLOCKS);
            let unit = (&self.tile.codes[unit], &self.tile.scales[unit]);
            for (out, value) in out.iter_mut().zip(row_values::<S, F>(simd, unit, block, self.row)) {
                *out = self.scale * value;
            }
        }
    }
}

fn unpack_floats<V: Plain>(tile: &[u8], row: usize, scale: f32, out: &mut [f32], value: impl Fn(V) -> f32) {
    let columns = cast::<V>(tile, tile.len() / size_of::<V>()).as_chunks::<LANES>().0;
    for (out, column) in out.iter_mut().zip(columns) {
        *out = scale * value(column[row]);
    }
}
