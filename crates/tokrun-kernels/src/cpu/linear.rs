//! Matrices times rows, on all threads.

use std::ops::Range;

use half::{bf16, f16};

use super::activations::Encoded;
use super::floats::{Bf16Pairs, Brain, Floats, Half, Single};
use super::formats::{BLOCK, FileFormat, Format, SpreadTile, row_values, spread_bytes, with_format};
use super::matrix::{Matrix, Packed};
use super::memory::{Disjoint, LINE_BYTES, Plain};
use super::pool::Pool;
use super::product::{Place, Product, Quantised, Target, UnitTile, cast};
use super::simd::{Kernel, LANES, Level, Simd};
use crate::Store;

#[cfg(test)]
mod tests;

/// Rows from which on a tile is spread once for all of them, instead of being unpacked for each group.
const SPREAD_ROWS_MIN: usize = 32;
/// Spread tiles up to this size stay in the second cache; larger ones are not spread.
const SPREAD_BYTES_MAX: usize = 512 << 10;
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
        let to = Place { values: &out, stride: outputs, column: columns[chunk.matrix] + first };
        let target = Target {
            from: (store == Store::Add).then_some(to),
            to,
            outputs: (chunk.tiles.len() * LANES).min(matrix.rows - first),
            bias: matrix.bias.as_ref().map(|bias| &bias[first..]),
        };
        multiply(level, matrix, weights.bytes(chunk), input, 0..rows, target);
    };
    if pool.threads() == 1 || rows * outputs * weights.columns() <= ALONE_PRODUCTS_MAX {
        return (0..weights.chunks.len()).for_each(chunk);
    }
    pool.for_chunks(weights.chunks.len(), |_, chunks| chunks.for_each(chunk));
}

/// The first output column of each matrix.
fn first_columns(matrices: &[Matrix]) -> Vec<usize> {
    let sum = |first: &mut usize, matrix: &Matrix| Some(std::mem::replace(first, *first + matrix.rows));
    matrices.iter().scan(0, sum).collect()
}

/// Consecutive tiles of `matrix` times `rows` of the input, which begin with a whole group.
pub(super) fn multiply(
    level: Level,
    matrix: &Matrix,
    tiles: &[u8],
    input: &Encoded,
    rows: Range<usize>,
    target: Target<'_>,
) {
    let product = Product { tiles, tile_bytes: matrix.tile_bytes, blocks: matrix.blocks, input, rows, target };
    with_format!(matrix.weight_type, F => {
        if product.rows.len() < SPREAD_ROWS_MIN || spread_bytes::<F>(matrix.blocks) > SPREAD_BYTES_MAX {
            level.run(product.with::<Quantised<F>>());
        } else {
            multiply_spread::<F>(level, &product);
        }
    }, float => match matrix.weight_type {
        WeightType::F32 | WeightType::FP8 => level.run(product.with::<Floats<Single>>()),
        _ if matrix.bf16_pairs => level.run_with_bf16_dot(product.with::<Bf16Pairs>()),
        WeightType::F16 => level.run(product.with::<Floats<Half>>()),
        _ => level.run(product.with::<Floats<Brain>>()),
    });
}

/// The product, one spread tile after another.
fn multiply_spread<F: FileFormat>(level: Level, product: &Product<'_>) {
    let Product { tiles, tile_bytes, blocks, input, ref rows, target } = *product;
    let bytes = spread_bytes::<F>(blocks);
    let mut room = vec![0; bytes + LINE_BYTES];
    let aligned = room.as_ptr().align_offset(LINE_BYTES);
    let room = &mut room[aligned..][..bytes];
    for (index, tile) in tiles.chunks_exact(tile_bytes).enumerate() {
        level.run(SpreadTile { tile: UnitTile::<F>::new(tile, blocks / F::BLOCKS), to: room });
        let target = target.after(index);
        let product = Product { tiles: room, tile_bytes: bytes, blocks, input, rows: rows.clone(), target };
        level.run(product.with::<Quantised<F::Spread>>());
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
                WeightType::F32 | WeightType::FP8 => unpack_floats(tile, row, scale, out, |value: f32| value),
                _ if matrix.bf16_pairs => unpack_pairs(tile, row, scale, out),
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

fn unpack_pairs(tile: &[u8], row: usize, scale: f32, out: &mut [f32]) {
    let pairs = cast::<[[u16; 2]; LANES]>(tile, tile.len() / (4 * LANES));
    for (out, pair) in out.chunks_mut(2).zip(pairs) {
        for (out, bits) in out.iter_mut().zip(pair[row]) {
            *out = scale * bf16::from_bits(bits).to_f32();
        }
    }
}

fn unpack_floats<V: Plain>(tile: &[u8], row: usize, scale: f32, out: &mut [f32], value: impl Fn(V) -> f32) {
    let columns = cast::<V>(tile, tile.len() / size_of::<V>()).as_chunks::<LANES>().0;
    for (out, column) in out.iter_mut().zip(columns) {
        *out = scale * value(column[row]);
    }
}
