//! Runs a decoder on one backend, over a paged KV cache whose blocks the caller hands out.

use std::collections::{BTreeSet, VecDeque};

use tokrun_kernels::energy::EnergyMeter;
use tokrun_kernels::sampling::Draw;
use tokrun_kernels::{Backend, KV_BLOCK_TOKENS, KernelError, Span, Step};

use super::decoder::{Buffers, Decoder, Room};
use crate::{
    Drawing, Drawn, Executor, ExecutorInfo, Extend, Logits, ModelError, OpTime, Outcome, SequenceHandle, TokenId,
    Wanted,
};

/// Blocks of all sequences of a step that a place is kept for: at 16 tokens each, 16 million tokens.
const REHEARSED_BLOCKS_MAX: usize = 1 << 20;

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
    /// Steps that may be under way when one is submitted.
    pub(super) steps_ahead: usize,
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
    wanted: WantedRows,
    /// Logits of a batch that was computed in several pieces.
    values: Vec<f32>,
    /// What was submitted and not collected.
    under_way: VecDeque<Submitted>,
}

/// Rows of a step whose logits are wanted.
#[derive(Default)]
struct WantedRows {
    /// To draw from.
    drawn: Vec<usize>,
    /// To be given.
    given: Vec<usize>,
}

impl WantedRows {
    fn len(&self) -> usize {
        self.drawn.len() + self.given.len()
    }
}

/// A step under way.
struct Submitted {
    /// What it drew, where that is here already.
    drawn: Option<Drawn>,
    given: Given,
}

