//! Executors over `candle-transformers`: every family it has, one sequence at a time, on the CPU.
//!
//! candle's models keep their KV cache (or recurrent state) inside, so a sequence is a copy of the model: the weights
//! are shared, the cache is its own. What a model would compute wrongly is refused or avoided here, never ignored:
//! [`Pieces`] says how a family may be fed, and the loaders refuse settings and tensors that it would not honour.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use candle_core::{DType, Device, Tensor};
use tokrun_kernels::energy::EnergyMeter;

use crate::{Executor, ExecutorInfo, Extend, Logits, ModelError, SequenceHandle, TokenId, Wanted};

mod families;
mod gguf;
mod safetensors;

pub(crate) use gguf::load as load_gguf;
pub(crate) use safetensors::{load as load_safetensors, read as read_tensor};

/// Tokens computed at once at most. Attention scores and logits of a piece are held in full, so this bounds memory.
const PIECE_TOKENS: usize = 512;
/// Longest context: candle computes its rope tables for all of it when it loads.
const CONTEXT_TOKENS_MAX: usize = 32_768;
/// Sequences that may exist at once where the caller does not say.
const SEQUENCES_MAX: usize = 64;

/// One model with one cache.
pub(crate) trait Decoder: Send {
    /// Appends `tokens`, `[1, n]` u32, at `position`, and returns logits whose last `vocab_size` values are those of the
    /// last token.
    fn forward(&mut self, tokens: &Tensor, position: usize) -> candle_core::Result<Tensor>;

    /// A copy with the same weights and a cache of its own; `None` where the model cannot be copied.
    fn fork(&self) -> Option<Box<dyn Decoder>>;

    /// Empties the cache, and says whether that could be done; asked only of models that cannot be copied.
    fn reset(&mut self) -> bool {
        false
    }
}

/// How many tokens a family takes at a time before its masks go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pieces {
    /// Any number at any time.
    Any,
    /// Any number until the first single token, single tokens from then on.
    UntilSingle,
    /// Any number at the start, single tokens from then on.
    FirstOnly,
    /// Single tokens only.
    Single,
}

impl Pieces {
    /// How many of `wanted` tokens to compute next, for a sequence that holds `length` and has `had_single`.
    fn next(self, wanted: usize, length: usize, had_single: bool) -> usize {
        match self {
            Self::Any => wanted.min(PIECE_TOKENS),
            Self::UntilSingle if !had_single => wanted.min(PIECE_TOKENS),
            Self::FirstOnly if length == 0 => wanted,
            Self::UntilSingle | Self::FirstOnly | Self::Single => 1,
        }
    }
}

/// Loads a model anew.
type Load = Box<dyn Fn() -> Result<Box<dyn Decoder>, ModelError> + Send>;

/// What a loader found out about its model.
pub(crate) struct Loaded {
    pub(crate) decoder: Box<dyn Decoder>,
    /// For models that can neither be copied nor emptied.
    pub(crate) load: Load,
    pub(crate) pieces: Pieces,
    /// Rows of the output matrix.
    pub(crate) vocab_size: usize,
    /// Rows of the embedding matrix: the first token that is outside.
    pub(crate) embedded_tokens: usize,
    /// Longest sequence that is computed rightly.
    pub(crate) context_tokens: usize,
}

/// Runs one loaded model.
struct CandleExecutor {
    info: ExecutorInfo,
    notes: Vec<String>,
    pieces: Pieces,
    embedded_tokens: usize,
    /// The model with an empty cache, from which sequences are made; lent to the only sequence if it cannot be copied.
    pristine: Option<Box<dyn Decoder>>,
    load: Load,
    sequences: BTreeMap<SequenceHandle, Sequence>,
    next_handle: u64,
    energy: Option<EnergyMeter>,
}

struct Sequence {
    decoder: Box<dyn Decoder>,
    length: usize,
    had_single: bool,
    /// A batch with it failed: what its cache holds is unknown.
    failed: bool,
}

/// Makes an executor of a loaded model.
pub(crate) fn executor(loaded: Loaded, sequences_max: Option<usize>, notes: Vec<String>) -> Box<dyn Executor> {
    let can_fork = loaded.decoder.fork().is_some();
    let sequences_max = if can_fork { sequences_max.unwrap_or(SEQUENCES_MAX).max(1) } else { 1 };
    Box::new(CandleExecutor {
        info: ExecutorInfo {
            backend: "candle",
            device: "cpu".to_owned(),
            vocab_size: loaded.vocab_size,
            context_tokens: loaded.context_tokens,
            sequences_max,
            paging: None,
        },
        notes,
        pieces: loaded.pieces,
        embedded_tokens: loaded.embedded_tokens,
        pristine: Some(loaded.decoder),
        load: loaded.load,
        sequences: BTreeMap::new(),
        next_handle: 0,
        energy: EnergyMeter::cpu(),
    })
}

impl Executor for CandleExecutor {
    fn info(&self) -> &ExecutorInfo {
        &self.info
    }

