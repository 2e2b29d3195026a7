//! Packed matrices: tiles of 16 rows, in the order in which each thread streams them.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::activations::Forms;
use super::arena::{Arena, Region};
use super::floats::{Bf16Pairs, Floats, RoundToBf16, Single};
use super::formats::{BLOCK, FileFormat, Format, unit_bytes, with_format};
use super::memory::{LINE_BYTES, Plain};
use super::pool::Pool;
use super::product::{Quantised, Weights, cast_mut};
use super::simd::{LANES, Level};
use crate::{KernelError, MatrixSource, WeightType, dequantise};

#[cfg(test)]
mod tests;

/// Chunks are at least so large, unless that leaves threads without work.
const CHUNK_BYTES_MIN: usize = 8 << 10;
/// Chunks a thread that are enough to share work evenly.
const CHUNKS_PER_THREAD: usize = 8;
/// Rows are read in pieces of about this size.
const READ_BYTES: usize = 256 << 10;

/// How a matrix is packed.
#[derive(Debug)]
pub(super) struct Matrix {
    pub(super) weight_type: WeightType,
    /// Outputs.
    pub(super) rows: usize,
    /// Inputs.
    pub(super) columns: usize,
    /// Blocks of 32 columns.
    pub(super) blocks: usize,
    pub(super) tile_bytes: usize,
    /// Whether its 16-bit weights are pairs of bf16.
    pub(super) bf16_pairs: bool,
    /// Rows of the activations' form that it multiplies with.
    pub(super) forms: Forms,
    pub(super) bias: Option<Vec<f32>>,
    /// Tiles a chunk; the last chunk may have fewer.
    chunk_tiles: usize,
}

/// Consecutive tiles of one matrix.
#[derive(Clone, Debug)]
pub(super) struct Chunk {
    pub(super) matrix: usize,
    pub(super) tiles: Range<usize>,
    region: usize,
    offset: usize,
}

/// Matrices that are multiplied with the same input.
pub(super) struct Packed {
    pub(super) matrices: Vec<Matrix>,
    /// In the order of memory.
    pub(super) chunks: Vec<Chunk>,
    regions: Vec<Region>,
}

impl std::fmt::Debug for Packed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packed").field("matrices", &self.matrices).finish_non_exhaustive()
    }
}

/// What threads pack into: memory, and room for what they read.
pub(super) struct Packer {
    level: Level,
    threads: Vec<Mutex<PackerThread>>,
}

#[derive(Default)]
struct PackerThread {
    arena: Arena,
    /// One a matrix.
    read: Vec<Vec<u8>>,
}

impl Packer {
    /// For the threads of a pool, and for products at this level.
    pub(super) fn new(level: Level, threads: usize) -> Self {
        Self { level, threads: (0..threads).map(|_| Mutex::default()).collect() }
    }

    /// Frees the room for reading; it comes back when it is needed.
    pub(super) fn finish(&mut self) {
        for thread in &mut self.threads {
            thread.get_mut().unwrap_or_else(PoisonError::into_inner).read = Vec::new();
        }
    }