/// Where the logits are that a step gives.
enum Given {
    Nothing,
    /// Where they were computed, after those of so many rows that were drawn from.
    InPlace(usize),
    /// In `State::values`.
    Copied,
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
        let batch: Vec<_> = batch.iter().map(|extend| Drawing { extend: *extend, follows: None, draws: &[] }).collect();
        self.submit(&batch)?;
        Ok(self.collect()?.logits)
    }

    fn draws_ahead(&self) -> Option<usize> {
        Some(self.parts.steps_ahead)
    }

    fn submit(&mut self, batch: &[Drawing<'_>]) -> Result<(), ModelError> {
        self.check(batch)?;
        let wanted: usize = batch.iter().map(|part| part.extend.rows()).sum();
        let rows: usize = batch.iter().map(|part| part.extend.tokens.len()).sum();
        let draws: Vec<Draw> = batch.iter().flat_map(|part| part.draws).copied().collect();
        let room = self.parts.room;
        let submitted = if rows <= room.rows && wanted <= room.logits {
            self.submit_whole(batch, &draws)
        } else {
            self.submit_pieces(batch, &draws)
        };
        if let Some(failure) = self.parts.backend.failure() {
            return Err(failure.into());
        }
        self.state.under_way.push_back(submitted);
        Ok(())
    }

    fn collect(&mut self) -> Result<Outcome<'_>, ModelError> {
        let Some(Submitted { drawn, given }) = self.state.under_way.pop_front() else {
            return Err(ModelError::InvalidBatch { reason: "no step was submitted".to_owned() });
        };
        let Parts { backend, buffers, .. } = &mut self.parts;
        let drawn = drawn.unwrap_or_else(|| backend.sampled());
        let values = match given {
            Given::Nothing => &[],
            Given::InPlace(first) => buffers.logits(backend, first),
            Given::Copied => &self.state.values[..],
        };
        match backend.failure() {
            Some(failure) => Err(failure.into()),
            None => Ok(Outcome { drawn, logits: Logits::new(values, self.info.vocab_size) }),
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
    fn submit_whole(&mut self, batch: &[Drawing<'_>], draws: &[Draw]) -> Submitted {
        let Parts { backend, decoder, buffers, kv, room, .. } = &mut self.parts;
        let State { step, wanted, under_way, .. } = &mut self.state;
        Pieces::new(batch, *room).fill(step, wanted);
        let mut feeds = Vec::new();
        for (part, span) in batch.iter().zip(&step.spans) {
            match (part.follows, under_way.back().and_then(|before| before.drawn.as_ref())) {
                (Some(index), Some(drawn)) => step.tokens[span.rows.start] = drawn[index].unwrap_or(0),
                (Some(index), None) => feeds.push((span.rows.start, index)),
                (None, _) => {}
            }
        }
        decoder.layers(backend, step, &feeds, kv, buffers);
        compute_head(backend, decoder, wanted, draws, buffers);
        Submitted {
            drawn: wanted.drawn.is_empty().then(Vec::new),
            given: if wanted.given.is_empty() { Given::Nothing } else { Given::InPlace(draws.len()) },
        }
    }

    /// Computes a batch that is too large for one step, and waits for what comes of it.
    fn submit_pieces(&mut self, batch: &[Drawing<'_>], draws: &[Draw]) -> Submitted {
        let Parts { backend, decoder, buffers, kv, room, .. } = &mut self.parts;
        let State { step, wanted, under_way, values, .. } = &mut self.state;
        for before in under_way.iter_mut() {
            before.drawn.get_or_insert_with(|| backend.sampled());
        }
        let known = |index: usize| under_way.back()?.drawn.as_ref()?.get(index)?.ok();
        let fed: Vec<[TokenId; 1]> = batch.iter().map(|part| [part.follows.and_then(known).unwrap_or(0)]).collect();
        let mut batch = batch.to_vec();
        for (part, fed) in batch.iter_mut().zip(&fed).filter(|(part, _)| part.follows.is_some()) {
            part.extend.tokens = fed;
        }
        values.clear();
        let (mut all, mut pieces) = (Vec::new(), Pieces::new(&batch, *room));
        while pieces.fill(step, wanted) {
            decoder.layers(backend, step, &[], kv, buffers);
            let piece = &draws[all.len()..all.len() + wanted.drawn.len()];
            compute_head(backend, decoder, wanted, piece, buffers);
            if !wanted.given.is_empty() {
                values.extend_from_slice(buffers.logits(backend, wanted.drawn.len()));
            }
            if !wanted.drawn.is_empty() {
                let drawn = backend.sampled();
                if drawn.len() != wanted.drawn.len() {
                    // The device failed, as the caller is about to find out.
                    break;
                }
                all.extend(drawn);
            }
        }
        Submitted { drawn: Some(all), given: Given::Copied }
    }

    /// Refuses a batch that cannot be computed, before anything of it is.
    fn check(&mut self, batch: &[Drawing<'_>]) -> Result<(), ModelError> {
        let invalid = |reason: String| Err(ModelError::InvalidBatch { reason });
        if self.state.under_way.iter().any(|submitted| !matches!(submitted.given, Given::Nothing)) {
            return invalid("the logits of the step before were not collected".to_owned());
        }
        let State { written_by, batch: number, .. } = &mut self.state;
        *number = number.wrapping_add(1);
        if *number == 0 {
            // Every number was used: no mark of the round before may pass for one of this.
            written_by.fill(0);
            *number = 1;
        }
        for (index, Drawing { extend, follows, draws }) in batch.iter().enumerate() {
            let Extend { tokens, place, .. } = extend;
            if tokens.is_empty() {
                return invalid(format!("no tokens in part {index}"));
            }
            if (!draws.is_empty() && draws.len() != extend.rows()) || (follows.is_some() && tokens.len() != 1) {
                let (draws, rows) = (draws.len(), extend.rows());
                return invalid(format!("{draws} draws for {rows} rows, or a token to come beside others"));
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
        for Drawing { extend: Extend { place, .. }, .. } in batch {
            let before = &place.blocks[..place.start / KV_BLOCK_TOKENS];
            if let Some(block) = before.iter().find(|&&block| written_by[block as usize] == *number) {
                return invalid(format!("block {block} would be read and written to at once"));
            }
        }
        Ok(())
    }
}

impl<B: Backend> Parts<B> {
    /// Makes the backend ready for steps of up to `sequences_max` sequences of up to `context_tokens` tokens.
    pub(super) fn rehearse(&mut self, sequences_max: usize, context_tokens: usize) -> Result<(), KernelError> {
        let Self { backend, decoder, buffers, kv, .. } = self;
        // Few machines have room for more, and what is reserved for them should not take much of it.
        let blocks_max =
            sequences_max.saturating_mul(context_tokens.div_ceil(KV_BLOCK_TOKENS)).min(REHEARSED_BLOCKS_MAX);
        backend.rehearse(sequences_max, blocks_max, |backend, rows| {
            let spans = (0..rows).map(|row| Span { rows: row..row + 1, start: 0, blocks: Vec::new() });
            let step = Step { tokens: vec![0; rows], spans: spans.collect() };
            let wanted = WantedRows { drawn: (0..rows).collect(), given: Vec::new() };
            decoder.layers(backend, &step, &[], kv, buffers);
            compute_head(backend, decoder, &wanted, &[], buffers);
        });
        backend.failure().map_or(Ok(()), Err)
    }
}

/// Computes the logits that are wanted, those to draw from first, and draws.
fn compute_head<B: Backend>(
    backend: &mut B,
    decoder: &Decoder<B>,
    wanted: &WantedRows,
    draws: &[Draw],
    buffers: &mut Buffers<B>,
) {
    if wanted.len() > 0 {
        decoder.head(backend, &[&wanted.drawn[..], &wanted.given].concat(), buffers);
    }
    buffers.sample(backend, draws);
}

/// Cuts a batch into steps.
struct Pieces<'a> {
    batch: &'a [Drawing<'a>],
    room: Room,
    /// The part that comes next, and how many of its tokens are done.
    part: usize,
    done: usize,
}

impl<'a> Pieces<'a> {
    fn new(batch: &'a [Drawing<'a>], room: Room) -> Self {
        Self { batch, room, part: 0, done: 0 }
    }

    /// Fills `step` with what comes next and `wanted` with the rows whose logits are; whether there was anything.
    fn fill(&mut self, step: &mut Step, wanted: &mut WantedRows) -> bool {
        step.tokens.clear();
        wanted.drawn.clear();
        wanted.given.clear();
        let mut spans = 0;
        while let Some(Drawing { extend, draws, .. }) = self.batch.get(self.part) {
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
            // The memory for their blocks is used again from step to step.
            if spans == step.spans.len() {
                step.spans.push(Span { rows: 0..0, start: 0, blocks: Vec::new() });
            }
            let span = &mut step.spans[spans];
            (span.rows, span.start) = (first..first + count, start);
            span.blocks.clear();
            span.blocks.extend_from_slice(&extend.place.blocks[..blocks]);
            spans += 1;
            self.done += count;
            let ends = self.done == extend.tokens.len();
            let rows = if draws.is_empty() { &mut wanted.given } else { &mut wanted.drawn };
            match extend.wanted {
                Wanted::All => rows.extend(first..first + count),
                Wanted::Last if ends => rows.push(first + count - 1),
                Wanted::Last | Wanted::Nothing => {}
            }
            if ends {
                self.part += 1;
                self.done = 0;
            }
        }
        step.spans.truncate(spans);
        !step.tokens.is_empty()
    }
}
