//! What changes from step to step (tokens, positions, block tables, chosen rows), at fixed addresses of the device, so that
//! a captured graph never has to change. It gets there in one copy.

use super::device::Device;
use super::launches::Arguments;
use super::memory::{Buffer, Pinned};
use super::prompts::prompts;
use super::rows::bucket;
use super::stream::Event;
use crate::sampling::{Draw, scale};
use crate::{KernelError, Step};

/// Position of the rows that fill a step up: kernels store nothing for them.
const NO_POSITION: u32 = u32::MAX;
const ROWS_MIN: usize = 64;
const BLOCKS_MIN: usize = 4096;

/// Marks a token that was drawn in the step before: its index is in the other bits.
const UNKNOWN: u32 = 1 << 31;
/// Words of the kernels' `Draw`.
const DRAW_WORDS: usize = 8;

/// The sections, words each, one after the other: tokens, positions, tables (where in `blocks` a row's sequence begins),
/// all `[rows]`; chosen rows `[2 * rows]`; prompts (first row and how many), `[rows / 2, 2]`; draws `[rows, DRAW_WORDS]`; blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Room {
    rows: usize,
    blocks: usize,
}

impl Room {
    const fn positions(self) -> usize {
        self.rows
    }
    const fn tables(self) -> usize {
        2 * self.rows
    }
    const fn chosen(self) -> usize {
        3 * self.rows
    }
    const fn prompts(self) -> usize {
        5 * self.rows
    }
    /// At a multiple of 8 bytes.
    const fn draws(self) -> usize {
        6 * self.rows.next_multiple_of(2)
    }
    const fn blocks(self) -> usize {
        self.draws() + DRAW_WORDS * self.rows
    }
    const fn words(self) -> usize {
        self.blocks() + self.blocks
    }
}

/// The data of the current step.
#[derive(Debug)]
pub(super) struct Stage {
    room: Room,
    words: Buffer<u32>,
    /// Two of them, so that one can be written while the other is copied.
    hosts: [Host; 2],
    turn: usize,
    /// Chosen rows of this step so far.
    chosen: usize,
    /// Words of this step's blocks.
    blocks: usize,
}

#[derive(Debug)]
struct Host {
    words: Pinned<u32>,
    copied: Event,
}

impl Stage {
    pub(super) fn new(device: &Device) -> Result<Self, KernelError> {
        Self::with_room(device, Room { rows: ROWS_MIN, blocks: BLOCKS_MIN })
    }

    fn with_room(device: &Device, room: Room) -> Result<Self, KernelError> {
        let host = || -> Result<Host, KernelError> {
            Ok(Host { words: device.pinned(room.words())?, copied: device.event()? })
        };
        let words = device.buffer(room.words())?;
        Ok(Self { room, words, hosts: [host()?, host()?], turn: 0, chosen: 0, blocks: 0 })
    }

    /// Rows there is room for.
    pub(super) fn rows(&self) -> usize {
        self.room.rows
    }

    /// Writes down a step that is filled up to `rows` rows; nothing is copied yet. Steps will have `rows_max` rows at most,
    /// as far as is known.
    pub(super) fn begin(
        &mut self,
        device: &Device,
        step: &Step,
        rows: usize,
        rows_max: usize,
    ) -> Result<(), KernelError> {
        let blocks = step.spans.iter().map(|span| span.blocks.len()).sum::<usize>();
        self.reserve(device, rows.max(rows_max), blocks)?;
        self.turn = 1 - self.turn;
        (self.chosen, self.blocks) = (0, blocks);
        let room = self.room;
        let host = &mut self.hosts[self.turn];
        host.copied.wait()?;
        let words = &mut host.words[..];
        words[..rows].fill(0);
        words[..step.tokens.len()].copy_from_slice(&step.tokens);
        words[room.positions()..][..rows].fill(NO_POSITION);
        words[room.tables()..][..rows].fill(0);
        let mut table = 0;
        for span in &step.spans {
            for (row, position) in span.rows.clone().zip(span.start..) {
                words[room.positions() + row] = i32::try_from(position).expect("contexts are short").cast_unsigned();
                words[room.tables() + row] = table as u32;
            }
            words[room.blocks() + table..][..span.blocks.len()].copy_from_slice(&span.blocks);
            table += span.blocks.len();
        }
        for (words, rows) in words[room.prompts()..].as_chunks_mut::<2>().0.iter_mut().zip(prompts(step)) {
            *words = [rows.start as u32, rows.len() as u32];
        }
        Ok(())
    }

