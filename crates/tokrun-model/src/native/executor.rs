//! Runs a decoder on one backend, over a paged KV cache whose blocks the caller hands out.

use std::collections::{BTreeSet, VecDeque};

use tokrun_kernels::energy::EnergyMeter;
use tokrun_kernels::sampling::Draw;
use tokrun_kernels::{Backend, KV_BLOCK_TOKENS, Span, Step};

use super::decoder::{Buffers, Decoder, Room};
use crate::{
    Drawing, Drawn, Executor, ExecutorInfo, Extend, Logits, ModelError, OpTime, SequenceHandle, TokenId, Wanted,
};

/// A decoder with its cache and its buffers.
pub(super) struct Parts<B: Backend> {
    pub(super) backend: B,
    pub(super) decoder: Decoder<B>,
    pub(super) buffers: Buffers<B>,
    pub(super) kv: B::Kv,
    /// Rows of the buffers.
    pub(super) room: Room,
    /// The first token that is outside the embedding matrix.
    pub(super) embedded_tokens: usize,
    /// Of the device, where it has one.
    pub(super) energy: Option<EnergyMeter>,
    /// The backend draws tokens without anybody waiting for them.
    pub(super) draws_tokens: bool,
}

/// Runs them.
pub(super) struct NativeExecutor<B: Backend> {
    info: ExecutorInfo,
    notes: Vec<String>,
    parts: Parts<B>,
    state: State,
}

/// What changes from step to step.
#[derive(Default)]
struct State {
    sequences: BTreeSet<SequenceHandle>,
    next_handle: u64,
    /// For each block, the last batch that writes to it.
    written_by: Vec<u32>,
    batch: u32,
    step: Step,
    /// Rows of the step whose logits are wanted.
    wanted: Vec<usize>,
    /// Logits of a batch that was computed in several pieces.
    values: Vec<f32>,
    /// What was submitted and not collected; what it drew, where that is here already.
    under_way: VecDeque<Option<Drawn>>,
}

impl<B: Backend> NativeExecutor<B> {
    /// Puts the parts together.
    pub(super) fn new(info: ExecutorInfo, notes: Vec<String>, parts: Parts<B>) -> Self {
        let blocks = info.paging.as_ref().expect("this executor is paged").blocks;
        let state = State { written_by: vec![0; blocks], ..State::default() };
        Self { info, notes, parts, state }
    }
}

impl<B: Backend> Executor for NativeExecutor<B> {
    fn info(&self) -> &ExecutorInfo {
        &self.info
    }

    fn create(&mut self) -> Result<SequenceHandle, ModelError> {
        if self.state.sequences.len() >= self.info.sequences_max {
            return Err(ModelError::SequencesFull { sequences_max: self.info.sequences_max });
        }
        let handle = SequenceHandle(self.state.next_handle);
        self.state.next_handle += 1;
        self.state.sequences.insert(handle);
        Ok(handle)
    }

