//! Tokens that are drawn where the logits are. The next step can take them from there; the host gets them in one small
//! copy, which nobody waits for until somebody asks.

use std::collections::VecDeque;

use super::backend::{Cuda, THREADS};
use super::device::Device;
use super::memory::{Arriving, Buffer};
use super::rows::CudaRows;
use crate::KernelError;
use crate::sampling::{BadLogit, Draw};

/// Threads of a block that goes through one row.
const ROW_THREADS: usize = 512;
/// Marks a token whose logit leaves no choice.
const BAD: u32 = 1 << 31;
/// Words that are drawn for a row: the token, and the bits of its logit.
const WORDS: usize = 2;

/// What was drawn.
#[derive(Debug, Default)]
pub(super) struct Drawn {
    /// `[rows, WORDS]` of the latest step, on the device.
    latest: Option<Buffer<u32>>,
    /// On their way to the host, the earliest first, and how many rows of each count.
    arriving: VecDeque<(Arriving<u32>, usize)>,
    /// Memory of those that were taken.
    spare: Vec<Arriving<u32>>,
}

impl Drawn {
    /// Makes room for steps that draw from so many rows: on the device, and on the host for the one that is under way and the
    /// one that is taken.
    pub(super) fn reserve(&mut self, device: &Device, rows: usize) -> Result<(), KernelError> {
        self.latest(device, rows)?;
        while self.spare.len() < 2 {
            self.spare.push(device.arriving(WORDS * rows)?);
        }
        Ok(())
    }

    /// Where tokens are drawn to; with room for so many rows at first.
    fn latest(&mut self, device: &Device, rows: usize) -> Result<u64, KernelError> {
        let latest = match self.latest.take() {
            Some(latest) => latest,
            None => device.zeroed(WORDS * rows)?,
        };
        Ok(self.latest.insert(latest).address())
    }

    /// Begins the copy of the first `rows` rows.
    fn send(&mut self, device: &Device, rows: usize) -> Result<(), KernelError> {
        let Some(latest) = &self.latest else { return Ok(()) };
        let mut arriving = match self.spare.pop().filter(|spare| spare.len() >= WORDS * rows) {
            Some(spare) => spare,
            None => device.arriving(latest.len())?,
        };
        device.send(latest, 0..WORDS * rows, &mut arriving)?;
        self.arriving.push_back((arriving, rows));
        Ok(())
    }

    fn take(&mut self) -> Result<Vec<Result<u32, BadLogit>>, KernelError> {
        let Some((mut arriving, rows)) = self.arriving.pop_front() else { return Ok(Vec::new()) };
        let words = &arriving.wait()?[..WORDS * rows];
        let drawn = words.as_chunks::<WORDS>().0.iter().map(|&[token, bits]| match token & BAD {
            0 => Ok(token),
            _ => Err(BadLogit { token: token & !BAD, value: f32::from_bits(bits) }),
        });
        let drawn = drawn.collect();
        self.spare.push(arriving);
        Ok(drawn)
    }
}

impl Cuda {
    /// Writes down that rows get tokens that were drawn.
    pub(super) fn launch_feed(&mut self, drawn: &[(usize, usize)]) -> Result<(), KernelError> {
        self.stage.expect(drawn);
        if !self.is_recording() {
            self.stage.upload_tokens(&self.device, self.rows)?;
        }
        let (tokens, rows) = (self.stage.tokens(), self.rows);
        let latest = self.drawn.latest(&self.device, self.stage.rows())?;
        let arguments = self.launches.add(self.kernels.feed, [rows.div_ceil(THREADS), 1, 1], THREADS);
        arguments.param().address(tokens).param().int(rows).param().address(latest);
        Ok(())
    }

    /// Writes down the draws and their launch.
    pub(super) fn launch_sample(&mut self, logits: &CudaRows, first: usize, draws: &[Draw]) -> Result<(), KernelError> {
        // Of rows that have no draw, or only fill a step up, nothing is drawn.
        let count = if self.is_recording() { self.rows - first } else { draws.len() };
        assert!(draws.iter().all(|draw| draw.vocab_size <= logits.width()), "the logits' width");
        if self.drawn.latest.as_ref().is_some_and(|latest| latest.len() < WORDS * count) {
            // What was drawn before is not needed any more: this step has begun.
            self.settle()?;
            self.drawn.latest = None;
        }
        let drawn = self.drawn.latest(&self.device, self.stage.rows().max(count))?;
        self.stage.draw(draws, count);
        if !self.is_recording() {
            self.stage.upload_draws(&self.device, count)?;
        }
        let from = logits.address(self.rows) + 4 * (first * logits.width()) as u64;
        let (draws, width) = (self.stage.draws(), logits.width());
        let arguments = self.launches.add(self.kernels.sample, [count, 1, 1], ROW_THREADS).param().address(from);
        arguments.param().int(width).param().address(draws).param().address(drawn);
        Ok(())
    }

    /// Begins to bring what was drawn to the host.
    pub(super) fn send_drawn(&mut self, rows: usize) {
        self.attempt(|cuda| cuda.drawn.send(&cuda.device, rows));
    }

    /// What was drawn the longest ago; nothing where that failed.
    pub(super) fn take_drawn(&mut self) -> Vec<Result<u32, BadLogit>> {
        let mut drawn = Vec::new();
        let taken = self.drawn.take();
        self.attempt(|_| {
            drawn = taken?;
            Ok(())
        });
        drawn
    }
}
