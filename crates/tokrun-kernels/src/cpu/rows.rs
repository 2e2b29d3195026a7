//! Matrices of activations, and work on them that goes row by row.

use std::ops::Range;

use super::memory::{Buffer, Disjoint, Pages};
use super::pool::{Pool, share};
use crate::KernelError;

/// Values below which waking the other threads takes longer than the work: some microseconds of it.
const ALONE_VALUES_MAX: usize = 16 << 10;
/// Pieces that each thread gets, if all are as fast.
pub(super) const PIECES_A_THREAD: usize = 4;

/// Activations `[rows, width]`, f32, row-major, in memory that is taken when it is first used.
pub struct CpuRows {
    width: usize,
    values: Buffer<f32>,
}

impl std::fmt::Debug for CpuRows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CpuRows").field("width", &self.width).field("values", &self.values.len()).finish()
    }
}

impl CpuRows {
    pub(super) fn new(rows: usize, width: usize) -> Result<Self, KernelError> {
        let Some(len) = rows.checked_mul(width) else {
            return Err(KernelError::OutOfMemory { bytes: usize::MAX });
        };
        Ok(Self { width, values: Buffer::new(len, Pages::Normal)? })
    }

    pub(super) fn width(&self) -> usize {
        self.width
    }

    pub(super) fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.width..][..self.width]
    }

    pub(super) fn row_mut(&mut self, row: usize) -> &mut [f32] {
        &mut self.values[row * self.width..][..self.width]
    }

    /// The first `rows` rows, one after the other.
    pub(super) fn first(&self, rows: usize) -> &[f32] {
        &self.values[..rows * self.width]
    }

    /// The first `rows` rows, one after the other.
    pub(super) fn first_mut(&mut self, rows: usize) -> &mut [f32] {
        &mut self.values[..rows * self.width]
    }
}

/// Calls `work` with ranges of rows, of `width` values each, and their values in `values`, until all rows are done: on
/// this thread where they are few, otherwise on all threads.
pub(super) fn by_rows(
    pool: &mut Pool,
    values: &mut [f32],
    width: usize,
    work: impl Fn(Range<usize>, &mut [f32]) + Sync,
) {
    let rows = values.len() / width.max(1);
    if values.len() <= ALONE_VALUES_MAX || rows < 2 || pool.threads() == 1 {
        return work(0..rows, values);
    }
    let pieces = rows.min(PIECES_A_THREAD * pool.threads());
    let values = Disjoint::new(values);
    pool.for_chunks(pieces, |_, chunks| {
        for piece in chunks {
            let rows = share(rows, piece, pieces);
            #[expect(unsafe_code, reason = "threads share one matrix")]
            // SAFETY: the pieces do not overlap.
            let part = unsafe { values.part(rows.start * width..rows.end * width) };
            work(rows, part);
        }
    });
}