    fn extend(&mut self, batch: &[Extend<'_>]) -> Result<Logits<'_>, ModelError> {
        self.check(batch)?;
        let Parts { backend, decoder, buffers, kv, room, .. } = &mut self.parts;
        let State { step, wanted, values, .. } = &mut self.state;
        let mut pieces = Pieces::new(batch, *room);
        values.clear();
        // Usually one step computes all that is wanted, and its logits stay where they are.
        let mut in_place = false;
        while pieces.fill(step, wanted) {
            decoder.layers(backend, step, &[], kv, buffers);
            if wanted.is_empty() {
                continue;
            }
            decoder.head(backend, wanted, buffers);
            in_place = pieces.is_done() && values.is_empty();
            if !in_place {
                values.extend_from_slice(buffers.logits(backend));
            }
        }
        let logits = if in_place { buffers.logits(backend) } else { &values[..] };
        if let Some(failure) = backend.failure() {
            return Err(failure.into());
        }
        Ok(Logits::new(logits, self.info.vocab_size))
    }

    fn draws_tokens(&self) -> bool {
        self.parts.draws_tokens
    }

    fn submit(&mut self, batch: &[Drawing<'_>]) -> Result<(), ModelError> {
        let extends: Vec<Extend<'_>> = batch.iter().map(|part| part.extend).collect();
        self.check(&extends)?;
        let wanted: usize = extends.iter().map(Extend::rows).sum();
        let rows: usize = extends.iter().map(|extend| extend.tokens.len()).sum();
        let draws: Vec<Draw> = batch.iter().flat_map(|part| part.draws).copied().collect();
        if draws.len() != wanted || batch.iter().any(|part| part.follows.is_some() && part.extend.tokens.len() != 1) {
            let reason = format!("{} draws for {wanted} rows, or a token to come beside others", draws.len());
            return Err(ModelError::InvalidBatch { reason });
        }
        let room = self.parts.room;
        let drawn = if rows <= room.rows && wanted <= room.logits {
            self.submit_whole(batch, &extends, &draws)
        } else {
            self.submit_pieces(batch, &extends, &draws)
        };
        if let Some(failure) = self.parts.backend.failure() {
            return Err(failure.into());
        }
        self.state.under_way.push_back(drawn);
        Ok(())
    }

    fn collect(&mut self) -> Result<Drawn, ModelError> {
        let drawn = match self.state.under_way.pop_front() {
            Some(Some(drawn)) => drawn,
            Some(None) => self.parts.backend.sampled(),
            None => return Err(ModelError::InvalidBatch { reason: "no step was submitted".to_owned() }),
        };
        match self.parts.backend.failure() {
            Some(failure) => Err(failure.into()),
            None => Ok(drawn),
        }
    }

    fn drop_sequence(&mut self, sequence: SequenceHandle) {
        self.state.sequences.remove(&sequence);
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }

    fn energy_uj(&mut self) -> Option<u64> {
        self.parts.energy.as_mut().map(EnergyMeter::total_uj)
    }

    fn take_profile(&mut self) -> Vec<OpTime> {
        self.parts.backend.take_profile()
    }
}

impl<B: Backend> NativeExecutor<B> {
    /// Submits a batch that is one step. What it draws is not here yet, unless it draws nothing.
    fn submit_whole(&mut self, batch: &[Drawing<'_>], extends: &[Extend<'_>], draws: &[Draw]) -> Option<Drawn> {
        let Parts { backend, decoder, buffers, kv, room, .. } = &mut self.parts;
        let State { step, wanted, under_way, .. } = &mut self.state;
        Pieces::new(extends, *room).fill(step, wanted);
        let mut feeds = Vec::new();
        for (part, span) in batch.iter().zip(&step.spans) {
            match (part.follows, under_way.back()) {
                (Some(index), Some(Some(drawn))) => step.tokens[span.rows.start] = drawn[index].unwrap_or(0),
                (Some(index), _) => feeds.push((span.rows.start, index)),
                (None, _) => {}
            }
        }
        decoder.layers(backend, step, &feeds, kv, buffers);
        if wanted.is_empty() {
            return Some(Vec::new());
        }
        decoder.head(backend, wanted, buffers);
        buffers.sample(backend, draws);
        None
    }

    /// Computes a batch that is too large for one step, and waits for what it draws.
    fn submit_pieces(&mut self, batch: &[Drawing<'_>], extends: &[Extend<'_>], draws: &[Draw]) -> Option<Drawn> {
        let Parts { backend, decoder, buffers, kv, room, .. } = &mut self.parts;
        let State { step, wanted, under_way, .. } = &mut self.state;
        for drawn in under_way.iter_mut() {
            drawn.get_or_insert_with(|| backend.sampled());
        }
        let known = |index: usize| under_way.back()?.as_ref()?.get(index)?.ok();
        let fed: Vec<[TokenId; 1]> = batch.iter().map(|part| [part.follows.and_then(known).unwrap_or(0)]).collect();
        let mut extends = extends.to_vec();
        for ((extend, fed), part) in extends.iter_mut().zip(&fed).zip(batch) {
            if part.follows.is_some() {
                extend.tokens = fed;
            }
        }
        let mut pieces = Pieces::new(&extends, *room);
        let mut all = Vec::new();
        while pieces.fill(step, wanted) {
            decoder.layers(backend, step, &[], kv, buffers);
            if wanted.is_empty() {
                continue;
            }
            decoder.head(backend, wanted, buffers);
            buffers.sample(backend, &draws[all.len()..all.len() + wanted.len()]);
            let drawn = backend.sampled();
            if drawn.len() != wanted.len() {
                // The device failed, as the caller is about to find out.
                break;
            }
            all.extend(drawn);
        }
        Some(all)
    }

    /// Refuses a batch that cannot be computed, before anything of it is.
    fn check(&mut self, batch: &[Extend<'_>]) -> Result<(), ModelError> {
        let invalid = |reason: String| Err(ModelError::InvalidBatch { reason });
        let State { written_by, batch: number, .. } = &mut self.state;
        *number = number.wrapping_add(1);
        if *number == 0 {
            // Every number was used: no mark of the round before may pass for one of this.
            written_by.fill(0);
            *number = 1;
        }
        for (index, Extend { tokens, place, .. }) in batch.iter().enumerate() {
            if tokens.is_empty() {
                return invalid(format!("no tokens in part {index}"));
            }
            if let Some(token) = tokens.iter().find(|&&token| token as usize >= self.parts.embedded_tokens) {
                return invalid(format!("token {token} is outside the vocabulary of {}", self.parts.embedded_tokens));
            }
            let wanted_tokens = place.start.saturating_add(tokens.len());
            let context_tokens = self.info.context_tokens;
            if wanted_tokens > context_tokens {
                return Err(ModelError::ContextFull { wanted_tokens, context_tokens });
            }
            let needed = wanted_tokens.div_ceil(KV_BLOCK_TOKENS);
            if place.blocks.len() < needed {
                return invalid(format!(
                    "{} blocks for {wanted_tokens} tokens, which need {needed}",
                    place.blocks.len()
                ));
            }
            if let Some(block) = place.blocks[..needed].iter().find(|&&block| block as usize >= written_by.len()) {
                return invalid(format!("there is no block {block}: the cache has {}", written_by.len()));
            }
            for &block in &place.blocks[place.start / KV_BLOCK_TOKENS..needed] {
                if std::mem::replace(&mut written_by[block as usize], *number) == *number {
                    return invalid(format!("block {block} would be written to twice"));
                }
            }
        }
        for Extend { place, .. } in batch {
            let before = &place.blocks[..place.start / KV_BLOCK_TOKENS];
            if let Some(block) = before.iter().find(|&&block| written_by[block as usize] == *number) {
                return invalid(format!("block {block} would be read and written to at once"));
            }
        }
        Ok(())
    }
}

/// Cuts a batch into steps.
struct Pieces<'a> {
    batch: &'a [Extend<'a>],
    room: Room,
    /// The part that comes next, and how many of its tokens are done.
    part: usize,
    done: usize,
}

impl<'a> Pieces<'a> {
    fn new(batch: &'a [Extend<'a>], room: Room) -> Self {
        Self { batch, room, part: 0, done: 0 }
    }

    fn is_done(&self) -> bool {
        self.part == self.batch.len()
    }

    /// Fills `step` with what comes next and `wanted` with the rows whose logits are; whether there was anything.
    fn fill(&mut self, step: &mut Step, wanted: &mut Vec<usize>) -> bool {
        step.tokens.clear();
        step.spans.clear();
        wanted.clear();
        while let Some(extend) = self.batch.get(self.part) {
            let first = step.tokens.len();
            let logits_left = self.room.logits - wanted.len();
            let most =
                (self.room.rows - first).min(if extend.wanted == Wanted::All { logits_left } else { usize::MAX });
            if most == 0 || (extend.wanted == Wanted::Last && logits_left == 0) {
                break;
            }
            let count = (extend.tokens.len() - self.done).min(most);
            let start = extend.place.start + self.done;
            let blocks = (start + count).div_ceil(KV_BLOCK_TOKENS);
            step.tokens.extend_from_slice(&extend.tokens[self.done..self.done + count]);
            step.spans.push(Span { rows: first..first + count, start, blocks: extend.place.blocks[..blocks].to_vec() });
            self.done += count;
            let ends = self.done == extend.tokens.len();
            match extend.wanted {
                Wanted::All => wanted.extend(first..first + count),
                Wanted::Last if ends => wanted.push(first + count - 1),
                Wanted::Last | Wanted::Nothing => {}
            }
            if ends {
                self.part += 1;
                self.done = 0;
            }
        }
        !step.tokens.is_empty()
    }
}
