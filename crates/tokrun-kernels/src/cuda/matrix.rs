//! Weights on the device, streamed there through two buffers of pinned memory: while one is copied, the other is filled.

use std::collections::HashMap;

use super::device::{Device, Kernel};
use super::formats::{Form, Layout, PLANES, form};
use super::launches::Arguments;
use super::memory::{Buffer, Pinned};
use super::stream::Event;
use super::tiles::TileKernels;
use crate::{KernelError, MatrixSource, WeightType};

/// Bytes of one of the two buffers, unless a single row has more.
const PIECE_BYTES: usize = 8 << 20;
/// Rows below which another thread is not worth its start.
const THREAD_BYTES_MIN: usize = 256 << 10;
/// Threads that pack; more do not outrun the bus.
const THREADS_MAX: usize = 8;
/// Planes begin at multiples of this.
const PLANE_ALIGNMENT: usize = 256;
/// Rows of activations that the kernels of a type work on at once.
pub(super) const TILE_ROWS: [usize; 3] = [1, 4, 8];
/// Pairs of rows below which several warps share one.
const PAIRS_ENOUGH: usize = 2048;
/// Warps a block of the kernels that multiply.
const WARPS: usize = 8;

/// One matrix, or gate and up of the same type one below the other.
#[derive(Debug)]
pub(super) struct Matrix {
    /// Never used twice: says which matrix it is.
    pub(super) id: u64,
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) weight_type: WeightType,
    pub(super) form: Form,
    pub(super) kernels: Kernels,
    /// Warps that share a row, from the shape alone: it enters into the order of the sums.
    pub(super) warps_a_row: usize,
    planes: Buffer<u8>,
    /// Where each plane begins.
    starts: [usize; PLANES],
    chunks: usize,
    bias: Option<Buffer<f32>>,
}

/// The kernels of its type.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernels {
    /// For each of [`TILE_ROWS`].
    pub(super) linear: [Kernel; 3],
    pub(super) gated: [Kernel; 3],
    pub(super) expert_linear: Kernel,
    pub(super) expert_gated: Kernel,
    pub(super) embed: Kernel,
    /// For many rows, where the device is free to add in another order.
    pub(super) tiles: Option<TileKernels>,
}

impl Kernels {
    fn load(device: &Device, weight_type: WeightType, with_tiles: bool) -> Result<Self, KernelError> {
        let name = weight_type.name().to_ascii_lowercase();
        let module = format!("linear_{name}");
        let kernel = |function: String| device.kernel(&module, &function).map_err(KernelError::from);
        let tiles = |operation: &str| -> Result<[Kernel; 3], KernelError> {
            let [one, four, eight] = TILE_ROWS.map(|tile| kernel(format!("{operation}_{name}_{tile}")));
            Ok([one?, four?, eight?])
        };
        Ok(Self {
            linear: tiles("linear")?,
            gated: tiles("gated")?,
            expert_linear: kernel(format!("expert_linear_{name}"))?,
            expert_gated: kernel(format!("expert_gated_{name}"))?,
            embed: kernel(format!("embed_{name}"))?,
            tiles: if with_tiles { TileKernels::load(device, weight_type)? } else { None },
        })
    }
}

impl Matrix {
    /// The fields of the kernels' `Matrix`.
    fn fields(&self) -> ([u64; 5], [usize; 2]) {
        let plane = |plane: usize| self.planes.address() + self.starts[plane] as u64;
        let bias = self.bias.as_ref().map_or(0, Buffer::address);
        ([plane(0), plane(1), plane(2), plane(3), bias], [self.rows, self.chunks])
    }

    /// The kernels' `Matrix`.
    pub(super) fn argument<'a>(&self, arguments: Arguments<'a>) -> Arguments<'a> {
        let (addresses, sizes) = self.fields();
        let arguments = addresses.into_iter().fold(arguments.param(), Arguments::address);
        sizes.into_iter().fold(arguments, Arguments::int)
    }

    /// The same, as it lies in memory.
    pub(super) fn words(&self) -> [u64; 6] {
        let ([codes, high, scales, supers, bias], [rows, chunks]) = self.fields();
        [codes, high, scales, supers, bias, rows as u64 | (chunks as u64) << 32]
    }

    /// Blocks that compute all rows for one tile of the input.
    pub(super) fn linear_blocks(&self) -> usize {
        self.rows.div_ceil(2 * (WARPS / self.warps_a_row))
    }
}