    fn create(&mut self) -> Result<SequenceHandle, ModelError> {
        if self.sequences.len() >= self.info.sequences_max {
            return Err(ModelError::SequencesFull { sequences_max: self.info.sequences_max });
        }
        let copy = self.pristine.as_ref().and_then(|model| model.fork());
        let decoder = match copy.or_else(|| self.pristine.take()) {
            Some(decoder) => decoder,
            None => (self.load)()?,
        };
        let handle = SequenceHandle(self.next_handle);
        self.next_handle += 1;
        self.sequences.insert(handle, Sequence { decoder, length: 0, had_single: false, failed: false });
        Ok(handle)
    }

    fn extend(&mut self, batch: &[Extend<'_>]) -> Result<Logits<'_>, ModelError> {
        self.check(batch)?;
        let mut values = Vec::with_capacity(batch.len() * self.info.vocab_size);
        for extend in batch {
            let sequence = self.sequences.get_mut(&extend.sequence).expect("checked above");
            match sequence.extend(extend.tokens, self.pieces, self.info.vocab_size) {
                Ok(row) if extend.wanted == Wanted::Last => values.extend(row),
                Ok(_) => {}
                Err(error) => {
                    for extend in batch {
                        self.sequences.get_mut(&extend.sequence).expect("checked above").failed = true;
                    }
                    return Err(error);
                }
            }
        }
        Ok(Logits::new(values, self.info.vocab_size))
    }

    fn drop_sequence(&mut self, sequence: SequenceHandle) {
        let Some(mut dropped) = self.sequences.remove(&sequence) else { return };
        if self.pristine.is_none() && dropped.decoder.reset() {
            self.pristine = Some(dropped.decoder);
        }
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }

    fn energy_uj(&mut self) -> Option<u64> {
        self.energy.as_mut().map(EnergyMeter::total_uj)
    }
}

impl CandleExecutor {
    /// Refuses a batch that cannot be computed, before anything of it is.
    fn check(&self, batch: &[Extend<'_>]) -> Result<(), ModelError> {
        let invalid = |reason: String| Err(ModelError::InvalidBatch { reason });
        for (index, extend) in batch.iter().enumerate() {
            let Some(sequence) = self.sequences.get(&extend.sequence) else {
                return invalid(format!("there is no sequence {}", extend.sequence.0));
            };
            if sequence.failed {
                return invalid(format!("sequence {} failed before and can only be dropped", extend.sequence.0));
            }
            if batch[..index].iter().any(|earlier| earlier.sequence == extend.sequence) {
                return invalid(format!("sequence {} appears twice", extend.sequence.0));
            }
            if extend.wanted == Wanted::All {
                return invalid("this executor gives the logits of the last token only".to_owned());
            }
            if extend.tokens.is_empty() {
                return invalid(format!("no tokens for sequence {}", extend.sequence.0));
            }
            if let Some(token) = extend.tokens.iter().find(|&&token| token as usize >= self.embedded_tokens) {
                return invalid(format!("token {token} is outside the vocabulary of {}", self.embedded_tokens));
            }
            let wanted_tokens = sequence.length.saturating_add(extend.tokens.len());
            let context_tokens = self.info.context_tokens;
            if wanted_tokens > context_tokens {
                return Err(ModelError::ContextFull { wanted_tokens, context_tokens });
            }
        }
        Ok(())
    }
}

impl Sequence {
    /// Appends `tokens`, piece by piece, and returns the logits of the last one.
    fn extend(&mut self, tokens: &[TokenId], pieces: Pieces, vocab_size: usize) -> Result<Vec<f32>, ModelError> {
        let mut rest = tokens;
        loop {
            let count = pieces.next(rest.len(), self.length, self.had_single);
            let (piece, after) = rest.split_at(count);
            let input = Tensor::new(piece, &Device::Cpu)?.unsqueeze(0)?;
            let output = guarded(|| self.decoder.forward(&input, self.length))?;
            self.length += count;
            self.had_single |= count == 1;
            rest = after;
            if rest.is_empty() {
                return last_row(&output, vocab_size);
            }
        }
    }
}

/// The last `vocab_size` values of a model's output, whatever its leading dimensions are.
fn last_row(output: &Tensor, vocab_size: usize) -> Result<Vec<f32>, ModelError> {
    let flat = output.flatten_all()?;
    let Some(start) = flat.elem_count().checked_sub(vocab_size) else {
        let reason = format!("the model gave {} logits where {vocab_size} were announced", flat.elem_count());
        return Err(ModelError::Unsupported { reason });
    };
    Ok(flat.narrow(0, start, vocab_size)?.to_dtype(DType::F32)?.to_vec1()?)
}

/// Runs candle's code. Loaders check what they hand over, but candle asserts in places no check foresees; a panic there
/// must not take the process, and the other users' requests with it.
pub(crate) fn guarded<T>(compute: impl FnOnce() -> candle_core::Result<T>) -> Result<T, ModelError> {
    match catch_unwind(AssertUnwindSafe(compute)) {
        Ok(result) => Ok(result?),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
            Err(candle_core::Error::Msg(format!("candle panicked: {}", text.unwrap_or("no message"))).into())
        }
    }
}