    /// Packs matrices one after the other: `[first, second, ...]`.
    pub(super) fn pack_in_turn(
        &mut self,
        pool: &mut Pool,
        sources: &[MatrixSource<'_>],
    ) -> Result<Packed, KernelError> {
        let matrices =
            sources.iter().map(|s| Matrix::new(s, self.level, pool.threads())).collect::<Result<Vec<_>, _>>()?;
        let mut chunks = Vec::new();
        for (index, matrix) in matrices.iter().enumerate() {
            chunks.extend(matrix.chunks(index));
        }
        self.pack(pool, sources, matrices, chunks, 1)
    }

    /// Packs two matrices of equal shape side by side: 32 rows of the one, then the same rows of the other.
    pub(super) fn pack_side_by_side(
        &mut self,
        pool: &mut Pool,
        sources: &[MatrixSource<'_>; 2],
    ) -> Result<Packed, KernelError> {
        let mut matrices =
            sources.iter().map(|s| Matrix::new(s, self.level, pool.threads())).collect::<Result<Vec<_>, _>>()?;
        let [first, second] = &sources;
        if (first.rows, first.columns) != (second.rows, second.columns) {
            let reason =
                format!("gate is {} x {}, up is {} x {}", first.rows, first.columns, second.rows, second.columns);
            return Err(KernelError::Shape { reason });
        }
        for matrix in &mut matrices {
            matrix.chunk_tiles = BLOCK / LANES;
        }
        let both = matrices[0].chunks(0).zip(matrices[1].chunks(1));
        let chunks = both.flat_map(|(first, second)| [first, second]).collect();
        self.pack(pool, sources, matrices, chunks, 2)
    }

    /// Packs `chunks`, of which `together` each stay with one thread.
    fn pack(
        &mut self,
        pool: &mut Pool,
        sources: &[MatrixSource<'_>],
        matrices: Vec<Matrix>,
        mut chunks: Vec<Chunk>,
        together: usize,
    ) -> Result<Packed, KernelError> {
        let threads = pool.threads();
        assert_eq!(self.threads.len(), threads, "a packer of this pool");
        let mut regions = Vec::with_capacity(threads);
        let mut shares = Vec::with_capacity(threads);
        for (index, thread) in self.threads.iter_mut().enumerate() {
            let share = super::pool::share(chunks.len() / together, index, threads);
            let share = share.start * together..share.end * together;
            let mut bytes = 0;
            for chunk in &mut chunks[share.clone()] {
                (chunk.region, chunk.offset) = (index, bytes);
                bytes += chunk.tiles.len() * matrices[chunk.matrix].tile_bytes;
            }
            let thread = thread.get_mut().unwrap_or_else(PoisonError::into_inner);
            thread.read.resize_with(thread.read.len().max(matrices.len()), Vec::new);
            regions.push(Mutex::new(thread.arena.take(bytes)?));
            shares.push(share);
        }
        let (level, threads) = (self.level, &self.threads);
        let failure = Mutex::new(None);
        pool.run(|worker| {
            let index = worker.index();
            let mut thread = threads[index].lock().unwrap_or_else(PoisonError::into_inner);
            let mut region = regions[index].lock().unwrap_or_else(PoisonError::into_inner);
            let chunks = &chunks[shares[index].clone()];
            if let Err(error) = pack_chunks(level, sources, &matrices, chunks, &mut thread.read, &mut region) {
                *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            }
        });
        if let Some(error) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(KernelError::Read(error));
        }
        let regions = regions.into_iter().map(|region| region.into_inner().unwrap_or_else(PoisonError::into_inner));
        Ok(Packed { matrices, chunks, regions: regions.collect() })
    }
}

/// Reads and packs one thread's chunks.
fn pack_chunks(
    level: Level,
    sources: &[MatrixSource<'_>],
    matrices: &[Matrix],
    chunks: &[Chunk],
    read: &mut [Vec<u8>],
    region: &mut [u8],
) -> std::io::Result<()> {
    // The rows that `read` holds, and those that this thread needs, of each matrix.
    let mut held = vec![0..0; matrices.len()];
    let mut needed = vec![0; matrices.len()];
    for chunk in chunks {
        needed[chunk.matrix] = matrices[chunk.matrix].rows_of(&chunk.tiles).end;
    }
    for chunk in chunks {
        let (matrix, source, bytes) = (&matrices[chunk.matrix], &sources[chunk.matrix], &mut read[chunk.matrix]);
        let rows = matrix.rows_of(&chunk.tiles);
        let held = &mut held[chunk.matrix];
        let row_bytes = source.weight_type.row_bytes(source.columns).unwrap_or(0);
        if rows.end > held.end {
            let more = (READ_BYTES / row_bytes).max(rows.len());
            *held = rows.start..(rows.start + more).min(needed[chunk.matrix]);
            let held_bytes = held.len() * row_bytes;
            bytes.resize(bytes.len().max(held_bytes), 0);
            source.source.read(held.clone(), &mut bytes[..held_bytes])?;
        }
        let from = &bytes[(rows.start - held.start) * row_bytes..(rows.end - held.start) * row_bytes];
        let to = &mut region[chunk.offset..][..chunk.tiles.len() * matrix.tile_bytes];
        for (from, to) in from.chunks(LANES * row_bytes).zip(to.chunks_exact_mut(matrix.tile_bytes)) {
            matrix.pack_tile(level, from, row_bytes, to);
        }
    }
    Ok(())
}

impl Matrix {
    fn new(source: &MatrixSource<'_>, level: Level, threads: usize) -> Result<Self, KernelError> {
        let &MatrixSource { rows, columns, weight_type, bias, .. } = source;
        let shape = |reason: String| KernelError::Shape { reason };
        if rows == 0 || columns == 0 {
            return Err(shape(format!("{rows} x {columns} values")));
        }
        if weight_type.row_bytes(columns).is_none() {
            let reason = format!("rows of {columns} values are not whole blocks of {}", weight_type.name());
            return Err(shape(reason));
        }
        if bias.is_some_and(|bias| bias.len() != rows) {
            return Err(shape(format!("{rows} rows have a bias of another length")));
        }
        let blocks = columns.div_ceil(BLOCK);
        let bf16_pairs = matches!(weight_type, WeightType::F16 | WeightType::BF16) && level.prefers_bf16_dot();
        let (tile_bytes, forms) = with_format!(weight_type, F => (
            blocks / F::BLOCKS * unit_bytes::<F>(),
            Quantised::<F>::FORMS,
        ), float => {
            let value_bytes = if matches!(weight_type, WeightType::F32 | WeightType::FP8) { 4 } else { 2 };
            (blocks * BLOCK * LANES * value_bytes, if bf16_pairs { Bf16Pairs::FORMS } else { Floats::<Single>::FORMS })
        });
        let tile_bytes = tile_bytes.next_multiple_of(LINE_BYTES);
        let tiles = tiles_of(rows);
        let mut chunk_tiles = 2;
        while chunk_tiles * tile_bytes < CHUNK_BYTES_MIN && tiles / (2 * chunk_tiles) >= CHUNKS_PER_THREAD * threads {
            chunk_tiles *= 2;
        }
        let bias = bias.map(<[f32]>::to_vec);
        Ok(Self { weight_type, rows, columns, blocks, tile_bytes, bf16_pairs, forms, bias, chunk_tiles })
    }

    /// All its chunks, without a place yet.
    fn chunks(&self, matrix: usize) -> impl Iterator<Item = Chunk> + use<> {
        let (tiles, step) = (tiles_of(self.rows), self.chunk_tiles);
        let range = move |first: usize| first..(first + step).min(tiles);
        (0..tiles).step_by(step).map(move |first| Chunk { matrix, tiles: range(first), region: 0, offset: 0 })
    }

    /// The rows that tiles hold.
    fn rows_of(&self, tiles: &Range<usize>) -> Range<usize> {
        (tiles.start * LANES).min(self.rows)..(tiles.end * LANES).min(self.rows)
    }

    /// Packs up to 16 rows; missing ones stay zero.
    fn pack_tile(&self, level: Level, rows: &[u8], row_bytes: usize, tile: &mut [u8]) {
        with_format!(self.weight_type, F => pack_units::<F>(self, rows, row_bytes, tile), float => match self.weight_type {
            WeightType::F32 => pack_values(rows, row_bytes, tile, f32::from_le_bytes),
            // No processor multiplies with these: they are widened.
            WeightType::FP8 => {
                let mut values = Vec::new();
                dequantise(WeightType::FP8, rows, &mut values);
                let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                pack_values(&bytes, 4 * self.columns, tile, f32::from_le_bytes);
            }
            WeightType::F16 if self.bf16_pairs => {
                let mut rounded = Vec::with_capacity(rows.len());
                level.run(RoundToBf16 { from: rows, to: &mut rounded });
                pack_pairs(&rounded, row_bytes, tile);
            }
            _ if self.bf16_pairs => pack_pairs(rows, row_bytes, tile),
            _ => pack_values(rows, row_bytes, tile, u16::from_le_bytes),
        });
    }
}

/// Tiles of so many rows: an even number, since kernels take two at a time.
fn tiles_of(rows: usize) -> usize {
    rows.div_ceil(2 * LANES) * 2
}

fn pack_units<F: FileFormat>(matrix: &Matrix, rows: &[u8], row_bytes: usize, tile: &mut [u8]) {
    let units = matrix.blocks / F::BLOCKS;
    let (codes, scales) = tile.split_at_mut(units * size_of::<F::Codes>());
    let (codes, scales) = (cast_mut::<F::Codes>(codes, units), cast_mut::<F::Scales>(scales, units));
    for (row, bytes) in rows.chunks_exact(row_bytes).enumerate() {
        let blocks = bytes.chunks_exact(row_bytes / units);
        for ((block, codes), scales) in blocks.zip(codes.iter_mut()).zip(scales.iter_mut()) {
            F::pack(block, row, codes, scales);
        }
    }
}

fn pack_values<V: Plain, const BYTES: usize>(
    rows: &[u8],
    row_bytes: usize,
    tile: &mut [u8],
    value: impl Fn([u8; BYTES]) -> V,
) {
    let columns = tile.len() / (LANES * BYTES);
    let tile = cast_mut::<V>(tile, columns * LANES).as_chunks_mut::<LANES>().0;
    for (row, bytes) in rows.chunks_exact(row_bytes).enumerate() {
        for (column, bytes) in tile.iter_mut().zip(bytes.as_chunks().0) {
            column[row] = value(*bytes);
        }
    }
}

/// Columns by twos, so that the two of a row are neighbours.
fn pack_pairs(rows: &[u8], row_bytes: usize, tile: &mut [u8]) {
    let tile = tile.as_chunks_mut::<4>().0.as_chunks_mut::<LANES>().0;
    for (row, bytes) in rows.chunks_exact(row_bytes).enumerate() {
        let (pairs, rest) = bytes.as_chunks::<4>();
        for (pair, bytes) in tile.iter_mut().zip(pairs) {
            pair[row] = *bytes;
        }
        if let [low, high] = rest {
            tile[pairs.len()][row] = [*low, *high, 0, 0];
        }
    }
}

impl Packed {
    /// The bytes of a chunk's tiles.
    pub(super) fn bytes(&self, chunk: &Chunk) -> &[u8] {
        let len = chunk.tiles.len() * self.matrices[chunk.matrix].tile_bytes;
        &self.regions[chunk.region][chunk.offset..][..len]
    }

    /// The tile that holds `row` of matrix 0, of those packed in turn.
    pub(super) fn tile_of(&self, row: usize) -> &[u8] {
        let matrix = &self.matrices[0];
        let tile = row / LANES;
        let chunk = &self.chunks[tile / matrix.chunk_tiles];
        &self.bytes(chunk)[(tile - chunk.tiles.start) * matrix.tile_bytes..][..matrix.tile_bytes]
    }

    /// What rows must be encoded as.
    pub(super) fn forms(&self) -> Forms {
        self.matrices.iter().fold(Forms::default(), |forms, matrix| forms.and(matrix.forms))
    }

    /// Inputs.
    pub(super) fn columns(&self) -> usize {
        self.matrices[0].columns
    }

    /// Outputs of all matrices.
    pub(super) fn outputs(&self) -> usize {
        self.matrices.iter().map(|matrix| matrix.rows).sum()
    }
}