/// Packs matrices.
#[derive(Debug, Default)]
pub(super) struct Packer {
    /// Taken while there are weights to pack.
    pieces: Option<[Piece; 2]>,
    next_piece: usize,
    next_id: u64,
    /// Whether kernels for many rows are loaded too.
    with_tiles: bool,
    /// Those that were loaded.
    kernels: HashMap<WeightType, Kernels>,
}

#[derive(Debug)]
struct Piece {
    memory: Pinned<u8>,
    /// When its copies were done.
    copied: Event,
}

impl Packer {
    /// For matrices that are multiplied with many rows on tensor cores, or are not.
    pub(super) fn new(with_tiles: bool) -> Self {
        Self { with_tiles, ..Self::default() }
    }

    /// Frees the memory that packing takes.
    pub(super) fn finish(&mut self) {
        self.pieces = None;
    }

    fn kernels(&mut self, device: &Device, weight_type: WeightType) -> Result<Kernels, KernelError> {
        if let Some(kernels) = self.kernels.get(&weight_type) {
            return Ok(*kernels);
        }
        let kernels = Kernels::load(device, weight_type, self.with_tiles)?;
        self.kernels.insert(weight_type, kernels);
        Ok(kernels)
    }

    /// Packs matrices of one type and one number of columns, one below the other.
    pub(super) fn pack(&mut self, device: &Device, sources: &[MatrixSource<'_>]) -> Result<Matrix, KernelError> {
        let first = &sources[0];
        let (weight_type, columns) = (first.weight_type, first.columns);
        if columns == 0 || weight_type.row_bytes(columns).is_none() {
            return Err(shape(format!(
                "{columns} columns are not whole blocks of {}: {}",
                weight_type.block_size(),
                weight_type.name()
            )));
        }
        let rows: usize = sources.iter().map(|source| source.rows).sum();
        if rows > i32::MAX as usize || columns > i32::MAX as usize {
            return Err(shape(format!("{rows} x {columns} is more than kernels can count")));
        }
        let layout = Layout::new(weight_type, columns);
        let mut starts = [0; PLANES];
        let mut end = 0;
        for (start, row_bytes) in starts.iter_mut().zip(layout.row_bytes) {
            *start = end;
            let bytes = row_bytes.checked_mul(rows).and_then(|bytes| bytes.checked_next_multiple_of(PLANE_ALIGNMENT));
            end =
                bytes.and_then(|bytes| bytes.checked_add(end)).ok_or(KernelError::OutOfMemory { bytes: usize::MAX })?;
        }
        let planes = device.buffer(end)?;
        let chunks = layout.chunks;
        let matrix = Matrix {
            id: self.next_id,
            rows,
            columns,
            weight_type,
            form: form(weight_type),
            kernels: self.kernels(device, weight_type)?,
            warps_a_row: warps_a_row(rows, chunks),
            planes,
            starts,
            chunks,
            bias: bias(device, sources)?,
        };
        self.next_id += 1;
        let mut row = 0;
        for source in sources {
            self.stream(device, source, &layout, &matrix, row)?;
            row += source.rows;
        }
        Ok(matrix)
    }

    /// Brings the rows of a source to the device, from row `first` of the matrix on.
    fn stream(
        &mut self,
        device: &Device,
        source: &MatrixSource<'_>,
        layout: &Layout,
        matrix: &Matrix,
        first: usize,
    ) -> Result<(), KernelError> {
        let row_bytes: usize = layout.row_bytes.iter().sum();
        let rows_a_piece = (PIECE_BYTES / row_bytes).max(1);
        for start in (0..source.rows).step_by(rows_a_piece) {
            let rows = start..source.rows.min(start + rows_a_piece);
            let count = rows.len();
            let piece = self.piece(device, row_bytes * rows_a_piece)?;
            piece.copied.wait()?;
            let memory = &mut piece.memory[..row_bytes * count];
            pack_rows(source, layout, rows, memory)?;
            let mut from = 0;
            for (plane, bytes) in layout.row_bytes.into_iter().enumerate() {
                let to = matrix.starts[plane] + (first + start) * bytes;
                device.upload(&piece.memory, from..from + count * bytes, &matrix.planes, to)?;
                from += count * bytes;
            }
            piece.copied.record()?;
        }
        Ok(())
    }

    /// The next of the two buffers, with room for `bytes`.
    fn piece(&mut self, device: &Device, bytes: usize) -> Result<&mut Piece, KernelError> {
        if self.pieces.as_ref().is_none_or(|pieces| pieces[0].memory.len() < bytes) {
            let new = || -> Result<Piece, KernelError> {
                Ok(Piece { memory: device.pinned(bytes.max(PIECE_BYTES))?, copied: device.event()? })
            };
            device.synchronise()?;
            self.pieces = Some([new()?, new()?]);
        }
        self.next_piece = 1 - self.next_piece;
        Ok(&mut self.pieces.as_mut().expect("made above")[self.next_piece])
    }
}

/// Reads rows and packs them into `memory`, plane after plane, on several threads where there is much to do.
fn pack_rows(
    source: &MatrixSource<'_>,
    layout: &Layout,
    rows: std::ops::Range<usize>,
    memory: &mut [u8],
) -> Result<(), KernelError> {
    let count = rows.len();
    let available = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
    let threads = available.min(memory.len().div_ceil(THREAD_BYTES_MIN)).min(count);
    memory.fill(0);
    let mut planes: [&mut [u8]; PLANES] = Default::default();
    let mut rest = memory;
    for (plane, bytes) in planes.iter_mut().zip(layout.row_bytes) {
        (*plane, rest) = rest.split_at_mut(count * bytes);
    }
    let share = count.div_ceil(threads);
    std::thread::scope(|scope| {
        let mut workers = Vec::new();
        for start in rows.clone().step_by(share) {
            let rows = start..rows.end.min(start + share);
            let mut part: [&mut [u8]; PLANES] = Default::default();
            for ((part, plane), bytes) in part.iter_mut().zip(&mut planes).zip(layout.row_bytes) {
                (*part, *plane) = std::mem::take(plane).split_at_mut(rows.len() * bytes);
            }
            if rows.end == rows.start + count {
                return pack_part(source, layout, rows, part);
            }
            workers.push(scope.spawn(move || pack_part(source, layout, rows, part)));
        }
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

fn pack_part(
    source: &MatrixSource<'_>,
    layout: &Layout,
    rows: std::ops::Range<usize>,
    mut planes: [&mut [u8]; PLANES],
) -> Result<(), KernelError> {
    let file_bytes = source.weight_type.row_bytes(source.columns).expect("checked before");
    let mut bytes = vec![0; rows.len() * file_bytes];
    source.source.read(rows, &mut bytes)?;
    for file in bytes.chunks_exact(file_bytes) {
        let mut row: [&mut [u8]; PLANES] = Default::default();
        for ((row, plane), bytes) in row.iter_mut().zip(&mut planes).zip(layout.row_bytes) {
            (*row, *plane) = std::mem::take(plane).split_at_mut(bytes);
        }
        layout.pack(file, &mut row);
    }
    Ok(())
}

/// The biases of all sources, if any has one.
fn bias(device: &Device, sources: &[MatrixSource<'_>]) -> Result<Option<Buffer<f32>>, KernelError> {
    if sources.iter().all(|source| source.bias.is_none()) {
        return Ok(None);
    }
    let mut values = Vec::new();
    for source in sources {
        match source.bias {
            Some(bias) if bias.len() != source.rows => {
                return Err(shape(format!("{} bias values for {} rows", bias.len(), source.rows)));
            }
            Some(bias) => values.extend_from_slice(bias),
            None => values.resize(values.len() + source.rows, 0.0),
        }
    }
    Ok(Some(device.buffer_of(&values)?))
}

/// As many as it takes to have work for a large card, as long as each has some.
fn warps_a_row(rows: usize, chunks: usize) -> usize {
    let (pairs, strips) = (rows.div_ceil(2), chunks.div_ceil(32));
    let mut warps = 1;
    while warps < WARPS && pairs * warps < PAIRS_ENOUGH && strips >= 2 * warps {
        warps *= 2;
    }
    warps
}

pub(super) fn shape(reason: String) -> KernelError {
    KernelError::Shape { reason }
}
