//! How fast a device's memory is, measured: the ceiling that decoding is held against.

use std::time::Duration;

use super::device::{Device, Parameters, Shape};
use super::error::CudaError;

/// Bytes a second, each byte counted as often as it is read or written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bandwidth {
    /// Of copies within the device: bytes read plus bytes written.
    pub copy_bytes_per_second: f64,
    /// Of a kernel that only reads, which is what decoding does.
    pub read_bytes_per_second: f64,
}

/// Far more than a second-level cache holds.
const BYTES_WANTED: usize = 2 << 30;
const BYTES_MIN: usize = 64 << 20;
const ROUNDS: usize = 10;
const THREADS: u32 = 256;
/// Blocks that a multiprocessor has room for at once.
const BLOCKS_A_MULTIPROCESSOR: u32 = 8;

impl Device {
    /// Measures with as much memory as is free, up to 2 GiB twice; a fraction of a second on a card.
    ///
    /// # Errors
    /// When less than 128 MiB are free, or the driver refuses.
    pub fn bandwidth(&self) -> Result<Bandwidth, CudaError> {
        let bytes = (self.memory_free_bytes()? / 4).clamp(BYTES_MIN, BYTES_WANTED) / 4096 * 4096;
        self.bandwidth_of(bytes, ROUNDS)
    }

    /// The best of some rounds, over `bytes` bytes.
    pub(super) fn bandwidth_of(&self, bytes: usize, rounds: usize) -> Result<Bandwidth, CudaError> {
        let (from, to) = (self.buffer::<u8>(bytes)?, self.buffer::<u8>(bytes)?);
        // Zeros would flatter: cards save power, and so gain speed, where no wire changes.
        self.scribble(&from)?;
        let copy = self.best(rounds, || self.copy(&from, 0..bytes, &to, 0))?;
        let blocks = self.facts().multiprocessors.unsigned_abs() * BLOCKS_A_MULTIPROCESSOR;
        let sums = self.buffer::<u32>(4 * (blocks * THREADS) as usize)?;
        let kernel = self.kernel("bandwidth", "bandwidth_read")?;
        let shape = Shape { grid: [blocks, 1, 1], threads: THREADS, shared_bytes: 0, overlaps: false };
        let words = [from.address(), bytes as u64 / 16, sums.address()];
        let read =
            self.best(rounds, || self.launch(kernel, shape, Parameters { starts: &[0, 1, 2], words: &words }))?;
        Ok(Bandwidth {
            copy_bytes_per_second: 2.0 * bytes as f64 / copy.as_secs_f64(),
            read_bytes_per_second: bytes as f64 / read.as_secs_f64(),
        })
    }

    /// The first round warms up.
    fn best(&self, rounds: usize, work: impl Fn() -> Result<(), CudaError>) -> Result<Duration, CudaError> {
        work()?;
        let mut best = Duration::MAX;
        for _ in 0..rounds {
            best = best.min(self.time(&work)?);
        }
        Ok(best.max(Duration::from_nanos(1)))
    }

    /// Fills a buffer with what looks random.
    fn scribble(&self, buffer: &super::memory::Buffer<u8>) -> Result<(), CudaError> {
        let mut piece = self.pinned::<u8>(buffer.len().min(8 << 20))?;
        let mut state = 1u32;
        for byte in piece.iter_mut() {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *byte = (state >> 24) as u8;
        }
        for at in (0..buffer.len()).step_by(piece.len()) {
            let len = piece.len().min(buffer.len() - at);
            self.upload(&piece, 0..len, buffer, at)?;
        }
        Ok(())
    }
}
