//! The seam between models and whoever decides what they compute: tokens in, logits out.

use std::borrow::Cow;

use tokrun_kernels::OpTime;
use tokrun_kernels::sampling::{BadLogit, Draw};

use crate::ModelError;

/// A token's number in its model's vocabulary.
pub type TokenId = u32;

/// Names one sequence inside one executor; what it keeps for it (a KV cache, a recurrent state) stays hidden.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceHandle(pub(crate) u64);

impl SequenceHandle {
    /// The handle of this number; an executor gives out each number once.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }
}

/// What an executor is and what it honours.
#[derive(Clone, Debug)]
pub struct ExecutorInfo {
    /// What computes: `native` or `candle`.
    pub backend: &'static str,
    /// Where: `cpu`.
    pub device: String,
    /// Logits a token, the padded rows of the output matrix included.
    pub vocab_size: usize,
    /// Longest sequence, prompt and output together, in tokens: what the model allows and the executor can honour.
    pub context_tokens: usize,
    /// Sequences that may exist at the same time; `create` refuses the next one.
    pub sequences_max: usize,
    /// Where the caller manages what sequences keep: blocks of a cache that it hands out. `None` where sequences are
    /// opaque.
    pub paging: Option<Paging>,
}

/// The blocks of a paged KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paging {
    /// Tokens a block holds.
    pub block_tokens: usize,
    /// Blocks there are, numbered from 0.
    pub blocks: usize,
    /// Bytes a block takes, over all layers.
    pub block_bytes: usize,
}

/// Names one block of a paged executor's cache.
pub type BlockId = u32;

/// Tokens to append to one sequence.
#[derive(Clone, Copy, Debug)]
pub struct Extend<'a> {
    /// The sequence to append to.
    pub sequence: SequenceHandle,
    /// What to append, at least one token.
    pub tokens: &'a [TokenId],
    /// Where a paged executor finds and keeps the sequence; ignored by others.
    pub place: Place<'a>,
    /// For which of the tokens logits are wanted.
    pub wanted: Wanted,
}

/// Where a sequence lies in a paged cache. All that a paged executor knows of a sequence is here: blocks may be shared
/// between sequences with equal beginnings, and a sequence may be continued from any earlier length.
#[derive(Clone, Copy, Debug, Default)]
pub struct Place<'a> {
    /// Tokens of the sequence that are in its blocks already: the position of the first new one.
    pub start: usize,
    /// Its blocks in order, enough for all its tokens with the new ones. Blocks that are written to belong to this
    /// sequence alone.
    pub blocks: &'a [BlockId],
}

/// Which logits a caller wants of one [`Extend`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// None: more of the prompt follows.
    Nothing,
    /// Those after its last token.
    Last,
    /// Those after each of its tokens; only paged executors give them.
    All,
}

impl<'a> Extend<'a> {
    /// For an executor whose sequences are opaque; the logits after the last token.
    pub fn new(sequence: SequenceHandle, tokens: &'a [TokenId]) -> Self {
        Self { sequence, tokens, place: Place::default(), wanted: Wanted::Last }
    }

    /// Rows of logits it leads to.
    pub fn rows(&self) -> usize {
        match self.wanted {
            Wanted::Nothing => 0,
            Wanted::Last => 1,
            Wanted::All => self.tokens.len(),
        }
    }
}

/// Next-token logits, `[rows, vocab_size]`, f32, row-major: the rows that each [`Extend`] wants, in the order of the
/// batch. They may still lie where the executor computed them.
#[derive(Clone, Debug)]
pub struct Logits<'a> {
    values: Cow<'a, [f32]>,
    vocab_size: usize,
}

impl<'a> Logits<'a> {
    /// Wraps `values`, `[rows, vocab_size]`, row-major.
    ///
    /// # Panics
    /// If `values` is no whole number of rows.
    pub fn new(values: impl Into<Cow<'a, [f32]>>, vocab_size: usize) -> Self {
        let values = values.into();
        assert!(vocab_size > 0 && values.len().is_multiple_of(vocab_size), "logits must be whole rows");
        Self { values, vocab_size }
    }