    /// Makes room for steps of so many rows and blocks.
    pub(super) fn reserve(&mut self, device: &Device, rows: usize, blocks: usize) -> Result<(), KernelError> {
        if rows > self.room.rows || blocks > self.room.blocks {
            device.synchronise()?;
            let room = Room {
                rows: self.room.rows.max(bucket(rows)),
                blocks: self.room.blocks.max(blocks.next_power_of_two()),
            };
            *self = Self::with_room(device, room)?;
        }
        Ok(())
    }

    /// Writes down a choice of rows, filled up to `count` with the first one; where it begins among the chosen, or nothing
    /// where there is no room.
    pub(super) fn choose(&mut self, rows: &[usize], count: usize) -> Option<usize> {
        let first = self.chosen;
        if first + count > 2 * self.room.rows {
            return None;
        }
        self.chosen += count;
        let words = &mut self.hosts[self.turn].words[self.room.chosen() + first..][..count];
        words.fill(0);
        for (word, row) in words.iter_mut().zip(rows) {
            *word = *row as u32;
        }
        Some(first)
    }

    /// Lets `choose` begin anew; what it wrote is no longer needed.
    pub(super) fn forget_chosen(&mut self) {
        self.chosen = 0;
    }

    /// Copies all of it.
    pub(super) fn upload(&mut self, device: &Device) -> Result<(), KernelError> {
        self.copy(device, 0..self.room.blocks() + self.blocks)
    }

    /// Copies `count` chosen rows from `first` on.
    pub(super) fn upload_chosen(&mut self, device: &Device, first: usize, count: usize) -> Result<(), KernelError> {
        let start = self.room.chosen() + first;
        self.copy(device, start..start + count)
    }

    /// Writes down which rows get what was drawn in the step before.
    pub(super) fn expect(&mut self, drawn: &[(usize, usize)]) {
        let words = &mut self.hosts[self.turn].words;
        for &(row, index) in drawn {
            words[row] = UNKNOWN | index as u32;
        }
    }

    /// Copies the tokens of the first `rows` rows again.
    pub(super) fn upload_tokens(&mut self, device: &Device, rows: usize) -> Result<(), KernelError> {
        self.copy(device, 0..rows)
    }

    /// Writes down draws, filled up to `count` with those of no vocabulary.
    pub(super) fn draw(&mut self, draws: &[Draw], count: usize) {
        let start = self.room.draws();
        let words = &mut self.hosts[self.turn].words[start..start + DRAW_WORDS * count];
        words.fill(0);
        for (words, draw) in words.as_chunks_mut::<DRAW_WORDS>().0.iter_mut().zip(draws) {
            let scale = if draw.temperature == 0.0 { 0.0 } else { scale(draw.temperature) };
            let top_k = draw.top_k.min(draw.vocab_size) as u32;
            let floats = [scale, draw.top_p, draw.min_p].map(f32::to_bits);
            let number = [draw.number as u32, (draw.number >> 32) as u32];
            *words = [draw.vocab_size as u32, floats[0], top_k, floats[1], floats[2], 0, number[0], number[1]];
        }
    }

    /// Copies the first `count` draws.
    pub(super) fn upload_draws(&mut self, device: &Device, count: usize) -> Result<(), KernelError> {
        let start = self.room.draws();
        self.copy(device, start..start + DRAW_WORDS * count)
    }

    fn copy(&mut self, device: &Device, words: std::ops::Range<usize>) -> Result<(), KernelError> {
        let host = &mut self.hosts[self.turn];
        let to = words.start;
        device.upload(&host.words, words, &self.words, to)?;
        Ok(host.copied.record()?)
    }

    fn address(&self, word: usize) -> u64 {
        self.words.address() + 4 * word as u64
    }

    /// Tokens of the rows.
    pub(super) fn tokens(&self) -> u64 {
        self.address(0)
    }

    /// Positions of the rows from `row` on.
    pub(super) fn positions(&self, row: usize) -> u64 {
        self.address(self.room.positions() + row)
    }

    /// Chosen rows from `first` on.
    pub(super) fn chosen(&self, first: usize) -> u64 {
        self.address(self.room.chosen() + first)
    }

    /// The kernels' `Prompt`s.
    pub(super) fn prompts(&self) -> u64 {
        self.address(self.room.prompts())
    }

    /// The draws.
    pub(super) fn draws(&self) -> u64 {
        self.address(self.room.draws())
    }

    /// The kernels' `Places`, of the rows from `row` on.
    pub(super) fn places<'a>(&self, row: usize, arguments: Arguments<'a>) -> Arguments<'a> {
        let tables = self.address(self.room.tables() + row);
        let blocks = self.address(self.room.blocks());
        arguments.param().address(self.positions(row)).address(tables).address(blocks)
    }
}