    /// The same, of its own.
    pub fn into_owned(self) -> Logits<'static> {
        Logits { values: Cow::Owned(self.values.into_owned()), vocab_size: self.vocab_size }
    }

    /// Row `index`, `[vocab_size]`.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.vocab_size..(index + 1) * self.vocab_size]
    }

    /// How many rows there are.
    pub fn rows(&self) -> usize {
        self.values.len() / self.vocab_size
    }
}

/// What a step computes for one sequence where tokens can be drawn beside the logits.
#[derive(Clone, Copy, Debug)]
pub struct Drawing<'a> {
    /// The tokens to append, and after which of them to draw, or whose logits to give.
    pub extend: Extend<'a>,
    /// Where set, its one token is not known yet: it is the one of this index among those that the step submitted before
    /// draws. What stands in its place is ignored.
    pub follows: Option<usize>,
    /// One for each row that is wanted; or none, to be given the logits.
    pub draws: &'a [Draw],
}

impl Drawing<'_> {
    /// Rows of logits that are given.
    pub fn rows_given(&self) -> usize {
        if self.draws.is_empty() { self.extend.rows() } else { 0 }
    }
}

/// What a step drew, one for each [`Draw`], in the order of the batch.
pub type Drawn = Vec<Result<TokenId, BadLogit>>;

/// What came of a step.
#[derive(Debug)]
pub struct Outcome<'a> {
    /// The tokens.
    pub drawn: Drawn,
    /// The rows that are given, in the order of the batch.
    pub logits: Logits<'a>,
}

/// Runs one loaded model. It lives on the engine's thread and is never shared.
///
/// A sequence is opaque: create it, extend it, drop it. `extend` takes any split of a sequence into pieces (a whole
/// prompt, chunks of it, one token): the logits after the same tokens are the same up to rounding.
pub trait Executor: Send {
    /// What this executor is and what it honours.
    fn info(&self) -> &ExecutorInfo;

    /// Begins an empty sequence.
    ///
    /// # Errors
    /// When `sequences_max` of them exist.
    fn create(&mut self) -> Result<SequenceHandle, ModelError>;

    /// Appends tokens to each sequence of `batch` and returns the logits that were wanted, in the same order.
    ///
    /// # Errors
    /// When a sequence is unknown or would outgrow `context_tokens`, a token is outside the vocabulary, or the
    /// arithmetic fails. The sequences of a failed batch can only be dropped.
    fn extend(&mut self, batch: &[Extend<'_>]) -> Result<Logits<'_>, ModelError>;

    /// Whether tokens can be drawn where the logits are, with [`submit`](Self::submit) and [`collect`](Self::collect), and if
    /// so, how many steps may be under way already when one is submitted.
    fn draws_ahead(&self) -> Option<usize> {
        None
    }

    /// Begins a step that appends tokens to each sequence of `batch`, and draws what is wanted. Where it can be submitted
    /// ahead, it does not wait, unless it gives logits; those must be collected before anything else is submitted.
    ///
    /// # Errors
    /// As [`extend`](Self::extend); the step is then not under way. Executors that do not draw tokens refuse.
    fn submit(&mut self, batch: &[Drawing<'_>]) -> Result<(), ModelError> {
        Err(draws_nothing(batch.len()))
    }

    /// What came of the earliest step that was submitted and not collected yet, waiting until it is done.
    ///
    /// # Errors
    /// When the device failed. Executors that do not draw tokens refuse.
    fn collect(&mut self) -> Result<Outcome<'_>, ModelError> {
        Err(draws_nothing(0))
    }

    /// Forgets a sequence and frees what was kept for it; an unknown handle is ignored.
    fn drop_sequence(&mut self, sequence: SequenceHandle);

    /// What the user should know about how the model is computed: a fallback and its reason, a context cut short. One
    /// sentence each, for whoever talks to the terminal.
    fn notes(&self) -> &[String] {
        &[]
    }

    /// Microjoules that the device which computes has used since the executor was made, never less than before; `None`
    /// where the machine does not tell. Fit to be asked each step.
    fn energy_uj(&mut self) -> Option<u64> {
        None
    }

    /// Time spent in each operation since the last call, where the executor was asked to measure.
    fn take_profile(&mut self) -> Vec<OpTime> {
        Vec::new()
    }
}

fn draws_nothing(parts: usize) -> ModelError {
    ModelError::InvalidBatch { reason: format!("{parts} parts to draw tokens for, which this executor does not") }
}
